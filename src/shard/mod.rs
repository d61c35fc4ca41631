//! A shard: a cell of the index, with its postings and the vector that stands for them.
//!
//! Invariants:
//! 1. Vectors and postings are append-only: a slot, once published, is never stored to until its extent is free.
//! 2. A shard is changed only by the writer, on a copy; whoever holds an `Arc` of one sees it unchanged for ever.
//! 3. `live` is the number of slots without a tombstone; `sum` is the sum of their vectors in the order of the changes.
//! 4. The routing centroid is fixed for the shard's life.
//! 5. Bytes read from a disk are checked against their checksum before they are used for the first time.
//!
//! This module never names the WAL.

pub mod bloom;
mod data;
mod extent;
mod finder;
mod prints;
pub mod split;

use std::{
    mem,
    sync::{Arc, OnceLock},
};

pub use data::{Cause, DataFile, StoredPosting};
pub use extent::Extent;
pub use finder::{Finder, LookupCounts};
pub use prints::{Lookup, Prints};

use crate::{
    error::Result,
    format::{
        geometry::{Geometry, POSTING_BYTES},
        state::ShardState,
    },
    id::ShardId,
    lease::Place,
    storage::StorageFile,
};
use bloom::Bloom;

/// A shard in memory. `L` is what the storage lends.
#[derive(Clone, Debug)]
pub struct Shard<L> {
    /// Its name.
    pub id: ShardId,
    /// Where vectors are routed to it.
    pub centroid: Arc<[f32]>,
    /// Slots used, removed ones and staged ones too.
    len: u32,
    live: u32,
    extents: Vec<Extent<L>>,
    tombstones: Vec<u64>,
    bloom: Bloom,
    sum: Vec<f64>,
    /// Slots appended and not yet stored; none whenever the shard is published.
    staged: Vec<u8>,
    /// The fingerprints of all slots, made at the first lookup: an open reads no slot.
    prints: OnceLock<Prints>,
}

impl<L: std::ops::Deref<Target = [u8]> + Clone> Shard<L> {
    /// A shard without postings.
    #[must_use]
    pub fn new(id: ShardId, centroid: Arc<[f32]>, geometry: &Geometry) -> Self {
        Self {
            id,
            len: 0,
            live: 0,
            extents: Vec::new(),
            tombstones: Vec::new(),
            bloom: Bloom::new(geometry.bloom_bytes),
            sum: vec![0.0; geometry.dimension],
            centroid,
            staged: Vec::new(),
            prints: OnceLock::from(Prints::default()),
        }
    }

    /// The shard of a state read from disk, whose extents lie in `places`. Reads no vector and no posting.
    ///
    /// # Errors
    /// `Io`, also when an extent lies past the file's end.
    pub fn load<F: StorageFile<Lent = L>>(
        state: ShardState,
        data: &DataFile<F>,
        places: &[Arc<Place>],
    ) -> Result<Self> {
        let slots = data.geometry().extent_slots();
        let mut extents = Vec::with_capacity(state.extents.len());
        for (i, (extent, place)) in state.extents.iter().zip(places).enumerate() {
            let used = (state.len as usize - i * slots).min(slots);
            extents.push(Extent::load(data, *extent, used as u32, place)?);
        }
        Ok(Self {
            id: state.id,
            centroid: state.centroid.into(),
            len: state.len,
            live: state.live,
            extents,
            tombstones: state.tombstones,
            bloom: Bloom::from_words(state.bloom),
            sum: state.sum,
            staged: Vec::new(),
            prints: OnceLock::new(),
        })
    }

    /// What is to be stored of it at a flush.
    #[must_use]
    pub fn state(&self, number: u32) -> ShardState {
        assert!(self.staged.is_empty(), "a shard is stored before its state");
        ShardState {
            number,
            id: self.id,
            len: self.len,
            live: self.live,
            extents: self.extents.iter().map(Extent::state).collect(),
            tombstones: self.tombstones.clone(),
            bloom: self.bloom.words().to_vec(),
            sum: self.sum.clone(),
            centroid: self.centroid.to_vec(),
        }
    }

