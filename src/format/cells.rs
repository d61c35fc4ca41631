//! The cells: groups of codes, and the table that says where the groups lie and whom they cover.
//!
//! All of it is derived from vectors. A group is one run of pages; the table is cut into parts that fit a run each, and
//! a head names them. Checksums are held by whoever names the bytes.

use std::ops::Range;

use super::{
    FormatError,
    codec::{Put as _, Reader},
    node::{ENTRY_BYTES, Entry},
};
use crate::{
    codes::{CentroidBytes, padded},
    id::ShardId,
    limits,
};

/// First bytes of a group.
pub const GROUP_MAGIC: [u8; 4] = *b"SHCG";
/// First bytes of the table.
pub const TABLE_MAGIC: [u8; 4] = *b"SHC6";
/// First bytes of the head.
pub const HEAD_MAGIC: [u8; 4] = *b"SHCH";
/// Recalls for which a table holds what it takes.
pub const RECALLS: [f32; 8] = [0.5, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995];
/// Numbers of results for which it does.
pub const RESULTS: [u32; 6] = [1, 3, 10, 30, 100, 300];

/// What each recall takes for each number of results.
pub type Efforts = [[Effort; RECALLS.len()]; RESULTS.len()];

/// Where the number of results and the recall of most searches stand among these.
const USUAL: (usize, usize) = (2, 4);
const _: () = assert!(RESULTS[USUAL.0] as usize == limits::USUAL_RESULTS && RECALLS[USUAL.1] == limits::USUAL_RECALL);

const GROUP_HEADER: usize = 16;
const CELL_BYTES: usize = 20;
const ROWS: usize = 16;
const BLOCK: usize = 8;

/// Bytes of a block of eight codes: for each word the codes' words side by side, then eight factors and eight additive
/// terms, the upper halves of f32s, then eight references.
const fn block_bytes(words: usize) -> usize {
    (words + 1) * BLOCK * 8
}

/// Where the parts of a group lie in its bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GroupLayout {
    /// Cells.
    pub cells: usize,
    /// Codes of all cells.
    pub codes: usize,
    /// Words of signs a code.
    pub words: usize,
}

impl GroupLayout {
    /// The centroids' bytes, row by row, each plus 128.
    #[must_use]
    pub fn centroids(&self) -> Range<usize> {
        let start = (GROUP_HEADER + self.cells * CELL_BYTES).next_multiple_of(64);
        start..start + self.cells * self.words * 64
    }

    /// The blocks of codes.
    #[must_use]
    pub fn blocks(&self) -> Range<usize> {
        let start = self.centroids().end;
        start..start + self.codes.div_ceil(BLOCK) * block_bytes(self.words)
    }

    /// All bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.blocks().end
    }

    /// Whether there is no cell.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.cells == 0
    }
}

/// A cell as its group names it.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct CellEntry {
    /// What belongs to its centroid's bytes.
    pub centroid: CentroidBytes,
    /// Its first code among the group's.
    pub first: u32,
    /// Its codes.
    pub count: u32,
}

/// A group's bytes: its cells, their centroids as blocks of bytes, their codes as blocks.
///
/// # Panics
/// If the sizes do not fit each other.
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

/// The cell `i` of a group whose bytes [`check_group`] found good.
#[must_use]
pub fn cell(group: &[u8], i: usize) -> CellEntry {
    let at = GROUP_HEADER + i * CELL_BYTES;
    let [step, square, along, first, count]: [u32; 5] = bytemuck::pod_read_unaligned(&group[at..at + CELL_BYTES]);
    let [step, square, along] = [step, square, along].map(f32::from_bits);
    CellEntry { centroid: CentroidBytes { step, square, along }, first, count }
}

fn put_centroid(out: &mut Vec<u8>, centroid: CentroidBytes) {
    let CentroidBytes { step, square, along } = centroid;
    [step, square, along].into_iter().for_each(|x| out.put_u32(x.to_bits()));
}

fn is_finite(centroid: CentroidBytes) -> bool {
    let CentroidBytes { step, square, along } = centroid;
    [step, square, along].into_iter().all(f32::is_finite)
}

/// Checks that a group is what the table says it is, and that its codes are of postings below `postings`.
///
/// # Errors
/// Names what cannot be.
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

/// A group as the table names it.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct GroupEntry {
    /// Its bytes.
    pub place: Entry,
    /// What belongs to its pivot's bytes.
    pub pivot: CentroidBytes,
    /// Its cells.
    pub cells: u32,
    /// Its codes.
    pub codes: u32,
}

/// A shard of which the first slots are in cells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Covered {
    /// Its number.
    pub number: u32,
    /// Slots that are covered.
    pub slots: u32,
    /// Its name: a number may be given again.
    pub id: ShardId,
}

