//! Commands `shardex remove`, `flush`, `optimize`, `compact`, `purge` and `stats`.

use std::time::{Duration, Instant};

use serde_json::json;
use shardex::{DocumentId, FlushStats, IndexStats, ReachedRecall, RecallMeasurement, Shardex, ShardexError};

use super::{
    Answer, Failure, Outcome,
    args::{Dir, Remove},
    block_on,
    interrupt::Interrupt,
    output::{Output, command},
};

/// Time that `purge` waits for readers.
const WAIT_FOR_READERS: Duration = Duration::from_secs(60);

pub(super) fn remove(args: &Remove, output: &Output) -> Outcome {
    let interrupt = Interrupt::listen()?;
    block_on(1, async {
        let index = Shardex::open(&args.dir).await?;
        let (mut removed, mut at) = (0, args.ids.start);
        let done = remove_all(&index, args, &interrupt, &mut removed, &mut at).await;
        let total_postings = index.stats().await?.total_postings;
        // Closes the index also after an error, so that the removals before it are durable.
        index.close().await?;
        let ids = format!("{at}..{}", args.ids.end);
        let go_on = command(&["remove".as_ref(), args.dir.as_ref(), "--ids".as_ref(), ids.as_ref()]);
        let before = format!("the documents before {at} are removed: continue with `{go_on}`");
        if let Err(Failure(line)) = done {
            return Err(Failure(if at > args.ids.start { format!("{line}; {before}") } else { line }));
        }
        let mut object = json!({ "removed_postings": removed, "total_postings": total_postings });
        let mut text = format!("{removed} postings removed, {total_postings} left");
        let stopped = interrupt.code().filter(|_| at < args.ids.end);
        if stopped.is_some() {
            object["go_on"] = go_on.into();
            text.push_str(&format!("\ninterrupted; {before}"));
        }
        output.result(&object, &text);
        Ok(stopped.map_or(Answer::Yes, Answer::Stopped))
    })
}

/// Removes the documents of `args.ids`. A range too large for one batch is removed in parts.
///
/// Stops at the end of the range, at the first signal or at an error. Adds the number of removed postings to `removed`.
/// Sets `at` to the first document not yet removed. Commits unless a removal failed.
async fn remove_all(
    index: &Shardex,
    args: &Remove,
    interrupt: &Interrupt,
    removed: &mut u64,
    at: &mut u128,
) -> Result<(), Failure> {
    let mut end = args.ids.end;
    while *at < args.ids.end && interrupt.code().is_none() {
        match index.remove_document_range(DocumentId(*at)..=DocumentId(end - 1)).await {
            Ok(found) => {
                *removed += found;
                (*at, end) = (end, args.ids.end);
            }
            Err(ShardexError::BatchTooLarge { .. }) if end - *at > 1 => end = *at + (end - *at) / 2,
            Err(error) => return Err(error.into()),
        }
    }
    Ok(index.commit().await?)
}

pub(super) fn flush(args: &Dir, output: &Output) -> Outcome {
    block_on(1, async {
        let index = Shardex::open(&args.dir).await?;
        let stats = index.flush().await?;
        // An open after a crash flushes. This flush then finds nothing to do, so the report is of the open's flush.
        let now = index.stats().await?;
        let told = match now.last_flush {
            Some(last) if stats.barriers == 0 => last,
            _ => stats,
        };
        index.close().await?;
        let text = match told.barriers {
            0 => format!("nothing to flush: root {}, checkpoint LSN {}", told.generation, told.checkpoint_lsn),
            _ => told.to_string(),
        };
        output.result(&flush_object(&told), &text);
        Ok(Answer::Yes)
    })
}

pub(super) fn optimize(args: &Dir, output: &Output) -> Outcome {
    block_on(1, async {
        let index = Shardex::open(&args.dir).await?;
        let began = Instant::now();
        index.optimize().await?;
        let seconds = began.elapsed().as_secs_f64();
        let flushed = index.flush().await?;
        let stats = index.stats().await?;
        index.close().await?;
        let object = json!({
            "optimize_seconds": seconds,
            "cells": stats.cells,
            "total_postings": stats.total_postings,
            "last_flush": flush_object(&flushed),
        });
        let text = format!("{} cells of {} postings in {seconds:.2} s", stats.cells, stats.total_postings);
        output.result(&object, &text);
        Ok(Answer::Yes)
    })
}

