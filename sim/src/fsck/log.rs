//! Reads the WAL: the chain of frames after a checkpoint, and the records that the frames form.

use std::collections::BTreeMap;

use super::bytes::{crc, crc_on, crc_without, f32_at, part, u16_at, u32_at, u64_at, u128_at};
use super::log_batch::{Batch, batch};
use super::root::RootInfo;
use super::{Finding, FindingKind, Part};

/// Size of a frame's header in bytes.
pub const FRAME_BYTES: u64 = 32;
/// Size of a segment header in bytes. The header occupies a whole sector.
pub const SEGMENT_HEADER_BYTES: u64 = 64;
const STARTS: u8 = 1;
const ENDS: u8 = 2;

/// Kind of a frame and of the record it belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RecordKind {
    /// Add: each posting replaces the one with its key.
    Add,
    /// Remove: all postings of the documents are removed.
    Remove,
    /// Padding up to the end of a sector.
    Padding,
    /// Closing mark: the index was closed.
    Close,
    /// Batch of version 2.
    Batch,
    /// Maintenance of version 3.
    Maintenance,
    /// Purge of version 3.
    Purge,
    /// Kind of a later version.
    Unknown,
}

/// Frame of the WAL.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame {
    /// Kind of the frame.
    pub kind: RecordKind,
    /// LSN of the frame.
    pub lsn: u64,
    /// Last LSN that was known to be durable when the frame was written.
    pub durable: u64,
    /// Offset in `wal`.
    pub offset: u64,
    /// Total size in bytes: header, payload and the bytes after it.
    pub bytes: u64,
    /// Size of the payload in bytes.
    pub payload: u64,
    /// Checksum of all other bytes of the frame, seeded with index id and epoch.
    pub crc: u32,
    /// Whether a record starts in this frame, and whether one ends in it.
    pub edges: (bool, bool),
}

impl Frame {
    /// Returns the offset at which the next frame starts.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.offset + self.bytes
    }
}

/// Header of a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the fields are those of FORMAT.md")]
pub struct Header {
    pub index_id: u128,
    pub epoch: u64,
    pub number: u64,
    pub first_lsn: u64,
}

/// Bytes of a `wal` file with the sizes and ids needed to read it.
#[derive(Clone, Copy, Debug)]
pub struct Wal<'a> {
    bytes: &'a [u8],
    page: u64,
    sector: u64,
    segment: u64,
    epoch: u64,
    index_id: u128,
    seed: u32,
}

impl<'a> Wal<'a> {
    /// Prepares to read the WAL of `root`'s epoch from `bytes`.
    #[must_use]
    pub fn new(root: &RootInfo, bytes: &'a [u8]) -> Self {
        Self::of(root, root.epoch, bytes)
    }

    /// Prepares to read the WAL of the given epoch of `root`'s index from `bytes`.
    #[must_use]
    pub fn of(root: &RootInfo, epoch: u64, bytes: &'a [u8]) -> Self {
        let RootInfo { page, sector, segment_bytes: segment, index_id, .. } = *root;
        let seed = crc_on(crc(&index_id.to_le_bytes()), &epoch.to_le_bytes());
        Self { bytes, page, sector, segment, epoch, index_id, seed }
    }

    /// Returns the number of whole segments in the file.
    #[must_use]
    pub fn segments(&self) -> u64 {
        (self.bytes.len() as u64).saturating_sub(self.page) / self.segment
    }

    /// Returns the offset at which the segment at position `slot` of the file starts.
    #[must_use]
    pub fn start(&self, slot: u64) -> u64 {
        self.page + slot * self.segment
    }

    /// Reads the header of the segment at position `slot`; `None` if its magic or checksum is wrong. `Err` describes
    /// an intact header with a wrong version, a foreign index id, or reserved bytes that aren't zeros.
    #[expect(clippy::missing_errors_doc, reason = "the line above")]
    pub fn header(&self, slot: u64) -> Result<Option<Header>, (FindingKind, String)> {
        let Some(bytes) = part(self.bytes, self.start(slot), SEGMENT_HEADER_BYTES) else { return Ok(None) };
        if !bytes.starts_with(b"SHXSEGM\0") || u32_at(bytes, 12) != Some(crc_without(0, bytes, 12)) {
            return Ok(None);
        }
        if u32_at(bytes, 8) != Some(1) {
            return Err((FindingKind::BadVersion, format!("a segment of version {:?}", u32_at(bytes, 8))));
        }
        let number = |at| u64_at(bytes, at).unwrap_or_default();
        let index_id = u128_at(bytes, 16).unwrap_or_default();
        if index_id != self.index_id {
            return Err((FindingKind::ForeignIndexId, format!("a segment of index {index_id:032x}")));
        }
        let header = Header { index_id, epoch: number(32), number: number(40), first_lsn: number(48) };
        if number(56) != 0 && header.epoch == self.epoch {
            return Err((FindingKind::NonZeroReserved, "a segment header's zeros".into()));
        }
        Ok(Some(header))
    }

