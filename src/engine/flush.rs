//! The flush: a protocol in steps. It makes all accepted writes durable in the shards, and frees the WAL that neither of
//! the two retained roots needs.
//!
//! 0. Fix X, the last accepted write, and the shards as they are now. Write the WAL up to X to its file.
//! 1. Store the changed shard states and the changed directory nodes into free pages, and check them. **B2**: sync the
//!    data file. Everything that the new root names is now durable before the root can be.
//! 2. Store the root into the slot that does not hold the newest durable root. **B3**: sync that slot. From this store
//!    on the flush is never undone: it completes, or it resumes from the step that failed, or the engine ends by
//!    poisoning or a drop, and the next open recovers.
//! 3. **B1**: sync the WAL up to X, unless a commit has done so meanwhile. If the new root rots later, the older root
//!    and the WAL then give the same state. Only step 4 and the answer to the caller depend on this barrier, so it
//!    could be issued at any point of the flush. It comes last because commits during the flush have usually synced the
//!    WAL already.
//! 4. Free the allocations named only by roots older than the two retained ones. Recycle WAL segments.
//!    Compare the LSNs of root and WAL.
//!
//! The caller runs the syncs between the steps, so it may wait for them elsewhere. If a store or the check fails before
//! step 2, the flush is undone: the old root, the WAL and the allocations stay as they were. If a sync fails, B2
//! included, the engine is poisoned (promise P5).

use std::{collections::BTreeMap, mem, sync::Arc, time::Duration};

use super::{
    barriers::{B1, B2, B3},
    check,
    core::Engine,
    directory,
    findings::Component,
    pending_flush::{PendingFlush, Stage},
    quick_check::quick_check,
    roots::SLOTS,
    state_blocks::BlockChanges,
    stats::FlushStats,
};
use crate::{
    config::CheckLevel,
    error::{Result, ShardexError},
    failpoint::{protects, reached},
    format::root::Root,
    lease::SyncJob,
    limits::FORMAT_VERSION,
    space::Use,
    storage::Storage,
};

/// Next action of a flush.
#[derive(Debug)]
pub enum FlushStep<F> {
    /// A sync for the caller to run. Its result goes to [`Engine::flush_synced`].
    Sync(SyncJob<F>),
    /// A sync of the WAL for the caller to run. At most one sync of a file may be in progress, so the task that commits
    /// must run it, and no commit may run meanwhile.
    SyncLog(SyncJob<F>),
    /// The flush is complete.
    Done(Box<FlushStats>),
}

impl<F> FlushStep<F> {
    /// Returns the sync to run, of the data file, the root file or the WAL.
    ///
    /// # Errors
    /// Returns the statistics of the flush if it is complete.
    pub fn into_sync(self) -> std::result::Result<SyncJob<F>, Box<FlushStats>> {
        match self {
            Self::Sync(job) | Self::SyncLog(job) => Ok(job),
            Self::Done(stats) => Err(stats),
        }
    }
}

impl<S: Storage> Engine<S> {
    /// Flushes: on return all writes accepted before the call are durable in the shards.
    ///
    /// If nothing has changed since the last flush, no barrier is issued.
    ///
    /// # Errors
    /// Returns `OutOfSpace` or `Io` if a store fails: no accepted write is lost, and the call can be repeated. Returns
    /// `Io` if a sync fails, and `FileReplaced` if a file is not in its place: the engine is then poisoned. Returns
    /// `Inconsistent` if the check finds a contradiction: the old root and the WAL are kept.
    pub fn flush(&mut self) -> Result<FlushStats> {
        let stats = self.flush_once(false)?;
        // The first call may only have completed an earlier flush whose root or WAL could not be stored. Writes
        // accepted after that flush began need a second one.
        if self.is_unflushed() { self.flush_once(false) } else { Ok(stats) }
    }

    /// Flushes until no older root is left: neither in the slots, nor as the last content of one, which a device may bring back.
    ///
    /// # Errors
    /// As [`flush`](Self::flush).
    pub(super) fn renew_roots(&mut self) -> Result<()> {
        if self.flush.is_some() {
            // Its root names what was before.
            self.flush_once(false)?;
        }
        (0..=SLOTS).try_for_each(|_| self.flush_once(true).map(drop))
    }

