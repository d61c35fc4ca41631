//! Flushes of the writer: started, continued after each sync, and answered.

use super::{running::RunningFlush, writer::Writer};
use crate::{
    engine::{
        FlushStep,
        stats::{BackgroundWork, FlushStats},
    },
    error::Result,
    observe::Trace,
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
        self.start_flush(false, automatic);
    }

    /// Starts a flush that stores a root even if nothing has changed. The caller ensures that no flush is under way.
    pub(super) fn force_flush(&mut self) {
        self.start_flush(true, true);
    }

    fn start_flush(&mut self, force: bool, automatic: bool) {
        let trace = self.observer.flush(automatic);
        let step = trace.stage("store").within(|| self.engine.flush_begin(force));
        self.take_step(step, trace, automatic);
    }

    /// Continues the flush under way after its sync has ended with `synced`.
    pub(super) fn go_on(&mut self, synced: Result<()>) {
        let Some(flushing) = self.flushing.take() else { return };
        let RunningFlush { trace, stage, automatic, .. } = flushing;
        stage.end(&synced);
        let step = trace.stage("continue").within(|| self.engine.flush_synced(synced));
        self.take_step(step, trace, automatic);
    }

    /// Runs the steps of a flush up to its end, or up to a sync that runs on the syncer's thread. The sync of the WAL
    /// runs here, so that it never overlaps a commit (R8).
    fn take_step(&mut self, mut step: Result<FlushStep<S::File>>, trace: Trace, automatic: bool) {
        self.blocked = false;
        let done = loop {
            match step {
                Ok(FlushStep::SyncLog(job)) => {
                    let synced = trace.stage(job.purpose().0).within(|| job.run());
                    step = trace.stage("continue").within(|| self.engine.flush_synced(synced));
                }
                Ok(FlushStep::Sync(job)) => {
                    let stage = trace.stage(job.purpose().0);
                    let synced = self.syncer.run(job);
                    self.flushing = Some(RunningFlush { synced, automatic, trace, stage });
                    return;
                }
                Ok(FlushStep::Done(stats)) => {
                    trace.flushed(&stats);
                    break Ok(*stats);
                }
                Err(error) => break Err(error),
            }
        };
        trace.end(&done);
        self.publish();
        self.observe_flushes();
        self.flushed(done, automatic);
    }

    /// Tells the observer about flushes that have ended since the last call. The engine flushes by itself, too, before
    /// the first write and if the WAL is full.
    pub(super) fn observe_flushes(&mut self) {
        let (flushes, totals, last) = self.engine.flushes();
        let (known, before) = self.observed_flushes;
        let Some(last) = last.filter(|_| flushes > known) else { return };
        // Of several flushes only the last is known in detail, and of the others their sum.
        let others = flushes - known - 1;
        if let Some(mean) =
            totals.total_duration.saturating_sub(before + last.total_duration).checked_div(others as u32)
        {
            let total_duration = mean;
            (0..others).for_each(|_| self.observer.flushed(&FlushStats { total_duration, ..FlushStats::default() }));
        }
        self.observer.flushed(last);
        self.stats_writer.last_flush_unix_ms = Some(self.observer.unix_ms());
        self.observed_flushes = (flushes, totals.total_duration);
    }

    /// Ends a flush: answers the waiters whose writes it covers, and starts the next flush for the others.
    fn flushed(&mut self, done: Result<FlushStats>, automatic: bool) {
        if std::mem::take(&mut self.twin)
            && let Err(error) = &done
        {
            // Nothing waited for this flush, so its failure is none of the flushes.
            self.note_space_failure(error);
            let waiters = std::mem::take(&mut self.flush_waiters);
            return waiters.into_iter().for_each(|(_, reply)| reply.send(Err(error.clone())));
        }
        self.put_trim_off();
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
                self.release_excess();
                self.bound_cell_build();
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
