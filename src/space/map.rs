//! The free-space map: which pages of the data file are in use.
//!
//! Nothing of this is on disk: at open it is derived from what the retained roots name, so it can neither leak nor
//! disagree (promise P6). Invariants:
//! 1. The file is a header page and then chunks of equal size; a chunk holds extents, or runs of metadata, or nothing.
//! 2. A place is handed out only while it is marked free, the lowest first, so that the same operations give the same
//!    places (P7).
//! 3. A chunk that holds nothing belongs to either use again.

use std::collections::BTreeSet;

use crate::{format::geometry::Geometry, lease::Run};

/// The page before the first chunk: the file's header.
const HEADER_PAGES: u64 = 1;

#[derive(Clone, Debug, PartialEq, Eq)]
enum Chunk {
    Free,
    /// One flag per extent.
    Extents(Vec<bool>),
    /// One flag per page.
    Meta(Vec<bool>),
}

/// The map of used and free places.
#[derive(Clone, Debug)]
pub struct SpaceMap {
    chunk_pages: u32,
    extent_pages: u32,
    chunks: Vec<Chunk>,
    free: BTreeSet<usize>,
    extents_with_room: BTreeSet<usize>,
    meta_with_room: BTreeSet<usize>,
    used_pages: u64,
    /// Pages in use in chunks of metadata, and those chunks.
    meta_used: u64,
    meta_chunks: u64,
}

impl SpaceMap {
    /// A file of `chunks` chunks that hold nothing.
    #[must_use]
    pub fn new(geometry: &Geometry, chunks: usize) -> Self {
        let mut map = Self {
            chunk_pages: geometry.chunk_pages(),
            extent_pages: geometry.extent_pages(),
            chunks: Vec::new(),
            free: BTreeSet::new(),
            extents_with_room: BTreeSet::new(),
            meta_with_room: BTreeSet::new(),
            used_pages: 0,
            meta_used: 0,
            meta_chunks: 0,
        };
        map.grow(chunks);
        map
    }

    /// What is in use: each extent, and each page of metadata.
    pub fn used(&self) -> impl Iterator<Item = Run> {
        self.chunks.iter().enumerate().flat_map(move |(i, chunk)| {
            let (flags, pages) = match chunk {
                Chunk::Free => (&[][..], 1),
                Chunk::Extents(used) => (used.as_slice(), self.extent_pages),
                Chunk::Meta(used) => (used.as_slice(), 1),
            };
            let used = flags.iter().enumerate().filter(|&(_, &used)| used);
            used.map(move |(at, _)| Run { page: self.address(i, at * pages as usize), pages })
        })
    }

    /// Adds chunks at the end.
    pub fn grow(&mut self, chunks: usize) {
        let old = self.chunks.len();
        self.chunks.resize(old + chunks, Chunk::Free);
        self.free.extend(old..old + chunks);
    }

    /// Chunks in the file.
    #[must_use]
    pub fn chunks(&self) -> usize {
        self.chunks.len()
    }

    /// Pages of a file of `chunks` chunks, the header too.
    #[must_use]
    pub fn pages_of(&self, chunks: usize) -> u64 {
        HEADER_PAGES + chunks as u64 * u64::from(self.chunk_pages)
    }

    /// Pages in use, the header not counted.
    #[must_use]
    pub fn used_pages(&self) -> u64 {
        self.used_pages
    }

    /// Pages in no use.
    #[must_use]
    pub fn free_pages(&self) -> u64 {
        self.pages_of(self.chunks.len()) - HEADER_PAGES - self.used_pages
    }

    fn address(&self, chunk: usize, page: usize) -> u64 {
        self.pages_of(chunk) + page as u64
    }

    fn locate(&self, page: u64) -> Option<(usize, usize)> {
        let at = page.checked_sub(HEADER_PAGES)?;
        let chunk = (at / u64::from(self.chunk_pages)) as usize;
        (chunk < self.chunks.len()).then_some((chunk, (at % u64::from(self.chunk_pages)) as usize))
    }

    fn extents_per_chunk(&self) -> usize {
        (self.chunk_pages / self.extent_pages) as usize
    }

    /// Takes the lowest free extent; `None` when the file must grow first.
    pub fn take_extent(&mut self) -> Option<Run> {
        let chunk = match self.extents_with_room.first() {
            Some(&chunk) => chunk,
            None => *self.free.first()?,
        };
        let per_chunk = self.extents_per_chunk();
        let slot = match &self.chunks[chunk] {
            Chunk::Extents(used) => used.iter().position(|&used| !used)?,
            _ => 0,
        };
        debug_assert!(slot < per_chunk);
        let run = Run { page: self.address(chunk, slot * self.extent_pages as usize), pages: self.extent_pages };
        self.mark_extent(run.page).ok()?;
        Some(run)
    }

