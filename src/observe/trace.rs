//! Spans and events of `tracing`. Without the feature every function here does nothing.

#[cfg(feature = "tracing")]
mod on {
    use std::time::Duration;

    use tracing::{Instrument as _, Span, debug_span, event, field::Empty, info_span};

    use crate::{
        engine::stats::{BackgroundWork, FlushStats},
        error::{Result, ShardexError},
    };

    /// Span of an operation. It ends when it is dropped.
    pub struct Trace(Span);

    impl Trace {
        pub fn open(index: &str) -> Self {
            Self(info_span!(target: "shardex", "shardex.open", index, error = Empty))
        }

        pub fn write(index: &str, operations: usize) -> Self {
            Self(debug_span!(target: "shardex", "shardex.write", index, operations, error = Empty))
        }

        pub fn commit(index: &str) -> Self {
            Self(debug_span!(target: "shardex", "shardex.commit", index, error = Empty))
        }

        pub fn flush(index: &str, automatic: bool) -> Self {
            let span = info_span!(target: "shardex", "shardex.flush", index, automatic, checkpoint_lsn = Empty,
                operations = Empty, shards = Empty, bytes = Empty, error = Empty);
            Self(span)
        }

        pub fn cell_build(index: &str) -> Self {
            Self(info_span!(target: "shardex", "shardex.cell_build", index, error = Empty))
        }

        /// Returns the span of a stage of this flush.
        pub fn stage(&self, stage: &'static str) -> Self {
            Self(debug_span!(target: "shardex", parent: &self.0, "shardex.flush.stage", stage, error = Empty))
        }

        /// Runs a part of the operation in its span, and notes an error there.
        pub fn within<T>(&self, run: impl FnOnce() -> Result<T>) -> Result<T> {
            self.0.in_scope(run).inspect_err(|error| self.failed(error))
        }

        /// Polls a future in the span, and notes an error there.
        pub async fn around<T>(self, run: impl Future<Output = Result<T>>) -> Result<T> {
            let span = self.0.clone();
            run.instrument(span).await.inspect_err(|error| self.failed(error))
        }

        /// Ends the span, and notes an error there.
        pub fn end<T>(self, done: &Result<T>) {
            done.as_ref().err().iter().for_each(|error| self.failed(error));
        }

        fn failed(&self, error: &ShardexError) {
            self.0.record("error", tracing::field::display(error));
        }

        pub fn flushed(&self, stats: &FlushStats) {
            self.0.record("checkpoint_lsn", stats.checkpoint_lsn.0);
            self.0.record("operations", stats.operations_applied);
            self.0.record("shards", stats.shards_synced);
            self.0.record("bytes", stats.bytes_synced);
        }
    }

    pub fn slow_search(index: &str, k: usize, took: Duration) {
        let seconds = took.as_secs_f64();
        event!(name: "shardex.slow_search", target: "shardex", tracing::Level::WARN, index, k, seconds, "slow search");
    }

    pub fn background_error(index: &str, work: BackgroundWork, error: &ShardexError) {
        event!(name: "shardex.background_error", target: "shardex", tracing::Level::WARN, index, ?work, %error,
            "background work failed");
    }
}

#[cfg(not(feature = "tracing"))]
mod off {
    use std::time::Duration;

    use crate::{
        engine::stats::{BackgroundWork, FlushStats},
        error::{Result, ShardexError},
    };

    /// Span that no subscriber sees.
    pub struct Trace;

    impl Trace {
        pub fn open(_: &str) -> Self {
            Self
        }

        pub fn write(_: &str, _: usize) -> Self {
            Self
        }

        pub fn commit(_: &str) -> Self {
            Self
        }

        pub fn flush(_: &str, _: bool) -> Self {
            Self
        }

        pub fn cell_build(_: &str) -> Self {
            Self
        }

        pub fn stage(&self, _: &'static str) -> Self {
            Self
        }

        pub fn within<T>(&self, run: impl FnOnce() -> Result<T>) -> Result<T> {
            run()
        }

        pub async fn around<T>(self, run: impl Future<Output = Result<T>>) -> Result<T> {
            run.await
        }

        pub fn end<T>(self, _: &Result<T>) {}

        pub fn flushed(&self, _: &FlushStats) {}
    }

    pub fn slow_search(_: &str, _: usize, _: Duration) {}

    pub fn background_error(_: &str, _: BackgroundWork, _: &ShardexError) {}
}

#[cfg(not(feature = "tracing"))]
pub use off::{Trace, background_error, slow_search};
#[cfg(feature = "tracing")]
pub use on::{Trace, background_error, slow_search};
