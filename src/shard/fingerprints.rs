//! Fingerprints of postings: hashes that a lookup compares, so that it reads few slots.
//!
//! For each slot a shard has 16 bits of its document's hash and 32 bits of its key's hash, in memory only. Fingerprints
//! are derived from the slots, so two processes with the same slots have the same fingerprints.

use std::sync::Arc;

use super::data::StoredPosting;
use crate::{id::DocumentId, id::PostingKey};

/// Number of slots per block of fingerprints. Copies of a shard share all blocks except the last one when it grows.
const BLOCK_SLOTS: usize = 64;

/// Target of a lookup.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lookup {
    /// All postings of a document.
    Document(DocumentId),
    /// Postings with a key: document id, start, length.
    Key(PostingKey),
}

impl Lookup {
    /// Returns the document id of the lookup.
    #[must_use]
    pub fn document(&self) -> DocumentId {
        match *self {
            Self::Document(document) => document,
            Self::Key(key) => key.document_id,
        }
    }

    /// Reports whether a posting matches the lookup.
    #[must_use]
    pub fn wants(&self, posting: &StoredPosting) -> bool {
        match *self {
            Self::Document(document) => posting.document_id == document,
            Self::Key(key) => posting.key() == key,
        }
    }
}

/// Finaliser of splitmix64: every bit of the result depends on every bit of `x`.
pub fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ (x >> 31)
}

/// Returns the fingerprint of a document.
fn document_fingerprint(document: DocumentId) -> u16 {
    let low = mix((document.0 as u64).wrapping_add(0x9E37_79B9_7F4A_7C15));
    (mix(low ^ (document.0 >> 64) as u64) >> 48) as u16
}

/// Returns the fingerprint of a key.
pub(super) fn key_fingerprint(key: PostingKey) -> u32 {
    let PostingKey { document_id: document, start, length } = key;
    let low = mix((document.0 as u64).wrapping_add(0xD1B5_4A32_D192_ED03));
    let whole = mix(low ^ (document.0 >> 64) as u64);
    (mix(whole ^ (u64::from(start) << 32 | u64::from(length))) >> 32) as u32
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Block {
    documents: [u16; BLOCK_SLOTS],
    keys: [u32; BLOCK_SLOTS],
}

/// Fingerprints of the slots of a shard, including slots with a tombstone.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fingerprints {
    blocks: Vec<Arc<Block>>,
    len: usize,
}

impl Fingerprints {
    /// Returns the number of slots.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Reports whether there are no slots.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Returns the heap memory in bytes, including shared blocks.
    #[must_use]
    pub fn memory(&self) -> usize {
        self.blocks.len() * (size_of::<Block>() + size_of::<usize>())
    }

    /// Appends the fingerprints of the next slot.
    pub fn push(&mut self, posting: &StoredPosting) {
        let at = self.len % BLOCK_SLOTS;
        if at == 0 {
            self.blocks.push(Arc::new(Block { documents: [0; BLOCK_SLOTS], keys: [0; BLOCK_SLOTS] }));
        }
        let Some(block) = self.blocks.last_mut() else { unreachable!("one was pushed") };
        let block = Arc::make_mut(block);
        block.documents[at] = document_fingerprint(posting.document_id);
        block.keys[at] = key_fingerprint(posting.key());
        self.len += 1;
    }

    /// Returns the fingerprints of the keys in slot order.
    pub fn keys(&self) -> impl Iterator<Item = u32> {
        self.blocks.iter().flat_map(|block| block.keys).take(self.len)
    }

    /// Appends the slots whose fingerprint equals that of the lookup. These are all matching slots and a few others.
    pub fn slots(&self, lookup: Lookup, slots: &mut Vec<usize>) {
        match lookup {
            Lookup::Document(document) => {
                let print = document_fingerprint(document);
                self.equal(|block| &block.documents, print, slots);
            }
            Lookup::Key(key) => {
                let print = key_fingerprint(key);
                self.equal(|block| &block.keys, print, slots);
            }
        }
    }

    fn equal<T: PartialEq + Copy>(&self, of: impl Fn(&Block) -> &[T; BLOCK_SLOTS], print: T, slots: &mut Vec<usize>) {
        for (b, block) in self.blocks.iter().enumerate() {
            let fingerprints = of(block);
            // This comparison has no branch per slot, because most blocks contain no match.
            if !fingerprints.iter().fold(false, |any, &other| any | (other == print)) {
                continue;
            }
            let used = BLOCK_SLOTS.min(self.len - b * BLOCK_SLOTS);
            let found = (0..used).filter(|&i| fingerprints[i] == print).map(|i| b * BLOCK_SLOTS + i);
            slots.extend(found);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn posting(document: u128, start: u32) -> StoredPosting {
        StoredPosting { document_id: DocumentId(document), start, length: 1, norm: 1.0 }
    }

    #[test]
    fn every_slot_that_holds_it_is_found_and_few_others() {
        let mut fingerprints = Fingerprints::default();
        let postings: Vec<StoredPosting> = (0..1_000u32).map(|n| posting((n / 10).into(), n % 7)).collect();
        postings.iter().for_each(|posting| fingerprints.push(posting));
        assert_eq!(fingerprints.len(), 1_000);
        let (mut slots, mut vain) = (Vec::new(), 0);
        for n in 0..2_000u32 {
            for lookup in
                [Lookup::Document(DocumentId(n.into())), Lookup::Key(PostingKey::new(u128::from(n), n % 7, 1))]
            {
                slots.clear();
                fingerprints.slots(lookup, &mut slots);
                assert!(slots.is_sorted());
                let holds = |&slot: &usize| lookup.wants(&postings[slot]);
                assert_eq!((0..1_000).filter(holds).count(), slots.iter().filter(|slot| holds(slot)).count());
                vain += slots.iter().filter(|slot| !holds(slot)).count();
            }
        }
        assert!(vain < 100, "{vain} of 4,000,000");
    }

    /// Zero is a valid fingerprint, and the unused slots of the last block have it too.
    #[test]
    fn free_slots_are_no_matches() {
        let mut fingerprints = Fingerprints::default();
        fingerprints.push(&posting(1, 0));
        let mut slots = Vec::new();
        fingerprints.equal(|block| &block.keys, 0, &mut slots);
        assert!(slots.is_empty());
    }

    #[test]
    fn copies_share_what_is_full() {
        let mut fingerprints = Fingerprints::default();
        (0..100).for_each(|n| fingerprints.push(&posting(n, 0)));
        let mut copy = fingerprints.clone();
        copy.push(&posting(100, 0));
        assert!(Arc::ptr_eq(&fingerprints.blocks[0], &copy.blocks[0]));
        assert!(!Arc::ptr_eq(&fingerprints.blocks[1], &copy.blocks[1]));
        assert_eq!((fingerprints.len(), copy.len()), (100, 101));
    }
}
