//! Search efforts: interpolated between the recalls and the numbers of results that were calibrated, and the stop rule's unit.
//!
//! Invariant: between two efforts of which one is everything lies everything.

use crate::{
    format::cells::{Effort, Efforts, RECALLS, RESULTS},
    limits,
};

/// What lies between two efforts, `part` of the way; everything if one of them is.
fn between(low: &Effort, high: &Effort, part: f32) -> Effort {
    if [low, high].contains(&&Effort::everything()) {
        return Effort::everything();
    }
    let on = |a: f32, b: f32| a + (b - a) * part;
    Effort {
        margin: on(low.margin, high.margin),
        impatience: on(low.impatience, high.impatience),
        shard_margin: on(low.shard_margin, high.shard_margin),
        deviations: on(low.deviations, high.deviations),
        groups: on(low.groups as f32, high.groups as f32).ceil() as u32,
        cells: on(low.cells as f32, high.cells as f32).ceil() as u32,
    }
}

/// What a recall takes of which the neighbours in the table are known; more than the best that is known of: everything.
fn effort_of_recall(efforts: &[Effort; RECALLS.len()], recall: f32) -> Effort {
    let at = RECALLS.partition_point(|&known| known < recall);
    let (Some(&above), Some(high)) = (RECALLS.get(at), efforts.get(at)) else { return Effort::everything() };
    let Some(below) = at.checked_sub(1) else { return *high };
    let part = (recall - RECALLS[below]) / (above - RECALLS[below]);
    if part == 1.0 { *high } else { between(&efforts[below], high, part) }
}

/// Between two numbers of results what it takes is between theirs, by their logarithms. Beyond the last one it is what the
/// next better recall takes there and on, and far beyond it everything.
#[must_use]
pub fn effort(efforts: &Efforts, k: usize, recall: f32) -> Effort {
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
        _ if k > limits::CALIBRATION_BEYOND * RESULTS[last] as usize => Effort::everything(),
        _ => {
            let better = RECALLS.iter().copied().find(|&known| known > recall).unwrap_or(1.0);
            let [low, high] = [last - 1, last].map(|i| effort_of_recall(&efforts[i], better));
            let on = between(&low, &high, part(last - 1, last));
            let most = |on: f32, high: f32| on.max(high);
            Effort {
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

/// The logarithm of a number from 1 on, straight between powers of two, so that it is the same everywhere.
#[must_use]
pub fn log2(n: u32) -> f32 {
    let whole = n.ilog2();
    whole as f32 + (n - (1 << whole)) as f32 / (1u32 << whole) as f32
}

/// How much less a search expects of the cells to come: the doublings of what `quiet` cells without a result are beside the usual way from
/// one that holds a result to the next, where so many of `walked` did.
///
/// Beside the usual way, for that is long where results lie everywhere, as they do for queries that have another spread than the data.
pub fn quietness(quiet: u32, gains: u32, walked: u32) -> f32 {
    log2((walked + 1).saturating_add(quiet.saturating_mul(gains + 1))) - log2(walked + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn effort_grows_with_the_recall_and_the_results() {
        let mut efforts = [[Effort::default(); RECALLS.len()]; RESULTS.len()];
        for (j, efforts) in efforts.iter_mut().enumerate() {
            for (i, effort) in efforts.iter_mut().enumerate() {
                let (i, j) = (i as f32, j as f32);
                let margin = i + 100.0 * j;
                *effort = Effort { margin, shard_margin: i * 2.0, groups: i as u32 * 10, ..Effort::default() };
            }
        }
        let at = |k, recall| effort(&efforts, k, recall);
        assert_eq!(at(1, 0.0).margin, 0.0);
        assert_eq!(at(10, 0.95), Effort { margin: 204.0, shard_margin: 8.0, groups: 40, ..Effort::default() });
        assert!((at(1, 0.925).margin - 3.5).abs() < 1e-4);
        let between = at(6, 0.95).margin;
        assert!(between > 104.0 && between < 204.0 && between > at(5, 0.95).margin, "{between}");
        assert_eq!(at(1, 0.999), Effort::everything());
        assert_eq!(at(10, 1.0), Effort::everything());
        // Beyond the last number of results it goes on growing, and then it is everything.
        assert!(at(400, 0.95).margin > at(300, 0.98).margin && at(900, 0.95).margin > at(400, 0.95).margin);
        assert_eq!(at(300 * limits::CALIBRATION_BEYOND + 1, 0.5), Effort::everything());
        efforts[2][4] = Effort::everything();
        assert_eq!(effort(&efforts, 9, 0.96), Effort::everything());
        assert_eq!(effort(&efforts, 10, 0.9).margin, 203.0);
    }
}
