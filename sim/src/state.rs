//! Content of an index as a map, what a batch makes of it, and its comparison with another.

use std::{collections::BTreeMap, ops::Deref};

use shardex::{
    DocumentId, Metric, Posting, PostingKey, WriteBatch,
    batch::Operation,
    filter::{Condition, Filter},
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

    pub(crate) fn insert(&mut self, posting: &Posting) {
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

pub(crate) fn apply(state: &mut State, batch: &Batch) {
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

/// Reports whether two contents are equal. Under the cosine metric, vectors may differ by rounding.
#[must_use]
pub fn same(held: &State, expected: &State, metric: Metric) -> bool {
    same_but_vectors(held, expected)
        && held.len() == expected.len()
        && held.iter().zip(expected.iter()).all(|((a, x), (b, y))| {
            a == b
                && x.len() == y.len()
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
