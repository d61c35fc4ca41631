//! Assembly of an engine from the files of an index, before recovery.

use std::{
    collections::{BTreeSet, VecDeque},
    sync::Arc,
};

use super::{
    cell_store,
    core::{Counters, Engine},
    directory::{self, Directory, DirectoryKind, identity, in_data},
    index_files::IndexFiles,
    load_payloads,
    roots::{self, Roots},
    state_blocks::StateBlocks,
    working::{self, Totals, Working},
};
use crate::{
    config::OpenOptions,
    env::Env,
    error::{Result, ShardexError},
    failpoint::{protects, reached},
    format::root::Root,
    index::{Snapshot, SnapshotSource},
    lease::PageRange,
    shard::{DataFile, Shard},
    space::{Reclaimer, Use},
    storage::{Purpose, Storage, StorageFile},
    tuning::WAL_SHARES,
    wal::{WalLayout, WalLimits, WalWriter},
};

const REFILL: Purpose = Purpose("open: allocate holes");

/// Origin of the files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Origin {
    /// Created by this call: the WAL epoch is theirs, and there is nothing to recover.
    Created,
    /// Present before this call.
    Existing,
}

impl<F: StorageFile> IndexFiles<F> {
    /// Assembles the engine. An existing index must be [recovered](Engine::recover) before any other operation.
    pub(super) fn engine<S: Storage<File = F>>(
        mut self,
        storage: S,
        options: OpenOptions,
        env: &Env,
        origin: Origin,
    ) -> Result<Engine<S>> {
        let read_only = if origin == Origin::Existing { self.fill_holes()? } else { None };
        let directory = Directory::load(&self.newest, DirectoryKind::Shards, &self.data)?;
        let bucket_directory = load_payloads::bucket_directory(&self.newest, &self.data)?;
        let mut state_blocks = StateBlocks::default();
        let trees = DirectorySet { directory: &directory, buckets: &bucket_directory };
        let work = self.working(&trees, &mut state_blocks, options.shardex_segment_size)?;
        let mut wal = self.wal_writer(&options, origin)?;
        if origin == Origin::Created {
            wal.none_reserved();
        }
        let Self { lock, root_file, wal_file, data, newest, newest_slot, older, recovery, .. } = self;
        let durable = snapshot_of(&work, &newest, &data);
        Ok(Engine {
            storage,
            lock,
            clock: Arc::clone(&env.clock),
            options,
            index_id: newest.index_id,
            data: Arc::new(data),
            wal_file,
            wal,
            epoch_open: origin == Origin::Created,
            roots: Roots::new(root_file, newest, newest_slot, older),
            upgrades: false,
            unfit: BTreeSet::new(),
            stays_at_version: None,
            directory,
            bucket_directory,
            state_blocks,
            cursors: VecDeque::new(),
            work,
            flush: None,
            published: Arc::clone(&durable),
            durable,
            poisoned: None,
            read_only,
            counters: Counters::default(),
            recovery,
            executor: Arc::clone(&env.executor),
            cell_policy: env.cells,
            cell_build_at: 0,
            cell_build_refused: 0,
        })
    }

    /// Allocates the holes of the root file, and extends one that is shorter than its slots. A store of a root must not
    /// fail for lack of space. Returns the `OutOfSpace` error if the disk has no room.
    ///
    /// Holes of the data file and the WAL are allocated before the first store into them, because free space that was
    /// given back is to stay so.
    fn fill_holes(&self) -> Result<Option<ShardexError>> {
        let file = self.root_file.raw();
        let slots = (roots::SLOTS * self.newest.geometry.page_size) as u64;
        match file.len().and_then(|len| file.allocate(0, len.max(slots), REFILL)) {
            Ok(()) => Ok(None),
            Err(error) if error.is_out_of_space() => Ok(Some(error)),
            Err(error) => Err(error),
        }
    }

    /// Returns the working state of the newest root, with its cells, and holds the allocations that only the older root
    /// names. An older root whose tree is damaged is dropped.
    fn working(&mut self, trees: &DirectorySet<'_>, named: &mut StateBlocks, step: usize) -> Result<Working<F>> {
        let Self { data, newest, older, recovery, .. } = self;
        let mut work = load(newest, trees, data, named, step)?;
        match cell_store::load(newest.cells, data, &mut work, newest.index_id) {
            Ok(cells) => work.cells = cells,
            // Cells are derived from the postings, so nothing is lost. The next root names no cells.
            Err(ShardexError::Corruption { .. } | ShardexError::Io { .. }) => {
                recovery.cells_lost = true;
                work.cells_changed = true;
                reached!(CellsLost);
            }
            Err(error) => return Err(error),
        }
        if let Some(root) = &*older
            && protects!(Ordering)
        {
            match hold_older(&mut work, root, trees, named, data) {
                Ok(with_cells) => recovery.cells_lost |= !with_cells,
                // The newest root doesn't depend on the older one. An older root with a damaged tree is treated like an
                // unreadable one.
                Err(ShardexError::Corruption { .. }) => {
                    recovery.root_fallback = true;
                    reached!(OlderTreeDamaged);
                    *older = None;
                }
                Err(error) => return Err(error),
            }
        }
        Ok(work)
    }

