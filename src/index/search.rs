//! One search: by cells where the index has them, otherwise by choosing shards by centroid and scanning their vectors.

use std::{ops::Deref, sync::Arc};

use super::{
    cell_search::search_cells_extending,
    hits::{Hits, SearchSummary},
    out_of_distribution,
    scan::{nearest_shards, scan},
    search_limits::{CellResults, Extension, ResultScope, SearchLimits},
    snapshot::{Snapshot, shard_of},
    topk::TopK,
};
use crate::{
    cells::{CellIndex, RoutingScratch},
    codes::QuantizedQuery,
    env::{Executor, Inline},
    error::Result,
    explain::{CellStep, StopReason},
    format::{
        calibration::{RECALLS, RESULTS, SearchEffort},
        geometry::IndexParams,
    },
    lease::Lease,
    shard::DataFile,
    storage::StorageFile,
    tuning,
};

/// Scope of a search: every posting, a number of shards, or a target recall.
#[derive(Clone, Copy, Debug)]
pub struct SearchScope {
    /// Whether every posting is searched.
    pub exact: bool,
    /// Maximum number of shards scanned. With cells, maximum number of codes scanned: the average number of codes of
    /// that many covered shards.
    pub slop: Option<usize>,
    /// Target recall: the search stops when this share of the true nearest is likely found.
    pub recall: Option<f32>,
    /// Target recall if neither `slop` nor `recall` is given.
    pub default_recall: f32,
    /// Whether cells are used even where an exhaustive search costs no more. For tests of cells.
    pub by_cells: bool,
}

impl SearchScope {
    /// Returns the scope of an exhaustive search.
    #[must_use]
    pub fn exact() -> Self {
        Self { exact: true, ..Self::slop(usize::MAX) }
    }

    /// Returns the scope of a search of at most `slop` shards.
    #[must_use]
    pub fn slop(slop: usize) -> Self {
        Self { exact: false, slop: Some(slop), recall: None, default_recall: 1.0, by_cells: false }
    }

    /// Returns the target recall; `None` if only a slop limits the search.
    fn recall(&self) -> Option<f32> {
        match (self.recall, self.slop) {
            (Some(recall), _) => Some(recall),
            (None, None) => Some(self.default_recall),
            (None, Some(_)) => None,
        }
    }

    /// Computes the limits of a search by cells for results that pass a filter, or for documents; `None` if the search
    /// must be exhaustive.
    fn limit_for<L>(
        &self,
        cells: &CellIndex<Lease<L>>,
        snapshot: &Snapshot<L>,
        wanted: ResultScope<'_>,
        part: f32,
    ) -> Option<SearchLimits>
    where
        L: Deref<Target = [u8]> + Clone,
    {
        let ResultScope { k, mask, documents, passed_over, .. } = wanted;
        if mask.is_none() && !documents {
            return self.limit(cells, snapshot, k, part);
        }
        let passing = mask.map_or(snapshot.live, |mask| mask.passing);
        if passing <= k as u64 {
            return None;
        }
        // Number of nearest postings that contain the results and what is passed over, if those that pass are drawn at
        // random.
        let among = ((k + passed_over) as u64 * snapshot.live).div_ceil(passing);
        let among = usize::try_from(among).unwrap_or(usize::MAX);
        let mut limit = self.limit(cells, snapshot, among, part)?;
        // If what passes lies together, fewer postings than that contain the results. So the effort is the largest for
        // any number in between.
        let between = RESULTS.map(|results| results as usize).into_iter().filter(|fewer| (k..among).contains(fewer));
        for fewer in between.chain([k]) {
            limit.effort = limit.effort.at_least(&self.limit(cells, snapshot, fewer, part)?.effort);
        }
        // No calibration has measured results that are far from the query, or so many. Far away, distances differ less
        // than estimates err, and no nearer result makes up for it.
        limit.persistence = tuning::FILTERED_PERSISTENCE;
        if part < 1.0 {
            limit.effort.deviations = limit.effort.deviations.max(limit.unindexed_deviations);
            limit.effort.impatience = 0.0;
        }
        if part < 1.0 || among > RESULTS[RESULTS.len() - 1] as usize {
            let missed = self.recall().map_or(1.0, |recall| 1.0 - recall);
            let (share, least, most) = tuning::PERSISTENCE;
            limit.persistence = (share / missed).clamp(least, most);
        }
        // A search that costs as much as comparing everything that passes is abandoned for that.
        if limit.codes == usize::MAX && !self.by_cells {
            limit.most = limit.most.min(tuning::PASSING_COST * passing as f64);
        }
        Some(limit)
    }

