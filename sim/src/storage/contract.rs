//! Implementation of the storage contract for [`SimStorage`].

use super::directory::{Change, FileId};
use super::disk::Disk;
use super::machine::{Machine, OnceFault, SyncFault, path_of};
use super::mutant::{SimMutant, wrong};
use super::{
    SimStorage,
    file::SimFile,
    lock::SimLock,
    trace::{Op, OpInfo},
};
use shardex::{
    error::{LockHolder, Result, ShardexError},
    storage::{Purpose, Storage},
};
use std::{io, path::PathBuf, sync::Arc};

impl Storage for SimStorage {
    type File = SimFile;
    type Lock = SimLock;

    fn page_size(&self) -> usize {
        self.geometry.page
    }

    fn sector_size(&self) -> usize {
        self.geometry.sector
    }

    fn path(&self) -> PathBuf {
        path_of("")
    }

    fn exists(&self) -> Result<bool> {
        let machine = self.machine();
        machine.look(self.boot).map_err(|e| ShardexError::io("open", path_of(""), e))?;
        Ok(machine.disk.directory.exists())
    }

    fn make_dir(&self, purpose: Purpose) -> Result<()> {
        self.run(OpInfo::dir(Op::MakeDir, purpose), |machine| {
            if machine.disk.directory.exists() {
                return Err(io::ErrorKind::AlreadyExists.into());
            }
            machine.may_change_entries()?;
            machine.disk.directory.make();
            Ok(())
        })
    }

    fn sync_parent(&self, purpose: Purpose) -> Result<()> {
        self.run(OpInfo::dir(Op::SyncParent, purpose), |machine| {
            let fault = machine.take_sync_fault(Op::SyncParent);
            let Machine { disk: Disk { directory, .. }, draws, counters, .. } = machine;
            match fault {
                None => directory.sync_parent(),
                // A directory entry has no sectors that could be misdirected.
                Some(SyncFault::Lie | SyncFault::Misdirect) => directory.lie_about_sync_parent(),
                Some(SyncFault::Fail(kind)) => {
                    directory.fail_sync_parent(&mut draws.next());
                    counters.failed_parent_syncs += 1;
                    return Err(kind.into());
                }
            }
            Ok(())
        })
    }

    fn lock(&self, name: &str) -> Result<SimLock> {
        let fail = |e| ShardexError::io("lock", path_of(name), e);
        let mut machine = self.machine();
        machine.enter(self.boot).map_err(fail)?;
        if machine.stopped {
            return Err(fail(io::Error::other("power lost")));
        }
        // The real backend creates the lock file too, visible to others. Locking is not a crash point of its own.
        let made = machine.find(name).is_err();
        let file = if made { machine.disk.create(name) } else { machine.find(name).map_err(fail)? };
        if let Some(&(_, holder)) = machine.locks.get(&file)
            && !wrong(SimMutant::LockShared)
        {
            machine.counters.refused_locks += 1;
            return Err(ShardexError::Locked { path: path_of(""), holder });
        }
        let token = machine.token();
        machine.locks.insert(file, (token, LockHolder::Handle));
        let (machine, name) = (Arc::clone(&self.machine), name.to_owned());
        Ok(SimLock { machine, boot: self.boot, file, name, token, made })
    }

    fn list(&self) -> Result<Vec<String>> {
        let machine = self.machine();
        machine.enter(self.boot).map_err(|e| ShardexError::io("list", path_of(""), e))?;
        Ok(machine.disk.directory.entries().keys().cloned().collect())
    }

    fn create(&self, name: &str, purpose: Purpose) -> Result<Arc<SimFile>> {
        self.run(OpInfo::file(Op::Create, name, 0, 0, purpose), |machine| {
            machine.enter(self.boot)?;
            if machine.find(name).is_ok() {
                return Err(io::ErrorKind::AlreadyExists.into());
            }
            machine.may_change_entries()?;
            machine.counters.entry_changes += 1;
            Ok(machine.disk.create(name))
        })
        .map(|file| self.handle(name, file))
    }

