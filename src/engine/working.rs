//! The working state of the writer: the shards after the last accepted batch, and the allocations that hold them.
//!
//! The reclaimer decides when an allocation is free: [`space`](crate::space).

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Deref,
    sync::Arc,
};

use super::{figures::Figures, shard_numbers::ShardNumbers};
use crate::{
    cells::CellIndex,
    error::Result,
    failpoint::{protects, reached},
    format::{geometry::IndexParams, node::BlockPointer},
    index::RoutingTable,
    lease::{Allocation, Lease},
    payload::{PayloadIndex, PayloadSpace},
    shard::{DataFile, Finder, Shard, SharedShard},
    space::{Reclaimer, Use},
    storage::StorageFile,
    tuning,
};

/// Cells and the block pointer to their head, for a root to name.
pub(super) type RootedCells<L> = (Arc<CellIndex<Lease<L>>>, BlockPointer);

/// Returns the cells that searches use, if they are finished.
pub(super) fn searched<L: Deref<Target = [u8]>>(named: &Option<RootedCells<L>>) -> Option<&Arc<CellIndex<Lease<L>>>> {
    named.as_ref().map(|(cells, _)| cells).filter(|cells| cells.is_searchable())
}

/// Totals of the working state, small enough to copy for an undo.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Live postings.
    pub live: u64,
    /// Removed postings whose slots are still taken.
    pub removed: u64,
    /// Random draws made since the index was created.
    pub draws: u64,
    /// Splits made since the index was created.
    pub splits: u64,
    /// Merges made since the index was created.
    pub merges: u32,
}

/// State of the index after the last accepted batch, owned by the writer.
pub struct Working<F: StorageFile> {
    /// Shards by number.
    pub shards: Vec<Option<SharedShard<F>>>,
    /// Routing table with the centroids of the shards.
    pub routing: RoutingTable,
    /// Filters of the documents and keys in the shards.
    pub finder: Finder,
    /// Free-space map and retired allocations.
    pub space: Reclaimer,
    /// Free shard numbers.
    pub numbers: ShardNumbers,
    /// Totals over all shards.
    pub totals: Totals,
    /// Cached figures of the single shards.
    pub figures: Figures,
    /// Cells and the block pointer to their head.
    pub cells: Option<RootedCells<F::Lent>>,
    /// Whether the next root names other cells than the last one.
    pub cells_changed: bool,
    /// Shards that changed since the last flush began.
    pub dirty: BTreeSet<u32>,
    /// Payloads and the cursor.
    pub payloads: PayloadIndex<F::Lent>,
    /// Blocks of payloads.
    pub payload_space: PayloadSpace,
    /// Buckets of payloads that changed since the last flush began.
    pub dirty_buckets: BTreeSet<u32>,
}

impl<F: StorageFile> Working<F> {
    /// Creates a state without shards, in a data file without used pages.
    #[must_use]
    pub fn new(geometry: &IndexParams, space: Reclaimer, step: usize) -> Self {
        Self {
            shards: Vec::new(),
            routing: RoutingTable::new(geometry.dimension),
            finder: Finder::new(geometry, step),
            space,
            numbers: ShardNumbers::default(),
            totals: Totals::default(),
            figures: Figures::default(),
            cells: None,
            cells_changed: false,
            dirty: BTreeSet::new(),
            payloads: PayloadIndex::new(geometry),
            payload_space: PayloadSpace::default(),
            dirty_buckets: BTreeSet::new(),
        }
    }

    /// Returns the number of shards in use.
    #[must_use]
    pub fn shard_count(&self) -> usize {
        self.figures.totalled::<F>(&self.shards).shards
    }

    /// Inserts, replaces or removes a shard, and marks its number as dirty.
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

    /// Sets the centroid in the routing table and the filters of a shard number to those of `shard`. `None` clears
    /// them.
    pub fn index(&mut self, number: u32, shard: Option<&Shard<F::Lent>>) {
        self.routing.set(number, shard.map(|shard| &*shard.centroid));
        self.finder.set(number as usize, shard);
    }

