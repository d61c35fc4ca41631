//! Questions of which the true answers are known: vectors that are asked for to find out what searches reach.
//!
//! Invariants:
//! 1. The truth is that of distances computed to every posting. No estimate has a say in it.
//! 2. They are different vectors, and each is left out of its own answer.
//! 3. Of every [`CALIBRATION_MOVED`](limits::CALIBRATION_MOVED) ones one is moved off its place, for nobody asks for just
//!    what is stored.

use std::collections::BTreeSet;

use super::{
    scan::{distance_by, nearest_shards, scan_slots},
    snapshot::{Snapshot, shard_of},
    topk::{Candidate, TopK},
};
use crate::{
    cells::held_out,
    codes::{RoundedQuery, RoundedRows},
    config::Metric,
    distance,
    env::{Workers, derived_rng},
    error::Result,
    format::{cells::RESULTS, geometry::Geometry},
    limits,
    shard::{self, DataFile, Shard, StoredPosting, split::two_means},
    storage::StorageFile,
};

/// Something that is asked for.
pub(super) struct Question {
    pub(super) vector: Vec<f32>,
    /// The shard's number and the slot of the posting that is left out of the answer.
    pub(super) own: (u32, usize),
    /// Whether it is that posting's vector, and not one beside it.
    pub(super) stored: bool,
    /// In which of two parts of the whole it lies, as far as there are any.
    pub(super) second: bool,
    /// The true nearest, the nearest first.
    pub(super) nearest: Vec<Candidate>,
}

impl Question {
    /// The distance that a result of `k` has at most; `None` if there is none.
    pub(super) fn bound(&self, k: usize) -> Option<f32> {
        self.nearest.get(..k.min(self.nearest.len()))?.last().map(|last| last.distance)
    }
}

/// Questions by chance, with their true nearest: of the first [`CALIBRATION_FEW`](limits::CALIBRATION_FEW) as many as the
/// largest number of results. Those that nothing is near are left out.
///
/// # Errors
/// `Corruption` if a vector is damaged, `Closed` if it is cancelled.
pub(super) fn questions<F: StorageFile>(
    snapshot: &Snapshot<F::Lent>,
    data: &DataFile<F>,
    workers: Workers<'_>,
    seed: (u128, u64),
) -> Result<Vec<Question>> {
    let mut questions = drawn(snapshot, data, seed)?;
    answer(&mut questions, snapshot, data, workers)?;
    questions.retain(|question| !question.nearest.is_empty());
    Ok(questions)
}

/// What is asked for.
fn drawn<F: StorageFile>(
    snapshot: &Snapshot<F::Lent>,
    data: &DataFile<F>,
    seed: (u128, u64),
) -> Result<Vec<Question>> {
    let geometry = data.geometry();
    let slots = geometry.extent_slots();
    let shards = snapshot.iter().map(|(number, shard)| (number, &**shard));
    let (mut questions, mut met) = (Vec::new(), BTreeSet::new());
    for (_, number, slot) in held_out(shards, snapshot.live as usize, seed) {
        let Some(shard) = shard_of(snapshot, number) else { unreachable!("the snapshot's own shard") };
        let row = shard::row(shard.extents()[slot / slots].slots(data)?, slot % slots, geometry);
        if met.insert(bytemuck::cast_slice::<f32, u8>(row).to_vec()) {
            let (vector, own) = (row.to_vec(), (number, slot));
            questions.push(Question { vector, own, stored: true, second: false, nearest: Vec::new() });
        }
    }
    let mut questions = spread(questions);
    let rows: Vec<&[f32]> = questions.iter().map(|question| &*question.vector).collect();
    if rows.len() > 1 {
        let parts = two_means(&rows, &mut derived_rng(seed.0, seed.1)).second;
        questions.iter_mut().zip(parts).for_each(|(question, second)| question.second = second);
    }
    let stored: Vec<Vec<f32>> = questions.iter().map(|question| question.vector.clone()).collect();
    let (every, part) = limits::CALIBRATION_MOVED;
    for i in (every - 1..questions.len()).step_by(every) {
        let [a, b] = [(i * 7 + 1) % stored.len(), (i * 13 + 5) % stored.len()].map(|at| &stored[at]);
        let question = &mut questions[i];
        question.stored = false;
        for ((x, a), b) in question.vector.iter_mut().zip(a).zip(b) {
            *x += part * (a - b);
        }
        if geometry.metric == Metric::Cosine {
            let norm = distance::dot(&question.vector, &question.vector).sqrt();
            if norm > 0.0 {
                question.vector.iter_mut().for_each(|x| *x /= norm);
            }
        }
    }
    Ok(questions)
}

/// The same in an order of which the first ones are as those of all, however many: drawn by shard, they are near to one another.
fn spread<T>(drawn: Vec<T>) -> Vec<T> {
    let gcd = |mut a: usize, mut b: usize| {
        while b > 0 {
            (a, b) = (b, a % b);
        }
        a
    };
    // Multiples of the golden section of the whole lie evenly, the first some as well as all.
    let len = drawn.len();
    let step = (len * 618 / 1_000..).find(|&step| gcd(step, len) == 1).unwrap_or(1);
    let mut places: Vec<Option<T>> = drawn.into_iter().map(Some).collect();
    (0..len).filter_map(|i| places[i * step % len].take()).collect()
}

