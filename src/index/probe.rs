//! A search by cells: scan the codes of near cells, compute few distances.
//!
//! Cells are scanned in the order of their centroids' distances. A code says how near its posting is at the least, but for
//! an error that is seldom larger; where that is within the farthest result so far, the posting's distance is computed.
//! The scan stops when the next centroid is farther than the farthest result by a margin, which was found by asking for
//! stored vectors (the idea of stopping each query when it is likely done: Li et al., SIGMOD 2020).

use std::{cell::RefCell, ops::Deref, sync::Arc};

use super::{
    search::{distance_by, scan_slots, shard_of},
    snapshot::{CHUNK_SHARDS, Snapshot},
    topk::{Candidate, TopK},
};
use crate::{
    cells::{self, Asked, CellIndex, GroupView, Near},
    codes::{CentroidBytes, Query},
    distance::{self, BLOCK, Found, Scan},
    error::Result,
    format::cells::Effort,
    limits,
    shard::{self, DataFile, Extent},
    storage::StorageFile,
};

/// How far a search goes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Reach {
    pub(super) effort: Effort,
    /// Errors allowed for in an estimate, in standard deviations.
    pub(super) deviations: f32,
    /// Codes scanned at most.
    pub(super) codes: usize,
}

/// What a search found and did.
#[derive(Debug)]
pub(super) struct Probed {
    pub(super) top: TopK,
    /// Codes and vectors looked at.
    pub(super) scanned: usize,
    /// Distances computed.
    pub(super) computed: usize,
    /// Cells scanned.
    pub(super) cells: usize,
}

/// Hears how a search goes on.
pub(super) trait Trace {
    /// The next cell is so near, and the farthest result so far.
    fn cell(&mut self, base: f32, bound: f32);
    /// A posting was offered.
    fn offered(&mut self, candidate: &Candidate);
}

/// Hears nothing.
pub(super) struct Silent;

impl Trace for Silent {
    fn cell(&mut self, _: f32, _: f32) {}
    fn offered(&mut self, _: &Candidate) {}
}

/// Numbers that were met: a table of open addressing.
struct Met {
    slots: Vec<u32>,
    count: usize,
}

impl Default for Met {
    fn default() -> Self {
        Self { slots: vec![u32::MAX; 512], count: 0 }
    }
}

impl Met {
    fn clear(&mut self) {
        self.slots.truncate(512);
        self.slots.fill(u32::MAX);
        self.count = 0;
    }

    /// Whether `number` is met for the first time. No posting has the number `u32::MAX`.
    fn insert(&mut self, number: u32) -> bool {
        if self.count * 2 >= self.slots.len() {
            let wider = vec![u32::MAX; self.slots.len() * 4];
            let old = std::mem::replace(&mut self.slots, wider);
            self.count = 0;
            for number in old.into_iter().filter(|&number| number != u32::MAX) {
                self.insert(number);
            }
        }
        let mask = self.slots.len() - 1;
        let mut at = (number.wrapping_mul(0x9E37_79B1) >> 7) as usize & mask;
        loop {
            if self.slots[at] == number {
                return false;
            }
            if self.slots[at] == u32::MAX {
                self.slots[at] = number;
                self.count += 1;
                return true;
            }
            at = (at + 1) & mask;
        }
    }
}

/// The search's state while it goes from cell to cell.
struct Probe<'a, F: StorageFile, B, T> {
    snapshot: &'a Snapshot<F::Lent>,
    data: &'a DataFile<F>,
    cells: &'a CellIndex<B>,
    vector: &'a [f32],
    top: TopK,
    met: &'a mut Met,
    trace: &'a mut T,
    computed: usize,
    pending: Vec<Pending<'a, F::Lent>>,
}

/// A posting whose distance is to be computed.
struct Pending<'a, L> {
    least: f32,
    number: u32,
    slot: usize,
    extent: &'a Extent<L>,
}

impl<L> Clone for Pending<'_, L> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<L> Copy for Pending<'_, L> {}

/// Vectors that are asked for before the first is used.
const TOGETHER: usize = 8;

impl<'a, F: StorageFile, B: Deref<Target = [u8]>, T: Trace> Probe<'a, F, B, T> {
    /// Finds the slot of a code's posting, if it was not met before and is there.
    fn look_up(&mut self, reference: u32, least: f32) {
        if !self.met.insert(reference) {
            return;
        }
        let geometry = self.data.geometry();
        let slots = geometry.extent_slots();
        // Bytes that rot under the mapping after they were checked may name anything.
        let Some((covered, slot)) = self.cells.posting(reference) else { return };
        // A shard that is gone, or was made anew under the same number, has its postings elsewhere.
        let Some(shard) = shard_of(self.snapshot, covered.number).filter(|shard| shard.id == covered.id) else {
            return;
        };
        let slot = slot as usize;
        if shard.is_live(slot) {
            let extent = &shard.extents()[slot / slots];
            distance::prefetch(shard::slot_bytes(extent.lent(), slot % slots, geometry));
            self.pending.push(Pending { least, number: covered.number, slot, extent });
        }
    }

