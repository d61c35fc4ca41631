//! The engine: joins WAL, shards and index. Synchronous, single-writer, deterministic; the async API drives it.
//!
//! The life of a batch: checked → applied to copies of shards, its bytes in free slots → recorded in the WAL's buffer →
//! published. From then on searches see it; a commit makes it durable, a flush makes its shards durable.
//!
//! Invariants:
//! 1. A batch is accepted as a whole or changes nothing.
//! 2. Nothing durable is overwritten: stores go to free slots, free places, and the slot of the root before the last.
//! 3. After a sync has failed nothing is acknowledged (P5).

mod apply;
mod assemble;
mod barriers;
pub mod batch;
mod check;
mod contents;
mod create;
mod directory;
mod figures;
mod flush;
mod found;
mod fresh;
mod lock;
mod names;
mod numbers;
mod open;
mod purposes;
mod recovery;
mod regroup;
mod resolve;
mod roots;
pub mod stats;
mod working;

use std::{ops::RangeInclusive, sync::Arc};

use crate::{
    config::{CheckLevel, OpenOptions, ShardexConfig},
    env::{CellPolicy, Clock, Env, Executor},
    error::{Result, ShardexError},
    format::{frame::FrameKind, geometry::Geometry, record},
    id::{DocumentId, Lsn},
    index::Snapshot,
    lease::{IndexLock, PlainFile, Run},
    limits,
    posting::Posting,
    shard::{DataFile, LookupCounts},
    site::{self, Kind, Mark},
    storage::{Purpose, Storage, StorageFile},
    wal::WalWriter,
};
use apply::{Applied, Context};
use directory::Directory;
use flush::FlushRun;
use roots::Roots;
use stats::{FlushStats, IndexStats, RecoveryStats};
use working::Working;

pub use check::{Component, ConsistencyReport, Finding};
pub use contents::CheckJob;
pub use barriers::{B1, B2, B3, BARRIERS, Barrier, CLOSE, COMMIT};
pub use flush::FlushStep;
pub use fresh::FreshJob;
pub use regroup::RegroupJob;

/// Accepted records are handed to the file, without a sync, once they take this many bytes.
const WRITE_OUT_BYTES: u64 = 1 << 20;

/// What an engine lends to searches.
pub type Lent<S> = <<S as Storage>::File as StorageFile>::Lent;

/// Running figures since the open.
#[derive(Debug, Default)]
struct Counters {
    operations: u64,
    committed_operations: u64,
    flushed_operations: u64,
    commits: u64,
    barriers: u64,
    errors: u64,
    flushes: u64,
    bytes_flushed: u64,
    last_flush: Option<FlushStats>,
    flush_totals: FlushStats,
}

impl Counters {
    fn note_flush(&mut self, stats: &FlushStats) {
        self.flushes += 1;
        let totals = &mut self.flush_totals;
        totals.wal_flush_duration += stats.wal_flush_duration;
        totals.shard_apply_duration += stats.shard_apply_duration;
        totals.shard_sync_duration += stats.shard_sync_duration;
        totals.index_sync_duration += stats.index_sync_duration;
        totals.validation_duration += stats.validation_duration;
        totals.total_duration += stats.total_duration;
        totals.shards_synced += stats.shards_synced;
        totals.operations_applied += stats.operations_applied;
        totals.bytes_synced += stats.bytes_synced;
        totals.barriers += stats.barriers;
        totals.places_freed += stats.places_freed;
        totals.segments_recycled += stats.segments_recycled;
        totals.checkpoint_lsn = stats.checkpoint_lsn;
        totals.generation = stats.generation;
        self.last_flush = Some(stats.clone());
    }
}

