//! Tests of the cells. Searches by cells reach their target recall while they visit a small part of the postings. They
//! stay correct through every change to the index. Damaged cells cost time but no answer.

use std::{collections::BTreeSet, fs, sync::Arc};

use shardex::{
    CheckLevel, Component, DocumentId, Engine, Metric, OpenOptions, Posting, SearchOptions, Shardex, ShardexError,
    env::{AllCores, CellPolicy, Env, Executor, Inline},
    format::cells::{HEAD_MAGIC, TABLE_MAGIC},
    index::{self, Chunk, Hits, SearchScope, Snapshot, SnapshotSource, UnindexedShard},
    storage::{MmapFile, MmapStorage},
};

use shardex_sim::workload::Budget;

use crate::support::{TestIndex, block_on, check_clean, posting, vector};

/// Returns a vector around one of 97 centres. Vectors thus form clusters, as those of texts do.
fn clustered(n: u64, dimension: usize) -> Vec<f32> {
    let (centre, own) = (vector(1_000_000 + n % 97, dimension), vector(n, dimension));
    centre.iter().zip(own).map(|(c, x)| c + 0.7 * x).collect()
}

fn postings(range: std::ops::Range<u64>, dimension: usize) -> Vec<Posting> {
    range.map(|n| posting(u128::from(n), 0, clustered(n, dimension))).collect()
}

fn recall_of(recall: f32) -> SearchScope {
    SearchScope { recall: Some(recall), slop: None, ..SearchScope::slop(96) }
}

fn find(engine: &Engine<MmapStorage>, query: &[f32], k: usize, scope: SearchScope) -> Hits<MmapFile> {
    index::search(&engine.snapshot(), engine.data(), query, k, scope).expect("the search succeeds")
}

fn found(hits: &Hits<MmapFile>) -> BTreeSet<u128> {
    hits.iter().map(|hit| hit.document_id.0).collect()
}

/// Returns the mean recall at 10 of searches for `queries`, and the mean share of the postings that they visit.
fn measure(engine: &Engine<MmapStorage>, queries: std::ops::Range<u64>, scope: SearchScope) -> (f64, f64) {
    let (mut hit, mut looked) = (0, 0);
    let (n, dimension) = (queries.end - queries.start, engine.geometry().dimension);
    for query in queries {
        let mut query = clustered(query, dimension);
        if engine.geometry().metric == Metric::Cosine {
            let norm = query.iter().map(|x| x * x).sum::<f32>().sqrt();
            query.iter_mut().for_each(|x| *x /= norm);
        }
        let true_ones = found(&find(engine, &query, 10, SearchScope::exact()));
        let hits = find(engine, &query, 10, scope);
        hit += found(&hits).intersection(&true_ones).count();
        looked += hits.scanned();
    }
    let live = engine.stats().expect("figures").total_postings;
    (hit as f64 / (n * 10) as f64, looked as f64 / (n * live) as f64)
}

#[test]
fn searches_by_cells_reach_the_recall_that_was_asked_for() {
    for (dimension, metric) in [(100, Metric::L2), (64, Metric::Cosine), (31, Metric::Dot)] {
        let test = TestIndex::with(|config| config.vector_size(dimension).metric(metric).shard_size(128));
        let mut engine = test.create();
        engine.add(&postings(0..6_000, dimension)).expect("added");
        engine.optimize().expect("cells are made");
        for recall in [0.7, 0.9, 0.98] {
            let (reached, looked) = measure(&engine, 900_000..900_100, recall_of(recall));
            assert!(reached >= f64::from(recall) - 0.05, "{dimension} {metric}: {reached} for {recall}");
            assert!(looked < 0.7, "{dimension} {metric}: looked at {looked} for {recall}");
        }
        check_clean(&engine);
    }
}

