//! Results of a search, read in place.
//!
//! Invariant: they hold the snapshot that the search ran on, so none of the page ranges they read is reused.

use std::{borrow::Cow, sync::Arc};

use super::{
    candidate::Candidate,
    snapshot::{Snapshot, extent_slot, shard_of},
};
use crate::{
    config::Metric,
    explain::{CellStep, ShardStep, StopReason},
    id::DocumentId,
    posting::{SearchResponse, SearchResult},
    shard::DataFile,
    storage::{MmapFile, StorageFile},
};

/// Postings that a search found, read in place. Nothing is copied until it is accessed; then vectors of another encoding
/// than f32 are. The page ranges that hold them stay unchanged while this value lives.
pub struct Hits<F: StorageFile = MmapFile> {
    pub(super) snapshot: Arc<Snapshot<F::Lent>>,
    pub(super) data: Arc<DataFile<F>>,
    pub(super) nearest: Vec<Candidate>,
    pub(super) work: SearchWork,
    pub(super) aim: SearchSummary,
}

/// What a search looked at.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct SearchWork {
    /// Number of codes, rounded copies and vectors.
    pub(super) scanned: usize,
    /// Number of distances computed.
    pub(super) computed: usize,
    /// Number of shards whose vectors were compared.
    pub(super) shards: usize,
    /// Number of rounded copies compared.
    pub(super) rounded: usize,
    /// Search by cells that ran, if one did.
    pub(super) by_cells: Option<CellStep>,
}

impl SearchWork {
    /// Adds the work of another search.
    pub(super) fn add(&mut self, other: &Self) {
        self.scanned += other.scanned;
        self.computed += other.computed;
        self.shards += other.shards;
        self.rounded += other.rounded;
        self.by_cells = match (self.by_cells, other.by_cells) {
            (Some(a), Some(b)) => Some(a.joined(&b)),
            (a, b) => a.or(b),
        };
    }

    fn cells(&self) -> usize {
        self.by_cells.map_or(0, |step| step.cells)
    }
}

/// Target of a search and the reason why it stopped.
#[derive(Clone, Copy, Debug)]
pub(super) struct SearchSummary {
    /// Target recall; 1 after an exhaustive search. `None` if only a slop limited the search.
    pub(super) recall: Option<f32>,
    /// Reason why the search stopped.
    pub(super) stopped: StopReason,
    /// Whether the query is like the calibration queries.
    pub(super) calibrated: bool,
}

impl SearchSummary {
    /// Returns what holds for this search and another one together.
    pub(super) fn joined(self, other: Self) -> Self {
        let recall = match (self.recall, other.recall) {
            (Some(a), Some(b)) => Some(a.min(b)),
            _ => None,
        };
        let stopped = match (self.stopped, other.stopped) {
            (StopReason::Everything, other) => other,
            (StopReason::Reached, StopReason::Slop) => StopReason::Slop,
            (stopped, _) => stopped,
        };
        Self { recall, stopped, calibrated: self.calibrated && other.calibrated }
    }
}

/// One posting of [`Hits`].
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Hit<'a> {
    /// Id of the document.
    pub document_id: DocumentId,
    /// Start of the part within the document, in the caller's unit.
    pub start: u32,
    /// Length of the part, in the caller's unit.
    pub length: u32,
    /// Vector as stored: under the cosine metric divided by `norm`. Borrowed from the mapped file, or a copy if the index
    /// stores vectors in another [encoding](crate::VectorEncoding) than f32.
    pub vector: Cow<'a, [f32]>,
    /// Norm of the vector as it was given, under the cosine metric; 1 under other metrics.
    pub norm: f32,
    /// Score, higher is nearer: the cosine, the dot product, or the negated squared Euclidean distance.
    pub similarity_score: f32,
    /// Tags of the posting.
    pub tags: u64,
}

