//! Roots that a crash may leave, and the rules about them.
//!
//! # Invariants
//! 1. The versions of a slot are all that a crash may leave in it, oldest first. The last one is the visible one. A
//!    slot with only one version is certain.
//! 2. A root is retained from its store until another root is certain in its slot.

use std::{collections::BTreeMap, sync::Arc};

use super::{Breach, Monitor, MonitorMutant, Rule, breach, chain::start_of, names::FileId, shadow::Shadow};
use crate::fsck::{
    Level, Part, RootInfo,
    root::{HEADER_BYTES, ROOT_BYTES, parse_root},
    walk,
};

/// Root with the ascending byte ranges of `data` that it reaches.
#[derive(Debug)]
pub(super) struct Root {
    info: RootInfo,
    reach: Vec<(u64, u64)>,
}

/// Versions that a crash may leave in a slot; `None` is an invalid root.
type Versions = Vec<Option<Arc<Root>>>;

/// Versions of both slots of each file that is or may become `root`.
#[derive(Clone, Debug, Default)]
pub(super) struct Roots {
    slots: BTreeMap<FileId, [Versions; 2]>,
    unread: bool,
}

impl Roots {
    /// Records that bytes have changed without a store, so that the slots must be parsed again.
    pub(super) fn unread(&mut self) {
        self.unread = true;
    }

    /// Makes the visible versions of a file certain where a sync has made them durable.
    pub(super) fn resolve(&mut self, file: FileId, shadow: &Shadow, page: u64, mutant: Option<MonitorMutant>) {
        let Some(slots) = self.slots.get_mut(&file) else { return };
        for (versions, at) in slots.iter_mut().zip([0, page]) {
            // What lies behind a root of version 1 is no part of it. A slot is a page at most.
            let bytes = versions.last().and_then(Option::as_ref).map_or(ROOT_BYTES, |root| root.info.bytes()).min(page);
            if shadow.is_durable(at, at + bytes, mutant)
                && let Some(last) = versions.pop()
            {
                *versions = vec![last];
            }
        }
    }

    /// Returns the root of a slot, if a crash can leave nothing else there.
    fn certain(&self, file: FileId, slot: usize) -> Option<&Arc<Root>> {
        match self.slots.get(&file)?.get(slot)?.as_slice() {
            [Some(root)] => Some(root),
            _ => None,
        }
    }
}

fn newest(roots: &[Arc<Root>]) -> Option<&Arc<Root>> {
    roots.iter().max_by_key(|root| root.info.order())
}

/// Yields the ranges that overlap `from` to `to`. `ranges` must be ascending and disjoint.
fn intersections(ranges: &[(u64, u64)], from: u64, to: u64) -> impl Iterator<Item = (u64, u64)> {
    let first = ranges.partition_point(|range| range.1 <= from);
    ranges.iter().skip(first).take_while(move |range| range.0 < to).copied()
}

impl Monitor {
    /// Returns the roots that a crash may leave in any file of the name `root`.
    pub(super) fn retained(&self) -> impl Iterator<Item = &Arc<Root>> {
        let all = !self.makes(MonitorMutant::IgnoresSecondSlot);
        let newest = if all { None } else { self.versions().map(|root| root.info.order()).max() };
        self.versions().filter(move |root| all || Some(root.info.order()) == newest)
    }

    fn versions(&self) -> impl Iterator<Item = &Arc<Root>> {
        self.names.roots().filter_map(|file| self.roots.slots.get(&file)).flatten().flatten().flatten()
    }

    fn retained_now(&self) -> Vec<Arc<Root>> {
        self.retained().cloned().collect()
    }

    fn shadow_of(&self, name: &str) -> Option<Arc<Shadow>> {
        self.files.get(&self.names.find(name)?).cloned()
    }

    /// Drops WAL chains that no retained root needs.
    pub(super) fn forget_roots(&mut self) {
        let starts: Vec<_> = self.retained().map(|root| start_of(&root.info)).collect();
        self.log.retain(&starts);
    }

    /// Parses the slots again if bytes have changed without a store, and updates the needed WAL sectors.
    pub(super) fn read_roots(&mut self) {
        if !std::mem::take(&mut self.roots.unread) {
            return;
        }
        for file in self.names.roots().collect::<Vec<_>>() {
            for slot in 0..2 {
                let root = self.decode(file, slot).map(|info| {
                    let reach = self.reach(&info).0;
                    Arc::new(Root { info, reach })
                });
                let Some(versions) = self.roots.slots.entry(file).or_default().get_mut(slot) else { continue };
                let info = |root: &Option<Arc<Root>>| root.as_ref().map(|root| root.info.clone());
                if versions.last().map(info) != Some(info(&root)) {
                    versions.push(root);
                }
            }
        }
        self.keep_log();
    }

