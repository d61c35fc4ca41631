//! Failpoints and coverage marks for the mutation test.
//!
//! `holds!` and `protects!` evaluate a condition and return it. A mutation test disables one of them at a time, to show
//! that some test depends on it: a disabled `holds!` is `true`, a disabled `protects!` is `false`. Without the feature
//! `mutants` both always return their condition.
//!
//! A failpoint is such a condition. Its identity is the position of the macro in the source. Inside a `#[track_caller]`
//! function it is the position of that function's call, so that each caller is a failpoint of its own.
//!
//! A coverage mark counts a branch that a test run must reach.

/// Kind of a failpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum FailpointKind {
    /// Compares a checksum.
    Checksum,
    /// Detects or handles an error, or a state in which an operation is not allowed.
    ErrorCheck,
    /// Keeps an order: an allocation is reused only once it is free, a record appended only in an open epoch.
    Ordering,
    /// Keeps the recall of searches. Crash tests do not depend on it, recall tests do.
    Recall,
}

/// Evaluates a condition that must hold before the engine continues. Disabled, it is `true`.
macro_rules! holds {
    ($kind:ident, $condition:expr $(,)?) => {
        $crate::failpoint::condition($crate::failpoint::FailpointKind::$kind, true, $condition)
    };
}

/// Evaluates a condition under which the engine protects its data. Disabled, it is `false`. Without a condition it is
/// `true` unless disabled.
macro_rules! protects {
    ($kind:ident) => {
        protects!($kind, true)
    };
    ($kind:ident, $condition:expr $(,)?) => {
        $crate::failpoint::condition($crate::failpoint::FailpointKind::$kind, false, $condition)
    };
}

/// Counts that a branch ran. Does nothing without the feature `internals`.
macro_rules! reached {
    ($mark:ident) => {
        $crate::failpoint::reach($crate::failpoint::Mark::$mark)
    };
}

pub(crate) use {holds, protects, reached};

/// Returns the condition, or `disabled` at the failpoint that a test has disabled.
#[inline]
#[cfg_attr(feature = "mutants", track_caller)]
pub(crate) fn condition(kind: FailpointKind, disabled: bool, condition: bool) -> bool {
    #[cfg(feature = "mutants")]
    let condition = if mutants::is_disabled(kind) { disabled } else { condition };
    #[cfg(not(feature = "mutants"))]
    let _ = (kind, disabled);
    condition
}

