//! What it takes to find a share of the nearest: found by asking for vectors of which the true nearest are known
//! (see [`questions`](super::questions)), and held against others.
//!
//! Invariants:
//! 1. What is found by one half of the questions is kept only if it does for the other half, and what *that* reaches is what
//!    is stored. Where nothing less does, or costs no more, it is to look at everything.
//! 2. Cells are asked with what searches of the snapshot will look at besides: nothing where they are made of it, and all
//!    that came since where they are older.
//!    Questions are held out of the centroids of new cells; those of older cells may know some of them, each as one of some thirty.
//! 3. The time that is stored is that of the oldest effort: an effort is never taken for newer than it is.

use std::{ops::Deref, sync::Arc};

use super::{
    needs::{Came, Coded, Found, Needs, Way, at, sorted},
    probe::{Probed, Reach, probe},
    questions::{Question, halves, questions},
    search::{distance_by, shard_of},
    snapshot::{CHUNK_SHARDS, Snapshot},
    topk::Candidate,
};
use crate::{
    cells::{CellIndex, Near, log2},
    codes::{CentroidBytes, Query},
    distance::{self, Ahead, Scan},
    env::Workers,
    error::{Result, ShardexError},
    format::cells::{Calibration, Effort, RECALLS, RESULTS},
    limits,
    shard::DataFile,
    storage::StorageFile,
};

/// Cells that are asked.
pub struct Tried<'a, B> {
    /// The cells.
    pub cells: &'a CellIndex<B>,
    /// Whether they are the snapshot's own, so that a search looks at what is in none of them too; else they are new ones, made
    /// of all that is in it.
    pub own: bool,
}

/// Finds what each recall takes for each number of results. Deterministic. What is known stays; cancelled, it returns what
/// it has found by then.
///
/// # Errors
/// `Corruption` if a vector is damaged.
pub fn calibrate<F: StorageFile, B: Deref<Target = [u8]> + Send + Sync>(
    snapshot: &Arc<Snapshot<F::Lent>>,
    data: &DataFile<F>,
    (tried, known): (Tried<'_, B>, Calibration),
    workers: Workers<'_>,
    seed: (u128, u64),
) -> Result<Calibration> {
    let Tried { cells, own } = tried;
    let asking = Asking { snapshot, data, cells, own, workers };
    let mut calibration = known;
    match asking.find(&mut calibration, seed) {
        Ok(()) | Err(ShardexError::Closed) => Ok(calibration),
        Err(error) => Err(error),
    }
}

/// For each posting that is in cells the numbers of these, and of the codes in their groups.
type Homes = Vec<[Option<(u32, u32)>; 2]>;

struct Asking<'a, F: StorageFile, B> {
    snapshot: &'a Arc<Snapshot<F::Lent>>,
    data: &'a DataFile<F>,
    cells: &'a CellIndex<B>,
    own: bool,
    workers: Workers<'a>,
}

