//! Recoveries: of one state, of the states that a crashed recovery leaves, and the writes that must follow them.

use super::record::{Rig, hash_image, hash_state, recovery_images, watched};
use super::states::outcomes;
use super::{At, Explorer, Nested, Outcome, options};
use crate::{
    brute_force,
    case::{Crash, Survivors},
    model,
    mutant::next_turn,
    oracle,
    pool::panic_text,
    storage::{CrashKind, Image, SimStorage, Stop},
    workload::{env, vector},
};
use shardex::{CheckLevel, DocumentId, Engine, Posting};
use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
};

pub(super) fn same(a: &Outcome, b: &Outcome) -> bool {
    match (a, b) {
        (Outcome::Prefixes(a), Outcome::Prefixes(b)) => a == b,
        (Outcome::Broken(a), Outcome::Broken(b)) => a == b,
        _ => false,
    }
}

/// Number of postings added to a recovered index.
pub(super) const MORE: usize = 3;

/// Returns postings that no workload adds.
pub(super) fn more(dimension: usize) -> Vec<Posting> {
    (0..MORE as u64)
        .map(|n| Posting {
            document_id: DocumentId(1_000_000 + u128::from(n)),
            start: 0,
            length: 1,
            vector: vector(n, 77, dimension),
            tags: 0,
        })
        .collect()
}

