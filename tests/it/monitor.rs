//! Tests of the protocol monitor without exploration of crash points. It finds every omitted sync of the protocol, and
//! no breach in a correct run.

use std::{
    collections::BTreeSet,
    panic::{AssertUnwindSafe, catch_unwind},
};

use rand::{SeedableRng as _, rngs::ChaCha8Rng};
use shardex::Metric;
use shardex_sim::{
    CrashKind, HookAction, HookStorage, SimStorage,
    mutant::{self, How, Mutant, MutantStorage, next_turn},
    mutation, pool,
    watch::{Watch, WatchedStorage},
    workload::{Runner, Step, Workload, WorkloadParams, env},
};

fn add(first: u64, count: u64) -> Step {
    Step::Add { first, count, start: 0, salt: first }
}

/// Runs a workload that passes every barrier. It creates an index, writes and flushes. It crashes twice with a root
/// that is stored but not synced, once in the first epoch and once in a later one. It closes and reopens the index, and
/// writes until the WAL grows, before a commit and before a flush.
fn life() {
    let workload = Workload::blank("a life", WorkloadParams { dimension: 3, shard_size: 4, metric: Metric::L2 }, false);
    let mut sim = SimStorage::new(workload.page_size, workload.sector_size, 1);
    let watch = Watch::new(&sim);
    let mut runner = Runner::new(&workload, env());
    runner.watch = Some(watch.clone());
    let lives = [
        vec![add(0, 6), Step::Commit, Step::Flush, add(10, 5), Step::Flush, add(20, 2), Step::Commit, add(30, 1)],
        vec![add(40, 3), Step::Commit, Step::Optimize, Step::Flush, add(50, 1), Step::Close, add(60, 2), Step::Commit],
        vec![add(100, 400), Step::Commit, add(500, 600), Step::Flush, Step::Close],
    ];
    for steps in lives {
        let watched = WatchedStorage::new(sim.clone(), watch.clone());
        let storage = MutantStorage::new(HookStorage::new(watched, |_| HookAction::Proceed));
        for step in &steps {
            runner.step(&storage, step).expect("nothing fails");
        }
        next_turn();
        let Some(mut engine) = runner.engine.take() else { return };
        let mut step = engine.flush_begin(true).expect("begun");
        while let Ok(job) = step.into_sync() {
            if job.purpose().0.starts_with("B3") {
                break;
            }
            step = engine.flush_synced(job.run()).expect("the root is stored");
        }
        drop(engine);
        sim.crash(CrashKind::Process, &mut ChaCha8Rng::seed_from_u64(1));
        watch.crashed(&sim, CrashKind::Process);
    }
}

/// Runs [`life`] and returns the message of its panic, which names the breach that the monitor found.
fn breach() -> Option<String> {
    let panic = catch_unwind(AssertUnwindSafe(life)).err()?;
    Some(pool::panic_text(&*panic).to_owned())
}

#[test]
fn nothing_is_wrong_with_a_life_that_passes_every_barrier() {
    assert_eq!(mutant::with(None, breach), None);
}

#[test]
fn every_sync_left_out_is_a_breach_of_the_protocol() {
    let (mut named, mut missed) = (BTreeSet::new(), Vec::new());
    for mutant in mutation::all() {
        let Mutant::Call(call, How::Dropped) = mutant else { continue };
        if !call.op.is_sync() || !call.purpose.starts_with(['B', 'C', 'E']) {
            continue;
        }
        named.insert(call.purpose[..2].to_owned());
        match mutant::with(Some(mutant), breach) {
            Some(what) if what.contains("protocol: ") => println!("without {call}: {what}"),
            other => missed.push(format!("{call}: {other:?}")),
        }
    }
    let all = ["B1", "B2", "B3", "B4", "B5", "C1", "C2", "C3", "C4", "E1", "E2"];
    assert!(named.iter().eq(all.iter()), "{named:?}");
    assert!(missed.is_empty(), "the monitor does not see these left out: {missed:#?}");
}
