//! Rows of vectors rounded to bytes, which give bounds of their distances to a query.
//!
//! Invariant: the distance that a kernel computes from the exact vectors lies within the bounds. The length of the part
//! that rounding cut off is known for each vector, so the Cauchy–Schwarz inequality bounds what it adds to a product; the
//! rest allows for the rounding of sums. So what the bounds exclude needs no exact vector.

use super::{
    padded,
    rounded::{LEAST_WIDTH, RoundedQuery, RoundedVector, SUMMED},
};
use crate::{
    config::Metric,
    distance::{self, ByteBlocks, ROWS},
};

/// Rows compared by one call of the kernel.
const ROWS_AT_ONCE: usize = 32 * ROWS;

/// Immutable once filled, and shared by searches.
#[derive(Debug)]
pub struct RowBounds {
    metric: Metric,
    /// Point from which vectors are measured by L2, so that their bytes express differences. Empty by other metrics, where
    /// products have no such point.
    centre: Vec<f32>,
    blocks: ByteBlocks,
    /// Terms of the bounds, by block of rows.
    terms: Vec<RowTerms>,
}

/// Terms of the bounds of a block of rows.
#[derive(Clone, Debug, Default)]
struct RowTerms {
    /// Value of one step of the bytes.
    step: [f32; ROWS],
    /// Squared norm by L2; otherwise 0.
    square: [f32; ROWS],
    /// Norm of the rounded vector.
    norm: [f32; ROWS],
    /// Length of what rounding cut off.
    moved: [f32; ROWS],
}

/// Bounds of the distances of a block of rows, lower and upper. An infinite one tells nothing.
#[derive(Clone, Copy, Debug)]
pub struct BlockBounds {
    /// Number of the first row.
    pub first: usize,
    /// No distance is less.
    pub lower: [f32; ROWS],
    /// No distance is greater.
    pub upper: [f32; ROWS],
}

impl RowBounds {
    /// Creates an empty set with room for `rows` rows. `centre` should be among the vectors; only L2 uses it.
    #[must_use]
    pub fn new(metric: Metric, centre: &[f32], rows: usize) -> Self {
        let mut blocks = ByteBlocks::new(padded(centre.len()));
        blocks.reserve(rows);
        let centre = if metric == Metric::L2 { centre.to_vec() } else { Vec::new() };
        Self { metric, centre, blocks, terms: Vec::with_capacity(rows.div_ceil(ROWS)) }
    }

    /// Returns the number of rows.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.blocks.rows()
    }

    /// Returns the vector's differences from the centre by L2, otherwise the vector.
    fn centred<'v>(&self, vector: &'v [f32], differences: &'v mut Vec<f32>) -> &'v [f32] {
        if self.metric != Metric::L2 {
            return vector;
        }
        differences.clear();
        differences.extend(vector.iter().zip(&self.centre).map(|(x, c)| x - c));
        differences
    }

    /// Appends a row.
    ///
    /// # Panics
    /// Panics if the vector has another length than the centre.
    pub fn push(&mut self, vector: &[f32], scratch: &mut RowScratch) {
        let vector = self.centred(vector, &mut scratch.differences);
        let RoundedVector { step, norm, moved, .. } = RoundedVector::new(vector, &mut scratch.bytes);
        let (block, lane) = (self.blocks.rows() / ROWS, self.blocks.rows() % ROWS);
        self.blocks.push(&scratch.bytes);
        self.terms.resize_with(block + 1, RowTerms::default);
        let terms = &mut self.terms[block];
        (terms.step[lane], terms.norm[lane], terms.moved[lane]) = (step, norm, moved);
        terms.square[lane] = if self.metric == Metric::L2 { squared_norm(vector) } else { 0.0 };
    }

    /// Calls `visit` with the bounds of each block of rows. Rows behind the last one have bounds that mean nothing.
    pub fn for_each_block(&self, query: &[f32], mut visit: impl FnMut(&BlockBounds)) {
        let mut differences = Vec::new();
        let vector = self.centred(query, &mut differences);
        let query = RoundedQuery::new(vector);
        let terms = QueryTerms::of(&query, self.metric, vector);
        let mut products = [0; ROWS_AT_ONCE];
        let row_bytes = query.bytes().len();
        for (part, blocks) in self.blocks.bytes().chunks(ROWS_AT_ONCE * row_bytes).enumerate() {
            let products = &mut products[..blocks.len() / row_bytes];
            distance::dot_bytes(query.bytes(), blocks, products);
            for (i, products) in products.as_chunks::<ROWS>().0.iter().enumerate() {
                let block = part * ROWS_AT_ONCE / ROWS + i;
                visit(&terms.bounds(block * ROWS, products, &self.terms[block]));
            }
        }
    }
}

/// Buffers for rounding rows.
#[derive(Debug, Default)]
pub struct RowScratch {
    differences: Vec<f32>,
    bytes: Vec<i8>,
}

fn squared_norm(vector: &[f32]) -> f32 {
    vector.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>() as f32
}

/// Terms of the bounds that a query contributes.
struct QueryTerms {
    offset: i32,
    /// Factor of the product of bytes, without the row's step.
    factor: f32,
    /// Squared norm by L2; otherwise 0.
    square: f32,
    /// Part of the bound's width per norm of a row, and per length of what its rounding cut off.
    per_norm: f32,
    per_moved: f32,
}

