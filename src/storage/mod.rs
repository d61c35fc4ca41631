//! The contract between the engine and whatever keeps its bytes.
//!
//! A [`Storage`] is one directory of named files. Everything the engine stores, syncs, allocates,
//! creates, renames or removes goes through it, so that a simulated one sees, and can break, all of it.
//!
//! # What a store is worth
//! The rules below are all that an implementation promises, and so all that the engine relies on.
//!
//! * **R1** A store is visible to readers at once, and durable never by itself.
//! * **R2** Any dirty page may be written back at any moment, in any order.
//! * **R3** At a power cut each dirty sector holds, independently of all others, *any* of the versions it
//!   had since the durable one. Bytes that no store touched do not change.
//! * **R4** [`sync_range`](StorageFile::sync_range) that returns `Ok` makes durable what the covering pages
//!   held when the call began. It makes no length and no directory entry durable.
//! * **R5** [`sync_all`](StorageFile::sync_all) that returns `Ok` makes durable all pages, the length, and the
//!   allocation.
//! * **R6** A length set by [`allocate`](StorageFile::allocate) is durable only by R5; bytes never written read
//!   as zeros.
//! * **R7** [`create`](Storage::create), [`rename`](Storage::rename) and [`remove`](Storage::remove) are durable
//!   only by [`sync_dir`](Storage::sync_dir); the directory itself by
//!   [`sync_parent`](Storage::sync_parent). At a crash any subset of the pending ones survives, those of one
//!   name in their order. A rename is atomic.
//! * **R8** A sync that fails leaves the pages clean: the device holds old or new content, and a second sync
//!   returns `Ok` and makes nothing durable. The only safe answer is to stop (promise P5).
//! * **R9** `allocate` reserves space: a store inside an allocated range does not fail for want of it on a
//!   file system that keeps that promise. A store that fails may have stored any of its sectors.
//! * **R10** After a crash of the process alone the page cache lives on, with pages that the device does not
//!   hold: reading them proves nothing about the device.
//! * **R11** A crash may come at any operation, during recovery too.
//! * **R12** The lock is released by a crash. A second [`lock`](Storage::lock) gets
//!   [`Locked`](crate::ShardexError::Locked).
//! * **R13** The medium may rot, misplace a write, return a stale sector, fail a read, or lie about a sync:
//!   the engine detects what a checksum can detect.
//! * **R14** The clock may jump; it decides nothing about correctness.
//!
//! # Lending
//! [`lend`](StorageFile::lend) hands out bytes of a file without a copy. No store may touch bytes while they are
//! lent: the engine keeps that by only ever appending, and frees a place when nobody holds it any more.

mod mmap;
mod mmap_lock;

use std::{fmt, ops::Deref, path::PathBuf, sync::Arc};

pub use mmap::{MmapFile, MmapStorage};
pub use mmap_lock::MmapLock;

use crate::error::Result;

/// Why an operation is done: its step in a protocol, for traces, fault plans and readers of the code.
///
/// A barrier's purpose starts with its number (`B1`, `B2`, …); `FORMAT.md` says what each buys.
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

/// A directory of files. See the [module](self) for the contract.
///
/// All calls block. Every method may be called from any thread.
pub trait Storage: Send + Sync + 'static {
    /// An open file.
    type File: StorageFile;
    /// Holds the lock of a file until it is dropped.
    type Lock: StorageLock;

    /// Bytes per page, a power of two: the unit of write-back.
    fn page_size(&self) -> usize;

    /// Bytes per sector, a power of two, at most a page: the unit that a power cut leaves whole.
    fn sector_size(&self) -> usize;

    /// Where the directory is, for messages.
    fn path(&self) -> PathBuf;

    /// Whether the directory exists.
    ///
    /// # Errors
    /// `Io` if the system cannot tell, or if the path is no directory.
    fn exists(&self) -> Result<bool>;

    /// Makes the directory, which must not exist; its parent must. Durable by [`sync_parent`](Self::sync_parent).
    ///
    /// # Errors
    /// `Io`, `OutOfSpace`.
    fn make_dir(&self, purpose: Purpose) -> Result<()>;

    /// Makes durable that the directory exists (R7).
    ///
    /// # Errors
    /// `Io`.
    fn sync_parent(&self, purpose: Purpose) -> Result<()>;

    /// Takes the exclusive lock of a file, without waiting; makes an empty file if there is none. It is released when the
    /// guard drops, and by a crash. It is the lock of the file that has this name now, whatever becomes of the name.
    ///
    /// On a real disk it is a lock of the open file (`flock`): a child that the process forks shares it, and keeps it from
    /// being free for others until the child has ended, or has become another program, or the guard is dropped in the
    /// parent. The child must not use what it has inherited.
    ///
    /// # Errors
    /// `Locked` while another guard of this file lives, in this process or another; `Io`.
    fn lock(&self, name: &str) -> Result<Self::Lock>;

    /// Names of all files in the directory, sorted; sub-directories too.
    ///
    /// # Errors
    /// `Io`.
    fn list(&self) -> Result<Vec<String>>;

    /// Creates an empty file, which must not exist. Its entry is durable by [`sync_dir`](Self::sync_dir).
    ///
    /// # Errors
    /// `Io`, `OutOfSpace`.
    fn create(&self, name: &str, purpose: Purpose) -> Result<Arc<Self::File>>;

    /// Opens an existing file for reading and writing.
    ///
    /// # Errors
    /// `Io`.
    fn open(&self, name: &str) -> Result<Arc<Self::File>>;

    /// Renames a file, replacing `to` if it exists, atomically.
    ///
    /// # Errors
    /// `Io`.
    fn rename(&self, from: &str, to: &str, purpose: Purpose) -> Result<()>;

    /// Removes a file.
    ///
    /// # Errors
    /// `Io`.
    fn remove(&self, name: &str, purpose: Purpose) -> Result<()>;

    /// Makes the directory's entries durable.
    ///
    /// # Errors
    /// `Io`; nothing may be assumed durable afterwards (R8).
    fn sync_dir(&self, purpose: Purpose) -> Result<()>;
}

