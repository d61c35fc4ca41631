//! The machine that a simulated disk is in: what runs on it, what is planned to go wrong, and what was seen.
//!
//! # Invariants
//! 1. Only handles of the running boot do anything; a crash starts the next one.
//! 2. Once the machine has stopped, nothing changes until it crashes.
//! 3. No store touches bytes that are lent (the engine's duty; a breach panics).

use std::{collections::BTreeMap, io, ops::Range};

use rand::{RngExt as _, SeedableRng, rngs::ChaCha8Rng};
use shardex::error::{LockHolder, Result, ShardexError};

use super::{
    directory::FileId,
    disk::Disk,
    fault::{Fault, Plan, error_kind},
    inode::Captured,
    trace::{Counters, Op, OpInfo},
};

/// How the operation ends at which [`crash_after`](super::SimStorage::crash_after) stops the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Stop {
    /// Nothing of it is done.
    Before,
    /// Of a store, its first sectors, any number of them, are done; anything else as [`After`](Self::After).
    Torn,
    /// It is done, but nobody hears of it.
    After,
}

/// What a sync does instead of syncing, once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SyncFault {
    /// R8.
    Fail(io::ErrorKind),
    /// R13.
    Lie,
    /// R13: a sector goes elsewhere.
    Misdirect,
}

/// A sync that has begun and not ended.
#[derive(Clone, Debug)]
pub(super) struct Flight {
    pub(super) file: FileId,
    pub(super) captured: Captured,
    /// What it does instead, at its end.
    pub(super) fault: Option<SyncFault>,
}

/// What a store or an allocation does instead, once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum OnceFault {
    /// R9.
    FailStore(io::ErrorKind),
    /// R9.
    NoSpace,
    /// A change of entries fails.
    FailEntry,
}

/// What decides where chance does: a generator for each question, so that an image can be asked the same ones.
#[derive(Clone, Debug)]
pub(super) struct Chance {
    seed: u64,
    asked: u64,
}

impl Chance {
    pub(super) fn new(seed: u64) -> Self {
        Self { seed, asked: 0 }
    }

    pub(super) fn next(&mut self) -> ChaCha8Rng {
        self.asked += 1;
        // An odd factor, so that neighbouring seeds do not ask for each other's generators.
        ChaCha8Rng::seed_from_u64(self.seed.wrapping_add(self.asked.wrapping_mul(0x9E37_79B9_7F4A_7C15)))
    }
}

