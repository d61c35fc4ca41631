//! Principal axes of the stored vectors, and how far outside of their span a query lies.
//!
//! Some queries have components in directions in which the data hardly vary. The nearest posting of such a query may be
//! as near as that of an ordinary one, so its distance detects nothing. The query's distance from the span of the data's
//! principal axes does.
//!
//! For Euclidean distances, axes and measure are relative to the centre of the data, and the measure is a distance. For
//! products they are relative to the origin. The measure is then the share of the query's square norm that lies outside
//! the span. It does not depend on the norm.

use crate::{config::Metric, distance, format::calibration::axes_of};

/// Rounds of the subspace iteration. The axes need not be exact: the threshold is measured with the same axes.
const ROUNDS: usize = 8;

/// Returns a vector relative to the centre, or to the origin for products.
fn relative(vector: &[f32], centre: &[f32], metric: Metric) -> Vec<f32> {
    match metric {
        Metric::L2 => vector.iter().zip(centre).map(|(x, c)| x - c).collect(),
        Metric::Cosine | Metric::Dot => vector.to_vec(),
    }
}

/// Removes the components of a vector along orthonormal axes.
fn remove(vector: &mut [f32], axes: &[f32]) {
    for axis in axes.chunks_exact(vector.len()) {
        let along = distance::dot(vector, axis);
        vector.iter_mut().zip(axis).for_each(|(x, a)| *x -= along * a);
    }
}

/// Makes the rows of a matrix orthonormal, in order. A row that depends on those before it becomes zeros.
fn orthonormalise(rows: &mut [f32], dimension: usize) {
    for i in 0..rows.len() / dimension {
        let (before, row) = rows.split_at_mut(i * dimension);
        let row = &mut row[..dimension];
        let whole = distance::dot(row, row).sqrt();
        // Twice, because the first pass leaves rounding errors of the size of what it removes.
        remove(row, before);
        remove(row, before);
        let norm = distance::dot(row, row).sqrt();
        let is_new = norm.is_finite() && norm > whole * 1e-4 && norm > 0.0;
        row.iter_mut().for_each(|x| *x = if is_new { *x / norm } else { 0.0 });
    }
}

/// Computes the principal axes of some rows by subspace iteration (Rutishauser, Numerische Mathematik 1969).
///
/// Returns [`axes_of`] orthonormal rows. If the rows span fewer dimensions, the last axes are zeros. Each row counts with
/// norm 1, so that a few long rows do not dominate. Deterministic, because sums have a fixed order.
pub(super) fn principal_axes(rows: &[f32], centre: &[f32], metric: Metric) -> Vec<f32> {
    let dimension = centre.len();
    let rows: Vec<Vec<f32>> = rows
        .chunks_exact(dimension)
        .map(|row| relative(row, centre, metric))
        .filter_map(|mut row| {
            let norm = distance::dot(&row, &row).sqrt();
            row.iter_mut().for_each(|x| *x /= norm);
            (norm.is_finite() && norm > 0.0).then_some(row)
        })
        .collect();
    let count = axes_of(dimension);
    let mut axes: Vec<f32> =
        rows.iter().step_by((rows.len() / count.max(1)).max(1)).take(count).flatten().copied().collect();
    axes.resize(count * dimension, 0.0);
    orthonormalise(&mut axes, dimension);
    for _ in 0..ROUNDS {
        let mut next = vec![0.0; axes.len()];
        for row in &rows {
            for (axis, next) in axes.chunks_exact(dimension).zip(next.chunks_exact_mut(dimension)) {
                let along = distance::dot(row, axis);
                next.iter_mut().zip(row).for_each(|(sum, x)| *sum += along * x);
            }
        }
        orthonormalise(&mut next, dimension);
        axes = next;
    }
    axes
}

/// Computes how far outside the span of the axes a vector lies: a distance by L2, else a share of its square norm.
///
/// Returns NaN if there are no axes, and for a zero vector by products.
pub(super) fn outside(vector: &[f32], axes: &[f32], centre: &[f32], metric: Metric) -> f32 {
    if axes.is_empty() {
        return f32::NAN;
    }
    let mut rest = relative(vector, centre, metric);
    let whole = distance::dot(&rest, &rest);
    remove(&mut rest, axes);
    let square = distance::dot(&rest, &rest);
    match metric {
        Metric::L2 => square.sqrt(),
        Metric::Cosine | Metric::Dot => square / whole,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Rows that vary in the first three of 16 dimensions, around a centre.
    fn rows(centre: f32) -> Vec<f32> {
        let mut state = 1u32;
        let mut draw = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 24) as f32 - 0.5
        };
        (0..200)
            .flat_map(|_| (0..16).map(|i| centre + draw() * if i < 3 { 1.0 } else { 1e-3 }).collect::<Vec<_>>())
            .collect()
    }

    #[test]
    fn the_axes_span_what_the_rows_span() {
        for (metric, offset) in [(Metric::L2, 100.0), (Metric::Dot, 0.0), (Metric::Cosine, 0.0)] {
            let (rows, centre) = (rows(offset), [offset; 16]);
            let axes = principal_axes(&rows, &centre, metric);
            assert_eq!(axes.len(), 4 * 16);
            for (i, a) in axes.chunks_exact(16).enumerate() {
                for (j, b) in axes.chunks_exact(16).enumerate() {
                    let product = distance::dot(a, b);
                    assert!((product - f32::from(u8::from(i == j))).abs() < 1e-3, "{metric} {i} {j}: {product}");
                }
            }
            let within = rows.chunks_exact(16).map(|row| outside(row, &axes, &centre, metric)).fold(0.0, f32::max);
            let mut beside = centre;
            beside[9] += 0.5;
            assert!(within < 0.05 && outside(&beside, &axes, &centre, metric) > 0.4, "{metric}: {within}");
        }
    }

    #[test]
    fn rows_without_a_direction_have_no_axis() {
        let axes = principal_axes(&[0.0; 64], &[0.0; 16], Metric::Dot);
        assert!(axes.iter().all(|&x| x == 0.0));
        assert!(outside(&[0.0; 16], &axes, &[0.0; 16], Metric::Dot).is_nan());
        assert_eq!(outside(&[1.0; 16], &axes, &[0.0; 16], Metric::Dot), 1.0);
        assert!(outside(&[1.0; 16], &[], &[0.0; 16], Metric::Dot).is_nan());
    }
}
