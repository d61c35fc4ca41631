//! State of one search by cells, and re-ranking: computing the distances of the candidates that a scan of codes lets
//! through.

use super::{
    candidate::Candidate,
    distances::distance_to,
    mask::FilterMask,
    out_of_distribution,
    snapshot::{Snapshot, shard_of},
    topk::TopK,
    visited::VisitedSet,
};
use crate::{
    cells::CellIndex,
    distance::{CodeCandidate, Prefetch},
    error::Result,
    failpoint::holds,
    shard::{self, DataFile, Extent, Shard},
    storage::StorageFile,
};
use std::ops::Deref;

/// Posting that waits for re-ranking.
pub(super) struct PendingRerank<'a, L> {
    /// Lower bound of the distance.
    least: f32,
    /// Number of an indexed posting. It identifies the posting by either of its two codes. `None` for an unindexed
    /// posting.
    reference: Option<u32>,
    number: u32,
    slot: usize,
    extent: &'a Extent<L>,
}

impl<L> Clone for PendingRerank<'_, L> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<L> Copy for PendingRerank<'_, L> {}

/// Minimum number of vectors that are prefetched before the first is read, if there are as many candidates.
pub(super) const TOGETHER: usize = 8;

/// Compares candidates by lower bound, then by reference.
pub(super) fn nearest_first(a: &CodeCandidate, b: &CodeCandidate) -> std::cmp::Ordering {
    a.lower_bound.total_cmp(&b.lower_bound).then(a.reference.cmp(&b.reference))
}

impl<'a, F: StorageFile, B: Deref<Target = [u8]>> CellSearch<'a, F, B> {
    /// Resolves a code's candidate to its slot and queues it for re-ranking, unless the posting is in the visited set.
    pub(super) fn look_up(&mut self, one: &CodeCandidate) {
        self.looked_up += 1;
        if self.visited.contains(one.reference) {
            return;
        }
        // The mapped bytes may rot after their checksum was verified, so the number may be invalid.
        let Some((covered, slot)) = self.cells.posting(one.reference) else { return };
        let Some(shard) = shard_of(self.snapshot, covered.number) else { return };
        // The shard may no longer exist, or its number may belong to another shard. Its postings are then in other
        // shards. If it was rewritten, they are in other slots.
        let Some(slot) = shard.slot_since(covered.id, slot) else { return };
        self.ask_for(one, Some(one.reference), covered.number, slot as usize, shard);
    }

    /// Queues a posting for re-ranking and prefetches its slot, if it is live, passes the filter, and its lower bound is
    /// within the top-k bound. Keeps the estimate of one that seems within it and does not pass.
    pub(super) fn ask_for(
        &mut self,
        one: &CodeCandidate,
        reference: Option<u32>,
        number: u32,
        slot: usize,
        shard: &'a Shard<F::Lent>,
    ) {
        let geometry = self.data.geometry();
        let slots = geometry.extent_slots;
        let least = one.lower_bound;
        if self.mask.is_some_and(|mask| !mask.contains(number, slot)) {
            // The bound only falls, so what is beyond it now is never as near as the results.
            let is_near = least + one.error <= self.top.bound() && shard.is_live(slot);
            if is_near && reference.is_none_or(|reference| self.visited.insert(reference)) {
                self.rejected.push(least + one.error);
            }
            return;
        }
        if shard.is_live(slot) && least <= self.top.bound() && self.except != Some((number, slot)) {
            let extent = &shard.extents()[slot / slots];
            self.prefetch.push(shard::slot_bytes(extent.lent(), slot % slots, geometry));
            self.pending.push(PendingRerank { least, reference, number, slot, extent });
        }
    }

    /// Consumes the candidates of a scan.
    ///
    /// Without a top-k bound, the candidates with the least lower bounds are re-ranked until there is one. With a
    /// bound, candidates whose estimate is within it are queued, and prefetched while the next cell is scanned.
    /// Candidates with only the lower bound within it are held back until [`finish`](Self::finish), when the bound is
    /// lower.
    ///
    /// # Errors
    /// Returns `Corruption` if a vector is damaged.
    pub(super) fn take(&mut self, found: &mut Vec<CodeCandidate>) -> Result<()> {
        if self.top.bound() == f32::INFINITY {
            let mut first = 0;
            while first < found.len() && self.top.bound() == f32::INFINITY {
                let rest = &mut found[first..];
                let count = self.top.room().max(TOGETHER).min(rest.len());
                // A partial sort is enough: the order within a batch and within the rest does not matter.
                rest.select_nth_unstable_by(count - 1, nearest_first);
                first += count;
                rest[..count].iter().for_each(|one| self.look_up(one));
                self.prefetch.finish();
                self.rerank_pending()?;
            }
            found.drain(..first);
        }
        for one in found.drain(..) {
            let bound = self.top.bound();
            if one.lower_bound + one.error <= bound {
                self.look_up(&one);
            } else if one.lower_bound <= bound {
                self.held.push(one);
            }
        }
        Ok(())
    }

