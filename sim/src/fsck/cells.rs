//! Walks the cells: head, table and groups.

use super::bytes::{f32_at, part, u32_at, u128_at, zeros};
use super::tree::Walk;
use super::{Entry, FindingKind, Level, Part, What};

/// Size in bytes of the table before its groups, without the centre.
const FIXED: u64 = 28 + 6 * 8 * 28 + 36;
const PER_GROUP: u64 = 36;
/// Size in bytes of a group's header; each cell's entry follows with `PER_CELL` bytes.
const GROUP: u64 = 16;
const PER_CELL: u64 = 20;
const PER_SHARD: u64 = 24;

/// Returns the length of a table before its groups: the fixed fields, the centre, and the principal axes.
fn before_groups(dimension: u64) -> u64 {
    FIXED + 4 * dimension * (1 + (dimension / 4).min(16))
}

/// Table of the cells with its counts.
struct Table {
    bytes: Vec<u8>,
    words: u64,
    /// Number of components of the centre.
    dimension: u64,
    groups: u64,
    shards: u64,
    /// Number of unfinished groups: groups of an unfinished build, stored after the others. They hold no codes.
    unfinished: u64,
    /// First reference and number of covered slots of each covered shard.
    slots: Vec<(u64, u64)>,
}

/// Cell group as described by the table.
struct Group {
    entry: Entry,
    cells: u64,
    codes: u64,
}

/// Computes the size in bytes of a block of eight codes.
fn block_bytes(words: u64) -> u64 {
    64 * (words + 1)
}

impl Group {
    fn read(table: &[u8], dimension: u64, index: u64) -> Option<Self> {
        let at = before_groups(dimension) + PER_GROUP * index;
        let count = |at| u32_at(table, at).map(u64::from);
        Some(Self { entry: Entry::read(table, at)?, cells: count(at + 28)?, codes: count(at + 32)? })
    }

    /// Computes the offsets within the group of its centroids, of its codes, and of its end.
    fn offsets(&self, words: u64) -> (u64, u64, u64) {
        let centroids = (GROUP + PER_CELL * self.cells).next_multiple_of(64);
        let codes = centroids + 64 * words * self.cells;
        (centroids, codes, codes + self.codes.div_ceil(8) * block_bytes(words))
    }
}

