//! Storage contract between the engine and the code that stores its bytes.
//!
//! A [`Storage`] is one directory of named files. Every store, sync, allocation, creation, rename and removal of the
//! engine goes through it. So a simulated storage sees all of them, and can make all of them fail.
//!
//! # Rules
//! An implementation promises the rules below and no more, and the engine relies on nothing else.
//!
//! * **R1** A store is visible to readers at once. Only a sync guarantees that it is durable (R4, R5).
//! * **R2** Any dirty page may be written back at any moment, in any order.
//! * **R3** After a power cut each dirty sector holds, independently of all others, *any* of the versions it had since
//!   the durable one. Bytes that no store touched do not change.
//! * **R4** If [`sync_range`](StorageFile::sync_range) returns `Ok`, the contents that the covering pages had when the
//!   call began are durable. It makes no length and no directory entry durable.
//! * **R5** If [`sync_all`](StorageFile::sync_all) returns `Ok`, all pages, the length and the allocation are durable.
//! * **R6** A length set by [`allocate`](StorageFile::allocate) is durable only by R5. Bytes never written read as
//!   zeros.
//! * **R7** [`create`](Storage::create), [`link_from`](Storage::link_from), [`rename`](Storage::rename) and
//!   [`remove`](Storage::remove) are durable only by [`sync_dir`](Storage::sync_dir), and the directory itself only by [`sync_parent`](Storage::sync_parent). At a
//!   crash any subset of the pending ones survives, those of one name in their order. A rename is atomic.
//! * **R8** A sync that fails leaves the pages clean: the device holds old or new content. A second sync returns `Ok`
//!   and makes nothing durable. The only safe reaction is to stop (promise P5).
//! * **R9** `allocate` reserves space: a store inside an allocated range does not fail for lack of space, until the
//!   range is deallocated (R15) or a power cut takes the reservation, which only R5 makes durable. Exception: on a file
//!   system that can't reserve space, it may fail with `OutOfSpace`. A store that fails may have stored any of its
//!   sectors.
//! * **R10** After a crash of the process alone the page cache survives, with pages that the device does not hold.
//!   Reading them proves nothing about the device.
//! * **R11** A crash may happen at any operation, during recovery too.
//! * **R12** A crash releases the lock. A second [`lock`](Storage::lock) returns
//!   [`Locked`](crate::ShardexError::Locked).
//! * **R13** The medium may rot, misplace a write, return a stale sector, fail a read, or lie about a sync. The engine
//!   detects all damage that a checksum can detect.
//! * **R14** The clock may jump. It decides nothing about correctness.
//! * **R15** [`deallocate`](StorageFile::deallocate) acts on the bytes like a store of zeros (R1 to R5), and ends their
//!   reservation (R9). Whether a power cut gives the space back is open until R5. A call that fails may have
//!   deallocated any of its sectors.
//!
//! # Leases
//! [`lend`](StorageFile::lend) leases bytes of a file without a copy. No store may touch leased bytes. The engine
//! ensures this: it only appends, and it frees an allocation only when no lease of it is left.

mod mmap;
mod mmap_lock;
mod regular;

use std::{fmt, ops::Deref, path::PathBuf, sync::Arc};

pub use mmap::{MmapFile, MmapStorage};
pub use mmap_lock::MmapLock;
pub(crate) use regular::open as open_regular;

use crate::error::Result;

/// Purpose of an operation: its step in a protocol, for traces, fault plans and readers of the code.
///
/// The purpose of a barrier starts with its number (`B1`, `B2`, …). `FORMAT.md` describes the barriers.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Purpose(pub &'static str);

impl fmt::Display for Purpose {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

impl fmt::Debug for Purpose {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

/// Directory of files. The [module](self) describes the contract.
///
/// All calls block. Every method may be called from any thread.
pub trait Storage: Send + Sync + 'static {
    /// Open file of this storage.
    type File: StorageFile;
    /// Lock of a file, held until it is dropped.
    type Lock: StorageLock;

    /// Returns the page size in bytes, a power of two: the unit of write-back.
    fn page_size(&self) -> usize;

    /// Returns the sector size in bytes, a power of two, at most a page: the unit that a power cut doesn't tear.
    fn sector_size(&self) -> usize;

    /// Returns the path of the directory, for messages.
    fn path(&self) -> PathBuf;

    /// Reports whether the directory exists.
    ///
    /// # Errors
    /// Returns `Io` if the system can't tell, or if the path is not a directory.
    fn exists(&self) -> Result<bool>;

