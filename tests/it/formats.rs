//! Golden bytes of the format, which must not change without its version. Files of another version, of another index
//! and of no index are distinguished.

use std::fmt::Write as _;

use shardex::{
    DocumentId, Generation, Lsn, Metric, PostingKey, ShardId, ShardexConfig, ShardexError, VectorEncoding,
    format::{
        batch::{BatchRecord, PayloadChange, RecordRow, TagChange},
        block::{self, BlockKind, BlockNumbers, BlockOrigin},
        bucket::{
            PayloadBytes, PayloadEntry, PayloadOwner, PayloadRun, decode_entries, decode_part, encode_entries,
            encode_part,
        },
        frame::{self, Frame, FrameKind},
        geometry::{BLOCK_HEADER_BYTES, IndexParams},
        header::{self, DATA_MAGIC, SegmentHeader, WAL_MAGIC},
        node::{self, BlockPointer},
        record,
        root::{PayloadRoot, ROOT_BYTES, Root, WalPosition},
        state::{CentroidState, ExtentState, FormerState, ShardState},
    },
    shard::{StoredPosting, bloom::Bloom},
};
use shardex_sim::{fsck::encodings::rounded, model::encoding_of};

use crate::support::{TestIndex, check_clean, documents, everything, posting};

/// Formats bytes in hexadecimal, sixteen per line, each line with its offset.
fn hex(bytes: &[u8]) -> String {
    let mut out = String::new();
    for (i, line) in bytes.chunks(16).enumerate() {
        let _ = write!(out, "{:04x} ", i * 16);
        line.iter().for_each(|byte| {
            let _ = write!(out, " {byte:02x}");
        });
        out.push('\n');
    }
    out
}

fn geometry() -> IndexParams {
    let config = ShardexConfig::new("x").vector_size(3).metric(Metric::L2).shard_size(8).wal_segment_size(4096);
    IndexParams::of(&config, 512, 64)
}

fn root() -> Root {
    Root {
        version: 3,
        index_id: 0x0F0E_0D0C_0B0A_0908_0706_0504_0302_0100,
        generation: Generation(7),
        geometry: geometry(),
        checkpoint: Lsn(1234),
        epoch: 3,
        wal_start: WalPosition { seq: 5, offset: 704 },
        directory: BlockPointer { page: 17, len: 512, crc: 0xDEAD_BEEF },
        shard_numbers: 9,
        shards: 8,
        live: 55,
        removed: 4,
        draws: 21,
        splits: 6,
        data_pages: 97,
        wal_segments: 11,
        cells: BlockPointer { page: 33, len: 24, crc: 0xCE11_CE11 },
        merges: 12,
        payload: PayloadRoot {
            directory: BlockPointer { page: 41, len: 512, crc: 0xB0C4_E750 },
            buckets: 3,
            entries: 4,
            payloads: 5,
            bytes: 4321,
        },
    }
}

fn state() -> ShardState {
    let mut bloom = Bloom::new(16);
    bloom.insert(DocumentId(42));
    ShardState {
        number: 2,
        id: ShardId::from_parts(0x0123_4567_89AB, 99),
        len: 3,
        live: 2,
        extents: vec![ExtentState { page: 4, crc: 0x1111_1111 }],
        tombstones: vec![0b010],
        bloom: bloom.words().to_vec(),
        means: CentroidState::Separate { sum: vec![1.5, -2.0, 0.0], centroid: vec![0.5, -1.0, 0.25] },
        tags: vec![BlockPointer { page: 51, len: 512, crc: 0x7A65_7A65 }],
        former: None,
    }
}

#[test]
fn a_root_is_these_bytes() {
    let bytes = root().encode();
    assert_eq!((bytes.len(), Root::decode(&bytes)), (ROOT_BYTES, Ok(root())));
    insta::assert_snapshot!(hex(&bytes));
}

#[test]
fn a_root_of_version_1_is_these_bytes() {
    let root = Root { version: 1, payload: PayloadRoot::default(), ..root() };
    let bytes = root.encode();
    assert_eq!((bytes.len(), Root::decode(&bytes)), (192, Ok(root)));
    insta::assert_snapshot!(hex(&bytes));
}

