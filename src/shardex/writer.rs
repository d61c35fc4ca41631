//! The writer: carries out requests in the order in which they come, shares commits, and drives flushes step by step, so
//! that writes go on while a flush waits for its syncs.
//!
//! Invariants:
//! 1. At most one flush is under way, and at most one sync of it.
//! 2. The WAL is synced by the writer alone, so one sync of it is under way at most (R8).
//! 3. A flush is answered when everything accepted before it was asked for is durable in the shards.
//! 4. Writes are carried out in the order in which they came. A write that must wait for a flush holds up the writes behind
//!    it, and no other call and no timer.
//! 5. The writer waits in one place, its loop: what takes long runs beside it.

use std::{collections::VecDeque, ops::RangeInclusive, sync::Arc, time::Duration};

use tokio::sync::{OwnedSemaphorePermit, mpsc};

use super::{
    Command, Reply, Request, Shared, View,
    flushes::{Flushing, synced},
    jobs::{Checking, Regrouping, ended},
    tasks::{Background, Syncer},
    timers::{Troubles, timer},
};
use crate::{
    cells::Built,
    config::Durability,
    engine::{ConsistencyReport, Engine, stats::FlushStats},
    error::{Result, ShardexError},
    id::{DocumentId, Lsn},
    index::Coded,
    limits,
    posting::Posting,
    runtime::Runtime,
    storage::Storage,
};

/// Roots of which each retains a part of the WAL.
const ROOTS_RETAINED: usize = 2;

/// Answers a caller that waits for its write to be durable.
type Answer = Box<dyn FnOnce(Result<()>) + Send>;

/// What changes the index, and who is answered.
pub(super) enum Write {
    Add(Vec<Posting>, Reply<()>),
    Remove(Vec<DocumentId>, Reply<u64>),
    RemoveRange(RangeInclusive<DocumentId>, Reply<u64>),
    /// Cells that were made.
    Cells(Option<Box<Built>>, Vec<Reply<()>>),
}

/// A write that is to be carried out, and its place in the queue, which is free when it has been.
type Queued = (Write, Option<OwnedSemaphorePermit>);

/// Drives the engine.
///
/// The engine comes last: what reads from it beside the writer has ended when it is dropped, and so has every sync.
pub(super) struct Writer<S: Storage> {
    pub(super) regrouping: Option<Regrouping>,
    /// Codes being made of what an open found in no cell.
    pub(super) coding: Option<Background<Coded>>,
    pub(super) checking: Option<Checking>,
    /// Who waits for a full check that has not begun.
    pub(super) check_waiters: VecDeque<Reply<ConsistencyReport>>,
    pub(super) syncer: Syncer<S::File>,
    pub(super) flushing: Option<Flushing>,
    /// Who waits for cells that are not being made yet.
    pub(super) regroup_waiters: Vec<Reply<()>>,
    /// Who waits for a flush, and up to which write.
    pub(super) flush_waiters: Vec<(Lsn, Reply<FlushStats>)>,
    /// Writes to be carried out, in their order: more than one only while the first waits for a flush.
    writes: VecDeque<Queued>,
    /// When accepted writes are to be committed, at the latest.
    pub(super) commit_at: Option<Duration>,
    /// When they are to be flushed.
    pub(super) flush_at: Option<Duration>,
    /// Since when some accepted write is not durable.
    pub(super) undurable_since: Option<Duration>,
    /// A flush that failed is not tried again by the size of the WAL before it has this many bytes.
    pub(super) flush_above: u64,
    /// The last flush failed.
    pub(super) flush_failed: bool,
    /// The first write that waits was tried, and needs the next step of the flush under way.
    pub(super) blocked: bool,
    /// Errors of background work.
    pub(super) troubles: Troubles,
    /// What runs beside the writer was cancelled.
    pub(super) closing: bool,
    /// Who waits for the next commit.
    waiting: Vec<Answer>,
    pub(super) runtime: Arc<dyn Runtime>,
    shared: Arc<Shared<S>>,
    pub(super) engine: Engine<S>,
}

impl<S: Storage> Writer<S> {
    /// A writer for an open engine.
    pub(super) fn new(
        engine: Engine<S>,
        shared: Arc<Shared<S>>,
        syncer: Syncer<S::File>,
        runtime: Arc<dyn Runtime>,
    ) -> Self {
        Self {
            regrouping: None,
            coding: None,
            checking: None,
            check_waiters: VecDeque::new(),
            syncer,
            flushing: None,
            regroup_waiters: Vec::new(),
            flush_waiters: Vec::new(),
            writes: VecDeque::new(),
            commit_at: None,
            flush_at: None,
            undurable_since: None,
            flush_above: engine.options().flush_wal_bytes,
            flush_failed: false,
            blocked: false,
            troubles: Troubles::default(),
            closing: false,
            waiting: Vec::new(),
            runtime,
            shared,
            engine,
        }
    }

