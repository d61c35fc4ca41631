//! Running a workload once, and keeping the disk before each of its operations.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, PoisonError},
};

use shardex::storage::Storage as _;
use xxhash_rust::xxh3::Xxh3;

use super::Rig;
use crate::{
    hook::{HookStorage, Verdict},
    model::State,
    mutant::MutantStorage,
    storage::{Image, OpInfo, SimStorage},
    watch::{Watch, WatchedStorage},
    workload::{Runner, Workload, env},
};

/// A moment at which the machine may stop: just before an operation.
pub(super) struct Point {
    pub(super) image: Image,
    pub(super) operation: Option<OpInfo>,
    pub(super) durable: usize,
    pub(super) accepted: usize,
    /// What the slots of the root file held before their last change, on the device.
    pub(super) roots_before: [Arc<[u8]>; 2],
}

/// A workload's points, and what each prefix of its batches leaves.
pub(super) struct Recorded {
    pub(super) points: Vec<Point>,
    pub(super) states: Vec<State>,
}

/// The bytes of the root file's slots on the device, and those before the last change of each.
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

/// The storage as the engine gets it: `before` is told of each operation.
pub(super) fn watched(sim: &SimStorage, before: impl Fn(&OpInfo) + Send + Sync + 'static) -> Rig {
    MutantStorage::new(HookStorage::new(sim.clone(), move |operation| {
        before(operation);
        Verdict::Proceed
    }))
}

/// # Errors
/// What the engine says, or what it holds that it should not: without any crash.
pub(super) fn record(workload: &Workload) -> Result<Recorded, String> {
    let sim = SimStorage::new(workload.page_size, workload.sector_size, 1);
    let watch = Watch::new(&sim);
    let mut runner = Runner::new(workload, env());
    runner.watch = Some(watch.clone());
    let points = Arc::new(Mutex::new((Vec::new(), RootHistory::default())));
    let (kept, progress, disk) = (Arc::clone(&points), runner.model.progress(), sim.clone());
    let keep = move |operation: Option<&OpInfo>| {
        let (durable, accepted) = progress.now();
        let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.1.note(&disk);
        let roots_before = kept.1.before.clone();
        kept.0.push(Point { image: disk.image(), operation: operation.cloned(), durable, accepted, roots_before });
    };
    let before = keep.clone();
    let storage = HookStorage::new(WatchedStorage::new(sim, watch), move |operation| {
        before(Some(operation));
        Verdict::Proceed
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
    drop(runner);
    let points = std::mem::take(&mut points.lock().unwrap_or_else(PoisonError::into_inner).0);
    Ok(Recorded { points, states })
}

/// The disk before each operation of a recovery of `image`.
pub(super) fn recovery_images(workload: &Workload, image: &Image) -> Vec<Image> {
    let sim = SimStorage::from_image(image);
    let kept = Arc::new(Mutex::new(Vec::new()));
    let (into, disk) = (Arc::clone(&kept), sim.clone());
    let storage = watched(&sim, move |_| into.lock().unwrap_or_else(PoisonError::into_inner).push(disk.image()));
    drop(shardex::Engine::create(storage, &workload.config, &env()));
    std::mem::take(&mut *kept.lock().unwrap_or_else(PoisonError::into_inner))
}

/// The prefixes that leave each content, by the content's hash.
pub(super) fn prefixes(states: &[State]) -> HashMap<u128, Arc<[usize]>> {
    let mut by_hash: BTreeMap<u128, Vec<usize>> = BTreeMap::new();
    for (n, state) in states.iter().enumerate() {
        by_hash.entry(hash_state(state)).or_default().push(n);
    }
    by_hash.into_iter().map(|(hash, prefixes)| (hash, prefixes.into())).collect()
}

/// Keys only: the vectors are compared when the prefix is known.
pub(super) fn hash_state(state: &State) -> u128 {
    let mut hasher = Xxh3::new();
    for (document, start, length) in state.keys() {
        hasher.update(&document.to_le_bytes());
        hasher.update(&start.to_le_bytes());
        hasher.update(&length.to_le_bytes());
    }
    hasher.digest128()
}

/// All files by name: their lengths, the space they have, and all their bytes but for the zeros at the end.
pub(super) fn hash_image(storage: &SimStorage) -> u128 {
    let mut hasher = Xxh3::new();
    hasher.update(&[u8::from(storage.exists().unwrap_or(false))]);
    storage.space().iter().for_each(|space| hasher.update(&space.to_le_bytes()));
    storage.read_files(|name, bytes| {
        let used = bytes.iter().rposition(|&byte| byte != 0).map_or(0, |at| at + 1);
        hasher.update(name.as_bytes());
        hasher.update(&(used as u64).to_le_bytes());
        // A shorter file whose tail is zeros is another one: what lies beyond its end is no part of it.
        hasher.update(&(bytes.len() as u64).to_le_bytes());

        hasher.update(&bytes[..used]);
    });
    hasher.digest128()
}
