//! Cell build: k-means over all vectors on two levels, seeded by the previous cells.
//!
//! The build is deterministic: the same shards and the same seed give the same bytes for any number of threads. Vectors
//! are read in place, shard by shard. Besides them the build holds their codes, about a hundred bytes per posting.

use std::sync::Arc;

use super::{
    CellIndex, GroupView, RankedId,
    groups::{CentroidGroups, Centroids, NearestScratch, Sums},
    layout::{BuiltCells, LayoutParams, NumberedShard, ShardCodes, lay_out},
};
use crate::{
    codes::{CoordinateFrame, Rotation, encode, medians, sample},
    distance::{self, BLOCK},
    env::{Never, Workers},
    error::{Result, ShardexError},
    format::{FormatError, cells::GroupLayout},
    shard::{DataFile, Shard, row},
    storage::StorageFile,
    tuning,
};

/// Purpose bits of the random draws. Each purpose sets its own bits so that draws are independent. Two draws with the
/// same bits would select the same postings.
const CENTROIDS: u64 = 1 << 58;
const HELD_OUT: u64 = 3 << 58;
const CENTRE: u64 = 4 << 58;

/// Number of sampled postings whose component medians are the centre of a frame.
const CENTRE_SAMPLE: usize = 1_024;
/// Largest squared distance between the centre of the previous frame and the new centre at which the previous frame is
/// kept, as a part of the median squared distance of a posting from the new centre.
const CENTRE_MOVED: f64 = 1.0 / 64.0;

#[derive(Default)]
struct Scratch {
    transformed: Vec<f32>,
    scratch: NearestScratch,
}

/// Starting point of the k-means rounds.
struct Start {
    /// Rounds that an earlier build finished.
    done: usize,
    /// Rounds left to run.
    rounds: usize,
}

impl Start {
    /// Starts after `done` finished rounds. At least one round runs, because the held-out postings may differ from
    /// those of the earlier build. A round sets each centroid to the mean of its postings that are not held out.
    fn after(done: usize) -> Self {
        Self { done, rounds: tuning::CELL_ROUNDS.saturating_sub(done).max(1) }
    }
}

/// Postings of the shards that a build covers.
struct Rows<'a, F: StorageFile> {
    shards: &'a [NumberedShard<F::Lent>],
    /// Number of the first posting of each shard.
    firsts: Vec<u32>,
    data: &'a DataFile<F>,
    workers: Workers<'a>,
}

struct Pass<'a, F: StorageFile> {
    rows: Rows<'a, F>,
    /// Numbers of the held-out postings, which no mean includes, in ascending order.
    held_out: Vec<u32>,
    frame: Arc<CoordinateFrame>,
}

