//! Where the segments lie in the WAL file.

use crate::format::{frame::FRAME_HEADER_BYTES, geometry::Geometry, header::SEGMENT_HEADER_BYTES, root::WalPosition};

/// Sizes and offsets of a WAL file.
#[derive(Clone, Copy, Debug)]
pub struct WalLayout {
    page_size: u64,
    segment_size: u64,
    sector_size: u64,
}

impl WalLayout {
    /// The layout of an index's WAL.
    #[must_use]
    pub fn new(geometry: &Geometry) -> Self {
        assert!(SEGMENT_HEADER_BYTES <= geometry.sector_size, "a segment's header takes one sector");
        Self {
            page_size: geometry.page_size as u64,
            segment_size: geometry.wal_segment_size,
            sector_size: geometry.sector_size as u64,
        }
    }

    /// Bytes per segment.
    #[must_use]
    pub fn segment_size(&self) -> u64 {
        self.segment_size
    }

    /// Bytes per sector.
    #[must_use]
    pub fn sector_size(&self) -> u64 {
        self.sector_size
    }

    /// Bytes of a file with this many segments.
    #[must_use]
    pub fn file_len(&self, segments: usize) -> u64 {
        self.page_size + segments as u64 * self.segment_size
    }

    /// Segments that a file of `len` bytes holds whole.
    #[must_use]
    pub fn segments_in(&self, len: u64) -> usize {
        (len.saturating_sub(self.page_size) / self.segment_size) as usize
    }

    /// Offset of a segment in the file.
    #[must_use]
    pub fn segment_start(&self, slot: usize) -> u64 {
        self.file_len(slot)
    }

    /// Offset of the first frame within a segment: the header has a sector of its own.
    #[must_use]
    pub fn first_frame(&self) -> u64 {
        self.sector_size
    }

    /// Where the first frame of segment `seq` starts.
    #[must_use]
    pub fn start_of(&self, seq: u64) -> WalPosition {
        WalPosition { seq, offset: self.first_frame() }
    }

    /// More segments than a record of `payload` bytes can need, from wherever it starts.
    #[must_use]
    pub fn segments_for(&self, payload: u64) -> usize {
        // A segment loses its header's sector, one frame header, and less than another to slack.
        let room = self.segment_size - self.sector_size - 2 * FRAME_HEADER_BYTES as u64;
        // One more for the start in a segment already full, one for a closing mark.
        payload.div_ceil(room) as usize + 2
    }
}
