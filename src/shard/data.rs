//! Data file: extents, shard states, directory nodes and cells, which are stored only into free allocations.

use std::{
    path::PathBuf,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use super::reservation::PageSpace;
use crate::{
    error::Result,
    failpoint::{protects, reached},
    format::{
        codec::Put as _,
        geometry::{IndexParams, POSTING_BYTES},
    },
    id::{DocumentId, PostingKey},
    lease::{Allocation, IndexLock, Lease, LendingFile, PageRange, SyncJob},
    storage::{Purpose, Storage, StorageFile},
    tuning,
};

const GROW: Purpose = Purpose("data: grow");
const RESERVE: Purpose = Purpose("data: allocate a hole");
const RELEASE: Purpose = Purpose("data: give back free space");
const META: Purpose = Purpose("data: states and directory");
const CELLS: Purpose = Purpose("data: cells");
const PAYLOADS: Purpose = Purpose("data: payloads");
const WIPE: Purpose = Purpose("data: wipe");

/// Zeros that a wipe stores at once.
const ZEROS: usize = 1 << 20;

/// Reason for storing postings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StoreReason {
    /// The postings are added.
    Add,
    /// The shard was split, or rewritten without its removed postings.
    Split,
    /// The shard was merged into its neighbours.
    Merge,
}

impl StoreReason {
    fn purpose(self) -> Purpose {
        match self {
            Self::Add => Purpose("add: postings"),
            Self::Split => Purpose("split: postings"),
            Self::Merge => Purpose("merge: postings"),
        }
    }
}

/// Posting record as a shard stores it, without the vector.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StoredPosting {
    /// Document id.
    pub document_id: DocumentId,
    /// Start of the part of the document.
    pub start: u32,
    /// Length of the part.
    pub length: u32,
    /// Norm of the vector before normalisation under the cosine metric; 1 under the other metrics.
    pub norm: f32,
}

impl StoredPosting {
    /// Returns the key of the posting.
    #[must_use]
    pub fn key(&self) -> PostingKey {
        PostingKey { document_id: self.document_id, start: self.start, length: self.length }
    }

    /// Appends the encoded record.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.put_u128(self.document_id.0);
        out.put_u32(self.start);
        out.put_u32(self.length);
        out.put_u32(self.norm.to_bits());
        out.put_u32(0);
    }

    /// Decodes a record whose bytes are checked.
    ///
    /// # Panics
    /// Panics if `record` is not [`POSTING_BYTES`] long.
    #[must_use]
    pub fn decode(record: &[u8]) -> Self {
        assert_eq!(record.len(), POSTING_BYTES);
        let word = |at: usize| {
            let mut raw = [0; 4];
            raw.copy_from_slice(&record[at..at + 4]);
            u32::from_le_bytes(raw)
        };
        let mut id = [0; 16];
        id.copy_from_slice(&record[..16]);
        Self {
            document_id: DocumentId(u128::from_le_bytes(id)),
            start: word(16),
            length: word(20),
            norm: f32::from_bits(word(24)),
        }
    }
}

/// Changes that the next sync must cover.
#[derive(Debug, Default)]
struct Unsynced {
    range: Option<(u64, u64)>,
    grown: bool,
}

/// Data file, with a record of what was stored since the last sync.
#[derive(Debug)]
pub struct DataFile<F> {
    file: LendingFile<F>,
    geometry: IndexParams,
    unsynced: Mutex<Unsynced>,
    space: Mutex<PageSpace>,
    never_releases: AtomicBool,
    open_number: u64,
    bytes_stored: AtomicU64,
}

