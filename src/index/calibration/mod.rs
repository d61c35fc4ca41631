//! Calibration: measuring the search effort for each recall and number of results with [calibration queries](queries).
//!
//! Invariants:
//! 1. An effort tuned on one half of the queries is kept only if the other half reaches the recall with it. The stored
//!    recall is that of the other half. If no effort reaches the recall at a lower cost than an exhaustive search, the
//!    effort is exhaustive.
//! 2. A calibration searches exactly as later searches do. New cells cover every posting of the snapshot, so nothing
//!    else is scanned. Kept cells are searched together with the unindexed postings. Calibration queries are held out
//!    of the centroids of new cells. The centroids of kept cells may contain some of them, each as one of about thirty
//!    postings.
//! 3. The stored LSN and counts are those of the oldest effort, so an effort never counts as newer than it is.

use std::{ops::Deref, sync::Arc};

mod queries;
mod requirements;
mod score;

use super::{
    candidate::Candidate,
    cell_search::search_cells,
    distances::distance_by,
    out_of_distribution::{self, row},
    search_limits::{CellResults, SearchLimits},
    snapshot::{Snapshot, shard_of},
    subspace::{self, principal_axes},
};
use crate::{
    cells::{self, CellIndex, RankedId},
    codes::{CentroidBytes, QuantizedQuery},
    config::Metric,
    distance::{self, Prefetch, Scan},
    env::Workers,
    error::{Result, ShardexError},
    failpoint::{holds, protects},
    format::calibration::{Calibration, EffortTable, RECALLS, RESULTS, SearchEffort},
    shard::DataFile,
    storage::StorageFile,
    tuning,
};

use queries::{CalibrationQuery, calibration_queries, halves};
use requirements::{CodeEstimate, Requirements, ResultLocation, ScanTrace};
use score::{CalibrationScore, QueryScore};

/// Cells to calibrate.
pub struct CellsUnderTest<'a, B> {
    /// Cells that the searches use.
    pub cells: &'a CellIndex<B>,
    /// Whether the cells are the snapshot's own, so that a search also scans the unindexed postings. Otherwise they are
    /// new cells, built from all postings of the snapshot.
    pub own: bool,
}

/// Measures the search effort for each recall and number of results. Deterministic. Efforts that are already known are
/// kept. If cancelled, it returns the calibration with the efforts found until then.
///
/// # Errors
/// Returns `Corruption` if a vector is damaged.
pub fn calibrate<F: StorageFile, B: Deref<Target = [u8]> + Send + Sync>(
    snapshot: &Arc<Snapshot<F::Lent>>,
    data: &DataFile<F>,
    under_test: CellsUnderTest<'_, B>,
    known: Calibration,
    workers: Workers<'_>,
    seed: (u128, u64),
) -> Result<Calibration> {
    let CellsUnderTest { cells, own } = under_test;
    let calibrator = Calibrator { snapshot, data, cells, own, workers };
    let mut calibration = known;
    match calibrator.find(&mut calibration, seed) {
        Ok(()) | Err(ShardexError::Closed) => Ok(calibration),
        Err(error) => Err(error),
    }
}

/// Locations of the codes of each indexed posting: the cell's number, and the code's number in the cell's group.
type CodeLocations = Vec<[Option<(u32, u32)>; 2]>;

/// Calibration of the cells of a snapshot.
struct Calibrator<'a, F: StorageFile, B> {
    snapshot: &'a Arc<Snapshot<F::Lent>>,
    data: &'a DataFile<F>,
    cells: &'a CellIndex<B>,
    own: bool,
    workers: Workers<'a>,
}

