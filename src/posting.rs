//! What a caller puts in and gets out: postings, searches and their answers.

use crate::id::{DocumentId, Lsn};

/// A part of a document, with the vector that stands for it.
///
/// The triple (`document_id`, `start`, `length`) is a posting's key: adding one with the key of a stored
/// posting replaces that one.
#[derive(Clone, Debug, PartialEq)]
pub struct Posting {
    /// The document.
    pub document_id: DocumentId,
    /// Where the part starts, in whatever unit the caller counts.
    pub start: u32,
    /// How long the part is, in the same unit: at least 1, and `start + length` fits in a `u32`.
    pub length: u32,
    /// The vector: as many finite numbers as the index has dimensions.
    pub vector: Vec<f32>,
}

/// One posting that a search found.
#[derive(Clone, Debug, PartialEq)]
pub struct SearchResult {
    /// The document.
    pub document_id: DocumentId,
    /// Where the part starts.
    pub start: u32,
    /// How long the part is.
    pub length: u32,
    /// The vector as it was given; under the cosine metric to within rounding (it is stored normalised, with
    /// its norm).
    pub vector: Vec<f32>,
    /// Higher is nearer: the cosine, the dot product, or the negated squared Euclidean distance.
    pub similarity_score: f32,
}

/// What to search for.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct SearchOptions {
    /// Number of results: 1 to [`MAX_K`](crate::limits::MAX_K). Fewer come back from a smaller index.
    pub k: usize,
    /// Number of shards to scan, the nearest first. Where the index has cells, as many postings are looked at as that many
    /// shards hold, in the nearest cells; from the number of all shards on, it is every posting. Together with a
    /// `recall` it is the most that is looked at.
    pub slop: Option<usize>,
    /// Share of the true nearest that is wanted, above 0 and at most 1: the search goes on until that much is likely found. Where
    /// neither this nor `slop` is given, the configured default.
    ///
    /// It is a share on the average of many queries that are like what is stored; a single one may find fewer. What it takes is
    /// found by searches for stored vectors, and for some beside them, whose true nearest 1 to 300 were computed; other `k`
    /// lie between. Everything is looked at for a `k` from 901 on and for recalls above 0.995, and wherever codes do not serve:
    /// before there are any, where they are damaged, and of few vectors or dimensions. The search for a query that is not like what
    /// is stored goes on farther, and the query is told of by [`SearchResponse::calibrated`]. [`stats().recall`](crate::IndexStats::recall) says
    /// what was reached.
    pub recall: Option<f32>,
    /// Scan every shard: the answer is that of a brute-force scan.
    pub exact: bool,
}

impl SearchOptions {
    /// The `k` nearest, with every other option at its default.
    #[must_use]
    pub fn new(k: usize) -> Self {
        Self { k, slop: None, recall: None, exact: false }
    }

    /// Sets the number of shards to scan.
    #[must_use]
    pub fn slop(mut self, slop: usize) -> Self {
        self.slop = Some(slop);
        self
    }

    /// Sets the share of the true nearest that is wanted.
    #[must_use]
    pub fn recall(mut self, recall: f32) -> Self {
        self.recall = Some(recall);
        self
    }

    /// Scans every shard.
    #[must_use]
    pub fn exact(mut self) -> Self {
        self.exact = true;
        self
    }
}

/// The answer to one search.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct SearchResponse {
    /// The nearest first; equal scores by (document id, start, length).
    pub results: Vec<SearchResult>,
    /// Postings looked at, by their codes or their vectors. One that has its code in two cells may count twice.
    pub scanned: usize,
    /// Vectors whose distance was computed.
    pub computed: usize,
    /// Shards whose vectors were scanned from end to end: none where the cells answered.
    pub shards_scanned: usize,
    /// Cells whose codes were scanned.
    pub cells_scanned: usize,
    /// The share of the true nearest that was aimed at, on the average of many such queries; 1 if every posting was looked at.
    /// `None` if only a `slop` was given.
    pub recall: Option<f32>,
    /// Why the search stopped.
    pub stopped: Stopped,
    /// Whether the query is like what is stored: whether the nearest found is as near as 99.9 % of stored vectors have theirs, and as
    /// near for that place (for dot products: as large a product, and as large a cosine). If not, the search went on farther, and how
    /// much of the nearest that finds was tried by nobody. True where every posting was looked at, and where no recall was aimed at.
    pub calibrated: bool,
    /// The last write that this search saw.
    pub lsn: Lsn,
}

/// Why a search stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Stopped {
    /// As much of the nearest as was aimed at is likely found.
    Reached,
    /// Every posting was looked at.
    Everything,
    /// As much was looked at as the `slop` allows.
    Slop,
}
