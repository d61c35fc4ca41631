//! Writing: batches, their short forms, and the cursor.

use std::ops::RangeInclusive;

use super::{Shardex, queue::Command};
use crate::{
    batch::{WriteBatch, Written},
    error::Result,
    id::DocumentId,
    posting::Posting,
    storage::Storage,
};

impl<S: Storage> Shardex<S> {
    /// Carries out a batch of operations, all or none: additions, replacements and removals of postings and documents,
    /// tags, payloads, and the application's cursor.
    ///
    /// On `Ok` reads see the batch. It is durable at the next commit, or on return under `Durability::Immediate`. A batch
    /// that changes nothing is not recorded.
    ///
    /// Cost: that of [`add_postings`](Self::add_postings) for the added postings, and a lookup per removal and per change
    /// of tags. A payload is copied into the WAL's buffer and into the data file.
    ///
    /// # Errors
    /// Returns the errors of [`add_postings`](Self::add_postings), with the position of the first bad operation.
    /// `InvalidOperation` if a payload or a cursor is too large. `CursorMismatch` if the cursor does not have the value
    /// that the batch expects. Nothing has changed then.
    pub async fn write(&self, batch: WriteBatch) -> Result<Written> {
        let (operations, call) = (batch.len(), self.ask(|reply| Command::Write(batch, reply)));
        self.inner.shared.context.observer.write(operations, call, |written| *written).await
    }

    /// Returns the application's cursor after the last accepted batch; empty before the first one.
    ///
    /// A crash may undo it. Don't acknowledge it to the source: see [`durable_cursor`](Self::durable_cursor).
    ///
    /// # Errors
    /// Returns `Corruption` if the stored cursor is damaged, and `Closed` if the handle is closed.
    pub async fn cursor(&self) -> Result<Vec<u8>> {
        self.view()?.cursor()
    }

    /// Returns the cursor that no crash can undo: that of the last durable batch which set one; empty before the first,
    /// and in a handle that only reads, because its recovery found no space.
    ///
    /// A source that can be read again is ingested exactly once in this way: each batch sets the cursor to its position
    /// in the source. After an open, continue from [`cursor`](Self::cursor), which then equals this one. Before the source
    /// forgets what was read, wait until this cursor has passed it.
    ///
    /// # Errors
    /// Returns `Corruption` if the cursor that the open found is damaged, until a later one is durable, and `Closed` if the
    /// handle is closed.
    pub async fn durable_cursor(&self) -> Result<Vec<u8>> {
        let shared = &self.inner.shared;
        let view = shared.view.load_full().ok_or_else(|| shared.gone())?;
        view.durable_cursor.as_ref().map(|cursor| cursor.to_vec()).map_err(Clone::clone)
    }

    /// Adds postings, all or none.
    ///
    /// A posting whose key (document id, start, length) is stored already replaces the stored one. Of equal keys in one
    /// batch the last counts. An empty batch does nothing.
    ///
    /// On `Ok` searches see the batch. It is durable at the next commit, or on return under `Durability::Immediate`.
    ///
    /// Cost: one distance per shard and posting, a copy into the WAL's buffer, a copy into the shard, and occasionally
    /// a split. Above 1,024 shards a posting is compared only with the shards near the nearest pivots. The first write
    /// after an open, and one that finds the WAL full, flush first.
    ///
    /// # Errors
    /// Returns `InvalidDimension`, `InvalidVector` or `InvalidPosting` with the index of the first bad posting. Returns
    /// `BatchTooLarge` if the WAL can't hold the batch, `OutOfSpace` or `Io` if a store fails, and `Corruption` if a
    /// shard is damaged. Nothing has changed then. Under `Durability::Immediate` an error of the commit leaves the
    /// batch accepted.
    ///
    /// Returns `Undurable` if background commits or flushes fail and more is undurable than the options allow. Nothing
    /// has changed then, and writes are accepted again once a commit or flush succeeds. Returns `Inconsistent` if the write had to
    /// flush first and the flush's check failed, `ReadOnly` if the open found no space to recover, `Poisoned` if a sync
    /// has failed, and `Closed` if the handle is closed.
    pub async fn add_postings(&self, postings: Vec<Posting>) -> Result<()> {
        self.write(WriteBatch::from(postings)).await.map(drop)
    }

    /// Removes all postings of the given documents, with the documents' payloads, and returns the number of removed
    /// postings.
    ///
    /// Unknown documents are ignored. They add nothing to the WAL.
    ///
    /// Searches find them no more, but their bytes stay in the files until their places are used again. [`purge`](Self::purge)
    /// erases them.
    ///
    /// Cost: per document a lookup in the bloom filters, and reads of the posting records found.
    ///
    /// # Errors
    /// Returns the errors of [`add_postings`](Self::add_postings).
    pub async fn remove_documents(&self, document_ids: Vec<DocumentId>) -> Result<u64> {
        let mut batch = WriteBatch::new();
        document_ids.into_iter().for_each(|document| {
            batch.remove_document(document);
        });
        Ok(self.write(batch).await?.removed)
    }

    /// Removes all postings of the documents with ids in a range, with the documents' payloads, all or none. Returns the
    /// number of removed postings.
    ///
    /// An empty range removes nothing.
    ///
    /// Cost: one lookup per id for a range of fewer ids than 1/64 of the postings, otherwise one read of every posting
    /// record. The WAL gets the ids found.
    ///
    /// # Errors
    /// Returns the errors of [`add_postings`](Self::add_postings). `BatchTooLarge` means that the WAL can't hold the
    /// ids found: pass smaller ranges.
    pub async fn remove_document_range(&self, documents: RangeInclusive<DocumentId>) -> Result<u64> {
        let call = self.ask(|reply| Command::RemoveRange(documents, reply));
        let counts = |&removed: &u64| Written { removed, ..Written::default() };
        self.inner.shared.context.observer.write(1, call, counts).await
    }
}
