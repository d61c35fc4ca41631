//! A directory in memory that loses what a power cut may take.
//!
//! It owns the simulated disk and the machine around it: page cache, device, handles, locks, loans, planned faults and
//! the trace of what was asked. There is no thread and no clock; chance comes from seeds alone, so a run repeats.
//!
//! # Invariants
//! 1. After a power cut the disk holds a state that R3, R6 and R7 allow, and over all picks every such state.
//! 2. After a crash the machine is another: handles, locks and loans of before do nothing any more (R12).
//! 3. An [`Image`] shares nothing that changes with the storage it came from.

mod directory;
mod disk;
mod fault;
mod file;
mod inode;
mod machine;
mod mutant;
mod trace;

use std::{
    hash::{Hash as _, Hasher as _},
    io,
    ops::Range,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use rand::{RngExt, rngs::ChaCha8Rng};
use shardex::{
    env::Clock,
    error::{LockHolder, Result, ShardexError},
    storage::{Purpose, Storage, StorageLock},
};

pub use disk::{Choice, CrashKind, Place};
pub use fault::Fault;
pub use file::{SimFile, SimLent};
pub use machine::Stop;
pub use mutant::{SimMutant, set_sim_mutant};
pub use trace::{Counters, Op, OpInfo, TraceEntry};

use directory::{Change, FileId};
use disk::Disk;
use inode::Geometry;
use machine::{Chance, Machine, OnceFault, SyncFault};
use mutant::wrong;

/// Where the simulated directory is.
const PATH: &str = "/sim/index";

fn path_of(name: &str) -> PathBuf {
    if name.is_empty() { PathBuf::from(PATH) } else { PathBuf::from(PATH).join(name) }
}

/// A simulated directory. Clones are handles of one machine and die together when it crashes, all but the one that
/// [`crash`](Self::crash) was called on.
#[derive(Clone, Debug)]
pub struct SimStorage {
    machine: Arc<Mutex<Machine>>,
    geometry: Geometry,
    boot: u64,
}

/// Everything a machine has on its disk, in its page cache too.
#[derive(Clone, Debug)]
pub struct Image {
    disk: Disk,
    chance: Chance,
    capacity: Option<u64>,
    garbage: bool,
}

impl Image {
    /// A hash of all of it, of what is dirty too: what crashes may make of it.
    #[must_use]
    pub fn fingerprint(&self) -> u64 {
        let mut hasher = xxhash_rust::xxh3::Xxh3::new();
        self.disk.hash(&mut hasher);
        hasher.finish()
    }
}

/// Holds the lock of a file of a [`SimStorage`] until it is dropped. It follows the inode, not the name.
#[derive(Debug)]
pub struct SimLock {
    machine: Arc<Mutex<Machine>>,
    boot: u64,
    file: FileId,
    name: String,
    token: u64,
    /// Taking it made the file.
    made: bool,
}

impl SimLock {
    /// Whether it is held still: a crash has released it (R12).
    fn is_held(&self, machine: &Machine) -> bool {
        machine.locks.get(&self.file).is_some_and(|&(token, _)| token == self.token)
    }
}

impl StorageLock for SimLock {
    fn owner_left(&self) {
        let mut machine = locked(&self.machine);
        if self.is_held(&machine) {
            machine.locks.insert(self.file, (self.token, LockHolder::Reader));
        }
    }

    fn withdraw(&self) {
        let mut machine = locked(&self.machine);
        let found = machine.enter(self.boot).and_then(|()| machine.find(&self.name));
        if self.made && !machine.stopped && found.is_ok_and(|file| file == self.file) {
            machine.disk.directory.change(Change::Remove { name: self.name.clone() });
        }
    }
}

impl Drop for SimLock {
    fn drop(&mut self) {
        let mut machine = locked(&self.machine);
        if self.is_held(&machine) {
            machine.locks.remove(&self.file);
        }
    }
}

fn locked(machine: &Mutex<Machine>) -> MutexGuard<'_, Machine> {
    // Every panic under this lock is the report of a broken contract, before anything was changed.
    machine.lock().unwrap_or_else(PoisonError::into_inner)
}

impl SimStorage {
    /// An empty machine, in which the directory does not exist yet.
    ///
    /// # Panics
    /// If the sizes are no powers of two, or a sector is larger than a page.
    #[must_use]
    pub fn new(page_size: usize, sector_size: usize, seed: u64) -> Self {
        assert!(page_size.is_power_of_two() && sector_size.is_power_of_two() && sector_size <= page_size);
        let geometry = Geometry { page: page_size, sector: sector_size };
        Self::with(Machine::new(Disk::new(geometry), Chance::new(seed)))
    }

