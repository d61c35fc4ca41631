//! The stats file of an open index: what it holds and when it is due.
//!
//! Invariant: no error of the file has an effect on another call. It is tried again a second later.

use std::time::Duration;

use crate::{
    engine::{Engine, StatsFile, stats::IndexStats},
    observe::{self, STATS_FILE_BYTES, StatsContext},
    storage::Storage,
};

/// Least time between two stores of the stats file.
const INTERVAL: Duration = Duration::from_secs(1);

/// State of the stats file.
pub(super) struct StatsWriter<S: Storage> {
    /// Time of the next store, if a figure has changed by then. `None` without the option.
    pub(super) at: Option<Duration>,
    /// End of the last flush that the observer knows, in milliseconds since 1970.
    pub(super) last_flush_unix_ms: Option<u64>,
    /// `None` until it could be opened.
    file: Option<StatsFile<S>>,
    /// Figures that the file holds.
    stored: String,
}

impl<S: Storage> StatsWriter<S> {
    /// Returns a writer that stores the figures from `at` on.
    pub(super) fn new(at: Option<Duration>) -> Self {
        Self { at, last_flush_unix_ms: None, file: None, stored: String::new() }
    }

    /// Reports whether the file is due, and sets the next time.
    pub(super) fn is_due(&mut self, now: Duration) -> bool {
        let due = self.at.is_some_and(|at| at <= now);
        if due {
            self.at = Some(now + INTERVAL);
        }
        due
    }

    /// Stores the file if a figure has changed.
    pub(super) fn store(&mut self, engine: &Engine<S>, stats: &IndexStats, is_closed: bool, unix_ms: u64) {
        let last_flush_unix_ms = self.last_flush_unix_ms;
        let figures =
            observe::figures(stats, &StatsContext { options: engine.options(), is_closed, last_flush_unix_ms });
        if figures == self.stored {
            return;
        }
        if self.file.is_none() {
            self.file = engine.stats_file(STATS_FILE_BYTES as u64).ok();
        }
        // A failed store may leave a part of the text. Without the file, and so its lock, nobody takes that for live.
        self.stored.clear();
        let contents = observe::encode(&figures, unix_ms);
        match self.file.as_ref().map(|file| file.store(&contents)) {
            Some(Ok(())) => self.stored = figures,
            Some(Err(_)) => self.file = None,
            None => {}
        }
    }
}
