//! Codes of unindexed postings: one per posting, against the centroid of its shard.
//!
//! Codes are made when a write is published, kept in memory only, and dropped when cells cover their postings. So a
//! growing index is searched by codes at once, and the codes are never written to disk. Slots that are unindexed when
//! an index is opened have no code until a job beside the writer encodes them. Until then searches scan their vectors.

use std::{
    ops::{Deref, Range},
    sync::Arc,
};

use crate::{
    cells::{AlignedBytes, CellIndex, CodeBlocks},
    codes::{CentroidBytes, CoordinateFrame, encode},
    distance::{self, BLOCK, ByteBlocks},
    format::geometry::IndexParams,
    lease::Lease,
    shard::{self, Shard},
};

/// Unindexed part of a shard: the slots from `from` to the last.
#[derive(Clone, Debug)]
pub struct UnindexedShard {
    /// Position of the shard in its chunk.
    pub shard: u32,
    /// First unindexed slot.
    pub from: u32,
    /// Centroid of the shard.
    pub centroid: Arc<UnindexedCentroid>,
    /// Codes of the unindexed slots from [`UnindexedCodes::first`] on. `None` if no slot has a code.
    pub codes: Option<Arc<UnindexedCodes>>,
}

/// Centroid of a shard in the coordinate frame, quantised to bytes. Codes are encoded against the quantised value: each
/// byte times the step.
#[derive(Debug)]
pub struct UnindexedCentroid {
    bytes: Vec<i8>,
    /// Step, squared norm and centre product of the bytes.
    pub stored: CentroidBytes,
}

impl UnindexedCentroid {
    /// Transforms a shard's centroid to a coordinate frame and quantises it.
    fn of(centroid: &[f32], frame: &CoordinateFrame) -> Arc<Self> {
        let (mut rotated, mut bytes) = (Vec::new(), Vec::new());
        frame.transform(centroid, &mut rotated);
        let stored = CentroidBytes::of(&mut rotated, frame.rotated_centre(), &mut bytes);
        Arc::new(Self { bytes, stored })
    }

    /// Computes the product of the bytes and a query's bytes as the kernels do, with 128 added to each centroid byte.
    pub(super) fn product(&self, query: &[i8]) -> i32 {
        self.bytes.iter().zip(query).map(|(&byte, &q)| (i32::from(byte) + 128) * i32::from(q)).sum()
    }

    /// Returns the components that the bytes represent.
    fn values(&self) -> Vec<f32> {
        self.bytes.iter().map(|&byte| f32::from(byte) * self.stored.step).collect()
    }
}

/// Codes of a shard's slots from `first` to the last slot encoded.
#[derive(Debug)]
pub struct UnindexedCodes {
    /// First slot that has a code.
    pub first: usize,
    /// Whole blocks in the kernel's layout, shared with later codes of the shard. The reference of a code is its slot.
    blocks: AlignedBytes,
    /// Last block, with fewer codes than a whole one. Empty if there are none.
    tail: AlignedBytes,
    /// Number of codes.
    count: usize,
}

impl UnindexedCodes {
    /// Returns the slot after the last one that has a code.
    #[must_use]
    pub fn end(&self) -> usize {
        self.first + self.count
    }

    /// Iterates the blocks that hold codes of a range of slots, each with the range of these codes in the blocks.
    pub fn parts(&self, slots: Range<usize>) -> impl Iterator<Item = (&[u8], Range<usize>)> {
        let whole = self.count / BLOCK * BLOCK;
        let within = move |first: usize, end: usize| {
            let at = |slot: usize| (slot - self.first).clamp(first, end) - first;
            at(slots.start)..at(slots.end)
        };
        let parts = [(&*self.blocks, within(0, whole)), (&*self.tail, within(whole, self.count))];
        parts.into_iter().filter(|(_, range)| !range.is_empty())
    }

    /// Reports whether a new encoding of the shard's vectors against the centroid gives the same codes.
    pub(super) fn are_of<L: Deref<Target = [u8]> + Clone>(
        &self,
        shard: &Shard<L>,
        centroid: &UnindexedCentroid,
        frame: &CoordinateFrame,
        geometry: &IndexParams,
    ) -> bool {
        let anew = Self::of(None, shard, centroid, self.first, frame, geometry);
        anew.count == self.count && *anew.blocks == *self.blocks && *anew.tail == *self.tail
    }

    /// Returns the codes without whole blocks of slots before `covered`; `None` if all their slots are before it.
    fn behind(self: &Arc<Self>, covered: usize, words: usize) -> Option<Arc<Self>> {
        // Dropping fewer than eight blocks isn't worth a copy.
        if self.first + 8 * BLOCK > covered {
            return Some(Arc::clone(self));
        }
        if covered >= self.end() {
            return None;
        }
        let gone = ((covered - self.first) / BLOCK).min(self.count / BLOCK);
        let blocks = AlignedBytes::new(&self.blocks[gone * distance::block_bytes(words)..]);
        let (first, count) = (self.first + gone * BLOCK, self.count - gone * BLOCK);
        Some(Arc::new(Self { first, blocks, tail: self.tail.clone(), count }))
    }

    /// Returns the heap bytes, shared ones included.
    #[must_use]
    pub fn memory(&self) -> usize {
        size_of::<Self>() + self.blocks.len() + self.tail.len()
    }

