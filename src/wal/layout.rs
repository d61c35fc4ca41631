//! Where the segments lie in the WAL file.

use crate::format::{
    frame::{FRAME_ALIGN, FRAME_HEADER_BYTES},
    geometry::Geometry,
    header::SEGMENT_HEADER_BYTES,
    root::WalPosition,
};

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

    /// New segments that a record of `payload` bytes takes, and a closing mark behind it, where the newest segment has `room`
    /// bytes left. Frames are laid out as the writer lays them out.
    #[must_use]
    pub fn segments_for(&self, payload: u64, room: u64) -> usize {
        let (header, align) = (FRAME_HEADER_BYTES as u64, FRAME_ALIGN as u64);
        let (mut left, mut room, mut segments) = (payload, room, 0);
        loop {
            if room < header + align {
                segments += 1;
                room = self.segment_size - self.sector_size;
            }
            let len = left.min(room - header);
            left -= len;
            room -= header + len.next_multiple_of(align);
            if left == 0 {
                break;
            }
        }
        // The commit fills up its sector, the one after it if that is too little, and the mark starts on the next.
        let mark = 2 * self.sector_size + header + align;
        segments + usize::from(room < mark)
    }
}
