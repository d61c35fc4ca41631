//! Exploration of a workload: at every crash point, all states that a crash may leave, or a sample if there are too
//! many, are recovered and checked. The sweep (`sweep`) adds every fault at every operation.
//!
//! A workload runs once, and the disk is kept before each operation of its storage and once at the end. Each kept disk
//! is a crash point, for each of the two kinds of crash. The states of a point are the outcomes of the crash's choices.
//! Up to [`Limits::states_per_point`], all are visited. Otherwise outcomes known to matter and random ones are visited,
//! and the report counts such points as sampled.
//!
//! The outcome of a recovery is cached by the hash of the image. Each point checks it again against the batches
//! acknowledged and accepted there, because an image acceptable before an acknowledgement is a lost write after it.

mod old_build;
mod record;
mod recovery;
mod report;
mod states;
mod sweep;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Instant,
};

use shardex::{
    failpoint,
    format::root::{ROOT_BYTES, Root},
    storage::Storage as _,
};

use crate::{
    case::{Case, Crash, Damage, Event, Survivors},
    erased::Erased,
    hashed::HashedMap,
    model::State,
    pool,
    storage::{ChoiceLocation, CrashKind, Image, SimStorage, Stop},
    workload::Workload,
};
pub use old_build::{OldBuildReport, with_old_build};
use record::{Point, hash_image, prefixes, record};
pub use report::{Report, Violation};
use states::outcomes;

/// Limits of an exploration.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Number of states visited per point. All states are visited if there are no more than this.
    pub states_per_point: usize,
    /// Number of consecutive crashes. With 2, recoveries are also crashed at each of their operations. With 3, some of
    /// these recoveries are crashed again.
    pub depth: u32,
    /// Number of states visited per point of a crashed recovery. All states are visited if there are no more than this.
    pub nested_states: usize,
    /// Number of states visited per point with a rotten or stale root. All states are visited if there are no more than
    /// this.
    pub rotten_states: usize,
    /// Stride of the sweep: every Nth operation of a workload gets each fault in turn; 0 for no sweep.
    pub sweep_stride: u64,
    /// Seed of random decisions.
    pub seed: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { states_per_point: 4_096, depth: 3, nested_states: 16, rotten_states: 32, sweep_stride: 1, seed: 1 }
    }
}

/// Explores workloads on several threads. The reports are in the order of the workloads. Except for times, they do not
/// depend on the number of threads.
#[must_use]
pub fn explore(workloads: &[Workload], limits: &Limits, threads: usize) -> Vec<Report> {
    pool::map(threads, workloads, |workload| explore_one(workload, limits))
}

/// Explores one workload.
#[must_use]
pub fn explore_one(workload: &Workload, limits: &Limits) -> Report {
    let _ = failpoint::mutants::take_reached();
    let recorded = match record(workload) {
        Ok(recorded) => recorded,
        Err(broken) => {
            let events = workload.steps.iter().cloned().map(Event::Do).collect();
            let case = Case { workload: workload.clone(), seed: 1, garbage: false, events };
            return Report { violations: vec![Violation { broken, case }], ..Report::default() };
        }
    };
    let mut explorer = Explorer {
        workload,
        limits,
        prefixes: prefixes(&recorded.states),
        states: recorded.states,
        erased: recorded.erased,
        known: HashedMap::default(),
        nested: HashedMap::default(),
        outcomes: BTreeSet::new(),
        report: Report { max_depth: 1, ..Report::default() },
    };
    for (index, point) in recorded.points.iter().enumerate() {
        for kind in [CrashKind::Process, CrashKind::Power] {
            explorer.visit(&At { index, point, kind });
        }
    }
    let mut report = explorer.report;
    report.distinct_outcomes = explorer.outcomes.len() as u64;
    for (mark, n) in failpoint::mutants::take_reached() {
        *report.marks.entry(mark.text()).or_default() += n;
    }
    if limits.sweep_stride > 0 {
        report.add(sweep::sweep(workload, recorded.points.len() as u64 - 1, limits.sweep_stride));
    }
    report
}

/// Outcome of a recovery.
#[derive(Clone, Debug)]
enum Outcome {
    /// Lengths of the prefixes of accepted batches that leave the recovered content.
    Prefixes(Arc<[usize]>),
    Broken(Arc<str>),
}

