//! Random cases, drawn from a seed.

use rand::{RngExt as _, SeedableRng as _, rngs::ChaCha8Rng};

use super::{Case, Crash, Damage, Event, Survivors};
use crate::{
    storage::{CrashKind, Fault, Stop},
    workload::{Step, Workload},
};

impl Case {
    /// Draws a case from a seed. Each seed turns features and faults on or off (swarm testing; Groce and others, ISSTA
    /// 2012).
    #[must_use]
    pub fn generated(seed: u64) -> Self {
        let mut workload = Workload::generated(seed);
        let mut rng = ChaCha8Rng::seed_from_u64(seed ^ 0xFA17);
        let steps = std::mem::take(&mut workload.steps);
        let crashes = rng.random_bool(0.7);
        // Most cases have only one class of faults besides crashes, because little can be demanded of a medium in
        // doubt.
        let class = rng.random_range(0..20);
        if class == TAIL && rng.random_bool(0.8) {
            // Without a flush, a closed index has records to replay.
            workload.config = workload.config.flush_on_close(false);
        }
        let garbage = rng.random_bool(0.1);
        let mut events = at_creation(&mut rng, class);
        // From another generator, so that the draws of the other features stay.
        let mut trims = ChaCha8Rng::seed_from_u64(seed ^ 0x5E77);
        let trimmed = [0.0, 0.1, 0.4][trims.random_range(0..3)];
        let compacted = [0.0, 0.1, 0.4][trims.random_range(0..3)];
        let backed_up = [0.0, 0.0, 0.2][trims.random_range(0..3)];
        for step in steps {
            let step = match step {
                Step::Reopen if class == TAIL => Step::Close,
                // Large enough for the WAL to grow at the close.
                Step::Add { first, start, salt, .. } if class == TAIL && seed.is_multiple_of(2) => {
                    Step::Add { first, count: 25, start, salt }
                }
                step => step,
            };
            let closes = step == Step::Close;
            events.push(Event::Do(step));
            if closes && class == TAIL {
                events.push(Event::Crash(Crash { after: 0, ..random_crash(&mut rng, class) }));
            } else if crashes && rng.random_bool(0.2) {
                events.push(Event::Crash(random_crash(&mut rng, class)));
                if class == SPACE {
                    // The fault fires in the recovery.
                    events.push(Event::Fault { after: rng.random_range(1..6), fault: Fault::NoSpace });
                }
            }
            if rng.random_bool(0.15)
                && let Some(fault) = random_fault(&mut rng, class)
            {
                events.push(Event::Fault { after: rng.random_range(1..14), fault });
                if matches!(fault, Fault::FailSync { .. }) && rng.random() {
                    // The crash fires in the recovery after the failed sync.
                    events
                        .push(Event::Crash(Crash { after: rng.random_range(1..16), ..random_crash(&mut rng, class) }));
                }
            }
            events.extend(space_steps(&mut trims, trimmed, compacted, backed_up));
            if rng.random_bool(0.03) {
                events.push(Event::Do(Step::SecondOpen));
            }
            if rng.random_bool(0.15) {
                events.push(Event::Do(Step::Read));
            }
        }
        workload.name = format!("seed {seed}");
        Self { workload, seed, garbage, events }
    }
}

/// Draws whether free space is given back, shards are rewritten, and a backup begins or ends.
fn space_steps(rng: &mut ChaCha8Rng, trimmed: f64, compacted: f64, backed_up: f64) -> Vec<Event> {
    let mut steps = Vec::new();
    if rng.random_bool(trimmed) {
        steps.push(Event::Do(Step::Trim { keep: [0, 0, 512, 4_096][rng.random_range(0..4)] }));
    }
    if rng.random_bool(compacted / 8.0) {
        steps.push(Event::Do(Step::Purge));
    }
    if rng.random_bool(compacted) {
        steps.push(Event::Do(Step::Compact { bytes: [1, 500, 1 << 20][rng.random_range(0..3)] }));
    }
    if rng.random_bool(backed_up) {
        steps.push(Event::Do(Step::Backup));
    }
    steps
}

/// Class of cases that lack space.
const SPACE: u32 = 3;
/// Class of cases in which changes of directory entries fail.
const ENTRIES: u32 = 11;
/// Class of cases with damage at the end of the WAL.
const TAIL: u32 = 15;

fn random_fault(rng: &mut ChaCha8Rng, class: u32) -> Option<Fault> {
    let full = rng.random();
    Some(match class {
        0 | 1 => Fault::FailSync { full },
        2 => Fault::FailStore { full },
        SPACE => Fault::NoSpace,
        4 => Fault::FailRead,
        5 => Fault::LieAtSync,
        6 => Fault::Misdirect,
        7 => Fault::StaleRead,
        8 => Fault::Rot,
        9 => Fault::ClockJump(rng.random_range(-3_000_000..3_000_000)),
        10 => match rng.random_range(0..5) {
            0 => Fault::FailSync { full },
            1 => Fault::FailStore { full },
            2 => Fault::NoSpace,
            3 => Fault::FailEntry,
            _ => Fault::ClockJump(rng.random_range(-3_000_000..3_000_000)),
        },
        ENTRIES => Fault::FailEntry,
        _ => return None,
    })
}

/// Draws the crash and the fault that hit the creation of the index.
fn at_creation(rng: &mut ChaCha8Rng, class: u32) -> Vec<Event> {
    let mut events = Vec::new();
    if rng.random_bool(if class == ENTRIES { 0.6 } else { 0.15 }) {
        events.push(Event::Crash(Crash { after: rng.random_range(1..28), ..random_crash(rng, class) }));
    }
    if rng.random_bool(0.2)
        && let Some(fault) = random_fault(rng, class)
    {
        events.push(Event::Fault { after: rng.random_range(1..if class == ENTRIES { 6 } else { 20 }), fault });
    }
    events
}

fn random_crash(rng: &mut ChaCha8Rng, class: u32) -> Crash {
    let now = rng.random_bool(0.3);
    let damage = match class {
        12 | 13 => Some(if rng.random() { Damage::RotRoot } else { Damage::StaleRoot }),
        14 | 18 | 19 => Some(Damage::Rot),
        TAIL => Some(Damage::RotTail),
        16 => Some(Damage::ALL[rng.random_range(0..Damage::ALL.len())].0),
        17 => Some(if rng.random() { Damage::Sparse } else { Damage::Stale }),
        _ => None,
    };
    Crash {
        after: if now { 0 } else { rng.random_range(1..40) },
        stop: [Stop::Before, Stop::Torn, Stop::After][rng.random_range(0..3)],
        kind: if rng.random_bool(0.3) { CrashKind::Process } else { CrashKind::Power },
        survivors: Survivors::Seed(rng.random_range(0..1 << 32)),
        damage: damage.filter(|_| rng.random_bool(0.7)),
    }
}