/// A slop bounds the number of scanned codes. A target recall in addition never raises it. A slop of all shards scans
/// every posting.
#[test]
fn a_slop_bounds_what_is_looked_at() {
    let test = TestIndex::with(|config| config.vector_size(64).shard_size(128));
    let mut engine = test.create();
    engine.add(&postings(0..6_000, 64)).expect("added");
    engine.optimize().expect("cells are made");
    let stats = engine.stats().expect("figures");
    let query = clustered(5, 64);
    for slop in [1, 4, 12] {
        let codes = stats.codes as usize * slop / stats.total_shards;
        let hits = find(&engine, &query, 10, SearchScope::slop(slop));
        assert!((codes..codes + 600).contains(&hits.scanned()), "{} codes for slop {slop}", hits.scanned());
        for recall in [0.999, 1.0] {
            let both = SearchScope { slop: Some(slop), ..recall_of(recall) };
            assert!(find(&engine, &query, 10, both).scanned() <= hits.scanned());
        }
    }
    let all = find(&engine, &query, 10, SearchScope::slop(stats.total_shards));
    assert_eq!(all.scanned(), 6_000);
    assert_eq!(found(&all), found(&find(&engine, &query, 10, SearchScope::exact())));
}

#[test]
fn what_is_removed_replaced_or_added_after_the_cells_is_answered_right() {
    let dimension = 48;
    let test = TestIndex::with(|config| config.vector_size(dimension).shard_size(64));
    let mut engine = test.create();
    engine.add(&postings(0..4_000, dimension)).expect("added");
    engine.optimize().expect("cells are made");
    // A tenth of the postings is removed, a tenth is replaced, and enough is added to split shards that the cells refer
    // to.
    let gone: Vec<DocumentId> = (0..400).map(|n| DocumentId(n * 10)).collect();
    engine.remove(&gone).expect("removed");
    let moved: Vec<Posting> =
        (0..400).map(|n| posting(n * 10 + 1, 0, clustered(50_000 + n as u64, dimension))).collect();
    engine.add(&moved).expect("replaced");
    engine.add(&postings(10_000..12_000, dimension)).expect("added");
    let splits = engine.stats().expect("figures").splits;
    assert!(splits > 10, "{splits} splits");
    let right = |engine: &Engine<MmapStorage>| {
        for (id, n) in [(11, 50_001), (3_991, 50_399), (10_007, 10_007), (17, 17), (3_999, 3_999)] {
            let hits = find(engine, &clustered(n, dimension), 3, recall_of(0.99));
            let first = hits.iter().next().expect("a hit");
            assert_eq!((first.document_id.0, first.similarity_score), (id, 0.0));
        }
        for n in 0..40 {
            let hits = find(engine, &clustered(n * 100, dimension), 50, recall_of(0.99));
            assert!(hits.iter().all(|hit| hit.document_id.0 % 10 != 0 || hit.document_id.0 >= 10_000));
            assert_eq!(found(&hits).len(), hits.len(), "each once");
        }
        let (reached, _) = measure(engine, 900_000..900_060, recall_of(0.95));
        assert!(reached > 0.9, "{reached}");
    };
    right(&engine);
    check_clean(&engine);
    engine.flush().expect("flushed");
    drop(engine);
    let mut engine = test.open();
    right(&engine);
    assert!(engine.stats().expect("figures").unindexed_postings > 2_000);
    engine.optimize().expect("cells are made");
    assert_eq!(engine.stats().expect("figures").unindexed_postings, 0);
    right(&engine);
    check_clean(&engine);
}

/// Cells are durable with the flush and absent before it. The next open reads them unchanged.
#[test]
fn cells_outlive_a_close_and_nothing_is_left_of_lost_ones() {
    let test = TestIndex::with(|config| config.vector_size(48).shard_size(64));
    let mut engine = test.create();
    engine.add(&postings(0..2_000, 48)).expect("added");
    engine.flush().expect("flushed");
    engine.optimize().expect("cells are made");
    drop(engine);
    // The engine is dropped without a flush, as in a crash.
    let mut engine = test.open();
    assert_eq!(engine.stats().expect("figures").cells, 0);
    check_clean(&engine);
    engine.optimize().expect("cells are made");
    let made = engine.stats().expect("figures").cells;
    assert!(made >= 2_000 / 32);
    engine.close().expect("closed");
    drop(engine);
    for _ in 0..2 {
        let mut engine = test.open();
        let stats = engine.stats().expect("figures");
        assert_eq!((stats.cells, stats.unindexed_postings, stats.recovery.cells_lost), (made, 0, false));
        check_clean(&engine);
        engine.close().expect("closed");
    }
}

