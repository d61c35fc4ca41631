//! Workloads: named ones, and ones generated from a seed.

mod flipped;
mod operations;
mod reference;
mod reference_batches;
mod runner;

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use rand::{RngExt as _, SeedableRng as _, rngs::ChaCha8Rng};
use shardex::{
    CheckLevel, DocumentId, Metric, OpenOptions, Posting, ShardexConfig, VectorEncoding,
    env::{Cancel, CellPolicy, Clock, Env, Inline, Threads},
};

pub use operations::payload_bytes;

/// Returns the reference workloads. Each is small enough to be explored completely. Together they cover every kind of
/// change that the engine makes to its files.
#[must_use]
pub fn reference() -> Vec<Workload> {
    let mut workloads = reference::postings();
    workloads.extend(reference_batches::batches());
    workloads
}

pub use flipped::flipped;
pub use runner::{Runner, create};

/// Step of a workload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Adds a posting at `start` to each of the documents `first..first + count`.
    Add {
        /// First document.
        first: u64,
        /// Number of documents.
        count: u64,
        /// Start of each posting. A posting of the same document and start is replaced.
        start: u32,
        /// Changes the vectors.
        salt: u64,
    },
    /// Removes documents `first..first + count`.
    Remove {
        /// First document.
        first: u64,
        /// Number of documents.
        count: u64,
    },
    /// Removes the posting at `start` of each of the documents `first..first + count`, one by one in one batch.
    RemovePostings {
        /// First document.
        first: u64,
        /// Number of documents.
        count: u64,
        /// Start of each posting.
        start: u32,
    },
    /// Sets the tags of the posting at start 0 of each of the documents `first..first + count`.
    Tag {
        /// First document.
        first: u64,
        /// Number of documents.
        count: u64,
        /// Tags.
        tags: u64,
    },
    /// Sets the payload of each of the documents `first..first + count`.
    Payload {
        /// First document.
        first: u64,
        /// Number of documents.
        count: u64,
        /// Length of each payload in bytes.
        bytes: u64,
        /// Changes the bytes.
        salt: u64,
    },
    /// Removes the payload of each of the documents `first..first + count`.
    RemovePayloads {
        /// First document.
        first: u64,
        /// Number of documents.
        count: u64,
    },
    /// Edits each of the documents `first..first + count` in one batch: replaces its postings by one with tags, sets its
    /// payload, and sets the cursor.
    Edit {
        /// First document.
        first: u64,
        /// Number of documents.
        count: u64,
        /// Length of each payload in bytes.
        bytes: u64,
        /// Changes vectors, payloads and the cursor.
        salt: u64,
    },
    /// Sets the cursor to `bytes` bytes, if it is what the model expects.
    Cursor {
        /// Length of the cursor in bytes.
        bytes: u64,
        /// Changes the bytes.
        salt: u64,
    },
    /// One batch of `count` operations of all kinds, drawn from a seed.
    Batch {
        /// Number of operations.
        count: u64,
        /// Seed.
        seed: u64,
    },
    /// One batch that changes a few documents, and removes what passes a filter, both drawn from a seed.
    RemoveMatching {
        /// Seed.
        seed: u64,
    },
    /// Commits.
    Commit,
    /// Flushes.
    Flush,
    /// Flushes, and adds documents after each sync before the flush continues.
    SlowFlush {
        /// First document added.
        first: u64,
        /// Number of documents added each time.
        count: u64,
        /// Changes the vectors.
        salt: u64,
    },
    /// Flushes, and adds documents while each sync runs.
    OverlappedFlush {
        /// First document added.
        first: u64,
        /// Number of documents added each time.
        count: u64,
        /// Changes the vectors.
        salt: u64,
    },
    /// Rebuilds the cells.
    Optimize,
    /// Continues the cell build, and cancels it after a number of cancellation checks.
    OptimizeUntil {
        /// Number of checks before the build is cancelled.
        questions: u64,
    },
    /// Closes the index. The next step opens it again.
    Close,
    /// Closes the index and opens it again.
    Reopen,
    /// Opens the index a second time, which must be refused (R12).
    SecondOpen,
    /// Takes a snapshot and the hits of a search. They are kept until their engine is dropped.
    Read,
    /// Gives back the space that an index at rest does not need, except for about `keep` bytes of each file.
    Trim {
        /// Bytes to keep.
        keep: u64,
    },
    /// Rewrites shards without their removed postings, up to about `bytes` bytes.
    Compact {
        /// Bytes of live postings to read.
        bytes: u64,
    },
    /// Erases what was removed. Refused while readers hold it.
    Purge,
    /// Begins a backup, or ends the one under way, checks what it restores, and keeps it as the base of the next one.
    Backup,
}

