//! Routing table of the writer: one contiguous row of centroids, indexed by shard number.
//!
//! Invariant: the shard of a vector depends only on the numbers and centroids of the existing shards. So a replay
//! routes as the writer did.

use super::pivots::{self, CentroidRows, Pivots, ShardDistance};
use crate::{
    codes::{self, RoundedVector},
    distance::{self, ByteBlocks, ROWS},
    tuning,
};

/// Centroids by shard number. The row of a number without a shard is infinite, so no vector is near it.
///
/// Rows are also kept as bytes. The length of a vector's rounding error bounds the difference between the distance of
/// the bytes and the true distance (the triangle inequality). So few rows are compared in full, and the result is that
/// of comparing all.
#[derive(Clone, Debug)]
pub struct RoutingTable {
    dimension: usize,
    rows: Vec<f32>,
    distances: Vec<f32>,
    bytes: ByteBlocks,
    rounded: Vec<Option<RoundedVector>>,
    products: Vec<i32>,
    query: Vec<i8>,
    /// Number of shards.
    shards: usize,
    /// Maximum number of shards whose centroids are all compared. With more, only the shards near pivots are.
    all_up_to: usize,
    /// Pivots, built when they are first needed.
    pivots: Option<Pivots>,
    /// Number of centroid comparisons so far.
    compared: u64,
}

impl RoutingTable {
    /// Creates an empty table that compares all centroids of up to [`ROUTED_BY_ALL`](tuning::ROUTED_BY_ALL) shards.
    #[must_use]
    pub fn new(dimension: usize) -> Self {
        Self::comparing_all_up_to(tuning::ROUTED_BY_ALL, dimension)
    }

    /// Creates an empty table that compares all centroids of up to `all_up_to` shards.
    #[must_use]
    pub fn comparing_all_up_to(all_up_to: usize, dimension: usize) -> Self {
        Self {
            dimension,
            rows: Vec::new(),
            distances: Vec::new(),
            bytes: ByteBlocks::new(codes::padded(dimension)),
            rounded: Vec::new(),
            products: Vec::new(),
            query: Vec::new(),
            shards: 0,
            all_up_to,
            pivots: None,
            compared: 0,
        }
    }

    /// Returns the number of comparisons of a vector and a centroid, by bytes or in full.
    #[must_use]
    pub fn compared(&self) -> u64 {
        self.compared
    }

    /// Sets or clears the centroid of a shard.
    pub fn set(&mut self, number: u32, centroid: Option<&[f32]>) {
        let at = number as usize * self.dimension;
        if self.rows.len() < at + self.dimension {
            self.rows.resize(at + self.dimension, f32::INFINITY);
            self.distances.resize(number as usize + 1, f32::INFINITY);
            self.rounded.resize(number as usize + 1, None);
        }
        let rounded = centroid.map(|centroid| RoundedVector::new(centroid, &mut self.query));
        if rounded.is_some() {
            self.bytes.set(number as usize, &self.query);
        }
        let is_used = rounded.is_some();
        let was_used = std::mem::replace(&mut self.rounded[number as usize], rounded).is_some();
        self.shards = self.shards + usize::from(is_used) - usize::from(was_used);
        let row = &mut self.rows[at..at + self.dimension];
        match centroid {
            Some(centroid) => row.copy_from_slice(centroid),
            None => row.fill(f32::INFINITY),
        }
        if let Some(pivots) = &mut self.pivots {
            let rows = CentroidRows { dimension: self.dimension, rows: &self.rows };
            if was_used {
                pivots.remove(rows, number);
            }
            if is_used {
                pivots.insert(rows, number);
            }
        }
    }

    /// Returns the shards of the nearest pivots; `None` if all shards must be compared. Builds the pivots at the first
    /// use.
    fn near_by_pivots(&mut self, vector: &[f32]) -> Option<Vec<ShardDistance>> {
        if self.shards <= self.all_up_to {
            return None;
        }
        let rows = CentroidRows { dimension: self.dimension, rows: &self.rows };
        let used = self.rounded.iter().zip(0u32..).filter_map(|(row, number)| row.as_ref().map(|_| number));
        let pivots = self.pivots.get_or_insert_with(|| Pivots::new(rows, used));
        let near = pivots.near(rows, vector, &mut self.compared);
        // Without a pivot, all shards are compared.
        (!near.is_empty()).then_some(near)
    }

