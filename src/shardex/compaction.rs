//! Compaction of the writer: shards are rewritten without their removed postings, in steps at a bounded rate, so that other
//! calls wait for one step at most.
//!
//! A failure is background work, as that of a trim is.

use std::time::Duration;

use super::{
    Shardex,
    queue::{Reply, SpaceRequest},
    writer::Writer,
};
use crate::{
    config::Durability,
    engine::stats::{BackgroundWork, CompactionStats},
    error::{Result, ShardexError},
    storage::Storage,
    tuning::{COMPACTION_BEHIND, COMPACTION_CATCH_UP, COMPACTION_PAUSE, COMPACTION_SHARE, COMPACTION_STEP, REST_AFTER},
};

/// `compact` builds cells anew that have more codes per live posting.
const CODES_PER_POSTING: u64 = 3;

/// `compact` rewrites shards of which one posting in so many is removed.
const WHOLE_SHARE: u64 = 32;

impl<S: Storage> Writer<S> {
    /// Reports whether no write has come for a while.
    fn is_at_rest(&self, now: Duration) -> bool {
        self.last_write.is_none_or(|at| now.saturating_sub(at) >= REST_AFTER)
    }

    /// Returns the bytes of removed postings that may wait: while writes go on, as much as a flush threshold.
    fn may_wait(&self, now: Duration) -> u64 {
        if self.is_at_rest(now) { 0 } else { self.engine.options().flush_wal_bytes }
    }

    /// Sets the time of the next step, if removed postings take too much space.
    pub(super) fn schedule_compaction(&mut self, now: Duration) {
        if self.compact_at.is_some() || self.engine.options().compaction_bytes_per_second == 0 {
            return;
        }
        if self.engine.wants_compaction(COMPACTION_SHARE, self.may_wait(now)) {
            self.compact_at = Some(now);
        } else if self.engine.wants_compaction(COMPACTION_SHARE, 0) {
            // It may be at rest later.
            self.compact_at = Some(now + REST_AFTER);
        }
    }

    /// Takes the next step of a compaction, if one is due.
    pub(super) fn compact_if_due(&mut self, now: Duration) {
        if self.compact_at.is_none_or(|at| at > now) {
            return;
        }
        self.compact_at = None;
        if self.engine.is_poisoned() || self.engine.is_read_only() {
            return;
        }
        // The cells that are being built know the shards as they were.
        if self.cell_build.is_some() || self.cells_wait() {
            self.compact_at = Some(now + REST_AFTER);
            return;
        }
        // Once begun it goes on to half the share, so that it does not begin again at once.
        let share = if self.compacting { 2 * COMPACTION_SHARE } else { COMPACTION_SHARE };
        if !self.engine.wants_compaction(share, self.may_wait(now)) {
            return self.end_compaction(now);
        }
        match self.engine.compact_step(2 * COMPACTION_SHARE, COMPACTION_STEP) {
            // Only damaged shards are left.
            Ok(0) => {
                self.end_compaction(now);
                self.compact_at = Some(now + COMPACTION_PAUSE);
            }
            Ok(bytes) => {
                self.compacting = true;
                self.failures.over(BackgroundWork::Space);
                self.compacted(bytes);
                let rate = self.engine.options().compaction_bytes_per_second.max(1);
                self.compact_at = Some(now + Duration::from_secs_f64(bytes as f64 / rate as f64));
            }
            Err(ShardexError::FlushInProgress) => self.compact_at = Some(now + REST_AFTER / 10),
            Err(error) => {
                self.note_space_failure(&error);
                self.compact_at = Some(now + COMPACTION_PAUSE);
            }
        }
    }

    /// Ends a compaction. Its space comes back after flushes, so an index at rest flushes.
    fn end_compaction(&mut self, now: Duration) {
        if !self.compacting {
            return;
        }
        if self.flushing.is_some() {
            // Again after that flush, which may have begun before the last steps.
            self.compact_at = Some(now + REST_AFTER);
            return;
        }
        self.compacting = false;
        if self.is_at_rest(now) && self.engine.options().durability != Durability::Manual {
            self.begin_flush(true);
        }
    }

