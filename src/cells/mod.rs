//! Cells: inverted lists of codes that a search scans instead of vectors.
//!
//! Each posting of a covered shard has a code in the cell with the nearest centroid. It has a second code in a cell
//! that SOAR (Sun et al., NeurIPS 2023) selects among the near ones: a cell whose residual is parallel to the first is
//! penalised. Cells span the whole index, not one shard. About 32 cells with near centroids form a cell group, which is
//! stored and checked together.
//!
//! Invariants:
//! 1. Cells are derived data and are built as a whole: they describe the slots that each covered shard had at the
//!    build. Later slots and later shards are searched separately. Later removals are looked up in the shard.
//! 2. A covered shard is identified by number and id. Codes of a shard that no longer exists are ignored.
//! 3. The bytes of a group are checked before their first use. If they are damaged, searches don't use the cells until
//!    new ones are built.

mod build;
mod effort;
mod groups;
mod layout;
mod router;

use std::{
    ops::{Deref, Range},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

pub use build::{build, held_out};
pub use effort::{effort, log2, quietness};
pub use layout::BuiltCells;
pub use router::{CodeBlocks, Router, RoutingScratch};

use crate::{
    codes::{CoordinateFrame, Factors},
    error::ShardexError,
    failpoint::holds,
    format::{
        FormatError,
        calibration::{Calibration, SearchEffort},
        cells::{self, CellEntry, CellTable, CoveredShard, GroupEntry, GroupLayout},
        crc32c,
    },
    lease::Allocation,
};

/// Bytes of a cell group, with their layout and checksum.
#[derive(Debug)]
pub struct Group<B> {
    bytes: B,
    layout: GroupLayout,
    crc: u32,
    checked: AtomicBool,
}

impl<B> Group<B> {
    /// Checks that `bytes` match the group's checksum and layout, and that all codes refer to postings below
    /// `postings`.
    fn check(&self, bytes: &[u8], postings: u32) -> std::result::Result<(), FormatError> {
        let found = crc32c(0, bytes);
        if !holds!(Checksum, found == self.crc) {
            return Err(FormatError::new(0, format!("checksum {:08x} expected, {found:08x} found", self.crc)));
        }
        cells::check_group(bytes, self.layout, postings)
    }
}

/// View of a cell group whose bytes were checked.
#[derive(Clone, Copy, Debug)]
pub struct GroupView<'a> {
    bytes: &'a [u8],
    layout: GroupLayout,
}

impl<'a> GroupView<'a> {
    /// Returns the number of cells in the group.
    #[must_use]
    pub fn cells(&self) -> usize {
        self.layout.cells
    }

    /// Returns the entry of cell `i`: the values stored beside its centroid's bytes, and its range of codes.
    #[must_use]
    pub fn cell(&self, i: usize) -> CellEntry {
        cells::cell(self.bytes, i)
    }

    /// Returns the bytes of the centroid of cell `i`, each plus 128.
    #[must_use]
    pub fn centroid(&self, i: usize) -> &'a [u8] {
        let len = self.layout.words * 64;
        &self.bytes[self.layout.centroids()][i * len..(i + 1) * len]
    }

    /// Returns the components of the centroid of cell `i`, decoded from its bytes.
    pub fn centroid_values(&self, i: usize) -> impl Iterator<Item = f32> + use<'a> {
        self.cell(i).centroid.values(self.centroid(i))
    }

    /// Returns code `i` of the group: the number of its posting, its signs and its factors.
    #[must_use]
    pub fn code(&self, i: usize) -> (u32, Vec<u64>, Factors) {
        router::read_code(self.blocks(), self.layout.words, i)
    }

    /// Returns the number of the posting that code `i` of the group encodes.
    #[must_use]
    pub fn reference(&self, i: usize) -> u32 {
        router::reference(self.blocks(), self.layout.words, i)
    }

    /// Returns the blocks of codes of the group.
    #[must_use]
    pub fn blocks(&self) -> &'a [u8] {
        &self.bytes[self.layout.blocks()]
    }
}

