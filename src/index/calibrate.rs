//! What it takes to find a share of the nearest, found by asking for stored vectors.

use std::{
    ops::Deref,
    sync::{Arc, OnceLock},
};

use super::{
    probe::{Reach, Trace, probe},
    search::{distance_by, shard_of},
    snapshot::Snapshot,
    topk::Candidate,
};
use crate::{
    cells::{Asked, CellIndex, held_out},
    codes::Query,
    env::Executor,
    error::Result,
    format::cells::{Effort, RECALLS},
    limits,
    shard::{self, DataFile},
    storage::StorageFile,
};

/// Hears at what margin each result is found.
#[derive(Default)]
struct Needs {
    /// For each cell that was scanned, the largest margin that was needed to come as far as it.
    margins: Vec<f32>,
    /// Each posting offered, by place, with that margin.
    offered: Vec<(u32, u32, f32)>,
}

impl Needs {
    fn margin(&self) -> f32 {
        self.margins.last().copied().unwrap_or(f32::NEG_INFINITY)
    }
}

impl Trace for Needs {
    fn cell(&mut self, base: f32, bound: f32) {
        let margin = if bound < f32::INFINITY { base - bound } else { f32::NEG_INFINITY };
        self.margins.push(self.margin().max(margin));
    }

    fn offered(&mut self, candidate: &Candidate) {
        self.offered.push((candidate.shard, candidate.slot, self.margin()));
    }
}

/// What the results of one query took.
#[derive(Default)]
struct Took {
    /// The margins of the cells in their order.
    cells: Vec<f32>,
    /// For each result its margin, and that of its shard.
    results: Vec<(f32, f32)>,
    /// For each cell that held a result, the rank of its group.
    groups: Vec<usize>,
}

/// Fills in what each recall takes, by a few hundred searches for stored vectors that look at far more than it should
/// take. Deterministic.
///
/// # Errors
/// `Corruption` if a vector is damaged.
pub fn calibrate<F: StorageFile, B: Deref<Target = [u8]> + Send + Sync>(
    snapshot: &Arc<Snapshot<F::Lent>>,
    data: &DataFile<F>,
    cells: &CellIndex<B>,
    executor: &dyn Executor,
    seed: (u128, u64),
) -> Result<[Effort; RECALLS.len()]> {
    let everything = Effort { margin: f32::INFINITY, shard_margin: f32::INFINITY, groups: u32::MAX, cells: u32::MAX };
    let codes = (cells.codes() / 5).max(limits::CALIBRATION_CODES) as usize;
    let reach = Reach {
        // Nothing is fresh to the cells just made; what came since is none of theirs.
        effort: Effort { shard_margin: f32::NEG_INFINITY, ..everything },
        deviations: 3.0,
        codes,
    };
    let k = limits::CALIBRATION_K + 1;
    let shards = snapshot.iter().map(|(number, shard)| (number, &**shard));
    let queries = held_out(shards, snapshot.live as usize, seed);
    let took: Vec<OnceLock<Result<Took>>> = queries.iter().map(|_| OnceLock::new()).collect();
    executor.for_each(queries.len(), &|i| {
        let ask = || -> Result<Took> {
            let geometry = data.geometry();
            let slots = geometry.extent_slots();
            let (_, number, slot) = queries[i];
            let Some(shard) = shard_of(snapshot, number) else { return Ok(Took::default()) };
            let vector = shard::row(shard.extents()[slot / slots].slots(data)?, slot % slots, geometry).to_vec();
            let mut trace = Needs::default();
            let found = probe(snapshot, data, cells, (&vector, k), reach, &mut trace)?;
            let nearest = found.top.into_sorted();
            let farthest = nearest.last().map_or(0.0, |last| last.distance);
            let mut took = Took { cells: Vec::new(), ..Took::default() };
            for hit in nearest.iter().filter(|hit| (hit.shard, hit.slot as usize) != (number, slot)) {
                let offer = trace.offered.iter().find(|offer| (offer.0, offer.1) == (hit.shard, hit.slot));
                let (Some(&(_, _, margin)), Some(shard)) = (offer, shard_of(snapshot, hit.shard)) else { continue };
                let home = distance_by(geometry.metric, &vector, &shard.centroid);
                took.results.push((margin, home - farthest));
            }
            // The cells that would be scanned come from these groups.
            let mut asked = Asked::default();
            let query = Query::new(&vector, cells.rotation(), geometry.metric);
            let wanted = (codes as u64 * cells.cells() / cells.codes().max(1)).min(limits::CALIBRATION_CELLS) as usize;
            took.groups = cells.router().ranks(&query, wanted.max(1), &mut asked);
            took.cells = trace.margins;
            Ok(took)
        };
        drop(took[i].set(ask()));
    });
    let took = took.into_iter().filter_map(OnceLock::into_inner).collect::<Result<Vec<Took>>>()?;
    let sorted = |of: &dyn Fn(&Took) -> Vec<f32>| {
        let mut all: Vec<f32> = took.iter().flat_map(of).collect();
        all.sort_unstable_by(f32::total_cmp);
        all
    };
    let margins = sorted(&|took| took.results.iter().map(|result| result.0).collect());
    let shards = sorted(&|took| took.results.iter().map(|result| result.1).collect());
    let at = |all: &[f32], share: f32| all[((all.len() as f32 * share).ceil() as usize).clamp(1, all.len()) - 1];
    if margins.is_empty() {
        return Ok([everything; RECALLS.len()]);
    }
    Ok(RECALLS.map(|recall| {
        // Of what may be missed, most is left to the margin.
        let missed = 1.0 - recall;
        let margin = at(&margins, 1.0 - 0.8 * missed);
        let counts = sorted(&|took| vec![took.cells.partition_point(|&needed| needed <= margin) as f32]);
        let ranks = sorted(&|took| {
            let cells = took.cells.partition_point(|&needed| needed <= margin);
            took.groups.iter().take(cells).map(|&rank| rank as f32).collect()
        });
        let ranks = if ranks.is_empty() { vec![0.0] } else { ranks };
        Effort {
            margin,
            shard_margin: at(&shards, 1.0 - 0.5 * missed),
            groups: at(&ranks, 1.0 - 0.5 * missed) as u32 + 1,
            cells: (at(&counts, 0.9) * 1.5) as u32 + 16,
        }
    }))
}
