//! The writer: carries out requests in the order in which they come, shares commits, and drives flushes step by step, so
//! that writes go on while a flush waits for its syncs.
//!
//! Invariants:
//! 1. At most one flush is under way, and at most one sync of it.
//! 2. The WAL is synced by the writer alone, so one sync of it is under way at most (R8).
//! 3. A flush is answered when everything accepted before it was asked for is durable in the shards.

use std::{future::pending, sync::Arc, time::Duration};

use tokio::{
    sync::{mpsc, oneshot},
    time::{Instant, sleep_until},
};

use super::{
    Command, Reply, Shared, View,
    threads::{Background, Syncer},
};
use crate::{
    cells::Built,
    config::Durability,
    engine::{B1, Engine, FlushStep, stats::FlushStats},
    error::{Result, ShardexError},
    id::Lsn,
    index::Coded,
    limits,
    storage::Storage,
};

/// Answers a caller that waits for its write to be durable.
type Answer = Box<dyn FnOnce(Result<()>) + Send>;

/// A flush under way.
struct Flushing {
    /// Hears of the end of the sync that it waits for.
    synced: oneshot::Receiver<Result<()>>,
    /// Nobody asked for it.
    automatic: bool,
}

/// Cells being made.
struct Regrouping {
    made: oneshot::Receiver<Result<Option<Built>>>,
    /// Who is answered when they are.
    waiters: Vec<Reply<()>>,
    _thread: Background,
}

/// Codes being made of what an open found in no cell.
struct Coding {
    made: oneshot::Receiver<Result<Coded>>,
    _thread: Background,
}

/// Drives the engine.
pub(super) struct Writer<S: Storage> {
    engine: Engine<S>,
    shared: Arc<Shared<S>>,
    syncer: Syncer<S::File>,
    flushing: Option<Flushing>,
    regrouping: Option<Regrouping>,
    coding: Option<Coding>,
    /// Who waits for cells that are not being made yet.
    regroup_waiters: Vec<Reply<()>>,
    /// Who waits for a flush, and up to which write.
    flush_waiters: Vec<(Lsn, Reply<FlushStats>)>,
    /// When accepted writes are to be committed, at the latest.
    commit_at: Option<Instant>,
    /// When they are to be flushed.
    flush_at: Option<Instant>,
    /// A flush that failed is not tried again before the WAL has this many bytes.
    flush_above: u64,
    /// An error of background work that nobody was told yet.
    untold: Option<ShardexError>,
    /// Who waits for the next commit.
    waiting: Vec<Answer>,
}

impl<S: Storage> Writer<S> {
    /// A writer for an open engine.
    ///
    /// # Errors
    /// `Io` if its syncing thread cannot be started.
    pub(super) fn new(engine: Engine<S>, shared: Arc<Shared<S>>) -> Result<Self> {
        let flush_above = engine.options().flush_wal_bytes;
        Ok(Self {
            engine,
            shared,
            syncer: Syncer::start()?,
            flushing: None,
            regrouping: None,
            coding: None,
            regroup_waiters: Vec::new(),
            flush_waiters: Vec::new(),
            commit_at: None,
            flush_at: None,
            flush_above,
            untold: None,
            waiting: Vec::new(),
        })
    }

    pub(super) async fn run(mut self, mut requests: mpsc::Receiver<Command>) {
        self.code_fresh();
        loop {
            let due = [self.commit_at, self.flush_at].into_iter().flatten().min();
            let command = tokio::select! {
                biased;
                synced = synced(&mut self.flushing) => {
                    self.go_on(synced);
                    self.background();
                    continue;
                }
                made = made(&mut self.regrouping) => {
                    self.regrouped(made).await;
                    self.background();
                    continue;
                }
                coded = coded(&mut self.coding) => {
                    self.coding = None;
                    match coded {
                        Ok(coded) => {
                            self.engine.coded(&coded);
                            // Other cells may have come meanwhile.
                            self.code_fresh();
                        }
                        // Whoever reads what is damaged is told; until then its vectors are scanned.
                        Err(_) => self.engine.note_error(),
                    }
                    self.publish();
                    continue;
                }
                command = requests.recv() => command,
                () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => {
                    self.background();
                    continue;
                }
            };
            let Some(command) = command else { break };
            if let Some(reply) = self.serve(command).await {
                return self.close(reply, requests).await;
            }
            // All that came meanwhile shares one commit; bounded, so that timers are served under any load.
            for _ in 0..self.engine.options().queue_size {
                let Ok(command) = requests.try_recv() else { break };
                if let Some(reply) = self.serve(command).await {
                    return self.close(reply, requests).await;
                }
            }
            self.settle();
            self.background();
        }
        if self.flushing.is_some() {
            // It is given up, but its sync must end before somebody else may open the index.
            drop(synced(&mut self.flushing).await);
        }
        if self.engine.options().durability != Durability::Manual {
            // Best effort: nobody is left to tell, and nothing of it was acknowledged.
            drop(self.engine.commit());
        }
        // What is being made is given up, but whoever makes it reads until it ends.
        (self.regrouping, self.coding) = (None, None);
    }