    fn with(machine: Machine) -> Self {
        Self { geometry: machine.disk.geometry, boot: machine.boot, machine: Arc::new(Mutex::new(machine)) }
    }

    fn machine(&self) -> MutexGuard<'_, Machine> {
        locked(&self.machine)
    }

    /// A copy of the disk and the page cache.
    #[must_use]
    pub fn image(&self) -> Image {
        let machine = self.machine();
        Image {
            disk: machine.disk.clone(),
            chance: machine.chance.clone(),
            capacity: machine.capacity,
            garbage: machine.garbage,
        }
    }

    /// Another machine in the state of the image. Handles, locks, loans, planned faults, trace and counters begin anew;
    /// what is dirty is still dirty, so this alone is no crash.
    #[must_use]
    pub fn from_image(image: &Image) -> Self {
        let mut machine = Machine::new(image.disk.clone(), image.chance.clone());
        machine.capacity = image.capacity;
        machine.garbage = image.garbage;
        Self::with(machine)
    }

    /// The decisions of a crash that happened now, in the order in which [`crash_with`](Self::crash_with) takes them.
    #[must_use]
    pub fn choices(&self, kind: CrashKind) -> Vec<Choice> {
        let machine = self.machine();
        machine.disk.choices(kind, machine.garbage)
    }

    /// Crashes with chance deciding: mostly each decision by itself, now and then nothing or everything survives.
    /// Afterwards this handle is of the new boot.
    pub fn crash(&mut self, kind: CrashKind, rng: &mut ChaCha8Rng) {
        let choices = self.choices(kind);
        let style = rng.random_range(0..8);
        let picks = choices.iter().map(|choice| match style {
            0 => 0,
            1 => choice.newest,
            _ => rng.random_range(0..choice.options),
        });
        self.crash_with(kind, &picks.collect::<Vec<_>>());
    }

    /// Crashes with one pick for each of the [`choices`](Self::choices). Afterwards this handle is of the new boot.
    ///
    /// # Panics
    /// If the picks do not fit the choices.
    pub fn crash_with(&mut self, kind: CrashKind, picks: &[usize]) {
        let mut guard = self.machine();
        let machine = &mut *guard;
        let choices = machine.disk.choices(kind, machine.garbage);
        let fit = choices.len() == picks.len() && choices.iter().zip(picks).all(|(c, pick)| *pick < c.options);
        assert!(fit, "picks {picks:?} do not fit {choices:?}");
        machine.disk.crash(kind, picks, &mut machine.chance.next());
        machine.boot += 1;
        if !wrong(SimMutant::LockOutlivesCrash) {
            machine.locks.clear();
        }
        machine.loans.clear();
        machine.flights.clear();
        machine.sync_fault = None;
        machine.once = None;
        match kind {
            CrashKind::Process => machine.counters.process_crashes += 1,
            CrashKind::Power => machine.counters.power_cuts += 1,
        }
        let garbage = choices.iter().zip(picks).filter(|(choice, pick)| **pick > choice.newest).count();
        machine.counters.garbage_sectors += garbage as u64;
        machine.stop_at = None;
        machine.stopped = false;
        let boot = machine.boot;
        drop(guard);
        self.boot = boot;
    }

    /// Stops the machine at the `n`-th operation from now that changes or syncs something: it, and all later ones, fail
    /// with `power lost`. Then [`crash`](Self::crash).
    ///
    /// # Panics
    /// If `n` is 0: counting starts at 1.
    pub fn crash_after(&self, n: u64, stop: Stop) {
        assert!(n > 0, "operations count from 1");
        let mut machine = self.machine();
        machine.stop_at = Some((machine.operations + n, stop));
    }

    /// Whether the machine has stopped at the operation set by [`crash_after`](Self::crash_after).
    #[must_use]
    pub fn stopped(&self) -> bool {
        self.machine().stopped
    }

    /// Operations begun so far that change or sync something.
    #[must_use]
    pub fn operations(&self) -> u64 {
        self.machine().operations
    }

    /// What happened so far.
    #[must_use]
    pub fn counters(&self) -> Counters {
        self.machine().counters
    }

    /// Starts a new trace, or stops tracing.
    pub fn set_trace(&self, on: bool) {
        self.machine().trace = on.then(Vec::new);
    }

    /// The trace since it was started or last taken.
    #[must_use]
    pub fn take_trace(&self) -> Vec<TraceEntry> {
        self.machine().trace.as_mut().map(std::mem::take).unwrap_or_default()
    }

    /// Starts a new list of what is read, or stops it.
    pub fn set_read_log(&self, on: bool) {
        self.machine().read_log = on.then(Vec::new);
    }

    /// What was read, by file and range, and whether it was lent, since the list was started or last taken; of files that
    /// are there.
    #[must_use]
    pub fn take_read_log(&self) -> Vec<(String, Range<u64>, bool)> {
        let mut machine = self.machine();
        let log = machine.read_log.as_mut().map(std::mem::take).unwrap_or_default();
        let names: std::collections::BTreeMap<FileId, &String> =
            machine.disk.directory.entries().iter().map(|(name, file)| (*file, name)).collect();
        log.into_iter().filter_map(|(file, range, lent)| Some((names.get(&file)?.to_string(), range, lent))).collect()
    }

    /// The operations, as errors name them, and their files, that failed since this was asked last.
    #[must_use]
    pub fn take_failures(&self) -> Vec<(&'static str, String)> {
        std::mem::take(&mut self.machine().failures)
    }

    /// Sets the seed of what chance decides between crashes: failed syncs and stores, garbage.
    pub fn reseed(&self, seed: u64) {
        self.machine().chance = Chance::new(seed);
    }

    /// Lets the next sync, of whatever, fail as R8 says. To fail a certain one, call this from a
    /// [hook](crate::hook::HookStorage).
    pub fn fail_next_sync(&self, kind: io::ErrorKind) {
        self.machine().sync_fault = Some(SyncFault::Fail(kind));
    }

    /// Plans a fault for the `after`-th operation, counted from now or, if others are planned, from the firing of the one
    /// before it; or for the first operation behind that one at which it can fire.
    pub fn plan(&self, after: u64, fault: Fault) {
        let mut machine = self.machine();
        let now = machine.operations;
        machine.plan.push(after, fault, now);
    }

    /// Forgets all that is planned.
    pub fn clear_plan(&self) {
        self.machine().plan.clear();
    }

    /// Keeps from now on what sectors held before: stale reads and [`go_back`](Self::go_back) need it.
    pub fn keep_history(&self) {
        let mut machine = self.machine();
        machine.disk.keep_history();
    }

    /// A sector in a range of a file is again what it was before its last change, on the device and in the cache; false if
    /// none there has changed.
    pub fn go_back(&self, name: &str, range: Range<u64>) -> bool {
        let mut machine = self.machine();
        let Ok(file) = machine.find(name) else { return false };
        let mut rng = machine.chance.next();
        machine.disk.inode(file).go_back(range, &mut rng)
    }

    /// A clock that jumps when the plan says so, and stands still otherwise.
    #[must_use]
    pub fn clock(&self) -> Arc<dyn Clock> {
        Arc::new(SimClock { machine: Arc::clone(&self.machine) })
    }

    /// From now on every store fails, and stores any of its sectors (R9); with `None`, no more.
    pub fn fail_stores(&self, kind: Option<io::ErrorKind>) {
        self.machine().store_fault = kind;
    }

    /// Bytes that files may take in all; an allocation beyond is `OutOfSpace`.
    pub fn set_capacity(&self, bytes: Option<u64>) {
        self.machine().capacity = bytes;
    }

    /// Garbage mode of R3: a sector being written at a power cut may hold anything.
    pub fn set_garbage(&self, on: bool) {
        self.machine().garbage = on;
    }

    /// Every file with the bytes a reader sees, by name.
    #[must_use]
    pub fn files(&self) -> Vec<(String, Vec<u8>)> {
        let machine = self.machine();
        let entries = machine.disk.directory.entries().iter();
        entries.map(|(name, file)| (name.clone(), machine.disk.inodes[file].cache().to_vec())).collect()
    }

    /// Shows every file as [`files`](Self::files) does, without a copy.
    pub fn read_files(&self, mut show: impl FnMut(&str, &[u8])) {
        let machine = self.machine();
        for (name, file) in machine.disk.directory.entries() {
            show(name, machine.disk.inodes[file].cache());
        }
    }

    /// The bytes of every file, in the order of [`files`](Self::files), that a store finds space for.
    #[must_use]
    pub fn space(&self) -> Vec<u64> {
        let machine = self.machine();
        machine.disk.directory.entries().values().map(|file| machine.disk.inodes[file].allocated()).collect()
    }

    /// What the device holds of a file, without the zeros behind the last byte it ever got; nothing if there is no such
    /// file.
    #[must_use]
    pub fn on_device(&self, name: &str) -> Vec<u8> {
        let machine = self.machine();
        machine.find(name).map(|file| machine.disk.inodes[&file].device().to_vec()).unwrap_or_default()
    }

    /// Changes a file behind everybody's back, on the device and in the cache: rot, a misplaced write, a swapped file.
    ///
    /// # Panics
    /// If there is no such file.
    pub fn tamper(&self, name: &str, change: impl FnOnce(&mut Vec<u8>)) {
        let mut machine = self.machine();
        let file = machine.named(name);
        let mut bytes = machine.disk.inodes[&file].cache().to_vec();
        change(&mut bytes);
        machine.disk.inode(file).replace(bytes);
    }

    /// A file is gone, entry and all; false if there is none.
    pub fn lose(&self, name: &str) -> bool {
        let mut machine = self.machine();
        machine.find(name).is_ok() && machine.disk.lose(name)
    }

    /// Lets reads by copying fail that touch a range of a file (R13), until the file is removed.
    ///
    /// # Panics
    /// If there is no such file.
    pub fn fail_reads(&self, name: &str, range: Range<u64>) {
        let mut machine = self.machine();
        let file = machine.named(name);
        machine.unreadable.entry(file).or_default().push(range);
    }

    /// Takes away all space of a file, as a copy does that skips zeros: a store before the next allocation is a fault.
    ///
    /// # Panics
    /// If there is no such file.
    pub fn make_sparse(&self, name: &str) {
        let mut machine = self.machine();
        let file = machine.named(name);
        machine.disk.inode(file).make_sparse();
    }

    fn handle(&self, name: &str, file: FileId) -> Arc<SimFile> {
        Arc::new(SimFile::new(Arc::clone(&self.machine), self.boot, file, name))
    }

    /// An operation on the directory or one of its entries.
    fn run<T>(&self, info: OpInfo, act: impl FnOnce(&mut Machine) -> io::Result<T>) -> Result<T> {
        self.machine().run(self.boot, info, |machine, _, _| act(machine))
    }
}

