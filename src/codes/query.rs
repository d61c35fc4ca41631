//! Query in the form that codes and centroids are compared with: rotated and quantised once for all cells.

use super::{CoordinateFrame, gather_bits};
use crate::{
    config::Metric,
    distance::{self, LANES},
    tuning,
};

/// Largest level of a query component in the kernel of codes: 4 bits, for the odd numbers from −15 to 15.
const LEVELS: f32 = 15.0;
/// Largest byte of a query component or a centroid component.
const BYTE: f32 = 127.0;
/// Rounding error of a sum of a few f32, in units of its largest term: their last bit.
const ROUNDED: f32 = 2.0 * f32::EPSILON;
/// Number whose addition rounds a small number to the nearest integer, which is then in the low bits.
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

/// Quantises components to bytes, scaled so that the magnitude `most`, which must be the largest, becomes 127. Returns
/// the value of one step.
pub(super) fn to_bytes(values: &[f32], most: f32, bytes: &mut Vec<i8>) -> f32 {
    // A vector of zeros, or of numbers too small to divide by, becomes all zeros.
    let scale = if most > f32::MIN_POSITIVE * BYTE { BYTE / most } else { 0.0 };
    bytes.clear();
    bytes.extend(values.iter().map(|x| nearest(x * scale) as i8));
    if scale > 0.0 { most / BYTE } else { 0.0 }
}

/// Values of a centroid that are stored beside its bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct CentroidBytes {
    /// Value of one step of the bytes.
    pub step: f32,
    /// Squared norm of the centroid.
    pub square: f32,
    /// Product of the centroid with the frame's centre; 0 for L2.
    pub centre_product: f32,
}

impl CentroidBytes {
    /// Decodes the components of a centroid from its stored bytes. Each stored byte is the component in steps, plus
    /// 128.
    pub fn values(self, stored: &[u8]) -> impl Iterator<Item = f32> + use<'_> {
        stored.iter().map(move |&byte| f32::from(i16::from(byte) - 128) * self.step)
    }

    /// Quantises a centroid of the frame whose rotated centre is `rotated_centre`. Sets `values` to the values that the
    /// bytes decode to.
    pub fn of(values: &mut [f32], rotated_centre: &[f32], bytes: &mut Vec<i8>) -> Self {
        let step = to_bytes(values, largest(values), bytes);
        values.iter_mut().zip(&*bytes).for_each(|(x, &byte)| *x = f32::from(byte) * step);
        Self { step, square: distance::dot(values, values), centre_product: distance::dot(values, rotated_centre) }
    }
}

/// Rotated query as bytes, which is compared with centroids.
#[derive(Clone, Debug, Default)]
pub struct QueryBytes {
    metric: Metric,
    /// Components in steps.
    pub bytes: Vec<i8>,
    step: f32,
    /// 128 times the sum of the bytes: the amount that the offset of stored bytes adds to each product.
    offset: i32,
    square: f32,
    /// Product of the query with the frame's centre; 0 for L2.
    centre_product: f32,
    /// Norm of the query before it was transformed; 0 for L2.
    norm: f32,
    /// Standard deviation of the error that the bytes cause in a product with a centroid, in units of the centroid's
    /// norm.
    missed: f32,
}

impl QueryBytes {
    /// Quantises a vector of a frame, for L2.
    #[must_use]
    pub fn new(rotated: &[f32]) -> Self {
        let mut query = Self::default();
        query.set(rotated, largest(rotated), Metric::L2, 0.0, 0.0);
        query
    }

    fn set(&mut self, rotated: &[f32], most: f32, metric: Metric, centre_product: f32, norm: f32) {
        self.metric = metric;
        self.centre_product = centre_product;
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

    /// Returns the query's distance to a centroid, and the squared Euclidean distance. `product` is the kernel's
    /// product of their bytes.
    #[must_use]
    pub fn base(&self, centroid: CentroidBytes, product: i32) -> (f32, f32) {
        let dot = (product - self.offset) as f32 * (self.step * centroid.step);
        let square = (self.square + centroid.square - 2.0 * dot).max(0.0);
        match self.metric {
            Metric::L2 => (square, square),
            // (q − m)·c + m·c + q·m, where q is the query, c the centroid in the frame, and m the centre.
            Metric::Dot | Metric::Cosine => (-(dot + centroid.centre_product + self.centre_product), square),
        }
    }

    /// Returns the unit of margins: the scale by which the distances of postings near a centroid vary, apart from their
    /// own distances to the centroid. It is the query's distance to the centroid for L2, and the query's norm for
    /// products.
    ///
    /// `square` is the squared distance to the centroid, and `error` the result of [`base_error`](Self::base_error).
    /// For L2 the unit is at least the square root of `error`, because rounding may give a square of zero for a query
    /// at a centroid.
    #[must_use]
    pub fn unit(&self, square: f32, error: f32) -> f32 {
        match self.metric {
            Metric::L2 => square.max(error).sqrt(),
            Metric::Dot | Metric::Cosine => self.norm,
        }
    }

    /// Returns the standard deviation of the distance in [`base`](Self::base). The error has two sources: the query is
    /// rounded to bytes, and the sums are rounded.
    #[must_use]
    pub fn base_error(&self, centroid: CentroidBytes) -> f32 {
        let norm = centroid.square.sqrt();
        match self.metric {
            Metric::L2 => 2.0 * self.missed * norm + ROUNDED * (self.square + centroid.square),
            Metric::Dot | Metric::Cosine => {
                let sum = self.centre_product.abs() + centroid.centre_product.abs() + self.square.sqrt() * norm;
                self.missed * norm + ROUNDED * sum
            }
        }
    }
}

/// Quantised query, ready for any number of cells.
#[derive(Clone, Debug, Default)]
pub struct QuantizedQuery {
    /// Four bit planes for each word of signs.
    pub planes: Vec<[u64; 4]>,
    /// Value of one step of the planes.
    pub plane_step: f32,
    /// Squared norm of the difference between the query and its planes.
    pub plane_error: f32,
    /// Query as bytes.
    pub bytes: QueryBytes,
    rotated: Vec<f32>,
}

impl QuantizedQuery {
    /// Quantises a query in a frame.
    #[must_use]
    pub fn new(vector: &[f32], frame: &CoordinateFrame, metric: Metric) -> Self {
        let mut query = Self::default();
        query.set(vector, frame, metric);
        query
    }

