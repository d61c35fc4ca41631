//! What an engine is made to do: named workloads, and ones generated from a seed.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use rand::{RngExt as _, SeedableRng as _, rngs::ChaCha8Rng};
use shardex::{
    CheckLevel, DocumentId, Engine, Metric, OpenOptions, Posting, Result, ShardexConfig, ShardexError,
    env::{Cancel, CellPolicy, Clock, Env, Inline, Threads},
    lease::SyncUnderWay,
    storage::Storage,
};

use crate::{
    model::{Batch, Model},
    monitor::Event,
    mutant::next_turn,
    readers::Readers,
    watch::Watch,
};

/// One thing to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Adds a posting to each of documents `first..first + count`, at `start`; `salt` changes the vectors.
    Add {
        /// First document.
        first: u64,
        /// Documents.
        count: u64,
        /// Start of each posting: a posting of the same document and start is replaced.
        start: u32,
        /// Changes the vectors.
        salt: u64,
    },
    /// Removes documents `first..first + count`.
    Remove {
        /// First document.
        first: u64,
        /// Documents.
        count: u64,
    },
    /// Commits.
    Commit,
    /// Flushes.
    Flush,
    /// Flushes, with an addition between any two of its steps.
    SlowFlush {
        /// First document added.
        first: u64,
        /// Documents added each time.
        count: u64,
        /// Changes the vectors.
        salt: u64,
    },
    /// Flushes, with an addition while each of its syncs runs.
    OverlappedFlush {
        /// First document added.
        first: u64,
        /// Documents added each time.
        count: u64,
        /// Changes the vectors.
        salt: u64,
    },
    /// Makes the cells anew.
    Optimize,
    /// Goes on with the cells, and gives up when it has been asked so often whether to.
    OptimizeUntil {
        /// How often.
        questions: u64,
    },
    /// Closes; the next step opens again.
    Close,
    /// Closes and opens again.
    Reopen,
    /// Opens a second time, which must be refused (R12).
    SecondOpen,
    /// Takes a snapshot and the hits of a search, which are kept until their engine is gone.
    Read,
}

impl std::fmt::Display for Step {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Add { first, count, start, salt } => {
                write!(f, "add first={first} count={count} start={start} salt={salt}")
            }
            Self::Remove { first, count } => write!(f, "remove first={first} count={count}"),
            Self::Commit => f.write_str("commit"),
            Self::Flush => f.write_str("flush"),
            Self::SlowFlush { first, count, salt } => write!(f, "slow-flush first={first} count={count} salt={salt}"),
            Self::OverlappedFlush { first, count, salt } => {
                write!(f, "overlapped-flush first={first} count={count} salt={salt}")
            }
            Self::Optimize => f.write_str("optimize"),
            Self::OptimizeUntil { questions } => write!(f, "optimize-until questions={questions}"),
            Self::Close => f.write_str("close"),
            Self::Reopen => f.write_str("reopen"),
            Self::SecondOpen => f.write_str("second-open"),
            Self::Read => f.write_str("read"),
        }
    }
}

/// An index and what is done with it.
#[derive(Clone, Debug, PartialEq)]
pub struct Workload {
    /// Its name; a generated one is called by its seed.
    pub name: String,
    /// What the index is made with.
    pub config: ShardexConfig,
    /// Bytes per page of the storage.
    pub page_size: usize,
    /// Bytes per sector.
    pub sector_size: usize,
    /// What is done, in order.
    pub steps: Vec<Step>,
    /// Small enough for every recovery to be crashed at each of its operations in every state.
    pub small: bool,
}

/// Cancels work when it has been asked so often whether to.
#[derive(Debug)]
pub struct Budget(AtomicU64);

impl Budget {
    /// With so many questions.
    #[must_use]
    pub fn of(questions: u64) -> Self {
        Self(AtomicU64::new(questions))
    }

    /// Questions that are left.
    pub fn left(&self) -> u64 {
        self.0.load(Ordering::Acquire)
    }
}

impl Cancel for Budget {
    fn is_cancelled(&self) -> bool {
        let asked = self.0.fetch_update(Ordering::AcqRel, Ordering::Acquire, |left| left.checked_sub(1));
        asked.is_err()
    }
}

/// A clock that stands still: the state of an index does not depend on it (R14), its bytes would.
#[derive(Debug)]
pub struct StoppedClock;

impl Clock for StoppedClock {
    fn unix_ms(&self) -> u64 {
        1_700_000_000_000
    }

    fn elapsed(&self) -> std::time::Duration {
        std::time::Duration::ZERO
    }
}