#[test]
fn a_root_of_version_2_is_these_bytes() {
    let root = Root { version: 2, ..root() };
    let bytes = root.encode();
    assert_eq!((bytes.len(), Root::decode(&bytes)), (256, Ok(root)));
    insta::assert_snapshot!(hex(&bytes));
}

#[test]
fn headers_are_these_bytes() {
    let data = header::encode_file(&DATA_MAGIC, 0xABCD);
    let wal = header::encode_file(&WAL_MAGIC, 0xABCD);
    let segment = SegmentHeader { index_id: 0xABCD, epoch: 2, seq: 3, first_lsn: 4 };
    assert_eq!(header::decode_file(&data, &DATA_MAGIC), Ok(0xABCD));
    assert!(header::decode_file(&data, &WAL_MAGIC).is_err());
    assert_eq!(SegmentHeader::decode(&segment.encode()), Ok(segment));
    insta::assert_snapshot!(format!("{}\n{}\n{}", hex(&data), hex(&wal), hex(&segment.encode())));
}

#[test]
fn a_state_and_a_node_are_these_bytes() {
    let bytes = state().encode(&geometry(), 2);
    assert_eq!(ShardState::decode(&bytes, &geometry(), 2), Ok(state()));
    assert!(ShardState::decode(&bytes, &geometry(), 3).is_err(), "another shard's state");
    let untagged = ShardState { tags: vec![BlockPointer::default()], ..state() };
    let of_version_1 = untagged.encode(&geometry(), 1);
    assert_eq!(ShardState::decode(&of_version_1, &geometry(), 2), Ok(untagged));
    let entries = [BlockPointer::default(), BlockPointer { page: 3, len: 200, crc: 0x0BAD_CAFE }];
    let node = node::encode(&entries, 64, 2);
    assert_eq!(node::decode(&node, 2).expect("a node")[..2], entries);
    insta::assert_snapshot!(format!("{}\n{}\n{}", hex(&bytes), hex(&of_version_1), hex(&node)));
}

#[test]
fn blocks_of_version_3_are_these_bytes() {
    let origin = BlockOrigin { index_id: 0xABCD, generation: Generation(7), page: 33 };
    let name = |kind, number, part| BlockNumbers { kind, number, part };
    let entries = [BlockPointer::default(), BlockPointer { page: 3, len: 200, crc: 0x0BAD_CAFE }];
    let of_one =
        ShardState { means: CentroidState::One([1.5f32, -2.0, 0.0].map(f32::to_le_bytes).concat()), ..state() };
    let former = Some(FormerState { id: ShardId(0xF0), slots: 7, kept: vec![0b101_0010] });
    let rewritten = ShardState { former, ..state() };
    let blocks = [
        (state().encode(&geometry(), 3), name(BlockKind::State, 2, 0)),
        (rewritten.encode(&geometry(), 3), name(BlockKind::State, 2, 0)),
        (of_one.encode(&geometry(), 3), name(BlockKind::State, 2, 0)),
        (node::encode(&entries, 128, 3), name(BlockKind::ShardNode, 5, 1)),
        (node::encode(&entries, 128, 3), name(BlockKind::BucketNode, 0, 0)),
        (encode_part(4, 1, &[9; 20], entries[1], 3), name(BlockKind::Bucket, 4, 1)),
    ];
    let mut shown = String::new();
    for (mut bytes, name) in blocks {
        let crc = block::complete(&mut bytes, name, origin, &geometry());
        assert_eq!((crc, block::has_header(&bytes, name.kind)), (block::checksum(&bytes), true));
        let check = |bytes: &[u8], name, origin| block::check(bytes, crc, name, origin, &geometry());
        assert_eq!(check(&bytes, name, origin), Ok(()));
        let later = BlockOrigin { generation: Generation(8), ..origin };
        assert_eq!(check(&bytes, name, later), Ok(()), "a block of an earlier root");
        let wrong = [
            (BlockNumbers { number: 6, ..name }, origin),
            (BlockNumbers { part: 9, ..name }, origin),
            (name, BlockOrigin { index_id: 1, ..origin }),
            (name, BlockOrigin { page: 34, ..origin }),
            (name, BlockOrigin { generation: Generation(6), ..origin }),
        ];
        wrong
            .into_iter()
            .for_each(|(name, origin)| assert!(check(&bytes, name, origin).is_err(), "{name:?} {origin:?}"));
        for at in 0..BLOCK_HEADER_BYTES {
            let mut bytes = bytes.clone();
            bytes[at] ^= 1;
            // A lower generation is that of an earlier root, and the checksum of the pointer covers it.
            let found = (24..32).contains(&at) || check(&bytes, name, origin).is_err();
            assert!(found && (block::checksum(&bytes) != crc) != (4..8).contains(&at), "byte {at} of {name:?}");
        }
        shown += &format!("{name:?}\n{}\n", hex(&bytes));
    }
    let decoded = |state: &ShardState| ShardState::decode(&state.encode(&geometry(), 3), &geometry(), 2);
    assert!(decoded(&state()).is_err(), "a state without its header has no magic");
    insta::assert_snapshot!(shown);
}

