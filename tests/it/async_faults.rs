//! The async layer under faults: full disks and held syncs. One fault stops nothing that
//! does not depend on it, and what it stopped goes on by itself.

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
use shardex_sim::{CrashKind, HookStorage, OpInfo, SimStorage, Verdict, storage::Op};

use crate::support::{DIMENSION, Limit, documents, vector};

/// Far above what any call here needs: a call that is never answered fails its test instead of hanging it.
const LIMIT: Duration = Duration::from_secs(60);

pub(crate) fn config(options: OpenOptions) -> ShardexConfig {
    ShardexConfig::new("unused").vector_size(DIMENSION).shard_size(64).metric(Metric::L2).options(options)
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime")
}

/// Runs a test that must come to an end.
pub(crate) fn run(test: impl Future<Output = Result<(), ShardexError>>) {
    let _limit = Limit::start();
    let ended = runtime().block_on(async { tokio::time::timeout(LIMIT, test).await });
    ended.expect("every call is answered").expect("the test's calls succeed");
}

/// A simulated disk on which stores and allocations of one file find no room while the switch is on.
fn full_at(sim: &SimStorage, name: &'static str) -> (HookStorage<SimStorage>, Arc<AtomicBool>) {
    let full = Arc::new(AtomicBool::new(false));
    let switch = Arc::clone(&full);
    let takes_room = |info: &OpInfo| matches!(info.op, Op::Store | Op::Allocate);
    let hook = HookStorage::new(sim.clone(), move |info| {
        match info.file == name && takes_room(info) && switch.load(Ordering::Acquire) {
            true => Verdict::Fail(io::ErrorKind::StorageFull),
            false => Verdict::Proceed,
        }
    });
    (hook, full)
}

/// A switch that holds whoever passes it, from when it is set until it is dropped.
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

/// Opens a gate when the test ends, however it ends: the threads that wait there end too.
struct Opener(Arc<Gate>);

impl Drop for Opener {
    fn drop(&mut self) {
        self.0.opened.store(true, Ordering::Release);
    }
}

/// A transient error in a commit of the timer turned the timers off for good: accepted writes stayed undurable while
/// searches and figures went on.
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
        // Not timed: it is asked until it has happened.
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

/// The same for the timer's flush.
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

/// Writes that wait for a flush held up every other call, and the timer: they are served meanwhile, and the writes are
/// carried out afterwards in their order.
#[test]
fn commits_and_the_timer_go_on_while_writes_wait_for_a_flush() {
    let gate = Arc::new(Gate::default());
    let opener = Opener(Arc::clone(&gate));
    let held = Arc::clone(&gate);
    let storage = HookStorage::new(SimStorage::new(4096, 512, 1), move |info| {
        if info.purpose.0.starts_with("B2") {
            held.pass();
        }
        Verdict::Proceed
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

/// With an interval the timer commits what was accepted, though the next write waits.
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
        Verdict::Proceed
    });
    run(async {
        // The timer is not due before the writes wait, unless this machine is very slow: then it is due again.
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
        // Twice as much as a write waits for is never accepted, so from some moment on it is the timer alone that commits.
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

/// A full check read every vector on the writer: nobody's commit was answered before its end.
#[test]
fn commits_and_writes_go_on_beside_a_full_check() {
    let gate = Arc::new(Gate::default());
    let opener = Opener(Arc::clone(&gate));
    let held = Arc::clone(&gate);
    let storage = HookStorage::new(SimStorage::new(4096, 512, 1), |_| Verdict::Proceed).on_read(move |file, _, len| {
        // The vectors of a shard: no state is so long.
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
        // A flush, too, and what it frees is not used again under the check.
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

/// The log had room, and yet a close that found none for the shards left what was accepted undurable.
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
    // Nothing survives but what was synced.
    let picks = vec![0; after.choices(CrashKind::Power).len()];
    after.crash_with(CrashKind::Power, &picks);
    run(async {
        let index = Shardex::open_on(after.clone(), OpenOptions::default(), Env::system()).await?;
        assert_eq!(index.stats().await?.total_postings, 30);
        index.close().await
    });
}

/// An error of the timer's commit was returned by the next write, whoever's it was. Now figures show it, commits and flushes
/// fail for the same reason, and writes go on up to a limit.
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
        full.store(true, Ordering::Release);
        let mut accepted = 0;
        // Not timed: it is asked until it has happened.
        let refused = loop {
            match index.add_postings(documents(accepted..accepted + 1)).await {
                Ok(()) => accepted += 1,
                Err(error) => break error,
            }
        };
        assert!(matches!(refused, ShardexError::Undurable { limit: "max_undurable_ms", .. }), "{refused:?}");
        full.store(false, Ordering::Release);
        while index.add_postings(documents(accepted..accepted + 1)).await.is_err() {
            tokio::task::yield_now().await;
        }
        index.close().await
    });
}

/// An acknowledgement that failed for want of room is not the end of it, though nobody asks again.
#[test]
fn an_immediate_write_that_could_not_be_committed_becomes_durable_by_itself() {
    let (storage, full) = full_at(&SimStorage::new(4096, 512, 1), "wal");
    run(async {
        let options =
            OpenOptions::default().durability(Durability::Immediate).batch_write_interval_ms(1).flush_interval_ms(0);
        let index = Shardex::create_on(storage, config(options), Env::system()).await?;
        full.store(true, Ordering::Release);
        let refused = index.add_postings(documents(0..3)).await;
        assert!(matches!(refused, Err(ShardexError::OutOfSpace { .. })), "{refused:?}");
        full.store(false, Ordering::Release);
        loop {
            let stats = index.stats().await?;
            if stats.durable_lsn == stats.last_lsn && stats.last_lsn.0 > 0 {
                break;
            }
            tokio::task::yield_now().await;
        }
        index.close().await
    });
}
