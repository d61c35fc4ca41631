//! Sweep of a workload: every fault at every operation, one at a time, and every damage after a crash there.

use super::report::Report;
use crate::{
    case::{Case, Crash, Damage, Event, Survivors},
    storage::{CrashKind, Fault, Stop},
    workload::{Step, Workload},
};

const FAULTS: [Fault; 14] = [
    Fault::FailSync { full: false },
    Fault::FailSync { full: true },
    Fault::FailStore { full: false },
    Fault::FailStore { full: true },
    Fault::NoSpace,
    Fault::FailEntry,
    Fault::FailRead,
    Fault::StaleRead,
    Fault::LieAtSync,
    Fault::Misdirect,
    Fault::Rot,
    Fault::ClockJump(-3_600_000),
    Fault::Stop(Stop::Torn),
    Fault::Stop(Stop::After),
];

/// Number of bits that rot at each operation, each in a case of its own.
const ROTTEN_PLACES: u64 = 8;

const IN_RECOVERY: [Fault; 5] = [
    Fault::FailSync { full: false },
    Fault::FailStore { full: true },
    Fault::NoSpace,
    Fault::FailRead,
    Fault::Stop(Stop::Torn),
];

/// Runs the cases of a workload whose trace has `operations` operations, for every `stride`-th operation.
pub(super) fn sweep(workload: &Workload, operations: u64, stride: u64) -> Report {
    let mut report = Report::default();
    for at in (1..=operations).step_by(stride.max(1) as usize) {
        for fault in FAULTS {
            run(workload, [first_event(at, fault)], at, &mut report);
        }
        // The position of the bit matters more than the time.
        for place in 1..ROTTEN_PLACES {
            run(workload, [first_event(at, Fault::Rot)], at + place * operations, &mut report);
        }
        // A selection of faults, during the recovery from a crash at this operation.
        for fault in IN_RECOVERY {
            let kind = if at % 2 == 0 { CrashKind::Process } else { CrashKind::Power };
            let second = first_event(1 + at % 8, fault);
            // The allocation is removed, so that recovery needs space and the fault can fire.
            let damage = (fault == Fault::NoSpace).then_some(Damage::Sparse);
            run(workload, [crash(at, Stop::Before, kind, damage), second], at, &mut report);
        }
        for damage in Damage::all() {
            let kind = if at % 2 == 0 { CrashKind::Process } else { CrashKind::Power };
            run(workload, [crash(at, Stop::Before, kind, Some(damage))], at, &mut report);
        }
    }
    report
}

fn first_event(after: u64, fault: Fault) -> Event {
    match fault {
        Fault::Stop(stop) => crash(after, stop, CrashKind::Power, None),
        _ => Event::Fault { after, fault },
    }
}

fn crash(after: u64, stop: Stop, kind: CrashKind, damage: Option<Damage>) -> Event {
    Event::Crash(Crash { after, stop, kind, survivors: Survivors::Seed(after), damage })
}

fn run<const N: usize>(workload: &Workload, first: [Event; N], seed: u64, report: &mut Report) {
    let mut events = first.to_vec();
    for (n, step) in workload.steps.iter().enumerate() {
        events.push(Event::Do(step.clone()));
        if n == 1 {
            events.push(Event::Do(Step::SecondOpen));
        }
    }
    // Another crash, during the final flush.
    events.push(crash(3, Stop::Torn, CrashKind::Power, None));
    events.push(Event::Do(Step::Flush));
    let garbage = matches!(events[0], Event::Crash(Crash { stop: Stop::Torn, .. }));
    let case = Case { workload: workload.clone(), seed, garbage, events };
    report.add(Report::of_case(case));
}
