//! `shardex ingest`.

use std::{path::Path, time::Instant};

use serde_json::json;
use shardex::{DocumentId, Durability, FlushStats, OpenOptions, Posting, Shardex, ShardexConfig, ShardexError};

use super::{
    Answer, Failure, Outcome,
    admin::flush_object,
    args::{Ingest, Progress},
    block_on,
    npy::Rows,
    output::{self, Output},
};

pub(super) fn run(args: &Ingest, output: &Output) -> Outcome {
    let mut rows = Rows::open(&args.file)?;
    if args.first_id.checked_add(rows.rows() as u128).is_none() {
        return Err(Failure(format!("--first-id {}: the ids of {} rows do not fit", args.first_id, rows.rows())));
    }
    block_on(1, async {
        let index = open(args, rows.columns()).await?;
        let done = ingest(&index, args, &mut rows, output).await;
        // Closed whatever came of it: what was acknowledged is durable either way.
        let closed = index.close().await;
        done?;
        closed?;
        Ok(Answer::Yes)
    })
}

/// Opens the index, if there is one and it is as the arguments say, or makes it.
async fn open(args: &Ingest, dimension: usize) -> Result<Shardex, Failure> {
    let durability = if args.commit_each { Durability::Manual } else { Durability::Interval };
    let mut options = OpenOptions::default().durability(durability);
    if let Some(bytes) = args.flush_wal_bytes {
        options = options.flush_wal_bytes(bytes);
    }
    match Shardex::open_with(&args.dir, options.clone()).await {
        Ok(index) => {
            let stats = index.stats().await?;
            let differs = |what: &str, stored: &str, given: &str| {
                let dir = args.dir.display();
                Err(Failure(format!(
                    "{dir}: the index has {what} {stored}, not {given}; leave it out or name another index"
                )))
            };
            if stats.dimension != dimension {
                return differs("vectors of", &stats.dimension.to_string(), &dimension.to_string());
            }
            match (args.metric, args.shard_size) {
                (Some(metric), _) if metric != stats.metric => {
                    differs("metric", &stats.metric.to_string(), &metric.to_string())
                }
                (_, Some(size)) if size != stats.shard_size => {
                    differs("shard size", &stats.shard_size.to_string(), &size.to_string())
                }
                _ => Ok(index),
            }
        }
        Err(ShardexError::NotFound { .. }) => Ok(Shardex::create(config(args, dimension, options)).await?),
        Err(error) => Err(error.into()),
    }
}

fn config(args: &Ingest, dimension: usize, options: OpenOptions) -> ShardexConfig {
    let dir: &Path = &args.dir;
    let mut config = ShardexConfig::new(dir).vector_size(dimension).options(options);
    if let Some(metric) = args.metric {
        config = config.metric(metric);
    }
    if let Some(size) = args.shard_size {
        config = config.shard_size(size);
    }
    config
}

async fn ingest(index: &Shardex, args: &Ingest, rows: &mut Rows, output: &Output) -> Result<(), Failure> {
    let plain = args.progress == Progress::Plain;
    let bar = if plain { indicatif::ProgressBar::hidden() } else { output.bar(rows.rows() as u64, "ingesting") };
    let committed = |rows: usize| {
        if plain {
            output::line(&format!("committed {rows}"));
        }
    };
    let before = index.stats().await?;
    let began = Instant::now();
    let (mut done, mut durable) = (0, 0);
    let mut last = FlushStats::default();
    for batch in 1.. {
        let count = args.batch.min(rows.rows() - done);
        if count == 0 {
            break;
        }
        let vectors = rows.vectors(count)?;
        let postings = vectors
            .into_iter()
            .zip(args.first_id + done as u128..)
            .map(|(vector, id)| Posting { document_id: DocumentId(id), start: 0, length: 1, vector })
            .collect();
        index.add_postings(postings).await.map_err(|error| by_row(error, done))?;
        done += count;
        if args.flush_each.is_some_and(|each| batch % each == 0) {
            last = index.flush().await?;
            durable = done;
            committed(done);
        } else if args.commit_each {
            index.commit().await?;
            durable = done;
            committed(done);
        }
        bar.inc(count as u64);
    }
    index.commit().await?;
    if durable < done {
        committed(done);
    }
    bar.finish_and_clear();
    let seconds = began.elapsed().as_secs_f64();
    // What searches scan is made of what is there now, and durable with the flush.
    let optimize_began = Instant::now();
    index.optimize().await?;
    let optimize_seconds = optimize_began.elapsed().as_secs_f64();
    let flush_began = Instant::now();
    let flushed = index.flush().await?;
    // One that found nothing to do says nothing.
    let last = if flushed.barriers > 0 { flushed } else { last };
    let flush_seconds = flush_began.elapsed().as_secs_f64();
    let stats = index.stats().await?;
    let totals = &stats.flush_totals;
    let rate = if seconds > 0.0 { done as f64 / seconds } else { 0.0 };
    let object = json!({
        "vectors": done,
        "seconds": seconds,
        "vectors_per_s": rate,
        "optimize_seconds": optimize_seconds,
        "flush_seconds": flush_seconds,
        "last_flush": flush_object(&last),
        "commits": stats.commits,
        "flushes": stats.flushes,
        "barriers": stats.barriers,
        "bytes_synced": totals.bytes_synced,
        "splits": stats.splits - before.splits,
        "shards": stats.total_shards,
        "total_postings": stats.total_postings,
        "disk_bytes": stats.disk_bytes,
    });
    let text = format!(
        "{done} vectors in {seconds:.2} s ({rate:.0} a second), {} commits, {} flushes; {} shards, {} postings in all\n{last}",
        stats.commits, stats.flushes, stats.total_shards, stats.total_postings
    );
    output.result(&object, &text);
    Ok(())
}

/// The library names an index within the batch; a person wants the row of the file.
fn by_row(error: ShardexError, first_row: usize) -> Failure {
    match error {
        ShardexError::InvalidVector { index, reason } | ShardexError::InvalidPosting { index, reason } => {
            Failure(format!("row {}: {reason}; the rows before its batch are in the index", first_row + index))
        }
        other => other.into(),
    }
}
