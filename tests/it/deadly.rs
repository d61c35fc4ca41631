//! Tests of the cases that broke an earlier index of this design, each by name.

use std::{fs, os::unix::fs::MetadataExt as _};

use shardex::{CheckLevel, DocumentId, FlushStats, ShardexError, index, limits};

use crate::support::{DIMENSION, TestIndex, check_clean, documents, everything, ids, posting, search, vector};

fn range(range: std::ops::Range<u128>) -> Vec<u128> {
    range.collect()
}

#[test]
fn the_wal_goes_on_after_its_first_segment() {
    let test = TestIndex::with(|config| {
        let options = config.options.clone().flush_wal_bytes(0);
        config.options(options)
    });
    let mut engine = test.create();
    for n in 0..60 {
        engine.add(&documents(n * 10..n * 10 + 10)).expect("accepted");
        engine.commit().expect("durable");
    }
    let stats = engine.stats().expect("stats");
    assert!(stats.wal_bytes > 4 * 16 * 1024, "{} bytes are more than the first four segments", stats.wal_bytes);
    drop(engine);
    let mut engine = test.open();
    assert_eq!(engine.stats().expect("stats").recovery.records_replayed, 60);
    assert_eq!(ids(&engine), range(0..600));
    check_clean(&engine);
    // Two flushes later the segments are reused, and the file keeps its length.
    let len = fs::metadata(test.path().join("wal")).expect("the WAL").len();
    for n in 60..200 {
        engine.add(&documents(n * 10..n * 10 + 10)).expect("accepted");
        if n % 10 == 0 {
            engine.flush().expect("flushed");
        }
    }
    assert!(engine.stats().expect("stats").segments_recycled > 5);
    assert_eq!(fs::metadata(test.path().join("wal")).expect("the WAL").len(), len);
    check_clean(&engine);
}

#[test]
fn more_postings_than_one_shard_holds_are_all_kept() {
    let test = TestIndex::small();
    let mut engine = test.create();
    for n in 0..50 {
        engine.add(&documents(n * 20..n * 20 + 20)).expect("accepted");
        assert_eq!(ids(&engine), range(0..u128::from(n) * 20 + 20));
    }
    let stats = engine.stats().expect("stats");
    assert!(stats.splits > 30 && stats.largest_shard <= 16, "{stats:?}");
    engine.flush().expect("flushed");
    drop(engine);
    let engine = test.open();
    assert_eq!(ids(&engine), range(0..1000));
    check_clean(&engine);
}

#[test]
fn equal_vectors_fill_shards_and_split_them_like_others() {
    let test = TestIndex::small();
    let mut engine = test.create();
    let same: Vec<_> = (0..200).map(|n| posting(n, 0, vector(7, DIMENSION))).collect();
    for chunk in same.chunks(7) {
        engine.add(chunk).expect("accepted");
    }
    engine.flush().expect("flushed");
    assert_eq!(ids(&engine), range(0..200));
    assert!(engine.stats().expect("stats").largest_shard <= 16);
    check_clean(&engine);
}

#[test]
fn a_batch_larger_than_a_segment_is_atomic_and_one_that_can_never_fit_is_refused() {
    let test = TestIndex::with(|config| {
        let options = config.options.clone().wal_max_bytes(256 << 10);
        config.options(options)
    });
    let mut engine = test.create();
    // 700 postings of 120 bytes fill more than five segments.
    engine.add(&documents(0..700)).expect("accepted");
    engine.commit().expect("durable");
    drop(engine);
    let mut engine = test.open();
    assert_eq!(ids(&engine), range(0..700));
    let error = engine.add(&documents(1000..4000)).expect_err("more than the WAL may ever hold");
    assert!(matches!(error, ShardexError::BatchTooLarge { bytes, limit } if bytes > limit), "{error}");
    assert_eq!(ids(&engine), range(0..700));
    // A batch that doesn't fit into the rest of the WAL triggers a flush.
    for n in 1..12 {
        engine.add(&documents(n * 1000..n * 1000 + 700)).expect("accepted after a flush");
    }
    assert_eq!(ids(&engine).len(), 12 * 700);
    check_clean(&engine);
}

