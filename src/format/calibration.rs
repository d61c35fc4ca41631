//! Calibration: the search effort for each recall and number of results, as stored in the table of the cells.

use super::{
    FormatError,
    codec::{Put as _, Reader},
};
use crate::tuning;

/// Recalls for which the table holds a search effort.
pub const RECALLS: [f32; 8] = [0.5, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995];

/// Numbers of results for which the table holds search efforts.
pub const RESULTS: [u32; 6] = [1, 3, 10, 30, 100, 300];

/// Search effort for each of [`RESULTS`] (rows) and each of [`RECALLS`] (columns).
pub type EffortTable = [[SearchEffort; RECALLS.len()]; RESULTS.len()];

/// Indices of the usual number of results in [`RESULTS`] and of the usual recall in [`RECALLS`].
const USUAL: (usize, usize) = (2, 4);
const _: () = assert!(RESULTS[USUAL.0] as usize == tuning::USUAL_RESULTS && RECALLS[USUAL.1] == tuning::USUAL_RECALL);

/// Search effort for a target recall.
///
/// The unit of a margin is the query's distance to the centroid for L2, and the query's norm for cosine and dot. The
/// variation of distances within a cell is proportional to it, so a margin means the same for a query that is far from
/// all vectors.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct SearchEffort {
    /// Margin of cells: a cell is scanned if its centroid is at most this much farther than the farthest result.
    pub margin: f32,
    /// Reduction of the margin per doubling of `1 + q / g`: `q` is the number of cells since the last one that gave a
    /// result, and `g` the usual gap between two such cells.
    pub impatience: f32,
    /// Margin of shards with unindexed postings.
    pub shard_margin: f32,
    /// Number of standard deviations of an estimate's error that the search allows for.
    pub deviations: f32,
    /// Number of cell groups that the router examines at first.
    pub groups: u32,
    /// Number of nearest cells that the router returns at first.
    pub cells: u32,
}

impl SearchEffort {
    /// Returns the effort of an exhaustive search.
    #[must_use]
    pub fn exhaustive() -> Self {
        let far = f32::INFINITY;
        let (margin, shard_margin, deviations) = (far, far, far);
        Self { margin, impatience: 0.0, shard_margin, deviations, groups: u32::MAX, cells: u32::MAX }
    }

    /// Returns the least effort that is at least both efforts in every respect.
    #[must_use]
    pub fn at_least(&self, other: &Self) -> Self {
        Self {
            margin: self.margin.max(other.margin),
            impatience: self.impatience.min(other.impatience),
            shard_margin: self.shard_margin.max(other.shard_margin),
            deviations: self.deviations.max(other.deviations),
            groups: self.groups.max(other.groups),
            cells: self.cells.max(other.cells),
        }
    }
}

/// Calibration of searches by cells, measured with queries whose true nearest neighbours are known.
#[derive(Clone, Debug, PartialEq)]
pub struct Calibration {
    /// Search effort for each of [`RESULTS`] and each of [`RECALLS`]. It is [`SearchEffort::exhaustive`] if it was not
    /// measured, or if no smaller effort suffices.
    pub efforts: EffortTable,
    /// Recall that each effort reached with held-out vectors, which are not those it was determined with. 0 if it was
    /// not measured.
    pub reached: [[f32; RECALLS.len()]; RESULTS.len()],
    /// Thresholds of the out-of-distribution check: few queries are farther from their nearest neighbour than this, in
    /// two measures. Infinite if they were not measured.
    pub far: [f32; 2],
    /// Principal axes of the stored vectors: [`axes_of`] rows of the dimension's length, orthonormal or zeros. Empty if
    /// they were not measured.
    pub axes: Vec<f32>,
    /// Threshold of the third measure of the out-of-distribution check: few queries are farther outside the span of the
    /// axes than this. Infinite if it was not measured.
    pub outside: f32,
    /// Last LSN that the calibration covers.
    pub lsn: u64,
    /// Number of live postings at that LSN.
    pub live: u64,
    /// Number of unindexed slots at that LSN.
    pub unindexed: u64,
}

impl Default for Calibration {
    fn default() -> Self {
        Self {
            efforts: [[SearchEffort::exhaustive(); RECALLS.len()]; RESULTS.len()],
            reached: [[0.0; RECALLS.len()]; RESULTS.len()],
            far: [f32::INFINITY; 2],
            axes: Vec::new(),
            outside: f32::INFINITY,
            lsn: 0,
            live: 0,
            unindexed: 0,
        }
    }
}

impl Calibration {
    /// Returns the length of an encoded calibration in bytes.
    #[must_use]
    pub fn bytes(dimension: usize) -> usize {
        RESULTS.len() * RECALLS.len() * 28 + 3 * 4 + 24 + axes_of(dimension) * dimension * 4
    }

