//! Async API: the handle, the writer that drives the [`Engine`], and searches on snapshots. This layer decides when to
//! commit, flush and retry, and when a write waits or is refused. The rules of durability are the engine's.
//!
//! Invariants:
//! 1. One writer owns the engine. All changes reach it through one bounded queue.
//! 2. The snapshot that contains a write is published before the write's call returns.
//! 3. A request that reached the writer is carried out, even if its caller has dropped the future. If the future of an
//!    open or a `create` is dropped, the call runs to its end if it has begun, and the engine is then dropped.

mod backups;
mod compaction;
mod failures;
mod flushes;
mod jobs;
mod purging;
mod queue;
mod reading;
mod running;
mod searching;
mod snapshot;
mod stats_writer;
mod tasks;
mod timers;
mod trimming;
mod view;
mod writer;
mod writing;

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError, atomic::AtomicBool},
};

use arc_swap::ArcSwapOption;
use tokio::sync::oneshot;

use crate::{
    config::{CheckLevel, OpenOptions, ShardexConfig},
    engine::{
        ConsistencyReport, Engine,
        stats::{FlushStats, IndexStats},
    },
    env::Env,
    error::Result,
    index::Hits,
    observe::Observer,
    posting::{SearchOptions, SearchResponse, SearchResult},
    runtime::Task,
    storage::{MmapStorage, Storage},
};

use queue::{Command, Queue, Reply};
use snapshot::SearchContext;
use tasks::{StopCause, Syncer, spawn_writer};
use view::{Shared, Snapshots, View, stopped_by};
use writer::Writer;
pub use {backups::BackupOptions, reading::PostingScan, snapshot::IndexSnapshot};

/// Handle of an open index. Clones share the index. Dropping the last clone stops the writer and releases the lock.
///
/// All methods may be called from any task at any time. Searches never wait for writes. A write waits for a running flush
/// once much WAL has accumulated (see [`flush_wal_bytes`](OpenOptions::flush_wal_bytes)). The first write after a clean
/// open flushes. A call whose future is dropped before it is queued has no effect. After that it is carried out
/// completely, and its result is dropped. A background commit or flush that fails for any reason but a sync is retried. [`stats`](Self::stats) shows the error.
/// Writes are accepted within [`max_undurable_ms`](OpenOptions::max_undurable_ms) and `max_undurable_bytes`.
///
/// Dropping the last handle without [`close`](Self::close) tries a last commit, unless durability is `Manual`, and
/// releases the lock. The next open recovers. The drop may block for the syncs of that commit and of a flush: a cell
/// build is cancelled, and its progress is flushed, unless durability is `Manual`. If the future of an open or a `create`
/// is dropped, the call ends and the lock is released.
/// A [snapshot](IndexSnapshot) or [`Hits`] that outlives the handle stays readable and keeps the index locked. A forked
/// child process shares the lock until it ends or executes another program. It must not use the handle.
pub struct Shardex<S: Storage = MmapStorage> {
    inner: Arc<Inner<S>>,
}

struct Inner<S: Storage> {
    /// `None` only during the drop.
    queue: Option<Queue>,
    shared: Arc<Shared<S>>,
    writer: Mutex<Option<Task>>,
}

impl<S: Storage> Clone for Shardex<S> {
    fn clone(&self) -> Self {
        Self { inner: Arc::clone(&self.inner) }
    }
}

impl<S: Storage> std::fmt::Debug for Shardex<S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shardex").field("path", &self.inner.shared.path).finish_non_exhaustive()
    }
}

impl Shardex {
    /// Creates an index in `config.directory_path`, or opens an existing index that has the same configuration.
    ///
    /// The directory may be missing, but its parent must exist. Without an index in it, it must be empty. After a crash
    /// during `create`, the directory contains an index, or files that a second `create` removes.
    ///
    /// # Errors
    /// Returns `Config` if a field is out of range, `ConfigMismatch` if the index has a different configuration, and
    /// `AlreadyExists` if the directory contains other files and no index. Otherwise returns the errors of [`open`](Self::open), and
    /// `OutOfSpace` if the disk is full.
    pub async fn create(config: ShardexConfig) -> Result<Self> {
        let storage = MmapStorage::new(config.directory_path.clone()).file_access(config.file_access);
        let options = config.options.clone();
        Self::start(storage.path(), options, Env::system(), move |env| Engine::create(storage, &config, env)).await
    }

