//! An immutable view of all shards.

use std::{ops::Deref, sync::Arc};

use super::{
    fresh::{Fresh, FreshCodes, fresh, rows, same_centroids},
    topk::Candidate,
};
use crate::{
    cells::CellIndex,
    codes::Frame,
    env::Cancel,
    error::Result,
    format::geometry::Geometry,
    id::{Lsn, ShardId},
    lease::Lease,
    shard::{DataFile, Extent, Shard},
    storage::StorageFile,
};

/// Shards per chunk: a publication copies the chunks it changed and the list of all chunks, so about the square root of
/// many thousand shards serves both.
pub const CHUNK_SHARDS: usize = 32;

/// Codes that were made of slots that are in no cell.
#[derive(Debug)]
pub struct Coded {
    /// The frame that they were made in.
    frame: Arc<Frame>,
    /// For each shard, by number and name, its codes.
    shards: Vec<(u32, ShardId, Arc<FreshCodes>)>,
}

/// Some shards with their centroids side by side.
#[derive(Debug)]
pub struct Chunk<L> {
    /// Shards by number, from the chunk's first.
    pub shards: Vec<Option<Arc<Shard<L>>>>,
    /// Their centroids, row by row; a row of zeros where there is no shard.
    pub centroids: Arc<[f32]>,
    /// Shards with slots that are in no cell. Nothing where there are no cells.
    pub fresh: Vec<Fresh>,
    /// The bytes of their centroids, in blocks; shared as long as the centroids are the same.
    pub fresh_rows: Arc<[u8]>,
    /// Slots that are in no cell.
    pub fresh_slots: u64,
}

/// What one search sees, from beginning to end.
#[derive(Debug)]
pub struct Snapshot<L> {
    /// Chunks by number.
    pub chunks: Vec<Arc<Chunk<L>>>,
    /// The cells, if there are any.
    pub cells: Option<Arc<CellIndex<Lease<L>>>>,
    /// The last write it holds.
    pub lsn: Lsn,
    /// Live postings.
    pub live: u64,
    /// Shards.
    pub shards: usize,
    /// Postings that have come or gone since it was found out what recalls take.
    pub moved: u64,
}

impl<L: Deref<Target = [u8]> + Clone> Snapshot<L> {
    /// A snapshot of no shard.
    #[must_use]
    pub fn empty(lsn: Lsn) -> Self {
        Self { chunks: Vec::new(), cells: None, lsn, live: 0, shards: 0, moved: 0 }
    }

    /// Heap bytes of the codes of what is in no cell.
    #[must_use]
    pub fn fresh_memory(&self) -> usize {
        let of = |chunk: &Arc<Chunk<L>>| {
            let codes = chunk.fresh.iter().filter_map(|fresh| fresh.codes.as_ref());
            // The centroids' bytes are there twice.
            2 * chunk.fresh_rows.len() + codes.map(|codes| codes.memory()).sum::<usize>()
        };
        self.chunks.iter().map(of).sum()
    }

    /// Shards with slots that are in no cell, their numbers, and what is known of them.
    fn fresh(&self) -> impl Iterator<Item = (u32, &Arc<Shard<L>>, &Fresh)> {
        self.chunks.iter().zip(0u32..).flat_map(|(chunk, c)| {
            chunk.fresh.iter().filter_map(move |fresh| {
                let shard = chunk.shards[fresh.shard as usize].as_ref()?;
                Some((c * CHUNK_SHARDS as u32 + fresh.shard, shard, fresh))
            })
        })
    }

    /// Slots that are in no cell.
    #[must_use]
    pub fn fresh_slots(&self) -> u64 {
        self.chunks.iter().map(|chunk| chunk.fresh_slots).sum()
    }

    /// What is known of a shard that has slots in no cell, if the posting in this place, known by the shard's number and its slot, is in
    /// none.
    pub(crate) fn fresh_of(&self, (shard, slot): (u32, u32)) -> Option<&Fresh> {
        let chunk = self.chunks.get(shard as usize / CHUNK_SHARDS)?;
        let in_chunk = shard % CHUNK_SHARDS as u32;
        chunk.fresh.iter().find(|fresh| fresh.shard == in_chunk && fresh.from <= slot)
    }

    /// The shards where some of them have no code.
    pub(crate) fn uncoded(&self) -> impl Iterator<Item = (u32, &Arc<Shard<L>>, &Fresh)> {
        self.fresh().filter(|(_, _, fresh)| match &fresh.codes {
            Some(codes) => codes.first > fresh.from as usize,
            None => true,
        })
    }

