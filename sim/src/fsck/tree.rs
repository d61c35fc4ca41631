//! Walks the tree that a root reaches in `data`: directory, shard states, extents and cells.

use std::collections::{BTreeMap, BTreeSet};

use super::bytes::{crc, crc_without, f32_at, f64_at, part, u32_at, u64_at, u128_at, zeros};
use super::report::{ShardInfo, Tree};
use super::root::{Metric, Parameters, RootInfo, state_fixed};
use super::states::{self, any_beyond, has_one, number_at, state_version, tombstones};
use super::{Entry, Finding, FindingKind, Level, PageSpan, Part, What, encodings, space};

/// Relative tolerance of a stored sum of vectors: a share of the summed absolute values of the component in all used
/// slots. The engine adds and subtracts in another order than this check.
const SUM_TOLERANCE: f64 = 1e-6;
/// Tolerance of the norm of a normalised vector, as the difference from 1.
const NORM_TOLERANCE: f64 = 1e-3;

/// Walks everything that `root` reaches in `data`. Returns the tree and the findings, which name `slot`.
#[must_use]
pub fn walk(root: &RootInfo, data: &[u8], level: Level, slot: Option<usize>) -> (Tree, Vec<Finding>) {
    let mut walk = Walk {
        root,
        data,
        level,
        slot,
        geometry: root.geometry(),
        tree: Tree::default(),
        findings: Vec::new(),
        seen: BTreeSet::new(),
    };
    walk.extent_of_file();
    walk.directory();
    walk.totals();
    walk.payloads();
    walk.cells();
    let Walk { mut tree, mut findings, geometry, .. } = walk;
    tree.runs.sort_unstable();
    space::check_tree(&tree.runs, root, &geometry, slot, &mut findings);
    (tree, findings)
}

/// State of a walk in progress.
pub(super) struct Walk<'a> {
    pub(super) root: &'a RootInfo,
    pub(super) data: &'a [u8],
    pub(super) level: Level,
    slot: Option<usize>,
    pub(super) geometry: Parameters,
    pub(super) tree: Tree,
    findings: Vec<Finding>,
    /// First pages of all allocations taken.
    seen: BTreeSet<u64>,
}

impl<'a> Walk<'a> {
    pub(super) fn find(&mut self, kind: FindingKind, part: Part, offset: u64, what: impl Into<String>) {
        let (slot, what) = (self.slot, what.into());
        let (file, offset) = match (part, slot) {
            (Part::Root, Some(slot)) => ("root", offset.saturating_add(slot as u64 * self.root.page)),
            _ => ("data", offset),
        };
        self.findings.push(Finding { kind, part, slot, file, offset, what });
    }

    /// Adds a finding at byte `at` of the allocation that starts at `page`.
    pub(super) fn find_in(&mut self, kind: FindingKind, part: Part, page: u64, at: u64, what: impl Into<String>) {
        self.find(kind, part, page.saturating_mul(self.root.page).saturating_add(at), what);
    }

    /// Returns the number of findings so far.
    pub(super) fn found(&self) -> usize {
        self.findings.len()
    }

    fn extent_of_file(&mut self) {
        let RootInfo { pages, page, .. } = *self.root;
        let chunks = pages.saturating_sub(1);
        if pages == 0 || !chunks.is_multiple_of(self.geometry.chunk_pages) {
            let what = format!("{pages} pages are no header and chunks of {}", self.geometry.chunk_pages);
            self.find(FindingKind::CountMismatch, Part::Space, 0, what);
        }
        if pages.checked_mul(page).is_none_or(|bytes| bytes > self.data.len() as u64) {
            let what = format!("the root says {pages} pages, the file has {} bytes", self.data.len());
            self.find(FindingKind::TruncatedFile, Part::Space, self.data.len() as u64, what);
        }
    }