/// See [`SimStorage::clock`].
struct SimClock {
    machine: Arc<Mutex<Machine>>,
}

impl Clock for SimClock {
    fn unix_ms(&self) -> u64 {
        1_700_000_000_000u64.saturating_add_signed(locked(&self.machine).clock_jumped)
    }

    fn elapsed(&self) -> Duration {
        // As wrong as a clock can be: it jumps back, too.
        Duration::from_millis(1_000_000u64.saturating_add_signed(locked(&self.machine).clock_jumped))
    }
}

impl Machine {
    /// Refuses a change of entries, if that was planned.
    fn may_change_entries(&mut self) -> io::Result<()> {
        match self.once.take() {
            None => Ok(()),
            Some(OnceFault::FailEntry) => {
                self.counters.failed_entries += 1;
                Err(io::Error::other("the medium cannot be written here"))
            }
            Some(_) => {
                self.counters.refused_creations += 1;
                Err(io::ErrorKind::StorageFull.into())
            }
        }
    }

    /// A file for a test that knows it is there.
    fn named(&self, name: &str) -> FileId {
        self.find(name).unwrap_or_else(|_| panic!("there is no file {name}"))
    }
}

impl Storage for SimStorage {
    type File = SimFile;
    type Lock = SimLock;

    fn page_size(&self) -> usize {
        self.geometry.page
    }