    fn open(&self, name: &str) -> Result<Arc<SimFile>> {
        let machine = self.machine();
        let found = machine.enter(self.boot).and_then(|()| machine.find(name));
        found.map(|file| self.handle(name, file)).map_err(|e| ShardexError::io("open", path_of(name), e))
    }

    fn open_to_read(&self, name: &str) -> Result<Arc<SimFile>> {
        self.open(name)
    }

    /// The two names have copies of the file, which nobody can tell from one file, because nothing stores to it any more.
    fn link_from(&self, from: &Self, name: &str, purpose: Purpose) -> Result<bool> {
        let linked = {
            let machine = from.machine();
            let found = machine.enter(from.boot).and_then(|()| machine.find(name));
            let file = found.map_err(|e| ShardexError::io("link", path_of(name), e))?;
            machine.disk.inodes[&file].clone()
        };
        self.run(OpInfo::file(Op::Link, name, 0, 0, purpose), |machine| {
            machine.enter(self.boot)?;
            if machine.no_links {
                return Ok(false);
            }
            if machine.find(name).is_ok() {
                return Err(io::ErrorKind::AlreadyExists.into());
            }
            machine.may_change_entries()?;
            machine.counters.entry_changes += 1;
            machine.disk.add(name, linked);
            Ok(true)
        })
    }

    fn rename(&self, from: &str, to: &str, purpose: Purpose) -> Result<()> {
        self.run(OpInfo::rename(from, to, purpose), |machine| {
            let file = machine.enter(self.boot).and_then(|()| machine.find(from))?;
            machine.may_change_entries()?;
            if from != to {
                machine.counters.entry_changes += 1;
                machine.disk.directory.change(Change::Rename { from: from.to_owned(), to: to.to_owned(), file });
            }
            Ok(())
        })
    }

    fn remove(&self, name: &str, purpose: Purpose) -> Result<()> {
        self.run(OpInfo::file(Op::Remove, name, 0, 0, purpose), |machine| {
            machine.enter(self.boot).and_then(|()| machine.find(name))?;
            machine.may_change_entries()?;
            machine.counters.entry_changes += 1;
            machine.disk.directory.change(Change::Remove { name: name.to_owned() });
            Ok(())
        })
    }

    fn sync_dir(&self, purpose: Purpose) -> Result<()> {
        self.run(OpInfo::dir(Op::SyncDir, purpose), |machine| {
            machine.enter(self.boot)?;
            let fault = machine.take_sync_fault(Op::SyncDir);
            let Machine { disk: Disk { directory, .. }, draws, .. } = machine;
            match fault {
                None if wrong(SimMutant::DirSyncNothing) => {}
                None => directory.sync(),
                // A directory entry has no sectors that could be misdirected.
                Some(SyncFault::Lie | SyncFault::Misdirect) => directory.lie_about_sync(),
                Some(SyncFault::Fail(kind)) => {
                    directory.fail_sync(&mut draws.next());
                    return Err(kind.into());
                }
            }
            Ok(())
        })
    }
}

impl Machine {
    /// Refuses a change of directory entries if a fault is planned for it.
    pub(super) fn may_change_entries(&mut self) -> io::Result<()> {
        match self.once.take() {
            None => Ok(()),
            Some(OnceFault::FailEntry) => {
                self.counters.failed_entries += 1;
                Err(io::Error::other("the medium cannot be written here"))
            }
            Some(_) => {
                self.counters.refused_creations += 1;
                Err(io::ErrorKind::StorageFull.into())
            }
        }
    }

    /// Returns the file with this name. Panics if there is none.
    pub(super) fn named(&self, name: &str) -> FileId {
        self.find(name).unwrap_or_else(|_| panic!("there is no file {name}"))
    }
}
