//! Case: an index, the steps carried out on it, and the faults meanwhile. Running it reports whether the promises were
//! kept.
//!
//! Random tests draw cases, failures shrink to cases, and the files in `corpus/crash` hold cases. `Display` writes the
//! text of a case and `FromStr` parses it.
//!
//! # Requirements
//! * No fault, or a crash: P1, P2, P3 and P6 hold in full.
//! * A failed sync: the call returns an error and P5 holds. After the crash the same holds as above.
//! * Lack of space, or errors of stores, entries and reads: the call returns the error of that very operation. Nothing
//!   has changed, and the same call succeeds the next time. No error is swallowed.
//! * One root slot rotten or stale while the root file is at rest (no store to it is pending): the same as after a crash.
//! * Other damage of the medium: P4. Any typed error or finding ends the case as detected. Damage planted before a
//!   clean full check no longer excuses a failure. Bytes read for the first time since the open give an error or are
//!   right.

mod damage;
mod generate;
mod judge;
mod recover;
mod run;
mod step;
mod text;

use std::collections::BTreeMap;

use crate::{
    storage::{CrashKind, Fault, Stop, TraceEntry},
    workload::{Step, Workload},
};

/// Choice of the disk state that a crash leaves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Survivors {
    /// Seed of random choices.
    Seed(u64),
    /// One pick for each choice. A missing pick is 0, and a pick that is too large is the newest option.
    Picks(Vec<usize>),
}

/// Damage to the files between a crash and the recovery.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Damage {
    /// Flips a bit of the newest root, if the root file is at rest.
    RotRoot,
    /// Restores the previous content of the newest root's slot, if the root file is at rest.
    StaleRoot,
    /// Flips a bit that the recovery or a full check reads.
    Rot,
    /// Flips a bit near the last non-zero byte of the WAL.
    RotTail,
    /// Restores the previous version of a sector that the recovery or a full check reads.
    Stale,
    /// Truncates a file.
    Truncate,
    /// Removes a file.
    Remove,
    /// Exchanges the contents of two files.
    Swap,
    /// Overwrites the first bytes of a file with random bytes.
    Foreign,
    /// Replaces a file by that of another index.
    OtherIndex,
    /// Deallocates the space of all files, like a copy that skips zeros. Recovery must succeed.
    Sparse,
    /// Gives the last frame of the WAL a kind that a later version may add, with its checksum. The open must refuse.
    LaterFrame,
}

impl Damage {
    const ALL: [(Self, &'static str); 12] = [
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
        (Self::LaterFrame, "later-frame"),
    ];

    /// Iterates over all kinds of damage.
    pub fn all() -> impl Iterator<Item = Self> {
        Self::ALL.into_iter().map(|(damage, _)| damage)
    }

    /// Returns the name of the damage, as in the text of a case.
    #[must_use]
    pub fn name(self) -> &'static str {
        Self::ALL.iter().find(|(damage, _)| *damage == self).map_or("", |(_, name)| name)
    }

    /// Reports whether recovery must keep every promise despite the damage.
    fn is_harmless(self) -> bool {
        matches!(self, Self::RotRoot | Self::StaleRoot | Self::Sparse)
    }
}

/// Crash in a case.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Crash {
    /// Operation at which the machine stops, counted as in [`SimStorage::plan`](crate::SimStorage::plan). 0 is now,
    /// between two steps.
    pub after: u64,
    /// How far that operation is carried out.
    pub stop: Stop,
    /// Whether the process dies or the power is cut.
    pub kind: CrashKind,
    /// Choice of the disk state that is left.
    pub survivors: Survivors,
    /// Damage to that disk state.
    pub damage: Option<Damage>,
}

/// Event of a case: one line of its text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// Carries out a step.
    Do(Step),
    /// Plans a fault.
    Fault {
        /// Operation at which it fires, counted as in [`SimStorage::plan`](crate::SimStorage::plan).
        after: u64,
        /// Fault that fires.
        fault: Fault,
    },
    /// Crashes now, or plans a crash.
    Crash(Crash),
}

/// Index with a sequence of steps, faults and crashes. See the [module](self) for the requirements.
#[derive(Clone, Debug, PartialEq)]
pub struct Case {
    /// Configuration of the index. Its steps are not used.
    pub workload: Workload,
    /// Seed of all random choices.
    pub seed: u64,
    /// Whether a sector being written at a power cut may hold garbage (R3).
    pub garbage: bool,
    /// Events in order.
    pub events: Vec<Event>,
}

/// Result of running a case.
#[derive(Clone, Debug, Default)]
pub struct CaseVerdict {
    /// Description of the broken promise.
    pub broken: Option<String>,
    /// Description of damage that was detected and reported.
    pub detected: Option<String>,
    /// Number of times each coverage mark was reached.
    pub marks: BTreeMap<&'static str, u64>,
    /// Number of fired faults by class.
    pub faults: BTreeMap<&'static str, u64>,
    /// All operations in order.
    pub trace: Vec<TraceEntry>,
    /// Hash of everything left on the disk.
    pub bytes_hash: u64,
}

/// Classes of faults that a run of many cases must cover.
pub const FAULT_CLASSES: [&str; 31] = [
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
    "damage: later-frame",
];
