//! Replay: reading the chain of records from a position to the end of the WAL, and distinguishing a torn tail from a
//! hole.

use std::{collections::BTreeMap, ops::Range};

use super::layout::WalLayout;
use crate::{
    error::{Result, ShardexError},
    failpoint::{holds, protects, reached},
    format::{
        frame::{self, FRAME_HEADER_BYTES, Frame, FrameKind},
        header::{SEGMENT_HEADER_BYTES, SegmentHeader},
        root::WalPosition,
    },
    id::Lsn,
    limits::FORMAT_VERSION,
    storage::StorageFile,
};

/// Complete record.
#[derive(Debug, PartialEq, Eq)]
pub struct Record {
    /// Kind of the record: `Batch`, or `Add` or `Remove` of version 1.
    pub kind: FrameKind,
    /// LSN of its last frame.
    pub lsn: Lsn,
    /// Payload of the record.
    pub payload: Vec<u8>,
    /// Offset of its first frame in the file, in bytes, for messages.
    pub offset: u64,
}

/// State of the end of the WAL after replay.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tail {
    /// LSN of the last complete record or closing mark; the checkpoint if there is none.
    pub last: Lsn,
    /// Number of complete records found.
    pub records: u64,
    /// True if the last frame is a closing mark.
    pub closed: bool,
    /// True if bytes of a commit that was never acknowledged follow.
    pub torn: bool,
    /// Newest epoch of any segment of the index. It is newer than the epochs in the roots if the device returned an
    /// older root.
    pub newest_epoch: u64,
}

/// Reads the records after `checkpoint`, starting at `start`, and passes each of them to `apply` in order.
///
/// The chain ends at the first frame that is not the next one. If a frame behind that position records that the missing
/// LSN was durable, the WAL has a hole, and the replay fails. Otherwise the end is a torn tail, of which nothing was
/// acknowledged.
///
/// # Errors
/// Returns `Corruption` if the WAL has a hole or if two segments have the same number, `Io`, or any error that `apply`
/// returns.
pub fn replay<F: StorageFile>(
    file: &F,
    layout: WalLayout,
    index_id: u128,
    epoch: u64,
    start: WalPosition,
    checkpoint: Lsn,
    mut apply: impl FnMut(Record) -> Result<()>,
) -> Result<Tail> {
    let seed = frame::seed(index_id, epoch);
    let segments = segment_slots(file, layout, index_id, epoch)?;
    let slots = &segments.slots;
    let mut replay = Replay {
        at: start,
        chain: Chain { last: checkpoint, partial: None },
        tail: Tail { last: checkpoint, newest_epoch: segments.newest_epoch, ..Tail::default() },
    };
    replay.follow(file, layout, slots, seed, &mut apply)?;
    let Replay { at, chain, mut tail } = replay;
    let mut later: Vec<_> = slots.range(at.seq..).map(|(&seq, &(slot, _))| (slot, layout.start_of(seq))).collect();
    if let Some((_, first)) = later.first_mut()
        && first.seq == at.seq
    {
        *first = at;
    }
    // In an epoch nothing follows a closing mark, so segments without a valid header are not searched.
    let headless = if tail.closed { Vec::new() } else { headless_segments(file, layout, &segments, start, seed)? };
    later.extend(headless.iter().map(|&slot| (slot, layout.start_of(u64::MAX))));
    let behind = look_behind(file, layout, &later, seed, chain.last)?;
    if let Some(durable) = behind.durable
        && protects!(ErrorCheck, durable > chain.last.0)
    {
        reached!(HoleFound);
        // Offset of the missing record. If no header names its segment, the offset of the first headless segment.
        let known = slots.get(&at.seq).map(|&(slot, _)| layout.segment_start(slot) + at.offset);
        let offset = known.or(headless.first().map(|&slot| layout.segment_start(slot))).unwrap_or(0);
        let next = chain.last.next();
        let what =
            format!("WAL record {next} is missing, yet a later one says that records up to {durable} were durable");
        return Err(ShardexError::Corruption { file: file.path(), offset, what });
    }
    tail.torn = behind.frames || chain.partial.is_some();
    if tail.torn {
        reached!(TornTail);
    }
    Ok(tail)
}

/// State of a replay: the position of the next frame, and the records found so far.
struct Replay {
    at: WalPosition,
    chain: Chain,
    tail: Tail,
}

