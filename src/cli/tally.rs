//! Tally of searches with one target recall: the recall they reached, and what it cost.

use shardex::{SearchResponse, StopReason};

/// Statistics of searches with a target recall.
#[derive(Clone, Copy, Debug)]
pub struct Tally {
    /// Number of results per search.
    pub k: usize,
    /// Target recall.
    pub target: f32,
    searches: usize,
    shares: f64,
    flagged: usize,
    missed: usize,
    missed_unflagged: usize,
    scanned: usize,
    computed: usize,
    by_vectors: usize,
}

impl Tally {
    /// Creates statistics without searches.
    pub fn new(k: usize, target: f32) -> Self {
        Self {
            k,
            target,
            searches: 0,
            shares: 0.0,
            flagged: 0,
            missed: 0,
            missed_unflagged: 0,
            scanned: 0,
            computed: 0,
            by_vectors: 0,
        }
    }

    /// Adds one answer, of which `near` results are among the `k` nearest of `rows` rows.
    pub fn add(&mut self, answer: &SearchResponse, near: usize, rows: usize) {
        let share = near.min(self.k) as f64 / self.k.min(rows) as f64;
        let missed = share < f64::from(self.target);
        self.searches += 1;
        self.shares += share;
        self.missed += usize::from(missed);
        self.missed_unflagged += usize::from(missed && answer.calibrated);
        self.flagged += usize::from(!answer.calibrated);
        self.scanned += answer.scanned;
        self.computed += answer.computed;
        self.by_vectors += usize::from(answer.stopped == StopReason::Everything);
    }

    /// Returns the mean recall.
    pub fn recall(&self) -> f64 {
        self.per_search(self.shares)
    }

    /// Returns the share of searches whose query was reported as unlike the calibration queries.
    pub fn flagged(&self) -> f64 {
        self.per_search(self.flagged as f64)
    }

    /// Returns the share of searches that were exhaustive in the end.
    pub fn by_vectors(&self) -> f64 {
        self.per_search(self.by_vectors as f64)
    }

    /// Returns the mean number of codes and vectors scanned per search.
    pub fn scanned(&self) -> f64 {
        self.per_search(self.scanned as f64)
    }

    /// Returns the mean number of distances computed per search.
    pub fn computed(&self) -> f64 {
        self.per_search(self.computed as f64)
    }

    fn per_search(&self, sum: f64) -> f64 {
        sum / self.searches.max(1) as f64
    }

    /// Reports whether the searches keep the promise.
    ///
    /// Ordinary queries: the mean recall is at least the target minus 0.01, and at most 1 % of the searches are
    /// flagged. Other queries: the mean recall is at least the target minus 0.03, or at most 1 % of the searches that
    /// miss the target are not flagged.
    pub fn does(&self, ordinary: bool) -> bool {
        let wanted = f64::from(self.target);
        if ordinary {
            self.recall() >= wanted - 0.01 && self.flagged() <= 0.01
        } else {
            self.recall() >= wanted - 0.03 || self.missed_unflagged * 100 <= self.missed
        }
    }
}
