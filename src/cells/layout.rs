//! Laying cells out: codes into groups of a bounded size, with the table that names them.

use std::sync::Arc;

use super::{
    Aligned, CellIndex, CodeBlocks, Router,
    build::{Coded, Numbered},
    grouped::{Centroids, Grouped},
};
use crate::{
    codes::{CentroidBytes, Frame},
    config::Metric,
    distance::BLOCK,
    env::Cancel,
    error::Result,
    format::{
        cells::{CellEntry, CellTable, Covered, GroupEntry, GroupLayout, cell, encode_group},
        crc32c,
        node::Entry,
    },
};

/// Cells that are not stored yet: a table, and the bytes of the groups that have no place in it.
#[derive(Clone, Debug)]
pub struct Built {
    /// The table. A group of page 0 has no place yet: its entry says how long it is and what it sums to.
    pub table: CellTable,
    /// The frame around the table's centre.
    pub frame: Arc<Frame>,
    /// The groups that have no place; none if all are those of the cells before.
    pub groups: Vec<Aligned>,
    /// The groups of centroids ahead, none of which has a place.
    pub ahead: Vec<Aligned>,
    /// Whether the job was cancelled, so that there is more to be done.
    pub cut: bool,
}

impl Built {
    /// Cells that are stored already, in a table of their own; without the centroids ahead.
    #[must_use]
    pub fn kept<B: std::ops::Deref<Target = [u8]>>(before: &CellIndex<B>) -> Self {
        let table = CellTable { ahead: Vec::new(), rounds: 0, ..before.whole_table() };
        let frame = Arc::clone(before.frame());
        Self { table, frame, groups: Vec::new(), ahead: Vec::new(), cut: false }
    }

    /// The centroids alone, after so many rounds, which a later build starts from. They come beside the cells before, as far
    /// as searches can use these.
    #[must_use]
    pub fn into_ahead<B: std::ops::Deref<Target = [u8]>>(self, rounds: usize, before: Option<&CellIndex<B>>) -> Self {
        let words = self.table.words;
        let before = before.filter(|before| before.is_searchable() && !before.is_damaged());
        let nothing = || Self {
            table: CellTable { words, centre: self.table.centre.clone(), ..CellTable::default() },
            frame: Arc::clone(&self.frame),
            groups: Vec::new(),
            ahead: Vec::new(),
            cut: true,
        };
        let kept = before.map(Self::kept).unwrap_or_else(nothing);
        let table = CellTable { rounds: rounds as u32, ..kept.table };
        let mut built = Self { table, cut: true, ..kept };
        // A table has one frame.
        let moved = (!Arc::ptr_eq(&built.frame, &self.frame)).then(|| built.frame.moved_from(&self.frame));
        for (group, bytes) in self.table.groups.iter().zip(&self.groups) {
            let layout = GroupLayout { cells: group.cells as usize, codes: group.codes as usize, words };
            let mut cells: Vec<_> =
                (0..layout.cells).map(|i| CellEntry { first: 0, count: 0, ..cell(bytes, i) }).collect();
            let mut centroids = bytes[layout.centroids()].to_vec();
            if let Some(moved) = &moved {
                for (cell, row) in cells.iter_mut().zip(centroids.chunks_exact_mut(words * 64)) {
                    cell.centroid = move_row(row, cell.centroid, moved, built.frame.turned());
                }
            }
            let coded = encode_group(GroupLayout { codes: 0, ..layout }, &cells, &centroids, &[]);
            let place = Entry { page: 0, len: coded.len() as u32, crc: crc32c(0, &coded) };
            built.table.ahead.push(GroupEntry { place, codes: 0, ..*group });
            built.ahead.push(Aligned::new(&coded));
        }
        built
    }
}

/// The numbers that a centroid's bytes, each plus 128, stand for.
pub(super) fn values(row: &[u8], centroid: CentroidBytes) -> impl Iterator<Item = f32> {
    row.iter().map(move |&byte| f32::from(i16::from(byte) - 128) * centroid.step)
}

