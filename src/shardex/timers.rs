//! What the writer does by the clock: commits, flushes, and trying again what failed.
//!
//! Invariants:
//! 1. An error of background work refuses no call by itself. It is tried again, later each time up to [`RETRY_MOST`], until
//!    it succeeds or a sync has failed.
//! 2. While commits or flushes in the background fail, no more than one batch is accepted beyond what the options let be
//!    undurable.

use std::{future::pending, time::Duration};

use super::writer::Writer;
use crate::{
    config::Durability,
    engine::stats::{BackgroundError, BackgroundWork, IndexStats},
    error::{Result, ShardexError},
    runtime::Runtime,
    storage::Storage,
};

/// The longest that background work which failed waits to be tried again, unless its interval is longer.
const RETRY_MOST: Duration = Duration::from_secs(5);

/// Completes at `due`, a time of the runtime; never, if there is none.
pub(super) fn timer(runtime: &dyn Runtime, due: Option<Duration>) -> impl Future<Output = ()> + use<> {
    let sleep = due.map(|due| runtime.sleep_until(due));
    async move {
        match sleep {
            Some(sleep) => sleep.await,
            None => pending().await,
        }
    }
}

/// Failures of one kind of work that followed one another.
struct Trouble {
    work: BackgroundWork,
    error: ShardexError,
    began: Duration,
    newest: Duration,
    failures: u64,
    lasts: bool,
}

impl Trouble {
    /// How long to wait before the work is tried again.
    fn delay(&self, first: Duration) -> Duration {
        let doublings = u32::try_from(self.failures.saturating_sub(1)).unwrap_or(u32::MAX).min(16);
        let delay = match &self.error {
            // Only an open mends this.
            ShardexError::Inconsistent { .. } => RETRY_MOST,
            _ => first.saturating_mul(1 << doublings).min(RETRY_MOST),
        };
        delay.max(first)
    }
}

/// What went wrong with work that nobody waits for: of each kind the newest failures.
#[derive(Default)]
pub(super) struct Troubles(Vec<Trouble>);

impl Troubles {
    fn add(&mut self, work: BackgroundWork, error: &ShardexError, now: Duration) {
        let error = error.clone();
        match self.0.iter_mut().find(|trouble| trouble.work == work) {
            Some(known) if known.lasts => {
                (known.error, known.newest) = (error, now);
                known.failures += 1;
            }
            known => {
                let new = Trouble { work, error, began: now, newest: now, failures: 1, lasts: true };
                match known {
                    Some(known) => *known = new,
                    None => self.0.push(new),
                }
            }
        }
    }

    /// Work of this kind has succeeded.
    pub(super) fn over(&mut self, work: BackgroundWork) {
        self.0.iter_mut().filter(|trouble| trouble.work == work).for_each(|trouble| trouble.lasts = false);
    }

    fn lasting(&self, work: BackgroundWork) -> Option<&Trouble> {
        self.0.iter().find(|trouble| trouble.work == work && trouble.lasts)
    }

    /// The newest, of those that last if some do.
    fn newest(&self, now: Duration) -> Option<BackgroundError> {
        let newest = self.0.iter().max_by_key(|trouble| (trouble.lasts, trouble.newest))?;
        Some(BackgroundError {
            work: newest.work,
            error: newest.error.to_string(),
            began: now.saturating_sub(newest.began),
            failures: newest.failures,
            lasts: newest.lasts,
        })
    }
}

impl<S: Storage> Writer<S> {
    /// Notes an error of background work.
    pub(super) fn trouble(&mut self, work: BackgroundWork, error: &ShardexError) {
        self.engine.note_error();
        self.troubles.add(work, error, self.runtime.now());
    }

    /// Notes that everything accepted is durable, if it is.
    pub(super) fn note_durable(&mut self) {
        if !self.engine.has_uncommitted() {
            (self.undurable_since, self.commit_at) = (None, None);
            self.troubles.over(BackgroundWork::Commit);
        }
    }

    /// Whether another write may be accepted, though commits or flushes in the background may fail.
    ///
    /// # Errors
    /// `Undurable`.
    pub(super) fn may_accept(&self) -> Result<()> {
        let works = [BackgroundWork::Commit, BackgroundWork::Flush];
        let Some(trouble) = works.into_iter().find_map(|work| self.troubles.lasting(work)) else { return Ok(()) };
        // What a failed sync means the engine says itself.
        if self.engine.is_poisoned() {
            return Ok(());
        }
        let options = self.engine.options();
        let age = self.undurable_since.map_or(Duration::ZERO, |since| self.runtime.now().saturating_sub(since));
        let age = u64::try_from(age.as_millis()).unwrap_or(u64::MAX);
        let limits = [
            ("max_undurable_ms", options.max_undurable_ms, age),
            ("max_undurable_bytes", options.max_undurable_bytes, self.engine.uncommitted_bytes()),
        ];
        match limits.into_iter().find(|&(_, allowed, found)| found > allowed) {
            None => Ok(()),
            Some((limit, allowed, found)) => {
                let cause = Box::new(trouble.error.clone());
                Err(ShardexError::Undurable { limit, allowed, found, cause })
            }
        }
    }

    /// The engine's figures, and those that need a clock.
    pub(super) fn stats(&self) -> Result<IndexStats> {
        let (mut stats, now) = (self.engine.stats()?, self.runtime.now());
        stats.background_error = self.troubles.newest(now);
        stats.uncommitted_for = self.undurable_since.map(|since| now.saturating_sub(since));
        Ok(stats)
    }

    /// Commits and flushes that are due by the clock, and the times of the next ones.
    pub(super) fn background(&mut self) {
        let now = self.runtime.now();
        if self.commit_at.is_some_and(|at| at <= now) {
            self.commit_at = None;
            if let Err(error) = self.commit() {
                self.trouble(BackgroundWork::Commit, &error);
            }
        }
        if self.flush_at.is_some_and(|at| at <= now) {
            self.flush_at = None;
            if self.flushing.is_none() {
                self.begin_flush(true);
            }
        }
        if self.engine.wants_regroup() {
            self.regroup();
        }
        self.publish();
        self.set_timers(now);
    }

    fn set_timers(&mut self, now: Duration) {
        self.note_durable();
        if self.engine.is_poisoned() {
            (self.commit_at, self.flush_at) = (None, None);
            return;
        }
        let options = self.engine.options();
        let interval = options.commit_interval();
        // With `Immediate` only a commit that failed leaves something to be committed.
        if self.commit_at.is_none() && self.engine.has_uncommitted() && options.durability != Durability::Manual {
            let trouble = self.troubles.lasting(BackgroundWork::Commit);
            self.commit_at = Some(now + trouble.map_or(interval, |trouble| trouble.delay(interval)));
        }
        if !self.engine.has_unflushed() {
            self.flush_at = None;
        } else if self.flush_at.is_none() && self.flushing.is_none() {
            let timer = Duration::from_millis(options.flush_interval_ms);
            let delay = match self.troubles.lasting(BackgroundWork::Flush) {
                Some(trouble) => Some(trouble.delay(interval)),
                None => (!timer.is_zero()).then_some(timer),
            };
            self.flush_at = delay.map(|delay| now + delay);
        }
    }
}