/// Returns the offset and the length of each cell group in the data file, in bytes.
pub(crate) fn groups(engine: &Engine<MmapStorage>) -> Vec<(usize, usize)> {
    let snapshot = engine.snapshot();
    let page = engine.geometry().page_size;
    let groups = &snapshot.cells.as_ref().expect("there are cells").table().groups;
    groups.iter().map(|group| (group.pointer.page as usize * page, group.pointer.len as usize)).collect()
}

#[test]
fn damaged_cells_cost_time_and_no_answer() {
    let test = TestIndex::with(|config| config.vector_size(48).shard_size(64));
    let mut engine = test.create();
    engine.add(&postings(0..2_000, 48)).expect("added");
    engine.optimize().expect("cells are made");
    let places = groups(&engine);
    engine.close().expect("closed");
    drop(engine);
    for (at, len) in [places[0], places[places.len() - 1]] {
        for byte in [at, at + len / 2, at + len - 1] {
            let copy = test.copy();
            copy.patch("data", |bytes| bytes[byte] ^= 0x10);
            let mut engine = copy.open();
            // Some search reads the damaged group, whichever it is, and every search is answered.
            for n in 0..60 {
                let hits = find(&engine, &clustered(n * 30, 48), 1, recall_of(0.98));
                assert_eq!(hits.iter().next().expect("a hit").similarity_score, 0.0);
            }
            let report = engine.check(CheckLevel::Full).expect("the disk can be read");
            assert!(report.findings.iter().all(|finding| finding.component == Component::Cells), "{report}");
            assert!(!report.is_clean(), "byte {byte} of {at}..{}", at + len);
            // The damage blocks no write, and a cell build replaces the damaged cells.
            engine.add(&postings(5_000..5_010, 48)).expect("added");
            engine.flush().expect("flushed");
            engine.optimize().expect("cells are made");
            engine.flush().expect("flushed");
            // The older root refers to the damaged cells until the next flush.
            engine.add(&postings(5_010..5_011, 48)).expect("added");
            engine.flush().expect("flushed");
            check_clean(&engine);
        }
    }
}

#[test]
fn a_damaged_table_of_cells_is_told_and_done_without() {
    let test = TestIndex::with(|config| config.vector_size(48).shard_size(64));
    let mut engine = test.create();
    engine.add(&postings(0..2_000, 48)).expect("added");
    engine.optimize().expect("cells are made");
    engine.close().expect("closed");
    drop(engine);
    let bytes = fs::read(test.path().join("data")).expect("the data");
    for magic in [HEAD_MAGIC, TABLE_MAGIC] {
        let at = bytes.windows(4).position(|window| window == magic).expect("it is there");
        let copy = test.copy();
        copy.patch("data", |bytes| bytes[at + 5] ^= 1);
        let mut engine = copy.open();
        let stats = engine.stats().expect("figures");
        assert_eq!((stats.cells, stats.recovery.cells_lost), (0, true));
        let hits = find(&engine, &clustered(77, 48), 1, recall_of(0.98));
        assert_eq!(hits.iter().next().expect("a hit").document_id.0, 77);
        drop(hits);
        engine.optimize().expect("cells are made");
        engine.close().expect("closed");
        drop(engine);
        let engine = copy.open();
        assert!(engine.stats().expect("figures").cells > 0);
        check_clean(&engine);
    }
}

