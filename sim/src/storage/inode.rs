//! File in the page cache and on the device.
//!
//! # Invariants
//! 1. A sector that is neither dirty nor stale holds the same bytes in the cache and on the device. Bytes that the
//!    device never got are zeros.
//! 2. The versions of a dirty sector and the device's version are all states that a power cut may leave there (R3). The
//!    newest version is last and equals the cache.
//! 3. No sector is both dirty and stale.
//! 4. Only a power cut shrinks the length. Only a power cut or a deallocation takes space.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Range,
    sync::Arc,
};

use super::{
    mutant::{SimMutant, wrong},
    space::Space,
};

/// Bytes per page and per sector, both powers of two.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct PageSizes {
    pub(super) page: usize,
    pub(super) sector: usize,
}

/// Length of a file in bytes, and the space that is reserved for it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct FileExtent {
    pub(super) len: u64,
    pub(super) space: Space,
}

#[derive(Clone, Debug, Hash)]
pub(super) struct Inode {
    pub(super) geometry: PageSizes,
    /// Bytes that readers see, as long as the file.
    pub(super) cache: Vec<u8>,
    /// Whole sectors on the device. Missing bytes at the end are zeros.
    pub(super) device: Vec<u8>,
    /// Versions of each sector since its last successful sync.
    pub(super) dirty: BTreeMap<u64, Vec<Arc<[u8]>>>,
    /// Sectors of clean pages that the device does not hold, because a sync failed or lied (R8).
    pub(super) stale: BTreeSet<u64>,
    /// Reserved bytes in the running system.
    pub(super) space: Space,
    pub(super) durable: FileExtent,
    /// Changes of length and allocation since the last successful sync of the whole file (R6).
    pub(super) pending: Vec<FileExtent>,
    /// Bytes that each sector held on the device before its last change; `None` if no history is kept.
    pub(super) before: Option<BTreeMap<u64, Arc<[u8]>>>,
}

impl Inode {
    pub(super) fn new(geometry: PageSizes) -> Self {
        Self {
            geometry,
            cache: Vec::new(),
            device: Vec::new(),
            dirty: BTreeMap::new(),
            stale: BTreeSet::new(),
            space: Space::default(),
            durable: FileExtent::default(),
            pending: Vec::new(),
            before: None,
        }
    }

    /// Starts to keep the bytes that sectors held before their last change.
    pub(super) fn keep_history(&mut self) {
        self.before.get_or_insert_default();
    }

    pub(super) fn cache(&self) -> &[u8] {
        &self.cache
    }

    /// Returns the bytes on the device, which may be shorter than the file.
    pub(super) fn device(&self) -> &[u8] {
        &self.device
    }

    pub(super) fn space(&self) -> &Space {
        &self.space
    }

    /// Reserves a range, and grows the file to its end (R6, R9). An extent that a failed sync has lost becomes pending
    /// again, so a new allocation and a new sync make it durable.
    pub(super) fn grow(&mut self, range: Range<u64>) {
        self.cache.resize(self.cache.len().max(range.end as usize), 0);
        self.space.add(range);
        self.note_extent();
    }

    /// Takes the space of a range, and stores zeros in those of its sectors that `stored` accepts (R15).
    pub(super) fn deallocate(&mut self, range: Range<u64>, stored: impl FnMut(u64) -> bool) {
        if !wrong(SimMutant::DeallocationKeepsBytes) {
            self.store(range.start, &vec![0; (range.end - range.start) as usize], stored);
        }
        if !wrong(SimMutant::DeallocationKeepsSpace) {
            self.space.remove(range);
        }
        self.note_extent();
        if wrong(SimMutant::DeallocationDurable) {
            self.sync_all();
        }
    }

    /// Makes the current length and space pending.
    fn note_extent(&mut self) {
        let extent = FileExtent { len: self.cache.len() as u64, space: self.space.clone() };
        if extent != *self.pending.last().unwrap_or(&self.durable) {
            self.pending.push(extent);
            if wrong(SimMutant::LengthDurable) {
                self.sync_extent();
            }
        }
    }