impl Explorer<'_> {
    /// Recovers a state, checks it in full, and returns the prefixes that its content may be.
    pub(super) fn recover(&mut self, storage: &SimStorage) -> (Outcome, Option<Engine<Rig>>) {
        next_turn();
        let recovered = catch_unwind(AssertUnwindSafe(|| self.try_recover(storage)));
        match recovered {
            Ok(Ok((prefixes, engine))) => (Outcome::Prefixes(prefixes), Some(engine)),
            Ok(Err(broken)) => (Outcome::Broken(broken.into()), None),
            Err(panic) => (Outcome::Broken(format!("panic: {}", panic_text(&*panic)).into()), None),
        }
    }

    pub(super) fn try_recover(&mut self, storage: &SimStorage) -> Result<(Arc<[usize]>, Engine<Rig>), String> {
        let left = oracle::Image::of(storage);
        let rig = watched(storage, |_| {});
        let engine = Engine::create(rig, &self.workload.config, &env()).map_err(|e| format!("P1: {e}"))?;
        let report = engine.check(CheckLevel::Full).map_err(|e| format!("P4: {e}"))?;
        if !report.is_clean() {
            return Err(format!("P6: {report}"));
        }
        let held = model::contents(&engine)?;
        let hash = hash_state(&held);
        self.outcomes.insert(hash);
        let metric = engine.geometry().metric;
        let prefixes: Arc<[usize]> = self
            .prefixes
            .get(&hash)
            .into_iter()
            .flat_map(|prefixes| prefixes.iter().copied())
            .filter(|&n| model::same(&held, &self.states[n], metric))
            .collect();
        let Some(&n) = prefixes.first() else {
            return Err(format!("P2: {} postings are there, which no prefix leaves", held.len()));
        };
        brute_force::answers_as_brute_force(&engine, &self.states[n])?;
        self.files_agree(&left, storage, &engine, n)?;
        Ok((prefixes, engine))
    }

    /// Checks with the independent checker that the files hold prefix `n`: both the files that the crash left and those
    /// that the recovery made.
    pub(super) fn files_agree(
        &self,
        left: &oracle::Image,
        storage: &SimStorage,
        engine: &Engine<Rig>,
        n: usize,
    ) -> Result<(), String> {
        let now = oracle::Image::of(storage);
        let report = now.check();
        oracle::agrees(&now, &report, engine, false)?;
        let before = left.check();
        // Without a readable root the crash left no index to compare.
        let images = [(&now, &report)].into_iter().chain(before.newest.map(|_| (left, &before)));
        for (image, report) in images {
            if !oracle::same(&image.contents(report)?, &self.states[n], &self.workload.config) {
                return Err(format!("P2: the files do not hold what {n} batches leave, and the engine says they do"));
            }
        }
        Ok(())
    }

    /// Checks that a recovered index accepts more postings, flushes them, and passes a full check.
    pub(super) fn goes_on(&mut self, storage: &SimStorage, outcome: Outcome, engine: Option<Engine<Rig>>) -> Outcome {
        let Some(mut engine) = engine else { return outcome };
        let went = catch_unwind(AssertUnwindSafe(|| {
            let before = engine.snapshot().live;
            engine.add(&more(engine.geometry().dimension)).map_err(|e| e.to_string())?;
            engine.flush().map_err(|e| e.to_string())?;
            let report = engine.check(CheckLevel::Full).map_err(|e| e.to_string())?;
            let image = oracle::Image::of(storage);
            oracle::agrees(&image, &image.check(), &engine, false)?;
            if report.is_clean() && engine.snapshot().live == before + MORE as u64 {
                Ok(())
            } else {
                Err(report.to_string())
            }
        }));
        let broken = match went {
            Ok(Ok(())) => return outcome,
            Ok(Err(broken)) => broken,
            Err(panic) => format!("panic: {}", panic_text(&*panic)),
        };
        Outcome::Broken(format!("after going on: {broken}").into())
    }

    /// Crashes a recovery before each of its operations and recovers again.
    pub(super) fn crash_recovery(&mut self, at: &At<'_>, image: &Image) -> Nested {
        let mut led_to = Vec::new();
        self.report.exhaustive_recoveries += u64::from(self.workload.small);
        self.crash_again(at, image, 2, &mut Vec::new(), &mut led_to);
        led_to.into()
    }

    pub(super) fn crash_again(
        &mut self,
        at: &At<'_>,
        image: &Image,
        depth: u32,
        so_far: &mut Vec<Crash>,
        led_to: &mut Vec<(Outcome, Vec<Crash>)>,
    ) {
        self.report.max_depth = self.report.max_depth.max(depth);
        let exhaustive = depth == 2 && self.workload.small;
        let most = if exhaustive { self.limits.states_per_point } else { self.limits.nested_states };
        for (n, image) in recovery_images(self.workload, image).iter().enumerate() {
            for kind in [CrashKind::Process, CrashKind::Power] {
                let (_, picks) = outcomes(&options(image, kind), most, self.limits.seed ^ at.index as u64);
                for (p, picks) in picks.iter().enumerate() {
                    let mut storage = SimStorage::from_image(image);
                    storage.crash_with(kind, picks);
                    self.report.nested_states += 1;
                    let survivors = Survivors::Picks(picks.clone());
                    so_far.push(Crash { after: n as u64 + 1, stop: Stop::Before, kind, survivors, damage: None });
                    let hash = hash_image(&storage);
                    // Crashes the next recovery too, for one state of every fifth operation.
                    if depth < self.limits.depth && p == 0 && n % 5 == at.index % 5 {
                        self.crash_again(at, &storage.image(), depth + 1, so_far, led_to);
                    }
                    let outcome = match self.known.get(&hash) {
                        Some(known) => known.clone(),
                        None => self.recover(&storage).0,
                    };
                    if !led_to.iter().any(|(known, _)| same(known, &outcome)) {
                        led_to.push((outcome, so_far.clone()));
                    }
                    so_far.pop();
                }
            }
        }
    }

    /// Recovers, adds and commits postings, then flushes. A power cut follows the commit, and another the flush, in
    /// which either nothing or everything unsynced survives. The postings must be there after each.
    pub(super) fn aftermath(&self, image: &Image) -> Result<(), String> {
        let sim = SimStorage::from_image(image);
        let open = |sim: &SimStorage| {
            next_turn();
            Engine::create(watched(sim, |_| {}), &self.workload.config, &env()).map_err(|e| format!("P1: {e}"))
        };
        let went = catch_unwind(AssertUnwindSafe(|| {
            let mut engine = open(&sim)?;
            let before = engine.snapshot().live;
            next_turn();
            engine.add(&more(engine.geometry().dimension)).map_err(|e| e.to_string())?;
            engine.commit().map_err(|e| e.to_string())?;
            let committed = sim.image();
            next_turn();
            engine.flush().map_err(|e| e.to_string())?;
            drop(engine);
            for image in [&committed, &sim.image()] {
                for newest in [false, true] {
                    let mut storage = SimStorage::from_image(image);
                    let choices = storage.choices(CrashKind::Power);
                    let picks: Vec<usize> =
                        choices.iter().map(|choice| if newest { choice.newest } else { 0 }).collect();
                    storage.crash_with(CrashKind::Power, &picks);
                    let live = open(&storage)?.snapshot().live;
                    if live != before + MORE as u64 {
                        let expected = before + MORE as u64;
                        return Err(format!(
                            "P1: {live} of {expected} postings after a recovery, a commit and a crash"
                        ));
                    }
                }
            }
            Ok(())
        }));
        went.unwrap_or_else(|panic| Err(format!("panic: {}", panic_text(&*panic))))
    }
}
