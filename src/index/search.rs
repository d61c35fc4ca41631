//! One search: choose shards by centroid, scan them, keep the best.

use std::ops::Deref;

use super::{
    snapshot::{CHUNK_SHARDS, Snapshot},
    topk::{Candidate, TopK},
};
use crate::{
    config::Metric,
    distance,
    error::Result,
    format::geometry::{Geometry, POSTING_BYTES},
    posting::{SearchResponse, SearchResult},
    shard::{self, DataFile, Shard, StoredPosting},
    storage::StorageFile,
};

/// Lower is nearer, by the index's metric.
fn distance_by(metric: Metric, a: &[f32], b: &[f32]) -> f32 {
    match metric {
        Metric::L2 => distance::squared_l2(a, b),
        Metric::Dot | Metric::Cosine => -distance::dot(a, b),
    }
}

/// Finds the `k` nearest postings of a snapshot in its `slop` nearest shards; `None` scans them all.
///
/// `query` is checked and, under cosine, normalised. Cost: one distance per shard, and one per posting of the shards
/// scanned; no lock is taken and nothing waited for.
///
/// # Errors
/// `Corruption` if a shard scanned for the first time is damaged on disk.
pub fn search<F: StorageFile>(
    snapshot: &Snapshot<F::Lent>,
    data: &DataFile<F>,
    query: &[f32],
    k: usize,
    slop: Option<usize>,
) -> Result<SearchResponse> {
    let geometry = data.geometry();
    let mut top = TopK::new(k);
    let (mut scanned, mut shards_scanned) = (0, 0);
    let mut visit = |number: u32, shard: &Shard<F::Lent>| -> Result<()> {
        shards_scanned += 1;
        scanned += scan(shard, number, data, query, &mut top)?;
        Ok(())
    };
    match slop {
        Some(slop) if slop < snapshot.shards => {
            for number in nearest_shards(snapshot, geometry, query, slop) {
                if let Some(shard) = shard_of(snapshot, number) {
                    visit(number, shard)?;
                }
            }
        }
        _ => {
            for (number, shard) in snapshot.iter() {
                visit(number, shard)?;
            }
        }
    }
    let results =
        top.into_sorted().iter().map(|candidate| result(snapshot, data, candidate)).collect::<Result<Vec<_>>>()?;
    Ok(SearchResponse { results, scanned, shards_scanned, lsn: snapshot.lsn })
}

fn shard_of<L: Deref<Target = [u8]> + Clone>(snapshot: &Snapshot<L>, number: u32) -> Option<&Shard<L>> {
    let chunk = snapshot.chunks.get(number as usize / CHUNK_SHARDS)?;
    chunk.shards.get(number as usize % CHUNK_SHARDS)?.as_deref()
}

/// The numbers of the `slop` shards to scan, by the metric's distance of their centroids; the lower number among equals.
fn nearest_shards<L: Deref<Target = [u8]> + Clone>(
    snapshot: &Snapshot<L>,
    geometry: &Geometry,
    query: &[f32],
    slop: usize,
) -> Vec<u32> {
    let mut near: Vec<(f32, u32)> = Vec::with_capacity(snapshot.shards);
    let mut distances = [0.0; CHUNK_SHARDS];
    for (chunk, at) in snapshot.chunks.iter().zip(0u32..) {
        let distances = &mut distances[..chunk.shards.len()];
        match geometry.metric {
            Metric::L2 => distance::squared_l2_many(query, &chunk.centroids, distances),
            Metric::Dot | Metric::Cosine => {
                distance::dot_many(query, &chunk.centroids, distances);
                distances.iter_mut().for_each(|d| *d = -*d);
            }
        }
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

/// Offers every live posting of a shard; returns how many distances that took.
fn scan<F: StorageFile>(
    shard: &Shard<F::Lent>,
    number: u32,
    data: &DataFile<F>,
    query: &[f32],
    top: &mut TopK,
) -> Result<usize> {
    let geometry = data.geometry();
    let slots = geometry.extent_slots();
    let mut scanned = 0;
    for (e, extent) in shard.extents().iter().enumerate() {
        let (vectors, records) = (extent.vectors(data)?, extent.postings(data)?);
        for i in 0..extent.used() {
            let slot = e * slots + i;
            if !shard.is_live(slot) {
                continue;
            }
            scanned += 1;
            let distance = distance_by(geometry.metric, query, shard::row(vectors, i, geometry));
            if distance <= top.bound() {
                let posting = StoredPosting::decode(&records[i * POSTING_BYTES..(i + 1) * POSTING_BYTES]);
                top.offer(Candidate {
                    distance,
                    document_id: posting.document_id,
                    start: posting.start,
                    length: posting.length,
                    shard: number,
                    slot: slot as u32,
                });
            }
        }
    }
    Ok(scanned)
}

/// What the caller gets for a candidate.
fn result<F: StorageFile>(
    snapshot: &Snapshot<F::Lent>,
    data: &DataFile<F>,
    candidate: &Candidate,
) -> Result<SearchResult> {
    let geometry = data.geometry();
    let slots = geometry.extent_slots();
    let slot = candidate.slot as usize;
    let Some(shard) = shard_of(snapshot, candidate.shard) else { unreachable!("a candidate comes from a shard") };
    let extent = &shard.extents()[slot / slots];
    let mut vector = shard::row(extent.vectors(data)?, slot % slots, geometry).to_vec();
    if geometry.metric == Metric::Cosine {
        let at = slot % slots * POSTING_BYTES;
        let norm = StoredPosting::decode(&extent.postings(data)?[at..at + POSTING_BYTES]).norm;
        vector.iter_mut().for_each(|x| *x *= norm);
    }
    Ok(SearchResult {
        document_id: candidate.document_id,
        start: candidate.start,
        length: candidate.length,
        vector,
        // 0.0 - distance, so that a distance of 0 gives a score of 0 and not -0.
        similarity_score: 0.0 - candidate.distance,
    })
}