    /// Carries out one request; returns the reply of a request to close.
    async fn serve(&mut self, command: Command) -> Option<Reply<()>> {
        match command {
            Command::Add(postings, reply) => {
                let done = match self.told() {
                    Ok(()) => self.write(|engine| engine.add(&postings)).await.map(|_| ()),
                    Err(error) => Err(error),
                };
                self.written(done, Box::new(|done| drop(reply.send(done))));
            }
            Command::Remove(documents, reply) => {
                let removed = match self.told() {
                    Ok(()) => self.write(|engine| engine.remove(&documents)).await,
                    Err(error) => Err(error),
                };
                self.removed(removed, reply);
            }
            Command::RemoveRange(documents, reply) => {
                let removed = match self.told() {
                    Ok(()) => self.write(|engine| engine.remove_range(&documents)).await,
                    Err(error) => Err(error),
                };
                self.removed(removed, reply);
            }
            Command::Commit(reply) => match self.told() {
                Ok(()) => self.waiting.push(Box::new(|done| drop(reply.send(done)))),
                Err(error) => drop(reply.send(Err(error))),
            },
            Command::Flush(reply) => {
                self.settle();
                match self.told() {
                    Ok(()) => {
                        self.flush_waiters.push((self.engine.last_lsn(), reply));
                        if self.flushing.is_none() {
                            self.begin_flush(false);
                        }
                    }
                    Err(error) => drop(reply.send(Err(error))),
                }
            }
            Command::Optimize(reply) => {
                self.settle();
                match self.told() {
                    Ok(()) => {
                        self.regroup_waiters.push(reply);
                        self.regroup();
                    }
                    Err(error) => drop(reply.send(Err(error))),
                }
            }
            Command::Stats(reply) => drop(reply.send(self.engine.stats())),
            Command::Check(level, reply) => drop(reply.send(self.engine.check(level))),
            Command::Close(reply) => {
                self.settle();
                return Some(reply);
            }
        }
        None
    }

    /// A write. If the WAL is full and only the end of the flush under way makes room, it waits for that; and so it does once
    /// as much came in behind that flush as made it begin, so that what a flush holds back is bounded.
    async fn write<T>(&mut self, write: impl Fn(&mut Engine<S>) -> Result<T>) -> Result<T> {
        let limit = self.engine.options().flush_wal_bytes;
        while limit > 0 && self.flushing.is_some() && self.engine.wal_bytes() > self.flush_above.saturating_add(limit) {
            let synced = synced(&mut self.flushing).await;
            self.go_on(synced);
        }
        if limit > 0 {
            self.let_go(limit.saturating_mul(limits::WAL_SHARES)).await;
        }
        loop {
            match write(&mut self.engine) {
                Err(ShardexError::FlushInProgress) if self.flushing.is_some() => {
                    let synced = synced(&mut self.flushing).await;
                    self.go_on(synced);
                }
                done => return done,
            }
        }
    }

    /// Waits until the roots retain no more than `most` bytes of the WAL, so that only the batch itself comes on top: two of
    /// them are retained, so it takes the flush under way and two more at most, even if nothing else has changed.
    async fn let_go(&mut self, most: u64) {
        let limit = self.engine.options().flush_wal_bytes;
        for _ in 0..3 {
            if self.engine.wal_retained() <= most {
                return;
            }
            if self.flushing.is_none() {
                // The last one failed, and the next try comes later.
                if self.flush_above > limit && self.engine.wal_bytes() <= self.flush_above {
                    return;
                }
                let step = self.engine.flush_begin(true);
                self.take_step(step, true);
            }
            while self.flushing.is_some() {
                let synced = synced(&mut self.flushing).await;
                self.go_on(synced);
            }
        }
    }

