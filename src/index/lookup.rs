//! Reading stored postings of a snapshot: by document, by key, in storage order, and in the order of keys.

use std::collections::{BTreeSet, BinaryHeap};

use super::snapshot::{CHUNK_SHARDS, Snapshot, shard_of};
use crate::{
    error::Result,
    id::{DocumentId, PostingKey},
    shard::{DataFile, Lookup, Shard, StoredPosting, StoredRow, StoredVector, record, row},
    storage::StorageFile,
};

/// Slot of a live posting in a snapshot, with its record.
#[derive(Clone, Copy, Debug)]
pub struct StoredSlot {
    /// Shard number.
    pub shard: u32,
    /// Slot in the shard.
    pub slot: u32,
    /// Posting record.
    pub posting: StoredPosting,
    /// Tags of the posting.
    pub tags: u64,
}

impl StoredSlot {
    fn key(&self) -> PostingKey {
        self.posting.key()
    }
}

/// Finds the live postings that match a lookup, in the order of their keys.
///
/// Cost: one test of a bloom filter per shard. In a shard that passes it, the fingerprints of all slots are compared, or
/// all records if the fingerprints are not in memory. A snapshot does not create them, because only the writer counts
/// their memory.
///
/// # Errors
/// Returns `Corruption` if a shard that may hold a match is damaged.
pub fn find<F: StorageFile>(
    snapshot: &Snapshot<F::Lent>,
    data: &DataFile<F>,
    lookup: Lookup,
) -> Result<Vec<StoredSlot>> {
    let mut found = Vec::new();
    for (number, shard) in snapshot.iter() {
        if shard.bloom().may_contain(lookup.document()) {
            find_in(shard, number, data, lookup, &mut found)?;
        }
    }
    found.sort_unstable_by_key(StoredSlot::key);
    Ok(found)
}

/// Appends the matches of one shard.
fn find_in<F: StorageFile>(
    shard: &Shard<F::Lent>,
    number: u32,
    data: &DataFile<F>,
    lookup: Lookup,
    found: &mut Vec<StoredSlot>,
) -> Result<()> {
    if shard.known_fingerprints().is_some() {
        let mut slots = Vec::new();
        shard.find(data, lookup, &mut slots)?;
        let stored =
            |(slot, posting)| StoredSlot { shard: number, slot: slot as u32, posting, tags: shard.tags().get(slot) };
        found.extend(slots.into_iter().map(stored));
        return Ok(());
    }
    for_each_live(shard, data, |slot, posting| {
        if lookup.wants(&posting) {
            found.push(StoredSlot { shard: number, slot, posting, tags: shard.tags().get(slot as usize) });
        }
    })
}

/// Calls `visit` with the slot and the record of each live posting of a shard, in slot order.
///
/// # Errors
/// Returns `Corruption` if an extent is damaged.
fn for_each_live<F: StorageFile>(
    shard: &Shard<F::Lent>,
    data: &DataFile<F>,
    mut visit: impl FnMut(u32, StoredPosting),
) -> Result<()> {
    let geometry = data.geometry();
    let slots = geometry.extent_slots;
    for (e, extent) in shard.extents().iter().enumerate() {
        let bytes = extent.slots(data)?;
        for i in (0..extent.used()).filter(|i| shard.is_live(e * slots + i)) {
            visit((e * slots + i) as u32, record(bytes, i, geometry));
        }
    }
    Ok(())
}

/// Returns the `most` live postings with the least keys after `after`, in the order of their keys.
///
/// Cost: reads every posting record of the snapshot. Memory: `most` entries.
///
/// # Errors
/// Returns `Corruption` if a shard is damaged.
pub fn page_by_key<F: StorageFile>(
    snapshot: &Snapshot<F::Lent>,
    data: &DataFile<F>,
    after: Option<PostingKey>,
    most: usize,
) -> Result<Vec<StoredSlot>> {
    let mut least: BinaryHeap<(PostingKey, u32, u32)> = BinaryHeap::new();
    for (number, shard) in snapshot.iter().filter(|_| most > 0) {
        for_each_live(shard, data, |slot, posting| {
            let key = posting.key();
            if after.is_some_and(|after| key <= after) {
                return;
            }
            if least.len() < most {
                least.push((key, number, slot));
            } else if let Some(mut last) = least.peek_mut()
                && key < last.0
            {
                *last = (key, number, slot);
            }
        })?;
    }
    let page = least.into_sorted_vec().into_iter();
    page.map(|(_, number, slot)| posting_at(snapshot, data, number, slot).map(|(stored, _)| stored)).collect()
}

