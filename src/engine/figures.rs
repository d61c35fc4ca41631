//! Running figures of the shards: what statistics say of all of them, without a look at all of them.
//!
//! Invariant: what is known of a shard that did not change since the last look is what a new look would find.

use std::{
    collections::BTreeSet,
    ops::Deref,
    sync::{Mutex, MutexGuard, PoisonError},
};

use super::working::SharedShard;
use crate::{shard::Shard, storage::StorageFile};

/// Figures of all shards.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Totalled {
    /// Shards in use.
    pub shards: usize,
    /// Live postings of the fullest one.
    pub largest: u32,
    /// Farthest that a routing centroid has drifted from the mean of its shard's vectors, as a share of that mean's norm.
    pub drift: f32,
    /// Heap bytes of all shards.
    pub memory: usize,
}

/// What is known of one shard.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Known {
    live: u32,
    drift: f32,
    memory: usize,
}

#[derive(Debug, Default)]
struct Inner {
    known: Vec<Option<Known>>,
    /// Numbers of the shards to be looked at again.
    stale: BTreeSet<u32>,
    by_live: BTreeSet<(u32, u32)>,
    /// By the bits of the drift, which is never negative: they are ordered as it is.
    by_drift: BTreeSet<(u32, u32)>,
    shards: usize,
    memory: usize,
    looks: u64,
}

/// See the [module](self).
#[derive(Debug, Default)]
pub struct Figures(Mutex<Inner>);

impl Figures {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that a shard came, changed or went.
    pub fn note(&mut self, number: u32) {
        self.0.get_mut().unwrap_or_else(PoisonError::into_inner).stale.insert(number);
    }

    /// The figures now. Cost: a look at each shard that changed since the last call.
    pub fn totalled<F: StorageFile>(&self, shards: &[Option<SharedShard<F>>]) -> Totalled {
        let mut inner = self.lock();
        for number in std::mem::take(&mut inner.stale) {
            inner.look(number, shards.get(number as usize).and_then(Option::as_deref));
        }
        Totalled {
            shards: inner.shards,
            largest: inner.by_live.last().map_or(0, |&(live, _)| live),
            drift: inner.by_drift.last().map_or(0.0, |&(bits, _)| f32::from_bits(bits)),
            memory: inner.memory,
        }
    }

    /// Looks at a shard since the open.
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

/// How far a shard's routing centroid has drifted from the mean of its live vectors, as a share of the norm of that mean: a
/// figure from running sums, no vector is read.
fn drift<L: Deref<Target = [u8]> + Clone>(shard: &Shard<L>) -> f32 {
    let Some(mean) = shard.mean() else { return 0.0 };
    let (mut apart, mut norm) = (0.0, 0.0);
    for (mean, &c) in mean.zip(shard.centroid.iter()) {
        apart += (mean - f64::from(c)).powi(2);
        norm += mean * mean;
    }
    let drift = if norm > 0.0 { (apart / norm).sqrt() } else { apart.sqrt() } as f32;
    // Sums that a disk holds may be as large as numbers get.
    if drift.is_nan() { f32::INFINITY } else { drift }
}
