//! What a check found, and the check as a whole.

use std::collections::BTreeSet;

use super::bytes::part;
use super::root::{RootInfo, parse_header, parse_root};
use super::{
    Contents, End, Entry, Files, Finding, Invalid, Kind, Level, Log, Part, Posting, Run, contents, log, space, tree,
};

/// What a slot of the file `root` holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Slot {
    /// A root.
    Valid(Box<RootInfo>),
    /// None, and why.
    Invalid(Invalid),
}

impl Slot {
    /// The root, if it holds one.
    #[must_use]
    pub fn root(&self) -> Option<&RootInfo> {
        match self {
            Self::Valid(root) => Some(root),
            Self::Invalid(_) => None,
        }
    }
}

/// A shard, as its state has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShardInfo {
    /// Its number.
    pub number: u32,
    /// Its id, the sixteen bytes as a little-endian number.
    pub id: u128,
    /// Slots used.
    pub slots: u32,
    /// Live postings.
    pub live: u32,
    /// Where the state is.
    pub state: Entry,
    /// Its extents: page, bytes and sum of the used slots.
    pub extents: Vec<Entry>,
    /// One bit a slot, of those that were removed.
    pub tombstones: Vec<u64>,
}

impl ShardInfo {
    /// Whether a slot's posting was removed.
    #[must_use]
    pub fn is_removed(&self, slot: u32) -> bool {
        self.tombstones.get(slot as usize / 64).is_some_and(|word| word >> (slot % 64) & 1 == 1)
    }

    /// Where a slot is in `data`, and its bytes; `None` if it lies outside.
    #[must_use]
    pub fn slot<'a>(&self, root: &RootInfo, data: &'a [u8], slot: u32) -> Option<(u64, &'a [u8])> {
        let geometry = root.geometry();
        let (index, within) = (u64::from(slot) / geometry.extent_slots, u64::from(slot) % geometry.extent_slots);
        let extent = self.extents.get(usize::try_from(index).ok()?)?;
        let at = extent.page.checked_mul(root.page)?.checked_add(within * geometry.slot_bytes)?;
        Some((at, part(data, at, geometry.slot_bytes)?))
    }
}

/// What a root reaches.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tree {
    /// The runs of pages, ascending. Those that could not be followed have no children here.
    pub runs: Vec<Run>,
    /// The shards, ascending by number.
    pub shards: Vec<ShardInfo>,
    /// Live postings of all states.
    pub live: u64,
    /// Removed postings whose slots are still taken, of all states.
    pub removed: u64,
}

/// What a check found.
#[derive(Clone, Debug, PartialEq)]
pub struct Report {
    /// The slots of `root`.
    pub roots: [Slot; 2],
    /// The slot whose root counts.
    pub newest: Option<usize>,
    /// What each valid root reaches.
    pub trees: [Option<Tree>; 2],
    /// The log after the newest root's checkpoint.
    pub log: Log,
    /// All that is wrong.
    pub findings: Vec<Finding>,
}

impl Report {
    /// The root that counts.
    #[must_use]
    pub fn root(&self) -> Option<&RootInfo> {
        self.newest.and_then(|slot| self.roots.get(slot)).and_then(Slot::root)
    }

    /// Pages that either valid root reaches; the header's page is none of them.
    #[must_use]
    pub fn used_pages(&self) -> BTreeSet<u64> {
        let runs = self.trees.iter().flatten().flat_map(|tree| &tree.runs);
        runs.flat_map(|run| run.page..run.end()).collect()
    }

    /// Whether nothing is wrong.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.findings.is_empty()
    }

    /// Live postings of the shards that a slot's root reaches, as far as they can be read.
    #[must_use]
    pub fn postings(&self, files: &Files<'_>, slot: usize) -> Vec<Posting> {
        let root = self.roots.get(slot).and_then(Slot::root);
        let tree = self.trees.get(slot).and_then(Option::as_ref);
        match (root, tree, files.data) {
            (Some(root), Some(tree), Some(data)) => contents::postings(root, tree, data),
            _ => Vec::new(),
        }
    }

    /// See [`contents`](contents::contents).
    ///
    /// # Errors
    /// If what is durable can't be told.
    pub fn contents(&self, files: &Files<'_>) -> Result<Contents, Finding> {
        contents::contents(self, files)
    }
}

fn finding(kind: Kind, part: Part, file: &'static str, offset: u64, what: impl Into<String>) -> Finding {
    Finding { kind, part, slot: None, file, offset, what: what.into() }
}

/// Checks the files of an index.
pub(super) fn check(files: &Files<'_>, level: Level) -> Report {
    let mut findings = Vec::new();
    for (file, bytes) in [("root", files.root), ("data", files.data), ("wal", files.wal)] {
        if bytes.is_none() {
            findings.push(finding(Kind::MissingFile, Part::Root, file, 0, "the file is not there"));
        }
    }
    let roots = roots(files.root.unwrap_or_default());
    check_roots(&roots, files, &mut findings);
    let newest = match (roots[0].root(), roots[1].root()) {
        (Some(first), Some(second)) => Some(usize::from(second.order() > first.order())),
        (first, second) => first.map(|_| 0).or(second.map(|_| 1)),
    };
    let mut trees = [None, None];
    for (slot, tree) in trees.iter_mut().enumerate() {
        if let (Some(root), Some(data)) = (roots[slot].root(), files.data) {
            let (walked, found) = tree::walk(root, data, level, Some(slot));
            findings.extend(found);
            *tree = Some(walked);
        }
    }
    if let (Some(first), Some(second)) = (roots[0].root(), roots[1].root())
        && let [Some(one), Some(other)] = &trees
        && first.same_configuration(second)
    {
        space::check_both([&one.runs, &other.runs], first, &mut findings);
    }
    if level == Level::Full {
        for (slot, tree) in trees.iter().enumerate() {
            if let (Some(tree), Some(root), Some(data)) = (tree, roots[slot].root(), files.data) {
                findings.extend(contents::duplicate_keys(root, tree, data, slot));
            }
        }
    }
    let counted = newest.and_then(|slot| roots[slot].root());
    let log = counted.zip(files.wal).map(|(root, wal)| log::read(root, wal, &mut findings)).unwrap_or_default();
    if let (Some(newest), Some(wal)) = (newest, files.wal) {
        findings.extend(holes_behind_the_older(&roots, newest, wal));
    }
    Report { roots, newest, trees, log, findings }
}

