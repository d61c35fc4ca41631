//! An extent: the unit in which a shard takes space. Vectors first, then posting records, each page-aligned.

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
    format::{
        crc32c,
        geometry::{Geometry, POSTING_BYTES},
        state::ExtentState,
    },
    id::Generation,
    space::Run,
    storage::StorageFile,
};

/// A place in the data file, for as long as anybody needs it: shards, snapshots, and the list of places that wait to be
/// free all hold it by the same `Arc`, and it is free when only that list is left.
#[derive(Debug, PartialEq, Eq)]
pub struct Place {
    /// Where.
    pub run: Run,
    /// The newest root begun when it was taken: a later one may name it, this one does not.
    pub born: Generation,
}

/// Whether the bytes that came from the disk have been checked.
#[derive(Debug, Default)]
struct Checked {
    vectors: AtomicBool,
    postings: AtomicBool,
}

/// An extent and the part of it that is used.
#[derive(Clone, Debug)]
pub struct Extent<L> {
    place: Arc<Place>,
    used: u32,
    vectors_crc: u32,
    postings_crc: u32,
    vectors: L,
    postings: L,
    checked: Arc<Checked>,
}

impl<L: Deref<Target = [u8]> + Clone> Extent<L> {
    /// An extent in a free place.
    pub(super) fn new<F: StorageFile<Lent = L>>(data: &DataFile<F>, run: Run, born: Generation) -> Result<Self> {
        let checked = Checked { vectors: AtomicBool::new(true), postings: AtomicBool::new(true) };
        let (vectors, postings) = data.lend(run, 0)?;
        Ok(Self {
            place: Arc::new(Place { run, born }),
            used: 0,
            vectors_crc: 0,
            postings_crc: 0,
            vectors,
            postings,
            checked: Arc::new(checked),
        })
    }

    /// An extent that a state names. Its bytes are checked when they are first used.
    pub(super) fn load<F: StorageFile<Lent = L>>(
        data: &DataFile<F>,
        state: ExtentState,
        used: u32,
        born: Generation,
    ) -> Result<Self> {
        let run = Run { page: state.page, pages: data.geometry().extent_pages() };
        let (vectors, postings) = data.lend(run, used)?;
        Ok(Self {
            place: Arc::new(Place { run, born }),
            used,
            vectors_crc: state.vectors_crc,
            postings_crc: state.postings_crc,
            vectors,
            postings,
            checked: Arc::default(),
        })
    }

    /// Where it lies.
    #[must_use]
    pub fn place(&self) -> &Arc<Place> {
        &self.place
    }

    /// Slots used.
    #[must_use]
    pub fn used(&self) -> usize {
        self.used as usize
    }

    /// What a shard's state says of it.
    #[must_use]
    pub fn state(&self) -> ExtentState {
        ExtentState { page: self.place.run.page, vectors_crc: self.vectors_crc, postings_crc: self.postings_crc }
    }

    /// The vectors of the used slots.
    ///
    /// # Errors
    /// `Corruption` at the first use if they are damaged.
    pub fn vectors<F: StorageFile<Lent = L>>(&self, data: &DataFile<F>) -> Result<&[u8]> {
        let offset = data.offset(self.place.run);
        check(&self.vectors, self.vectors_crc, &self.checked.vectors, "vectors", || (data.path(), offset))
    }

    /// The posting records of the used slots.
    ///
    /// # Errors
    /// `Corruption` at the first use if they are damaged.
    pub fn postings<F: StorageFile<Lent = L>>(&self, data: &DataFile<F>) -> Result<&[u8]> {
        let offset = data.offset(self.place.run) + data.geometry().postings_offset() as u64;
        check(&self.postings, self.postings_crc, &self.checked.postings, "postings", || (data.path(), offset))
    }

    /// The vector in a used slot, whose bytes were checked.
    ///
    /// # Panics
    /// If the slot is not used, or nobody has read the vectors yet: [`vectors`](Self::vectors) comes first.
    #[must_use]
    pub fn row(&self, slot: usize, geometry: &Geometry) -> &[f32] {
        assert!(self.checked.vectors.load(Ordering::Relaxed), "vectors are checked before they are read");
        super::row(&self.vectors, slot, geometry)
    }

    /// The posting record in a used slot, whose bytes were checked.
    ///
    /// # Panics
    /// If the slot is not used, or nobody has read the records yet: [`postings`](Self::postings) comes first.
    #[must_use]
    pub fn posting(&self, slot: usize) -> StoredPosting {
        assert!(self.checked.postings.load(Ordering::Relaxed), "records are checked before they are read");
        StoredPosting::decode(&self.postings[slot * POSTING_BYTES..(slot + 1) * POSTING_BYTES])
    }

    /// Stores postings into the next free slots.
    pub(super) fn append<F: StorageFile<Lent = L>>(
        &mut self,
        data: &DataFile<F>,
        postings: &[StoredPosting],
        rows: &[f32],
        cause: Cause,
    ) -> Result<()> {
        // The checksums go on from what is there, so that must be what it should be.
        self.vectors(data)?;
        self.postings(data)?;
        let geometry = data.geometry();
        assert!(self.used() + postings.len() <= geometry.extent_slots(), "more postings than the extent has slots");
        let mut records = Vec::with_capacity(postings.len() * POSTING_BYTES);
        postings.iter().for_each(|posting| posting.encode(&mut records));
        let padded;
        let vectors: &[u8] = if geometry.vector_stride() == geometry.dimension * 4 {
            bytemuck::cast_slice(rows)
        } else {
            padded = pad_rows(rows, geometry.dimension, geometry.vector_stride());
            &padded
        };
        data.store(self.place.run, self.used, vectors, &records, cause)?;
        self.vectors_crc = crc32c(self.vectors_crc, vectors);
        self.postings_crc = crc32c(self.postings_crc, &records);
        self.used += postings.len() as u32;
        (self.vectors, self.postings) = data.lend(self.place.run, self.used)?;
        Ok(())
    }
}

fn check<'a, L: Deref<Target = [u8]>>(
    bytes: &'a L,
    expected: u32,
    checked: &AtomicBool,
    what: &str,
    place: impl FnOnce() -> (std::path::PathBuf, u64),
) -> Result<&'a [u8]> {
    // Relaxed: the flag says only that these bytes, which never change, sum to what they should.
    if !checked.load(Ordering::Relaxed) {
        let found = crc32c(0, bytes);
        if found != expected {
            let (file, offset) = place();
            return Err(ShardexError::Corruption {
                file,
                offset,
                what: format!("the {what} of an extent: checksum {expected:08x} expected, {found:08x} found"),
            });
        }
        checked.store(true, Ordering::Relaxed);
    }
    Ok(bytes)
}

fn pad_rows(rows: &[f32], dimension: usize, stride: usize) -> Vec<u8> {
    let mut out = Vec::with_capacity(rows.len() / dimension * stride);
    for row in rows.chunks_exact(dimension) {
        out.extend_from_slice(bytemuck::cast_slice(row));
        out.resize(out.len().next_multiple_of(stride), 0);
    }
    out
}
