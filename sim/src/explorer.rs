//! Every crash point of a workload, every state that a crash there may leave: recovered, checked, counted.
//!
//! A workload is run once, and before each operation of its storage the disk is kept. Each of these is a crash point, in
//! two kinds. The states of a point are the outcomes of the choices a crash makes there; where their number is small all
//! are visited, otherwise some that are known to matter and some by chance, and the report says which.
//!
//! What an image recovers to is remembered by its hash; whether that is allowed is asked at each point anew, against what
//! was acknowledged and accepted there: an image that was right before an acknowledgement is a lost write after it.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{Arc, Mutex, PoisonError},
};

use rand::{RngExt as _, SeedableRng as _, rngs::ChaCha8Rng};
use shardex::{CheckLevel, DocumentId, Engine, Posting, format::root::Root, storage::Storage as _};
use xxhash_rust::xxh3::Xxh3;

use crate::{
    hook::{HookStorage, Verdict},
    model::{self, State},
    storage::{CrashKind, Image, OpInfo, Place, SimStorage},
    workload::{Runner, Workload, env, vector},
};

/// How far to go.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// States of a point up to which all are visited; beyond, so many are.
    pub states_per_point: usize,
    /// Crashes in a row: 2 means that each recovery is crashed at each of its operations too.
    pub depth: u32,
    /// States of each point of a recovery that is crashed again, up to which all are visited; beyond, so many are.
    pub nested_states: usize,
    /// What chance starts from.
    pub seed: u64,
    /// The purpose of syncs that return `Ok` and do nothing, to test the tester: what is found then is what that sync buys.
    pub without: Option<&'static str>,
}

impl Default for Limits {
    fn default() -> Self {
        Self { states_per_point: 4_096, depth: 2, nested_states: 16, seed: 1, without: None }
    }
}

/// A moment at which the machine may stop: just before an operation.
struct Point {
    image: Image,
    operation: Option<OpInfo>,
    durable: usize,
    accepted: usize,
}

/// What was seen.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Report {
    /// Crash points, both kinds.
    pub crash_points: u64,
    /// States visited: images recovered and fully checked, or known by their hash.
    pub states: u64,
    /// Images that differ.
    pub distinct_states: u64,
    /// Contents that recoveries led to, which differ.
    pub distinct_outcomes: u64,
    /// Points of which all states were visited.
    pub exhaustive: u64,
    /// Points of which some were.
    pub sampled: u64,
    /// States of crashes during recoveries.
    pub nested_states: u64,
    /// The longest row of crashes.
    pub max_depth: u32,
    /// How often what happened.
    pub marks: BTreeMap<&'static str, u64>,
    /// Broken promises.
    pub violations: Vec<Violation>,
}

/// A broken promise.
#[derive(Clone, Debug, PartialEq)]
pub struct Violation {
    /// The workload.
    pub workload: String,
    /// The crash point: operations done before it.
    pub point: usize,
    /// The operation that was about to be done.
    pub operation: String,
    /// Process or power.
    pub kind: CrashKind,
    /// Whether the newest root rotted, too.
    pub rot: bool,
    /// The outcome of each choice.
    pub picks: Vec<usize>,
    /// Which promise, and how.
    pub broken: String,
}

impl Report {
    /// Adds another workload's figures.
    pub fn add(&mut self, other: Self) {
        self.crash_points += other.crash_points;
        self.states += other.states;
        self.distinct_states += other.distinct_states;
        self.distinct_outcomes += other.distinct_outcomes;
        self.exhaustive += other.exhaustive;
        self.sampled += other.sampled;
        self.nested_states += other.nested_states;
        self.max_depth = self.max_depth.max(other.max_depth);
        for (mark, n) in other.marks {
            *self.marks.entry(mark).or_default() += n;
        }
        self.violations.extend(other.violations);
    }

    fn mark(&mut self, mark: &'static str) {
        *self.marks.entry(mark).or_default() += 1;
    }
}

/// What a recovery led to.
#[derive(Clone, Debug)]
enum Outcome {
    /// The prefixes of the accepted batches that leave these contents.
    Prefixes(Arc<[usize]>),
    Broken(String),
}

