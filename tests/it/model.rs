//! Random histories on the simulated storage against the plain model: additions, replacements, removals, commits,
//! flushes, reopens, and crashes at any operation, of the process or of the power, during recovery too.

use std::collections::{BTreeMap, BTreeSet};

use proptest::{
    prelude::*,
    strategy::ValueTree as _,
    test_runner::{Config, RngAlgorithm, TestCaseError, TestRng, TestRunner},
};
use rand::{SeedableRng as _, rngs::ChaCha8Rng};
use shardex::{
    CheckLevel, DocumentId, Engine, FlushStep, Metric, OpenOptions, Posting, ShardexConfig, ShardexError, env::Env,
    format::root::Root, storage::Storage as _,
};
use shardex_sim::{
    CrashKind, HookStorage, SimStorage, Stop, Verdict,
    model::{Batch, Model},
};

use crate::support::vector;

/// Histories tried.
const CASES: u32 = 12_000;
/// Histories that must hold each of the things that matter.
const ENOUGH: u32 = 100;

/// A crash, planned.
#[derive(Clone, Copy, Debug)]
struct Crash {
    /// Operations of the storage until it comes.
    after: u64,
    stop: Stop,
    kind: CrashKind,
    seed: u64,
}

#[derive(Clone, Debug)]
enum Step {
    /// Postings of documents `first..first + count`, under a start that few share: some replace others.
    Add {
        first: u64,
        count: u64,
        start: u32,
        salt: u64,
    },
    Remove {
        first: u64,
        count: u64,
    },
    Commit,
    Flush,
    /// A flush with writes between its steps.
    SlowFlush {
        first: u64,
        count: u64,
        salt: u64,
    },
    Reopen,
    /// The next steps run until the machine stops.
    Plan(Crash),
    CrashNow {
        kind: CrashKind,
        seed: u64,
        rot: bool,
    },
}

#[derive(Clone, Debug)]
struct History {
    dimension: usize,
    shard_size: usize,
    metric: Metric,
    real_pages: bool,
    steps: Vec<Step>,
}

fn crashes() -> impl Strategy<Value = Crash> {
    let stops = prop_oneof![Just(Stop::Before), Just(Stop::Torn), Just(Stop::After)];
    (1..40u64, stops, kinds(), any::<u64>()).prop_map(|(after, stop, kind, seed)| Crash { after, stop, kind, seed })
}

fn kinds() -> impl Strategy<Value = CrashKind> {
    prop_oneof![1 => Just(CrashKind::Process), 3 => Just(CrashKind::Power)]
}

fn steps() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => (0..60u64, 1..12u64, 0..2u32, 0..1_000u64)
            .prop_map(|(first, count, start, salt)| Step::Add { first, count, start, salt }),
        3 => (0..60u64, 1..30u64).prop_map(|(first, count)| Step::Remove { first, count }),
        3 => Just(Step::Commit),
        4 => Just(Step::Flush),
        2 => (0..60u64, 1..12u64, 0..1_000u64).prop_map(|(first, count, salt)| Step::SlowFlush { first, count, salt }),
        1 => Just(Step::Reopen),
        3 => crashes().prop_map(Step::Plan),
        1 => (kinds(), any::<u64>(), any::<bool>())
            .prop_map(|(kind, seed, rot)| Step::CrashNow { kind, seed, rot }),
    ]
}

fn histories() -> impl Strategy<Value = History> {
    (
        prop_oneof![Just(3usize), Just(17), Just(20)],
        prop_oneof![Just(2usize), Just(5), Just(8)],
        prop_oneof![Just(Metric::L2), Just(Metric::Dot), Just(Metric::Cosine)],
        prop::bool::weighted(0.1),
        prop::collection::vec(steps(), 4..50),
    )
        .prop_map(|(dimension, shard_size, metric, real_pages, steps)| History {
            dimension,
            shard_size,
            metric,
            real_pages,
            steps,
        })
}

/// How many histories held what.
type Marks = BTreeMap<&'static str, u32>;

struct Run {
    config: ShardexConfig,
    storage: SimStorage,
    /// A barrier whose syncs do nothing.
    needless: Option<&'static str>,
    engine: Option<Engine<HookStorage<SimStorage>>>,
    model: Model,
    planned: Option<Crash>,
    marks: BTreeSet<&'static str>,
}

