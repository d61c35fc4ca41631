//! A query as codes and centroids are compared with it: rotated and quantised once, for all cells.

use super::{Frame, gather_bits};
use crate::{
    config::Metric,
    distance::{self, LANES},
    limits,
};

/// Largest level of a query component by the codes' kernel: 4 bits, as odd numbers from −15 to 15.
const LEVELS: f32 = 15.0;
/// Largest byte of a query or centroid component.
const BYTE: f32 = 127.0;
/// What a sum of a few f32 is rounded by, in units of its largest term: their last bit.
const ROUNDED: f32 = 2.0 * f32::EPSILON;
/// Adding this rounds a number of small size to the nearest integer, which then stands in its low bits.
const ROUND: f32 = 12_582_912.0;

fn nearest(x: f32) -> i32 {
    (x + ROUND).to_bits() as i32 - ROUND.to_bits() as i32
}

pub(super) fn largest(values: &[f32]) -> f32 {
    let mut lanes = [0.0f32; LANES];
    for values in values.as_chunks::<LANES>().0 {
        for (most, x) in lanes.iter_mut().zip(values) {
            *most = if x.abs() > *most { x.abs() } else { *most };
        }
    }
    lanes.into_iter().fold(0.0, f32::max)
}

/// Components as bytes, of which the largest is `most`, and what one step of them is worth.
pub(super) fn to_bytes(values: &[f32], most: f32, bytes: &mut Vec<i8>) -> f32 {
    // A vector of nothing, or of numbers too small to be divided by, is all zeros.
    let scale = if most > f32::MIN_POSITIVE * BYTE { BYTE / most } else { 0.0 };
    bytes.clear();
    bytes.extend(values.iter().map(|x| nearest(x * scale) as i8));
    if scale > 0.0 { most / BYTE } else { 0.0 }
}

/// A centroid as it is stored beside its bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct CentroidBytes {
    /// What one step of the bytes is worth.
    pub step: f32,
    /// Square of the norm.
    pub square: f32,
    /// Its product with the frame's centre, where the metric is of products.
    pub along: f32,
}

impl CentroidBytes {
    /// Quantises a centroid of the frame whose rotated centre is `turned`, and sets it to what its bytes say.
    pub fn of(values: &mut [f32], turned: &[f32], bytes: &mut Vec<i8>) -> Self {
        let step = to_bytes(values, largest(values), bytes);
        values.iter_mut().zip(&*bytes).for_each(|(x, &byte)| *x = f32::from(byte) * step);
        Self { step, square: distance::dot(values, values), along: distance::dot(values, turned) }
    }
}

/// A rotated query as bytes: what it is compared with centroids by.
#[derive(Clone, Debug, Default)]
pub struct ByteQuery {
    metric: Metric,
    /// Its components.
    pub bytes: Vec<i8>,
    step: f32,
    /// 128 times the sum of the bytes: what the offset of stored bytes adds to each product.
    offset: i32,
    square: f32,
    /// Its product with the frame's centre, where the metric is of products.
    along: f32,
    /// The norm of the vector as it was given.
    norm: f32,
    /// By how much the bytes miss a product with a centroid, in units of the centroid's norm: a standard deviation.
    missed: f32,
}

impl ByteQuery {
    /// Quantises a vector of a frame, by L2.
    #[must_use]
    pub fn new(rotated: &[f32]) -> Self {
        let mut query = Self::default();
        query.set(rotated, largest(rotated), Metric::L2, (0.0, 0.0));
        query
    }

