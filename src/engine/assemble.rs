//! Assemble: an engine of what the files of an index hold, before it recovers.

use std::{collections::BTreeSet, ptr, sync::Arc};

use super::{
    Counters, Engine,
    directory::{self, Directory},
    found::Found,
    regroup,
    roots::{self, Roots},
    working::{Totals, Working},
};
use crate::{
    config::OpenOptions,
    env::Env,
    error::{Result, ShardexError},
    format::{node::Entry, root::Root},
    index::Snapshot,
    lease::Run,
    limits::WAL_SHARES,
    shard::{DataFile, Shard},
    site::{self, Mark},
    space::{Reclaimer, Use},
    storage::{Purpose, Storage, StorageFile},
    wal::{WalLayout, WalWriter},
};

const REFILL: Purpose = Purpose("open: allocate holes");

/// Where the files come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Origin {
    /// This call made them: the epoch is theirs, and nothing is to be recovered.
    Made,
    /// They were there.
    Found,
}

impl<F: StorageFile> Found<F> {
    /// Puts the engine together. What was found is to be [recovered](Engine::recover) before anything else.
    pub(super) fn engine<S: Storage<File = F>>(
        mut self,
        storage: S,
        options: OpenOptions,
        env: &Env,
        origin: Origin,
    ) -> Result<Engine<S>> {
        let read_only = match origin {
            Origin::Made => None,
            Origin::Found => self.fill_holes()?,
        };
        let directory = Directory::load(&self.newest, &self.data)?;
        let work = self.working(&directory, options.shardex_segment_size)?;
        let wal = self.wal_writer(&options, origin)?;
        let Self { lock, root_file, wal_file, data, newest, newest_slot, older, recovery, .. } = self;
        let empty = Snapshot::empty(newest.checkpoint);
        let numbers = 0..work.shards.len() as u32;
        let cells = regroup::searched(&work.cells);
        let state = (newest.checkpoint, newest.live);
        let durable = Arc::new(empty.with_changes(&work.shards, numbers, cells, state, (false, data.geometry())));
        Ok(Engine {
            storage,
            lock,
            clock: Arc::clone(&env.clock),
            options,
            index_id: newest.index_id,
            data: Arc::new(data),
            wal_file,
            wal,
            epoch_open: origin == Origin::Made,
            roots: Roots::new(root_file, newest, newest_slot, older),
            directory,
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
            regroup_at: 0,
            regroup_refused: 0,
        })
    }

    /// Allocates what has no space in the files: a copied index may have holes, and a store into one must not fail later for want of
    /// space. And a root file that was cut behind its roots gets its pages back. Returns why there is no room, if there is none.
    fn fill_holes(&self) -> Result<Option<ShardexError>> {
        let mut no_room = None;
        for file in [self.data.raw(), self.wal_file.raw(), self.root_file.raw()] {
            let of_roots = roots::SLOTS * self.newest.geometry.page_size;
            let least = if ptr::eq(file, self.root_file.raw()) { of_roots } else { 0 };
            let allocated = file.len().and_then(|len| file.allocate(len.max(least as u64), REFILL));
            if let Err(error) = allocated {
                if !error.is_out_of_space() {
                    return Err(error);
                }
                no_room = Some(error);
            }
        }
        Ok(no_room)
    }

    /// The working state below the newest root, with its cells, and with what the older one holds. An older root that cannot be read is
    /// none from here on.
    fn working(&mut self, directory: &Directory, step: usize) -> Result<Working<F>> {
        let Self { data, newest, older, recovery, .. } = self;
        let mut work = load(newest, directory, data, step)?;
        match regroup::load(newest.cells, data, &mut work, newest.index_id) {
            Ok(cells) => work.cells = cells,
            // Derived, so nothing is lost with them; the next root names none.
            Err(ShardexError::Corruption { .. } | ShardexError::Io { .. }) => {
                recovery.cells_lost = true;
                work.cells_changed = true;
                site::reach(Mark::CellsLost);
            }
            Err(error) => return Err(error),
        }
        if let Some(root) = &*older
            && site::applies(site::Kind::Ordering, true)
        {
            match hold_older(&mut work, root, directory, data) {
                Ok(with_cells) => recovery.cells_lost |= !with_cells,
                // The newest root stands on its own: the older one counts as one that cannot be read.
                Err(ShardexError::Corruption { .. }) => {
                    recovery.root_fallback = true;
                    site::reach(Mark::OlderTreeDamaged);
                    *older = None;
                }
                Err(error) => return Err(error),
            }
        }
        Ok(work)
    }

