//! What it takes to find a share of the nearest: found by asking for vectors of which the true nearest are known, and held
//! against others.
//!
//! Invariants:
//! 1. The truth is that of distances computed to every posting. No estimate has a say in it.
//! 2. Vectors that are asked for are different ones, and no centroid knows them; each is left out of its own answer. Some are
//!    moved off their places, for nobody asks for just what is stored.
//! 3. What is found by one half of them is kept only if it does for the other half, and what *that* reaches is what is stored.
//!    Where nothing less does, or costs no more, it is to look at everything.

use std::{collections::BTreeSet, ops::Deref, sync::Arc};

use super::{
    probe::{Probed, Reach, probe},
    search::{distance_by, distances_by, shard_of},
    snapshot::Snapshot,
    topk::{Candidate, TopK},
};
use crate::{
    cells::{self, CellIndex, Near, held_out, log2},
    codes::Query,
    config::Metric,
    distance::{self, Ahead, Found, Scan},
    env::Workers,
    error::{Result, ShardexError},
    format::cells::{Calibration, Effort, RECALLS, RESULTS},
    limits,
    shard::{self, DataFile},
    storage::StorageFile,
};

/// Something that is asked for.
struct Question {
    vector: Vec<f32>,
    /// The shard's number and the slot of the posting that is left out of the answer.
    own: (u32, usize),
    /// Whether it is that posting's vector, and not one beside it.
    stored: bool,
    /// The true nearest, the nearest first.
    nearest: Vec<Candidate>,
}

impl Question {
    /// The distance that a result of `k` has at most; `None` if there is none.
    fn bound(&self, k: usize) -> Option<f32> {
        self.nearest.get(..k.min(self.nearest.len()))?.last().map(|last| last.distance)
    }
}

/// The cells on the way of a search for one question, in the order of their distances, and what it finds there.
struct Way {
    /// How far each is, and what margins are in units of there.
    cells: Vec<(f32, f32)>,
    /// The rank of the group of each.
    groups: Vec<u32>,
    /// For each of the nearest its codes in these cells.
    nearest: Vec<[Option<Coded>; 2]>,
    /// For each of the nearest, how far its shard is, and the unit there.
    shards: Vec<(f32, f32)>,
}

/// A code of one of the nearest.
#[derive(Clone, Copy)]
struct Coded {
    /// How many cells come before its own.
    rank: usize,
    /// The distance that it says, and the standard deviation of that.
    says: f32,
    deviation: f32,
}

/// What finds a posting by one of its codes.
#[derive(Clone, Copy)]
struct Need {
    margin: f32,
    deviations: f32,
}

/// What a share of the results takes, as far as codes and centroids tell of which the true nearest are known.
struct Needs<'a> {
    ways: Vec<&'a Way>,
    /// For each question, for each cell on its way, the least margin that leads past it.
    cells: Vec<Vec<f32>>,
    /// For each question, for each of its results, what finds it by the one code or the other.
    results: Vec<Vec<[Option<Need>; 2]>>,
    impatience: f32,
    /// The least margins that find each result by its first code, in order.
    margins: Vec<f32>,
    /// The deviations that do.
    deviations: Vec<f32>,
    shards: Vec<f32>,
}

/// Of what a search may miss, the parts that it may by the margin, by the deviations, by the groups that it looks into, and by
/// the margin of shards. A result is missed by more than one, or found by its other code.
const PARTS: [f32; 4] = [0.7, 0.5, 0.5, 0.5];

/// The margins that lead past the cells on a way, up to a result at these ranks: none of them is any other result's.
fn margins(way: &Way, bound: f32, ranks: &[usize], impatience: f32) -> Vec<f32> {
    let (mut most, mut next, mut quiet) = (f32::NEG_INFINITY, 0, 0);
    let margin = |(rank, (base, unit)): (usize, &(f32, f32))| {
        most = most.max((base - bound) / unit.max(f32::MIN_POSITIVE) + impatience * log2(quiet + 1));
        quiet += 1;
        while ranks.get(next) == Some(&rank) {
            (next, quiet) = (next + 1, 0);
        }
        most
    };
    way.cells.iter().enumerate().map(margin).collect()
}

