//! What it takes to find a share of the nearest, found by asking for stored vectors.

use std::{
    ops::Deref,
    sync::{Arc, OnceLock},
};

use super::{
    probe::{Reach, Silent, Trace, doublings, probe},
    search::{deviations, distance_by, shard_of},
    snapshot::Snapshot,
    topk::{Candidate, TopK},
};
use crate::{
    cells::{Asked, CellIndex, held_out},
    codes::Query,
    env::Workers,
    error::{Result, ShardexError},
    format::cells::{Effort, RECALLS},
    limits,
    shard::{self, DataFile},
    storage::StorageFile,
};

/// A cell on the way of a search.
#[derive(Clone, Copy, Debug)]
struct Step {
    /// How much farther it is than the farthest result so far.
    beyond: f32,
    /// Doublings of the cells since the last one that had a result.
    quiet: f32,
}

/// Hears which cells a search goes through, and where it finds what.
#[derive(Default)]
struct Way {
    steps: Vec<Step>,
    /// Each posting offered, by place, with the number of steps to it.
    offered: Vec<(u32, u32, usize)>,
}

impl Trace for Way {
    fn cell(&mut self, beyond: f32, quiet: u32) {
        self.steps.push(Step { beyond, quiet: doublings(quiet) });
    }

    fn offered(&mut self, candidate: &Candidate, step: u32) {
        self.offered.push((candidate.shard, candidate.slot, step as usize));
    }
}

/// What the results of one query took.
#[derive(Default)]
struct Took {
    steps: Vec<Step>,
    /// For each result, how many steps.
    results: Vec<usize>,
    /// For each result, its shard and slot.
    places: Vec<(u32, u32)>,
    /// For each result, how much farther its shard is than the farthest of them.
    shards: Vec<f32>,
    /// For each cell, in the order of their estimates, the rank of its group.
    groups: Vec<usize>,
}

/// The margins that one search needs to get so far, under some impatience.
struct Needs {
    /// For each step, the least margin that leads past it.
    steps: Vec<f32>,
    /// For each result, the least margin that finds it.
    results: Vec<f32>,
}

impl Needs {
    fn new(took: &Took, impatience: f32) -> Self {
        let mut most = f32::NEG_INFINITY;
        let need = |step: &Step| {
            most = most.max(step.beyond + impatience * step.quiet);
            most
        };
        let steps: Vec<f32> = took.steps.iter().map(need).collect();
        let first = f32::NEG_INFINITY;
        let results = took.results.iter().map(|&n| n.checked_sub(1).map_or(first, |at| steps[at])).collect();
        Self { steps, results }
    }

    /// Steps under a margin.
    fn within(&self, margin: f32) -> usize {
        self.steps.partition_point(|&need| need <= margin)
    }
}

/// What a share of the results takes.
struct Table {
    needs: Vec<Needs>,
    impatience: f32,
    /// The margins of all results, in order.
    margins: Vec<f32>,
    shards: Vec<f32>,
}

impl Table {
    fn new(took: &[Took]) -> Self {
        let needs = |impatience| took.iter().map(|took| Needs::new(took, impatience)).collect::<Vec<_>>();
        let margins = |needs: &[Needs]| sorted(needs.iter().flat_map(|needs| needs.results.iter().copied()));
        // The margins that are needed thin out exponentially: their unit is by how much those above the median exceed it.
        // What is found before there is a bound needs none.
        let mut plain = margins(&needs(0.0));
        plain.retain(|margin| margin.is_finite());
        let upper = &plain[plain.len() / 2..];
        let unit = upper.first().map_or(0.0, |&median| {
            (upper.iter().map(|&margin| f64::from(margin - median)).sum::<f64>() / upper.len() as f64) as f32
        });
        let impatience = limits::IMPATIENCE * unit;
        let needs = needs(impatience);
        let margins = margins(&needs);
        let shards = sorted(took.iter().flat_map(|took| took.shards.iter().copied()));
        Self { needs, impatience, margins, shards }
    }

