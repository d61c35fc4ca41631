//! The pending flush: its stage and everything that it has stored.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use super::{directory::DirectoryChanges, state_blocks::BlockChanges, stats::FlushStats};
use crate::{
    format::root::Root,
    id::Lsn,
    index::Snapshot,
    lease::Allocation,
    payload::PayloadIndex,
    shard::SharedShard,
    storage::{Storage, StorageFile},
};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    Data,
    Root,
    Wal,
}

/// A flush in progress.
pub(super) struct PendingFlush<S: Storage> {
    pub(super) stage: Stage,
    /// Whether a sync was handed out whose result has not come back.
    pub(super) waits: bool,
    pub(super) stats: FlushStats,
    pub(super) began: Duration,
    pub(super) stage_began: Duration,
    /// Root to store. Step 1 fills in its directory and its number of data pages.
    pub(super) root: Root,
    /// LSN that the pending sync of the WAL makes durable, and the number of operations since the open that it covers.
    pub(super) wal_up_to: (Lsn, u64),
    /// Shards that changed since the previous flush, as of X, the last write that the flush covers. `None` is a freed
    /// shard.
    pub(super) dirty: Vec<(u32, Option<SharedShard<S::File>>)>,
    /// Buckets of payloads that changed since the previous flush, and all payloads, as of X.
    pub(super) dirty_buckets: BTreeSet<u32>,
    pub(super) payloads: PayloadIndex<<S::File as StorageFile>::Lent>,
    /// Snapshot of the state at X.
    pub(super) snapshot: Arc<Snapshot<<S::File as StorageFile>::Lent>>,
    /// Whether the root names other cells than the root before it.
    pub(super) cells_changed: bool,
    pub(super) changes: DirectoryChanges,
    pub(super) bucket_changes: DirectoryChanges,
    pub(super) blocks: BlockChanges,
    pub(super) taken: Vec<Arc<Allocation>>,
    /// Operations accepted since the open, up to X.
    pub(super) operations: u64,
}

impl<S: Storage> PendingFlush<S> {
    /// Reports whether the flush waits for a sync of the WAL.
    pub(super) fn syncs_wal(&self) -> bool {
        self.waits && self.stage == Stage::Wal
    }

    /// Returns the allocations of the stored shard states and directory nodes.
    pub(super) fn taken(&self) -> &[Arc<Allocation>] {
        &self.taken
    }
}