#[test]
fn frames_and_records_are_these_bytes() {
    let postings = [posting(1, 2, vec![1.0, 2.0, 3.0]), posting(u128::MAX, 0, vec![-1.0, 0.5, 0.0])];
    let mut payload = record::encode_add_keys(&postings, 3);
    postings.iter().for_each(|p| payload.extend(p.vector.iter().flat_map(|x| x.to_le_bytes())));
    assert_eq!(record::add_len(2, 3), payload.len() as u64);
    assert_eq!(record::decode_add(&payload, 3).expect("an add"), postings);
    let removal = record::encode_remove(&[DocumentId(5)]);
    assert_eq!(record::decode_remove(&removal), Ok(vec![DocumentId(5)]));
    let frame = Frame {
        kind: FrameKind::Add,
        first: true,
        last: true,
        lsn: 77,
        durable: 70,
        len: payload.len() as u32,
        slack: 8,
    };
    let seed = frame::seed(0xABCD, 2);
    let mut bytes = Vec::new();
    frame.encode(seed, [payload.as_slice()], &mut bytes);
    assert_eq!(Frame::decode(&bytes, seed).map(|(f, p)| (f, p.to_vec())), Ok((frame, payload)));
    assert!(Frame::decode(&bytes, frame::seed(0xABCD, 3)).is_err(), "another epoch's frame");
    let mut stored = Vec::new();
    StoredPosting { document_id: DocumentId(9), start: 1, length: 2, norm: 1.5 }.encode(&mut stored);
    insta::assert_snapshot!(format!("{}\n{}\n{}", hex(&bytes), hex(&removal), hex(&stored)));
}

#[test]
fn a_batch_is_these_bytes() {
    let postings = [posting(1, 2, vec![1.0, 2.0, 3.0]), posting(u128::MAX, 0, vec![-1.0, 0.5, 0.0])];
    let key = PostingKey::new(6u128, 7, 8);
    let record = |tags: [u64; 2]| BatchRecord {
        unix_ms: 0x0123_4567_89AB,
        documents: vec![DocumentId(3), DocumentId(4)],
        keys: vec![PostingKey::new(5u128, 1, 2)],
        postings: postings.iter().zip(tags).map(|(given, tags)| RecordRow { given, tags }).collect(),
        tags: vec![TagChange { key, tags: 0xF0 }],
        payloads: vec![
            PayloadChange { document: DocumentId(3), payload: None },
            PayloadChange { document: DocumentId(9), payload: Some(b"a text".as_slice()) },
        ],
        cursor: Some(b"offset 12".as_slice()),
    };
    let bytes = |tags| {
        let record = record(tags);
        let mut bytes = record.encode_head(3);
        record.bulk().for_each(|part| bytes.extend_from_slice(part));
        bytes
    };
    let (tagged, untagged) = (bytes([0, 1 << 63]), bytes([0, 0]));
    let decoded = BatchRecord::decode(&tagged, 3).expect("a batch");
    assert_eq!(decoded.postings, [postings[0].clone(), postings[1].clone().tagged(1 << 63)]);
    let expected = record([0, 0]);
    assert_eq!((decoded.documents, decoded.keys), (expected.documents, expected.keys));
    assert_eq!(decoded.tags, expected.tags);
    assert_eq!(decoded.payloads[1].payload.as_deref(), Some(b"a text".as_slice()));
    assert_eq!(
        (decoded.payloads[0].payload.as_ref(), decoded.cursor.as_deref()),
        (None, Some(b"offset 12".as_slice()))
    );
    assert_eq!(BatchRecord::decode(&untagged, 3).expect("a batch").postings, postings);
    for len in 0..tagged.len() {
        assert!(BatchRecord::decode(&tagged[..len], 3).is_err(), "{len} bytes");
    }
    assert!(BatchRecord::decode(&[tagged.as_slice(), &[0]].concat(), 3).is_err(), "a byte too many");
    assert!(BatchRecord::decode(&tagged, 4).is_err(), "another dimension");
    insta::assert_snapshot!(format!("{}\n{}", hex(&tagged), hex(&untagged)));
}

