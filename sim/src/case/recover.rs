//! Crashes of a case and the recovery after each.

use super::run::{CaseRun, End, Rig, broken, rig};
use super::{Crash, Damage, Survivors};
use crate::{
    explorer::root_at_rest,
    monitor,
    mutant::next_turn,
    storage::{Counters, CrashKind, Stop},
    workload::{Step, vector},
};
use rand::{RngExt as _, SeedableRng as _, rngs::ChaCha8Rng};
use shardex::{DocumentId, Engine, Posting, ShardexError, failpoint};

/// Returns postings that no case adds.
pub(super) fn extra(dimension: usize) -> Vec<Posting> {
    vec![Posting { document_id: DocumentId(1 << 40), start: 0, length: 1, vector: vector(1, 1, dimension), tags: 0 }]
}

impl CaseRun<'_> {
    /// Crashes now, reports the crash to the monitor, and applies the damage.
    pub(super) fn crash(&mut self, crash: &Crash) {
        self.note_roots();
        self.runner.engine = None;
        self.runner.readers.forget();
        let choices = self.sim.choices(crash.kind);
        let at_rest = root_at_rest(&self.sim, crash.kind);
        let garbage = self.sim.counters().garbage_sectors;
        match &crash.survivors {
            Survivors::Seed(seed) => self.sim.crash(crash.kind, &mut ChaCha8Rng::seed_from_u64(*seed)),
            Survivors::Picks(given) => {
                let pick = |i: usize| given.get(i).copied().unwrap_or(0).min(choices[i].options - 1);
                self.sim.crash_with(crash.kind, &(0..choices.len()).map(pick).collect::<Vec<_>>());
            }
        }
        if crash.kind == CrashKind::Process && crash.after > 0 && crash.stop != Stop::Before {
            // The last operation took effect without an event, so the shadow of the monitor is no longer right.
            self.watch.stop();
        } else {
            self.watch.crashed(&self.sim, crash.kind);
        }
        // Garbage may have replaced a sector that held older bytes too.
        self.damaged |= self.sim.counters().garbage_sectors > garbage;
        self.look_for_erased();
        if let Some(damage) = crash.damage {
            self.erased = false;
            self.damage(damage, at_rest);
        }
    }

    /// Opens the index and judges it. Crashes, failed syncs and refused operations lead to another attempt, of 20 at
    /// most.
    pub(super) fn recover(&mut self, damage: Option<Damage>) -> Result<(), End> {
        self.none_left()?;
        for _ in 0..20 {
            self.rig = rig(&self.sim, &self.watch);
            let before = self.sim.counters();
            let _ = self.sim.take_failures();
            self.collect_marks();
            // Each attempt has its own index id.
            self.env.new_index_id += 1;
            if self.sim.on_device("root").is_empty() {
                self.forget_roots();
            }
            next_turn();
            // A build of an older version creates the index. After a crash this build opens it.
            let old = self.case.workload.from_version.filter(|_| self.sim.on_device("root").is_empty());
            self.runner.version = old;
            let opened = crate::workload::create(self.rig.clone(), &self.case.workload.config, &self.env, old);
            next_turn();
            let now = self.sim.counters();
            if opened.is_ok() && !self.sim.stopped() {
                if self.must_refuse && !self.medium_failed() {
                    return Err(broken("P4: a frame of a later version was taken for a torn end"));
                }
                self.watch.see(&monitor::Event::Opened);
            }
            if self.sim.stopped() {
                drop(opened);
                self.fired("crash in a recovery");
                let Some(crash) = self.crashes.pop_front() else { return Err(broken("stopped unasked in a recovery")) };
                // The recovery may have found and repaired the damage before the crash.
                self.must_be_found = None;
                // Only one root slot may rot, so this crash adds no damage.
                self.crash(&Crash { damage: None, ..crash });
                continue;
            }
            if now.failed_syncs > before.failed_syncs {
                self.refused_to_open(opened.map(drop))?;
                self.fired("failed sync");
                if now.failed_parent_syncs == 0 && self.rng.random_bool(0.3) {
                    continue;
                }
                let kind = if self.rng.random() { CrashKind::Process } else { CrashKind::Power };
                let survivors = Survivors::Seed(self.rng.random());
                self.crash(&Crash { after: 0, stop: Stop::Before, kind, survivors, damage: None });
                continue;
            }
            let refusals = |c: &Counters| {
                c.failed_stores + c.refused_allocations + c.refused_creations + c.failed_entries + c.failed_reads
            };
            if refusals(&now) > refusals(&before) {
                match opened {
                    Ok(mut engine) => self.reads_only(&mut engine)?,
                    Err(error) => self.refused_to_open(Err(error))?,
                }
                continue;
            }
            return self.judge(opened, damage);
        }
        Err(broken("P1: it never opens"))
    }

    /// Checks that an open in which an operation failed returns the error of that operation.
    pub(super) fn refused_to_open(&mut self, opened: Result<(), ShardexError>) -> Result<(), End> {
        let failures = self.sim.take_failures();
        match opened {
            Err(_) if self.doubt() => Ok(()),
            Err(error) => self.told_of(&Step::Reopen, &error, &failures),
            Ok(()) => Err(broken(format!("P5: {failures:?} failed in an open, which returned Ok"))),
        }
    }

    /// Checks that an engine that opened without room refuses writes.
    pub(super) fn reads_only(&mut self, engine: &mut Engine<Rig>) -> Result<(), End> {
        // Growth by a single chunk may have succeeded.
        let grew = failpoint::mutants::reached(failpoint::Mark::GrewByOne);
        let refused = engine.add(&extra(self.case.workload.config.vector_size));
        match refused {
            Ok(_) if grew => Ok(()),
            // A planned crash stopped this call. The next attempt handles it.
            Err(_) if self.sim.stopped() => Ok(()),
            Err(error) if error.is_out_of_space() || self.doubt() => Ok(()),
            other => Err(broken(format!("an open that found no room takes a write: {other:?}"))),
        }
    }
}
