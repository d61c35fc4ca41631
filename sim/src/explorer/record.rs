//! Recording of a workload: runs it once and keeps the disk before each operation.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, PoisonError},
};

use shardex::storage::Storage as _;
use xxhash_rust::xxh3::Xxh3;

use crate::{
    erased::Erased,
    hashed::HashedMap,
    hook::{HookAction, HookStorage},
    model::State,
    mutant::MutantStorage,
    storage::{Image, OpInfo, SimStorage},
    watch::{Watch, WatchedStorage},
    workload::{Runner, Workload, env},
};

/// Crash point: the disk just before an operation, or at the end.
pub(super) struct Point {
    pub(super) image: Image,
    pub(super) operation: Option<OpInfo>,
    pub(super) durable: usize,
    pub(super) accepted: usize,
    /// Number of batches before the last purge; 0 before the first one.
    pub(super) purged: usize,
    /// Bytes that the slots of the root file held on the device before their last change.
    pub(super) roots_before: [Arc<[u8]>; 2],
}

/// Crash points of a workload, and the content that each prefix of its batches leaves.
pub(super) struct Recorded {
    pub(super) points: Vec<Point>,
    pub(super) states: Vec<State>,
    /// What is erased after a purge, by the number of batches before it.
    pub(super) erased: BTreeMap<usize, Erased>,
}

/// Bytes of the root file's slots on the device, and their bytes before the last change.
#[derive(Clone, Default)]
struct RootHistory {
    now: [Arc<[u8]>; 2],
    before: [Arc<[u8]>; 2],
}

impl RootHistory {
    fn note(&mut self, disk: &SimStorage) {
        let page = disk.page_size();
        let bytes = disk.on_device("root");
        for (slot, (now, before)) in self.now.iter_mut().zip(&mut self.before).enumerate() {
            let found = bytes.get(slot * page..).map_or(&[][..], |rest| &rest[..page.min(rest.len())]);
            if **now != *found {
                *before = std::mem::replace(now, found.into());
            }
        }
    }
}

/// Wraps a simulated disk as the engine uses it. `before` is called before each operation.
pub(super) fn watched(sim: &SimStorage, before: impl Fn(&OpInfo) + Send + Sync + 'static) -> Rig {
    MutantStorage::new(HookStorage::new(sim.clone(), move |operation| {
        before(operation);
        HookAction::Proceed
    }))
}

/// Runs a workload and records its crash points.
///
/// # Errors
/// Returns an error of the engine, or a difference between its content and the model: both without any crash.
pub(super) fn record(workload: &Workload) -> Result<Recorded, String> {
    let sim = SimStorage::new(workload.page_size, workload.sector_size, 1);
    let watch = Watch::new(&sim);
    let mut runner = Runner::new(workload, env());
    runner.watch = Some(watch.clone());
    let points = Arc::new(Mutex::new((Vec::new(), RootHistory::default())));
    let (kept, progress, disk) = (Arc::clone(&points), runner.model.progress(), sim.clone());
    let keep = move |operation: Option<&OpInfo>| {
        let ((durable, accepted), purged) = (progress.now(), progress.purged());
        let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.1.note(&disk);
        let roots_before = kept.1.before.clone();
        let (image, operation) = (disk.image(), operation.cloned());
        kept.0.push(Point { image, operation, durable, accepted, purged, roots_before });
    };
    let before = keep.clone();
    let storage = HookStorage::new(WatchedStorage::new(sim, watch), move |operation| {
        before(Some(operation));
        HookAction::Proceed
    });
    let storage = MutantStorage::new(storage);
    for step in &workload.steps {
        runner.step(&storage, step).map_err(|error| format!("{step}: {error}"))?;
    }
    if let Some(engine) = &runner.engine {
        runner.model.current(engine)?;
    }
    keep(None);
    let states = (0..=runner.model.accepted()).map(|n| runner.model.state(n)).collect();
    let points = std::mem::take(&mut points.lock().unwrap_or_else(PoisonError::into_inner).0);
    let purges: BTreeSet<usize> =
        points.iter().map(|point: &Point| point.purged).filter(|&purged| purged > 0).collect();
    let erased = purges.into_iter().map(|batches| (batches, runner.model.erased_by(batches))).collect();
    Ok(Recorded { points, states, erased })
}

/// Returns the disk before each operation of a recovery of `image`.
pub(super) fn recovery_images(workload: &Workload, image: &Image) -> Vec<Image> {
    let sim = SimStorage::from_image(image);
    let kept = Arc::new(Mutex::new(Vec::new()));
    let (into, disk) = (Arc::clone(&kept), sim.clone());
    let storage = watched(&sim, move |_| into.lock().unwrap_or_else(PoisonError::into_inner).push(disk.image()));
    let _ = shardex::Engine::create(storage, &workload.config, &env());
    std::mem::take(&mut *kept.lock().unwrap_or_else(PoisonError::into_inner))
}

/// Returns the lengths of the prefixes that leave each content, by the hash of the content.
pub(super) fn prefixes(states: &[State]) -> HashedMap<u128, Arc<[usize]>> {
    let mut by_hash: BTreeMap<u128, Vec<usize>> = BTreeMap::new();
    for (n, state) in states.iter().enumerate() {
        by_hash.entry(hash_state(state)).or_default().push(n);
    }
    by_hash.into_iter().map(|(hash, prefixes)| (hash, prefixes.into())).collect()
}

/// Returns a hash of everything but the vectors. They are compared once the prefix is known.
pub(super) fn hash_state(state: &State) -> u128 {
    let mut hasher = Xxh3::new();
    for (document, start, length) in state.keys() {
        hasher.update(&document.to_le_bytes());
        hasher.update(&start.to_le_bytes());
        hasher.update(&length.to_le_bytes());
    }
    for ((document, start, length), tags) in &state.tags {
        hasher.update(format!("{document} {start} {length} {tags}").as_bytes());
    }
    for (document, payload) in &state.payloads {
        hasher.update(format!("{document} {}", payload.len()).as_bytes());
        hasher.update(payload);
    }
    hasher.update(&state.cursor);
    hasher.digest128()
}

/// Returns a hash of all files by name: allocation, length, and all bytes except zeros at the end.
pub(super) fn hash_image(storage: &SimStorage) -> u128 {
    let mut hasher = Xxh3::new();
    hasher.update(&[u8::from(storage.exists().unwrap_or(false))]);
    storage.space().iter().for_each(|space| hasher.update(&space.to_le_bytes()));
    storage.read_files(|name, bytes| {
        let used = bytes.iter().rposition(|&byte| byte != 0).map_or(0, |at| at + 1);
        hasher.update(name.as_bytes());
        hasher.update(&(used as u64).to_le_bytes());
        // Files that differ only in zeros at the end are different images: reads beyond the shorter end fail.
        hasher.update(&(bytes.len() as u64).to_le_bytes());

        hasher.update(&bytes[..used]);
    });
    hasher.digest128()
}

/// Storage as the engine uses it.
pub(super) type Rig = MutantStorage<HookStorage<SimStorage>>;
