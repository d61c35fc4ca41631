//! Timers of the writer: commits, flushes, retries of failed background work, and the stats file.
//!
//! Invariants:
//! 1. An error of a background commit or flush makes another call fail in three cases only. The call waits for that
//!    flush; or invariant 3 refuses its write; or a sync has failed, which poisons the engine.
//! 2. A failed background commit or flush is retried after the delays of `Failure::delay`, until it succeeds or a sync
//!    fails. A failed cell build is retried after a number of operations (`Engine::cell_build_failed`), a failed
//!    encoding of unindexed postings after the next installation of cells.
//! 3. While background commits or flushes fail, at most one batch is accepted beyond the limits for undurable writes.
//!    Further writes get `Undurable`.

use std::time::Duration;

use super::writer::Writer;
use crate::{
    config::Durability,
    engine::stats::{BackgroundWork, IndexStats},
    error::{Result, ShardexError},
    observe::Levels,
    storage::Storage,
};

impl<S: Storage> Writer<S> {
    /// Records an error of background work.
    pub(super) fn note_failure(&mut self, work: BackgroundWork, error: &ShardexError) {
        self.engine.count_error();
        self.observer.background_error(work, error);
        self.failures.add(work, error, self.runtime.now());
    }

    /// Clears the commit timer and the commit failures if everything accepted is durable.
    pub(super) fn note_durable(&mut self) {
        if !self.engine.has_uncommitted() {
            (self.undurable_since, self.commit_at) = (None, None);
            self.failures.over(BackgroundWork::Commit);
        }
    }

    /// Checks that the limits for undurable writes permit another write. The limits apply only while background commits
    /// or flushes fail.
    ///
    /// # Errors
    /// Returns `Undurable` if a limit is exceeded.
    pub(super) fn may_accept(&self) -> Result<()> {
        let works = [BackgroundWork::Commit, BackgroundWork::Flush];
        let Some(failure) = works.into_iter().find_map(|work| self.failures.lasting(work)) else { return Ok(()) };
        // A poisoned engine refuses the write with its own error.
        if self.engine.is_poisoned() {
            return Ok(());
        }
        let options = self.engine.options();
        let age = self.undurable_since.map_or(Duration::ZERO, |since| self.runtime.now().saturating_sub(since));
        let age = u64::try_from(age.as_millis()).unwrap_or(u64::MAX);
        let limits = [
            ("max_undurable_ms", options.max_undurable_ms, age),
            ("max_undurable_bytes", options.max_undurable_bytes, self.engine.uncommitted_bytes()),
        ];
        match limits.into_iter().find(|&(_, allowed, found)| found > allowed) {
            None => Ok(()),
            Some((limit, allowed, found)) => {
                let cause = Box::new(failure.error.clone());
                Err(ShardexError::Undurable { limit, allowed, found, cause })
            }
        }
    }

    /// Returns the engine's statistics, completed by the figures that depend on the clock.
    pub(super) fn stats(&self) -> Result<IndexStats> {
        let (mut stats, now) = (self.engine.stats()?, self.runtime.now());
        stats.background_error = self.failures.newest(now);
        if self.cell_build.is_some() || self.coding.is_some() || self.reading.is_some() {
            // The snapshots of these jobs are dropped at their end.
            stats.reclaimable_bytes += stats.held_by_readers_bytes;
        }
        stats.uncommitted_for = self.undurable_since.map(|since| now.saturating_sub(since));
        self.observer.complete(&mut stats);
        Ok(stats)
    }

    /// Publishes the figures that cost nothing.
    fn observe_levels(&self) {
        self.observer.levels(&Levels {
            postings: self.engine.snapshot().live,
            wal_bytes: self.engine.wal_bytes(),
            undurable_bytes: self.engine.uncommitted_bytes(),
        });
    }

    fn store_stats(&mut self, is_closed: bool) {
        let Ok(stats) = self.stats() else { return };
        self.stats_writer.store(&self.engine, &stats, is_closed, self.observer.unix_ms());
    }

    /// Stores the stats file for the last time, if the option is set.
    pub(super) fn last_stats(&mut self) {
        self.observe_flushes();
        if self.stats_writer.at.take().is_some() {
            self.store_stats(true);
        }
    }

    /// Runs the commits, flushes and cell builds that are due, and sets the next timers.
    pub(super) fn background(&mut self) {
        let now = self.runtime.now();
        if self.commit_at.is_some_and(|at| at <= now) {
            self.commit_at = None;
            if let Err(error) = self.commit() {
                self.note_failure(BackgroundWork::Commit, &error);
            }
        }
        if self.flush_at.is_some_and(|at| at <= now) {
            self.flush_at = None;
            if self.flushing.is_none() {
                self.begin_flush(true);
            }
        }
        self.compact_if_due(now);
        self.schedule_compaction(now);
        self.trim_if_due(now);
        self.purge_if_due(now);
        if self.engine.wants_cell_build() {
            self.build_cells();
        }
        self.publish();
        self.observe_levels();
        if self.stats_writer.is_due(now) {
            self.store_stats(false);
        }
        self.set_timers(now);
    }

    fn set_timers(&mut self, now: Duration) {
        self.note_durable();
        if self.engine.is_poisoned() {
            (self.commit_at, self.flush_at) = (None, None);
            (self.trim_at, self.compact_at) = (None, None);
            return;
        }
        let options = self.engine.options();
        let interval = options.commit_interval();
        // Under `Immediate` only a failed commit and a compaction leave uncommitted records.
        if self.commit_at.is_none() && self.engine.has_uncommitted() && options.durability != Durability::Manual {
            let failure = self.failures.lasting(BackgroundWork::Commit);
            self.commit_at = Some(now + failure.map_or(interval, |failure| failure.delay(interval)));
        }
        if !self.engine.has_unflushed() {
            self.flush_at = None;
        } else if self.flush_at.is_none() && self.flushing.is_none() {
            let timer = Duration::from_millis(options.flush_interval_ms);
            let delay = match self.failures.lasting(BackgroundWork::Flush) {
                Some(note_failure) => Some(note_failure.delay(interval)),
                None => (!timer.is_zero()).then_some(timer),
            };
            self.flush_at = delay.map(|delay| now + delay);
        }
    }
}
