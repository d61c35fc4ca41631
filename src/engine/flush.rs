//! The flush: a stepped protocol that makes everything accepted before it durable in the shards, and lets the WAL go.
//!
//! 0. Fix X, the last accepted write, and the shards as they are now; store the WAL up to X.
//! 1. Store changed states and the directory into free places; check; **B2**: sync the data file. With it everything
//!    the new root names is durable before the root can be.
//! 2. Store the root into the slot that does not hold the last durable root; **B3**: sync it. From this store on the
//!    flush is finished, or gone on with from the step that failed, or the engine poisons; it is never given up.
//! 3. **B1**: sync the WAL up to X, unless a commit has done so meanwhile. With it the older root and the WAL give the same
//!    state, should the new root rot. Only the answer to the flush and step 4 wait for it, so its place among the
//!    barriers is free; last, the commits that went on meanwhile have mostly paid for it.
//! 4. Free what only roots before the last two named; recycle WAL segments; check the pointers.
//!
//! Whoever drives it runs the syncs between the steps, so that it may wait for them elsewhere. A failure before step 2
//! leaves everything as it was: the old root, the WAL, the places. A sync that fails poisons (promise P5).

use std::{collections::BTreeMap, mem, sync::Arc, time::Duration};

use super::{
    barriers::{B1, B2, B3},
    Engine,
    check::{self, Component, quick_check},
    directory::{self, Changes},
    stats::FlushStats,
    working::SharedShard,
};
use crate::{
    config::CheckLevel,
    error::{Result, ShardexError},
    format::{crc32c, node::Entry, root::Root},
    id::Lsn,
    index::Snapshot,
    lease::{Place, SyncJob},
    site::{self, Kind, Mark},
    space::Use,
    storage::Storage,
};

/// What is to be done next.
#[derive(Debug)]
pub enum FlushStep<F> {
    /// Run this sync, and tell [`Engine::flush_synced`] what came of it.
    Sync(SyncJob<F>),
    /// The same, of the log: of one file one sync is under way at a time, so whoever commits runs it, and nobody commits meanwhile.
    SyncLog(SyncJob<F>),
    /// The flush is complete.
    Done(Box<FlushStats>),
}

