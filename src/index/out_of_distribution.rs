//! Detection of out-of-distribution queries, for which a calibrated effort does not predict the recall.
//!
//! The detection uses the nearest posting found, in two measures: its distance from the query, and that distance
//! relative to the distance between the posting and its shard's centroid. The first measure detects queries outside all
//! clusters. The second detects queries that are near a dense cluster but outside it, at a distance that is normal for
//! a wide cluster.
//!
//! A third measure does not depend on the results: how far the query lies outside the span of the data's principal axes
//! ([`subspace`](super::subspace)).
//!
//! For dot products the order of the results does not depend on the query's norm. The two measures are the negated
//! product for a query of norm 1, and the negated cosine.

use std::ops::Deref;

use super::{
    candidate::Candidate,
    quantile::{at, exceeded, exceeded_distance, sorted},
    snapshot::{Snapshot, extent_slot, shard_of},
    subspace::outside,
};
use crate::{
    cells::CellIndex,
    config::Metric,
    distance,
    error::Result,
    failpoint::protects,
    lease::Lease,
    shard::{self, DataFile, StoredVector},
    storage::StorageFile,
    tuning,
};

/// Computes the two measures of the remoteness of a query from the nearest posting found. An undefined measure is NaN,
/// which never exceeds a threshold.
///
/// # Errors
/// Returns `Corruption` if the posting's vector is damaged.
pub(super) fn remoteness<F: StorageFile>(
    snapshot: &Snapshot<F::Lent>,
    data: &DataFile<F>,
    query: &[f32],
    nearest: &Candidate,
) -> Result<[f32; 2]> {
    let row = row(snapshot, data, nearest)?.to_f32();
    let square = match data.geometry().metric {
        Metric::L2 => nearest.distance,
        // Near 1, a cosine loses the precision that the difference of the vectors keeps.
        Metric::Cosine => distance::squared_l2(query, &row),
        Metric::Dot => {
            let product = nearest.distance / distance::dot(query, query).sqrt();
            return Ok([product, product / distance::dot(&row, &row).sqrt()]);
        }
    };
    let around = distance::squared_l2(&row, shard_centroid_of(snapshot, nearest));
    Ok([square.sqrt(), (square / around).sqrt()])
}

/// Returns the centroid of the shard that holds a candidate.
pub(super) fn shard_centroid_of<'a, L: Deref<Target = [u8]> + Clone>(
    snapshot: &'a Snapshot<L>,
    found: &Candidate,
) -> &'a [f32] {
    let Some(shard) = shard_of(snapshot, found.shard) else { unreachable!("a candidate has a shard") };
    &shard.centroid
}

/// Reports whether a query is out of distribution. There are two conditions, of which one suffices:
///
/// * The query lies farther outside the span of the principal axes than the calibrated threshold, and the nearest
///   posting found does not.
/// * The query is farther from the nearest posting found than one of the calibrated thresholds `far`.
///
/// By dot products a few vectors are the nearest of many queries. If such a vector was added after the calibration, its
/// angle with ordinary queries is unknown. So for dot products the thresholds `far` are ignored if the nearest posting
/// is unindexed.
///
/// # Errors
/// Returns `Corruption` if the posting's vector is damaged.
pub(super) fn is_out_of_distribution<F: StorageFile>(
    snapshot: &Snapshot<F::Lent>,
    data: &DataFile<F>,
    query: &[f32],
    nearest: &Candidate,
    cells: &CellIndex<Lease<F::Lent>>,
) -> Result<bool> {
    let (metric, calibration) = (data.geometry().metric, cells.calibration());
    let beyond =
        |vector: &[f32]| outside(vector, &calibration.axes, cells.frame().centre(), metric) > calibration.outside;
    // If the nearest posting lies outside, too, the query is like data that came after the calibration, or like an
    // outlier among the data before.
    if protects!(Recall, beyond(query)) && !beyond(&row(snapshot, data, nearest)?.to_f32()) {
        return Ok(true);
    }
    let is_far = protects!(Recall, exceeds(remoteness(snapshot, data, query, nearest)?, calibration.far));
    let is_unknown = || metric == Metric::Dot && snapshot.unindexed_shard_of(nearest.slot_id()).is_some();
    Ok(is_far && !protects!(Recall, is_unknown()))
}

/// Reports whether at least one of the two measures exceeds its threshold.
pub(super) fn exceeds(remoteness: [f32; 2], far: [f32; 2]) -> bool {
    remoteness.iter().zip(far).any(|(&remoteness, far)| remoteness > far)
}

/// Computes the threshold of each measure: the value that a share of [`CALIBRATION_FAR`](tuning::CALIBRATION_FAR) of
/// the calibration queries does not exceed, extrapolated from the sample. A measure without a known value gets
/// `f32::MAX`.
pub(super) fn far(remoteness: &[[f32; 2]], metric: Metric) -> [f32; 2] {
    [0, 1]
        .map(|measure| threshold(&remoteness.iter().map(|remoteness| remoteness[measure]).collect::<Vec<_>>(), metric))
}

/// Computes the threshold of one measure: see [`far`].
pub(super) fn threshold(measures: &[f32], metric: Metric) -> f32 {
    // Only Euclidean distances had a heavy tail: with the exponential one, 2 of 40 indexes of data with one dominant
    // component flagged more than 1 % of ordinary queries. With the power tail for cosines, 5 of 10 indexes instead of
    // 1 missed isotropic queries on data with a decaying spectrum.
    let exceeded = if metric == Metric::L2 { exceeded_distance } else { exceeded };
    let known = sorted(measures.iter().copied().filter(|measure| !measure.is_nan()));
    if known.is_empty() {
        f32::MAX
    } else {
        exceeded(&known, tuning::CALIBRATION_FAR, known.len() as u32).min(f32::MAX)
    }
}

/// Raises the thresholds `far` to the value that a share of `CALIBRATION_FOUND.0` of `found` does not exceed.
pub(super) fn beyond_found(far: [f32; 2], found: &[[f32; 2]]) -> [f32; 2] {
    [0, 1].map(|measure| {
        let found = known(found, measure);
        if found.is_empty() { far[measure] } else { at(&found, tuning::CALIBRATION_FOUND.0).max(far[measure]) }
    })
}

/// Collects the known values of one measure in ascending order.
fn known(remoteness: &[[f32; 2]], measure: usize) -> Vec<f32> {
    sorted(remoteness.iter().map(|remoteness| remoteness[measure]).filter(|remoteness| !remoteness.is_nan()))
}

/// Returns the vector of a candidate.
///
/// # Errors
/// Returns `Corruption` if the extent is damaged.
pub(super) fn row<'a, F: StorageFile>(
    snapshot: &'a Snapshot<F::Lent>,
    data: &DataFile<F>,
    found: &Candidate,
) -> Result<StoredVector<'a>>
where
    F::Lent: Deref<Target = [u8]>,
{
    let (extent, slot) = extent_slot(snapshot, data.geometry(), found);
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
        for (remoteness, is) in [([1.0, 9.0], false), ([99.0, 0.0], true), ([f32::NAN, f32::NAN], false)] {
            assert_eq!(exceeds(remoteness, far), is, "{remoteness:?}");
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
