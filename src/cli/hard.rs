//! Part of `shardex bench` that measures recall on data that is hard for codes. It measures each index after it grew,
//! after `optimize`, and after all of its rows were replaced several times.

use std::{path::Path, time::Instant};

use rayon::prelude::*;
use serde_json::{Value, json};
use shardex::{DocumentId, Durability, Metric, OpenOptions, Posting, SearchOptions, Shardex, ShardexConfig};

use super::{
    Answer, Failure, Outcome,
    args::Bench,
    block_on,
    kinds::{DataKind, KINDS, Random, World, bounds, near},
    output::Output,
    tally::Tally,
};

/// Numbers of results, each with its number of queries.
const RESULTS: [(usize, usize); 3] = [(1, 2_000), (10, 500), (100, 500)];
const ASKED: [f32; 3] = [0.9, 0.95, 0.99];
const BATCH: usize = 1_000;

/// Measures each named kind of data under each of its metrics, on `args.ids` indexes.
///
/// Answers `Yes` if every state passes [`Tally::does`]. The recall may be 0.01 below the target, and 0.03 below for
/// out-of-distribution queries.
pub(super) fn run(args: &Bench, names: &str, dir: &Path, output: &Output) -> Outcome {
    let wanted: Vec<&str> = names.split(',').map(str::trim).filter(|name| !name.is_empty()).collect();
    if let Some(name) = wanted.iter().find(|name| !KINDS.iter().any(|kind| kind.name == **name)) {
        let known: Vec<&str> = KINDS.iter().map(|kind| kind.name).collect();
        return Err(Failure(format!("no kind of data is {name:?}; there are {}", known.join(", "))));
    }
    let seed = args.seed.unwrap_or_else(|| u64::from(std::process::id()) ^ (began_at() << 20));
    output.say(&format!("seed {seed}; {} turnovers, {} indexes each", args.turns, args.ids));
    let kinds = KINDS.iter().filter(|kind| wanted.is_empty() || wanted.contains(&kind.name));
    let (mut cases, mut failed) = (Vec::new(), 0);
    for &kind in kinds {
        for &metric in kind.metrics {
            for id in 0..args.ids {
                let rows = args.rows.unwrap_or(kind.rows);
                let case = Case { kind, metric, rows, turns: args.turns, seed: seed.wrapping_add(id as u64) };
                let index_dir = dir.join(format!("{}-{metric}-{id}", kind.name.replace(' ', "-")));
                let states = block_on(2, case.states(&index_dir, output))?;
                failed += states.iter().filter(|state| state["reached"] == false).count();
                cases.push(json!({ "kind": kind.name, "metric": metric.to_string(), "rows": rows, "states": states }));
                std::fs::remove_dir_all(&index_dir)?;
            }
        }
    }
    output.say(&format!("{failed} of {} states missed their recall", cases.len() * 3));
    if output.is_json() {
        output.result(&json!({ "seed": seed, "cases": cases, "failed": failed }), "");
    }
    Ok(if failed == 0 { Answer::Yes } else { Answer::No })
}

/// Returns the seconds since 1970.
fn began_at() -> u64 {
    std::time::UNIX_EPOCH.elapsed().map_or(0, |time| time.as_secs())
}

struct Case {
    kind: DataKind,
    metric: Metric,
    rows: usize,
    turns: usize,
    seed: u64,
}

