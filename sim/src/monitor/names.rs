//! Directory entries: the file that each name refers to, and whether the entry survives every crash.

use std::collections::{BTreeMap, BTreeSet};

use super::mutant::MonitorMutant;

/// Identifies a file independently of its name.
pub(super) type FileId = u64;

/// State of the last change of a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Change {
    Pending,
    /// Covered by the sync in progress.
    Captured,
    /// A sync failed. No later sync makes the change durable until the process dies (R8, R10).
    Lost,
}

/// Entries of the directory in the cache and on the device.
///
/// # Invariants
/// 1. A name without a change refers to the same file on the device and in the cache.
#[derive(Clone, Debug, Default)]
pub(super) struct Names {
    current: BTreeMap<String, FileId>,
    durable: BTreeMap<String, FileId>,
    changes: BTreeMap<String, Change>,
    captured: Option<BTreeMap<String, FileId>>,
    /// Files that the name `root` may refer to since the entry was last certain.
    roots: BTreeSet<FileId>,
    /// Names under which an open handle may still refer to its file.
    handles: BTreeMap<String, FileId>,
    /// Pending change of the directory's own entry in its parent.
    parent: Option<Change>,
}

impl Names {
    pub(super) fn find(&self, name: &str) -> Option<FileId> {
        self.current.get(name).or_else(|| self.handles.get(name)).copied()
    }

    /// Reports whether the name refers to the same file after any crash that leaves the directory.
    pub(super) fn is_certain(&self, name: &str) -> bool {
        self.current.contains_key(name) && !self.changes.contains_key(name)
    }

    /// Reports whether the name survives every crash, regardless of the file.
    pub(super) fn is_durable(&self, name: &str) -> bool {
        self.durable.contains_key(name) && self.current.contains_key(name)
    }

    /// Reports whether the directory survives every crash.
    pub(super) fn is_directory_certain(&self) -> bool {
        self.parent.is_none()
    }

    pub(super) fn syncing(&self) -> bool {
        self.captured.is_some()
    }

    /// Returns every file that `root` may refer to after a crash.
    pub(super) fn roots(&self) -> impl Iterator<Item = FileId> + '_ {
        let named = self.durable.get("root").into_iter().chain(self.current.get("root"));
        named.copied().chain(self.roots.iter().copied()).collect::<BTreeSet<_>>().into_iter()
    }

    pub(super) fn set(&mut self, name: &str, file: FileId) {
        self.current.insert(name.to_owned(), file);
        self.handles.insert(name.to_owned(), file);
        self.changes.insert(name.to_owned(), Change::Pending);
        if name == "root" {
            self.roots.insert(file);
        }
    }

    pub(super) fn remove(&mut self, name: &str) {
        if self.current.remove(name).is_some() {
            self.changes.insert(name.to_owned(), Change::Pending);
        }
    }

    pub(super) fn rename(&mut self, from: &str, to: &str, mutant: Option<MonitorMutant>) {
        if let Some(file) = self.find(from) {
            self.remove(from);
            self.set(to, file);
            if mutant == Some(MonitorMutant::RenameIsDurable) {
                self.begin();
                self.end(true);
            }
        }
    }

    pub(super) fn make_dir(&mut self) {
        self.parent = Some(Change::Pending);
    }

    pub(super) fn begin_parent(&mut self) {
        if self.parent == Some(Change::Pending) {
            self.parent = Some(Change::Captured);
        }
    }

    pub(super) fn end_parent(&mut self, ok: bool) {
        if self.parent == Some(Change::Captured) {
            self.parent = (!ok).then_some(Change::Lost);
        }
    }

    pub(super) fn begin(&mut self) {
        self.turn(Change::Pending, Change::Captured);
        self.captured = Some(self.current.clone());
    }

    pub(super) fn end(&mut self, ok: bool) {
        let Some(captured) = self.captured.take() else { return };
        if !ok {
            return self.turn(Change::Captured, Change::Lost);
        }
        // Changes made after the sync began stay pending.
        self.changes.retain(|name, change| {
            let done = *change == Change::Captured;
            if done {
                match captured.get(name) {
                    Some(file) => self.durable.insert(name.clone(), *file),
                    None => self.durable.remove(name),
                };
            }
            !done
        });
        if self.is_certain("root") {
            let named = self.current.get("root").copied();
            self.roots.retain(|file| Some(*file) == named);
        }
    }

    fn turn(&mut self, from: Change, to: Change) {
        self.changes.values_mut().filter(|change| **change == from).for_each(|change| *change = to);
    }

    /// Applies a crash of the process. Changes lost by a failed sync become pending again, because an entry can't be
    /// stored a second time.
    pub(super) fn process_crash(&mut self) {
        self.captured = None;
        self.turn(Change::Lost, Change::Pending);
        self.turn(Change::Captured, Change::Pending);
        if self.parent.is_some() {
            self.parent = Some(Change::Pending);
        }
        self.handles.clear();
    }

    /// Adds a file that survived a power cut.
    pub(super) fn survived(&mut self, name: &str, file: FileId) {
        self.current.insert(name.to_owned(), file);
        self.durable.insert(name.to_owned(), file);
    }
}
