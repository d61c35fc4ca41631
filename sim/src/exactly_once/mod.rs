//! Exactly once under power cuts: an ingester on the async API, a source that it trims to `durable_cursor`, and a
//! model that shows what is missing, double or half there.
//!
//! An index lives through many power cuts. Each comes at a random operation of the simulated disk, also during a
//! recovery, and keeps any subset of what was not synced. Then the index is opened again and compared with the model:
//!
//! 1. The cursor is not behind what was acknowledged as durable: by `durable_cursor`, and by calls as their
//!    [`Durability`] promises. So the source has never lost what it was told to forget.
//! 2. The content is exactly that of the changes up to the cursor, which is the end of some batch.
//!
//! The disk loses and keeps whole versions of sectors. In the garbage mode of R3 a store could also damage the payload
//! beside it in the sector, which must be found (P4) and need not be survived.
//!
//! Everything follows from the seed of the index. The number of cuts changes only where the history ends.

mod batches;
mod contents;
mod ingester;
mod ledger;
mod plan;
mod report;
mod source;
mod together;

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
};

use rand::{Rng as _, RngExt as _, SeedableRng as _, rngs::ChaCha8Rng};
use shardex::{
    Durability,
    env::{CellPolicy, Env, Inline},
    failpoint,
};

pub use plan::{DURABILITIES, Mistake};
pub use report::{EXPECTED, Report, Violation};

use crate::{
    pool,
    scheduler::Scheduler,
    storage::{CrashKind, SimStorage, Stop},
};
use ingester::{End, Ingester};
use ledger::Ledger;
use plan::{Plan, cuts_of};
use source::Source;

/// Runs indexes with consecutive seeds until the power was cut `cuts` times. A broken promise ends its index only.
#[must_use]
pub fn run(durability: Durability, cuts: u64, first_seed: u64, mistake: Option<Mistake>, threads: usize) -> Report {
    let (mut indexes, mut left, mut seed) = (Vec::new(), cuts, first_seed);
    while left > 0 {
        let of_index = cuts_of(seed).min(left);
        indexes.push((seed, of_index));
        left -= of_index;
        seed = seed.wrapping_add(1);
    }
    let mut total = Report::default();
    let reports = pool::map(threads, &indexes, |&(seed, cuts)| run_index(durability, seed, cuts, mistake));
    reports.into_iter().for_each(|report| total.add(report));
    total
}

/// Runs one index until the power was cut `cuts` times or a promise is broken.
#[must_use]
pub fn run_index(durability: Durability, seed: u64, cuts: u64, mistake: Option<Mistake>) -> Report {
    let plan = Plan::of(durability, seed, mistake);
    let sim = SimStorage::new(plan.page_size, plan.sector_size, seed);
    let ledger = Ledger::new(Source::new(seed, plan.config.vector_size), plan.config.metric);
    let _ = failpoint::mutants::take_reached();
    let mut life = IndexLife { plan, sim, ledger, rng: ChaCha8Rng::seed_from_u64(seed), seed, done: 0, trace: 0 };
    let end = catch_unwind(AssertUnwindSafe(|| life.cut_and_recover(cuts)));
    let end = end.unwrap_or_else(|panic| Err(format!("panic: {}", pool::panic_text(&*panic))));
    let violations = end.err().map(|broken| Violation { durability, seed, cut: life.done, broken });
    let marks = failpoint::mutants::take_reached().into_iter().map(|(mark, n)| (mark.text(), n)).collect();
    Report {
        indexes: 1,
        cuts: life.done,
        counts: life.ledger.counts,
        marks,
        violations: violations.into_iter().collect(),
        trace: life.trace,
    }
}

/// One index through its power cuts.
struct IndexLife {
    plan: Plan,
    sim: SimStorage,
    ledger: Ledger,
    rng: ChaCha8Rng,
    seed: u64,
    /// Number of power cuts so far.
    done: u64,
    /// Hash of the disk after each power cut.
    trace: u64,
}

impl IndexLife {
    fn cut_and_recover(&mut self, cuts: u64) -> Result<(), String> {
        while self.done < cuts {
            let opens = self.ledger.opens();
            let stop = [Stop::Before, Stop::Torn, Stop::After][self.rng.random_range(0..3)];
            // A recovery takes tens of operations, and a batch a few.
            let most = [40, 300, 600, 2_000][self.rng.random_range(0..4)];
            self.sim.crash_after(self.rng.random_range(1..=most), stop);
            let (scheduler, ingester) = self.start();
            match scheduler.run(ingester.ingest()) {
                End::PowerCut => {}
                End::Broken(what) => return Err(what),
            }
            if opens == self.ledger.opens() {
                self.ledger.count("power cuts in an open");
            }
            self.sim.crash(CrashKind::Power, &mut self.rng);
            self.done += 1;
            let state = [self.trace, self.sim.image().fingerprint()].map(u64::to_le_bytes).concat();
            self.trace = xxhash_rust::xxh3::xxh3_64(&state);
        }
        // The state after the last power cut is checked too.
        let (scheduler, ingester) = self.start();
        scheduler.run(ingester.check())
    }

    /// Starts a process.
    fn start(&mut self) -> (Scheduler, Ingester<'_>) {
        let scheduler = Scheduler::new(self.rng.next_u64());
        let env = Env {
            clock: self.sim.clock(),
            new_index_id: self.seed.into(),
            executor: Arc::new(Inline),
            runtime: Arc::new(scheduler.clone()),
            cells: CellPolicy::Always,
        };
        let ingester = Ingester {
            plan: &self.plan,
            ledger: &mut self.ledger,
            rng: &mut self.rng,
            sim: self.sim.clone(),
            scheduler: scheduler.clone(),
            env,
        };
        (scheduler, ingester)
    }
}
