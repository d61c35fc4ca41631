//! Scope of a search, and the limits of a search by cells that follow from it.

use std::ops::Deref;

use super::{
    search_limits::{ResultScope, SearchLimits},
    snapshot::Snapshot,
};
use crate::{
    cells::CellIndex,
    format::calibration::{RECALLS, RESULTS, SearchEffort},
    lease::Lease,
    tuning,
};

/// Scope of a search: every posting, a number of shards, or a target recall.
#[derive(Clone, Copy, Debug)]
pub struct SearchScope {
    /// Whether every posting is searched.
    pub exact: bool,
    /// Maximum number of shards scanned. With cells, maximum number of codes scanned: the average number of codes of
    /// that many covered shards.
    pub slop: Option<usize>,
    /// Target recall: the search stops when this share of the true nearest is likely found.
    pub recall: Option<f32>,
    /// Target recall if neither `slop` nor `recall` is given.
    pub default_recall: f32,
    /// Whether cells are used even where an exhaustive search costs no more. For tests of cells.
    pub by_cells: bool,
}

impl SearchScope {
    /// Returns the scope of an exhaustive search.
    #[must_use]
    pub fn exact() -> Self {
        Self { exact: true, ..Self::slop(usize::MAX) }
    }

    /// Returns the scope of a search of at most `slop` shards.
    #[must_use]
    pub fn slop(slop: usize) -> Self {
        Self { exact: false, slop: Some(slop), recall: None, default_recall: 1.0, by_cells: false }
    }

    /// Returns the target recall; `None` if only a slop limits the search.
    pub(super) fn recall(&self) -> Option<f32> {
        match (self.recall, self.slop) {
            (Some(recall), _) => Some(recall),
            (None, None) => Some(self.default_recall),
            (None, Some(_)) => None,
        }
    }

    /// Computes the limits of a search by cells for results that pass a filter, or for documents; `None` if the search
    /// must be exhaustive.
    pub(super) fn limit_for<L>(
        &self,
        cells: &CellIndex<Lease<L>>,
        snapshot: &Snapshot<L>,
        wanted: ResultScope<'_>,
        part: f32,
    ) -> Option<SearchLimits>
    where
        L: Deref<Target = [u8]> + Clone,
    {
        let ResultScope { k, mask, documents, .. } = wanted;
        if mask.is_none() && !documents {
            return self.limit(cells, snapshot, k, part);
        }
        let passing = mask.map_or(snapshot.live, |mask| mask.passing);
        if passing <= k as u64 {
            return None;
        }
        let among = wanted.among(snapshot.live);
        let mut limit = self.limit(cells, snapshot, among, part)?;
        // If what passes lies together, fewer postings than that contain the results. So the effort is the largest for
        // any number in between.
        let between = RESULTS.map(|results| results as usize).into_iter().filter(|fewer| (k..among).contains(fewer));
        for fewer in between.chain([k]) {
            limit.effort = limit.effort.at_least(&self.limit(cells, snapshot, fewer, part)?.effort);
        }
        if wanted.rejected > 0 {
            // If what passes lies apart, more postings contain the results. An effort for more than the calibration has
            // measured would compare everything, however much passes.
            let most = RESULTS[RESULTS.len() - 1] as usize;
            let nearest = (k + wanted.passed_over + wanted.rejected).min(most);
            let more = self.limit(cells, snapshot, nearest, part).map(|limit| limit.effort);
            if let Some(more) = more.filter(|more| *more != SearchEffort::exhaustive()) {
                limit.effort = limit.effort.at_least(&more);
            }
        }
        // No calibration has measured results that are far from the query, or so many. Far away, distances differ less
        // than estimates err, and no nearer result makes up for it. Of the nearest postings, an effort misses the farthest
        // most often: where what passes lies apart, these are the results.
        limit.persistence = tuning::FILTERED_PERSISTENCE;
        if part < 1.0 {
            limit.effort.deviations = limit.effort.deviations.max(limit.unindexed_deviations);
            limit.effort.impatience = 0.0;
        }
        if part < 1.0 || wanted.rejected > 0 || among > RESULTS[RESULTS.len() - 1] as usize {
            let missed = self.recall().map_or(1.0, |recall| 1.0 - recall);
            let (share, least, most) = tuning::PERSISTENCE;
            limit.persistence = (share / missed).clamp(least, most);
        }
        // A search that costs as much as comparing everything that passes is abandoned for that.
        if limit.codes == usize::MAX && !self.by_cells {
            limit.most = limit.most.min(tuning::PASSING_COST * passing as f64);
        }
        Some(limit)
    }

    /// Computes the limits of a search by cells; `None` if the search must be exhaustive. `part` scales the share of
    /// the true nearest that the search may miss: 1 for ordinary queries, less for out-of-distribution queries.
    fn limit<L>(&self, cells: &CellIndex<Lease<L>>, snapshot: &Snapshot<L>, k: usize, part: f32) -> Option<SearchLimits>
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
                // Postings added or removed since the calibration make its efforts less accurate, to an unknown degree
                // until the recalibration. So the target recall rises with their share.
                let moved = snapshot.moved as f32 / snapshot.live.max(1) as f32;
                let better = |recall: f32, part: f32| {
                    let best = RECALLS[RECALLS.len() - 1];
                    // The raised target does not exceed the largest calibrated recall, unless the caller's own target
                    // does.
                    (1.0 - (1.0 - recall) * part).min(best.max(recall))
                };
                let recall = better(recall, part * (1.0 - (tuning::MOVED.0 * moved).min(tuning::MOVED.1)));
                let mut effort = cells.effort(k, recall);
                if effort == SearchEffort::exhaustive() && codes == usize::MAX && !self.by_cells {
                    return None;
                }
                // A new posting among the results makes the farthest result nearer. The margin counts from there, so
                // fewer shards are within it. So the margin grows with the share of new postings.
                if effort != SearchEffort::exhaustive() {
                    effort.shard_margin += tuning::MOVED_SHARDS * moved * effort.shard_margin.abs();
                }
                // Unindexed postings may lack codes, and codes may be of removed postings. So a search by cells may
                // cost more than an exhaustive one. So its cost is limited to that of an exhaustive search.
                let most = if self.by_cells || codes != usize::MAX { f64::INFINITY } else { snapshot.live as f64 };
                Some(SearchLimits { codes, most, ..SearchLimits::of(effort, recall) })
            }
            None => {
                let (times, least) = tuning::SLOP_CELLS;
                let cells_wanted = (codes as u64 * times * cells.cells() / cells.codes().max(1)).max(least) as u32;
                let SearchEffort { shard_margin, deviations, .. } = cells.effort(k, tuning::SLOP_RECALL);
                let effort =
                    SearchEffort { shard_margin, deviations, cells: cells_wanted, ..SearchEffort::exhaustive() };
                Some(SearchLimits { codes, ..SearchLimits::of(effort, tuning::SLOP_RECALL) })
            }
        }
    }
}