pub(super) fn compact(args: &Dir, output: &Output) -> Outcome {
    block_on(1, async {
        let index = Shardex::open(&args.dir).await?;
        let began = Instant::now();
        let compacted = index.compact().await?;
        let seconds = began.elapsed().as_secs_f64();
        let stats = index.stats().await?;
        index.close().await?;
        let object = json!({
            "compact_seconds": seconds,
            "rewritten_bytes": compacted.rewritten_bytes,
            "disk_bytes_before": compacted.disk_bytes_before,
            "disk_bytes": compacted.disk_bytes_after,
            "removed_postings": stats.removed_postings,
            "total_postings": stats.total_postings,
        });
        let text = format!(
            "{} bytes on disk instead of {}, {} bytes of postings rewritten, in {seconds:.2} s",
            compacted.disk_bytes_after, compacted.disk_bytes_before, compacted.rewritten_bytes
        );
        output.result(&object, &text);
        Ok(Answer::Yes)
    })
}

pub(super) fn purge(args: &Dir, output: &Output) -> Outcome {
    block_on(1, async {
        let index = Shardex::open(&args.dir).await?;
        let began = Instant::now();
        // Only background work of this process reads the index.
        let purged = index.purge(WAIT_FOR_READERS).await?;
        let seconds = began.elapsed().as_secs_f64();
        let stats = index.stats().await?;
        index.close().await?;
        let object = json!({
            "purge_seconds": seconds,
            "lsn": purged.lsn.0,
            "rewritten_bytes": purged.rewritten_bytes,
            "moved_payloads": purged.moved_payloads,
            "wiped_bytes": purged.wiped_bytes,
            "disk_bytes": stats.disk_bytes,
            "total_postings": stats.total_postings,
        });
        let text = format!(
            "removed postings and payloads are erased: {} bytes of postings and {} payloads rewritten, {} bytes wiped, in \
             {seconds:.2} s",
            purged.rewritten_bytes, purged.moved_payloads, purged.wiped_bytes
        );
        output.result(&object, &text);
        Ok(Answer::Yes)
    })
}

/// Returns the statistics of a flush as JSON, with times in milliseconds.
pub(super) fn flush_object(stats: &FlushStats) -> serde_json::Value {
    let ms = |time: std::time::Duration| time.as_secs_f64() * 1e3;
    json!({
        "total_ms": ms(stats.total_duration),
        "wal_flush_ms": ms(stats.wal_flush_duration),
        "shard_apply_ms": ms(stats.shard_apply_duration),
        "shard_sync_ms": ms(stats.shard_sync_duration),
        "index_sync_ms": ms(stats.index_sync_duration),
        "validation_ms": ms(stats.validation_duration),
        "slowest_stage": stats.slowest_stage(),
        "shards_synced": stats.shards_synced,
        "operations_applied": stats.operations_applied,
        "bytes_synced": stats.bytes_synced,
        "barriers": stats.barriers,
        "allocations_freed": stats.allocations_freed,
        "segments_recycled": stats.segments_recycled,
        "checkpoint_lsn": stats.checkpoint_lsn.0,
        "generation": stats.generation.0,
    })
}

pub(super) fn stats(args: &Dir, output: &Output) -> Outcome {
    block_on(1, async {
        let index = Shardex::open(&args.dir).await?;
        let stats = index.stats().await?;
        index.close().await?;
        output.result(&stats_object(&stats), &stats_text(&stats));
        Ok(Answer::Yes)
    })
}

