//! Cells on disk: cell groups, which hold the codes, and the table, which lists the groups and the covered shards.
//!
//! All of it is derived from the vectors. A cell group is one page range. The table is divided into parts of at most
//! one page range each, and the head lists the parts. The checksum of each structure is in the structure that points to
//! it.

use std::ops::Range;

use super::{
    FormatError,
    calibration::{Calibration, number},
    codec::{Put as _, Reader},
    node::{BlockPointer, ENTRY_BYTES},
};
use crate::{
    codes::{CentroidBytes, padded},
    distance::{BLOCK, ROWS, block_bytes},
    id::ShardId,
};

/// First bytes of a cell group.
pub const GROUP_MAGIC: [u8; 4] = *b"SHCG";
/// First bytes of the table.
pub const TABLE_MAGIC: [u8; 4] = *b"SHC7";
/// First bytes of the head.
pub const HEAD_MAGIC: [u8; 4] = *b"SHCH";

const GROUP_HEADER: usize = 16;
const CELL_BYTES: usize = 20;
/// Offsets of the parts of a cell group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GroupLayout {
    /// Number of cells.
    pub cells: usize,
    /// Number of codes in all cells.
    pub codes: usize,
    /// Number of 64-bit sign words per code.
    pub words: usize,
}

impl GroupLayout {
    /// Returns the range of the centroids: one row of bytes per cell, one byte per component, stored plus 128.
    #[must_use]
    pub fn centroids(&self) -> Range<usize> {
        let start = (GROUP_HEADER + self.cells * CELL_BYTES).next_multiple_of(64);
        start..start + self.cells * self.words * 64
    }

    /// Returns the range of the blocks of codes.
    #[must_use]
    pub fn blocks(&self) -> Range<usize> {
        let start = self.centroids().end;
        start..start + self.codes.div_ceil(BLOCK) * block_bytes(self.words)
    }

    /// Returns the length of the group in bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.blocks().end
    }

    /// Reports whether the group has no cells.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.cells == 0
    }
}

/// Entry of a cell in its cell group.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct CellEntry {
    /// Scale and products of the centroid, needed to interpret its bytes.
    pub centroid: CentroidBytes,
    /// Index of the cell's first code in the group.
    pub first: u32,
    /// Number of codes in the cell.
    pub count: u32,
}

/// Encodes a cell group: the entries of its cells, their centroids as rows of bytes, and the blocks of codes.
///
/// # Panics
/// Panics if the lengths do not match `layout`.
#[must_use]
pub fn encode_group(layout: GroupLayout, cells: &[CellEntry], centroids: &[u8], blocks: &[u8]) -> Vec<u8> {
    assert!(cells.len() == layout.cells && centroids.len() == layout.centroids().len(), "as many cells as it says");
    assert_eq!(blocks.len(), layout.blocks().len(), "as many codes as it says");
    let mut out = Vec::with_capacity(layout.len());
    out.put(&GROUP_MAGIC);
    out.put_u32(layout.cells as u32);
    out.put_u32(layout.codes as u32);
    out.put_u32(layout.words as u32);
    for cell in cells {
        put_centroid(&mut out, cell.centroid);
        out.put_u32(cell.first);
        out.put_u32(cell.count);
    }
    out.resize(layout.centroids().start, 0);
    out.put(centroids);
    out.put(blocks);
    out
}

/// Returns the entry of cell `i` of a group that passed [`check_group`].
///
/// # Panics
/// Panics if the group has no cell `i`.
#[must_use]
pub fn cell(group: &[u8], i: usize) -> CellEntry {
    let at = GROUP_HEADER + i * CELL_BYTES;
    let [step, square, centre_product, first, count]: [u32; 5] =
        bytemuck::pod_read_unaligned(&group[at..at + CELL_BYTES]);
    let [step, square, centre_product] = [step, square, centre_product].map(f32::from_bits);
    CellEntry { centroid: CentroidBytes { step, square, centre_product }, first, count }
}

fn put_centroid(out: &mut Vec<u8>, centroid: CentroidBytes) {
    let CentroidBytes { step, square, centre_product } = centroid;
    [step, square, centre_product].into_iter().for_each(|x| out.put_u32(x.to_bits()));
}

fn is_finite(centroid: CentroidBytes) -> bool {
    let CentroidBytes { step, square, centre_product } = centroid;
    [step, square, centre_product].into_iter().all(f32::is_finite)
}

