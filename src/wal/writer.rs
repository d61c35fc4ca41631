//! Appending: records into frames, frames into runs of bytes, runs into the file, the file onto the device.

use std::collections::VecDeque;

use super::layout::WalLayout;
use crate::{
    error::{Result, ShardexError},
    format::{
        frame::{self, FRAME_ALIGN, FRAME_HEADER_BYTES, Frame, FrameKind},
        header::SegmentHeader,
        root::WalPosition,
    },
    id::Lsn,
    lease::{PlainFile, SyncJob},
    site::{self, Kind, Mark},
    storage::{Purpose, StorageFile},
};

const GROW: Purpose = Purpose("wal: grow");
const APPEND: Purpose = Purpose("wal: append");

/// Bytes on their way to the file, in one piece.
#[derive(Debug)]
struct RunOut {
    offset: u64,
    bytes: Vec<u8>,
}

/// What a place for a segment holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Slot {
    Free,
    /// The segment of this number in the current epoch.
    Used(u64),
}

/// The end of the WAL at which records are appended.
#[derive(Debug)]
pub struct WalWriter<F> {
    file: PlainFile<F>,
    layout: WalLayout,
    index_id: u128,
    epoch: u64,
    seed: u32,
    slots: Vec<Slot>,
    /// Slot and offset of the next frame; `None` before the epoch's first segment.
    cursor: Option<(usize, u64)>,
    /// Number of the newest segment; 0 before the first.
    seq: u64,
    last: Lsn,
    durable: Lsn,
    /// Not yet stored, or stored without success.
    pending: VecDeque<RunOut>,
    /// The last of `pending` is open for more.
    open: bool,
    /// Stored since the last sync: first byte, end, and the LSN they reach up to.
    unsynced: Option<(u64, u64)>,
    /// The length is not known to be durable, so the next sync must cover it.
    grown: bool,
    /// Segments that the file holds whatever happens.
    durable_segments: usize,
    /// The same once the sync that was handed out has returned.
    syncing_segments: usize,
    max_bytes: u64,
    /// Up to here it grows by more than it needs, to grow seldom.
    target_bytes: u64,
    bytes_stored: u64,
    /// Bytes of frames appended, and how many of these are known to be on the device, or will be once the sync that was
    /// handed out has returned.
    appended: u64,
    appended_durable: u64,
    appended_syncing: u64,
    recycled: u64,
}

