//! Batches of operations: their order, their counts, tags, payloads and the cursor, refusals, and indexes of other
//! versions.

use std::{fs, path::Path};

use shardex::{
    CheckLevel, DocumentId, Durability, Filter, Metric, OpenOptions, Posting, PostingKey, SearchOptions, Shardex,
    ShardexConfig, ShardexError, WriteBatch,
    format::{
        frame::{self, Frame, FrameKind},
        root::Root,
    },
    limits::{MAX_CURSOR_BYTES, MAX_PAYLOAD_BYTES},
};
use tempfile::TempDir;

use crate::support::{DIMENSION, TestIndex, block_on, check_clean, documents, ids, vector};

fn config(dir: &TempDir) -> ShardexConfig {
    ShardexConfig::new(dir.path().join("index"))
        .vector_size(DIMENSION)
        .metric(Metric::L2)
        .shard_size(16)
        .options(OpenOptions::default().durability(Durability::Manual).flush_on_close(false))
}

fn key(document: u128, start: u32) -> PostingKey {
    PostingKey::new(document, start, 1)
}

fn posting(document: u128, start: u32, n: u64) -> Posting {
    Posting::new(key(document, start), vector(n, DIMENSION))
}

fn batch(fill: impl FnOnce(&mut WriteBatch)) -> WriteBatch {
    let mut batch = WriteBatch::new();
    fill(&mut batch);
    batch
}

/// A removal by filter sees what the operations before it leave: new tags, new postings, removed documents.
#[test]
fn a_removal_by_filter_acts_on_what_the_operations_before_leave() {
    let dir = TempDir::new().expect("a directory");
    block_on(async {
        let index = Shardex::create(config(&dir)).await?;
        let first = batch(|b| {
            for n in 0..8 {
                b.add(posting(n, 0, n as u64).tagged(n as u64 % 2)).set_payload(n, "kept");
            }
        });
        index.write(first).await?;
        let second = batch(|b| {
            b.set_tags(key(0, 0), 1).set_tags(key(1, 0), 2).remove_document(3u128);
            b.add(posting(9, 0, 9).tagged(1)).add(posting(5, 0, 50).tagged(4));
            b.remove_matching(Filter::all_tags(1));
            b.add(posting(10, 0, 10).tagged(1));
        });
        // Of the odd ones 1 and 5 have other tags by then, 3 is gone, 7 goes; 0 goes, 9 was never there.
        let written = index.write(second).await?;
        assert_eq!((written.added, written.replaced, written.removed), (1, 1, 3));
        let snapshot = index.snapshot().await?;
        let left = snapshot.documents(None, 99)?;
        assert_eq!(left, [1, 2, 4, 5, 6, 10].map(DocumentId));
        assert_eq!(snapshot.documents_with_payload(None, 99), [0, 1, 2, 4, 5, 6, 7].map(DocumentId));
        // Listed documents and postings, combinations, a filter that lets nothing pass.
        let third = batch(|b| {
            b.remove_matching(Filter::documents([DocumentId(1), DocumentId(77)]));
            b.remove_matching(Filter::postings([key(2, 0), key(4, 9)]));
            b.remove_matching(
                (Filter::no_tags(4) & Filter::documents([DocumentId(5), DocumentId(6)])) | Filter::any_tags(0),
            );
        });
        assert_eq!(index.write(third).await?.removed, 3);
        let unchanged = index.write(batch(|b| _ = b.remove_matching(Filter::all_tags(1 << 63)))).await?;
        assert_eq!((unchanged.removed, unchanged.lsn), (0, index.snapshot().await?.lsn()));
        // A predicate is refused, and nothing of its batch is carried out.
        let refused = batch(|b| {
            b.remove_document(10u128).remove_matching(!Filter::matching(|key| key.start == 0) & Filter::all_tags(1));
        });
        let refused = index.write(refused).await;
        assert!(matches!(refused, Err(ShardexError::InvalidOperation { index: 1, .. })), "{refused:?}");
        assert_eq!(index.snapshot().await?.documents(None, 99)?, [4, 5, 10].map(DocumentId));
        // Replay gives the same.
        drop(snapshot);
        index.commit().await?;
        index.close().await?;
        let index = Shardex::open(dir.path().join("index")).await?;
        assert_eq!(index.snapshot().await?.documents(None, 99)?, [4, 5, 10].map(DocumentId));
        Ok::<_, ShardexError>(())
    })
    .expect("no error");
}

