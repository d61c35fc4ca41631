//! Tests of the public API: accepted input, refused input, and the files that calls leave behind.

use std::fs;

use shardex::{
    CheckLevel, DocumentId, Durability, LockHolder, Metric, OpenOptions, Posting, SearchOptions, Shardex,
    ShardexConfig, ShardexError, limits,
};
use tempfile::TempDir;

use crate::support::{DIMENSION, block_on, documents, posting, vector};

fn config(dir: &TempDir) -> ShardexConfig {
    let options = OpenOptions::default().default_recall(1.0);
    ShardexConfig::new(dir.path().join("index"))
        .vector_size(DIMENSION)
        .metric(Metric::L2)
        .shard_size(16)
        .wal_segment_size(16 << 10)
        .options(options)
}

/// Runs a test on a new index.
fn with_index<F: Future<Output = Result<(), ShardexError>>>(test: impl FnOnce(Shardex, ShardexConfig) -> F) {
    let dir = TempDir::new().expect("a temporary directory");
    let config = config(&dir);
    block_on(async {
        let index = Shardex::create(config.clone()).await?;
        test(index, config).await
    })
    .expect("the test's calls succeed");
}

fn ids(results: &[shardex::SearchResult]) -> Vec<u128> {
    let mut ids: Vec<u128> = results.iter().map(|result| result.document_id.0).collect();
    ids.sort_unstable();
    ids
}

#[test]
fn add_search_remove_flush_close_open() {
    with_index(async |index, config| {
        index.add_postings(documents(0..100)).await?;
        let found = index.search(&vector(42, DIMENSION), 3, None).await?;
        assert_eq!((found[0].document_id, found[0].similarity_score), (DocumentId(42), 0.0));
        assert_eq!(found[0].vector, vector(42, DIMENSION));
        assert!(found.windows(2).all(|pair| pair[0].similarity_score >= pair[1].similarity_score));
        assert_eq!(index.remove_documents(vec![DocumentId(42)]).await?, 1);
        assert_ne!(index.search(&vector(42, DIMENSION), 1, None).await?[0].document_id, DocumentId(42));
        let stats = index.flush().await?;
        assert_eq!(stats.operations_applied, 101);
        assert!(stats.to_string().contains("3 barriers"), "{stats}");
        let response = index.search_with(&vector(1, DIMENSION), &SearchOptions::new(5).exact()).await?;
        assert_eq!((response.results.len(), response.scanned), (5, 99));
        let hits = index.search_in_place(&vector(1, DIMENSION), &SearchOptions::new(5).exact()).await?;
        assert_eq!((hits.len(), hits.scanned(), hits.to_response()), (5, 99, response));
        assert!(hits.iter().all(|hit| hit.norm == 1.0 && hit.vector.len() == DIMENSION));
        let one = index.search_with(&vector(1, DIMENSION), &SearchOptions::new(5).slop(1)).await?;
        assert!(one.shards_scanned == 1 && one.scanned <= 16);
        drop(hits);
        index.close().await?;
        let index = Shardex::open(&config.directory_path).await?;
        assert_eq!(index.stats().await?.total_postings, 99);
        assert!(index.check(CheckLevel::Full).await?.is_clean());
        Ok(())
    });
}

