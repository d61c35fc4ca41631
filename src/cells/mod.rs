//! The cells: small groups of codes that a search scans instead of vectors.
//!
//! Each posting of the shards that the table covers has its code in the cell with the nearest centroid, and a second one
//! in the cell that SOAR picks (Sun et al., NeurIPS 2023): of the near ones the one whose residual is least in line with
//! the first. Cells are of the whole index, not of a shard; some 32 of them with near centroids make a group, which is
//! read and checked as one.
//!
//! Invariants:
//! 1. Cells are derived, and made as a whole: they say of a shard what its first slots held when they were made. What a
//!    shard got later, and shards made later, are scanned besides; what was removed later is looked up in the shard.
//! 2. A shard is known by number *and* name: codes of one that is gone are of nobody.
//! 3. A group's bytes are checked before they are used for the first time. If they are damaged, searches do without cells
//!    until there are new ones.

mod build;
mod effort;
mod grouped;
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
pub use layout::Built;
pub use router::{Asked, CodeBlocks, Router};

use crate::{
    codes::{Factors, Frame},
    error::ShardexError,
    format::{
        FormatError,
        cells::{self, Calibration, CellEntry, CellTable, Covered, Effort, GroupEntry, GroupLayout},
        crc32c,
    },
    id::ShardId,
    lease::Place,
    site::{self, Kind},
};

/// Bytes of a group and where they lie.
#[derive(Debug)]
pub struct Group<B> {
    bytes: B,
    layout: GroupLayout,
    crc: u32,
    checked: AtomicBool,
}

impl<B> Group<B> {
    /// Checks bytes that should be its own, whose codes are of postings below `postings`.
    fn check(&self, bytes: &[u8], postings: u32) -> std::result::Result<(), FormatError> {
        let found = crc32c(0, bytes);
        if !site::holds(Kind::Checksum, found == self.crc) {
            return Err(FormatError::new(0, format!("checksum {:08x} expected, {found:08x} found", self.crc)));
        }
        cells::check_group(bytes, self.layout, postings)
    }
}

/// A group whose bytes were checked.
#[derive(Clone, Copy, Debug)]
pub struct GroupView<'a> {
    bytes: &'a [u8],
    layout: GroupLayout,
}

impl<'a> GroupView<'a> {
    /// Cells in it.
    #[must_use]
    pub fn cells(&self) -> usize {
        self.layout.cells
    }

    /// What it says of a cell.
    #[must_use]
    pub fn cell(&self, i: usize) -> CellEntry {
        cells::cell(self.bytes, i)
    }

    /// The bytes of a cell's centroid, each plus 128.
    #[must_use]
    pub fn centroid(&self, i: usize) -> &'a [u8] {
        let len = self.layout.words * 64;
        &self.bytes[self.layout.centroids()][i * len..(i + 1) * len]
    }

    /// The numbers that these bytes stand for.
    pub fn centroid_values(&self, i: usize) -> impl Iterator<Item = f32> + use<'a> {
        layout::values(self.centroid(i), self.cell(i).centroid)
    }

    /// Whom a code is of, its signs, and its factors.
    #[must_use]
    pub fn code(&self, i: usize) -> (u32, Vec<u64>, Factors) {
        router::read_code(self.blocks(), self.layout.words, i)
    }

    /// Whom a code is of.
    #[must_use]
    pub fn reference(&self, i: usize) -> u32 {
        router::reference(self.blocks(), self.layout.words, i)
    }

    /// The codes.
    #[must_use]
    pub fn blocks(&self) -> &'a [u8] {
        &self.bytes[self.layout.blocks()]
    }
}

/// All cells of an index, as they were made at one time.
#[derive(Debug)]
pub struct CellIndex<B> {
    table: CellTable,
    frame: Arc<Frame>,
    router: Router,
    /// Before `places`: bytes are given back before their place is.
    groups: Vec<Group<B>>,
    /// The centroids that a build had reached, for the next one to go on from.
    ahead: Vec<Group<B>>,
    /// For each shard of the table, the number of its first posting.
    firsts: Vec<u32>,
    /// For each 64 postings, the shard of the table that they are of.
    by_posting: Vec<u32>,
    /// The places of groups, those ahead, parts and head, in this order; none for cells that are not stored.
    places: Vec<Arc<Place>>,
    damaged: AtomicBool,
}

