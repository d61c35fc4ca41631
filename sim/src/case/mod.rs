//! One case: an index, what is done with it, what goes wrong meanwhile. Running it tells whether the promises were kept.
//!
//! A case is what a random test draws, what a failure shrinks to, and what a file in `corpus/crash` holds; its text is
//! written by `Display` and read by `FromStr`.
//!
//! # What is demanded
//! * No fault, or a crash: P1, P2, P3, P6 in full.
//! * A failed sync: an error, P5, and after the crash as above.
//! * Want of space, errors of stores, entries and reads: the error of that very operation, nothing changed, and the same
//!   call succeeds the next time. Nothing is swallowed.
//! * One root slot rotten or stale, while the other is at rest: as after a crash.
//! * Other damage of the medium: P4. Any typed error or finding ends the case well ("detected"). What a full check calls
//!   clean is no excuse for anything later, and what is read for the first time since the open is an error or is right.

mod damage;
mod generate;
mod judge;
mod run;
mod text;

use std::collections::BTreeMap;

use crate::{
    storage::{CrashKind, Fault, Stop, TraceEntry},
    workload::{Step, Workload},
};

/// What a crash leaves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Survivors {
    /// Chance decides.
    Seed(u64),
    /// One pick for each choice; missing ones are 0, too large ones the newest.
    Picks(Vec<usize>),
}

/// What becomes of the files between a crash and the recovery.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Damage {
    /// A bit of the newest root flips, if no store of a root was under way.
    RotRoot,
    /// The newest root is again what its slot held before, if no store of a root was under way.
    StaleRoot,
    /// A bit flips of what the recovery and a full check read.
    Rot,
    /// A bit flips near the last byte of the WAL that is not zero.
    RotTail,
    /// A sector of what the recovery and a full check read is again what it was before its last change.
    Stale,
    /// A file is cut short.
    Truncate,
    /// A file is gone.
    Remove,
    /// Two files have changed places.
    Swap,
    /// A file's first bytes are somebody else's.
    Foreign,
    /// A file is that of another index.
    OtherIndex,
    /// All files lost their space, as a copy does that skips zeros. No damage, really.
    Sparse,
}

impl Damage {
    const ALL: [(Self, &'static str); 11] = [
        (Self::RotRoot, "rot-root"),
        (Self::StaleRoot, "stale-root"),
        (Self::Rot, "rot"),
        (Self::RotTail, "rot-tail"),
        (Self::Stale, "stale"),
        (Self::Truncate, "truncate"),
        (Self::Remove, "remove"),
        (Self::Swap, "swap"),
        (Self::Foreign, "foreign"),
        (Self::OtherIndex, "other-index"),
        (Self::Sparse, "sparse"),
    ];

    /// All of them.
    pub fn all() -> impl Iterator<Item = Self> {
        Self::ALL.into_iter().map(|(damage, _)| damage)
    }

    /// Its name.
    #[must_use]
    pub fn name(self) -> &'static str {
        Self::ALL.iter().find(|(damage, _)| *damage == self).map_or("", |(_, name)| name)
    }

    /// Whether recovery must be as good as without it.
    fn is_harmless(self) -> bool {
        matches!(self, Self::RotRoot | Self::StaleRoot | Self::Sparse)
    }
}

/// A crash.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Crash {
    /// At the so manieth operation, counted as [`SimStorage::plan`](crate::SimStorage::plan) does; 0 is now, between two
    /// steps.
    pub after: u64,
    /// How that operation ends.
    pub stop: Stop,
    /// What stops.
    pub kind: CrashKind,
    /// What is left.
    pub survivors: Survivors,
    /// What happens to it then.
    pub damage: Option<Damage>,
}

/// One line of a case.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// Something is done.
    Do(Step),
    /// Something is planned to go wrong.
    Fault {
        /// See [`SimStorage::plan`](crate::SimStorage::plan).
        after: u64,
        /// What.
        fault: Fault,
    },
    /// A crash, now or planned.
    Crash(Crash),
}

/// See the [module](self).
#[derive(Clone, Debug, PartialEq)]
pub struct Case {
    /// The index; its steps are not used.
    pub workload: Workload,
    /// What chance starts from.
    pub seed: u64,
    /// Whether sectors being written at a power cut may hold garbage (R3).
    pub garbage: bool,
    /// What happens, in order.
    pub events: Vec<Event>,
}

/// What came of a case.
#[derive(Clone, Debug, Default)]
pub struct Verdict {
    /// The promise broken, and how.
    pub broken: Option<String>,
    /// Damage that was found and reported.
    pub detected: Option<String>,
    /// How often what happened.
    pub marks: BTreeMap<&'static str, u64>,
    /// Faults that fired, by class.
    pub faults: BTreeMap<&'static str, u64>,
    /// All operations.
    pub trace: Vec<TraceEntry>,
    /// A hash of all that is left on the disk.
    pub bytes_hash: u64,
}

/// All classes of faults that a run of many cases must have seen.
pub const FAULT_CLASSES: [&str; 30] = [
    "power cut",
    "process crash",
    "crash in a recovery",
    "torn store",
    "failed sync",
    "full disk at a sync",
    "failed store",
    "full disk at a store",
    "short of space at allocate",
    "no space to create",
    "failed change of entries",
    "failed read",
    "lying sync",
    "misdirected write",
    "stale read",
    "live rot",
    "garbage sector",
    "clock jump",
    "second open",
    "damage: rot-root",
    "damage: stale-root",
    "damage: rot",
    "damage: rot-tail",
    "damage: stale",
    "damage: truncate",
    "damage: remove",
    "damage: swap",
    "damage: foreign",
    "damage: other-index",
    "damage: sparse",
];
