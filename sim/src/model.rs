//! Model of the content of an index, and its comparison with an engine.
//!
//! The model keeps every accepted batch. A recovered engine must hold exactly the content that some prefix of the
//! batches leaves (P2). The prefix must be at least as long as the last one acknowledged as durable (P1). Exact
//! searches must return the results of a brute-force search (P3).

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use shardex::{
    Engine, Lsn, Metric, Posting, ShardexConfig, VectorEncoding,
    batch::Operation,
    format::bucket::PayloadOwner,
    index::{self, SearchScope},
    storage::Storage,
};

use crate::{
    brute_force::{self, answers_as_brute_force},
    erased::{self, Erased},
    fsck::{Encoding, encodings},
    state::apply,
};

pub use crate::state::{Batch, Key, State, is_wanted, same, same_but_vectors};

/// Progress of an index, readable by an observer of its storage while a call runs. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct Progress(Arc<[AtomicUsize; 3]>);

impl Progress {
    /// Returns the number of batches acknowledged as durable, and of batches accepted.
    #[must_use]
    pub fn now(&self) -> (usize, usize) {
        // Relaxed: the storage observer runs on the thread that writes.
        (self.0[0].load(Ordering::Relaxed), self.0[1].load(Ordering::Relaxed))
    }

    /// Returns the number of batches before the last purge, and 0 before the first one.
    #[must_use]
    pub fn purged(&self) -> usize {
        self.0[2].load(Ordering::Relaxed)
    }
}

/// Accepted batches of an index, with their LSNs and the number acknowledged as durable.
///
/// It keeps vectors as an index returns them: rounded to the encoding of the index, under the cosine metric after the
/// division by the norm.
#[derive(Clone, Debug, Default)]
pub struct Model {
    metric: Metric,
    encoding: VectorEncoding,
    accepted: Vec<(Batch, Lsn)>,
    durable: usize,
    /// Number of batches before the last purge.
    purged: usize,
    /// Batches that were tried since, accepted or not.
    tried: Vec<Batch>,
    progress: Progress,
}

impl Model {
    /// Creates the model of an empty index.
    #[must_use]
    pub fn of(config: &ShardexConfig) -> Self {
        Self { metric: config.metric, encoding: config.encoding, ..Self::default() }
    }

    /// Records an accepted batch with LSN 0, for callers that don't query by LSN.
    pub fn accept(&mut self, batch: Batch) {
        self.accept_at(batch, Lsn(0));
    }

    /// Records an accepted batch with its LSN.
    pub fn accept_at(&mut self, batch: Batch, lsn: Lsn) {
        self.accepted.push((self.rounded(batch), lsn));
        self.note();
    }

    /// Returns a batch with its vectors as an index returns them.
    fn rounded(&self, batch: Batch) -> Batch {
        let form = |posting: &Posting| {
            let mut posting = posting.clone();
            let norm = match self.metric {
                Metric::Cosine => posting.vector.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>().sqrt(),
                _ => 1.0,
            };
            let scaled: Vec<f32> = posting.vector.iter().map(|&x| (f64::from(x) / norm) as f32).collect();
            posting.vector = encodings::rounded(&scaled, encoding_of(self.encoding));
            posting.vector.iter_mut().for_each(|x| *x *= norm as f32);
            posting
        };
        let forms = |postings: &[Posting]| postings.iter().map(form).collect();
        match (self.encoding, batch) {
            (VectorEncoding::F32, batch) => batch,
            (_, Batch::Add(postings)) => Batch::Add(forms(&postings)),
            (_, Batch::Remove(documents)) => Batch::Remove(documents),
            (_, Batch::Write(batch)) => {
                let rounded = batch.operations().iter().map(|operation| match operation {
                    Operation::Add(posting) => Operation::Add(form(posting)),
                    Operation::ReplaceDocument(id, postings) => Operation::ReplaceDocument(*id, forms(postings)),
                    other => other.clone(),
                });
                Batch::Write(rounded.collect())
            }
        }
    }

    /// Returns a shared handle of the progress, which later changes update.
    #[must_use]
    pub fn progress(&self) -> Progress {
        self.progress.clone()
    }

    fn note(&self) {
        self.progress.0[0].store(self.durable, Ordering::Relaxed);
        self.progress.0[1].store(self.accepted.len(), Ordering::Relaxed);
        self.progress.0[2].store(self.purged, Ordering::Relaxed);
    }

    /// Records that everything removed by the accepted batches is purged.
    pub fn purge(&mut self) {
        self.purged = self.accepted.len();
        self.tried.clear();
        self.note();
    }

    /// Records that a batch is tried. Its bytes may be in the files from now on, whether or not it is accepted.
    pub fn attempt(&mut self, batch: impl FnOnce() -> Batch) {
        if self.purged > 0 {
            self.tried.push(batch());
        }
    }

    /// Returns what the last purge erased and nothing has brought back.
    #[must_use]
    pub fn erased(&self) -> Erased {
        self.erased_by(self.purged)
    }

    /// Returns what a purge after the first `batches` batches erased and no later batch brings back.
    #[must_use]
    pub fn erased_by(&self, batches: usize) -> Erased {
        let state = self.state(batches);
        let vectors = state.vectors.values().flat_map(|vector| erased::forms(vector, self.metric));
        let live = vectors.chain(state.payloads.values().cloned()).chain([state.cursor.clone()]);
        let (before, after) = self.accepted.split_at(batches);
        let (before, after) = (before.iter().map(|(batch, _)| batch), after.iter().map(|(batch, _)| batch));
        Erased::of(before, after.chain(&self.tried), live, self.metric)
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

/// Returns the independent checker's name of an encoding.
///
/// # Panics
/// Panics on an encoding that it doesn't know.
#[must_use]
pub fn encoding_of(encoding: VectorEncoding) -> Encoding {
    match encoding {
        VectorEncoding::F32 => Encoding::F32,
        VectorEncoding::F16 => Encoding::F16,
        VectorEncoding::Int8 => Encoding::Int8,
        other => panic!("the checker doesn't know {other}"),
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
    let query = brute_force::test_query(engine.geometry().dimension, 0);
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
