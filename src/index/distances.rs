//! Distances by the index's metric.

use crate::{config::Metric, distance, shard::StoredVector};

/// Computes the distance of two vectors by a metric; lower is nearer. By L2 it is the square of the Euclidean distance,
/// by dot product and cosine the negated dot product.
pub(super) fn distance_by(metric: Metric, a: &[f32], b: &[f32]) -> f32 {
    match metric {
        Metric::L2 => distance::squared_l2(a, b),
        Metric::Dot | Metric::Cosine => -distance::dot(a, b),
    }
}

/// Computes the distance from `query` to a stored vector, as [`distance_by`] defines it.
#[inline]
pub(super) fn distance_to(metric: Metric, query: &[f32], vector: StoredVector<'_>) -> f32 {
    match metric {
        Metric::L2 => vector.squared_l2(query),
        Metric::Dot | Metric::Cosine => -vector.dot(query),
    }
}

/// Computes the distance from `query` to each of many rows into `out`, as [`distance_by`] defines it.
pub(super) fn distances_by(metric: Metric, query: &[f32], rows: &[f32], out: &mut [f32]) {
    match metric {
        Metric::L2 => distance::squared_l2_many(query, rows, out),
        Metric::Dot | Metric::Cosine => {
            distance::dot_many(query, rows, out);
            out.iter_mut().for_each(|d| *d = -*d);
        }
    }
}
