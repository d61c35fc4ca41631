//! Plan of one index: its configuration, its disk, and the options of each open, all drawn from a seed.

use clap::ValueEnum;
use rand::{RngExt as _, SeedableRng as _, rngs::ChaCha8Rng};
use shardex::{CheckLevel, Durability, Metric, OpenOptions, ShardexConfig};

/// Every durability mode.
pub const DURABILITIES: [Durability; 3] = [Durability::Immediate, Durability::Interval, Durability::Manual];

/// Mistake of an ingester, which the checks must find.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Mistake {
    /// It trims the source to `cursor()`, which a crash may undo.
    TrimToCursor,
    /// It sets the cursor in a batch of its own after the changes.
    CursorAfter,
    /// It sets the cursor in a batch of its own before the changes.
    CursorBefore,
    /// It writes the text of an edit in a second batch.
    EditInTwo,
    /// It sets the cursor whatever its value is, so a call that it has abandoned may be carried out twice.
    Unconditional,
}

/// Plan of one index.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    pub(super) durability: Durability,
    pub(super) mistake: Option<Mistake>,
    pub(super) config: ShardexConfig,
    pub(super) page_size: usize,
    pub(super) sector_size: usize,
}

/// Returns the number of power cuts of the index with this seed.
pub(super) fn cuts_of(seed: u64) -> u64 {
    ChaCha8Rng::seed_from_u64(!seed).random_range(20..=50)
}

impl Plan {
    pub(super) fn of(durability: Durability, seed: u64, mistake: Option<Mistake>) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let (page_size, sector_size) = if rng.random_bool(0.1) { (4096, 512) } else { (512, 64) };
        let config = ShardexConfig::new("sim")
            .vector_size([3, 3, 5, 17, 20][rng.random_range(0..5)])
            .metric([Metric::L2, Metric::Dot, Metric::Cosine][rng.random_range(0..3)])
            .shard_size([2, 4, 5, 8][rng.random_range(0..4)])
            .wal_segment_size(4 * page_size);
        Self { durability, mistake, config, page_size, sector_size }
    }

    /// Draws the options of one open.
    pub(super) fn options(&self, rng: &mut ChaCha8Rng) -> OpenOptions {
        OpenOptions::default()
            .durability(self.durability)
            .batch_write_interval_ms(rng.random_range(1..=12))
            .flush_interval_ms(if rng.random_bool(0.5) { rng.random_range(4..=60) } else { 0 })
            .flush_wal_bytes(if rng.random_bool(0.5) { rng.random_range(2..=64) * self.page_size as u64 } else { 0 })
            .wal_max_bytes(1_024 * self.page_size as u64)
            .shardex_segment_size(4)
            .queue_size(if rng.random_bool(0.5) { rng.random_range(1..=4) } else { 64 })
            .flush_on_close(rng.random_bool(0.6))
            .flush_check(if rng.random_bool(0.2) { CheckLevel::Full } else { CheckLevel::Quick })
    }
}