impl<B: Deref<Target = [u8]>> CellIndex<B> {
    /// Puts cells together: `bytes` are those of the table's groups, and of the ones ahead; the frame's centre is the table's.
    #[must_use]
    pub fn new(mut table: CellTable, frame: Arc<Frame>, bytes: Vec<B>, places: Vec<Arc<Place>>) -> Self {
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
                crc: group.place.crc,
                checked: AtomicBool::new(false),
            };
            entries.iter().zip(bytes.by_ref()).map(group).collect()
        };
        let (groups, ahead) = (groups_of(&table.groups), groups_of(&table.ahead));
        let stored = table.groups.iter().map(|group| group.pivot).collect();
        let counts = table.groups.iter().map(|group| group.cells).collect();
        let pivots = std::mem::take(&mut table.pivots);
        let router = Router::new(table.words, pivots, stored, counts, &std::mem::take(&mut table.centroids));
        Self { table, frame, router, groups, ahead, firsts, by_posting, places, damaged: AtomicBool::new(false) }
    }

    /// What is stored of it besides the groups; what the router holds is left out.
    #[must_use]
    pub fn table(&self) -> &CellTable {
        &self.table
    }

    /// The same with what the router holds.
    #[must_use]
    pub fn whole_table(&self) -> CellTable {
        CellTable { pivots: self.router.pivots.clone(), centroids: self.router.codes.to_vec(), ..self.table.clone() }
    }

    /// Finds the cells that are near.
    #[must_use]
    pub fn router(&self) -> &Router {
        &self.router
    }

    /// The frame that codes and centroids are in.
    #[must_use]
    pub fn frame(&self) -> &Arc<Frame> {
        &self.frame
    }

    /// Where it lies.
    #[must_use]
    pub fn places(&self) -> &[Arc<Place>] {
        &self.places
    }

    /// Whether a group was found damaged.
    #[must_use]
    pub fn is_damaged(&self) -> bool {
        self.damaged.load(Ordering::Relaxed)
    }

    /// Whether there are cells to search by. If not, there are only centroids that a build had reached.
    #[must_use]
    pub fn is_searchable(&self) -> bool {
        !self.groups.is_empty()
    }

    /// Whether there are centroids that a build had reached when it was given up.
    #[must_use]
    pub fn has_ahead(&self) -> bool {
        !self.ahead.is_empty()
    }

    /// How many.
    #[must_use]
    pub fn cells_ahead(&self) -> u64 {
        self.table.ahead.iter().map(|group| u64::from(group.cells)).sum()
    }

    /// The groups that hold them, their bytes checked. No search depends on them, so cells are not damaged if they are.
    pub fn ahead(&self) -> impl Iterator<Item = std::result::Result<GroupView<'_>, FormatError>> {
        self.ahead.iter().map(|group| {
            group.check(&group.bytes, self.postings())?;
            Ok(GroupView { bytes: &group.bytes, layout: group.layout })
        })
    }

    /// Groups.
    #[must_use]
    pub fn len(&self) -> usize {
        self.groups.len()
    }

    /// Whether there is no group.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.groups.is_empty()
    }

    /// Codes of all cells.
    #[must_use]
    pub fn codes(&self) -> u64 {
        self.table.groups.iter().map(|group| u64::from(group.codes)).sum()
    }

    /// Cells of all groups.
    #[must_use]
    pub fn cells(&self) -> u64 {
        self.table.groups.iter().map(|group| u64::from(group.cells)).sum()
    }

    /// Bytes of the groups, and of what is in memory besides.
    #[must_use]
    pub fn memory(&self) -> usize {
        let groups: usize = self.groups.iter().map(|group| group.layout.len()).sum();
        groups + self.router.memory() + self.table.shards.len() * 32 + self.by_posting.len() * 4
    }

    /// Group `i`, its bytes checked at the first use.
    ///
    /// # Errors
    /// What is wrong; the file and the offset are the caller's to name.
    pub fn group(&self, i: usize) -> std::result::Result<GroupView<'_>, FormatError> {
        let group = &self.groups[i];
        // Relaxed: the flag says only that these bytes, which never change, are what they should be.
        if !group.checked.load(Ordering::Relaxed) {
            if let Err(error) = self.check_bytes(i, &group.bytes) {
                self.damaged.store(true, Ordering::Relaxed);
                return Err(error);
            }
            group.checked.store(true, Ordering::Relaxed);
        }
        Ok(GroupView { bytes: &group.bytes, layout: group.layout })
    }

    /// Checks bytes that should be those of group `i`, the ones ahead being counted on from the others.
    ///
    /// # Errors
    /// Names what is wrong.
    pub fn check_bytes(&self, i: usize, bytes: &[u8]) -> std::result::Result<(), FormatError> {
        let group = self.groups.get(i).unwrap_or_else(|| &self.ahead[i - self.groups.len()]);
        group.check(bytes, self.postings())
    }

    /// A view of bytes that [`check_bytes`](Self::check_bytes) found to be those of group `i`.
    #[must_use]
    pub fn view<'a>(&self, i: usize, bytes: &'a [u8]) -> GroupView<'a> {
        GroupView { bytes, layout: self.groups[i].layout }
    }

    /// Postings that are numbered, those between shards too.
    #[must_use]
    pub fn postings(&self) -> u32 {
        self.by_posting.len() as u32 * 64
    }

    /// The shard and the slot of a posting; `None` if no posting has that number.
    #[must_use]
    pub fn posting(&self, reference: u32) -> Option<(&Covered, u32)> {
        let shard = *self.by_posting.get(reference as usize / 64)? as usize;
        Some((&self.table.shards[shard], reference - self.firsts[shard]))
    }

    /// The number of a posting in a slot of the table's shard `i`.
    #[must_use]
    pub fn reference(&self, i: usize, slot: u32) -> u32 {
        self.firsts[i] + slot
    }

    /// The number of a posting in a slot of a shard, if it is covered.
    #[must_use]
    pub fn reference_of(&self, (number, id): (u32, ShardId), slot: u32) -> Option<u32> {
        let i = self.table.shards.binary_search_by_key(&number, |shard| shard.number).ok()?;
        let shard = &self.table.shards[i];
        (shard.id == id && slot < shard.slots).then(|| self.reference(i, slot))
    }

    /// How many slots of a shard are covered.
    #[must_use]
    pub fn covered(&self, number: u32, id: ShardId) -> u32 {
        match self.table.shards.binary_search_by_key(&number, |shard| shard.number) {
            Ok(i) if self.table.shards[i].id == id => self.table.shards[i].slots,
            _ => 0,
        }
    }

    /// What was found out about searches by them.
    #[must_use]
    pub fn calibration(&self) -> &Calibration {
        &self.table.calibration
    }

    /// What it takes to find a share of the `k` nearest.
    #[must_use]
    pub fn effort(&self, k: usize, recall: f32) -> Effort {
        effort(&self.table.calibration.efforts, k, recall)
    }
}

