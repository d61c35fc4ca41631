//! Record of one life of an index: calls, outcomes and observations.

use std::{collections::BTreeSet, fmt, time::Duration};

use shardex::{Durability, ShardexError};

use crate::batch::{Action, State};

/// Set of calls, as indices into [`Life::calls`].
pub(crate) type Calls = BTreeSet<usize>;

/// Call of a writer.
#[derive(Clone, Debug)]
pub(crate) struct Call {
    pub(crate) writer: usize,
    /// Number of the call. All calls of all writers and lives are counted together.
    pub(crate) number: u64,
    pub(crate) action: Action,
    /// Event at which the call began.
    pub(crate) began: u64,
    /// Whether a sync had failed before the call began.
    pub(crate) after_failure: bool,
    /// Whether `close` had returned, or all handles had been dropped, before the call began.
    pub(crate) after_end: bool,
    pub(crate) outcome: Outcome,
}

/// Outcome of a call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// The call has not returned.
    Open,
    /// The call's future was dropped.
    Dropped,
    /// The call returned `Ok`.
    Done {
        /// Event at which the call returned.
        at: u64,
        time: Duration,
        /// Number of postings that the call reported as removed.
        removed: Option<u64>,
    },
    /// The call returned an error.
    Refused(Refusal),
}

/// Error that a call may return.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// Error of the failed sync itself.
    Sync,
    Poisoned,
    Closed,
    /// A store failed.
    Store,
    /// There was not enough space.
    Full,
    /// Too many accepted writes were not durable.
    Undurable,
}

impl Refusal {
    /// Returns the refusal that corresponds to an error, or `None` for an error that no call may return here.
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

/// Expectation whether states contain a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    /// Every state that contains a later call contains this one.
    Accepted,
    Maybe,
    Never,
}

/// Result of one search over everything.
#[derive(Clone, Debug)]
pub(crate) struct Sight {
    /// Event at which the search returned.
    pub(crate) at: u64,
    /// Whether a sync had failed before that event.
    pub(crate) after_failure: bool,
    pub(crate) lsn: u64,
    pub(crate) state: State,
}

/// End of a life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    /// A crash, or no end yet.
    Crash,
    /// `close` returned `Ok`.
    Closed,
    /// `close` returned an error.
    CloseRefused,
    Dropped,
}

/// Record of a life: the time from one open to the next.
#[derive(Clone, Debug)]
pub(crate) struct Life {
    pub(crate) durability: Durability,
    pub(crate) commit_interval: Duration,
    /// State that the open found.
    pub(crate) base: State,
    pub(crate) base_lsn: u64,
    pub(crate) calls: Vec<Call>,
    pub(crate) sights: Vec<Sight>,
    /// Whether a sync has failed since the open.
    pub(crate) failed: bool,
    /// Whether a store or an allocation has failed since the open.
    pub(crate) disturbed: bool,
    pub(crate) ending: Ending,
    /// Time of the last event.
    pub(crate) last_event: Duration,
}

impl Life {
    /// Creates the record of a life that begins with an open that found `base`.
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

    /// Returns the writes that had succeeded before an event.
    pub(crate) fn done_before(&self, event: u64) -> Calls {
        self.done().filter(|&(_, at, _)| at < event).map(|(call, _, _)| call).collect()
    }

    /// Returns the writes that succeeded, each with its event and its time.
    pub(crate) fn done(&self) -> impl Iterator<Item = (usize, u64, Duration)> {
        self.calls.iter().enumerate().filter(|(_, call)| call.action.is_write()).filter_map(|(n, call)| {
            match call.outcome {
                Outcome::Done { at, time, .. } => Some((n, at, time)),
                _ => None,
            }
        })
    }
}

/// FNV-1a hash of everything written to it. The hash of the standard library differs from run to run.
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
