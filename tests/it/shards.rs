//! Tests of splits, of the moves that follow a split, and of merges.

use std::{collections::BTreeMap, fs, os::unix::fs::FileExt as _};

use shardex::{CheckLevel, DocumentId, Engine, Posting, shard::StoredRow, storage::MmapStorage};

use crate::support::{DIMENSION, TestIndex, check_clean, documents, ids, posting};

/// Bytes per slot: the vector and the posting's record of 32 bytes.
const SLOT: u64 = 4 * DIMENSION as u64 + 32;

fn removed(documents: impl Iterator<Item = u64>) -> Vec<DocumentId> {
    documents.map(|id| DocumentId(id.into())).collect()
}

/// Builds a posting near `x` on the first axis.
fn at(id: u64, x: f32) -> Posting {
    let mut vector = vec![0.0; DIMENSION];
    (vector[0], vector[1]) = (x, id as f32 * 1e-3);
    posting(id.into(), 0, vector)
}

/// Builds three postings at each of 0, 10, 20, 30, 40 and 50 on the first axis. If they are added at once, and a shard
/// holds four postings, each group of three gets its own shard.
fn clusters() -> Vec<Posting> {
    (0..18).map(|id| at(id, 10.0 * (id % 6) as f32)).collect()
}

/// Returns the number of bytes of the data file that are not free.
fn taken(test: &TestIndex, engine: &Engine<MmapStorage>) -> u64 {
    let len = fs::metadata(test.path().join("data")).expect("the data file").len();
    len - engine.stats().expect("figures").free_bytes
}

/// Reports for each posting whether the centroid of its own shard is the nearest of all centroids.
fn at_home(engine: &Engine<MmapStorage>) -> BTreeMap<u128, bool> {
    let snapshot = engine.snapshot();
    let mut homes = BTreeMap::new();
    for (number, shard) in snapshot.iter() {
        for StoredRow { posting, vector, .. } in shard.live_rows(engine.data()).expect("no damage") {
            let distances = snapshot.iter().map(|(other, shard)| (vector.squared_l2(&shard.centroid), other));
            let nearest = distances.min_by(|a, b| a.0.total_cmp(&b.0)).map(|(_, other)| other);
            homes.insert(posting.document_id.0, nearest == Some(number));
        }
    }
    homes
}

#[test]
fn shards_that_shrink_are_taken_apart_and_a_removal_pays_for_no_more_than_one_move() {
    let test = TestIndex::small();
    let mut engine = test.create();
    for n in 0..100 {
        engine.add(&documents(n * 20..n * 20 + 20)).expect("accepted");
    }
    engine.flush().expect("flushed");
    let full = engine.stats().expect("figures");
    let taken_when_full = taken(&test, &engine);
    assert!(full.total_shards > 150 && full.merges == 0, "{full:?}");
    // Removes seven of every eight documents, 50 at a time. The records fit into the WAL, so nothing is flushed yet.
    let gone: Vec<DocumentId> = removed((0..2_000).filter(|n| n % 8 != 0));
    for batch in gone.chunks(50) {
        engine.remove(batch).expect("accepted");
    }
    let thin = engine.stats().expect("figures");
    assert!(taken(&test, &engine) == taken_when_full, "a removal takes no space");
    let left: Vec<u128> = (0..2_000).step_by(8).collect();
    assert_eq!(ids(&engine), left);
    assert!(thin.merges > 80, "{thin:?}");
    // A shard of 16 slots has at least five live postings, or lost fewer than it has left, or its neighbours had no
    // room.
    assert!(thin.total_shards * 5 < full.total_shards * 2, "{} of {}", thin.total_shards, full.total_shards);
    let moved = (thin.bytes_stored - full.bytes_stored) / SLOT;
    assert!((100..=gone.len() as u64).contains(&moved), "{moved} moves for {} removals", gone.len());
    check_clean(&engine);
    // The replay makes the same merges, and the roots store their number.
    engine.commit().expect("durable");
    drop(engine);
    let mut engine = test.open();
    let replayed = engine.stats().expect("figures");
    assert_eq!((replayed.total_shards, replayed.merges), (thin.total_shards, thin.merges));
    assert_eq!(ids(&engine), left);
    // Two flushes later, the space of the dissolved shards is free.
    for n in 0..2 {
        engine.add(&documents(2_900 + n..2_901 + n)).expect("accepted");
        engine.flush().expect("flushed");
    }
    assert!(taken(&test, &engine) * 2 < taken_when_full, "{} of {taken_when_full}", taken(&test, &engine));
    let again = engine.stats().expect("figures");
    check_clean(&engine);
    engine.close().expect("closed");
    drop(engine);
    assert_eq!(test.open().stats().expect("figures").merges, again.merges);
}

