//! What takes long and runs beside the writer: cells, codes of what is in none, and full checks.

use std::future::pending;

use super::{
    Reply,
    tasks::Background,
    writer::{Write, Writer},
};
use crate::{
    cells::Built,
    config::{CheckLevel, Durability},
    engine::{ConsistencyReport, stats::BackgroundWork},
    error::{Result, ShardexError},
    index::Coded,
    storage::Storage,
};

/// Cells being made.
pub(super) struct Regrouping {
    pub(super) job: Background<Option<Built>>,
    /// Who is answered when they are.
    waiters: Vec<Reply<()>>,
}

/// A full check under way.
pub(super) struct Checking {
    pub(super) job: Background<ConsistencyReport>,
    reply: Reply<ConsistencyReport>,
}

/// The end of a job; never, if there is none.
pub(super) async fn ended<T: Send + 'static>(job: Option<&mut Background<T>>) -> Result<T> {
    match job {
        Some(job) => job.ended().await,
        None => pending().await,
    }
}

impl<S: Storage> Writer<S> {
    /// Begins to make codes of what is in no cell and has none, if nobody does.
    pub(super) fn begin_coding(&mut self) {
        if self.coding.is_some() || self.closing {
            return;
        }
        let Some(job) = self.engine.fresh_begin() else { return };
        match Background::run(&*self.runtime, "codes", move |cancel| job.run_until(cancel)) {
            Ok(job) => self.coding = Some(job),
            // Without them searches are slower, and right.
            Err(error) => self.trouble(BackgroundWork::Cells, &error),
        }
    }

    /// Takes in codes that were made.
    pub(super) fn coded(&mut self, coded: Result<Coded>) {
        self.coding = None;
        match coded {
            Ok(coded) => {
                self.engine.coded(&coded);
                // Other cells may have come meanwhile.
                self.begin_coding();
            }
            // Whoever reads what is damaged is told; until then its vectors are scanned.
            Err(error) => self.trouble(BackgroundWork::Cells, &error),
        }
        self.publish();
    }

    /// Begins to make cells, if nobody does.
    pub(super) fn regroup(&mut self) {
        if self.regrouping.is_some() || self.cells_wait() {
            return;
        }
        // Who asks for cells gets them of everything.
        let begun = match self.regroup_waiters.is_empty() {
            true => self.engine.regroup_go_on(),
            false => self.engine.regroup_begin(),
        };
        let begun = begun.and_then(|job| Background::run(&*self.runtime, "cells", move |cancel| job.run_until(cancel)));
        let waiters = std::mem::take(&mut self.regroup_waiters);
        match begun {
            Ok(job) => self.regrouping = Some(Regrouping { job, waiters }),
            Err(error) => self.cells_taken(&Err(error), waiters),
        }
    }

    /// Has cells that were made taken in.
    pub(super) fn regrouped(&mut self, made: Result<Option<Built>>) {
        let Some(Regrouping { waiters, .. }) = self.regrouping.take() else { return };
        match made {
            Ok(built) => self.queue(Write::Cells(built.map(Box::new), waiters), None),
            Err(error) => self.cells_taken(&Err(error), waiters),
        }
    }

    /// Cells were taken in, or not.
    pub(super) fn cells_taken(&mut self, done: &Result<()>, waiters: Vec<Reply<()>>) {
        match done {
            Ok(()) => {
                self.troubles.over(BackgroundWork::Cells);
                self.begin_coding();
            }
            // Given up, for the index is closed.
            Err(ShardexError::Closed) => {}
            Err(error) => {
                // Nobody's write depends on it, so nobody is refused for it who did not ask.
                self.trouble(BackgroundWork::Cells, error);
                self.engine.regroup_failed();
            }
        }
        let unfinished = self.closing && self.engine.has_unfinished_cells();
        let told = || done.clone().and(if unfinished { Err(ShardexError::Closed) } else { Ok(()) });
        waiters.into_iter().for_each(|reply| drop(reply.send(told())));
        if !self.regroup_waiters.is_empty() {
            self.regroup();
        }
    }

    /// Checks at once, or begins to check beside the writer.
    pub(super) fn check(&mut self, level: CheckLevel, reply: Reply<ConsistencyReport>) {
        if level == CheckLevel::Quick {
            return drop(reply.send(self.engine.check(level)));
        }
        self.check_waiters.push_back(reply);
        self.next_check();
    }

    /// Begins the next full check, if none is under way.
    fn next_check(&mut self) {
        while self.checking.is_none()
            && let Some(reply) = self.check_waiters.pop_front()
        {
            // The part that needs the engine holds the timer up.
            if self.engine.has_uncommitted()
                && self.engine.options().durability != Durability::Manual
                && let Err(error) = self.commit()
            {
                self.trouble(BackgroundWork::Commit, &error);
            }
            let begun = self.engine.check_begin();
            match begun.and_then(|job| Background::run(&*self.runtime, "a check", move |cancel| job.run_until(cancel)))
            {
                Ok(job) => self.checking = Some(Checking { job, reply }),
                Err(error) => drop(reply.send(Err(error))),
            }
        }
    }

    /// A full check has ended.
    pub(super) fn checked(&mut self, checked: Result<ConsistencyReport>) {
        if let Some(Checking { reply, .. }) = self.checking.take() {
            drop(reply.send(checked));
        }
        self.next_check();
    }
}
