//! What an index should hold: the plainest possible model, and the comparison with an engine.
//!
//! The model keeps every accepted batch. A recovered engine must hold exactly what some prefix of them leaves (P2), no
//! shorter than the last one acknowledged as durable (P1), and answer exact searches as brute force does (P3).

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use shardex::{
    CheckLevel, DocumentId, Engine, Lsn, Metric, Posting,
    engine::batch,
    index::{self, Breadth},
    storage::Storage,
};

/// One accepted batch.
#[derive(Clone, Debug, PartialEq)]
pub enum Batch {
    /// Postings added; those of equal keys replace each other in order.
    Add(Vec<Posting>),
    /// Documents removed.
    Remove(Vec<DocumentId>),
}

/// A posting's key: document id, start, length.
pub type Key = (u128, u32, u32);

/// What is stored: vectors by key.
pub type State = BTreeMap<Key, Vec<f32>>;

/// How far an index is, for whoever watches its storage while a call runs. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct Progress(Arc<[AtomicUsize; 2]>);

impl Progress {
    /// Batches acknowledged as durable, and batches accepted.
    #[must_use]
    pub fn now(&self) -> (usize, usize) {
        // Relaxed: the one who watches is called by the one who writes.
        (self.0[0].load(Ordering::Relaxed), self.0[1].load(Ordering::Relaxed))
    }
}

/// The batches of an index.
#[derive(Clone, Debug, Default)]
pub struct Model {
    accepted: Vec<(Batch, Lsn)>,
    durable: usize,
    progress: Progress,
}

impl Model {
    /// Notes a batch that the engine accepted, where nobody asks by LSN.
    pub fn accept(&mut self, batch: Batch) {
        self.accept_at(batch, Lsn(0));
    }

    /// Notes a batch that the engine accepted, and the LSN it got.
    pub fn accept_at(&mut self, batch: Batch, lsn: Lsn) {
        self.accepted.push((batch, lsn));
        self.note();
    }

    /// How far it is; stays true as it goes on.
    #[must_use]
    pub fn progress(&self) -> Progress {
        self.progress.clone()
    }

    fn note(&self) {
        self.progress.0[0].store(self.durable, Ordering::Relaxed);
        self.progress.0[1].store(self.accepted.len(), Ordering::Relaxed);
    }

    /// Notes that everything accepted so far was acknowledged as durable.
    pub fn acknowledge(&mut self) {
        self.durable = self.accepted.len();
        self.note();
    }

    /// Batches that have an LSN up to this one.
    #[must_use]
    pub fn up_to(&self, lsn: Lsn) -> usize {
        self.accepted.partition_point(|(_, at)| *at <= lsn)
    }

    /// Notes that everything up to an LSN was acknowledged as durable. Returns how many batches that are.
    pub fn acknowledge_up_to(&mut self, lsn: Lsn) -> usize {
        let batches = self.up_to(lsn);
        self.durable = self.durable.max(batches);
        self.note();
        batches
    }

    /// Goes on from the first `batches` batches: what came after them is gone.
    pub fn keep(&mut self, batches: usize) {
        self.accepted.truncate(batches);
        self.durable = self.accepted.len();
        self.note();
    }

    /// Batches accepted.
    #[must_use]
    pub fn accepted(&self) -> usize {
        self.accepted.len()
    }

    /// Batches acknowledged as durable.
    #[must_use]
    pub fn durable(&self) -> usize {
        self.durable
    }

    /// What the first `batches` batches leave.
    #[must_use]
    pub fn state(&self, batches: usize) -> State {
        let mut state = State::new();
        self.accepted[..batches].iter().for_each(|(batch, _)| apply(&mut state, batch));
        state
    }

    /// The LSN of the last batch; of what comes after it in the log, a closing mark, nothing is promised.
    #[must_use]
    pub fn last_lsn(&self) -> u64 {
        self.accepted.last().map_or(0, |(_, lsn)| lsn.0)
    }

    /// After a recovery: finds the prefix that the engine holds, and goes on from there.
    ///
    /// # Errors
    /// Says which promise is broken, and how.
    pub fn recovered<S: Storage>(&mut self, engine: &Engine<S>) -> Result<usize, String> {
        let metric = engine.geometry().metric;
        let held = contents(engine)?;
        let mut state = self.state(self.durable);
        for n in self.durable..=self.accepted.len() {
            if n > self.durable {
                apply(&mut state, &self.accepted[n - 1].0);
            }
            if same(&held, &state, metric) {
                self.keep(n);
                answers_as_brute_force(engine, &state)?;
                return Ok(n);
            }
        }
        let shorter = (0..self.durable).rev().find(|&n| same(&held, &self.state(n), metric));
        Err(match shorter {
            Some(n) => format!("P1: {} batches were acknowledged as durable, {n} are there", self.durable),
            None => format!(
                "P2: {} postings are there, which no prefix of {} to {} batches leaves",
                held.len(),
                self.durable,
                self.accepted.len()
            ),
        })
    }

    /// While it is open: the engine holds everything accepted.
    ///
    /// # Errors
    /// Says what differs.
    pub fn current<S: Storage>(&self, engine: &Engine<S>) -> Result<(), String> {
        let state = self.state(self.accepted.len());
        let held = contents(engine)?;
        if !same(&held, &state, engine.geometry().metric) {
            return Err(format!("{} postings are searched, {} were accepted", held.len(), state.len()));
        }
        answers_as_brute_force(engine, &state)
    }
}

