//! Figures about a flush, about an index, and about what its recovery did.

use std::{fmt, time::Duration};

use super::Engine;
use crate::{
    config::Metric,
    id::{Generation, Lsn},
    storage::Storage,
};

impl<S: Storage> Engine<S> {
    /// Bytes of WAL of accepted writes that wait to be made durable.
    #[must_use]
    pub fn uncommitted_bytes(&self) -> u64 {
        self.wal.undurable_bytes()
    }

    /// Whether a sync has failed, so that nothing is acknowledged any more.
    #[must_use]
    pub fn is_poisoned(&self) -> bool {
        self.poisoned.is_some()
    }
}

/// What one flush did and what each of its stages cost.
///
/// The stages follow one another, so their times sum to no more than `total_duration`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct FlushStats {
    /// Writing out and syncing the WAL up to the checkpoint (barrier B1).
    pub wal_flush_duration: Duration,
    /// Encoding the changed shard states and the directory, and storing them in free places.
    pub shard_apply_duration: Duration,
    /// Syncing the data file: vectors, postings, states, directory (barrier B2).
    pub shard_sync_duration: Duration,
    /// Storing and syncing the root (barrier B3).
    pub index_sync_duration: Duration,
    /// The consistency check before the root is stored, and the pointer check after.
    pub validation_duration: Duration,
    /// From the first step to the last.
    pub total_duration: Duration,
    /// Shards whose state was stored.
    pub shards_synced: usize,
    /// Postings added and documents removed since the root before.
    pub operations_applied: usize,
    /// Bytes stored since the flush before and made durable by this one, in all files.
    pub bytes_synced: u64,
    /// Syncs issued.
    pub barriers: usize,
    /// Extents and states set free.
    pub places_freed: usize,
    /// WAL segments set free.
    pub segments_recycled: usize,
    /// The write up to which the shards are durable now.
    pub checkpoint_lsn: Lsn,
    /// The root that says so.
    pub generation: Generation,
}

impl FlushStats {
    /// The stages in their order, with a name for each.
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

    /// The stage that took longest.
    #[must_use]
    pub fn slowest_stage(&self) -> &'static str {
        // The first of equals: `max_by_key` alone would take the last.
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
            "  slowest: {}; freed {} places, {} WAL segments",
            self.slowest_stage(),
            self.places_freed,
            self.segments_recycled
        )
    }
}

/// What the open of an index had to do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct RecoveryStats {
    /// The index was not closed: its state was recovered from the WAL.
    pub crashed: bool,
    /// WAL records replayed.
    pub records_replayed: u64,
    /// Postings and removals replayed.
    pub operations_replayed: u64,
    /// The newest root could not be read; the older one and the WAL gave the same state.
    pub root_fallback: bool,
    /// The WAL ended in bytes of a commit that was never acknowledged.
    pub torn_tail: bool,
    /// The cells were damaged; searches do without until there are new ones.
    pub cells_lost: bool,
    /// Files left by an interrupted `create` that were removed.
    pub leftovers_removed: u64,
    /// From the first read to the last sync.
    pub duration: Duration,
}

/// Work that is done without being asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum BackgroundWork {
    /// Commits of the timer, and those tried again.
    Commit,
    /// Flushes by the timer or by the size of the WAL, and those tried again.
    Flush,
    /// Cells, and codes of what is in none. Without them searches take longer, and find the same.
    Cells,
}

/// An error of work that nobody waits for.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct BackgroundError {
    /// What failed.
    pub work: BackgroundWork,
    /// The newest error's text.
    pub error: String,
    /// How long ago it failed first, of the failures that followed one another without a success.
    pub began: Duration,
    /// How many failures these were.
    pub failures: u64,
    /// Whether it lasts: nothing of the kind has succeeded since.
    pub lasts: bool,
}

/// What searches by cells reached when it was last tried: stored vectors, and some moved off their places, were searched for
/// whose true nearest had been computed, and which had no part in finding how far searches go.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct RecallProof {
    /// The last write that was seen.
    pub lsn: Lsn,
    /// Live postings then.
    pub postings: u64,
    /// Postings that have come or gone since, or were moved by splits, at least: from more than a quarter of the live ones on it is
    /// tried anew, in the background.
    pub moved: u64,
    /// What was reached, by numbers of results and then by the recall asked for, ascending. What was not tried yet is not
    /// among it, and searches for it look at everything.
    pub reached: Vec<ReachedRecall>,
}