    /// A writer of the log that begins where the newest root ends.
    fn wal_writer(&self, options: &OpenOptions, origin: Origin) -> Result<WalWriter<F>> {
        let newest = &self.newest;
        // Nothing behind a torn tail may ever continue a chain.
        let next = site::applies(site::Kind::Ordering, origin == Origin::Found);
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

/// Most bytes of the WAL file, and up to how many it grows by more than it needs: what two retained roots and the flush
/// under way may need, if the size of the WAL makes flushes begin.
pub(super) fn wal_limits(options: &OpenOptions) -> (u64, u64) {
    let target = match options.flush_wal_bytes {
        0 => options.wal_max_bytes,
        bytes => bytes.saturating_mul(WAL_SHARES),
    };
    (options.wal_max_bytes, target)
}

fn in_data<F: StorageFile>(data: &DataFile<F>, page: u64, what: String) -> ShardexError {
    let offset = page.saturating_mul(data.geometry().page_size as u64);
    ShardexError::Corruption { file: data.path(), offset, what }
}

/// The working state below a root. Reads states, no vector and no posting.
fn load<F: StorageFile>(root: &Root, directory: &Directory, data: &DataFile<F>, step: usize) -> Result<Working<F>> {
    let geometry = data.geometry();
    // As long as the root says, not as the file is: what lies beyond may be in the page cache alone (R10). It is grown into
    // again, and then a sync covers the length.
    let chunks = (root.data_pages.saturating_sub(1) / u64::from(geometry.chunk_pages())) as usize;
    let space = Reclaimer::new(geometry, chunks, root.generation, data.lock().clone());
    let mut work = Working::new(geometry, space, step);
    let meta: Vec<_> = directory.entries().map(|entry| (directory::run_of(entry, geometry), Use::Meta)).collect();
    // Named by the directory from here on.
    drop(work.space.adopt(&meta).map_err(|(run, why)| in_data(data, run.page, why))?);
    work.finder.reserve(directory.len());
    let (mut live, mut removed, mut shards) = (0, 0, 0);
    for number in 0..directory.len() as u32 {
        let entry = directory.state(number as usize);
        if entry.is_none() {
            work.put(number, None);
            continue;
        }
        let state = directory::read_state(&entry, number, data)?;
        live += u64::from(state.live);
        removed += u64::from(state.len - state.live);
        shards += 1;
        let pages = geometry.extent_pages();
        let runs: Vec<_> = state.extents.iter().map(|extent| (Run { page: extent.page, pages }, Use::Extent)).collect();
        let places = work.space.adopt(&runs).map_err(|(run, why)| in_data(data, run.page, why))?;
        let shard = Shard::load(state, data, &places)?;
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
    let &Root { live, removed, draws, splits, merges, .. } = root;
    work.totals = Totals { live, removed, draws, splits, merges };
    work.dirty.clear();
    Ok(work)
}

/// What tells an entry from every other.
fn identity(entry: &Entry) -> (u64, u32, u32) {
    (entry.page, entry.len, entry.crc)
}

/// Holds the places that only the older root names: they are free when it is gone. Returns whether its cells, if it has
/// any, could be read.
fn hold_older<F: StorageFile>(
    work: &mut Working<F>,
    older: &Root,
    newest: &Directory,
    data: &DataFile<F>,
) -> Result<bool> {
    let geometry = data.geometry();
    let mut with_cells = true;
    let directory = Directory::load(older, data)?;
    let known: BTreeSet<(u64, u32, u32)> = newest.entries().map(identity).collect();
    let extents: BTreeSet<u64> = work
        .shards
        .iter()
        .flatten()
        .flat_map(|shard| shard.extents().iter().map(|extent| extent.place().run().page))
        .collect();
    let mut only: Vec<(Run, Use)> = directory
        .entries()
        .filter(|entry| !known.contains(&identity(entry)))
        .map(|entry| (directory::run_of(entry, geometry), Use::Meta))
        .collect();
    for number in 0..directory.len() as u32 {
        let entry = directory.state(number as usize);
        // A state that the newest root names too holds nothing new; other bytes in the same place are those of a root that
        // is stale, and damaged ones to it.
        if entry.is_none() || known.contains(&identity(&entry)) {
            continue;
        }
        let state = directory::read_state(&entry, number, data)?;
        for extent in state.extents.iter().filter(|extent| !extents.contains(&extent.page)) {
            only.push((Run { page: extent.page, pages: geometry.extent_pages() }, Use::Extent));
        }
    }
    if !older.cells.is_none() && work.cells.as_ref().is_none_or(|&(_, head)| head != older.cells) {
        match regroup::read_table(&older.cells, data) {
            Ok((_, runs)) => {
                // Both tables may name the same groups: a place that the newest root names is not only the older one's.
                let newest = work.cells.iter().flat_map(|(cells, _)| cells.places());
                let newest: BTreeSet<Run> = newest.map(|place| place.run()).collect();
                let only_older = |run: &Run| !site::applies(site::Kind::Ordering, newest.contains(run));
                only.extend(runs.into_iter().filter(only_older).map(|run| (run, Use::Meta)));
            }
            // Without these the older root is as good as ever.
            Err(ShardexError::Corruption { .. } | ShardexError::Io { .. }) => {
                site::reach(Mark::CellsLost);
                with_cells = false;
            }
            Err(error) => return Err(error),
        }
    }
    only.sort_unstable();
    only.dedup();
    work.space.adopt_for(older.generation, &only).map_err(|(run, why)| in_data(data, run.page, why))?;
    Ok(with_cells)
}