    /// Opens an index with default options and recovers from a crash.
    ///
    /// If the disk has no space for the recovery, the handle only reads: see [`read_only`](IndexStats::read_only).
    ///
    /// Cost: reads the metadata and no vector. After a crash it also replays the WAL and flushes.
    ///
    /// # Errors
    /// Returns `NotFound` if there is no index, `Locked` if the index is open or still read, `NotAnIndex` if a file is
    /// not Shardex's, and `UnsupportedVersion` if the format is not supported. Returns `Corruption` if a file is
    /// damaged, `Config` if an option is out of range or the storage can't serve the index's page size, and `Io` if the
    /// operating system refuses an operation. Returns `Inconsistent` if the flush of a recovery finds a contradiction.
    pub async fn open(path: impl AsRef<Path>) -> Result<Self> {
        Self::open_with(path, OpenOptions::default()).await
    }

    /// Opens an index with the given options and recovers from a crash.
    ///
    /// # Errors
    /// Returns the errors of [`open`](Self::open).
    pub async fn open_with(path: impl AsRef<Path>, options: OpenOptions) -> Result<Self> {
        Self::open_in(path, options, Env::system()).await
    }

    /// Opens an index with the given options and [environment](Env).
    ///
    /// # Errors
    /// Returns the errors of [`open`](Self::open).
    pub async fn open_in(path: impl AsRef<Path>, options: OpenOptions, env: Env) -> Result<Self> {
        let storage = MmapStorage::new(path.as_ref().to_path_buf());
        Self::start(storage.path(), options.clone(), env, move |env| Engine::open(storage, options, env)).await
    }
}

impl<S: Storage> Shardex<S> {
    /// Works like [`create`](Shardex::create), on any storage and with the given [environment](Env).
    ///
    /// # Errors
    /// Returns the errors of [`create`](Shardex::create).
    #[cfg(feature = "internals")]
    pub async fn create_on(storage: S, config: ShardexConfig, env: Env) -> Result<Self> {
        let options = config.options.clone();
        Self::start(storage.path(), options, env, move |env| Engine::create(storage, &config, env)).await
    }

    /// Works like [`open_in`](Shardex::open_in), on any storage. Returns the same errors.
    #[cfg(feature = "internals")]
    pub async fn open_on(storage: S, options: OpenOptions, env: Env) -> Result<Self> {
        Self::start(storage.path(), options.clone(), env, move |env| Engine::open(storage, options, env)).await
    }

    async fn start(
        path: PathBuf,
        options: OpenOptions,
        env: Env,
        make: impl FnOnce(&Env) -> Result<Engine<S>> + Send + 'static,
    ) -> Result<Self> {
        options.validate()?;
        let (executor, runtime) = (Arc::clone(&env.executor), Arc::clone(&env.runtime));
        let (default_recall, slow) = (options.default_recall, options.slow_search);
        let observer = Arc::new(Observer::new(&path, slow, Arc::clone(&env.clock)));
        let (queue, requests) = Queue::new(options.queue_size);
        let (opened, is_open) = Reply::new();
        let (taken, is_taken) = oneshot::channel();
        let stop = StopCause::default();
        let (stopped, of_writer) = (Arc::clone(&stop), Arc::clone(&runtime));
        let make = move || {
            // The thread starts before any file is made, because an index can't work without it.
            let syncer = Syncer::start(&of_writer)?;
            let engine = observer.open(|| make(&env))?;
            let shared = Arc::new(Shared {
                view: ArcSwapOption::new(Some(View::of(&engine))),
                path,
                closed: AtomicBool::new(false),
                snapshots: Snapshots::default(),
                stopped,
                context: Arc::new(SearchContext { executor, observer, clock: Arc::clone(&env.clock), default_recall }),
            });
            Ok((Writer::new(engine, Arc::clone(&shared), syncer, of_writer), shared))
        };
        let writer = spawn_writer(&*runtime, Arc::clone(&stop), async move {
            // If the caller has dropped the future, nothing is opened. If it drops the future before its handle exists,
            // the writer never runs.
            if opened.is_abandoned() {
                return;
            }
            match make() {
                Err(error) => opened.send(Err(error)),
                Ok((writer, shared)) => {
                    opened.send(Ok((shared, taken)));
                    if is_taken.await.is_ok() {
                        writer.run(requests).await;
                    }
                }
            }
        })?;
        let (shared, taken) = is_open.await.unwrap_or_else(|_| Err(stopped_by(&stop)))?;
        // No `await` may follow: from here on the handle keeps the index open.
        let _: std::result::Result<(), ()> = taken.send(());
        let writer = Mutex::new(Some(writer));
        Ok(Self { inner: Arc::new(Inner { queue: Some(queue), shared, writer }) })
    }

    async fn ask<T>(&self, command: impl FnOnce(Reply<T>) -> Command) -> Result<T> {
        let (reply, answer) = Reply::new();
        let shared = &self.inner.shared;
        let Some(queue) = &self.inner.queue else { return Err(shared.gone()) };
        queue.send(command(reply)).await.ok_or_else(|| shared.gone())?;
        answer.await.unwrap_or_else(|_| Err(shared.gone()))
    }

