//! Planned faults: a queue in which each fault is armed when the one before it has fired.

use std::{collections::VecDeque, fmt, io, str::FromStr};

use super::trace::Op;

/// Fault at one operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Fault {
    /// The machine stops at the operation (R11).
    Stop(Stop),
    /// A sync fails, and the pages become clean nevertheless (R8). With `full`, the error reports a full disk.
    FailSync {
        /// `ENOSPC` instead of `EIO`.
        full: bool,
    },
    /// A sync returns `Ok` and does nothing (R13).
    LieAtSync,
    /// A sync of a file writes one dirty sector to another place in the file (R13).
    Misdirect,
    /// A store or a deallocation fails after changing any of its sectors (R9, R15).
    FailStore {
        /// `ENOSPC` instead of `EIO`.
        full: bool,
    },
    /// An allocation, a creation or a rename finds no space (R9). An allocation may be done in part.
    NoSpace,
    /// A creation, rename or removal fails, and nothing is done.
    FailEntry,
    /// A read by copying fails (R13).
    FailRead,
    /// A read by copying returns a sector as it was before its last change (R13).
    StaleRead,
    /// A bit of some file flips, on the device and in the cache (R13).
    Rot,
    /// The clock jumps by this number of milliseconds (R14).
    ClockJump(i64),
}

impl Fault {
    /// Reports whether the fault can fire at this operation, which changes or syncs something.
    pub(super) fn fits(self, op: Op) -> bool {
        match self {
            Self::Stop(_) | Self::Rot | Self::ClockJump(_) => true,
            Self::FailSync { .. } | Self::LieAtSync => op.is_sync(),
            Self::Misdirect => matches!(op, Op::SyncRange | Op::SyncAll),
            Self::FailStore { .. } => matches!(op, Op::Store | Op::Deallocate),
            Self::NoSpace => matches!(op, Op::Allocate | Op::Create | Op::Link | Op::MakeDir | Op::Rename),
            Self::FailEntry => matches!(op, Op::Create | Op::Link | Op::MakeDir | Op::Rename | Op::Remove),
            Self::FailRead | Self::StaleRead => false,
        }
    }
}

/// Returns the kind of the error that a fault returns.
pub(super) fn error_kind(full: bool) -> io::ErrorKind {
    if full { io::ErrorKind::StorageFull } else { io::ErrorKind::Other }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Stop(Stop::Before) => "stop-before",
            Self::Stop(Stop::Torn) => "stop-torn",
            Self::Stop(Stop::After) => "stop-after",
            Self::FailSync { full: false } => "fail-sync",
            Self::FailSync { full: true } => "full-at-sync",
            Self::LieAtSync => "lie-at-sync",
            Self::Misdirect => "misdirect",
            Self::FailStore { full: false } => "fail-store",
            Self::FailStore { full: true } => "full-at-store",
            Self::NoSpace => "no-space",
            Self::FailEntry => "fail-entry",
            Self::FailRead => "fail-read",
            Self::StaleRead => "stale-read",
            Self::Rot => "rot",
            Self::ClockJump(ms) => return write!(f, "clock{ms:+}"),
        })
    }
}

impl FromStr for Fault {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        Ok(match s {
            "stop-before" => Self::Stop(Stop::Before),
            "stop-torn" => Self::Stop(Stop::Torn),
            "stop-after" => Self::Stop(Stop::After),
            "fail-sync" => Self::FailSync { full: false },
            "full-at-sync" => Self::FailSync { full: true },
            "lie-at-sync" => Self::LieAtSync,
            "misdirect" => Self::Misdirect,
            "fail-store" => Self::FailStore { full: false },
            "full-at-store" => Self::FailStore { full: true },
            "no-space" => Self::NoSpace,
            "fail-entry" => Self::FailEntry,
            "fail-read" => Self::FailRead,
            "stale-read" => Self::StaleRead,
            "rot" => Self::Rot,
            _ => match s.strip_prefix("clock").and_then(|ms| ms.parse().ok()) {
                Some(ms) => Self::ClockJump(ms),
                None => return Err(format!("`{s}` is no fault")),
            },
        })
    }
}

/// Queue of planned faults.
#[derive(Clone, Debug, Default)]
pub(super) struct Plan {
    queue: VecDeque<(u64, Fault)>,
    /// Number of operations done when the first fault of the queue was armed.
    armed_at: u64,
}

impl Plan {
    pub(super) fn push(&mut self, after: u64, fault: Fault, now: u64) {
        if self.queue.is_empty() {
            self.armed_at = now;
        }
        self.queue.push_back((after, fault));
    }

    /// Removes and returns the first fault of the queue if it is due at operation `now` and `fits` accepts it.
    pub(super) fn take(&mut self, now: u64, fits: impl Fn(Fault) -> bool) -> Option<Fault> {
        let &(after, fault) = self.queue.front()?;
        if now < self.armed_at + after || !fits(fault) {
            return None;
        }
        self.queue.pop_front();
        self.armed_at = now;
        Some(fault)
    }

    /// Removes all planned faults.
    pub(super) fn clear(&mut self) {
        self.queue.clear();
    }
}

/// State of the operation at which [`crash_after`](super::SimStorage::crash_after) or [`Fault::Stop`] stops the
/// machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Stop {
    /// The operation is not done.
    Before,
    /// A store is done for a random number of its first sectors, a deallocation for some of its first pages. Any other
    /// operation is done as with [`After`](Self::After).
    Torn,
    /// The operation is done, but returns an error.
    After,
}
