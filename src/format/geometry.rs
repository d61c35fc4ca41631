//! Sizes and offsets derived from the parameters of an index.
//!
//! Invariant: every offset that depends on a parameter is derived here from sizes. Roots, frames and headers have fixed
//! layouts, which their own modules define.

use super::FormatError;
use crate::{
    config::{Metric, ShardexConfig, VectorEncoding},
    limits, tuning,
};

/// Length of a posting record in bytes: document id, start, length, norm, four zero bytes.
pub const POSTING_BYTES: usize = 32;

/// Length in bytes of the header of a metadata block of version 3.
pub const BLOCK_HEADER_BYTES: usize = 64;

/// Length in bytes of the fixed part of a shard state of versions 1 and 2: magic, number, id, two counts, eight zero
/// bytes.
const STATE_FIXED_BYTES: usize = 40;
/// Length in bytes of the fixed part of a shard state of version 3 behind its block header: id, two counts, eight zero
/// bytes.
const STATE_FIXED_BYTES_3: usize = 32;
/// Length in bytes of an extent's entry in a shard state.
const STATE_EXTENT_BYTES: usize = 16;
/// Length in bytes of the pointer to a page of tags in a shard state.
const STATE_TAGS_BYTES: usize = 16;
/// Length in bytes of the fields before the bits of the former slots in a shard state: id, count, four zero bytes.
const STATE_FORMER_BYTES: usize = 24;
/// Bytes of a shard state of version 2 that are zeros.
pub const STATE_SPARE_BYTES: usize = 16;

/// What the length of a shard state depends on, besides the parameters of the index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StateLayout {
    /// Used slots of the shard.
    pub slots: usize,
    /// Format version of the state.
    pub version: u32,
    /// Whether a stored vector takes the place of the sum and the centroid.
    pub is_one: bool,
    /// Number of slots before the last rewrite, if the state has bits of them.
    pub former: Option<usize>,
}

impl StateLayout {
    /// Returns the layout of a state with sum and centroid, and without former slots.
    #[must_use]
    pub fn of(slots: usize, version: u32) -> Self {
        Self { slots, version, is_one: false, former: None }
    }
}

/// Parameters that are fixed for the life of an index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IndexParams {
    /// Number of components per vector.
    pub dimension: usize,
    /// Distance metric.
    pub metric: Metric,
    /// Encoding of stored vectors.
    pub encoding: VectorEncoding,
    /// Maximum number of postings in a shard.
    pub shard_size: usize,
    /// Length of a shard's bloom filter in bytes, a multiple of 8.
    pub bloom_bytes: usize,
    /// Number of slots per extent, a power of two.
    pub extent_slots: usize,
    /// Page size in bytes.
    pub page_size: usize,
    /// Sector size in bytes.
    pub sector_size: usize,
    /// Length of a WAL segment in bytes.
    pub wal_segment_size: u64,
}

impl IndexParams {
    /// Returns the parameters of a new index.
    #[must_use]
    pub fn of(config: &ShardexConfig, page_size: usize, sector_size: usize) -> Self {
        let params = Self {
            dimension: config.vector_size,
            metric: config.metric,
            encoding: config.encoding,
            shard_size: config.shard_size,
            bloom_bytes: config.bloom_bytes(),
            extent_slots: 1,
            page_size,
            sector_size,
            wal_segment_size: config.wal_segment_size as u64,
        };
        let fit = (tuning::EXTENT_BYTES / params.slot_bytes()).max(1);
        // The greatest power of two that fits.
        let extent_slots = Self::first_extent_slots(params.shard_size).min(1 << fit.ilog2());
        Self { extent_slots, ..params }
    }

    /// Returns the number of slots per extent in versions 1 and 2, where it depended on the shard size alone.
    #[must_use]
    pub fn first_extent_slots(shard_size: usize) -> usize {
        tuning::EXTENT_SLOTS.min(shard_size.next_power_of_two())
    }

    /// Checks the ranges of parameters that were read from disk, so that no later arithmetic overflows.
    ///
    /// # Errors
    /// Returns `FormatError` with the parameters if one of them is out of range.
    pub fn validated(self) -> Result<Self, FormatError> {
        let fits = (1..=limits::MAX_DIMENSION).contains(&self.dimension)
            && (2..=limits::MAX_SHARD_SIZE).contains(&self.shard_size)
            && (8..=1 << 24).contains(&self.bloom_bytes)
            && self.bloom_bytes.is_multiple_of(8)
            && self.extent_slots.is_power_of_two()
            && self.extent_slots <= Self::first_extent_slots(self.shard_size)
            && self.page_size.is_power_of_two()
            && self.sector_size.is_power_of_two()
            && (64..=self.page_size).contains(&self.sector_size)
            && (256..=1 << 20).contains(&self.page_size)
            && self.wal_segment_size >= 4 * self.page_size as u64
            && self.wal_segment_size <= 1 << 30
            && self.wal_segment_size.is_multiple_of(self.page_size as u64);
        if fits { Ok(self) } else { Err(FormatError::new(0, format!("no index is made with {self:?}"))) }
    }

