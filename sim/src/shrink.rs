//! Shrinking of a failing case: fewer events, smaller numbers, simpler configurations.
//!
//! Greedy: a change is kept if the case still breaks some promise. Deterministic, with a bounded number of runs.

use shardex::{Metric, VectorEncoding};

use crate::{
    case::{Case, Crash, Event, Survivors},
    storage::{CrashKind, Stop},
    workload::Step,
};

/// Maximum number of runs per shrink.
const RUNS: u32 = 6_000;

/// Returns the shortest case found that still breaks a promise, and how it breaks it. A case that breaks no promise is
/// returned unchanged, with an empty reason.
#[must_use]
pub fn shrink(case: &Case) -> (Case, String) {
    shrink_by(case, |case| case.run().broken)
}

/// Shrinks a case by a custom test: `fails` returns the reason if a case fails. A case that doesn't fail is returned
/// unchanged, with an empty reason.
pub fn shrink_by(case: &Case, fails: impl Fn(&Case) -> Option<String>) -> (Case, String) {
    let mut best = case.clone();
    let Some(mut why) = fails(&best) else { return (best, String::new()) };
    let mut left = RUNS;
    loop {
        let before = best.clone();
        let mut attempt = |candidate: Case, best: &mut Case| {
            if left == 0 || candidate == *best {
                return false;
            }
            left -= 1;
            match fails(&candidate) {
                Some(reason) => {
                    (*best, why) = (candidate, reason);
                    true
                }
                None => false,
            }
        };
        drop_events(&mut best, &mut attempt);
        for i in (0..best.events.len()).rev() {
            // Smallest numbers first: most failures need only small ones.
            while smaller(&best.events[i]).into_iter().any(|event| {
                let mut candidate = best.clone();
                candidate.events[i] = event;
                attempt(candidate, &mut best)
            }) {}
        }
        for candidate in plainer(&best) {
            attempt(candidate, &mut best);
        }
        if best == before || left == 0 {
            best.workload.name = "shrunk".into();
            return (best, why);
        }
    }
}

/// Removes ranges of events, long ranges first.
fn drop_events(best: &mut Case, attempt: &mut impl FnMut(Case, &mut Case) -> bool) {
    let mut size = best.events.len().div_ceil(2);
    while size > 0 {
        let mut at = 0;
        while at < best.events.len() {
            let mut candidate = best.clone();
            candidate.events.drain(at..(at + size).min(candidate.events.len()));
            if !attempt(candidate, best) {
                at += size;
            }
        }
        size /= 2;
    }
}

/// Returns numbers from `least` to `n - 1`, the smallest first.
fn below(n: u64, least: u64) -> Vec<u64> {
    let mut smaller = vec![least, n / 4, n / 2, n.saturating_sub(1)];
    smaller.retain(|&m| m >= least && m < n);
    smaller.dedup();
    smaller
}

/// Returns simpler forms of an event.
fn smaller(event: &Event) -> Vec<Event> {
    match event {
        Event::Do(step) => steps(step).into_iter().map(Event::Do).collect(),
        Event::Fault { after, fault } => {
            below(*after, 1).into_iter().map(|after| Event::Fault { after, fault: *fault }).collect()
        }
        Event::Crash(crash) => crashes(crash).into_iter().map(Event::Crash).collect(),
    }
}

