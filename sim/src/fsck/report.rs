//! Results of a check: root slots, shards, trees and the report.

use std::collections::{BTreeMap, BTreeSet};

use super::bytes::part;
use super::root::RootInfo;
use super::{Entry, Finding, Invalid, Log, PageSpan};

/// Contents of a slot of the file `root`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RootSlot {
    /// A valid root.
    Valid(Box<RootInfo>),
    /// An invalid root, with the reason.
    Invalid(Invalid),
}

impl RootSlot {
    /// Returns the root, if the slot holds a valid one.
    #[must_use]
    pub fn root(&self) -> Option<&RootInfo> {
        match self {
            Self::Valid(root) => Some(root),
            Self::Invalid(_) => None,
        }
    }
}

/// Shard as described by its state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShardInfo {
    /// Shard number.
    pub number: u32,
    /// Shard id: its sixteen bytes as a little-endian number.
    pub id: u128,
    /// Number of slots in use, live or removed.
    pub slots: u32,
    /// Number of live postings.
    pub live: u32,
    /// Directory entry of the shard state.
    pub state: Entry,
    /// Extents: first page, length and checksum of the used slots.
    pub extents: Vec<Entry>,
    /// Tombstones: one bit per slot, set if the posting was removed.
    pub tombstones: Vec<u64>,
    /// Tags of each slot.
    pub tags: Vec<u64>,
}

impl ShardInfo {
    /// Reports whether the posting in a slot was removed.
    #[must_use]
    pub fn is_removed(&self, slot: u32) -> bool {
        self.tombstones.get(slot as usize / 64).is_some_and(|word| word >> (slot % 64) & 1 == 1)
    }

    /// Returns the offset of a slot in `data` and its bytes; `None` if it lies outside.
    #[must_use]
    pub fn slot<'a>(&self, root: &RootInfo, data: &'a [u8], slot: u32) -> Option<(u64, &'a [u8])> {
        let geometry = root.geometry();
        let (index, within) = (u64::from(slot) / geometry.extent_slots, u64::from(slot) % geometry.extent_slots);
        let extent = self.extents.get(usize::try_from(index).ok()?)?;
        let at = extent.page.checked_mul(root.page)?.checked_add(within * geometry.slot_bytes)?;
        Some((at, part(data, at, geometry.slot_bytes)?))
    }
}

/// Everything that a root reaches.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tree {
    /// Allocations in ascending order. One that could not be followed has no children here.
    pub runs: Vec<PageSpan>,
    /// Shards in ascending order of their numbers.
    pub shards: Vec<ShardInfo>,
    /// Payloads by document.
    pub payloads: BTreeMap<u128, Vec<u8>>,
    /// Cursor of the application.
    pub cursor: Vec<u8>,
    /// Number of live postings of all shard states.
    pub live: u64,
    /// Number of removed postings of all shard states whose slots are still in use.
    pub removed: u64,
}

/// Result of a check.
#[derive(Clone, Debug, PartialEq)]
pub struct Report {
    /// Contents of the two slots of `root`.
    pub roots: [RootSlot; 2],
    /// Slot of the newest valid root.
    pub newest: Option<usize>,
    /// Tree of each valid root.
    pub trees: [Option<Tree>; 2],
    /// WAL after the checkpoint of the newest root.
    pub log: Log,
    /// All faults found.
    pub findings: Vec<Finding>,
}

impl Report {
    /// Returns the newest valid root.
    #[must_use]
    pub fn root(&self) -> Option<&RootInfo> {
        self.newest.and_then(|slot| self.roots.get(slot)).and_then(RootSlot::root)
    }

    /// Returns the pages that either valid root reaches. The header page isn't included.
    #[must_use]
    pub fn used_pages(&self) -> BTreeSet<u64> {
        let runs = self.trees.iter().flatten().flat_map(|tree| &tree.runs);
        runs.flat_map(|run| run.page..run.end()).collect()
    }

    /// Reports whether the check has no findings.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.findings.is_empty()
    }
}