#[test]
fn a_torn_batch_over_several_segments_leaves_nothing_of_itself() {
    let test = TestIndex::small();
    let mut engine = test.create();
    engine.add(&documents(0..10)).expect("accepted");
    engine.commit().expect("durable");
    engine.add(&documents(100..800)).expect("accepted");
    engine.commit().expect("durable");
    drop(engine);
    // The last sector of the batch never reached the disk.
    test.patch("wal", |bytes| {
        let last = bytes.chunks(512).rposition(|sector| sector.iter().any(|&byte| byte != 0)).expect("some bytes");
        bytes[last * 512..].fill(0);
    });
    let engine = test.open();
    assert_eq!(ids(&engine), range(0..10));
    assert!(engine.stats().expect("stats").recovery.torn_tail);
    check_clean(&engine);
}

#[test]
fn five_reopens_change_neither_count_nor_answers_nor_bytes() {
    let test = TestIndex::small();
    let mut engine = test.create();
    engine.add(&documents(0..300)).expect("accepted");
    engine.remove(&[DocumentId(5), DocumentId(250)]).expect("removed");
    engine.close().expect("closed");
    drop(engine);
    let bytes = test.bytes();
    let mut answers = Vec::new();
    for _ in 0..5 {
        let mut engine = test.open();
        let stats = engine.stats().expect("stats");
        assert_eq!((stats.total_postings, stats.recovery.records_replayed), (298, 0));
        answers.push(search(&engine, &vector(77, DIMENSION), 20));
        check_clean(&engine);
        engine.close().expect("closed");
        drop(engine);
        assert!(test.bytes() == bytes, "a reopen changed the files");
    }
    assert!(answers.windows(2).all(|pair| pair[0] == pair[1]));
    // The number of postings and the lengths of the files stay the same after a crash too.
    let mut engine = test.open();
    engine.add(&documents(1000..1040)).expect("accepted");
    engine.commit().expect("durable");
    drop(engine);
    // The first recovery may need space for the replayed postings. The others need none.
    drop(test.open());
    let lens: Vec<_> = test.bytes().iter().map(Vec::len).collect();
    for _ in 0..5 {
        let engine = test.open();
        assert_eq!(engine.stats().expect("stats").total_postings, 338);
        check_clean(&engine);
        drop(engine);
    }
    assert_eq!(test.bytes().iter().map(Vec::len).collect::<Vec<_>>(), lens);
}

#[test]
fn exactly_b_and_c_are_left_of_add_a_b_remove_a_add_c() {
    let test = TestIndex::small();
    let mut engine = test.create();
    engine.add(&documents(0..2)).expect("A and B");
    assert_eq!(engine.remove(&[DocumentId(0)]).expect("removed").1, 1);
    engine.add(&documents(2..3)).expect("C");
    engine.flush().expect("flushed");
    assert_eq!(ids(&engine), [1, 2]);
    engine.close().expect("closed");
    drop(engine);
    let engine = test.open();
    assert_eq!(ids(&engine), [1, 2]);
    drop(engine);
    // The same operations, with a crash before the flush.
    let test = TestIndex::small();
    let mut engine = test.create();
    engine.add(&documents(0..2)).expect("A and B");
    engine.remove(&[DocumentId(0)]).expect("removed");
    engine.add(&documents(2..3)).expect("C");
    engine.commit().expect("durable");
    drop(engine);
    for _ in 0..3 {
        let engine = test.open();
        assert_eq!(ids(&engine), [1, 2]);
        check_clean(&engine);
    }
}

#[test]
fn an_unknown_document_is_removed_without_effect() {
    let test = TestIndex::small();
    let mut engine = test.create();
    assert_eq!(engine.remove(&[DocumentId(9)]).expect("fine").1, 0);
    engine.add(&documents(0..5)).expect("accepted");
    assert_eq!(engine.remove(&[DocumentId(9), DocumentId(u128::MAX)]).expect("fine").1, 0);
    assert_eq!(ids(&engine), range(0..5));
    let stats = engine.flush().expect("flushed");
    // The removal without effect wrote no WAL record.
    assert_eq!(stats.operations_applied, 5);
    drop(engine);
    assert_eq!(ids(&test.open()), range(0..5));
}

