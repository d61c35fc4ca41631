//! Reading stored postings back: by document, by key, in storage order, and page by page in the order of keys.

use std::collections::BTreeSet;

use super::{Shardex, snapshot::IndexSnapshot};
use crate::{
    engine::Lent,
    error::Result,
    format::bucket::PayloadOwner,
    id::{DocumentId, PostingKey},
    index::{self, ScanPosition, StoredSlot},
    payload::Payload,
    posting::Posting,
    shard::{Lookup, StoredRow, StoredVector},
    storage::{MmapStorage, Storage},
};

/// Scan over the live postings of a snapshot, in storage order.
///
/// It keeps one posting in memory at a time. If a part of the data file is damaged, the scan returns `Corruption` for
/// that part and continues behind it.
#[derive(Clone)]
pub struct PostingScan<S: Storage = MmapStorage> {
    snapshot: IndexSnapshot<S>,
    position: ScanPosition,
}

impl<S: Storage> PostingScan<S> {
    /// Returns the position behind the last posting returned. [`IndexSnapshot::scan_from`] of the same snapshot, or of a
    /// clone of it, continues there.
    #[must_use]
    pub fn position(&self) -> ScanPosition {
        self.position
    }
}

impl<S: Storage> std::fmt::Debug for PostingScan<S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PostingScan").field("position", &self.position).finish_non_exhaustive()
    }
}

impl<S: Storage> Iterator for PostingScan<S> {
    type Item = Result<Posting>;

    fn next(&mut self) -> Option<Self::Item> {
        let IndexSnapshot { snapshot, data, .. } = &self.snapshot;
        let next = index::scan_next(snapshot, data, &mut self.position);
        next.map(|next| next.map(|row| self.snapshot.given(row))).transpose()
    }
}

impl<S: Storage> IndexSnapshot<S> {
    /// Returns all postings of a document, in the order of (start, length). Empty if the document has none.
    ///
    /// Vectors are returned as they were added. Under the cosine metric they are equal up to rounding, and in another
    /// [encoding](crate::VectorEncoding) than f32 they are the rounded ones.
    ///
    /// Cost: one test of a bloom filter per shard, and about one shard searched per shard that holds a posting of the
    /// document.
    ///
    /// # Errors
    /// Returns `Corruption` if a shard that may hold one of the postings is damaged.
    pub fn get(&self, document: DocumentId) -> Result<Vec<Posting>> {
        self.copies(index::find(&self.snapshot, &self.data, Lookup::Document(document))?)
    }

    /// Returns the posting with a key; `None` if there is none.
    ///
    /// # Errors
    /// Returns `Corruption` as [`get`](Self::get) does.
    pub fn get_posting(&self, key: PostingKey) -> Result<Option<Posting>> {
        let found = index::find(&self.snapshot, &self.data, Lookup::Key(key))?;
        Ok(self.copies(found)?.pop())
    }

    /// Reports whether a document has a posting. Reads no vector.
    ///
    /// # Errors
    /// Returns `Corruption` as [`get`](Self::get) does.
    pub fn contains(&self, document: DocumentId) -> Result<bool> {
        Ok(self.count(document)? > 0)
    }

    /// Returns the number of postings of a document. Reads no vector.
    ///
    /// # Errors
    /// Returns `Corruption` as [`get`](Self::get) does.
    pub fn count(&self, document: DocumentId) -> Result<u64> {
        Ok(index::find(&self.snapshot, &self.data, Lookup::Document(document))?.len() as u64)
    }

    /// Returns up to `most` ids of documents with a posting, in ascending order, from the first one after `after`.
    ///
    /// Pages of a later snapshot may be read with the last id of a page of an earlier one.
    ///
    /// Cost: reads the record of every posting of the snapshot. Memory: `most` ids.
    ///
    /// # Errors
    /// Returns `Corruption` if a shard is damaged.
    pub fn documents(&self, after: Option<DocumentId>, most: usize) -> Result<Vec<DocumentId>> {
        index::documents(&self.snapshot, &self.data, after, most)
    }

    /// Iterates all live postings in storage order.
    ///
    /// Cost: reads every byte of the vectors once, in the order of the file within a shard.
    #[must_use]
    pub fn scan(&self) -> PostingScan<S> {
        self.scan_from(ScanPosition::default())
    }

    /// Iterates the live postings in storage order, from a position of an earlier scan of this snapshot or of a clone
    /// of it.
    #[must_use]
    pub fn scan_from(&self, position: ScanPosition) -> PostingScan<S> {
        PostingScan { snapshot: self.clone(), position }
    }

