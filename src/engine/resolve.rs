//! Resolves the plan of a batch before it is recorded in the WAL: drops what changes nothing, because it is not stored.

use std::{
    collections::BTreeSet,
    ops::{ControlFlow, RangeInclusive},
};

use super::{
    plan::{Plan, StoredPostings},
    working::Working,
};
use crate::{
    error::Result,
    format::bucket::PayloadOwner,
    id::{DocumentId, PostingKey},
    shard::{DataFile, Lookup, record},
    storage::StorageFile,
};

/// Lower bound on the number of postings that a scan compares in the time of one lookup.
const LOOKUP_POSTINGS: u128 = 64;

/// Drops the removals of what is not stored, and the tags that a posting has already.
///
/// # Errors
/// Returns `Io`, or `Corruption` if a shard that may hold a match is damaged.
pub fn changes<F: StorageFile>(plan: &mut Plan<'_>, work: &mut Working<F>, data: &DataFile<F>) -> Result<()> {
    let mut failed = Ok(());
    let mut stored = |work: &mut Working<F>, lookup| match first(work, data, lookup) {
        Ok(found) => found,
        Err(error) => {
            failed = Err(error);
            None
        }
    };
    plan.documents.retain(|&document| stored(work, Lookup::Document(document)).is_some());
    plan.keys.retain(|&key| stored(work, Lookup::Key(key)).is_some());
    plan.tags.retain(|&key, tags| stored(work, Lookup::Key(key)).is_some_and(|found| found != *tags));
    failed?;
    drop_absent_payloads(plan, work);
    Ok(())
}

/// Postings in the working state.
pub struct WorkingPostings<'a, F: StorageFile> {
    /// State to read.
    pub work: &'a mut Working<F>,
    /// Data file.
    pub data: &'a DataFile<F>,
}

impl<F: StorageFile> StoredPostings for WorkingPostings<'_, F> {
    fn visit(&mut self, listed: Option<&[DocumentId]>, visit: &mut dyn FnMut(PostingKey, u64)) -> Result<()> {
        let Self { work, data } = self;
        match listed {
            Some(documents) if documents.len() as u128 * LOOKUP_POSTINGS < u128::from(work.totals.live) => {
                documents.iter().try_for_each(|&document| {
                    visit_found(work, data, Lookup::Document(document), |key, tags| {
                        visit(key, tags);
                        ControlFlow::Continue(())
                    })
                })
            }
            _ => visit_all(work, data, visit),
        }
    }
}

/// Visits every live posting.
fn visit_all<F: StorageFile>(
    work: &Working<F>,
    data: &DataFile<F>,
    visit: &mut dyn FnMut(PostingKey, u64),
) -> Result<()> {
    let geometry = data.geometry();
    let slots = geometry.extent_slots;
    for shard in work.shards.iter().flatten() {
        for (e, extent) in shard.extents().iter().enumerate() {
            let bytes = extent.slots(data)?;
            for i in (0..extent.used()).filter(|i| shard.is_live(e * slots + i)) {
                visit(record(bytes, i, geometry).key(), shard.tags().get(e * slots + i));
            }
        }
    }
    Ok(())
}

/// Drops the removals of payloads that are not stored.
pub fn drop_absent_payloads<F: StorageFile>(plan: &mut Plan<'_>, work: &Working<F>) {
    let is_stored = |document| work.payloads.find(PayloadOwner::Document(document)).is_some();
    plan.payloads.retain(|&document, payload| payload.is_some() || is_stored(document));
}

/// Returns the tags of the first posting that a lookup finds; `None` if it finds none.
fn first<F: StorageFile>(work: &mut Working<F>, data: &DataFile<F>, lookup: Lookup) -> Result<Option<u64>> {
    let mut first = None;
    visit_found(work, data, lookup, |_, tags| {
        first = Some(tags);
        ControlFlow::Break(())
    })?;
    Ok(first)
}

/// Visits the postings that a lookup finds, until `visit` breaks.
fn visit_found<F: StorageFile>(
    work: &mut Working<F>,
    data: &DataFile<F>,
    lookup: Lookup,
    mut visit: impl FnMut(PostingKey, u64) -> ControlFlow<()>,
) -> Result<()> {
    let Working { shards, finder, figures, .. } = work;
    let (mut candidates, mut found) = (Vec::new(), Vec::new());
    finder.counts.lookups += 1;
    finder.candidates(lookup, &mut candidates);
    for number in candidates {
        let Some(Some(shard)) = shards.get(number) else { continue };
        if finder.find(data, number, shard, lookup, &mut found)? {
            figures.note(number as u32);
        }
        for (slot, posting) in found.drain(..) {
            if visit(posting.key(), shard.tags().get(slot)).is_break() {
                return Ok(());
            }
        }
    }
    Ok(())
}

/// Documents of a range.
pub struct RangeDocuments {
    /// Ids in ascending order.
    pub documents: Vec<DocumentId>,
    /// Whether each of them is known to have a posting or a payload.
    pub are_stored: bool,
}

/// Returns the documents of a range that may have a posting or a payload.
///
/// Cost: none if lookups of all ids of the range are cheaper than a scan, otherwise a scan of every posting.
///
/// # Errors
/// Returns `Io`, or `Corruption` if a shard that the scan reads is damaged.
pub fn range<F: StorageFile>(
    work: &mut Working<F>,
    data: &DataFile<F>,
    range: &RangeInclusive<DocumentId>,
) -> Result<RangeDocuments> {
    let (first, last) = (range.start().0, range.end().0);
    if first > last {
        return Ok(RangeDocuments { documents: Vec::new(), are_stored: true });
    }
    // A lookup tests the filters of all shards. A scanned posting costs one comparison.
    if (last - first).saturating_mul(LOOKUP_POSTINGS) < u128::from(work.totals.live + work.payloads.payloads()) {
        return Ok(RangeDocuments { documents: (first..=last).map(DocumentId).collect(), are_stored: false });
    }
    let mut stored = BTreeSet::new();
    visit_all(work, data, &mut |key, _| {
        if range.contains(&key.document_id) {
            stored.insert(key.document_id);
        }
    })?;
    let with_payload = work.payloads.iter().filter_map(|content| match content.owner() {
        PayloadOwner::Document(document) => Some(document),
        PayloadOwner::Cursor => None,
    });
    stored.extend(with_payload.filter(|id| range.contains(id)));
    Ok(RangeDocuments { documents: stored.into_iter().collect(), are_stored: true })
}