fn env() -> Env {
    Env { new_index_id: 7, ..Env::system() }
}

impl Run {
    fn new(history: &History, needless: Option<&'static str>) -> Self {
        let (page, sector) = if history.real_pages { (4096, 512) } else { (256, 64) };
        let config = ShardexConfig::new("sim")
            .vector_size(history.dimension)
            .shard_size(history.shard_size)
            .metric(history.metric)
            .wal_segment_size(4 * page)
            .options(OpenOptions::default().wal_max_bytes(64 << 10));
        let storage = SimStorage::new(page, sector, 1);
        storage.set_trace(true);
        Self { config, storage, needless, engine: None, model: Model::default(), planned: None, marks: BTreeSet::new() }
    }

    /// The storage as the engine gets it.
    fn hooked(&self) -> HookStorage<SimStorage> {
        let (needless, sim) = (self.needless, self.storage.clone());
        HookStorage::new(self.storage.clone(), move |info| {
            if needless == Some(info.purpose.0) {
                sim.lie_at_next_sync();
            }
            Verdict::Proceed
        })
    }

    /// Runs a step; when the machine stops in it, crashes and recovers.
    fn step(&mut self, step: &Step) -> Result<(), String> {
        drop(self.storage.take_trace());
        let flushing = matches!(step, Step::Flush | Step::SlowFlush { .. });
        match self.attempt(step) {
            Ok(()) => Ok(()),
            Err(error) if self.storage.stopped() => {
                let last = self.storage.take_trace().pop().map_or("", |entry| entry.purpose.0);
                if flushing {
                    self.marks.insert(match last {
                        "wal: append" => "crash in a flush at: wal: append",
                        "B1: sync the WAL" => "crash in a flush at: B1: sync the WAL",
                        "data: grow" => "crash in a flush at: data: grow",
                        "data: states and directory" => "crash in a flush at: data: states and directory",
                        "B2: sync the data" => "crash in a flush at: B2: sync the data",
                        "root: store" => "crash in a flush at: root: store",
                        "B3: sync the root" => "crash in a flush at: B3: sync the root",
                        _ => "crash in a flush elsewhere",
                    });
                }
                let Some(crash) = self.planned.take() else { return Err(format!("stopped unasked: {error}")) };
                self.crash(crash.kind, crash.seed, false)
            }
            Err(error) => Err(format!("{step:?}: {error}")),
        }
    }

    fn attempt(&mut self, step: &Step) -> Result<(), ShardexError> {
        let storage = self.hooked();
        let engine = match &mut self.engine {
            Some(engine) => engine,
            None => self.engine.insert(Engine::create(storage.clone(), &self.config, &env())?),
        };
        match step {
            Step::Add { first, count, start, salt } => {
                let postings: Vec<Posting> = (*first..first + count)
                    .map(|id| Posting {
                        document_id: DocumentId(id.into()),
                        start: *start,
                        length: 1,
                        vector: vector(id * 1_000 + salt, self.config.vector_size),
                    })
                    .collect();
                engine.add(&postings)?;
                self.model.accept(Batch::Add(postings));
            }
            Step::Remove { first, count } => {
                let shards = engine.stats()?.total_shards;
                let documents: Vec<DocumentId> = (*first..first + count).map(|id| DocumentId(id.into())).collect();
                engine.remove(&documents)?;
                self.model.accept(Batch::Remove(documents));
                if engine.stats()?.total_shards < shards {
                    self.marks.insert("a freed shard");
                }
            }
            Step::Commit => {
                engine.commit()?;
                self.model.acknowledge();
            }
            Step::Flush => {
                let stats = engine.flush()?;
                self.model.acknowledge();
                assert!(stats.barriers <= 4, "{stats}");
            }
            Step::SlowFlush { first, count, salt } => {
                let accepted = self.model.accepted();
                let mut between = 0;
                let mut step = engine.flush_begin(false)?;
                while let FlushStep::Sync(job) = step {
                    let synced = job.run();
                    let splits = engine.stats()?.splits;
                    let from = first + between * count;
                    let postings: Vec<Posting> = (from..from + 2 * count)
                        .map(|id| Posting {
                            document_id: DocumentId(id.into()),
                            start: 0,
                            length: 1,
                            vector: vector(id * 1_000 + salt + between, self.config.vector_size),
                        })
                        .collect();
                    match engine.add(&postings) {
                        Ok(_) => self.model.accept(Batch::Add(postings)),
                        // The WAL is full, and only the end of this flush makes room.
                        Err(ShardexError::FlushInProgress) => {}
                        Err(error) => return Err(error),
                    }
                    if engine.stats()?.splits > splits {
                        self.marks.insert("a split inside a flush");
                    }
                    between += 1;
                    step = engine.flush_synced(synced)?;
                }
                self.model.acknowledge_up_to(accepted);
            }
            Step::Reopen => {
                engine.close()?;
                self.model.acknowledge();
                self.engine = None;
                let engine = Engine::open(storage, self.config.options.clone(), &env())?;
                assert_eq!(engine.stats()?.recovery.records_replayed, 0);
                self.engine = Some(engine);
            }
            Step::Plan(crash) => {
                if self.planned.is_none() {
                    self.storage.crash_after(crash.after, crash.stop);
                    self.planned = Some(*crash);
                }
            }
            Step::CrashNow { kind, seed, rot } => {
                self.planned = None;
                self.crash(*kind, *seed, *rot).map_err(|what| ShardexError::Inconsistent { finding: what })?;
            }
        }
        if let Some(engine) = &self.engine {
            let stats = engine.stats()?;
            for (mark, held) in [
                ("a split", stats.splits > 0),
                ("a recycled segment", stats.segments_recycled > 0),
                ("a WAL that grew", stats.wal_segments > 4),
            ] {
                if held {
                    self.marks.insert(mark);
                }
            }
        }
        Ok(())
    }

