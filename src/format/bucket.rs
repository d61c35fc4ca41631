//! Bucket of payloads: the entries of the documents whose hash leads to it. Bucket 0 also has the entry of the cursor.
//!
//! A bucket is stored in one or more parts. A part points to the next one, and the directory of buckets to the first.
//! An entry holds a short payload itself. The bytes of a longer one are in runs, and the entry has their checksum.

use super::{
    FormatError,
    block::{BlockKind, has_header},
    codec::{Put as _, Reader},
    geometry::{BLOCK_HEADER_BYTES, IndexParams},
    node::BlockPointer,
};
use crate::id::DocumentId;

/// First bytes of a part of a bucket of version 2.
const BUCKET_MAGIC: [u8; 4] = *b"SHPB";

/// Length in bytes of the fields before the entries of a part of version 2: magic, bucket number, part number, length,
/// next part.
const PART_HEADER_BYTES_2: usize = 32;
/// Length in bytes of the fields before the entries of a part of version 3: block header, next part.
const PART_HEADER_BYTES: usize = BLOCK_HEADER_BYTES + 16;
/// Length in bytes of the fixed fields of an entry: document id, length, checksum, runs, kind.
pub const ENTRY_BYTES: usize = 28;
/// Length of a run in bytes: page, pages of its block, offset, length.
pub const RUN_BYTES: usize = 20;
/// Largest length in bytes of a payload that its entry holds itself.
pub const INLINE_BYTES: usize = 64;

/// Kind of the entry of a document.
const DOCUMENT: u16 = 1;
/// Kind of the entry of the cursor, whose document id is 0.
const CURSOR: u16 = 2;

/// Part of the bytes of a payload, within a block of the data file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PayloadRun {
    /// First page of the block.
    pub page: u64,
    /// Pages of the block.
    pub pages: u32,
    /// Offset of the run in the block, in bytes.
    pub offset: u32,
    /// Length of the run in bytes.
    pub len: u32,
}

/// Owner of a byte string in a bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum PayloadOwner {
    /// The application's cursor.
    Cursor,
    /// A document.
    Document(DocumentId),
}

/// Location of the bytes of an entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PayloadBytes {
    /// In the entry.
    Inline(Vec<u8>),
    /// In runs. Their lengths add up to that of the payload.
    Runs(Vec<PayloadRun>),
}

/// Entry of a bucket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PayloadEntry {
    /// Owner of the bytes.
    pub owner: PayloadOwner,
    /// Number of bytes.
    pub len: u32,
    /// CRC32C of the bytes.
    pub crc: u32,
    /// Location of the bytes.
    pub content: PayloadBytes,
}

impl PayloadEntry {
    /// Returns the length of the encoded entry in bytes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        ENTRY_BYTES
            + match &self.content {
                PayloadBytes::Inline(bytes) => bytes.len(),
                PayloadBytes::Runs(runs) => runs.len() * RUN_BYTES,
            }
    }
}

/// Returns the number of bytes of entries in a part of a format version. A part fits a chunk.
#[must_use]
pub fn part_capacity(geometry: &IndexParams, version: u32) -> usize {
    let header = if version < 3 { PART_HEADER_BYTES_2 } else { PART_HEADER_BYTES };
    geometry.chunk_pages() as usize * geometry.page_size - header
}

/// Returns the offset of the pointer to the next part in an encoded part.
#[must_use]
pub fn next_at(part: &[u8]) -> usize {
    if has_header(part, BlockKind::Bucket) { BLOCK_HEADER_BYTES } else { 16 }
}

/// Encodes the entries of a bucket, in ascending order of their owners, without the headers of its parts.
#[must_use]
pub fn encode_entries<'a>(entries: impl IntoIterator<Item = &'a PayloadEntry>) -> Vec<u8> {
    let mut out = Vec::new();
    for entry in entries {
        let (document, kind) = match entry.owner {
            PayloadOwner::Cursor => (DocumentId(0), CURSOR),
            PayloadOwner::Document(document) => (document, DOCUMENT),
        };
        out.put_u128(document.0);
        out.put_u32(entry.len);
        out.put_u32(entry.crc);
        let runs = match &entry.content {
            PayloadBytes::Inline(_) => 0,
            PayloadBytes::Runs(runs) => runs.len() as u16,
        };
        out.put(&runs.to_le_bytes());
        out.put(&kind.to_le_bytes());
        match &entry.content {
            PayloadBytes::Inline(bytes) => out.put(bytes),
            PayloadBytes::Runs(runs) => {
                for run in runs {
                    out.put_u64(run.page);
                    out.put_u32(run.pages);
                    out.put_u32(run.offset);
                    out.put_u32(run.len);
                }
            }
        }
    }
    out
}

