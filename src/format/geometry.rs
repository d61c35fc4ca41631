//! The sizes and offsets that follow from what an index was made with.
//!
//! Invariant: no offset is written down twice; every one is derived here from sizes.

use super::FormatError;
use crate::{
    config::{Metric, ShardexConfig},
    limits,
};

/// Bytes of one posting record: document id, start, length, norm, four zeros.
pub const POSTING_BYTES: usize = 32;

/// What the format fixes for the life of an index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// Numbers per vector.
    pub dimension: usize,
    /// The metric.
    pub metric: Metric,
    /// Most postings in a shard.
    pub shard_size: usize,
    /// Bytes of a shard's bloom filter, a multiple of 8.
    pub bloom_bytes: usize,
    /// Bytes per page.
    pub page_size: usize,
    /// Bytes per sector.
    pub sector_size: usize,
    /// Bytes per WAL segment.
    pub wal_segment_size: u64,
}

impl Geometry {
    /// The geometry of a new index.
    #[must_use]
    pub fn of(config: &ShardexConfig, page_size: usize, sector_size: usize) -> Self {
        Self {
            dimension: config.vector_size,
            metric: config.metric,
            shard_size: config.shard_size,
            bloom_bytes: config.bloom_bytes(),
            page_size,
            sector_size,
            wal_segment_size: config.wal_segment_size as u64,
        }
    }

    /// Checks numbers that came from a disk, so that no later arithmetic overflows.
    ///
    /// # Errors
    /// Names the number that cannot be.
    pub fn validated(self) -> Result<Self, FormatError> {
        let fits = (1..=limits::MAX_DIMENSION).contains(&self.dimension)
            && (2..=limits::MAX_SHARD_SIZE).contains(&self.shard_size)
            && (8..=1 << 24).contains(&self.bloom_bytes)
            && self.bloom_bytes.is_multiple_of(8)
            && self.page_size.is_power_of_two()
            && self.sector_size.is_power_of_two()
            && (64..=self.page_size).contains(&self.sector_size)
            && (256..=1 << 20).contains(&self.page_size)
            && self.wal_segment_size >= 4 * self.page_size as u64
            && self.wal_segment_size <= 1 << 30
            && self.wal_segment_size.is_multiple_of(self.page_size as u64);
        if fits { Ok(self) } else { Err(FormatError::new(0, format!("no index is made with {self:?}"))) }
    }

    /// Bytes of a vector; the posting record follows it in its slot.
    #[must_use]
    pub fn vector_bytes(&self) -> usize {
        self.dimension * 4
    }

    /// Bytes of a slot: vector and posting record side by side, so that one posting dirties as few pages as can be; padded
    /// so that each vector starts on 64 bytes.
    #[must_use]
    pub fn slot_bytes(&self) -> usize {
        (self.vector_bytes() + POSTING_BYTES).next_multiple_of(limits::EXTENT_ALIGN)
    }

    /// Postings per extent.
    #[must_use]
    pub fn extent_slots(&self) -> usize {
        limits::EXTENT_SLOTS.min(self.shard_size.next_power_of_two())
    }

    /// Most extents in a shard.
    #[must_use]
    pub fn shard_extents(&self) -> usize {
        self.shard_size.div_ceil(self.extent_slots())
    }

    /// Pages per extent.
    #[must_use]
    pub fn extent_pages(&self) -> u32 {
        self.pages(self.extent_slots() * self.slot_bytes())
    }

    /// Bytes of the largest shard state.
    #[must_use]
    pub fn max_state_bytes(&self) -> usize {
        super::state::encoded_len(self, self.shard_size)
    }

    /// Pages that `bytes` take.
    #[must_use]
    pub fn pages(&self, bytes: usize) -> u32 {
        bytes.div_ceil(self.page_size) as u32
    }

    /// Pages per chunk, the unit in which the data file grows: room for eight extents and for four states.
    #[must_use]
    pub fn chunk_pages(&self) -> u32 {
        (8 * self.extent_pages()).max(4 * self.pages(self.max_state_bytes()))
    }

    /// Entries per directory node: a node is one page.
    #[must_use]
    pub fn node_fanout(&self) -> usize {
        self.page_size / super::node::ENTRY_BYTES
    }

    /// Levels of directory nodes above `shards` shard states, at least 1.
    #[must_use]
    pub fn node_levels(&self, shards: usize) -> u32 {
        let mut levels = 1;
        let mut reach = self.node_fanout();
        while reach < shards {
            reach = reach.saturating_mul(self.node_fanout());
            levels += 1;
        }
        levels
    }
}