    /// The newest root rots.
    fn rot(&mut self) {
        let page = self.storage.page_size();
        let generation = |bytes: &[u8]| Root::decode(bytes).map_or(0, |root| root.generation.0);
        if self.storage.files().iter().any(|(name, _)| name == "root") {
            self.storage.tamper("root", |bytes| {
                let newest = usize::from(generation(bytes) < generation(&bytes[page..]));
                bytes[newest * page + 50] ^= 4;
            });
            self.marks.insert("a rotten root");
        }
    }

    /// Crashes, then recovers, crashing again on the way now and then; not when a root has rotten, for then no second
    /// one may be torn.
    fn crash(&mut self, kind: CrashKind, seed: u64, rot: bool) -> Result<(), String> {
        self.engine = None;
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        self.storage.crash(kind, &mut rng);
        if rot {
            self.rot();
        }
        for again in 0..if rot { 0 } else { seed % 3 } {
            self.storage.crash_after(1 + (seed >> (8 * again)) % 13, Stop::Torn);
            let opened = Engine::create(self.hooked(), &self.config, &env());
            if self.storage.stopped() {
                drop(opened);
                self.marks.insert("a crash in a recovery");
                self.storage.crash(kind, &mut rng);
            } else if let Err(error) = opened {
                return Err(format!("P1: {error}"));
            } else {
                drop(opened);
                self.storage.crash(kind, &mut rng);
            }
        }
        let engine = Engine::create(self.hooked(), &self.config, &env()).map_err(|e| format!("P1: {e}"))?;
        self.model.recovered(&engine)?;
        if engine.stats().is_ok_and(|stats| stats.recovery.torn_tail) {
            self.marks.insert("a torn tail");
        }
        self.engine = Some(engine);
        self.check()
    }

    fn check(&self) -> Result<(), String> {
        let Some(engine) = &self.engine else { return Ok(()) };
        let report = engine.check(CheckLevel::Full).map_err(|e| e.to_string())?;
        if !report.is_clean() {
            return Err(format!("P4/P6: {report}"));
        }
        self.model.current(engine)
    }
}

