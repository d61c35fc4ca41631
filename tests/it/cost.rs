//! Tests of the cost of calls, in counts: shards inspected, slots read, WAL bytes written.

use std::{fs, ops::RangeInclusive, os::unix::fs::MetadataExt as _};

use shardex::{
    DocumentId, Durability, Engine, Posting, Shardex, ShardexError,
    shard::Shard,
    storage::{MmapStorage, Purpose, Storage as _, StorageFile as _},
};

type MmapLent = shardex::engine::Lent<MmapStorage>;

use crate::support::{DIMENSION, TestIndex, block_on, check_clean, documents, ids, posting, vector};

/// Returns postings of one document that differ in their starts.
fn chunks(document: u128, starts: std::ops::Range<u32>) -> Vec<Posting> {
    starts.map(|start| posting(document, start, vector(start.into(), DIMENSION))).collect()
}

/// Reports whether a shard holds a live posting of a document.
fn holds_document(shard: &Shard<MmapLent>, engine: &Engine<MmapStorage>, document: DocumentId) -> bool {
    let rows = shard.live_rows(engine.data()).expect("no damage");
    rows.iter().any(|row| row.posting.document_id == document)
}

/// Adds postings in batches. Returns the numbers of shards inspected and of slots read, per posting.
fn cost_of(engine: &mut Engine<MmapStorage>, postings: &[Posting], batch: usize) -> (f64, f64) {
    let before = engine.lookups();
    for batch in postings.chunks(batch) {
        engine.add(batch).expect("accepted");
    }
    let after = engine.lookups();
    assert_eq!(after.lookups - before.lookups, postings.len() as u64);
    let each = |from: u64, to: u64| (to - from) as f64 / postings.len() as f64;
    (each(before.shards, after.shards), each(before.slots, after.slots))
}

/// Regression: the lookup of a key whose document lies in 200 shards inspected all of them and compared every slot
/// there.
#[test]
fn postings_of_one_document_cost_no_more_than_those_of_many() {
    for batch in [1, 100, 1_000] {
        let test = TestIndex::small();
        let mut engine = test.create();
        let (shards, slots) = cost_of(&mut engine, &chunks(7, 0..2_000), batch);
        assert!(engine.stats().expect("figures").total_shards > 120);
        assert!(shards < 0.5, "{shards} shards for each posting in batches of {batch}");
        assert!(slots < 0.01, "{slots} slots for each posting in batches of {batch}");
        // A replacement reads the one slot that holds the posting. Now and then it also inspects a shard that held it
        // before.
        let (shards, slots) = cost_of(&mut engine, &chunks(7, 0..500), batch);
        assert!((1.0..3.0).contains(&shards), "{shards} shards for each replacement in batches of {batch}");
        assert!((0.99..1.1).contains(&slots), "{slots} slots for each replacement in batches of {batch}");
        assert_eq!(engine.stats().expect("figures").total_postings, 2_000);
        check_clean(&engine);
    }
}

#[test]
fn what_an_open_found_is_read_once_and_only_where_a_lookup_needs_it() {
    let test = TestIndex::small();
    let mut engine = test.create();
    engine.add(&chunks(7, 0..600)).expect("accepted");
    engine.add(&documents(1_000..1_400)).expect("accepted");
    engine.close().expect("closed");
    drop(engine);
    let mut engine = test.open();
    assert_eq!(engine.lookups().filled, 0, "an open reads no slot");
    // Almost no filter matches the new document.
    engine.add(&documents(5_000..5_001)).expect("accepted");
    assert!(engine.lookups().filled < 3);
    // The filters match every shard that holds the document. Each of these shards is read once.
    engine.add(&chunks(7, 600..601)).expect("accepted");
    let filled = engine.lookups().filled;
    let snapshot = engine.snapshot();
    let holds = |shard: &std::sync::Arc<_>| holds_document(shard, &engine, DocumentId(7));
    let holding = snapshot.iter().filter(|(_, shard)| holds(shard)).count() as u64;
    assert!((holding - 1..holding + 8).contains(&filled), "{filled} shards were read, {holding} hold the document");
    engine.add(&chunks(7, 0..100)).expect("accepted");
    assert!(engine.lookups().filled <= filled + 2);
    assert_eq!(engine.stats().expect("figures").total_postings, 1_002);
    check_clean(&engine);
    assert_eq!(engine.remove(&[DocumentId(7)]).expect("removed").1, 601);
    check_clean(&engine);
}

