//! Content of an index, read through the async API.

use shardex::{IndexSnapshot, Metric, SearchOptions, storage::Storage};

use crate::model::State;

/// Reads all postings, tags and payloads and the cursor of a snapshot.
///
/// # Errors
/// Returns a message if a read fails (P4), a posting is there twice, or a count is wrong (P2).
pub(super) fn contents<S: Storage>(snapshot: &IndexSnapshot<S>) -> Result<State, String> {
    let failed = |e: shardex::ShardexError| format!("P4: {e}");
    let mut state = State::new();
    for posting in snapshot.scan() {
        let posting = posting.map_err(failed)?;
        let key = (posting.document_id.0, posting.start, posting.length);
        if state.vectors.insert(key, posting.vector).is_some() {
            return Err(format!("P2: {key:?} is there twice"));
        }
        if posting.tags != 0 {
            state.tags.insert(key, posting.tags);
        }
    }
    if state.len() as u64 != snapshot.len() {
        return Err(format!("P2: {} postings of {} are there", state.len(), snapshot.len()));
    }
    for document in snapshot.documents_with_payload(None, usize::MAX) {
        let payload = snapshot.payload(document).map_err(failed)?;
        let payload = payload.ok_or_else(|| format!("P2: the payload of document {} is gone", document.0))?;
        state.payloads.insert(document.0, payload.to_vec());
    }
    state.cursor = snapshot.cursor().map_err(failed)?;
    Ok(state)
}

/// Checks that an exact search finds every posting once, and that lookups by document agree with it (P3).
///
/// # Errors
/// Returns the first difference.
pub(super) fn searches<S: Storage>(snapshot: &IndexSnapshot<S>, state: &State, metric: Metric) -> Result<(), String> {
    let Some((_, query)) = state.iter().next() else { return Ok(()) };
    let found = snapshot.search_with(query, &SearchOptions::new(state.len() + 1).exact());
    let found = found.map_err(|e| format!("P4: {e}"))?.results;
    let keys: std::collections::BTreeSet<_> =
        found.iter().map(|result| (result.document_id.0, result.start, result.length)).collect();
    if found.len() != keys.len() || !keys.iter().eq(state.keys()) {
        return Err(format!("P3: an exact search finds {} of {} postings", found.len(), state.len()));
    }
    let documents: std::collections::BTreeSet<_> = found.iter().map(|result| result.document_id).collect();
    for document in documents {
        let mut held = State::new();
        for posting in snapshot.get(document).map_err(|e| format!("P4: {e}"))? {
            held.vectors.insert((posting.document_id.0, posting.start, posting.length), posting.vector);
        }
        let of_document = state.iter().filter(|(key, _)| key.0 == document.0);
        let expected = State { vectors: of_document.map(|(&key, v)| (key, v.clone())).collect(), ..State::new() };
        if !crate::model::same(&held, &expected, metric) {
            return Err(format!("P3: `get` returns {} postings of document {}", held.len(), document.0));
        }
    }
    Ok(())
}