/// All cells of an index, as built at one time.
#[derive(Debug)]
pub struct CellIndex<B> {
    table: CellTable,
    frame: Arc<CoordinateFrame>,
    router: Router,
    /// Declared before `allocations`, so that the bytes are dropped before the allocations that hold them.
    groups: Vec<Group<B>>,
    /// Groups of centroids of a cancelled build, from which the next build starts.
    unfinished: Vec<Group<B>>,
    /// Number of the first posting of each covered shard.
    firsts: Vec<u32>,
    /// Index into the covered shards for each 64 posting numbers.
    by_posting: Vec<u32>,
    /// Allocations of the groups, the unfinished groups, the parts of the table and its head, in this order. Empty for
    /// cells that are not stored.
    allocations: Vec<Arc<Allocation>>,
    damaged: AtomicBool,
}

impl<B: Deref<Target = [u8]>> CellIndex<B> {
    /// Assembles cells from a table and the bytes of its groups, followed by those of its unfinished groups. The centre
    /// of `frame` must be the centre of the table.
    #[must_use]
    pub fn new(
        mut table: CellTable,
        frame: Arc<CoordinateFrame>,
        bytes: Vec<B>,
        allocations: Vec<Arc<Allocation>>,
    ) -> Self {
        let (mut firsts, mut by_posting) = (Vec::new(), Vec::new());
        for (i, shard) in table.shards.iter().enumerate() {
            firsts.push(by_posting.len() as u32 * 64);
            by_posting.resize(by_posting.len() + shard.slots.div_ceil(64) as usize, i as u32);
        }
        let mut bytes = bytes.into_iter();
        let mut groups_of = |entries: &[GroupEntry]| -> Vec<Group<B>> {
            let group = |(group, bytes): (&GroupEntry, B)| Group {
                bytes,
                layout: GroupLayout { cells: group.cells as usize, codes: group.codes as usize, words: table.words },
                crc: group.pointer.crc,
                checked: AtomicBool::new(false),
            };
            entries.iter().zip(bytes.by_ref()).map(group).collect()
        };
        let (groups, unfinished) = (groups_of(&table.groups), groups_of(&table.unfinished));
        let stored = table.groups.iter().map(|group| group.pivot).collect();
        let counts = table.groups.iter().map(|group| group.cells).collect();
        let pivots = std::mem::take(&mut table.pivots);
        let router = Router::new(table.words, pivots, stored, counts, &std::mem::take(&mut table.centroids));
        Self {
            table,
            frame,
            router,
            groups,
            unfinished,
            firsts,
            by_posting,
            allocations,
            damaged: AtomicBool::new(false),
        }
    }

    /// Returns the stored table without the pivots and the codes of centroids, which the router holds.
    #[must_use]
    pub fn table(&self) -> &CellTable {
        &self.table
    }

    /// Returns the whole table, including the pivots and the codes of centroids that the router holds.
    #[must_use]
    pub fn whole_table(&self) -> CellTable {
        CellTable { pivots: self.router.pivots.clone(), centroids: self.router.codes.to_vec(), ..self.table.clone() }
    }

    /// Returns the router, which finds the near cells.
    #[must_use]
    pub fn router(&self) -> &Router {
        &self.router
    }

    /// Returns the coordinate frame of the codes and centroids.
    #[must_use]
    pub fn frame(&self) -> &Arc<CoordinateFrame> {
        &self.frame
    }

    /// Returns the allocations of the groups, the unfinished groups, the parts of the table and its head, in this
    /// order.
    #[must_use]
    pub fn allocations(&self) -> &[Arc<Allocation>] {
        &self.allocations
    }

    /// Reports whether damage was found in a group that searches use.
    #[must_use]
    pub fn is_damaged(&self) -> bool {
        self.damaged.load(Ordering::Relaxed)
    }

