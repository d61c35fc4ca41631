//! Independent checker for the files of an index, written from FORMAT.md alone.
//!
//! It has its own parsers for every structure of the format and imports nothing from the engine. A mistake in the
//! engine's parsers is therefore not repeated here. The input is bytes, the output is a [`Report`]. The same bytes
//! always give the same report.
//!
//! # Invariants
//! 1. No input causes a panic or an endless loop. Every number is checked before it is used. In the tree of a root,
//!    each pointer target is visited at most once, so there is no cycle.
//! 2. A finding names a file and an offset. If it concerns the tree of a root, it also names that root's slot.
//! 3. One unreadable root slot is not a finding, because a crash may tear it. A torn tail of the WAL is not a finding
//!    either.
//! 4. [`Level::Metadata`] reads no vectors and no cell groups.

mod block;
#[cfg(test)]
pub(crate) mod build;
mod bytes;
mod cells;
mod check;
mod contents;
pub mod encodings;
#[cfg(test)]
mod faults;
#[cfg(test)]
mod faults_cells;
#[cfg(test)]
mod faults_files;
#[cfg(test)]
mod faults_log;
#[cfg(test)]
mod faults_map;
#[cfg(test)]
mod fuzz;
pub mod log;
mod log_batch;
mod payloads;
mod report;
pub mod root;
mod space;
mod states;
mod tree;

use bytes::{u32_at, u64_at};

pub use bytes::{crc, crc_on};
pub use contents::{Contents, Key, Posting, contents, normalised};
pub use encodings::Encoding;
pub use log::{End, Log, Record, RecordBody, RecordKind};
pub use log_batch::{Added, Batch};
pub use report::{Report, RootSlot, ShardInfo, Tree};
pub use root::{Invalid, Metric, Parameters, RootInfo};
pub use space::{Span, used_map};
pub use tree::walk;

/// Bytes of the files of an index; `None` for a missing file.
#[derive(Clone, Copy, Debug, Default)]
pub struct Files<'a> {
    /// Bytes of the file `root`.
    pub root: Option<&'a [u8]>,
    /// Bytes of the file `data`.
    pub data: Option<&'a [u8]>,
    /// Bytes of the file `wal`.
    pub wal: Option<&'a [u8]>,
}

/// Depth of a check.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Checks the roots, nodes, shard states, head and table of the cells, and the WAL.
    Metadata,
    /// Checks extents and cell groups as well.
    Full,
}

/// Kind of a finding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum FindingKind {
    /// Neither slot holds a valid root.
    NoRoot,
    /// A file is missing.
    MissingFile,
    /// A file is shorter than a root, or its own structure, requires.
    TruncatedFile,
    /// A structure doesn't start with its magic bytes.
    BadMagic,
    /// A structure has another format version.
    BadVersion,
    /// A root has a valid checksum, but its configuration, epoch, segment, generation or WAL offset is invalid.
    BadConfiguration,
    /// The two roots can't belong to one history.
    RootsContradict,
    /// A root, header or segment has another index id.
    ForeignIndexId,
    /// The checksum of a structure differs from the one in its parent, or from its own if it has no parent.
    ChecksumMismatch,
    /// Two references in one tree name the same first page.
    DoubleReference,
    /// Two page ranges share pages.
    Overlap,
    /// A page range, number or reference exceeds its limit.
    OutOfBounds,
    /// An extent isn't at a multiple of the extent size in its chunk, or a page range crosses the end of its chunk.
    Misaligned,
    /// A chunk holds both extents and metadata.
    ChunkMixed,
    /// The length of a structure contradicts its contents.
    WrongLength,
    /// The shard number of a state, or the counts of a cell group, differ from those in the parent.
    WrongParent,
    /// A stored count differs from the number of things counted.
    CountMismatch,
    /// Two shards have the same id.
    DuplicateId,
    /// A key has two live postings.
    DuplicateKey,
    /// A stored sum of vectors differs from the sum of the live vectors.
    SumMismatch,
    /// A stored vector isn't normalised, or its stored norm is invalid.
    BadNorm,
    /// The scale of a vector of 8-bit integers isn't the one that its components give, or its padding isn't zeros.
    BadScale,
    /// Bytes that must be zeros hold something else.
    NonZeroReserved,
    /// The covered shards of the cell table aren't in ascending order.
    NotAscending,
    /// The WAL has a hole: it ends before an LSN that a frame elsewhere states to be durable.
    LogHole,
    /// Two segments of an epoch have the same number, or the first LSN of a segment contradicts the chain of frames.
    BadSegment,
    /// The frames of a record don't form one, or its payload is malformed.
    BadRecord,
    /// A page is in use, but neither a root, nor a reader, nor the working state needs it.
    Leak,
    /// A page is free, but a root, a reader or the working state needs it.
    FreeButLive,
}

