//! Running figures of the shards: statistics over all shards without visiting each of them.
//!
//! Invariant: the known figures of a shard that is not stale equal those that a new computation would give.

use std::{
    collections::BTreeSet,
    ops::Deref,
    sync::{Mutex, MutexGuard, PoisonError},
};

use crate::{
    shard::{Shard, SharedShard},
    storage::StorageFile,
};

/// Figures over all shards.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct ShardFigures {
    /// Number of shards in use.
    pub shards: usize,
    /// Number of live postings in the fullest shard.
    pub largest: u32,
    /// Largest distance of a shard's routing centroid from the mean of its live vectors, relative to the norm of that
    /// mean.
    pub drift: f32,
    /// Heap size of all shards in bytes.
    pub memory: usize,
}

/// Known figures of one shard.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Known {
    live: u32,
    drift: f32,
    memory: usize,
}

#[derive(Debug, Default)]
struct Inner {
    known: Vec<Option<Known>>,
    /// Numbers of the shards whose figures must be computed again.
    stale: BTreeSet<u32>,
    by_live: BTreeSet<(u32, u32)>,
    /// Ordered by the bits of the drift: the drift is never negative, so its bits have the same order as its values.
    by_drift: BTreeSet<(u32, u32)>,
    shards: usize,
    memory: usize,
    looks: u64,
}

/// Figures of every shard, with running totals and maxima. See the [module](self).
#[derive(Debug, Default)]
pub struct Figures(Mutex<Inner>);

impl Figures {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that a shard was created, changed or dissolved.
    pub fn note(&mut self, number: u32) {
        self.0.get_mut().unwrap_or_else(PoisonError::into_inner).stale.insert(number);
    }

    /// Returns the current figures. Cost: one visit to each shard that changed since the last call.
    pub fn totalled<F: StorageFile>(&self, shards: &[Option<SharedShard<F>>]) -> ShardFigures {
        let mut inner = self.lock();
        for number in std::mem::take(&mut inner.stale) {
            inner.look(number, shards.get(number as usize).and_then(Option::as_deref));
        }
        ShardFigures {
            shards: inner.shards,
            largest: inner.by_live.last().map_or(0, |&(live, _)| live),
            drift: inner.by_drift.last().map_or(0.0, |&(bits, _)| f32::from_bits(bits)),
            memory: inner.memory,
        }
    }

    /// Returns the number of visits to single shards since the open.
    pub fn looks(&self) -> u64 {
        self.lock().looks
    }
}

impl Inner {
    fn look<L: Deref<Target = [u8]> + Clone>(&mut self, number: u32, shard: Option<&Shard<L>>) {
        self.looks += 1;
        let at = number as usize;
        if self.known.len() <= at {
            self.known.resize(at + 1, None);
        }
        let now = shard.map(|shard| Known { live: shard.live() as u32, drift: drift(shard), memory: shard.memory() });
        if let Some(before) = std::mem::replace(&mut self.known[at], now) {
            self.shards -= 1;
            self.memory -= before.memory;
            self.by_live.remove(&(before.live, number));
            self.by_drift.remove(&(before.drift.to_bits(), number));
        }
        if let Some(now) = now {
            self.shards += 1;
            self.memory += now.memory;
            self.by_live.insert((now.live, number));
            self.by_drift.insert((now.drift.to_bits(), number));
        }
    }
}

/// Computes the distance of a shard's routing centroid from the mean of its live vectors, relative to the norm of that
/// mean. The distance is absolute if the norm is 0. Uses the running sums and reads no vector.
fn drift<L: Deref<Target = [u8]> + Clone>(shard: &Shard<L>) -> f32 {
    let Some(mean) = shard.mean() else { return 0.0 };
    let (mut apart, mut norm) = (0.0, 0.0);
    for (mean, &c) in mean.zip(shard.centroid.iter()) {
        apart += (mean - f64::from(c)).powi(2);
        norm += mean * mean;
    }
    let drift = if norm > 0.0 { (apart / norm).sqrt() } else { apart.sqrt() } as f32;
    // Sums read from a disk may be large enough to overflow.
    if drift.is_nan() { f32::INFINITY } else { drift }
}