    /// Reports whether there are cells to search. If not, there are only the centroids of a cancelled build.
    #[must_use]
    pub fn is_searchable(&self) -> bool {
        !self.groups.is_empty()
    }

    /// Reports whether there are centroids of a cancelled build.
    #[must_use]
    pub fn has_unfinished(&self) -> bool {
        !self.unfinished.is_empty()
    }

    /// Returns the number of centroids of a cancelled build.
    #[must_use]
    pub fn unfinished_cells(&self) -> u64 {
        self.table.unfinished.iter().map(|group| u64::from(group.cells)).sum()
    }

    /// Iterates over the groups of centroids of a cancelled build, and checks their bytes. Searches don't use these
    /// groups, so damage in them doesn't mark the cells as damaged.
    pub fn unfinished(&self) -> impl Iterator<Item = std::result::Result<GroupView<'_>, FormatError>> {
        self.unfinished.iter().map(|group| {
            group.check(&group.bytes, self.postings())?;
            Ok(GroupView { bytes: &group.bytes, layout: group.layout })
        })
    }

    /// Returns the number of cell groups.
    #[must_use]
    pub fn len(&self) -> usize {
        self.groups.len()
    }

    /// Reports whether there is no cell group.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.groups.is_empty()
    }

    /// Returns the number of codes in all cells.
    #[must_use]
    pub fn codes(&self) -> u64 {
        self.table.groups.iter().map(|group| u64::from(group.codes)).sum()
    }

    /// Returns the number of cells in all groups.
    #[must_use]
    pub fn cells(&self) -> u64 {
        self.table.groups.iter().map(|group| u64::from(group.cells)).sum()
    }

    /// Returns the bytes of the groups and of the structures in memory: the router, the covered shards and the map from
    /// posting numbers to shards.
    #[must_use]
    pub fn memory(&self) -> usize {
        let groups: usize = self.groups.iter().map(|group| group.layout.len()).sum();
        groups + self.router.memory() + self.table.shards.len() * 32 + self.by_posting.len() * 4
    }

    /// Returns group `i`. The first use of a group checks its bytes, and marks the cells as damaged if the check fails.
    ///
    /// # Errors
    /// Returns `FormatError` if the bytes are damaged. Its offset counts from the start of the group; the caller adds
    /// the file and the place of the group.
    pub fn group(&self, i: usize) -> std::result::Result<GroupView<'_>, FormatError> {
        let group = &self.groups[i];
        // Relaxed: the flag publishes no data. It records only that these bytes, which never change, passed the check.
        if !group.checked.load(Ordering::Relaxed) {
            if let Err(error) = self.check_bytes(i, &group.bytes) {
                self.damaged.store(true, Ordering::Relaxed);
                return Err(error);
            }
            group.checked.store(true, Ordering::Relaxed);
        }
        Ok(GroupView { bytes: &group.bytes, layout: group.layout })
    }

    /// Checks bytes against the checksum and the layout of group `i`. Unfinished groups are numbered after the others.
    ///
    /// # Errors
    /// Returns `FormatError` if the bytes are not those of the group.
    pub fn check_bytes(&self, i: usize, bytes: &[u8]) -> std::result::Result<(), FormatError> {
        let group = self.groups.get(i).unwrap_or_else(|| &self.unfinished[i - self.groups.len()]);
        group.check(bytes, self.postings())
    }

    /// Returns a view of bytes that passed [`check_bytes`](Self::check_bytes) for group `i`, which must not be
    /// unfinished.
    #[must_use]
    pub fn view<'a>(&self, i: usize, bytes: &'a [u8]) -> GroupView<'a> {
        GroupView { bytes, layout: self.groups[i].layout }
    }

    /// Returns the number of posting numbers, including the unused ones between shards.
    #[must_use]
    pub fn postings(&self) -> u32 {
        self.by_posting.len() as u32 * 64
    }

    /// Returns the covered shard and the slot of a posting number, or `None` if the number is out of range. An unused
    /// number between shards gives a slot past the covered slots of the shard before it.
    #[must_use]
    pub fn posting(&self, reference: u32) -> Option<(&CoveredShard, u32)> {
        let shard = *self.by_posting.get(reference as usize / 64)? as usize;
        Some((&self.table.shards[shard], reference - self.firsts[shard]))
    }

    /// Returns the number of the posting in slot `slot` of the table's shard `i`.
    #[must_use]
    pub fn reference(&self, i: usize, slot: u32) -> u32 {
        self.firsts[i] + slot
    }

    /// Returns the covered shard under a number, and its index in the table.
    #[must_use]
    pub fn covered(&self, number: u32) -> Option<(usize, &CoveredShard)> {
        let i = self.table.shards.binary_search_by_key(&number, |shard| shard.number).ok()?;
        Some((i, &self.table.shards[i]))
    }

    /// Returns the calibration of searches by these cells.
    #[must_use]
    pub fn calibration(&self) -> &Calibration {
        &self.table.calibration
    }

    /// Returns the search effort for the target recall `recall` at `k` results.
    #[must_use]
    pub fn effort(&self, k: usize, recall: f32) -> SearchEffort {
        effort(&self.table.calibration.efforts, k, recall)
    }
}

