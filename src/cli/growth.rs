//! The part of `shardex bench` that shows how the cost of an add grows with the index.

use std::{path::Path, time::Instant};

use serde_json::{Value, json};
use shardex::{Durability, Metric, OpenOptions, Shardex, ShardexConfig};

use super::{
    Failure,
    bench::{SEED, median},
    demo::{DIMENSION, postings},
    output::Output,
};

/// Rows of the first size, and of each batch that an index is loaded by.
const FIRST: u64 = 10_000;
/// Postings that are added one by one at each size, and batches of a hundred.
const ADDS: u64 = 400;

/// What an add costs at 10,000 rows, ten times as many, and so on up to `rows`; loaded in bulk, of made-up vectors.
pub(super) async fn growth(rows: u64, dir: &Path, rounds: usize, output: &Output) -> Result<Value, Failure> {
    let options = OpenOptions::default().durability(Durability::Manual).flush_interval_ms(0);
    let config = ShardexConfig::new(dir.join("growing")).vector_size(DIMENSION).metric(Metric::Cosine).options(options);
    let index = Shardex::create(config).await?;
    let sizes = std::iter::successors(Some(FIRST), |size| size.checked_mul(10)).take_while(|&size| size < rows);
    let sizes: Vec<u64> = sizes.chain([rows]).collect();
    let (mut next, mut values, mut first) = (0, Vec::new(), None);
    output.say("the cost of an add as the index grows");
    for size in sizes {
        while next < size {
            let to = size.min(next + FIRST);
            index.add_postings(postings(SEED, next..to)).await?;
            next = to;
        }
        // Else they would be made beside what is measured.
        index.optimize().await?;
        index.flush().await?;
        // What the first touch of a shard costs after a flush is paid before: the fingerprints of its slots, its new state.
        for _ in 0..index.stats().await?.total_shards.div_ceil(ADDS as usize).max(1) {
            each(&index, &mut next, 100).await?;
        }
        let (mut ones, mut hundreds) = (Vec::new(), Vec::new());
        for _ in 0..rounds {
            ones.push(each(&index, &mut next, 1).await?);
            hundreds.push(each(&index, &mut next, 100).await?);
        }
        let shards = index.stats().await?.total_shards;
        let (one, hundred) = (median(ones), median(hundreds));
        let &mut (one_first, hundred_first) = first.get_or_insert((one, hundred));
        output.say(&format!(
            "  {size:>9} rows, {shards:>6} shards   one by one {one:>8.1} us, {:>5.2} of the first   \
             in hundreds {hundred:>8.1} us, {:>5.2}",
            one / one_first,
            hundred / hundred_first,
        ));
        values.push(json!({ "rows": size, "shards": shards, "one_us": one, "in_hundreds_us": hundred }));
    }
    index.close().await?;
    Ok(json!(values))
}

/// Microseconds that a posting takes in batches of so many, each batch answered before the next.
async fn each(index: &Shardex, next: &mut u64, batch: u64) -> Result<f64, Failure> {
    let count = ADDS.max(batch * 10) / batch;
    // Made before: what is measured is the index.
    let batches: Vec<_> = (0..count).map(|n| postings(SEED, *next + n * batch..*next + (n + 1) * batch)).collect();
    *next += count * batch;
    let began = Instant::now();
    for postings in batches {
        index.add_postings(postings).await?;
    }
    Ok(began.elapsed().as_secs_f64() * 1e6 / (count * batch) as f64)
}