impl<'a> Needs<'a> {
    fn new(asked: &[(&'a Question, &'a Way)], k: usize) -> Self {
        let asked: Vec<(f32, &Way)> =
            asked.iter().filter_map(|&(question, way)| Some((question.bound(k)?, way))).collect();
        let ranks: Vec<Vec<usize>> = asked
            .iter()
            .map(|(_, way)| {
                let first = |codes: &[Option<Coded>; 2]| codes.iter().flatten().map(|code| code.rank).min();
                let mut ranks: Vec<usize> = way.nearest.iter().take(k).filter_map(first).collect();
                ranks.sort_unstable();
                ranks
            })
            .collect();
        let cells = |impatience: f32| -> Vec<Vec<f32>> {
            asked.iter().zip(&ranks).map(|((bound, way), ranks)| margins(way, *bound, ranks, impatience)).collect()
        };
        let first = |cells: &[Vec<f32>]| -> Vec<f32> {
            sorted(cells.iter().zip(&ranks).flat_map(|(margins, ranks)| ranks.iter().map(|&rank| margins[rank])))
        };
        // The margins that are needed thin out exponentially: their unit is by how much those above the median exceed it.
        let plain = first(&cells(0.0));
        let upper = &plain[plain.len() / 2..];
        let unit = upper.first().map_or(0.0, |&median| {
            (upper.iter().map(|&margin| f64::from(margin - median)).sum::<f64>() / upper.len() as f64) as f32
        });
        let impatience = limits::IMPATIENCE * unit;
        let cells = cells(impatience);
        let mut margins = first(&cells);
        let results: Vec<Vec<[Option<Need>; 2]>> = asked
            .iter()
            .zip(&cells)
            .map(|((bound, way), margins)| {
                let need = |code: Coded| {
                    let short = code.says - bound;
                    let deviations = if short > 0.0 { short / code.deviation } else { 0.0 };
                    Need { margin: margins[code.rank], deviations }
                };
                way.nearest.iter().take(k).map(|codes| codes.map(|code| code.map(need))).collect()
            })
            .collect();
        let all: usize = results.iter().map(Vec::len).sum();
        // What is in no cell, or too far, is found by no margin.
        margins.resize(all, f32::INFINITY);
        let first = |codes: &[Option<Need>; 2]| {
            let first = codes.iter().flatten().min_by(|a, b| a.margin.total_cmp(&b.margin));
            first.map(|need| need.deviations)
        };
        let deviations = sorted(results.iter().flatten().filter_map(first));
        let shards = asked.iter().flat_map(|(bound, way)| {
            way.shards.iter().take(k).map(move |(far, unit)| (far - bound) / unit.max(f32::MIN_POSITIVE))
        });
        let shards = sorted(shards);
        let ways = asked.iter().map(|&(_, way)| way).collect();
        Self { ways, cells, results, impatience, margins, deviations, shards }
    }

    /// The margin and the deviations to miss about such a share; `None` if no margin does.
    fn limits(&self, missed: f32) -> Option<(f32, f32)> {
        let margin = at(&self.margins, 1.0 - PARTS[0] * missed);
        let deviations = at(&self.deviations, 1.0 - PARTS[1] * missed).max(limits::LEAST_DEVIATIONS);
        (margin < f32::INFINITY).then_some((margin, deviations))
    }