    /// Adds an allocation of `pages` pages to the tree and returns its first `len` bytes.
    ///
    /// Returns `None`, with a finding, if the allocation is empty, starts at page 0, exceeds the pages of the root or
    /// the file, or if its first page was taken before.
    pub(super) fn take(&mut self, page: u64, pages: u64, len: u64, what: What) -> Option<&'a [u8]> {
        let end = page.checked_add(pages).filter(|end| page > 0 && *end <= self.root.pages && pages > 0);
        if end.is_none() {
            let text = format!("{what:?} on {pages} pages from {page} on, of {} that there are", self.root.pages);
            self.find_in(FindingKind::OutOfBounds, what.part(), page, 0, text);
            return None;
        }
        if !self.seen.insert(page) {
            self.find_in(
                FindingKind::DoubleReference,
                what.part(),
                page,
                0,
                format!("{what:?}: page {page} is named twice"),
            );
            return None;
        }
        let bytes = page.checked_mul(self.root.page).and_then(|at| part(self.data, at, len));
        if bytes.is_none() {
            let text = format!("{what:?}: {len} bytes on page {page} reach past the end of the file");
            self.find_in(FindingKind::TruncatedFile, what.part(), page, 0, text);
            return None;
        }
        self.tree.runs.push(PageSpan { page, pages, bytes: len, what });
        bytes
    }

    /// Takes the metadata that `entry` points to and returns its bytes, if their checksum matches the entry.
    pub(super) fn follow(&mut self, entry: Entry, what: What) -> Option<&'a [u8]> {
        let len = u64::from(entry.len);
        let bytes = self.take(entry.page, self.root.pages_of(len), len, what)?;
        let has_header = self.has_header(bytes, what);
        let sum = if has_header { crc_without(0, bytes, 4) } else { crc(bytes) };
        if sum == entry.crc {
            if has_header && !self.check_header(bytes, entry, what) {
                return None;
            }
            return Some(bytes);
        }
        let whole = match what {
            What::State { shard } if self.is_whole_state(bytes, shard) => "; it is whole in itself, an older version",
            _ => "",
        };
        let text = format!("{what:?} has the sum {sum:08x}, its parent says {:08x}{whole}", entry.crc);
        self.find_in(FindingKind::ChecksumMismatch, what.part(), entry.page, 0, text);
        None
    }

    fn directory(&mut self) {
        let RootInfo { directory, shard_numbers, .. } = *self.root;
        if directory.is_empty() || shard_numbers == 0 {
            if !directory.is_empty() || shard_numbers > 0 {
                let what = format!("{shard_numbers} shard numbers, and the top node is {directory:?}");
                self.find(FindingKind::CountMismatch, Part::Root, 0, what);
            }
            return;
        }
        self.node(directory, self.geometry.levels.saturating_sub(1), 0);
    }

    /// Visits the node with index `index` of a level, and everything below it.
    fn node(&mut self, entry: Entry, level: u32, index: u64) {
        if u64::from(entry.len) != self.root.page {
            let what = format!("a node of {} bytes", entry.len);
            self.find_in(FindingKind::WrongLength, Part::Node, entry.page, 0, what);
            return;
        }
        let Some(bytes) = self.follow(entry, What::Node { level, index: index as u32 }) else { return };
        let fanout = self.geometry.fanout;
        let below = (0..level).fold(1u64, |all, _| all.saturating_mul(fanout));
        for child in 0..fanout {
            let at = self.root.entries_at() + 16 * child;
            let Some(to) = Entry::read(bytes, at) else { return };
            if to.is_empty() {
                continue;
            }
            // `number` is the index of the child in its level. Its product with `below` is the first shard number that
            // the child covers.
            let number = index.saturating_mul(fanout).saturating_add(child);
            if number.saturating_mul(below) >= u64::from(self.root.shard_numbers) {
                let what = format!("entry {child} covers numbers beyond the {} there are", self.root.shard_numbers);
                self.find_in(FindingKind::OutOfBounds, Part::Node, entry.page, at, what);
            } else if level > 0 {
                self.node(to, level - 1, number);
            } else {
                self.state(to, number as u32);
            }
        }
    }

    /// Reports whether the bytes form a consistent state of shard `number` by themselves: an older version is
    /// recognised so.
    fn is_whole_state(&self, bytes: &[u8], number: u32) -> bool {
        let Some(version) = state_version(bytes) else { return false };
        let counts = state_fixed(version) - 16;
        let Some((slots, live)) = u32_at(bytes, counts).zip(u32_at(bytes, counts + 4)) else { return false };
        let removed = tombstones(self.root, bytes, slots, version)
            .map(|all| all.iter().map(|word| word.count_ones()).sum::<u32>());
        let whole = states::length(self.root, bytes, slots.into(), version) == Some(bytes.len() as u64);
        u32_at(bytes, number_at(version)) == Some(number) && whole && removed == slots.checked_sub(live)
    }

    fn state(&mut self, entry: Entry, number: u32) {
        let Some(bytes) = self.follow(entry, What::State { shard: number }) else { return };
        let fail = |walk: &mut Self, kind, at, what: String| walk.find_in(kind, Part::State, entry.page, at, what);
        let Some(version) = state_version(bytes).filter(|version| *version <= self.root.version) else {
            return fail(self, FindingKind::BadMagic, 0, "no state's magic".into());
        };
        let said = u32_at(bytes, number_at(version));
        if said != Some(number) {
            let what = format!("shard {number}'s state says that it is {said:?}'s");
            fail(self, FindingKind::WrongParent, number_at(version), what);
        }
        // The id, the counts and the zeros end the fixed fields.
        let at = state_fixed(version) - 32;
        let (Some(id), Some(slots), Some(live)) = (u128_at(bytes, at), u32_at(bytes, at + 16), u32_at(bytes, at + 20))
        else {
            return fail(self, FindingKind::WrongLength, 0, format!("a state of {} bytes", bytes.len()));
        };
        if slots > self.root.shard_size {
            return fail(
                self,
                FindingKind::OutOfBounds,
                at + 16,
                format!("{slots} slots, of {} at most", self.root.shard_size),
            );
        }
        let wanted = states::length(self.root, bytes, slots.into(), version);
        if wanted != Some(bytes.len() as u64) {
            return fail(self, FindingKind::WrongLength, 0, format!("{} bytes instead of {wanted:?}", bytes.len()));
        }
        if let Err(what) = states::check_former(self.root, bytes, slots, version) {
            fail(self, FindingKind::OutOfBounds, 0, what);
        }
        let most = if version < 3 { 0 } else { 3 };
        if u64_at(bytes, at + 24).is_none_or(|flags| flags > most) {
            fail(self, FindingKind::NonZeroReserved, at + 24, "the state's zeros".into());
        }
        let tombstones = tombstones(self.root, bytes, slots, version).unwrap_or_default();
        self.check_tombstones(entry.page, &tombstones, slots, live);
        let extents = self.extents(entry.page, bytes, number, slots, version);
        let tags = if version > 1 { self.tags(entry.page, bytes, number, slots) } else { vec![0; slots as usize] };
        let shard = ShardInfo { number, id, slots, live, state: entry, extents, tombstones, tags };
        if self.level == Level::Full {
            self.check_postings(&shard, bytes);
        }
        self.tree.shards.push(shard);
    }

    fn check_tombstones(&mut self, page: u64, tombstones: &[u64], slots: u32, live: u32) {
        let removed: u32 = tombstones.iter().map(|word| word.count_ones()).sum();
        if any_beyond(tombstones, slots) {
            let what = format!("tombstones of slots beyond the {slots} used");
            self.find_in(FindingKind::OutOfBounds, Part::State, page, 40, what);
        } else if slots.checked_sub(removed) != Some(live) {
            let what = format!("{live} live postings; {slots} slots with {removed} tombstones");
            self.find_in(FindingKind::CountMismatch, Part::State, page, 28, what);
        }
    }

    fn extents(&mut self, page: u64, state: &[u8], shard: u32, slots: u32, version: u32) -> Vec<Entry> {
        let Parameters { slot_bytes, extent_slots, extent_pages, .. } = self.geometry;
        let mut extents = Vec::new();
        for index in 0..u64::from(slots).div_ceil(extent_slots) {
            let at = state_fixed(version) + 16 * index;
            let Some((first, sum)) = u64_at(state, at).zip(u32_at(state, at + 8)) else { break };
            if u32_at(state, at + 12) != Some(0) {
                self.find_in(
                    FindingKind::NonZeroReserved,
                    Part::State,
                    page,
                    at + 12,
                    format!("zeros of extent {index}"),
                );
            }
            let used = (u64::from(slots) - index * extent_slots).min(extent_slots);
            let what = What::Extent { shard, index: index as u32, used_slots: used as u32, crc: sum };
            // `used * slot_bytes` fits into 64 bits, because `dimension` is at most 2^24 and `used` at most 64. The
            // entry's length saturates.
            let bytes = self.take(first, extent_pages, used * slot_bytes, what);
            extents.push(Entry { page: first, len: u32::try_from(used * slot_bytes).unwrap_or(u32::MAX), crc: sum });
            if self.level == Level::Full
                && let Some(bytes) = bytes
                && crc(bytes) != sum
            {
                let text =
                    format!("extent {index} of shard {shard} has the sum {:08x}, its state {sum:08x}", crc(bytes));
                self.find_in(FindingKind::ChecksumMismatch, Part::Extent, first, 0, text);
            }
        }
        extents
    }

    /// Computes the offset of what follows the bloom filter in a state.
    fn means_at(&self, slots: u64, version: u32) -> u64 {
        let fixed = state_fixed(version) + 16 * slots.div_ceil(self.root.extent_slots) + 8 * slots.div_ceil(64);
        fixed + u64::from(self.root.bloom_bytes)
    }

    /// Reads the pages of tags of a shard of version 2 or 3. Tags of a page that is not stored are zeros.
    fn tags(&mut self, page: u64, state: &[u8], shard: u32, slots: u32) -> Vec<u64> {
        let pages = self.root.tag_pages(slots.into());
        let version = state_version(state).unwrap_or_default();
        let means = if version == 2 { 12 * u64::from(self.root.dimension) } else { 0 };
        let first = self.means_at(slots.into(), version) + means;
        let mut tags = Vec::new();
        for index in 0..pages {
            let Some(entry) = Entry::read(state, first + 16 * index) else { break };
            let per_page = self.root.page / 8;
            if entry.is_empty() {
                tags.extend((0..per_page).map(|_| 0));
                continue;
            }
            if u64::from(entry.len) != self.root.page {
                let what = format!("a page of tags of {} bytes", entry.len);
                self.find_in(FindingKind::WrongLength, Part::State, page, first + 16 * index, what);
            }
            let words = self.follow(entry, What::Tags { shard, index: index as u32 }).unwrap_or_default();
            tags.extend((0..per_page).map(|word| u64_at(words, 8 * word).unwrap_or_default()));
        }
        if version == 2 && !state.get((first + 16 * pages) as usize..).is_some_and(zeros) {
            self.find_in(FindingKind::NonZeroReserved, Part::State, page, first + 16 * pages, "the state's zeros");
        }
        if tags.iter().skip(slots as usize).any(|&tags| tags != 0) {
            self.find_in(FindingKind::OutOfBounds, Part::State, page, first, "tags of slots beyond those used");
        }
        tags.resize(slots as usize, 0);
        tags
    }

    /// Checks the postings of a shard: norms, padding, and the sum of the live vectors.
    fn check_postings(&mut self, shard: &ShardInfo, state: &[u8]) {
        let dimension = u64::from(self.root.dimension);
        let mut sums: Vec<(f64, f64)> = Vec::new();
        for slot in 0..shard.slots {
            let Some((at, bytes)) = shard.slot(self.root, self.data, slot) else { return };
            sums.resize(dimension as usize, (0.0, 0.0));
            self.check_slot(at, bytes);
            let live = !shard.is_removed(slot);
            for (sum, index) in sums.iter_mut().zip(0..) {
                let value = f64::from(self.root.component(bytes, index).unwrap_or_default());
                sum.0 += if live { value } else { 0.0 };
                sum.1 += value.abs();
            }
        }
        let slots = u64::from(shard.slots);
        let version = state_version(state).unwrap_or(1);
        let tags = if version == 3 { 16 * self.root.tag_pages(slots) } else { 0 };
        let first = self.means_at(slots, version) + tags;
        let one = has_one(state, version).then(|| part(state, first, self.root.vector_bytes()).unwrap_or_default());
        for (index, (sum, all)) in sums.into_iter().enumerate() {
            let at = first + 8 * index as u64;
            let stored = match one {
                Some(vector) => self.root.component(vector, index as u64).map(f64::from),
                None => f64_at(state, at),
            };
            let stored = stored.unwrap_or(f64::NAN);
            if stored.is_nan() || (stored - sum).abs() > SUM_TOLERANCE * all {
                let what = format!("component {index} of the live vectors' sum is {stored}, and they add up to {sum}");
                return self.find_in(FindingKind::SumMismatch, Part::State, shard.state.page, at, what);
            }
        }
    }

    fn check_slot(&mut self, at: u64, bytes: &[u8]) {
        let v = self.root.vector_bytes();
        let norm = f32_at(bytes, v + 24).unwrap_or(f32::NAN);
        let cosine = self.root.metric == Metric::Cosine;
        if cosine && !(norm.is_finite() && norm >= 0.0) || !cosine && norm != 1.0 {
            self.find(FindingKind::BadNorm, Part::Extent, at + v + 24, format!("a norm of {norm}"));
        }
        let component = |index| f64::from(self.root.component(bytes, index).unwrap_or(f32::NAN));
        let square: f64 = (0..u64::from(self.root.dimension)).map(|index| component(index).powi(2)).sum();
        if !square.is_finite() {
            self.find(FindingKind::BadNorm, Part::Extent, at, "a stored vector that is not finite");
        }
        // Each 8-bit component is off by up to half the scale.
        let scale = self.root.scale(bytes);
        let tolerance =
            NORM_TOLERANCE + scale.map_or(0.0, |scale| f64::from(scale) / 2.0 * f64::from(self.root.dimension).sqrt());
        let normal = square == 0.0 || (square.sqrt() - 1.0).abs() <= tolerance;
        if cosine && !normal {
            self.find(FindingKind::BadNorm, Part::Extent, at, format!("a stored vector of norm {}", square.sqrt()));
        }
        if let Some(scale) = scale {
            let vector: Vec<f32> = (0..u64::from(self.root.dimension)).map(|index| component(index) as f32).collect();
            let unused = bytes.get(self.root.dimension as usize..v as usize - 4);
            if encodings::scale(&vector) != scale || !unused.is_some_and(zeros) {
                self.find(
                    FindingKind::BadScale,
                    Part::Extent,
                    at + v - 4,
                    format!("a scale of {scale:e}, or a padding"),
                );
            }
        }
        if !bytes.get(v as usize + 28..).is_some_and(zeros) {
            self.find(FindingKind::NonZeroReserved, Part::Extent, at + v + 28, "a slot's zeros");
        }
    }

    fn totals(&mut self) {
        let mut ids = BTreeMap::new();
        for index in 0..self.tree.shards.len() {
            let Some(ShardInfo { id, number, live, slots, state, .. }) = self.tree.shards.get(index) else { break };
            let (id, number, page) = (*id, *number, state.page);
            self.tree.live += u64::from(*live);
            self.tree.removed += u64::from(slots.saturating_sub(*live));
            if let Some(other) = ids.insert(id, number) {
                let what = format!("shards {other} and {number} have one id");
                self.find_in(FindingKind::DuplicateId, Part::State, page, 8, what);
            }
        }
        // Counts of an incomplete tree prove nothing, so the totals are compared only without findings.
        if !self.findings.is_empty() {
            return;
        }
        let (shards, tree) = (self.tree.shards.len() as u64, &self.tree);
        let counts = [
            ("shards in use", u64::from(self.root.shards), shards),
            ("live postings", self.root.live, tree.live),
            ("removed postings", self.root.removed, tree.removed),
        ];
        for (name, said, counted) in counts {
            if said != counted {
                self.find(
                    FindingKind::CountMismatch,
                    Part::Root,
                    0,
                    format!("{name}: the root says {said}, there are {counted}"),
                );
            }
        }
    }
}
