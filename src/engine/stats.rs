//! Statistics of a flush, of an index and of its recovery.

use std::{fmt, time::Duration};

use crate::{
    config::{Metric, VectorEncoding},
    id::{Generation, Lsn},
};

/// Statistics of a [`compact`](crate::Shardex::compact).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct CompactionStats {
    /// Bytes of the slots of the shards that were rewritten: live and removed postings.
    pub rewritten_bytes: u64,
    /// Bytes of storage that the files took before, as [`IndexStats::disk_bytes`].
    pub disk_bytes_before: u64,
    /// Bytes of storage that the files take now.
    pub disk_bytes_after: u64,
}

/// Report of a [`purge`](crate::Shardex::purge).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct PurgeStats {
    /// LSN of the record that ends the purge. Everything removed by writes before it, and before the call, is gone.
    pub lsn: Lsn,
    /// Bytes of the slots of the shards that were rewritten: live and removed postings.
    pub rewritten_bytes: u64,
    /// Payloads that were moved out of blocks with bytes of removed ones.
    pub moved_payloads: u64,
    /// Bytes that were given back or made zeros, holes included.
    pub wiped_bytes: u64,
    /// Last writes of the snapshots that are held and older than the purge. They use no removed byte of the files.
    pub snapshots: Vec<Lsn>,
}

/// Statistics of one flush: the work it did and the time of each stage.
///
/// The stages do not overlap, so the sum of their durations is at most `total_duration`. A flush that found nothing to
/// do leaves every field at zero except `checkpoint_lsn` and `generation`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct FlushStats {
    /// Time to write and sync the rest of the WAL up to the checkpoint (barrier B1), after the root was synced. Near
    /// zero if a commit synced it during the flush.
    pub wal_flush_duration: Duration,
    /// Time to write the WAL to its file without a sync, to encode the changed shard states and directory nodes, and to
    /// store them in free pages.
    pub shard_apply_duration: Duration,
    /// Time to sync the data file: vectors, postings, shard states, directory nodes and cells (barrier B2).
    pub shard_sync_duration: Duration,
    /// Time to store and sync the root (barrier B3).
    pub index_sync_duration: Duration,
    /// Time of the consistency check before the root is stored, and of the last step: freeing allocations, recycling
    /// WAL segments and comparing the LSNs of root and WAL.
    pub validation_duration: Duration,
    /// Time from the first step to the last.
    pub total_duration: Duration,
    /// Number of shards that changed since the previous flush, including freed ones.
    pub shards_synced: usize,
    /// Number of operations accepted since the previous flush. Each added posting and each document in a removal counts
    /// as one.
    pub operations_applied: usize,
    /// Bytes stored in all files between the end of the previous flush and the end of this one. Bytes of writes
    /// accepted while this flush ran are included.
    pub bytes_synced: u64,
    /// Number of barriers (B1–B3) that this flush issued.
    pub barriers: usize,
    /// Number of allocations freed: extents, shard states, directory nodes and cells.
    pub allocations_freed: usize,
    /// Number of WAL segments freed for reuse.
    pub segments_recycled: usize,
    /// LSN up to which every write is durable in the shards.
    pub checkpoint_lsn: Lsn,
    /// Generation of the root that holds this checkpoint.
    pub generation: Generation,
}

impl FlushStats {
    /// Returns the name and the duration of each of the five stages, the sync of the WAL first.
    ///
    /// A flush runs them in another order: shard apply, validation, shard sync, index sync, WAL sync.
    #[must_use]
    pub fn stages(&self) -> [(&'static str, Duration); 5] {
        [
            ("wal sync", self.wal_flush_duration),
            ("shard apply", self.shard_apply_duration),
            ("validation", self.validation_duration),
            ("shard sync", self.shard_sync_duration),
            ("index sync", self.index_sync_duration),
        ]
    }

    /// Returns the name of the stage that took longest, the first in the order of [`stages`](Self::stages) if several
    /// did.
    #[must_use]
    pub fn slowest_stage(&self) -> &'static str {
        // Reversed, because `max_by_key` returns the last of equal elements and the first is wanted.
        self.stages().into_iter().rev().max_by_key(|&(_, time)| time).map_or("", |(name, _)| name)
    }
}

impl fmt::Display for FlushStats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ms = |d: Duration| d.as_secs_f64() * 1e3;
        writeln!(
            f,
            "flush to root {} (checkpoint LSN {}): {:.2} ms, {} operations, {} shards, {} bytes, {} barriers",
            self.generation,
            self.checkpoint_lsn,
            ms(self.total_duration),
            self.operations_applied,
            self.shards_synced,
            self.bytes_synced,
            self.barriers,
        )?;
        for (name, time) in self.stages() {
            writeln!(f, "  {name:<12} {:>9.2} ms", ms(time))?;
        }
        write!(
            f,
            "  slowest: {}; freed {} allocations, {} WAL segments",
            self.slowest_stage(),
            self.allocations_freed,
            self.segments_recycled
        )
    }
}