/// Explores one workload.
#[must_use]
pub fn explore(workload: &Workload, limits: &Limits) -> Report {
    let (points, states) = match record(workload, limits) {
        Ok(recorded) => recorded,
        Err(broken) => {
            let violation = Violation {
                workload: workload.name.clone(),
                point: 0,
                operation: String::new(),
                kind: CrashKind::Process,
                rot: false,
                picks: Vec::new(),
                broken,
            };
            return Report { violations: vec![violation], ..Report::default() };
        }
    };
    let mut explorer = Explorer {
        workload,
        limits,
        prefixes: prefixes(&states),
        states,
        known: HashMap::new(),
        outcomes: BTreeSet::new(),
        report: Report { max_depth: 1, ..Report::default() },
    };
    for (index, point) in points.iter().enumerate() {
        for kind in [CrashKind::Process, CrashKind::Power] {
            explorer.visit(index, point, kind);
        }
    }
    let mut report = explorer.report;
    report.distinct_states = explorer.known.len() as u64;
    report.distinct_outcomes = explorer.outcomes.len() as u64;
    report
}

/// Runs the workload and keeps the disk before each operation; and what each prefix of its batches leaves.
fn record(workload: &Workload, limits: &Limits) -> Result<(Vec<Point>, Vec<State>), String> {
    let sim = SimStorage::new(workload.page_size, workload.sector_size, 1);
    let points = Arc::new(Mutex::new(Vec::new()));
    let progress = Arc::new(Mutex::new((0, 0)));
    let (kept, seen, disk) = (Arc::clone(&points), Arc::clone(&progress), sim.clone());
    let keep = move |operation: Option<&OpInfo>| {
        let (durable, accepted) = *seen.lock().unwrap_or_else(PoisonError::into_inner);
        let point = Point { image: disk.image(), operation: operation.cloned(), durable, accepted };
        kept.lock().unwrap_or_else(PoisonError::into_inner).push(point);
    };
    let before = keep.clone();
    let storage = hooked(&sim, limits, move |operation| before(Some(operation)));
    let mut runner = Runner::new(workload);
    for step in &workload.steps {
        runner.step(&storage, step).map_err(|error| format!("{step:?}: {error}"))?;
        let now = (runner.model.durable(), runner.model.accepted());
        *progress.lock().unwrap_or_else(PoisonError::into_inner) = now;
    }
    if let Some(engine) = &runner.engine {
        runner.model.current(engine)?;
    }
    keep(None);
    let states = (0..=runner.model.accepted()).map(|n| runner.model.state(n)).collect();
    drop(runner);
    let points = std::mem::take(&mut *points.lock().unwrap_or_else(PoisonError::into_inner));
    Ok((points, states))
}

/// The storage as the engine gets it: `before` is told of each operation, and the sync that is left out is left out.
fn hooked(
    sim: &SimStorage,
    limits: &Limits,
    before: impl Fn(&OpInfo) + Send + Sync + 'static,
) -> HookStorage<SimStorage> {
    let (without, disk) = (limits.without, sim.clone());
    HookStorage::new(sim.clone(), move |operation| {
        before(operation);
        if operation.op.is_sync() && without == Some(operation.purpose.0) {
            disk.lie_at_next_sync();
        }
        Verdict::Proceed
    })
}

/// The prefixes that leave each content, by the content's hash.
fn prefixes(states: &[State]) -> HashMap<u128, Arc<[usize]>> {
    let mut by_hash: HashMap<u128, Vec<usize>> = HashMap::new();
    for (n, state) in states.iter().enumerate() {
        by_hash.entry(hash_state(state)).or_default().push(n);
    }
    by_hash.into_iter().map(|(hash, prefixes)| (hash, prefixes.into())).collect()
}

/// Keys only: the vectors are compared when the prefix is known.
fn hash_state(state: &State) -> u128 {
    let mut hasher = Xxh3::new();
    for (document, start, length) in state.keys() {
        hasher.update(&document.to_le_bytes());
        hasher.update(&start.to_le_bytes());
        hasher.update(&length.to_le_bytes());
    }
    hasher.digest128()
}

