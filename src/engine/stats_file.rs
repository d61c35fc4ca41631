//! The stats file: figures that the owner of an index publishes for other processes.
//!
//! Invariants:
//! 1. It holds no state of the index. It is never synced, nothing reads it in a recovery or a check, and an error of it is
//!    no error of an operation. Only a `create` reads how it begins, to tell it from a stranger's file.
//! 2. Who writes it holds its lock, so a reader can tell whether the owner lives without touching the index lock.

use super::{core::Engine, names};
use crate::{
    error::Result,
    lease::PlainFile,
    storage::{Purpose, Storage, StorageFile as _},
};

const ALLOCATE: Purpose = Purpose("stats: allocate");
const STORE: Purpose = Purpose("stats: store");

/// Stats file of an open index, locked until it is dropped.
pub struct StatsFile<S: Storage> {
    file: PlainFile<S::File>,
    /// Dropped last, so that the file is not written without its lock.
    _lock: S::Lock,
}

/// Bytes with which a stats file of any version begins.
pub const STATS_TITLE: &[u8] = b"shardex stats ";

/// Reports whether the file `stats` of a directory may be that of an earlier index: it begins as one, or holds nothing
/// but zeros. It is never removed.
pub fn is_stats_file<S: Storage>(storage: &S) -> bool {
    let mut begin = [0; STATS_TITLE.len()];
    let read = storage.open(names::STATS).and_then(|file| {
        let len = file.len()?.min(begin.len() as u64) as usize;
        file.read_at(0, &mut begin[..len])
    });
    read.is_ok() && (begin == STATS_TITLE || begin.iter().all(|&byte| byte == 0))
}

impl<S: Storage> Engine<S> {
    /// Opens the stats file, or creates it, with room for `len` bytes.
    ///
    /// # Errors
    /// Returns `Locked` while a reader tests the lock, and `OutOfSpace` or `Io`. The caller may try again later.
    pub fn stats_file(&self, len: u64) -> Result<StatsFile<S>> {
        // Creates the file if it is missing.
        let lock = self.storage.lock(names::STATS)?;
        let file = PlainFile::open(&self.storage, names::STATS, &self.lock)?;
        file.raw().allocate(0, len, ALLOCATE)?;
        Ok(StatsFile { file, _lock: lock })
    }
}

impl<S: Storage> StatsFile<S> {
    /// Stores the contents of the file. A reader may see a part of them, so they need a checksum.
    ///
    /// # Errors
    /// Returns `OutOfSpace` or `Io`.
    pub fn store(&self, contents: &[u8]) -> Result<()> {
        self.file.store(0, contents, STORE)
    }
}
