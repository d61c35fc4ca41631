//! Tests of purge: no byte of what was removed stays in any file, in any form, and everything else stays as it was.

use std::{fs, path::Path, time::Duration};

use shardex::{
    DocumentId, Engine, Metric, Posting, PurgeStats, Shardex, ShardexConfig, ShardexError, VectorEncoding, WriteBatch,
    env::Env, shard::slot_bytes, storage::MmapStorage,
};
use tempfile::TempDir;

use crate::support::{DIMENSION, TestIndex, block_on, check_clean, everything, vector};

/// Bytes that no file may hold, with their meaning.
type Needle = (String, Vec<u8>);

/// Returns a document id that occurs nowhere else by chance.
fn id(n: u64) -> u128 {
    u128::from(n.wrapping_mul(0x9E37_79B9_7F4A_7C15)) << 64 | u128::from(n.wrapping_mul(0xD134_2543_DE82_EF95) | 1)
}

/// Returns a text of a document: a short one, or one of several pages.
fn text(n: u64) -> String {
    format!("the text of {n:08}, ").repeat(if n.is_multiple_of(3) { 400 } else { 1 + n as usize % 7 })
}

fn posting(n: u64) -> Posting {
    Posting { document_id: DocumentId(id(n)), start: 0, length: 1, vector: vector(n, DIMENSION), tags: n }
}

fn add(engine: &mut Engine<MmapStorage>, numbers: impl Iterator<Item = u64>) {
    let mut batch = WriteBatch::new();
    for n in numbers {
        batch.add(posting(n));
        if n.is_multiple_of(2) {
            batch.set_payload(id(n), text(n));
        }
    }
    engine.write(&batch).expect("added");
}

/// Returns the forms in which the vector, the id and the text of a posting may be stored. Its slot is read from the index.
fn forms(engine: &Engine<MmapStorage>, n: u64) -> Vec<Needle> {
    let (vector, mut found) = (vector(n, DIMENSION), Vec::new());
    let norm = vector.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt();
    let f32s = |of: &dyn Fn(f32) -> f32| vector.iter().take(6).flat_map(|x| of(*x).to_le_bytes()).collect::<Vec<_>>();
    let f64s = |of: &dyn Fn(f32) -> f64| vector.iter().take(3).flat_map(|x| of(*x).to_le_bytes()).collect::<Vec<_>>();
    found.push((format!("vector {n}"), f32s(&|x| x)));
    found.push((format!("vector {n}, normalised"), f32s(&|x| (f64::from(x) / norm) as f32)));
    found.push((format!("sum {n}"), f64s(&f64::from)));
    found.push((format!("sum {n}, normalised"), f64s(&|x| f64::from((f64::from(x) / norm) as f32))));
    found.push((format!("id {n}"), id(n).to_le_bytes().to_vec()));
    if n.is_multiple_of(2) {
        found.push((format!("text {n}"), text(n).into_bytes()[..20].to_vec()));
    }
    let geometry = engine.geometry();
    for (_, shard) in engine.snapshot().iter() {
        for extent in shard.extents() {
            let slots = (0..extent.used()).map(|slot| slot_bytes(extent.lent(), slot, geometry));
            let of_id = |slot: &&[u8]| slot.windows(16).any(|window| window == id(n).to_le_bytes());
            found.extend(slots.filter(of_id).map(|slot| (format!("slot {n}"), slot[..DIMENSION].to_vec())));
        }
    }
    found
}

/// Returns the needles that a file of the directory holds.
fn found<'a>(directory: &Path, needles: &'a [Needle]) -> Vec<(&'a str, String)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).expect("a directory").map(|entry| entry.expect("a file")) {
        let bytes = fs::read(entry.path()).expect("read");
        for (what, needle) in needles {
            let first = memchr(&bytes, needle);
            found.extend(first.map(|at| (what.as_str(), format!("{} at {at}", entry.file_name().display()))));
        }
    }
    found
}

/// Returns the position of the first occurrence of `needle`.
fn memchr(bytes: &[u8], needle: &[u8]) -> Option<usize> {
    let (first, mut from) = (*needle.first()?, 0);
    while let Some(at) = bytes[from..].iter().position(|byte| *byte == first) {
        if bytes[from + at..].starts_with(needle) {
            return Some(from + at);
        }
        from += at + 1;
    }
    None
}

/// Purges below the async API.
fn purge(engine: &mut Engine<MmapStorage>) {
    let mut from = Some(0);
    while let Some(first) = from {
        from = engine.purge_shards(first, 4_096).expect("rewritten").next;
    }
    while engine.purge_payloads(10_000).expect("moved") > 0 {}
    let cells = engine.cell_build_anew().and_then(|job| job.run()).expect("built");
    engine.install_cells(cells).expect("installed");
    engine.purge_end().expect("purged");
}

