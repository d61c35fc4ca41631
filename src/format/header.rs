//! Headers of the files `data` and `wal` and of WAL segments.

use super::{
    FormatError,
    codec::{self, Put as _, Reader},
};
use crate::tuning::MAX_COUNT;

/// First bytes of the data file.
pub const DATA_MAGIC: [u8; 8] = *b"SHXDATA\0";
/// First bytes of the WAL file.
pub const WAL_MAGIC: [u8; 8] = *b"SHXWAL\0\0";
/// First bytes of each root slot.
pub const ROOT_MAGIC: [u8; 8] = *b"SHXROOT\0";
/// First bytes of each WAL segment.
pub const SEGMENT_MAGIC: [u8; 8] = *b"SHXSEGM\0";

/// Version in the headers of files and segments. Their layout has not changed since version 1. The version of an index
/// is that of its root.
pub const HEADER_VERSION: u32 = 1;

/// Offset of the version in every structure that starts with an 8-byte magic.
pub const VERSION_AT: usize = 8;
/// Offset of the checksum in every structure that starts with an 8-byte magic.
pub const CRC_AT: usize = 12;
/// Length of a file header in bytes.
pub const FILE_HEADER_BYTES: usize = 32;
/// Length of a segment header in bytes.
pub const SEGMENT_HEADER_BYTES: usize = 64;

/// Classification of a structure by its magic and version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileKind {
    /// Has the expected magic and this version.
    Version(u32),
    /// Has another magic, or is too short.
    Foreign,
}

/// Classifies a structure by its magic and version. Does not verify the checksum.
#[must_use]
pub fn kind(bytes: &[u8], magic: &[u8; 8]) -> FileKind {
    let mut r = Reader::new(bytes);
    if r.expect(magic).is_err() {
        return FileKind::Foreign;
    }
    match r.u32() {
        Ok(version) => FileKind::Version(version),
        Err(_) => FileKind::Foreign,
    }
}

/// Encodes the header of `data` or `wal`.
#[must_use]
pub fn encode_file(magic: &[u8; 8], index_id: u128) -> Vec<u8> {
    let mut out = Vec::with_capacity(FILE_HEADER_BYTES);
    out.put(magic);
    out.put_u32(HEADER_VERSION);
    out.put_u32(0);
    out.put_u128(index_id);
    codec::seal(&mut out, CRC_AT, 0);
    out
}

/// Parses a header written by [`encode_file`] and returns the index id.
///
/// # Errors
/// Returns `FormatError` if the magic, the version or the checksum is wrong.
pub fn decode_file(bytes: &[u8], magic: &[u8; 8]) -> Result<u128, FormatError> {
    let bytes = Reader::new(bytes).take(FILE_HEADER_BYTES)?;
    let mut r = Reader::new(bytes);
    r.expect(magic)?;
    r.expect(&HEADER_VERSION.to_le_bytes())?;
    codec::check_seal(bytes, CRC_AT, 0)?;
    r.u32()?;
    r.u128()
}

/// Header of a WAL segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentHeader {
    /// Id of the index.
    pub index_id: u128,
    /// Epoch of all frames in the segment.
    pub epoch: u64,
    /// Segment number within the epoch, starting at 1.
    pub seq: u64,
    /// First LSN whose frame starts in this segment or in a later one.
    pub first_lsn: u64,
}

impl SegmentHeader {
    /// Encodes the header, including its checksum.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(SEGMENT_HEADER_BYTES);
        out.put(&SEGMENT_MAGIC);
        out.put_u32(HEADER_VERSION);
        out.put_u32(0);
        out.put_u128(self.index_id);
        out.put_u64(self.epoch);
        out.put_u64(self.seq);
        out.put_u64(self.first_lsn);
        out.resize(SEGMENT_HEADER_BYTES, 0);
        codec::seal(&mut out, CRC_AT, 0);
        out
    }

    /// Parses a segment header.
    ///
    /// # Errors
    /// Returns `FormatError` if the magic, the version or the checksum is wrong, or if a number exceeds `MAX_COUNT`. A
    /// segment that was never used holds zeros, which is also an error.
    pub fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        let bytes = Reader::new(bytes).take(SEGMENT_HEADER_BYTES)?;
        let mut r = Reader::new(bytes);
        r.expect(&SEGMENT_MAGIC)?;
        r.expect(&HEADER_VERSION.to_le_bytes())?;
        codec::check_seal(bytes, CRC_AT, 0)?;
        r.u32()?;
        let header = Self { index_id: r.u128()?, epoch: r.u64()?, seq: r.u64()?, first_lsn: r.u64()? };
        match [header.epoch, header.seq, header.first_lsn].into_iter().find(|&n| n > MAX_COUNT) {
            Some(n) => Err(FormatError::new(32, format!("{n} is more than {MAX_COUNT}"))),
            None => Ok(header),
        }
    }
}
