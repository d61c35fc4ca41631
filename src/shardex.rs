//! The async API. It decides nothing: a writer of its own drives the [`Engine`], searches run on snapshots.
//!
//! Invariants:
//! 1. One writer owns the engine; everything that changes it comes to that writer by one bounded queue.
//! 2. A snapshot is published before the write that it shows is answered.
//! 3. A request that reached the writer is carried out even if its caller is gone.

use std::{
    path::Path,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use arc_swap::ArcSwap;
use tokio::{
    sync::{mpsc, oneshot},
    time::{Instant, sleep_until},
};

use crate::{
    config::{CheckLevel, Durability, OpenOptions, ShardexConfig},
    engine::{
        ConsistencyReport, Engine, Lent, batch,
        stats::{FlushStats, IndexStats},
    },
    env::Env,
    error::{Result, ShardexError},
    id::DocumentId,
    index::{self, Hits, Snapshot},
    posting::{Posting, SearchOptions, SearchResponse, SearchResult},
    shard::DataFile,
    storage::{MmapStorage, Storage},
};

type Reply<T> = oneshot::Sender<Result<T>>;

/// Answers a caller that waits for its write to be durable.
type Answer = Box<dyn FnOnce(Result<()>) + Send>;

enum Command {
    Add(Vec<Posting>, Reply<()>),
    Remove(Vec<DocumentId>, Reply<u64>),
    Commit(Reply<()>),
    Flush(Reply<FlushStats>),
    Stats(Reply<IndexStats>),
    Check(CheckLevel, Reply<ConsistencyReport>),
    Close(Reply<()>),
}

/// What searches need of the engine.
struct Shared<S: Storage> {
    snapshot: ArcSwap<Snapshot<Lent<S>>>,
    data: Arc<DataFile<S::File>>,
    options: OpenOptions,
    closed: AtomicBool,
}

/// A handle on an open index. Clones share it; the last one to be dropped lets the index go.
///
/// All calls may come from any task at once. Searches never wait for writes. A call whose future is dropped may be
/// carried out or not, but never by halves.
///
/// Dropping the last handle without [`close`](Self::close) tries a last commit, unless durability is `Manual`, and
/// releases the lock; it may block for one sync.
pub struct Shardex<S: Storage = MmapStorage> {
    inner: Arc<Inner<S>>,
}

struct Inner<S: Storage> {
    /// `None` only while dropping.
    queue: Option<mpsc::Sender<Command>>,
    shared: Arc<Shared<S>>,
    writer: Mutex<Option<WriterHandle>>,
}

impl<S: Storage> Clone for Shardex<S> {
    fn clone(&self) -> Self {
        Self { inner: Arc::clone(&self.inner) }
    }
}

impl<S: Storage> std::fmt::Debug for Shardex<S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shardex").field("path", &self.inner.shared.data.path()).finish_non_exhaustive()
    }
}

impl Shardex {
    /// Makes an index in `config.directory_path`, or opens the one that is there if it was made with the same
    /// configuration. The directory may be new, its parent not; one that holds other files is refused.
    ///
    /// A crash in the middle leaves either an index or what a second `create` clears.
    ///
    /// # Errors
    /// `Config`, `ConfigMismatch`, `AlreadyExists`, and all of [`open`](Self::open).
    pub async fn create(config: ShardexConfig) -> Result<Self> {
        let storage = MmapStorage::new(config.directory_path.clone());
        Self::create_on(storage, config, Env::system()).await
    }

    /// Opens an index with default options, and recovers what a crash left.
    ///
    /// Cost: reads the metadata, no vector; after a crash the WAL is replayed and flushed.
    ///
    /// # Errors
    /// `NotFound`, `Locked`, `NotAnIndex`, `UnsupportedVersion`, `Corruption`, `Config`, `Io`.
    pub async fn open(path: impl AsRef<Path>) -> Result<Self> {
        Self::open_with(path, OpenOptions::default()).await
    }