#[test]
fn a_document_in_many_shards_is_removed_from_all_of_them() {
    let test = TestIndex::small();
    let mut engine = test.create();
    let mut batch = documents(0..400);
    batch.extend((0..60).map(|start| posting(9999, start, vector(u64::from(start) * 7, DIMENSION))));
    engine.add(&batch).expect("accepted");
    engine.flush().expect("flushed");
    assert!(engine.stats().expect("stats").total_shards > 20);
    assert_eq!(engine.remove(&[DocumentId(9999), DocumentId(9999)]).expect("removed").1, 60);
    assert_eq!(ids(&engine), range(0..400));
    drop(engine);
    let mut engine = test.open();
    // Neither the removal nor a later record was committed. Both outcomes are allowed, but the removal must be atomic.
    let left = ids(&engine).len();
    assert!(left == 400 || left == 460, "{left}");
    engine.remove(&[DocumentId(9999)]).expect("removed");
    engine.flush().expect("flushed");
    drop(engine);
    assert_eq!(ids(&test.open()), range(0..400));
}

#[test]
fn what_was_removed_can_be_added_again_and_a_key_added_twice_is_replaced() {
    let test = TestIndex::small();
    let mut engine = test.create();
    engine.add(&documents(0..40)).expect("accepted");
    for round in 0..10 {
        engine.remove(&(0..40).map(DocumentId).collect::<Vec<_>>()).expect("removed");
        assert_eq!(ids(&engine), []);
        assert_eq!(engine.stats().expect("stats").total_shards, 0, "shards without postings are freed");
        engine.add(&documents(0..40)).expect("accepted");
        if round % 2 == 0 {
            engine.flush().expect("flushed");
        }
    }
    let moved: Vec<_> = (0..40u64).map(|n| posting(u128::from(n), 0, vector(n + 5000, DIMENSION))).collect();
    engine.add(&moved).expect("replaced");
    // Of equal keys within a batch, the last one counts.
    engine.add(&[posting(3, 0, vector(1, DIMENSION)), posting(3, 0, vector(2, DIMENSION))]).expect("replaced");
    for crash in [true, false] {
        assert_eq!(ids(&engine), range(0..40));
        let nearest = search(&engine, &vector(5017, DIMENSION), 1);
        assert_eq!((nearest[0].document_id, nearest[0].similarity_score), (DocumentId(17), 0.0));
        assert_eq!(search(&engine, &vector(2, DIMENSION), 1)[0].document_id, DocumentId(3));
        check_clean(&engine);
        if crash {
            engine.commit().expect("durable");
        } else {
            engine.close().expect("closed");
        }
        drop(engine);
        engine = test.open();
    }
    let disk = engine.stats().expect("stats").disk_bytes;
    assert!(disk < 1 << 20, "{disk} bytes: space is used again");
}

#[test]
fn a_snapshot_keeps_its_answers_over_flushes_and_splits() {
    let test = TestIndex::small();
    let mut engine = test.create();
    engine.add(&documents(0..100)).expect("accepted");
    let snapshot = engine.snapshot();
    let ask = || {
        let query = vector(42, DIMENSION);
        index::search(&snapshot, engine.data(), &query, 100, index::SearchScope::exact())
            .expect("found")
            .to_response()
            .results
    };
    let before = ask();
    let data = std::sync::Arc::clone(engine.data());
    for n in 1..30 {
        engine.remove(&(n * 3..n * 3 + 3).map(|id| DocumentId(id.into())).collect::<Vec<_>>()).expect("removed");
        engine.add(&documents(n * 100..n * 100 + 60)).expect("accepted");
        engine.flush().expect("flushed");
        let query = vector(42, DIMENSION);
        let now = index::search(&snapshot, &data, &query, 100, index::SearchScope::exact())
            .expect("found")
            .to_response()
            .results;
        assert!(now == before, "round {n}");
    }
    assert!(engine.stats().expect("stats").held_bytes > 0, "what the snapshot reads is held back");
    drop(snapshot);
    engine.add(&documents(9000..9001)).expect("accepted");
    engine.flush().expect("flushed");
    check_clean(&engine);
}

