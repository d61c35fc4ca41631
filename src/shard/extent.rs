//! An extent: the unit in which a shard takes space, a run of slots with a posting in each.

use std::{
    ops::Deref,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use super::data::{Cause, DataFile, StoredPosting};
use crate::{
    error::{Result, ShardexError},
    format::{crc32c, geometry::Geometry, state::ExtentState},
    lease::{Lease, Place},
    site::{self, Kind},
    storage::StorageFile,
};

/// An extent and the part of it that is used.
#[derive(Clone, Debug)]
pub struct Extent<L> {
    /// The bytes of the used slots.
    slots: Lease<L>,
    used: u32,
    crc: u32,
    /// Whether the bytes that came from the disk have been checked.
    checked: Arc<AtomicBool>,
}

impl<L: Deref<Target = [u8]> + Clone> Extent<L> {
    /// An extent in a free place.
    pub(super) fn new<F: StorageFile<Lent = L>>(data: &DataFile<F>, place: &Arc<Place>) -> Result<Self> {
        Ok(Self { used: 0, crc: 0, slots: data.lease_slots(place, 0)?, checked: Arc::new(AtomicBool::new(true)) })
    }

    /// An extent that a state names. Its bytes are checked when they are first used.
    pub(super) fn load<F: StorageFile<Lent = L>>(
        data: &DataFile<F>,
        state: ExtentState,
        used: u32,
        place: &Arc<Place>,
    ) -> Result<Self> {
        Ok(Self { used, crc: state.crc, slots: data.lease_slots(place, used)?, checked: Arc::default() })
    }

    /// Where it lies.
    #[must_use]
    pub fn place(&self) -> &Arc<Place> {
        self.slots.place()
    }

    /// Slots used.
    #[must_use]
    pub fn used(&self) -> usize {
        self.used as usize
    }

    /// What a shard's state says of it.
    #[must_use]
    pub fn state(&self) -> ExtentState {
        ExtentState { page: self.place().run().page, crc: self.crc }
    }

    /// The bytes of the used slots as they are lent, checked by nobody.
    #[must_use]
    pub fn lent(&self) -> &[u8] {
        &self.slots
    }

    /// The bytes of the used slots.
    ///
    /// # Errors
    /// `Corruption` at the first use if they are damaged.
    #[cfg_attr(feature = "mutants", track_caller)]
    pub fn slots<F: StorageFile<Lent = L>>(&self, data: &DataFile<F>) -> Result<&[u8]> {
        // Relaxed: the flag says only that these bytes, which never change, sum to what they should.
        if !self.checked.load(Ordering::Relaxed) {
            self.verified_slots(data)?;
            self.checked.store(true, Ordering::Relaxed);
        }
        Ok(&self.slots)
    }

    /// The same, checked at this very use: for bytes that will be copied under a new checksum, which would hide for good
    /// what has rotten since the first use.
    ///
    /// # Errors
    /// `Corruption` if they are damaged.
    #[cfg_attr(feature = "mutants", track_caller)]
    pub fn verified_slots<F: StorageFile<Lent = L>>(&self, data: &DataFile<F>) -> Result<&[u8]> {
        let found = crc32c(0, &self.slots);
        if !site::holds(Kind::Checksum, found == self.crc) {
            return Err(ShardexError::Corruption {
                file: data.path(),
                offset: data.offset(self.place()),
                what: format!("an extent: checksum {:08x} expected, {found:08x} found", self.crc),
            });
        }
        Ok(&self.slots)
    }

    /// Whether its bytes were checked once, or are what they should be: then postings can be appended.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.checked.load(Ordering::Relaxed) || crc32c(0, &self.slots) == self.crc
    }

    /// The posting in a used slot, whose bytes were checked.
    ///
    /// # Panics
    /// If the slot is not used, or nobody has read the extent yet: [`slots`](Self::slots) comes first.
    #[must_use]
    pub fn posting(&self, slot: usize, geometry: &Geometry) -> (StoredPosting, &[f32]) {
        assert!(self.checked.load(Ordering::Relaxed), "bytes are checked before they are read");
        (super::record(&self.slots, slot, geometry), super::row(&self.slots, slot, geometry))
    }

    /// Stores whole slots, as the file has them, into the next free ones.
    pub(super) fn append<F: StorageFile<Lent = L>>(
        &mut self,
        data: &DataFile<F>,
        slots: &[u8],
        cause: Cause,
    ) -> Result<()> {
        // The checksum goes on from what is there, so that must be what it should be.
        self.slots(data)?;
        let geometry = data.geometry();
        let count = slots.len() / geometry.slot_bytes();
        assert!(self.used() + count <= geometry.extent_slots(), "more postings than the extent has slots");
        data.store(self.place(), self.used, slots, cause)?;
        self.crc = crc32c(self.crc, slots);
        self.used += count as u32;
        self.slots = data.lease_slots(self.place(), self.used)?;
        Ok(())
    }
}
