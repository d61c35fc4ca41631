//! One file as a reader sees it, and which of its bytes survive every crash.
//!
//! # Invariants
//! 1. A safe byte is the same on the device and in the cache, whatever a crash picks, as long as the durable length
//!    covers it.
//! 2. Each dirty byte lies in a range of `dirty`, each captured one in a range of the sync that is under way.

use super::mutant::MonitorMutant;

/// On the device, and nothing else.
const SAFE: u8 = 0;
/// Stored since the last good sync.
const DIRTY: u8 = 1;
/// Dirty, and part of the sync that is under way.
const CAPTURED: u8 = 2;
/// In the cache after a sync that failed: no later sync makes it durable, until it is stored anew (R8, R10).
const LOST: u8 = 3;

/// A range of bytes.
type Bytes = (u64, u64);

/// A sync under way.
#[derive(Clone, Debug)]
struct Sync {
    covers: Bytes,
    captured: Vec<Bytes>,
    /// The length, if it is a sync of the whole file.
    len: Option<u64>,
}

/// What the monitor knows of a file.
#[derive(Clone, Debug, Default)]
pub(super) struct Shadow {
    bytes: Vec<u8>,
    state: Vec<u8>,
    /// Stored since the last sync began that covered it.
    dirty: Vec<Bytes>,
    any_lost: bool,
    durable_len: u64,
    /// Whether a failed sync has forgotten the length.
    len_lost: bool,
    sync: Option<Sync>,
}

fn index(at: u64) -> usize {
    usize::try_from(at).unwrap_or(usize::MAX)
}