impl<F: StorageFile> Rows<'_, F> {
    /// Calls `work` with the number and the vector of each live posting of shard `i`.
    fn each(&self, i: usize, mut work: impl FnMut(u32, &[f32])) -> Result<()> {
        let geometry = self.data.geometry();
        let (shard, slots) = (&self.shards[i].1, geometry.extent_slots);
        let mut widened = Vec::new();
        for (e, extent) in shard.extents().iter().enumerate() {
            self.workers.cancel.check()?;
            // A check at the first use suffices, because codes don't replace vectors: later damage still fails the
            // checksum of the extent.
            let bytes = extent.slots(self.data)?;
            for slot in (0..extent.used()).filter(|slot| shard.is_live(e * slots + slot)) {
                work(self.firsts[i] + (e * slots + slot) as u32, row(bytes, slot, geometry).widened(&mut widened));
            }
        }
        Ok(())
    }

    /// Computes one result per shard in parallel and passes the results to `take` in the order of the shards. Shards
    /// are processed in batches, so that at most one batch of results is held.
    fn shards<T: Send + Sync>(&self, work: impl Fn(usize) -> Result<T> + Sync, mut take: impl FnMut(T)) -> Result<()> {
        const AT_A_TIME: usize = 64;
        for first in (0..self.shards.len()).step_by(AT_A_TIME) {
            let count = AT_A_TIME.min(self.shards.len() - first);
            for result in self.workers.map(count, &|i| work(first + i))? {
                take(result?);
            }
        }
        Ok(())
    }

    /// Returns the vectors of `count` live postings drawn at random, or of all live postings if there are fewer.
    fn sample(&self, count: usize, index_id: u128, draw: u64) -> Result<Vec<f32>> {
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

    /// Returns the frame for these postings: the previous one if its centre is still near the median, or a new one.
    fn frame(
        &self,
        before: Option<&Arc<CoordinateFrame>>,
        rotation: &Arc<Rotation>,
        seed: (u128, u64),
    ) -> Result<Arc<CoordinateFrame>> {
        let geometry = self.data.geometry();
        let rows = self.sample(CENTRE_SAMPLE, seed.0, seed.1 | CENTRE)?;
        let centre = medians(&rows, geometry.dimension);
        let apart = |row: &[f32]| -> f64 {
            row.iter().zip(&centre).map(|(x, c)| (f64::from(*x) - f64::from(*c)).powi(2)).sum()
        };
        // The median, not the mean, because a few postings may be arbitrarily far away.
        let mut spread: Vec<f64> = rows.chunks_exact(geometry.dimension).map(apart).collect();
        let middle = spread.len() / 2;
        let spread = *spread.select_nth_unstable_by(middle, f64::total_cmp).1;
        Ok(match before.filter(|before| apart(before.centre()) <= CENTRE_MOVED * spread) {
            Some(before) => Arc::clone(before),
            None => Arc::new(CoordinateFrame::new(Arc::clone(rotation), centre, geometry.metric)),
        })
    }
}