/// Regression: a program that only searched an index with lost cells had exhaustive searches for ever.
#[test]
fn lost_cells_are_wanted_again_before_the_first_write() {
    let test = TestIndex::with(|config| config.vector_size(48).shard_size(64));
    let mut engine = test.create();
    engine.add(&postings(0..4_200, 48)).expect("added");
    engine.optimize().expect("cells are made");
    let places = groups(&engine);
    engine.close().expect("closed");
    drop(engine);
    let intact = test.copy();
    assert!(!intact.open().wants_cell_build(), "intact cells are not built again");
    let bytes = fs::read(test.path().join("data")).expect("the data");
    let table = bytes.windows(4).position(|window| window == TABLE_MAGIC).expect("it is there") + 5;
    for damaged in [table, places[0].0] {
        let copy = test.copy();
        copy.patch("data", |bytes| bytes[damaged] ^= 1);
        let mut engine = copy.open();
        // A damaged group is known once a search has read it.
        for n in 0..60 {
            find(&engine, &clustered(n * 30, 48), 1, recall_of(0.98));
        }
        assert!(engine.wants_cell_build());
        let built = engine.cell_build_resume().expect("a job").run().expect("built");
        engine.install_cells(built).expect("installed");
        assert!(!engine.wants_cell_build());
        engine.close().expect("closed");
        drop(engine);
        let mut engine = copy.open();
        let stats = engine.stats().expect("statistics");
        assert!(stats.cells > 0 && stats.unindexed_postings == 0 && !engine.wants_cell_build(), "{stats:?}");
    }
}

/// Any number of threads builds the same bytes as one thread (P7).
#[test]
fn cells_do_not_depend_on_the_threads_that_make_them() {
    let made = |executor: Arc<dyn Executor>| {
        let test = TestIndex::with(|config| config.vector_size(48).shard_size(64));
        let env = Env { new_index_id: 9, executor, cells: CellPolicy::Always, ..Env::system() };
        let mut engine = Engine::create(test.storage(), &test.config, &env).expect("an index");
        engine.add(&postings(0..3_000, 48)).expect("added");
        engine.optimize().expect("cells are made");
        engine.optimize().expect("cells are made again");
        let places = groups(&engine);
        let bytes = fs::read(test.path().join("data")).expect("the data");
        places.into_iter().map(|(at, len)| bytes[at..at + len].to_vec()).collect::<Vec<_>>()
    };
    assert!(made(Arc::new(Inline)) == made(Arc::new(AllCores)), "other bytes");
}

/// Postings added after the cells are encoded at once. After an open, a job makes the same codes.
#[test]
fn what_is_in_no_cell_is_searched_by_codes() {
    for metric in [Metric::L2, Metric::Cosine, Metric::Dot] {
        let dimension = 100;
        let test = TestIndex::with(|config| config.vector_size(dimension).shard_size(128).metric(metric));
        let mut engine = test.create();
        engine.add(&postings(0..5_000, dimension)).expect("added");
        engine.optimize().expect("cells are made");
        let settled = engine.stats().expect("figures");
        for first in (10_000..14_000).step_by(130) {
            engine.add(&postings(first..(first + 130).min(14_000), dimension)).expect("added");
        }
        let grown = engine.stats().expect("figures");
        assert!(grown.unindexed_postings > 4_000 && grown.splits > settled.splits, "{grown:?}");
        let answers = |engine: &Engine<MmapStorage>| -> (Vec<Vec<u128>>, usize) {
            let hits = (0..60).map(|n| {
                let mut query = clustered(10_003 + 61 * n, dimension);
                if metric == Metric::Cosine {
                    let norm = query.iter().map(|x| x * x).sum::<f32>().sqrt();
                    query.iter_mut().for_each(|x| *x /= norm);
                }
                find(engine, &query, 10, recall_of(0.95))
            });
            let hits: Vec<_> = hits.collect();
            let computed = hits.iter().map(Hits::computed).sum::<usize>() / hits.len();
            (hits.iter().map(|hits| hits.iter().map(|hit| hit.document_id.0).collect()).collect(), computed)
        };
        let (reached, _) = measure(&engine, 900_000..900_060, recall_of(0.95));
        assert!(reached > 0.9, "{metric}: {reached}");
        let (before, computed) = answers(&engine);
        assert!(computed < 600, "{metric}: {computed} distances");
        check_clean(&engine);
        engine.close().expect("closed");
        drop(engine);
        // An open reads no vector, so these postings have no codes yet.
        let mut engine = test.open();
        assert!(answers(&engine).1 > 2 * computed);
        let coded = engine.encode_begin().expect("there is something to do").run().expect("codes are made");
        engine.install_codes(&coded);
        assert_eq!(answers(&engine), (before, computed), "{metric}");
        check_clean(&engine);
        assert!(engine.encode_begin().is_none(), "nothing is left to do");
        // Cells that contain every posting make the codes of unindexed postings unnecessary.
        assert!(engine.snapshot().unindexed_memory() > 4_000 * 24, "a code takes two words and its factors");
        engine.optimize().expect("cells are made");
        assert_eq!((engine.stats().expect("figures").unindexed_postings, engine.snapshot().unindexed_memory()), (0, 0));
        check_clean(&engine);
    }
}

