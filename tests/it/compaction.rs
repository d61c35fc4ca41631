//! Tests of compaction: shards are rewritten without their removed postings, replays do the same, cells keep what was
//! rewritten, and the space comes back.

use std::{collections::BTreeMap, fs, os::unix::fs::MetadataExt as _, path::Path, time::Duration};

use shardex::{
    DocumentId, Engine, OpenOptions, PostingKey, Shardex, ShardexConfig, WriteBatch,
    env::{CellPolicy, Env},
    storage::{MmapStorage, Storage},
};
use shardex_sim::{
    SimStorage,
    fsck::{self, Files, Level},
};
use tempfile::TempDir;

use crate::{
    routing::{Bytes, shards},
    support::{DIMENSION, TestIndex, block_on, check_clean, documents, everything, ids, vector},
};

/// Returns the bytes of storage that the files of a directory take.
fn takes(directory: &Path) -> u64 {
    let files = fs::read_dir(directory).expect("a directory");
    files.map(|file| file.expect("a file").metadata().expect("a file").blocks() * 512).sum()
}

fn remove<S: Storage>(engine: &mut Engine<S>, ids: impl Iterator<Item = u64>) {
    engine.remove(&ids.map(|n| DocumentId(n.into())).collect::<Vec<_>>()).expect("removed");
}

/// Rewrites all shards with a removed posting.
fn compact<S: Storage>(engine: &mut Engine<S>) -> u64 {
    let mut bytes = 0;
    loop {
        match engine.compact_step(u64::MAX, 4_096).expect("rewritten") {
            0 => return bytes,
            more => bytes += more,
        }
    }
}

/// Shards, removed postings, tags and postings of an index, whatever their locations.
type Dump = (BTreeMap<u32, Bytes>, u64, Vec<(u128, u64)>);

fn dump<S: Storage>(engine: &Engine<S>) -> Dump {
    let tags = |(_, shard): (u32, &shardex::shard::SharedShard<S::File>)| -> Vec<(u128, u64)> {
        (0..shard.len()).map(|slot| (shard.id.0, shard.tags().get(slot))).collect()
    };
    let tags = engine.snapshot().iter().flat_map(tags).collect();
    (shards(engine), engine.stats().expect("stats").removed_postings, tags)
}

/// What a history does besides its writes, which are always the same.
#[derive(Clone, Copy, Debug)]
struct Habits {
    /// A flush after each so many writes; 0 for none.
    flush: u64,
    /// A cell build after each so many writes; 0 for none.
    cells: u64,
    /// Whether a snapshot is held from the middle on.
    reads: bool,
    /// A trim after each so many writes; 0 for none.
    trim: u64,
}

/// Writes a history of additions, replacements, removals, tags and compactions. Returns its dump.
fn history<S: Storage>(engine: &mut Engine<S>, habits: Habits) -> Dump {
    let (mut held, every) = (None, |n: u64, each: u64| each > 0 && n % each == each - 1);
    for n in 0..24u64 {
        engine.add(&documents(n * 13..n * 13 + 20)).expect("added");
        if n % 3 == 1 {
            remove(engine, (n * 11..n * 11 + 15).filter(|id| id % 2 == 0));
        }
        if n % 4 == 2 {
            let mut batch = WriteBatch::new();
            batch.set_tags(PostingKey::new(u128::from(n * 13 + 5), 0, 1), n);
            engine.write(&batch).expect("tagged");
        }
        if n % 5 == 3 {
            engine.compact_step(u64::MAX, 3_000).expect("rewritten");
        }
        if every(n, habits.flush) {
            engine.flush().expect("flushed");
        }
        if every(n, habits.cells) {
            engine.optimize().expect("cells");
        }
        if every(n, habits.trim) {
            engine.trim(0).expect("trimmed");
        }
        if n == 12 && habits.reads {
            held = Some(engine.snapshot());
        }
    }
    let dump = dump(engine);
    drop(held);
    dump
}