/// Returns the `most` least document ids after `after` that have a live posting, in ascending order.
///
/// Cost: reads every posting record of the snapshot. Memory: `most` ids.
///
/// # Errors
/// Returns `Corruption` if a shard is damaged.
pub fn documents<F: StorageFile>(
    snapshot: &Snapshot<F::Lent>,
    data: &DataFile<F>,
    after: Option<DocumentId>,
    most: usize,
) -> Result<Vec<DocumentId>> {
    let mut least = BTreeSet::new();
    for (_, shard) in snapshot.iter().filter(|_| most > 0) {
        for_each_live(shard, data, |_, posting| {
            let id = posting.document_id;
            if after.is_some_and(|after| id <= after)
                || least.len() == most && least.last().is_some_and(|&last| id >= last)
            {
                return;
            }
            least.insert(id);
            if least.len() > most {
                least.pop_last();
            }
        })?;
    }
    Ok(least.into_iter().collect())
}

/// Returns the record and the vector of a slot.
///
/// # Errors
/// Returns `Corruption` if the extent is damaged.
///
/// # Panics
/// Panics if the snapshot has no such slot.
pub fn posting_at<'a, F: StorageFile>(
    snapshot: &'a Snapshot<F::Lent>,
    data: &DataFile<F>,
    number: u32,
    slot: u32,
) -> Result<(StoredSlot, StoredVector<'a>)> {
    let Some(shard) = shard_of(snapshot, number) else { unreachable!("a slot has a shard") };
    let (geometry, slots) = (data.geometry(), data.geometry().extent_slots);
    let (extent, i) = (slot as usize / slots, slot as usize % slots);
    let bytes = shard.extents()[extent].slots(data)?;
    let posting = record(bytes, i, geometry);
    let tags = shard.tags().get(slot as usize);
    Ok((StoredSlot { shard: number, slot, posting, tags }, row(bytes, i, geometry)))
}

/// Position in the storage order of a snapshot: by shard number, then by slot. The default is the first position.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ScanPosition {
    shard: u32,
    slot: u32,
}

/// Returns the first live posting at or after a position, and moves the position behind it; `None` at the end.
///
/// # Errors
/// Returns `Corruption` if the extent at the position is damaged. The position is then behind that extent.
pub fn scan_next<'a, F: StorageFile>(
    snapshot: &'a Snapshot<F::Lent>,
    data: &DataFile<F>,
    position: &mut ScanPosition,
) -> Result<Option<StoredRow<StoredVector<'a>>>> {
    let (geometry, slots) = (data.geometry(), data.geometry().extent_slots);
    let end = (snapshot.chunks.len() * CHUNK_SHARDS) as u32;
    while position.shard < end {
        let slot = position.slot as usize;
        let Some(shard) = shard_of(snapshot, position.shard).filter(|shard| slot < shard.len()) else {
            *position = ScanPosition { shard: position.shard + 1, slot: 0 };
            continue;
        };
        if !shard.is_live(slot) {
            position.slot += 1;
            continue;
        }
        match shard.extents()[slot / slots].slots(data) {
            Ok(bytes) => {
                position.slot += 1;
                let (posting, vector) = (record(bytes, slot % slots, geometry), row(bytes, slot % slots, geometry));
                return Ok(Some(StoredRow { posting, tags: shard.tags().get(slot), vector }));
            }
            Err(error) => {
                position.slot = ((slot / slots + 1) * slots) as u32;
                return Err(error);
            }
        }
    }
    Ok(None)
}