impl<F: StorageFile, B: Deref<Target = [u8]> + Send + Sync> Calibrator<'_, F, B> {
    /// Completes a calibration: measures the missing efforts, then the out-of-distribution thresholds.
    ///
    /// # Errors
    /// Returns `Corruption` if a vector is damaged, `Closed` if the operation is cancelled.
    fn find(&self, calibration: &mut Calibration, seed: (u128, u64)) -> Result<()> {
        let calibration_queries = calibration_queries(self.snapshot, self.data, self.workers, seed)?;
        let code_locations = self.code_locations();
        let traces = self.each(calibration_queries.len(), &|i| self.trace(&calibration_queries[i], &code_locations))?;
        drop(code_locations);
        let all: Vec<(&CalibrationQuery, &ScanTrace)> = calibration_queries.iter().zip(&traces).collect();
        for (i, &k) in RESULTS.iter().enumerate() {
            if calibration.reached[i].iter().all(|&reached| reached > 0.0) {
                continue;
            }
            let k = k as usize;
            let count = if k < tuning::CALIBRATION_FEW.1 { all.len() } else { tuning::CALIBRATION_FEW.0 };
            let [tuned, held] = halves(&all[..count.min(all.len())]);
            let (requirements, mut scale) = (Requirements::new(&tuned, k), 1.0);
            for (j, &recall) in RECALLS.iter().enumerate() {
                if calibration.reached[i][j] > 0.0 {
                    continue;
                }
                // If a recall requires an exhaustive search, every higher recall does.
                let found = if calibration.efforts[i][..j].last() == Some(&SearchEffort::exhaustive()) {
                    None
                } else {
                    self.tune(&requirements, &held, k, recall, &mut scale)?
                };
                let (effort, reached) =
                    found.map_or((SearchEffort::exhaustive(), 1.0), |(effort, score)| (effort, score.reached));
                if !calibration.is_begun() {
                    let Snapshot { lsn, live, .. } = &**self.snapshot;
                    (calibration.lsn, calibration.live, calibration.unindexed) = (lsn.0, *live, self.unindexed_slots());
                }
                (calibration.efforts[i][j], calibration.reached[i][j]) = (effort, reached as f32);
            }
        }
        calibration.far = self.far(&calibration_queries, &calibration.efforts)?;
        (calibration.axes, calibration.outside) = self.subspace(&calibration_queries)?;
        Ok(())
    }

    /// Returns the number of unindexed slots that searches with these cells scan: 0 for new cells.
    fn unindexed_slots(&self) -> u64 {
        if self.own { self.snapshot.unindexed_slots() } else { 0 }
    }

    /// Returns the limits of a search with an effort and a target recall.
    fn limit(&self, effort: SearchEffort, recall: f32) -> SearchLimits {
        SearchLimits { unindexed: self.own, ..SearchLimits::of(effort, recall) }
    }

    /// Computes the thresholds beyond which a query is [out of distribution](super::out_of_distribution).
    ///
    /// There is one threshold for each of the two measures of [`remoteness`](out_of_distribution::remoteness), which is
    /// the distance from a query to a posting, absolute and relative. Nearly no stored calibration query exceeds a
    /// threshold at its true nearest posting.
    ///
    /// For dot products nearly no search with a target recall of 0.9 exceeds a threshold at the nearest posting that it
    /// finds, unless such searches are exhaustive. There one posting may be the nearest of many queries, and if its
    /// code is inaccurate, many searches miss it. By distances, hardly any search misses all near postings.
    ///
    /// # Errors
    /// Returns `Corruption` if a vector is damaged, `Closed` if the operation is cancelled.
    fn far(&self, calibration_queries: &[CalibrationQuery], efforts: &EffortTable) -> Result<[f32; 2]> {
        let stored: Vec<&CalibrationQuery> =
            calibration_queries.iter().filter(|calibration_query| calibration_query.stored).collect();
        let remoteness = |calibration_query: &CalibrationQuery, near: &Candidate| {
            out_of_distribution::remoteness(self.snapshot, self.data, &calibration_query.vector, near)
        };
        let near = self.each(stored.len(), &|i| {
            for near in &stored[i].nearest {
                // A duplicate of the query's vector is no measure of the distance to other vectors.
                if *row(self.snapshot, self.data, near)?.to_f32() != *stored[i].vector {
                    return remoteness(stored[i], near);
                }
            }
            Ok([f32::NAN; 2])
        })?;
        let far = out_of_distribution::far(&near, self.data.geometry().metric);
        let one_for_many = protects!(Recall, self.data.geometry().metric == Metric::Dot);
        let (k, recall) = (tuning::USUAL_RESULTS, tuning::CALIBRATION_FOUND.1);
        let [first, wider] =
            [1.0, tuning::FAR_MISSED].map(|part| cells::effort(efforts, k, 1.0 - (1.0 - recall) * part));
        if !one_for_many || [first, wider].contains(&SearchEffort::exhaustive()) {
            return Ok(far);
        }
        let found = self.each(stored.len(), &|i| {
            let mut found = [f32::NAN; 2];
            for effort in [first, wider] {
                let limit = SearchLimits { except: Some(stored[i].own), ..self.limit(effort, recall) };
                let results = search_cells(self.snapshot, self.data, self.cells, &stored[i].vector, k, limit)?;
                found = results.top.nearest().map_or(Ok(found), |near| remoteness(stored[i], near))?;
                if !out_of_distribution::exceeds(found, far) {
                    break;
                }
            }
            Ok(found)
        })?;
        Ok(out_of_distribution::beyond_found(far, &found))
    }

    /// Computes the principal axes of the stored vectors, and how far outside their span nearly no stored vector lies.
    fn subspace(&self, calibration_queries: &[CalibrationQuery]) -> Result<(Vec<f32>, f32)> {
        let stored: Vec<&[f32]> =
            calibration_queries.iter().filter(|query| query.stored).map(|query| &*query.vector).collect();
        let (sample, others) = stored.split_at(tuning::AXES_SAMPLE.min(stored.len() / 3));
        let (centre, metric) = (self.cells.frame().centre(), self.data.geometry().metric);
        let axes = principal_axes(&sample.concat(), centre, metric, self.workers.cancel)?;
        if axes.iter().all(|&x| x == 0.0) {
            return Ok((Vec::new(), f32::MAX));
        }
        let threshold = subspace::threshold(others, &axes, centre, metric);
        Ok((axes, threshold))
    }

    /// Calls `ask` for each number below `count` on the workers' threads. Returns the results in the order of the
    /// numbers.
    ///
    /// # Errors
    /// Returns the first error of `ask` in that order, `Closed` if the operation is cancelled.
    fn each<T: Send + Sync>(&self, count: usize, ask: &(impl Fn(usize) -> Result<T> + Sync)) -> Result<Vec<T>> {
        self.workers.map(count, ask)?.into_iter().collect()
    }

    /// Finds the locations of all codes.
    fn code_locations(&self) -> CodeLocations {
        let (cells, router) = (self.cells, self.cells.router());
        let mut code_locations = vec![[None; 2]; cells.postings() as usize];
        for g in 0..cells.len() {
            // Searches do not use damaged groups.
            let Ok(group) = cells.group(g) else { continue };
            for c in 0..group.cells() {
                let cell = group.cell(c);
                for i in cell.first..cell.first + cell.count {
                    let [first, second] = &mut code_locations[group.reference(i as usize) as usize];
                    let location = if first.is_none() { first } else { second };
                    *location = Some((router.number(g, c) as u32, i));
                }
            }
        }
        code_locations
    }

    /// Traces a query: the cells in the order of their distances, and the locations of its true nearest postings.
    fn trace(
        &self,
        calibration_query: &CalibrationQuery,
        code_locations: &[[Option<(u32, u32)>; 2]],
    ) -> Result<ScanTrace> {
        let (cells, router, metric) = (self.cells, self.cells.router(), self.data.geometry().metric);
        let query = QuantizedQuery::new(&calibration_query.vector, cells.frame(), metric);
        let mut near: Vec<(RankedId, f32)> = Vec::with_capacity(router.numbers());
        for g in 0..cells.len() {
            let Ok(group) = cells.group(g) else { continue };
            for c in 0..group.cells() {
                let product = distance::dot_byte_row(&query.bytes.bytes, group.centroid(c));
                let centroid = group.cell(c).centroid;
                let (base, square) = query.bytes.base(centroid, product);
                let unit = query.bytes.unit(square, query.bytes.base_error(centroid));
                near.push((RankedId::new(base, router.number(g, c) as u32), unit));
            }
        }
        near.sort_unstable_by_key(|&(near, _)| near);
        let mut ranks = vec![u32::MAX; router.numbers()];
        near.iter().enumerate().for_each(|(rank, (near, _))| ranks[near.number()] = rank as u32);
        let in_cell = |(number, code): (u32, u32)| {
            let rank = *ranks.get(number as usize)? as usize;
            let (g, c) = router.cell(number as usize);
            let group = cells.group(g).ok()?;
            let product = distance::dot_byte_row(&query.bytes.bytes, group.centroid(c));
            estimate(&query, group.cell(c).centroid, product, group.blocks(), code as usize, rank)
        };
        let of = |hit: &Candidate| -> ResultLocation {
            if let Some(code) = self.unindexed(hit, &query) {
                return ResultLocation::Unindexed(code);
            }
            let of_shard = shard_of(self.snapshot, hit.shard).zip(cells.covered(hit.shard));
            let reference = of_shard.and_then(|(shard, (i, covered))| {
                let slot = shard.slot_before(covered.id, hit.slot).filter(|&slot| slot < covered.slots)?;
                Some(cells.reference(i, slot))
            });
            let locations = reference.map_or([None; 2], |reference| code_locations[reference as usize]);
            ResultLocation::Cells(locations.map(|location| location.and_then(in_cell)))
        };
        let nearest: Vec<ResultLocation> = calibration_query.nearest.iter().map(of).collect();
        let (most, part, more) = tuning::TRACE_CELLS;
        let last = nearest.iter().filter_map(ResultLocation::rank).max().map_or(0, |last| last + last / part + more);
        near.truncate(last.min(most));
        let nearest = nearest.into_iter().map(|found| found.within(near.len())).collect();
        let groups = router.group_ranks(&query);
        let groups = near.iter().map(|(near, _)| groups[router.cell(near.number()).0]).collect();
        let shards = calibration_query.nearest.iter().map(|hit| {
            let Some(shard) = shard_of(self.snapshot, hit.shard) else { unreachable!("the snapshot's own shard") };
            let base = distance_by(metric, &calibration_query.vector, &shard.centroid);
            (base, query.bytes.unit(base, 0.0))
        });
        let shards = shards.collect();
        let cells = near.into_iter().map(|(near, unit)| (near.distance(), unit)).collect();
        Ok(ScanTrace { cells, groups, nearest, shards })
    }

    /// Returns `Some` if a posting is unindexed and the cells are the snapshot's own. The inner value is the estimate
    /// of its code, if it has one.
    fn unindexed(&self, hit: &Candidate, query: &QuantizedQuery) -> Option<Option<CodeEstimate>> {
        let unindexed = self.snapshot.unindexed_shard_of(hit.slot_id()).filter(|_| self.own)?;
        // Slots before the first code have none: they were unindexed when the index was opened.
        let slot = hit.slot as usize;
        let codes = unindexed.codes.as_ref().filter(|codes| codes.first <= slot);
        let code = codes.and_then(|codes| {
            let (blocks, range) = codes.parts(slot..slot + 1).next()?;
            let product = unindexed.centroid.product(&query.bytes.bytes);
            estimate(query, unindexed.centroid.stored, product, blocks, range.start, 0)
        });
        Some(code)
    }

    /// Finds the least effort that reaches a recall, within a few tries, and its score on the other half of the
    /// queries. `None` if the search must be exhaustive.
    ///
    /// `scale` is the correction of the model: the tried share of misses divided by the predicted share. Each recall
    /// starts with the correction that the recall before it ended with.
    ///
    /// # Errors
    /// Returns `Corruption` if a vector is damaged, `Closed` if the operation is cancelled.
    fn tune(
        &self,
        requirements: &Requirements<'_>,
        held: &[(&CalibrationQuery, &ScanTrace)],
        k: usize,
        recall: f32,
        scale: &mut f32,
    ) -> Result<Option<(SearchEffort, CalibrationScore)>> {
        let Some(modelled) = requirements.missed(recall) else { return Ok(None) };
        let mut missed = (modelled * *scale).min(tuning::CALIBRATION_MOST);
        let (mut best, mut failed) = (None, f32::INFINITY);
        // Only frequently used targets get extra tries for a cheaper effort.
        let often = recall >= tuning::CALIBRATION_CLOSER.0 && tuning::CALIBRATION_CLOSER.1.contains(&k);
        let mut closer = if often { tuning::CALIBRATION_CLOSER.2 } else { 0 };
        for _ in 0..tuning::CALIBRATION_TRIES {
            let Some(effort) = requirements.effort(missed, recall) else { break };
            let score = self.ask(held, k, recall, effort)?;
            let pays = score.cost < self.snapshot.live as f64;
            // The measured share of missed results is about proportional to the allowed one.
            let room = score.room(recall);
            if holds!(Recall, score.reaches(recall)) {
                if pays {
                    best = Some((effort, score));
                }
                if missed > 0.0 {
                    *scale = missed / modelled;
                }
                let next = (missed * room.min(2.0)).min((missed * failed).sqrt()).min(tuning::CALIBRATION_MOST);
                if pays && closer == 0 || next <= 1.1 * missed {
                    break;
                }
                closer -= usize::from(pays);
                missed = next;
            } else {
                if best.is_some() || !pays || missed == 0.0 {
                    break;
                }
                failed = missed;
                missed *= room.clamp(0.3, 0.8);
            }
        }
        Ok(best)
    }

    /// Runs the queries' searches with an effort and scores the results. If the first quarter of the queries shows that
    /// the recall is out of reach, the score is that of this quarter.
    ///
    /// # Errors
    /// Returns `Corruption` if a vector is damaged, `Closed` if the operation is cancelled.
    fn ask(
        &self,
        calibration_queries: &[(&CalibrationQuery, &ScanTrace)],
        k: usize,
        recall: f32,
        effort: SearchEffort,
    ) -> Result<CalibrationScore> {
        let live = self.snapshot.live as f64;
        let ask = |calibration_queries: &[(&CalibrationQuery, &ScanTrace)]| {
            self.each(calibration_queries.len(), &|i| {
                let calibration_query = calibration_queries[i].0;
                let limit =
                    SearchLimits { except: Some(calibration_query.own), most: live, ..self.limit(effort, recall) };
                let CellResults { top, cost, abandoned, .. } =
                    search_cells(self.snapshot, self.data, self.cells, &calibration_query.vector, k, limit)?;
                let answer = QueryScore::of(calibration_query);
                if abandoned {
                    return Ok(QueryScore { share: 1.0, cost: cost + live, ..answer });
                }
                let bound = calibration_query.bound(k).unwrap_or(f32::INFINITY);
                let hits = top.into_sorted().into_iter().filter(|hit| hit.distance <= bound).count();
                Ok(QueryScore { share: hits as f64 / k.min(calibration_query.nearest.len()) as f64, cost, ..answer })
            })
        };
        let (few, others) = calibration_queries.split_at(calibration_queries.len() / tuning::CALIBRATION_FIRST);
        let mut answers = ask(few)?;
        let score = CalibrationScore::of(&answers, k);
        if score.is_hopeless(recall) {
            return Ok(score);
        }
        answers.extend(ask(others)?);
        Ok(CalibrationScore::of(&answers, k))
    }
}

/// Computes the estimate of code number `code` of some blocks. `product` is the product of the query and the code's
/// centroid.
fn estimate(
    query: &QuantizedQuery,
    centroid: CentroidBytes,
    product: i32,
    blocks: &[u8],
    code: usize,
    rank: usize,
) -> Option<CodeEstimate> {
    let (base, square) = query.bytes.base(centroid, product);
    let (planes, step, bound) = (&query.planes, query.plane_step, f32::INFINITY);
    let scan = Scan { planes, blocks, range: code..code + 1, step, error: 1.0, base, bound };
    let mut found = Vec::new();
    distance::scan(&scan, &mut Prefetch::default(), &mut found);
    let distance::CodeCandidate { lower_bound, error, .. } = found.pop()?;
    let deviation = error * query.code_error(square) + query.bytes.base_error(centroid);
    Some(CodeEstimate { rank, estimate: lower_bound + error, deviation })
}
