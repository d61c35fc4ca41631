//! Backup: copies what a root names into the files of another directory, while writes go on.
//!
//! # Invariants
//! 1. A pin keeps everything that the root names until the backup ends. Extents and blocks of payloads may grow meanwhile, but
//!    their bytes up to the used ones of the root stay.
//! 2. The manifest gets its name once every file that it names is durable (K1 to K3), and every byte has been read back. So a
//!    crash leaves a whole backup or a directory without a manifest.
//! 3. Nothing stores to a pack once it is synced, so backups may share it.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use super::{
    backup_files::BackupFiles,
    backup_target::BackupTarget,
    core::Engine,
    directory::in_data,
    places::{Place, places_of},
};
use crate::{
    env::{Cancel, Clock},
    error::{Result, ShardexError},
    failpoint::holds,
    format::{
        crc32c,
        manifest::{Manifest, PackEntry, PlaceEntry, content_hash},
        root::Root,
    },
    id::Lsn,
    shard::DataFile,
    space::RootPin,
    storage::{Storage, StorageFile as _},
    tuning::PACK_SHARE,
};

/// Report of a [`backup_to`](crate::Shardex::backup_to).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct BackupStats {
    /// Last write that the backup holds. It holds everything accepted before the call.
    pub lsn: Lsn,
    /// Last write of the earlier backup that it was made against.
    pub base_lsn: Option<Lsn>,
    /// Places of the data file in the backup: extents, blocks of metadata and payloads, groups of cells.
    pub places: u64,
    /// Bytes of these places.
    pub bytes: u64,
    /// Bytes of the places that this call has stored. Those of the others are in files of the earlier backup.
    pub stored_bytes: u64,
    /// Bytes of the earlier backup's files that were copied, because the file system can't give a file a second name.
    pub copied_bytes: u64,
    /// Whether damaged cells were left out. They are derived: a restored index builds them again.
    pub cells_left_out: bool,
    /// Time of the copy, without the flush before it.
    pub duration: Duration,
}

/// Backup whose root is chosen and pinned.
pub struct BackupJob<S: Storage> {
    data: Arc<DataFile<S::File>>,
    root: Root,
    clock: Arc<dyn Clock>,
    _pin: RootPin,
}

impl<S: Storage> Engine<S> {
    /// Returns a job that backs up the newest durable root. What was accepted since then is not in it: flush before.
    ///
    /// # Errors
    /// Returns `Poisoned` or `ReadOnly`.
    pub fn backup_begin(&mut self) -> Result<BackupJob<S>> {
        self.check_writable()?;
        let root = self.roots.newest().clone();
        let pin = self.work.space.pin(root.generation);
        Ok(BackupJob { data: Arc::clone(&self.data), root, clock: Arc::clone(&self.clock), _pin: pin })
    }
}

impl<S: Storage> BackupJob<S> {
    /// Stores the backup in the directory of `to`, which must be missing or empty. What `base` holds as well is shared with it.
    ///
    /// # Errors
    /// Returns the errors of [`backup_to`](crate::Shardex::backup_to).
    pub fn run_until<D: Storage>(mut self, to: &D, base: Option<&D>, cancel: &dyn Cancel) -> Result<BackupStats> {
        let began = self.clock.elapsed();
        let base = base.map(|storage| self.base(storage).map(|files| Base { storage, files })).transpose()?;
        let had_cells = !self.root.cells.is_none();
        let places = places_of(&mut self.root, &self.data, cancel)?;
        let shared = match &base {
            Some(base) => self.shared_with(&base.files, &places, cancel)?,
            None => vec![None; places.len()],
        };
        let mut target = BackupTarget::create(to)?;
        let stored = self.store(&mut target, base.as_ref(), &places, &shared, cancel);
        let stats = stored.inspect_err(|_| target.abandon())?;
        Ok(BackupStats {
            base_lsn: base.map(|base| base.files.manifest.lsn()),
            cells_left_out: had_cells && self.root.cells.is_none(),
            duration: self.clock.elapsed().saturating_sub(began),
            ..stats
        })
    }

    /// Opens the earlier backup.
    fn base<D: Storage>(&self, storage: &D) -> Result<BackupFiles<D>> {
        let files = BackupFiles::open(storage)?;
        let (found, own) = (files.manifest.root.index_id, self.root.index_id);
        if found != own {
            let reason = format!("it is a backup of index {found:032x}, and this is {own:032x}");
            return Err(ShardexError::InvalidArgument { argument: "base", reason });
        }
        files.uncache();
        Ok(files)
    }