/// Checks a cell group against its layout in the table. Every code must refer to a posting number below `postings`.
///
/// # Errors
/// Returns `FormatError` naming the header field, cell or reference that is invalid, or if the length is wrong.
pub fn check_group(bytes: &[u8], layout: GroupLayout, postings: u32) -> Result<(), FormatError> {
    let mut r = Reader::new(bytes);
    r.expect(&GROUP_MAGIC)?;
    for expected in [layout.cells, layout.codes, layout.words] {
        r.expect(&(expected as u32).to_le_bytes())?;
    }
    if bytes.len() != layout.len() {
        return Err(FormatError::new(0, format!("{} bytes expected, {} found", layout.len(), bytes.len())));
    }
    for i in 0..layout.cells {
        let cell = cell(bytes, i);
        let end = u64::from(cell.first) + u64::from(cell.count);
        if end > layout.codes as u64 || !is_finite(cell.centroid) {
            return Err(FormatError::new(GROUP_HEADER + i * CELL_BYTES, format!("no cell is {cell:?}")));
        }
    }
    let blocks = layout.blocks();
    for (block, block_bytes) in bytes[blocks.clone()].chunks_exact(block_bytes(layout.words)).enumerate() {
        let references = block_bytes[block_bytes.len() - BLOCK * 4..].as_chunks::<4>().0;
        if let Some(i) = references.iter().position(|raw| u32::from_le_bytes(*raw) >= postings) {
            let what = format!("a code of posting {} of {postings}", u32::from_le_bytes(references[i]));
            return Err(FormatError::new(blocks.start + block * block_bytes.len(), what));
        }
    }
    Ok(())
}

/// Entry of a cell group in the table.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct GroupEntry {
    /// Pointer to the bytes of the group.
    pub pointer: BlockPointer,
    /// Scale and products of the pivot, needed to interpret its bytes.
    pub pivot: CentroidBytes,
    /// Number of cells.
    pub cells: u32,
    /// Number of codes.
    pub codes: u32,
}

/// Shard whose first slots are covered by cells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CoveredShard {
    /// Shard number.
    pub number: u32,
    /// Number of covered slots, counted from slot 0.
    pub slots: u32,
    /// Shard id. It is needed because a shard number can be reused.
    pub id: ShardId,
}

/// Table of all cell groups.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct CellTable {
    /// Number of 64-bit sign words per code.
    pub words: usize,
    /// Centre of the coordinate frame. It has as many components as a vector.
    pub centre: Vec<f32>,
    /// Calibration: the search effort for each recall.
    pub calibration: Calibration,
    /// Cell groups that searches use. Empty before the first cell build is complete.
    pub groups: Vec<GroupEntry>,
    /// Cell groups without codes: the centroids that a cancelled cell build had reached.
    pub unfinished: Vec<GroupEntry>,
    /// Number of k-means rounds that produced the unfinished groups.
    pub rounds: u32,
    /// Pivots of the groups, in blocks of 16 rows of bytes.
    pub pivots: Vec<u8>,
    /// Codes of the cells' centroids relative to their pivots, group by group. Each group starts at a new block.
    pub centroids: Vec<u8>,
    /// Covered shards, ascending by number. Posting numbers count slots through these shards in this order. Each shard
    /// starts at a multiple of 64.
    pub shards: Vec<CoveredShard>,
}

/// Bytes of a group's entry in the table.
pub const GROUP_ENTRY_BYTES: usize = ENTRY_BYTES + 20;

impl CellTable {
    /// Returns the offset of the first group's entry in the bytes of a table.
    #[must_use]
    pub fn groups_offset(dimension: usize) -> usize {
        28 + 4 * dimension + Calibration::bytes(dimension)
    }

