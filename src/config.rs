//! Configuration of a new index, and options of an open handle.

use std::{fmt, path::PathBuf, str::FromStr, time::Duration};

use crate::{
    access::FileAccess,
    error::{Result, ShardexError},
    limits,
};

/// Distance metric: the measure of nearness of two vectors.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Metric {
    /// Cosine of the angle between the vectors. Vectors are stored normalised. A norm below 1.2e-38 is refused. In another
    /// [encoding](VectorEncoding) than f32 the score is the product of the normalised query with the rounded vector.
    #[default]
    Cosine,
    /// Euclidean distance. The score is the negated squared distance.
    L2,
    /// Dot product. A higher product is nearer.
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

/// Encoding in which vectors are stored. Input and results are f32 in any case.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum VectorEncoding {
    /// 32-bit floats (IEEE 754 binary32): vectors are stored as given.
    #[default]
    F32,
    /// 16-bit floats (IEEE 754 binary16): half the bytes of the vectors on disk and in the page cache; the WAL holds them as
    /// given. Slots are padded to 64 bytes, so up to 8 dimensions nothing is saved. Each component is rounded to the
    /// nearest of them, ties to even, after the cosine metric has normalised the vector. That is a relative error of up to
    /// 2⁻¹¹, and an absolute one of up to 2⁻²⁵ for components below 2⁻¹⁴. Vectors with a component that would round to
    /// infinity, of magnitude 65,520 or more, are refused.
    ///
    /// Scores, and the recall that a search asks for, refer to the rounded vectors, which results also return. Queries are
    /// not rounded. By cosine the score is the product of the normalised query and the rounded vector, whose norm differs
    /// from 1 by up to 2⁻¹¹.
    F16,
    /// 8-bit integers with a scale per vector: a quarter of the bytes of the vectors. A component is the nearest of −127 to
    /// 127 times the scale, ties to even, after the cosine metric has normalised the vector. The scale is 1/127 of the
    /// component with the largest magnitude, rounded up to 17 significant bits, so that an integer times the scale is an
    /// f32. The absolute error is up to half the scale. Rounding can enlarge the norm: a vector whose rounded norm is over
    /// [`MAX_NORM`](limits::MAX_NORM) is refused.
    ///
    /// Scores, recall and results refer to the rounded vectors, as for [`F16`](Self::F16). By cosine the norm of a rounded
    /// vector differs from 1 by up to half the scale times the root of the dimension.
    Int8,
}

impl VectorEncoding {
    /// Returns the length of a stored vector in bytes, with the scale of [`Int8`](Self::Int8), for up to
    /// [`MAX_DIMENSION`](limits::MAX_DIMENSION) components.
    #[must_use]
    pub fn vector_bytes(self, dimension: usize) -> usize {
        match self {
            Self::F32 => 4 * dimension,
            Self::F16 => 2 * dimension,
            Self::Int8 => dimension.next_multiple_of(4) + 4,
        }
    }
}

impl fmt::Display for VectorEncoding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Int8 => "int8",
        })
    }
}

impl FromStr for VectorEncoding {
    type Err = ShardexError;

    fn from_str(s: &str) -> Result<Self> {
        match s {
            "f32" => Ok(Self::F32),
            "f16" => Ok(Self::F16),
            "int8" => Ok(Self::Int8),
            _ => Err(ShardexError::Config { field: "encoding", reason: format!("`{s}` is none of f32, f16, int8") }),
        }
    }
}

/// Durability mode: when accepted writes become durable.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Durability {
    /// Each write is durable when its call returns.
    Immediate,
    /// A write is accepted when its call returns, and a timer commits every
    /// [`batch_write_interval_ms`](OpenOptions::batch_write_interval_ms). The timer retries a commit that failed.
    #[default]
    Interval,
    /// No timer commits. Writes become durable by `commit`, by a flush and by `close`. Automatic flushes stay on: see
    /// [`flush_interval_ms`](OpenOptions::flush_interval_ms), [`flush_wal_bytes`](OpenOptions::flush_wal_bytes) and
    /// [`wal_max_bytes`](OpenOptions::wal_max_bytes).
    Manual,
}

/// Depth of a consistency check.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum CheckLevel {
    /// Compares counts and LSNs in memory, and checks that sums are finite. Reads no file.
    #[default]
    Quick,
    /// Reads every byte that the index uses on disk and recomputes every derived value. Free pages are not read.
    Full,
}