/// Declares the coverage marks, each with its text.
macro_rules! marks {
    ($($(#[doc = $text:literal])+ $mark:ident,)+) => {
        /// Coverage mark: a branch of the engine that test runs count.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Mark {
            $($(#[doc = $text])+ $mark,)+
        }

        impl Mark {
            /// All coverage marks.
            pub const ALL: &[Self] = &[$(Self::$mark),+];

            /// Returns the text of the mark, for reports.
            #[must_use]
            pub fn text(self) -> &'static str {
                match self {
                    $(Self::$mark => concat!($($text),+).trim_ascii(),)+
                }
            }
        }
    };
}

marks! {
    /// remains of an interrupted create were removed
    LeftoversCleared,
    /// an index was opened without a recovery
    CleanOpen,
    /// the older root was used
    OlderRootUsed,
    /// the tree of an older root was damaged
    OlderTreeDamaged,
    /// a root was stored again in an unreadable slot
    RestoredInOtherSlot,
    /// a root file of epoch 1 was replaced
    RootFileReplaced,
    /// a search by a filter compared rounded copies
    RowsSearched,
    /// rounded copies of a filter were used for a later snapshot
    RowsKept,
    /// a record was replayed
    RecordReplayed,
    /// an open found no space, and the handle only reads
    ReadOnly,
    /// a torn tail was found
    TornTail,
    /// a hole before acknowledged records was found
    HoleFound,
    /// frames were found behind an invalid segment header
    HeadlessSegment,
    /// a record was stored in several segments
    RecordOverSegments,
    /// the WAL grew
    WalGrew,
    /// a segment was recycled
    SegmentRecycled,
    /// the space of a free segment was given back
    SegmentReleased,
    /// space of a segment was reserved again
    SegmentReserved,
    /// the data file grew
    DataGrew,
    /// free space was given back
    SpaceReleased,
    /// space that was given back was allocated again
    SpaceReserved,
    /// a twin of the newest root freed what only the older root needed
    TrimmedByTwin,
    /// the data file could grow by one chunk only
    GrewByOne,
    /// a shard was split
    Split,
    /// a shard was rewritten without its removed postings
    Rewritten,
    /// a compaction rewrote shards
    Compacted,
    /// a purge rewrote shards
    ShardsPurged,
    /// a purge moved payloads
    PayloadsPurged,
    /// a purge wiped the WAL
    LogWiped,
    /// a purge ended
    Purged,
    /// a code led to a posting that a rewrite had moved
    FormerSlotFound,
    /// a split moved a posting to a neighbour
    Moved,
    /// a split took a posting from a neighbour
    Adopted,
    /// a shard was merged into its neighbours
    Merged,
    /// a part of a large batch became a shard
    Loaded,
    /// a shard without postings was removed
    ShardFreed,
    /// cells were built
    CellsBuilt,
    /// cells kept their groups
    GroupsKept,
    /// a cancelled build kept its centroids
    CentroidsLeft,
    /// damaged cells were ignored
    CellsLost,
    /// a batch was undone
    BatchUndone,
    /// shard states were stored in one write
    StatesTogether,
    /// a flush was undone
    FlushAborted,
    /// a flush stored its root again after an error
    RootStoredAgain,
    /// a flush found the WAL synced by a commit
    WalSyncedMeanwhile,
    /// payloads of a sparse block were moved
    PayloadsMoved,
    /// the last payload of a block was removed
    BlockFreed,
    /// a payload was stored in several runs
    PayloadInRuns,
    /// a bucket of payloads was added
    BucketAdded,
    /// a bucket of payloads was removed
    BucketRemoved,
    /// a page of tags was stored
    TagsStored,
    /// a page of tags was named again by a later state
    TagsKept,
    /// an index was upgraded
    Upgraded,
    /// an allocation was freed
    PlaceFreed,
    /// an allocation waited for a root that names it
    PlaceHeld,
    /// the engine was poisoned
    Poisoned,
}

/// Counts that the branch of a mark ran. Called by `reached!`.
#[inline]
pub(crate) fn reach(mark: Mark) {
    #[cfg(feature = "internals")]
    mutants::note(mark);
    #[cfg(not(feature = "internals"))]
    let _ = mark;
}

/// Control of failpoints by tests: disables a failpoint, and lists the evaluated failpoints and reached marks. All
/// state belongs to the calling thread, so that threads can test different failpoints.
///
/// Without the feature `mutants` no failpoint is listed, and none can be disabled.
#[cfg(feature = "internals")]
pub mod mutants {
    use std::{
        cell::{Cell, RefCell},
        collections::{BTreeMap, BTreeSet},
        fmt,
    };

    use super::{FailpointKind, Mark};

    /// Failpoint: a position in the source, with its kind.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
    pub struct Failpoint {
        /// Kind of the failpoint.
        pub kind: FailpointKind,
        /// Source file.
        pub file: &'static str,
        /// Line in the file.
        pub line: u32,
        /// Column in the line.
        pub column: u32,
    }

    impl fmt::Display for Failpoint {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(f, "{}:{}:{}", self.file, self.line, self.column)
        }
    }

    thread_local! {
        static DISABLED: Cell<Option<Failpoint>> = const { Cell::new(None) };
        static EVALUATED: RefCell<Option<BTreeSet<Failpoint>>> = const { RefCell::new(None) };
        static REACHED: RefCell<BTreeMap<Mark, u64>> = const { RefCell::new(BTreeMap::new()) };
    }

    pub(super) fn note(mark: Mark) {
        REACHED.with_borrow_mut(|reached| *reached.entry(mark).or_default() += 1);
    }

    /// Reports whether this thread has reached a mark since its last call of [`take_reached`].
    #[must_use]
    pub fn reached(mark: Mark) -> bool {
        REACHED.with_borrow(|reached| reached.contains_key(&mark))
    }

    /// Returns the counts of the marks that this thread has reached, and resets them.
    pub fn take_reached() -> BTreeMap<Mark, u64> {
        REACHED.take()
    }

    #[cfg(feature = "mutants")]
    #[track_caller]
    pub(super) fn is_disabled(kind: FailpointKind) -> bool {
        let at = std::panic::Location::caller();
        let failpoint = Failpoint { kind, file: at.file(), line: at.line(), column: at.column() };
        EVALUATED.with_borrow_mut(|evaluated| {
            if let Some(evaluated) = evaluated {
                evaluated.insert(failpoint);
            }
        });
        DISABLED.get() == Some(failpoint)
    }

    /// Disables one failpoint for this thread. `None` enables all.
    pub fn disable(failpoint: Option<Failpoint>) {
        DISABLED.set(failpoint);
    }

    /// Returns the failpoints that this thread evaluates while it runs `work`.
    pub fn evaluated_by(work: impl FnOnce()) -> BTreeSet<Failpoint> {
        EVALUATED.set(Some(BTreeSet::new()));
        work();
        EVALUATED.take().unwrap_or_default()
    }
}