impl Shadow {
    /// A file that survived a power cut: all that is there is durable.
    pub(super) fn durable(bytes: &[u8]) -> Self {
        let (len, state) = (bytes.len() as u64, vec![SAFE; bytes.len()]);
        Self { bytes: bytes.to_vec(), state, durable_len: len, ..Self::default() }
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    pub(super) fn syncing(&self) -> bool {
        self.sync.is_some()
    }

    /// What a reader sees is this, by no store.
    pub(super) fn show(&mut self, bytes: &[u8]) {
        if bytes.len() != self.bytes.len() {
            self.durable_len = bytes.len() as u64;
            self.state.resize(bytes.len(), SAFE);
        }
        self.bytes.clear();
        self.bytes.extend_from_slice(bytes);
    }

    pub(super) fn allocate(&mut self, len: u64) {
        if len > self.bytes.len() as u64 {
            self.bytes.resize(index(len), 0);
            self.state.resize(index(len), SAFE);
        }
        // Allocating anew mends what a failed sync has forgotten.
        self.len_lost = false;
    }

    /// Whether a store of `bytes` at `offset` makes another version of a byte from `start` to `end`. Equal bytes on safe ones
    /// do not.
    pub(super) fn changes(&self, offset: u64, bytes: &[u8], start: u64, end: u64) -> bool {
        let held = self.bytes.iter().zip(&self.state).skip(index(offset));
        let skip = index(start.saturating_sub(offset));
        let take = index(end.saturating_sub(start.max(offset)));
        // What is behind the end of the file is no byte of it yet.
        let grows = offset.saturating_add(bytes.len() as u64).min(end) > self.bytes.len() as u64;
        grows || held.zip(bytes).skip(skip).take(take).any(|((held, state), byte)| *state != SAFE || held != byte)
    }

    pub(super) fn store(&mut self, offset: u64, bytes: &[u8], sector: u64) {
        let end = offset.saturating_add(bytes.len() as u64);
        self.allocate_for(end);
        let (mut from, mut to) = (offset, end);
        if self.any_lost {
            // The whole sector is written again, and so is what was lost in it.
            (from, to) = (offset / sector * sector, end.next_multiple_of(sector).min(self.bytes.len() as u64));
            for state in self.state.iter_mut().take(index(to)).skip(index(from)).filter(|state| **state == LOST) {
                *state = DIRTY;
            }
        }
        let held = self.bytes.iter_mut().zip(self.state.iter_mut()).skip(index(offset));
        for ((held, state), byte) in held.zip(bytes) {
            // Equal bytes on a safe one are no other version.
            if *state != SAFE || *held != *byte {
                (*held, *state) = (*byte, DIRTY);
            }
        }
        match self.dirty.last_mut() {
            Some(last) if last.0 <= from && from <= last.1 => last.1 = last.1.max(to),
            _ => self.dirty.push((from, to)),
        }
    }

    fn allocate_for(&mut self, end: u64) {
        if end > self.bytes.len() as u64 {
            self.bytes.resize(index(end), 0);
            self.state.resize(index(end), SAFE);
        }
    }

    /// A sync begins, of a range or of all: what its pages hold now is what it may make durable.
    pub(super) fn begin(&mut self, range: Option<Bytes>, page: u64) {
        let (from, to) = match range {
            Some((_, 0)) => (0, 0),
            Some((offset, len)) => {
                (offset / page * page, offset.saturating_add(len).div_ceil(page).saturating_mul(page))
            }
            None => (0, u64::MAX),
        };
        let mut captured = Vec::new();
        let mut left = Vec::new();
        for (start, end) in std::mem::take(&mut self.dirty) {
            let (first, last) = (start.max(from), end.min(to));
            if first >= last {
                left.push((start, end));
                continue;
            }
            self.turn((first, last), DIRTY, CAPTURED);
            captured.push((first, last));
            left.extend([(start, first), (last, end)].into_iter().filter(|(start, end)| start < end));
        }
        self.dirty = left;
        let len = range.is_none().then_some(self.bytes.len() as u64);
        self.sync = Some(Sync { covers: (from, to), captured, len });
    }

    /// The sync that is under way ends.
    pub(super) fn end(&mut self, ok: bool, mutant: Option<MonitorMutant>) {
        let Some(Sync { covers, captured, len }) = self.sync.take() else { return };
        let failed = if mutant == Some(MonitorMutant::FailedSyncStaysDirty) { DIRTY } else { LOST };
        if ok && mutant == Some(MonitorMutant::CapturesAtTheEnd) {
            self.turn(covers, DIRTY, SAFE);
        }
        for range in captured {
            self.turn(range, CAPTURED, if ok { SAFE } else { failed });
            if !ok {
                self.any_lost = true;
                self.dirty.push(range);
            }
        }
        match len {
            Some(len) if ok && !self.len_lost => self.durable_len = self.durable_len.max(len),
            Some(len) if !ok && len > self.durable_len => self.len_lost = true,
            None if mutant == Some(MonitorMutant::RangeSyncKeepsLength) => self.durable_len = self.bytes.len() as u64,
            _ => {}
        }
    }

    /// The process died: the cache lives on, with what was dirty, and what a sync was about.
    pub(super) fn process_crash(&mut self, mutant: Option<MonitorMutant>) {
        if let Some(Sync { captured, .. }) = self.sync.take() {
            for range in captured {
                self.turn(range, CAPTURED, DIRTY);
                self.dirty.push(range);
            }
        }
        if mutant == Some(MonitorMutant::ProcessCrashSyncs) {
            *self = Self::durable(&self.bytes);
        }
    }

    fn turn(&mut self, (start, end): Bytes, from: u8, to: u8) {
        for state in self.state.iter_mut().take(index(end)).skip(index(start)).filter(|state| **state == from) {
            *state = to;
        }
    }

    /// Whether bytes survive every crash. Without a range the length alone is asked for.
    pub(super) fn is_durable(&self, start: u64, end: u64, mutant: Option<MonitorMutant>) -> bool {
        let long = end <= self.durable_len || mutant == Some(MonitorMutant::ForgetsLengths);
        let state = self.state.get(index(start)..index(end));
        long && (start >= end || state.is_some_and(|state| state.iter().all(|state| *state == SAFE)))
    }
}