/// Configuration of a new index.
///
/// All fields but [`options`](Self::options) are fixed for the life of the index. The options may differ at every open.
///
/// ```
/// use shardex::{Metric, ShardexConfig};
/// let config = ShardexConfig::new("my-index").vector_size(128).metric(Metric::L2);
/// assert_eq!(config.shard_size, 512);
/// ```
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct ShardexConfig {
    /// Directory of the index. Its parent must exist.
    pub directory_path: PathBuf,
    /// Dimension: components per vector, 1 to [`MAX_DIMENSION`](limits::MAX_DIMENSION). Default 384.
    pub vector_size: usize,
    /// Distance metric. Default [`Cosine`](Metric::Cosine).
    pub metric: Metric,
    /// Encoding of stored vectors. Default [`F32`](VectorEncoding::F32).
    pub encoding: VectorEncoding,
    /// Shard capacity: largest number of postings in a shard, 2 to [`MAX_SHARD_SIZE`](limits::MAX_SHARD_SIZE). Default
    /// 512.
    ///
    /// A full shard splits. A shard with at most a quarter of this number left, and at least half of its slots removed,
    /// merges into its neighbours if they have room.
    pub shard_size: usize,
    /// Size of each shard's bloom filter in bytes, rounded up to a multiple of 8. 0, the default, means 16 bits per
    /// posting.
    pub bloom_filter_size: usize,
    /// Size of a WAL segment in bytes: a multiple of the storage's page size, at least four pages, at most 1 GiB.
    /// Default 1 MiB.
    pub wal_segment_size: usize,
    /// Who may use the directory and the files that `create` makes. Default [`Owner`](FileAccess::Owner). It is not
    /// stored and not compared: change it by the permissions of the files. Files that are added later get those of the
    /// root file. A directory that exists keeps its own.
    pub file_access: FileAccess,
    /// Options that may differ at every open.
    pub options: OpenOptions,
}

/// Options of one open handle. The file format does not depend on them.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct OpenOptions {
    /// Durability mode: when accepted writes become durable. Default [`Interval`](Durability::Interval).
    pub durability: Durability,
    /// Commit interval: milliseconds between the timer's commits under [`Durability::Interval`], at least 1. Default
    /// 100.
    ///
    /// It is also the first delay before a failed background commit or flush is retried. Each further failure doubles
    /// the delay, up to the longer of 5 seconds and this interval. After `Inconsistent` that is the delay at once.
    pub batch_write_interval_ms: u64,
    /// Flush interval: milliseconds between automatic flushes while there is something to flush. 0 turns them off.
    /// Default 30,000.
    pub flush_interval_ms: u64,
    /// Flush threshold: bytes of WAL that a recovery would replay, above which a flush starts automatically. 0 turns it
    /// off. Default 32 MiB.
    ///
    /// Writes continue during a flush. They wait for its end once the WAL to replay exceeds twice the threshold, or once
    /// the WAL that both retained roots need exceeds three times the threshold. If the threshold is 0, writes wait for a
    /// flush only when the WAL file is full.
    pub flush_wal_bytes: u64,
    /// Size limit of the WAL file in bytes, at least 4 segments of the index. A write that needs more space flushes
    /// first. Default 1 GiB.
    ///
    /// A WAL file that is larger already, because an earlier handle had a higher limit, keeps its size.
    pub wal_max_bytes: u64,
    /// Target recall of searches that give neither `slop` nor `recall`: above 0, at most 1. Default 0.95.
    pub default_recall: f32,
    /// Growth step of the bloom filters in memory: when they need room for more shards, they grow by at most this many
    /// shards at once, rounded up to a multiple of 64; at least 1. Default 1,000.
    pub shardex_segment_size: usize,
    /// Consistency check inside each flush. Default [`Quick`](CheckLevel::Quick). [`Full`](CheckLevel::Full) reads the
    /// whole index at every flush.
    pub flush_check: CheckLevel,
    /// Queue capacity: number of writes in the writer's queue, and separately of other calls, at least 1. Default 64.
    ///
    /// A call waits while its part of the queue is full. This bounds the memory of waiting writes.
    pub queue_size: usize,
    /// Time limit for undurable writes in milliseconds, while background commits or flushes fail; at least 1. Default
    /// 60,000.
    ///
    /// Once an accepted write has been undurable for longer, writes are refused with
    /// [`Undurable`](crate::ShardexError::Undurable) until a commit or flush succeeds. What failed is retried.
    pub max_undurable_ms: u64,
    /// Size limit for undurable writes in bytes of WAL, while background commits or flushes fail; at least 1. Default
    /// 64 MiB.
    ///
    /// Once the undurable writes exceed the limit, further ones are refused with
    /// [`Undurable`](crate::ShardexError::Undurable) until a commit or flush succeeds. The batch that exceeds it is accepted.
    pub max_undurable_bytes: u64,
    /// Rate at which shards are rewritten without their removed postings in the background, in bytes per second. Default
    /// 64 MiB; 0 turns it off, and only [`compact`](crate::Shardex::compact) gives their space back.
    ///
    /// It begins when an eighth of the slots hold removed postings, at once in an index at rest. While writes go on, as many
    /// bytes as [`flush_wal_bytes`](OpenOptions::flush_wal_bytes) may wait. Writes that remove postings faster are slowed
    /// down from a quarter of the slots on.
    pub compaction_bytes_per_second: u64,
    /// Whether `close` flushes. Default `true`. Otherwise `close` only commits, and the next open replays the WAL.
    pub flush_on_close: bool,
    /// Latency from which on a search counts as slow. Default `None`: no search does. A slow search is reported by the
    /// features `tracing` and `metrics` (see [`observe`](crate::observe)). Without both the option has no effect.
    pub slow_search: Option<Duration>,
    /// Whether this handle publishes its figures in the file `stats` of the directory, for `shardex top` and
    /// [`StatsReport`](crate::observe::StatsReport). Default `false`.
    ///
    /// It is written at the open, once per second if a figure has changed, and by `close` or the drop of the last handle.
    /// An error of it is ignored, and tried again. Cost: that of [`stats`](crate::Shardex::stats) once per second, and a
    /// store of one page, on the writer's thread.
    pub stats_file: bool,
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
            compaction_bytes_per_second: 64 << 20,
            flush_on_close: true,
            slow_search: None,
            stats_file: false,
        }
    }
}

