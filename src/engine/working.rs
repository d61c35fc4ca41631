//! The writer's state: the shards as they are after the last accepted batch, and the places they lie in.
//!
//! Invariants:
//! 1. A place is free only when no retained root, no root whose store has begun, no snapshot and no working shard names it.
//!    Places that lost their shard wait in `limbo` until that is so.
//! 2. What root G names is set free when root G+2 is durable: then both slots hold newer roots.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use super::{figures::Figures, numbers::Numbers, regroup::Named};
use crate::{
    error::Result,
    format::geometry::Geometry,
    id::Generation,
    index::RoutingTable,
    limits,
    shard::{DataFile, Finder, Place, Shard},
    site::{self, Kind, Mark},
    space::{Run, SpaceMap},
    storage::StorageFile,
};

/// A shard as everybody shares it.
pub type SharedShard<F> = Arc<Shard<<F as StorageFile>::Lent>>;

/// Figures of the working state; small enough to copy for an undo.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Live postings.
    pub live: u64,
    /// Postings removed whose slots are taken.
    pub removed: u64,
    /// Random draws made.
    pub draws: u64,
    /// Splits made.
    pub splits: u64,
    /// Merges made.
    pub merges: u32,
}

/// See the [module](self).
pub struct Working<F: StorageFile> {
    /// Shards by number.
    pub shards: Vec<Option<SharedShard<F>>>,
    /// Their centroids.
    pub routing: RoutingTable,
    /// Their filters of documents and keys.
    pub finder: Finder,
    /// Used and free places.
    pub space: SpaceMap,
    /// Shard numbers in no use.
    pub numbers: Numbers,
    /// Figures.
    pub totals: Totals,
    /// Figures of the shards.
    pub figures: Figures,
    /// The cells, and where their head is.
    pub cells: Option<Named<F::Lent>>,
    /// Whether the next root names other cells than the last one.
    pub cells_changed: bool,
    /// Shards that changed since the last flush began.
    pub dirty: BTreeSet<u32>,
    /// Extents without a shard and cells that were replaced: the last root that may name each, the place, and whether it
    /// is an extent.
    limbo: Vec<(Option<Generation>, Arc<Place>, bool)>,
    /// The same for places that no snapshot holds: metadata, and extents that only the older root names at open.
    meta_limbo: Vec<(Generation, Run, bool)>,
}

impl<F: StorageFile> Working<F> {
    /// No shard, in a file of `chunks` chunks.
    #[must_use]
    pub fn new(geometry: &Geometry, chunks: usize, step: usize) -> Self {
        Self {
            shards: Vec::new(),
            routing: RoutingTable::new(geometry.dimension),
            finder: Finder::new(geometry, step),
            space: SpaceMap::new(geometry, chunks),
            numbers: Numbers::default(),
            totals: Totals::default(),
            figures: Figures::default(),
            cells: None,
            cells_changed: false,
            dirty: BTreeSet::new(),
            limbo: Vec::new(),
            meta_limbo: Vec::new(),
        }
    }

    /// Shards in use.
    #[must_use]
    pub fn shard_count(&self) -> usize {
        self.figures.totalled::<F>(&self.shards).shards
    }

    /// Puts a shard in, replaces it, or takes it out.
    pub fn put(&mut self, number: u32, shard: Option<SharedShard<F>>) {
        let at = number as usize;
        if self.shards.len() <= at {
            self.shards.resize(at + 1, None);
        }
        self.numbers.set(number, shard.is_some());
        self.figures.note(number);
        self.shards[at] = shard;
        self.dirty.insert(number);
    }

    /// Makes routing and filters of a shard what they are for `shard`.
    pub fn index(&mut self, number: u32, shard: Option<&Shard<F::Lent>>) {
        self.routing.set(number, shard.map(|shard| &*shard.centroid));
        self.finder.set(number as usize, shard);
    }

    /// Gives up an extent. `begun` is the newest root whose flush has begun.
    pub fn drop_extent(&mut self, place: Arc<Place>, begun: Generation) {
        self.drop_place(place, true, begun);
    }

    /// Puts other cells in the place of those there are.
    pub fn set_cells(&mut self, cells: Option<Named<F::Lent>>, begun: Generation) {
        let before = std::mem::replace(&mut self.cells, cells);
        self.cells_changed = true;
        let places = before.into_iter().flat_map(|(cells, _)| cells.places().to_vec());
        places.for_each(|place| self.drop_place(place, false, begun));
    }

    fn drop_place(&mut self, place: Arc<Place>, extent: bool, begun: Generation) {
        // Taken after that flush began: no root names it.
        let last_named = site::applies(Kind::Ordering, place.born < begun).then_some(begun);
        self.limbo.push((last_named, place, extent));
    }

    /// Gives up a place that root `last_named` was the last to name, and that no snapshot holds.
    pub fn drop_named(&mut self, run: Run, extent: bool, last_named: Generation) {
        self.meta_limbo.push((last_named, run, extent));
    }

