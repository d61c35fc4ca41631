//! Calibration queries: vectors whose true nearest postings are known, to measure the recall of searches.
//!
//! Invariants:
//! 1. The true nearest are those of the distances to all postings. Estimates only exclude vectors that are certainly
//!    too far.
//! 2. The queries are drawn from pairwise different vectors, and each query's own posting is excluded from its answer.
//! 3. One query in [`CALIBRATION_MOVED.0`](tuning::CALIBRATION_MOVED) is displaced from its stored vector, because
//!    real queries rarely equal a stored vector.

use std::collections::BTreeSet;

use super::super::{
    candidate::Candidate,
    distances::distance_by,
    scan::{nearest_shards, scan_slots},
    snapshot::{Snapshot, shard_of},
    topk::TopK,
};
use crate::{
    cells::held_out,
    codes::{RoundedQuery, RoundedRows},
    config::Metric,
    distance,
    env::{Workers, derived_rng},
    error::Result,
    format::{calibration::RESULTS, geometry::IndexParams},
    shard::{self, DataFile, Shard, StoredPosting, split::two_means},
    storage::StorageFile,
    tuning,
};

/// Calibration query with its true nearest postings.
pub(super) struct CalibrationQuery {
    /// Vector of the query.
    pub(super) vector: Vec<f32>,
    /// Shard number and slot of the query's own posting, which is excluded from the answer.
    pub(super) own: (u32, usize),
    /// Whether the vector equals that of its own posting. False for a displaced query.
    pub(super) stored: bool,
    /// Whether the query is in the second of two parts of the queries, as 2-means divides them.
    pub(super) second: bool,
    /// True nearest postings, nearest first.
    pub(super) nearest: Vec<Candidate>,
}

impl CalibrationQuery {
    /// Returns the distance of the `k`-th true nearest posting, or of the last one if fewer are known. `None` if there
    /// is none.
    pub(super) fn bound(&self, k: usize) -> Option<f32> {
        self.nearest.get(..k.min(self.nearest.len()))?.last().map(|last| last.distance)
    }
}

/// Draws random calibration queries and finds their true nearest postings. Queries with an empty answer are left out.
///
/// The first `CALIBRATION_FEW.0` queries get as many postings as the largest of [`RESULTS`]. The others get as many as
/// the largest that is less than `CALIBRATION_FEW.1`; see [`CALIBRATION_FEW`](tuning::CALIBRATION_FEW).
///
/// # Errors
/// Returns `Corruption` if a vector is damaged, `Closed` if the operation is cancelled.
pub(super) fn calibration_queries<F: StorageFile>(
    snapshot: &Snapshot<F::Lent>,
    data: &DataFile<F>,
    workers: Workers<'_>,
    seed: (u128, u64),
) -> Result<Vec<CalibrationQuery>> {
    let mut calibration_queries = drawn(snapshot, data, seed)?;
    answer(&mut calibration_queries, snapshot, data, workers)?;
    calibration_queries.retain(|calibration_query| !calibration_query.nearest.is_empty());
    Ok(calibration_queries)
}

/// Draws the queries from the held-out postings, and displaces some of them.
///
/// # Errors
/// Returns `Corruption` if a vector is damaged.
fn drawn<F: StorageFile>(
    snapshot: &Snapshot<F::Lent>,
    data: &DataFile<F>,
    seed: (u128, u64),
) -> Result<Vec<CalibrationQuery>> {
    let geometry = data.geometry();
    let slots = geometry.extent_slots;
    let shards = snapshot.iter().map(|(number, shard)| (number, &**shard));
    let (mut calibration_queries, mut visited) = (Vec::new(), BTreeSet::new());
    for (_, number, slot) in held_out(shards, snapshot.live as usize, seed) {
        let Some(shard) = shard_of(snapshot, number) else { unreachable!("the snapshot's own shard") };
        let vector =
            shard::row(shard.extents()[slot / slots].slots(data)?, slot % slots, geometry).to_f32().into_owned();
        if visited.insert(bytemuck::cast_slice::<f32, u8>(&vector).to_vec()) {
            let own = (number, slot);
            calibration_queries.push(CalibrationQuery {
                vector,
                own,
                stored: true,
                second: false,
                nearest: Vec::new(),
            });
        }
    }
    let mut calibration_queries = spread(calibration_queries);
    let rows: Vec<&[f32]> = calibration_queries.iter().map(|calibration_query| &*calibration_query.vector).collect();
    if rows.len() > 1 {
        let parts = two_means(&rows, &mut derived_rng(seed.0, seed.1)).second;
        calibration_queries
            .iter_mut()
            .zip(parts)
            .for_each(|(calibration_query, second)| calibration_query.second = second);
    }
    let stored: Vec<Vec<f32>> =
        calibration_queries.iter().map(|calibration_query| calibration_query.vector.clone()).collect();
    let (every, part) = tuning::CALIBRATION_MOVED;
    for i in (every - 1..calibration_queries.len()).step_by(every) {
        let [a, b] = [(i * 7 + 1) % stored.len(), (i * 13 + 5) % stored.len()].map(|at| &stored[at]);
        let calibration_query = &mut calibration_queries[i];
        calibration_query.stored = false;
        for ((x, a), b) in calibration_query.vector.iter_mut().zip(a).zip(b) {
            *x += part * (a - b);
        }
        if geometry.metric == Metric::Cosine {
            let norm = distance::dot(&calibration_query.vector, &calibration_query.vector).sqrt();
            if norm > 0.0 {
                calibration_query.vector.iter_mut().for_each(|x| *x /= norm);
            }
        }
    }
    Ok(calibration_queries)
}

