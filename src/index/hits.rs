//! The results of a search, read where they lie.
//!
//! Invariant: they hold the snapshot that the search ran on, so that none of their places is used again.

use std::sync::Arc;

use super::{
    snapshot::{Snapshot, place},
    topk::Candidate,
};
use crate::{
    config::Metric,
    id::DocumentId,
    posting::{SearchResponse, SearchResult, Stopped},
    shard::DataFile,
    storage::{MmapFile, StorageFile},
};

/// The postings that a search found, read in place: nothing is copied until it is asked for, and the places they lie in
/// stay as they are while this lives.
pub struct Hits<F: StorageFile = MmapFile> {
    pub(super) snapshot: Arc<Snapshot<F::Lent>>,
    pub(super) data: Arc<DataFile<F>>,
    pub(super) nearest: Vec<Candidate>,
    pub(super) scanned: usize,
    pub(super) computed: usize,
    pub(super) shards_scanned: usize,
    pub(super) cells_scanned: usize,
    pub(super) aim: Aim,
}

/// What a search was to find, and how it ended.
#[derive(Clone, Copy, Debug)]
pub(super) struct Aim {
    pub(super) recall: Option<f32>,
    pub(super) stopped: Stopped,
    pub(super) calibrated: bool,
}

/// One posting of [`Hits`].
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct Hit<'a> {
    /// The document.
    pub document_id: DocumentId,
    /// Where the part starts.
    pub start: u32,
    /// How long it is.
    pub length: u32,
    /// The vector as it is stored: under the cosine metric divided by `norm`.
    pub vector: &'a [f32],
    /// Under the cosine metric the norm of the vector that was given, else 1.
    pub norm: f32,
    /// Higher is nearer: the cosine, the dot product, or the negated squared Euclidean distance.
    pub similarity_score: f32,
}

impl<F: StorageFile> Hits<F> {
    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.nearest.len()
    }

    /// Whether nothing was found.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.nearest.is_empty()
    }

    /// Postings looked at, by their codes or their vectors; one that has two codes may count twice.
    #[must_use]
    pub fn scanned(&self) -> usize {
        self.scanned
    }

    /// Vectors whose distance was computed.
    #[must_use]
    pub fn computed(&self) -> usize {
        self.computed
    }

    /// The recall that was aimed at, as [`SearchResponse::recall`] has it.
    #[must_use]
    pub fn recall(&self) -> Option<f32> {
        self.aim.recall
    }

    /// Why the search stopped.
    #[must_use]
    pub fn stopped(&self) -> Stopped {
        self.aim.stopped
    }

    /// Whether the query is like what recalls were tried with, as [`SearchResponse::calibrated`] has it.
    #[must_use]
    pub fn calibrated(&self) -> bool {
        self.aim.calibrated
    }

    /// The hits, nearest first; equal scores by (document id, start, length).
    pub fn iter(&self) -> impl ExactSizeIterator<Item = Hit<'_>> {
        self.nearest.iter().map(|candidate| self.hit(candidate))
    }

    fn hit(&self, candidate: &Candidate) -> Hit<'_> {
        let geometry = self.data.geometry();
        let (extent, slot) = place(&self.snapshot, geometry, candidate);
        let (posting, vector) = extent.posting(slot, geometry);
        Hit {
            document_id: candidate.document_id,
            start: candidate.start,
            length: candidate.length,
            vector,
            norm: posting.norm,
            // 0.0 - distance, so that a distance of 0 gives a score of 0 and not -0.
            similarity_score: 0.0 - candidate.distance,
        }
    }

    /// Copies everything out.
    #[must_use]
    pub fn to_response(&self) -> SearchResponse {
        let cosine = self.data.geometry().metric == Metric::Cosine;
        let result = |hit: Hit<'_>| SearchResult {
            document_id: hit.document_id,
            start: hit.start,
            length: hit.length,
            vector: if cosine { hit.vector.iter().map(|x| x * hit.norm).collect() } else { hit.vector.to_vec() },
            similarity_score: hit.similarity_score,
        };
        SearchResponse {
            results: self.iter().map(result).collect(),
            scanned: self.scanned,
            computed: self.computed,
            shards_scanned: self.shards_scanned,
            cells_scanned: self.cells_scanned,
            recall: self.aim.recall,
            stopped: self.aim.stopped,
            calibrated: self.aim.calibrated,
            lsn: self.snapshot.lsn,
        }
    }
}

impl<F: StorageFile> std::fmt::Debug for Hits<F> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}
