//! Application of one batch to the working state, whole or not at all.
//!
//! A batch changes copies of shards and stores their bytes in free slots only. A failed batch is undone by dropping the
//! copies. A successful batch puts its copies into the working state at the end.
//!
//! Deterministic: the same batches on the same undamaged state give the same postings in the same slots of the same shards,
//! with the same ids. Page ranges depend on readers, and former slots on the cells in use, so a replay may give other ones.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use rand::RngExt as _;

use super::{
    batch::Row,
    payload_changes::PayloadChanges,
    plan::Plan,
    working::{Totals, TouchedShards, Working},
};
use crate::{
    env::derived_rng,
    error::Result,
    failpoint::{protects, reached},
    format::bucket::PayloadOwner,
    id::{PostingKey, ShardId},
    lease::Allocation,
    shard::{DataFile, FormerSlots, Lookup, Shard, SharedShard, StoreReason, StoredPosting, split},
    storage::StorageFile,
    tuning,
};

/// Outcome of an applied batch. The counts compare the state before the batch with that after it.
#[derive(Debug, Default)]
pub struct Applied {
    /// Numbers of the shards that were changed, created or dissolved.
    pub changed: Vec<u32>,
    /// Number of added postings whose key was not stored.
    pub added: u64,
    /// Number of added postings that replaced a stored one.
    pub replaced: u64,
    /// Number of stored postings removed and not replaced.
    pub removed: u64,
}

/// Inputs of a batch besides the working state.
pub struct Context<F> {
    /// Data file that receives the bytes.
    pub data: Arc<DataFile<F>>,
    /// Time for the ids of new shards, in milliseconds since 1970. It comes from the record, so that a replay gives the
    /// same ids.
    pub unix_ms: u64,
    /// Seed of the random draws.
    pub index_id: u128,
}

/// Batch that is being applied.
pub(super) struct Apply<'a, F: StorageFile> {
    pub(super) context: &'a Context<F>,
    pub(super) work: &'a mut Working<F>,
    pub(super) touched: TouchedShards<F>,
    pub(super) taken: Vec<Arc<Allocation>>,
    pub(super) dropped: Vec<Arc<Allocation>>,
    /// Reason (split or merge) per shard for storing its staged postings. A missing entry is a plain add. Used only to
    /// label the stores with a purpose.
    pub(super) causes: BTreeMap<u32, StoreReason>,
    /// Numbers of the shards from which this batch removed postings.
    pub(super) shrunk: BTreeSet<u32>,
    pub(super) before: Totals,
    pub(super) candidates: Vec<usize>,
    /// Payloads and cursor after the batch, if it changes them.
    pub(super) payloads: Option<PayloadChanges<F>>,
}

/// Applies the plan of a batch.
///
/// # Errors
/// Returns `OutOfSpace`, `Io` or `Corruption`. The working state is then unchanged.
pub fn apply<F: StorageFile>(work: &mut Working<F>, context: &Context<F>, plan: &Plan<'_>) -> Result<Applied> {
    Apply::run(work, context, |apply| {
        let mut counts = Applied::default();
        // All removals precede all appends, so lookups find only stored postings and never staged ones.
        for &document in &plan.documents {
            apply.remove(Lookup::Document(document), plan, &mut counts)?;
        }
        for &key in &plan.keys {
            apply.remove(Lookup::Key(key), plan, &mut counts)?;
        }
        for row in &plan.rows {
            apply.remove(Lookup::Key(row.posting.key()), plan, &mut counts)?;
        }
        for (&key, &tags) in &plan.tags {
            apply.set_tags(key, tags)?;
        }
        counts.added = plan.rows.len() as u64 - counts.replaced;
        if apply.is_bulk(plan.rows.len()) {
            apply.load(&plan.rows);
        } else {
            for row in &plan.rows {
                apply.add_posting(row.posting, row.tags, &row.vector)?;
            }
        }
        apply.set_payloads(plan)?;
        Ok(counts)
    })
}

