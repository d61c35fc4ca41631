//! The writer's table of routing centroids: one row per shard number, in one piece.

use crate::distance;

/// Centroids by shard number. A number without a shard has a row at infinity, which nothing is near.
#[derive(Clone, Debug)]
pub struct RoutingTable {
    dimension: usize,
    rows: Vec<f32>,
    distances: Vec<f32>,
}

impl RoutingTable {
    /// A table without rows.
    #[must_use]
    pub fn new(dimension: usize) -> Self {
        Self { dimension, rows: Vec::new(), distances: Vec::new() }
    }

    /// Sets or clears a shard's centroid.
    pub fn set(&mut self, number: u32, centroid: Option<&[f32]>) {
        let at = number as usize * self.dimension;
        if self.rows.len() < at + self.dimension {
            self.rows.resize(at + self.dimension, f32::INFINITY);
            self.distances.resize(number as usize + 1, f32::INFINITY);
        }
        let row = &mut self.rows[at..at + self.dimension];
        match centroid {
            Some(centroid) => row.copy_from_slice(centroid),
            None => row.fill(f32::INFINITY),
        }
    }

    /// The shard whose centroid is nearest by L2, the lowest number among equals; `None` if there is none.
    pub fn nearest(&mut self, vector: &[f32]) -> Option<u32> {
        distance::squared_l2_many(vector, &self.rows, &mut self.distances);
        let mut best = None;
        let mut least = f32::INFINITY;
        for (number, &distance) in self.distances.iter().enumerate() {
            if distance < least {
                (best, least) = (Some(number as u32), distance);
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
        (self.rows.len() + self.distances.len()) * 4
    }
}
