//! The engine's state, shared by all its operations.

use std::{
    collections::{BTreeSet, VecDeque},
    sync::Arc,
};

use super::{
    directory::Directory,
    pending_flush::PendingFlush,
    roots::Roots,
    state_blocks::StateBlocks,
    stats::{FlushStats, RecoveryStats},
    working::{Working, searched},
};
use crate::{
    config::OpenOptions,
    env::{CellPolicy, Clock, Executor},
    error::{Result, ShardexError},
    failpoint::{protects, reached},
    format::geometry::IndexParams,
    id::{Lsn, ShardId},
    index::{Snapshot, SnapshotSource},
    lease::{IndexLock, PageRange, PlainFile},
    shard::{DataFile, LookupCounts},
    storage::{Storage, StorageFile},
    wal::WalWriter,
};

/// Bytes of the data file that an engine lends to searches.
pub type Lent<S> = <<S as Storage>::File as StorageFile>::Lent;

/// Counters since the open.
#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) operations: u64,
    pub(super) committed_operations: u64,
    pub(super) flushed_operations: u64,
    pub(super) commits: u64,
    pub(super) barriers: u64,
    pub(super) errors: u64,
    pub(super) flushes: u64,
    pub(super) bytes_flushed: u64,
    pub(super) last_flush: Option<FlushStats>,
    pub(super) flush_totals: FlushStats,
}

impl Counters {
    pub(super) fn note_flush(&mut self, stats: &FlushStats) {
        self.flushes += 1;
        let totals = &mut self.flush_totals;
        totals.wal_flush_duration += stats.wal_flush_duration;
        totals.shard_apply_duration += stats.shard_apply_duration;
        totals.shard_sync_duration += stats.shard_sync_duration;
        totals.index_sync_duration += stats.index_sync_duration;
        totals.validation_duration += stats.validation_duration;
        totals.total_duration += stats.total_duration;
        totals.shards_synced += stats.shards_synced;
        totals.operations_applied += stats.operations_applied;
        totals.bytes_synced += stats.bytes_synced;
        totals.barriers += stats.barriers;
        totals.allocations_freed += stats.allocations_freed;
        totals.segments_recycled += stats.segments_recycled;
        totals.checkpoint_lsn = stats.checkpoint_lsn;
        totals.generation = stats.generation;
        self.last_flush = Some(stats.clone());
    }
}

/// Open index, below the async API.
///
/// All calls block on the storage. Dropping the engine without [`close`](Self::close) is like a crash of the process:
/// nothing durable is lost.
pub struct Engine<S: Storage> {
    pub(super) storage: S,
    pub(super) lock: IndexLock,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) options: OpenOptions,
    pub(super) index_id: u128,
    pub(super) data: Arc<DataFile<S::File>>,
    pub(super) wal_file: PlainFile<S::File>,
    pub(super) wal: WalWriter<S::File>,
    /// Whether both roots carry the WAL's epoch, so that records may be appended.
    pub(super) epoch_open: bool,
    pub(super) roots: Roots<S::File>,
    /// Whether the next root is of the newest format version, whatever the version of the root before it.
    pub(super) upgrades: bool,
    /// Shards that a compaction found damaged.
    pub(super) unfit: BTreeSet<ShardId>,
    /// Older version as whose build the engine writes, for tests of the upgrade. Such an engine has created the index. A
    /// later open upgrades it.
    pub(super) stays_at_version: Option<u32>,
    pub(super) directory: Directory,
    /// Directory of the buckets of payloads.
    pub(super) bucket_directory: Directory,
    /// Pages of tags and further parts of buckets that the newest root reaches.
    pub(super) state_blocks: StateBlocks,
    /// Cursors of accepted batches that are not known to be durable, and the last durable one, in the order of their
    /// LSNs.
    pub(super) cursors: VecDeque<(Lsn, Result<Arc<[u8]>>)>,
    pub(super) work: Working<S::File>,
    pub(super) flush: Option<PendingFlush<S>>,
    /// Snapshot that searches use.
    pub(super) published: Arc<Snapshot<Lent<S>>>,
    /// Snapshot that searches use once a sync has failed: the state of the newest root whose flush is complete, not
    /// that of the last commit.
    pub(super) durable: Arc<Snapshot<Lent<S>>>,
    pub(super) poisoned: Option<String>,
    /// Reason why writes are refused: recovery found no room.
    pub(super) read_only: Option<ShardexError>,
    pub(super) counters: Counters,
    pub(super) recovery: RecoveryStats,
    pub(super) executor: Arc<dyn Executor>,
    pub(super) cell_policy: CellPolicy,
    /// Operation count from which on [`wants_cell_build`](Engine::wants_cell_build) is evaluated again.
    pub(super) cell_build_at: u64,
    /// Number of live postings when a build found that cells don't pay; 0 if no build did.
    pub(super) cell_build_refused: u64,
}

impl<S: Storage> Engine<S> {
    /// Returns the parameters that the index was created with.
    #[must_use]
    pub fn geometry(&self) -> &IndexParams {
        self.data.geometry()
    }

    /// Returns the options of this handle.
    #[must_use]
    pub fn options(&self) -> &OpenOptions {
        &self.options
    }

    /// Returns the data file, which searches read from.
    #[must_use]
    pub fn data(&self) -> &Arc<DataFile<S::File>> {
        &self.data
    }

    /// Returns the snapshot that searches use now.
    #[must_use]
    pub fn snapshot(&self) -> Arc<Snapshot<Lent<S>>> {
        Arc::clone(&self.published)
    }