    /// Computes the limits of a search by cells; `None` if the search must be exhaustive. `part` scales the share of
    /// the true nearest that the search may miss: 1 for ordinary queries, less for out-of-distribution queries.
    fn limit<L>(&self, cells: &CellIndex<Lease<L>>, snapshot: &Snapshot<L>, k: usize, part: f32) -> Option<SearchLimits>
    where
        L: Deref<Target = [u8]> + Clone,
    {
        let all = self.slop.is_some_and(|slop| slop >= snapshot.shards);
        let recall = self.recall();
        if self.exact || ((all || self.slop.is_none()) && recall.is_none_or(|recall| recall >= 1.0)) {
            return None;
        }
        let codes = match self.slop {
            Some(slop) if !all => {
                let shards = cells.table().shards.len().max(1) as u64;
                usize::try_from(cells.codes() * slop as u64 / shards).unwrap_or(usize::MAX).max(1)
            }
            _ => usize::MAX,
        };
        match recall {
            Some(recall) => {
                // Postings added or removed since the calibration make its efforts less accurate, to an unknown degree
                // until the recalibration. So the target recall rises with their share.
                let moved = snapshot.moved as f32 / snapshot.live.max(1) as f32;
                let better = |recall: f32, part: f32| {
                    let best = RECALLS[RECALLS.len() - 1];
                    // The raised target does not exceed the largest calibrated recall, unless the caller's own target
                    // does.
                    (1.0 - (1.0 - recall) * part).min(best.max(recall))
                };
                let recall = better(recall, part * (1.0 - (tuning::MOVED.0 * moved).min(tuning::MOVED.1)));
                let mut effort = cells.effort(k, recall);
                if effort == SearchEffort::exhaustive() && codes == usize::MAX && !self.by_cells {
                    return None;
                }
                // A new posting among the results makes the farthest result nearer. The margin counts from there, so
                // fewer shards are within it. So the margin grows with the share of new postings.
                if effort != SearchEffort::exhaustive() {
                    effort.shard_margin += tuning::MOVED_SHARDS * moved * effort.shard_margin.abs();
                }
                // Unindexed postings may lack codes, and codes may be of removed postings. So a search by cells may
                // cost more than an exhaustive one. So its cost is limited to that of an exhaustive search.
                let most = if self.by_cells || codes != usize::MAX { f64::INFINITY } else { snapshot.live as f64 };
                Some(SearchLimits { codes, most, ..SearchLimits::of(effort, recall) })
            }
            None => {
                let (times, least) = tuning::SLOP_CELLS;
                let cells_wanted = (codes as u64 * times * cells.cells() / cells.codes().max(1)).max(least) as u32;
                let SearchEffort { shard_margin, deviations, .. } = cells.effort(k, tuning::SLOP_RECALL);
                let effort =
                    SearchEffort { shard_margin, deviations, cells: cells_wanted, ..SearchEffort::exhaustive() };
                Some(SearchLimits { codes, ..SearchLimits::of(effort, tuning::SLOP_RECALL) })
            }
        }
    }
}

/// Finds the `k` nearest postings of a snapshot, on the calling thread.
///
/// `query` must be checked and, under cosine, normalised. The search takes no lock and does not wait.
///
/// # Errors
/// Returns `Corruption` if vectors that are read for the first time are damaged on disk.
pub fn search<F: StorageFile>(
    snapshot: &Arc<Snapshot<F::Lent>>,
    data: &Arc<DataFile<F>>,
    query: &[f32],
    k: usize,
    scope: SearchScope,
) -> Result<Hits<F>> {
    search_on(&Inline, snapshot, data, query, ResultScope::nearest(k), scope)
}