/// Statistics of the open of an index and its recovery.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct RecoveryStats {
    /// Whether the WAL did not end in the mark of a clean close, so that the state was recovered from the WAL.
    pub crashed: bool,
    /// Number of WAL records replayed.
    pub records_replayed: u64,
    /// Number of operations replayed: postings added and documents removed.
    pub operations_replayed: u64,
    /// Whether one of the two roots could not be used, because it or the directory below it was damaged or incomplete.
    /// The other root and the WAL gave the same state.
    pub root_fallback: bool,
    /// Whether the WAL ended in bytes of a commit that was never acknowledged.
    pub torn_tail: bool,
    /// Whether the cells of a root were damaged or unreadable. Without the cells of the newest root, searches are
    /// exhaustive until the cells have been rebuilt in the background.
    pub cells_lost: bool,
    /// Number of files removed that an interrupted `create`, or an interrupted replacement of the root file, had left.
    pub leftovers_removed: u64,
    /// Time from after the roots and file headers are read until the index can be used.
    pub duration: Duration,
}

/// Kind of background work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum BackgroundWork {
    /// Commits by the timer, and retries of failed commits.
    Commit,
    /// Flushes by the timer or because of the size of the WAL, and retries of failed flushes.
    Flush,
    /// Cell builds, and codes for unindexed postings. Until they succeed, searches read more vectors and take longer;
    /// their recall is not lower.
    Cells,
    /// Giving free space back to the file system. Until it succeeds, the files take more of the disk.
    Space,
}

/// Error of background work, which no caller waits for.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct BackgroundError {
    /// Work that failed.
    pub work: BackgroundWork,
    /// Text of the most recent error.
    pub error: String,
    /// Age of the first failure of the run. A run is a sequence of failures of this work without a success between
    /// them: the present one if `lasts` is true, otherwise the last one.
    pub began: Duration,
    /// Number of failures in this run.
    pub failures: u64,
    /// Whether the failure persists: this kind of work has not succeeded since.
    pub lasts: bool,
}

/// Recall of searches by cells, as measured by the last calibration.
///
/// Calibration queries are stored vectors, some of them displaced, whose true nearest neighbours were computed by
/// exhaustive search. One half of the queries chose the search effort. The recall is measured on the other, held-out
/// half.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct RecallMeasurement {
    /// LSN of the last write that the calibration saw.
    pub lsn: Lsn,
    /// Number of live postings at that time.
    pub postings: u64,
    /// Estimated number of postings that were added, removed, or moved by splits and merges since then. It is computed
    /// from counts, in which additions and removals may cancel out. When it exceeds a quarter of the live postings, the
    /// recall is measured again in the background.
    pub moved: u64,
    /// Measured recall for each number of results and target recall, in ascending order of these two. Combinations that
    /// are not measured yet are missing, and searches for them are exhaustive.
    pub reached: Vec<ReachedRecall>,
}

/// Entry of a [`RecallMeasurement`]: the recall measured for one number of results and one target recall.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct ReachedRecall {
    /// Number of results.
    pub k: usize,
    /// Target recall.
    pub target: f32,
    /// Measured recall: mean share of the true nearest neighbours found.
    pub reached: f32,
    /// Whether searches for this target are exhaustive, because no smaller effort reached it or because a smaller one
    /// would cost as much.
    pub everything: bool,
}

/// Latencies of one kind of operation since the open: their number, quantiles and maximum.
///
/// A quantile is that of the nearest rank: `p99` is the smallest latency that at least 99 % of the operations did not
/// exceed. It is off by at most 3.2 % of itself, because latencies are counted in buckets (see
/// [`observe`](crate::observe)). `count` and `max` are exact, but of several flushes that one request runs all but the last
/// count with their mean. All are zero if there was no such operation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct LatencyStats {
    /// Number of operations that succeeded.
    pub count: u64,
    /// Median.
    pub p50: Duration,
    /// 95 % of the operations took at most this long.
    pub p95: Duration,
    /// 99 % of the operations took at most this long.
    pub p99: Duration,
    /// Longest latency.
    pub max: Duration,
}