impl Replay {
    /// Follows the chain of frames from `at` to the first frame that is not the next one, and passes each record to
    /// `apply`.
    fn follow<F: StorageFile>(
        &mut self,
        file: &F,
        layout: WalLayout,
        slots: &BTreeMap<u64, (usize, u64)>,
        seed: u32,
        apply: &mut impl FnMut(Record) -> Result<()>,
    ) -> Result<()> {
        let Self { at, chain, tail } = self;
        let mut segment = Vec::new();
        while let Some(&(slot, _)) = slots.get(&at.seq) {
            read_segment(file, layout, slot, &mut segment)?;
            while at.offset < layout.segment_size() {
                let bytes = segment.get(at.offset as usize..).unwrap_or_default();
                let Ok((frame, payload)) = Frame::decode(bytes, seed) else { return Ok(()) };
                let offset = layout.segment_start(slot) + at.offset;
                match chain.link(&frame, payload, offset) {
                    Link::Broken => return Ok(()),
                    Link::Pad => {}
                    Link::Unknown => {
                        // Its checksum holds, so it is neither torn nor damaged: a later build wrote it.
                        let (file, found) = (file.path(), FORMAT_VERSION + 1);
                        return Err(ShardexError::UnsupportedVersion { file, found, supported: FORMAT_VERSION });
                    }
                    Link::Part => tail.closed = false,
                    Link::Closed => {
                        tail.closed = true;
                        tail.last = chain.last;
                    }
                    Link::Whole(record) => {
                        tail.closed = false;
                        tail.last = record.lsn;
                        tail.records += 1;
                        apply(record)?;
                    }
                }
                at.offset += frame.size() as u64;
            }
            *at = layout.start_of(at.seq + 1);
        }
        Ok(())
    }
}

/// Returns the slots of segments that hold frames of the epoch although their header does not match: the header is not
/// of the epoch, or its first LSN differs from that of the first frame.
fn headless_segments<F: StorageFile>(
    file: &F,
    layout: WalLayout,
    segments: &Segments,
    start: WalPosition,
    seed: u32,
) -> Result<Vec<usize>> {
    let before = segments.slots.range(..start.seq).map(|(_, &(slot, first_lsn))| (slot, Some(first_lsn)));
    let mut headless = Vec::new();
    for (slot, first_lsn) in before.chain(segments.others.iter().map(|&slot| (slot, None))) {
        let first = first_frame(file, layout, slot, seed)?;
        if protects!(ErrorCheck, first.is_some_and(|first| Some(first.lsn) != first_lsn)) {
            reached!(HeadlessSegment);
            headless.push(slot);
        }
    }
    Ok(headless)
}

/// Reports whether all segments `range` of an epoch are in the file.
///
/// A freed segment stays there until its slot is reused. Slots are reused in slot order, which after the first reuse is not the
/// order of the segments' numbers. So the first segment may be there while a later one is gone.
///
/// # Errors
/// Returns `Corruption` if two segments have the same number, or `Io`.
pub fn has_segments<F: StorageFile>(
    file: &F,
    layout: WalLayout,
    index_id: u128,
    epoch: u64,
    range: Range<u64>,
) -> Result<bool> {
    let slots = segment_slots(file, layout, index_id, epoch)?.slots;
    Ok(range.end - range.start == slots.range(range).count() as u64)
}

/// Content of the segment headers in the file.
struct Segments {
    /// Slot and first LSN of each segment of the epoch, by segment number.
    slots: BTreeMap<u64, (usize, u64)>,
    /// Slots whose header is not of the epoch. Such a segment was never used, was torn at its first store, belongs to
    /// another epoch, is damaged, or was returned by the device in an earlier version. In the last two cases it may
    /// hold acknowledged records. Then a later frame proves that they were durable.
    others: Vec<usize>,
    /// Newest epoch of any segment of the index.
    newest_epoch: u64,
}

fn segment_slots<F: StorageFile>(file: &F, layout: WalLayout, index_id: u128, epoch: u64) -> Result<Segments> {
    let mut segments = Segments { slots: BTreeMap::new(), others: Vec::new(), newest_epoch: 0 };
    let mut bytes = [0; SEGMENT_HEADER_BYTES];
    for slot in 0..layout.segments_in(file.len()?) {
        file.read_at(layout.segment_start(slot), &mut bytes)?;
        let header = SegmentHeader::decode(&bytes).ok().filter(|header| header.index_id == index_id);
        segments.newest_epoch = segments.newest_epoch.max(header.as_ref().map_or(0, |header| header.epoch));
        match header.filter(|header| holds!(ErrorCheck, header.epoch == epoch)) {
            None => segments.others.push(slot),
            Some(header) => {
                if let Some((other, _)) = segments.slots.insert(header.seq, (slot, header.first_lsn)) {
                    return Err(ShardexError::Corruption {
                        file: file.path(),
                        offset: layout.segment_start(slot),
                        what: format!("segment {} is here and in slot {other}", header.seq),
                    });
                }
            }
        }
    }
    Ok(segments)
}