    /// Marks the WAL sectors that the last acknowledged LSN needs as kept, for every retained root that leads to it.
    fn keep_log(&mut self) {
        let Some(wal) = self.shadow_of("wal") else { return };
        for root in self.retained_now() {
            if self.log.reaches(&root.info, &wal, self.acknowledged) {
                self.log.keep(&root.info, self.acknowledged, self.mutant);
            }
        }
    }

    fn decode(&self, file: FileId, slot: usize) -> Option<RootInfo> {
        let at = slot as u64 * self.page;
        let bytes = self.files.get(&file)?.bytes().get(usize::try_from(at).ok()?..)?;
        parse_root(bytes, at).ok()
    }

    /// Returns the bytes of `data` that a root reaches, and the first reason why they aren't all valid and durable.
    fn reach(&self, root: &RootInfo) -> (Vec<(u64, u64)>, Option<String>) {
        let Some((data, wal)) = self.shadow_of("data").zip(self.shadow_of("wal")) else {
            return (Vec::new(), Some("a file is not there".into()));
        };
        let mutant = self.mutant;
        let (tree, findings) = walk(root, data.bytes(), Level::Metadata, None);
        // Damaged cells are a fault of the medium that no search has found yet. The next root names them again, so they
        // are no breach.
        let mut wrong = findings.iter().find(|finding| finding.part != Part::Cells).map(ToString::to_string);
        let mut reach = vec![(0, HEADER_BYTES)];
        for run in &tree.runs {
            let (start, end) = (run.page * root.page, run.page * root.page + run.bytes);
            let asked = !run.what.is_extent() || !self.makes(MonitorMutant::IgnoresExtents);
            if wrong.is_none() && asked && !data.is_durable(start, end, mutant) {
                wrong = Some(format!("{:?} at {start} of data is not durable", run.what));
            }
            match reach.last_mut() {
                Some(last) if last.1 >= start => last.1 = last.1.max(end),
                _ => reach.push((start, end)),
            }
        }
        let segments = u64::from(root.wal_segments).saturating_mul(root.segment_bytes).saturating_add(root.page);
        let pages = root.pages.saturating_mul(root.page);
        let lengths = [("data", &data, 0, HEADER_BYTES), ("data", &data, pages, pages)];
        let of_wal = [("wal", &wal, 0, HEADER_BYTES), ("wal", &wal, segments, segments)];
        for (name, shadow, start, end) in lengths.into_iter().chain(of_wal) {
            if wrong.is_none() && !shadow.is_durable(start, end, mutant) {
                wrong = Some(format!("{name} is not durable up to {end}"));
            }
        }
        (reach, wrong)
    }

    /// Applies a store and checks the rules about it.
    pub(super) fn store(&mut self, name: &str, offset: u64, bytes: &[u8], ok: bool) -> Result<(), Breach> {
        self.quiet = false;
        self.read_roots();
        let Some(file) = self.names.find(name).filter(|_| !bytes.is_empty()) else { return Ok(()) };
        let to = offset.saturating_add(bytes.len() as u64);
        let before = self.may_store(name, file, offset, bytes);
        let sector = self.sector;
        let Some(shadow) = self.files.get_mut(&file).map(Arc::make_mut) else { return before };
        let changes = shadow.changes(offset, bytes, offset, to);
        shadow.store(offset, bytes, sector);
        let after = if !changes {
            Ok(())
        } else if self.names.find("wal") == Some(file) {
            self.stored_log(offset, to, ok)
        } else if name == "root.new" || self.names.roots().any(|root| root == file) {
            self.stored_root(file, offset, to)
        } else {
            Ok(())
        };
        before.and(after)
    }

    /// Checks the rules about bytes that a store must not overlap.
    fn may_store(&self, name: &str, file: FileId, from: u64, bytes: &[u8]) -> Result<(), Breach> {
        let to = from.saturating_add(bytes.len() as u64);
        let lent = self.loans.values().find(|loan| loan.0 == file && loan.1 < to && from < loan.2);
        if let Some((_, start, end)) = lent.filter(|_| !self.makes(MonitorMutant::IgnoresLoans)) {
            return breach(Rule::StoreIntoLent, format!("{from}..{to} of {name} meets {start}..{end}, which is lent"));
        }
        let Some(shadow) = self.files.get(&file) else { return Ok(()) };
        let changes = |range: &(u64, u64)| shadow.changes(from, bytes, range.0.max(from), range.1.min(to));
        if self.names.find("data") == Some(file) {
            for root in self.retained() {
                if let Some((start, end)) = intersections(&root.reach, from, to).find(changes) {
                    let RootInfo { epoch, generation, .. } = root.info;
                    let what =
                        format!("{from}..{to} of data meets {start}..{end} of root {generation} of epoch {epoch}");
                    return breach(Rule::StoreIntoRetained, what);
                }
            }
        } else if self.names.find("wal") == Some(file) {
            let header = Some((0, HEADER_BYTES)).filter(|_| from < HEADER_BYTES && self.retained().next().is_some());
            if let Some((start, end)) = header.into_iter().chain(self.log.keeps(from, to)).find(changes) {
                let what = format!("{from}..{to} of wal meets {start}..{end}, which LSN {} needs", self.acknowledged);
                return breach(Rule::StoreIntoNeededLog, what);
            }
        } else if self.names.roots().any(|root| root == file) {
            for (slot, start) in [(0, 0), (1, self.page)] {
                let meets = from < start + self.page && start < to && changes(&(start, start + self.page));
                if meets && self.roots.certain(file, 1 - slot).is_none() {
                    let what = format!("slot {slot} is stored to, and no root is durable in the other one");
                    return breach(Rule::OnlyRootStoredOver, what);
                }
            }
        }
        Ok(())
    }

