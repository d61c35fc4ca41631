//! The directory's entries as the running system has them and as the device has them (R7).
//!
//! # Invariants
//! 1. Without pending changes both are equal, unless a sync of the directory failed or lied.
//! 2. A file has at most one entry in what the running system sees.
//! 3. A directory that does not exist has no entries and nothing pending.

use std::collections::{BTreeMap, BTreeSet};

use rand::{RngExt, rngs::ChaCha8Rng};

use super::mutant::{SimMutant, wrong};

/// A file, whatever its name.
pub(super) type FileId = u64;

/// A change of entries. It names the file, so that any subset of changes can be applied.
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
                // Atomic: both names change, or neither. The old one may be another file's by now, or was never durable.
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

    /// What it does, for people.
    pub(super) fn describe(&self) -> String {
        match self {
            Self::Create { name, .. } => format!("create {name}"),
            Self::Rename { from, to, .. } => format!("rename {from} -> {to}"),
            Self::Remove { name } => format!("remove {name}"),
        }
    }
}

/// What the parent's device knows of the directory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
enum InParent {
    /// A power cut decides.
    #[default]
    Pending,
    Durable,
    /// A sync failed or lied, so that later ones do nothing.
    Lost,
}

#[derive(Clone, Debug, Default, Hash)]
pub(super) struct Directory {
    exists: bool,
    in_parent: InParent,
    entries: BTreeMap<String, FileId>,
    durable: BTreeMap<String, FileId>,
    /// In the order in which they were made.
    pending: Vec<Change>,
    /// Whether a sync failed or lied, so that changes may be neither durable nor pending.
    forgot: bool,
}

impl Directory {
    pub(super) fn exists(&self) -> bool {
        self.exists
    }

    /// Whether a power cut decides if the directory survives.
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

    /// R8 for the parent: the directory is durable now, or no later sync makes it so.
    pub(super) fn fail_sync_parent(&mut self, rng: &mut ChaCha8Rng) {
        if self.is_at_risk() {
            self.in_parent = if rng.random() { InParent::Durable } else { InParent::Lost };
        }
    }

    /// R13.
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

    /// R8: any subset has reached the device; of the rest, no later sync knows.
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

    /// R13: nothing has reached the device, and no later sync mends that.
    pub(super) fn lie_about_sync(&mut self) {
        self.pending.clear();
        self.forgot = true;
    }

    /// The process died (R10). What a failed sync forgot is pending again: entries cannot be stored anew as bytes can,
    /// so a recovery that syncs the directory before it relies on it shall be safe.
    pub(super) fn process_crash(&mut self) {
        if self.in_parent == InParent::Lost {
            self.in_parent = InParent::Pending;
        }
        if std::mem::take(&mut self.forgot) {
            self.pending = difference(&self.durable, &self.entries);
        }
    }

    /// A power cut: the directory survives, or it does not, and of the pending changes those that `survives` says, in
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

    /// All files that may have a name after a power cut.
    pub(super) fn reachable(&self) -> BTreeSet<FileId> {
        let changed = self.pending.iter().filter_map(|change| match change {
            Change::Create { file, .. } | Change::Rename { file, .. } => Some(*file),
            Change::Remove { .. } => None,
        });
        self.durable.values().chain(self.entries.values()).copied().chain(changed).collect()
    }
}

/// The changes that lead from one set of entries to another; a rename stays one change, for it is atomic.
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