    fn sector_size(&self) -> usize {
        self.geometry.sector
    }

    fn path(&self) -> PathBuf {
        path_of("")
    }

    fn exists(&self) -> Result<bool> {
        let machine = self.machine();
        machine.look(self.boot).map_err(|e| ShardexError::io("open", path_of(""), e))?;
        Ok(machine.disk.directory.exists())
    }

    fn make_dir(&self, purpose: Purpose) -> Result<()> {
        self.run(OpInfo::dir(Op::MakeDir, purpose), |machine| {
            if machine.disk.directory.exists() {
                return Err(io::ErrorKind::AlreadyExists.into());
            }
            machine.may_change_entries()?;
            machine.disk.directory.make();
            Ok(())
        })
    }

    fn sync_parent(&self, purpose: Purpose) -> Result<()> {
        self.run(OpInfo::dir(Op::SyncParent, purpose), |machine| {
            let fault = machine.take_sync_fault(Op::SyncParent);
            let Machine { disk: Disk { directory, .. }, chance, counters, .. } = machine;
            match fault {
                None => directory.sync_parent(),
                // Entries have no sectors that could go elsewhere.
                Some(SyncFault::Lie | SyncFault::Misdirect) => directory.lie_about_sync_parent(),
                Some(SyncFault::Fail(kind)) => {
                    directory.fail_sync_parent(&mut chance.next());
                    counters.failed_parent_syncs += 1;
                    return Err(kind.into());
                }
            }
            Ok(())
        })
    }

