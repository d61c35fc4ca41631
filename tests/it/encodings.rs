//! Vectors stored as 16-bit floats and as 8-bit integers.

use std::{collections::BTreeMap, sync::Arc};

use shardex::{
    CheckLevel, DocumentId, Filter, Metric, Posting, PostingKey, SearchOptions, Shardex, ShardexError, VectorEncoding,
    WriteBatch, env::Env, limits, storage::MmapStorage,
};
use shardex_sim::{
    fsck::encodings::rounded,
    model::encoding_of,
    recall::kinds::{bounds, distances, near},
    workload::StoppedClock,
};

use crate::support::{DIMENSION, TestIndex, block_on, check_clean, documents, everything, posting, vector};

const METRICS: [Metric; 3] = [Metric::L2, Metric::Dot, Metric::Cosine];

const ENCODINGS: [VectorEncoding; 2] = [VectorEncoding::F16, VectorEncoding::Int8];

fn encoded(metric: Metric, encoding: VectorEncoding) -> TestIndex {
    TestIndex::with(|config| config.metric(metric).encoding(encoding))
}

/// All metrics with all encodings but f32.
fn all() -> impl Iterator<Item = (Metric, VectorEncoding)> {
    METRICS.into_iter().flat_map(|metric| ENCODINGS.map(|encoding| (metric, encoding)))
}

fn norm(vector: &[f32]) -> f64 {
    vector.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>().sqrt()
}

/// Returns a vector as an index keeps it, and what it returns for it.
fn kept(given: &[f32], metric: Metric, encoding: VectorEncoding) -> (Vec<f32>, Vec<f32>) {
    let norm = if metric == Metric::Cosine { norm(given) } else { 1.0 };
    let scaled: Vec<f32> = given.iter().map(|&x| (f64::from(x) / norm) as f32).collect();
    let stored = rounded(&scaled, encoding_of(encoding));
    let returned = stored.iter().map(|x| x * norm as f32).collect();
    (stored, returned)
}

/// Every way to read a vector gives the rounded vector, before and after a flush, splits and a crash.
#[test]
fn every_reader_returns_the_nearest_vectors_that_can_be_stored() {
    for (metric, encoding) in all() {
        let test = encoded(metric, encoding);
        let mut engine = test.create();
        engine.add(&documents(0..70)).expect("accepted");
        engine.flush().expect("flushed");
        engine.add(&documents(50..120)).expect("accepted");
        let expected: BTreeMap<u128, Vec<f32>> =
            (0..120).map(|n| (u128::from(n), kept(&vector(n, DIMENSION), metric, encoding).1)).collect();
        let found = |engine: &_| -> BTreeMap<u128, Vec<f32>> {
            everything(engine).into_iter().map(|result| (result.document_id.0, result.vector)).collect()
        };
        assert_eq!(found(&engine), expected, "{metric}");
        check_clean(&engine);
        engine.commit().expect("durable");
        drop(engine);
        let engine = test.open();
        assert_eq!(engine.stats().expect("figures").recovery.records_replayed, 1);
        assert_eq!(found(&engine), expected, "{metric} after a recovery");
        check_clean(&engine);
        drop(engine);
        block_on(async {
            let index = Shardex::open(test.path()).await?;
            index.optimize().await?;
            let snapshot = index.snapshot().await?;
            for n in 0..120 {
                let all = snapshot.get(DocumentId(n))?;
                assert_eq!(all[0].vector, expected[&n], "{metric}");
                let one = snapshot.get_posting(PostingKey::new(n, 0, 1))?.expect("a posting");
                assert_eq!(one.vector, expected[&n], "{metric}");
            }
            let scanned: Vec<Posting> = snapshot.scan().collect::<Result<_, _>>()?;
            let scanned: BTreeMap<u128, Vec<f32>> =
                scanned.into_iter().map(|posting| (posting.document_id.0, posting.vector)).collect();
            assert_eq!(scanned, expected, "{metric}");
            let query = vector(7, DIMENSION);
            for hit in snapshot.search_in_place(&query, &SearchOptions::new(120))?.iter() {
                let given = vector(hit.document_id.0 as u64, DIMENSION);
                assert_eq!(*hit.vector, kept(&given, metric, encoding).0, "{metric}");
            }
            assert!(index.check(CheckLevel::Full).await?.is_clean());
            index.close().await
        })
        .expect("an index");
    }
}