    /// Takes what a scan found: once there is a bound few postings are, and they are asked for at once and used together
    /// with others, for their bytes lie far apart. Before that the most promising of many make the first bound.
    fn take(&mut self, found: &mut Vec<Found>) -> Result<()> {
        if self.top.bound() < f32::INFINITY {
            found.drain(..).for_each(|Found { reference, least }| self.look_up(reference, least));
            return if self.pending.len() >= TOGETHER { self.settle() } else { Ok(()) };
        }
        found.sort_unstable_by(|a, b| a.least.total_cmp(&b.least).then(a.reference.cmp(&b.reference)));
        for some in found.chunks(TOGETHER) {
            let bound = self.top.bound();
            if some[0].least > bound {
                break;
            }
            some.iter().for_each(|&Found { reference, least }| self.look_up(reference, least));
            self.settle()?;
        }
        found.clear();
        Ok(())
    }

    /// Computes the distances of what was asked for, as far as they may be results.
    fn settle(&mut self) -> Result<()> {
        let geometry = self.data.geometry();
        let slots = geometry.extent_slots();
        for &Pending { least, number, slot, extent } in &self.pending {
            if least > self.top.bound() {
                continue;
            }
            let bytes = extent.slots(self.data)?;
            let row = shard::row(bytes, slot % slots, geometry);
            self.computed += 1;
            let distance = distance_by(geometry.metric, self.vector, row);
            if distance <= self.top.bound() {
                let posting = shard::record(bytes, slot % slots, geometry);
                let candidate = Candidate {
                    distance,
                    document_id: posting.document_id,
                    start: posting.start,
                    length: posting.length,
                    shard: number,
                    slot: slot as u32,
                };
                self.trace.offered(&candidate);
                self.top.offer(candidate);
            }
        }
        self.pending.clear();
        Ok(())
    }
}

/// Finds the `k` nearest postings by cells, and by scanning what is in none.
///
/// # Errors
/// `Corruption` of a vector. Of a group of cells too: the search is then to be done without.
pub(super) fn probe<F: StorageFile, B: Deref<Target = [u8]>>(
    snapshot: &Arc<Snapshot<F::Lent>>,
    data: &DataFile<F>,
    cells: &CellIndex<B>,
    (vector, k): (&[f32], usize),
    reach: Reach,
    trace: &mut impl Trace,
) -> Result<Probed> {
    SCRATCH.with_borrow_mut(|scratch| probe_with(scratch, snapshot, data, cells, (vector, k), reach, trace))
}

/// Room that one search after another uses.
#[derive(Default)]
struct Scratch {
    query: Query,
    asked: Asked,
    met: Met,
    found: Vec<Found>,
    done: Vec<usize>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

fn probe_with<F: StorageFile, B: Deref<Target = [u8]>>(
    scratch: &mut Scratch,
    snapshot: &Arc<Snapshot<F::Lent>>,
    data: &DataFile<F>,
    cells: &CellIndex<B>,
    (vector, k): (&[f32], usize),
    reach: Reach,
    trace: &mut impl Trace,
) -> Result<Probed> {
    let Scratch { query, asked, met, found, done } = scratch;
    query.set(vector, cells.rotation(), data.geometry().metric);
    met.clear();
    found.clear();
    done.clear();
    let top = TopK::new(k);
    let mut probe = Probe { snapshot, data, cells, vector, top, met, trace, computed: 0, pending: Vec::new() };
    let router = cells.router();
    let (mut groups, mut wanted) = (reach.effort.groups.max(1) as usize, reach.effort.cells.max(1) as usize);
    let (mut scanned, mut count, mut waiting) = (0, 0, 0);
    'rounds: loop {
        router.ask(query, groups, wanted, asked);
        if !done.is_empty() {
            done.sort_unstable();
            asked.near.retain(|near| done.binary_search(&near.number()).is_err());
        }
        let mut front = Front { estimated: &mut asked.near, at: 0, sorted: 0, measured: Vec::new() };
        while let Some((next, after)) = front.next(&probe, query)? {
            if let Some(after) = after {
                distance::prefetch(after.codes);
            }
            let bound = probe.top.bound();
            if next.base > bound + reach.effort.margin || scanned >= reach.codes {
                break 'rounds;
            }
            probe.trace.cell(next.base, bound);
            let (planes, step) = (&query.planes, query.plane_step);
            let error = reach.deviations * limits::CODE_DEVIATION * next.square.sqrt();
            let Measured { codes: blocks, base, .. } = next;
            let range = next.first..next.first + next.count;
            distance::scan(&Scan { planes, blocks, range, step, error, base, bound }, found);
            scanned += next.count;
            waiting += next.count;
            count += 1;
            done.push(next.number);
            // As long as nothing bounds what is found, it is better to have more to choose from.
            if bound < f32::INFINITY || waiting >= k.saturating_mul(8) {
                probe.take(found)?;
                waiting = 0;
            }
        }
        if groups >= router.groups() && wanted >= router.numbers() {
            break;
        }
        // The first ones did not do: many more, then all.
        groups = groups.saturating_mul(4).min(router.groups());
        wanted = if groups == router.groups() { router.numbers() } else { wanted.saturating_mul(4) };
    }
    probe.take(found)?;
    probe.settle()?;
    // What came after the cells were made.
    for (chunk, c) in snapshot.chunks.iter().zip(0u32..) {
        for &(i, from) in &chunk.fresh {
            let Some(shard) = &chunk.shards[i as usize] else { continue };
            let base = distance_by(data.geometry().metric, vector, &shard.centroid);
            if base <= probe.top.bound() + reach.effort.shard_margin {
                let number = c * CHUNK_SHARDS as u32 + i;
                let n = scan_slots(shard, (number, from as usize), data, vector, &mut probe.top)?;
                scanned += n;
                probe.computed += n;
            }
        }
    }
    Ok(Probed { top: probe.top, scanned, computed: probe.computed, cells: count })
}