#[test]
fn a_stale_record_behind_a_torn_tail_never_comes_back() {
    // Each batch exceeds one mebibyte, so the next `add` stores it in the file before any commit: groups without an
    // acknowledgement.
    let test = TestIndex::with(|config| config.vector_size(1024).shard_size(512));
    let batch =
        |base: u64| -> Vec<_> { (base..base + 300).map(|n| posting(u128::from(n), 0, vector(n, 1024))).collect() };
    let mut engine = test.create();
    engine.add(&batch(0)).expect("accepted");
    engine.commit().expect("durable");
    let start = fs::read(test.path().join("wal")).expect("the WAL");
    for n in 1..4 {
        engine.add(&batch(n * 1000)).expect("accepted");
    }
    drop(engine);
    // The second batch is torn. The third, behind it, is whole.
    test.patch("wal", |bytes| {
        let first_new = bytes.iter().zip(start.iter().chain(std::iter::repeat(&0))).position(|(a, b)| a != b);
        bytes[first_new.expect("something was handed over") + 600] ^= 1;
    });
    let mut engine = test.open();
    assert!(engine.stats().expect("stats").recovery.torn_tail);
    assert_eq!(ids(&engine), range(0..300));
    // A batch of the same size takes the LSN of the torn one.
    engine.add(&batch(50_000)).expect("accepted");
    engine.commit().expect("durable");
    drop(engine);
    let engine = test.open();
    let expected: Vec<u128> = (0..300).chain(50_000..50_300).collect();
    assert_eq!(ids(&engine), expected);
    check_clean(&engine);
}

#[test]
fn a_hole_before_acknowledged_records_is_reported_and_nothing_served() {
    let test = TestIndex::small();
    let mut engine = test.create();
    for n in 0..20 {
        engine.add(&documents(n * 10..n * 10 + 10)).expect("accepted");
        engine.commit().expect("durable");
    }
    drop(engine);
    let copy = test.copy();
    copy.patch("wal", |bytes| bytes[4096 + 512 + 2000] ^= 0x10);
    let error = copy.try_open().err().expect("a hole is no torn tail");
    assert!(matches!(&error, ShardexError::Corruption { file, .. } if file.ends_with("wal")), "{error}");
    // The header of the second segment is damaged.
    let copy = test.copy();
    copy.patch("wal", |bytes| bytes[4096 + (16 << 10)] ^= 0x10);
    assert!(matches!(copy.try_open(), Err(ShardexError::Corruption { .. })));
    assert_eq!(ids(&test.open()), range(0..200));
}

#[test]
fn a_rotten_newest_root_costs_nothing_whatever_was_split_and_freed_since() {
    let test = TestIndex::small();
    let mut engine = test.create();
    let mut expected: Vec<u128> = Vec::new();
    for n in 0..25u64 {
        engine.add(&documents(n * 40..n * 40 + 40)).expect("accepted");
        expected.extend((n * 40..n * 40 + 40).map(u128::from));
        if n % 3 == 2 {
            let gone: Vec<u128> = expected.drain(..60).collect();
            engine.remove(&gone.into_iter().map(DocumentId).collect::<Vec<_>>()).expect("removed");
        }
        if n % 2 == 0 {
            engine.flush().expect("flushed");
        } else {
            engine.commit().expect("durable");
        }
        let generation = engine.stats().expect("stats").generation.0;
        for slot in 0..2 {
            let copy = test.copy();
            copy.patch("root", |bytes| bytes[slot * 4096 + 40] ^= 1);
            let mut engine = copy.open();
            assert_eq!(ids(&engine), expected, "round {n}, slot {slot} of root {generation}");
            assert!(engine.stats().expect("stats").recovery.root_fallback);
            check_clean(&engine);
            // The index stays writable, and the open after the next crash finds two intact slots.
            engine.add(&documents(90_000..90_010)).expect("accepted");
            engine.flush().expect("flushed");
            drop(engine);
            let engine = copy.open();
            assert!(!engine.stats().expect("stats").recovery.root_fallback);
            assert_eq!(ids(&engine).len(), expected.len() + 10);
        }
    }
}