impl QueryTerms {
    fn of(query: &RoundedQuery, metric: Metric, vector: &[f32]) -> Self {
        let RoundedVector { step, norm, moved, .. } = query.rounded();
        let norm = norm + moved;
        let (times, square) = if metric == Metric::L2 { (2.0, squared_norm(vector)) } else { (1.0, 0.0) };
        // What rounding cut off the query meets the rounded row, and what it cut off the row meets the whole query. By L2
        // the rounding of sums is a part of the squares, otherwise of the product of the norms.
        Self {
            offset: query.offset(),
            factor: times * step,
            square,
            per_norm: times * (moved + SUMMED * norm) * (1.0 + SUMMED),
            per_moved: times * norm * (1.0 + 3.0 * SUMMED),
        }
    }

    #[inline]
    fn bounds(&self, first: usize, products: &[i32; ROWS], row: &RowTerms) -> BlockBounds {
        let mut bounds = BlockBounds { first, lower: [0.0; ROWS], upper: [0.0; ROWS] };
        for (lane, product) in products.iter().enumerate() {
            let squares = self.square + row.square[lane];
            let middle = squares - (product - self.offset) as f32 * (self.factor * row.step[lane]);
            let width = self.per_norm * row.norm[lane] + self.per_moved * row.moved[lane];
            let width = width + 4.0 * SUMMED * squares + LEAST_WIDTH;
            // What overflows tells nothing. A comparison with what is not a number is false.
            let tells = middle.abs() + width < f32::MAX;
            bounds.lower[lane] = if tells { middle - width } else { f32::NEG_INFINITY };
            bounds.upper[lane] = if tells { middle + width } else { f32::INFINITY };
        }
        bounds
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Lengths that round to half of themselves, and steps whose product is too small for f32.
    #[test]
    fn bounds_hold_where_numbers_are_too_small_for_their_last_bits() {
        let least = f32::from_bits(1);
        let small = (vec![least; 2], vec![vec![4.5e18, 0.0], vec![3.1e18, 3.1e18]]);
        let turned = (vec![3.1e18, 3.1e18], vec![vec![least; 2], vec![least, 0.0]]);
        let long = (vec![3.3e-21; 65_536], vec![vec![3.3e-21; 65_536], vec![-3.3e-21; 65_536]]);
        for (query, rows) in [small, turned, long] {
            for metric in [Metric::Dot, Metric::L2] {
                let (mut bounded, mut scratch) = (RowBounds::new(metric, &rows[0], 2), RowScratch::default());
                rows.iter().for_each(|row| bounded.push(row, &mut scratch));
                bounded.for_each_block(&query, |block| {
                    for (i, row) in rows.iter().enumerate() {
                        let distance = match metric {
                            Metric::L2 => distance::squared_l2(&query, row),
                            _ => -distance::dot(&query, row),
                        };
                        let within = distance >= block.lower[i] && distance <= block.upper[i];
                        assert!(within, "{metric:?} {i}: {distance:e} in {:e} to {:e}", block.lower[i], block.upper[i]);
                    }
                });
            }
        }
    }

    #[test]
    fn every_distance_is_within_its_bounds_and_bounds_are_close() {
        let mut x = 7u64;
        let mut next = || {
            x = x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (x >> 40) as f32 / (1 << 23) as f32 - 1.0
        };
        // Scale of the query and of the rows, and offset of all components.
        let kinds = [
            (1.0, 1.0, 0.0),
            (1e-21, 1e-21, 0.0),
            (1e-40, 1e-40, 0.0),
            (1e-45, 1e18, 0.0),
            (1e18, 1e-45, 0.0),
            (1e-24, 1e17, 0.0),
            (1e17, 1e-24, 0.0),
            (1e-3, 1e-30, 0.0),
            (1e12, 1e12, 0.0),
            (1e18, 1e18, 0.0),
            (1e19, 1e19, 0.0),
            (1.0, 1.0, 100.0),
            (1.0, 1.0, 1e4),
        ];
        for (dimension, (of_query, scale, offset)) in
            [1, 2, 3, 64, 100, 384].into_iter().flat_map(|d| kinds.map(|kind| (d, kind)))
        {
            let mut vector = |scale: f32| -> Vec<f32> { (0..dimension).map(|_| (next() + offset) * scale).collect() };
            let (query, rows): (_, Vec<Vec<f32>>) = (vector(of_query), (0..600).map(|_| vector(scale)).collect());
            for metric in [Metric::L2, Metric::Dot, Metric::Cosine] {
                let (mut bounded, mut scratch) = (RowBounds::new(metric, &rows[7], 9), RowScratch::default());
                rows.iter().for_each(|row| bounded.push(row, &mut scratch));
                assert_eq!(bounded.rows(), 600);
                let mut widths = Vec::new();
                let mut seen = 0;
                bounded.for_each_block(&query, |block| {
                    assert_eq!(block.first, seen);
                    for (i, row) in rows[seen..].iter().take(ROWS).enumerate() {
                        let distance = match metric {
                            Metric::L2 => distance::squared_l2(&query, row),
                            _ => -distance::dot(&query, row),
                        };
                        let within = distance.is_nan() || distance >= block.lower[i] && distance <= block.upper[i];
                        assert!(within, "{dimension} {scale} {offset} {metric:?}: {distance:e} in {block:?}");
                        widths.push((block.upper[i] - block.lower[i]) / distance.abs());
                        seen += 1;
                    }
                });
                assert_eq!(seen, 600);
                widths.sort_by(f32::total_cmp);
                // By L2 an offset that all vectors have changes nothing.
                let usual = dimension == 384
                    && (of_query, scale) == (1.0, 1.0)
                    && (offset == 0.0 || metric == Metric::L2 && offset == 100.0);
                let most = if metric == Metric::L2 { 0.05 } else { 1.0 };
                assert!(!usual || widths[300] < most, "{} for {metric:?} {offset}", widths[300]);
            }
        }
    }
}