/// Finds the true nearest of each question. Bytes tell of most vectors that they are too far to be among them, and the others are compared
/// in full: the answer is that of comparing all.
fn answer<F: StorageFile>(
    questions: &mut [Question],
    snapshot: &Snapshot<F::Lent>,
    data: &DataFile<F>,
    workers: Workers<'_>,
) -> Result<()> {
    /// Shards whose vectors are compared by one task, at least, and how many tasks there are at most: each keeps candidates of its own.
    const PART: usize = 32;
    const PARTS: usize = 32;
    let most = RESULTS[RESULTS.len() - 1] as usize;
    let few = RESULTS.iter().map(|&k| k as usize).filter(|&k| k < limits::CALIBRATION_FEW.1).max().unwrap_or(most);
    // The first ones are asked for many.
    let k = |i: usize| if i < limits::CALIBRATION_FEW.0 { most } else { few };
    let asked: Vec<RoundedQuery> = questions.iter().map(|question| RoundedQuery::new(&question.vector)).collect();
    // So far away is the last one in some near shards, the question's own left out: farther ones are none of all.
    let bounds = workers.map(questions.len(), &|i| {
        let few = 2 + 4 * k(i) * snapshot.shards / snapshot.live.max(1) as usize;
        let mut top = TopK::new(k(i) + 1);
        for number in nearest_shards(snapshot, data.geometry(), &questions[i].vector, few) {
            let Some(shard) = shard_of(snapshot, number) else { continue };
            scan_slots(shard, (number, 0..shard.len()), data, &questions[i].vector, &mut top)?;
        }
        Ok(top.bound())
    })?;
    let bounds: Vec<f32> = bounds.into_iter().collect::<Result<_>>()?;
    let shards: Vec<_> = snapshot.iter().collect();
    let parts: Vec<_> = shards.chunks(shards.len().div_ceil(PARTS).max(PART)).collect();
    let found = workers.map(parts.len(), &|part| {
        let mut tops: Vec<TopK> = (0..questions.len()).map(|i| TopK::new(k(i))).collect();
        let mut rows = Rows::new(data.geometry());
        for &(number, shard) in parts[part] {
            workers.cancel.check()?;
            rows.fill(shard, data)?;
            for (((question, asked), &bound), top) in questions.iter().zip(&asked).zip(&bounds).zip(&mut tops) {
                rows.offer((question, asked), number, bound, top);
            }
        }
        Ok(tops.into_iter().map(TopK::into_sorted).collect::<Vec<_>>())
    })?;
    let mut tops: Vec<TopK> = (0..questions.len()).map(|i| TopK::new(k(i))).collect();
    for part in found {
        let candidates = tops.iter_mut().zip(part?);
        candidates.for_each(|(top, part)| part.into_iter().for_each(|candidate| top.offer(candidate)));
    }
    questions.iter_mut().zip(tops).for_each(|(question, top)| question.nearest = top.into_sorted());
    Ok(())
}

/// The live vectors of a shard.
struct Rows<'a> {
    geometry: &'a Geometry,
    vectors: Vec<f32>,
    postings: Vec<(StoredPosting, usize)>,
    rounded: RoundedRows,
}

impl<'a> Rows<'a> {
    fn new(geometry: &'a Geometry) -> Self {
        Self { geometry, vectors: Vec::new(), postings: Vec::new(), rounded: RoundedRows::new(geometry.dimension) }
    }

    /// Takes those of another shard.
    fn fill<F: StorageFile>(&mut self, shard: &Shard<F::Lent>, data: &DataFile<F>) -> Result<()> {
        self.vectors.clear();
        self.postings.clear();
        self.rounded.clear();
        let slots = self.geometry.extent_slots();
        for (e, extent) in shard.extents().iter().enumerate() {
            let bytes = extent.slots(data)?;
            for i in (0..extent.used()).filter(|i| shard.is_live(e * slots + i)) {
                let row = shard::row(bytes, i, self.geometry);
                self.vectors.extend_from_slice(row);
                self.rounded.push(row);
                self.postings.push((shard::record(bytes, i, self.geometry), e * slots + i));
            }
        }
        Ok(())
    }

    /// Offers those that are near enough, within a bound that is known besides, but for the question's own.
    fn offer(&mut self, (question, asked): (&Question, &RoundedQuery), number: u32, known: f32, top: &mut TopK) {
        let Geometry { metric, dimension, .. } = *self.geometry;
        let near = self.rounded.may_be_within(asked, metric, top.bound().min(known));
        let postings = near.iter().zip(&self.postings).enumerate().filter(|(_, (near, _))| **near);
        for (i, (_, &(posting, slot))) in postings {
            let distance = distance_by(metric, &question.vector, &self.vectors[i * dimension..(i + 1) * dimension]);
            if distance <= top.bound().min(known) && (number, slot) != question.own {
                top.offer(Candidate::new(distance, posting, (number, slot)));
            }
        }
    }
}

/// Questions of one half, to tune by, and of the other, to judge by. Moved ones are in both.
pub(super) fn halves<T: Copy>(asked: &[T]) -> [Vec<T>; 2] {
    let of = |half| asked.iter().enumerate().filter(move |(i, _)| i / limits::CALIBRATION_MOVED.0 % 2 == half);
    [0, 1].map(|half| of(half).map(|(_, &one)| one).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_ones_are_as_all_are() {
        for count in [1_024, 1_000, 600, 300, 8, 1] {
            let order = spread((0..count).collect::<Vec<usize>>());
            let few = &order[..limits::CALIBRATION_FEW.0.min(count)];
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
        let every = limits::CALIBRATION_MOVED.0;
        let moved = |half: &[usize]| half.iter().filter(|&&i| i % every == every - 1).count();
        let [tuned, held] = halves(&all);
        assert_eq!((tuned.len(), held.len()), (512, 512));
        assert_eq!((moved(&tuned), moved(&held)), (128, 128));
    }
}
