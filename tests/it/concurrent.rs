//! Tests with real threads: concurrent writers, readers and flushes on both storages, and panics in a thread.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicU64, Ordering},
};

use shardex::{
    CheckLevel, DocumentId, Durability, LockHolder, Metric, OpenOptions, Posting, SearchOptions, Shardex,
    ShardexConfig, ShardexError,
    env::Env,
    storage::{MmapStorage, Storage},
};
use shardex_sim::{HookAction, HookStorage, SimStorage};
use tempfile::TempDir;

use crate::support::{Limit, vector};

const DIMENSION: usize = 16;
const WRITERS: u64 = 4;
const BATCHES: u64 = 60;
const BATCH: u64 = 5;

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(4).enable_all().build().expect("a runtime")
}

/// Runs a test on a runtime with four worker threads.
fn run<T>(test: impl Future<Output = T>) -> T {
    let _limit = Limit::start();
    runtime().block_on(test)
}

fn config() -> ShardexConfig {
    let options = OpenOptions::default()
        .durability(Durability::Immediate)
        .flush_wal_bytes(40_000)
        .flush_interval_ms(3)
        .queue_size(8);
    ShardexConfig::new("unused").vector_size(DIMENSION).shard_size(16).metric(Metric::L2).options(options)
}

/// Returns batch number `n` of a writer. It replaces the writer's previous batch.
fn batch(writer: u64, n: u64) -> Vec<Posting> {
    (0..BATCH)
        .map(|i| Posting {
            document_id: DocumentId((writer * BATCH + i).into()),
            start: 0,
            length: 1,
            vector: vector(n * 1_000 + writer * BATCH + i, DIMENSION),
            tags: 0,
        })
        .collect()
}

/// Returns the number of the batch of each writer in the results of a search, or 0 for no batch. Panics if a batch is
/// incomplete.
fn seen(found: &[shardex::SearchResult]) -> Vec<u64> {
    (0..WRITERS)
        .map(|writer| {
            let mut of: Vec<_> = found.iter().filter(|hit| hit.document_id.0 as u64 / BATCH == writer).collect();
            of.sort_by_key(|hit| hit.document_id.0);
            let Some(first) = of.first() else { return 0 };
            let n =
                (1..=BATCHES).find(|&n| batch(writer, n)[0].vector == first.vector).expect("a batch that was written");
            let expected = batch(writer, n);
            assert_eq!(of.len(), expected.len(), "a batch by halves");
            assert!(of.iter().zip(&expected).all(|(hit, posting)| hit.vector == posting.vector), "two batches mixed");
            n
        })
        .collect()
}