    /// Returns the LSN of the last accepted write.
    #[must_use]
    pub fn last_lsn(&self) -> Lsn {
        self.wal.last_lsn()
    }

    /// Reports whether some accepted writes are not yet durable in the WAL.
    #[must_use]
    pub fn has_uncommitted(&self) -> bool {
        self.wal.durable_lsn() < self.wal.last_lsn()
    }

    /// Reports whether a flush has work to do.
    #[must_use]
    pub fn has_unflushed(&self) -> bool {
        self.flush.is_some() || self.is_unflushed()
    }

    pub(super) fn is_unflushed(&self) -> bool {
        // Before the epoch is open nothing is accepted, and a recovery opens it by flushing the replayed records. So an
        // LSN beyond the checkpoint is then that of a closing mark, which takes an LSN and is appended after the last
        // root. Only a read-only engine may have replayed records there, and it can't flush them.
        self.epoch_open && (self.roots.newest().checkpoint < self.wal.last_lsn() || self.work.cells_changed)
    }

    /// Returns the number of bytes of WAL that a recovery would replay.
    #[must_use]
    pub fn wal_bytes(&self) -> u64 {
        let newest = self.roots.newest();
        if newest.epoch == self.wal.epoch() { self.wal.bytes_since(newest.wal_start) } else { 0 }
    }

    /// Returns the number of bytes of WAL that a retained root needs, whose segments therefore can't be reused.
    #[must_use]
    pub fn wal_retained(&self) -> u64 {
        let newest = self.roots.newest();
        match self.roots.older() {
            Some(older) if older.epoch == self.wal.epoch() => self.wal.bytes_since(older.wal_start),
            _ if newest.epoch == self.wal.epoch() => self.wal.bytes_since(newest.wal_start),
            _ => 0,
        }
    }

    /// Returns an error if the engine refuses writes: `Poisoned`, or the reason why it is read-only.
    #[cfg_attr(feature = "mutants", track_caller)]
    pub(super) fn check_writable(&self) -> Result<()> {
        if let Some(cause) = &self.poisoned
            && protects!(ErrorCheck)
        {
            return Err(ShardexError::Poisoned { cause: cause.clone() });
        }
        match &self.read_only {
            Some(cause) => Err(ShardexError::ReadOnly { cause: Box::new(cause.clone()) }),
            None => Ok(()),
        }
    }

    /// Poisons the engine after a failed sync. Searches continue on the state of the newest root whose flush is
    /// complete, not on that of the last commit (P5).
    pub(super) fn poison(&mut self, error: ShardexError) -> ShardexError {
        reached!(Poisoned);
        self.poisoned = Some(error.to_string());
        self.published = Arc::clone(&self.durable);
        self.flush = None;
        error
    }

    /// Counts an error of background work.
    pub fn count_error(&mut self) {
        self.counters.errors += 1;
    }

    pub(super) fn publish(&mut self, changed: &[u32]) {
        self.publish_with(changed, true);
    }

    /// Publishes the working state. With `encodes`, new unindexed postings get codes.
    pub(super) fn publish_with(&mut self, changed: &[u32], encodes: bool) {
        let state = SnapshotSource {
            shards: &self.work.shards,
            cells: searched(&self.work.cells),
            lsn: self.wal.last_lsn(),
            live: self.work.totals.live,
            payloads: &self.work.payloads,
            encodes,
        };
        let next = self.published.with_changes(self.data.geometry(), changed.iter().copied(), state);
        self.published = Arc::new(next);
    }

    pub(super) fn bytes_stored(&self) -> u64 {
        self.data.bytes_stored() + self.wal.bytes_stored() + self.roots.bytes_stored()
    }

    /// Returns the page ranges that the free-space map marks as used: extents and metadata. For external checks.
    pub fn used_allocations(&self) -> impl Iterator<Item = PageRange> {
        self.work.space.map().used()
    }

    /// Returns the allocations of the working state, whether or not a root names them yet: the extents of shards, the
    /// cells, and the allocations of a flush under way.
    pub fn working_allocations(&self) -> impl Iterator<Item = PageRange> {
        let extents =
            self.work.shards.iter().flatten().flat_map(|shard| shard.extents()).map(|extent| extent.allocation());
        let cells = self.work.cells.iter().flat_map(|(cells, _)| cells.allocations());
        let flush = self.flush.iter().flat_map(PendingFlush::taken);
        extents
            .chain(cells)
            .chain(flush)
            .chain(self.work.payload_space.allocations())
            .map(|allocation| allocation.run())
    }

    /// Returns the cost of document and key lookups since the open.
    #[must_use]
    pub fn lookups(&self) -> LookupCounts {
        self.work.finder.counts
    }

    /// Returns the storage of the index.
    #[must_use]
    pub fn storage(&self) -> &S {
        &self.storage
    }

    /// Returns the number of bytes of WAL that accepted writes take and that are not yet durable.
    #[must_use]
    pub fn uncommitted_bytes(&self) -> u64 {
        self.wal.undurable_bytes()
    }

    /// Reports whether the engine refuses writes, because the open found no space to recover.
    #[must_use]
    pub fn is_read_only(&self) -> bool {
        self.read_only.is_some()
    }

    /// Reports whether a sync has failed, after which nothing is acknowledged.
    #[must_use]
    pub fn is_poisoned(&self) -> bool {
        self.poisoned.is_some()
    }
}

impl<S: Storage> Drop for Engine<S> {
    fn drop(&mut self) {
        // Readers may keep the lock. Later attempts to take it then report that only readers hold it.
        self.lock.owner_left();
    }
}
