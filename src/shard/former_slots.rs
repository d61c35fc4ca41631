//! Slots that a shard had before it was rewritten without its removed postings.
//!
//! Cells know a posting by the id and the slot that its shard had when they were built. A rewrite gives the shard another id
//! and moves its postings, in their order. So one bit per former slot says where each posting went. It is derived from
//! the cells that are in use at the rewrite, and changes no answer: a posting whose former slot is unknown is unindexed.

use std::ops::Deref;

use super::Shard;
use crate::{failpoint::reached, format::state::FormerState, id::ShardId};

/// Former slots, with the number of kept ones before each word of bits.
#[derive(Clone, Debug)]
pub struct FormerSlots {
    state: FormerState,
    before: Vec<u32>,
}

impl FormerSlots {
    /// Creates them from their stored form.
    #[must_use]
    pub fn new(state: FormerState) -> Self {
        let mut count = 0;
        let ones = |word: &u64| {
            let before = count;
            count += word.count_ones();
            before
        };
        Self { before: state.kept.iter().map(ones).collect(), state }
    }

    /// Returns their stored form.
    #[must_use]
    pub fn state(&self) -> &FormerState {
        &self.state
    }

    /// Returns the number of kept slots below `slot`.
    fn rank(&self, slot: u32) -> u32 {
        let (word, bit) = (slot as usize / 64, slot % 64);
        match self.state.kept.get(word) {
            Some(bits) => self.before[word] + (bits & ((1 << bit) - 1)).count_ones(),
            None => self.state.kept.iter().map(|bits| bits.count_ones()).sum(),
        }
    }

    fn is_kept(&self, slot: u32) -> bool {
        self.state.kept.get(slot as usize / 64).is_some_and(|bits| bits >> (slot % 64) & 1 == 1)
    }
}

impl<L: Deref<Target = [u8]> + Clone> Shard<L> {
    fn formerly(&self, id: ShardId) -> Option<&FormerSlots> {
        self.former.as_ref().filter(|former| former.state.id == id)
    }

    /// Returns the slot of the posting that was in `slot` when this shard had `id`. Returns `None` if it never had that id,
    /// or the posting was removed before the shard was rewritten.
    #[must_use]
    pub fn slot_since(&self, id: ShardId, slot: u32) -> Option<u32> {
        if self.id == id {
            return Some(slot);
        }
        let former = self.formerly(id).filter(|former| former.is_kept(slot))?;
        reached!(FormerSlotFound);
        Some(former.rank(slot))
    }

    /// Returns the number of slots at the beginning whose postings were in the first `slots` slots when this shard had `id`:
    /// 0 if it never had it.
    #[must_use]
    pub fn slots_since(&self, id: ShardId, slots: u32) -> u32 {
        if self.id == id {
            return slots;
        }
        self.formerly(id).map_or(0, |former| former.rank(slots))
    }

    /// Returns the slot that the posting in `slot` had when this shard had `id`: the inverse of
    /// [`slot_since`](Self::slot_since).
    #[must_use]
    pub fn slot_before(&self, id: ShardId, slot: u32) -> Option<u32> {
        if self.id == id {
            return Some(slot);
        }
        let former = self.formerly(id)?;
        let word = former.before.partition_point(|&before| before <= slot).checked_sub(1)?;
        let bits = former.state.kept[word];
        let mut left = bits;
        for _ in former.before[word]..slot {
            left &= left.wrapping_sub(1);
        }
        (left != 0).then(|| word as u32 * 64 + left.trailing_zeros())
    }

    /// Returns the former slots of a shard that is rewritten from this one, with its live postings in their order. `known` is
    /// the id by which the cells know this shard.
    #[must_use]
    pub fn former_of_rewrite(&self, known: ShardId) -> Option<FormerSlots> {
        let slots = match self.formerly(known) {
            Some(former) => former.state.slots,
            None if self.id == known => self.len,
            None => return None,
        };
        let mut kept = vec![0u64; (slots as usize).div_ceil(64)];
        let stays = |&slot: &u32| self.slot_since(known, slot).is_some_and(|slot| self.is_live(slot as usize));
        (0..slots).filter(stays).for_each(|slot| kept[slot as usize / 64] |= 1 << (slot % 64));
        Some(FormerSlots::new(FormerState { id: known, slots, kept }))
    }
}