    /// Publishes the shards that a step has rewritten, `bytes` of slots. What was rewritten takes space twice until flushes free
    /// the old extents, and the WAL does not show it, so it begins a flush by itself.
    pub(super) fn compacted(&mut self, bytes: u64) {
        self.put_trim_off();
        self.publish();
        self.observe_flushes();
        self.rewritten_bytes += bytes;
        let limit = self.engine.options().flush_wal_bytes.max(COMPACTION_STEP);
        let flushes = self.engine.options().durability != Durability::Manual && self.rewritten_bytes >= limit;
        if flushes && self.flushing.is_none() {
            self.rewritten_bytes = 0;
            self.begin_flush(true);
        }
        self.flush_if_full();
    }

    /// Checks that a write may be accepted, and slows it down if writes remove postings faster than shards are rewritten.
    pub(super) fn make_way(&mut self) -> Result<()> {
        self.may_accept()?;
        self.catch_up_compaction();
        Ok(())
    }

    /// Rewrites shards before a write, if writes remove postings faster than the background does.
    fn catch_up_compaction(&mut self) {
        let options = self.engine.options();
        let limit = options.flush_wal_bytes.saturating_mul(2);
        if options.compaction_bytes_per_second == 0 || limit == 0 {
            return;
        }
        // Also while cells are built, although these then miss what is rewritten: the bound on space goes first.
        for _ in 0..COMPACTION_CATCH_UP {
            if !self.engine.wants_compaction(COMPACTION_BEHIND, limit) {
                return;
            }
            match self.engine.compact_step(2 * COMPACTION_SHARE, COMPACTION_STEP) {
                Ok(0) | Err(ShardexError::FlushInProgress) => return,
                Ok(bytes) => self.compacted(bytes),
                // The write has the same error, or the next step in the background.
                Err(error) => return self.note_space_failure(&error),
            }
        }
    }

    /// Answers once no cells are being built: a build reads the shards as they were.
    pub(super) fn await_cells(&mut self, reply: Reply<()>) {
        match &mut self.cell_build {
            Some(build) => build.waiters.push(reply),
            None => self.after_cells(reply),
        }
    }

    /// Takes a step of a compaction that a caller waits for.
    pub(super) fn compact_now(&mut self) -> Result<u64> {
        let done = self.engine.compact_step(WHOLE_SHARE, COMPACTION_STEP);
        if let Ok(bytes @ 1..) = done {
            self.compacted(bytes);
        }
        done
    }
}

impl<S: Storage> Shardex<S> {
    /// Gives back the space of removed postings at once: rewrites the shards that hold them, flushes, and gives all free
    /// space back to the file system. Other calls go on meanwhile.
    ///
    /// The index does the same in the background, later and less thoroughly: see
    /// [`compaction_bytes_per_second`](crate::OpenOptions::compaction_bytes_per_second). Cells keep the postings that are
    /// rewritten, so searches are as fast as before.
    ///
    /// Space that a snapshot or hits still read comes back after they are dropped. A damaged shard stays as it is.
    ///
    /// Cost: reads and stores the live postings of the shards of which one posting in 32 or more is removed, and up to three
    /// flushes. It waits for a cell build that is under way. If most codes are those of removed postings, it builds the cells
    /// anew, as [`optimize`](Self::optimize) does. While others remove postings, it ends once it has rewritten as many bytes as
    /// the files took.
    ///
    /// # Errors
    /// Returns the errors of [`write`](Self::write) and [`flush`](Self::flush). What was rewritten before stays so, and the
    /// call can be repeated.
    pub async fn compact(&self) -> Result<CompactionStats> {
        self.settle_cells().await?;
        let before = self.stats().await?;
        // A posting has two codes at most. Many more belong to removed postings.
        if before.codes > CODES_PER_POSTING * before.total_postings {
            self.optimize().await?;
        }
        let mut rewritten_bytes = 0;
        while rewritten_bytes <= before.disk_bytes {
            match self.ask_between_flushes(SpaceRequest::Compact).await? {
                0 => break,
                bytes => rewritten_bytes += bytes,
            }
        }
        self.flush().await?;
        self.ask_between_flushes(SpaceRequest::Trim).await?;
        let disk_bytes_before = before.disk_bytes;
        Ok(CompactionStats { rewritten_bytes, disk_bytes_before, disk_bytes_after: self.stats().await?.disk_bytes })
    }
}
