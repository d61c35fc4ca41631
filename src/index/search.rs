//! One search: by cells where there are any, else choose shards by centroid and scan them; keep the best.

use std::{
    ops::{Deref, Range},
    sync::{Arc, OnceLock},
};

use super::{
    probe::{Further, Probed, Reach, probe_further},
    snapshot::{CHUNK_SHARDS, Snapshot},
    topk::{Candidate, TopK},
    unlike,
};
use crate::{
    cells::{Asked, CellIndex},
    codes::Query,
    config::Metric,
    distance,
    env::{Executor, Inline},
    error::Result,
    format::{
        cells::{Effort, RECALLS},
        geometry::Geometry,
    },
    id::DocumentId,
    lease::Lease,
    limits,
    posting::{SearchResponse, SearchResult, Stopped},
    shard::{self, DataFile, Extent, Shard},
    storage::{MmapFile, StorageFile},
};

/// Lower is nearer, by the index's metric.
pub(super) fn distance_by(metric: Metric, a: &[f32], b: &[f32]) -> f32 {
    match metric {
        Metric::L2 => distance::squared_l2(a, b),
        Metric::Dot | Metric::Cosine => -distance::dot(a, b),
    }
}

/// The same for many rows.
pub(super) fn distances_by(metric: Metric, query: &[f32], rows: &[f32], out: &mut [f32]) {
    match metric {
        Metric::L2 => distance::squared_l2_many(query, rows, out),
        Metric::Dot | Metric::Cosine => {
            distance::dot_many(query, rows, out);
            out.iter_mut().for_each(|d| *d = -*d);
        }
    }
}

/// The postings that a search found, read in place: nothing is copied until it is asked for, and the places they lie in
/// stay as they are while this lives.
pub struct Hits<F: StorageFile = MmapFile> {
    snapshot: Arc<Snapshot<F::Lent>>,
    data: Arc<DataFile<F>>,
    nearest: Vec<Candidate>,
    scanned: usize,
    computed: usize,
    shards_scanned: usize,
    cells_scanned: usize,
    aim: Aim,
}

/// What a search was to find, and how it ended.
#[derive(Clone, Copy, Debug)]
struct Aim {
    recall: Option<f32>,
    stopped: Stopped,
    calibrated: bool,
}

/// One posting of [`Hits`].
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct Hit<'a> {
    /// The document.
    pub document_id: DocumentId,
    /// Where the part starts.
    pub start: u32,
    /// How long it is.
    pub length: u32,
    /// The vector as it is stored: under the cosine metric divided by `norm`.
    pub vector: &'a [f32],
    /// Under the cosine metric the norm of the vector that was given, else 1.
    pub norm: f32,
    /// Higher is nearer: the cosine, the dot product, or the negated squared Euclidean distance.
    pub similarity_score: f32,
}

