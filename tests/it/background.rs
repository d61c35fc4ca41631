//! Tests of background work: threads that can't be started, opens that the caller abandons, and cell builds that are
//! cancelled and resumed.

use std::{
    env,
    future::Future,
    pin::pin,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    task::{Context, Poll, Wake, Waker},
    time::{Duration, Instant},
};

use shardex::{
    BackgroundWork, CheckLevel, Engine, OpenOptions, SearchOptions, Shardex, ShardexConfig, ShardexError,
    env::{AllCores, CellPolicy, Env, Executor, Inline, Never, Threads},
    storage::Storage as _,
};
use shardex_sim::{
    SimStorage,
    runtime::Gate,
    workload::{self, Budget},
};
use tempfile::TempDir;

use crate::{
    async_faults::{config, run},
    support::{DIMENSION, block_on, documents, vector},
};

const NO_THREADS: &str = "SHARDEX_TEST_NO_THREADS";

/// Body of the child process of [`where_no_thread_can_be_started_calls_say_so`]. It does nothing in any other process.
#[test]
fn without_threads() {
    if env::var_os(NO_THREADS).is_none() {
        return;
    }
    assert!(std::thread::Builder::new().spawn(|| ()).is_err(), "no thread can be started here");
    let dir = TempDir::new().expect("a temporary directory");
    let path = dir.path().join("index");
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    let made = runtime.block_on(Shardex::create(ShardexConfig::new(&path)));
    assert!(matches!(made, Err(ShardexError::Io { op: "start", .. })), "{made:?}");
    assert!(!path.exists(), "nothing is made");
    let made = runtime.block_on(Shardex::open(&path));
    assert!(matches!(made, Err(ShardexError::Io { op: "start", .. })), "{made:?}");
    // Work for all cores runs on the calling thread alone.
    let done = AtomicUsize::new(0);
    for _ in 0..2 {
        AllCores.for_each(100, &|i| {
            done.fetch_add(i, Ordering::Relaxed);
        });
    }
    assert_eq!(done.load(Ordering::Relaxed), 2 * 4950);
    println!("without threads: done");
}

/// Regression: `create` panicked, because the runtime made for its thread was dropped inside the caller's runtime. An
/// exact search panicked in the thread pool.
#[test]
fn where_no_thread_can_be_started_calls_say_so() {
    let mut child = Command::new(env::current_exe().expect("this binary"));
    child.args(["--exact", "background::without_threads", "--nocapture", "--test-threads=1"]);
    // The stack is larger than any address space, so every start of a thread fails.
    child.env(NO_THREADS, "1").env("RUST_MIN_STACK", (1u64 << 50).to_string());
    let output = child.output().expect("the child runs");
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && out.contains("without threads: done"), "{out}\n{err}");
}

/// Waker that records whether it was woken.
#[derive(Default)]
struct Woken(AtomicBool);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::Release);
    }
}

/// An abandoned open releases the index. It may be abandoned before it begins, while it runs, or when it is done but
/// not polled again.
#[test]
fn an_abandoned_open_lets_the_index_go() {
    let sim = SimStorage::new(4096, 512, 1);
    run(async {
        let index = Shardex::create_on(sim.clone(), config(OpenOptions::default()), Env::system()).await?;
        index.add_postings(documents(0..50)).await?;
        index.close().await
    });
    for round in 0..40 {
        let woken = Arc::new(Woken::default());
        let waker = Waker::from(Arc::clone(&woken));
        {
            let mut open = pin!(Shardex::open_on(sim.clone(), OpenOptions::default(), Env::system()));
            match open.as_mut().poll(&mut Context::from_waker(&waker)) {
                Poll::Ready(opened) => drop(opened.expect("nobody has the index open")),
                // The open is dropped at once, after a delay, or when its result is ready but not yet taken.
                Poll::Pending if round % 4 == 0 => {}
                Poll::Pending if round % 4 < 3 => (0..1_000 * round).for_each(|_| std::hint::spin_loop()),
                Poll::Pending => {
                    while !woken.0.load(Ordering::Acquire) {
                        std::thread::yield_now();
                    }
                }
            }
        }
        let again = (0..100_000).find_map(|_| {
            let opened = block_on(Shardex::open_on(sim.clone(), OpenOptions::default(), Env::system()));
            match opened {
                Err(ShardexError::Locked { .. }) => {
                    std::thread::yield_now();
                    None
                }
                opened => Some(opened),
            }
        });
        let index = again.expect("the lock is released").expect("opened");
        block_on(index.close()).expect("closed");
    }
}

