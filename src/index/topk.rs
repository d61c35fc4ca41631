//! Selection of the `k` nearest candidates, with one total order for all searches.

use std::{cmp::Ordering, collections::BinaryHeap};

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

/// Set of the `k` nearest candidates offered so far.
#[derive(Debug)]
pub struct TopK {
    k: usize,
    heap: BinaryHeap<Candidate>,
    /// Candidates farther than this are rejected.
    farthest: f32,
    /// Whether a kept candidate may be offered again.
    may_repeat: bool,
}

impl TopK {
    /// Creates an empty set for `k` candidates.
    #[must_use]
    pub fn new(k: usize) -> Self {
        Self::within(k, f32::INFINITY)
    }

    /// Creates an empty set for the `k` nearest candidates up to a distance.
    #[must_use]
    pub fn within(k: usize, farthest: f32) -> Self {
        Self { k, heap: BinaryHeap::with_capacity(k.min(4_096)), farthest, may_repeat: false }
    }

    /// Upper bound on the distance of a useful candidate: candidates farther than this are rejected. Candidates at
    /// equal distance must be offered. Until the set is full it is the distance up to which candidates are kept.
    #[must_use]
    pub fn bound(&self) -> f32 {
        match self.heap.peek() {
            Some(worst) if self.heap.len() == self.k => worst.distance,
            _ => self.farthest,
        }
    }

    /// Returns the number of candidates that the set keeps.
    #[must_use]
    pub fn k(&self) -> usize {
        self.k
    }

    /// Allows candidates to be offered again. Cost: each later offer is compared with every kept candidate.
    pub fn is_offered_again(&mut self) {
        self.may_repeat = true;
    }

    /// Returns the number of candidates missing until the set is full.
    #[must_use]
    pub fn room(&self) -> usize {
        self.k - self.heap.len()
    }

    /// Returns the nearest candidate so far. Cost: a pass over the kept candidates.
    #[must_use]
    pub fn nearest(&self) -> Option<&Candidate> {
        self.heap.iter().min()
    }

    /// Offers a candidate. The set keeps it if it is among the `k` nearest so far.
    pub fn offer(&mut self, candidate: Candidate) {
        if candidate.distance > self.farthest {
            return;
        }
        if self.may_repeat && self.heap.iter().any(|known| known.slot_id() == candidate.slot_id()) {
            return;
        }
        if self.heap.len() < self.k {
            self.heap.push(candidate);
        } else if let Some(mut worst) = self.heap.peek_mut()
            && candidate < *worst
        {
            *worst = candidate;
        }
    }

    /// Returns the kept candidates, nearest first.
    #[must_use]
    pub fn into_sorted(self) -> Vec<Candidate> {
        self.heap.into_sorted_vec()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_offered_again_is_kept_once() {
        let candidate = |distance, id| Candidate {
            distance,
            document_id: DocumentId(id),
            start: 0,
            length: 1,
            shard: 0,
            slot: id as u32,
        };
        let mut top = TopK::new(3);
        [candidate(1.0, 1), candidate(2.0, 2)].into_iter().for_each(|one| top.offer(one));
        top.is_offered_again();
        [candidate(2.0, 2), candidate(1.0, 1), candidate(2.0, 3)].into_iter().for_each(|one| top.offer(one));
        let kept: Vec<u128> = top.into_sorted().iter().map(|one| one.document_id.0).collect();
        assert_eq!(kept, [1, 2, 3]);
    }

    #[test]
    fn ties_are_broken_by_key_whatever_the_order_of_offers() {
        let candidate = |distance, id, start, length| Candidate {
            distance,
            document_id: DocumentId(id),
            start,
            length,
            shard: 0,
            slot: 0,
        };
        let mut all = [
            candidate(1.0, 3, 0, 1),
            candidate(-0.0, 9, 0, 1),
            candidate(0.0, 2, 5, 1),
            candidate(1.0, 3, 1, 1),
            candidate(1.0, 1, 9, 8),
            candidate(1.0, 1, 9, 7),
            candidate(1.0, 1, 9, 9),
        ];
        for turn in 0..7 {
            all.rotate_left(turn);
            for (k, last) in [(3, 7), (4, 8), (5, 9)] {
                let mut top = TopK::new(k);
                all.iter().for_each(|&c| top.offer(c));
                let keys: Vec<_> = top.into_sorted().iter().map(|c| (c.document_id.0, c.start, c.length)).collect();
                assert_eq!(keys[..3], [(2, 5, 1), (9, 0, 1), (1, 9, 7)]);
                assert_eq!(keys[k - 1], (1, 9, last));
            }
        }
    }
}