    /// Slots used, removed ones too.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len as usize
    }

    /// Whether no slot is used.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Slots used and not removed.
    #[must_use]
    pub fn live(&self) -> usize {
        self.live as usize
    }

    /// Its extents, in the order of their slots.
    #[must_use]
    pub fn extents(&self) -> &[Extent<L>] {
        &self.extents
    }

    /// Its bloom filter of document ids.
    #[must_use]
    pub fn bloom(&self) -> &Bloom {
        &self.bloom
    }

    /// The sum of its live vectors.
    #[must_use]
    pub fn sum(&self) -> &[f64] {
        &self.sum
    }

    /// The mean of its live vectors; `None` if there are none.
    pub fn mean(&self) -> Option<impl Iterator<Item = f64>> {
        let n = f64::from(self.live);
        (self.live > 0).then(|| self.sum.iter().map(move |sum| sum / n))
    }

    /// Whether slot `i` holds a posting that is not removed.
    #[must_use]
    pub fn is_live(&self, i: usize) -> bool {
        i < self.len() && self.tombstones[i / 64] >> (i % 64) & 1 == 0
    }

    /// The word of tombstones that covers slots `64 × i` and on.
    #[must_use]
    pub fn tombstone_word(&self, i: usize) -> u64 {
        self.tombstones.get(i).copied().unwrap_or(0)
    }

    /// Heap bytes of the shard, what it shares with other copies counted too.
    #[must_use]
    pub fn memory(&self) -> usize {
        size_of::<Self>()
            + self.extents.len() * size_of::<Extent<L>>()
            + self.tombstones.len() * 8
            + self.bloom.words().len() * 8
            + self.sum.len() * 8
            + self.centroid.len() * 4
            + self.prints.get().map_or(0, Prints::memory)
    }

    /// Takes one more posting, in memory: [`store`](Self::store) must follow before it is published.
    ///
    /// # Panics
    /// If the shard is full: the caller splits it first.
    pub fn stage(&mut self, posting: StoredPosting, vector: &[f32], geometry: &Geometry) {
        assert!(self.len() < geometry.shard_size, "a full shard takes nothing");
        if self.len.is_multiple_of(64) {
            self.tombstones.push(0);
        }
        self.len += 1;
        self.live += 1;
        self.bloom.insert(posting.document_id);
        if let Some(prints) = self.prints.get_mut() {
            prints.push(&posting);
        }
        for (sum, x) in self.sum.iter_mut().zip(vector) {
            *sum += f64::from(*x);
        }
        self.staged.reserve(geometry.slot_bytes());
        self.staged.extend_from_slice(bytemuck::cast_slice(vector));
        posting.encode(&mut self.staged);
        self.staged.resize(self.staged.len().next_multiple_of(geometry.slot_bytes()), 0);
    }

    /// Stores what was staged into the shard's extents, new ones from `take` where these are full.
    ///
    /// Free slots are all it touches: if it fails, the shard from before is as good as ever.
    ///
    /// # Errors
    /// `OutOfSpace`, `Io`, `Corruption` (the bytes before the new ones are checked first). The shard is unusable then.
    pub fn store<F: StorageFile<Lent = L>>(
        &mut self,
        data: &DataFile<F>,
        take: &mut dyn FnMut() -> Result<Arc<Place>>,
        cause: Cause,
    ) -> Result<()> {
        let geometry = data.geometry();
        let slots = geometry.extent_slots();
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

    /// The fingerprints of its slots, if it was looked into.
    #[must_use]
    pub fn known_prints(&self) -> Option<&Prints> {
        self.prints.get()
    }

    /// The fingerprints of its slots, made of all posting records if nobody has looked into it yet.
    fn prints<F: StorageFile<Lent = L>>(&self, data: &DataFile<F>) -> Result<&Prints> {
        if let Some(prints) = self.prints.get() {
            return Ok(prints);
        }
        let geometry = data.geometry();
        let mut prints = Prints::default();
        for extent in &self.extents {
            let bytes = extent.slots(data)?;
            (0..extent.used()).for_each(|i| prints.push(&record(bytes, i, geometry)));
        }
        Ok(self.prints.get_or_init(|| prints))
    }

    /// Appends the live slots that hold what is looked up. Returns how many slots it read: those with its fingerprint.
    ///
    /// # Errors
    /// `Corruption` if posting records are damaged.
    pub fn find<F: StorageFile<Lent = L>>(
        &self,
        data: &DataFile<F>,
        lookup: Lookup,
        found: &mut Vec<(usize, StoredPosting)>,
    ) -> Result<usize> {
        assert!(self.staged.is_empty(), "lookups come before appends");
        let geometry = data.geometry();
        let extent_slots = geometry.extent_slots();
        let (mut slots, mut read) = (Vec::new(), 0);
        self.prints(data)?.slots(lookup, &mut slots);
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

    /// Removes the posting in a live slot that was read, and so checked.
    ///
    /// # Panics
    /// If the slot holds no live posting: a mistake of the caller.
    pub fn remove(&mut self, slot: usize, geometry: &Geometry) {
        assert!(self.is_live(slot), "slot {slot} holds no live posting");
        let slots = geometry.extent_slots();
        let vector = row(self.extents[slot / slots].lent(), slot % slots, geometry);
        for (sum, x) in self.sum.iter_mut().zip(vector) {
            *sum -= f64::from(*x);
        }
        self.tombstones[slot / 64] |= 1 << (slot % 64);
        self.live -= 1;
    }

    /// All live postings with their vectors, in the order of their slots.
    ///
    /// # Errors
    /// `Corruption` if bytes are damaged.
    pub fn live_rows<'a, F: StorageFile<Lent = L>>(
        &'a self,
        data: &'a DataFile<F>,
    ) -> Result<Vec<(StoredPosting, &'a [f32])>> {
        assert!(self.staged.is_empty(), "a shard is stored before it is read");
        let geometry = data.geometry();
        let slots = geometry.extent_slots();
        let mut rows = Vec::with_capacity(self.live());
        for (e, extent) in self.extents.iter().enumerate() {
            let bytes = extent.verified_slots(data)?;
            for i in (0..extent.used()).filter(|i| self.is_live(e * slots + i)) {
                rows.push((record(bytes, i, geometry), row(bytes, i, geometry)));
            }
        }
        Ok(rows)
    }

    /// Postings that it can take into extents that it has, and that nobody has found damaged.
    pub fn room_in_place<F: StorageFile<Lent = L>>(&self, data: &DataFile<F>) -> usize {
        let geometry = data.geometry();
        let slots = (self.extents.len() * geometry.extent_slots()).min(geometry.shard_size);
        let room = slots.saturating_sub(self.len());
        if room > 0 && self.extents.last().is_some_and(Extent::is_whole) { room } else { 0 }
    }

    /// Those of the live postings stored so far of whose vectors `wanted` says something, each with its slot and that.
    ///
    /// Leaves out extents that are damaged: what is copied from here hides no damage under a new checksum.
    pub fn picked_rows<T, F: StorageFile<Lent = L>>(
        &self,
        data: &DataFile<F>,
        wanted: impl Fn(&[f32]) -> Option<T>,
    ) -> Vec<(usize, StoredPosting, T)> {
        let geometry = data.geometry();
        let slots = geometry.extent_slots();
        let mut picked = Vec::new();
        for (e, extent) in self.extents.iter().enumerate() {
            // Looked at unchecked, which would cost as much as the looking: of wrong bytes a wrong posting is picked, if
            // any, and that is found out.
            let (bytes, before) = (extent.lent(), picked.len());
            for i in (0..extent.used()).filter(|i| self.is_live(e * slots + i)) {
                let told = wanted(row(bytes, i, geometry));
                picked.extend(told.map(|told| (e * slots + i, record(bytes, i, geometry), told)));
            }
            if picked.len() > before && extent.verified_slots(data).is_err() {
                picked.truncate(before);
            }
        }
        picked
    }
}

/// The vector in slot `i` of an extent's bytes.
#[must_use]
pub fn row<'a>(slots: &'a [u8], i: usize, geometry: &Geometry) -> &'a [f32] {
    let at = i * geometry.slot_bytes();
    bytemuck::cast_slice(&slots[at..at + geometry.vector_bytes()])
}

/// The bytes of slot `i` of an extent's.
#[must_use]
pub fn slot_bytes<'a>(slots: &'a [u8], i: usize, geometry: &Geometry) -> &'a [u8] {
    let at = i * geometry.slot_bytes();
    &slots[at..at + geometry.slot_bytes()]
}

/// The posting record in slot `i` of an extent's bytes.
#[must_use]
pub fn record(slots: &[u8], i: usize, geometry: &Geometry) -> StoredPosting {
    let at = i * geometry.slot_bytes() + geometry.vector_bytes();
    StoredPosting::decode(&slots[at..at + POSTING_BYTES])
}
