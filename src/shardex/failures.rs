//! Failures of background work: the error, its age, and the delay before the next retry.

use std::time::Duration;

use crate::{
    engine::stats::{BackgroundError, BackgroundWork},
    error::ShardexError,
};

/// Longest delay before a failed background commit or flush is retried, unless the commit interval is longer.
const RETRY_MOST: Duration = Duration::from_secs(5);

/// Consecutive failures of one kind of background work.
pub(super) struct Failure {
    pub(super) work: BackgroundWork,
    pub(super) error: ShardexError,
    pub(super) began: Duration,
    pub(super) newest: Duration,
    pub(super) failures: u64,
    pub(super) lasts: bool,
}

impl Failure {
    /// Returns the delay before the next retry: `first`, doubled for each further failure, up to [`RETRY_MOST`] or
    /// `first` if that is longer. After `Inconsistent` it is the longest delay at once.
    pub(super) fn delay(&self, first: Duration) -> Duration {
        let doublings = u32::try_from(self.failures.saturating_sub(1)).unwrap_or(u32::MAX).min(16);
        let delay = match &self.error {
            // Only an open can clear a contradiction, so a quick retry is pointless.
            ShardexError::Inconsistent { .. } => RETRY_MOST,
            _ => first.saturating_mul(1 << doublings).min(RETRY_MOST),
        };
        delay.max(first)
    }
}

/// Record of background failures: for each kind of work the newest sequence of consecutive failures.
#[derive(Default)]
pub(super) struct Failures(Vec<Failure>);

impl Failures {
    pub(super) fn add(&mut self, work: BackgroundWork, error: &ShardexError, now: Duration) {
        let error = error.clone();
        match self.0.iter_mut().find(|failure| failure.work == work) {
            Some(known) if known.lasts => {
                (known.error, known.newest) = (error, now);
                known.failures += 1;
            }
            known => {
                let new = Failure { work, error, began: now, newest: now, failures: 1, lasts: true };
                match known {
                    Some(known) => *known = new,
                    None => self.0.push(new),
                }
            }
        }
    }

    /// Notes that this kind of work succeeded, which ends its sequence of failures.
    pub(super) fn over(&mut self, work: BackgroundWork) {
        self.0.iter_mut().filter(|failure| failure.work == work).for_each(|failure| failure.lasts = false);
    }

    pub(super) fn lasting(&self, work: BackgroundWork) -> Option<&Failure> {
        self.0.iter().find(|failure| failure.work == work && failure.lasts)
    }

    /// Returns the newest failure of those that persist, or of all if none persists.
    pub(super) fn newest(&self, now: Duration) -> Option<BackgroundError> {
        let newest = self.0.iter().max_by_key(|failure| (failure.lasts, failure.newest))?;
        Some(BackgroundError {
            work: newest.work,
            error: newest.error.to_string(),
            began: now.saturating_sub(newest.began),
            failures: newest.failures,
            lasts: newest.lasts,
        })
    }
}
