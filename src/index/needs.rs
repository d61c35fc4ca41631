//! What it takes to find a share of results of which the way there is known.

use crate::{
    cells::quietness,
    format::cells::Effort,
    limits,
    site::{self, Kind},
};

use super::{
    outcome::{Answer, Outcome},
    probe::fresh_deviations,
    quantile::{at, exceeded, sorted},
    questions::Question,
    topk::Candidate,
};

/// The cells on the way of a search for one question, in the order of their distances, and what it finds there.
pub(super) struct Way {
    /// How far each is, and what margins are in units of there.
    pub(super) cells: Vec<(f32, f32)>,
    /// The rank of the group of each.
    pub(super) groups: Vec<u32>,
    /// For each of the nearest, where it is found.
    pub(super) nearest: Vec<Found>,
    /// For each of the nearest, how far its shard is, and the unit there.
    pub(super) shards: Vec<(f32, f32)>,
}

/// Where one of the nearest is found.
#[derive(Clone, Copy)]
pub(super) enum Found {
    /// By its codes in these cells.
    Cells([Option<Coded>; 2]),
    /// In its shard, for it is in no cell: by its code, if it has one.
    Fresh(Option<Coded>),
}

/// A code of one of the nearest.
#[derive(Clone, Copy)]
pub(super) struct Coded {
    /// How many cells come before its own; nothing, where it is in none.
    pub(super) rank: usize,
    /// The distance that it says, and the standard deviation of that.
    pub(super) says: f32,
    pub(super) deviation: f32,
}

impl Coded {
    /// The deviations that are allowed for when a bound does not exclude it.
    fn deviations(&self, bound: f32) -> f32 {
        let short = self.says - bound;
        if short > 0.0 { short / self.deviation } else { 0.0 }
    }
}

impl Found {
    /// Its codes in cells.
    fn in_cells(&self) -> impl Iterator<Item = &Coded> {
        match self {
            Self::Cells(codes) => codes.iter().flatten(),
            Self::Fresh(_) => [].iter().flatten(),
        }
    }

    /// The rank of the first cell that has it.
    pub(super) fn rank(&self) -> Option<usize> {
        self.in_cells().map(|code| code.rank).min()
    }

    /// The same without the codes in cells that are too far.
    pub(super) fn within(self, cells: usize) -> Self {
        match self {
            Self::Cells(codes) => Self::Cells(codes.map(|code| code.filter(|code| code.rank < cells))),
            fresh => fresh,
        }
    }
}

/// What finds a posting: a margin to its cell, and deviations of its code.
#[derive(Clone, Copy)]
struct Need {
    margin: f32,
    deviations: f32,
}

/// What finds it by the one code or the other, or in its shard.
#[derive(Clone, Copy)]
enum Needed {
    Cells([Option<Need>; 2]),
    Fresh(Need),
}

impl Needed {
    /// What finds it first in a cell.
    fn first(&self) -> Option<&Need> {
        match self {
            Self::Cells(codes) => codes.iter().flatten().min_by(|a, b| a.margin.total_cmp(&b.margin)),
            Self::Fresh(_) => None,
        }
    }
}

/// How far a search goes.
#[derive(Clone, Copy)]
struct Limits {
    margin: f32,
    shard_margin: f32,
    deviations: f32,
    /// Those for what is in no cell.
    fresh_deviations: f32,
}

impl Limits {
    fn find(&self, needed: &Needed) -> bool {
        let finds = |need: &Need, margin: f32, deviations: f32| need.margin <= margin && need.deviations <= deviations;
        match needed {
            Needed::Cells(codes) => codes.iter().flatten().any(|need| finds(need, self.margin, self.deviations)),
            Needed::Fresh(need) => finds(need, self.shard_margin, self.fresh_deviations),
        }
    }
}

/// What a share of the results takes, as far as codes and centroids tell of which the true nearest are known.
pub(super) struct Needs<'a> {
    ways: Vec<&'a Way>,
    /// For each question, what is known of it whatever it finds.
    stored: Vec<Answer>,
    /// For each question, for each cell on its way, the least margin that leads past it.
    cells: Vec<Vec<f32>>,
    /// For each question, for each of its results, what finds it.
    results: Vec<Vec<Needed>>,
    k: usize,
    impatience: f32,
    /// The least margins that find each result by its first code in cells, in order.
    margins: Vec<f32>,
    /// The deviations that do.
    deviations: Vec<f32>,
    /// The margins of the shards that each result is in, whether it is in cells or not: by the next search it may not be.
    shards: Vec<f32>,
    /// How many results these are of, as many as would tell so much if none were one of several questions.
    different: f64,
}

