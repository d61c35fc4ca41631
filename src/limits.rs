//! Every bound of the engine, in one place.
//!
//! A bound that the format fixes is asserted beside the code that derives an offset from it.

/// Version of the on-disk format that this build reads and writes.
pub const FORMAT_VERSION: u32 = 1;

/// Most numbers a vector may have.
pub const MAX_DIMENSION: usize = 65_536;

/// Most postings a shard may be configured to hold.
pub const MAX_SHARD_SIZE: usize = 65_536;

/// Most results one search may ask for.
pub const MAX_K: usize = 1_000_000;

/// Largest Euclidean norm of a vector: 2^62.
///
/// With both norms at most this, every product, every squared distance and every partial sum of them
/// stays under 2^126, so no distance between two stored vectors is ever infinite or NaN.
pub const MAX_NORM: f64 = 4_611_686_018_427_387_904.0;

/// Postings per extent, the unit in which a shard takes space.
pub const EXTENT_SLOTS: usize = 64;

/// A vector's first byte lies on a multiple of this within its file.
pub const EXTENT_ALIGN: usize = 64;

/// Largest encoded batch of adds or removals, in bytes of WAL payload.
pub const MAX_BATCH_BYTES: u64 = 1 << 30;

/// Most bytes the data file grows by at once.
pub const MAX_GROWTH_BYTES: u64 = 64 << 20;

/// Shards to which a split may move postings: the nearest ones by centroid.
pub const SPLIT_NEIGHBOURS: usize = 16;

/// Most rounds of 2-means in a split.
pub const SPLIT_ROUNDS: usize = 10;

const _: () = assert!(EXTENT_SLOTS.is_power_of_two() && EXTENT_SLOTS <= 64);
