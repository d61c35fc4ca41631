//! Snapshot: an immutable view of all shards and cells.

use std::{ops::Deref, sync::Arc};

use super::{
    candidate::Candidate,
    unindexed::{UnindexedCodes, UnindexedShard, rows, same_centroids, unindexed},
};
use crate::{
    cells::CellIndex,
    codes::CoordinateFrame,
    env::Cancel,
    error::Result,
    format::geometry::IndexParams,
    id::{Lsn, ShardId},
    lease::Lease,
    payload::PayloadIndex,
    shard::{DataFile, Extent, Shard},
    storage::StorageFile,
};

/// Number of shards per chunk. A publication copies each changed chunk and the list of all chunks. A chunk size of
/// about the square root of the number of shards keeps both copies small, up to many thousand shards.
pub const CHUNK_SHARDS: usize = 32;

/// Codes of unindexed slots, encoded beside the writer.
#[derive(Debug)]
pub struct NewCodes {
    /// Coordinate frame of the codes.
    frame: Arc<CoordinateFrame>,
    /// Number, id and codes of each shard.
    shards: Vec<(u32, ShardId, Arc<UnindexedCodes>)>,
}

/// Chunk of a snapshot: shards with consecutive numbers, and their centroids in contiguous rows.
#[derive(Debug)]
pub struct Chunk<L> {
    /// Shards by number, from the chunk's first number. `None` for a number without a shard.
    pub shards: Vec<Option<Arc<Shard<L>>>>,
    /// Centroids by number, row by row. The row of a number without a shard is zeros.
    pub centroids: Arc<[f32]>,
    /// Shards with unindexed slots. Empty if the index has no cells.
    pub unindexed: Vec<UnindexedShard>,
    /// Centroid bytes of the shards in `unindexed`, in blocks. Shared with the previous chunk while the centroids are
    /// the same.
    pub unindexed_rows: Arc<[u8]>,
    /// Number of unindexed slots, those of removed postings included.
    pub unindexed_slots: u64,
}

/// Immutable view of the index that one search uses from beginning to end.
#[derive(Debug)]
pub struct Snapshot<L> {
    /// Chunks of shards, in the order of their numbers.
    pub chunks: Vec<Arc<Chunk<L>>>,
    /// Cells; `None` if the index has none.
    pub cells: Option<Arc<CellIndex<Lease<L>>>>,
    /// LSN of the last write in the snapshot.
    pub lsn: Lsn,
    /// Number of live postings.
    pub live: u64,
    /// Payloads and the cursor.
    pub payloads: PayloadIndex<L>,
    /// Number of shards.
    pub shards: usize,
    /// Estimated number of postings that were added, removed, or moved by splits and merges since the calibration. It
    /// is computed from counts ([`Calibration::moved`](crate::format::calibration::Calibration::moved)), in which
    /// additions and removals may cancel out. 0 without cells.
    pub moved: u64,
}

/// Working state of the writer, from which the next snapshot is made.
pub struct SnapshotSource<'a, L: Deref<Target = [u8]> + Clone> {
    /// All shards by number.
    pub shards: &'a [Option<Arc<Shard<L>>>],
    /// Cells that searches use.
    pub cells: Option<&'a Arc<CellIndex<Lease<L>>>>,
    /// LSN of the last accepted batch.
    pub lsn: Lsn,
    /// Number of live postings.
    pub live: u64,
    /// Payloads and the cursor.
    pub payloads: &'a PayloadIndex<L>,
    /// Whether new unindexed slots of the changed shards are encoded. If the cells have another coordinate frame than
    /// before, nothing is encoded, because every unindexed slot would need a new code.
    pub encodes: bool,
}

impl<L: Deref<Target = [u8]> + Clone> Snapshot<L> {
    /// Creates a snapshot without shards.
    #[must_use]
    pub fn empty(lsn: Lsn, geometry: &IndexParams) -> Self {
        let payloads = PayloadIndex::new(geometry);
        Self { chunks: Vec::new(), cells: None, lsn, live: 0, payloads, shards: 0, moved: 0 }
    }

    /// Returns the heap bytes of the codes and centroid bytes of unindexed postings.
    #[must_use]
    pub fn unindexed_memory(&self) -> usize {
        let of = |chunk: &Arc<Chunk<L>>| {
            let codes = chunk.unindexed.iter().filter_map(|unindexed| unindexed.codes.as_ref());
            // The centroid bytes exist twice: in blocks, and in each shard's `UnindexedCentroid`.
            2 * chunk.unindexed_rows.len() + codes.map(|codes| codes.memory()).sum::<usize>()
        };
        self.chunks.iter().map(of).sum()
    }

    /// Iterates the shards with unindexed slots, each with its number and its unindexed part.
    fn unindexed(&self) -> impl Iterator<Item = (u32, &Arc<Shard<L>>, &UnindexedShard)> {
        self.chunks.iter().zip(0u32..).flat_map(|(chunk, c)| {
            chunk.unindexed.iter().filter_map(move |unindexed| {
                let shard = chunk.shards[unindexed.shard as usize].as_ref()?;
                Some((c * CHUNK_SHARDS as u32 + unindexed.shard, shard, unindexed))
            })
        })
    }