impl<F: StorageFile> DataFile<F> {
    /// Opens the data file under the index lock, as [`LendingFile::open`] does.
    ///
    /// # Errors
    /// Returns `Io`.
    pub fn open<S: Storage<File = F>>(storage: &S, lock: &IndexLock, geometry: IndexParams) -> Result<Self> {
        let file = LendingFile::open(storage, lock, geometry.page_size)?;
        static OPENS: AtomicU64 = AtomicU64::new(0);
        let open_number = OPENS.fetch_add(1, Ordering::Relaxed);
        let (unsynced, space, never_releases) = (Mutex::default(), Mutex::default(), AtomicBool::new(false));
        Ok(Self { file, geometry, unsynced, space, never_releases, open_number, bytes_stored: AtomicU64::new(0) })
    }

    /// Returns the number of this open, which no other open of the process has. Filters remember what they belong to by
    /// it. It affects no result and no byte.
    #[must_use]
    pub fn open_number(&self) -> u64 {
        self.open_number
    }

    /// Returns the underlying file, for reads that copy.
    #[must_use]
    pub fn raw(&self) -> &F {
        self.file.raw()
    }

    /// Returns the index lock.
    #[must_use]
    pub fn lock(&self) -> &IndexLock {
        self.file.lock()
    }

    /// Returns the parameters of the index.
    #[must_use]
    pub fn geometry(&self) -> &IndexParams {
        &self.geometry
    }