#[test]
fn a_bucket_is_these_bytes() {
    let run = |offset, len| PayloadRun { page: 33, pages: 2, offset, len };
    let entry = |owner, content| PayloadEntry { owner, len: 3, crc: 0x5EED_5EED, content };
    let document = |n| PayloadOwner::Document(DocumentId(n));
    let entries = [
        entry(PayloadOwner::Cursor, PayloadBytes::Inline(vec![1, 2, 3])),
        entry(document(7), PayloadBytes::Runs(vec![run(1022, 1), run(0, 2)])),
        entry(document(u128::MAX), PayloadBytes::Inline(vec![4, 5, 6])),
    ];
    let bytes = encode_entries(&entries);
    assert_eq!(bytes.len(), entries.iter().map(PayloadEntry::bytes).sum::<usize>());
    assert_eq!(decode_entries(&bytes, &geometry()), Ok(entries.to_vec()));
    (1..bytes.len()).filter(|len| ![31, 99].contains(len)).for_each(|len| {
        assert!(decode_entries(&bytes[..len], &geometry()).is_err(), "{len} bytes");
    });
    let next = BlockPointer { page: 5, len: 99, crc: 0xABCD_EF01 };
    let part = encode_part(4, 1, &bytes, next, 2);
    assert_eq!(decode_part(&part, 4, 1), Ok((bytes.as_slice(), next)));
    assert!(decode_part(&part, 4, 0).is_err() && decode_part(&part, 5, 1).is_err(), "another part");
    let refused = |entries: &[PayloadEntry]| decode_entries(&encode_entries(entries), &geometry()).is_err();
    assert!(refused(&[entries[1].clone(), entries[0].clone()]), "not ascending");
    assert!(refused(&[entry(document(1), PayloadBytes::Runs(vec![run(1023, 2), run(0, 1)]))]), "a run past its block");
    assert!(refused(&[entry(document(1), PayloadBytes::Runs(vec![run(0, 2)]))]), "runs of another length");
    assert!(refused(&[PayloadEntry { len: 65, ..entry(document(1), PayloadBytes::Inline(vec![0; 65])) }]), "too long");
    insta::assert_snapshot!(hex(&part));
}

/// Every flipped bit in a structure with a checksum is detected. No truncation panics.
#[test]
fn every_flipped_bit_and_every_truncation_is_refused() {
    let seed = frame::seed(1, 1);
    let mut frame_bytes = Vec::new();
    Frame { kind: FrameKind::Remove, first: true, last: true, lsn: 1, durable: 0, len: 24, slack: 0 }.encode(
        seed,
        [[9u8; 24].as_slice()],
        &mut frame_bytes,
    );
    type Parses = Box<dyn Fn(&[u8]) -> bool>;
    let segment = SegmentHeader { index_id: 1, epoch: 1, seq: 1, first_lsn: 1 };
    let cases: [(Vec<u8>, Parses); 4] = [
        (root().encode(), Box::new(|bytes| Root::decode(bytes).is_ok())),
        (header::encode_file(&DATA_MAGIC, 5), Box::new(|bytes| header::decode_file(bytes, &DATA_MAGIC).is_ok())),
        (segment.encode(), Box::new(|bytes| SegmentHeader::decode(bytes).is_ok())),
        (frame_bytes, Box::new(move |bytes| Frame::decode(bytes, seed).is_ok())),
    ];
    for (bytes, parses) in cases {
        assert!(parses(&bytes));
        for bit in 0..bytes.len() * 8 {
            let mut flipped = bytes.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(!parses(&flipped), "bit {bit} of {}", bytes.len());
        }
        (0..bytes.len()).for_each(|len| assert!(!parses(&bytes[..len]), "{len} bytes"));
    }
    let rewritten = Some(FormerState { id: ShardId(0xF0), slots: 7, kept: vec![0b101_0010] });
    for (version, former) in [(1, None), (2, None), (3, None), (3, rewritten)] {
        let state = ShardState { tags: vec![BlockPointer::default()], former, ..state() };
        let mut state = state.encode(&geometry(), version);
        if version == 3 {
            state[..4].copy_from_slice(&BlockKind::State.magic());
        }
        assert!(ShardState::decode(&state, &geometry(), 2).is_ok());
        (0..state.len()).for_each(|len| assert!(ShardState::decode(&state[..len], &geometry(), 2).is_err()));
    }
}

