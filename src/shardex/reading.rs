//! Reading stored postings back: by document, by key, in storage order, and page by page in the order of keys.

use super::{Shardex, snapshot::IndexSnapshot};
use crate::{
    config::Metric,
    error::Result,
    id::DocumentId,
    index::{self, PostingKey, ScanPosition, StoredSlot},
    posting::Posting,
    shard::{Lookup, StoredPosting},
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
        next.map(|next| next.map(|(posting, vector)| self.snapshot.given(&posting, vector))).transpose()
    }
}

impl<S: Storage> IndexSnapshot<S> {
    /// Returns all postings of a document, in the order of (start, length). Empty if the document has none.
    ///
    /// Vectors are returned as they were added. Under the cosine metric they are equal up to rounding.
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
    pub fn get_posting(&self, document: DocumentId, start: u32, length: u32) -> Result<Option<Posting>> {
        let found = index::find(&self.snapshot, &self.data, Lookup::Key(document, start, length))?;
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

    fn copies(&self, found: Vec<StoredSlot>) -> Result<Vec<Posting>> {
        let copy = |at: StoredSlot| {
            let (stored, vector) = index::posting_at(&self.snapshot, &self.data, at.shard, at.slot)?;
            Ok(self.given(&stored.posting, vector))
        };
        found.into_iter().map(copy).collect()
    }

    /// Returns a posting as it was added.
    fn given(&self, posting: &StoredPosting, vector: &[f32]) -> Posting {
        let &StoredPosting { document_id, start, length, norm } = posting;
        let vector = match self.data.geometry().metric {
            Metric::Cosine => vector.iter().map(|x| x * norm).collect(),
            Metric::L2 | Metric::Dot => vector.to_vec(),
        };
        Posting { document_id, start, length, vector }
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
    pub async fn get_posting(&self, document: DocumentId, start: u32, length: u32) -> Result<Option<Posting>> {
        self.view()?.get_posting(document, start, length)
    }

    /// Reports whether a document has a posting.
    ///
    /// # Errors
    /// Returns the errors of [`get`](Self::get).
    pub async fn contains(&self, document: DocumentId) -> Result<bool> {
        self.view()?.contains(document)
    }

    /// Returns the number of postings of a document.
    ///
    /// # Errors
    /// Returns the errors of [`get`](Self::get).
    pub async fn count(&self, document: DocumentId) -> Result<u64> {
        self.view()?.count(document)
    }
}