    /// Encodes the table.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        out.put(&TABLE_MAGIC);
        out.put_u32(self.words as u32);
        out.put_u32(self.groups.len() as u32);
        out.put_u32(self.shards.len() as u32);
        out.put_u32(self.unfinished.len() as u32);
        out.put_u32(self.rounds);
        out.put_u32(self.centre.len() as u32);
        self.centre.iter().for_each(|x| out.put_u32(x.to_bits()));
        self.calibration.encode(self.centre.len(), &mut out);
        for group in self.groups.iter().chain(&self.unfinished) {
            group.pointer.encode(&mut out);
            put_centroid(&mut out, group.pivot);
            out.put_u32(group.cells);
            out.put_u32(group.codes);
        }
        for shard in &self.shards {
            out.put_u32(shard.number);
            out.put_u32(shard.slots);
            out.put_u128(shard.id.0);
        }
        out.put(&self.pivots);
        out.put(&self.centroids);
        out
    }

    /// Parses a table of codes of vectors with `dimension` components.
    ///
    /// # Errors
    /// Returns `FormatError` naming the value that is invalid, or if the length is wrong.
    pub fn decode(bytes: &[u8], dimension: usize) -> Result<Self, FormatError> {
        let words = padded(dimension) / 64;
        let mut r = Reader::new(bytes);
        r.expect(&TABLE_MAGIC)?;
        r.expect(&(words as u32).to_le_bytes())?;
        let (groups, shards) = (r.u32()? as usize, r.u32()? as usize);
        let (unfinished, rounds) = (r.u32()? as usize, r.u32()?);
        if groups == 0 && (unfinished == 0 || shards > 0) {
            return Err(FormatError::new(8, format!("no group for {shards} shards, and {unfinished} ahead")));
        }
        if (unfinished == 0) != (rounds == 0) {
            return Err(FormatError::new(16, format!("{rounds} rounds have made {unfinished} groups")));
        }
        r.expect(&(dimension as u32).to_le_bytes())?;
        let mut table = Self { words, rounds, ..Self::default() };
        for _ in 0..dimension {
            let at = r.at();
            let x = number(&mut r)?;
            if !x.is_finite() {
                return Err(FormatError::new(at, "the centre is nowhere"));
            }
            table.centre.push(x);
        }
        table.calibration = Calibration::decode(&mut r, dimension)?;
        // The loop reserves no memory for the count, because the remaining bytes may not contain that many entries.
        for i in 0..groups.saturating_add(unfinished) {
            let pointer = BlockPointer::decode(&mut r)?;
            let [step, square, centre_product] = [number(&mut r)?, number(&mut r)?, number(&mut r)?];
            let pivot = CentroidBytes { step, square, centre_product };
            let group = GroupEntry { pointer, pivot, cells: r.u32()?, codes: r.u32()? };
            let layout = GroupLayout { cells: group.cells as usize, codes: group.codes as usize, words };
            let codes = i < groups || group.codes == 0;
            if pointer.is_none()
                || !is_finite(pivot)
                || layout.is_empty()
                || layout.len() != pointer.len as usize
                || !codes
            {
                return Err(FormatError::new(r.at(), format!("no group is {group:?}")));
            }
            let list = if i < groups { &mut table.groups } else { &mut table.unfinished };
            list.push(group);
        }
        table.shards = covered_shards(&mut r, shards)?;
        let pivots = groups.next_multiple_of(ROWS) * words * 64;
        table.pivots = r.take(pivots)?.to_vec();
        let blocks: usize = table.groups.iter().map(|group| (group.cells as usize).div_ceil(BLOCK)).sum();
        table.centroids = r.take(blocks * block_bytes(words))?.to_vec();
        if let Some(i) = table.misnamed_centroid() {
            return Err(FormatError::new(r.at(), format!("the code of centroid {i} is of another cell")));
        }
        if r.at() != bytes.len() {
            return Err(FormatError::new(r.at(), format!("{} bytes after the table", bytes.len() - r.at())));
        }
        Ok(table)
    }
}

impl CellTable {
    /// Returns the number of the first cell whose centroid code refers to another cell.
    fn misnamed_centroid(&self) -> Option<usize> {
        let mut blocks = self.centroids.chunks_exact(block_bytes(self.words));
        let mut first = 0;
        for group in &self.groups {
            let count = group.cells as usize;
            for (b, block) in blocks.by_ref().take(count.div_ceil(BLOCK)).enumerate() {
                let references = block[block.len() - BLOCK * 4..].as_chunks::<4>().0;
                let used = references.iter().take(count - b * BLOCK).zip(first + b * BLOCK..);
                for (raw, number) in used {
                    if u32::from_le_bytes(*raw) as usize != number {
                        return Some(number);
                    }
                }
            }
            first += count.next_multiple_of(BLOCK);
        }
        None
    }
}

/// Encodes the head: pointers to the parts of the table, in order.
#[must_use]
pub fn encode_head(parts: &[BlockPointer]) -> Vec<u8> {
    let mut out = Vec::with_capacity(8 + parts.len() * ENTRY_BYTES);
    out.put(&HEAD_MAGIC);
    out.put_u32(parts.len() as u32);
    parts.iter().for_each(|part| part.encode(&mut out));
    out
}

/// Parses the head.
///
/// # Errors
/// Returns `FormatError` if the magic is wrong, if the count does not match the length, or if a part points to nothing.
pub fn decode_head(bytes: &[u8]) -> Result<Vec<BlockPointer>, FormatError> {
    let mut r = Reader::new(bytes);
    r.expect(&HEAD_MAGIC)?;
    let count = r.u32()? as usize;
    if bytes.len() != 8 + count.saturating_mul(ENTRY_BYTES) {
        return Err(FormatError::new(4, format!("{count} parts in {} bytes", bytes.len())));
    }
    let parts = (0..count).map(|_| BlockPointer::decode(&mut r)).collect::<Result<Vec<_>, _>>()?;
    match parts.iter().position(BlockPointer::is_none) {
        Some(i) => Err(FormatError::new(8 + i * ENTRY_BYTES, "a part is nowhere")),
        None => Ok(parts),
    }
}

/// Parses the covered shards. Their numbers must be ascending, and the posting numbers must fit a `u32`.
fn covered_shards(r: &mut Reader<'_>, shards: usize) -> Result<Vec<CoveredShard>, FormatError> {
    let mut covered: Vec<CoveredShard> = Vec::new();
    let mut postings = 0u64;
    for _ in 0..shards {
        let at = r.at();
        let shard = CoveredShard { number: r.u32()?, slots: r.u32()?, id: ShardId(r.u128()?) };
        postings += u64::from(shard.slots).next_multiple_of(64);
        let ascending = covered.last().is_none_or(|last| last.number < shard.number);
        if !ascending || postings > u64::from(u32::MAX) {
            return Err(FormatError::new(at, format!("shard {} after another, {postings} postings", shard.number)));
        }
        covered.push(shard);
    }
    Ok(covered)
}
