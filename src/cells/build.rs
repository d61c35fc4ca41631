//! Making cells: k-means over all vectors, on two levels, seeded by the cells before.
//!
//! Deterministic: the same shards and the same seed give the same bytes, however many threads work. Vectors are read where
//! they lie, shard by shard; what is held besides is their codes, some hundred bytes a posting.

use std::sync::{Arc, OnceLock};

use super::{Aligned, Asked, CellIndex, CodeBlocks, Near, Router};
use crate::{
    codes::{ByteQuery, CentroidBytes, Factors, Query, Rotation, encode, sample},
    config::Metric,
    distance::{self, BLOCK, ByteBlocks, ROWS},
    env::Executor,
    error::Result,
    format::{
        cells::{CellEntry, CellTable, Covered, GroupEntry, GroupLayout, encode_group},
        crc32c,
        node::Entry,
    },
    limits,
    shard::{DataFile, Shard, row},
    storage::StorageFile,
};

/// Cells that are on no disk yet: a table without places, and the groups' bytes.
#[derive(Clone, Debug)]
pub struct Built {
    /// The table. The groups' places say how long they are and what they sum to.
    pub table: CellTable,
    /// The groups.
    pub groups: Vec<Aligned>,
}

/// A shard by its number.
pub type Numbered<L> = (u32, Arc<Shard<L>>);

/// What a draw is for: draws for two purposes from one generator would pick the same postings.
const CENTROIDS: u64 = 1 << 58;
const PIVOTS: u64 = 2 << 58;
const HELD_OUT: u64 = 3 << 58;

/// Rotated centroids, row by row.
struct Centroids {
    len: usize,
    rows: Vec<f32>,
}

impl Centroids {
    fn row(&self, i: usize) -> &[f32] {
        &self.rows[i * self.len..(i + 1) * self.len]
    }

    fn count(&self) -> usize {
        self.rows.len() / self.len
    }
}

/// Centroids in groups.
struct Grouped {
    /// The cells of each group.
    members: Vec<Vec<usize>>,
    /// By L2, for postings to be assigned.
    router: Router,
    /// For each number of the router, the cell.
    cells: Vec<usize>,
    /// Rotated pivots, set to what their bytes say.
    pivots: Centroids,
    stored: Vec<CentroidBytes>,
    /// The centroids' bytes, each plus 128.
    bytes: Vec<u8>,
    centroid_bytes: Vec<CentroidBytes>,
}

/// Sets rows to what their bytes say.
fn quantise(rows: &mut Centroids) -> (Vec<CentroidBytes>, Vec<i8>) {
    let (mut all, mut bytes) = (Vec::with_capacity(rows.rows.len()), Vec::new());
    let of = |row: &mut [f32]| {
        let stored = CentroidBytes::of(row, &mut bytes);
        all.extend_from_slice(&bytes);
        stored
    };
    (rows.rows.chunks_exact_mut(rows.len).map(of).collect(), all)
}

