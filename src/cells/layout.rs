//! Layout of cells: places codes into groups of bounded size and builds the table that names the groups.

use std::sync::Arc;

use super::{
    AlignedBytes, CellIndex, CodeBlocks, Router,
    groups::{CentroidGroups, Centroids},
};
use crate::{
    codes::{CentroidBytes, CoordinateFrame, Factors},
    config::Metric,
    distance::BLOCK,
    env::Cancel,
    error::Result,
    format::{
        cells::{CellEntry, CellTable, CoveredShard, GroupEntry, GroupLayout, cell, encode_group},
        crc32c,
        node::BlockPointer,
    },
    shard::Shard,
};

/// Shard with its number.
pub type NumberedShard<L> = (u32, Arc<Shard<L>>);

/// Codes of the postings of one shard, with the cell of each code.
#[derive(Default)]
pub(super) struct ShardCodes {
    pub(super) cells: Vec<u32>,
    pub(super) references: Vec<u32>,
    pub(super) factors: Vec<Factors>,
    pub(super) signs: Vec<u64>,
}

/// Cells that are not stored yet: a table, and the bytes of the groups that have no allocation.
#[derive(Clone, Debug)]
pub struct BuiltCells {
    /// Table of the cells. The entry of a group without allocation has page 0, and the group's length and checksum.
    pub table: CellTable,
    /// Frame around the centre of the table.
    pub frame: Arc<CoordinateFrame>,
    /// Bytes of the groups without allocation. Empty if the table keeps the groups of the previous cells.
    pub groups: Vec<AlignedBytes>,
    /// Bytes of the groups of centroids of a cancelled build, none of which has an allocation.
    pub unfinished: Vec<AlignedBytes>,
    /// Set if the build was cancelled, so that another build must follow.
    pub cut: bool,
}

impl BuiltCells {
    /// Copies the table of stored cells, without the centroids of a cancelled build.
    #[must_use]
    pub fn kept<B: std::ops::Deref<Target = [u8]>>(before: &CellIndex<B>) -> Self {
        let table = CellTable { unfinished: Vec::new(), rounds: 0, ..before.whole_table() };
        let frame = Arc::clone(before.frame());
        Self { table, frame, groups: Vec::new(), unfinished: Vec::new(), cut: false }
    }

    /// Keeps only the centroids, for a later build to start from after `rounds` rounds. Adds them to the table of the
    /// previous cells if those are searchable and undamaged, or to an empty table.
    #[must_use]
    pub fn into_unfinished<B: std::ops::Deref<Target = [u8]>>(
        self,
        rounds: usize,
        before: Option<&CellIndex<B>>,
    ) -> Self {
        let words = self.table.words;
        let before = before.filter(|before| before.is_searchable() && !before.is_damaged());
        let nothing = || Self {
            table: CellTable { words, centre: self.table.centre.clone(), ..CellTable::default() },
            frame: Arc::clone(&self.frame),
            groups: Vec::new(),
            unfinished: Vec::new(),
            cut: true,
        };
        let kept = before.map(Self::kept).unwrap_or_else(nothing);
        let table = CellTable { rounds: rounds as u32, ..kept.table };
        let mut built = Self { table, cut: true, ..kept };
        // All centroids of a table must be in its frame.
        let moved = (!Arc::ptr_eq(&built.frame, &self.frame)).then(|| built.frame.offset_from(&self.frame));
        for (group, bytes) in self.table.groups.iter().zip(&self.groups) {
            let layout = GroupLayout { cells: group.cells as usize, codes: group.codes as usize, words };
            let mut cells: Vec<_> =
                (0..layout.cells).map(|i| CellEntry { first: 0, count: 0, ..cell(bytes, i) }).collect();
            let mut centroids = bytes[layout.centroids()].to_vec();
            if let Some(moved) = &moved {
                for (cell, row) in cells.iter_mut().zip(centroids.chunks_exact_mut(words * 64)) {
                    cell.centroid = move_row(row, cell.centroid, moved, built.frame.rotated_centre());
                }
            }
            let coded = encode_group(GroupLayout { codes: 0, ..layout }, &cells, &centroids, &[]);
            let pointer = BlockPointer { page: 0, len: coded.len() as u32, crc: crc32c(0, &coded) };
            built.table.unfinished.push(GroupEntry { pointer, codes: 0, ..*group });
            built.unfinished.push(AlignedBytes::new(&coded));
        }
        built
    }
}

/// Adds an offset to a quantised centroid and quantises the result. `row` holds bytes plus 128.
fn move_row(row: &mut [u8], centroid: CentroidBytes, by: &[f32], rotated_centre: &[f32]) -> CentroidBytes {
    let mut moved: Vec<f32> = centroid.values(row).zip(by).map(|(x, by)| x + by).collect();
    let mut bytes = Vec::new();
    let stored = CentroidBytes::of(&mut moved, rotated_centre, &mut bytes);
    row.iter_mut().zip(bytes).for_each(|(to, byte)| *to = (i16::from(byte) + 128) as u8);
    stored
}

/// Part of a cell that is stored as one cell of a group, with its range of the cell's codes.
#[derive(Clone)]
struct CellPart {
    cell: usize,
    codes: std::ops::Range<usize>,
}