    /// Returns the sectors that a range touches.
    pub(super) fn sectors(&self, offset: u64, len: u64) -> Range<u64> {
        let sector = self.geometry.sector as u64;
        if len == 0 { 0..0 } else { offset / sector..(offset + len).div_ceil(sector) }
    }

    /// Returns the sectors of the pages that a range touches.
    pub(super) fn covering(&self, offset: u64, len: u64) -> Range<u64> {
        let page = self.geometry.page as u64;
        let (from, to) = (offset / page * page, (offset.saturating_add(len)).div_ceil(page).saturating_mul(page));
        let sector = self.geometry.sector as u64;
        if len == 0 { 0..0 } else { from / sector..to / sector }
    }

    /// Stores bytes to the cache, in those sectors of the range that `stored` accepts (R1).
    pub(super) fn store(&mut self, offset: u64, bytes: &[u8], mut stored: impl FnMut(u64) -> bool) {
        let size = self.geometry.sector as u64;
        for sector in self.sectors(offset, bytes.len() as u64) {
            if !stored(sector) {
                continue;
            }
            let from = offset.max(sector * size);
            let to = (offset + bytes.len() as u64).min((sector + 1) * size);
            let part = &bytes[(from - offset) as usize..(to - offset) as usize];
            self.cache[from as usize..to as usize].copy_from_slice(part);
            let version = sector_of(&self.cache, sector, self.geometry);
            if wrong(SimMutant::StoreDurable) {
                self.put(sector, &version);
            }
            if wrong(SimMutant::StoreInvisible) {
                let old = sector_of(&self.device, sector, self.geometry);
                self.fill_cache(sector, &old);
            }
            if wrong(SimMutant::NewestVersionOnly) {
                self.dirty.remove(&sector);
            }
            self.stale.remove(&sector);
            let versions = self.dirty.entry(sector).or_default();
            // Equal versions count as one outcome.
            versions.retain(|v| *v != version);
            if versions.is_empty() && sector_of(&self.device, sector, self.geometry) == version {
                self.dirty.remove(&sector);
            } else {
                versions.push(version);
            }
        }
    }

    /// Syncs the pages of a range (R4). A length of `u64::MAX` is the whole file.
    pub(super) fn sync_range(&mut self, offset: u64, len: u64) {
        if wrong(SimMutant::RangeSyncNothing) && len != u64::MAX
            || wrong(SimMutant::SyncAllWithoutBytes) && len == u64::MAX
        {
            return;
        }
        if wrong(SimMutant::RangeSyncLength) {
            self.sync_extent();
        }
        let sectors = match len {
            u64::MAX => self.covering(offset, len),
            _ if wrong(SimMutant::RangeSyncAll) => self.covering(0, u64::MAX),
            _ if wrong(SimMutant::RangeSyncSectors) => self.sectors(offset, len),
            _ => self.covering(offset, len),
        };
        for sector in self.dirty_in(sectors) {
            let held = sector_of(&self.cache, sector, self.geometry);
            self.put(sector, &held);
            self.dirty.remove(&sector);
        }
    }

    /// Syncs the whole file with its length and allocation (R5).
    pub(super) fn sync_all(&mut self) {
        self.sync_range(0, u64::MAX);
        if !wrong(SimMutant::SyncAllWithoutLength) {
            self.sync_extent();
        }
    }

    fn sync_extent(&mut self) {
        if let Some(extent) = self.pending.pop() {
            self.durable = extent;
            self.pending.clear();
        }
    }

    /// Returns the extents that are possible after a power cut (R6): the durable one first, the newest last.
    pub(super) fn extents(&self) -> Vec<FileExtent> {
        let mut extents = vec![self.durable.clone()];
        if let Some(newest) = self.pending.last() {
            // The new length without its space: a recovery that stores without a new allocation hits a hole.
            extents.push(FileExtent { len: newest.len, space: self.durable.space.clone() });
        }
        extents.extend(self.pending.iter().cloned());
        // Equal extents count as one outcome. The last of them is kept, so that the newest stays last.
        let all = extents.clone();
        let mut index = 0;
        extents.retain(|extent| {
            index += 1;
            !all[index..].contains(extent)
        });
        extents
    }

