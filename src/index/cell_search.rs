//! Search by cells: scan the codes of near cells, and compute few distances.
//!
//! Cells are scanned in the order of their centroids' distances. A code gives a lower bound of its posting's distance,
//! with an allowance for the error that is seldom exceeded. If the lower bound is within the top-k bound, the distance
//! is computed. The scan stops when the next centroid is farther than the top-k bound by a calibrated margin. Stopping
//! each query when it is likely done is the idea of Li et al., SIGMOD 2020.

use std::{
    cell::RefCell,
    ops::{Deref, Range},
    sync::Arc,
};

use super::{
    cell_queue::CellQueue,
    rerank::{CellSearch, TOGETHER, nearest_first},
    scan::scan_slots,
    search_limits::{CellResults, Extension, ResultScope, SearchLimits},
    snapshot::{CHUNK_SHARDS, Snapshot},
    topk::TopK,
    visited::VisitedSet,
};
use crate::{
    cells::{self, CellIndex, RankedId, RoutingScratch},
    codes::QuantizedQuery,
    distance::{self, CodeCandidate, Prefetch, ROWS, Scan},
    error::Result,
    format::calibration::SearchEffort,
    shard::DataFile,
    storage::StorageFile,
};

/// Finds the `k` nearest postings by cells, and by searching the unindexed postings.
///
/// # Errors
/// Returns `Corruption` if a vector or a cell group is damaged. A damaged group marks the cells as damaged, and the
/// caller must then search without cells.
pub(super) fn search_cells<F: StorageFile, B: Deref<Target = [u8]>>(
    snapshot: &Arc<Snapshot<F::Lent>>,
    data: &DataFile<F>,
    cells: &CellIndex<B>,
    vector: &[f32],
    k: usize,
    limit: SearchLimits,
) -> Result<CellResults> {
    search_cells_extending(snapshot, data, cells, vector, ResultScope::nearest(k), limit, |_, _| Ok(Extension::No))
}

/// Searches by cells, and runs a second pass if `extend`, called with the results of the first and the number of postings
/// that seem as near and do not pass the filter, returns wider limits.
///
/// The second pass scans the codes of the first pass again, in cells and of unindexed postings, and counts them again.
/// The distances of indexed postings are not computed again, because these are in the visited set. Those of unindexed
/// postings are computed again.
///
/// # Errors
/// Returns `Corruption` as [`search_cells`] does, and the errors of `extend`.
pub(super) fn search_cells_extending<F: StorageFile, B: Deref<Target = [u8]>>(
    snapshot: &Arc<Snapshot<F::Lent>>,
    data: &DataFile<F>,
    cells: &CellIndex<B>,
    vector: &[f32],
    wanted: ResultScope<'_>,
    limit: SearchLimits,
    extend: impl FnOnce(&TopK, usize) -> Result<Extension>,
) -> Result<CellResults> {
    SCRATCH.with_borrow_mut(|scratch| {
        let Scratch { query, buffers, visited, held } = scratch;
        query.set(vector, cells.frame(), data.geometry().metric);
        visited.clear();
        held.clear();
        let mut search_cells = CellSearch {
            snapshot,
            data,
            cells,
            vector,
            top: wanted.top(),
            visited,
            computed: 0,
            scanned: 0,
            walked: 0,
            quiet: 0,
            gains: 0,
            passed: 0,
            last_gain: 0,
            cut: false,
            in_order: 0,
            abandoned: false,
            looked_up: 0,
            most: limit.most,
            except: limit.except,
            mask: wanted.mask,
            gained: false,
            held,
            rejected: Vec::new(),
            pending: Vec::new(),
            prefetch: Prefetch::default(),
        };
        search_cells.search(query, buffers, &limit)?;
        let extended = search_cells.extend(query, buffers, extend)?;
        let cost = search_cells.cost();
        let CellSearch { top, scanned, computed, walked, cut, abandoned, .. } = search_cells;
        Ok(CellResults { top, scanned, computed, cost, cells: walked, cut, abandoned, extended })
    })
}

/// Buffers that the searches of a thread share.
#[derive(Default)]
struct Scratch {
    query: QuantizedQuery,
    buffers: WalkBuffers,
    visited: VisitedSet,
    held: Vec<CodeCandidate>,
}