/// What it takes to find some share of the nearest.
///
/// Margins are in units of what a distance varies by within a cell: by L2 of the query's distance to the centroid, by
/// products of the query's norm. So they mean the same to a query that is far from everything.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Effort {
    /// A cell is scanned if its centroid is at most so much farther than the farthest result.
    pub margin: f32,
    /// Taken off the margin for each doubling of the cells since the last one that had a result.
    pub impatience: f32,
    /// The margin of a shard that is not in cells.
    pub shard_margin: f32,
    /// Standard deviations of an estimate's error that are allowed for.
    pub deviations: f32,
    /// Groups that are looked into at first.
    pub groups: u32,
    /// Cells that are estimated to be near, at first.
    pub cells: u32,
}

impl Effort {
    /// Whatever it takes.
    #[must_use]
    pub fn everything() -> Self {
        let far = f32::INFINITY;
        let (margin, shard_margin, deviations) = (far, far, far);
        Self { margin, impatience: 0.0, shard_margin, deviations, groups: u32::MAX, cells: u32::MAX }
    }
}

/// What was found out about searches by cells, by asking for vectors of which the true nearest were known.
#[derive(Clone, Debug, PartialEq)]
pub struct Calibration {
    /// For each of [`RESULTS`] what each of [`RECALLS`] takes; [`Effort::everything`] where it was not found, or where
    /// nothing less does.
    pub efforts: Efforts,
    /// The recall that vectors reached by it which it was not found by; 0 where nobody has asked.
    pub reached: [[f32; RECALLS.len()]; RESULTS.len()],
    /// How far apart from their nearest, in two ways, few of them are; infinite where nobody has asked.
    pub far: [f32; 2],
    /// The last write that was seen.
    pub lsn: u64,
    /// Live postings then.
    pub live: u64,
    /// Slots that were in no cell then.
    pub fresh: u64,
}

impl Default for Calibration {
    fn default() -> Self {
        Self {
            efforts: [[Effort::everything(); RECALLS.len()]; RESULTS.len()],
            reached: [[0.0; RECALLS.len()]; RESULTS.len()],
            far: [f32::INFINITY; 2],
            lsn: 0,
            live: 0,
            fresh: 0,
        }
    }
}

impl Calibration {
    /// Whether it was found out for some recall what it takes.
    #[must_use]
    pub fn is_begun(&self) -> bool {
        self.reached.iter().flatten().any(|&reached| reached > 0.0)
    }

    /// Whether all is known that can be: what every recall takes of every number of results, and what is far.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        let asked = self.reached.iter().flatten().all(|&reached| reached > 0.0);
        asked && self.far.iter().all(|&far| far < f32::INFINITY)
    }

    /// What most searches take.
    #[must_use]
    pub fn usual(&self) -> &Effort {
        &self.efforts[USUAL.0][USUAL.1]
    }

    /// How many postings have come or gone since, or changed from one kind to the other: of `live`, so many `fresh` ones in no cell.
    #[must_use]
    pub fn moved(&self, live: u64, fresh: u64) -> u64 {
        let settled = |live: u64, fresh: u64| live.saturating_sub(fresh);
        let went = settled(live, fresh).abs_diff(settled(self.live, self.fresh));
        fresh.abs_diff(self.fresh).max(went)
    }

    fn encode(&self, out: &mut Vec<u8>) {
        for (effort, reached) in self.efforts.iter().flatten().zip(self.reached.iter().flatten()) {
            let Effort { margin, impatience, shard_margin, deviations, groups, cells } = *effort;
            let numbers = [margin, impatience, shard_margin, deviations, *reached];
            numbers.into_iter().for_each(|x| out.put_u32(x.to_bits()));
            out.put_u32(groups);
            out.put_u32(cells);
        }
        self.far.iter().for_each(|far| out.put_u32(far.to_bits()));
        out.put_u64(self.lsn);
        out.put_u64(self.live);
        out.put_u64(self.fresh);
    }

    fn decode(r: &mut Reader<'_>) -> Result<Self, FormatError> {
        let mut calibration = Self::default();
        let Self { efforts, reached, .. } = &mut calibration;
        for (effort, reached) in efforts.iter_mut().flatten().zip(reached.iter_mut().flatten()) {
            let (margin, impatience, shard_margin) = (number(r)?, number(r)?, number(r)?);
            let (deviations, share) = (number(r)?, number(r)?);
            *effort = Effort { margin, impatience, shard_margin, deviations, groups: r.u32()?, cells: r.u32()? };
            *reached = share;
        }
        calibration.far = [number(r)?, number(r)?];
        calibration.lsn = r.u64()?;
        calibration.live = r.u64()?;
        calibration.fresh = r.u64()?;
        Ok(calibration)
    }
}

/// A number that is one.
fn number(r: &mut Reader<'_>) -> Result<f32, FormatError> {
    let at = r.at();
    let x = f32::from_bits(r.u32()?);
    if x.is_nan() { Err(FormatError::new(at, "a number is none")) } else { Ok(x) }
}