    /// Retires an extent.
    pub fn retire_extent(&mut self, allocation: Arc<Allocation>) {
        self.space.retire(allocation, Use::Extent);
    }

    /// Replaces the cells. Retires the allocations of the old cells that the new ones do not share.
    pub fn set_cells(&mut self, cells: Option<RootedCells<F::Lent>>) {
        let before = std::mem::replace(&mut self.cells, cells);
        self.cells_changed = true;
        let now = self.cells.iter().flat_map(|(cells, _)| cells.allocations());
        let kept: BTreeSet<u64> = now.map(|allocation| allocation.run().page).collect();
        let allocations = before.into_iter().flat_map(|(cells, _)| cells.allocations().to_vec());
        let dropped = allocations.filter(|allocation| !protects!(Ordering, kept.contains(&allocation.run().page)));
        dropped.for_each(|allocation| self.space.retire(allocation, Use::Meta));
    }

    /// Allocates an extent. Grows the file if no extent is free.
    ///
    /// # Errors
    /// Returns `OutOfSpace` or `Io`.
    pub fn take_extent(&mut self, data: &DataFile<F>) -> Result<Arc<Allocation>> {
        take(&mut self.space, data, Reclaimer::take_extent)
    }

    /// Allocates a range of `pages` pages for metadata. Grows the file if none is free.
    ///
    /// # Errors
    /// Returns `OutOfSpace` or `Io`.
    pub fn take_meta(&mut self, data: &DataFile<F>, pages: u32) -> Result<Arc<Allocation>> {
        take(&mut self.space, data, |space| space.take_meta(pages))
    }

    /// Allocates page ranges of the given sizes for metadata, side by side where possible, and appends each to `taken`.
    ///
    /// # Errors
    /// Returns `OutOfSpace` or `Io`. The caller must undo the allocations in `taken`.
    pub fn take_meta_together(
        &mut self,
        data: &DataFile<F>,
        sizes: &[u32],
        taken: &mut Vec<Arc<Allocation>>,
    ) -> Result<()> {
        let pages = sizes.iter().sum();
        let map = self.space.map();
        let allocations = match pages <= map.largest_run() {
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
        match allocations {
            Some(allocations) => taken.extend(allocations),
            None => {
                let (half, rest) = sizes.split_at(sizes.len() / 2);
                self.take_meta_together(data, half, taken)?;
                self.take_meta_together(data, rest, taken)?;
            }
        }
        Ok(())
    }

    /// Returns the number of bytes in memory: the heap bytes of the working state and the leased bytes of the cell
    /// groups.
    #[must_use]
    pub fn memory(&self) -> usize {
        let shards = self.figures.totalled::<F>(&self.shards).memory;
        let cells = self.cells.as_ref().map_or(0, |(cells, _)| cells.memory());
        let payloads = self.payloads.memory() + self.payload_space.memory();
        shards + self.shards.len() * 8 + self.routing.memory() + self.finder.memory() + cells + payloads
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
        let step = (chunks / 8).clamp(1, (tuning::MAX_GROWTH_BYTES / chunk_bytes).max(1) as usize);
        let pages = |more| space.map().pages_of(chunks + more);
        let mut grown = data.grow(pages(0), pages(step)).map(|()| step);
        if step > 1 && grown.as_ref().is_err_and(crate::ShardexError::is_out_of_space) {
            // A nearly full disk may still have room for the one chunk that is needed.
            grown = data.grow(pages(0), pages(1)).map(|()| 1);
            if grown.is_ok() {
                reached!(GrewByOne);
            }
        }
        let step = grown?;
        reached!(DataGrew);
        space.grow(step);
    }
}

/// Shards changed by a batch that is not yet accepted. `None` is a dissolved shard.
pub type TouchedShards<F> = BTreeMap<u32, Option<Shard<<F as StorageFile>::Lent>>>;