impl<F: StorageFile> Pass<'_, F> {
    /// Calls `work` with each live posting of shard `i`, transformed into the frame.
    fn each(&self, i: usize, mut work: impl FnMut(u32, &mut Scratch)) -> Result<()> {
        let mut scratch = Scratch::default();
        self.rows.each(i, |reference, row| {
            self.frame.transform(row, &mut scratch.transformed);
            work(reference, &mut scratch);
        })
    }

    /// Returns the centroids to start from: those of the previous cells if there are about as many, filled up with
    /// postings drawn at random.
    fn first_centroids<B: std::ops::Deref<Target = [u8]>>(
        &self,
        before: Option<&CellIndex<B>>,
        cells: usize,
        seed: (u128, u64),
    ) -> Result<(Centroids, Start)> {
        let mut centroids = Centroids { len: self.frame.len(), rows: Vec::new() };
        let mut start = Start { done: 0, rounds: tuning::CELL_ROUNDS };
        // Known centroids serve if their number is 9/10 to 10/9 of the new one. Each further centroid starts as a
        // single posting, and a few rounds don't turn many of these into means.
        let serve = |known: u64| known * 10 >= cells as u64 * 9 && known * 9 <= cells as u64 * 10;
        match before {
            Some(before) if before.has_unfinished() && serve(before.unfinished_cells()) => {
                centroids.rows = centroids_of(before.unfinished(), &self.frame, before.frame());
                start = Start::after(before.table().rounds as usize);
            }
            Some(before) if before.is_searchable() && serve(before.cells()) => {
                let groups = (0..before.len()).map(|i| before.group(i));
                centroids.rows = centroids_of(groups, &self.frame, before.frame());
                // Settled centroids need fewer rounds.
                start.rounds = tuning::CELL_ROUNDS / 2;
            }
            _ => {}
        }
        centroids.rows.truncate(cells * centroids.len);
        let known = centroids.count();
        let rows = self.rows.sample(cells - known, seed.0, seed.1 | CENTROIDS)?;
        let mut transformed = Vec::new();
        for row in rows.chunks_exact(self.rows.data.geometry().dimension) {
            self.frame.transform(row, &mut transformed);
            centroids.rows.extend_from_slice(&transformed);
        }
        Ok((centroids, start))
    }

    /// Assigns each posting to the nearest cell, and moves each centroid to the mean of its postings that are not held
    /// out.
    ///
    /// If `assignments` is empty, [`CentroidGroups::nearest`] finds the cell. Otherwise a posting is compared only with
    /// the neighbours of its cell in `assignments`. The new cells of the live postings replace `assignments`, shard by
    /// shard.
    fn refine(
        &self,
        centroids: &mut Centroids,
        grouped: &CentroidGroups,
        assignments: &mut Vec<Vec<u32>>,
    ) -> Result<()> {
        let neighbours =
            if assignments.is_empty() { Vec::new() } else { grouped.neighbours(centroids, self.rows.workers)? };
        let (mut all, mut all_assignments) = (Sums::default(), Vec::with_capacity(self.rows.shards.len()));
        let give = |i: usize| {
            let (mut sums, mut new_assignments) = (Sums::default(), Vec::new());
            self.each(i, |reference, scratch| {
                let cell = match assignments.get(i) {
                    Some(assignments) => {
                        let known = &neighbours[assignments[new_assignments.len()] as usize];
                        grouped.nearest_of(&scratch.transformed, known)
                    }
                    None => {
                        grouped.nearest(&scratch.transformed, 1, &mut scratch.scratch);
                        scratch.scratch.routing.near.first().map_or(0, |near| near.number() as u32)
                    }
                };
                if self.held_out.binary_search(&reference).is_err() {
                    sums.add(cell as usize, &scratch.transformed);
                }
                new_assignments.push(cell);
            })?;
            Ok((sums, new_assignments))
        };
        self.rows.shards(give, |(sums, new_assignments)| {
            all.merge(sums);
            all_assignments.push(new_assignments);
        })?;
        *assignments = all_assignments;
        all.write_means(centroids);
        Ok(())
    }

    /// Encodes each live posting for the nearest cell, and for the second cell that SOAR selects.
    fn encode(&self, centroids: &Centroids, grouped: &CentroidGroups) -> Result<Vec<ShardCodes>> {
        let metric = self.rows.data.geometry().metric;
        let mut all = Vec::with_capacity(self.rows.shards.len());
        let code = |i: usize| {
            let mut coded = ShardCodes::default();
            self.each(i, |reference, scratch| {
                grouped.nearest(&scratch.transformed, tuning::SOAR_CELLS + 1, &mut scratch.scratch);
                let near = &scratch.scratch.routing.near;
                let Some(first) = near.first().map(|near| near.number()) else { return };
                let second = second_cell(&scratch.transformed, first, &near[1..], centroids);
                for cell in [Some(first), second].into_iter().flatten() {
                    coded.cells.push(cell as u32);
                    coded.references.push(reference);
                    let factors = encode(
                        &scratch.transformed,
                        centroids.row(cell),
                        self.frame.rotated_centre(),
                        metric,
                        &mut coded.signs,
                    );
                    coded.factors.push(factors);
                }
            })?;
            Ok(coded)
        };
        self.rows.shards(code, |coded| all.push(coded))?;
        Ok(all)
    }
}

/// Selects SOAR's second cell among `near`: the one with the least `|r'|² + λ (r'·r̂)²`, where `r` is the residual to
/// the first cell and `r'` the residual to the candidate. Returns `None` if `near` is empty.
fn second_cell(x: &[f32], first: usize, near: &[RankedId], centroids: &Centroids) -> Option<usize> {
    let centroid = centroids.row(first);
    let square = distance::squared_l2(x, centroid);
    let mut residual: Vec<f32> = Vec::with_capacity(x.len());
    let best = near.iter().map(|near| {
        let other = centroids.row(near.number());
        residual.clear();
        residual.extend(x.iter().zip(centroid).map(|(x, c)| x - c));
        // r·r' = r·x − r·c'
        let centre_product = distance::dot(&residual, x) - distance::dot(&residual, other);
        let penalty = if square > 0.0 { tuning::SOAR_LAMBDA * centre_product * (centre_product / square) } else { 0.0 };
        RankedId::new(distance::squared_l2(x, other) + penalty, near.number() as u32)
    });
    best.min().map(|near| near.number())
}