    /// Runs one flush, or the rest of a pending one, to its end. `force` is as in [`flush_begin`](Self::flush_begin).
    pub(super) fn flush_once(&mut self, force: bool) -> Result<FlushStats> {
        let mut step = self.flush_begin(force)?;
        loop {
            match step.into_sync() {
                Ok(job) => step = self.flush_synced(job.run())?,
                Err(stats) => return Ok(*stats),
            }
        }
    }

    /// Begins a flush, or resumes one whose root or WAL could not be stored. `force` stores a root even if nothing has
    /// changed.
    ///
    /// # Errors
    /// As [`flush`](Self::flush). Returns `FlushInProgress` if a flush waits for a sync.
    pub fn flush_begin(&mut self, force: bool) -> Result<FlushStep<S::File>> {
        self.check_writable()?;
        match self.flush.take() {
            Some(run) if run.waits => {
                self.flush = Some(run);
                return Err(ShardexError::FlushInProgress);
            }
            Some(run) if run.stage == Stage::Wal => return self.sync_wal(run),
            Some(run) => {
                reached!(RootStoredAgain);
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
            self.replace_root_file()?;
        }
        let began = self.clock.elapsed();
        self.wal.write_out()?;
        let run = self.fix_state(began);
        self.store_states(run)
    }

    /// Step 0: fixes the state that the flush makes durable.
    fn fix_state(&mut self, began: Duration) -> PendingFlush<S> {
        let newest = self.roots.newest();
        let totals = self.work.totals;
        let root = Root {
            version: if self.upgrades { FORMAT_VERSION } else { newest.version },
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
        PendingFlush {
            stage: Stage::Data,
            waits: false,
            stats,
            began,
            stage_began: began,
            wal_up_to: (root.checkpoint, self.counters.operations),
            root,
            dirty,
            dirty_buckets: mem::take(&mut self.work.dirty_buckets),
            payloads: self.work.payloads.clone(),
            snapshot: Arc::clone(&self.published),
            cells_changed,
            changes: BTreeMap::new(),
            bucket_changes: BTreeMap::new(),
            blocks: BlockChanges::default(),
            taken: Vec::new(),
            operations: self.counters.operations,
        }
    }

    /// Continues the pending flush with the result of its sync.
    ///
    /// # Errors
    /// As [`flush`](Self::flush).
    ///
    /// # Panics
    /// Panics if no flush waits for a sync: a mistake of the caller.
    pub fn flush_synced(&mut self, synced: Result<()>) -> Result<FlushStep<S::File>> {
        // A commit during the sync may have poisoned the engine, which ends every flush.
        self.check_writable()?;
        #[expect(clippy::expect_used, reason = "a step without a flush is a mistake of the caller")]
        let mut run = self.flush.take().filter(|run| run.waits).expect("a flush waits for a sync");
        run.waits = false;
        if let Err(error) = synced {
            return Err(self.poison(error));
        }
        self.check_in_place()?;
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

    /// Marks the flush as waiting and hands the sync to the caller.
    fn wait(&mut self, mut run: PendingFlush<S>, job: SyncJob<S::File>) -> FlushStep<S::File> {
        run.stats.barriers += 1;
        run.waits = true;
        self.counters.barriers += 1;
        let of_log = run.stage == Stage::Wal;
        self.flush = Some(run);
        if of_log { FlushStep::SyncLog(job) } else { FlushStep::Sync(job) }
    }

    /// Returns the time since `since` and sets `since` to now.
    fn lap(&self, since: &mut Duration) -> Duration {
        let now = self.clock.elapsed();
        now.saturating_sub(mem::replace(since, now))
    }

    /// Step 1: stores the changed states, checks them and hands out the sync of the data file (B2). A failure abandons
    /// the flush.
    fn store_states(&mut self, mut run: PendingFlush<S>) -> Result<FlushStep<S::File>> {
        let prepared = self.prepare(&mut run);
        run.stats.shard_apply_duration = self.lap(&mut run.stage_began);
        let checked = prepared.and_then(|()| self.check_before_root(&run));
        run.stats.validation_duration = self.lap(&mut run.stage_began);
        if let Err(error) = checked {
            if protects!(ErrorCheck) {
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

    /// Runs the check that a flush must pass before its root is stored.
    fn check_before_root(&self, run: &PendingFlush<S>) -> Result<()> {
        let report = match self.options.flush_check {
            CheckLevel::Quick => quick_check(self, &run.root, &run.dirty, &run.changes),
            CheckLevel::Full => check::check(self, CheckLevel::Full, Some(&run.taken))?,
        };
        // Cells are derived from the vectors. Damage to them calls for a cell build and does not stop a flush.
        match report.findings.iter().find(|finding| finding.component != Component::Cells) {
            None => Ok(()),
            Some(finding) => Err(ShardexError::Inconsistent { finding: finding.to_string() }),
        }
    }

    /// Abandons a flush before its root was stored: the free-space map and the dirty shards are as before it.
    fn abort(&mut self, run: PendingFlush<S>) {
        debug_assert!(run.stage == Stage::Data, "a stored root is never given up");
        reached!(FlushAborted);
        self.work.space.give_up();
        run.taken.into_iter().for_each(|allocation| self.work.space.undo(allocation));
        self.work.cells_changed |= run.cells_changed;
        self.work.dirty.extend(run.dirty.into_iter().map(|(number, _)| number));
        self.work.dirty_buckets.extend(run.dirty_buckets);
    }

    /// Step 2: stores the root. If the store fails, the flush stays pending and the next call stores the same bytes
    /// again.
    fn store_root(&mut self, mut run: PendingFlush<S>) -> Result<FlushStep<S::File>> {
        run.stage_began = self.clock.elapsed();
        match self.roots.store_next(&run.root, B3) {
            Ok(job) => Ok(self.wait(run, job)),
            Err(error) => {
                // A failed store may have reached the device. The root is stored again and never abandoned.
                if protects!(ErrorCheck) {
                    self.flush = Some(run);
                }
                Err(error)
            }
        }
    }

    /// Step 3: syncs the WAL. If writing it to the file fails, the flush stays pending and the next call tries again.
    fn sync_wal(&mut self, mut run: PendingFlush<S>) -> Result<FlushStep<S::File>> {
        run.stage_began = self.clock.elapsed();
        if self.wal.durable_lsn() >= run.root.checkpoint {
            reached!(WalSyncedMeanwhile);
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

    /// Step 4: frees superseded allocations and WAL segments, and records the statistics.
    fn complete(&mut self, run: PendingFlush<S>) -> FlushStep<S::File> {
        let PendingFlush { mut stats, root, changes, bucket_changes, blocks, snapshot, mut stage_began, .. } = run;
        stats.wal_flush_duration = self.lap(&mut stage_began);
        let geometry = *self.data.geometry();
        let before = self.roots.newest().generation;
        let mut superseded = self.state_blocks.apply(blocks);
        superseded.extend(self.directory.superseded(&changes));
        superseded.extend(self.bucket_directory.superseded(&bucket_changes));
        for entry in superseded {
            self.work.space.retire_named(directory::run_of(&entry, &geometry), Use::Meta, before);
        }
        self.directory.apply(changes);
        self.bucket_directory.apply(bucket_changes);
        self.roots.stored(root);
        if protects!(ErrorCheck) {
            self.durable = snapshot;
        }
        stats.allocations_freed = self.work.space.made_durable(self.roots.newest().generation);
        let keep = match self.roots.older() {
            // Recovery may start from the older root, so the WAL after its checkpoint is kept too.
            Some(older) if protects!(Ordering, older.epoch == self.wal.epoch()) => older.wal_start,
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

    /// Asserts that checkpoint, durable LSN, last LSN and directory agree: the last check of a flush. A failure is a
    /// bug of the engine.
    fn check_pointers(&self) {
        let newest = self.roots.newest();
        assert!(newest.checkpoint <= self.wal.durable_lsn(), "the checkpoint is ahead of the durable WAL");
        assert!(self.wal.durable_lsn() <= self.wal.last_lsn(), "the WAL is durable past its end");
        assert_eq!(newest.directory, self.directory.top(), "the root names another directory than is in use");
    }
}
