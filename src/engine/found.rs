//! What the files of an index hold: roots and headers, read and held against each other.

use super::{
    names,
    roots::{self, Slot},
    stats::RecoveryStats,
};
use crate::{
    error::{Result, ShardexError},
    format::{
        header::{self, DATA_MAGIC, FILE_HEADER_BYTES, Kind, WAL_MAGIC},
        root::Root,
    },
    lease::{IndexLock, PlainFile},
    limits::FORMAT_VERSION,
    shard::DataFile,
    site::{self, Mark},
    storage::{Storage, StorageFile},
    wal::WalLayout,
};

/// What the files of an index hold, before anything is decided.
pub(super) struct Found<F: StorageFile> {
    pub(super) lock: IndexLock,
    pub(super) root_file: PlainFile<F>,
    pub(super) wal_file: PlainFile<F>,
    pub(super) data: DataFile<F>,
    pub(super) newest: Root,
    pub(super) newest_slot: usize,
    pub(super) older: Option<Root>,
    /// The newest epoch that any root names.
    pub(super) epoch: u64,
    pub(super) recovery: RecoveryStats,
}

impl<F: StorageFile> Found<F> {
    /// Reads roots and headers.
    pub(super) fn read<S: Storage<File = F>>(
        storage: &S,
        lock: IndexLock,
        mut recovery: RecoveryStats,
    ) -> Result<Self> {
        let root_file = PlainFile::open(storage, names::ROOT, &lock)?;
        let page_size = storage.page_size();
        let slots = roots::read_slots(root_file.raw(), page_size)?;
        let mut valid: Vec<(usize, Root)> = Vec::new();
        for (i, slot) in slots.iter().enumerate() {
            match slot {
                Slot::Valid(root) => valid.push((i, (**root).clone())),
                Slot::Unreadable(_) => {
                    recovery.root_fallback = true;
                    site::reach(Mark::OlderRootUsed);
                }
            }
        }
        // By epoch first: a slot that holds something older than it should may be of a time that a crash cut off, and then
        // its generation was given out again, in a later epoch.
        valid.sort_by_key(|(_, root)| (root.epoch, root.generation));
        let epoch = valid.iter().map(|(_, root)| root.epoch).max().unwrap_or(0);
        let Some((newest_slot, newest)) = valid.pop() else { unreachable!("one slot is valid, or reading failed") };
        let mut older = valid.pop().map(|(_, root)| root);
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
            && (older.index_id != newest.index_id
                || older.geometry != geometry
                || (older.epoch, older.generation) == (newest.epoch, newest.generation))
            && older != &newest
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
        if !site::holds(site::Kind::ErrorCheck, data.raw().len()? >= least) {
            return Err(ShardexError::Corruption {
                file: data.path(),
                offset: data.raw().len()?,
                what: format!("the file ends here, {least} bytes expected"),
            });
        }
        // Of more pages than there are, it names what is not there.
        let len = data.raw().len()?;
        if older.as_ref().is_some_and(|older| older.data_pages.saturating_mul(page_size as u64) > len) {
            recovery.root_fallback = true;
            older = None;
        }
        let least = WalLayout::new(&geometry).file_len(newest.wal_segments as usize);
        if newest.wal_segments > 0 && !site::holds(site::Kind::ErrorCheck, wal_file.raw().len()? >= least) {
            return Err(ShardexError::Corruption {
                file: wal_file.path(),
                offset: wal_file.raw().len()?,
                what: format!("the file ends here, {least} bytes expected"),
            });
        }
        Ok(Self { lock, root_file, wal_file, data, newest, newest_slot, older, epoch, recovery })
    }
}

/// A file that is not there, although there is a root, is damage.
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
fn check_part<F: StorageFile>(file: &F, magic: &[u8; 8], index_id: u128) -> Result<()> {
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
        Kind::Ours => {}
        Kind::OtherVersion(found) => {
            return Err(ShardexError::UnsupportedVersion { file: file.path(), found, supported: FORMAT_VERSION });
        }
        Kind::Foreign => {
            let reason = format!("its first bytes are \"{}\"", bytes[..8].escape_ascii());
            return Err(ShardexError::NotAnIndex { file: file.path(), reason });
        }
    }
    let damaged = |what: String| ShardexError::Corruption { file: file.path(), offset: 0, what };
    let found = header::decode_file(&bytes, magic).map_err(|e| damaged(e.to_string()))?;
    if !site::holds(site::Kind::ErrorCheck, found == index_id) {
        return Err(damaged(format!("it belongs to index {found:032x}, not to {index_id:032x}")));
    }
    Ok(())
}
