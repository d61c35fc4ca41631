//! Every crash point of a workload, every state that a crash there may leave: recovered, checked, counted. And every fault
//! at every operation (`sweep`).
//!
//! A workload is run once, and before each operation of its storage the disk is kept. Each of these is a crash point, in
//! two kinds. The states of a point are the outcomes of the choices a crash makes there; where their number is small all
//! are visited, otherwise some that are known to matter and some by chance, and the report says which.
//!
//! What an image recovers to is remembered by its hash; whether that is allowed is asked at each point anew, against what
//! was acknowledged and accepted there: an image that was right before an acknowledgement is a lost write after it.

mod record;
mod report;
mod states;
mod sweep;

use std::{
    collections::{BTreeSet, HashMap},
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    time::Instant,
};

use shardex::{
    CheckLevel, DocumentId, Engine, Posting,
    format::root::{ROOT_BYTES, Root},
    site,
    storage::Storage as _,
};

use crate::{
    case::{Case, Crash, Damage, Event, Survivors},
    hook::HookStorage,
    model::{self, State},
    mutant::{MutantStorage, next_turn},
    mutation::panic_text,
    oracle, pool,
    storage::{CrashKind, Image, Place, SimStorage, Stop},
    workload::{Workload, env, vector},
};
use record::{Point, hash_image, hash_state, prefixes, record, recovery_images, watched};
pub use report::{Report, Violation};
use states::outcomes;

/// The storage as the engine gets it.
type Rig = MutantStorage<HookStorage<SimStorage>>;

/// How far to go.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// States of a point up to which all are visited; beyond, so many are.
    pub states_per_point: usize,
    /// Crashes in a row: 2 means that recoveries are crashed at each of their operations too, 3 that some of those are.
    pub depth: u32,
    /// States of each point of a recovery that is crashed, up to which all are visited; beyond, so many are.
    pub nested_states: usize,
    /// The same for states with a rotten or stale root.
    pub rotten_states: usize,
    /// Of the operations of a workload every so manieth gets each fault in turn; 0 for none.
    pub sweep_stride: u64,
    /// What chance starts from.
    pub seed: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { states_per_point: 4_096, depth: 3, nested_states: 16, rotten_states: 32, sweep_stride: 1, seed: 1 }
    }
}

/// Explores workloads on several threads. The reports come in the order of the workloads, the same for any number of
/// threads but for the time.
#[must_use]
pub fn explore(workloads: &[Workload], limits: &Limits, threads: usize) -> Vec<Report> {
    pool::map(threads, workloads, |workload| explore_one(workload, limits))
}

/// Explores one workload.
#[must_use]
pub fn explore_one(workload: &Workload, limits: &Limits) -> Report {
    drop(site::mutants::take_reached());
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
        known: HashMap::new(),
        nested: HashMap::new(),
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
    for (mark, n) in site::mutants::take_reached() {
        *report.marks.entry(mark.text()).or_default() += n;
    }
    if limits.sweep_stride > 0 {
        report.add(sweep::sweep(workload, recorded.points.len() as u64 - 1, limits.sweep_stride));
    }
    report
}

/// What a recovery led to.
#[derive(Clone, Debug)]
enum Outcome {
    /// The prefixes of the accepted batches that leave these contents.
    Prefixes(Arc<[usize]>),
    Broken(Arc<str>),
}

impl Outcome {
    /// Whether the promises allow it at a point.
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

/// What crashes of a recovery led to, and how.
type Nested = Arc<[(Outcome, Vec<Crash>)]>;

/// A crash point, in one of its kinds.
struct At<'a> {
    index: usize,
    point: &'a Point,
    kind: CrashKind,
}

struct Explorer<'a> {
    workload: &'a Workload,
    limits: &'a Limits,
    states: Vec<State>,
    prefixes: HashMap<u128, Arc<[usize]>>,
    /// What an image recovers to, by the hash of what a reader sees. Only looked up, never iterated.
    known: HashMap<u128, Outcome>,
    /// What crashes of a recovery lead to, by the hash of all that crashes may make of the image.
    nested: HashMap<u64, Nested>,
    outcomes: BTreeSet<u128>,
    report: Report,
}