/// Moves a centroid's bytes, as near as bytes can tell.
fn move_row(row: &mut [u8], centroid: CentroidBytes, by: &[f32], turned: &[f32]) -> CentroidBytes {
    let mut moved: Vec<f32> = values(row, centroid).zip(by).map(|(x, by)| x + by).collect();
    let mut bytes = Vec::new();
    let stored = CentroidBytes::of(&mut moved, turned, &mut bytes);
    row.iter_mut().zip(bytes).for_each(|(to, byte)| *to = (i16::from(byte) + 128) as u8);
    stored
}

/// A cell to be laid out, and which of its codes.
#[derive(Clone)]
struct Piece {
    cell: usize,
    codes: std::ops::Range<usize>,
}

/// Puts codes into groups of at most `largest` bytes; without any codes, all centroids.
///
/// # Errors
/// `Closed` if it is cancelled.
pub(super) fn lay_out<L>(
    (shards, metric): (&[Numbered<L>], Metric),
    grouped: &Grouped,
    (centroids, coded): (&Centroids, &[Coded]),
    (frame, largest): (&Arc<Frame>, usize),
    cancel: &dyn Cancel,
) -> Result<Built>
where
    L: std::ops::Deref<Target = [u8]> + Clone,
{
    let words = frame.len() / 64;
    // For each cell its codes, as (shard, position).
    let mut codes: Vec<Vec<(u32, u32)>> = vec![Vec::new(); centroids.count()];
    for (i, coded) in coded.iter().enumerate() {
        coded.cells.iter().enumerate().for_each(|(at, &cell)| codes[cell as usize].push((i as u32, at as u32)));
    }
    let shards =
        shards.iter().map(|(number, shard)| Covered { number: *number, slots: shard.len() as u32, id: shard.id });
    let centre = frame.centre().to_vec();
    let mut table = CellTable { words, centre, shards: shards.collect(), ..CellTable::default() };
    let fits = |cells: usize, codes: usize| GroupLayout { cells, codes, words }.len() <= largest;
    let most_codes = (1..).map(|blocks| blocks * BLOCK).take_while(|&codes| fits(1, codes)).last().unwrap_or(BLOCK);
    let mut groups = Vec::new();
    let mut members: Vec<(usize, Vec<usize>)> = Vec::new();
    for (g, cells) in grouped.members.iter().enumerate() {
        cancel.check()?;
        // A cell of too many codes becomes several with one centroid, a group of too many cells several with one pivot.
        let mut pieces: Vec<Piece> = Vec::new();
        for &cell in cells {
            let all = codes[cell].len();
            let starts = (0..all.max(usize::from(coded.is_empty()))).step_by(most_codes);
            pieces.extend(starts.map(|at| Piece { cell, codes: at..all.min(at + most_codes) }));
        }
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
            let place = Entry { page: 0, len: bytes.len() as u32, crc: crc32c(0, &bytes) };
            let pivot = grouped.stored[g];
            table.groups.push(GroupEntry { place, pivot, cells: taken as u32, codes: sum as u32 });
            groups.push(Aligned::new(&bytes));
            members.push((g, group.iter().map(|piece| piece.cell).collect()));
        }
    }
    let of_group = members.iter().map(|(g, cells)| {
        let cells = cells.iter().map(|&cell| centroids.row(cell)).collect();
        (grouped.pivots.row(*g), grouped.stored[*g], cells)
    });
    let router = Router::of(frame.turned(), metric, of_group);
    table.centroids = router.codes.to_vec();
    table.pivots = router.pivots;
    Ok(Built { table, frame: Arc::clone(frame), groups, ahead: Vec::new(), cut: false })
}

fn group_bytes(
    layout: GroupLayout,
    pieces: &[Piece],
    grouped: &Grouped,
    codes: &[Vec<(u32, u32)>],
    coded: &[Coded],
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
