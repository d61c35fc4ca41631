//! Runs a case and judges the result.

use std::{
    collections::VecDeque,
    panic::{AssertUnwindSafe, catch_unwind},
};

use rand::{SeedableRng as _, rngs::ChaCha8Rng};
use shardex::{CheckLevel, Component, Engine, Finding, env::Env, failpoint, storage::Storage as _};

use super::{Case, CaseVerdict, Crash, Event, Survivors};
use crate::{
    explorer::roots,
    hook::{HookAction, HookStorage},
    mutant::MutantStorage,
    oracle,
    pool::panic_text,
    storage::{CrashKind, Fault, Op, SimStorage, Stop},
    watch::{Watch, WatchedStorage},
    workload::{self, Runner, Step},
};

/// Storage that the engine gets: the monitored disk with hooks and mutants.
pub(super) type Rig = MutantStorage<HookStorage<WatchedStorage>>;

/// Builds the storage with a guard that panics when a store would overwrite the only readable root (R3).
pub(super) fn rig(sim: &SimStorage, watch: &Watch) -> Rig {
    let disk = sim.clone();
    let watched = WatchedStorage::new(sim.clone(), watch.clone());
    MutantStorage::new(HookStorage::new(watched, move |operation| {
        if operation.op == Op::Store && operation.file == "root" {
            let slot = operation.offset as usize / disk.page_size();
            // The other root may have rotted since the open, which no read detects before the next open. Or that open
            // read stale bytes.
            let c = disk.counters();
            let doubt = c.rotten_bits + c.stale_reads + c.lying_syncs + c.misdirected_syncs > 0;
            assert!(doubt || roots(&disk)[1 - slot].is_some(), "R3: `{operation}` is over the only root");
        }
        HookAction::Proceed
    }))
}

/// Early end of a case.
pub(super) enum End {
    Broken(String),
    Detected(String),
}

pub(super) fn broken(what: impl Into<String>) -> End {
    End::Broken(what.into())
}

pub(super) struct CaseRun<'a> {
    pub(super) case: &'a Case,
    pub(super) sim: SimStorage,
    pub(super) env: Env,
    pub(super) runner: Runner<Rig>,
    pub(super) rig: Rig,
    /// Monitor of the storage protocol.
    pub(super) watch: Watch,
    /// Planned crashes, in the order of their faults.
    pub(super) crashes: VecDeque<Crash>,
    /// Contents of the root slots before their last change.
    pub(super) root_before: [Vec<u8>; 2],
    pub(super) root_now: [Vec<u8>; 2],
    /// Number of durable batches before the last acknowledgement. Damage to the last commit group may lose later ones
    /// (P4).
    pub(super) before_last_group: usize,
    /// Whether the index was closed or reopened and not written to since.
    pub(super) closed: bool,
    /// Whether the files may hold damage that no full check has covered since.
    pub(super) damaged: bool,
    /// Number of stale reads and rotten bits that happened before the last clean full check.
    pub(super) cleared: u64,
    /// Whether the last file truncated since the last full check was the WAL.
    pub(super) cut_wal: bool,
    /// Damage that the open must detect: it must refuse, or count the older root as unreadable.
    pub(super) must_be_found: Option<&'static str>,
    /// Whether the open must refuse the files: a later version wrote a frame that the recovery reads.
    pub(super) must_refuse: bool,
    /// Whether an open may have found no room, so that the engine only reads.
    pub(super) read_only: bool,
    /// Whether a purge has ended, and no medium has brought back older bytes since.
    pub(super) erased: bool,
    /// Bytes that a purge should have erased, found after a crash.
    pub(super) left: Option<String>,
    pub(super) rng: ChaCha8Rng,
    pub(super) verdict: CaseVerdict,
}

