//! Input of a write: a batch of operations that is accepted as a whole or not at all.

use crate::{
    filter::Filter,
    id::{DocumentId, Lsn, PostingKey},
    posting::Posting,
};

/// Operation of a batch.
#[derive(Clone, Debug, PartialEq)]
pub enum Operation {
    /// Adds a posting, or replaces the one with the same key.
    Add(Posting),
    /// Removes a document with its payload, and adds postings of it.
    ReplaceDocument(DocumentId, Vec<Posting>),
    /// Removes all postings of a document, and its payload.
    RemoveDocument(DocumentId),
    /// Removes one posting.
    RemovePosting(PostingKey),
    /// Removes every posting that passes a filter.
    RemoveMatching(Filter),
    /// Sets the tags of a posting, if it exists.
    SetTags(PostingKey, u64),
    /// Sets the payload of a document.
    SetPayload(DocumentId, Vec<u8>),
    /// Removes the payload of a document.
    RemovePayload(DocumentId),
    /// Sets the cursor, if it has the expected value.
    SetCursor {
        /// New value.
        cursor: Vec<u8>,
        /// Value before this operation; `None` for any.
        expected: Option<Vec<u8>>,
    },
}

/// Batch of operations, for [`Shardex::write`](crate::Shardex::write). It is accepted as a whole or not at all.
///
/// Each operation acts on what the ones before it leave. For example, of two postings with the same key the last one
/// stays, and a payload that is set before its document is removed is removed too.
///
/// ```
/// use shardex::{DocumentId, Posting, PostingKey, WriteBatch};
///
/// let document = DocumentId(7);
/// let mut batch = WriteBatch::new();
/// batch
///     .replace_document(document, vec![Posting::new(PostingKey::new(document, 0, 42), vec![0.1, 0.2, 0.3])])
///     .set_payload(document, "the text of the document")
///     .set_cursor("offset 1234");
/// assert_eq!(batch.len(), 3);
/// ```
#[derive(Clone, Debug, Default, PartialEq)]
pub struct WriteBatch {
    operations: Vec<Operation>,
}

impl WriteBatch {
    /// Creates an empty batch. It changes nothing.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Returns the number of operations.
    #[must_use]
    pub fn len(&self) -> usize {
        self.operations.len()
    }

    /// Reports whether the batch has no operation.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.operations.is_empty()
    }

    /// Returns the operations.
    #[cfg(feature = "internals")]
    #[must_use]
    pub fn operations(&self) -> &[Operation] {
        &self.operations
    }

    #[cfg(not(feature = "internals"))]
    pub(crate) fn operations(&self) -> &[Operation] {
        &self.operations
    }

    fn push(&mut self, operation: Operation) -> &mut Self {
        self.operations.push(operation);
        self
    }

    /// Adds a posting. A stored posting with the same key is replaced, with its tags.
    pub fn add(&mut self, posting: Posting) -> &mut Self {
        self.push(Operation::Add(posting))
    }

    /// Replaces a document: removes all its postings and its payload, and adds these postings. Each must belong to the
    /// document. A payload set later in the batch stays.
    pub fn replace_document(&mut self, document: impl Into<DocumentId>, postings: Vec<Posting>) -> &mut Self {
        self.push(Operation::ReplaceDocument(document.into(), postings))
    }

    /// Removes all postings of a document, and its payload. An unknown document is ignored.
    pub fn remove_document(&mut self, document: impl Into<DocumentId>) -> &mut Self {
        self.push(Operation::RemoveDocument(document.into()))
    }

    /// Removes one posting. The payload of its document stays. An unknown key is ignored.
    pub fn remove_posting(&mut self, key: PostingKey) -> &mut Self {
        self.push(Operation::RemovePosting(key))
    }

    /// Removes every posting that passes a filter, with the tags that the operations before have given it. Payloads stay:
    /// remove a document to remove its payload.
    ///
    /// The filter must have no [predicate](Filter::matching), or the batch is rejected with `InvalidOperation`. What it
    /// lets pass is resolved to keys before the batch is recorded, so a crash can't change the outcome.
    ///
    /// Cost: a read of every posting's record, or lookups if the filter lets only a short list of documents or postings
    /// pass; then, as for every removal of a posting, lookups of each. The WAL gets 24 bytes per removed posting.
    pub fn remove_matching(&mut self, filter: Filter) -> &mut Self {
        self.push(Operation::RemoveMatching(filter))
    }

    /// Sets the tags of a posting. An unknown key is ignored.
    ///
    /// Cost: a lookup of the posting. Stores no vector.
    pub fn set_tags(&mut self, key: PostingKey, tags: u64) -> &mut Self {
        self.push(Operation::SetTags(key, tags))
    }

    /// Sets the payload of a document: up to [`MAX_PAYLOAD_BYTES`](crate::limits::MAX_PAYLOAD_BYTES) bytes whose meaning
    /// is the application's. The document needs no posting.
    pub fn set_payload(&mut self, document: impl Into<DocumentId>, payload: impl Into<Vec<u8>>) -> &mut Self {
        self.push(Operation::SetPayload(document.into(), payload.into()))
    }

    /// Removes the payload of a document. Its postings stay. A document without a payload is ignored.
    pub fn remove_payload(&mut self, document: impl Into<DocumentId>) -> &mut Self {
        self.push(Operation::RemovePayload(document.into()))
    }

    /// Sets the cursor: up to [`MAX_CURSOR_BYTES`](crate::limits::MAX_CURSOR_BYTES) bytes that say how far the
    /// application has read its source. See [`Shardex::durable_cursor`](crate::Shardex::durable_cursor).
    pub fn set_cursor(&mut self, cursor: impl Into<Vec<u8>>) -> &mut Self {
        self.push(Operation::SetCursor { cursor: cursor.into(), expected: None })
    }

    /// Sets the cursor if its value before this operation is `expected` (empty before the first one). Otherwise the
    /// whole batch is rejected with `CursorMismatch`. So two ingesters can't take turns without noticing each other.
    pub fn set_cursor_if(&mut self, cursor: impl Into<Vec<u8>>, expected: impl Into<Vec<u8>>) -> &mut Self {
        self.push(Operation::SetCursor { cursor: cursor.into(), expected: Some(expected.into()) })
    }
}

#[cfg(feature = "internals")]
impl FromIterator<Operation> for WriteBatch {
    fn from_iter<I: IntoIterator<Item = Operation>>(operations: I) -> Self {
        Self { operations: operations.into_iter().collect() }
    }
}

impl From<Vec<Posting>> for WriteBatch {
    fn from(postings: Vec<Posting>) -> Self {
        Self { operations: postings.into_iter().map(Operation::Add).collect() }
    }
}

/// Result of an accepted batch. The counts compare the index before and after the whole batch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Written {
    /// LSN of the batch, or of the last write before it if it changed nothing.
    pub lsn: Lsn,
    /// Number of added postings with a key that was not stored before.
    pub added: u64,
    /// Number of added postings that replaced a stored one.
    pub replaced: u64,
    /// Number of stored postings that were removed and not replaced.
    pub removed: u64,
}
