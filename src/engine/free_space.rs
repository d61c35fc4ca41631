//! Free space of the data file and the WAL, given back to the file system.
//!
//! A page or segment that no root, reader or shard needs is either kept for the next writes or given back. What is kept
//! costs disk space. What is given back costs a call of the file system each time, and another when it is used again.
//!
//! # Invariants
//! 1. Only pages that are free in the map are given back. The reclaimer decides which these are, so no retained root, no
//!    root whose store has begun, and no reader needs their bytes. A page that the last content of a root slot names
//!    keeps its bytes until it is used again or the next root is durable ([`Reclaimer::keeps`]).
//! 2. Nothing is given back before the first write of an epoch: until then a clean open stores nothing, and segments that
//!    count as free hold the closing mark.
//! 3. Nothing depends on when the file system does it. After a crash any part may be undone. An open knows nothing about
//!    the space of free pages until it has used them or given them back again.
//!
//! [`Reclaimer::keeps`]: crate::space::Reclaimer::keeps

use super::core::Engine;
use crate::{
    error::Result,
    failpoint::reached,
    lease::PageRange,
    storage::{Storage, StorageFile as _},
    tuning,
};

impl<S: Storage> Engine<S> {
    /// Gives back what an index at rest does not need, except for about `keep` bytes each of the data file and the WAL.
    /// If only an older root needs more than that, and nothing waits for a flush, it stores up to two twins of the
    /// newest root first. Returns the number of bytes given back, at most.
    ///
    /// # Errors
    /// Returns the errors of [`flush`](Self::flush) and [`release`](Self::release).
    pub fn trim(&mut self, keep: u64) -> Result<u64> {
        self.trim_with(keep, keep)
    }

    /// Gives back what an index at rest does not keep, as [`trim`](Self::trim) does.
    ///
    /// # Errors
    /// As [`trim`](Self::trim).
    pub fn trim_at_rest(&mut self) -> Result<u64> {
        self.trim_with(self.kept_at_rest(), self.older_at_rest())
    }

    fn trim_with(&mut self, keep: u64, older: u64) -> Result<u64> {
        self.check_writable()?;
        // Two twins replace both retained roots.
        for _ in 0..2 {
            if self.wants_twin(older) {
                self.flush_once(true)?;
                reached!(TrimmedByTwin);
            }
        }
        let mut released = 0;
        loop {
            match self.release(keep)? {
                0 => return Ok(released),
                bytes => released += bytes,
            }
        }
    }

    /// Gives back all that an index does not need, and what shards and the WAL have reserved for the next writes. It opens the
    /// epoch first, so it also works before the first write of one.
    ///
    /// # Errors
    /// As [`trim`](Self::trim).
    pub fn trim_all(&mut self) -> Result<u64> {
        self.check_writable()?;
        self.open_for_writes()?;
        Ok(self.trim(0)? + self.release_tails()? + self.release_log()?)
    }

    /// Gives back the space of the newest WAL segment, if nothing waits for a flush, once no root needs its records.
    fn release_log(&mut self) -> Result<u64> {
        if self.is_unflushed() || self.data.never_releases() || self.wal.newest_bytes() <= 2 * self.page_bytes() {
            return Ok(0);
        }
        self.renew_roots()?;
        match self.wal_retained() {
            0 => self.wal.release_newest(),
            _ => Ok(0),
        }
    }

    /// Gives back the space that shards have reserved for their next postings.
    fn release_tails(&mut self) -> Result<u64> {
        let slot_bytes = self.data.geometry().slot_bytes();
        let mut released = 0;
        for extent in self.work.shards.iter().flatten().filter_map(|shard| shard.extents().last()) {
            if self.data.never_releases() {
                break;
            }
            released += self.data.release_tail(extent.allocation(), extent.used() * slot_bytes)?;
        }
        Ok(released)
    }

    /// Gives free space of the data file and the WAL back, except for about `keep` bytes of each. It begins at the end of
    /// the files and stops after [`RANGES_PER_TRIM`](tuning::RANGES_PER_TRIM) ranges, so a caller that wants all of it
    /// repeats the call. Returns the number of bytes given back, at most: after an open it also counts holes. Returns 0
    /// if there is nothing left, or the file system can't do it.
    ///
    /// Cost: a call of the file system for each range.
    ///
    /// # Errors
    /// Returns `Poisoned` or `ReadOnly` if the engine accepts no writes, and `Io` if the file system fails. What was
    /// given back before stays so, and the call can be repeated. An error of the data file does not keep the WAL.
    pub fn release(&mut self, keep: u64) -> Result<u64> {
        self.check_writable()?;
        if !self.epoch_open || self.data.never_releases() {
            return Ok(0);
        }
        let of_wal = self.wal.release(keep);
        if matches!(of_wal, Ok(None)) {
            self.data.note_never_releases();
        }
        let of_data = self.release_pages(keep)?;
        Ok(of_wal?.unwrap_or(0) + of_data)
    }

    /// Gives free space of the data file back while writes go on, if there is more than the next flushes may use.
    /// Returns `None` if there is not.
    ///
    /// # Errors
    /// Returns the errors of [`release`](Self::release).
    pub fn release_excess(&mut self) -> Result<Option<u64>> {
        self.check_writable()?;
        let limit = match self.options.flush_wal_bytes {
            0 => tuning::KEPT_WITHOUT_LIMIT,
            bytes => bytes.saturating_mul(tuning::KEPT_SHARES),
        };
        if !self.epoch_open || self.spare_pages() * self.page_bytes() <= limit {
            return Ok(None);
        }
        let mut released = 0;
        // Scattered pages take many calls, and the bound on space goes first.
        for _ in 0..tuning::ROUNDS_OF_EXCESS {
            match self.release_pages(limit / 2)? {
                0 => break,
                bytes => released += bytes,
            }
        }
        Ok(Some(released))
    }