/// Postings that were removed, replaced, first in their shard, alone in it, in cells or not, with long and short payloads, in
/// the WAL or in an extent that is used again.
#[test]
fn nothing_that_was_removed_is_left() {
    let encodings = [VectorEncoding::F32, VectorEncoding::F16, VectorEncoding::Int8];
    for (encoding, metric) in encodings.into_iter().zip([Metric::L2, Metric::Cosine, Metric::Dot]) {
        let index = TestIndex::with(|config| config.metric(metric).encoding(encoding));
        let mut engine = index.create();
        add(&mut engine, 0..400);
        engine.optimize().expect("cells");
        engine.flush().expect("flushed");
        let removed = |n: &u64| n % 4 == 1 || n % 7 == 2 || (200..260).contains(n);
        let needles: Vec<Needle> = (0..400).filter(removed).flat_map(|n| forms(&engine, n)).collect();
        // Cells hold codes of these postings, and centroids that they have shaped.
        let groups = |engine: &Engine<MmapStorage>| -> Vec<Needle> {
            let allocations: Vec<_> = engine.working_allocations().collect();
            let extents: Vec<u64> = engine
                .snapshot()
                .iter()
                .flat_map(|(_, shard)| shard.extents().to_vec())
                .map(|e| e.allocation().run().page)
                .collect();
            let cells = allocations.into_iter().filter(|run| !extents.contains(&run.page));
            let data = fs::read(index.path().join("data")).expect("read");
            let first = |page: u64| data[page as usize * 4_096..][..48].to_vec();
            let cells = cells.map(|run| (format!("a group of page {}", run.page), first(run.page)));
            // Payloads that stay are moved as they are.
            cells.filter(|(_, bytes)| memchr(bytes, b"text").is_none()).collect()
        };
        let old = groups(&engine);
        engine.remove(&(0..400).filter(removed).map(|n| DocumentId(id(n))).collect::<Vec<_>>()).expect("removed");
        add(&mut engine, 400..450);
        engine.flush().expect("flushed");
        drop(engine);
        let mut engine = index.open();
        add(&mut engine, 450..470);
        engine.remove(&[DocumentId(id(455))]).expect("removed");
        let before = everything(&engine);
        engine.commit().expect("durable");
        assert!(found(&index.path(), &needles).len() > 300, "they are there before");
        assert!(!old.is_empty());
        purge(&mut engine);
        let left = found(&index.path(), &needles);
        assert!(left.is_empty(), "{encoding:?}: {:?}", &left[..left.len().min(20)]);
        assert!(found(&index.path(), &forms(&engine, 455)[..5]).is_empty());
        let cells = found(&index.path(), &old);
        assert!(cells.is_empty(), "{cells:?}");
        assert_eq!(everything(&engine), before, "the others are as they were");
        check_clean(&engine);
        let copy = index.copy();
        let engine_of_copy = copy.open();
        assert_eq!(everything(&engine_of_copy), before, "and after a crash");
        drop(engine_of_copy);
        assert!(found(&copy.path(), &needles).is_empty(), "a recovery brings nothing back");
        // What stays is found by the same search, so that it could have found the rest.
        let kept: Vec<Needle> = [3, 401].iter().flat_map(|&n| forms(&engine, n)).collect();
        assert!(found(&index.path(), &kept).len() >= 4);
        engine.close().expect("closed");
        drop(engine);
        assert!(found(&index.path(), &needles).is_empty(), "nor a close");
        assert_eq!(everything(&index.open()), before);
    }
}

/// A second purge without removals rewrites nothing.
#[test]
fn a_purged_index_is_left_as_it_is() {
    let index = TestIndex::small();
    let mut engine = index.create();
    add(&mut engine, 0..300);
    engine.remove(&[DocumentId(id(7))]).expect("removed");
    purge(&mut engine);
    assert_eq!(engine.purge_shards(0, u64::MAX).expect("nothing to do").rewritten, 0);
    engine.remove(&[DocumentId(id(8))]).expect("removed");
    let step = engine.purge_shards(0, u64::MAX).expect("rewritten");
    assert!(step.rewritten > 0 && step.rewritten <= 16 * engine.geometry().slot_bytes() as u64, "{step:?}");
}

