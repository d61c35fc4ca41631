//! The writer's state: the shards as they are after the last accepted batch, and the places they lie in.
//!
//! When a place is free is the reclaimer's to say: [`space`](crate::space).

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use super::{figures::Figures, numbers::Numbers, regroup::Named};
use crate::{
    error::Result,
    format::geometry::Geometry,
    index::RoutingTable,
    lease::Place,
    limits,
    shard::{DataFile, Finder, Shard},
    site::{self, Mark},
    space::{Reclaimer, Use},
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
    pub space: Reclaimer,
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
}

impl<F: StorageFile> Working<F> {
    /// No shard, in a file of which nothing is used.
    #[must_use]
    pub fn new(geometry: &Geometry, space: Reclaimer, step: usize) -> Self {
        Self {
            shards: Vec::new(),
            routing: RoutingTable::new(geometry.dimension),
            finder: Finder::new(geometry, step),
            space,
            numbers: Numbers::default(),
            totals: Totals::default(),
            figures: Figures::default(),
            cells: None,
            cells_changed: false,
            dirty: BTreeSet::new(),
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

    /// Gives up an extent.
    pub fn retire_extent(&mut self, place: Arc<Place>) {
        self.space.retire(place, Use::Extent);
    }

    /// Puts other cells in the place of those there are.
    pub fn set_cells(&mut self, cells: Option<Named<F::Lent>>) {
        let before = std::mem::replace(&mut self.cells, cells);
        self.cells_changed = true;
        let now = self.cells.iter().flat_map(|(cells, _)| cells.places());
        let kept: BTreeSet<u64> = now.map(|place| place.run().page).collect();
        let places = before.into_iter().flat_map(|(cells, _)| cells.places().to_vec());
        let given_up =
            places.filter(|place| !site::applies(site::Kind::Ordering, kept.contains(&place.run().page)));
        given_up.for_each(|place| self.space.retire(place, Use::Meta));
    }

    /// A free extent, the file growing if it must.
    ///
    /// # Errors
    /// `OutOfSpace`, `Io`.
    pub fn take_extent(&mut self, data: &DataFile<F>) -> Result<Arc<Place>> {
        take(&mut self.space, data, Reclaimer::take_extent)
    }

    /// A free run of `pages` pages, the file growing if it must.
    ///
    /// # Errors
    /// `OutOfSpace`, `Io`.
    pub fn take_meta(&mut self, data: &DataFile<F>, pages: u32) -> Result<Arc<Place>> {
        take(&mut self.space, data, |space| space.take_meta(pages))
    }

    /// Free runs of these sizes, side by side where that can be; noted in `taken` one by one.
    ///
    /// # Errors
    /// `OutOfSpace`, `Io`; what is noted in `taken` by then is to be undone.
    pub fn take_meta_together(&mut self, data: &DataFile<F>, sizes: &[u32], taken: &mut Vec<Arc<Place>>) -> Result<()> {
        let pages = sizes.iter().sum();
        let map = self.space.map();
        let places = match pages <= map.largest_run() {
            _ if sizes.is_empty() => return Ok(()),
            true => {
                let must_fit = sizes.len() == 1 || !map.prefers_holes(pages);
                match self.space.take_hole(sizes) {
                    None if must_fit => Some(take(&mut self.space, data, |space| space.take_together(sizes))?),
                    hole => hole,
                }
            }
            false => None,
        };
        match places {
            Some(places) => taken.extend(places),
            None => {
                let (half, rest) = sizes.split_at(sizes.len() / 2);
                self.take_meta_together(data, half, taken)?;
                self.take_meta_together(data, rest, taken)?;
            }
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

fn take<F: StorageFile, T>(
    space: &mut Reclaimer,
    data: &DataFile<F>,
    take: impl Fn(&mut Reclaimer) -> Option<T>,
) -> Result<T> {
    loop {
        if let Some(taken) = take(space) {
            return Ok(taken);
        }
        let chunks = space.map().chunks();
        let chunk_bytes = u64::from(data.geometry().chunk_pages()) * data.geometry().page_size as u64;
        let step = (chunks / 8).clamp(1, (limits::MAX_GROWTH_BYTES / chunk_bytes).max(1) as usize);
        let mut grown = data.grow(space.map().pages_of(chunks + step)).map(|()| step);
        if step > 1 && grown.as_ref().is_err_and(crate::ShardexError::is_out_of_space) {
            // A nearly full disk may still have room for the one chunk that is needed.
            grown = data.grow(space.map().pages_of(chunks + 1)).map(|()| 1);
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