fn apply(state: &mut State, batch: &Batch) {
    match batch {
        Batch::Add(postings) => {
            for posting in postings {
                state.insert((posting.document_id.0, posting.start, posting.length), posting.vector.clone());
            }
        }
        Batch::Remove(documents) => state.retain(|key, _| !documents.contains(&DocumentId(key.0))),
    }
}

/// Everything a search over all shards finds.
///
/// # Errors
/// If the search fails, or finds a posting twice.
pub fn contents<S: Storage>(engine: &Engine<S>) -> Result<State, String> {
    let snapshot = engine.snapshot();
    let k = snapshot.live as usize + 1;
    let query = probe(engine.geometry().dimension, 0);
    let found = index::search(&snapshot, engine.data(), &query, k, Breadth::exact())
        .map_err(|e| format!("P4: {e}"))?
        .to_response();
    let results = found.results.len();
    let state: State = found.results.into_iter().map(|r| ((r.document_id.0, r.start, r.length), r.vector)).collect();
    if state.len() != results || results as u64 != snapshot.live {
        return Err(format!("P2: {results} results, {} keys, {} live postings", state.len(), snapshot.live));
    }
    Ok(state)
}

/// Some query of norm about 1.
fn probe(dimension: usize, n: usize) -> Vec<f32> {
    (0..dimension).map(|i| if i == n % dimension { 1.0 } else { 0.125 * ((i + n) % 3) as f32 }).collect()
}

/// Whether two contents are the same; under cosine to within rounding.
#[must_use]
pub fn same(held: &State, expected: &State, metric: Metric) -> bool {
    held.len() == expected.len()
        && held.iter().zip(expected).all(|((a, x), (b, y))| {
            a == b
                && match metric {
                    // The norm and the direction are rounded apart.
                    Metric::Cosine => x.iter().zip(y).all(|(x, y)| (x - y).abs() <= 1e-5 * y.abs().max(1e-3)),
                    _ => x == y,
                }
        })
}

/// P3: a few exact searches against sorting everything.
///
/// # Errors
/// Says which answer differs, and how.
pub fn answers_as_brute_force<S: Storage>(engine: &Engine<S>, state: &State) -> Result<(), String> {
    let geometry = engine.geometry();
    let snapshot = engine.snapshot();
    for n in 1..4 {
        let given = probe(geometry.dimension, n);
        let query = batch::query(&given, geometry).map_err(|e| e.to_string())?;
        by_cells(engine, state, &query)?;
        let k = 1 + n * 2;
        let answer = index::search(&snapshot, engine.data(), &query, k, Breadth::exact())
            .map_err(|e| format!("P4: {e}"))?
            .to_response();
        let mut expected: Vec<(f64, Key)> =
            state.iter().map(|(&key, vector)| (distance(geometry.metric, &query, vector), key)).collect();
        expected.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
        if answer.results.len() != k.min(expected.len()) {
            return Err(format!("P3: {} results of {} postings for k = {k}", answer.results.len(), expected.len()));
        }
        for (result, (least, _)) in answer.results.iter().zip(&expected) {
            let found = -f64::from(result.similarity_score);
            let tolerance = 1e-4 * least.abs().max(1.0);
            if (found - least).abs() > tolerance {
                return Err(format!("P3: a result at distance {found}, brute force finds {least}"));
            }
        }
    }
    Ok(())
}

/// What a search by cells finds need not be the nearest, but each result is a posting that is there, once, with its true
/// distance, and none is missing where all are asked for.
fn by_cells<S: Storage>(engine: &Engine<S>, state: &State, query: &[f32]) -> Result<(), String> {
    let metric = engine.geometry().metric;
    let breadth = Breadth { recall: Some(0.999), slop: None, by_cells: true, ..Breadth::slop(2) };
    let k = state.len() + 1;
    let answer = index::search(&engine.snapshot(), engine.data(), query, k, breadth)
        .map_err(|e| format!("P4: {e}"))?
        .to_response();
    let mut met = std::collections::BTreeSet::new();
    for result in &answer.results {
        let key = (result.document_id.0, result.start, result.length);
        let Some(vector) = state.get(&key) else {
            return Err(format!("P3: {key:?} was found by cells, and is not there"));
        };
        if !met.insert(key) {
            return Err(format!("P3: {key:?} was found twice by cells"));
        }
        let (found, least) = (-f64::from(result.similarity_score), distance(metric, query, vector));
        if (found - least).abs() > 1e-4 * least.abs().max(1.0) {
            return Err(format!("P3: {key:?} was found by cells at distance {found}, and is at {least}"));
        }
    }
    let damaged = engine.snapshot().cells.as_ref().is_some_and(|cells| cells.is_damaged());
    if damaged && engine.check(CheckLevel::Full).is_ok_and(|report| report.is_clean()) {
        return Err("P4: a search found damaged cells, and the full check finds none".into());
    }
    if answer.cells_scanned > 0 && answer.results.len() != state.len() {
        return Err(format!("P3: {} of {} postings found by cells for k = {k}", answer.results.len(), state.len()));
    }
    Ok(())
}

/// In f64: only ranks have to agree, and only where they are not ties.
fn distance(metric: Metric, query: &[f32], vector: &[f32]) -> f64 {
    let pairs = || query.iter().zip(vector).map(|(&a, &b)| (f64::from(a), f64::from(b)));
    match metric {
        Metric::L2 => pairs().map(|(a, b)| (a - b).powi(2)).sum(),
        Metric::Dot => -pairs().map(|(a, b)| a * b).sum::<f64>(),
        _ => {
            let norm = vector.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>().sqrt();
            -pairs().map(|(a, b)| a * b).sum::<f64>() / norm
        }
    }
}
