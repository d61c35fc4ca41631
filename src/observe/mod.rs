//! How a program sees an index work: latencies, spans, metrics, and the figures for other processes.
//!
//! # Latencies
//! [`stats`](crate::Shardex::stats) returns the number, quantiles and maximum of the latencies of searches, writes, commits
//! and flushes since the open, as [`LatencyStats`](crate::LatencyStats). They are always measured. Time is that of the
//! [`Clock`](crate::env::Clock) of the environment. A latency is counted in one of 16 buckets per power of two of
//! nanoseconds, and a quantile is the middle of its bucket, so it is off by at most 3.2 % of itself. An operation that
//! fails has no latency. Cost: two readings of the clock and one atomic addition per operation, and 31 KB of memory per
//! open index.
//!
//! # Spans
//! With the feature `tracing` the index has spans and events for subscribers of the crate `tracing`, all with the target
//! `shardex` and, but for stages of a flush, the field `index`, the directory. A failure is in the field `error` of its
//! span.
//!
//! | span | level | covers | fields |
//! |---|---|---|---|
//! | `shardex.open` | info | an open or a `create`, with its recovery | |
//! | `shardex.write` | debug | a call that writes, until its answer | `operations` |
//! | `shardex.commit` | debug | a commit that has something to sync | |
//! | `shardex.flush` | info | a flush, with what happens while it waits for a sync | `automatic`; at the end `checkpoint_lsn`, `operations`, `shards`, `bytes` |
//! | `shardex.flush.stage` | debug | a part of a flush, whose span is the parent | `stage`: `store`, the purpose of a sync, or `continue` after a sync |
//! | `shardex.cell_build` | info | a cell build | |
//!
//! | event | level | fields |
//! |---|---|---|
//! | `shardex.slow_search` | warn | `k`, `seconds`, for a search that takes at least [`slow_search`](crate::OpenOptions::slow_search) |
//! | `shardex.background_error` | warn | `work`, `error` |
//!
//! `shardex.write` and `shardex.slow_search` belong to the span of the caller. The other spans are on threads of the
//! index, where only a global subscriber sees them; so are slow searches of calls with several queries, which run on the
//! thread pool. A flush that a write runs itself, and the flush or commit of a close, have no span of their own.
//!
//! # Metrics
//! With the feature `metrics` the index records into the recorder of the crate `metrics` that is installed when the index is
//! opened. All metrics have the label `index`, the directory.
//!
//! | histogram, in seconds | of |
//! |---|---|
//! | `shardex_open_seconds` | opens and `create`, with recovery |
//! | `shardex_search_seconds` | searches: each query of a call |
//! | `shardex_write_seconds` | calls that write |
//! | `shardex_commit_seconds` | commits that have something to sync |
//! | `shardex_flush_seconds` | flushes |
//! | `shardex_flush_stage_seconds` | stages of flushes, by the label `stage`: see [`FlushStats::stages`](crate::FlushStats::stages) |
//! | `shardex_cell_build_seconds` | cell builds |
//!
//! | counter | of |
//! |---|---|
//! | `shardex_slow_searches_total` | searches that took at least [`slow_search`](crate::OpenOptions::slow_search) |
//! | `shardex_postings_added_total` | postings added by calls since the open, without those that replaced one |
//! | `shardex_postings_removed_total` | postings removed by calls since the open, without those replaced |
//! | `shardex_background_errors_total` | errors of background work, by the label `work`: `commit`, `flush`, `cells`, `space` |
//!
//! A call whose future is dropped is carried out, and counts in no histogram and no counter of postings.
//!
//! | gauge | set | of |
//! |---|---|---|
//! | `shardex_postings` | after each round of the writer | live postings |
//! | `shardex_wal_bytes` | after each round of the writer | WAL that a recovery would replay |
//! | `shardex_undurable_bytes` | after each round of the writer | WAL that is not durable yet |
//! | `shardex_shards` | by `stats` and the stats file | shards in use |
//! | `shardex_unindexed_postings` | by `stats` and the stats file | postings in no cell |
//! | `shardex_disk_bytes` | by `stats` and the stats file | storage that the data, WAL and root files take |
//! | `shardex_memory_bytes` | by `stats` and the stats file | memory for searches and lookups |
//!
//! A round carries out the requests that wait. Gauges keep their last value after a close.
//!
//! # Figures for other processes
//! With the option [`stats_file`](crate::OpenOptions::stats_file) an open index publishes its figures in the file `stats` of
//! its directory, about once per second. `shardex top` shows them, and [`StatsReport`] reads them. The file is text, one
//! figure per line, its name first: FORMAT.md lists the names.

mod counters;
mod histogram;
mod observer;
mod stats_report;
mod trace;

pub use stats_report::StatsReport;
pub(crate) use {
    counters::Levels,
    observer::Observer,
    stats_report::{STATS_FILE_BYTES, StatsContext, encode, figures},
    trace::Trace,
};
