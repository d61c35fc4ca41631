//! Splitting a set of vectors in two by Lloyd's 2-means (Lloyd, IEEE Trans. Inf. Theory 1982), seeded, with a minimum
//! size of both halves.
//!
//! Deterministic: the same rows and the same generator give the same halves on any CPU.

use rand::{Rng, RngExt as _};

use crate::{distance, tuning};

/// Reciprocal of the minimum share of the rows in either half: one eighth.
const SMALLEST_SHARE: usize = 8;

/// Result of a split.
#[derive(Debug, PartialEq)]
pub struct Halves {
    /// For each row, true if it belongs to the second half.
    pub second: Vec<bool>,
    /// Means of the two halves.
    pub centroids: [Vec<f32>; 2],
}

/// Splits a set of at least two rows in two.
///
/// # Panics
/// Panics if there are fewer than two rows.
pub fn two_means(rows: &[&[f32]], rng: &mut impl Rng) -> Halves {
    assert!(rows.len() >= 2, "one row cannot be split");
    // The first centre is a random row, the second one is the row farthest from it. This avoids two random centres near
    // each other.
    let first = rows[rng.random_range(0..rows.len() as u64) as usize];
    let far = |from: &[f32]| {
        let distances: Vec<f32> = rows.iter().map(|row| distance::squared_l2(row, from)).collect();
        let best = (0..rows.len()).max_by(|&a, &b| distances[a].total_cmp(&distances[b]).then(b.cmp(&a)));
        rows[best.unwrap_or(0)].to_vec()
    };
    let mut centroids = [first.to_vec(), far(first)];
    let mut second = assign(rows, &centroids);
    for _ in 1..tuning::SPLIT_ROUNDS {
        centroids = means(rows, &second);
        let next = assign(rows, &centroids);
        if next == second {
            break;
        }
        second = next;
    }
    let centroids = means(rows, &second);
    Halves { second, centroids }
}

/// Assigns each row to the nearer centroid. If a half is below its minimum size, the rows nearest to the border move to
/// it.
fn assign(rows: &[&[f32]], centroids: &[Vec<f32>; 2]) -> Vec<bool> {
    let preference: Vec<f32> = rows
        .iter()
        .map(|row| distance::squared_l2(row, &centroids[0]) - distance::squared_l2(row, &centroids[1]))
        .collect();
    let mut order: Vec<usize> = (0..rows.len()).collect();
    order.sort_by(|&a, &b| preference[a].total_cmp(&preference[b]).then(a.cmp(&b)));
    let least = (rows.len() / SMALLEST_SHARE).max(1);
    // All equal rows have preference 0 and fall into the first half. The clamp then moves the border to its limit.
    let in_first = preference.iter().filter(|&&p| p <= 0.0).count().clamp(least, rows.len() - least);
    let mut second = vec![false; rows.len()];
    order[in_first..].iter().for_each(|&i| second[i] = true);
    second
}

fn means(rows: &[&[f32]], second: &[bool]) -> [Vec<f32>; 2] {
    [false, true]
        .map(|half| mean(rows.iter().zip(second).filter(|&(_, &in_second)| in_second == half).map(|(row, _)| *row)))
}

/// Returns the mean of the rows, summed in f64. Returns an empty vector if there are no rows.
pub fn mean<'a>(rows: impl Iterator<Item = &'a [f32]>) -> Vec<f32> {
    let mut sum: Vec<f64> = Vec::new();
    let mut n = 0u32;
    for row in rows {
        sum.resize(row.len(), 0.0);
        sum.iter_mut().zip(row).for_each(|(sum, x)| *sum += f64::from(*x));
        n += 1;
    }
    sum.iter().map(|sum| (sum / f64::from(n)) as f32).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::env::derived_rng;

    #[test]
    fn two_clusters_come_apart() {
        let rows: Vec<[f32; 2]> = (0..40).map(|i| [if i % 2 == 0 { 0.0 } else { 10.0 }, i as f32 / 100.0]).collect();
        let rows: Vec<&[f32]> = rows.iter().map(|row| row.as_slice()).collect();
        for draw in 0..20 {
            let halves = two_means(&rows, &mut derived_rng(1, draw));
            assert!((0..40).all(|i| (halves.second[i] == halves.second[0]) == (i % 2 == 0)));
            assert_eq!(halves.centroids[0][0] + halves.centroids[1][0], 10.0);
        }
    }

    #[test]
    fn equal_rows_and_an_outlier_still_give_two_halves_worth_having() {
        let mut rows = vec![[1.0f32, 2.0]; 64];
        let halves = |rows: &[[f32; 2]]| {
            let rows: Vec<&[f32]> = rows.iter().map(|row| row.as_slice()).collect();
            two_means(&rows, &mut derived_rng(7, 0)).second.iter().filter(|&&second| second).count()
        };
        assert!((8..=56).contains(&halves(&rows)));
        rows[5] = [1e6, 1e6];
        assert!((8..=56).contains(&halves(&rows)));
        assert_eq!(halves(&rows[4..6]), 1);
    }
}