    /// The shards whose codes are not what their vectors give: none, unless vectors rotted since.
    ///
    /// # Errors
    /// `Closed` if it is cancelled.
    pub fn wrong_codes(&self, geometry: &Geometry, cancel: &dyn Cancel) -> Result<Vec<u32>> {
        let Some(cells) = &self.cells else { return Ok(Vec::new()) };
        let wrong = self.fresh().take_while(|_| !cancel.is_cancelled()).filter(|(_, shard, fresh)| {
            let known = (&***shard, &*fresh.centroid);
            fresh.codes.as_ref().is_some_and(|codes| !codes.are_of(known, (cells.frame(), geometry)))
        });
        let numbers = wrong.map(|(number, ..)| number).collect();
        cancel.check().map(|()| numbers)
    }

    /// Codes of all slots that are in no cell, of shards where some have none.
    ///
    /// # Errors
    /// `Corruption` if a vector is damaged, `Closed` if it is cancelled.
    pub fn code_fresh<F: StorageFile<Lent = L>>(
        &self,
        data: &DataFile<F>,
        frame: &Arc<Frame>,
        cancel: &dyn Cancel,
    ) -> Result<Coded> {
        let (mut made, slots) = (Vec::new(), data.geometry().extent_slots());
        for (number, shard, fresh) in self.uncoded() {
            let from = fresh.from as usize;
            for extent in &shard.extents()[from / slots..] {
                cancel.check()?;
                extent.slots(data)?;
            }
            let codes = FreshCodes::of(None, (shard, &fresh.centroid), from, (frame, data.geometry()));
            made.push((number, shard.id, codes));
        }
        Ok(Coded { frame: Arc::clone(frame), shards: made })
    }

    /// The same snapshot with codes that [`code_fresh`](Self::code_fresh) made of an older one; what came to a shard since
    /// gets its code here. Codes of another frame are of no use any more.
    #[must_use]
    pub fn with_codes(&self, coded: &Coded, geometry: &Geometry) -> Self {
        let mut chunks = self.chunks.clone();
        let frame = &coded.frame;
        let is_same = self.cells.as_ref().is_some_and(|cells| Arc::ptr_eq(cells.frame(), frame));
        for (number, id, codes) in coded.shards.iter().filter(|_| is_same) {
            let (at, i) = (*number as usize / CHUNK_SHARDS, *number % CHUNK_SHARDS as u32);
            let Some(chunk) = chunks.get_mut(at) else { continue };
            let shard = chunk.shards.get(i as usize).and_then(Option::as_ref).filter(|shard| shard.id == *id);
            let place = chunk.fresh.iter().position(|fresh| fresh.shard == i);
            let (Some(shard), Some(place)) = (shard, place) else { continue };
            let mut fresh = chunk.fresh.clone();
            let known = (&**shard, &*fresh[place].centroid);
            fresh[place].codes = Some(FreshCodes::of(Some(codes), known, codes.first, (frame, geometry)));
            let (shards, centroids) = (chunk.shards.clone(), Arc::clone(&chunk.centroids));
            let (fresh_rows, fresh_slots) = (Arc::clone(&chunk.fresh_rows), chunk.fresh_slots);
            *chunk = Arc::new(Chunk { shards, centroids, fresh, fresh_rows, fresh_slots });
        }
        let Self { lsn, live, shards, moved, .. } = *self;
        Self { chunks, cells: self.cells.clone(), lsn, live, shards, moved }
    }

    /// All shards, by number.
    pub fn iter(&self) -> impl Iterator<Item = (u32, &Arc<Shard<L>>)> {
        self.chunks
            .iter()
            .flat_map(|chunk| chunk.shards.iter())
            .zip(0u32..)
            .filter_map(|(shard, number)| Some((number, shard.as_ref()?)))
    }

