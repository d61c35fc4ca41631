//! Coordinate frame of codes: centred and rotated coordinates.

use std::sync::Arc;

use super::Rotation;
use crate::{config::Metric, distance};

/// Coordinate frame of codes and centroids: a vector minus the centre of the data, then rotated.
///
/// A sign, a byte or an f32 has little precision for the differences between vectors that share a large offset from the
/// origin. Subtraction of the centre leaves only the differences to encode. The centre is subtracted in the coordinates
/// in which vectors are stored, where the difference of near numbers is exact.
#[derive(Clone, Debug)]
pub struct CoordinateFrame {
    rotation: Arc<Rotation>,
    centre: Vec<f32>,
    /// Rotated centre, padded with zeros. All zeros for L2, which needs no products with the centre.
    rotated_centre: Vec<f32>,
}

impl CoordinateFrame {
    /// Creates the frame around a centre.
    ///
    /// # Panics
    /// Panics if the dimension of `centre` differs from that of the rotation and the metric is not L2.
    #[must_use]
    pub fn new(rotation: Arc<Rotation>, centre: Vec<f32>, metric: Metric) -> Self {
        let mut rotated_centre = Vec::new();
        match metric {
            Metric::L2 => rotated_centre.resize(rotation.len(), 0.0),
            Metric::Dot | Metric::Cosine => rotation.rotate(&centre, &mut rotated_centre),
        }
        Self { rotation, centre, rotated_centre }
    }

    /// Returns the number of components of a vector in the frame.
    #[must_use]
    pub fn len(&self) -> usize {
        self.rotation.len()
    }

    /// Reports whether the frame has no components. Always false for a dimension of at least 1.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.rotation.is_empty()
    }

    /// Returns the centre, which is subtracted from each vector.
    #[must_use]
    pub fn centre(&self) -> &[f32] {
        &self.centre
    }

    /// Returns the rotation of the frame.
    #[must_use]
    pub fn rotation(&self) -> &Arc<Rotation> {
        &self.rotation
    }

    /// Returns the rotated centre, whose product with a vector of the frame is the centre's own. All zeros for L2,
    /// which needs no products with the centre.
    #[must_use]
    pub fn rotated_centre(&self) -> &[f32] {
        &self.rotated_centre
    }

    /// Transforms a vector into the frame. `out` is resized to [`len`](Self::len).
    ///
    /// # Panics
    /// Panics if the vector has another dimension.
    pub fn transform(&self, vector: &[f32], out: &mut Vec<f32>) {
        assert_eq!(vector.len(), self.centre.len(), "a vector of another dimension");
        out.clear();
        out.extend(vector.iter().zip(&self.centre).map(|(x, c)| x - c));
        self.rotation.rotate_in_place(out);
    }

    /// Returns the offset that moves a vector of frame `other`, which must have the same rotation, into this frame.
    #[must_use]
    pub fn offset_from(&self, other: &Self) -> Vec<f32> {
        let mut by: Vec<f32> = other.centre.iter().zip(&self.centre).map(|(from, to)| from - to).collect();
        self.rotation.rotate_in_place(&mut by);
        by
    }

    /// Returns the product of a vector with the centre: the part of the vector's product with a posting that is the
    /// same for all postings.
    #[must_use]
    pub fn product(&self, vector: &[f32]) -> f32 {
        distance::dot(vector, &self.centre)
    }
}

/// Returns the median of each component of `rows`.
///
/// A median stays among most of the rows. A mean would follow a few vectors of extreme magnitude.
///
/// # Panics
/// Panics if `rows` is empty or its length is not a multiple of `dimension`.
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