/// Recall and scores refer to the stored vectors, and the query is not rounded.
#[test]
fn searches_have_the_recall_asked_for_among_the_rounded_vectors() {
    let (mut found_by_all, mut wanted_by_all) = (0, 0);
    for (metric, encoding) in all() {
        let test = TestIndex::with(|config| config.metric(metric).encoding(encoding).shard_size(128));
        let given: Vec<Vec<f32>> = (0..6_000)
            .map(|n| {
                let centre = vector(1_000_000 + n % 40, DIMENSION);
                centre.iter().zip(vector(n, DIMENSION)).map(|(c, x)| c + 0.3 * x).collect()
            })
            .collect();
        let stored: Vec<Vec<f32>> = given.iter().map(|given| kept(given, metric, encoding).0).collect();
        block_on(async {
            // The id and the clock seed the draws.
            let env = Env { new_index_id: 3, clock: Arc::new(StoppedClock), ..Env::system() };
            let index =
                Shardex::create_on(MmapStorage::new(&test.config.directory_path), test.config.clone(), env).await?;
            let postings = given.iter().zip(0..).map(|(given, id)| posting(id, 0, given.clone())).collect();
            index.add_postings(postings).await?;
            index.optimize().await?;
            assert!(index.stats().await?.cells > 0);
            let queries: Vec<Vec<f32>> = (0..40)
                .map(|n| {
                    given[n * 149].iter().zip(vector(n as u64 + 77, DIMENSION)).map(|(x, y)| x + 0.2 * y).collect()
                })
                .collect();
            let mut found = 0;
            for query in &queries {
                // The score by cosine is the product of the normalised query and the stored vector.
                let (by, scale) = if metric == Metric::Cosine { (Metric::Dot, norm(query)) } else { (metric, 1.0) };
                let scaled: Vec<f32> = query.iter().map(|&x| (f64::from(x) / scale) as f32).collect();
                let bound = bounds(by, &scaled, &stored, &[10])[0];
                let exact = index.search_with(query, &SearchOptions::new(10).exact()).await?;
                let rows = |results: &[shardex::SearchResult]| -> Vec<Vec<f32>> {
                    results.iter().map(|result| stored[result.document_id.0 as usize].clone()).collect()
                };
                let all = rows(&exact.results);
                assert_eq!(near(by, &scaled, all.iter().map(Vec::as_slice), bound), 10, "{metric} {encoding}: exact");
                for (result, row) in exact.results.iter().zip(&all) {
                    let score = -distances(by, &scaled, std::slice::from_ref(row))[0];
                    assert!((f64::from(result.similarity_score) - score).abs() < 1e-5 * score.abs().max(1.0));
                }
                let answer = index.search_with(query, &SearchOptions::new(10).recall(0.95)).await?;
                let some = rows(&answer.results);
                found += near(by, &scaled, some.iter().map(Vec::as_slice), bound);
            }
            // Two standard errors of the recall below the target, if the misses are independent.
            assert!(found >= 371, "{metric} {encoding}: {found} of 400");
            (found_by_all, wanted_by_all) = (found_by_all + found, wanted_by_all + 400);
            index.close().await
        })
        .expect("an index");
    }
    assert!(found_by_all * 100 >= wanted_by_all * 95, "{found_by_all} of {wanted_by_all}");
}

