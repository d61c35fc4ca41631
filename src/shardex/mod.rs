//! The async API. It decides nothing: a writer of its own drives the [`Engine`], searches run on snapshots.
//!
//! Invariants:
//! 1. One writer owns the engine; everything that changes it comes to that writer by one bounded queue.
//! 2. A snapshot is published before the write that it shows is answered.
//! 3. A request that reached the writer is carried out even if its caller is gone. An index that was opened for a caller
//!    who is gone is let go at once.

mod flushes;
mod jobs;
mod snapshot;
mod tasks;
mod timers;
mod writer;

use std::{
    ops::RangeInclusive,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use arc_swap::ArcSwapOption;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};

use crate::{
    config::{CheckLevel, OpenOptions, ShardexConfig},
    engine::{
        ConsistencyReport, Engine, Lent,
        stats::{FlushStats, IndexStats},
    },
    env::{Env, Executor},
    error::{Result, ShardexError},
    id::DocumentId,
    index::{Hits, Snapshot},
    posting::{Posting, SearchOptions, SearchResponse, SearchResult},
    runtime::{Runtime, Task},
    shard::DataFile,
    storage::{MmapStorage, Storage},
};

pub use snapshot::IndexSnapshot;
use tasks::{Stopped, Syncer, spawn_writer};
use writer::Writer;

type Reply<T> = oneshot::Sender<Result<T>>;

enum Command {
    Add(Vec<Posting>, Reply<()>),
    Remove(Vec<DocumentId>, Reply<u64>),
    RemoveRange(RangeInclusive<DocumentId>, Reply<u64>),
    Commit(Reply<()>),
    Flush(Reply<FlushStats>),
    Stats(Reply<IndexStats>),
    Check(CheckLevel, Reply<ConsistencyReport>),
    Optimize(Reply<()>),
    Close(Reply<()>),
}

impl Command {
    /// Whether it may wait for a flush.
    fn is_write(&self) -> bool {
        matches!(self, Self::Add(..) | Self::Remove(..) | Self::RemoveRange(..))
    }
}

/// A call on its way, and its place in the queue.
struct Request {
    command: Command,
    slot: OwnedSemaphorePermit,
}

/// The way to the writer. Writes have places of their own, for they may have to wait there for a flush: others do not wait
/// behind them.
struct Queue {
    requests: mpsc::UnboundedSender<Request>,
    writes: Arc<Semaphore>,
    others: Arc<Semaphore>,
}

impl Queue {
    fn new(size: usize) -> (Self, mpsc::UnboundedReceiver<Request>) {
        let (requests, receiver) = mpsc::unbounded_channel();
        let slots = || Arc::new(Semaphore::new(size.min(Semaphore::MAX_PERMITS)));
        (Self { requests, writes: slots(), others: slots() }, receiver)
    }

    /// Waits for a place; `None` if the writer is gone.
    async fn send(&self, command: Command) -> Option<()> {
        let slots = if command.is_write() { &self.writes } else { &self.others };
        let slot = Arc::clone(slots).acquire_owned().await.ok()?;
        self.requests.send(Request { command, slot }).ok()
    }
}

/// What searches need of the engine.
struct Shared<S: Storage> {
    /// `None` from the close on: a closed handle holds no byte of the index, and so not its lock.
    view: ArcSwapOption<View<S>>,
    path: PathBuf,
    options: OpenOptions,
    closed: AtomicBool,
    stopped: Stopped,
    executor: Arc<dyn Executor>,
}

impl<S: Storage> Shared<S> {
    /// Why nobody answers any more.
    fn gone(&self) -> ShardexError {
        if self.closed.load(Ordering::Acquire) { ShardexError::Closed } else { stopped_by(&self.stopped) }
    }
}

/// What a search reads: a state of the index, and the file that its bytes are in.
struct View<S: Storage> {
    snapshot: Arc<Snapshot<Lent<S>>>,
    data: Arc<DataFile<S::File>>,
}

impl<S: Storage> View<S> {
    /// The state that the engine has published.
    fn of(engine: &Engine<S>) -> Arc<Self> {
        Arc::new(Self { snapshot: engine.snapshot(), data: Arc::clone(engine.data()) })
    }
}

