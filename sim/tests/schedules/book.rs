//! Book of a run: the record of the present life, and the counts of the whole run.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use shardex::{Durability, IndexStats, engine};
use shardex_sim::{Fault, Op, OpInfo};
use tokio::time::Instant;

use crate::{
    batch::{self, Action, State},
    history::{Call, Ending, Fnv, Life, Outcome, Refusal, Sight},
    plan::{LifePlan, PAGE, Trouble},
    tally::{Seen, Tally},
    verdict::Findings,
};

/// Virtual time within which the writer receives the error of a failed sync. All ready tasks run before a timer fires.
const HEARD: Duration = Duration::from_millis(1);

/// Request of a writer.
#[derive(Clone, Debug)]
pub(crate) enum Wish {
    Add(Vec<(u32, u32)>),
    Remove(Vec<u32>),
    Commit,
    Flush,
}

/// Contents of a desk's record.
pub(crate) struct Book {
    pub(crate) life: Life,
    pub(crate) plan: Option<LifePlan>,
    /// Whether the index is open. Until then `life` is the record of the previous life.
    pub(crate) open: bool,
    pub(crate) made: bool,
    pub(crate) closing: bool,
    /// Whether the crash that ends the life has occurred.
    pub(crate) crashed: bool,
    pub(crate) start: Instant,
    pub(crate) events: u64,
    pub(crate) strike_at: u64,
    /// Number of syncs before the one that fails.
    pub(crate) syncs_left: Option<u64>,
    /// Number of failed syncs that were noted.
    pub(crate) failed_syncs: u64,
    /// Remaining part of the trouble.
    pub(crate) trouble: Option<Trouble>,
    /// Number of thread starts before the one that fails.
    pub(crate) starts_left: Option<u64>,
    /// Whether that start has failed and no caller has received the error yet.
    pub(crate) start_failed: bool,
    /// Time at which the sync failed.
    pub(crate) failed_at: Duration,
    /// Number of calls begun after the sync had failed that returned the sync's own error. At most one may.
    pub(crate) told: u64,
    pub(crate) writers_left: usize,
    /// Number of operations that the open itself counts.
    pub(crate) operations: u64,
    pub(crate) next_number: u64,
    /// Receipts that a removal may remove, by writer.
    pub(crate) receipts: BTreeMap<usize, BTreeSet<u64>>,
    pub(crate) hash: Fnv,
    pub(crate) tally: Tally,
}

impl Book {
    /// Creates an empty book. It needs a runtime, for its clock.
    pub(crate) fn new() -> Self {
        let life = Life::new(Durability::Manual, Duration::ZERO, State::new(), 0);
        Self {
            life,
            plan: None,
            open: false,
            made: false,
            closing: false,
            crashed: false,
            start: Instant::now(),
            events: 0,
            strike_at: u64::MAX,
            syncs_left: None,
            failed_syncs: 0,
            trouble: None,
            starts_left: None,
            start_failed: false,
            failed_at: Duration::ZERO,
            told: 0,
            writers_left: 0,
            operations: 0,
            next_number: 1,
            receipts: BTreeMap::new(),
            hash: Fnv::default(),
            tally: Tally::default(),
        }
    }

    pub(crate) fn hash(&mut self, write: impl FnOnce(&mut Fnv) -> std::fmt::Result) {
        write(&mut self.hash).expect("a hash takes everything");
    }

    pub(crate) fn calls_open(&self) -> usize {
        self.life.calls.iter().filter(|call| call.outcome == Outcome::Open).count()
    }

    /// Returns the number of calls of a kind that may be waiting. Dropped calls may still be in the queue.
    pub(crate) fn outstanding(&self, kind: impl Fn(&Action) -> bool) -> usize {
        let waits = |call: &&Call| kind(&call.action) && matches!(call.outcome, Outcome::Open | Outcome::Dropped);
        self.life.calls.iter().filter(waits).count()
    }

    pub(crate) fn action(&mut self, writer: usize, wish: Wish) -> Action {
        match wish {
            Wish::Add(parts) => Action::Add(parts),
            Wish::Remove(documents) => match self.receipts.get_mut(&writer).and_then(BTreeSet::pop_first) {
                Some(receipt) => Action::Remove { receipt, documents },
                None => Action::Add(documents.into_iter().map(|id| (id, 0)).collect()),
            },
            Wish::Commit => Action::Commit,
            Wish::Flush => Action::Flush,
        }
    }

