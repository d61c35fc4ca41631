//! Runner of workloads: carries out their steps on an engine.

use super::{Budget, Step, Workload, operations::batch_of, postings};
use crate::{
    filters::Filters,
    model::{Batch, Model},
    monitor::Event,
    mutant::next_turn,
    readers::Readers,
    watch::Watch,
};
use shardex::{
    DocumentId, Engine, Metric, Posting, Result, ShardexConfig, ShardexError, VectorEncoding, env::Env,
    lease::SyncUnderWay, storage::Storage,
};

/// Engine with the model of its accepted batches.
pub struct Runner<S: Storage> {
    config: ShardexConfig,
    env: Env,
    /// Engine; `None` before the first open and while the index is closed.
    pub engine: Option<Engine<S>>,
    /// Model of the batches that the engine accepted and acknowledged.
    pub model: Model,
    /// Number of batches that the last completed flush covers. After a failed sync, searches see at least these.
    pub flushed: usize,
    /// Older version as whose build the engine works, or the next one that is created.
    pub version: Option<u32>,
    /// Readers kept while the workload runs.
    pub readers: Readers<S>,
    /// Filters that are used again after every step.
    pub filters: Filters,
    /// Monitor that receives opens and acknowledgements.
    pub watch: Option<Watch>,
}

/// Creates or opens an index, as a build of an older version if one is given.
///
/// # Errors
/// Returns the errors of [`Engine::create`].
pub fn create<S: Storage>(storage: S, config: &ShardexConfig, env: &Env, version: Option<u32>) -> Result<Engine<S>> {
    match version {
        Some(version) => Engine::create_version(storage, config, env, version),
        None => Engine::create(storage, config, env),
    }
}

impl<S: Storage + Clone> Runner<S> {
    /// Creates a runner without an engine.
    #[must_use]
    pub fn new(workload: &Workload, env: Env) -> Self {
        let readers = Readers::default();
        Self {
            config: workload.config.clone(),
            env,
            engine: None,
            model: Model::of(&workload.config),
            flushed: 0,
            version: workload.from_version,
            readers,
            filters: Filters::default(),
            watch: None,
        }
    }

    /// Creates or opens the index, unless it is open.
    ///
    /// # Errors
    /// Returns the errors of [`Engine::create`].
    pub fn open(&mut self, storage: &S) -> Result<&mut Engine<S>> {
        let engine = match self.engine.take() {
            Some(engine) => engine,
            None => {
                let engine = create(storage.clone(), &self.config, &self.env, self.version)?;
                self.tell(&Event::Opened);
                engine
            }
        };
        Ok(self.engine.insert(engine))
    }

    /// Drops the engine and checks the readers that outlive it.
    ///
    /// # Errors
    /// Returns `Inconsistent` if an open beside the readers is not refused, or a reader reads different results.
    pub fn drop_engine(&mut self, storage: &S) -> Result<()> {
        self.engine = None;
        self.readers.outlive_engine(storage, &self.config.options, &self.env)
    }

    fn tell(&self, event: &Event<'_>) {
        if let Some(watch) = &self.watch {
            watch.see(event);
        }
    }

    /// Carries out one step.
    ///
    /// # Errors
    /// Returns the errors of the engine. Returns `Inconsistent` if a reader reads different results, or a search by a
    /// filter finds anything else than what passes.
    pub fn step(&mut self, storage: &S, step: &Step) -> Result<()> {
        self.step_alone(storage, step)?;
        self.readers.check()?;
        match self.check_filters() {
            // The judge of the case sees damage, too, when it compares the whole content.
            Err(ShardexError::Corruption { .. }) => Ok(()),
            checked => checked,
        }
    }

    /// Uses the filters on the current snapshot, then on those of the readers.
    fn check_filters(&self) -> Result<()> {
        let Some(engine) = &self.engine else { return Ok(()) };
        self.filters.check::<S>(&engine.snapshot(), engine.data())?;
        self.readers.check_filters(&self.filters)
    }