impl Grouped {
    /// Groups centroids by k-means of their own, and sets them to what their bytes say.
    fn new(centroids: &mut Centroids, seed: (u128, u64), executor: &dyn Executor) -> Self {
        let (centroid_bytes, bytes) = quantise(centroids);
        let bytes = bytes.into_iter().map(|byte| (i16::from(byte) + 128) as u8).collect();
        let (cells, len) = (centroids.count(), centroids.len);
        let count = cells.div_ceil(limits::GROUP_CELLS);
        let mut pivots = Centroids { len, rows: Vec::new() };
        sample(cells, count, seed.0, seed.1 | PIVOTS)
            .into_iter()
            .for_each(|i| pivots.rows.extend_from_slice(centroids.row(i)));
        let queries: Vec<ByteQuery> = (0..cells).map(|i| ByteQuery::new(centroids.row(i), Metric::L2)).collect();
        let mut homes = vec![0; cells];
        let mut stored = Vec::new();
        for round in 0..limits::GROUP_ROUNDS {
            let pivot_bytes;
            (stored, pivot_bytes) = quantise(&mut pivots);
            let mut blocks = ByteBlocks::new(len);
            pivot_bytes.chunks_exact(len).for_each(|row| blocks.push(row));
            const CHUNK: usize = 256;
            let found: Vec<OnceLock<Vec<usize>>> = queries.chunks(CHUNK).map(|_| OnceLock::new()).collect();
            executor.for_each(found.len(), &|i| {
                let mut products = vec![0; count.next_multiple_of(ROWS)];
                let queries = &queries[i * CHUNK..cells.min((i + 1) * CHUNK)];
                let homes = queries.iter().map(|query| {
                    distance::dot_bytes(&query.bytes, blocks.bytes(), &mut products);
                    let near = stored.iter().zip(&products).zip(0u32..);
                    let near = near.map(|((stored, &product), i)| Near::new(query.base(*stored, product).1, i));
                    near.min().map_or(0, Near::number)
                });
                drop(found[i].set(homes.collect()));
            });
            homes = found.into_iter().filter_map(OnceLock::into_inner).flatten().collect();
            if round + 1 < limits::GROUP_ROUNDS {
                let mut sums = Sums::default();
                homes.iter().enumerate().for_each(|(i, &home)| sums.add(home, centroids.row(i)));
                sums.write_means(&mut pivots);
            }
        }
        let mut members = vec![Vec::new(); count];
        homes.iter().enumerate().for_each(|(i, &home)| members[home].push(i));
        let router = Self::router(&members, centroids, (&pivots, &stored), Metric::L2);
        let mut of_number = vec![usize::MAX; router.numbers()];
        for (g, members) in members.iter().enumerate() {
            members.iter().enumerate().for_each(|(i, &cell)| of_number[router.number(g, i)] = cell);
        }
        Self { members, router, cells: of_number, pivots, stored, bytes, centroid_bytes }
    }

    fn router(
        members: &[Vec<usize>],
        centroids: &Centroids,
        (pivots, stored): (&Centroids, &[CentroidBytes]),
        metric: Metric,
    ) -> Router {
        let groups = members
            .iter()
            .enumerate()
            .map(|(g, members)| (pivots.row(g), stored[g], members.iter().map(|&cell| centroids.row(cell)).collect()));
        Router::of(centroids.len / 64, metric, groups)
    }

    /// The bytes of a cell's centroid.
    fn row(&self, cell: usize) -> &[u8] {
        let len = self.pivots.len;
        &self.bytes[cell * len..(cell + 1) * len]
    }

    /// For each cell the ones nearest to it, itself first.
    fn neighbours(&self, centroids: &Centroids, executor: &dyn Executor) -> Vec<Vec<u32>> {
        const CHUNK: usize = 64;
        let count = centroids.count();
        let found: Vec<OnceLock<Vec<Vec<u32>>>> = (0..count.div_ceil(CHUNK)).map(|_| OnceLock::new()).collect();
        executor.for_each(found.len(), &|i| {
            let mut asking = Asking::default();
            let lists = (i * CHUNK..count.min((i + 1) * CHUNK)).map(|cell| {
                self.nearest(centroids.row(cell), limits::CELL_NEIGHBOURS, &mut asking);
                let mut near: Vec<u32> = asking.asked.near.iter().map(|near| near.number() as u32).collect();
                // Of equal centroids any may come first.
                near.retain(|&other| other as usize != cell);
                near.insert(0, cell as u32);
                near
            });
            drop(found[i].set(lists.collect()));
        });
        found.into_iter().filter_map(OnceLock::into_inner).flatten().collect()
    }

    /// The nearest by L2 of some cells.
    fn nearest_of(&self, rotated: &[f32], cells: &[u32]) -> u32 {
        let query = ByteQuery::new(rotated, Metric::L2);
        let near = cells.iter().map(|&cell| {
            let product = distance::dot_byte_row(&query.bytes, self.row(cell as usize));
            Near::new(query.base(self.centroid_bytes[cell as usize], product).1, cell)
        });
        near.min().map_or(0, |near| near.number() as u32)
    }

