//! Requirements of recall: a model of the effort that reaches a recall, computed from traces of queries.

use crate::{cells::quietness, failpoint::protects, format::calibration::SearchEffort, tuning};

use super::{
    super::{
        candidate::Candidate,
        quantile::{at, exceeded, sorted},
        search_limits::unindexed_deviations,
    },
    queries::CalibrationQuery,
    score::{CalibrationScore, QueryScore},
};

/// Trace of a query: the cells in the order of their distances, and the locations of its true nearest postings.
pub(super) struct ScanTrace {
    /// Distance of each cell, and the unit of margins at the cell.
    pub(super) cells: Vec<(f32, f32)>,
    /// Rank of the group of each cell.
    pub(super) groups: Vec<u32>,
    /// Location of each of the true nearest postings.
    pub(super) nearest: Vec<ResultLocation>,
    /// Distance of the shard of each of the true nearest postings, and the unit of margins at the shard.
    pub(super) shards: Vec<(f32, f32)>,
}

/// Location of one of the true nearest postings.
#[derive(Clone, Copy)]
pub(super) enum ResultLocation {
    /// Its codes in the traced cells.
    Cells([Option<CodeEstimate>; 2]),
    /// Its code in its shard, if it has one: the posting is unindexed.
    Unindexed(Option<CodeEstimate>),
}

/// Estimate of a code of one of the true nearest postings.
#[derive(Clone, Copy)]
pub(super) struct CodeEstimate {
    /// Number of cells nearer than the code's own; 0 for an unindexed posting.
    pub(super) rank: usize,
    /// Estimated distance.
    pub(super) estimate: f32,
    /// Standard deviation of the estimate.
    pub(super) deviation: f32,
}

impl CodeEstimate {
    /// Returns the number of standard deviations that a search must allow for, so that `bound` does not exclude the
    /// code.
    fn deviations(&self, bound: f32) -> f32 {
        let short = self.estimate - bound;
        if short > 0.0 { short / self.deviation } else { 0.0 }
    }
}

impl ResultLocation {
    /// Iterates the posting's codes in cells.
    fn in_cells(&self) -> impl Iterator<Item = &CodeEstimate> {
        match self {
            Self::Cells(codes) => codes.iter().flatten(),
            Self::Unindexed(_) => [].iter().flatten(),
        }
    }

    /// Returns the rank of the first cell that contains the posting.
    pub(super) fn rank(&self) -> Option<usize> {
        self.in_cells().map(|code| code.rank).min()
    }

    /// Returns the location without the codes in cells of rank `cells` or higher.
    pub(super) fn within(self, cells: usize) -> Self {
        match self {
            Self::Cells(codes) => Self::Cells(codes.map(|code| code.filter(|code| code.rank < cells))),
            unindexed => unindexed,
        }
    }
}

/// Margin and standard deviations that a search needs to find a posting by one code.
#[derive(Clone, Copy)]
struct Threshold {
    margin: f32,
    deviations: f32,
}

/// Alternative thresholds to find a posting: by either of its codes in cells, or by its shard.
#[derive(Clone, Copy)]
enum Thresholds {
    Cells([Option<Threshold>; 2]),
    Unindexed(Threshold),
}

impl Thresholds {
    /// Returns the threshold with the least margin to a cell; `None` if no cell has the posting.
    fn first(&self) -> Option<&Threshold> {
        match self {
            Self::Cells(codes) => codes.iter().flatten().min_by(|a, b| a.margin.total_cmp(&b.margin)),
            Self::Unindexed(_) => None,
        }
    }
}

/// Limits of a modelled search.
#[derive(Clone, Copy)]
struct Limits {
    margin: f32,
    shard_margin: f32,
    deviations: f32,
    /// Standard deviations allowed for in estimates of unindexed postings.
    unindexed_deviations: f32,
}