    fn release_pages(&mut self, keep: u64) -> Result<u64> {
        let mut excess = self.spare_pages().saturating_sub(keep / self.page_bytes());
        if excess == 0 || self.data.never_releases() {
            return Ok(0);
        }
        self.work.space.collect();
        let free: Vec<PageRange> = self.pages_behind().into_iter().chain(self.work.space.map().free_ranges()).collect();
        let (mut released, mut ranges) = (0, 0);
        'all: for run in free {
            let kept = self.data.kept(run).into_iter();
            let parts: Vec<PageRange> = kept.flat_map(|part| part.parts(|page| !self.work.space.keeps(page))).collect();
            for part in parts.into_iter().rev() {
                if excess == 0 || ranges == tuning::RANGES_PER_TRIM {
                    break 'all;
                }
                if !self.work.space.with_free(part, |allocation| self.data.release(allocation))? {
                    return Ok(0);
                }
                reached!(SpaceReleased);
                ranges += 1;
                released += u64::from(part.pages);
                excess = excess.saturating_sub(u64::from(part.pages));
            }
        }
        Ok(released * self.page_bytes())
    }

    /// Reports whether a twin of the newest root would free more than `keep` bytes that only an older root needs. Not
    /// while something waits for a flush, which frees them too, nor before the first write after an open, because the
    /// newest root then has another epoch than the WAL.
    #[must_use]
    pub fn wants_twin(&self, keep: u64) -> bool {
        let quiet = self.epoch_open && !self.is_unflushed() && self.flush.is_none();
        quiet && !self.data.never_releases() && self.older_bytes() > keep
    }

    /// Returns the bytes of the pages in use.
    fn used_bytes(&self) -> u64 {
        (self.work.space.map().used_pages() + 1) * self.page_bytes()
    }

    /// Returns the bytes that no root needs any more and that readers still use.
    #[must_use]
    pub fn held_by_readers(&self) -> u64 {
        self.work.space.pages_held_by_readers() * self.page_bytes()
    }

    /// Returns how many more of these bytes a cell build may cause: those of two flushes, or a share of the index.
    #[must_use]
    pub fn build_may_hold(&self) -> u64 {
        let flushes = match self.options.flush_wal_bytes {
            0 => tuning::KEPT_WITHOUT_LIMIT,
            bytes => bytes.saturating_mul(tuning::BUILD_HOLDS_FLUSHES),
        };
        flushes.max(self.used_bytes() / tuning::BUILD_HOLDS_PART)
    }

    /// Returns the free bytes that this index keeps at rest.
    #[must_use]
    pub fn kept_at_rest(&self) -> u64 {
        tuning::KEPT_AT_REST.min(self.used_bytes() / tuning::KEPT_PART)
    }

    /// Returns the bytes that only an older root may need at rest.
    #[must_use]
    pub fn older_at_rest(&self) -> u64 {
        (self.used_bytes() / tuning::TWIN_PART).clamp(tuning::TWIN_LEAST, tuning::KEPT_AT_REST)
    }

    fn page_bytes(&self) -> u64 {
        self.data.geometry().page_size as u64
    }

    /// Returns the pages of the file behind those of the map, which a growth before a crash has left.
    pub(super) fn pages_behind(&self) -> Option<PageRange> {
        let map = self.work.space.map();
        let page = map.pages_of(map.chunks());
        let pages = (self.data.raw().len().ok()? / self.page_bytes()).saturating_sub(page);
        (pages > 0).then_some(PageRange { page, pages: u32::try_from(pages).unwrap_or(u32::MAX) })
    }

    /// Returns the number of pages that may be given back now. After an open that is unknown for each page, so it counts
    /// all free pages.
    fn spare_pages(&self) -> u64 {
        let space = &self.work.space;
        let behind = self.pages_behind().map_or(0, |run| u64::from(run.pages));
        let free = space.map().free_pages() + space.pages_to_collect() + behind;
        free.saturating_sub(self.data.released_pages() + space.recent_pages())
    }

    /// Returns the bytes that only older roots need: of the data file, and of the WAL.
    fn older_bytes(&self) -> u64 {
        let space = &self.work.space;
        let of_wal = self.wal.recyclable_bytes(self.roots.newest().wal_start);
        (space.pages_held_by_roots() + space.recent_pages()) * self.page_bytes() + of_wal
    }

    /// Returns the bytes of storage that an index at rest gives back, by the sizes of the files on the disk: what is free
    /// beyond what it keeps, and what only older roots need if a twin root frees it. With the slots of removed postings, if
    /// there are enough for a compaction.
    ///
    /// # Errors
    /// Returns `Io`.
    pub(super) fn reclaimable_bytes(&self) -> Result<u64> {
        if self.data.never_releases() {
            return Ok(0);
        }
        let (used, keep) = (self.used_bytes(), self.kept_at_rest());
        // What the root before the older one names stays until the next root: `older` counts it, if it is enough for a twin.
        let recent = self.work.space.recent_pages() * self.page_bytes();
        let of_data = self.data.raw().allocated()?.saturating_sub(used + used / 16 + keep + recent);
        let of_wal = self.wal_file.raw().allocated()?.saturating_sub(self.wal.needed_bytes(keep));
        let older = if self.epoch_open && self.older_bytes() > self.older_at_rest() { self.older_bytes() } else { 0 };
        let removed = if self.wants_compaction(tuning::COMPACTION_SHARE, 0) { self.removed_bytes() } else { 0 };
        Ok(of_data + of_wal + older + removed)
    }
}
