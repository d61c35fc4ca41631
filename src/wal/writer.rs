//! Writer of the WAL: encodes records into frames, collects frames into pending stores, stores them in the file, and
//! provides the syncs.

use std::collections::VecDeque;

use super::{layout::WalLayout, segments::Segments};
use crate::{
    error::Result,
    failpoint::reached,
    format::{
        frame::{self, FRAME_ALIGN, FRAME_HEADER_BYTES, Frame, FrameKind},
        header::SegmentHeader,
        root::WalPosition,
    },
    id::Lsn,
    lease::{PlainFile, SyncJob},
    storage::{Purpose, StorageFile},
};

const APPEND: Purpose = Purpose("wal: append");

/// Contiguous bytes that wait to be stored in the file.
#[derive(Debug)]
struct PendingStore {
    offset: u64,
    bytes: Vec<u8>,
}

/// Writer that appends records at the end of the WAL.
#[derive(Debug)]
pub struct WalWriter<F> {
    pub(super) file: PlainFile<F>,
    pub(super) layout: WalLayout,
    index_id: u128,
    epoch: u64,
    seed: u32,
    pub(super) segments: Segments,
    /// Segments of the file behind those known to be durable: a growth before a crash has left them.
    pub(super) behind: usize,
    /// Slot and offset of the next frame; `None` before the first segment of the epoch.
    pub(super) cursor: Option<(usize, u64)>,
    /// Number of the newest segment; 0 before the first one.
    seq: u64,
    last: Lsn,
    durable: Lsn,
    /// Stores that were not tried yet or that failed.
    pending: VecDeque<PendingStore>,
    /// True if the last entry of `pending` accepts more frames.
    open: bool,
    /// Range stored since the last sync: first byte and end.
    unsynced: Option<(u64, u64)>,
    /// True if the file length may not be durable, so the next sync must cover it.
    pub(super) grown: bool,
    /// Number of segments that the file durably holds.
    durable_segments: usize,
    /// Number of segments that are durable once the sync in progress returns `Ok`.
    syncing_segments: usize,
    pub(super) limits: WalLimits,
    /// Bytes stored in the file since the start of the epoch.
    bytes_stored: u64,
    /// Bytes of frames appended since the start of the epoch. The next two fields count those known to be durable, and
    /// those durable once the sync in progress returns `Ok`.
    appended: u64,
    appended_durable: u64,
    appended_syncing: u64,
    pub(super) recycled: u64,
}

/// Limits of the size of the WAL file.
#[derive(Clone, Copy, Debug)]
pub struct WalLimits {
    /// Largest size of the file in bytes.
    pub max_bytes: u64,
    /// Size in bytes up to which the file grows ahead of need. Beyond it the file grows only by as much as its records
    /// need.
    pub target_bytes: u64,
}

impl<F: StorageFile> WalWriter<F> {
    /// Creates a writer at the start of a new epoch. Every segment is free, and the first record gets the LSN after
    /// `last`.
    ///
    /// `durable_segments` is the number of segments that the file durably holds, or 0 if it is unknown.
    ///
    /// # Errors
    /// Returns `Io` if the length of the file cannot be read.
    pub fn start_epoch(
        file: &PlainFile<F>,
        layout: WalLayout,
        index_id: u128,
        epoch: u64,
        last: Lsn,
        durable_segments: usize,
        limits: WalLimits,
    ) -> Result<Self> {
        // The durable length counts, not the present one: the rest of the file may be in the page cache only (R10). The
        // file grows into it again, and a sync then covers the length.
        let segments = match durable_segments {
            0 => layout.segments_in(file.raw().len()?),
            known => known,
        };
        Ok(Self {
            file: file.clone(),
            layout,
            index_id,
            epoch,
            seed: frame::seed(index_id, epoch),
            segments: Segments::of_file(segments),
            behind: layout.segments_in(file.raw().len()?).saturating_sub(segments),
            cursor: None,
            seq: 0,
            last,
            durable: last,
            pending: VecDeque::new(),
            open: false,
            unsynced: None,
            grown: durable_segments == 0,
            durable_segments,
            syncing_segments: durable_segments,
            limits,
            bytes_stored: 0,
            appended: 0,
            appended_durable: 0,
            appended_syncing: 0,
            recycled: 0,
        })
    }

