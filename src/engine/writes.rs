//! Writes: each batch is checked, applied, recorded in the WAL buffer and published.

use std::{ops::RangeInclusive, sync::Arc};

use super::{
    apply::{self, Applied, Context},
    batch,
    core::Engine,
    resolve,
};
use crate::{
    error::{Result, ShardexError},
    format::{frame::FrameKind, record},
    id::{DocumentId, Lsn},
    limits,
    posting::Posting,
    storage::Storage,
};

/// Bytes of accepted records in the WAL buffer: if the buffer holds this much, the next write first stores it in the
/// file, without a sync.
const WRITE_OUT_BYTES: u64 = 1 << 20;

impl<S: Storage> Engine<S> {
    /// Adds postings. A posting whose key is already stored replaces the stored one. Within the batch, the last of
    /// equal keys counts. On `Ok` the batch is accepted: searches see it.
    ///
    /// # Errors
    /// Returns `InvalidDimension`, `InvalidVector`, `InvalidPosting`, `BatchTooLarge`, `OutOfSpace`, `Io` or
    /// `Corruption`: no posting has changed. A write may flush first, to open the epoch or to make room in the WAL. If
    /// a sync of that flush fails, the engine is poisoned too. Returns `Poisoned` after a failed sync, `ReadOnly`
    /// if the open found no space, and `Inconsistent` if the check of that flush failed.
    pub fn add(&mut self, postings: &[Posting]) -> Result<Lsn> {
        self.check_writable()?;
        let rows = batch::rows(postings, self.geometry())?;
        if rows.is_empty() {
            return Ok(self.wal.last_lsn());
        }
        let dimension = self.geometry().dimension;
        self.reserve_wal(record::add_len(postings.len(), dimension))?;
        let context = self.context();
        let applied = apply::add(&mut self.work, &context, &rows)?;
        let keys = record::encode_add_keys(postings, dimension);
        let mut parts: Vec<&[u8]> = vec![&keys];
        parts.extend(postings.iter().map(|posting| bytemuck::cast_slice::<f32, u8>(&posting.vector)));
        self.accept(FrameKind::Add, &parts, postings.len(), &applied);
        Ok(self.wal.last_lsn())
    }

    /// Removes all postings of the given documents and returns the LSN and the number of removed postings.
    ///
    /// Only documents with a posting are recorded in the WAL. If there are none, nothing is recorded, and the LSN is
    /// that of the last write.
    ///
    /// # Errors
    /// Returns `BatchTooLarge`, `OutOfSpace`, `Io` or `Corruption`: no posting has changed. If a sync of a flush fails
    /// that the write runs first, the engine is poisoned too. Returns `Poisoned` after a failed sync, `ReadOnly`
    /// if the open found no space, and `Inconsistent` if the check of that flush failed.
    pub fn remove(&mut self, documents: &[DocumentId]) -> Result<(Lsn, u64)> {
        self.check_writable()?;
        let stored = resolve::documents(&mut self.work, &self.data, documents.iter().copied())?;
        self.remove_stored(&stored, documents.len())
    }

    /// Removes all documents with ids in a range, in one batch. An empty range removes nothing.
    ///
    /// Cost: one lookup per id for a range of fewer ids than 1/64 of the postings, otherwise one read of every posting
    /// record of the index.
    ///
    /// # Errors
    /// As [`remove`](Self::remove). Returns `BatchTooLarge` if the WAL cannot hold the ids found: the caller must give
    /// smaller ranges.
    pub fn remove_range(&mut self, documents: &RangeInclusive<DocumentId>) -> Result<(Lsn, u64)> {
        self.check_writable()?;
        let stored = resolve::range(&mut self.work, &self.data, documents)?;
        self.remove_stored(&stored, stored.len())
    }

    /// Removes stored documents, and counts `named` operations.
    fn remove_stored(&mut self, documents: &[DocumentId], named: usize) -> Result<(Lsn, u64)> {
        if documents.is_empty() {
            return Ok((self.wal.last_lsn(), 0));
        }
        let payload = record::encode_remove(documents);
        self.reserve_wal(payload.len() as u64)?;
        let context = self.context();
        let applied = apply::remove(&mut self.work, &context, documents)?;
        self.accept(FrameKind::Remove, &[&payload], named, &applied);
        Ok((self.wal.last_lsn(), applied.removed))
    }

    pub(super) fn context(&self) -> Context<S::File> {
        Context { data: Arc::clone(&self.data), clock: Arc::clone(&self.clock), index_id: self.index_id }
    }

    /// Opens the epoch and makes room in the WAL for a record of `payload` bytes. Flushes up to twice if the WAL is
    /// full.
    fn reserve_wal(&mut self, payload: u64) -> Result<()> {
        let limit = self.wal.max_payload().min(limits::MAX_BATCH_BYTES);
        if payload > limit {
            return Err(ShardexError::BatchTooLarge { bytes: payload, limit });
        }
        self.open_epoch()?;
        if self.wal.pending_bytes() >= WRITE_OUT_BYTES {
            self.wal.write_out()?;
        }
        // Two roots are retained, so two flushes are needed to free the whole WAL.
        for _ in 0..2 {
            match self.wal.reserve(payload) {
                Err(ShardexError::BatchTooLarge { .. }) => {
                    self.flush_once(true)?;
                }
                done => return done,
            }
        }
        self.wal.reserve(payload)
    }

    /// Appends the record of an applied batch to the WAL buffer and publishes the batch.
    fn accept(&mut self, kind: FrameKind, parts: &[&[u8]], operations: usize, applied: &Applied) {
        self.wal.append(kind, parts);
        self.counters.operations += operations as u64;
        self.publish(&applied.changed);
    }
}
