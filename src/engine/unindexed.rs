//! Codes for unindexed postings that have none: those found by an open, which reads no vector, and those added during
//! the first cell build. A job makes the codes beside the writer, so that searches need not scan the vectors.

use std::sync::Arc;

use super::{Engine, Lent};
use crate::{
    codes::CoordinateFrame,
    env::{Cancel, Never},
    error::Result,
    index::{NewCodes, Snapshot},
    shard::DataFile,
    storage::Storage,
};

/// Job that encodes the unindexed postings of a snapshot without access to the engine.
pub struct EncodeJob<S: Storage> {
    snapshot: Arc<Snapshot<Lent<S>>>,
    data: Arc<DataFile<S::File>>,
    frame: Arc<CoordinateFrame>,
}

impl<S: Storage> EncodeJob<S> {
    /// Reads, checks and encodes the unindexed postings of every shard where some lack a code.
    ///
    /// # Errors
    /// Returns `Corruption` if an extent is damaged.
    pub fn run(&self) -> Result<NewCodes> {
        self.run_until(&Never)
    }

    /// Encodes like [`run`](Self::run), and stops if it is cancelled.
    ///
    /// # Errors
    /// As [`run`](Self::run). Returns `Closed` if it is cancelled.
    pub fn run_until(&self, cancel: &dyn Cancel) -> Result<NewCodes> {
        self.snapshot.encode_unindexed(&self.data, &self.frame, cancel)
    }
}

impl<S: Storage> Engine<S> {
    /// Returns a job that encodes the unindexed postings without a code. Returns `None` if there are no cells, or if
    /// every unindexed posting has a code.
    #[must_use]
    pub fn encode_begin(&self) -> Option<EncodeJob<S>> {
        let cells = self.published.cells.as_ref()?;
        self.published.without_codes().next().map(|_| EncodeJob {
            snapshot: self.snapshot(),
            data: Arc::clone(&self.data),
            frame: Arc::clone(cells.frame()),
        })
    }

    /// Publishes the codes that an [`EncodeJob`] made, so that searches use them from here on. Nothing is stored.
    pub fn install_codes(&mut self, codes: &NewCodes) {
        self.published = Arc::new(self.published.with_codes(codes, self.data.geometry()));
    }
}
