//! Free-space map: the pages of the data file that are in use.
//!
//! The map is not stored. An open derives it from the allocations that the retained roots point to, so it cannot leak
//! pages or disagree with the roots (promise P6). Invariants:
//! 1. The file is a header page followed by chunks of equal size. A chunk holds extents, or page ranges of metadata, or
//!    nothing.
//! 2. A page range is handed out only while it is marked free. The lowest one is chosen, so the same operations give
//!    the same page ranges (P7).
//! 3. An empty chunk can be used for extents or for metadata.

use std::collections::BTreeSet;

use fixedbitset::FixedBitSet;

use crate::{format::geometry::IndexParams, lease::PageRange, tuning};

/// Number of pages before the first chunk: the header page of the file.
const HEADER_PAGES: u64 = 1;

#[derive(Clone, Debug, PartialEq, Eq)]
enum Chunk {
    Free,
    /// Holds extents, with one flag per extent.
    Extents(FixedBitSet),
    /// Holds metadata, with one flag per page.
    Meta(FixedBitSet),
}

/// Map of the used and free pages of the data file.
#[derive(Clone, Debug)]
pub struct SpaceMap {
    chunk_pages: u32,
    extent_pages: u32,
    chunks: Vec<Chunk>,
    free: BTreeSet<usize>,
    extents_with_room: BTreeSet<usize>,
    meta_with_room: BTreeSet<usize>,
    used_pages: u64,
    /// Number of used pages in chunks of metadata, and number of these chunks.
    meta_used: u64,
    meta_chunks: u64,
}

