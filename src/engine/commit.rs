//! Commit and close: make everything accepted durable by one sync of the WAL.

use super::{
    barriers::{CLOSE, COMMIT},
    core::Engine,
    pending_flush::PendingFlush,
};
use crate::{
    error::{Result, ShardexError},
    format::frame::FrameKind,
    id::Lsn,
    storage::{Purpose, Storage, StorageFile as _},
};

impl<S: Storage> Engine<S> {
    /// Makes everything accepted durable by one sync of the WAL, or by none if it is durable already.
    ///
    /// # Errors
    /// Returns `OutOfSpace` or `Io` from a store: accepted writes stay accepted, and the call may be repeated. An error
    /// of a sync poisons the engine, and so does `FileReplaced`. Returns `Poisoned` afterwards, and `FlushInProgress` while a
    /// flush waits for its sync of the WAL. Returns `ReadOnly` if the open found no space.
    pub fn commit(&mut self) -> Result<Lsn> {
        self.check_writable()?;
        self.commit_as(COMMIT)
    }

    fn commit_as(&mut self, purpose: Purpose) -> Result<Lsn> {
        // At most one sync of a file is under way, because an error is reported to one caller only (R8).
        if self.flush.as_ref().is_some_and(PendingFlush::syncs_wal) {
            return Err(ShardexError::FlushInProgress);
        }
        self.wal.write_out()?;
        if let Some((job, up_to)) = self.wal.sync_job(purpose) {
            self.counters.barriers += 1;
            if let Err(error) = job.run() {
                return Err(self.poison(error));
            }
            self.check_in_place()?;
            self.wal.synced(up_to);
            self.counters.commits += 1;
            self.counters.committed_operations = self.counters.operations;
        }
        Ok(self.wal.durable_lsn())
    }

    /// Checks that the names of the directory still lead to the files that were synced. Otherwise the engine is poisoned: what
    /// it stores is not what the next open finds.
    pub(super) fn check_in_place(&mut self) -> Result<()> {
        let files = [self.wal_file.raw(), self.data.raw(), self.roots.file().raw()];
        let lost = files.into_iter().find(|file| !file.is_in_place()).map(|file| file.path());
        match lost {
            Some(file) => Err(self.poison(ShardexError::FileReplaced { file })),
            None => Ok(()),
        }
    }

    /// Flushes or commits as configured, and writes the closing mark. The mark tells the next open that no recovery is
    /// needed. If the flush fails for lack of space or because its check finds a contradiction, the WAL is committed
    /// nevertheless.
    ///
    /// # Errors
    /// Returns the errors of [`flush`](Self::flush). Everything accepted is durable nevertheless, unless the error is that
    /// of a sync or of a store into the WAL. Dropping the engine releases the lock, whatever `close` returns.
    pub fn close(&mut self) -> Result<()> {
        if self.read_only.is_some() && self.poisoned.is_none() {
            // Every write was refused, so there is nothing to flush. The WAL stays as the crash left it.
            return Ok(());
        }
        if self.options.flush_on_close {
            if let Err(error) = self.flush() {
                // The WAL may have room where the shards have none. After a failed sync no commit can be relied on.
                return if self.is_poisoned() { Err(error) } else { self.commit().and(Err(error)) };
            }
        } else {
            self.commit()?;
        }
        if !self.epoch_open {
            // Nothing was written since the open, so the previous closing mark is still valid.
            return Ok(());
        }
        self.wal.reserve_mark()?;
        self.wal.append(FrameKind::Close, &[]);
        self.commit_as(CLOSE)?;
        self.epoch_open = false;
        Ok(())
    }
}
