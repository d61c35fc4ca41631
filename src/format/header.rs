//! The first page of `data` and `wal`: what the file is, and whose.

use super::{
    FormatError,
    codec::{self, Put as _, Reader},
};
use crate::limits::{FORMAT_VERSION, MAX_COUNT};

/// First bytes of the data file.
pub const DATA_MAGIC: [u8; 8] = *b"SHXDATA\0";
/// First bytes of the WAL file.
pub const WAL_MAGIC: [u8; 8] = *b"SHXWAL\0\0";
/// First bytes of each root slot.
pub const ROOT_MAGIC: [u8; 8] = *b"SHXROOT\0";
/// First bytes of each WAL segment.
pub const SEGMENT_MAGIC: [u8; 8] = *b"SHXSEGM\0";

/// Offset of the version in every structure that starts with a magic.
pub const VERSION_AT: usize = 8;
/// Offset of the checksum in every structure that starts with a magic.
pub const CRC_AT: usize = 12;
/// Bytes of a file header.
pub const FILE_HEADER_BYTES: usize = 32;
/// Bytes of a segment header.
pub const SEGMENT_HEADER_BYTES: usize = 64;

/// What the first bytes of a file say about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Written by this format.
    Ours,
    /// Written by another version of it.
    OtherVersion(u32),
    /// Not ours, or overwritten.
    Foreign,
}

/// Looks at magic and version alone.
#[must_use]
pub fn kind(bytes: &[u8], magic: &[u8; 8]) -> Kind {
    let mut r = Reader::new(bytes);
    if r.expect(magic).is_err() {
        return Kind::Foreign;
    }
    match r.u32() {
        Ok(FORMAT_VERSION) => Kind::Ours,
        Ok(other) => Kind::OtherVersion(other),
        Err(_) => Kind::Foreign,
    }
}

/// The header of `data` or `wal`.
#[must_use]
pub fn encode_file(magic: &[u8; 8], index_id: u128) -> Vec<u8> {
    let mut out = Vec::with_capacity(FILE_HEADER_BYTES);
    out.put(magic);
    out.put_u32(FORMAT_VERSION);
    out.put_u32(0);
    out.put_u128(index_id);
    codec::seal(&mut out, CRC_AT, 0);
    out
}

/// The index id in a header written by [`encode_file`].
///
/// # Errors
/// If magic, version or checksum are wrong.
pub fn decode_file(bytes: &[u8], magic: &[u8; 8]) -> Result<u128, FormatError> {
    let bytes = Reader::new(bytes).take(FILE_HEADER_BYTES)?;
    let mut r = Reader::new(bytes);
    r.expect(magic)?;
    r.expect(&FORMAT_VERSION.to_le_bytes())?;
    codec::check_seal(bytes, CRC_AT, 0)?;
    r.u32()?;
    r.u128()
}

/// What a WAL segment is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentHeader {
    /// The index it belongs to.
    pub index_id: u128,
    /// The epoch of all its frames.
    pub epoch: u64,
    /// Its number within the epoch, from 1.
    pub seq: u64,
    /// The first LSN that starts in it or after it.
    pub first_lsn: u64,
}

impl SegmentHeader {
    /// The header's bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(SEGMENT_HEADER_BYTES);
        out.put(&SEGMENT_MAGIC);
        out.put_u32(FORMAT_VERSION);
        out.put_u32(0);
        out.put_u128(self.index_id);
        out.put_u64(self.epoch);
        out.put_u64(self.seq);
        out.put_u64(self.first_lsn);
        out.resize(SEGMENT_HEADER_BYTES, 0);
        codec::seal(&mut out, CRC_AT, 0);
        out
    }

    /// Parses a header.
    ///
    /// # Errors
    /// If it is not one, or a number in it cannot be; a segment never used holds zeros, and that is an error here too.
    pub fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        let bytes = Reader::new(bytes).take(SEGMENT_HEADER_BYTES)?;
        let mut r = Reader::new(bytes);
        r.expect(&SEGMENT_MAGIC)?;
        r.expect(&FORMAT_VERSION.to_le_bytes())?;
        codec::check_seal(bytes, CRC_AT, 0)?;
        r.u32()?;
        let header = Self { index_id: r.u128()?, epoch: r.u64()?, seq: r.u64()?, first_lsn: r.u64()? };
        match [header.epoch, header.seq, header.first_lsn].into_iter().find(|&n| n > MAX_COUNT) {
            Some(n) => Err(FormatError::new(32, format!("{n} is more than {MAX_COUNT}"))),
            None => Ok(header),
        }
    }
}
