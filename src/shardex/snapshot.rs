//! Snapshot of an index: an immutable view for searches that must agree with each other.

use std::sync::Arc;

use crate::{
    engine::{Lent, batch},
    env::{Executor, Inline},
    error::{Result, ShardexError},
    filter::Filter,
    id::Lsn,
    index::{self, FilterMask, Hits, ResultScope, SearchScope, Snapshot},
    posting::{SearchOptions, SearchResponse, SearchResult},
    shard::DataFile,
    storage::{MmapStorage, Storage},
    tuning,
};

/// Immutable view of an index after some write. All its searches see the same postings. Later writes don't change it.
///
/// Taking a snapshot waits for nothing and copies nothing. A snapshot pins the allocations it reads from, so a
/// long-lived snapshot makes the data file grow. `IndexStats::held_by_readers_bytes` shows by how much. It stays
/// readable after the index is closed, and it keeps the index locked. Until it is dropped, an open returns
/// [`Locked`](crate::ShardexError::Locked).
pub struct IndexSnapshot<S: Storage = MmapStorage> {
    pub(super) snapshot: Arc<Snapshot<Lent<S>>>,
    pub(super) data: Arc<DataFile<S::File>>,
    executor: Arc<dyn Executor>,
    /// Target recall of searches that set neither `recall` nor `slop`.
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

    /// Returns the LSN of the last write in the snapshot.
    #[must_use]
    pub fn lsn(&self) -> Lsn {
        self.snapshot.lsn
    }