impl<F: StorageFile> Hits<F> {
    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.nearest.len()
    }

    /// Whether nothing was found.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.nearest.is_empty()
    }

    /// Postings looked at, by their codes or their vectors; one that has two codes may count twice.
    #[must_use]
    pub fn scanned(&self) -> usize {
        self.scanned
    }

    /// Vectors whose distance was computed.
    #[must_use]
    pub fn computed(&self) -> usize {
        self.computed
    }

    /// The recall that was aimed at, as [`SearchResponse::recall`] has it.
    #[must_use]
    pub fn recall(&self) -> Option<f32> {
        self.aim.recall
    }

    /// Why the search stopped.
    #[must_use]
    pub fn stopped(&self) -> Stopped {
        self.aim.stopped
    }

    /// Whether the query is like what recalls were tried with, as [`SearchResponse::calibrated`] has it.
    #[must_use]
    pub fn calibrated(&self) -> bool {
        self.aim.calibrated
    }

    /// The hits, nearest first; equal scores by (document id, start, length).
    pub fn iter(&self) -> impl ExactSizeIterator<Item = Hit<'_>> {
        self.nearest.iter().map(|candidate| self.hit(candidate))
    }

    fn hit(&self, candidate: &Candidate) -> Hit<'_> {
        let geometry = self.data.geometry();
        let (extent, slot) = place(&self.snapshot, geometry, candidate);
        let (posting, vector) = extent.posting(slot, geometry);
        Hit {
            document_id: candidate.document_id,
            start: candidate.start,
            length: candidate.length,
            vector,
            norm: posting.norm,
            // 0.0 - distance, so that a distance of 0 gives a score of 0 and not -0.
            similarity_score: 0.0 - candidate.distance,
        }
    }

    /// Copies everything out.
    #[must_use]
    pub fn to_response(&self) -> SearchResponse {
        let cosine = self.data.geometry().metric == Metric::Cosine;
        let result = |hit: Hit<'_>| SearchResult {
            document_id: hit.document_id,
            start: hit.start,
            length: hit.length,
            vector: if cosine { hit.vector.iter().map(|x| x * hit.norm).collect() } else { hit.vector.to_vec() },
            similarity_score: hit.similarity_score,
        };
        SearchResponse {
            results: self.iter().map(result).collect(),
            scanned: self.scanned,
            computed: self.computed,
            shards_scanned: self.shards_scanned,
            cells_scanned: self.cells_scanned,
            recall: self.aim.recall,
            stopped: self.aim.stopped,
            calibrated: self.aim.calibrated,
            lsn: self.snapshot.lsn,
        }
    }
}

impl<F: StorageFile> std::fmt::Debug for Hits<F> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

/// Shards that one thread scans at least: fewer are not worth waking another for.
const PART: usize = 64;

/// How far a search is to go.
#[derive(Clone, Copy, Debug)]
pub struct Breadth {
    /// Every posting.
    pub exact: bool,
    /// At most so many shards, or as many postings' codes as they hold.
    pub slop: Option<usize>,
    /// Until so large a share of the nearest is likely found.
    pub recall: Option<f32>,
    /// The recall where neither is given.
    pub default_recall: f32,
    /// By cells also where it costs no less to look at every vector: for tests of cells.
    pub by_cells: bool,
}

impl Breadth {
    /// Every posting.
    #[must_use]
    pub fn exact() -> Self {
        Self { exact: true, ..Self::slop(usize::MAX) }
    }

    /// So many shards.
    #[must_use]
    pub fn slop(slop: usize) -> Self {
        Self { exact: false, slop: Some(slop), recall: None, default_recall: 1.0, by_cells: false }
    }

    /// The recall that is aimed at, if one is.
    fn recall(&self) -> Option<f32> {
        match (self.recall, self.slop) {
            (Some(recall), _) => Some(recall),
            (None, None) => Some(self.default_recall),
            (None, Some(_)) => None,
        }
    }