/// Distance and number in one integer, ordered by distance and then by number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct RankedId(u64);

impl RankedId {
    /// Creates a ranked id. `distance` must not be NaN.
    #[must_use]
    pub fn new(distance: f32, number: u32) -> Self {
        let bits = distance.to_bits();
        let ordered = if bits >> 31 == 1 { !bits } else { bits | 1 << 31 };
        Self(u64::from(ordered) << 32 | u64::from(number))
    }

    /// Returns the distance.
    #[must_use]
    pub fn distance(self) -> f32 {
        let ordered = (self.0 >> 32) as u32;
        f32::from_bits(if ordered >> 31 == 1 { ordered & !(1 << 31) } else { !ordered })
    }

    /// Returns the number.
    #[must_use]
    pub fn number(self) -> usize {
        self.0 as u32 as usize
    }
}

/// Bytes in memory, aligned to 64 bytes like the bytes of a group in the file.
#[derive(Clone, Debug)]
pub struct AlignedBytes {
    blocks: Arc<[Line]>,
    range: Range<usize>,
}

#[derive(Clone, Copy, Debug, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C, align(64))]
struct Line([u8; 64]);

impl AlignedBytes {
    /// Copies `bytes` into aligned memory.
    #[must_use]
    pub fn new(bytes: &[u8]) -> Self {
        let mut blocks = vec![Line([0; 64]); bytes.len().div_ceil(64)];
        bytemuck::cast_slice_mut(&mut blocks)[..bytes.len()].copy_from_slice(bytes);
        Self { blocks: blocks.into(), range: 0..bytes.len() }
    }
}

impl Deref for AlignedBytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &bytemuck::cast_slice(&self.blocks)[self.range.clone()]
    }
}

/// Creates the `Corruption` error of damaged cells. `offset` is the place of the damaged bytes in the file, to which
/// the offset of `what` is added.
#[must_use]
pub fn damaged(file: std::path::PathBuf, offset: u64, what: &FormatError) -> ShardexError {
    ShardexError::Corruption { file, offset: offset + what.at, what: format!("cells: {what}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn near_ones_come_first_whatever_the_sign() {
        let distances = [f32::NEG_INFINITY, -2.0, -1.5, -0.0, 0.0, 1e-30, 3.0, f32::INFINITY];
        let near: Vec<RankedId> = distances.iter().map(|&d| RankedId::new(d, 7)).collect();
        assert!(near.is_sorted());
        for (near, distance) in near.iter().zip(distances) {
            assert_eq!((near.distance().to_bits(), near.number()), (distance.to_bits(), 7));
        }
        assert!(RankedId::new(1.0, 2) < RankedId::new(1.0, 3));
    }
}