    /// Returns the number of unindexed slots, those of removed postings included.
    #[must_use]
    pub fn unindexed_slots(&self) -> u64 {
        self.chunks.iter().map(|chunk| chunk.unindexed_slots).sum()
    }

    /// Returns the unindexed part of a shard, given by number, if `slot` is in it.
    pub(crate) fn unindexed_shard_of(&self, (shard, slot): (u32, u32)) -> Option<&UnindexedShard> {
        let chunk = self.chunks.get(shard as usize / CHUNK_SHARDS)?;
        let in_chunk = shard % CHUNK_SHARDS as u32;
        chunk.unindexed.iter().find(|unindexed| unindexed.shard == in_chunk && unindexed.from <= slot)
    }

    /// Iterates the shards in which some unindexed slots have no code, each with its number and its unindexed part.
    pub(crate) fn without_codes(&self) -> impl Iterator<Item = (u32, &Arc<Shard<L>>, &UnindexedShard)> {
        self.unindexed().filter(|(_, _, unindexed)| match &unindexed.codes {
            Some(codes) => codes.first > unindexed.from as usize,
            None => true,
        })
    }

    /// Returns the numbers of the shards whose codes of unindexed postings differ from a new encoding of their vectors.
    /// Empty unless vectors were damaged since the codes were made.
    ///
    /// # Errors
    /// Returns `Closed` if the operation is cancelled.
    pub fn shards_with_wrong_codes(&self, geometry: &IndexParams, cancel: &dyn Cancel) -> Result<Vec<u32>> {
        let Some(cells) = &self.cells else { return Ok(Vec::new()) };
        let wrong = self.unindexed().take_while(|_| !cancel.is_cancelled()).filter(|(_, shard, unindexed)| {
            unindexed
                .codes
                .as_ref()
                .is_some_and(|codes| !codes.are_of(shard, &unindexed.centroid, cells.frame(), geometry))
        });
        let numbers = wrong.map(|(number, ..)| number).collect();
        cancel.check().map(|()| numbers)
    }

    /// Encodes all unindexed slots of the shards in which some have no code.
    ///
    /// # Errors
    /// Returns `Corruption` if a vector is damaged, `Closed` if the operation is cancelled.
    pub fn encode_unindexed<F: StorageFile<Lent = L>>(
        &self,
        data: &DataFile<F>,
        frame: &Arc<CoordinateFrame>,
        cancel: &dyn Cancel,
    ) -> Result<NewCodes> {
        let (mut made, slots) = (Vec::new(), data.geometry().extent_slots);
        for (number, shard, unindexed) in self.without_codes() {
            let from = unindexed.from as usize;
            for extent in &shard.extents()[from / slots..] {
                cancel.check()?;
                extent.slots(data)?;
            }
            let codes = UnindexedCodes::of(None, shard, &unindexed.centroid, from, frame, data.geometry());
            made.push((number, shard.id, codes));
        }
        Ok(NewCodes { frame: Arc::clone(frame), shards: made })
    }

    /// Returns this snapshot with the codes that [`encode_unindexed`](Self::encode_unindexed) made of an older one.
    /// Slots added to a shard since then are encoded here. Codes in another coordinate frame than that of the cells are
    /// ignored.
    #[must_use]
    pub fn with_codes(&self, coded: &NewCodes, geometry: &IndexParams) -> Self {
        let mut chunks = self.chunks.clone();
        let frame = &coded.frame;
        let is_same = self.cells.as_ref().is_some_and(|cells| Arc::ptr_eq(cells.frame(), frame));
        for (number, id, codes) in coded.shards.iter().filter(|_| is_same) {
            let (at, i) = (*number as usize / CHUNK_SHARDS, *number % CHUNK_SHARDS as u32);
            let Some(chunk) = chunks.get_mut(at) else { continue };
            let shard = chunk.shards.get(i as usize).and_then(Option::as_ref).filter(|shard| shard.id == *id);
            let extent_slot = chunk.unindexed.iter().position(|unindexed| unindexed.shard == i);
            let (Some(shard), Some(extent_slot)) = (shard, extent_slot) else { continue };
            let mut unindexed = chunk.unindexed.clone();
            let part = &mut unindexed[extent_slot];
            part.codes = Some(UnindexedCodes::of(Some(codes), shard, &part.centroid, codes.first, frame, geometry));
            let (shards, centroids) = (chunk.shards.clone(), Arc::clone(&chunk.centroids));
            let (unindexed_rows, unindexed_slots) = (Arc::clone(&chunk.unindexed_rows), chunk.unindexed_slots);
            *chunk = Arc::new(Chunk { shards, centroids, unindexed, unindexed_rows, unindexed_slots });
        }
        let Self { lsn, live, shards, moved, .. } = *self;
        Self { chunks, cells: self.cells.clone(), lsn, live, payloads: self.payloads.clone(), shards, moved }
    }