    /// What it comes to with cells, for a query of which such a part of what others may miss is missed; `None` if everything
    /// is to be scanned.
    fn reach<L>(&self, cells: &CellIndex<Lease<L>>, snapshot: &Snapshot<L>, k: usize, part: f32) -> Option<Reach>
    where
        L: Deref<Target = [u8]> + Clone,
    {
        let all = self.slop.is_some_and(|slop| slop >= snapshot.shards);
        let recall = self.recall();
        if self.exact || ((all || self.slop.is_none()) && recall.is_none_or(|recall| recall >= 1.0)) {
            return None;
        }
        let codes = match self.slop {
            Some(slop) if !all => {
                let shards = cells.table().shards.len().max(1) as u64;
                usize::try_from(cells.codes() * slop as u64 / shards).unwrap_or(usize::MAX).max(1)
            }
            _ => usize::MAX,
        };
        match recall {
            Some(recall) => {
                // What has come and gone since efforts were found wears them down, by how much nobody knows until they are
                // found anew.
                let moved = snapshot.moved as f32 / snapshot.live.max(1) as f32;
                let better = |recall: f32, part: f32| {
                    let best = RECALLS[RECALLS.len() - 1];
                    // What is asked for and can be had is not made more than can be had.
                    (1.0 - (1.0 - recall) * part).min(best.max(recall))
                };
                let recall = better(recall, part * (1.0 - (limits::MOVED.0 * moved).min(limits::MOVED.1)));
                let mut effort = cells.effort(k, recall);
                if effort == Effort::everything() && codes == usize::MAX && !self.by_cells {
                    return None;
                }
                // What came since may be nearer than all that was there, so that its shards seem farther.
                if effort != Effort::everything() {
                    effort.shard_margin += limits::MOVED_SHARDS * moved * effort.shard_margin.abs();
                }
                // What is in no cell may be without codes, and codes may be of postings that are gone.
                let most = if self.by_cells || codes != usize::MAX { f64::INFINITY } else { snapshot.live as f64 };
                Some(Reach { codes, most, ..Reach::of(effort, recall) })
            }
            None => {
                // A third of the groups' codes are within reach of what is to be scanned.
                let cells_wanted = (codes as u64 * 2 * cells.cells() / cells.codes().max(1)).max(64) as u32;
                let Effort { shard_margin, deviations, .. } = cells.effort(k, 0.98);
                let effort = Effort { shard_margin, deviations, cells: cells_wanted, ..Effort::everything() };
                Some(Reach { codes, ..Reach::of(effort, 0.98) })
            }
        }
    }
}

/// Finds the `k` nearest postings of a snapshot. Runs on the calling thread.
///
/// `query` is checked and, under cosine, normalised. No lock is taken and nothing waited for.
///
/// # Errors
/// `Corruption` if vectors read for the first time are damaged on disk.
pub fn search<F: StorageFile>(
    snapshot: &Arc<Snapshot<F::Lent>>,
    data: &Arc<DataFile<F>>,
    query: &[f32],
    k: usize,
    breadth: Breadth,
) -> Result<Hits<F>> {
    search_on(&Inline, snapshot, data, query, k, breadth)
}

/// The same, many shards shared out among the threads of `executor`; the answer does not depend on it.
///
/// # Errors
/// As [`search`]: of several damaged shards, the one that would have been scanned first.
pub fn search_on<F: StorageFile>(
    executor: &dyn Executor,
    snapshot: &Arc<Snapshot<F::Lent>>,
    data: &Arc<DataFile<F>>,
    query: &[f32],
    k: usize,
    breadth: Breadth,
) -> Result<Hits<F>> {
    let hits = |nearest: TopK, scanned, computed, (shards_scanned, cells_scanned), aim| Hits {
        snapshot: Arc::clone(snapshot),
        data: Arc::clone(data),
        nearest: nearest.into_sorted(),
        scanned,
        computed,
        shards_scanned,
        cells_scanned,
        aim,
    };
    let mut slop = match breadth {
        Breadth { exact: true, .. } => usize::MAX,
        Breadth { slop: Some(slop), .. } => slop,
        _ => usize::MAX,
    };
    let mut wasted = (0, 0, 0);
    if let Some(cells) = &snapshot.cells {
        match breadth.reach(cells, snapshot, k, 1.0) {
            // Cells found damaged are done without, until there are new ones.
            Some(reach) if !cells.is_damaged() => match by_cells(snapshot, data, cells, (query, k), (breadth, reach)) {
                Err(_) if cells.is_damaged() => {}
                // Everything costs less. What it has looked at so far is counted.
                Ok((Probed { given_up: true, scanned, computed, cells, .. }, _)) => {
                    (slop, wasted) = (usize::MAX, (scanned, computed, cells));
                }
                probed => {
                    let (Probed { top, scanned, computed, cells, cut, .. }, calibrated) = probed?;
                    let stopped = if cut { Stopped::Slop } else { Stopped::Reached };
                    let aim = Aim { recall: breadth.recall(), stopped, calibrated };
                    return Ok(hits(top, scanned, computed, (0, cells), aim));
                }
            },
            Some(_) => {}
            None => slop = usize::MAX,
        }
    }
    let numbers = match slop < snapshot.shards {
        true => nearest_shards(snapshot, data.geometry(), query, slop),
        false => snapshot.iter().map(|(number, _)| number).collect(),
    };
    let scan_part = |numbers: &[u32]| -> Result<(TopK, usize)> {
        let (mut top, mut scanned) = (TopK::new(k), 0);
        for &number in numbers {
            if let Some(shard) = shard_of(snapshot, number) {
                scanned += scan(shard, number, data, query, &mut top)?;
            }
        }
        Ok((top, scanned))
    };
    let (top, scanned) = if numbers.len() < 2 * PART {
        scan_part(&numbers)?
    } else {
        let parts: Vec<&[u32]> = numbers.chunks(PART).collect();
        let found: Vec<OnceLock<Result<(TopK, usize)>>> = parts.iter().map(|_| OnceLock::new()).collect();
        // Each number is given out once, so each place is set once.
        executor.for_each(parts.len(), &|i| drop(found[i].set(scan_part(parts[i]))));
        let (mut top, mut scanned) = (TopK::new(k), 0);
        for part in found.into_iter().filter_map(OnceLock::into_inner) {
            let (nearest, n) = part?;
            scanned += n;
            nearest.into_sorted().into_iter().for_each(|candidate| top.offer(candidate));
        }
        (top, scanned)
    };
    let aim = match numbers.len() < snapshot.shards {
        true => Aim { recall: breadth.recall(), stopped: Stopped::Slop, calibrated: true },
        false => Aim { recall: Some(1.0), stopped: Stopped::Everything, calibrated: true },
    };
    Ok(hits(top, scanned + wasted.0, scanned + wasted.1, (numbers.len(), wasted.2), aim))
}

