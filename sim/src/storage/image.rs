//! Images: copies of a simulated disk with its page cache.

use super::disk::Disk;
use super::machine::Draws;
use std::hash::{Hash as _, Hasher as _};

/// Copy of a disk with its page cache, its random generator, its capacity and its garbage mode.
#[derive(Clone, Debug)]
pub struct Image {
    pub(super) disk: Disk,
    pub(super) draws: Draws,
    pub(super) capacity: Option<u64>,
    pub(super) garbage: bool,
}

impl Image {
    /// Returns a hash of the disk with its page cache and all dirty state. In a given garbage mode these determine the
    /// states that crashes may leave.
    #[must_use]
    pub fn fingerprint(&self) -> u64 {
        let mut hasher = xxhash_rust::xxh3::Xxh3::new();
        self.disk.hash(&mut hasher);
        hasher.finish()
    }
}
