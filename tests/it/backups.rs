//! Tests of backups: what they restore, what they share, what they find, and that they end whole or not at all.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use shardex::{
    BackupOptions, CheckLevel, DocumentId, Engine, OpenOptions, Posting, ShardexConfig, ShardexError, WriteBatch,
    blocking::Shardex,
    env::{Env, Never},
    restore,
    storage::MmapStorage,
    verify_backup,
};
use shardex_sim::{backups, case::Case};
use tempfile::TempDir;

use crate::support::{DIMENSION, TestIndex, check_clean, documents, everything, posting, vector};

/// Crashes and faults at every operation of a backup, of one that shares files, and of a restore. `shardex-sim backups`
/// visits more states.
#[test]
fn a_crash_or_a_fault_leaves_a_whole_backup_or_none() {
    let report = backups::explore(24).expect("no rule is broken");
    assert!(report.points > 300 && report.states > 5_000 && report.whole > 500, "{report}");
    assert!(report.faults > 150 && report.survived * 4 < report.faults, "{report}");
}

/// Random histories keep backups under way while they write, and compare what these restore.
#[test]
fn random_histories_restore_what_their_backups_began_with() {
    let restored = (1..=400).filter(|&seed| {
        let verdict = Case::generated(seed).run();
        assert!(verdict.broken.is_none(), "seed {seed}: {:?}", verdict.broken);
        verdict.marks.contains_key("a backup was restored")
    });
    let restored = restored.count();
    assert!(restored >= 20, "{restored} of 400 histories");
}

/// Returns everything that an index holds, as text.
fn content(index: &Shardex) -> BTreeMap<String, String> {
    let found = index.search(&vector(99, DIMENSION), 10_000, None).expect("searched");
    let mut content: BTreeMap<String, String> = found
        .into_iter()
        .map(|r| (format!("{} {} {}", r.document_id, r.start, r.length), format!("{:?} {}", r.vector, r.tags)))
        .collect();
    for id in 0..2_000u32 {
        if let Some(payload) = index.payload(DocumentId::from(id)).expect("read") {
            content.insert(format!("payload {id}"), format!("{:?}", payload.to_vec()));
        }
    }
    content.insert("cursor".into(), format!("{:?}", index.cursor().expect("read")));
    content
}

fn write(index: &Shardex, numbers: std::ops::Range<u64>) {
    let mut batch = WriteBatch::new();
    for n in numbers.clone() {
        batch.add(Posting { tags: n, ..posting(n.into(), 0, vector(n, DIMENSION)) });
        if n % 3 == 0 {
            batch.set_payload(u128::from(n), format!("text {n} ").repeat(1 + n as usize % 900));
        }
    }
    batch.set_cursor(format!("{numbers:?}"));
    index.write(batch).expect("written");
}

/// Index of 600 postings with cells and payloads.
fn index_in(dir: &Path) -> Shardex {
    let config = ShardexConfig::new(dir.join("index")).vector_size(DIMENSION).shard_size(64);
    let index = Shardex::create(config).expect("created");
    write(&index, 0..600);
    index.remove_documents((40..90u32).map(DocumentId::from).collect()).expect("removed");
    index.optimize().expect("cells");
    index
}

fn opened(path: PathBuf) -> Shardex {
    let index = Shardex::open(path).expect("opened");
    assert!(index.check(CheckLevel::Full).expect("checked").is_clean());
    index
}