/// Each operation acts on what the ones before it leave, and the counts compare before with after.
#[test]
fn the_order_within_a_batch_decides() {
    let dir = TempDir::new().expect("a directory");
    block_on(async {
        let index = Shardex::create(config(&dir)).await?;
        let first = batch(|b| {
            b.add(posting(1, 0, 1)).add(posting(1, 5, 2).tagged(7)).add(posting(2, 0, 3)).set_payload(2u128, "two");
        });
        let written = index.write(first).await?;
        assert_eq!((written.added, written.replaced, written.removed), (3, 0, 0));
        // Replaced twice, removed and added again, tagged while new, removed after an addition of the same batch.
        let second = batch(|b| {
            b.add(posting(1, 0, 4)).add(posting(1, 0, 5));
            b.remove_posting(key(1, 5)).add(posting(1, 5, 6)).set_tags(key(1, 5), 9);
            b.set_payload(2u128, "lost with its document").remove_document(2u128).set_payload(2u128, "kept");
            b.add(posting(3, 0, 7)).remove_posting(key(3, 0)).remove_payload(9u128).remove_document(10u128);
        });
        let written = index.write(second).await?;
        assert_eq!((written.added, written.replaced, written.removed), (0, 2, 1));
        assert_eq!(index.get_posting(key(1, 0)).await?, Some(posting(1, 0, 5)));
        assert_eq!(index.get_posting(key(1, 5)).await?, Some(posting(1, 5, 6).tagged(9)));
        assert_eq!((index.count(DocumentId(2)).await?, index.count(DocumentId(3)).await?), (0, 0));
        assert_eq!(index.payload(DocumentId(2)).await?.as_deref(), Some(b"kept".as_slice()));
        // Replace takes all old postings and the payload, and the other order removes everything.
        let third = batch(|b| {
            b.set_payload(1u128, "gone").replace_document(1u128, vec![posting(1, 0, 8)]);
            b.replace_document(2u128, vec![posting(2, 1, 9)]).remove_document(2u128);
        });
        let written = index.write(third).await?;
        assert_eq!((written.added, written.replaced, written.removed), (0, 1, 1));
        assert_eq!(index.get(DocumentId(1)).await?, [posting(1, 0, 8)]);
        assert_eq!((index.payload(DocumentId(1)).await?, index.payload(DocumentId(2)).await?), (None, None));
        // What changes nothing is not recorded.
        let lsn = written.lsn;
        let nothing = batch(|b| {
            b.remove_document(77u128).remove_posting(key(1, 99)).set_tags(key(1, 0), 0).set_tags(key(8, 8), 1);
            b.remove_payload(1u128);
        });
        let written = index.write(nothing).await?;
        assert_eq!((written.lsn, written.added, written.replaced, written.removed), (lsn, 0, 0, 0));
        assert_eq!(index.write(WriteBatch::new()).await?.lsn, lsn);
        assert!(index.check(CheckLevel::Full).await?.is_clean());
        index.close().await
    })
    .expect("no error");
}

