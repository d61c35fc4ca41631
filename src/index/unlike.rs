//! Whether a query is like what is stored: of others nobody knows what a recall takes of them.
//!
//! It is told by the nearest posting that a search finds: by how far it is, and by how far that is for the place where it lies. The one
//! tells a query that is beside all clusters from those within one, the other a query that is near a dense one, and yet not in it,
//! from those in a wide one. For products of vectors, which do not change their order with the query's norm, it is the product for a
//! query of norm 1, and the cosine.

use std::ops::Deref;

use super::{
    quantile::{at, exceeded, exceeded_distance, sorted},
    snapshot::{Snapshot, place, shard_of},
    topk::Candidate,
};
use crate::{
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
    let square = match data.geometry().metric {
        Metric::L2 => nearest.distance,
        // Of what is nearly the same, the product says too little.
        Metric::Cosine => distance::squared_l2(query, row),
        Metric::Dot => {
            let product = nearest.distance / distance::dot(query, query).sqrt();
            return Ok([product, product / distance::dot(row, row).sqrt()]);
        }
    };
    let around = distance::squared_l2(row, place_of(snapshot, nearest));
    Ok([square.sqrt(), (square / around).sqrt()])
}

/// Where other vectors lie that are stored with the one that was found.
pub(super) fn place_of<'a, L: Deref<Target = [u8]> + Clone>(snapshot: &'a Snapshot<L>, found: &Candidate) -> &'a [f32] {
    let Some(shard) = shard_of(snapshot, found.shard) else { unreachable!("a candidate has a shard") };
    &shard.centroid
}

/// Whether a query is farther from the nearest that was found than nearly all are that recalls were tried with.
///
/// By dot products a few vectors are the nearest of many queries; one of these that came since may have any angle with them, and says
/// nothing.
pub(super) fn is_far<F: StorageFile>(
    snapshot: &Snapshot<F::Lent>,
    data: &DataFile<F>,
    query: &[f32],
    (nearest, far): (&Candidate, [f32; 2]),
) -> Result<bool> {
    let is_far = site::applies(Kind::Recall, exceeds(apart(snapshot, data, query, nearest)?, far));
    let says_nothing = || data.geometry().metric == Metric::Dot && snapshot.fresh_of(nearest.place()).is_some();
    Ok(is_far && !site::applies(Kind::Recall, says_nothing()))
}

/// Whether it is farther in one of the two ways.
pub(super) fn exceeds(apart: [f32; 2], far: [f32; 2]) -> bool {
    apart.iter().zip(far).any(|(&apart, far)| apart > far)
}

/// What nearly none of the queries exceeds that are so far apart, in each of the two ways.
pub(super) fn far(apart: &[[f32; 2]], metric: Metric) -> [f32; 2] {
    let exceeded = if metric == Metric::Dot { exceeded } else { exceeded_distance };
    [0, 1].map(|way| {
        let known = known(apart, way);
        let count = known.len() as u32;
        if known.is_empty() { f32::MAX } else { exceeded(&known, limits::CALIBRATION_FAR, count).min(f32::MAX) }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_told_is_never_far() {
        let known = [[1.0, f32::NAN], [2.0, f32::NAN], [f32::NAN, f32::NAN]];
        let far = far(&known, Metric::L2);
        assert!((2.0..20.0).contains(&far[0]) && far[1] == f32::MAX, "{far:?}");
        for (apart, is) in [([1.0, 9.0], false), ([99.0, 0.0], true), ([f32::NAN, f32::NAN], false)] {
            assert_eq!(exceeds(apart, far), is, "{apart:?}");
        }
        assert_eq!(super::far(&[], Metric::L2), [f32::MAX; 2]);
    }

    #[test]
    fn what_one_search_in_a_thousand_finds_is_not_far() {
        let near: Vec<[f32; 2]> = (0..2_000).map(|i| [1.0 + i as f32 / 2_000.0, f32::NAN]).collect();
        let beyond = |misses: usize| {
            let found = near.iter().enumerate().map(|(i, &near)| if i < misses { [9.0, f32::NAN] } else { near });
            beyond_found(far(&near, Metric::L2), &found.collect::<Vec<_>>())
        };
        assert_eq!(beyond(3), [9.0, f32::MAX]);
        assert_eq!(beyond(0), far(&near, Metric::L2));
        assert!(beyond(2)[0] < 2.0, "{:?}", beyond(2));
        assert_eq!(beyond_found([2.0, -1.0], &[]), [2.0, -1.0]);
    }
}
