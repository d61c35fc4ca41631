//! The observer of an open index: one function per event of the async API.

use std::{path::Path, sync::Arc, time::Duration};

use super::{
    counters::{Counters, Levels},
    histogram::Histogram,
    trace::{self, Trace},
};
use crate::{
    batch::Written,
    engine::stats::{BackgroundWork, FlushStats, IndexStats},
    env::Clock,
    error::{Result, ShardexError},
};

/// Latencies of an open index, and the way to the program's spans and metrics.
///
/// Any thread may call it, and no call waits. A failed operation has no latency.
pub struct Observer {
    clock: Arc<dyn Clock>,
    /// Directory, which spans and metrics name.
    index: String,
    slow_search: Option<Duration>,
    search: Histogram,
    write: Histogram,
    commit: Histogram,
    flush: Histogram,
    counters: Counters,
}

impl Observer {
    pub fn new(path: &Path, slow_search: Option<Duration>, clock: Arc<dyn Clock>) -> Self {
        let index = path.display().to_string();
        let [search, write, commit, flush] = Default::default();
        let counters = Counters::new(&index);
        Self { clock, index, slow_search, search, write, commit, flush, counters }
    }

    /// Returns the time since 1970 in milliseconds.
    pub fn unix_ms(&self) -> u64 {
        self.clock.unix_ms()
    }

    /// Returns the time since an earlier [`elapsed`](Clock::elapsed). A clock that jumps back gives zero.
    fn since(&self, began: Duration) -> Duration {
        self.clock.elapsed().saturating_sub(began)
    }

    /// Observes an open or a `create`.
    pub fn open<T>(&self, make: impl FnOnce() -> Result<T>) -> Result<T> {
        let began = self.clock.elapsed();
        Trace::open(&self.index).within(make).inspect(|_| self.counters.opened(self.since(began)))
    }

    /// Observes a search for `k` results. Inlined, because its cost is part of each search.
    #[inline]
    pub fn search<T>(&self, k: usize, run: impl FnOnce() -> Result<T>) -> Result<T> {
        let began = self.clock.elapsed();
        let found = run()?;
        let took = self.since(began);
        self.search.record(took);
        let slow = self.slow_search.is_some_and(|limit| took >= limit);
        self.counters.search(took, slow);
        if slow {
            trace::slow_search(&self.index, k, took);
        }
        Ok(found)
    }

    /// Observes a call that writes. `counts` says from its result how many postings were added and removed.
    pub async fn write<T>(
        &self,
        operations: usize,
        call: impl Future<Output = Result<T>>,
        counts: impl FnOnce(&T) -> Written,
    ) -> Result<T> {
        let began = self.clock.elapsed();
        let done = Trace::write(&self.index, operations).around(call).await?;
        let took = self.since(began);
        self.write.record(took);
        self.counters.write(took, &counts(&done));
        Ok(done)
    }

    /// Observes a commit that has something to sync.
    pub fn commit<T>(&self, run: impl FnOnce() -> Result<T>) -> Result<T> {
        let began = self.clock.elapsed();
        Trace::commit(&self.index).within(run).inspect(|_| {
            let took = self.since(began);
            self.commit.record(took);
            self.counters.commit(took);
        })
    }

    /// Observes the begin of a flush. The span lasts until the writer drops it.
    pub fn flush(&self, automatic: bool) -> Trace {
        Trace::flush(&self.index, automatic)
    }

    /// Observes the end of a flush.
    pub fn flushed(&self, stats: &FlushStats) {
        self.flush.record(stats.total_duration);
        self.counters.flush(stats);
    }

    /// Observes a cell build, on the thread that runs it.
    pub fn cell_build<T>(&self, run: impl FnOnce() -> Result<T>) -> Result<T> {
        let began = self.clock.elapsed();
        Trace::cell_build(&self.index).within(run).inspect(|_| self.counters.cell_build(self.since(began)))
    }

    /// Observes an error of background work.
    pub fn background_error(&self, work: BackgroundWork, error: &ShardexError) {
        self.counters.background_error(work);
        trace::background_error(&self.index, work, error);
    }

    /// Observes figures that may have changed.
    pub fn levels(&self, levels: &Levels) {
        self.counters.levels(levels);
    }

    /// Completes the engine's statistics by the latencies, and observes them.
    pub fn complete(&self, stats: &mut IndexStats) {
        stats.search_latency = self.search.stats();
        stats.write_latency = self.write.stats();
        stats.commit_latency = self.commit.stats();
        stats.flush_latency = self.flush.stats();
        self.counters.stats(stats);
    }
}