/// Of what a search may miss, the parts that it may by the margin, by the deviations, by the groups that it looks into, and by
/// the margin of shards. A result is missed by more than one, or found by its other code.
const PARTS: [f32; 4] = [0.7, 0.5, 0.5, 0.5];

/// The margins that lead past the cells on a way, up to a result at these ranks: none of them is any other result's.
fn margins(way: &Way, bound: f32, ranks: &[usize], impatience: f32) -> Vec<f32> {
    let (mut most, mut next, mut quiet, mut gains) = (f32::NEG_INFINITY, 0, 0, 0);
    let margin = |(rank, &(base, unit)): (usize, &(f32, f32))| {
        most = most.max(beyond((base, unit), bound) + impatience * quietness(quiet, gains, rank as u32));
        quiet += 1;
        gains += u32::from(ranks.get(next) == Some(&rank));
        while ranks.get(next) == Some(&rank) {
            (next, quiet) = (next + 1, 0);
        }
        most
    };
    way.cells.iter().enumerate().map(margin).collect()
}

/// By how many units a distance exceeds a bound. Never so many that sums and multiples of them are no numbers.
fn beyond((base, unit): (f32, f32), bound: f32) -> f32 {
    let most = limits::SHARDS_TOLD.1;
    ((base - bound) / unit.max(f32::MIN_POSITIVE)).clamp(-most, most)
}

impl<'a> Needs<'a> {
    pub(super) fn new(asked: &[(&'a Question, &'a Way)], k: usize) -> Self {
        let bounds = asked.iter().filter(|(question, _)| question.bound(k).is_some());
        let results_of = bounds.flat_map(|(question, _)| question.nearest.iter().take(k));
        let bounded = asked.iter().filter_map(|&(question, way)| Some((Answer::of(question), (question.bound(k)?, way))));
        let (stored, asked): (Vec<Answer>, Vec<(f32, &Way)>) = bounded.unzip();
        let ranks: Vec<Vec<usize>> = asked
            .iter()
            .map(|(_, way)| {
                let mut ranks: Vec<usize> = way.nearest.iter().take(k).filter_map(Found::rank).collect();
                ranks.sort_unstable();
                ranks
            })
            .collect();
        let cells = |impatience: f32| -> Vec<Vec<f32>> {
            asked.iter().zip(&ranks).map(|((bound, way), ranks)| margins(way, *bound, ranks, impatience)).collect()
        };
        let first = |cells: &[Vec<f32>]| -> Vec<f32> {
            sorted(cells.iter().zip(&ranks).flat_map(|(margins, ranks)| ranks.iter().map(|&rank| margins[rank])))
        };
        // The margins that are needed thin out exponentially: their unit is by how much those above the median exceed it.
        let plain = first(&cells(0.0));
        let upper = &plain[plain.len() / 2..];
        let unit = upper.first().map_or(0.0, |&median| {
            (upper.iter().map(|&margin| f64::from(margin) - f64::from(median)).sum::<f64>() / upper.len() as f64) as f32
        });
        let impatience = limits::IMPATIENCE * unit;
        let cells = cells(impatience);
        let mut margins = first(&cells);
        let results: Vec<Vec<Needed>> = asked
            .iter()
            .zip(&cells)
            .map(|(&(bound, way), margins)| {
                let need = |code: Coded| Need { margin: margins[code.rank], deviations: code.deviations(bound) };
                let of = |(found, shard): (&Found, &(f32, f32))| match found {
                    Found::Cells(codes) => Needed::Cells(codes.map(|code| code.map(need))),
                    Found::Fresh(code) => {
                        let deviations = code.map_or(0.0, |code| code.deviations(bound));
                        Needed::Fresh(Need { margin: beyond(*shard, bound), deviations })
                    }
                };
                way.nearest.iter().zip(&way.shards).take(k).map(of).collect()
            })
            .collect();
        let in_cells = results.iter().flatten().filter(|needed| matches!(needed, Needed::Cells(_))).count();
        // What should be in a cell and is in none, or too far, is found by no margin.
        margins.resize(in_cells, f32::INFINITY);
        let deviations = results.iter().flatten().filter_map(Needed::first).map(|need| need.deviations);
        let deviations = sorted(deviations);
        let shards = asked.iter().flat_map(|(bound, way)| way.shards.iter().take(k).map(|&shard| beyond(shard, *bound)));
        let shards = sorted(shards);
        let ways = asked.iter().map(|&(_, way)| way).collect();
        let different = different(results_of.map(Candidate::place).collect());
        Self { ways, stored, cells, results, k, impatience, margins, deviations, shards, different }
    }

