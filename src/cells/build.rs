//! Making cells: k-means over all vectors, on two levels, seeded by the cells before.
//!
//! Deterministic: the same shards and the same seed give the same bytes, however many threads work. Vectors are read where
//! they lie, shard by shard; what is held besides is their codes, some hundred bytes a posting.

use std::sync::{Arc, OnceLock};

use super::{
    CellIndex, GroupView, Near,
    grouped::{Asking, Centroids, Grouped, Sums},
    layout::{Built, lay_out},
};
use crate::{
    codes::{Factors, Frame, Rotation, encode, medians, sample},
    distance::{self, BLOCK},
    env::{Never, Workers},
    error::{Result, ShardexError},
    format::{FormatError, cells::GroupLayout},
    limits,
    shard::{DataFile, Shard, row},
    storage::StorageFile,
};

/// A shard by its number.
pub type Numbered<L> = (u32, Arc<Shard<L>>);

/// What a draw is for: draws for two purposes from one generator would pick the same postings.
const CENTROIDS: u64 = 1 << 58;
pub(super) const PIVOTS: u64 = 2 << 58;
const HELD_OUT: u64 = 3 << 58;
const CENTRE: u64 = 4 << 58;

/// Postings of whose components the centre of a frame is the median.
const CENTRE_SAMPLE: usize = 1_024;
/// A frame serves as long as the square of the distance from its centre to the middle of the data is so small a part of the
/// mean square of the distance from there to a posting.
const CENTRE_MOVED: f64 = 1.0 / 64.0;

#[derive(Default)]
struct Scratch {
    placed: Vec<f32>,
    asking: Asking,
}

/// The codes of one shard's postings, with the cell of each.
#[derive(Default)]
pub(super) struct Coded {
    pub(super) cells: Vec<u32>,
    pub(super) references: Vec<u32>,
    pub(super) factors: Vec<Factors>,
    pub(super) signs: Vec<u64>,
}

/// Where a build begins.
struct Start {
    /// Rounds that an earlier build has done.
    done: usize,
    /// Rounds to be done.
    rounds: usize,
}

impl Start {
    /// At least one round is done again: the postings held out for the calibration may be others now, and a round leaves no
    /// posting in a centroid that is held out.
    fn after(done: usize) -> Self {
        Self { done, rounds: limits::CELL_ROUNDS.saturating_sub(done).max(1) }
    }
}

/// The postings that cells are made of.
struct Rows<'a, F: StorageFile> {
    shards: &'a [Numbered<F::Lent>],
    /// The number of each shard's first posting.
    firsts: Vec<u32>,
    data: &'a DataFile<F>,
    workers: Workers<'a>,
}

struct Pass<'a, F: StorageFile> {
    rows: Rows<'a, F>,
    /// Numbers of postings that no centroid may know, in ascending order.
    held_out: Vec<u32>,
    frame: Arc<Frame>,
}

impl<F: StorageFile> Rows<'_, F> {
    /// Calls `work` with each live posting of a shard.
    fn each(&self, i: usize, mut work: impl FnMut(u32, &[f32])) -> Result<()> {
        let geometry = self.data.geometry();
        let (shard, slots) = (&self.shards[i].1, geometry.extent_slots());
        for (e, extent) in shard.extents().iter().enumerate() {
            self.workers.cancel.check()?;
            // Codes hide no damage of what they are made of: that keeps its own checksum.
            let bytes = extent.slots(self.data)?;
            for slot in (0..extent.used()).filter(|slot| shard.is_live(e * slots + slot)) {
                work(self.firsts[i] + (e * slots + slot) as u32, row(bytes, slot, geometry));
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
            self.workers.for_each(count, &|i| drop(results[i].set(work(first + i))))?;
            for result in results.into_iter().filter_map(OnceLock::into_inner) {
                take(result?);
            }
        }
        Ok(())
    }

    /// As many postings as asked for, by chance.
    fn sample(&self, count: usize, (index_id, draw): (u128, u64)) -> Result<Vec<f32>> {
        let live = self.shards.iter().map(|(_, shard)| shard.live()).sum();
        let wanted = sample(live, count, index_id, draw);
        let (mut rows, mut seen, mut next) = (Vec::new(), 0, 0);
        for i in 0..self.shards.len() {
            if wanted.get(next).is_none_or(|&at| at >= seen + self.shards[i].1.live()) {
                seen += self.shards[i].1.live();
                continue;
            }
            self.each(i, |_, row| {
                if wanted.get(next) == Some(&seen) {
                    rows.extend_from_slice(row);
                    next += 1;
                }
                seen += 1;
            })?;
        }
        Ok(rows)
    }

    /// The frame for these postings: one that there is, if it still serves.
    fn frame(&self, before: Option<&Arc<Frame>>, rotation: &Arc<Rotation>, seed: (u128, u64)) -> Result<Arc<Frame>> {
        let geometry = self.data.geometry();
        let rows = self.sample(CENTRE_SAMPLE, (seed.0, seed.1 | CENTRE))?;
        let centre = medians(&rows, geometry.dimension);
        let apart = |row: &[f32]| -> f64 {
            row.iter().zip(&centre).map(|(x, c)| (f64::from(*x) - f64::from(*c)).powi(2)).sum()
        };
        // Most, not all: a few may lie anywhere.
        let mut spread: Vec<f64> = rows.chunks_exact(geometry.dimension).map(apart).collect();
        let middle = spread.len() / 2;
        let spread = *spread.select_nth_unstable_by(middle, f64::total_cmp).1;
        Ok(match before.filter(|before| apart(before.centre()) <= CENTRE_MOVED * spread) {
            Some(before) => Arc::clone(before),
            None => Arc::new(Frame::new(Arc::clone(rotation), centre, geometry.metric)),
        })
    }
}