    /// Opens an index with these options.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub async fn open_with(path: impl AsRef<Path>, options: OpenOptions) -> Result<Self> {
        let storage = MmapStorage::new(path.as_ref().to_path_buf());
        Self::open_on(storage, options, Env::system()).await
    }
}

impl<S: Storage> Shardex<S> {
    /// [`create`](Shardex::create) on another storage, with the clock and the index id handed in.
    ///
    /// # Errors
    /// As [`create`](Shardex::create).
    pub async fn create_on(storage: S, config: ShardexConfig, env: Env) -> Result<Self> {
        let options = config.options.clone();
        Self::start(options, move || Engine::create(storage, &config, &env)).await
    }

    /// [`open_with`](Shardex::open_with) on another storage.
    ///
    /// # Errors
    /// As [`open`](Shardex::open).
    pub async fn open_on(storage: S, options: OpenOptions, env: Env) -> Result<Self> {
        Self::start(options.clone(), move || Engine::open(storage, options, &env)).await
    }

    async fn start(options: OpenOptions, make: impl FnOnce() -> Result<Engine<S>> + Send + 'static) -> Result<Self> {
        options.validate()?;
        let (queue, requests) = mpsc::channel(options.queue_size);
        let (opened, is_open) = oneshot::channel();
        let writer = spawn_writer(async move {
            match make() {
                Err(error) => drop(opened.send(Err(error))),
                Ok(engine) => {
                    let shared = Arc::new(Shared {
                        snapshot: ArcSwap::new(engine.snapshot()),
                        data: Arc::clone(engine.data()),
                        options: engine.options().clone(),
                        closed: AtomicBool::new(false),
                    });
                    if opened.send(Ok(Arc::clone(&shared))).is_ok() {
                        Writer::new(engine, shared).run(requests).await;
                    }
                }
            }
        })?;
        let shared = is_open.await.unwrap_or_else(|_| Err(stopped()))?;
        let writer = Mutex::new(Some(writer));
        Ok(Self { inner: Arc::new(Inner { queue: Some(queue), shared, writer }) })
    }

    async fn ask<T>(&self, command: impl FnOnce(Reply<T>) -> Command) -> Result<T> {
        let (reply, answer) = oneshot::channel();
        let gone = || if self.inner.shared.closed.load(Ordering::Acquire) { ShardexError::Closed } else { stopped() };
        let Some(queue) = &self.inner.queue else { return Err(gone()) };
        queue.send(command(reply)).await.map_err(|_| gone())?;
        answer.await.unwrap_or_else(|_| Err(gone()))
    }

    /// Adds postings, all or none. One whose key (document id, start, length) is stored already replaces that one; of
    /// equal keys in one batch the last counts. An empty batch is fine and does nothing.
    ///
    /// On `Ok` searches see the batch; it is durable at the next commit, with `Durability::Immediate` already.
    /// Cost: one distance per shard and posting, a copy into the WAL's buffer, one into the shard; now and then a split.
    ///
    /// # Errors
    /// `InvalidDimension`, `InvalidVector`, `InvalidPosting` naming the index of the first bad posting; `BatchTooLarge`,
    /// `OutOfSpace`, `Io`, `Corruption`: nothing has changed. With `Durability::Immediate` an error of the commit leaves
    /// the batch accepted. `Poisoned`, `Closed`. An error of background work since the last call is returned here
    /// too, and the batch is not accepted.
    pub async fn add_postings(&self, postings: Vec<Posting>) -> Result<()> {
        self.ask(|reply| Command::Add(postings, reply)).await
    }

    /// Removes all postings of some documents, and returns how many there were. Unknown documents have none.
    ///
    /// Cost: a lookup in the bloom filters per document, and a look at the posting records of the shards they name.
    ///
    /// # Errors
    /// As [`add_postings`](Self::add_postings).
    pub async fn remove_documents(&self, document_ids: Vec<DocumentId>) -> Result<u64> {
        self.ask(|reply| Command::Remove(document_ids, reply)).await
    }