#[test]
fn what_is_restored_equals_what_was_backed_up_and_goes_on() {
    let dir = TempDir::new().expect("a temporary directory");
    let index = index_in(dir.path());
    let before = content(&index);
    let made = index.backup_to(dir.path().join("backup")).expect("backed up");
    assert!(made.stored_bytes == made.bytes && made.base_lsn.is_none() && !made.cells_left_out, "{made:?}");
    write(&index, 600..650);
    assert_ne!(content(&index), before);
    let verified = Shardex::verify_backup(dir.path().join("backup")).expect("whole");
    assert_eq!((verified.lsn, verified.bytes, verified.places), (made.lsn, made.bytes, made.places));
    Shardex::restore(dir.path().join("backup"), dir.path().join("restored")).expect("restored");
    let restored = opened(dir.path().join("restored"));
    assert_eq!(content(&restored), before);
    write(&restored, 700..760);
    let after = content(&restored);
    restored.close().expect("closed");
    assert_eq!(content(&opened(dir.path().join("restored"))), after);
    // Nothing is left of the lock, and the backup did not change.
    let mut names: Vec<_> =
        fs::read_dir(dir.path().join("backup")).expect("a directory").map(|e| e.expect("an entry")).collect();
    names.sort_by_key(|entry| entry.file_name());
    let names: Vec<String> = names.iter().map(|entry| entry.file_name().display().to_string()).collect();
    assert_eq!(names, ["manifest", "pack-00000001"]);
    assert!(
        names.iter().all(|name| {
            fs::metadata(dir.path().join("backup").join(name)).expect("a file").mode() & 0o777 == 0o600
        })
    );
}

#[test]
fn an_empty_index_can_be_backed_up() {
    let dir = TempDir::new().expect("a temporary directory");
    let index = Shardex::create(ShardexConfig::new(dir.path().join("index")).vector_size(3)).expect("created");
    let made = index.backup_to(dir.path().join("backup")).expect("backed up");
    assert_eq!((made.places, made.bytes), (0, 0));
    let again = BackupOptions::default().base(dir.path().join("backup"));
    index.backup_with(dir.path().join("second"), &again).expect("backed up");
    Shardex::restore(dir.path().join("second"), dir.path().join("restored")).expect("restored");
    assert_eq!(Shardex::open(dir.path().join("restored")).expect("opened").stats().expect("stats").total_postings, 0);
}

#[test]
fn a_later_backup_stores_what_is_new_and_is_whole_by_itself() {
    let dir = TempDir::new().expect("a temporary directory");
    let index = index_in(dir.path());
    let at = |name: &str| dir.path().join(name);
    let first = index.backup_to(at("1")).expect("backed up");
    // One slot more in an extent that the first backup holds: the place has grown and counts as new.
    write(&index, 600..601);
    let against = |name: &str| BackupOptions::default().base(at(name));
    let second = index.backup_with(at("2"), &against("1")).expect("backed up");
    assert_eq!((second.base_lsn, second.copied_bytes), (Some(first.lsn), 0));
    assert!(0 < second.stored_bytes && second.stored_bytes < first.bytes / 4, "{second:?} after {first:?}");
    assert_eq!(fs::metadata(at("2").join("pack-00000001")).expect("a file").nlink(), 2);
    // Nothing new.
    let third = index.backup_with(at("3"), &against("2")).expect("backed up");
    assert_eq!(third.stored_bytes, 0);
    assert!(!at("3").join("pack-00000003").exists());
    let expected = content(&index);
    fs::remove_dir_all(at("1")).expect("removed");
    fs::remove_dir_all(at("2")).expect("removed");
    Shardex::verify_backup(at("3")).expect("whole");
    Shardex::restore(at("3"), at("restored")).expect("restored");
    assert_eq!(content(&opened(at("restored"))), expected);
}

/// After many backups the last one takes at most twice what it holds.
#[test]
fn a_chain_of_backups_does_not_grow_without_end() {
    let dir = TempDir::new().expect("a temporary directory");
    let index = index_in(dir.path());
    let at = |n: u64| dir.path().join(n.to_string());
    index.backup_to(at(0)).expect("backed up");
    for turn in 1..9 {
        let documents: Vec<DocumentId> =
            (0..600u32).filter(|n| u64::from(n % 8) == turn % 8).map(DocumentId::from).collect();
        index.remove_documents(documents).expect("removed");
        write(&index, turn * 1_000..turn * 1_000 + 80);
        index.compact().expect("compacted");
        let made = index.backup_with(at(turn), &BackupOptions::default().base(at(turn - 1))).expect("backed up");
        fs::remove_dir_all(at(turn - 1)).expect("removed");
        let verified = Shardex::verify_backup(at(turn)).expect("whole");
        assert!(verified.file_bytes <= 2 * made.bytes, "turn {turn}: {verified:?}");
    }
    let expected = content(&index);
    Shardex::restore(at(8), dir.path().join("restored")).expect("restored");
    assert_eq!(content(&opened(dir.path().join("restored"))), expected);
}

