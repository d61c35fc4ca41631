//! Places in the code that tests watch: ones that the mutation test can weaken, one at a time, to show that some test needs
//! each; and marks, which count how often an interesting branch ran, to show that a run has been there.
//!
//! A place to weaken is where `holds` or `applies` is called, or a function that is itself `#[track_caller]` and calls one:
//! then each call of that function is a place of its own. Without the feature `mutants` both are the identity.

/// What kind of code a place is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// A checksum is compared.
    Checksum,
    /// An error, or a state that forbids something, is looked for or handled.
    ErrorCheck,
    /// Something waits for something else: a place to be free, an epoch to be open, a sync to cover a length.
    Ordering,
    /// Something is looked at so that searches find as much as they were asked for. No crash shows
    /// that it is needed, but recalls do.
    Recall,
}

/// A test that must hold; weakened it always does.
#[inline]
#[cfg_attr(feature = "mutants", track_caller)]
pub(crate) fn holds(kind: Kind, test: bool) -> bool {
    #[cfg(feature = "mutants")]
    let test = mutants::is_weak(kind) || test;
    #[cfg(not(feature = "mutants"))]
    let _ = kind;
    test
}

/// A condition on which something is done that protects; weakened it is never done.
#[inline]
#[cfg_attr(feature = "mutants", track_caller)]
pub(crate) fn applies(kind: Kind, condition: bool) -> bool {
    #[cfg(feature = "mutants")]
    let condition = !mutants::is_weak(kind) && condition;
    #[cfg(not(feature = "mutants"))]
    let _ = kind;
    condition
}

/// Declares marks with what each says.
macro_rules! marks {
    ($($(#[doc = $text:literal])+ $mark:ident,)+) => {
        /// An interesting branch of the engine.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Mark {
            $($(#[doc = $text])+ $mark,)+
        }

        impl Mark {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$mark),+];

            /// What it says.
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
    /// an interrupted create was cleared
    LeftoversCleared,
    /// an index was opened as it was closed
    CleanOpen,
    /// an older root was fallen back to
    OlderRootUsed,
    /// the tree of an older root was damaged
    OlderTreeDamaged,
    /// a root was stored again in the slot that could not be read
    RestoredInOtherSlot,
    /// a root file of epoch 1 was replaced
    RootFileReplaced,
    /// a record was replayed
    RecordReplayed,
    /// an open found no room and only reads
    ReadOnly,
    /// a torn tail was found
    TornTail,
    /// a hole before acknowledged records was found
    HoleFound,
    /// frames were found under a segment header that does not parse
    HeadlessSegment,
    /// a record went over segments
    RecordOverSegments,
    /// the WAL grew
    WalGrew,
    /// a segment was recycled
    SegmentRecycled,
    /// the data file grew
    DataGrew,
    /// the data file could grow by one chunk only
    GrewByOne,
    /// a shard was split
    Split,
    /// a shard was written anew without its removed postings
    Rewritten,
    /// a posting went to a neighbour of the shard that was split
    Moved,
    /// a posting of a neighbour came to a half of a shard that was split
    Adopted,
    /// a shard that had shrunk was taken apart
    Merged,
    /// a shard was made of a part of a large batch
    Loaded,
    /// a shard without a posting went
    ShardFreed,
    /// cells were made
    Regrouped,
    /// cells kept their groups
    GroupsKept,
    /// centroids were left for a later build
    CentroidsLeft,
    /// cells were found damaged, and done without
    CellsLost,
    /// a batch was undone
    BatchUndone,
    /// states were stored side by side
    StatesTogether,
    /// a flush was given up
    FlushAborted,
    /// a flush went on with a root that could not be stored
    RootStoredAgain,
    /// a flush found the WAL synced by a commit
    WalSyncedMeanwhile,
    /// a place was set free
    PlaceFreed,
    /// a place waited for a root that names it
    PlaceHeld,
    /// the engine was poisoned
    Poisoned,
}

/// Counts that a branch ran. Without the feature `mutants` it does nothing.
#[inline]
pub(crate) fn reach(mark: Mark) {
    #[cfg(feature = "mutants")]
    mutants::note(mark);
    #[cfg(not(feature = "mutants"))]
    let _ = mark;
}

/// Choosing a place, and listing those that were passed. Of this thread alone, so that threads can test different ones.
#[cfg(feature = "mutants")]
pub mod mutants {
    use std::{
        cell::{Cell, RefCell},
        collections::{BTreeMap, BTreeSet},
        fmt,
        panic::Location,
    };

    use super::{Kind, Mark};

    /// A place in the code.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
    pub struct Site {
        /// What kind of code it is.
        pub kind: Kind,
        /// Where it is.
        pub file: &'static str,
        /// Its line.
        pub line: u32,
        /// Its column.
        pub column: u32,
    }

    impl fmt::Display for Site {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(f, "{}:{}:{}", self.file, self.line, self.column)
        }
    }

    thread_local! {
        static WEAK: Cell<Option<Site>> = const { Cell::new(None) };
        static PASSED: RefCell<Option<BTreeSet<Site>>> = const { RefCell::new(None) };
        static REACHED: RefCell<BTreeMap<Mark, u64>> = const { RefCell::new(BTreeMap::new()) };
    }

    pub(super) fn note(mark: Mark) {
        REACHED.with_borrow_mut(|reached| *reached.entry(mark).or_default() += 1);
    }

    /// Whether this thread has reached a mark since it last took them.
    #[must_use]
    pub fn reached(mark: Mark) -> bool {
        REACHED.with_borrow(|reached| reached.contains_key(&mark))
    }

    /// How often this thread has reached what since it last asked.
    pub fn take_reached() -> BTreeMap<Mark, u64> {
        REACHED.take()
    }

    #[track_caller]
    pub(super) fn is_weak(kind: Kind) -> bool {
        let at = Location::caller();
        let site = Site { kind, file: at.file(), line: at.line(), column: at.column() };
        PASSED.with_borrow_mut(|passed| {
            if let Some(passed) = passed {
                passed.insert(site);
            }
        });
        WEAK.get() == Some(site)
    }

    /// Weakens one place for this thread, or none.
    pub fn weaken(site: Option<Site>) {
        WEAK.set(site);
    }

    /// The places that this thread passes while it runs `work`.
    pub fn passed_by(work: impl FnOnce()) -> BTreeSet<Site> {
        PASSED.set(Some(BTreeSet::new()));
        work();
        PASSED.take().unwrap_or_default()
    }
}