/// Shards depend on the writes and the compactions in the log alone: not on flushes, cells, snapshots, trims, the pages of
/// the disk, or on whether they were made by the writes or by a replay.
#[test]
fn one_log_makes_one_state() {
    let change = |config: ShardexConfig| {
        config.shard_size(8).options(OpenOptions::default().flush_on_close(false).flush_wal_bytes(0))
    };
    let plain = Habits { flush: 0, cells: 0, reads: false, trim: 0 };
    let index = TestIndex::with(change);
    let mut engine = index.create();
    let expected = history(&mut engine, plain);
    assert!(expected.0.len() > 20 && expected.1 > 0, "shards were made, and some postings are removed");
    engine.commit().expect("durable");
    let copy = index.copy();
    assert_eq!(dump(&copy.open()), expected, "a replay of all records");
    for habits in [
        Habits { flush: 1, ..plain },
        Habits { flush: 5, cells: 7, ..plain },
        Habits { flush: 3, reads: true, trim: 4, ..plain },
        Habits { flush: 0, cells: 2, reads: true, trim: 0 },
    ] {
        let index = TestIndex::with(change);
        let mut engine = index.create();
        assert_eq!(history(&mut engine, habits), expected, "{habits:?}");
        engine.close().expect("closed");
        drop(engine);
        let engine = index.open();
        assert_eq!(dump(&engine), expected, "{habits:?}, after a replay");
        check_clean(&engine);
    }
    let config = index.config.clone().wal_segment_size(4 * 512);
    let env = Env { new_index_id: index.index_id, cells: CellPolicy::Always, ..Env::system() };
    let mut engine = Engine::create(SimStorage::new(512, 64, 1), &config, &env).expect("made");
    assert_eq!(history(&mut engine, Habits { flush: 4, ..plain }), expected, "another disk");
}

/// Codes lead to the postings of rewritten shards, after several rewrites, a flush and an open too.
#[test]
fn cells_keep_what_is_rewritten() {
    let index = TestIndex::with(|config| config.shard_size(64));
    let mut engine = index.create();
    engine.add(&documents(0..3_000)).expect("added");
    engine.optimize().expect("cells");
    engine.flush().expect("flushed");
    for turn in 0..3 {
        remove(&mut engine, (0..3_000).filter(|n| n % 7 == turn));
        assert!(engine.stats().expect("stats").removed_postings > 100);
        assert!(compact(&mut engine) > 0);
        let stats = engine.stats().expect("stats");
        assert_eq!((stats.removed_postings, stats.unindexed_postings), (0, 0), "turn {turn}");
        check_clean(&engine);
        engine.flush().expect("flushed");
        if turn == 1 {
            engine.close().expect("closed");
            drop(engine);
            engine = index.open();
        }
    }
    assert_eq!(engine.stats().expect("stats").unindexed_postings, 0);
    assert_eq!(ids(&engine), (0..3_000).filter(|n| n % 7 > 2).collect::<Vec<u128>>());
    // What is added later is unindexed, before and after a rewrite, and new cells cover all.
    engine.add(&documents(5_000..5_020)).expect("added");
    remove(&mut engine, (0..3_000).filter(|n| n % 7 == 3));
    compact(&mut engine);
    // More than half of the postings are removed now, so some shards are merged.
    let unindexed = engine.stats().expect("stats").unindexed_postings;
    assert!((20..60).contains(&unindexed), "{unindexed}");
    check_clean(&engine);
    engine.optimize().expect("cells");
    assert_eq!(engine.stats().expect("stats").unindexed_postings, 0);
    check_clean(&engine);
}

/// A damaged shard stays as it is and is reported; the others are rewritten.
#[test]
fn a_damaged_shard_is_left_alone() {
    let index = TestIndex::small();
    let mut engine = index.create();
    engine.add(&documents(0..200)).expect("added");
    remove(&mut engine, (0..200).filter(|n| n % 3 == 0));
    engine.close().expect("closed");
    let snapshot = engine.snapshot();
    let (_, shard) = snapshot.iter().find(|(_, shard)| shard.live() < shard.len()).expect("a shard");
    let page = shard.extents()[0].allocation().run().page as usize;
    drop((snapshot, engine));
    index.patch("data", |bytes| bytes[page * 4_096] ^= 1);
    let mut engine = index.open();
    assert!(compact(&mut engine) > 0, "the others are rewritten");
    let left = engine.stats().expect("stats").removed_postings;
    assert!(left > 0, "the damaged one is not");
    engine.flush().expect("flushed");
    assert!(!engine.check(shardex::CheckLevel::Full).expect("checked").is_clean(), "it is still reported");
    assert_eq!(engine.compact_step(u64::MAX, 1 << 20).expect("nothing to do"), 0);
}

