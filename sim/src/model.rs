//! Model of the content of an index, and its comparison with an engine.
//!
//! The model keeps every accepted batch. A recovered engine must hold exactly the content that some prefix of the
//! batches leaves (P2). The prefix must be at least as long as the last one acknowledged as durable (P1). Exact
//! searches must return the results of a brute-force search (P3).

use std::{
    collections::BTreeMap,
    ops::Deref,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use shardex::{
    CheckLevel, DocumentId, Engine, Lsn, Metric, Posting, PostingKey, WriteBatch,
    batch::Operation,
    engine::batch,
    filter::{Condition, Filter},
    format::bucket::PayloadOwner,
    index::{self, SearchScope},
    storage::Storage,
};

/// Accepted batch.
#[derive(Clone, Debug, PartialEq)]
pub enum Batch {
    /// Added postings. A later posting of an equal key replaces an earlier one.
    Add(Vec<Posting>),
    /// Removed documents.
    Remove(Vec<DocumentId>),
    /// Operations of all kinds.
    Write(WriteBatch),
}

/// Key of a posting: document id, start, length.
pub type Key = (u128, u32, u32);

/// Content of an index: vectors by key, and everything else.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct State {
    /// Vectors by key.
    pub vectors: BTreeMap<Key, Vec<f32>>,
    /// Tags of the postings that have some.
    pub tags: BTreeMap<Key, u64>,
    /// Payloads by document.
    pub payloads: BTreeMap<u128, Vec<u8>>,
    /// Cursor of the application.
    pub cursor: Vec<u8>,
}

impl State {
    /// Creates the content of an empty index.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Carries out a batch.
    pub fn write(&mut self, batch: &WriteBatch) {
        batch.operations().iter().for_each(|operation| carry_out(self, operation));
    }

    fn insert(&mut self, posting: &Posting) {
        let key = (posting.document_id.0, posting.start, posting.length);
        self.vectors.insert(key, posting.vector.clone());
        self.set_tags(key, posting.tags);
    }

    fn set_tags(&mut self, key: Key, tags: u64) {
        self.tags.remove(&key);
        if tags != 0 && self.vectors.contains_key(&key) {
            self.tags.insert(key, tags);
        }
    }

    fn remove_document(&mut self, document: DocumentId) {
        self.vectors.retain(|key, _| key.0 != document.0);
        self.tags.retain(|key, _| key.0 != document.0);
        self.payloads.remove(&document.0);
    }
}

impl Deref for State {
    type Target = BTreeMap<Key, Vec<f32>>;

    fn deref(&self) -> &Self::Target {
        &self.vectors
    }
}

/// Progress of an index, readable by an observer of its storage while a call runs. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct Progress(Arc<[AtomicUsize; 2]>);

impl Progress {
    /// Returns the number of batches acknowledged as durable, and of batches accepted.
    #[must_use]
    pub fn now(&self) -> (usize, usize) {
        // Relaxed: the storage observer runs on the thread that writes.
        (self.0[0].load(Ordering::Relaxed), self.0[1].load(Ordering::Relaxed))
    }
}

/// Accepted batches of an index, with their LSNs and the number acknowledged as durable.
#[derive(Clone, Debug, Default)]
pub struct Model {
    accepted: Vec<(Batch, Lsn)>,
    durable: usize,
    progress: Progress,
}

impl Model {
    /// Records an accepted batch with LSN 0, for callers that don't query by LSN.
    pub fn accept(&mut self, batch: Batch) {
        self.accept_at(batch, Lsn(0));
    }

    /// Records an accepted batch with its LSN.
    pub fn accept_at(&mut self, batch: Batch, lsn: Lsn) {
        self.accepted.push((batch, lsn));
        self.note();
    }

    /// Returns a shared handle of the progress, which later changes update.
    #[must_use]
    pub fn progress(&self) -> Progress {
        self.progress.clone()
    }

    fn note(&self) {
        self.progress.0[0].store(self.durable, Ordering::Relaxed);
        self.progress.0[1].store(self.accepted.len(), Ordering::Relaxed);
    }

    /// Records that all accepted batches were acknowledged as durable.
    pub fn acknowledge(&mut self) {
        self.durable = self.accepted.len();
        self.note();
    }

    /// Returns the number of batches with an LSN up to `lsn`.
    #[must_use]
    pub fn up_to(&self, lsn: Lsn) -> usize {
        self.accepted.partition_point(|(_, at)| *at <= lsn)
    }

