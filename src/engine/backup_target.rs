//! The directory of a new backup, under its lock: packs, then the manifest.

use super::{
    backup_files::check_hash,
    barriers::{K1, K2, K3, K4},
    lock::LockedDirectory,
    names,
};
use crate::{
    env::Cancel,
    error::{Result, ShardexError},
    failpoint::holds,
    format::manifest::{MANIFEST_MOST_BYTES, Manifest, PackEntry, PlaceEntry},
    lease::{IndexLock, PlainFile},
    storage::{Purpose, Storage, StorageFile as _},
    tuning::PACK_BUFFER,
};

const MAKE: Purpose = Purpose("backup: create");
const ALLOCATE: Purpose = Purpose("backup: allocate");
const STORE: Purpose = Purpose("backup: store");
const LINK: Purpose = Purpose("backup: share");
const NAME: Purpose = Purpose("backup: commit");
const CLEAR: Purpose = Purpose("backup: clear");

/// Directory of a backup that is being made.
pub(super) struct BackupTarget<'a, D: Storage> {
    storage: &'a D,
    lock: IndexLock,
    /// Names of the files made so far.
    made: Vec<String>,
}

impl<'a, D: Storage> BackupTarget<'a, D> {
    /// Creates the directory, or takes an empty one.
    ///
    /// # Errors
    /// Returns `AlreadyExists` if it holds something, `Locked` if it is that of an open index or of a backup under way,
    /// `OutOfSpace` or `Io`.
    pub(super) fn create(storage: &'a D) -> Result<Self> {
        let locked = LockedDirectory::take_empty(storage, MAKE)?;
        Ok(Self { storage, lock: locked.into_lock(), made: Vec::new() })
    }

    /// Creates a file of the backup with room for `len` bytes.
    fn file(&mut self, name: String, len: u64) -> Result<PlainFile<D::File>> {
        self.made.push(name.clone());
        let file = PlainFile::create(self.storage, &name, MAKE, &self.lock)?;
        file.raw().allocate(0, len, ALLOCATE)?;
        Ok(file)
    }

    /// Creates a pack for `len` bytes.
    ///
    /// # Errors
    /// Returns `OutOfSpace` or `Io`.
    pub(super) fn pack(&mut self, number: u32, len: u64) -> Result<PackWriter<D>> {
        let file = self.file(names::pack(number), len)?;
        Ok(PackWriter { file, at: 0, buffer: Vec::new() })
    }

    /// Gives a pack of an earlier backup a second name here, or copies it where the file system can't do that. `places` are
    /// those of it that this backup names. Returns the number of bytes copied.
    ///
    /// # Errors
    /// Returns `Corruption` if a place has other bytes than before, `OutOfSpace`, `Io`, or `Closed` if it is cancelled.
    pub(super) fn share<'p>(
        &mut self,
        base: &D,
        pack: PackEntry,
        mut places: impl Iterator<Item = &'p PlaceEntry>,
        cancel: &dyn Cancel,
    ) -> Result<u64> {
        let name = names::pack(pack.number);
        if self.storage.link_from(base, &name, LINK)? {
            self.made.push(name.clone());
            // What has only been copied to the earlier backup need not be durable there.
            self.storage.open_to_read(&name)?.sync_all(K1)?;
            return Ok(0);
        }
        let source = base.open_to_read(&name)?;
        let mut copy = self.pack(pack.number, pack.len)?;
        let mut part = vec![0; PACK_BUFFER];
        while copy.len() < pack.len {
            cancel.check()?;
            let part = &mut part[..(pack.len - copy.len()).min(PACK_BUFFER as u64) as usize];
            source.read_at(copy.len(), part)?;
            copy.append(part)?;
        }
        copy.finish(&mut places, cancel)?;
        Ok(pack.len)
    }

    /// Stores the manifest, which makes the directory a backup.
    ///
    /// # Errors
    /// Returns `Corruption` if the device returns other bytes, `OutOfSpace` or `Io`.
    pub(super) fn commit(&mut self, manifest: &Manifest) -> Result<()> {
        let bytes = manifest.encode();
        if bytes.len() as u64 > MANIFEST_MOST_BYTES {
            let reason = format!("a manifest of {} bytes, {MANIFEST_MOST_BYTES} at most", bytes.len());
            return Err(ShardexError::InvalidArgument { argument: "directory", reason });
        }
        let file = self.file(names::MANIFEST_NEW.to_owned(), bytes.len() as u64)?;
        file.store(0, &bytes, STORE)?;
        file.sync_all(K2).run()?;
        file.raw().uncache();
        let mut found = vec![0; bytes.len()];
        file.raw().read_at(0, &mut found)?;
        if !holds!(ErrorCheck, found == bytes) {
            let what = "other bytes than those stored".to_owned();
            return Err(ShardexError::Corruption { file: file.path(), offset: 0, what });
        }
        // Before the rename, because a directory entry may survive a crash without entries made earlier (R7).
        self.storage.sync_dir(K3)?;
        self.storage.rename(names::MANIFEST_NEW, names::MANIFEST, NAME)?;
        self.made.push(names::MANIFEST.to_owned());
        self.storage.sync_dir(K4)?;
        self.lock.withdraw();
        Ok(())
    }

    /// Removes the files of a backup that has failed, the manifest first and durably. What can't be removed stays: without its
    /// manifest the directory is no backup.
    pub(super) fn abandon(&mut self) {
        for name in self.made.drain(..).rev() {
            let removed = self.storage.remove(&name, CLEAR);
            if name == names::MANIFEST && removed.and_then(|()| self.storage.sync_dir(K3)).is_err() {
                return;
            }
        }
        self.lock.withdraw();
    }
}

/// Pack that is being stored.
pub(super) struct PackWriter<D: Storage> {
    file: PlainFile<D::File>,
    /// Bytes stored so far.
    at: u64,
    /// Bytes to store next.
    buffer: Vec<u8>,
}

impl<D: Storage> PackWriter<D> {
    /// Returns the number of bytes appended so far.
    pub(super) fn len(&self) -> u64 {
        self.at + self.buffer.len() as u64
    }

    /// Appends bytes, and returns their offset.
    ///
    /// # Errors
    /// Returns `OutOfSpace` or `Io`.
    pub(super) fn append(&mut self, bytes: &[u8]) -> Result<u64> {
        let offset = self.len();
        self.buffer.extend_from_slice(bytes);
        if self.buffer.len() >= PACK_BUFFER {
            self.store_buffer()?;
        }
        Ok(offset)
    }

    fn store_buffer(&mut self) -> Result<()> {
        self.file.store(self.at, &self.buffer, STORE)?;
        self.at += self.buffer.len() as u64;
        self.buffer.clear();
        Ok(())
    }

    /// Makes the pack durable, and reads `places` back.
    ///
    /// # Errors
    /// Returns `Corruption` if the device returns other bytes, `OutOfSpace`, `Io`, or `Closed` if it is cancelled.
    pub(super) fn finish<'p>(
        mut self,
        places: impl Iterator<Item = &'p PlaceEntry>,
        cancel: &dyn Cancel,
    ) -> Result<()> {
        self.store_buffer()?;
        self.file.sync_all(K1).run()?;
        self.file.raw().uncache();
        let mut bytes = Vec::new();
        for place in places {
            cancel.check()?;
            bytes.resize(place.len as usize, 0);
            self.file.raw().read_at(place.offset, &mut bytes)?;
            check_hash(self.file.raw(), place, &bytes)?;
        }
        Ok(())
    }
}