/// Payloads of every size, replaced and removed, survive a crash and a close. Their space is used again.
#[test]
fn payloads_come_back_as_they_were_set() {
    let test = TestIndex::small();
    let bytes =
        |n: u64, len: usize| -> Vec<u8> { (0..len).map(|i| (n as usize * 31 + i * 7 + i / 251) as u8).collect() };
    let lengths = [0, 1, 63, 64, 65, 200, 4_095, 4_096, 4_097, 100_000, 1_000_000];
    let check = |engine: &shardex::Engine<_>, round: u64| {
        for (n, len) in (0..).zip(lengths) {
            let content = engine
                .snapshot()
                .payloads
                .find(shardex::format::bucket::PayloadOwner::Document(DocumentId(n)))
                .cloned();
            let found = content.expect("it is there").read(engine.data()).expect("it is whole");
            assert_eq!((found.len(), found.to_vec()), (len, bytes(round + n as u64, len)), "{len} bytes");
            assert!(found.runs().all(|run| !run.is_empty()) || len == 0);
        }
        check_clean(engine);
    };
    let write = |engine: &mut shardex::Engine<_>, round: u64| {
        let all = batch(|b| {
            for (n, len) in (0u128..).zip(lengths) {
                b.set_payload(n, bytes(round + n as u64, len));
            }
        });
        engine.write(&all).expect("accepted");
    };
    let mut engine = test.create();
    let mut pages = 0;
    for round in 0..12 {
        write(&mut engine, round);
        check(&engine, round);
        engine.flush().expect("flushed");
        if round == 4 {
            pages = engine.used_allocations().map(|run| u64::from(run.pages)).sum::<u64>();
        }
    }
    let now: u64 = engine.used_allocations().map(|run| u64::from(run.pages)).sum();
    assert!(now <= pages, "{now} pages are in use, {pages} before");
    write(&mut engine, 50);
    engine.commit().expect("durable");
    drop(engine);
    let mut engine = test.open();
    assert_eq!(engine.stats().expect("stats").recovery.records_replayed, 1);
    check(&engine, 50);
    engine.close().expect("closed");
    drop(engine);
    let mut engine = test.open();
    check(&engine, 50);
    assert_eq!(engine.remove(&(0..20).map(DocumentId).collect::<Vec<_>>()).expect("removed").1, 0);
    (0..3).for_each(|_| {
        engine.add(&documents(0..1)).expect("accepted");
        engine.flush().expect("flushed");
    });
    let left: u64 = engine.used_allocations().map(|run| u64::from(run.pages)).sum();
    assert!(left < 30, "{left} pages are in use without a payload");
    check_clean(&engine);
}

/// Many small payloads, half of them removed: what is left of their blocks moves together.
#[test]
fn space_of_removed_payloads_is_used_again() {
    let test = TestIndex::small();
    let mut engine = test.create();
    let note = |n: u128| format!("a note of document {n}, {}", "x".repeat(150)).into_bytes();
    for first in (0..2_000u128).step_by(50) {
        let some = batch(|b| {
            (first..first + 50).for_each(|n| {
                b.set_payload(n, note(n));
            });
        });
        engine.write(&some).expect("accepted");
    }
    engine.flush().expect("flushed");
    engine.flush().expect("flushed");
    let of_blocks =
        |engine: &shardex::Engine<_>| engine.used_allocations().map(|run| u64::from(run.pages)).sum::<u64>();
    let full = of_blocks(&engine);
    for n in 0..2_000u128 {
        if n % 8 != 3 {
            engine
                .write(&batch(|b| {
                    b.remove_payload(n);
                }))
                .expect("accepted");
        }
    }
    (0..3).for_each(|n| {
        engine
            .write(&batch(|b| {
                b.set_cursor(format!("{n}"));
            }))
            .expect("accepted");
        engine.flush().expect("flushed");
    });
    let left = of_blocks(&engine);
    assert!(left * 2 < full, "{left} of {full} pages are left, for an eighth of the payloads");
    check_clean(&engine);
    drop(engine);
    let engine = test.open();
    assert_eq!(engine.snapshot().payloads.payloads(), 250);
    let owners = |n| shardex::format::bucket::PayloadOwner::Document(DocumentId(n));
    for n in (0..2_000u128).filter(|n| n % 8 == 3) {
        let content = engine.snapshot().payloads.find(owners(n)).cloned().expect("it is there");
        assert_eq!(content.read(engine.data()).expect("whole").to_vec(), note(n));
    }
}

