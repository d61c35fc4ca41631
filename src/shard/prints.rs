//! Fingerprints of postings: what a lookup compares, so that it reads few slots.
//!
//! A shard keeps sixteen bits of each slot's document and 32 bits of its key, in memory only. They follow from the slots, so
//! two processes that hold the same slots hold the same fingerprints.

use std::sync::Arc;

use super::data::StoredPosting;
use crate::id::DocumentId;

/// Slots whose fingerprints lie together; a shard's copies share all blocks but the one that grows.
const BLOCK_SLOTS: usize = 64;

/// What is looked up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lookup {
    /// Every posting of a document.
    Document(DocumentId),
    /// The posting of a key: document, start, length.
    Key(DocumentId, u32, u32),
}

impl Lookup {
    /// The document that it is about.
    #[must_use]
    pub fn document(&self) -> DocumentId {
        match *self {
            Self::Document(document) | Self::Key(document, ..) => document,
        }
    }

    /// Whether a posting is one of those.
    #[must_use]
    pub fn wants(&self, posting: &StoredPosting) -> bool {
        match *self {
            Self::Document(document) => posting.document_id == document,
            Self::Key(document, start, length) => {
                (posting.document_id, posting.start, posting.length) == (document, start, length)
            }
        }
    }
}

/// The finaliser of splitmix64: every bit of the result depends on every bit of `x`.
pub(super) fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ (x >> 31)
}

/// The fingerprint of a document.
fn document_print(document: DocumentId) -> u16 {
    let low = mix((document.0 as u64).wrapping_add(0x9E37_79B9_7F4A_7C15));
    (mix(low ^ (document.0 >> 64) as u64) >> 48) as u16
}

/// The fingerprint of a key.
pub(super) fn key_print(document: DocumentId, start: u32, length: u32) -> u32 {
    let low = mix((document.0 as u64).wrapping_add(0xD1B5_4A32_D192_ED03));
    let whole = mix(low ^ (document.0 >> 64) as u64);
    (mix(whole ^ (u64::from(start) << 32 | u64::from(length))) >> 32) as u32
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Block {
    documents: [u16; BLOCK_SLOTS],
    keys: [u32; BLOCK_SLOTS],
}

/// The fingerprints of a shard's slots, removed ones too.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Prints {
    blocks: Vec<Arc<Block>>,
    len: usize,
}

impl Prints {
    /// Slots.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is no slot.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Heap bytes, those that are shared too.
    #[must_use]
    pub fn memory(&self) -> usize {
        self.blocks.len() * (size_of::<Block>() + size_of::<usize>())
    }

    /// Adds the next slot.
    pub fn push(&mut self, posting: &StoredPosting) {
        let at = self.len % BLOCK_SLOTS;
        if at == 0 {
            self.blocks.push(Arc::new(Block { documents: [0; BLOCK_SLOTS], keys: [0; BLOCK_SLOTS] }));
        }
        let Some(block) = self.blocks.last_mut() else { unreachable!("one was pushed") };
        let block = Arc::make_mut(block);
        block.documents[at] = document_print(posting.document_id);
        block.keys[at] = key_print(posting.document_id, posting.start, posting.length);
        self.len += 1;
    }

    /// The fingerprints of the keys, in the order of the slots.
    pub fn keys(&self) -> impl Iterator<Item = u32> {
        self.blocks.iter().flat_map(|block| block.keys).take(self.len)
    }

    /// Appends the slots whose fingerprints are those of what is looked up: all that hold it, and few others.
    pub fn slots(&self, lookup: Lookup, slots: &mut Vec<usize>) {
        match lookup {
            Lookup::Document(document) => {
                let print = document_print(document);
                self.equal(|block| &block.documents, print, slots);
            }
            Lookup::Key(document, start, length) => {
                let print = key_print(document, start, length);
                self.equal(|block| &block.keys, print, slots);
            }
        }
    }

    fn equal<T: PartialEq + Copy>(&self, of: impl Fn(&Block) -> &[T; BLOCK_SLOTS], print: T, slots: &mut Vec<usize>) {
        for (b, block) in self.blocks.iter().enumerate() {
            let prints = of(block);
            // Without a branch for each, for nearly all blocks hold none.
            if !prints.iter().fold(false, |any, &other| any | (other == print)) {
                continue;
            }
            let used = BLOCK_SLOTS.min(self.len - b * BLOCK_SLOTS);
            let found = (0..used).filter(|&i| prints[i] == print).map(|i| b * BLOCK_SLOTS + i);
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
        let mut prints = Prints::default();
        let postings: Vec<StoredPosting> = (0..1_000u32).map(|n| posting((n / 10).into(), n % 7)).collect();
        postings.iter().for_each(|posting| prints.push(posting));
        assert_eq!(prints.len(), 1_000);
        let (mut slots, mut vain) = (Vec::new(), 0);
        for n in 0..2_000u32 {
            for lookup in [Lookup::Document(DocumentId(n.into())), Lookup::Key(DocumentId(n.into()), n % 7, 1)] {
                slots.clear();
                prints.slots(lookup, &mut slots);
                assert!(slots.is_sorted());
                let holds = |&slot: &usize| lookup.wants(&postings[slot]);
                assert_eq!((0..1_000).filter(holds).count(), slots.iter().filter(|slot| holds(slot)).count());
                vain += slots.iter().filter(|slot| !holds(slot)).count();
            }
        }
        assert!(vain < 100, "{vain} of 4,000,000");
    }

    /// Zero is a fingerprint as any other: free slots of the last block have it too.
    #[test]
    fn free_slots_are_no_matches() {
        let mut prints = Prints::default();
        prints.push(&posting(1, 0));
        let mut slots = Vec::new();
        prints.equal(|block| &block.keys, 0, &mut slots);
        assert!(slots.is_empty());
    }

    #[test]
    fn copies_share_what_is_full() {
        let mut prints = Prints::default();
        (0..100).for_each(|n| prints.push(&posting(n, 0)));
        let mut copy = prints.clone();
        copy.push(&posting(100, 0));
        assert!(Arc::ptr_eq(&prints.blocks[0], &copy.blocks[0]));
        assert!(!Arc::ptr_eq(&prints.blocks[1], &copy.blocks[1]));
        assert_eq!((prints.len(), copy.len()), (100, 101));
    }
}
