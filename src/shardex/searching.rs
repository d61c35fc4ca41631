//! One search on a snapshot: the filter's evaluation, the search, documents, payloads, the explanation; and searches for
//! what is like a stored posting or document.

use std::{borrow::Cow, sync::Arc, time::Duration};

use super::{Shardex, snapshot::IndexSnapshot};
use crate::{
    engine::batch,
    env::{Executor, Inline},
    error::{Result, ShardexError},
    explain::{FilterStep, SearchPlan},
    filter::Filter,
    id::{DocumentId, PostingKey},
    index::{self, FilterMask, Hits, ResultScope, SearchScope},
    posting::{SearchOptions, SearchResponse, SearchResult},
    shard::Lookup,
    storage::{Storage, StorageFile},
    tuning,
};

/// Hits of a search, and what its explanation says of the parts before.
struct SearchHits<F: StorageFile> {
    hits: Hits<F>,
    filter: Option<FilterStep>,
    search: Duration,
}

impl<S: Storage> IndexSnapshot<S> {
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
        batch::search_options(options)?;
        self.answer(self.find(&*self.context.executor, 0, query, options)?, options)
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
        Ok(self.find(&*self.context.executor, 0, query, options)?.hits)
    }

    /// Runs one search per query, on all cores, and copies the results.
    ///
    /// The answers are in the order of the queries, and equal to those of [`search_with`](Self::search_with), but that a
    /// [filter](crate::Filter) which is used again may find more. Each search runs on one core. It blocks the calling thread
    /// until all answers are computed.
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
        self.answer_many(queries, |_| options, |found, options| self.answer(found, options))
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
        self.answer_many(queries, |i| &options[i], |found, options| self.answer(found, options))
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
        self.answer_many(queries, |_| options, |found, _| Ok(found.hits))
    }

    fn answer_many<'o, Q: AsRef<[f32]> + Sync, T: Send + Sync>(
        &self,
        queries: &[Q],
        options: impl Fn(usize) -> &'o SearchOptions + Sync,
        answer: impl Fn(SearchHits<S::File>, &SearchOptions) -> Result<T> + Sync,
    ) -> Result<Vec<T>> {
        // Queries that are near each other scan the same cells and read the same vectors, while these are in the CPU's
        // caches. A few queries are spread over as many tasks, so that they use all cores.
        let (most, tasks) = tuning::SEARCH_TASK;
        let order = index::in_group_order(&self.snapshot, self.data.geometry(), queries);
        let chunks: Vec<&[usize]> = order.chunks((queries.len() / tasks).clamp(1, most)).collect();
        let answers = self.context.executor.map(chunks.len(), |chunk| {
            let find = |&i: &usize| {
                let found = self.find(&Inline, i, queries[i].as_ref(), options(i));
                (i, found.and_then(|found| answer(found, options(i))))
            };
            chunks[chunk].iter().map(find).collect::<Vec<_>>()
        });
        let mut answers: Vec<(usize, Result<T>)> = answers.into_iter().flatten().collect();
        answers.sort_unstable_by_key(|&(i, _)| i);
        answers.into_iter().map(|(_, answer)| answer).collect()
    }

    /// Searches for the nearest postings to a stored one, which is not among the results. A `filter` of the options holds
    /// besides.
    ///
    /// # Errors
    /// Returns the errors of [`search_in_place`](Self::search_in_place), and `InvalidArgument` if there is no posting with
    /// this key.
    pub fn search_like(&self, posting: PostingKey, options: &SearchOptions) -> Result<SearchResponse> {
        batch::search_options(options)?;
        let Some(stored) = self.stored_vectors(Lookup::Key(posting))?.pop() else {
            let PostingKey { document_id, start, length } = posting;
            let reason = format!("document {document_id} has no posting at {start} of length {length}");
            return Err(ShardexError::InvalidArgument { argument: "posting", reason });
        };
        self.search_with(&stored, &except(options, Filter::postings([posting])))
    }

    /// Returns the stored vectors of a document or of a key. Each is a valid query: under the cosine metric the vector as
    /// it was added may not be one, because it is the stored one times its norm, rounded.
    fn stored_vectors(&self, lookup: Lookup) -> Result<Vec<Vec<f32>>> {
        let found = index::find(&self.snapshot, &self.data, lookup)?;
        let vector = |at: index::StoredSlot| {
            let (_, vector) = index::posting_at(&self.snapshot, &self.data, at.shard, at.slot)?;
            Ok(vector.to_f32().into_owned())
        };
        found.into_iter().map(vector).collect()
    }

    /// Searches for the nearest postings to a stored document: the score of a posting is that with the nearest posting of
    /// the document. The document itself is not among the results. A `filter` of the options holds besides.
    ///
    /// Cost: one search per posting of the document, on all cores.
    ///
    /// # Errors
    /// Returns the errors of [`search_in_place`](Self::search_in_place), and `InvalidArgument` if the document has no
    /// posting.
    pub fn search_like_document(&self, document: DocumentId, options: &SearchOptions) -> Result<SearchResponse> {
        batch::search_options(options)?;
        let queries = self.stored_vectors(Lookup::Document(document))?;
        let options = except(options, Filter::documents([document]));
        let each = SearchOptions {
            k: options.k + options.offset,
            offset: 0,
            per_document: options.per_document.map(|_| 1),
            ..options.clone()
        };
        let start = self.now_for(&options);
        let mut filter = None;
        let found = self.answer_many(&queries, |_| &each, |found, _| Ok(found))?;
        let hits = found.into_iter().map(|found| {
            filter = found.filter;
            found.hits
        });
        let Some(hits) = Hits::joined(hits.collect(), each.k, options.per_document.is_some()) else {
            let reason = format!("document {document} has no posting");
            return Err(ShardexError::InvalidArgument { argument: "document", reason });
        };
        let search = self.now_for(&options).saturating_sub(start);
        let mask = self.mask_of(&options)?;
        let queries: Vec<Cow<'_, [f32]>> =
            queries.iter().map(|query| batch::query_at(query, 0, self.data.geometry())).collect::<Result<_>>()?;
        let hits = finish(hits, &queries, mask.as_deref(), &options)?;
        self.answer(SearchHits { hits, filter, search }, &options)
    }

    /// Returns the time if the search explains itself. An ordinary search does not pay for it.
    fn now_for(&self, options: &SearchOptions) -> Duration {
        if options.explain { self.context.clock.elapsed() } else { Duration::ZERO }
    }

    fn mask_of(&self, options: &SearchOptions) -> Result<Option<Arc<FilterMask>>> {
        options.filter.as_ref().map(|filter| FilterMask::of(filter, &self.snapshot, &self.data)).transpose()
    }

    /// Runs one search. `index` is the query's position among several.
    fn find(
        &self,
        executor: &dyn Executor,
        index: usize,
        query: &[f32],
        options: &SearchOptions,
    ) -> Result<SearchHits<S::File>> {
        self.context.observer.search(options.k, || self.find_unobserved(executor, index, query, options))
    }

    fn find_unobserved(
        &self,
        executor: &dyn Executor,
        index: usize,
        query: &[f32],
        options: &SearchOptions,
    ) -> Result<SearchHits<S::File>> {
        let query = batch::query_at(query, index, self.data.geometry())?;
        let scope = SearchScope {
            exact: options.exact,
            slop: options.slop,
            recall: options.recall,
            by_cells: false,
            default_recall: self.context.default_recall,
        };
        let start = self.now_for(options);
        let mask = self.mask_of(options)?;
        let masked = self.now_for(options);
        let wanted = ResultScope {
            mask: mask.as_deref(),
            farthest: farthest(options),
            documents: options.per_document.is_some(),
            ..ResultScope::nearest(options.k + options.offset)
        };
        let (snapshot, data) = (&self.snapshot, &self.data);
        let hits = index::Search { executor, snapshot, data, query: &query, wanted, scope }.run()?;
        let hits = finish(hits, &[query], mask.as_deref(), options)?;
        let filter = options.filter.as_ref().zip(mask.as_ref()).filter(|_| options.explain);
        let filter = filter.map(|(filter, mask)| FilterStep {
            condition: format!("{filter:?}"),
            passing: mask.passing,
            time: masked.saturating_sub(start),
        });
        Ok(SearchHits { hits, filter, search: self.now_for(options).saturating_sub(masked) })
    }

    /// Copies the results, with what else the options ask for.
    fn answer(&self, found: SearchHits<S::File>, options: &SearchOptions) -> Result<SearchResponse> {
        let start = self.now_for(options);
        let SearchHits { hits, filter, search } = found;
        let mut response = hits.to_response();
        if options.with_payload {
            for result in &mut response.results {
                result.payload = self.payload(result.document_id)?.map(|payload| payload.to_vec());
            }
        }
        if options.explain {
            let (cells, shards) = hits.steps();
            response.plan = Some(Box::new(SearchPlan {
                postings: self.len(),
                recall: response.recall,
                filter,
                cells,
                shards,
                stopped: response.stopped,
                calibrated: response.calibrated,
                search,
                results: self.now_for(options).saturating_sub(start),
            }));
        }
        Ok(response)
    }
}

