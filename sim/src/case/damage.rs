//! Damage to the files between a crash and a recovery (R13).

use std::ops::Range;

use rand::RngExt as _;
use shardex::{CheckLevel, Engine, env::Env, failpoint, format::root::ROOT_BYTES, storage::Storage as _};

use super::{Damage, FAULT_CLASSES, run::CaseRun};
use crate::{
    explorer::roots,
    fsck::{RecordKind, log},
    oracle::Image,
    storage::SimStorage,
    workload::Runner,
};

impl CaseRun<'_> {
    /// Truncates a file at a random length.
    fn truncate(&mut self, name: &str, len: usize) -> bool {
        let to = self.rng.random_range(0..len);
        self.cut_wal = name == "wal";
        if self.least(name) > to as u64 {
            self.must_be_found = Some("a file was cut");
        }
        self.sim.tamper(name, |bytes| bytes.truncate(to));
        true
    }

    /// Applies a damage if it is possible here, and counts it.
    pub(super) fn damage(&mut self, damage: Damage, root_at_rest: bool) {
        let files: Vec<(String, usize)> =
            self.sim.files().into_iter().filter(|(_, bytes)| !bytes.is_empty()).map(|(n, b)| (n, b.len())).collect();
        if files.is_empty() {
            return;
        }
        let (name, len) = files[self.rng.random_range(0..files.len())].clone();
        // Without a valid root the directory is no index, and the next open clears it.
        let is_index = roots(&self.sim).iter().any(Option::is_some);
        let hit = match damage {
            Damage::RotRoot => root_at_rest && self.with_newest_root(|_, slot| slot[50] ^= 4),
            Damage::StaleRoot => {
                root_at_rest
                    && self.with_newest_root(|before, slot| {
                        let len = before.len().min(slot.len());
                        slot[..len].copy_from_slice(&before[..len]);
                    })
            }
            Damage::Rot => self.rot_what_is_read(),
            Damage::RotTail => self.rot_tail(),
            Damage::Stale => match self.what_is_read() {
                Some((name, range, _)) => self.sim.go_back(&name, range),
                None => false,
            },
            Damage::Truncate => self.truncate(&name, len),
            Damage::Remove => {
                if name == "root" {
                    self.forget_roots();
                }
                self.sim.lose(&name)
            }
            Damage::Swap => self.swap(),
            Damage::Foreign => {
                let end = len.min(64);
                let foreign: Vec<u8> = (0..end).map(|_| self.rng.random()).collect();
                self.sim.tamper(&name, |bytes| bytes[..end].copy_from_slice(&foreign));
                true
            }
            Damage::OtherIndex => self.replace_by_another(&name),
            Damage::Sparse => {
                files.iter().for_each(|(name, _)| self.sim.make_sparse(name));
                true
            }
            Damage::LaterFrame => self.relabel_last_frame(),
        };
        if !is_index {
            self.must_be_found = None;
        }
        if hit {
            let class = FAULT_CLASSES.iter().find(|class| class.strip_prefix("damage: ") == Some(damage.name()));
            self.fired(class.copied().unwrap_or("damage of no class"));
            self.damaged |= !damage.is_harmless();
        }
    }

    /// Returns the smallest length of a file in bytes that a readable root requires; 0 without one.
    fn least(&self, name: &str) -> u64 {
        let lengths = roots(&self.sim).into_iter().flatten().map(|root| {
            let page = root.geometry.page_size as u64;
            match name {
                "wal" => page + u64::from(root.wal_segments) * root.geometry.wal_segment_size,
                "data" => root.data_pages * page,
                _ => 0,
            }
        });
        lengths.min().unwrap_or(0)
    }

    /// Picks a random range that a recovery and a full check of the current files would read. The flag reports whether
    /// the recovery reads it as metadata.
    fn what_is_read(&mut self) -> Option<(String, Range<u64>, bool)> {
        self.collect_marks();
        let copy = SimStorage::from_image(&self.sim.image());
        copy.set_read_log(true);
        // A full check in the flush would read everything, so it is set to quick.
        let config = self.case.workload.config.clone().flush_check(CheckLevel::Quick);
        let opened = Engine::create(copy.clone(), &config, &self.env);
        // An open copies metadata out of `data` and leases the rest. The header of `wal` counts as metadata.
        let metadata = |(name, range, lent): (String, Range<u64>, bool)| {
            let header = name == "wal" && range.start == 0;
            let is = (name == "data" && !lent) || header;
            (name, range, is)
        };
        let mut read: Vec<_> = copy.take_read_log().into_iter().map(metadata).collect();
        if let Ok(engine) = opened {
            let _ = engine.check(CheckLevel::Full);
        }
        read.extend(copy.take_read_log().into_iter().map(|(name, range, _)| (name, range, false)));
        // The copy isn't part of the case, so its coverage marks are dropped.
        let _ = failpoint::mutants::take_reached();
        // Ranges that only the recovery of the copy has stored don't exist in the files yet.
        let files = self.sim.files();
        read.retain(|(name, range, _)| {
            let file = files.iter().find(|(n, _)| n == name);
            let same = |(_, bytes): &(String, Vec<u8>)| {
                let there = bytes.get(range.start as usize..range.end as usize);
                there.is_some_and(|bytes| !bytes.is_empty())
            };
            file.is_some_and(same)
        });
        if read.is_empty() {
            return None;
        }
        Some(read.swap_remove(self.rng.random_range(0..read.len())))
    }

    fn rot_what_is_read(&mut self) -> bool {
        let Some((name, range, metadata)) = self.what_is_read() else { return false };
        let (at, bit) = (self.rng.random_range(range), self.rng.random_range(0..8));
        self.sim.tamper(&name, |bytes| bytes[at as usize] ^= 1 << bit);
        if metadata {
            self.must_be_found = Some("metadata has rotten");
        }
        true
    }

    fn rot_tail(&mut self) -> bool {
        let mut end = 0;
        self.sim.read_files(|name, bytes| {
            if name == "wal" {
                end = bytes.iter().rposition(|&byte| byte != 0).map_or(0, |at| at + 1);
            }
        });
        if end == 0 {
            return false;
        }
        let at = end - 1 - self.rng.random_range(0..end.min(300));
        let bit = self.rng.random_range(0..8);
        self.sim.tamper("wal", |bytes| bytes[at] ^= 1 << bit);
        true
    }

    /// Gives the last frame that a recovery reads another kind.
    fn relabel_last_frame(&mut self) -> bool {
        /// No version has used it.
        const KIND: u8 = 200;
        let report = Image::of(&self.sim).check();
        let last = report.log.frames.iter().rfind(|frame| frame.kind != RecordKind::Padding);
        let (Some(root), Some(frame)) = (report.root(), last) else { return false };
        if self.doubt() || !report.findings.is_empty() {
            return false;
        }
        let (root, frame) = (root.clone(), *frame);
        self.sim.tamper("wal", |bytes| log::relabel(&root, bytes, &frame, KIND));
        self.must_refuse = true;
        true
    }

    fn swap(&mut self) -> bool {
        let all = self.sim.files();
        let (Some(a), Some(b)) = (all.first(), all.iter().rfind(|(name, _)| name != "LOCK")) else { return false };
        self.sim.tamper(&a.0, |bytes| bytes.clone_from(&b.1));
        self.sim.tamper(&b.0, |bytes| bytes.clone_from(&a.1));
        a.1 != b.1
    }

    /// Replaces a file by the file of the same name of another index, which has the same configuration and steps but
    /// another id.
    fn replace_by_another(&mut self, name: &str) -> bool {
        self.collect_marks();
        let workload = &self.case.workload;
        let other = SimStorage::new(workload.page_size, workload.sector_size, self.case.seed);
        let mut runner = Runner::new(workload, Env { new_index_id: u128::MAX, ..self.env.clone() });
        for event in &self.case.events {
            if let super::Event::Do(step) = event
                && runner.step(&other, step).is_err()
            {
                break;
            }
        }
        drop(runner);
        let _ = failpoint::mutants::take_reached();
        match other.files().into_iter().find(|(n, bytes)| n == name && !bytes.is_empty()) {
            Some((_, theirs)) => {
                self.sim.tamper(name, |bytes| *bytes = theirs);
                self.must_be_found = Some("a file is of another index");
                true
            }
            None => false,
        }
    }

    /// Calls `change` with the previous content of the newest root's slot and its current bytes. Returns false unless
    /// both slots hold a root.
    fn with_newest_root(&mut self, change: impl FnOnce(&[u8], &mut [u8])) -> bool {
        let page = self.sim.page_size();
        let [Some(first), Some(second)] = roots(&self.sim) else { return false };
        let newest = usize::from((first.epoch, first.generation) < (second.epoch, second.generation));
        let before = self.root_before[newest].clone();
        self.sim.tamper("root", |bytes| change(&before, &mut bytes[newest * page..][..ROOT_BYTES]));
        true
    }
}