/// A handle on an open index. Clones share it; the last one to be dropped lets the index go.
///
/// All calls may come from any task at once. Searches never wait for writes. A write waits for a flush only once as much
/// came in behind it as [`flush_wal_bytes`](OpenOptions::flush_wal_bytes) says; no other call waits for either. A call whose
/// future is dropped before it is queued is not carried out; afterwards it is, once and whole, though nobody hears of it.
///
/// A commit or flush in the background that fails for another reason than a sync is tried again by itself, until it
/// succeeds. While it fails [`stats`](Self::stats) shows the error, and writes go on until more is undurable than
/// [`max_undurable_ms`](OpenOptions::max_undurable_ms) or [`max_undurable_bytes`](OpenOptions::max_undurable_bytes) allow.
///
/// Dropping the last handle without [`close`](Self::close) tries a last commit, unless durability is `Manual`, and
/// releases the lock; it may block for the syncs of that commit and of a flush. Cells that are being made are given up, but
/// what of them was reached is flushed, unless durability is `Manual`.
///
/// Dropping the future of an open or a `create` lets the index go, as soon as the step under way is done.
///
/// A [snapshot](IndexSnapshot) or [`Hits`] that outlives the handle stays readable, whatever became of the handle, and keeps
/// the index locked: an open meanwhile gets [`Locked`](ShardexError::Locked), which says that a reader holds it. A child that
/// the process forks shares the lock, and holds it until it has ended or become another program; it must not use the handle.
pub struct Shardex<S: Storage = MmapStorage> {
    inner: Arc<Inner<S>>,
}

struct Inner<S: Storage> {
    /// `None` only while dropping.
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
        Self::open_in(path, options, Env::system()).await
    }

    /// [`open_with`](Self::open_with), with the clock and the threads of searches handed in.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub async fn open_in(path: impl AsRef<Path>, options: OpenOptions, env: Env) -> Result<Self> {
        Self::open_on(MmapStorage::new(path.as_ref().to_path_buf()), options, env).await
    }
}

impl<S: Storage> Shardex<S> {
    /// [`create`](Shardex::create) on another storage, with the clock and the index id handed in.
    ///
    /// # Errors
    /// As [`create`](Shardex::create).
    pub async fn create_on(storage: S, config: ShardexConfig, env: Env) -> Result<Self> {
        let options = config.options.clone();
        let parallel = (Arc::clone(&env.executor), Arc::clone(&env.runtime));
        Self::start(options, parallel, move || Engine::create(storage, &config, &env)).await
    }

    /// [`open_with`](Shardex::open_with) on another storage.
    ///
    /// # Errors
    /// As [`open`](Shardex::open).
    pub async fn open_on(storage: S, options: OpenOptions, env: Env) -> Result<Self> {
        let parallel = (Arc::clone(&env.executor), Arc::clone(&env.runtime));
        Self::start(options.clone(), parallel, move || Engine::open(storage, options, &env)).await
    }

    async fn start(
        options: OpenOptions,
        (executor, runtime): (Arc<dyn Executor>, Arc<dyn Runtime>),
        make: impl FnOnce() -> Result<Engine<S>> + Send + 'static,
    ) -> Result<Self> {
        options.validate()?;
        let (queue, requests) = Queue::new(options.queue_size);
        let (opened, is_open) = oneshot::channel();
        let (taken, is_taken) = oneshot::channel();
        let stop = Stopped::default();
        let (stopped, of_writer) = (Arc::clone(&stop), Arc::clone(&runtime));
        let make = move || {
            // Before anything is made: without this thread there is no index.
            let syncer = Syncer::start(&of_writer)?;
            let engine = make()?;
            let shared = Arc::new(Shared {
                view: ArcSwapOption::new(Some(View::of(&engine))),
                path: engine.storage().path(),
                options: engine.options().clone(),
                closed: AtomicBool::new(false),
                stopped,
                executor,
            });
            Ok((Writer::new(engine, Arc::clone(&shared), syncer, of_writer), shared))
        };
        let writer = spawn_writer(&*runtime, Arc::clone(&stop), async move {
            // Nobody may be left who wants it, before it is open or before its handle is made: then nothing is begun.
            if opened.is_closed() {
                return;
            }
            match make() {
                Err(error) => drop(opened.send(Err(error))),
                Ok((writer, shared)) => {
                    if opened.send(Ok((shared, taken))).is_ok() && is_taken.await.is_ok() {
                        writer.run(requests).await;
                    }
                }
            }
        })?;
        let (shared, taken) = is_open.await.unwrap_or_else(|_| Err(stopped_by(&stop)))?;
        // Without an await after this: from here on the handle is what keeps the index open.
        let _: std::result::Result<(), ()> = taken.send(());
        let writer = Mutex::new(Some(writer));
        Ok(Self { inner: Arc::new(Inner { queue: Some(queue), shared, writer }) })
    }