#[test]
fn bad_input_is_refused_by_name_and_changes_nothing() {
    with_index(async |index, _| {
        index.add_postings(documents(0..10)).await?;
        index.commit().await?;
        let before = index.stats().await?;
        let good = || documents(100..102);
        let with = |change: fn(&mut Posting)| {
            let mut batch = good();
            change(&mut batch[1]);
            batch
        };
        type Expect = fn(&ShardexError) -> bool;
        let vector_1: Expect = |e| matches!(e, ShardexError::InvalidVector { index: 1, .. });
        let posting_1: Expect = |e| matches!(e, ShardexError::InvalidPosting { index: 1, .. });
        let cases: [(Vec<Posting>, Expect); 8] = [
            (
                with(|p| p.vector.push(0.0)),
                |e| matches!(e, ShardexError::InvalidDimension { index: 1, expected: DIMENSION, actual } if *actual == DIMENSION + 1),
            ),
            (with(|p| p.vector.clear()), |e| matches!(e, ShardexError::InvalidDimension { index: 1, .. })),
            (with(|p| p.vector[3] = f32::NAN), vector_1),
            (with(|p| p.vector[0] = f32::INFINITY), vector_1),
            (with(|p| p.vector[0] = f32::NEG_INFINITY), vector_1),
            (with(|p| p.vector.fill(f32::MAX)), vector_1),
            (with(|p| p.length = 0), posting_1),
            (with(|p| (p.start, p.length) = (u32::MAX, 1)), posting_1),
        ];
        for (batch, expected) in cases {
            let error = index.add_postings(batch).await.expect_err("refused");
            assert!(expected(&error), "{error:?}");
        }
        let query = vector(1, DIMENSION);
        for options in [SearchOptions::new(0), SearchOptions::new(limits::MAX_K + 1), SearchOptions::new(usize::MAX)] {
            let error = index.search_with(&query, &options).await.expect_err("refused");
            assert!(matches!(error, ShardexError::InvalidArgument { argument: "k", .. }), "{error}");
        }
        let error = index.search(&query, 1, Some(0)).await.expect_err("refused");
        assert!(matches!(error, ShardexError::InvalidArgument { argument: "slop", .. }), "{error}");
        assert_eq!(index.search(&query, limits::MAX_K, Some(usize::MAX)).await?.len(), 10);
        let mut nan = query.clone();
        nan[5] = f32::NAN;
        assert!(matches!(index.search(&nan, 1, None).await, Err(ShardexError::InvalidVector { .. })));
        assert!(matches!(
            index.search(&query[1..], 1, None).await,
            Err(ShardexError::InvalidDimension { expected: DIMENSION, .. })
        ));
        // Empty batches are accepted and change nothing.
        index.add_postings(Vec::new()).await?;
        assert_eq!(index.remove_documents(Vec::new()).await?, 0);
        let after = index.stats().await?;
        assert_eq!(
            (after.total_postings, after.last_lsn, after.bytes_stored),
            (before.total_postings, before.last_lsn, before.bytes_stored)
        );
        // The largest accepted range ends at `u32::MAX`.
        let mut edge = good();
        (edge[0].start, edge[0].length) = (u32::MAX - 1, 1);
        index.add_postings(edge).await?;
        Ok(())
    });
}

#[test]
fn bad_configurations_are_refused_by_field() {
    let dir = TempDir::new().expect("a temporary directory");
    let base = config(&dir);
    let options = |change: fn(OpenOptions) -> OpenOptions| base.clone().options(change(base.options.clone()));
    let cases = [
        (base.clone().vector_size(0), "vector_size"),
        (base.clone().vector_size(limits::MAX_DIMENSION + 1), "vector_size"),
        (base.clone().shard_size(0), "shard_size"),
        (base.clone().shard_size(1), "shard_size"),
        (base.clone().shard_size(usize::MAX), "shard_size"),
        (base.clone().bloom_filter_size(usize::MAX), "bloom_filter_size"),
        (base.clone().wal_segment_size(0), "wal_segment_size"),
        (base.clone().wal_segment_size(20_000), "wal_segment_size"),
        (options(|o| o.wal_max_bytes(1)), "wal_max_bytes"),
        (options(|o| o.batch_write_interval_ms(0)), "batch_write_interval_ms"),
        (options(|o| o.shardex_segment_size(0)), "shardex_segment_size"),
        (options(|o| o.queue_size(0)), "queue_size"),
        (options(|o| o.max_undurable_ms(0)), "max_undurable_ms"),
        (options(|o| o.max_undurable_bytes(0)), "max_undurable_bytes"),
    ];
    for (config, expected) in cases {
        match block_on(Shardex::create(config)) {
            Err(ShardexError::Config { field, .. }) => assert_eq!(field, expected),
            other => panic!("{expected}: {other:?}"),
        }
        assert!(!base.directory_path.exists(), "{expected}: nothing is made");
    }
}