    /// Returns the length of a stored vector in bytes. The posting record follows the vector in its slot.
    #[must_use]
    pub fn vector_bytes(&self) -> usize {
        self.encoding.vector_bytes(self.dimension)
    }

    /// Returns the length of a slot in bytes. A slot holds the vector and then its posting record, so that one posting
    /// dirties as few pages as possible. Slots are padded so that each vector starts at a multiple of 64 bytes.
    #[must_use]
    pub fn slot_bytes(&self) -> usize {
        (self.vector_bytes() + POSTING_BYTES).next_multiple_of(tuning::EXTENT_ALIGN)
    }

    /// Returns the maximum number of extents in a shard.
    #[must_use]
    pub fn shard_extents(&self) -> usize {
        self.shard_size.div_ceil(self.extent_slots)
    }

    /// Returns the number of pages per extent.
    #[must_use]
    pub fn extent_pages(&self) -> u32 {
        self.pages(self.extent_slots * self.slot_bytes())
    }

    /// Returns the number of pages that hold the tags of `len` slots.
    #[must_use]
    pub fn tag_pages(&self, len: usize) -> usize {
        len.div_ceil(self.page_slots())
    }

    /// Returns the number of slots whose tags fit a page.
    #[must_use]
    pub fn page_slots(&self) -> usize {
        self.page_size / 8
    }

    /// Returns the length in bytes of a shard state.
    #[must_use]
    pub fn state_bytes(&self, layout: &StateLayout) -> usize {
        let &StateLayout { slots, version, is_one, former } = layout;
        let fixed = if version < 3 { STATE_FIXED_BYTES } else { BLOCK_HEADER_BYTES + STATE_FIXED_BYTES_3 };
        let of_tags = match version {
            1 => 0,
            2 => self.tag_pages(slots) * STATE_TAGS_BYTES + STATE_SPARE_BYTES,
            _ => self.tag_pages(slots) * STATE_TAGS_BYTES,
        };
        of_tags
            + fixed
            + slots.div_ceil(self.extent_slots) * STATE_EXTENT_BYTES
            + slots.div_ceil(64) * 8
            + self.bloom_bytes
            + if is_one { self.vector_bytes() } else { self.dimension * 12 }
            + former.map_or(0, |slots| STATE_FORMER_BYTES + slots.div_ceil(64) * 8)
    }

    /// Returns the length in bytes of the largest shard state of version 1, from which the size of a chunk follows.
    ///
    /// The chunks of a file never change their size, so later versions keep it. A chunk has room for four of these states, and
    /// so for one of a later version.
    #[must_use]
    pub fn max_state_bytes(&self) -> usize {
        self.state_bytes(&StateLayout::of(self.shard_size, 1))
    }

    /// Returns the number of pages that `bytes` bytes occupy.
    #[must_use]
    pub fn pages(&self, bytes: usize) -> u32 {
        bytes.div_ceil(self.page_size) as u32
    }

    /// Returns the number of pages per chunk, the unit of growth of the data file. A chunk has room for eight extents
    /// and for four states of the largest size.
    #[must_use]
    pub fn chunk_pages(&self) -> u32 {
        (8 * self.extent_pages()).max(4 * self.pages(self.max_state_bytes()))
    }

    /// Returns the number of entries per directory node in a format version. A node is one page, and from version 3 on it
    /// begins with a block header.
    #[must_use]
    pub fn node_fanout(&self, version: u32) -> usize {
        let header = if version < 3 { 0 } else { BLOCK_HEADER_BYTES };
        (self.page_size - header) / super::node::ENTRY_BYTES
    }

    /// Returns the number of levels of directory nodes above `shards` shard states, at least 1, in a format version.
    #[must_use]
    pub fn node_levels(&self, shards: usize, version: u32) -> u32 {
        let fanout = self.node_fanout(version);
        let mut levels = 1;
        let mut reach = fanout;
        while reach < shards {
            reach = reach.saturating_mul(fanout);
            levels += 1;
        }
        levels
    }
}
