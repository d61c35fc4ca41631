//! Vectors rounded to bytes: a filter that rejects most vectors beyond a distance and never one within it.
//!
//! Invariant: the distance by which rounding moved a vector is known. By the triangle inequality (for products the
//! Cauchy–Schwarz inequality) the product of bytes bounds the exact distance. So an exact comparison with only the
//! vectors that pass the filter gives the result of a comparison with all.

use super::{
    padded,
    query::{largest, to_bytes},
};
use crate::{
    config::Metric,
    distance::{self, ByteBlocks, LANES, ROWS},
};

/// Largest relative rounding error of a distance in f32, here and in the kernels: sums of about a thousand terms in
/// each of 64 lanes.
pub(super) const SUMMED: f32 = 1e-4;

/// Smallest length in a bound. A product with a length of another vector, which is at most 2^63, stays far above the
/// numbers that are not exact to their last bit, or both lengths are too small to matter.
const LEAST_LENGTH: f32 = 1.0 / (1u128 << 100) as f32;

/// Smallest width of a bound: what products of numbers that are too small for f32 may add up to, of all components.
pub(super) const LEAST_WIDTH: f32 = 256.0 * f32::MIN_POSITIVE;

/// Returns a length that is not less; infinite if kernels may overflow.
fn length(square: f64) -> f32 {
    if square < f64::from(f32::MAX) { (square.sqrt() as f32).next_up().max(LEAST_LENGTH) } else { f32::INFINITY }
}

/// Vector rounded to bytes, and the distance by which rounding moved it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RoundedVector {
    /// Value of one step of the bytes.
    pub(super) step: f32,
    /// Squared norm of the rounded vector.
    pub(super) square: f32,
    /// Norm of the rounded vector, or slightly more.
    pub(super) norm: f32,
    /// Length of what rounding cut off, or slightly more.
    pub(super) moved: f32,
}

impl RoundedVector {
    /// Rounds a vector. `bytes` is replaced by its components, padded with zeros to a multiple of 64.
    #[must_use]
    pub fn new(vector: &[f32], bytes: &mut Vec<i8>) -> Self {
        let (lanes, rest) = vector.as_chunks::<LANES>();
        let most = rest.iter().fold(largest(vector), |most, x| most.max(x.abs()));
        let step = to_bytes(vector, most, bytes);
        // Sums are kept in lanes, because each addition to a single sum waits for the one before.
        let (mut square, mut moved) = ([0.0f64; LANES], [0.0f64; LANES]);
        let mut add = |lane: usize, x: f32, byte: i8| {
            let rounded = f64::from(f32::from(byte) * step);
            square[lane] += rounded * rounded;
            moved[lane] += (f64::from(x) - rounded).powi(2);
        };
        let (byte_lanes, byte_rest) = bytes.as_chunks::<LANES>();
        for (xs, bytes) in lanes.iter().zip(byte_lanes) {
            (0..LANES).for_each(|lane| add(lane, xs[lane], bytes[lane]));
        }
        rest.iter().zip(byte_rest).enumerate().for_each(|(lane, (&x, &byte))| add(lane, x, byte));
        let [square, moved] = [square, moved].map(|lanes| lanes.iter().sum::<f64>());
        bytes.resize(bytes.len().next_multiple_of(64), 0);
        Self { step, square: square as f32, norm: length(square), moved: length(moved) }
    }

    /// Returns a lower and an upper bound of the Euclidean distance to another vector. `product` is the product of the
    /// bytes.
    #[must_use]
    pub fn distance(&self, other: &Self, product: i32) -> (f32, f32) {
        let dot = product as f32 * (self.step * other.step);
        let apart = (self.square + other.square - 2.0 * dot).max(0.0).sqrt();
        // The factor covers the rounding of this arithmetic, which is a small part of the norms.
        let slack = self.moved + other.moved + 2e-3 * (self.square + other.square).sqrt();
        (apart - slack, apart + slack)
    }
}

/// Rounded vector that rows are compared with.
#[derive(Clone, Debug)]
pub struct RoundedQuery {
    bytes: Vec<i8>,
    /// 128 times the sum of the bytes: the amount that the offset of stored bytes adds to each product.
    offset: i32,
    rounded: RoundedVector,
}

impl RoundedQuery {
    /// Rounds a vector.
    #[must_use]
    pub fn new(vector: &[f32]) -> Self {
        let mut bytes = Vec::new();
        let rounded = RoundedVector::new(vector, &mut bytes);
        let offset = 128 * bytes.iter().map(|&byte| i32::from(byte)).sum::<i32>();
        Self { bytes, offset, rounded }
    }

    pub(super) fn bytes(&self) -> &[i8] {
        &self.bytes
    }

    pub(super) fn offset(&self) -> i32 {
        self.offset
    }

    pub(super) fn rounded(&self) -> RoundedVector {
        self.rounded
    }
}