    /// Makes everything accepted before it durable: one sync of the WAL, shared by all who wait for one; none if
    /// nothing is to be made durable.
    ///
    /// # Errors
    /// `OutOfSpace`, `Io` from a store: what was accepted stays accepted, call again. An `Io` of a sync poisons the
    /// handle. `Poisoned`, `Closed`.
    pub async fn commit(&self) -> Result<()> {
        self.ask(Command::Commit).await
    }

    /// Makes everything accepted before it durable in the shards, and lets the WAL go. At most three syncs, whatever the
    /// number of shards; none if there is nothing to flush.
    ///
    /// # Errors
    /// As [`commit`](Self::commit); `Inconsistent` if the check of the flush finds a contradiction.
    pub async fn flush(&self) -> Result<FlushStats> {
        self.ask(Command::Flush).await
    }

    /// Figures of the index as it is now. Cost: O(shards); no vector is read.
    ///
    /// # Errors
    /// `Closed`, `Io`.
    pub async fn stats(&self) -> Result<IndexStats> {
        self.ask(Command::Stats).await
    }

    /// Looks for contradictions between WAL, shards, index and free space. `Quick` reads no vector, `Full` every byte
    /// that the index holds; writes wait meanwhile.
    ///
    /// # Errors
    /// `Io`, `Closed`. Damage is a finding in the report, not an error.
    pub async fn check(&self, level: CheckLevel) -> Result<ConsistencyReport> {
        self.ask(|reply| Command::Check(level, reply)).await
    }

    /// Finds the `k` nearest postings in the `slop` nearest shards; `None` takes the configured default.
    ///
    /// # Errors
    /// As [`search_with`](Self::search_with).
    pub async fn search(&self, query: &[f32], k: usize, slop: Option<usize>) -> Result<Vec<SearchResult>> {
        let options = SearchOptions { slop, ..SearchOptions::new(k) };
        Ok(self.search_with(query, &options).await?.results)
    }

    /// Finds the nearest postings.
    ///
    /// Sees everything accepted before the call, flushed or not, and never waits for the writer. Runs on the calling
    /// task; cost: one distance per shard, and one per posting in the shards scanned.
    ///
    /// # Errors
    /// `InvalidDimension`, `InvalidVector`, `InvalidArgument`; `Corruption` if a shard that is read for the first time
    /// since the open is damaged; `Closed`.
    pub async fn search_with(&self, query: &[f32], options: &SearchOptions) -> Result<SearchResponse> {
        Ok(self.search_in_place(query, options).await?.to_response())
    }

    /// [`search_with`](Self::search_with) without a copy: the hits are read where they lie, and hold their places as long
    /// as they live, so that those are not used again meanwhile.
    ///
    /// # Errors
    /// As [`search_with`](Self::search_with).
    pub async fn search_in_place(&self, query: &[f32], options: &SearchOptions) -> Result<Hits<S::File>> {
        let shared = &self.inner.shared;
        if shared.closed.load(Ordering::Acquire) {
            return Err(ShardexError::Closed);
        }
        batch::search_options(options)?;
        let query = batch::query(query, shared.data.geometry())?;
        let slop = match options.exact {
            true => None,
            false => Some(options.slop.unwrap_or(shared.options.default_slop_factor)),
        };
        let snapshot = shared.snapshot.load_full();
        index::search(&snapshot, &shared.data, &query, options.k, slop)
    }

    /// Flushes (or commits, if so configured), marks the end of the WAL, and lets the index go. Every further call on any
    /// clone gets `Closed`.
    ///
    /// # Errors
    /// As [`flush`](Self::flush): the index is let go all the same, and the next open recovers.
    pub async fn close(&self) -> Result<()> {
        let closed = self.ask(Command::Close).await;
        let writer = self.inner.writer.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(writer) = writer {
            writer.wait();
        }
        closed
    }
}

impl<S: Storage> Drop for Inner<S> {
    fn drop(&mut self) {
        // The writer ends when the queue does; the lock is free when it has ended.
        self.queue = None;
        if let Some(writer) = self.writer.get_mut().unwrap_or_else(PoisonError::into_inner).take() {
            writer.wait();
        }
    }
}

