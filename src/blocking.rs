//! The API for programs without an async runtime: each call blocks its thread until it is done.
//!
//! ```
//! use shardex::{DocumentId, Posting, PostingKey, ShardexConfig, blocking::Shardex};
//!
//! # let dir = tempfile::tempdir().unwrap();
//! # let path = dir.path().join("index");
//! let index = Shardex::create(ShardexConfig::new(&path).vector_size(3))?;
//! let vector = vec![0.1, 0.2, 0.3];
//! index.add_postings(vec![Posting::new(PostingKey::new(7u32, 0, 42), vector)])?;
//! index.commit()?; // durable from here on
//! assert_eq!(index.search(&[0.1, 0.2, 0.25], 10, None)?[0].document_id, DocumentId(7));
//! index.close()?;
//! # Ok::<(), shardex::ShardexError>(())
//! ```
//!
//! A handle and the async [`Shardex`](crate::Shardex) share one index: [`From`] converts in both directions. Writes of several
//! threads share one sync, as those of several tasks do.

use std::{
    ops::RangeInclusive,
    path::Path,
    pin::pin,
    sync::Arc,
    task::{Context, Poll, Wake, Waker},
    thread::{self, Thread},
    time::Duration,
};

use crate::{
    batch::{WriteBatch, Written},
    config::{CheckLevel, OpenOptions, ShardexConfig},
    engine::{
        BackupStats, ConsistencyReport, VerifyStats,
        stats::{CompactionStats, FlushStats, IndexStats, PurgeStats},
    },
    env::Env,
    error::Result,
    id::{DocumentId, PostingKey},
    index::Hits,
    posting::{Posting, SearchOptions, SearchResponse, SearchResult},
    shardex::{BackupOptions, IndexSnapshot, Shardex as AsyncShardex},
    storage::{MmapStorage, Storage},
};

/// Waker that unparks a thread.
struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// Runs a future of this library to its end on the calling thread. Its wake-ups come from the index's own threads.
fn block_on<F: Future>(future: F) -> F::Output {
    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    let mut context = Context::from_waker(&waker);
    let mut future = pin!(future);
    loop {
        match future.as_mut().poll(&mut context) {
            Poll::Ready(output) => return output,
            Poll::Pending => thread::park(),
        }
    }
}

/// Blocking handle on an open index.
///
/// Clones share the index, and calls may come from any thread. Each method does what the method of the same name of the async
/// [`Shardex`](crate::Shardex) does, and returns the same errors.
///
/// In a task of an async runtime these calls block the runtime's thread. Use the async handle there: `From` converts a
/// handle of either kind into the other.
pub struct Shardex<S: Storage = MmapStorage> {
    inner: AsyncShardex<S>,
}

impl<S: Storage> Clone for Shardex<S> {
    fn clone(&self) -> Self {
        Self { inner: self.inner.clone() }
    }
}

impl<S: Storage> std::fmt::Debug for Shardex<S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.inner.fmt(f)
    }
}

impl<S: Storage> From<AsyncShardex<S>> for Shardex<S> {
    fn from(inner: AsyncShardex<S>) -> Self {
        Self { inner }
    }
}

impl<S: Storage> From<Shardex<S>> for AsyncShardex<S> {
    fn from(blocking: Shardex<S>) -> Self {
        blocking.inner
    }
}

impl Shardex {
    /// Creates an index, or opens the existing one if its configuration is equal. See
    /// [`create`](crate::Shardex::create).
    ///
    /// # Errors
    /// Returns those of [`create`](crate::Shardex::create).
    pub fn create(config: ShardexConfig) -> Result<Self> {
        block_on(AsyncShardex::create(config)).map(Self::from)
    }

