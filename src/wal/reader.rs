//! Replay: the chain of records from a position to the end of the WAL, and the difference between an end and a hole.

use std::collections::BTreeMap;

use super::layout::WalLayout;
use crate::{
    error::{Result, ShardexError},
    format::{
        frame::{self, FRAME_HEADER_BYTES, Frame, FrameKind},
        header::{SEGMENT_HEADER_BYTES, SegmentHeader},
        root::WalPosition,
    },
    id::Lsn,
    site::{self, Kind, Mark},
    storage::StorageFile,
};

/// One whole record.
#[derive(Debug, PartialEq, Eq)]
pub struct Record {
    /// What it holds: `Add` or `Remove`.
    pub kind: FrameKind,
    /// The LSN of its end.
    pub lsn: Lsn,
    /// Its payload.
    pub payload: Vec<u8>,
    /// Where its first frame starts in the file, for messages.
    pub offset: u64,
}

/// How the WAL ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tail {
    /// LSN of the last whole record.
    pub last: Lsn,
    /// Whole records found.
    pub records: u64,
    /// The last frame is a closing mark.
    pub closed: bool,
    /// Bytes of a commit that was never acknowledged follow.
    pub torn: bool,
    /// The newest epoch of any segment of the index, which may be newer than the roots know if the device gave back an
    /// older one.
    pub newest_epoch: u64,
}

/// Reads the records after `checkpoint`, which start at `start`, and gives each to `apply` in order.
///
/// The chain ends at the first frame that is not the next one. If a frame behind that place shows that the missing one
/// was durable, the WAL has a hole, and that is an error; otherwise it is a torn tail, of which nothing was ever
/// acknowledged.
///
/// # Errors
/// `Corruption` for a hole or for two segments of one number; `Io`; what `apply` returns.
pub fn replay<F: StorageFile>(
    file: &F,
    layout: WalLayout,
    (index_id, epoch): (u128, u64),
    start: WalPosition,
    checkpoint: Lsn,
    mut apply: impl FnMut(Record) -> Result<()>,
) -> Result<Tail> {
    let seed = frame::seed(index_id, epoch);
    let Segments { slots, others, newest_epoch } = segment_slots(file, layout, (index_id, epoch))?;
    let mut chain = Chain { last: checkpoint, partial: None };
    let mut tail = Tail { last: checkpoint, newest_epoch, ..Tail::default() };
    let mut at = start;
    let mut segment = Vec::new();
    'chain: while let Some(&(slot, _)) = slots.get(&at.seq) {
        read_segment(file, layout, slot, &mut segment)?;
        while at.offset < layout.segment_size() {
            let bytes = segment.get(at.offset as usize..).unwrap_or_default();
            let Ok((frame, payload)) = Frame::decode(bytes, seed) else { break 'chain };
            let offset = layout.segment_start(slot) + at.offset;
            match chain.link(&frame, payload, offset) {
                Link::Broken => break 'chain,
                Link::Pad => {}
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
        at = layout.start_of(at.seq + 1);
    }
    let mut later: Vec<_> = slots.range(at.seq..).map(|(&seq, &(slot, _))| (slot, layout.start_of(seq))).collect();
    if let Some((_, first)) = later.first_mut()
        && first.seq == at.seq
    {
        *first = at;
    }
    // Nothing follows a closing mark in its epoch.
    let mut headless = Vec::new();
    if !tail.closed {
        let before = slots.range(..start.seq).map(|(_, &(slot, first_lsn))| (slot, Some(first_lsn)));
        for (slot, first_lsn) in before.chain(others.iter().map(|&slot| (slot, None))) {
            let first = first_frame(file, layout, slot, seed)?;
            if site::applies(Kind::ErrorCheck, first.is_some_and(|first| Some(first.lsn) != first_lsn)) {
                site::reach(Mark::HeadlessSegment);
                headless.push(slot);
            }
        }
    }
    later.extend(headless.iter().map(|&slot| (slot, layout.start_of(u64::MAX))));
    let behind = look_behind(file, layout, &later, seed, chain.last)?;
    if let Some(durable) = behind.durable
        && site::applies(Kind::ErrorCheck, durable > chain.last.0)
    {
        site::reach(Mark::HoleFound);
        // Where the record should be; if its segment is not known by its header, that header.
        let known = slots.get(&at.seq).map(|&(slot, _)| layout.segment_start(slot) + at.offset);
        let offset = known.or(headless.first().map(|&slot| layout.segment_start(slot))).unwrap_or(0);
        return Err(ShardexError::Corruption {
            file: file.path(),
            offset,
            what: format!(
                "WAL record {} is missing, yet a later one says that records up to {durable} were durable",
                chain.last.next()
            ),
        });
    }
    tail.torn = behind.frames || chain.partial.is_some();
    if tail.torn {
        site::reach(Mark::TornTail);
    }
    Ok(tail)
}

/// Whether a segment of an epoch is still there: not used again for a later one. The first ones are used again first.
///
/// # Errors
/// As [`replay`].
pub fn has_segment<F: StorageFile>(file: &F, layout: WalLayout, epoch: (u128, u64), seq: u64) -> Result<bool> {
    Ok(segment_slots(file, layout, epoch)?.slots.contains_key(&seq))
}

/// What the segments' headers say.
struct Segments {
    /// The slot of each segment of the epoch and its first LSN, by its number.
    slots: BTreeMap<u64, (usize, u64)>,
    /// Slots under a header that is not of the epoch: never used, or torn at its first store, or of another epoch; or damaged,
    /// or one that the device gave back from an earlier use. In the last two cases records in them may have been
    /// acknowledged, and then a later one says so.
    others: Vec<usize>,
    /// The newest epoch of the index's segments.
    newest_epoch: u64,
}

fn segment_slots<F: StorageFile>(file: &F, layout: WalLayout, (index_id, epoch): (u128, u64)) -> Result<Segments> {
    let mut segments = Segments { slots: BTreeMap::new(), others: Vec::new(), newest_epoch: 0 };
    let mut bytes = [0; SEGMENT_HEADER_BYTES];
    for slot in 0..layout.segments_in(file.len()?) {
        file.read_at(layout.segment_start(slot), &mut bytes)?;
        let header = SegmentHeader::decode(&bytes).ok().filter(|header| header.index_id == index_id);
        segments.newest_epoch = segments.newest_epoch.max(header.as_ref().map_or(0, |header| header.epoch));
        match header.filter(|header| site::holds(Kind::ErrorCheck, header.epoch == epoch)) {
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

/// The first frame of a segment, whatever its header says; `None` if it is not of the epoch.
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

/// What lies behind the end of the chain.
#[derive(Default)]
struct Behind {
    /// Some frame that is not older than the chain's end.
    frames: bool,
    /// The highest durable LSN such a frame claims.
    durable: Option<u64>,
}

/// Looks for frames of this epoch behind the end of the chain. Every commit starts on a sector, so one frame of each is
/// found there, whatever lies between.
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
            // A frame left over from the segment's use before has an LSN the chain has passed.
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

/// The chain of frames read so far.
struct Chain {
    last: Lsn,
    /// A record of which the first frames were read.
    partial: Option<Record>,
}

enum Link {
    Broken,
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
        if !site::holds(Kind::ErrorCheck, frame.lsn == self.last.next().0) {
            return Link::Broken;
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
