//! WAL as it grows: the chain of frames from the checkpoint of each root, and the sectors that must be kept.

use std::{collections::BTreeMap, sync::Arc};

use super::{mutant::MonitorMutant, shadow::Shadow};
use crate::fsck::{
    RecordKind, RootInfo,
    log::{Frame, Header, SEGMENT_HEADER_BYTES, Wal},
};

/// Start of a chain: epoch, checkpoint, segment and offset of a root.
pub(super) type Start = (u64, u64, u64, u64);

/// Length and checksum of each frame that was stored whole, by index id, epoch and LSN.
type Given = BTreeMap<(u128, u64, u64), (u64, u32)>;

/// Returns the start of a root's chain.
pub(super) fn start_of(root: &RootInfo) -> Start {
    (root.epoch, root.checkpoint, root.segment, root.offset)
}

/// Frame of a chain.
#[derive(Clone, Copy, Debug)]
struct Link {
    lsn: u64,
    padding: bool,
    start: u64,
    end: u64,
    /// Number of its segment, and the segment's position in the file.
    number: u64,
    slot: u64,
}

/// Chain of frames after a checkpoint, extended only on demand.
#[derive(Clone, Debug, Default)]
struct Chain {
    links: Vec<Link>,
    /// Number of leading links known to be durable. They stay durable until a store overlaps them.
    durable: usize,
    /// Number of leading links that an acknowledged LSN needs. `kept` holds their bytes in whole sectors.
    needed: usize,
    kept: Vec<(u64, u64)>,
}

/// State of the WAL as the monitor tracks it.
#[derive(Clone, Debug, Default)]
pub(super) struct Log {
    headers: Vec<Option<Header>>,
    chains: BTreeMap<Start, Chain>,
    given: Arc<Given>,
}

impl Chain {
    /// Follows the frames until one has `lsn` or the chain ends.
    fn extend(&mut self, root: &RootInfo, wal: &Wal<'_>, headers: &[Option<Header>], lsn: u64) {
        loop {
            let last = self.links.last().copied();
            if last.is_some_and(|last| last.lsn >= lsn && !last.padding) {
                return;
            }
            let held = last.map_or(root.checkpoint, |last| last.lsn);
            let (number, within) = match last {
                Some(last) => (last.number, last.end - wal.start(last.slot)),
                None => (root.segment, root.offset),
            };
            let (number, within) =
                if within >= root.segment_bytes { (number.wrapping_add(1), root.sector) } else { (number, within) };
            let here = |header: &Option<Header>| header.is_some_and(|h| h.epoch == root.epoch && h.number == number);
            let Some(slot) = headers.iter().position(here) else { return };
            let slot = slot as u64;
            let Some(frame) = wal.frame(wal.start(slot) + within, wal.start(slot + 1)) else { return };
            let padding = frame.kind == RecordKind::Padding;
            if frame.lsn != if padding { held } else { held.wrapping_add(1) } {
                return;
            }
            self.links.push(Link { lsn: frame.lsn, padding, start: frame.offset, end: frame.end(), number, slot });
        }
    }

    /// Returns the number of links up to the one with `lsn`; `None` if the chain doesn't reach it.
    fn up_to(&self, lsn: u64) -> Option<usize> {
        let first = self.links.partition_point(|link| link.lsn < lsn);
        let links = self.links.get(first..)?;
        links.iter().position(|link| !link.padding && link.lsn == lsn).map(|index| first + index + 1)
    }

    /// Drops the links from the first one that overlaps `from` to `to`, or all of them if a segment header was stored.
    fn forget(&mut self, from: u64, to: u64, headers: bool) {
        let first_hit =
            if headers { Some(0) } else { self.links.iter().position(|link| link.start < to && from < link.end) };
        if let Some(first_hit) = first_hit {
            self.links.truncate(first_hit);
            self.durable = self.durable.min(first_hit);
        }
    }
}

impl Log {
    /// Drops everything derived from the bytes. The frames stored so far stay recorded by epoch and LSN.
    pub(super) fn forget_bytes(&mut self) {
        self.headers.clear();
        self.chains.clear();
    }

    /// Drops all chains except those with the given starts.
    pub(super) fn retain(&mut self, starts: &[Start]) {
        self.chains.retain(|start, _| starts.contains(start));
    }

    fn read_headers(&mut self, wal: &Wal<'_>) {
        let known = self.headers.len() as u64;
        self.headers.extend((known..wal.segments()).map(|slot| wal.header(slot).ok().flatten()));
    }

    /// Yields the kept ranges that overlap `from` to `to`.
    pub(super) fn keeps(&self, from: u64, to: u64) -> impl Iterator<Item = (u64, u64)> {
        let kept = self.chains.values().flat_map(|chain| &chain.kept);
        kept.filter(move |kept| kept.0 < to && from < kept.1).copied()
    }