/// Counter of the started tasks of one name. It refuses them while `refuses` is set.
#[derive(Default)]
struct Refusing {
    name: &'static str,
    refuses: AtomicBool,
    started: AtomicUsize,
}

impl Refusing {
    fn env(name: &'static str, refuses: bool) -> (Arc<Self>, Env) {
        let refusing = Arc::new(Self { name, refuses: refuses.into(), ..Self::default() });
        let target = Arc::clone(&refusing);
        let runtime = Arc::new(Gate::new(Threads::default(), move |name| target.may_start(name)));
        (refusing, Env { runtime, ..Env::system() })
    }
}

impl Refusing {
    fn may_start(&self, name: &'static str) -> bool {
        let refused = name == self.name && self.refuses.load(Ordering::Acquire);
        if name == self.name && !refused {
            self.started.fetch_add(1, Ordering::AcqRel);
        }
        !refused
    }
}

/// Without the writer thread or the sync thread, `create` and `open` fail and keep no lock. Without the thread for long
/// work, an index has no cells and reports the error.
#[test]
fn each_thread_that_cannot_be_started_is_told_where_it_is_missed() {
    for name in ["shardex-writer", "shardex-sync"] {
        let sim = SimStorage::new(4096, 512, 1);
        let (threads, env) = Refusing::env(name, true);
        run(async {
            let made = Shardex::create_on(sim.clone(), config(OpenOptions::default()), env.clone()).await;
            assert!(matches!(made, Err(ShardexError::Io { op: "start", .. })), "{made:?}");
            assert!(!sim.exists()?, "nothing is made");
            threads.refuses.store(false, Ordering::Release);
            Shardex::create_on(sim.clone(), config(OpenOptions::default()), env.clone()).await?.close().await?;
            threads.refuses.store(true, Ordering::Release);
            let opened = Shardex::open_on(sim.clone(), OpenOptions::default(), env).await;
            assert!(matches!(opened, Err(ShardexError::Io { op: "start", .. })), "{opened:?}");
            Shardex::open_on(sim.clone(), OpenOptions::default(), Env::system()).await?.close().await
        });
    }
    let (threads, env) = Refusing::env("shardex-work", true);
    run(async {
        let index = Shardex::create_on(SimStorage::new(4096, 512, 1), config(OpenOptions::default()), env).await?;
        index.add_postings(documents(0..5_000)).await?;
        // The error appears as soon as the writer is idle.
        let shown = loop {
            if let Some(shown) = index.stats().await?.background_error {
                break shown;
            }
            tokio::task::yield_now().await;
        };
        assert!(shown.lasts && shown.work == BackgroundWork::Cells && shown.failures > 0, "{shown:?}");
        for refused in [index.optimize().await, index.check(CheckLevel::Full).await.map(drop)] {
            assert!(matches!(refused, Err(ShardexError::Io { op: "start", .. })), "{refused:?}");
        }
        // Other calls succeed despite the error.
        index.add_postings(documents(5_000..5_001)).await?;
        index.flush().await?;
        threads.refuses.store(false, Ordering::Release);
        index.optimize().await?;
        assert!(index.check(CheckLevel::Full).await?.is_clean());
        let stats = index.stats().await?;
        assert!(stats.cells > 0 && stats.background_error.is_some_and(|shown| !shown.lasts));
        index.close().await
    });
}

