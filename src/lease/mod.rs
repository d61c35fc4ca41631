//! Who may touch which bytes of an index, and for how long.
//!
//! Owns the index lock, the places of the data file, the leases of bytes in them, and every call of the two unsafe functions
//! of [`StorageFile`](crate::storage::StorageFile): `lend` and `write_at`. Everything above is safe code.
//!
//! # Invariants
//! 1. **Bytes do not outlive their place, nor a place the lock.** A [`Lease`] holds the lent bytes, then the [`Place`] they lie
//!    in, and the place holds the [`IndexLock`]. They are given up in this order. So no other engine opens the index, and
//!    none frees or overwrites a place, while a reader of any age holds bytes of it.
//! 2. **Places that exist at the same time do not overlap.** The [reclaimer](crate::space::Reclaimer) alone makes them, from
//!    pages that its free-space map marks as used, and marks the pages free only when it has taken the last handle apart.
//! 3. **A store to a place starts behind the last of its bytes that is leased.** [`LendingFile::store`] asserts that while it
//!    holds the place's list of leases, so that no lease begins during the store.
//! 4. **Files that are stored to at will are never lent.** A [`PlainFile`] has no way to lend, and it refuses to be made of the
//!    file that lends.
//! 5. **A sync holds the lock**: no other engine opens the index before it has ended, even if its own engine is gone.

mod file;
mod place;

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

pub use file::{LENDING, LendingFile, PlainFile, SyncJob, SyncUnderWay};
pub use place::{Lease, Place, Run};

use crate::storage::StorageLock;

/// The lock of an open index: those of the file `LOCK` and of the data file.
///
/// Clones share it. It is released when the last one is dropped: the engine's, or that of the last place, lease or sync.
#[derive(Clone)]
pub struct IndexLock {
    guards: Arc<Guards>,
}

struct Guards {
    /// Released first: who gets the directory's lock shall get this one too.
    data: Option<Box<dyn StorageLock>>,
    directory: Box<dyn StorageLock>,
    /// The data file was opened, and its reclaimer made: each once under a lock, or places could overlap.
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

    /// A lock that locks nothing, for places that no file has.
    #[must_use]
    pub fn none() -> Self {
        Self::new(NoLock, None::<NoLock>)
    }

    /// Notes that the engine is gone: what holds the lock from now on is a reader.
    pub fn owner_left(&self) {
        let Guards { data, directory, .. } = &*self.guards;
        data.iter().chain([directory]).for_each(|guard| guard.owner_left());
    }

    /// Removes the files that taking the lock made. An open that fails leaves nothing behind.
    pub fn withdraw(&self) {
        let Guards { data, directory, .. } = &*self.guards;
        data.iter().chain([directory]).for_each(|guard| guard.withdraw());
    }

    /// Notes that the data file is opened.
    ///
    /// # Panics
    /// If it was under this lock before: a mistake of the caller.
    fn open_once(&self) {
        assert!(!self.guards.opened.swap(true, Ordering::AcqRel), "the data file is opened once under a lock");
    }

    /// Notes that the reclaimer is made.
    ///
    /// # Panics
    /// If one was under this lock before: a mistake of the caller.
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

/// See [`IndexLock::none`].
struct NoLock;

impl StorageLock for NoLock {
    fn owner_left(&self) {}

    fn withdraw(&self) {}
}
