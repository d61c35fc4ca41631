//! Simulated disk: page cache, device, and the effect of crashes on them.
//!
//! # Invariants
//! 1. [`Disk::choices`] and [`Disk::crash`] visit the same places in the same order, so a list of picks determines
//!    exactly one outcome.
//! 2. Every directory entry, including pending ones, refers to an existing inode.

use std::collections::BTreeMap;

use rand::rngs::ChaCha8Rng;

use super::{
    directory::{Change, Directory, FileId},
    inode::{Inode, PageSizes},
    mutant::{SimMutant, wrong},
};

/// Kind of a crash.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CrashKind {
    /// The process dies. The page cache survives with its dirty pages (R10).
    Process,
    /// The power fails. State that was not synced survives or not, piece by piece (R3, R6, R7).
    Power,
}

/// Subject of one decision of a crash.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum ChoiceLocation {
    /// Whether the directory itself survives (R7).
    Directory,
    /// Whether a change of directory entries survives (R7).
    Entry(String),
    /// Length and allocation of a file (R6).
    Extent(String),
    /// Version of a sector of a file (R3).
    Sector(String, u64),
    /// Whether the cache keeps a sector that a failed or lying sync left only there (R8, R10).
    Cached(String, u64),
}

/// Independent decision of a crash.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Choice {
    /// Subject of the decision.
    pub location: ChoiceLocation,
    /// Number of outcomes. Outcome 0 is the state that was durable before.
    pub options: usize,
    /// Outcome in which the latest change survived completely.
    pub newest: usize,
}

impl Choice {
    fn new(location: ChoiceLocation, options: usize) -> Self {
        Self { location, options, newest: options - 1 }
    }
}

#[derive(Clone, Debug, Hash)]
pub(super) struct Disk {
    pub(super) geometry: PageSizes,
    pub(super) directory: Directory,
    pub(super) inodes: BTreeMap<FileId, Inode>,
    next_file: FileId,
    /// Whether files keep the bytes that sectors held before their last change.
    history: bool,
}

impl Disk {
    pub(super) fn new(geometry: PageSizes) -> Self {
        Self { geometry, directory: Directory::default(), inodes: BTreeMap::new(), next_file: 0, history: false }
    }

    pub(super) fn create(&mut self, name: &str) -> FileId {
        self.add(name, Inode::new(self.geometry))
    }

    /// Adds a file with its content.
    pub(super) fn add(&mut self, name: &str, mut inode: Inode) -> FileId {
        let file = self.next_file;
        self.next_file += 1;
        if self.history {
            inode.keep_history();
        }
        self.inodes.insert(file, inode);
        self.directory.change(Change::Create { name: name.to_owned(), file });
        file
    }

    pub(super) fn keep_history(&mut self) {
        self.history = true;
        self.inodes.values_mut().for_each(Inode::keep_history);
    }

    pub(super) fn lose(&mut self, name: &str) -> bool {
        self.directory.change(Change::Remove { name: name.to_owned() });
        self.directory.sync();
        true
    }

    /// Returns the allocated bytes of all files that have a name.
    pub(super) fn used(&self) -> u64 {
        self.directory.entries().values().map(|file| self.inodes[file].space().bytes()).sum()
    }

    /// Returns all decisions of a crash, which are independent of each other. `garbage` adds one outcome to each
    /// sector.
    pub(super) fn choices(&self, kind: CrashKind, garbage: bool) -> Vec<Choice> {
        let mut choices = Vec::new();
        if kind == CrashKind::Power {
            if self.directory.is_at_risk() {
                choices.push(Choice::new(ChoiceLocation::Directory, 2));
            }
            let changes = self.directory.pending().iter();
            choices.extend(changes.map(|change| Choice::new(ChoiceLocation::Entry(change.describe()), 2)));
        }
        for file in self.directory.reachable() {
            let inode = &self.inodes[&file];
            let name = || self.name_of(file);
            match kind {
                CrashKind::Process => {
                    choices.extend(inode.stale().map(|sector| Choice::new(ChoiceLocation::Cached(name(), sector), 2)));
                }
                CrashKind::Power => {
                    let extents = inode.extents().len();
                    if extents > 1 {
                        choices.push(Choice::new(ChoiceLocation::Extent(name()), extents));
                    }
                    choices.extend(inode.torn().map(|(sector, options)| {
                        let choice = Choice::new(ChoiceLocation::Sector(name(), sector), options);
                        Choice { options: options + usize::from(garbage), ..choice }
                    }));
                }
            }
        }
        choices
    }

    /// Applies a crash, with one pick for each choice.
    pub(super) fn crash(&mut self, kind: CrashKind, picks: &[usize], rng: &mut ChaCha8Rng) {
        let mut picks = picks.iter().copied();
        let mut next = || picks.next().unwrap_or_else(|| panic!("a crash needs one pick for each choice"));
        let files = self.directory.reachable();
        match kind {
            CrashKind::Process => {
                for file in &files {
                    let inode = self.inode(*file);
                    if wrong(SimMutant::ProcessCrashTakesDirty) {
                        inode.take_dirty();
                    }
                    for sector in inode.stale().collect::<Vec<_>>() {
                        if next() == 0 || wrong(SimMutant::ProcessCrashReadsBack) {
                            inode.drop_stale(sector);
                        }
                    }
                }
                self.directory.process_crash();
            }
            CrashKind::Power => {
                let survives = !self.directory.is_at_risk() || next() == 1;
                self.directory.power_cut(survives, |_| next() == 1);
                for file in &files {
                    let inode = self.inode(*file);
                    let mut extents = inode.extents();
                    let extent = extents.swap_remove(if extents.len() > 1 { next() } else { 0 });
                    inode.power_cut(extent, |_| next(), rng);
                }
            }
        }
        // Files without a name were kept only by open handles, which the crash has ended.
        let named = self.directory.reachable();
        self.inodes.retain(|file, _| named.contains(file));
    }

    /// Returns an inode, which exists by invariant 2.
    pub(super) fn inode(&mut self, file: FileId) -> &mut Inode {
        self.inodes.get_mut(&file).unwrap_or_else(|| panic!("file {file} is on the disk"))
    }

    fn name_of(&self, file: FileId) -> String {
        let named = self.directory.entries().iter().find(|(_, id)| **id == file);
        named.map_or_else(|| format!("#{file}"), |(name, _)| name.clone())
    }
}
