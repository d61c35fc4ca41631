//! Wiping the WAL: records that no root needs any more become zeros.

use super::writer::WalWriter;
use crate::{
    error::Result,
    failpoint::reached,
    storage::{Purpose, StorageFile},
};

const WIPE: Purpose = Purpose("wal: wipe");

/// Zeros that are stored at once.
const ZEROS: usize = 1 << 20;

impl<F: StorageFile> WalWriter<F> {
    /// Makes everything zeros but the header of the newest segment, so that the file never looks like that of an index without
    /// records. Returns the number of bytes given back or made zeros.
    ///
    /// All records are stored, and no retained root needs one: a flush has freed all segments but the newest.
    ///
    /// # Errors
    /// Returns `Io`, or `OutOfSpace` if zeros or the next records find no room. Some bytes may be zeros then, and the call can be
    /// repeated.
    pub fn wipe(&mut self) -> Result<u64> {
        let (size, mut wiped) = (self.layout.segment_size(), 0);
        if self.behind > 0 {
            let from = self.layout.file_len(self.segments.len());
            wiped += self.wipe_whole(from, self.behind as u64 * size)?;
            self.behind = 0;
        }
        for slot in self.segments.spare(0) {
            self.segments.in_doubt(slot);
            wiped += self.wipe_whole(self.layout.segment_start(slot), size)?;
            self.segments.released(slot);
        }
        for range in self.pages_beside_cursor() {
            wiped += self.wipe_whole(range.start, range.end - range.start)?;
        }
        if let Some((slot, offset)) = self.cursor {
            // These pages hold the header and the end of the records, so they have space.
            let (page, start) = (self.layout.page_size(), self.layout.segment_start(slot));
            let end = offset.next_multiple_of(page);
            wiped += self.wipe_bytes(start + self.layout.first_frame(), start + page.min(end))?;
            if end > page {
                wiped += self.wipe_bytes(start + offset / page * page, start + end)?;
            }
        }
        // The closing mark needs space.
        self.reserve(0)?;
        reached!(LogWiped);
        Ok(wiped)
    }

    /// Gives space back, or makes its bytes zeros if the file system can't do that. It reads nothing first: after a failed
    /// sync, zeros in memory prove nothing about the device (R10).
    fn wipe_whole(&self, from: u64, len: u64) -> Result<u64> {
        if !self.file.deallocate(from, len, WIPE)? {
            // The file may be a copy that takes no space where there are bytes.
            self.file.raw().allocate(from, len, WIPE)?;
            self.wipe_bytes(from, from + len)?;
        }
        Ok(len)
    }

    fn wipe_bytes(&self, from: u64, to: u64) -> Result<u64> {
        let zeros = vec![0; ((to - from) as usize).min(ZEROS)];
        for at in (from..to).step_by(ZEROS) {
            self.file.store(at, &zeros[..((to - at) as usize).min(ZEROS)], WIPE)?;
        }
        Ok(to - from)
    }
}