    /// Flushes and adds documents after each sync, or while each sync runs if `overlaps` is set.
    fn flush_with_writes(&mut self, first: u64, count: u64, salt: u64, overlaps: bool) -> Result<()> {
        let dimension = self.config.vector_size;
        let Some(engine) = &mut self.engine else { unreachable!("it was opened") };
        let mut between = 0;
        let mut refused = None;
        let mut flush = engine.flush_begin(false)?;
        let stats = loop {
            let job = match flush.into_sync() {
                Ok(job) => job,
                Err(stats) => break stats,
            };
            let begun = overlaps.then(|| job.begin());
            let synced = if overlaps { Ok(()) } else { job.run() };
            let from = first + between * count;
            let batch = postings(from..from + count, 0, salt + between, dimension);
            self.model.attempt(|| Batch::Add(batch.clone()));
            match engine.add(&batch) {
                Ok(lsn) => self.model.accept_at(Batch::Add(batch), lsn),
                // The WAL is full, and only the end of this flush frees space.
                Err(ShardexError::FlushInProgress) => {}
                // The flush still waits for the result of its sync, so the error is returned after it.
                Err(error) => refused = Some(error),
            }
            between += 1;
            let synced = begun.map_or(synced, |begun| begun.and_then(SyncUnderWay::end));
            flush = engine.flush_synced(synced)?;
        };
        // The flush may have begun earlier, so it may not cover every accepted batch.
        self.flushed = self.flushed.max(self.model.acknowledge_up_to(stats.checkpoint_lsn));
        self.tell(&Event::Acknowledge { lsn: stats.checkpoint_lsn.0 });
        refused.map_or(Ok(()), Err)
    }

    /// Closes the index.
    fn close(&mut self, storage: &S) -> Result<()> {
        let Some(engine) = &mut self.engine else { unreachable!("it was opened") };
        engine.close()?;
        self.version = None;
        self.acknowledge();
        if self.config.options.flush_on_close {
            self.flushed = self.model.accepted();
        }
        self.drop_engine(storage)
    }

    /// Notes that everything accepted is acknowledged.
    fn acknowledge(&mut self) {
        self.model.acknowledge();
        self.tell(&Event::Acknowledge { lsn: self.model.last_lsn() });
    }

    /// Opens the index a second time, which must be refused (R12).
    fn open_again(&self, storage: &S) -> Result<()> {
        let second = Engine::open(storage.clone(), self.config.options.clone(), &self.env);
        match second.map(drop) {
            Err(ShardexError::Locked { .. }) => Ok(()),
            _ => Err(ShardexError::Inconsistent { finding: "R12: a second open was not refused".into() }),
        }
    }

    /// Adds postings. Before, it offers one whose vector is beyond the range of f16.
    fn add(&mut self, batch: Vec<Posting>) -> Result<()> {
        self.model.attempt(|| Batch::Add(batch.clone()));
        let Some(engine) = &mut self.engine else { unreachable!("it was opened") };
        if self.config.encoding == VectorEncoding::F16 && self.config.metric != Metric::Cosine {
            let mut offered = batch.clone();
            if let Some(last) = offered.last_mut().and_then(|posting| posting.vector.last_mut()) {
                *last = 65_520.0;
                if engine.add(&offered).is_ok() {
                    return Err(ShardexError::Inconsistent {
                        finding: "P2: an infinite component was accepted".into(),
                    });
                }
            }
        }
        let lsn = engine.add(&batch)?;
        self.model.accept_at(Batch::Add(batch), lsn);
        Ok(())
    }

    /// Erases what was removed. Readers may hold some of it, and are then named.
    fn purge(&mut self) -> Result<()> {
        let Some(engine) = &mut self.engine else { unreachable!("it was opened") };
        if self.version.is_some() {
            // Older builds have no purge.
            return Ok(());
        }
        let mut from = Some(0);
        while let Some(first) = from {
            from = engine.purge_shards(first, 500)?.next;
        }
        while engine.purge_payloads(300)? > 0 {}
        let cells = engine.cell_build_anew()?.run()?;
        engine.install_cells(cells)?;
        match engine.purge_end() {
            Ok(_) => {
                self.flushed = self.model.accepted();
                self.acknowledge();
                self.model.purge();
                Ok(())
            }
            Err(ShardexError::HeldByReaders { .. }) if !self.readers.is_empty() => Ok(()),
            Err(error) => Err(error),
        }
    }

