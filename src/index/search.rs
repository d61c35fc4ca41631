//! One search: by cells where the index has them, otherwise by choosing shards by centroid and scanning their vectors.

use std::{ops::Deref, sync::Arc};

use super::{
    cell_search::search_cells_extending,
    hits::{Hits, SearchSummary, SearchWork},
    out_of_distribution,
    scan::{nearest_shards, scan},
    search_limits::{CellResults, Extension, ResultScope, SearchLimits},
    search_scope::SearchScope,
    snapshot::{Snapshot, shard_of},
    topk::TopK,
};
use crate::{
    cells::{CellIndex, RoutingScratch},
    codes::QuantizedQuery,
    env::{Executor, Inline},
    error::Result,
    explain::StopReason,
    format::geometry::IndexParams,
    lease::Lease,
    shard::DataFile,
    storage::StorageFile,
    tuning,
};

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
    Search { executor: &Inline, snapshot, data, query, wanted: ResultScope::nearest(k), scope }.run()
}

/// Search: the query, the results wanted, and what is searched.
pub struct Search<'a, F: StorageFile> {
    /// Threads of a scan of 128 shards or more. The results do not depend on them.
    pub executor: &'a dyn Executor,
    /// Snapshot that is searched.
    pub snapshot: &'a Arc<Snapshot<F::Lent>>,
    /// Data file of the snapshot.
    pub data: &'a Arc<DataFile<F>>,
    /// Checked query; under cosine, normalised.
    pub query: &'a [f32],
    /// Results that are wanted.
    pub wanted: ResultScope<'a>,
    /// Effort: everything, a number of shards, or a target recall.
    pub scope: SearchScope,
}

/// Results of a search, what it looked at, and what it reached.
struct Outcome {
    top: TopK,
    work: SearchWork,
    aim: SearchSummary,
}

/// Outcome of a search by cells, if there was one.
enum ByCells {
    /// Results.
    Done(Outcome),
    /// The search was abandoned: what it looked at, and what it cost.
    Abandoned(SearchWork, f64),
    /// The cells are damaged.
    Damaged,
}

/// Summary of a search that compared everything.
const EVERYTHING: SearchSummary =
    SearchSummary { recall: Some(1.0), stopped: StopReason::Everything, calibrated: true };

