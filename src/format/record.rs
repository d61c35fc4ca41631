//! Payloads of WAL records of version 1: batches of additions and removals. This build only reads them, and writes them in
//! tests.
//!
//! An addition holds the postings exactly as the caller passed them. A removal holds each named document once, and only
//! those that have a posting.

use super::{
    FormatError,
    codec::{Put as _, Reader},
};
use crate::{
    id::{DocumentId, PostingKey},
    posting::Posting,
};

/// Length in bytes of the fields before the keys of an addition: count, dimension.
const ADD_HEADER_BYTES: usize = 8;
/// Length of a key in bytes: document id, start, length.
const KEY_BYTES: usize = 24;

/// Returns the payload length in bytes of an addition of `count` vectors of `dimension` components.
#[must_use]
pub fn add_len(count: usize, dimension: usize) -> u64 {
    ADD_HEADER_BYTES as u64 + count as u64 * (KEY_BYTES as u64 + 4 * dimension as u64)
}

/// Encodes the part of an addition that precedes the vectors: the header and the keys. The vectors follow row by row.
#[must_use]
pub fn encode_add_keys(postings: &[Posting], dimension: usize) -> Vec<u8> {
    let mut out = Vec::with_capacity(ADD_HEADER_BYTES + postings.len() * KEY_BYTES);
    out.put_u32(postings.len() as u32);
    out.put_u32(dimension as u32);
    for posting in postings {
        out.put_u128(posting.document_id.0);
        out.put_u32(posting.start);
        out.put_u32(posting.length);
    }
    out
}

/// Parses the payload of an addition.
///
/// # Errors
/// Returns `FormatError` if the dimension differs from `dimension`, or if the count does not match the payload length.
pub fn decode_add(payload: &[u8], dimension: usize) -> Result<Vec<Posting>, FormatError> {
    let mut r = Reader::new(payload);
    let count = r.u32()? as usize;
    r.expect(&(dimension as u32).to_le_bytes())?;
    if add_len(count, dimension) != payload.len() as u64 {
        return Err(FormatError::new(0, format!("{count} postings in {} bytes", payload.len())));
    }
    let mut postings = Vec::with_capacity(count);
    for _ in 0..count {
        let key = PostingKey { document_id: DocumentId(r.u128()?), start: r.u32()?, length: r.u32()? };
        postings.push(Posting::new(key, Vec::new()));
    }
    for posting in &mut postings {
        // `pod_collect_to_vec` copies, so the payload needs no alignment.
        posting.vector = bytemuck::allocation::pod_collect_to_vec(r.take(4 * dimension)?);
    }
    Ok(postings)
}

/// Encodes the payload of a removal.
#[must_use]
pub fn encode_remove(ids: &[DocumentId]) -> Vec<u8> {
    let mut out = Vec::with_capacity(8 + ids.len() * 16);
    out.put_u64(ids.len() as u64);
    ids.iter().for_each(|id| out.put_u128(id.0));
    out
}

/// Parses the payload of a removal.
///
/// # Errors
/// Returns `FormatError` if the count does not match the payload length.
pub fn decode_remove(payload: &[u8]) -> Result<Vec<DocumentId>, FormatError> {
    let mut r = Reader::new(payload);
    let count = r.u64()?;
    if count.checked_mul(16).and_then(|n| n.checked_add(8)) != Some(payload.len() as u64) {
        return Err(FormatError::new(0, format!("{count} documents in {} bytes", payload.len())));
    }
    (0..count).map(|_| Ok(DocumentId(r.u128()?))).collect()
}
