//! The one error type of the crate.
//!
//! Every variant names what is wrong (file, offset, argument or index) and its documentation says how
//! to recover.

use std::{io, path::PathBuf};

/// Result of every fallible call of this crate.
pub type Result<T, E = ShardexError> = std::result::Result<T, E>;

/// What can go wrong, and what to do about it.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum ShardexError {
    /// The operating system refused an operation on a file.
    ///
    /// The call that returned this changed nothing unless its documentation says otherwise. Recover
    /// by mending what the source error names (permissions, a dying disk) and calling again.
    #[error("{op} of {} failed: {source}", path.display())]
    Io {
        /// The operation, as a verb: `read`, `write`, `sync`, …
        op: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// What the operating system said.
        source: std::sync::Arc<io::Error>,
    },

    /// The disk, quota or file system has no room.
    ///
    /// Nothing is lost and nothing has changed: make room and call again.
    #[error("no space left for the {op} of {}: make room and try again", path.display())]
    OutOfSpace {
        /// The operation, as a verb.
        op: &'static str,
        /// The file.
        path: PathBuf,
    },

    /// A vector has another number of components than the index.
    ///
    /// Nothing was changed. Recover by giving vectors of the index's dimension.
    #[error("vector {index} has {actual} numbers, and this index holds vectors of {expected}")]
    InvalidDimension {
        /// Position of the vector in the call's argument; 0 for a query.
        index: usize,
        /// Dimension of the index.
        expected: usize,
        /// Length of the vector given.
        actual: usize,
    },

    /// A vector cannot be stored or searched for: NaN, infinite, too long, or zero under cosine.
    ///
    /// Nothing was changed. Recover by leaving that vector out or mending it.
    #[error("vector {index} is refused: {reason}")]
    InvalidVector {
        /// Position of the vector in the call's argument; 0 for a query.
        index: usize,
        /// Why.
        reason: String,
    },

    /// A posting cannot be stored: zero length, or a range past `u32::MAX`.
    ///
    /// Nothing was changed. Recover by mending the posting at this index.
    #[error("posting {index} is refused: {reason}")]
    InvalidPosting {
        /// Position of the posting in the call's argument.
        index: usize,
        /// Why.
        reason: String,
    },

    /// An argument of a call is out of range.
    ///
    /// Nothing was changed.
    #[error("argument `{argument}` is refused: {reason}")]
    InvalidArgument {
        /// The argument's name.
        argument: &'static str,
        /// Why.
        reason: String,
    },

    /// A field of the configuration is out of range.
    ///
    /// Nothing was changed.
    #[error("configuration field `{field}` is refused: {reason}")]
    Config {
        /// The field's name.
        field: &'static str,
        /// Why.
        reason: String,
    },

    /// The index exists with another configuration.
    ///
    /// Nothing was changed. Recover by opening it with [`open`](crate::Shardex::open), which takes the
    /// stored configuration, or by choosing another directory.
    #[error("the index in {} has {field} {stored}, not {given}: open it as it is, or choose another directory", path.display())]
    ConfigMismatch {
        /// The directory.
        path: PathBuf,
        /// The field that differs.
        field: &'static str,
        /// The value on disk.
        stored: String,
        /// The value asked for.
        given: String,
    },

    /// Bytes on disk are not what was written there.
    ///
    /// Nothing is served from the damaged place. Recover by restoring the index from a copy; `check`
    /// lists every damaged place.
    #[error("{} is damaged at byte {offset}: {what}", file.display())]
    Corruption {
        /// The file.
        file: PathBuf,
        /// First byte of the damaged structure.
        offset: u64,
        /// What was found, and what was expected.
        what: String,
    },

    /// The directory holds no Shardex index.
    ///
    /// Recover by calling [`create`](crate::Shardex::create), or by naming the right directory.
    #[error("no index in {}: {reason}", path.display())]
    NotFound {
        /// The directory.
        path: PathBuf,
        /// What is missing.
        reason: String,
    },

    /// The directory is in use for something else.
    ///
    /// Nothing was changed. Recover by choosing an empty or a new directory.
    #[error("{} cannot become an index: {reason}", path.display())]
    AlreadyExists {
        /// The directory.
        path: PathBuf,
        /// What stands in the way.
        reason: String,
    },

    /// A file that should belong to an index was not written by Shardex.
    ///
    /// Recover by naming the right directory, or by putting the right file back.
    #[error("{} is not a Shardex file: {reason}", file.display())]
    NotAnIndex {
        /// The file.
        file: PathBuf,
        /// What was found.
        reason: String,
    },

    /// The index was written by another version of the format.
    ///
    /// Recover by using a build that reads that version.
    #[error("{} has format version {found}, and this build reads version {supported}", file.display())]
    UnsupportedVersion {
        /// The file.
        file: PathBuf,
        /// Version in the file.
        found: u32,
        /// Version this build reads.
        supported: u32,
    },

    /// Another handle has the index open, or a reader of this process still holds bytes of it.
    ///
    /// Recover as `holder` says; a crash of its process releases the lock too.
    #[error("the index in {} {holder}", path.display())]
    Locked {
        /// The directory.
        path: PathBuf,
        /// Who holds the lock.
        holder: LockHolder,
    },

    /// A sync failed, so nothing more can be acknowledged on this handle (promise P5).
    ///
    /// Searches go on from the last durable root. Recover by closing this handle and opening the
    /// index again: what was acknowledged is there.
    #[error("writing has stopped since a sync failed ({cause}): close the index and open it again")]
    Poisoned {
        /// The error that poisoned the handle.
        cause: String,
    },

    /// A batch is larger than the WAL can ever hold.
    ///
    /// Nothing was changed. Recover by splitting the batch.
    #[error("the batch takes {bytes} bytes of WAL, and {limit} is the most: split it")]
    BatchTooLarge {
        /// Bytes the batch would take.
        bytes: u64,
        /// The most it may take.
        limit: u64,
    },

    /// The consistency check of a flush found a contradiction, so the flush stopped before the root.
    ///
    /// The old root and the WAL are kept: nothing is lost. Recover by opening the index again, and
    /// report the finding as a bug.
    #[error("the flush stopped, for the state contradicts itself: {finding}")]
    Inconsistent {
        /// The first finding.
        finding: String,
    },

    /// Commits or flushes in the background fail, and more is accepted and not durable than the options allow.
    ///
    /// Nothing was changed. What was accepted stays accepted, and is searched. It recovers by itself: the timers try again,
    /// and once a commit succeeds writes go on. Recover sooner by mending what the cause names and calling
    /// [`commit`](crate::Shardex::commit).
    #[error(
        "writes are refused, for accepted ones are not durable: `{limit}` is {allowed}, {found} is reached, and in the \
         background {cause}; writes go on by themselves once a commit succeeds"
    )]
    Undurable {
        /// The option that is exceeded.
        limit: &'static str,
        /// Its value.
        allowed: u64,
        /// What is reached, in the same unit.
        found: u64,
        /// The background error that lasts.
        cause: Box<ShardexError>,
    },

    /// A flush waits for one of its syncs, and this call needs that flush to be over first.
    ///
    /// Only whoever drives an `Engine` step by step can meet this. Nothing was changed. Recover by
    /// finishing the flush.
    #[error("a flush is in progress: finish it first")]
    FlushInProgress,

    /// The handle was closed, maybe while this call was under way.
    ///
    /// Recover by opening the index again.
    #[error("the index is closed")]
    Closed,
}

/// Who holds the lock of an index.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum LockHolder {
    /// Another process, as far as this one knows. Close the index there.
    OtherProcess,
    /// A handle of this process. Close it.
    Handle,
    /// A snapshot or a search result of this process whose handle is closed or gone. Drop it.
    Reader,
}

impl std::fmt::Display for LockHolder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::OtherProcess => "is open in another process: close it there first",
            Self::Handle => "is open in this process: close that handle first",
            Self::Reader => {
                "is still read in this process, by a snapshot or a search result whose handle is closed: drop that first"
            }
        })
    }
}

impl ShardexError {
    /// Wraps an error of the operating system; one that says "no space" becomes
    /// [`OutOfSpace`](Self::OutOfSpace).
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

    /// Whether room on the disk is all that is missing.
    #[must_use]
    pub fn is_out_of_space(&self) -> bool {
        matches!(self, Self::OutOfSpace { .. })
    }
}
