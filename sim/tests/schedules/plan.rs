//! What a seed chooses, swarm style: each seed turns features on or off and draws its sizes anew.

use rand::{RngExt as _, SeedableRng as _, rngs::ChaCha8Rng};
use shardex::{CheckLevel, Durability, Metric, OpenOptions, ShardexConfig};
use shardex_sim::{CrashKind, Stop};

pub(crate) const PAGE: usize = 256;
pub(crate) const SECTOR: usize = 64;
pub(crate) const DIMENSION: usize = 3;

/// One seed's choices.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) config: ShardexConfig,
    pub(crate) garbage: bool,
    pub(crate) lives: Vec<LifePlan>,
}

/// The choices for one life of the index, from an open to an end.
#[derive(Clone, Debug)]
pub(crate) struct LifePlan {
    pub(crate) options: OpenOptions,
    /// What the actors draw from.
    pub(crate) seed: u64,
    pub(crate) writers: usize,
    pub(crate) readers: usize,
    /// Calls of each writer, at most.
    pub(crate) calls: usize,
    /// Searches of each reader, at most.
    pub(crate) searches: usize,
    pub(crate) bursts: bool,
    pub(crate) cancels: bool,
    /// Whether writers commit and flush.
    pub(crate) commits: bool,
    /// Longest sleep between calls, in milliseconds.
    pub(crate) nap_ms: u64,
    /// The sync that fails, counted from the open.
    pub(crate) failing_sync: Option<u64>,
    /// What keeps stores from succeeding for a while.
    pub(crate) trouble: Option<Trouble>,
    /// The start of a thread that fails, counted from the first one of the life.
    pub(crate) failing_start: Option<u64>,
    /// Turns after which the first open is given up, if it is not done by then.
    pub(crate) abandons: Option<u32>,
    pub(crate) end: End,
}

/// Stores that fail, one after another.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Trouble {
    /// Operations on the open index before it begins.
    pub(crate) after: u64,
    /// Operations that it takes in.
    pub(crate) operations: u64,
    /// Whether it is the room that is missing, not the medium that fails.
    pub(crate) full: bool,
    /// The file that it befalls; all, if none is named.
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

/// How a life ends, when the writers have done all they wanted or, if that is sooner, after so many events.
#[derive(Clone, Copy, Debug)]
pub(crate) enum End {
    /// The process or the machine dies, between two polls of any task.
    Kill { after: u64, crash: CrashKind },
    /// It dies at an operation on the storage.
    Cut { operation: u64, stop: Stop, crash: CrashKind },
    /// `close`, with calls under way if events run out before the writers are done.
    Close { after: u64 },
    /// All handles are dropped, those of calls under way too.
    Drop { after: u64 },
}

impl End {
    /// The crash that it is, if it is one.
    pub(crate) fn crash(self) -> Option<CrashKind> {
        match self {
            Self::Kill { crash, .. } | Self::Cut { crash, .. } => Some(crash),
            Self::Close { .. } | Self::Drop { .. } => None,
        }
    }

    /// The events after which it comes.
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
        // The last life with work in it closes, and one more opens what it left.
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
        // A call is two events, and every operation on the storage one.
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
