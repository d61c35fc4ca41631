//! Layout of the WAL file: positions and sizes of its segments.

use crate::format::{
    frame::{FRAME_ALIGN, FRAME_HEADER_BYTES},
    geometry::IndexParams,
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
    /// Returns the layout of the WAL of an index.
    ///
    /// # Panics
    /// Panics if a sector is shorter than a segment header.
    #[must_use]
    pub fn new(geometry: &IndexParams) -> Self {
        assert!(SEGMENT_HEADER_BYTES <= geometry.sector_size, "a segment's header takes one sector");
        Self {
            page_size: geometry.page_size as u64,
            segment_size: geometry.wal_segment_size,
            sector_size: geometry.sector_size as u64,
        }
    }

    /// Returns the length of a page in bytes.
    #[must_use]
    pub fn page_size(&self) -> u64 {
        self.page_size
    }

    /// Returns the length of a segment in bytes.
    #[must_use]
    pub fn segment_size(&self) -> u64 {
        self.segment_size
    }

    /// Returns the length of a sector in bytes.
    #[must_use]
    pub fn sector_size(&self) -> u64 {
        self.sector_size
    }

    /// Returns the length in bytes of a WAL file with this many segments.
    #[must_use]
    pub fn file_len(&self, segments: usize) -> u64 {
        self.page_size + segments as u64 * self.segment_size
    }

    /// Returns the number of complete segments in a file of `len` bytes.
    #[must_use]
    pub fn segments_in(&self, len: u64) -> usize {
        (len.saturating_sub(self.page_size) / self.segment_size) as usize
    }

    /// Returns the offset in the file of the segment in slot `slot`.
    #[must_use]
    pub fn segment_start(&self, slot: usize) -> u64 {
        self.file_len(slot)
    }

    /// Returns the offset of the first frame within a segment. The segment header has its own sector.
    #[must_use]
    pub fn first_frame(&self) -> u64 {
        self.sector_size
    }

    /// Returns the position of the first frame of segment `seq`.
    #[must_use]
    pub fn start_of(&self, seq: u64) -> WalPosition {
        WalPosition { seq, offset: self.first_frame() }
    }

    /// Returns the bytes that a record of `payload` bytes takes at most in the segment in which it ends, with the segment's
    /// header, the padding of its commit and a closing mark.
    #[must_use]
    pub fn bytes_for(&self, payload: u64) -> u64 {
        let (header, align) = (FRAME_HEADER_BYTES as u64, FRAME_ALIGN as u64);
        (payload + 4 * self.sector_size + 3 * (header + align)).min(self.segment_size)
    }

    /// Returns the number of new segments that a record of `payload` bytes and a closing mark after it need, if the
    /// newest segment has `room` bytes left. It lays out frames exactly as the writer does.
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
        // The commit pads up to the end of its sector, or of the next one if the rest is too short for a frame. The
        // closing mark starts after that.
        let mark = 2 * self.sector_size + header + align;
        segments + usize::from(room < mark)
    }
}