    /// Encodes a shard's slots from `first` to the last. If `known` codes are given, they are reused, and their first
    /// slot replaces `first`.
    ///
    /// The bytes are not checked here: this process stored them, or checked them before it stored others beside them.
    pub(super) fn of<L: Deref<Target = [u8]> + Clone>(
        known: Option<&Arc<Self>>,
        shard: &Shard<L>,
        centroid: &UnindexedCentroid,
        first: usize,
        frame: &CoordinateFrame,
        geometry: &IndexParams,
    ) -> Arc<Self> {
        let first = known.map_or(first, |known| known.first);
        let count = shard.len() - first;
        if let Some(known) = known.filter(|known| known.count == count) {
            return Arc::clone(known);
        }
        let (words, whole) = (frame.len() / 64, count / BLOCK * BLOCK);
        // Usually the number of whole blocks is unchanged. Then only the tail is encoded, and the whole blocks are
        // shared.
        let (shared, mut blocks) = match known {
            Some(known) if known.count / BLOCK * BLOCK == whole => {
                (Some(&known.blocks), CodeBlocks::of(words, known.count - whole, known.tail.to_vec()))
            }
            Some(known) => {
                let bytes = [&*known.blocks, &*known.tail].concat();
                (None, CodeBlocks::of(words, known.count, bytes))
            }
            None => (None, CodeBlocks::new(words)),
        };
        let (centroid, slots) = (centroid.values(), geometry.extent_slots);
        let (mut widened, mut rotated, mut signs) = (Vec::new(), Vec::new(), Vec::new());
        for slot in first + known.map_or(0, |known| known.count)..shard.len() {
            let bytes = shard.extents()[slot / slots].lent();
            frame.transform(shard::row(bytes, slot % slots, geometry).widened(&mut widened), &mut rotated);
            signs.clear();
            let factors = encode(&rotated, &centroid, frame.rotated_centre(), geometry.metric, &mut signs);
            blocks.push(&signs, factors, slot as u32);
        }
        let bytes = blocks.bytes();
        let (blocks, tail) = match shared {
            Some(shared) => (shared.clone(), AlignedBytes::new(bytes)),
            None => {
                let (blocks, tail) = bytes.split_at(whole / BLOCK * distance::block_bytes(words));
                (AlignedBytes::new(blocks), AlignedBytes::new(tail))
            }
        };
        Arc::new(Self { first, blocks, tail, count })
    }
}

/// Shards of a chunk before a publication, and their unindexed parts.
type Before<'a, L> = (&'a [Option<Arc<Shard<L>>>], &'a [UnindexedShard]);

/// Computes the unindexed parts of a chunk's shards. The chunk's first shard has number `first`.
///
/// `before` is the previous chunk, if it had cells in the same coordinate frame. With `as_before`, unchanged shards
/// keep their part. With `encodes`, slots added since are encoded. Without it no slot has a code, because the process may
/// not have read the slots, and reading them all would take long.
pub(super) fn unindexed<L: Deref<Target = [u8]> + Clone>(
    members: &[Option<Arc<Shard<L>>>],
    first: u32,
    before: Option<Before<'_, L>>,
    cells: &CellIndex<Lease<L>>,
    as_before: bool,
    encodes: bool,
    geometry: &IndexParams,
) -> Vec<UnindexedShard> {
    let members = members.iter().zip(0u32..).filter_map(|(shard, i)| Some((shard.as_ref()?, i)));
    let of = |(shard, i): (&Arc<Shard<L>>, u32)| {
        if let Some((shards, unindexed)) = before.filter(|_| as_before)
            && shards.get(i as usize).and_then(Option::as_ref).is_some_and(|old| Arc::ptr_eq(old, shard))
        {
            return unindexed.iter().find(|unindexed| unindexed.shard == i).cloned();
        }
        let covered = cells.covered(first + i).map_or(0, |(_, covered)| shard.slots_since(covered.id, covered.slots));
        let covered = covered as usize;
        if covered >= shard.len() {
            return None;
        }
        let old = before.and_then(|(shards, unindexed)| {
            let old = shards.get(i as usize)?.as_ref().filter(|old| old.id == shard.id)?;
            Some((old.len(), unindexed.iter().find(|unindexed| unindexed.shard == i)))
        });
        let known = old.and_then(|(_, unindexed)| unindexed);
        let centroid = match known {
            Some(known) => Arc::clone(&known.centroid),
            None => UnindexedCentroid::of(&shard.centroid, cells.frame()),
        };
        let known_codes = known.and_then(|known| known.codes.as_ref());
        let from = match old {
            // The process may not have read the old slots that have no code. Only slots added since are encoded.
            Some((len, Some(_))) if known_codes.is_none() => len.max(covered),
            _ => covered,
        };
        // Codes of slots that cells now cover are dropped. The others are reused.
        let kept = known_codes.and_then(|codes| codes.behind(covered, cells.frame().len() / 64));
        let codes = kept.as_ref();
        let codes = (encodes && (codes.is_some() || from < shard.len()))
            .then(|| UnindexedCodes::of(codes, shard, &centroid, from, cells.frame(), geometry));
        Some(UnindexedShard { shard: i, from: covered as u32, centroid, codes })
    };
    members.filter_map(of).collect()
}

/// Reports whether two lists have the same shards with the same centroids.
pub(super) fn same_centroids(before: &[UnindexedShard], now: &[UnindexedShard]) -> bool {
    let same = |(a, b): (&UnindexedShard, &UnindexedShard)| a.shard == b.shard && Arc::ptr_eq(&a.centroid, &b.centroid);
    before.len() == now.len() && before.iter().zip(now).all(same)
}

/// Returns the centroids' bytes in the kernel's layout.
pub(super) fn rows(unindexed: &[UnindexedShard]) -> Vec<u8> {
    let Some(first) = unindexed.first() else { return Vec::new() };
    let mut rows = ByteBlocks::new(first.centroid.bytes.len());
    unindexed.iter().for_each(|unindexed| rows.push(&unindexed.centroid.bytes));
    rows.bytes().to_vec()
}
