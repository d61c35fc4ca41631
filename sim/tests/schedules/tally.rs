//! Counters of events. A fault that never fires tests nothing, so every event must occur.

use std::fmt;

macro_rules! sights {
    ($($name:ident: $text:literal),* $(,)?) => {
        /// Event that must occur in some seed.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(crate) enum Seen { $($name),* }

        const TEXTS: &[&str] = &[$($text),*];
    };
}

sights! {
    Lives: "lives of an index",
    CreateCut: "kills before an index was made",
    OpenCut: "kills in an open",
    KilledInCall: "kills with a call under way",
    KilledIdle: "kills with none",
    StoppedInOperation: "machines stopped at an operation",
    PowerCuts: "power cuts",
    ProcessCrashes: "crashes of the process",
    Replayed: "opens that replayed records",
    TornTails: "opens that found a torn tail",
    Closed: "closes",
    ClosedInCall: "closes with calls under way",
    ClosePoisoned: "closes that a failed sync refused",
    Dropped: "ends by dropping all handles",
    DroppedInCall: "of them with calls under way",
    CancelledDone: "cancelled writes that were carried out",
    CancelledNot: "cancelled writes that were not",
    OpenDone: "writes without an answer that were carried out",
    OpenNot: "writes without an answer that were not",
    AcceptedLost: "accepted writes that were lost, none of them acknowledged as durable",
    AcceptedKept: "accepted writes that a crash left, none of them acknowledged as durable",
    DurableKept: "writes acknowledged as durable that a crash left",
    TimerKept: "writes that only the timer made durable before a crash",
    Bursts: "bursts of calls",
    FullQueues: "calls that began with more under way than the queue holds",
    Settled: "closes before which all operations were counted",
    Removals: "removals whose count was checked",
    TimedCommits: "commits by the timer",
    TimedFlushes: "flushes by the timer",
    SizedFlushes: "flushes by the size of the WAL",
    SharedCommits: "commits that answered several callers",
    OpensFailed: "opens that a failed sync refused",
    OpensWithoutThread: "opens refused for a thread that could not be started",
    ChecksWithoutThread: "checks refused for a thread that could not be started",
    OpensAbandoned: "opens given up",
    StoresFailed: "failed stores",
    StoresFull: "stores and allocations without room",
    RefusedStore: "calls refused for a failed store",
    RefusedFull: "calls refused for want of room",
    RefusedUndurable: "writes refused for what was undurable already",
    TroublesShown: "errors of background work that figures showed",
    TroublesOver: "of them over by themselves, everything durable",
    CloseDisturbed: "closes that a store refused",
    Poisonings: "poisonings",
    PoisonedBySelf: "of them by a sync nobody had asked for",
    RefusedPoisoned: "calls refused after a poisoning",
    RefusedClosed: "calls refused after a close",
    WentBack: "searches that went back to the durable root",
    SearchedPoisoned: "searches after a poisoning",
    Searches: "searches",
    SearchesBetween: "searches that saw other writes than the one before",
    SearchesInCall: "searches while a write was under way",
    HitsHeld: "hits read again after writes went on",
}

/// Number of occurrences of each event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Tally(Vec<u64>);

impl Default for Tally {
    fn default() -> Self {
        Self(vec![0; TEXTS.len()])
    }
}

impl Tally {
    pub(crate) fn note(&mut self, seen: Seen) {
        self.add(seen, 1);
    }

    pub(crate) fn add(&mut self, seen: Seen, times: u64) {
        self.0[seen as usize] += times;
    }

    pub(crate) fn merge(&mut self, other: &Self) {
        self.0.iter_mut().zip(&other.0).for_each(|(all, more)| *all += more);
    }

    /// Returns the events that never occurred.
    pub(crate) fn missing(&self) -> Vec<&'static str> {
        self.0.iter().zip(TEXTS).filter(|(times, _)| **times == 0).map(|(_, text)| *text).collect()
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().zip(TEXTS).try_for_each(|(times, text)| writeln!(f, "{times:>9} {text}"))
    }
}