/// The environment of every simulated engine.
#[must_use]
pub fn env() -> Env {
    let (clock, executor, runtime) = (Arc::new(StoppedClock), Arc::new(Inline), Arc::new(Threads::default()));
    Env { clock, new_index_id: 7, executor, runtime, cells: CellPolicy::Always }
}

/// The vector of a document under a salt: components spread over -1 to 1.
#[must_use]
pub fn vector(document: u64, salt: u64, dimension: usize) -> Vec<f32> {
    let mut x = (document.wrapping_mul(1_000_003) ^ salt).wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    (0..dimension)
        .map(|_| {
            x ^= x << 13;
            x ^= x >> 7;
            x ^= x << 17;
            (x >> 40) as f32 / (1 << 23) as f32 - 1.0
        })
        .collect()
}

pub(crate) fn postings(documents: std::ops::Range<u64>, start: u32, salt: u64, dimension: usize) -> Vec<Posting> {
    documents
        .map(|id| Posting { document_id: DocumentId(id.into()), start, length: 1, vector: vector(id, salt, dimension) })
        .collect()
}

/// An engine at work, and the model of what it was told.
pub struct Runner<S: Storage> {
    config: ShardexConfig,
    env: Env,
    /// The engine, once it is made; `None` while it is closed.
    pub engine: Option<Engine<S>>,
    /// What it accepted and acknowledged.
    pub model: Model,
    /// Batches that were accepted when the last flush that is done began: what searches see after a failed sync, at least.
    pub flushed: usize,
    /// Who reads meanwhile.
    pub readers: Readers<S>,
    /// Hears of opens and acknowledgements.
    pub watch: Option<Watch>,
}

impl<S: Storage + Clone> Runner<S> {
    /// Nothing made yet.
    #[must_use]
    pub fn new(workload: &Workload, env: Env) -> Self {
        let readers = Readers::default();
        Self {
            config: workload.config.clone(),
            env,
            engine: None,
            model: Model::default(),
            flushed: 0,
            readers,
            watch: None,
        }
    }

    /// Makes or opens the index.
    ///
    /// # Errors
    /// What the engine says.
    pub fn open(&mut self, storage: &S) -> Result<&mut Engine<S>> {
        let engine = match self.engine.take() {
            Some(engine) => engine,
            None => {
                let engine = Engine::create(storage.clone(), &self.config, &self.env)?;
                self.tell(&Event::Opened);
                engine
            }
        };
        Ok(self.engine.insert(engine))
    }

    /// Drops the engine, which its readers outlive.
    ///
    /// # Errors
    /// `Inconsistent` if an open beside them is not refused, or they read something else.
    pub fn drop_engine(&mut self, storage: &S) -> Result<()> {
        self.engine = None;
        self.readers.outlive_engine(storage, &self.config.options, &self.env)
    }

    fn tell(&self, event: &Event<'_>) {
        if let Some(watch) = &self.watch {
            watch.see(event);
        }
    }

    /// Does one step.
    ///
    /// # Errors
    /// What the engine says; `Inconsistent` if a reader sees another state than it did.
    pub fn step(&mut self, storage: &S, step: &Step) -> Result<()> {
        self.step_alone(storage, step)?;
        self.readers.check()
    }

