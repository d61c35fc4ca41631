//! Directory nodes: pages of the copy-on-write tree from the root to the shard states.
//!
//! A node is one page of entries, from version 3 on behind a block header. Entry `i` of leaf node `n` points to the state of shard `n × fanout + i`. An entry of
//! a higher node points to a node. An entry of zeros points to nothing.

use super::{
    FormatError,
    codec::{Put as _, Reader},
    geometry::BLOCK_HEADER_BYTES,
};

/// Length of an entry in bytes.
pub const ENTRY_BYTES: usize = 16;

/// Block pointer: position, length and checksum of a structure in the data file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BlockPointer {
    /// First page. Page 0 holds the file header, so 0 means that the entry points to nothing.
    pub page: u64,
    /// Length in bytes.
    pub len: u32,
    /// CRC32C of these bytes.
    pub crc: u32,
}

impl BlockPointer {
    /// Reports whether the entry points to nothing.
    #[must_use]
    pub fn is_none(&self) -> bool {
        self.page == 0
    }

    /// Appends the encoded entry.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.put_u64(self.page);
        out.put_u32(self.len);
        out.put_u32(self.crc);
    }

    /// Parses one entry.
    ///
    /// # Errors
    /// Returns `FormatError` if fewer bytes remain than an entry has, or if an entry that points to page 0 has a length
    /// or a checksum.
    pub fn decode(r: &mut Reader<'_>) -> Result<Self, FormatError> {
        let at = r.at();
        let entry = Self { page: r.u64()?, len: r.u32()?, crc: r.u32()? };
        if entry.is_none() && entry != Self::default() {
            return Err(FormatError::new(at, "an entry with a length points to page 0"));
        }
        Ok(entry)
    }
}

/// Returns the offset of the entries in a node of a format version.
#[must_use]
pub fn entries_at(version: u32) -> usize {
    if version < 3 { 0 } else { BLOCK_HEADER_BYTES }
}

/// Encodes a node of a format version: room for the block header, `entries`, then zeros up to the end of the page.
///
/// # Panics
/// Panics if the entries do not fit a page.
#[must_use]
pub fn encode(entries: &[BlockPointer], page_size: usize, version: u32) -> Vec<u8> {
    assert!(entries_at(version) + entries.len() * ENTRY_BYTES <= page_size, "more entries than a node holds");
    let mut out = Vec::with_capacity(page_size);
    out.resize(entries_at(version), 0);
    for entry in entries {
        entry.encode(&mut out);
    }
    out.resize(page_size, 0);
    out
}

/// Parses all entries of a node of a format version. The block header is checked elsewhere.
///
/// # Errors
/// Returns `FormatError` under the conditions of [`BlockPointer::decode`].
pub fn decode(bytes: &[u8], version: u32) -> Result<Vec<BlockPointer>, FormatError> {
    let mut r = Reader::new(bytes);
    r.take(entries_at(version))?;
    (0..(bytes.len() - entries_at(version)) / ENTRY_BYTES).map(|_| BlockPointer::decode(&mut r)).collect()
}