impl<F: StorageFile> WalWriter<F> {
    /// A writer at the start of a new epoch: every segment is free, and the first record will get the LSN after `last`. The
    /// file is known to hold `durable_segments` segments; 0 if nobody
    /// knows. It takes at most `max_bytes`, and beyond `target_bytes` no more than its records need.
    ///
    /// # Errors
    /// `Io` if the file's length cannot be told.
    pub fn start_epoch(
        file: &PlainFile<F>,
        layout: WalLayout,
        index_id: u128,
        epoch: u64,
        last: Lsn,
        durable_segments: usize,
        (max_bytes, target_bytes): (u64, u64),
    ) -> Result<Self> {
        // As long as it is known to be, not as it seems: what lies beyond may be in the page cache alone (R10). It is grown
        // into again, and then a sync covers the length.
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
            slots: vec![Slot::Free; segments],
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
            max_bytes,
            target_bytes,
            bytes_stored: 0,
            appended: 0,
            appended_durable: 0,
            appended_syncing: 0,
            recycled: 0,
        })
    }

    /// The epoch of all records appended here.
    #[must_use]
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// The last LSN given out.
    #[must_use]
    pub fn last_lsn(&self) -> Lsn {
        self.last
    }

    /// The last LSN known to be on the device.
    #[must_use]
    pub fn durable_lsn(&self) -> Lsn {
        self.durable
    }

    /// Segments in the file.
    #[must_use]
    pub fn segments(&self) -> usize {
        self.slots.len()
    }

    /// Times a segment was set free for another use.
    #[must_use]
    pub fn recycled(&self) -> u64 {
        self.recycled
    }

    /// Bytes stored so far.
    #[must_use]
    pub fn bytes_stored(&self) -> u64 {
        self.bytes_stored
    }

    /// Bytes of accepted records that are not in the file yet.
    #[must_use]
    pub fn pending_bytes(&self) -> u64 {
        self.pending.iter().map(|run| run.bytes.len() as u64).sum()
    }

    /// Bytes of accepted records that are not known to be on the device.
    #[must_use]
    pub fn undurable_bytes(&self) -> u64 {
        self.appended - self.appended_durable
    }

    /// Bytes from `start` to the end of the WAL.
    #[must_use]
    pub fn bytes_since(&self, start: WalPosition) -> u64 {
        let end = self.position();
        (end.seq.saturating_sub(start.seq) * self.layout.segment_size() + end.offset).saturating_sub(start.offset)
    }

    /// Where the next frame goes.
    #[must_use]
    pub fn position(&self) -> WalPosition {
        match self.cursor {
            Some((_, offset)) if offset < self.layout.segment_size() => WalPosition { seq: self.seq, offset },
            _ => self.layout.start_of(self.seq + 1),
        }
    }

    /// Makes sure that a record of `payload` bytes can be appended, growing the file if need be.
    ///
    /// # Errors
    /// `BatchTooLarge` if it does not fit beside what must be kept (a flush frees that, unless the record is larger
    /// than the whole WAL may be); `OutOfSpace`, `Io`. Nothing has changed then.
    pub fn reserve(&mut self, payload: u64) -> Result<()> {
        let free = self.slots.iter().filter(|&&slot| slot == Slot::Free).count();
        let need = self.layout.segments_for(payload, self.room() as u64);
        if need <= free {
            return Ok(());
        }
        let least = self.slots.len() + (need - free);
        let most = self.layout.segments_in(self.max_bytes);
        if least > most {
            return Err(ShardexError::BatchTooLarge { bytes: payload, limit: self.max_payload() });
        }
        let more = (self.slots.len() + self.slots.len() / 4).min(self.layout.segments_in(self.target_bytes));
        let segments = least.max(more).min(most);
        self.file.raw().allocate(self.layout.file_len(segments), GROW)?;
        self.grown |= site::applies(Kind::Ordering, true);
        self.slots.resize(segments, Slot::Free);
        site::reach(Mark::WalGrew);
        Ok(())
    }

    /// Makes room for the closing mark, after a commit. Where a record came before, its [reservation](Self::reserve) was for
    /// the mark, too, so that a close needs no room that there may not be.
    ///
    /// # Errors
    /// As [`reserve`](Self::reserve).
    pub fn reserve_mark(&mut self) -> Result<()> {
        match self.room() < FRAME_HEADER_BYTES + FRAME_ALIGN {
            true => self.reserve(0),
            false => Ok(()),
        }
    }

    /// The largest payload that fits an empty WAL.
    #[must_use]
    pub fn max_payload(&self) -> u64 {
        let segments = self.layout.segments_in(self.max_bytes).saturating_sub(2) as u64;
        segments * (self.layout.segment_size() - self.layout.sector_size() - 2 * FRAME_HEADER_BYTES as u64)
    }

    /// Appends a record, in memory, and returns the LSN of its end. The parts together are its payload.
    ///
    /// # Panics
    /// If there is no room: [`reserve`](Self::reserve) comes first.
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
            // What is too small for a frame of its own belongs to this one, so that every byte of a segment belongs to a
            // frame (invariant 4).
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
                site::reach(Mark::RecordOverSegments);
            }
            first = false;
            if left == 0 {
                return self.last;
            }
        }
    }

    /// Bytes left in the newest segment.
    fn room(&self) -> usize {
        self.cursor.map_or(0, |(_, offset)| (self.layout.segment_size() - offset) as usize)
    }

    /// Starts the next segment in the lowest free slot.
    fn open_segment(&mut self) {
        #[expect(clippy::expect_used, reason = "an append without a reservation is a mistake of the caller")]
        let slot = self.slots.iter().position(|&slot| slot == Slot::Free).expect("a segment was reserved");
        self.seq += 1;
        self.slots[slot] = Slot::Used(self.seq);
        let header =
            SegmentHeader { index_id: self.index_id, epoch: self.epoch, seq: self.seq, first_lsn: self.last.next().0 };
        let mut bytes = header.encode();
        bytes.resize(self.layout.first_frame() as usize, 0);
        self.pending.push_back(RunOut { offset: self.layout.segment_start(slot), bytes });
        self.open = true;
        self.cursor = Some((slot, self.layout.first_frame()));
    }

    fn put<'a>(&mut self, frame: &Frame, parts: impl IntoIterator<Item = &'a [u8]>) {
        let Some((slot, offset)) = self.cursor else { unreachable!("a frame needs a segment") };
        if !self.open {
            self.pending.push_back(RunOut { offset: self.layout.segment_start(slot) + offset, bytes: Vec::new() });
            self.open = true;
        }
        let Some(run) = self.pending.back_mut() else { unreachable!("a run is open") };
        frame.encode(self.seed, parts, &mut run.bytes);
        self.cursor = Some((slot, offset + frame.size() as u64));
        self.appended += frame.size() as u64;
    }

    /// Fills `bytes` bytes with a frame of padding; 0 is nothing to fill.
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

    /// Stores all appended records in the file, up to a sector boundary.
    ///
    /// # Errors
    /// `OutOfSpace`, `Io`: the records stay accepted, and the next call stores the same bytes in the same place.
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

    /// The sync that makes everything stored so far durable; `None` if nothing waits for one.
    ///
    /// When it has returned `Ok`, [`synced`](Self::synced) is to be called with the LSN returned here.
    pub fn sync_job(&mut self, purpose: Purpose) -> Option<(SyncJob<F>, Lsn)> {
        debug_assert!(self.pending.is_empty(), "stored before synced");
        let (from, to) = self.unsynced.take()?;
        self.appended_syncing = self.appended;
        let job = if std::mem::take(&mut self.grown) {
            self.syncing_segments = self.slots.len();
            self.file.sync_all(purpose)
        } else {
            self.file.sync_range(from, to, purpose)
        };
        Some((job, self.last))
    }

    /// Notes that a sync returned `Ok`.
    pub fn synced(&mut self, up_to: Lsn) {
        self.durable = self.durable.max(up_to);
        self.durable_segments = self.syncing_segments;
        self.appended_durable = self.appended_syncing;
    }

    /// Segments that the file holds whatever happens.
    #[must_use]
    pub fn durable_segments(&self) -> usize {
        self.durable_segments
    }

    /// Sets free every segment that lies wholly before `keep`.
    pub fn recycle(&mut self, keep: WalPosition) -> usize {
        let mut freed = 0;
        for (i, slot) in self.slots.iter_mut().enumerate() {
            let current = self.cursor.is_some_and(|(at, _)| at == i);
            if matches!(*slot, Slot::Used(seq) if site::holds(Kind::Ordering, seq < keep.seq)) && !current {
                *slot = Slot::Free;
                freed += 1;
                site::reach(Mark::SegmentRecycled);
            }
        }
        self.recycled += freed as u64;
        freed
    }

    /// The newest segment's slots and the numbers of the segments in them, for checks.
    pub fn used_slots(&self) -> impl Iterator<Item = (usize, u64)> {
        self.slots.iter().enumerate().filter_map(|(i, slot)| match slot {
            Slot::Used(seq) => Some((i, *seq)),
            Slot::Free => None,
        })
    }
}

/// Hands out the bytes of several slices one after another.
struct Parts<'a, 'b> {
    parts: &'b [&'a [u8]],
    /// Bytes of the first part already handed out.
    at: usize,
}

impl<'a> Parts<'a, '_> {
    /// The next `n` bytes, in as many pieces as it takes.
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
