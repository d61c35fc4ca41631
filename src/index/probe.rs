//! A search by cells: scan the codes of near cells, compute few distances.
//!
//! Cells are scanned in the order of their centroids' distances. A code says how near its posting is at the least, but for
//! an error that is seldom larger; where that is within the farthest result so far, the posting's distance is computed.
//! The scan stops when the next centroid is farther than the farthest result by a margin, which was found by asking for
//! vectors (the idea of stopping each query when it is likely done: Li et al., SIGMOD 2020).

use std::{
    cell::RefCell,
    ops::{Deref, Range},
    sync::Arc,
};

use super::{
    search::{distance_by, scan_slots, shard_of},
    snapshot::{CHUNK_SHARDS, Snapshot},
    topk::{Candidate, TopK},
};
use crate::{
    cells::{self, Asked, CellIndex, GroupView, Near},
    codes::Query,
    distance::{self, Ahead, BLOCK, Found, ROWS, Scan},
    error::Result,
    format::cells::{Effort, RECALLS},
    limits,
    shard::{self, DataFile, Extent, Shard},
    storage::StorageFile,
};

/// How far a search goes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Reach {
    pub(super) effort: Effort,
    /// Codes scanned at most.
    pub(super) codes: usize,
    /// Whether what the snapshot has in none of its cells is looked at too.
    pub(super) fresh: bool,
    /// The standard deviations that are allowed for there, at least.
    pub(super) fresh_deviations: f32,
    /// A posting that is passed over, as if it were not there: its shard's number, and its slot.
    pub(super) except: Option<(u32, usize)>,
    /// What it may [cost](Probed::cost). Beyond that it is given up: whoever then looks at everything has paid twice for it, and
    /// not more.
    pub(super) most: f64,
}

impl Reach {
    /// So much for every query, of which a recall is wanted.
    pub(super) fn of(effort: Effort, recall: f32) -> Self {
        let fresh_deviations = fresh_deviations(recall);
        Self { effort, codes: usize::MAX, fresh: true, fresh_deviations, except: None, most: f64::INFINITY }
    }
}

/// What is allowed for where nobody has found out by what there is; see [`limits::FRESH_DEVIATIONS`].
pub(super) fn fresh_deviations(recall: f32) -> f32 {
    let at = RECALLS.partition_point(|&known| known < recall);
    limits::FRESH_DEVIATIONS[at.min(RECALLS.len() - 1)]
}

/// What a search found and did.
#[derive(Debug)]
pub(super) struct Probed {
    pub(super) top: TopK,
    /// Codes and vectors looked at.
    pub(super) scanned: usize,
    /// Distances computed.
    pub(super) computed: usize,
    /// What that cost, in vectors that are looked at one after another: one that is fetched by itself costs as much as some of
    /// these, a posting that is looked up as one, or as some codes.
    pub(super) cost: f64,
    /// Cells scanned.
    pub(super) cells: usize,
    /// Whether it stopped because it had scanned as many codes as it may.
    pub(super) cut: bool,
    /// Whether it was given up, because it cost more than it may.
    pub(super) given_up: bool,
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

    /// Whether `number` was met.
    fn contains(&self, number: u32) -> bool {
        let mask = self.slots.len() - 1;
        let mut at = Self::home(number) & mask;
        loop {
            match self.slots[at] {
                met if met == number => return true,
                u32::MAX => return false,
                _ => at = (at + 1) & mask,
            }
        }
    }

