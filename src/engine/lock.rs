//! The lock of a directory, and the list of its files taken under that lock.
//!
//! Two files are locked, in this order: `LOCK`, which may be the first file of an index, and `data`, whose inode never
//! changes during the life of an index. If `LOCK` is removed while an index is open, the next open creates and locks
//! another file of that name. The lock of `data` then refuses that open. The root file would not serve, because
//! recovery replaces it.
//!
//! Readers in other processes would need a protocol of their own: only the lock keeps a writer from reusing pages that
//! they read.

use super::{barriers::PARENT, names};
use crate::{
    error::{Result, ShardexError},
    lease::IndexLock,
    storage::{Purpose, Storage, StorageLock as _},
};

/// A locked directory and the list of its files.
pub(super) struct LockedDirectory<S: Storage> {
    /// Dropped first, so that the next owner of the directory's lock finds this lock free too.
    data: Option<S::Lock>,
    directory: S::Lock,
    /// Sorted names of the files in the directory, without the tolerated ones.
    pub(super) found: Vec<String>,
}

impl<S: Storage> LockedDirectory<S> {
    /// Takes the lock, then lists the directory. A list taken before the lock could show an unfinished `create` of
    /// another process.
    ///
    /// # Errors
    /// Returns `Locked`, `Io`, or `Corruption` if `data` is a directory. The file `LOCK` is removed if this call
    /// created it.
    pub(super) fn take(storage: &S) -> Result<Self> {
        let directory = storage.lock(names::LOCK)?;
        let data_and_list = || {
            let mut found = storage.list()?;
            found.retain(|name| !names::TOLERATED.contains(&name.as_str()));
            let data =
                if has(&found, names::DATA) { Some(storage.lock(names::DATA).map_err(not_a_file)?) } else { None };
            Ok((found, data))
        };
        match data_and_list() {
            Ok((found, data)) => Ok(Self { directory, data, found }),
            Err(error) => {
                directory.withdraw();
                Err(error)
            }
        }
    }

    /// Creates a directory and takes its lock, or that of an empty one.
    ///
    /// # Errors
    /// Returns `AlreadyExists` if it holds something, `OutOfSpace`, and the errors of [`take`](Self::take).
    pub(super) fn take_empty(storage: &S, make: Purpose) -> Result<Self> {
        if !storage.exists()? {
            storage.make_dir(make)?;
        }
        // Also for an existing directory: a crash may have come between its creation and this sync.
        storage.sync_parent(PARENT)?;
        let locked = Self::take(storage)?;
        match locked.found.iter().find(|name| *name != names::LOCK) {
            None => Ok(locked),
            Some(stranger) => {
                locked.withdraw();
                let reason = format!("it holds `{stranger}`");
                Err(ShardexError::AlreadyExists { path: storage.path(), reason })
            }
        }
    }

    /// Reports whether the directory holds a file of this name.
    pub(super) fn has(&self, name: &str) -> bool {
        has(&self.found, name)
    }

    /// Converts the locks into the lock of the existing index.
    pub(super) fn into_lock(self) -> IndexLock {
        IndexLock::new(self.directory, self.data)
    }

    /// Converts the locks into the lock of a new index, whose data file was just created.
    pub(super) fn into_lock_of_new(self, storage: &S) -> Result<IndexLock> {
        let data = storage.lock(names::DATA)?;
        Ok(IndexLock::new(self.directory, Some(data)))
    }

    /// Removes the file `LOCK` if taking the lock created it.
    pub(super) fn withdraw(&self) {
        self.directory.withdraw();
    }
}

/// Turns the error of locking a directory in the place of a file into `Corruption`.
fn not_a_file(error: ShardexError) -> ShardexError {
    match error {
        ShardexError::Io { path, source, .. } if source.kind() == std::io::ErrorKind::IsADirectory => {
            ShardexError::Corruption { file: path, offset: 0, what: "a directory is in the place of the file".into() }
        }
        error => error,
    }
}

fn has(found: &[String], name: &str) -> bool {
    found.iter().any(|found| found == name)
}