/// Rows of rounded vectors.
#[derive(Clone, Debug)]
pub struct RoundedRows {
    blocks: ByteBlocks,
    rows: Vec<RoundedVector>,
    row: Vec<i8>,
    products: Vec<i32>,
    near: Vec<bool>,
}

impl RoundedRows {
    /// Creates an empty set of rows of `dimension` components.
    #[must_use]
    pub fn new(dimension: usize) -> Self {
        let blocks = ByteBlocks::new(padded(dimension));
        Self { blocks, rows: Vec::new(), row: Vec::new(), products: Vec::new(), near: Vec::new() }
    }

    /// Removes all rows.
    pub fn clear(&mut self) {
        self.blocks.clear();
        self.rows.clear();
    }

    /// Rounds a vector and appends it as a row.
    pub fn push(&mut self, vector: &[f32]) {
        self.rows.push(RoundedVector::new(vector, &mut self.row));
        self.blocks.push(&self.row);
    }

    /// Reports for each row whether its distance to the query, as a kernel computes it, may be `bound` or less.
    pub fn may_be_within(&mut self, query: &RoundedQuery, metric: Metric, bound: f32) -> &[bool] {
        self.near.clear();
        if bound == f32::INFINITY {
            self.near.resize(self.rows.len(), true);
            return &self.near;
        }
        self.products.resize(self.rows.len().next_multiple_of(ROWS), 0);
        distance::dot_bytes(&query.bytes, self.blocks.bytes(), &mut self.products);
        let RoundedVector { step, square, norm, moved } = query.rounded;
        let dot = |row: &RoundedVector, product: i32| (product - query.offset) as f32 * (step * row.step);
        let pairs = self.rows.iter().zip(&self.products);
        match metric {
            Metric::L2 => {
                let bound = bound.max(0.0).sqrt() * (1.0 + SUMMED) + moved;
                self.near.extend(pairs.map(|(row, &product)| {
                    let squares = square + row.square;
                    let apart = squares - 2.0 * dot(row, product);
                    let reach = (bound + row.moved) * (1.0 + SUMMED);
                    // Squares underflow below the smallest f32 and overflow above the largest; such rows pass.
                    let limit = reach * reach + 1e-5 * squares + LEAST_WIDTH;
                    !(apart > limit && apart < f32::INFINITY)
                }));
            }
            Metric::Cosine | Metric::Dot => {
                self.near.extend(pairs.map(|(row, &product)| {
                    let row_norm = row.norm + row.moved;
                    let slack = moved * row_norm + norm * row.moved + SUMMED * (norm + moved) * row_norm;
                    let most = dot(row, product) + slack * (1.0 + SUMMED) + LEAST_WIDTH;
                    !(most < -bound && most > f32::NEG_INFINITY)
                }));
            }
        }
        &self.near
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn none_that_is_near_is_taken_for_far_and_few_that_are_far_for_near() {
        let mut x = 7u64;
        let mut next = || {
            x = x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (x >> 40) as f32 / (1 << 23) as f32 - 1.0
        };
        let kinds = [(1.0, 0.0), (1e-21, 0.0), (1e12, 0.0), (1e18, 0.0), (1e19, 0.0), (1.0, 100.0), (1.0, 1e4)];
        for (dimension, (scale, offset)) in [1, 3, 64, 100, 384].into_iter().flat_map(|d| kinds.map(|kind| (d, kind))) {
            let mut vector = || -> Vec<f32> { (0..dimension).map(|_| (next() + offset) * scale).collect() };
            let (query, rows): (_, Vec<Vec<f32>>) = (vector(), (0..200).map(|_| vector()).collect());
            let mut rounded = RoundedRows::new(dimension);
            rounded.push(&query);
            rounded.clear();
            rows.iter().for_each(|row| rounded.push(row));
            for metric in [Metric::L2, Metric::Dot, Metric::Cosine] {
                let by = |row: &Vec<f32>| match metric {
                    Metric::L2 => distance::squared_l2(&query, row),
                    _ => -distance::dot(&query, row),
                };
                let distances: Vec<f32> = rows.iter().map(by).collect();
                let mut sorted = distances.clone();
                sorted.sort_by(f32::total_cmp);
                for bound in [sorted[0], sorted[5], sorted[199], f32::INFINITY] {
                    let near = rounded.may_be_within(&RoundedQuery::new(&query), metric, bound);
                    let missed = distances.iter().zip(near).filter(|(distance, near)| **distance <= bound && !**near);
                    assert_eq!(missed.count(), 0, "{dimension} {scale} {offset} {metric:?} {bound}");
                    let usual = dimension == 384 && scale == 1.0 && offset == 0.0 && bound == sorted[5];
                    let count = near.iter().filter(|near| **near).count();
                    assert!(!usual || count < 40, "{count} for {metric:?}");
                }
            }
        }
    }
}