    pub(super) async fn run(mut self, mut requests: mpsc::UnboundedReceiver<Request>) {
        self.begin_coding();
        self.background();
        loop {
            let due = [self.commit_at, self.flush_at].into_iter().flatten().min();
            let timer = timer(&*self.runtime, due);
            tokio::select! {
                biased;
                synced = synced(&mut self.flushing) => self.go_on(synced),
                made = ended(self.regrouping.as_mut().map(|cells| &mut cells.job)) => self.regrouped(made),
                coded = ended(self.coding.as_mut()) => self.coded(coded),
                checked = ended(self.checking.as_mut().map(|check| &mut check.job)) => self.checked(checked),
                request = requests.recv() => {
                    let Some(request) = request else { break };
                    if let Some(reply) = self.serve_some(request, &mut requests) {
                        return self.close(reply, requests).await;
                    }
                }
                () = timer => {}
            }
            self.carry_out();
            self.settle();
            self.background();
        }
        self.let_go().await;
    }

    /// Serves what came meanwhile too, so that it shares one commit; bounded, so that timers are served under any load.
    /// Returns the reply of a request to close.
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

    /// Carries out one request, or lets it wait; returns the reply of a request to close.
    fn serve(&mut self, command: Command, slot: OwnedSemaphorePermit) -> Option<Reply<()>> {
        match command {
            Command::Add(postings, reply) => self.queue(Write::Add(postings, reply), Some(slot)),
            Command::Remove(documents, reply) => self.queue(Write::Remove(documents, reply), Some(slot)),
            Command::RemoveRange(documents, reply) => self.queue(Write::RemoveRange(documents, reply), Some(slot)),
            Command::Commit(reply) => self.waiting.push(Box::new(|done| drop(reply.send(done)))),
            Command::Flush(reply) => {
                self.settle();
                self.flush_waiters.push((self.engine.last_lsn(), reply));
                if self.flushing.is_none() {
                    self.begin_flush(false);
                }
            }
            Command::Optimize(reply) => {
                self.settle();
                self.regroup_waiters.push(reply);
                self.regroup();
            }
            Command::Stats(reply) => drop(reply.send(self.stats())),
            Command::Check(level, reply) => {
                self.settle();
                self.check(level, reply);
            }
            Command::Close(reply) => {
                self.settle();
                return Some(reply);
            }
        }
        None
    }

    /// Puts a write behind those that wait.
    pub(super) fn queue(&mut self, write: Write, slot: Option<OwnedSemaphorePermit>) {
        self.writes.push_back((write, slot));
        self.carry_out();
    }

    /// Whether cells that were made wait to be taken in.
    pub(super) fn cells_wait(&self) -> bool {
        self.writes.iter().any(|(write, _)| matches!(write, Write::Cells(..)))
    }

    /// Carries out the writes that need not wait.
    fn carry_out(&mut self) {
        while !self.blocked && !self.must_wait() {
            let Some((write, slot)) = self.writes.pop_front() else { return };
            if let Some(write) = self.attempt(write) {
                self.blocked = true;
                return self.writes.push_front((write, slot));
            }
        }
    }

    /// Whether as much came in behind the flush under way as made it begin: then writes wait for its end, so that what a
    /// flush holds back is bounded. Or whether the roots retain so much of the WAL that it would grow beyond its share.
    fn must_wait(&mut self) -> bool {
        let limit = self.engine.options().flush_wal_bytes;
        let behind = self.flushing.is_some() && self.engine.wal_bytes() > self.flush_above.saturating_add(limit);
        limit > 0 && (behind || self.waits_for_wal(limit))
    }