impl Case {
    async fn states(&self, index_dir: &Path, output: &Output) -> Result<Vec<Value>, Failure> {
        let options = OpenOptions::default().durability(Durability::Manual);
        let config =
            ShardexConfig::new(index_dir).vector_size(self.kind.dimension).metric(self.metric).options(options);
        let index = Shardex::create(config).await?;
        let mut world = World::new(self.kind, self.rows, self.seed);
        let mut rows: Vec<Vec<f32>> = (0..self.rows).map(|_| world.row()).collect();
        for (first, some) in rows.chunks(BATCH).enumerate().map(|(i, some)| (i * BATCH, some)) {
            index.add_postings(some.iter().zip(first..).map(|(row, n)| posting(n, row)).collect()).await?;
        }
        let mut states = vec![self.state("grown", &index, &rows, &mut world, output).await?];
        let began = Instant::now();
        index.optimize().await?;
        let took = began.elapsed().as_secs_f64();
        states.push(self.state(&format!("optimised in {took:.1} s"), &index, &rows, &mut world, output).await?);
        let mut order: Vec<usize> = (0..rows.len()).collect();
        let mut rng = Random::new(self.seed);
        for _ in 0..self.turns {
            (1..order.len()).rev().for_each(|i| order.swap(i, rng.below(i + 1)));
            for some in order.chunks(BATCH) {
                some.iter().for_each(|&n| rows[n] = world.row());
                index.add_postings(some.iter().map(|&n| posting(n, &rows[n])).collect()).await?;
            }
        }
        states.push(self.state("turned over", &index, &rows, &mut world, output).await?);
        index.close().await?;
        Ok(states)
    }

    /// Measures one state of an index at each target recall and each number of results.
    async fn state(
        &self,
        name: &str,
        index: &Shardex,
        rows: &[Vec<f32>],
        world: &mut World,
        output: &Output,
    ) -> Result<Value, Failure> {
        let most = RESULTS.iter().map(|&(_, queries)| queries).max().unwrap_or(0);
        let queries: Vec<Vec<f32>> = (0..most).map(|_| world.query()).collect();
        let ks = RESULTS.map(|(k, _)| k);
        let truth: Vec<Vec<f64>> = queries.par_iter().map(|query| bounds(self.metric, query, rows, &ks)).collect();
        let stats = index.stats().await?;
        let mut text = format!(
            "{} by {}, {} rows, {name}: {} cells, {} unindexed postings",
            self.kind.name, self.metric, self.rows, stats.cells, stats.unindexed_postings
        );
        let (mut values, mut all) = (Vec::new(), true);
        for (i, &(k, count)) in RESULTS.iter().enumerate() {
            text.push_str(&format!("\n  k {k:<4}"));
            for target in ASKED {
                let queries = &queries[..count];
                let began = Instant::now();
                let answers = index.search_many(queries, &SearchOptions::new(k).recall(target)).await?;
                let rate = count as f64 / began.elapsed().as_secs_f64();
                let mut tally = Tally::new(k, target);
                for ((query, truth), answer) in queries.iter().zip(&truth).zip(&answers) {
                    let found = answer.results.iter().map(|result| rows[result.document_id.0 as usize].as_slice());
                    tally.add(answer, near(self.metric, query, found, truth[i]), rows.len());
                }
                let (reached, scanned) = (tally.recall(), tally.scanned() / self.rows as f64);
                let does = tally.does(world.is_ordinary());
                all &= does;
                text.push_str(&format!(
                    "  {target}: {reached:.4}{} ({scanned:.2} of the rows scanned, {rate:.0} /s)",
                    if does { "" } else { " MISSED" },
                ));
                values.push(json!({
                    "k": k, "asked": target, "reached": reached, "scanned": scanned, "qps": rate,
                    "flagged": tally.flagged(), "by_vectors": tally.by_vectors(),
                }));
            }
        }
        if name.starts_with("optimised") {
            let most = self.kind.share(self.metric);
            let by = if self.kind.why.is_empty() { String::new() } else { format!(" ({})", self.kind.why) };
            text.push_str(&format!("\n  k 10 at 0.95 after optimize may scan {most:.2} of the rows at most{by}"));
        }
        output.say(&text);
        Ok(json!({ "state": name, "reached": all, "settings": values }))
    }
}

fn posting(n: usize, row: &[f32]) -> Posting {
    Posting { document_id: DocumentId(n as u128), start: 0, length: 1, vector: row.to_vec(), tags: 0 }
}