/// Every build opens the indexes written by the first build of version 1, one of them closed and the other crashed.
#[test]
fn indexes_of_version_1_open_with_all_they_hold() {
    for (kind, replayed) in [("closed", 0), ("crashed", 2)] {
        let from = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus/format/v1").join(kind);
        let test = TestIndex::small();
        std::fs::create_dir(test.path()).expect("a directory");
        for name in ["data", "wal", "root"] {
            std::fs::copy(from.join(name), test.path().join(name)).expect("copied");
        }
        let mut engine = test.open();
        let stats = engine.stats().expect("stats");
        assert_eq!((stats.total_postings, stats.recovery.records_replayed), (22, replayed), "{kind}");
        check_clean(&engine);
        let mut found: Vec<_> =
            everything(&engine).into_iter().map(|r| (r.document_id.0 as u32, r.start, r.length, r.vector)).collect();
        found.sort_by_key(|posting| posting.0);
        let expected: Vec<_> = (0..24u32)
            .filter(|n| ![3, 4].contains(n))
            .map(|n| (n, n, 1 + n, vec![n as f32, (n * n % 17) as f32, 0.5]))
            .collect();
        assert_eq!(found, expected, "{kind}");
        engine.add(&[posting(100, 0, vec![1.0, 2.0, 3.0])]).expect("it takes more");
        engine.flush().expect("flushed");
        check_clean(&engine);
    }
}

/// Returns a vector of which no component is an f16.
fn inexact(n: u32) -> [f32; 3] {
    [n as f32 + 1.0 / 3.0, (n * n % 17) as f32 + 1.0 / 7.0, 0.3]
}

/// Every build opens the indexes written by the first builds of versions 2 and 3, with their tags, payloads and cursor, and
/// those of the first build that rounds vectors.
#[test]
fn indexes_of_versions_2_and_3_open_with_all_they_hold() {
    let kinds = ["closed", "crashed", "closed-f16", "crashed-f16", "closed-int8", "crashed-int8"];
    for (version, kind) in ["v2", "v3"].into_iter().flat_map(|version| kinds.map(|kind| (version, kind))) {
        let replayed = if kind.starts_with("crashed") { 2 } else { 0 };
        let encoding = kind.split('-').nth(1).map_or(VectorEncoding::F32, |name| name.parse().expect("an encoding"));
        let from = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus/format").join(version).join(kind);
        let test = TestIndex::small();
        std::fs::create_dir(test.path()).expect("a directory");
        for name in ["data", "wal", "root"] {
            std::fs::copy(from.join(name), test.path().join(name)).expect("copied");
        }
        let mut engine = test.open();
        let stats = engine.stats().expect("stats");
        assert_eq!((stats.recovery.records_replayed, stats.encoding), (replayed, encoding), "{kind}");
        check_clean(&engine);
        let mut found: Vec<_> = everything(&engine)
            .into_iter()
            .map(|r| (r.document_id.0 as u32, r.start, r.length, r.vector, r.tags))
            .collect();
        found.sort_by_key(|posting| posting.0);
        let tags = |n: u32| match n {
            7 => 0,
            9 => u64::MAX,
            n => u64::from(n % 4) << 62 | u64::from(n),
        };
        let vector = |n: u32| match encoding {
            VectorEncoding::F32 => vec![n as f32, (n * n % 17) as f32, 0.5],
            encoding => rounded(&inexact(n), encoding_of(encoding)),
        };
        let expected: Vec<_> =
            (0..24u32).filter(|n| ![3, 4].contains(n)).map(|n| (n, n, 1 + n, vector(n), tags(n))).collect();
        assert_eq!(found, expected, "{kind}");
        let payload = |n: u128| {
            let content = engine.snapshot().payloads.find(PayloadOwner::Document(DocumentId(n))).cloned();
            content.map(|content| content.read(engine.data()).expect("whole").to_vec())
        };
        let payloads: Vec<Option<Vec<u8>>> = (0..7).map(payload).collect();
        let text = b"another text".to_vec();
        let expected = [Some(vec![]), Some(vec![2; 10]), Some(text), None, Some(vec![5; 5_000]), None, None];
        assert_eq!(payloads, expected, "{kind}");
        assert_eq!(engine.cursor().expect("whole"), vec![0xC5; 100]);
        engine.add(&[posting(100, 0, vec![1.0, 2.0, 3.0])]).expect("it takes more");
        engine.flush().expect("flushed");
        check_clean(&engine);
    }
}

