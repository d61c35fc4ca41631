//! Free space that the writer gives back to the file system: after a flush what exceeds the needs of the next ones, and
//! everything once no writes have come for a while.
//!
//! A failure is background work: it is counted, reported and tried again. Only a failed sync of a twin root, which poisons
//! the engine as any failed sync does, makes other calls fail.

use std::time::Duration;

use super::writer::Writer;
use crate::{engine::stats::BackgroundWork, error::Result, storage::Storage, tuning::REST_AFTER};

impl<S: Storage> Writer<S> {
    /// Puts the trim off, because the index is not at rest.
    pub(super) fn put_trim_off(&mut self) {
        self.trim_at = Some(self.runtime.now() + REST_AFTER);
    }

    /// Gives back what exceeds the needs of the next flushes.
    pub(super) fn release_excess(&mut self) {
        match self.engine.release_excess() {
            Ok(None) => {}
            Ok(Some(_)) => self.failures.over(BackgroundWork::Space),
            Err(error) => self.note_space_failure(&error),
        }
    }

    /// Takes the next step of a trim, if no writes have come for a while: gives a part of the free space back, or, if
    /// nothing is left, starts the flush of a twin root for what only an older root needs. The flush does not block the
    /// writer. After its end the timer comes again.
    pub(super) fn trim_if_due(&mut self, now: Duration) {
        if self.trim_at.is_none_or(|at| at > now) {
            return;
        }
        self.trim_at = None;
        if self.engine.is_poisoned() || self.engine.is_read_only() {
            return;
        }
        if self.flushing.is_some() {
            return self.put_trim_off();
        }
        match self.engine.release(self.engine.kept_at_rest()) {
            // There may be more. Requests that have come meanwhile are served first.
            Ok(1..) => self.trim_at = Some(now),
            Ok(0) if self.engine.wants_twin(self.engine.older_at_rest()) => {
                self.twin = true;
                self.force_flush();
            }
            Ok(0) => self.failures.over(BackgroundWork::Space),
            Err(error) => self.note_space_failure(&error),
        }
    }

    /// Closes the engine. Before the closing mark, it gives free space back, unless the close leaves the writes to the
    /// WAL.
    pub(super) fn close_engine(&mut self) -> Result<()> {
        // An error of this flush is not lost: the close flushes again, and returns that of its own.
        if self.engine.options().flush_on_close
            && self.engine.flush().is_ok()
            && let Err(error) = self.engine.trim_at_rest()
        {
            self.note_space_failure(&error);
        }
        self.engine.close()
    }

    /// Records a failure to give space back, and sets the time of the next try.
    pub(super) fn note_space_failure(&mut self, error: &crate::ShardexError) {
        // A poisoned engine tells every caller its error.
        if !self.engine.is_poisoned() {
            self.note_failure(BackgroundWork::Space, error);
            let failure = self.failures.lasting(BackgroundWork::Space);
            self.trim_at = failure.map(|failure| self.runtime.now() + failure.delay(REST_AFTER));
        }
    }
}
