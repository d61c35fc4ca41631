//! Histogram of durations that many threads record into without a lock.
//!
//! The buckets are those of HdrHistogram (Gil Tene, hdrhistogram.org): each power of two is divided into equal parts, so
//! the relative error is the same for nanoseconds and for minutes. Recording is one atomic addition and one load. The
//! crate `hdrhistogram` was rejected, because its plain histogram needs exclusive access, and its concurrent one a
//! recorder per thread and a merge before each reading. One array for all threads suffices: at a search of 50 µs, sixty
//! threads add about a million times per second, far below what one cache line takes.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use crate::engine::stats::LatencyStats;

/// Parts of each power of two, as a power of two. 2^4 parts: a bucket is at most 1/16 of its lower bound wide, and its
/// middle is at most 1/32 from any value in it.
const PART_BITS: u32 = 4;
const PARTS: usize = 1 << PART_BITS;
/// Buckets for all 64-bit numbers. Those below `PARTS` have one each.
const BUCKETS: usize = (u64::BITS - PART_BITS + 1) as usize * PARTS;

/// Histogram of durations in nanoseconds.
pub struct Histogram {
    buckets: Box<[AtomicU64]>,
    max: AtomicU64,
}

impl Default for Histogram {
    fn default() -> Self {
        Self { buckets: (0..BUCKETS).map(|_| AtomicU64::new(0)).collect(), max: AtomicU64::new(0) }
    }
}

/// Returns the bucket of a number.
fn bucket_of(value: u64) -> usize {
    let power = value.checked_ilog2().unwrap_or(0);
    match power.checked_sub(PART_BITS) {
        // The bits below the highest one number the part.
        Some(shift) => shift as usize * PARTS + (value >> shift) as usize,
        None => value as usize,
    }
}

/// Returns the middle of a bucket, rounded down.
fn middle_of(bucket: usize) -> u64 {
    let shift = (bucket / PARTS).saturating_sub(1);
    let lowest = ((bucket - shift * PARTS) as u64) << shift;
    lowest + ((1u64 << shift) - 1) / 2
}

impl Histogram {
    /// Records a duration. Durations above 584 years count as that.
    pub fn record(&self, time: Duration) {
        let value = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        if value > self.max.load(Ordering::Relaxed) {
            self.max.fetch_max(value, Ordering::Relaxed);
        }
        // `Release`, so that a reading that counts this value sees a maximum of at least it.
        self.buckets[bucket_of(value)].fetch_add(1, Ordering::Release);
    }

    /// Returns number, quantiles and maximum of the recorded durations. A duration that is recorded meanwhile is counted
    /// or not.
    #[must_use]
    pub fn stats(&self) -> LatencyStats {
        let counts: Vec<u64> = self.buckets.iter().map(|count| count.load(Ordering::Acquire)).collect();
        let (count, max) = (counts.iter().sum::<u64>(), self.max.load(Ordering::Relaxed));
        let quantile = |percent: u128| {
            // Number of the wanted value in ascending order, from 1.
            let rank = (u128::from(count) * percent).div_ceil(100) as u64;
            let mut below = 0;
            let bucket = counts.iter().position(|count| {
                below += count;
                below >= rank.max(1)
            });
            Duration::from_nanos(bucket.map_or(0, middle_of).min(max))
        };
        let (p50, p95, p99) = (quantile(50), quantile(95), quantile(99));
        LatencyStats { count, p50, p95, p99, max: Duration::from_nanos(max) }
    }
}

impl std::fmt::Debug for Histogram {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.stats().fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_dense_and_their_middles_near() {
        assert_eq!(bucket_of(u64::MAX), BUCKETS - 1);
        for bucket in 0..BUCKETS {
            assert_eq!(bucket_of(middle_of(bucket)), bucket);
        }
        for value in (0..64).flat_map(|shift| [1u64 << shift, (1 << shift) + 1, (1u64 << shift).wrapping_sub(1)]) {
            let middle = middle_of(bucket_of(value));
            assert!(middle.abs_diff(value) <= value / 32, "{value} is counted as {middle}");
        }
    }
}