#[test]
fn a_create_with_another_configuration_changes_no_file_even_after_a_crash() {
    let dir = TempDir::new().expect("a temporary directory");
    let config = config(&dir);
    block_on(async {
        let options = config.options.clone().flush_on_close(false);
        let index = Shardex::create(config.clone().options(options)).await?;
        index.add_postings(documents(0..20)).await?;
        index.commit().await?;
        // The WAL without a closing mark is that of a crash.
        fs::copy(config.directory_path.join("wal"), dir.path().join("wal")).expect("copied");
        index.close().await
    })
    .expect("made");
    fs::copy(dir.path().join("wal"), config.directory_path.join("wal")).expect("copied");
    let files = || {
        let entries =
            fs::read_dir(&config.directory_path).expect("readable").map(|entry| entry.expect("an entry").path());
        let mut files: Vec<_> = entries.map(|path| (fs::read(&path).expect("readable"), path)).collect();
        files.sort_by(|(_, a), (_, b)| a.cmp(b));
        files
    };
    let before = files();
    match block_on(Shardex::create(config.clone().shard_size(17))) {
        Err(ShardexError::ConfigMismatch { field, .. }) => assert_eq!(field, "shard_size"),
        other => panic!("{other:?}"),
    }
    assert!(files() == before, "a refused create changes no file");
    let index = block_on(Shardex::create(config)).expect("opens");
    let stats = block_on(index.stats()).expect("open");
    assert_eq!((stats.total_postings, stats.recovery.records_replayed), (20, 1));
}

#[test]
fn a_wal_limit_below_four_segments_is_refused_at_an_open_and_changes_nothing() {
    let dir = TempDir::new().expect("a temporary directory");
    let config = config(&dir);
    block_on(async {
        let index = Shardex::create(config.clone()).await?;
        index.add_postings(documents(0..20)).await?;
        index.close().await
    })
    .expect("made");
    let leftover = config.directory_path.join("root.new");
    fs::write(&leftover, "left").expect("written");
    let too_small = config.options.clone().wal_max_bytes(4 * (16 << 10) - 1);
    match block_on(Shardex::open_with(&config.directory_path, too_small)) {
        Err(ShardexError::Config { field, .. }) => assert_eq!(field, "wal_max_bytes"),
        other => panic!("{other:?}"),
    }
    assert!(leftover.exists(), "a refused open removes no file");
    let least = config.options.clone().wal_max_bytes(4 * (16 << 10));
    let index = block_on(Shardex::open_with(&config.directory_path, least)).expect("four segments are enough");
    assert_eq!(block_on(index.stats()).expect("open").total_postings, 20);
    assert!(!leftover.exists());
}

#[test]
fn directories_that_are_no_index_are_refused_and_left_alone() {
    let dir = TempDir::new().expect("a temporary directory");
    let missing = dir.path().join("a").join("b");
    let create = |path: &std::path::Path| block_on(Shardex::create(ShardexConfig::new(path)));
    let open = |path: &std::path::Path| block_on(Shardex::open(path));
    assert!(matches!(open(&missing), Err(ShardexError::NotFound { .. })));
    assert!(matches!(create(&missing), Err(ShardexError::Io { .. })), "only the last component is made");
    assert!(matches!(open(dir.path()), Err(ShardexError::NotFound { .. })), "an empty directory");
    assert_eq!(fs::read_dir(dir.path()).expect("readable").count(), 0);

    let foreign = dir.path().join("foreign");
    fs::create_dir(&foreign).expect("a directory");
    fs::write(foreign.join("letters.txt"), "dear").expect("a file");
    assert!(matches!(create(&foreign), Err(ShardexError::AlreadyExists { .. })));
    assert!(matches!(open(&foreign), Err(ShardexError::NotFound { .. })));
    assert_eq!(fs::read_dir(&foreign).expect("readable").count(), 1);

    let file = dir.path().join("file");
    fs::write(&file, "x").expect("a file");
    assert!(matches!(create(&file), Err(ShardexError::Io { .. })));
    assert!(matches!(open(&file), Err(ShardexError::Io { .. })));

    let rubbish = dir.path().join("rubbish");
    fs::create_dir(&rubbish).expect("a directory");
    for name in ["root", "data", "wal"] {
        fs::write(rubbish.join(name), vec![7; 9000]).expect("a file");
    }
    assert!(matches!(open(&rubbish), Err(ShardexError::NotAnIndex { .. })));
    assert!(matches!(create(&rubbish), Err(ShardexError::NotAnIndex { .. })));
    fs::write(rubbish.join("root"), "").expect("a file");
    assert!(matches!(open(&rubbish), Err(ShardexError::NotAnIndex { .. })));
}