/// Returns the component that gives `bytes`, with it at `at`, this checksum. CRC32C is affine in it, so it is unique.
fn forged(bytes: &mut [u8], at: usize, wanted: u32) -> f32 {
    let crc = |bytes: &mut [u8], word: u32| {
        bytes[at..at + 4].copy_from_slice(&word.to_le_bytes());
        shardex::format::crc32c(0, bytes)
    };
    let zero = crc(bytes, 0);
    // Gaussian elimination over the columns of the linear part, each with the bits of the word that give it.
    let mut rows: Vec<(u32, u32)> = (0..32).map(|bit| (crc(bytes, 1 << bit) ^ zero, 1 << bit)).collect();
    let (mut left, mut word) = (wanted ^ zero, 0);
    for bit in 0..32 {
        let pivot = rows.iter().position(|row| row.0 >> bit & 1 == 1).expect("the matrix has full rank");
        let pivot = rows.swap_remove(pivot);
        rows.iter_mut().filter(|row| row.0 >> bit & 1 == 1).for_each(|row| *row = (row.0 ^ pivot.0, row.1 ^ pivot.1));
        if left >> bit & 1 == 1 {
            (left, word) = (left ^ pivot.0, word ^ pivot.1);
        }
    }
    assert_eq!(crc(bytes, word), wanted);
    f32::from_bits(word)
}

/// Page, length and checksum of two contents may be equal. The hash is not.
#[test]
fn a_page_that_is_used_again_by_bytes_of_an_equal_checksum_is_stored() {
    let dir = TempDir::new().expect("a temporary directory");
    let index = TestIndex::with(|config| config.shard_size(2));
    let mut engine = index.create();
    engine.add(&[posting(1, 0, vector(1, DIMENSION))]).expect("added");
    engine.flush().expect("flushed");
    let extent = |engine: &Engine<MmapStorage>| {
        let snapshot = engine.snapshot();
        let (_, shard) = snapshot.iter().next().expect("a shard");
        (shard.extents()[0].allocation().run().page, shard.extents()[0].state().crc, shard.extents()[0].lent().to_vec())
    };
    let back_up = |engine: &mut Engine<MmapStorage>, name: &str, base: Option<&str>| {
        let storage = |name: &str| MmapStorage::new(dir.path().join(name));
        let base = base.map(storage);
        engine.backup_begin().and_then(|job| job.run_until(&storage(name), base.as_ref(), &Never)).expect("backed up")
    };
    let (page, crc, bytes) = extent(&engine);
    back_up(&mut engine, "1", None);
    // Another vector of the same document, so that the rest of the slot is equal.
    let (other, component) = (2..60)
        .find_map(|n| {
            let (mut other, mut bytes) = (vector(n, DIMENSION), bytes.clone());
            bytes[..4 * DIMENSION].copy_from_slice(&other.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<_>>());
            other[5] = forged(&mut bytes, 20, crc);
            (other[5].is_finite() && other[5].abs() < 1e6).then_some((other, n))
        })
        .expect("a finite component");
    assert!(component < 60);
    let mut at = page + 1;
    for _ in 0..20 {
        engine.remove(&[DocumentId(1)]).expect("removed");
        engine.flush().expect("flushed");
        engine.add(&[posting(1, 0, other.clone())]).expect("added");
        engine.flush().expect("flushed");
        at = extent(&engine).0;
        if at == page {
            break;
        }
    }
    assert_eq!((at, extent(&engine).1), (page, crc), "the page is used again, with an equal checksum");
    back_up(&mut engine, "2", Some("1"));
    let to = MmapStorage::new(dir.path().join("restored"));
    restore(&MmapStorage::new(dir.path().join("2")), to.clone(), &Env::system(), &Never).expect("restored");
    let restored = Engine::open(to, OpenOptions::default(), &Env::system()).expect("opened");
    assert_eq!(everything(&restored)[0].vector, other);
}