/// The table of all groups.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct CellTable {
    /// Words of signs a code.
    pub words: usize,
    /// The centre of the frame: as many numbers as a vector has.
    pub centre: Vec<f32>,
    /// What recalls take.
    pub calibration: Calibration,
    /// The groups that searches use; none before the first build is finished.
    pub groups: Vec<GroupEntry>,
    /// Groups without codes: the centroids that a build had reached when it was given up.
    pub ahead: Vec<GroupEntry>,
    /// Rounds of k-means that made these.
    pub rounds: u32,
    /// The groups' pivots, as blocks of bytes.
    pub pivots: Vec<u8>,
    /// Codes of the cells' centroids against their pivots, group by group, each group in blocks of its own.
    pub centroids: Vec<u8>,
    /// The shards covered, by number. Postings are numbered through them in this order, each shard from a multiple of 64 on.
    pub shards: Vec<Covered>,
}

impl CellTable {
    /// The table's bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        out.put(&TABLE_MAGIC);
        out.put_u32(self.words as u32);
        out.put_u32(self.groups.len() as u32);
        out.put_u32(self.shards.len() as u32);
        out.put_u32(self.ahead.len() as u32);
        out.put_u32(self.rounds);
        out.put_u32(self.centre.len() as u32);
        self.centre.iter().for_each(|x| out.put_u32(x.to_bits()));
        self.calibration.encode(&mut out);
        for group in self.groups.iter().chain(&self.ahead) {
            group.place.encode(&mut out);
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

    /// Parses a table of codes of vectors of so many numbers.
    ///
    /// # Errors
    /// Names what cannot be.
    pub fn decode(bytes: &[u8], dimension: usize) -> Result<Self, FormatError> {
        let words = padded(dimension) / 64;
        let mut r = Reader::new(bytes);
        r.expect(&TABLE_MAGIC)?;
        r.expect(&(words as u32).to_le_bytes())?;
        let (groups, shards) = (r.u32()? as usize, r.u32()? as usize);
        let (ahead, rounds) = (r.u32()? as usize, r.u32()?);
        if groups == 0 && (ahead == 0 || shards > 0) {
            return Err(FormatError::new(8, format!("no group for {shards} shards, and {ahead} ahead")));
        }
        if (ahead == 0) != (rounds == 0) {
            return Err(FormatError::new(16, format!("{rounds} rounds have made {ahead} groups")));
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
        table.calibration = Calibration::decode(&mut r)?;
        // Nothing is reserved for a count that the bytes do not bear out.
        for i in 0..groups.saturating_add(ahead) {
            let place = Entry::decode(&mut r)?;
            let [step, square, along] = [number(&mut r)?, number(&mut r)?, number(&mut r)?];
            let pivot = CentroidBytes { step, square, along };
            let group = GroupEntry { place, pivot, cells: r.u32()?, codes: r.u32()? };
            let layout = GroupLayout { cells: group.cells as usize, codes: group.codes as usize, words };
            let codes = i < groups || group.codes == 0;
            if place.is_none() || !is_finite(pivot) || layout.is_empty() || layout.len() != place.len as usize || !codes {
                return Err(FormatError::new(r.at(), format!("no group is {group:?}")));
            }
            let list = if i < groups { &mut table.groups } else { &mut table.ahead };
            list.push(group);
        }
        let mut postings = 0u64;
        for _ in 0..shards {
            let at = r.at();
            let shard = Covered { number: r.u32()?, slots: r.u32()?, id: ShardId(r.u128()?) };
            postings += u64::from(shard.slots).next_multiple_of(64);
            let ascending = table.shards.last().is_none_or(|last| last.number < shard.number);
            if !ascending || postings > u64::from(u32::MAX) {
                return Err(FormatError::new(at, format!("shard {} after another, {postings} postings", shard.number)));
            }
            table.shards.push(shard);
        }
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
    /// The number of a cell whose centroid's code refers to another one.
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

/// The head: the table's parts in order.
#[must_use]
pub fn encode_head(parts: &[Entry]) -> Vec<u8> {
    let mut out = Vec::with_capacity(8 + parts.len() * ENTRY_BYTES);
    out.put(&HEAD_MAGIC);
    out.put_u32(parts.len() as u32);
    parts.iter().for_each(|part| part.encode(&mut out));
    out
}

/// Parses a head.
///
/// # Errors
/// If it is none.
pub fn decode_head(bytes: &[u8]) -> Result<Vec<Entry>, FormatError> {
    let mut r = Reader::new(bytes);
    r.expect(&HEAD_MAGIC)?;
    let count = r.u32()? as usize;
    if bytes.len() != 8 + count.saturating_mul(ENTRY_BYTES) {
        return Err(FormatError::new(4, format!("{count} parts in {} bytes", bytes.len())));
    }
    let parts = (0..count).map(|_| Entry::decode(&mut r)).collect::<Result<Vec<_>, _>>()?;
    match parts.iter().position(Entry::is_none) {
        Some(i) => Err(FormatError::new(8 + i * ENTRY_BYTES, "a part is nowhere")),
        None => Ok(parts),
    }
}