fn stopped() -> ShardexError {
    ShardexError::Poisoned { cause: "the writer stopped unexpectedly".into() }
}

/// Drives the engine.
struct Writer<S: Storage> {
    engine: Engine<S>,
    shared: Arc<Shared<S>>,
    /// When accepted writes are to be committed, at the latest.
    commit_at: Option<Instant>,
    /// When they are to be flushed.
    flush_at: Option<Instant>,
    /// A flush that failed is not tried again before the WAL has this many bytes.
    flush_above: u64,
    /// An error of background work that nobody was told yet.
    untold: Option<ShardexError>,
    /// Who waits for the next commit.
    waiting: Vec<Answer>,
}

impl<S: Storage> Writer<S> {
    fn new(engine: Engine<S>, shared: Arc<Shared<S>>) -> Self {
        let flush_above = engine.options().flush_wal_bytes;
        Self { engine, shared, commit_at: None, flush_at: None, flush_above, untold: None, waiting: Vec::new() }
    }

    async fn run(mut self, mut requests: mpsc::Receiver<Command>) {
        loop {
            let due = [self.commit_at, self.flush_at].into_iter().flatten().min();
            let command = match due {
                None => requests.recv().await,
                Some(due) => tokio::select! {
                    biased;
                    command = requests.recv() => command,
                    () = sleep_until(due) => {
                        self.background();
                        continue;
                    }
                },
            };
            let Some(command) = command else { break };
            if let Some(reply) = self.serve(command) {
                return self.close(reply, requests);
            }
            // All that came meanwhile shares one commit; bounded, so that timers are served under any load.
            for _ in 0..self.engine.options().queue_size {
                let Ok(command) = requests.try_recv() else { break };
                if let Some(reply) = self.serve(command) {
                    return self.close(reply, requests);
                }
            }
            self.settle();
            self.background();
        }
        if self.engine.options().durability != Durability::Manual {
            // Best effort: nobody is left to tell, and nothing of it was acknowledged.
            drop(self.engine.commit());
        }
    }

    /// Carries out one request; returns the reply of a request to close.
    fn serve(&mut self, command: Command) -> Option<Reply<()>> {
        match command {
            Command::Add(postings, reply) => {
                let done = self.told().and_then(|()| self.engine.add(&postings)).map(|_| ());
                self.written(done, Box::new(|done| drop(reply.send(done))));
            }
            Command::Remove(documents, reply) => match self.told().and_then(|()| self.engine.remove(&documents)) {
                Ok((_, removed)) => {
                    self.written(Ok(()), Box::new(move |done| drop(reply.send(done.map(|()| removed)))))
                }
                Err(error) => drop(reply.send(Err(error))),
            },
            Command::Commit(reply) => match self.told() {
                Ok(()) => self.waiting.push(Box::new(|done| drop(reply.send(done)))),
                Err(error) => drop(reply.send(Err(error))),
            },
            Command::Flush(reply) => {
                self.settle();
                let flushed = self.told().and_then(|()| self.engine.flush());
                self.publish();
                drop(reply.send(flushed));
            }
            Command::Stats(reply) => drop(reply.send(self.engine.stats())),
            Command::Check(level, reply) => drop(reply.send(self.engine.check(level))),
            Command::Close(reply) => {
                self.settle();
                return Some(reply);
            }
        }
        None
    }

    /// Answers a write, or lets it wait for the commit that makes it durable.
    fn written(&mut self, done: Result<()>, answer: Answer) {
        self.publish();
        match done {
            Ok(()) if self.engine.options().durability == Durability::Immediate => self.waiting.push(answer),
            done => answer(done),
        }
        self.flush_if_full();
    }

    /// Commits for all who wait.
    fn settle(&mut self) {
        if self.waiting.is_empty() {
            return;
        }
        let done = self.engine.commit().map(|_| ());
        self.publish();
        self.waiting.drain(..).for_each(|answer| answer(done.clone()));
    }