#[test]
fn a_component_beyond_the_range_is_refused_with_its_position_and_changes_nothing() {
    for (metric, x) in [(Metric::L2, 65_520.0), (Metric::Dot, -1e9)] {
        let test = encoded(metric, VectorEncoding::F16);
        let mut engine = test.create();
        engine.add(&documents(0..5)).expect("accepted");
        let (lsn, bytes) = (engine.last_lsn(), test.bytes());
        let mut postings = documents(5..8);
        postings[1].vector[3] = x;
        let error = engine.add(&postings).expect_err("beyond f16");
        assert!(matches!(error, ShardexError::InvalidVector { index: 1, .. }), "{error:?}");
        let text = error.to_string();
        assert!(text.contains("number 3") && text.contains("f16"), "{text}");
        assert_eq!((engine.last_lsn(), test.bytes()), (lsn, bytes));
        // The largest numbers that round to a finite half.
        postings[1].vector[3] = 65_519.0f32.copysign(x);
        engine.add(&postings).expect("accepted");
        let kept = everything(&engine).into_iter().find(|result| result.document_id.0 == 6).expect("there").vector;
        assert_eq!(kept[3], 65_504.0f32.copysign(x));
    }
    // Cosine normalises first, integers have a scale, and queries are not rounded.
    let large = [posting(1, 0, vec![1e9; DIMENSION])];
    for (metric, encoding) in [(Metric::Cosine, VectorEncoding::F16), (Metric::L2, VectorEncoding::Int8)] {
        let test = encoded(metric, encoding);
        let mut engine = test.create();
        engine.add(&large).expect("accepted");
        assert_eq!(everything(&engine)[0].vector, kept(&large[0].vector, metric, encoding).1);
    }
    let test = encoded(Metric::L2, VectorEncoding::F16);
    let mut engine = test.create();
    engine.add(&documents(0..5)).expect("accepted");
    assert_eq!(crate::support::search(&engine, &[1e6; DIMENSION], 5).len(), 5);
}

#[test]
fn the_encoding_is_fixed_at_creation_and_saves_bytes() {
    let len = |encoding| {
        let test = TestIndex::with(|config| config.vector_size(1_024).shard_size(512).encoding(encoding));
        let mut engine = test.create();
        engine.add(&(0..500).map(|n| posting(n, 0, vector(n as u64, 1_024))).collect::<Vec<_>>()).expect("accepted");
        engine.flush().expect("flushed");
        assert_eq!(engine.stats().expect("figures").encoding, encoding);
        engine.used_allocations().map(|run| run.pages).sum::<u32>()
    };
    let [f32, f16, int8] = [VectorEncoding::F32, VectorEncoding::F16, VectorEncoding::Int8].map(len).map(f64::from);
    assert!(f16 < 0.55 * f32 && int8 < 0.32 * f32, "{f32}, {f16}, {int8} pages");

    let test = encoded(Metric::L2, VectorEncoding::F16);
    drop(test.create());
    let other = block_on(Shardex::create(test.config.clone().encoding(VectorEncoding::F32)));
    match other {
        Err(ShardexError::ConfigMismatch { field: "encoding", stored, given, .. }) => {
            assert_eq!((stored.as_str(), given.as_str()), ("f16", "f32"));
        }
        other => panic!("{:?}", other.map(drop)),
    }
    for encoding in [VectorEncoding::F32, VectorEncoding::F16, VectorEncoding::Int8] {
        assert_eq!(encoding.to_string().parse::<VectorEncoding>().expect("a name"), encoding);
    }
    let error = "f8".parse::<VectorEncoding>().expect_err("no name").to_string();
    assert!(error.contains("f8") && error.contains("f16"), "{error}");
}

/// Filters, removals and replacements act on a rounded index as on any other, and its sums stay those of what is stored.
#[test]
fn batches_and_filters_work_on_rounded_vectors() {
    for encoding in ENCODINGS {
        let test = encoded(Metric::L2, encoding);
        block_on(async {
            let index = Shardex::create(test.config.clone()).await?;
            index.add_postings(documents(0..200)).await?;
            let mut batch = WriteBatch::new();
            for n in 0..50u64 {
                let key = PostingKey::new(u128::from(n), 0, 1);
                batch.replace_document(
                    DocumentId(n.into()),
                    vec![Posting::new(key, vector(n + 900, DIMENSION)).tagged(3)],
                );
            }
            batch.remove_matching(Filter::documents((50..80u128).map(DocumentId)));
            index.write(batch).await?;
            index.flush().await?;
            let options = SearchOptions::new(60).exact().filter(Filter::any_tags(2));
            let tagged = index.search_with(&vector(3, DIMENSION), &options).await?;
            assert_eq!(tagged.results.len(), 50);
            for result in &tagged.results {
                let expected = kept(&vector(result.document_id.0 as u64 + 900, DIMENSION), Metric::L2, encoding).1;
                assert_eq!(result.vector, expected);
            }
            let query = kept(&vector(903, DIMENSION), Metric::L2, encoding).0;
            let of = |n: u64| kept(&vector(if n < 50 { n + 900 } else { n }, DIMENSION), Metric::L2, encoding).0;
            let others: Vec<u64> = (0..50).chain(80..200).filter(|&n| n != 3).collect();
            let rows: Vec<Vec<f32>> = others.iter().map(|&n| of(n)).collect();
            let bounds = bounds(Metric::L2, &query, &rows, &[5]);
            let options = SearchOptions::new(5).exact();
            let like = index.snapshot().await?.search_like(PostingKey::new(3u128, 0, 1), &options)?.results;
            let found: Vec<Vec<f32>> = like.iter().map(|result| of(result.document_id.0 as u64)).collect();
            assert_eq!(near(Metric::L2, &query, found.iter().map(Vec::as_slice), bounds[0]), 5, "{encoding}");
            assert!(like.iter().all(|result| result.document_id != DocumentId(3)));
            assert!(index.check(CheckLevel::Full).await?.is_clean());
            index.close().await
        })
        .expect("an index");
    }
}

