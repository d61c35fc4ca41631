//! Decodes the payload of a WAL record of version 2.

use super::bytes::{f32_at, part, u32_at, u64_at, u128_at};

/// Key of a posting: document id, start and length.
type Key = (u128, u32, u32);

/// Added posting: its key, its tags and its vector.
#[derive(Clone, Debug, PartialEq)]
#[expect(missing_docs, reason = "the fields are those of FORMAT.md")]
pub struct Added {
    pub key: Key,
    pub tags: u64,
    pub vector: Vec<f32>,
}

/// Net effect of a batch.
#[derive(Clone, Debug, Default, PartialEq)]
#[expect(missing_docs, reason = "the fields are those of FORMAT.md")]
pub struct Batch {
    pub unix_ms: u64,
    pub documents: Vec<u128>,
    pub keys: Vec<Key>,
    pub added: Vec<Added>,
    pub tags: Vec<(Key, u64)>,
    /// Payloads by document; `None` for a removed one.
    pub payloads: Vec<(u128, Option<Vec<u8>>)>,
    pub cursor: Option<Vec<u8>>,
}

/// Position in the payload.
struct At<'a> {
    bytes: &'a [u8],
    at: u64,
}

impl At<'_> {
    fn skip(&mut self, len: u64) -> u64 {
        let at = self.at;
        self.at += len;
        at
    }

    fn key(&mut self) -> Option<Key> {
        let at = self.skip(24);
        Some((u128_at(self.bytes, at)?, u32_at(self.bytes, at + 16)?, u32_at(self.bytes, at + 20)?))
    }

    fn u64(&mut self) -> Option<u64> {
        let at = self.skip(8);
        u64_at(self.bytes, at)
    }

    fn bytes(&mut self, len: u64) -> Option<Vec<u8>> {
        let at = self.skip(len);
        part(self.bytes, at, len).map(<[u8]>::to_vec)
    }
}

/// Decodes a batch; `None` if it is malformed.
pub(super) fn batch(bytes: &[u8], dimension: u32) -> Option<Batch> {
    let count = |at| u32_at(bytes, at);
    let flags = count(12)?;
    if count(8)? != dimension || flags > 3 || u64_at(bytes, 40)? != 0 {
        return None;
    }
    let mut at = At { bytes, at: 48 };
    let mut batch = Batch { unix_ms: u64_at(bytes, 0)?, ..Batch::default() };
    for _ in 0..count(16)? {
        let document = at.skip(16);
        batch.documents.push(u128_at(bytes, document)?);
    }
    for _ in 0..count(20)? {
        batch.keys.push(at.key()?);
    }
    for _ in 0..count(24)? {
        batch.added.push(Added { key: at.key()?, tags: 0, vector: Vec::new() });
    }
    if flags & 1 == 1 {
        for added in &mut batch.added {
            added.tags = at.u64()?;
        }
        // An encoder stores no tags then, so that a batch has one encoding.
        if batch.added.iter().all(|added| added.tags == 0) {
            return None;
        }
    }
    for _ in 0..count(28)? {
        batch.tags.push((at.key()?, at.u64()?));
    }
    let mut lengths = Vec::new();
    for _ in 0..count(32)? {
        let entry = at.skip(24);
        if u32_at(bytes, entry + 20)? != 0 {
            return None;
        }
        batch.payloads.push((u128_at(bytes, entry)?, None));
        lengths.push(u32_at(bytes, entry + 16)?);
    }
    for added in &mut batch.added {
        let first = at.skip(4 * u64::from(dimension));
        let component = |i| f32_at(bytes, first + 4 * u64::from(i));
        added.vector = (0..dimension).map(component).collect::<Option<_>>()?;
    }
    for (payload, length) in batch.payloads.iter_mut().zip(lengths) {
        if length != u32::MAX {
            payload.1 = Some(at.bytes(length.into())?);
        }
    }
    let cursor = count(36)?;
    if flags & 2 == 2 {
        batch.cursor = Some(at.bytes(cursor.into())?);
    } else if cursor != 0 {
        return None;
    }
    (at.at == bytes.len() as u64).then_some(batch)
}