#[derive(Debug)]
pub(super) struct Machine {
    pub(super) disk: Disk,
    pub(super) chance: Chance,
    pub(super) boot: u64,
    /// The files that are locked: the token of each lock, and who holds it.
    pub(super) locks: BTreeMap<FileId, (u64, LockHolder)>,
    /// Lent ranges by file.
    pub(super) loans: BTreeMap<FileId, BTreeMap<u64, Range<u64>>>,
    /// The last number given to a lock or a loan.
    pub(super) last_token: u64,
    /// Bytes that files may take in all.
    pub(super) capacity: Option<u64>,
    pub(super) sync_fault: Option<SyncFault>,
    /// Syncs that have begun.
    pub(super) flights: BTreeMap<u64, Flight>,
    pub(super) store_fault: Option<io::ErrorKind>,
    /// For the operation that is being done.
    pub(super) once: Option<OnceFault>,
    /// What goes wrong later.
    pub(super) plan: Plan,
    /// Milliseconds by which the clock has jumped.
    pub(super) clock_jumped: i64,
    /// Reads of these ranges of these files fail.
    pub(super) unreadable: BTreeMap<FileId, Vec<Range<u64>>>,
    pub(super) garbage: bool,
    pub(super) trace: Option<Vec<OpInfo>>,
    /// What was read, while somebody wants to know.
    pub(super) read_log: Option<Vec<(FileId, Range<u64>, bool)>>,
    /// Operations, as errors name them, and the files, that failed since somebody asked.
    pub(super) failures: Vec<(&'static str, String)>,
    pub(super) counters: Counters,
    /// Operations begun that change or sync something.
    pub(super) operations: u64,
    /// The operation, counted as above, at which the machine stops, and how.
    pub(super) stop_at: Option<(u64, Stop)>,
    pub(super) stopped: bool,
}

impl Machine {
    pub(super) fn new(disk: Disk, chance: Chance) -> Self {
        Self {
            disk,
            chance,
            boot: 0,
            locks: BTreeMap::new(),
            loans: BTreeMap::new(),
            last_token: 0,
            capacity: None,
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

    /// Whether a handle of `boot` may look at the disk.
    pub(super) fn look(&self, boot: u64) -> io::Result<()> {
        if boot == self.boot { Ok(()) } else { Err(io::Error::other("power lost: this handle is of before the crash")) }
    }

    /// The same for an operation in the directory, which must exist.
    pub(super) fn enter(&self, boot: u64) -> io::Result<()> {
        self.look(boot)?;
        if self.disk.directory.exists() { Ok(()) } else { Err(io::ErrorKind::NotFound.into()) }
    }

    pub(super) fn find(&self, name: &str) -> io::Result<FileId> {
        self.disk.directory.entries().get(name).copied().ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    /// Does an operation that changes or syncs something, unless the power is gone or goes at it.
    ///
    /// `act` is told whether it is to be torn.
    pub(super) fn run<T>(
        &mut self,
        boot: u64,
        info: OpInfo,
        act: impl FnOnce(&mut Self, &OpInfo, bool) -> io::Result<T>,
    ) -> Result<T> {
        let fail = |info: &OpInfo, e| ShardexError::io(info.op.verb(), super::path_of(&info.file), e);
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
        let now = self.operations;
        // Two faults may meet at one operation: a jump of the clock, and what the disk does.
        while let Some(fault) = self.plan.take(now, |fault| fault.fits(info.op)) {
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
        match self.stop_at {
            Some((at, stop)) if at == self.operations => {
                self.stopped = true;
                if stop != Stop::Before {
                    // Nobody hears whether it succeeded.
                    let _ = act(self, &info, stop == Stop::Torn);
                }
                Err(fail(&info, gone()))
            }
            _ => act(self, &info, false).map_err(|e| {
                // A name that is there, or is not, is nothing that goes wrong.
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

    /// Notes what is read.
    pub(super) fn note_read(&mut self, file: FileId, range: Range<u64>, lent: bool) {
        if let Some(log) = &mut self.read_log {
            log.push((file, range, lent));
        }
    }

    /// Notes an operation that failed by order or for want of space.
    pub(super) fn note_failure(&mut self, verb: &'static str, file: &str) {
        self.failures.push((verb, file.to_owned()));
    }

    /// The fault planned for the sync that is being done, counted as fired.
    pub(super) fn take_sync_fault(&mut self, op: Op) -> Option<SyncFault> {
        let fault = self.sync_fault.take();
        self.count_sync(fault, op);
        fault
    }

    /// Counts a sync that has ended, one way or another.
    pub(super) fn count_sync(&mut self, fault: Option<SyncFault>, op: Op) {
        match fault {
            Some(SyncFault::Fail(_)) => self.counters.failed_syncs += 1,
            Some(SyncFault::Lie) => self.counters.lying_syncs += 1,
            Some(SyncFault::Misdirect) => self.counters.misdirected_syncs += 1,
            None if matches!(op, Op::SyncDir | Op::SyncParent) => self.counters.dir_syncs += 1,
            None => self.counters.file_syncs += 1,
        }
    }

    /// A bit flips in some file that has bytes: half of the time in bytes that are lent, which will be read again. They are
    /// seen changed as soon as they are lent anew.
    fn rot(&mut self) {
        let files: Vec<FileId> = self.disk.directory.entries().values().copied().collect();
        let files: Vec<FileId> = files.into_iter().filter(|file| !self.disk.inodes[file].cache().is_empty()).collect();
        if files.is_empty() {
            return;
        }
        let mut rng = self.chance.next();
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

    /// What is planned for a read by copying.
    pub(super) fn take_read_fault(&mut self) -> Option<Fault> {
        let now = self.operations;
        self.plan.take(now, |fault| matches!(fault, Fault::FailRead | Fault::StaleRead))
    }

    /// R9: a store into space that is not there is a fault in a mapping; one into lent bytes breaks the contract.
    pub(super) fn assert_may_store(&self, file: FileId, info: &OpInfo) {
        let (from, to) = (info.offset, info.offset + info.len);
        let allocated = self.disk.inodes[&file].allocated();
        assert!(from == to || to <= allocated, "SIGBUS: `{info}` stores into a hole, for space ends at {allocated}");
        let lent = self.loans.get(&file).into_iter().flat_map(BTreeMap::values);
        if let Some(loan) = lent.into_iter().find(|loan| from < loan.end && loan.start < to) {
            panic!("`{info}` stores to bytes {}..{} while they are lent", loan.start, loan.end);
        }
    }

    /// The end of a range within a file.
    pub(super) fn end_of(&self, file: FileId, offset: u64, len: u64) -> io::Result<u64> {
        let file_len = self.disk.inodes[&file].cache().len() as u64;
        offset.checked_add(len).filter(|end| *end <= file_len).ok_or_else(|| {
            let what = format!("{len} bytes at {offset} end past the file's {file_len}");
            io::Error::new(io::ErrorKind::UnexpectedEof, what)
        })
    }
}