/// Builds cells for shards, which must be in ascending order of their numbers. Returns `None` if they hold no live
/// posting, if a posting number exceeds 32 bits, or if a group of one cell and one block of codes exceeds `largest`
/// bytes.
///
/// The centroids of `before` shorten the build. If the build is cancelled after a finished round, it returns the
/// centroids of the last finished round [beside](BuiltCells::into_unfinished) the previous cells.
///
/// Cost per posting: the first round and the encoding compute a product of bytes with every pivot and with
/// `tuning::BUILD_CELLS` centroids, and scan the codes of the centroids in half of the groups, but in at least
/// `tuning::BUILD_GROUPS`. Each later round computes a product of bytes with about `tuning::CELL_NEIGHBOURS` centroids.
///
/// # Errors
/// Returns `Corruption` if a vector is damaged. Returns `Closed` if the build is cancelled before a round is finished.
pub fn build<F: StorageFile, B: std::ops::Deref<Target = [u8]>>(
    shards: &[NumberedShard<F::Lent>],
    data: &DataFile<F>,
    rotation: &Arc<Rotation>,
    before: Option<&CellIndex<B>>,
    seed: (u128, u64),
    workers: Workers<'_>,
    largest: usize,
) -> Result<Option<BuiltCells>> {
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
    let (mut centroids, start) = pass.first_centroids(before, live.div_ceil(tuning::CELL_POSTINGS), seed)?;
    let mut grouped = CentroidGroups::new(&mut centroids, frame.rotated_centre(), seed, workers)?;
    let params = LayoutParams { shards, metric: data.geometry().metric, frame: &frame, largest };
    // Result of a cancelled build: the centroids of the last finished round.
    let left = |grouped: &CentroidGroups, done| {
        let left = lay_out(&params, grouped, &grouped.centroids(), &[], &Never)?;
        Ok(Some(left.into_unfinished(done, before)))
    };
    let (mut assignments, mut done) = (Vec::new(), start.done);
    for _ in 0..start.rounds {
        let refined = pass.refine(&mut centroids, &grouped, &mut assignments);
        match refined.and_then(|()| CentroidGroups::new(&mut centroids, frame.rotated_centre(), seed, workers)) {
            Ok(next) => grouped = next,
            Err(ShardexError::Closed) if done > start.done => return left(&grouped, done),
            Err(error) => return Err(error),
        }
        done = (done + 1).min(tuning::CELL_ROUNDS);
    }
    let coded = pass.encode(&centroids, &grouped);
    match coded.and_then(|coded| lay_out(&params, &grouped, &centroids, &coded, workers.cancel)) {
        Ok(built) => Ok(Some(built)),
        Err(ShardexError::Closed) => left(&grouped, done),
        Err(error) => Err(error),
    }
}

/// Draws the held-out postings, which calibration searches for. No centroid may include them, because postings averaged
/// into a centroid are unnaturally near it. Returns the position and the number of the shard, and the slot, in
/// ascending order. There are at most `tuning::CALIBRATION_QUERIES.0`, and at most one in
/// `tuning::CALIBRATION_QUERIES.1` live postings.
pub fn held_out<'a, L: std::ops::Deref<Target = [u8]> + Clone + 'a>(
    shards: impl Iterator<Item = (u32, &'a Shard<L>)>,
    live: usize,
    seed: (u128, u64),
) -> Vec<(usize, u32, usize)> {
    let wanted = sample(
        live,
        tuning::CALIBRATION_QUERIES.0.min(live / tuning::CALIBRATION_QUERIES.1),
        seed.0,
        seed.1 | HELD_OUT,
    );
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

/// Returns the centroids of readable groups, moved from the frame `of` into `frame`. Damaged groups are skipped.
fn centroids_of<'a>(
    groups: impl Iterator<Item = std::result::Result<GroupView<'a>, FormatError>>,
    frame: &CoordinateFrame,
    of: &CoordinateFrame,
) -> Vec<f32> {
    let by = frame.offset_from(of);
    let mut rows = Vec::new();
    for group in groups.flatten() {
        for i in 0..group.cells() {
            rows.extend(group.centroid_values(i).zip(&by).map(|(x, by)| x + by));
        }
    }
    rows
}
