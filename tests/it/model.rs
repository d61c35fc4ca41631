//! Tests of random histories on the simulated disk against the model. A history consists of additions, replacements,
//! removals, commits, flushes, cell builds, reopens, faults, and crashes of the process or of the power at any
//! operation, during recovery too. The faults are failed syncs, stores and reads, failed changes of directory entries,
//! lack of space, jumps of the clock, and a rotten or stale root. A history that breaks a promise is shrunk.

use std::collections::BTreeMap;

use proptest::{
    prelude::*,
    strategy::ValueTree as _,
    test_runner::{Config, RngAlgorithm, TestCaseError, TestRng, TestRunner},
};
use shardex::{CheckLevel, Metric};
use shardex_sim::{
    CrashKind, Fault, Stop,
    case::{Case, Crash, Damage, Event, Survivors},
    mutant::{self, Call, How, Mutant},
    mutation,
    workload::{Step, Workload, WorkloadParams},
};

/// Number of random histories.
const CASES: u32 = 12_000;
/// Smallest number of histories in which each of the listed marks must occur.
const ENOUGH: u32 = 100;

fn kinds() -> impl Strategy<Value = CrashKind> {
    prop_oneof![1 => Just(CrashKind::Process), 3 => Just(CrashKind::Power)]
}

fn crashes() -> impl Strategy<Value = Crash> {
    let stops = prop_oneof![Just(Stop::Before), Just(Stop::Torn), Just(Stop::After)];
    let damage = prop_oneof![8 => Just(None), 1 => Just(Some(Damage::RotRoot)), 1 => Just(Some(Damage::StaleRoot))];
    (prop_oneof![1 => Just(0), 3 => 1..40u64], stops, kinds(), any::<u32>(), damage).prop_map(
        |(after, stop, kind, seed, damage)| {
            let survivors = Survivors::Seed(seed.into());
            Crash { after, stop, kind, survivors, damage }
        },
    )
}

fn faults() -> impl Strategy<Value = Fault> {
    prop_oneof![
        any::<bool>().prop_map(|full| Fault::FailSync { full }),
        any::<bool>().prop_map(|full| Fault::FailStore { full }),
        Just(Fault::NoSpace),
        Just(Fault::FailEntry),
        Just(Fault::FailRead),
        (-9_999_999..9_999_999i64).prop_map(Fault::ClockJump),
    ]
}

fn steps() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => (0..60u64, 1..12u64, 0..2u32, 0..1_000u64)
            .prop_map(|(first, count, start, salt)| Step::Add { first, count, start, salt }),
        3 => (0..60u64, 1..30u64).prop_map(|(first, count)| Step::Remove { first, count }),
        3 => Just(Step::Commit),
        4 => Just(Step::Flush),
        2 => Just(Step::Optimize),
        2 => (0..60u64, 1..12u64, 0..1_000u64).prop_map(|(first, count, salt)| Step::SlowFlush { first, count, salt }),
        2 => (0..60u64, 1..12u64, 0..1_000u64)
            .prop_map(|(first, count, salt)| Step::OverlappedFlush { first, count, salt }),
        1 => (0..400u64).prop_map(|questions| Step::OptimizeUntil { questions }),
        1 => Just(Step::Reopen),
        1 => Just(Step::Close),
    ]
}

fn events() -> impl Strategy<Value = Event> {
    prop_oneof![
        20 => steps().prop_map(Event::Do),
        4 => crashes().prop_map(Event::Crash),
        1 => (1..20u64, faults()).prop_map(|(after, fault)| Event::Fault { after, fault }),
    ]
}

