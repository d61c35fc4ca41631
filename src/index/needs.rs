//! What it takes to find a share of results of which the way there is known.

use crate::{
    cells::{log2, quietness},
    format::cells::Effort,
    limits,
    site::{self, Kind},
};

use super::{probe::fresh_deviations, questions::Question, topk::Candidate};

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
    /// What the part of the whole reaches that comes to less, and by how much it is to exceed what is asked of it.
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
        (wanted.max(wanted - less + errors * self.error), wanted - less + self.part.1)
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
        let (whole, part) = (room(self.reached, wanted), room(self.part.0, of_part));
        (if site::applies(Kind::Recall, part < whole) { part } else { whole }) as f32
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
        let part = least.map_or((1.0, 0.0), |part| {
            let harder = all.reached - part.reached > limits::CALIBRATION_HARDER * part.error;
            let errors = if site::applies(Kind::Recall, harder) { limits::CALIBRATION_HARDER } else { limits::CALIBRATION_PART.0 };
            (part.reached, errors * part.error)
        });
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

/// The same, where the numbers tell no more than so many independent ones. What few of these exceed is extrapolated: at worst the upper
/// ones thin out exponentially.
pub(super) fn exceeded(sorted: &[f32], share: f32, independent: u32) -> f32 {
    let most = at(sorted, share);
    let upper = &sorted[sorted.len() - sorted.len().div_ceil(4)..];
    let Some(&least) = upper.first() else { return most };
    let unit = upper.iter().map(|&x| f64::from(x) - f64::from(least)).sum::<f64>() / upper.len() as f64;
    // log2 is the same on every machine; of an integer it is all that is wanted.
    let wanted = (1.0 / (1.0 - share).max(1e-6)).round() as u32;
    let doublings = log2(wanted) - log2(independent.max(1));
    most + unit as f32 * std::f32::consts::LN_2 * doublings.max(0.0)
}

/// The same of distances, the upper ones of which may thin out as a power: then a step grows as what it is added to.
pub(super) fn exceeded_distance(sorted: &[f32], share: f32, independent: u32) -> f32 {
    let (most, exceeded) = (at(sorted, share), exceeded(sorted, share, independent));
    let least = sorted.len().checked_sub(sorted.len().div_ceil(4)).and_then(|i| sorted.get(i));
    let power = least.filter(|&&least| least > 0.0).map_or(1.0, |&least| most / least);
    most + (exceeded - most) * power
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
    fn few_numbers_tell_what_few_of_many_exceed() {
        // As many as there are of an exponential distribution, evenly: a thousandth part lies beyond 6.9.
        let exponential = |n: usize| -> Vec<f32> { (0..n).map(|i| -((1.0 - (i as f32 + 0.5) / n as f32).ln())).collect() };
        for n in [8, 50, 100, 768, 4_000] {
            let far = exceeded(&exponential(n), 0.999, n as u32);
            assert!((5.2..8.2).contains(&far), "{far} of {n}");
        }
        assert_eq!(exceeded(&[3.0], 0.999, 1), 3.0);
        assert_eq!(exceeded_distance(&[3.0], 0.999, 1), 3.0);
        // And of one that thins out with the square, beyond 31.6.
        let power = |n: usize| -> Vec<f32> { (0..n).map(|i| (1.0 - (i as f32 + 0.5) / n as f32).powf(-0.5)).collect() };
        for n in [100, 400, 768] {
            let far = exceeded_distance(&power(n), 0.999, n as u32);
            assert!((24.0..60.0).contains(&far) && far > exceeded(&power(n), 0.999, n as u32), "{far} of {n}");
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