/// What the backup reads is pinned: no flush, compaction, trim or turnover changes it. A purge is refused.
#[test]
fn a_backup_holds_the_state_at_its_beginning() {
    let dir = TempDir::new().expect("a temporary directory");
    let index = TestIndex::small();
    let mut engine = index.create();
    engine.add(&documents(0..300)).expect("added");
    engine.optimize().expect("cells");
    engine.flush().expect("flushed");
    let before = everything(&engine);
    let job = engine.backup_begin().expect("begun");
    for turn in 1..6u64 {
        engine
            .remove(&(0..300u128).map(|n| DocumentId(n + 1_000 * u128::from(turn - 1))).collect::<Vec<_>>())
            .expect("removed");
        engine.add(&documents(1_000 * turn..1_000 * turn + 300)).expect("added");
        engine.flush().expect("flushed");
        engine.compact_step(64, 1 << 20).expect("compacted");
        engine.optimize().expect("cells");
        engine.trim_all().expect("trimmed");
    }
    check_clean(&engine);
    assert!(matches!(engine.purge_end(), Err(ShardexError::HeldByReaders { bytes: 1.., .. })));
    let used = engine.used_allocations().count();
    job.run_until(&MmapStorage::new(dir.path().join("backup")), None, &Never).expect("backed up");
    let to = MmapStorage::new(dir.path().join("restored"));
    restore(&MmapStorage::new(dir.path().join("backup")), to.clone(), &Env::system(), &Never).expect("restored");
    let restored = Engine::open(to, OpenOptions::default(), &Env::system()).expect("opened");
    check_clean(&restored);
    assert_eq!(everything(&restored), before);
    // The pin is gone, and so is what it held.
    engine.trim_all().expect("trimmed");
    assert!(engine.used_allocations().count() < used);
    engine.purge_end().expect("nothing is held");
}

/// Changes each byte of the manifest, and bytes all over the pack.
#[test]
fn every_changed_byte_of_a_backup_is_found() {
    let dir = TempDir::new().expect("a temporary directory");
    let index = index_in(dir.path());
    let backup = dir.path().join("backup");
    index.backup_to(&backup).expect("backed up");
    let storage = MmapStorage::new(&backup);
    for (name, every) in [("manifest", 1), ("pack-00000001", 1_777)] {
        let whole = fs::read(backup.join(name)).expect("read");
        for at in (0..whole.len()).step_by(every) {
            let mut bytes = whole.clone();
            bytes[at] ^= 1 << (at % 8);
            fs::write(backup.join(name), bytes).expect("changed");
            let found = verify_backup(&storage, &Never).expect_err("it is found");
            let is_typed = match &found {
                ShardexError::Corruption { file, offset, .. } => file.ends_with(name) && *offset <= at as u64,
                ShardexError::UnsupportedVersion { .. } => (8..12).contains(&at),
                ShardexError::NotABackup { .. } => at < 8,
                _ => false,
            };
            assert!(is_typed, "byte {at} of {name}: {found}");
        }
        fs::write(backup.join(name), &whole[..whole.len() - 1]).expect("cut");
        assert!(matches!(verify_backup(&storage, &Never), Err(ShardexError::Corruption { .. })), "{name} is cut");
        fs::remove_file(backup.join(name)).expect("removed");
        let missing = verify_backup(&storage, &Never).expect_err("it is missed");
        assert_eq!(matches!(missing, ShardexError::NotABackup { .. }), name == "manifest", "{missing}");
        fs::write(backup.join(name), &whole).expect("as before");
        verify_backup(&storage, &Never).expect("whole again");
    }
    // Damage is not taken over by a later backup, and a restore stores nothing.
    let pack = backup.join("pack-00000001");
    let mut bytes = fs::read(&pack).expect("read");
    bytes.iter_mut().step_by(9_000).for_each(|byte| *byte ^= 4);
    fs::write(&pack, bytes).expect("changed");
    let failed = Shardex::restore(&backup, dir.path().join("restored")).expect_err("refused");
    assert!(matches!(failed, ShardexError::Corruption { .. }), "{failed}");
    assert!(!dir.path().join("restored").exists());
    let made =
        index.backup_with(dir.path().join("second"), &BackupOptions::default().base(&backup)).expect("backed up");
    assert!(made.stored_bytes > 0, "{made:?}");
    Shardex::verify_backup(dir.path().join("second")).expect("whole");
}

