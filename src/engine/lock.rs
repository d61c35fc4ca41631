//! The lock of a directory, and what is in it once nobody else can change that.
//!
//! Two files are locked, in this order: `LOCK`, which may be the first file of an index, and `data`, whose inode never changes in
//! an index's life. Whoever removes `LOCK` while an index is open lets the next open make and lock another file of that name,
//! and that open is refused at `data`. (The root file would not do: recovery replaces it.)
//!
//! A reader that only reads needs neither lock, so that there is room for readers in other processes.

use super::names;
use crate::{
    error::{Result, ShardexError},
    lease::IndexLock,
    storage::{Storage, StorageLock as _},
};

/// A directory that is locked.
pub(super) struct LockedDirectory<S: Storage> {
    /// Released first: who gets the directory's lock shall get this one too.
    data: Option<S::Lock>,
    directory: S::Lock,
    /// Names of its files, sorted, without those that are tolerated.
    pub(super) found: Vec<String>,
}

impl<S: Storage> LockedDirectory<S> {
    /// Takes the lock, then looks at the directory: what is seen before may be in the middle of somebody else's `create`.
    ///
    /// # Errors
    /// `Locked`, `Io`: no file is left behind that this made.
    pub(super) fn take(storage: &S) -> Result<Self> {
        let directory = storage.lock(names::LOCK)?;
        let data_and_list = || {
            let mut found = storage.list()?;
            found.retain(|name| !names::TOLERATED.contains(&name.as_str()));
            let data = if has(&found, names::DATA) { Some(storage.lock(names::DATA).map_err(not_a_file)?) } else { None };
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

    /// Whether there is a file of this name.
    pub(super) fn has(&self, name: &str) -> bool {
        has(&self.found, name)
    }

    /// The lock of the index that is there.
    pub(super) fn into_lock(self) -> IndexLock {
        IndexLock::new(self.directory, self.data)
    }

    /// The lock of the index that is being made: its data file was created just now.
    pub(super) fn into_lock_of_new(self, storage: &S) -> Result<IndexLock> {
        let data = storage.lock(names::DATA)?;
        Ok(IndexLock::new(self.directory, Some(data)))
    }

    /// Removes the file `LOCK` if taking the lock made it.
    pub(super) fn withdraw(&self) {
        self.directory.withdraw();
    }
}

/// What is not a file is in the place of one: damage.
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