    /// Reports whether the effort for at least one recall was measured.
    #[must_use]
    pub fn is_begun(&self) -> bool {
        self.reached.iter().flatten().any(|&reached| reached > 0.0)
    }

    /// Reports whether all efforts and all out-of-distribution thresholds were measured.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        let asked = self.reached.iter().flatten().all(|&reached| reached > 0.0);
        asked && self.far.iter().chain([&self.outside]).all(|&far| far < f32::INFINITY)
    }

    /// Returns the effort of the usual search: 10 results at a recall of 0.95.
    #[must_use]
    pub fn usual(&self) -> &SearchEffort {
        &self.efforts[USUAL.0][USUAL.1]
    }

    /// Estimates the number of postings that were added, removed, or moved by splits and merges since the calibration:
    /// the larger of the change of the number of indexed postings and that of unindexed slots.
    ///
    /// The arguments are the present numbers of live postings and of unindexed slots. The estimate is usually too low,
    /// because additions and removals cancel out. It may be too high by the slots of removed postings freed since then.
    #[must_use]
    pub fn moved(&self, live: u64, unindexed: u64) -> u64 {
        let settled = |live: u64, unindexed: u64| live.saturating_sub(unindexed);
        let went = settled(live, unindexed).abs_diff(settled(self.live, self.unindexed));
        unindexed.abs_diff(self.unindexed).max(went)
    }

    /// Appends the bytes of the calibration of an index of this dimension.
    pub(super) fn encode(&self, dimension: usize, out: &mut Vec<u8>) {
        for (effort, reached) in self.efforts.iter().flatten().zip(self.reached.iter().flatten()) {
            let SearchEffort { margin, impatience, shard_margin, deviations, groups, cells } = *effort;
            let numbers = [margin, impatience, shard_margin, deviations, *reached];
            numbers.into_iter().for_each(|x| out.put_u32(x.to_bits()));
            out.put_u32(groups);
            out.put_u32(cells);
        }
        self.far.iter().chain([&self.outside]).for_each(|far| out.put_u32(far.to_bits()));
        out.put_u64(self.lsn);
        out.put_u64(self.live);
        out.put_u64(self.unindexed);
        let numbers = axes_of(dimension) * dimension;
        assert!(self.axes.is_empty() || self.axes.len() == numbers, "axes of another dimension");
        (0..numbers).for_each(|i| out.put_u32(self.axes.get(i).map_or(0, |x| x.to_bits())));
    }

    /// Parses the calibration of an index of this dimension.
    ///
    /// # Errors
    /// Returns `FormatError` if a number is NaN, or a component of an axis is not finite.
    pub(super) fn decode(r: &mut Reader<'_>, dimension: usize) -> Result<Self, FormatError> {
        let mut calibration = Self::default();
        let Self { efforts, reached, .. } = &mut calibration;
        for (effort, reached) in efforts.iter_mut().flatten().zip(reached.iter_mut().flatten()) {
            let (margin, impatience, shard_margin) = (number(r)?, number(r)?, number(r)?);
            let (deviations, share) = (number(r)?, number(r)?);
            *effort = SearchEffort { margin, impatience, shard_margin, deviations, groups: r.u32()?, cells: r.u32()? };
            *reached = share;
        }
        calibration.far = [number(r)?, number(r)?];
        calibration.outside = number(r)?;
        calibration.lsn = r.u64()?;
        calibration.live = r.u64()?;
        calibration.unindexed = r.u64()?;
        for _ in 0..axes_of(dimension) * dimension {
            let at = r.at();
            let x = number(r)?;
            if x.abs() > 1.001 {
                return Err(FormatError::new(at, "a component of an axis is larger than 1"));
            }
            calibration.axes.push(x);
        }
        if calibration.axes.iter().all(|&x| x == 0.0) {
            calibration.axes.clear();
        }
        Ok(calibration)
    }
}

/// Returns the number of principal axes that a calibration keeps: a quarter of the dimension, at most
/// [`tuning::PRINCIPAL_AXES`].
#[must_use]
pub fn axes_of(dimension: usize) -> usize {
    (dimension / 4).min(tuning::PRINCIPAL_AXES)
}

/// Reads an `f32`.
///
/// # Errors
/// Returns `FormatError` if the value is NaN.
pub(super) fn number(r: &mut Reader<'_>) -> Result<f32, FormatError> {
    let at = r.at();
    let x = f32::from_bits(r.u32()?);
    if x.is_nan() { Err(FormatError::new(at, "a number is NaN")) } else { Ok(x) }
}