    /// Takes the lowest free run of `pages` pages; `None` when the file must grow first.
    ///
    /// # Panics
    /// If `pages` is more than a chunk holds: a mistake of the caller.
    pub fn take_meta(&mut self, pages: u32) -> Option<Run> {
        assert!((1..=self.chunk_pages).contains(&pages), "{pages} pages never fit a chunk of {}", self.chunk_pages);
        if let Some(run) = self.take_hole(pages) {
            return Some(run);
        }
        let run = Run { page: self.address(*self.free.first()?, 0), pages };
        self.mark_meta(run).ok()?;
        Some(run)
    }

    /// The same without beginning a new chunk.
    pub fn take_hole(&mut self, pages: u32) -> Option<Run> {
        let (chunk, at) = self.meta_with_room.iter().find_map(|&chunk| match &self.chunks[chunk] {
            Chunk::Meta(used) => first_fit(used, pages as usize).map(|at| (chunk, at)),
            _ => None,
        })?;
        let run = Run { page: self.address(chunk, at), pages };
        self.mark_meta(run).ok()?;
        Some(run)
    }

    /// Most pages that one run can have.
    #[must_use]
    pub fn largest_run(&self) -> u32 {
        self.chunk_pages
    }

    /// Whether metadata of `pages` pages that belongs together should fill small holes rather than begin a new chunk.
    ///
    /// One run is one store and few writes of the device, but leaves holes as what lies in it is replaced piece by piece. So
    /// a new chunk, until holes are more than half of the metadata's chunks and four times what is needed.
    #[must_use]
    pub fn prefers_holes(&self, pages: u32) -> bool {
        let all = self.meta_chunks * u64::from(self.chunk_pages);
        let free = all - self.meta_used;
        free * 2 > all && free > 4 * u64::from(pages)
    }

    /// Marks the extent that starts at `page` as used.
    ///
    /// # Errors
    /// Says what is wrong with that: outside the file, no start of an extent, in use already.
    pub fn mark_extent(&mut self, page: u64) -> Result<(), String> {
        let (chunk, at) = self.locate(page).ok_or_else(|| format!("page {page} lies outside the file"))?;
        let slot = at / self.extent_pages as usize;
        if !at.is_multiple_of(self.extent_pages as usize) || slot >= self.extents_per_chunk() {
            return Err(format!("no extent starts at page {page}"));
        }
        if self.chunks[chunk] == Chunk::Free {
            self.chunks[chunk] = Chunk::Extents(vec![false; self.extents_per_chunk()]);
            self.free.remove(&chunk);
            self.extents_with_room.insert(chunk);
        }
        match &mut self.chunks[chunk] {
            Chunk::Extents(used) if !used[slot] => {
                used[slot] = true;
                if used.iter().all(|&used| used) {
                    self.extents_with_room.remove(&chunk);
                }
                self.used_pages += u64::from(self.extent_pages);
                Ok(())
            }
            _ => Err(format!("page {page} is named twice")),
        }
    }

    /// Marks a run of metadata as used.
    ///
    /// # Errors
    /// Says what is wrong with that: outside the file, across chunks, in use already.
    pub fn mark_meta(&mut self, run: Run) -> Result<(), String> {
        let Run { page, pages } = run;
        let (chunk, at) = self.locate(page).ok_or_else(|| format!("page {page} lies outside the file"))?;
        let end = at + pages as usize;
        if pages == 0 || end > self.chunk_pages as usize {
            return Err(format!("{pages} pages from {page} on cross the end of a chunk"));
        }
        if self.chunks[chunk] == Chunk::Free {
            self.chunks[chunk] = Chunk::Meta(vec![false; self.chunk_pages as usize]);
            self.meta_chunks += 1;
            self.free.remove(&chunk);
            self.meta_with_room.insert(chunk);
        }
        match &mut self.chunks[chunk] {
            Chunk::Meta(used) if !used[at..end].iter().any(|&used| used) => {
                used[at..end].fill(true);
                if used.iter().all(|&used| used) {
                    self.meta_with_room.remove(&chunk);
                }
                self.used_pages += u64::from(pages);
                self.meta_used += u64::from(pages);
                Ok(())
            }
            _ => Err(format!("page {page} is named twice")),
        }
    }