/// Generates one chained setter per field.
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

/// Generates one chained setter per option on [`ShardexConfig`], which contains the options.
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

/// Passes the options of an open handle, with their types, to a macro.
macro_rules! with_options {
    ($setters:ident) => {
        $setters! {
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
            compaction_bytes_per_second: u64,
            flush_on_close: bool,
            slow_search: Option<Duration>,
            stats_file: bool,
        }
    };
}

impl ShardexConfig {
    /// Returns the default configuration for an index in `directory_path`.
    #[must_use]
    pub fn new(directory_path: impl Into<PathBuf>) -> Self {
        Self {
            directory_path: directory_path.into(),
            vector_size: 384,
            metric: Metric::Cosine,
            encoding: VectorEncoding::F32,
            shard_size: 512,
            bloom_filter_size: 0,
            wal_segment_size: 1 << 20,
            file_access: FileAccess::default(),
            options: OpenOptions::default(),
        }
    }

    setters! {
        vector_size: usize,
        metric: Metric,
        encoding: VectorEncoding,
        shard_size: usize,
        bloom_filter_size: usize,
        wal_segment_size: usize,
        file_access: FileAccess,
        options: OpenOptions,
    }

    with_options! { option_setters }

    /// Returns the size of each shard's bloom filter in bytes, with the default resolved: a multiple of 8.
    #[must_use]
    pub fn bloom_bytes(&self) -> usize {
        let bytes = match self.bloom_filter_size {
            0 => self.shard_size.saturating_mul(2),
            given => given,
        };
        bytes.next_multiple_of(8)
    }

    /// Checks that every field and option is in range. `page_size` is that of the storage in bytes: 4,096 on a real disk.
    ///
    /// # Errors
    /// Returns [`ShardexError::Config`] with the name of a field that is out of range, or of `page_size`.
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
        if page_size < limits::MIN_PAGE_BYTES {
            return refuse("page_size", format!("{page_size} bytes, {} at least", limits::MIN_PAGE_BYTES));
        }
        let segment = self.wal_segment_size;
        if segment < 4 * page_size || !segment.is_multiple_of(page_size) || segment > 1 << 30 {
            return refuse(
                "wal_segment_size",
                format!("{segment} is not a multiple of {page_size} from {} to 1 GiB", 4 * page_size),
            );
        }
        self.options.validate()?;
        self.options.validate_for_segments(segment as u64)
    }
}

impl OpenOptions {
    with_options! { setters }

    /// Returns the commit interval of [`Durability::Interval`].
    #[must_use]
    pub fn commit_interval(&self) -> Duration {
        Duration::from_millis(self.batch_write_interval_ms)
    }

    /// Checks that every option is in range. An open checks `wal_max_bytes` too, against the segments of its index.
    ///
    /// # Errors
    /// Returns [`ShardexError::Config`] with the name of an option that is out of range.
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

    /// Checks the options that depend on the size of a WAL segment in bytes.
    ///
    /// # Errors
    /// Returns [`ShardexError::Config`] if `wal_max_bytes` is less than four segments.
    pub(crate) fn validate_for_segments(&self, segment: u64) -> Result<()> {
        if self.wal_max_bytes < 4 * segment {
            let reason = format!("{} is less than four segments, {} bytes", self.wal_max_bytes, 4 * segment);
            return Err(ShardexError::Config { field: "wal_max_bytes", reason });
        }
        Ok(())
    }
}
