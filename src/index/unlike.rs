//! Whether a query is like what is stored: of others nobody knows what a recall takes of them.
//!
//! It is told by the nearest posting that a search finds: by how far it is, and by how far that is for the place where it lies. The one
//! tells a query that is beside all clusters from those within one, the other a query that is near a dense one, and yet not in it,
//! from those in a wide one. For products of vectors, which do not change their order with the query's norm, it is the product for a
//! query of norm 1, and the cosine.

use std::ops::Deref;

use super::{
    needs::{at, sorted},
    search::{place, shard_of},
    snapshot::Snapshot,
    topk::Candidate,
};
use crate::{
    cells::log2,
    config::Metric,
    distance,
    error::Result,
    limits,
    shard::{self, DataFile},
    site::{self, Kind},
    storage::StorageFile,
};

/// How far a query is from the nearest that was found, in two ways; what cannot be told is NaN, which is never far.
pub(super) fn apart<F: StorageFile>(
    snapshot: &Snapshot<F::Lent>,
    data: &DataFile<F>,
    query: &[f32],
    nearest: &Candidate,
) -> Result<[f32; 2]> {
    let row = row(snapshot, data, nearest)?;
    Ok(match data.geometry().metric {
        Metric::L2 | Metric::Cosine => {
            let Some(shard) = shard_of(snapshot, nearest.shard) else { unreachable!("a candidate has a shard") };
            let (square, around) = (distance::squared_l2(query, row), distance::squared_l2(row, &shard.centroid));
            [square.sqrt(), (square / around).sqrt()]
        }
        Metric::Dot => {
            let (product, norm) = (distance::dot(query, row), distance::dot(query, query).sqrt());
            [-product / norm, -product / norm / distance::dot(row, row).sqrt()]
        }
    })
}

/// Whether a query that is so far apart is farther than nearly all that recalls were tried with.
pub(super) fn is_far(apart: [f32; 2], far: [f32; 2]) -> bool {
    site::applies(Kind::Recall, exceeds(apart, far))
}

/// Whether it is farther in one of the two ways.
pub(super) fn exceeds(apart: [f32; 2], far: [f32; 2]) -> bool {
    apart.iter().zip(far).any(|(&apart, far)| apart > far)
}

/// What nearly none of the queries exceeds that are so far apart, in each of the two ways.
pub(super) fn far(apart: &[[f32; 2]]) -> [f32; 2] {
    [0, 1].map(|way| {
        let known = known(apart, way);
        if known.is_empty() { f32::MAX } else { beyond_most(&known).min(f32::MAX) }
    })
}

/// The same, or more where many of the queries are so far from what they find.
pub(super) fn beyond_found(far: [f32; 2], found: &[[f32; 2]]) -> [f32; 2] {
    [0, 1].map(|way| {
        let found = known(found, way);
        if found.is_empty() { far[way] } else { at(&found, limits::CALIBRATION_FOUND.0).max(far[way]) }
    })
}

/// What is known of one way, in order.
fn known(apart: &[[f32; 2]], way: usize) -> Vec<f32> {
    sorted(apart.iter().map(|apart| apart[way]).filter(|apart| !apart.is_nan()))
}

/// The vector of a posting that was found.
pub(super) fn row<'a, F: StorageFile>(
    snapshot: &'a Snapshot<F::Lent>,
    data: &DataFile<F>,
    found: &Candidate,
) -> Result<&'a [f32]>
where
    F::Lent: Deref<Target = [u8]>,
{
    let (extent, slot) = place(snapshot, data.geometry(), found);
    Ok(shard::row(extent.slots(data)?, slot, data.geometry()))
}

/// The number that one in a thousand exceeds, judged by a sample in order. By fewer it is extrapolated: at worst the upper ones
/// thin out exponentially.
fn beyond_most(sorted: &[f32]) -> f32 {
    let most = at(sorted, limits::CALIBRATION_FAR);
    let upper = &sorted[sorted.len() - sorted.len().div_ceil(4)..];
    let Some(&least) = upper.first() else { return most };
    let unit = upper.iter().map(|x| f64::from(x - least)).sum::<f64>() / upper.len() as f64;
    // log2 is the same on every machine; of a small integer it is all that is wanted.
    let wanted = (1.0 / (1.0 - limits::CALIBRATION_FAR)).round() as u32;
    let doublings = log2(wanted) - log2(sorted.len() as u32);
    most + unit as f32 * std::f32::consts::LN_2 * doublings.max(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_numbers_tell_what_few_of_many_exceed() {
        // As many as there are of an exponential distribution, evenly: a thousandth part lies beyond 6.9.
        let exponential = |n: usize| -> Vec<f32> { (0..n).map(|i| -((1.0 - (i as f32 + 0.5) / n as f32).ln())).collect() };
        for n in [8, 50, 100, 768, 4_000] {
            let far = beyond_most(&exponential(n));
            assert!((5.2..8.2).contains(&far), "{far} of {n}");
        }
        assert_eq!(beyond_most(&[3.0]), 3.0);
    }

    #[test]
    fn what_cannot_be_told_is_never_far() {
        let known = [[1.0, f32::NAN], [2.0, f32::NAN], [f32::NAN, f32::NAN]];
        let far = far(&known);
        assert!((2.0..20.0).contains(&far[0]) && far[1] == f32::MAX, "{far:?}");
        for (apart, is) in [([1.0, 9.0], false), ([99.0, 0.0], true), ([f32::NAN, f32::NAN], false)] {
            assert_eq!(is_far(apart, far), is, "{apart:?}");
        }
        assert_eq!(super::far(&[]), [f32::MAX; 2]);
    }

    #[test]
    fn what_a_hundredth_of_the_searches_find_is_not_far() {
        let near: Vec<[f32; 2]> = (0..1_000).map(|i| [1.0 + i as f32 / 1_000.0, f32::NAN]).collect();
        let beyond = |misses: usize| {
            let found = near.iter().enumerate().map(|(i, &near)| if i < misses { [9.0, f32::NAN] } else { near });
            beyond_found(far(&near), &found.collect::<Vec<_>>())
        };
        assert_eq!(beyond(10), [9.0, f32::MAX]);
        assert_eq!(beyond(2), far(&near));
        assert_eq!(beyond_found([2.0, -1.0], &[]), [2.0, -1.0]);
    }
}
