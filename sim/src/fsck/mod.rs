//! A file-system check for indexes, written from FORMAT.md alone.
//!
//! It owns parsers of its own for every structure of the format and imports nothing from the engine, so that a mistake
//! of the engine's parsers is none of its. Bytes go in, a [`Report`] comes out; the same bytes give the same report.
//!
//! # Invariants
//! 1. No input makes it panic or loop: every number read is checked before it is used, and no page is visited twice as
//!    the same level of a tree.
//! 2. A finding names a file, an offset and, where a root's tree is concerned, that root's slot.
//! 3. One unreadable slot alone is no finding: a crash may tear it. Neither is a torn end of the log.
//! 4. [`Level::Metadata`] reads no vector and no group of cells.

#[cfg(test)]
pub(crate) mod build;
mod bytes;
mod cells;
mod contents;
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
mod report;
pub mod root;
mod space;
mod tree;

use bytes::{u32_at, u64_at};

pub use bytes::{crc, crc_on};
pub use contents::{Contents, Key, Posting, contents, normalised};
pub use log::{End, Log, Record, RecordBody, RecordKind};
pub use report::{Report, ShardInfo, Slot, Tree};
pub use root::{Geometry, Invalid, Metric, RootInfo};
pub use space::{Span, used_map};
pub use tree::walk;

/// The files of an index as bytes; `None` for one that is not there.
#[derive(Clone, Copy, Debug, Default)]
pub struct Files<'a> {
    /// The file `root`.
    pub root: Option<&'a [u8]>,
    /// The file `data`.
    pub data: Option<&'a [u8]>,
    /// The file `wal`.
    pub wal: Option<&'a [u8]>,
}

/// How much is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Roots, nodes, states, the cells' head and table, the log.
    Metadata,
    /// Also extents and groups of cells.
    Full,
}

/// What is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// Neither slot holds a root.
    NoRoot,
    /// A file is not there.
    MissingFile,
    /// A file is shorter than a root, or its own structure, says.
    TruncatedFile,
    /// Bytes do not begin as what they are named as.
    BadMagic,
    /// Another version of the format.
    BadVersion,
    /// A root's configuration is none.
    BadConfiguration,
    /// Two roots can't be of one history.
    RootsContradict,
    /// Bytes are of another index.
    ForeignIndexId,
    /// Bytes are not those that their parent names, or that their own sum covers.
    ChecksumMismatch,
    /// A place is named twice.
    DoubleReference,
    /// Two places share pages.
    Overlap,
    /// A place, a number or a reference lies beyond what there is.
    OutOfBounds,
    /// A place is not where places of its kind begin, or reaches over the end of its chunk.
    Misaligned,
    /// A chunk holds both extents and metadata.
    ChunkMixed,
    /// A structure is not as long as its contents say.
    WrongLength,
    /// A child says that it is another one.
    WrongParent,
    /// A count is not that of what is counted.
    CountMismatch,
    /// Two shards have one id.
    DuplicateId,
    /// A key has two live postings.
    DuplicateKey,
    /// A sum of vectors is not that of the live ones.
    SumMismatch,
    /// A stored vector is not normalised, or its norm is none.
    BadNorm,
    /// Bytes that are zeros hold something.
    NonZeroReserved,
    /// Entries do not ascend.
    NotAscending,
    /// The log ends before a record that was durable.
    LogHole,
    /// Two segments of an epoch have one number, or a segment contradicts its chain.
    BadSegment,
    /// A record's frames do not make one, or its payload is none.
    BadRecord,
    /// A page is used that nobody needs.
    Leak,
    /// A page is free that a root needs.
    FreeButLive,
}

/// What part of an index is concerned: damaged cells cost speed alone, damaged extents are found when they are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Part {
    /// A root, or a file as a whole.
    Root,
    /// The header of a file.
    Header,
    /// A node of the directory.
    Node,
    /// A shard's state.
    State,
    /// An extent.
    Extent,
    /// Cells: head, table or group.
    Cells,
    /// The log.
    Log,
    /// The division of `data` among the above.
    Space,
}

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// What.
    pub kind: Kind,
    /// With what.
    pub part: Part,
    /// In which slot's root's tree, if in one.
    pub slot: Option<usize>,
    /// The file.
    pub file: &'static str,
    /// Where in it.
    pub offset: u64,
    /// For people.
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

/// A place in `data` with the sum of its bytes: a directory entry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Entry {
    /// First page.
    pub page: u64,
    /// Bytes.
    pub len: u32,
    /// CRC32C of those.
    pub crc: u32,
}

impl Entry {
    /// The entry at `at` of `bytes`.
    #[must_use]
    pub fn read(bytes: &[u8], at: u64) -> Option<Self> {
        Some(Self {
            page: u64_at(bytes, at)?,
            len: u32_at(bytes, at.checked_add(8)?)?,
            crc: u32_at(bytes, at.checked_add(12)?)?,
        })
    }

    /// Whether it points to nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// What a run of pages holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum What {
    /// A node of the directory; the lowest ones are of level 0.
    Node {
        /// Its level.
        level: u32,
    },
    /// A shard's state.
    State {
        /// The shard's number.
        shard: u32,
    },
    /// An extent.
    Extent {
        /// The shard's number.
        shard: u32,
        /// Which of its extents.
        index: u32,
        /// Slots of it that are used.
        used_slots: u32,
        /// CRC32C of those.
        crc: u32,
    },
    /// The cells' head.
    CellsHead,
    /// A part of the cells' table.
    CellsPart,
    /// A group of cells.
    CellsGroup,
}

impl What {
    /// Whether it is an extent; everything else is metadata.
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
        }
    }
}

/// A run of pages of `data` that a root reaches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Run {
    /// First page.
    pub page: u64,
    /// Pages, at least 1.
    pub pages: u64,
    /// Bytes that mean something, from the first page's start on.
    pub bytes: u64,
    /// What it holds.
    pub what: What,
}

impl Run {
    /// The first page behind it.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.page + self.pages
    }
}

/// Checks the files of an index.
#[must_use]
pub fn fsck(files: &Files<'_>, level: Level) -> Report {
    report::check(files, level)
}