/// Part of an index that a finding concerns. Damaged cells cost only speed; damaged extents are found when they are
/// read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Part {
    /// A root, or a file as a whole.
    Root,
    /// The header of a file.
    Header,
    /// A node of the directory.
    Node,
    /// The state of a shard.
    State,
    /// An extent.
    Extent,
    /// A bucket of payloads, or a node of the directory of buckets.
    Bucket,
    /// The bytes of a payload or of the cursor.
    Payload,
    /// The head, the table or a group of the cells.
    Cells,
    /// The WAL.
    Log,
    /// The allocation of the pages of `data`.
    Space,
}

/// One fault in the files of an index.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// Kind of the fault.
    pub kind: FindingKind,
    /// Part of the index that the fault concerns.
    pub part: Part,
    /// Slot of the root whose tree has the fault, if it is in a tree.
    pub slot: Option<usize>,
    /// Name of the file.
    pub file: &'static str,
    /// Offset in the file, in bytes.
    pub offset: u64,
    /// Description for people.
    pub what: String,
}

impl std::fmt::Display for Finding {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { kind, part, slot, file, offset, what } = self;
        write!(f, "{kind:?} of {part:?} in {file} at {offset}")?;
        if let Some(slot) = slot {
            write!(f, " (root in slot {slot})")?;
        }
        write!(f, ": {what}")
    }
}

/// Directory entry: a block pointer into `data` with the checksum of the bytes there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Entry {
    /// First page.
    pub page: u64,
    /// Length in bytes.
    pub len: u32,
    /// CRC32C of those bytes.
    pub crc: u32,
}

impl Entry {
    /// Reads the entry at byte `at` of `bytes`; `None` if it reaches past their end.
    #[must_use]
    pub fn read(bytes: &[u8], at: u64) -> Option<Self> {
        Some(Self {
            page: u64_at(bytes, at)?,
            len: u32_at(bytes, at.checked_add(8)?)?,
            crc: u32_at(bytes, at.checked_add(12)?)?,
        })
    }

    /// Reports whether the entry is all zeros, so that it points to nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// Contents of an allocation in `data`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum What {
    /// Node of the directory; the lowest nodes have level 0.
    Node {
        /// Level of the node.
        level: u32,
        /// Index of the node in its level.
        index: u32,
    },
    /// State of a shard.
    State {
        /// Number of the shard.
        shard: u32,
    },
    /// Extent of a shard.
    Extent {
        /// Number of the shard.
        shard: u32,
        /// Index of the extent within its shard.
        index: u32,
        /// Number of its slots in use.
        used_slots: u32,
        /// CRC32C of the slots in use, as in the shard state.
        crc: u32,
    },
    /// Head of the cells.
    CellsHead,
    /// Part of the cell table.
    CellsPart,
    /// Cell group.
    CellsGroup,
    /// Page of tags of a shard.
    Tags {
        /// Number of the shard.
        shard: u32,
        /// Index of the page within its shard.
        index: u32,
    },
    /// Node of the directory of buckets; the lowest nodes have level 0.
    BucketNode {
        /// Level of the node.
        level: u32,
        /// Index of the node in its level.
        index: u32,
    },
    /// Part of a bucket of payloads.
    Bucket {
        /// Number of the bucket.
        bucket: u32,
        /// Index of the part.
        index: u32,
    },
    /// Block of payloads.
    Block,
}

impl What {
    /// Reports whether the allocation is an extent; everything else is metadata.
    #[must_use]
    pub fn is_extent(&self) -> bool {
        matches!(self, Self::Extent { .. })
    }

    fn part(&self) -> Part {
        match self {
            Self::Node { .. } => Part::Node,
            Self::State { .. } => Part::State,
            Self::Extent { .. } => Part::Extent,
            Self::CellsHead | Self::CellsPart | Self::CellsGroup => Part::Cells,
            Self::Tags { .. } => Part::State,
            Self::BucketNode { .. } | Self::Bucket { .. } => Part::Bucket,
            Self::Block => Part::Payload,
        }
    }
}

/// Allocation of `data` that a root reaches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PageSpan {
    /// First page.
    pub page: u64,
    /// Number of pages, at least 1.
    pub pages: u64,
    /// Length of the contents in bytes, from the start of the first page.
    pub bytes: u64,
    /// Contents of the pages.
    pub what: What,
}

impl PageSpan {
    /// Returns the first page after the allocation.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.page + self.pages
    }
}

/// Checks the files of an index.
#[must_use]
pub fn fsck(files: &Files<'_>, level: Level) -> Report {
    check::check(files, level)
}
