//! Backups of simulated indexes: one that stays under way while an index is written to, and backups and restores that crash
//! or meet a fault at each of their operations.
//!
//! # Rules
//! 1. What a backup restores equals the state that its index had when it began, whatever was written meanwhile.
//! 2. After a crash the directory holds a whole backup, or none and says so. If the call has returned, it holds the backup.
//! 3. After a crash of a restore the directory holds the whole index, or none and says so. If the call has returned, it holds
//!    the index.
//! 4. A fault gives an error, or does no harm. A sync that lies is found when the bytes are read back, unless it was that of
//!    directory entries, which nobody can read back, or of the recovery by which a restore ends.

use std::{cell::RefCell, fmt, ops::Range};

use rand::{RngExt as _, SeedableRng as _, rngs::ChaCha8Rng};
use shardex::{
    BackupJob, Engine, Metric, OpenOptions, Result, ShardexConfig, ShardexError, WriteBatch, env::Never, restore,
    storage::Storage, verify_backup,
};

use crate::{
    model::contents,
    mutant::{MutantStorage, next_turn},
    state::{State, same},
    storage::{CrashKind, Fault, Op, SimStorage, Stop, TraceEntry},
    workload::{env, postings},
};

/// Storage of the explored calls, whose mutants apply.
type Disk = MutantStorage<SimStorage>;

/// Number of runs with each fault at an operation.
const DRAWS: u64 = 4;

/// Backup under way, and the earlier one that the next is made against.
pub(crate) struct Backups<S: Storage> {
    under_way: Option<(BackupJob<S>, State)>,
    earlier: Option<SimStorage>,
    number: u64,
}

impl<S: Storage> Default for Backups<S> {
    fn default() -> Self {
        Self { under_way: None, earlier: None, number: 0 }
    }
}

impl<S: Storage> Backups<S> {
    /// Reports whether a backup is under way.
    pub(crate) fn is_under_way(&self) -> bool {
        self.under_way.is_some()
    }

    /// Drops the backup under way.
    pub(crate) fn cancel(&mut self) {
        self.under_way = None;
    }

    /// Begins a backup of an engine that has just flushed, or ends the one under way and checks what it restores.
    ///
    /// # Errors
    /// Returns the errors of the engine, and `Inconsistent` if the restored index differs.
    pub(crate) fn step(&mut self, engine: &mut Engine<S>) -> Result<()> {
        let Some((job, expected)) = self.under_way.take() else {
            let begun = engine.backup_begin()?;
            // Damage in what the state is compared with is found by the other checks.
            self.under_way = contents(engine).ok().map(|state| (begun, state));
            return Ok(());
        };
        self.number += 1;
        let geometry = engine.geometry();
        let to = SimStorage::new(geometry.page_size, geometry.sector_size, self.number);
        to.set_no_links(self.number.is_multiple_of(3));
        job.run_until(&to, self.earlier.as_ref(), &Never)?;
        let restored = restored(&to);
        match restored {
            Ok(state) if same(&state, &expected, geometry.metric) => {}
            Ok(state) => {
                let finding = format!("a backup restores {} postings, {} were there", state.len(), expected.len());
                return Err(ShardexError::Inconsistent { finding });
            }
            Err(how) => {
                return Err(ShardexError::Inconsistent { finding: format!("a backup does not restore: {how}") });
            }
        }
        self.earlier = Some(to);
        Ok(())
    }
}

/// Returns the content that a backup restores.
fn restored(from: &SimStorage) -> Result<State, String> {
    let to = SimStorage::new(from.page_size(), from.sector_size(), 1);
    restore(from, to.clone(), &env(), &Never).map_err(|e| e.to_string())?;
    opened(&to)
}

/// Returns the content of an index.
fn opened(storage: &SimStorage) -> Result<State, String> {
    let engine = Engine::open(storage.clone(), OpenOptions::default(), &env()).map_err(|e| e.to_string())?;
    contents(&engine)
}

/// Numbers of an exploration.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BackupReport {
    /// Crash points: operations, each with the parts of it that may be done.
    pub points: u64,
    /// States after a crash that were judged.
    pub states: u64,
    /// States that held a whole backup or index.
    pub whole: u64,
    /// Faults.
    pub faults: u64,
    /// Faults that the call survived with `Ok`.
    pub survived: u64,
}

impl fmt::Display for BackupReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { points, states, whole, faults, survived } = self;
        write!(f, "{points} crash points, {states} states, {whole} whole; {faults} faults, {survived} harmless")
    }
}

