//! Monitor of the storage protocol: checks each operation as it happens and fails on any that breaks a rule. It fails
//! even if no crash there would lose data.
//!
//! It keeps a shadow of every file and of the directory: the visible bytes, and the bytes that survive every crash. It
//! parses them with [`fsck`](crate::fsck) and relies only on FORMAT.md, not on the engine.
//!
//! # Invariants
//! 1. Rules concern bytes and durability, never the purpose of an operation.
//! 2. An operation is judged by the state before it. The shadow applies it whether it breaks a rule or not.
//! 3. Bytes that a shadow counts as safe survive every crash that the model allows, except for a fault of the medium.
//!
//! [`Event::Contents`] reports a fault of the medium (R13). The monitor can't detect a sync that lies.

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

/// Operation on a storage, or a change of its state.
///
/// An operation that was refused before it had any effect is not reported. A begin event precedes the call, and an end
/// event follows its return. On real threads each is reported under one lock together with the effect of the operation.
#[derive(Clone, Copy, Debug)]
pub enum Event<'a> {
    /// Creates the directory.
    MakeDir,
    /// Begins a sync of the directory's parent.
    SyncParentBegin,
    /// Ends a sync of the directory's parent.
    SyncParentEnd {
        /// Whether the sync returned `Ok`.
        ok: bool,
    },
    /// Creates a file.
    Create {
        /// Name of the file.
        name: &'a str,
    },
    /// Renames a file.
    Rename {
        /// Old name.
        from: &'a str,
        /// New name.
        to: &'a str,
    },
    /// Removes a name.
    Remove {
        /// Name to remove.
        name: &'a str,
    },
    /// Begins a sync of the directory.
    SyncDirBegin,
    /// Ends a sync of the directory.
    SyncDirEnd {
        /// Whether the sync returned `Ok`.
        ok: bool,
    },
    /// Extends a file to at least a length. After a failed allocation, report the length that the file then has.
    Allocate {
        /// Name of the file.
        file: &'a str,
        /// Length in bytes.
        len: u64,
    },
    /// Stores bytes into a file.
    Store {
        /// Name of the file.
        file: &'a str,
        /// Offset in bytes.
        offset: u64,
        /// Bytes that the range holds afterwards. After a failed or torn store, some may be old.
        bytes: &'a [u8],
        /// Whether the store completed. The machine may have stopped before the call returned.
        ok: bool,
    },
    /// Begins a sync of a file.
    SyncBegin {
        /// Name of the file.
        file: &'a str,
        /// Identifies the sync in its end event.
        id: u64,
        /// Offset and length of the range; `None` for the whole file and its length.
        range: Option<(u64, u64)>,
    },
    /// Ends a sync of a file.
    SyncEnd {
        /// Id from the begin event.
        id: u64,
        /// Whether the sync made durable what it covers. The machine may have stopped before the call returned.
        ok: bool,
    },
    /// Starts a lease of bytes.
    Lend {
        /// Name of the file.
        file: &'a str,
        /// Offset in bytes.
        offset: u64,
        /// Length in bytes.
        len: u64,
        /// Identifies the lease when it ends.
        id: u64,
    },
    /// Ends a lease.
    Return {
        /// Id of the lease.
        id: u64,
    },
    /// Reports that a commit or flush returned `Ok`: everything up to this LSN is acknowledged.
    Acknowledge {
        /// Last acknowledged LSN.
        lsn: u64,
    },
    /// Reports a crash of the machine.
    ///
    /// After a power cut, [`Contents`](Self::Contents) follows for each file that survived; all others are lost. After
    /// a crash of the process, it follows for each file whose cached bytes changed.
    Crash {
        /// Whether it is a power cut; otherwise only the process died.
        power: bool,
    },
    /// Reports visible bytes of a file that no store has produced: after a crash, a failed sync or a fault.
    Contents {
        /// Name of the file.
        file: &'a str,
        /// Bytes of the whole file.
        bytes: &'a [u8],
    },
    /// Reports that an open returned `Ok`: writes may be accepted.
    Opened,
}

