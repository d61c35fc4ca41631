//! Where codes are made: around a centre, and rotated.

use std::sync::Arc;

use super::Rotation;
use crate::{config::Metric, distance};

/// The coordinates in which codes and centroids lie: a vector less the centre of the data, then rotated.
///
/// A sign, a byte or an f32 says little of a number that is mostly the same for all: of vectors that lie far from the origin
/// only what they differ by is coded. The centre is taken off in the coordinates in which vectors are stored, where the
/// difference of near numbers is exact.
#[derive(Clone, Debug)]
pub struct Frame {
    rotation: Arc<Rotation>,
    centre: Vec<f32>,
    /// The centre rotated, filled up with zeros; nothing where products do not need it.
    turned: Vec<f32>,
}

impl Frame {
    /// The frame around a centre.
    ///
    /// # Panics
    /// If the centre has another dimension.
    #[must_use]
    pub fn new(rotation: Arc<Rotation>, centre: Vec<f32>, metric: Metric) -> Self {
        let mut turned = Vec::new();
        match metric {
            Metric::L2 => turned.resize(rotation.len(), 0.0),
            Metric::Dot | Metric::Cosine => rotation.rotate(&centre, &mut turned),
        }
        Self { rotation, centre, turned }
    }

    /// Numbers of a vector in it.
    #[must_use]
    pub fn len(&self) -> usize {
        self.rotation.len()
    }

    /// Whether it has no room for a number. Never.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.rotation.is_empty()
    }

    /// What is taken off each vector.
    #[must_use]
    pub fn centre(&self) -> &[f32] {
        &self.centre
    }

    /// The rotation alone.
    #[must_use]
    pub fn rotation(&self) -> &Arc<Rotation> {
        &self.rotation
    }

    /// What a product with the centre is of one with a vector of the frame; zeros by L2, which knows no products.
    #[must_use]
    pub fn turned(&self) -> &[f32] {
        &self.turned
    }

    /// The coordinates of a vector, into `out`, which is made as long as it must be.
    ///
    /// # Panics
    /// If the vector has another dimension.
    pub fn place(&self, vector: &[f32], out: &mut Vec<f32>) {
        assert_eq!(vector.len(), self.centre.len(), "a vector of another dimension");
        out.clear();
        out.extend(vector.iter().zip(&self.centre).map(|(x, c)| x - c));
        self.rotation.rotate_in_place(out);
    }

    /// What is to be added to a vector of another frame of the same rotation to have it in this one.
    #[must_use]
    pub fn moved_from(&self, other: &Self) -> Vec<f32> {
        let mut by: Vec<f32> = other.centre.iter().zip(&self.centre).map(|(from, to)| from - to).collect();
        self.rotation.rotate_in_place(&mut by);
        by
    }

    /// The part of a product with a vector that is the same for every posting.
    #[must_use]
    pub fn product(&self, vector: &[f32]) -> f32 {
        distance::dot(vector, &self.centre)
    }
}

/// The median of each component of some rows: in the midst of most of them, wherever the others are.
///
/// A mean would follow a few vectors of a magnitude beyond all others, away from what the frame is for.
///
/// # Panics
/// If the rows are not whole, or there are none.
#[must_use]
pub fn medians(rows: &[f32], dimension: usize) -> Vec<f32> {
    assert!(!rows.is_empty() && rows.len().is_multiple_of(dimension), "whole rows");
    let mut column = Vec::with_capacity(rows.len() / dimension);
    let median = |i| {
        column.clear();
        column.extend(rows.chunks_exact(dimension).map(|row| row[i]));
        let middle = column.len() / 2;
        *column.select_nth_unstable_by(middle, f32::total_cmp).1
    };
    (0..dimension).map(median).collect()
}
