//! Input and output of the API: postings, search options and search results.

use crate::{
    explain::{SearchPlan, StopReason},
    filter::Filter,
    id::{DocumentId, Lsn, PostingKey},
};

/// Part of a document and its vector.
///
/// The triple (`document_id`, `start`, `length`) is the posting's key. Adding a posting replaces the stored posting
/// with the same key.
#[derive(Clone, Debug, PartialEq)]
pub struct Posting {
    /// Id of the document.
    pub document_id: DocumentId,
    /// Start of the part, in a unit that the caller chooses.
    pub start: u32,
    /// Length of the part in the same unit: at least 1. `start + length` must fit in a `u32`.
    pub length: u32,
    /// Vector: one finite number per dimension of the index.
    pub vector: Vec<f32>,
    /// Tags: 64 bits whose meaning is the application's, such as a tenant, a kind, a class of access. 0 by default.
    pub tags: u64,
}

impl Posting {
    /// Creates a posting without tags.
    #[must_use]
    pub fn new(key: PostingKey, vector: Vec<f32>) -> Self {
        let PostingKey { document_id, start, length } = key;
        Self { document_id, start, length, vector, tags: 0 }
    }

    /// Sets the tags.
    #[must_use]
    pub fn tagged(mut self, tags: u64) -> Self {
        self.tags = tags;
        self
    }

    /// Returns the key of the posting.
    #[must_use]
    pub fn key(&self) -> PostingKey {
        PostingKey { document_id: self.document_id, start: self.start, length: self.length }
    }
}

/// Posting found by a search, with its score.
#[derive(Clone, Debug, PartialEq)]
pub struct SearchResult {
    /// Id of the document.
    pub document_id: DocumentId,
    /// Start of the part.
    pub start: u32,
    /// Length of the part.
    pub length: u32,
    /// Vector as it was added. Under the cosine metric it is equal up to rounding, because it is stored normalised,
    /// with its norm. In another [encoding](crate::VectorEncoding) than f32 it is the rounded one.
    pub vector: Vec<f32>,
    /// Similarity score, higher is nearer: the cosine, the dot product, or the negated squared Euclidean distance.
    pub similarity_score: f32,
    /// Tags of the posting.
    pub tags: u64,
    /// Payload of the document, if the search asked for it by [`SearchOptions::with_payload`]; `None` if it has none.
    pub payload: Option<Vec<u8>>,
}

/// Options of a search.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct SearchOptions {
    /// Number of results: 1 to [`MAX_K`](crate::limits::MAX_K). A smaller index returns fewer.
    pub k: usize,
    /// Probe count (`nprobe`): number of nearest shards to scan.
    ///
    /// If the index has cells, the search scans cells instead, the nearest first, and stops once it has scanned as many
    /// codes as `slop` shards have on average. Unindexed postings are scanned besides and don't count.
    ///
    /// If both `slop` and `recall` are given, the search stops at whichever it reaches first. If `slop` is at least the
    /// number of shards, it limits nothing: without a `recall` below 1 the search is exhaustive.
    pub slop: Option<usize>,
    /// Target recall: share of the true nearest neighbours to find, above 0 and at most 1.
    ///
    /// Without `recall` and `slop` it is the configured [`default_recall`](crate::OpenOptions::default_recall). The
    /// search stops once it has likely found this share.
    ///
    /// The target is an average over many queries that are like the stored vectors. A single query may find fewer. The
    /// search effort comes from a calibration with stored vectors, some of them displaced by a part of the difference of
    /// two others, for 1, 3, 10, 30, 100 and
    /// 300 results. The effort for other values of `k` is interpolated.
    ///
    /// The search is exhaustive for `k` above 900, for a recall above 0.995, and where codes don't help: before cells
    /// exist, if cells are damaged, and with few vectors or few dimensions. If the query is unlike the stored vectors,
    /// the search extends farther, and [`SearchResponse::calibrated`] is false.
    /// [`stats().recall`](crate::IndexStats::recall) shows the recall that the calibration measured.
    pub recall: Option<f32>,
    /// Whether the search is exhaustive: it scans every shard, and the answer is that of a brute-force scan. `slop` and
    /// `recall` are ignored then.
    pub exact: bool,
    /// Filter that every result passes. The `k` nearest are those among the postings that pass, and the target recall
    /// holds among them. The search effort is that of a search without a filter for as many results as are expected to
    /// contain `k` that pass. If that is more than 900, every posting that passes is compared.
    pub filter: Option<Filter>,
    /// Least score of a result; `None` for no limit. Of the postings with at least this score, the `k` nearest are
    /// returned. So a search within a radius `r` has the least score `-(r * r)` under L2, and `k` bounds its results.
    pub min_score: Option<f32>,
    /// Number of nearest results that are left out, for pages: the search finds `offset + k` and returns the last `k`. The
    /// sum is at most [`MAX_K`](crate::limits::MAX_K). Pages of one snapshot fit together if the search is exact.
    /// Otherwise a later page has the recall of a larger search, and may repeat a result or miss one.
    pub offset: usize,
    /// Number of results per document at most; `None` to count postings. With a number, `k` and `offset` count documents:
    /// the search returns the `k` nearest documents, each with its nearest postings up to this number, in the order of
    /// their nearest postings. At least 1, and `k` times it at most [`MAX_K`](crate::limits::MAX_K).
    ///
    /// A document is as near as its nearest posting, and the target recall holds for documents. Cost: more than for
    /// postings if many near postings belong to the same documents. If they are more than 900, everything is compared. With
    /// more than one result per document, all postings of the documents found are compared.
    pub per_document: Option<usize>,
    /// Whether the results carry a copy of their document's payload.
    pub with_payload: bool,
    /// Whether the response has a [`SearchPlan`]: how the search ran, for people to read.
    pub explain: bool,
}