    /// Returns up to `most` postings in the order of (document id, start, length), from the first one after `after`.
    ///
    /// Pages of a later snapshot may be read with the last key of a page of an earlier one.
    ///
    /// Cost: reads the record of every posting of the snapshot for each page, so large pages are cheaper. Memory: one
    /// page.
    ///
    /// # Errors
    /// Returns `Corruption` if a shard is damaged.
    pub fn scan_by_key(&self, after: Option<PostingKey>, most: usize) -> Result<Vec<Posting>> {
        self.copies(index::page_by_key(&self.snapshot, &self.data, after, most)?)
    }

    /// Returns the payload of a document, read in place; `None` if it has none.
    ///
    /// # Errors
    /// Returns `Corruption` if the payload is damaged.
    pub fn payload(&self, document: DocumentId) -> Result<Option<Payload<Lent<S>>>> {
        let content = self.snapshot.payloads.find(PayloadOwner::Document(document));
        content.map(|content| content.read(&self.data)).transpose()
    }

    /// Returns the part of a document's payload that a posting covers, as text: `length` bytes from byte `start` on.
    /// `None` if the document has no payload.
    ///
    /// The ends are moved outwards to the boundaries of characters, and limited to the payload. For a posting whose range
    /// is in other units, use [`payload`](Self::payload).
    ///
    /// # Errors
    /// Returns `Corruption` if the payload is damaged, and `InvalidArgument` if it is not UTF-8 there.
    pub fn snippet(&self, key: PostingKey) -> Result<Option<String>> {
        self.payload(key.document_id)?.map(|payload| payload.snippet(key.start, key.length)).transpose()
    }

    /// Returns the ids of the documents with a payload that are after `after`, up to `most`, in ascending order.
    ///
    /// Cost: one comparison per document with a payload. Memory: `most` ids.
    #[must_use]
    pub fn documents_with_payload(&self, after: Option<DocumentId>, most: usize) -> Vec<DocumentId> {
        let owners = self.snapshot.payloads.iter().filter_map(|content| match content.owner() {
            PayloadOwner::Document(document) => Some(document),
            PayloadOwner::Cursor => None,
        });
        let mut least = BTreeSet::new();
        for document in owners.filter(|&document| Some(document) > after) {
            least.insert(document);
            if least.len() > most {
                least.pop_last();
            }
        }
        least.into_iter().collect()
    }

    /// Returns the application's cursor in this snapshot; empty if none was set. A crash may undo it.
    ///
    /// # Errors
    /// Returns `Corruption` if the stored cursor is damaged.
    pub fn cursor(&self) -> Result<Vec<u8>> {
        let content = self.snapshot.payloads.find(PayloadOwner::Cursor);
        content.map_or(Ok(Vec::new()), |content| Ok(content.read(&self.data)?.to_vec()))
    }

    fn copies(&self, found: Vec<StoredSlot>) -> Result<Vec<Posting>> {
        let copy = |at: StoredSlot| {
            let (stored, vector) = index::posting_at(&self.snapshot, &self.data, at.shard, at.slot)?;
            Ok(self.given(StoredRow { posting: stored.posting, tags: stored.tags, vector }))
        };
        found.into_iter().map(copy).collect()
    }

    /// Returns a posting as it was added.
    fn given(&self, StoredRow { posting, tags, vector }: StoredRow<StoredVector<'_>>) -> Posting {
        let vector = index::given(vector.to_f32(), posting.norm, self.data.geometry().metric);
        Posting::new(posting.key(), vector).tagged(tags)
    }
}

impl<S: Storage> Shardex<S> {
    /// Returns all postings of a document. See [`IndexSnapshot::get`].
    ///
    /// # Errors
    /// Returns the errors of [`IndexSnapshot::get`], and `Closed` if the handle is closed.
    pub async fn get(&self, document: DocumentId) -> Result<Vec<Posting>> {
        self.view()?.get(document)
    }

    /// Returns the posting with a key; `None` if there is none.
    ///
    /// # Errors
    /// Returns the errors of [`get`](Self::get).
    pub async fn get_posting(&self, key: PostingKey) -> Result<Option<Posting>> {
        self.view()?.get_posting(key)
    }

    /// Reports whether a document has a posting.
    ///
    /// # Errors
    /// Returns the errors of [`get`](Self::get).
    pub async fn contains(&self, document: DocumentId) -> Result<bool> {
        self.view()?.contains(document)
    }

    /// Returns a copy of the payload of a document; `None` if it has none.
    ///
    /// # Errors
    /// Returns the errors of [`IndexSnapshot::payload`], and `Closed` if the handle is closed.
    pub async fn payload(&self, document: DocumentId) -> Result<Option<Vec<u8>>> {
        Ok(self.view()?.payload(document)?.map(|payload| payload.to_vec()))
    }

    /// Returns the number of postings of a document.
    ///
    /// # Errors
    /// Returns the errors of [`get`](Self::get).
    pub async fn count(&self, document: DocumentId) -> Result<u64> {
        self.view()?.count(document)
    }
}
