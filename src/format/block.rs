//! Header of a metadata block of version 3: a directory node, a shard state, or a part of a bucket.
//!
//! It says what the block is, so that a repair recognises a block that nothing points to any more, and so that a store in
//! a wrong place is told from damage. The checksum in the header is also that of the pointer to the block.

use super::{
    FormatError,
    codec::{self, Put as _, Reader},
    geometry::{BLOCK_HEADER_BYTES, IndexParams},
    root::{encoding_code, metric_code},
};
use crate::id::Generation;

/// Offset of the checksum in the header.
const CRC_AT: usize = 4;
/// Offset of the generation in the header.
const GENERATION_AT: usize = 24;

/// Kind of a metadata block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlockKind {
    /// Node of the directory of shards.
    ShardNode,
    /// Node of the directory of buckets.
    BucketNode,
    /// Shard state.
    State,
    /// Part of a bucket.
    Bucket,
}

impl BlockKind {
    /// Returns the first bytes of a block of version 3.
    #[must_use]
    pub fn magic(self) -> [u8; 4] {
        match self {
            Self::ShardNode => *b"SHN3",
            Self::BucketNode => *b"SHM3",
            Self::State => *b"SHS3",
            Self::Bucket => *b"SHB3",
        }
    }
}

/// What a block is, whatever its location.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockNumbers {
    /// Kind of the block.
    pub kind: BlockKind,
    /// Number of the shard or bucket, or index of the node in its level.
    pub number: u32,
    /// Level of a node, part of a bucket, 0 for a state.
    pub part: u32,
}

/// Index, flush and location of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockOrigin {
    /// Id of the index.
    pub index_id: u128,
    /// Generation of the root for which the block was stored.
    pub generation: Generation,
    /// First page of the block.
    pub page: u64,
}

/// Reports whether bytes begin as a block of version 3 does.
#[must_use]
pub fn has_header(bytes: &[u8], kind: BlockKind) -> bool {
    bytes.starts_with(&kind.magic())
}

/// Writes the header into the first [`BLOCK_HEADER_BYTES`] bytes of a block, and returns the checksum for the pointer to
/// the block.
///
/// # Panics
/// Panics if the block is shorter than its header.
pub fn complete(block: &mut [u8], name: BlockNumbers, origin: BlockOrigin, geometry: &IndexParams) -> u32 {
    let mut header = Vec::with_capacity(BLOCK_HEADER_BYTES);
    header.put(&name.kind.magic());
    header.put_u32(0);
    header.put_u128(origin.index_id);
    header.put_u64(origin.generation.0);
    header.put_u64(origin.page);
    header.put_u32(name.number);
    header.put_u32(name.part);
    header.put_u32(geometry.dimension as u32);
    header.put_u32(geometry.shard_size as u32);
    header.put_u32(geometry.bloom_bytes as u32);
    header.put(&[
        metric_code(geometry.metric) as u8,
        encoding_code(geometry.encoding) as u8,
        geometry.extent_slots.trailing_zeros() as u8,
        geometry.page_size.trailing_zeros() as u8,
    ]);
    block[..BLOCK_HEADER_BYTES].copy_from_slice(&header);
    codec::seal(block, CRC_AT, 0);
    codec::sealed(block, CRC_AT)
}

/// Returns the checksum of a block: that of its bytes, with the field in its header as zeros.
#[must_use]
pub fn checksum(block: &[u8]) -> u32 {
    codec::crc_without(block, CRC_AT, 0)
}

/// Checks the header of a block with the checksum `crc`. The block was stored for the root in `latest` or an earlier one.
///
/// # Errors
/// Returns `FormatError` if the header has another checksum, block, index, page or configuration, or a later root.
pub fn check(
    block: &[u8],
    crc: u32,
    name: BlockNumbers,
    latest: BlockOrigin,
    geometry: &IndexParams,
) -> Result<(), FormatError> {
    let mut r = Reader::new(Reader::new(block).take(BLOCK_HEADER_BYTES)?);
    r.take(GENERATION_AT)?;
    let generation = Generation(r.u64()?);
    if generation > latest.generation {
        let what = format!("a block of root {generation} below root {}", latest.generation);
        return Err(FormatError::new(GENERATION_AT, what));
    }
    let mut expected = vec![0; BLOCK_HEADER_BYTES];
    complete(&mut expected, name, BlockOrigin { generation, ..latest }, geometry);
    expected[CRC_AT..CRC_AT + 4].copy_from_slice(&crc.to_le_bytes());
    match (0..BLOCK_HEADER_BYTES).find(|&at| expected[at] != block[at]) {
        Some(at) => {
            let page = latest.page;
            Err(FormatError::new(at, format!("the header of {name:?} at page {page} expected")))
        }
        None => Ok(()),
    }
}