/// Reads the first frame of a segment, independent of the segment header. Returns `None` if it is not a frame of the
/// epoch.
fn first_frame<F: StorageFile>(file: &F, layout: WalLayout, slot: usize, seed: u32) -> Result<Option<Frame>> {
    let mut bytes = vec![0; FRAME_HEADER_BYTES];
    let at = layout.segment_start(slot) + layout.first_frame();
    file.read_at(at, &mut bytes)?;
    let len = Frame::claimed_size(&bytes) as u64;
    if len > layout.segment_size() - layout.first_frame() {
        return Ok(None);
    }
    bytes.resize(len as usize, 0);
    file.read_at(at, &mut bytes)?;
    Ok(Frame::decode(&bytes, seed).ok().map(|(frame, _)| frame))
}

fn read_segment<F: StorageFile>(file: &F, layout: WalLayout, slot: usize, into: &mut Vec<u8>) -> Result<()> {
    into.resize(layout.segment_size() as usize, 0);
    file.read_at(layout.segment_start(slot), into)
}

/// Frames found behind the end of the chain.
#[derive(Default)]
struct Behind {
    /// True if a frame with an LSN greater than the last one of the chain was found.
    frames: bool,
    /// Highest durable LSN that any of these frames records.
    durable: Option<u64>,
}

/// Searches for frames of this epoch behind the end of the chain. It reads at sector boundaries only: every commit
/// starts on one, so the first frame of each commit is found, independent of the bytes between.
fn look_behind<F: StorageFile>(
    file: &F,
    layout: WalLayout,
    later: &[(usize, WalPosition)],
    seed: u32,
    last: Lsn,
) -> Result<Behind> {
    let mut behind = Behind::default();
    let mut segment = Vec::new();
    for &(slot, from) in later {
        read_segment(file, layout, slot, &mut segment)?;
        let mut at = from.offset.next_multiple_of(layout.sector_size());
        while at < layout.segment_size() {
            // Frames from an earlier use of the segment have LSNs that the chain has passed, so they are ignored.
            if let Ok((frame, _)) = Frame::decode(&segment[at as usize..], seed)
                && frame.lsn > last.0
            {
                behind.frames = true;
                behind.durable = behind.durable.max(Some(frame.durable));
            }
            at += layout.sector_size();
        }
    }
    Ok(behind)
}

/// Chain of frames read so far.
struct Chain {
    last: Lsn,
    /// Record whose last frame is not read yet.
    partial: Option<Record>,
}

enum Link {
    Broken,
    /// The next frame, of a kind that a later version has added.
    Unknown,
    Pad,
    Part,
    Whole(Record),
    Closed,
}

impl Chain {
    fn link(&mut self, frame: &Frame, payload: &[u8], offset: u64) -> Link {
        if frame.kind == FrameKind::Pad {
            return if frame.lsn == self.last.0 { Link::Pad } else { Link::Broken };
        }
        if !holds!(ErrorCheck, frame.lsn == self.last.next().0) {
            return Link::Broken;
        }
        if protects!(ErrorCheck, matches!(frame.kind, FrameKind::Unknown(_))) {
            return Link::Unknown;
        }
        let mut record = match (self.partial.take(), frame.first) {
            (None, true) => Record { kind: frame.kind, lsn: Lsn(0), payload: Vec::new(), offset },
            (Some(partial), false) if partial.kind == frame.kind => partial,
            (partial, _) => {
                self.partial = partial;
                return Link::Broken;
            }
        };
        record.payload.extend_from_slice(payload);
        record.lsn = Lsn(frame.lsn);
        self.last = record.lsn;
        match (frame.last, frame.kind) {
            (true, FrameKind::Close) => Link::Closed,
            (true, _) => Link::Whole(record),
            (false, _) => {
                self.partial = Some(record);
                Link::Part
            }
        }
    }
}