struct Explorer<'a> {
    workload: &'a Workload,
    limits: &'a Limits,
    states: Vec<State>,
    prefixes: HashMap<u128, Arc<[usize]>>,
    /// What each image recovered to. Only looked up, never iterated.
    known: HashMap<u128, Outcome>,
    outcomes: BTreeSet<u128>,
    report: Report,
}

impl Explorer<'_> {
    fn visit(&mut self, index: usize, point: &Point, kind: CrashKind) {
        self.report.crash_points += 1;
        let choices = SimStorage::from_image(&point.image).choices(kind);
        let options: Vec<usize> = choices.iter().map(|choice| choice.options).collect();
        let (all, picks) = outcomes(&options, self.limits.states_per_point, self.limits.seed ^ index as u64);
        match all {
            true => self.report.exhaustive += 1,
            false => self.report.sampled += 1,
        }
        for (n, picks) in picks.iter().enumerate() {
            self.state(index, point, kind, picks, (false, n == 0));
        }
        // One root slot may rot at any moment but while the other is being written.
        if root_at_rest(&SimStorage::from_image(&point.image), kind) {
            let (_, picks) = outcomes(&options, self.limits.nested_states, self.limits.seed ^ index as u64);
            for picks in &picks {
                self.state(index, point, kind, picks, (true, false));
            }
        }
    }

    /// One state: recovered, unless its image is known, and judged.
    fn state(&mut self, index: usize, point: &Point, kind: CrashKind, picks: &[usize], (rot, again): (bool, bool)) {
        let mut storage = SimStorage::from_image(&point.image);
        storage.crash_with(kind, picks);
        if rot && !rot_newest_root(&storage) {
            return;
        }
        self.report.states += 1;
        let image = (again && self.limits.depth > 1).then(|| storage.image());
        let outcome = self.outcome(&storage);
        if let (Some(image), Outcome::Prefixes(prefixes)) = (image, &outcome) {
            self.crash_recovery(index, point, kind, picks, &image, prefixes);
        }
        if let Err(broken) = allowed(&outcome, point) {
            self.violation(index, point, (kind, rot), picks, broken);
        }
    }

    /// What an image recovers to, remembered by its hash.
    fn outcome(&mut self, storage: &SimStorage) -> Outcome {
        let hash = hash_image(storage);
        match self.known.get(&hash) {
            Some(outcome) => outcome.clone(),
            None => {
                let outcome = self.recover(storage);
                self.known.insert(hash, outcome.clone());
                outcome
            }
        }
    }

    fn violation(
        &mut self,
        index: usize,
        point: &Point,
        (kind, rot): (CrashKind, bool),
        picks: &[usize],
        broken: String,
    ) {
        let operation = point.operation.as_ref().map_or_else(|| "the end".to_owned(), ToString::to_string);
        self.report.violations.push(Violation {
            workload: self.workload.name.clone(),
            point: index,
            operation,
            kind,
            rot,
            picks: picks.to_vec(),
            broken,
        });
    }

    /// Opens what a crash left, checks it in full, and tells which prefixes it may be. Then goes on working.
    fn recover(&mut self, storage: &SimStorage) -> Outcome {
        match self.try_recover(storage) {
            Ok(prefixes) => Outcome::Prefixes(prefixes),
            Err(broken) => Outcome::Broken(broken),
        }
    }

    fn try_recover(&mut self, storage: &SimStorage) -> Result<Arc<[usize]>, String> {
        let mut engine = Engine::create(hooked(storage, self.limits, |_| {}), &self.workload.config, &env())
            .map_err(|e| format!("P1: {e}"))?;
        let report = engine.check(CheckLevel::Full).map_err(|e| format!("P4: {e}"))?;
        if !report.is_clean() {
            return Err(format!("P6: {report}"));
        }
        let recovery = engine.stats().map_err(|e| e.to_string())?.recovery;
        for (mark, seen) in [
            ("an older root was fallen back to", recovery.root_fallback),
            ("a torn tail was found", recovery.torn_tail),
            ("records were replayed", recovery.records_replayed > 0),
            ("an interrupted create was cleared", recovery.leftovers_removed > 0),
        ] {
            if seen {
                self.report.mark(mark);
            }
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
        self.go_on(&mut engine).map_err(|broken| format!("after going on: {broken}"))?;
        Ok(prefixes)
    }

    /// A recovered index takes more, flushes it, and is whole.
    fn go_on(&mut self, engine: &mut Engine<HookStorage<SimStorage>>) -> Result<(), String> {
        self.report.mark("went on");
        let before = engine.snapshot().live;
        let dimension = engine.geometry().dimension;
        engine.add(&more(dimension)).map_err(|e| e.to_string())?;
        engine.flush().map_err(|e| e.to_string())?;
        let report = engine.check(CheckLevel::Full).map_err(|e| e.to_string())?;
        match report.is_clean() && engine.snapshot().live == before + MORE as u64 {
            true => Ok(()),
            false => Err(report.to_string()),
        }
    }

    /// Crashes a recovery before each of its operations, in every state, and recovers again: the same prefixes.
    fn crash_recovery(
        &mut self,
        index: usize,
        point: &Point,
        kind: CrashKind,
        picks: &[usize],
        image: &Image,
        prefixes: &Arc<[usize]>,
    ) {
        self.report.mark("nested");
        self.report.max_depth = self.report.max_depth.max(2);
        let sim = SimStorage::from_image(image);
        let kept = Arc::new(Mutex::new(Vec::new()));
        let (into, disk) = (Arc::clone(&kept), sim.clone());
        let storage = hooked(&sim, self.limits, move |_| {
            into.lock().unwrap_or_else(PoisonError::into_inner).push(disk.image());
        });
        drop(Engine::create(storage, &self.workload.config, &env()));
        let images = std::mem::take(&mut *kept.lock().unwrap_or_else(PoisonError::into_inner));
        for image in images {
            for again in [CrashKind::Process, CrashKind::Power] {
                let options: Vec<usize> =
                    SimStorage::from_image(&image).choices(again).iter().map(|choice| choice.options).collect();
                let (_, some) = outcomes(&options, self.limits.nested_states, self.limits.seed ^ index as u64);
                for (nested, rot) in some.iter().flat_map(|picks| [(picks, false), (picks, true)]) {
                    let mut storage = SimStorage::from_image(&image);
                    if rot && !root_at_rest(&storage, again) {
                        continue;
                    }
                    storage.crash_with(again, nested);
                    if rot && !rot_newest_root(&storage) {
                        continue;
                    }
                    self.report.nested_states += 1;
                    let outcome = self.outcome(&storage);
                    let broken = match &outcome {
                        Outcome::Broken(broken) => Some(broken.clone()),
                        // Nothing was acknowledged by the recovery, so a shorter prefix may come back, if it was allowed.
                        Outcome::Prefixes(found) => {
                            let fine = |n: &usize| prefixes.contains(n) || (point.durable..=point.accepted).contains(n);
                            (!found.iter().any(fine)).then(|| format!("P2: a second crash leads to {found:?}"))
                        }
                    };
                    if let Some(broken) = broken {
                        self.violation(index, point, (kind, rot), picks, format!("in the recovery: {broken}"));
                    }
                }
            }
        }
        if let Err(broken) = self.aftermath(image) {
            self.violation(index, point, (kind, false), picks, broken);
        }
    }

    /// Recovers, adds, flushes; then the power goes, and of what was not synced nothing survives, or everything.
    fn aftermath(&self, image: &Image) -> Result<(), String> {
        let sim = SimStorage::from_image(image);
        let open = |sim: &SimStorage| {
            Engine::create(hooked(sim, self.limits, |_| {}), &self.workload.config, &env())
                .map_err(|e| format!("P1: {e}"))
        };
        let mut engine = open(&sim)?;
        let before = engine.snapshot().live;
        engine.add(&more(engine.geometry().dimension)).map_err(|e| e.to_string())?;
        engine.flush().map_err(|e| e.to_string())?;
        drop(engine);
        for newest in [false, true] {
            let mut storage = SimStorage::from_image(&sim.image());
            let choices = storage.choices(CrashKind::Power);
            let picks: Vec<usize> = choices.iter().map(|choice| if newest { choice.newest } else { 0 }).collect();
            storage.crash_with(CrashKind::Power, &picks);
            let live = open(&storage)?.snapshot().live;
            if live != before + MORE as u64 {
                return Err(format!(
                    "P1: {live} of {} postings are there after a recovery, a flush and a crash",
                    before + MORE as u64
                ));
            }
        }
        Ok(())
    }
}