#[test]
fn a_shard_alone_or_among_full_ones_is_kept() {
    let test = TestIndex::with(|config| config.shard_size(4));
    let mut engine = test.create();
    engine.add(&[at(0, 0.0), at(1, 0.0), at(2, 0.0), at(3, 0.0)]).expect("accepted");
    engine.remove(&removed(1..4)).expect("accepted");
    let alone = engine.stats().expect("figures");
    assert_eq!((alone.merges, alone.total_shards, ids(&engine)), (0, 1, vec![0]));
    engine.remove(&removed(0..1)).expect("accepted");
    // A fourth posting for each cluster makes all shards full.
    engine.add(&clusters()).expect("accepted");
    let fourths: Vec<Posting> = (18..24).map(|id| at(id, 10.0 * (id % 6) as f32)).collect();
    engine.add(&fourths).expect("accepted");
    assert_eq!(engine.stats().expect("figures").total_shards, 6);
    engine.remove(&[0, 6, 12].map(DocumentId)).expect("accepted");
    let kept = engine.stats().expect("figures");
    assert_eq!((kept.merges, kept.total_shards), (0, 6));
    check_clean(&engine);
    // A new posting causes the full shard to be rewritten without its removed postings. Now it has room, and the
    // neighbouring shard merges into it.
    engine.add(&[at(30, 0.0)]).expect("accepted");
    engine.remove(&[1, 7, 13].map(DocumentId)).expect("accepted");
    let merged = engine.stats().expect("figures");
    assert_eq!((merged.merges, merged.total_shards), (1, 5));
    assert_eq!(ids(&engine).len(), 24 - 6 + 1);
    check_clean(&engine);
}

#[test]
fn merges_behind_replacements_and_of_one_batch_after_another_end_where_there_is_room() {
    let test = TestIndex::small();
    let mut engine = test.create();
    for n in 0..50 {
        engine.add(&documents(n * 20..n * 20 + 20)).expect("accepted");
    }
    let before = engine.stats().expect("figures").total_shards;
    // Moves nine of every ten postings to distant positions on the first axis, in one batch.
    let moved: Vec<Posting> = (0..1_000).filter(|n| n % 10 != 0).map(|n| at(n, 50.0 + n as f32)).collect();
    engine.add(&moved).expect("accepted");
    let after = engine.stats().expect("figures");
    assert_eq!(after.total_postings, 1_000);
    assert!(after.merges as usize > before / 3, "{} merges of {before} shards", after.merges);
    assert_eq!(ids(&engine), (0..1_000).collect::<Vec<u128>>());
    check_clean(&engine);
    // Removes everything at once. Nothing merges, because every shard becomes empty.
    engine.remove(&removed(0..1_000)).expect("accepted");
    let empty = engine.stats().expect("figures");
    assert_eq!((empty.total_shards, empty.merges, empty.removed_postings), (0, after.merges, 0));
    check_clean(&engine);
}

/// A posting lies between two shards. When the other shard splits, one of its halves is nearer than the posting's own
/// shard.
#[test]
fn postings_of_a_neighbour_come_to_the_half_of_a_split_that_is_nearer() {
    let test = TestIndex::with(|config| config.shard_size(4));
    let mut engine = test.create();
    engine.add(&clusters()).expect("accepted");
    // The first posting goes to the shard at 10, the second to the shard at 0. The third posting splits the shard at 0.
    for (id, x) in [(20, 5.2), (21, 4.5)] {
        engine.add(&[at(id, x)]).expect("accepted");
    }
    assert!(at_home(&engine).values().all(|home| *home));
    engine.add(&[at(22, 4.6)]).expect("accepted");
    assert_eq!(
        at_home(&engine).iter().find(|(_, home)| !**home),
        None,
        "none is nearer to another shard than to its own"
    );
    let stats = engine.stats().expect("figures");
    assert_eq!((stats.splits, stats.total_shards, stats.total_postings, stats.removed_postings), (1, 7, 21, 1));
    let halves: Vec<usize> = engine.snapshot().iter().map(|(_, shard)| shard.live()).collect();
    assert_eq!(halves, [3; 7]);
    check_clean(&engine);
    engine.commit().expect("durable");
    drop(engine);
    let engine = test.open();
    assert_eq!(ids(&engine), (0..18).chain(20..23).collect::<Vec<u128>>());
    assert!(at_home(&engine).values().all(|home| *home));
    check_clean(&engine);
}

