//! Files of an index: the data file, which lends its bytes, and plain files with unrestricted stores.

use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use super::{Allocation, IndexLock, Lease, allocation::LeaseEntry};
use crate::{
    error::Result,
    storage::{Purpose, Storage, StorageFile},
};

/// Name of the file that lends its bytes.
pub const LENDING: &str = "data";

/// Names of the files that are never lent.
const PLAIN: [&str; 6] = ["wal", "root", "root.new", "stats", "manifest", "manifest.new"];

/// Start of the names of files of a backup with the bytes of the index. They are never lent either.
pub const PACK: &str = "pack-";

fn is_plain(name: &str) -> bool {
    PLAIN.contains(&name) || name.starts_with(PACK)
}

/// File that is never lent: the WAL, the root file, the stats file, or a file of a backup.
#[derive(Debug)]
pub struct PlainFile<F> {
    file: Arc<F>,
    lock: IndexLock,
    syncing: Arc<AtomicBool>,
}

impl<F> Clone for PlainFile<F> {
    fn clone(&self) -> Self {
        Self { file: Arc::clone(&self.file), lock: self.lock.clone(), syncing: Arc::clone(&self.syncing) }
    }
}

impl<F: StorageFile> PlainFile<F> {
    /// Opens an existing file.
    ///
    /// # Errors
    /// Returns `Io`.
    ///
    /// # Panics
    /// Panics if `name` is not in the list of files that are never lent, which is a mistake of the caller.
    pub fn open<S: Storage<File = F>>(storage: &S, name: &str, lock: &IndexLock) -> Result<Self> {
        assert!(is_plain(name), "{name} is no file that is never lent");
        Ok(Self { file: storage.open(name)?, lock: lock.clone(), syncing: Arc::default() })
    }

    /// Creates an empty file, which must not exist.
    ///
    /// # Errors
    /// Returns `Io` or `OutOfSpace`.
    ///
    /// # Panics
    /// Panics under the condition of [`open`](Self::open).
    pub fn create<S: Storage<File = F>>(storage: &S, name: &str, why: Purpose, lock: &IndexLock) -> Result<Self> {
        assert!(is_plain(name), "{name} is no file that is never lent");
        Ok(Self { file: storage.create(name, why)?, lock: lock.clone(), syncing: Arc::default() })
    }

    /// Returns the underlying file, for reading and growing.
    #[must_use]
    pub fn raw(&self) -> &F {
        &self.file
    }

    /// Returns the path of the file.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        self.file.path()
    }

    /// Stores bytes by [`StorageFile::write_at`].
    ///
    /// # Errors
    /// Returns `OutOfSpace` or `Io`.
    pub fn store(&self, offset: u64, bytes: &[u8], why: Purpose) -> Result<()> {
        #[expect(unsafe_code, reason = "a store must not meet bytes that are lent")]
        // SAFETY: no bytes of this file are lent. Only `LendingFile` lends, and only from the file `LENDING`. This is
        // another file, as `open` and `create` assert. The lock keeps other engines away from it.
        unsafe {
            self.file.write_at(offset, bytes, why)
        }
    }

    /// Gives the space of a range back by [`StorageFile::deallocate`]. Its bytes are zeros then.
    ///
    /// # Errors
    /// Returns `Io`.
    pub fn deallocate(&self, offset: u64, len: u64, why: Purpose) -> Result<bool> {
        #[expect(unsafe_code, reason = "the bytes become zeros, which must not meet bytes that are lent")]
        // SAFETY: as in `store`.
        unsafe {
            self.file.deallocate(offset, len, why)
        }
    }

    /// Returns a sync of the bytes `from..to`.
    #[must_use]
    pub fn sync_range(&self, from: u64, to: u64, why: Purpose) -> SyncJob<F> {
        SyncJob::new(&self.file, &self.lock, &self.syncing, Some((from, to - from)), why)
    }

    /// Returns a sync of the whole file, including its length.
    #[must_use]
    pub fn sync_all(&self, why: Purpose) -> SyncJob<F> {
        SyncJob::new(&self.file, &self.lock, &self.syncing, None, why)
    }
}