/// A refused batch leaves the key filters unchanged.
#[test]
fn a_refused_batch_leaves_the_filters_of_keys_as_they_were() {
    let test = TestIndex::small();
    let mut engine = test.create();
    engine.add(&chunks(7, 0..300)).expect("accepted");
    let mut bad = chunks(7, 250..350);
    bad[99].vector[0] = f32::NAN;
    assert!(matches!(engine.add(&bad), Err(ShardexError::InvalidVector { index: 99, .. })));
    check_clean(&engine);
    engine.add(&chunks(7, 250..350)).expect("accepted");
    assert_eq!(engine.stats().expect("figures").total_postings, 350);
    check_clean(&engine);
}

#[test]
fn a_removal_of_nothing_is_not_logged() {
    let test = TestIndex::small();
    let mut engine = test.create();
    let lsn = engine.add(&documents(0..100)).expect("accepted");
    let log = engine.wal_bytes();
    let unknown: Vec<DocumentId> = (1_000..200_000).map(DocumentId).collect();
    assert_eq!(engine.remove(&unknown).expect("nothing to do"), (lsn, 0));
    assert_eq!(engine.remove(&[]).expect("nothing to do"), (lsn, 0));
    assert_eq!((engine.wal_bytes(), engine.last_lsn()), (log, lsn));
    // The WAL record contains each named document that exists, once.
    let some: Vec<DocumentId> = [5, 900_000, 5, 6, 7_000_000].map(DocumentId).to_vec();
    let (after, removed) = engine.remove(&some).expect("removed");
    assert_eq!((after.0, removed), (lsn.0 + 1, 2));
    assert!(engine.wal_bytes() - log <= 32 + 48 + 2 * 16, "{} bytes", engine.wal_bytes() - log);
    let left = ids(&engine);
    assert_eq!(left.len(), 98);
    engine.commit().expect("durable");
    drop(engine);
    let engine = test.open();
    assert_eq!(ids(&engine), left);
    check_clean(&engine);
}

fn range(first: u128, last: u128) -> RangeInclusive<DocumentId> {
    DocumentId(first)..=DocumentId(last)
}

#[test]
fn a_range_is_removed_at_the_cost_of_what_is_stored() {
    let test = TestIndex::small();
    let mut engine = test.create();
    let lsn = engine.add(&documents(100..400)).expect("accepted");
    engine.add(&[posting(u128::MAX, 0, vector(1, DIMENSION)), posting(0, 0, vector(2, DIMENSION))]).expect("accepted");
    let log = engine.wal_bytes();
    // All ids from 2^64 to `u128::MAX - 1`, none of them stored.
    assert_eq!(engine.remove_range(&range(1 << 64, u128::MAX - 1)).expect("nothing to do").1, 0);
    assert_eq!((engine.wal_bytes(), engine.last_lsn()), (log, lsn.next()));
    let empty = DocumentId(5)..=DocumentId(4);
    assert_eq!(engine.remove_range(&empty).expect("nothing to do").1, 0);
    // A range that is small relative to the index is looked up id by id. The greatest id is a valid end of a range.
    let lookups = engine.lookups().lookups;
    assert_eq!(engine.remove_range(&range(100, 103)).expect("removed").1, 4);
    assert_eq!(engine.lookups().lookups - lookups, 8, "once to find it, once to remove it");
    // A larger range is searched for among the postings.
    let lookups = engine.lookups().lookups;
    assert_eq!(engine.remove_range(&range(104, 109)).expect("removed").1, 6);
    assert_eq!(engine.lookups().lookups - lookups, 6, "it is only removed");
    assert_eq!(engine.remove_range(&range(u128::MAX, u128::MAX)).expect("removed").1, 1);
    let lookups = engine.lookups().lookups;
    assert_eq!(engine.remove_range(&range(101, u128::MAX)).expect("removed").1, 290);
    assert_eq!(engine.lookups().lookups - lookups, 290, "the range itself is not looked up");
    assert_eq!(ids(&engine), vec![0]);
    check_clean(&engine);
    engine.commit().expect("durable");
    drop(engine);
    assert_eq!(ids(&test.open()), vec![0]);
}