    /// Sets free what may be free now that root `durable` is. Returns how many places.
    pub fn release(&mut self, durable: Generation) -> usize {
        let over =
            |last_named: Generation| last_named < durable && site::holds(Kind::Ordering, last_named.0 + 2 <= durable.0);
        let before = self.limbo.len() + self.meta_limbo.len();
        let space = &mut self.space;
        let mut waiting = Vec::new();
        for (last_named, place, extent) in std::mem::take(&mut self.limbo) {
            if last_named.is_some_and(|generation| !over(generation)) {
                waiting.push((last_named, place, extent));
                continue;
            }
            // No snapshot holds it and none ever will: only holders make new holders.
            match Arc::try_unwrap(place) {
                Ok(place) => space.free(place.run),
                Err(place) => waiting.push((last_named, place, extent)),
            }
        }
        self.limbo = waiting;
        self.meta_limbo.retain(|&(last_named, run, _)| {
            if over(last_named) {
                space.free(run);
            }
            !over(last_named)
        });
        let left = self.limbo.len() + self.meta_limbo.len();
        for mark in [(left < before).then_some(Mark::PlaceFreed), (left > 0).then_some(Mark::PlaceHeld)] {
            mark.into_iter().for_each(site::reach);
        }
        before - left
    }

    /// Places that wait, and whether each is an extent.
    pub fn held(&self) -> impl Iterator<Item = (Run, bool)> {
        let meta = self.meta_limbo.iter().map(|&(_, run, extent)| (run, extent));
        self.limbo.iter().map(|(_, place, extent)| (place.run, *extent)).chain(meta)
    }

    /// Pages that no root needs any more, now that root `durable` is, but a snapshot does.
    #[must_use]
    pub fn held_by_readers(&self, durable: Generation) -> u64 {
        let over = |last_named: Generation| last_named.0 + 2 <= durable.0;
        // What nobody holds any more waits for the next flush only.
        let held = self
            .limbo
            .iter()
            .filter(|(last_named, place, _)| last_named.is_none_or(over) && Arc::strong_count(place) > 1);
        held.map(|(_, place, _)| u64::from(place.run.pages)).sum()
    }

    /// A free extent, the file growing if it must.
    ///
    /// # Errors
    /// `OutOfSpace`, `Io`.
    pub fn take_extent(&mut self, data: &DataFile<F>) -> Result<Run> {
        take(&mut self.space, data, SpaceMap::take_extent)
    }

    /// A free run of `pages` pages, the file growing if it must.
    ///
    /// # Errors
    /// `OutOfSpace`, `Io`.
    pub fn take_meta(&mut self, data: &DataFile<F>, pages: u32) -> Result<Run> {
        take(&mut self.space, data, |space| space.take_meta(pages))
    }

    /// Free runs of these sizes, side by side where that can be; noted in `taken` one by one.
    ///
    /// # Errors
    /// `OutOfSpace`, `Io`; what is noted in `taken` by then is to be freed.
    pub fn take_meta_together(&mut self, data: &DataFile<F>, sizes: &[u32], taken: &mut Vec<Run>) -> Result<()> {
        let pages = sizes.iter().sum();
        let run = match pages <= self.space.largest_run() {
            _ if sizes.is_empty() => return Ok(()),
            true => match self.space.take_hole(pages) {
                None if sizes.len() == 1 || !self.space.prefers_holes(pages) => Some(self.take_meta(data, pages)?),
                hole => hole,
            },
            false => None,
        };
        let Some(run) = run else {
            let (half, rest) = sizes.split_at(sizes.len() / 2);
            self.take_meta_together(data, half, taken)?;
            return self.take_meta_together(data, rest, taken);
        };
        let mut page = run.page;
        for &pages in sizes {
            taken.push(Run { page, pages });
            page += u64::from(pages);
        }
        Ok(())
    }

    /// Heap bytes.
    #[must_use]
    pub fn memory(&self) -> usize {
        let shards = self.figures.totalled::<F>(&self.shards).memory;
        let cells = self.cells.as_ref().map_or(0, |(cells, _)| cells.memory());
        shards + self.shards.len() * 8 + self.routing.memory() + self.finder.memory() + cells
    }
}

fn take<F: StorageFile>(
    space: &mut SpaceMap,
    data: &DataFile<F>,
    take: impl Fn(&mut SpaceMap) -> Option<Run>,
) -> Result<Run> {
    loop {
        if let Some(run) = take(space) {
            return Ok(run);
        }
        let chunks = space.chunks();
        let chunk_bytes = u64::from(data.geometry().chunk_pages()) * data.geometry().page_size as u64;
        let step = (chunks / 8).clamp(1, (limits::MAX_GROWTH_BYTES / chunk_bytes).max(1) as usize);
        let mut grown = data.grow(space.pages_of(chunks + step)).map(|()| step);
        if step > 1 && grown.as_ref().is_err_and(crate::ShardexError::is_out_of_space) {
            // A nearly full disk may still have room for the one chunk that is needed.
            grown = data.grow(space.pages_of(chunks + 1)).map(|()| 1);
            if grown.is_ok() {
                site::reach(Mark::GrewByOne);
            }
        }
        let step = grown?;
        site::reach(Mark::DataGrew);
        space.grow(step);
    }
}

/// Shards changed by a batch that is not accepted yet.
pub type Touched<F> = BTreeMap<u32, Option<Shard<<F as StorageFile>::Lent>>>;