fn run(history: &History, needless: Option<&'static str>) -> Result<BTreeSet<&'static str>, String> {
    let mut run = Run::new(history, needless);
    for (i, step) in history.steps.iter().enumerate() {
        run.step(step).map_err(|broken| format!("step {i}: {broken}"))?;
        if i % 5 == 4 && !run.storage.stopped() {
            run.check().map_err(|broken| format!("after step {i}: {broken}"))?;
        }
    }
    if run.storage.stopped() {
        let Some(crash) = run.planned.take() else { return Err("stopped unasked".into()) };
        run.crash(crash.kind, crash.seed, false)?;
    }
    run.check()?;
    Ok(run.marks)
}

#[test]
fn random_histories_with_crashes_agree_with_the_model() {
    let config = Config { cases: CASES, failure_persistence: None, max_shrink_iters: 4_000, ..Config::default() };
    let mut runner = TestRunner::new_with_rng(config, TestRng::deterministic_rng(RngAlgorithm::ChaCha));
    let marks = std::cell::RefCell::new(Marks::new());
    let result = runner.run(&histories(), |history| {
        let held = run(&history, None).map_err(TestCaseError::fail)?;
        let mut marks = marks.borrow_mut();
        held.into_iter().for_each(|mark| *marks.entry(mark).or_default() += 1);
        Ok(())
    });
    if let Err(error) = result {
        panic!("{error}");
    }
    let marks = marks.into_inner();
    assert!(marks.values().all(|&n| n <= CASES));
    println!("of {CASES} histories:");
    marks.iter().for_each(|(mark, n)| println!("  {n:>5} held {mark}"));
    for mark in [
        "a split",
        "a recycled segment",
        "a freed shard",
        "a torn tail",
        "a rotten root",
        "a split inside a flush",
        "a crash in a recovery",
        "crash in a flush at: wal: append",
        "crash in a flush at: B1: sync the WAL",
        "crash in a flush at: data: states and directory",
        "crash in a flush at: B2: sync the data",
        "crash in a flush at: root: store",
        "crash in a flush at: B3: sync the root",
    ] {
        let n = marks.get(mark).copied().unwrap_or(0);
        assert!(n >= ENOUGH, "only {n} histories held {mark}");
    }
}

/// The tester tested: without any one of the barriers the histories find the loss, and soon.
#[test]
fn every_barrier_is_needed() {
    for barrier in [
        "B1: commit",
        "B1: sync the WAL",
        "B2: sync the data",
        "B3: sync the root",
        "B4: sync the recovered root",
        "B5: sync the root's twin",
    ] {
        let mut runner = TestRunner::new_with_rng(Config::default(), TestRng::deterministic_rng(RngAlgorithm::ChaCha));
        let found = (1..=CASES).find(|_| {
            let history = histories().new_tree(&mut runner).expect("a history").current();
            // An assertion of the engine's own is as good as a broken promise.
            std::panic::catch_unwind(|| run(&history, Some(barrier))).map_or(true, |done| done.is_err())
        });
        match found {
            Some(n) => println!("without `{barrier}`: found by history {n}"),
            None => panic!("{CASES} histories pass without `{barrier}`"),
        }
    }
}

/// The same history twice: the same bytes, and the same trace (P7).
#[test]
fn the_same_history_leaves_the_same_bytes_and_the_same_trace() {
    let once = || {
        let history = History {
            dimension: 17,
            shard_size: 5,
            metric: Metric::L2,
            real_pages: false,
            steps: (0..60u64)
                .map(|n| match n % 7 {
                    3 => Step::Remove { first: n % 20, count: 9 },
                    5 => Step::Flush,
                    6 => Step::Reopen,
                    _ => Step::Add { first: n * 3 % 40, count: 8, start: 0, salt: n },
                })
                .collect(),
        };
        let mut run = Run::new(&history, None);
        let fixed = Fixed;
        let env = Env { clock: std::sync::Arc::new(fixed), new_index_id: 7 };
        run.engine = Some(Engine::create(run.hooked(), &run.config, &env).expect("made"));
        let mut trace = Vec::new();
        for step in history.steps.iter().filter(|step| !matches!(step, Step::Reopen)) {
            run.step(step).expect("no crash is planned");
            trace.extend(run.storage.take_trace());
        }
        (run.storage.files(), trace)
    };
    assert!(once() == once());
}

/// A clock that stands still.
struct Fixed;

impl shardex::env::Clock for Fixed {
    fn unix_ms(&self) -> u64 {
        1_700_000_000_000
    }

    fn elapsed(&self) -> std::time::Duration {
        std::time::Duration::ZERO
    }
}