/// What is found by cells, and whether the query is like those that recalls were tried with. The search for one that is not goes on
/// farther.
fn by_cells<F: StorageFile>(
    snapshot: &Arc<Snapshot<F::Lent>>,
    data: &DataFile<F>,
    cells: &CellIndex<Lease<F::Lent>>,
    (query, k): (&[f32], usize),
    (breadth, reach): (Breadth, Reach),
) -> Result<(Probed, bool)> {
    let far = cells.calibration().far;
    let is_far = |top: &TopK| match top.nearest() {
        Some(nearest) => unlike::is_far(snapshot, data, query, (nearest, far)),
        None => Ok(false),
    };
    let mut unlike = false;
    let probed = probe_further(snapshot, data, cells, (query, k), reach, |top| {
        unlike = breadth.recall().is_some() && is_far(top)?;
        // As much as may be looked at was not meant to be looked at twice.
        if !unlike || breadth.slop.is_some() {
            return Ok(Further::No);
        }
        Ok(match breadth.reach(cells, snapshot, k, limits::FAR_MISSED) {
            None => Further::Everything,
            // What can be known to be better is not always more.
            Some(wider) if wider.effort == reach.effort => Further::No,
            Some(wider) => Further::To(wider),
        })
    })?;
    if probed.again && !probed.given_up {
        // At first it may have missed what is near.
        unlike = is_far(&probed.top)?;
    }
    Ok((probed, !unlike))
}

/// The queries' numbers, those together that are near the same group of cells: an order to ask them in, whatever they
/// are.
pub fn in_order_of_place<L, Q>(snapshot: &Snapshot<L>, geometry: &Geometry, queries: &[Q]) -> Vec<usize>
where
    L: Deref<Target = [u8]> + Clone,
    Q: AsRef<[f32]>,
{
    let mut order: Vec<usize> = (0..queries.len()).collect();
    if let Some(cells) = &snapshot.cells {
        let (mut query, mut asked) = (Query::default(), Asked::default());
        let place = |vector: &[f32]| {
            // What is refused later may have any place.
            (vector.len() == geometry.dimension).then(|| {
                query.set(vector, cells.frame(), geometry.metric);
                cells.router().nearest_group(&query, &mut asked)
            })
        };
        let places: Vec<Option<usize>> = queries.iter().map(AsRef::as_ref).map(place).collect();
        order.sort_by_key(|&i| places[i]);
    }
    order
}