    /// The `n` cells nearest by L2, the nearest first, as likely as one-bit codes can tell.
    fn nearest(&self, rotated: &[f32], n: usize, asking: &mut Asking) {
        let Asking { query, asked } = asking;
        query.set_rotated(rotated, Metric::L2);
        let wanted = limits::BUILD_CELLS.max(n);
        self.router.ask(query, self.router.groups().div_ceil(2).max(limits::BUILD_GROUPS), wanted, asked);
        for near in &mut asked.near {
            let cell = self.cells[near.number()];
            let product = distance::dot_byte_row(&query.bytes.bytes, self.row(cell));
            *near = Near::new(query.bytes.base(self.centroid_bytes[cell], product).1, cell as u32);
        }
        asked.near.sort_unstable();
        asked.near.truncate(n);
    }
}

/// Sums of vectors by cell, in the order they come.
#[derive(Default)]
struct Sums {
    cells: std::collections::BTreeMap<usize, (Vec<f64>, u32)>,
}

impl Sums {
    fn add(&mut self, cell: usize, row: &[f32]) {
        let (sum, count) = self.cells.entry(cell).or_insert_with(|| (vec![0.0; row.len()], 0));
        sum.iter_mut().zip(row).for_each(|(sum, &x)| *sum += f64::from(x));
        *count += 1;
    }

    fn merge(&mut self, other: Self) {
        for (cell, (more, n)) in other.cells {
            match self.cells.entry(cell) {
                std::collections::btree_map::Entry::Vacant(entry) => drop(entry.insert((more, n))),
                std::collections::btree_map::Entry::Occupied(mut entry) => {
                    let (sum, count) = entry.get_mut();
                    sum.iter_mut().zip(more).for_each(|(sum, x)| *sum += x);
                    *count += n;
                }
            }
        }
    }

    /// Centroids without a member stay.
    fn write_means(self, centroids: &mut Centroids) {
        for (cell, (sum, count)) in self.cells {
            let row = &mut centroids.rows[cell * centroids.len..(cell + 1) * centroids.len];
            row.iter_mut().zip(sum).for_each(|(x, sum)| *x = (sum / f64::from(count)) as f32);
        }
    }
}

#[derive(Default)]
struct Scratch {
    rotated: Vec<f32>,
    asking: Asking,
}

/// Room for one question after another.
#[derive(Default)]
struct Asking {
    query: Query,
    asked: Asked,
}

/// The codes of one shard's postings, with the cell of each.
#[derive(Default)]
struct Coded {
    cells: Vec<u32>,
    references: Vec<u32>,
    factors: Vec<Factors>,
    signs: Vec<u64>,
}

struct Pass<'a, F: StorageFile> {
    shards: &'a [Numbered<F::Lent>],
    /// The number of each shard's first posting.
    firsts: Vec<u32>,
    /// Numbers of postings that no centroid may know, in ascending order.
    held_out: Vec<u32>,
    data: &'a DataFile<F>,
    rotation: &'a Rotation,
    executor: &'a dyn Executor,
}

