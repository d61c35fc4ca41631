//! Reclaimer: the only component that decides when an allocation is free.
//!
//! It owns the free-space map, every retired allocation, and the two facts that the decision depends on: the newest
//! root whose flush has begun, and the newest durable root.
//!
//! # Invariants
//! 1. An allocation is free only if no retained root, no root whose store has begun, no reader and no shard of the
//!    working state uses it.
//! 2. The retained roots are the newest durable one and the one before it. So an allocation whose last root is G is
//!    free once root G + 2 is durable, because both root slots then hold newer roots. Example: root G names a shard
//!    state that root G + 1 replaces. While G + 1 is the newest durable root, the other slot still holds G. Once G + 2
//!    is durable, the slots hold G + 1 and G + 2.
//! 3. An allocation made after the flush of root G began has *birth* G. No root up to G points to it. If it is retired
//!    before the next flush begins, it waits only for readers.
//! 4. Readers keep an allocation in use by a handle, and only a holder of a handle can clone it. So if the reclaimer
//!    has the only handle, no new reader appears. Unwrapping the last handle proves that no reader is left.
//! 5. Existing allocations do not overlap. A new allocation is made of pages that were free in the map, or of used
//!    pages that no handle holds ([`retire_named`](Reclaimer::retire_named)). The map marks the pages as used as long
//!    as the allocation exists, and frees them only when no handle is left. The allocation of
//!    [`with_free`](Reclaimer::with_free) is not marked, but the map is borrowed while it exists, as is that of
//!    [`with_named`](Reclaimer::with_named). (`lease` relies on this.)
//! 6. While the pin of a root exists, an allocation is not free if its last root is this one or a later one, unless it was made
//!    after the flush of the root began. When metadata was made is unknown ([`retire_named`](Reclaimer::retire_named)), so all of
//!    it is kept that was retired since.

use std::sync::{Arc, Weak};

use fixedbitset::FixedBitSet;

use super::SpaceMap;
use crate::{
    failpoint::{holds, protects, reached},
    format::geometry::IndexParams,
    id::Generation,
    lease::{Allocation, IndexLock, PageRange},
};

/// Counted handle of an allocation. The engine uses [`Arc`]. The interleaving test uses one whose steps a scheduler
/// controls.
pub trait Shared: Sized {
    /// Creates the first handle of an allocation.
    fn new(allocation: Allocation) -> Self;

    /// Returns the allocation.
    fn allocation(&self) -> &Allocation;

    /// Unwraps the allocation if this is the only handle.
    ///
    /// # Errors
    /// Returns the handle if other handles exist.
    fn into_allocation(self) -> Result<Allocation, Self>;

    /// Reports whether other handles exist at this moment. The value is used for statistics only.
    fn is_shared(&self) -> bool;
}

impl Shared for Arc<Allocation> {
    fn new(allocation: Allocation) -> Self {
        Self::new(allocation)
    }

    fn allocation(&self) -> &Allocation {
        self
    }

    fn into_allocation(self) -> Result<Allocation, Self> {
        Self::try_unwrap(self)
    }

    fn is_shared(&self) -> bool {
        Self::strong_count(self) > 1
    }
}

/// Use of an allocation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Use {
    /// Slots of a shard.
    Extent,
    /// Shard states, directory nodes or cells.
    Meta,
}