    /// Reads the bytes of a place, and checks them.
    fn read(&self, place: &Place, bytes: &mut Vec<u8>) -> Result<()> {
        bytes.resize(place.len as usize, 0);
        let offset = place.page.saturating_mul(self.data.geometry().page_size as u64);
        self.data.raw().read_at(offset, bytes)?;
        let Some(expected) = place.crc else { return Ok(()) };
        let found = crc32c(0, bytes);
        if !holds!(Checksum, found == expected) {
            let what = format!("checksum {expected:08x} expected, {found:08x} found");
            return Err(in_data(&self.data, place.page, what));
        }
        Ok(())
    }

    /// Returns for each place the one of the earlier backup that holds the same bytes, if it is worth sharing. All bytes are
    /// compared, so damage in the earlier backup is not taken over.
    fn shared_with<D: Storage>(
        &self,
        base: &BackupFiles<D>,
        places: &[Place],
        cancel: &dyn Cancel,
    ) -> Result<Vec<Option<PlaceEntry>>> {
        let known: BTreeMap<_, _> = base.manifest.places.iter().map(|place| ((place.hash, place.len), place)).collect();
        let (mut bytes, mut of_base) = (Vec::new(), Vec::new());
        let mut used = vec![0u64; base.manifest.packs.len()];
        let mut shared = Vec::with_capacity(places.len());
        for place in places {
            cancel.check()?;
            self.read(place, &mut bytes)?;
            let candidate = known.get(&(content_hash(&bytes), place.len));
            let equal = candidate.filter(|entry| base.read(entry, &mut of_base).is_ok() && of_base == bytes);
            if let Some(entry) = equal {
                used[entry.pack as usize] += u64::from(entry.len);
            }
            shared.push(equal.map(|entry| PlaceEntry { page: place.page, ..**entry }));
        }
        let is_worth = |entry: &PlaceEntry| {
            let pack = entry.pack as usize;
            used[pack] * PACK_SHARE >= base.manifest.packs[pack].len
        };
        Ok(shared.into_iter().map(|entry| entry.filter(is_worth)).collect())
    }

    /// Stores the files of the backup.
    fn store<D: Storage>(
        &self,
        target: &mut BackupTarget<'_, D>,
        base: Option<&Base<'_, D>>,
        places: &[Place],
        shared: &[Option<PlaceEntry>],
        cancel: &dyn Cancel,
    ) -> Result<BackupStats> {
        let of_base = base.map_or(&[][..], |base| &base.files.manifest.packs);
        let in_use: BTreeSet<u32> = shared.iter().flatten().map(|entry| entry.pack).collect();
        let mut packs: Vec<PackEntry> = in_use.iter().map(|&pack| of_base[pack as usize]).collect();
        let number = of_base.last().map_or(1, |last| last.number.saturating_add(1));
        let new = places.iter().zip(shared).filter(|(_, shared)| shared.is_none());
        let stored_bytes: u64 = new.map(|(place, _)| u64::from(place.len)).sum();
        let mut pack = if stored_bytes > 0 { Some(target.pack(number, stored_bytes)?) } else { None };
        let (mut entries, mut bytes) = (Vec::with_capacity(places.len()), Vec::new());
        for (place, shared) in places.iter().zip(shared) {
            cancel.check()?;
            let entry = match (shared, &mut pack) {
                (Some(entry), _) => {
                    let before = in_use.range(..entry.pack).count() as u32;
                    PlaceEntry { pack: before, ..*entry }
                }
                (None, Some(pack)) => {
                    self.read(place, &mut bytes)?;
                    let offset = pack.append(&bytes)?;
                    let hash = content_hash(&bytes);
                    PlaceEntry { page: place.page, len: place.len, pack: packs.len() as u32, offset, hash }
                }
                (None, None) => continue,
            };
            entries.push(entry);
        }
        if let Some(pack) = pack {
            let new = entries.iter().filter(|entry| entry.pack == packs.len() as u32);
            pack.finish(new, cancel)?;
            packs.push(PackEntry { number, len: stored_bytes });
        }
        let mut copied_bytes = 0;
        for &pack in &in_use {
            if let Some(base) = base {
                let of_pack = shared.iter().flatten().filter(|entry| entry.pack == pack);
                copied_bytes += target.share(base.storage, of_base[pack as usize], of_pack, cancel)?;
            }
        }
        let manifest = Manifest { unix_ms: self.clock.unix_ms(), root: self.root.clone(), packs, places: entries };
        target.commit(&manifest)?;
        Ok(BackupStats {
            lsn: manifest.lsn(),
            places: places.len() as u64,
            bytes: places.iter().map(|place| u64::from(place.len)).sum(),
            stored_bytes,
            copied_bytes,
            ..BackupStats::default()
        })
    }
}

/// Earlier backup, of which places are shared.
struct Base<'a, D: Storage> {
    storage: &'a D,
    files: BackupFiles<D>,
}