impl Limits {
    /// Reports whether a search with these limits finds a posting.
    fn find(&self, needed: &Thresholds) -> bool {
        let finds =
            |need: &Threshold, margin: f32, deviations: f32| need.margin <= margin && need.deviations <= deviations;
        match needed {
            Thresholds::Cells(codes) => codes.iter().flatten().any(|need| finds(need, self.margin, self.deviations)),
            Thresholds::Unindexed(need) => finds(need, self.shard_margin, self.unindexed_deviations),
        }
    }
}

/// Requirements of recall, modelled from the codes and centroids of queries whose true nearest postings are known.
pub(super) struct Requirements<'a> {
    /// Trace of each query.
    traces: Vec<&'a ScanTrace>,
    /// Score of each query before its search.
    stored: Vec<QueryScore>,
    /// For each query and each cell of its trace, the least margin at which a search scans the cell.
    cells: Vec<Vec<f32>>,
    /// For each query and each of its results, the thresholds that find it.
    results: Vec<Vec<Thresholds>>,
    k: usize,
    impatience: f32,
    /// Least margin that finds each result by its first code in cells, ascending. Infinite if no traced cell has the
    /// result.
    margins: Vec<f32>,
    /// Standard deviations that find each result by its first code in cells, ascending.
    deviations: Vec<f32>,
    /// Margin of the shard of each result, ascending. Results in cells are included, because they may be unindexed in
    /// later searches.
    shards: Vec<f32>,
    /// Effective number of different results: results that several queries share count as fewer.
    different: f64,
}

/// Shares of the allowed misses that each limit of a search may cause. `PARTS[0]`: the margin of cells. `PARTS[1]`: the
/// standard deviations. `PARTS[2]`: the number of groups. `PARTS[3]`: the margin of shards.
///
/// They add up to more than 1, because a result may be missed by more than one cause, or found by its other code.
const PARTS: [f32; 4] = [0.7, 0.5, 0.5, 0.5];

/// Computes for each cell of a trace the least margin at which a search scans it. The model assumes that the cells at
/// `ranks`, ascending, give a result and no other cell does.
fn margins(trace: &ScanTrace, bound: f32, ranks: &[usize], impatience: f32) -> Vec<f32> {
    let (mut most, mut next, mut quiet, mut gains) = (f32::NEG_INFINITY, 0, 0, 0);
    let margin = |(rank, &(base, unit)): (usize, &(f32, f32))| {
        most = most.max(beyond(base, unit, bound) + impatience * quietness(quiet, gains, rank as u32));
        quiet += 1;
        gains += u32::from(ranks.get(next) == Some(&rank));
        while ranks.get(next) == Some(&rank) {
            (next, quiet) = (next + 1, 0);
        }
        most
    };
    trace.cells.iter().enumerate().map(margin).collect()
}

/// Computes the distance beyond a bound in units of the margin. The result is clamped, so that sums and multiples of it
/// stay finite.
fn beyond(base: f32, unit: f32, bound: f32) -> f32 {
    let most = tuning::SHARDS_TOLD.1;
    ((base - bound) / unit.max(f32::MIN_POSITIVE)).clamp(-most, most)
}