    /// Lets the WAL go that the roots retain beyond its share, so that only the next batch comes on top; whether that is to be
    /// waited for. Two roots are retained, so it takes the flush under way and two more at most, even if nothing has changed.
    fn waits_for_wal(&mut self, limit: u64) -> bool {
        for _ in 0..=ROOTS_RETAINED {
            // If the last flush failed, the timer or more of the WAL (`flush_above`) makes the next try.
            if self.flush_failed || self.engine.wal_retained() <= limit.saturating_mul(limits::WAL_SHARES) {
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

    /// Carries out a write; gives it back if the WAL is full and only the end of the flush under way makes room.
    fn attempt(&mut self, write: Write) -> Option<Write> {
        let under_way = self.flushing.is_some();
        let waits = |error: Option<&ShardexError>| under_way && matches!(error, Some(ShardexError::FlushInProgress));
        match write {
            Write::Add(postings, reply) => {
                let done = self.may_accept().and_then(|()| self.engine.add(&postings));
                if waits(done.as_ref().err()) {
                    return Some(Write::Add(postings, reply));
                }
                self.written(done.map(drop), Box::new(|done| drop(reply.send(done))));
            }
            Write::Remove(documents, reply) => {
                let done = self.may_accept().and_then(|()| self.engine.remove(&documents));
                if waits(done.as_ref().err()) {
                    return Some(Write::Remove(documents, reply));
                }
                self.removed(done, reply);
            }
            Write::RemoveRange(documents, reply) => {
                let done = self.may_accept().and_then(|()| self.engine.remove_range(&documents));
                if waits(done.as_ref().err()) {
                    return Some(Write::RemoveRange(documents, reply));
                }
                self.removed(done, reply);
            }
            Write::Cells(built, waiters) => {
                let done = self.engine.regrouped(built.as_deref().cloned());
                if waits(done.as_ref().err()) {
                    return Some(Write::Cells(built, waiters));
                }
                self.publish();
                self.cells_taken(&done, waiters);
            }
        }
        None
    }

    /// Answers a removal, or lets it wait for its commit.
    fn removed(&mut self, done: Result<(Lsn, u64)>, reply: Reply<u64>) {
        let removed = done.as_ref().map_or(0, |&(_, removed)| removed);
        self.written(done.map(drop), Box::new(move |done| drop(reply.send(done.map(|()| removed)))));
    }

    /// Answers a write, or lets it wait for the commit that makes it durable.
    fn written(&mut self, done: Result<()>, answer: Answer) {
        self.publish();
        if done.is_ok() && self.engine.has_uncommitted() {
            self.undurable_since.get_or_insert_with(|| self.runtime.now());
        }
        match done {
            Ok(()) if self.engine.options().durability == Durability::Immediate => self.waiting.push(answer),
            done => answer(done),
        }
        self.flush_if_full();
    }

    /// Commits for all who wait.
    fn settle(&mut self) {
        if self.waiting.is_empty() {
            return;
        }
        let done = self.commit();
        self.publish();
        self.waiting.drain(..).for_each(|answer| answer(done.clone()));
    }

    /// Makes everything accepted durable.
    pub(super) fn commit(&mut self) -> Result<()> {
        let done = self.engine.commit().map(drop);
        self.note_durable();
        done
    }

    pub(super) fn publish(&self) {
        self.shared.view.store(Some(View::of(&self.engine)));
    }

    /// Finishes the flush under way and every write that waits, and stops what runs beside the writer. What a build of
    /// cells has reached is taken in.
    async fn finish(&mut self) {
        self.closing = true;
        self.regrouping.iter().for_each(|cells| cells.job.cancel());
        self.checking.iter().for_each(|check| check.job.cancel());
        self.check_waiters.drain(..).for_each(|reply| drop(reply.send(Err(ShardexError::Closed))));
        self.regroup_waiters.drain(..).for_each(|reply| drop(reply.send(Err(ShardexError::Closed))));
        self.coding = None;
        self.carry_out_all().await;
        self.settle();
        if let Some(cells) = &mut self.regrouping {
            let made = cells.job.ended().await;
            self.regrouped(made);
        }
        if let Some(check) = &mut self.checking {
            let checked = check.job.ended().await;
            self.checked(checked);
        }
        // Cells may have been queued, behind a flush that has begun since.
        self.carry_out_all().await;
    }

    /// Carries out every write that waits, and finishes every flush that is under way for it.
    async fn carry_out_all(&mut self) {
        self.carry_out();
        while self.flushing.is_some() {
            let synced = synced(&mut self.flushing).await;
            self.go_on(synced);
            self.carry_out();
        }
    }

    /// Lets the index go, for nobody holds a handle any more.
    async fn let_go(mut self) {
        let manual = self.engine.options().durability == Durability::Manual;
        let cells = self.regrouping.is_some() && !manual;
        if cells || !self.writes.is_empty() {
            self.finish().await;
        } else if self.flushing.is_some() {
            // It is given up, but its sync must end before somebody else may open the index.
            drop(synced(&mut self.flushing).await);
        }
        if !manual {
            // Best effort: nobody is left to tell, and nothing of it was acknowledged.
            drop(self.engine.commit());
        }
        if cells && self.engine.has_unflushed() {
            // Only a root keeps what a build of cells has reached.
            drop(self.engine.flush());
        }
    }

    /// Closes the engine and refuses what is still queued.
    async fn close(mut self, reply: Reply<()>, requests: mpsc::UnboundedReceiver<Request>) {
        self.finish().await;
        let done = self.engine.close();
        self.shared.closed.store(true, std::sync::atomic::Ordering::Release);
        self.shared.view.store(None);
        drop(requests);
        // The lock is released before the answer, so that an open right after it succeeds.
        drop(self);
        drop(reply.send(done));
    }
}
