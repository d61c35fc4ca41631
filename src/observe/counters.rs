//! Counters, gauges and histograms of `metrics`. Without the feature every function here does nothing.
//!
//! Invariant: the handles are taken once, when the index is opened. Recording looks up no name and allocates nothing.

/// Figures that the writer knows at no cost after each request.
#[cfg_attr(
    all(feature = "internals", not(feature = "metrics")),
    expect(dead_code, reason = "only the feature `metrics` reads them")
)]
pub struct Levels {
    pub(crate) postings: u64,
    pub(crate) wal_bytes: u64,
    pub(crate) undurable_bytes: u64,
}

#[cfg(feature = "metrics")]
mod on {
    use std::time::Duration;

    use metrics::{Counter, Gauge, Histogram, Label, counter, gauge, histogram};

    use super::Levels;
    use crate::{
        batch::Written,
        engine::stats::{BackgroundWork, FlushStats, IndexStats},
    };

    /// Handles of the metrics of one index.
    pub struct Counters {
        open: Histogram,
        search: Histogram,
        slow_searches: Counter,
        write: Histogram,
        commit: Histogram,
        flush: Histogram,
        /// One per stage, in the order of [`FlushStats::stages`].
        flush_stages: [Histogram; 5],
        cell_build: Histogram,
        added: Counter,
        removed: Counter,
        /// Errors of commits, flushes, cell builds, and of giving space back.
        background_errors: [Counter; 4],
        postings: Gauge,
        wal_bytes: Gauge,
        undurable_bytes: Gauge,
        shards: Gauge,
        unindexed: Gauge,
        disk_bytes: Gauge,
        memory_bytes: Gauge,
    }

    impl Counters {
        /// Takes the handles from the recorder that is installed now.
        pub fn new(index: &str) -> Self {
            let of = || vec![Label::new("index", index.to_owned())];
            let with = |name: &'static str, value: &'static str| [of(), vec![Label::new(name, value)]].concat();
            let stage =
                |(name, _): (&'static str, Duration)| histogram!("shardex_flush_stage_seconds", with("stage", name));
            Self {
                open: histogram!("shardex_open_seconds", of()),
                search: histogram!("shardex_search_seconds", of()),
                slow_searches: counter!("shardex_slow_searches_total", of()),
                write: histogram!("shardex_write_seconds", of()),
                commit: histogram!("shardex_commit_seconds", of()),
                flush: histogram!("shardex_flush_seconds", of()),
                flush_stages: FlushStats::default().stages().map(stage),
                cell_build: histogram!("shardex_cell_build_seconds", of()),
                added: counter!("shardex_postings_added_total", of()),
                removed: counter!("shardex_postings_removed_total", of()),
                background_errors: ["commit", "flush", "cells", "space"]
                    .map(|work| counter!("shardex_background_errors_total", with("work", work))),
                postings: gauge!("shardex_postings", of()),
                wal_bytes: gauge!("shardex_wal_bytes", of()),
                undurable_bytes: gauge!("shardex_undurable_bytes", of()),
                shards: gauge!("shardex_shards", of()),
                unindexed: gauge!("shardex_unindexed_postings", of()),
                disk_bytes: gauge!("shardex_disk_bytes", of()),
                memory_bytes: gauge!("shardex_memory_bytes", of()),
            }
        }

        pub fn opened(&self, took: Duration) {
            self.open.record(took);
        }

        pub fn search(&self, took: Duration, slow: bool) {
            self.search.record(took);
            if slow {
                self.slow_searches.increment(1);
            }
        }

        pub fn write(&self, took: Duration, written: &Written) {
            self.write.record(took);
            self.added.increment(written.added);
            self.removed.increment(written.removed);
        }

        pub fn commit(&self, took: Duration) {
            self.commit.record(took);
        }

        pub fn flush(&self, stats: &FlushStats) {
            self.flush.record(stats.total_duration);
            for (stage, (_, took)) in self.flush_stages.iter().zip(stats.stages()) {
                stage.record(took);
            }
        }

        pub fn cell_build(&self, took: Duration) {
            self.cell_build.record(took);
        }

        pub fn background_error(&self, work: BackgroundWork) {
            let counter = match work {
                BackgroundWork::Commit => 0,
                BackgroundWork::Flush => 1,
                BackgroundWork::Cells => 2,
                BackgroundWork::Space => 3,
            };
            self.background_errors[counter].increment(1);
        }

        pub fn levels(&self, levels: &Levels) {
            self.postings.set(levels.postings as f64);
            self.wal_bytes.set(levels.wal_bytes as f64);
            self.undurable_bytes.set(levels.undurable_bytes as f64);
        }

        pub fn stats(&self, stats: &IndexStats) {
            self.shards.set(stats.total_shards as f64);
            self.unindexed.set(stats.unindexed_postings as f64);
            self.disk_bytes.set(stats.disk_bytes as f64);
            self.memory_bytes.set(stats.memory_usage as f64);
        }
    }
}

#[cfg(not(feature = "metrics"))]
mod off {
    use std::time::Duration;

    use super::Levels;
    use crate::{
        batch::Written,
        engine::stats::{BackgroundWork, FlushStats, IndexStats},
    };

    /// Metrics that no recorder sees.
    pub struct Counters;

    impl Counters {
        pub fn new(_: &str) -> Self {
            Self
        }

        pub fn opened(&self, _: Duration) {}

        pub fn search(&self, _: Duration, _: bool) {}

        pub fn write(&self, _: Duration, _: &Written) {}

        pub fn commit(&self, _: Duration) {}

        pub fn flush(&self, _: &FlushStats) {}

        pub fn cell_build(&self, _: Duration) {}

        pub fn background_error(&self, _: BackgroundWork) {}

        pub fn levels(&self, _: &Levels) {}

        pub fn stats(&self, _: &IndexStats) {}
    }
}

#[cfg(not(feature = "metrics"))]
pub use off::Counters;
#[cfg(feature = "metrics")]
pub use on::Counters;