/// Statistics of an index at one moment, returned by [`stats`](crate::Shardex::stats).
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct IndexStats {
    /// Number of shards in use.
    pub total_shards: usize,
    /// Number of live postings: added, and neither removed nor replaced.
    pub total_postings: u64,
    /// Number of postings removed or replaced whose slots are not yet free.
    pub removed_postings: u64,
    /// Number of operations accepted since the open and not yet flushed. Each added posting and each document in a
    /// removal counts as one.
    pub pending_operations: u64,
    /// Number of operations accepted since the open and not yet durable.
    pub uncommitted_operations: u64,
    /// Bytes of WAL that hold writes accepted and not yet durable.
    pub uncommitted_bytes: u64,
    /// Time that the oldest accepted write has waited to become durable. `None` if every accepted write is durable, and
    /// always `None` from the engine without the async API, which has the clock.
    pub uncommitted_for: Option<Duration>,
    /// Number of components per vector.
    pub dimension: usize,
    /// Metric of the index.
    pub metric: Metric,
    /// Encoding of stored vectors.
    pub encoding: VectorEncoding,
    /// Capacity of a shard, in postings.
    pub shard_size: usize,
    /// Number of live postings in the fullest shard.
    pub largest_shard: usize,
    /// Number of shards split in two since the index was created.
    pub splits: u64,
    /// Number of shards merged into their neighbours since the index was created, because they had shrunk.
    pub merges: u32,
    /// Number of cells that searches choose from. 0 if there are none.
    pub cells: u64,
    /// Number of codes in the cells: up to two per posting. Postings that were removed since the cell build still
    /// count.
    pub codes: u64,
    /// Number of slots in no cell. Searches scan their codes in the near shards, or their vectors where codes are
    /// missing. If there are no cells, or if they are damaged, the number of live postings.
    pub unindexed_postings: u64,
    /// Recall of searches by cells. `None` if there are no cells, or if they are damaged or not calibrated yet:
    /// searches are then exhaustive.
    pub recall: Option<RecallMeasurement>,
    /// Bytes in memory for searches and lookups: shard states, centroids, filters, fingerprints and codes. The codes in
    /// cells are included, although they are memory-mapped. Vectors are not included.
    pub memory_usage: u64,
    /// Bytes of storage that the data, WAL and root files take. Holes take none, so it may be less than the lengths of
    /// the files.
    pub disk_bytes: u64,
    /// Bytes of the data file that are free. Those that were given back to the file system count too.
    pub free_bytes: u64,
    /// Bytes of storage that Shardex gives back by itself when no more writes come: free pages beyond a small reserve,
    /// and what only the older root needs; while a cell build or a full check runs, also what readers hold. 0 on a file system that can't take them back.
    pub reclaimable_bytes: u64,
    /// Bytes of the data file that wait to become free, because a retained root may name them or a reader holds them.
    pub held_bytes: u64,
    /// Bytes among `held_bytes` that no root needs and that only a snapshot or a search result still reads.
    pub held_by_readers_bytes: u64,
    /// Bytes of WAL that a recovery would replay.
    pub wal_bytes: u64,
    /// Number of segments in the WAL file.
    pub wal_segments: usize,
    /// Number of times since the open that a WAL segment was freed for reuse.
    pub segments_recycled: u64,
    /// LSN of the last accepted write, or of the closing mark if nothing was written since a clean close.
    pub last_lsn: Lsn,
    /// LSN of the last durable write or closing mark.
    pub durable_lsn: Lsn,
    /// LSN up to which every write is durable in the shards.
    pub checkpoint_lsn: Lsn,
    /// Generation of the newest durable root.
    pub generation: Generation,
    /// Largest drift of any shard: the distance between its routing centroid and the mean of its live vectors, divided
    /// by the norm of that mean. If the norm is 0, the distance itself; infinite if a sum overflows.
    pub max_drift: f32,
    /// Number of commits since the open. A commit that had nothing to sync is not counted.
    pub commits: u64,
    /// Number of flushes since the open, including automatic ones. A flush that had nothing to do is not counted.
    pub flushes: u64,
    /// Number of syncs issued for barriers since the open. Barrier B4 counts twice, because it syncs the root file
    /// twice.
    pub barriers: u64,
    /// Bytes stored since the open in the data, WAL and root files.
    pub bytes_stored: u64,
    /// Number of errors of background work since the open.
    pub errors: u64,
    /// Most recent error of background work since the open. Errors that persist come before others. Always `None` from
    /// the engine without the async API, which runs that work.
    pub background_error: Option<BackgroundError>,
    /// Latencies of searches: from the check of the query to the hits, without the copy of vectors. A call with several
    /// queries counts each of them. Like the other latencies always zero from the engine without the async API, which
    /// measures them.
    pub search_latency: LatencyStats,
    /// Latencies of calls that write (`write`, `add_postings`, `remove_documents` and others): from the call to its
    /// answer, with the time in the queue and under [`Durability::Immediate`](crate::Durability::Immediate) with the
    /// commit.
    pub write_latency: LatencyStats,
    /// Latencies of commits, those of the timer included: store and sync of the WAL. Calls that share a commit count as
    /// one. Commits with nothing to sync, those of a close, and the sync of the WAL in a flush don't count.
    pub commit_latency: LatencyStats,
    /// Latencies of flushes, automatic ones included, from the first step to the last. Flushes of the recovery, and
    /// those with nothing to do, don't count.
    pub flush_latency: LatencyStats,
    /// Statistics of the last flush.
    pub last_flush: Option<FlushStats>,
    /// Sums over all flushes since the open. `checkpoint_lsn` and `generation` are those of the last flush.
    pub flush_totals: FlushStats,
    /// Statistics of the open and its recovery.
    pub recovery: RecoveryStats,
    /// Error of the sync that poisoned the handle. `None` if it is not poisoned.
    pub poisoned: Option<String>,
    /// Reason why the handle refuses writes: the open found no room to recover. Searches then see the state of the last
    /// flush and a part of the WAL at most, so they may miss committed writes. Nothing durable is lost. Free space and open the index again to recover. `None` if the handle
    /// accepts writes.
    pub read_only: Option<String>,
}
