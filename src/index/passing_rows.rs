//! Rounded copies of the vectors that pass a filter, and the exhaustive search among them.
//!
//! A filter that lets few postings pass and is used again keeps their vectors rounded to bytes, one after the other. A
//! search compares these and gets bounds of every distance. It then computes the distances of the few postings that the
//! bounds don't exclude, so its results are those of comparing all.
//!
//! Invariants:
//! 1. Rows are made of what is live and passes in the snapshot of one mask. They are used with that mask and later ones,
//!    and of a shard only while it has the same bits in the later mask: the shard then has the same id, slots and tags.
//! 2. Which postings are live may have changed, so it is tested in the snapshot that is searched.

use std::{cmp::Ordering, collections::BinaryHeap};

use super::{
    candidate::Candidate,
    distances::distance_to,
    lookup::posting_at,
    snapshot::{Snapshot, shard_of},
    topk::TopK,
};
use crate::{
    cells::RankedId,
    codes::{RowBounds, RowScratch, medians, padded},
    distance,
    error::Result,
    failpoint::{holds, reached},
    shard::{self, DataFile},
    storage::StorageFile,
    tuning,
};

/// Number of vectors from whose medians the copies are measured by L2.
const CENTRE_SAMPLE: usize = 32;

/// Rounded copies of the vectors that pass a filter.
#[derive(Debug)]
pub(super) struct PassingRows {
    rows: RowBounds,
    /// Shard number and slot by row.
    places: Vec<(u32, u32)>,
}

/// Candidate whose distance is not computed yet.
#[derive(Clone, Copy)]
struct Bounded {
    /// Lower bound of the distance.
    lower: f32,
    /// Number of the row.
    row: u32,
}

impl Bounded {
    /// Compares candidates by lower bound.
    fn by_lower(a: &Self, b: &Self) -> Ordering {
        a.lower.total_cmp(&b.lower)
    }
}

/// Reports whether a filter that lets `passing` postings pass may keep rounded copies.
pub(super) fn may_be_kept(passing: u64, dimension: usize) -> bool {
    /// Bytes per row besides those of the vector: terms of the bounds, and the place.
    const BESIDES: u64 = 24;
    passing * (padded(dimension) as u64 + BESIDES) <= tuning::PASSING_ROWS_BYTES
}

impl PassingRows {
    /// Rounds the vectors of slots.
    ///
    /// # Errors
    /// Returns `Corruption` if one of them is damaged.
    pub(super) fn of<F: StorageFile>(
        places: Vec<(u32, u32)>,
        snapshot: &Snapshot<F::Lent>,
        data: &DataFile<F>,
    ) -> Result<Self> {
        let geometry = data.geometry();
        let mut widened = Vec::new();
        let mut sample: Vec<f32> = Vec::new();
        for &(number, slot) in places.iter().step_by(places.len().div_ceil(CENTRE_SAMPLE).max(1)) {
            sample.extend_from_slice(posting_at(snapshot, data, number, slot)?.1.widened(&mut widened));
        }
        sample.resize(sample.len().max(geometry.dimension), 0.0);
        let centre = medians(&sample, geometry.dimension);
        let (mut rows, mut scratch) = (RowBounds::new(geometry.metric, &centre, places.len()), RowScratch::default());
        for &(number, slot) in &places {
            rows.push(posting_at(snapshot, data, number, slot)?.1.widened(&mut widened), &mut scratch);
        }
        Ok(Self { rows, places })
    }

    /// Returns the number of rows.
    pub(super) fn rows(&self) -> usize {
        self.rows.rows()
    }
}

/// Search among the rows.
pub(super) struct RowSearch<'a, F: StorageFile> {
    pub(super) rows: &'a PassingRows,
    pub(super) snapshot: &'a Snapshot<F::Lent>,
    pub(super) data: &'a DataFile<F>,
    pub(super) query: &'a [f32],
    /// Whether the rows are valid for a shard, by its number.
    pub(super) covered: &'a [bool],
}