impl<F: StorageFile> Pass<'_, F> {
    /// Calls `work` with each live posting of a shard, placed in the frame.
    fn each(&self, i: usize, mut work: impl FnMut(u32, &mut Scratch)) -> Result<()> {
        let mut scratch = Scratch::default();
        self.rows.each(i, |reference, row| {
            self.frame.place(row, &mut scratch.placed);
            work(reference, &mut scratch);
        })
    }

    /// The centroids to start from: those of the cells before as far as they serve, and postings by chance.
    fn first_centroids<B: std::ops::Deref<Target = [u8]>>(
        &self,
        before: Option<&CellIndex<B>>,
        cells: usize,
        seed: (u128, u64),
    ) -> Result<(Centroids, Start)> {
        let mut centroids = Centroids { len: self.frame.len(), rows: Vec::new() };
        let mut start = Start { done: 0, rounds: limits::CELL_ROUNDS };
        // Many more centroids than there were cannot be told from these by a few rounds: a posting alone is no mean.
        let serve = |known: u64| known * 10 >= cells as u64 * 9 && known * 9 <= cells as u64 * 10;
        match before {
            Some(before) if before.has_ahead() && serve(before.cells_ahead()) => {
                centroids.rows = centroids_of(before.ahead(), &self.frame, before.frame());
                start = Start::after(before.table().rounds as usize);
            }
            Some(before) if before.is_searchable() && serve(before.cells()) => {
                let groups = (0..before.len()).map(|i| before.group(i));
                centroids.rows = centroids_of(groups, &self.frame, before.frame());
                // Centroids that have settled need little more.
                start.rounds = limits::CELL_ROUNDS / 2;
            }
            _ => {}
        }
        centroids.rows.truncate(cells * centroids.len);
        let known = centroids.count();
        let rows = self.rows.sample(cells - known, (seed.0, seed.1 | CENTROIDS))?;
        let mut placed = Vec::new();
        for row in rows.chunks_exact(self.rows.data.geometry().dimension) {
            self.frame.place(row, &mut placed);
            centroids.rows.extend_from_slice(&placed);
        }
        Ok((centroids, start))
    }

    /// Gives each posting to the nearest cell, of all or of the neighbours of the one it was given to before, and moves the
    /// centroids to the means of their postings. `homes` are the cells, by shard and live posting.
    fn refine(&self, centroids: &mut Centroids, grouped: &Grouped, homes: &mut Vec<Vec<u32>>) -> Result<()> {
        let neighbours = match homes.is_empty() {
            true => Vec::new(),
            false => grouped.neighbours(centroids, self.rows.workers)?,
        };
        let (mut all, mut all_homes) = (Sums::default(), Vec::with_capacity(self.rows.shards.len()));
        let give = |i: usize| {
            let (mut sums, mut new_homes) = (Sums::default(), Vec::new());
            self.each(i, |reference, scratch| {
                let home = match homes.get(i) {
                    Some(homes) => {
                        let known = &neighbours[homes[new_homes.len()] as usize];
                        grouped.nearest_of(&scratch.placed, known)
                    }
                    None => {
                        grouped.nearest(&scratch.placed, 1, &mut scratch.asking);
                        scratch.asking.asked.near.first().map_or(0, |near| near.number() as u32)
                    }
                };
                if self.held_out.binary_search(&reference).is_err() {
                    sums.add(home as usize, &scratch.placed);
                }
                new_homes.push(home);
            })?;
            Ok((sums, new_homes))
        };
        self.rows.shards(give, |(sums, new_homes)| {
            all.merge(sums);
            all_homes.push(new_homes);
        })?;
        *homes = all_homes;
        all.write_means(centroids);
        Ok(())
    }

    /// Codes every posting twice.
    fn encode(&self, centroids: &Centroids, grouped: &Grouped) -> Result<Vec<Coded>> {
        let metric = self.rows.data.geometry().metric;
        let mut all = Vec::with_capacity(self.rows.shards.len());
        let code = |i: usize| {
            let mut coded = Coded::default();
            self.each(i, |reference, scratch| {
                grouped.nearest(&scratch.placed, limits::SOAR_CELLS + 1, &mut scratch.asking);
                let near = &scratch.asking.asked.near;
                let Some(first) = near.first().map(|near| near.number()) else { return };
                let second = second_cell(&scratch.placed, first, &near[1..], centroids);
                for cell in [Some(first), second].into_iter().flatten() {
                    coded.cells.push(cell as u32);
                    coded.references.push(reference);
                    let factors = encode(&scratch.placed, centroids.row(cell), self.frame.turned(), metric, &mut coded.signs);
                    coded.factors.push(factors);
                }
            })?;
            Ok(coded)
        };
        self.rows.shards(code, |coded| all.push(coded))?;
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
/// Cancelled after a round, it returns the centroids that it has reached, [beside](Built::into_ahead) the cells before.
///
/// # Errors
/// `Corruption` if a vector is damaged, `Closed` if it is cancelled and leaves nothing.
pub fn build<F: StorageFile, B: std::ops::Deref<Target = [u8]>>(
    shards: &[Numbered<F::Lent>],
    data: &DataFile<F>,
    (rotation, before): (&Arc<Rotation>, Option<&CellIndex<B>>),
    (seed, workers): ((u128, u64), Workers<'_>),
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
    let rows = Rows { shards, firsts, data, workers };
    let frame = rows.frame(before.map(CellIndex::frame), rotation, seed)?;
    let pass = Pass { rows, held_out, frame: Arc::clone(&frame) };
    let (mut centroids, start) = pass.first_centroids(before, live.div_ceil(limits::CELL_POSTINGS), seed)?;
    let mut grouped = Grouped::new(&mut centroids, frame.turned(), seed, workers)?;
    let sizes = (&frame, largest);
    let of = (shards, data.geometry().metric);
    // What a build that is given up leaves: the centroids of the last round that came to its end.
    let left = |grouped: &Grouped, done| {
        let left = lay_out(of, grouped, (&grouped.centroids(), &[]), sizes, &Never)?;
        Ok(Some(left.into_ahead(done, before)))
    };
    let (mut homes, mut done) = (Vec::new(), start.done);
    for _ in 0..start.rounds {
        let refined = pass.refine(&mut centroids, &grouped, &mut homes);
        match refined.and_then(|()| Grouped::new(&mut centroids, frame.turned(), seed, workers)) {
            Ok(next) => grouped = next,
            Err(ShardexError::Closed) if done > start.done => return left(&grouped, done),
            Err(error) => return Err(error),
        }
        done = (done + 1).min(limits::CELL_ROUNDS);
    }
    let coded = pass.encode(&centroids, &grouped);
    match coded.and_then(|coded| lay_out(of, &grouped, (&centroids, &coded), sizes, workers.cancel)) {
        Ok(built) => Ok(Some(built)),
        Err(ShardexError::Closed) => left(&grouped, done),
        Err(error) => Err(error),
    }
}

/// Postings by chance to ask for afterwards, which no centroid may know: those that it was made of are nearer to it than
/// others. As the shard's position and number, and the slot.
pub fn held_out<'a, L: std::ops::Deref<Target = [u8]> + Clone + 'a>(
    shards: impl Iterator<Item = (u32, &'a Shard<L>)>,
    live: usize,
    seed: (u128, u64),
) -> Vec<(usize, u32, usize)> {
    let wanted = sample(live, limits::CALIBRATION_QUERIES.0.min(live / limits::CALIBRATION_QUERIES.1), seed.0, seed.1 | HELD_OUT);
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

/// The centroids, in a frame, of cells whose groups can be read; theirs is `of`.
fn centroids_of<'a>(
    groups: impl Iterator<Item = std::result::Result<GroupView<'a>, FormatError>>,
    frame: &Frame,
    of: &Frame,
) -> Vec<f32> {
    let by = frame.moved_from(of);
    let mut rows = Vec::new();
    for group in groups.flatten() {
        for i in 0..group.cells() {
            rows.extend(group.centroid_values(i).zip(&by).map(|(x, by)| x + by));
        }
    }
    rows
}
