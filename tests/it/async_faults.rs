//! Tests of the async layer under faults: full disks and blocked syncs. A fault stops only the work that depends on it,
//! and that work resumes without a call once the fault is over.

use std::{
    future::Future,
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use shardex::{
    BackgroundWork, CheckLevel, DocumentId, Durability, Metric, OpenOptions, Shardex, ShardexConfig, ShardexError,
    env::Env,
};
use shardex_sim::{CrashKind, HookAction, HookStorage, OpInfo, SimStorage, storage::Op};

use crate::support::{DIMENSION, Limit, documents, vector};

/// Time limit far above the need of any call here. A call that never returns fails its test instead of hanging it.
const LIMIT: Duration = Duration::from_secs(60);

pub(crate) fn config(options: OpenOptions) -> ShardexConfig {
    ShardexConfig::new("unused").vector_size(DIMENSION).shard_size(64).metric(Metric::L2).options(options)
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime")
}

/// Runs a test and fails it if it takes longer than `LIMIT`.
pub(crate) fn run(test: impl Future<Output = Result<(), ShardexError>>) {
    let _limit = Limit::start();
    let ended = runtime().block_on(async { tokio::time::timeout(LIMIT, test).await });
    ended.expect("every call is answered").expect("the test's calls succeed");
}

/// Returns a simulated disk and a switch. While the switch is on, stores and allocations in the file `name` fail with
/// `StorageFull`.
fn full_at(sim: &SimStorage, name: &'static str) -> (HookStorage<SimStorage>, Arc<AtomicBool>) {
    let full = Arc::new(AtomicBool::new(false));
    let switch = Arc::clone(&full);
    let takes_room = |info: &OpInfo| matches!(info.op, Op::Store | Op::Allocate);
    let hook = HookStorage::new(sim.clone(), move |info| {
        match info.file == name && takes_room(info) && switch.load(Ordering::Acquire) {
            true => HookAction::Fail(io::ErrorKind::StorageFull),
            false => HookAction::Proceed,
        }
    });
    (hook, full)
}

/// Gate that blocks every thread that reaches it, from the time it is armed until it is opened.
#[derive(Default)]
struct Gate {
    armed: AtomicBool,
    reached: AtomicBool,
    opened: AtomicBool,
}

impl Gate {
    fn pass(&self) {
        if self.armed.load(Ordering::Acquire) {
            self.reached.store(true, Ordering::Release);
            while !self.opened.load(Ordering::Acquire) {
                std::thread::yield_now();
            }
        }
    }

    async fn until_reached(&self) {
        while !self.reached.load(Ordering::Acquire) {
            tokio::task::yield_now().await;
        }
    }
}

/// Opens a gate when dropped, so that the threads blocked there end even if the test panics.
struct Opener(Arc<Gate>);

impl Drop for Opener {
    fn drop(&mut self) {
        self.0.opened.store(true, Ordering::Release);
    }
}

/// Regression: a transient error in a commit of the timer disabled the timers permanently. Accepted writes stayed
/// undurable, while searches and statistics still worked.
#[test]
fn the_timer_tries_again_until_there_is_room() {
    let (storage, full) = full_at(&SimStorage::new(4096, 512, 1), "wal");
    run(async {
        let options = OpenOptions::default().batch_write_interval_ms(1).flush_interval_ms(0);
        let index = Shardex::create_on(storage, config(options), Env::system()).await?;
        index.add_postings(documents(0..1)).await?;
        index.commit().await?;
        full.store(true, Ordering::Release);
        let before = index.stats().await?.errors;
        index.add_postings(documents(1..5)).await?;
        // Polls without a deadline of its own, because the times of the timer's commits vary.
        while index.stats().await?.errors < before + 3 {
            tokio::task::yield_now().await;
        }
        full.store(false, Ordering::Release);
        loop {
            let stats = index.stats().await?;
            if stats.durable_lsn == stats.last_lsn {
                break;
            }
            tokio::task::yield_now().await;
        }
        index.close().await
    });
}

/// Regression: a transient error in a flush of the timer disabled the timers too.
#[test]
fn the_timed_flush_tries_again_until_there_is_room() {
    let (storage, full) = full_at(&SimStorage::new(4096, 512, 1), "data");
    run(async {
        let options = OpenOptions::default().batch_write_interval_ms(1).flush_interval_ms(1);
        let index = Shardex::create_on(storage, config(options), Env::system()).await?;
        index.add_postings(documents(0..8)).await?;
        index.flush().await?;
        let before = index.stats().await?.errors;
        full.store(true, Ordering::Release);
        index.remove_documents(vec![DocumentId(3)]).await?;
        while index.stats().await?.errors < before + 2 {
            tokio::task::yield_now().await;
        }
        full.store(false, Ordering::Release);
        while index.stats().await?.pending_operations > 0 {
            tokio::task::yield_now().await;
        }
        index.close().await
    });
}

/// Regression: writes that waited for a flush blocked every other call and the timer. Other calls are now served
/// meanwhile, and the waiting writes are carried out afterwards in their order.
#[test]
fn commits_and_the_timer_go_on_while_writes_wait_for_a_flush() {
    let gate = Arc::new(Gate::default());
    let opener = Opener(Arc::clone(&gate));
    let held = Arc::clone(&gate);
    let storage = HookStorage::new(SimStorage::new(4096, 512, 1), move |info| {
        if info.purpose.0.starts_with("B2") {
            held.pass();
        }
        HookAction::Proceed
    });
    run(async {
        let options = OpenOptions::default()
            .durability(Durability::Manual)
            .flush_wal_bytes(8 << 10)
            .flush_interval_ms(0)
            .queue_size(256);
        let index = Shardex::create_on(storage, config(options), Env::system()).await?;
        gate.armed.store(true, Ordering::Release);
        let writes: Vec<_> = (0..200u64)
            .map(|n| {
                let index = index.clone();
                let mut batch = documents(0..4);
                batch.iter_mut().for_each(|posting| posting.vector = vector(1_000 + n, DIMENSION));
                tokio::spawn(async move { index.add_postings(batch).await })
            })
            .collect();
        gate.until_reached().await;
        index.commit().await?;
        index.commit().await?;
        let stats = index.stats().await?;
        assert!(stats.last_lsn.0 > 0 && stats.durable_lsn == stats.last_lsn, "{stats:?}");
        assert!(stats.wal_bytes < 3 * (8 << 10), "writes wait once as much came in as made the flush begin: {stats:?}");
        assert!(writes.iter().any(|write| !write.is_finished()), "writes wait");
        drop(opener);
        for write in writes {
            write.await.expect("a task")?;
        }
        assert_eq!(index.stats().await?.total_postings, 4);
        index.close().await
    });
}

/// With an interval, the timer commits the accepted writes while the next write waits for a flush.
#[test]
fn the_timer_commits_while_a_write_waits_for_a_flush() {
    let gate = Arc::new(Gate::default());
    let opener = Opener(Arc::clone(&gate));
    let held = Arc::clone(&gate);
    let commits = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&commits);
    let storage = HookStorage::new(SimStorage::new(4096, 512, 1), move |info| {
        if info.purpose == shardex::engine::COMMIT {
            counted.fetch_add(1, Ordering::AcqRel);
        }
        if info.purpose.0.starts_with("B2") {
            held.pass();
        }
        HookAction::Proceed
    });
    run(async {
        // The timer isn't due before the writes wait, except on a very slow machine. There it becomes due again.
        let options = OpenOptions::default().batch_write_interval_ms(50).flush_wal_bytes(4 << 10).flush_interval_ms(0);
        let index = Shardex::create_on(storage, config(options), Env::system()).await?;
        gate.armed.store(true, Ordering::Release);
        let writer = tokio::spawn({
            let index = index.clone();
            async move {
                for n in 0..100 {
                    index.add_postings(documents(n * 4..n * 4 + 4)).await?;
                }
                Ok::<_, ShardexError>(())
            }
        });
        gate.until_reached().await;
        // No write is accepted once the WAL holds more than twice `flush_wal_bytes`. From then on only the timer
        // commits.
        let mut seen = 0;
        while seen < 2 {
            let before = commits.load(Ordering::Acquire);
            let stats = index.stats().await?;
            if stats.wal_bytes > 8 << 10 && stats.durable_lsn == stats.last_lsn && before > 0 {
                seen += 1;
            }
            tokio::task::yield_now().await;
        }
        assert!(!writer.is_finished(), "a write waits");
        drop(opener);
        writer.await.expect("a task")?;
        index.close().await
    });
}