    fn lock(&self, name: &str) -> Result<SimLock> {
        let fail = |e| ShardexError::io("lock", path_of(name), e);
        let mut machine = self.machine();
        machine.enter(self.boot).map_err(fail)?;
        if machine.stopped {
            return Err(fail(io::Error::other("power lost")));
        }
        // The real backend locks a file, which others then see. It is no crash point of its own.
        let made = machine.find(name).is_err();
        let file = if made { machine.disk.create(name) } else { machine.find(name).map_err(fail)? };
        if let Some(&(_, holder)) = machine.locks.get(&file)
            && !wrong(SimMutant::LockShared)
        {
            machine.counters.refused_locks += 1;
            return Err(ShardexError::Locked { path: path_of(""), holder });
        }
        let token = machine.token();
        machine.locks.insert(file, (token, LockHolder::Handle));
        let (machine, name) = (Arc::clone(&self.machine), name.to_owned());
        Ok(SimLock { machine, boot: self.boot, file, name, token, made })
    }

    fn list(&self) -> Result<Vec<String>> {
        let machine = self.machine();
        machine.enter(self.boot).map_err(|e| ShardexError::io("list", path_of(""), e))?;
        Ok(machine.disk.directory.entries().keys().cloned().collect())
    }

    fn create(&self, name: &str, purpose: Purpose) -> Result<Arc<SimFile>> {
        self.run(OpInfo::file(Op::Create, name, 0, 0, purpose), |machine| {
            machine.enter(self.boot)?;
            if machine.find(name).is_ok() {
                return Err(io::ErrorKind::AlreadyExists.into());
            }
            machine.may_change_entries()?;
            machine.counters.entry_changes += 1;
            Ok(machine.disk.create(name))
        })
        .map(|file| self.handle(name, file))
    }

    fn open(&self, name: &str) -> Result<Arc<SimFile>> {
        let machine = self.machine();
        let found = machine.enter(self.boot).and_then(|()| machine.find(name));
        found.map(|file| self.handle(name, file)).map_err(|e| ShardexError::io("open", path_of(name), e))
    }

    fn rename(&self, from: &str, to: &str, purpose: Purpose) -> Result<()> {
        self.run(OpInfo::rename(from, to, purpose), |machine| {
            let file = machine.enter(self.boot).and_then(|()| machine.find(from))?;
            machine.may_change_entries()?;
            if from != to {
                machine.counters.entry_changes += 1;
                machine.disk.directory.change(Change::Rename { from: from.to_owned(), to: to.to_owned(), file });
            }
            Ok(())
        })
    }

    fn remove(&self, name: &str, purpose: Purpose) -> Result<()> {
        self.run(OpInfo::file(Op::Remove, name, 0, 0, purpose), |machine| {
            machine.enter(self.boot).and_then(|()| machine.find(name))?;
            machine.may_change_entries()?;
            machine.counters.entry_changes += 1;
            machine.disk.directory.change(Change::Remove { name: name.to_owned() });
            Ok(())
        })
    }

    fn sync_dir(&self, purpose: Purpose) -> Result<()> {
        self.run(OpInfo::dir(Op::SyncDir, purpose), |machine| {
            machine.enter(self.boot)?;
            let fault = machine.take_sync_fault(Op::SyncDir);
            let Machine { disk: Disk { directory, .. }, chance, .. } = machine;
            match fault {
                None if wrong(SimMutant::DirSyncNothing) => {}
                None => directory.sync(),
                // Entries have no sectors that could go elsewhere.
                Some(SyncFault::Lie | SyncFault::Misdirect) => directory.lie_about_sync(),
                Some(SyncFault::Fail(kind)) => {
                    directory.fail_sync(&mut chance.next());
                    return Err(kind.into());
                }
            }
            Ok(())
        })
    }
}