/// Buffers of a pass over the cells.
#[derive(Default)]
struct WalkBuffers {
    routing: RoutingScratch,
    found: Vec<CodeCandidate>,
    /// Numbers of the cells that earlier rounds of the pass scanned.
    done: Vec<usize>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

impl<'a, F: StorageFile, B: Deref<Target = [u8]>> CellSearch<'a, F, B> {
    /// Runs one pass: over the cells, then over the unindexed postings.
    ///
    /// # Errors
    /// Returns `Corruption` if a vector or a cell group is damaged.
    fn search(&mut self, query: &QuantizedQuery, buffers: &mut WalkBuffers, limit: &SearchLimits) -> Result<()> {
        buffers.found.clear();
        buffers.done.clear();
        self.passed = 0;
        self.walk(query, buffers, limit)?;
        if !self.abandoned {
            self.take(&mut buffers.found)?;
            self.finish()?;
        }
        if limit.unindexed && !self.abandoned {
            let deviations = limit.effort.deviations.max(limit.unindexed_deviations);
            self.scan_unindexed(query, &SearchEffort { deviations, ..limit.effort }, &mut buffers.found)?;
        }
        Ok(())
    }

    /// Runs a second pass if `extend` returns wider limits. Returns whether it did.
    ///
    /// # Errors
    /// Returns the errors of `extend`, and `Corruption` if a vector or a cell group is damaged.
    fn extend(
        &mut self,
        query: &QuantizedQuery,
        buffers: &mut WalkBuffers,
        extend: impl FnOnce(&TopK, usize) -> Result<Extension>,
    ) -> Result<bool> {
        let bound = self.top.bound();
        let rejected = self.rejected.iter().filter(|&&estimate| estimate <= bound).count();
        match extend(&self.top, rejected)? {
            _ if self.abandoned => Ok(false),
            Extension::No => Ok(false),
            Extension::Everything => {
                self.abandoned = true;
                Ok(false)
            }
            Extension::To(limit) => {
                self.most = limit.most;
                self.top.is_offered_again();
                self.search(query, buffers, &limit)?;
                Ok(true)
            }
        }
    }

    /// Counts a scanned cell for the stop rule: whether it gave a result, or belongs to an earlier pass.
    fn note_gain(&mut self, was_scanned_before: bool) {
        self.passed += 1;
        if std::mem::take(&mut self.gained) {
            (self.quiet, self.gains) = (0, self.gains + 1);
            self.last_gain = self.last_gain.max(self.passed);
        } else if !was_scanned_before {
            self.quiet += 1;
        }
    }

    /// Scans cells in the order of their distances until the stop rule or a limit applies. A second pass starts with
    /// cells that the first pass scanned. A lack of new results there is no evidence about other cells, so it does not
    /// count towards `quiet`.
    ///
    /// # Errors
    /// Returns `Corruption` if a vector or a cell group is damaged.
    fn walk(
        &mut self,
        query: &QuantizedQuery,
        WalkBuffers { routing, found, done }: &mut WalkBuffers,
        limit: &SearchLimits,
    ) -> Result<()> {
        let (cells, data, effort) = (self.cells, self.data, &limit.effort);
        let router = cells.router();
        let (mut groups, mut wanted) = (effort.groups.max(1) as usize, effort.cells.max(1) as usize);
        let (mut known, mut waiting) = (self.walked, 0);
        loop {
            router.ask(query, groups, wanted, routing);
            if !done.is_empty() {
                done.sort_unstable();
                routing.near.retain(|near| done.binary_search(&near.number()).is_err());
            }
            let mut queue = CellQueue::new(cells, data, &mut self.prefetch, &mut routing.near)?;
            while let Some((next, after)) = queue.next(cells, data, &mut self.prefetch, query)? {
                self.prefetch.plan(after, next.count);
                let bound = self.top.bound();
                let beyond = next.base - bound;
                let patience =
                    effort.margin - effort.impatience * cells::quietness(self.quiet, self.gains, self.walked as u32);
                self.cut = self.scanned >= limit.codes;
                let persists = (self.passed as f32) < limit.persistence * self.last_gain as f32;
                if self.cut || (beyond > patience * next.unit && !persists) {
                    return Ok(());
                }
                let (planes, step) = (&query.planes, query.plane_step);
                // Finite, because a code's factor may be 0, and the product with infinity is NaN.
                let allow = |error: f32| (effort.deviations * error).min(f32::MAX);
                // The quantisation error of the centroid's distance affects every estimate in the cell.
                let (blocks, base) = (next.codes, next.base - allow(next.error));
                let error = allow(query.code_error(next.square));
                let range = next.first..next.first + next.count;
                distance::scan(&Scan { planes, blocks, range, step, error, base, bound }, &mut self.prefetch, found);
                self.rerank_pending()?;
                self.scanned += next.count;
                if self.is_spent() {
                    return Ok(());
                }
                waiting += next.count;
                self.walked += 1;
                // Without a top-k bound, candidates accumulate, so that the first re-rank has more to choose from.
                if bound < f32::INFINITY || waiting >= self.top.k().saturating_mul(8) {
                    self.take(found)?;
                    waiting = 0;
                }
                self.note_gain(known > 0);
                known = known.saturating_sub(1);
            }
            done.extend(routing.near.iter().map(|near| near.number()));
            if groups >= router.groups() && wanted >= router.numbers() {
                return Ok(());
            }
            // The estimated cells did not suffice. The next round takes four times as many, and the last one all.
            groups = groups.saturating_mul(4).min(router.groups());
            wanted = if groups == router.groups() { router.numbers() } else { wanted.saturating_mul(4) };
        }
    }

