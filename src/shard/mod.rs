//! Shard: the unit of storage of the index. A shard has postings and a centroid, by which vectors are routed to it.
//!
//! Invariants:
//! 1. Vectors and postings are append-only: no store touches a published slot until its extent is free.
//! 2. Only the writer changes a shard, and it changes a copy. The holder of an `Arc` sees a shard that never changes,
//!    except that the first lookup fills its fingerprints.
//! 3. `live` is the number of slots without a tombstone. `sum` is the sum of their vectors, accumulated in the order of
//!    the changes.
//! 4. The routing centroid is fixed for the life of the shard.
//! 5. Bytes read from disk are checked against their checksum before their first use.
//!
//! This module does not refer to the WAL.

pub mod bloom;
mod centroid_state;
mod data;
mod extent;
mod finder;
mod fingerprints;
mod former_slots;
mod reservation;
pub mod split;
mod stored_vector;
mod tags;

use std::{
    mem,
    sync::{Arc, OnceLock},
};

pub use data::{DataFile, StoreReason, StoredPosting};
pub use extent::Extent;
pub use finder::{Finder, LookupCounts};
pub use fingerprints::{Fingerprints, Lookup, mix};
pub use former_slots::FormerSlots;
pub use stored_vector::{StoredVector, decode, is_encoded, rounded};
pub use tags::{TagPage, Tags, tag_bytes};

use crate::{
    error::Result,
    format::{
        geometry::{IndexParams, POSTING_BYTES},
        state::ShardState,
    },
    id::ShardId,
    lease::Allocation,
    storage::StorageFile,
};
use bloom::Bloom;

/// Shard shared by readers and the writer.
pub type SharedShard<F> = Arc<Shard<<F as StorageFile>::Lent>>;

/// Shard in memory. `L` is the type of bytes that the storage lends.
#[derive(Clone, Debug)]
pub struct Shard<L> {
    /// Shard id.
    pub id: ShardId,
    /// Routing centroid: vectors near it are routed to this shard.
    pub centroid: Arc<[f32]>,
    /// Number of used slots, including slots with a tombstone and staged slots.
    len: u32,
    live: u32,
    extents: Vec<Extent<L>>,
    tombstones: Vec<u64>,
    bloom: Bloom,
    sum: Vec<f64>,
    tags: Tags,
    /// Encoded slots that are appended but not stored. Empty whenever the shard is published.
    staged: Vec<u8>,
    /// Slots before the last rewrite.
    former: Option<FormerSlots>,
    /// Fingerprints of all slots, created at the first lookup, because an open reads no slots.
    fingerprints: OnceLock<Fingerprints>,
}

impl<L: std::ops::Deref<Target = [u8]> + Clone> Shard<L> {
    /// Creates a shard without postings.
    #[must_use]
    pub fn new(id: ShardId, centroid: Arc<[f32]>, geometry: &IndexParams) -> Self {
        Self {
            id,
            len: 0,
            live: 0,
            extents: Vec::new(),
            tombstones: Vec::new(),
            bloom: Bloom::new(geometry.bloom_bytes),
            sum: vec![0.0; geometry.dimension],
            tags: Tags::default(),
            centroid,
            former: None,
            staged: Vec::new(),
            fingerprints: OnceLock::from(Fingerprints::default()),
        }
    }

    /// Creates a shard from a state and the tags read from disk, with its extents in `allocations`. Reads no vectors and
    /// no postings.
    ///
    /// # Errors
    /// Returns `Io`, also if an extent lies past the end of the file.
    pub fn load<F: StorageFile<Lent = L>>(
        state: ShardState,
        tags: Tags,
        data: &DataFile<F>,
        allocations: &[Arc<Allocation>],
    ) -> Result<Self> {
        let slots = data.geometry().extent_slots;
        let mut extents = Vec::with_capacity(state.extents.len());
        for (i, (extent, allocation)) in state.extents.iter().zip(allocations).enumerate() {
            let used = (state.len as usize - i * slots).min(slots);
            extents.push(Extent::load(data, *extent, used as u32, allocation)?);
        }
        let (sum, centroid) = centroid_state::decoded(state.means, data.geometry());
        Ok(Self {
            id: state.id,
            centroid: centroid.into(),
            len: state.len,
            live: state.live,
            extents,
            tombstones: state.tombstones,
            bloom: Bloom::from_words(state.bloom),
            sum,
            tags,
            former: state.former.map(FormerSlots::new),
            staged: Vec::new(),
            fingerprints: OnceLock::new(),
        })
    }