impl std::fmt::Display for Step {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Add { first, count, start, salt } => {
                write!(f, "add first={first} count={count} start={start} salt={salt}")
            }
            Self::Remove { first, count } => write!(f, "remove first={first} count={count}"),
            Self::RemovePostings { first, count, start } => {
                write!(f, "remove-postings first={first} count={count} start={start}")
            }
            Self::Tag { first, count, tags } => write!(f, "tag first={first} count={count} tags={tags}"),
            Self::Payload { first, count, bytes, salt } => {
                write!(f, "payload first={first} count={count} bytes={bytes} salt={salt}")
            }
            Self::RemovePayloads { first, count } => write!(f, "remove-payloads first={first} count={count}"),
            Self::Edit { first, count, bytes, salt } => {
                write!(f, "edit first={first} count={count} bytes={bytes} salt={salt}")
            }
            Self::Cursor { bytes, salt } => write!(f, "cursor bytes={bytes} salt={salt}"),
            Self::Batch { count, seed } => write!(f, "batch count={count} seed={seed}"),
            Self::RemoveMatching { seed } => write!(f, "remove-matching seed={seed}"),
            Self::Commit => f.write_str("commit"),
            Self::Flush => f.write_str("flush"),
            Self::SlowFlush { first, count, salt } => write!(f, "slow-flush first={first} count={count} salt={salt}"),
            Self::OverlappedFlush { first, count, salt } => {
                write!(f, "overlapped-flush first={first} count={count} salt={salt}")
            }
            Self::Optimize => f.write_str("optimize"),
            Self::OptimizeUntil { questions } => write!(f, "optimize-until questions={questions}"),
            Self::Close => f.write_str("close"),
            Self::Reopen => f.write_str("reopen"),
            Self::SecondOpen => f.write_str("second-open"),
            Self::Read => f.write_str("read"),
            Self::Trim { keep } => write!(f, "trim keep={keep}"),
            Self::Compact { bytes } => write!(f, "compact bytes={bytes}"),
            Self::Purge => f.write_str("purge"),
            Self::Backup => f.write_str("backup"),
        }
    }
}

/// Configuration of an index, and the steps to run on it.
#[derive(Clone, Debug, PartialEq)]
pub struct Workload {
    /// Name of the workload; `seed N` for a generated one.
    pub name: String,
    /// Configuration of the index.
    pub config: ShardexConfig,
    /// Bytes per page of the storage.
    pub page_size: usize,
    /// Bytes per sector of the storage.
    pub sector_size: usize,
    /// Steps, in order.
    pub steps: Vec<Step>,
    /// Older version as whose build the engine creates the index and writes to it until the first close.
    pub from_version: Option<u32>,
    /// Whether the workload is small enough to crash every recovery at each of its operations in every state.
    pub small: bool,
}

/// Cancellation after a fixed number of checks.
#[derive(Debug)]
pub struct Budget(AtomicU64);

impl Budget {
    /// Creates a budget of `questions` checks that return false.
    #[must_use]
    pub fn of(questions: u64) -> Self {
        Self(AtomicU64::new(questions))
    }

    /// Returns the number of checks left.
    pub fn left(&self) -> u64 {
        self.0.load(Ordering::Acquire)
    }
}

impl Cancel for Budget {
    fn is_cancelled(&self) -> bool {
        let asked = self.0.fetch_update(Ordering::AcqRel, Ordering::Acquire, |left| left.checked_sub(1));
        asked.is_err()
    }
}

/// Clock that stands still. The state of an index does not depend on the clock (R14), but its bytes do.
#[derive(Debug)]
pub struct StoppedClock;

impl Clock for StoppedClock {
    fn unix_ms(&self) -> u64 {
        1_700_000_000_000
    }

    fn elapsed(&self) -> std::time::Duration {
        std::time::Duration::ZERO
    }
}

/// Returns the environment of every simulated engine.
#[must_use]
pub fn env() -> Env {
    let (clock, executor, runtime) = (Arc::new(StoppedClock), Arc::new(Inline), Arc::new(Threads::default()));
    Env { clock, new_index_id: 7, executor, runtime, cells: CellPolicy::Always }
}

/// Returns the vector of a document under a salt. Its components are spread over -1 to 1.
#[must_use]
pub fn vector(document: u64, salt: u64, dimension: usize) -> Vec<f32> {
    let mut x = (document.wrapping_mul(1_000_003) ^ salt).wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    (0..dimension)
        .map(|_| {
            x ^= x << 13;
            x ^= x >> 7;
            x ^= x << 17;
            (x >> 40) as f32 / (1 << 23) as f32 - 1.0
        })
        .collect()
}

pub(crate) fn postings(documents: std::ops::Range<u64>, start: u32, salt: u64, dimension: usize) -> Vec<Posting> {
    documents
        .map(|id| Posting {
            document_id: DocumentId(id.into()),
            start,
            length: 1,
            vector: vector(id, salt, dimension),
            tags: 0,
        })
        .collect()
}

