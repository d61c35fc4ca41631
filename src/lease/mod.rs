//! Access control for the bytes of an index: the index lock, allocations and leases.
//!
//! The module owns the index lock, the allocations in the data file, the leases of their bytes, and every call of the
//! unsafe functions of [`StorageFile`](crate::storage::StorageFile): `lend`, `write_at` and `deallocate`. All code above
//! it is safe code.
//!
//! # Invariants
//! 1. **Bytes do not outlive their allocation, and an allocation does not outlive the lock.** A [`Lease`] holds the
//!    lent bytes, then the [`Allocation`] that contains them. The allocation holds the [`IndexLock`]. They are dropped
//!    in this order. So while a reader of any age holds bytes of an allocation, no other engine opens the index, and no
//!    engine frees or overwrites the allocation.
//! 2. **Existing allocations do not overlap.** Only the [reclaimer](crate::space::Reclaimer) creates them, from pages
//!    that no existing allocation contains. Its free-space map marks the pages as used as long as the allocation
//!    exists, or is borrowed as long. It frees the pages only when no handle of the allocation is left.
//! 3. **A store into an allocation starts at or behind the end of its leased bytes.** [`LendingFile::store`] asserts
//!    this while the allocation's list of leases is locked. So no lease begins during the store.
//!    [`LendingFile::deallocate`], which makes all bytes zeros, asserts that no byte is leased.
//! 4. **Files with unrestricted stores are never lent.** A [`PlainFile`] has no function that lends, and it cannot be
//!    created for the file that lends.
//! 5. **A sync holds the lock.** No other engine opens the index before the sync has ended, even if the engine that
//!    started it is closed.

mod allocation;
mod file;

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

pub use allocation::{Allocation, Lease, PageRange};
pub use file::{LENDING, LendingFile, PACK, PlainFile, SyncJob, SyncUnderWay};

use crate::storage::StorageLock;

/// Lock of an open index: the locks of the file `LOCK` and of the data file.
///
/// Clones share it. It is released when the last clone is dropped: that of the engine, an allocation, a lease or a
/// sync.
#[derive(Clone)]
pub struct IndexLock {
    guards: Arc<Guards>,
}

struct Guards {
    /// Lock of the data file. Dropped first, so whoever gets the directory lock never finds this one still held.
    data: Option<Box<dyn StorageLock>>,
    directory: Box<dyn StorageLock>,
    /// Set when the data file is opened, and when its reclaimer is created. Each happens once under a lock, because
    /// allocations could overlap otherwise.
    opened: AtomicBool,
    reclaimed: AtomicBool,
}

impl IndexLock {
    /// Joins the lock of the directory and that of the data file, if there is a data file.
    #[must_use]
    pub fn new(directory: impl StorageLock, data: Option<impl StorageLock>) -> Self {
        let data = data.map(|data| Box::new(data) as Box<dyn StorageLock>);
        let (opened, reclaimed) = Default::default();
        Self { guards: Arc::new(Guards { data, directory: Box::new(directory), opened, reclaimed }) }
    }

    /// Returns a lock that locks nothing, for allocations without a file.
    #[must_use]
    pub fn none() -> Self {
        Self::new(NoLock, None::<NoLock>)
    }

    /// Records that the engine is closed: from now on only readers and syncs hold the lock.
    pub fn owner_left(&self) {
        let Guards { data, directory, .. } = &*self.guards;
        data.iter().chain([directory]).for_each(|guard| guard.owner_left());
    }

    /// Removes the files that taking the lock created, so that a failed open leaves no files.
    pub fn withdraw(&self) {
        let Guards { data, directory, .. } = &*self.guards;
        data.iter().chain([directory]).for_each(|guard| guard.withdraw());
    }

    /// Records that the data file is opened.
    ///
    /// # Panics
    /// Panics if it was already opened under this lock, which is a mistake of the caller.
    fn open_once(&self) {
        assert!(!self.guards.opened.swap(true, Ordering::AcqRel), "the data file is opened once under a lock");
    }

    /// Records that the reclaimer is created.
    ///
    /// # Panics
    /// Panics if one was already created under this lock, which is a mistake of the caller.
    pub(crate) fn reclaim_once(&self) {
        assert!(!self.guards.reclaimed.swap(true, Ordering::AcqRel), "one reclaimer under a lock");
    }

    fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.guards, &other.guards)
    }
}

impl fmt::Debug for IndexLock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IndexLock").field("shares", &Arc::strong_count(&self.guards)).finish()
    }
}

/// Lock that locks nothing; see [`IndexLock::none`].
struct NoLock;

impl StorageLock for NoLock {
    fn owner_left(&self) {}

    fn withdraw(&self) {}
}