/// Something and how near it is, ordered by that and then by number, as one integer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Near(u64);

impl Near {
    /// `distance` is no NaN.
    #[must_use]
    pub fn new(distance: f32, number: u32) -> Self {
        let bits = distance.to_bits();
        let ordered = if bits >> 31 == 1 { !bits } else { bits | 1 << 31 };
        Self(u64::from(ordered) << 32 | u64::from(number))
    }

    /// How near.
    #[must_use]
    pub fn distance(self) -> f32 {
        let ordered = (self.0 >> 32) as u32;
        f32::from_bits(if ordered >> 31 == 1 { ordered & !(1 << 31) } else { !ordered })
    }

    /// What.
    #[must_use]
    pub fn number(self) -> usize {
        self.0 as u32 as usize
    }
}

/// Bytes in memory that lie as those in a file do.
#[derive(Clone, Debug)]
pub struct Aligned {
    blocks: Arc<[Line]>,
    range: Range<usize>,
}

#[derive(Clone, Copy, Debug, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C, align(64))]
struct Line([u8; 64]);

impl Aligned {
    /// A copy of bytes.
    #[must_use]
    pub fn new(bytes: &[u8]) -> Self {
        let mut blocks = vec![Line([0; 64]); bytes.len().div_ceil(64)];
        bytemuck::cast_slice_mut(&mut blocks)[..bytes.len()].copy_from_slice(bytes);
        Self { blocks: blocks.into(), range: 0..bytes.len() }
    }
}

impl Deref for Aligned {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &bytemuck::cast_slice(&self.blocks)[self.range.clone()]
    }
}

/// The error of damaged cells, with the place.
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
        let near: Vec<Near> = distances.iter().map(|&d| Near::new(d, 7)).collect();
        assert!(near.is_sorted());
        for (near, distance) in near.iter().zip(distances) {
            assert_eq!((near.distance().to_bits(), near.number()), (distance.to_bits(), 7));
        }
        assert!(Near::new(1.0, 2) < Near::new(1.0, 3));
    }
}
