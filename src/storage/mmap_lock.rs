//! Locks of files on a real disk, and who in this process holds which.

use std::{
    collections::BTreeMap,
    fs::{self, File, OpenOptions, TryLockError},
    io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
};

use super::StorageLock;
use crate::error::{LockHolder, Result, ShardexError};

/// A file on the machine, whatever its name: device and inode.
type FileId = (u64, u64);

/// The locks that this process holds: the system says that a file is locked, not by whom.
static HELD: Mutex<BTreeMap<FileId, LockHolder>> = Mutex::new(BTreeMap::new());

fn held() -> MutexGuard<'static, BTreeMap<FileId, LockHolder>> {
    HELD.lock().unwrap_or_else(PoisonError::into_inner)
}

/// How often a file may be replaced while it is being locked.
const TRIES: usize = 16;

/// Holds the lock of a file until it is dropped.
///
/// It is a lock of the open file: the system releases it when its last descriptor closes (R12). A forked child shares it.
#[derive(Debug)]
pub struct MmapLock {
    path: PathBuf,
    file: File,
    id: FileId,
    /// Taking it made the file.
    made: bool,
    /// Who took it. A forked child that drops what it has inherited must not release it.
    process: u32,
}

impl MmapLock {
    /// Takes the lock of a file in a directory, which is made if there is none.
    pub(super) fn take(directory: &Path, name: &str) -> Result<Self> {
        let path = directory.join(name);
        let failed = |e| ShardexError::io("lock", &path, e);
        for _ in 0..TRIES {
            let (file, made) = open(&path).map_err(failed)?;
            let id = id_of(&file.metadata().map_err(failed)?);
            match file.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => {
                    let holder = held().get(&id).copied().unwrap_or(LockHolder::OtherProcess);
                    return Err(ShardexError::Locked { path: directory.to_path_buf(), holder });
                }
                Err(TryLockError::Error(e)) => return Err(failed(e)),
            }
            // The file may have been removed between the opening and the locking, by whoever made it and withdrew. Then the
            // lock is that of a file that nobody finds any more.
            match fs::metadata(&path) {
                Ok(now) if id_of(&now) == id => {
                    held().insert(id, LockHolder::Handle);
                    return Ok(Self { path, file, id, made, process: std::process::id() });
                }
                Ok(_) => {}
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                Err(e) => return Err(failed(e)),
            }
        }
        let busy = io::Error::new(io::ErrorKind::ResourceBusy, "the file is replaced again and again");
        Err(failed(busy))
    }
}

/// Opens a file anew, so that two locks of it conflict within one process too (flock(2)). Says whether it made it.
fn open(path: &Path) -> io::Result<(File, bool)> {
    match OpenOptions::new().write(true).create_new(true).open(path) {
        Ok(file) => Ok((file, true)),
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
            // Removed meanwhile: made after all.
            OpenOptions::new().write(true).create(true).truncate(false).open(path).map(|file| (file, false))
        }
        Err(e) => Err(e),
    }
}

fn id_of(metadata: &fs::Metadata) -> FileId {
    (metadata.dev(), metadata.ino())
}

impl StorageLock for MmapLock {
    fn owner_left(&self) {
        held().insert(self.id, LockHolder::Reader);
    }

    fn withdraw(&self) {
        let is_there = || fs::metadata(&self.path).is_ok_and(|now| id_of(&now) == self.id);
        if self.made && is_there() {
            // While it is locked, so that nobody is using it. What stays after an error is an empty file.
            drop(fs::remove_file(&self.path));
        }
    }
}

impl Drop for MmapLock {
    fn drop(&mut self) {
        if self.process != std::process::id() {
            return;
        }
        held().remove(&self.id);
        // Not left to the closing: a process being started by another thread holds a copy of the descriptor until it
        // has become another program. An error leaves it to the closing after all.
        drop(self.file.unlock());
    }
}
