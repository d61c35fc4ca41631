//! What an index is made with, and what an opened one is run with.

use std::{fmt, path::PathBuf, str::FromStr, time::Duration};

use crate::{
    error::{Result, ShardexError},
    limits,
};

/// How near two vectors are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Metric {
    /// The angle: vectors are stored normalised. Zero vectors are refused.
    #[default]
    Cosine,
    /// Euclidean distance; the score is the negated square.
    L2,
    /// The dot product, higher is nearer.
    Dot,
}

impl fmt::Display for Metric {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Cosine => "cosine",
            Self::L2 => "l2",
            Self::Dot => "dot",
        })
    }
}

impl FromStr for Metric {
    type Err = ShardexError;

    fn from_str(s: &str) -> Result<Self> {
        match s {
            "cosine" => Ok(Self::Cosine),
            "l2" => Ok(Self::L2),
            "dot" => Ok(Self::Dot),
            _ => Err(ShardexError::Config { field: "metric", reason: format!("`{s}` is none of cosine, l2, dot") }),
        }
    }
}

/// When an accepted write becomes durable without being asked to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Durability {
    /// Each write returns when it is durable.
    Immediate,
    /// A write returns when it is accepted; a timer commits every
    /// [`batch_write_interval_ms`](OpenOptions::batch_write_interval_ms), and tries again by itself if it could not.
    #[default]
    Interval,
    /// Only `commit`, `flush`, `close` and a WAL over its size limit make writes durable.
    Manual,
}

/// How thoroughly to look for contradictions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum CheckLevel {
    /// Counts, sums and pointers in memory against each other: no vector is read.
    #[default]
    Quick,
    /// Every byte on disk read and every derived value computed again.
    Full,
}

/// What a new index is made with. The first block of fields is fixed for the index's life, the
/// [`options`](Self::options) may differ at every open.
///
/// ```
/// use shardex::{Metric, ShardexConfig};
/// let config = ShardexConfig::new("my-index").vector_size(128).metric(Metric::L2);
/// assert_eq!(config.shard_size, 512);
/// ```
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct ShardexConfig {
    /// The index's directory. Its parent must exist.
    pub directory_path: PathBuf,
    /// Numbers per vector: 1 to [`MAX_DIMENSION`](limits::MAX_DIMENSION). Default 384.
    pub vector_size: usize,
    /// How near two vectors are. Default cosine.
    pub metric: Metric,
    /// Most postings in a shard: 2 to [`MAX_SHARD_SIZE`](limits::MAX_SHARD_SIZE). A full one splits; one of
    /// which a quarter is left is merged into its neighbours where these have room. Default 512.
    pub shard_size: usize,
    /// Bytes of bloom filter per shard; 0, the default, means 16 bits a posting.
    pub bloom_filter_size: usize,
    /// Bytes per WAL segment, a multiple of the storage's page size, at least four pages. Default 1 MiB.
    pub wal_segment_size: usize,
    /// What may differ at every open.
    pub options: OpenOptions,
}

/// Options of one opened handle; the format does not fix them.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct OpenOptions {
    /// When writes become durable by themselves. Default `Interval`.
    pub durability: Durability,
    /// Milliseconds between the commits of `Durability::Interval`, at least 1. Default 100.
    pub batch_write_interval_ms: u64,
    /// Milliseconds between automatic flushes while there is something to flush; 0 turns them off.
    /// Default 30,000.
    pub flush_interval_ms: u64,
    /// Bytes of WAL that a recovery would replay, above which a flush starts by itself; 0 turns it off. As much again may
    /// come in while that flush is under way; then writes wait for it. Default 32 MiB.
    pub flush_wal_bytes: u64,
    /// Most bytes the WAL file may take; a write that needs more flushes first. At least 4 segments.
    /// Default 1 GiB.
    pub wal_max_bytes: u64,
    /// Share of the nearest that a search looks for when it names neither slop nor recall, above 0 and at most 1. Default
    /// 0.95.
    pub default_recall: f32,
    /// Entries by which the in-memory index grows at once, at most; at least 1. Default 1,000.
    pub shardex_segment_size: usize,
    /// Check inside each flush. Default `Quick`; `Full` reads the whole index at every flush.
    pub flush_check: CheckLevel,
    /// Writes that may wait for the writer before a further one has to wait to be queued, and as many other calls, at
    /// least 1: what bounds the memory that waiting writes take. Default 64.
    pub queue_size: usize,
    /// Milliseconds for which an accepted write may stay undurable while commits or flushes in the background fail, at
    /// least 1. From then on writes are refused with [`Undurable`](crate::ShardexError::Undurable) until a commit
    /// succeeds, which is tried all the time. Default 60,000.
    pub max_undurable_ms: u64,
    /// Bytes of WAL that accepted writes may take without being durable while commits or flushes in the background fail,
    /// at least 1. One batch may exceed it; from then on writes are refused as above. Default 64 MiB.
    pub max_undurable_bytes: u64,
    /// Whether `close` flushes (default) or only commits, leaving the WAL to the next open.
    pub flush_on_close: bool,
}

impl Default for OpenOptions {
    fn default() -> Self {
        Self {
            durability: Durability::Interval,
            batch_write_interval_ms: 100,
            flush_interval_ms: 30_000,
            flush_wal_bytes: 32 << 20,
            wal_max_bytes: 1 << 30,
            default_recall: 0.95,
            shardex_segment_size: 1_000,
            flush_check: CheckLevel::Quick,
            queue_size: 64,
            max_undurable_ms: 60_000,
            max_undurable_bytes: 64 << 20,
            flush_on_close: true,
        }
    }
}