/// Rule of the storage protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Rule {
    /// M1. When a root is stored, every byte that it reaches and the file lengths that it names must be durable.
    /// Otherwise a power cut may keep the root and lose those bytes, and the index can't be opened.
    RootBeforeItsBytes,
    /// M2. When an LSN is acknowledged, every root that a crash may leave must lead to it: by its checkpoint, or by an
    /// unbroken chain of durable frames and segment headers. Otherwise a power cut or one rotten root loses
    /// acknowledged data.
    AcknowledgedNotDurable,
    /// M2, M10. When an LSN is acknowledged, the directory and its entries `root`, `data` and `wal` must be durable.
    /// Otherwise a power cut removes or exchanges a file and loses all acknowledged data in it.
    AcknowledgedWithoutNames,
    /// M3. No store may overlap a byte that a retained root reaches. A root is retained while a crash may leave it in a
    /// slot. Otherwise that root names foreign bytes.
    StoreIntoRetained,
    /// M3. No store may overlap leased bytes. Otherwise a reader sees them change.
    StoreIntoLent,
    /// M4. A root may be stored only while the root in the other slot is valid and durable. Otherwise a torn store
    /// leaves no root.
    OnlyRootStoredOver,
    /// M5. No store may overlap a WAL sector that an acknowledged LSN needs, from the checkpoint of any retained root
    /// on. Otherwise a torn sector or the new bytes end the chain too early.
    StoreIntoNeededLog,
    /// M6. A file or the directory may have only one sync at a time. Otherwise an error is reported to one of two
    /// syncs, and the other counts the lost bytes as durable.
    SyncsAtOnce,
    /// M7. After a failed sync nothing may be acknowledged before an open. Otherwise the bytes that the sync lost are
    /// acknowledged, because a second sync returns `Ok` and makes nothing durable.
    AcknowledgedAfterFailedSync,
    /// M8. An epoch and LSN must always have the same bytes. Otherwise a power cut may bring back a dropped record.
    FrameChanged,
    /// M9. Before an LSN of an epoch is acknowledged, every root that a crash may leave must have that epoch.
    /// Otherwise, if the newest root rots, the older one silently drops the records of the epoch.
    EpochUnknown,
    /// M10. A file may get the name `root` only when its roots, all that they reach, and the entries `data` and `wal`
    /// are durable. Otherwise a power cut leaves an index without its roots or files.
    NamedTooEarly,
    /// M11. A stored root must lead to each acknowledged LSN, by its checkpoint or its WAL. Otherwise the next open
    /// lacks acknowledged data.
    RootForgets,
    /// M12. The durable LSN in a frame must be true when the frame is stored. Otherwise a power cut makes a torn tail
    /// look like a hole, and open refuses the index.
    FrameClaimsTooMuch,
    /// M13. The names `root`, `data` and `wal` must stay while there is a retained root. Otherwise nothing is left to
    /// open.
    NameRemoved,
    /// M14. A closing mark may be stored only when the newest root is durable. Otherwise the next open, which stores
    /// nothing, builds on a root that is only in the page cache.
    ClosedTooEarly,
}

/// Operation that broke a rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Breach {
    /// Rule that was broken.
    pub rule: Rule,
    /// Description of the operation.
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

/// Monitor of one storage. A clone continues from the same state and shares unchanged parts.
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
    /// Last acknowledged LSN.
    acknowledged: u64,
    /// Last LSN known to survive every crash.
    durable: u64,
    failed: bool,
    /// Whether nothing was stored since the last crash, or since a file got the name `root`.
    quiet: bool,
    mutant: Option<MonitorMutant>,
}

impl Monitor {
    /// Creates a monitor of a storage without a directory, with the given page and sector size.
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

    /// Adds a deliberate mistake to the monitor, which its tests must detect.
    #[must_use]
    pub fn with_mutant(mut self, mutant: MonitorMutant) -> Self {
        self.mutant = Some(mutant);
        self
    }

    fn makes(&self, mutant: MonitorMutant) -> bool {
        self.mutant == Some(mutant)
    }

    /// Applies an event and checks it against the rules.
    ///
    /// # Errors
    /// Returns a [`Breach`] if the event breaks a rule.
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
            // `next` isn't reset, so file ids from before the crash are never reused.
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