/// Rewrites shards without their removed postings. Leaves damaged shards as they are.
///
/// # Errors
/// As [`apply`].
pub fn rewrite<F: StorageFile>(work: &mut Working<F>, context: &Context<F>, numbers: &[u32]) -> Result<Applied> {
    Apply::run(work, context, |apply| {
        numbers.iter().try_for_each(|&number| apply.rewrite(number))?;
        Ok(Applied::default())
    })
}

/// Rewrites shards as their live postings alone make them. Leaves damaged shards as they are.
///
/// # Errors
/// As [`apply`].
pub fn purge<F: StorageFile>(work: &mut Working<F>, context: &Context<F>, numbers: &[u32]) -> Result<Applied> {
    Apply::run(work, context, |apply| {
        numbers.iter().try_for_each(|&number| apply.purge(number))?;
        Ok(Applied::default())
    })
}

/// Moves the payloads of owners to new blocks.
///
/// # Errors
/// As [`apply`].
pub fn move_payloads<F: StorageFile>(
    work: &mut Working<F>,
    context: &Context<F>,
    owners: &BTreeSet<PayloadOwner>,
) -> Result<Applied> {
    Apply::run(work, context, |apply| {
        apply.move_payloads(owners)?;
        Ok(Applied::default())
    })
}

impl<'a, F: StorageFile> Apply<'a, F> {
    fn run(
        work: &'a mut Working<F>,
        context: &'a Context<F>,
        steps: impl FnOnce(&mut Self) -> Result<Applied>,
    ) -> Result<Applied> {
        let before = work.totals;
        let mut apply = Self {
            context,
            work,
            touched: BTreeMap::new(),
            taken: Vec::new(),
            dropped: Vec::new(),
            causes: BTreeMap::new(),
            shrunk: BTreeSet::new(),
            before,
            candidates: Vec::new(),
            payloads: None,
        };
        let done = steps(&mut apply).and_then(|counts| {
            apply.free_empty();
            apply.merge_all()?;
            apply.store_all()?;
            Ok(counts)
        });
        match done {
            Ok(counts) => Ok(apply.switch_in(counts)),
            Err(error) => {
                if protects!(ErrorCheck) {
                    reached!(BatchUndone);
                    apply.undo();
                }
                Err(error)
            }
        }
    }

    pub(super) fn shard(&self, number: u32) -> Option<&Shard<F::Lent>> {
        current::<F>(&self.touched, &self.work.shards, number)
    }

    /// Returns the batch's own copy of a shard, made at the first call.
    pub(super) fn touch(&mut self, number: u32) -> &mut Shard<F::Lent> {
        let shards = &self.work.shards;
        let copy = || shards.get(number as usize).and_then(|shard| shard.as_deref().cloned());
        match self.touched.entry(number).or_insert_with(copy) {
            Some(shard) => shard,
            None => unreachable!("shard {number} is routed to, so it exists"),
        }
    }

    /// Calls `act` with each shard in which a lookup finds live postings, and the slots found. Returns their number.
    fn with_found(
        &mut self,
        lookup: Lookup,
        mut act: impl FnMut(&mut Self, u32, &[(usize, StoredPosting)]),
    ) -> Result<u64> {
        let mut candidates = std::mem::take(&mut self.candidates);
        self.work.finder.candidates(lookup, &mut candidates);
        self.work.finder.counts.lookups += 1;
        let mut found = Vec::new();
        let mut count = 0;
        for &number in &candidates {
            let data = &self.context.data;
            let Working { finder, shards, figures, .. } = &mut *self.work;
            let Some(shard) = current::<F>(&self.touched, shards, number as u32) else { continue };
            found.clear();
            if finder.find(data, number, shard, lookup, &mut found)? {
                figures.note(number as u32);
            }
            if !found.is_empty() {
                act(self, number as u32, &found);
                count += found.len() as u64;
            }
        }
        self.candidates = candidates;
        Ok(count)
    }

