//! Posting that may be a result, and the total order of results.

use std::cmp::Ordering;

use crate::{id::DocumentId, shard::StoredPosting};

/// Posting that may be among the nearest.
///
/// Candidates are ordered by (distance, document id, start, length). So two searches that scan the same postings return
/// the same results, independent of the order of the scan.
#[derive(Clone, Copy, Debug)]
pub struct Candidate {
    /// Distance, lower is nearer: a negated product or a squared distance. Never NaN.
    pub distance: f32,
    /// Id of the document.
    pub document_id: DocumentId,
    /// Start of the part within the document.
    pub start: u32,
    /// Length of the part.
    pub length: u32,
    /// Number of the shard.
    pub shard: u32,
    /// Slot in the shard.
    pub slot: u32,
}

impl Candidate {
    /// Creates a candidate for the posting in a slot of the shard with a number.
    #[must_use]
    pub fn new(distance: f32, posting: StoredPosting, shard: u32, slot: usize) -> Self {
        let StoredPosting { document_id, start, length, .. } = posting;
        Self { distance, document_id, start, length, shard, slot: slot as u32 }
    }

    /// Returns the posting's position: the shard's number and the slot.
    #[must_use]
    pub fn slot_id(&self) -> (u32, u32) {
        (self.shard, self.slot)
    }
}

impl Ord for Candidate {
    fn cmp(&self, other: &Self) -> Ordering {
        // Adding 0.0 turns -0.0 into 0.0, so that the two compare as equal, as in arithmetic.
        (self.distance + 0.0)
            .total_cmp(&(other.distance + 0.0))
            .then(self.document_id.cmp(&other.document_id))
            .then(self.start.cmp(&other.start))
            .then(self.length.cmp(&other.length))
    }
}

impl PartialOrd for Candidate {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Candidate {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Candidate {}
