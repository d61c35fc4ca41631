//! Limits of the API: the largest values that an index accepts.

/// Version of the on-disk format that this build writes. It also reads the versions from 1 on, and the first write to an
/// index of an older version upgrades it.
pub const FORMAT_VERSION: u32 = 3;

/// Smallest page of a new index in bytes. Only a simulated disk has pages of less than 4,096 bytes.
pub const MIN_PAGE_BYTES: usize = 512;

/// Largest dimension of a vector.
pub const MAX_DIMENSION: usize = 65_536;

/// Largest value of [`shard_size`](crate::ShardexConfig::shard_size), the capacity of a shard in postings.
pub const MAX_SHARD_SIZE: usize = 65_536;

/// Largest number of results of a search.
pub const MAX_K: usize = 1_000_000;

/// Largest Euclidean norm of a vector: 2^62.
///
/// If both norms are at most this, every product, every squared distance and every partial sum of them is at most
/// 2^126. So no distance between two stored vectors is infinite or NaN.
pub const MAX_NORM: f64 = 4_611_686_018_427_387_904.0;

/// Largest payload of a document in bytes: 16 MiB.
pub const MAX_PAYLOAD_BYTES: usize = 16 << 20;

/// Largest cursor in bytes: 64 KiB.
pub const MAX_CURSOR_BYTES: usize = 64 << 10;

/// Largest encoded batch, in bytes of WAL payload.
pub const MAX_BATCH_BYTES: u64 = 1 << 30;