/// Writes one chained setter per field.
macro_rules! setters {
    ($($field:ident: $type:ty),* $(,)?) => {$(
        #[doc = concat!("Sets `", stringify!($field), "`.")]
        #[must_use]
        pub fn $field(mut self, value: $type) -> Self {
            self.$field = value;
            self
        }
    )*};
}

/// Writes one chained setter per option, on the configuration that holds the options.
macro_rules! option_setters {
    ($($field:ident: $type:ty),* $(,)?) => {$(
        #[doc = concat!("Sets `options.", stringify!($field), "`.")]
        #[must_use]
        pub fn $field(mut self, value: $type) -> Self {
            self.options.$field = value;
            self
        }
    )*};
}

impl ShardexConfig {
    /// The defaults, for an index in `directory_path`.
    #[must_use]
    pub fn new(directory_path: impl Into<PathBuf>) -> Self {
        Self {
            directory_path: directory_path.into(),
            vector_size: 384,
            metric: Metric::Cosine,
            shard_size: 512,
            bloom_filter_size: 0,
            wal_segment_size: 1 << 20,
            options: OpenOptions::default(),
        }
    }

    setters! {
        vector_size: usize,
        metric: Metric,
        shard_size: usize,
        bloom_filter_size: usize,
        wal_segment_size: usize,
        options: OpenOptions,
    }

    option_setters! {
        durability: Durability,
        batch_write_interval_ms: u64,
        flush_interval_ms: u64,
        flush_wal_bytes: u64,
        wal_max_bytes: u64,
        default_recall: f32,
        shardex_segment_size: usize,
        flush_check: CheckLevel,
        queue_size: usize,
        max_undurable_ms: u64,
        max_undurable_bytes: u64,
        flush_on_close: bool,
    }

    /// Bytes of bloom filter per shard, with the default resolved: a multiple of 8.
    #[must_use]
    pub fn bloom_bytes(&self) -> usize {
        let bytes = match self.bloom_filter_size {
            0 => self.shard_size.saturating_mul(2),
            given => given,
        };
        bytes.next_multiple_of(8)
    }

    /// Tells which field is out of range, if one is.
    ///
    /// # Errors
    /// [`ShardexError::Config`] naming the field.
    pub fn validate(&self, page_size: usize) -> Result<()> {
        let refuse = |field, reason: String| Err(ShardexError::Config { field, reason });
        if !(1..=limits::MAX_DIMENSION).contains(&self.vector_size) {
            return refuse("vector_size", format!("{} is not in 1..={}", self.vector_size, limits::MAX_DIMENSION));
        }
        if !(2..=limits::MAX_SHARD_SIZE).contains(&self.shard_size) {
            return refuse("shard_size", format!("{} is not in 2..={}", self.shard_size, limits::MAX_SHARD_SIZE));
        }
        if self.bloom_filter_size > 1 << 24 {
            return refuse("bloom_filter_size", format!("{} bytes is more than 16 MiB", self.bloom_filter_size));
        }
        let segment = self.wal_segment_size;
        if segment < 4 * page_size || !segment.is_multiple_of(page_size) || segment > 1 << 30 {
            return refuse(
                "wal_segment_size",
                format!("{segment} is not a multiple of {page_size} from {} to 1 GiB", 4 * page_size),
            );
        }
        self.options.validate()?;
        if self.options.wal_max_bytes < 4 * segment as u64 {
            return refuse("wal_max_bytes", format!("it must hold four segments, {} bytes", 4 * segment));
        }
        Ok(())
    }
}

impl OpenOptions {
    setters! {
        durability: Durability,
        batch_write_interval_ms: u64,
        flush_interval_ms: u64,
        flush_wal_bytes: u64,
        wal_max_bytes: u64,
        default_recall: f32,
        shardex_segment_size: usize,
        flush_check: CheckLevel,
        queue_size: usize,
        max_undurable_ms: u64,
        max_undurable_bytes: u64,
        flush_on_close: bool,
    }

    /// Time between the commits of `Durability::Interval`.
    #[must_use]
    pub fn commit_interval(&self) -> Duration {
        Duration::from_millis(self.batch_write_interval_ms)
    }

    /// Tells which option is out of range, if one is.
    ///
    /// # Errors
    /// [`ShardexError::Config`] naming the field.
    pub fn validate(&self) -> Result<()> {
        let at_least_one = [
            ("batch_write_interval_ms", self.batch_write_interval_ms),
            ("shardex_segment_size", self.shardex_segment_size as u64),
            ("queue_size", self.queue_size as u64),
            ("max_undurable_ms", self.max_undurable_ms),
            ("max_undurable_bytes", self.max_undurable_bytes),
        ];
        if !(self.default_recall > 0.0 && self.default_recall <= 1.0) {
            let reason = format!("{} is not above 0 and at most 1", self.default_recall);
            return Err(ShardexError::Config { field: "default_recall", reason });
        }
        match at_least_one.into_iter().find(|&(_, value)| value == 0) {
            Some((field, _)) => Err(ShardexError::Config { field, reason: "0 is less than 1".into() }),
            None => Ok(()),
        }
    }
}
