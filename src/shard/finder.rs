//! Filters of documents and keys over all shards: a lookup searches only the shards that may hold a match.
//!
//! The document filter covers every shard, because it comes from the shard states. The key filter covers only shards
//! that were searched before: it is built from their fingerprints, in memory only. So a lookup of a key whose document
//! lies in many shards searches the one shard that holds it, and an open reads no slots.

use super::{
    Shard,
    bloom::SlicedBlooms,
    fingerprints::{self, Lookup},
};
use crate::{
    error::Result,
    format::geometry::IndexParams,
    shard::{DataFile, StoredPosting},
    storage::StorageFile,
};

/// Counters of the cost of lookups since the open.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LookupCounts {
    /// Number of lookups.
    pub lookups: u64,
    /// Number of shards whose fingerprints were compared.
    pub shards: u64,
    /// Number of these shards whose fingerprints had to be created first, by reading all their posting records.
    pub filled: u64,
    /// Number of slots read and compared.
    pub slots: u64,
}

/// Filters of documents and keys over all shards.
#[derive(Clone, Debug)]
pub struct Finder {
    documents: SlicedBlooms,
    keys: SlicedBlooms,
    /// One bit per shard, set if the key filter does not cover the shard.
    unknown: Vec<u64>,
    /// Cost of the lookups.
    pub counts: LookupCounts,
}

impl Finder {
    /// Creates filters for no shards. They grow by at most `step` columns at once.
    #[must_use]
    pub fn new(geometry: &IndexParams, step: usize) -> Self {
        // 16 bits per slot, the default for documents too: about 7 in 10,000 shards are searched in vain.
        let key_bytes = (geometry.shard_size * 2).next_multiple_of(8);
        Self {
            documents: SlicedBlooms::new(geometry.bloom_bytes, step),
            keys: SlicedBlooms::new(key_bytes, step),
            unknown: Vec::new(),
            counts: LookupCounts::default(),
        }
    }

    /// Reserves space for `shards` shards.
    pub fn reserve(&mut self, shards: usize) {
        self.documents.reserve(shards);
        self.keys.reserve(shards);
    }

    /// Returns the heap memory in bytes.
    #[must_use]
    pub fn memory(&self) -> usize {
        self.documents.memory() + self.keys.memory() + self.unknown.len() * 8
    }

    fn set_unknown(&mut self, number: usize, unknown: bool) {
        if self.unknown.len() <= number / 64 {
            self.unknown.resize(number / 64 + 1, 0);
        }
        let mask = 1 << (number % 64);
        if unknown { self.unknown[number / 64] |= mask } else { self.unknown[number / 64] &= !mask }
    }

    /// Sets the filters of shard `number` to those of `shard`. `None` clears them.
    pub fn set<L: std::ops::Deref<Target = [u8]> + Clone>(&mut self, number: usize, shard: Option<&Shard<L>>) {
        self.documents.set_column(number, shard.map(Shard::bloom));
        self.keys.set_column(number, None);
        self.set_unknown(number, shard.is_some());
        if let Some(shard) = shard {
            self.learn(number, shard);
        }
    }

    /// Adds the keys of a shard to the key filter, if its fingerprints exist.
    fn learn<L: std::ops::Deref<Target = [u8]> + Clone>(&mut self, number: usize, shard: &Shard<L>) {
        if let Some(fingerprints) = shard.known_fingerprints() {
            fingerprints.keys().for_each(|key| self.keys.insert(number, key.into()));
            self.set_unknown(number, false);
        }
    }

    fn is_unknown(&self, number: usize) -> bool {
        self.unknown.get(number / 64).is_some_and(|word| word >> (number % 64) & 1 == 1)
    }

    /// Inserts a posting into the filters of one shard.
    pub fn insert(&mut self, number: usize, posting: &StoredPosting) {
        self.documents.insert(number, posting.document_id.0);
        if !self.is_unknown(number) {
            let key = fingerprints::key_fingerprint(posting.key());
            self.keys.insert(number, key.into());
        }
    }

    /// Writes to `found` the shards that may hold a match of the lookup, in ascending order.
    pub fn candidates(&self, lookup: Lookup, found: &mut Vec<usize>) {
        let document = lookup.document().0;
        match lookup {
            Lookup::Document(_) => self.documents.candidates(document, |_| u64::MAX, found),
            Lookup::Key(key) => {
                let key = self.keys.rows(fingerprints::key_fingerprint(key).into());
                let unknown = |word: usize| self.unknown.get(word).copied().unwrap_or(0);
                self.documents.candidates(document, |word| self.keys.word(&key, word) | unknown(word), found);
            }
        }
    }

    /// Appends the live slots of shard `number` that match the lookup, in ascending order. Returns whether the
    /// fingerprints of the shard had to be created first.
    ///
    /// # Errors
    /// Returns `Corruption` if an extent fails its check. If the fingerprints are created first, this includes every
    /// extent of the shard.
    pub fn find<F: StorageFile>(
        &mut self,
        data: &DataFile<F>,
        number: usize,
        shard: &Shard<F::Lent>,
        lookup: Lookup,
        found: &mut Vec<(usize, StoredPosting)>,
    ) -> Result<bool> {
        let fills = shard.known_fingerprints().is_none();
        self.counts.shards += 1;
        self.counts.filled += u64::from(fills);
        self.counts.slots += shard.find(data, lookup, found)? as u64;
        if self.is_unknown(number) {
            self.learn(number, shard);
        }
        Ok(fills)
    }
}
