//! Part of `shardex bench` that measures recall repeatedly while an index grows from empty.

use std::{path::Path, time::Instant};

use rayon::prelude::*;
use serde_json::{Value, json};
use shardex::{Durability, OpenOptions, SearchOptions, Shardex};

use super::{
    Answer, Failure, Outcome,
    bench_data::{Data, batch},
    block_on,
    kinds::{distances, near},
    output::Output,
    tally::Tally,
};

const BATCH: usize = 1_000;
/// Number of rows between two measurements.
const EVERY: usize = 5_000;
/// Number of halvings of the final row count at which a second index of the same rows is measured, besides the final
/// count.
const BESIDE: u32 = 3;
const RESULTS: [usize; 3] = [1, 10, 100];
const ASKED: f32 = 0.95;
/// Largest accepted shortfall from the target recall.
const LESS: f64 = 0.01;

/// Measures recall and search rate every 5,000 rows.
///
/// At the final row count, and at a half, a quarter and an eighth of it if these are measured, it also measures a
/// second index of the same rows after `optimize`. Answers `No` if a recall of the growing index is more than 0.01
/// below the target.
pub(super) fn run(data: &Data, dir: &Path, output: &Output) -> Outcome {
    block_on(2, async {
        let options = OpenOptions::default().durability(Durability::Manual).stats_file(true);
        let index = Shardex::create(data.config(&dir.join("growing"), options.clone())).await?;
        output.say(&format!(
            "an index that grows in batches of {BATCH}, searched at recall {ASKED} by {} queries: recall, and searches a second on one thread",
            data.queries.len()
        ));
        let mut truth = vec![Vec::new(); data.queries.len()];
        let (mut values, mut worst) = (Vec::new(), f64::INFINITY);
        let mut known = 0;
        for (i, rows) in data.rows.chunks(BATCH).enumerate() {
            index.add_postings(batch(rows, (i * BATCH) as u128)).await?;
            let count = i * BATCH + rows.len();
            if !count.is_multiple_of(EVERY) && count != data.rows.len() {
                continue;
            }
            truth = nearer(data, known..count, truth);
            known = count;
            let (grown, text) = measured(&index, data, &truth, count).await?;
            worst = worst.min(grown["worst"].as_f64().unwrap_or(0.0));
            let stats = index.stats().await?;
            let mut line = format!("  {count:>8} rows, {:>7} unindexed {text}", stats.unindexed_postings);
            let mut value = json!({ "rows": count, "unindexed": stats.unindexed_postings, "grown": grown });
            if (0..=BESIDE).any(|doublings| count == data.rows.len() >> doublings) {
                let beside_dir = dir.join("beside");
                let beside = Shardex::create(data.config(&beside_dir, options.clone())).await?;
                for (i, rows) in data.rows[..count].chunks(25 * BATCH).enumerate() {
                    beside.add_postings(batch(rows, (i * 25 * BATCH) as u128)).await?;
                }
                beside.optimize().await?;
                let (optimised, text) = measured(&beside, data, &truth, count).await?;
                beside.close().await?;
                std::fs::remove_dir_all(&beside_dir)?;
                line.push_str(&format!("\n  {:>8} after optimize             {text}", ""));
                value["optimised"] = optimised;
            }
            output.say(&line);
            values.push(value);
        }
        index.close().await?;
        output.say(&format!("the least of them: {worst:.4}"));
        if output.is_json() {
            output.result(&json!({ "asked": ASKED, "worst": worst, "sizes": values }), "");
        }
        Ok(if worst >= f64::from(ASKED) - LESS { Answer::Yes } else { Answer::No })
    })
}

/// Merges the distances of the rows `more` into the known smallest distances of each query, and keeps the smallest 100,
/// ascending.
fn nearer(data: &Data, more: std::ops::Range<usize>, known: Vec<Vec<f64>>) -> Vec<Vec<f64>> {
    let most = RESULTS[RESULTS.len() - 1];
    let with_more = |(query, mut all): (&Vec<f32>, Vec<f64>)| {
        all.extend(distances(data.metric, query, &data.rows[more.clone()]));
        all.sort_by(f64::total_cmp);
        all.truncate(most);
        all
    };
    data.queries.par_iter().zip(known).map(with_more).collect()
}

/// Measures recall, search rate and work for each number of results. The key `worst` is the lowest recall.
async fn measured(index: &Shardex, data: &Data, truth: &[Vec<f64>], rows: usize) -> Result<(Value, String), Failure> {
    let (mut text, mut values, mut worst) = (String::new(), Vec::new(), f64::INFINITY);
    for k in RESULTS {
        let options = SearchOptions::new(k).recall(ASKED);
        let mut answers = Vec::with_capacity(data.queries.len());
        let began = Instant::now();
        for query in &data.queries {
            answers.push(index.search_in_place(query, &options).await?);
        }
        let rate = answers.len() as f64 / began.elapsed().as_secs_f64();
        let mut tally = Tally::new(k, ASKED);
        for ((query, truth), answer) in data.queries.iter().zip(truth).zip(&answers) {
            let found = answer.iter().map(|hit| data.rows[hit.document_id.0 as usize].as_slice());
            let near = near(data.metric, query, found, truth[k.min(truth.len()) - 1]);
            tally.add(&answer.to_response(), near, rows);
        }
        worst = worst.min(tally.recall());
        text.push_str(&format!("   k {k}: {:.4} at {rate:>6.0} /s", tally.recall()));
        values.push(json!({
            "k": k, "recall": tally.recall(), "qps": rate, "scanned": tally.scanned(), "computed": tally.computed(),
            "flagged": tally.flagged(),
        }));
    }
    Ok((json!({ "worst": worst, "results": values }), text))
}
