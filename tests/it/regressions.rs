//! Bugs that a reading of the code found, each with a test that failed before the fix.

use shardex::{
    CheckLevel, DocumentId, Lsn, Metric, Posting, Shardex, ShardexConfig,
    format::{frame::FrameKind, geometry::IndexParams},
    lease::{IndexLock, PlainFile},
    storage::{Purpose, Storage as _, StorageFile as _},
    wal::{WalLayout, WalLimits, WalWriter, has_segments},
};
use shardex_sim::SimStorage;
use tempfile::TempDir;

use crate::support::block_on;

fn posting(id: u128, vector: Vec<f32>) -> Posting {
    Posting { document_id: DocumentId(id), start: 0, length: 1, vector, tags: 0 }
}

/// A shard's running sum keeps the rounding errors of vectors that were removed. The full check compared them with the magnitudes of
/// the live vectors only, and reported a contradiction in an intact index once a very long vector had been removed.
#[test]
fn a_removed_long_vector_is_no_contradiction() {
    let dir = TempDir::new().expect("a temporary directory");
    block_on(async {
        let config = ShardexConfig::new(dir.path().join("index")).vector_size(3).metric(Metric::L2);
        let index = Shardex::create(config).await.expect("created");
        index.add_postings((0..9).map(|i| posting(i, vec![0.1 + i as f32, 0.7, -0.3])).collect()).await.expect("added");
        index.add_postings(vec![posting(9, vec![1e18, -3e17, 7e17])]).await.expect("added");
        index.add_postings((10..20).map(|i| posting(i, vec![0.3, 0.1, 0.2])).collect()).await.expect("added");
        assert_eq!(index.remove_documents(vec![DocumentId(9)]).await.expect("removed"), 1);
        let report = index.check(CheckLevel::Full).await.expect("checked");
        assert!(report.is_clean(), "{report}");
        index.close().await.expect("closed");
    });
}

/// Recovery takes two roots for consecutive ones only if the WAL of the older root is still there. It looked for that WAL's first
/// segment alone. Slots are reused in slot order, so after the first reuse a segment may be there while a later one is gone.
#[test]
fn a_wal_whose_first_segment_is_there_may_lack_the_next_one() {
    const WHY: Purpose = Purpose("test");
    let storage = SimStorage::new(512, 64, 1);
    storage.make_dir(WHY).expect("made");
    let file = PlainFile::create(&storage, "wal", WHY, &IndexLock::none()).expect("created");
    file.raw().allocate(0, 256, WHY).expect("allocated");
    let config = ShardexConfig::new("unused").vector_size(3).wal_segment_size(2048);
    let layout = WalLayout::new(&IndexParams::of(&config, 512, 64));
    let limits = WalLimits { max_bytes: 1 << 20, target_bytes: 0 };
    let mut wal = WalWriter::start_epoch(&file, layout, 7, 1, Lsn(0), 0, limits).expect("started");
    let append_until = |wal: &mut WalWriter<_>, seq: u64| {
        while wal.position().seq < seq {
            wal.reserve(300).expect("room");
            wal.append(FrameKind::Add, &[&[0; 300]]);
            wal.write_out().expect("stored");
        }
    };
    append_until(&mut wal, 4);
    wal.recycle(wal.position());
    append_until(&mut wal, 6);
    let older = wal.position();
    wal.recycle(older);
    append_until(&mut wal, 8);
    let slots: Vec<u64> = wal.used_slots().map(|(_, seq)| seq).collect();
    assert_eq!(slots, [7, 6, 8], "segments 1 to 3, and 5, were overwritten; 4 lies in the free slot");
    let has = |range| has_segments(file.raw(), layout, 7, 1, range).expect("readable");
    assert!(has(4..5) && has(6..9));
    assert!(!has(4..7), "segment 5 is gone");
}
