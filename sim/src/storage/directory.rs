//! Directory entries, in the running system and on the device (R7).
//!
//! # Invariants
//! 1. Without pending changes both are equal, unless a sync of the directory failed or lied.
//! 2. A file has at most one entry in the running system.
//! 3. A directory that does not exist has no entries and no pending changes.

use std::collections::{BTreeMap, BTreeSet};

use rand::{RngExt, rngs::ChaCha8Rng};

use super::mutant::{SimMutant, wrong};

/// Number of a file, independent of its name.
pub(super) type FileId = u64;

/// Change of directory entries. It contains the file number, so any subset of changes can be applied.
#[derive(Clone, Debug, Hash)]
pub(super) enum Change {
    Create { name: String, file: FileId },
    Rename { from: String, to: String, file: FileId },
    Remove { name: String },
}

impl Change {
    fn apply(&self, entries: &mut BTreeMap<String, FileId>) {
        match self {
            Self::Create { name, file } => {
                entries.insert(name.clone(), *file);
            }
            Self::Rename { from, to, file } => {
                // Atomic: both names change, or neither. The old name may belong to another file by now, or may never
                // have become durable.
                if entries.get(from) == Some(file) {
                    entries.remove(from);
                }
                entries.insert(to.clone(), *file);
            }
            Self::Remove { name } => {
                entries.remove(name);
            }
        }
    }

    /// Returns a readable description of the change.
    pub(super) fn describe(&self) -> String {
        match self {
            Self::Create { name, .. } => format!("create {name}"),
            Self::Rename { from, to, .. } => format!("rename {from} -> {to}"),
            Self::Remove { name } => format!("remove {name}"),
        }
    }
}

/// Durability of the directory itself, on the device of its parent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
enum InParent {
    /// A power cut decides whether the directory survives.
    #[default]
    Pending,
    Durable,
    /// A sync of the parent failed or lied, so later syncs have no effect.
    Lost,
}

#[derive(Clone, Debug, Default, Hash)]
pub(super) struct Directory {
    exists: bool,
    in_parent: InParent,
    entries: BTreeMap<String, FileId>,
    durable: BTreeMap<String, FileId>,
    /// Pending changes, in the order in which they were made.
    pending: Vec<Change>,
    /// Whether a sync failed or lied, so that changes may be neither durable nor pending.
    forgot: bool,
}

impl Directory {
    pub(super) fn exists(&self) -> bool {
        self.exists
    }

    /// Reports whether a power cut decides if the directory survives.
    pub(super) fn is_at_risk(&self) -> bool {
        self.exists && self.in_parent == InParent::Pending
    }

    pub(super) fn make(&mut self) {
        self.exists = true;
        if wrong(SimMutant::ParentNotNeeded) {
            self.in_parent = InParent::Durable;
        }
    }

    pub(super) fn entries(&self) -> &BTreeMap<String, FileId> {
        &self.entries
    }

    pub(super) fn pending(&self) -> &[Change] {
        &self.pending
    }

    pub(super) fn change(&mut self, change: Change) {
        change.apply(&mut self.entries);
        self.pending.push(change);
        if wrong(SimMutant::EntriesDurable) {
            self.sync();
        }
    }

    pub(super) fn sync_parent(&mut self) {
        if self.is_at_risk() {
            self.in_parent = InParent::Durable;
        }
    }

    /// Fails a sync of the parent (R8): the directory is durable at once, or later syncs can't make it durable.
    pub(super) fn fail_sync_parent(&mut self, rng: &mut ChaCha8Rng) {
        if self.is_at_risk() {
            self.in_parent = if rng.random() { InParent::Durable } else { InParent::Lost };
        }
    }

    /// Lies about a sync of the parent (R13): later syncs can't make the directory durable.
    pub(super) fn lie_about_sync_parent(&mut self) {
        if self.is_at_risk() {
            self.in_parent = InParent::Lost;
        }
    }

    pub(super) fn sync(&mut self) {
        for change in self.pending.drain(..) {
            change.apply(&mut self.durable);
        }
    }

    /// Fails a sync of the directory (R8): a random subset of the changes reaches the device. Later syncs do not store
    /// the rest.
    pub(super) fn fail_sync(&mut self, rng: &mut ChaCha8Rng) {
        if wrong(SimMutant::FailedDirSyncKeepsPending) {
            return;
        }
        for change in self.pending.drain(..) {
            if rng.random() {
                change.apply(&mut self.durable);
            }
        }
        self.forgot = true;
    }

    /// Lies about a sync of the directory (R13): nothing reaches the device, and later syncs do not store the changes.
    pub(super) fn lie_about_sync(&mut self) {
        self.pending.clear();
        self.forgot = true;
    }

    /// Applies a process crash (R10). Changes that a failed sync has lost become pending again. Entries can't be stored
    /// again like bytes, so this makes a recovery safe that syncs the directory before it relies on it.
    pub(super) fn process_crash(&mut self) {
        if self.in_parent == InParent::Lost {
            self.in_parent = InParent::Pending;
        }
        if std::mem::take(&mut self.forgot) {
            self.pending = difference(&self.durable, &self.entries);
        }
    }

    /// Applies a power cut: the directory survives or not, and the pending changes chosen by `survives` are applied in
    /// their order.
    pub(super) fn power_cut(&mut self, dir_survives: bool, mut survives: impl FnMut(usize) -> bool) {
        let mut first = None;
        for (index, change) in std::mem::take(&mut self.pending).into_iter().enumerate() {
            let mut picked = survives(index);
            if wrong(SimMutant::EntriesTogether) {
                picked = *first.get_or_insert(picked);
            }
            match &change {
                Change::Rename { to, file, .. } if wrong(SimMutant::RenameHalves) && picked => {
                    self.durable.insert(to.clone(), *file);
                }
                _ if picked => change.apply(&mut self.durable),
                _ => {}
            }
        }
        if !self.exists || self.in_parent == InParent::Lost || !dir_survives {
            *self = Self::default();
            return;
        }
        self.in_parent = InParent::Durable;
        self.forgot = false;
        self.entries.clone_from(&self.durable);
    }

    /// Returns all files that may have a name after a power cut.
    pub(super) fn reachable(&self) -> BTreeSet<FileId> {
        let changed = self.pending.iter().filter_map(|change| match change {
            Change::Create { file, .. } | Change::Rename { file, .. } => Some(*file),
            Change::Remove { .. } => None,
        });
        self.durable.values().chain(self.entries.values()).copied().chain(changed).collect()
    }
}

/// Returns the changes that lead from one set of entries to another. A rename stays one change, because it is atomic.
fn difference(from: &BTreeMap<String, FileId>, to: &BTreeMap<String, FileId>) -> Vec<Change> {
    let old_name = |file: &FileId| from.iter().find(|(name, id)| *id == file && to.get(*name) != Some(file));
    let mut changes = Vec::new();
    let mut moved = BTreeSet::new();
    for (name, file) in to.iter().filter(|(name, file)| from.get(*name) != Some(file)) {
        let (name, file) = (name.clone(), *file);
        changes.push(match old_name(&file) {
            Some((old, _)) => {
                moved.insert(old.clone());
                Change::Rename { from: old.clone(), to: name, file }
            }
            None => Change::Create { name, file },
        });
    }
    let gone = from.keys().filter(|name| !to.contains_key(*name) && !moved.contains(*name));
    changes.extend(gone.map(|name| Change::Remove { name: name.clone() }));
    changes
}