/// Pin of a root: what the root names is not reused while it exists, whatever becomes durable meanwhile.
#[derive(Clone, Debug)]
pub struct RootPin(#[expect(dead_code, reason = "its existence counts")] Arc<Generation>);

/// Retired allocation that is not free yet.
#[derive(Debug)]
struct Waiting<P> {
    /// Last root that may point to it; `None` if no root does.
    last_named: Option<Generation>,
    /// Newest root whose flush had begun when it was made, which does not name it; 0 if that is unknown.
    born: Generation,
    allocation: P,
    used_as: Use,
}

/// Owner of the free-space map and of all retired allocations. It decides when an allocation is free.
#[derive(Debug)]
pub struct Reclaimer<P = Arc<Allocation>> {
    map: SpaceMap,
    lock: IndexLock,
    /// Newest root whose flush has begun.
    begun: Generation,
    /// Newest durable root.
    durable: Generation,
    waiting: Vec<Waiting<P>>,
    /// Roots that are pinned, or were.
    pins: Vec<Weak<Generation>>,
    /// Pages freed since the newest root became durable that the root before the older retained one names: the last
    /// content of a slot. See [`keeps`](Self::keeps).
    recent: FixedBitSet,
}

impl<P: Shared> Reclaimer<P> {
    /// Creates the reclaimer of a data file with `chunks` empty chunks, whose newest durable root is `durable`.
    ///
    /// # Panics
    /// Panics if a reclaimer was already created under this lock.
    #[must_use]
    pub fn new(geometry: &IndexParams, chunks: usize, durable: Generation, lock: IndexLock) -> Self {
        lock.reclaim_once();
        Self {
            map: SpaceMap::new(geometry, chunks),
            lock,
            begun: durable,
            durable,
            waiting: Vec::new(),
            pins: Vec::new(),
            recent: FixedBitSet::new(),
        }
    }

    /// Returns the free-space map.
    #[must_use]
    pub fn map(&self) -> &SpaceMap {
        &self.map
    }

    /// Adds chunks at the end of the file.
    pub fn grow(&mut self, chunks: usize) {
        self.map.grow(chunks);
    }

    fn allocation(&self, run: PageRange) -> P {
        P::new(Allocation::new(run, self.begun, self.lock.clone()))
    }

    /// Allocates an extent as [`SpaceMap::take_extent`] does. Returns `None` if the file must grow first.
    pub fn take_extent(&mut self) -> Option<P> {
        self.map.take_extent().map(|run| self.allocation(run))
    }

    /// Allocates `pages` pages of metadata as [`SpaceMap::take_meta`] does. Returns `None` if the file must grow first.
    pub fn take_meta(&mut self, pages: u32) -> Option<P> {
        self.map.take_meta(pages).map(|run| self.allocation(run))
    }

    /// Allocates adjacent page ranges of these sizes for metadata, without using an empty chunk. Returns `None` if
    /// there is no hole of the total size.
    pub fn take_hole(&mut self, sizes: &[u32]) -> Option<Vec<P>> {
        let run = self.map.take_hole(sizes.iter().sum())?;
        Some(self.parts(run, sizes))
    }

    /// Allocates adjacent page ranges of these sizes for metadata, from an empty chunk if there is no hole. Returns
    /// `None` if the file must grow first.
    pub fn take_together(&mut self, sizes: &[u32]) -> Option<Vec<P>> {
        let run = self.map.take_meta(sizes.iter().sum())?;
        Some(self.parts(run, sizes))
    }

    /// Divides a page range into allocations of these sizes. The range has their total length.
    fn parts(&self, run: PageRange, sizes: &[u32]) -> Vec<P> {
        let mut page = run.page;
        let part = |&pages: &u32| {
            let part = PageRange { page, pages };
            page = part.end();
            self.allocation(part)
        };
        sizes.iter().map(part).collect()
    }

    /// Calls `act` with an allocation of free pages, or of pages behind those of the map, which exists during the call
    /// alone.
    ///
    /// # Panics
    /// Panics if a page of the range is in use, which is a mistake of the caller.
    pub fn with_free<T>(&mut self, run: PageRange, act: impl FnOnce(&Allocation) -> T) -> T {
        let is_behind = run.page >= self.map.pages_of(self.map.chunks());
        assert!(is_behind || self.map.is_free(run), "{run:?} is in use");
        act(&Allocation::new(run, self.begun, self.lock.clone()))
    }

    /// Calls `act` with an allocation of used pages that no handle holds, which exists during the call alone.
    ///
    /// # Panics
    /// Panics if the map does not mark the range as used, which is a mistake of the caller.
    pub fn with_named<T>(&mut self, run: PageRange, act: impl FnOnce(&Allocation) -> T) -> T {
        assert!(self.map.is_used(run), "{run:?} is not in use");
        act(&Allocation::new(run, self.begun, self.lock.clone()))
    }

    /// Creates the allocations that a root points to, all or none of them. Their birth is generation 0, before every
    /// root.
    ///
    /// # Errors
    /// Returns the first invalid page range and the reason: outside the file, not the start of an extent, across
    /// chunks, or in use twice.
    pub fn adopt(&mut self, runs: &[(PageRange, Use)]) -> Result<Vec<P>, (PageRange, String)> {
        for (i, &(run, used_as)) in runs.iter().enumerate() {
            let marked = match used_as {
                Use::Extent => self.map.mark_extent(run.page),
                Use::Meta => self.map.mark_meta(run),
            };
            if let Err(why) = marked {
                runs[..i].iter().for_each(|&(run, _)| self.map.free(run));
                return Err((run, why));
            }
        }
        let allocation = |&(run, _): &(PageRange, Use)| P::new(Allocation::new(run, Generation(0), self.lock.clone()));
        Ok(runs.iter().map(allocation).collect())
    }

    /// Creates the allocations that only an older root points to, all or none of them. They are retired at once, with
    /// `last_named` as their last root.
    ///
    /// # Errors
    /// Returns the errors of [`adopt`](Self::adopt).
    pub fn adopt_for(&mut self, last_named: Generation, runs: &[(PageRange, Use)]) -> Result<(), (PageRange, String)> {
        for (allocation, &(_, used_as)) in self.adopt(runs)?.into_iter().zip(runs) {
            self.waiting.push(Waiting { last_named: Some(last_named), born: Generation(0), allocation, used_as });
        }
        Ok(())
    }

    /// Records that the flush of a root begins. Only later roots point to allocations made from now on.
    pub fn begin(&mut self, root: Generation) {
        self.begun = root;
    }

    /// Records that a flush was aborted before its root was stored. The next flush has the same generation, and its
    /// root may point to allocations made from now on.
    pub fn give_up(&mut self) {
        self.begun = self.durable;
    }

    /// Retires an allocation that the working state used until now.
    pub fn retire(&mut self, allocation: P, used_as: Use) {
        let born = allocation.allocation().born();
        let last_named = protects!(Ordering, born < self.begun).then_some(self.begun);
        self.waiting.push(Waiting { last_named, born, allocation, used_as });
    }

    /// Retires a page range that no reader holds, given the last root that points to it.
    ///
    /// # Panics
    /// Panics if the map does not mark the range as used, which is a mistake of the caller.
    pub fn retire_named(&mut self, run: PageRange, used_as: Use, last_named: Generation) {
        assert!(self.map.is_used(run), "{run:?} is not in use");
        let allocation = self.allocation(run);
        self.waiting.push(Waiting { last_named: Some(last_named), born: Generation(0), allocation, used_as });
    }

    /// Frees an allocation made for an operation that failed. No other handle of it may exist.
    ///
    /// # Panics
    /// Panics if another handle exists, which is a mistake of the caller.
    pub fn undo(&mut self, allocation: P) {
        match allocation.into_allocation() {
            Ok(allocation) => self.map.free(allocation.run()),
            Err(held) => panic!("{:?} is held, and was to be forgotten", held.allocation().run()),
        }
    }

    /// Records that a root is durable and frees every retired allocation that is free now. Returns their number.
    pub fn made_durable(&mut self, root: Generation) -> usize {
        self.durable = root;
        self.recent.clear();
        self.collect()
    }

    /// Reports whether a free page must keep its space. It may be used again, but until then its bytes must stay: the
    /// root that the newest one replaced in its slot names them. A device that returns that root (R13) leaves two roots
    /// that follow one another, and an open that finds a closing mark relies on both.
    #[must_use]
    pub fn keeps(&self, page: u64) -> bool {
        self.recent.contains(page as usize)
    }

    /// Returns the number of free pages that must keep their space until the next root is durable.
    #[must_use]
    pub fn recent_pages(&self) -> u64 {
        self.recent.count_ones(..) as u64
    }

    /// Pins a root, which must be retained: what it names is not free before the pin and its clones are dropped.
    pub fn pin(&mut self, root: Generation) -> RootPin {
        self.pins.retain(|pin| pin.strong_count() > 0);
        let pin = Arc::new(root);
        self.pins.push(Arc::downgrade(&pin));
        RootPin(pin)
    }

    /// Reports whether a pinned root may name an allocation.
    fn is_pinned(&self, last_named: Option<Generation>, born: Generation) -> bool {
        let Some(last) = last_named else { return false };
        self.pins.iter().filter_map(Weak::upgrade).any(|root| protects!(Ordering, born < *root && *root <= last))
    }

    /// Frees every retired allocation that no retained or pinned root names and no reader holds any more. Returns their number.
    pub fn collect(&mut self) -> usize {
        let before = self.waiting.len();
        for Waiting { last_named, born, allocation, used_as } in std::mem::take(&mut self.waiting) {
            let is_named = last_named.is_some_and(|generation| !self.is_over(generation));
            if is_named || self.is_pinned(last_named, born) {
                self.waiting.push(Waiting { last_named, born, allocation, used_as });
                continue;
            }
            match allocation.into_allocation() {
                Ok(allocation) => {
                    let run = allocation.run();
                    self.map.free(run);
                    if last_named.is_some_and(|last| last.0.saturating_add(3) > self.durable.0) {
                        self.recent.grow(run.end() as usize);
                        self.recent.insert_range(run.page as usize..run.end() as usize);
                    }
                }
                Err(allocation) => self.waiting.push(Waiting { last_named, born, allocation, used_as }),
            }
        }
        let left = self.waiting.len();
        if left < before {
            reached!(PlaceFreed);
        }
        if left > 0 {
            reached!(PlaceHeld);
        }
        before - left
    }

    /// Reports whether no retained root points to an allocation whose last root is `last_named`.
    fn is_over(&self, last_named: Generation) -> bool {
        last_named < self.durable && holds!(Ordering, last_named.0.saturating_add(2) <= self.durable.0)
    }

    /// Returns the retired allocations that are not free yet.
    pub fn waiting(&self) -> impl Iterator<Item = (PageRange, Use)> {
        self.waiting.iter().map(|waiting| (waiting.allocation.allocation().run(), waiting.used_as))
    }

    /// Returns the number of pages that only an older root keeps in use, and no reader.
    #[must_use]
    pub fn pages_held_by_roots(&self) -> u64 {
        self.pages_waiting(|over, is_shared| !over && !is_shared)
    }

    /// Returns the number of pages that [`collect`](Self::collect) would free.
    #[must_use]
    pub fn pages_to_collect(&self) -> u64 {
        self.pages_waiting(|over, is_shared| over && !is_shared)
    }

    /// Returns the number of pages that only readers keep in use. Retired allocations without a reader are not counted,
    /// because the next flush frees them.
    #[must_use]
    pub fn pages_held_by_readers(&self) -> u64 {
        self.pages_waiting(|over, is_shared| over && is_shared)
    }

    /// Reports whether a reader holds a retired allocation, or the pin of a root.
    fn is_held(&self, waiting: &Waiting<P>) -> bool {
        waiting.allocation.is_shared() || self.is_pinned(waiting.last_named, waiting.born)
    }

    /// Returns the number of pages of the retired allocations that `counts` accepts, given whether no retained root
    /// names them, and whether others hold them.
    fn pages_waiting(&self, counts: impl Fn(bool, bool) -> bool) -> u64 {
        let over = |last_named: Generation| last_named.0.saturating_add(2) <= self.durable.0;
        let counted =
            self.waiting.iter().filter(|waiting| counts(waiting.last_named.is_none_or(over), self.is_held(waiting)));
        counted.map(|waiting| u64::from(waiting.allocation.allocation().run().pages)).sum()
    }
}
