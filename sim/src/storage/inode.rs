//! One file as the page cache has it and as the device has it.
//!
//! # Invariants
//! 1. A sector that is neither dirty nor stale holds the same bytes in the cache and on the device, where bytes that the
//!    device never got are zeros.
//! 2. A dirty sector's versions are all that a power cut may leave there besides the device's (R3); the newest is last
//!    and is what the cache holds.
//! 3. No sector is both dirty and stale.
//! 4. The length and the allocation never shrink, but by a power cut.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Range,
    sync::Arc,
};

use rand::{Rng, RngExt, rngs::ChaCha8Rng};

use super::mutant::{SimMutant, wrong};

/// Bytes per page and per sector, powers of two.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Geometry {
    pub(super) page: usize,
    pub(super) sector: usize,
}

/// How long a file is, and up to where it has space.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Extent {
    pub(super) len: u64,
    pub(super) allocated: u64,
}

/// What a sync covers, as it was when the sync began.
#[derive(Clone, Debug)]
pub(super) struct Captured {
    /// Dirty sectors with their versions, the newest last.
    sectors: Vec<(u64, Vec<Arc<[u8]>>)>,
    /// Lengths and allocations that were pending.
    extents: Vec<Extent>,
}

#[derive(Clone, Debug, Hash)]
pub(super) struct Inode {
    geometry: Geometry,
    /// As long as the file, for whoever reads it.
    cache: Vec<u8>,
    /// Whole sectors; what is missing at the end is zeros.
    device: Vec<u8>,
    /// Versions by sector since its last good sync.
    dirty: BTreeMap<u64, Vec<Arc<[u8]>>>,
    /// Clean pages' sectors that the device does not hold, since a sync failed or lied (R8).
    stale: BTreeSet<u64>,
    /// Space that the running system knows of.
    allocated: u64,
    durable: Extent,
    /// Changes of length and allocation since the last good sync of the whole file (R6).
    pending: Vec<Extent>,
    /// What a sector held on the device before its last change there, if that is kept.
    before: Option<BTreeMap<u64, Arc<[u8]>>>,
}

impl Inode {
    pub(super) fn new(geometry: Geometry) -> Self {
        Self {
            geometry,
            cache: Vec::new(),
            device: Vec::new(),
            dirty: BTreeMap::new(),
            stale: BTreeSet::new(),
            allocated: 0,
            durable: Extent::default(),
            pending: Vec::new(),
            before: None,
        }
    }

    /// Keeps from now on what sectors held before.
    pub(super) fn keep_history(&mut self) {
        self.before.get_or_insert_default();
    }

    /// A sector in the range that has changed on the device, and what it held before.
    pub(super) fn stale_sector(&self, offset: u64, len: u64, rng: &mut ChaCha8Rng) -> Option<(u64, Arc<[u8]>)> {
        let before = self.before.as_ref()?;
        let held: Vec<_> = before.range(self.sectors(offset, len)).collect();
        let changed: Vec<_> =
            held.into_iter().filter(|(s, old)| sector_of(&self.cache, **s, self.geometry) != **old).collect();
        if changed.is_empty() {
            return None;
        }
        let (sector, old) = changed[rng.random_range(0..changed.len())];
        Some((*sector, Arc::clone(old)))
    }

    /// R13: a sector is again what it was before its last change.
    pub(super) fn go_back(&mut self, range: Range<u64>, rng: &mut ChaCha8Rng) -> bool {
        let Some((sector, old)) = self.stale_sector(range.start, range.end - range.start, rng) else { return false };
        if self.dirty.contains_key(&sector) {
            return false;
        }
        self.put(sector, &old);
        self.fill_cache(sector, &old);
        true
    }

    /// R13: a bit of a clean sector flips, on the device and in the cache, somewhere in a range that is not empty.
    pub(super) fn rot(&mut self, range: Range<u64>, rng: &mut ChaCha8Rng) -> bool {
        let at = rng.random_range(range) as usize;
        let sector = (at / self.geometry.sector) as u64;
        if self.dirty.contains_key(&sector) || self.stale.contains(&sector) {
            return false;
        }
        let mut bytes = sector_of(&self.cache, sector, self.geometry).to_vec();
        bytes[at % self.geometry.sector] ^= 1 << rng.random_range(0..8);
        self.put(sector, &bytes);
        self.fill_cache(sector, &bytes);
        true
    }

