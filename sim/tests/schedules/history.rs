//! What was asked, answered and seen in one life of an index.

use std::{collections::BTreeSet, fmt, time::Duration};

use shardex::{Durability, ShardexError};

use crate::batch::{Action, State};

/// Calls, by their places in [`Life::calls`].
pub(crate) type Calls = BTreeSet<usize>;

/// One call of a writer.
#[derive(Clone, Debug)]
pub(crate) struct Call {
    pub(crate) writer: usize,
    /// Counts the writer's calls over all lives.
    pub(crate) number: u64,
    pub(crate) action: Action,
    /// The event at which it began.
    pub(crate) began: u64,
    /// Whether a sync had failed by then.
    pub(crate) after_failure: bool,
    /// Whether the index had been closed by then.
    pub(crate) after_end: bool,
    pub(crate) outcome: Outcome,
}

/// What became of a call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// Nothing yet.
    Open,
    /// Its future was dropped.
    Dropped,
    /// It succeeded.
    Done {
        /// The event at which it did.
        at: u64,
        time: Duration,
        /// Postings that it says it removed.
        removed: Option<u64>,
    },
    /// It got an error.
    Refused(Refusal),
}

/// The errors that a call may get.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// The error of the failed sync.
    Sync,
    Poisoned,
    Closed,
    /// A store failed.
    Store,
    /// There was no room.
    Full,
    /// Too much was undurable already.
    Undurable,
}

impl Refusal {
    /// The refusal that an error is; none if no call should ever get it here.
    pub(crate) fn of(error: &ShardexError) -> Option<Self> {
        match error {
            ShardexError::Io { op: "sync", .. } => Some(Self::Sync),
            ShardexError::Poisoned { cause } if !cause.contains("stopped unexpectedly") => Some(Self::Poisoned),
            ShardexError::Closed => Some(Self::Closed),
            ShardexError::Io { op: "write", .. } => Some(Self::Store),
            ShardexError::OutOfSpace { .. } => Some(Self::Full),
            ShardexError::Undurable { .. } => Some(Self::Undurable),
            _ => None,
        }
    }
}

/// Whether a state may hold a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    /// Every state does that holds a later one.
    Accepted,
    Maybe,
    Never,
}

/// One search over everything.
#[derive(Clone, Debug)]
pub(crate) struct Sight {
    /// The event that it was.
    pub(crate) at: u64,
    /// Whether a sync had failed by then.
    pub(crate) after_failure: bool,
    pub(crate) lsn: u64,
    pub(crate) state: State,
}

/// How a life ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    /// By a crash, or not yet.
    Crash,
    /// `close` succeeded.
    Closed,
    /// `close` got an error.
    CloseRefused,
    Dropped,
}

/// From one open to the next.
#[derive(Clone, Debug)]
pub(crate) struct Life {
    pub(crate) durability: Durability,
    pub(crate) commit_interval: Duration,
    /// What the open found.
    pub(crate) base: State,
    pub(crate) base_lsn: u64,
    pub(crate) calls: Vec<Call>,
    pub(crate) sights: Vec<Sight>,
    /// Whether a sync has failed since the open.
    pub(crate) failed: bool,
    /// Whether stores have failed since.
    pub(crate) disturbed: bool,
    pub(crate) ending: Ending,
    /// When the last event was.
    pub(crate) last_event: Duration,
}

impl Life {
    /// What an open that found `base` begins.
    pub(crate) fn new(durability: Durability, commit_interval: Duration, base: State, base_lsn: u64) -> Self {
        Self {
            durability,
            commit_interval,
            base,
            base_lsn,
            calls: Vec::new(),
            sights: Vec::new(),
            failed: false,
            disturbed: false,
            ending: Ending::Crash,
            last_event: Duration::ZERO,
        }
    }

    pub(crate) fn fate(&self, call: &Call) -> Fate {
        match call.outcome {
            Outcome::Done { .. } => Fate::Accepted,
            Outcome::Open | Outcome::Dropped => Fate::Maybe,
            // An error of the commit leaves the batch accepted.
            Outcome::Refused(Refusal::Sync | Refusal::Poisoned | Refusal::Store | Refusal::Full)
                if self.durability == Durability::Immediate && !call.after_failure =>
            {
                Fate::Maybe
            }
            Outcome::Refused(_) => Fate::Never,
        }
    }

    /// Writes that had succeeded before an event.
    pub(crate) fn done_before(&self, event: u64) -> Calls {
        self.done().filter(|&(_, at, _)| at < event).map(|(call, _, _)| call).collect()
    }

    /// Writes that succeeded, with the event and the time.
    pub(crate) fn done(&self) -> impl Iterator<Item = (usize, u64, Duration)> {
        self.calls.iter().enumerate().filter(|(_, call)| call.action.is_write()).filter_map(|(n, call)| {
            match call.outcome {
                Outcome::Done { at, time, .. } => Some((n, at, time)),
                _ => None,
            }
        })
    }
}

/// FNV-1a over everything written to it. The hash of the standard library differs from run to run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Fnv(pub(crate) u64);

impl Default for Fnv {
    fn default() -> Self {
        Self(0xCBF2_9CE4_8422_2325)
    }
}

impl Fnv {
    pub(crate) fn feed(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01B3);
        }
    }
}

impl fmt::Write for Fnv {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.feed(text.as_bytes());
        Ok(())
    }
}
