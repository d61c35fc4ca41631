//! The application's cursor: what is accepted, and what a crash cannot undo.

use std::sync::Arc;

use super::core::Engine;
use crate::{error::Result, format::bucket::PayloadOwner, id::Lsn, storage::Storage};

impl<S: Storage> Engine<S> {
    /// Returns the cursor after the last accepted batch; empty before the first cursor.
    ///
    /// # Errors
    /// Returns `Corruption` if the stored cursor is damaged.
    pub fn cursor(&self) -> Result<Vec<u8>> {
        let content = self.work.payloads.find(PayloadOwner::Cursor);
        content.map_or(Ok(Vec::new()), |content| Ok(content.read(&self.data)?.to_vec()))
    }

    /// Returns the cursor that no crash can undo: that of the last durable batch which set one. Empty before the first
    /// cursor, and if the open found no space for its recovery.
    ///
    /// # Errors
    /// Returns `Corruption` if the cursor that the open found is damaged, until a later one is durable.
    pub fn durable_cursor(&self) -> Result<Arc<[u8]>> {
        let durable = self.wal.durable_lsn();
        let last = self.cursors.iter().take_while(|&&(lsn, _)| lsn <= durable).last();
        last.map_or(Ok(Arc::default()), |(_, cursor)| cursor.clone())
    }

    /// Records that the batch accepted last has set the cursor.
    pub(super) fn cursor_changed(&mut self, cursor: &[u8]) {
        self.cursors.push_back((self.wal.last_lsn(), Ok(cursor.into())));
        // Of the durable ones only the last is needed.
        let durable = self.wal.durable_lsn();
        while self.cursors.get(1).is_some_and(|&(lsn, _)| lsn <= durable) {
            self.cursors.pop_front();
        }
    }

    /// Takes the cursor of the recovered state as durable. Without space for a recovery nothing is known to be durable. A
    /// damaged cursor is an error of the calls that return it, not of the open.
    pub(super) fn cursor_recovered(&mut self) {
        if self.read_only.is_none() {
            self.cursors.push_back((Lsn(0), self.cursor().map(Arc::from)));
        }
    }
}
