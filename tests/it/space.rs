//! Tests of the space that an index takes on the disk: free space goes back to the file system, nothing that is needed
//! goes with it, and space that is used again is reserved first.

use std::{
    fs, io,
    os::unix::fs::MetadataExt as _,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use shardex::{
    BackgroundWork, CheckLevel, DocumentId, Engine, OpenOptions, Shardex, ShardexConfig, ShardexError,
    env::Env,
    storage::{MmapStorage, Storage},
};
use shardex_sim::{HookAction, HookStorage, SimStorage, oracle, storage::Op, workload};

use crate::{
    async_faults::{config, run},
    support::{DIMENSION, TestIndex, check_clean, documents, everything, ids, vector},
};

/// Returns the bytes of storage that a file takes.
fn takes(path: &Path) -> u64 {
    fs::metadata(path).expect("a file").blocks() * 512
}

fn used<S: Storage>(engine: &Engine<S>) -> u64 {
    let pages: u64 = engine.used_allocations().map(|run| u64::from(run.pages)).sum();
    (pages + 1) * engine.geometry().page_size as u64
}

fn remove(engine: &mut Engine<MmapStorage>, range: std::ops::Range<u64>) {
    let ids: Vec<DocumentId> = range.map(|n| DocumentId(n.into())).collect();
    engine.remove(&ids).expect("removed");
}

/// Stores a twin of the newest root.
fn store_twin(engine: &mut Engine<MmapStorage>) {
    let mut step = engine.flush_begin(true).expect("begun");
    while let Ok(job) = step.into_sync() {
        step = engine.flush_synced(job.run()).expect("synced");
    }
}

/// Regression: the data file never became smaller, and nothing in it was given back.
#[test]
fn what_is_free_goes_back_to_the_disk() {
    let index = TestIndex::small();
    let data = index.path().join("data");
    let mut engine = index.create();
    for batch in 0..20 {
        engine.add(&documents(batch * 200..(batch + 1) * 200)).expect("added");
        engine.flush().expect("flushed");
    }
    let full = takes(&data);
    remove(&mut engine, 0..3_900);
    while engine.compact_step(u64::MAX, 1 << 20).expect("rewritten") > 0 {}
    engine.flush().expect("flushed");
    let released = engine.trim(0).expect("trimmed");
    let (needed, after) = (used(&engine), takes(&data));
    // The file system counts the blocks of its own tables too.
    assert!(after <= needed + (64 << 10), "{after} bytes for {needed} in use");
    assert!(after < full / 4 && released >= (full - after) / 2, "{full} -> {after}, {released} given back");
    assert_eq!(engine.trim(0).expect("trimmed"), 0, "nothing is left to give back");
    let stats = engine.stats().expect("stats");
    assert_eq!(stats.reclaimable_bytes, 0);
    assert!(stats.disk_bytes >= after && stats.free_bytes > released / 2, "{stats:?}");
    check_clean(&engine);
    let expected: Vec<u128> = (3_900..4_000).collect();
    assert_eq!(ids(&engine), expected);
    engine.close().expect("closed");
    drop(engine);

    // An open does not undo it, and what is added takes only what it needs.
    let mut engine = index.open();
    assert_eq!(ids(&engine), expected);
    assert!(takes(&data) <= needed + (64 << 10), "an open takes nothing back");
    assert_eq!(engine.stats().expect("stats").reclaimable_bytes, 0, "and knows that nothing is to be given back");
    engine.add(&documents(0..400)).expect("added");
    engine.flush().expect("flushed");
    assert!(takes(&data) < full / 2, "{} of {full} bytes for a tenth of the postings", takes(&data));
    check_clean(&engine);
    assert_eq!(ids(&engine).len(), 500);
    drop(engine);
    let engine = index.open();
    assert_eq!(ids(&engine).len(), 500, "after a crash of the process");
    check_clean(&engine);
}

/// What a reader holds stays as it is while everything around it is given back.
#[test]
fn what_a_reader_holds_is_not_given_back() {
    let index = TestIndex::small();
    let mut engine = index.create();
    engine.add(&documents(0..500)).expect("added");
    engine.flush().expect("flushed");
    let before = everything(&engine);
    let snapshot = engine.snapshot();
    remove(&mut engine, 0..500);
    engine.flush().expect("flushed");
    engine.trim(0).expect("trimmed");
    let held = engine.stats().expect("stats").held_by_readers_bytes;
    assert!(held > 0);
    let query = vector(1_000_003, DIMENSION);
    let hits = shardex::index::search(&snapshot, engine.data(), &query, 1_000, shardex::index::SearchScope::exact());
    assert_eq!(hits.expect("a search").to_response().results, before, "the reader reads what it read before");
    drop(snapshot);
    engine.add(&documents(600..601)).expect("added");
    engine.flush().expect("flushed");
    engine.trim(0).expect("trimmed");
    assert_eq!(engine.stats().expect("stats").held_by_readers_bytes, 0);
    let (needed, after) = (used(&engine), takes(&index.path().join("data")));
    assert!(after <= needed + (64 << 10), "{after} bytes for {needed} in use");
}

/// A store into space that was given back may be the first to find a full disk. Then it is refused, and nothing is lost.
#[test]
fn a_full_disk_refuses_writes_into_space_that_was_given_back() {
    let sim = SimStorage::new(512, 64, 1);
    let config = ShardexConfig::new("sim").vector_size(DIMENSION).shard_size(16).wal_segment_size(16 << 10);
    let mut engine = Engine::create(sim.clone(), &config, &workload::env()).expect("made");
    engine.add(&documents(0..300)).expect("added");
    engine.flush().expect("flushed");
    let gone: Vec<DocumentId> = (20..300).map(DocumentId).collect();
    engine.remove(&gone).expect("removed");
    engine.flush().expect("flushed");
    assert!(engine.trim(0).expect("trimmed") > 0);
    oracle::is_no_larger(&sim, &engine).expect("no larger than needed");
    let taken: u64 = sim.space().iter().sum();
    sim.set_capacity(Some(taken));
    let mut refused = 0;
    for n in 1_000..1_040 {
        match engine.add(&documents(n..n + 1)) {
            Ok(_) => {}
            Err(error) => {
                assert!(error.is_out_of_space(), "{error}");
                refused += 1;
            }
        }
    }
    assert!(refused > 0, "the disk is full");
    sim.set_capacity(None);
    for n in 1_000..1_040 {
        engine.add(&documents(n..n + 1)).expect("there is room");
    }
    engine.flush().expect("flushed");
    assert_eq!(engine.stats().expect("stats").total_postings, 60);
    assert!(engine.check(CheckLevel::Full).expect("a check").is_clean());
    drop(engine);
    let engine = Engine::open(sim, OpenOptions::default(), &workload::env()).expect("opened");
    assert_eq!(engine.stats().expect("stats").total_postings, 60);
}

/// On a file system that can't take space back nothing is tried twice, nothing is promised, and nothing else changes.
#[test]
fn a_file_system_without_holes_keeps_its_space() {
    let sim = SimStorage::new(512, 64, 1);
    sim.set_keeps_space(true);
    let config = ShardexConfig::new("sim").vector_size(DIMENSION).shard_size(16).wal_segment_size(16 << 10);
    let mut engine = Engine::create(sim.clone(), &config, &workload::env()).expect("made");
    engine.add(&documents(0..300)).expect("added");
    engine.flush().expect("flushed");
    engine.remove(&(20..300).map(DocumentId).collect::<Vec<_>>()).expect("removed");
    engine.flush().expect("flushed");
    let before = sim.space();
    assert_eq!(engine.trim(0).expect("trimmed"), 0);
    assert_eq!(sim.space(), before);
    assert_eq!(engine.stats().expect("stats").reclaimable_bytes, 0);
    sim.set_trace(true);
    assert_eq!((engine.trim(0).expect("trimmed"), sim.take_trace().len()), (0, 0), "it is not tried again");
    engine.add(&documents(400..500)).expect("added");
    engine.flush().expect("flushed");
    assert!(engine.check(CheckLevel::Full).expect("a check").is_clean());
}

/// A root slot may go back to its previous content (R13). The root that comes back names pages that are free now. Two
/// roots that follow one another then pass for those of a clean close, so these pages must keep their bytes until the
/// next root is durable.
#[test]
fn what_the_last_content_of_a_root_slot_names_is_given_back_one_root_later() {
    let index = TestIndex::small();
    let mut engine = index.create();
    engine.add(&documents(0..600)).expect("added");
    engine.flush().expect("flushed");
    let named: Vec<_> = engine.used_allocations().collect();
    remove(&mut engine, 100..600);
    engine.flush().expect("flushed");
    // The twin replaces the first root in its slot and frees what only that root named.
    store_twin(&mut engine);
    let page = engine.geometry().page_size;
    let bytes = || {
        let data = fs::read(index.path().join("data")).expect("readable");
        let of = |run: &shardex::lease::PageRange| data[run.page as usize * page..run.end() as usize * page].to_vec();
        named.iter().map(of).collect::<Vec<_>>()
    };
    let before = bytes();
    assert!(engine.release(0).expect("released") > 0, "other pages are free for longer");
    assert!(bytes() == before, "bytes that the last content of a root slot names were given back");
    store_twin(&mut engine);
    assert!(engine.release(0).expect("released") > 0);
    let zeros = bytes().iter().filter(|bytes| bytes.iter().all(|byte| *byte == 0)).count();
    assert!(zeros * 2 > named.len(), "{zeros} of {} ranges were given back", named.len());
    check_clean(&engine);
    assert_eq!(ids(&engine).len(), 100);
}

/// The writer gives free space back by itself once no writes come, and at a close.
#[test]
fn an_index_at_rest_gives_its_space_back() {
    let dir = tempfile::tempdir().expect("a directory");
    for closes in [false, true] {
        let path = dir.path().join(if closes { "closed" } else { "open" });
        run(async {
            let options = OpenOptions::default().flush_interval_ms(100);
            let config = ShardexConfig::new(&path).vector_size(256).shard_size(64).options(options);
            let index = Shardex::create(config).await?;
            let postings = |range: std::ops::Range<u64>| {
                range.map(|n| crate::support::posting(n.into(), 0, vector(n, 256))).collect::<Vec<_>>()
            };
            index.add_postings(postings(0..8_000)).await?;
            index.flush().await?;
            index.remove_documents((100..8_000).map(DocumentId).collect::<Vec<_>>()).await?;
            index.flush().await?;
            let data = path.join("data");
            let before = takes(&data);
            assert!(before > 8 << 20, "{before}");
            if closes {
                index.close().await?;
            } else {
                // The first cell build, which the additions have started, reads what was removed until its end.
                while takes(&data) >= before / 3 || index.stats().await?.reclaimable_bytes > 0 {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
                assert!(index.stats().await?.background_error.is_none());
            }
            assert!(takes(&data) < before / 3, "{before} -> {}", takes(&data));
            if closes {
                let index = Shardex::open(&path).await?;
                let stats = index.stats().await?;
                // What the last content of a root slot names went back to the free pages, and keeps its space.
                assert!(stats.reclaimable_bytes < 1 << 20, "{}", stats.reclaimable_bytes);
                assert_eq!(stats.total_postings, 100);
            }
            Ok(())
        });
    }
}

/// A failure to give space back is background work: no call fails for it, it is reported, and it is tried again.
#[test]
fn a_failure_to_give_space_back_is_reported_and_tried_again() {
    let (fails, tried) = (Arc::new(AtomicBool::new(true)), Arc::new(AtomicUsize::new(0)));
    let (switch, count) = (Arc::clone(&fails), Arc::clone(&tried));
    let storage = HookStorage::new(SimStorage::new(4096, 512, 1), move |info| {
        if info.op == Op::Deallocate {
            count.fetch_add(1, Ordering::AcqRel);
            if switch.load(Ordering::Acquire) {
                return HookAction::Fail(io::ErrorKind::Other);
            }
        }
        HookAction::Proceed
    });
    run(async {
        let options = OpenOptions::default().flush_interval_ms(100);
        let index = Shardex::create_on(storage, config(options), Env::system()).await?;
        index.add_postings(documents(0..30_000)).await?;
        index.flush().await?;
        index.remove_documents((0..29_000).map(DocumentId).collect::<Vec<_>>()).await?;
        index.flush().await?;
        let error = loop {
            if let Some(error) = index.stats().await?.background_error {
                break error;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        };
        assert_eq!((error.work, error.lasts), (BackgroundWork::Space, true), "{error:?}");
        assert!(error.error.contains("deallocate of /sim/index/"), "{error:?}");
        index.add_postings(documents(40_000..40_001)).await?;
        index.flush().await?;
        fails.store(false, Ordering::Release);
        // The failure is over with the next success, which may come before or after the last step.
        let lasts = |stats: &shardex::IndexStats| stats.background_error.as_ref().is_none_or(|error| error.lasts);
        loop {
            let stats = index.stats().await?;
            if stats.reclaimable_bytes == 0 && !lasts(&stats) {
                break;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        assert!(tried.load(Ordering::Acquire) >= 2);
        assert!(index.check(CheckLevel::Full).await?.is_clean());
        Ok::<(), ShardexError>(())
    });
}