impl Outcome {
    /// Checks that the promises allow this outcome at a point.
    fn allowed(&self, point: &Point) -> Result<(), String> {
        let (durable, accepted) = (point.durable, point.accepted);
        match self {
            Self::Broken(broken) => Err(broken.to_string()),
            Self::Prefixes(prefixes) if prefixes.iter().any(|n| (durable..=accepted).contains(n)) => Ok(()),
            Self::Prefixes(prefixes) => {
                Err(format!("P1/P2: prefix {prefixes:?} recovered, {durable} to {accepted} allowed"))
            }
        }
    }
}

/// Outcomes after crashes of a recovery, each with the crashes that led to it.
type Nested = Arc<[(Outcome, Vec<Crash>)]>;

/// Crash point with one kind of crash.
struct At<'a> {
    index: usize,
    point: &'a Point,
    kind: CrashKind,
}

struct Explorer<'a> {
    workload: &'a Workload,
    limits: &'a Limits,
    states: Vec<State>,
    /// What is erased after a purge, by the number of batches before it.
    erased: BTreeMap<usize, Erased>,
    prefixes: HashedMap<u128, Arc<[usize]>>,
    /// Outcome of the recovery of each image, by the hash of the bytes that a reader sees.
    known: HashedMap<u128, Outcome>,
    /// Outcomes after crashes of a recovery, by the fingerprint of the image.
    nested: HashedMap<u64, Nested>,
    outcomes: BTreeSet<u128>,
    report: Report,
}

impl Explorer<'_> {
    fn visit(&mut self, at: &At<'_>) {
        self.report.crash_points += 1;
        let options = options(&at.point.image, at.kind);
        let seed = self.limits.seed ^ at.index as u64;
        let (all, picks) = outcomes(&options, self.limits.states_per_point, seed);
        if all {
            self.report.exhaustive += 1
        } else {
            self.report.sampled += 1
        }
        for (n, picks) in picks.iter().enumerate() {
            self.state(at, picks, n == 0);
        }
        // One root slot may rot or become stale at any time, except while a root is being written.
        if !root_at_rest(&SimStorage::from_image(&at.point.image), at.kind) {
            return;
        }
        let (_, picks) = outcomes(&options, self.limits.rotten_states, seed);
        for picks in &picks {
            for damage in [Damage::RotRoot, Damage::StaleRoot] {
                self.rotten(at, picks, damage);
            }
        }
    }

    /// Visits one state: recovers it unless its image is known, and checks the outcome.
    fn state(&mut self, at: &At<'_>, picks: &[usize], first: bool) {
        let mut storage = SimStorage::from_image(&at.point.image);
        storage.crash_with(at.kind, picks);
        self.report.states += 1;
        if first && let Err(broken) = self.aftermath(&storage.image()) {
            self.violation(at, picks, None, &[], broken);
        }
        if let Some(broken) = self.erased.get(&at.point.purged).and_then(|erased| not_erased(&storage, erased)) {
            self.violation(at, picks, None, &[], broken);
        }
        let crashes = self.limits.depth > 1 && (first || self.workload.small);
        let image = crashes.then(|| storage.image());
        let outcome = self.outcome(&storage);
        if let Err(broken) = outcome.allowed(at.point) {
            self.violation(at, picks, None, &[], broken);
        }
        let Some(image) = image else { return };
        let fingerprint = image.fingerprint();
        let nested = match self.nested.get(&fingerprint) {
            Some(nested) => Arc::clone(nested),
            None => {
                let nested = self.crash_recovery(at, &image);
                self.nested.insert(fingerprint, Arc::clone(&nested));
                nested
            }
        };
        for (outcome, crashes) in nested.iter() {
            if let Err(broken) = outcome.allowed(at.point) {
                self.violation(at, picks, None, crashes, format!("in the recovery: {broken}"));
            }
        }
    }

    /// Returns the outcome of an image, cached by its hash. A new image is recovered and must then accept more writes.
    fn outcome(&mut self, storage: &SimStorage) -> Outcome {
        let hash = hash_image(storage);
        if let Some(outcome) = self.known.get(&hash) {
            return outcome.clone();
        }
        let began = Instant::now();
        let (outcome, engine) = self.recover(storage);
        self.report.checking += began.elapsed();
        self.report.distinct_states += 1;
        let outcome = self.goes_on(storage, outcome, engine);
        self.known.insert(hash, outcome.clone());
        outcome
    }

    /// Visits one state with the newest root damaged.
    fn rotten(&mut self, at: &At<'_>, picks: &[usize], damage: Damage) {
        let mut storage = SimStorage::from_image(&at.point.image);
        storage.crash_with(at.kind, picks);
        if !spoil_newest_root(&storage, damage, &at.point.roots_before) {
            return;
        }
        self.report.rotten_states += 1;
        let (outcome, _) = self.recover(&storage);
        if let Err(broken) = outcome.allowed(at.point) {
            self.violation(at, picks, Some(damage), &[], broken);
        }
    }

    /// Adds a violation with the case that reproduces it.
    fn violation(&mut self, at: &At<'_>, picks: &[usize], damage: Option<Damage>, nested: &[Crash], broken: String) {
        let crash = Crash {
            after: at.index as u64 + 1,
            stop: Stop::Before,
            kind: at.kind,
            survivors: Survivors::Picks(picks.to_vec()),
            damage,
        };
        let planned = at.point.operation.is_some();
        let mut events: Vec<Event> = self.workload.steps.iter().cloned().map(Event::Do).collect();
        let crashes = std::iter::once(crash).chain(nested.iter().cloned());
        if planned {
            events.splice(0..0, crashes.map(Event::Crash));
        } else {
            // After the last operation there is nothing to stop at, so the crash comes after the steps.
            events.extend(nested.iter().cloned().map(Event::Crash));
            let last = crashes.take(1).map(|crash| Event::Crash(Crash { after: 0, ..crash }));
            events.extend(last);
        }
        let case = Case { workload: self.workload.clone(), seed: self.limits.seed, garbage: false, events };
        self.report.violations.push(Violation { broken, case });
    }
}