    /// The next snapshot: `changed` names every shard number that is not as it was here. With `coded` what is new in them
    /// and in no cell gets codes: some four microseconds a posting in batches of 1,000, what splits make anew counted in.
    /// Where the cells have another frame than those before nothing gets any: all of it would need new ones.
    #[must_use]
    pub fn with_changes(
        &self,
        shards: &[Option<Arc<Shard<L>>>],
        changed: impl IntoIterator<Item = u32>,
        cells: Option<&Arc<CellIndex<Lease<L>>>>,
        (lsn, live): (Lsn, u64),
        (coded, geometry): (bool, &Geometry),
    ) -> Self {
        let same_cells = cells.map(Arc::as_ptr) == self.cells.as_ref().map(Arc::as_ptr);
        let frames = self.cells.as_ref().zip(cells).map(|(old, new)| [old, new].map(|cells| cells.frame()));
        let other_frame = frames.is_some_and(|[old, new]| !Arc::ptr_eq(old, new));
        let coded = coded && !other_frame;
        let mut chunks = self.chunks.clone();
        let mut count = self.shards;
        let mut touched: Vec<usize> = changed.into_iter().map(|number| number as usize / CHUNK_SHARDS).collect();
        // A chunk that exists only because a later one does is built like a changed one.
        let first_new = if same_cells { chunks.len() } else { 0 };
        touched.extend(first_new..shards.len().div_ceil(CHUNK_SHARDS));
        touched.sort_unstable();
        touched.dedup();
        for at in touched {
            let members = &shards[at * CHUNK_SHARDS..shards.len().min((at + 1) * CHUNK_SHARDS)];
            let old = self.chunks.get(at);
            let centroids = centroids(members, old, geometry);
            // Where there were no cells, nothing was fresh, and all that no cell covers came since.
            let known = old.filter(|_| self.cells.is_some() && !other_frame);
            let before = known.map(|old| (old.shards.as_slice(), old.fresh.as_slice()));
            let first = (at * CHUNK_SHARDS) as u32;
            let as_before = same_cells && coded;
            let fresh = cells.map_or_else(Vec::new, |cells| {
                fresh((members, first), before, (cells, as_before), (coded, geometry))
            });
            let fresh_rows = match old {
                Some(old) if same_centroids(&old.fresh, &fresh) => Arc::clone(&old.fresh_rows),
                _ => rows(&fresh).into(),
            };
            let slots = |fresh: &Fresh| {
                let shard = members[fresh.shard as usize].as_ref();
                shard.map_or(0, |shard| shard.len().saturating_sub(fresh.from as usize) as u64)
            };
            let fresh_slots = fresh.iter().map(slots).sum();
            let chunk = Arc::new(Chunk { shards: members.to_vec(), centroids, fresh, fresh_rows, fresh_slots });
            count += members.iter().flatten().count();
            match old {
                Some(old) => {
                    count -= old.shards.iter().flatten().count();
                    chunks[at] = chunk;
                }
                None => chunks.push(chunk),
            }
        }
        let mut next = Self { chunks, cells: cells.cloned(), lsn, live, shards: count, moved: 0 };
        next.moved = cells.map_or(0, |cells| cells.calibration().moved(live, next.fresh_slots()));
        next
    }
}

/// The centroids of a chunk's shards: those of the chunk before, unless a shard came or went.
fn centroids<L>(members: &[Option<Arc<Shard<L>>>], old: Option<&Arc<Chunk<L>>>, geometry: &Geometry) -> Arc<[f32]> {
    if let Some(old) = old
        && old.shards.len() == members.len()
        && old.shards.iter().zip(members).all(|(a, b)| match (a, b) {
            (Some(a), Some(b)) => Arc::ptr_eq(&a.centroid, &b.centroid),
            (None, None) => true,
            _ => false,
        })
    {
        return Arc::clone(&old.centroids);
    }
    let mut rows = vec![0.0; members.len() * geometry.dimension];
    for (row, shard) in rows.chunks_exact_mut(geometry.dimension).zip(members) {
        if let Some(shard) = shard {
            row.copy_from_slice(&shard.centroid);
        }
    }
    rows.into()
}

pub(super) fn shard_of<L: Deref<Target = [u8]> + Clone>(snapshot: &Snapshot<L>, number: u32) -> Option<&Shard<L>> {
    let chunk = snapshot.chunks.get(number as usize / CHUNK_SHARDS)?;
    chunk.shards.get(number as usize % CHUNK_SHARDS)?.as_deref()
}

/// The extent that a candidate was found in, and its slot there.
pub(super) fn place<'a, L: Deref<Target = [u8]> + Clone>(
    snapshot: &'a Snapshot<L>,
    geometry: &Geometry,
    found: &Candidate,
) -> (&'a Extent<L>, usize) {
    let (slots, slot) = (geometry.extent_slots(), found.slot as usize);
    let Some(shard) = shard_of(snapshot, found.shard) else { unreachable!("a candidate has a shard") };
    (&shard.extents()[slot / slots], slot % slots)
}