/// A publication computes only the parts that changed and takes over the rest. The result equals that of a publication
/// of everything.
#[test]
fn one_publication_after_another_comes_to_the_same_as_one_of_everything() {
    let dimension = 24;
    let test = TestIndex::with(|config| config.vector_size(dimension).shard_size(16));
    let mut engine = test.create();
    engine.add(&postings(0..800, dimension)).expect("added");
    engine.optimize().expect("cells are made");
    let mut partly = 0;
    for n in 0..60u64 {
        let first = 800 + n * 13;
        engine.add(&postings(first..first + 1 + n % 13, dimension)).expect("added");
        if n % 3 == 0 {
            let some: Vec<_> = (n * 31..n * 31 + 20).map(|id| DocumentId(id.into())).collect();
            engine.remove(&some).expect("removed");
        }
        if n == 30 {
            engine.optimize().expect("other cells are made");
        }
        let published = engine.snapshot();
        let mut shards = vec![None; published.chunks.iter().map(|chunk| chunk.shards.len()).sum()];
        published.iter().for_each(|(number, shard)| shards[number as usize] = Some(Arc::clone(shard)));
        let state = SnapshotSource {
            shards: &shards,
            cells: published.cells.as_ref(),
            lsn: published.lsn,
            live: published.live,
            payloads: &published.payloads,
            encodes: true,
        };
        let anew = Snapshot::empty(published.lsn, engine.geometry()).with_changes(
            engine.geometry(),
            0..shards.len() as u32,
            state,
        );
        assert_eq!((anew.shards, anew.chunks.len()), (published.shards, published.chunks.len()), "write {n}");
        for (known, made) in published.chunks.iter().zip(&anew.chunks) {
            let of = |chunk: &Chunk<_>| -> Vec<(u32, u32, Option<usize>)> {
                let one =
                    |fresh: &UnindexedShard| (fresh.shard, fresh.from, fresh.codes.as_ref().map(|codes| codes.end()));
                chunk.unindexed.iter().map(one).collect()
            };
            assert_eq!(of(known), of(made), "write {n}");
            assert_eq!(known.unindexed_rows, made.unindexed_rows, "write {n}");
            assert_eq!(known.centroids, made.centroids, "write {n}");
            partly += usize::from((1..known.shards.len()).contains(&known.unindexed.len()));
        }
    }
    assert!(partly > 100, "{partly} chunks had shards of both kinds");
}

/// Returns a closed index. Postings below `settled` are in cells, those in `fresh` are unindexed.
fn with_fresh(dimension: usize, settled: u64, fresh: std::ops::Range<u64>) -> TestIndex {
    let test = TestIndex::with(|config| config.vector_size(dimension).shard_size(64));
    let mut engine = test.create();
    engine.add(&postings(0..settled, dimension)).expect("added");
    engine.optimize().expect("cells are made");
    engine.add(&postings(fresh, dimension)).expect("added");
    engine.close().expect("closed");
    test
}