/// A cell whose distance was computed.
#[derive(Clone, Copy)]
struct Measured<'a> {
    base: f32,
    square: f32,
    number: usize,
    /// Blocks of its group from the one on that has its first code.
    codes: &'a [u8],
    first: usize,
    count: usize,
}

/// Cells on the way from an estimated to a computed distance: so far as the estimates tell, they come in order.
struct Front<'a, 'b> {
    estimated: &'b mut Vec<Near>,
    /// Of `estimated`, how many were measured, and how many are in order.
    at: usize,
    sorted: usize,
    /// The nearest last.
    measured: Vec<Measured<'a>>,
}

impl<'a> Front<'a, '_> {
    /// The nearest cell, and the one after it if it is known.
    fn next<F: StorageFile, B: Deref<Target = [u8]>, T>(
        &mut self,
        probe: &Probe<'a, F, B, T>,
        query: &Query,
    ) -> Result<Option<(Measured<'a>, Option<Measured<'a>>)>> {
        loop {
            let estimate = self.estimate();
            match (self.measured.last(), estimate) {
                (None, None) => return Ok(None),
                (Some(nearest), Some(estimate)) if estimate.distance() < nearest.base => self.measure(probe, query)?,
                (None, Some(_)) => self.measure(probe, query)?,
                (Some(_), _) => break,
            }
        }
        let next = self.measured.pop();
        Ok(next.map(|next| (next, self.measured.last().copied())))
    }

    /// The next estimate.
    fn estimate(&mut self) -> Option<Near> {
        if self.at >= self.sorted {
            let rest = &mut self.estimated[self.sorted..];
            let n = 64.min(rest.len());
            if n < rest.len() {
                rest.select_nth_unstable(n);
            }
            rest[..n].sort_unstable();
            self.sorted += n;
        }
        self.estimated[..self.sorted].get(self.at).copied()
    }

    /// Measures some more cells.
    fn measure<F: StorageFile, B: Deref<Target = [u8]>, T>(
        &mut self,
        probe: &Probe<'a, F, B, T>,
        query: &Query,
    ) -> Result<()> {
        let cells = probe.cells;
        let end = self.sorted.min(self.at + 32);
        let mut views: [Option<(GroupView<'a>, usize)>; 32] = [None; 32];
        for (near, view) in self.estimated[self.at..end].iter().zip(&mut views) {
            let (group, cell) = cells.router().cell(near.number());
            let opened = cells.group(group).map_err(|what| {
                let offset = cells.table().groups[group].place.page * probe.data.geometry().page_size as u64;
                cells::damaged(probe.data.path(), offset, &what)
            })?;
            distance::prefetch(opened.centroid(cell));
            *view = Some((opened, cell));
        }
        for (near, (view, i)) in self.estimated[self.at..end].iter().zip(views.into_iter().flatten()) {
            let cell = view.cell(i);
            let product = distance::dot_byte_row(&query.bytes.bytes, view.centroid(i));
            let stored = CentroidBytes { step: cell.step, square: cell.square };
            let (base, square) = query.bytes.base(stored, product);
            let (first, count) = (cell.first as usize, cell.count as usize);
            let bytes = distance::block_bytes(query.planes.len());
            let blocks = first / BLOCK * bytes..(first + count).div_ceil(BLOCK) * bytes;
            // As above.
            let Some(codes) = view.blocks().get(blocks) else { continue };
            self.measured.push(Measured { base, square, number: near.number(), codes, first: first % BLOCK, count });
        }
        self.at = end;
        self.measured.sort_unstable_by(|a, b| b.base.total_cmp(&a.base).then(b.number.cmp(&a.number)));
        Ok(())
    }
}