impl<F: StorageFile, B: Deref<Target = [u8]> + Send + Sync> Asking<'_, F, B> {
    /// See [`calibrate`].
    fn find(&self, calibration: &mut Calibration, seed: (u128, u64)) -> Result<()> {
        let questions = questions(self.snapshot, self.data, self.workers, seed)?;
        let homes = self.homes();
        let ways = self.each(questions.len(), &|i| self.way(&questions[i], &homes))?;
        drop(homes);
        let all: Vec<(&Question, &Way)> = questions.iter().zip(&ways).collect();
        for (i, &k) in RESULTS.iter().enumerate() {
            if calibration.reached[i].iter().all(|&reached| reached > 0.0) {
                continue;
            }
            let k = k as usize;
            let count = if k < limits::CALIBRATION_FEW.1 { all.len() } else { limits::CALIBRATION_FEW.0 };
            let [tuned, held] = halves(&all[..count.min(all.len())]);
            let needs = Needs::new(&tuned, k);
            for (j, &recall) in RECALLS.iter().enumerate() {
                if calibration.reached[i][j] > 0.0 {
                    continue;
                }
                // What everything is needed for, it is for every better recall.
                let found = match calibration.efforts[i][..j].last() == Some(&Effort::everything()) {
                    true => None,
                    false => self.tune(&needs, &held, k, recall)?,
                };
                let (effort, came) = found.map_or((Effort::everything(), 1.0), |(effort, came)| (effort, came.reached));
                if !calibration.is_begun() {
                    let Snapshot { lsn, live, .. } = &**self.snapshot;
                    (calibration.lsn, calibration.live, calibration.fresh) = (lsn.0, *live, self.fresh_slots());
                }
                (calibration.efforts[i][j], calibration.reached[i][j]) = (effort, came as f32);
            }
        }
        calibration.far = self.far(&questions, calibration)?;
        Ok(())
    }

    /// Slots that are in no cell.
    fn fresh_slots(&self) -> u64 {
        if self.own { self.snapshot.fresh_slots() } else { 0 }
    }

    /// How far a search goes.
    fn reach(&self, effort: Effort, recall: f32) -> Reach {
        Reach { fresh: self.own, ..Reach::of(effort, recall) }
    }

    /// The distance to the nearest centroid that few stored vectors exceed.
    fn far(&self, questions: &[Question], calibration: &Calibration) -> Result<f32> {
        let stored: Vec<&Question> = questions.iter().filter(|question| question.stored).collect();
        if *calibration.usual() == Effort::everything() || stored.is_empty() {
            return Ok(f32::INFINITY);
        }
        // How far a search looks at first decides which centroids are measured: in none is the nearest of them farther than in
        // the least.
        let efforts = calibration.efforts.iter().flatten();
        let least = |of: fn(&Effort) -> u32| efforts.clone().map(of).min().unwrap_or(u32::MAX);
        let (groups, cells) = (least(|effort| effort.groups), least(|effort| effort.cells));
        let reach = self.reach(Effort { groups, cells, ..*calibration.usual() }, limits::USUAL_RECALL);
        let nearest = |i: usize| {
            let asked = (stored[i].vector.as_slice(), limits::USUAL_RESULTS);
            Ok(probe(self.snapshot, self.data, self.cells, asked, reach)?.nearest)
        };
        Ok(beyond_most(&sorted(self.each(stored.len(), &nearest)?.into_iter())))
    }

    /// One result for each number below `count`, on as many threads as there are.
    fn each<T: Send + Sync>(&self, count: usize, ask: &(impl Fn(usize) -> Result<T> + Sync)) -> Result<Vec<T>> {
        self.workers.map(count, ask)?.into_iter().collect()
    }

    fn homes(&self) -> Homes {
        let (cells, router) = (self.cells, self.cells.router());
        let mut homes = vec![[None; 2]; cells.postings() as usize];
        for g in 0..cells.len() {
            // Searches do without damaged cells.
            let Ok(group) = cells.group(g) else { continue };
            for c in 0..group.cells() {
                let cell = group.cell(c);
                for i in cell.first..cell.first + cell.count {
                    let [first, second] = &mut homes[group.reference(i as usize) as usize];
                    let home = if first.is_none() { first } else { second };
                    *home = Some((router.number(g, c) as u32, i));
                }
            }
        }
        homes
    }

    /// Where the nearest of a question are.
    fn way(&self, question: &Question, homes: &[[Option<(u32, u32)>; 2]]) -> Result<Way> {
        const MOST: usize = 16_384;
        let (cells, router, metric) = (self.cells, self.cells.router(), self.data.geometry().metric);
        let query = Query::new(&question.vector, cells.frame(), metric);
        let mut near: Vec<(Near, f32)> = Vec::with_capacity(router.numbers());
        for g in 0..cells.len() {
            let Ok(group) = cells.group(g) else { continue };
            for c in 0..group.cells() {
                let product = distance::dot_byte_row(&query.bytes.bytes, group.centroid(c));
                let (base, square) = query.bytes.base(group.cell(c).centroid, product);
                near.push((Near::new(base, router.number(g, c) as u32), query.bytes.unit(square)));
            }
        }
        near.sort_unstable_by_key(|&(near, _)| near);
        let mut ranks = vec![u32::MAX; router.numbers()];
        near.iter().enumerate().for_each(|(rank, (near, _))| ranks[near.number()] = rank as u32);
        let in_cell = |(number, code): (u32, u32)| {
            let rank = *ranks.get(number as usize)? as usize;
            let (g, c) = router.cell(number as usize);
            let group = cells.group(g).ok()?;
            let product = distance::dot_byte_row(&query.bytes.bytes, group.centroid(c));
            says(&query, (group.cell(c).centroid, product), (group.blocks(), code as usize), rank)
        };
        let of = |hit: &Candidate| -> Found {
            if let Some(code) = self.fresh(hit, &query) {
                return Found::Fresh(code);
            }
            let reference = shard_of(self.snapshot, hit.shard)
                .and_then(|shard| cells.reference_of((hit.shard, shard.id), hit.slot));
            let homes = reference.map_or([None; 2], |reference| homes[reference as usize]);
            Found::Cells(homes.map(|home| home.and_then(in_cell)))
        };
        let nearest: Vec<Found> = question.nearest.iter().map(of).collect();
        // A bit beyond the last one: what a search scans that stops too late.
        let last = nearest.iter().filter_map(Found::rank).max().map_or(0, |last| last + last / 4 + 64);
        near.truncate(last.min(MOST));
        let nearest = nearest.into_iter().map(|found| found.within(near.len())).collect();
        let groups = router.group_ranks(&query);
        let groups = near.iter().map(|(near, _)| groups[router.cell(near.number()).0]).collect();
        let shards = question.nearest.iter().map(|hit| {
            let Some(shard) = shard_of(self.snapshot, hit.shard) else { unreachable!("the snapshot's own shard") };
            let base = distance_by(metric, &question.vector, &shard.centroid);
            (base, query.bytes.unit(base))
        });
        let shards = shards.collect();
        let cells = near.into_iter().map(|(near, unit)| (near.distance(), unit)).collect();
        Ok(Way { cells, groups, nearest, shards })
    }

    /// Whether a posting is in none of the snapshot's own cells, and then the code that it has.
    fn fresh(&self, hit: &Candidate, query: &Query) -> Option<Option<Coded>> {
        let chunk = self.snapshot.chunks.get(hit.shard as usize / CHUNK_SHARDS).filter(|_| self.own)?;
        let in_chunk = hit.shard % CHUNK_SHARDS as u32;
        let fresh = chunk.fresh.iter().find(|fresh| fresh.shard == in_chunk && fresh.from <= hit.slot)?;
        // Slots before the first code have none: an open found them in no cell.
        let slot = hit.slot as usize;
        let codes = fresh.codes.as_ref().filter(|codes| codes.first <= slot);
        let code = codes.and_then(|codes| {
            let (blocks, range) = codes.parts(slot..slot + 1).next()?;
            let product = fresh.centroid.product(&query.bytes.bytes);
            says(query, (fresh.centroid.stored, product), (blocks, range.start), 0)
        });
        Some(code)
    }

    /// The least effort that finds a share of the results, and what the other half of the questions reach by it; `None` if it is
    /// everything.
    fn tune(
        &self,
        needs: &Needs<'_>,
        held: &[(&Question, &Way)],
        k: usize,
        recall: f32,
    ) -> Result<Option<(Effort, Came)>> {
        let Some(mut missed) = needs.missed(recall) else { return Ok(None) };
        for _ in 0..limits::CALIBRATION_TRIES {
            let Some(effort) = needs.effort(missed, recall) else { return Ok(None) };
            let came = self.ask(held, k, self.reach(effort, recall))?;
            if came.cost >= self.snapshot.live as f64 {
                return Ok(None);
            }
            if came.does(recall) {
                return Ok(Some((effort, came)));
            }
            missed *= 0.6;
        }
        Ok(None)
    }

    /// What some questions come to by searches that go so far.
    fn ask(&self, questions: &[(&Question, &Way)], k: usize, reach: Reach) -> Result<Came> {
        let answers = self.each(questions.len(), &|i| {
            let question = questions[i].0;
            let Probed { top, cost, .. } =
                probe(self.snapshot, self.data, self.cells, (&question.vector, k + 1), reach)?;
            let bound = question.bound(k).unwrap_or(f32::INFINITY);
            let others = top.into_sorted().into_iter().filter(|hit| (hit.shard, hit.slot as usize) != question.own);
            let hits = others.take(k).filter(|hit| hit.distance <= bound).count();
            Ok((question.stored, hits as f64 / k.min(question.nearest.len()) as f64, cost))
        })?;
        Ok(Came::of(&answers))
    }
}

