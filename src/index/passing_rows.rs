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

use std::ops::Deref;

use super::{
    candidate::Candidate,
    distances::distance_to,
    lookup::posting_at,
    snapshot::{Snapshot, shard_of},
    topk::TopK,
};
use crate::{
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
    lower: f32,
    upper: f32,
    place: (u32, u32),
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

    /// Offers every live posting of the rows that may be among the nearest to the top-k, which counts `documents` or
    /// postings. `is_covered` tells for which shards, by number, the rows are valid. Returns the number of distances computed.
    ///
    /// # Errors
    /// Returns `Corruption` if a vector that is read is damaged.
    pub(super) fn search<F: StorageFile>(
        &self,
        snapshot: &Snapshot<F::Lent>,
        data: &DataFile<F>,
        query: &[f32],
        documents: bool,
        is_covered: impl Fn(u32) -> bool,
        top: &mut TopK,
    ) -> Result<usize> {
        reached!(RowsSearched);
        // Nothing farther than the bound is a result. It falls while rows are compared, if postings are counted: the upper
        // bounds of `k` postings lie below it. Of documents that would have to be known for each.
        let mut bound = top.bound();
        let mut most = if documents { usize::MAX } else { top.k().saturating_mul(4).saturating_add(64) };
        let mut near: Vec<Bounded> = Vec::new();
        self.rows.for_each_block(query, |block| {
            let places = &self.places[block.first..];
            for (lane, &place) in places.iter().take(block.lower.len()).enumerate() {
                let lower = block.lower[lane];
                if holds!(Recall, lower <= bound) && is_valid(snapshot, place, &is_covered) {
                    near.push(Bounded { lower, upper: block.upper[lane], place });
                }
            }
            if near.len() >= most && top.k() > 0 {
                let (_, farthest, _) = near.select_nth_unstable_by(top.k() - 1, |a, b| a.upper.total_cmp(&b.upper));
                bound = bound.min(farthest.upper);
                near.retain(|one| one.lower <= bound);
                // Each candidate is looked at a bounded number of times, also where bounds exclude little.
                most = most.max(2 * near.len());
            }
        });
        rerank(&mut near, snapshot, data, query, top)
    }
}

/// Reports whether the row of a slot is valid, and the slot live.
fn is_valid<L: Deref<Target = [u8]> + Clone>(
    snapshot: &Snapshot<L>,
    (number, slot): (u32, u32),
    is_covered: &impl Fn(u32) -> bool,
) -> bool {
    holds!(Ordering, is_covered(number))
        && shard_of(snapshot, number).is_some_and(|shard| holds!(Ordering, shard.is_live(slot as usize)))
}

/// Computes the distances of the candidates, nearest lower bound first, until it exceeds the top-k bound.
fn rerank<F: StorageFile>(
    mut near: &mut [Bounded],
    snapshot: &Snapshot<F::Lent>,
    data: &DataFile<F>,
    query: &[f32],
    top: &mut TopK,
) -> Result<usize> {
    let geometry = data.geometry();
    let slots = geometry.extent_slots();
    let by_lower = |a: &Bounded, b: &Bounded| a.lower.total_cmp(&b.lower);
    let (mut computed, mut count) = (0, top.k().max(8));
    while !near.is_empty() {
        // Each batch is prefetched as a whole. The order within the rest does not matter.
        count = count.min(near.len());
        if count < near.len() {
            near.select_nth_unstable_by(count - 1, by_lower);
        }
        let (batch, rest) = near.split_at_mut(count);
        batch.sort_unstable_by(by_lower);
        let within = batch.partition_point(|one| one.lower <= top.bound());
        let found = batch[..within].iter().filter_map(|one| {
            let extent = &shard_of(snapshot, one.place.0)?.extents()[one.place.1 as usize / slots];
            distance::prefetch(shard::slot_bytes(extent.lent(), one.place.1 as usize % slots, geometry));
            Some((one, extent))
        });
        for (one, extent) in found.collect::<Vec<_>>() {
            if one.lower > top.bound() {
                return Ok(computed);
            }
            let (number, slot) = (one.place.0, one.place.1 as usize);
            let bytes = extent.slots(data)?;
            computed += 1;
            let distance = distance_to(geometry.metric, query, shard::row(bytes, slot % slots, geometry));
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
