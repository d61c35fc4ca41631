//! Payloads and cursor as a batch leaves them, before they become the working state.
//!
//! Invariant: nothing of the working state changes before the whole batch is applied. The bytes of the batch lie in free
//! space of the newest block or in new blocks. A failed batch frees its blocks and forgets the rest.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use super::working::Working;
use crate::{
    failpoint::reached,
    format::bucket::{PayloadOwner, PayloadRun},
    lease::Allocation,
    payload::{PayloadIndex, PayloadSpace, StoredPayload},
    space::Use,
    storage::StorageFile,
};

/// Payloads and cursor as a batch leaves them.
pub(super) struct PayloadChanges<F: StorageFile> {
    pub(super) index: PayloadIndex<F::Lent>,
    /// Buckets that differ from those before the batch.
    changed: BTreeSet<u32>,
    /// Block to append to, with the offset of its first free byte.
    pub(super) open: Option<(Arc<Allocation>, u32)>,
    pub(super) stored: Vec<StoredRun>,
    /// Runs that no payload needs any more.
    freed: Vec<PayloadRun>,
    /// Bytes of these runs by block.
    freed_bytes: BTreeMap<u64, u64>,
}

/// Bytes of an owner that the batch has stored in a block.
pub(super) struct StoredRun {
    pub(super) block: Arc<Allocation>,
    pub(super) at: PayloadRun,
    pub(super) owner: PayloadOwner,
}

impl<F: StorageFile> PayloadChanges<F> {
    /// Creates changes that change nothing yet.
    pub(super) fn new(work: &Working<F>, page_size: usize) -> Self {
        let open = work.payload_space.open_block(page_size);
        Self {
            index: work.payloads.clone(),
            changed: BTreeSet::new(),
            open: open.map(|(block, at)| (Arc::clone(block), at)),
            stored: Vec::new(),
            freed: Vec::new(),
            freed_bytes: BTreeMap::new(),
        }
    }

    /// Makes these changes the working state.
    pub(super) fn switch_in(self, work: &mut Working<F>) {
        work.payloads = self.index;
        work.dirty_buckets.extend(self.changed);
        self.stored.iter().for_each(|part| work.payload_space.add(&part.block, part.at, part.owner));
        for run in self.freed {
            if let Some(block) = work.payload_space.remove(run) {
                reached!(BlockFreed);
                work.space.retire(block, Use::Meta);
            }
        }
    }

    /// Sets or removes the entry of an owner.
    pub(super) fn put(&mut self, owner: PayloadOwner, content: Option<StoredPayload<F::Lent>>) {
        let before = self.index.set(owner, content, &mut self.changed);
        for run in before.iter().flat_map(StoredPayload::runs) {
            *self.freed_bytes.entry(run.page).or_default() += u64::from(run.len);
            self.freed.push(run);
        }
    }

    /// Returns the blocks of which this batch leaves so little live that the rest is moved.
    pub(super) fn sparse_blocks(&self, space: &PayloadSpace) -> Vec<u64> {
        let open = self.open.as_ref().map(|(block, _)| block.run().page);
        let is_sparse = |&(&page, &freed): &(&u64, &u64)| Some(page) != open && space.is_sparse_without(page, freed);
        self.freed_bytes.iter().filter(is_sparse).map(|(&page, _)| page).collect()
    }
}