impl SpaceMap {
    /// Creates the map of a file with `chunks` empty chunks.
    #[must_use]
    pub fn new(geometry: &IndexParams, chunks: usize) -> Self {
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

    /// Returns the page ranges in use: each extent, and each page of metadata.
    pub fn used(&self) -> impl Iterator<Item = PageRange> {
        self.chunks.iter().enumerate().flat_map(move |(i, chunk)| {
            let (used, pages) = match chunk {
                Chunk::Free => (None, 1),
                Chunk::Extents(used) => (Some(used), self.extent_pages),
                Chunk::Meta(used) => (Some(used), 1),
            };
            let used = used.into_iter().flat_map(FixedBitSet::ones);
            used.map(move |at| PageRange { page: self.address(i, at * pages as usize), pages })
        })
    }

    /// Adds chunks at the end of the file.
    pub fn grow(&mut self, chunks: usize) {
        let old = self.chunks.len();
        self.chunks.resize(old + chunks, Chunk::Free);
        self.free.extend(old..old + chunks);
    }

    /// Returns the number of chunks in the file.
    #[must_use]
    pub fn chunks(&self) -> usize {
        self.chunks.len()
    }

    /// Returns the number of pages of a file with `chunks` chunks, including the header page.
    #[must_use]
    pub fn pages_of(&self, chunks: usize) -> u64 {
        HEADER_PAGES + chunks as u64 * u64::from(self.chunk_pages)
    }

    /// Returns the number of pages in use, without the header page.
    #[must_use]
    pub fn used_pages(&self) -> u64 {
        self.used_pages
    }

    /// Returns the number of free pages.
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

    /// Takes the lowest free extent in a chunk of extents, or else the first extent of the lowest empty chunk. Returns
    /// `None` if the file must grow first.
    pub fn take_extent(&mut self) -> Option<PageRange> {
        let chunk = match self.extents_with_room.first() {
            Some(&chunk) => chunk,
            None => *self.free.first()?,
        };
        let per_chunk = self.extents_per_chunk();
        let slot = match &self.chunks[chunk] {
            Chunk::Extents(used) => used.zeroes().next()?,
            _ => 0,
        };
        debug_assert!(slot < per_chunk);
        let run = PageRange { page: self.address(chunk, slot * self.extent_pages as usize), pages: self.extent_pages };
        self.mark_extent(run.page).ok()?;
        Some(run)
    }

    /// Takes the lowest free run of `pages` pages in a chunk of metadata, or else the first pages of the lowest empty
    /// chunk. Returns `None` if the file must grow first.
    ///
    /// # Panics
    /// Panics if `pages` is 0 or more than a chunk has, which is a mistake of the caller.
    pub fn take_meta(&mut self, pages: u32) -> Option<PageRange> {
        assert!((1..=self.chunk_pages).contains(&pages), "{pages} pages never fit a chunk of {}", self.chunk_pages);
        if let Some(run) = self.take_hole(pages) {
            return Some(run);
        }
        let run = PageRange { page: self.address(*self.free.first()?, 0), pages };
        self.mark_meta(run).ok()?;
        Some(run)
    }

    /// Takes the lowest free run of `pages` pages in a chunk of metadata. Returns `None` if there is none. It never
    /// uses an empty chunk.
    pub fn take_hole(&mut self, pages: u32) -> Option<PageRange> {
        let (chunk, at) = self.meta_with_room.iter().find_map(|&chunk| match &self.chunks[chunk] {
            Chunk::Meta(used) => first_fit(used, pages as usize).map(|at| (chunk, at)),
            _ => None,
        })?;
        let run = PageRange { page: self.address(chunk, at), pages };
        self.mark_meta(run).ok()?;
        Some(run)
    }

    /// Returns the maximum number of pages in one page range.
    #[must_use]
    pub fn largest_run(&self) -> u32 {
        self.chunk_pages
    }

    /// Reports whether `pages` pages of metadata that belong together should fill small holes instead of an empty
    /// chunk.
    ///
    /// One page range needs one store and few writes of the device. But it leaves holes when its parts are replaced one
    /// at a time. So an empty chunk is preferred until enough pages in metadata chunks are free
    /// ([`META_HOLES`](tuning::META_HOLES)).
    #[must_use]
    pub fn prefers_holes(&self, pages: u32) -> bool {
        let all = self.meta_chunks * u64::from(self.chunk_pages);
        let free = all - self.meta_used;
        let (part, times) = tuning::META_HOLES;
        free * part > all && free > times * u64::from(pages)
    }

    /// Marks the extent that starts at `page` as used.
    ///
    /// # Errors
    /// Returns a description if the page is outside the file, is not the start of an extent, or is in use.
    pub fn mark_extent(&mut self, page: u64) -> Result<(), String> {
        let (chunk, at) = self.locate(page).ok_or_else(|| format!("page {page} lies outside the file"))?;
        let slot = at / self.extent_pages as usize;
        if !at.is_multiple_of(self.extent_pages as usize) || slot >= self.extents_per_chunk() {
            return Err(format!("no extent starts at page {page}"));
        }
        if self.chunks[chunk] == Chunk::Free {
            self.chunks[chunk] = Chunk::Extents(FixedBitSet::with_capacity(self.extents_per_chunk()));
            self.free.remove(&chunk);
            self.extents_with_room.insert(chunk);
        }
        match &mut self.chunks[chunk] {
            Chunk::Extents(used) if !used.contains(slot) => {
                used.insert(slot);
                if used.is_full() {
                    self.extents_with_room.remove(&chunk);
                }
                self.used_pages += u64::from(self.extent_pages);
                Ok(())
            }
            _ => Err(format!("page {page} is named twice")),
        }
    }

    /// Marks a page range of metadata as used.
    ///
    /// # Errors
    /// Returns a description if the range is outside the file, is empty, crosses the end of a chunk, or is in use.
    pub fn mark_meta(&mut self, run: PageRange) -> Result<(), String> {
        let PageRange { page, pages } = run;
        let (chunk, at) = self.locate(page).ok_or_else(|| format!("page {page} lies outside the file"))?;
        let end = at + pages as usize;
        if pages == 0 || end > self.chunk_pages as usize {
            return Err(format!("{pages} pages from {page} on cross the end of a chunk"));
        }
        if self.chunks[chunk] == Chunk::Free {
            self.chunks[chunk] = Chunk::Meta(FixedBitSet::with_capacity(self.chunk_pages as usize));
            self.meta_chunks += 1;
            self.free.remove(&chunk);
            self.meta_with_room.insert(chunk);
        }
        match &mut self.chunks[chunk] {
            Chunk::Meta(used) if !used.contains_any_in_range(at..end) => {
                used.insert_range(at..end);
                if used.is_full() {
                    self.meta_with_room.remove(&chunk);
                }
                self.used_pages += u64::from(pages);
                self.meta_used += u64::from(pages);
                Ok(())
            }
            _ => Err(format!("page {page} is named twice")),
        }
    }

    /// Reports whether a page range is in use. In a chunk of extents it checks the extent that contains the first page.
    #[must_use]
    pub fn is_used(&self, run: PageRange) -> bool {
        let Some((chunk, at)) = self.locate(run.page) else { return false };
        match &self.chunks[chunk] {
            Chunk::Free => false,
            Chunk::Extents(used) => used.contains(at / self.extent_pages as usize),
            Chunk::Meta(used) => {
                let end = at + run.pages as usize;
                end <= used.len() && used.contains_all_in_range(at..end)
            }
        }
    }

    /// Reports whether no page of a range is in use, and all of it lies in one chunk. The pages of a chunk of extents
    /// that fit no extent are never in use.
    #[must_use]
    pub fn is_free(&self, run: PageRange) -> bool {
        let Some((chunk, at)) = self.locate(run.page) else { return false };
        let end = at + run.pages as usize;
        end <= self.chunk_pages as usize
            && match &self.chunks[chunk] {
                Chunk::Free => true,
                Chunk::Extents(used) => {
                    let pages = self.extent_pages as usize;
                    let (first, last) = (at / pages, end.div_ceil(pages));
                    !used.contains_any_in_range(first.min(used.len())..last.min(used.len()))
                }
                Chunk::Meta(used) => !used.contains_any_in_range(at..end),
            }
    }

    /// Returns the free page ranges, from the end of the file to its start. Each lies in one chunk and is as long as
    /// possible.
    pub fn free_ranges(&self) -> impl Iterator<Item = PageRange> {
        (0..self.chunks.len()).rev().flat_map(move |chunk| {
            let all = self.chunk_pages as usize;
            let (used, pages) = match &self.chunks[chunk] {
                Chunk::Free => (None, 1),
                Chunk::Extents(used) => (Some(used), self.extent_pages as usize),
                Chunk::Meta(used) => (Some(used), 1),
            };
            let mut ranges = Vec::new();
            let mut start = 0;
            for at in used.into_iter().flat_map(FixedBitSet::ones) {
                ranges.push(start..at * pages);
                start = (at + 1) * pages;
            }
            ranges.push(start..all);
            let ranges = ranges.into_iter().rev().filter(|range| !range.is_empty());
            ranges.map(move |range| PageRange { page: self.address(chunk, range.start), pages: range.len() as u32 })
        })
    }

    /// Frees a page range that this map handed out or marked as used.
    ///
    /// # Panics
    /// Panics if the range is outside the file or not in use, because a second free would hand it out twice.
    pub fn free(&mut self, run: PageRange) {
        let Some((chunk, at)) = self.locate(run.page) else { panic!("{run:?} lies outside the file") };
        let empty = match &mut self.chunks[chunk] {
            Chunk::Free => panic!("{run:?} is free already"),
            Chunk::Extents(used) => {
                let slot = at / self.extent_pages as usize;
                assert!(used.contains(slot) && run.pages == self.extent_pages, "{run:?} is no extent in use");
                used.remove(slot);
                self.extents_with_room.insert(chunk);
                used.is_clear()
            }
            Chunk::Meta(used) => {
                let range = at..at + run.pages as usize;
                assert!(used.contains_all_in_range(range.clone()), "{run:?} is not all in use");
                used.remove_range(range);
                self.meta_used -= u64::from(run.pages);
                self.meta_with_room.insert(chunk);
                used.is_clear()
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

/// Returns the index of the first run of `n` unset flags.
fn first_fit(used: &FixedBitSet, n: usize) -> Option<usize> {
    let (mut start, mut end) = (0, 0);
    for i in used.zeroes() {
        if i != end {
            start = i;
        }
        end = i + 1;
        if end - start == n {
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
        SpaceMap::new(&IndexParams::of(&config, 256, 64), chunks)
    }

    #[test]
    fn extents_and_metadata_never_share_a_chunk_and_an_empty_chunk_serves_both() {
        let mut map = map(2);
        let extent = map.take_extent().expect("room");
        let meta = map.take_meta(2).expect("room");
        assert_eq!(extent.page, 1);
        assert_eq!(meta.page, map.pages_of(1));
        assert!(map.mark_meta(PageRange { page: extent.page, pages: 1 }).is_err());
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
    fn free_ranges_are_what_is_not_used() {
        let mut map = map(3);
        let extents: Vec<_> = (0..3).map(|_| map.take_extent().expect("room")).collect();
        let meta: Vec<_> = (0..3).map(|_| map.take_meta(2).expect("room")).collect();
        map.free(extents[1]);
        map.free(meta[1]);
        let free: Vec<_> = map.free_ranges().collect();
        assert!(free.is_sorted_by(|a, b| a.page > b.page), "from the end on: {free:?}");
        assert_eq!(free.iter().map(|run| u64::from(run.pages)).sum::<u64>(), map.free_pages());
        assert!(free.contains(&extents[1]) && free.contains(&meta[1]), "{free:?}");
        assert!(free.iter().all(|&run| map.is_free(run)), "{free:?}");
        for used in [extents[0], extents[2], meta[0], meta[2]] {
            assert!(!map.is_free(used) && !map.is_free(PageRange { page: used.end() - 1, pages: 1 }));
        }
        assert!(!map.is_free(PageRange { page: meta[1].page, pages: 3 }), "the last page is in use");
        assert!(!map.is_free(PageRange { page: map.pages_of(3) - 1, pages: 2 }), "past the end");
    }

    #[test]
    fn bad_places_are_refused() {
        let mut map = map(1);
        assert!(map.mark_extent(0).is_err(), "the header");
        assert!(map.mark_extent(2).is_err(), "the middle of an extent");
        assert!(map.mark_extent(1 << 40).is_err(), "past the end");
        assert!(map.mark_meta(PageRange { page: 1, pages: map.chunk_pages + 1 }).is_err(), "across chunks");
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
