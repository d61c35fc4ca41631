//! Jobs that run beside the writer: cell builds, codes of unindexed postings, full checks and backups.

use std::sync::Arc;

use super::{
    queue::{JobRequest, Reply},
    running::{RunningCellBuild, RunningJob},
    tasks::Background,
    writer::{Write, Writer},
};
use crate::{
    cells::BuiltCells,
    config::{CheckLevel, Durability},
    engine::{ConsistencyReport, stats::BackgroundWork},
    env::Cancel,
    error::{Result, ShardexError},
    index::NewCodes,
    storage::Storage,
};

impl<S: Storage> Writer<S> {
    /// Starts a job that encodes the unindexed postings without a code, if there are any and no such job runs.
    pub(super) fn begin_coding(&mut self) {
        if self.coding.is_some() || self.closing {
            return;
        }
        let Some(job) = self.engine.encode_begin() else { return };
        match Background::run(&*self.runtime, "codes", move |cancel| job.run_until(cancel)) {
            Ok(job) => self.coding = Some(job),
            // Without these codes searches are slower but correct.
            Err(error) => self.note_failure(BackgroundWork::Cells, &error),
        }
    }

    /// Installs the codes of a finished job, and starts the next one.
    pub(super) fn coded(&mut self, coded: Result<NewCodes>) {
        self.coding = None;
        match coded {
            Ok(coded) => {
                self.engine.install_codes(&coded);
                // New cells may have been installed during the job, so other postings may lack codes.
                self.begin_coding();
            }
            // Any search that reads the damaged bytes returns the error. Until then it scans the vectors without codes.
            Err(error) => self.note_failure(BackgroundWork::Cells, &error),
        }
        self.publish();
    }

    /// Starts a cell build, unless one runs or built cells wait for installation.
    pub(super) fn build_cells(&mut self) {
        if self.cell_build.is_some() || self.cells_wait() {
            return;
        }
        // A caller of `optimize` gets a build of all postings. An automatic build may resume an earlier one.
        let begun = if std::mem::take(&mut self.cells_anew) {
            self.engine.cell_build_anew()
        } else if self.cell_build_waiters.is_empty() {
            self.engine.cell_build_resume()
        } else {
            self.engine.cell_build_begin()
        };
        let observer = Arc::clone(&self.observer);
        let begun = begun.and_then(|job| {
            let run = move |cancel: &dyn Cancel| observer.cell_build(|| job.run_until(cancel));
            Background::run(&*self.runtime, "cells", run)
        });
        let waiters = std::mem::take(&mut self.cell_build_waiters);
        match begun {
            Ok(job) => {
                let held_before = self.engine.held_by_readers();
                self.cell_build = Some(RunningCellBuild { job, waiters, held_before });
            }
            Err(error) => self.cells_taken(&Err(error), waiters),
        }
    }

    /// Cancels a cell build for which much is held that writes have replaced since it began: the bound on space goes first, and
    /// many of its codes would be those of removed postings. Not one that a caller waits for.
    pub(super) fn bound_cell_build(&mut self) {
        let Some(build) = self.cell_build.as_ref().filter(|build| build.waiters.is_empty()) else { return };
        if self.engine.held_by_readers() > build.held_before.saturating_add(self.engine.build_may_hold()) {
            build.job.cancel();
            // The next one begins after many more writes, not at once.
            self.engine.cell_build_failed();
        }
    }

    /// Queues the installation of built cells.
    pub(super) fn cells_built(&mut self, made: Result<Option<BuiltCells>>) {
        let Some(RunningCellBuild { waiters, .. }) = self.cell_build.take() else { return };
        match made {
            Ok(built) => self.queue(Write::Cells(built.map(Box::new), waiters), None),
            Err(error) => self.cells_taken(&Err(error), waiters),
        }
    }

    /// Ends a cell build after its cells were installed or failed, and answers its waiters.
    pub(super) fn cells_taken(&mut self, done: &Result<()>, waiters: Vec<Reply<()>>) {
        match done {
            Ok(()) => {
                self.failures.over(BackgroundWork::Cells);
                self.begin_coding();
            }
            // The build was cancelled, because the index is being closed, or because it held too much.
            Err(ShardexError::Closed) => {}
            Err(error) => {
                // No write depends on cells, so the failure is reported to the waiters and in the statistics only.
                self.note_failure(BackgroundWork::Cells, error);
                self.engine.cell_build_failed();
            }
        }
        let unfinished = self.closing && self.engine.has_unfinished_cells();
        let told = || match done {
            Ok(()) if unfinished => Err(ShardexError::Closed),
            // It held too much. No caller had asked for it, and those that came since wait for its end alone.
            Err(ShardexError::Closed) if !self.closing => Ok(()),
            done => done.clone(),
        };
        waiters.into_iter().for_each(|reply| reply.send(told()));
        if !self.cell_build_waiters.is_empty() {
            self.build_cells();
        }
    }

    /// Runs a quick check at once, or queues a full check beside the writer.
    pub(super) fn check(&mut self, level: CheckLevel, reply: Reply<ConsistencyReport>) {
        if level == CheckLevel::Quick {
            return reply.send(self.engine.check(level));
        }
        self.read_beside(JobRequest::Check(reply));
    }

    /// Queues a full check or a backup.
    pub(super) fn read_beside(&mut self, request: JobRequest) {
        self.read_waiters.push_back(request);
        self.next_read();
    }

    /// Starts the next full check or backup if none runs.
    fn next_read(&mut self) {
        while self.reading.is_none()
            && let Some(request) = self.read_waiters.pop_front()
        {
            self.reading = match request {
                JobRequest::Check(reply) => self.begin_check(reply),
                JobRequest::Backup(backup, reply) => self.begin_backup(backup, reply),
            };
        }
    }

    fn begin_check(&mut self, reply: Reply<ConsistencyReport>) -> Option<RunningJob> {
        // The first part of the check blocks the writer and so the commit timer. Committing now keeps accepted writes
        // from waiting longer.
        if self.engine.has_uncommitted()
            && self.engine.options().durability != Durability::Manual
            && let Err(error) = self.commit()
        {
            self.note_failure(BackgroundWork::Commit, &error);
        }
        match self.engine.check_begin() {
            Ok(job) => RunningJob::start(&*self.runtime, "a check", reply, move |cancel| job.run_until(cancel)),
            Err(error) => {
                reply.send(Err(error));
                None
            }
        }
    }

    /// Ends a full check or a backup: answers its caller and starts the next one.
    pub(super) fn read_ended(&mut self, ended: Result<()>) {
        if let Some(read) = self.reading.take() {
            read.answer(ended);
        }
        self.next_read();
    }
}