    async fn ask<T>(&self, command: impl FnOnce(Reply<T>) -> Command) -> Result<T> {
        let (reply, answer) = oneshot::channel();
        let shared = &self.inner.shared;
        let Some(queue) = &self.inner.queue else { return Err(shared.gone()) };
        queue.send(command(reply)).await.ok_or_else(|| shared.gone())?;
        answer.await.unwrap_or_else(|_| Err(shared.gone()))
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
    /// the batch accepted. `Undurable` while commits or flushes in the background fail and more is undurable than the
    /// options allow: nothing has changed, and writes go on once a commit succeeds. `Poisoned`, `Closed`.
    pub async fn add_postings(&self, postings: Vec<Posting>) -> Result<()> {
        self.ask(|reply| Command::Add(postings, reply)).await
    }

    /// Removes all postings of some documents, and returns how many there were. Unknown documents have none, and cost no log.
    ///
    /// Cost: a lookup in the bloom filters per document, and a look at the posting records that are found.
    ///
    /// # Errors
    /// As [`add_postings`](Self::add_postings).
    pub async fn remove_documents(&self, document_ids: Vec<DocumentId>) -> Result<u64> {
        self.ask(|reply| Command::Remove(document_ids, reply)).await
    }

    /// Removes all postings of the documents whose ids are in a range, all or none, and returns how many there were. An empty
    /// range has none.
    ///
    /// Cost: grows with the postings of the index and not with the range; the log gets the ids that were found.
    ///
    /// # Errors
    /// As [`add_postings`](Self::add_postings); `BatchTooLarge` if the log cannot hold the ids that were found: give smaller
    /// ranges.
    pub async fn remove_document_range(&self, documents: RangeInclusive<DocumentId>) -> Result<u64> {
        self.ask(|reply| Command::RemoveRange(documents, reply)).await
    }

    /// Makes everything accepted before it durable: one sync of the WAL, shared by all who wait for one; none if
    /// nothing is to be made durable. Waits for no flush and no check.
    ///
    /// # Errors
    /// `OutOfSpace`, `Io` from a store: what was accepted stays accepted; call again, or leave it to the timer unless
    /// durability is `Manual`. While commits in the background fail this fails for the same reason. An `Io` of a sync
    /// poisons the handle. `Poisoned`, `Closed`.
    pub async fn commit(&self) -> Result<()> {
        self.ask(Command::Commit).await
    }

    /// Makes everything accepted before it durable in the shards, and lets the WAL go. At most three syncs, whatever the
    /// number of shards; none if there is nothing to flush.
    ///
    /// # Errors
    /// As [`commit`](Self::commit), and while flushes in the background fail for the same reason as they do;
    /// `Inconsistent` if the check of the flush finds a contradiction.
    pub async fn flush(&self) -> Result<FlushStats> {
        self.ask(Command::Flush).await
    }

    /// Makes the cells anew, from everything accepted before: small groups of codes that let a search look at a few
    /// thousand postings instead of all. An index makes them by itself while it grows, in the background; after a large
    /// load this is the way to have them at their best at once. Writes and searches go on meanwhile.
    ///
    /// On `Ok` searches use them; they are durable with the next flush. Cost: reads every vector several times, some
    /// eighty microseconds a posting of 384 dimensions on two cores.
    ///
    /// # Errors
    /// `Corruption` if a vector is damaged, `OutOfSpace`, `Io`: the cells are as they were. `Poisoned`; `Closed`, also if the
    /// index is closed meanwhile: the next open goes on from where this came to, unless there were cells before.
    pub async fn optimize(&self) -> Result<()> {
        self.ask(Command::Optimize).await
    }

    /// Figures of the index as it is now, and the last error of background work, with how long ago it began and whether it
    /// lasts. Cost: O(shards); no vector is read.
    ///
    /// # Errors
    /// `Closed`, `Io`.
    pub async fn stats(&self) -> Result<IndexStats> {
        self.ask(Command::Stats).await
    }

    /// Looks for contradictions between WAL, shards, index and free space. `Quick` reads no vector, `Full` every byte
    /// that the index holds as it is now: the metadata and the WAL while other calls wait, after a commit for those that
    /// wait for one; vectors and codes beside writes, commits and flushes, on a thread of its own. Of full checks one runs
    /// at a time.
    ///
    /// # Errors
    /// `Io`; `Closed`, also if the index is closed meanwhile. Damage is a finding in the report, not an error.
    pub async fn check(&self, level: CheckLevel) -> Result<ConsistencyReport> {
        self.ask(|reply| Command::Check(level, reply)).await
    }

    /// Finds the `k` nearest postings, as many looked at as `slop` shards hold; `None` looks for the configured recall.
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
    /// task; cost: some thousand codes and some ten distances where there are cells, else one distance per shard and per posting
    /// of the shards scanned.
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
        self.view()?.search_in_place(query, options)
    }

