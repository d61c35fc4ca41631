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
    needs::{Coded, Found, Needs, Way},
    outcome::{Answer, Outcome},
    probe::{Probed, Reach, probe},
    questions::{Question, halves, questions},
    scan::distance_by,
    snapshot::{Snapshot, shard_of},
    topk::Candidate,
    unlike::{self, row},
};
use crate::{
    cells::{self, CellIndex, Near},
    codes::{CentroidBytes, Query},
    config::Metric,
    distance::{self, Ahead, Scan},
    env::Workers,
    error::{Result, ShardexError},
    format::cells::{Calibration, Effort, Efforts, RECALLS, RESULTS},
    limits,
    shard::DataFile,
    site::{self, Kind},
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
            let (needs, mut scale) = (Needs::new(&tuned, k), 1.0);
            for (j, &recall) in RECALLS.iter().enumerate() {
                if calibration.reached[i][j] > 0.0 {
                    continue;
                }
                // What everything is needed for, it is for every better recall.
                let found = match calibration.efforts[i][..j].last() == Some(&Effort::everything()) {
                    true => None,
                    false => self.tune(&needs, &held, (k, recall), &mut scale)?,
                };
                let (effort, came) = found.map_or((Effort::everything(), 1.0), |(effort, came)| (effort, came.reached));
                if !calibration.is_begun() {
                    let Snapshot { lsn, live, .. } = &**self.snapshot;
                    (calibration.lsn, calibration.live, calibration.fresh) = (lsn.0, *live, self.fresh_slots());
                }
                (calibration.efforts[i][j], calibration.reached[i][j]) = (effort, came as f32);
            }
        }
        calibration.far = self.far(&questions, &calibration.efforts)?;
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

    /// How far apart from what they find few stored vectors are; see [`unlike`](super::unlike): as far as nearly none is from its nearest,
    /// and by dot products as far as few are from what searches for little find. Of many the nearest by products is one and the same, and
    /// if its code says little, many miss it; by distances hardly any misses all that is near.
    fn far(&self, questions: &[Question], efforts: &Efforts) -> Result<[f32; 2]> {
        let stored: Vec<&Question> = questions.iter().filter(|question| question.stored).collect();
        let apart = |question: &Question, near: &Candidate| unlike::apart(self.snapshot, self.data, &question.vector, near);
        let near = self.each(stored.len(), &|i| {
            for near in &stored[i].nearest {
                // What equals it says nothing of how far others are.
                if row(self.snapshot, self.data, near)? != stored[i].vector {
                    return apart(stored[i], near);
                }
            }
            Ok([f32::NAN; 2])
        })?;
        let far = unlike::far(&near, self.data.geometry().metric);
        let one_for_many = site::applies(Kind::Recall, self.data.geometry().metric == Metric::Dot);
        let (k, recall) = (limits::USUAL_RESULTS, limits::CALIBRATION_FOUND.1);
        let [first, wider] = [1.0, limits::FAR_MISSED].map(|part| cells::effort(efforts, k, 1.0 - (1.0 - recall) * part));
        if !one_for_many || [first, wider].contains(&Effort::everything()) {
            return Ok(far);
        }
        let found = self.each(stored.len(), &|i| {
            let mut found = [f32::NAN; 2];
            for effort in [first, wider] {
                let reach = Reach { except: Some(stored[i].own), ..self.reach(effort, recall) };
                let probed = probe(self.snapshot, self.data, self.cells, (&stored[i].vector, k), reach)?;
                found = probed.top.nearest().map_or(Ok(found), |near| apart(stored[i], near))?;
                if !unlike::exceeds(found, far) {
                    break;
                }
            }
            Ok(found)
        })?;
        Ok(unlike::beyond_found(far, &found))
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
                let centroid = group.cell(c).centroid;
                let (base, square) = query.bytes.base(centroid, product);
                let unit = query.bytes.unit(square, query.bytes.base_error(centroid));
                near.push((Near::new(base, router.number(g, c) as u32), unit));
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
            (base, query.bytes.unit(base, 0.0))
        });
        let shards = shards.collect();
        let cells = near.into_iter().map(|(near, unit)| (near.distance(), unit)).collect();
        Ok(Way { cells, groups, nearest, shards })
    }

    /// Whether a posting is in none of the snapshot's own cells, and then the code that it has.
    fn fresh(&self, hit: &Candidate, query: &Query) -> Option<Option<Coded>> {
        let fresh = self.snapshot.fresh_of(hit.place()).filter(|_| self.own)?;
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

    /// The least effort that finds a share of the results, as far as few tries tell, and what the other half of the questions reach by
    /// it; `None` if it is everything. `scale` is by how much more may be missed than the half that tunes says: the one recall starts
    /// where the one before ended.
    fn tune(
        &self,
        needs: &Needs<'_>,
        held: &[(&Question, &Way)],
        (k, recall): (usize, f32),
        scale: &mut f32,
    ) -> Result<Option<(Effort, Outcome)>> {
        let Some(modelled) = needs.missed(recall) else { return Ok(None) };
        let mut missed = (modelled * *scale).min(limits::CALIBRATION_MOST);
        let (mut best, mut failed) = (None, f32::INFINITY);
        // What few ask for need not be as cheap as it could be.
        let often = recall >= limits::CALIBRATION_CLOSER.0 && limits::CALIBRATION_CLOSER.1.contains(&k);
        let mut closer = if often { limits::CALIBRATION_CLOSER.2 } else { 0 };
        for _ in 0..limits::CALIBRATION_TRIES {
            let Some(effort) = needs.effort(missed, recall) else { break };
            let came = self.ask(held, (k, recall), effort)?;
            let pays = came.cost < self.snapshot.live as f64;
            // What is missed is about in proportion to what may be.
            let room = came.room(recall);
            if site::holds(Kind::Recall, came.does(recall)) {
                if pays {
                    best = Some((effort, came));
                }
                if missed > 0.0 {
                    *scale = missed / modelled;
                }
                let next = (missed * room.min(2.0)).min((missed * failed).sqrt()).min(limits::CALIBRATION_MOST);
                if pays && closer == 0 || next <= 1.1 * missed {
                    break;
                }
                closer -= usize::from(pays);
                missed = next;
            } else {
                if best.is_some() || !pays || missed == 0.0 {
                    break;
                }
                failed = missed;
                missed *= room.clamp(0.3, 0.8);
            }
        }
        Ok(best)
    }

    /// What some questions come to by searches that go so far, or few of them, where these show that it does not do.
    fn ask(&self, questions: &[(&Question, &Way)], (k, recall): (usize, f32), effort: Effort) -> Result<Outcome> {
        let live = self.snapshot.live as f64;
        let ask = |questions: &[(&Question, &Way)]| {
            self.each(questions.len(), &|i| {
                let question = questions[i].0;
                let reach = Reach { except: Some(question.own), most: live, ..self.reach(effort, recall) };
                let Probed { top, cost, given_up, .. } =
                    probe(self.snapshot, self.data, self.cells, (&question.vector, k), reach)?;
                let answer = Answer::of(question);
                if given_up {
                    return Ok(Answer { share: 1.0, cost: cost + live, ..answer });
                }
                let bound = question.bound(k).unwrap_or(f32::INFINITY);
                let hits = top.into_sorted().into_iter().filter(|hit| hit.distance <= bound).count();
                Ok(Answer { share: hits as f64 / k.min(question.nearest.len()) as f64, cost, ..answer })
            })
        };
        let (few, others) = questions.split_at(questions.len() / limits::CALIBRATION_FIRST);
        let mut answers = ask(few)?;
        let came = Outcome::of(&answers, k);
        if came.is_hopeless(recall) {
            return Ok(came);
        }
        answers.extend(ask(others)?);
        Ok(Outcome::of(&answers, k))
    }
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