/// Describes bytes in the files that a purge should have erased.
pub(crate) fn not_erased(storage: &SimStorage, erased: &Erased) -> Option<String> {
    let mut left = None;
    storage.read_files(|name, bytes| {
        let at = erased.find_in(bytes);
        left = left.take().or_else(|| at.map(|at| format!("purged bytes are in {name} at {at}")));
    });
    left
}

/// Returns the number of outcomes of each choice of a crash.
fn options(image: &Image, kind: CrashKind) -> Vec<usize> {
    SimStorage::from_image(image).choices(kind).iter().map(|choice| choice.options).collect()
}

/// Reports whether a crash now has nothing to decide about the root file, directory entries or the directory.
pub(crate) fn root_at_rest(storage: &SimStorage, kind: CrashKind) -> bool {
    storage.choices(kind).iter().all(|choice| match &choice.location {
        ChoiceLocation::Directory | ChoiceLocation::Entry(_) => false,
        ChoiceLocation::Extent(file) | ChoiceLocation::Sector(file, _) | ChoiceLocation::Cached(file, _) => {
            file != "root"
        }
    })
}

/// Flips a bit of the newest root, or restores the bytes that its slot held before. Returns false if there are not two
/// valid roots, or the slot held nothing else before.
fn spoil_newest_root(storage: &SimStorage, damage: Damage, before: &[Arc<[u8]>; 2]) -> bool {
    let page = storage.page_size();
    let [Some(first), Some(second)] = roots(storage) else { return false };
    let newest = usize::from((first.epoch, first.generation) < (second.epoch, second.generation));
    let mut changed = true;
    storage.tamper("root", |bytes| {
        let slot = &mut bytes[newest * page..][..ROOT_BYTES];
        match damage {
            Damage::StaleRoot => {
                let old = &before[newest][..ROOT_BYTES.min(before[newest].len())];
                changed = !old.is_empty() && slot[..old.len()] != *old;
                slot[..old.len()].copy_from_slice(old);
            }
            _ => slot[50] ^= 4,
        }
    });
    changed
}

/// Decodes both slots of the root file.
pub(crate) fn roots(storage: &SimStorage) -> [Option<Root>; 2] {
    let page = storage.page_size();
    let mut slots = [None, None];
    storage.read_files(|name, bytes| {
        if name == "root" {
            slots = [0, 1].map(|slot| Root::decode(bytes.get(slot * page..).unwrap_or_default()).ok());
        }
    });
    slots
}