    fn set(&mut self, rotated: &[f32], most: f32, metric: Metric, (along, norm): (f32, f32)) {
        self.metric = metric;
        self.along = along;
        self.norm = norm;
        self.step = to_bytes(rotated, most, &mut self.bytes);
        let (mut sum, mut square, mut moved) = ([0i32; LANES], [0.0f32; LANES], [0.0f32; LANES]);
        for (xs, bytes) in rotated.as_chunks::<LANES>().0.iter().zip(self.bytes.as_chunks::<LANES>().0) {
            for j in 0..LANES {
                let rest = xs[j] - f32::from(bytes[j]) * self.step;
                sum[j] += i32::from(bytes[j]);
                square[j] += xs[j] * xs[j];
                moved[j] += rest * rest;
            }
        }
        self.offset = 128 * sum.into_iter().sum::<i32>();
        self.square = square.into_iter().sum();
        let moved: f32 = moved.into_iter().sum();
        self.missed = (moved / rotated.len() as f32).sqrt();
    }

    /// The query's distance to a centroid, of which `product` is what the kernel said, and the square of the Euclidean
    /// one.
    #[must_use]
    pub fn base(&self, centroid: CentroidBytes, product: i32) -> (f32, f32) {
        let dot = (product - self.offset) as f32 * (self.step * centroid.step);
        let square = (self.square + centroid.square - 2.0 * dot).max(0.0);
        match self.metric {
            Metric::L2 => (square, square),
            // (q − m)·c + m·c + q·m, where q, c and m are the query, the centroid in the frame, and the centre.
            Metric::Dot | Metric::Cosine => (-(dot + centroid.along + self.along), square),
        }
    }

    /// What the distances of postings near a centroid vary by, but for what they are apart from it: `square` is that of the
    /// query's distance to it, and `error` that of [`base_error`](Self::base_error). Never less than what rounding makes of a distance: of
    /// a query that is just where a centroid is, the square may come out as zero.
    #[must_use]
    pub fn unit(&self, square: f32, error: f32) -> f32 {
        match self.metric {
            Metric::L2 => square.max(error).sqrt(),
            Metric::Dot | Metric::Cosine => self.norm,
        }
    }

    /// A standard deviation of that distance: what bytes say of the query is not all of it, and what is added up is rounded.
    #[must_use]
    pub fn base_error(&self, centroid: CentroidBytes) -> f32 {
        let norm = centroid.square.sqrt();
        match self.metric {
            Metric::L2 => 2.0 * self.missed * norm + ROUNDED * (self.square + centroid.square),
            Metric::Dot | Metric::Cosine => {
                let sum = self.along.abs() + centroid.along.abs() + self.square.sqrt() * norm;
                self.missed * norm + ROUNDED * sum
            }
        }
    }
}

/// A query, ready for any number of cells.
#[derive(Clone, Debug, Default)]
pub struct Query {
    /// For each word of signs, its four planes of bits.
    pub planes: Vec<[u64; 4]>,
    /// What one step of the planes is worth.
    pub plane_step: f32,
    /// Square of the norm of what the planes miss of the query.
    pub plane_missed: f32,
    /// The query as bytes.
    pub bytes: ByteQuery,
    rotated: Vec<f32>,
}

impl Query {
    /// Quantises a query in a frame.
    #[must_use]
    pub fn new(vector: &[f32], frame: &Frame, metric: Metric) -> Self {
        let mut query = Self::default();
        query.set(vector, frame, metric);
        query
    }

    /// Makes it another query, in the room it has.
    pub fn set(&mut self, vector: &[f32], frame: &Frame, metric: Metric) {
        let mut rotated = std::mem::take(&mut self.rotated);
        frame.place(vector, &mut rotated);
        let products = match metric {
            Metric::L2 => (0.0, 0.0),
            Metric::Dot | Metric::Cosine => (frame.product(vector), distance::dot(vector, vector).sqrt()),
        };
        self.set_rotated(&rotated, metric, products);
        self.rotated = rotated;
    }

    /// The same with a vector of the frame, by L2.
    pub fn set_placed(&mut self, rotated: &[f32]) {
        self.set_rotated(rotated, Metric::L2, (0.0, 0.0));
    }

    /// The vector in the frame.
    #[must_use]
    pub fn placed(&self) -> &[f32] {
        &self.rotated
    }

