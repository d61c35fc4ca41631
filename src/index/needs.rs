//! What it takes to find a share of results of which the way there is known.

use crate::{
    cells::log2,
    format::cells::Effort,
    limits,
};

use super::{probe::fresh_deviations, questions::Question};

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
}

/// Of what a search may miss, the parts that it may by the margin, by the deviations, by the groups that it looks into, and by
/// the margin of shards. A result is missed by more than one, or found by its other code.
const PARTS: [f32; 4] = [0.7, 0.5, 0.5, 0.5];

/// The margins that lead past the cells on a way, up to a result at these ranks: none of them is any other result's.
fn margins(way: &Way, bound: f32, ranks: &[usize], impatience: f32) -> Vec<f32> {
    let (mut most, mut next, mut quiet) = (f32::NEG_INFINITY, 0, 0);
    let margin = |(rank, &(base, unit)): (usize, &(f32, f32))| {
        most = most.max(beyond((base, unit), bound) + impatience * log2(quiet + 1));
        quiet += 1;
        while ranks.get(next) == Some(&rank) {
            (next, quiet) = (next + 1, 0);
        }
        most
    };
    way.cells.iter().enumerate().map(margin).collect()
}

/// By how many units a distance exceeds a bound.
fn beyond((base, unit): (f32, f32), bound: f32) -> f32 {
    (base - bound) / unit.max(f32::MIN_POSITIVE)
}

impl<'a> Needs<'a> {
    pub(super) fn new(asked: &[(&'a Question, &'a Way)], k: usize) -> Self {
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
            (upper.iter().map(|&margin| f64::from(margin - median)).sum::<f64>() / upper.len() as f64) as f32
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
        Self { ways, stored, cells, results, k, impatience, margins, deviations, shards }
    }

    /// How far to go to miss about such a share; `None` if nowhere does.
    fn limits(&self, missed: f32, recall: f32) -> Option<Limits> {
        let margin = at(&self.margins, 1.0 - PARTS[0] * missed);
        let deviations = at(&self.deviations, 1.0 - PARTS[1] * missed).max(limits::LEAST_DEVIATIONS);
        let shard_margin = at(&self.shards, 1.0 - PARTS[3] * missed);
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
            groups: at(&sorted(ranks), 1.0 - PARTS[2] * missed) as u32 + 1,
            cells: (at(&counts, 0.9) * 1.5) as u32 + 16,
        })
    }

    /// What is found so far.
    fn reached(&self, limits: Limits) -> Came {
        let shares = self.results.iter().zip(&self.stored).map(|(results, &stored)| {
            let found = results.iter().filter(|needed| limits.find(needed)).count();
            Answer { share: found as f64 / results.len() as f64, ..stored }
        });
        Came::of(&shares.collect::<Vec<_>>(), self.k)
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

/// What a question came to.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Answer {
    /// Whether it is a stored vector.
    pub(super) stored: bool,
    /// In which of two parts of the whole it lies.
    pub(super) second: bool,
    /// The share of the true nearest that was found.
    pub(super) share: f64,
    /// What that cost.
    pub(super) cost: f64,
}

impl Answer {
    /// Nothing yet.
    pub(super) fn of(question: &Question) -> Self {
        Self { stored: question.stored, second: question.second, share: 0.0, cost: 0.0 }
    }
}

/// What some questions came to.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Came {
    /// The mean share of the true nearest that was found.
    pub(super) reached: f64,
    /// Its standard error.
    error: f64,
    /// The same two of the part of the whole that comes to less.
    part: (f64, f64),
    /// What it cost, on the average.
    pub(super) cost: f64,
}

impl Came {
    /// Whether a recall is reached: by these questions, and by others but for a hundredth, as far as so few of them tell; also where
    /// these ask for one part of the whole only.
    pub(super) fn does(&self, recall: f32) -> bool {
        self.room(recall) >= 1.0
    }

    /// What these questions are to reach so that a recall is reached by others, and what those of one part are.
    fn wanted(&self, recall: f32) -> (f64, f64) {
        let (errors, less) = limits::CALIBRATION_SURE;
        let wanted = f64::from(recall);
        (wanted.max(wanted - less + errors * self.error), wanted - less + limits::CALIBRATION_PART.0 * self.part.1)
    }

    /// Whether more questions would hardly show that it is reached.
    pub(super) fn is_hopeless(&self, recall: f32) -> bool {
        let (errors, less) = limits::CALIBRATION_SURE;
        self.reached + errors * self.error < f64::from(recall) - less
    }

    /// How many times what is missed might be missed.
    pub(super) fn room(&self, recall: f32) -> f32 {
        let (wanted, of_part) = self.wanted(recall);
        let room = |reached: f64, wanted: f64| {
            let room = (1.0 - wanted).max(0.0) / (1.0 - reached).max(1e-9);
            // Neither rounding nor a share of nothing decides whether it does.
            if reached < wanted { room.min(0.999) } else { room.max(1.0) }
        };
        room(self.reached, wanted).min(room(self.part.0, of_part)) as f32
    }

    /// For `k` results. The mean of all, or that of the stored ones if it is less: moved ones may be harder than what is really asked, or
    /// easier.
    pub(super) fn of(answers: &[Answer], k: usize) -> Self {
        let all = Self::mean(answers.iter(), k);
        let stored = || answers.iter().filter(|answer| answer.stored);
        let of_stored = Self::mean(stored(), k);
        let less = if stored().next().is_some() && of_stored.reached < all.reached { of_stored } else { all };
        let parts = [false, true].map(|second| stored().filter(move |answer| answer.second == second));
        let many = parts.into_iter().filter(|part| part.clone().count() >= limits::CALIBRATION_PART.1);
        let parts = many.map(|part| Self::mean(part, k));
        let least = parts.min_by(|a, b| (a.reached - a.error).total_cmp(&(b.reached - b.error)));
        let part = least.map_or((1.0, 0.0), |part| (part.reached, part.error));
        Self { cost: all.cost, part, ..less }
    }

    fn mean<'a>(answers: impl Iterator<Item = &'a Answer> + Clone, k: usize) -> Self {
        let (n, mut came, mut squares) = (answers.clone().count().max(1) as f64, Self::default(), 0.0);
        for &Answer { share, cost, .. } in answers {
            came.reached += share / n;
            squares += share * share;
            came.cost += cost / n;
        }
        // Few that found all do not show that every one does: the error is that of one more, which misses what is much for so many results.
        let found = 1.0 - 1.0 / (k as f64).sqrt();
        let mean = (n * came.reached + found) / (n + 1.0);
        let variance = (squares + found * found) / (n + 1.0) - mean * mean;
        // And what few vary by is known less well: about as Student's distribution has it, so far out.
        came.error = (variance.max(0.0) / (n + 1.0)).sqrt() * (1.0 + 8.0 / n);
        came
    }
}

pub(super) fn sorted(numbers: impl Iterator<Item = f32>) -> Vec<f32> {
    let mut numbers: Vec<f32> = numbers.collect();
    numbers.sort_unstable_by(f32::total_cmp);
    numbers
}

/// The number that a share of these, in order, do not exceed.
pub(super) fn at(sorted: &[f32], share: f32) -> f32 {
    let rank = ((sorted.len() as f32 * share).ceil() as usize).min(sorted.len());
    rank.checked_sub(1).map_or(0.0, |i| sorted[i])
}