    /// Applies a store of the bytes `from` to `to` and parses the frames in them. With `ok` false, no frame is recorded
    /// or compared with an earlier one.
    pub(super) fn stored(&mut self, root: &RootInfo, bytes: &[u8], from: u64, to: u64, ok: bool) -> Stored {
        let wal = Wal::new(root, bytes);
        self.read_headers(&wal);
        let mut frames = Vec::new();
        let first = from.saturating_sub(root.page) / root.segment_bytes;
        let last = to.saturating_sub(root.page).div_ceil(root.segment_bytes).min(wal.segments());
        let mut headers = false;
        for slot in first..last {
            let (start, end) = (wal.start(slot), wal.start(slot + 1).min(to));
            if from < start + SEGMENT_HEADER_BYTES && start < to {
                headers = true;
                if let Some(held) = usize::try_from(slot).ok().and_then(|slot| self.headers.get_mut(slot)) {
                    *held = wal.header(slot).ok().flatten();
                }
            }
            let header = usize::try_from(slot).ok().and_then(|slot| self.headers.get(slot)).copied().flatten();
            let Some(Header { epoch, .. }) = header else { continue };
            let wal = Wal::of(root, epoch, bytes);
            let mut at = from.max(start + root.sector);
            while let Some(frame) = wal.frame(at, end) {
                frames.push((epoch, frame));
                at = frame.end();
            }
        }
        self.chains.values_mut().for_each(|chain| chain.forget(from, to, headers));
        let changed = if ok { self.give(root.index_id, &frames) } else { None };
        let closes = frames.iter().any(|(_, frame)| frame.kind == RecordKind::Close);
        Stored { changed, durable: frames.iter().map(|(_, frame)| frame.durable).max(), closes }
    }

    fn give(&mut self, index_id: u128, frames: &[(u64, Frame)]) -> Option<(u64, u64)> {
        for (epoch, frame) in frames.iter().filter(|(_, frame)| frame.kind != RecordKind::Padding) {
            let key = (index_id, *epoch, frame.lsn);
            let now = (frame.bytes, frame.crc);
            match self.given.get(&key) {
                Some(before) if *before != now => return Some((*epoch, frame.lsn)),
                Some(_) => {}
                None => {
                    Arc::make_mut(&mut self.given).insert(key, now);
                }
            }
        }
        None
    }

    /// Reports whether the chain of `root` reaches `lsn`.
    pub(super) fn reaches(&mut self, root: &RootInfo, wal: &Shadow, lsn: u64) -> bool {
        let bytes = Wal::new(root, wal.bytes());
        self.read_headers(&bytes);
        let chain = self.chains.entry(start_of(root)).or_default();
        chain.extend(root, &bytes, &self.headers, lsn);
        root.checkpoint >= lsn || chain.up_to(lsn).is_some()
    }

    /// Checks that the chain of `root` up to `lsn` survives every crash. The error describes the first part that
    /// doesn't.
    pub(super) fn survives(
        &mut self,
        root: &RootInfo,
        wal: &Shadow,
        lsn: u64,
        mutant: Option<MonitorMutant>,
    ) -> Result<(), String> {
        if root.checkpoint >= lsn {
            return Ok(());
        }
        self.reaches(root, wal, lsn);
        let Some(chain) = self.chains.get_mut(&start_of(root)) else { return Ok(()) };
        let Some(needed) = chain.up_to(lsn) else {
            let held = chain.links.last().map_or(root.checkpoint, |link| link.lsn);
            return Err(format!("the log from LSN {} of epoch {} on ends at {held}", root.checkpoint, root.epoch));
        };
        let geometry = Wal::new(root, &[]);
        let mut slot = chain.durable.checked_sub(1).and_then(|last| chain.links.get(last)).map(|link| link.slot);
        for link in chain.links.iter().take(needed).skip(chain.durable) {
            let header = geometry.start(link.slot);
            if slot != Some(link.slot)
                && mutant != Some(MonitorMutant::IgnoresHeaders)
                && !wal.is_durable(header, header + SEGMENT_HEADER_BYTES, mutant)
            {
                return Err(format!("the header of segment {} at {header} is not durable", link.number));
            }
            if !wal.is_durable(link.start, link.end, mutant) {
                return Err(format!("the frame of LSN {} at {} is not durable", link.lsn, link.start));
            }
            slot = Some(link.slot);
        }
        chain.durable = chain.durable.max(needed);
        Ok(())
    }

    /// Keeps the sectors that `lsn` needs in the chain of `root`.
    pub(super) fn keep(&mut self, root: &RootInfo, lsn: u64, mutant: Option<MonitorMutant>) {
        let Some(chain) = self.chains.get_mut(&start_of(root)) else { return };
        let Some(needed) = chain.up_to(lsn) else { return };
        let geometry = Wal::new(root, &[]);
        let sector = if mutant == Some(MonitorMutant::KeepsBytesNotSectors) { 1 } else { root.sector };
        for link in chain.links.iter().take(needed).skip(chain.needed) {
            let (start, end) = (link.start / sector * sector, link.end.next_multiple_of(sector));
            let header = geometry.start(link.slot);
            match chain.kept.last_mut() {
                Some(last) if last.1 >= start && last.0 <= start => last.1 = last.1.max(end),
                _ => chain.kept.extend([(header, header + sector.max(SEGMENT_HEADER_BYTES)), (start, end)]),
            }
        }
        chain.needed = chain.needed.max(needed);
    }
}

/// Result of parsing stored bytes.
pub(super) struct Stored {
    /// Epoch and LSN of a frame that had other bytes before.
    pub(super) changed: Option<(u64, u64)>,
    /// Highest LSN that a frame states to be durable.
    pub(super) durable: Option<u64>,
    /// Whether the frames include a closing mark.
    pub(super) closes: bool,
}
