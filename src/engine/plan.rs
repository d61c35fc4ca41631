//! Plan of a batch: its operations, checked and reduced to their net effect.
//!
//! Each operation acts on what the ones before it leave. So the net effect is: removals of stored postings, then
//! additions with distinct keys, then new tags of stored postings, new payloads, a new cursor. The record in the WAL
//! holds the net effect, and replay applies the same plan.

use std::collections::{BTreeMap, BTreeSet};

use super::batch::{self, Row};
use crate::{
    batch::Operation,
    error::{Result, ShardexError},
    filter::Filter,
    format::{
        batch::{BatchRecord, PayloadChange, RecordRow, TagChange},
        geometry::IndexParams,
    },
    id::{DocumentId, PostingKey},
    limits,
    posting::Posting,
};

/// Net effect of a batch.
#[derive(Debug, Default)]
pub struct Plan<'a> {
    /// Documents whose stored postings are removed.
    pub documents: BTreeSet<DocumentId>,
    /// Stored postings that are removed.
    pub keys: BTreeSet<PostingKey>,
    /// Postings to add, with distinct keys.
    pub rows: Vec<Row<'a>>,
    /// New tags of stored postings.
    pub tags: BTreeMap<PostingKey, u64>,
    /// New payloads; `None` removes the payload.
    pub payloads: BTreeMap<DocumentId, Option<&'a [u8]>>,
    /// New cursor.
    pub cursor: Option<&'a [u8]>,
    /// Row of each added key.
    added: BTreeMap<PostingKey, usize>,
}

/// Postings that are stored before a batch.
pub trait StoredPostings {
    /// Calls `visit` with the key and the tags of each stored posting of the listed documents, or of all documents if
    /// `listed` is `None`. May visit others too.
    ///
    /// # Errors
    /// Returns `Corruption` if a shard is damaged.
    fn visit(&mut self, listed: Option<&[DocumentId]>, visit: &mut dyn FnMut(PostingKey, u64)) -> Result<()>;
}

/// Returns the keys that all postings of a document lie between.
fn keys_of(document: DocumentId) -> std::ops::RangeInclusive<PostingKey> {
    let key = |start, length| PostingKey { document_id: document, start, length };
    key(0, 0)..=key(u32::MAX, u32::MAX)
}

impl<'a> Plan<'a> {
    /// Plans the operations of a batch. `cursor` is the cursor before it, `stored` the postings.
    ///
    /// # Errors
    /// Returns `InvalidDimension`, `InvalidVector`, `InvalidPosting` or `InvalidOperation` with the position of the first
    /// invalid operation, or `CursorMismatch`. Returns the errors of `stored`, which is asked for removals by filter only.
    pub fn of(
        operations: &'a [Operation],
        cursor: &[u8],
        geometry: &IndexParams,
        stored: &mut impl StoredPostings,
    ) -> Result<Self> {
        let mut plan = Self::default();
        let mut expected_now = cursor;
        for (index, operation) in operations.iter().enumerate() {
            match operation {
                Operation::Add(posting) => plan.add(index, posting, geometry)?,
                Operation::ReplaceDocument(document, postings) => {
                    plan.remove_document(*document);
                    for posting in postings {
                        if posting.document_id != *document {
                            let other = posting.document_id;
                            let reason = format!("it belongs to document {other}, and document {document} is replaced");
                            return Err(ShardexError::InvalidPosting { index, reason });
                        }
                        plan.add(index, posting, geometry)?;
                    }
                }
                Operation::RemoveDocument(document) => plan.remove_document(*document),
                Operation::RemovePosting(key) => plan.remove_posting(*key),
                Operation::RemoveMatching(filter) if filter.has_predicate() => {
                    let reason = "its filter has a predicate: list documents or postings, or use tags".into();
                    return Err(ShardexError::InvalidOperation { index, reason });
                }
                Operation::RemoveMatching(filter) => plan.remove_matching(filter, stored)?,
                Operation::SetTags(key, tags) => plan.set_tags(*key, *tags),
                Operation::SetPayload(document, payload) => {
                    at_most(index, "payload", payload.len(), limits::MAX_PAYLOAD_BYTES)?;
                    plan.payloads.insert(*document, Some(payload));
                }
                Operation::RemovePayload(document) => {
                    plan.payloads.insert(*document, None);
                }
                Operation::SetCursor { cursor, expected } => {
                    at_most(index, "cursor", cursor.len(), limits::MAX_CURSOR_BYTES)?;
                    if let Some(expected) = expected
                        && expected != expected_now
                    {
                        let (expected, found) = (expected.clone(), expected_now.to_vec());
                        return Err(ShardexError::CursorMismatch { index, expected, found });
                    }
                    expected_now = cursor;
                    plan.cursor = Some(cursor);
                }
            }
        }
        plan.finish();
        Ok(plan)
    }

    /// Plans the addition of postings.
    ///
    /// # Errors
    /// Returns `InvalidDimension`, `InvalidVector` or `InvalidPosting` with the index of the first invalid posting.
    pub fn of_postings(postings: &'a [Posting], geometry: &IndexParams) -> Result<Self> {
        let mut plan = Self::default();
        for (index, posting) in postings.iter().enumerate() {
            plan.add(index, posting, geometry)?;
        }
        plan.finish();
        Ok(plan)
    }