impl Explorer<'_> {
    fn visit(&mut self, at: &At<'_>) {
        self.report.crash_points += 1;
        let options = options(&at.point.image, at.kind);
        let seed = self.limits.seed ^ at.index as u64;
        let (all, picks) = outcomes(&options, self.limits.states_per_point, seed);
        match all {
            true => self.report.exhaustive += 1,
            false => self.report.sampled += 1,
        }
        for (n, picks) in picks.iter().enumerate() {
            self.state(at, picks, n == 0);
        }
        // One root slot may rot, or go back, at any moment but while the other is being written.
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

    /// One state: recovered, unless its image is known, and judged.
    fn state(&mut self, at: &At<'_>, picks: &[usize], first: bool) {
        let mut storage = SimStorage::from_image(&at.point.image);
        storage.crash_with(at.kind, picks);
        self.report.states += 1;
        if first && let Err(broken) = self.aftermath(&storage.image()) {
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

    /// What an image recovers to, remembered by its hash; and it goes on working.
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

    /// A state whose newest root is not what it was.
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

    /// The case that leads to a broken promise.
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
            // At the end there is no operation to stop at.
            events.extend(nested.iter().cloned().map(Event::Crash));
            let last = crashes.take(1).map(|crash| Event::Crash(Crash { after: 0, ..crash }));
            events.extend(last);
        }
        let case = Case { workload: self.workload.clone(), seed: self.limits.seed, garbage: false, events };
        self.report.violations.push(Violation { broken, case });
    }

    /// Opens what a crash left, checks it in full, and tells which prefixes it may be.
    fn recover(&mut self, storage: &SimStorage) -> (Outcome, Option<Engine<Rig>>) {
        next_turn();
        let recovered = catch_unwind(AssertUnwindSafe(|| self.try_recover(storage)));
        match recovered {
            Ok(Ok((prefixes, engine))) => (Outcome::Prefixes(prefixes), Some(engine)),
            Ok(Err(broken)) => (Outcome::Broken(broken.into()), None),
            Err(panic) => (Outcome::Broken(format!("panic: {}", panic_text(&*panic)).into()), None),
        }
    }

    fn try_recover(&mut self, storage: &SimStorage) -> Result<(Arc<[usize]>, Engine<Rig>), String> {
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
        model::answers_as_brute_force(&engine, &self.states[n])?;
        self.files_agree(&left, storage, (&engine, n))?;
        Ok((prefixes, engine))
    }

    /// The files say the same, those that the crash left and those that the recovery made; whoever reads them has not asked the
    /// engine.
    fn files_agree(
        &self,
        left: &oracle::Image,
        storage: &SimStorage,
        (engine, n): (&Engine<Rig>, usize),
    ) -> Result<(), String> {
        let metric = engine.geometry().metric;
        let now = oracle::Image::of(storage);
        let report = now.check();
        oracle::agrees(&now, &report, engine, false)?;
        let before = left.check();
        // Before the root file has its name there is no index.
        let images = [(&now, &report)].into_iter().chain(before.newest.map(|_| (left, &before)));
        for (image, report) in images {
            if !oracle::same(&image.contents(report)?, &self.states[n], metric) {
                return Err(format!("P2: the files do not hold what {n} batches leave, and the engine says they do"));
            }
        }
        Ok(())
    }

    /// A recovered index takes more, flushes it, and is whole.
    fn goes_on(&mut self, storage: &SimStorage, outcome: Outcome, engine: Option<Engine<Rig>>) -> Outcome {
        let Some(mut engine) = engine else { return outcome };
        let went = catch_unwind(AssertUnwindSafe(|| {
            let before = engine.snapshot().live;
            engine.add(&more(engine.geometry().dimension)).map_err(|e| e.to_string())?;
            engine.flush().map_err(|e| e.to_string())?;
            let report = engine.check(CheckLevel::Full).map_err(|e| e.to_string())?;
            let image = oracle::Image::of(storage);
            oracle::agrees(&image, &image.check(), &engine, false)?;
            match report.is_clean() && engine.snapshot().live == before + MORE as u64 {
                true => Ok(()),
                false => Err(report.to_string()),
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
    fn crash_recovery(&mut self, at: &At<'_>, image: &Image) -> Nested {
        let mut led_to = Vec::new();
        self.report.exhaustive_recoveries += u64::from(self.workload.small);
        self.crash_again(at, image, 2, &mut Vec::new(), &mut led_to);
        led_to.into()
    }

    fn crash_again(
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
                    // Some of them once more: one state of every fifth operation.
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

    /// Recovers, adds, flushes; then the power goes, and of what was not synced nothing survives, or everything.
    fn aftermath(&self, image: &Image) -> Result<(), String> {
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

fn same(a: &Outcome, b: &Outcome) -> bool {
    match (a, b) {
        (Outcome::Prefixes(a), Outcome::Prefixes(b)) => a == b,
        (Outcome::Broken(a), Outcome::Broken(b)) => a == b,
        _ => false,
    }
}

/// How many outcomes each choice of a crash has.
fn options(image: &Image, kind: CrashKind) -> Vec<usize> {
    SimStorage::from_image(image).choices(kind).iter().map(|choice| choice.options).collect()
}

/// Whether a crash now has nothing to decide about the root file or its entry.
pub(crate) fn root_at_rest(storage: &SimStorage, kind: CrashKind) -> bool {
    storage.choices(kind).iter().all(|choice| match &choice.place {
        Place::Directory | Place::Entry(_) => false,
        Place::Extent(file) | Place::Sector(file, _) | Place::Cached(file, _) => file != "root",
    })
}

/// Postings that a recovered index takes.
const MORE: usize = 3;

/// Postings that no workload adds.
fn more(dimension: usize) -> Vec<Posting> {
    (0..MORE as u64)
        .map(|n| Posting {
            document_id: DocumentId(1_000_000 + u128::from(n)),
            start: 0,
            length: 1,
            vector: vector(n, 77, dimension),
        })
        .collect()
}

/// Flips a bit of the newest root, or puts back what its slot held before; false if there are not two roots, or it held
/// nothing else.
fn spoil_newest_root(storage: &SimStorage, damage: Damage, before: &[Arc<[u8]>; 2]) -> bool {
    let page = storage.page_size();
    let [Some(first), Some(second)] = roots(storage) else { return false };
    let newest = usize::from(first.generation < second.generation);
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

/// What the slots of the root file hold.
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
