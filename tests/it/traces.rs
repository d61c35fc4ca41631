//! Snapshot tests of the storage operations of fixed workloads, in order, and of the text of reports. A review then
//! shows every change in the order of stores and syncs.

use shardex::{CheckLevel, Engine};
use shardex_sim::{
    SimStorage,
    case::{Case, Crash, Event, Survivors},
    storage::CrashKind,
    workload::{self, Runner, Step, Workload, env},
};

fn named(name: &str) -> Workload {
    workload::reference().into_iter().find(|workload| workload.name == name).expect("a reference workload")
}

/// Returns all operations of a case, one per line.
fn trace(case: &Case) -> String {
    let verdict = case.run();
    assert_eq!((verdict.broken, verdict.detected), (None, None));
    verdict.trace.iter().map(|entry| format!("{entry}\n")).collect()
}

fn case(workload: Workload) -> Case {
    let events = workload.steps.iter().cloned().map(Event::Do).collect();
    Case { workload, seed: 1, garbage: false, events }
}

#[test]
fn create_add_commit_and_flush_do_these_operations() {
    insta::assert_snapshot!(trace(&case(named("one posting"))));
}

#[test]
fn splits_and_freed_shards_do_these_operations() {
    insta::assert_snapshot!(trace(&case(named("freed shards"))));
}

#[test]
fn writes_inside_a_flush_do_these_operations() {
    insta::assert_snapshot!(trace(&case(named("writes inside a flush"))));
}

#[test]
fn a_recovery_does_these_operations() {
    let mut case = case(named("one posting"));
    let survivors = Survivors::Picks(Vec::new());
    let stop = shardex_sim::Stop::Before;
    case.events.truncate(2);
    case.events.push(Event::Crash(Crash { after: 0, stop, kind: CrashKind::Power, survivors, damage: None }));
    insta::assert_snapshot!(trace(&case));
}

#[test]
fn a_clean_close_and_open_do_these_operations() {
    let mut case = case(named("one posting"));
    case.events.extend([Event::Do(Step::Close), Event::Do(Step::Reopen)]);
    insta::assert_snapshot!(trace(&case));
}

#[test]
fn reports_read_like_this() {
    let workload = named("freed shards");
    let storage = SimStorage::new(workload.page_size, workload.sector_size, 1);
    let mut runner = Runner::new(&workload, env());
    for step in &workload.steps {
        runner.step(&storage, step).expect("nothing goes wrong");
    }
    let engine: &Engine<SimStorage> = runner.engine.as_ref().expect("it is open");
    let flushed = engine.stats().expect("stats").last_flush.expect("it was flushed");
    let clean = engine.check(CheckLevel::Full).expect("readable");
    let extents = storage.files().into_iter().find(|(name, _)| name == "data").map_or(0, |(_, bytes)| bytes.len());
    storage.tamper("data", |bytes| (256..extents).step_by(256).for_each(|at| bytes[at] ^= 1));
    let damaged = engine.check(CheckLevel::Full).expect("readable");
    insta::assert_snapshot!(format!("{flushed}\n\n{clean}\n\n{damaged}"));
}