/// Data file: stores and leases are per allocation.
#[derive(Debug)]
pub struct LendingFile<F> {
    file: Arc<F>,
    lock: IndexLock,
    syncing: Arc<AtomicBool>,
    page_size: u64,
}

impl<F: StorageFile> LendingFile<F> {
    /// Opens the data file of an index with this page size. It must be open at most once at a time: the caller has just
    /// taken `lock`, and no allocation of this index exists.
    ///
    /// # Errors
    /// Returns `Io`.
    ///
    /// # Panics
    /// Panics if the data file was already opened under this lock.
    pub fn open<S: Storage<File = F>>(storage: &S, lock: &IndexLock, page_size: usize) -> Result<Self> {
        let file = storage.open(LENDING)?;
        lock.open_once();
        Ok(Self { file, lock: lock.clone(), syncing: Arc::default(), page_size: page_size as u64 })
    }

    /// Creates the data file and makes it durable: `header` as its first bytes, then what `fill` stores, and a length of `len`
    /// bytes. `fill` gets a function that stores bytes at an offset, a multiple of a page. No bytes of the file can be lent
    /// before it is opened.
    ///
    /// # Errors
    /// Returns `Io` or `OutOfSpace`, or the error of `fill`. The caller must then remove the file.
    pub fn create<S: Storage<File = F>>(
        storage: &S,
        len: u64,
        header: &[u8],
        [make, allocate, store, sync]: [Purpose; 4],
        fill: impl FnOnce(&mut dyn FnMut(u64, &[u8]) -> Result<()>) -> Result<()>,
    ) -> Result<()> {
        let file = storage.create(LENDING, make)?;
        // A hole but for its ends: an index takes the space that it uses.
        let page = storage.page_size() as u64;
        file.allocate(0, page, allocate)?;
        file.allocate(len - page, page, allocate)?;
        #[expect(unsafe_code, reason = "a store must not meet bytes that are lent")]
        // SAFETY: the file was created here and its handle does not leave this function, so no bytes of it are lent.
        unsafe {
            file.write_at(0, header, store)?;
        }
        fill(&mut |offset, bytes| {
            file.allocate(offset, (bytes.len() as u64).next_multiple_of(page), allocate)?;
            #[expect(unsafe_code, reason = "a store must not meet bytes that are lent")]
            // SAFETY: as above.
            unsafe {
                file.write_at(offset, bytes, store)
            }
        })?;
        file.sync_all(sync)
    }

    /// Returns the underlying file, for reads that copy and for growing.
    #[must_use]
    pub fn raw(&self) -> &F {
        &self.file
    }

    /// Returns the index lock.
    #[must_use]
    pub fn lock(&self) -> &IndexLock {
        &self.lock
    }

    /// Returns the offset in bytes of an allocation in the file.
    #[must_use]
    pub fn offset(&self, allocation: &Allocation) -> u64 {
        allocation.run().page.saturating_mul(self.page_size)
    }

    fn bytes_of(&self, allocation: &Allocation) -> u64 {
        u64::from(allocation.run().pages) * self.page_size
    }

    /// Leases the first `len` bytes of an allocation.
    ///
    /// # Errors
    /// Returns `Io`, also if these bytes end past the end of the file.
    ///
    /// # Panics
    /// Panics if the allocation has fewer bytes or belongs to another index, which is a mistake of the caller.
    pub fn lease(&self, allocation: &Arc<Allocation>, len: usize) -> Result<Lease<F::Lent>> {
        assert!(allocation.is_under(&self.lock), "{:?} is of another index", allocation.run());
        assert!(len as u64 <= self.bytes_of(allocation), "{len} bytes of {:?}", allocation.run());
        let mut leases = allocation.leases();
        #[expect(unsafe_code, reason = "no store may meet the bytes while they are lent")]
        // SAFETY: only `store_over` and `deallocate` change this file, behind all leases in the list that is locked here,
        // and this lease is entered before the list is unlocked. Other allocations do not overlap this one while it
        // exists (invariant 2 of `lease`), and the lease keeps it. The allocation holds the lock, which keeps other
        // engines away.
        let bytes = unsafe { self.file.lend(self.offset(allocation), len)? };
        let claim = LeaseEntry::enter(allocation, &mut leases, len as u32);
        drop(leases);
        Ok(Lease::new(bytes, claim))
    }

