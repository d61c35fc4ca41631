//! Machine of a simulated disk: handles and locks in use, planned faults, and records of operations.
//!
//! # Invariants
//! 1. Only handles of the running boot have any effect. A crash starts the next boot.
//! 2. Once the machine has stopped, nothing changes until it crashes.
//! 3. No store touches leased bytes. The engine must ensure this, and a breach panics.

use std::{collections::BTreeMap, io, ops::Range};

use rand::{RngExt as _, SeedableRng, rngs::ChaCha8Rng};
use shardex::error::{LockHolder, Result, ShardexError};

use super::{
    crash::Captured,
    directory::FileId,
    disk::Disk,
    fault::{Fault, Plan, Stop, error_kind},
    trace::{Counters, Op, OpInfo},
};
use std::{
    path::PathBuf,
    sync::{Mutex, MutexGuard, PoisonError},
};

/// Fault of the next sync.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SyncFault {
    /// The sync fails (R8).
    Fail(io::ErrorKind),
    /// The sync returns `Ok` and does nothing (R13).
    Lie,
    /// One sector is written to another place (R13).
    Misdirect,
}

/// Sync under way.
#[derive(Clone, Debug)]
pub(super) struct Flight {
    pub(super) file: FileId,
    pub(super) captured: Captured,
    /// Fault that takes effect at the end of the sync.
    pub(super) fault: Option<SyncFault>,
}

/// Fault of the current operation, which is a store, an allocation or a change of directory entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum OnceFault {
    /// The store fails (R9).
    FailStore(io::ErrorKind),
    /// The operation finds no space (R9).
    NoSpace,
    /// The change of directory entries fails.
    FailEntry,
}

/// Source of random decisions. Each decision gets its own generator, derived from the seed and its number, so an image
/// repeats the same decisions.
#[derive(Clone, Debug)]
pub(super) struct Draws {
    seed: u64,
    drawn: u64,
}

impl Draws {
    pub(super) fn new(seed: u64) -> Self {
        Self { seed, drawn: 0 }
    }

    pub(super) fn next(&mut self) -> ChaCha8Rng {
        self.drawn += 1;
        // An odd factor, so that neighbouring seeds do not share generators.
        ChaCha8Rng::seed_from_u64(self.seed.wrapping_add(self.drawn.wrapping_mul(0x9E37_79B9_7F4A_7C15)))
    }
}

#[derive(Debug)]
pub(super) struct Machine {
    pub(super) disk: Disk,
    pub(super) draws: Draws,
    pub(super) boot: u64,
    /// Locked files, each with the token of the lock and its holder.
    pub(super) locks: BTreeMap<FileId, (u64, LockHolder)>,
    /// Leased ranges of each file, by token.
    pub(super) loans: BTreeMap<FileId, BTreeMap<u64, Range<u64>>>,
    /// Last token given to a lock, a lease or a sync.
    pub(super) last_token: u64,
    /// Maximum number of bytes of all files together.
    pub(super) capacity: Option<u64>,
    /// Whether the file system can't take space back.
    pub(super) keeps_space: bool,
    /// Whether the file system can't give a file a second name.
    pub(super) no_links: bool,
    pub(super) sync_fault: Option<SyncFault>,
    /// Syncs under way, by token.
    pub(super) flights: BTreeMap<u64, Flight>,
    pub(super) store_fault: Option<io::ErrorKind>,
    /// Fault of the current operation.
    pub(super) once: Option<OnceFault>,
    /// Planned faults.
    pub(super) plan: Plan,
    /// Milliseconds by which the clock has jumped.
    pub(super) clock_jumped: i64,
    /// Ranges of each file whose reads fail.
    pub(super) unreadable: BTreeMap<FileId, Vec<Range<u64>>>,
    pub(super) garbage: bool,
    pub(super) trace: Option<Vec<OpInfo>>,
    /// Reads since the list was started; `None` if no list is kept. The flag marks a lease.
    pub(super) read_log: Option<Vec<(FileId, Range<u64>, bool)>>,
    /// Failed operations since the last query: the verb used in errors, and the file.
    pub(super) failures: Vec<(&'static str, String)>,
    pub(super) counters: Counters,
    /// Number of operations begun that change or sync something.
    pub(super) operations: u64,
    /// Number of the operation at which the machine stops, and the state that it leaves.
    pub(super) stop_at: Option<(u64, Stop)>,
    pub(super) stopped: bool,
}

impl Machine {
    pub(super) fn new(disk: Disk, draws: Draws) -> Self {
        Self {
            disk,
            draws,
            boot: 0,
            locks: BTreeMap::new(),
            loans: BTreeMap::new(),
            last_token: 0,
            capacity: None,
            keeps_space: false,
            no_links: false,
            sync_fault: None,
            flights: BTreeMap::new(),
            store_fault: None,
            once: None,
            plan: Plan::default(),
            clock_jumped: 0,
            unreadable: BTreeMap::new(),
            garbage: false,
            trace: None,
            read_log: None,
            failures: Vec::new(),
            counters: Counters::default(),
            operations: 0,
            stop_at: None,
            stopped: false,
        }
    }