    /// Removes the live postings that a lookup finds, and counts them.
    fn remove(&mut self, lookup: Lookup, plan: &Plan<'_>, counts: &mut Applied) -> Result<()> {
        let removed = self.with_found(lookup, |apply, number, found| {
            let geometry = *apply.context.data.geometry();
            let shard = apply.touch(number);
            found.iter().for_each(|&(slot, _)| shard.remove(slot, &geometry));
            apply.shrunk.insert(number);
            let replaced = found.iter().filter(|(_, posting)| plan.adds(&posting.key())).count() as u64;
            counts.replaced += replaced;
            counts.removed += found.len() as u64 - replaced;
        })?;
        self.work.totals.live -= removed;
        self.work.totals.removed += removed;
        Ok(())
    }

    /// Sets the tags of a stored posting, if it exists.
    fn set_tags(&mut self, key: PostingKey, tags: u64) -> Result<()> {
        let found = self.with_found(Lookup::Key(key), |apply, number, found| {
            let geometry = *apply.context.data.geometry();
            let shard = apply.touch(number);
            found.iter().for_each(|&(slot, _)| shard.set_tags(slot, tags, &geometry));
        });
        found.map(drop)
    }

    /// Reports whether the batch is loaded into new shards of its own. That takes at least `BULK_SHARDS` shards' worth
    /// of postings, and no fewer than the index has live ones. Added one at a time, they would split nearly all
    /// existing shards, some of them several times, and each split rewrites its postings.
    fn is_bulk(&self, rows: usize) -> bool {
        let shard_size = self.context.data.geometry().shard_size;
        rows >= tuning::BULK_SHARDS * shard_size && rows as u64 >= self.work.totals.live
    }

