//! An immutable view of all shards.

use std::{ops::Deref, sync::Arc};

use crate::{cells::CellIndex, format::geometry::Geometry, id::Lsn, shard::Shard};

/// Shards per chunk: a publication copies the chunks it changed and the list of all chunks, so about the square root of
/// many thousand shards serves both.
pub const CHUNK_SHARDS: usize = 32;

/// Some shards with their centroids side by side.
#[derive(Debug)]
pub struct Chunk<L> {
    /// Shards by number, from the chunk's first.
    pub shards: Vec<Option<Arc<Shard<L>>>>,
    /// Their centroids, row by row; a row of zeros where there is no shard.
    pub centroids: Arc<[f32]>,
    /// Shards, by their place in the chunk, with slots that are in no cell, and the first of these. Nothing where there
    /// are no cells.
    pub fresh: Vec<(u32, u32)>,
}

/// What one search sees, from beginning to end.
#[derive(Debug)]
pub struct Snapshot<L> {
    /// Chunks by number.
    pub chunks: Vec<Arc<Chunk<L>>>,
    /// The cells, if there are any.
    pub cells: Option<Arc<CellIndex<L>>>,
    /// The last write it holds.
    pub lsn: Lsn,
    /// Live postings.
    pub live: u64,
    /// Shards.
    pub shards: usize,
}

impl<L: Deref<Target = [u8]> + Clone> Snapshot<L> {
    /// A snapshot of no shard.
    #[must_use]
    pub fn empty(lsn: Lsn) -> Self {
        Self { chunks: Vec::new(), cells: None, lsn, live: 0, shards: 0 }
    }

    /// All shards, by number.
    pub fn iter(&self) -> impl Iterator<Item = (u32, &Arc<Shard<L>>)> {
        self.chunks
            .iter()
            .flat_map(|chunk| chunk.shards.iter())
            .zip(0u32..)
            .filter_map(|(shard, number)| Some((number, shard.as_ref()?)))
    }

    /// The next snapshot: `changed` names every shard number that is not as it was here.
    #[must_use]
    pub fn with_changes(
        &self,
        shards: &[Option<Arc<Shard<L>>>],
        changed: impl IntoIterator<Item = u32>,
        cells: Option<&Arc<CellIndex<L>>>,
        (lsn, live): (Lsn, u64),
        geometry: &Geometry,
    ) -> Self {
        let same_cells = cells.map(Arc::as_ptr) == self.cells.as_ref().map(Arc::as_ptr);
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
            let fresh = cells.map_or_else(Vec::new, |cells| fresh(members, at, cells));
            let chunk = Arc::new(Chunk { shards: members.to_vec(), centroids, fresh });
            count += members.iter().flatten().count();
            match old {
                Some(old) => {
                    count -= old.shards.iter().flatten().count();
                    chunks[at] = chunk;
                }
                None => chunks.push(chunk),
            }
        }
        Self { chunks, cells: cells.cloned(), lsn, live, shards: count }
    }
}

/// What of a chunk's shards is in no cell.
fn fresh<L: Deref<Target = [u8]> + Clone>(
    members: &[Option<Arc<Shard<L>>>],
    chunk: usize,
    cells: &CellIndex<L>,
) -> Vec<(u32, u32)> {
    let first = (chunk * CHUNK_SHARDS) as u32;
    let members = members.iter().zip(0u32..).filter_map(|(shard, i)| Some((shard.as_ref()?, i)));
    members
        .filter_map(|(shard, i)| {
            let covered = cells.covered(first + i, shard.id);
            ((covered as usize) < shard.len()).then_some((i, covered))
        })
        .collect()
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
