//! The reclaimer: the one answer to the question when a place is free.
//!
//! It owns the free-space map, every place that waits to be free, and what the answer depends on: the newest root whose flush
//! has begun, and the newest durable one.
//!
//! # Invariants
//! 1. A place is free only when no retained root, no root whose store has begun, no reader and no working shard names it.
//! 2. The roots retained are the newest durable one and the one before it. So what root G was the last to name is free once
//!    root G + 2 is durable: then both slots hold newer roots.
//! 3. A place taken after the flush of root G began (its *birth* is G) is named by no root up to G. Given up before the next
//!    flush begins, it waits for readers only.
//! 4. Readers hold a place by a handle. A place of which the reclaimer holds the only handle gets no new holder, for only
//!    holders make handles. So to take the last handle apart is to know that no reader is left.
//! 5. Places that exist at the same time do not overlap: each is made of pages that the map did not mark before, and the map
//!    frees them when the place is gone. (`lease` relies on this.)

use std::sync::Arc;

use super::SpaceMap;
use crate::{
    format::geometry::Geometry,
    id::Generation,
    lease::{IndexLock, Place, Run},
    site::{self, Kind, Mark},
};

/// A counted handle on a place. The engine's is [`Arc`]; the interleaving test brings one whose steps a scheduler sees.
pub trait Shared: Sized {
    /// The first handle.
    fn new(place: Place) -> Self;

    /// The place.
    fn place(&self) -> &Place;

    /// Takes the place out if this is the only handle.
    ///
    /// # Errors
    /// The handle, if there are others.
    fn into_place(self) -> Result<Place, Self>;

    /// Whether there are other handles now. A figure only: nothing is decided by it.
    fn is_shared(&self) -> bool;
}

impl Shared for Arc<Place> {
    fn new(place: Place) -> Self {
        Self::new(place)
    }

    fn place(&self) -> &Place {
        self
    }

    fn into_place(self) -> Result<Place, Self> {
        Self::try_unwrap(self)
    }

    fn is_shared(&self) -> bool {
        Self::strong_count(self) > 1
    }
}

/// What a place is used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Use {
    /// Slots of a shard.
    Extent,
    /// Shard states, directory nodes, cells.
    Meta,
}

/// A place that waits to be free.
#[derive(Debug)]
struct Waiting<P> {
    /// The last root that may name it; `None` if no root does.
    last_named: Option<Generation>,
    place: P,
    used_as: Use,
}

/// Says when a place is free: owner of the free-space map and of all that waits to be free.
#[derive(Debug)]
pub struct Reclaimer<P = Arc<Place>> {
    map: SpaceMap,
    lock: IndexLock,
    /// The newest root whose flush has begun.
    begun: Generation,
    /// The newest durable root.
    durable: Generation,
    waiting: Vec<Waiting<P>>,
}

impl<P: Shared> Reclaimer<P> {
    /// A data file of `chunks` chunks that hold nothing, whose newest durable root is `durable`.
    #[must_use]
    pub fn new(geometry: &Geometry, chunks: usize, durable: Generation, lock: IndexLock) -> Self {
        lock.reclaim_once();
        Self { map: SpaceMap::new(geometry, chunks), lock, begun: durable, durable, waiting: Vec::new() }
    }

    /// The free-space map.
    #[must_use]
    pub fn map(&self) -> &SpaceMap {
        &self.map
    }

    /// Adds chunks at the end of the file.
    pub fn grow(&mut self, chunks: usize) {
        self.map.grow(chunks);
    }

    fn place(&self, run: Run) -> P {
        P::new(Place::new(run, self.begun, self.lock.clone()))
    }

    /// Takes the lowest free extent; `None` when the file must grow first.
    pub fn take_extent(&mut self) -> Option<P> {
        self.map.take_extent().map(|run| self.place(run))
    }

    /// Takes the lowest free run of pages for metadata; `None` when the file must grow first.
    pub fn take_meta(&mut self, pages: u32) -> Option<P> {
        self.map.take_meta(pages).map(|run| self.place(run))
    }

    /// Takes free pages for metadata that lie side by side, as places of these sizes, without beginning a new chunk.
    pub fn take_hole(&mut self, sizes: &[u32]) -> Option<Vec<P>> {
        let run = self.map.take_hole(sizes.iter().sum())?;
        Some(self.parts(run, sizes))
    }

    /// The same, from a new chunk if there is no hole.
    pub fn take_together(&mut self, sizes: &[u32]) -> Option<Vec<P>> {
        let run = self.map.take_meta(sizes.iter().sum())?;
        Some(self.parts(run, sizes))
    }

