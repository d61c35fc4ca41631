//! Searches for documents, for what is like a stored posting or document, with payloads and explanations, against brute
//! force.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use rand::{RngExt as _, SeedableRng as _, rngs::ChaCha8Rng};
use shardex::{
    DocumentId, Durability, Filter, IndexSnapshot, Metric, OpenOptions, Posting, PostingKey, SearchOptions,
    SearchResponse, Shardex, ShardexConfig, ShardexError, StopReason, WriteBatch, env::Env, storage::MmapStorage,
};
use shardex_sim::workload::StoppedClock;
use tempfile::TempDir;

use crate::support::block_on;

const DIMENSION: usize = 12;

/// Postings of a test, and the index that holds them.
struct Stored {
    metric: Metric,
    postings: Vec<Posting>,
    snapshot: IndexSnapshot,
    index: Shardex,
    _dir: TempDir,
}

/// Draws documents of 1 to `most` postings, all near a centre of their own. The first document has `first` postings.
fn documents(count: u128, most: usize, first: usize, rng: &mut ChaCha8Rng) -> Vec<Posting> {
    let mut postings = Vec::new();
    for document in 0..count {
        let centre: Vec<f32> = (0..DIMENSION).map(|_| rng.random::<f32>() - 0.5).collect();
        let parts = if document == 0 { first } else { rng.random_range(1..=most) };
        for part in 0..parts {
            let vector = centre.iter().map(|x| x + 0.2 * (rng.random::<f32>() - 0.5)).collect();
            let key = PostingKey::new(document, part as u32, 1);
            postings.push(Posting::new(key, vector).tagged(rng.random_range(0..4)));
        }
    }
    postings
}

impl Stored {
    fn new(metric: Metric, postings: Vec<Posting>) -> Self {
        let dir = TempDir::new().expect("a directory");
        let config = ShardexConfig::new(dir.path().join("index"))
            .vector_size(DIMENSION)
            .metric(metric)
            .shard_size(64)
            .options(OpenOptions::default().durability(Durability::Manual));
        let (index, snapshot) = block_on(async {
            let env = Env { new_index_id: 7, clock: Arc::new(StoppedClock), ..Env::system() };
            let index = Shardex::create_on(MmapStorage::new(&config.directory_path), config, env).await?;
            index.add_postings(postings.clone()).await?;
            index.optimize().await?;
            let snapshot = index.snapshot().await?;
            Ok::<_, ShardexError>((index, snapshot))
        })
        .expect("no error");
        Self { metric, postings, snapshot, index, _dir: dir }
    }

    fn distance(&self, a: &[f32], b: &[f32]) -> f32 {
        match self.metric {
            Metric::L2 => a.iter().zip(b).map(|(x, y)| (x - y) * (x - y)).sum(),
            _ => -a.iter().zip(b).map(|(x, y)| x * y).sum::<f32>(),
        }
    }

    /// Returns the `k` nearest documents with the distances of their `most` nearest postings. A posting is as far away as
    /// from the nearest of the queries.
    fn nearest(
        &self,
        queries: &[&[f32]],
        passes: &dyn Fn(&Posting) -> bool,
        k: usize,
        most: usize,
    ) -> Vec<(u128, Vec<f32>)> {
        let mut of: BTreeMap<u128, Vec<f32>> = BTreeMap::new();
        for posting in self.postings.iter().filter(|posting| passes(posting)) {
            let distances = queries.iter().map(|query| self.distance(query, &posting.vector));
            of.entry(posting.document_id.0).or_default().push(distances.fold(f32::INFINITY, f32::min));
        }
        let mut near: Vec<(u128, Vec<f32>)> = of.into_iter().collect();
        for (_, distances) in &mut near {
            distances.sort_by(f32::total_cmp);
            distances.truncate(most);
        }
        near.sort_by(|a, b| a.1[0].total_cmp(&b.1[0]).then(a.0.cmp(&b.0)));
        near.truncate(k);
        near
    }
}

/// Returns the documents of a response with their distances, in its order.
fn grouped(response: &SearchResponse) -> Vec<(u128, Vec<f32>)> {
    let mut groups: Vec<(u128, Vec<f32>)> = Vec::new();
    for result in &response.results {
        match groups.last_mut() {
            Some((document, distances)) if *document == result.document_id.0 => {
                distances.push(-result.similarity_score);
            }
            _ => groups.push((result.document_id.0, vec![-result.similarity_score])),
        }
    }
    let ids: BTreeSet<u128> = groups.iter().map(|group| group.0).collect();
    assert_eq!(ids.len(), groups.len(), "the results of a document lie together");
    groups
}