    /// Records that all batches up to an LSN were acknowledged as durable. Returns their number.
    pub fn acknowledge_up_to(&mut self, lsn: Lsn) -> usize {
        let batches = self.up_to(lsn);
        self.durable = self.durable.max(batches);
        self.note();
        batches
    }

    /// Truncates the model to the first `batches` batches, and counts them as durable.
    pub fn keep(&mut self, batches: usize) {
        self.accepted.truncate(batches);
        self.durable = self.accepted.len();
        self.note();
    }

    /// Returns the number of accepted batches.
    #[must_use]
    pub fn accepted(&self) -> usize {
        self.accepted.len()
    }

    /// Returns the number of batches acknowledged as durable.
    #[must_use]
    pub fn durable(&self) -> usize {
        self.durable
    }

    /// Returns the content that the first `batches` batches leave.
    #[must_use]
    pub fn state(&self, batches: usize) -> State {
        let mut state = State::new();
        self.accepted[..batches].iter().for_each(|(batch, _)| apply(&mut state, batch));
        state
    }

    /// Returns the LSN of the last batch; 0 if there is none. Nothing is promised about the closing mark, which follows
    /// it in the WAL.
    #[must_use]
    pub fn last_lsn(&self) -> u64 {
        self.accepted.last().map_or(0, |(_, lsn)| lsn.0)
    }

    /// Finds the prefix of batches that a recovered engine holds, checks exact searches (P3), and truncates the model
    /// to it.
    ///
    /// # Errors
    /// Returns the broken promise and how it is broken.
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

    /// Checks that an open engine holds exactly the accepted batches, and that searches are exact (P3).
    ///
    /// # Errors
    /// Returns a description of the difference.
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
        Batch::Add(postings) => postings.iter().for_each(|posting| state.insert(posting)),
        Batch::Remove(documents) => documents.iter().for_each(|&document| state.remove_document(document)),
        Batch::Write(batch) => state.write(batch),
    }
}

/// Carries out one operation. It acts on what the ones before it leave.
fn carry_out(state: &mut State, operation: &Operation) {
    let raw = |key: &PostingKey| (key.document_id.0, key.start, key.length);
    match operation {
        Operation::Add(posting) => state.insert(posting),
        Operation::ReplaceDocument(document, postings) => {
            state.remove_document(*document);
            postings.iter().for_each(|posting| state.insert(posting));
        }
        Operation::RemoveDocument(document) => state.remove_document(*document),
        Operation::RemovePosting(key) => {
            state.vectors.remove(&raw(key));
            state.tags.remove(&raw(key));
        }
        Operation::RemoveMatching(filter) => {
            let tags_of = |key: &Key| state.tags.get(key).copied().unwrap_or(0);
            let found: Vec<Key> =
                state.vectors.keys().filter(|key| is_wanted(filter, **key, tags_of(key))).copied().collect();
            for key in found {
                state.vectors.remove(&key);
                state.tags.remove(&key);
            }
        }
        Operation::SetTags(key, tags) => state.set_tags(raw(key), *tags),
        Operation::SetPayload(document, payload) => {
            state.payloads.insert(document.0, payload.clone());
        }
        Operation::RemovePayload(document) => {
            state.payloads.remove(&document.0);
        }
        Operation::SetCursor { cursor, .. } => state.cursor.clone_from(cursor),
    }
}

/// Reports whether a posting passes a filter. It does not ask the engine's own evaluation.
#[must_use]
pub fn is_wanted(filter: &Filter, key: Key, tags: u64) -> bool {
    match filter.condition() {
        Condition::Documents(documents) => documents.iter().any(|document| document.0 == key.0),
        Condition::Postings(keys) => keys.iter().any(|k| (k.document_id.0, k.start, k.length) == key),
        Condition::Tags { all, any, none } => {
            let each = |bits: &u64| (0..64).filter(|bit| bits >> bit & 1 == 1).collect::<Vec<u32>>();
            let has = |bit: &u32| tags >> bit & 1 == 1;
            each(all).iter().all(has) && (*any == 0 || each(any).iter().any(has)) && !each(none).iter().any(has)
        }
        Condition::Matching(matches) => matches(PostingKey::new(key.0, key.1, key.2)),
        Condition::All(filters) => filters.iter().all(|filter| is_wanted(filter, key, tags)),
        Condition::Any(filters) => filters.iter().any(|filter| is_wanted(filter, key, tags)),
        Condition::Not(filter) => !is_wanted(filter, key, tags),
    }
}