fn histories() -> impl Strategy<Value = Case> {
    (
        prop_oneof![Just(3usize), Just(17), Just(20)],
        prop_oneof![Just(2usize), Just(5), Just(8)],
        prop_oneof![Just(Metric::L2), Just(Metric::Dot), Just(Metric::Cosine)],
        (prop::bool::weighted(0.1), prop::bool::weighted(0.2), prop::bool::weighted(0.1)),
        any::<u64>(),
        prop::collection::vec(events(), 4..50),
    )
        .prop_map(|(dimension, shard_size, metric, (real_pages, commits_on_close, full_checks), seed, events)| {
            let mut workload = Workload::blank("history", WorkloadParams { dimension, shard_size, metric }, real_pages);
            workload.config = workload.config.flush_on_close(!commits_on_close);
            if full_checks {
                workload.config = workload.config.flush_check(CheckLevel::Full);
            }
            Case { workload, seed, garbage: false, events }
        })
}

#[test]
fn random_histories_with_crashes_agree_with_the_model() {
    let config = Config { cases: CASES, failure_persistence: None, max_shrink_iters: 4_000, ..Config::default() };
    let mut runner = TestRunner::new_with_rng(config, TestRng::deterministic_rng(RngAlgorithm::ChaCha));
    let held = std::cell::RefCell::new(BTreeMap::<&str, u32>::new());
    let result = runner.run(&histories(), |history| {
        let verdict = history.run();
        if let Some(broken) = verdict.broken.or(verdict.detected) {
            return Err(TestCaseError::fail(format!("{broken}\n{history}")));
        }
        let mut held = held.borrow_mut();
        verdict
            .marks
            .into_keys()
            .chain(verdict.faults.into_keys())
            .for_each(|mark| *held.entry(mark).or_default() += 1);
        Ok(())
    });
    if let Err(error) = result {
        panic!("{error}");
    }
    let held = held.into_inner();
    println!("of {CASES} histories:");
    held.iter().for_each(|(mark, n)| println!("  {n:>5} held: {mark}"));
    for mark in [
        "a shard was split",
        "a segment was recycled",
        "a shard without postings was removed",
        "a shard was merged into its neighbours",
        "a split moved a posting to a neighbour",
        "a split took a posting from a neighbour",
        "a torn tail was found",
        "the older root was used",
        "writes went on inside a flush",
        "the engine was poisoned",
        "a batch was undone",
        "a flush was undone",
        "crash in a recovery",
        "damage: rot-root",
        "damage: stale-root",
        "torn store",
        "power cut",
        "process crash",
    ] {
        let n = held.get(mark).copied().unwrap_or(0);
        assert!(n >= ENOUGH, "only {n} histories held: {mark}");
    }
}

/// Mutation test: if any one of the barriers B1 to B5 is dropped, one of at most `2 * CASES` histories breaks a
/// promise.
#[test]
fn every_barrier_is_needed() {
    let barriers: Vec<(Mutant, Call)> = mutation::all()
        .into_iter()
        .filter_map(|mutant| match mutant {
            Mutant::Call(call, How::Dropped) if call.purpose.starts_with('B') => Some((mutant, call)),
            _ => None,
        })
        .collect();
    let named: std::collections::BTreeSet<&str> = barriers.iter().map(|(_, call)| &call.purpose[..2]).collect();
    assert!(named.into_iter().eq(["B1", "B2", "B3", "B4", "B5"]), "{barriers:?}");
    for (mutant, call) in barriers {
        let mut runner = TestRunner::new_with_rng(Config::default(), TestRng::deterministic_rng(RngAlgorithm::ChaCha));
        let found = (1..=2 * CASES).find(|_| {
            let history = histories().new_tree(&mut runner).expect("a history").current();
            mutant::with(Some(mutant), || history.run()).broken.is_some()
        });
        match found {
            Some(n) => println!("without {call}: found by history {n}"),
            None => panic!("{} histories pass without {call}", 2 * CASES),
        }
    }
}

/// Runs every case twice. Both runs leave the same bytes and the same trace (P7).
#[test]
fn the_same_history_leaves_the_same_trace() {
    for seed in 1..200 {
        let (once, again) = (Case::generated(seed).run(), Case::generated(seed).run());
        assert_eq!(once.trace, again.trace, "seed {seed}");
        assert_eq!((once.marks, once.faults), (again.marks, again.faults), "seed {seed}");
        assert_eq!(once.bytes_hash, again.bytes_hash, "seed {seed}");
    }
}
