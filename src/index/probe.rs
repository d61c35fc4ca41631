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
    front::Front,
    met::Met,
    scan::{distance_by, scan_slots},
    snapshot::{CHUNK_SHARDS, Snapshot, shard_of},
    topk::{Candidate, TopK},
    unlike,
};
use crate::{
    cells::{self, Asked, CellIndex, Near},
    codes::Query,
    distance::{self, Ahead, Found, ROWS, Scan},
    error::Result,
    format::cells::{Effort, RECALLS},
    limits,
    shard::{self, DataFile, Extent, Shard},
    site::{self, Kind},
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
    /// Whether it was given up, because it cost more than it may, or because everything is wanted.
    pub(super) given_up: bool,
    /// Whether it went farther than it was to at first.
    pub(super) again: bool,
}

/// What a search is to do when it has come to its end.
pub(super) enum Further {
    /// Nothing.
    No,
    /// Go so far, whatever it has cost already.
    To(Reach),
    /// Be given up: every vector is to be looked at.
    Everything,
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
    /// Cells that were scanned, and how many of the last ones held no result.
    walked: usize,
    quiet: u32,
    /// How many of all held one, when they were scanned.
    gains: u32,
    /// Whether it stopped because it had scanned as many codes as it may.
    cut: bool,
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
            let mut first = 0;
            while first < found.len() && self.top.bound() == f32::INFINITY {
                let rest = &mut found[first..];
                let count = self.top.room().max(TOGETHER).min(rest.len());
                // One after another needs no order, nor do the rest.
                rest.select_nth_unstable_by(count - 1, nearest_first);
                first += count;
                rest[..count].iter().for_each(|one| self.look_up(one));
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
        // What tells whether the query is like the others comes meanwhile.
        if let Some(nearest) = self.top.nearest() {
            self.ahead.push(bytemuck::cast_slice(unlike::place_of(self.snapshot, nearest)));
        }
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
            let near = least <= self.top.bound();
            // One that is passed over is not met: its other code may say that it is nearer.
            let meets = site::holds(Kind::Recall, near);
            if meets && reference.is_some_and(|reference| !self.met.insert(reference)) || !near {
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
    asked: (&[f32], usize),
    reach: Reach,
) -> Result<Probed> {
    probe_further(snapshot, data, cells, asked, reach, |_| Ok(Further::No))
}

/// The same, and then farther, if it turns out to be wanted. What was computed is not computed again.
///
/// # Errors
/// As [`probe`], and those of `further`.
pub(super) fn probe_further<F: StorageFile, B: Deref<Target = [u8]>>(
    snapshot: &Arc<Snapshot<F::Lent>>,
    data: &DataFile<F>,
    cells: &CellIndex<B>,
    (vector, k): (&[f32], usize),
    reach: Reach,
    further: impl FnOnce(&TopK) -> Result<Further>,
) -> Result<Probed> {
    SCRATCH.with_borrow_mut(|scratch| {
        let Scratch { query, room, met, held } = scratch;
        query.set(vector, cells.frame(), data.geometry().metric);
        met.clear();
        held.clear();
        let mut probe = Probe {
            snapshot,
            data,
            cells,
            vector,
            top: TopK::new(k),
            met,
            computed: 0,
            scanned: 0,
            walked: 0,
            quiet: 0,
            gains: 0,
            cut: false,
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
        probe.search(query, room, &reach)?;
        let again = match further(&probe.top)? {
            _ if probe.given_up => false,
            Further::No => false,
            Further::Everything => {
                probe.given_up = true;
                false
            }
            Further::To(reach) => {
                probe.most = reach.most;
                probe.top.is_offered_again();
                probe.search(query, room, &reach)?;
                true
            }
        };
        let cost = probe.cost();
        let Probe { top, scanned, computed, walked, cut, given_up, .. } = probe;
        Ok(Probed { top, scanned, computed, cost, cells: walked, cut, given_up, again })
    })
}

/// Room that one search after another uses.
#[derive(Default)]
struct Scratch {
    query: Query,
    room: Room,
    met: Met,
    held: Vec<Found>,
}

/// Room for one way through the cells.
#[derive(Default)]
struct Room {
    asked: Asked,
    found: Vec<Found>,
    done: Vec<usize>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

impl<'a, F: StorageFile, B: Deref<Target = [u8]>> Probe<'a, F, B> {
    /// Goes so far, through cells and then through what is in none.
    fn search(&mut self, query: &Query, room: &mut Room, reach: &Reach) -> Result<()> {
        room.found.clear();
        room.done.clear();
        self.walk(query, room, reach)?;
        if !self.given_up {
            self.take(&mut room.found)?;
            self.finish()?;
        }
        if reach.fresh && !self.given_up {
            let deviations = reach.effort.deviations.max(reach.fresh_deviations);
            self.scan_fresh(query, &Effort { deviations, ..reach.effort }, &mut room.found)?;
        }
        Ok(())
    }

    /// Goes from cell to cell. Whether those that an earlier walk went through hold a new result says nothing of the others, so it is not
    /// counted.
    fn walk(&mut self, query: &Query, Room { asked, found, done }: &mut Room, reach: &Reach) -> Result<()> {
        let (cells, data, effort) = (self.cells, self.data, &reach.effort);
        let router = cells.router();
        let (mut groups, mut wanted) = (effort.groups.max(1) as usize, effort.cells.max(1) as usize);
        let (mut known, mut waiting) = (self.walked, 0);
        loop {
            router.ask(query, groups, wanted, asked);
            if !done.is_empty() {
                done.sort_unstable();
                asked.near.retain(|near| done.binary_search(&near.number()).is_err());
            }
            let mut front = Front::new((cells, data), &mut self.ahead, &mut asked.near)?;
            while let Some((next, after)) = front.next((cells, data), &mut self.ahead, query)? {
                self.ahead.plan(after, next.count);
                let bound = self.top.bound();
                let beyond = next.base - bound;
                let patience = effort.margin - effort.impatience * cells::quietness(self.quiet, self.gains, self.walked as u32);
                self.cut = self.scanned >= reach.codes;
                if self.cut || beyond > patience * next.unit {
                    return Ok(());
                }
                let (planes, step) = (&query.planes, query.plane_step);
                // Not infinite, for a factor may be nothing.
                let allow = |error: f32| (effort.deviations * error).min(f32::MAX);
                // What bytes miss of the distance to the centroid is missing from each estimate.
                let (blocks, base) = (next.codes, next.base - allow(next.error));
                let error = allow(query.code_error(next.square));
                let range = next.first..next.first + next.count;
                distance::scan(&Scan { planes, blocks, range, step, error, base, bound }, &mut self.ahead, found);
                self.settle()?;
                self.scanned += next.count;
                if self.is_spent() {
                    return Ok(());
                }
                waiting += next.count;
                self.walked += 1;
                // As long as nothing bounds what is found, it is better to have more to choose from.
                if bound < f32::INFINITY || waiting >= self.top.k().saturating_mul(8) {
                    self.take(found)?;
                    waiting = 0;
                }
                match (std::mem::take(&mut self.gained), known) {
                    (true, _) => (self.quiet, self.gains) = (0, self.gains + 1),
                    (false, 0) => self.quiet += 1,
                    (false, _) => {}
                }
                known = known.saturating_sub(1);
            }
            done.extend(asked.near.iter().map(|near| near.number()));
            if groups >= router.groups() && wanted >= router.numbers() {
                return Ok(());
            }
            // The first ones did not do: many more, then all.
            groups = groups.saturating_mul(4).min(router.groups());
            wanted = if groups == router.groups() { router.numbers() } else { wanted.saturating_mul(4) };
        }
    }

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
            let unit = query.bytes.unit(square, query.bytes.base_error(fresh.centroid.stored));
            if self.is_spent() || base > self.top.bound() + effort.shard_margin * unit {
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
