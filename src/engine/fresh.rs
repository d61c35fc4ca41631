//! Codes of what an open found in no cell, made beside the writer: an open reads no vector, and searches should not have
//! to read them all.

use std::sync::Arc;

use super::{Engine, Lent};
use crate::{
    codes::Frame,
    env::{Cancel, Never},
    error::Result,
    index::{Coded, Snapshot},
    shard::DataFile,
    storage::Storage,
};

/// Makes the codes that a snapshot lacks, without the engine.
pub struct FreshJob<S: Storage> {
    snapshot: Arc<Snapshot<Lent<S>>>,
    data: Arc<DataFile<S::File>>,
    frame: Arc<Frame>,
}

impl<S: Storage> FreshJob<S> {
    /// Reads and checks every vector that has no code.
    ///
    /// # Errors
    /// `Corruption` if one is damaged.
    pub fn run(&self) -> Result<Coded> {
        self.run_until(&Never)
    }

    /// The same, unless it is cancelled.
    ///
    /// # Errors
    /// As [`run`](Self::run); `Closed` if it is cancelled.
    pub fn run_until(&self, cancel: &dyn Cancel) -> Result<Coded> {
        self.snapshot.code_fresh(&self.data, &self.frame, cancel)
    }
}

impl<S: Storage> Engine<S> {
    /// What is to be done to give a code to every posting in no cell that has none; nothing if there is none.
    #[must_use]
    pub fn fresh_begin(&self) -> Option<FreshJob<S>> {
        let cells = self.published.cells.as_ref()?;
        self.published.uncoded().next().map(|_| FreshJob {
            snapshot: self.snapshot(),
            data: Arc::clone(&self.data),
            frame: Arc::clone(cells.frame()),
        })
    }

    /// Takes in what a [`FreshJob`] made. Searches use it from here on; nothing is stored.
    pub fn coded(&mut self, coded: &Coded) {
        self.published = Arc::new(self.published.with_codes(coded, self.data.geometry()));
    }
}