/// The background rewrites nothing before the first write, since a clean open stores nothing.
#[test]
fn a_clean_open_compacts_nothing_by_itself() {
    let index = TestIndex::small();
    let mut engine = index.create();
    engine.add(&documents(0..200)).expect("added");
    remove(&mut engine, 0..90);
    engine.close().expect("closed");
    drop(engine);
    let mut engine = index.open();
    let before = index.bytes();
    assert!(!engine.wants_compaction(8, 0), "nothing is stored before the first write");
    assert!(engine.stats().expect("stats").removed_postings * 8 > 110);
    assert_eq!(index.bytes(), before);
    engine.add(&documents(500..501)).expect("added");
    assert!(engine.wants_compaction(8, 0));
    let found = everything(&engine);
    compact(&mut engine);
    assert_eq!(everything(&engine), found);
}

fn config(dir: &TempDir) -> ShardexConfig {
    ShardexConfig::new(dir.path().join("index")).vector_size(DIMENSION).shard_size(64).wal_segment_size(64 << 10)
}

#[test]
fn compact_gives_the_space_of_removed_postings_back() {
    let dir = TempDir::new().expect("a directory");
    block_on(async {
        // No background work, so that the call does all of it.
        let config = config(&dir).options(OpenOptions::default().compaction_bytes_per_second(0));
        let index = Shardex::create(config).await?;
        index.add_postings(documents(0..20_000)).await?;
        index.flush().await?;
        let full = takes(&dir.path().join("index"));
        index.remove_documents((2_000..20_000u64).map(|n| DocumentId(n.into())).collect()).await?;
        let stats = index.compact().await?;
        let now = index.stats().await?;
        assert_eq!((now.removed_postings, now.total_postings, now.reclaimable_bytes), (0, 2_000, 0));
        assert_eq!(now.disk_bytes, stats.disk_bytes_after);
        // 2,000 slots of 128 bytes, and what shards, the WAL and the file system add.
        let most = 2_000 * 128 * 11 / 10 + (1 << 20);
        assert!(stats.disk_bytes_after < most.min(full / 3), "{full} before, {most} at most: {stats:?}");
        let found = index.search(&vector(5, DIMENSION), 3_000, None).await?;
        assert_eq!(found.len(), 2_000);
        let again = index.compact().await?;
        assert_eq!(again.rewritten_bytes, 0);
        index.close().await
    })
    .expect("nothing fails");
}

/// Rewriting goes on without writes, at the given rate, and not at all if that is 0.
#[test]
fn an_index_at_rest_is_compacted() {
    for (rate, compacts) in [(64 << 20, true), (0, false)] {
        let dir = TempDir::new().expect("a directory");
        let left = block_on(async {
            let index = Shardex::create(config(&dir).compaction_bytes_per_second(rate)).await?;
            index.add_postings(documents(0..5_000)).await?;
            index
                .remove_documents((0..5_000u64).filter(|n| n % 3 == 0).map(|n| DocumentId(n.into())).collect())
                .await?;
            let mut left = index.stats().await?.removed_postings;
            for _ in 0..if compacts { 100 } else { 20 } {
                std::thread::sleep(Duration::from_millis(100));
                let stats = index.stats().await?;
                left = stats.removed_postings;
                if left * 8 < stats.total_postings && stats.reclaimable_bytes == 0 {
                    break;
                }
            }
            index.close().await.map(|()| left)
        });
        let left = left.expect("nothing fails");
        assert_eq!(left * 8 < 3_333, compacts, "rate {rate}: {left} removed postings are left");
    }
}

/// Regression: an empty index took 4.3 MB, and one posting of 65,536 components 273 MB.
#[test]
fn small_indexes_are_small() {
    for dimension in [3, 384, 1_536, 65_536] {
        let index = TestIndex::with(|config| {
            let options = config.options.clone();
            ShardexConfig::new(config.directory_path).vector_size(dimension).options(options)
        });
        let mut engine = Engine::<MmapStorage>::create(index.storage(), &index.config, &Env::system()).expect("made");
        let empty = takes(&index.path());
        assert!(empty < 64 << 10, "an empty index takes {empty}");
        engine.add(&[crate::support::posting(1, 0, vector(1, dimension))]).expect("added");
        engine.flush().expect("flushed");
        engine.trim_at_rest().expect("trimmed");
        let (one, slot) = (takes(&index.path()), engine.geometry().slot_bytes() as u64);
        assert!(one <= 4 * slot + (64 << 10), "{dimension}: a slot of {slot} takes {one}");
        engine.close().expect("closed");
        drop(engine);
        assert_eq!(ids(&index.open()), [1]);
    }
}

