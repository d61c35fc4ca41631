//! One search: by cells where there are any, else choose shards by centroid and scan them; keep the best.

use std::{
    ops::Deref,
    sync::{Arc, OnceLock},
};

use super::{
    hits::{Aim, Hits},
    probe::{Further, Probed, Reach, probe_further},
    scan::{nearest_shards, scan},
    snapshot::{Snapshot, shard_of},
    topk::TopK,
    unlike,
};
use crate::{
    cells::{Asked, CellIndex},
    codes::Query,
    env::{Executor, Inline},
    error::Result,
    format::{
        cells::{Effort, RECALLS},
        geometry::Geometry,
    },
    lease::Lease,
    limits,
    posting::Stopped,
    shard::DataFile,
    storage::StorageFile,
};

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