/// The number that one in a thousand exceeds, judged by a sample in order. By fewer than a thousand it is extrapolated: at worst the
/// upper ones thin out exponentially.
fn beyond_most(sorted: &[f32]) -> f32 {
    let most = at(sorted, limits::CALIBRATION_FAR);
    let upper = &sorted[sorted.len() - sorted.len().div_ceil(4)..];
    let Some(&least) = upper.first() else { return most };
    let unit = upper.iter().map(|x| f64::from(x - least)).sum::<f64>() / upper.len() as f64;
    // log2 is the same on every machine; of a small integer it is all that is wanted.
    let wanted = (1.0 / (1.0 - limits::CALIBRATION_FAR)) as u32;
    let doublings = log2(wanted) - log2(sorted.len() as u32);
    most + unit as f32 * std::f32::consts::LN_2 * doublings.max(0.0)
}

/// What a code says by itself: number `code` of these blocks, against a centroid of which `product` is known.
fn says(
    query: &Query,
    (centroid, product): (CentroidBytes, i32),
    (blocks, code): (&[u8], usize),
    rank: usize,
) -> Option<Coded> {
    let (base, square) = query.bytes.base(centroid, product);
    let (planes, step, bound) = (&query.planes, query.plane_step, f32::INFINITY);
    let scan = Scan { planes, blocks, range: code..code + 1, step, error: 1.0, base, bound };
    let mut found = Vec::new();
    distance::scan(&scan, &mut Ahead::default(), &mut found);
    let distance::Found { least, allowed, .. } = found.pop()?;
    let deviation = allowed * query.code_error(square) + query.bytes.base_error(centroid);
    Some(Coded { rank, says: least + allowed, deviation })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_numbers_tell_what_few_of_many_exceed() {
        // As many as there are of an exponential distribution, evenly: its thousandth part lies beyond 6.9.
        let exponential = |n: usize| -> Vec<f32> { (0..n).map(|i| -((1.0 - (i as f32 + 0.5) / n as f32).ln())).collect() };
        for n in [8, 50, 100, 768, 4_000] {
            let far = beyond_most(&exponential(n));
            assert!((5.0..8.2).contains(&far), "{far} of {n}");
        }
        assert_eq!(beyond_most(&[]), 0.0);
        assert_eq!(beyond_most(&[3.0]), 3.0);
    }
}
