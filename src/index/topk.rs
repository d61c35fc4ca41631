//! Selection of the `k` nearest candidates, with one total order for all searches.

use std::collections::BinaryHeap;

use super::{candidate::Candidate, nearest_documents::NearestDocuments};

/// Set of the `k` nearest candidates offered so far, or of the nearest candidate of each of the `k` nearest documents.
#[derive(Debug)]
pub struct TopK {
    k: usize,
    heap: BinaryHeap<Candidate>,
    /// In place of the heap, if documents are counted.
    documents: Option<NearestDocuments>,
    /// Distance of the farthest kept candidate if the set is full; otherwise the distance up to which candidates are kept.
    /// Candidates farther than this are rejected.
    bound: f32,
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
        let heap = BinaryHeap::with_capacity(k.min(4_096));
        Self { k, heap, documents: None, bound: farthest, may_repeat: false }
    }

    /// Creates an empty set for the nearest candidate of each of the `k` nearest documents up to a distance.
    #[must_use]
    pub fn of_documents(k: usize, farthest: f32) -> Self {
        Self { documents: Some(NearestDocuments::default()), ..Self::within(k, farthest) }
    }

    /// Upper bound on the distance of a useful candidate: candidates farther than this are rejected. Candidates at
    /// equal distance must be offered. Until the set is full it is the distance up to which candidates are kept.
    #[must_use]
    pub fn bound(&self) -> f32 {
        self.bound
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
        self.k - self.documents.as_ref().map_or(self.heap.len(), NearestDocuments::len)
    }

    /// Returns the nearest candidate so far. Cost: a pass over the kept candidates.
    #[must_use]
    pub fn nearest(&self) -> Option<&Candidate> {
        self.documents.as_ref().map_or_else(|| self.heap.iter().min(), NearestDocuments::nearest)
    }

    /// Returns the number of candidates within the bound that were passed over, because a nearer posting of their
    /// document is kept.
    #[must_use]
    pub fn passed_over(&self) -> usize {
        self.documents.as_ref().map_or(0, |documents| documents.passed_over(self.bound()))
    }

    /// Offers a candidate. The set keeps it if it is among the `k` nearest so far.
    pub fn offer(&mut self, candidate: Candidate) {
        if candidate.distance > self.bound {
            return;
        }
        if let Some(documents) = &mut self.documents {
            documents.offer(candidate, self.k);
            if let Some(worst) = documents.farthest().filter(|_| documents.len() == self.k) {
                self.bound = worst.distance;
            }
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
        if let Some(worst) = self.heap.peek().filter(|_| self.heap.len() == self.k) {
            self.bound = worst.distance;
        }
    }

    /// Returns the kept candidates, nearest first.
    #[must_use]
    pub fn into_sorted(self) -> Vec<Candidate> {
        self.documents.map_or_else(|| self.heap.into_sorted_vec(), NearestDocuments::into_sorted)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::DocumentId;

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