impl<F: StorageFile> Search<'_, F> {
    /// Finds the `k` nearest postings or documents of the snapshot that pass the filter, if there is one.
    ///
    /// With a filter, the search is exhaustive among the postings that pass if they are few, or if an exhaustive search
    /// costs no more. Otherwise it has the effort for as many results as contain `k` that pass, on average, and
    /// persistence: that cells near the query hold nothing that passes says little about other cells. If what passes is
    /// far from the query, which the measures of out-of-distribution queries tell, a second pass has more persistence,
    /// and no impatience.
    ///
    /// If documents are wanted, a second pass has the effort for as many results as the first one found postings as near
    /// as its results. So it does, with more persistence, if the filter excludes many postings that are as near.
    ///
    /// # Errors
    /// Returns `Corruption` as [`search`] does: of several damaged shards, it names the one that would have been scanned
    /// first.
    pub fn run(&self) -> Result<Hits<F>> {
        let Outcome { top, work, aim } = self.outcome()?;
        let (snapshot, data) = (Arc::clone(self.snapshot), Arc::clone(self.data));
        Ok(Hits { snapshot, data, nearest: top.into_sorted(), work, aim })
    }

    /// Searches by cells if they serve, or else compares what passes.
    ///
    /// # Errors
    /// Returns `Corruption` as [`run`](Self::run) does.
    fn outcome(&self) -> Result<Outcome> {
        let (snapshot, scope) = (self.snapshot, self.scope);
        // Damaged cells are not used until the next cell build.
        let Some(cells) = snapshot.cells.as_ref() else { return self.by_shards() };
        let Some(limit) = scope.limit_for(cells, snapshot, self.wanted, 1.0) else { return self.compare(None) };
        if cells.is_damaged() {
            return self.by_shards();
        }
        // A slop limits the work, and copies are compared as a whole.
        if self.wanted.mask.is_some()
            && !scope.by_cells
            && scope.slop.is_none()
            && let Some(found) = self.by_rows(true)?
        {
            return Ok(found);
        }
        match self.limited(cells, limit)? {
            ByCells::Done(found) => Ok(found),
            // An exhaustive search follows. The statistics include the work of both.
            ByCells::Abandoned(work, cost) => self.compare(Some((work, cost))),
            ByCells::Damaged => self.by_shards(),
        }
    }

    /// Searches without cells: the shards that the scope allows.
    ///
    /// # Errors
    /// Returns `Corruption` as [`run`](Self::run) does.
    #[inline(never)] // Not in the path of a search by cells.
    fn by_shards(&self) -> Result<Outcome> {
        let slop = self.scope.slop.filter(|_| !self.scope.exact).unwrap_or(usize::MAX);
        if slop >= self.snapshot.shards {
            return self.compare(None);
        }
        let numbers = nearest_shards(self.snapshot, self.data.geometry(), self.query, slop);
        let (top, work) = self.scan_shards(&numbers)?;
        let recall = self.scope.recall();
        Ok(Outcome {
            top,
            work,
            aim: SearchSummary { recall, stopped: StopReason::Slop, calibrated: recall.is_none() },
        })
    }

    /// Compares everything that passes. `abandoned` is what a search by cells that was given up looked at, and its cost.
    ///
    /// # Errors
    /// Returns `Corruption` as [`run`](Self::run) does.
    #[inline(never)] // Not in the path of a search by cells.
    fn compare(&self, abandoned: Option<(SearchWork, f64)>) -> Result<Outcome> {
        let mut found = match self.by_rows(false)? {
            Some(found) => found,
            None => self.everything(abandoned.map(|(_, cost)| cost))?,
        };
        abandoned.into_iter().for_each(|(before, _)| found.work.add(&before));
        Ok(found)
    }

    /// Searches by cells with a limit.
    ///
    /// # Errors
    /// Returns `Corruption` as [`run`](Self::run) does.
    fn limited(&self, cells: &CellIndex<Lease<F::Lent>>, limit: SearchLimits) -> Result<ByCells> {
        let (results, calibrated) = match self.by_cells(cells, limit) {
            Err(_) if cells.is_damaged() => return Ok(ByCells::Damaged),
            results => results?,
        };
        let CellResults { scanned, computed, cost, cut, .. } = results;
        let work = SearchWork { scanned, computed, by_cells: Some(results.step(&limit)), ..SearchWork::default() };
        if results.abandoned {
            return Ok(ByCells::Abandoned(work, cost));
        }
        if let Some(mask) = self.wanted.mask {
            mask.spend(cost, true);
        }
        let stopped = if cut { StopReason::Slop } else { StopReason::Reached };
        let aim = SearchSummary { recall: self.scope.recall(), stopped, calibrated };
        Ok(ByCells::Done(Outcome { top: results.top, work, aim }))
    }

    /// Compares the vectors of everything that passes. `abandoned` is the cost of a search by cells that was given up.
    ///
    /// # Errors
    /// Returns `Corruption` as [`run`](Self::run) does.
    fn everything(&self, abandoned: Option<f64>) -> Result<Outcome> {
        let Some(mask) = self.wanted.mask else {
            let all: Vec<u32> = self.snapshot.iter().map(|(number, _)| number).collect();
            let (top, work) = self.scan_shards(&all)?;
            return Ok(Outcome { top, work, aim: EVERYTHING });
        };
        let (top, work) = self.scan_shards(mask.passing_shards())?;
        mask.spend(work.scanned as f64 + abandoned.unwrap_or(0.0), abandoned.is_some());
        Ok(Outcome { top, work, aim: EVERYTHING })
    }

    /// Searches everything that passes a filter by its rounded copies. `None` if it has none, or if a search by cells is
    /// possible and costs less.
    ///
    /// # Errors
    /// Returns `Corruption` as [`run`](Self::run) does.
    #[inline(never)] // Not in the path of a search by cells.
    fn by_rows(&self, may_be_by_cells: bool) -> Result<Option<Outcome>> {
        let &Self { snapshot, data, query, wanted, .. } = self;
        let Some(mask) = wanted.mask else { return Ok(None) };
        let Some(known) = mask.rows(wanted.k, may_be_by_cells, snapshot, data) else { return Ok(None) };
        let (mut top, mut work) = self.scan_shards(&known.others)?;
        let search = known.search(snapshot, data, query);
        work.shards = mask.passing_shards().len();
        work.scanned += known.rows();
        let computed = search.by_copies(wanted.documents, &mut top)?;
        known.used(computed);
        work.computed += computed;
        work.rounded = known.rows();
        Ok(Some(Outcome { top, work, aim: EVERYTHING }))
    }

    /// Scans shards, 128 or more of them in parallel on the threads of the executor. Returns the nearest candidates and
    /// what was scanned.
    ///
    /// # Errors
    /// Returns `Corruption` of the first damaged shard in the order of `numbers`.
    fn scan_shards(&self, numbers: &[u32]) -> Result<(TopK, SearchWork)> {
        let &Self { snapshot, data, query, wanted, .. } = self;
        let work = |scanned| SearchWork { scanned, computed: scanned, shards: numbers.len(), ..SearchWork::default() };
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
            return scan_part(numbers).map(|(top, scanned)| (top, work(scanned)));
        }
        let parts: Vec<&[u32]> = numbers.chunks(tuning::SCAN_SHARDS).collect();
        let (mut top, mut scanned) = (wanted.top(), 0);
        for part in self.executor.map(parts.len(), |i| scan_part(parts[i])) {
            let (nearest, n) = part?;
            scanned += n;
            nearest.into_sorted().into_iter().for_each(|candidate| top.offer(candidate));
        }
        Ok((top, work(scanned)))
    }

    /// Searches by cells. Returns the results, and whether the query is like the calibration queries. A second pass with
    /// wider limits follows if it is not, or if many postings as near as the results are none.
    ///
    /// # Errors
    /// Returns `Corruption` if a vector or a cell group is damaged.
    fn by_cells(&self, cells: &CellIndex<Lease<F::Lent>>, limit: SearchLimits) -> Result<(CellResults, bool)> {
        let &Self { snapshot, data, query, wanted, scope, .. } = self;
        let is_out_of_distribution = |top: &TopK| match top.nearest() {
            Some(nearest) => out_of_distribution::is_out_of_distribution(snapshot, data, query, nearest, cells),
            None => Ok(false),
        };
        let mut out_of_distribution = false;
        let results = search_cells_extending(snapshot, data, cells, query, wanted, limit, |top, rejected| {
            out_of_distribution = scope.recall().is_some() && is_out_of_distribution(top)?;
            let mut wanted = ResultScope { passed_over: top.passed_over(), ..wanted };
            let part = if out_of_distribution { tuning::FAR_MISSED } else { 1.0 };
            wanted.rejected = wanted.rejected_apart(rejected, snapshot.live);
            // A slop limits the work of the whole search, so it allows no second pass.
            let is_enough = !out_of_distribution && wanted.passed_over == 0 && wanted.rejected == 0;
            if is_enough || scope.slop.is_some() {
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