    /// Where a number is looked for first.
    fn home(number: u32) -> usize {
        (number.wrapping_mul(0x9E37_79B1) >> 7) as usize
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
        let mut at = Self::home(number) & mask;
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
struct Probe<'a, F: StorageFile, B> {
    snapshot: &'a Snapshot<F::Lent>,
    data: &'a DataFile<F>,
    cells: &'a CellIndex<B>,
    vector: &'a [f32],
    top: TopK,
    met: &'a mut Met,
    computed: usize,
    scanned: usize,
    /// Of those computed, the ones that lie one after another.
    in_order: usize,
    /// Whether it was left before its end, because it had cost more than it may.
    given_up: bool,
    /// Postings that codes were looked up for, those that are gone too.
    looked_up: usize,
    most: f64,
    except: Option<(u32, usize)>,
    /// Whether a result was found since this was last asked.
    gained: bool,
    /// What may be a result if the bound stays as it is.
    held: &'a mut Vec<Found>,
    pending: Vec<Pending<'a, F::Lent>>,
    ahead: Ahead<'a>,
}

/// A posting whose distance is to be computed.
struct Pending<'a, L> {
    least: f32,
    /// Its number among those in cells, of which it may have two codes.
    reference: Option<u32>,
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

/// Vectors that are asked for before the first is used, at least.
const TOGETHER: usize = 8;

fn nearest_first(a: &Found, b: &Found) -> std::cmp::Ordering {
    a.least.total_cmp(&b.least).then(a.reference.cmp(&b.reference))
}

impl<'a, F: StorageFile, B: Deref<Target = [u8]>> Probe<'a, F, B> {
    /// Finds the slot of a code's posting, if it was not met before, and asks for it.
    fn look_up(&mut self, one: &Found) {
        self.looked_up += 1;
        if self.met.contains(one.reference) {
            return;
        }
        // Bytes that rot under the mapping after they were checked may name anything.
        let Some((covered, slot)) = self.cells.posting(one.reference) else { return };
        // A shard that is gone, or was made anew under the same number, has its postings elsewhere.
        let Some(shard) = shard_of(self.snapshot, covered.number).filter(|shard| shard.id == covered.id) else {
            return;
        };
        self.ask_for((one.least, Some(one.reference)), (covered.number, slot as usize, shard));
    }