/// Reorders items so that each prefix has about the same distribution as all items. Items drawn by shard are near their
/// neighbours in the list.
fn spread<T>(drawn: Vec<T>) -> Vec<T> {
    let gcd = |mut a: usize, mut b: usize| {
        while b > 0 {
            (a, b) = (b, a % b);
        }
        a
    };
    // Multiples of the golden section of the length are evenly distributed, in every prefix as in the whole.
    let len = drawn.len();
    let step = (len * 618 / 1_000..).find(|&step| gcd(step, len) == 1).unwrap_or(1);
    let mut remaining: Vec<Option<T>> = drawn.into_iter().map(Some).collect();
    (0..len).filter_map(|i| remaining[i * step % len].take()).collect()
}

/// Finds the true nearest postings of each query. A bound computed from bytes excludes most vectors. The others are
/// compared in full, so the answer is that of comparing all.
///
/// # Errors
/// Returns `Corruption` if a vector is damaged, `Closed` if the operation is cancelled.
fn answer<F: StorageFile>(
    calibration_queries: &mut [CalibrationQuery],
    snapshot: &Snapshot<F::Lent>,
    data: &DataFile<F>,
    workers: Workers<'_>,
) -> Result<()> {
    /// Minimum number of shards per task, the last task excepted, and maximum number of tasks. Each task keeps
    /// candidates of its own.
    const PART: usize = 32;
    const PARTS: usize = 32;
    let most = RESULTS[RESULTS.len() - 1] as usize;
    let few = RESULTS.iter().map(|&k| k as usize).filter(|&k| k < tuning::CALIBRATION_FEW.1).max().unwrap_or(most);
    // The first queries get the largest number of results.
    let k = |i: usize| if i < tuning::CALIBRATION_FEW.0 { most } else { few };
    let rounded_queries: Vec<RoundedQuery> =
        calibration_queries.iter().map(|calibration_query| RoundedQuery::new(&calibration_query.vector)).collect();
    // Upper bound on the distance of the last true nearest posting: the distance of the `k + 1`-th posting in a few
    // near shards. One of these may be the query's own.
    let bounds = workers.map(calibration_queries.len(), &|i| {
        let (least, times) = tuning::BOUND_SHARDS;
        let few = least + times * k(i) * snapshot.shards / snapshot.live.max(1) as usize;
        let mut top = TopK::new(k(i) + 1);
        for number in nearest_shards(snapshot, data.geometry(), &calibration_queries[i].vector, few) {
            let Some(shard) = shard_of(snapshot, number) else { continue };
            scan_slots(shard, number, 0..shard.len(), data, &calibration_queries[i].vector, None, &mut top)?;
        }
        Ok(top.bound())
    })?;
    let bounds: Vec<f32> = bounds.into_iter().collect::<Result<_>>()?;
    let shards: Vec<_> = snapshot.iter().collect();
    let parts: Vec<_> = shards.chunks(shards.len().div_ceil(PARTS).max(PART)).collect();
    let found = workers.map(parts.len(), &|part| {
        let mut tops: Vec<TopK> = (0..calibration_queries.len()).map(|i| TopK::new(k(i))).collect();
        let mut rows = LiveRows::new(data.geometry());
        for &(number, shard) in parts[part] {
            workers.cancel.check()?;
            rows.fill(shard, data)?;
            for (((calibration_query, rounded_query), &bound), top) in
                calibration_queries.iter().zip(&rounded_queries).zip(&bounds).zip(&mut tops)
            {
                rows.offer(calibration_query, rounded_query, number, bound, top);
            }
        }
        Ok(tops.into_iter().map(TopK::into_sorted).collect::<Vec<_>>())
    })?;
    let mut tops: Vec<TopK> = (0..calibration_queries.len()).map(|i| TopK::new(k(i))).collect();
    for part in found {
        let candidates = tops.iter_mut().zip(part?);
        candidates.for_each(|(top, part)| part.into_iter().for_each(|candidate| top.offer(candidate)));
    }
    calibration_queries
        .iter_mut()
        .zip(tops)
        .for_each(|(calibration_query, top)| calibration_query.nearest = top.into_sorted());
    Ok(())
}