    /// Reads the frame at `offset` if it is whole, belongs to this epoch and ends at `end` at the latest.
    #[must_use]
    pub fn frame(&self, offset: u64, end: u64) -> Option<Frame> {
        self.frame_if(offset, end, |_| true)
    }

    /// Reads a frame like [`frame`](Self::frame), if `wanted` accepts it. Calls `wanted` before computing a checksum.
    fn frame_if(&self, offset: u64, end: u64, wanted: impl Fn(&Frame) -> bool) -> Option<Frame> {
        let head = part(self.bytes, offset, FRAME_BYTES)?;
        let kind = match head.get(24)? {
            1 => RecordKind::Add,
            2 => RecordKind::Remove,
            3 => RecordKind::Padding,
            4 => RecordKind::Close,
            5 => RecordKind::Batch,
            6 => RecordKind::Maintenance,
            7 => RecordKind::Purge,
            _ => RecordKind::Unknown,
        };
        let bits = *head.get(25)?;
        let payload = u64::from(u32_at(head, 4)?);
        let bytes = FRAME_BYTES + payload + u64::from(u16_at(head, 26)?);
        if bits > (STARTS | ENDS) || !bytes.is_multiple_of(8) || offset.checked_add(bytes)? > end {
            return None;
        }
        let crc = u32_at(head, 0)?;
        let edges = (bits & STARTS != 0, bits & ENDS != 0);
        let frame =
            Frame { kind, lsn: u64_at(head, 8)?, durable: u64_at(head, 16)?, offset, bytes, payload, crc, edges };
        let intact = |bytes: &[u8]| u32_at(head, 28) == Some(0) && crc_without(self.seed, bytes, 0) == crc;
        (wanted(&frame) && part(self.bytes, offset, bytes).is_some_and(intact)).then_some(frame)
    }

    /// Finds a frame that proves that the LSN `missing` was durable. Searches every multiple of 8 in every segment and
    /// returns the offset.
    fn proof(&self, missing: u64) -> Option<u64> {
        (0..self.segments()).find_map(|slot| {
            let (start, end) = (self.start(slot), self.start(slot + 1));
            let mut at = (start + self.sector..end).step_by(8);
            at.find(|at| self.frame_if(*at, end, |frame| frame.durable >= missing && frame.lsn >= missing).is_some())
        })
    }
}

/// How the chain of frames ends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum End {
    /// No WAL was read.
    #[default]
    Unread,
    /// The index was closed: the chain ends with a closing mark.
    Closed {
        /// Offset of the closing mark in `wal`.
        at: u64,
    },
    /// No valid next frame follows: a torn tail.
    Torn {
        /// Offset in `wal`; the end of the file if the next segment is missing.
        at: u64,
        /// LSN of the frame expected there.
        missing: u64,
    },
    /// A hole: no valid next frame follows, but a frame elsewhere states that the missing LSN was durable.
    Hole {
        /// Offset in `wal`; the end of the file if the next segment is missing.
        at: u64,
        /// LSN of the frame expected there.
        missing: u64,
        /// Offset of the frame that proves the missing LSN durable.
        proof: u64,
    },
}

/// Whole record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Add or remove.
    pub kind: RecordKind,
    /// LSN of its last frame.
    pub lsn: u64,
    /// Offset of its first frame in `wal`.
    pub offset: u64,
    /// Parts of the payload in order: offset in `wal` and length in bytes.
    pub parts: Vec<(u64, u64)>,
}

/// Decoded payload of a record.
#[derive(Clone, Debug, PartialEq)]
pub enum RecordBody {
    /// Added postings in order: document id, start, length and vector.
    Add(Vec<(u128, u32, u32, Vec<f32>)>),
    /// Ids of the removed documents.
    Remove(Vec<u128>),
    /// Net effect of a batch.
    Batch(Batch),
    /// Numbers of the shards that are rewritten.
    Rewrite(Vec<u32>),
}