/// Explored call: fills a directory.
struct Call<'a> {
    name: &'static str,
    run: &'a dyn Fn(&Disk) -> Result<()>,
    /// Returns the content of a directory; `None` if it says that it holds nothing whole.
    read: &'a dyn Fn(&SimStorage) -> Result<Option<State>, String>,
    expected: State,
}

/// Explores a backup, a backup against it, and a restore, with up to `states` states at each crash point, drawn if there are
/// more.
///
/// # Errors
/// Returns the first broken rule.
pub fn explore(states: usize) -> Result<BackupReport, String> {
    let mut report = BackupReport::default();
    let fail = |e: ShardexError| format!("without a crash: {e}");
    let config = ShardexConfig::new("sim").vector_size(5).shard_size(8).wal_segment_size(2048);
    let engine = Engine::create(SimStorage::new(512, 64, 1), &config.wal_max_bytes(64 << 10), &env()).map_err(fail)?;
    let source = RefCell::new(engine);
    let back_up = |to: &Disk, base: Option<&SimStorage>| {
        let job = source.borrow_mut().backup_begin()?;
        let base = base.map(|base| MutantStorage::new(base.clone()));
        job.run_until(to, base.as_ref(), &Never).map(drop)
    };
    let at_first = written(&mut source.borrow_mut(), 0..40, &[])?;
    let full = |to: &Disk| back_up(to, None);
    explore_call(&Call { name: "a backup", run: &full, read: &backed_up, expected: at_first }, states, &mut report)?;

    let base = SimStorage::new(512, 64, 1);
    full(&MutantStorage::new(base.clone())).map_err(fail)?;
    // Places that grow, others that are replaced, and most that stay.
    let at_second = written(&mut source.borrow_mut(), 40..43, &[3, 17])?;
    for links in [true, false] {
        let against = |to: &Disk| {
            to.inner().set_no_links(!links);
            back_up(to, Some(&base))
        };
        let name = if links { "a backup that links" } else { "a backup that copies" };
        let call = Call { name, run: &against, read: &backed_up, expected: at_second.clone() };
        explore_call(&call, states, &mut report)?;
    }

    let last = SimStorage::new(512, 64, 2);
    back_up(&MutantStorage::new(last.clone()), Some(&base)).map_err(fail)?;
    let from = MutantStorage::new(last);
    let again = |to: &Disk| restore(&from, to.clone(), &env(), &Never).map(drop);
    explore_call(&Call { name: "a restore", run: &again, read: &made, expected: at_second }, states, &mut report)?;
    Ok(report)
}

/// Adds documents with payloads, removes others, builds cells and flushes. Returns the content.
fn written(engine: &mut Engine<SimStorage>, added: Range<u64>, removed: &[u128]) -> Result<State, String> {
    let mut batch = WriteBatch::new();
    for posting in postings(added.clone(), 0, 1, engine.geometry().dimension) {
        batch.add(posting);
    }
    for id in added.step_by(4) {
        batch.set_payload(u128::from(id), format!("{id} ").repeat(if id.is_multiple_of(8) { 150 } else { 3 }));
    }
    for &id in removed {
        batch.remove_document(id);
    }
    let done = engine.write(&batch).and_then(|_| if removed.is_empty() { engine.optimize() } else { Ok(()) });
    done.and_then(|()| engine.flush()).map_err(|e| e.to_string())?;
    contents(engine)
}

/// Returns the content of a backup; `None` if it says that it is none.
fn backed_up(storage: &SimStorage) -> Result<Option<State>, String> {
    match verify_backup(storage, &Never) {
        Ok(_) => restored(storage).map(Some),
        Err(ShardexError::NotABackup { .. }) => Ok(None),
        Err(error) => Err(error.to_string()),
    }
}

/// Returns the content of an index; `None` if it says that there is none.
fn made(storage: &SimStorage) -> Result<Option<State>, String> {
    match Engine::open(storage.clone(), OpenOptions::default(), &env()) {
        Ok(engine) => contents(&engine).map(Some),
        Err(ShardexError::NotFound { .. }) => Ok(None),
        // A root file that is missing beside a data file: an interrupted restore, or a lost root.
        Err(ShardexError::Corruption { file, .. }) if file.ends_with("root") && !has(storage, "root") => Ok(None),
        Err(error) => Err(error.to_string()),
    }
}

fn has(storage: &SimStorage, name: &str) -> bool {
    storage.list().is_ok_and(|names| names.iter().any(|found| found == name))
}