    fn set_rotated(&mut self, rotated: &[f32], metric: Metric, products: (f32, f32)) {
        let most = largest(rotated);
        self.plane_step = most / LEVELS;
        let scale = if most > f32::MIN_POSITIVE * LEVELS { LEVELS / most } else { 0.0 };
        let mut missed = [0.0f32; LANES];
        self.planes.clear();
        self.planes.extend(rotated.as_chunks::<64>().0.iter().map(|values| {
            let mut levels = [0u8; 64];
            for (i, (level, x)) in levels.iter_mut().zip(values).enumerate() {
                *level = nearest((x * scale + LEVELS) * 0.5) as u8;
                let rest = x - (f32::from(*level) * 2.0 - LEVELS) * self.plane_step;
                missed[i % LANES] += rest * rest;
            }
            let mut planes = [0u64; 4];
            for (i, eight) in levels.as_chunks::<8>().0.iter().enumerate() {
                let eight = u64::from_le_bytes(*eight);
                for (j, plane) in planes.iter_mut().enumerate() {
                    *plane |= gather_bits(eight >> j & 0x0101_0101_0101_0101) << (8 * i);
                }
            }
            planes
        }));
        self.plane_missed = missed.into_iter().sum();
        self.bytes.set(rotated, most, metric, products);
    }