#[test]
fn tags_follow_their_posting_through_everything() {
    let test = TestIndex::small();
    let mut engine = test.create();
    let tags = |n: u64| if n.is_multiple_of(3) { 0 } else { n << 40 | 1 };
    let given: Vec<Posting> = documents(0..400).into_iter().zip(0..).map(|(p, n)| p.tagged(tags(n))).collect();
    let expected = |change: &dyn Fn(u64) -> u64, engine: &shardex::Engine<_>| {
        for found in crate::support::everything(engine) {
            assert_eq!(found.tags, change(found.document_id.0 as u64), "{}", found.document_id);
        }
    };
    for part in given.chunks(37) {
        engine.add(part).expect("accepted");
    }
    expected(&tags, &engine);
    engine.flush().expect("flushed");
    // Without a new vector. Some change, some stay, some lose their tags.
    let change = |n: u64| match n % 5 {
        0 => u64::MAX,
        1 => 0,
        _ => tags(n),
    };
    let stored = engine.stats().expect("stats");
    let retag = batch(|b| {
        (0..400u64).filter(|n| n % 5 < 2).for_each(|n| {
            b.set_tags(key(n.into(), 0), change(n));
        });
    });
    let written = engine.write(&retag).expect("accepted");
    assert_eq!((written.added, written.replaced, written.removed), (0, 0, 0));
    assert_eq!(engine.stats().expect("stats").total_postings, stored.total_postings);
    expected(&change, &engine);
    engine.remove(&(0..300).filter(|n| n % 7 != 0).map(DocumentId).collect::<Vec<_>>()).expect("removed");
    engine.optimize().expect("cells are built");
    expected(&change, &engine);
    engine.commit().expect("durable");
    drop(engine);
    let mut engine = test.open();
    expected(&change, &engine);
    check_clean(&engine);
    engine.close().expect("closed");
    drop(engine);
    expected(&change, &test.open());
}

#[test]
fn a_cursor_says_what_is_in_and_only_the_durable_one_is_safe() {
    let dir = TempDir::new().expect("a directory");
    block_on(async {
        let index = Shardex::create(config(&dir)).await?;
        let cursors =
            async |index: &Shardex| Ok::<_, ShardexError>((index.cursor().await?, index.durable_cursor().await?));
        assert_eq!(cursors(&index).await?, (Vec::new(), Vec::new()));
        index
            .write(batch(|b| {
                b.add(posting(1, 0, 1)).set_cursor_if("1", "");
            }))
            .await?;
        assert_eq!(cursors(&index).await?, (b"1".to_vec(), Vec::new()));
        index.commit().await?;
        assert_eq!(cursors(&index).await?, (b"1".to_vec(), b"1".to_vec()));
        let long = vec![0xA5; MAX_CURSOR_BYTES];
        index
            .write(batch(|b| {
                b.set_cursor(long.clone());
            }))
            .await?;
        index.add_postings(vec![posting(2, 0, 1)]).await?;
        assert_eq!(cursors(&index).await?, (long.clone(), b"1".to_vec()));
        // Another ingester is noticed, and nothing of its batch is accepted.
        let late = batch(|b| {
            b.add(posting(3, 0, 1)).set_cursor_if("2", "1");
        });
        match index.write(late).await {
            Err(ShardexError::CursorMismatch { index: 1, expected, found }) => {
                assert_eq!((expected, found), (b"1".to_vec(), long.clone()));
            }
            other => panic!("{other:?}"),
        }
        assert!(!index.contains(DocumentId(3)).await?);
        // Within a batch the cursor is that of the operations before.
        index
            .write(batch(|b| {
                b.set_cursor_if("2", long.clone()).set_cursor_if("3", "2");
            }))
            .await?;
        index.flush().await?;
        assert_eq!(cursors(&index).await?, (b"3".to_vec(), b"3".to_vec()));
        let snapshot = index.snapshot().await?;
        index
            .write(batch(|b| {
                b.set_cursor("");
            }))
            .await?;
        assert_eq!((snapshot.cursor()?, index.cursor().await?), (b"3".to_vec(), Vec::new()));
        drop(snapshot);
        drop(index);
        let index = Shardex::open(dir.path().join("index")).await?;
        assert_eq!(cursors(&index).await?, (b"3".to_vec(), b"3".to_vec()), "the last one was not committed");
        index.close().await
    })
    .expect("no error");
}