/// A removal of a range is atomic. If one record can't hold it, the removal is refused with `BatchTooLarge`.
#[test]
fn a_range_that_the_log_cannot_hold_is_refused() {
    let test = TestIndex::with(|config| config.vector_size(2).wal_max_bytes(64 << 10));
    let mut engine = test.create();
    for n in 0..40u64 {
        let batch: Vec<Posting> = (n * 100..n * 100 + 100).map(|n| posting(n.into(), 0, vector(n, 2))).collect();
        engine.add(&batch).expect("accepted");
    }
    let lsn = engine.last_lsn();
    let refused = engine.remove_range(&range(0, u128::MAX));
    assert!(matches!(refused, Err(ShardexError::BatchTooLarge { bytes: 64_048, .. })), "{refused:?}");
    assert_eq!((engine.last_lsn(), engine.stats().expect("figures").total_postings), (lsn, 4_000));
    assert_eq!(engine.remove_range(&range(0, 899)).expect("removed").1, 900);
    check_clean(&engine);
}

/// Returns the length of the WAL after `batches` batches of `postings` postings each, in bytes without the file header.
fn log_after(flush_wal_bytes: u64, batches: u64, postings: u64) -> u64 {
    let test = TestIndex::with(|config| config.flush_wal_bytes(flush_wal_bytes).durability(Durability::Manual));
    block_on(async {
        let index = Shardex::create(test.config.clone()).await.expect("made");
        let mut recycled = 0;
        for n in 0..batches {
            index.add_postings(documents(n * postings..(n + 1) * postings)).await.expect("accepted");
            recycled = index.stats().await.expect("figures").segments_recycled;
        }
        assert!(recycled * SEGMENT > 4 * flush_wal_bytes, "{recycled} segments were used again");
        index.close().await.expect("closed");
    });
    fs::metadata(test.path().join("wal")).expect("a log").len() - 4_096
}

const SEGMENT: u64 = 16 << 10;

/// Returns an upper bound of the WAL bytes of a batch of `postings` postings, padding to sectors included.
fn batch_bytes(postings: u64) -> u64 {
    let payload = 8 + postings * (24 + 4 * DIMENSION as u64);
    // Each segment also contains the sector of its header and the header of a frame.
    payload + (payload / SEGMENT + 2) * (512 + 32)
}

/// Regression: the WAL grew by a quarter at a time, and exceeded the bytes that flushes retain by one batch per root.
#[test]
fn the_log_stays_within_three_flushes_a_batch_and_two_segments() {
    for (flush_wal_bytes, batches, postings) in [(64 << 10, 150, 60), (32 << 10, 20, 1_000), (48 << 10, 80, 130)] {
        let len = log_after(flush_wal_bytes, batches, postings);
        let most = 3 * flush_wal_bytes + batch_bytes(postings) + 2 * SEGMENT;
        assert!(len <= most, "{len} bytes of WAL in batches of {postings}, {most} allowed");
    }
}