    /// Creates the directory, which must not exist. Its parent must exist. Durable by
    /// [`sync_parent`](Self::sync_parent).
    ///
    /// # Errors
    /// Returns `OutOfSpace` if the disk is full, and `Io` if the system refuses.
    fn make_dir(&self, purpose: Purpose) -> Result<()>;

    /// Makes the existence of the directory durable (R7).
    ///
    /// # Errors
    /// Returns `Io` if the sync fails.
    fn sync_parent(&self, purpose: Purpose) -> Result<()>;

    /// Takes the exclusive lock of a file without waiting. Creates an empty file if it is missing.
    ///
    /// The lock is released when the guard is dropped, and by a crash. It is the lock of the file that has this name
    /// now, even if the name changes later.
    ///
    /// On a real disk it is a lock of the open file (`flock`). A forked child shares it. Dropping the guard in the
    /// parent releases the lock for both. If the parent ends without a drop, the lock stays held until the child ends
    /// or executes another program. The child must not use its inherited copy.
    ///
    /// # Errors
    /// Returns `Locked` while another guard of this file lives, in this process or another, and `Io` if the system
    /// refuses.
    fn lock(&self, name: &str) -> Result<Self::Lock>;

    /// Returns the names of all files and subdirectories in the directory, sorted.
    ///
    /// # Errors
    /// Returns `Io` if the directory can't be read.
    fn list(&self) -> Result<Vec<String>>;

    /// Creates an empty file, which must not exist. Its entry is durable by [`sync_dir`](Self::sync_dir).
    ///
    /// # Errors
    /// Returns `OutOfSpace` if the disk is full, and `Io` if the system refuses.
    fn create(&self, name: &str, purpose: Purpose) -> Result<Arc<Self::File>>;

    /// Opens an existing file for reading and writing.
    ///
    /// # Errors
    /// Returns `Io` if the system refuses.
    fn open(&self, name: &str) -> Result<Arc<Self::File>>;

    /// Opens an existing file for reading alone. It may have several names, as a file that backups share has.
    ///
    /// # Errors
    /// Returns `Io` if the system refuses.
    fn open_to_read(&self, name: &str) -> Result<Arc<Self::File>>;

    /// Gives a file of another directory a second name, which is `name` in both directories. Durable by
    /// [`sync_dir`](Self::sync_dir) (R7). Nothing may store to a file with several names. Returns false if the file system can't
    /// do it: nothing has changed then.
    ///
    /// # Errors
    /// Returns `Io` if there is no such file, if the name is taken here, or if the system refuses.
    fn link_from(&self, from: &Self, name: &str, purpose: Purpose) -> Result<bool>;

    /// Renames a file atomically. Replaces `to` if it exists.
    ///
    /// # Errors
    /// Returns `Io` if the system refuses.
    fn rename(&self, from: &str, to: &str, purpose: Purpose) -> Result<()>;

    /// Removes a file.
    ///
    /// # Errors
    /// Returns `Io` if the system refuses.
    fn remove(&self, name: &str, purpose: Purpose) -> Result<()>;

    /// Makes the directory's entries durable.
    ///
    /// # Errors
    /// Returns `Io` if the sync fails. Nothing may be assumed durable then (R8).
    fn sync_dir(&self, purpose: Purpose) -> Result<()>;
}

/// Lock of a file, held until it is dropped.
pub trait StorageLock: Send + Sync + 'static {
    /// Notes that the owner was dropped and only readers hold the lock now. The error
    /// [`Locked`](crate::ShardexError::Locked) then names a reader as the holder.
    fn owner_left(&self);

    /// Removes the file if taking this lock created it. An error is ignored, because it leaves only an empty file.
    fn withdraw(&self);
}