#[test]
fn a_copied_index_opens_elsewhere() {
    let test = TestIndex::small();
    let mut engine = test.create();
    engine.add(&documents(0..200)).expect("accepted");
    engine.flush().expect("flushed");
    engine.add(&documents(200..230)).expect("accepted");
    engine.commit().expect("durable");
    // The copy is made while the index is open. A copy of an idle index with `cp` equals the files that a crash leaves.
    let copy = test.copy();
    let answers = everything(&engine);
    engine.close().expect("closed");
    drop(engine);
    let moved = test.parent().join("moved");
    fs::rename(test.path(), &moved).expect("moved");
    for path in [moved, copy.path()] {
        let test = TestIndex::with(|mut config| {
            config.directory_path = path;
            config
        });
        let mut engine = test.open();
        assert!(everything(&engine) == answers);
        engine.add(&documents(500..600)).expect("accepted");
        engine.flush().expect("flushed");
        check_clean(&engine);
    }
}

#[test]
fn statistics_are_right_after_a_flush_and_after_a_reopen() {
    let test = TestIndex::small();
    let mut engine = test.create();
    engine.add(&documents(0..120)).expect("accepted");
    let before = engine.stats().expect("stats");
    assert_eq!((before.pending_operations, before.uncommitted_operations), (120, 120));
    assert!(before.durable_lsn < before.last_lsn && before.wal_bytes > 0);
    engine.commit().expect("durable");
    assert_eq!(engine.stats().expect("stats").uncommitted_operations, 0);
    engine.remove(&(0..20).map(DocumentId).collect::<Vec<_>>()).expect("removed");
    let flushed = engine.flush().expect("flushed");
    assert_eq!((flushed.operations_applied, flushed.barriers), (140, 3));
    let after = engine.stats().expect("stats");
    assert_eq!((after.total_postings, after.pending_operations, after.uncommitted_operations), (100, 0, 0));
    assert_eq!((after.checkpoint_lsn, after.durable_lsn), (after.last_lsn, after.last_lsn));
    assert_eq!((after.wal_bytes, after.flushes, after.last_flush.as_ref()), (0, 1, Some(&flushed)));
    assert_eq!(flushed.checkpoint_lsn, after.checkpoint_lsn);
    engine.close().expect("closed");
    drop(engine);
    let reopened = test.open().stats().expect("stats");
    assert_eq!(
        (reopened.total_postings, reopened.removed_postings, reopened.total_shards, reopened.splits),
        (after.total_postings, after.removed_postings, after.total_shards, after.splits)
    );
    assert_eq!((reopened.pending_operations, reopened.wal_bytes), (0, 0));
    let takes = |name| fs::metadata(test.path().join(name)).expect("a file").blocks() * 512;
    assert_eq!(reopened.disk_bytes, ["data", "wal", "root"].map(takes).iter().sum::<u64>());
}

#[test]
fn stage_times_sum_to_no_more_than_the_total_and_an_empty_flush_issues_no_barrier() {
    let test = TestIndex::small();
    let mut engine = test.create();
    for n in 0..10 {
        engine.add(&documents(n * 50..n * 50 + 50)).expect("accepted");
        let stats = engine.flush().expect("flushed");
        let sum: std::time::Duration = stats.stages().iter().map(|(_, time)| *time).sum();
        assert!(sum <= stats.total_duration && !stats.total_duration.is_zero(), "{stats}");
        assert!(stats.barriers <= 4 && stats.bytes_synced > 50 * 4 * DIMENSION as u64);
        assert!(stats.stages().iter().any(|(name, _)| *name == stats.slowest_stage()));
        // An empty flush returns the checkpoint and the generation that are durable already.
        let empty = engine.flush().expect("nothing to do");
        let now = engine.stats().expect("stats");
        let mut nothing = FlushStats::default();
        (nothing.checkpoint_lsn, nothing.generation) = (now.checkpoint_lsn, now.generation);
        assert_eq!(empty, nothing);
        assert_eq!((empty.checkpoint_lsn, empty.generation), (stats.checkpoint_lsn, stats.generation));
    }
}