    /// The share of what is to be found that may lie in a shard that is not looked at. What comes later is not what this was found by: if
    /// many questions have one and the same result, they will have one that came since, and all of them miss it or none. So it is less
    /// where the results are few.
    fn missed_by_shards(&self, recall: f32) -> f32 {
        let (errors, less) = limits::CALIBRATION_SURE;
        let most = f64::from(1.0 - recall) + less;
        // The largest share p with p + errors · √(p / different) ≤ most.
        let half = errors / (2.0 * self.different.max(1.0).sqrt());
        let root = (half * half + most).sqrt() - half;
        PARTS[3] * (root * root) as f32
    }

    /// How far to go to miss about such a share; `None` if nowhere does.
    fn limits(&self, missed: f32, recall: f32) -> Option<Limits> {
        let margin = at(&self.margins, 1.0 - PARTS[0] * missed);
        let deviations = at(&self.deviations, 1.0 - PARTS[1] * missed).max(limits::LEAST_DEVIATIONS);
        let beyond = (PARTS[3] * missed).min(self.missed_by_shards(recall));
        let (least, any) = limits::SHARDS_TOLD;
        let too_few = f64::from(beyond) * self.different < 1.0 && self.different < least;
        let shard_margin = match site::applies(Kind::Recall, too_few) {
            true => any,
            false => exceeded(&self.shards, 1.0 - beyond, self.different as u32),
        };
        let fresh_deviations = fresh_deviations(recall).max(deviations);
        (margin < f32::INFINITY).then_some(Limits { margin, shard_margin, deviations, fresh_deviations })
    }

    /// What it takes to miss about such a share; `None` if nothing does.
    pub(super) fn effort(&self, missed: f32, recall: f32) -> Option<Effort> {
        let Limits { margin, shard_margin, deviations, .. } = self.limits(missed, recall)?;
        let within = |needs: &Vec<f32>| needs.partition_point(|&need| need <= margin);
        let counts = sorted(self.cells.iter().map(|needs| within(needs) as f32));
        let ranks = self.ways.iter().zip(&self.cells).flat_map(|(way, needs)| {
            way.groups.iter().take(within(needs)).map(|&rank| rank as f32)
        });
        Some(Effort {
            margin,
            impatience: self.impatience,
            shard_margin,
            deviations,
            groups: at(&sorted(ranks), 1.0 - PARTS[2] * missed) as u32 + 1 + limits::GROUPS_MORE,
            cells: (at(&counts, 0.9) * 1.5) as u32 + 16,
        })
    }

    /// What is found so far.
    fn reached(&self, limits: Limits) -> Outcome {
        let shares = self.results.iter().zip(&self.stored).map(|(results, &stored)| {
            let found = results.iter().filter(|needed| limits.find(needed)).count();
            Answer { share: found as f64 / results.len() as f64, ..stored }
        });
        Outcome::of(&shares.collect::<Vec<_>>(), self.k)
    }

    /// The largest share that may be missed by margins and deviations so that the results have a recall; none if nothing does.
    pub(super) fn missed(&self, recall: f32) -> Option<f32> {
        let (errors, part) = limits::CALIBRATION_ERRORS;
        let wanted = f64::from(recall);
        let does = |missed: f32| {
            let Some(limits) = self.limits(missed, recall) else { return false };
            let came = self.reached(limits);
            came.reached >= wanted + (errors * came.error).min(part * (1.0 - wanted))
        };
        let (mut enough, mut too_much) = (0.0, 2.0 * (1.0 - recall));
        if !does(enough) {
            return None;
        }
        for _ in 0..limits::CALIBRATION_ROUNDS {
            let between = 0.5 * (enough + too_much);
            match does(between) {
                true => enough = between,
                false => too_much = between,
            }
        }
        Some(enough)
    }
}

/// How many numbers tell as much of their mean as these, of which those with one key are equal.
fn different(mut keys: Vec<(u32, u32)>) -> f64 {
    keys.sort_unstable();
    let squares: f64 = keys.chunk_by(|a, b| a == b).map(|equal| (equal.len() as f64).powi(2)).sum();
    (keys.len() as f64).powi(2) / squares.max(1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A query that is just where a centroid is once made all efforts of an index no numbers.
    #[test]
    fn margins_are_numbers() {
        let finite = |x: f32| (3.0 * limits::IMPATIENCE * x).is_finite();
        for (place, bound) in [((0.0, 0.0), 5.0), ((0.0, 0.0), 0.0), ((1e30, 0.0), -1e30), ((5.0, 0.0), 0.0)] {
            assert!(finite(beyond(place, bound)), "{place:?} {bound}");
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
