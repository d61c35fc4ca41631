//! A monitor of the storage protocol: it watches operations as they happen and fails on any that breaks a rule, whether or
//! not a crash at that point would have shown it.
//!
//! It owns a shadow of every file and of the directory: what a reader sees, and what survives every crash. It reads the
//! bytes with the parsers of [`fsck`](crate::fsck), and knows of the engine nothing but what FORMAT.md says.
//!
//! # Invariants
//! 1. Rules speak of bytes and durability, never of what an operation was meant for.
//! 2. An operation is judged by what was before it, and done in the shadow whether it breaks a rule or not.
//! 3. What is safe in a shadow survives every crash that the model allows, short of a fault of the medium.
//!
//! A fault of the medium (R13) is told by [`Event::Contents`]; a sync that lies can't be seen.

#[cfg(test)]
mod cases_create;
#[cfg(test)]
mod cases_flush;
#[cfg(test)]
mod cases_log;
#[cfg(test)]
mod cases_places;
mod chain;
mod mutant;
mod names;
mod roots;
#[cfg(test)]
mod scene;
mod shadow;
#[cfg(test)]
mod tests;

use std::{collections::BTreeMap, fmt, sync::Arc};

pub use mutant::MonitorMutant;

use chain::Log;
use names::{FileId, Names};
use roots::Roots;
use shadow::Shadow;

/// What happens to a storage.
///
/// An operation that was refused before it did anything is no event. A begin comes before the operation is asked for, an
/// end after it has answered, and on real threads both under one lock with the operation's own effect.
#[derive(Clone, Copy, Debug)]
pub enum Event<'a> {
    /// The directory is made.
    MakeDir,
    /// A sync of the directory's parent begins.
    SyncParentBegin,
    /// It ends.
    SyncParentEnd {
        /// Whether it returned `Ok`.
        ok: bool,
    },
    /// A file is made.
    Create {
        /// Its name.
        name: &'a str,
    },
    /// A file gets another name.
    Rename {
        /// The old one.
        from: &'a str,
        /// The new one.
        to: &'a str,
    },
    /// A name is removed.
    Remove {
        /// It.
        name: &'a str,
    },
    /// A sync of the directory begins.
    SyncDirBegin,
    /// It ends.
    SyncDirEnd {
        /// Whether it returned `Ok`.
        ok: bool,
    },
    /// A file is at least so long from now on. Of an allocation that failed, tell the length that it has left.
    Allocate {
        /// Its name.
        file: &'a str,
        /// Its length.
        len: u64,
    },
    /// Bytes are stored.
    Store {
        /// Into which file.
        file: &'a str,
        /// Where.
        offset: u64,
        /// What the range holds afterwards: of a store that failed or was torn, this may be old in part.
        bytes: &'a [u8],
        /// Whether it was done whole, though the machine may have stopped before anybody heard.
        ok: bool,
    },
    /// A sync of a file begins.
    SyncBegin {
        /// Its name.
        file: &'a str,
        /// By which the end is told.
        id: u64,
        /// Offset and length; `None` for all, with the length.
        range: Option<(u64, u64)>,
    },
    /// It ends.
    SyncEnd {
        /// As at the begin.
        id: u64,
        /// Whether it made durable what it covers, though the machine may have stopped before anybody heard.
        ok: bool,
    },
    /// Bytes are lent.
    Lend {
        /// Of which file.
        file: &'a str,
        /// Where.
        offset: u64,
        /// How many.
        len: u64,
        /// By which the return is told.
        id: u64,
    },
    /// They are returned.
    Return {
        /// As when they were lent.
        id: u64,
    },
    /// A commit or flush was answered with `Ok`: everything up to this LSN is promised.
    Acknowledge {
        /// It.
        lsn: u64,
    },
    /// The machine has crashed. After a power cut [`Contents`](Self::Contents) follows for each file that survived, and
    /// nothing else did; after a crash of the process for each whose cache is not what it was.
    Crash {
        /// Whether the power was cut; else the process died.
        power: bool,
    },
    /// A reader of the file sees these bytes now, and no store has made it so: a crash, a failed sync, a fault.
    Contents {
        /// Its name.
        file: &'a str,
        /// All of it.
        bytes: &'a [u8],
    },
    /// An open returned `Ok`: writes may be accepted.
    Opened,
}

