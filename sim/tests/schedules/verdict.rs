//! Comparison of the observations of a life with the promises.
//!
//! Every state must be the result of a prefix of one order of the calls. Each call takes effect whole and once. It
//! comes after the calls that had returned before it began, and after those of its writer that were sent before it.

use shardex::Durability;
use std::{collections::BTreeMap, time::Duration};

use crate::{
    batch::{self, Action, State},
    history::{Call, Calls, Ending, Fate, Life, Outcome},
};

/// Largest delay of a timer beyond its interval. A sleep takes at least a millisecond.
pub(crate) const TIMER_SLACK: Duration = Duration::from_millis(3);

/// Findings of the comparison, from the observations of a life and from the open after it.
#[derive(Debug, Default)]
pub(crate) struct Findings {
    /// Writes that the open found.
    pub(crate) kept: Calls,
    /// Writes that had to be durable because a call acknowledged them.
    pub(crate) acknowledged: Calls,
    /// Writes that had to be durable because the timer had had enough time.
    pub(crate) timed: Calls,
    /// Number of removals whose count was right.
    pub(crate) removals: u64,
    /// Number of searches that showed less than the search before.
    pub(crate) went_back: u64,
    /// Number of searches that showed other writes than the search before.
    pub(crate) moved: u64,
}

/// Compares the record of a life, and the state that the next open found, with the promises.
///
/// # Errors
/// Returns a description of the first observation that no promise allows.
pub(crate) fn judge(life: &Life, found: &State) -> Result<Findings, String> {
    let mut findings = Findings::default();
    let mut sets = Vec::new();
    let mut before: Option<(Calls, bool)> = None;
    let mut lsns = BTreeMap::from([(life.base_lsn, Calls::new())]);
    let flushed = flushed(life);
    for sight in &life.sights {
        let say = |what: String| format!("the search at event {}: {what}", sight.at);
        let calls = decode(life, &sight.state).map_err(say)?;
        let known = lsns.entry(sight.lsn).or_insert_with(|| calls.clone());
        if *known != calls {
            return Err(say(format!("LSN {} stands for {known:?} and for {calls:?}", sight.lsn)));
        }
        let due = if sight.after_failure { flushed.clone() } else { life.done_before(sight.at) };
        covers(life, &calls, &due).map_err(say)?;
        if let Some((last, after_failure)) = &before {
            let back = !last.is_subset(&calls);
            if back && *after_failure == sight.after_failure {
                return Err(say(format!("it went back from {last:?} to {calls:?}")));
            }
            findings.went_back += u64::from(back);
            findings.moved += u64::from(*last != calls);
        }
        before = Some((calls.clone(), sight.after_failure));
        sets.push(calls);
    }
    // States with larger LSNs contain all writes of those with lower ones. A compaction has an LSN and no write.
    if let Some(pair) = lsns.values().collect::<Vec<_>>().windows(2).find(|pair| !pair[0].is_subset(pair[1])) {
        return Err(format!("LSNs rise, and writes are lost: {pair:?} in {lsns:?}"));
    }
    let say = |what: String| format!("the open after it: {what}");
    findings.kept = decode(life, found).map_err(say)?;
    findings.acknowledged = acknowledged(life);
    findings.timed = timed(life);
    covers(life, &findings.kept, &findings.acknowledged).map_err(say)?;
    covers(life, &findings.kept, &findings.timed).map_err(say)?;
    poisoned(life, &sets, &findings.kept)?;
    sets.push(findings.kept.clone());
    let most = chain(life, sets)?;
    findings.removals = removals(life, &most)?;
    Ok(findings)
}

/// Checks that all searches after a failed sync show the same state, that of the newest durable root. The next open
/// must find everything in it.
fn poisoned(life: &Life, sets: &[Calls], kept: &Calls) -> Result<(), String> {
    let after = life.sights.iter().zip(sets).filter(|(sight, _)| sight.after_failure);
    let shown: Vec<&Calls> = after.map(|(_, calls)| calls).collect();
    match shown.iter().find(|&&calls| calls != shown[0] || !calls.is_subset(kept)) {
        None => Ok(()),
        Some(calls) => {
            Err(format!("after a failed sync searches show {calls:?} and {:?}, the next open {kept:?}", shown[0]))
        }
    }
}

/// Returns the writes in a state.
///
/// # Errors
/// Returns a description if the state contains a refused write, lacks a write that came before one it contains, or is
/// not the result of its writes.
pub(crate) fn decode(life: &Life, state: &State) -> Result<Calls, String> {
    let calls = named(life, state);
    let mut last: BTreeMap<usize, usize> = BTreeMap::new();
    let mut began = 0;
    for &n in &calls {
        let call = &life.calls[n];
        if life.fate(call) == Fate::Never {
            return Err(format!("it holds what was refused: {call:?}"));
        }
        last.insert(call.writer, n);
        began = began.max(call.began);
    }
    for (n, at, _) in life.done() {
        let call = &life.calls[n];
        let later = last.get(&call.writer).is_some_and(|&last| last > n);
        if !calls.contains(&n) && (later || at < began) {
            return Err(format!("it lacks what came before something it holds: {call:?}"));
        }
    }
    let mut left = life.base.clone();
    for call in calls.iter().map(|&n| &life.calls[n]) {
        batch::apply(&mut left, call.writer, call.number, &call.action);
    }
    match left == *state {
        true => Ok(calls),
        false => Err(format!("it is not what its writes leave: {}", difference(&left, state))),
    }
}