    /// Makes everything accepted before the call durable.
    ///
    /// Cost: one sync of the WAL, shared by all waiting callers, or none if everything is durable. It also waits for
    /// work that the writer does between two requests: a write, the stores, the check and the WAL sync of a flush, a
    /// quick check, and the first part of a full check. It doesn't wait for the data and root syncs of a flush (unless
    /// a write runs that flush itself, see [`add_postings`](Self::add_postings)), for the rest of a full check, or for a
    /// cell build.
    ///
    /// # Errors
    /// Returns `ReadOnly` if the open found no space to recover. Returns `OutOfSpace` or `Io` if a store fails. Accepted writes
    /// stay accepted: call again, or leave it to the timer unless durability is `Manual`. Returns `Io` if the sync fails, and
    /// `FileReplaced` if a file of the index was removed or replaced: both poison the handle. Returns `Poisoned` afterwards,
    /// and `Closed` if the handle is closed.
    pub async fn commit(&self) -> Result<()> {
        self.ask(Command::Commit).await
    }

    /// Makes everything accepted before the call durable in the shards, and frees the WAL that neither of the two
    /// retained roots needs: the part before the checkpoint of the previous flush.
    ///
    /// Cost: at most three syncs per flush, independently of the number of shards, or none if there is nothing to
    /// flush.
    ///
    /// # Errors
    /// Returns the errors of [`commit`](Self::commit), and `Inconsistent` if the flush's check finds a contradiction.
    pub async fn flush(&self) -> Result<FlushStats> {
        self.ask(Command::Flush).await
    }

    /// Rebuilds the cells from everything accepted before the call.
    ///
    /// Cells are small clusters of codes. They let a search scan a few thousand postings instead of all. A growing
    /// index builds them automatically in the background. After a large load this call gives the best cells at once.
    /// Writes and searches continue during the build.
    ///
    /// On `Ok` searches use the new cells, which are durable at the next flush. If cells don't pay, because exhaustive
    /// searches cost less, the result is `Ok` too: the index then has no cells, and searches are exhaustive.
    ///
    /// Cost: reads every vector several times, about 80 µs and 100 bytes of memory per posting of 384 dimensions on two
    /// cores.
    ///
    /// # Errors
    /// Returns `Corruption` if a vector is damaged, and `OutOfSpace` or `Io` if a store fails. The old cells stay in
    /// use then. Returns `Inconsistent`, `ReadOnly` or `Poisoned` as a write does, and `Closed` if the index is closed
    /// before or during the build. The close keeps the progress from the first complete k-means round on, if it flushes, and the next open
    /// resumes from it.
    pub async fn optimize(&self) -> Result<()> {
        self.ask(Command::Optimize).await
    }

    /// Returns statistics of the index, including the last background error, its age and whether it persists. Cost:
    /// proportional to the number of shards that changed since the last call. Reads no vector.
    ///
    /// # Errors
    /// Returns `Closed` if the handle is closed, `Poisoned` if the writer has died, and `Io` if a length can't be read.
    pub async fn stats(&self) -> Result<IndexStats> {
        self.ask(Command::Stats).await
    }

    /// Checks the index for contradictions.
    ///
    /// `Quick` compares counts and LSNs in memory. `Full` reads every byte in use, and compares WAL, roots, directory,
    /// shards, cells and free space. Unless durability is `Manual` it commits first. It reads metadata, the WAL, and what only the older root names
    /// while other calls wait, then vectors and codes on a thread of its own, while writes and flushes continue, and keeps all keys in memory. One full check or backup runs at a time.
    ///
    /// # Errors
    /// Returns `Io` if the disk can't be read, `Poisoned` if the writer has ended unexpectedly, and `Closed` if the index is
    /// closed before or during the check. Damage is a finding in the report, not an error.
    pub async fn check(&self, level: CheckLevel) -> Result<ConsistencyReport> {
        self.ask(|reply| Command::Check(level, reply)).await
    }

    /// Searches for the `k` nearest postings: in the `slop` nearest shards (see [`SearchOptions::slop`]), or with the
    /// configured target recall if `slop` is `None`.
    ///
    /// # Errors
    /// Returns the errors of [`search_with`](Self::search_with).
    pub async fn search(&self, query: &[f32], k: usize, slop: Option<usize>) -> Result<Vec<SearchResult>> {
        let options = SearchOptions { slop, ..SearchOptions::new(k) };
        Ok(self.search_with(query, &options).await?.results)
    }

