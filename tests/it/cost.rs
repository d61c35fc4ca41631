//! What calls cost, by counts: shards looked into, slots read, log written.

use std::ops::RangeInclusive;

use shardex::{DocumentId, Engine, Posting, ShardexError, shard::Shard, storage::MmapStorage};

type MmapLent = shardex::engine::Lent<MmapStorage>;

use crate::support::{DIMENSION, TestIndex, check_clean, documents, ids, posting, vector};

/// Postings of one document, told apart by their starts.
fn chunks(document: u128, starts: std::ops::Range<u32>) -> Vec<Posting> {
    starts.map(|start| posting(document, start, vector(start.into(), DIMENSION))).collect()
}

/// Whether a shard holds a posting of a document.
fn holds_document(shard: &Shard<MmapLent>, engine: &Engine<MmapStorage>, document: DocumentId) -> bool {
    let rows = shard.live_rows(engine.data()).expect("no damage");
    rows.iter().any(|(posting, _)| posting.document_id == document)
}

/// Adds postings in batches; returns shards looked into and slots read for each posting.
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

/// A key of a document that lies in 200 shards was looked for in all of them, and compared with every slot there.
#[test]
fn postings_of_one_document_cost_no_more_than_those_of_many() {
    for batch in [1, 100, 1_000] {
        let test = TestIndex::small();
        let mut engine = test.create();
        let (shards, slots) = cost_of(&mut engine, &chunks(7, 0..2_000), batch);
        assert!(engine.stats().expect("figures").total_shards > 120);
        assert!(shards < 0.5, "{shards} shards for each posting in batches of {batch}");
        assert!(slots < 0.01, "{slots} slots for each posting in batches of {batch}");
        // Replacing a posting reads the one slot that holds it; a shard that had it before is looked into now and then.
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
    // Nearly no filter names a shard for it.
    engine.add(&documents(5_000..5_001)).expect("accepted");
    assert!(engine.lookups().filled < 3);
    // The filters name every shard that holds the document: these are read, once.
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

/// A batch that is refused leaves lookups as they were.
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
    // Of those that are named, the log gets those that are there, once.
    let some: Vec<DocumentId> = [5, 900_000, 5, 6, 7_000_000].map(DocumentId).to_vec();
    let (after, removed) = engine.remove(&some).expect("removed");
    assert_eq!((after.0, removed), (lsn.0 + 1, 2));
    assert!(engine.wal_bytes() - log <= 32 + 8 + 2 * 16, "{} bytes", engine.wal_bytes() - log);
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
    // Half of all ids there are, none of them stored.
    assert_eq!(engine.remove_range(&range(1 << 64, u128::MAX - 1)).expect("nothing to do").1, 0);
    assert_eq!((engine.wal_bytes(), engine.last_lsn()), (log, lsn.next()));
    #[expect(clippy::reversed_empty_ranges, reason = "an empty range is what is asked for")]
    let empty = DocumentId(5)..=DocumentId(4);
    assert_eq!(engine.remove_range(&empty).expect("nothing to do").1, 0);
    // A small range is looked up, id by id; the last id can be named.
    let lookups = engine.lookups().lookups;
    assert_eq!(engine.remove_range(&range(100, 109)).expect("removed").1, 10);
    assert_eq!(engine.lookups().lookups - lookups, 20, "once to find it, once to remove it");
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

/// All or nothing: what one record cannot hold is refused, and says so.
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
    assert!(matches!(refused, Err(ShardexError::BatchTooLarge { bytes: 64_008, .. })), "{refused:?}");
    assert_eq!((engine.last_lsn(), engine.stats().expect("figures").total_postings), (lsn, 4_000));
    assert_eq!(engine.remove_range(&range(0, 899)).expect("removed").1, 900);
    check_clean(&engine);
}