/// An index can be created in a new volume: the entries of a file system or a desktop don't count as foreign data.
#[test]
fn a_fresh_volume_becomes_an_index_and_keeps_what_it_came_with() {
    let dir = TempDir::new().expect("a temporary directory");
    let volume = dir.path();
    fs::create_dir(volume.join("lost+found")).expect("a directory");
    fs::write(volume.join(".DS_Store"), "icons").expect("a file");
    // `create` removes the leftover of an interrupted `create` and keeps the other files.
    fs::write(volume.join("data"), vec![0; 4096]).expect("a file");
    let make = || block_on(Shardex::create(ShardexConfig::new(volume).vector_size(DIMENSION).metric(Metric::L2)));
    let index = make().expect("made");
    block_on(index.add_postings(documents(0..20))).expect("accepted");
    block_on(index.close()).expect("closed");
    for open in [true, false] {
        let index = if open { block_on(Shardex::open(volume)).expect("opens") } else { make().expect("opens") };
        assert_eq!(block_on(index.stats()).expect("stats").total_postings, 20);
        block_on(index.close()).expect("closed");
    }
    assert!(volume.join("lost+found").is_dir());
    assert_eq!(fs::read(volume.join(".DS_Store")).expect("readable"), b"icons");
    fs::remove_file(volume.join("root")).expect("removed");
    fs::write(volume.join("letters.txt"), "dear").expect("a file");
    assert!(matches!(make(), Err(ShardexError::AlreadyExists { reason, .. }) if reason.contains("letters.txt")));
}

#[test]
fn create_opens_what_has_the_same_configuration_and_refuses_what_has_not() {
    with_index(async |index, config| {
        index.add_postings(documents(0..20)).await?;
        index.close().await?;
        let other = OpenOptions::default().durability(Durability::Manual);
        let index = Shardex::create(config.clone().options(other)).await?;
        assert_eq!(index.stats().await?.total_postings, 20);
        index.close().await?;
        let cases = [
            (config.clone().vector_size(DIMENSION + 1), "vector_size"),
            (config.clone().metric(Metric::Dot), "metric"),
            (config.clone().shard_size(32), "shard_size"),
            (config.clone().bloom_filter_size(4096), "bloom_filter_size"),
            (config.clone().wal_segment_size(32 << 10), "wal_segment_size"),
        ];
        for (config, expected) in cases {
            match Shardex::create(config).await {
                Err(ShardexError::ConfigMismatch { field, .. }) => assert_eq!(field, expected),
                other => panic!("{expected}: {other:?}"),
            }
        }
        let index = Shardex::open(&config.directory_path).await?;
        assert_eq!(index.stats().await?.total_postings, 20);
        Ok(())
    });
}

#[test]
fn a_second_open_is_refused_until_the_first_is_gone() {
    with_index(async |index, config| {
        let path = config.directory_path.clone();
        assert!(matches!(Shardex::open(&path).await, Err(ShardexError::Locked { .. })));
        assert!(matches!(Shardex::create(config.clone()).await, Err(ShardexError::Locked { .. })));
        index.add_postings(documents(0..5)).await?;
        index.commit().await?;
        let clone = index.clone();
        drop(index);
        assert!(matches!(Shardex::open(&path).await, Err(ShardexError::Locked { .. })), "a clone holds it");
        drop(clone);
        let index = Shardex::open(&path).await?;
        assert_eq!(index.stats().await?.total_postings, 5);
        index.close().await?;
        Shardex::open(&path).await?.close().await?;
        Ok(())
    });
}

