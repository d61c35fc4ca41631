//! Encoding and decoding of every structure on disk, between bytes and checked types. The module performs no I/O.
//!
//! `FORMAT.md` describes the layout of every structure. Invariants:
//! 1. All numbers are little-endian.
//! 2. Bytes are parsed once, into a checked type. A holder of that type need not check it again.
//! 3. A file header, a segment header, a root and a WAL frame hold their own CRC32C. The CRC32C of every other
//!    structure is in the structure that points to it. So an older version of a structure, valid in itself, never
//!    passes for the newer one. Nodes, states and parts of buckets of version 3 hold it too.
//! 4. Parsing never panics, for any input bytes.

pub mod batch;
pub mod block;
pub mod bucket;
pub mod calibration;
pub mod cells;
pub mod codec;
pub mod frame;
pub mod geometry;
pub mod header;
pub mod maintenance;
pub mod manifest;
pub mod node;
pub mod record;
pub mod root;
pub mod state;

use std::fmt;

/// Error of a parser: the bytes do not form a valid structure.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FormatError {
    /// Offset of the error within the structure, in bytes.
    pub at: u64,
    /// Description of the error: the value found and the value expected.
    pub what: String,
}

impl FormatError {
    /// Returns an error at byte `at` of the structure.
    pub fn new(at: usize, what: impl Into<String>) -> Self {
        Self { at: at as u64, what: what.into() }
    }
}

impl fmt::Display for FormatError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (byte {} of it)", self.what, self.at)
    }
}

/// Returns the CRC32C (Castagnoli) of `bytes`, continuing from `crc`.
#[must_use]
pub fn crc32c(crc: u32, bytes: &[u8]) -> u32 {
    crc32c::crc32c_append(crc, bytes)
}