/// The lock of a file, until it is dropped.
pub trait StorageLock: Send + Sync + 'static {
    /// Notes that whoever took the lock is gone, and what holds it now only reads: an error
    /// [`Locked`](crate::ShardexError::Locked) says so.
    fn owner_left(&self);

    /// Removes the file, if taking this lock made it. An error is of no consequence: an empty file stays.
    fn withdraw(&self);
}

/// An open file of a [`Storage`].
pub trait StorageFile: Send + Sync + 'static {
    /// Bytes lent without a copy; cheap to clone.
    type Lent: Deref<Target = [u8]> + Clone + Send + Sync + 'static;

    /// The file's path, for messages.
    fn path(&self) -> PathBuf;

    /// Length in bytes.
    ///
    /// # Errors
    /// `Io`.
    fn len(&self) -> Result<u64>;

    /// Whether the file has no byte.
    ///
    /// # Errors
    /// As [`len`](Self::len).
    fn is_empty(&self) -> Result<bool> {
        Ok(self.len()? == 0)
    }

    /// Makes the file at least `len` bytes long and reserves space for every byte below `len`, holes included.
    /// New bytes read as zeros. Never shortens. Durable by [`sync_all`](Self::sync_all) (R5, R6).
    ///
    /// # Errors
    /// `OutOfSpace`, `Io`; the length may or may not have changed.
    fn allocate(&self, len: u64, purpose: Purpose) -> Result<()>;

    /// Fills `buffer` from the file, by copying: the way of open, recovery and check, for an error of the medium is
    /// an error here, where it would be a signal under a mapping.
    ///
    /// # Errors
    /// `Io`, also when the range ends past the file's end.
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<()>;

    /// Stores `bytes` at `offset`, within the file's length.
    ///
    /// # Errors
    /// `OutOfSpace`, `Io`, also when the range ends past the file's end (then nothing is stored). A store that
    /// failed in any other way may have stored any of its sectors (R9).
    ///
    /// # Safety
    /// No byte of the range is [lent](Self::lend), by this handle of the file or another, in this process or another.
    #[expect(unsafe_code, reason = "its declaration")]
    unsafe fn write_at(&self, offset: u64, bytes: &[u8], purpose: Purpose) -> Result<()>;

    /// Makes durable what the pages of the range hold now (R4).
    ///
    /// # Errors
    /// `Io`; afterwards nothing may be assumed durable (R8).
    fn sync_range(&self, offset: u64, len: u64, purpose: Purpose) -> Result<()>;

    /// Makes the whole file durable, with its length and allocation (R5).
    ///
    /// # Errors
    /// `Io`; afterwards nothing may be assumed durable (R8).
    fn sync_all(&self, purpose: Purpose) -> Result<()>;

    /// Begins a sync of a range (offset and length), or of everything, that [`sync_end`](Self::sync_end) ends: what is stored
    /// in between it need not cover. Returns a number for that call. For simulations, where a sync takes time; elsewhere
    /// nothing happens yet.
    ///
    /// # Errors
    /// As [`sync_range`](Self::sync_range); then there is nothing to end.
    fn sync_begin(&self, range: Option<(u64, u64)>, purpose: Purpose) -> Result<u64> {
        let _ = (range, purpose);
        Ok(0)
    }

    /// Ends a sync: now it is durable, or has failed. The range and the purpose are those of the begin.
    ///
    /// # Errors
    /// As [`sync_range`](Self::sync_range) and [`sync_all`](Self::sync_all).
    fn sync_end(&self, begun: u64, range: Option<(u64, u64)>, purpose: Purpose) -> Result<()> {
        let _ = begun;
        match range {
            Some((offset, len)) => self.sync_range(offset, len, purpose),
            None => self.sync_all(purpose),
        }
    }

    /// Lends bytes of the file for reading without a copy. The address of the first lent byte is aligned as its
    /// offset is, up to 64 bytes.
    ///
    /// The lender keeps the bytes readable as long as the loan lives, even if the file is removed. The borrower's
    /// side of the contract: no store touches the range while it is lent.
    ///
    /// # Errors
    /// `Io`, also when the range ends past the file's end.
    ///
    /// # Safety
    /// Nobody stores to a byte of the range as long as the loan lives, by this handle of the file or another, in this
    /// process or another.
    #[expect(unsafe_code, reason = "its declaration")]
    unsafe fn lend(&self, offset: u64, len: usize) -> Result<Self::Lent>;
}