/// An open index, below the async API.
///
/// All calls block on the storage. Dropping it without [`close`](Self::close) is like a crash of the process: nothing
/// durable is lost.
pub struct Engine<S: Storage> {
    storage: S,
    lock: IndexLock,
    clock: Arc<dyn Clock>,
    options: OpenOptions,
    index_id: u128,
    data: Arc<DataFile<S::File>>,
    wal_file: PlainFile<S::File>,
    wal: WalWriter<S::File>,
    /// Whether both roots know the WAL's epoch, so that records may be appended.
    epoch_open: bool,
    roots: Roots<S::File>,
    directory: Directory,
    work: Working<S::File>,
    flush: Option<FlushRun<S>>,
    /// What searches see.
    published: Arc<Snapshot<Lent<S>>>,
    /// What they see once a sync has failed: the state of the newest durable root.
    durable: Arc<Snapshot<Lent<S>>>,
    poisoned: Option<String>,
    /// Why writes are refused: recovery found no room.
    read_only: Option<ShardexError>,
    counters: Counters,
    recovery: RecoveryStats,
    executor: Arc<dyn Executor>,
    cell_policy: CellPolicy,
    /// From how many operations on it is worth asking whether cells are to be made.
    regroup_at: u64,
    /// Live postings when cells were found not to pay; 0 if they were not.
    regroup_refused: u64,
}

impl<S: Storage> Engine<S> {
    /// Makes a new index, or opens the one that is there if it was made with the same configuration.
    ///
    /// # Errors
    /// `Config`, `ConfigMismatch`, `AlreadyExists`, and all of [`open`](Self::open).
    pub fn create(storage: S, config: &ShardexConfig, env: &Env) -> Result<Self> {
        create::create(storage, config, env)
    }

    /// Opens an index and recovers what a crash left.
    ///
    /// # Errors
    /// `NotFound`, `Locked`, `NotAnIndex`, `UnsupportedVersion`, `Corruption`, `Config` (an option, or a page size this
    /// storage cannot serve), `Io`.
    pub fn open(storage: S, options: OpenOptions, env: &Env) -> Result<Self> {
        open::open(storage, options, env)
    }

    /// What the index was made with.
    #[must_use]
    pub fn geometry(&self) -> &Geometry {
        self.data.geometry()
    }

    /// The options of this handle.
    #[must_use]
    pub fn options(&self) -> &OpenOptions {
        &self.options
    }

    /// The data file, which searches read from.
    #[must_use]
    pub fn data(&self) -> &Arc<DataFile<S::File>> {
        &self.data
    }

    /// The state that searches see now.
    #[must_use]
    pub fn snapshot(&self) -> Arc<Snapshot<Lent<S>>> {
        Arc::clone(&self.published)
    }

    /// The last accepted write.
    #[must_use]
    pub fn last_lsn(&self) -> Lsn {
        self.wal.last_lsn()
    }

    /// Whether accepted writes wait to be made durable.
    #[must_use]
    pub fn has_uncommitted(&self) -> bool {
        self.wal.durable_lsn() < self.wal.last_lsn()
    }

    /// Whether a flush would do something.
    #[must_use]
    pub fn has_unflushed(&self) -> bool {
        self.flush.is_some() || self.is_unflushed()
    }

    fn is_unflushed(&self) -> bool {
        // Before the epoch is open nothing was appended: what lies behind the checkpoint is a closing mark.
        self.epoch_open && (self.roots.newest().checkpoint < self.wal.last_lsn() || self.work.cells_changed)
    }

    /// Bytes of WAL that a recovery would replay.
    #[must_use]
    pub fn wal_bytes(&self) -> u64 {
        let newest = self.roots.newest();
        if newest.epoch == self.wal.epoch() { self.wal.bytes_since(newest.wal_start) } else { 0 }
    }

    /// Bytes of WAL that a retained root needs, so that their segments cannot be used again.
    #[must_use]
    pub fn wal_retained(&self) -> u64 {
        let newest = self.roots.newest();
        match self.roots.older() {
            Some(older) if older.epoch == self.wal.epoch() => self.wal.bytes_since(older.wal_start),
            _ if newest.epoch == self.wal.epoch() => self.wal.bytes_since(newest.wal_start),
            _ => 0,
        }
    }

    fn published_live(&self) -> u64 {
        self.published.live
    }

    /// Refuses if nothing may be written any more.
    #[cfg_attr(feature = "mutants", track_caller)]
    fn check_writable(&self) -> Result<()> {
        if let Some(cause) = &self.poisoned
            && site::applies(Kind::ErrorCheck, true)
        {
            return Err(ShardexError::Poisoned { cause: cause.clone() });
        }
        match &self.read_only {
            Some(error) => Err(error.clone()),
            None => Ok(()),
        }
    }