    /// Returns the shard whose centroid is nearest by L2, the lowest number among equals; `None` if there is no shard.
    /// With more than `all_up_to` shards, only the shards of the nearest pivots are compared.
    pub fn nearest(&mut self, vector: &[f32]) -> Option<u32> {
        if let Some(near) = self.near_by_pivots(vector) {
            let nearest = near.into_iter().min_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
            return nearest.map(|near| near.1);
        }
        self.compared += self.shards as u64;
        let rounded = RoundedVector::new(vector, &mut self.query);
        self.products.resize(self.bytes.rows().next_multiple_of(ROWS), 0);
        distance::dot_bytes(&self.query, self.bytes.bytes(), &mut self.products);
        let offset = 128 * self.query.iter().map(|&byte| i32::from(byte)).sum::<i32>();
        // Least upper bound on the distance of a row.
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

    /// Returns the `n` nearest shards by L2 without those in `except`, nearest first. With more than `all_up_to`
    /// shards, only the shards of the nearest pivots are compared.
    pub fn nearest_few(&mut self, vector: &[f32], n: usize, except: &[u32]) -> Vec<u32> {
        if let Some(mut near) = self.near_by_pivots(vector) {
            near.retain(|near| !except.contains(&near.1));
            pivots::sort(&mut near);
            near.truncate(n);
            return near.into_iter().map(|near| near.1).collect();
        }
        self.compared += self.shards as u64;
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

    /// Returns the centroid of a shard. Its components are infinite if the number has no shard.
    ///
    /// # Panics
    /// Panics if `number` is greater than every number that was ever set or cleared.
    #[must_use]
    pub fn centroid(&self, number: u32) -> &[f32] {
        let at = number as usize * self.dimension;
        &self.rows[at..at + self.dimension]
    }

    /// Returns the approximate number of heap bytes.
    #[must_use]
    pub fn memory(&self) -> usize {
        (self.rows.len() + self.distances.len()) * 4
            + self.bytes.bytes().len()
            + self.rounded.len() * 16
            + self.pivots.as_ref().map_or(0, Pivots::memory)
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

    /// Bytes save work and do not change the result, at any scale. Of equal distances the lowest number wins.
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

    /// A table built from the existing shards routes like one that also went through removed shards, in any order.
    #[test]
    fn routing_by_pivots_follows_from_the_shards_alone() {
        let dimension = 8;
        let mut table = RoutingTable::comparing_all_up_to(40, dimension);
        let mut rows: Vec<Option<Vec<f32>>> = vec![None; 2_200];
        let mut state = 5u32;
        for n in 0..6_000u32 {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let number = (state >> 12) % 2_200;
            // From step 4,000 on most steps remove a shard. Some shards have the same centroid.
            let goes = (state >> 8) % 8 < if n < 4_000 { 1 } else { 7 };
            let row = (!goes).then(|| vector(state % 900, dimension, 1.0));
            table.set(number, row.as_deref());
            rows[number as usize] = row;
            let query = vector(n, dimension, 1.0);
            let near = (table.nearest(&query), table.nearest_few(&query, 16, &[number]));
            if n % 97 != 0 {
                continue;
            }
            let mut anew = RoutingTable::comparing_all_up_to(40, dimension);
            for (number, row) in rows.iter().enumerate().rev() {
                anew.set(number as u32, row.as_deref());
            }
            assert_eq!(near, (anew.nearest(&query), anew.nearest_few(&query, 16, &[number])), "{n}");
            let nearest_pivots = |table: &RoutingTable| table.pivots.as_ref().map(Pivots::nearest_pivots);
            if let (Some(known), Some(made)) = (nearest_pivots(&table), nearest_pivots(&anew)) {
                assert_eq!(known, made, "{n}");
            }
        }
        assert!(table.pivots.is_some());
    }

    /// Returns a vector near the centre of one of 61 clusters. Centroids are clustered likewise.
    fn clustered(n: u32, dimension: usize) -> Vec<f32> {
        let (center, noise) = (vector(n % 61 * 7_919, dimension, 1.0), vector(n.wrapping_mul(97) + 1, dimension, 0.5));
        center.iter().zip(noise).map(|(c, x)| c + x).collect()
    }

    #[test]
    fn an_add_is_compared_with_few_centroids_and_mostly_finds_the_nearest() {
        let (dimension, queries) = (8, 300);
        let mut costs = Vec::new();
        for shards in [2_048u32, 8_192, 32_768] {
            let mut table = RoutingTable::new(dimension);
            let mut all = RoutingTable::comparing_all_up_to(usize::MAX, dimension);
            for number in 0..shards {
                table.set(number, Some(&clustered(number, dimension)));
                all.set(number, Some(&clustered(number, dimension)));
            }
            let mut found = 0;
            for n in 0..queries {
                let query = clustered(n * 31 + 5, dimension);
                found += u32::from(table.nearest(&query) == all.nearest(&query));
            }
            assert!(found * 100 >= queries * 85, "{found} of {queries} at {shards} shards");
            assert_eq!(all.compared(), u64::from(shards * queries));
            costs.push(table.compared() / u64::from(queries));
        }
        // With four times the shards, at most twice the centroids are compared.
        assert!(costs.windows(2).all(|pair| pair[1] <= 2 * pair[0]), "{costs:?}");
        assert!(costs[2] < 1_200, "{costs:?}");
    }
}