/// Returns all postings that an exhaustive search finds.
///
/// # Errors
/// Returns a message if the search fails (P4). Returns a message if it finds a posting twice, or not as many as are
/// live (P2).
pub fn contents<S: Storage>(engine: &Engine<S>) -> Result<State, String> {
    let snapshot = engine.snapshot();
    let k = snapshot.live as usize + 1;
    let query = test_query(engine.geometry().dimension, 0);
    let found = index::search(&snapshot, engine.data(), &query, k, SearchScope::exact())
        .map_err(|e| format!("P4: {e}"))?
        .to_response();
    let results = found.results.len();
    let mut state = State::new();
    for r in found.results {
        state.insert(&Posting {
            document_id: r.document_id,
            start: r.start,
            length: r.length,
            vector: r.vector,
            tags: r.tags,
        });
    }
    for content in snapshot.payloads.iter() {
        let bytes = content.read(engine.data()).map_err(|e| format!("P4: {e}"))?.to_vec();
        match content.owner() {
            PayloadOwner::Cursor => state.cursor = bytes,
            PayloadOwner::Document(document) => {
                state.payloads.insert(document.0, bytes);
            }
        }
    }
    if state.len() != results || results as u64 != snapshot.live {
        return Err(format!("P2: {results} results, {} keys, {} live postings", state.len(), snapshot.live));
    }
    Ok(state)
}

/// Returns query number `n`: component `n % dimension` is 1, the others are 0, 0.125 or 0.25.
fn test_query(dimension: usize, n: usize) -> Vec<f32> {
    (0..dimension).map(|i| if i == n % dimension { 1.0 } else { 0.125 * ((i + n) % 3) as f32 }).collect()
}

/// Reports whether two contents are equal. Under the cosine metric, vectors may differ by rounding.
#[must_use]
pub fn same(held: &State, expected: &State, metric: Metric) -> bool {
    same_but_vectors(held, expected)
        && held.len() == expected.len()
        && held.iter().zip(expected.iter()).all(|((a, x), (b, y))| {
            a == b
                && match metric {
                    // The norm and the direction are stored and rounded separately.
                    Metric::Cosine => x.iter().zip(y).all(|(x, y)| (x - y).abs() <= 1e-5 * y.abs().max(1e-3)),
                    _ => x == y,
                }
        })
}

/// Reports whether tags, payloads and cursor of two contents are equal.
#[must_use]
pub fn same_but_vectors(held: &State, expected: &State) -> bool {
    (&held.tags, &held.payloads, &held.cursor) == (&expected.tags, &expected.payloads, &expected.cursor)
}

/// Compares three exact searches with a brute-force search (P3).
///
/// # Errors
/// Returns a description of the first answer that differs.
pub fn answers_as_brute_force<S: Storage>(engine: &Engine<S>, state: &State) -> Result<(), String> {
    let geometry = engine.geometry();
    let snapshot = engine.snapshot();
    for n in 1..4 {
        let given = test_query(geometry.dimension, n);
        let query = batch::query(&given, geometry).map_err(|e| e.to_string())?;
        by_cells(engine, state, &query)?;
        let k = 1 + n * 2;
        let answer = index::search(&snapshot, engine.data(), &query, k, SearchScope::exact())
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

/// Checks a search by cells with a `k` that covers all postings. Each result must be a live posting, found once, with
/// its true distance. If any cell was scanned, no posting may be missing. If the cells are damaged, a full check must
/// report it.
fn by_cells<S: Storage>(engine: &Engine<S>, state: &State, query: &[f32]) -> Result<(), String> {
    let metric = engine.geometry().metric;
    let scope = SearchScope { recall: Some(0.999), slop: None, by_cells: true, ..SearchScope::slop(2) };
    let k = state.len() + 1;
    let answer = index::search(&engine.snapshot(), engine.data(), query, k, scope)
        .map_err(|e| format!("P4: {e}"))?
        .to_response();
    let mut keys = std::collections::BTreeSet::new();
    for result in &answer.results {
        let key = (result.document_id.0, result.start, result.length);
        let Some(vector) = state.get(&key) else {
            return Err(format!("P3: {key:?} was found by cells, and is not there"));
        };
        if !keys.insert(key) {
            return Err(format!("P3: {key:?} was found twice by cells"));
        }
        if result.tags != state.tags.get(&key).copied().unwrap_or(0) {
            return Err(format!("P3: {key:?} was found by cells with tags {:x}", result.tags));
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

/// Computes a distance in f64 for comparison with scores: squared L2, negated dot product, or negated cosine of a
/// normalised query.
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