    /// What it takes to miss about such a share; `None` if nothing does.
    fn effort(&self, missed: f32) -> Option<Effort> {
        let (margin, deviations) = self.limits(missed)?;
        let within = |needs: &Vec<f32>| needs.partition_point(|&need| need <= margin);
        let counts = sorted(self.cells.iter().map(|needs| within(needs) as f32));
        let ranks = self.ways.iter().zip(&self.cells).flat_map(|(way, needs)| {
            way.groups.iter().take(within(needs)).map(|&rank| rank as f32)
        });
        Some(Effort {
            margin,
            impatience: self.impatience,
            shard_margin: at(&self.shards, 1.0 - PARTS[3] * missed),
            deviations,
            groups: at(&sorted(ranks), 1.0 - PARTS[2] * missed) as u32 + 1,
            cells: (at(&counts, 0.9) * 1.5) as u32 + 16,
        })
    }

    /// What is found with a margin, and so many deviations.
    fn reached(&self, margin: f32, deviations: f32) -> Came {
        let found = |codes: &&[Option<Need>; 2]| {
            codes.iter().flatten().any(|need| need.margin <= margin && need.deviations <= deviations)
        };
        let shares = self.results.iter().map(|results| {
            let found = results.iter().filter(found).count();
            (found as f64 / results.len() as f64, 0.0, 0.0)
        });
        Came::of(shares)
    }

    /// The largest share that may be missed by margin and deviations so that the results have a recall; none if nothing does.
    fn missed(&self, recall: f32) -> Option<f32> {
        let (errors, part) = limits::CALIBRATION_ERRORS;
        let wanted = f64::from(recall);
        let does = |missed: f32| {
            let Some((margin, deviations)) = self.limits(missed) else { return false };
            let came = self.reached(margin, deviations);
            came.reached >= wanted + (errors * came.error).min(part * (1.0 - wanted))
        };
        let (mut enough, mut too_much) = (0.0, 2.0 * (1.0 - recall));
        if !does(enough) {
            return None;
        }
        for _ in 0..limits::CALIBRATION_ROUNDS {
            let between = 0.5 * (enough + too_much);
            match does(between) {
                true => enough = between,
                false => too_much = between,
            }
        }
        Some(enough)
    }
}

/// What some questions came to.
#[derive(Clone, Copy, Debug, Default)]
struct Came {
    /// The mean share of the true nearest that was found.
    reached: f64,
    /// Its standard error.
    error: f64,
    /// Codes and vectors looked at, and distances computed, on the average.
    cost: (f64, f64),
}

impl Came {
    /// Of what each question came to: the share that was found, codes and vectors looked at, and distances computed.
    fn of(answers: impl ExactSizeIterator<Item = (f64, f64, f64)>) -> Self {
        let (n, mut came, mut squares) = (answers.len().max(1) as f64, Self::default(), 0.0);
        for (share, scanned, computed) in answers {
            came.reached += share / n;
            squares += share * share / n;
            came.cost.0 += scanned / n;
            came.cost.1 += computed / n;
        }
        came.error = ((squares - came.reached * came.reached).max(0.0) / n).sqrt();
        came
    }
}

/// Finds what each recall takes for each number of results. Deterministic. What is known stays; cancelled, it returns what
/// it has found by then.
///
/// # Errors
/// `Corruption` if a vector is damaged.
pub fn calibrate<F: StorageFile, B: Deref<Target = [u8]> + Send + Sync>(
    snapshot: &Arc<Snapshot<F::Lent>>,
    data: &DataFile<F>,
    (cells, known): (&CellIndex<B>, Calibration),
    workers: Workers<'_>,
    seed: (u128, u64),
) -> Result<Calibration> {
    let asking = Asking { snapshot, data, cells, workers };
    let mut calibration = known;
    match asking.find(&mut calibration, seed) {
        Ok(()) | Err(ShardexError::Closed) => Ok(calibration),
        Err(error) => Err(error),
    }
}

fn sorted(numbers: impl Iterator<Item = f32>) -> Vec<f32> {
    let mut numbers: Vec<f32> = numbers.collect();
    numbers.sort_unstable_by(f32::total_cmp);
    numbers
}

