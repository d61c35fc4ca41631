//! Principal axes of the stored vectors, and how far outside of their span a query lies.
//!
//! Some queries have components in directions in which the data hardly vary. The nearest posting of such a query may be
//! as near as that of an ordinary one, so its distance detects nothing. The query's distance from the span of the data's
//! principal axes does.
//!
//! For Euclidean distances, axes and measure are relative to the centre of the data, and the measure is a distance. For
//! products they are relative to the origin. The measure is then the share of the query's square norm that lies outside
//! the span. It does not depend on the norm.

use std::borrow::Cow;

use super::quantile::{at, exceeded, sorted};
use crate::{config::Metric, distance, env::Cancel, error::Result, format::calibration::axes_of, tuning};

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

/// Makes the rows of a matrix orthonormal, in order. A row that depends on the rows before it becomes zeros.
fn orthonormalise(rows: &mut [f32], dimension: usize) {
    for i in 0..rows.len() / dimension {
        let (before, row) = rows.split_at_mut(i * dimension);
        let row = &mut row[..dimension];
        let whole = distance::dot(row, row).sqrt();
        // Twice, because the first pass leaves rounding errors of the size of what it removes.
        remove(row, before);
        remove(row, before);
        let norm = distance::dot(row, row).sqrt();
        let is_new = norm.is_finite() && norm > whole * tuning::AXIS_NORM && norm > 0.0;
        row.iter_mut().for_each(|x| *x = if is_new { *x / norm } else { 0.0 });
    }
}

/// Replaces each axis of zeros by the direction in which the rows lie farthest outside the other axes. Otherwise such an
/// axis would stay zeros, although the rows span more. Rows have norm 1. What is outside by less than
/// [`AXES_FLOOR`](tuning::AXES_FLOOR) counts as rounding.
///
/// # Errors
/// Returns `Closed` if it is cancelled.
fn refill(axes: &mut [f32], rows: &[Vec<f32>], dimension: usize, cancel: &dyn Cancel) -> Result<()> {
    for i in 0..axes.len() / dimension {
        if axes[i * dimension..][..dimension].iter().any(|&x| x != 0.0) {
            continue;
        }
        cancel.check()?;
        let outside = |row: &Vec<f32>| {
            let mut rest = row.clone();
            remove(&mut rest, axes);
            distance::dot(&rest, &rest)
        };
        let farthest = rows.iter().map(|row| (outside(row), row)).max_by(|a, b| a.0.total_cmp(&b.0));
        let Some((_, row)) = farthest.filter(|&(square, _)| square > tuning::AXES_FLOOR.powi(2)) else { break };
        let mut rest = row.clone();
        remove(&mut rest, axes);
        remove(&mut rest, axes);
        let norm = distance::dot(&rest, &rest).sqrt();
        axes[i * dimension..][..dimension].iter_mut().zip(rest).for_each(|(axis, x)| *axis = x / norm);
    }
    Ok(())
}

/// Computes the principal axes of some rows by subspace iteration (Rutishauser, Numerische Mathematik 1969).
///
/// Returns [`axes_of`] orthonormal rows. Axes are zeros if the rows span fewer dimensions. Each row counts with norm 1, so
/// that a few long rows do not dominate. Deterministic, because sums have a fixed order.
///
/// # Errors
/// Returns `Closed` if it is cancelled.
pub(super) fn principal_axes(rows: &[f32], centre: &[f32], metric: Metric, cancel: &dyn Cancel) -> Result<Vec<f32>> {
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
    let mut axes = vec![0.0; axes_of(dimension) * dimension];
    refill(&mut axes, &rows, dimension, cancel)?;
    for _ in 0..ROUNDS {
        cancel.check()?;
        let mut next = vec![0.0; axes.len()];
        for row in &rows {
            for (axis, next) in axes.chunks_exact(dimension).zip(next.chunks_exact_mut(dimension)) {
                let along = distance::dot(row, axis);
                next.iter_mut().zip(row).for_each(|(sum, x)| *sum += along * x);
            }
        }
        orthonormalise(&mut next, dimension);
        refill(&mut next, &rows, dimension, cancel)?;
        axes = next;
    }
    Ok(axes)
}

/// Computes the threshold of [`outside`] for vectors that are not among those of the axes.
///
/// It is at least [`AXES_FLOOR`](tuning::AXES_FLOOR) of a usual vector's norm. If the axes span all data, what lies
/// outside is rounding, and any noise in a query would exceed it.
pub(super) fn threshold(vectors: &[&[f32]], axes: &[f32], centre: &[f32], metric: Metric) -> f32 {
    let known = |measure: &dyn Fn(&[f32]) -> f32| sorted(vectors.iter().map(|x| measure(x)).filter(|x| !x.is_nan()));
    let measures = known(&|vector| outside(vector, axes, centre, metric));
    let floor = match metric {
        Metric::L2 => tuning::AXES_FLOOR * at(&known(&|vector| distance::squared_l2(vector, centre).sqrt()), 0.5),
        Metric::Cosine | Metric::Dot => tuning::AXES_FLOOR.powi(2),
    };
    if measures.is_empty() {
        return f32::MAX;
    }
    // No power tail here: where most data lie within the span, the ratio of two of these distances says nothing.
    exceeded(&measures, tuning::CALIBRATION_FAR, measures.len() as u32).max(floor).min(f32::MAX)
}