#[test]
fn a_snippet_ends_between_characters() {
    let dir = TempDir::new().expect("a directory");
    let text = "Käfer läuft über Straße";
    block_on(async {
        let index = Shardex::create(config(&dir)).await?;
        index
            .write(batch(|b| {
                b.set_payload(1u128, text).set_payload(2u128, [b'a', 0xFF, b'b']);
            }))
            .await?;
        let snapshot = index.snapshot().await?;
        let part = |document: u128, start, length| snapshot.snippet(PostingKey::new(document, start, length));
        for start in 0..text.len() as u32 + 3 {
            for length in 0..text.len() as u32 + 3 {
                let found = part(1, start, length)?.expect("a text");
                let (from, to) = (start as usize, (start + length) as usize);
                let wanted: String = text
                    .char_indices()
                    .filter(|(at, c)| {
                        *at < to && at + c.len_utf8() > from && length > 0 || (*at < from && at + c.len_utf8() > from)
                    })
                    .map(|(_, c)| c)
                    .collect();
                assert_eq!(found, wanted, "{length} bytes from {start}");
            }
        }
        assert_eq!(part(1, u32::MAX, u32::MAX)?.as_deref(), Some(""));
        assert_eq!(part(3, 0, 1)?, None);
        assert_eq!(part(2, 0, 1)?.as_deref(), Some("a"));
        assert!(matches!(part(2, 0, 3), Err(ShardexError::InvalidArgument { argument: "start", .. })));
        Ok::<_, ShardexError>(())
    })
    .expect("no error");
}

#[test]
fn bad_operations_name_their_position_and_change_nothing() {
    let test = TestIndex::small();
    let mut engine = test.create();
    let good = || posting(1, 0, 1);
    engine.add(&[good()]).expect("accepted");
    let lsn = engine.last_lsn();
    let refused = |engine: &mut shardex::Engine<_>, fill: &dyn Fn(&mut WriteBatch)| {
        let mut all = batch(|b| {
            b.add(posting(9, 0, 9));
        });
        fill(&mut all);
        let error = engine.write(&all).expect_err("refused");
        assert_eq!((engine.last_lsn(), ids(engine)), (lsn, vec![1]));
        error
    };
    let nan = Posting { vector: vec![f32::NAN; DIMENSION], ..good() };
    let short = Posting { vector: vec![1.0], ..good() };
    let empty = Posting { length: 0, ..good() };
    let error = refused(&mut engine, &|b| {
        b.add(good()).add(nan.clone());
    });
    assert!(matches!(error, ShardexError::InvalidVector { index: 2, .. }), "{error}");
    let error = refused(&mut engine, &|b| {
        b.remove_document(1u128).add(short.clone());
    });
    assert!(matches!(error, ShardexError::InvalidDimension { index: 2, .. }), "{error}");
    let error = refused(&mut engine, &|b| {
        b.add(empty.clone());
    });
    assert!(matches!(error, ShardexError::InvalidPosting { index: 1, .. }), "{error}");
    let error = refused(&mut engine, &|b| {
        b.replace_document(5u128, vec![posting(6, 0, 1)]);
    });
    assert!(matches!(error, ShardexError::InvalidPosting { index: 1, .. }), "{error}");
    let error = refused(&mut engine, &|b| {
        b.set_payload(1u128, vec![0; MAX_PAYLOAD_BYTES + 1]);
    });
    assert!(matches!(error, ShardexError::InvalidOperation { index: 1, .. }), "{error}");
    assert!(error.to_string().contains("payload has 16777217 bytes"), "{error}");
    let error = refused(&mut engine, &|b| {
        b.set_cursor(vec![0; MAX_CURSOR_BYTES + 1]);
    });
    assert!(matches!(error, ShardexError::InvalidOperation { index: 1, .. }), "{error}");
    let largest = batch(|b| {
        b.set_payload(1u128, vec![7; MAX_PAYLOAD_BYTES]);
    });
    engine.write(&largest).expect("accepted");
    engine.flush().expect("flushed");
    check_clean(&engine);
}