    /// Hands out an error of background work, once.
    fn told(&mut self) -> Result<()> {
        self.untold.take().map_or(Ok(()), Err)
    }

    fn publish(&self) {
        self.shared.snapshot.store(self.engine.snapshot());
    }

    /// Commits and flushes that are due by the clock, and the times of the next ones.
    fn background(&mut self) {
        let options = self.engine.options().clone();
        let now = Instant::now();
        if self.commit_at.is_some_and(|at| at <= now) {
            self.commit_at = None;
            let done = self.engine.commit().map(|_| ());
            self.note(done);
        }
        if self.flush_at.is_some_and(|at| at <= now) {
            self.flush();
        }
        self.publish();
        let interval = options.durability == Durability::Interval;
        match self.commit_at {
            None if interval && self.engine.has_uncommitted() && self.untold.is_none() => {
                self.commit_at = Some(now + options.commit_interval());
            }
            Some(_) if !self.engine.has_uncommitted() => self.commit_at = None,
            _ => {}
        }
        let timed = options.flush_interval_ms > 0;
        match self.flush_at {
            None if timed && self.engine.has_unflushed() && self.untold.is_none() => {
                self.flush_at = Some(now + std::time::Duration::from_millis(options.flush_interval_ms));
            }
            Some(_) if !self.engine.has_unflushed() => self.flush_at = None,
            _ => {}
        }
    }

    /// A flush that the size of the WAL asks for.
    fn flush_if_full(&mut self) {
        if self.engine.options().flush_wal_bytes > 0 && self.engine.wal_bytes() > self.flush_above {
            self.flush();
            self.publish();
        }
    }

    /// A flush that nobody asked for.
    fn flush(&mut self) {
        self.flush_at = None;
        let limit = self.engine.options().flush_wal_bytes;
        let done = self.engine.flush().map(|_| ());
        self.flush_above = match &done {
            Ok(()) => limit,
            Err(_) => self.engine.wal_bytes() + limit / 8,
        };
        self.note(done);
    }

    /// Keeps an error of background work until somebody can be told.
    fn note(&mut self, done: Result<()>) {
        if let Err(error) = done {
            self.engine.note_error();
            self.untold = Some(error);
        }
    }

    /// Closes the engine and refuses what is still queued.
    fn close(mut self, reply: Reply<()>, mut requests: mpsc::Receiver<Command>) {
        let done = self.told().and_then(|()| self.engine.close());
        self.shared.closed.store(true, Ordering::Release);
        requests.close();
        // The lock is released before the answer, so that an open right after it succeeds.
        drop(self.engine);
        drop(reply.send(done));
    }
}

/// The thread that the writer runs on, or under simulation the task.
struct WriterHandle {
    #[cfg(not(madsim))]
    thread: std::thread::JoinHandle<()>,
}

impl WriterHandle {
    /// Waits until the writer has let the index go.
    fn wait(self) {
        // A panic of the writer was told to whoever waited for an answer.
        #[cfg(not(madsim))]
        drop(self.thread.join());
    }
}

/// Runs the writer on a thread with a runtime of its own: its syncs block nobody, and it needs neither the caller's
/// runtime nor its timers.
#[cfg(not(madsim))]
fn spawn_writer(writer: impl Future<Output = ()> + Send + 'static) -> Result<WriterHandle> {
    let failed = |source| ShardexError::io("start", "the writer's thread", source);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().map_err(failed)?;
    let thread = std::thread::Builder::new()
        .name("shardex-writer".into())
        .spawn(move || runtime.block_on(writer))
        .map_err(failed)?;
    Ok(WriterHandle { thread })
}

/// Under simulation there are no threads: the writer is a task.
#[cfg(madsim)]
fn spawn_writer(writer: impl Future<Output = ()> + Send + 'static) -> Result<WriterHandle> {
    tokio::task::spawn(writer);
    Ok(WriterHandle {})
}
