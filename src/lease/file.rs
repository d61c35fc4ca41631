//! The files of an index as the engine has them: what lends, and what is stored to at will.

use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use super::{IndexLock, Lease, Place, place::Claim};
use crate::{
    error::Result,
    storage::{Purpose, Storage, StorageFile},
};

/// The name of the file that lends its bytes.
pub const LENDING: &str = "data";

/// The names of the files that are never lent.
const PLAIN: [&str; 3] = ["wal", "root", "root.new"];

/// A file that is never lent: the log and the roots.
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
    /// `Io`.
    ///
    /// # Panics
    /// If it is none of the files that are never lent: a mistake of the caller.
    pub fn open<S: Storage<File = F>>(storage: &S, name: &str, lock: &IndexLock) -> Result<Self> {
        assert!(PLAIN.contains(&name), "{name} is no file that is never lent");
        Ok(Self { file: storage.open(name)?, lock: lock.clone(), syncing: Arc::default() })
    }

    /// Creates an empty file, which must not exist.
    ///
    /// # Errors
    /// `Io`, `OutOfSpace`.
    ///
    /// # Panics
    /// As [`open`](Self::open).
    pub fn create<S: Storage<File = F>>(storage: &S, name: &str, why: Purpose, lock: &IndexLock) -> Result<Self> {
        assert!(PLAIN.contains(&name), "{name} is no file that is never lent");
        Ok(Self { file: storage.create(name, why)?, lock: lock.clone(), syncing: Arc::default() })
    }

    /// The file itself, for reading.
    #[must_use]
    pub fn raw(&self) -> &F {
        &self.file
    }

    /// The file's path.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        self.file.path()
    }

    /// Stores bytes: [`StorageFile::write_at`].
    ///
    /// # Errors
    /// `OutOfSpace`, `Io`.
    pub fn store(&self, offset: u64, bytes: &[u8], why: Purpose) -> Result<()> {
        #[expect(unsafe_code, reason = "a store must not meet bytes that are lent")]
        // SAFETY: nothing of this file is lent, to anybody: `LendingFile` lends, of the file `LENDING` only, which this
        // is not (`open`, `create`). The lock keeps other engines away from it.
        unsafe {
            self.file.write_at(offset, bytes, why)
        }
    }

    /// A sync of the bytes `from..to`.
    #[must_use]
    pub fn sync_range(&self, from: u64, to: u64, why: Purpose) -> SyncJob<F> {
        SyncJob::new((&self.file, &self.lock, &self.syncing), Some((from, to - from)), why)
    }

    /// A sync of everything, the length too.
    #[must_use]
    pub fn sync_all(&self, why: Purpose) -> SyncJob<F> {
        SyncJob::new((&self.file, &self.lock, &self.syncing), None, why)
    }
}

/// The data file: stored to and lent place by place.
#[derive(Debug)]
pub struct LendingFile<F> {
    file: Arc<F>,
    lock: IndexLock,
    syncing: Arc<AtomicBool>,
    page_size: u64,
}

impl<F: StorageFile> LendingFile<F> {
    /// Opens the data file of an index with pages of this size. At most one may be open at a time: the caller has just
    /// taken `lock`, and no place of this index exists.
    ///
    /// # Errors
    /// `Io`.
    pub fn open<S: Storage<File = F>>(storage: &S, lock: &IndexLock, page_size: usize) -> Result<Self> {
        let file = storage.open(LENDING)?;
        lock.open_once();
        Ok(Self { file, lock: lock.clone(), syncing: Arc::default(), page_size: page_size as u64 })
    }

    /// Creates the data file, with `header` as its first bytes, durable with its length of `len` bytes. Nothing can be lent
    /// of it before it is opened.
    ///
    /// # Errors
    /// `Io`, `OutOfSpace`: to be removed.
    pub fn create<S: Storage<File = F>>(
        storage: &S,
        (len, header): (u64, &[u8]),
        [make, allocate, store, sync]: [Purpose; 4],
    ) -> Result<()> {
        let file = storage.create(LENDING, make)?;
        file.allocate(len, allocate)?;
        #[expect(unsafe_code, reason = "a store must not meet bytes that are lent")]
        // SAFETY: the file was made here and its handle goes nowhere, so nothing of it is lent.
        unsafe {
            file.write_at(0, header, store)?;
        }
        file.sync_all(sync)
    }

    /// The file itself, for reading by copying and for growing.
    #[must_use]
    pub fn raw(&self) -> &F {
        &self.file
    }

    /// The index lock.
    #[must_use]
    pub fn lock(&self) -> &IndexLock {
        &self.lock
    }

    /// The first byte of a place.
    #[must_use]
    pub fn offset(&self, place: &Place) -> u64 {
        place.run().page.saturating_mul(self.page_size)
    }

    fn bytes_of(&self, place: &Place) -> u64 {
        u64::from(place.run().pages) * self.page_size
    }

    /// Lends the first `len` bytes of a place.
    ///
    /// # Errors
    /// `Io`, also when the place ends past the file's end.
    ///
    /// # Panics
    /// If the place has fewer bytes: a mistake of the caller.
    pub fn lease(&self, place: &Arc<Place>, len: usize) -> Result<Lease<F::Lent>> {
        assert!(place.is_under(&self.lock), "{:?} is of another index", place.run());
        assert!(len as u64 <= self.bytes_of(place), "{len} bytes of {:?}", place.run());
        let mut leases = place.leases();
        #[expect(unsafe_code, reason = "no store may meet the bytes while they are lent")]
        // SAFETY: `store` alone stores to this file. It starts behind all claims in the list that is held here, and this
        // one is entered before the list is let go; other places do not overlap this one as long as it exists (invariant
        // 2), and the lease keeps it. The lock, which the place holds, keeps other engines away.
        let bytes = unsafe { self.file.lend(self.offset(place), len)? };
        let claim = Claim::enter(place, &mut leases, len as u32);
        drop(leases);
        Ok(Lease::new(bytes, claim))
    }