/// Changes the kind of a frame in the bytes of a `wal` file, and its checksum.
///
/// # Panics
/// Panics if the bytes end before the frame.
pub fn relabel(root: &RootInfo, bytes: &mut [u8], frame: &Frame, kind: u8) {
    let seed = Wal::new(root, &[]).seed;
    let frame = &mut bytes[frame.offset as usize..][..frame.bytes as usize];
    frame[24] = kind;
    let sum = crc_without(seed, frame, 0);
    frame[..4].copy_from_slice(&sum.to_le_bytes());
}

/// Chain of frames after the checkpoint of a root.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Log {
    /// Epoch of the frames.
    pub epoch: u64,
    /// Segments of the epoch: number to position in the file.
    pub segments: BTreeMap<u64, u64>,
    /// Frames in order, including padding.
    pub frames: Vec<Frame>,
    /// Whole records in order.
    pub records: Vec<Record>,
    /// LSN of the last whole record or closing mark; the checkpoint without one.
    pub last_lsn: u64,
    /// LSN of the last frame of a record whose end is missing.
    pub unfinished: Option<u64>,
    /// How the chain ends.
    pub end: End,
}

/// Reads the WAL after the checkpoint of `root` and appends its faults to `findings`.
pub(super) fn read(root: &RootInfo, bytes: &[u8], findings: &mut Vec<Finding>) -> Log {
    let wal = Wal::new(root, bytes);
    let mut find = |kind, offset, what: String| {
        findings.push(Finding { kind, part: Part::Log, slot: None, file: "wal", offset, what });
    };
    if u64::from(root.wal_segments) > wal.segments() {
        let what = format!("the root says {} segments, the file holds {}", root.wal_segments, wal.segments());
        find(FindingKind::TruncatedFile, bytes.len() as u64, what);
    }
    let mut headers = BTreeMap::new();
    for slot in 0..wal.segments() {
        match wal.header(slot) {
            Ok(Some(header)) if header.epoch == root.epoch => {
                if headers.insert(header.number, (slot, header.first_lsn)).is_some() {
                    find(
                        FindingKind::BadSegment,
                        wal.start(slot),
                        format!("another segment {} of its epoch", header.number),
                    );
                }
            }
            Ok(_) => {}
            Err((kind, what)) => find(kind, wal.start(slot), what),
        }
    }
    let mut log = chain(root, &wal, &headers, &mut find);
    records(&mut log, root, &mut find);
    for record in &log.records {
        if let Err(what) = record.body(bytes, root.dimension) {
            find(FindingKind::BadRecord, record.offset, what);
        }
    }
    if let End::Torn { at, missing } = log.end
        && let Some(proof) = wal.proof(missing)
    {
        log.end = End::Hole { at, missing, proof };
        find(
            FindingKind::LogHole,
            at,
            format!("LSN {missing} is missing, and the frame at {proof} says that it was durable"),
        );
    }
    log
}

/// Follows the chain of frames from the position that `root` names.
fn chain(
    root: &RootInfo,
    wal: &Wal<'_>,
    headers: &BTreeMap<u64, (u64, u64)>,
    find: &mut impl FnMut(FindingKind, u64, String),
) -> Log {
    let segments = headers.iter().map(|(number, (slot, _))| (*number, *slot)).collect();
    let mut log = Log { epoch: root.epoch, segments, last_lsn: root.checkpoint, ..Log::default() };
    let (mut number, mut within) = (root.segment, root.offset);
    let mut lsn = root.checkpoint;
    log.end = loop {
        let Some(missing) = lsn.checked_add(1) else { break End::Torn { at: wal.bytes.len() as u64, missing: lsn } };
        let Some((slot, first_lsn)) = headers.get(&number) else {
            break End::Torn { at: wal.bytes.len() as u64, missing };
        };
        let (start, end) = (wal.start(*slot), wal.start(slot + 1));
        if within == wal.segment {
            let Some(next) = number.checked_add(1) else { break End::Torn { at: end, missing } };
            (number, within) = (next, wal.sector);
            continue;
        }
        // A segment that the chain enters at its first frame must start with the missing LSN. One that it enters later
        // must not start with a later LSN.
        if *first_lsn > missing || (within == wal.sector && *first_lsn != missing) {
            find(
                FindingKind::BadSegment,
                start,
                format!("segment {number} starts with LSN {first_lsn}, not {missing}"),
            );
        }
        let frame = wal.frame(start + within, end);
        let fits = |frame: &Frame| frame.lsn == if frame.kind == RecordKind::Padding { lsn } else { missing };
        let Some(frame) = frame.filter(fits) else { break End::Torn { at: start + within, missing } };
        // No crash makes a checksum that holds: a later version wrote this frame.
        if frame.kind == RecordKind::Unknown {
            find(FindingKind::BadVersion, frame.offset, "a frame of an unknown kind".into());
            break End::Torn { at: frame.offset, missing };
        }
        log.frames.push(frame);
        within += frame.bytes;
        lsn = frame.lsn;
        if frame.kind == RecordKind::Close {
            break End::Closed { at: frame.offset };
        }
    };
    log
}