impl Case {
    /// Runs the case. The result is deterministic.
    #[must_use]
    pub fn run(&self) -> CaseVerdict {
        let sim = SimStorage::new(self.workload.page_size, self.workload.sector_size, self.seed);
        sim.keep_history();
        sim.set_garbage(self.garbage);
        sim.set_trace(true);
        let env = Env { clock: sim.clock(), ..workload::env() };
        let _ = failpoint::mutants::take_reached();
        let watch = Watch::new(&sim);
        if !self.is_honest() {
            watch.stop();
        }
        let mut runner = Runner::new(&self.workload, env.clone());
        runner.watch = Some(watch.clone());
        let mut run = CaseRun {
            case: self,
            runner,
            rig: rig(&sim, &watch),
            watch,
            sim,
            env,
            crashes: VecDeque::new(),
            root_before: Default::default(),
            root_now: Default::default(),
            before_last_group: 0,
            closed: false,
            damaged: false,
            cleared: 0,
            cut_wal: false,
            must_be_found: None,
            must_refuse: false,
            read_only: false,
            erased: false,
            left: None,
            rng: ChaCha8Rng::seed_from_u64(self.seed),
            verdict: CaseVerdict::default(),
        };
        let end = catch_unwind(AssertUnwindSafe(|| run.all()));
        run.collect_marks();
        let mut verdict = std::mem::take(&mut run.verdict);
        verdict.trace = run.sim.take_trace();
        verdict.bytes_hash = run.sim.image().fingerprint();
        run.count_faults(&mut verdict);
        match end {
            Ok(Ok(())) => {}
            Ok(Err(End::Broken(what))) => verdict.broken = Some(what),
            Ok(Err(End::Detected(what))) => verdict.detected = Some(what),
            Err(panic) => verdict.broken = Some(format!("panic: {}", panic_text(&*panic))),
        }
        // A panic may have left the engine inconsistent, so that dropping it panics again.
        let _ = catch_unwind(AssertUnwindSafe(|| drop(run)));
        verdict
    }
}

impl Case {
    /// Reports whether the medium only loses unsynced bytes. The monitor can't follow other faults.
    fn is_honest(&self) -> bool {
        let lies = |event: &Event| match event {
            Event::Do(_) => false,
            Event::Crash(crash) => crash.damage.is_some(),
            Event::Fault { fault, .. } => {
                matches!(fault, Fault::LieAtSync | Fault::Misdirect | Fault::Rot | Fault::StaleRead)
            }
        };
        !self.garbage && !self.events.iter().any(lies)
    }
}