/// Computes how far outside the span of the axes a vector lies: a distance by L2, else a share of its square norm.
///
/// Returns NaN if there are no axes, and for a zero vector by products.
pub(super) fn outside(vector: &[f32], axes: &[f32], centre: &[f32], metric: Metric) -> f32 {
    if axes.is_empty() {
        return f32::NAN;
    }
    let relative = match metric {
        Metric::L2 => Cow::Owned(relative(vector, centre, metric)),
        Metric::Cosine | Metric::Dot => Cow::Borrowed(vector),
    };
    let whole = distance::dot(&relative, &relative);
    let mut along = [0.0; tuning::PRINCIPAL_AXES];
    let along = &mut along[..axes.len() / vector.len()];
    distance::dot_many(&relative, axes, along);
    // The axes are orthonormal. Rounding is less than the smallest threshold.
    let square = (whole - along.iter().map(|x| x * x).sum::<f32>()).max(0.0);
    match metric {
        Metric::L2 => square.sqrt(),
        Metric::Cosine | Metric::Dot => square / whole,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::env::Never;

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
            let axes = principal_axes(&rows, &centre, metric, &Never).expect("not cancelled");
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
        let axes = principal_axes(&[0.0; 64], &[0.0; 16], Metric::Dot, &Never).expect("not cancelled");
        assert!(axes.iter().all(|&x| x == 0.0));
        assert!(outside(&[0.0; 16], &axes, &[0.0; 16], Metric::Dot).is_nan());
        assert_eq!(outside(&[1.0; 16], &axes, &[0.0; 16], Metric::Dot), 1.0);
        assert!(outside(&[1.0; 16], &[], &[0.0; 16], Metric::Dot).is_nan());
    }

    /// Seeds that depend on one another left axes of zeros for good, although the rows spanned more.
    #[test]
    fn few_rows_of_a_larger_span_are_enough_for_all_axes() {
        let mut rows: Vec<f32> = (0..200)
            .flat_map(|i| {
                let mut row = [0.0; 16];
                row[0] = 1.0 + i as f32;
                row
            })
            .collect();
        (0..16).for_each(|i| rows.extend((0..16).map(|j| f32::from(u8::from(i == j)))));
        let axes = principal_axes(&rows, &[0.0; 16], Metric::Dot, &Never).expect("not cancelled");
        assert!(axes.chunks_exact(16).all(|axis| (distance::dot(axis, axis) - 1.0).abs() < 1e-3), "{axes:?}");
    }

    /// Without a floor the threshold of data within the span was rounding, and a query with a little noise exceeded it. With a
    /// power tail the threshold of a mixture was ten times what any stored vector measured.
    #[test]
    fn the_threshold_is_neither_rounding_nor_out_of_reach() {
        let flat: Vec<Vec<f32>> = rows(0.0).chunks_exact(16).map(|row| [&row[..3], &[0.0; 13]].concat()).collect();
        let of = |vectors: &[Vec<f32>], metric| {
            let axes = principal_axes(&vectors[..100].concat(), &[0.0; 16], metric, &Never).expect("not cancelled");
            let others: Vec<&[f32]> = vectors[100..].iter().map(Vec::as_slice).collect();
            (threshold(&others, &axes, &[0.0; 16], metric), axes)
        };
        for metric in [Metric::L2, Metric::Dot] {
            let (threshold, axes) = of(&flat, metric);
            let mut noisy = flat[7].clone();
            noisy[12] += 1e-5;
            assert!(outside(&noisy, &axes, &[0.0; 16], metric) < threshold, "{metric}: {threshold}");
            noisy[12] += 0.5;
            assert!(outside(&noisy, &axes, &[0.0; 16], metric) > threshold, "{metric}: {threshold}");
        }
        let mixed: Vec<Vec<f32>> =
            (0..200)
                .map(|i| {
                    if i % 5 == 0 {
                        rows(0.0)[i * 16..][..16].iter().map(|x| x * 1e3).collect()
                    } else {
                        flat[i].clone()
                    }
                })
                .collect();
        let (threshold, axes) = of(&mixed, Metric::L2);
        let most = mixed[100..].iter().map(|row| outside(row, &axes, &[0.0; 16], Metric::L2)).fold(0.0, f32::max);
        assert!(threshold < 4.0 * most.max(1e-3), "{threshold} {most}");
    }
}