    /// R13: all that is dirty is made durable, but one sector's bytes go to another place on the device.
    pub(super) fn misdirect(&mut self, offset: u64, len: u64, rng: &mut ChaCha8Rng) {
        let dirty = self.dirty_in(self.covering(offset, len));
        let sectors = (self.cache.len() / self.geometry.sector) as u64;
        if dirty.is_empty() || sectors < 2 {
            self.sync_range(offset, len);
            return;
        }
        let lost = dirty[rng.random_range(0..dirty.len())];
        let old = sector_of(&self.device, lost, self.geometry);
        let bytes = sector_of(&self.cache, lost, self.geometry);
        self.sync_range(offset, len);
        let mut hit = rng.random_range(0..sectors);
        if hit == lost {
            hit = (hit + 1) % sectors;
        }
        self.put(lost, &old);
        self.put(hit, &bytes);
        for sector in [lost, hit] {
            if !self.dirty.contains_key(&sector) {
                self.stale.insert(sector);
            }
        }
    }

    pub(super) fn cache(&self) -> &[u8] {
        &self.cache
    }

    /// What the device holds, which may be shorter.
    pub(super) fn device(&self) -> &[u8] {
        &self.device
    }

    pub(super) fn allocated(&self) -> u64 {
        self.allocated
    }

    /// R6, R9. What a failed sync forgot is pending again, so that allocating anew and syncing anew mends it.
    pub(super) fn grow(&mut self, to: Extent) {
        self.cache.resize(self.cache.len().max(to.len as usize), 0);
        self.allocated = self.allocated.max(to.allocated);
        let extent = Extent { len: self.cache.len() as u64, allocated: self.allocated };
        if extent != *self.pending.last().unwrap_or(&self.durable) {
            self.pending.push(extent);
            if wrong(SimMutant::LengthDurable) {
                self.sync_extent();
            }
        }
    }

    /// The sectors that a range touches.
    pub(super) fn sectors(&self, offset: u64, len: u64) -> Range<u64> {
        let sector = self.geometry.sector as u64;
        if len == 0 { 0..0 } else { offset / sector..(offset + len).div_ceil(sector) }
    }

    /// The sectors of the pages that a range touches.
    fn covering(&self, offset: u64, len: u64) -> Range<u64> {
        let page = self.geometry.page as u64;
        let (from, to) = (offset / page * page, (offset.saturating_add(len)).div_ceil(page).saturating_mul(page));
        let sector = self.geometry.sector as u64;
        if len == 0 { 0..0 } else { from / sector..to / sector }
    }

