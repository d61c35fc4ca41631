//! Effects of crashes and media faults on a file.

use super::inode::{FileExtent, Inode, sector_of};
use super::mutant::{SimMutant, wrong};
use rand::{Rng, RngExt, rngs::ChaCha8Rng};
use std::{ops::Range, sync::Arc};

/// State that a sync covers, captured when the sync began.
#[derive(Clone, Debug)]
pub(super) struct Captured {
    /// Dirty sectors with their versions, the newest last.
    sectors: Vec<(u64, Vec<Arc<[u8]>>)>,
    /// Pending lengths and allocations.
    extents: Vec<FileExtent>,
}

impl Inode {
    /// Returns a random sector of the range with the bytes that it held before its last change on the device. Considers
    /// only sectors whose old bytes differ from the cached ones. Returns `None` if no sector qualifies or no history is
    /// kept.
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

    /// Restores the bytes that a sector of the range held before its last change (R13). Returns false if no sector of
    /// the range has changed, or the chosen one is dirty.
    pub(super) fn go_back(&mut self, range: Range<u64>, rng: &mut ChaCha8Rng) -> bool {
        let Some((sector, old)) = self.stale_sector(range.start, range.end - range.start, rng) else { return false };
        if self.dirty.contains_key(&sector) {
            return false;
        }
        self.put(sector, &old);
        self.fill_cache(sector, &old);
        true
    }

    /// Flips a bit in a non-empty range, on the device and in the cache (R13). Returns false, without a change, if the
    /// chosen sector is dirty or stale.
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

    /// Syncs a range, but writes the bytes of one dirty sector to another sector on the device (R13). Syncs as usual if
    /// nothing in the range is dirty or the file has fewer than two whole sectors.
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

    /// Fails a sync of a range (R8). The pages become clean. The device gets a random version of each sector. The cache
    /// keeps its bytes or reads back the old or the new bytes of the device, at random per page.
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

    /// Fails a sync of the whole file (R8). The device also gets a random one of the possible extents, and later syncs
    /// do not store the others.
    pub(super) fn fail_sync_all(&mut self, rng: &mut ChaCha8Rng) {
        self.fail_sync_range(0, u64::MAX, rng);
        let extents = self.extents();
        self.durable = extents[rng.random_range(0..extents.len())].clone();
        self.pending.clear();
    }

    /// Lies about a sync of a range (R13): the pages become clean, and the device gets nothing.
    pub(super) fn lie_about_sync_range(&mut self, offset: u64, len: u64) {
        for sector in self.dirty_in(self.covering(offset, len)) {
            self.dirty.remove(&sector);
            self.stale.insert(sector);
        }
    }

    /// Lies about a sync of the whole file (R13): the pages become clean, and the device gets neither bytes nor extent.
    pub(super) fn lie_about_sync_all(&mut self) {
        self.lie_about_sync_range(0, u64::MAX);
        self.pending.clear();
    }

    /// Captures the state that a sync beginning now makes durable (R4, R5). `None` is a sync of the whole file.
    pub(super) fn capture(&self, range: Option<(u64, u64)>) -> Captured {
        let (offset, len) = range.unwrap_or((0, u64::MAX));
        let dirty = self.dirty.range(self.covering(offset, len));
        let sectors = dirty.map(|(sector, versions)| (*sector, versions.clone())).collect();
        let extents = if range.is_none() { self.pending.clone() } else { Vec::new() };
        Captured { sectors, extents }
    }

    /// Removes and returns the versions of a sector that were stored after `captured`.
    pub(super) fn newer(&mut self, sector: u64, captured: &[Arc<[u8]>]) -> Vec<Arc<[u8]>> {
        let versions = self.dirty.remove(&sector).unwrap_or_default();
        // Compared by pointer, because a store of equal bytes creates a new copy.
        versions.into_iter().filter(|version| !captured.iter().any(|c| Arc::ptr_eq(c, version))).collect()
    }

    pub(super) fn keep_newer(&mut self, sector: u64, newer: Vec<Arc<[u8]>>) {
        if !newer.is_empty() {
            self.dirty.insert(sector, newer);
        }
    }

    /// Ends a sync: captured state becomes durable, and newer versions stay dirty (R4, R5).
    pub(super) fn land(&mut self, captured: Captured) {
        for (sector, versions) in captured.sectors {
            let newer = self.newer(sector, &versions);
            if let Some(version) = versions.last() {
                self.put(sector, version);
            }
            self.keep_newer(sector, newer);
        }
        if let Some(extent) = captured.extents.last() {
            self.durable = extent.clone();
            self.pending.retain(|pending| !captured.extents.contains(pending));
        }
    }

    /// Ends a sync with a failure (R8). It acts like a sync that fails at its begin, but newer versions stay dirty, and
    /// a sector with newer versions keeps its cached bytes. The choice of the cached bytes is random per sector.
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
            let mut extents = vec![self.durable.clone()];
            extents.extend(captured.extents.iter().cloned());
            self.durable = extents.swap_remove(rng.random_range(0..extents.len()));
            self.pending.retain(|pending| !captured.extents.contains(pending));
        }
    }

    /// Ends a sync that lies (R13): the captured versions become clean, and the device gets nothing.
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

    /// Applies a power cut. `pick` returns the version that a dirty sector holds: 0 is the device's version, and a
    /// number beyond the last version is garbage.
    pub(super) fn power_cut(&mut self, extent: FileExtent, mut pick: impl FnMut(u64) -> usize, rng: &mut ChaCha8Rng) {
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
        self.space = extent.space.clone();
        self.durable = extent;
        self.read_back();
    }
}