/// Returns the largest distance of a result.
fn farthest(options: &SearchOptions) -> f32 {
    options.min_score.map_or(f32::INFINITY, |score| 0.0 - score)
}

/// Returns the options with a filter that excludes what another one lets pass.
fn except(options: &SearchOptions, excluded: Filter) -> SearchOptions {
    let filter = match &options.filter {
        Some(filter) => filter.clone() & !excluded,
        None => !excluded,
    };
    SearchOptions { filter: Some(filter), ..options.clone() }
}

/// Leaves out the hits of earlier pages, and adds the other postings of documents.
fn finish<F: StorageFile, Q: AsRef<[f32]>>(
    mut hits: Hits<F>,
    queries: &[Q],
    mask: Option<&FilterMask>,
    options: &SearchOptions,
) -> Result<Hits<F>> {
    hits.skip(options.offset);
    match options.per_document {
        Some(most) if most > 1 => hits.with_postings_of_documents(queries, mask, farthest(options), most),
        _ => Ok(hits),
    }
}

impl<S: Storage> Shardex<S> {
    /// Searches for the nearest postings to a stored one. See [`IndexSnapshot::search_like`].
    ///
    /// # Errors
    /// Returns the errors of [`IndexSnapshot::search_like`], and `Closed` if the handle is closed.
    pub async fn search_like(&self, posting: PostingKey, options: &SearchOptions) -> Result<SearchResponse> {
        self.view()?.search_like(posting, options)
    }

    /// Searches for the nearest postings to a stored document. See [`IndexSnapshot::search_like_document`].
    ///
    /// # Errors
    /// Returns the errors of [`IndexSnapshot::search_like_document`], and `Closed` if the handle is closed.
    pub async fn search_like_document(&self, document: DocumentId, options: &SearchOptions) -> Result<SearchResponse> {
        self.view()?.search_like_document(document, options)
    }
}