    /// Stores bytes from byte `at` of a place on, behind all that is leased of it.
    ///
    /// # Errors
    /// `OutOfSpace`, `Io`.
    ///
    /// # Panics
    /// If a lease reaches beyond `at`, or the bytes beyond the place: mistakes of the caller.
    pub fn store(&self, place: &Place, at: usize, bytes: &[u8], why: Purpose) -> Result<()> {
        self.store_over(&[place], at, bytes, why)
    }

    /// Stores bytes over several places that follow one another, from byte `at` of the first one on.
    ///
    /// # Errors
    /// As [`store`](Self::store).
    ///
    /// # Panics
    /// As [`store`](Self::store); if there is a gap between the places.
    pub fn store_over(&self, places: &[&Place], at: usize, bytes: &[u8], why: Purpose) -> Result<()> {
        let Some((first, rest)) = places.split_first() else { return Ok(()) };
        assert!(places.iter().all(|place| place.is_under(&self.lock)), "{:?} is of another index", first.run());
        let follow = places.windows(2).all(|pair| pair[0].run().end() == pair[1].run().page);
        assert!(follow, "places with a gap between them are stored one by one");
        let room: u64 = places.iter().map(|place| self.bytes_of(place)).sum();
        assert!((at + bytes.len()) as u64 <= room, "{} bytes at {at} of {room}", bytes.len());
        let of_first = first.leases();
        assert!(of_first.iter().all(|&len| len as usize <= at), "{:?} is leased beyond byte {at}", first.run());
        let of_rest: Vec<_> = rest.iter().map(|place| place.leases()).collect();
        assert!(of_rest.iter().all(|leases| leases.iter().all(|&len| len == 0)), "a place behind the first is leased");
        #[expect(unsafe_code, reason = "a store must not meet bytes that are lent")]
        // SAFETY: bytes of these places are lent by `lease` alone, which enters each loan in a list that is held here until
        // the store has ended, and no list names a byte of the store. Other places do not overlap these (invariant 2).
        unsafe {
            self.file.write_at(self.offset(first) + at as u64, bytes, why)
        }
    }

    /// A sync of the bytes `from..to`.
    #[must_use]
    pub fn sync_range(&self, from: u64, to: u64, why: Purpose) -> SyncJob<F> {
        SyncJob::new((&self.file, &self.lock, &self.syncing), Some((from, to - from)), why)
    }

    /// A sync of everything, the length too.
    #[must_use]
    pub fn sync_all(&self, why: Purpose) -> SyncJob<F> {
        SyncJob::new((&self.file, &self.lock, &self.syncing), None, why)
    }
}

/// One sync that is due: what a protocol hands out between two of its steps, so that whoever runs it may wait elsewhere
/// meanwhile. It holds the index lock.
#[derive(Debug)]
pub struct SyncJob<F> {
    file: Arc<F>,
    lock: IndexLock,
    /// Whether one of this file is under way.
    syncing: Arc<AtomicBool>,
    /// `None`: the whole file with its length.
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
        (file, lock, syncing): (&Arc<F>, &IndexLock, &Arc<AtomicBool>),
        range: Option<(u64, u64)>,
        purpose: Purpose,
    ) -> Self {
        let (file, syncing) = (Arc::clone(file), Arc::clone(syncing));
        Self { file, lock: lock.clone(), syncing, range, purpose }
    }

    /// Why it is done.
    #[must_use]
    pub fn purpose(&self) -> Purpose {
        self.purpose
    }
}

impl<F: StorageFile> SyncJob<F> {
    /// Syncs. Blocks.
    ///
    /// # Errors
    /// As [`StorageFile::sync_range`] and [`StorageFile::sync_all`].
    ///
    /// # Panics
    /// If another sync of this file is under way: an error goes to one of the two only (R8). A mistake of the caller.
    pub fn run(&self) -> Result<()> {
        let _syncing = Syncing::begin(self);
        match self.range {
            Some((offset, len)) => self.file.sync_range(offset, len, self.purpose),
            None => self.file.sync_all(self.purpose),
        }
    }

    /// Begins to sync, where other things happen before the end: what is stored from here on is not covered. For simulations;
    /// on a real disk all of it is done at the end.
    ///
    /// # Errors
    /// As [`StorageFile::sync_begin`].
    ///
    /// # Panics
    /// As [`run`](Self::run).
    pub fn begin(&self) -> Result<SyncUnderWay<F>> {
        let syncing = Syncing::begin(self);
        let begun = self.file.sync_begin(self.range, self.purpose)?;
        Ok(SyncUnderWay { job: self.clone(), begun, _syncing: syncing })
    }
}

/// A sync that has begun. Dropped before its end it may have made durable what it covers, or not.
#[derive(Debug)]
pub struct SyncUnderWay<F> {
    job: SyncJob<F>,
    begun: u64,
    _syncing: Syncing,
}

impl<F: StorageFile> SyncUnderWay<F> {
    /// Ends it.
    ///
    /// # Errors
    /// As [`SyncJob::run`].
    pub fn end(self) -> Result<()> {
        self.job.file.sync_end(self.begun, self.job.range, self.job.purpose)
    }
}

/// The mark that a sync of a file is under way.
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
