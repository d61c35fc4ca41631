//! Writer: carries out requests in the order of their arrival, shares commits, and drives flushes step by step, so that
//! writes continue while a flush waits for its syncs.
//!
//! Invariants:
//! 1. At most one flush is under way, and at most one sync of it.
//! 2. Only the writer syncs the WAL, so at most one sync of the WAL is under way (R8).
//! 3. A flush is answered when everything accepted before its request is durable in the shards.
//! 4. Writes are carried out in the order of their arrival. A write that must wait for a flush delays the writes behind
//!    it, and no other call and no timer.
//! 5. Until a close the writer awaits only in its loop. The syncs of the data file and the root file, cell builds, the
//!    encoding of unindexed postings, backups and the greater part of a full check run beside it. Other work blocks it: commits,
//!    the stores, the check and the WAL sync (B1) of a flush, the scan of `remove_range`, a quick check, and the first
//!    part of a full check. So does the whole flush by which the first write opens the epoch, and the flush of a write
//!    that finds the WAL full while none is under way.

use std::{collections::VecDeque, ops::RangeInclusive, sync::Arc, time::Duration};

use tokio::sync::{OwnedSemaphorePermit, mpsc};

use super::{
    failures::Failures,
    queue::{Command, JobRequest, PendingPurge, Reply, Request},
    running::{RunningCellBuild, RunningFlush, RunningJob, ended, synced, timer},
    stats_writer::StatsWriter,
    tasks::{Background, Syncer},
    view::{Shared, View},
};
use crate::{
    batch::{WriteBatch, Written},
    cells::BuiltCells,
    config::Durability,
    engine::{Engine, stats::FlushStats},
    error::{Result, ShardexError},
    id::{DocumentId, Lsn},
    index::NewCodes,
    observe::Observer,
    runtime::Runtime,
    storage::Storage,
    tuning,
};

/// Number of retained roots. Each retains a part of the WAL.
const ROOTS_RETAINED: usize = 2;

/// Sends the result of a write to its caller, once the write is durable.
type Answer = Box<dyn FnOnce(Result<()>) + Send>;

/// Change of the index, with the callers to answer.
pub(super) enum Write {
    Batch(WriteBatch, Reply<Written>),
    RemoveRange(RangeInclusive<DocumentId>, Reply<u64>),
    /// Installation of built cells.
    Cells(Option<Box<BuiltCells>>, Vec<Reply<()>>),
}

/// Queued write with its permit, which is released when the write has been carried out.
type Queued = (Write, Option<OwnedSemaphorePermit>);

/// Task that drives the engine.
///
/// The engine is the last field, so it is dropped last. All reads and syncs beside the writer have ended by then.
pub(super) struct Writer<S: Storage> {
    pub(super) cell_build: Option<RunningCellBuild>,
    /// Job that encodes unindexed postings without a code: found by an open, or added during the first cell build.
    pub(super) coding: Option<Background<NewCodes>>,
    pub(super) reading: Option<RunningJob>,
    /// Full checks and backups that have not started.
    pub(super) read_waiters: VecDeque<JobRequest>,
    pub(super) syncer: Syncer<S::File>,
    pub(super) flushing: Option<RunningFlush>,
    /// Callers that wait for a cell build that has not started.
    pub(super) cell_build_waiters: Vec<Reply<()>>,
    /// Callers that wait for a flush, each with the last write that the flush must cover.
    pub(super) flush_waiters: Vec<(Lsn, Reply<FlushStats>)>,
    /// Writes to carry out, in their order. It contains more than one write only while the first waits for a flush.
    writes: VecDeque<Queued>,
    /// Latest time of the next commit.
    pub(super) commit_at: Option<Duration>,
    /// Time of the next flush.
    pub(super) flush_at: Option<Duration>,
    /// Time at which an index at rest gives its free space back.
    pub(super) trim_at: Option<Duration>,
    /// Time of the next step of a compaction, and whether one is under way.
    pub(super) compact_at: Option<Duration>,
    pub(super) compacting: bool,
    /// Purges that wait for their last step.
    pub(super) purges: VecDeque<PendingPurge>,
    /// Whether the next cell build takes nothing over from the cells before.
    pub(super) cells_anew: bool,
    /// Bytes of slots that compactions have rewritten since they last began a flush.
    pub(super) rewritten_bytes: u64,
    /// Time of the last write.
    pub(super) last_write: Option<Duration>,
    /// Whether the flush under way stores a twin for a trim.
    pub(super) twin: bool,
    /// Time since which some accepted write has been undurable.
    pub(super) undurable_since: Option<Duration>,
    /// Size of the WAL in bytes above which a flush starts automatically. Raised after a flush has failed.
    pub(super) flush_above: u64,
    /// Whether the last flush failed.
    pub(super) flush_failed: bool,
    /// Whether the first queued write was tried and needs the next step of the flush under way.
    pub(super) blocked: bool,
    /// Failures of background work.
    pub(super) failures: Failures,
    /// Whether the jobs beside the writer are cancelled for a close.
    pub(super) closing: bool,
    /// Callers that wait for the next commit.
    waiting: Vec<Answer>,
    pub(super) runtime: Arc<dyn Runtime>,
    pub(super) observer: Arc<Observer>,
    /// Number of flushes that the observer knows, and the sum of their durations.
    pub(super) observed_flushes: (u64, Duration),
    pub(super) stats_writer: StatsWriter<S>,
    pub(super) shared: Arc<Shared<S>>,
    pub(super) engine: Engine<S>,
}