    /// Places of these sizes, of a run that is as long as all of them.
    fn parts(&self, run: Run, sizes: &[u32]) -> Vec<P> {
        let mut page = run.page;
        let part = |&pages: &u32| {
            let part = Run { page, pages };
            page = part.end();
            self.place(part)
        };
        sizes.iter().map(part).collect()
    }

    /// Takes the places that a root names, all or none; their birth is before every root.
    ///
    /// # Errors
    /// The first that cannot be, and why: outside the file, no start of an extent, across chunks, named twice.
    pub fn adopt(&mut self, runs: &[(Run, Use)]) -> Result<Vec<P>, (Run, String)> {
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
        let place = |&(run, _): &(Run, Use)| P::new(Place::new(run, Generation(0), self.lock.clone()));
        Ok(runs.iter().map(place).collect())
    }

    /// Takes the places that only an older root names, all or none: they wait to be free.
    ///
    /// # Errors
    /// As [`adopt`](Self::adopt).
    pub fn adopt_for(&mut self, last_named: Generation, runs: &[(Run, Use)]) -> Result<(), (Run, String)> {
        for (place, &(_, used_as)) in self.adopt(runs)?.into_iter().zip(runs) {
            self.waiting.push(Waiting { last_named: Some(last_named), place, used_as });
        }
        Ok(())
    }

    /// The flush of a root begins: what is taken from now on is named by later roots only.
    pub fn begin(&mut self, root: Generation) {
        self.begun = root;
    }

    /// The flush is given up before its root was stored. The next one has the same generation, and its root names what is
    /// taken from now on.
    pub fn give_up(&mut self) {
        self.begun = self.durable;
    }

    /// Gives up a place that the working state named until now.
    pub fn retire(&mut self, place: P, used_as: Use) {
        let last_named = site::applies(Kind::Ordering, place.place().born() < self.begun).then_some(self.begun);
        self.waiting.push(Waiting { last_named, place, used_as });
    }

    /// Gives up a place of which only the page is known, with the last root that named it: no reader holds it.
    ///
    /// # Panics
    /// If the map does not mark it as used: a mistake of the caller.
    pub fn retire_named(&mut self, run: Run, used_as: Use, last_named: Generation) {
        assert!(self.map.is_used(run), "{run:?} is not in use");
        let place = self.place(run);
        self.waiting.push(Waiting { last_named: Some(last_named), place, used_as });
    }

    /// Frees a place that was taken for something that has failed since: nobody else has learnt of it.
    ///
    /// # Panics
    /// If somebody holds it: a mistake of the caller.
    pub fn undo(&mut self, place: P) {
        match place.into_place() {
            Ok(place) => self.map.free(place.run()),
            Err(held) => panic!("{:?} is held, and was to be forgotten", held.place().run()),
        }
    }

    /// A root is durable: frees what may be free now, and returns how many places.
    pub fn made_durable(&mut self, root: Generation) -> usize {
        self.durable = root;
        let before = self.waiting.len();
        for Waiting { last_named, place, used_as } in std::mem::take(&mut self.waiting) {
            if last_named.is_some_and(|generation| !self.is_over(generation)) {
                self.waiting.push(Waiting { last_named, place, used_as });
                continue;
            }
            match place.into_place() {
                Ok(place) => self.map.free(place.run()),
                Err(place) => self.waiting.push(Waiting { last_named, place, used_as }),
            }
        }
        let left = self.waiting.len();
        for mark in [(left < before).then_some(Mark::PlaceFreed), (left > 0).then_some(Mark::PlaceHeld)] {
            mark.into_iter().for_each(site::reach);
        }
        before - left
    }

    /// Whether no retained root names what root `last_named` was the last to name.
    fn is_over(&self, last_named: Generation) -> bool {
        last_named < self.durable && site::holds(Kind::Ordering, last_named.0.saturating_add(2) <= self.durable.0)
    }

    /// The places that wait.
    pub fn waiting(&self) -> impl Iterator<Item = (Run, Use)> {
        self.waiting.iter().map(|waiting| (waiting.place.place().run(), waiting.used_as))
    }

    /// Pages that no root needs any more but a reader does. What nobody holds waits for the next flush only, and is not
    /// counted.
    #[must_use]
    pub fn pages_held_by_readers(&self) -> u64 {
        let over = |last_named: Generation| last_named.0.saturating_add(2) <= self.durable.0;
        let held =
            self.waiting.iter().filter(|waiting| waiting.last_named.is_none_or(over) && waiting.place.is_shared());
        held.map(|waiting| u64::from(waiting.place.place().run().pages)).sum()
    }
}