    /// Iterates all shards with their numbers, in ascending order.
    pub fn iter(&self) -> impl Iterator<Item = (u32, &Arc<Shard<L>>)> {
        self.chunks
            .iter()
            .flat_map(|chunk| chunk.shards.iter())
            .zip(0u32..)
            .filter_map(|(shard, number)| Some((number, shard.as_ref()?)))
    }

    /// Returns the next snapshot.
    ///
    /// `changed` must contain every shard number whose shard differs from this snapshot. Cost: about 4 µs per posting
    /// in batches of 1,000, encoding after splits included.
    #[must_use]
    pub fn with_changes(
        &self,
        geometry: &IndexParams,
        changed: impl IntoIterator<Item = u32>,
        published: SnapshotSource<'_, L>,
    ) -> Self {
        let SnapshotSource { shards, cells, lsn, live, payloads, encodes } = published;
        let same_cells = cells.map(Arc::as_ptr) == self.cells.as_ref().map(Arc::as_ptr);
        let frames = self.cells.as_ref().zip(cells).map(|(old, new)| [old, new].map(|cells| cells.frame()));
        let other_frame = frames.is_some_and(|[old, new]| !Arc::ptr_eq(old, new));
        let encodes = encodes && !other_frame;
        let mut chunks = self.chunks.clone();
        let mut count = self.shards;
        let mut touched: Vec<usize> = changed.into_iter().map(|number| number as usize / CHUNK_SHARDS).collect();
        // A new chunk is built even if none of its shards changed. Other cells require that every chunk is built.
        let first_new = if same_cells { chunks.len() } else { 0 };
        touched.extend(first_new..shards.len().div_ceil(CHUNK_SHARDS));
        touched.sort_unstable();
        touched.dedup();
        for at in touched {
            let members = &shards[at * CHUNK_SHARDS..shards.len().min((at + 1) * CHUNK_SHARDS)];
            let old = self.chunks.get(at);
            let centroids = centroids(members, old, geometry);
            // The unindexed parts of the old chunk are reusable only if it had cells in the same coordinate frame.
            let known = old.filter(|_| self.cells.is_some() && !other_frame);
            let before = known.map(|old| (old.shards.as_slice(), old.unindexed.as_slice()));
            let first = (at * CHUNK_SHARDS) as u32;
            let as_before = same_cells && encodes;
            let unindexed = cells
                .map_or_else(Vec::new, |cells| unindexed(members, first, before, cells, as_before, encodes, geometry));
            let unindexed_rows = match old {
                Some(old) if same_centroids(&old.unindexed, &unindexed) => Arc::clone(&old.unindexed_rows),
                _ => rows(&unindexed).into(),
            };
            let slots = |unindexed: &UnindexedShard| {
                let shard = members[unindexed.shard as usize].as_ref();
                shard.map_or(0, |shard| shard.len().saturating_sub(unindexed.from as usize) as u64)
            };
            let unindexed_slots = unindexed.iter().map(slots).sum();
            let chunk =
                Arc::new(Chunk { shards: members.to_vec(), centroids, unindexed, unindexed_rows, unindexed_slots });
            count += members.iter().flatten().count();
            match old {
                Some(old) => {
                    count -= old.shards.iter().flatten().count();
                    chunks[at] = chunk;
                }
                None => chunks.push(chunk),
            }
        }
        let payloads = payloads.clone();
        let mut next = Self { chunks, cells: cells.cloned(), lsn, live, payloads, shards: count, moved: 0 };
        next.moved = cells.map_or(0, |cells| cells.calibration().moved(live, next.unindexed_slots()));
        next
    }
}

/// Returns the centroids of a chunk's shards by rows. Shares those of the old chunk if no shard's centroid changed.
fn centroids<L>(members: &[Option<Arc<Shard<L>>>], old: Option<&Arc<Chunk<L>>>, geometry: &IndexParams) -> Arc<[f32]> {
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

/// Returns the shard with a number; `None` if the snapshot has no such shard.
pub(super) fn shard_of<L: Deref<Target = [u8]> + Clone>(snapshot: &Snapshot<L>, number: u32) -> Option<&Shard<L>> {
    let chunk = snapshot.chunks.get(number as usize / CHUNK_SHARDS)?;
    chunk.shards.get(number as usize % CHUNK_SHARDS)?.as_deref()
}

/// Returns the extent that holds a candidate, and the candidate's slot within the extent.
pub(super) fn extent_slot<'a, L: Deref<Target = [u8]> + Clone>(
    snapshot: &'a Snapshot<L>,
    geometry: &IndexParams,
    found: &Candidate,
) -> (&'a Extent<L>, usize) {
    let (slots, slot) = (geometry.extent_slots, found.slot as usize);
    let Some(shard) = shard_of(snapshot, found.shard) else { unreachable!("a candidate has a shard") };
    (&shard.extents()[slot / slots], slot % slots)
}
