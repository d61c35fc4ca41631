//! Limits and results of a search by cells.

use super::{mask::FilterMask, topk::TopK};
use crate::{
    explain::CellStep,
    format::calibration::{RECALLS, SearchEffort},
    tuning,
};

/// Results that a search is to find.
#[derive(Clone, Copy, Debug)]
pub struct ResultScope<'a> {
    /// Number of results.
    pub k: usize,
    /// Postings that may be results; `None` for all.
    pub mask: Option<&'a FilterMask>,
    /// Largest distance of a result.
    pub farthest: f32,
    /// Whether `k` counts documents. The result of each is its nearest posting.
    pub documents: bool,
    /// Number of postings as near as the results, of the same documents.
    pub passed_over: usize,
    /// Number of postings that seem as near as the results and do not pass; 0 unless they are many more than if those that
    /// pass were drawn at random.
    pub rejected: usize,
}

impl ResultScope<'_> {
    /// Returns the scope of the `k` nearest of all postings.
    #[must_use]
    pub fn nearest(k: usize) -> Self {
        Self { k, mask: None, farthest: f32::INFINITY, documents: false, passed_over: 0, rejected: 0 }
    }

    /// Returns the number of nearest postings, of `live` ones, that contain the results and what is passed over, if those
    /// that pass are drawn at random.
    pub(super) fn among(&self, live: u64) -> usize {
        let (found, passing) = (self.k + self.passed_over, self.mask.map_or(live, |mask| mask.passing).max(1));
        usize::try_from((found as u64).saturating_mul(live).div_ceil(passing)).unwrap_or(usize::MAX)
    }

    /// Returns this number of postings that seem as near as the results and do not pass; 0 if it may be so many where those
    /// that pass are drawn at random.
    pub(super) fn rejected_apart(&self, rejected: usize, live: u64) -> usize {
        let deviation = tuning::FILTERED_APART / (self.k.max(1) as f32).sqrt();
        if self.mask.is_some() && rejected as f32 > self.among(live) as f32 * (1.0 + deviation) { rejected } else { 0 }
    }

    /// Creates an empty set for the results.
    pub(super) fn top(&self) -> TopK {
        if self.documents { TopK::of_documents(self.k, self.farthest) } else { TopK::within(self.k, self.farthest) }
    }
}

/// Limits of a search by cells.
#[derive(Clone, Copy, Debug)]
pub(super) struct SearchLimits {
    pub(super) effort: SearchEffort,
    /// Maximum number of codes scanned.
    pub(super) codes: usize,
    /// Whether unindexed postings are searched too.
    pub(super) unindexed: bool,
    /// Minimum number of standard deviations allowed for when unindexed postings are estimated.
    pub(super) unindexed_deviations: f32,
    /// Shard number and slot of a posting that the search ignores.
    pub(super) except: Option<(u32, usize)>,
    /// The search scans at least this many times as many cells as it takes to the last one that gives a result. 0 for no
    /// such limit.
    pub(super) persistence: f32,
    /// Cost limit, in the unit of [`cost`](CellResults::cost). A search that exceeds it is abandoned. With the cost of
    /// an exhaustive search as the limit, the two searches together cost about twice an exhaustive one at most.
    pub(super) most: f64,
}

impl SearchLimits {
    /// Returns the limits for an effort and a target recall. Only the effort limits the search.
    pub(super) fn of(effort: SearchEffort, recall: f32) -> Self {
        let unindexed_deviations = unindexed_deviations(recall);
        Self {
            effort,
            codes: usize::MAX,
            unindexed: true,
            unindexed_deviations,
            except: None,
            persistence: 0.0,
            most: f64::INFINITY,
        }
    }
}

/// Returns the standard deviations allowed for at a target recall where no calibration has measured them. See
/// [`tuning::UNINDEXED_DEVIATIONS`].
pub(super) fn unindexed_deviations(recall: f32) -> f32 {
    let at = RECALLS.partition_point(|&known| known < recall);
    tuning::UNINDEXED_DEVIATIONS[at.min(RECALLS.len() - 1)]
}

/// Results and statistics of a search by cells.
#[derive(Debug)]
pub(super) struct CellResults {
    pub(super) top: TopK,
    /// Number of codes and vectors scanned.
    pub(super) scanned: usize,
    /// Number of distances computed.
    pub(super) computed: usize,
    /// Cost, in units of one vector read in slot order. A vector fetched on its own costs 4, a candidate resolved to
    /// its slot 1, a code 1/8.
    pub(super) cost: f64,
    /// Number of cells scanned.
    pub(super) cells: usize,
    /// Whether the search stopped at its limit of scanned codes.
    pub(super) cut: bool,
    /// Whether the search was abandoned: it exceeded its cost limit, or an exhaustive search is wanted.
    pub(super) abandoned: bool,
    /// Whether the search ran a second pass with wider limits.
    pub(super) extended: bool,
}

impl CellResults {
    /// Returns the figures of the search, for its explanation.
    pub(super) fn step(&self, limit: &SearchLimits) -> CellStep {
        CellStep {
            cells: self.cells,
            codes: self.scanned,
            distances: self.computed,
            passes: if self.extended { 2 } else { 1 },
            abandoned: self.abandoned,
            margin: limit.effort.margin,
            deviations: limit.effort.deviations,
            persistence: limit.persistence,
        }
    }
}

/// Decision after the first pass of a search by cells.
pub(super) enum Extension {
    /// Keeps the results of the first pass.
    No,
    /// Runs a second pass with these limits. The codes and the cost of the first pass count towards them.
    To(SearchLimits),
    /// Abandons the search in favour of an exhaustive one.
    Everything,
}