#[test]
fn a_closed_handle_says_so() {
    with_index(async |index, _| {
        let clone = index.clone();
        index.close().await?;
        assert!(matches!(clone.add_postings(documents(0..1)).await, Err(ShardexError::Closed)));
        assert!(matches!(clone.search(&vector(0, DIMENSION), 1, None).await, Err(ShardexError::Closed)));
        assert!(matches!(clone.flush().await, Err(ShardexError::Closed)));
        assert!(matches!(clone.stats().await, Err(ShardexError::Closed)));
        assert!(matches!(clone.close().await, Err(ShardexError::Closed)));
        Ok(())
    });
}

#[test]
fn immediate_writes_are_durable_when_they_return() {
    let dir = TempDir::new().expect("a temporary directory");
    let base = config(&dir);
    let immediate = base.options.clone().durability(Durability::Immediate);
    block_on(async {
        let index = Shardex::create(base.clone().options(immediate)).await?;
        for n in 0..10 {
            index.add_postings(documents(n..n + 1)).await?;
            assert_eq!(index.stats().await?.uncommitted_operations, 0);
        }
        index.remove_documents(vec![DocumentId(0)]).await?;
        let stats = index.stats().await?;
        assert_eq!((stats.uncommitted_operations, stats.durable_lsn), (0, stats.last_lsn));
        Ok::<_, ShardexError>(())
    })
    .expect("the calls succeed");
}

#[test]
fn the_interval_commits_and_the_timer_and_the_size_of_the_wal_flush() {
    let dir = TempDir::new().expect("a temporary directory");
    let base = config(&dir);
    let quick = base.options.clone().batch_write_interval_ms(1).flush_interval_ms(1);
    block_on(async {
        let index = Shardex::create(base.clone().options(quick)).await?;
        index.add_postings(documents(0..10)).await?;
        // Polls without a deadline, because the times of the timer's commit and flush vary.
        loop {
            let stats = index.stats().await?;
            if stats.durable_lsn == stats.last_lsn && stats.flushes > 0 && stats.pending_operations == 0 {
                break;
            }
        }
        index.close().await?;
        let by_size = base.options.clone().flush_wal_bytes(20_000).flush_interval_ms(0).durability(Durability::Manual);
        let index = Shardex::open_with(&base.directory_path, by_size).await?;
        for n in 1..40 {
            index.add_postings(documents(n * 10..n * 10 + 10)).await?;
            let stats = index.stats().await?;
            // Up to `flush_wal_bytes` more may arrive while a flush is under way.
            assert!(stats.wal_bytes < 2 * 20_000 + 4_096, "{stats:?}");
        }
        assert!(index.stats().await?.flushes > 1);
        Ok::<_, ShardexError>(())
    })
    .expect("the calls succeed");
}

#[test]
fn clones_and_tasks_share_an_index() {
    let dir = TempDir::new().expect("a temporary directory");
    let base = config(&dir);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(4).build().expect("a runtime");
    runtime
        .block_on(async {
            let index = Shardex::create(base).await?;
            let mut tasks = Vec::new();
            for task in 0..8u64 {
                let index = index.clone();
                tasks.push(tokio::spawn(async move {
                    for n in 0..20 {
                        let first = task * 1_000 + n * 5;
                        index.add_postings(documents(first..first + 5)).await?;
                        let found = index.search(&vector(first, DIMENSION), 1, None).await?;
                        assert_eq!(found[0].document_id, DocumentId(first.into()), "a search sees what was accepted");
                        if n % 7 == task % 7 {
                            index.flush().await?;
                        } else if n % 3 == 0 {
                            index.commit().await?;
                        }
                    }
                    Ok::<_, ShardexError>(())
                }));
            }
            for task in tasks {
                task.await.expect("no task panics")?;
            }
            let all = index.search(&vector(0, DIMENSION), 10_000, None).await?;
            assert_eq!(ids(&all).len(), 800);
            assert!(index.check(CheckLevel::Full).await?.is_clean());
            index.close().await
        })
        .expect("the calls succeed");
}

