//! Extent: the unit of space of a shard, a run of slots with one posting each.

use std::{
    ops::Deref,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use super::{
    data::{DataFile, StoreReason, StoredPosting},
    stored_vector::StoredVector,
};
use crate::{
    error::{Result, ShardexError},
    failpoint::holds,
    format::{crc32c, geometry::IndexParams, state::ExtentState},
    lease::{Allocation, Lease},
    storage::StorageFile,
};

/// Extent and its used part.
#[derive(Clone, Debug)]
pub struct Extent<L> {
    /// Lease of the bytes of the used slots.
    slots: Lease<L>,
    used: u32,
    crc: u32,
    /// True if the bytes read from disk passed their check.
    checked: Arc<AtomicBool>,
}

impl<L: Deref<Target = [u8]> + Clone> Extent<L> {
    /// Creates an empty extent in a free allocation.
    pub(super) fn new<F: StorageFile<Lent = L>>(data: &DataFile<F>, allocation: &Arc<Allocation>) -> Result<Self> {
        Ok(Self { used: 0, crc: 0, slots: data.lease_slots(allocation, 0)?, checked: Arc::new(AtomicBool::new(true)) })
    }

    /// Creates an extent that a shard state points to. Its bytes are checked at their first use.
    pub(super) fn load<F: StorageFile<Lent = L>>(
        data: &DataFile<F>,
        state: ExtentState,
        used: u32,
        allocation: &Arc<Allocation>,
    ) -> Result<Self> {
        Ok(Self { used, crc: state.crc, slots: data.lease_slots(allocation, used)?, checked: Arc::default() })
    }

    /// Returns the allocation that holds the extent.
    #[must_use]
    pub fn allocation(&self) -> &Arc<Allocation> {
        self.slots.allocation()
    }

    /// Returns the number of used slots.
    #[must_use]
    pub fn used(&self) -> usize {
        self.used as usize
    }

    /// Returns the entry of the extent for the shard state.
    #[must_use]
    pub fn state(&self) -> ExtentState {
        ExtentState { page: self.allocation().run().page, crc: self.crc }
    }

    /// Returns the bytes of the used slots without a check.
    #[must_use]
    pub fn lent(&self) -> &[u8] {
        &self.slots
    }

    /// Returns the bytes of the used slots. The first call checks their checksum.
    ///
    /// # Errors
    /// Returns `Corruption` if the first check fails.
    #[cfg_attr(feature = "mutants", track_caller)]
    pub fn slots<F: StorageFile<Lent = L>>(&self, data: &DataFile<F>) -> Result<&[u8]> {
        // Relaxed ordering suffices: the flag records only that these bytes, which never change, passed their check.
        if !self.checked.load(Ordering::Relaxed) {
            self.verified_slots(data)?;
            self.checked.store(true, Ordering::Relaxed);
        }
        Ok(&self.slots)
    }

    /// Returns the bytes of the used slots after checking their checksum in this call. It is for bytes that are copied
    /// under a new checksum, which would hide damage that happened after the first check.
    ///
    /// # Errors
    /// Returns `Corruption` if the check fails.
    #[cfg_attr(feature = "mutants", track_caller)]
    pub fn verified_slots<F: StorageFile<Lent = L>>(&self, data: &DataFile<F>) -> Result<&[u8]> {
        let found = crc32c(0, &self.slots);
        if !holds!(Checksum, found == self.crc) {
            return Err(ShardexError::Corruption {
                file: data.path(),
                offset: data.offset(self.allocation()),
                what: format!("an extent: checksum {:08x} expected, {found:08x} found", self.crc),
            });
        }
        Ok(&self.slots)
    }

    /// Reports whether the bytes passed a check earlier or pass one now. Postings can then be appended.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.checked.load(Ordering::Relaxed) || crc32c(0, &self.slots) == self.crc
    }

    /// Returns the posting and the vector in a used slot whose bytes are checked.
    ///
    /// # Panics
    /// Panics if the slot is not used, or if the extent was not checked by [`slots`](Self::slots).
    #[must_use]
    pub fn posting(&self, slot: usize, geometry: &IndexParams) -> (StoredPosting, StoredVector<'_>) {
        assert!(self.checked.load(Ordering::Relaxed), "bytes are checked before they are read");
        (super::record(&self.slots, slot, geometry), super::row(&self.slots, slot, geometry))
    }

    /// Stores whole encoded slots into the next free slots of the extent.
    ///
    /// # Errors
    /// Returns `Corruption` if the bytes before them fail their check, `OutOfSpace` or `Io`.
    ///
    /// # Panics
    /// Panics if the extent does not have enough free slots.
    pub(super) fn append<F: StorageFile<Lent = L>>(
        &mut self,
        data: &DataFile<F>,
        slots: &[u8],
        cause: StoreReason,
    ) -> Result<()> {
        // The new checksum continues from the old one, so the bytes before must match it.
        self.slots(data)?;
        let geometry = data.geometry();
        let count = slots.len() / geometry.slot_bytes();
        assert!(self.used() + count <= geometry.extent_slots, "more postings than the extent has slots");
        data.store(self.allocation(), self.used, slots, cause)?;
        self.crc = crc32c(self.crc, slots);
        self.used += count as u32;
        self.slots = data.lease_slots(self.allocation(), self.used)?;
        Ok(())
    }
}
