//! A view of an index that does not change, for searches that must agree with each other.

use std::sync::Arc;

use crate::{
    engine::{Lent, batch},
    env::{Executor, Inline},
    error::Result,
    id::Lsn,
    index::{self, Breadth, Hits, Snapshot},
    posting::{SearchOptions, SearchResponse, SearchResult},
    shard::DataFile,
    storage::{MmapStorage, Storage},
};

/// An index as it was after some write. All searches of it give the same answers, whatever is written meanwhile.
///
/// Taking one waits for nobody and copies nothing. As long as it lives the places it reads from are not used again, so
/// one that is kept for long makes the data file grow: `IndexStats::held_by_readers_bytes` says by how much. It stays
/// readable after the index is closed, and keeps it locked: an open before the snapshot is dropped gets
/// [`Locked`](crate::ShardexError::Locked).
pub struct IndexSnapshot<S: Storage = MmapStorage> {
    snapshot: Arc<Snapshot<Lent<S>>>,
    data: Arc<DataFile<S::File>>,
    executor: Arc<dyn Executor>,
    /// The recall of searches that name none.
    default_recall: f32,
}

impl<S: Storage> Clone for IndexSnapshot<S> {
    fn clone(&self) -> Self {
        Self {
            snapshot: Arc::clone(&self.snapshot),
            data: Arc::clone(&self.data),
            executor: Arc::clone(&self.executor),
            default_recall: self.default_recall,
        }
    }
}

impl<S: Storage> std::fmt::Debug for IndexSnapshot<S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("IndexSnapshot").field("lsn", &self.lsn()).field("postings", &self.len()).finish_non_exhaustive()
    }
}

impl<S: Storage> IndexSnapshot<S> {
    pub(super) fn new(
        snapshot: Arc<Snapshot<Lent<S>>>,
        data: Arc<DataFile<S::File>>,
        executor: Arc<dyn Executor>,
        default_recall: f32,
    ) -> Self {
        Self { snapshot, data, executor, default_recall }
    }

    /// The last write it holds.
    #[must_use]
    pub fn lsn(&self) -> Lsn {
        self.snapshot.lsn
    }

    /// Postings in it.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.snapshot.live
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Finds the `k` nearest postings, as many looked at as `slop` shards hold; `None` looks for the configured recall.
    ///
    /// # Errors
    /// As [`search_in_place`](Self::search_in_place).
    pub fn search(&self, query: &[f32], k: usize, slop: Option<usize>) -> Result<Vec<SearchResult>> {
        let options = SearchOptions { slop, ..SearchOptions::new(k) };
        Ok(self.search_with(query, &options)?.results)
    }

    /// Finds the nearest postings, and copies them out.
    ///
    /// # Errors
    /// As [`search_in_place`](Self::search_in_place).
    pub fn search_with(&self, query: &[f32], options: &SearchOptions) -> Result<SearchResponse> {
        Ok(self.search_in_place(query, options)?.to_response())
    }

    /// Finds the nearest postings, to be read where they lie. Runs on the calling thread, and from 128 shards to scan on,
    /// as an exact search of a large index does, on all cores; cost: one distance per shard, and one per posting in the
    /// shards scanned.
    ///
    /// # Errors
    /// `InvalidDimension`, `InvalidVector`, `InvalidArgument`; `Corruption` if a shard that is read for the first time
    /// since the open is damaged.
    pub fn search_in_place(&self, query: &[f32], options: &SearchOptions) -> Result<Hits<S::File>> {
        batch::search_options(options)?;
        self.find(&*self.executor, (0, query), options)
    }

    /// One search for each query, on all cores: the answers come in the order of the queries, and are those of
    /// [`search_with`](Self::search_with). Blocks the calling thread until all are there.
    ///
    /// # Errors
    /// As [`search_in_place`](Self::search_in_place), for the first query that fails; `index` is its position.
    pub fn search_many<Q: AsRef<[f32]> + Sync>(
        &self,
        queries: &[Q],
        options: &SearchOptions,
    ) -> Result<Vec<SearchResponse>> {
        self.answer_many(queries, options, |hits| hits.to_response())
    }

    /// The same, the answers to be read where they lie: to copy ten vectors of 384 components is about a tenth of what a
    /// query takes.
    ///
    /// # Errors
    /// As [`search_many`](Self::search_many).
    pub fn search_many_in_place<Q: AsRef<[f32]> + Sync>(
        &self,
        queries: &[Q],
        options: &SearchOptions,
    ) -> Result<Vec<Hits<S::File>>> {
        self.answer_many(queries, options, |hits| hits)
    }

    fn answer_many<Q: AsRef<[f32]> + Sync, T: Send + Sync>(
        &self,
        queries: &[Q],
        options: &SearchOptions,
        answer: impl Fn(Hits<S::File>) -> T + Sync,
    ) -> Result<Vec<T>> {
        batch::search_options(options)?;
        let answers: Vec<std::sync::OnceLock<Result<T>>> = queries.iter().map(|_| Default::default()).collect();
        // Queries that are near each other scan the same cells, and read the same vectors, while these are at hand.
        const TOGETHER: usize = 16;
        let order = index::in_order_of_place(&self.snapshot, self.data.geometry(), queries);
        self.executor.for_each(order.len().div_ceil(TOGETHER), &|chunk| {
            for &i in order.iter().skip(chunk * TOGETHER).take(TOGETHER) {
                // Each number is given out once.
                drop(answers[i].set(self.find(&Inline, (i, queries[i].as_ref()), options).map(&answer)));
            }
        });
        let answered =
            |answer: std::sync::OnceLock<_>| answer.into_inner().unwrap_or_else(|| unreachable!("all were done"));
        answers.into_iter().map(answered).collect()
    }

    /// Reads and checks all that searches may read, on all cores, so that none of them is the first to: useful before
    /// measuring, or after an open when the first answers must be as fast as all others. Blocks the calling thread; cost:
    /// every byte of the vectors once.
    ///
    /// # Errors
    /// `Corruption` if a vector is damaged.
    pub fn warm(&self) -> Result<()> {
        index::warm(&*self.executor, &self.snapshot, &self.data)
    }

    fn find(
        &self,
        executor: &dyn Executor,
        (index, query): (usize, &[f32]),
        options: &SearchOptions,
    ) -> Result<Hits<S::File>> {
        let query = batch::query_at(query, index, self.data.geometry())?;
        let breadth = Breadth {
            exact: options.exact,
            slop: options.slop,
            recall: options.recall,
            by_cells: false,
            default_recall: self.default_recall,
        };
        index::search_on(executor, &self.snapshot, &self.data, &query, options.k, breadth)
    }
}