#[test]
fn one_dirty_shard_or_a_hundred_take_the_same_barriers() {
    let test = TestIndex::small();
    let mut engine = test.create();
    engine.add(&documents(0..2000)).expect("accepted");
    let many = engine.flush().expect("flushed");
    engine.add(&documents(5000..5001)).expect("accepted");
    let one = engine.flush().expect("flushed");
    assert!(many.shards_synced > 100 && one.shards_synced <= 3, "{many}\n{one}");
    assert_eq!((many.barriers, one.barriers), (3, 3));
}

#[test]
fn damage_is_found_by_the_full_check_and_by_the_first_search_that_reads_it() {
    let test = TestIndex::small();
    let mut engine = test.create();
    engine.add(&documents(0..200)).expect("accepted");
    engine.close().expect("closed");
    drop(engine);
    let needle: Vec<u8> = vector(123, DIMENSION).iter().flat_map(|x| x.to_le_bytes()).collect();
    let copy = test.copy();
    copy.patch("data", |bytes| {
        let at = bytes.windows(needle.len()).rposition(|window| window == needle).expect("the vector is there");
        bytes[at + 3] ^= 0x80;
    });
    let engine = copy.open();
    let report = engine.check(CheckLevel::Full).expect("readable");
    assert!(report.findings.iter().any(|finding| finding.location.is_some()), "{report}");
    assert!(engine.check(CheckLevel::Quick).expect("readable").is_clean(), "the quick check reads no vector");
    let query = vector(1, DIMENSION);
    let error =
        index::search(&engine.snapshot(), engine.data(), &query, 5, index::SearchScope::exact()).expect_err("damaged");
    assert!(matches!(&error, ShardexError::Corruption { file, .. } if file.ends_with("data")), "{error}");
}

#[test]
fn every_damaged_page_of_metadata_is_found_at_open_or_by_the_check() {
    let test = TestIndex::small();
    let mut engine = test.create();
    engine.add(&documents(0..60)).expect("accepted");
    engine.close().expect("closed");
    drop(engine);
    let good = ids(&test.open());
    let pages = test.bytes()[0].len() / 4096;
    let mut found = 0;
    for page in 0..pages {
        if test.bytes()[0][page * 4096..(page + 1) * 4096].iter().all(|&byte| byte == 0) {
            continue;
        }
        let copy = test.copy();
        copy.patch("data", |bytes| {
            let at = (page * 4096..(page + 1) * 4096).find(|&at| bytes[at] != 0).expect("a byte");
            bytes[at] ^= 0x40;
        });
        match copy.try_open() {
            Err(ShardexError::Corruption { .. } | ShardexError::NotAnIndex { .. }) => found += 1,
            Err(error) => panic!("page {page}: {error}"),
            Ok(engine) => match engine.check(CheckLevel::Full).expect("readable").is_clean() {
                // The page is free or belongs to the older root alone, so no search reads it.
                true => assert_eq!(ids(&engine), good, "page {page}"),
                false => found += 1,
            },
        }
    }
    assert!(found > 5, "{found} of {pages} pages");
}

#[test]
fn the_largest_vectors_are_searched_without_an_overflow() {
    let test = TestIndex::small();
    let mut engine = test.create();
    let big = (limits::MAX_NORM / (DIMENSION as f64).sqrt() * 0.999) as f32;
    engine.add(&[posting(1, 0, vec![big; DIMENSION]), posting(2, 0, vec![-big; DIMENSION])]).expect("accepted");
    let found = search(&engine, &[big; DIMENSION], 2);
    assert_eq!(found.iter().map(|r| r.document_id.0).collect::<Vec<_>>(), [1, 2]);
    assert!(found.iter().all(|r| r.similarity_score.is_finite()));
    engine.flush().expect("flushed");
    check_clean(&engine);
    let error = engine.add(&[posting(3, 0, vec![big * 1.01; DIMENSION])]).expect_err("over the bound");
    assert!(matches!(error, ShardexError::InvalidVector { index: 0, .. }), "{error}");
}