/// Returns the disk of a closed index whose newest postings have no codes after an open.
fn without_codes() -> SimStorage {
    let sim = SimStorage::new(4096, 512, 1);
    let mut engine = Engine::create(sim.clone(), &config(OpenOptions::default()), &workload::env()).expect("made");
    engine.add(&documents(0..500)).expect("accepted");
    engine.optimize().expect("cells are made");
    engine.flush().expect("flushed");
    engine.add(&documents(500..600)).expect("accepted");
    engine.close().expect("closed");
    sim
}

/// Regression: an abandoned open held the lock until every vector without a code had been read. An open now begins
/// background work only for a caller that takes its result.
#[test]
fn an_abandoned_open_begins_nothing() {
    let sim = without_codes();
    let mut seen = [false; 2];
    while seen != [true; 2] {
        let abandoned = !seen[0];
        let (threads, env) = Refusing::env("shardex-work", false);
        let woken = Arc::new(Woken::default());
        let waker = Waker::from(Arc::clone(&woken));
        let mut open = Box::pin(Shardex::open_on(sim.clone(), OpenOptions::default(), env));
        let mut polled = open.as_mut().poll(&mut Context::from_waker(&waker));
        if polled.is_pending() {
            // The result is ready once the waker is woken.
            while !woken.0.load(Ordering::Acquire) {
                std::thread::yield_now();
            }
            if !abandoned {
                polled = open.as_mut().poll(&mut Context::from_waker(&waker));
            }
        }
        drop(open);
        match polled {
            Poll::Ready(index) => {
                block_on(index.expect("opened").close()).expect("closed");
                assert!(threads.started.load(Ordering::Acquire) > 0, "there is something to begin");
                seen[1] = true;
            }
            Poll::Pending => {
                while matches!(sim.lock("LOCK"), Err(ShardexError::Locked { .. })) {
                    std::thread::yield_now();
                }
                assert_eq!(threads.started.load(Ordering::Acquire), 0, "nobody waits for it");
                seen[0] = true;
            }
        }
    }
}

fn open(sim: &SimStorage) -> Engine<SimStorage> {
    Engine::open(sim.clone(), OpenOptions::default(), &workload::env()).expect("opened")
}

/// Least recall of searches with the target recall 0.95.
const PROMISED: f64 = 0.95 - 0.01;

/// Returns the recall at 10 of searches with the target recall 0.95, over all queries.
fn recall(engine: &Engine<SimStorage>) -> f64 {
    let find = |query: &[f32], scope| {
        let hits = shardex::index::search(&engine.snapshot(), engine.data(), query, 10, scope).expect("searched");
        hits.iter().map(|hit| hit.document_id).collect::<Vec<_>>()
    };
    let queries = 500;
    let found: usize = (0..queries)
        .map(|n| {
            let query = vector(1_000_000 + n, DIMENSION);
            let wanted = find(&query, shardex::index::SearchScope::exact());
            let default = shardex::index::SearchScope {
                exact: false,
                slop: None,
                recall: Some(0.95),
                by_cells: true,
                default_recall: 0.95,
            };
            find(&query, default).iter().filter(|id| wanted.contains(id)).count()
        })
        .sum();
    found as f64 / (queries * 10) as f64
}