impl<'a> Requirements<'a> {
    /// Builds the model for `k` results from the traces of queries.
    pub(super) fn new(traced: &[(&'a CalibrationQuery, &'a ScanTrace)], k: usize) -> Self {
        let bounds = traced.iter().filter(|(calibration_query, _)| calibration_query.bound(k).is_some());
        let results_of = bounds.flat_map(|(calibration_query, _)| calibration_query.nearest.iter().take(k));
        let bounded = traced.iter().filter_map(|&(calibration_query, trace)| {
            Some((QueryScore::of(calibration_query), (calibration_query.bound(k)?, trace)))
        });
        let (stored, traced): (Vec<QueryScore>, Vec<(f32, &ScanTrace)>) = bounded.unzip();
        let ranks: Vec<Vec<usize>> = traced
            .iter()
            .map(|(_, trace)| {
                let mut ranks: Vec<usize> = trace.nearest.iter().take(k).filter_map(ResultLocation::rank).collect();
                ranks.sort_unstable();
                ranks
            })
            .collect();
        let cells = |impatience: f32| -> Vec<Vec<f32>> {
            traced.iter().zip(&ranks).map(|((bound, trace), ranks)| margins(trace, *bound, ranks, impatience)).collect()
        };
        let first = |cells: &[Vec<f32>]| -> Vec<f32> {
            sorted(cells.iter().zip(&ranks).flat_map(|(margins, ranks)| ranks.iter().map(|&rank| margins[rank])))
        };
        // The tail of the needed margins is exponential. Its scale is the mean excess of the upper half over the
        // median.
        let plain = first(&cells(0.0));
        let upper = &plain[plain.len() / 2..];
        let unit = upper.first().map_or(0.0, |&median| {
            (upper.iter().map(|&margin| f64::from(margin) - f64::from(median)).sum::<f64>() / upper.len() as f64) as f32
        });
        let impatience = tuning::IMPATIENCE * unit;
        let cells = cells(impatience);
        let mut margins = first(&cells);
        let results: Vec<Vec<Thresholds>> = traced
            .iter()
            .zip(&cells)
            .map(|(&(bound, trace), margins)| {
                let need =
                    |code: CodeEstimate| Threshold { margin: margins[code.rank], deviations: code.deviations(bound) };
                let of = |(found, shard): (&ResultLocation, &(f32, f32))| match found {
                    ResultLocation::Cells(codes) => Thresholds::Cells(codes.map(|code| code.map(need))),
                    ResultLocation::Unindexed(code) => {
                        let deviations = code.map_or(0.0, |code| code.deviations(bound));
                        Thresholds::Unindexed(Threshold { margin: beyond(shard.0, shard.1, bound), deviations })
                    }
                };
                trace.nearest.iter().zip(&trace.shards).take(k).map(of).collect()
            })
            .collect();
        let in_cells = results.iter().flatten().filter(|needed| matches!(needed, Thresholds::Cells(_))).count();
        // No margin finds a result that has no code in the traced cells.
        margins.resize(in_cells, f32::INFINITY);
        let deviations = results.iter().flatten().filter_map(Thresholds::first).map(|need| need.deviations);
        let deviations = sorted(deviations);
        let shards = traced
            .iter()
            .flat_map(|(bound, trace)| trace.shards.iter().take(k).map(|&(base, unit)| beyond(base, unit, *bound)));
        let shards = sorted(shards);
        let traces = traced.iter().map(|&(_, trace)| trace).collect();
        let different = different(results_of.map(Candidate::slot_id).collect());
        Self { traces, stored, cells, results, k, impatience, margins, deviations, shards, different }
    }

    /// Returns the share of the results that may be missed because their shard is not scanned.
    ///
    /// Later postings differ from those of the calibration. If many queries have one result in common, they may also
    /// have a later one in common, which all of them find or all of them miss. So the share is less if the results are
    /// few.
    fn missed_by_shards(&self, recall: f32) -> f32 {
        let (errors, less) = tuning::CALIBRATION_SURE;
        let most = f64::from(1.0 - recall) + less;
        // The largest share p with p + errors · √(p / different) ≤ most.
        let half = errors / (2.0 * self.different.max(1.0).sqrt());
        let root = (half * half + most).sqrt() - half;
        PARTS[3] * (root * root) as f32
    }

    /// Returns the limits that miss about a share `missed` of the results; `None` if no finite margin does.
    fn limits(&self, missed: f32, recall: f32) -> Option<Limits> {
        let margin = at(&self.margins, 1.0 - PARTS[0] * missed);
        let deviations = at(&self.deviations, 1.0 - PARTS[1] * missed).max(tuning::LEAST_DEVIATIONS);
        let beyond = (PARTS[3] * missed).min(self.missed_by_shards(recall));
        let (least, any) = tuning::SHARDS_TOLD;
        let too_few = f64::from(beyond) * self.different < 1.0 && self.different < least;
        let shard_margin =
            if protects!(Recall, too_few) { any } else { exceeded(&self.shards, 1.0 - beyond, self.different as u32) };
        let unindexed_deviations = unindexed_deviations(recall).max(deviations);
        (margin < f32::INFINITY).then_some(Limits { margin, shard_margin, deviations, unindexed_deviations })
    }