/// The number that a share of these, in order, do not exceed.
fn at(sorted: &[f32], share: f32) -> f32 {
    let rank = ((sorted.len() as f32 * share).ceil() as usize).min(sorted.len());
    rank.checked_sub(1).map_or(0.0, |i| sorted[i])
}

struct Asking<'a, F: StorageFile, B> {
    snapshot: &'a Arc<Snapshot<F::Lent>>,
    data: &'a DataFile<F>,
    cells: &'a CellIndex<B>,
    workers: Workers<'a>,
}

impl<F: StorageFile, B: Deref<Target = [u8]> + Send + Sync> Asking<'_, F, B> {
    /// See [`calibrate`].
    fn find(&self, calibration: &mut Calibration, seed: (u128, u64)) -> Result<()> {
        let mut questions = self.questions(seed)?;
        self.answer(&mut questions)?;
        questions.retain(|question| !question.nearest.is_empty());
        let homes = self.homes();
        let ways = self.each(questions.len(), &|i| self.way(&questions[i], &homes))?;
        drop(homes);
        let all: Vec<(&Question, &Way)> = questions.iter().zip(&ways).collect();
        (calibration.lsn, calibration.live) = (self.snapshot.lsn.0, self.snapshot.live);
        for (i, &k) in RESULTS.iter().enumerate() {
            if calibration.reached[i].iter().all(|&reached| reached > 0.0) {
                continue;
            }
            let k = k as usize;
            let count = if k < limits::CALIBRATION_FEW.1 { all.len() } else { limits::CALIBRATION_FEW.0 };
            let asked = &all[..count.min(all.len())];
            let (tuned, held): (Vec<_>, Vec<_>) = asked.iter().enumerate().partition(|(i, _)| i % 2 == 0);
            let [tuned, held] = [tuned, held].map(|half: Vec<_>| half.into_iter().map(|(_, &of)| of).collect::<Vec<_>>());
            let needs = Needs::new(&tuned, k);
            let (efforts, reached) = (&mut calibration.efforts[i], &mut calibration.reached[i]);
            for (j, &recall) in RECALLS.iter().enumerate().filter(|&(j, _)| reached[j] == 0.0).collect::<Vec<_>>() {
                // What everything is needed for, it is for every better recall.
                let found = match efforts[..j].last() == Some(&Effort::everything()) {
                    true => None,
                    false => self.tune(&needs, &held, k, recall)?,
                };
                let (effort, came) = found.map_or((Effort::everything(), 1.0), |(effort, came)| (effort, came.reached));
                (efforts[j], reached[j]) = (effort, came as f32);
            }
        }
        calibration.far = self.far(&questions, calibration)?;
        Ok(())
    }

    /// The distance to the nearest centroid that few stored vectors exceed.
    fn far(&self, questions: &[Question], calibration: &Calibration) -> Result<f32> {
        // The effort that most searches begin with: it decides which centroids are measured.
        let effort = cells::effort(&calibration.efforts, limits::USUAL_RESULTS, limits::USUAL_RECALL);
        let stored: Vec<&Question> = questions.iter().filter(|question| question.stored).collect();
        if effort == Effort::everything() || stored.is_empty() {
            return Ok(f32::INFINITY);
        }
        let nearest = |i: usize| {
            let asked = (stored[i].vector.as_slice(), limits::USUAL_RESULTS);
            Ok(probe(self.snapshot, self.data, self.cells, asked, Reach::of(effort))?.nearest)
        };
        Ok(at(&sorted(self.each(stored.len(), &nearest)?.into_iter()), limits::CALIBRATION_FAR))
    }

    /// One result for each number below `count`, on as many threads as there are.
    fn each<T: Send + Sync>(&self, count: usize, ask: &(impl Fn(usize) -> Result<T> + Sync)) -> Result<Vec<T>> {
        self.workers.map(count, ask)?.into_iter().collect()
    }

    /// What is asked for.
    fn questions(&self, seed: (u128, u64)) -> Result<Vec<Question>> {
        let geometry = self.data.geometry();
        let slots = geometry.extent_slots();
        let shards = self.snapshot.iter().map(|(number, shard)| (number, &**shard));
        let (mut questions, mut met) = (Vec::new(), BTreeSet::new());
        for (_, number, slot) in held_out(shards, self.snapshot.live as usize, seed) {
            let Some(shard) = shard_of(self.snapshot, number) else { unreachable!("the snapshot's own shard") };
            let row = shard::row(shard.extents()[slot / slots].slots(self.data)?, slot % slots, geometry);
            if met.insert(bytemuck::cast_slice::<f32, u8>(row).to_vec()) {
                let (vector, own) = (row.to_vec(), (number, slot));
                questions.push(Question { vector, own, stored: true, nearest: Vec::new() });
            }
        }
        let stored: Vec<Vec<f32>> = questions.iter().map(|question| question.vector.clone()).collect();
        let (every, part) = limits::CALIBRATION_MOVED;
        for i in (every - 1..questions.len()).step_by(every) {
            let [a, b] = [(i * 7 + 1) % stored.len(), (i * 13 + 5) % stored.len()].map(|at| &stored[at]);
            let question = &mut questions[i];
            question.stored = false;
            for ((x, a), b) in question.vector.iter_mut().zip(a).zip(b) {
                *x += part * (a - b);
            }
            if geometry.metric == Metric::Cosine {
                let norm = distance::dot(&question.vector, &question.vector).sqrt();
                if norm > 0.0 {
                    question.vector.iter_mut().for_each(|x| *x /= norm);
                }
            }
        }
        Ok(questions)
    }

    /// Finds the true nearest of each question.
    fn answer(&self, questions: &mut [Question]) -> Result<()> {
        // Questions that stay in a second-level cache, and rows that stay in the first, while each is compared with each.
        const QUESTIONS: usize = 64;
        const ROWS: usize = 16;
        let geometry = self.data.geometry();
        let (slots, most) = (geometry.extent_slots(), RESULTS[RESULTS.len() - 1] as usize);
        let few = RESULTS.iter().map(|&k| k as usize).filter(|&k| k < limits::CALIBRATION_FEW.1).max().unwrap_or(most);
        let parts: Vec<&[Question]> = questions.chunks(QUESTIONS).collect();
        let found = self.each(parts.len(), &|part| {
            // The first ones are asked for many.
            let k = |i: usize| if part * QUESTIONS + i < limits::CALIBRATION_FEW.0 { most } else { few };
            let mut tops: Vec<TopK> = (0..parts[part].len()).map(|i| TopK::new(k(i))).collect();
            let (mut rows, mut distances) = (Vec::with_capacity(ROWS * geometry.dimension), [0.0; ROWS]);
            for (number, shard) in self.snapshot.iter() {
                self.workers.cancel.check()?;
                for (e, extent) in shard.extents().iter().enumerate() {
                    let bytes = extent.slots(self.data)?;
                    let live: Vec<usize> = (0..extent.used()).filter(|i| shard.is_live(e * slots + i)).collect();
                    for some in live.chunks(ROWS) {
                        rows.clear();
                        some.iter().for_each(|&i| rows.extend_from_slice(shard::row(bytes, i, geometry)));
                        let distances = &mut distances[..some.len()];
                        for (question, top) in parts[part].iter().zip(&mut tops) {
                            distances_by(geometry.metric, &question.vector, &rows, distances);
                            for (&i, &distance) in some.iter().zip(&*distances) {
                                let slot = e * slots + i;
                                if distance <= top.bound() && (number, slot) != question.own {
                                    let posting = shard::record(bytes, i, geometry);
                                    top.offer(Candidate {
                                        distance,
                                        document_id: posting.document_id,
                                        start: posting.start,
                                        length: posting.length,
                                        shard: number,
                                        slot: slot as u32,
                                    });
                                }
                            }
                        }
                    }
                }
            }
            Ok(tops.into_iter().map(TopK::into_sorted).collect::<Vec<_>>())
        })?;
        questions.iter_mut().zip(found.into_iter().flatten()).for_each(|(question, found)| question.nearest = found);
        Ok(())
    }

    /// For each posting that is in cells the numbers of these, and of the codes in their groups.
    fn homes(&self) -> Vec<[Option<(u32, u32)>; 2]> {
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
        // What a code says by itself.
        let mut found = Vec::new();
        let mut says = |(number, code): (u32, u32)| {
            let rank = *ranks.get(number as usize)? as usize;
            let (g, c) = router.cell(number as usize);
            let group = cells.group(g).ok()?;
            let centroid = group.cell(c).centroid;
            let product = distance::dot_byte_row(&query.bytes.bytes, group.centroid(c));
            let (base, square) = query.bytes.base(centroid, product);
            let (range, blocks) = (code as usize..code as usize + 1, group.blocks());
            let (planes, step, bound) = (&query.planes, query.plane_step, f32::INFINITY);
            let scan = Scan { planes, blocks, range, step, error: 1.0, base, bound };
            distance::scan(&scan, &mut Ahead::default(), &mut found);
            let Found { least, allowed, .. } = found.pop()?;
            let deviation = allowed * query.code_error(square) + query.bytes.base_error(centroid);
            Some(Coded { rank, says: least + allowed, deviation })
        };
        let of = |hit: &Candidate| -> [Option<Coded>; 2] {
            let reference = shard_of(self.snapshot, hit.shard)
                .and_then(|shard| cells.reference_of((hit.shard, shard.id), hit.slot));
            let Some(reference) = reference else { return [None; 2] };
            homes[reference as usize].map(|home| home.and_then(&mut says))
        };
        let nearest: Vec<[Option<Coded>; 2]> = question.nearest.iter().map(of).collect();
        // A bit beyond the last one: what a search scans that stops too late.
        let firsts = nearest.iter().filter_map(|codes| codes.iter().flatten().map(|code| code.rank).min());
        let last = firsts.max().map_or(0, |last| last + last / 4 + 64);
        near.truncate(last.min(MOST));
        let within = |code: &Coded| code.rank < near.len();
        let nearest = nearest.into_iter().map(|codes| codes.map(|code| code.filter(within))).collect();
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
            let Some(effort) = needs.effort(missed) else { return Ok(None) };
            let came = self.ask(held, k, effort)?;
            // A vector that has to be fetched costs as much as some that come one after another, or many codes.
            let cost = came.cost.1 * 4.0 + came.cost.0 / 8.0;
            if cost >= self.snapshot.live as f64 {
                return Ok(None);
            }
            if came.reached >= f64::from(recall) {
                return Ok(Some((effort, came)));
            }
            missed *= 0.6;
        }
        Ok(None)
    }

    /// What some questions come to with so much effort.
    fn ask(&self, questions: &[(&Question, &Way)], k: usize, effort: Effort) -> Result<Came> {
        let reach = Reach::of(effort);
        let answers = self.each(questions.len(), &|i| {
            let question = questions[i].0;
            let Probed { top, scanned, computed, .. } =
                probe(self.snapshot, self.data, self.cells, (&question.vector, k + 1), reach)?;
            let bound = question.bound(k).unwrap_or(f32::INFINITY);
            let others = top.into_sorted().into_iter().filter(|hit| (hit.shard, hit.slot as usize) != question.own);
            let hits = others.take(k).filter(|hit| hit.distance <= bound).count();
            Ok((hits as f64 / k.min(question.nearest.len()) as f64, scanned as f64, computed as f64))
        })?;
        Ok(Came::of(answers.into_iter()))
    }
}
