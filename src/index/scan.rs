//! The scan of a shard's vectors.

use std::ops::{Deref, Range};

use super::{
    candidate::Candidate,
    distances::{distance_to, distances_by},
    mask::FilterMask,
    snapshot::{CHUNK_SHARDS, Snapshot},
    topk::TopK,
};
use crate::{
    distance,
    error::Result,
    format::geometry::IndexParams,
    shard::{self, DataFile, Shard},
    storage::StorageFile,
};

/// Returns the numbers of the `slop` shards whose centroids are nearest to `query` by the metric, nearest first. The
/// lower number comes first at equal distance.
pub(super) fn nearest_shards<L: Deref<Target = [u8]> + Clone>(
    snapshot: &Snapshot<L>,
    geometry: &IndexParams,
    query: &[f32],
    slop: usize,
) -> Vec<u32> {
    let mut near: Vec<(f32, u32)> = Vec::with_capacity(snapshot.shards);
    let mut distances = [0.0; CHUNK_SHARDS];
    for (chunk, at) in snapshot.chunks.iter().zip(0u32..) {
        let distances = &mut distances[..chunk.shards.len()];
        distances_by(geometry.metric, query, &chunk.centroids, distances);
        for ((shard, &distance), i) in chunk.shards.iter().zip(&*distances).zip(0u32..) {
            if shard.is_some() {
                near.push((distance, at * CHUNK_SHARDS as u32 + i));
            }
        }
    }
    let by_distance = |a: &(f32, u32), b: &(f32, u32)| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1));
    if slop > 0 && slop < near.len() {
        near.select_nth_unstable_by(slop - 1, by_distance);
    }
    near.truncate(slop);
    near.sort_unstable_by(by_distance);
    near.into_iter().map(|(_, number)| number).collect()
}

/// Offers every live posting of a shard that passes the filter to the top-k. Returns the number of distances computed.
///
/// # Errors
/// Returns `Corruption` if an extent is damaged.
pub(super) fn scan<F: StorageFile>(
    shard: &Shard<F::Lent>,
    number: u32,
    data: &DataFile<F>,
    query: &[f32],
    mask: Option<&FilterMask>,
    top: &mut TopK,
) -> Result<usize> {
    match mask {
        // A shard of which nothing passes is not read.
        Some(mask) if mask.words(number).iter().all(|&word| word == 0) => Ok(0),
        mask => scan_slots(shard, number, 0..shard.len(), data, query, mask, top),
    }
}

/// Offers the live postings of a range of slots that pass the filter to the top-k. Returns the number of distances computed.
///
/// # Errors
/// Returns `Corruption` if an extent is damaged.
pub(super) fn scan_slots<F: StorageFile>(
    shard: &Shard<F::Lent>,
    number: u32,
    wanted: Range<usize>,
    data: &DataFile<F>,
    query: &[f32],
    mask: Option<&FilterMask>,
    top: &mut TopK,
) -> Result<usize> {
    let words = mask.map(|mask| mask.words(number));
    let end = wanted.end.min(shard.len());
    let (mut queue, mut queued, mut scanned) = ([0u32; 2 * WORD], 0, 0);
    for at in wanted.start / WORD..end.div_ceil(WORD) {
        let first = at * WORD;
        let within = u64::MAX << wanted.start.saturating_sub(first) & u64::MAX >> (first + WORD).saturating_sub(end);
        let passing = words.map_or(u64::MAX, |words| words.get(at).copied().unwrap_or(0));
        let mut bits = passing & within & !shard.tombstone_word(at);
        while bits != 0 {
            queue[queued] = first as u32 + bits.trailing_zeros();
            queued += 1;
            bits &= bits - 1;
        }
        if queued > WORD || at + 1 == end.div_ceil(WORD) {
            compare(shard, number, &queue[..queued], data, query, top)?;
            scanned += queued;
            queued = 0;
        }
    }
    Ok(scanned)
}

/// Number of slots per word of a mask or of tombstones.
const WORD: usize = 64;

/// Offers slots of a shard to the top-k. Each vector is prefetched while the ones before it are compared, because those
/// that pass a filter lie apart.
///
/// # Errors
/// Returns `Corruption` if an extent is damaged.
fn compare<F: StorageFile>(
    shard: &Shard<F::Lent>,
    number: u32,
    wanted: &[u32],
    data: &DataFile<F>,
    query: &[f32],
    top: &mut TopK,
) -> Result<()> {
    /// Number of vectors that are prefetched.
    const AHEAD: usize = 4;
    let geometry = data.geometry();
    let slots = geometry.extent_slots;
    let prefetch = |slot: u32| {
        let (extent, i) = (slot as usize / slots, slot as usize % slots);
        distance::prefetch(shard::slot_bytes(shard.extents()[extent].lent(), i, geometry));
    };
    wanted.iter().take(AHEAD).for_each(|&slot| prefetch(slot));
    for (n, &slot) in wanted.iter().enumerate() {
        if let Some(&next) = wanted.get(n + AHEAD) {
            prefetch(next);
        }
        let (slot, i) = (slot as usize, slot as usize % slots);
        let bytes = shard.extents()[slot / slots].slots(data)?;
        let distance = distance_to(geometry.metric, query, shard::row(bytes, i, geometry));
        if distance <= top.bound() {
            top.offer(Candidate::new(distance, shard::record(bytes, i, geometry), number, slot));
        }
    }
    Ok(())
}
