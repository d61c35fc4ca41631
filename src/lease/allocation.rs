//! Allocations in the data file, and leases of their bytes.

use std::{
    fmt,
    ops::Deref,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use super::IndexLock;
use crate::id::Generation;

/// Range of pages in the data file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PageRange {
    /// First page.
    pub page: u64,
    /// Number of pages.
    pub pages: u32,
}

impl PageRange {
    /// Returns the first page behind the range.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.page + u64::from(self.pages)
    }

    /// Returns the parts of the range whose pages `is_in` accepts, ascending and as long as possible.
    #[must_use]
    pub fn parts(&self, is_in: impl Fn(u64) -> bool) -> Vec<Self> {
        let mut parts: Vec<Self> = Vec::new();
        for page in (self.page..self.end()).filter(|&page| is_in(page)) {
            match parts.last_mut() {
                Some(part) if part.end() == page => part.pages += 1,
                _ => parts.push(Self { page, pages: 1 }),
            }
        }
        parts
    }
}

/// Page range in use. Shards, snapshots and the reclaimer share it.
#[derive(Debug)]
pub struct Allocation {
    run: PageRange,
    born: Generation,
    /// For each live lease, the number of bytes it holds from the start of the allocation.
    leases: Mutex<Vec<u32>>,
    lock: IndexLock,
}

impl Allocation {
    /// Creates the allocation of a page range. The free-space map must mark the range as used, and no other allocation
    /// may contain a page of it (invariant 2 of the [module](super)). Only the reclaimer calls this.
    #[must_use]
    pub(crate) fn new(run: PageRange, born: Generation, lock: IndexLock) -> Self {
        Self { run, born, leases: Mutex::default(), lock }
    }

    /// Returns the page range.
    #[must_use]
    pub fn run(&self) -> PageRange {
        self.run
    }

    /// Returns the birth of the allocation: the newest root whose flush had begun when the allocation was made. Only
    /// later roots may point to it.
    #[must_use]
    pub fn born(&self) -> Generation {
        self.born
    }

    /// Reports whether the allocation belongs to the index of this lock.
    pub(super) fn is_under(&self, lock: &IndexLock) -> bool {
        self.lock.is(lock)
    }

    /// Locks the list of leases. It does not change while the guard lives, except through the guard.
    pub(super) fn leases(&self) -> MutexGuard<'_, Vec<u32>> {
        self.leases.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Lease: read access without a copy to bytes from the start of an allocation. While a clone of it lives, the bytes do
/// not change, the allocation is not freed, and no other engine opens the index. `L` is the type of bytes that the
/// storage lends.
#[derive(Clone)]
pub struct Lease<L> {
    /// Dropped before `claim`: invariant 1 of the [module](super).
    bytes: L,
    claim: Arc<LeaseEntry>,
}

impl<L> Lease<L> {
    pub(super) fn new(bytes: L, claim: LeaseEntry) -> Self {
        Self { bytes, claim: Arc::new(claim) }
    }

    /// Returns the allocation that contains the bytes.
    #[must_use]
    pub fn allocation(&self) -> &Arc<Allocation> {
        &self.claim.allocation
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
        f.debug_struct("Lease").field("run", &self.claim.allocation.run).field("len", &self.claim.len).finish()
    }
}

/// Entry in an allocation's list of leases. It exists from before the bytes are lent until after they are returned.
#[derive(Debug)]
pub(super) struct LeaseEntry {
    allocation: Arc<Allocation>,
    len: u32,
}

impl LeaseEntry {
    /// Adds an entry to the list, which the caller has locked.
    pub(super) fn enter(allocation: &Arc<Allocation>, leases: &mut Vec<u32>, len: u32) -> Self {
        leases.push(len);
        Self { allocation: Arc::clone(allocation), len }
    }
}

impl Drop for LeaseEntry {
    fn drop(&mut self) {
        let mut leases = self.allocation.leases();
        if let Some(at) = leases.iter().position(|&len| len == self.len) {
            leases.swap_remove(at);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Lent bytes that assert, when dropped, that the entry and the allocation still exist.
    #[derive(Clone)]
    struct Watched(Arc<Allocation>);

    impl Deref for Watched {
        type Target = [u8];

        fn deref(&self) -> &[u8] {
            &[]
        }
    }

    impl Drop for Watched {
        fn drop(&mut self) {
            assert_eq!(*self.0.leases(), [7], "the claim was given up before the bytes");
            // Handles of the test, of this value and of the entry.
            assert_eq!(Arc::strong_count(&self.0), 3, "the place was given up before the bytes");
        }
    }

    #[test]
    fn bytes_are_given_back_before_their_place() {
        let allocation = Arc::new(Allocation::new(PageRange { page: 0, pages: 1 }, Generation(0), IndexLock::none()));
        let claim = LeaseEntry::enter(&allocation, &mut allocation.leases(), 7);
        let lease = Lease::new(Watched(Arc::clone(&allocation)), claim);
        assert_eq!(*allocation.leases(), [7]);
        drop(lease);
        assert!(allocation.leases().is_empty());
        assert_eq!(Arc::strong_count(&allocation), 1);
    }
}