/// Damage in the index is found by the backup. Damaged cells are derived, so they are left out.
#[test]
fn a_damaged_index_is_not_backed_up_but_without_its_cells() {
    let index = TestIndex::small();
    let mut engine = index.create();
    engine.add(&documents(0..200)).expect("added");
    engine.optimize().expect("cells");
    engine.flush().expect("flushed");
    let snapshot = engine.snapshot();
    let (_, shard) = snapshot.iter().next().expect("a shard");
    let extent = shard.extents()[0].allocation().run().page as usize * 4_096;
    let extents: Vec<u64> =
        snapshot.iter().flat_map(|(_, shard)| shard.extents().to_vec()).map(|e| e.allocation().run().page).collect();
    let cells =
        engine.working_allocations().find(|run| !extents.contains(&run.page)).expect("cells").page as usize * 4_096;
    let expected = everything(&engine);
    engine.close().expect("closed");
    drop((snapshot, engine));
    for (at, is_derived) in [(cells + 70, true), (extent + 70, false)] {
        let copy = index.copy();
        copy.patch("data", |bytes| bytes[at] ^= 16);
        let mut engine = copy.open();
        let to = MmapStorage::new(copy.parent().join("backup"));
        let made = engine.backup_begin().expect("begun").run_until(&to, None, &Never);
        if !is_derived {
            let failed = made.expect_err("damage");
            assert!(matches!(failed, ShardexError::Corruption { offset, .. } if offset == extent as u64), "{failed}");
            assert!(matches!(verify_backup(&to, &Never), Err(ShardexError::NotABackup { .. })));
            continue;
        }
        assert!(made.expect("backed up").cells_left_out);
        let restored = MmapStorage::new(copy.parent().join("restored"));
        restore(&to, restored.clone(), &Env::system(), &Never).expect("restored");
        let restored = Engine::open(restored, OpenOptions::default(), &Env::system()).expect("opened");
        assert_eq!(everything(&restored), expected);
    }
}

#[test]
fn mistakes_are_refused_and_change_nothing() {
    let dir = TempDir::new().expect("a temporary directory");
    let index = index_in(dir.path());
    let at = |name: &str| dir.path().join(name);
    index.backup_to(at("backup")).expect("backed up");
    let files = |name: &str| fs::read_dir(at(name)).map(|entries| entries.count()).unwrap_or(0);
    // The directory of a backup, of an open index, with a stranger's file, below nothing.
    assert!(matches!(index.backup_to(at("backup")), Err(ShardexError::AlreadyExists { .. })));
    assert!(matches!(index.backup_to(at("index")), Err(ShardexError::Locked { .. })));
    fs::create_dir(at("full")).expect("a directory");
    fs::write(at("full").join("letter"), "dear").expect("a file");
    let refused = index.backup_to(at("full")).expect_err("refused");
    assert!(refused.to_string().contains("`letter`"), "{refused}");
    assert!(matches!(index.backup_to(at("none").join("below")), Err(ShardexError::Io { .. })));
    // A base that is none, or another index's.
    for name in ["nothing", "index", "full"] {
        let refused = index.backup_with(at("second"), &BackupOptions::default().base(at(name))).expect_err("refused");
        assert!(matches!(refused, ShardexError::NotABackup { .. }), "{refused}");
    }
    let other = Shardex::create(ShardexConfig::new(at("other")).vector_size(3)).expect("created");
    let refused = other.backup_with(at("second"), &BackupOptions::default().base(at("backup"))).expect_err("refused");
    assert!(matches!(refused, ShardexError::InvalidArgument { argument: "base", .. }), "{refused}");
    assert!(!at("second").exists());
    // Restores.
    for name in ["nothing", "index", "full"] {
        assert!(matches!(Shardex::restore(at(name), at("new")), Err(ShardexError::NotABackup { .. })));
    }
    assert!(matches!(Shardex::restore(at("backup"), at("full")), Err(ShardexError::AlreadyExists { .. })));
    assert!(matches!(Shardex::restore(at("backup"), at("index")), Err(ShardexError::Locked { .. })));
    other.close().expect("closed");
    assert!(matches!(Shardex::restore(at("backup"), at("other")), Err(ShardexError::AlreadyExists { .. })));
    assert_eq!((files("backup"), files("full"), files("other"), at("new").exists()), (2, 1, 4, false));
    // An interrupted one says that it is none.
    fs::remove_file(at("backup").join("manifest")).expect("removed");
    let refused = Shardex::verify_backup(at("backup")).expect_err("refused");
    assert!(refused.to_string().contains("interrupted"), "{refused}");
    assert!(matches!(Shardex::open(at("backup")), Err(ShardexError::NotFound { .. })));
    index.close().expect("closed");
    assert!(matches!(index.backup_to(at("late")), Err(ShardexError::Closed)));
}