    /// Returns the epoch of all records appended by this writer.
    #[must_use]
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Returns the last LSN assigned.
    #[must_use]
    pub fn last_lsn(&self) -> Lsn {
        self.last
    }

    /// Returns the last LSN known to be durable.
    #[must_use]
    pub fn durable_lsn(&self) -> Lsn {
        self.durable
    }

    /// Returns the number of segments in the file.
    #[must_use]
    pub fn segments(&self) -> usize {
        self.segments.len()
    }

    /// Returns the number of times a segment was freed for reuse.
    #[must_use]
    pub fn recycled(&self) -> u64 {
        self.recycled
    }

    /// Returns the number of bytes stored since the writer was created.
    #[must_use]
    pub fn bytes_stored(&self) -> u64 {
        self.bytes_stored
    }

    /// Returns the number of bytes of accepted records that are not in the file yet, including headers and padding.
    #[must_use]
    pub fn pending_bytes(&self) -> u64 {
        self.pending.iter().map(|run| run.bytes.len() as u64).sum()
    }

    /// Returns the number of bytes of accepted records that are not known to be durable.
    #[must_use]
    pub fn undurable_bytes(&self) -> u64 {
        self.appended - self.appended_durable
    }

    /// Returns the number of bytes from `start` to the end of the WAL.
    #[must_use]
    pub fn bytes_since(&self, start: WalPosition) -> u64 {
        let end = self.position();
        (end.seq.saturating_sub(start.seq) * self.layout.segment_size() + end.offset).saturating_sub(start.offset)
    }

    /// Returns the position of the next frame.
    #[must_use]
    pub fn position(&self) -> WalPosition {
        match self.cursor {
            Some((_, offset)) if offset < self.layout.segment_size() => WalPosition { seq: self.seq, offset },
            _ => self.layout.start_of(self.seq + 1),
        }
    }

    /// Appends a record in memory and returns the LSN of its last frame. The payload is the concatenation of `parts`.
    ///
    /// # Panics
    /// Panics if space for the record was not reserved by [`reserve`](Self::reserve).
    pub fn append(&mut self, kind: FrameKind, parts: &[&[u8]]) -> Lsn {
        let mut left: usize = parts.iter().map(|part| part.len()).sum();
        let mut rest = Parts { parts, at: 0 };
        let mut first = true;
        loop {
            let room = self.room();
            if room < FRAME_HEADER_BYTES + FRAME_ALIGN {
                self.pad(room);
                self.open_segment();
                continue;
            }
            let len = left.min(room - FRAME_HEADER_BYTES);
            // A rest that is too short for a frame becomes slack of this frame, so that every byte of a segment belongs
            // to a frame (invariant 4 of `wal`).
            let aligned = len.next_multiple_of(FRAME_ALIGN);
            let behind = room - FRAME_HEADER_BYTES - aligned;
            let slack = aligned - len + if behind < FRAME_HEADER_BYTES { behind } else { 0 };
            left -= len;
            let frame = Frame {
                kind,
                first,
                last: left == 0,
                lsn: self.last.next().0,
                durable: self.durable.0,
                len: len as u32,
                slack: slack as u16,
            };
            self.put(&frame, rest.take(len));
            self.last = self.last.next();
            if !first {
                reached!(RecordOverSegments);
            }
            first = false;
            if left == 0 {
                return self.last;
            }
        }
    }

    /// Returns the number of bytes left in the newest segment.
    pub(super) fn room(&self) -> usize {
        self.cursor.map_or(0, |(_, offset)| (self.layout.segment_size() - offset) as usize)
    }

    /// Starts the next segment in the lowest free slot.
    fn open_segment(&mut self) {
        #[expect(clippy::expect_used, reason = "an append without a reservation is a mistake of the caller")]
        let slot = self.segments.take(self.seq + 1).expect("a segment was reserved");
        self.seq += 1;
        let header =
            SegmentHeader { index_id: self.index_id, epoch: self.epoch, seq: self.seq, first_lsn: self.last.next().0 };
        let mut bytes = header.encode();
        bytes.resize(self.layout.first_frame() as usize, 0);
        self.pending.push_back(PendingStore { offset: self.layout.segment_start(slot), bytes });
        self.open = true;
        self.cursor = Some((slot, self.layout.first_frame()));
    }

