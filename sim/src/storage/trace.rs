//! Trace of a storage: one entry for each operation that changes or syncs something, and counters.

use std::fmt;

use shardex::storage::Purpose;

/// Kind of an operation that changes or syncs something. Each operation is a crash point.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Op {
    /// `make_dir`.
    MakeDir,
    /// `sync_parent`.
    SyncParent,
    /// `create`.
    Create,
    /// `link_from`.
    Link,
    /// `rename`.
    Rename,
    /// `remove`.
    Remove,
    /// `sync_dir`.
    SyncDir,
    /// `allocate`.
    Allocate,
    /// `deallocate`.
    Deallocate,
    /// `write_at`.
    Store,
    /// `sync_range`.
    SyncRange,
    /// `sync_all`.
    SyncAll,
}

impl Op {
    /// Reports whether a successful operation makes something durable.
    #[must_use]
    pub fn is_sync(self) -> bool {
        matches!(self, Self::SyncParent | Self::SyncDir | Self::SyncRange | Self::SyncAll)
    }

    /// Returns the verb used in errors.
    pub(crate) fn verb(self) -> &'static str {
        match self {
            Self::MakeDir | Self::Create => "create",
            Self::Link => "link",
            Self::Rename => "rename",
            Self::Remove => "remove",
            Self::Allocate => "allocate",
            Self::Deallocate => "deallocate",
            Self::Store => "write",
            Self::SyncParent | Self::SyncDir | Self::SyncRange | Self::SyncAll => "sync",
        }
    }
}

/// Operation, as described before it is done.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct OpInfo {
    /// Kind of the operation.
    pub op: Op,
    /// Name by which the file was opened or created; empty for the directory itself.
    pub file: String,
    /// New name, for a rename.
    pub to: Option<String>,
    /// Offset of the first byte concerned.
    pub offset: u64,
    /// Length in bytes. 0 for operations without a range.
    pub len: u64,
    /// Purpose: the step of the protocol.
    pub purpose: Purpose,
}

/// Entry of a trace.
pub type TraceEntry = OpInfo;

impl OpInfo {
    /// Describes an operation on the directory.
    pub(crate) fn dir(op: Op, purpose: Purpose) -> Self {
        Self::file(op, "", 0, 0, purpose)
    }

    /// Describes an operation on a file.
    pub(crate) fn file(op: Op, file: &str, offset: u64, len: u64, purpose: Purpose) -> Self {
        Self { op, file: file.to_owned(), to: None, offset, len, purpose }
    }

    /// Describes a rename.
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
            Op::Allocate | Op::Deallocate | Op::Store | Op::SyncRange => write!(f, " {offset}+{len}")?,
            _ => {}
        }
        write!(f, " ({purpose})")
    }
}

/// Counters of operations and faults. A fault that never fired tested nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Counters {
    /// Successful stores, including torn ones.
    pub stores: u64,
    /// Bytes of these stores.
    pub bytes_stored: u64,
    /// Successful allocations.
    pub allocations: u64,
    /// Successful deallocations.
    pub deallocations: u64,
    /// Successful syncs of a file or a range of it.
    pub file_syncs: u64,
    /// Successful syncs of the directory or its parent.
    pub dir_syncs: u64,
    /// Files created, renamed and removed.
    pub entry_changes: u64,
    /// Reads by copying.
    pub reads: u64,
    /// Leases.
    pub loans: u64,
    /// Syncs that failed by a fault (R8).
    pub failed_syncs: u64,
    /// Syncs of the parent among the failed ones.
    pub failed_parent_syncs: u64,
    /// Syncs that lied by a fault (R13).
    pub lying_syncs: u64,
    /// Stores and deallocations that failed by a fault (R9, R15).
    pub failed_stores: u64,
    /// Allocations refused for lack of space (R9).
    pub refused_allocations: u64,
    /// Reads that failed by a fault (R13).
    pub failed_reads: u64,
    /// Reads that returned a stale sector by a fault (R13).
    pub stale_reads: u64,
    /// Syncs with a sector misdirected by a fault (R13).
    pub misdirected_syncs: u64,
    /// Bits flipped by a fault (R13).
    pub rotten_bits: u64,
    /// Creations and renames refused for lack of space (R9).
    pub refused_creations: u64,
    /// Changes of entries that failed by a fault.
    pub failed_entries: u64,
    /// Jumps of the clock (R14).
    pub clock_jumps: u64,
    /// Power cuts.
    pub power_cuts: u64,
    /// Process crashes.
    pub process_crashes: u64,
    /// Sectors filled with garbage by a power cut (R3).
    pub garbage_sectors: u64,
    /// Locks refused because the file was locked (R12).
    pub refused_locks: u64,
    /// Operations refused after the machine had stopped.
    pub refused_without_power: u64,
}