    pub(crate) fn note_begin(&mut self) {
        let queue = self.plan.as_ref().map_or(usize::MAX, |plan| plan.options.queue_size);
        if self.calls_open() > queue {
            self.tally.note(Seen::FullQueues);
        }
    }

    /// Reports whether no call has requested the work that the index is doing on its files.
    pub(crate) fn by_itself(&self) -> bool {
        let durable = |action: &Action| !action.is_write();
        self.open && !self.closing && self.life.durability != Durability::Immediate && self.outstanding(durable) == 0
    }

    pub(crate) fn note_sync(&mut self, info: &OpInfo) {
        let Some(options) = self.plan.as_ref().map(|plan| &plan.options).filter(|_| self.open) else { return };
        let immediate = self.life.durability == Durability::Immediate;
        if info.purpose == engine::COMMIT
            && self.outstanding(|action| *action == Action::Commit || (immediate && action.is_write())) > 1
        {
            self.tally.note(Seen::SharedCommits);
        }
        // The first write after a close causes a flush too.
        let sized = options.flush_wal_bytes > 0 && options.flush_interval_ms == 0 && self.life.done().next().is_some();
        if info.purpose == engine::B3 && sized && self.by_itself() {
            self.tally.note(Seen::SizedFlushes);
        }
    }

    /// Returns the fault to inject into the operation that is about to be done, if there is one.
    pub(crate) fn fault(&mut self, info: &OpInfo) -> Option<Fault> {
        let trouble = self.trouble.as_mut().filter(|trouble| self.open && trouble.operations > 0)?;
        if trouble.after > 0 {
            trouble.after -= 1;
            return None;
        }
        trouble.operations -= 1;
        let (fault, seen) = match (trouble.full, info.op) {
            _ if trouble.file.is_some_and(|file| file != info.file) => return None,
            (false, Op::Store) => (Fault::FailStore { full: false }, Seen::StoresFailed),
            (true, Op::Store) => (Fault::FailStore { full: true }, Seen::StoresFull),
            (true, Op::Allocate) => (Fault::NoSpace, Seen::StoresFull),
            _ => return None,
        };
        self.life.disturbed = true;
        self.tally.note(seen);
        Some(fault)
    }

    /// Reports whether a thread may be started.
    pub(crate) fn may_start(&mut self) -> bool {
        match self.starts_left {
            Some(0) => {
                (self.starts_left, self.start_failed) = (None, true);
                false
            }
            left => {
                self.starts_left = left.map(|left| left - 1);
                true
            }
        }
    }

    /// Checks that a while without writes leaves no background work to do.
    pub(crate) fn note_timers(&mut self, before: &IndexStats, after: &IndexStats) {
        let options = &self.plan.as_ref().expect("a life has a plan").options;
        if before.background_error.as_ref().is_some_and(|error| error.lasts) {
            self.tally.note(Seen::TroublesShown);
            let lasts = after.background_error.as_ref().is_none_or(|error| error.lasts);
            assert!(!lasts, "it lasts though nothing fails any more: {after:?}");
            self.tally.note(Seen::TroublesOver);
        }
        if options.durability == Durability::Interval {
            assert!(after.uncommitted_operations == 0, "the timer did not commit: {after:?}");
            self.tally.add(Seen::TimedCommits, u64::from(before.uncommitted_operations > 0));
        }
        if options.flush_interval_ms > 0 {
            assert!(after.pending_operations == 0, "the timer did not flush: {after:?}");
            self.tally.add(Seen::TimedFlushes, u64::from(before.pending_operations > 0));
        }
        // A commit adds padding and may reach the end of a segment.
        let most = options.flush_wal_bytes + PAGE as u64;
        assert!(
            options.flush_wal_bytes == 0 || after.wal_bytes <= most,
            "the WAL was not flushed below {most} bytes: {after:?}"
        );
    }

    pub(crate) fn note_failure(&mut self) {
        if self.open {
            self.life.failed = true;
            self.failed_at = self.start.elapsed();
            self.tally.note(Seen::Poisonings);
            if self.by_itself() {
                self.tally.note(Seen::PoisonedBySelf);
            }
        }
    }