fn close(a: &[(u128, Vec<f32>)], b: &[(u128, Vec<f32>)]) -> bool {
    let same = |a: &Vec<f32>, b: &Vec<f32>| a.len() == b.len() && a.iter().zip(b).all(|(x, y)| (x - y).abs() < 1e-4);
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| same(&a.1, &b.1))
}

#[test]
fn the_nearest_documents_are_found_with_their_nearest_postings() {
    for metric in [Metric::L2, Metric::Dot] {
        let mut rng = ChaCha8Rng::seed_from_u64(5);
        let stored = Stored::new(metric, documents(1_500, 9, 400, &mut rng));
        let passes: [&dyn Fn(&Posting) -> bool; 3] =
            [&|_| true, &|posting| posting.tags & 1 == 1, &|posting| posting.document_id.0 % 50 == 3];
        let listed = Filter::documents((0..1_500).filter(|n| n % 50 == 3).map(DocumentId));
        let filters = [None, Some(Filter::all_tags(1)), Some(listed)];
        for (k, most) in [(1, 1), (10, 1), (10, 3), (30, 2)] {
            for (filter, passes) in filters.iter().zip(passes) {
                let (mut found, mut wanted) = (0, 0);
                for i in (0..stored.postings.len()).step_by(97) {
                    let query: Vec<f32> = stored.postings[i].vector.iter().map(|x| x + 0.01).collect();
                    let expected = stored.nearest(&[&query], passes, k, most);
                    let mut options = SearchOptions::new(k).per_document(most);
                    options.filter = filter.clone();
                    let exact = stored.snapshot.search_with(&query, &options.clone().exact()).expect("searched");
                    assert!(close(&grouped(&exact), &expected), "{metric:?} {k} {most}: {exact:?}, {expected:?}");
                    let answer = stored.snapshot.search_with(&query, &options.recall(0.95)).expect("searched");
                    let groups = grouped(&answer);
                    assert_eq!(groups.len(), expected.len(), "always k documents where k pass");
                    assert!(groups.iter().all(|group| group.1.len() <= most));
                    let ids: BTreeSet<u128> = expected.iter().map(|group| group.0).collect();
                    found += groups.iter().filter(|group| ids.contains(&group.0)).count();
                    wanted += expected.len();
                }
                let error = (0.95_f64 * 0.05 / wanted as f64).sqrt();
                let recall = found as f64 / wanted as f64;
                assert!(recall >= 0.95 - 2.0 * error, "{metric:?}, k {k}, {filter:?}: {recall}");
            }
        }
    }
}

/// The 20,000 nearest postings belong to one document.
#[test]
fn a_document_of_many_postings_leaves_room_for_the_others() {
    let mut rng = ChaCha8Rng::seed_from_u64(6);
    let mut postings = documents(300, 4, 20_000, &mut rng);
    let centre = postings[0].vector.clone();
    // All others are farther away than the whole first document.
    for posting in postings.iter_mut().filter(|posting| posting.document_id.0 != 0) {
        posting.vector.iter_mut().for_each(|x| *x += 3.0);
    }
    let stored = Stored::new(Metric::L2, postings);
    let expected = stored.nearest(&[&centre], &|_| true, 10, 1);
    for recall in [0.9, 0.99] {
        let options = SearchOptions::new(10).per_document(1).recall(recall);
        let answer = stored.snapshot.search_with(&centre, &options).expect("searched");
        assert!(close(&grouped(&answer), &expected), "{answer:?}");
        // Pages of documents follow each other.
        let pages = [0, 4].map(|offset| {
            let mut options = options.clone().offset(offset);
            options.k = 4;
            grouped(&stored.snapshot.search_with(&centre, &options).expect("searched"))
        });
        assert_eq!(pages.concat(), grouped(&answer)[..8]);
    }
}

