//! Resolves removals before they are recorded in the WAL: finds which of the named documents are stored.

use std::{collections::BTreeSet, ops::RangeInclusive};

use super::working::Working;
use crate::{
    error::Result,
    id::DocumentId,
    shard::{DataFile, Lookup, record},
    storage::StorageFile,
};

/// Lower bound on the number of postings that a scan compares in the time of one lookup.
const LOOKUP_POSTINGS: u128 = 64;

/// Returns the given documents that have a posting, in the given order, each once.
///
/// # Errors
/// Returns `Io`, or `Corruption` if a shard that may hold one of the documents is damaged.
pub fn documents<F: StorageFile>(
    work: &mut Working<F>,
    data: &DataFile<F>,
    documents: impl IntoIterator<Item = DocumentId>,
) -> Result<Vec<DocumentId>> {
    let (mut stored, mut known) = (Vec::new(), BTreeSet::new());
    let (mut candidates, mut found) = (Vec::new(), Vec::new());
    let Working { shards, finder, figures, .. } = work;
    for document in documents {
        let lookup = Lookup::Document(document);
        finder.counts.lookups += 1;
        finder.candidates(lookup, &mut candidates);
        for &number in &candidates {
            let Some(Some(shard)) = shards.get(number) else { continue };
            found.clear();
            if finder.find(data, number, shard, lookup, &mut found)? {
                figures.note(number as u32);
            }
            if !found.is_empty() {
                if known.insert(document) {
                    stored.push(document);
                }
                break;
            }
        }
    }
    Ok(stored)
}

/// Returns the documents of a range that have a posting, in ascending order.
///
/// Cost: a lookup for each id of the range if that is cheaper than a scan, otherwise a scan of every posting.
///
/// # Errors
/// Returns `Io`, or `Corruption` if a shard that the lookup or the scan reads is damaged.
pub fn range<F: StorageFile>(
    work: &mut Working<F>,
    data: &DataFile<F>,
    range: &RangeInclusive<DocumentId>,
) -> Result<Vec<DocumentId>> {
    let (first, last) = (range.start().0, range.end().0);
    if first > last {
        return Ok(Vec::new());
    }
    // A lookup tests the filters of all shards. A scanned posting costs one comparison.
    if (last - first).saturating_mul(LOOKUP_POSTINGS) < u128::from(work.totals.live) {
        return documents(work, data, (first..=last).map(DocumentId));
    }
    let geometry = data.geometry();
    let slots = geometry.extent_slots();
    let mut stored = BTreeSet::new();
    for shard in work.shards.iter().flatten() {
        for (e, extent) in shard.extents().iter().enumerate() {
            let bytes = extent.slots(data)?;
            let live = (0..extent.used()).filter(|i| shard.is_live(e * slots + i));
            stored.extend(live.map(|i| record(bytes, i, geometry).document_id).filter(|id| range.contains(id)));
        }
    }
    Ok(stored.into_iter().collect())
}
