//! Tests that routing depends only on the shards: a replay makes the same shards, with cells or without.

use std::collections::BTreeMap;

use shardex::{CheckLevel, DocumentId, Engine, Posting, storage::Storage};

use crate::support::{TestIndex, check_clean, documents};

/// Stored state of a shard, without its location, and the bytes of its slots.
#[derive(Debug, PartialEq)]
pub(crate) struct Bytes {
    id: u128,
    removed: Vec<u64>,
    bloom: Vec<u64>,
    sum: Vec<u64>,
    centroid: Vec<u32>,
    extents: Vec<(u32, Vec<u8>)>,
}

/// Returns all shards by number.
pub(crate) fn shards<S: Storage>(engine: &Engine<S>) -> BTreeMap<u32, Bytes> {
    let snapshot = engine.snapshot();
    let bytes = snapshot.iter().map(|(number, shard)| {
        let state = shard.state(number, shard.means(engine.geometry(), 2), Vec::new(), 2);
        let extents = shard.extents().iter().map(|extent| (extent.state().crc, extent.lent().to_vec())).collect();
        let sum = shard.sum().iter().map(|x| x.to_bits()).collect();
        let centroid = shard.centroid.iter().map(|x| x.to_bits()).collect();
        (number, Bytes { id: state.id.0, removed: state.tombstones, bloom: state.bloom, sum, centroid, extents })
    });
    bytes.collect()
}

enum Batch {
    Add(Vec<Posting>),
    Remove(Vec<DocumentId>),
}

/// Returns batches that split shards, merge shards and replace postings. They lead to fewer and to more shards than the
/// number above which routing uses pivots.
fn batches() -> Vec<Batch> {
    let mut batches = vec![Batch::Add(documents(0..2_000))];
    for n in 0..6u64 {
        batches.push(Batch::Add(documents(3_000 + n * 700..3_700 + n * 700)));
        let gone = (n * 200..n * 200 + 400).step_by(if n % 3 == 0 { 1 } else { 3 });
        batches.push(Batch::Remove(gone.map(|id| DocumentId(id.into())).collect()));
        batches.push(Batch::Add(documents(n * 200..n * 200 + 60)));
    }
    batches
}

/// Applies the batches. Returns the index, the shards after each batch, and the largest number of shards.
fn history(reopened: bool, with_cells: bool) -> (TestIndex, Vec<BTreeMap<u32, Bytes>>, u64) {
    let test = TestIndex::with(|config| config.shard_size(4).wal_segment_size(64 << 10));
    let mut engine = test.create();
    let (mut history, mut most) = (Vec::new(), 0);
    for (n, batch) in batches().iter().enumerate() {
        match batch {
            Batch::Add(postings) => engine.add(postings).map(drop).expect("accepted"),
            Batch::Remove(documents) => engine.remove(documents).map(drop).expect("removed"),
        }
        if with_cells && n % 5 == 2 {
            engine.optimize().expect("cells are made");
        }
        if reopened {
            // Every second batch is flushed into the shards. The reopen replays the others from the WAL.
            if n % 2 == 0 {
                engine.flush().expect("flushed");
            } else {
                engine.commit().expect("durable");
            }
            drop(engine);
            engine = test.open();
        }
        most = most.max(engine.stats().expect("figures").total_shards as u64);
        history.push(shards(&engine));
    }
    engine.commit().expect("durable");
    check_clean(&engine);
    (test, history, most)
}

#[test]
fn a_replay_makes_the_same_shards_with_cells_and_without() {
    let (_test, plain, most) = history(false, false);
    assert!(most > 1_100, "{most} shards: pivots are not used");
    let fewest = plain.iter().map(BTreeMap::len).min().unwrap_or(0);
    assert!(fewest < 1_000, "{fewest} shards: all are never compared");
    for (reopened, with_cells) in [(true, false), (true, true), (false, true)] {
        let (test, other, _) = history(reopened, with_cells);
        for (n, (plain, other)) in plain.iter().zip(&other).enumerate() {
            assert!(plain == other, "batch {n}, reopened: {reopened}, with cells: {with_cells}");
        }
        // An open of a copy of the files replays everything since the last flush. Without reopens, that is all batches.
        let copy = test.copy();
        let engine = copy.open();
        assert!(plain.last() == Some(&shards(&engine)), "a copy");
        assert!(engine.check(CheckLevel::Full).expect("readable").is_clean());
    }
}