impl SearchOptions {
    /// Returns options for the `k` nearest, with every other option at its default.
    #[must_use]
    pub fn new(k: usize) -> Self {
        Self {
            k,
            slop: None,
            recall: None,
            exact: false,
            filter: None,
            min_score: None,
            offset: 0,
            per_document: None,
            with_payload: false,
            explain: false,
        }
    }

    /// Counts documents: `k` documents, each with `most` results at most.
    #[must_use]
    pub fn per_document(mut self, most: usize) -> Self {
        self.per_document = Some(most);
        self
    }

    /// Asks for a copy of the payload with each result.
    #[must_use]
    pub fn with_payload(mut self) -> Self {
        self.with_payload = true;
        self
    }

    /// Asks for an explanation of how the search ran.
    #[must_use]
    pub fn explain(mut self) -> Self {
        self.explain = true;
        self
    }

    /// Sets the probe count: the number of shards to scan.
    #[must_use]
    pub fn slop(mut self, slop: usize) -> Self {
        self.slop = Some(slop);
        self
    }

    /// Sets the target recall.
    #[must_use]
    pub fn recall(mut self, recall: f32) -> Self {
        self.recall = Some(recall);
        self
    }

    /// Sets the least score of a result.
    #[must_use]
    pub fn min_score(mut self, score: f32) -> Self {
        self.min_score = Some(score);
        self
    }

    /// Leaves out the nearest results.
    #[must_use]
    pub fn offset(mut self, offset: usize) -> Self {
        self.offset = offset;
        self
    }

    /// Sets the filter.
    #[must_use]
    pub fn filter(mut self, filter: Filter) -> Self {
        self.filter = Some(filter);
        self
    }

    /// Makes the search exhaustive.
    #[must_use]
    pub fn exact(mut self) -> Self {
        self.exact = true;
        self
    }
}

/// Answer to one search.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct SearchResponse {
    /// Results, the nearest first. Equal scores are ordered by (document id, start, length).
    pub results: Vec<SearchResult>,
    /// Number of codes, vectors and [rounded copies](crate::Filter) scanned. A posting may count several times: it may
    /// have codes in two cells, and a second pass of the search counts again.
    pub scanned: usize,
    /// Number of distances computed. A second pass computes those of unindexed postings again.
    pub computed: usize,
    /// Number of shards of which everything that passes was compared; 0 if the cells gave the answer.
    pub shards_scanned: usize,
    /// Number of cells whose codes were scanned, those of a second pass included.
    pub cells_scanned: usize,
    /// Target recall, an average over many such queries; 1 if the search was exhaustive. `None` if only a `slop` was
    /// given.
    pub recall: Option<f32>,
    /// Reason why the search stopped.
    pub stopped: StopReason,
    /// Whether the query is like the stored vectors, so that the calibrated recall applies to it.
    ///
    /// False if the search had a target recall, was not exhaustive in the end, and at least one of these holds:
    ///
    /// * The query lies farther outside the span of the data's principal axes than 99.9 % of the stored vectors, and its
    ///   nearest result does not lie so far outside that span.
    /// * The nearest result is farther away than the nearest neighbours of 99.9 % of the stored vectors, absolutely or
    ///   relative to the local spread. Under the dot product, the product with the normalised query and the cosine take
    ///   the place of distances, and an unindexed nearest result doesn't count.
    /// * The index has no usable cells, and `slop` limited the search.
    ///
    /// True in all other cases.
    ///
    /// If false, the recall of such queries was never measured. The search extended farther, unless `slop` was given or no
    /// larger effort is known.
    pub calibrated: bool,
    /// LSN of the last write that the search saw, or of a closing mark after it.
    pub lsn: Lsn,
    /// How the search ran, if it was asked for by [`SearchOptions::explain`].
    pub plan: Option<Box<SearchPlan>>,
}
