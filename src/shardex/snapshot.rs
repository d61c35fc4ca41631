//! Snapshot of an index: an immutable view for searches that must agree with each other.

use std::sync::Arc;

use crate::{
    engine::Lent,
    env::{Clock, Executor},
    error::Result,
    filter::Filter,
    id::Lsn,
    index::{self, FilterMask, Snapshot},
    observe::Observer,
    shard::DataFile,
    storage::{MmapStorage, Storage},
};

/// Immutable view of an index after some write. All its searches see the same postings. Later writes don't change it.
///
/// Taking a snapshot waits for nothing and copies nothing. A snapshot pins the allocations it reads from, so a
/// long-lived snapshot makes the data file grow. `IndexStats::held_by_readers_bytes` shows by how much. It stays
/// readable after the index is closed, and it keeps the index locked. Until it is dropped, an open returns
/// [`Locked`](crate::ShardexError::Locked).
pub struct IndexSnapshot<S: Storage = MmapStorage> {
    pub(super) snapshot: Arc<Snapshot<Lent<S>>>,
    pub(super) data: Arc<DataFile<S::File>>,
    pub(super) context: Arc<SearchContext>,
}

/// What the searches of a handle share.
pub(super) struct SearchContext {
    pub(super) executor: Arc<dyn Executor>,
    pub(super) observer: Arc<Observer>,
    /// For the times of explanations.
    pub(super) clock: Arc<dyn Clock>,
    /// Target recall of searches that set neither `recall` nor `slop`.
    pub(super) default_recall: f32,
}

impl<S: Storage> Clone for IndexSnapshot<S> {
    fn clone(&self) -> Self {
        Self { snapshot: Arc::clone(&self.snapshot), data: Arc::clone(&self.data), context: Arc::clone(&self.context) }
    }
}

impl<S: Storage> std::fmt::Debug for IndexSnapshot<S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("IndexSnapshot").field("lsn", &self.lsn()).field("postings", &self.len()).finish_non_exhaustive()
    }
}

impl<S: Storage> IndexSnapshot<S> {
    pub(super) fn new(
        snapshot: Arc<Snapshot<Lent<S>>>,
        data: Arc<DataFile<S::File>>,
        context: Arc<SearchContext>,
    ) -> Self {
        Self { snapshot, data, context }
    }

    /// Returns the LSN of the last write in the snapshot.
    #[must_use]
    pub fn lsn(&self) -> Lsn {
        self.snapshot.lsn
    }

    /// Returns the number of live postings.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.snapshot.live
    }

    /// Reports whether the snapshot has no live postings.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns the number of live postings that pass a filter.
    ///
    /// Cost: that of the first search with the filter, or none if it was used since the last write.
    ///
    /// # Errors
    /// Returns `Corruption` if a shard that the filter reads is damaged.
    pub fn len_of(&self, filter: &Filter) -> Result<u64> {
        Ok(FilterMask::of(filter, &self.snapshot, &self.data)?.passing)
    }

    /// Reads and checks all bytes that searches may read, on all cores, so that no later search pays for it.
    ///
    /// It is useful before a measurement, or after an open if the first answers must be as fast as later ones. It
    /// blocks the calling thread. Cost: reads every byte of the vectors and codes once.
    ///
    /// # Errors
    /// Returns `Corruption` if a vector is damaged.
    pub fn warm(&self) -> Result<()> {
        index::warm(&*self.context.executor, &self.snapshot, &self.data)
    }
}
