//! Part of `shardex bench` that measures how the cost of an add grows with the index.

use std::{path::Path, time::Instant};

use serde_json::{Value, json};
use shardex::{Durability, Metric, OpenOptions, Shardex, ShardexConfig};

use super::{
    Failure,
    bench_data::{SEED, median},
    demo::{DIMENSION, postings},
    output::Output,
};

/// Number of rows of the smallest size, and maximum per batch of the load.
const FIRST: u64 = 10_000;
/// Number of postings added one by one per measurement. In batches of a hundred, a measurement adds 1,000.
const ADDS: u64 = 400;

/// Measures the cost of an add at 10,000 rows, at ten times as many, and so on below `rows`, and at `rows`. The index
/// is loaded in bulk with generated vectors.
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
        // Otherwise the background would build the cells during the measurement.
        index.optimize().await?;
        index.flush().await?;
        // Warm-up: after a flush, the first access to a shard costs more, because it computes the fingerprints of its
        // slots and a new shard state.
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

/// Returns the microseconds per posting of adds in batches of `batch`. Each batch is accepted before the next starts.
async fn each(index: &Shardex, next: &mut u64, batch: u64) -> Result<f64, Failure> {
    let count = ADDS.max(batch * 10) / batch;
    // Generated before the clock starts, so that only the index is measured.
    let batches: Vec<_> = (0..count).map(|n| postings(SEED, *next + n * batch..*next + (n + 1) * batch)).collect();
    *next += count * batch;
    let began = Instant::now();
    for postings in batches {
        index.add_postings(postings).await?;
    }
    Ok(began.elapsed().as_secs_f64() * 1e6 / (count * batch) as f64)
}
