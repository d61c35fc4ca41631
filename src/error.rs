//! The error type of the crate.
//!
//! A variant names its cause, such as a file and offset, an argument or an index. Its text and its documentation say how
//! to recover.

use std::{io, path::PathBuf};

use crate::id::Lsn;

/// Result of every fallible call of this crate.
pub type Result<T, E = ShardexError> = std::result::Result<T, E>;

/// Error of a call, with its cause and the way to recover.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum ShardexError {
    /// The operating system refused an operation on a file, or a thread.
    ///
    /// The call changed nothing, unless its documentation says otherwise. To recover, fix the cause that the source
    /// error names (permissions, a failing disk) and call again. After a failed sync, which poisons the handle, open the
    /// index again.
    #[error("{op} of {} failed: {source}: {}", path.display(), remedy(op))]
    Io {
        /// Operation, as a verb: `read`, `write`, `sync`, …
        op: &'static str,
        /// File or directory, or the thread that could not be started.
        path: PathBuf,
        /// Error of the operating system.
        source: std::sync::Arc<io::Error>,
    },

    /// The disk, quota or file system has no space left.
    ///
    /// Nothing is lost. The call changed nothing, unless its documentation says otherwise. To recover, free some space
    /// and call again.
    #[error("no space left for the {op} of {}: make room and try again", path.display())]
    OutOfSpace {
        /// Operation, as a verb.
        op: &'static str,
        /// File that needed space.
        path: PathBuf,
    },

    /// A vector does not have the dimension of the index.
    ///
    /// Nothing has changed. To recover, pass vectors of the index's dimension.
    #[error("vector {index} has {actual} numbers, and this index holds vectors of {expected}: pass such vectors")]
    InvalidDimension {
        /// Position of the vector in the call's argument; 0 for a single query.
        index: usize,
        /// Dimension of the index.
        expected: usize,
        /// Length of the given vector.
        actual: usize,
    },

    /// A vector cannot be stored or searched for: it has a NaN or infinite component, a norm above
    /// 2^62 ([`MAX_NORM`](crate::limits::MAX_NORM)), or is zero or nearly
    /// zero (a norm below 1.2e-38) under the cosine metric, or it has a component beyond the range of the index's
    /// [encoding](crate::VectorEncoding).
    ///
    /// Nothing has changed. To recover, correct the vector or leave it out.
    #[error("vector {index} is refused: {reason}: correct it or leave it out")]
    InvalidVector {
        /// Position of the vector in the call's argument; 0 for a single query.
        index: usize,
        /// Reason of the refusal.
        reason: String,
    },

    /// A posting cannot be stored: its length is zero, or its range ends past `u32::MAX`.
    ///
    /// Nothing has changed. To recover, correct the posting at this position.
    #[error("posting {index} is refused: {reason}: correct it")]
    InvalidPosting {
        /// Position of the posting in the call's argument.
        index: usize,
        /// Reason of the refusal.
        reason: String,
    },

    /// An operation of a batch is out of range.
    ///
    /// Nothing has changed. To recover, correct the operation at this position.
    #[error("operation {index} is refused: {reason}: correct it")]
    InvalidOperation {
        /// Position of the operation in the batch.
        index: usize,
        /// Reason of the refusal.
        reason: String,
    },

    /// The cursor does not have the value that a batch expects: another ingester has set it, or an earlier batch of this
    /// one was accepted already.
    ///
    /// Nothing has changed. To recover, read [`cursor`](crate::Shardex::cursor) and continue from there.
    #[error(
        "operation {index} expects the cursor \"{}\", and it is \"{}\": continue from there",
        expected.escape_ascii(),
        found.escape_ascii()
    )]
    CursorMismatch {
        /// Position of the operation in the batch.
        index: usize,
        /// Value that the batch expects.
        expected: Vec<u8>,
        /// Value of the cursor.
        found: Vec<u8>,
    },

    /// An argument of a call is out of range.
    ///
    /// Nothing has changed. To recover, correct the argument.
    #[error("argument `{argument}` is refused: {reason}: correct it")]
    InvalidArgument {
        /// Name of the argument.
        argument: &'static str,
        /// Reason of the refusal.
        reason: String,
    },

    /// A field of the configuration is out of range.
    ///
    /// Nothing has changed. To recover, correct the field.
    #[error("configuration field `{field}` is refused: {reason}: correct it")]
    Config {
        /// Name of the field.
        field: &'static str,
        /// Reason of the refusal.
        reason: String,
    },

    /// The index exists with a different configuration.
    ///
    /// Nothing has changed. To recover, call [`open`](crate::Shardex::open), which uses the stored configuration, or
    /// choose another directory.
    #[error("the index in {} has {field} {stored}, not {given}: open it as it is, or choose another directory", path.display())]
    ConfigMismatch {
        /// Directory of the index.
        path: PathBuf,
        /// Name of the field that differs.
        field: &'static str,
        /// Value on disk.
        stored: String,
        /// Value in the given configuration.
        given: String,
    },

    /// Bytes on disk differ from the bytes that were written.
    ///
    /// No damaged bytes are returned. To recover, restore the index from a copy. [`check`](crate::Shardex::check) lists
    /// all damage.
    #[error("{} is damaged at byte {offset}: {what}; restore the index from a copy", file.display())]
    Corruption {
        /// Damaged file.
        file: PathBuf,
        /// Offset of the first byte of the damaged structure.
        offset: u64,
        /// Description: the bytes or values found, and the expected ones.
        what: String,
    },

    /// The directory contains no Shardex index.
    ///
    /// To recover, call [`create`](crate::Shardex::create), or pass the right directory.
    #[error("no index in {}: {reason}; create one, or give the right directory", path.display())]
    NotFound {
        /// Directory that was opened.
        path: PathBuf,
        /// Description of the missing directory or file.
        reason: String,
    },

    /// The directory contains no whole backup.
    ///
    /// A backup that was interrupted is none. To recover, pass the right directory, or make another backup.
    #[error("no backup in {}: {reason}; give the right directory, or make another backup", path.display())]
    NotABackup {
        /// Directory that was given.
        path: PathBuf,
        /// Description of the missing directory or file.
        reason: String,
    },

    /// The directory of a new index or backup contains files that are not Shardex's, or any files.
    ///
    /// Nothing has changed. To recover, choose an empty or a new directory.
    #[error("{} is not empty: {reason}; choose an empty or a new directory", path.display())]
    AlreadyExists {
        /// Directory that was given.
        path: PathBuf,
        /// Description of the foreign file.
        reason: String,
    },

    /// A file in the place of an index file was not written by Shardex.
    ///
    /// To recover, pass the right directory, or put the right file back.
    #[error("{} is not a Shardex file: {reason}; give the right directory, or put the right file back", file.display())]
    NotAnIndex {
        /// Foreign file.
        file: PathBuf,
        /// Description of the bytes found.
        reason: String,
    },

    /// The index has a format version that this build does not read.
    ///
    /// To recover, use a build that reads that version.
    #[error("{} has format version {found}, and this build reads versions up to {supported}: use a build that reads {found}", file.display())]
    UnsupportedVersion {
        /// File with the version number.
        file: PathBuf,
        /// Version in the file. For a WAL record of an unknown kind it is the version after the one that this build
        /// reads, because a later build wrote the record.
        found: u32,
        /// Newest version that this build reads.
        supported: u32,
    },

    /// The handle only reads: the open found no space to recover.
    ///
    /// Nothing has changed, and nothing durable is lost. To recover, free some space and open the index again.
    #[error("the index only reads, because its recovery failed ({cause}): free space and open it again")]
    ReadOnly {
        /// Error of the recovery.
        cause: Box<ShardexError>,
    },

    /// The index is locked: another handle has it open, or a reader of this process still reads it.
    ///
    /// To recover, do as `holder` says. A crash of the holder's process releases the lock too.
    #[error("the index in {} {holder}", path.display())]
    Locked {
        /// Directory of the index.
        path: PathBuf,
        /// Holder of the lock.
        holder: LockHolder,
    },

    /// The handle is poisoned: a sync failed, or a file was removed or replaced, so it acknowledges nothing any more (promise
    /// P5). Calls also return this error if the writer has panicked or has ended unexpectedly.
    ///
    /// After a failed sync, searches continue on the state of the last completed flush, without later commits. After an
    /// unexpected end of the writer they continue on the last published state. To recover, close this handle and open
    /// the index again. All acknowledged writes are present then.
    #[error("writing has stopped ({cause}): close the index and open it again")]
    Poisoned {
        /// Error that poisoned the handle.
        cause: String,
    },

    /// A batch is larger than the WAL can hold.
    ///
    /// Nothing has changed. To recover, split the batch.
    #[error("the batch takes {bytes} bytes of WAL, and {limit} is the most: split it")]
    BatchTooLarge {
        /// Size of the batch in bytes of WAL.
        bytes: u64,
        /// Largest size of a batch in bytes of WAL.
        limit: u64,
    },

    /// The consistency check of a flush found a contradiction, so the flush stopped before it stored its root.
    ///
    /// The old root and the WAL are kept, so nothing acknowledged is lost. To recover, open the index again, and run a
    /// full [`check`](crate::Shardex::check). If it finds damage on the disk, restore the index from a copy. Otherwise
    /// please report the finding as a bug.
    #[error("the flush stopped, because its check found a contradiction: {finding}; open the index again and check it")]
    Inconsistent {
        /// First finding of the check.
        finding: String,
    },

    /// A write is refused because background commits or flushes fail, and too much of what was accepted is not durable.
    ///
    /// Nothing has changed. Writes accepted earlier stay accepted and visible to searches. Recovery is automatic: the
    /// timers retry, and writes are accepted again once a commit or flush succeeds. To recover sooner, fix the cause
    /// and call [`commit`](crate::Shardex::commit).
    #[error(
        "writes are refused, because accepted ones are not durable: `{limit}` is {allowed}, {found} is reached, and in the \
         background {cause}; writes are accepted again once a commit succeeds"
    )]
    Undurable {
        /// Name of the option whose value is exceeded.
        limit: &'static str,
        /// Value of the option.
        allowed: u64,
        /// Value reached, in the same unit.
        found: u64,
        /// Background error that persists.
        cause: Box<ShardexError>,
    },

    /// A flush waits for one of its syncs, and the call requires the end of that flush.
    ///
    /// Only code that drives an `Engine` step by step can get this error. Nothing has changed. To recover, finish the
    /// flush.
    #[error("a flush is in progress: finish it first")]
    FlushInProgress,

    /// A file of the open index was removed, or another file has taken its name.
    ///
    /// What was written since is not in the directory any more, so nothing is acknowledged, and the handle is
    /// [poisoned](Self::Poisoned). To recover, close the handle, put the file back if it still exists elsewhere, and open the
    /// index again.
    #[error("{} was removed or replaced while the index was open: close the handle, put the file back, and open the index again", file.display())]
    FileReplaced {
        /// Path of the file.
        file: PathBuf,
    },

    /// A purge found readers that use removed postings or payloads: snapshots, searches, or a backup under way.
    ///
    /// The index is whole, and what could be rewritten is rewritten. To recover, wait for the end of the backup, drop the snapshots
    /// and the [`Hits`](crate::Hits) of searches that began before, and call [`purge`](crate::Shardex::purge) again.
    #[error("{bytes} bytes that are to be purged are still read by {}: drop them and purge again", readers(snapshots))]
    HeldByReaders {
        /// Bytes that readers hold, in whole pages.
        bytes: u64,
        /// Last writes that the snapshots among them contain. Without one the readers are searches and their hits, or a backup.
        snapshots: Vec<Lsn>,
    },

    /// The handle is closed, or was closed during the call.
    ///
    /// To recover, open the index again.
    #[error("the index is closed: open it again")]
    Closed,
}