/// Live vectors of a shard, with their postings and their rounded bytes.
struct LiveRows<'a> {
    geometry: &'a IndexParams,
    vectors: Vec<f32>,
    postings: Vec<(StoredPosting, usize)>,
    rounded: RoundedRows,
}

impl<'a> LiveRows<'a> {
    fn new(geometry: &'a IndexParams) -> Self {
        Self { geometry, vectors: Vec::new(), postings: Vec::new(), rounded: RoundedRows::new(geometry.dimension) }
    }

    /// Replaces the rows with the live vectors of a shard.
    ///
    /// # Errors
    /// Returns `Corruption` if an extent is damaged.
    fn fill<F: StorageFile>(&mut self, shard: &Shard<F::Lent>, data: &DataFile<F>) -> Result<()> {
        self.vectors.clear();
        self.postings.clear();
        self.rounded.clear();
        let slots = self.geometry.extent_slots;
        let mut widened = Vec::new();
        for (e, extent) in shard.extents().iter().enumerate() {
            let bytes = extent.slots(data)?;
            for i in (0..extent.used()).filter(|i| shard.is_live(e * slots + i)) {
                let row = shard::row(bytes, i, self.geometry).widened(&mut widened);
                self.vectors.extend_from_slice(row);
                self.rounded.push(row);
                self.postings.push((shard::record(bytes, i, self.geometry), e * slots + i));
            }
        }
        Ok(())
    }

    /// Offers the rows whose distance is within the top-k bound and the bound `known`, except the query's own posting.
    fn offer(
        &mut self,
        calibration_query: &CalibrationQuery,
        rounded_query: &RoundedQuery,
        number: u32,
        known: f32,
        top: &mut TopK,
    ) {
        let IndexParams { metric, dimension, .. } = *self.geometry;
        let near = self.rounded.may_be_within(rounded_query, metric, top.bound().min(known));
        let postings = near.iter().zip(&self.postings).enumerate().filter(|(_, (near, _))| **near);
        for (i, (_, &(posting, slot))) in postings {
            let distance =
                distance_by(metric, &calibration_query.vector, &self.vectors[i * dimension..(i + 1) * dimension]);
            if distance <= top.bound().min(known) && (number, slot) != calibration_query.own {
                top.offer(Candidate::new(distance, posting, number, slot));
            }
        }
    }
}

/// Splits the queries into a half for tuning and a half for judging. Blocks of `CALIBRATION_MOVED.0` queries alternate
/// between the halves, so both have the same share of displaced queries.
pub(super) fn halves<T: Copy>(queries: &[T]) -> [Vec<T>; 2] {
    let of = |half| queries.iter().enumerate().filter(move |(i, _)| i / tuning::CALIBRATION_MOVED.0 % 2 == half);
    [0, 1].map(|half| of(half).map(|(_, &one)| one).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_ones_are_as_all_are() {
        for count in [1_024, 1_000, 600, 300, 8, 1] {
            let order = spread((0..count).collect::<Vec<usize>>());
            let few = &order[..tuning::CALIBRATION_FEW.0.min(count)];
            for part in 0..8 {
                if count == 1 {
                    continue;
                }
                let within = few.iter().filter(|&&i| i * 8 / count == part).count();
                assert!(within.abs_diff(few.len() / 8) <= few.len() / 32, "{within} of part {part} of {count}");
            }
            let mut all = order;
            all.sort_unstable();
            assert!(all.into_iter().eq(0..count));
        }
    }

    #[test]
    fn each_half_has_as_many_that_are_moved() {
        let all: Vec<usize> = (0..1_024).collect();
        let every = tuning::CALIBRATION_MOVED.0;
        let moved = |half: &[usize]| half.iter().filter(|&&i| i % every == every - 1).count();
        let [tuned, held] = halves(&all);
        assert_eq!((tuned.len(), held.len()), (512, 512));
        assert_eq!((moved(&tuned), moved(&held)), (128, 128));
    }
}