    /// Answers a removal, or lets it wait for its commit.
    fn removed(&mut self, removed: Result<(Lsn, u64)>, reply: Reply<u64>) {
        match removed {
            Ok((_, removed)) => {
                self.written(Ok(()), Box::new(move |done| drop(reply.send(done.map(|()| removed)))));
            }
            Err(error) => drop(reply.send(Err(error))),
        }
    }

    /// Answers a write, or lets it wait for the commit that makes it durable.
    fn written(&mut self, done: Result<()>, answer: Answer) {
        self.publish();
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
        let done = self.engine.commit().map(|_| ());
        self.publish();
        self.waiting.drain(..).for_each(|answer| answer(done.clone()));
    }

    /// Hands out an error of background work, once.
    fn told(&mut self) -> Result<()> {
        self.untold.take().map_or(Ok(()), Err)
    }

    fn publish(&self) {
        self.shared.view.store(Some(View::of(&self.engine)));
    }

    /// Commits and flushes that are due by the clock, and the times of the next ones.
    fn background(&mut self) {
        let options = self.engine.options().clone();
        let now = Instant::now();
        if self.commit_at.is_some_and(|at| at <= now) {
            self.commit_at = None;
            let done = self.engine.commit().map(|_| ());
            self.note(done);
        }
        if self.flush_at.is_some_and(|at| at <= now) {
            self.flush_at = None;
            if self.flushing.is_none() {
                self.begin_flush(true);
            }
        }
        if self.regrouping.is_none() && self.engine.wants_regroup() && self.untold.is_none() {
            self.regroup();
        }
        self.publish();
        let interval = options.durability == Durability::Interval;
        match self.commit_at {
            None if interval && self.engine.has_uncommitted() && self.untold.is_none() => {
                self.commit_at = Some(now + options.commit_interval());
            }
            Some(_) if !self.engine.has_uncommitted() => self.commit_at = None,
            _ => {}
        }
        let timed = options.flush_interval_ms > 0 && self.flushing.is_none();
        match self.flush_at {
            None if timed && self.engine.has_unflushed() && self.untold.is_none() => {
                self.flush_at = Some(now + Duration::from_millis(options.flush_interval_ms));
            }
            Some(_) if !self.engine.has_unflushed() => self.flush_at = None,
            _ => {}
        }
    }

    /// Begins to make cells, if nobody does.
    fn regroup(&mut self) {
        if self.regrouping.is_some() {
            return;
        }
        let begun = self.engine.regroup_begin().and_then(|job| Background::run(move || job.run()));
        let waiters = std::mem::take(&mut self.regroup_waiters);
        match begun {
            Ok((thread, made)) => self.regrouping = Some(Regrouping { made, waiters, _thread: thread }),
            Err(error) => waiters.into_iter().for_each(|reply| drop(reply.send(Err(error.clone())))),
        }
    }

    /// Begins to make codes of what is in no cell and has none, if nobody does.
    fn code_fresh(&mut self) {
        if self.coding.is_some() {
            return;
        }
        match self.engine.fresh_begin().map(|job| Background::run(move || job.run())) {
            Some(Ok((thread, made))) => self.coding = Some(Coding { made, _thread: thread }),
            // Without it searches are slower, and right.
            Some(Err(_)) => self.engine.note_error(),
            None => {}
        }
    }

    /// Takes in cells that were made.
    async fn regrouped(&mut self, made: Result<Option<Built>>) {
        let Some(Regrouping { waiters, .. }) = self.regrouping.take() else { return };
        let done = match made {
            Ok(built) => self.write(|engine| engine.regrouped(built.clone())).await,
            Err(error) => Err(error),
        };
        self.publish();
        self.code_fresh();
        if done.is_err() {
            // Nobody's write depends on it, so nobody is refused for it who did not ask.
            self.engine.regroup_failed();
        }
        waiters.into_iter().for_each(|reply| drop(reply.send(done.clone())));
        if !self.regroup_waiters.is_empty() {
            self.regroup();
        }
    }

    /// A flush that the size of the WAL asks for.
    fn flush_if_full(&mut self) {
        let full = self.engine.options().flush_wal_bytes > 0 && self.engine.wal_bytes() > self.flush_above;
        if full && self.flushing.is_none() {
            self.begin_flush(true);
        }
    }

    /// Begins a flush; none is under way.
    fn begin_flush(&mut self, automatic: bool) {
        self.flush_at = None;
        let step = self.engine.flush_begin(false);
        self.take_step(step, automatic);
    }

