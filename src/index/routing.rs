//! The writer's table of routing centroids: one row per shard number, in one piece.

use crate::{
    codes::{self, Rounded},
    distance::{self, ByteBlocks, ROWS},
};

/// Centroids by shard number. A number without a shard has a row at infinity, which nothing is near.
///
/// Rows are kept as bytes too: what rounding moved a vector by bounds how far the distance of bytes is from the true one
/// (the triangle inequality), so that few rows have to be compared in full, and the answer is that of comparing all.
#[derive(Clone, Debug)]
pub struct RoutingTable {
    dimension: usize,
    rows: Vec<f32>,
    distances: Vec<f32>,
    bytes: ByteBlocks,
    rounded: Vec<Option<Rounded>>,
    products: Vec<i32>,
    query: Vec<i8>,
}

impl RoutingTable {
    /// A table without rows.
    #[must_use]
    pub fn new(dimension: usize) -> Self {
        Self {
            dimension,
            rows: Vec::new(),
            distances: Vec::new(),
            bytes: ByteBlocks::new(codes::padded(dimension)),
            rounded: Vec::new(),
            products: Vec::new(),
            query: Vec::new(),
        }
    }

    /// Sets or clears a shard's centroid.
    pub fn set(&mut self, number: u32, centroid: Option<&[f32]>) {
        let at = number as usize * self.dimension;
        if self.rows.len() < at + self.dimension {
            self.rows.resize(at + self.dimension, f32::INFINITY);
            self.distances.resize(number as usize + 1, f32::INFINITY);
            self.rounded.resize(number as usize + 1, None);
        }
        let rounded = centroid.map(|centroid| Rounded::new(centroid, &mut self.query));
        if rounded.is_some() {
            self.bytes.set(number as usize, &self.query);
        }
        self.rounded[number as usize] = rounded;
        let row = &mut self.rows[at..at + self.dimension];
        match centroid {
            Some(centroid) => row.copy_from_slice(centroid),
            None => row.fill(f32::INFINITY),
        }
    }

    /// The shard whose centroid is nearest by L2, the lowest number among equals; `None` if there is none.
    pub fn nearest(&mut self, vector: &[f32]) -> Option<u32> {
        let rounded = Rounded::new(vector, &mut self.query);
        self.products.resize(self.bytes.rows().next_multiple_of(ROWS), 0);
        distance::dot_bytes(&self.query, self.bytes.bytes(), &mut self.products);
        let offset = 128 * self.query.iter().map(|&byte| i32::from(byte)).sum::<i32>();
        // How far each may be at the most, and the least of that.
        let mut bound = f32::INFINITY;
        let rows = self.rounded.iter().zip(&self.products).zip(&mut self.distances);
        for ((row, product), at_least) in rows {
            *at_least = f32::INFINITY;
            if let Some(row) = row {
                let (least, most) = rounded.distance(row, product - offset);
                *at_least = least;
                bound = bound.min(most);
            }
        }
        let mut best = None;
        let mut least = f32::INFINITY;
        for (number, &at_least) in self.distances.iter().enumerate() {
            if at_least <= bound && self.rounded[number].is_some() {
                let distance = distance::squared_l2(vector, self.centroid(number as u32));
                if distance < least {
                    (best, least) = (Some(number as u32), distance);
                }
            }
        }
        best
    }

    /// The `n` nearest shards, the nearest first, without `except`.
    pub fn nearest_few(&mut self, vector: &[f32], n: usize, except: &[u32]) -> Vec<u32> {
        distance::squared_l2_many(vector, &self.rows, &mut self.distances);
        let mut near: Vec<(f32, u32)> = self
            .distances
            .iter()
            .zip(0u32..)
            .filter(|(distance, number)| distance.is_finite() && !except.contains(number))
            .map(|(&distance, number)| (distance, number))
            .collect();
        near.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
        near.truncate(n);
        near.into_iter().map(|(_, number)| number).collect()
    }

    /// The centroid of a shard.
    #[must_use]
    pub fn centroid(&self, number: u32) -> &[f32] {
        let at = number as usize * self.dimension;
        &self.rows[at..at + self.dimension]
    }

    /// Heap bytes.
    #[must_use]
    pub fn memory(&self) -> usize {
        (self.rows.len() + self.distances.len()) * 4 + self.bytes.bytes().len() + self.rounded.len() * 16
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vector(n: u32, dimension: usize, scale: f32) -> Vec<f32> {
        let mut x = n.wrapping_mul(2_654_435_761) | 1;
        (0..dimension)
            .map(|_| {
                x = x.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                ((x >> 8) as f32 / (1 << 23) as f32 - 1.0) * scale
            })
            .collect()
    }

    /// Bytes save work and change no answer, whatever the sizes; of equal ones the first counts.
    #[test]
    fn the_nearest_is_that_of_comparing_all() {
        for (dimension, scale) in [(1, 1.0), (3, 1e17), (24, 1.0), (70, 1e-20), (384, 1.0)] {
            let mut table = RoutingTable::new(dimension);
            let mut rows: Vec<Option<Vec<f32>>> = vec![None; 90];
            for n in 0..400u32 {
                let number = n * 37 % 90;
                let row = (n % 5 != 4).then(|| match n % 7 {
                    0 => vector(n / 40, dimension, scale * 1e-3),
                    _ => vector(n / 3, dimension, scale),
                });
                table.set(number, row.as_deref());
                rows[number as usize] = row;
                let query = vector(n * 3 / 4, dimension, scale);
                let mut best: Option<(f32, u32)> = None;
                for (number, row) in rows.iter().enumerate() {
                    let Some(row) = row else { continue };
                    let distance = distance::squared_l2(&query, row);
                    if best.is_none_or(|(least, _)| distance < least) {
                        best = Some((distance, number as u32));
                    }
                }
                assert_eq!(table.nearest(&query), best.map(|(_, number)| number), "{dimension} {scale} {n}");
            }
        }
    }
}
