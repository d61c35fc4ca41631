//! Reading and writing little-endian numbers with a bound on every step.

use super::FormatError;
use crate::site;

/// Takes numbers off the front of some bytes.
#[derive(Debug)]
pub struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

macro_rules! number {
    ($name:ident: $type:ty) => {
        #[doc = concat!("The next `", stringify!($type), "`.")]
        ///
        /// # Errors
        /// If the bytes end before it does.
        pub fn $name(&mut self) -> Result<$type, FormatError> {
            let mut raw = [0u8; size_of::<$type>()];
            raw.copy_from_slice(self.take(size_of::<$type>())?);
            Ok(<$type>::from_le_bytes(raw))
        }
    };
}

impl<'a> Reader<'a> {
    /// Starts at the first byte.
    #[must_use]
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0 }
    }

    /// Bytes taken so far.
    #[must_use]
    pub fn at(&self) -> usize {
        self.at
    }

    /// The next `n` bytes.
    ///
    /// # Errors
    /// If fewer are left.
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

    /// Checks that the next bytes are these.
    ///
    /// # Errors
    /// If they are others, with both.
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

/// Appends numbers to a buffer.
pub trait Put {
    /// Appends bytes.
    fn put(&mut self, bytes: &[u8]);
    /// Appends a number.
    fn put_u32(&mut self, n: u32) {
        self.put(&n.to_le_bytes());
    }
    /// Appends a number.
    fn put_u64(&mut self, n: u64) {
        self.put(&n.to_le_bytes());
    }
    /// Appends a number.
    fn put_u128(&mut self, n: u128) {
        self.put(&n.to_le_bytes());
    }
}

impl Put for Vec<u8> {
    fn put(&mut self, bytes: &[u8]) {
        self.extend_from_slice(bytes);
    }
}

/// Writes the CRC of `bytes`, computed with the field itself as zeros, into the four bytes at `field`.
///
/// # Panics
/// If `field + 4` is past the end: a mistake of the caller.
pub fn seal(bytes: &mut [u8], field: usize, seed: u32) {
    bytes[field..field + 4].fill(0);
    let crc = super::crc32c(seed, bytes);
    bytes[field..field + 4].copy_from_slice(&crc.to_le_bytes());
}

/// Checks what [`seal`] wrote.
///
/// # Errors
/// With the CRC found and the one expected; also if the bytes end before the field does.
#[cfg_attr(feature = "mutants", track_caller)]
pub fn check_seal(bytes: &[u8], field: usize, seed: u32) -> Result<(), FormatError> {
    let (Some(before), Some(stored), Some(after)) =
        (bytes.get(..field), bytes.get(field..field + 4), bytes.get(field + 4..))
    else {
        return Err(FormatError::new(field, "the bytes end before the checksum"));
    };
    let mut crc = super::crc32c(seed, before);
    crc = super::crc32c(crc, &[0; 4]);
    crc = super::crc32c(crc, after);
    if site::holds(site::Kind::Checksum, crc.to_le_bytes() == stored) {
        Ok(())
    } else {
        let found = Reader::new(stored).u32()?;
        Err(FormatError::new(field, format!("checksum {found:08x} stored, {crc:08x} computed")))
    }
}
