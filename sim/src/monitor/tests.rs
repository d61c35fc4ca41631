//! Tests of the monitor: each sequence must break its rule or none, and each mistake of the monitor must be detected.

use super::cases_create::CREATE;
use super::cases_flush::FLUSH;
use super::cases_log::LOG;
use super::cases_places::PLACES;
use super::scene::{ALL, Case, Outcome, Scene, next_head, next_shards};
use super::*;
use crate::fsck::build::{LOG_END, PAGE};

fn cases() -> impl Iterator<Item = &'static Case> {
    [CREATE, FLUSH, PLACES, LOG].into_iter().flatten()
}

/// Returns the rule that a case breaks, with an optional mistake in the monitor.
fn broken(case: &Case, mutant: Option<MonitorMutant>) -> Option<Rule> {
    let mut scene = if case.1 { Scene::open(mutant) } else { Scene::empty(mutant) };
    rule(case.2(&mut scene))
}

fn rule(outcome: Outcome) -> Option<Rule> {
    outcome.err().map(|breach| breach.rule)
}

#[test]
fn each_sequence_breaks_its_rule_or_none() {
    let wrong: Vec<String> = cases()
        .filter(|case| broken(case, None) != case.3)
        .map(|case| {
            let mut scene = if case.1 { Scene::open(None) } else { Scene::empty(None) };
            format!("{}: wanted {:?}, got {:?}", case.0, case.3, case.2(&mut scene))
        })
        .collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn each_rule_is_broken_by_some_sequence() {
    use Rule::*;
    let all = [
        RootBeforeItsBytes,
        AcknowledgedNotDurable,
        AcknowledgedWithoutNames,
        StoreIntoRetained,
        StoreIntoLent,
        OnlyRootStoredOver,
        StoreIntoNeededLog,
        SyncsAtOnce,
        AcknowledgedAfterFailedSync,
        FrameChanged,
        EpochUnknown,
        NamedTooEarly,
        RootForgets,
        FrameClaimsTooMuch,
        ClosedTooEarly,
        NameRemoved,
    ];
    for rule in all {
        assert!(cases().any(|case| case.3 == Some(rule)), "{rule:?}");
    }
}

#[test]
fn each_mistake_of_the_monitor_is_found() {
    for mutant in MonitorMutant::ALL {
        let found = cases().find(|case| std::panic::catch_unwind(|| broken(case, Some(mutant))).ok() != Some(case.3));
        let Some(found) = found else { panic!("{mutant:?} survives") };
        println!("{mutant:?} is found by: {}", found.0);
    }
}

#[test]
fn a_clone_goes_on_by_itself() {
    let scene = Scene::open(None);
    let (mut one, mut other) = (scene.clone(), scene);
    assert_eq!(one.flush(next_head(), &next_shards()), Ok(()));
    assert!(one.store("data", 18 * PAGE, &[1]).is_ok());
    assert_eq!(rule(other.store("data", 18 * PAGE, &[1])), Some(Rule::StoreIntoRetained));
}

#[test]
fn an_operation_is_done_even_if_it_breaks_a_rule() {
    let mut scene = Scene::open(None);
    assert!(scene.append(LOG_END, 2, 10, 9, 70).is_ok());
    assert_eq!(rule(scene.ack(10)), Some(Rule::AcknowledgedNotDurable));
    assert_eq!(scene.sync("wal", ALL), Ok(()));
    assert_eq!(scene.ack(10), Ok(()));
}
