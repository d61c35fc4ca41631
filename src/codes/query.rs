//! A query as codes and centroids are compared with it: rotated and quantised once, for all cells.

use super::{Rotation, gather_bits};
use crate::{
    config::Metric,
    distance::{self, LANES},
};

/// Largest level of a query component by the codes' kernel: 4 bits, as odd numbers from −15 to 15.
const LEVELS: f32 = 15.0;
/// Largest byte of a query or centroid component.
const BYTE: f32 = 127.0;
/// Adding this rounds a number of small size to the nearest integer, which then stands in its low bits.
const ROUND: f32 = 12_582_912.0;

fn nearest(x: f32) -> i32 {
    (x + ROUND).to_bits() as i32 - ROUND.to_bits() as i32
}

fn largest(values: &[f32]) -> f32 {
    let mut lanes = [0.0f32; LANES];
    for values in values.as_chunks::<LANES>().0 {
        for (most, x) in lanes.iter_mut().zip(values) {
            *most = if x.abs() > *most { x.abs() } else { *most };
        }
    }
    lanes.into_iter().fold(0.0, f32::max)
}

/// Components as bytes, of which the largest is `most`, and what one step of them is worth.
fn to_bytes(values: &[f32], most: f32, bytes: &mut Vec<i8>) -> f32 {
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
}

impl CentroidBytes {
    /// Quantises a centroid, and sets it to what its bytes say.
    pub fn of(values: &mut [f32], bytes: &mut Vec<i8>) -> Self {
        let step = to_bytes(values, largest(values), bytes);
        values.iter_mut().zip(&*bytes).for_each(|(x, &byte)| *x = f32::from(byte) * step);
        Self { step, square: distance::dot(values, values) }
    }
}

/// A vector rounded to bytes, and how far that moved it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rounded {
    step: f32,
    square: f32,
    moved: f32,
}

impl Rounded {
    /// Rounds a vector; `bytes` get its components, filled up with zeros to a multiple of 64.
    #[must_use]
    pub fn new(vector: &[f32], bytes: &mut Vec<i8>) -> Self {
        let (lanes, rest) = vector.as_chunks::<LANES>();
        let most = rest.iter().fold(largest(vector), |most, x| most.max(x.abs()));
        let step = to_bytes(vector, most, bytes);
        // In lanes, for a sum in one waits for each addition.
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
        Self { step, square: square as f32, moved: moved.sqrt() as f32 }
    }

    /// What the Euclidean distance to another vector is at least and at most, `product` being that of the bytes.
    #[must_use]
    pub fn distance(&self, other: &Self, product: i32) -> (f32, f32) {
        let dot = product as f32 * (self.step * other.step);
        let apart = (self.square + other.square - 2.0 * dot).max(0.0).sqrt();
        // What the arithmetic here rounds away is a small part of the norms.
        let slack = self.moved + other.moved + 2e-3 * (self.square + other.square).sqrt();
        (apart - slack, apart + slack)
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
}

impl ByteQuery {
    /// Quantises a rotated query.
    #[must_use]
    pub fn new(rotated: &[f32], metric: Metric) -> Self {
        let mut query = Self::default();
        query.set(rotated, largest(rotated), metric);
        query
    }

    fn set(&mut self, rotated: &[f32], most: f32, metric: Metric) {
        self.metric = metric;
        self.step = to_bytes(rotated, most, &mut self.bytes);
        self.offset = 128 * self.bytes.iter().map(|&byte| i32::from(byte)).sum::<i32>();
        self.square = distance::dot(rotated, rotated);
    }