    /// Returns the effort that misses about a share `missed` of the results; `None` if no finite margin does.
    pub(super) fn effort(&self, missed: f32, recall: f32) -> Option<SearchEffort> {
        let Limits { margin, shard_margin, deviations, .. } = self.limits(missed, recall)?;
        let within = |margins: &Vec<f32>| margins.partition_point(|&need| need <= margin);
        let counts = sorted(self.cells.iter().map(|margins| within(margins) as f32));
        let ranks = self
            .traces
            .iter()
            .zip(&self.cells)
            .flat_map(|(trace, margins)| trace.groups.iter().take(within(margins)).map(|&rank| rank as f32));
        let (share, times, more) = tuning::EFFORT_CELLS;
        Some(SearchEffort {
            margin,
            impatience: self.impatience,
            shard_margin,
            deviations,
            groups: at(&sorted(ranks), 1.0 - PARTS[2] * missed) as u32 + 1 + tuning::GROUPS_MORE,
            cells: (at(&counts, share) * times) as u32 + more,
        })
    }

    /// Scores the modelled searches with these limits.
    fn reached(&self, limits: Limits) -> CalibrationScore {
        let shares = self.results.iter().zip(&self.stored).map(|(results, &stored)| {
            let found = results.iter().filter(|needed| limits.find(needed)).count();
            QueryScore { share: found as f64 / results.len() as f64, ..stored }
        });
        CalibrationScore::of(&shares.collect::<Vec<_>>(), self.k)
    }

    /// Finds the largest share that margin and deviations may miss so that the modelled searches reach a recall. `None`
    /// if they do not reach it with a share of 0.
    pub(super) fn missed(&self, recall: f32) -> Option<f32> {
        let (errors, part) = tuning::CALIBRATION_ERRORS;
        let wanted = f64::from(recall);
        let reaches = |missed: f32| {
            let Some(limits) = self.limits(missed, recall) else { return false };
            let score = self.reached(limits);
            score.reached >= wanted + (errors * score.error).min(part * (1.0 - wanted))
        };
        let (mut enough, mut too_much) = (0.0, 2.0 * (1.0 - recall));
        if !reaches(enough) {
            return None;
        }
        for _ in 0..tuning::CALIBRATION_ROUNDS {
            let between = 0.5 * (enough + too_much);
            if reaches(between) { enough = between } else { too_much = between }
        }
        Some(enough)
    }
}

/// Returns the effective sample size of numbers that are equal if their keys are equal: n² / Σ nᵢ², where nᵢ is the
/// count of a key.
fn different(mut keys: Vec<(u32, u32)>) -> f64 {
    keys.sort_unstable();
    let squares: f64 = keys.chunk_by(|a, b| a == b).map(|equal| (equal.len() as f64).powi(2)).sum();
    (keys.len() as f64).powi(2) / squares.max(1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Regression test: a query equal to a centroid once made all efforts of an index infinite or NaN.
    #[test]
    fn margins_are_numbers() {
        let finite = |x: f32| (3.0 * tuning::IMPATIENCE * x).is_finite();
        for (base, bound) in [(0.0, 5.0), (0.0, 0.0), (1e30, -1e30), (5.0, 0.0)] {
            assert!(finite(beyond(base, 0.0, bound)), "{base} {bound}");
        }
    }

    #[test]
    fn what_all_have_counts_as_one() {
        assert_eq!(different((0..1_000).map(|i| (0, i)).collect()), 1_000.0);
        assert_eq!(different((0..1_000).map(|i| (1, i % 10)).collect()), 10.0);
        assert!(different((0..1_000).map(|i| (i % 2, if i % 2 > 0 { 7 } else { i })).collect()) < 4.1);
        assert_eq!(different(Vec::new()), 0.0);
    }
}
