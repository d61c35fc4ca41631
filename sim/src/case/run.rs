//! Running a case, and judging what comes of it.

use std::{
    collections::VecDeque,
    panic::{AssertUnwindSafe, catch_unwind},
};

use rand::{RngExt as _, SeedableRng as _, rngs::ChaCha8Rng};
use shardex::{
    CheckLevel, Component, DocumentId, Engine, Finding, Posting, ShardexError, env::Env, site, storage::Storage as _,
};

use super::{Case, Crash, Damage, Event, Survivors, Verdict};
use crate::{
    explorer::{root_at_rest, roots},
    hook::{HookStorage, Verdict as Answer},
    model, monitor,
    mutant::{MutantStorage, next_turn},
    mutation::panic_text,
    oracle,
    storage::{Counters, CrashKind, Fault, Op, SimStorage, Stop},
    watch::{Watch, WatchedStorage},
    workload::{self, Runner, Step, vector},
};

/// The storage as the engine gets it.
pub(super) type Rig = MutantStorage<HookStorage<WatchedStorage>>;

/// The storage with a guard: nothing is stored over the only root that can be read (R3).
fn rig(sim: &SimStorage, watch: &Watch) -> Rig {
    let disk = sim.clone();
    let watched = WatchedStorage::new(sim.clone(), watch.clone());
    MutantStorage::new(HookStorage::new(watched, move |operation| {
        if operation.op == Op::Store && operation.file == "root" {
            let slot = operation.offset as usize / disk.page_size();
            // It may have rotten since the open, and nobody reads it before the next; or that open was told something else.
            let c = disk.counters();
            let doubt = c.rotten_bits + c.stale_reads + c.lying_syncs + c.misdirected_syncs > 0;
            assert!(doubt || roots(&disk)[1 - slot].is_some(), "R3: `{operation}` is over the only root");
        }
        Answer::Proceed
    }))
}

/// How a case ends before its end.
pub(super) enum End {
    Broken(String),
    Detected(String),
}

pub(super) fn broken(what: impl Into<String>) -> End {
    End::Broken(what.into())
}

pub(super) struct Run<'a> {
    pub(super) case: &'a Case,
    pub(super) sim: SimStorage,
    pub(super) env: Env,
    pub(super) runner: Runner<Rig>,
    rig: Rig,
    /// The monitor of the protocol.
    watch: Watch,
    /// Crashes planned, in the order of their faults.
    crashes: VecDeque<Crash>,
    /// What root slots held before their last change.
    pub(super) root_before: [Vec<u8>; 2],
    root_now: [Vec<u8>; 2],
    /// Durable batches before the last acknowledgement: what damage of the last commit group may take (P4).
    pub(super) before_last_group: usize,
    /// Closed and opened, and nothing written since.
    pub(super) closed: bool,
    /// The files may hold damage that no full check has looked for since.
    pub(super) damaged: bool,
    /// Stale reads and rotten bits that a full check, clean since, leaves no doubt about.
    cleared: u64,
    /// A WAL was cut.
    pub(super) cut_wal: bool,
    /// The damage is such that the open must refuse, or count the older root as one that cannot be read.
    pub(super) must_be_found: Option<&'static str>,
    /// An open may have found no room, so that it only reads.
    read_only: bool,
    pub(super) rng: ChaCha8Rng,
    verdict: Verdict,
}

impl Case {
    /// Runs it. Deterministic.
    #[must_use]
    pub fn run(&self) -> Verdict {
        let sim = SimStorage::new(self.workload.page_size, self.workload.sector_size, self.seed);
        sim.keep_history();
        sim.set_garbage(self.garbage);
        sim.set_trace(true);
        let env = Env { clock: sim.clock(), ..workload::env() };
        drop(site::mutants::take_reached());
        let watch = Watch::new(&sim);
        if !self.is_honest() {
            watch.stop();
        }
        let mut runner = Runner::new(&self.workload, env.clone());
        runner.watch = Some(watch.clone());
        let mut run = Run {
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
            read_only: false,
            rng: ChaCha8Rng::seed_from_u64(self.seed),
            verdict: Verdict::default(),
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
        // A panic may have left the engine in the middle of something.
        drop(catch_unwind(AssertUnwindSafe(|| drop(run))));
        verdict
    }
}

impl Case {
    /// Whether the medium does nothing that the monitor can't follow: it loses what was not synced, and no more.
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

impl Run<'_> {
    fn mark(&mut self, mark: &'static str) {
        *self.verdict.marks.entry(mark).or_default() += 1;
    }

    /// Takes over what the engine has reached.
    pub(super) fn collect_marks(&mut self) {
        for (mark, n) in site::mutants::take_reached() {
            *self.verdict.marks.entry(mark.text()).or_default() += n;
        }
    }

    pub(super) fn fired(&mut self, class: &'static str) {
        *self.verdict.faults.entry(class).or_default() += 1;
    }

