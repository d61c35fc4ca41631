//! Desk: records all events in order, and signals the moment at which a life ends.

use std::{
    fmt::Write as _,
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use shardex::{
    CheckLevel, IndexStats, LockHolder, SearchResponse, Shardex, ShardexError, env::Env, storage::Storage as _,
};
use shardex_sim::{CrashKind, HookAction, HookStorage, MadsimRuntime, OpInfo, SimStorage, runtime::Gate, workload};
use tokio::sync::Notify;

use crate::{
    batch::{self, Action},
    book::{Book, Wish},
    history::{Call, Ending, Fnv, Outcome, Refusal},
    plan::{End, LifePlan},
    tally::{Seen, Tally},
    verdict,
};

pub(crate) type Index = Shardex<HookStorage<SimStorage>>;

/// Recorder of a run. All tasks write to it, but never two at the same time.
#[derive(Clone)]
pub(crate) struct Desk {
    book: Arc<Mutex<Book>>,
    storage: SimStorage,
    /// Notified when the life must end.
    pub(crate) strike: Arc<Notify>,
    /// Notified when the process must crash and the life must begin again.
    pub(crate) restart: Arc<Notify>,
}

impl Desk {
    pub(crate) fn new(storage: SimStorage) -> Self {
        let book = Book::new();
        Self { book: Arc::new(Mutex::new(book)), storage, strike: Arc::default(), restart: Arc::default() }
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        let mut book = self.book.lock().unwrap_or_else(PoisonError::into_inner);
        // A sync beside the writer fails only when its time has passed, so the storage's counter is read here.
        let failed = self.storage.counters().failed_syncs;
        if failed > book.failed_syncs {
            book.failed_syncs = failed;
            book.note_failure();
        }
        book
    }

    /// Prepares the next life.
    pub(crate) fn begin_life(&mut self, plan: &LifePlan) {
        let mut book = self.book();
        book.plan = Some(plan.clone());
        (book.open, book.closing, book.crashed) = (false, false, false);
        book.strike_at = book.events.saturating_add(plan.end.after());
        book.syncs_left = plan.failing_sync.map(|nth| nth - 1);
        book.starts_left = plan.failing_start.map(|nth| nth - 1);
        (book.trouble, book.start_failed) = (plan.trouble, false);
        // Removes planned faults that a stopped machine did not reach.
        self.storage.clear_plan();
        book.tally.note(Seen::Lives);
        drop(book);
        (self.strike, self.restart) = Default::default();
    }

    /// Returns the desk for the machine after a crash.
    pub(crate) fn after_crash(&self, storage: &SimStorage) -> Self {
        Self { storage: storage.clone(), ..self.clone() }
    }

    /// Reports whether the crash that ends the life has occurred.
    pub(crate) fn has_ended(&self) -> bool {
        self.book().crashed
    }

    /// Returns the storage for this life. It reports each operation to the desk.
    pub(crate) fn storage(&self) -> HookStorage<SimStorage> {
        let desk = self.clone();
        HookStorage::new(self.storage.clone(), move |info| {
            desk.operation(info);
            HookAction::Proceed
        })
    }

    /// Returns the environment of the index. The desk decides whether a thread starts.
    pub(crate) fn env(&self) -> Env {
        let desk = self.clone();
        let runtime = Gate::new(MadsimRuntime::new(), move |_| desk.book().may_start());
        Env { runtime: Arc::new(runtime), ..workload::env() }
    }

    /// Reports whether a sync of the parent has failed on this machine.
    pub(crate) fn parent_failed(&self) -> bool {
        self.storage.counters().failed_parent_syncs > 0
    }

    /// Reports whether the machine has stopped. Later events on it are not recorded.
    pub(crate) fn stopped(&self) -> bool {
        let stopped = self.storage.stopped();
        if stopped {
            self.strike.notify_one();
        }
        stopped
    }

    /// Records an event, unless the machine has stopped.
    fn event<T>(&self, note: impl FnOnce(&mut Book, u64) -> T) -> Option<T> {
        if self.stopped() {
            return None;
        }
        let mut book = self.book();
        let at = self.count(&mut book);
        if book.open {
            book.life.last_event = book.start.elapsed();
        }
        Some(note(&mut book, at))
    }

    fn count(&self, book: &mut Book) -> u64 {
        book.events += 1;
        if book.events >= book.strike_at {
            self.strike.notify_one();
        }
        book.events
    }

    /// Records an operation that the storage is about to do, and injects its fault.
    fn operation(&self, info: &OpInfo) {
        let mut book = self.book();
        let at = self.count(&mut book);
        if let Some(fault) = book.fault(info) {
            self.storage.plan(1, fault);
            book.hash(|text| write!(text, "{at} {fault};"));
        }
        if !info.op.is_sync() {
            return;
        }
        book.note_sync(info);
        match book.syncs_left {
            Some(0) => {
                book.syncs_left = None;
                self.storage.fail_next_sync(io::ErrorKind::Other);
                book.hash(|text| write!(text, "{at} sync fails;"));
            }
            left => book.syncs_left = left.map(|left| left - 1),
        }
    }

    pub(crate) fn note(&self, seen: Seen) {
        self.book().tally.note(seen);
    }

    /// Records an open, and the state that a search shows. Judges the previous life and begins the next one.
    pub(crate) fn opened(&self, found: &SearchResponse) {
        self.event(|book, at| {
            let state = batch::state(found).unwrap_or_else(|what| panic!("the open: {what}"));
            book.hash(|text| write!(text, "{at} opened {state:?};"));
            let findings = verdict::judge(&book.life, &state).unwrap_or_else(|what| panic!("{what}"));
            book.note_findings(&findings);
            book.begin(state, found.lsn.0);
        });
    }

    pub(crate) fn recovered(&self, stats: &IndexStats) {
        let mut book = self.book();
        book.operations = operations(stats);
        if stats.recovery.records_replayed > 0 {
            book.tally.note(Seen::Replayed);
        }
        if stats.recovery.torn_tail {
            book.tally.note(Seen::TornTails);
        }
    }

    /// Lets all further stores succeed. Reports whether some have failed.
    pub(crate) fn end_trouble(&self) -> bool {
        let mut book = self.book();
        book.trouble = None;
        book.life.disturbed
    }

    /// Records a refused check. Only a thread that could not be started may cause it.
    pub(crate) fn check_refused(&self) {
        let mut book = self.book();
        assert!(std::mem::take(&mut book.start_failed), "every thread was started");
        book.tally.note(Seen::ChecksWithoutThread);
    }

    /// Records a refused open. Only a failed sync or a thread that could not be started may cause it.
    pub(crate) fn open_refused(&self, error: &ShardexError) {
        let mut book = self.book();
        if matches!(error, ShardexError::Io { op: "start", .. }) {
            assert!(std::mem::take(&mut book.start_failed), "every thread was started");
            return book.tally.note(Seen::OpensWithoutThread);
        }
        let failed = book.plan.as_ref().is_some_and(|plan| plan.failing_sync.is_some()) && book.syncs_left.is_none();
        assert!(failed && Refusal::of(error) == Some(Refusal::Sync), "the open was refused: {error:?}");
        // A failed sync may refuse an open only once.
        book.plan.as_mut().expect("a life has a plan").failing_sync = None;
        book.tally.note(Seen::OpensFailed);
    }

    /// Records the start of a call. Returns its index, its number and its action, or `None` if the machine has stopped.
    /// A removal without a receipt to remove adds instead.
    pub(crate) fn begin(&self, writer: usize, wish: Wish) -> Option<(usize, u64, Action)> {
        self.event(|book, at| {
            let number = book.next_number;
            book.next_number += 1;
            let action = book.action(writer, wish);
            book.hash(|text| write!(text, "{at} {writer} {number} {action:?};"));
            book.note_begin();
            let call = Call {
                writer,
                number,
                action: action.clone(),
                began: at,
                after_failure: book.life.failed,
                after_end: book.life.ending != Ending::Crash,
                outcome: Outcome::Open,
            };
            book.life.calls.push(call);
            (book.life.calls.len() - 1, number, action)
        })
    }

    /// Records the return of a call. Reports whether it was refused.
    pub(crate) fn end(&self, call: usize, result: Result<Option<u64>, ShardexError>) -> bool {
        self.event(|book, at| {
            book.hash(|text| write!(text, "{at} {call} {result:?};"));
            let outcome = match &result {
                Ok(removed) => Outcome::Done { at, time: book.life.last_event, removed: *removed },
                Err(error) => match Refusal::of(error) {
                    Some(why) => Outcome::Refused(why),
                    None => panic!("{:?} was refused: {error:?}", book.life.calls[call]),
                },
            };
            book.end(call, outcome);
            result.is_err()
        })
        .unwrap_or(true)
    }

    /// Records that a call was dropped.
    pub(crate) fn give_up(&self, call: usize) {
        self.event(|book, at| {
            book.hash(|text| write!(text, "{at} {call} given up;"));
            book.life.calls[call].outcome = Outcome::Dropped;
        });
    }

    /// Records the return of a search. Reports whether the reader may continue.
    pub(crate) fn saw(&self, result: Result<SearchResponse, ShardexError>) -> bool {
        self.event(|book, at| match result {
            Ok(response) => {
                assert!(book.life.ending == Ending::Crash, "a search succeeded after the close");
                book.hash(|text| write!(text, "{at} saw {} {:?};", response.lsn, response.results));
                let state = batch::state(&response).unwrap_or_else(|what| panic!("{what}"));
                book.saw(at, response.lsn.0, state);
                true
            }
            Err(ShardexError::Closed) if book.closing => {
                book.tally.note(Seen::RefusedClosed);
                false
            }
            Err(error) => panic!("a search was refused: {error:?}"),
        })
        .unwrap_or(false)
    }

    /// Records that the given number of writers begin.
    pub(crate) fn begin_work(&self, writers: usize) {
        self.book().writers_left = writers;
        if writers == 0 {
            self.strike.notify_one();
        }
    }

    /// Records that a writer has finished.
    pub(crate) fn end_work(&self) {
        let mut book = self.book();
        book.writers_left -= 1;
        if book.writers_left == 0 {
            self.strike.notify_one();
        }
    }

    /// Reports whether all writers have finished and no sync has failed.
    pub(crate) fn is_settled(&self) -> bool {
        let book = self.book();
        book.writers_left == 0 && !book.life.failed
    }

    /// Checks an index that has had no writes for as long as its timers need. The operations carried out are those that
    /// a search shows, so none was done twice. All background commits and flushes are done.
    pub(crate) fn settled(&self, before: &IndexStats, after: &IndexStats, found: &SearchResponse) {
        let mut book = self.book();
        let state = batch::state(found).unwrap_or_else(|what| panic!("{what}"));
        let calls = verdict::decode(&book.life, &state).unwrap_or_else(|what| panic!("{what}"));
        let shown: u64 = calls.iter().map(|&call| book.life.calls[call].action.operations()).sum();
        assert_eq!(operations(after) - book.operations, shown, "operations carried out, and those a search shows");
        book.tally.note(Seen::Settled);
        book.note_timers(before, after);
    }

    /// Records the call of `close`.
    pub(crate) fn begin_close(&self) {
        self.event(|book, _| {
            book.closing = true;
            if book.calls_open() > 0 {
                book.tally.note(Seen::ClosedInCall);
            }
        });
    }

    /// Records the return of `close`.
    pub(crate) fn end_close(&self, result: &Result<(), ShardexError>, failed_before: bool) {
        self.event(|book, at| {
            book.hash(|text| write!(text, "{at} close {result:?};"));
            match result {
                Ok(()) => {
                    assert!(!failed_before, "close succeeded after a failed sync");
                    book.life.ending = Ending::Closed;
                    book.tally.note(Seen::Closed);
                }
                Err(error) => {
                    let why = Refusal::of(error);
                    let poisoned = matches!(why, Some(Refusal::Sync | Refusal::Poisoned)) && book.life.failed;
                    let disturbed = matches!(why, Some(Refusal::Store | Refusal::Full)) && book.life.disturbed;
                    assert!(poisoned || disturbed, "close was refused: {error:?}");
                    book.life.ending = Ending::CloseRefused;
                    book.tally.note(if poisoned { Seen::ClosePoisoned } else { Seen::CloseDisturbed });
                }
            }
        });
    }

    /// Checks that the lock is free, or held only by a reader, as soon as `close` has returned.
    pub(crate) fn assert_let_go(&self) {
        match self.storage.lock("LOCK").map(drop) {
            Ok(()) | Err(ShardexError::Locked { holder: LockHolder::Reader, .. }) => {}
            other => panic!("close lets the lock go before it returns: {other:?}"),
        }
    }

    /// Checks that the lock is free after the last reader has finished.
    pub(crate) fn assert_released(&self) {
        drop(self.storage.lock("LOCK").expect("the lock goes with the last reader"));
    }

    /// Returns the number of turns after which an open is abandoned. Returns a number only once per life, and none
    /// after a failed sync of the parent.
    pub(crate) fn patience(&self) -> Option<u32> {
        let failed = self.parent_failed();
        self.book().plan.as_mut().and_then(|plan| plan.abandons.take()).filter(|_| !failed)
    }

    /// Reports whether there is an index to open.
    pub(crate) fn made(&self) -> bool {
        self.book().made
    }

    /// Reports whether a sync has failed in this life.
    pub(crate) fn failed(&self) -> bool {
        self.book().life.failed
    }

    /// Records that all handles are dropped.
    pub(crate) fn dropped(&self) {
        self.event(|book, _| {
            book.closing = true;
            book.life.ending = Ending::Dropped;
            book.tally.note(Seen::Dropped);
            if book.calls_open() > 0 {
                book.tally.note(Seen::DroppedInCall);
            }
        });
    }

    /// Records the crash that ended the life.
    pub(crate) fn crashed(&self, end: End, crash: CrashKind) {
        let mut book = self.book();
        book.crashed = true;
        book.tally.note(match crash {
            CrashKind::Power => Seen::PowerCuts,
            CrashKind::Process => Seen::ProcessCrashes,
        });
        let seen = match (book.made, book.open) {
            (false, _) => Seen::CreateCut,
            (true, false) => Seen::OpenCut,
            (true, true) if book.calls_open() > 0 => Seen::KilledInCall,
            (true, true) => Seen::KilledIdle,
        };
        book.tally.note(seen);
        if matches!(end, End::Cut { .. }) && self.storage.stopped() {
            book.tally.note(Seen::StoppedInOperation);
        }
    }

    /// Returns the hash and the counts of the whole run.
    pub(crate) fn result(&self) -> (Fnv, Tally) {
        let mut book = self.book();
        for entry in self.storage.take_trace() {
            book.hash(|text| write!(text, "{entry};"));
        }
        self.storage.read_files(|name, bytes| {
            book.hash.feed(name.as_bytes());
            book.hash.feed(bytes);
        });
        (book.hash, book.tally.clone())
    }
}

/// Returns the number of operations accepted since the open.
fn operations(stats: &IndexStats) -> u64 {
    stats.flush_totals.operations_applied as u64 + stats.pending_operations
}

/// Level of every check.
pub(crate) const CHECK: CheckLevel = CheckLevel::Full;