    /// Asks for a posting, if it is there and may be a result.
    fn ask_for(
        &mut self,
        (least, reference): (f32, Option<u32>),
        (number, slot, shard): (u32, usize, &'a Shard<F::Lent>),
    ) {
        let geometry = self.data.geometry();
        let slots = geometry.extent_slots();
        if shard.is_live(slot) && least <= self.top.bound() && self.except != Some((number, slot)) {
            let extent = &shard.extents()[slot / slots];
            self.ahead.push(shard::slot_bytes(extent.lent(), slot % slots, geometry));
            self.pending.push(Pending { least, reference, number, slot, extent });
        }
    }

    /// Takes what a scan found. Before there is a bound, the most promising ones make it; from then on those that are
    /// results by their estimates are asked for, while the next cell is scanned, and the others wait for what the bound
    /// will be at the end.
    fn take(&mut self, found: &mut Vec<Found>) -> Result<()> {
        if self.top.bound() == f32::INFINITY {
            found.sort_unstable_by(nearest_first);
            let mut first = 0;
            while first < found.len() && self.top.bound() == f32::INFINITY {
                let some = &found[first..found.len().min(first + self.top.room().max(TOGETHER))];
                first += some.len();
                some.iter().for_each(|one| self.look_up(one));
                self.ahead.finish();
                self.settle()?;
            }
            found.drain(..first);
        }
        for one in found.drain(..) {
            let bound = self.top.bound();
            if one.least + one.allowed <= bound {
                self.look_up(&one);
            } else if one.least <= bound {
                self.held.push(one);
            }
        }
        Ok(())
    }

    /// Computes all that is left and may be a result.
    fn finish(&mut self) -> Result<()> {
        self.ahead.finish();
        self.settle()?;
        let mut held = std::mem::take(self.held);
        let bound = self.top.bound();
        held.retain(|one| one.least <= bound);
        held.sort_unstable_by(nearest_first);
        for some in held.chunks(2 * TOGETHER) {
            if self.is_spent() {
                break;
            }
            let bound = self.top.bound();
            some.iter().filter(|one| one.least <= bound).for_each(|one| self.look_up(one));
            self.ahead.finish();
            self.settle()?;
        }
        *self.held = held;
        Ok(())
    }

    /// Computes the distances of what was asked for, as far as they may be results.
    fn settle(&mut self) -> Result<()> {
        let geometry = self.data.geometry();
        let slots = geometry.extent_slots();
        for &Pending { least, reference, number, slot, extent } in &self.pending {
            // One that is passed over is not met: its other code may say that it is nearer.
            if least > self.top.bound() || reference.is_some_and(|reference| !self.met.insert(reference)) {
                continue;
            }
            let bytes = extent.slots(self.data)?;
            let row = shard::row(bytes, slot % slots, geometry);
            self.computed += 1;
            let distance = distance_by(geometry.metric, self.vector, row);
            if distance <= self.top.bound() {
                let posting = shard::record(bytes, slot % slots, geometry);
                self.top.offer(Candidate::new(distance, posting, (number, slot)));
                self.gained = true;
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
) -> Result<Probed> {
    SCRATCH.with_borrow_mut(|scratch| probe_with(scratch, snapshot, data, cells, (vector, k), reach))
}

/// Room that one search after another uses.
#[derive(Default)]
struct Scratch {
    query: Query,
    asked: Asked,
    met: Met,
    found: Vec<Found>,
    held: Vec<Found>,
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
) -> Result<Probed> {
    let Scratch { query, asked, met, found, held, done } = scratch;
    query.set(vector, cells.frame(), data.geometry().metric);
    met.clear();
    found.clear();
    held.clear();
    done.clear();
    let top = TopK::new(k);
    let mut probe = Probe {
        snapshot,
        data,
        cells,
        vector,
        top,
        met,
        computed: 0,
        scanned: 0,
        in_order: 0,
        given_up: false,
        looked_up: 0,
        most: reach.most,
        except: reach.except,
        gained: false,
        held,
        pending: Vec::new(),
        ahead: Ahead::default(),
    };
    let router = cells.router();
    let mut effort = reach.effort;
    let (mut groups, mut wanted) = (effort.groups.max(1) as usize, effort.cells.max(1) as usize);
    let (mut count, mut waiting, mut quiet) = (0, 0, 0);
    let mut cut = false;
    'rounds: loop {
        router.ask(query, groups, wanted, asked);
        if !done.is_empty() {
            done.sort_unstable();
            asked.near.retain(|near| done.binary_search(&near.number()).is_err());
        }
        let mut front = Front::new(&mut probe, &mut asked.near)?;
        while let Some((next, after)) = front.next(&mut probe, query)? {
            probe.ahead.plan(after, next.count);
            let bound = probe.top.bound();
            let beyond = next.base - bound;
            cut = probe.scanned >= reach.codes;
            if cut || beyond + effort.impatience * cells::log2(quiet + 1) * next.unit > effort.margin * next.unit {
                break 'rounds;
            }
            let (planes, step) = (&query.planes, query.plane_step);
            // Not infinite, for a factor may be nothing.
            let allow = |error: f32| (effort.deviations * error).min(f32::MAX);
            // What bytes miss of the distance to the centroid is missing from each estimate.
            let (blocks, base) = (next.codes, next.base - allow(next.error));
            let error = allow(query.code_error(next.square));
            let range = next.first..next.first + next.count;
            distance::scan(&Scan { planes, blocks, range, step, error, base, bound }, &mut probe.ahead, found);
            probe.settle()?;
            probe.scanned += next.count;
            if probe.is_spent() {
                break 'rounds;
            }
            waiting += next.count;
            count += 1;
            // As long as nothing bounds what is found, it is better to have more to choose from.
            if bound < f32::INFINITY || waiting >= k.saturating_mul(8) {
                probe.take(found)?;
                waiting = 0;
            }
            quiet = if std::mem::take(&mut probe.gained) { 0 } else { quiet + 1 };
        }
        done.extend(asked.near.iter().map(|near| near.number()));
        if groups >= router.groups() && wanted >= router.numbers() {
            break;
        }
        // The first ones did not do: many more, then all.
        groups = groups.saturating_mul(4).min(router.groups());
        wanted = if groups == router.groups() { router.numbers() } else { wanted.saturating_mul(4) };
    }
    if !probe.given_up {
        probe.take(found)?;
        probe.finish()?;
    }
    if reach.fresh && !probe.given_up {
        effort.deviations = effort.deviations.max(reach.fresh_deviations);
        probe.scan_fresh(query, &effort, found)?;
    }
    let cost = probe.cost();
    let Probe { top, scanned, computed, given_up, .. } = probe;
    Ok(Probed { top, scanned, computed, cost, cells: count, cut, given_up })
}

impl<'a, F: StorageFile, B: Deref<Target = [u8]>> Probe<'a, F, B> {
    /// Looks at what came after the cells were made, near shards first: at the codes of the slots that have one, at the
    /// vectors of the others.
    fn scan_fresh(&mut self, query: &Query, effort: &Effort, found: &mut Vec<Found>) -> Result<()> {
        let (snapshot, data, vector) = (self.snapshot, self.data, self.vector);
        let (mut near, mut products) = (Vec::new(), [0; CHUNK_SHARDS.next_multiple_of(ROWS)]);
        for (chunk, c) in snapshot.chunks.iter().zip(0u32..).filter(|(chunk, _)| !chunk.fresh.is_empty()) {
            let products = &mut products[..chunk.fresh.len().next_multiple_of(ROWS)];
            distance::dot_bytes(&query.bytes.bytes, &chunk.fresh_rows, products);
            for (fresh, &product) in chunk.fresh.iter().zip(&*products) {
                let Some(shard) = chunk.shards[fresh.shard as usize].as_deref() else { continue };
                let (base, square) = query.bytes.base(fresh.centroid.stored, product);
                near.push((Near::new(base, c * CHUNK_SHARDS as u32 + fresh.shard), square, shard, fresh));
            }
        }
        near.sort_unstable_by_key(|&(near, ..)| near);
        for (near, square, shard, fresh) in near {
            let (base, number) = (near.distance(), near.number() as u32);
            if self.is_spent() || base > self.top.bound() + effort.shard_margin * query.bytes.unit(square) {
                break;
            }
            let codes = fresh.codes.as_deref();
            let (from, len) = (fresh.from as usize, shard.len());
            let first = codes.map_or(len, |codes| codes.first.max(from));
            let coded = first..codes.map_or(len, |codes| codes.end().max(first));
            let except = self.except.filter(|&(shard, _)| shard == number).map_or(len, |(_, slot)| slot);
            let around = |slots: Range<usize>| {
                [slots.start..slots.end.min(except), slots.start.max(except + 1)..slots.end]
            };
            for slots in [from..coded.start, coded.end..len].into_iter().flat_map(around) {
                let n = scan_slots(shard, (number, slots), data, vector, &mut self.top)?;
                self.scanned += n;
                self.computed += n;
                self.in_order += n;
            }
            let Some(codes) = codes else { continue };
            let (planes, step, bound) = (&query.planes, query.plane_step, self.top.bound());
            let allow = |error: f32| (effort.deviations * error).min(f32::MAX);
            let error = allow(query.code_error(square));
            let base = base - allow(query.bytes.base_error(fresh.centroid.stored));
            for (blocks, range) in codes.parts(coded) {
                self.scanned += range.len();
                distance::scan(&Scan { planes, blocks, range, step, error, base, bound }, &mut self.ahead, found);
            }
            if bound == f32::INFINITY {
                found.sort_unstable_by(nearest_first);
            }
            for some in found.chunks(TOGETHER) {
                some.iter().for_each(|one| self.ask_for((one.least, None), (number, one.reference as usize, shard)));
                self.ahead.finish();
                self.settle()?;
            }
            found.clear();
        }
        Ok(())
    }

    fn cost(&self) -> f64 {
        let (alone, codes) = (self.computed - self.in_order, self.scanned - self.in_order);
        4.0 * alone as f64 + (self.looked_up + self.in_order) as f64 + codes as f64 / 8.0
    }

    /// Whether it has cost more than it may: then it is given up.
    fn is_spent(&mut self) -> bool {
        self.given_up |= self.cost() > self.most;
        self.given_up
    }
}

/// A cell whose distance was computed.
#[derive(Clone, Copy)]
struct Measured<'a> {
    base: f32,
    /// A standard deviation of it.
    error: f32,
    square: f32,
    /// What margins are in units of.
    unit: f32,
    /// Blocks of its group from the one on that has its first code.
    codes: &'a [u8],
    first: usize,
    count: usize,
}

/// Cells that are measured together.
const STRIDE: usize = 16;

/// Cells that are told from the rest together.
const NEAR: usize = 6 * STRIDE;

/// Cells on the way from an estimated to a computed distance: so far as the estimates tell, they come in order. The bytes
/// of those to be measured next are asked for while others are scanned.
struct Front<'a, 'b> {
    estimated: &'b mut [Near],
    /// Of `estimated`, how many are on their way or measured.
    at: usize,
    /// Up to here `estimated` are nearer than the rest: so that it is not the whole rest that is looked through each time.
    near: usize,
    /// The next ones of `estimated`, and the least estimate among them.
    coming: [Option<Coming<'a>>; STRIDE],
    least: f32,
    measured: Vec<Measured<'a>>,
    /// The order of those of `measured` that were not taken yet, the nearest last.
    order: Vec<(Near, u32)>,
}

/// A cell that is to be measured.
#[derive(Clone, Copy)]
struct Coming<'a> {
    number: usize,
    group: GroupView<'a>,
    cell: usize,
}

impl<'a, 'b> Front<'a, 'b> {
    fn new<F: StorageFile, B: Deref<Target = [u8]>>(
        probe: &mut Probe<'a, F, B>,
        estimated: &'b mut [Near],
    ) -> Result<Self> {
        let (measured, order) = (Vec::with_capacity(4 * STRIDE), Vec::with_capacity(2 * STRIDE));
        let mut front = Self { estimated, at: 0, near: 0, coming: [None; STRIDE], least: 0.0, measured, order };
        front.advance(probe)?;
        probe.ahead.finish();
        Ok(front)
    }

    /// The nearest cell, and the codes of the one after it if it is known.
    fn next<F: StorageFile, B: Deref<Target = [u8]>>(
        &mut self,
        probe: &mut Probe<'a, F, B>,
        query: &Query,
    ) -> Result<Option<(Measured<'a>, &'a [u8])>> {
        while self.order.last().is_none_or(|nearest| self.least < nearest.0.distance()) {
            if self.coming[0].is_none() {
                break;
            }
            self.measure(query);
            self.advance(probe)?;
        }
        let Some((_, i)) = self.order.pop() else { return Ok(None) };
        let after = self.order.last().map_or(&[] as &[u8], |&(_, i)| self.measured[i as usize].codes);
        Ok(Some((self.measured[i as usize], after)))
    }

    /// Finds out which cells come next, and asks for what they are measured by.
    fn advance<F: StorageFile, B: Deref<Target = [u8]>>(&mut self, probe: &mut Probe<'a, F, B>) -> Result<()> {
        let cells = probe.cells;
        if self.at == self.near {
            let rest = &mut self.estimated[self.at..];
            let n = NEAR.min(rest.len());
            if n < rest.len() {
                rest.select_nth_unstable(n);
            }
            self.near += n;
        }
        let rest = &mut self.estimated[self.at..self.near];
        let n = STRIDE.min(rest.len());
        if n < rest.len() {
            rest.select_nth_unstable(n);
        }
        self.at += n;
        self.least = rest[..n].iter().min().map_or(f32::INFINITY, |near| near.distance());
        self.coming = [None; STRIDE];
        for (near, coming) in rest[..n].iter().zip(&mut self.coming) {
            let number = near.number();
            let (group, cell) = cells.router().cell(number);
            let opened = cells.group(group).map_err(|what| {
                let offset = cells.table().groups[group].place.page * probe.data.geometry().page_size as u64;
                cells::damaged(probe.data.path(), offset, &what)
            })?;
            probe.ahead.push(opened.centroid(cell));
            *coming = Some(Coming { number, group: opened, cell });
        }
        Ok(())
    }

    /// Measures the cells that were next.
    fn measure(&mut self, query: &Query) {
        for &Coming { number, group, cell } in self.coming.iter().flatten() {
            let entry = group.cell(cell);
            let product = distance::dot_byte_row(&query.bytes.bytes, group.centroid(cell));
            let (base, square) = query.bytes.base(entry.centroid, product);
            let (first, count) = (entry.first as usize, entry.count as usize);
            let bytes = distance::block_bytes(query.planes.len());
            let blocks = first / BLOCK * bytes..(first + count).div_ceil(BLOCK) * bytes;
            // Bytes that rot under the mapping after they were checked may name anything.
            let Some(codes) = group.blocks().get(blocks) else { continue };
            self.order.push((Near::new(base, number as u32), self.measured.len() as u32));
            let error = query.bytes.base_error(entry.centroid);
            let unit = query.bytes.unit(square);
            self.measured.push(Measured { base, error, square, unit, codes, first: first % BLOCK, count });
        }
        self.order.sort_unstable_by(|a, b| b.cmp(a));
    }
}