/// Assembles the frames into records.
fn records(log: &mut Log, root: &RootInfo, find: &mut impl FnMut(FindingKind, u64, String)) {
    let mut open: Option<Record> = None;
    let mut last = root.checkpoint;
    for frame in &log.frames {
        let Frame { kind, lsn, offset, payload, edges: (starts, ends), .. } = *frame;
        if kind == RecordKind::Padding {
            continue;
        }
        if starts == open.is_some() || open.as_ref().is_some_and(|record| record.kind != kind) {
            find(FindingKind::BadRecord, offset, format!("frame {lsn} does not go on what is before it"));
        }
        let mut record = open.take().filter(|_| !starts).unwrap_or(Record { kind, lsn, offset, parts: Vec::new() });
        record.lsn = lsn;
        record.parts.push((offset + FRAME_BYTES, payload));
        if !ends {
            open = Some(record);
            continue;
        }
        last = lsn;
        if kind != RecordKind::Close {
            log.records.push(record);
        } else if payload > 0 {
            find(FindingKind::BadRecord, offset, format!("a closing mark of {payload} bytes"));
        }
    }
    log.last_lsn = last;
    log.unfinished = open.map(|record| record.lsn);
}

impl Record {
    /// Returns the payload, assembled from all its parts.
    #[must_use]
    pub fn payload(&self, wal: &[u8]) -> Vec<u8> {
        self.parts.iter().filter_map(|(at, len)| part(wal, *at, *len)).flatten().copied().collect()
    }

    /// Decodes the payload.
    ///
    /// # Errors
    /// Returns a description if the payload doesn't have the format of its kind.
    pub fn body(&self, wal: &[u8], dimension: u32) -> Result<RecordBody, String> {
        let bytes = self.payload(wal);
        let body = match self.kind {
            RecordKind::Add => add(&bytes, dimension),
            RecordKind::Remove => remove(&bytes),
            RecordKind::Batch => batch(&bytes, dimension).map(RecordBody::Batch),
            RecordKind::Maintenance | RecordKind::Purge => rewrite(&bytes),
            RecordKind::Padding | RecordKind::Close | RecordKind::Unknown => None,
        };
        body.ok_or_else(|| format!("record {} of {} bytes is no {:?}", self.lsn, bytes.len(), self.kind))
    }
}

fn rewrite(bytes: &[u8]) -> Option<RecordBody> {
    let count = u64::from(u32_at(bytes, 4)?);
    if u32_at(bytes, 0)? != 1 || 8 + 4 * count != bytes.len() as u64 {
        return None;
    }
    let numbers = (0..count).map(|index| u32_at(bytes, 8 + 4 * index)).collect::<Option<Vec<_>>>()?;
    numbers.is_sorted_by(|a, b| a < b).then_some(RecordBody::Rewrite(numbers))
}

fn add(bytes: &[u8], dimension: u32) -> Option<RecordBody> {
    let count = u64::from(u32_at(bytes, 0)?);
    let v = 4 * u64::from(dimension);
    // At most about 2^32 × 2^34, which exceeds 64 bits.
    let wanted = u128::from(count) * u128::from(24 + v) + 8;
    if u32_at(bytes, 4)? != dimension || wanted != bytes.len() as u128 {
        return None;
    }
    let posting = |index: u64| {
        let (key, first) = (8 + 24 * index, 8 + 24 * count + v * index);
        let vector = (0..v).step_by(4).map(|at| f32_at(bytes, first + at)).collect::<Option<Vec<f32>>>()?;
        Some((u128_at(bytes, key)?, u32_at(bytes, key + 16)?, u32_at(bytes, key + 20)?, vector))
    };
    (0..count).map(posting).collect::<Option<Vec<_>>>().map(RecordBody::Add)
}

fn remove(bytes: &[u8]) -> Option<RecordBody> {
    let count = u64_at(bytes, 0)?;
    if count.checked_mul(16)?.checked_add(8)? != bytes.len() as u64 {
        return None;
    }
    (0..count).map(|index| u128_at(bytes, 8 + 16 * index)).collect::<Option<Vec<_>>>().map(RecordBody::Remove)
}