    /// Goes on with the flush under way, whose sync has ended.
    fn go_on(&mut self, synced: Result<()>) {
        let Some(flushing) = self.flushing.take() else { return };
        let step = self.engine.flush_synced(synced);
        self.take_step(step, flushing.automatic);
    }

    /// Does what a flush asks for next, to its end or to a sync that is waited for elsewhere.
    fn take_step(&mut self, mut step: Result<FlushStep<S::File>>, automatic: bool) {
        let done = loop {
            match step {
                // Of the WAL there is one sync at a time, the writer's own.
                Ok(FlushStep::Sync(job)) if job.purpose() == B1 => step = self.engine.flush_synced(job.run()),
                Ok(FlushStep::Sync(job)) => {
                    let synced = self.syncer.run(job);
                    self.flushing = Some(Flushing { synced, automatic });
                    return;
                }
                Ok(FlushStep::Done(stats)) => break Ok(*stats),
                Err(error) => break Err(error),
            }
        };
        self.publish();
        self.flushed(done, automatic);
    }

    /// A flush has ended: answers those whose writes it covers, and begins the next one for the others.
    fn flushed(&mut self, done: Result<FlushStats>, automatic: bool) {
        let limit = self.engine.options().flush_wal_bytes;
        self.flush_above = if done.is_ok() { limit } else { self.engine.wal_bytes() + limit / 8 };
        let waiters = std::mem::take(&mut self.flush_waiters);
        match done {
            Ok(stats) => {
                let all = !self.engine.has_unflushed();
                for (up_to, reply) in waiters {
                    match all || up_to <= stats.checkpoint_lsn {
                        true => drop(reply.send(Ok(stats.clone()))),
                        false => self.flush_waiters.push((up_to, reply)),
                    }
                }
                match self.flush_waiters.is_empty() {
                    true => self.flush_if_full(),
                    false => self.begin_flush(false),
                }
            }
            Err(error) => {
                if automatic && waiters.is_empty() {
                    self.note(Err(error.clone()));
                }
                waiters.into_iter().for_each(|(_, reply)| drop(reply.send(Err(error.clone()))));
            }
        }
    }

    /// Keeps an error of background work until somebody can be told; the first one, for later ones follow from it.
    fn note(&mut self, done: Result<()>) {
        if let Err(error) = done {
            self.engine.note_error();
            self.untold.get_or_insert(error);
        }
    }

    /// Closes the engine and refuses what is still queued.
    async fn close(mut self, reply: Reply<()>, mut requests: mpsc::Receiver<Command>) {
        while self.flushing.is_some() {
            let synced = synced(&mut self.flushing).await;
            self.go_on(synced);
        }
        if self.regrouping.is_some() {
            // It may take long, and no timer commits meanwhile. An error is one of the close, too.
            drop(self.engine.commit());
        }
        while self.regrouping.is_some() {
            let made = made(&mut self.regrouping).await;
            self.regrouped(made).await;
        }
        // It reads until it ends, and nobody else may open the index before.
        self.coding = None;
        // Closed whatever there is to be told: accepted writes are not lost for it.
        let closed = self.engine.close();
        let done = self.told().and(closed);
        self.shared.closed.store(true, std::sync::atomic::Ordering::Release);
        self.shared.view.store(None);
        requests.close();
        // The lock is released before the answer, so that an open right after it succeeds.
        drop(self.engine);
        drop(reply.send(done));
    }
}

/// The cells that are being made; never, if nobody makes any.
async fn made(regrouping: &mut Option<Regrouping>) -> Result<Option<Built>> {
    let Some(regrouping) = regrouping else { return pending().await };
    let died = || ShardexError::io("make", "cells", std::io::Error::other("the thread has died"));
    (&mut regrouping.made).await.unwrap_or_else(|_| Err(died()))
}

/// The codes that are being made; never, if nobody makes any.
async fn coded(coding: &mut Option<Coding>) -> Result<Coded> {
    let Some(coding) = coding else { return pending().await };
    let died = || ShardexError::io("make", "codes", std::io::Error::other("the thread has died"));
    (&mut coding.made).await.unwrap_or_else(|_| Err(died()))
}

/// The end of the sync that a flush waits for; never, if there is none.
async fn synced(flushing: &mut Option<Flushing>) -> Result<()> {
    let Some(flushing) = flushing else { return pending().await };
    // Like a sync that failed: nobody knows what it did.
    let died = || ShardexError::io("sync", "the index", std::io::Error::other("the syncing thread has died"));
    (&mut flushing.synced).await.unwrap_or_else(|_| Err(died()))
}