    /// A standard deviation of what a code says, in units of its factor: `square` is that of the query's distance to the
    /// code's centroid. A residual's signs are not the residual, and the planes are not the query.
    #[must_use]
    pub fn code_error(&self, square: f32) -> f32 {
        (limits::CODE_DEVIATION * limits::CODE_DEVIATION * square + self.plane_missed).sqrt()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::{
        codes::{Rotation, encode, medians},
        distance::ByteBlocks,
    };

    fn noise(n: usize, seed: u32) -> Vec<f32> {
        let mut x = seed.wrapping_mul(747_796_405) | 1;
        (0..n)
            .map(|_| {
                let mut sum = 0.0;
                for _ in 0..4 {
                    x = x.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                    sum += (x >> 8) as f32 / (1 << 24) as f32 - 0.5;
                }
                sum
            })
            .collect()
    }

    fn metrics(dimensions: &[usize]) -> impl Iterator<Item = (usize, Metric)> {
        dimensions.iter().flat_map(|&d| [Metric::Cosine, Metric::Dot, Metric::L2].map(|m| (d, m)))
    }

    /// The estimate is unbiased, and its error what RaBitQ says: the test that the factors mean what they should. Far from
    /// the origin, and far from the frame's centre, too.
    #[test]
    fn estimates_are_near_the_distances() {
        for ((dimension, metric), (offset, apart)) in
            metrics(&[100, 384, 768]).flat_map(|of| [(0.0, 0.0), (1e3, 0.0), (0.0, 4.0), (30.0, 4.0)].map(|at| (of, at)))
        {
            let centre = vec![offset; dimension];
            let frame = Frame::new(Arc::new(Rotation::new(dimension, 5)), centre, metric);
            let mut placed = Vec::new();
            let centroid: Vec<f32> = noise(dimension, 1).iter().map(|x| x + apart + offset).collect();
            frame.place(&centroid, &mut placed);
            let mut centroid_values = placed.clone();
            let mut bytes = Vec::new();
            let stored = CentroidBytes::of(&mut centroid_values, frame.turned(), &mut bytes);
            let mut rows = ByteBlocks::new(frame.len());
            rows.push(&bytes);
            let (mut bias, mut spread, mut base_bias, mut base_spread) = (0.0f64, 0.0f64, 0.0f64, 0.0f64);
            let n = 400;
            for seed in 0..n {
                let near = |seed: u32, part: f32| -> Vec<f32> {
                    let own = noise(dimension, seed);
                    centroid.iter().zip(own).map(|(c, x)| (c - offset) * 0.8 + offset + part * x).collect()
                };
                let (query, posting) = (near(seed * 2 + 10, 0.9), near(seed * 2 + 11, 0.7));
                let q = Query::new(&query, &frame, metric);
                frame.place(&posting, &mut placed);
                let mut signs = Vec::new();
                let code = encode(&placed, &centroid_values, frame.turned(), metric, &mut signs);
                let mut products = vec![0; 16];
                distance::dot_bytes(&q.bytes.bytes, rows.bytes(), &mut products);
                let (base, square) = q.bytes.base(stored, products[0]);
                let half = |bits: u16| f32::from_bits(u32::from(bits) << 16);
                let different: u32 = (0..4)
                    .map(|plane| {
                        let bits = signs.iter().zip(&q.planes).map(|(s, p)| (s ^ p[plane]).count_ones());
                        bits.sum::<u32>() << plane
                    })
                    .sum();
                let product = q.plane_step * (15 * frame.len() as i32 - 2 * different as i32) as f32;
                let estimate = f64::from(base + half(code.add) - half(code.factor) * product);
                let terms = query.iter().zip(&posting).map(|(&q, &x)| (f64::from(q), f64::from(x)));
                let exact: f64 = match metric {
                    Metric::L2 => terms.map(|(q, x)| (q - x).powi(2)).sum(),
                    _ => -terms.map(|(q, x)| q * x).sum::<f64>(),
                };
                // What halves lose of the part that does not depend on the query is on the safe side.
                let lost = f64::from(half(code.add).abs()) / 256.0;
                let base_error = f64::from(q.bytes.base_error(stored));
                let unit = f64::from(half(code.factor) * q.code_error(square)).hypot(base_error).hypot(lost);
                bias += (estimate - exact) / unit;
                spread += ((estimate - exact) / unit).powi(2);
                let true_base: f64 = match metric {
                    Metric::L2 => q.placed().iter().zip(&centroid_values).map(|(q, c)| f64::from(q - c).powi(2)).sum(),
                    _ => {
                        let products = q.placed().iter().zip(&centroid_values).zip(frame.turned());
                        let product: f64 = products.map(|((q, c), m)| f64::from(q + m) * f64::from(*c)).sum();
                        -product - f64::from(frame.product(&query))
                    }
                };
                base_bias += (f64::from(base) - true_base) / base_error;
                base_spread += ((f64::from(base) - true_base) / base_error).powi(2);
            }
            let of = |sum: f64| sum / f64::from(n);
            let (bias, spread, base_bias, base_spread) =
                (of(bias), of(spread).sqrt(), of(base_bias), of(base_spread).sqrt());
            let case = format!("{dimension} {metric} {offset} {apart}");
            assert!((-1.0..0.3).contains(&bias), "{case}: bias {bias}");
            // Where much is rounded what is allowed for is more than what comes.
            let least = if (offset, apart) == (0.0, 0.0) { 0.7 } else { 0.1 };
            assert!((least..1.5).contains(&spread), "{case}: spread {spread}");
            assert!(base_bias.abs() < 0.3 && base_spread < 1.5, "{case}: base {base_bias} {base_spread}");
        }
    }

    #[test]
    fn a_query_of_zeros_is_a_query() {
        let frame = Frame::new(Arc::new(Rotation::new(64, 1)), vec![0.0; 64], Metric::L2);
        let query = Query::new(&[0.0; 64], &frame, Metric::L2);
        let (base, square) = query.bytes.base(CentroidBytes { step: 1.0, square: 4.0, along: 0.0 }, 0);
        assert_eq!((base, square, query.code_error(4.0)), (4.0, 4.0, 1.2));
    }

    #[test]
    fn a_median_is_among_most() {
        let rows = [1.0, 5.0, 2.0, 1e30, 3.0, 4.0, 1e12, 6.0, -1e20, 7.0];
        assert_eq!(medians(&rows, 2), [2.0, 6.0]);
        assert_eq!(medians(&[3.0, 4.0], 2), [3.0, 4.0]);
    }
}
