//! Exactly once: an ingester on the async API under simulated power cuts. The command `exactly-once` makes more of them.

use std::collections::BTreeSet;

use shardex::Durability;
use shardex_sim::{
    exactly_once::{self, DURABILITIES, EXPECTED, Mistake, Report, run_index},
    mutant::{self, How, Mutant},
};

/// Returns the number of the first seed whose index breaks a promise, and the promise.
fn first_broken(durability: Durability, seeds: u64, mistake: Option<Mistake>) -> Option<(u64, String)> {
    let broken = |seed| Some((seed, run_index(durability, seed, 50, mistake).violations.pop()?.to_string()));
    (1..=seeds).find_map(broken)
}

#[test]
fn no_power_cut_loses_or_doubles_a_change() {
    let mut total = Report::default();
    for durability in DURABILITIES {
        let report = exactly_once::run(durability, 150, 1, None, 2);
        assert_eq!(report.cuts, 150, "{durability:?}");
        println!("{durability:?}: {} batches, {} changes", report.count("batches"), report.count("changes"));
        total.add(report);
    }
    assert_eq!(total.violations, []);
    for event in ["changes trimmed", "power cuts in an open", "opens that found fewer batches than were accepted"] {
        assert!(total.count(event) >= 50, "{event}: {}", total.count(event));
    }
    assert_eq!(Report::default().silent(), EXPECTED);
    assert_eq!(total.silent(), Vec::<&str>::new());
}

#[test]
fn a_seed_gives_the_same_history_each_time() {
    for durability in DURABILITIES {
        let run = |seed, threads| exactly_once::run(durability, 60, seed, None, threads);
        assert_eq!(run(3, 1), run(3, 2), "{durability:?}");
        assert_ne!(run(3, 1).trace, run(4, 1).trace, "{durability:?}");
    }
}

/// Mistakes of an ingester, each under every durability mode in which it is one.
#[test]
fn every_mistake_of_an_ingester_is_found() {
    let all = DURABILITIES.as_slice();
    const TRIMMED: &str = "the source was trimmed";
    const OTHER: &str = "P2: the content is not that of changes";
    for (mistake, durabilities, messages) in [
        // Under `Immediate` a batch is durable when its call returns.
        (Mistake::TrimToCursor, &all[1..], &[TRIMMED][..]),
        (Mistake::CursorAfter, all, &[OTHER]),
        (Mistake::CursorBefore, all, &[OTHER]),
        (Mistake::EditInTwo, all, &[OTHER]),
        // The cursor goes back, behind what the source still has, or the index has later changes than the cursor says.
        (Mistake::Unconditional, all, &[TRIMMED, OTHER]),
    ] {
        for &durability in durabilities {
            let found = first_broken(durability, 20, Some(mistake));
            let (_, broken) = found.unwrap_or_else(|| panic!("{mistake:?} is not found under {durability:?}"));
            assert!(messages.iter().any(|message| broken.contains(message)), "{mistake:?}: {broken}");
            println!("{mistake:?}: {broken}");
        }
    }
}

/// Each sync of a commit and of a flush, left out under every durability mode that depends on it.
#[test]
fn a_barrier_left_out_is_found() {
    let mut needed = BTreeSet::new();
    for mutant in mutant::of(|| drop(run_index(Durability::Manual, 1, 20, None))) {
        let Mutant::Call(call, How::Dropped) = mutant else { continue };
        let durabilities = match call.purpose {
            "B1: commit" | "B2: sync the data" | "B3: sync the root" => &DURABILITIES[..],
            // Under `Immediate` a flush finds the WAL synced by the commits of the writes.
            "B1: sync the WAL" => &DURABILITIES[1..],
            _ => continue,
        };
        needed.insert(call.purpose);
        for &durability in durabilities {
            let found = mutant::with(Some(mutant), || first_broken(durability, 12, None));
            let (_, broken) = found.unwrap_or_else(|| panic!("nothing is broken without {call} under {durability:?}"));
            println!("without {call}: {broken}");
        }
    }
    assert_eq!(needed.len(), 4, "{needed:?}");
}
