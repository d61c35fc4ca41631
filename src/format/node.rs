//! Directory nodes: a copy-on-write tree from the root to the shard states.
//!
//! A node is one page of entries; entry `i` of a lowest node points to the state of shard `node × fanout + i`,
//! an entry of a higher node to a node. An entry of zeros points to nothing.

use super::{
    FormatError,
    codec::{Put as _, Reader},
};

/// Bytes per entry.
pub const ENTRY_BYTES: usize = 16;

/// Where something lies in the data file, how long it is, and what its bytes must sum to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Entry {
    /// First page; 0 is the file header's page, so 0 means "nothing".
    pub page: u64,
    /// Length in bytes.
    pub len: u32,
    /// CRC32C of those bytes.
    pub crc: u32,
}

impl Entry {
    /// Whether it points to nothing.
    #[must_use]
    pub fn is_none(&self) -> bool {
        self.page == 0
    }

    /// Appends the entry's bytes.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.put_u64(self.page);
        out.put_u32(self.len);
        out.put_u32(self.crc);
    }

    /// Parses one entry.
    ///
    /// # Errors
    /// If the bytes end, or an entry that points to nothing has a length.
    pub fn decode(r: &mut Reader<'_>) -> Result<Self, FormatError> {
        let at = r.at();
        let entry = Self { page: r.u64()?, len: r.u32()?, crc: r.u32()? };
        if entry.is_none() && entry != Self::default() {
            return Err(FormatError::new(at, "an entry with a length points to page 0"));
        }
        Ok(entry)
    }
}

/// A node's bytes: `entries`, the rest of the page zeros.
#[must_use]
pub fn encode(entries: &[Entry], page_size: usize) -> Vec<u8> {
    assert!(entries.len() * ENTRY_BYTES <= page_size, "more entries than a node holds");
    let mut out = Vec::with_capacity(page_size);
    for entry in entries {
        entry.encode(&mut out);
    }
    out.resize(page_size, 0);
    out
}

/// Parses a whole node.
///
/// # Errors
/// As [`Entry::decode`].
pub fn decode(bytes: &[u8]) -> Result<Vec<Entry>, FormatError> {
    let mut r = Reader::new(bytes);
    (0..bytes.len() / ENTRY_BYTES).map(|_| Entry::decode(&mut r)).collect()
}