    /// Stops for good after a failed sync: searches go on from the last durable root (P5).
    fn poison(&mut self, error: ShardexError) -> ShardexError {
        site::reach(Mark::Poisoned);
        self.poisoned = Some(error.to_string());
        self.published = Arc::clone(&self.durable);
        self.flush = None;
        error
    }

    /// Poisons from outside: background work that failed in a way that leaves the state unknown.
    pub fn note_error(&mut self) {
        self.counters.errors += 1;
    }

    /// Adds postings; one whose key is stored already replaces that one, and within the batch the last of equal keys
    /// counts. On `Ok` the batch is accepted: searches see it.
    ///
    /// # Errors
    /// `InvalidDimension`, `InvalidVector`, `InvalidPosting`, `BatchTooLarge`, `OutOfSpace`, `Io`, `Corruption`: nothing
    /// has changed. `Poisoned`.
    pub fn add(&mut self, postings: &[Posting]) -> Result<Lsn> {
        self.check_writable()?;
        let rows = batch::rows(postings, self.geometry())?;
        if rows.is_empty() {
            return Ok(self.wal.last_lsn());
        }
        let dimension = self.geometry().dimension;
        self.make_ready(record::add_len(postings.len(), dimension))?;
        let context = self.context();
        let applied = apply::add(&mut self.work, &context, &rows)?;
        let keys = record::encode_add_keys(postings, dimension);
        let mut parts: Vec<&[u8]> = vec![&keys];
        parts.extend(postings.iter().map(|posting| bytemuck::cast_slice::<f32, u8>(&posting.vector)));
        self.accept(FrameKind::Add, &parts, postings.len(), &applied);
        Ok(self.wal.last_lsn())
    }

    /// Removes all postings of some documents and returns how many there were. Only documents that have a posting are logged;
    /// if none has, nothing is, and the LSN is that of the last write.
    ///
    /// # Errors
    /// `BatchTooLarge`, `OutOfSpace`, `Io`, `Corruption`: nothing has changed. `Poisoned`.
    pub fn remove(&mut self, documents: &[DocumentId]) -> Result<(Lsn, u64)> {
        self.check_writable()?;
        let stored = resolve::documents(&mut self.work, &self.data, documents.iter().copied())?;
        self.remove_stored(&stored, documents.len())
    }

    /// [`remove`](Self::remove) of all documents whose ids are in a range, in one batch. An empty range removes nothing.
    ///
    /// Cost: grows with the postings of the index and not with the range.
    ///
    /// # Errors
    /// As [`remove`](Self::remove); `BatchTooLarge` if the log cannot hold the ids that were found: give smaller ranges.
    pub fn remove_range(&mut self, documents: &RangeInclusive<DocumentId>) -> Result<(Lsn, u64)> {
        self.check_writable()?;
        let stored = resolve::range(&mut self.work, &self.data, documents)?;
        self.remove_stored(&stored, stored.len())
    }

    /// Removes documents that are stored, in a batch that named so many.
    fn remove_stored(&mut self, documents: &[DocumentId], named: usize) -> Result<(Lsn, u64)> {
        if documents.is_empty() {
            return Ok((self.wal.last_lsn(), 0));
        }
        let payload = record::encode_remove(documents);
        self.make_ready(payload.len() as u64)?;
        let context = self.context();
        let applied = apply::remove(&mut self.work, &context, documents)?;
        self.accept(FrameKind::Remove, &[&payload], named, &applied);
        Ok((self.wal.last_lsn(), applied.removed))
    }

    fn context(&self) -> Context<S::File> {
        Context { data: Arc::clone(&self.data), clock: Arc::clone(&self.clock), index_id: self.index_id }
    }