    fn stored_root(&mut self, file: FileId, from: u64, to: u64) -> Result<(), Breach> {
        let mut broken = Ok(());
        for slot in 0..2 {
            let at = slot as u64 * self.page;
            if from >= at + ROOT_BYTES.min(self.page) || to <= at {
                continue;
            }
            let root = self.decode(file, slot);
            let judged = root.map(|info| {
                let (reach, wrong) = self.reach(&info);
                let forgets = self.forgets(&info);
                (Arc::new(Root { info, reach }), wrong, forgets)
            });
            let (root, wrong, forgets) = match judged {
                Some((root, wrong, forgets)) => (Some(root), wrong, forgets),
                None => (None, None, None),
            };
            if let Some(root) = &root {
                // The new epoch assigns the LSNs after the checkpoint again, so they no longer count as durable.
                let newer = self.retained().all(|other| other.info.epoch < root.info.epoch);
                self.durable = if newer { self.durable.min(root.info.checkpoint) } else { self.durable };
            }
            if let Some(versions) = self.roots.slots.entry(file).or_default().get_mut(slot) {
                if self.mutant == Some(MonitorMutant::ForgetsDurableVersion) {
                    versions.clear();
                }
                versions.push(root);
            }
            let (rule, what) = match (wrong, forgets) {
                (Some(what), _) => (Rule::RootBeforeItsBytes, what),
                (None, Some(what)) => (Rule::RootForgets, what),
                (None, None) => continue,
            };
            broken = broken.and(breach(rule, format!("the root stored into slot {slot}: {what}")));
        }
        self.keep_log();
        broken
    }

    /// Describes why a root doesn't lead to the last acknowledged LSN; `None` if it does.
    fn forgets(&mut self, root: &RootInfo) -> Option<String> {
        let lsn = self.acknowledged;
        let reaches =
            root.checkpoint >= lsn || self.shadow_of("wal").is_some_and(|wal| self.log.reaches(root, &wal, lsn));
        (!reaches)
            .then(|| format!("LSN {lsn} was acknowledged, and neither checkpoint {} nor log has it", root.checkpoint))
    }

    fn stored_log(&mut self, from: u64, to: u64, ok: bool) -> Result<(), Breach> {
        let roots = self.retained_now();
        let Some((root, wal)) = newest(&roots).zip(self.shadow_of("wal")) else { return Ok(()) };
        let stored = self.log.stored(&root.info, wal.bytes(), from, to, ok);
        if let Some((epoch, lsn)) = stored.changed {
            return breach(Rule::FrameChanged, format!("LSN {lsn} of epoch {epoch} had other bytes before"));
        }
        let certain = self.certain_roots();
        if stored.closes && !certain.iter().any(|certain| Arc::ptr_eq(certain, root)) {
            let what = format!("a closing mark, and root {} is not durable", root.info.generation);
            return breach(Rule::ClosedTooEarly, what);
        }
        let Some(claimed) = stored.durable.filter(|claimed| ok && *claimed > self.durable) else { return Ok(()) };
        let mutant = self.mutant;
        let survives = certain.iter().any(|root| self.log.survives(&root.info, &wal, claimed, mutant).is_ok());
        if !survives && mutant != Some(MonitorMutant::BelievesFrames) {
            return breach(Rule::FrameClaimsTooMuch, format!("a frame says that LSN {claimed} is durable"));
        }
        self.durable = claimed;
        Ok(())
    }

    /// Returns the roots that every crash leaves.
    fn certain_roots(&self) -> Vec<Arc<Root>> {
        let files = self.names.roots().flat_map(|file| [(file, 0), (file, 1)]);
        files.filter_map(|(file, slot)| self.roots.certain(file, slot)).cloned().collect()
    }