impl<F: StorageFile> Pass<'_, F> {
    /// Calls `work` with each live posting of a shard, rotated.
    fn each(&self, i: usize, mut work: impl FnMut(u32, &mut Scratch)) -> Result<()> {
        let geometry = self.data.geometry();
        let (shard, slots) = (&self.shards[i].1, geometry.extent_slots());
        let mut scratch = Scratch::default();
        for (e, extent) in shard.extents().iter().enumerate() {
            // Codes hide no damage of what they are made of: that keeps its own checksum.
            let bytes = extent.slots(self.data)?;
            for slot in (0..extent.used()).filter(|slot| shard.is_live(e * slots + slot)) {
                self.rotation.rotate(row(bytes, slot, geometry), &mut scratch.rotated);
                work(self.firsts[i] + (e * slots + slot) as u32, &mut scratch);
            }
        }
        Ok(())
    }

    /// One result for each shard, on as many threads as there are; `take` gets them in order, some at a time, so that no
    /// more than these are held.
    fn shards<T: Send + Sync>(&self, work: impl Fn(usize) -> Result<T> + Sync, mut take: impl FnMut(T)) -> Result<()> {
        const AT_A_TIME: usize = 64;
        for first in (0..self.shards.len()).step_by(AT_A_TIME) {
            let count = AT_A_TIME.min(self.shards.len() - first);
            let results: Vec<OnceLock<Result<T>>> = (0..count).map(|_| OnceLock::new()).collect();
            // Each number is given out once, so each place is set once.
            self.executor.for_each(count, &|i| drop(results[i].set(work(first + i))));
            for result in results.into_iter().filter_map(OnceLock::into_inner) {
                take(result?);
            }
        }
        Ok(())
    }

    /// As many rotated postings as asked for, by chance.
    fn sample(&self, count: usize, seed: (u128, u64)) -> Result<Vec<f32>> {
        let live = self.shards.iter().map(|(_, shard)| shard.live()).sum();
        let wanted = sample(live, count, seed.0, seed.1 | CENTROIDS);
        let (mut rows, mut seen, mut next) = (Vec::new(), 0, 0);
        for i in 0..self.shards.len() {
            if wanted.get(next).is_none_or(|&at| at >= seen + self.shards[i].1.live()) {
                seen += self.shards[i].1.live();
                continue;
            }
            self.each(i, |_, scratch| {
                if wanted.get(next) == Some(&seen) {
                    rows.extend_from_slice(&scratch.rotated);
                    next += 1;
                }
                seen += 1;
            })?;
        }
        Ok(rows)
    }

    /// Gives each posting to the nearest cell, of all or of the neighbours of the one it was given to before, and moves the
    /// centroids to the means of their postings. `homes` are the cells, by shard and live posting.
    fn refine(&self, centroids: &mut Centroids, grouped: &Grouped, homes: &mut Vec<Vec<u32>>) -> Result<()> {
        let neighbours = match homes.is_empty() {
            true => Vec::new(),
            false => grouped.neighbours(centroids, self.executor),
        };
        let (mut all, mut all_homes) = (Sums::default(), Vec::with_capacity(self.shards.len()));
        let give = |i: usize| {
            let (mut sums, mut new_homes) = (Sums::default(), Vec::new());
            self.each(i, |reference, scratch| {
                let home = match homes.get(i) {
                    Some(homes) => {
                        let known = &neighbours[homes[new_homes.len()] as usize];
                        grouped.nearest_of(&scratch.rotated, known)
                    }
                    None => {
                        grouped.nearest(&scratch.rotated, 1, &mut scratch.asking);
                        scratch.asking.asked.near.first().map_or(0, |near| near.number() as u32)
                    }
                };
                if self.held_out.binary_search(&reference).is_err() {
                    sums.add(home as usize, &scratch.rotated);
                }
                new_homes.push(home);
            })?;
            Ok((sums, new_homes))
        };
        self.shards(give, |(sums, new_homes)| {
            all.merge(sums);
            all_homes.push(new_homes);
        })?;
        *homes = all_homes;
        all.write_means(centroids);
        Ok(())
    }

    /// Codes every posting twice.
    fn encode(&self, centroids: &Centroids, grouped: &Grouped) -> Result<Vec<Coded>> {
        let metric = self.data.geometry().metric;
        let mut all = Vec::with_capacity(self.shards.len());
        let code = |i: usize| {
            let mut coded = Coded::default();
            self.each(i, |reference, scratch| {
                grouped.nearest(&scratch.rotated, limits::SOAR_CELLS + 1, &mut scratch.asking);
                let near = &scratch.asking.asked.near;
                let Some(first) = near.first().map(|near| near.number()) else { return };
                let second = second_cell(&scratch.rotated, first, &near[1..], centroids);
                for cell in [Some(first), second].into_iter().flatten() {
                    coded.cells.push(cell as u32);
                    coded.references.push(reference);
                    let factors = encode(&scratch.rotated, centroids.row(cell), metric, &mut coded.signs);
                    coded.factors.push(factors);
                }
            })?;
            Ok(coded)
        };
        self.shards(code, |coded| all.push(coded))?;
        Ok(all)
    }
}