/// Flips a bit in the stored vector of a posting.
fn rot(test: &TestIndex, posting: &Posting) {
    let data = test.path().join("data");
    let bytes = fs::read(&data).expect("the data file");
    let mut wanted = bytemuck::cast_slice::<f32, u8>(&posting.vector).to_vec();
    wanted.extend(posting.document_id.0.to_le_bytes());
    let place = bytes.windows(wanted.len()).position(|window| window == wanted).expect("it is stored");
    let file = fs::OpenOptions::new().write(true).open(&data).expect("the data file");
    file.write_all_at(&[bytes[place + 40] ^ 1], place as u64 + 40).expect("a bit");
}

/// A removal doesn't depend on a damaged shard beside the shard that shrinks, neither live nor in a replay.
#[test]
fn nothing_is_merged_into_a_shard_that_is_damaged() {
    for replayed in [false, true] {
        let test = TestIndex::with(|config| config.shard_size(4));
        let mut engine = test.create();
        let clusters = clusters();
        engine.add(&clusters).expect("accepted");
        engine.flush().expect("flushed");
        if replayed {
            engine.remove(&[7, 13].map(DocumentId)).expect("accepted");
            engine.commit().expect("durable");
        }
        drop(engine);
        // Damages one of the two shards beside the one that shrinks.
        rot(&test, &clusters[6]);
        let mut engine = test.open();
        if !replayed {
            engine.remove(&[7, 13].map(DocumentId)).expect("accepted");
        }
        let stats = engine.stats().expect("figures");
        assert_eq!((stats.merges, stats.total_shards, stats.total_postings), (1, 5, 16), "replayed: {replayed}");
        let snapshot = engine.snapshot();
        let sizes: Vec<(f32, usize)> = snapshot.iter().map(|(_, shard)| (shard.centroid[0], shard.live())).collect();
        assert!(sizes.contains(&(20.0, 4)) && sizes.contains(&(0.0, 3)), "{sizes:?}");
    }
}

/// A removal allocates no space although it merges, so a full disk refuses no removal. The shards have several extents,
/// and a merge fills only existing ones.
#[test]
fn a_removal_takes_no_space_though_it_merges() {
    let test = TestIndex::with(|config| config.shard_size(256));
    let mut engine = test.create();
    for n in 0..100 {
        engine.add(&documents(n * 50..n * 50 + 50)).expect("accepted");
    }
    engine.flush().expect("flushed");
    let before = engine.stats().expect("figures");
    let taken_before = taken(&test, &engine);
    for batch in removed((0..5_000).filter(|n| n % 8 != 0)).chunks(20) {
        engine.remove(batch).expect("accepted");
        assert_eq!(taken(&test, &engine), taken_before);
    }
    let after = engine.stats().expect("figures");
    assert!(after.merges > 5 && after.total_shards < before.total_shards, "{after:?}");
    assert_eq!(ids(&engine).len(), 625);
    check_clean(&engine);
}

/// A shard that a batch empties is dissolved before the merges, so nothing is merged into it.
#[test]
fn nothing_is_merged_into_a_shard_that_the_batch_emptied() {
    let test = TestIndex::with(|config| config.shard_size(4));
    let mut engine = test.create();
    engine.add(&clusters()).expect("accepted");
    engine.remove(&[0, 6, 12, 7, 13].map(DocumentId)).expect("accepted");
    let stats = engine.stats().expect("figures");
    assert_eq!((stats.merges, stats.total_shards, stats.removed_postings), (1, 4, 0));
    assert_eq!(ids(&engine).len(), 13);
    check_clean(&engine);
}

/// Damage that appears after the first read of an extent is not copied. It stops no write that doesn't depend on it.
#[test]
fn a_shard_that_rotted_is_neither_moved_from_nor_merged() {
    let test = TestIndex::with(|config| config.shard_size(4));
    let mut engine = test.create();
    engine.add(&clusters()).expect("accepted");
    let borderline = at(20, 5.2);
    engine.add(&[borderline.clone(), at(21, 4.5)]).expect("accepted");
    engine.flush().expect("flushed");
    assert_eq!(ids(&engine).len(), 20);
    // The file is mapped while the bytes change.
    rot(&test, &borderline);
    // The neighbouring shard splits, as in the test of moves above. The damaged shard is left with one posting.
    engine.add(&[at(22, 4.6)]).expect("accepted");
    let split = engine.stats().expect("figures");
    assert_eq!((split.splits, split.total_shards, split.removed_postings), (1, 7, 0));
    engine.remove(&[1, 7, 13].map(DocumentId)).expect("accepted");
    let left = engine.stats().expect("figures");
    assert_eq!((left.merges, left.total_shards, left.removed_postings), (0, 7, 3));
    let report = engine.check(CheckLevel::Full).expect("readable");
    let found: Vec<String> = report.findings.iter().map(ToString::to_string).collect();
    assert!(found.iter().any(|finding| finding.contains("checksum of an extent")), "{found:?}");
}