/// Regression: statistics read every component of every shard.
#[test]
fn statistics_look_at_the_shards_that_changed() {
    let test = TestIndex::small();
    let mut engine = test.create();
    for n in 0..40 {
        engine.add(&documents(n * 50..n * 50 + 50)).expect("accepted");
        if n % 5 == 4 {
            let gone: Vec<DocumentId> = (n * 50 - 100..n * 50).step_by(3).map(|id| DocumentId(id.into())).collect();
            engine.remove(&gone).expect("removed");
        }
        let stats = engine.stats().expect("figures");
        let snapshot = engine.snapshot();
        let shards: Vec<_> = snapshot.iter().map(|(_, shard)| shard).collect();
        assert_eq!(stats.total_shards, shards.len());
        assert_eq!(Some(stats.largest_shard), shards.iter().map(|shard| shard.live()).max());
        let drift = |shard: &Shard<MmapLent>| {
            let mean: Vec<f64> = shard.mean().expect("no shard is empty").collect();
            let apart: f64 = mean.iter().zip(shard.centroid.iter()).map(|(m, &c)| (m - f64::from(c)).powi(2)).sum();
            (apart / mean.iter().map(|m| m * m).sum::<f64>()).sqrt() as f32
        };
        let most = shards.iter().map(|shard| drift(shard)).fold(0.0, f32::max);
        assert!((stats.max_drift - most).abs() < 1e-6, "{} {most}", stats.max_drift);
    }
    assert!(engine.stats().expect("figures").total_shards > 100);
    let looks = engine.shards_figured();
    engine.stats().expect("figures");
    assert_eq!(engine.shards_figured(), looks, "nothing has changed");
    engine.add(&documents(9_000..9_001)).expect("accepted");
    engine.stats().expect("figures");
    assert!((1..24).contains(&(engine.shards_figured() - looks)), "one shard, or those that a split changed");
}

/// Regression: for the first cells, the writer encoded every posting added during the build before it served another
/// call.
#[test]
fn the_first_cells_leave_the_codes_of_what_came_meanwhile_to_a_job() {
    let test = TestIndex::small();
    let mut engine = test.create();
    engine.add(&documents(0..1_000)).expect("accepted");
    let job = engine.cell_build_begin().expect("it may");
    for n in 1_000..1_600 {
        engine.add(&documents(n..n + 1)).expect("accepted");
    }
    let built = job.run().expect("no damage");
    engine.install_cells(built).expect("taken in");
    assert!(engine.stats().expect("figures").unindexed_postings >= 600);
    let job = engine.encode_begin().expect("codes are to be made");
    engine.add(&documents(1_600..1_610)).expect("accepted");
    assert_eq!(ids(&engine).len(), 1_610);
    engine.install_codes(&job.run().expect("no damage"));
    assert!(engine.encode_begin().is_none(), "all have codes");
    check_clean(&engine);
    // The next cells contain the postings that have codes. The other postings keep their codes, and no code is made
    // again.
    let job = engine.cell_build_begin().expect("it may");
    engine.add(&documents(2_000..2_300)).expect("accepted");
    let built = job.run().expect("no damage");
    engine.install_cells(built).expect("taken in");
    assert!(engine.encode_begin().is_none(), "all have codes");
    check_clean(&engine);
    assert_eq!(ids(&engine).len(), 1_910);
}

/// Regression: each growth of a file allocated it from its first byte, in as many steps as the file has pieces.
#[test]
fn an_allocation_takes_its_range_alone() {
    let dir = tempfile::tempdir().expect("a directory");
    let storage = MmapStorage::new(dir.path());
    let path = dir.path().join("file");
    let purpose = Purpose("a test");
    let file = storage.create("file", purpose).expect("made");
    let allocated = || {
        let blocks = fs::metadata(&path).expect("a file").blocks() * 512;
        assert_eq!(file.allocated().expect("known"), blocks);
        blocks
    };
    file.allocate(0, 1 << 20, purpose).expect("room");
    assert!(allocated() >= 1 << 20);
    // The test turns the whole file into one hole, to make a repeated allocation visible. No process does this to a
    // file in use.
    let other = fs::OpenOptions::new().write(true).open(&path).expect("opened");
    other.set_len(0).and_then(|()| other.set_len(1 << 20)).expect("a hole");
    assert_eq!(allocated(), 0);
    file.allocate(1 << 20, 1 << 20, purpose).expect("room");
    let most = (1 << 20) + (64 << 10);
    assert!((1 << 20..most).contains(&allocated()), "{} bytes for a mebibyte more", allocated());
    file.allocate(0, 2 << 20, purpose).expect("room");
    assert!(allocated() >= 2 << 20, "holes are filled");
}
