//! Flushes of the writer: started, continued after each sync, and answered.

use super::{running::RunningFlush, writer::Writer};
use crate::{
    engine::{
        FlushStep,
        stats::{BackgroundWork, FlushStats},
    },
    error::Result,
    storage::Storage,
};

impl<S: Storage> Writer<S> {
    /// Starts a flush if the WAL exceeds the flush threshold and no flush is under way.
    pub(super) fn flush_if_full(&mut self) {
        let full = self.engine.options().flush_wal_bytes > 0 && self.engine.wal_bytes() > self.flush_above;
        if full && self.flushing.is_none() {
            self.begin_flush(true);
        }
    }

    /// Starts a flush. The caller ensures that no flush is under way.
    pub(super) fn begin_flush(&mut self, automatic: bool) {
        self.flush_at = None;
        let step = self.engine.flush_begin(false);
        self.take_step(step, automatic);
    }

    /// Starts a flush that stores a root even if nothing has changed. The caller ensures that no flush is under way.
    pub(super) fn force_flush(&mut self) {
        let step = self.engine.flush_begin(true);
        self.take_step(step, true);
    }

    /// Continues the flush under way after its sync has ended with `synced`.
    pub(super) fn go_on(&mut self, synced: Result<()>) {
        let Some(flushing) = self.flushing.take() else { return };
        let step = self.engine.flush_synced(synced);
        self.take_step(step, flushing.automatic);
    }

    /// Runs the steps of a flush up to its end, or up to a sync that runs on the syncer's thread. The sync of the WAL
    /// runs here, so that it never overlaps a commit (R8).
    fn take_step(&mut self, mut step: Result<FlushStep<S::File>>, automatic: bool) {
        self.blocked = false;
        let done = loop {
            match step {
                Ok(FlushStep::SyncLog(job)) => step = self.engine.flush_synced(job.run()),
                Ok(FlushStep::Sync(job)) => {
                    let synced = self.syncer.run(job);
                    self.flushing = Some(RunningFlush { synced, automatic });
                    return;
                }
                Ok(FlushStep::Done(stats)) => break Ok(*stats),
                Err(error) => break Err(error),
            }
        };
        self.publish();
        self.flushed(done, automatic);
    }

    /// Ends a flush: answers the waiters whose writes it covers, and starts the next flush for the others.
    fn flushed(&mut self, done: Result<FlushStats>, automatic: bool) {
        let limit = self.engine.options().flush_wal_bytes;
        // After a failure, a flush by WAL size waits until the WAL has grown by an eighth of the threshold. The timer
        // retries too.
        let wal = self.engine.wal_bytes();
        self.flush_failed = done.is_err();
        self.flush_above = if done.is_err() && wal > limit { wal + limit / 8 } else { limit };
        self.note_durable();
        let waiters = std::mem::take(&mut self.flush_waiters);
        match done {
            Ok(stats) => {
                self.failures.over(BackgroundWork::Flush);
                let all = !self.engine.has_unflushed();
                for (up_to, reply) in waiters {
                    if all || up_to <= stats.checkpoint_lsn {
                        reply.send(Ok(stats.clone()))
                    } else {
                        self.flush_waiters.push((up_to, reply))
                    }
                }
                if self.flush_waiters.is_empty() { self.flush_if_full() } else { self.begin_flush(false) }
            }
            Err(error) => {
                // The failure counts as background work even if a caller requested the flush, because the WAL size
                // makes one due anyway.
                if automatic || (limit > 0 && self.engine.wal_bytes() > limit) {
                    self.note_failure(BackgroundWork::Flush, &error);
                }
                waiters.into_iter().for_each(|(_, reply)| reply.send(Err(error.clone())));
            }
        }
    }
}