#[test]
fn cosine_refuses_zero_keeps_norms_and_scores_angles() {
    let dir = TempDir::new().expect("a temporary directory");
    let config = config(&dir).metric(Metric::Cosine);
    block_on(async {
        let index = Shardex::create(config).await?;
        let error = index.add_postings(vec![posting(1, 0, vec![0.0; DIMENSION])]).await.expect_err("no direction");
        assert!(matches!(error, ShardexError::InvalidVector { index: 0, .. }), "{error}");
        let given: Vec<f32> = vector(5, DIMENSION).iter().map(|x| x * 37.5).collect();
        let opposite: Vec<f32> = given.iter().map(|x| -x * 0.01).collect();
        index.add_postings(vec![posting(1, 0, given.clone()), posting(2, 0, opposite)]).await?;
        let query: Vec<f32> = given.iter().map(|x| x * 1e-3).collect();
        let found = index.search(&query, 2, None).await?;
        assert_eq!(found.iter().map(|r| r.document_id.0).collect::<Vec<_>>(), [1, 2]);
        assert!((found[0].similarity_score - 1.0).abs() < 1e-6 && (found[1].similarity_score + 1.0).abs() < 1e-6);
        assert!(found[0].vector.iter().zip(&given).all(|(a, b)| (a - b).abs() <= b.abs() * 1e-6));
        assert!(matches!(index.search(&[0.0; DIMENSION], 1, None).await, Err(ShardexError::InvalidVector { .. })));
        Ok::<_, ShardexError>(())
    })
    .expect("the calls succeed");
}

/// Calls are dropped while the writer is blocked. Calls with a place in the queue are carried out, the others are not.
/// No call is carried out in part.
#[test]
fn a_dropped_call_is_carried_out_or_not_but_never_by_halves() {
    use std::sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    };

    use shardex::{env::Env, storage::MmapStorage};
    use shardex_sim::hook::{HookAction, HookStorage};

    const QUEUE: u64 = 3;
    let dir = TempDir::new().expect("a temporary directory");
    let disk = MmapStorage::new(dir.path().join("index"));
    let (held, reached) = (Arc::new(AtomicBool::new(true)), Arc::new(AtomicBool::new(false)));
    let (hold, reach) = (Arc::clone(&held), Arc::clone(&reached));
    let storage = HookStorage::new(disk.clone(), move |info| {
        if info.purpose.0 == "add: postings" {
            reach.store(true, Ordering::Release);
            while hold.load(Ordering::Acquire) {
                std::thread::yield_now();
            }
        }
        HookAction::Proceed
    });
    let config = ShardexConfig::new("unused").vector_size(DIMENSION).metric(Metric::L2);
    let options = OpenOptions::default().queue_size(QUEUE as usize);
    block_on(async {
        let index = Shardex::create_on(storage, config.options(options), Env::system()).await?;
        let poll_once = async |n: u64| {
            let add = index.add_postings(documents(n * 10..n * 10 + 10));
            tokio::select! { biased; _ = add => {}, () = std::future::ready(()) => {} }
        };
        poll_once(0).await;
        while !reached.load(Ordering::Acquire) {
            std::thread::yield_now();
        }
        for n in 1..50 {
            poll_once(n).await;
        }
        held.store(false, Ordering::Release);
        let total = index.stats().await?.total_postings;
        // The call under way keeps its place in the queue until it completes.
        assert_eq!(total, QUEUE * 10);
        index.close().await?;
        let index = Shardex::open_on(disk, OpenOptions::default(), Env::system()).await?;
        assert_eq!(index.stats().await?.total_postings, total);
        Ok::<_, ShardexError>(())
    })
    .expect("the calls succeed");
}