    /// Searches the unindexed postings, nearest shards first: by the codes of the slots that have one, by the vectors
    /// of the others.
    ///
    /// # Errors
    /// Returns `Corruption` if a vector is damaged.
    fn scan_unindexed(
        &mut self,
        query: &QuantizedQuery,
        effort: &SearchEffort,
        found: &mut Vec<CodeCandidate>,
    ) -> Result<()> {
        let (snapshot, data, vector) = (self.snapshot, self.data, self.vector);
        let (mut near, mut products) = (Vec::new(), [0; CHUNK_SHARDS.next_multiple_of(ROWS)]);
        for (chunk, c) in snapshot.chunks.iter().zip(0u32..).filter(|(chunk, _)| !chunk.unindexed.is_empty()) {
            let products = &mut products[..chunk.unindexed.len().next_multiple_of(ROWS)];
            distance::dot_bytes(&query.bytes.bytes, &chunk.unindexed_rows, products);
            for (unindexed, &product) in chunk.unindexed.iter().zip(&*products) {
                let Some(shard) = chunk.shards[unindexed.shard as usize].as_deref() else { continue };
                let (base, square) = query.bytes.base(unindexed.centroid.stored, product);
                near.push((RankedId::new(base, c * CHUNK_SHARDS as u32 + unindexed.shard), square, shard, unindexed));
            }
        }
        near.sort_unstable_by_key(|&(near, ..)| near);
        for (near, square, shard, unindexed) in near {
            let (base, number) = (near.distance(), near.number() as u32);
            let unit = query.bytes.unit(square, query.bytes.base_error(unindexed.centroid.stored));
            if self.is_spent() || base > self.top.bound() + effort.shard_margin * unit {
                break;
            }
            let codes = unindexed.codes.as_deref();
            let (from, len) = (unindexed.from as usize, shard.len());
            let first = codes.map_or(len, |codes| codes.first.max(from));
            let coded = first..codes.map_or(len, |codes| codes.end().max(first));
            let except = self.except.filter(|&(shard, _)| shard == number).map_or(len, |(_, slot)| slot);
            let around =
                |slots: Range<usize>| [slots.start..slots.end.min(except), slots.start.max(except + 1)..slots.end];
            for slots in [from..coded.start, coded.end..len].into_iter().flat_map(around) {
                let n = scan_slots(shard, number, slots, data, vector, self.mask, &mut self.top)?;
                self.scanned += n;
                self.computed += n;
                self.in_order += n;
            }
            let Some(codes) = codes else { continue };
            let (planes, step, bound) = (&query.planes, query.plane_step, self.top.bound());
            let allow = |error: f32| (effort.deviations * error).min(f32::MAX);
            let error = allow(query.code_error(square));
            let base = base - allow(query.bytes.base_error(unindexed.centroid.stored));
            for (blocks, range) in codes.parts(coded) {
                self.scanned += range.len();
                distance::scan(&Scan { planes, blocks, range, step, error, base, bound }, &mut self.prefetch, found);
            }
            if bound == f32::INFINITY {
                found.sort_unstable_by(nearest_first);
            }
            for some in found.chunks(TOGETHER) {
                some.iter().for_each(|one| self.ask_for(one, None, number, one.reference as usize, shard));
                self.prefetch.finish();
                self.rerank_pending()?;
            }
            found.clear();
        }
        Ok(())
    }

    /// Computes the cost so far, in the unit of [`CellResults::cost`].
    fn cost(&self) -> f64 {
        let (alone, codes) = (self.computed - self.in_order, self.scanned - self.in_order);
        4.0 * alone as f64 + (self.looked_up + self.in_order) as f64 + codes as f64 / 8.0
    }

    /// Reports whether the cost exceeds its limit, and then marks the search as abandoned.
    pub(super) fn is_spent(&mut self) -> bool {
        self.abandoned |= self.cost() > self.most;
        self.abandoned
    }
}
