//! Steps of a case and the checks after each.

use super::recover::extra;
use super::run::{CaseRun, End, broken};
use super::{Crash, Survivors};
use crate::{
    explorer::not_erased,
    model,
    storage::{Counters, CrashKind, Stop},
    workload::Step,
};
use rand::RngExt as _;
use shardex::{DocumentId, ShardexError, storage::Storage as _};

impl CaseRun<'_> {
    pub(super) fn step(&mut self, step: &Step) -> Result<(), End> {
        if self.runner.engine.is_none() {
            self.recover(None)?;
        }
        let durable = self.runner.model.durable();
        for _ in 0..20 {
            let before = self.sim.counters();
            let _ = self.sim.take_failures();
            let done = self.runner.step(&self.rig, step);
            self.note_roots();
            match done {
                Ok(()) => {
                    self.succeeded(step, &before)?;
                    if self.runner.model.durable() > durable {
                        self.before_last_group = durable;
                    }
                    return if matches!(step, Step::Reopen) { self.reopened() } else { self.look(step) };
                }
                Err(error) if self.sim.stopped() => return self.stopped(&error),
                Err(error) => self.refused(step, &error, &before)?,
            }
            if self.runner.engine.is_none() {
                // The open within the step was refused, or the engine was dropped.
                self.recover(None)?;
            }
            if matches!(step, Step::SecondOpen) {
                return Ok(());
            }
        }
        Err(broken("the same call never succeeds, though nothing goes wrong any more"))
    }

    /// Looks in the files for bytes that a purge has erased. A medium that lies or rots may have kept them.
    pub(super) fn look_for_erased(&mut self) {
        self.erased &= !self.doubt();
        if self.erased && self.left.is_none() {
            self.left = not_erased(&self.sim, &self.runner.model.erased());
        }
    }

    /// Ends the case if purged bytes were found.
    pub(super) fn none_left(&mut self) -> Result<(), End> {
        self.left.take().map_or(Ok(()), |left| Err(broken(left)))
    }

    /// Checks a call that returned `Ok`: no failed operation in it may have been swallowed.
    pub(super) fn succeeded(&mut self, step: &Step, before: &Counters) -> Result<(), End> {
        let now = self.sim.counters();
        if now.failed_syncs > before.failed_syncs {
            return Err(broken(format!("P5: a sync failed, and {step} returned Ok")));
        }
        let short = now.refused_allocations > before.refused_allocations;
        let failed = now.failed_stores + now.refused_creations + now.failed_entries
            > before.failed_stores + before.refused_creations + before.failed_entries;
        self.closed = matches!(step, Step::Close | Step::Reopen) || (self.closed && *step == Step::Read);
        self.read_only = short || failed;
        // Failed allocations are no breach here, because growth may succeed with one chunk. An open without room still
        // serves reads.
        if failed && !matches!(step, Step::Reopen | Step::SecondOpen) {
            return Err(broken(format!("the disk refused something, and {step} returned Ok")));
        }
        Ok(())
    }

    /// Judges the engine after a clean close and an open.
    pub(super) fn reopened(&mut self) -> Result<(), End> {
        let Some(engine) = self.runner.engine.take() else { return Ok(()) };
        if std::mem::take(&mut self.read_only) {
            // The open found no room for the records to replay and serves only reads.
            drop(engine);
            self.recover(None)?;
        } else {
            self.judge(Ok(engine), None)?;
        }
        self.closed = true;
        self.look(&Step::Reopen)
    }

    /// Crashes and recovers after the machine stopped in a step.
    pub(super) fn stopped(&mut self, error: &ShardexError) -> Result<(), End> {
        let Some(crash) = self.crashes.pop_front() else { return Err(broken(format!("stopped unasked: {error}"))) };
        if crash.stop == Stop::Torn {
            self.fired("torn store");
        }
        self.crash(&crash);
        self.recover(crash.damage)
    }

    /// Checks a call that returned an error while the machine kept running.
    pub(super) fn refused(&mut self, step: &Step, error: &ShardexError, before: &Counters) -> Result<(), End> {
        let now = self.sim.counters();
        let failures = self.sim.take_failures();
        if now.failed_syncs > before.failed_syncs {
            let full = format!("{error:?}").contains("StorageFull");
            self.fired(if full { "full disk at a sync" } else { "failed sync" });
            self.told_of(step, error, &failures)?;
            return self.poisoned();
        }
        if self.doubt() {
            return Err(End::Detected(error.to_string()));
        }
        let store = now.failed_stores > before.failed_stores;
        if store {
            self.fired(if error.is_out_of_space() { "full disk at a store" } else { "failed store" });
        }
        self.told_of(step, error, &failures)?;
        if let Some(engine) = &self.runner.engine {
            self.runner.model.current(engine).map_err(|what| broken(format!("after `{error}`: {what}")))?;
        }
        Ok(())
    }

    /// Checks that an error names an operation that failed.
    pub(super) fn told_of(
        &self,
        step: &Step,
        error: &ShardexError,
        failures: &[(&'static str, String)],
    ) -> Result<(), End> {
        let (op, path) = match error {
            ShardexError::Io { op, path, .. } | ShardexError::OutOfSpace { op, path } => (op, path),
            _ => return Err(broken(format!("{step}: {failures:?} failed, and the error is `{error}`"))),
        };
        let is_it = |(verb, file): &(&'static str, String)| {
            let of = if file.is_empty() { self.sim.path() } else { self.sim.path().join(file) };
            verb == op && of == *path
        };
        if failures.iter().any(is_it) {
            Ok(())
        } else {
            Err(broken(format!("{step}: {failures:?} failed, and the error is `{error}`")))
        }
    }

    /// Checks the engine after a failed sync (P5), then recovers in this process, in a new one, or after a power cut.
    pub(super) fn poisoned(&mut self) -> Result<(), End> {
        let dimension = self.case.workload.config.vector_size;
        let style = self.rng.random_range(0..3);
        // A lost change of the directory's own entry can't be repeated. After a failed sync of it, only a new process
        // may continue.
        let in_process = style == 0 && self.sim.counters().failed_parent_syncs == 0;
        if let Some(engine) = &mut self.runner.engine {
            let extra = extra(dimension);
            let refused = [
                ("add", engine.add(&extra).map(drop)),
                ("remove", engine.remove(&[DocumentId(1)]).map(drop)),
                ("commit", engine.commit().map(drop)),
                ("flush", engine.flush().map(drop)),
                ("close", engine.close()),
            ];
            for (call, result) in refused {
                if !matches!(result, Err(ShardexError::Poisoned { .. })) {
                    return Err(broken(format!("P5: after a failed sync {call} returned {result:?}")));
                }
            }
            let held = model::contents(engine);
            let (flushed, accepted) = (self.runner.flushed, self.runner.model.accepted());
            let metric = engine.geometry().metric;
            let fits = |held: &model::State| {
                (flushed..=accepted).any(|n| model::same(held, &self.runner.model.state(n), metric))
            };
            match held {
                Ok(held) if fits(&held) => {}
                Ok(held) => {
                    let what = format!("P5: {} postings are served after a failed sync, no durable root's", held.len());
                    return self.honest(Err(what));
                }
                Err(what) => return self.honest(Err(what)),
            }
        }
        if in_process {
            self.runner.drop_engine(&self.rig).map_err(|error| broken(error.to_string()))?;
            self.mark("an index was opened again after a failed sync");
            return self.recover(None);
        }
        let kind = if style == 1 { CrashKind::Process } else { CrashKind::Power };
        let seed = self.rng.random();
        self.crash(&Crash { after: 0, stop: Stop::Before, kind, survivors: Survivors::Seed(seed), damage: None });
        self.recover(None)
    }

    /// Checks the statistics after a step that succeeded: a flush may issue at most three barriers.
    pub(super) fn look(&mut self, step: &Step) -> Result<(), End> {
        let Some(engine) = &self.runner.engine else { return Ok(()) };
        let stats = engine.stats().map_err(|e| broken(e.to_string()))?;
        let barriers = stats.last_flush.as_ref().map_or(0, |flush| flush.barriers);
        if matches!(step, Step::SlowFlush { .. } | Step::OverlappedFlush { .. }) {
            self.mark("writes went on inside a flush");
        }
        if *step == Step::Backup && !self.runner.readers.is_backing_up() {
            self.mark("a backup was restored");
        }
        if *step == Step::Purge {
            self.erased = self.runner.version.is_none() && stats.held_by_readers_bytes == 0 && !self.doubt();
            self.look_for_erased();
            self.none_left()?;
        }
        if barriers > 3 {
            return Err(broken(format!("a flush issued {barriers} barriers")));
        }
        Ok(())
    }
}