/// Writers replace their own postings while readers search and flushes run. Readers must see whole batches and never an
/// older batch than before.
fn side_by_side<S: Storage + Clone>(storage: S) {
    run(async {
        let index = Shardex::create_on(storage.clone(), config(), Env::system()).await.expect("made");
        let done = Arc::new(AtomicBool::new(false));
        let searches = Arc::new(AtomicU64::new(0));
        let writers: Vec<_> = (0..WRITERS)
            .map(|writer| {
                let index = index.clone();
                tokio::spawn(async move {
                    for n in 1..=BATCHES {
                        index.add_postings(batch(writer, n)).await.expect("accepted and durable");
                        if n % 20 == writer {
                            index.flush().await.expect("flushed");
                        }
                    }
                })
            })
            .collect();
        let readers: Vec<_> = (0..3)
            .map(|_| {
                let (index, done, searches) = (index.clone(), Arc::clone(&done), Arc::clone(&searches));
                tokio::spawn(async move {
                    let all = SearchOptions::new((WRITERS * BATCH) as usize).exact();
                    let (mut last, query) = (vec![0; WRITERS as usize], vector(1, DIMENSION));
                    while !done.load(Ordering::Acquire) {
                        let snapshot = index.snapshot().await.expect("open");
                        let now = seen(&snapshot.search_with(&query, &all).expect("searched").results);
                        assert!(now.iter().zip(&last).all(|(now, last)| now >= last), "{now:?} after {last:?}");
                        let many = snapshot.search_many(&[query.clone(), query.clone()], &all).expect("searched");
                        assert!(many.iter().all(|answer| seen(&answer.results) == now), "a snapshot has changed");
                        last = now;
                        searches.fetch_add(1, Ordering::Relaxed);
                        tokio::task::yield_now().await;
                    }
                })
            })
            .collect();
        for writer in writers {
            writer.await.expect("a writer");
        }
        done.store(true, Ordering::Release);
        for reader in readers {
            reader.await.expect("a reader");
        }
        assert!(searches.load(Ordering::Relaxed) > 0, "nobody searched");
        index.flush().await.expect("flushed");
        let stats = index.stats().await.expect("stats");
        assert!(stats.flushes > 3 && stats.splits > 0, "{stats:?}");
        assert_eq!(stats.held_by_readers_bytes, 0, "{stats:?}");
        assert!(index.check(CheckLevel::Full).await.expect("checked").is_clean());
        index.close().await.expect("closed");
        let index = Shardex::open_on(storage, OpenOptions::default(), Env::system()).await.expect("opened");
        let all = SearchOptions::new((WRITERS * BATCH) as usize).exact();
        let found = index.search_with(&vector(1, DIMENSION), &all).await.expect("searched");
        assert_eq!(seen(&found.results), vec![BATCHES; WRITERS as usize]);
    });
}

#[test]
fn writers_readers_and_flushes_side_by_side_on_real_files() {
    let dir = TempDir::new().expect("a temporary directory");
    side_by_side(MmapStorage::new(dir.path().join("index")));
}

#[test]
fn writers_readers_and_flushes_side_by_side_on_simulated_files() {
    side_by_side(SimStorage::new(4096, 512, 1));
}