    /// Opens an index with default options, and recovers it after a crash. See [`open`](crate::Shardex::open).
    ///
    /// # Errors
    /// Returns those of [`open`](crate::Shardex::open).
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        block_on(AsyncShardex::open(path)).map(Self::from)
    }

    /// Opens an index with these options. See [`open_with`](crate::Shardex::open_with).
    ///
    /// # Errors
    /// Returns those of [`open`](crate::Shardex::open).
    pub fn open_with(path: impl AsRef<Path>, options: OpenOptions) -> Result<Self> {
        block_on(AsyncShardex::open_with(path, options)).map(Self::from)
    }

    /// Opens an index in an environment: clock, executor, runtime and cell policy. See [`open_in`](crate::Shardex::open_in).
    ///
    /// # Errors
    /// Returns those of [`open`](crate::Shardex::open).
    pub fn open_in(path: impl AsRef<Path>, options: OpenOptions, env: Env) -> Result<Self> {
        block_on(AsyncShardex::open_in(path, options, env)).map(Self::from)
    }

    /// Restores an index from a backup. See [`restore`](crate::Shardex::restore).
    ///
    /// # Errors
    /// Returns those of [`restore`](crate::Shardex::restore).
    pub fn restore(from: impl AsRef<Path>, to: impl AsRef<Path>) -> Result<VerifyStats> {
        block_on(AsyncShardex::restore(from, to))
    }

    /// Verifies a backup. See [`verify_backup`](crate::Shardex::verify_backup).
    ///
    /// # Errors
    /// Returns those of [`verify_backup`](crate::Shardex::verify_backup).
    pub fn verify_backup(directory: impl AsRef<Path>) -> Result<VerifyStats> {
        block_on(AsyncShardex::verify_backup(directory))
    }
}

impl<S: Storage> Shardex<S> {
    /// Carries out a batch of operations, all or none. See [`write`](crate::Shardex::write).
    ///
    /// # Errors
    /// Returns those of [`write`](crate::Shardex::write).
    pub fn write(&self, batch: WriteBatch) -> Result<Written> {
        block_on(self.inner.write(batch))
    }

    /// Returns the cursor after the last accepted batch. See [`cursor`](crate::Shardex::cursor).
    ///
    /// # Errors
    /// Returns those of [`cursor`](crate::Shardex::cursor).
    pub fn cursor(&self) -> Result<Vec<u8>> {
        block_on(self.inner.cursor())
    }

    /// Returns the cursor that no crash can undo. See [`durable_cursor`](crate::Shardex::durable_cursor).
    ///
    /// # Errors
    /// Returns those of [`cursor`](crate::Shardex::cursor).
    pub fn durable_cursor(&self) -> Result<Vec<u8>> {
        block_on(self.inner.durable_cursor())
    }

    /// Returns the payload of a document. See [`payload`](crate::Shardex::payload).
    ///
    /// # Errors
    /// Returns those of [`payload`](crate::Shardex::payload).
    pub fn payload(&self, document: DocumentId) -> Result<Option<Vec<u8>>> {
        block_on(self.inner.payload(document))
    }

    /// Adds postings, all or none. See [`add_postings`](crate::Shardex::add_postings).
    ///
    /// # Errors
    /// Returns those of [`add_postings`](crate::Shardex::add_postings).
    pub fn add_postings(&self, postings: Vec<Posting>) -> Result<()> {
        block_on(self.inner.add_postings(postings))
    }

    /// Removes all postings of some documents, and returns the number of removed postings. See
    /// [`remove_documents`](crate::Shardex::remove_documents).
    ///
    /// # Errors
    /// Returns those of [`remove_documents`](crate::Shardex::remove_documents).
    pub fn remove_documents(&self, document_ids: Vec<DocumentId>) -> Result<u64> {
        block_on(self.inner.remove_documents(document_ids))
    }

    /// Removes all postings of the documents in a range of ids, and returns the number of removed postings. See
    /// [`remove_document_range`](crate::Shardex::remove_document_range).
    ///
    /// # Errors
    /// Returns those of [`remove_document_range`](crate::Shardex::remove_document_range).
    pub fn remove_document_range(&self, documents: RangeInclusive<DocumentId>) -> Result<u64> {
        block_on(self.inner.remove_document_range(documents))
    }

