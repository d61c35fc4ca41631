//! What was asked of a storage: one entry for each operation that changes or syncs something, and the sums.

use std::fmt;

use shardex::storage::Purpose;

/// A kind of operation that changes or syncs something. Each is a crash point.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Op {
    /// `make_dir`.
    MakeDir,
    /// `sync_parent`.
    SyncParent,
    /// `create`.
    Create,
    /// `rename`.
    Rename,
    /// `remove`.
    Remove,
    /// `sync_dir`.
    SyncDir,
    /// `allocate`.
    Allocate,
    /// `write_at`.
    Store,
    /// `sync_range`.
    SyncRange,
    /// `sync_all`.
    SyncAll,
}

impl Op {
    /// Whether a success makes something durable.
    #[must_use]
    pub fn is_sync(self) -> bool {
        matches!(self, Self::SyncParent | Self::SyncDir | Self::SyncRange | Self::SyncAll)
    }

    /// The operation as errors name it.
    pub(crate) fn verb(self) -> &'static str {
        match self {
            Self::MakeDir | Self::Create => "create",
            Self::Rename => "rename",
            Self::Remove => "remove",
            Self::Allocate => "allocate",
            Self::Store => "write",
            Self::SyncParent | Self::SyncDir | Self::SyncRange | Self::SyncAll => "sync",
        }
    }
}

/// One operation, before it is done.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct OpInfo {
    /// Its kind.
    pub op: Op,
    /// The name that the file was opened or created by; empty for the directory itself.
    pub file: String,
    /// The new name, of a rename.
    pub to: Option<String>,
    /// First byte concerned.
    pub offset: u64,
    /// Bytes concerned; of an allocation, the length wanted. 0 where a range makes no sense.
    pub len: u64,
    /// Its step in the protocol.
    pub purpose: Purpose,
}

/// An operation in a trace.
pub type TraceEntry = OpInfo;

impl OpInfo {
    /// An operation on the directory.
    pub(crate) fn dir(op: Op, purpose: Purpose) -> Self {
        Self::file(op, "", 0, 0, purpose)
    }

    /// An operation on a file.
    pub(crate) fn file(op: Op, file: &str, offset: u64, len: u64, purpose: Purpose) -> Self {
        Self { op, file: file.to_owned(), to: None, offset, len, purpose }
    }

    /// A rename.
    pub(crate) fn rename(from: &str, to: &str, purpose: Purpose) -> Self {
        Self { to: Some(to.to_owned()), ..Self::file(Op::Rename, from, 0, 0, purpose) }
    }
}

impl fmt::Display for OpInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { op, file, to, offset, len, purpose } = self;
        write!(f, "{op:?}")?;
        if !file.is_empty() {
            write!(f, " {file}")?;
        }
        match op {
            Op::Rename => write!(f, " -> {}", to.as_deref().unwrap_or("?"))?,
            Op::Allocate => write!(f, " to {len}")?,
            Op::Store | Op::SyncRange => write!(f, " {offset}+{len}")?,
            _ => {}
        }
        write!(f, " ({purpose})")
    }
}

/// How often what happened. A fault that never fired tested nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Counters {
    /// Stores that were done.
    pub stores: u64,
    /// Bytes of those.
    pub bytes_stored: u64,
    /// Allocations that were done.
    pub allocations: u64,
    /// Syncs of a file or a part of it that returned `Ok`.
    pub file_syncs: u64,
    /// Syncs of the directory or its parent that returned `Ok`.
    pub dir_syncs: u64,
    /// Files made, renamed and removed.
    pub entry_changes: u64,
    /// Reads by copying.
    pub reads: u64,
    /// Loans.
    pub loans: u64,
    /// Syncs that failed by order (R8).
    pub failed_syncs: u64,
    /// Of those, syncs of the parent.
    pub failed_parent_syncs: u64,
    /// Syncs that lied by order (R13).
    pub lying_syncs: u64,
    /// Stores that failed by order (R9).
    pub failed_stores: u64,
    /// Allocations refused for want of space (R9).
    pub refused_allocations: u64,
    /// Reads that failed by order (R13).
    pub failed_reads: u64,
    /// Reads that returned a stale sector by order (R13).
    pub stale_reads: u64,
    /// Syncs of which one sector went elsewhere by order (R13).
    pub misdirected_syncs: u64,
    /// Bits that flipped by order (R13).
    pub rotten_bits: u64,
    /// Creations refused for want of space (R9).
    pub refused_creations: u64,
    /// Changes of entries that failed by order.
    pub failed_entries: u64,
    /// Jumps of the clock (R14).
    pub clock_jumps: u64,
    /// Power cuts.
    pub power_cuts: u64,
    /// Crashes of the process.
    pub process_crashes: u64,
    /// Sectors that a power cut filled with garbage (R3).
    pub garbage_sectors: u64,
    /// Opens refused while another had the lock (R12).
    pub refused_locks: u64,
    /// Operations refused since the power was gone.
    pub refused_without_power: u64,
}