    /// Applies a rename and checks the rules about it.
    pub(super) fn rename(&mut self, from: &str, to: &str) -> Result<(), Breach> {
        self.read_roots();
        let judged = self.may_rename(from, to);
        self.names.rename(from, to, self.mutant);
        self.quiet = to == "root";
        self.keep_log();
        judged
    }

    fn may_rename(&mut self, from: &str, to: &str) -> Result<(), Breach> {
        if ["root", "data", "wal"].contains(&from) && self.retained().next().is_some() {
            return breach(Rule::NameRemoved, format!("{from} becomes {to}, and a root needs it"));
        }
        let Some(file) = self.names.find(from).filter(|_| to == "root") else { return Ok(()) };
        for name in ["data", "wal"] {
            if !self.names.is_certain(name) && !self.makes(MonitorMutant::IgnoresNames) {
                return breach(Rule::NamedTooEarly, format!("the entry of {name} is not durable"));
            }
        }
        for slot in 0..2 {
            let at = slot as u64 * self.page;
            let is_durable = |root: &RootInfo| {
                let held = self.files.get(&file);
                held.is_some_and(|held| held.is_durable(at, at + root.bytes(), self.mutant))
            };
            let Some(root) = self.decode(file, slot).filter(is_durable) else {
                return breach(Rule::NamedTooEarly, format!("slot {slot} of {from} holds no durable root"));
            };
            if let Some(what) = self.reach(&root).1 {
                return breach(Rule::NamedTooEarly, format!("the root in slot {slot} of {from}: {what}"));
            }
            if let Some(what) = self.forgets(&root) {
                return breach(Rule::RootForgets, format!("the root in slot {slot} of {from}: {what}"));
            }
        }
        Ok(())
    }

    /// Reports whether the name `root` survives every crash, and each file it may then refer to has a certain root.
    fn is_root_in_every_file(&self) -> bool {
        let has_root = |file| (0..2).any(|slot| self.roots.certain(file, slot).is_some());
        self.names.is_durable("root") && self.names.roots().all(has_root)
    }

    /// Applies the acknowledgement of everything up to an LSN and checks the rules about it.
    pub(super) fn acknowledge(&mut self, lsn: u64) -> Result<(), Breach> {
        self.read_roots();
        let judged = self.may_acknowledge(lsn);
        self.acknowledged = self.acknowledged.max(lsn);
        self.durable = self.durable.max(lsn);
        self.keep_log();
        judged
    }

    fn may_acknowledge(&mut self, lsn: u64) -> Result<(), Breach> {
        if self.failed {
            return breach(Rule::AcknowledgedAfterFailedSync, format!("LSN {lsn}, and no open since a sync failed"));
        }
        if lsn <= self.acknowledged && self.quiet {
            // This LSN was acknowledged and judged before, and nothing was stored since the last crash or rename to
            // `root`. A new root file whose entry isn't durable loses nothing: it gets the name only when its roots are
            // durable (M10), and the previous root file also leads to this LSN.
            return Ok(());
        }
        if !self.names.is_directory_certain() && !self.makes(MonitorMutant::IgnoresNames) {
            return breach(Rule::AcknowledgedWithoutNames, format!("LSN {lsn}, and the directory is not durable"));
        }
        for name in ["root", "data", "wal"] {
            // Nothing was stored since another file got the name. Either file may be `root` after a crash, if each has
            // a durable root. The chains of these roots are checked below.
            let either = name == "root" && self.quiet && self.is_root_in_every_file();
            if !self.names.is_certain(name) && !either && !self.makes(MonitorMutant::IgnoresNames) {
                return breach(
                    Rule::AcknowledgedWithoutNames,
                    format!("LSN {lsn}, and the entry of {name} is not durable"),
                );
            }
        }
        if self.certain_roots().is_empty() {
            return breach(Rule::AcknowledgedNotDurable, format!("LSN {lsn}, and no slot holds a durable root"));
        }
        let mut roots = self.retained_now();
        let Some((wal, epoch)) = self.shadow_of("wal").zip(newest(&roots).map(|root| root.info.epoch)) else {
            return Ok(());
        };
        if self.makes(MonitorMutant::AsksNewestRootAlone) {
            roots.retain(|root| root.info.epoch == epoch);
        }
        for root in roots {
            let RootInfo { epoch: known, generation, .. } = root.info;
            let survives = self.log.survives(&root.info, &wal, lsn, self.mutant);
            let Err(what) = survives else { continue };
            if known < epoch {
                let what = format!("LSN {lsn} of epoch {epoch}; root {generation} knows epoch {known}");
                return breach(Rule::EpochUnknown, what);
            }
            return breach(Rule::AcknowledgedNotDurable, format!("LSN {lsn}; root {generation}: {what}"));
        }
        Ok(())
    }
}