/// Regression: a cell build began again in every session that ended before the build did, so the index never had cells.
/// Each session now leaves the centroids that it has reached. The next session resumes from them, even without a write.
#[test]
fn sessions_shorter_than_a_build_come_to_have_cells() {
    // Most cancellation checks belong to the calibration, which this part doesn't wait for.
    const SESSIONS_A_BUILD: u64 = 24;
    let sim = SimStorage::new(4096, 512, 1);
    let mut engine = Engine::create(sim.clone(), &config(OpenOptions::default()), &workload::env()).expect("made");
    engine.add(&documents(0..6_000)).expect("accepted");
    engine.flush().expect("flushed");
    let whole = Budget::of(u64::MAX);
    assert!(engine.cell_build_begin().expect("a job").run_until(&whole).expect("made").is_some());
    let questions = u64::MAX - whole.left();
    let mut sessions = 0;
    let mut unfinished = 0;
    loop {
        sessions += 1;
        assert!(sessions <= 3 * SESSIONS_A_BUILD, "still no cells");
        assert!(engine.wants_cell_build() || sessions == 1, "session {sessions} goes on with it");
        match engine.cell_build_resume().expect("a job").run_until(&Budget::of(questions / SESSIONS_A_BUILD)) {
            Ok(built) => engine.install_cells(built).expect("taken in"),
            Err(error) => assert!(matches!(error, ShardexError::Closed), "{error:?}"),
        }
        let stats = engine.stats().expect("figures");
        if stats.cells > 0 {
            break;
        }
        unfinished += usize::from(engine.has_unfinished_cells());
        // No search uses centroids without cells.
        assert!(engine.snapshot().cells.is_none());
        let report = engine.check(CheckLevel::Full).expect("checked");
        assert!(report.is_clean(), "{report}");
        engine.close().expect("closed");
        drop(engine);
        engine = open(&sim);
    }
    assert!(unfinished > 1, "{sessions} sessions, {unfinished} of which left something");
    // Searches are exhaustive while their effort is unknown.
    assert!(engine.has_unfinished_cells() && recall(&engine) >= PROMISED, "{}", recall(&engine));
    let report = engine.check(CheckLevel::Full).expect("checked");
    assert!(report.is_clean(), "{report}");
    // The efforts found by a session are kept too, although every session writes something.
    let cells = engine.stats().expect("figures").cells;
    for session in 0..=3 * 3 {
        assert!(session < 3 * 3, "efforts are still unknown");
        engine.close().expect("closed");
        drop(engine);
        engine = open(&sim);
        engine.add(&documents(6_000 + session..6_001 + session)).expect("accepted");
        assert!(engine.wants_cell_build());
        match engine.cell_build_resume().expect("a job").run_until(&Budget::of(questions / 3)) {
            Ok(built) => engine.install_cells(built).expect("taken in"),
            Err(error) => assert!(matches!(error, ShardexError::Closed), "{error:?}"),
        }
        assert_eq!(engine.stats().expect("figures").cells, cells, "the same cells");
        let report = engine.check(CheckLevel::Full).expect("checked");
        assert!(report.is_clean(), "{report}");
        if !engine.has_unfinished_cells() {
            break;
        }
    }
    assert!(!engine.wants_cell_build());
    assert!(recall(&engine) >= PROMISED, "{}", recall(&engine));
    // An index that grows to more than twice its size keeps its cells for searches while others are built.
    engine.add(&documents(10_000..16_500)).expect("accepted");
    let whole = Budget::of(u64::MAX);
    assert!(engine.cell_build_begin().expect("a job").run_until(&whole).expect("made").is_some());
    let questions = u64::MAX - whole.left();
    engine.add(&documents(16_500..18_000)).expect("accepted");
    let (mut sessions, mut beside) = (0, 0);
    while engine.wants_cell_build() {
        sessions += 1;
        assert!(sessions <= 3 * SESSIONS_A_BUILD, "still the old cells");
        // Once a session has left centroids, the budget suffices to encode every posting.
        let part = if beside == 0 { 6 } else { 3 };
        match engine.cell_build_resume().expect("a job").run_until(&Budget::of(questions / part)) {
            Ok(built) => engine.install_cells(built).expect("taken in"),
            Err(error) => assert!(matches!(error, ShardexError::Closed), "{error:?}"),
        }
        let cells = engine.snapshot().cells.clone().expect("searches have cells");
        beside += usize::from(cells.has_unfinished());
        assert!(recall(&engine) >= 0.93, "{}", recall(&engine));
        engine.flush().expect("flushed");
        let report = engine.check(CheckLevel::Full).expect("checked");
        assert!(report.is_clean(), "{report}");
        engine.close().expect("closed");
        drop((engine, cells));
        engine = open(&sim);
    }
    assert!(beside > 0 && !engine.has_unfinished_cells());
    let stats = engine.stats().expect("figures");
    assert!(stats.cells > cells && stats.unindexed_postings == 0, "{stats:?}");
    assert!(recall(&engine) >= PROMISED, "{}", recall(&engine));
}