/// Records that were durable and are gone, between the checkpoints of two roots of one epoch: without the newest root they
/// would be needed.
fn holes_behind_the_older(roots: &[Slot; 2], newest: usize, wal: &[u8]) -> Vec<Finding> {
    let (Some(new), Some(old)) = (roots[newest].root(), roots[1 - newest].root()) else { return Vec::new() };
    let mut findings = Vec::new();
    // What is behind the newest checkpoint is found with the newest root.
    let between = |end| matches!(end, End::Hole { missing, .. } if missing <= new.checkpoint);
    if old.epoch != new.epoch || !between(log::read(old, wal, &mut findings).end) {
        return Vec::new();
    }
    findings.retain(|finding| finding.kind == Kind::LogHole);
    findings.into_iter().map(|finding| Finding { slot: Some(1 - newest), ..finding }).collect()
}

/// Both slots. Where the second is follows from the page size, which only roots know.
fn roots(file: &[u8]) -> [Slot; 2] {
    let slot = |at: u64| match file.get(usize::try_from(at).unwrap_or(usize::MAX)..) {
        Some(bytes) => parse_root(bytes, at),
        None => Err(Invalid { kind: Kind::TruncatedFile, what: format!("the file ends before {at}") }),
    };
    let of = |result: Result<RootInfo, Invalid>| match result {
        Ok(root) => Slot::Valid(Box::new(root)),
        Err(invalid) => Slot::Invalid(invalid),
    };
    let first = slot(0);
    if let Ok(root) = &first {
        let second = slot(root.page);
        return [of(first), of(second)];
    }
    // The first slot does not say. A root's page size is where it lies.
    let places = (8..31).map(|bits| 1 << bits).filter(|at| *at < file.len() as u64);
    let second = places.clone().map(slot).find(Result::is_ok).unwrap_or_else(|| slot(file.len() as u64 / 2));
    [of(first), of(second)]
}

fn check_roots(roots: &[Slot; 2], files: &Files<'_>, findings: &mut Vec<Finding>) {
    let file = files.root.unwrap_or_default();
    let Some(root) = roots.iter().find_map(Slot::root) else {
        if let (Slot::Invalid(first), Slot::Invalid(second)) = (&roots[0], &roots[1])
            && files.root.is_some()
        {
            let what = format!("slot 0: {}; slot 1: {}", first.what, second.what);
            findings.push(finding(Kind::NoRoot, Part::Root, "root", 0, what));
        }
        return;
    };
    if (file.len() as u64) < 2 * root.page {
        let what = format!("{} bytes are no two slots of {}", file.len(), root.page);
        findings.push(finding(Kind::TruncatedFile, Part::Root, "root", file.len() as u64, what));
    }
    for (slot, held) in roots.iter().enumerate() {
        // A torn slot is what a crash may leave. Another version, or a root that is sealed but is none, is not.
        if let Slot::Invalid(Invalid { kind: kind @ (Kind::BadVersion | Kind::BadConfiguration), what }) = held {
            findings.push(finding(*kind, Part::Root, "root", slot as u64 * root.page, what.clone()));
        }
    }
    if let (Some(first), Some(second)) = (roots[0].root(), roots[1].root()) {
        let newer = usize::from(second.order() > first.order());
        let (old, new) = if newer == 1 { (first, second) } else { (second, first) };
        check_pair(old, new, (1 - newer) as u64 * root.page, findings);
    }
    for (file, bytes, magic) in [("data", files.data, b"SHXDATA\0"), ("wal", files.wal, b"SHXWAL\0\0")] {
        let Some(bytes) = bytes else { continue };
        match parse_header(bytes, magic) {
            Ok(id) if id != root.index_id => {
                findings.push(finding(Kind::ForeignIndexId, Part::Header, file, 16, format!("index id {id:032x}")));
            }
            Ok(_) => {}
            Err(Invalid { kind, what }) => findings.push(finding(kind, Part::Header, file, 0, what)),
        }
    }
}

/// Two roots are of one history.
fn check_pair(old: &RootInfo, new: &RootInfo, at: u64, findings: &mut Vec<Finding>) {
    let mut contradict = |what: String| findings.push(finding(Kind::RootsContradict, Part::Root, "root", at, what));
    if old.order() == new.order() && old != new {
        contradict(format!("two roots of epoch {}, generation {}", old.epoch, old.generation));
    }
    if !old.same_configuration(new) {
        contradict("the roots' configurations differ".into());
    }
    let place = |root: &RootInfo| (root.checkpoint, root.segment, root.offset);
    let behind = new.checkpoint < old.checkpoint || place(new).1 < place(old).1;
    if old.epoch == new.epoch && (behind || (new.segment == old.segment && new.offset < old.offset)) {
        contradict(format!("the newer root's checkpoint and place {:?} are before {:?}", place(new), place(old)));
    }
    if old.index_id != new.index_id {
        findings.push(finding(Kind::ForeignIndexId, Part::Root, "root", at, "the slots are of two indexes"));
    }
}