    /// Returns the path of the file.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        self.raw().path()
    }

    /// Returns the number of bytes stored since the open.
    #[must_use]
    pub fn bytes_stored(&self) -> u64 {
        self.bytes_stored.load(Ordering::Relaxed)
    }

    /// Returns the offset in bytes of an allocation in the file.
    #[must_use]
    pub fn offset(&self, allocation: &Allocation) -> u64 {
        self.file.offset(allocation)
    }

    /// Grows the file from `from` to `to` pages.
    ///
    /// # Errors
    /// Returns `OutOfSpace` or `Io`.
    pub fn grow(&self, from: u64, to: u64) -> Result<()> {
        let page = self.geometry.page_size as u64;
        // The last page of a hole makes the file long enough.
        let is_sparse = to <= 1 + tuning::SPARSE_CHUNKS * u64::from(self.geometry.chunk_pages());
        let first = if is_sparse { to - 1 } else { from };
        self.space().in_doubt(PageRange { page: from, pages: (to - from) as u32 });
        let run = PageRange { page: first, pages: (to - first) as u32 };
        self.raw().allocate(first * page, (to - first) * page, GROW)?;
        self.unsynced.lock().unwrap_or_else(PoisonError::into_inner).grown |= protects!(Ordering);
        self.space().reserved(run);
        Ok(())
    }

    fn space(&self) -> MutexGuard<'_, PageSpace> {
        self.space.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reserves the space of `len` bytes from byte `at` of adjacent allocations on, unless this handle has done so. They may be
    /// a hole: the file was made as one, their space was given back, or the file is a copy with holes. Then a store must
    /// not be the first to find that the disk is full.
    ///
    /// An extent that postings are added to reserves as much again for the next ones.
    fn reserve(&self, allocations: &[&Allocation], at: usize, len: usize, ahead: bool) -> Result<()> {
        let (Some(first), Some(last)) = (allocations.first(), allocations.last()) else { return Ok(()) };
        let page_size = self.geometry.page_size;
        let begin = first.run().page + (at / page_size) as u64;
        let pages_to = |bytes: usize| first.run().page + bytes.div_ceil(page_size) as u64;
        let range = |end: u64| PageRange { page: begin, pages: (end.min(last.run().end()) - begin) as u32 };
        if !self.space().is_reserved(range(pages_to(at + len))) {
            let reserved = if ahead { 2 * (at + len) } else { at + len };
            let (run, page) = (range(pages_to(reserved)), page_size as u64);
            // Before the call, because a failed one may have reserved a part.
            self.space().in_doubt(run);
            self.raw().allocate(run.page * page, u64::from(run.pages) * page, RESERVE)?;
            reached!(SpaceReserved);
            self.space().reserved(run);
        }
        Ok(())
    }

    /// Returns the parts of a range that may take space, in ascending order.
    #[must_use]
    pub fn kept(&self, run: PageRange) -> Vec<PageRange> {
        self.space().kept(run)
    }

    /// Returns the number of pages that are known to take no space.
    #[must_use]
    pub fn released_pages(&self) -> u64 {
        self.space().released_pages()
    }

    /// Records that the file system can't take space back.
    pub fn note_never_releases(&self) {
        self.never_releases.store(true, Ordering::Relaxed);
    }

    /// Reports whether the file system has refused to take space back.
    #[must_use]
    pub fn never_releases(&self) -> bool {
        self.never_releases.load(Ordering::Relaxed)
    }

    /// Gives the space of an allocation back to the file system. Its bytes are zeros then. Returns false if the file
    /// system can't do it.
    ///
    /// Nothing depends on when this becomes durable: a crash may undo it, and the next open looks at the size again.
    ///
    /// # Errors
    /// Returns `Io`.
    ///
    /// # Panics
    /// Panics if bytes of it are leased, which is a mistake of the caller.
    pub fn release(&self, allocation: &Allocation) -> Result<bool> {
        self.deallocate(allocation, 0, RELEASE)
    }

    /// Returns the pages of an allocation from its page `first` on.
    fn pages_from(allocation: &Allocation, first: usize) -> PageRange {
        let run = allocation.run();
        PageRange { page: run.page + first as u64, pages: run.pages - first as u32 }
    }

    fn deallocate(&self, allocation: &Allocation, first: usize, purpose: Purpose) -> Result<bool> {
        let pages = Self::pages_from(allocation, first);
        // Before the call, because a failed one may have given back a part.
        self.space().in_doubt(pages);
        let done = self.file.deallocate(allocation, first * self.geometry.page_size, purpose)?;
        if done {
            self.space().released(pages);
        } else {
            self.note_never_releases();
        }
        Ok(done)
    }

    /// Leases the first `used` slots of an extent.
    ///
    /// # Errors
    /// Returns `Io`.
    pub fn lease_slots(&self, allocation: &Arc<Allocation>, used: u32) -> Result<Lease<F::Lent>> {
        self.file.lease(allocation, used as usize * self.geometry.slot_bytes())
    }

    /// Leases the first `len` bytes of an allocation.
    ///
    /// # Errors
    /// Returns `Io`.
    pub fn lease(&self, allocation: &Arc<Allocation>, len: usize) -> Result<Lease<F::Lent>> {
        self.file.lease(allocation, len)
    }

    /// Stores whole slots into an extent, starting at slot `slot`.
    ///
    /// # Errors
    /// Returns `OutOfSpace` or `Io`.
    pub fn store(&self, allocation: &Allocation, slot: u32, slots: &[u8], cause: StoreReason) -> Result<()> {
        self.write(&[allocation], slot as usize * self.geometry.slot_bytes(), slots, cause.purpose())
    }

    /// Stores metadata over adjacent allocations.
    ///
    /// # Errors
    /// Returns `OutOfSpace` or `Io`.
    pub fn store_meta(&self, allocations: &[&Allocation], bytes: &[u8]) -> Result<()> {
        self.write(allocations, 0, bytes, META)
    }

    /// Stores bytes of the cells into an allocation.
    ///
    /// # Errors
    /// Returns `OutOfSpace` or `Io`.
    pub fn store_cells(&self, allocation: &Allocation, bytes: &[u8]) -> Result<()> {
        self.write(&[allocation], 0, bytes, CELLS)
    }

    /// Stores bytes of payloads into a block, from byte `at` of it.
    ///
    /// # Errors
    /// Returns `OutOfSpace` or `Io`.
    pub fn store_payloads(&self, block: &Allocation, at: usize, bytes: &[u8]) -> Result<()> {
        self.write(&[block], at, bytes, PAYLOADS)
    }

    fn write(&self, allocations: &[&Allocation], at: usize, bytes: &[u8], purpose: Purpose) -> Result<()> {
        self.reserve(allocations, at, bytes.len(), purpose == StoreReason::Add.purpose())?;
        let offset = allocations.first().map_or(0, |allocation| self.offset(allocation)) + at as u64;
        // Recorded before the store, because a failed store may have stored a part.
        {
            let mut unsynced = self.unsynced.lock().unwrap_or_else(PoisonError::into_inner);
            let end = offset + bytes.len() as u64;
            unsynced.range = Some(match unsynced.range {
                Some((from, to)) => (from.min(offset), to.max(end)),
                None => (offset, end),
            });
        }
        self.file.store_over(allocations, at, bytes, purpose)?;
        self.bytes_stored.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        Ok(())
    }

    /// Makes the bytes of an allocation zeros from byte `from` on. Gives whole pages back where the file system can do that.
    /// Returns the number of bytes.
    ///
    /// It reads nothing first: after a failed sync, zeros in memory prove nothing about the device (R10).
    ///
    /// # Errors
    /// Returns `Io`, or `OutOfSpace` if zeros find no room.
    ///
    /// # Panics
    /// Panics if bytes of it from `from` on are leased, which is a mistake of the caller.
    pub fn wipe(&self, allocation: &Allocation, from: usize) -> Result<u64> {
        let page = self.geometry.page_size;
        let (whole, end) = (from.next_multiple_of(page), allocation.run().pages as usize * page);
        self.store_zeros(allocation, from, whole)?;
        if whole < end && !self.deallocate(allocation, whole / page, WIPE)? {
            self.store_zeros(allocation, whole, end)?;
        }
        Ok((end - from) as u64)
    }

    /// Gives back the pages of an allocation that lie wholly behind its first `used` bytes, if they may take space. Returns the
    /// number of bytes.
    ///
    /// # Errors
    /// Returns `Io`.
    pub fn release_tail(&self, allocation: &Allocation, used: usize) -> Result<u64> {
        let first = used.div_ceil(self.geometry.page_size);
        let tail = Self::pages_from(allocation, first);
        if tail.pages == 0 || self.kept(tail).is_empty() || !self.deallocate(allocation, first, RELEASE)? {
            return Ok(0);
        }
        Ok(u64::from(tail.pages) * self.geometry.page_size as u64)
    }

    fn store_zeros(&self, allocation: &Allocation, from: usize, to: usize) -> Result<()> {
        if from == to {
            return Ok(());
        }
        // The file may be a copy that takes no space where there are bytes.
        self.reserve(&[allocation], from, to - from, false)?;
        let zeros = vec![0; (to - from).min(ZEROS)];
        for at in (from..to).step_by(ZEROS) {
            self.file.store(allocation, at, &zeros[..(to - at).min(ZEROS)], WIPE)?;
        }
        Ok(())
    }

    /// Returns the sync that makes everything durable that happened to the file: stores, growth, and space given back.
    pub fn sync_whole(&self, purpose: Purpose) -> SyncJob<F> {
        *self.unsynced.lock().unwrap_or_else(PoisonError::into_inner) = Unsynced::default();
        self.file.sync_all(purpose)
    }

    /// Returns the sync that makes all stores and growth durable. Returns `None` if nothing was stored and the file did
    /// not grow since the last call.
    pub fn sync_job(&self, purpose: Purpose) -> Option<SyncJob<F>> {
        let mut unsynced = self.unsynced.lock().unwrap_or_else(PoisonError::into_inner);
        let Unsynced { range, grown } = std::mem::take(&mut *unsynced);
        match (range, grown) {
            // R4: a sync of a range does not make the length durable, and bytes past the durable length are lost in a
            // crash.
            (_, true) => Some(self.file.sync_all(purpose)),
            (Some((from, to)), false) => Some(self.file.sync_range(from, to, purpose)),
            (None, false) => None,
        }
    }
}
