//! Search efforts: interpolation between the calibrated recalls and numbers of results, and the unit of the stop rule.
//!
//! Invariant: strictly between two efforts of which one is exhaustive, the effort is exhaustive.

use crate::{
    format::calibration::{EffortTable, RECALLS, RESULTS, SearchEffort},
    tuning,
};

/// Interpolates between two efforts by the fraction `part`. Returns the exhaustive effort if either one is exhaustive.
/// A `part` above 1 extrapolates.
fn between(low: &SearchEffort, high: &SearchEffort, part: f32) -> SearchEffort {
    if [low, high].contains(&&SearchEffort::exhaustive()) {
        return SearchEffort::exhaustive();
    }
    let on = |a: f32, b: f32| a + (b - a) * part;
    SearchEffort {
        margin: on(low.margin, high.margin),
        impatience: on(low.impatience, high.impatience),
        shard_margin: on(low.shard_margin, high.shard_margin),
        deviations: on(low.deviations, high.deviations),
        groups: on(low.groups as f32, high.groups as f32).ceil() as u32,
        cells: on(low.cells as f32, high.cells as f32).ceil() as u32,
    }
}

/// Returns the effort for a recall, interpolated between the next lower and the next higher recall of the table. Below
/// the lowest recall it is the effort of the lowest; above the highest it is exhaustive.
fn effort_of_recall(efforts: &[SearchEffort; RECALLS.len()], recall: f32) -> SearchEffort {
    let at = RECALLS.partition_point(|&known| known < recall);
    let (Some(&above), Some(high)) = (RECALLS.get(at), efforts.get(at)) else { return SearchEffort::exhaustive() };
    let Some(below) = at.checked_sub(1) else { return *high };
    let part = (recall - RECALLS[below]) / (above - RECALLS[below]);
    if part == 1.0 { *high } else { between(&efforts[below], high, part) }
}

/// Returns the search effort for the target recall `recall` at `k` results.
///
/// Between two calibrated numbers of results the effort is interpolated linearly in [`log2`] of the number. Beyond the
/// largest number it is extrapolated for the next higher recall of the table, and is at least the effort of that recall
/// at the largest number. Beyond `tuning::CALIBRATION_BEYOND` times the largest number it is exhaustive.
#[must_use]
pub fn effort(efforts: &EffortTable, k: usize, recall: f32) -> SearchEffort {
    let at = RESULTS.partition_point(|&known| (known as usize) < k);
    let last = RESULTS.len() - 1;
    let part = |low: usize, high: usize| {
        let [low, high] = [low, high].map(|i| log2(RESULTS[i]));
        (log2(k as u32) - low) / (high - low)
    };
    match at {
        0 => effort_of_recall(&efforts[0], recall),
        _ if at <= last => {
            let [low, high] = [at - 1, at].map(|i| effort_of_recall(&efforts[i], recall));
            if RESULTS[at] as usize == k { high } else { between(&low, &high, part(at - 1, at)) }
        }
        _ if k > tuning::CALIBRATION_BEYOND * RESULTS[last] as usize => SearchEffort::exhaustive(),
        _ => {
            let better = RECALLS.iter().copied().find(|&known| known > recall).unwrap_or(1.0);
            let [low, high] = [last - 1, last].map(|i| effort_of_recall(&efforts[i], better));
            let on = between(&low, &high, part(last - 1, last));
            let most = |on: f32, high: f32| on.max(high);
            SearchEffort {
                margin: most(on.margin, high.margin),
                impatience: on.impatience.min(high.impatience),
                shard_margin: most(on.shard_margin, high.shard_margin),
                deviations: most(on.deviations, high.deviations),
                groups: on.groups.max(high.groups),
                cells: on.cells.max(high.cells),
            }
        }
    }
}

/// Returns the base-2 logarithm of `n`, which must be at least 1. The function is linear between powers of two, so that
/// all CPUs compute the same bits.
#[must_use]
pub fn log2(n: u32) -> f32 {
    let whole = n.ilog2();
    whole as f32 + (n - (1 << whole)) as f32 / (1u32 << whole) as f32
}

/// Returns the number of doublings that the cells since the last result amount to, relative to the usual gap between
/// two cells with a result. The stop rule lowers the margin by this number times the impatience.
///
/// `quiet` is the number of cells since the last one with a result; `gains` of `walked` cells held a result. The value
/// is [`log2`] of `walked + 1 + quiet × (gains + 1)`, less [`log2`] of `walked + 1`. The usual gap is the unit because
/// it is long where results are spread over many cells, as they are for out-of-distribution queries.
pub fn quietness(quiet: u32, gains: u32, walked: u32) -> f32 {
    log2((walked + 1).saturating_add(quiet.saturating_mul(gains + 1))) - log2(walked + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn effort_grows_with_the_recall_and_the_results() {
        let mut efforts = [[SearchEffort::default(); RECALLS.len()]; RESULTS.len()];
        for (j, efforts) in efforts.iter_mut().enumerate() {
            for (i, effort) in efforts.iter_mut().enumerate() {
                let (i, j) = (i as f32, j as f32);
                let margin = i + 100.0 * j;
                *effort =
                    SearchEffort { margin, shard_margin: i * 2.0, groups: i as u32 * 10, ..SearchEffort::default() };
            }
        }
        let at = |k, recall| effort(&efforts, k, recall);
        assert_eq!(at(1, 0.0).margin, 0.0);
        assert_eq!(
            at(10, 0.95),
            SearchEffort { margin: 204.0, shard_margin: 8.0, groups: 40, ..SearchEffort::default() }
        );
        assert!((at(1, 0.925).margin - 3.5).abs() < 1e-4);
        let between = at(6, 0.95).margin;
        assert!(between > 104.0 && between < 204.0 && between > at(5, 0.95).margin, "{between}");
        assert_eq!(at(1, 0.999), SearchEffort::exhaustive());
        assert_eq!(at(10, 1.0), SearchEffort::exhaustive());
        // Beyond the largest number of results the effort grows further, up to a limit from which it is exhaustive.
        assert!(at(400, 0.95).margin > at(300, 0.98).margin && at(900, 0.95).margin > at(400, 0.95).margin);
        assert_eq!(at(300 * tuning::CALIBRATION_BEYOND + 1, 0.5), SearchEffort::exhaustive());
        efforts[2][4] = SearchEffort::exhaustive();
        assert_eq!(effort(&efforts, 9, 0.96), SearchEffort::exhaustive());
        assert_eq!(effort(&efforts, 10, 0.9).margin, 203.0);
    }
}