impl<S: Storage> Writer<S> {
    /// Returns a writer for an open engine.
    pub(super) fn new(
        engine: Engine<S>,
        shared: Arc<Shared<S>>,
        syncer: Syncer<S::File>,
        runtime: Arc<dyn Runtime>,
    ) -> Self {
        let stats_writer = StatsWriter::new(engine.options().stats_file.then(|| runtime.now()));
        let (flushes, totals, _) = engine.flushes();
        Self {
            cell_build: None,
            coding: None,
            reading: None,
            read_waiters: VecDeque::new(),
            syncer,
            flushing: None,
            cell_build_waiters: Vec::new(),
            flush_waiters: Vec::new(),
            writes: VecDeque::new(),
            commit_at: None,
            flush_at: None,
            trim_at: None,
            compact_at: None,
            compacting: false,
            purges: VecDeque::new(),
            cells_anew: false,
            rewritten_bytes: 0,
            last_write: None,
            twin: false,
            undurable_since: None,
            flush_above: engine.options().flush_wal_bytes,
            flush_failed: false,
            blocked: false,
            failures: Failures::default(),
            closing: false,
            waiting: Vec::new(),
            runtime,
            observer: Arc::clone(&shared.context.observer),
            observed_flushes: (flushes, totals.total_duration),
            stats_writer,
            shared,
            engine,
        }
    }

    pub(super) async fn run(mut self, mut requests: mpsc::UnboundedReceiver<Request>) {
        self.begin_coding();
        self.put_trim_off();
        self.background();
        loop {
            let space = [self.trim_at, self.compact_at, self.purge_at()];
            let due = [self.commit_at, self.flush_at, self.stats_writer.at].into_iter().chain(space).flatten().min();
            let timer = timer(&*self.runtime, due);
            tokio::select! {
                biased;
                synced = synced(&mut self.flushing) => self.go_on(synced),
                made = ended(self.cell_build.as_mut().map(|cells| &mut cells.job)) => self.cells_built(made),
                coded = ended(self.coding.as_mut()) => self.coded(coded),
                read = ended(self.reading.as_mut().map(|read| &mut read.job)) => self.read_ended(read),
                request = requests.recv() => {
                    let Some(request) = request else { break };
                    if let Some(reply) = self.serve_some(request, &mut requests) {
                        return self.close(reply, requests).await;
                    }
                }
                () = timer => {}
            }
            self.carry_out();
            self.commit_waiting();
            self.background();
        }
        self.let_go().await;
    }

    /// Serves a request and those queued behind it, so that they share one commit. The number of requests is bounded,
    /// so that timers run under any load. Returns the reply channel of a close request.
    fn serve_some(&mut self, first: Request, requests: &mut mpsc::UnboundedReceiver<Request>) -> Option<Reply<()>> {
        let mut next = Some(first);
        for _ in 0..self.engine.options().queue_size {
            let Some(Request { command, slot }) = next else { break };
            if let Some(reply) = self.serve(command, slot) {
                return Some(reply);
            }
            next = requests.try_recv().ok();
        }
        next.and_then(|Request { command, slot }| self.serve(command, slot))
    }