/// Open file of a [`Storage`].
pub trait StorageFile: Send + Sync + 'static {
    /// Leased bytes; cheap to clone.
    type Lent: Deref<Target = [u8]> + Clone + Send + Sync + 'static;

    /// Returns the path of the file, for messages.
    fn path(&self) -> PathBuf;

    /// Returns the length in bytes.
    ///
    /// # Errors
    /// Returns `Io` if the length can't be read.
    fn len(&self) -> Result<u64>;

    /// Reports whether the length is 0.
    ///
    /// # Errors
    /// Returns `Io` if the length can't be read.
    fn is_empty(&self) -> Result<bool> {
        Ok(self.len()? == 0)
    }

    /// Returns the bytes of storage that the file takes, whole blocks included. Holes take none.
    ///
    /// # Errors
    /// Returns `Io` if the system can't tell.
    fn allocated(&self) -> Result<u64>;

    /// Reports whether the file was neither removed nor replaced by another file of its name. A directory that was only moved
    /// is no reason to say no, nor is a path that can't be looked up any more.
    fn is_in_place(&self) -> bool;

    /// Makes the file at least `offset + len` bytes long and reserves space for every byte of the range, holes
    /// included.
    ///
    /// New bytes read as zeros. It never shortens the file. Durable by [`sync_all`](Self::sync_all) (R5, R6).
    ///
    /// # Errors
    /// Returns `OutOfSpace` if the disk is full, and `Io` if the system refuses. The length may or may not have
    /// changed.
    fn allocate(&self, offset: u64, len: u64, purpose: Purpose) -> Result<()>;

    /// Gives the space of the range back to the file system and makes its bytes zeros (R15). Both `offset` and `len`
    /// are multiples of a page, within the length of the file, which stays. Returns false if the file system can't do
    /// it: nothing has changed then.
    ///
    /// # Errors
    /// Returns `Io` if the system refuses, or if the range ends past the end of the file. Any of its sectors may be
    /// deallocated then.
    ///
    /// # Panics
    /// Panics if the range does not consist of whole pages.
    ///
    /// # Safety
    /// No byte of the range is [leased](Self::lend), by this handle of the file or another, in this process or another.
    #[expect(unsafe_code, reason = "its declaration")]
    unsafe fn deallocate(&self, offset: u64, len: u64, purpose: Purpose) -> Result<bool>;

    /// Reads bytes at `offset` into `buffer` by copying.
    ///
    /// Open, recovery and check use it for all metadata, the WAL and full checks, because an error of the medium is an
    /// error here and would be a signal under a mapping. Lookups of a replay read vectors and postings through leases.
    ///
    /// # Errors
    /// Returns `Io` if the read fails, or if the range ends past the end of the file.
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<()>;

    /// Asks the system to drop its copies of the file's synced pages from the page cache, so that the next read comes from the
    /// device. It may refuse, and another reader may bring them back.
    fn uncache(&self);

    /// Stores `bytes` at `offset`, within the length of the file.
    ///
    /// # Errors
    /// Returns `Io` if the range ends past the end of the file. Nothing is stored then. Returns `OutOfSpace` or `Io` if
    /// the store fails. Any of its sectors may be stored then (R9).
    ///
    /// # Safety
    /// No byte of the range is [leased](Self::lend), by this handle of the file or another, in this process or another.
    #[expect(unsafe_code, reason = "its declaration")]
    unsafe fn write_at(&self, offset: u64, bytes: &[u8], purpose: Purpose) -> Result<()>;

    /// Makes the current contents of the pages of the range durable (R4).
    ///
    /// # Errors
    /// Returns `Io` if the sync fails. Nothing may be assumed durable then (R8).
    fn sync_range(&self, offset: u64, len: u64, purpose: Purpose) -> Result<()>;

    /// Makes the whole file durable, with its length and allocation (R5).
    ///
    /// # Errors
    /// Returns `Io` if the sync fails. Nothing may be assumed durable then (R8).
    fn sync_all(&self, purpose: Purpose) -> Result<()>;

    /// Begins a sync of a range (offset and length), or of the whole file, and returns its number for
    /// [`sync_end`](Self::sync_end).
    ///
    /// The sync need not cover bytes stored between its begin and its end. Simulations override it, because a sync
    /// takes time there. The default does nothing.
    ///
    /// # Errors
    /// Returns the errors of [`sync_range`](Self::sync_range). The sync has not begun then.
    fn sync_begin(&self, range: Option<(u64, u64)>, purpose: Purpose) -> Result<u64> {
        let _ = (range, purpose);
        Ok(0)
    }

    /// Ends a sync: it is durable, or has failed. The range and the purpose must be those of the begin.
    ///
    /// # Errors
    /// Returns the errors of [`sync_range`](Self::sync_range) and [`sync_all`](Self::sync_all).
    fn sync_end(&self, begun: u64, range: Option<(u64, u64)>, purpose: Purpose) -> Result<()> {
        let _ = begun;
        match range {
            Some((offset, len)) => self.sync_range(offset, len, purpose),
            None => self.sync_all(purpose),
        }
    }

    /// Leases bytes of the file for reading without a copy.
    ///
    /// The address of the first byte has the alignment of `offset`, up to 64 bytes. The bytes stay readable as long as
    /// the lease lives, even if the file is removed.
    ///
    /// # Errors
    /// Returns `Io` if the mapping fails, or if the range ends past the end of the file.
    ///
    /// # Safety
    /// Nothing stores to a byte of the range as long as the lease lives, by this handle of the file or another, in this
    /// process or another.
    #[expect(unsafe_code, reason = "its declaration")]
    unsafe fn lend(&self, offset: u64, len: usize) -> Result<Self::Lent>;
}
