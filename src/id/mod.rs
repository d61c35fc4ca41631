//! Newtypes of ids and sequence numbers, which must not be confused with each other.
//!
//! All of them order as their integers do.

mod document;

use core::fmt;

pub use document::{DocumentId, ParseDocumentIdError};

/// Key of a posting. Keys order by document id, then start, then length.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PostingKey {
    /// Id of the document.
    pub document_id: DocumentId,
    /// Start of the part.
    pub start: u32,
    /// Length of the part.
    pub length: u32,
}

impl PostingKey {
    /// Creates a key.
    #[must_use]
    pub fn new(document_id: impl Into<DocumentId>, start: u32, length: u32) -> Self {
        Self { document_id: document_id.into(), start, length }
    }
}

impl std::fmt::Display for PostingKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}:{}", self.document_id, self.start, self.length)
    }
}

/// Log sequence number: position of a WAL frame in the order in which writes were accepted.
///
/// Frames count from 1, and 0 means "before every frame". A record in several segments takes one LSN per frame, and the
/// LSN of the write is that of its last frame. A closing mark takes an LSN, padding takes none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Lsn(pub u64);

impl Lsn {
    /// Returns the next LSN.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Generation: number of a root, one higher than that of the newest durable root when it is stored.
///
/// If a crash loses a root, its generation is assigned again, in a later epoch. So the pair of epoch and generation
/// orders the roots.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Generation(pub u64);

impl Generation {
    /// Returns the next generation.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Id of a shard: a ULID (48 bits of Unix milliseconds, 80 random bits), printed in Crockford's base 32.
///
/// It is unique independently of the clock, because the 80 bits come from the index's own generator with a counter that
/// never repeats.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ShardId(pub u128);

impl ShardId {
    /// Builds a ULID from a time and a random number. Uses the low 48 bits of the time and the low 80 bits of the
    /// random number.
    #[must_use]
    pub fn from_parts(unix_ms: u64, random: u128) -> Self {
        let time = u128::from(unix_ms & 0xFFFF_FFFF_FFFF) << 80;
        Self(time | (random & ((1 << 80) - 1)))
    }
}

impl fmt::Display for ShardId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const ALPHABET: &[u8; 32] = b"0123456789ABCDEFGHJKMNPQRSTVWXYZ";
        let mut text = [0u8; 26];
        for (i, c) in text.iter_mut().enumerate() {
            let digit = (self.0 >> (5 * (25 - i))) & 31;
            *c = ALPHABET[digit as usize];
        }
        f.write_str(core::str::from_utf8(&text).unwrap_or("?"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ulid_prints_as_26_digits_and_orders_by_time() {
        let early = ShardId::from_parts(1, u128::MAX);
        let late = ShardId::from_parts(2, 0);
        assert!(early < late);
        assert_eq!(ShardId(0).to_string(), "0".repeat(26));
        assert_eq!(ShardId(u128::MAX).to_string(), format!("7{}", "Z".repeat(25)));
        assert!(early.to_string() < late.to_string());
    }
}