    /// Returns a WAL writer whose first record gets the LSN after the newest root's checkpoint.
    fn wal_writer(&self, options: &OpenOptions, origin: Origin) -> Result<WalWriter<F>> {
        let newest = &self.newest;
        // A new epoch ensures that no bytes behind a torn tail ever continue the chain of records.
        let next = protects!(Ordering, origin == Origin::Existing);
        WalWriter::start_epoch(
            &self.wal_file,
            WalLayout::new(&newest.geometry),
            newest.index_id,
            if next { self.epoch + 1 } else { newest.epoch },
            newest.checkpoint,
            newest.wal_segments as usize,
            wal_limits(options),
        )
    }
}

/// Returns the snapshot of the state below a root.
fn snapshot_of<F: StorageFile>(work: &Working<F>, root: &Root, data: &DataFile<F>) -> Arc<Snapshot<F::Lent>> {
    let empty = Snapshot::empty(root.checkpoint, data.geometry());
    let numbers = 0..work.shards.len() as u32;
    let state = SnapshotSource {
        shards: &work.shards,
        cells: working::searched(&work.cells),
        lsn: root.checkpoint,
        live: root.live,
        payloads: &work.payloads,
        encodes: false,
    };
    Arc::new(empty.with_changes(data.geometry(), numbers, state))
}

/// Returns the largest size of the WAL file, and the size up to which it grows ahead of need, both in bytes. If the
/// size of the WAL triggers flushes, the second covers the WAL of both retained roots and of the flush under way.
/// Otherwise both are equal.
pub(super) fn wal_limits(options: &OpenOptions) -> WalLimits {
    let target_bytes = match options.flush_wal_bytes {
        0 => options.wal_max_bytes,
        bytes => bytes.saturating_mul(WAL_SHARES),
    };
    WalLimits { max_bytes: options.wal_max_bytes, target_bytes }
}

/// Loads the working state of a root. Reads shard states only, neither vectors nor postings.
fn load<F: StorageFile>(
    root: &Root,
    trees: &DirectorySet<'_>,
    data: &DataFile<F>,
    named: &mut StateBlocks,
    step: usize,
) -> Result<Working<F>> {
    let directory = trees.directory;
    let geometry = data.geometry();
    // The root gives the length, not the file: pages beyond it may be in the page cache alone (R10). Growing into those
    // pages again makes the next sync cover the length.
    let chunks = (root.data_pages.saturating_sub(1) / u64::from(geometry.chunk_pages())) as usize;
    let space = Reclaimer::new(geometry, chunks, root.generation, data.lock().clone());
    let mut work = Working::new(geometry, space, step);
    let meta: Vec<_> = directory.entries().map(|entry| (directory::run_of(entry, geometry), Use::Meta)).collect();
    // The directory names these allocations from here on, so no handles are kept.
    work.space.adopt(&meta).map_err(|(run, why)| in_data(data, run.page, why))?;
    work.finder.reserve(directory.len());
    let (mut live, mut removed, mut shards) = (0, 0, 0);
    for number in 0..directory.len() as u32 {
        let entry = directory.state(number as usize);
        if entry.is_none() {
            work.put(number, None);
            continue;
        }
        let state = directory::read_state(&entry, number, root, data)?;
        live += u64::from(state.live);
        removed += u64::from(state.len - state.live);
        shards += 1;
        let pages = geometry.extent_pages();
        let runs: Vec<_> =
            state.extents.iter().map(|extent| (PageRange { page: extent.page, pages }, Use::Extent)).collect();
        let allocations = work.space.adopt(&runs).map_err(|(run, why)| in_data(data, run.page, why))?;
        let tags = load_payloads::load_tags(&state, data, &mut work, named)?;
        let shard = Shard::load(state, tags, data, &allocations)?;
        work.index(number, Some(&shard));
        work.put(number, Some(Arc::new(shard)));
    }
    let counts = [
        ("live postings", root.live, live),
        ("removed postings", root.removed, removed),
        ("shards", root.shards.into(), shards),
    ];
    if let Some((of, expected, found)) = counts.into_iter().find(|(_, expected, found)| expected != found) {
        let what = format!("root {} counts {expected} {of}, its directory {found}", root.generation);
        return Err(in_data(data, root.directory.page, what));
    }
    load_payloads::load_buckets(root, trees.buckets, data, &mut work, named)?;
    let &Root { live, removed, draws, splits, merges, .. } = root;
    work.totals = Totals { live, removed, draws, splits, merges };
    work.dirty.clear();
    work.dirty_buckets.clear();
    Ok(work)
}