    fn step_alone(&mut self, storage: &S, step: &Step) -> Result<()> {
        let dimension = self.config.vector_size;
        next_turn();
        self.open(storage)?;
        next_turn();
        let Some(engine) = &mut self.engine else { unreachable!("it was opened") };
        match step {
            Step::Add { first, count, start, salt } => {
                let batch = postings(*first..first + count, *start, *salt, dimension);
                let lsn = engine.add(&batch)?;
                self.model.accept_at(Batch::Add(batch), lsn);
            }
            Step::Remove { first, count } => {
                let batch: Vec<DocumentId> = (*first..first + count).map(|id| DocumentId(id.into())).collect();
                let before = engine.last_lsn();
                let (lsn, _) = engine.remove(&batch)?;
                // A removal that found nothing is not logged, and no batch.
                if lsn > before {
                    self.model.accept_at(Batch::Remove(batch), lsn);
                }
            }
            Step::Commit => {
                engine.commit()?;
                self.model.acknowledge();
                self.tell(&Event::Acknowledge { lsn: self.model.last_lsn() });
            }
            Step::Flush => {
                engine.flush()?;
                self.model.acknowledge();
                self.flushed = self.model.accepted();
                self.tell(&Event::Acknowledge { lsn: self.model.last_lsn() });
            }
            Step::SlowFlush { first, count, salt } | Step::OverlappedFlush { first, count, salt } => {
                let overlaps = matches!(step, Step::OverlappedFlush { .. });
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
                    match engine.add(&batch) {
                        Ok(lsn) => self.model.accept_at(Batch::Add(batch), lsn),
                        // The WAL is full, and only the end of this flush makes room.
                        Err(ShardexError::FlushInProgress) => {}
                        // The flush waits to hear of its sync all the same.
                        Err(error) => refused = Some(error),
                    }
                    between += 1;
                    let synced = begun.map_or(synced, |begun| begun.and_then(SyncUnderWay::end));
                    flush = engine.flush_synced(synced)?;
                };
                // It may have been one that was begun before.
                self.flushed = self.flushed.max(self.model.acknowledge_up_to(stats.checkpoint_lsn));
                self.tell(&Event::Acknowledge { lsn: stats.checkpoint_lsn.0 });
                return refused.map_or(Ok(()), Err);
            }
            Step::Optimize => engine.optimize()?,
            Step::OptimizeUntil { questions } => {
                match engine.regroup_go_on()?.run_until(&Budget::of(*questions)) {
                    Ok(built) => engine.regrouped(built)?,
                    // It leaves nothing.
                    Err(ShardexError::Closed) => {}
                    Err(error) => return Err(error),
                }
            }
            Step::Close | Step::Reopen => {
                engine.close()?;
                self.model.acknowledge();
                self.tell(&Event::Acknowledge { lsn: self.model.last_lsn() });
                if self.config.options.flush_on_close {
                    self.flushed = self.model.accepted();
                }
                self.drop_engine(storage)?;
                if *step == Step::Reopen {
                    self.open(storage)?;
                }
            }
            Step::Read => self.readers.take(engine)?,
            Step::SecondOpen => {
                let second = Engine::open(storage.clone(), self.config.options.clone(), &self.env);
                let locked = matches!(second.map(drop), Err(ShardexError::Locked { .. }));
                if !locked {
                    return Err(ShardexError::Inconsistent { finding: "R12: a second open was not refused".into() });
                }
            }
        }
        Ok(())
    }
}

impl Workload {
    fn new(name: &str, (dimension, shard_size, metric): (usize, usize, Metric), steps: Vec<Step>) -> Self {
        let (page_size, sector_size) = (256, 64);
        let config = ShardexConfig::new("sim")
            .vector_size(dimension)
            .shard_size(shard_size)
            .metric(metric)
            .wal_segment_size(4 * page_size)
            .options(OpenOptions::default().wal_max_bytes(64 << 10));
        Self { name: name.to_owned(), config, page_size, sector_size, steps, small: false }
    }

    /// One in which nothing is done yet; its pages and sectors small, or as disks have them.
    #[must_use]
    pub fn blank(name: &str, made_of: (usize, usize, Metric), real_pages: bool) -> Self {
        let mut workload = Self::new(name, made_of, Vec::new());
        if real_pages {
            (workload.page_size, workload.sector_size) = (4096, 512);
            workload.config = workload.config.wal_segment_size(16 << 10).wal_max_bytes(256 << 10);
        }
        workload
    }

    /// A workload from a seed: each seed turns features and sizes on or off (swarm testing; Groce and others, ISSTA 2012).
    #[must_use]
    pub fn generated(seed: u64) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let dimension = [3, 5, 17, 20][rng.random_range(0..4)];
        let shard_size = [2, 4, 5, 8][rng.random_range(0..4)];
        let metric = [Metric::L2, Metric::Dot, Metric::Cosine][rng.random_range(0..3)];
        let features: [bool; 7] = std::array::from_fn(|_| rng.random_bool(0.7));
        let [removals, replacements, slow, reopens, large, flushes, cells] = features;
        let steps = (0..rng.random_range(6..16))
            .map(|n| match rng.random_range(0..12) {
                0 | 1 if removals => Step::Remove { first: rng.random_range(0..24), count: rng.random_range(1..16) },
                2 | 3 if flushes => Step::Flush,
                2 | 3 => Step::Commit,
                4 if slow => {
                    let (first, count, salt) = (rng.random_range(0..24), rng.random_range(1..5), n);
                    match rng.random() {
                        true => Step::SlowFlush { first, count, salt },
                        false => Step::OverlappedFlush { first, count, salt },
                    }
                }
                5 | 6 => Step::Commit,
                8 if cells => Step::Optimize,
                9 if cells => Step::OptimizeUntil { questions: rng.random_range(0..400) },
                7 if reopens => [Step::Close, Step::Reopen][rng.random_range(0..2)].clone(),
                _ => Step::Add {
                    first: if replacements { rng.random_range(0..20) } else { n * 40 },
                    count: rng.random_range(1..if large { 30 } else { 8 }),
                    start: 0,
                    salt: n,
                },
            })
            .chain([Step::Flush])
            .collect();
        let real_pages = rng.random_bool(0.1);
        let mut workload = Self::blank(&format!("seed {seed}"), (dimension, shard_size, metric), real_pages);
        workload.steps = steps;
        if rng.random_bool(0.3) {
            workload.config = workload.config.flush_on_close(false);
        }
        if rng.random_bool(0.1) {
            workload.config = workload.config.flush_check(CheckLevel::Full);
        }
        workload
    }
}