/// Gives a root another version, under a checksum that holds.
fn relabel_root(root: &mut [u8], version: u8) {
    root[8] = version;
    root[12..16].fill(0);
    let sum = crc32c::crc32c(root);
    root[12..16].copy_from_slice(&sum.to_le_bytes());
}

#[test]
fn another_version_a_foreign_file_and_a_swapped_one_are_told_apart() {
    let test = TestIndex::small();
    let mut engine = test.create();
    engine.add(&documents(0..50)).expect("accepted");
    engine.close().expect("closed");
    drop(engine);
    let after = |change: &dyn Fn(&TestIndex)| {
        let copy = test.copy();
        change(&copy);
        copy.try_open().err().expect("refused")
    };
    for name in ["root", "data", "wal"] {
        let error = after(&|copy| {
            copy.patch(name, |bytes| {
                bytes[8] = 4;
                if name == "root" {
                    bytes[4096 + 8] = 4;
                }
            });
        });
        assert!(
            matches!(&error, ShardexError::UnsupportedVersion { file, found: 4, .. } if file.ends_with(name)),
            "{name}: {error}"
        );
        let error = after(&|copy| copy.patch(name, |bytes| bytes.fill(0x20)));
        assert!(matches!(&error, ShardexError::NotAnIndex { file, .. } if file.ends_with(name)), "{name}: {error}");
        let error = after(&|copy| std::fs::remove_file(copy.path().join(name)).expect("removed"));
        assert!(matches!(&error, ShardexError::Corruption { file, .. } if file.ends_with(name)), "{name}: {error}");
    }
    // One slot holds an intact root of a later version, so the other may be stale. If its checksum is wrong, it is damage.
    for slot in [0, 4096] {
        let error = after(&|copy| copy.patch("root", |bytes| relabel_root(&mut bytes[slot..slot + ROOT_BYTES], 4)));
        assert!(matches!(&error, ShardexError::UnsupportedVersion { found: 4, .. }), "{slot}: {error}");
        let copy = test.copy();
        copy.patch("root", |bytes| bytes[slot + 8] = 4);
        assert_eq!(copy.open().stats().expect("read").total_postings, 50, "{slot}");
    }
    // The file belongs to another index with the same parameters.
    let mut other = TestIndex::small();
    other.index_id = 2;
    let mut engine = other.create();
    engine.add(&documents(0..50)).expect("accepted");
    engine.close().expect("closed");
    drop(engine);
    for name in ["data", "wal"] {
        let error = after(&|copy| {
            std::fs::copy(other.path().join(name), copy.path().join(name)).expect("copied");
        });
        assert!(matches!(&error, ShardexError::Corruption { file, .. } if file.ends_with(name)), "{name}: {error}");
    }
    // The file is truncated.
    let error = after(&|copy| copy.patch("data", |bytes| bytes.truncate(bytes.len() / 2)));
    assert!(matches!(&error, ShardexError::Corruption { .. }), "{error}");
}