/// A cell build cancelled at any point leaves an undamaged index. Cells that searches use are never replaced by an
/// incomplete build.
#[test]
fn a_build_may_be_given_up_anywhere() {
    let sim = SimStorage::new(4096, 512, 1);
    let mut engine = Engine::create(sim.clone(), &config(OpenOptions::default()), &workload::env()).expect("made");
    engine.add(&documents(0..1_000)).expect("accepted");
    let whole = Budget::of(u64::MAX);
    let built = engine.cell_build_begin().expect("a job").run_until(&whole).expect("made");
    let questions = u64::MAX - whole.left();
    let mut unfinished = 0;
    for tenth in 0..10 {
        unfinished += usize::from(engine.has_unfinished_cells());
        match engine.cell_build_begin().expect("a job").run_until(&Budget::of(questions * tenth / 10)) {
            Ok(built) => engine.install_cells(built).expect("taken in"),
            Err(error) => assert!(matches!(error, ShardexError::Closed), "{error:?}"),
        }
        let cells = engine.snapshot().cells.clone();
        assert!(cells.is_none_or(|cells| cells.is_searchable()), "no search sees centroids alone");
        engine.flush().expect("flushed");
        let report = engine.check(CheckLevel::Full).expect("checked");
        assert!(report.is_clean(), "{report}");
    }
    assert!(unfinished > 3, "{unfinished}");
    engine.install_cells(built).expect("taken in");
    let cells = engine.stats().expect("figures").cells;
    assert!(cells > 0);
    for tenth in 0..9 {
        match engine.cell_build_begin().expect("a job").run_until(&Budget::of(questions * tenth / 20)) {
            Ok(built) => engine.install_cells(built).expect("taken in"),
            Err(error) => assert!(matches!(error, ShardexError::Closed), "{error:?}"),
        }
        assert_eq!(engine.stats().expect("figures").cells, cells, "cells that are used stay");
        engine.flush().expect("flushed");
        let report = engine.check(CheckLevel::Full).expect("checked");
        assert!(report.is_clean(), "{report}");
    }
    // A build that began from cells other than the present ones is discarded.
    let job = engine.cell_build_begin().expect("a job");
    engine.optimize().expect("cells are made");
    let left = |questions| job.run_until(&Budget::of(questions)).ok().flatten().filter(|left| left.groups.is_empty());
    let stale = (1..questions).find_map(left).expect("it leaves centroids");
    drop(job);
    let before = engine.snapshot().cells.clone().map(|cells| cells.whole_table());
    engine.install_cells(Some(stale)).expect("not taken in");
    assert_eq!(engine.snapshot().cells.clone().map(|cells| cells.whole_table()), before);
    engine.add(&documents(1_000..1_010)).expect("accepted");
    engine.flush().expect("flushed");
    let job = engine.encode_begin();
    assert!(job.is_none(), "what was added has codes");
    drop(engine);
    let engine = open(&sim);
    let job = engine.encode_begin().expect("an open finds no codes");
    assert!(matches!(job.run_until(&Budget::of(0)), Err(ShardexError::Closed)));
    assert!(job.run_until(&Never).is_ok());
    let check = engine.check_begin().expect("checked");
    assert!(matches!(check.run_until(&Budget::of(3)), Err(ShardexError::Closed)));
}

/// Executor so slow that no cell build completes within the time limit of a test.
struct Slow(AtomicUsize);