/// Every flipped bit in payloads, tags and buckets is found: by the read, the open or the check.
#[test]
fn damage_to_payloads_and_tags_is_found() {
    let test = TestIndex::small();
    let mut engine = test.create();
    let all = batch(|b| {
        for n in 0..20u128 {
            b.add(posting(n, 0, n as u64).tagged(n as u64 + 1)).set_payload(n, vec![n as u8; 40 + 30 * n as usize]);
        }
        b.set_cursor(vec![9; 100]);
    });
    engine.write(&all).expect("accepted");
    engine.close().expect("closed");
    drop(engine);
    let data = fs::read(test.path().join("data")).expect("readable");
    let (mut by_open, mut by_check) = (0, 0);
    for at in (4_096..data.len()).step_by(97).filter(|&at| data[at] != 0) {
        let copy = test.copy();
        copy.patch("data", |bytes| bytes[at] ^= 0x10);
        match copy.try_open() {
            Err(ShardexError::Corruption { file, .. }) => {
                assert!(file.ends_with("data"));
                by_open += 1;
            }
            Err(error) => panic!("byte {at}: {error}"),
            Ok(engine) => {
                let clean = engine.check(CheckLevel::Full).expect("a report").is_clean();
                let payloads = engine.snapshot().payloads.iter().all(|content| content.read(engine.data()).is_ok());
                by_check += usize::from(!clean);
                assert!(!clean || payloads, "byte {at}: a read finds what the check does not");
            }
        }
    }
    assert!(by_open > 5 && by_check > 5, "{by_open} by the open, {by_check} by the check");
}

#[test]
fn a_record_of_a_later_version_is_no_torn_tail() {
    let test = TestIndex::small();
    let mut engine = test.create();
    engine.add(&documents(0..3)).expect("accepted");
    engine.commit().expect("durable");
    let lsn = engine.last_lsn().0;
    let at = engine.wal_bytes();
    drop(engine);
    let copy = test.copy();
    let root = Root::decode(&fs::read(copy.path().join("root")).expect("readable")[4_096..]).expect("a root");
    let frame = |lsn| {
        let mut bytes = Vec::new();
        let frame =
            Frame { kind: FrameKind::Unknown(77), first: true, last: true, lsn, durable: lsn - 1, len: 8, slack: 0 };
        frame.encode(frame::seed(root.index_id, root.epoch), [[1u8; 8].as_slice()], &mut bytes);
        bytes
    };
    let put = |copy: &TestIndex, lsn| {
        copy.patch("wal", |bytes| {
            let at = 4_096 + 512 + at as usize;
            let frame = frame(lsn);
            bytes[at..at + frame.len()].copy_from_slice(&frame);
        });
    };
    put(&copy, lsn + 1);
    let before = copy.bytes();
    let error = copy.try_open().err().expect("refused");
    assert!(
        matches!(&error, ShardexError::UnsupportedVersion { file, found: 4, supported: 3 } if file.ends_with("wal"))
    );
    assert_eq!(copy.bytes(), before, "a refused open changes nothing");
    // A frame of an earlier use of the segment is ignored, whatever its kind.
    let copy = test.copy();
    put(&copy, lsn.saturating_sub(1).max(1));
    assert_eq!(ids(&copy.open()).len(), 3);
}

/// An index of version 1 is upgraded by the first write, and not by an open, a search or a recovery.
#[test]
fn only_a_write_upgrades_an_index() {
    let version = |test: &TestIndex| {
        let root = fs::read(test.path().join("root")).expect("readable");
        [0, 4_096].map(|at| u32::from_le_bytes(root[at + 8..at + 12].try_into().expect("four bytes")))
    };
    for kind in ["closed", "crashed"] {
        let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus/format/v1").join(kind);
        let test = TestIndex::small();
        fs::create_dir(test.path()).expect("a directory");
        for name in ["data", "wal", "root"] {
            fs::copy(from.join(name), test.path().join(name)).expect("copied");
        }
        let mut engine = test.open();
        assert_eq!(ids(&engine).len(), 22);
        check_clean(&engine);
        engine.flush().expect("nothing to do");
        engine.close().expect("closed");
        drop(engine);
        assert_eq!(version(&test), [1, 1], "{kind}: no write yet");
        let mut engine = test.open();
        let tagged = batch(|b| {
            b.set_tags(PostingKey::new(5u128, 5, 6), 3).set_payload(1u128, "a note").set_cursor("here");
        });
        engine.write(&tagged).expect("accepted");
        assert_eq!(version(&test), [3, 3], "{kind}: upgraded before the record");
        engine.commit().expect("durable");
        drop(engine);
        let engine = test.open();
        check_clean(&engine);
        let found = crate::support::everything(&engine);
        assert_eq!(found.iter().map(|r| r.tags).sum::<u64>(), 3, "{kind}");
        assert_eq!((found.len(), engine.cursor().expect("whole")), (22, b"here".to_vec()));
    }
}

