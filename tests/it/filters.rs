//! Filters: results are the nearest of what passes, at every selectivity, against brute force over a model.

use std::{
    cell::Cell,
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use rand::{RngExt as _, SeedableRng as _, rngs::ChaCha8Rng};
use shardex::{
    DocumentId, Durability, Filter, IndexSnapshot, Metric, OpenOptions, Posting, PostingKey, SearchOptions, Shardex,
    ShardexConfig, ShardexError, StopReason, WriteBatch, env::Env, storage::MmapStorage,
};
use shardex_sim::workload::StoppedClock;
use tempfile::TempDir;

use crate::support::block_on;

const DIMENSION: usize = 16;

fn config(dir: &TempDir, metric: Metric) -> ShardexConfig {
    ShardexConfig::new(dir.path().join("index"))
        .vector_size(DIMENSION)
        .metric(metric)
        .shard_size(64)
        .options(OpenOptions::default().durability(Durability::Manual))
}

/// Clustered vectors: near one of 40 centres.
fn rows(n: usize, rng: &mut ChaCha8Rng) -> Vec<Vec<f32>> {
    let mut draw = |scale: f32| -> Vec<f32> { (0..DIMENSION).map(|_| scale * (rng.random::<f32>() - 0.5)).collect() };
    let centres: Vec<Vec<f32>> = (0..40).map(|_| draw(4.0)).collect();
    (0..n).map(|i| draw(1.0).iter().zip(&centres[i % 40]).map(|(x, c)| x + c).collect()).collect()
}

fn distance(metric: Metric, a: &[f32], b: &[f32]) -> f32 {
    match metric {
        Metric::L2 => a.iter().zip(b).map(|(x, y)| (x - y) * (x - y)).sum(),
        _ => -a.iter().zip(b).map(|(x, y)| x * y).sum::<f32>(),
    }
}

/// Returns the `k` nearest of the rows that pass, nearest first.
fn nearest(metric: Metric, query: &[f32], rows: &[Vec<f32>], passes: &dyn Fn(usize) -> bool, k: usize) -> Vec<usize> {
    let mut near: Vec<(f32, usize)> =
        (0..rows.len()).filter(|&i| passes(i)).map(|i| (distance(metric, query, &rows[i]), i)).collect();
    near.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
    near.into_iter().take(k).map(|(_, i)| i).collect()
}

/// Filter and the rows that pass it.
struct Kind {
    name: String,
    filter: Filter,
    passes: Vec<bool>,
}

/// Returns filters of every kind: sets drawn at random and near or far from a vector, at several shares; tags;
/// predicates; combinations of wide and narrow ones.
fn kinds(metric: Metric, rows: &[Vec<f32>], tags: &[u64], rng: &mut ChaCha8Rng) -> Vec<Kind> {
    let n = rows.len();
    let kind = |name: &str, filter: Filter, passes: &dyn Fn(usize) -> bool| Kind {
        name: name.to_owned(),
        filter,
        passes: (0..n).map(passes).collect(),
    };
    let documents = |set: &BTreeSet<usize>| Filter::documents(set.iter().map(|&i| DocumentId(i as u128)));
    let order = nearest(metric, &rows[3], rows, &|_| true, n);
    let mut kinds = Vec::new();
    for share in [0.0001, 0.001, 0.01, 0.1, 0.5, 0.9] {
        let count = ((n as f64 * share) as usize).max(1);
        let random: BTreeSet<usize> = (0..count).map(|_| rng.random_range(0..n)).collect();
        let near: BTreeSet<usize> = order[..count].iter().copied().collect();
        let far: BTreeSet<usize> = order[n - count..].iter().copied().collect();
        for (name, set) in [("random", &random), ("near", &near), ("far", &far)] {
            kinds.push(kind(&format!("{name} {share}"), documents(set), &|i| set.contains(&i)));
        }
        kinds.push(kind(&format!("all but random {share}"), !documents(&random), &|i| !random.contains(&i)));
    }
    // The rows alternate between the clusters, so the nearest that passes is in another cluster for half of the queries.
    let other_clusters = Filter::matching(|key| key.start % 40 % 2 == 1);
    kinds.push(kind("half the clusters", other_clusters, &|i| i % 40 % 2 == 1));
    kinds.push(kind("all of tags", Filter::all_tags(0b11), &|i| tags[i] & 0b11 == 0b11));
    kinds.push(kind("any of tags", Filter::any_tags(0b110), &|i| tags[i] & 0b110 != 0));
    kinds.push(kind("none of tags", Filter::no_tags(0b101), &|i| tags[i] & 0b101 == 0));
    let odd = |key: PostingKey| key.start % 2 == 1;
    kinds.push(kind("a predicate", Filter::matching(odd), &|i| i % 2 == 1));
    let few: BTreeSet<usize> = (0..n / 50).map(|i| i * 37 % n).collect();
    kinds
        .push(kind("wide and narrow", Filter::no_tags(1) & documents(&few), &|i| tags[i] & 1 == 0 && few.contains(&i)));
    let either = documents(&few) | Filter::all_tags(0b111) | Filter::matching(|key| key.start < 30);
    kinds.push(kind("one of three", either, &|i| few.contains(&i) || tags[i] & 0b111 == 0b111 || i < 30));
    let nested = !(Filter::matching(odd) | !(Filter::any_tags(0b10) & !documents(&few)));
    kinds.push(kind("nested", nested, &|i| i % 2 == 0 && tags[i] & 0b10 != 0 && !few.contains(&i)));
    kinds
}

/// Numbers of results found and of true results, by filter, number of results and target recall in hundredths.
type Reached = BTreeMap<(String, usize, u32), (usize, usize)>;

/// Compares searches by every filter with brute force, and adds up the results that were found.
fn compare(
    snapshot: &IndexSnapshot,
    metric: Metric,
    rows: &[Vec<f32>],
    kinds: &[Kind],
    queries: &[Vec<f32>],
    reached: &mut Reached,
) {
    for Kind { name, filter, passes } in kinds {
        let passing = passes.iter().filter(|&&passes| passes).count();
        assert_eq!(snapshot.len_of(filter).expect("readable"), passing as u64, "{name}");
        for (k, recall) in [(10, None), (10, Some(0.95)), (1, Some(0.9)), (100, Some(0.95)), (10, Some(0.99))] {
            let (mut wanted, mut found) = (0, 0);
            for query in queries {
                let expected = nearest(metric, query, rows, &|i| passes[i], k);
                // A filter that is used often gets rounded copies, which the exact searches have. The others have a new
                // filter each time, so that they are by cells.
                let options = match recall {
                    None => SearchOptions::new(k).exact().filter(filter.clone()),
                    Some(recall) => {
                        SearchOptions::new(k).recall(recall).filter(filter.clone() & !Filter::documents([]))
                    }
                };
                let answer = snapshot.search_with(query, &options).expect("searched");
                let ids: Vec<usize> = answer.results.iter().map(|r| r.document_id.0 as usize).collect();
                assert_eq!(ids.len(), k.min(passing), "{name}: always k results where k pass");
                assert!(ids.iter().all(|&i| passes[i]), "{name}: every result passes");
                assert_eq!(ids.iter().collect::<BTreeSet<_>>().len(), ids.len(), "{name}: each once");
                if recall.is_none() {
                    let of = |i: &usize| distance(metric, query, &rows[*i]);
                    assert_eq!(answer.stopped, StopReason::Everything);
                    let close = ids.iter().map(of).zip(expected.iter().map(of)).all(|(a, b)| (a - b).abs() <= 1e-4);
                    assert!(close, "{name}: {ids:?}, {expected:?}");
                }
                wanted += expected.len();
                found += ids.iter().filter(|i| expected.contains(i)).count();
            }
            if recall.is_none() {
                let options = SearchOptions::new(k).exact().filter(filter.clone()).explain();
                let plan = snapshot.search_with(&queries[0], &options).expect("searched").plan.expect("a plan");
                let rounded = plan.shards.map_or(0, |step| step.rounded);
                assert_eq!(rounded, if passing >= 2 * k { passing } else { 0 }, "{name}: {plan}");
                // A slop bounds the work also where the filter has copies of everything.
                let options = SearchOptions::new(k).slop(1).filter(filter.clone()).explain();
                let answer = snapshot.search_with(&queries[0], &options).expect("searched");
                let plan = answer.plan.expect("a plan");
                let is_bounded = plan.shards.is_none() && answer.scanned < 1_000;
                assert!(passing < rows.len() / 2 || is_bounded, "{name}: {plan}");
            }
            if let Some(recall) = recall {
                let of = reached.entry((name.clone(), k, (recall * 100.0_f32).round() as u32)).or_default();
                *of = (of.0 + found, of.1 + wanted);
            }
        }
    }
}

#[test]
fn the_nearest_of_what_passes_are_found_at_every_selectivity() {
    for metric in [Metric::L2, Metric::Dot] {
        let mut reached = Reached::new();
        for id in 1..=INDEXES {
            searched_by_every_filter(metric, id, &mut reached);
        }
        for ((name, k, recall), (found, wanted)) in reached {
            let (recall, asked) = (found as f64 / wanted.max(1) as f64, f64::from(recall) / 100.0);
            // Standard error of the recall, if the misses are independent.
            let error = (asked * (1.0 - asked) / wanted.max(1) as f64).sqrt();
            assert!(recall >= asked - 2.0 * error, "{metric:?}, {name}: recall {recall} of {asked} for {k}");
        }
    }
}

/// Number of indexes over which recalls are averaged.
const INDEXES: u128 = 3;

/// Creates an index with this id, and searches it by every filter. The id and the clock seed every draw, so each run is the
/// same.
fn searched_by_every_filter(metric: Metric, id: u128, reached: &mut Reached) {
    let dir = TempDir::new().expect("a directory");
    let mut rng = ChaCha8Rng::seed_from_u64(id as u64);
    let rows = rows(12_000, &mut rng);
    let tags: Vec<u64> = (0..rows.len()).map(|_| rng.random_range(0..8)).collect();
    let queries: Vec<Vec<f32>> = (0..60).map(|i| rows[i * 101].iter().map(|x| x + 0.05).collect()).collect();
    block_on(async {
        let (config, env) =
            (config(&dir, metric), Env { new_index_id: id, clock: Arc::new(StoppedClock), ..Env::system() });
        let index = Shardex::create_on(MmapStorage::new(&config.directory_path), config, env).await?;
        let posting = |i: usize| Posting::new(PostingKey::new(i as u128, i as u32, 1), rows[i].clone()).tagged(tags[i]);
        index.add_postings((0..rows.len()).map(posting).collect()).await?;
        index.optimize().await?;
        let kinds = kinds(metric, &rows, &tags, &mut rng);
        compare(&index.snapshot().await?, metric, &rows, &kinds, &queries, reached);
        index.close().await
    })
    .expect("no error");
}

/// Regression: where a filter excludes what is nearest, searches by dot product stopped as if the results were the nearest
/// of all. A recall of 0.99 was asked for, and 0.95 reached.
#[test]
fn the_recall_holds_where_the_cluster_of_the_query_does_not_pass() {
    const WIDTH: usize = 64;
    const CLUSTERS: usize = 40;
    let mut rng = ChaCha8Rng::seed_from_u64(3);
    let mut draw = |scale: f32| -> Vec<f32> {
        let mut component = || (0..4).map(|_| rng.random::<f32>() - 0.5).sum::<f32>();
        (0..WIDTH).map(|_| scale * component()).collect()
    };
    let centres: Vec<Vec<f32>> = (0..CLUSTERS).map(|_| draw(2.0)).collect();
    let mut near =
        |i: usize| -> Vec<f32> { draw(1.0).iter().zip(&centres[i % CLUSTERS]).map(|(x, c)| x + c).collect() };
    let rows: Vec<Vec<f32>> = (0..16_000).map(&mut near).collect();
    let queries: Vec<Vec<f32>> = (0..150).map(&mut near).collect();
    for metric in [Metric::Dot, Metric::L2] {
        let dir = TempDir::new().expect("a directory");
        let env = Env { new_index_id: 5, clock: Arc::new(StoppedClock), ..Env::system() };
        let config = config(&dir, metric).vector_size(WIDTH).shard_size(512);
        block_on(async {
            let index = Shardex::create_on(MmapStorage::new(&config.directory_path), config, env).await?;
            let posting = |i: usize| Posting::new(PostingKey::new(i as u128, i as u32, 1), rows[i].clone());
            index.add_postings((0..rows.len()).map(posting).collect()).await?;
            index.optimize().await?;
            for (recall, others) in [(0.95f64, 1), (0.99, 1), (0.99, 2)] {
                // Of the searches by cells, and of those that compared everything in the end.
                let mut counts = [(0usize, 0u32); 2];
                for (own, query) in queries.iter().enumerate() {
                    // All other clusters, or those of the other parity.
                    let passes = move |i: usize| {
                        (i % CLUSTERS + own % CLUSTERS) % others == others - 1 && i % CLUSTERS != own % CLUSTERS
                    };
                    let filter = Filter::matching(move |key| passes(key.start as usize));
                    let answer =
                        index.search_with(query, &SearchOptions::new(10).recall(recall as f32).filter(filter)).await?;
                    let ids: BTreeSet<usize> = answer.results.iter().map(|r| r.document_id.0 as usize).collect();
                    assert_eq!(ids.len(), 10);
                    let expected = nearest(metric, query, &rows, &passes, 10);
                    let found = expected.iter().filter(|i| ids.contains(i)).count();
                    let count = &mut counts[usize::from(answer.stopped == StopReason::Everything)];
                    *count = (count.0 + found, count.1 + 10);
                }
                let [by_cells, by_comparison] = counts;
                let all = (by_cells.0 + by_comparison.0, by_cells.1 + by_comparison.1);
                for (found, wanted) in [all, by_cells] {
                    // Two standard errors, if the misses are independent.
                    let (found, wanted) = (found as f64, f64::from(wanted));
                    let least = recall * wanted - 2.0 * (recall * (1.0 - recall) * wanted).sqrt();
                    assert!(found >= least, "{metric:?}: {found} of {wanted} at {recall}, 1 of {others} clusters");
                }
            }
            index.close().await
        })
        .expect("no error");
    }
}

/// A filter remembers what passed, and never for too long: after every kind of write it is right again.
#[test]
fn a_filter_that_is_used_again_follows_the_writes() {
    let dir = TempDir::new().expect("a directory");
    let mut rng = ChaCha8Rng::seed_from_u64(4);
    let rows = rows(600, &mut rng);
    let key = |i: usize| PostingKey::new((i / 3) as u128, i as u32, 1);
    block_on(async {
        let index = Shardex::create(config(&dir, Metric::L2)).await?;
        let mut stored: Vec<Option<u64>> = vec![None; rows.len()];
        let tagged = Filter::any_tags(0b10);
        let some = Filter::documents((0..200).filter(|n| n % 4 == 1).map(DocumentId));
        let both = tagged.clone() & !some.clone();
        let few = Filter::documents([DocumentId(7), DocumentId(90)]);
        // Searches by rounded copies: by those of an earlier snapshot, and others.
        let (kept, compared) = (Cell::new(0), Cell::new(0));
        for round in 0..40 {
            let mut batch = WriteBatch::new();
            for _ in 0..if round % 4 == 0 { rng.random_range(1..60) } else { 1 } {
                let i = rng.random_range(0..rows.len());
                match rng.random_range(0..6) {
                    0..=2 => {
                        let tags = rng.random_range(0..4);
                        batch.add(Posting::new(key(i), rows[i].clone()).tagged(tags));
                        stored[i] = Some(tags);
                    }
                    3 => {
                        batch.remove_posting(key(i));
                        stored[i] = None;
                    }
                    4 => {
                        let tags = rng.random_range(0..4);
                        batch.set_tags(key(i), tags);
                        stored[i] = stored[i].map(|_| tags);
                    }
                    _ => {
                        batch.remove_document(key(i).document_id);
                        (0..rows.len()).filter(|j| j / 3 == i / 3).for_each(|j| stored[j] = None);
                    }
                }
            }
            index.write(batch).await?;
            if round == 20 {
                index.flush().await?;
            }
            let snapshot = index.snapshot().await?;
            let has_tag = |i: usize| stored[i].is_some_and(|tags| tags & 0b10 != 0);
            let expect = |filter: &Filter, passes: &dyn Fn(usize) -> bool| {
                let wanted: BTreeSet<u32> =
                    (0..rows.len()).filter(|&i| stored[i].is_some() && passes(i)).map(|i| i as u32).collect();
                let options = SearchOptions::new(1_000).exact().filter(filter.clone());
                let found = snapshot.search_with(&rows[round], &options).expect("searched").results;
                assert_eq!(found.iter().map(|r| r.start).collect::<BTreeSet<_>>(), wanted, "round {round}: {filter:?}");
                assert_eq!(found.len() as u64, snapshot.len_of(filter).expect("readable"));
                // The first of these searches compare vectors, the others rounded copies.
                for query in &rows[round..round + 6] {
                    let expected = nearest(Metric::L2, query, &rows, &|i| wanted.contains(&(i as u32)), 3);
                    let options = SearchOptions::new(3).exact().filter(filter.clone()).explain();
                    let answer = snapshot.search_with(query, &options).expect("searched");
                    let found: Vec<usize> = answer.results.iter().map(|r| r.start as usize).collect();
                    assert_eq!(found, expected, "round {round}: {filter:?}");
                    let rounded = answer.plan.and_then(|plan| plan.shards).map_or(0, |step| step.rounded);
                    let count = if query == &rows[round] { &kept } else { &compared };
                    count.set(count.get() + usize::from(rounded > 0));
                }
            };
            expect(&tagged, &has_tag);
            expect(&some, &|i| i / 3 % 4 == 1);
            expect(&both, &|i| has_tag(i) && i / 3 % 4 != 1);
            expect(&few, &|i| [7, 90].contains(&(i / 3)));
        }
        assert!(kept.get() > 20 && compared.get() > 100, "{kept:?} {compared:?}");
        // The same filters on another index remember nothing of the first.
        let other = TempDir::new().expect("a directory");
        let second = Shardex::create(config(&other, Metric::L2)).await?;
        second.add_postings(vec![Posting::new(key(21), rows[0].clone()).tagged(2)]).await?;
        let snapshot = second.snapshot().await?;
        let lens = [&tagged, &some, &both, &few].map(|filter| snapshot.len_of(filter).expect("readable"));
        assert_eq!(lens, [1, 0, 1, 1]);
        Ok::<_, ShardexError>(())
    })
    .expect("no error");
}

#[test]
fn filters_of_nothing_and_of_everything() {
    let dir = TempDir::new().expect("a directory");
    let mut rng = ChaCha8Rng::seed_from_u64(4);
    let rows = rows(50, &mut rng);
    block_on(async {
        let index = Shardex::create(config(&dir, Metric::Cosine)).await?;
        let posting = |i: usize| Posting::new(PostingKey::new(i as u128, 0, 1), rows[i].clone());
        index.add_postings((0..50).map(posting).collect()).await?;
        let len = async |filter: Filter| {
            let results = index.search_with(&rows[0], &SearchOptions::new(100).filter(filter)).await?.results;
            Ok::<_, ShardexError>(results.len())
        };
        let none = || Filter::documents([]);
        assert_eq!((len(none()).await?, len(!none()).await?), (0, 50));
        assert_eq!((len(Filter::any_tags(0)).await?, len(Filter::all_tags(0)).await?), (0, 50));
        assert_eq!((len(Filter::no_tags(0)).await?, len(Filter::no_tags(u64::MAX)).await?), (50, 50));
        assert_eq!(len(Filter::documents([DocumentId(3), DocumentId(3), DocumentId(u128::MAX)])).await?, 1);
        assert_eq!(len(Filter::matching(|_| true) & none()).await?, 0);
        // Each query has its own filter.
        let queries = &rows[..3];
        let options = [none(), Filter::documents([DocumentId(9)]), !none()];
        let options: Vec<SearchOptions> = options.into_iter().map(|f| SearchOptions::new(5).filter(f)).collect();
        let lens: Vec<usize> =
            index.search_each(queries, &options).await?.iter().map(|answer| answer.results.len()).collect();
        assert_eq!(lens, [0, 1, 5]);
        let refused = index.search_each(queries, &options[..2]).await;
        assert!(matches!(refused, Err(ShardexError::InvalidArgument { argument: "options", .. })), "{refused:?}");
        Ok::<_, ShardexError>(())
    })
    .expect("no error");
}

/// Searches within a radius find all and only what lies within it, and pages of results follow one another.
#[test]
fn radius_and_pages_agree_with_brute_force() {
    for metric in [Metric::L2, Metric::Dot] {
        let dir = TempDir::new().expect("a directory");
        let mut rng = ChaCha8Rng::seed_from_u64(31);
        let rows = rows(6_000, &mut rng);
        block_on(async {
            let index = Shardex::create(config(&dir, metric)).await?;
            let posting =
                |i: usize| Posting::new(PostingKey::new(i as u128, 0, 1), rows[i].clone()).tagged(i as u64 % 2);
            index.add_postings((0..rows.len()).map(posting).collect()).await?;
            index.optimize().await?;
            let (mut wanted, mut found) = (0, 0);
            for query in rows.iter().step_by(101) {
                let all = nearest(metric, query, &rows, &|_| true, rows.len());
                for count in [0, 1, 7, 60] {
                    // Between two neighbours, so that rounding decides nothing.
                    let at = |i: usize| distance(metric, query, &rows[all[i]]);
                    let score = if count == 0 { 1e-3 - at(0) } else { -(at(count - 1) + at(count)) / 2.0 };
                    let options = SearchOptions::new(500).min_score(score);
                    let exact = index.search_with(query, &options.clone().exact()).await?.results;
                    let ids: BTreeSet<usize> = exact.iter().map(|r| r.document_id.0 as usize).collect();
                    assert_eq!(ids, all[..count].iter().copied().collect(), "{count}");
                    let fast = index.search_with(query, &options.recall(0.95)).await?.results;
                    assert!(fast.iter().all(|r| r.similarity_score >= score));
                    wanted += count;
                    found += fast.len();
                }
                let filter = Filter::all_tags(1);
                let options = SearchOptions::new(12).exact().filter(filter);
                let mut wide = options.clone();
                wide.k = 36;
                let whole = index.search_with(query, &wide).await?.results;
                let pages = [0, 12, 24].map(|offset| options.clone().offset(offset));
                let mut paged = Vec::new();
                for page in pages {
                    paged.extend(index.search_with(query, &page).await?.results);
                }
                assert_eq!(paged, whole);
            }
            assert!(found * 100 >= wanted * 94, "{found} of {wanted} within the radius");
            let beyond = index.search_with(&rows[0], &SearchOptions::new(5).offset(6_000)).await?;
            assert!(beyond.results.is_empty());
            for (options, name) in [
                (SearchOptions::new(5).offset(usize::MAX), "offset"),
                (SearchOptions::new(5).offset(999_996), "offset"),
                (SearchOptions::new(5).min_score(f32::NAN), "min_score"),
            ] {
                let refused = index.search_with(&rows[0], &options).await;
                assert!(
                    matches!(refused, Err(ShardexError::InvalidArgument { argument, .. }) if argument == name),
                    "{refused:?}"
                );
            }
            Ok::<_, ShardexError>(())
        })
        .expect("no error");
    }
}

#[test]
fn a_filter_used_on_a_later_snapshot_holds_for_an_earlier_one() {
    let dir = TempDir::new().expect("a directory");
    let rows = rows(1_000, &mut ChaCha8Rng::seed_from_u64(11));
    block_on(async {
        let index = Shardex::create(config(&dir, Metric::L2)).await?;
        let posting = |i: usize| Posting::new(PostingKey::new(i as u128, 0, 1), rows[i].clone());
        index.add_postings((0..rows.len()).map(posting).collect()).await?;
        let earlier = index.snapshot().await?;
        index.remove_documents(vec![DocumentId(5)]).await?;
        let later = index.snapshot().await?;
        let only = Filter::documents([DocumentId(5)]);
        let others = !only.clone();
        assert_eq!((later.len_of(&only)?, later.len_of(&others)?), (0, 999));
        assert_eq!((earlier.len_of(&only)?, earlier.len_of(&others)?), (1, 999));
        let nearest = |filter: &Filter| {
            let options = SearchOptions::new(1).exact().filter(filter.clone());
            earlier.search_with(&rows[5], &options).map(|answer| answer.results[0].document_id)
        };
        assert_eq!(nearest(&only)?, DocumentId(5));
        assert_ne!(nearest(&others)?, DocumentId(5));
        index.close().await
    })
    .expect("no error");
}