    /// What it takes to miss so large a share by the margin, and half as much by the groups.
    fn effort(&self, took: &[Took], missed: f32) -> Effort {
        let margin = at(&self.margins, 1.0 - missed);
        let counts = sorted(self.needs.iter().map(|needs| needs.within(margin) as f32));
        let ranks = took
            .iter()
            .zip(&self.needs)
            .flat_map(|(took, needs)| took.groups.iter().take(needs.within(margin)).map(|&rank| rank as f32));
        Effort {
            margin,
            impatience: self.impatience,
            shard_margin: at(&self.shards, 1.0 - 0.5 * missed),
            groups: at(&sorted(ranks), 1.0 - 0.5 * missed) as u32 + 1,
            cells: (at(&counts, 0.9) * 1.5) as u32 + 16,
        }
    }
}

/// Fills in what each recall takes, by searches for some stored vectors that look at far more than it should take, and by
/// asking for them again with what it should. Deterministic. Efforts that are known stay; cancelled, it leaves
/// [`Effort::everything`] in the place of what was not found yet.
///
/// # Errors
/// `Corruption` if a vector is damaged.
pub fn calibrate<F: StorageFile, B: Deref<Target = [u8]> + Send + Sync>(
    snapshot: &Arc<Snapshot<F::Lent>>,
    data: &DataFile<F>,
    (cells, known): (&CellIndex<B>, [Effort; RECALLS.len()]),
    workers: Workers<'_>,
    seed: (u128, u64),
) -> Result<[Effort; RECALLS.len()]> {
    let shards = snapshot.iter().map(|(number, shard)| (number, &**shard));
    let queries = held_out(shards, snapshot.live as usize, seed);
    let held_out = HeldOut { snapshot, data, cells, workers, queries };
    let took = match held_out.each(&|query| held_out.search_wide(query)) {
        Err(ShardexError::Closed) => Vec::new(),
        took => took?,
    };
    if took.iter().all(|took| took.results.is_empty()) {
        return Ok(known);
    }
    let table = Table::new(&took);
    let mut efforts = known;
    for (effort, recall) in efforts.iter_mut().zip(RECALLS).filter(|(effort, _)| **effort == Effort::everything()) {
        match held_out.halve(&table, &took, recall) {
            Err(ShardexError::Closed) => break,
            found => *effort = found?,
        }
    }
    Ok(efforts)
}

fn sorted(numbers: impl Iterator<Item = f32>) -> Vec<f32> {
    let mut numbers: Vec<f32> = numbers.collect();
    numbers.sort_unstable_by(f32::total_cmp);
    numbers
}

/// The number that a share of these, in order, do not exceed.
fn at(sorted: &[f32], share: f32) -> f32 {
    let rank = ((sorted.len() as f32 * share).ceil() as usize).min(sorted.len());
    rank.checked_sub(1).map_or(0.0, |i| sorted[i])
}

/// Stored vectors that no centroid knows.
struct HeldOut<'a, F: StorageFile, B> {
    snapshot: &'a Arc<Snapshot<F::Lent>>,
    data: &'a DataFile<F>,
    cells: &'a CellIndex<B>,
    workers: Workers<'a>,
    queries: Vec<(usize, u32, usize)>,
}

/// Neighbours that are asked for: the vector itself is one of them.
const K: usize = limits::CALIBRATION_K + 1;