/// A close cancels the backup under way, releases the lock, and leaves no backup.
#[test]
fn a_close_ends_a_backup() {
    let dir = TempDir::new().expect("a temporary directory");
    let index = index_in(dir.path());
    std::thread::scope(|scope| {
        let backups = (0..4).map(|n| {
            let (index, to) = (index.clone(), dir.path().join(format!("backup {n}")));
            scope.spawn(move || index.backup_to(to))
        });
        let backups: Vec<_> = backups.collect();
        index.close().expect("closed");
        Shardex::open(dir.path().join("index")).expect("the lock is free");
        for (n, backup) in backups.into_iter().enumerate() {
            match backup.join().expect("no panic") {
                Ok(_) => drop(Shardex::verify_backup(dir.path().join(format!("backup {n}"))).expect("whole")),
                Err(ShardexError::Closed) => {
                    let left = Shardex::verify_backup(dir.path().join(format!("backup {n}")));
                    assert!(matches!(left, Err(ShardexError::NotABackup { .. })), "{left:?}");
                }
                Err(other) => panic!("{other}"),
            }
        }
    });
}

/// Writes, searches and flushes go on during backups, one against the other.
#[test]
fn backups_are_made_while_others_write() {
    let dir = TempDir::new().expect("a temporary directory");
    let index = index_in(dir.path());
    let done = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        let writes = scope.spawn(|| {
            let mut n = 10_000u64;
            while !done.load(std::sync::atomic::Ordering::Acquire) {
                write(&index, n..n + 20);
                index.remove_documents(vec![DocumentId::from(n as u32)]).expect("removed");
                if n.is_multiple_of(100) {
                    index.flush().expect("flushed");
                }
                n += 20;
            }
            n
        });
        let mut before: Option<PathBuf> = None;
        for n in 0..6 {
            let to = dir.path().join(format!("backup {n}"));
            let mut options = BackupOptions::default();
            options.base = before.take();
            let made = index.backup_with(&to, &options).expect("backed up");
            let restored = dir.path().join(format!("restored {n}"));
            Shardex::restore(&to, &restored).expect("restored");
            let restored = opened(restored);
            let stats = restored.stats().expect("stats");
            assert!(stats.last_lsn >= made.lsn, "{made:?}");
            // A batch is in it as a whole or not at all: its cursor names its last posting.
            let cursor = String::from_utf8(restored.cursor().expect("read")).expect("text");
            let last: u64 = cursor.split("..").last().expect("a range").parse().expect("a number");
            let found = |n: u64| restored.get(DocumentId::from(n as u32)).expect("read").len();
            assert_eq!((found(last - 1), found(last)), (1, 0), "{cursor}");
            before = Some(to);
        }
        done.store(true, std::sync::atomic::Ordering::Release);
        assert!(writes.join().expect("no panic") > 10_100);
    });
}