/// Reads all that searches may read, and checks it, so that no later search is the first to.
///
/// # Errors
/// `Corruption` if vectors are damaged; of several shards, the first one.
pub fn warm<F: StorageFile>(executor: &dyn Executor, snapshot: &Snapshot<F::Lent>, data: &DataFile<F>) -> Result<()> {
    let shards: Vec<_> = snapshot.iter().map(|(_, shard)| shard).collect();
    let done: Vec<OnceLock<Result<()>>> = shards.iter().map(|_| OnceLock::new()).collect();
    executor.for_each(shards.len(), &|i| {
        let read = || shards[i].extents().iter().try_for_each(|extent| extent.slots(data).map(|_| ()));
        drop(done[i].set(read()));
    });
    if let Some(cells) = &snapshot.cells {
        // Damage of these is noted, and done without.
        executor.for_each(cells.len(), &|i| drop(cells.group(i)));
    }
    done.into_iter().filter_map(OnceLock::into_inner).collect()
}

pub(super) fn shard_of<L: Deref<Target = [u8]> + Clone>(snapshot: &Snapshot<L>, number: u32) -> Option<&Shard<L>> {
    let chunk = snapshot.chunks.get(number as usize / CHUNK_SHARDS)?;
    chunk.shards.get(number as usize % CHUNK_SHARDS)?.as_deref()
}

/// The extent that a candidate was found in, and its slot there.
pub(super) fn place<'a, L: Deref<Target = [u8]> + Clone>(
    snapshot: &'a Snapshot<L>,
    geometry: &Geometry,
    found: &Candidate,
) -> (&'a Extent<L>, usize) {
    let (slots, slot) = (geometry.extent_slots(), found.slot as usize);
    let Some(shard) = shard_of(snapshot, found.shard) else { unreachable!("a candidate has a shard") };
    (&shard.extents()[slot / slots], slot % slots)
}

/// The numbers of the `slop` shards to scan, by the metric's distance of their centroids; the lower number among equals.
pub(super) fn nearest_shards<L: Deref<Target = [u8]> + Clone>(
    snapshot: &Snapshot<L>,
    geometry: &Geometry,
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

/// Offers every live posting of a shard; returns how many distances that took.
fn scan<F: StorageFile>(
    shard: &Shard<F::Lent>,
    number: u32,
    data: &DataFile<F>,
    query: &[f32],
    top: &mut TopK,
) -> Result<usize> {
    scan_slots(shard, (number, 0..shard.len()), data, query, top)
}

/// The same of some slots.
pub(super) fn scan_slots<F: StorageFile>(
    shard: &Shard<F::Lent>,
    (number, wanted): (u32, Range<usize>),
    data: &DataFile<F>,
    query: &[f32],
    top: &mut TopK,
) -> Result<usize> {
    if wanted.is_empty() {
        return Ok(0);
    }
    let geometry = data.geometry();
    let slots = geometry.extent_slots();
    let mut scanned = 0;
    let extents = wanted.start / slots..wanted.end.div_ceil(slots);
    for (e, extent) in shard.extents().iter().enumerate().take(extents.end).skip(extents.start) {
        let bytes = extent.slots(data)?;
        for i in wanted.start.saturating_sub(e * slots)..extent.used().min(wanted.end - e * slots) {
            let slot = e * slots + i;
            if !shard.is_live(slot) {
                continue;
            }
            scanned += 1;
            let distance = distance_by(geometry.metric, query, shard::row(bytes, i, geometry));
            if distance <= top.bound() {
                let posting = shard::record(bytes, i, geometry);
                top.offer(Candidate::new(distance, posting, (number, slot)));
            }
        }
    }
    Ok(scanned)
}
