//! Random rotation by sign flips and butterflies, which costs additions in `O(n log n)` instead of a matrix product.

use rand::{Rng as _, RngExt as _};

use super::padded;
use crate::{distance, env::derived_rng};

/// Rounds of sign flips and butterflies. After two rounds each component depends on all; two more even out the mixture.
pub const ROUNDS: usize = 4;

/// Number of the rotation's generator among those of an index, far from the counters of other draws.
const COUNTER: u64 = u64::MAX;

/// Random rotation of an index: alternating random sign flips and Hadamard butterflies (Ailon & Chazelle, STOC 2006),
/// with a step of Kac's walk if the length is not a power of two. It is orthonormal and never changes during the life
/// of an index.
#[derive(Clone, Debug)]
pub struct Rotation {
    dimension: usize,
    /// Sign bit, in the top bit, of each component in each round.
    flips: Vec<u32>,
}

impl Rotation {
    /// Creates the rotation of an index.
    #[must_use]
    pub fn new(dimension: usize, index_id: u128) -> Self {
        let mut rng = derived_rng(index_id, COUNTER);
        let flips = (0..ROUNDS * padded(dimension)).map(|_| rng.next_u32() & 1 << 31).collect();
        Self { dimension, flips }
    }

    /// Returns the number of components of a rotated vector.
    #[must_use]
    pub fn len(&self) -> usize {
        padded(self.dimension)
    }

    /// Reports whether the rotation has no components. Always false for a dimension of at least 1.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Rotates a vector into `out`, which is resized to [`len`](Self::len).
    ///
    /// # Panics
    /// Panics if the vector has another dimension.
    pub fn rotate(&self, vector: &[f32], out: &mut Vec<f32>) {
        assert_eq!(vector.len(), self.dimension, "a vector of another dimension");
        out.clear();
        out.extend_from_slice(vector);
        self.rotate_in_place(out);
    }

    /// Rotates a vector in place, and pads it with zeros to [`len`](Self::len).
    pub(super) fn rotate_in_place(&self, vector: &mut Vec<f32>) {
        vector.resize(self.len(), 0.0);
        distance::rotate(&self.flips, vector);
    }
}

/// Draws `count` distinct numbers below `n` at random, in ascending order; all of them if `count` exceeds `n`.
pub fn sample(n: usize, count: usize, index_id: u128, counter: u64) -> Vec<usize> {
    let mut rng = derived_rng(index_id, counter);
    let mut left = count.min(n);
    // Selection sampling (Knuth, TAOCP 2, algorithm S).
    (0..n)
        .filter(|&i| {
            let take = left > 0 && rng.random_range(0..(n - i) as u64) < left as u64;
            left -= usize::from(take);
            take
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rotated(rotation: &Rotation, vector: &[f32]) -> Vec<f32> {
        let mut out = Vec::new();
        rotation.rotate(vector, &mut out);
        out
    }

    #[test]
    fn lengths_and_angles_stay() {
        for dimension in [1, 2, 3, 63, 64, 65, 100, 128, 300, 384, 768, 1_000, 1_536] {
            let rotation = Rotation::new(dimension, 7);
            let a: Vec<f32> = (0..dimension).map(|i| (i as f32 * 0.7).sin()).collect();
            let b: Vec<f32> = (0..dimension).map(|i| (i as f32 * 0.3).cos()).collect();
            let exact = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(x, y)| f64::from(x * y)).sum::<f64>();
            let (ra, rb) = (rotated(&rotation, &a), rotated(&rotation, &b));
            for (x, y, rx, ry) in [(&a, &a, &ra, &ra), (&a, &b, &ra, &rb)] {
                assert!((exact(x, y) - exact(rx, ry)).abs() < 1e-3, "dimension {dimension}");
            }
        }
    }

    #[test]
    fn one_component_is_spread_over_all() {
        for dimension in [64, 100, 300, 384, 1_536] {
            let rotation = Rotation::new(dimension, 3);
            for at in [0, dimension / 2, dimension - 1] {
                let mut vector = vec![0.0; dimension];
                vector[at] = 1.0;
                let largest = rotated(&rotation, &vector).into_iter().map(f32::abs).fold(0.0, f32::max);
                assert!(largest < 9.0 / (dimension as f32).sqrt(), "dimension {dimension}, component {at}: {largest}");
            }
        }
    }

    #[test]
    fn a_sample_has_the_size_asked_for() {
        for (n, count) in [(0, 5), (5, 0), (5, 9), (100, 10)] {
            let found = sample(n, count, 1, 2);
            assert_eq!(found.len(), count.min(n));
            assert!(found.windows(2).all(|pair| pair[0] < pair[1]) && found.iter().all(|&i| i < n));
        }
    }
}
