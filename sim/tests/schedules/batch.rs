//! Contents of the writers' calls, and the rule that identifies the calls in a state.
//!
//! Each writer owns a range of documents. If call number `n` of a writer adds, it sets the writer's counter to `n` and
//! leaves a receipt, which is a document that no other call adds. If it removes, it removes the receipt of one earlier
//! call that is known to be applied. So the counter and the receipts identify the calls in a state. The vectors hold
//! the number of the call that stored them. So the rest of the state must be the result of those calls in their order.

use std::collections::BTreeMap;

use shardex::{DocumentId, Posting, SearchResponse};

/// Number of documents that a writer adds, replaces and removes.
pub(crate) const DOCUMENTS: u32 = 12;
/// Largest number of postings of each of those documents.
pub(crate) const PARTS: u32 = 2;

const RANGE: u128 = 1_000_000;
const RECEIPTS: u128 = 1_000;

/// Document id and start of a posting.
pub(crate) type Key = (u128, u32);
/// Content of an index: for each posting the number of the call that stored it.
pub(crate) type State = BTreeMap<Key, u64>;

/// Action of a call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// Adds or replaces postings of documents, the counter and the receipt.
    Add(Vec<(u32, u32)>),
    /// Removes documents, and the receipt of another call.
    Remove {
        /// Number of the call that left the receipt.
        receipt: u64,
        documents: Vec<u32>,
    },
    Commit,
    Flush,
}

impl Action {
    /// Reports whether the action changes the state.
    pub(crate) fn is_write(&self) -> bool {
        matches!(self, Self::Add(_) | Self::Remove { .. })
    }

    /// Returns the number of postings and documents in the batch.
    pub(crate) fn operations(&self) -> u64 {
        match self {
            Self::Add(parts) => parts.len() as u64 + 2,
            Self::Remove { documents, .. } => documents.len() as u64 + 1,
            Self::Commit | Self::Flush => 0,
        }
    }
}

pub(crate) fn counter(writer: usize) -> Key {
    (RANGE * (writer as u128 + 1), 0)
}

pub(crate) fn receipt(writer: usize, number: u64) -> Key {
    (counter(writer).0 + RECEIPTS + u128::from(number), 0)
}

fn document(writer: usize, document: u32) -> u128 {
    counter(writer).0 + 1 + u128::from(document)
}

/// Returns the keys that an addition stores. The counter is the last one, so that half a batch would lack it.
fn keys(writer: usize, number: u64, parts: &[(u32, u32)]) -> impl Iterator<Item = Key> {
    let parts = parts.iter().map(move |&(id, part)| (document(writer, id), part));
    [receipt(writer, number)].into_iter().chain(parts).chain([counter(writer)])
}

fn removed(writer: usize, taken: u64, documents: &[u32]) -> impl Iterator<Item = u128> {
    documents.iter().map(move |&id| document(writer, id)).chain([receipt(writer, taken).0])
}

/// Builds the batch of an addition.
pub(crate) fn postings(writer: usize, number: u64, parts: &[(u32, u32)]) -> Vec<Posting> {
    keys(writer, number, parts)
        .map(|(id, start)| Posting {
            document_id: DocumentId(id),
            start,
            length: 1,
            vector: vec![number as f32, writer as f32, (id % RANGE % 50) as f32],
            tags: 0,
        })
        .collect()
}

/// Builds the batch of a removal.
pub(crate) fn documents(writer: usize, taken: u64, documents: &[u32]) -> Vec<DocumentId> {
    removed(writer, taken, documents).map(DocumentId).collect()
}

/// Applies an action to a state. Returns the number of postings removed.
pub(crate) fn apply(state: &mut State, writer: usize, number: u64, action: &Action) -> u64 {
    match action {
        Action::Add(parts) => {
            state.extend(keys(writer, number, parts).map(|key| (key, number)));
            0
        }
        Action::Remove { receipt, documents } => {
            let before = state.len();
            for id in removed(writer, *receipt, documents) {
                state.retain(|key, _| key.0 != id);
            }
            (before - state.len()) as u64
        }
        Action::Commit | Action::Flush => 0,
    }
}

/// Returns the state that the response to a search over everything shows.
///
/// # Errors
/// Returns a description of a posting that occurs twice, or that no call can have added.
pub(crate) fn state(response: &SearchResponse) -> Result<State, String> {
    let mut state = State::new();
    for found in &response.results {
        let number = found.vector[0];
        if number.fract() != 0.0 || found.length != 1 || found.similarity_score != score(&found.vector) {
            return Err(format!("nobody added {found:?}"));
        }
        if state.insert((found.document_id.0, found.start), number as u64).is_some() {
            return Err(format!("a search shows {found:?} twice"));
        }
    }
    Ok(state)
}

/// Computes the score for a query of zeros. The sums of these small integers are exact in any order.
fn score(vector: &[f32]) -> f32 {
    -vector.iter().map(|x| x * x).sum::<f32>()
}