/// Encodes a part of a bucket in a format version. Version 3 begins with room for the block header.
#[must_use]
pub fn encode_part(bucket: u32, part: u32, entries: &[u8], next: BlockPointer, version: u32) -> Vec<u8> {
    let mut out = Vec::with_capacity(PART_HEADER_BYTES + entries.len());
    if version < 3 {
        out.put(&BUCKET_MAGIC);
        out.put_u32(bucket);
        out.put_u32(part);
        out.put_u32(entries.len() as u32);
    } else {
        out.resize(BLOCK_HEADER_BYTES, 0);
    }
    next.encode(&mut out);
    out.put(entries);
    out
}

/// Parses a part of a bucket. Returns its entries' bytes and the pointer to the next part. The block header of version 3
/// is checked elsewhere.
///
/// # Errors
/// Returns `FormatError` if the bytes are not that part of that bucket.
pub fn decode_part(bytes: &[u8], bucket: u32, part: u32) -> Result<(&[u8], BlockPointer), FormatError> {
    let mut r = Reader::new(bytes);
    if has_header(bytes, BlockKind::Bucket) {
        r.take(BLOCK_HEADER_BYTES)?;
        let next = BlockPointer::decode(&mut r)?;
        return Ok((r.take(bytes.len() - r.at())?, next));
    }
    r.expect(&BUCKET_MAGIC)?;
    r.expect(&bucket.to_le_bytes())?;
    r.expect(&part.to_le_bytes())?;
    let (at, len) = (r.at(), r.u32()? as usize);
    let next = BlockPointer::decode(&mut r)?;
    if len + PART_HEADER_BYTES_2 != bytes.len() {
        return Err(FormatError::new(at, format!("{len} bytes of entries in a part of {}", bytes.len())));
    }
    Ok((r.take(len)?, next))
}

/// Parses the entries of a bucket, from the concatenated bytes of its parts.
///
/// # Errors
/// Returns `FormatError` if an entry is cut, if the owners are not ascending, if a run lies outside its block, or if
/// the runs of an entry don't have its length.
pub fn decode_entries(bytes: &[u8], geometry: &IndexParams) -> Result<Vec<PayloadEntry>, FormatError> {
    let mut r = Reader::new(bytes);
    let mut entries: Vec<PayloadEntry> = Vec::new();
    while r.at() < bytes.len() {
        let at = r.at();
        let entry = decode_entry(&mut r, geometry)?;
        if entries.last().is_some_and(|last| last.owner >= entry.owner) {
            return Err(FormatError::new(at, format!("{:?} is not after the entry before it", entry.owner)));
        }
        entries.push(entry);
    }
    Ok(entries)
}

fn decode_entry(r: &mut Reader<'_>, geometry: &IndexParams) -> Result<PayloadEntry, FormatError> {
    let at = r.at();
    let (document, len, crc) = (DocumentId(r.u128()?), r.u32()?, r.u32()?);
    let (runs, kind) = (r.u16()?, r.u16()?);
    let owner = match kind {
        DOCUMENT => PayloadOwner::Document(document),
        CURSOR if document == DocumentId(0) => PayloadOwner::Cursor,
        other => return Err(FormatError::new(at, format!("an entry of kind {other} for document {document}"))),
    };
    if runs == 0 {
        if len as usize > INLINE_BYTES {
            return Err(FormatError::new(at, format!("{len} bytes in the entry, {INLINE_BYTES} at most")));
        }
        return Ok(PayloadEntry { owner, len, crc, content: PayloadBytes::Inline(r.take(len as usize)?.to_vec()) });
    }
    let mut list = Vec::new();
    for _ in 0..runs {
        let at = r.at();
        let run = PayloadRun { page: r.u64()?, pages: r.u32()?, offset: r.u32()?, len: r.u32()? };
        let block = u64::from(run.pages) * geometry.page_size as u64;
        if run.page == 0 || run.len == 0 || u64::from(run.offset) + u64::from(run.len) > block {
            return Err(FormatError::new(at, format!("{run:?} is not within its block")));
        }
        list.push(run);
    }
    if list.iter().map(|run| u64::from(run.len)).sum::<u64>() != u64::from(len) {
        return Err(FormatError::new(at, format!("the runs of an entry don't add up to {len} bytes")));
    }
    Ok(PayloadEntry { owner, len, crc, content: PayloadBytes::Runs(list) })
}