/// SOAR's choice among near cells: the least `|r'|² + λ (r'·r̂)²`, `r` the residual to the first.
fn second_cell(x: &[f32], first: usize, near: &[Near], centroids: &Centroids) -> Option<usize> {
    let home = centroids.row(first);
    let square = distance::squared_l2(x, home);
    let mut residual: Vec<f32> = Vec::with_capacity(x.len());
    let best = near.iter().map(|near| {
        let other = centroids.row(near.number());
        residual.clear();
        residual.extend(x.iter().zip(home).map(|(x, c)| x - c));
        // r·r' = r·x − r·c'
        let along = distance::dot(&residual, x) - distance::dot(&residual, other);
        let penalty = if square > 0.0 { limits::SOAR_LAMBDA * along * (along / square) } else { 0.0 };
        Near::new(distance::squared_l2(x, other) + penalty, near.number() as u32)
    });
    best.min().map(|near| near.number())
}

/// Makes cells for some shards, in ascending order of their numbers; none if they hold no posting, or if not even one
/// cell fits `largest` bytes.
///
/// `before` are cells to start from, which makes it quicker. Cost: a few hundred products of bytes a posting and round.
///
/// # Errors
/// `Corruption` if a vector is damaged.
pub fn build<F: StorageFile, B: std::ops::Deref<Target = [u8]>>(
    shards: &[Numbered<F::Lent>],
    data: &DataFile<F>,
    (rotation, before): (&Rotation, Option<&CellIndex<B>>),
    (seed, executor): ((u128, u64), &dyn Executor),
    largest: usize,
) -> Result<Option<Built>> {
    let mut firsts = Vec::with_capacity(shards.len());
    let (mut postings, mut live) = (0u64, 0);
    for (_, shard) in shards {
        firsts.push(postings as u32);
        postings += shard.len().next_multiple_of(64) as u64;
        live += shard.live();
    }
    let words = rotation.len() / 64;
    let one_block = GroupLayout { cells: 1, codes: BLOCK, words };
    if live == 0 || postings > u64::from(u32::MAX) || one_block.len() > largest {
        return Ok(None);
    }
    let held_out = held_out(shards.iter().map(|(number, shard)| (*number, &**shard)), live, seed);
    let held_out = held_out.into_iter().map(|(i, _, slot)| firsts[i] + slot as u32).collect();
    let pass = Pass { shards, firsts, held_out, data, rotation, executor };
    let cells = live.div_ceil(limits::CELL_POSTINGS);
    let mut centroids = Centroids { len: rotation.len(), rows: Vec::new() };
    if let Some(before) = before.filter(|before| {
        // Many more centroids than there were cannot be told from these by a few rounds: a posting alone is no mean.
        let known = before.cells() as usize;
        known * 10 >= cells * 9 && known * 9 <= cells * 10
    }) {
        centroids.rows = centroids_of(before);
        centroids.rows.truncate(cells * centroids.len);
    }
    let known = centroids.count();
    centroids.rows.extend(pass.sample(cells - known, seed)?);
    // Centroids that have settled need little more.
    let rounds = if known > 0 { limits::CELL_ROUNDS / 2 } else { limits::CELL_ROUNDS };
    let mut grouped = Grouped::new(&mut centroids, seed, executor);
    let mut homes = Vec::new();
    for _ in 0..rounds {
        pass.refine(&mut centroids, &grouped, &mut homes)?;
        grouped = Grouped::new(&mut centroids, seed, executor);
    }
    let coded = pass.encode(&centroids, &grouped)?;
    Ok(Some(lay_out(&pass, &grouped, (&centroids, &coded), (words, largest))))
}

