//! Hits of documents and of several queries.

use std::collections::BTreeSet;

use super::{
    candidate::Candidate,
    distances::distance_to,
    hits::Hits,
    lookup::{find, posting_at},
    mask::FilterMask,
};
use crate::{error::Result, shard::Lookup, storage::StorageFile};

impl<F: StorageFile> Hits<F> {
    /// Replaces the hit of each document by its nearest postings, `most` at most, that pass the filter and are not
    /// farther than `farthest`. The distance of a posting is that from the nearest of the queries. The documents stay in
    /// the order of their nearest postings.
    ///
    /// Cost: a lookup of each document, and a distance per posting and query.
    ///
    /// # Errors
    /// Returns `Corruption` if a shard that may hold one of the postings is damaged.
    pub(crate) fn with_postings_of_documents<Q: AsRef<[f32]>>(
        mut self,
        queries: &[Q],
        mask: Option<&FilterMask>,
        farthest: f32,
        most: usize,
    ) -> Result<Self> {
        let metric = self.data.geometry().metric;
        let mut documents = Vec::with_capacity(self.nearest.len());
        for hit in &self.nearest {
            let mut postings = Vec::new();
            for found in find(&self.snapshot, &self.data, Lookup::Document(hit.document_id))? {
                if mask.is_some_and(|mask| !mask.contains(found.shard, found.slot as usize)) {
                    continue;
                }
                let (_, vector) = posting_at(&self.snapshot, &self.data, found.shard, found.slot)?;
                let distances = queries.iter().map(|query| distance_to(metric, query.as_ref(), vector));
                let distance = distances.fold(f32::INFINITY, f32::min);
                self.work.computed += queries.len();
                if distance <= farthest {
                    postings.push(Candidate::new(distance, found.posting, found.shard, found.slot as usize));
                }
            }
            postings.sort_unstable();
            postings.truncate(most);
            documents.push(postings);
        }
        documents.sort_unstable_by_key(|postings| postings.first().copied());
        self.nearest = documents.into_iter().flatten().collect();
        Ok(self)
    }

    /// Joins the hits of several queries: of each posting, or of each document if `documents` is set, the nearest hit is
    /// kept, and of these the `k` nearest. `None` without hits.
    pub(crate) fn joined(all: Vec<Self>, k: usize, documents: bool) -> Option<Self> {
        let mut all = all.into_iter();
        let mut joined = all.next()?;
        for other in all {
            joined.nearest.extend(other.nearest);
            joined.work.add(&other.work);
            joined.aim = joined.aim.joined(other.aim);
        }
        joined.nearest.sort_unstable();
        let mut known = BTreeSet::new();
        joined.nearest.retain(|hit| {
            let posting = if documents { (0, 0) } else { (hit.start, hit.length) };
            known.insert((hit.document_id, posting))
        });
        joined.nearest.truncate(k);
        Some(joined)
    }
}