/// Sixteen writers that each wait for the durability of every write share syncs.
#[test]
fn durable_writes_share_their_syncs() {
    let storage = SimStorage::new(4096, 512, 1);
    // A slow sync lets writes of the other writers arrive meanwhile.
    let slow = HookStorage::new(storage, |operation| {
        if operation.op.is_sync() {
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        HookAction::Proceed
    });
    run(async {
        let config = config().options(OpenOptions::default().durability(Durability::Immediate).flush_wal_bytes(0));
        let index = Shardex::create_on(slow, config, Env::system()).await.expect("made");
        let before = index.stats().await.expect("stats").commits;
        let writers: Vec<_> = (0..16)
            .map(|writer| {
                let index = index.clone();
                tokio::spawn(async move {
                    for n in 1..=25 {
                        index.add_postings(batch(writer, n)).await.expect("durable");
                    }
                })
            })
            .collect();
        for writer in writers {
            writer.await.expect("a writer");
        }
        let commits = index.stats().await.expect("stats").commits - before;
        assert!(commits * 4 <= 16 * 25, "{commits} syncs for {} durable writes", 16 * 25);
    });
}

/// A write doesn't wait for the syncs of a flush: it returns while one of them is blocked.
#[test]
fn a_write_and_a_commit_come_back_while_a_flush_waits() {
    let (held, hold) = std::sync::mpsc::channel::<()>();
    let hold = std::sync::Mutex::new(hold);
    let storage = HookStorage::new(SimStorage::new(4096, 512, 1), move |operation| {
        if operation.purpose.0.starts_with("B2") {
            // Blocks until the test drops the sender. Later calls return at once.
            let _ = hold.lock().expect("one sync at a time").recv();
        }
        HookAction::Proceed
    });
    run(async {
        let config = config().options(OpenOptions::default().flush_interval_ms(0));
        let index = Shardex::create_on(storage, config, Env::system()).await.expect("made");
        index.add_postings(batch(0, 1)).await.expect("accepted");
        let flush = tokio::spawn({
            let index = index.clone();
            async move { index.flush().await }
        });
        // The flush precedes the next write once it has a place in the queue.
        tokio::task::yield_now().await;
        for n in 2..5 {
            index.add_postings(batch(0, n)).await.expect("accepted");
            index.commit().await.expect("durable");
        }
        assert!(!flush.is_finished());
        let stats = index.stats().await.expect("stats");
        assert_eq!(stats.durable_lsn, stats.last_lsn);
        drop(held);
        let flushed = flush.await.expect("a task").expect("flushed");
        assert!(flushed.checkpoint_lsn >= shardex::Lsn(1));
        index.close().await.expect("closed");
    });
}

#[test]
fn a_panic_in_the_writer_is_told_to_everybody_and_hangs_nobody() {
    let broken = Arc::new(AtomicBool::new(false));
    let trap = Arc::clone(&broken);
    let sim = SimStorage::new(4096, 512, 1);
    let storage = HookStorage::new(sim.clone(), move |_| {
        assert!(!trap.load(Ordering::Acquire), "a mistake in the storage");
        HookAction::Proceed
    });
    run(async {
        let index = Shardex::create_on(storage, config(), Env::system()).await.expect("made");
        index.add_postings(batch(0, 1)).await.expect("durable");
        broken.store(true, Ordering::Release);
        assert!(matches!(index.add_postings(batch(0, 2)).await, Err(ShardexError::Poisoned { .. })));
        // The handle returns snapshots until it is closed, and searches succeed.
        let snapshot = index.snapshot().await.expect("taken");
        let search = || snapshot.search(&vector(1, DIMENSION), 9, None).expect("searched");
        let found = search();
        assert_eq!(found.len(), BATCH as usize);
        // The message of the panic is available once the thread has ended. `close` waits for that.
        assert!(matches!(index.close().await, Err(ShardexError::Poisoned { .. })));
        match index.commit().await {
            Err(ShardexError::Poisoned { cause }) => assert!(cause.contains("a mistake in the storage"), "{cause}"),
            other => panic!("{other:?}"),
        }
        assert!(matches!(index.snapshot().await.map(drop), Err(ShardexError::Poisoned { .. })));
        // The snapshot still shows the state before the panic, and keeps the lock.
        let opened = Shardex::open_on(sim.clone(), OpenOptions::default(), Env::system()).await.map(drop);
        assert!(matches!(opened, Err(ShardexError::Locked { holder: LockHolder::Reader, .. })));
        assert_eq!(search(), found);
        drop(snapshot);
        // The lock is released, and the acknowledged batch is present.
        let index = Shardex::open_on(sim, OpenOptions::default(), Env::system()).await.expect("opened");
        assert_eq!(index.stats().await.expect("stats").total_postings, BATCH);
    });
}

#[test]
fn a_panic_in_a_sync_of_a_flush_poisons() {
    let storage = HookStorage::new(SimStorage::new(4096, 512, 1), |operation| {
        assert!(!operation.purpose.0.starts_with("B2"), "a mistake in a sync");
        HookAction::Proceed
    });
    run(async {
        let config = config().options(OpenOptions::default().flush_interval_ms(0));
        let index = Shardex::create_on(storage, config, Env::system()).await.expect("made");
        index.add_postings(batch(0, 1)).await.expect("accepted");
        assert!(matches!(index.flush().await, Err(ShardexError::Io { op: "sync", .. })));
        assert!(matches!(index.add_postings(batch(0, 2)).await, Err(ShardexError::Poisoned { .. })));
    });
}

#[test]
fn a_runtime_that_shuts_down_with_calls_under_way_hangs_nobody() {
    let dir = TempDir::new().expect("a temporary directory");
    let storage = MmapStorage::new(dir.path().join("index"));
    let _limit = Limit::start();
    let first = runtime();
    let index = first.block_on(Shardex::create_on(storage.clone(), config(), Env::system())).expect("made");
    for writer in 0..8 {
        let index = index.clone();
        first.spawn(async move {
            for n in 1.. {
                drop(index.add_postings(batch(writer, n)).await);
            }
        });
    }
    first.block_on(index.flush()).expect("flushed");
    first.shutdown_background();
    // The index doesn't depend on the runtime of its caller.
    let second = runtime();
    second.block_on(index.commit()).expect("durable");
    second.block_on(index.close()).expect("closed");
    drop(index);
    second.block_on(Shardex::open_on(storage, OpenOptions::default(), Env::system())).expect("the lock is released");
}

#[test]
fn a_snapshot_stays_as_it_is_and_holds_its_places() {
    let storage = SimStorage::new(4096, 512, 1);
    run(async {
        let config = config().options(OpenOptions::default().flush_interval_ms(0));
        let index = Shardex::create_on(storage, config, Env::system()).await.expect("made");
        let all = SearchOptions::new(100).exact();
        index.add_postings(batch(0, 1)).await.expect("accepted");
        let snapshot = index.snapshot().await.expect("open");
        let before = snapshot.search_with(&vector(1, DIMENSION), &all).expect("searched");
        for n in 2..30 {
            // Every posting is replaced, so the working state retires every extent that the snapshot reads.
            index.add_postings(batch(0, n)).await.expect("accepted");
            index.add_postings((1..8).flat_map(|writer| batch(writer, n)).collect()).await.expect("accepted");
            index.flush().await.expect("flushed");
        }
        assert_eq!(snapshot.search_with(&vector(1, DIMENSION), &all).expect("searched"), before);
        assert_eq!((snapshot.len(), snapshot.is_empty()), (BATCH, false));
        let held = index.stats().await.expect("stats").held_by_readers_bytes;
        assert!(held > 0, "a snapshot holds places");
        drop((snapshot, before));
        index.add_postings(batch(0, 31)).await.expect("accepted");
        index.flush().await.expect("flushed");
        assert_eq!(index.stats().await.expect("stats").held_by_readers_bytes, 0);
        // The error of one invalid query among many contains its position.
        let refused = index.search_many(&[vector(1, DIMENSION), vec![0.0; 3]], &all).await;
        assert!(matches!(refused, Err(ShardexError::InvalidDimension { index: 1, .. })), "{refused:?}");
        index.close().await.expect("closed");
        assert!(matches!(index.snapshot().await, Err(ShardexError::Closed)));
    });
}

/// A scan of many shards on several threads returns the same results as on one thread, ties included.
#[test]
fn a_search_on_all_cores_answers_as_one_on_a_single_thread() {
    run(async {
        let config = config().shard_size(2).options(OpenOptions::default());
        let storage = SimStorage::new(4096, 512, 1);
        let index = Shardex::create_on(storage.clone(), config, Env::system()).await.expect("made");
        // Every vector is stored twice, under two ids.
        let postings = (0..600u64).map(|n| Posting {
            document_id: DocumentId(n.into()),
            start: 0,
            length: 1,
            vector: vector(n / 2, DIMENSION),
            tags: 0,
        });
        index.add_postings(postings.collect()).await.expect("accepted");
        assert!(index.stats().await.expect("stats").total_shards > 256);
        index.close().await.expect("closed");
        let inline = Env { executor: Arc::new(shardex::env::Inline), ..Env::system() };
        let mut answers = Vec::new();
        for env in [Env::system(), inline] {
            let index = Shardex::open_on(storage.clone(), OpenOptions::default(), env).await.expect("opened");
            let mut found = Vec::new();
            for k in [1, 7, 100, 600] {
                let query = vector(k as u64 + 5, DIMENSION);
                found.push(index.search_with(&query, &SearchOptions::new(k).exact()).await.expect("searched"));
                found.push(index.search_with(&query, &SearchOptions::new(k).slop(200)).await.expect("searched"));
            }
            assert_eq!((found[0].scanned, found[1].shards_scanned), (600, 200));
            answers.push(found.into_iter().map(|answer| answer.results).collect::<Vec<_>>());
            index.close().await.expect("closed");
        }
        assert!(answers[0] == answers[1]);
    });
}