/// Returns the writes that the counters and receipts of a state identify.
fn named(life: &Life, state: &State) -> Calls {
    let counted = |call: &Call| state.get(&batch::counter(call.writer)).copied().unwrap_or(0);
    let has = |call: &Call, number| state.contains_key(&batch::receipt(call.writer, number));
    let known = |call: &Call, number| life.base.contains_key(&batch::receipt(call.writer, number));
    let taken = |adder: &Call| {
        life.calls.iter().any(|call| match call.action {
            Action::Remove { receipt, .. } => call.writer == adder.writer && receipt == adder.number,
            _ => false,
        })
    };
    let holds = |call: &Call| match call.action {
        Action::Add(_) => has(call, call.number) || (counted(call) >= call.number && taken(call)),
        // A removal removes only receipts of calls known to be applied. If the state contains such a call, its missing
        // receipt proves the removal.
        Action::Remove { receipt, .. } => !has(call, receipt) && (known(call, receipt) || counted(call) >= receipt),
        Action::Commit | Action::Flush => false,
    };
    life.calls.iter().enumerate().filter(|(_, call)| holds(call)).map(|(n, _)| n).collect()
}

fn covers(life: &Life, calls: &Calls, due: &Calls) -> Result<(), String> {
    match due.difference(calls).next() {
        None => Ok(()),
        Some(&n) => Err(format!("it lacks what it must hold: {:?}", life.calls[n])),
    }
}

/// Checks that all states of a life are prefixes of one order. Returns the longest.
fn chain(life: &Life, mut sets: Vec<Calls>) -> Result<Calls, String> {
    sets.sort_by_key(Calls::len);
    sets.dedup();
    for pair in sets.windows(2) {
        let (shorter, longer) = (&pair[0], &pair[1]);
        if !shorter.is_subset(longer) {
            return Err(format!("two states are no prefixes of one order: {shorter:?} and {longer:?}"));
        }
        for &new in longer.difference(shorter) {
            let writer = life.calls[new].writer;
            if shorter.iter().any(|&old| old > new && life.calls[old].writer == writer) {
                return Err(format!("a call was carried out after a later one of its writer: {:?}", life.calls[new]));
            }
        }
    }
    Ok(sets.pop().unwrap_or_default())
}

/// Checks the counts that removals returned, along the longest order seen. Returns the number of counts checked.
fn removals(life: &Life, calls: &Calls) -> Result<u64, String> {
    let mut state = life.base.clone();
    let mut right = 0;
    for call in calls.iter().map(|&n| &life.calls[n]) {
        let there = batch::apply(&mut state, call.writer, call.number, &call.action);
        if let Outcome::Done { removed: Some(said), .. } = call.outcome {
            if said != there {
                return Err(format!("{there} postings were there to be removed by {call:?}"));
            }
            right += 1;
        }
    }
    Ok(right)
}

/// Returns the writes that a successful flush had to flush.
fn flushed(life: &Life) -> Calls {
    last_call(life, |action| *action == Action::Flush).map_or_else(Calls::new, |began| life.done_before(began))
}

/// Returns the event at which the last successful call of a kind began.
fn last_call(life: &Life, kind: impl Fn(&Action) -> bool) -> Option<u64> {
    let done = |call: &&Call| kind(&call.action) && matches!(call.outcome, Outcome::Done { .. });
    life.calls.iter().filter(done).map(|call| call.began).max()
}

/// Returns the writes that were acknowledged as durable.
fn acknowledged(life: &Life) -> Calls {
    let all = match life.ending {
        Ending::Closed => true,
        // The last commit is tried, but no caller receives its error.
        Ending::Dropped => life.durability != Durability::Manual && !life.failed && !life.disturbed,
        Ending::Crash | Ending::CloseRefused => false,
    };
    if all || life.durability == Durability::Immediate {
        return life.done_before(u64::MAX);
    }
    last_call(life, |action| !action.is_write()).map_or_else(Calls::new, |began| life.done_before(began))
}

/// Returns the writes that the timer had time to make durable before the crash. After failed stores the timer retries
/// later. Lives that end with a close check that it does.
fn timed(life: &Life) -> Calls {
    if life.durability != Durability::Interval || life.failed || life.disturbed {
        return Calls::new();
    }
    let in_time = |time: Duration| time + life.commit_interval + TIMER_SLACK < life.last_event;
    life.done().filter(|&(_, _, time)| in_time(time)).map(|(n, _, _)| n).collect()
}

fn difference(expected: &State, found: &State) -> String {
    let missing: Vec<_> = expected.iter().filter(|(key, number)| found.get(key) != Some(number)).take(4).collect();
    let surplus: Vec<_> = found.iter().filter(|(key, number)| expected.get(key) != Some(number)).take(4).collect();
    format!("missing {missing:?}, surplus {surplus:?}")
}
