//! Reading the files of an index: roots and headers, checked against each other.

use super::{
    names,
    roots::{self, RootSlot},
    stats::RecoveryStats,
};
use crate::{
    error::{Result, ShardexError},
    failpoint::{holds, reached},
    format::{
        header::{self, DATA_MAGIC, FILE_HEADER_BYTES, FileKind, HEADER_VERSION, WAL_MAGIC},
        root::Root,
    },
    lease::{IndexLock, PlainFile},
    shard::DataFile,
    storage::{Storage, StorageFile},
    wal::WalLayout,
};

/// Files and roots of an index as read from disk, before recovery decides anything.
pub(super) struct IndexFiles<F: StorageFile> {
    pub(super) lock: IndexLock,
    pub(super) root_file: PlainFile<F>,
    pub(super) wal_file: PlainFile<F>,
    pub(super) data: DataFile<F>,
    pub(super) newest: Root,
    pub(super) newest_slot: usize,
    pub(super) older: Option<Root>,
    /// Newest epoch named by any root.
    pub(super) epoch: u64,
    pub(super) recovery: RecoveryStats,
}

impl<F: StorageFile> IndexFiles<F> {
    /// Opens the files, reads the roots and checks the headers and lengths of `data` and `wal`.
    ///
    /// # Errors
    /// Returns `Config` if this storage can't serve the page or sector size of the index. Returns `Corruption` if a
    /// file is missing, too short or damaged, belongs to another index, or if the roots contradict each other. Returns
    /// `NotAnIndex`, `UnsupportedVersion` or `Io`.
    pub(super) fn read<S: Storage<File = F>>(
        storage: &S,
        lock: IndexLock,
        mut recovery: RecoveryStats,
    ) -> Result<Self> {
        let root_file = PlainFile::open(storage, names::ROOT, &lock)?;
        let page_size = storage.page_size();
        let (epoch, newest, older) = read_roots(&root_file, page_size, &mut recovery)?;
        let ((newest_slot, newest), mut older) = (newest, older);
        let geometry = newest.geometry;
        if geometry.page_size != page_size || !geometry.sector_size.is_multiple_of(storage.sector_size()) {
            return Err(ShardexError::Config {
                field: "directory_path",
                reason: format!(
                    "the index was made for pages of {} and sectors of {} bytes; this storage has {page_size} and {}",
                    geometry.page_size,
                    geometry.sector_size,
                    storage.sector_size()
                ),
            });
        }
        if let Some(older) = &older
            && contradict(&newest, older)
        {
            return Err(ShardexError::Corruption {
                file: root_file.path(),
                offset: ((1 - newest_slot) * page_size) as u64,
                what: format!("its roots {} and {} contradict each other", older.generation, newest.generation),
            });
        }
        let data = DataFile::open(storage, &lock, geometry).map_err(missing_part)?;
        check_part(data.raw(), &DATA_MAGIC, newest.index_id)?;
        let wal_file = PlainFile::open(storage, names::WAL, &lock).map_err(missing_part)?;
        check_part(wal_file.raw(), &WAL_MAGIC, newest.index_id)?;
        let least = newest.data_pages.saturating_mul(page_size as u64);
        if !holds!(ErrorCheck, data.raw().len()? >= least) {
            return Err(too_short(data.raw(), least)?);
        }
        // An older root with more data pages than the file may name pages that do not exist, so it is not used.
        let len = data.raw().len()?;
        if older.as_ref().is_some_and(|older| older.data_pages.saturating_mul(page_size as u64) > len) {
            recovery.root_fallback = true;
            older = None;
        }
        let least = WalLayout::new(&geometry).file_len(newest.wal_segments as usize);
        if newest.wal_segments > 0 && !holds!(ErrorCheck, wal_file.raw().len()? >= least) {
            return Err(too_short(wal_file.raw(), least)?);
        }
        Ok(Self { lock, root_file, wal_file, data, newest, newest_slot, older, epoch, recovery })
    }
}

/// Reads the root slots. Returns the newest epoch of any root, the newest root with its slot, and the older root.
fn read_roots<F: StorageFile>(
    file: &PlainFile<F>,
    page_size: usize,
    recovery: &mut RecoveryStats,
) -> Result<(u64, (usize, Root), Option<Root>)> {
    let slots = roots::read_slots(file.raw(), page_size)?;
    let mut valid: Vec<(usize, Root)> = Vec::new();
    for (i, slot) in slots.iter().enumerate() {
        match slot {
            RootSlot::Valid(root) => valid.push((i, (**root).clone())),
            RootSlot::Unreadable(_) => {
                recovery.root_fallback = true;
                reached!(OlderRootUsed);
            }
        }
    }
    // The epoch comes before the generation. A stale slot may hold a root of a history that a crash cut off. A later
    // epoch may have assigned that root's generation a second time.
    valid.sort_by_key(|(_, root)| (root.epoch, root.generation));
    let epoch = valid.iter().map(|(_, root)| root.epoch).max().unwrap_or(0);
    let Some((newest_slot, newest)) = valid.pop() else { unreachable!("one slot is valid, or reading failed") };
    Ok((epoch, (newest_slot, newest), valid.pop().map(|(_, root)| root)))
}

/// Reports whether two roots cannot belong to one history.
fn contradict(newest: &Root, older: &Root) -> bool {
    let same_name = (older.epoch, older.generation) == (newest.epoch, newest.generation);
    (older.index_id != newest.index_id || older.geometry != newest.geometry || same_name) && older != newest
}

/// Builds the error for a file that is shorter than the root requires.
fn too_short<F: StorageFile>(file: &F, least: u64) -> Result<ShardexError> {
    let what = format!("the file ends here, {least} bytes expected");
    Ok(ShardexError::Corruption { file: file.path(), offset: file.len()?, what })
}

/// Turns a missing file into `Corruption`, because an index with a root must have it.
fn missing_part(error: ShardexError) -> ShardexError {
    match error {
        ShardexError::Io { path, source, .. } if source.kind() == std::io::ErrorKind::NotFound => {
            let what = "the file is missing, yet the index has a root: put it back".to_owned();
            ShardexError::Corruption { file: path, offset: 0, what }
        }
        error => error,
    }
}

/// Checks that `data` or `wal` belongs to the index.
pub(super) fn check_part<F: StorageFile>(file: &F, magic: &[u8; 8], index_id: u128) -> Result<()> {
    let mut bytes = [0; FILE_HEADER_BYTES];
    if file.len()? < FILE_HEADER_BYTES as u64 {
        return Err(ShardexError::Corruption {
            file: file.path(),
            offset: 0,
            what: "the file ends before its header does".into(),
        });
    }
    file.read_at(0, &mut bytes)?;
    match header::kind(&bytes, magic) {
        FileKind::Version(HEADER_VERSION) => {}
        FileKind::Version(found) => {
            return Err(ShardexError::UnsupportedVersion { file: file.path(), found, supported: HEADER_VERSION });
        }
        FileKind::Foreign => {
            let reason = format!("its first bytes are \"{}\"", bytes[..8].escape_ascii());
            return Err(ShardexError::NotAnIndex { file: file.path(), reason });
        }
    }
    let damaged = |what: String| ShardexError::Corruption { file: file.path(), offset: 0, what };
    let found = header::decode_file(&bytes, magic).map_err(|e| damaged(e.to_string()))?;
    if !holds!(ErrorCheck, found == index_id) {
        return Err(damaged(format!("it belongs to index {found:032x}, not to {index_id:032x}")));
    }
    Ok(())
}