impl<F: StorageFile> RowSearch<'_, F> {
    /// Offers every live posting that may be among the nearest to the top-k, which counts `documents` or postings. Returns
    /// the number of distances computed.
    ///
    /// # Errors
    /// Returns `Corruption` if a vector that is read is damaged.
    pub(super) fn by_copies(&self, documents: bool, top: &mut TopK) -> Result<usize> {
        reached!(RowsSearched);
        // Nothing farther than the bound is a result. It falls while rows are compared, if postings are counted: the upper
        // bounds of `k` postings lie within it. Of documents that would have to be known for each.
        let (mut bound, k) = (top.bound(), if documents { 0 } else { top.k() });
        let mut uppers: BinaryHeap<RankedId> = BinaryHeap::new();
        let mut near: Vec<Bounded> = Vec::new();
        self.rows.rows.for_each_block(self.query, |block| {
            let count = (self.rows.rows() - block.first).min(block.lower.len());
            for (lane, row) in (block.first..block.first + count).enumerate() {
                let lower = block.lower[lane];
                if lower <= bound && self.is_valid(row) {
                    near.push(Bounded { lower, row: row as u32 });
                    let upper = RankedId::new(block.upper[lane], 0);
                    if uppers.len() < k {
                        uppers.push(upper);
                    } else if let Some(mut farthest) = uppers.peek_mut()
                        && upper < *farthest
                    {
                        *farthest = upper;
                    }
                    if let Some(farthest) = uppers.peek().filter(|_| holds!(Ordering, uppers.len() == k)) {
                        bound = bound.min(farthest.distance());
                    }
                }
            }
        });
        near.retain(|one| one.lower <= bound);
        self.rerank(&mut near, top)
    }

    /// Reports whether a row is valid, and its slot live.
    fn is_valid(&self, row: usize) -> bool {
        let (number, slot) = self.rows.places[row];
        holds!(Ordering, self.covered.get(number as usize).is_some_and(|&covered| covered))
            && shard_of(self.snapshot, number).is_some_and(|shard| holds!(Ordering, shard.is_live(slot as usize)))
    }

    /// Computes the distances of the candidates, nearest lower bound first, until a lower bound exceeds the top-k bound.
    /// Returns the number of distances computed.
    fn rerank(&self, mut near: &mut [Bounded], top: &mut TopK) -> Result<usize> {
        let geometry = self.data.geometry();
        let slots = geometry.extent_slots;
        let (mut computed, mut count) = (0, top.k().max(8));
        while !near.is_empty() {
            // Each batch is prefetched as a whole. The order within the rest does not matter.
            count = count.min(near.len());
            if count < near.len() {
                near.select_nth_unstable_by(count - 1, Bounded::by_lower);
            }
            let (batch, rest) = near.split_at_mut(count);
            batch.sort_unstable_by(Bounded::by_lower);
            let within = batch.partition_point(|one| one.lower <= top.bound());
            let found = batch[..within].iter().filter_map(|one| {
                let (number, slot) = self.rows.places[one.row as usize];
                let (extent, i) = (slot as usize / slots, slot as usize % slots);
                let extent = &shard_of(self.snapshot, number)?.extents()[extent];
                distance::prefetch(shard::slot_bytes(extent.lent(), i, geometry));
                Some((one.lower, (number, slot as usize), extent))
            });
            for (lower, (number, slot), extent) in found.collect::<Vec<_>>() {
                if lower > top.bound() {
                    return Ok(computed);
                }
                let bytes = extent.slots(self.data)?;
                computed += 1;
                let distance = distance_to(geometry.metric, self.query, shard::row(bytes, slot % slots, geometry));
                if distance <= top.bound() {
                    top.offer(Candidate::new(distance, shard::record(bytes, slot % slots, geometry), number, slot));
                }
            }
            if within < count {
                return Ok(computed);
            }
            near = rest;
            count *= 2;
        }
        Ok(computed)
    }
}
