//! Filters that are used again after every step of a workload, on the current snapshot and on those of the readers.
//!
//! A filter remembers what passed. A remembered mask that is used for another state shows postings to a search that must
//! not see them: of another tenant, for example. So every check evaluates the filter anew, without the engine.

use std::{collections::BTreeSet, sync::Arc};

use shardex::{
    DocumentId, Filter, PostingKey, Result, ShardexError,
    engine::Lent,
    env::Inline,
    index::{self, FilterMask, ResultScope, Search, SearchScope, Snapshot},
    shard::DataFile,
    storage::Storage,
};

use crate::model::{Key, is_wanted};

/// Filters of one run. Clones share what they remember.
#[derive(Clone, Debug)]
pub struct Filters(Vec<Filter>);

impl Default for Filters {
    fn default() -> Self {
        let listed = Filter::documents((0..20).filter(|n| n % 3 == 1).map(DocumentId));
        let keys = Filter::postings((0..9u32).map(|n| PostingKey::new(n, n % 2, 1)));
        let tagged = Filter::any_tags(1);
        Self(vec![tagged.clone(), !Filter::any_tags(2) & listed.clone(), listed | keys.clone(), !keys & !tagged])
    }
}

fn wrong(finding: String) -> ShardexError {
    ShardexError::Inconsistent { finding }
}

impl Filters {
    /// Checks that searches of a snapshot by every filter, exact and by cells, find exactly what passes of the postings
    /// that an exact search without a filter finds.
    ///
    /// # Errors
    /// Returns `Inconsistent` if a search finds anything else, and `Corruption` if bytes are damaged.
    pub fn check<S: Storage>(&self, snapshot: &Arc<Snapshot<Lent<S>>>, data: &Arc<DataFile<S::File>>) -> Result<()> {
        let query = vec![1.0; data.geometry().dimension];
        let all = index::search(snapshot, data, &query, snapshot.live as usize + 1, SearchScope::exact())?;
        let seen: Vec<(Key, u64)> =
            all.iter().map(|hit| ((hit.document_id.0, hit.start, hit.length), hit.tags)).collect();
        for filter in &self.0 {
            let passing = seen.iter().filter(|&&(key, tags)| is_wanted(filter, key, tags));
            check_one::<S>(filter, snapshot, data, &passing.map(|&(key, _)| key).collect::<Vec<_>>())?;
        }
        Ok(())
    }
}

/// Checks searches by a filter. `nearest` is what passes, nearest first.
fn check_one<S: Storage>(
    filter: &Filter,
    snapshot: &Arc<Snapshot<Lent<S>>>,
    data: &Arc<DataFile<S::File>>,
    nearest: &[Key],
) -> Result<()> {
    let wanted: BTreeSet<Key> = nearest.iter().copied().collect();
    let mask = FilterMask::of(filter, snapshot, data)?;
    if mask.passing != wanted.len() as u64 {
        return Err(wrong(format!("P3: {} postings pass {filter:?}, {} should", mask.passing, wanted.len())));
    }
    let query = vec![1.0; data.geometry().dimension];
    let by_cells = SearchScope { recall: Some(0.999), slop: None, by_cells: true, ..SearchScope::slop(2) };
    for scope in [SearchScope::exact(), by_cells] {
        let all = ResultScope { mask: Some(&mask), ..ResultScope::nearest(snapshot.live as usize + 1) };
        let hits = Search { executor: &Inline, snapshot, data, query: &query, wanted: all, scope }.run()?;
        let found: BTreeSet<Key> = hits.iter().map(|hit| (hit.document_id.0, hit.start, hit.length)).collect();
        if found.len() != hits.len() || found != wanted {
            return Err(wrong(format!("P3: a search by {filter:?} found {found:?}, {wanted:?} pass")));
        }
    }
    // Few results are found by rounded copies of the vectors, which the filter keeps for later snapshots.
    let few = ResultScope { mask: Some(&mask), ..ResultScope::nearest(2) };
    let scope = SearchScope::exact();
    let hits = Search { executor: &Inline, snapshot, data, query: &query, wanted: few, scope }.run()?;
    let found: Vec<Key> = hits.iter().map(|hit| (hit.document_id.0, hit.start, hit.length)).collect();
    if found != nearest[..nearest.len().min(2)] {
        return Err(wrong(format!("P3: by {filter:?} the nearest are {found:?}, not the first two of {nearest:?}")));
    }
    Ok(())
}
