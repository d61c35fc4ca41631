//! Choices of a seed. Each seed turns features on or off and draws its own sizes (swarm testing).

use rand::{RngExt as _, SeedableRng as _, rngs::ChaCha8Rng};
use shardex::{CheckLevel, Durability, Metric, OpenOptions, ShardexConfig};
use shardex_sim::{CrashKind, Stop};

pub(crate) const PAGE: usize = 512;
pub(crate) const SECTOR: usize = 64;
pub(crate) const DIMENSION: usize = 3;

/// Choices of one seed.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) config: ShardexConfig,
    pub(crate) garbage: bool,
    pub(crate) lives: Vec<LifePlan>,
}

/// Choices for one life of the index, from an open to an end.
#[derive(Clone, Debug)]
pub(crate) struct LifePlan {
    pub(crate) options: OpenOptions,
    /// Seed of the writers and readers.
    pub(crate) seed: u64,
    pub(crate) writers: usize,
    pub(crate) readers: usize,
    /// Number of calls after which a writer stops. Its last burst may exceed it.
    pub(crate) calls: usize,
    /// Largest number of searches of each reader.
    pub(crate) searches: usize,
    pub(crate) bursts: bool,
    pub(crate) cancels: bool,
    /// Whether writers commit and flush.
    pub(crate) commits: bool,
    /// Longest sleep between calls, in milliseconds.
    pub(crate) nap_ms: u64,
    /// Number of the sync that fails, counted from 1 at the start of the life, so that syncs of the open count too.
    pub(crate) failing_sync: Option<u64>,
    /// Temporary failure of stores.
    pub(crate) trouble: Option<Trouble>,
    /// Number of the thread start that fails, counted from 1 at the start of the life.
    pub(crate) failing_start: Option<u64>,
    /// Number of turns after which the first open is abandoned if it is not done by then.
    pub(crate) abandons: Option<u32>,
    pub(crate) end: End,
}

/// Period in which all stores fail.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Trouble {
    /// Number of operations on the open index before it begins.
    pub(crate) after: u64,
    /// Length in operations, including those that don't fail.
    pub(crate) operations: u64,
    /// Whether operations fail for lack of space, not because of the medium. Only then allocations fail too.
    pub(crate) full: bool,
    /// File whose operations fail; `None` for all files.
    pub(crate) file: Option<&'static str>,
}

impl Trouble {
    fn drawn(rng: &mut ChaCha8Rng) -> Self {
        Self {
            after: rng.random_range(0..=30),
            operations: rng.random_range(1..=40),
            full: rng.random_bool(0.6),
            file: [None, Some("wal"), Some("data"), Some("root")][rng.random_range(0..4)],
        }
    }
}

/// End of a life. It comes when the writers have finished, or earlier, after a number of events.
#[derive(Clone, Copy, Debug)]
pub(crate) enum End {
    /// The process or the machine dies between two polls of any task.
    Kill { after: u64, crash: CrashKind },
    /// The process or the machine dies at an operation on the storage.
    Cut { operation: u64, stop: Stop, crash: CrashKind },
    /// `close`. Calls are under way if the number of events is reached before the writers have finished.
    Close { after: u64 },
    /// All handles are dropped, including those of calls under way.
    Drop { after: u64 },
}

impl End {
    /// Returns the kind of crash, or `None` if the end is no crash.
    pub(crate) fn crash(self) -> Option<CrashKind> {
        match self {
            Self::Kill { crash, .. } | Self::Cut { crash, .. } => Some(crash),
            Self::Close { .. } | Self::Drop { .. } => None,
        }
    }

    /// Returns the number of events after which the end comes.
    pub(crate) fn after(self) -> u64 {
        match self {
            Self::Kill { after, .. } | Self::Close { after } | Self::Drop { after } => after,
            Self::Cut { .. } => u64::MAX,
        }
    }
}

impl Plan {
    pub(crate) fn of(seed: u64) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let config = ShardexConfig::new("sim")
            .vector_size(DIMENSION)
            .shard_size(rng.random_range(4..=8))
            .metric(Metric::L2)
            .wal_segment_size(4 * PAGE);
        let (writers, readers) = (rng.random_range(1..=4), rng.random_range(1..=3));
        let garbage = rng.random_bool(0.3);
        let count = rng.random_range(3..=6);
        let mut lives: Vec<LifePlan> = (0..count).map(|_| LifePlan::drawn(&mut rng, writers, readers)).collect();
        // The last life with work ends with a close, and one more life opens the index after it.
        let mut last = lives[count - 1].clone();
        (last.failing_sync, last.end) = (None, End::Close { after: u64::MAX });
        let epilogue = LifePlan { writers: 0, readers: 0, trouble: None, ..last.clone() };
        lives[count - 1] = last;
        lives.push(epilogue);
        Self { config, garbage, lives }
    }
}

impl LifePlan {
    fn drawn(rng: &mut ChaCha8Rng, writers: usize, readers: usize) -> Self {
        let durability = [Durability::Immediate, Durability::Interval, Durability::Manual][rng.random_range(0..3)];
        let options = OpenOptions::default()
            .durability(durability)
            .batch_write_interval_ms(rng.random_range(1..=12))
            .flush_interval_ms(if rng.random_bool(0.5) { rng.random_range(4..=30) } else { 0 })
            .flush_wal_bytes(if rng.random_bool(0.5) { rng.random_range(512..=4096) } else { 0 })
            .wal_max_bytes(64 << 10)
            .shardex_segment_size(4)
            .queue_size(if rng.random_bool(0.6) { rng.random_range(1..=8) } else { 64 })
            .flush_on_close(rng.random_bool(0.6))
            .max_undurable_bytes(if rng.random_bool(0.4) { rng.random_range(64..=1024) } else { 64 << 20 })
            .max_undurable_ms(if rng.random_bool(0.4) { rng.random_range(1..=20) } else { 60_000 })
            .flush_check(if rng.random_bool(0.2) { CheckLevel::Full } else { CheckLevel::Quick });
        let (calls, searches) = (rng.random_range(4..=14), rng.random_range(4..=16));
        // A call makes two events, and every operation on the storage makes one.
        let events = (writers * calls * 4 + readers * searches) as u64;
        let after = rng.random_range(1..=events);
        Self {
            options,
            seed: rng.random(),
            writers,
            readers,
            calls,
            searches,
            bursts: rng.random_bool(0.5),
            cancels: rng.random_bool(0.5),
            commits: rng.random_bool(0.6),
            nap_ms: if rng.random_bool(0.7) { rng.random_range(1..=20) } else { 0 },
            failing_sync: rng.random_bool(0.3).then(|| rng.random_range(1..=20)),
            trouble: rng.random_bool(0.35).then(|| Trouble::drawn(rng)),
            failing_start: rng.random_bool(0.15).then(|| rng.random_range(1..=3)),
            abandons: rng.random_bool(0.15).then(|| rng.random_range(0..=2)),
            end: Self::end(rng, after, events),
        }
    }

    fn end(rng: &mut ChaCha8Rng, after: u64, events: u64) -> End {
        let crash = if rng.random_bool(0.6) { CrashKind::Power } else { CrashKind::Process };
        match rng.random_range(0..10) {
            0..=3 => End::Kill { after, crash },
            4..=5 => {
                let stop = [Stop::Before, Stop::Torn, Stop::After][rng.random_range(0..3)];
                End::Cut { operation: rng.random_range(1..=events), stop, crash }
            }
            6..=7 => End::Close { after },
            _ => End::Drop { after },
        }
    }
}