    /// Returns the number of live postings.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.snapshot.live
    }

    /// Reports whether the snapshot has no live postings.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Searches for the `k` nearest postings: in the `slop` nearest shards (see [`SearchOptions::slop`]), or with the
    /// configured target recall if `slop` is `None`.
    ///
    /// # Errors
    /// Returns the errors of [`search_in_place`](Self::search_in_place).
    pub fn search(&self, query: &[f32], k: usize, slop: Option<usize>) -> Result<Vec<SearchResult>> {
        let options = SearchOptions { slop, ..SearchOptions::new(k) };
        Ok(self.search_with(query, &options)?.results)
    }

    /// Searches for the nearest postings and copies the results.
    ///
    /// # Errors
    /// Returns the errors of [`search_in_place`](Self::search_in_place).
    pub fn search_with(&self, query: &[f32], options: &SearchOptions) -> Result<SearchResponse> {
        Ok(self.search_in_place(query, options)?.to_response())
    }

    /// Searches for the nearest postings without copying the results, which are read in place.
    ///
    /// It runs on the calling thread. A search that scans the vectors of 128 shards or more, such as an exhaustive
    /// search of a large index, uses all cores.
    ///
    /// Cost: with cells a few thousand codes and tens of distances. Without cells one distance per posting in the
    /// shards scanned, and one per shard if `slop` limits them.
    ///
    /// # Errors
    /// Returns `InvalidDimension` or `InvalidVector` if the query is refused, and `InvalidArgument` if an option is out
    /// of range. Returns `Corruption` if a shard read for the first time since the open is damaged.
    pub fn search_in_place(&self, query: &[f32], options: &SearchOptions) -> Result<Hits<S::File>> {
        batch::search_options(options)?;
        self.find(&*self.executor, 0, query, options)
    }

    /// Runs one search per query, on all cores, and copies the results.
    ///
    /// The answers are in the order of the queries, and equal to those of [`search_with`](Self::search_with). Each search
    /// runs on one core. It blocks the calling thread until all answers are computed.
    ///
    /// # Errors
    /// Returns the errors of [`search_in_place`](Self::search_in_place) for the first query that fails. `index` is its
    /// position.
    pub fn search_many<Q: AsRef<[f32]> + Sync>(
        &self,
        queries: &[Q],
        options: &SearchOptions,
    ) -> Result<Vec<SearchResponse>> {
        batch::search_options(options)?;
        self.answer_many(queries, |_| options, |hits| hits.to_response())
    }

    /// Runs one search per query, each with its own options, such as its own filter. Otherwise it is as
    /// [`search_many`](Self::search_many).
    ///
    /// # Errors
    /// Returns the errors of [`search_many`](Self::search_many), and `InvalidArgument` if there are not as many options as
    /// queries.
    pub fn search_each<Q: AsRef<[f32]> + Sync>(
        &self,
        queries: &[Q],
        options: &[SearchOptions],
    ) -> Result<Vec<SearchResponse>> {
        if options.len() != queries.len() {
            let reason = format!("{} for {} queries", options.len(), queries.len());
            return Err(ShardexError::InvalidArgument { argument: "options", reason });
        }
        options.iter().try_for_each(batch::search_options)?;
        self.answer_many(queries, |i| &options[i], |hits| hits.to_response())
    }

    /// Returns the number of live postings that pass a filter.
    ///
    /// Cost: that of the first search with the filter, or none if it was used since the last write.
    ///
    /// # Errors
    /// Returns `Corruption` if a shard that the filter reads is damaged.
    pub fn len_of(&self, filter: &Filter) -> Result<u64> {
        Ok(FilterMask::of(filter, &self.snapshot, &self.data)?.passing)
    }

    /// Runs one search per query, on all cores, without copying the results.
    ///
    /// Copying ten vectors of 384 components takes about a tenth of the time of a query.
    ///
    /// # Errors
    /// Returns the errors of [`search_many`](Self::search_many).
    pub fn search_many_in_place<Q: AsRef<[f32]> + Sync>(
        &self,
        queries: &[Q],
        options: &SearchOptions,
    ) -> Result<Vec<Hits<S::File>>> {
        batch::search_options(options)?;
        self.answer_many(queries, |_| options, |hits| hits)
    }

    fn answer_many<'o, Q: AsRef<[f32]> + Sync, T: Send + Sync>(
        &self,
        queries: &[Q],
        options: impl Fn(usize) -> &'o SearchOptions + Sync,
        answer: impl Fn(Hits<S::File>) -> T + Sync,
    ) -> Result<Vec<T>> {
        // Queries that are near each other scan the same cells and read the same vectors, while these are in the CPU's
        // caches. A few queries are spread over as many tasks, so that they use all cores.
        let (most, tasks) = tuning::SEARCH_TASK;
        let order = index::in_group_order(&self.snapshot, self.data.geometry(), queries);
        let chunks: Vec<&[usize]> = order.chunks((queries.len() / tasks).clamp(1, most)).collect();
        let answers = self.executor.map(chunks.len(), |chunk| {
            let find = |&i: &usize| (i, self.find(&Inline, i, queries[i].as_ref(), options(i)).map(&answer));
            chunks[chunk].iter().map(find).collect::<Vec<_>>()
        });
        let mut answers: Vec<(usize, Result<T>)> = answers.into_iter().flatten().collect();
        answers.sort_unstable_by_key(|&(i, _)| i);
        answers.into_iter().map(|(_, answer)| answer).collect()
    }

    /// Reads and checks all bytes that searches may read, on all cores, so that no later search pays for it.
    ///
    /// It is useful before a measurement, or after an open if the first answers must be as fast as later ones. It
    /// blocks the calling thread. Cost: reads every byte of the vectors and codes once.
    ///
    /// # Errors
    /// Returns `Corruption` if a vector is damaged.
    pub fn warm(&self) -> Result<()> {
        index::warm(&*self.executor, &self.snapshot, &self.data)
    }

    fn find(
        &self,
        executor: &dyn Executor,
        index: usize,
        query: &[f32],
        options: &SearchOptions,
    ) -> Result<Hits<S::File>> {
        let query = batch::query_at(query, index, self.data.geometry())?;
        let scope = SearchScope {
            exact: options.exact,
            slop: options.slop,
            recall: options.recall,
            by_cells: false,
            default_recall: self.default_recall,
        };
        let filter = options.filter.as_ref();
        let mask = filter.map(|filter| FilterMask::of(filter, &self.snapshot, &self.data)).transpose()?;
        let farthest = options.min_score.map_or(f32::INFINITY, |score| 0.0 - score);
        let wanted = ResultScope { k: options.k + options.offset, mask: mask.as_deref(), farthest };
        let mut hits = index::search_on(executor, &self.snapshot, &self.data, &query, wanted, scope)?;
        hits.skip(options.offset);
        Ok(hits)
    }
}