    /// Returns all postings of a document. See [`get`](crate::Shardex::get).
    ///
    /// # Errors
    /// Returns those of [`get`](crate::Shardex::get).
    pub fn get(&self, document: DocumentId) -> Result<Vec<Posting>> {
        block_on(self.inner.get(document))
    }

    /// Returns the posting with a key. See [`get_posting`](crate::Shardex::get_posting).
    ///
    /// # Errors
    /// Returns those of [`get`](crate::Shardex::get).
    pub fn get_posting(&self, key: PostingKey) -> Result<Option<Posting>> {
        block_on(self.inner.get_posting(key))
    }

    /// Reports whether a document has a posting. See [`contains`](crate::Shardex::contains).
    ///
    /// # Errors
    /// Returns those of [`get`](crate::Shardex::get).
    pub fn contains(&self, document: DocumentId) -> Result<bool> {
        block_on(self.inner.contains(document))
    }

    /// Returns the number of postings of a document. See [`count`](crate::Shardex::count).
    ///
    /// # Errors
    /// Returns those of [`get`](crate::Shardex::get).
    pub fn count(&self, document: DocumentId) -> Result<u64> {
        block_on(self.inner.count(document))
    }

    /// Makes everything accepted before durable. See [`commit`](crate::Shardex::commit).
    ///
    /// # Errors
    /// Returns those of [`commit`](crate::Shardex::commit).
    pub fn commit(&self) -> Result<()> {
        block_on(self.inner.commit())
    }

    /// Makes everything accepted before the call durable in the shards. See [`flush`](crate::Shardex::flush).
    ///
    /// # Errors
    /// Returns those of [`flush`](crate::Shardex::flush).
    pub fn flush(&self) -> Result<FlushStats> {
        block_on(self.inner.flush())
    }

    /// Gives back the space of removed postings. See [`compact`](crate::Shardex::compact).
    ///
    /// # Errors
    /// Returns those of [`compact`](crate::Shardex::compact).
    pub fn compact(&self) -> Result<CompactionStats> {
        block_on(self.inner.compact())
    }

    /// Erases the bytes of removed postings and payloads from all files. See [`purge`](crate::Shardex::purge).
    ///
    /// # Errors
    /// Returns those of [`purge`](crate::Shardex::purge).
    pub fn purge(&self, wait: Duration) -> Result<PurgeStats> {
        block_on(self.inner.purge(wait))
    }

    /// Makes a backup in a missing or empty directory. See [`backup_to`](crate::Shardex::backup_to).
    ///
    /// # Errors
    /// Returns those of [`backup_with`](crate::Shardex::backup_with).
    pub fn backup_to(&self, directory: impl AsRef<Path>) -> Result<BackupStats> {
        block_on(self.inner.backup_to(directory))
    }

    /// Makes a backup with these options. See [`backup_with`](crate::Shardex::backup_with).
    ///
    /// # Errors
    /// Returns those of [`backup_with`](crate::Shardex::backup_with).
    pub fn backup_with(&self, directory: impl AsRef<Path>, options: &BackupOptions) -> Result<BackupStats> {
        block_on(self.inner.backup_with(directory, options))
    }

    /// Rebuilds the cells from everything accepted before. See [`optimize`](crate::Shardex::optimize).
    ///
    /// # Errors
    /// Returns those of [`optimize`](crate::Shardex::optimize).
    pub fn optimize(&self) -> Result<()> {
        block_on(self.inner.optimize())
    }

    /// Returns the statistics of the index. See [`stats`](crate::Shardex::stats).
    ///
    /// # Errors
    /// Returns those of [`stats`](crate::Shardex::stats).
    pub fn stats(&self) -> Result<IndexStats> {
        block_on(self.inner.stats())
    }

    /// Checks the consistency of the index. See [`check`](crate::Shardex::check).
    ///
    /// # Errors
    /// Returns those of [`check`](crate::Shardex::check).
    pub fn check(&self, level: CheckLevel) -> Result<ConsistencyReport> {
        block_on(self.inner.check(level))
    }

