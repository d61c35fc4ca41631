//! Check of all files of an index.

use super::report::{Report, RootSlot};
use super::root::{RootInfo, parse_header, parse_root};
use super::{End, Files, Finding, FindingKind, Invalid, Level, Part, contents, log, space, tree};

pub(super) fn finding(
    kind: FindingKind,
    part: Part,
    file: &'static str,
    offset: u64,
    what: impl Into<String>,
) -> Finding {
    Finding { kind, part, slot: None, file, offset, what: what.into() }
}

/// Checks the files of an index.
pub(super) fn check(files: &Files<'_>, level: Level) -> Report {
    let mut findings = Vec::new();
    for (file, bytes) in [("root", files.root), ("data", files.data), ("wal", files.wal)] {
        if bytes.is_none() {
            findings.push(finding(FindingKind::MissingFile, Part::Root, file, 0, "the file is not there"));
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

/// Finds holes in the WAL between the checkpoints of two roots of one epoch. Without the newest root, the older root
/// would need these records.
pub(super) fn holes_behind_the_older(roots: &[RootSlot; 2], newest: usize, wal: &[u8]) -> Vec<Finding> {
    let (Some(new), Some(old)) = (roots[newest].root(), roots[1 - newest].root()) else { return Vec::new() };
    let mut findings = Vec::new();
    // Reading with the newest root finds holes after its own checkpoint, so they are not repeated here.
    let between = |end| matches!(end, End::Hole { missing, .. } if missing <= new.checkpoint);
    if old.epoch != new.epoch || !between(log::read(old, wal, &mut findings).end) {
        return Vec::new();
    }
    findings.retain(|finding| finding.kind == FindingKind::LogHole);
    findings.into_iter().map(|finding| Finding { slot: Some(1 - newest), ..finding }).collect()
}

/// Parses both root slots. The position of the second slot follows from the page size, which only the roots hold.
pub(super) fn roots(file: &[u8]) -> [RootSlot; 2] {
    let slot = |at: u64| match file.get(usize::try_from(at).unwrap_or(usize::MAX)..) {
        Some(bytes) => parse_root(bytes, at),
        None => Err(Invalid { kind: FindingKind::TruncatedFile, what: format!("the file ends before {at}") }),
    };
    let of = |result: Result<RootInfo, Invalid>| match result {
        Ok(root) => RootSlot::Valid(Box::new(root)),
        Err(invalid) => RootSlot::Invalid(invalid),
    };
    let first = slot(0);
    if let Ok(root) = &first {
        let second = slot(root.page);
        return [of(first), of(second)];
    }
    // The first slot doesn't give the page size. A root is valid only at offset 0 or at its own page size, so each
    // power of two is tried as the position of the second slot.
    let candidates = (8..31).map(|bits| 1 << bits).filter(|at| *at < file.len() as u64);
    let second = candidates.clone().map(slot).find(Result::is_ok).unwrap_or_else(|| slot(file.len() as u64 / 2));
    [of(first), of(second)]
}

pub(super) fn check_roots(roots: &[RootSlot; 2], files: &Files<'_>, findings: &mut Vec<Finding>) {
    let file = files.root.unwrap_or_default();
    let Some(root) = roots.iter().find_map(RootSlot::root) else {
        if let (RootSlot::Invalid(first), RootSlot::Invalid(second)) = (&roots[0], &roots[1])
            && files.root.is_some()
        {
            let what = format!("slot 0: {}; slot 1: {}", first.what, second.what);
            findings.push(finding(FindingKind::NoRoot, Part::Root, "root", 0, what));
        }
        return;
    };
    if (file.len() as u64) < 2 * root.page {
        let what = format!("{} bytes are no two slots of {}", file.len(), root.page);
        findings.push(finding(FindingKind::TruncatedFile, Part::Root, "root", file.len() as u64, what));
    }
    for (slot, held) in roots.iter().enumerate() {
        // A crash may leave a torn slot. It can't leave another version or a root with a valid checksum and an invalid
        // configuration.
        if let RootSlot::Invalid(Invalid {
            kind: kind @ (FindingKind::BadVersion | FindingKind::BadConfiguration),
            what,
        }) = held
        {
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
                findings.push(finding(
                    FindingKind::ForeignIndexId,
                    Part::Header,
                    file,
                    16,
                    format!("index id {id:032x}"),
                ));
            }
            Ok(_) => {}
            Err(Invalid { kind, what }) => findings.push(finding(kind, Part::Header, file, 0, what)),
        }
    }
}

/// Checks that two roots belong to one history. `at` is the offset of the older root.
pub(super) fn check_pair(old: &RootInfo, new: &RootInfo, at: u64, findings: &mut Vec<Finding>) {
    let mut contradict =
        |what: String| findings.push(finding(FindingKind::RootsContradict, Part::Root, "root", at, what));
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
        findings.push(finding(FindingKind::ForeignIndexId, Part::Root, "root", at, "the slots are of two indexes"));
    }
}