    /// Searches for the nearest postings with the given options.
    ///
    /// The search sees everything accepted before the call, flushed or not, and never waits for the writer. After a
    /// failed sync it sees the state of the last completed flush (P5).
    ///
    /// Cost: with cells a few thousand codes and tens of distances. Without cells one distance per posting in the
    /// shards scanned, and one per shard if `slop` limits them. The search keeps the calling task to its end: run
    /// exhaustive searches of a large index on a thread that may block.
    ///
    /// # Errors
    /// Returns `InvalidDimension` or `InvalidVector` if the query is refused, and `InvalidArgument` if an option is out
    /// of range. Returns `Corruption` if a shard read for the first time since the open is damaged, and `Closed` if the
    /// handle is closed.
    pub async fn search_with(&self, query: &[f32], options: &SearchOptions) -> Result<SearchResponse> {
        self.view()?.search_with(query, options)
    }

    /// Searches for the nearest postings without copying the results.
    ///
    /// The hits are read in place. They pin their allocations, so these are not reused while the hits exist.
    ///
    /// # Errors
    /// Returns the errors of [`search_with`](Self::search_with).
    pub async fn search_in_place(&self, query: &[f32], options: &SearchOptions) -> Result<Hits<S::File>> {
        self.view()?.search_in_place(query, options)
    }

    /// Runs one search per query, all on the same snapshot, on all cores.
    ///
    /// See [`IndexSnapshot::search_many`]. It blocks the calling thread until all answers are computed. Call it from a
    /// blocking thread if the task must not block.
    ///
    /// # Errors
    /// Returns the errors of [`search_with`](Self::search_with), with the position of the first query that fails.
    pub async fn search_many<Q: AsRef<[f32]> + Sync>(
        &self,
        queries: &[Q],
        options: &SearchOptions,
    ) -> Result<Vec<SearchResponse>> {
        self.view()?.search_many(queries, options)
    }

    /// Runs one search per query, each with its own options. See [`IndexSnapshot::search_each`].
    ///
    /// # Errors
    /// Returns the errors of [`IndexSnapshot::search_each`], and `Closed` if the handle is closed.
    pub async fn search_each<Q: AsRef<[f32]> + Sync>(
        &self,
        queries: &[Q],
        options: &[SearchOptions],
    ) -> Result<Vec<SearchResponse>> {
        self.view()?.search_each(queries, options)
    }

    /// Runs one search per query on all cores, without copying the results.
    ///
    /// See [`IndexSnapshot::search_many_in_place`].
    ///
    /// # Errors
    /// Returns the errors of [`search_many`](Self::search_many).
    pub async fn search_many_in_place<Q: AsRef<[f32]> + Sync>(
        &self,
        queries: &[Q],
        options: &SearchOptions,
    ) -> Result<Vec<Hits<S::File>>> {
        self.view()?.search_many_in_place(queries, options)
    }

    /// Returns a snapshot of the index, for searches that must agree with each other.
    ///
    /// It contains everything accepted before the call and never changes. The call doesn't wait.
    ///
    /// # Errors
    /// Returns `Closed` if the handle is closed.
    pub async fn snapshot(&self) -> Result<IndexSnapshot<S>> {
        let snapshot = self.view()?;
        self.inner.shared.snapshots.note(&snapshot.snapshot);
        Ok(snapshot)
    }

    fn view(&self) -> Result<IndexSnapshot<S>> {
        let shared = &self.inner.shared;
        let view = shared.view.load_full().ok_or_else(|| shared.gone())?;
        let (snapshot, data) = (Arc::clone(&view.snapshot), Arc::clone(&view.data));
        Ok(IndexSnapshot::new(snapshot, data, Arc::clone(&shared.context)))
    }

    /// Closes the index: flushes, or commits if so configured, and writes the closing mark of the WAL.
    ///
    /// Every later call on any clone returns `Closed`. A full check, a backup and a cell build are cancelled. The close waits
    /// some milliseconds for them, beside its own commit and flush and the syncs of a flush under way. The progress of
    /// a cell build becomes durable with the close's flush, and the next open resumes from it. The index stays locked
    /// until the last snapshot and the last [`Hits`] are dropped.
    ///
    /// # Errors
    /// Returns the errors of [`flush`](Self::flush). The index is closed nevertheless, and the next open recovers. If
    /// the flush found no room for the shards, or a contradiction, everything accepted is committed. If that commit
    /// fails too, its error is returned.
    pub async fn close(&self) -> Result<()> {
        let closed = self.ask(Command::Close).await;
        let writer = self.inner.writer.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(writer) = writer {
            writer.join();
        }
        // The writer has done this already, unless it panicked.
        self.inner.shared.view.store(None);
        closed
    }
}

impl<S: Storage> Drop for Inner<S> {
    fn drop(&mut self) {
        // The writer ends when the queue is dropped. The lock is released once the writer has ended.
        self.queue = None;
        if let Some(writer) = self.writer.get_mut().unwrap_or_else(PoisonError::into_inner).take() {
            writer.join();
        }
    }
}