    /// One search for each query, all of the same state of the index, on all cores: see
    /// [`IndexSnapshot::search_many`]. It keeps the calling thread busy until all answers are there; where that is not
    /// wanted, call it from a thread for blocking work.
    ///
    /// # Errors
    /// As [`search_with`](Self::search_with), with the position of the first query that fails.
    pub async fn search_many<Q: AsRef<[f32]> + Sync>(
        &self,
        queries: &[Q],
        options: &SearchOptions,
    ) -> Result<Vec<SearchResponse>> {
        self.view()?.search_many(queries, options)
    }

    /// The same, the answers to be read where they lie: [`IndexSnapshot::search_many_in_place`].
    ///
    /// # Errors
    /// As [`search_many`](Self::search_many).
    pub async fn search_many_in_place<Q: AsRef<[f32]> + Sync>(
        &self,
        queries: &[Q],
        options: &SearchOptions,
    ) -> Result<Vec<Hits<S::File>>> {
        self.view()?.search_many_in_place(queries, options)
    }

    /// The index as it is now, for searches that must agree with each other: it holds everything accepted before the call,
    /// and stays as it is. Waits for nobody.
    ///
    /// # Errors
    /// `Closed`.
    pub async fn snapshot(&self) -> Result<IndexSnapshot<S>> {
        self.view()
    }

    fn view(&self) -> Result<IndexSnapshot<S>> {
        let shared = &self.inner.shared;
        let view = shared.view.load_full().ok_or_else(|| shared.gone())?;
        let (snapshot, data) = (Arc::clone(&view.snapshot), Arc::clone(&view.data));
        let recall = shared.options.default_recall;
        Ok(IndexSnapshot::new(snapshot, data, Arc::clone(&shared.executor), recall))
    }

    /// Flushes (or commits, if so configured), marks the end of the WAL, and lets the index go. Every further call on any
    /// clone gets `Closed`. A full check and cells that are being made are given up: beyond its own commit, flush and syncs,
    /// and those of a flush under way, a close waits some milliseconds for them. What of the cells was reached is flushed
    /// too, and the next open goes on from there.
    /// The index is locked until the last snapshot and the last [`Hits`] are dropped, too.
    ///
    /// # Errors
    /// As [`flush`](Self::flush): the index is let go all the same, and the next open recovers. If the flush found no room
    /// for the shards, or a contradiction, everything accepted was committed; if the commit failed too, its error is
    /// returned.
    pub async fn close(&self) -> Result<()> {
        let closed = self.ask(Command::Close).await;
        let writer = self.inner.writer.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(writer) = writer {
            writer.join();
        }
        // The writer has done so, unless it has panicked.
        self.inner.shared.view.store(None);
        closed
    }
}

impl<S: Storage> Drop for Inner<S> {
    fn drop(&mut self) {
        // The writer ends when the queue does; the lock is free when it has ended.
        self.queue = None;
        if let Some(writer) = self.writer.get_mut().unwrap_or_else(PoisonError::into_inner).take() {
            writer.join();
        }
    }
}

/// The writer is gone, and nobody closed it.
fn stopped_by(stopped: &OnceLock<ShardexError>) -> ShardexError {
    let unexpected = || ShardexError::Poisoned { cause: "the writer stopped unexpectedly".into() };
    stopped.get().cloned().unwrap_or_else(unexpected)
}