/// Finds the `k` nearest postings or documents of a snapshot that pass the filter, if there is one. A scan of 128 shards
/// or more runs on the threads of `executor`. The results do not depend on the executor.
///
/// With a filter, the search is exhaustive among the postings that pass if they are few, or if an exhaustive search costs
/// no more. Otherwise it has the effort for as many results as contain `k` that pass, on average, and persistence: that
/// cells near the query hold nothing that passes says little about other cells. If what passes is far from the query,
/// which the measures of out-of-distribution queries tell, a second pass has more persistence, and no impatience.
///
/// If documents are wanted, a second pass has the effort for as many results as the first one found postings as near as
/// its results.
///
/// # Errors
/// Returns `Corruption` as [`search`] does: of several damaged shards, it names the one that would have been scanned
/// first.
pub fn search_on<F: StorageFile>(
    executor: &dyn Executor,
    snapshot: &Arc<Snapshot<F::Lent>>,
    data: &Arc<DataFile<F>>,
    query: &[f32],
    wanted: ResultScope<'_>,
    scope: SearchScope,
) -> Result<Hits<F>> {
    let hits = |nearest: TopK, scanned, computed, (shards_scanned, cells_scanned), (aim, by_cells)| Hits {
        snapshot: Arc::clone(snapshot),
        data: Arc::clone(data),
        nearest: nearest.into_sorted(),
        scanned,
        computed,
        shards_scanned,
        cells_scanned,
        aim,
        by_cells,
    };
    let mut slop = scope.slop.filter(|_| !scope.exact).unwrap_or(usize::MAX);
    let mut wasted: Option<CellStep> = None;
    if let Some(cells) = &snapshot.cells {
        match scope.limit_for(cells, snapshot, wanted, 1.0) {
            // Damaged cells are not used until the next cell build.
            Some(limit) if !cells.is_damaged() => match by_cells(snapshot, data, cells, query, wanted, scope, limit) {
                Err(_) if cells.is_damaged() => {}
                // The search was abandoned and an exhaustive one follows. The statistics include the work of both.
                Ok((results, _)) if results.abandoned => {
                    (slop, wasted) = (usize::MAX, Some(results.step(&limit)));
                }
                results => {
                    let (results, calibrated) = results?;
                    let step = Some(results.step(&limit));
                    let CellResults { top, scanned, computed, cells, cut, .. } = results;
                    let stopped = if cut { StopReason::Slop } else { StopReason::Reached };
                    let aim = SearchSummary { recall: scope.recall(), stopped, calibrated };
                    return Ok(hits(top, scanned, computed, (0, cells), (aim, step)));
                }
            },
            Some(_) => {}
            None => slop = usize::MAX,
        }
    }
    let numbers = if slop < snapshot.shards {
        nearest_shards(snapshot, data.geometry(), query, slop)
    } else {
        snapshot.iter().map(|(number, _)| number).collect()
    };
    let (top, scanned) = scan_shards(executor, snapshot, data, query, wanted, &numbers)?;
    let aim = if numbers.len() < snapshot.shards {
        SearchSummary { recall: scope.recall(), stopped: StopReason::Slop, calibrated: scope.recall().is_none() }
    } else {
        SearchSummary { recall: Some(1.0), stopped: StopReason::Everything, calibrated: true }
    };
    let (codes, distances, cells) = wasted.map_or((0, 0, 0), |step| (step.codes, step.distances, step.cells));
    Ok(hits(top, scanned + codes, scanned + distances, (numbers.len(), cells), (aim, wasted)))
}

/// Scans shards, 128 or more of them in parallel on the threads of `executor`. Returns the nearest candidates and the
/// number of postings scanned.
///
/// # Errors
/// Returns `Corruption` of the first damaged shard in the order of `numbers`.
fn scan_shards<F: StorageFile>(
    executor: &dyn Executor,
    snapshot: &Snapshot<F::Lent>,
    data: &DataFile<F>,
    query: &[f32],
    wanted: ResultScope<'_>,
    numbers: &[u32],
) -> Result<(TopK, usize)> {
    let scan_part = |numbers: &[u32]| -> Result<(TopK, usize)> {
        let (mut top, mut scanned) = (wanted.top(), 0);
        for &number in numbers {
            if let Some(shard) = shard_of(snapshot, number) {
                scanned += scan(shard, number, data, query, wanted.mask, &mut top)?;
            }
        }
        Ok((top, scanned))
    };
    if numbers.len() < 2 * tuning::SCAN_SHARDS {
        return scan_part(numbers);
    }
    let parts: Vec<&[u32]> = numbers.chunks(tuning::SCAN_SHARDS).collect();
    let (mut top, mut scanned) = (wanted.top(), 0);
    for part in executor.map(parts.len(), |i| scan_part(parts[i])) {
        let (nearest, n) = part?;
        scanned += n;
        nearest.into_sorted().into_iter().for_each(|candidate| top.offer(candidate));
    }
    Ok((top, scanned))
}