#[test]
fn what_is_like_a_stored_posting_or_document_is_found_without_it() {
    for metric in [Metric::L2, Metric::Dot] {
        let mut rng = ChaCha8Rng::seed_from_u64(8);
        let stored = Stored::new(metric, documents(300, 6, 3, &mut rng));
        let tagged = |posting: &Posting| posting.tags & 2 == 2;
        for i in (0..stored.postings.len()).step_by(53) {
            let Posting { vector, document_id, .. } = &stored.postings[i];
            let key = stored.postings[i].key();
            let options = SearchOptions::new(8).exact().filter(Filter::all_tags(2));
            let answer = stored.snapshot.search_like(key, &options).expect("searched");
            let mut expected: Vec<f32> = stored
                .postings
                .iter()
                .filter(|posting| tagged(posting) && posting.key() != key)
                .map(|posting| stored.distance(vector, &posting.vector))
                .collect();
            expected.sort_by(f32::total_cmp);
            let scores = answer.results.iter().map(|result| -result.similarity_score);
            assert!(scores.zip(&expected).all(|(a, b)| (a - b).abs() < 1e-4), "{answer:?}");
            assert_eq!(answer.results.len(), 8);
            // To a document: as near as to the nearest of its postings.
            let of = stored.postings.iter().filter(|posting| posting.document_id == *document_id);
            let queries: Vec<&[f32]> = of.map(|posting| posting.vector.as_slice()).collect();
            let others = |posting: &Posting| tagged(posting) && posting.document_id != *document_id;
            for most in [1, 2] {
                let options = options.clone().per_document(most);
                let answer = stored.snapshot.search_like_document(*document_id, &options).expect("searched");
                let expected = stored.nearest(&queries, &others, 8, most);
                assert!(close(&grouped(&answer), &expected), "{answer:?}, {expected:?}");
            }
            let answer = stored.snapshot.search_like_document(*document_id, &options).expect("searched");
            let all = stored.nearest(&queries, &others, usize::MAX, usize::MAX);
            let mut expected: Vec<f32> = all.into_iter().flat_map(|group| group.1).collect();
            expected.sort_by(f32::total_cmp);
            let scores: Vec<f32> = answer.results.iter().map(|result| -result.similarity_score).collect();
            assert!(scores.iter().zip(&expected).all(|(a, b)| (a - b).abs() < 1e-4), "{scores:?}, {expected:?}");
        }
        let missing = PostingKey::new(9_999u32, 0, 1);
        let options = SearchOptions::new(3);
        let unknown = [
            stored.snapshot.search_like(missing, &options).expect_err("it is not stored"),
            stored.snapshot.search_like_document(DocumentId(9_999), &options).expect_err("it is not stored"),
        ];
        for (error, name) in unknown.iter().zip(["posting", "document"]) {
            assert!(matches!(error, ShardexError::InvalidArgument { argument, .. } if *argument == name), "{error:?}");
        }
    }
}

#[test]
fn payloads_and_the_explanation_come_with_the_results() {
    let mut rng = ChaCha8Rng::seed_from_u64(9);
    let stored = Stored::new(Metric::L2, documents(2_000, 5, 3, &mut rng));
    block_on(async {
        let mut batch = WriteBatch::new();
        for document in (0..2_000u128).step_by(2) {
            batch.set_payload(document, format!("text {document}"));
        }
        stored.index.write(batch).await?;
        let query = &stored.postings[5].vector;
        let plain = SearchOptions::new(20).recall(0.9);
        let without = stored.index.search_with(query, &plain).await?;
        assert!(without.plan.is_none() && without.results.iter().all(|result| result.payload.is_none()));
        let filter = !Filter::any_tags(2) | Filter::postings([stored.postings[5].key()]);
        let with =
            stored.index.search_with(query, &plain.clone().filter(filter.clone()).with_payload().explain()).await?;
        for result in &with.results {
            let id = result.document_id.0;
            let text = (id % 2 == 0).then(|| format!("text {id}").into_bytes());
            assert_eq!(result.payload, text);
        }
        let plan = with.plan.as_ref().expect("it was asked for");
        let (cells, step) = (plan.cells.expect("it has cells"), plan.filter.as_ref().expect("it has a filter"));
        assert_eq!((cells.cells, cells.codes, cells.distances), (with.cells_scanned, with.scanned, with.computed));
        let passing = stored.index.snapshot().await?.len_of(&filter)?;
        assert_eq!((step.passing, plan.postings), (passing, stored.postings.len() as u64));
        assert_eq!((plan.stopped, plan.shards.is_none(), cells.abandoned), (StopReason::Reached, true, false));
        let text = plan.to_string();
        for part in ["by cells: ", "(!tags(all 0x0, any 0x2, none 0x0) | 1 postings)", "target recall 0.9", "stopped: "]
        {
            assert!(text.contains(part), "{text}");
        }
        let exact = stored.index.search_with(query, &plain.exact().explain()).await?;
        let plan = exact.plan.as_ref().expect("it was asked for");
        let shards = plan.shards.expect("all were compared");
        assert_eq!((plan.cells, shards.distances, shards.shards), (None, exact.computed, exact.shards_scanned));
        assert!(plan.to_string().contains("everything that passes was compared"));
        // Of many queries, each has its own.
        let many = stored.index.search_many(&[query, query], &SearchOptions::new(2).explain().with_payload()).await?;
        assert!(many.iter().all(|answer| answer.plan.is_some()));
        for (options, name) in [
            (SearchOptions::new(5).per_document(0), "per_document"),
            (SearchOptions::new(1_000).per_document(usize::MAX), "per_document"),
        ] {
            let refused = stored.index.search_with(query, &options).await;
            assert!(
                matches!(refused, Err(ShardexError::InvalidArgument { argument, .. }) if argument == name),
                "{refused:?}"
            );
        }
        Ok::<_, ShardexError>(())
    })
    .expect("no error");
}
