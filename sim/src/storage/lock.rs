//! Locks of simulated files.

use super::directory::{Change, FileId};
use super::machine::{Machine, locked};
use shardex::{error::LockHolder, storage::StorageLock};
use std::sync::{Arc, Mutex};

/// Lock of a file of a [`SimStorage`](super::SimStorage), released when dropped. It belongs to the inode, not to the name.
#[derive(Debug)]
pub struct SimLock {
    pub(super) machine: Arc<Mutex<Machine>>,
    pub(super) boot: u64,
    pub(super) file: FileId,
    pub(super) name: String,
    pub(super) token: u64,
    /// Whether taking the lock created the file.
    pub(super) made: bool,
}

impl SimLock {
    /// Reports whether the lock is still held. A crash releases it (R12).
    fn is_held(&self, machine: &Machine) -> bool {
        machine.locks.get(&self.file).is_some_and(|&(token, _)| token == self.token)
    }
}

impl StorageLock for SimLock {
    fn owner_left(&self) {
        let mut machine = locked(&self.machine);
        if self.is_held(&machine) {
            machine.locks.insert(self.file, (self.token, LockHolder::Reader));
        }
    }

    fn withdraw(&self) {
        let mut machine = locked(&self.machine);
        let found = machine.enter(self.boot).and_then(|()| machine.find(&self.name));
        if self.made && !machine.stopped && found.is_ok_and(|file| file == self.file) {
            machine.disk.directory.change(Change::Remove { name: self.name.clone() });
        }
    }
}

impl Drop for SimLock {
    fn drop(&mut self) {
        let mut machine = locked(&self.machine);
        if self.is_held(&machine) {
            machine.locks.remove(&self.file);
        }
    }
}