/// Searches by cells. Returns the results, and whether the query is like the calibration queries. An
/// out-of-distribution query gets a second pass with wider limits.
///
/// # Errors
/// Returns `Corruption` if a vector or a cell group is damaged.
fn by_cells<F: StorageFile>(
    snapshot: &Arc<Snapshot<F::Lent>>,
    data: &DataFile<F>,
    cells: &CellIndex<Lease<F::Lent>>,
    query: &[f32],
    wanted: ResultScope<'_>,
    scope: SearchScope,
    limit: SearchLimits,
) -> Result<(CellResults, bool)> {
    let is_out_of_distribution = |top: &TopK| match top.nearest() {
        Some(nearest) => out_of_distribution::is_out_of_distribution(snapshot, data, query, nearest, cells),
        None => Ok(false),
    };
    let mut out_of_distribution = false;
    let results = search_cells_extending(snapshot, data, cells, query, wanted, limit, |top| {
        out_of_distribution = scope.recall().is_some() && is_out_of_distribution(top)?;
        let wanted = ResultScope { passed_over: top.passed_over(), ..wanted };
        let part = if out_of_distribution { tuning::FAR_MISSED } else { 1.0 };
        // A slop limits the work of the whole search, so it allows no second pass.
        if (!out_of_distribution && wanted.passed_over == 0) || scope.slop.is_some() {
            return Ok(Extension::No);
        }
        Ok(match scope.limit_for(cells, snapshot, wanted, part) {
            None => Extension::Everything,
            // The higher target recall may map to the same effort. A second pass would find nothing new.
            Some(wider) if wider.effort == limit.effort && wider.persistence == limit.persistence => Extension::No,
            Some(wider) => Extension::To(wider),
        })
    })?;
    if results.extended && !results.abandoned {
        // The first pass may have missed the nearest posting, so the check is repeated.
        out_of_distribution = is_out_of_distribution(&results.top)?;
    }
    Ok((results, !out_of_distribution))
}

/// Returns the queries' numbers in an order that puts queries near the same cell group together. Queries of a wrong
/// dimension come first. Without cells the order is unchanged.
pub fn in_group_order<L, Q>(snapshot: &Snapshot<L>, geometry: &IndexParams, queries: &[Q]) -> Vec<usize>
where
    L: Deref<Target = [u8]> + Clone,
    Q: AsRef<[f32]>,
{
    let mut order: Vec<usize> = (0..queries.len()).collect();
    if let Some(cells) = &snapshot.cells {
        let (mut query, mut routing) = (QuantizedQuery::default(), RoutingScratch::default());
        let group = |vector: &[f32]| {
            // A query of a wrong dimension is rejected later, so its position is arbitrary.
            (vector.len() == geometry.dimension).then(|| {
                query.set(vector, cells.frame(), geometry.metric);
                cells.router().nearest_group(&query, &mut routing)
            })
        };
        let groups: Vec<Option<usize>> = queries.iter().map(AsRef::as_ref).map(group).collect();
        order.sort_by_key(|&i| groups[i]);
    }
    order
}

/// Reads and checks all bytes that searches may read, so that no later search has to check them.
///
/// # Errors
/// Returns `Corruption` if vectors are damaged: that of the first damaged shard.
pub fn warm<F: StorageFile>(executor: &dyn Executor, snapshot: &Snapshot<F::Lent>, data: &DataFile<F>) -> Result<()> {
    let shards: Vec<_> = snapshot.iter().map(|(_, shard)| shard).collect();
    let read = |i: usize| shards[i].extents().iter().try_for_each(|extent| extent.slots(data).map(|_| ()));
    let done: Vec<Result<()>> = executor.map(shards.len(), read);
    if let Some(cells) = &snapshot.cells {
        // Damage of a group is recorded in the cells, and searches do not use them.
        executor.for_each(cells.len(), &|i| {
            let _ = cells.group(i);
        });
    }
    done.into_iter().collect()
}