fn steps(step: &Step) -> Vec<Step> {
    match *step {
        Step::Add { first, count, start, salt } => below(count, 1)
            .into_iter()
            .map(|count| Step::Add { first, count, start, salt })
            .chain(below(first, 0).into_iter().map(|first| Step::Add { first, count, start, salt }))
            .chain((start > 0).then_some(Step::Add { first, count, start: 0, salt }))
            .chain(below(salt, 0).into_iter().map(|salt| Step::Add { first, count, start, salt }))
            .collect(),
        Step::Remove { first, count } => below(count, 1)
            .into_iter()
            .map(|count| Step::Remove { first, count })
            .chain(below(first, 0).into_iter().map(|first| Step::Remove { first, count }))
            .collect(),
        Step::SlowFlush { first, count, salt } => std::iter::once(Step::Flush)
            .chain(below(count, 1).into_iter().map(|count| Step::SlowFlush { first, count, salt }))
            .chain(below(first, 0).into_iter().map(|first| Step::SlowFlush { first, count, salt }))
            .chain(below(salt, 0).into_iter().map(|salt| Step::SlowFlush { first, count, salt }))
            .collect(),
        Step::OverlappedFlush { first, count, salt } => {
            let slow = Step::SlowFlush { first, count, salt };
            let plainer = steps(&slow).into_iter().map(|step| match step {
                Step::SlowFlush { first, count, salt } => Step::OverlappedFlush { first, count, salt },
                other => other,
            });
            std::iter::once(slow.clone()).chain(plainer).collect()
        }
        Step::RemovePostings { first, count, start } => {
            below(count, 1).into_iter().map(|count| Step::RemovePostings { first, count, start }).collect()
        }
        Step::Tag { first, count, tags } => {
            below(count, 1).into_iter().map(|count| Step::Tag { first, count, tags }).collect()
        }
        Step::Payload { first, count, bytes, salt } => below(count, 1)
            .into_iter()
            .map(|count| Step::Payload { first, count, bytes, salt })
            .chain(below(bytes, 0).into_iter().map(|bytes| Step::Payload { first, count, bytes, salt }))
            .collect(),
        Step::RemovePayloads { first, count } => {
            below(count, 1).into_iter().map(|count| Step::RemovePayloads { first, count }).collect()
        }
        Step::Edit { first, count, bytes, salt } => std::iter::once(Step::Payload { first, count, bytes, salt })
            .chain(below(count, 1).into_iter().map(|count| Step::Edit { first, count, bytes, salt }))
            .chain(below(bytes, 0).into_iter().map(|bytes| Step::Edit { first, count, bytes, salt }))
            .collect(),
        Step::Cursor { bytes, salt } => below(bytes, 0).into_iter().map(|bytes| Step::Cursor { bytes, salt }).collect(),
        Step::Batch { count, seed } => below(count, 1).into_iter().map(|count| Step::Batch { count, seed }).collect(),
        Step::Flush => vec![Step::Commit],
        Step::Reopen => vec![Step::Close],
        Step::OptimizeUntil { questions } => std::iter::once(Step::Optimize)
            .chain(below(questions, 0).into_iter().map(|questions| Step::OptimizeUntil { questions }))
            .collect(),
        Step::RemoveMatching { seed } => below(seed, 0).into_iter().map(|seed| Step::RemoveMatching { seed }).collect(),
        Step::Trim { keep } => below(keep, 0).into_iter().map(|keep| Step::Trim { keep }).collect(),
        Step::Compact { bytes } => below(bytes, 1).into_iter().map(|bytes| Step::Compact { bytes }).collect(),
        _ => Vec::new(),
    }
}

fn crashes(crash: &Crash) -> Vec<Crash> {
    let mut plainer = Vec::new();
    if crash.damage.is_some() {
        plainer.push(Crash { damage: None, ..crash.clone() });
    }
    if crash.kind == CrashKind::Power {
        plainer.push(Crash { kind: CrashKind::Process, ..crash.clone() });
    }
    if crash.stop != Stop::Before {
        plainer.push(Crash { stop: Stop::Before, ..crash.clone() });
    }
    plainer.extend(below(crash.after, 0).into_iter().map(|after| Crash { after, ..crash.clone() }));
    let picks = match &crash.survivors {
        // Everything old, everything new.
        Survivors::Seed(_) => vec![Vec::new(), vec![usize::MAX; 64]],
        Survivors::Picks(picks) if picks.is_empty() => Vec::new(),
        Survivors::Picks(picks) => {
            let mut fewer = vec![Vec::new(), picks[..picks.len() / 2].to_vec(), picks[..picks.len() - 1].to_vec()];
            fewer.extend((0..picks.len()).filter(|&i| picks[i] > 0).map(|i| {
                let mut one_old = picks.clone();
                one_old[i] = 0;
                one_old
            }));
            fewer
        }
    };
    plainer.extend(picks.into_iter().map(|picks| Crash { survivors: Survivors::Picks(picks), ..crash.clone() }));
    plainer
}

/// Returns simpler configurations of a case.
fn plainer(case: &Case) -> Vec<Case> {
    let change = |change: &dyn Fn(&mut Case)| {
        let mut plainer = case.clone();
        change(&mut plainer);
        plainer
    };
    vec![
        change(&|case| case.garbage = false),
        change(&|case| case.seed = 1),
        change(&|case| case.workload.from_version = None),
        change(&|case| (case.workload.page_size, case.workload.sector_size) = (512, 64)),
        change(&|case| case.workload.config.vector_size = 3),
        change(&|case| case.workload.config.shard_size = 4),
        change(&|case| case.workload.config.metric = Metric::L2),
        change(&|case| case.workload.config.encoding = VectorEncoding::F32),
        change(&|case| case.workload.config.options.flush_on_close = true),
    ]
}