/// Postings by chance to ask for afterwards, which no centroid may know: those that it was made of are nearer to it than
/// others. As the shard's position and number, and the slot.
pub fn held_out<'a, L: std::ops::Deref<Target = [u8]> + Clone + 'a>(
    shards: impl Iterator<Item = (u32, &'a Shard<L>)>,
    live: usize,
    seed: (u128, u64),
) -> Vec<(usize, u32, usize)> {
    let wanted = sample(live, limits::CALIBRATION_QUERIES.min(live / 4), seed.0, seed.1 | HELD_OUT);
    let (mut found, mut seen) = (Vec::new(), 0);
    for (i, (number, shard)) in shards.enumerate() {
        let next = &wanted[found.len()..];
        let here = next.iter().take_while(|&&at| at < seen + shard.live()).count();
        if here > 0 {
            let live: Vec<usize> = (0..shard.len()).filter(|&slot| shard.is_live(slot)).collect();
            found.extend(next[..here].iter().map(|at| (i, number, live[at - seen])));
        }
        seen += shard.live();
    }
    found
}

/// The rotated centroids of cells whose groups can be read.
fn centroids_of<B: std::ops::Deref<Target = [u8]>>(cells: &CellIndex<B>) -> Vec<f32> {
    let mut rows = Vec::new();
    for group in (0..cells.len()).filter_map(|i| cells.group(i).ok()) {
        for i in 0..group.cells() {
            let step = group.cell(i).step;
            rows.extend(group.centroid(i).iter().map(|&byte| f32::from(i16::from(byte) - 128) * step));
        }
    }
    rows
}

/// A cell to be laid out, and which of its codes.
#[derive(Clone)]
struct Piece {
    cell: usize,
    codes: std::ops::Range<usize>,
}

/// Puts codes into groups of at most `largest` bytes.
fn lay_out<F: StorageFile>(
    pass: &Pass<'_, F>,
    grouped: &Grouped,
    (centroids, coded): (&Centroids, &[Coded]),
    (words, largest): (usize, usize),
) -> Built {
    // For each cell its codes, as (shard, position).
    let mut codes: Vec<Vec<(u32, u32)>> = vec![Vec::new(); centroids.count()];
    for (i, coded) in coded.iter().enumerate() {
        coded.cells.iter().enumerate().for_each(|(at, &cell)| codes[cell as usize].push((i as u32, at as u32)));
    }
    let shards = pass.shards.iter();
    let shards = shards.map(|(number, shard)| Covered { number: *number, slots: shard.len() as u32, id: shard.id });
    let mut table = CellTable { words, shards: shards.collect(), ..CellTable::default() };
    let fits = |cells: usize, codes: usize| GroupLayout { cells, codes, words }.len() <= largest;
    let most_codes = (1..).map(|blocks| blocks * BLOCK).take_while(|&codes| fits(1, codes)).last().unwrap_or(BLOCK);
    let mut groups = Vec::new();
    let mut members: Vec<(usize, Vec<usize>)> = Vec::new();
    for (g, cells) in grouped.members.iter().enumerate() {
        // A cell of too many codes becomes several with one centroid, a group of too many cells several with one pivot.
        let mut pieces: Vec<Piece> = Vec::new();
        for &cell in cells {
            let all = codes[cell].len();
            let starts = (0..all).step_by(most_codes);
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
            let CentroidBytes { step, square } = grouped.stored[g];
            table.groups.push(GroupEntry { place, step, square, cells: taken as u32, codes: sum as u32 });
            groups.push(Aligned::new(&bytes));
            members.push((g, group.iter().map(|piece| piece.cell).collect()));
        }
    }
    let of_group = members.iter().map(|(g, cells)| {
        let cells = cells.iter().map(|&cell| centroids.row(cell)).collect();
        (grouped.pivots.row(*g), grouped.stored[*g], cells)
    });
    let router = Router::of(words, pass.data.geometry().metric, of_group);
    table.centroids = router.codes.to_vec();
    table.pivots = router.pivots;
    Built { table, groups }
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
        let CentroidBytes { step, square } = grouped.centroid_bytes[piece.cell];
        cells.push(CellEntry { step, square, first: blocks.len() as u32, count: piece.codes.len() as u32 });
        centroids.extend_from_slice(grouped.row(piece.cell));
        for &(shard, position) in &codes[piece.cell][piece.codes.clone()] {
            let (coded, position) = (&coded[shard as usize], position as usize);
            let signs = &coded.signs[position * layout.words..(position + 1) * layout.words];
            blocks.push(signs, coded.factors[position], coded.references[position]);
        }
    }
    encode_group(layout, &cells, &centroids, blocks.bytes())
}