    /// Finds the `k` nearest postings. See [`search`](crate::Shardex::search).
    ///
    /// # Errors
    /// Returns those of [`search`](crate::Shardex::search).
    pub fn search(&self, query: &[f32], k: usize, slop: Option<usize>) -> Result<Vec<SearchResult>> {
        block_on(self.inner.search(query, k, slop))
    }

    /// Finds the nearest postings with these options. See [`search_with`](crate::Shardex::search_with).
    ///
    /// # Errors
    /// Returns those of [`search_with`](crate::Shardex::search_with).
    pub fn search_with(&self, query: &[f32], options: &SearchOptions) -> Result<SearchResponse> {
        block_on(self.inner.search_with(query, options))
    }

    /// Finds the nearest postings without copying them. See [`search_in_place`](crate::Shardex::search_in_place).
    ///
    /// # Errors
    /// Returns those of [`search_with`](crate::Shardex::search_with).
    pub fn search_in_place(&self, query: &[f32], options: &SearchOptions) -> Result<Hits<S::File>> {
        block_on(self.inner.search_in_place(query, options))
    }

    /// Runs one search per query on all cores. See [`search_many`](crate::Shardex::search_many).
    ///
    /// # Errors
    /// Returns those of [`search_many`](crate::Shardex::search_many).
    pub fn search_many<Q: AsRef<[f32]> + Sync>(
        &self,
        queries: &[Q],
        options: &SearchOptions,
    ) -> Result<Vec<SearchResponse>> {
        block_on(self.inner.search_many(queries, options))
    }

    /// Runs one search per query, each with its own options. See [`search_each`](crate::Shardex::search_each).
    ///
    /// # Errors
    /// Returns those of [`search_each`](crate::Shardex::search_each).
    pub fn search_each<Q: AsRef<[f32]> + Sync>(
        &self,
        queries: &[Q],
        options: &[SearchOptions],
    ) -> Result<Vec<SearchResponse>> {
        block_on(self.inner.search_each(queries, options))
    }

    /// Finds the nearest postings to a stored one. See [`search_like`](crate::Shardex::search_like).
    ///
    /// # Errors
    /// Returns those of [`search_like`](crate::Shardex::search_like).
    pub fn search_like(&self, posting: PostingKey, options: &SearchOptions) -> Result<SearchResponse> {
        block_on(self.inner.search_like(posting, options))
    }

    /// Finds the nearest postings to a stored document. See
    /// [`search_like_document`](crate::Shardex::search_like_document).
    ///
    /// # Errors
    /// Returns those of [`search_like_document`](crate::Shardex::search_like_document).
    pub fn search_like_document(&self, document: DocumentId, options: &SearchOptions) -> Result<SearchResponse> {
        block_on(self.inner.search_like_document(document, options))
    }

    /// Runs one search per query on all cores, without copying the results. See
    /// [`search_many_in_place`](crate::Shardex::search_many_in_place).
    ///
    /// # Errors
    /// Returns those of [`search_many`](crate::Shardex::search_many).
    pub fn search_many_in_place<Q: AsRef<[f32]> + Sync>(
        &self,
        queries: &[Q],
        options: &SearchOptions,
    ) -> Result<Vec<Hits<S::File>>> {
        block_on(self.inner.search_many_in_place(queries, options))
    }

    /// Returns an immutable view of the index, whose searches block, too. See [`snapshot`](crate::Shardex::snapshot).
    ///
    /// # Errors
    /// Returns those of [`snapshot`](crate::Shardex::snapshot).
    pub fn snapshot(&self) -> Result<IndexSnapshot<S>> {
        block_on(self.inner.snapshot())
    }

    /// Flushes (or commits, if so configured) and closes the index for all clones. See
    /// [`close`](crate::Shardex::close).
    ///
    /// # Errors
    /// Returns those of [`close`](crate::Shardex::close).
    pub fn close(&self) -> Result<()> {
        block_on(self.inner.close())
    }
}