/// One line of a [`RecallProof`].
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct ReachedRecall {
    /// Number of results.
    pub k: usize,
    /// The recall that was asked for.
    pub asked: f32,
    /// The mean share of the true nearest that was found.
    pub reached: f32,
    /// Whether nothing less did, or cost less, than to look at every vector.
    pub everything: bool,
}

/// A snapshot of an index's figures. See [`stats`](crate::Shardex::stats).
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct IndexStats {
    /// Shards in use.
    pub total_shards: usize,
    /// Live postings: added, and neither removed nor replaced.
    pub total_postings: u64,
    /// Postings removed or replaced whose slots are not yet free.
    pub removed_postings: u64,
    /// Operations accepted and not yet flushed.
    pub pending_operations: u64,
    /// Operations accepted and not yet durable.
    pub uncommitted_operations: u64,
    /// Bytes of WAL that these take.
    pub uncommitted_bytes: u64,
    /// How long the oldest of them has waited; `None` while there is none, and below the async API, which has the clock.
    pub uncommitted_for: Option<Duration>,
    /// Numbers per vector.
    pub dimension: usize,
    /// The metric.
    pub metric: Metric,
    /// Most postings in a shard.
    pub shard_size: usize,
    /// Live postings of the fullest shard.
    pub largest_shard: usize,
    /// Shards split in two since the index was made.
    pub splits: u64,
    /// Shards that had shrunk and were merged into their neighbours, since the index was made.
    pub merges: u32,
    /// Cells that searches choose from; 0 while there are none.
    pub cells: u64,
    /// Codes in them: two a posting, those of postings that are gone too.
    pub codes: u64,
    /// Slots that are in no cell: searches look at the codes of those in near shards, or at the vectors where these have none.
    /// All, while there are no cells.
    pub fresh_postings: u64,
    /// What searches by cells reach; `None` while there are none: then searches look at everything.
    pub recall: Option<RecallProof>,
    /// Bytes that searches and lookups need in memory: states, centroids, bloom filters, and the codes, which are mapped;
    /// not the vectors.
    pub memory_usage: u64,
    /// Bytes of the files on disk.
    pub disk_bytes: u64,
    /// Bytes of the data file that hold nothing.
    pub free_bytes: u64,
    /// Bytes of the data file that wait for readers or for the next root before they are free.
    pub held_bytes: u64,
    /// Of those, bytes that only a snapshot or a result of a search still reads.
    pub held_by_readers_bytes: u64,
    /// Bytes of WAL that a recovery would replay.
    pub wal_bytes: u64,
    /// WAL segments in the file.
    pub wal_segments: usize,
    /// Times a WAL segment was used again.
    pub segments_recycled: u64,
    /// The last accepted write.
    pub last_lsn: Lsn,
    /// The last durable write.
    pub durable_lsn: Lsn,
    /// The write up to which shards are durable.
    pub checkpoint_lsn: Lsn,
    /// The newest durable root.
    pub generation: Generation,
    /// Farthest that any shard's routing centroid has drifted from the mean of its vectors, as a share of that
    /// mean's norm.
    pub max_drift: f32,
    /// Commits since the open.
    pub commits: u64,
    /// Flushes since the open, automatic ones too.
    pub flushes: u64,
    /// Syncs of all kinds since the open.
    pub barriers: u64,
    /// Bytes stored since the open, in all files.
    pub bytes_stored: u64,
    /// Errors since the open, in background work too.
    pub errors: u64,
    /// The last error of background work since the open, and since when; below the async API, which does that work, none.
    pub background_error: Option<BackgroundError>,
    /// The newest flush.
    pub last_flush: Option<FlushStats>,
    /// All flushes since the open, added up.
    pub flush_totals: FlushStats,
    /// What the open had to do.
    pub recovery: RecoveryStats,
    /// What poisoned the handle, if it is poisoned.
    pub poisoned: Option<String>,
    /// Why the handle refuses writes: the open found no room to recover. Searches then see the newest state that needs no
    /// room, and nothing durable is lost. Recover by making room and opening again.
    pub read_only: Option<String>,
}