/// Returns the entries of shards whose slots are all covered.
fn cover<L>(shards: &[NumberedShard<L>]) -> Vec<CoveredShard>
where
    L: std::ops::Deref<Target = [u8]> + Clone,
{
    let all =
        |(number, shard): &NumberedShard<L>| CoveredShard { number: *number, slots: shard.len() as u32, id: shard.id };
    shards.iter().map(all).collect()
}

/// Parameters of a layout.
pub(super) struct LayoutParams<'a, L: std::ops::Deref<Target = [u8]> + Clone> {
    /// Shards that the cells cover, with their numbers.
    pub(super) shards: &'a [NumberedShard<L>],
    pub(super) metric: Metric,
    pub(super) frame: &'a Arc<CoordinateFrame>,
    /// Largest size of a group in bytes.
    pub(super) largest: usize,
}

/// Places codes into groups, and omits cells without codes. If `coded` is empty, places the centroids of all cells,
/// without codes.
///
/// # Errors
/// Returns `Closed` if the build is cancelled.
pub(super) fn lay_out<L>(
    params: &LayoutParams<'_, L>,
    grouped: &CentroidGroups,
    centroids: &Centroids,
    coded: &[ShardCodes],
    cancel: &dyn Cancel,
) -> Result<BuiltCells>
where
    L: std::ops::Deref<Target = [u8]> + Clone,
{
    let LayoutParams { shards, metric, frame, largest } = *params;
    let words = frame.len() / 64;
    // The codes of each cell, as (position of the shard, position in the shard's codes).
    let mut codes: Vec<Vec<(u32, u32)>> = vec![Vec::new(); centroids.count()];
    for (i, coded) in coded.iter().enumerate() {
        coded.cells.iter().enumerate().for_each(|(at, &cell)| codes[cell as usize].push((i as u32, at as u32)));
    }
    let mut table = CellTable { words, centre: frame.centre().to_vec(), shards: cover(shards), ..CellTable::default() };
    let fits = |cells: usize, codes: usize| GroupLayout { cells, codes, words }.len() <= largest;
    let most_codes = (1..).map(|blocks| blocks * BLOCK).take_while(|&codes| fits(1, codes)).last().unwrap_or(BLOCK);
    let (mut groups, mut members): (Vec<_>, Vec<(usize, Vec<usize>)>) = Default::default();
    for (g, cells) in grouped.members.iter().enumerate() {
        cancel.check()?;
        // A cell with too many codes becomes several cells with the same centroid. A group with too many cells becomes
        // several groups with the same pivot.
        let parts = |&cell: &usize| {
            let all = codes[cell].len();
            let starts = (0..all.max(usize::from(coded.is_empty()))).step_by(most_codes);
            starts.map(move |at| CellPart { cell, codes: at..all.min(at + most_codes) })
        };
        let pieces: Vec<CellPart> = cells.iter().flat_map(parts).collect();
        let mut rest = pieces.as_slice();
        while !rest.is_empty() {
            let (mut taken, mut sum) = (0, 0);
            while let Some(piece) = rest.get(taken)
                && (taken == 0 || fits(taken + 1, sum + piece.codes.len()))
            {
                sum += piece.codes.len();
                taken += 1;
            }
            let (group, after) = rest.split_at(taken);
            rest = after;
            let layout = GroupLayout { cells: taken, codes: sum, words };
            let bytes = group_bytes(layout, group, grouped, &codes, coded);
            let pointer = BlockPointer { page: 0, len: bytes.len() as u32, crc: crc32c(0, &bytes) };
            let pivot = grouped.stored[g];
            table.groups.push(GroupEntry { pointer, pivot, cells: taken as u32, codes: sum as u32 });
            groups.push(AlignedBytes::new(&bytes));
            members.push((g, group.iter().map(|piece| piece.cell).collect()));
        }
    }
    let of_group = members.iter().map(|(g, cells)| {
        let cells = cells.iter().map(|&cell| centroids.row(cell)).collect();
        (grouped.pivots.row(*g), grouped.stored[*g], cells)
    });
    let router = Router::of(frame.rotated_centre(), metric, of_group);
    table.centroids = router.codes.to_vec();
    table.pivots = router.pivots;
    Ok(BuiltCells { table, frame: Arc::clone(frame), groups, unfinished: Vec::new(), cut: false })
}

fn group_bytes(
    layout: GroupLayout,
    pieces: &[CellPart],
    grouped: &CentroidGroups,
    codes: &[Vec<(u32, u32)>],
    coded: &[ShardCodes],
) -> Vec<u8> {
    let mut cells = Vec::with_capacity(pieces.len());
    let mut centroids = Vec::with_capacity(layout.centroids().len());
    let mut blocks = CodeBlocks::new(layout.words);
    for piece in pieces {
        let centroid = grouped.centroid_bytes[piece.cell];
        cells.push(CellEntry { centroid, first: blocks.len() as u32, count: piece.codes.len() as u32 });
        centroids.extend_from_slice(grouped.row(piece.cell));
        for &(shard, position) in &codes[piece.cell][piece.codes.clone()] {
            let (coded, position) = (&coded[shard as usize], position as usize);
            let signs = &coded.signs[position * layout.words..(position + 1) * layout.words];
            blocks.push(signs, coded.factors[position], coded.references[position]);
        }
    }
    encode_group(layout, &cells, &centroids, blocks.bytes())
}