/// A rule of the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Rule {
    /// M1. When a root is stored, every byte that it reaches is durable, and so are the lengths that it names. Else a power
    /// cut may keep the root and lose what it names: an index that can't be opened.
    RootBeforeItsBytes,
    /// M2. When an LSN is acknowledged, each root that a crash may leave reaches it: by its checkpoint, or by a whole chain
    /// of durable frames and segment headers. Else a power cut, or the rot of one root, loses what was promised.
    AcknowledgedNotDurable,
    /// M2, M10. When an LSN is acknowledged, the directory and its entries of `root`, `data` and `wal` are durable. Else a
    /// power cut takes or exchanges the file, and all that was acknowledged with it.
    AcknowledgedWithoutNames,
    /// M3. No store meets a byte that a retained root reaches: one that a crash may leave in a slot. Else that root names
    /// bytes that are not its own.
    StoreIntoRetained,
    /// M3. No store meets a byte that is lent. Else a reader sees it change.
    StoreIntoLent,
    /// M4. A root is stored only while the other slot's is valid and durable. Else a torn store leaves no root.
    OnlyRootStoredOver,
    /// M5. No store meets a sector of the log that an acknowledged LSN needs, from the checkpoint of any retained root on.
    /// Else a torn sector, or the new bytes, end the chain before what was promised.
    StoreIntoNeededLog,
    /// M6. One sync of a file, or of the directory, at a time. Else an error is reported to one of the two, and the other
    /// takes what is lost for durable.
    SyncsAtOnce,
    /// M7. After a failed sync nothing is acknowledged before an open. Else what the sync lost is promised: a second one
    /// returns `Ok` and makes nothing durable.
    AcknowledgedAfterFailedSync,
    /// M8. An epoch and LSN never get other bytes. Else a power cut may bring back the record that was dropped.
    FrameChanged,
    /// M9. Before an LSN of an epoch is acknowledged, each root that a crash may leave knows the epoch. Else, when the
    /// newest rots, the older one drops the epoch's records without a word.
    EpochUnknown,
    /// M10. A file gets the name `root` only when its roots, all that they reach and the entries of `data` and `wal` are
    /// durable. Else a power cut leaves an index whose root or files are not there.
    NamedTooEarly,
    /// M11. No root is stored that does not lead to each acknowledged LSN, by its checkpoint or its log. Else the open after
    /// it lacks what was promised.
    RootForgets,
    /// M12. What a frame says of durability is true when it is stored. Else a power cut makes a torn end look like a hole,
    /// and open refuses.
    FrameClaimsTooMuch,
    /// M13. No name is taken from `root`, `data` or `wal` while a retained root is there. Else nothing is left to open.
    NameRemoved,
    /// M14. A closing mark is stored only when the newest root is durable. Else the open after it, which stores nothing, goes on
    /// from a root that is in the cache alone.
    ClosedTooEarly,
}

/// An operation that breaks a rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Breach {
    /// The rule.
    pub rule: Rule,
    /// What was done.
    pub what: String,
}

impl fmt::Display for Breach {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {}", self.rule, self.what)
    }
}

impl std::error::Error for Breach {}

fn breach<T>(rule: Rule, what: impl Into<String>) -> Result<T, Breach> {
    Err(Breach { rule, what: what.into() })
}

/// Watches one storage. A clone goes on from the same state, and shares what neither changes.
#[derive(Clone, Debug)]
pub struct Monitor {
    page: u64,
    sector: u64,
    files: BTreeMap<FileId, Arc<Shadow>>,
    next: FileId,
    names: Names,
    roots: Roots,
    log: Log,
    loans: BTreeMap<u64, (FileId, u64, u64)>,
    syncs: BTreeMap<u64, FileId>,
    /// The last LSN that was acknowledged.
    acknowledged: u64,
    /// The last LSN that is known to survive every crash.
    durable: u64,
    failed: bool,
    /// Nothing was stored since the last crash, or since a file got the name `root`.
    quiet: bool,
    mutant: Option<MonitorMutant>,
}

impl Monitor {
    /// A storage without a directory, of this page and sector size.
    #[must_use]
    pub fn new(page: usize, sector: usize) -> Self {
        Self {
            page: page as u64,
            sector: sector as u64,
            files: BTreeMap::new(),
            next: 0,
            names: Names::default(),
            roots: Roots::default(),
            log: Log::default(),
            loans: BTreeMap::new(),
            syncs: BTreeMap::new(),
            acknowledged: 0,
            durable: 0,
            failed: false,
            quiet: false,
            mutant: None,
        }
    }

    /// The same with a mistake, which the tests of the monitor must find.
    #[must_use]
    pub fn with_mutant(mut self, mutant: MonitorMutant) -> Self {
        self.mutant = Some(mutant);
        self
    }

    fn makes(&self, mutant: MonitorMutant) -> bool {
        self.mutant == Some(mutant)
    }

