//! Scores of calibration queries: the recall that they reach, its standard error, and the cost.

use super::queries::CalibrationQuery;
use crate::{failpoint::protects, tuning};

/// Score of one calibration query.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct QueryScore {
    /// Whether the query's vector is a stored one.
    pub(super) stored: bool,
    /// Whether the query is in the second of two parts of the queries.
    pub(super) second: bool,
    /// Share of the true nearest postings that the search found.
    pub(super) share: f64,
    /// Cost of the search.
    pub(super) cost: f64,
}

impl QueryScore {
    /// Returns the score of a query before its search: share and cost are 0.
    pub(super) fn of(calibration_query: &CalibrationQuery) -> Self {
        Self { stored: calibration_query.stored, second: calibration_query.second, share: 0.0, cost: 0.0 }
    }
}

/// Score of a set of calibration queries.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct CalibrationScore {
    /// Mean share of the true nearest postings found.
    pub(super) reached: f64,
    /// Standard error of `reached`.
    pub(super) error: f64,
    /// Recall of the part of the queries with the lower recall, and the margin by which it must exceed the required
    /// one.
    part: (f64, f64),
    /// Mean cost per query.
    pub(super) cost: f64,
}

impl CalibrationScore {
    /// Reports whether a target recall is reached.
    ///
    /// The recall of these queries must be at least the target. It must also exceed the target less 0.01 by 3.5
    /// standard errors ([`CALIBRATION_SURE`](tuning::CALIBRATION_SURE)), so that other queries reach the target less
    /// 0.01. The part with the lower recall must exceed the target less 0.01 by 1 or 2 of its own standard errors
    /// ([`CALIBRATION_PART`](tuning::CALIBRATION_PART), [`CALIBRATION_HARDER`](tuning::CALIBRATION_HARDER)), because
    /// other queries may all be like those of one part.
    pub(super) fn reaches(&self, recall: f32) -> bool {
        self.room(recall) >= 1.0
    }

    /// Returns the recall that these queries must reach so that other queries reach the target, and the recall that the
    /// harder part must reach.
    fn wanted(&self, recall: f32) -> (f64, f64) {
        let (errors, less) = tuning::CALIBRATION_SURE;
        let wanted = f64::from(recall);
        (wanted.max(wanted - less + errors * self.error), wanted - less + self.part.1)
    }

    /// Reports whether further queries are unlikely to show that a target recall is reached.
    pub(super) fn is_hopeless(&self, recall: f32) -> bool {
        let (errors, less) = tuning::CALIBRATION_SURE;
        self.reached + errors * self.error < f64::from(recall) - less
    }

    /// Returns the factor by which the share of missed results may grow. It is less than 1 exactly if the target recall
    /// is not reached.
    pub(super) fn room(&self, recall: f32) -> f32 {
        let (wanted, of_part) = self.wanted(recall);
        let room = |reached: f64, wanted: f64| {
            let room = (1.0 - wanted).max(0.0) / (1.0 - reached).max(1e-9);
            // The limits on the factor keep this true in spite of rounding and of shares near 0.
            if reached < wanted { room.min(0.999) } else { room.max(1.0) }
        };
        let (whole, part) = (room(self.reached, wanted), room(self.part.0, of_part));
        (if protects!(Recall, part < whole) { part } else { whole }) as f32
    }

    /// Scores the answers of searches for `k` results. Recall and error are those of all queries, or those of the
    /// stored vectors if their recall is lower. Displaced queries may be harder than real ones, or easier.
    pub(super) fn of(answers: &[QueryScore], k: usize) -> Self {
        let all = Self::mean(answers.iter(), k);
        let stored = || answers.iter().filter(|answer| answer.stored);
        let of_stored = Self::mean(stored(), k);
        let less = if stored().next().is_some() && of_stored.reached < all.reached { of_stored } else { all };
        let parts = [false, true].map(|second| stored().filter(move |answer| answer.second == second));
        let many = parts.into_iter().filter(|part| part.clone().count() >= tuning::CALIBRATION_PART.1);
        let parts = many.map(|part| Self::mean(part, k));
        let least = parts.min_by(|a, b| (a.reached - a.error).total_cmp(&(b.reached - b.error)));
        let part = least.map_or((1.0, 0.0), |part| {
            let harder = all.reached - part.reached > tuning::CALIBRATION_HARDER * part.error;
            let errors =
                if protects!(Recall, harder) { tuning::CALIBRATION_HARDER } else { tuning::CALIBRATION_PART.0 };
            (part.reached, errors * part.error)
        });
        Self { cost: all.cost, part, ..less }
    }

    /// Computes the mean recall, its standard error and the mean cost of some answers.
    fn mean<'a>(answers: impl Iterator<Item = &'a QueryScore> + Clone, k: usize) -> Self {
        let (n, mut score, mut squares) = (answers.clone().count().max(1) as f64, Self::default(), 0.0);
        for &QueryScore { share, cost, .. } in answers {
            score.reached += share / n;
            squares += share * share;
            score.cost += cost / n;
        }
        // A few perfect answers do not show that every answer is perfect. So the error includes one more answer, whose
        // share is low for `k` results.
        let found = 1.0 - 1.0 / (k as f64).sqrt();
        let mean = (n * score.reached + found) / (n + 1.0);
        let variance = (squares + found * found) / (n + 1.0) - mean * mean;
        // The variance of few answers is uncertain. The factor approximates Student's distribution at this confidence.
        score.error = (variance.max(0.0) / (n + 1.0)).sqrt() * (1.0 + 8.0 / n);
        score
    }
}