/// Regression: the engine held the lock and the snapshot held the bytes, so the next engine freed and overwrote bytes
/// that an old reader still read. Every holder of bytes now holds the lock too.
#[test]
fn what_outlives_its_handle_keeps_its_bytes_and_the_index_locked() {
    with_index(async |index, config| {
        index.add_postings(documents(0..100)).await?;
        index.flush().await?;
        let query = vector(1, DIMENSION);
        let snapshot = index.snapshot().await?;
        let hits = index.search_in_place(&query, &SearchOptions::new(5).exact()).await?;
        let (in_snapshot, in_hits) = (snapshot.search(&query, 100, None)?, hits.to_response());
        let clone = index.clone();
        index.close().await?;
        let open = || async { Shardex::open(&config.directory_path).await.map(drop) };
        let reader = |opened| matches!(opened, Err(ShardexError::Locked { holder: LockHolder::Reader, .. }));
        assert!(reader(open().await), "a snapshot and hits hold it");
        assert_eq!(snapshot.search(&query, 100, None)?, in_snapshot);
        drop(snapshot);
        assert!(reader(open().await), "hits hold it");
        assert_eq!(hits.to_response(), in_hits);
        drop(hits);
        // A clone of a closed handle holds neither bytes nor the lock.
        assert!(matches!(clone.snapshot().await, Err(ShardexError::Closed)));
        let index = Shardex::open(&config.directory_path).await?;
        assert!(matches!(open().await, Err(ShardexError::Locked { holder: LockHolder::Handle, .. })));
        // Results also keep the lock if the handle is dropped instead of closed.
        let hits = index.search_in_place(&query, &SearchOptions::new(5).exact()).await?;
        drop(index);
        assert!(reader(open().await), "hits hold it after a drop");
        let message = Shardex::open(&config.directory_path).await.map(drop).expect_err("locked").to_string();
        assert!(message.contains("a snapshot or the `Hits` of a search"), "{message}");
        assert_eq!(hits.to_response(), in_hits);
        drop(hits);
        open().await
    });
}

/// Regression: removing the file `LOCK` of an open index admitted a second writer, and acknowledged writes were lost.
#[test]
fn an_open_index_whose_lock_file_was_removed_is_locked_still() {
    with_index(async |index, config| {
        index.add_postings(documents(0..10)).await?;
        index.commit().await?;
        std::fs::remove_file(config.directory_path.join("LOCK")).expect("it is there");
        for opened in [Shardex::open(&config.directory_path).await, Shardex::create(config.clone()).await] {
            assert!(matches!(opened.map(drop), Err(ShardexError::Locked { holder: LockHolder::Handle, .. })));
        }
        index.add_postings(documents(10..20)).await?;
        index.close().await?;
        let index = Shardex::open(&config.directory_path).await?;
        assert_eq!(index.stats().await?.total_postings, 20);
        Ok(())
    });
}

#[test]
fn an_open_that_fails_leaves_no_file_behind() {
    let dir = TempDir::new().expect("a temporary directory");
    let names = || {
        let mut names: Vec<_> = std::fs::read_dir(dir.path())
            .expect("a directory")
            .map(|entry| entry.expect("an entry").file_name().into_string().expect("a name"))
            .collect();
        names.sort();
        names
    };
    let opened = || block_on(Shardex::open(dir.path())).map(drop);
    assert!(matches!(opened(), Err(ShardexError::NotFound { .. })));
    assert_eq!(names(), [""; 0]);
    std::fs::write(dir.path().join("notes.txt"), "mine").expect("written");
    assert!(matches!(opened(), Err(ShardexError::NotFound { .. })));
    let config = ShardexConfig::new(dir.path()).vector_size(3);
    assert!(matches!(block_on(Shardex::create(config)).map(drop), Err(ShardexError::AlreadyExists { .. })));
    assert_eq!(names(), ["notes.txt"]);
    std::fs::write(dir.path().join("root"), vec![b'x'; 20_000]).expect("written");
    assert!(matches!(opened(), Err(ShardexError::NotAnIndex { .. })));
    assert_eq!(names(), ["notes.txt", "root"]);
    // An open that finds only the leftover of an interrupted `create` leaves no file behind either.
    std::fs::remove_file(dir.path().join("root")).expect("it is there");
    std::fs::write(dir.path().join("wal"), vec![0; 4096]).expect("written");
    assert!(matches!(opened(), Err(ShardexError::NotFound { .. })));
    assert_eq!(names(), ["notes.txt", "wal"]);
}