    /// Records the outcome of a call. Panics if the call can't have had this outcome.
    pub(crate) fn end(&mut self, index: usize, outcome: Outcome) {
        let (failed, closing) = (self.life.failed, self.closing);
        let call = &mut self.life.calls[index];
        match outcome {
            Outcome::Refused(Refusal::Closed) => assert!(closing, "{call:?} was refused as closed"),
            Outcome::Refused(Refusal::Store | Refusal::Full | Refusal::Undurable) => {
                assert!(self.life.disturbed, "no store had failed, and yet {call:?}: {outcome:?}");
            }
            Outcome::Refused(_) => assert!(failed, "{call:?} was refused as poisoned: {outcome:?}"),
            _ => {
                assert!(!call.after_failure, "after a failed sync {call:?} succeeded");
                assert!(!call.after_end, "after the close {call:?} succeeded");
            }
        }
        if call.after_failure && outcome == Outcome::Refused(Refusal::Sync) {
            self.told += 1;
            assert!(self.told == 1, "the error of the failed sync was told again to {call:?}");
        }
        match outcome {
            Outcome::Refused(Refusal::Closed) => self.tally.note(Seen::RefusedClosed),
            Outcome::Refused(Refusal::Store) => self.tally.note(Seen::RefusedStore),
            Outcome::Refused(Refusal::Full) => self.tally.note(Seen::RefusedFull),
            Outcome::Refused(Refusal::Undurable) => self.tally.note(Seen::RefusedUndurable),
            Outcome::Refused(_) => self.tally.note(Seen::RefusedPoisoned),
            _ => {}
        }
        if matches!((&outcome, &call.action), (Outcome::Done { .. }, Action::Add(_))) {
            self.receipts.entry(call.writer).or_default().insert(call.number);
        }
        call.outcome = outcome;
    }

    pub(crate) fn saw(&mut self, at: u64, lsn: u64, state: State) {
        self.tally.note(Seen::Searches);
        if self.outstanding(Action::is_write) > 0 {
            self.tally.note(Seen::SearchesInCall);
        }
        if self.life.failed {
            self.tally.note(Seen::SearchedPoisoned);
            // Until the writer has received the error, a search shows the state before the failure or the one after it.
            if self.start.elapsed() < self.failed_at + HEARD {
                return;
            }
        }
        self.life.sights.push(Sight { at, after_failure: self.life.failed, lsn, state });
    }

    /// Begins the record of the next life. Its removals may remove the receipts in `base`.
    pub(crate) fn begin(&mut self, base: State, lsn: u64) {
        let options = &self.plan.as_ref().expect("a life has a plan").options;
        self.receipts.clear();
        let writers = self.plan.as_ref().map_or(0, |plan| plan.writers);
        for writer in 0..writers {
            let left = base.values().filter(|number| base.contains_key(&batch::receipt(writer, **number)));
            self.receipts.insert(writer, left.copied().collect());
        }
        self.life = Life::new(options.durability, options.commit_interval(), base, lsn);
        (self.open, self.made, self.told) = (true, true, 0);
    }

    pub(crate) fn note_findings(&mut self, findings: &Findings) {
        let tally = &mut self.tally;
        tally.add(Seen::Removals, findings.removals);
        tally.add(Seen::WentBack, findings.went_back);
        tally.add(Seen::SearchesBetween, findings.moved);
        for (n, call) in self.life.calls.iter().enumerate().filter(|(_, call)| call.action.is_write()) {
            let kept = findings.kept.contains(&n);
            let crashed = self.life.ending == Ending::Crash;
            let seen = match (&call.outcome, kept) {
                (Outcome::Dropped, true) => Seen::CancelledDone,
                (Outcome::Dropped, false) => Seen::CancelledNot,
                (Outcome::Open, true) => Seen::OpenDone,
                (Outcome::Open, false) => Seen::OpenNot,
                (Outcome::Done { .. }, true) if !crashed => continue,
                (Outcome::Done { .. }, false) => Seen::AcceptedLost,
                (Outcome::Done { .. }, true) if findings.acknowledged.contains(&n) => Seen::DurableKept,
                (Outcome::Done { .. }, true) if findings.timed.contains(&n) => Seen::TimerKept,
                (Outcome::Done { .. }, true) => Seen::AcceptedKept,
                (Outcome::Refused(_), _) => continue,
            };
            tally.note(seen);
        }
    }
}
