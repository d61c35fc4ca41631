//! Statistics of an open index.

use super::{
    core::Engine,
    stats::{FlushStats, IndexStats, LatencyStats},
};
use crate::{
    error::Result,
    storage::{Storage, StorageFile as _},
};

impl<S: Storage> Engine<S> {
    /// Returns the number of times that the figures of a single shard were computed since the open.
    #[must_use]
    pub fn shards_figured(&self) -> u64 {
        self.work.figures.looks()
    }

    /// Returns the number of flushes since the open, the sum of their statistics, and those of the last one.
    #[must_use]
    pub fn flushes(&self) -> (u64, &FlushStats, Option<&FlushStats>) {
        let counters = &self.counters;
        (counters.flushes, &counters.flush_totals, counters.last_flush.as_ref())
    }

    /// Returns the bytes of storage that the data, WAL and root files take.
    fn disk_bytes(&self) -> Result<u64> {
        Ok(self.data.raw().allocated()? + self.wal_file.raw().allocated()? + self.roots.file().raw().allocated()?)
    }

    /// Returns the current statistics of the index.
    ///
    /// Cost: recomputes the figures of each shard that changed since the last call. No vector is read.
    ///
    /// # Errors
    /// Returns `Io` if the length of a file cannot be read.
    pub fn stats(&self) -> Result<IndexStats> {
        let geometry = self.geometry();
        let page = geometry.page_size as u64;
        let totals = self.work.totals;
        let shards = self.work.figures.totalled::<S::File>(&self.work.shards);
        let held: u64 = self.work.space.waiting().map(|(run, _)| u64::from(run.pages)).sum();
        let counters = &self.counters;
        Ok(IndexStats {
            total_shards: shards.shards,
            total_postings: totals.live,
            removed_postings: totals.removed,
            pending_operations: counters.operations - counters.flushed_operations,
            uncommitted_operations: counters.operations - counters.committed_operations,
            uncommitted_bytes: self.uncommitted_bytes(),
            uncommitted_for: None,
            background_error: None,
            dimension: geometry.dimension,
            metric: geometry.metric,
            encoding: geometry.encoding,
            shard_size: geometry.shard_size,
            largest_shard: shards.largest as usize,
            splits: totals.splits,
            merges: totals.merges,
            cells: self.published.cells.as_ref().map_or(0, |cells| cells.cells()),
            codes: self.published.cells.as_ref().map_or(0, |cells| cells.codes()),
            unindexed_postings: self.unindexed_postings(),
            recall: self.recall_measurement(),
            memory_usage: (self.work.memory() + self.published.unindexed_memory()) as u64,
            disk_bytes: self.disk_bytes()?,
            free_bytes: self.work.space.map().free_pages() * page,
            reclaimable_bytes: self.reclaimable_bytes()?,
            held_bytes: held * page,
            held_by_readers_bytes: self.held_by_readers(),
            wal_bytes: self.wal_bytes(),
            wal_segments: self.wal.segments(),
            segments_recycled: self.wal.recycled(),
            last_lsn: self.wal.last_lsn(),
            durable_lsn: self.wal.durable_lsn(),
            checkpoint_lsn: self.roots.newest().checkpoint,
            generation: self.roots.newest().generation,
            max_drift: shards.drift,
            commits: counters.commits,
            flushes: counters.flushes,
            barriers: counters.barriers,
            bytes_stored: self.bytes_stored(),
            errors: counters.errors,
            search_latency: LatencyStats::default(),
            write_latency: LatencyStats::default(),
            commit_latency: LatencyStats::default(),
            flush_latency: LatencyStats::default(),
            last_flush: counters.last_flush.clone(),
            flush_totals: counters.flush_totals.clone(),
            recovery: self.recovery.clone(),
            poisoned: self.poisoned.clone(),
            read_only: self.read_only.as_ref().map(ToString::to_string),
        })
    }
}