    /// The query's distance to a centroid, of which `product` is what the kernel said, and the square of the Euclidean
    /// one.
    #[must_use]
    pub fn base(&self, centroid: CentroidBytes, product: i32) -> (f32, f32) {
        let dot = (product - self.offset) as f32 * (self.step * centroid.step);
        let square = (self.square + centroid.square - 2.0 * dot).max(0.0);
        match self.metric {
            Metric::L2 => (square, square),
            Metric::Dot | Metric::Cosine => (-dot, square),
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
    /// The query as bytes.
    pub bytes: ByteQuery,
    rotated: Vec<f32>,
}

impl Query {
    /// Rotates and quantises a query.
    #[must_use]
    pub fn new(vector: &[f32], rotation: &Rotation, metric: Metric) -> Self {
        let mut query = Self::default();
        query.set(vector, rotation, metric);
        query
    }

    /// Makes it another query, in the room it has.
    pub fn set(&mut self, vector: &[f32], rotation: &Rotation, metric: Metric) {
        let mut rotated = std::mem::take(&mut self.rotated);
        rotation.rotate(vector, &mut rotated);
        self.set_rotated(&rotated, metric);
        self.rotated = rotated;
    }

    /// The same with a vector that is rotated already.
    pub fn set_rotated(&mut self, rotated: &[f32], metric: Metric) {
        let most = largest(rotated);
        self.plane_step = most / LEVELS;
        let scale = if most > f32::MIN_POSITIVE * LEVELS { LEVELS / most } else { 0.0 };
        self.planes.clear();
        self.planes.extend(rotated.as_chunks::<64>().0.iter().map(|values| {
            let mut levels = [0u8; 64];
            for (level, x) in levels.iter_mut().zip(values) {
                *level = nearest((x * scale + LEVELS) * 0.5) as u8;
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
        self.bytes.set(rotated, most, metric);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{codes::encode, distance::ByteBlocks};

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

    /// The estimate is unbiased, and its error what RaBitQ says: the test that the factors mean what they should.
    #[test]
    fn estimates_are_near_the_distances() {
        for (dimension, metric) in
            [100, 384, 768].into_iter().flat_map(|d| [Metric::Cosine, Metric::Dot, Metric::L2].map(|m| (d, m)))
        {
            let rotation = Rotation::new(dimension, 5);
            let mut rotated = Vec::new();
            let centroid = noise(dimension, 1);
            rotation.rotate(&centroid, &mut rotated);
            let mut centroid_values = rotated.clone();
            let mut bytes = Vec::new();
            let stored = CentroidBytes::of(&mut centroid_values, &mut bytes);
            let mut rows = ByteBlocks::new(rotation.len());
            rows.push(&bytes);
            let (mut bias, mut spread) = (0.0f64, 0.0f64);
            let n = 400;
            for seed in 0..n {
                let near = |seed: u32, part: f32| -> Vec<f32> {
                    centroid.iter().zip(noise(dimension, seed)).map(|(c, x)| c * 0.8 + part * x).collect()
                };
                let (query, posting) = (near(seed * 2 + 10, 0.9), near(seed * 2 + 11, 0.7));
                let q = Query::new(&query, &rotation, metric);
                rotation.rotate(&posting, &mut rotated);
                let mut signs = Vec::new();
                let code = encode(&rotated, &centroid_values, metric, &mut signs);
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
                let product = q.plane_step * (15 * rotation.len() as i32 - 2 * different as i32) as f32;
                let estimate = f64::from(base + half(code.add) - half(code.factor) * product);
                let exact = f64::from(match metric {
                    Metric::L2 => distance::squared_l2(&query, &posting),
                    _ => -distance::dot(&query, &posting),
                });
                // In units of the error that the code's own factor predicts.
                let unit = f64::from(half(code.factor) * square.sqrt()) * 0.6;
                bias += (estimate - exact) / unit;
                spread += ((estimate - exact) / unit).powi(2);
            }
            let (bias, spread) = (bias / f64::from(n), (spread / f64::from(n)).sqrt());
            assert!(bias.abs() < 0.2, "{dimension} {metric}: bias {bias}");
            assert!((0.7..1.4).contains(&spread), "{dimension} {metric}: spread {spread}");
        }
    }

    #[test]
    fn a_query_of_zeros_is_a_query() {
        let rotation = Rotation::new(64, 1);
        let query = Query::new(&[0.0; 64], &rotation, Metric::L2);
        let (base, square) = query.bytes.base(CentroidBytes { step: 1.0, square: 4.0 }, 0);
        assert_eq!((base, square), (4.0, 4.0));
    }
}