/// Rounding can enlarge a norm. What is accepted must be opened, searched and searched for again.
#[test]
fn a_vector_whose_rounded_norm_is_over_the_bound_is_refused_and_no_other_one_makes_an_index_unreadable() {
    for (metric, encoding) in all() {
        let test = TestIndex::with(|config| config.metric(metric).encoding(encoding).vector_size(384));
        let mut engine = test.create();
        // All but the first component are just above half of the scale, and round to all of it.
        let shape: Vec<f64> = (0..384).map(|i| if i == 0 { 127.0 } else { 0.501 }).collect();
        let size = shape.iter().map(|x| x * x).sum::<f64>().sqrt();
        let scaled = |to: f64| -> Vec<f32> { shape.iter().map(|x| (x / size * to) as f32).collect() };
        let added = engine.add(&[posting(1, 0, scaled(limits::MAX_NORM * 0.999_999))]);
        if metric == Metric::Cosine {
            added.expect("accepted");
        } else {
            let error = added.expect_err("over the bound, or beyond f16");
            assert!(matches!(error, ShardexError::InvalidVector { index: 0, .. }), "{error}");
            assert!(error.to_string().contains(&encoding.to_string()), "{error}");
        }
        // The largest that is accepted.
        let most = if encoding == VectorEncoding::F16 { 65_000.0 } else { limits::MAX_NORM / 1.01 };
        engine.add(&[posting(2, 0, scaled(most)), posting(3, 0, scaled(most / 2.0))]).expect("accepted");
        engine.close().expect("closed");
        drop(engine);
        let engine = test.open();
        check_clean(&engine);
        let found = everything(&engine);
        assert!(found.len() >= 2 && found.iter().all(|result| result.similarity_score.is_finite()));
        drop(engine);
        block_on(async {
            let index = Shardex::open(test.path()).await?;
            let snapshot = index.snapshot().await?;
            let like = snapshot.search_like(PostingKey::new(2u128, 0, 1), &SearchOptions::new(1))?;
            assert_eq!(like.results.len(), 1);
            assert_eq!(snapshot.search_like_document(DocumentId(2), &SearchOptions::new(1))?.results.len(), 1);
            drop(snapshot);
            index.close().await
        })
        .expect("an index");
    }
}

/// By cosine what is returned is the stored vector times its norm, which may be no valid query.
#[test]
fn what_is_like_the_smallest_and_largest_vectors_is_found() {
    for encoding in [VectorEncoding::F32, VectorEncoding::F16, VectorEncoding::Int8] {
        let test = encoded(Metric::Cosine, encoding);
        let unit = kept(&vector(5, DIMENSION), Metric::Cosine, VectorEncoding::F32).0;
        let scaled = |to: f64| -> Vec<f32> { unit.iter().map(|&x| (f64::from(x) * to) as f32).collect() };
        let sizes = [f64::from(f32::MIN_POSITIVE) * 1.000_1, 1.0, limits::MAX_NORM * 0.999_99];
        block_on(async {
            let index = Shardex::create(test.config.clone()).await?;
            index.add_postings((0..3).zip(sizes).map(|(id, size)| posting(id, 0, scaled(size))).collect()).await?;
            for id in 0..3 {
                let key = PostingKey::new(id as u128, 0, 1);
                let like = index.search_like(key, &SearchOptions::new(2)).await?;
                assert_eq!(like.results.len(), 2, "{encoding}, {id}");
                assert!(like.results.iter().all(|result| (result.similarity_score - 1.0).abs() < 0.02));
            }
            index.close().await
        })
        .expect("an index");
    }
}