/// Whether a crash now has nothing to decide about the root file or its entry.
fn root_at_rest(storage: &SimStorage, kind: CrashKind) -> bool {
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

/// Whether an outcome is one that the promises allow at a point.
fn allowed(outcome: &Outcome, point: &Point) -> Result<(), String> {
    match outcome {
        Outcome::Broken(broken) => Err(broken.clone()),
        Outcome::Prefixes(prefixes) => {
            let (durable, accepted) = (point.durable, point.accepted);
            match prefixes.iter().any(|n| (durable..=accepted).contains(n)) {
                true => Ok(()),
                false => Err(format!("P1/P2: prefix {prefixes:?} recovered, {durable} to {accepted} allowed")),
            }
        }
    }
}

/// Outcome number `n` of choices with so many options each.
fn nth(options: &[usize], mut n: usize) -> Vec<usize> {
    options
        .iter()
        .map(|&options| {
            let pick = n % options;
            n /= options;
            pick
        })
        .collect()
}

/// The outcomes to visit of choices with so many options each, and whether these are all.
fn outcomes(options: &[usize], most: usize, seed: u64) -> (bool, Vec<Vec<usize>>) {
    match options.iter().try_fold(1usize, |product, n| product.checked_mul(*n)) {
        Some(all) if all <= most => (true, (0..all).map(|n| nth(options, n)).collect()),
        _ => (false, sample(options, most, seed)),
    }
}

/// Flips a bit of the newest root; false if there are not two roots.
fn rot_newest_root(storage: &SimStorage) -> bool {
    let page = storage.page_size();
    let mut newest = None;
    storage.read_files(|name, bytes| {
        if name == "root" {
            let slot = |slot: usize| Root::decode(bytes.get(slot * page..).unwrap_or_default());
            if let (Ok(first), Ok(second)) = (slot(0), slot(1)) {
                newest = Some(usize::from(first.generation < second.generation));
            }
        }
    });
    let Some(newest) = newest else { return false };
    storage.tamper("root", |bytes| bytes[newest * page + 50] ^= 4);
    true
}

/// Outcomes that are known to matter (nothing survives, everything, one thing alone, all but one, pairs), then chance.
fn sample(options: &[usize], most: usize, seed: u64) -> Vec<Vec<usize>> {
    let none = vec![0; options.len()];
    let newest: Vec<usize> = options.iter().map(|n| n - 1).collect();
    let mut picks = vec![none.clone(), newest.clone()];
    for i in 0..options.len() {
        let mut alone = none.clone();
        alone[i] = newest[i];
        let mut missing = newest.clone();
        missing[i] = 0;
        picks.extend([alone, missing]);
    }
    for i in 1..options.len() {
        let mut pair = none.clone();
        (pair[i - 1], pair[i]) = (newest[i - 1], newest[i]);
        picks.push(pair);
    }
    picks.truncate(most);
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    while picks.len() < most {
        picks.push(options.iter().map(|&n| rng.random_range(0..n)).collect());
    }
    picks
}

/// All files by name, and all their bytes: what a reader sees after the crash.
fn hash_image(storage: &SimStorage) -> u128 {
    let mut hasher = Xxh3::new();
    hasher.update(&[u8::from(storage.exists().unwrap_or(false))]);
    storage.read_files(|name, bytes| {
        hasher.update(name.as_bytes());
        hasher.update(&(bytes.len() as u64).to_le_bytes());
        hasher.update(bytes);
    });
    hasher.digest128()
}
