//! Codes of postings that are in no cell yet: one each, against the centroid of their shard.
//!
//! They are made when a write is published, kept in memory only, and forgotten when cells cover their postings: so an index
//! that grows is searched by codes at once, and nothing of it reaches a disk. Slots that an open finds in no cell have none
//! until they are made beside the writer, and are scanned as vectors.

use std::{
    ops::{Deref, Range},
    sync::Arc,
};

use crate::{
    cells::{Aligned, CellIndex, CodeBlocks},
    codes::{CentroidBytes, Frame, encode},
    distance::{self, BLOCK, ByteBlocks},
    format::geometry::Geometry,
    lease::Lease,
    shard::{self, Shard},
};

/// A shard with slots that are in no cell.
#[derive(Clone, Debug)]
pub struct Fresh {
    /// Its place in the chunk.
    pub shard: u32,
    /// The first of these slots.
    pub from: u32,
    /// Its centroid.
    pub centroid: Arc<FreshCentroid>,
    /// Codes of these slots, or of the later ones.
    pub codes: Option<Arc<FreshCodes>>,
}

/// The centroid of a shard in the frame as codes are made against it: it *is* its bytes times its scale.
#[derive(Debug)]
pub struct FreshCentroid {
    bytes: Vec<i8>,
    /// What belongs to the bytes.
    pub stored: CentroidBytes,
}

impl FreshCentroid {
    fn of(centroid: &[f32], frame: &Frame) -> Arc<Self> {
        let (mut rotated, mut bytes) = (Vec::new(), Vec::new());
        frame.place(centroid, &mut rotated);
        let stored = CentroidBytes::of(&mut rotated, frame.turned(), &mut bytes);
        Arc::new(Self { bytes, stored })
    }

    /// Its product with a query's bytes as the kernels make it, each byte plus 128.
    pub(super) fn product(&self, query: &[i8]) -> i32 {
        self.bytes.iter().zip(query).map(|(&byte, &q)| (i32::from(byte) + 128) * i32::from(q)).sum()
    }

    fn values(&self) -> Vec<f32> {
        self.bytes.iter().map(|&byte| f32::from(byte) * self.stored.step).collect()
    }
}

/// Codes of a shard's slots from one on to the last.
#[derive(Debug)]
pub struct FreshCodes {
    /// The first slot.
    pub first: usize,
    /// Whole blocks as the kernel reads them, which later codes share; each code's reference is its slot.
    blocks: Aligned,
    /// One more, of fewer codes.
    tail: Aligned,
    count: usize,
}

impl FreshCodes {
    /// One past the last slot.
    #[must_use]
    pub fn end(&self) -> usize {
        self.first + self.count
    }

    /// The blocks that hold some of the slots, and which of their codes.
    pub fn parts(&self, slots: Range<usize>) -> impl Iterator<Item = (&[u8], Range<usize>)> {
        let whole = self.count / BLOCK * BLOCK;
        let within = move |first: usize, end: usize| {
            let at = |slot: usize| (slot - self.first).clamp(first, end) - first;
            at(slots.start)..at(slots.end)
        };
        let parts = [(&*self.blocks, within(0, whole)), (&*self.tail, within(whole, self.count))];
        parts.into_iter().filter(|(_, range)| !range.is_empty())
    }

    /// Whether they are what the shard's vectors and centroid give.
    pub(super) fn are_of<L: Deref<Target = [u8]> + Clone>(
        &self,
        shard: (&Shard<L>, &FreshCentroid),
        (frame, geometry): (&Frame, &Geometry),
    ) -> bool {
        let anew = Self::of(None, shard, self.first, (frame, geometry));
        anew.count == self.count && *anew.blocks == *self.blocks && *anew.tail == *self.tail
    }

    /// The same codes without the blocks of slots that lie before `covered`.
    fn behind(self: &Arc<Self>, covered: usize, words: usize) -> Option<Arc<Self>> {
        // Less than some blocks are not worth a copy.
        if self.first + 8 * BLOCK > covered {
            return Some(Arc::clone(self));
        }
        if covered >= self.end() {
            return None;
        }
        let gone = ((covered - self.first) / BLOCK).min(self.count / BLOCK);
        let blocks = Aligned::new(&self.blocks[gone * distance::block_bytes(words)..]);
        let (first, count) = (self.first + gone * BLOCK, self.count - gone * BLOCK);
        Some(Arc::new(Self { first, blocks, tail: self.tail.clone(), count }))
    }

    /// Heap bytes, those that are shared too.
    #[must_use]
    pub fn memory(&self) -> usize {
        size_of::<Self>() + self.blocks.len() + self.tail.len()
    }

