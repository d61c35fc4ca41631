//! Which shards may hold a document or a key, without looking into one.
//!
//! Documents are known of every shard, from the filter in its state. Keys are known of those that were looked into: their
//! filter is made of the shard's fingerprints, in memory only. So a key of a document that lies in many shards is looked
//! for in the one that holds it, and an open reads no slot.

use super::{
    Shard,
    bloom::SlicedBlooms,
    prints::{self, Lookup},
};
use crate::{
    error::Result,
    format::geometry::Geometry,
    shard::{DataFile, StoredPosting},
    storage::StorageFile,
};

/// What lookups have cost since the open.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LookupCounts {
    /// Lookups.
    pub lookups: u64,
    /// Shards whose fingerprints were compared.
    pub shards: u64,
    /// Of these, shards that were read from end to end first, for nobody had looked into them.
    pub filled: u64,
    /// Slots that were read and compared.
    pub slots: u64,
}

/// Filters of documents and of keys over all shards: names the shards where one may be.
#[derive(Clone, Debug)]
pub struct Finder {
    documents: SlicedBlooms,
    keys: SlicedBlooms,
    /// A bit for each shard whose keys are not known.
    unknown: Vec<u64>,
    /// What it cost.
    pub counts: LookupCounts,
}

impl Finder {
    /// No shards; columns of the filters come `step` at a time at most.
    #[must_use]
    pub fn new(geometry: &Geometry, step: usize) -> Self {
        // 16 bits a slot, as the default is for documents: some 7 in 10,000 shards are looked into in vain.
        let key_bytes = (geometry.shard_size * 2).next_multiple_of(8);
        Self {
            documents: SlicedBlooms::new(geometry.bloom_bytes, step),
            keys: SlicedBlooms::new(key_bytes, step),
            unknown: Vec::new(),
            counts: LookupCounts::default(),
        }
    }

    /// Makes room for so many shards at once.
    pub fn reserve(&mut self, shards: usize) {
        self.documents.reserve(shards);
        self.keys.reserve(shards);
    }

    /// Heap bytes.
    #[must_use]
    pub fn memory(&self) -> usize {
        self.documents.memory() + self.keys.memory() + self.unknown.len() * 8
    }

    fn set_unknown(&mut self, number: usize, unknown: bool) {
        if self.unknown.len() <= number / 64 {
            self.unknown.resize(number / 64 + 1, 0);
        }
        let mask = 1 << (number % 64);
        match unknown {
            true => self.unknown[number / 64] |= mask,
            false => self.unknown[number / 64] &= !mask,
        }
    }

    /// Makes the filters of a shard what they are for `shard`; `None` clears them.
    pub fn set<L: std::ops::Deref<Target = [u8]> + Clone>(&mut self, number: usize, shard: Option<&Shard<L>>) {
        self.documents.set_column(number, shard.map(Shard::bloom));
        self.keys.set_column(number, None);
        self.set_unknown(number, shard.is_some());
        if let Some(shard) = shard {
            self.learn(number, shard);
        }
    }

    /// Takes over the keys of a shard that was looked into.
    fn learn<L: std::ops::Deref<Target = [u8]> + Clone>(&mut self, number: usize, shard: &Shard<L>) {
        if let Some(prints) = shard.known_prints() {
            prints.keys().for_each(|key| self.keys.insert(number, key.into()));
            self.set_unknown(number, false);
        }
    }

    fn is_unknown(&self, number: usize) -> bool {
        self.unknown.get(number / 64).is_some_and(|word| word >> (number % 64) & 1 == 1)
    }

    /// Adds a posting to one shard's filters.
    pub fn insert(&mut self, number: usize, posting: &StoredPosting) {
        self.documents.insert(number, posting.document_id.0);
        if !self.is_unknown(number) {
            let key = prints::key_print(posting.document_id, posting.start, posting.length);
            self.keys.insert(number, key.into());
        }
    }

    /// The shards that may hold what is looked up, lowest first.
    pub fn candidates(&self, lookup: Lookup, found: &mut Vec<usize>) {
        let document = lookup.document().0;
        match lookup {
            Lookup::Document(_) => self.documents.candidates(document, |_| u64::MAX, found),
            Lookup::Key(document_id, start, length) => {
                let key = self.keys.rows(prints::key_print(document_id, start, length).into());
                let unknown = |word: usize| self.unknown.get(word).copied().unwrap_or(0);
                self.documents.candidates(document, |word| self.keys.word(&key, word) | unknown(word), found);
            }
        }
    }

    /// Appends the live slots of one of these shards that hold it, lowest first. `shard` is shard `number`. Returns whether the
    /// shard's fingerprints had to be made first.
    ///
    /// # Errors
    /// `Corruption` if posting records are damaged, of the whole shard if nobody has looked into it yet.
    pub fn find<F: StorageFile>(
        &mut self,
        data: &DataFile<F>,
        (number, shard): (usize, &Shard<F::Lent>),
        lookup: Lookup,
        found: &mut Vec<(usize, StoredPosting)>,
    ) -> Result<bool> {
        let fills = shard.known_prints().is_none();
        self.counts.shards += 1;
        self.counts.filled += u64::from(fills);
        self.counts.slots += shard.find(data, lookup, found)? as u64;
        if self.is_unknown(number) {
            self.learn(number, shard);
        }
        Ok(fills)
    }
}