impl<F: StorageFile, B: Deref<Target = [u8]> + Send + Sync> HeldOut<'_, F, B> {
    /// One result for each query, on as many threads as there are.
    fn each<T: Send + Sync>(&self, ask: &(impl Fn(usize) -> Result<T> + Sync)) -> Result<Vec<T>> {
        let results: Vec<OnceLock<Result<T>>> = self.queries.iter().map(|_| OnceLock::new()).collect();
        // Each number is given out once, so each place is set once.
        self.workers.for_each(results.len(), &|i| drop(results[i].set(ask(i))))?;
        results.into_iter().filter_map(OnceLock::into_inner).collect()
    }

    /// The vector of a query.
    fn vector(&self, query: usize) -> Result<Vec<f32>> {
        let geometry = self.data.geometry();
        let slots = geometry.extent_slots();
        let (_, number, slot) = self.queries[query];
        let Some(shard) = shard_of(self.snapshot, number) else { unreachable!("the snapshot's own shard") };
        Ok(shard::row(shard.extents()[slot / slots].slots(self.data)?, slot % slots, geometry).to_vec())
    }

    /// Those of some results that are not the vector itself.
    fn others(&self, query: usize, results: TopK) -> impl Iterator<Item = Candidate> {
        let (_, number, slot) = self.queries[query];
        results.into_sorted().into_iter().filter(move |hit| (hit.shard, hit.slot as usize) != (number, slot))
    }

    /// Looks at far more than it should take, and notes what it took.
    fn search_wide(&self, query: usize) -> Result<Took> {
        let (cells, metric) = (self.cells, self.data.geometry().metric);
        let codes = (cells.codes() / 5).max(limits::CALIBRATION_CODES) as usize;
        let reach = Reach {
            // Nothing is fresh to the cells just made; what came since is none of theirs.
            effort: Effort { shard_margin: f32::NEG_INFINITY, ..Effort::everything() },
            deviations: 3.0,
            codes,
        };
        let vector = self.vector(query)?;
        let mut way = Way::default();
        let found = probe(self.snapshot, self.data, cells, (&vector, K), reach, &mut way)?;
        let mut took = Took { steps: way.steps, ..Took::default() };
        let others: Vec<Candidate> = self.others(query, found.top).collect();
        let farthest = others.last().map_or(0.0, |last| last.distance);
        for hit in others {
            let offer = way.offered.iter().find(|offer| (offer.0, offer.1) == (hit.shard, hit.slot));
            let (Some(&(_, _, steps)), Some(shard)) = (offer, shard_of(self.snapshot, hit.shard)) else { continue };
            took.results.push(steps);
            took.places.push((hit.shard, hit.slot));
            took.shards.push(distance_by(metric, &vector, &shard.centroid) - farthest);
        }
        // The cells that would be scanned come from these groups.
        let (mut asked, query) = (Asked::default(), Query::new(&vector, cells.rotation(), metric));
        let wanted = (codes as u64 * cells.cells() / cells.codes().max(1)).min(limits::CALIBRATION_CELLS) as usize;
        took.groups = cells.router().ranks(&query, wanted.max(1), &mut asked);
        Ok(took)
    }

    /// What it takes to find a share of the results. A search that looks at far more has results sooner than others, so what
    /// it seems to need is too much; what the estimates of codes and cells miss comes on top. So the share is halved in on
    /// by asking with it.
    fn halve(&self, table: &Table, took: &[Took], recall: f32) -> Result<Effort> {
        let (mut enough, mut too_much) = limits::CALIBRATION_SHARES;
        let mut effort = table.effort(took, enough * (1.0 - recall));
        for _ in 0..limits::CALIBRATION_ROUNDS {
            let share = 0.5 * (enough + too_much);
            let tried = table.effort(took, share * (1.0 - recall));
            if self.recall(tried, recall, took)? >= recall {
                (enough, effort) = (share, tried);
            } else {
                too_much = share;
            }
        }
        Ok(effort)
    }

    /// The share of the results that is found with so much effort, less some of its standard errors: others are asked later,
    /// which no vector of the index may be like.
    fn recall(&self, effort: Effort, recall: f32, took: &[Took]) -> Result<f32> {
        let effort = Effort { shard_margin: f32::NEG_INFINITY, ..effort };
        let reach = Reach { effort, deviations: deviations(recall), codes: usize::MAX };
        let shares = self.each(&|query| {
            let vector = self.vector(query)?;
            let found = probe(self.snapshot, self.data, self.cells, (&vector, K), reach, &mut Silent)?;
            let places = &took[query].places;
            let hits = self.others(query, found.top).filter(|hit| places.contains(&(hit.shard, hit.slot))).count();
            Ok((!places.is_empty()).then(|| hits as f64 / places.len() as f64))
        })?;
        let (mut n, mut sum, mut squares) = (0.0, 0.0, 0.0);
        for share in shares.into_iter().flatten() {
            n += 1.0;
            sum += share;
            squares += share * share;
        }
        let mean: f64 = sum / n;
        let error = ((squares / n - mean * mean).max(0.0) / n).sqrt();
        Ok((mean - limits::CALIBRATION_ERRORS * error) as f32)
    }
}