    /// Opens the epoch and makes room in the WAL for a record of `payload` bytes.
    fn make_ready(&mut self, payload: u64) -> Result<()> {
        let limit = self.wal.max_payload().min(limits::MAX_BATCH_BYTES);
        if payload > limit {
            return Err(ShardexError::BatchTooLarge { bytes: payload, limit });
        }
        self.open_epoch()?;
        if self.wal.pending_bytes() >= WRITE_OUT_BYTES {
            self.wal.write_out()?;
        }
        // Two roots are retained, so it takes two flushes to let all of the WAL go.
        for _ in 0..2 {
            match self.wal.reserve(payload) {
                Err(ShardexError::BatchTooLarge { .. }) => {
                    self.flush_once(true)?;
                }
                done => return done,
            }
        }
        self.wal.reserve(payload)
    }

    /// Makes an applied batch part of the index.
    fn accept(&mut self, kind: FrameKind, parts: &[&[u8]], operations: usize, applied: &Applied) {
        self.wal.append(kind, parts);
        self.counters.operations += operations as u64;
        self.publish(&applied.changed);
    }

    fn publish(&mut self, changed: &[u32]) {
        self.publish_with(changed, true);
    }

    /// Publishes; with `coded` what is in no cell and new gets codes.
    fn publish_with(&mut self, changed: &[u32], coded: bool) {
        let state = (self.wal.last_lsn(), self.work.totals.live);
        let cells = regroup::searched(&self.work.cells);
        let changed = changed.iter().copied();
        let geometry = (coded, self.data.geometry());
        let next = self.published.with_changes(&self.work.shards, changed, cells, state, geometry);
        self.published = Arc::new(next);
    }

    /// Makes everything accepted so far durable, by one sync of the WAL; by none if it is already.
    ///
    /// # Errors
    /// `OutOfSpace` and `Io` from a store: accepted writes stay accepted, call again. From a sync: the engine is
    /// poisoned. `Poisoned`; `FlushInProgress` while a flush waits for its sync of the WAL.
    pub fn commit(&mut self) -> Result<Lsn> {
        self.check_writable()?;
        self.commit_as(COMMIT)
    }

    fn commit_as(&mut self, purpose: Purpose) -> Result<Lsn> {
        // One sync of a file at a time, for an error goes to one caller only (R8).
        if self.flush.as_ref().is_some_and(FlushRun::syncs_wal) {
            return Err(ShardexError::FlushInProgress);
        }
        self.wal.write_out()?;
        if let Some((job, up_to)) = self.wal.sync_job(purpose) {
            self.counters.barriers += 1;
            if let Err(error) = job.run() {
                return Err(self.poison(error));
            }
            self.wal.synced(up_to);
            self.counters.commits += 1;
            self.counters.committed_operations = self.counters.operations;
        }
        Ok(self.wal.durable_lsn())
    }

    /// Flushes or commits as configured, and writes the closing mark, so that the next open knows that nothing is missing.
    /// Where a flush finds no room for the shards, or a contradiction, the log is committed all the same.
    ///
    /// # Errors
    /// As [`flush`](Self::flush): everything accepted is durable all the same, unless the error is one of the log or of a
    /// sync. The lock is released by dropping the engine, whatever came of this.
    pub fn close(&mut self) -> Result<()> {
        if self.read_only.is_some() && self.poisoned.is_none() {
            // Every write was refused, so there is nothing to flush and the log stays as the crash left it.
            return Ok(());
        }
        if self.options.flush_on_close {
            if let Err(error) = self.flush() {
                // What the shards have no room for the log may have. After a failed sync nothing is to be relied on.
                return if self.is_poisoned() { Err(error) } else { self.commit().and(Err(error)) };
            }
        } else {
            self.commit()?;
        }
        if !self.epoch_open {
            // Nothing was written since the open: the mark is still there.
            return Ok(());
        }
        self.wal.reserve_mark()?;
        self.wal.append(FrameKind::Close, &[]);
        self.commit_as(CLOSE)?;
        self.epoch_open = false;
        Ok(())
    }

    /// Looks for contradictions. `Quick` reads no vector; `Full` reads every byte that the index holds.
    ///
    /// # Errors
    /// `Io` if the disk cannot be read; damage is a finding, not an error.
    pub fn check(&self, level: CheckLevel) -> Result<ConsistencyReport> {
        check::check(self, level, None)
    }

