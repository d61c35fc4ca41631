//! Selection of the nearest documents: the nearest posting of each.

use std::collections::{BTreeMap, BTreeSet};

use super::candidate::Candidate;
use crate::id::DocumentId;

/// Set of the nearest candidates offered so far, one of each document.
#[derive(Debug, Default)]
pub(super) struct NearestDocuments {
    /// Kept candidates.
    order: BTreeSet<Candidate>,
    /// Kept candidate of each document.
    of: BTreeMap<DocumentId, Candidate>,
    /// Distances of candidates that were passed over, because a nearer posting of their document is kept.
    passed_over: Vec<f32>,
}

impl NearestDocuments {
    /// Returns the number of documents.
    pub(super) fn len(&self) -> usize {
        self.order.len()
    }

    /// Returns the nearest candidate.
    pub(super) fn nearest(&self) -> Option<&Candidate> {
        self.order.first()
    }

    /// Returns the farthest candidate.
    pub(super) fn farthest(&self) -> Option<&Candidate> {
        self.order.last()
    }

    /// Returns the number of candidates up to a distance that were passed over.
    pub(super) fn passed_over(&self, up_to: f32) -> usize {
        self.passed_over.iter().filter(|&&distance| distance <= up_to).count()
    }

    /// Offers a candidate. The set keeps it if it is the nearest of its document, and that document is among the `k`
    /// nearest so far.
    pub(super) fn offer(&mut self, candidate: Candidate, k: usize) {
        if self.len() == k && self.farthest().is_none_or(|farthest| candidate > *farthest) {
            return;
        }
        if let Some(known) = self.of.get(&candidate.document_id).copied() {
            if known.slot_id() == candidate.slot_id() {
                return;
            }
            self.passed_over.push(known.distance.max(candidate.distance));
            if known <= candidate {
                return;
            }
            self.order.remove(&known);
        } else if self.len() == k
            && let Some(farthest) = self.order.pop_last()
        {
            self.of.remove(&farthest.document_id);
        }
        self.order.insert(candidate);
        self.of.insert(candidate.document_id, candidate);
    }

    /// Returns the kept candidates, nearest first.
    pub(super) fn into_sorted(self) -> Vec<Candidate> {
        self.order.into_iter().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn candidate(distance: f32, document: u128, slot: u32) -> Candidate {
        Candidate { distance, document_id: DocumentId(document), start: slot, length: 1, shard: 0, slot }
    }

    #[test]
    fn the_nearest_posting_of_each_of_the_nearest_documents_is_kept_in_any_order() {
        let mut all = [
            candidate(1.0, 1, 0),
            candidate(2.0, 1, 1),
            candidate(1.5, 2, 2),
            candidate(9.0, 3, 3),
            candidate(0.5, 3, 4),
            candidate(4.0, 4, 5),
            candidate(1.5, 1, 6),
        ];
        for turn in 0..7 {
            all.rotate_left(turn);
            let mut nearest = NearestDocuments::default();
            all.iter().chain(&all).for_each(|&one| nearest.offer(one, 3));
            assert_eq!((nearest.passed_over(0.9), nearest.len()), (0, 3), "{turn}");
            assert_eq!(nearest.farthest().map(|one| one.slot), Some(2));
            let kept: Vec<u32> = nearest.into_sorted().iter().map(|one| one.slot).collect();
            assert_eq!(kept, [4, 0, 2], "{turn}");
        }
    }

    #[test]
    fn what_was_passed_over_is_counted_up_to_a_distance() {
        let mut nearest = NearestDocuments::default();
        for slot in 0..5 {
            nearest.offer(candidate(slot as f32, 7, slot), 2);
        }
        assert_eq!([0.5, 2.0, 9.0].map(|up_to| nearest.passed_over(up_to)), [0, 2, 4]);
    }
}