    /// Returns the dirty sectors, each with the number of versions that it may hold after a power cut.
    pub(super) fn torn(&self) -> impl Iterator<Item = (u64, usize)> {
        self.dirty.iter().map(|(sector, versions)| (*sector, versions.len() + 1))
    }

    /// Returns the sectors of clean pages that the device does not hold.
    pub(super) fn stale(&self) -> impl Iterator<Item = u64> {
        self.stale.iter().copied()
    }

    /// Drops a stale sector from the cache and reads it again from the device (R8, R10).
    pub(super) fn drop_stale(&mut self, sector: u64) {
        if self.stale.remove(&sector) {
            let held = sector_of(&self.device, sector, self.geometry);
            self.fill_cache(sector, &held);
        }
    }

    /// Drops all dirty sectors, which a process crash must not do. Only a mutant calls it.
    pub(super) fn take_dirty(&mut self) {
        for sector in std::mem::take(&mut self.dirty).into_keys() {
            let held = sector_of(&self.device, sector, self.geometry);
            self.fill_cache(sector, &held);
        }
    }

    /// Sets cache and device to `bytes`, durable and without holes.
    pub(super) fn replace(&mut self, bytes: Vec<u8>) {
        let space = Space::prefix(bytes.len() as u64);
        let extent = FileExtent { len: bytes.len() as u64, space: space.clone() };
        let before = self.before.take();
        *self = Self { device: bytes, durable: extent, space, before, ..Self::new(self.geometry) };
        self.read_back();
    }

    /// Removes the allocation of the file, as a copy does that skips zeros.
    pub(super) fn make_sparse(&mut self) {
        self.space = Space::default();
        self.durable.space = Space::default();
    }

    pub(super) fn dirty_in(&self, sectors: Range<u64>) -> Vec<u64> {
        self.dirty.range(sectors).map(|(sector, _)| *sector).collect()
    }

    /// Sets the cache to the bytes of the device up to the durable length. Bytes beyond it are lost for good.
    pub(super) fn read_back(&mut self) {
        let len = self.durable.len as usize;
        if wrong(SimMutant::CutBytesComeBack) {
            self.cache.clone_from(&self.device);
            self.cache.resize(len, 0);
            return;
        }
        self.device.resize(len, 0);
        self.cache.clone_from(&self.device);
        self.device.resize(len.next_multiple_of(self.geometry.sector), 0);
    }

    pub(super) fn put(&mut self, sector: u64, bytes: &[u8]) {
        if self.before.is_some() {
            let old = sector_of(&self.device, sector, self.geometry);
            if *old != *bytes
                && let Some(before) = &mut self.before
            {
                before.insert(sector, old);
            }
        }
        let at = sector as usize * self.geometry.sector;
        self.device.resize(self.device.len().max(at + bytes.len()), 0);
        self.device[at..at + bytes.len()].copy_from_slice(bytes);
    }

    pub(super) fn fill_cache(&mut self, sector: u64, bytes: &[u8]) {
        let at = sector as usize * self.geometry.sector;
        let len = bytes.len().min(self.cache.len().saturating_sub(at));
        self.cache[at..at + len].copy_from_slice(&bytes[..len]);
    }
}

/// Returns a whole sector, with zeros past the end of `bytes`.
pub(super) fn sector_of(bytes: &[u8], sector: u64, geometry: PageSizes) -> Arc<[u8]> {
    let at = (sector as usize * geometry.sector).min(bytes.len());
    let end = (at + geometry.sector).min(bytes.len());
    let mut whole = vec![0; geometry.sector];
    whole[..end - at].copy_from_slice(&bytes[at..end]);
    whole.into()
}