impl<F> FlushStep<F> {
    /// The sync that is to be run, of whichever file.
    ///
    /// # Errors
    /// What the flush came to, if it is complete.
    pub fn into_sync(self) -> std::result::Result<SyncJob<F>, Box<FlushStats>> {
        match self {
            Self::Sync(job) | Self::SyncLog(job) => Ok(job),
            Self::Done(stats) => Err(stats),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Data,
    Root,
    Wal,
}

/// A flush under way.
pub struct FlushRun<S: Storage> {
    stage: Stage,
    /// A sync was handed out, and nobody has said yet what came of it.
    waits: bool,
    stats: FlushStats,
    began: Duration,
    stage_began: Duration,
    /// The root to be, complete but for the directory.
    root: Root,
    /// What the sync of the WAL that is waited for makes durable, and how many operations since the open that are.
    wal_up_to: (Lsn, u64),
    /// Shards that changed, as they were at X.
    dirty: Vec<(u32, Option<SharedShard<S::File>>)>,
    /// The state at X.
    snapshot: Arc<Snapshot<<S::File as crate::storage::StorageFile>::Lent>>,
    /// Whether its root names other cells than the one before.
    cells_changed: bool,
    changes: Changes,
    taken: Vec<Arc<Place>>,
    /// Operations accepted up to X since the open.
    operations: u64,
}

impl<S: Storage> FlushRun<S> {
    /// Whether it waits for a sync of the WAL.
    pub(super) fn syncs_wal(&self) -> bool {
        self.waits && self.stage == Stage::Wal
    }

    /// The places of its states and nodes.
    pub(super) fn taken(&self) -> &[Arc<Place>] {
        &self.taken
    }
}

impl<S: Storage> Engine<S> {
    /// Flushes: on return everything accepted before is durable in the shards.
    ///
    /// Nothing to flush is no work: no barrier is issued.
    ///
    /// # Errors
    /// `OutOfSpace` and `Io` from a store: nothing has changed, call again. From a sync: the engine is poisoned.
    /// `Inconsistent`: the check found a contradiction, the old root and the WAL are kept.
    pub fn flush(&mut self) -> Result<FlushStats> {
        let stats = self.flush_once(false)?;
        // A flush whose root could not be stored had to be finished first; what came after it is flushed now.
        if self.is_unflushed() { self.flush_once(false) } else { Ok(stats) }
    }

    /// One flush, or the rest of one, from its beginning to its end; `force` as in [`flush_begin`](Self::flush_begin).
    pub(super) fn flush_once(&mut self, force: bool) -> Result<FlushStats> {
        let mut step = self.flush_begin(force)?;
        loop {
            match step.into_sync() {
                Ok(job) => step = self.flush_synced(job.run())?,
                Err(stats) => return Ok(*stats),
            }
        }
    }

    /// Begins a flush, or goes on with one whose root or WAL could not be stored. `force` stores a root even if nothing has
    /// changed.
    ///
    /// # Errors
    /// As [`flush`](Self::flush); `FlushInProgress` if one waits for a sync.
    pub fn flush_begin(&mut self, force: bool) -> Result<FlushStep<S::File>> {
        self.check_writable()?;
        match self.flush.take() {
            Some(run) if run.waits => {
                self.flush = Some(run);
                return Err(ShardexError::FlushInProgress);
            }
            Some(run) if run.stage == Stage::Wal => return self.sync_wal(run),
            Some(run) => {
                site::reach(Mark::RootStoredAgain);
                return self.store_root(run);
            }
            None => {}
        }
        let newest = self.roots.newest();
        if !force && !self.is_unflushed() {
            let (checkpoint_lsn, generation) = (newest.checkpoint, newest.generation);
            return Ok(FlushStep::Done(Box::new(FlushStats { checkpoint_lsn, generation, ..FlushStats::default() })));
        }
        if self.wal.epoch() > newest.epoch {
            self.make_root_file_anew()?;
        }
        let newest = self.roots.newest();
        let began = self.clock.elapsed();
        self.wal.write_out()?;
        let totals = self.work.totals;
        let root = Root {
            generation: newest.generation.next(),
            checkpoint: self.wal.last_lsn(),
            epoch: self.wal.epoch(),
            wal_start: self.wal.position(),
            shard_numbers: newest.shard_numbers.max(self.work.shards.len() as u32),
            shards: self.work.shard_count() as u32,
            live: totals.live,
            removed: totals.removed,
            draws: totals.draws,
            splits: totals.splits,
            merges: totals.merges,
            wal_segments: self.wal.durable_segments() as u32,
            cells: self.work.cells.as_ref().map(|&(_, head)| head).unwrap_or_default(),
            ..newest.clone()
        };
        self.work.space.begin(root.generation);
        let cells_changed = mem::take(&mut self.work.cells_changed);
        let dirty = mem::take(&mut self.work.dirty)
            .into_iter()
            .map(|number| (number, self.work.shards.get(number as usize).cloned().flatten()))
            .collect();
        let stats = FlushStats {
            checkpoint_lsn: root.checkpoint,
            generation: root.generation,
            operations_applied: (self.counters.operations - self.counters.flushed_operations) as usize,
            ..FlushStats::default()
        };
        let run = FlushRun {
            stage: Stage::Data,
            waits: false,
            stats,
            began,
            stage_began: began,
            wal_up_to: (root.checkpoint, self.counters.operations),
            root,
            dirty,
            snapshot: Arc::clone(&self.published),
            cells_changed,
            changes: BTreeMap::new(),
            taken: Vec::new(),
            operations: self.counters.operations,
        };
        self.store_states(run)
    }

    /// Goes on after a sync.
    ///
    /// # Errors
    /// As [`flush`](Self::flush).
    ///
    /// # Panics
    /// If no flush waits for a sync: a mistake of the caller.
    pub fn flush_synced(&mut self, synced: Result<()>) -> Result<FlushStep<S::File>> {
        // A commit meanwhile may have poisoned, and that ends every flush.
        self.check_writable()?;
        #[expect(clippy::expect_used, reason = "a step without a flush is a mistake of the caller")]
        let mut run = self.flush.take().filter(|run| run.waits).expect("a flush waits for a sync");
        run.waits = false;
        if let Err(error) = synced {
            return Err(self.poison(error));
        }
        match run.stage {
            Stage::Data => {
                run.stats.shard_sync_duration = self.lap(&mut run.stage_began);
                run.stage = Stage::Root;
                self.store_root(run)
            }
            Stage::Root => {
                run.stats.index_sync_duration += self.lap(&mut run.stage_began);
                run.stage = Stage::Wal;
                self.sync_wal(run)
            }
            Stage::Wal => {
                let (lsn, operations) = run.wal_up_to;
                self.wal.synced(lsn);
                self.counters.committed_operations = self.counters.committed_operations.max(operations);
                Ok(self.complete(run))
            }
        }
    }

    /// Lets the caller run a sync.
    fn wait(&mut self, mut run: FlushRun<S>, job: SyncJob<S::File>) -> FlushStep<S::File> {
        run.stats.barriers += 1;
        run.waits = true;
        self.counters.barriers += 1;
        let of_log = run.stage == Stage::Wal;
        self.flush = Some(run);
        if of_log { FlushStep::SyncLog(job) } else { FlushStep::Sync(job) }
    }

    /// Time since `since`, which becomes now.
    fn lap(&self, since: &mut Duration) -> Duration {
        let now = self.clock.elapsed();
        now.saturating_sub(mem::replace(since, now))
    }

    /// Step 1.
    fn store_states(&mut self, mut run: FlushRun<S>) -> Result<FlushStep<S::File>> {
        let prepared = self.prepare(&mut run);
        run.stats.shard_apply_duration = self.lap(&mut run.stage_began);
        let checked = prepared.and_then(|()| self.check_before_root(&run));
        run.stats.validation_duration = self.lap(&mut run.stage_began);
        if let Err(error) = checked {
            if site::applies(Kind::ErrorCheck, true) {
                self.abort(run);
            }
            return Err(error);
        }
        match self.data.sync_job(B2) {
            Some(job) => Ok(self.wait(run, job)),
            None => {
                run.stage = Stage::Root;
                self.store_root(run)
            }
        }
    }

    /// Stores states and nodes into free places and completes the root.
    fn prepare(&mut self, run: &mut FlushRun<S>) -> Result<()> {
        let geometry = *self.data.geometry();
        let (work, data, taken) = (&mut self.work, &*self.data, &mut run.taken);
        let states: Vec<(usize, Vec<u8>)> = run
            .dirty
            .iter()
            .filter_map(|(number, shard)| Some((*number as usize, shard.as_ref()?.state(*number).encode(&geometry))))
            .collect();
        let sizes: Vec<u32> = states.iter().map(|(_, bytes)| geometry.pages(bytes.len())).collect();
        work.take_meta_together(data, &sizes, taken)?;
        let mut blobs: Vec<(Arc<Place>, Vec<u8>)> = Vec::with_capacity(states.len());
        let entry = |place: &Place, bytes: &[u8]| Entry {
            page: place.run().page,
            len: bytes.len() as u32,
            crc: crc32c(0, bytes),
        };
        // A shard that is gone has an entry of nothing.
        let mut changes: Changes =
            run.dirty.iter().map(|(number, _)| ((0, *number as usize), Entry::default())).collect();
        for ((number, bytes), place) in states.into_iter().zip(taken.iter()) {
            changes.insert((0, number), entry(place, &bytes));
            blobs.push((Arc::clone(place), bytes));
        }
        let mut store_node = |bytes: Vec<u8>| -> Result<Entry> {
            let place = work.take_meta(data, geometry.pages(bytes.len()))?;
            taken.push(Arc::clone(&place));
            let entry = entry(&place, &bytes);
            blobs.push((place, bytes));
            Ok(entry)
        };
        run.changes =
            self.directory.nodes_above(changes, run.root.shard_numbers as usize, &geometry, &mut store_node)?;
        for (places, bytes) in neighbours_together(blobs, geometry.page_size) {
            let places: Vec<&Place> = places.iter().map(|place| &**place).collect();
            data.store_meta(&places, &bytes)?;
        }
        run.root.directory = self.directory.top_after(&run.changes);
        run.root.data_pages = self.work.space.map().pages_of(self.work.space.map().chunks());
        run.stats.shards_synced = run.dirty.len();
        Ok(())
    }

    /// The check that a flush must pass before its root is stored.
    fn check_before_root(&self, run: &FlushRun<S>) -> Result<()> {
        let report = match self.options.flush_check {
            CheckLevel::Quick => quick_check(self, &run.root, &run.dirty, &run.changes),
            CheckLevel::Full => check::check(self, CheckLevel::Full, Some(&run.taken))?,
        };
        // Cells are derived: what is wrong with them is a reason to make new ones, not to hold a flush back.
        match report.findings.iter().find(|finding| finding.component != Component::Cells) {
            None => Ok(()),
            Some(finding) => Err(ShardexError::Inconsistent { finding: finding.to_string() }),
        }
    }

    /// Gives a flush up before its root was stored: everything is as it was.
    fn abort(&mut self, run: FlushRun<S>) {
        debug_assert!(run.stage == Stage::Data, "a stored root is never given up");
        site::reach(Mark::FlushAborted);
        self.work.space.give_up();
        run.taken.into_iter().for_each(|place| self.work.space.undo(place));
        self.work.cells_changed |= run.cells_changed;
        self.work.dirty.extend(run.dirty.into_iter().map(|(number, _)| number));
    }

    /// Step 2. If the store fails the flush waits to be gone on with, with the same bytes.
    fn store_root(&mut self, mut run: FlushRun<S>) -> Result<FlushStep<S::File>> {
        run.stage_began = self.clock.elapsed();
        match self.roots.store_next(&run.root, B3) {
            Ok(job) => Ok(self.wait(run, job)),
            Err(error) => {
                // The root may be on the device by now: it is stored again, never given up.
                if site::applies(Kind::ErrorCheck, true) {
                    self.flush = Some(run);
                }
                Err(error)
            }
        }
    }

    /// Step 3. If the store fails the flush waits to be gone on with.
    fn sync_wal(&mut self, mut run: FlushRun<S>) -> Result<FlushStep<S::File>> {
        run.stage_began = self.clock.elapsed();
        if self.wal.durable_lsn() >= run.root.checkpoint {
            site::reach(Mark::WalSyncedMeanwhile);
            return Ok(self.complete(run));
        }
        if let Err(error) = self.wal.write_out() {
            self.flush = Some(run);
            return Err(error);
        }
        match self.wal.sync_job(B1) {
            Some((job, up_to)) => {
                run.wal_up_to = (up_to, self.counters.operations);
                Ok(self.wait(run, job))
            }
            None => unreachable!("what is accepted and not durable waits for a sync"),
        }
    }

    /// Step 4.
    fn complete(&mut self, run: FlushRun<S>) -> FlushStep<S::File> {
        let FlushRun { mut stats, root, changes, snapshot, mut stage_began, .. } = run;
        stats.wal_flush_duration = self.lap(&mut stage_began);
        let geometry = *self.data.geometry();
        let before = self.roots.newest().generation;
        for entry in self.directory.superseded(&changes) {
            self.work.space.retire_named(directory::run_of(&entry, &geometry), Use::Meta, before);
        }
        self.directory.apply(changes);
        self.roots.stored(root);
        if site::applies(Kind::ErrorCheck, true) {
            self.durable = snapshot;
        }
        stats.places_freed = self.work.space.made_durable(self.roots.newest().generation);
        let keep = match self.roots.older() {
            // The older root is retained, and so is the WAL after its checkpoint.
            Some(older) if site::applies(Kind::Ordering, older.epoch == self.wal.epoch()) => older.wal_start,
            _ => self.roots.newest().wal_start,
        };
        stats.segments_recycled = self.wal.recycle(keep);
        self.check_pointers();
        stats.validation_duration += self.lap(&mut stage_began);
        let stored = self.bytes_stored();
        stats.bytes_synced = stored - mem::replace(&mut self.counters.bytes_flushed, stored);
        stats.total_duration = self.clock.elapsed().saturating_sub(run.began);
        self.counters.flushed_operations = run.operations;
        self.counters.note_flush(&stats);
        FlushStep::Done(Box::new(stats))
    }

    /// The last check of a flush: what each part says of how far it is. Our own mistake if it fails.
    fn check_pointers(&self) {
        let newest = self.roots.newest();
        assert!(newest.checkpoint <= self.wal.durable_lsn(), "the checkpoint is ahead of the durable WAL");
        assert!(self.wal.durable_lsn() <= self.wal.last_lsn(), "the WAL is durable past its end");
        assert_eq!(newest.directory, self.directory.top(), "the root names another directory than is in use");
    }
}

/// Puts neighbouring places together, so that what lies together is stored by one call.
fn neighbours_together(mut blobs: Vec<(Arc<Place>, Vec<u8>)>, page_size: usize) -> Vec<(Vec<Arc<Place>>, Vec<u8>)> {
    blobs.sort_by_key(|(place, _)| place.run());
    let mut together: Vec<(Vec<Arc<Place>>, Vec<u8>)> = Vec::new();
    for (place, bytes) in blobs {
        match together.last_mut() {
            Some((places, buffer)) if places.last().is_some_and(|last| last.run().end() == place.run().page) => {
                let pages: u32 = places.iter().map(|place| place.run().pages).sum();
                buffer.resize(pages as usize * page_size, 0);
                site::reach(Mark::StatesTogether);
                buffer.extend_from_slice(&bytes);
                places.push(place);
            }
            _ => together.push((vec![place], bytes)),
        }
    }
    together
}
