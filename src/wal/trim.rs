//! Free segments: recycled when no retained root needs them, and their space given back to the file system.

use std::ops::Range;

use super::writer::WalWriter;
use crate::{
    error::Result,
    failpoint::{holds, reached},
    format::root::WalPosition,
    storage::{Purpose, StorageFile},
};

const RELEASE: Purpose = Purpose("wal: give back free space");

impl<F: StorageFile> WalWriter<F> {
    /// Records that no segment takes space: the file was created by this handle, as a hole.
    pub fn none_reserved(&mut self) {
        (0..self.segments.len()).for_each(|slot| self.segments.released(slot));
    }

    /// Returns whether a segment lies completely before `keep` and is not the current one, given its place and number.
    fn is_over(&self, keep: WalPosition) -> impl Fn(usize, u64) -> bool + use<F> {
        let newest = self.cursor.map(|(slot, _)| slot);
        move |slot, seq| holds!(Ordering, seq < keep.seq) && newest != Some(slot)
    }

    /// Frees every segment that lies completely before `keep`, except the current one. Returns the number of segments
    /// freed.
    pub fn recycle(&mut self, keep: WalPosition) -> usize {
        let freed = self.segments.recycle(self.is_over(keep));
        if freed > 0 {
            reached!(SegmentRecycled);
        }
        self.recycled += freed as u64;
        freed
    }

    /// Returns the bytes of the segments that [`recycle`](Self::recycle) would free.
    #[must_use]
    pub fn recyclable_bytes(&self, keep: WalPosition) -> u64 {
        let is_over = self.is_over(keep);
        self.segments.used().filter(|&(slot, seq)| is_over(slot, seq)).count() as u64 * self.layout.segment_size()
    }

    /// Returns the bytes of free segments that may take space, beyond `keep`. 0 before the first segment of the epoch:
    /// the others may hold the closing mark and what an earlier root needs. A segment that the closing mark needs is kept.
    #[must_use]
    pub fn spare_bytes(&self, keep: u64) -> u64 {
        let spare = self.segments.spare(self.kept_segments(keep)).len() + self.behind;
        if self.cursor.is_some() { spare as u64 * self.layout.segment_size() } else { 0 }
    }

    /// Returns the bytes of storage that a trimmed file takes, at most: segments in use, or two with the closing mark, and
    /// what is kept.
    #[must_use]
    pub fn needed_bytes(&self, keep: u64) -> u64 {
        self.layout.file_len(self.segments.used().count().max(2) + self.kept_segments(keep))
    }

    /// The closing mark needs a free segment, unless the newest one has room for it.
    fn kept_segments(&self, keep: u64) -> usize {
        let mark = self.layout.segments_for(0, self.room() as u64);
        ((keep / self.layout.segment_size()) as usize).max(mark)
    }

    /// Gives the space of the newest segment back, but for the page with its header and the page in which records go on. Returns
    /// the number of bytes given back, at most.
    ///
    /// No root needs a record before the end of the WAL: neither those in the slots, nor one that a device may bring back.
    ///
    /// # Errors
    /// Returns `Io`, or `OutOfSpace` if the closing mark finds no room.
    pub fn release_newest(&mut self) -> Result<u64> {
        let mut released = 0;
        for range in self.pages_beside_cursor() {
            let len = range.end - range.start;
            if !self.file.deallocate(range.start, len, RELEASE)? {
                break;
            }
            released += len;
            reached!(SegmentReleased);
        }
        // The closing mark needs space.
        self.reserve(0)?;
        Ok(released)
    }

    /// Returns the byte ranges of the newest segment that are to be given back: the pages before the one in which records go on,
    /// but for the header's, and those behind it. From here on they count as holes, because a failed call may have given back a
    /// part of them.
    pub(super) fn pages_beside_cursor(&mut self) -> Vec<Range<u64>> {
        let Some((slot, offset)) = self.cursor else { return Vec::new() };
        let (page, start) = (self.layout.page_size(), self.layout.segment_start(slot));
        let (front, behind) = (offset / page * page, offset.next_multiple_of(page));
        self.segments.holed(slot, behind);
        let ranges = [page..front, behind..self.layout.segment_size()];
        let of_file = |range: Range<u64>| start + range.start..start + range.end;
        ranges.into_iter().filter(|range| !range.is_empty()).map(of_file).collect()
    }

    /// Returns the bytes of records in the newest segment.
    #[must_use]
    pub fn newest_bytes(&self) -> u64 {
        self.cursor.map_or(0, |(_, offset)| offset)
    }

    /// Gives the space of free segments back to the file system, beyond `keep`. Returns the number of bytes. Returns
    /// `None` if the file system can't do it. The newest segment stays, so that the file never looks like that of an
    /// index without records.
    ///
    /// # Errors
    /// Returns `Io`.
    pub fn release(&mut self, keep: u64) -> Result<Option<u64>> {
        let mut released = 0;
        if self.spare_bytes(keep) == 0 {
            return Ok(Some(0));
        }
        let size = self.layout.segment_size();
        if self.behind > 0 {
            let (from, len) = (self.layout.file_len(self.segments.len()), self.behind as u64 * size);
            if !self.file.deallocate(from, len, RELEASE)? {
                return Ok(None);
            }
            self.behind = 0;
            released += len;
        }
        for slot in self.segments.spare(self.kept_segments(keep)) {
            self.segments.in_doubt(slot);
            if !self.file.deallocate(self.layout.segment_start(slot), size, RELEASE)? {
                return Ok(None);
            }
            self.segments.released(slot);
            reached!(SegmentReleased);
            released += size;
        }
        Ok(Some(released))
    }
}
