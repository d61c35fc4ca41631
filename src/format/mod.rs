//! Bytes on disk ⇄ checked values. Pure: no file is touched here.
//!
//! `FORMAT.md` draws every structure. Invariants:
//! 1. All numbers are little-endian.
//! 2. Bytes are parsed once into a checked type; whoever holds the type need not check again.
//! 3. Every structure but a root, a file header and a WAL frame has its CRC32C in the structure that points to it,
//!    so that an older version of it, whole in itself, never passes for the newer one.
//! 4. Parsing never panics, whatever the bytes.

pub mod cells;
pub mod codec;
pub mod frame;
pub mod geometry;
pub mod header;
pub mod node;
pub mod record;
pub mod root;
pub mod state;

use std::fmt;

/// Why some bytes are not what they should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FormatError {
    /// Byte within the structure.
    pub at: u64,
    /// What was found, and what was expected.
    pub what: String,
}

impl FormatError {
    /// An error at byte `at` of the structure.
    pub fn new(at: usize, what: impl Into<String>) -> Self {
        Self { at: at as u64, what: what.into() }
    }
}

impl fmt::Display for FormatError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (byte {} of it)", self.what, self.at)
    }
}

/// CRC32C (Castagnoli) of `bytes`, continuing from `crc`.
#[must_use]
pub fn crc32c(crc: u32, bytes: &[u8]) -> u32 {
    crc32c::crc32c_append(crc, bytes)
}
