//! Places in the data file, and leases of the bytes in them.

use std::{
    fmt,
    ops::Deref,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use super::IndexLock;
use crate::id::Generation;

/// A range of pages in the data file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Run {
    /// First page.
    pub page: u64,
    /// Pages.
    pub pages: u32,
}

impl Run {
    /// The first page behind it.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.page + u64::from(self.pages)
    }
}

/// A run of pages that is in use. Shards, snapshots and the reclaimer share it.
#[derive(Debug)]
pub struct Place {
    run: Run,
    born: Generation,
    /// For each lease that lives, the number of bytes from the start of the place that it holds.
    leases: Mutex<Vec<u32>>,
    lock: IndexLock,
}

impl Place {
    /// The place of a run that the free-space map marks as used, and of which no other place exists (invariant 2 of the
    /// [module](super)): for the reclaimer.
    #[must_use]
    pub(crate) fn new(run: Run, born: Generation, lock: IndexLock) -> Self {
        Self { run, born, leases: Mutex::default(), lock }
    }

    /// Where it is.
    #[must_use]
    pub fn run(&self) -> Run {
        self.run
    }

    /// The newest root begun when it was taken: a later one may name it, this one does not.
    #[must_use]
    pub fn born(&self) -> Generation {
        self.born
    }

    /// Whether it is of the index that this is the lock of.
    pub(super) fn is_under(&self, lock: &IndexLock) -> bool {
        self.lock.is(lock)
    }

    /// The leases, which nobody changes while the guard lives.
    pub(super) fn leases(&self) -> MutexGuard<'_, Vec<u32>> {
        self.leases.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Bytes from the start of a place, read where they lie. Nothing changes them, and nothing frees the place or opens the index
/// anew, while a clone of it lives. `L` is what the storage lends.
#[derive(Clone)]
pub struct Lease<L> {
    /// Dropped before `claim`: invariant 1 of the [module](super).
    bytes: L,
    claim: Arc<Claim>,
}

impl<L> Lease<L> {
    pub(super) fn new(bytes: L, claim: Claim) -> Self {
        Self { bytes, claim: Arc::new(claim) }
    }

    /// Where the bytes lie.
    #[must_use]
    pub fn place(&self) -> &Arc<Place> {
        &self.claim.place
    }
}

impl<L: Deref<Target = [u8]>> Deref for Lease<L> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes
    }
}

impl<L> fmt::Debug for Lease<L> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lease").field("run", &self.claim.place.run).field("len", &self.claim.len).finish()
    }
}

/// An entry in a place's list of leases, from before the bytes are lent until after they are given back.
#[derive(Debug)]
pub(super) struct Claim {
    place: Arc<Place>,
    len: u32,
}

impl Claim {
    /// Enters a claim in the list that the caller holds.
    pub(super) fn enter(place: &Arc<Place>, leases: &mut Vec<u32>, len: u32) -> Self {
        leases.push(len);
        Self { place: Arc::clone(place), len }
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        let mut leases = self.place.leases();
        if let Some(at) = leases.iter().position(|&len| len == self.len) {
            leases.swap_remove(at);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Lent bytes that want the claim on their place to live as long as they do.
    #[derive(Clone)]
    struct Watched(Arc<Place>);

    impl Deref for Watched {
        type Target = [u8];

        fn deref(&self) -> &[u8] {
            &[]
        }
    }

    impl Drop for Watched {
        fn drop(&mut self) {
            assert_eq!(*self.0.leases(), [7], "the claim was given up before the bytes");
            // The test's, this one, and the claim's.
            assert_eq!(Arc::strong_count(&self.0), 3, "the place was given up before the bytes");
        }
    }

    #[test]
    fn bytes_are_given_back_before_their_place() {
        let place = Arc::new(Place::new(Run { page: 0, pages: 1 }, Generation(0), IndexLock::none()));
        let claim = Claim::enter(&place, &mut place.leases(), 7);
        let lease = Lease::new(Watched(Arc::clone(&place)), claim);
        assert_eq!(*place.leases(), [7]);
        drop(lease);
        assert!(place.leases().is_empty());
        assert_eq!(Arc::strong_count(&place), 1);
    }
}