    /// Carries out or queues one request. Returns the reply channel of a close request.
    fn serve(&mut self, command: Command, slot: OwnedSemaphorePermit) -> Option<Reply<()>> {
        match command {
            Command::Write(batch, reply) => self.queue(Write::Batch(batch, reply), Some(slot)),
            Command::RemoveRange(documents, reply) => self.queue(Write::RemoveRange(documents, reply), Some(slot)),
            Command::Commit(reply) => self.waiting.push(Box::new(|done| reply.send(done))),
            Command::Flush(reply) => {
                self.commit_waiting();
                self.flush_waiters.push((self.engine.last_lsn(), reply));
                if self.flushing.is_none() {
                    self.begin_flush(false);
                }
            }
            Command::Optimize(reply) => {
                self.commit_waiting();
                self.cell_build_waiters.push(reply);
                self.build_cells();
            }
            Command::Space(part) => self.take_part(part),
            Command::Stats(reply) => reply.send(self.stats()),
            Command::Check(level, reply) => {
                self.commit_waiting();
                self.check(level, reply);
            }
            Command::Backup(backup, reply) => self.read_beside(JobRequest::Backup(backup, reply)),
            Command::Close(reply) => {
                self.commit_waiting();
                return Some(reply);
            }
        }
        None
    }

    /// Appends a write to the queue and carries out the writes that can proceed.
    pub(super) fn queue(&mut self, write: Write, slot: Option<OwnedSemaphorePermit>) {
        self.writes.push_back((write, slot));
        self.carry_out();
    }

    /// Reports whether built cells wait for installation.
    pub(super) fn cells_wait(&self) -> bool {
        self.writes.iter().any(|(write, _)| matches!(write, Write::Cells(..)))
    }

    /// Carries out the queued writes up to the first that must wait.
    fn carry_out(&mut self) {
        while !self.blocked && !self.must_wait() {
            let Some((write, slot)) = self.writes.pop_front() else { return };
            if let Some(write) = self.attempt(write) {
                self.blocked = true;
                return self.writes.push_front((write, slot));
            }
        }
    }

    /// Reports whether writes must wait, which bounds the WAL that a flush retains.
    ///
    /// Writes wait if more than the flush threshold arrived during the flush under way, or if the retained WAL exceeds
    /// `WAL_SHARES` times the flush threshold.
    fn must_wait(&mut self) -> bool {
        let limit = self.engine.options().flush_wal_bytes;
        let behind = self.flushing.is_some() && self.engine.wal_bytes() > self.flush_above.saturating_add(limit);
        limit > 0 && (behind || self.waits_for_wal(limit))
    }

    /// Reports whether a write must wait for a flush, because the retained WAL exceeds `WAL_SHARES` times the flush
    /// threshold. Starts that flush if none is under way.
    ///
    /// Flushes up to three times until the retained WAL is at most the limit: two roots are retained, so the flush
    /// under way and two more suffice, even if nothing has changed. After a failed flush no write waits.
    fn waits_for_wal(&mut self, limit: u64) -> bool {
        for _ in 0..=ROOTS_RETAINED {
            // After a failed flush the timer or a larger WAL (`flush_above`) starts the next try.
            if self.flush_failed || self.engine.wal_retained() <= limit.saturating_mul(tuning::WAL_SHARES) {
                return false;
            }
            if self.flushing.is_none() {
                self.force_flush();
            }
            if self.flushing.is_some() {
                return true;
            }
        }
        false
    }

    /// Carries out a write. Returns the write if the WAL is full and only the end of the flush under way frees space.
    fn attempt(&mut self, write: Write) -> Option<Write> {
        let under_way = self.flushing.is_some();
        let waits = |error: Option<&ShardexError>| under_way && matches!(error, Some(ShardexError::FlushInProgress));
        match write {
            Write::Batch(batch, reply) => {
                let done = self.make_way().and_then(|()| self.engine.write(&batch));
                if waits(done.as_ref().err()) {
                    return Some(Write::Batch(batch, reply));
                }
                let written = done.as_ref().copied().unwrap_or_default();
                self.written(done.map(drop), Box::new(move |done| reply.send(done.map(|()| written))));
            }
            Write::RemoveRange(documents, reply) => {
                let done = self.make_way().and_then(|()| self.engine.remove_range(&documents));
                if waits(done.as_ref().err()) {
                    return Some(Write::RemoveRange(documents, reply));
                }
                let removed = done.as_ref().map_or(0, |&(_, removed)| removed);
                self.written(done.map(drop), Box::new(move |done| reply.send(done.map(|()| removed))));
            }
            Write::Cells(built, waiters) => {
                let done = self.engine.install_cells(built.as_deref().cloned());
                if waits(done.as_ref().err()) {
                    return Some(Write::Cells(built, waiters));
                }
                self.publish();
                self.observe_flushes();
                self.cells_taken(&done, waiters);
            }
        }
        None
    }

