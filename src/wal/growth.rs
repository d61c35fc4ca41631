//! Space of the WAL for the next record: segments that are reserved, in steps, and added to the file.

use super::writer::WalWriter;
use crate::{
    error::{Result, ShardexError},
    failpoint::{protects, reached},
    format::frame::{FRAME_ALIGN, FRAME_HEADER_BYTES},
    storage::{Purpose, StorageFile},
    tuning::FIRST_RESERVED_BYTES,
};

const GROW: Purpose = Purpose("wal: grow");
const RESERVE: Purpose = Purpose("wal: allocate a hole");

impl<F: StorageFile> WalWriter<F> {
    /// Ensures that a record of `payload` bytes can be appended. Grows the file if necessary.
    ///
    /// # Errors
    /// Returns `BatchTooLarge` if the record does not fit beside the segments that must be kept. A flush frees
    /// segments. A record larger than the maximum WAL never fits. Returns `OutOfSpace` or `Io` if the file cannot grow.
    /// The writer is unchanged after an error.
    pub fn reserve(&mut self, payload: u64) -> Result<()> {
        let free = self.segments.free_count();
        let need = self.layout.segments_for(payload, self.room() as u64);
        if need > free {
            self.grow(payload, need - free)?;
        }
        let (size, bytes) = (self.layout.segment_size(), self.layout.bytes_for(payload));
        if let Some((slot, offset)) = self.cursor {
            self.reserve_in(slot, if need > 0 { size } else { offset + bytes })?;
        }
        for (slot, behind) in self.segments.next_places(need).into_iter().zip((0..need).rev()) {
            self.reserve_in(slot, if behind > 0 { size } else { bytes })?;
        }
        Ok(())
    }

    /// Reserves the space of at least the first `bytes` of a segment, or all of it. Small records reserve it in steps that
    /// double, so that the WAL of a small index is small.
    fn reserve_in(&mut self, slot: usize, bytes: u64) -> Result<()> {
        let (size, known) = (self.layout.segment_size(), self.segments.reserved_bytes(slot));
        if bytes.min(size) <= known {
            return Ok(());
        }
        let to = bytes.max(2 * known).max(FIRST_RESERVED_BYTES).min(size);
        self.segments.growing(slot);
        self.file.raw().allocate(self.layout.segment_start(slot) + known, to - known, RESERVE)?;
        self.segments.reserved(slot, to);
        reached!(SegmentReserved);
        Ok(())
    }

    /// Adds at least `missing` segments to the file, for a record of `payload` bytes.
    fn grow(&mut self, payload: u64, missing: usize) -> Result<()> {
        let before = self.segments.len();
        let least = before + missing;
        let most = self.layout.segments_in(self.limits.max_bytes);
        if least > most {
            return Err(ShardexError::BatchTooLarge { bytes: payload, limit: self.max_payload() });
        }
        let more = (before + before / 4).min(self.layout.segments_in(self.limits.target_bytes));
        let segments = least.max(more).min(most);
        let from = self.layout.file_len(before);
        self.file.raw().allocate(from, self.layout.file_len(segments) - from, GROW)?;
        self.grown |= protects!(Ordering);
        self.behind = self.behind.saturating_sub(segments - before);
        self.segments.grow(segments, self.layout.segment_size());
        reached!(WalGrew);
        Ok(())
    }

    /// Reserves space for the closing mark after a commit. If a record was appended in this epoch, its
    /// [reservation](Self::reserve) included the mark, so a close then needs no further space. A trim keeps it.
    ///
    /// # Errors
    /// Returns the errors of [`reserve`](Self::reserve).
    pub fn reserve_mark(&mut self) -> Result<()> {
        if self.room() < FRAME_HEADER_BYTES + FRAME_ALIGN { self.reserve(0) } else { Ok(()) }
    }

    /// Returns a payload size that fits an empty WAL. It is a lower bound of the capacity: it leaves out two segments
    /// and the bytes of two frame headers per segment.
    #[must_use]
    pub fn max_payload(&self) -> u64 {
        let segments = self.layout.segments_in(self.limits.max_bytes).saturating_sub(2) as u64;
        segments * (self.layout.segment_size() - self.layout.sector_size() - 2 * FRAME_HEADER_BYTES as u64)
    }
}