fn stats_object(stats: &IndexStats) -> serde_json::Value {
    json!({
        "total_postings": stats.total_postings,
        "removed_postings": stats.removed_postings,
        "shards": stats.total_shards,
        "largest_shard": stats.largest_shard,
        "shard_size": stats.shard_size,
        "splits": stats.splits,
        "merges": stats.merges,
        "dimension": stats.dimension,
        "metric": stats.metric.to_string(),
        "encoding": stats.encoding.to_string(),
        "pending_operations": stats.pending_operations,
        "memory_usage": stats.memory_usage,
        "disk_bytes": stats.disk_bytes,
        "free_bytes": stats.free_bytes,
        "reclaimable_bytes": stats.reclaimable_bytes,
        "held_bytes": stats.held_bytes,
        "held_by_readers_bytes": stats.held_by_readers_bytes,
        "wal_bytes": stats.wal_bytes,
        "wal_segments": stats.wal_segments,
        "last_lsn": stats.last_lsn.0,
        "durable_lsn": stats.durable_lsn.0,
        "checkpoint_lsn": stats.checkpoint_lsn.0,
        "generation": stats.generation.0,
        "cells": stats.cells,
        "unindexed_postings": stats.unindexed_postings,
        "recall": stats.recall.as_ref().map(recall_object),
        "max_drift": stats.max_drift,
        "recovered": stats.recovery.crashed,
        "records_replayed": stats.recovery.records_replayed,
        "read_only": stats.read_only,
        "open_ms": stats.recovery.duration.as_secs_f64() * 1e3,
    })
}

fn stats_text(stats: &IndexStats) -> String {
    let mut text = format!(
        "{} postings of {} numbers in {}, {}; {} removed and not yet freed\n\
         {} shards of at most {} (largest {}), {} splits and {} merges so far, drift at most {:.2}\n\
         {} cells; {} unindexed postings\n\
         {}\n\
         {} bytes on disk ({} reclaimable), {} in memory; {} free and {} held back in the data file\n\
         root {}, checkpoint LSN {}, durable LSN {}, {} bytes of WAL to replay",
        stats.total_postings,
        stats.dimension,
        stats.encoding,
        stats.metric,
        stats.removed_postings,
        stats.total_shards,
        stats.shard_size,
        stats.largest_shard,
        stats.splits,
        stats.merges,
        stats.max_drift,
        stats.cells,
        stats.unindexed_postings,
        recall_text(stats),
        stats.disk_bytes,
        stats.reclaimable_bytes,
        stats.memory_usage,
        stats.free_bytes,
        stats.held_bytes,
        stats.generation,
        stats.checkpoint_lsn,
        stats.durable_lsn,
        stats.wal_bytes,
    );
    if let Some(why) = read_only(stats) {
        text.push_str(&format!("\n{why}"));
    }
    text
}

/// Returns the measured recall as JSON.
pub(super) fn recall_object(proof: &RecallMeasurement) -> serde_json::Value {
    let line = |of: &ReachedRecall| json!({ "k": of.k, "asked": of.target, "reached": of.reached, "everything": of.everything });
    json!({
        "lsn": proof.lsn.0,
        "postings": proof.postings,
        "moved": proof.moved,
        "reached": proof.reached.iter().map(line).collect::<Vec<_>>(),
    })
}

/// Returns the measured recall as text, for target recall 0.95 and 1, 10 and 100 results.
pub(super) fn recall_text(stats: &IndexStats) -> String {
    let Some(proof) = &stats.recall else { return "searches are exhaustive".to_owned() };
    let of = |k: usize| {
        let line = proof.reached.iter().find(|line| line.k == k && line.target == 0.95);
        line.map_or(format!("k {k} not tried yet"), |line| {
            if line.everything { format!("k {k} by every vector") } else { format!("k {k} {:.3}", line.reached) }
        })
    };
    let reached: Vec<String> = [1, 10, 100].map(of).into();
    format!(
        "recall where 0.95 is asked: {} (measured at LSN {} of {} postings; {} moved since)",
        reached.join(", "),
        proof.lsn,
        proof.postings,
        proof.moved,
    )
}

/// Returns the warning for an index that is read-only because its open could not recover it. Returns `None` if the
/// index is writable.
pub(super) fn read_only(stats: &IndexStats) -> Option<String> {
    let why = stats.read_only.as_ref()?;
    Some(format!("read-only: searches may miss writes that are only in the WAL until an open finds space: {why}"))
}