    fn flush(&mut self) -> Result<()> {
        let Some(engine) = &mut self.engine else { unreachable!("it was opened") };
        engine.flush()?;
        self.flushed = self.model.accepted();
        self.acknowledge();
        Ok(())
    }

    /// Flushes, and begins a backup or ends the one under way.
    fn back_up(&mut self) -> Result<()> {
        self.flush()?;
        let Some(engine) = &mut self.engine else { unreachable!("it was opened") };
        self.readers.back_up(engine)
    }

    /// Removes documents.
    fn remove(&mut self, documents: std::ops::Range<u64>) -> Result<()> {
        let Some(engine) = &mut self.engine else { unreachable!("it was opened") };
        let batch: Vec<DocumentId> = documents.map(|id| DocumentId(id.into())).collect();
        let before = engine.last_lsn();
        let (lsn, _) = engine.remove(&batch)?;
        // A removal that found nothing writes no record, so it is not a batch.
        if lsn > before {
            self.model.accept_at(Batch::Remove(batch), lsn);
        }
        Ok(())
    }

    fn step_alone(&mut self, storage: &S, step: &Step) -> Result<()> {
        let dimension = self.config.vector_size;
        next_turn();
        self.open(storage)?;
        if self.version == Some(1) && batch_of(step, &[], dimension).is_some() {
            // Version 1 has no such batch. This build opens the index and upgrades it.
            self.close(storage)?;
            // Without space for the recovery the handle only reads. The step is repeated with another open.
            if let Err(ShardexError::ReadOnly { cause }) = self.open(storage)?.commit() {
                self.engine = None;
                return Err(*cause);
            }
        }
        next_turn();
        let Some(engine) = &mut self.engine else { unreachable!("it was opened") };
        if let Some(batch) = batch_of(step, &engine.cursor()?, dimension) {
            let before = engine.last_lsn();
            self.model.attempt(|| Batch::Write(batch.clone()));
            let written = engine.write(&batch)?;
            // What changes nothing writes no record, so it is no batch.
            if written.lsn > before {
                self.model.accept_at(Batch::Write(batch), written.lsn);
            }
            return Ok(());
        }
        match step {
            Step::Add { first, count, start, salt } => {
                return self.add(postings(*first..first + count, *start, *salt, dimension));
            }
            Step::Remove { first, count } => return self.remove(*first..first + count),
            Step::Commit => {
                engine.commit()?;
                self.acknowledge();
            }
            Step::Flush => self.flush()?,
            Step::SlowFlush { first, count, salt } | Step::OverlappedFlush { first, count, salt } => {
                let overlaps = matches!(step, Step::OverlappedFlush { .. });
                return self.flush_with_writes(*first, *count, *salt, overlaps);
            }
            Step::Trim { keep: 0 } => engine.trim_all().map(drop)?,
            Step::Trim { keep } => engine.trim(*keep).map(drop)?,
            Step::Compact { bytes } => engine.compact_step(u64::MAX, *bytes).map(drop)?,
            Step::Purge => return self.purge(),
            Step::Optimize => engine.optimize()?,
            Step::OptimizeUntil { questions } => optimize_until(engine, *questions)?,
            Step::Close => self.close(storage)?,
            Step::Reopen => self.close(storage).and_then(|()| self.open(storage).map(drop))?,
            Step::Read => self.readers.take(engine)?,
            Step::Backup => return self.back_up(),
            Step::SecondOpen => return self.open_again(storage),
            _ => unreachable!("it is a batch"),
        }
        Ok(())
    }
}

/// Continues a cell build, and cancels it after a number of cancellation checks.
fn optimize_until<S: Storage>(engine: &mut Engine<S>, questions: u64) -> Result<()> {
    match engine.cell_build_resume()?.run_until(&Budget::of(questions)) {
        Ok(built) => engine.install_cells(built),
        // The build was cancelled and leaves nothing to install.
        Err(ShardexError::Closed) => Ok(()),
        Err(error) => Err(error),
    }
}
