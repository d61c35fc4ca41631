//! Simulated storage: a directory in memory that loses state at a power cut.
//!
//! It contains the simulated disk and its machine: page cache, device, handles, locks, leases, planned faults and the
//! trace of operations. It uses no thread and no clock. All random decisions follow from seeds, so runs are
//! reproducible.
//!
//! # Invariants
//! 1. After a power cut the disk holds a state that R3, R6 and R7 allow. Every allowed state is reachable by some
//!    picks.
//! 2. After a crash, handles, locks and leases of earlier boots have no effect (R12).
//! 3. An [`Image`] shares no mutable state with its storage.

mod contract;
mod crash;
mod directory;
mod disk;
mod fault;
mod file;
mod image;
mod inode;
mod lock;
mod machine;
mod mutant;
mod space;
mod trace;

use std::{
    io,
    ops::Range,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use rand::{RngExt, rngs::ChaCha8Rng};
use shardex::{env::Clock, error::Result};

pub use disk::{Choice, ChoiceLocation, CrashKind};
pub use fault::{Fault, Stop};
pub use file::{SimFile, SimLent};
pub use image::Image;
pub use lock::SimLock;
pub use mutant::{SimMutant, set_sim_mutant};
pub use trace::{Counters, Op, OpInfo, TraceEntry};

use directory::FileId;
use disk::Disk;
use inode::PageSizes;
use machine::{Draws, Machine, SyncFault, locked};
use mutant::wrong;

/// Simulated directory. Clones are handles of the same machine. A crash invalidates all of them except the one on which
/// [`crash`](Self::crash) was called.
#[derive(Clone, Debug)]
pub struct SimStorage {
    machine: Arc<Mutex<Machine>>,
    geometry: PageSizes,
    boot: u64,
}

impl SimStorage {
    /// Creates a machine on which the directory does not exist yet.
    ///
    /// # Panics
    /// If the sizes are not powers of two, or a sector is larger than a page.
    #[must_use]
    pub fn new(page_size: usize, sector_size: usize, seed: u64) -> Self {
        assert!(page_size.is_power_of_two() && sector_size.is_power_of_two() && sector_size <= page_size);
        let geometry = PageSizes { page: page_size, sector: sector_size };
        Self::with(Machine::new(Disk::new(geometry), Draws::new(seed)))
    }

    fn with(machine: Machine) -> Self {
        Self { geometry: machine.disk.geometry, boot: machine.boot, machine: Arc::new(Mutex::new(machine)) }
    }

    fn machine(&self) -> MutexGuard<'_, Machine> {
        locked(&self.machine)
    }

    /// Returns a copy of the disk and the page cache.
    #[must_use]
    pub fn image(&self) -> Image {
        let machine = self.machine();
        Image {
            disk: machine.disk.clone(),
            draws: machine.draws.clone(),
            capacity: machine.capacity,
            garbage: machine.garbage,
        }
    }

    /// Creates another machine in the state of an image, without handles, locks, leases, planned faults, trace and
    /// counters. Dirty state stays dirty, so this is not a crash.
    #[must_use]
    pub fn from_image(image: &Image) -> Self {
        let mut machine = Machine::new(image.disk.clone(), image.draws.clone());
        machine.capacity = image.capacity;
        machine.garbage = image.garbage;
        Self::with(machine)
    }

    /// Returns the decisions of a crash at this moment, in the order in which [`crash_with`](Self::crash_with) takes
    /// picks.
    #[must_use]
    pub fn choices(&self, kind: CrashKind) -> Vec<Choice> {
        let machine = self.machine();
        machine.disk.choices(kind, machine.garbage)
    }

    /// Crashes with random picks. With probability 1/8 each, no change or every change survives. Otherwise the
    /// decisions are independent. Afterwards this handle belongs to the new boot.
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

    /// Crashes with one pick for each of the [`choices`](Self::choices). Afterwards this handle belongs to the new
    /// boot.
    ///
    /// # Panics
    /// If the picks do not fit the choices.
    pub fn crash_with(&mut self, kind: CrashKind, picks: &[usize]) {
        let mut guard = self.machine();
        let machine = &mut *guard;
        let choices = machine.disk.choices(kind, machine.garbage);
        let fit = choices.len() == picks.len() && choices.iter().zip(picks).all(|(c, pick)| *pick < c.options);
        assert!(fit, "picks {picks:?} do not fit {choices:?}");
        machine.disk.crash(kind, picks, &mut machine.draws.next());
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

    /// Stops the machine at the `n`-th operation from now that changes or syncs something. It and all later operations
    /// fail with `power lost` until [`crash`](Self::crash) is called.
    ///
    /// # Panics
    /// If `n` is 0: counting starts at 1.
    pub fn crash_after(&self, n: u64, stop: Stop) {
        assert!(n > 0, "operations count from 1");
        let mut machine = self.machine();
        machine.stop_at = Some((machine.operations + n, stop));
    }

    /// Reports whether the machine has stopped at the operation set by [`crash_after`](Self::crash_after) or a planned
    /// stop.
    #[must_use]
    pub fn stopped(&self) -> bool {
        self.machine().stopped
    }

    /// Returns the number of operations begun that change or sync something.
    #[must_use]
    pub fn operations(&self) -> u64 {
        self.machine().operations
    }

    /// Returns the counters of operations and faults.
    #[must_use]
    pub fn counters(&self) -> Counters {
        self.machine().counters
    }

    /// Starts a new trace, or stops tracing.
    pub fn set_trace(&self, on: bool) {
        self.machine().trace = on.then(Vec::new);
    }

    /// Takes the trace since it was started or last taken.
    #[must_use]
    pub fn take_trace(&self) -> Vec<TraceEntry> {
        self.machine().trace.as_mut().map(std::mem::take).unwrap_or_default()
    }

    /// Starts a new list of reads, or stops it.
    pub fn set_read_log(&self, on: bool) {
        self.machine().read_log = on.then(Vec::new);
    }

    /// Takes the list of reads since it was started or last taken: file, range, and whether the bytes were leased.
    /// Contains only files that still have a name.
    #[must_use]
    pub fn take_read_log(&self) -> Vec<(String, Range<u64>, bool)> {
        let mut machine = self.machine();
        let log = machine.read_log.as_mut().map(std::mem::take).unwrap_or_default();
        let names: std::collections::BTreeMap<FileId, &String> =
            machine.disk.directory.entries().iter().map(|(name, file)| (*file, name)).collect();
        log.into_iter().filter_map(|(file, range, lent)| Some((names.get(&file)?.to_string(), range, lent))).collect()
    }

    /// Takes the failed operations since the last call: the verb used in errors, and the file.
    #[must_use]
    pub fn take_failures(&self) -> Vec<(&'static str, String)> {
        std::mem::take(&mut self.machine().failures)
    }

    /// Sets the seed of random decisions between crashes: failed syncs and stores, and garbage.
    pub fn reseed(&self, seed: u64) {
        self.machine().draws = Draws::new(seed);
    }

    /// Makes the next sync of any file or directory fail as R8 describes. To fail a specific sync, call this from a
    /// [hook](crate::hook::HookStorage).
    pub fn fail_next_sync(&self, kind: io::ErrorKind) {
        self.machine().sync_fault = Some(SyncFault::Fail(kind));
    }

    /// Plans a fault for the `after`-th operation, or for the first later operation at which it can fire. Operations
    /// are counted from now. If other faults are planned, they are counted from the firing of the last of them.
    pub fn plan(&self, after: u64, fault: Fault) {
        let mut machine = self.machine();
        let now = machine.operations;
        machine.plan.push(after, fault, now);
    }

    /// Removes all planned faults.
    pub fn clear_plan(&self) {
        self.machine().plan.clear();
    }

    /// Starts to keep the bytes that sectors held before their last change. Stale reads and [`go_back`](Self::go_back)
    /// require it.
    pub fn keep_history(&self) {
        let mut machine = self.machine();
        machine.disk.keep_history();
    }

    /// Restores a randomly chosen sector in a range of a file to its bytes before its last change, on the device and in
    /// the cache. Returns false if there is no such file, no sector of the range has changed, or the chosen one is
    /// dirty.
    pub fn go_back(&self, name: &str, range: Range<u64>) -> bool {
        let mut machine = self.machine();
        let Ok(file) = machine.find(name) else { return false };
        let mut rng = machine.draws.next();
        machine.disk.inode(file).go_back(range, &mut rng)
    }

    /// Returns a clock that stands still except for planned jumps.
    #[must_use]
    pub fn clock(&self) -> Arc<dyn Clock> {
        Arc::new(SimClock { machine: Arc::clone(&self.machine) })
    }

    /// Makes every store fail after storing any of its sectors (R9). `None` ends this.
    pub fn fail_stores(&self, kind: Option<io::ErrorKind>) {
        self.machine().store_fault = kind;
    }

    /// Sets whether the file system can't take space back: deallocations then do nothing.
    pub fn set_keeps_space(&self, keeps: bool) {
        self.machine().keeps_space = keeps;
    }

    /// Sets whether the file system can't give a file a second name.
    pub fn set_no_links(&self, none: bool) {
        self.machine().no_links = none;
    }

    /// Limits the bytes of all files together. An allocation beyond the limit fails with `OutOfSpace`.
    pub fn set_capacity(&self, bytes: Option<u64>) {
        self.machine().capacity = bytes;
    }

    /// Turns the garbage mode of R3 on or off: a sector being written at a power cut may hold anything.
    pub fn set_garbage(&self, on: bool) {
        self.machine().garbage = on;
    }

    /// Returns every file with the bytes that a reader sees, sorted by name.
    #[must_use]
    pub fn files(&self) -> Vec<(String, Vec<u8>)> {
        let machine = self.machine();
        let entries = machine.disk.directory.entries().iter();
        entries.map(|(name, file)| (name.clone(), machine.disk.inodes[file].cache().to_vec())).collect()
    }

    /// Calls `show` for every file as in [`files`](Self::files), without a copy.
    pub fn read_files(&self, mut show: impl FnMut(&str, &[u8])) {
        let machine = self.machine();
        for (name, file) in machine.disk.directory.entries() {
            show(name, machine.disk.inodes[file].cache());
        }
    }

    /// Returns the allocated bytes of every file, in the order of [`files`](Self::files).
    #[must_use]
    pub fn space(&self) -> Vec<u64> {
        let machine = self.machine();
        machine.disk.directory.entries().values().map(|file| machine.disk.inodes[file].space().bytes()).collect()
    }

    /// Returns the allocated bytes of a file; 0 if there is no such file.
    #[must_use]
    pub fn allocated(&self, name: &str) -> u64 {
        let machine = self.machine();
        machine.find(name).map_or(0, |file| machine.disk.inodes[&file].space().bytes())
    }

    /// Returns the bytes of a file on the device, which may be shorter than the file: missing bytes are zeros. Empty if
    /// there is no such file.
    #[must_use]
    pub fn on_device(&self, name: &str) -> Vec<u8> {
        let machine = self.machine();
        machine.find(name).map(|file| machine.disk.inodes[&file].device().to_vec()).unwrap_or_default()
    }

    /// Changes a file on the device and in the cache, without a store: rot, a misplaced write, or a swapped file.
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

    /// Removes a file with its entry, durably. All other pending changes of entries become durable too. Returns false
    /// if there is no such file.
    pub fn lose(&self, name: &str) -> bool {
        let mut machine = self.machine();
        machine.find(name).is_ok() && machine.disk.lose(name)
    }

    /// Makes reads by copying fail that touch a range of a file (R13), until the file is removed.
    ///
    /// # Panics
    /// If there is no such file.
    pub fn fail_reads(&self, name: &str, range: Range<u64>) {
        let mut machine = self.machine();
        let file = machine.named(name);
        machine.unreadable.entry(file).or_default().push(range);
    }

    /// Removes the allocation of a file, as a copy does that skips zeros. A store before the next allocation panics.
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

    /// Runs an operation on the directory or one of its entries.
    fn run<T>(&self, info: OpInfo, act: impl FnOnce(&mut Machine) -> io::Result<T>) -> Result<T> {
        self.machine().run(self.boot, info, |machine, _, _| act(machine))
    }
}

/// Clock of a [`SimStorage`].
struct SimClock {
    machine: Arc<Mutex<Machine>>,
}

impl Clock for SimClock {
    fn unix_ms(&self) -> u64 {
        1_700_000_000_000u64.saturating_add_signed(locked(&self.machine).clock_jumped)
    }

    fn elapsed(&self) -> Duration {
        // The worst case of a clock: even the elapsed time jumps back.
        Duration::from_millis(1_000_000u64.saturating_add_signed(locked(&self.machine).clock_jumped))
    }
}
