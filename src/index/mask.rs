//! Masks: which slots of a snapshot a filter lets pass.
//!
//! Invariants:
//! 1. A mask is a function of the filter, and of the shards' slots and tags in the snapshot. The bit of a slot
//!    that is not live means nothing: whether a slot is live is tested apart.
//! 2. The records of a shard's slots never change, so the mask of a shard is reused for a later snapshot in which the
//!    shard has the same id, number of slots and tags. Within one open of an index, an LSN identifies all of them.
//! 3. A mask is never reused for an earlier snapshot. A looked-up document sets the bits of live slots only, and a slot
//!    that is removed in the later snapshot is live in the earlier one.
//! 4. Masks of equal bits share them, so the bits tell whether rounded copies are of the same slots.

use std::{
    ops::Deref,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
    },
};

use super::{
    lookup::find,
    passing_rows::{self, PassingRows, RowSearch},
    snapshot::{CHUNK_SHARDS, Snapshot, shard_of},
};
use crate::{
    error::Result,
    failpoint::{holds, reached},
    filter::{Condition, Filter, has_tags},
    id::{Lsn, PostingKey, ShardId},
    shard::{DataFile, Lookup, Shard, Tags, record},
    storage::StorageFile,
    tuning,
};

/// Mask of one shard.
#[derive(Clone, Debug)]
struct ShardMask {
    id: ShardId,
    slots: usize,
    tags: Tags,
    /// One bit per slot.
    words: Arc<[u64]>,
}

/// Masks of all shards of a snapshot.
#[derive(Debug)]
pub struct FilterMask {
    /// Open of the index.
    open: u64,
    lsn: Lsn,
    /// Masks by shard number.
    shards: Vec<Option<ShardMask>>,
    /// Number of live postings that pass.
    pub passing: u64,
    /// Numbers of the shards with live postings that pass, in ascending order.
    passing_shards: Vec<u32>,
    /// Cost of the searches so far.
    spent: Spent,
    /// Rounded copies of the vectors that pass.
    rows: OnceLock<MaskRows>,
    /// Whether a search makes the copies, has made them, or has failed.
    made: AtomicBool,
}

/// Cost of the searches by a filter that did not use rounded copies, in units of one distance: whether copies are worth
/// their making, and searches by cells cost more than with them. A lost or late count only delays the copies.
#[derive(Debug, Default)]
struct Spent {
    all: AtomicU64,
    by_cells: AtomicU64,
    /// Number of the searches by cells.
    searches: AtomicU64,
}

impl Clone for Spent {
    fn clone(&self) -> Self {
        let of = |count: &AtomicU64| AtomicU64::new(count.load(Ordering::Relaxed));
        Self { all: of(&self.all), by_cells: of(&self.by_cells), searches: of(&self.searches) }
    }
}

/// Rounded copies that a mask uses.
#[derive(Debug)]
pub(super) struct MaskRows {
    rows: Arc<PassingRows>,
    /// Bits of the shards when the copies were made, by shard number.
    made_of: Arc<[Option<Arc<[u64]>>]>,
    /// Whether the copies are valid for a shard, by its number.
    covered: Vec<bool>,
    /// Shards with postings that pass for which the copies are not valid.
    pub(super) others: Vec<u32>,
    /// Number of searches for which the bounds left more than half of the distances to compute.
    wide: AtomicU32,
}