    fn put<'a>(&mut self, frame: &Frame, parts: impl IntoIterator<Item = &'a [u8]>) {
        let Some((slot, offset)) = self.cursor else { unreachable!("a frame needs a segment") };
        if !self.open {
            self.pending
                .push_back(PendingStore { offset: self.layout.segment_start(slot) + offset, bytes: Vec::new() });
            self.open = true;
        }
        let Some(run) = self.pending.back_mut() else { unreachable!("a run is open") };
        frame.encode(self.seed, parts, &mut run.bytes);
        self.cursor = Some((slot, offset + frame.size() as u64));
        self.appended += frame.size() as u64;
    }

    /// Appends a padding frame of `bytes` bytes. Does nothing if `bytes` is 0.
    fn pad(&mut self, bytes: usize) {
        if bytes == 0 {
            return;
        }
        let len = bytes - FRAME_HEADER_BYTES;
        let frame = Frame {
            kind: FrameKind::Pad,
            first: true,
            last: true,
            lsn: self.last.0,
            durable: self.durable.0,
            len: len as u32,
            slack: 0,
        };
        let zeros = vec![0; len];
        self.put(&frame, [zeros.as_slice()]);
    }

    /// Pads the appended records up to a sector boundary and stores them in the file.
    ///
    /// # Errors
    /// Returns `OutOfSpace` or `Io` if a store fails. The records stay accepted, and the next call stores the same
    /// bytes at the same position.
    pub fn write_out(&mut self) -> Result<()> {
        if self.open {
            let sector = self.layout.sector_size();
            let offset = self.cursor.map_or(0, |(_, offset)| offset);
            let mut fill = (offset.next_multiple_of(sector) - offset) as usize;
            if fill > 0 && fill < FRAME_HEADER_BYTES {
                fill += sector as usize;
            }
            self.pad(fill);
            self.open = false;
        }
        while let Some(run) = self.pending.front() {
            self.file.store(run.offset, &run.bytes, APPEND)?;
            let end = run.offset + run.bytes.len() as u64;
            self.bytes_stored += run.bytes.len() as u64;
            self.unsynced = Some(match self.unsynced {
                Some((from, to)) => (from.min(run.offset), to.max(end)),
                None => (run.offset, end),
            });
            self.pending.pop_front();
        }
        Ok(())
    }

    /// Returns the sync that makes everything stored so far durable, and the LSN it covers. Returns `None` if nothing
    /// was stored since the last sync.
    ///
    /// When the sync returns `Ok`, the caller must call [`synced`](Self::synced) with that LSN.
    pub fn sync_job(&mut self, purpose: Purpose) -> Option<(SyncJob<F>, Lsn)> {
        debug_assert!(self.pending.is_empty(), "stored before synced");
        let (from, to) = self.unsynced.take()?;
        self.appended_syncing = self.appended;
        let job = if std::mem::take(&mut self.grown) {
            self.syncing_segments = self.segments.len();
            self.file.sync_all(purpose)
        } else {
            self.file.sync_range(from, to, purpose)
        };
        Some((job, self.last))
    }

    /// Records that a sync up to the LSN `up_to` returned `Ok`.
    pub fn synced(&mut self, up_to: Lsn) {
        self.durable = self.durable.max(up_to);
        self.durable_segments = self.syncing_segments;
        self.appended_durable = self.appended_syncing;
    }

    /// Returns the number of segments that the file durably holds.
    #[must_use]
    pub fn durable_segments(&self) -> usize {
        self.durable_segments
    }

    /// Returns the used slots and the numbers of the segments in them, for checks.
    pub fn used_slots(&self) -> impl Iterator<Item = (usize, u64)> {
        self.segments.used()
    }
}

/// Reader of several slices as one sequence of bytes.
struct Parts<'a, 'b> {
    parts: &'b [&'a [u8]],
    /// Bytes of the first part that were already returned.
    at: usize,
}

impl<'a> Parts<'a, '_> {
    /// Returns the next `n` bytes as a list of pieces.
    fn take(&mut self, mut n: usize) -> Vec<&'a [u8]> {
        let mut out = Vec::new();
        while n > 0 {
            let part = &self.parts[0][self.at..];
            if part.len() <= n {
                out.push(part);
                n -= part.len();
                self.parts = &self.parts[1..];
                self.at = 0;
            } else {
                out.push(&part[..n]);
                self.at += n;
                n = 0;
            }
        }
        out
    }
}