/// Regression: `create` and `open` read the directory before they held the lock. Of two concurrent calls, one could
/// remove the files that the other was creating.
#[test]
fn creates_and_opens_that_race_end_well() {
    for _ in 0..20 {
        let dir = TempDir::new().expect("a temporary directory");
        let config = ShardexConfig::new(dir.path().join("index")).vector_size(3);
        let start = std::sync::Barrier::new(6);
        std::thread::scope(|scope| {
            for i in 0..6 {
                let (config, start) = (config.clone(), &start);
                scope.spawn(move || {
                    start.wait();
                    for _ in 0..5 {
                        let made = match i % 3 {
                            0 => block_on(Shardex::open(&config.directory_path)),
                            _ => block_on(Shardex::create(config.clone())),
                        };
                        match made {
                            Ok(index) => {
                                let add = async {
                                    let posting = Posting {
                                        document_id: DocumentId(i),
                                        start: 0,
                                        length: 1,
                                        vector: vec![1.0, 2.0, i as f32],
                                        tags: 0,
                                    };
                                    index.add_postings(vec![posting]).await?;
                                    index.close().await
                                };
                                block_on(add).expect("who has it open has it alone");
                            }
                            Err(ShardexError::Locked { .. }) => {}
                            Err(ShardexError::NotFound { .. }) if i % 3 == 0 => {}
                            Err(error) => panic!("a race ends with: {error}"),
                        }
                    }
                });
            }
        });
        let index = block_on(Shardex::create(config)).expect("nobody has it open any more");
        let report = block_on(index.check(CheckLevel::Full)).expect("readable");
        assert!(report.is_clean(), "{report}");
    }
}

/// Regression: a child that dropped its inherited lock released the lock of the parent, which was still reading.
#[test]
fn a_forked_child_releases_no_lock_of_its_parent() {
    use std::{os::unix::process::CommandExt as _, process::Command, sync::Mutex};

    use shardex::storage::{MmapStorage, Storage as _};

    let dir = TempDir::new().expect("a temporary directory");
    let storage = MmapStorage::new(dir.path());
    let lock = std::sync::Arc::new(Mutex::new(Some(storage.lock("LOCK").expect("free"))));
    let inherited = std::sync::Arc::clone(&lock);
    let mut child = Command::new("true");
    #[expect(unsafe_code, reason = "what runs in a forked child")]
    // SAFETY: the child locks a mutex that no other thread holds, and closes a descriptor.
    unsafe {
        child.pre_exec(move || {
            drop(inherited.lock().expect("no panic").take());
            Ok(())
        });
    }
    assert!(child.status().expect("it runs").success());
    assert!(matches!(storage.lock("LOCK").map(drop), Err(ShardexError::Locked { holder: LockHolder::Handle, .. })));
    drop(lock.lock().expect("no panic").take());
    drop(storage.lock("LOCK").expect("free again"));
}

/// An exhaustive search orders postings at equal distance by document, start and length. A search by cells may return
/// any of them.
#[test]
fn postings_that_tie_come_in_the_order_of_their_keys() {
    with_index(async |index, _| {
        let tie = |document: u128, start, length| Posting {
            document_id: DocumentId(document),
            start,
            length,
            vector: vector(7, DIMENSION),
            tags: 0,
        };
        let mut postings: Vec<Posting> = (1..=60).rev().map(|length| tie(5, 3, length)).collect();
        postings.extend([tie(5, 2, 90), tie(4, 9, 90), tie(6, 0, 1)]);
        let expected = [(4, 9, 90), (5, 2, 90), (5, 3, 1), (5, 3, 2)];
        index.add_postings(postings).await?;
        for optimized in [false, true] {
            if optimized {
                index.optimize().await?;
            }
            let found = index.search_with(&vector(7, DIMENSION), &SearchOptions::new(4).exact()).await?.results;
            let keys: Vec<_> = found.iter().map(|hit| (hit.document_id.0, hit.start, hit.length)).collect();
            assert_eq!(keys, expected, "{optimized}");
            let found = index.search_with(&vector(7, DIMENSION), &SearchOptions::new(4)).await?.results;
            assert!(found.len() == 4 && found.iter().all(|hit| hit.similarity_score == 0.0), "{found:?}");
        }
        Ok(())
    });
}
