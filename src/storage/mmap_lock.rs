//! File locks on a real disk, and the record of the locks that this process holds.

use std::{
    collections::BTreeMap,
    fs::{self, File, OpenOptions, TryLockError},
    io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
};

use super::{StorageLock, regular};
use crate::{
    access::FileAccess,
    error::{LockHolder, Result, ShardexError},
};

/// Identity of a file independent of its name: device and inode.
type FileId = (u64, u64);

/// Locks held by this process, each with its kind of holder. The system reports that a file is locked, but not by which
/// process.
static HELD: Mutex<BTreeMap<FileId, LockHolder>> = Mutex::new(BTreeMap::new());

fn held() -> MutexGuard<'static, BTreeMap<FileId, LockHolder>> {
    HELD.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Largest number of tries to lock a file that is replaced during the locking.
const TRIES: usize = 16;

/// Lock of a file, held until it is dropped.
///
/// It is a lock of the open file description: the system releases it when its last descriptor closes (R12). A forked
/// child shares it.
#[derive(Debug)]
pub struct MmapLock {
    path: PathBuf,
    file: File,
    id: FileId,
    /// Whether taking the lock created the file.
    made: bool,
    /// Id of the process that took the lock. A forked child that drops its inherited copy must not release the lock.
    process: u32,
}

impl MmapLock {
    /// Takes the lock of a file in a directory. Creates the file if it is missing.
    pub(super) fn take(directory: &Path, name: &str, access: FileAccess) -> Result<Self> {
        let path = directory.join(name);
        let failed = |e| regular::error("lock", &path, e);
        for _ in 0..TRIES {
            let (file, made) = open(directory, name, access).map_err(failed)?;
            let id = id_of(&file.metadata().map_err(failed)?);
            match file.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => {
                    let holder = held().get(&id).copied().unwrap_or(LockHolder::OtherProcess);
                    return Err(ShardexError::Locked { path: directory.to_path_buf(), holder });
                }
                Err(TryLockError::Error(e)) => return Err(failed(e)),
            }
            // The file may have been removed between the open and the lock, by a process that created it and withdrew.
            // The lock would then protect a file without a name.
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

/// Opens a file for a lock and reports whether it was created. Each lock needs an open of its own, so that two locks
/// conflict within one process too (flock(2)).
fn open(directory: &Path, name: &str, access: FileAccess) -> io::Result<(File, bool)> {
    loop {
        match regular::create(OpenOptions::new().write(true), directory, name, access) {
            Ok(file) => return Ok((file, true)),
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
            Err(e) => return Err(e),
        }
        match regular::open(OpenOptions::new().write(true), &directory.join(name)) {
            Ok(file) => return Ok((file, false)),
            // The file was removed in between.
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(e),
        }
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
            // The file is removed while it is locked, so that nothing else uses it. An error leaves an empty file.
            let _ = fs::remove_file(&self.path);
        }
    }
}

impl Drop for MmapLock {
    fn drop(&mut self) {
        if self.process != std::process::id() {
            return;
        }
        held().remove(&self.id);
        // Unlocked explicitly and not by the close: a process that another thread starts has a copy of the descriptor
        // until it executes its program. After an error the close unlocks it.
        let _ = self.file.unlock();
    }
}