    /// R1: into the cache, of those sectors of the range that `stored` lets through.
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
            // Equal versions are one choice.
            versions.retain(|v| *v != version);
            if versions.is_empty() && sector_of(&self.device, sector, self.geometry) == version {
                self.dirty.remove(&sector);
            } else {
                versions.push(version);
            }
        }
    }

    /// R4.
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

    /// R5.
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

    /// R8: the pages are clean; what the device got is chance, and so is what the cache keeps of each page.
    pub(super) fn fail_sync_range(&mut self, offset: u64, len: u64, rng: &mut ChaCha8Rng) {
        if wrong(SimMutant::FailedSyncKeepsDirty) {
            return;
        }
        let per_page = (self.geometry.page / self.geometry.sector) as u64;
        let mut page = None;
        let mut keep = 0;
        for sector in self.dirty_in(self.covering(offset, len)) {
            if page.replace(sector / per_page) != Some(sector / per_page) {
                keep = rng.random_range(0..3);
            }
            let before = sector_of(&self.device, sector, self.geometry);
            let versions = self.dirty.remove(&sector).unwrap_or_default();
            let reached = rng.random_range(0..=versions.len());
            let on_device = match versions.get(reached) {
                Some(version) if !wrong(SimMutant::FailedSyncStoresNothing) => version.clone(),
                _ => before.clone(),
            };
            self.put(sector, &on_device);
            match keep {
                0 => {}
                1 => self.fill_cache(sector, &before),
                _ => self.fill_cache(sector, &on_device),
            }
            if sector_of(&self.cache, sector, self.geometry) != on_device {
                self.stale.insert(sector);
            }
        }
    }

    /// R8 for the whole file: the length, too, is durable or never will be.
    pub(super) fn fail_sync_all(&mut self, rng: &mut ChaCha8Rng) {
        self.fail_sync_range(0, u64::MAX, rng);
        let extents = self.extents();
        self.durable = extents[rng.random_range(0..extents.len())];
        self.pending.clear();
    }

    /// R13: the pages are clean, and the device got nothing.
    pub(super) fn lie_about_sync_range(&mut self, offset: u64, len: u64) {
        for sector in self.dirty_in(self.covering(offset, len)) {
            self.dirty.remove(&sector);
            self.stale.insert(sector);
        }
    }

    /// R13 for the whole file.
    pub(super) fn lie_about_sync_all(&mut self) {
        self.lie_about_sync_range(0, u64::MAX);
        self.pending.clear();
    }

    /// R4, R5. What a sync that begins now will make durable.
    pub(super) fn capture(&self, range: Option<(u64, u64)>) -> Captured {
        let (offset, len) = range.unwrap_or((0, u64::MAX));
        let dirty = self.dirty.range(self.covering(offset, len));
        let sectors = dirty.map(|(sector, versions)| (*sector, versions.clone())).collect();
        let extents = if range.is_none() { self.pending.clone() } else { Vec::new() };
        Captured { sectors, extents }
    }

    /// The versions of a sector that came after some were captured.
    fn newer(&mut self, sector: u64, captured: &[Arc<[u8]>]) -> Vec<Arc<[u8]>> {
        let versions = self.dirty.remove(&sector).unwrap_or_default();
        // One that was stored again is a copy of its own.
        versions.into_iter().filter(|version| !captured.iter().any(|c| Arc::ptr_eq(c, version))).collect()
    }

    fn keep_newer(&mut self, sector: u64, newer: Vec<Arc<[u8]>>) {
        if !newer.is_empty() {
            self.dirty.insert(sector, newer);
        }
    }

    /// R4, R5. The end of a sync: what was captured is durable, and what came after it is as dirty as before.
    pub(super) fn land(&mut self, captured: Captured) {
        for (sector, versions) in captured.sectors {
            let newer = self.newer(sector, &versions);
            if let Some(version) = versions.last() {
                self.put(sector, version);
            }
            self.keep_newer(sector, newer);
        }
        if let Some(extent) = captured.extents.last() {
            self.durable = *extent;
            self.pending.retain(|pending| !captured.extents.contains(pending));
        }
    }

    /// R8. The end of a sync that fails: as one that fails at once, but what came meanwhile is still dirty.
    pub(super) fn crash_land(&mut self, captured: Captured, rng: &mut ChaCha8Rng) {
        for (sector, versions) in captured.sectors {
            let before = sector_of(&self.device, sector, self.geometry);
            let newer = self.newer(sector, &versions);
            let reached = rng.random_range(0..=versions.len());
            let on_device = versions.get(reached).unwrap_or(&before).clone();
            self.put(sector, &on_device);
            if newer.is_empty() {
                match rng.random_range(0..3) {
                    0 => {}
                    1 => self.fill_cache(sector, &before),
                    _ => self.fill_cache(sector, &on_device),
                }
                if sector_of(&self.cache, sector, self.geometry) != on_device {
                    self.stale.insert(sector);
                }
            }
            self.keep_newer(sector, newer);
        }
        if !captured.extents.is_empty() {
            let mut extents = vec![self.durable];
            extents.extend(&captured.extents);
            self.durable = extents[rng.random_range(0..extents.len())];
            self.pending.retain(|pending| !captured.extents.contains(pending));
        }
    }

    /// R13. The end of a sync that lies.
    pub(super) fn land_nowhere(&mut self, captured: &Captured) {
        for (sector, versions) in &captured.sectors {
            let newer = self.newer(*sector, versions);
            if newer.is_empty()
                && sector_of(&self.cache, *sector, self.geometry) != sector_of(&self.device, *sector, self.geometry)
            {
                self.stale.insert(*sector);
            }
            self.keep_newer(*sector, newer);
        }
        self.pending.retain(|pending| !captured.extents.contains(pending));
    }

    /// What the length and allocation may be after a power cut: the durable first, the newest last (R6).
    pub(super) fn extents(&self) -> Vec<Extent> {
        let mut extents = vec![self.durable];
        if let Some(newest) = self.pending.last() {
            // The length without the space: what makes a recovery that does not allocate again run into a hole.
            extents.push(Extent { len: newest.len, allocated: self.durable.allocated });
        }
        extents.extend(&self.pending);
        // Equal ones are one choice; of those the last stays, so that the newest remains last.
        let all = extents.clone();
        let mut index = 0;
        extents.retain(|extent| {
            index += 1;
            !all[index..].contains(extent)
        });
        extents
    }

    /// The dirty sectors, each with the number of bytes it may hold after a power cut.
    pub(super) fn torn(&self) -> impl Iterator<Item = (u64, usize)> {
        self.dirty.iter().map(|(sector, versions)| (*sector, versions.len() + 1))
    }

    /// The sectors of clean pages that the device does not hold.
    pub(super) fn stale(&self) -> impl Iterator<Item = u64> {
        self.stale.iter().copied()
    }

    /// A power cut: `pick` says which version a dirty sector holds, 0 being the device's. One past the last is garbage.
    pub(super) fn power_cut(&mut self, extent: Extent, mut pick: impl FnMut(u64) -> usize, rng: &mut ChaCha8Rng) {
        let per_page = (self.geometry.page / self.geometry.sector) as u64;
        let (mut of_page, mut any_old) = ((u64::MAX, 0), false);
        for (sector, versions) in std::mem::take(&mut self.dirty) {
            let mut picked = pick(sector);
            if wrong(SimMutant::PagesWhole) {
                if of_page.0 != sector / per_page {
                    of_page = (sector / per_page, picked);
                }
                picked = of_page.1.min(versions.len());
            }
            if wrong(SimMutant::SectorsInOrder) {
                any_old |= picked == 0;
                picked = if any_old { 0 } else { picked };
            }
            match picked {
                0 => {}
                version if version <= versions.len() => self.put(sector, &versions[version - 1]),
                _ => {
                    let mut garbage = vec![0; self.geometry.sector];
                    rng.fill_bytes(&mut garbage);
                    self.put(sector, &garbage);
                }
            }
        }
        self.stale.clear();
        self.pending.clear();
        self.durable = extent;
        self.allocated = extent.allocated;
        self.read_back();
    }

    /// A clean page is dropped from the cache and read again from the device (R8, R10).
    pub(super) fn drop_stale(&mut self, sector: u64) {
        if self.stale.remove(&sector) {
            let held = sector_of(&self.device, sector, self.geometry);
            self.fill_cache(sector, &held);
        }
    }

    /// What a crash of the process must not do: forgets what is dirty.
    pub(super) fn take_dirty(&mut self) {
        for sector in std::mem::take(&mut self.dirty).into_keys() {
            let held = sector_of(&self.device, sector, self.geometry);
            self.fill_cache(sector, &held);
        }
    }

    /// Sets cache and device to `bytes`, durable and without holes.
    pub(super) fn replace(&mut self, bytes: Vec<u8>) {
        let extent = Extent { len: bytes.len() as u64, allocated: bytes.len() as u64 };
        let before = self.before.take();
        *self =
            Self { device: bytes, durable: extent, allocated: extent.allocated, before, ..Self::new(self.geometry) };
        self.read_back();
    }

    /// Takes all space away, as a copy does that skips zeros.
    pub(super) fn make_sparse(&mut self) {
        self.allocated = 0;
        self.durable.allocated = 0;
    }

    fn dirty_in(&self, sectors: Range<u64>) -> Vec<u64> {
        self.dirty.range(sectors).map(|(sector, _)| *sector).collect()
    }

    /// The cache takes over what the device holds, within the durable length; the rest is gone for good.
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

    fn put(&mut self, sector: u64, bytes: &[u8]) {
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

    fn fill_cache(&mut self, sector: u64, bytes: &[u8]) {
        let at = sector as usize * self.geometry.sector;
        let len = bytes.len().min(self.cache.len().saturating_sub(at));
        self.cache[at..at + len].copy_from_slice(&bytes[..len]);
    }
}

/// A whole sector, with zeros past the end.
fn sector_of(bytes: &[u8], sector: u64, geometry: Geometry) -> Arc<[u8]> {
    let at = (sector as usize * geometry.sector).min(bytes.len());
    let end = (at + geometry.sector).min(bytes.len());
    let mut whole = vec![0; geometry.sector];
    whole[..end - at].copy_from_slice(&bytes[at..end]);
    whole.into()
}