/// Searches by cells, by shards and exact ones return the tags of their snapshot.
#[test]
fn a_snapshot_keeps_its_tags_and_payloads() {
    let dir = TempDir::new().expect("a directory");
    block_on(async {
        let index = Shardex::create(config(&dir)).await?;
        index.add_postings((0..300).map(|n| posting(n, 0, n as u64).tagged(1)).collect()).await?;
        index
            .write(batch(|b| {
                b.set_payload(5u128, vec![1; 500]);
            }))
            .await?;
        index.optimize().await?;
        let before = index.snapshot().await?;
        let change = batch(|b| {
            (0..300u128).for_each(|n| {
                b.set_tags(key(n, 0), 2);
            });
            b.set_payload(5u128, vec![2; 600]);
        });
        index.write(change).await?;
        index.flush().await?;
        let after = index.snapshot().await?;
        for options in [SearchOptions::new(20), SearchOptions::new(20).exact(), SearchOptions::new(20).slop(2)] {
            let query = vector(77, DIMENSION);
            for (snapshot, tags) in [(&before, 1), (&after, 2)] {
                let results = snapshot.search_with(&query, &options)?.results;
                assert!(results.len() > 5 && results.iter().all(|result| result.tags == tags), "{tags}");
            }
        }
        assert_eq!(before.payload(DocumentId(5))?.expect("it is there").to_vec(), vec![1; 500]);
        assert_eq!(after.payload(DocumentId(5))?.expect("it is there").to_vec(), vec![2; 600]);
        assert_eq!(after.documents_with_payload(None, 10), [DocumentId(5)]);
        Ok::<_, ShardexError>(())
    })
    .expect("no error");
}

/// A damaged cursor is an error of the calls that return it. The index opens, and takes a new cursor.
#[test]
fn a_damaged_cursor_can_be_set_again() {
    let test = TestIndex::small();
    let mut engine = test.create();
    let cursor = vec![0xC5; 100];
    engine
        .write(&batch(|b| {
            b.add(posting(1, 0, 1)).set_cursor(cursor.clone());
        }))
        .expect("accepted");
    engine.close().expect("closed");
    drop(engine);
    test.patch("data", |bytes| {
        let at = bytes.windows(100).position(|part| part == cursor).expect("it is stored");
        bytes[at + 50] ^= 1;
    });
    let mut engine = test.open();
    let damaged = |result: Result<(), ShardexError>| matches!(result, Err(ShardexError::Corruption { .. }));
    assert!(damaged(engine.cursor().map(drop)) && damaged(engine.durable_cursor().map(drop)));
    assert!(!engine.check(CheckLevel::Full).expect("a report").is_clean());
    let compared = batch(|b| {
        b.set_cursor_if("next", cursor.clone());
    });
    assert!(damaged(engine.write(&compared).map(drop)));
    engine.add(&documents(5..8)).expect("other writes go on");
    engine
        .write(&batch(|b| {
            b.set_cursor("next");
        }))
        .expect("accepted");
    assert_eq!(engine.cursor().expect("whole"), b"next");
    assert!(damaged(engine.durable_cursor().map(drop)), "the new one is not durable yet");
    engine.commit().expect("durable");
    assert_eq!(*engine.durable_cursor().expect("durable"), *b"next");
    engine.flush().expect("flushed");
    engine.flush().expect("flushed");
    engine.add(&documents(9..10)).expect("accepted");
    engine.flush().expect("flushed");
    check_clean(&engine);
}