    pub(super) fn token(&mut self) -> u64 {
        self.last_token += 1;
        self.last_token
    }

    /// Checks that a handle belongs to the running boot.
    pub(super) fn look(&self, boot: u64) -> io::Result<()> {
        if boot == self.boot { Ok(()) } else { Err(io::Error::other("power lost: this handle is of before the crash")) }
    }

    /// Checks that a handle belongs to the running boot and that the directory exists.
    pub(super) fn enter(&self, boot: u64) -> io::Result<()> {
        self.look(boot)?;
        if self.disk.directory.exists() { Ok(()) } else { Err(io::ErrorKind::NotFound.into()) }
    }

    pub(super) fn find(&self, name: &str) -> io::Result<FileId> {
        self.disk.directory.entries().get(name).copied().ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    /// Arms the faults planned for the operation that begins.
    fn arm(&mut self, op: Op) {
        let now = self.operations;
        // One operation may get several faults: rot and clock jumps do not exclude a fault of the disk.
        while let Some(fault) = self.plan.take(now, |fault| fault.fits(op)) {
            match fault {
                Fault::Stop(stop) => {
                    self.stop_at = Some((now, stop));
                    break;
                }
                Fault::FailSync { full } => self.sync_fault = Some(SyncFault::Fail(error_kind(full))),
                Fault::LieAtSync => self.sync_fault = Some(SyncFault::Lie),
                Fault::Misdirect => self.sync_fault = Some(SyncFault::Misdirect),
                Fault::FailStore { full } => self.once = Some(OnceFault::FailStore(error_kind(full))),
                Fault::NoSpace => self.once = Some(OnceFault::NoSpace),
                Fault::FailEntry => self.once = Some(OnceFault::FailEntry),
                Fault::Rot => self.rot(),
                Fault::ClockJump(ms) => {
                    self.counters.clock_jumps += 1;
                    self.clock_jumped = self.clock_jumped.saturating_add(ms);
                }
                Fault::FailRead | Fault::StaleRead => unreachable!("they fit no operation"),
            }
            if !matches!(fault, Fault::Rot | Fault::ClockJump(_)) {
                break;
            }
        }
    }

    /// Runs an operation that changes or syncs something, unless the power has failed or fails at it.
    ///
    /// The last argument of `act` is true if the operation must be torn.
    pub(super) fn run<T>(
        &mut self,
        boot: u64,
        info: OpInfo,
        act: impl FnOnce(&mut Self, &OpInfo, bool) -> io::Result<T>,
    ) -> Result<T> {
        let fail = |info: &OpInfo, e| ShardexError::io(info.op.verb(), path_of(&info.file), e);
        let gone = || io::Error::other("power lost");
        self.look(boot).map_err(|e| fail(&info, e))?;
        if self.stopped {
            self.counters.refused_without_power += 1;
            return Err(fail(&info, gone()));
        }
        self.operations += 1;
        if let Some(trace) = &mut self.trace {
            trace.push(info.clone());
        }
        self.arm(info.op);
        match self.stop_at {
            Some((at, stop)) if at == self.operations => {
                self.stopped = true;
                if stop != Stop::Before {
                    // The machine has stopped, so the caller gets an error in any case.
                    let _ = act(self, &info, stop == Stop::Torn);
                }
                Err(fail(&info, gone()))
            }
            _ => act(self, &info, false).map_err(|e| {
                // Errors of the caller, such as an existing or missing name, are not failures of the disk.
                if !matches!(
                    e.kind(),
                    io::ErrorKind::AlreadyExists | io::ErrorKind::NotFound | io::ErrorKind::UnexpectedEof
                ) {
                    self.note_failure(info.op.verb(), &info.file);
                }
                fail(&info, e)
            }),
        }
    }

    /// Records a read in the list, if one is kept.
    pub(super) fn note_read(&mut self, file: FileId, range: Range<u64>, lent: bool) {
        if let Some(log) = &mut self.read_log {
            log.push((file, range, lent));
        }
    }

    /// Records an operation that failed by a fault or for lack of space.
    pub(super) fn note_failure(&mut self, verb: &'static str, file: &str) {
        self.failures.push((verb, file.to_owned()));
    }

    /// Takes the fault planned for the current sync and counts the sync.
    pub(super) fn take_sync_fault(&mut self, op: Op) -> Option<SyncFault> {
        let fault = self.sync_fault.take();
        self.count_sync(fault, op);
        fault
    }

    /// Takes the fault of the current store or deallocation.
    pub(super) fn take_store_fault(&mut self) -> Option<io::ErrorKind> {
        match self.once.take() {
            Some(OnceFault::FailStore(kind)) => Some(kind),
            _ => self.store_fault,
        }
    }

    /// Counts a sync that has ended, as a success or by its fault.
    pub(super) fn count_sync(&mut self, fault: Option<SyncFault>, op: Op) {
        match fault {
            Some(SyncFault::Fail(_)) => self.counters.failed_syncs += 1,
            Some(SyncFault::Lie) => self.counters.lying_syncs += 1,
            Some(SyncFault::Misdirect) => self.counters.misdirected_syncs += 1,
            None if matches!(op, Op::SyncDir | Op::SyncParent) => self.counters.dir_syncs += 1,
            None => self.counters.file_syncs += 1,
        }
    }

    /// Flips a bit in a random file that is not empty. If bytes are leased, it chooses leased bytes half of the time,
    /// because they are read again. A lease is a copy, so only later leases return the changed byte.
    fn rot(&mut self) {
        let files: Vec<FileId> = self.disk.directory.entries().values().copied().collect();
        let files: Vec<FileId> = files.into_iter().filter(|file| !self.disk.inodes[file].cache().is_empty()).collect();
        if files.is_empty() {
            return;
        }
        let mut rng = self.draws.next();
        let file = files[rng.random_range(0..files.len())];
        let lent: Vec<(FileId, Range<u64>)> = self
            .loans
            .iter()
            .flat_map(|(&file, loans)| loans.values().map(move |lent| (file, lent.clone())))
            .filter(|(_, lent)| !lent.is_empty())
            .collect();
        let (file, range) = if !lent.is_empty() && rng.random() {
            lent[rng.random_range(0..lent.len())].clone()
        } else {
            (file, 0..self.disk.inodes[&file].cache().len() as u64)
        };
        if self.disk.inode(file).rot(range, &mut rng) {
            self.counters.rotten_bits += 1;
        }
    }

    /// Takes the fault planned for a read by copying.
    pub(super) fn take_read_fault(&mut self) -> Option<Fault> {
        let now = self.operations;
        self.plan.take(now, |fault| matches!(fault, Fault::FailRead | Fault::StaleRead))
    }

    /// Panics at a store into a hole or to leased bytes. The first is a fault in a mapping (R9), the second breaks the
    /// contract.
    pub(super) fn assert_may_store(&self, file: FileId, info: &OpInfo) {
        let (from, to) = (info.offset, info.offset + info.len);
        let space = self.disk.inodes[&file].space();
        assert!(space.contains(&(from..to)), "SIGBUS: `{info}` stores into a hole, for there is only {space:?}");
        self.assert_not_lent(file, info);
    }

    /// Panics at a change of leased bytes, which breaks the contract.
    pub(super) fn assert_not_lent(&self, file: FileId, info: &OpInfo) {
        let (from, to) = (info.offset, info.offset + info.len);
        let lent = self.loans.get(&file).into_iter().flat_map(BTreeMap::values);
        if let Some(loan) = lent.into_iter().find(|loan| from < loan.end && loan.start < to) {
            panic!("`{info}` changes bytes {}..{} while they are lent", loan.start, loan.end);
        }
    }

    /// Returns the end of a range. Fails with `UnexpectedEof` if it is past the end of the file.
    pub(super) fn end_of(&self, file: FileId, offset: u64, len: u64) -> io::Result<u64> {
        let file_len = self.disk.inodes[&file].cache().len() as u64;
        offset.checked_add(len).filter(|end| *end <= file_len).ok_or_else(|| {
            let what = format!("{len} bytes at {offset} end past the file's {file_len}");
            io::Error::new(io::ErrorKind::UnexpectedEof, what)
        })
    }
}

/// Path of the simulated directory.
pub(super) const PATH: &str = "/sim/index";

pub(super) fn path_of(name: &str) -> PathBuf {
    if name.is_empty() { PathBuf::from(PATH) } else { PathBuf::from(PATH).join(name) }
}

pub(super) fn locked(machine: &Mutex<Machine>) -> MutexGuard<'_, Machine> {
    // A panic under this lock reports a broken contract before anything has changed, so the state is consistent.
    machine.lock().unwrap_or_else(PoisonError::into_inner)
}
