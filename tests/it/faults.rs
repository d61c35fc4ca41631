//! Tests of full and failing disks: a fault at every operation, one operation per run.

use std::{
    collections::BTreeSet,
    io::ErrorKind,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use rand::{SeedableRng as _, rngs::ChaCha8Rng};
use shardex::{
    CheckLevel, DocumentId, Engine, FlushStep, Metric, OpenOptions, Posting, Shardex, ShardexConfig, ShardexError,
    env::Env, storage::MmapStorage,
};
use shardex_sim::{
    CrashKind, SimStorage,
    hook::{HookAction, HookStorage},
    model::{Batch, Model},
};
use tempfile::TempDir;

use crate::support::vector;

mod room;

const DIMENSION: usize = 6;

fn config(dir: &str, segment: usize) -> ShardexConfig {
    let options = OpenOptions::default().wal_max_bytes(1 << 20);
    ShardexConfig::new(dir)
        .vector_size(DIMENSION)
        .metric(Metric::L2)
        .shard_size(8)
        .wal_segment_size(segment)
        .options(options)
}

fn env() -> Env {
    Env { new_index_id: 0x5EED, ..Env::system() }
}

fn batch(n: u64) -> Batch {
    let add = |range: std::ops::Range<u64>| {
        let posting = |id: u64| Posting {
            document_id: DocumentId(id.into()),
            start: 0,
            length: 1,
            vector: vector(id + n * 1_000, DIMENSION),
            tags: 0,
        };
        Batch::Add(range.map(posting).collect())
    };
    match n % 4 {
        3 => Batch::Remove((n * 7 - 21..n * 7 - 10).map(|id| DocumentId(id.into())).collect()),
        2 => add(n * 7 - 9..n * 7 + 5),
        _ => add(n * 7..n * 7 + 7),
    }
}

fn apply<S: shardex::storage::Storage>(engine: &mut Engine<S>, batch: &Batch) -> Result<(), ShardexError> {
    match batch {
        Batch::Add(postings) => engine.add(postings).map(drop),
        Batch::Remove(documents) => engine.remove(documents).map(drop),
        Batch::Write(batch) => engine.write(batch).map(drop),
    }
}

fn clean<S: shardex::storage::Storage>(engine: &Engine<S>, what: &str) {
    let report = engine.check(CheckLevel::Full).expect("readable");
    assert!(report.is_clean(), "{what}: {report}");
}

/// Every operation of a workload finds the disk full, one operation per run. Once there is room, the same call succeeds
/// and nothing is lost. A crash at the end of the run loses no acknowledged write.
#[test]
fn a_disk_that_is_full_at_any_step_refuses_and_goes_on_when_there_is_room() {
    let mut refused = BTreeSet::new();
    let mut runs = 0;
    for at in 0.. {
        let dir = TempDir::new().expect("a temporary directory");
        let config = config(dir.path().join("index").to_str().expect("a path"), 16 << 10);
        let seen = Arc::new(AtomicU64::new(0));
        let failed = Arc::new(Mutex::new(None));
        let (count, note) = (Arc::clone(&seen), Arc::clone(&failed));
        let storage = HookStorage::new(MmapStorage::new(&config.directory_path), move |info| {
            if !info.op.is_sync() && count.fetch_add(1, Ordering::Relaxed) == at {
                *note.lock().expect("no panic") = Some(info.purpose.0);
                return HookAction::Fail(ErrorKind::StorageFull);
            }
            HookAction::Proceed
        });
        let full = |error: ShardexError| match error.is_out_of_space() {
            true => (),
            false => panic!("operation {at}: {error}"),
        };
        // Only the parent directory exists, so `create` may be refused too.
        let mut engine = match Engine::create(storage.clone(), &config, &env()) {
            Ok(engine) => engine,
            Err(error) => {
                full(error);
                Engine::create(storage, &config, &env()).expect("there is room again")
            }
        };
        let mut model = Model::default();
        for n in 0..24 {
            let batch = batch(n);
            if let Err(error) = apply(&mut engine, &batch) {
                full(error);
                model.current(&engine).expect("a refused batch changes nothing");
                apply(&mut engine, &batch).expect("there is room again");
            }
            model.accept(batch);
            let done = if n % 3 == 2 { engine.flush().map(drop) } else { engine.commit().map(drop) };
            if let Err(error) = done {
                full(error);
                model.current(&engine).expect("what was accepted stays");
                clean(&engine, "after a refusal");
                if n % 3 == 2 { engine.flush().map(drop) } else { engine.commit().map(drop) }.expect("room again");
            }
            model.acknowledge();
        }
        model.current(&engine).expect("everything is there");
        clean(&engine, "at the end");
        drop(engine);
        let storage = MmapStorage::new(&config.directory_path);
        let engine = Engine::open(storage, OpenOptions::default(), &env()).expect("it opens");
        model.recovered(&engine).expect("everything is there after a crash");
        clean(&engine, "after the crash");
        runs += 1;
        match *failed.lock().expect("no panic") {
            Some(purpose) => drop(refused.insert(purpose)),
            None => break,
        }
    }
    println!("{runs} runs, refused at: {refused:?}");
    for step in [
        "create: allocate",
        "root: allocate",
        "wal: append",
        "add: postings",
        "split: postings",
        "data: grow",
        "data: states and directory",
        "root: store",
    ] {
        assert!(refused.contains(step), "`{step}` never met a full disk: {refused:?}");
    }
}

/// Each sync fails in turn. Nothing more is acknowledged, searches use the last durable root, and a reopen finds
/// every acknowledged write (P5).
#[test]
fn a_failed_sync_poisons_and_a_reopen_recovers() {
    let mut failed_at = BTreeSet::new();
    // The seed decides which bytes reach the device despite the failure. Each sync gets four seeds.
    for run in 0.. {
        let at = run / 4;
        let plain = SimStorage::new(512, 64, run);
        let seen = Arc::new(AtomicU64::new(0));
        let failed = Arc::new(Mutex::new(None));
        let (count, note, sim) = (Arc::clone(&seen), Arc::clone(&failed), plain.clone());
        let storage = HookStorage::new(plain.clone(), move |info| {
            if info.op.is_sync() && count.fetch_add(1, Ordering::Relaxed) == at {
                *note.lock().expect("no panic") = Some(info.purpose.0);
                sim.fail_next_sync(ErrorKind::Other);
            }
            HookAction::Proceed
        });
        let config = config("sim", 2048);
        let mut model = Model::default();
        let mut flushed = 0;
        if let Ok(mut engine) = Engine::create(storage, &config, &env()) {
            for n in 0..12 {
                let batch = batch(n);
                apply(&mut engine, &batch).expect("accepted");
                model.accept(batch);
                let flush = n % 3 == 2;
                let done = if flush { engine.flush().map(drop) } else { engine.commit().map(drop) };
                if done.is_err() {
                    assert!(engine.stats().expect("stats").poisoned.is_some());
                    for _ in 0..2 {
                        let poisoned = |e: Result<(), _>| matches!(e, Err(ShardexError::Poisoned { .. }));
                        assert!(poisoned(engine.commit().map(drop)));
                        assert!(poisoned(engine.flush().map(drop)));
                        assert!(poisoned(apply(&mut engine, &super::faults::batch(1))));
                        assert!(poisoned(engine.close()));
                    }
                    // Searches use the state of the last durable root.
                    let mut durable = Model::default();
                    (0..flushed).for_each(|n| durable.accept(super::faults::batch(n)));
                    durable.current(&engine).expect("the last durable root");
                    break;
                }
                model.acknowledge();
                if flush {
                    flushed = n + 1;
                }
            }
        }
        let Some(purpose) = *failed.lock().expect("no panic") else { break };
        failed_at.insert(purpose);
        for kind in [CrashKind::Process, CrashKind::Power] {
            for seed in 0..4 {
                let mut after = SimStorage::from_image(&plain.image());
                after.crash(kind, &mut ChaCha8Rng::seed_from_u64(seed));
                // An index whose `create` failed may be created now.
                let mut engine = Engine::create(after.clone(), &config, &env()).expect("a reopen recovers");
                let mut model = model.clone();
                let what = format!("{purpose}, {kind:?} {seed}");
                model.recovered(&engine).unwrap_or_else(|broken| panic!("{what}: {broken}"));
                clean(&engine, purpose);
                // Later acknowledgements depend on the bytes that the failed sync left.
                apply(&mut engine, &batch(0)).expect("accepted");
                model.accept(batch(0));
                engine.flush().expect("flushed");
                model.acknowledge();
                drop(engine);
                let nothing = vec![0; after.choices(CrashKind::Power).len()];
                after.crash_with(CrashKind::Power, &nothing);
                let engine = Engine::open(after, OpenOptions::default(), &env());
                let engine = engine.unwrap_or_else(|error| panic!("{what}: {error}"));
                model.recovered(&engine).unwrap_or_else(|broken| panic!("{what}, then the power went: {broken}"));
            }
        }
    }
    println!("a sync failed at: {failed_at:?}");
    for step in ["B1: commit", "B1: sync the WAL", "B2: sync the data", "B3: sync the root", "C1: sync data and WAL"] {
        assert!(failed_at.contains(step), "`{step}` never failed: {failed_at:?}");
    }
}

#[test]
fn a_store_that_fails_with_an_io_error_changes_nothing() {
    let storage = SimStorage::new(512, 64, 1);
    let mut engine = Engine::create(storage.clone(), &config("sim", 2048), &env()).expect("made");
    let mut model = Model::default();
    for n in 0..12 {
        let batch = batch(n);
        storage.fail_stores(Some(ErrorKind::Other));
        let refused = apply(&mut engine, &batch);
        // A removal stores nothing before its commit.
        assert!(matches!(refused, Err(ShardexError::Io { .. })) || matches!(batch, Batch::Remove(_)), "{refused:?}");
        if refused.is_ok() {
            model.accept(batch.clone());
        }
        model.current(&engine).expect("a refused batch changes nothing");
        storage.fail_stores(None);
        if refused.is_err() {
            apply(&mut engine, &batch).expect("accepted");
            model.accept(batch);
        }
        storage.fail_stores(Some(ErrorKind::Other));
        assert!(matches!(engine.flush(), Err(ShardexError::Io { .. })));
        model.current(&engine).expect("what was accepted stays");
        storage.fail_stores(None);
        engine.flush().expect("flushed");
        model.acknowledge();
        clean(&engine, "after the flush");
    }
}

/// A slot that cannot be read may hold the newest root, so the open is refused.
#[test]
fn a_root_slot_that_cannot_be_read_refuses_the_open() {
    for slot in 0..2u64 {
        let mut storage = SimStorage::new(512, 64, 1);
        let mut engine = Engine::create(storage.clone(), &config("sim", 2048), &env()).expect("made");
        apply(&mut engine, &batch(0)).expect("accepted");
        engine.flush().expect("flushed");
        drop(engine);
        storage.crash_with(CrashKind::Process, &[]);
        storage.fail_reads("root", slot * 256..slot * 256 + 1);
        let refused = Engine::open(storage, OpenOptions::default(), &env());
        assert!(matches!(refused, Err(ShardexError::Io { .. })), "slot {slot}");
    }
}

/// Regression, found by random histories: a process grew the data file and crashed before the sync that covers the
/// length. The next process took the length for durable and stored a root that referred to page ranges beyond the
/// length on the device. Then the power failed.
#[test]
fn a_length_that_only_the_page_cache_knows_is_synced_before_a_root_relies_on_it() {
    for grown in 1..6 {
        let mut storage = SimStorage::new(512, 64, 1);
        let mut engine = Engine::create(storage.clone(), &config("sim", 2048), &env()).expect("made");
        let mut model = Model::default();
        let len = || storage.files().into_iter().map(|(_, bytes)| bytes.len()).collect::<Vec<_>>();
        let (before, mut n) = (len(), 0);
        // Continues until the files have grown without a sync, at first one of them and then both.
        while n < grown * 4 || len() == before {
            apply(&mut engine, &batch(n)).expect("accepted");
            model.accept(batch(n));
            n += 1;
        }
        drop(engine);
        storage.crash_with(CrashKind::Process, &[]);
        let mut engine = Engine::open(storage.clone(), OpenOptions::default(), &env()).expect("it opens");
        model.recovered(&engine).expect("a prefix");
        for n in n..n + 8 {
            apply(&mut engine, &batch(n)).expect("accepted");
            model.accept(batch(n));
        }
        engine.flush().expect("flushed");
        model.acknowledge();
        drop(engine);
        // Power cut: no unsynced byte survives.
        let nothing = vec![0; storage.choices(CrashKind::Power).len()];
        storage.crash_with(CrashKind::Power, &nothing);
        let engine = Engine::open(storage, OpenOptions::default(), &env()).expect("it opens");
        model.recovered(&engine).expect("everything flushed is there");
    }
}

/// No caller waits for the work of the timer. If one of its syncs fails, statistics show the error, every write call is
/// refused as poisoned, and nothing more is acknowledged.
#[test]
fn a_sync_of_background_work_that_fails_is_shown_and_poisons() {
    let failing = Arc::new(AtomicBool::new(false));
    let fails = Arc::clone(&failing);
    let plain = SimStorage::new(512, 64, 1);
    let sim = plain.clone();
    let storage = HookStorage::new(plain.clone(), move |info| {
        if fails.load(Ordering::Relaxed) && info.op.is_sync() {
            sim.fail_next_sync(ErrorKind::Other);
        }
        HookAction::Proceed
    });
    crate::support::block_on(async {
        let config = config("sim", 2048).batch_write_interval_ms(1);
        let index = Shardex::create_on(storage, config.clone(), env()).await?;
        let Batch::Add(postings) = batch(0) else { unreachable!("it is an addition") };
        index.add_postings(postings.clone()).await?;
        index.flush().await?;
        failing.store(true, Ordering::Relaxed);
        let Batch::Add(more) = batch(1) else { unreachable!("it is an addition") };
        index.add_postings(more.clone()).await?;
        let told = loop {
            // Adds empty batches until the timer has met the error.
            if let Err(error) = index.add_postings(Vec::new()).await {
                break error;
            }
        };
        assert!(matches!(&told, ShardexError::Poisoned { cause } if cause.contains("sync")), "{told}");
        for _ in 0..2 {
            assert!(matches!(index.commit().await, Err(ShardexError::Poisoned { .. })));
            assert!(matches!(index.add_postings(more.clone()).await, Err(ShardexError::Poisoned { .. })));
        }
        let stats = index.stats().await?;
        assert!(stats.errors == 1 && stats.poisoned.is_some(), "{stats:?}");
        let shown = stats.background_error.expect("it is shown");
        assert!(shown.lasts && shown.failures == 1 && shown.error.contains("sync"), "{shown:?}");
        // Searches still work, on the last durable root.
        assert_eq!(index.search(&vector(1, DIMENSION), 100, None).await?.len(), postings.len());
        assert!(matches!(index.close().await, Err(ShardexError::Poisoned { .. })));
        failing.store(false, Ordering::Relaxed);
        let mut after = SimStorage::from_image(&plain.image());
        after.crash_with(CrashKind::Process, &vec![0; after.choices(CrashKind::Process).len()]);
        let index = Shardex::open_on(after, OpenOptions::default(), env()).await?;
        let there = index.stats().await?.total_postings as usize;
        assert!(there >= postings.len() && there <= postings.len() + more.len());
        index.close().await
    })
    .expect("the other calls succeed");
}

#[test]
fn a_copy_with_holes_gets_its_space_back() {
    let storage = SimStorage::new(512, 64, 1);
    let mut engine = Engine::create(storage.clone(), &config("sim", 2048), &env()).expect("made");
    let mut model = Model::default();
    for n in 0..8 {
        apply(&mut engine, &batch(n)).expect("accepted");
        model.accept(batch(n));
    }
    engine.close().expect("closed");
    model.acknowledge();
    drop(engine);
    for name in ["root", "data", "wal"] {
        storage.make_sparse(name);
    }
    let mut engine = Engine::open(storage, OpenOptions::default(), &env()).expect("it opens");
    // The simulation panics at a store into a hole.
    for n in 8..30 {
        apply(&mut engine, &batch(n)).expect("accepted");
        model.accept(batch(n));
        engine.flush().expect("flushed");
    }
    model.current(&engine).expect("everything is there");
}

/// A flush that is abandoned has a generation that the next flush gets again. Allocations made between them belong to
/// the root of the next flush. They aren't free as soon as the working state releases them, because the older of the
/// two retained roots refers to them.
#[test]
fn a_place_taken_after_a_flush_was_given_up_is_held_for_the_next_root() {
    use shardex_sim::{storage::SimStorage, workload};
    let storage = SimStorage::new(512, 64, 3);
    let config = shardex::ShardexConfig::new("sim")
        .vector_size(3)
        .shard_size(4)
        .metric(shardex::Metric::L2)
        .wal_segment_size(2048);
    let mut engine = shardex::Engine::create(storage.clone(), &config, &workload::env()).expect("an index");
    let postings = |ids: std::ops::Range<u64>| -> Vec<shardex::Posting> {
        ids.map(|n| crate::support::posting(n.into(), 0, crate::support::vector(n, 3))).collect()
    };
    engine.add(&postings(0..2)).expect("added");
    engine.flush().expect("flushed");
    engine.add(&postings(2..3)).expect("added");
    engine.commit().expect("durable");
    storage.fail_stores(Some(std::io::ErrorKind::StorageFull));
    engine.flush().expect_err("no room");
    storage.fail_stores(None);
    engine.add(&postings(3..12)).expect("added");
    engine.flush().expect("flushed");
    let removed: Vec<shardex::DocumentId> = (0..12).map(shardex::DocumentId).collect();
    engine.remove(&removed).expect("removed");
    engine.flush().expect("flushed");
    let report = engine.check(shardex::CheckLevel::Full).expect("readable");
    assert!(report.is_clean(), "{report}");
}

/// Regression: the first write after a clean open replaced the root file, and the store of its root failed. The flush
/// was resumed. While its root was being synced, another write replaced the root file again, without that root. The
/// sync covered a file that no longer had a name, and page ranges were freed because of it. The root file is now
/// replaced only before a flush begins.
#[test]
fn no_root_file_is_replaced_under_a_flush() {
    let sim = SimStorage::new(512, 64, 1);
    let config = config("sim", 2048);
    let Batch::Add(postings) = batch(0) else { unreachable!("it is an addition") };
    let mut engine = Engine::create(sim.clone(), &config, &env()).expect("made");
    engine.add(&postings).expect("added");
    engine.close().expect("closed");
    drop(engine);
    let fails = Arc::new(AtomicBool::new(true));
    let trap = Arc::clone(&fails);
    let storage = HookStorage::new(sim.clone(), move |info| {
        let is_root = info.file == "root" && info.purpose.0 == "root: store";
        if is_root && trap.load(Ordering::Relaxed) { HookAction::Fail(ErrorKind::Other) } else { HookAction::Proceed }
    });
    let mut engine = Engine::create(storage, &config, &env()).expect("opened");
    assert!(matches!(engine.add(&postings), Err(ShardexError::Io { op: "write", .. })));
    fails.store(false, Ordering::Relaxed);
    let FlushStep::Sync(root) = engine.flush_begin(false).expect("gone on with") else { panic!("a sync is due") };
    assert!(root.purpose().0.starts_with("B3"), "{root:?}");
    assert!(matches!(engine.add(&postings), Err(ShardexError::FlushInProgress)));
    let mut step = engine.flush_synced(root.run()).expect("synced");
    while let Ok(job) = step.into_sync() {
        step = engine.flush_synced(job.run()).expect("synced");
    }
    let report = engine.check(CheckLevel::Full).expect("readable");
    assert!(report.is_clean(), "{report}");
    engine.add(&postings).expect("added");
    engine.flush().expect("flushed");
    assert!(engine.check(CheckLevel::Full).expect("readable").is_clean());
}

/// Regression: a flush ended by a failed sync left allocations that nothing referred to, and a full check reported them
/// as an inconsistency.
#[test]
fn a_poisoned_engine_contradicts_nothing() {
    let fails = Arc::new(AtomicBool::new(false));
    let trap = Arc::clone(&fails);
    // The sync fails before it reaches the disk. The page cache keeps everything, and all bytes are correct.
    let storage = HookStorage::new(SimStorage::new(512, 64, 1), move |info| {
        let fails = trap.load(Ordering::Relaxed) && info.purpose.0.starts_with("B2");
        if fails { HookAction::Fail(ErrorKind::Other) } else { HookAction::Proceed }
    });
    let Batch::Add(postings) = batch(0) else { unreachable!("it is an addition") };
    let mut engine = Engine::create(storage, &config("sim", 2048), &env()).expect("made");
    engine.add(&postings).expect("added");
    fails.store(true, Ordering::Relaxed);
    assert!(matches!(engine.flush(), Err(ShardexError::Io { op: "sync", .. })));
    let report = engine.check(CheckLevel::Full).expect("readable");
    assert!(report.is_clean(), "{report}");
}