    /// Codes of a shard's slots from `first` on, those that are known taken over.
    ///
    /// The bytes are not checked here: they were stored by this process, or checked before others were stored beside them.
    pub(super) fn of<L: Deref<Target = [u8]> + Clone>(
        known: Option<&Arc<Self>>,
        (shard, centroid): (&Shard<L>, &FreshCentroid),
        first: usize,
        (frame, geometry): (&Frame, &Geometry),
    ) -> Arc<Self> {
        let first = known.map_or(first, |known| known.first);
        let count = shard.len() - first;
        if let Some(known) = known.filter(|known| known.count == count) {
            return Arc::clone(known);
        }
        let (words, whole) = (frame.len() / 64, count / BLOCK * BLOCK);
        // Of many blocks only the last one changes, as a rule.
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
        let (centroid, slots) = (centroid.values(), geometry.extent_slots());
        let (mut rotated, mut signs) = (Vec::new(), Vec::new());
        for slot in first + known.map_or(0, |known| known.count)..shard.len() {
            let bytes = shard.extents()[slot / slots].lent();
            frame.place(shard::row(bytes, slot % slots, geometry), &mut rotated);
            signs.clear();
            let factors = encode(&rotated, &centroid, frame.turned(), geometry.metric, &mut signs);
            blocks.push(&signs, factors, slot as u32);
        }
        let bytes = blocks.bytes();
        let (blocks, tail) = match shared {
            Some(shared) => (shared.clone(), Aligned::new(bytes)),
            None => {
                let (blocks, tail) = bytes.split_at(whole / BLOCK * distance::block_bytes(words));
                (Aligned::new(blocks), Aligned::new(tail))
            }
        };
        Arc::new(Self { first, blocks, tail, count })
    }
}

/// The shards of a chunk, and what of them is in no cell.
type Before<'a, L> = (&'a [Option<Arc<Shard<L>>>], &'a [Fresh]);

/// What of a chunk's shards, the first of which has number `first`, is in no cell.
///
/// `before` is the chunk as it was, if there were cells then. With `coded` the slots get codes that are new since; without,
/// none does: they may not have been read, and reading them all would take long.
pub(super) fn fresh<L: Deref<Target = [u8]> + Clone>(
    (members, first): (&[Option<Arc<Shard<L>>>], u32),
    before: Option<Before<'_, L>>,
    (cells, as_before): (&CellIndex<Lease<L>>, bool),
    (coded, geometry): (bool, &Geometry),
) -> Vec<Fresh> {
    let members = members.iter().zip(0u32..).filter_map(|(shard, i)| Some((shard.as_ref()?, i)));
    let of = |(shard, i): (&Arc<Shard<L>>, u32)| {
        if let Some((shards, fresh)) = before.filter(|_| as_before)
            && shards.get(i as usize).and_then(Option::as_ref).is_some_and(|old| Arc::ptr_eq(old, shard))
        {
            return fresh.iter().find(|fresh| fresh.shard == i).cloned();
        }
        let covered = cells.covered(first + i, shard.id) as usize;
        if covered >= shard.len() {
            return None;
        }
        let old = before.and_then(|(shards, fresh)| {
            let old = shards.get(i as usize)?.as_ref().filter(|old| old.id == shard.id)?;
            Some((old.len(), fresh.iter().find(|fresh| fresh.shard == i)))
        });
        let known = old.and_then(|(_, fresh)| fresh);
        let centroid = match known {
            Some(known) => Arc::clone(&known.centroid),
            None => FreshCentroid::of(&shard.centroid, cells.frame()),
        };
        let known_codes = known.and_then(|known| known.codes.as_ref());
        let from = match old {
            // Nothing tells whether this process has read the slots that have no code.
            Some((len, Some(_))) if known_codes.is_none() => len.max(covered),
            _ => covered,
        };
        // What cells cover by now is forgotten; the rest is not made again.
        let kept = known_codes.and_then(|codes| codes.behind(covered, cells.frame().len() / 64));
        let codes = kept.as_ref();
        let codes = (coded && (codes.is_some() || from < shard.len()))
            .then(|| FreshCodes::of(codes, (shard, &centroid), from, (cells.frame(), geometry)));
        Some(Fresh { shard: i, from: covered as u32, centroid, codes })
    };
    members.filter_map(of).collect()
}

/// Whether the centroids are the same, of the same shards.
pub(super) fn same_centroids(before: &[Fresh], now: &[Fresh]) -> bool {
    let same = |(a, b): (&Fresh, &Fresh)| a.shard == b.shard && Arc::ptr_eq(&a.centroid, &b.centroid);
    before.len() == now.len() && before.iter().zip(now).all(same)
}

/// The centroids' bytes as the kernel reads them.
pub(super) fn rows(fresh: &[Fresh]) -> Vec<u8> {
    let Some(first) = fresh.first() else { return Vec::new() };
    let mut rows = ByteBlocks::new(first.centroid.bytes.len());
    fresh.iter().for_each(|fresh| rows.push(&fresh.centroid.bytes));
    rows.bytes().to_vec()
}