    /// Answers once no built cells wait for installation.
    pub(super) fn after_cells(&mut self, reply: Reply<()>) {
        let cells = self.writes.iter_mut().find_map(|(write, _)| match write {
            Write::Cells(_, waiters) => Some(waiters),
            _ => None,
        });
        match cells {
            Some(waiters) => waiters.push(reply),
            None => reply.send(Ok(())),
        }
    }

    /// Answers a write, or queues its answer until the commit that makes it durable.
    fn written(&mut self, done: Result<()>, answer: Answer) {
        self.put_trim_off();
        self.last_write = Some(self.runtime.now());
        self.publish();
        self.observe_flushes();
        if done.is_ok() && self.engine.has_uncommitted() {
            self.undurable_since.get_or_insert_with(|| self.runtime.now());
        }
        match done {
            Ok(()) if self.engine.options().durability == Durability::Immediate => self.waiting.push(answer),
            done => answer(done),
        }
        self.flush_if_full();
    }

    /// Commits for all waiting callers and answers them.
    pub(super) fn commit_waiting(&mut self) {
        if self.waiting.is_empty() {
            return;
        }
        let done = self.commit();
        self.publish();
        self.waiting.drain(..).for_each(|answer| answer(done.clone()));
    }

    /// Makes everything accepted durable.
    pub(super) fn commit(&mut self) -> Result<()> {
        let observer = Arc::clone(&self.observer);
        let done = match self.engine.has_uncommitted() {
            true => observer.commit(|| self.engine.commit()),
            false => self.engine.commit(),
        };
        let done = done.map(drop);
        self.note_durable();
        done
    }

    pub(super) fn publish(&self) {
        self.shared.view.store(Some(View::of(&self.engine)));
    }

    /// Finishes the flush under way and all queued writes, and stops the jobs beside the writer. Installs the progress
    /// of a cancelled cell build.
    async fn finish(&mut self) {
        self.closing = true;
        self.cell_build.iter().for_each(|cells| cells.job.cancel());
        self.reading.iter().for_each(|read| read.job.cancel());
        self.read_waiters.drain(..).for_each(|request| request.refuse(ShardexError::Closed));
        self.cell_build_waiters.drain(..).for_each(|reply| reply.send(Err(ShardexError::Closed)));
        self.coding = None;
        self.refuse_purges();
        self.carry_out_all().await;
        self.commit_waiting();
        if let Some(cells) = &mut self.cell_build {
            let made = cells.job.ended().await;
            self.cells_built(made);
        }
        if let Some(read) = &mut self.reading {
            let ended = read.job.ended().await;
            self.read_ended(ended);
        }
        // The cells may be queued behind a flush that has started since.
        self.carry_out_all().await;
    }

    /// Carries out all queued writes and finishes the flushes that they wait for.
    async fn carry_out_all(&mut self) {
        self.carry_out();
        while self.flushing.is_some() {
            let synced = synced(&mut self.flushing).await;
            self.go_on(synced);
            self.carry_out();
        }
    }

    /// Ends the writer after the last handle was dropped.
    async fn let_go(mut self) {
        let manual = self.engine.options().durability == Durability::Manual;
        let cells = self.cell_build.is_some() && !manual;
        if cells || !self.writes.is_empty() {
            self.finish().await;
        } else if self.flushing.is_some() {
            // The flush ends here, as in a crash of the process: its root may be durable or not, and the next open
            // recovers. Its sync must end first, before another engine opens the index.
            let _ = synced(&mut self.flushing).await;
        }
        if !manual {
            // Best effort: no caller is left to answer, and these writes were never acknowledged.
            let _ = self.engine.commit();
        }
        if cells && self.engine.has_unflushed() {
            // The progress of a cell build is durable only below a root.
            let _ = self.engine.flush();
        }
        self.last_stats();
    }

    /// Closes the engine, refuses the queued requests, and answers the close.
    async fn close(mut self, reply: Reply<()>, requests: mpsc::UnboundedReceiver<Request>) {
        self.finish().await;
        let done = self.close_engine();
        self.last_stats();
        self.shared.closed.store(true, std::sync::atomic::Ordering::Release);
        self.shared.view.store(None);
        drop(requests);
        // The lock is released before the answer, so that an open right after the close succeeds.
        drop(self);
        reply.send(done);
    }
}
