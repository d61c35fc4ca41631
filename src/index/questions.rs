//! Questions of which the true answers are known: vectors that are asked for to find out what searches reach.
//!
//! Invariants:
//! 1. The truth is that of distances computed to every posting. No estimate has a say in it.
//! 2. They are different vectors, and each is left out of its own answer.
//! 3. Of every [`CALIBRATION_MOVED`](limits::CALIBRATION_MOVED) ones one is moved off its place, for nobody asks for just
//!    what is stored.

use std::collections::BTreeSet;

use super::{
    search::{distances_by, shard_of},
    snapshot::Snapshot,
    topk::{Candidate, TopK},
};
use crate::{
    cells::held_out,
    config::Metric,
    distance,
    env::Workers,
    error::Result,
    format::cells::RESULTS,
    limits,
    shard::{self, DataFile},
    storage::StorageFile,
};

/// Something that is asked for.
pub(super) struct Question {
    pub(super) vector: Vec<f32>,
    /// The shard's number and the slot of the posting that is left out of the answer.
    pub(super) own: (u32, usize),
    /// Whether it is that posting's vector, and not one beside it.
    pub(super) stored: bool,
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
            questions.push(Question { vector, own, stored: true, nearest: Vec::new() });
        }
    }
    let mut questions = spread(questions);
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

/// Finds the true nearest of each question.
fn answer<F: StorageFile>(
    questions: &mut [Question],
    snapshot: &Snapshot<F::Lent>,
    data: &DataFile<F>,
    workers: Workers<'_>,
) -> Result<()> {
    // Questions that stay in a second-level cache, and rows that stay in the first, while each is compared with each.
    const QUESTIONS: usize = 64;
    const ROWS: usize = 16;
    let geometry = data.geometry();
    let (slots, most) = (geometry.extent_slots(), RESULTS[RESULTS.len() - 1] as usize);
    let few = RESULTS.iter().map(|&k| k as usize).filter(|&k| k < limits::CALIBRATION_FEW.1).max().unwrap_or(most);
    let parts: Vec<&[Question]> = questions.chunks(QUESTIONS).collect();
    let found = workers.map(parts.len(), &|part| {
        // The first ones are asked for many.
        let k = |i: usize| if part * QUESTIONS + i < limits::CALIBRATION_FEW.0 { most } else { few };
        let mut tops: Vec<TopK> = (0..parts[part].len()).map(|i| TopK::new(k(i))).collect();
        let (mut rows, mut distances) = (Vec::with_capacity(ROWS * geometry.dimension), [0.0; ROWS]);
        for (number, shard) in snapshot.iter() {
            workers.cancel.check()?;
            for (e, extent) in shard.extents().iter().enumerate() {
                let bytes = extent.slots(data)?;
                let live: Vec<usize> = (0..extent.used()).filter(|i| shard.is_live(e * slots + i)).collect();
                for some in live.chunks(ROWS) {
                    rows.clear();
                    some.iter().for_each(|&i| rows.extend_from_slice(shard::row(bytes, i, geometry)));
                    let distances = &mut distances[..some.len()];
                    for (question, top) in parts[part].iter().zip(&mut tops) {
                        distances_by(geometry.metric, &question.vector, &rows, distances);
                        for (&i, &distance) in some.iter().zip(&*distances) {
                            let slot = e * slots + i;
                            if distance <= top.bound() && (number, slot) != question.own {
                                let posting = shard::record(bytes, i, geometry);
                                top.offer(Candidate::new(distance, posting, (number, slot)));
                            }
                        }
                    }
                }
            }
        }
        Ok(tops.into_iter().map(TopK::into_sorted).collect::<Vec<_>>())
    })?;
    let found = found.into_iter().collect::<Result<Vec<_>>>()?;
    questions.iter_mut().zip(found.into_iter().flatten()).for_each(|(question, found)| question.nearest = found);
    Ok(())
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