/// Bytes that live postings, codes, states and payloads take as stored, and bytes that only the older root names: both by the
/// independent checker.
fn live_and_older(directory: &Path, slot_bytes: u64) -> (u64, u64) {
    let read = |name: &str| fs::read(directory.join(name)).expect("read");
    let (root, data, wal) = (read("root"), read("data"), read("wal"));
    let report = fsck::fsck(&Files { root: Some(&root), data: Some(&data), wal: Some(&wal) }, Level::Metadata);
    let newest = report.newest.expect("a root");
    let [newest, older] = [newest, 1 - newest].map(|slot| report.trees[slot].as_ref().expect("a tree"));
    let others = newest.runs.iter().filter(|run| !run.what.is_extent()).map(|run| run.bytes);
    let live = newest.live * slot_bytes + others.sum::<u64>();
    let named: Vec<u64> = newest.runs.iter().map(|run| run.page).collect();
    let only_older = older.runs.iter().filter(|run| !named.contains(&run.page)).map(|run| run.pages * 4_096);
    (live, only_older.sum())
}

/// Returns what the files take, and [`live_and_older`], all below the same roots: the index may flush meanwhile.
fn measured(directory: &Path, slot_bytes: u64) -> (u64, u64, u64) {
    let root = || fs::read(directory.join("root")).expect("read");
    loop {
        let before = root();
        let (found, (live, older)) = (takes(directory), live_and_older(directory, slot_bytes));
        if root() == before {
            return (found, live, older);
        }
    }
}

/// Ten times all postings are replaced. At every flush the files take little more than what is live, what the older root needs and
/// what a few flushes write. At rest they take less, and after `compact` least.
#[test]
fn ten_turnovers_stay_within_their_bounds() {
    for (dimension, rows) in [(8, 60_000u64), (DIMENSION, 30_000)] {
        let dir = TempDir::new().expect("a directory");
        let path = dir.path().join("index");
        let flush_bytes: u64 = 256 << 10;
        let slot_bytes = (4 * dimension as u64 + 32).next_multiple_of(64);
        let config = config(&dir)
            .shard_size(512)
            .vector_size(dimension)
            .options(OpenOptions::default().flush_wal_bytes(flush_bytes).flush_interval_ms(500));
        block_on(async {
            let index = Shardex::create(config).await?;
            for turn in 0..=10u64 {
                for first in (0..rows).step_by(6_000) {
                    let moved = |n: u64| crate::support::posting(n.into(), 0, vector(n + turn * 1_000_003, dimension));
                    index.add_postings((first..first + 6_000).map(moved).collect()).await?;
                    index.flush().await?;
                    let (found, live, older) = measured(&path, slot_bytes);
                    let most = live * 13 / 10 + (4 << 20) + older + 8 * flush_bytes;
                    assert!(found <= most, "turn {turn}, row {first}: {found} of {most}, {live} live, {older} older");
                }
            }
            let at_rest = async || {
                for _ in 0..400 {
                    let stats = index.stats().await?;
                    if stats.reclaimable_bytes == 0 {
                        return Ok::<_, shardex::ShardexError>((takes(&path), live_and_older(&path, slot_bytes).0));
                    }
                    std::thread::sleep(Duration::from_millis(50));
                }
                panic!("something is always to be given back: {:?}", index.stats().await?);
            };
            let (found, live) = at_rest().await?;
            assert!(live > rows * slot_bytes && found <= live * 13 / 10 + (4 << 20), "at rest {found}, {live} live");
            index.remove_documents((rows / 10..rows).map(|n| DocumentId(n.into())).collect()).await?;
            let (found, live) = at_rest().await?;
            assert!(found <= live * 13 / 10 + (4 << 20), "with a tenth {found}, {live} live");
            let stats = index.compact().await?;
            let (found, (live, _)) = (takes(&path), live_and_older(&path, slot_bytes));
            assert!(found <= live * 11 / 10 + (1 << 20), "compacted {found}, {live} live");
            assert!(stats.disk_bytes_after <= stats.disk_bytes_before);
            index.close().await
        })
        .expect("nothing fails");
    }
}