/// The files of an index whose root is lost are not cleared by a `create`, although its WAL holds no record any more.
#[test]
fn a_purged_index_without_its_root_is_not_cleared() {
    for purges in [true, false] {
        let index = TestIndex::small();
        let mut engine = index.create();
        add(&mut engine, 0..100);
        engine.remove(&[DocumentId(id(7))]).expect("removed");
        if purges {
            purge(&mut engine);
        } else {
            while engine.compact_step(u64::MAX, u64::MAX).expect("rewritten") > 0 {}
            engine.flush().expect("flushed");
            engine.trim_all().expect("trimmed");
        }
        engine.close().expect("closed");
        drop(engine);
        fs::remove_file(index.path().join("root")).expect("removed");
        let env = Env { new_index_id: 5, ..Env::system() };
        let error = Engine::create(index.storage(), &index.config, &env).map(drop).expect_err("its root is lost");
        assert!(matches!(error, ShardexError::Corruption { .. }), "{error}");
        assert!(fs::metadata(index.path().join("data")).expect("it is there").len() > 0);
    }
}

fn config(dir: &TempDir) -> ShardexConfig {
    ShardexConfig::new(dir.path().join("index")).vector_size(DIMENSION).shard_size(16)
}

async fn with_postings(dir: &TempDir) -> Result<Shardex, ShardexError> {
    let index = Shardex::create(config(dir)).await?;
    index.add_postings((0..500).map(posting).collect()).await?;
    Ok(index)
}

/// Readers of removed bytes are named. A purge waits for them as long as it is told to, and then goes on.
#[test]
fn readers_hold_a_purge_up() {
    let dir = TempDir::new().expect("a directory");
    block_on(async {
        let index = with_postings(&dir).await?;
        let snapshot = index.snapshot().await?;
        index.remove_documents((0..100).map(|n| DocumentId(id(n))).collect()).await?;
        let error = index.purge(Duration::ZERO).await.expect_err("a snapshot reads them");
        let ShardexError::HeldByReaders { bytes, snapshots } = &error else { panic!("{error}") };
        assert!(*bytes >= 100 * 96 && *snapshots == [snapshot.lsn()], "{error}");
        assert!(error.to_string().contains("purge again"), "{error}");
        assert!(matches!(index.purge(Duration::from_millis(50)).await, Err(ShardexError::HeldByReaders { .. })));
        assert_eq!(snapshot.search(&vector(3, DIMENSION), 1, None)?[0].document_id, DocumentId(id(3)));
        let needles = [(String::from("vector 3"), vector(3, DIMENSION).iter().flat_map(|x| x.to_le_bytes()).collect())];
        let waits = std::thread::spawn({
            let index = index.clone();
            move || block_on(async { index.purge(Duration::from_secs(60)).await })
        });
        std::thread::sleep(Duration::from_millis(100));
        index.add_postings(vec![posting(1_000)]).await?;
        assert!(!waits.is_finished(), "it waits, and writes go on");
        let later = index.snapshot().await?;
        drop(snapshot);
        let done: PurgeStats = waits.join().expect("no panic")?;
        // The later snapshot may or may not hold the cells of before.
        assert!(done.wiped_bytes > 0);
        assert!(found(&dir.path().join("index"), &needles).is_empty());
        assert_eq!(later.len(), 401);
        assert_eq!(index.stats().await?.removed_postings, 0);
        assert!(index.check(shardex::CheckLevel::Full).await?.is_clean());
        index.close().await
    })
    .expect("nothing else fails");
}

/// Writes, searches and compactions go on beside purges, and nothing that was removed before one is left by it.
#[test]
fn a_purge_beside_writes() {
    let dir = TempDir::new().expect("a directory");
    block_on(async {
        let index = with_postings(&dir).await?;
        let writer = std::thread::spawn({
            let index = index.clone();
            move || {
                block_on(async {
                    for n in 1_000..1_400u64 {
                        index.add_postings(vec![posting(n)]).await?;
                        if n % 3 == 0 {
                            index.remove_documents(vec![DocumentId(id(n - 10))]).await?;
                        }
                        let _ = index.search(&vector(n, DIMENSION), 5, None).await?;
                    }
                    Ok::<_, ShardexError>(())
                })
            }
        });
        for round in 0..5u64 {
            let removed = round * 20..round * 20 + 20;
            index.remove_documents(removed.clone().map(|n| DocumentId(id(n))).collect()).await?;
            index.purge(Duration::from_secs(60)).await?;
            let bytes = |n: u64| vector(n, DIMENSION).iter().flat_map(|x| x.to_le_bytes()).take(20).collect();
            let needles: Vec<Needle> = removed.map(|n| (format!("vector {n}"), bytes(n))).collect();
            let left = found(&dir.path().join("index"), &needles);
            assert!(left.is_empty(), "round {round}: {left:?}");
        }
        writer.join().expect("no panic")?;
        assert!(index.check(shardex::CheckLevel::Full).await?.is_clean());
        assert_eq!(index.stats().await?.total_postings, 400 + 400 - 130);
        index.close().await
    })
    .expect("nothing fails");
}