    /// Stores bytes into an allocation from byte `at`, which must not be before the end of its leased bytes.
    ///
    /// # Errors
    /// Returns `OutOfSpace` or `Io`.
    ///
    /// # Panics
    /// Panics if a lease extends beyond `at`, if the bytes extend beyond the allocation, or if it belongs to another
    /// index. These are mistakes of the caller.
    pub fn store(&self, allocation: &Allocation, at: usize, bytes: &[u8], why: Purpose) -> Result<()> {
        self.store_over(&[allocation], at, bytes, why)
    }

    /// Stores bytes over several adjacent allocations, from byte `at` of the first one.
    ///
    /// # Errors
    /// Returns the errors of [`store`](Self::store).
    ///
    /// # Panics
    /// Panics under the conditions of [`store`](Self::store), if there is a gap between the allocations, or if bytes of
    /// an allocation after the first are leased.
    pub fn store_over(&self, allocations: &[&Allocation], at: usize, bytes: &[u8], why: Purpose) -> Result<()> {
        let Some((first, rest)) = allocations.split_first() else { return Ok(()) };
        assert!(
            allocations.iter().all(|allocation| allocation.is_under(&self.lock)),
            "{:?} is of another index",
            first.run()
        );
        let follow = allocations.windows(2).all(|pair| pair[0].run().end() == pair[1].run().page);
        assert!(follow, "places with a gap between them are stored one by one");
        let room: u64 = allocations.iter().map(|allocation| self.bytes_of(allocation)).sum();
        assert!((at + bytes.len()) as u64 <= room, "{} bytes at {at} of {room}", bytes.len());
        let of_first = first.leases();
        assert!(of_first.iter().all(|&len| len as usize <= at), "{:?} is leased beyond byte {at}", first.run());
        let of_rest: Vec<_> = rest.iter().map(|allocation| allocation.leases()).collect();
        assert!(of_rest.iter().all(|leases| leases.iter().all(|&len| len == 0)), "a place behind the first is leased");
        #[expect(unsafe_code, reason = "a store must not meet bytes that are lent")]
        // SAFETY: only `lease` lends bytes of these allocations. It enters each lease in a list that is locked here
        // until the store has ended, and no list contains a byte of the store. Other allocations do not overlap these
        // (invariant 2 of `lease`).
        unsafe {
            self.file.write_at(self.offset(first) + at as u64, bytes, why)
        }
    }

    /// Gives the space of an allocation back by [`StorageFile::deallocate`], from byte `at` on, which begins a page. Its bytes
    /// are zeros then.
    ///
    /// # Errors
    /// Returns `Io`.
    ///
    /// # Panics
    /// Panics if a lease extends beyond `at`, if `at` begins no page of it, or if it belongs to another index. These are mistakes
    /// of the caller.
    pub fn deallocate(&self, allocation: &Allocation, at: usize, why: Purpose) -> Result<bool> {
        assert!(allocation.is_under(&self.lock), "{:?} is of another index", allocation.run());
        let leases = allocation.leases();
        assert!(leases.iter().all(|&len| len as usize <= at), "{:?} is leased beyond byte {at}", allocation.run());
        let len = self.bytes_of(allocation).checked_sub(at as u64).filter(|len| *len > 0);
        let Some(len) = len else { panic!("byte {at} is not in {:?}", allocation.run()) };
        #[expect(unsafe_code, reason = "the bytes become zeros, which must not meet bytes that are lent")]
        // SAFETY: as in `store_over`: a lease of the allocation would be in the list that is locked here until the call
        // has ended.
        unsafe {
            self.file.deallocate(self.offset(allocation) + at as u64, len, why)
        }
    }