/// Holder of the lock of an index.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum LockHolder {
    /// Another process, as far as this process can tell. Close the index there.
    OtherProcess,
    /// A handle of this process. Close it.
    Handle,
    /// A snapshot or the [`Hits`](crate::Hits) of a search of this process whose handle is closed or dropped. Drop it.
    Reader,
}

impl std::fmt::Display for LockHolder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::OtherProcess => "is open in another process: close it there first",
            Self::Handle => "is open in this process: close that handle first",
            Self::Reader => {
                "is still read in this process, by a snapshot or the `Hits` of a search whose handle is closed: drop that first"
            }
        })
    }
}

/// Describes the readers that hold bytes.
fn readers(snapshots: &[Lsn]) -> String {
    match snapshots {
        [] => "a backup under way, or searches and their `Hits`".into(),
        [one] => format!("the snapshot of LSN {one} or its `Hits`"),
        some => format!(
            "the snapshots of LSNs {} or their `Hits`",
            some.iter().map(Lsn::to_string).collect::<Vec<_>>().join(", ")
        ),
    }
}

/// Returns the way to recover from a failed operation. A repeated sync proves nothing, because the system may have
/// dropped the bytes.
fn remedy(op: &str) -> &'static str {
    if op == "sync" { "open the index again" } else { "fix the cause and try again" }
}

impl ShardexError {
    /// Wraps an error of the operating system.
    ///
    /// A full disk or quota becomes [`OutOfSpace`](Self::OutOfSpace), unless the operation is a sync: the error of a
    /// sync is always [`Io`](Self::Io).
    #[must_use]
    pub fn io(op: &'static str, path: impl Into<PathBuf>, source: io::Error) -> Self {
        let path = path.into();
        let full = matches!(source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded);
        if full && op != "sync" {
            Self::OutOfSpace { op, path }
        } else {
            Self::Io { op, path, source: std::sync::Arc::new(source) }
        }
    }

    /// Reports whether the cause of the error is a lack of space: [`OutOfSpace`](Self::OutOfSpace), or
    /// [`ReadOnly`](Self::ReadOnly) for that reason.
    #[must_use]
    pub fn is_out_of_space(&self) -> bool {
        match self {
            Self::OutOfSpace { .. } => true,
            Self::ReadOnly { cause } => cause.is_out_of_space(),
            _ => false,
        }
    }
}