    /// Plans the removal of documents.
    #[must_use]
    pub fn of_documents(documents: impl IntoIterator<Item = DocumentId>) -> Self {
        let mut plan = Self::default();
        documents.into_iter().for_each(|document| plan.remove_document(document));
        plan
    }

    /// Plans what a record of version 2 holds.
    ///
    /// # Errors
    /// Returns the errors of [`of_postings`](Self::of_postings) if a posting is invalid: the record is damaged.
    pub fn of_record(record: &'a BatchRecord<Posting, Vec<u8>>, geometry: &IndexParams) -> Result<Self> {
        let payloads = record.payloads.iter().map(|change| (change.document, change.payload.as_deref()));
        Ok(Self {
            documents: record.documents.iter().copied().collect(),
            keys: record.keys.iter().copied().collect(),
            tags: record.tags.iter().map(|change| (change.key, change.tags)).collect(),
            payloads: payloads.collect(),
            cursor: record.cursor.as_deref(),
            ..Self::of_postings(&record.postings, geometry)?
        })
    }

    /// Returns the record of the plan.
    #[must_use]
    pub fn record(&self) -> BatchRecord<RecordRow<'a>, &'a [u8]> {
        let payload = |(&document, &payload)| PayloadChange { document, payload };
        BatchRecord {
            unix_ms: 0,
            documents: self.documents.iter().copied().collect(),
            keys: self.keys.iter().copied().collect(),
            postings: self.rows.iter().map(|row| RecordRow { given: row.given, tags: row.tags }).collect(),
            tags: self.tags.iter().map(|(&key, &tags)| TagChange { key, tags }).collect(),
            payloads: self.payloads.iter().map(payload).collect(),
            cursor: self.cursor,
        }
    }

    /// Returns the number of changes.
    #[must_use]
    pub fn len(&self) -> usize {
        let of_keys = self.documents.len() + self.keys.len() + self.rows.len() + self.tags.len();
        of_keys + self.payloads.len() + usize::from(self.cursor.is_some())
    }

    /// Reports whether the plan changes nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Reports whether the plan adds a posting with this key.
    #[must_use]
    pub fn adds(&self, key: &PostingKey) -> bool {
        self.added.contains_key(key)
    }

    fn add(&mut self, index: usize, posting: &'a Posting, geometry: &IndexParams) -> Result<()> {
        let row = batch::row(index, posting, geometry)?;
        let key = posting.key();
        if let Some(before) = self.added.insert(key, self.rows.len()) {
            self.rows[before].is_superseded = true;
        }
        self.rows.push(row);
        self.keys.remove(&key);
        self.tags.remove(&key);
        Ok(())
    }

    fn remove_document(&mut self, document: DocumentId) {
        let keys: Vec<PostingKey> = self.added.range(keys_of(document)).map(|(&key, _)| key).collect();
        keys.iter().for_each(|key| self.forget(key));
        let keys: Vec<PostingKey> = self.keys.range(keys_of(document)).copied().collect();
        for key in keys {
            self.keys.remove(&key);
        }
        let tagged: Vec<PostingKey> = self.tags.range(keys_of(document)).map(|(&key, _)| key).collect();
        for key in tagged {
            self.tags.remove(&key);
        }
        self.documents.insert(document);
        self.payloads.insert(document, None);
    }

    fn remove_posting(&mut self, key: PostingKey) {
        self.forget(&key);
        self.tags.remove(&key);
        if !self.documents.contains(&key.document_id) {
            self.keys.insert(key);
        }
    }

    /// Removes what passes a filter, as the operations before have left it.
    fn remove_matching(&mut self, filter: &Filter, stored: &mut impl StoredPostings) -> Result<()> {
        let added = self.added.iter().filter(|&(&key, &row)| filter.passes(key, self.rows[row].tags));
        let mut found: Vec<PostingKey> = added.map(|(&key, _)| key).collect();
        stored.visit(filter.listed().as_deref(), &mut |key, tags| {
            let is_gone = self.documents.contains(&key.document_id) || self.keys.contains(&key) || self.adds(&key);
            if !is_gone && filter.passes(key, self.tags.get(&key).copied().unwrap_or(tags)) {
                found.push(key);
            }
        })?;
        found.into_iter().for_each(|key| self.remove_posting(key));
        Ok(())
    }

    fn set_tags(&mut self, key: PostingKey, tags: u64) {
        match self.added.get(&key) {
            Some(&row) => self.rows[row].tags = tags,
            None if self.documents.contains(&key.document_id) || self.keys.contains(&key) => {}
            None => {
                self.tags.insert(key, tags);
            }
        }
    }

    /// Takes back the addition of a key.
    fn forget(&mut self, key: &PostingKey) {
        if let Some(row) = self.added.remove(key) {
            self.rows[row].is_superseded = true;
        }
    }

    /// Drops the rows that later operations took back.
    fn finish(&mut self) {
        if self.rows.len() > self.added.len() {
            self.rows.retain(|row| !row.is_superseded);
            let keys = self.rows.iter().map(|row| row.posting.key());
            self.added = keys.zip(0..).collect();
        }
    }
}

fn at_most(index: usize, argument: &'static str, len: usize, most: usize) -> Result<()> {
    if len <= most {
        return Ok(());
    }
    Err(ShardexError::InvalidOperation { index, reason: format!("its {argument} has {len} bytes, {most} at most") })
}