/// DirectorySet of the newest root.
pub(super) struct DirectorySet<'a> {
    directory: &'a Directory,
    buckets: &'a Directory,
}

/// Holds the allocations that only the older root names. They become free when that root is no longer retained. Returns
/// false if the older root names cells that can't be read.
fn hold_older<F: StorageFile>(
    work: &mut Working<F>,
    older: &Root,
    trees: &DirectorySet<'_>,
    named: &StateBlocks,
    data: &DataFile<F>,
) -> Result<bool> {
    let geometry = data.geometry();
    let directory = Directory::load(older, DirectoryKind::Shards, data)?;
    let buckets = load_payloads::bucket_directory(older, data)?;
    let of_newest = trees.directory.entries().chain(trees.buckets.entries()).chain(named.iter());
    let known: BTreeSet<(u64, u32, u32)> = of_newest.map(identity).collect();
    let extents: BTreeSet<u64> = work
        .shards
        .iter()
        .flatten()
        .flat_map(|shard| shard.extents().iter().map(|extent| extent.allocation().run().page))
        .collect();
    let mut only: Vec<(PageRange, Use)> = directory
        .entries()
        .chain(buckets.entries())
        .filter(|entry| !known.contains(&identity(entry)))
        .map(|entry| (directory::run_of(entry, geometry), Use::Meta))
        .collect();
    for number in 0..directory.len() as u32 {
        let entry = directory.state(number as usize);
        // A state that the newest root also names adds no allocation. If the newest root names other bytes at the same
        // page, the older root is stale, and its state fails the checksum.
        if entry.is_none() || known.contains(&identity(&entry)) {
            continue;
        }
        let state = directory::read_state(&entry, number, older, data)?;
        for extent in state.extents.iter().filter(|extent| !extents.contains(&extent.page)) {
            only.push((PageRange { page: extent.page, pages: geometry.extent_pages() }, Use::Extent));
        }
        for tags in state.tags.iter().filter(|tags| !tags.is_none() && !known.contains(&identity(tags))) {
            // A root is of use only if all that its recovery reads is whole.
            directory::read_tags(tags, data)?;
            only.push((directory::run_of(tags, geometry), Use::Meta));
        }
    }
    only.extend(load_payloads::only_in_older(older, &buckets, work, named, &known, data)?);
    let with_cells = cells_only_in_older(work, older, data, &mut only)?;
    only.sort_unstable();
    only.dedup();
    work.space.adopt_for(older.generation, &only).map_err(|(run, why)| in_data(data, run.page, why))?;
    Ok(with_cells)
}

/// Appends the page ranges of cells that only the older root names. Returns false if its cells can't be read.
fn cells_only_in_older<F: StorageFile>(
    work: &Working<F>,
    older: &Root,
    data: &DataFile<F>,
    only: &mut Vec<(PageRange, Use)>,
) -> Result<bool> {
    if !older.cells.is_none() && work.cells.as_ref().is_none_or(|&(_, head)| head != older.cells) {
        match cell_store::read_table(&older.cells, data) {
            Ok((_, blocks)) => {
                // Both tables may name the same groups. An allocation that the newest root names is not held for the
                // older root alone.
                let newest = work.cells.iter().flat_map(|(cells, _)| cells.allocations());
                let newest: BTreeSet<PageRange> = newest.map(|allocation| allocation.run()).collect();
                let only_older = |run: &PageRange| !protects!(Ordering, newest.contains(run));
                let runs = blocks.iter().map(|block| directory::run_of(block, data.geometry()));
                only.extend(runs.filter(only_older).map(|run| (run, Use::Meta)));
            }
            // Cells are derived, so the older root remains usable without them.
            Err(ShardexError::Corruption { .. } | ShardexError::Io { .. }) => {
                reached!(CellsLost);
                return Ok(false);
            }
            Err(error) => return Err(error),
        }
    }
    Ok(true)
}