fn add(first: u64, count: u64) -> Step {
    Step::Add { first, count, start: 0, salt: first }
}

/// The same with the vectors of salt 0, whatever the documents.
fn add_unsalted(first: u64, count: u64) -> Step {
    Step::Add { first, count, start: 0, salt: 0 }
}

/// The named workloads: small enough to be explored whole, together everything the engine does to its files.
#[must_use]
pub fn reference() -> Vec<Workload> {
    use Step::{Commit, Flush, Remove, Reopen, SlowFlush};
    let l2 = |dimension, shard_size| (dimension, shard_size, Metric::L2);
    vec![
        Workload {
            small: true,
            ..Workload::new("one posting", l2(3, 4), vec![add(0, 1), Commit, Flush, add(1, 1), Flush])
        },
        Workload::new("split", l2(3, 4), vec![add(0, 4), Flush, add(4, 3), Commit, add(7, 4), Flush]),
        Workload::new(
            "split and move",
            l2(3, 8),
            vec![add(0, 16), Flush, add(16, 9), Commit, add(30, 9), Flush, add(40, 2), Flush],
        ),
        Workload::new(
            "freed shards",
            l2(3, 4),
            vec![add(0, 9), Flush, Remove { first: 0, count: 9 }, Flush, add(20, 5), Flush, add(30, 5), Flush],
        ),
        Workload::new(
            "replacements",
            l2(17, 4),
            vec![
                add(0, 6),
                Flush,
                Step::Add { first: 0, count: 6, start: 0, salt: 99 },
                Commit,
                Step::Add { first: 2, count: 3, start: 1, salt: 5 },
                Flush,
            ],
        ),
        Workload::new(
            "recycled segments",
            l2(3, 8),
            vec![add(0, 12), Commit, add(12, 12), Flush, add(24, 12), Flush, add(36, 12), Flush, add(48, 12), Flush],
        ),
        Workload::new(
            "a batch over segments",
            l2(5, 8),
            vec![add(0, 2), Commit, add(10, 40), Commit, Flush, add(60, 30), Flush],
        ),
        Workload::new(
            "reopened",
            l2(3, 4),
            vec![add(0, 5), Reopen, add(5, 3), Flush, Reopen, Reopen, Remove { first: 0, count: 2 }, Flush, add(9, 2)],
        ),
        Workload::new(
            "writes inside a flush",
            l2(3, 4),
            vec![
                add(0, 4),
                SlowFlush { first: 10, count: 3, salt: 1 },
                Commit,
                SlowFlush { first: 20, count: 2, salt: 2 },
                Flush,
            ],
        ),
        Workload::new(
            "commits without flushes",
            (5, 4, Metric::Dot),
            vec![
                add(0, 3),
                Commit,
                add(3, 3),
                Commit,
                Remove { first: 1, count: 2 },
                Commit,
                add(1, 4),
                Flush,
                add(9, 9),
                Flush,
            ],
        ),
        Workload::new(
            "cosine over sectors",
            (20, 5, Metric::Cosine),
            vec![add(0, 6), Flush, Remove { first: 2, count: 3 }, add(6, 4), Commit, Flush],
        ),
        Workload::new(
            "many chunks",
            (20, 2, Metric::Cosine),
            vec![add(15, 26), Flush, Step::Add { first: 12, count: 13, start: 0, salt: 3 }, Flush, add(0, 25), Flush],
        ),
        Workload {
            steps: vec![add(0, 9), Commit, Flush, add(9, 6), Flush, add(3, 4), Flush],
            ..Workload::blank("real pages", l2(17, 4), true)
        },
        Workload::new(
            "swinging size",
            (5, 4, Metric::Dot),
            vec![
                add(0, 14),
                Commit,
                Remove { first: 2, count: 9 },
                Flush,
                add(20, 12),
                Remove { first: 0, count: 30 },
                Commit,
                add(40, 9),
                Flush,
                add(50, 3),
                Step::Close,
                add(60, 5),
                Flush,
            ],
        ),
        Workload::new(
            "shrinking shards",
            l2(3, 8),
            vec![
                add(0, 28),
                Flush,
                Remove { first: 0, count: 12 },
                Commit,
                Remove { first: 12, count: 10 },
                add(30, 3),
                Flush,
                Step::Add { first: 22, count: 4, start: 0, salt: 7 },
                SlowFlush { first: 40, count: 2, salt: 3 },
                Remove { first: 24, count: 8 },
                Step::Close,
                Remove { first: 40, count: 3 },
                Flush,
            ],
        ),
        // Document 161 goes to a shard of before, so that its bytes are lent anew; with 162 another splits, and one of that
        // shard's postings goes to a half; then the shard itself goes. What has rotted by the first of these is not hidden.
        Workload::new(
            "a posting outlives its shard",
            l2(3, 4),
            vec![
                add_unsalted(60, 5),
                Flush,
                Remove { first: 900, count: 1 },
                Commit,
                Remove { first: 901, count: 1 },
                Commit,
                Remove { first: 902, count: 1 },
                Commit,
                add_unsalted(160, 1),
                Commit,
                add_unsalted(161, 1),
                Commit,
                add_unsalted(162, 1),
                Remove { first: 61, count: 1 },
                Remove { first: 161, count: 1 },
                Flush,
                add_unsalted(110, 3),
                Flush,
            ],
        ),
        Workload::new(
            "readers outlive their engine",
            l2(3, 4),
            vec![
                add(0, 9),
                Step::Read,
                Step::Optimize,
                Step::Read,
                Remove { first: 0, count: 6 },
                Flush,
                add(10, 7),
                Flush,
                Step::Optimize,
                add(20, 7),
                Flush,
                Step::Read,
                Reopen,
                Step::Read,
                Remove { first: 10, count: 9 },
                SlowFlush { first: 30, count: 3, salt: 2 },
                Step::Close,
                add(40, 3),
                Flush,
            ],
        ),
        Workload::new(
            "flushes in a row",
            (17, 4, Metric::L2),
            vec![
                add(0, 5),
                Flush,
                add(5, 1),
                Flush,
                add(6, 1),
                Flush,
                add(7, 1),
                Flush,
                add(8, 5),
                Flush,
                add(13, 2),
                Flush,
            ],
        ),
        Workload::new(
            "cells",
            (5, 4, Metric::L2),
            vec![
                add(0, 7),
                Step::Optimize,
                Flush,
                add(7, 5),
                Remove { first: 2, count: 3 },
                Commit,
                Step::Optimize,
                add(12, 2),
                Flush,
                Step::Close,
                add(14, 2),
                Flush,
                add(16, 1),
                Flush,
            ],
        ),
        Workload::new(
            "writes while syncs run",
            l2(3, 4),
            vec![
                add(0, 6),
                Step::OverlappedFlush { first: 10, count: 3, salt: 1 },
                Commit,
                Step::OverlappedFlush { first: 20, count: 2, salt: 2 },
                Reopen,
                add(30, 3),
                Step::OverlappedFlush { first: 10, count: 4, salt: 3 },
                Flush,
            ],
        ),
        Workload::new(
            "cells given up",
            (5, 4, Metric::L2),
            vec![
                add(0, 9),
                Step::OptimizeUntil { questions: 20 },
                Flush,
                Step::OptimizeUntil { questions: 40 },
                Step::Reopen,
                Step::Optimize,
                add(20, 12),
                Step::OptimizeUntil { questions: 30 },
                Flush,
                Step::OptimizeUntil { questions: 30 },
                Step::Reopen,
                Step::OptimizeUntil { questions: 100 },
                Flush,
                add(40, 1),
                Flush,
                Step::Optimize,
                Flush,
            ],
        ),
        Workload::new(
            "cells made last",
            (17, 4, Metric::L2),
            vec![add(0, 20), Flush, Step::Optimize, Step::Reopen, add(20, 1), Flush],
        ),
        Workload::new(
            "cells of many groups",
            (70, 8, Metric::Cosine),
            vec![
                add(0, 30),
                Step::Optimize,
                Step::Optimize,
                Flush,
                Step::SlowFlush { first: 40, count: 2, salt: 5 },
                Step::Optimize,
                Remove { first: 0, count: 60 },
                Step::Optimize,
                Flush,
                add(0, 2),
                Flush,
            ],
        ),
        Workload::new(
            "everything removed and added again",
            l2(3, 4),
            vec![
                add(0, 7),
                Commit,
                Remove { first: 0, count: 7 },
                add(0, 7),
                Flush,
                Remove { first: 0, count: 7 },
                Flush,
                add(0, 3),
                Flush,
            ],
        ),
    ]
}