/// Parameters of a workload's index.
#[derive(Clone, Copy, Debug)]
pub struct WorkloadParams {
    /// Components per vector.
    pub dimension: usize,
    /// Shard capacity in postings.
    pub shard_size: usize,
    /// Distance metric.
    pub metric: Metric,
}

impl Workload {
    fn new(name: &str, params: WorkloadParams, steps: Vec<Step>) -> Self {
        let WorkloadParams { dimension, shard_size, metric } = params;
        let (page_size, sector_size) = (512, 64);
        let config = ShardexConfig::new("sim")
            .vector_size(dimension)
            .shard_size(shard_size)
            .metric(metric)
            .wal_segment_size(4 * page_size)
            .options(OpenOptions::default().wal_max_bytes(64 << 10));
        Self { name: name.to_owned(), config, page_size, sector_size, steps, from_version: None, small: false }
    }

    /// Creates a workload without steps. Pages and sectors are 512 and 64 bytes, or 4096 and 512 bytes with
    /// `real_pages`.
    #[must_use]
    pub fn blank(name: &str, params: WorkloadParams, real_pages: bool) -> Self {
        let mut workload = Self::new(name, params, Vec::new());
        if real_pages {
            (workload.page_size, workload.sector_size) = (4096, 512);
            workload.config = workload.config.wal_segment_size(16 << 10).wal_max_bytes(256 << 10);
        }
        workload
    }

    /// Generates a workload from a seed. Each seed turns features on or off and chooses sizes (swarm testing; Groce and
    /// others, ISSTA 2012).
    #[must_use]
    pub fn generated(seed: u64) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let dimension = [3, 5, 17, 20][rng.random_range(0..4)];
        let shard_size = [2, 4, 5, 8][rng.random_range(0..4)];
        let metric = [Metric::L2, Metric::Dot, Metric::Cosine][rng.random_range(0..3)];
        let features: [bool; 9] = std::array::from_fn(|_| rng.random_bool(0.7));
        let [removals, replacements, slow, reopens, large, flushes, cells, batches, edits] = features;
        let steps = (0..rng.random_range(6..16))
            .map(|n| match rng.random_range(0..16) {
                0 | 1 if removals => Step::Remove { first: rng.random_range(0..24), count: rng.random_range(1..16) },
                2 | 3 if flushes => Step::Flush,
                2 | 3 => Step::Commit,
                4 if slow => {
                    let (first, count, salt) = (rng.random_range(0..24), rng.random_range(1..5), n);
                    if rng.random() {
                        Step::SlowFlush { first, count, salt }
                    } else {
                        Step::OverlappedFlush { first, count, salt }
                    }
                }
                5 | 6 => Step::Commit,
                8 if cells => Step::Optimize,
                9 if cells => Step::OptimizeUntil { questions: rng.random_range(0..400) },
                12 | 13 if batches => {
                    Step::Batch { count: rng.random_range(1..12), seed: rng.random_range(0..1 << 32) }
                }
                14 if edits => Step::Edit {
                    first: rng.random_range(0..20),
                    count: rng.random_range(1..5),
                    bytes: payload_bytes(&mut rng),
                    salt: n,
                },
                15 if batches => Step::RemoveMatching { seed: rng.random_range(0..1 << 32) },
                7 if reopens => [Step::Close, Step::Reopen][rng.random_range(0..2)].clone(),
                _ => Step::Add {
                    first: if replacements { rng.random_range(0..20) } else { n * 40 },
                    count: rng.random_range(1..if large { 30 } else { 8 }),
                    start: 0,
                    salt: n,
                },
            })
            .chain([Step::Flush])
            .collect();
        let from_version = rng.random_bool(0.15).then(|| rng.random_range(1..=2));
        let real_pages = rng.random_bool(0.1);
        let mut workload =
            Self::blank(&format!("seed {seed}"), WorkloadParams { dimension, shard_size, metric }, real_pages);
        workload.steps = steps;
        workload.from_version = from_version;
        workload.config = configured(workload.config, from_version, &mut rng);
        workload
    }
}

/// Draws options and the encoding of a configuration.
fn configured(mut config: ShardexConfig, from_version: Option<u32>, rng: &mut ChaCha8Rng) -> ShardexConfig {
    if rng.random_bool(0.3) {
        config = config.flush_on_close(false);
    }
    if rng.random_bool(0.1) {
        config = config.flush_check(CheckLevel::Full);
    }
    // Version 1 stores f32.
    if rng.random_bool(0.3) && from_version != Some(1) {
        config = config.encoding([VectorEncoding::F16, VectorEncoding::Int8][rng.random_range(0..2)]);
    }
    config
}