impl<F: StorageFile> Hits<F> {
    /// Drops the first hits.
    pub(crate) fn skip(&mut self, count: usize) {
        self.nearest.drain(..count.min(self.nearest.len()));
    }

    /// Returns the number of hits.
    #[must_use]
    pub fn len(&self) -> usize {
        self.nearest.len()
    }

    /// Reports whether the search found no posting.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.nearest.is_empty()
    }

    /// Returns the number of postings scanned, by their codes, their vectors, or the rounded copies of a filter. A posting
    /// with two codes may count twice.
    #[must_use]
    pub fn scanned(&self) -> usize {
        self.work.scanned
    }

    /// Returns the number of vectors whose distance was computed.
    #[must_use]
    pub fn computed(&self) -> usize {
        self.work.computed
    }

    /// Returns the target recall, as [`SearchResponse::recall`] defines it.
    #[must_use]
    pub fn recall(&self) -> Option<f32> {
        self.aim.recall
    }

    /// Returns the reason why the search stopped.
    #[must_use]
    pub fn stopped(&self) -> StopReason {
        self.aim.stopped
    }

    /// Reports whether the query is like the calibration queries, as [`SearchResponse::calibrated`] defines it.
    #[must_use]
    pub fn calibrated(&self) -> bool {
        self.aim.calibrated
    }

    /// Returns the search by cells and the comparison of whole shards that ran.
    pub(crate) fn steps(&self) -> (Option<CellStep>, Option<ShardStep>) {
        let SearchWork { computed, shards, rounded, by_cells, .. } = self.work;
        let distances = computed.saturating_sub(by_cells.map_or(0, |step| step.distances));
        (by_cells, (shards > 0).then_some(ShardStep { shards, rounded, distances }))
    }

    /// Iterates the hits, nearest first. Equal scores are ordered by (document id, start, length).
    pub fn iter(&self) -> impl ExactSizeIterator<Item = Hit<'_>> {
        self.nearest.iter().map(|candidate| self.hit(candidate))
    }

    fn hit(&self, candidate: &Candidate) -> Hit<'_> {
        let geometry = self.data.geometry();
        let (extent, slot) = extent_slot(&self.snapshot, geometry, candidate);
        let (posting, vector) = extent.posting(slot, geometry);
        Hit {
            document_id: candidate.document_id,
            start: candidate.start,
            length: candidate.length,
            vector: vector.to_f32(),
            norm: posting.norm,
            // `0.0 - distance` and not `-distance`, so that a distance of 0 gives a score of 0 and not -0.
            similarity_score: 0.0 - candidate.distance,
            tags: shard_of(&self.snapshot, candidate.shard)
                .map_or(0, |shard| shard.tags().get(candidate.slot as usize)),
        }
    }

    /// Copies all hits into a response.
    #[must_use]
    pub fn to_response(&self) -> SearchResponse {
        let metric = self.data.geometry().metric;
        let result = |hit: Hit<'_>| SearchResult {
            document_id: hit.document_id,
            start: hit.start,
            length: hit.length,
            vector: given(hit.vector, hit.norm, metric),
            similarity_score: hit.similarity_score,
            tags: hit.tags,
            payload: None,
        };
        SearchResponse {
            results: self.iter().map(result).collect(),
            scanned: self.work.scanned,
            computed: self.work.computed,
            shards_scanned: self.work.shards,
            cells_scanned: self.work.cells(),
            recall: self.aim.recall,
            stopped: self.aim.stopped,
            calibrated: self.aim.calibrated,
            lsn: self.snapshot.lsn,
            plan: None,
        }
    }
}

/// Returns a stored vector in the scale in which it was added.
pub fn given(stored: Cow<'_, [f32]>, norm: f32, metric: Metric) -> Vec<f32> {
    match metric {
        Metric::Cosine => stored.iter().map(|x| x * norm).collect(),
        Metric::L2 | Metric::Dot => stored.into_owned(),
    }
}

impl<F: StorageFile> std::fmt::Debug for Hits<F> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}