/// Regression: a full check read every vector on the writer, so no commit returned before the check ended.
#[test]
fn commits_and_writes_go_on_beside_a_full_check() {
    let gate = Arc::new(Gate::default());
    let opener = Opener(Arc::clone(&gate));
    let held = Arc::clone(&gate);
    let storage =
        HookStorage::new(SimStorage::new(4096, 512, 1), |_| HookAction::Proceed).on_read(move |file, _, len| {
            // Reads of this length are of a shard's vectors. Every shard state is shorter.
            if file == "data" && len > 4096 {
                held.pass();
            }
        });
    run(async {
        let options = OpenOptions::default().flush_interval_ms(0);
        let index = Shardex::create_on(storage, config(options), Env::system()).await?;
        index.add_postings(documents(0..150)).await?;
        index.flush().await?;
        gate.armed.store(true, Ordering::Release);
        let check = tokio::spawn({
            let index = index.clone();
            async move { index.check(CheckLevel::Full).await }
        });
        gate.until_reached().await;
        for n in 150..160 {
            index.add_postings(documents(n..n + 1)).await?;
            index.commit().await?;
        }
        // A flush completes as well, and the space that it frees isn't reused while the check runs.
        index.remove_documents((0..40).map(DocumentId).collect()).await?;
        index.flush().await?;
        index.add_postings(documents(160..300)).await?;
        index.flush().await?;
        assert!(!check.is_finished());
        drop(opener);
        let report = check.await.expect("a task")?;
        assert!(report.is_clean(), "{report}");
        assert_eq!(report.postings_checked, 150, "what was there when it was asked for");
        let report = index.check(CheckLevel::Full).await?;
        assert!(report.is_clean(), "{report}");
        index.close().await
    });
}