impl Executor for Slow {
    fn for_each(&self, tasks: usize, work: &(dyn Fn(usize) + Sync)) {
        for i in 0..tasks {
            self.0.fetch_add(1, Ordering::AcqRel);
            std::thread::sleep(Duration::from_millis(20));
            Inline.for_each(1, &|_| work(i));
        }
    }
}

/// Regression: `close` and the drop of the last handle waited for the end of a cell build.
#[test]
fn closing_and_dropping_give_a_build_up() {
    for closes in [true, false] {
        let sim = SimStorage::new(4096, 512, 1);
        run(async {
            let slow = Arc::new(Slow(AtomicUsize::new(0)));
            let env = Env { executor: Arc::<Slow>::clone(&slow), cells: CellPolicy::Always, ..Env::system() };
            let index = Shardex::create_on(sim.clone(), config(OpenOptions::default()), env).await?;
            index.add_postings(documents(0..5_000)).await?;
            // Waits until the build is under way.
            while slow.0.load(Ordering::Acquire) < 4 {
                tokio::task::yield_now().await;
            }
            if closes {
                index.close().await?;
            }
            drop(index);
            let index = Shardex::open_on(sim.clone(), OpenOptions::default(), Env::system()).await?;
            assert_eq!(index.search_with(&vector(1, DIMENSION), &SearchOptions::new(5)).await?.results.len(), 5);
            index.optimize().await?;
            assert!(index.check(CheckLevel::Full).await?.is_clean());
            index.close().await
        });
    }
}

/// Executor that waits until it is let go. It counts the calls that have waited.
#[derive(Default)]
struct Halted {
    waiting: AtomicUsize,
    open: AtomicBool,
}

impl Executor for Halted {
    fn for_each(&self, tasks: usize, work: &(dyn Fn(usize) + Sync)) {
        self.waiting.fetch_add(1, Ordering::AcqRel);
        while !self.open.load(Ordering::Acquire) {
            std::thread::sleep(Duration::from_millis(1));
        }
        Inline.for_each(tasks, work);
    }
}

/// Regression: a cell build under writes held all that they replaced, until its end.
#[test]
fn a_build_that_holds_too_much_is_cancelled() {
    for replaced in [false, true] {
        let sim = SimStorage::new(4096, 512, 1);
        run(async {
            let halted = Arc::new(Halted::default());
            let env = Env { executor: Arc::<Halted>::clone(&halted), cells: CellPolicy::Always, ..Env::system() };
            let flush_bytes = 64 << 10;
            let options = OpenOptions::default().flush_wal_bytes(flush_bytes);
            let index = Shardex::create_on(sim.clone(), config(options), env).await?;
            index.add_postings(documents(0..5_000)).await?;
            while halted.waiting.load(Ordering::Acquire) == 0 {
                tokio::task::yield_now().await;
            }
            if replaced {
                for _ in 0..3 {
                    index.add_postings(documents(0..5_000)).await?;
                    index.flush().await?;
                }
                let held = index.stats().await?.held_by_readers_bytes;
                assert!(held > 2 * flush_bytes, "{held} bytes are held");
            }
            let let_go = async {
                // The writer has taken what was asked before.
                index.stats().await?;
                halted.open.store(true, Ordering::Release);
                Ok(())
            };
            if replaced {
                // A caller that waits for the end of the build gets no error of a cancelled one.
                tokio::try_join!(index.compact(), let_go)?;
            } else {
                let_go.await?;
            }
            let began = Instant::now();
            while index.stats().await?.held_by_readers_bytes > 0 || !replaced && index.stats().await?.cells == 0 {
                assert!(began.elapsed() < Duration::from_secs(60), "{:?}", index.stats().await?);
                tokio::task::yield_now().await;
            }
            index.flush().await?;
            assert_eq!(index.stats().await?.cells == 0, replaced);
            // One that a caller waits for goes on.
            index.optimize().await?;
            assert!(index.stats().await?.cells > 0);
            index.close().await
        });
    }
}