/// After an open of an index that has grown, the missing codes are made in the background without a call.
#[test]
fn an_open_makes_the_codes_that_are_missing_beside_the_writer() {
    let dimension = 48;
    let test = with_fresh(dimension, 5_000, 6_000..8_000);
    block_on(async {
        let index = Shardex::open(test.path()).await.expect("it opens");
        let (query, options) = (clustered(6_001, dimension), SearchOptions::new(5).recall(0.95));
        for attempt in 0.. {
            let answer = index.search_with(&query, &options).await.expect("an answer");
            assert_eq!(answer.results[0].document_id.0, 6_001);
            if answer.computed < 400 {
                break;
            }
            assert!(attempt < 20_000, "{} distances, still", answer.computed);
            // A separate thread makes the codes.
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        let many = index.search_many_in_place(&[query.clone(), query.clone()], &options).await.expect("answers");
        let ids = |hits: &Hits<MmapFile>| hits.iter().map(|hit| hit.document_id.0).collect::<Vec<_>>();
        assert_eq!(ids(&many[0]), ids(&many[1]));
        assert_eq!(ids(&many[0])[0], 6_001);
        index.close().await.expect("closed");
    });
}

/// Codes made from an outdated state change no result.
#[test]
fn codes_that_come_late_are_right_or_nothing() {
    let dimension = 48;
    let test = with_fresh(dimension, 3_000, 5_000..6_000);
    let mut engine = test.open();
    let coded = engine.encode_begin().expect("a job").run().expect("codes are made");
    engine.remove(&(5_000..5_300).map(DocumentId).collect::<Vec<_>>()).expect("removed");
    engine.add(&postings(7_000..9_000, dimension)).expect("added");
    engine.install_codes(&coded);
    let all = |engine: &Engine<MmapStorage>| {
        let hits = find(engine, &clustered(1, dimension), 10_000, recall_of(0.999));
        let ids = found(&hits);
        assert_eq!((hits.len(), ids.len()), (5_700, 5_700), "each once");
        assert_eq!(ids, found(&find(engine, &clustered(1, dimension), 10_000, SearchScope::exact())));
    };
    all(&engine);
    check_clean(&engine);
    // The codes are older than the cells.
    engine.optimize().expect("cells are made");
    engine.install_codes(&coded);
    all(&engine);
    engine.add(&postings(9_000..9_100, dimension)).expect("added");
    engine.remove(&(9_000..9_100).map(DocumentId).collect::<Vec<_>>()).expect("removed");
    engine.install_codes(&coded);
    all(&engine);
    check_clean(&engine);
}

/// Equal vectors, a single posting, an empty index and a dimension of one: inputs without clusters.
#[test]
fn indexes_that_are_hard_to_group_are_searched_all_the_same() {
    let same = |range: std::ops::Range<u64>| -> Vec<Posting> {
        range.map(|n| posting(u128::from(n), 0, vec![0.5; 40])).collect()
    };
    let test = TestIndex::with(|config| config.vector_size(40).shard_size(64));
    let mut engine = test.create();
    engine.optimize().expect("nothing is nothing to do");
    assert_eq!(engine.stats().expect("figures").cells, 0);
    for range in [0..1, 1..1_500] {
        engine.add(&same(range.clone())).expect("added");
        engine.optimize().expect("cells are made");
        let hits = find(&engine, &[0.5; 40], 7, recall_of(0.95));
        assert_eq!(hits.len() as u64, range.end.min(7));
        check_clean(&engine);
    }
    engine.remove(&(0..1_500).map(DocumentId).collect::<Vec<_>>()).expect("removed");
    assert!(find(&engine, &[0.5; 40], 7, recall_of(0.95)).is_empty());
    engine.optimize().expect("the cells go");
    assert_eq!(engine.stats().expect("figures").cells, 0);
    engine.flush().expect("flushed");
    check_clean(&engine);
    let line = TestIndex::with(|config| config.vector_size(1).shard_size(8));
    let mut engine = line.create();
    engine.add(&(0..300).map(|n| posting(n, 0, vec![n as f32])).collect::<Vec<_>>()).expect("added");
    engine.optimize().expect("cells are made");
    let hits = find(&engine, &[122.2], 3, recall_of(0.999));
    assert_eq!(found(&hits), BTreeSet::from([121, 122, 123]));
    check_clean(&engine);
}

/// Vectors scaled by 1e17, 1, 1e-20 and 0: no computed value overflows and spoils the order of the results.
#[test]
fn huge_and_tiny_vectors_are_found() {
    for metric in [Metric::L2, Metric::Dot] {
        let test = TestIndex::with(|config| config.vector_size(64).metric(metric).shard_size(32));
        let mut engine = test.create();
        let scales = [1e17f32, 1.0, 1e-20, 0.0];
        let scaled = |n: u64| -> Vec<f32> { vector(n, 64).iter().map(|x| x * scales[(n % 4) as usize]).collect() };
        engine.add(&(0..400).map(|n| posting(n.into(), 0, scaled(n))).collect::<Vec<_>>()).expect("added");
        engine.optimize().expect("cells are made");
        for n in [0, 4, 8] {
            let query = scaled(n);
            let exact = find(&engine, &query, 5, SearchScope::exact());
            let hits = find(&engine, &query, 5, recall_of(0.999));
            assert_eq!(hits.iter().next().map(|hit| hit.document_id), exact.iter().next().map(|hit| hit.document_id));
        }
        check_clean(&engine);
    }
}

#[test]
fn an_index_that_grows_makes_cells_by_itself() {
    block_on(async {
        let test = TestIndex::with(|config| config.vector_size(48).shard_size(128));
        let index = Shardex::create(test.config.clone()).await.expect("an index");
        for batch in 0..10 {
            index.add_postings(postings(batch * 500..(batch + 1) * 500, 48)).await.expect("added");
        }
        // `optimize` waits for the cell build under way, and for the cells of the postings that arrive meanwhile.
        index.optimize().await.expect("cells are made");
        let stats = index.stats().await.expect("figures");
        assert_eq!((stats.unindexed_postings, stats.codes), (0, 2 * 5_000));
        let options = SearchOptions::new(5).recall(0.95);
        let answer = index.search_with(&clustered(4_321, 48), &options).await.expect("an answer");
        assert_eq!(answer.results[0].document_id, DocumentId(4_321));
        assert!(answer.cells_scanned > 0 && answer.shards_scanned == 0 && answer.computed < answer.scanned);
        for recall in [0.0, -1.0, 1.5, f32::NAN] {
            let refused = index.search_with(&clustered(1, 48), &SearchOptions::new(5).recall(recall)).await;
            assert!(matches!(refused, Err(ShardexError::InvalidArgument { argument: "recall", .. })), "{recall}");
        }
        index.snapshot().await.expect("a snapshot").warm().expect("all of it can be read");
        index.close().await.expect("closed");
        for recall in [0.0, 1.01, f32::NAN] {
            let options = OpenOptions::default().default_recall(recall);
            let refused = Shardex::open_with(test.path(), options).await;
            assert!(matches!(refused, Err(ShardexError::Config { field: "default_recall", .. })), "{recall}");
        }
    });
}

/// A cell build without room on the disk keeps the old cells.
#[test]
fn without_room_the_cells_stay_as_they_were() {
    use shardex_sim::{storage::SimStorage, workload};
    let storage = SimStorage::new(4096, 512, 3);
    let config = shardex::ShardexConfig::new("sim").vector_size(48).shard_size(64).metric(Metric::L2);
    let mut engine = Engine::create(storage.clone(), &config, &workload::env()).expect("an index");
    engine.add(&postings(0..1_500, 48)).expect("added");
    engine.optimize().expect("cells are made");
    engine.flush().expect("flushed");
    let before = engine.stats().expect("figures");
    storage.fail_stores(Some(std::io::ErrorKind::StorageFull));
    let refused = engine.optimize().expect_err("no room");
    assert!(refused.is_out_of_space(), "{refused}");
    storage.fail_stores(None);
    let after = engine.stats().expect("figures");
    assert_eq!((after.cells, after.free_bytes), (before.cells, before.free_bytes));
    assert!(engine.check(CheckLevel::Full).expect("readable").is_clean());
    engine.optimize().expect("there is room");
    engine.flush().expect("flushed");
    assert!(engine.check(CheckLevel::Full).expect("readable").is_clean());
}

/// Regression: new cells were evaluated by a search that also scanned every posting outside the old cells. In an index
/// that had grown, new cells therefore seemed not to pay.
#[test]
fn cells_of_an_index_that_has_grown_search_as_those_of_one_that_was_loaded_at_once() {
    let dimension = 64;
    let made = |ends: &[u64]| {
        let test = TestIndex::with(|config| config.vector_size(dimension).shard_size(128));
        let mut engine = test.create();
        for (i, &end) in ends.iter().enumerate() {
            let first = if i == 0 { 0 } else { ends[i - 1] };
            engine.add(&postings(first..end, dimension)).expect("added");
            engine.optimize().expect("cells are made");
        }
        let usual = *engine.snapshot().cells.as_ref().expect("cells").calibration().usual();
        (measure(&engine, 900_000..900_060, recall_of(0.95)), usual, test)
    };
    let ((at_once, looked_at_once), usual_at_once, _) = made(&[9_000]);
    let ((grown, looked), usual, _) = made(&[4_500, 9_000]);
    assert!(at_once > 0.94 && grown > 0.94, "{at_once} {grown}");
    assert!(looked < 1.3 * looked_at_once, "{looked} of the postings, {looked_at_once} if loaded at once");
    assert!((0.5..2.0).contains(&(usual.shard_margin / usual_at_once.shard_margin)), "{usual:?} {usual_at_once:?}");
}

/// The search efforts of existing cells are found again when a quarter of the postings has come or gone. The
/// calibration uses searches of the index at that time.
#[test]
fn what_recalls_take_is_found_anew_when_much_has_moved() {
    let dimension = 48;
    let test = TestIndex::with(|config| config.vector_size(dimension).shard_size(128));
    let mut engine = test.create();
    engine.add(&postings(0..6_000, dimension)).expect("added");
    engine.optimize().expect("cells are made");
    let proof = |engine: &Engine<MmapStorage>| engine.stats().expect("figures").recall.expect("it was tried");
    let first = proof(&engine);
    let last = engine.stats().expect("figures").last_lsn;
    assert_eq!((first.lsn, first.postings, first.moved), (last, 6_000, 0));
    assert_eq!(first.reached.len(), 48);
    assert!(first.reached.iter().all(|line| line.reached >= line.target), "{first:?}");
    // 600 of the 6,000 postings are replaced, then 400 are removed.
    let others: Vec<Posting> =
        (0..600u64).map(|n| posting(u128::from(n), 0, clustered(70_000 + n, dimension))).collect();
    engine.add(&others).expect("replaced");
    engine.remove(&(600..1_000).map(DocumentId).collect::<Vec<_>>()).expect("removed");
    let moved = proof(&engine).moved;
    assert!((900..1_300).contains(&moved), "{moved} moved");
    while !engine.wants_cell_build() {
        let n = engine.stats().expect("figures").last_lsn.0 * 100;
        engine.add(&postings(10_000 + n..10_100 + n, dimension)).expect("added");
        assert!(proof(&engine).moved < 6_000 / 2, "it is still not wanted");
    }
    let cells = engine.stats().expect("figures").cells;
    let places = groups(&engine);
    // A cancelled recalibration yields nothing, and the next one starts from the beginning.
    let job = engine.cell_build_resume().expect("a job");
    let whole = Budget::of(u64::MAX);
    assert!(job.run_until(&whole).is_ok());
    let questions = u64::MAX - whole.left();
    for part in [0, questions / 2, questions * 9 / 10] {
        assert!(matches!(job.run_until(&Budget::of(part)), Err(ShardexError::Closed)), "{part} of {questions}");
    }
    let built = job.run().expect("it runs");
    engine.install_cells(built).expect("taken in");
    drop(job);
    assert_eq!((engine.stats().expect("figures").cells, groups(&engine)), (cells, places), "the same cells");
    let second = proof(&engine);
    assert_eq!((second.lsn, second.moved), (engine.stats().expect("figures").last_lsn, 0));
    assert!(second.reached.iter().all(|line| line.reached >= line.target), "{second:?}");
    assert!(second.reached.iter().filter(|line| !line.everything).count() > 20, "{second:?}");
    assert!(!engine.wants_cell_build());
    let (reached, _) = measure(&engine, 900_000..900_100, recall_of(0.95));
    assert!(reached >= 0.93, "{reached}");
    engine.close().expect("closed");
    drop(engine);
    let engine = test.open();
    assert_eq!(proof(&engine), second, "it is stored");
    check_clean(&engine);
}