/// Explores the crashes of a call at each of its operations, and the faults there.
fn explore_call(call: &Call<'_>, states: usize, report: &mut BackupReport) -> Result<(), String> {
    let whole = SimStorage::new(512, 64, 3);
    whole.set_trace(true);
    run(call, &whole).map_err(|e| format!("{}: {e}", call.name))?;
    let trace = whole.take_trace();
    for (operation, n) in trace.iter().zip(1u64..) {
        for stop in [Stop::Before, Stop::Torn, Stop::After] {
            let storage = SimStorage::new(512, 64, n);
            storage.crash_after(n, stop);
            let ended = run(call, &storage);
            // The machine may stop after the last operation that counts: at the removal of the lock file, say.
            let returned = ended.is_ok();
            report.points += 1;
            judge_crashes(call, &storage, returned, states, report)
                .map_err(|how| format!("{}, {stop:?} {operation}: {how}", call.name))?;
        }
        explore_faults(call, operation, n, states, report)
            .map_err(|how| format!("{}, {operation}: {how}", call.name))?;
    }
    // Everything is durable once the call has returned.
    judge_crashes(call, &whole, true, 4 * states, report).map_err(|how| format!("after {}: {how}", call.name))
}

fn run(call: &Call<'_>, storage: &SimStorage) -> Result<()> {
    // What a mutant has deferred beyond the return of a call is due one call later.
    next_turn();
    let done = (call.run)(&MutantStorage::new(storage.clone()));
    next_turn();
    done
}

/// Judges states that a crash at this moment may leave.
fn judge_crashes(
    call: &Call<'_>,
    storage: &SimStorage,
    returned: bool,
    states: usize,
    report: &mut BackupReport,
) -> Result<(), String> {
    let image = storage.image();
    let mut rng = ChaCha8Rng::seed_from_u64(storage.operations());
    for kind in [CrashKind::Power, CrashKind::Process] {
        let choices = storage.choices(kind);
        let all = choices.iter().try_fold(1usize, |all, choice| all.checked_mul(choice.options));
        let count = all.filter(|all| *all <= states).unwrap_or(states + 2);
        for state in 0..count {
            let mut left = state;
            let picks: Vec<usize> = choices
                .iter()
                .map(|choice| match all {
                    Some(all) if all <= states => {
                        let pick = left % choice.options;
                        left /= choice.options;
                        pick
                    }
                    _ if state == 0 => 0,
                    _ if state == 1 => choice.newest,
                    _ => rng.random_range(0..choice.options),
                })
                .collect();
            let mut crashed = SimStorage::from_image(&image);
            crashed.crash_with(kind, &picks);
            report.states += 1;
            match (call.read)(&crashed).map_err(|how| format!("{kind:?} {picks:?}: {how}"))? {
                None if returned => {
                    return Err(format!("{kind:?} {picks:?}: nothing is there, and the call had returned"));
                }
                None => {}
                Some(state) if same(&state, &call.expected, Metric::L2) => report.whole += 1,
                Some(state) => return Err(format!("{kind:?} {picks:?}: {} postings, others than before", state.len())),
            }
        }
    }
    Ok(())
}

/// Runs the call with each fault that can fire at its operation `n`.
fn explore_faults(
    call: &Call<'_>,
    operation: &TraceEntry,
    n: u64,
    states: usize,
    report: &mut BackupReport,
) -> Result<(), String> {
    // A restore ends with an open. Nothing reads the root file of its recovery back.
    let is_of_open = operation.purpose.0.starts_with(['B', 'E']);
    let of_op: &[Fault] = match operation.op {
        Op::SyncAll | Op::SyncRange if is_of_open => &[Fault::FailSync { full: false }],
        Op::SyncAll | Op::SyncRange => &[Fault::FailSync { full: false }, Fault::LieAtSync, Fault::Misdirect],
        // No one can read an entry back from the device, so a lie about it stays unnoticed.
        Op::SyncDir | Op::SyncParent => &[Fault::FailSync { full: false }],
        Op::Store => &[Fault::FailStore { full: false }, Fault::FailStore { full: true }],
        Op::Allocate => &[Fault::NoSpace],
        Op::Create | Op::Link | Op::MakeDir | Op::Rename => &[Fault::NoSpace, Fault::FailEntry],
        Op::Remove | Op::Deallocate => &[],
    };
    // What a fault leaves is drawn.
    for (&fault, draw) in of_op.iter().flat_map(|fault| (0..DRAWS).map(move |draw| (fault, draw))) {
        let storage = SimStorage::new(512, 64, n + (draw << 32));
        storage.plan(n, fault);
        let ended = run(call, &storage);
        storage.clear_plan();
        report.faults += 1;
        report.survived += u64::from(ended.is_ok());
        judge_crashes(call, &storage, ended.is_ok(), states, report).map_err(|how| format!("{fault:?}: {how}"))?;
    }
    Ok(())
}