impl Walk<'_> {
    /// Walks the cells that the root names.
    pub(super) fn cells(&mut self) {
        let head = self.root.cells;
        if head.is_empty() {
            return;
        }
        let Some(bytes) = self.follow(head, What::CellsHead) else { return };
        if !bytes.starts_with(b"SHCH") {
            return self.find_in(FindingKind::BadMagic, Part::Cells, head.page, 0, "no head of cells");
        }
        let parts = u64::from(u32_at(bytes, 4).unwrap_or(0));
        if parts == 0 || 8 + 16 * parts != bytes.len() as u64 {
            let what = format!("a head of {} bytes for {parts} parts", bytes.len());
            return self.find_in(FindingKind::WrongLength, Part::Cells, head.page, 4, what);
        }
        let mut whole = Vec::new();
        for index in 0..parts {
            let Some(part) = Entry::read(bytes, 8 + 16 * index) else { return };
            let Some(bytes) = self.follow(part, What::CellsPart) else { return };
            whole.extend_from_slice(bytes);
        }
        if let Some(table) = self.table(head.page, whole) {
            for index in 0..table.groups + table.unfinished {
                let Some(group) = Group::read(&table.bytes, table.dimension, index) else { return };
                self.group(&table, index, &group);
            }
        }
    }

    fn table(&mut self, page: u64, bytes: Vec<u8>) -> Option<Table> {
        if !bytes.starts_with(b"SHC7") {
            self.find_in(FindingKind::BadMagic, Part::Cells, page, 0, "the parts are no table of cells");
            return None;
        }
        let count = |at| u32_at(&bytes, at).map_or(0, u64::from);
        let (words, groups, shards) = (count(4), count(8), count(12));
        let (unfinished, rounds) = (count(16), count(20));
        if words != u64::from(self.root.dimension).div_ceil(64) {
            let what = format!("{words} words a code, for {} numbers a vector", self.root.dimension);
            self.find_in(FindingKind::CountMismatch, Part::Cells, page, 0, what);
            return None;
        }
        let dimension = count(24);
        if dimension != u64::from(self.root.dimension) {
            let what = format!("a centre of {dimension} numbers, for {} a vector", self.root.dimension);
            self.find_in(FindingKind::CountMismatch, Part::Cells, page, 24, what);
            return None;
        }
        if groups == 0 && (unfinished == 0 || shards > 0) || (unfinished == 0) != (rounds == 0) {
            let what = format!("{groups} groups for {shards} shards, {unfinished} unfinished after {rounds} rounds");
            self.find_in(FindingKind::CountMismatch, Part::Cells, page, 8, what);
            return None;
        }
        let pivots = 64 * words * groups.next_multiple_of(16);
        let fixed = before_groups(dimension) + PER_GROUP * (groups + unfinished) + PER_SHARD * shards + pivots;
        // A table that is too short has fewer groups than its header states. The missing groups add nothing to the sum,
        // but the length is wrong in any case.
        let cells =
            (0..groups).map_while(|index| Group::read(&bytes, dimension, index)).map(|group| group.cells.div_ceil(8));
        let wanted = fixed + cells.sum::<u64>() * block_bytes(words);
        if wanted != bytes.len() as u64 {
            let what = format!("a table of {} bytes instead of {wanted}", bytes.len());
            self.find_in(FindingKind::WrongLength, Part::Cells, page, 0, what);
            return None;
        }
        let axes = FIXED + 4 * dimension..before_groups(dimension);
        let broken = axes.step_by(4).find(|&at| f32_at(&bytes, at).is_none_or(|x| x.is_nan() || x.abs() > 1.001));
        if let Some(at) = broken {
            let what = format!("a component of an axis is larger than 1, at {at} of the table");
            self.find_in(FindingKind::OutOfBounds, Part::Cells, page, 0, what);
        }
        let mut table = Table { bytes, words, dimension, groups, shards, unfinished, slots: Vec::new() };
        self.covered(page, &mut table);
        Some(table)
    }

    /// Checks the shards that the table covers and records their references.
    fn covered(&mut self, page: u64, table: &mut Table) {
        let (mut last, mut first) = (None, 0u64);
        for index in 0..table.shards {
            let at = before_groups(table.dimension) + PER_GROUP * (table.groups + table.unfinished) + PER_SHARD * index;
            let Some((number, slots)) = u32_at(&table.bytes, at).zip(u32_at(&table.bytes, at + 4)) else { return };
            if last.is_some_and(|last| last >= number) {
                let what = format!("covered shard {number} follows {last:?}");
                self.find_in(FindingKind::NotAscending, Part::Cells, page, 0, what);
            }
            last = Some(number);
            // If the shard now has another id, it is another shard, and its used slots set no bound.
            let shard = self.tree.shards.binary_search_by_key(&number, |shard| shard.number);
            let shard = shard.ok().and_then(|found| self.tree.shards.get(found));
            let used = shard.filter(|shard| u128_at(&table.bytes, at + 8) == Some(shard.id)).map(|shard| shard.slots);
            if slots > self.root.shard_size || used.is_some_and(|used| slots > used) {
                let what = format!("{slots} slots of shard {number} are covered, {used:?} are used");
                self.find_in(FindingKind::OutOfBounds, Part::Cells, page, 0, what);
            }
            table.slots.push((first, u64::from(slots)));
            first = first.saturating_add(u64::from(slots).next_multiple_of(64));
        }
    }

    fn group(&mut self, table: &Table, index: u64, group: &Group) {
        let (.., end) = group.offsets(table.words);
        if index >= table.groups && group.codes > 0 {
            let what = format!("group {index} is unfinished, and has {} codes", group.codes);
            self.find_in(FindingKind::CountMismatch, Part::Cells, group.entry.page, 8, what);
        }
        if end != u64::from(group.entry.len) {
            let what = format!("group {index} of {} bytes instead of {end}", group.entry.len);
            self.find_in(FindingKind::WrongLength, Part::Cells, group.entry.page, 0, what);
        }
        if self.level == Level::Metadata {
            let (pages, len) = (self.root.pages_of(group.entry.len.into()), group.entry.len.into());
            self.take(group.entry.page, pages, len, What::CellsGroup);
        } else if let Some(bytes) = self.follow(group.entry, What::CellsGroup)
            && end == bytes.len() as u64
        {
            self.inside_group(table, group, bytes);
        }
    }

    /// Checks the contents of a group whose length is right.
    fn inside_group(&mut self, table: &Table, group: &Group, bytes: &[u8]) {
        let page = group.entry.page;
        let header = [group.cells, group.codes, table.words];
        let said = [4, 8, 12].map(|at| u32_at(bytes, at).map_or(0, u64::from));
        if !bytes.starts_with(b"SHCG") {
            return self.find_in(FindingKind::BadMagic, Part::Cells, page, 0, "no group's magic");
        }
        if header != said {
            let what = format!("cells, codes, words: the table says {header:?}, the group {said:?}");
            return self.find_in(FindingKind::WrongParent, Part::Cells, page, 4, what);
        }
        let mut codes = 0;
        for at in (0..group.cells).map(|cell| GROUP + PER_CELL * cell) {
            let numbers = u32_at(bytes, at + 12).zip(u32_at(bytes, at + 16));
            let Some((first, count)) = numbers.map(|(first, count)| (u64::from(first), u64::from(count))) else {
                return;
            };
            let finite = [0, 4, 8].iter().all(|i| f32_at(bytes, at + i).is_some_and(f32::is_finite));
            if first != codes || !finite {
                let what = format!("a cell's codes start at {first}, those before it end at {codes}");
                return self.find_in(FindingKind::CountMismatch, Part::Cells, page, at, what);
            }
            codes += count;
        }
        if codes != group.codes {
            let what = format!("the cells have {codes} codes, the group {}", group.codes);
            self.find_in(FindingKind::CountMismatch, Part::Cells, page, 8, what);
        }
        let (centroids, ..) = group.offsets(table.words);
        let end = GROUP + PER_CELL * group.cells;
        if !part(bytes, end, centroids - end).is_some_and(zeros) {
            self.find_in(FindingKind::NonZeroReserved, Part::Cells, page, end, "zeros of a group");
        }
        self.references(table, group, bytes);
    }

    /// Checks that the references of a group's codes are covered slots.
    fn references(&mut self, table: &Table, group: &Group, bytes: &[u8]) {
        let (_, codes, _) = group.offsets(table.words);
        for code in 0..group.codes {
            let block = codes + code / 8 * block_bytes(table.words);
            let at = block + 64 * table.words + 32 + 4 * (code % 8);
            let Some(reference) = u32_at(bytes, at).map(u64::from) else { return };
            let shard = table.slots.partition_point(|(first, _)| *first <= reference);
            let shard = shard.checked_sub(1).and_then(|index| table.slots.get(index));
            if shard.is_none_or(|(first, slots)| reference - first >= *slots) {
                let what = format!("code {code} is of slot {reference}, which no shard has");
                return self.find_in(FindingKind::OutOfBounds, Part::Cells, group.entry.page, at, what);
            }
        }
    }
}