    /// Replaces the query by another one, and reuses the memory.
    pub fn set(&mut self, vector: &[f32], frame: &CoordinateFrame, metric: Metric) {
        let mut rotated = std::mem::take(&mut self.rotated);
        frame.transform(vector, &mut rotated);
        let (centre_product, norm) = match metric {
            Metric::L2 => (0.0, 0.0),
            Metric::Dot | Metric::Cosine => (frame.product(vector), distance::dot(vector, vector).sqrt()),
        };
        self.set_rotated(&rotated, metric, centre_product, norm);
        self.rotated = rotated;
    }

    /// Replaces the query by a vector of the frame, for L2. Leaves [`transformed`](Self::transformed) unchanged.
    pub fn set_transformed(&mut self, rotated: &[f32]) {
        self.set_rotated(rotated, Metric::L2, 0.0, 0.0);
    }

    /// Returns the query in the coordinates of the frame.
    #[must_use]
    pub fn transformed(&self) -> &[f32] {
        &self.rotated
    }

    fn set_rotated(&mut self, rotated: &[f32], metric: Metric, centre_product: f32, norm: f32) {
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
        self.plane_error = missed.into_iter().sum();
        self.bytes.set(rotated, most, metric, centre_product, norm);
    }

    /// Returns the standard deviation of a code's estimate, in units of the code's factor. `square` is the squared
    /// distance of the query to the code's centroid. The error has two sources: signs approximate the residual, and
    /// planes the query.
    #[must_use]
    pub fn code_error(&self, square: f32) -> f32 {
        (tuning::CODE_DEVIATION * tuning::CODE_DEVIATION * square + self.plane_error).sqrt()
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

    /// Tests that the factors are right: the estimate is unbiased, and its error is the error that RaBitQ predicts. The
    /// cases include data far from the origin and a centroid far from the frame's centre.
    #[test]
    fn estimates_are_near_the_distances() {
        for ((dimension, metric), (offset, apart)) in metrics(&[100, 384, 768])
            .flat_map(|of| [(0.0, 0.0), (1e3, 0.0), (0.0, 4.0), (30.0, 4.0)].map(|at| (of, at)))
        {
            let centre = vec![offset; dimension];
            let frame = CoordinateFrame::new(Arc::new(Rotation::new(dimension, 5)), centre, metric);
            let mut transformed = Vec::new();
            let centroid: Vec<f32> = noise(dimension, 1).iter().map(|x| x + apart + offset).collect();
            frame.transform(&centroid, &mut transformed);
            let mut centroid_values = transformed.clone();
            let mut bytes = Vec::new();
            let stored = CentroidBytes::of(&mut centroid_values, frame.rotated_centre(), &mut bytes);
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
                let q = QuantizedQuery::new(&query, &frame, metric);
                frame.transform(&posting, &mut transformed);
                let mut signs = Vec::new();
                let code = encode(&transformed, &centroid_values, frame.rotated_centre(), metric, &mut signs);
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
                // The rounding of the additive term lowers the estimate, which is safe.
                let lost = f64::from(half(code.add).abs()) / 256.0;
                let base_error = f64::from(q.bytes.base_error(stored));
                let unit = f64::from(half(code.factor) * q.code_error(square)).hypot(base_error).hypot(lost);
                bias += (estimate - exact) / unit;
                spread += ((estimate - exact) / unit).powi(2);
                let true_base: f64 = match metric {
                    Metric::L2 => {
                        q.transformed().iter().zip(&centroid_values).map(|(q, c)| f64::from(q - c).powi(2)).sum()
                    }
                    _ => {
                        let products = q.transformed().iter().zip(&centroid_values).zip(frame.rotated_centre());
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
            // Where rounding is large, the predicted error exceeds the actual one.
            let least = if (offset, apart) == (0.0, 0.0) { 0.7 } else { 0.1 };
            assert!((least..1.5).contains(&spread), "{case}: spread {spread}");
            assert!(base_bias.abs() < 0.3 && base_spread < 1.5, "{case}: base {base_bias} {base_spread}");
        }
    }

    #[test]
    fn a_query_of_zeros_is_a_query() {
        let frame = CoordinateFrame::new(Arc::new(Rotation::new(64, 1)), vec![0.0; 64], Metric::L2);
        let query = QuantizedQuery::new(&[0.0; 64], &frame, Metric::L2);
        let (base, square) = query.bytes.base(CentroidBytes { step: 1.0, square: 4.0, centre_product: 0.0 }, 0);
        assert_eq!((base, square, query.code_error(4.0)), (4.0, 4.0, 1.2));
    }

    #[test]
    fn a_median_is_among_most() {
        let rows = [1.0, 5.0, 2.0, 1e30, 3.0, 4.0, 1e12, 6.0, -1e20, 7.0];
        assert_eq!(medians(&rows, 2), [2.0, 6.0]);
        assert_eq!(medians(&[3.0, 4.0], 2), [3.0, 4.0]);
    }
}