    /// Returns the tags of the slots.
    #[must_use]
    pub fn tags(&self) -> &Tags {
        &self.tags
    }

    /// Sets the tags of a used slot.
    pub fn set_tags(&mut self, slot: usize, tags: u64, geometry: &IndexParams) {
        self.tags.set(slot, tags, geometry);
    }

    /// Sets the slots that the postings had before a rewrite.
    pub fn set_former(&mut self, former: Option<FormerSlots>) {
        self.former = former;
    }

    /// Returns the number of used slots, including slots with a tombstone.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len as usize
    }

    /// Reports whether no slot is used.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Returns the number of live postings: used slots without a tombstone.
    #[must_use]
    pub fn live(&self) -> usize {
        self.live as usize
    }

    /// Returns the extents in slot order.
    #[must_use]
    pub fn extents(&self) -> &[Extent<L>] {
        &self.extents
    }

    /// Returns the bloom filter of the document ids.
    #[must_use]
    pub fn bloom(&self) -> &Bloom {
        &self.bloom
    }

    /// Returns the sum of the live vectors.
    #[must_use]
    pub fn sum(&self) -> &[f64] {
        &self.sum
    }

    /// Returns the mean of the live vectors, or `None` if there are none.
    pub fn mean(&self) -> Option<impl Iterator<Item = f64>> {
        let n = f64::from(self.live);
        (self.live > 0).then(|| self.sum.iter().map(move |sum| sum / n))
    }

    /// Reports whether slot `i` holds a live posting.
    #[must_use]
    pub fn is_live(&self, i: usize) -> bool {
        i < self.len() && self.tombstones[i / 64] >> (i % 64) & 1 == 0
    }

    /// Returns the tombstones of slots `64 × i` to `64 × i + 63`.
    #[must_use]
    pub fn tombstone_word(&self, i: usize) -> u64 {
        self.tombstones.get(i).copied().unwrap_or(0)
    }

    /// Returns the memory of the shard in bytes, including parts shared with other copies. Staged slots are not
    /// counted.
    #[must_use]
    pub fn memory(&self) -> usize {
        size_of::<Self>()
            + self.extents.len() * size_of::<Extent<L>>()
            + self.tombstones.len() * 8
            + self.bloom.words().len() * 8
            + self.sum.len() * 8
            + self.centroid.len() * 4
            + self.tags.memory()
            + self.fingerprints.get().map_or(0, Fingerprints::memory)
    }

    /// Appends a posting in memory, with a [rounded] vector. [`store`](Self::store) must follow before the shard is
    /// published.
    ///
    /// # Panics
    /// Panics if the shard is full. The caller splits it first.
    pub fn stage(&mut self, posting: StoredPosting, tags: u64, vector: &[f32], geometry: &IndexParams) {
        assert!(self.len() < geometry.shard_size, "a full shard takes nothing");
        self.tags.set(self.len(), tags, geometry);
        if self.len.is_multiple_of(64) {
            self.tombstones.push(0);
        }
        self.len += 1;
        self.live += 1;
        self.bloom.insert(posting.document_id);
        if let Some(fingerprints) = self.fingerprints.get_mut() {
            fingerprints.push(&posting);
        }
        for (sum, x) in self.sum.iter_mut().zip(vector) {
            *sum += f64::from(*x);
        }
        self.staged.reserve(geometry.slot_bytes());
        stored_vector::encode(vector, geometry.encoding, &mut self.staged);
        posting.encode(&mut self.staged);
        self.staged.resize(self.staged.len().next_multiple_of(geometry.slot_bytes()), 0);
    }

    /// Stores the staged slots into the extents of the shard. When the extents are full, new ones come from `take`.
    ///
    /// It stores only into free slots, so after a failure the published version of the shard is still valid.
    ///
    /// # Errors
    /// Returns `OutOfSpace`, `Io`, or `Corruption` if the bytes before the new ones fail their check. This copy of the
    /// shard is unusable after an error.
    pub fn store<F: StorageFile<Lent = L>>(
        &mut self,
        data: &DataFile<F>,
        take: &mut dyn FnMut() -> Result<Arc<Allocation>>,
        cause: StoreReason,
    ) -> Result<()> {
        let geometry = data.geometry();
        let slots = geometry.extent_slots;
        let staged = mem::take(&mut self.staged);
        let mut rest = staged.as_slice();
        while !rest.is_empty() {
            let at = self.len() - rest.len() / geometry.slot_bytes();
            if at == self.extents.len() * slots {
                self.extents.push(Extent::new(data, &take()?)?);
            }
            let Some(extent) = self.extents.last_mut() else { unreachable!("one was pushed") };
            let fit = (slots - at % slots) * geometry.slot_bytes();
            let (now, later) = rest.split_at(fit.min(rest.len()));
            extent.append(data, now, cause)?;
            rest = later;
        }
        Ok(())
    }

    /// Returns the fingerprints of the slots, or `None` if they are not created yet.
    #[must_use]
    pub fn known_fingerprints(&self) -> Option<&Fingerprints> {
        self.fingerprints.get()
    }

    /// Returns the fingerprints of the slots. The first call reads all posting records and creates them.
    fn fingerprints<F: StorageFile<Lent = L>>(&self, data: &DataFile<F>) -> Result<&Fingerprints> {
        if let Some(fingerprints) = self.fingerprints.get() {
            return Ok(fingerprints);
        }
        let geometry = data.geometry();
        let mut fingerprints = Fingerprints::default();
        for extent in &self.extents {
            let bytes = extent.slots(data)?;
            (0..extent.used()).for_each(|i| fingerprints.push(&record(bytes, i, geometry)));
        }
        Ok(self.fingerprints.get_or_init(|| fingerprints))
    }

    /// Appends the live slots that match a lookup to `found`. Returns the number of slots read, which are the live
    /// slots with the fingerprint of the lookup.
    ///
    /// # Errors
    /// Returns `Corruption` if the extents read fail their check.
    ///
    /// # Panics
    /// Panics if staged slots are not stored.
    pub fn find<F: StorageFile<Lent = L>>(
        &self,
        data: &DataFile<F>,
        lookup: Lookup,
        found: &mut Vec<(usize, StoredPosting)>,
    ) -> Result<usize> {
        assert!(self.staged.is_empty(), "lookups come before appends");
        let geometry = data.geometry();
        let extent_slots = geometry.extent_slots;
        let (mut slots, mut read) = (Vec::new(), 0);
        self.fingerprints(data)?.slots(lookup, &mut slots);
        for slot in slots.into_iter().filter(|&slot| self.is_live(slot)) {
            let bytes = self.extents[slot / extent_slots].slots(data)?;
            let posting = record(bytes, slot % extent_slots, geometry);
            read += 1;
            if lookup.wants(&posting) {
                found.push((slot, posting));
            }
        }
        Ok(read)
    }

    /// Removes the posting in a live slot. The slot must have been read, and therefore checked.
    ///
    /// # Panics
    /// Panics if the slot holds no live posting, which is a mistake of the caller.
    pub fn remove(&mut self, slot: usize, geometry: &IndexParams) {
        assert!(self.is_live(slot), "slot {slot} holds no live posting");
        let slots = geometry.extent_slots;
        let vector = row(self.extents[slot / slots].lent(), slot % slots, geometry);
        for (sum, x) in self.sum.iter_mut().zip(&*vector.to_f32()) {
            *sum -= f64::from(*x);
        }
        self.tombstones[slot / 64] |= 1 << (slot % 64);
        self.live -= 1;
    }

    /// Returns all live postings with their tags and vectors, in slot order. Checks the checksum of every extent again.
    ///
    /// # Errors
    /// Returns `Corruption` if an extent fails its check.
    ///
    /// # Panics
    /// Panics if staged slots are not stored.
    pub fn live_rows<'a, F: StorageFile<Lent = L>>(
        &'a self,
        data: &'a DataFile<F>,
    ) -> Result<Vec<StoredRow<StoredVector<'a>>>> {
        assert!(self.staged.is_empty(), "a shard is stored before it is read");
        let geometry = data.geometry();
        let slots = geometry.extent_slots;
        let mut rows = Vec::with_capacity(self.live());
        for (e, extent) in self.extents.iter().enumerate() {
            let bytes = extent.verified_slots(data)?;
            for i in (0..extent.used()).filter(|i| self.is_live(e * slots + i)) {
                let (posting, vector) = (record(bytes, i, geometry), row(bytes, i, geometry));
                rows.push(StoredRow { posting, tags: self.tags.get(e * slots + i), vector });
            }
        }
        Ok(rows)
    }

    /// Reports whether the shard is what its live postings make of it: no other slot is used, and sum, centroid and filter come
    /// from them alone, in their order.
    ///
    /// # Errors
    /// Returns `Corruption` if an extent fails its check.
    ///
    /// # Panics
    /// Panics if staged slots are not stored.
    pub fn is_of_live_alone<F: StorageFile<Lent = L>>(&self, data: &DataFile<F>) -> Result<bool> {
        let rows = self.live_rows(data)?;
        let (mut sum, mut bloom) = (vec![0.0; self.sum.len()], Bloom::new(self.bloom.words().len() * 8));
        for row in &rows {
            bloom.insert(row.posting.document_id);
            sum.iter_mut().zip(&*row.vector.to_f32()).for_each(|(sum, x)| *sum += f64::from(*x));
        }
        let mean = sum.iter().map(|sum| (sum / rows.len() as f64) as f32);
        let same = |(a, b): (f32, &f32)| a.to_bits() == b.to_bits();
        Ok(self.len == self.live
            && bloom == self.bloom
            && sum.iter().zip(&self.sum).all(|(a, b)| a.to_bits() == b.to_bits())
            && mean.zip(&*self.centroid).all(same))
    }

    /// Returns the number of postings that fit into the present extents. Returns 0 if the last extent is damaged.
    pub fn room_in_place<F: StorageFile<Lent = L>>(&self, data: &DataFile<F>) -> usize {
        let geometry = data.geometry();
        let slots = (self.extents.len() * geometry.extent_slots).min(geometry.shard_size);
        let room = slots.saturating_sub(self.len());
        if room > 0 && self.extents.last().is_some_and(Extent::is_whole) { room } else { 0 }
    }

    /// Returns the live stored postings for whose vector `wanted` returns a value, each with its slot and that value.
    ///
    /// Postings in damaged extents are left out, so that no damage is copied under a new checksum.
    pub fn picked_rows<T, F: StorageFile<Lent = L>>(
        &self,
        data: &DataFile<F>,
        wanted: impl Fn(&[f32]) -> Option<T>,
    ) -> Vec<(usize, StoredPosting, T)> {
        let geometry = data.geometry();
        let slots = geometry.extent_slots;
        let (mut picked, mut scratch) = (Vec::new(), Vec::new());
        for (e, extent) in self.extents.iter().enumerate() {
            // The vectors are read unchecked first, because a check costs as much as the scan. If the bytes are
            // damaged, a wrong posting may be picked. The check of extents with picked postings then detects it.
            let (bytes, before) = (extent.lent(), picked.len());
            for i in (0..extent.used()).filter(|i| self.is_live(e * slots + i)) {
                let told = wanted(row(bytes, i, geometry).widened(&mut scratch));
                picked.extend(told.map(|told| (e * slots + i, record(bytes, i, geometry), told)));
            }
            if picked.len() > before && extent.verified_slots(data).is_err() {
                picked.truncate(before);
            }
        }
        picked
    }
}