    /// Re-ranks the pending candidates, then the held ones whose lower bound is within the top-k bound, until the cost
    /// limit is reached.
    ///
    /// # Errors
    /// Returns `Corruption` if a vector is damaged.
    pub(super) fn finish(&mut self) -> Result<()> {
        // Prefetches the centroid that the out-of-distribution check reads after the search.
        if let Some(nearest) = self.top.nearest() {
            self.prefetch.push(bytemuck::cast_slice(out_of_distribution::shard_centroid_of(self.snapshot, nearest)));
        }
        self.prefetch.finish();
        self.rerank_pending()?;
        let mut held = std::mem::take(self.held);
        let bound = self.top.bound();
        held.retain(|one| one.lower_bound <= bound);
        held.sort_unstable_by(nearest_first);
        for some in held.chunks(2 * TOGETHER) {
            if self.is_spent() {
                break;
            }
            let bound = self.top.bound();
            some.iter().filter(|one| one.lower_bound <= bound).for_each(|one| self.look_up(one));
            self.prefetch.finish();
            self.rerank_pending()?;
        }
        *self.held = held;
        Ok(())
    }

    /// Computes the distances of the pending candidates whose lower bound is still within the top-k bound, and clears
    /// the queue.
    ///
    /// # Errors
    /// Returns `Corruption` if a vector is damaged.
    pub(super) fn rerank_pending(&mut self) -> Result<()> {
        let geometry = self.data.geometry();
        let slots = geometry.extent_slots;
        for &PendingRerank { least, reference, number, slot, extent } in &self.pending {
            let near = least <= self.top.bound();
            // A candidate beyond the bound does not enter the visited set: the lower bound of its second code may be within
            // the bound.
            let meets = holds!(Recall, near);
            if meets && reference.is_some_and(|reference| !self.visited.insert(reference)) || !near {
                continue;
            }
            let bytes = extent.slots(self.data)?;
            let row = shard::row(bytes, slot % slots, geometry);
            self.computed += 1;
            let distance = distance_to(geometry.metric, self.vector, row);
            if distance <= self.top.bound() {
                let posting = shard::record(bytes, slot % slots, geometry);
                self.top.offer(Candidate::new(distance, posting, number, slot));
                self.gained = true;
            }
        }
        self.pending.clear();
        Ok(())
    }
}

/// State of one search by cells.
pub(super) struct CellSearch<'a, F: StorageFile, B> {
    pub(super) snapshot: &'a Snapshot<F::Lent>,
    pub(super) data: &'a DataFile<F>,
    pub(super) cells: &'a CellIndex<B>,
    /// Query vector.
    pub(super) vector: &'a [f32],
    pub(super) top: TopK,
    /// Indexed postings whose distance was computed, or that seem near and do not pass the filter.
    pub(super) visited: &'a mut VisitedSet,
    /// Number of distances computed.
    pub(super) computed: usize,
    /// Number of codes and vectors scanned.
    pub(super) scanned: usize,
    /// Number of cells scanned. A cell that both passes scan counts twice.
    pub(super) walked: usize,
    /// Number of cells scanned since the last one that gave a result.
    pub(super) quiet: u32,
    /// Number of scanned cells that gave a result when they were scanned.
    pub(super) gains: u32,
    /// Number of cells that the present pass has scanned.
    pub(super) passed: usize,
    /// Position in the order of cells, from 1, of the last one that gave a result in any pass; 0 if none did.
    pub(super) last_gain: usize,
    /// Whether the search stopped at its limit of scanned codes.
    pub(super) cut: bool,
    /// Number of computed distances whose vectors were read in slot order, without codes.
    pub(super) in_order: usize,
    /// Whether the search was abandoned: it exceeded its cost limit, or an exhaustive search is wanted.
    pub(super) abandoned: bool,
    /// Number of candidates resolved to slots, those of removed postings included.
    pub(super) looked_up: usize,
    /// Cost limit, in the unit of [`CellResults::cost`](super::search_limits::CellResults::cost).
    pub(super) most: f64,
    /// Shard number and slot of the posting that the search ignores.
    pub(super) except: Option<(u32, usize)>,
    /// Postings that may be results.
    pub(super) mask: Option<&'a FilterMask>,
    /// Whether a re-ranked candidate was within the top-k bound since this flag was last reset.
    pub(super) gained: bool,
    /// Candidates whose lower bound is within the top-k bound and whose estimate is not.
    pub(super) held: &'a mut Vec<CodeCandidate>,
    /// Estimated distances of candidates that do not pass the filter, less what is allowed for the error of the centroid's.
    /// Vectors that are scanned without codes are not among them.
    pub(super) rejected: Vec<f32>,
    /// Candidates queued for re-ranking.
    pub(super) pending: Vec<PendingRerank<'a, F::Lent>>,
    /// Queue of bytes to prefetch.
    pub(super) prefetch: Prefetch<'a>,
}