    /// Creates shards for all postings of a batch: halves the batch by 2-means until each part leaves its shard room to
    /// grow (at most `BULK_FILL` eighths full).
    fn load(&mut self, rows: &[Row<'_>]) {
        let shard_size = self.context.data.geometry().shard_size;
        let full = (shard_size * tuning::BULK_FILL / 8).max(1);
        let mut rng = derived_rng(self.context.index_id, self.work.totals.draws);
        self.work.totals.draws += 1;
        let mut parts: Vec<Vec<usize>> = vec![(0..rows.len()).collect()];
        while let Some(part) = parts.pop() {
            let vectors: Vec<&[f32]> = part.iter().map(|&i| &*rows[i].vector).collect();
            if part.len() > full && part.len() > 1 {
                let halves = split::two_means(&vectors, &mut rng);
                let (second, first): (Vec<_>, Vec<_>) =
                    part.into_iter().zip(halves.second).partition(|&(_, in_second)| in_second);
                parts.extend([second, first].map(|half| half.into_iter().map(|(i, _)| i).collect()));
                continue;
            }
            reached!(Loaded);
            let number = self.create(split::mean(vectors.into_iter()).into());
            for &i in &part {
                self.append(number, rows[i].posting, rows[i].tags, &rows[i].vector);
            }
        }
        self.work.totals.live += rows.len() as u64;
    }

    /// Appends a posting to the shard with the nearest centroid, and splits that shard first if it is full.
    ///
    /// It may split a second shard: if a third shard, nearer to the posting than both halves, is full too.
    fn add_posting(&mut self, posting: StoredPosting, tags: u64, vector: &[f32]) -> Result<()> {
        let shard_size = self.context.data.geometry().shard_size;
        let number = match self.work.routing.nearest(vector) {
            Some(number) => number,
            None => self.create(vector.into()),
        };
        if self.shard(number).is_some_and(|shard| shard.len() == shard_size) {
            self.split(number)?;
            // Each half has room after `split`. But a third shard may be nearer than both halves, because the centroid
            // of the split shard no longer exists. If that shard is full, by itself or by postings that the split moved
            // there, the repeated call splits it.
            let number = match self.work.routing.nearest(vector) {
                Some(number) => number,
                None => self.create(vector.into()),
            };
            if self.shard(number).is_none_or(|shard| shard.len() == shard_size) {
                return self.add_posting(posting, tags, vector);
            }
            self.append(number, posting, tags, vector);
        } else {
            self.append(number, posting, tags, vector);
        }
        self.work.totals.live += 1;
        Ok(())
    }

    pub(super) fn append(&mut self, number: u32, posting: StoredPosting, tags: u64, vector: &[f32]) {
        let geometry = self.context.data.geometry();
        self.touch(number).stage(posting, tags, vector, geometry);
        self.work.finder.insert(number as usize, &posting);
    }

    /// Creates a shard under the lowest free number, and returns the number.
    pub(super) fn create(&mut self, centroid: Arc<[f32]>) -> u32 {
        let number = self.work.numbers.lowest();
        self.create_as(number, centroid, None);
        number
    }

    /// Creates a shard under a free number. `former` says where its postings were before a rewrite.
    pub(super) fn create_as(&mut self, number: u32, centroid: Arc<[f32]>, former: Option<FormerSlots>) {
        self.work.numbers.set(number, true);
        let draw: u128 = derived_rng(self.context.index_id, self.work.totals.draws).random();
        self.work.totals.draws += 1;
        let id = ShardId::from_parts(self.context.unix_ms, draw);
        let mut shard = Shard::new(id, centroid, self.context.data.geometry());
        shard.set_former(former);
        self.work.index(number, Some(&shard));
        self.touched.insert(number, Some(shard));
    }

    /// Removes a shard from the index and drops its extents.
    pub(super) fn dissolve(&mut self, number: u32) {
        if let Some(shard) = self.shard(number) {
            let allocations: Vec<_> = shard.extents().iter().map(|extent| Arc::clone(extent.allocation())).collect();
            self.work.totals.removed -= (shard.len() - shard.live()) as u64;
            self.dropped.extend(allocations);
        }
        self.touched.insert(number, None);
        self.work.numbers.set(number, false);
        self.work.index(number, None);
    }

    /// Stores the staged postings of one shard.
    pub(super) fn store(&mut self, number: u32) -> Result<()> {
        let Some(Some(shard)) = self.touched.get_mut(&number) else { return Ok(()) };
        let (work, taken, context) = (&mut *self.work, &mut self.taken, self.context);
        let mut take = || {
            let allocation = work.take_extent(&context.data)?;
            taken.push(Arc::clone(&allocation));
            Ok(allocation)
        };
        let cause = self.causes.get(&number).copied().unwrap_or(StoreReason::Add);
        shard.store(&context.data, &mut take, cause)
    }

    /// Stores the staged postings of all shards that the batch touched.
    fn store_all(&mut self) -> Result<()> {
        let numbers: Vec<u32> = self.touched.keys().copied().collect();
        numbers.into_iter().try_for_each(|number| self.store(number))
    }

    /// Puts the copies into the working state and retires the extents of dissolved shards.
    fn switch_in(self, counts: Applied) -> Applied {
        let Self { work, touched, dropped, payloads, .. } = self;
        let changed = touched.keys().copied().collect();
        for (number, shard) in touched {
            work.put(number, shard.map(Arc::new));
        }
        dropped.into_iter().for_each(|allocation| work.retire_extent(allocation));
        if let Some(payloads) = payloads {
            payloads.switch_in(work);
        }
        Applied { changed, ..counts }
    }

    /// Restores the working state of before the batch: drops the copies, and frees the extents and blocks that the batch
    /// allocated.
    fn undo(self) {
        let Self { work, touched, taken, before, dropped, payloads, .. } = self;
        drop((dropped, payloads));
        for (number, copy) in touched {
            drop(copy);
            let original = work.shards.get(number as usize).cloned().flatten();
            work.numbers.set(number, original.is_some());
            work.index(number, original.as_deref());
        }
        taken.into_iter().for_each(|allocation| work.space.undo(allocation));
        work.totals = before;
    }
}

/// Returns a shard as the batch sees it: the batch's copy if there is one, else the shared shard.
pub(super) fn current<'a, F: StorageFile>(
    touched: &'a TouchedShards<F>,
    shards: &'a [Option<SharedShard<F>>],
    number: u32,
) -> Option<&'a Shard<F::Lent>> {
    match touched.get(&number) {
        Some(touched) => touched.as_ref(),
        None => shards.get(number as usize)?.as_deref(),
    }
}