/// Regression: if the data file had no room for the flush of a close, accepted writes stayed undurable, although the
/// WAL had room.
#[test]
fn a_close_that_cannot_flush_commits() {
    let sim = SimStorage::new(4096, 512, 1);
    let (storage, full) = full_at(&sim, "data");
    let mut after = sim.clone();
    run(async {
        let options = OpenOptions::default().durability(Durability::Manual);
        let index = Shardex::create_on(storage, config(options), Env::system()).await?;
        index.add_postings(documents(0..10)).await?;
        index.flush().await?;
        index.add_postings(documents(10..30)).await?;
        full.store(true, Ordering::Release);
        let closed = index.close().await;
        assert!(matches!(closed, Err(ShardexError::OutOfSpace { .. })), "{closed:?}");
        Ok(())
    });
    // Only synced bytes survive.
    let picks = vec![0; after.choices(CrashKind::Power).len()];
    after.crash_with(CrashKind::Power, &picks);
    run(async {
        let index = Shardex::open_on(after.clone(), OpenOptions::default(), Env::system()).await?;
        assert_eq!(index.stats().await?.total_postings, 30);
        index.close().await
    });
}

/// Regression: an error of the timer's commit was returned by the next write, of any caller. Statistics now show the
/// error, commits and flushes fail for the same reason, and writes are accepted up to a limit.
#[test]
fn a_background_error_refuses_no_write_below_the_limits() {
    let (storage, full) = full_at(&SimStorage::new(4096, 512, 1), "wal");
    run(async {
        let options =
            OpenOptions::default().batch_write_interval_ms(1).flush_interval_ms(0).max_undurable_bytes(4 << 10);
        let index = Shardex::create_on(storage, config(options), Env::system()).await?;
        index.add_postings(documents(0..1)).await?;
        index.commit().await?;
        assert_eq!(index.stats().await?.background_error, None);
        full.store(true, Ordering::Release);
        index.add_postings(documents(1..2)).await?;
        let shown = loop {
            if let Some(shown) = index.stats().await?.background_error {
                break shown;
            }
            tokio::task::yield_now().await;
        };
        assert!(shown.lasts && shown.work == BackgroundWork::Commit && shown.failures > 0, "{shown:?}");
        assert!(shown.error.contains("no space left"), "{shown:?}");
        assert!(matches!(index.commit().await, Err(ShardexError::OutOfSpace { .. })));
        assert!(matches!(index.flush().await, Err(ShardexError::OutOfSpace { .. })));
        let mut accepted = 2;
        let refused = loop {
            match index.add_postings(documents(accepted..accepted + 1)).await {
                Ok(()) => accepted += 1,
                Err(error) => break error,
            }
        };
        let ShardexError::Undurable { limit, allowed, found, cause } = &refused else { panic!("{refused:?}") };
        assert_eq!((*limit, *allowed), ("max_undurable_bytes", 4 << 10));
        assert!(found > allowed && cause.is_out_of_space() && accepted > 10, "{refused:?} after {accepted}");
        assert!(refused.to_string().contains("once a commit succeeds"), "{refused}");
        let refused = index.remove_documents(vec![DocumentId(0)]).await;
        assert!(matches!(refused, Err(ShardexError::Undurable { .. })), "{refused:?}");
        let stats = index.stats().await?;
        assert_eq!((stats.total_postings, stats.uncommitted_operations), (accepted, accepted - 1), "all stay accepted");
        assert!(stats.uncommitted_bytes > 4 << 10 && stats.uncommitted_for.is_some());
        full.store(false, Ordering::Release);
        while index.stats().await?.uncommitted_operations > 0 {
            tokio::task::yield_now().await;
        }
        assert_eq!(index.remove_documents(vec![DocumentId(0)]).await?, 1);
        let stats = index.stats().await?;
        assert!(stats.background_error.is_some_and(|shown| !shown.lasts), "it is over, and still told");
        index.close().await
    });
}