    /// Returns a sync of the bytes `from..to`.
    #[must_use]
    pub fn sync_range(&self, from: u64, to: u64, why: Purpose) -> SyncJob<F> {
        SyncJob::new(&self.file, &self.lock, &self.syncing, Some((from, to - from)), why)
    }

    /// Returns a sync of the whole file, including its length.
    #[must_use]
    pub fn sync_all(&self, why: Purpose) -> SyncJob<F> {
        SyncJob::new(&self.file, &self.lock, &self.syncing, None, why)
    }
}

/// Sync that a protocol requires between two of its steps. It is a value, so that the caller can run it elsewhere. It
/// holds the index lock.
#[derive(Debug)]
pub struct SyncJob<F> {
    file: Arc<F>,
    lock: IndexLock,
    /// True while a sync of this file is in progress.
    syncing: Arc<AtomicBool>,
    /// Offset and length of the range, or `None` for the whole file with its length.
    range: Option<(u64, u64)>,
    purpose: Purpose,
}

impl<F> Clone for SyncJob<F> {
    fn clone(&self) -> Self {
        let (file, syncing) = (Arc::clone(&self.file), Arc::clone(&self.syncing));
        Self { file, lock: self.lock.clone(), syncing, range: self.range, purpose: self.purpose }
    }
}

impl<F> SyncJob<F> {
    fn new(
        file: &Arc<F>,
        lock: &IndexLock,
        syncing: &Arc<AtomicBool>,
        range: Option<(u64, u64)>,
        purpose: Purpose,
    ) -> Self {
        let (file, syncing) = (Arc::clone(file), Arc::clone(syncing));
        Self { file, lock: lock.clone(), syncing, range, purpose }
    }

    /// Returns the purpose of the sync.
    #[must_use]
    pub fn purpose(&self) -> Purpose {
        self.purpose
    }
}

impl<F: StorageFile> SyncJob<F> {
    /// Runs the sync. Blocks until it has ended.
    ///
    /// # Errors
    /// Returns the errors of [`StorageFile::sync_range`] or [`StorageFile::sync_all`].
    ///
    /// # Panics
    /// Panics if another sync of this file is in progress, which is a mistake of the caller: only one of the two would
    /// return an error (R8).
    pub fn run(&self) -> Result<()> {
        let _syncing = Syncing::begin(self);
        match self.range {
            Some((offset, len)) => self.file.sync_range(offset, len, self.purpose),
            None => self.file.sync_all(self.purpose),
        }
    }

    /// Begins the sync, so that other operations can happen before its end. Bytes stored after this call are not
    /// covered. For simulations: a real disk does the whole sync at the end.
    ///
    /// # Errors
    /// Returns the errors of [`StorageFile::sync_begin`].
    ///
    /// # Panics
    /// Panics under the condition of [`run`](Self::run).
    pub fn begin(&self) -> Result<SyncUnderWay<F>> {
        let syncing = Syncing::begin(self);
        let begun = self.file.sync_begin(self.range, self.purpose)?;
        Ok(SyncUnderWay { job: self.clone(), begun, _syncing: syncing })
    }
}

/// Sync in progress. If it is dropped before its end, the bytes it covers may or may not be durable.
#[derive(Debug)]
pub struct SyncUnderWay<F> {
    job: SyncJob<F>,
    begun: u64,
    _syncing: Syncing,
}

impl<F: StorageFile> SyncUnderWay<F> {
    /// Ends the sync.
    ///
    /// # Errors
    /// Returns the errors of [`SyncJob::run`].
    pub fn end(self) -> Result<()> {
        self.job.file.sync_end(self.begun, self.job.range, self.job.purpose)
    }
}

/// Guard that marks a sync of a file as in progress.
#[derive(Debug)]
struct Syncing(Arc<AtomicBool>);

impl Syncing {
    fn begin<F: StorageFile>(job: &SyncJob<F>) -> Self {
        assert!(!job.syncing.swap(true, Ordering::AcqRel), "two syncs of {} at once", job.file.path().display());
        Self(Arc::clone(&job.syncing))
    }
}

impl Drop for Syncing {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}