impl CaseRun<'_> {
    pub(super) fn mark(&mut self, mark: &'static str) {
        *self.verdict.marks.entry(mark).or_default() += 1;
    }

    /// Adds the coverage marks that the engine has reached.
    pub(super) fn collect_marks(&mut self) {
        for (mark, n) in failpoint::mutants::take_reached() {
            *self.verdict.marks.entry(mark.text()).or_default() += n;
        }
    }

    pub(super) fn fired(&mut self, class: &'static str) {
        *self.verdict.faults.entry(class).or_default() += 1;
    }

    fn count_faults(&self, verdict: &mut CaseVerdict) {
        let c = self.sim.counters();
        for (class, n) in [
            ("power cut", c.power_cuts),
            ("process crash", c.process_crashes),
            ("short of space at allocate", c.refused_allocations),
            ("no space to create", c.refused_creations),
            ("failed change of entries", c.failed_entries),
            ("failed read", c.failed_reads),
            ("lying sync", c.lying_syncs),
            ("misdirected write", c.misdirected_syncs),
            ("stale read", c.stale_reads),
            ("live rot", c.rotten_bits),
            ("garbage sector", c.garbage_sectors),
            ("clock jump", c.clock_jumps),
            ("second open", c.refused_locks),
        ] {
            if n > 0 {
                *verdict.faults.entry(class).or_default() += n;
            }
        }
    }

    fn all(&mut self) -> Result<(), End> {
        let case = self.case;
        for event in &case.events {
            match event {
                Event::Do(step) => self.step(step)?,
                Event::Fault { after, fault } => self.sim.plan(*after, *fault),
                Event::Crash(crash) if crash.after == 0 => {
                    self.crash(crash);
                    self.recover(crash.damage)?;
                }
                Event::Crash(crash) => {
                    self.sim.plan(crash.after, Fault::Stop(crash.stop));
                    self.crashes.push_back(crash.clone());
                }
            }
        }
        // Remaining faults must not disturb the last check.
        self.sim.clear_plan();
        if let Some(engine) = &self.runner.engine {
            let now = self.runner.model.current(engine);
            self.honest(now.map_err(|what| format!("P2, live: {what}")))?;
        }
        self.frees_what_nobody_needs()?;
        let end = Crash {
            after: 0,
            stop: Stop::Before,
            kind: CrashKind::Process,
            survivors: Survivors::Seed(self.case.seed),
            damage: None,
        };
        self.crash(&end);
        self.recover(None)
    }

    /// Checks P6 within the life of one engine: after two more flushes, every used page is needed by a root, the
    /// working state or a reader, and once the index is trimmed, no other page takes space. Runs for every other seed, because it changes the state that the last crash meets.
    fn frees_what_nobody_needs(&mut self) -> Result<(), End> {
        let Some(engine) = &self.runner.engine else { return Ok(()) };
        let stats = engine.stats().map_err(|e| broken(e.to_string()))?;
        let works = stats.poisoned.is_none() && stats.read_only.is_none();
        if !works || self.doubt() || self.case.garbage || !self.case.seed.is_multiple_of(2) {
            return Ok(());
        }
        self.runner.readers.forget();
        for salt in 0..2 {
            self.step(&Step::Add { first: 0, count: 1, start: 0, salt })?;
            self.step(&Step::Flush)?;
        }
        let Some(engine) = &self.runner.engine else { return Ok(()) };
        let image = oracle::Image::of(&self.sim);
        oracle::agrees(&image, &image.check(), engine, false).map_err(broken)?;
        self.step(&Step::Trim { keep: 0 })?;
        let Some(engine) = &self.runner.engine else { return Ok(()) };
        oracle::is_no_larger(&self.sim, engine).map_err(broken)
    }

    /// Ends the case if `result` is an error. The promise counts as broken unless rot or another fault of the medium
    /// explains it.
    pub(super) fn honest(&mut self, result: Result<(), String>) -> Result<(), End> {
        let Err(what) = result else { return Ok(()) };
        if let Some(found) = self.runner.engine.as_ref().and_then(|engine| self.rot_found(engine)) {
            return Err(found);
        }
        // An error at the first read of damaged bytes is the required behaviour.
        Err(if self.doubt() && what.contains("P4:") { End::Detected(what) } else { broken(what) })
    }

    /// Returns the end of the case if bits have rotted in shards or cells since they were read; `None` otherwise. The
    /// case is broken if a full check misses the rot.
    pub(super) fn rot_found(&self, engine: &Engine<Rig>) -> Option<End> {
        // A stale read within the check below is no excuse, so the counters are compared before it.
        if !self.live_rot() {
            return None;
        }
        // The files decide whether there is rot. A full check of the engine must then find it.
        let files = oracle::Image::of(&self.sim).check();
        if files.is_clean() {
            return None;
        }
        // The files can't show rot below a rotten node, but the engine still holds that metadata in memory.
        let rot = files.findings.iter().find(|finding| oracle::is_lazily_read(finding));
        match engine.check(CheckLevel::Full) {
            Ok(report) => {
                let told = |finding: &Finding| matches!(finding.component, Component::Shard | Component::Cells);
                match (report.findings.iter().any(told), rot) {
                    (true, _) => Some(End::Detected(report.to_string())),
                    (false, None) => None,
                    (false, Some(rot)) => {
                        Some(broken(format!("P4: a full check does not find what the files show: {rot}")))
                    }
                }
            }
            Err(error) => Some(End::Detected(error.to_string())),
        }
    }

    /// Reports whether a read may have returned other bytes than the files hold.
    pub(super) fn reads_may_lie(&self) -> bool {
        let c = self.sim.counters();
        c.stale_reads + c.misdirected_syncs + c.lying_syncs > 0
    }

    /// Reports whether the medium may have a fault that nothing has detected yet.
    pub(super) fn doubt(&self) -> bool {
        self.damaged || self.medium_failed()
    }

    pub(super) fn medium_failed(&self) -> bool {
        let c = self.sim.counters();
        c.lying_syncs + c.misdirected_syncs > 0 || self.live_rot()
    }

    /// Reports whether bits have rotted or reads were stale since the last clean full check.
    fn live_rot(&self) -> bool {
        let c = self.sim.counters();
        c.stale_reads + c.rotten_bits > self.cleared
    }

    /// Records a clean full check: faults before it excuse nothing after it.
    pub(super) fn clear(&mut self) {
        let c = self.sim.counters();
        self.cleared = c.stale_reads + c.rotten_bits;
        self.damaged = false;
        self.cut_wal = false;
    }

    /// Forgets the contents of the root slots, because the next root file is another one.
    pub(super) fn forget_roots(&mut self) {
        self.root_before = Default::default();
        self.root_now = Default::default();
    }

    /// Records the contents of the root slots, and their contents before the last change.
    pub(super) fn note_roots(&mut self) {
        let page = self.sim.page_size();
        let bytes = self.sim.on_device("root");
        if bytes.is_empty() {
            return self.forget_roots();
        }
        let now = [0, 1].map(|slot| bytes.iter().skip(slot * page).take(page).copied().collect::<Vec<u8>>());
        for (slot, now) in now.into_iter().enumerate() {
            if self.root_now[slot] != now {
                self.root_before[slot] = std::mem::replace(&mut self.root_now[slot], now);
            }
        }
    }
}
