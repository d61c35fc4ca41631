//! Payloads: byte strings of documents, and the application's cursor, by owner.
//!
//! The entries lie in buckets. An owner's hash leads to its bucket. The number of buckets grows with the entries, one at
//! a time (linear hashing; Litwin, VLDB 1980), so that a flush stores few bytes per changed payload.
//!
//! Invariants:
//! 1. The index is persistent: a clone shares all buckets, and a change copies one bucket and one chunk of pointers. So a
//!    snapshot and the writer never see each other's changes.
//! 2. The bytes of a payload are append-only: no store touches them until no entry of a retained root, a snapshot or the
//!    working state names their block.
//! 3. The bytes of an entry are checked against its checksum before they are returned.
//!
//! This module does not refer to the WAL.

mod space;
mod stored;

use std::{collections::BTreeSet, ops::Deref, sync::Arc};

pub use space::{BlockUse, PayloadSpace};
pub use stored::{Payload, StoredPayload, name};

use crate::{
    failpoint::reached,
    format::{bucket::PayloadOwner, geometry::IndexParams},
    id::DocumentId,
    shard::mix,
};

/// Number of buckets per chunk of pointers.
const CHUNK_BUCKETS: usize = 64;

/// Entries of a bucket, in ascending order of their owners.
pub type Bucket<L> = Vec<StoredPayload<L>>;

/// Chunk of pointers to buckets.
type BucketChunk<L> = Arc<Vec<Arc<Bucket<L>>>>;

/// Index of all payloads and the cursor.
#[derive(Debug)]
pub struct PayloadIndex<L> {
    chunks: Vec<BucketChunk<L>>,
    buckets: u32,
    /// Number of documents with a payload.
    payloads: u64,
    /// Bytes of all payloads and of the cursor.
    bytes: u64,
    /// Encoded bytes of all entries. The number of buckets follows from them.
    entry_bytes: u64,
    /// Encoded bytes per bucket, on average, above which a bucket is added.
    bucket_bytes: u64,
}

impl<L> Clone for PayloadIndex<L> {
    fn clone(&self) -> Self {
        Self { chunks: self.chunks.clone(), ..*self }
    }
}

/// Returns the bucket of an owner among `buckets` buckets. The cursor is in bucket 0.
#[must_use]
pub fn bucket_of(owner: PayloadOwner, buckets: u32) -> u32 {
    let PayloadOwner::Document(document) = owner else { return 0 };
    let hash = document_hash(document);
    let half = 1u64 << (31 - buckets.max(1).leading_zeros());
    let wide = hash & (2 * half - 1);
    (if wide < u64::from(buckets) { wide } else { hash & (half - 1) }) as u32
}

/// Returns the hash of a document id: `s` of the bloom filters.
fn document_hash(document: DocumentId) -> u64 {
    mix(mix((document.0 as u64).wrapping_add(0x9E37_79B9_7F4A_7C15)) ^ (document.0 >> 64) as u64)
}

impl<L: Deref<Target = [u8]> + Clone> PayloadIndex<L> {
    /// Creates an index without buckets.
    #[must_use]
    pub fn new(geometry: &IndexParams) -> Self {
        let bucket_bytes = geometry.page_size as u64 / 2;
        Self { chunks: Vec::new(), buckets: 0, payloads: 0, bytes: 0, entry_bytes: 0, bucket_bytes }
    }

    /// Creates an index from all buckets of a root.
    #[must_use]
    pub fn from_buckets(buckets: Vec<Bucket<L>>, geometry: &IndexParams) -> Self {
        let mut index = Self { buckets: buckets.len() as u32, ..Self::new(geometry) };
        for entry in buckets.iter().flatten() {
            index.count(entry, 1);
        }
        let mut buckets = buckets.into_iter().map(Arc::new).peekable();
        while buckets.peek().is_some() {
            index.chunks.push(Arc::new(buckets.by_ref().take(CHUNK_BUCKETS).collect()));
        }
        index
    }

    /// Adds an entry to the counts, or takes it away with `sign` −1.
    fn count(&mut self, entry: &StoredPayload<L>, sign: i64) {
        let add = |count: &mut u64, n: u64| *count = count.wrapping_add_signed(sign * n as i64);
        add(&mut self.payloads, u64::from(matches!(entry.owner(), PayloadOwner::Document(_))));
        add(&mut self.bytes, u64::from(entry.len()));
        add(&mut self.entry_bytes, entry.entry_bytes() as u64);
    }

    /// Returns the number of buckets.
    #[must_use]
    pub fn buckets(&self) -> u32 {
        self.buckets
    }

    /// Returns the number of documents with a payload.
    #[must_use]
    pub fn payloads(&self) -> u64 {
        self.payloads
    }

    /// Returns the number of bytes of all payloads and of the cursor.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Returns the entries of a bucket; none if there is no such bucket.
    #[must_use]
    pub fn bucket(&self, number: u32) -> &[StoredPayload<L>] {
        let chunk = self.chunks.get(number as usize / CHUNK_BUCKETS);
        chunk.and_then(|chunk| chunk.get(number as usize % CHUNK_BUCKETS)).map_or(&[], |bucket| bucket.as_slice())
    }