    /// Takes an operation into account.
    ///
    /// # Errors
    /// If it breaks a rule.
    pub fn see(&mut self, event: &Event<'_>) -> Result<(), Breach> {
        match *event {
            Event::MakeDir => self.names.make_dir(),
            Event::SyncParentBegin => self.names.begin_parent(),
            Event::SyncParentEnd { ok } => {
                self.names.end_parent(ok);
                self.synced(ok);
            }
            Event::Create { name } => self.create(name),
            Event::Rename { from, to } => return self.rename(from, to),
            Event::Remove { name } => return self.remove(name),
            Event::SyncDirBegin => {
                let twice = self.names.syncing();
                self.names.begin();
                if twice {
                    return breach(Rule::SyncsAtOnce, "a sync of the directory begins while one runs");
                }
            }
            Event::SyncDirEnd { ok } => {
                self.names.end(ok);
                self.synced(ok);
                self.forget_roots();
            }
            Event::Allocate { file, len } => {
                if let Some(shadow) = self.shadow(file) {
                    shadow.allocate(len);
                }
            }
            Event::Store { file, offset, bytes, ok } => return self.store(file, offset, bytes, ok),
            Event::SyncBegin { file, id, range } => return self.sync_begin(file, id, range),
            Event::SyncEnd { id, ok } => self.sync_end(id, ok),
            Event::Lend { file, offset, len, id } => {
                if let Some(file) = self.names.find(file).filter(|_| len > 0) {
                    self.loans.insert(id, (file, offset, offset.saturating_add(len)));
                }
            }
            Event::Return { id } => {
                self.loans.remove(&id);
            }
            Event::Acknowledge { lsn } => return self.acknowledge(lsn),
            Event::Crash { power } => self.crash(power),
            Event::Contents { file, bytes } => self.contents(file, bytes),
            Event::Opened => self.failed = false,
        }
        Ok(())
    }

    fn create(&mut self, name: &str) {
        let file = self.next;
        self.next += 1;
        self.files.insert(file, Arc::default());
        self.names.set(name, file);
    }

    fn shadow(&mut self, name: &str) -> Option<&mut Shadow> {
        let file = self.names.find(name)?;
        self.files.get_mut(&file).map(Arc::make_mut)
    }

    fn synced(&mut self, ok: bool) {
        if !ok {
            self.failed = true;
        } else if self.makes(MonitorMutant::GoodSyncForgives) {
            self.failed = false;
        }
    }

    fn remove(&mut self, name: &str) -> Result<(), Breach> {
        let needed = ["root", "data", "wal"].contains(&name) && self.retained().next().is_some();
        self.names.remove(name);
        if needed {
            return breach(Rule::NameRemoved, format!("{name} is removed, and a root needs it"));
        }
        Ok(())
    }

    fn sync_begin(&mut self, file: &str, id: u64, range: Option<(u64, u64)>) -> Result<(), Breach> {
        self.read_roots();
        let page = self.page;
        let Some(file_id) = self.names.find(file) else { return Ok(()) };
        let Some(shadow) = self.files.get_mut(&file_id).map(Arc::make_mut) else { return Ok(()) };
        let twice = shadow.syncing();
        shadow.begin(range, page);
        self.syncs.insert(id, file_id);
        if twice {
            return breach(Rule::SyncsAtOnce, format!("a sync of {file} begins while one runs"));
        }
        Ok(())
    }

    fn sync_end(&mut self, id: u64, ok: bool) {
        let mutant = self.mutant;
        if let Some(file) = self.syncs.remove(&id)
            && let Some(shadow) = self.files.get_mut(&file).map(Arc::make_mut)
        {
            shadow.end(ok, mutant);
            self.roots.resolve(file, shadow, self.page, mutant);
            self.forget_roots();
        }
        self.synced(ok);
    }

    fn crash(&mut self, power: bool) {
        self.quiet = true;
        self.loans.clear();
        self.syncs.clear();
        if power {
            // Ids go on, so that no file of before is taken for one of after.
            self.log.forget_bytes();
            self.files.clear();
            self.names = Names::default();
            self.roots = Roots::default();
            self.roots.unread();
            return;
        }
        self.names.process_crash();
        for shadow in self.files.values_mut().map(Arc::make_mut) {
            shadow.process_crash(self.mutant);
        }
    }

    fn contents(&mut self, name: &str, bytes: &[u8]) {
        match self.names.find(name).and_then(|file| self.files.get_mut(&file)) {
            Some(shadow) if shadow.bytes() == bytes => return,
            Some(shadow) => Arc::make_mut(shadow).show(bytes),
            None => {
                self.files.insert(self.next, Arc::new(Shadow::durable(bytes)));
                self.names.survived(name, self.next);
                self.next += 1;
            }
        }
        self.log.forget_bytes();
        self.roots.unread();
    }
}
