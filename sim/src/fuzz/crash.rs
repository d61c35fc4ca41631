//! Fuzz target: decodes the input into a case of steps, faults and crashes, and runs it.

use shardex::{CheckLevel, Metric, VectorEncoding};

use super::Bytes;
use crate::{
    case::{Case, Crash, Damage, Event, Survivors},
    storage::{CrashKind, Fault, Stop},
    workload::{Step, Workload, WorkloadParams},
};

/// Maximum number of events in a case. It bounds the time of a run.
const MOST: usize = 40;

/// Runs the case that the input describes.
///
/// # Panics
/// Panics if the case breaks a promise.
pub fn crash(bytes: &[u8]) {
    let case = case_of(bytes);
    if let Some(broken) = case.run().broken {
        panic!("{broken}\n{case}");
    }
}

/// Decodes the input into a case. Each event takes a few bytes, and every input is a valid case.
#[must_use]
pub fn case_of(bytes: &[u8]) -> Case {
    let mut bytes = Bytes(bytes);
    let dimension = [3, 5, 17, 20][bytes.below(4) as usize];
    let shard_size = [2, 4, 5, 8][bytes.below(4) as usize];
    let metric = [Metric::L2, Metric::Dot, Metric::Cosine][bytes.below(3) as usize];
    let flags = bytes.byte();
    let mut workload = Workload::blank("fuzzed", WorkloadParams { dimension, shard_size, metric }, flags & 1 != 0);
    workload.config = workload.config.flush_on_close(flags & 2 == 0);
    if flags & 4 != 0 {
        workload.config = workload.config.flush_check(CheckLevel::Full);
    }
    if flags & 32 != 0 {
        workload.config = workload.config.encoding(VectorEncoding::F16);
    }
    if flags & 64 != 0 {
        workload.config = workload.config.encoding(VectorEncoding::Int8);
    }
    let seed = u64::from(bytes.u16());
    let mut events = Vec::new();
    while !bytes.is_empty() && events.len() < MOST {
        events.push(event(&mut bytes));
    }
    Case { workload, seed, garbage: flags & 24 == 24, events }
}

fn event(bytes: &mut Bytes<'_>) -> Event {
    match bytes.below(16) {
        0..=4 => Event::Do(Step::Add {
            first: bytes.below(64),
            count: 1 + bytes.below(30),
            start: bytes.below(2) as u32,
            salt: bytes.byte().into(),
        }),
        5 => Event::Do(Step::Remove { first: bytes.below(64), count: 1 + bytes.below(40) }),
        6 | 7 => Event::Do(Step::Commit),
        8 | 9 => Event::Do(Step::Flush),
        10 => {
            let (first, count, salt) = (bytes.below(64), 1 + bytes.below(10), bytes.byte().into());
            Event::Do(match bytes.below(3) {
                0 => Step::OverlappedFlush { first, count, salt },
                1 => Step::OptimizeUntil { questions: 4 * salt },
                _ => Step::SlowFlush { first, count, salt },
            })
        }
        11 => Event::Do(
            [
                Step::Close,
                Step::Reopen,
                Step::SecondOpen,
                Step::Read,
                Step::Trim { keep: 0 },
                Step::Compact { bytes: 500 },
                Step::Purge,
            ][bytes.below(7) as usize]
                .clone(),
        ),
        12 | 13 => Event::Fault { after: 1 + bytes.below(40), fault: fault(bytes) },
        _ => Event::Crash(a_crash(bytes)),
    }
}

fn fault(bytes: &mut Bytes<'_>) -> Fault {
    let full = bytes.below(2) == 1;
    match bytes.below(10) {
        0 | 1 => Fault::FailSync { full },
        2 | 3 => Fault::FailStore { full },
        4 => Fault::NoSpace,
        5 => Fault::FailEntry,
        6 => Fault::FailRead,
        7 => Fault::ClockJump(i64::from(bytes.u16()) - 32_768),
        8 => [Fault::LieAtSync, Fault::Misdirect, Fault::StaleRead][bytes.below(3) as usize],
        _ => Fault::Rot,
    }
}

fn a_crash(bytes: &mut Bytes<'_>) -> Crash {
    let flags = bytes.byte();
    let damage = match flags >> 5 {
        0 => Damage::all().nth(bytes.below(Damage::all().count() as u64) as usize),
        1 => Some(Damage::RotRoot),
        2 => Some(Damage::StaleRoot),
        _ => None,
    };
    Crash {
        after: bytes.below(64),
        stop: [Stop::Before, Stop::Torn, Stop::After][usize::from(flags & 3) % 3],
        kind: if flags & 4 == 0 { CrashKind::Power } else { CrashKind::Process },
        survivors: match flags & 8 {
            0 => Survivors::Seed(bytes.u16().into()),
            _ => Survivors::Picks((0..bytes.below(24)).map(|_| bytes.below(4) as usize).collect()),
        },
        damage,
    }
}
