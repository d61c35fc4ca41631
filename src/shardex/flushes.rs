//! The flushes of the writer: begun, gone on with after each sync, answered.

use std::future::pending;

use tokio::sync::oneshot;

use super::writer::Writer;
use crate::{
    engine::{
        FlushStep,
        stats::{BackgroundWork, FlushStats},
    },
    error::{Result, ShardexError},
    storage::Storage,
};

/// A flush under way.
pub(super) struct Flushing {
    /// Hears of the end of the sync that it waits for.
    synced: oneshot::Receiver<Result<()>>,
    /// Nobody asked for it.
    automatic: bool,
}

/// The end of the sync that a flush waits for; never, if there is none.
pub(super) async fn synced(flushing: &mut Option<Flushing>) -> Result<()> {
    let Some(flushing) = flushing else { return pending().await };
    // Like a sync that failed: nobody knows what it did.
    let died = || ShardexError::io("sync", "the index", std::io::Error::other("the syncing thread has died"));
    (&mut flushing.synced).await.unwrap_or_else(|_| Err(died()))
}

impl<S: Storage> Writer<S> {
    /// A flush that the size of the WAL asks for.
    pub(super) fn flush_if_full(&mut self) {
        let full = self.engine.options().flush_wal_bytes > 0 && self.engine.wal_bytes() > self.flush_above;
        if full && self.flushing.is_none() {
            self.begin_flush(true);
        }
    }

    /// Begins a flush; none is under way.
    pub(super) fn begin_flush(&mut self, automatic: bool) {
        self.flush_at = None;
        let step = self.engine.flush_begin(false);
        self.take_step(step, automatic);
    }

    /// Begins a flush that stores a root even if nothing has changed; none is under way.
    pub(super) fn force_flush(&mut self) {
        let step = self.engine.flush_begin(true);
        self.take_step(step, true);
    }

    /// Goes on with the flush under way, whose sync has ended.
    pub(super) fn go_on(&mut self, synced: Result<()>) {
        let Some(flushing) = self.flushing.take() else { return };
        let step = self.engine.flush_synced(synced);
        self.take_step(step, flushing.automatic);
    }

    /// Does what a flush asks for next, to its end or to a sync that is waited for elsewhere.
    fn take_step(&mut self, mut step: Result<FlushStep<S::File>>, automatic: bool) {
        self.blocked = false;
        let done = loop {
            match step {
                Ok(FlushStep::SyncLog(job)) => step = self.engine.flush_synced(job.run()),
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
        // One that the size of the WAL asks for and that fails waits for some more of it; the timer tries again, too.
        let wal = self.engine.wal_bytes();
        self.flush_failed = done.is_err();
        self.flush_above = if done.is_err() && wal > limit { wal + limit / 8 } else { limit };
        self.note_durable();
        let waiters = std::mem::take(&mut self.flush_waiters);
        match done {
            Ok(stats) => {
                self.troubles.over(BackgroundWork::Flush);
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
                // Whoever asked for it: one that the size of the WAL asks for is due all the same.
                if automatic || (limit > 0 && self.engine.wal_bytes() > limit) {
                    self.trouble(BackgroundWork::Flush, &error);
                }
                waiters.into_iter().for_each(|(_, reply)| drop(reply.send(Err(error.clone()))));
            }
        }
    }
}