    fn bytes_stored(&self) -> u64 {
        self.data.bytes_stored() + self.wal.bytes_stored() + self.roots.bytes_stored()
    }

    /// Looks at single shards that figures have cost since the open.
    #[must_use]
    pub fn shards_figured(&self) -> u64 {
        self.work.figures.looks()
    }

    /// Figures of the index as it is now. Cost: a look at each shard that changed since the last call; no vector is read.
    ///
    /// # Errors
    /// `Io` if a file's length cannot be told.
    pub fn stats(&self) -> Result<IndexStats> {
        let geometry = self.geometry();
        let page = geometry.page_size as u64;
        let totals = self.work.totals;
        let shards = self.work.figures.totalled::<S::File>(&self.work.shards);
        let held: u64 = self.work.space.waiting().map(|(run, _)| u64::from(run.pages)).sum();
        let counters = &self.counters;
        Ok(IndexStats {
            total_shards: shards.shards,
            total_postings: totals.live,
            removed_postings: totals.removed,
            pending_operations: counters.operations - counters.flushed_operations,
            uncommitted_operations: counters.operations - counters.committed_operations,
            uncommitted_bytes: self.uncommitted_bytes(),
            uncommitted_for: None,
            background_error: None,
            dimension: geometry.dimension,
            metric: geometry.metric,
            shard_size: geometry.shard_size,
            largest_shard: shards.largest as usize,
            splits: totals.splits,
            merges: totals.merges,
            cells: self.published.cells.as_ref().map_or(0, |cells| cells.cells()),
            codes: self.published.cells.as_ref().map_or(0, |cells| cells.codes()),
            fresh_postings: self.unsettled(),
            recall: self.recall_proof(),
            memory_usage: (self.work.memory() + self.published.fresh_memory()) as u64,
            disk_bytes: self.data.raw().len()? + self.wal_file.raw().len()? + self.roots.file().raw().len()?,
            free_bytes: self.work.space.map().free_pages() * page,
            held_bytes: held * page,
            held_by_readers_bytes: self.work.space.pages_held_by_readers() * page,
            wal_bytes: self.wal_bytes(),
            wal_segments: self.wal.segments(),
            segments_recycled: self.wal.recycled(),
            last_lsn: self.wal.last_lsn(),
            durable_lsn: self.wal.durable_lsn(),
            checkpoint_lsn: self.roots.newest().checkpoint,
            generation: self.roots.newest().generation,
            max_drift: shards.drift,
            commits: counters.commits,
            flushes: counters.flushes,
            barriers: counters.barriers,
            bytes_stored: self.bytes_stored(),
            errors: counters.errors,
            last_flush: counters.last_flush.clone(),
            flush_totals: counters.flush_totals.clone(),
            recovery: self.recovery.clone(),
            poisoned: self.poisoned.clone(),
            read_only: self.read_only.as_ref().map(ToString::to_string),
        })
    }

    /// What the engine takes for used in the data file, for checks from outside: extents and pages of metadata.
    pub fn used_places(&self) -> impl Iterator<Item = Run> {
        self.work.space.map().used()
    }

    /// The places that the working state uses, whether a root names them yet or not: the extents of shards, the cells, and what
    /// a flush under way has taken.
    pub fn working_places(&self) -> impl Iterator<Item = Run> {
        let extents = self.work.shards.iter().flatten().flat_map(|shard| shard.extents()).map(|extent| extent.place());
        let cells = self.work.cells.iter().flat_map(|(cells, _)| cells.places());
        let flush = self.flush.iter().flat_map(FlushRun::taken);
        extents.chain(cells).chain(flush).map(|place| place.run())
    }

    /// What lookups of documents and keys have cost since the open.
    #[must_use]
    pub fn lookups(&self) -> LookupCounts {
        self.work.finder.counts
    }

    /// The storage below.
    #[must_use]
    pub fn storage(&self) -> &S {
        &self.storage
    }
}

impl<S: Storage> Drop for Engine<S> {
    fn drop(&mut self) {
        // Readers keep the lock. Who finds it taken is told so.
        self.lock.owner_left();
    }
}