    /// Whether all of a run is in use.
    #[must_use]
    pub fn is_used(&self, run: Run) -> bool {
        let Some((chunk, at)) = self.locate(run.page) else { return false };
        match &self.chunks[chunk] {
            Chunk::Free => false,
            Chunk::Extents(used) => used.get(at / self.extent_pages as usize).is_some_and(|&used| used),
            Chunk::Meta(used) => used.get(at..at + run.pages as usize).is_some_and(|pages| pages.iter().all(|&used| used)),
        }
    }

    /// Frees a run that [`take_extent`](Self::take_extent) or [`take_meta`](Self::take_meta) handed out.
    ///
    /// # Panics
    /// If it is not in use: freeing twice would hand a place out twice.
    pub fn free(&mut self, run: Run) {
        let Some((chunk, at)) = self.locate(run.page) else { panic!("{run:?} lies outside the file") };
        let empty = match &mut self.chunks[chunk] {
            Chunk::Free => panic!("{run:?} is free already"),
            Chunk::Extents(used) => {
                let slot = at / self.extent_pages as usize;
                assert!(used[slot] && run.pages == self.extent_pages, "{run:?} is no extent in use");
                used[slot] = false;
                self.extents_with_room.insert(chunk);
                !used.iter().any(|&used| used)
            }
            Chunk::Meta(used) => {
                let range = at..at + run.pages as usize;
                assert!(used[range.clone()].iter().all(|&used| used), "{run:?} is not all in use");
                used[range].fill(false);
                self.meta_used -= u64::from(run.pages);
                self.meta_with_room.insert(chunk);
                !used.iter().any(|&used| used)
            }
        };
        self.used_pages -= u64::from(run.pages);
        if empty {
            self.meta_chunks -= u64::from(matches!(self.chunks[chunk], Chunk::Meta(_)));
            self.chunks[chunk] = Chunk::Free;
            self.extents_with_room.remove(&chunk);
            self.meta_with_room.remove(&chunk);
            self.free.insert(chunk);
        }
    }
}

/// The first place where `n` flags in a row are unset.
fn first_fit(used: &[bool], n: usize) -> Option<usize> {
    let mut start = 0;
    for (i, &taken) in used.iter().enumerate() {
        if taken {
            start = i + 1;
        } else if i + 1 - start == n {
            return Some(start);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::ShardexConfig;

    fn map(chunks: usize) -> SpaceMap {
        let config = ShardexConfig::new("x").vector_size(16).shard_size(8).wal_segment_size(4096);
        SpaceMap::new(&Geometry::of(&config, 256, 64), chunks)
    }

    #[test]
    fn extents_and_metadata_never_share_a_chunk_and_an_empty_chunk_serves_both() {
        let mut map = map(2);
        let extent = map.take_extent().expect("room");
        let meta = map.take_meta(2).expect("room");
        assert_eq!(extent.page, 1);
        assert_eq!(meta.page, map.pages_of(1));
        assert!(map.mark_meta(Run { page: extent.page, pages: 1 }).is_err());
        map.free(extent);
        let other = map.take_meta(map.chunk_pages).expect("the first chunk is free again");
        assert_eq!(other.page, 1);
        assert!(map.take_extent().is_none());
        map.grow(1);
        assert!(map.take_extent().is_some());
    }

    #[test]
    fn the_lowest_place_is_taken_first_and_freed_places_come_back() {
        let mut map = map(4);
        let runs: Vec<_> = (0..6).map(|_| map.take_meta(2).expect("room")).collect();
        assert!(runs.is_sorted());
        map.free(runs[1]);
        map.free(runs[2]);
        assert_eq!(map.take_meta(3).map(|run| run.page), Some(runs[1].page));
        assert_eq!(map.take_meta(1).map(|run| run.page), Some(runs[1].page + 3));
        assert_eq!(map.used_pages(), 12);
    }

    #[test]
    fn bad_places_are_refused() {
        let mut map = map(1);
        assert!(map.mark_extent(0).is_err(), "the header");
        assert!(map.mark_extent(2).is_err(), "the middle of an extent");
        assert!(map.mark_extent(1 << 40).is_err(), "past the end");
        assert!(map.mark_meta(Run { page: 1, pages: map.chunk_pages + 1 }).is_err(), "across chunks");
        assert!(map.mark_extent(1).is_ok());
        assert!(map.mark_extent(1).is_err(), "twice");
    }

    #[test]
    #[should_panic(expected = "free already")]
    fn freeing_twice_is_caught() {
        let mut map = map(1);
        let run = map.take_extent().expect("room");
        map.free(run);
        map.free(run);
    }
}