/// Live posting of a shard.
#[derive(Clone, Copy, Debug)]
pub struct StoredRow<V> {
    /// Posting record.
    pub posting: StoredPosting,
    /// Tags.
    pub tags: u64,
    /// Vector in its stored form, or widened to f32.
    pub vector: V,
}

/// Returns the vector in slot `i` of an extent's bytes.
#[must_use]
pub fn row<'a>(slots: &'a [u8], i: usize, geometry: &IndexParams) -> StoredVector<'a> {
    let at = i * geometry.slot_bytes();
    StoredVector::of(&slots[at..at + geometry.vector_bytes()], geometry)
}

/// Returns the bytes of slot `i` of an extent's bytes.
#[must_use]
pub fn slot_bytes<'a>(slots: &'a [u8], i: usize, geometry: &IndexParams) -> &'a [u8] {
    let at = i * geometry.slot_bytes();
    &slots[at..at + geometry.slot_bytes()]
}

/// Decodes the posting record in slot `i` of an extent's bytes.
#[must_use]
pub fn record(slots: &[u8], i: usize, geometry: &IndexParams) -> StoredPosting {
    let at = i * geometry.slot_bytes() + geometry.vector_bytes();
    StoredPosting::decode(&slots[at..at + POSTING_BYTES])
}
