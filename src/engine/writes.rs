//! Writes: each batch is checked, applied, recorded in the WAL buffer and published.

use std::{ops::RangeInclusive, sync::Arc};

use super::{
    apply::{self, Applied, Context},
    core::Engine,
    plan::Plan,
    resolve::{self, RangeDocuments, WorkingPostings},
};
use crate::{
    batch::{Operation, WriteBatch, Written},
    error::{Result, ShardexError},
    format::{frame::FrameKind, record},
    id::{DocumentId, Lsn},
    limits,
    posting::Posting,
    storage::Storage,
};

/// Encodes the head of a plan as a record of version 1.
///
/// # Panics
/// Panics if version 1 has no record for the plan: a mistake of the test.
fn version_1(plan: &Plan<'_>, dimension: usize) -> (FrameKind, Vec<u8>) {
    let is_removal = plan.len() == plan.documents.len();
    assert!(is_removal || plan.len() == plan.rows.len(), "version 1 has additions and removals only");
    if is_removal {
        let documents: Vec<DocumentId> = plan.documents.iter().copied().collect();
        return (FrameKind::Remove, record::encode_remove(&documents));
    }
    let postings: Vec<Posting> = plan.rows.iter().map(|row| Posting::new(row.posting.key(), Vec::new())).collect();
    (FrameKind::Add, record::encode_add_keys(&postings, dimension))
}

/// Bytes of accepted records in the WAL buffer: if the buffer holds this much, the next write first stores it in the
/// file, without a sync.
const WRITE_OUT_BYTES: u64 = 1 << 20;

impl<S: Storage> Engine<S> {
    /// Carries out a batch, as a whole or not at all. On `Ok` it is accepted: searches see it.
    ///
    /// Only what the batch changes is recorded in the WAL. If it changes nothing, nothing is recorded, and the LSN is
    /// that of the last write.
    ///
    /// # Errors
    /// Returns `InvalidDimension`, `InvalidVector`, `InvalidPosting`, `InvalidOperation`, `CursorMismatch`,
    /// `BatchTooLarge`, `OutOfSpace`, `Io` or `Corruption`: nothing has changed. A write may flush first, to open the
    /// epoch, to upgrade the index, or to make room in the WAL. If a sync of that flush fails, the engine is poisoned
    /// too. Returns `Poisoned` after a failed sync, `ReadOnly` if the open found no space, and `Inconsistent` if the
    /// check of that flush failed.
    pub fn write(&mut self, batch: &WriteBatch) -> Result<Written> {
        self.check_writable()?;
        // Read only if it is compared, so that a damaged cursor stops no other write, and can be set again.
        let compares = |operation: &Operation| matches!(operation, Operation::SetCursor { expected: Some(_), .. });
        let cursor = if batch.operations().iter().any(compares) { self.cursor()? } else { Vec::new() };
        let mut stored = WorkingPostings { work: &mut self.work, data: &*self.data };
        let mut plan = Plan::of(batch.operations(), &cursor, self.data.geometry(), &mut stored)?;
        resolve::changes(&mut plan, &mut self.work, &self.data)?;
        self.carry_out(plan, batch.len())
    }

    /// Adds postings. A posting whose key is already stored replaces the stored one. Within the batch, the last of
    /// equal keys counts.
    ///
    /// # Errors
    /// As [`write`](Self::write).
    pub fn add(&mut self, postings: &[Posting]) -> Result<Lsn> {
        self.check_writable()?;
        let plan = Plan::of_postings(postings, self.data.geometry())?;
        Ok(self.carry_out(plan, postings.len())?.lsn)
    }

    /// Removes all postings and the payloads of the given documents, and returns the LSN and the number of removed
    /// postings.
    ///
    /// # Errors
    /// As [`write`](Self::write).
    pub fn remove(&mut self, documents: &[DocumentId]) -> Result<(Lsn, u64)> {
        self.check_writable()?;
        let mut plan = Plan::of_documents(documents.iter().copied());
        resolve::changes(&mut plan, &mut self.work, &self.data)?;
        let written = self.carry_out(plan, documents.len())?;
        Ok((written.lsn, written.removed))
    }

    /// Removes all documents with ids in a range, in one batch. An empty range removes nothing.
    ///
    /// Cost: one lookup per id for a range of fewer ids than 1/64 of the postings, otherwise one read of every posting
    /// record of the index.
    ///
    /// # Errors
    /// As [`write`](Self::write). Returns `BatchTooLarge` if the WAL cannot hold the ids found: the caller must give
    /// smaller ranges.
    pub fn remove_range(&mut self, documents: &RangeInclusive<DocumentId>) -> Result<(Lsn, u64)> {
        self.check_writable()?;
        let RangeDocuments { documents, are_stored } = resolve::range(&mut self.work, &self.data, documents)?;
        let named = documents.len();
        let mut plan = Plan::of_documents(documents);
        if are_stored {
            resolve::drop_absent_payloads(&mut plan, &self.work);
        } else {
            resolve::changes(&mut plan, &mut self.work, &self.data)?;
        }
        let written = self.carry_out(plan, named)?;
        Ok((written.lsn, written.removed))
    }

    /// Carries out a plan of `operations` operations.
    fn carry_out(&mut self, plan: Plan<'_>, operations: usize) -> Result<Written> {
        if plan.is_empty() {
            return Ok(Written { lsn: self.wal.last_lsn(), ..Written::default() });
        }
        let record = plan.record();
        let dimension = self.data.geometry().dimension;
        let (kind, head) = match self.stays_at_version {
            Some(1) => version_1(&plan, dimension),
            _ => (FrameKind::Batch, record.encode_head(dimension)),
        };
        let mut parts: Vec<&[u8]> = vec![&head];
        parts.extend(record.bulk());
        self.reserve_wal(parts.iter().map(|part| part.len() as u64).sum())?;
        let context = self.context(record.unix_ms);
        let applied = apply::apply(&mut self.work, &context, &plan)?;
        self.wal.append(kind, &parts);
        self.accepted(&applied, operations);
        if let Some(cursor) = plan.cursor {
            self.cursor_changed(cursor);
        }
        let Applied { added, replaced, removed, .. } = applied;
        Ok(Written { lsn: self.wal.last_lsn(), added, replaced, removed })
    }

    /// Returns the context in which a batch of that time is applied.
    pub(super) fn context(&self, unix_ms: u64) -> Context<S::File> {
        Context { data: Arc::clone(&self.data), unix_ms, index_id: self.index_id }
    }

    /// Opens the epoch and makes room in the WAL for a record of `payload` bytes. Upgrades an index of an older format
    /// version. Flushes up to twice if the WAL is full.
    pub(super) fn reserve_wal(&mut self, payload: u64) -> Result<()> {
        let limit = self.wal.max_payload().min(limits::MAX_BATCH_BYTES);
        if payload > limit {
            return Err(ShardexError::BatchTooLarge { bytes: payload, limit });
        }
        self.open_for_writes()?;
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

    /// Counts and publishes a batch whose record is in the WAL buffer.
    pub(super) fn accepted(&mut self, applied: &Applied, operations: usize) {
        self.counters.operations += operations as u64;
        self.publish(&applied.changed);
    }
}