impl MaskRows {
    /// Returns the search for a query in a snapshot.
    pub(super) fn search<'a, F: StorageFile>(
        &'a self,
        snapshot: &'a Snapshot<F::Lent>,
        data: &'a DataFile<F>,
        query: &'a [f32],
    ) -> RowSearch<'a, F> {
        RowSearch { rows: &self.rows, snapshot, data, query, covered: &self.covered }
    }

    /// Returns the number of rows.
    pub(super) fn rows(&self) -> usize {
        self.rows.rows()
    }

    /// Counts a search that computed this number of distances.
    pub(super) fn used(&self, computed: usize) {
        if computed > self.rows.rows() / 2 {
            self.wide.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl FilterMask {
    /// Reports whether a slot of a shard passes.
    #[must_use]
    pub fn contains(&self, number: u32, slot: usize) -> bool {
        let words = self.words(number);
        words.get(slot / 64).is_some_and(|word| word >> (slot % 64) & 1 == 1)
    }

    /// Returns the bits of a shard.
    #[must_use]
    pub fn words(&self, number: u32) -> &[u64] {
        self.shards.get(number as usize).and_then(Option::as_ref).map_or(&[], |mask| &mask.words)
    }

    /// Evaluates a filter for a snapshot, or returns what it remembers of it.
    ///
    /// # Errors
    /// Returns `Corruption` if the records of a shard are damaged.
    pub fn of<F: StorageFile>(filter: &Filter, snapshot: &Snapshot<F::Lent>, data: &DataFile<F>) -> Result<Arc<Self>> {
        let before = filter.evaluated().and_then(|before| before.downcast::<Self>().ok());
        let before = before.filter(|before| before.open == data.open_number() && before.lsn <= snapshot.lsn);
        if let Some(before) = &before
            && before.lsn == snapshot.lsn
        {
            return Ok(Arc::clone(before));
        }
        let numbers = snapshot.chunks.len() * CHUNK_SHARDS;
        let mut mask = Self {
            open: data.open_number(),
            lsn: snapshot.lsn,
            shards: vec![None; numbers],
            passing: 0,
            passing_shards: Vec::new(),
            spent: Spent::default(),
            rows: OnceLock::new(),
            made: AtomicBool::new(false),
        };
        let mut stale = Vec::new();
        for (number, shard) in snapshot.iter() {
            let known = before.as_ref().and_then(|before| before.shards.get(number as usize)?.as_ref());
            match known.filter(|known| known.is_of(shard)) {
                Some(known) => mask.shards[number as usize] = Some(known.clone()),
                None => stale.push((number, &**shard)),
            }
        }
        mask.evaluate(filter, snapshot, data, &stale)?;
        for (number, shard) in snapshot.iter() {
            let passing = mask.passing_in(number, shard);
            mask.passing += passing;
            if passing > 0 {
                mask.passing_shards.push(number);
            }
        }
        if let Some(before) = before {
            mask.keep_rows(&before, snapshot);
        }
        let mask = Arc::new(mask);
        filter.remember(Arc::clone(&mask) as _);
        Ok(mask)
    }

    /// Returns the numbers of the shards with live postings that pass, in ascending order.
    pub(super) fn passing_shards(&self) -> &[u32] {
        &self.passing_shards
    }

    /// Counts the cost of a search without rounded copies, in units of one distance.
    pub(super) fn spend(&self, cost: f64, by_cells: bool) {
        let add = |count: &AtomicU64, more: u64| _ = count.fetch_add(more, Ordering::Relaxed);
        add(&self.spent.all, cost as u64);
        if by_cells {
            add(&self.spent.by_cells, cost as u64);
            add(&self.spent.searches, 1);
        }
    }

    /// Returns the rounded copies for an exhaustive search of `k` results, and makes them if enough was spent on searches
    /// without them. `None` if there are none, if the search needs most of the vectors anyway, or if a search by cells is
    /// possible and costs less.
    pub(super) fn rows<F: StorageFile>(
        &self,
        k: usize,
        may_be_by_cells: bool,
        snapshot: &Snapshot<F::Lent>,
        data: &DataFile<F>,
    ) -> Option<&MaskRows> {
        let [all, by_cells, searches] =
            [&self.spent.all, &self.spent.by_cells, &self.spent.searches].map(|count| count.load(Ordering::Relaxed));
        let costs_less = by_cells > (searches * self.passing).div_ceil(tuning::ROWS_PER_DISTANCE);
        if self.passing / 2 < k as u64 || may_be_by_cells && !costs_less {
            return None;
        }
        if let Some(rows) = self.rows.get() {
            // Of vectors that differ by less than rounding the bounds exclude too little.
            return Some(rows).filter(|rows| rows.wide.load(Ordering::Relaxed) < tuning::PASSING_ROWS_WIDE);
        }
        let enough = all >= tuning::PASSING_ROWS_AFTER * self.passing;
        if !enough || !passing_rows::may_be_kept(self.passing, data.geometry().dimension) {
            return None;
        }
        // One thread makes them. The others search without, and all do if a vector is damaged that few searches read.
        if self.made.swap(true, Ordering::Relaxed) {
            return None;
        }
        let mut places = Vec::with_capacity(self.passing as usize);
        for (number, shard) in snapshot.iter() {
            for (i, word) in self.words(number).iter().enumerate() {
                let mut bits = word & !shard.tombstone_word(i);
                while bits != 0 {
                    places.push((number, i as u32 * 64 + bits.trailing_zeros()));
                    bits &= bits - 1;
                }
            }
        }
        let rows = Arc::new(PassingRows::of(places, snapshot, data).ok()?);
        let made_of: Arc<[_]> =
            self.shards.iter().map(|mask| mask.as_ref().map(|mask| Arc::clone(&mask.words))).collect();
        let covered = made_of.iter().map(Option::is_some).collect();
        Some(self.rows.get_or_init(|| MaskRows { rows, made_of, covered, others: Vec::new(), wide: AtomicU32::new(0) }))
    }

    /// Takes over the rounded copies of an earlier mask, and what was spent, unless too many shards have changed.
    fn keep_rows<L: Deref<Target = [u8]> + Clone>(&mut self, before: &Self, snapshot: &Snapshot<L>) {
        self.spent = before.spent.clone();
        let Some(MaskRows { rows, made_of, .. }) = before.rows.get() else { return };
        let is_same = |mask: &Option<ShardMask>, of: &Option<Arc<[u64]>>| match (mask, of) {
            (Some(mask), Some(of)) => Arc::ptr_eq(&mask.words, of),
            _ => false,
        };
        let covered: Vec<bool> = self.shards.iter().zip(made_of.iter()).map(|(mask, of)| is_same(mask, of)).collect();
        let is_covered = |number: u32| covered.get(number as usize).is_some_and(|&covered| covered);
        let others: Vec<u32> = self.passing_shards.iter().copied().filter(|&number| !is_covered(number)).collect();
        let stale: u64 =
            others.iter().filter_map(|&number| Some(self.passing_in(number, shard_of(snapshot, number)?))).sum();
        // Rows of what passes no more count too.
        let is_worn = rows.rows() as u64 > 2 * self.passing;
        if is_worn || stale * tuning::PASSING_ROWS_STALE > self.passing {
            self.spent = Spent::default();
            return;
        }
        reached!(RowsKept);
        self.rows = OnceLock::from(MaskRows {
            rows: Arc::clone(rows),
            made_of: Arc::clone(made_of),
            covered,
            others,
            wide: AtomicU32::new(0),
        });
    }

    /// Returns the number of live postings of a shard that pass.
    fn passing_in<L: Deref<Target = [u8]> + Clone>(&self, number: u32, shard: &Shard<L>) -> u64 {
        let words = self.words(number).iter().enumerate();
        words.map(|(i, word)| u64::from((word & !shard.tombstone_word(i)).count_ones())).sum()
    }

    /// Evaluates the filter for some shards.
    fn evaluate<F: StorageFile>(
        &mut self,
        filter: &Filter,
        snapshot: &Snapshot<F::Lent>,
        data: &DataFile<F>,
        stale: &[(u32, &Shard<F::Lent>)],
    ) -> Result<()> {
        if stale.is_empty() {
            return Ok(());
        }
        let are_few = |listed: usize| listed * tuning::LISTED_DOCUMENTS < snapshot.live as usize / 64;
        match filter.condition() {
            Condition::Documents(documents) if are_few(documents.len()) => {
                return self.look_up(documents.iter().copied().map(Lookup::Document), snapshot, data, stale);
            }
            Condition::Postings(keys) if are_few(keys.len()) => {
                return self.look_up(keys.iter().copied().map(Lookup::Key), snapshot, data, stale);
            }
            _ => {}
        }
        let parts: Vec<Arc<Self>> = match filter.condition() {
            Condition::All(filters) | Condition::Any(filters) => {
                filters.iter().map(|filter| Self::of(filter, snapshot, data)).collect::<Result<_>>()?
            }
            Condition::Not(filter) => vec![Self::of(filter, snapshot, data)?],
            _ => Vec::new(),
        };
        for &(number, shard) in stale {
            let len = shard.len().div_ceil(64);
            let of_part = |part: &Arc<Self>, i: usize| part.words(number).get(i).copied().unwrap_or(0);
            let words: Vec<u64> = match filter.condition() {
                Condition::All(_) => {
                    (0..len).map(|i| parts.iter().fold(u64::MAX, |all, part| all & of_part(part, i))).collect()
                }
                Condition::Any(_) => {
                    (0..len).map(|i| parts.iter().fold(0, |any, part| any | of_part(part, i))).collect()
                }
                Condition::Not(_) => (0..len).map(|i| !of_part(&parts[0], i)).collect(),
                &Condition::Tags { all, any, none } => {
                    bits(shard.len(), |slot| has_tags(shard.tags().get(slot), all, any, none))
                }
                Condition::Documents(documents) => {
                    of_records(shard, data, |key| documents.binary_search(&key.document_id).is_ok())?
                }
                Condition::Postings(keys) => of_records(shard, data, |key| keys.binary_search(&key).is_ok())?,
                Condition::Matching(matches) => of_records(shard, data, matches)?,
            };
            self.put(number, shard, words);
        }
        Ok(())
    }

    /// Keeps the bits of a shard, without those behind its last slot.
    fn put<L: Deref<Target = [u8]> + Clone>(&mut self, number: u32, shard: &Shard<L>, mut words: Vec<u64>) {
        if !shard.len().is_multiple_of(64)
            && let Some(last) = words.last_mut()
        {
            *last &= (1 << (shard.len() % 64)) - 1;
        }
        let mask = ShardMask { id: shard.id, slots: shard.len(), tags: shard.tags().clone(), words: words.into() };
        self.shards[number as usize] = Some(mask);
    }

    /// Looks up the documents or postings of a short list.
    fn look_up<F: StorageFile>(
        &mut self,
        listed: impl Iterator<Item = Lookup>,
        snapshot: &Snapshot<F::Lent>,
        data: &DataFile<F>,
        stale: &[(u32, &Shard<F::Lent>)],
    ) -> Result<()> {
        let mut words: Vec<Vec<u64>> = vec![Vec::new(); self.shards.len()];
        stale.iter().for_each(|&(number, shard)| words[number as usize] = vec![0; shard.len().div_ceil(64)]);
        for lookup in listed {
            for found in find(snapshot, data, lookup)? {
                // Shards whose mask is known have no words here.
                if let Some(word) = words[found.shard as usize].get_mut(found.slot as usize / 64) {
                    *word |= 1 << (found.slot % 64);
                }
            }
        }
        for &(number, shard) in stale {
            self.put(number, shard, std::mem::take(&mut words[number as usize]));
        }
        Ok(())
    }
}

impl ShardMask {
    fn is_of<L: Deref<Target = [u8]> + Clone>(&self, shard: &Shard<L>) -> bool {
        holds!(Ordering, self.id == shard.id)
            && holds!(Ordering, self.slots == shard.len())
            && holds!(Ordering, self.tags.is_same(shard.tags()))
    }
}

/// Returns one bit per slot.
fn bits(slots: usize, mut is_set: impl FnMut(usize) -> bool) -> Vec<u64> {
    let mut words = vec![0u64; slots.div_ceil(64)];
    for slot in (0..slots).filter(|&slot| is_set(slot)) {
        words[slot / 64] |= 1 << (slot % 64);
    }
    words
}

/// Returns one bit per slot, by the keys of the records. Slots of removed postings count too.
fn of_records<F: StorageFile>(
    shard: &Shard<F::Lent>,
    data: &DataFile<F>,
    passes: impl Fn(PostingKey) -> bool,
) -> Result<Vec<u64>> {
    let geometry = data.geometry();
    let slots = geometry.extent_slots;
    let mut words = vec![0u64; shard.len().div_ceil(64)];
    for (e, extent) in shard.extents().iter().enumerate() {
        let bytes = extent.slots(data)?;
        for i in (0..extent.used()).filter(|&i| passes(record(bytes, i, geometry).key())) {
            let slot = e * slots + i;
            words[slot / 64] |= 1 << (slot % 64);
        }
    }
    Ok(words)
}
