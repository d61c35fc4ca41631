//! `shardex remove`, `flush`, `stats` and `check`.

use std::ops::Range;

use serde_json::json;
use shardex::{CheckLevel, ConsistencyReport, DocumentId, FlushStats, IndexStats, Shardex, ShardexError};

use super::{
    Answer, Outcome,
    args::{Check, Dir, Remove},
    block_on,
    output::Output,
};

/// Documents per removal.
const BATCH: u128 = 10_000;

pub(super) fn remove(args: &Remove, output: &Output) -> Outcome {
    block_on(1, async {
        let index = Shardex::open(&args.dir).await?;
        let mut removed = 0;
        let mut at = args.ids.start;
        while at < args.ids.end {
            let batch: Range<u128> = at..args.ids.end.min(at.saturating_add(BATCH));
            at = batch.end;
            removed += index.remove_documents(batch.map(DocumentId).collect()).await?;
        }
        index.commit().await?;
        let left = index.stats().await?.total_postings;
        index.close().await?;
        output.result(
            &json!({ "removed_postings": removed, "total_postings": left }),
            &format!("{removed} postings removed, {left} left"),
        );
        Ok(Answer::Yes)
    })
}

pub(super) fn flush(args: &Dir, output: &Output) -> Outcome {
    block_on(1, async {
        let index = Shardex::open(&args.dir).await?;
        let stats = index.flush().await?;
        // An open after a crash has flushed already: that is the flush to tell of.
        let now = index.stats().await?;
        let told = match now.last_flush {
            Some(last) if stats == FlushStats::default() => last,
            _ => stats,
        };
        index.close().await?;
        let text = match told.barriers {
            0 => format!("nothing to flush: root {}, checkpoint LSN {}", now.generation, now.checkpoint_lsn),
            _ => told.to_string(),
        };
        output.result(&flush_object(&told), &text);
        Ok(Answer::Yes)
    })
}

/// A flush as JSON; times in milliseconds.
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
        "places_freed": stats.places_freed,
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
        "pending_operations": stats.pending_operations,
        "memory_usage": stats.memory_usage,
        "disk_bytes": stats.disk_bytes,
        "free_bytes": stats.free_bytes,
        "held_bytes": stats.held_bytes,
        "held_by_readers_bytes": stats.held_by_readers_bytes,
        "wal_bytes": stats.wal_bytes,
        "wal_segments": stats.wal_segments,
        "last_lsn": stats.last_lsn.0,
        "durable_lsn": stats.durable_lsn.0,
        "checkpoint_lsn": stats.checkpoint_lsn.0,
        "generation": stats.generation.0,
        "max_drift": stats.max_drift,
        "recovered": stats.recovery.crashed,
        "records_replayed": stats.recovery.records_replayed,
        "open_ms": stats.recovery.duration.as_secs_f64() * 1e3,
    })
}

fn stats_text(stats: &IndexStats) -> String {
    format!(
        "{} postings of {} numbers, {}; {} removed and not yet freed\n\
         {} shards of at most {} (largest {}), {} splits and {} merges so far, drift at most {:.2}\n\
         {} bytes on disk ({} free, {} held back), {} in memory\n\
         root {}, checkpoint LSN {}, durable LSN {}, {} bytes of WAL to replay",
        stats.total_postings,
        stats.dimension,
        stats.metric,
        stats.removed_postings,
        stats.total_shards,
        stats.shard_size,
        stats.largest_shard,
        stats.splits,
        stats.merges,
        stats.max_drift,
        stats.disk_bytes,
        stats.free_bytes,
        stats.held_bytes,
        stats.memory_usage,
        stats.generation,
        stats.checkpoint_lsn,
        stats.durable_lsn,
        stats.wal_bytes,
    )
}

pub(super) fn check(args: &Check, output: &Output) -> Outcome {
    block_on(1, async {
        let (mut findings, report) = match Shardex::open(&args.dir).await {
            Ok(index) => {
                let recovery = index.stats().await?.recovery;
                let level = if args.full { CheckLevel::Full } else { CheckLevel::Quick };
                let report = index.check(level).await?;
                index.close().await?;
                let mended = recovery.root_fallback.then(|| "a root was damaged; the open mended it".to_owned());
                (mended.into_iter().collect::<Vec<_>>(), report)
            }
            // Damage that stops the open is a finding too.
            Err(damage @ (ShardexError::Corruption { .. } | ShardexError::NotAnIndex { .. })) => {
                (vec![damage.to_string()], ConsistencyReport::default())
            }
            Err(error) => return Err(error.into()),
        };
        let mut text = report.to_string();
        findings.iter().for_each(|finding| text.push_str(&format!("\n  {finding}")));
        findings.extend(report.findings.iter().map(ToString::to_string));
        let clean = findings.is_empty();
        output.result(
            &json!({
                "clean": clean,
                "shards_checked": report.shards_checked,
                "postings_checked": report.postings_checked,
                "bytes_read": report.bytes_read,
                "findings": findings,
            }),
            &text,
        );
        Ok(if clean { Answer::Yes } else { Answer::No })
    })
}
