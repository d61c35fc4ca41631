//! Bounds-checked reading and writing of little-endian numbers, and checksums inside a structure.

use super::FormatError;
use crate::failpoint::holds;

/// Cursor that reads numbers from the front of a byte slice.
#[derive(Debug)]
pub struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

macro_rules! number {
    ($name:ident: $type:ty) => {
        #[doc = concat!("Returns the next `", stringify!($type), "`.")]
        ///
        /// # Errors
        /// Returns `FormatError` if fewer bytes remain than the number occupies.
        pub fn $name(&mut self) -> Result<$type, FormatError> {
            let mut raw = [0u8; size_of::<$type>()];
            raw.copy_from_slice(self.take(size_of::<$type>())?);
            Ok(<$type>::from_le_bytes(raw))
        }
    };
}

impl<'a> Reader<'a> {
    /// Creates a reader at the first byte.
    #[must_use]
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0 }
    }

    /// Returns the number of bytes read.
    #[must_use]
    pub fn at(&self) -> usize {
        self.at
    }

    /// Returns the next `n` bytes.
    ///
    /// # Errors
    /// Returns `FormatError` if fewer than `n` bytes remain.
    pub fn take(&mut self, n: usize) -> Result<&'a [u8], FormatError> {
        let rest = self.bytes.get(self.at..).unwrap_or_default();
        let Some(taken) = rest.get(..n) else {
            return Err(FormatError::new(self.at, format!("{n} bytes expected, {} left", rest.len())));
        };
        self.at += n;
        Ok(taken)
    }

    number!(u8: u8);
    number!(u16: u16);
    number!(u32: u32);
    number!(u64: u64);
    number!(u128: u128);

    /// Reads the next `magic.len()` bytes and checks that they equal `magic`.
    ///
    /// # Errors
    /// Returns `FormatError` with both values if the bytes differ from `magic`, or if fewer bytes remain.
    pub fn expect(&mut self, magic: &[u8]) -> Result<(), FormatError> {
        let at = self.at;
        let found = self.take(magic.len())?;
        if found == magic {
            Ok(())
        } else {
            Err(FormatError::new(
                at,
                format!("\"{}\" expected, \"{}\" found", magic.escape_ascii(), found.escape_ascii()),
            ))
        }
    }
}

/// Buffer to which little-endian numbers are appended.
pub trait Put {
    /// Appends bytes.
    fn put(&mut self, bytes: &[u8]);
    /// Appends a `u32` in little-endian order.
    fn put_u32(&mut self, n: u32) {
        self.put(&n.to_le_bytes());
    }
    /// Appends a `u64` in little-endian order.
    fn put_u64(&mut self, n: u64) {
        self.put(&n.to_le_bytes());
    }
    /// Appends a `u128` in little-endian order.
    fn put_u128(&mut self, n: u128) {
        self.put(&n.to_le_bytes());
    }
}

impl Put for Vec<u8> {
    fn put(&mut self, bytes: &[u8]) {
        self.extend_from_slice(bytes);
    }
}

/// Writes the CRC32C of `bytes`, starting from `seed`, into the four bytes at `field`. These four bytes count as zeros
/// in the checksum.
///
/// # Panics
/// Panics if `field + 4` is past the end of `bytes`, which is a mistake of the caller.
pub fn seal(bytes: &mut [u8], field: usize, seed: u32) {
    bytes[field..field + 4].fill(0);
    let crc = super::crc32c(seed, bytes);
    bytes[field..field + 4].copy_from_slice(&crc.to_le_bytes());
}

/// Returns the checksum in the four bytes at `field`.
///
/// # Panics
/// Panics if `field + 4` is past the end of `bytes`, which is a mistake of the caller.
#[must_use]
pub fn sealed(bytes: &[u8], field: usize) -> u32 {
    let mut stored = [0; 4];
    stored.copy_from_slice(&bytes[field..field + 4]);
    u32::from_le_bytes(stored)
}

/// Returns the CRC32C of `bytes`, starting from `seed`. The four bytes at `field` count as zeros.
#[must_use]
pub fn crc_without(bytes: &[u8], field: usize, seed: u32) -> u32 {
    let (before, after) = (bytes.get(..field).unwrap_or(bytes), bytes.get(field + 4..).unwrap_or_default());
    super::crc32c(super::crc32c(super::crc32c(seed, before), &[0; 4]), after)
}

/// Checks a checksum that [`seal`] wrote.
///
/// # Errors
/// Returns `FormatError` with the stored and the computed checksum if they differ, or if the bytes end before the field
/// does.
#[cfg_attr(feature = "mutants", track_caller)]
pub fn check_seal(bytes: &[u8], field: usize, seed: u32) -> Result<(), FormatError> {
    let Some(stored) = bytes.get(field..field + 4) else {
        return Err(FormatError::new(field, "the bytes end before the checksum"));
    };
    let crc = crc_without(bytes, field, seed);
    if holds!(Checksum, crc.to_le_bytes() == stored) {
        Ok(())
    } else {
        let found = Reader::new(stored).u32()?;
        Err(FormatError::new(field, format!("checksum {found:08x} stored, {crc:08x} computed")))
    }
}
