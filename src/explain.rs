//! Explanation of a search, for people.

use std::{fmt, time::Duration};

/// How a search ran: which parts it had, what each looked at, how long it took, and why the search stopped. Its `Display`
/// is a text of a few lines. The fields hold the same figures for programs.
///
/// Ask for it by [`SearchOptions::explain`](crate::SearchOptions::explain).
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct SearchPlan {
    /// Number of live postings in the snapshot.
    pub postings: u64,
    /// Target recall, as [`SearchResponse::recall`](crate::SearchResponse::recall) defines it.
    pub recall: Option<f32>,
    /// Evaluation of the filter; `None` without a filter.
    pub filter: Option<FilterStep>,
    /// Search by cells; `None` if there was none: the search was exhaustive at once, or the index has no usable cells.
    pub cells: Option<CellStep>,
    /// Comparison of whole shards; `None` if the cells gave the answer.
    pub shards: Option<ShardStep>,
    /// Reason why the search stopped.
    pub stopped: StopReason,
    /// Whether the query is like the stored vectors, as
    /// [`SearchResponse::calibrated`](crate::SearchResponse::calibrated) defines it.
    pub calibrated: bool,
    /// Time of the search itself, without the evaluation of the filter.
    pub search: Duration,
    /// Time to copy the results and their payloads.
    pub results: Duration,
}

/// Reason why a search stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum StopReason {
    /// The search likely reached the target recall. With only a `slop`: it scanned all cells, which have fewer
    /// codes than `slop` allows.
    Reached,
    /// The search was exhaustive.
    Everything,
    /// The search used up the work that `slop` allows.
    Slop,
}

/// Evaluation of a filter.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct FilterStep {
    /// Text of the filter.
    pub condition: String,
    /// Number of live postings that pass.
    pub passing: u64,
    /// Time of the evaluation. Short if the filter was used on this snapshot before.
    pub time: Duration,
}

/// Search by cells.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct CellStep {
    /// Number of cells scanned.
    pub cells: usize,
    /// Number of codes scanned, and of unindexed vectors.
    pub codes: usize,
    /// Number of distances computed: re-ranked codes and unindexed vectors.
    pub distances: usize,
    /// Number of passes. A second pass follows if the query is unlike the stored vectors, if documents are counted and many
    /// postings of the same ones are near, or if the filter excludes many postings that are near. The searches of several
    /// queries for one answer are added up.
    pub passes: usize,
    /// Whether the search by cells was given up because it cost, or would have cost, as much as comparing everything that
    /// passes.
    pub abandoned: bool,
    /// Margin of the first pass: a cell is scanned if its centroid is at most this much farther than the farthest result,
    /// in units of the query's distance to the centroid (L2) or of its norm.
    pub margin: f32,
    /// Standard deviations of a code's error that the first pass allowed for.
    pub deviations: f32,
    /// The first pass scanned at least this many times as many cells as it took to the last one with a result; 0 for no
    /// such limit.
    pub persistence: f32,
}

impl CellStep {
    /// Returns the figures of the searches for two queries together. The effort is that of the first.
    pub(crate) fn joined(self, other: &Self) -> Self {
        Self {
            cells: self.cells + other.cells,
            codes: self.codes + other.codes,
            distances: self.distances + other.distances,
            passes: self.passes + other.passes,
            abandoned: self.abandoned || other.abandoned,
            ..self
        }
    }
}

/// Comparison of whole shards.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct ShardStep {
    /// Number of shards.
    pub shards: usize,
    /// Number of vectors that were compared by the rounded copies that the filter keeps; 0 if it keeps none. Only where
    /// these left it open was the distance computed.
    pub rounded: usize,
    /// Number of distances computed.
    pub distances: usize,
}

impl fmt::Display for SearchPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} postings", self.postings)?;
        match self.recall {
            Some(recall) => writeln!(f, ", target recall {recall}")?,
            None => writeln!(f, ", limited by a number of shards")?,
        }
        if let Some(FilterStep { condition, passing, time }) = &self.filter {
            writeln!(f, "filter {condition}: {passing} pass, evaluated in {time:.1?}")?;
        }
        if let Some(step) = &self.cells {
            let CellStep { cells, codes, distances, margin, deviations, persistence, .. } = step;
            writeln!(f, "by cells: {cells} cells, {codes} codes, {distances} distances, in {} passes", step.passes)?;
            writeln!(f, "  effort: margin {margin:.3}, {deviations:.2} deviations, persistence {persistence}")?;
            if step.abandoned {
                writeln!(f, "  given up: it cost as much as comparing everything that passes")?;
            }
        }
        if let Some(ShardStep { shards, rounded, distances }) = &self.shards {
            write!(f, "by comparison: {distances} distances in {shards} shards")?;
            match rounded {
                0 => writeln!(f)?,
                rounded => writeln!(f, ", chosen by {rounded} rounded copies")?,
            }
        }
        let reason = match self.stopped {
            StopReason::Reached => "the target recall is likely reached",
            StopReason::Everything => "everything that passes was compared",
            StopReason::Slop => "the given number of shards was used up",
        };
        let unlike = if self.calibrated { "" } else { "; the query is unlike the stored vectors" };
        writeln!(f, "stopped: {reason}{unlike}")?;
        write!(f, "search {:.1?}, results {:.1?}", self.search, self.results)
    }
}
