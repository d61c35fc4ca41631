//! Part of `shardex bench` that compares an index loaded at once with an index that grew and changed.

use std::{path::Path, time::Instant};

use serde_json::{Value, json};
use shardex::{DocumentId, Durability, OpenOptions, SearchOptions, Shardex};

use super::{
    Failure,
    bench_data::{Data, K, RECALLS, SEED, batch, median, open, posting, truth},
    search::{ask_all, recall},
};

/// Number of postings per batch of the index loaded at once, and of the index that grows.
const AT_ONCE: usize = 25_000;
const FEW: usize = 1_000;

/// Compares recall and search rate of two indexes of the same rows.
///
/// One index is loaded at once, and its cells are built by `optimize`. The other gets the rows in batches in random
/// order. Then a tenth of the rows are removed and added again. It is measured with the cells it built in the
/// background, and again after `optimize`.
pub(super) async fn changed(data: &Data, dir: &Path, rounds: usize) -> Result<(Value, String), Failure> {
    let options = OpenOptions::default().durability(Durability::Manual);
    let bulk = dir.join("bulk");
    let index = Shardex::create(data.config(&bulk, options.clone())).await?;
    for (i, rows) in data.rows.chunks(AT_ONCE).enumerate() {
        index.add_postings(batch(rows, (i * AT_ONCE) as u128)).await?;
    }
    index.optimize().await?;
    index.close().await?;

    let grown = dir.join("grown");
    let index = Shardex::create(data.config(&grown, options)).await?;
    let mut order: Vec<usize> = (0..data.rows.len()).collect();
    shuffle(&mut order);
    for some in order.chunks(FEW) {
        index.add_postings(some.iter().map(|&row| posting(&data.rows[row], row as u128)).collect()).await?;
    }
    shuffle(&mut order);
    for some in order[..order.len() / 10].chunks(FEW) {
        index.remove_documents(some.iter().map(|&row| DocumentId(row as u128)).collect()).await?;
        index.add_postings(some.iter().map(|&row| posting(&data.rows[row], row as u128)).collect()).await?;
    }
    // The close cancels a cell build and keeps its progress. The next open resumes it beside the measured searches, as in
    // a program.
    index.close().await?;

    let index = open(&bulk, OpenOptions::default()).await?;
    let truth = truth(data, &index).await?;
    index.close().await?;
    let index = open(&grown, OpenOptions::default()).await?;
    let stats = index.stats().await?;
    index.close().await?;
    let dirs = [bulk.as_path(), grown.as_path()];
    let as_it_is = curves(data, &truth, dirs, rounds).await?;
    let index = open(&grown, OpenOptions::default()).await?;
    index.optimize().await?;
    index.close().await?;
    let with_new_cells = curves(data, &truth, dirs, rounds).await?;

    let mut text = format!(
        "{} rows in random order, a tenth of them removed and put back: {} shards, {} unindexed postings",
        data.rows.len(),
        stats.total_shards,
        stats.unindexed_postings
    );
    let mut values = Vec::new();
    for (name, curves) in [("as it is", as_it_is), ("after optimize", with_new_cells)] {
        compare(name, curves, &mut text, &mut values);
    }
    let object =
        json!({ "shards": stats.total_shards, "unindexed_postings": stats.unindexed_postings, "settings": values });
    Ok((object, text))
}

/// Appends the lines and JSON values that compare the index loaded at once with the index that grew, one per target
/// recall.
fn compare(name: &str, [bulk, grown]: [Vec<(f64, f64)>; 2], text: &mut String, values: &mut Vec<Value>) {
    for ((target, at_once), reached) in RECALLS.iter().zip(&bulk).zip(&grown) {
        let same = at_rate(&grown, at_once.1);
        text.push_str(&format!(
            "\n  {name:<14} {target:<4} asked: {:.4} at {:>6.0} /s; loaded at once {:.4} at {:>6.0} /s{}",
            reached.0,
            reached.1,
            at_once.0,
            at_once.1,
            same.map_or(String::new(), |same| format!(", where this one has {same:.4}")),
        ));
        values.push(json!({
            "cells": name, "asked": target, "recall": reached.0, "qps": reached.1,
            "bulk_recall": at_once.0, "bulk_qps": at_once.1, "recall_at_bulk_qps": same,
        }));
    }
}

/// Returns the recall of a curve of (recall, queries per second) at the rate `qps`. The recall is interpolated between
/// two neighbouring points, on a logarithmic scale of the rate. Returns `None` outside the curve.
fn at_rate(curve: &[(f64, f64)], qps: f64) -> Option<f64> {
    curve.windows(2).find_map(|pair| {
        let [(low, fast), (high, slow)] = [pair[0], pair[1]];
        let part = (fast / qps).ln() / (fast / slow).ln();
        (slow < fast && (0.0..=1.0).contains(&part)).then_some(low + (high - low) * part)
    })
}

/// Measures two indexes. For each it returns recall and search rate at each target recall. The indexes take turns in
/// each round; the rate is the median over rounds.
async fn curves(
    data: &Data,
    truth: &[Vec<i64>],
    dirs: [&Path; 2],
    rounds: usize,
) -> Result<[Vec<(f64, f64)>; 2], Failure> {
    let mut points = [vec![(0.0, Vec::new()); RECALLS.len()], vec![(0.0, Vec::new()); RECALLS.len()]];
    for _ in 0..rounds {
        for (dir, points) in dirs.iter().zip(&mut points) {
            let index = open(dir, OpenOptions::default()).await?;
            index.snapshot().await?.warm()?;
            for (target, (reached, rates)) in RECALLS.iter().zip(points) {
                let options = SearchOptions::new(K).recall(*target);
                let began = Instant::now();
                let found = ask_all(&index, data.queries.clone(), &options, 1).await?;
                rates.push(found.len() as f64 / began.elapsed().as_secs_f64());
                *reached = recall(&found, truth, K);
            }
            index.close().await?;
        }
    }
    Ok(points.map(|points| points.into_iter().map(|(reached, rates)| (reached, median(rates))).collect()))
}

/// Shuffles rows in a pseudorandom order that is the same in every run.
fn shuffle(rows: &mut [usize]) {
    let mut state = SEED | 1;
    for i in (1..rows.len()).rev() {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        rows.swap(i, (state >> 33) as usize % (i + 1));
    }
}