#[test]
fn a_background_error_refuses_writes_once_the_oldest_is_too_old() {
    let (storage, full) = full_at(&SimStorage::new(4096, 512, 1), "wal");
    run(async {
        let options = OpenOptions::default().batch_write_interval_ms(1).flush_interval_ms(0).max_undurable_ms(20);
        let index = Shardex::create_on(storage, config(options), Env::system()).await?;
        // The first record reserves space in the WAL for the next ones.
        index.add_postings(documents(0..1)).await?;
        index.commit().await?;
        full.store(true, Ordering::Release);
        let mut accepted = 1;
        // Adds postings until a write is refused, without a deadline of its own.
        let refused = loop {
            match index.add_postings(documents(accepted..accepted + 1)).await {
                Ok(()) => accepted += 1,
                Err(error) => break error,
            }
            std::thread::sleep(Duration::from_millis(1));
        };
        assert!(matches!(refused, ShardexError::Undurable { limit: "max_undurable_ms", .. }), "{refused:?}");
        full.store(false, Ordering::Release);
        while index.add_postings(documents(accepted..accepted + 1)).await.is_err() {
            tokio::task::yield_now().await;
        }
        index.close().await
    });
}

/// A write whose acknowledgement failed for lack of space becomes durable without another write or commit.
#[test]
fn an_immediate_write_that_could_not_be_committed_becomes_durable_by_itself() {
    let (storage, full) = full_at(&SimStorage::new(4096, 512, 1), "wal");
    run(async {
        let options =
            OpenOptions::default().durability(Durability::Immediate).batch_write_interval_ms(1).flush_interval_ms(0);
        let index = Shardex::create_on(storage, config(options), Env::system()).await?;
        // The first record reserves space in the WAL for the next one.
        index.add_postings(documents(0..1)).await?;
        full.store(true, Ordering::Release);
        let refused = index.add_postings(documents(1..4)).await;
        assert!(matches!(refused, Err(ShardexError::OutOfSpace { .. })), "{refused:?}");
        full.store(false, Ordering::Release);
        loop {
            let stats = index.stats().await?;
            if stats.durable_lsn == stats.last_lsn && stats.last_lsn.0 > 1 {
                break;
            }
            tokio::task::yield_now().await;
        }
        index.close().await
    });
}