    /// Returns the entry of an owner.
    #[must_use]
    pub fn find(&self, owner: PayloadOwner) -> Option<&StoredPayload<L>> {
        let bucket = self.bucket(bucket_of(owner, self.buckets));
        bucket.binary_search_by_key(&owner, StoredPayload::owner).ok().map(|at| &bucket[at])
    }

    /// Iterates all entries, bucket by bucket.
    pub fn iter(&self) -> impl Iterator<Item = &StoredPayload<L>> {
        self.chunks.iter().flat_map(|chunk| chunk.iter()).flat_map(|bucket| bucket.iter())
    }

    /// Inserts, replaces or removes an entry, and returns the one before. Adds the numbers of the changed buckets to
    /// `changed`.
    pub fn set(
        &mut self,
        owner: PayloadOwner,
        entry: Option<StoredPayload<L>>,
        changed: &mut BTreeSet<u32>,
    ) -> Option<StoredPayload<L>> {
        if self.buckets == 0 {
            entry.as_ref()?;
            self.add_bucket(changed);
        }
        let number = bucket_of(owner, self.buckets);
        let at = self.bucket(number).binary_search_by_key(&owner, StoredPayload::owner);
        if at.is_err() && entry.is_none() {
            return None;
        }
        entry.iter().for_each(|entry| self.count(entry, 1));
        changed.insert(number);
        let bucket = self.bucket_mut(number);
        let before = match (at, entry) {
            (Ok(at), Some(entry)) => Some(std::mem::replace(&mut bucket[at], entry)),
            (Ok(at), None) => Some(bucket.remove(at)),
            (Err(at), entry) => {
                bucket.splice(at..at, entry);
                None
            }
        };
        before.iter().for_each(|entry| self.count(entry, -1));
        while self.entry_bytes > u64::from(self.buckets) * self.bucket_bytes {
            self.add_bucket(changed);
        }
        // Half as many entries, so that additions and removals do not alternate between two numbers of buckets.
        while self.buckets > 1 && 2 * self.entry_bytes < u64::from(self.buckets - 1) * self.bucket_bytes {
            self.remove_bucket(changed);
        }
        before
    }

    /// Removes the last bucket, and moves its entries to the bucket that they came from.
    fn remove_bucket(&mut self, changed: &mut BTreeSet<u32>) {
        reached!(BucketRemoved);
        let number = self.buckets - 1;
        let moved = std::mem::take(self.bucket_mut(number));
        self.buckets = number;
        let Some(chunk) = self.chunks.last_mut() else { unreachable!("a bucket is in a chunk") };
        Arc::make_mut(chunk).pop();
        self.chunks.pop_if(|chunk| chunk.is_empty());
        changed.insert(number);
        if moved.is_empty() {
            return;
        }
        let into = number - (1 << (31 - number.leading_zeros()));
        changed.insert(into);
        let bucket = self.bucket_mut(into);
        bucket.extend(moved);
        bucket.sort_unstable_by_key(StoredPayload::owner);
    }

    /// Adds a bucket, and moves the entries to it whose hash now leads there. They all come from one bucket.
    fn add_bucket(&mut self, changed: &mut BTreeSet<u32>) {
        let number = self.buckets;
        self.buckets += 1;
        if number as usize == self.chunks.len() * CHUNK_BUCKETS {
            self.chunks.push(Arc::default());
        }
        let Some(chunk) = self.chunks.last_mut() else { unreachable!("one was pushed") };
        Arc::make_mut(chunk).push(Arc::default());
        changed.insert(number);
        if number == 0 {
            return;
        }
        reached!(BucketAdded);
        let from = number - (1 << (31 - number.leading_zeros()));
        let buckets = self.buckets;
        let moves = |entry: &StoredPayload<L>| bucket_of(entry.owner(), buckets) == number;
        if !self.bucket(from).iter().any(moves) {
            return;
        }
        changed.insert(from);
        let (there, here) = std::mem::take(self.bucket_mut(from)).into_iter().partition(moves);
        *self.bucket_mut(from) = here;
        *self.bucket_mut(number) = there;
    }

    fn bucket_mut(&mut self, number: u32) -> &mut Bucket<L> {
        let chunk = Arc::make_mut(&mut self.chunks[number as usize / CHUNK_BUCKETS]);
        Arc::make_mut(&mut chunk[number as usize % CHUNK_BUCKETS])
    }

    /// Returns the heap memory of the entries in bytes, including what clones share.
    #[must_use]
    pub fn memory(&self) -> usize {
        let of_entries = self.payloads as usize * size_of::<StoredPayload<L>>();
        self.buckets as usize * (size_of::<Arc<Bucket<L>>>() + size_of::<Bucket<L>>() + 16) + of_entries
    }
}