    fn count_faults(&self, verdict: &mut Verdict) {
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
        // What is still planned shall not disturb the last look.
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

    /// P6 in the life of one engine: after two more flushes no page is used that neither root, nor the working state, nor a
    /// reader needs. Of every other case, for it changes what the last crash meets.
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
        oracle::agrees(&image, &image.check(), engine, false).map_err(broken)
    }

    /// A broken promise; unless a bit has rotten under what was read before, and the check says so.
    fn honest(&mut self, result: Result<(), String>) -> Result<(), End> {
        let Err(what) = result else { return Ok(()) };
        if let Some(found) = self.runner.engine.as_ref().and_then(|engine| self.rot_found(engine)) {
            return Err(found);
        }
        // An error at the first read is what is asked for.
        Err(if self.doubt() && what.contains("P4:") { End::Detected(what) } else { broken(what) })
    }

    /// Bits that have rotten since they were read, in shards or cells: an excuse for what is wrong.
    pub(super) fn rot_found(&self, engine: &Engine<Rig>) -> Option<End> {
        // What a read of the check itself is told wrongly is no excuse.
        if !self.live_rot() {
            return None;
        }
        // The files decide whether there is rot, and the engine must find it when it is asked.
        let files = oracle::Image::of(&self.sim).check();
        if files.is_clean() {
            return None;
        }
        // What is below a node that has rotten, too, the files can't tell; the engine knows it still.
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

    /// Whether a read may have returned something else than the files hold.
    pub(super) fn reads_may_lie(&self) -> bool {
        let c = self.sim.counters();
        c.stale_reads + c.misdirected_syncs + c.lying_syncs > 0
    }

    /// Whether the medium may have done anything that nobody has found yet.
    pub(super) fn doubt(&self) -> bool {
        self.damaged || self.medium_failed()
    }

    pub(super) fn medium_failed(&self) -> bool {
        let c = self.sim.counters();
        c.lying_syncs + c.misdirected_syncs > 0 || self.live_rot()
    }

    /// Whether reads may have returned something else than what was checked last.
    fn live_rot(&self) -> bool {
        let c = self.sim.counters();
        c.stale_reads + c.rotten_bits > self.cleared
    }

    /// A full check was clean: nothing from before it is an excuse for anything after it.
    pub(super) fn clear(&mut self) {
        let c = self.sim.counters();
        self.cleared = c.stale_reads + c.rotten_bits;
        self.damaged = false;
        self.cut_wal = false;
    }

    /// What comes next is another file.
    pub(super) fn forget_roots(&mut self) {
        self.root_before = Default::default();
        self.root_now = Default::default();
    }

    /// What the root's slots hold, and held.
    fn note_roots(&mut self) {
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

    fn step(&mut self, step: &Step) -> Result<(), End> {
        if self.runner.engine.is_none() {
            self.recover(None)?;
        }
        let durable = self.runner.model.durable();
        for _ in 0..20 {
            let before = self.sim.counters();
            drop(self.sim.take_failures());
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
                // The open in it was refused, or what it was done on had to be opened anew.
                self.recover(None)?;
            }
            if matches!(step, Step::SecondOpen) {
                return Ok(());
            }
        }
        Err(broken("the same call never succeeds, though nothing goes wrong any more"))
    }

    /// A call returned `Ok`: nothing that failed in it may have been swallowed.
    fn succeeded(&mut self, step: &Step, before: &Counters) -> Result<(), End> {
        let now = self.sim.counters();
        if now.failed_syncs > before.failed_syncs {
            return Err(broken(format!("P5: a sync failed, and {step} returned Ok")));
        }
        let short = now.refused_allocations > before.refused_allocations;
        let failed = now.failed_stores + now.refused_creations + now.failed_entries
            > before.failed_stores + before.refused_creations + before.failed_entries;
        self.closed = matches!(step, Step::Close | Step::Reopen) || (self.closed && *step == Step::Read);
        self.read_only = short || failed;
        // An open without room reads; growth may make do with less.
        if failed && !matches!(step, Step::Reopen | Step::SecondOpen) {
            return Err(broken(format!("the disk refused something, and {step} returned Ok")));
        }
        Ok(())
    }

    /// After a clean close and an open.
    fn reopened(&mut self) -> Result<(), End> {
        let Some(engine) = self.runner.engine.take() else { return Ok(()) };
        if std::mem::take(&mut self.read_only) {
            // It found no room for what it had to replay, and serves what it could.
            drop(engine);
            self.recover(None)?;
        } else {
            self.judge(Ok(engine), None)?;
        }
        self.closed = true;
        self.look(&Step::Reopen)
    }

    /// The machine stopped in a step.
    fn stopped(&mut self, error: &ShardexError) -> Result<(), End> {
        let Some(crash) = self.crashes.pop_front() else { return Err(broken(format!("stopped unasked: {error}"))) };
        if crash.stop == Stop::Torn {
            self.fired("torn store");
        }
        self.crash(&crash);
        self.recover(crash.damage)
    }

    /// A call returned an error, and the machine runs on.
    fn refused(&mut self, step: &Step, error: &ShardexError, before: &Counters) -> Result<(), End> {
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

    /// An error is that of an operation that failed.
    fn told_of(&self, step: &Step, error: &ShardexError, failures: &[(&'static str, String)]) -> Result<(), End> {
        let (op, path) = match error {
            ShardexError::Io { op, path, .. } | ShardexError::OutOfSpace { op, path } => (op, path),
            _ => return Err(broken(format!("{step}: {failures:?} failed, and the error is `{error}`"))),
        };
        let is_it = |(verb, file): &(&'static str, String)| {
            let of = if file.is_empty() { self.sim.path() } else { self.sim.path().join(file) };
            verb == op && of == *path
        };
        match failures.iter().any(is_it) {
            true => Ok(()),
            false => Err(broken(format!("{step}: {failures:?} failed, and the error is `{error}`"))),
        }
    }

    /// P5: a sync has failed.
    fn poisoned(&mut self) -> Result<(), End> {
        let dimension = self.case.workload.config.vector_size;
        let style = self.rng.random_range(0..3);
        // The directory's own entry cannot be made anew: after its sync has failed only a new process may go on.
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

    /// After a step that succeeded.
    fn look(&mut self, step: &Step) -> Result<(), End> {
        let Some(engine) = &self.runner.engine else { return Ok(()) };
        let stats = engine.stats().map_err(|e| broken(e.to_string()))?;
        let barriers = stats.last_flush.as_ref().map_or(0, |flush| flush.barriers);
        if matches!(step, Step::SlowFlush { .. } | Step::OverlappedFlush { .. }) {
            self.mark("writes went on inside a flush");
        }
        if barriers > 3 {
            return Err(broken(format!("a flush issued {barriers} barriers")));
        }
        Ok(())
    }

    /// Crashes now.
    fn crash(&mut self, crash: &Crash) {
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
            // The operation at which the machine stopped was done, and nobody has told the monitor.
            self.watch.stop();
        } else {
            self.watch.crashed(&self.sim, crash.kind);
        }
        // A sector may have been torn apart that held older bytes, too.
        self.damaged |= self.sim.counters().garbage_sectors > garbage;
        if let Some(damage) = crash.damage {
            self.damage(damage, at_rest);
        }
    }

    /// Opens what is there, checks it in full, and goes on from it.
    fn recover(&mut self, damage: Option<Damage>) -> Result<(), End> {
        for _ in 0..20 {
            self.rig = rig(&self.sim, &self.watch);
            let before = self.sim.counters();
            drop(self.sim.take_failures());
            self.collect_marks();
            // No two indexes have the same.
            self.env.new_index_id += 1;
            if self.sim.on_device("root").is_empty() {
                self.forget_roots();
            }
            next_turn();
            let opened = Engine::create(self.rig.clone(), &self.case.workload.config, &self.env);
            next_turn();
            let now = self.sim.counters();
            if opened.is_ok() && !self.sim.stopped() {
                self.watch.see(&monitor::Event::Opened);
            }
            if self.sim.stopped() {
                drop(opened);
                self.fired("crash in a recovery");
                let Some(crash) = self.crashes.pop_front() else { return Err(broken("stopped unasked in a recovery")) };
                // It may have been found before the crash, and mended.
                self.must_be_found = None;
                // One slot may rot, not two: nothing more is damaged.
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

    /// An open in which something failed says so.
    fn refused_to_open(&mut self, opened: Result<(), ShardexError>) -> Result<(), End> {
        let failures = self.sim.take_failures();
        match opened {
            Err(_) if self.doubt() => Ok(()),
            Err(error) => self.told_of(&Step::Reopen, &error, &failures),
            Ok(()) => Err(broken(format!("P5: {failures:?} failed in an open, which returned Ok"))),
        }
    }

    /// An open without room serves reads and refuses writes.
    fn reads_only(&mut self, engine: &mut Engine<Rig>) -> Result<(), End> {
        // Growth may have made do with less.
        let grew = site::mutants::reached(site::Mark::GrewByOne);
        let refused = engine.add(&extra(self.case.workload.config.vector_size));
        match refused {
            Ok(_) if grew => Ok(()),
            // A crash that was planned came here: the next turn is its.
            Err(_) if self.sim.stopped() => Ok(()),
            Err(error) if error.is_out_of_space() || self.doubt() => Ok(()),
            other => Err(broken(format!("an open that found no room takes a write: {other:?}"))),
        }
    }
}

/// Postings that no case adds.
fn extra(dimension: usize) -> Vec<Posting> {
    vec![Posting { document_id: DocumentId(1 << 40), start: 0, length: 1, vector: vector(1, 1, dimension) }]
}
