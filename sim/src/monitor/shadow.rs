//! Shadow of one file: its visible bytes, and which of them survive every crash.
//!
//! # Invariants
//! 1. A safe byte within the durable length is the same on the device and in the cache, for every outcome of a crash.
//! 2. Each dirty byte lies in a range of `dirty`. Each captured byte lies in a range of the sync in progress.

use super::mutant::MonitorMutant;

/// The device and the cache hold the same byte.
const SAFE: u8 = 0;
/// Stored since the last successful sync.
const DIRTY: u8 = 1;
/// Dirty and covered by the sync in progress.
const CAPTURED: u8 = 2;
/// Only in the cache after a failed sync. No later sync makes the byte durable until it is stored again (R8, R10).
const LOST: u8 = 3;

/// Range of bytes: start and end.
type Bytes = (u64, u64);

/// Sync in progress.
#[derive(Clone, Debug)]
struct Sync {
    covers: Bytes,
    captured: Vec<Bytes>,
    /// Length of the file at the start, if the sync covers the whole file.
    len: Option<u64>,
}

/// State of a file as the monitor tracks it.
#[derive(Clone, Debug, Default)]
pub(super) struct Shadow {
    bytes: Vec<u8>,
    state: Vec<u8>,
    /// Ranges stored since the start of the last sync that covered them, and ranges of failed syncs.
    dirty: Vec<Bytes>,
    any_lost: bool,
    durable_len: u64,
    /// Whether a failed sync has lost the length.
    len_lost: bool,
    sync: Option<Sync>,
}

fn index(at: u64) -> usize {
    usize::try_from(at).unwrap_or(usize::MAX)
}

impl Shadow {
    /// Creates the shadow of a file that survived a power cut: all its bytes are durable.
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

    /// Replaces the visible bytes after a change that no store has made.
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
        // A new allocation makes the length pending again after a failed sync.
        self.len_lost = false;
    }

    /// Reports whether a store of `bytes` at `offset` creates a new version of a byte from `start` to `end`. Storing an
    /// equal byte over a safe one doesn't.
    pub(super) fn changes(&self, offset: u64, bytes: &[u8], start: u64, end: u64) -> bool {
        let held = self.bytes.iter().zip(&self.state).skip(index(offset));
        let skip = index(start.saturating_sub(offset));
        let take = index(end.saturating_sub(start.max(offset)));
        // A byte past the end of the file has no version before the store.
        let grows = offset.saturating_add(bytes.len() as u64).min(end) > self.bytes.len() as u64;
        grows || held.zip(bytes).skip(skip).take(take).any(|((held, state), byte)| *state != SAFE || held != byte)
    }

    pub(super) fn store(&mut self, offset: u64, bytes: &[u8], sector: u64) {
        let end = offset.saturating_add(bytes.len() as u64);
        self.allocate_for(end);
        let (mut from, mut to) = (offset, end);
        if self.any_lost {
            // A store writes whole sectors again, including their lost bytes.
            (from, to) = (offset / sector * sector, end.next_multiple_of(sector).min(self.bytes.len() as u64));
            for state in self.state.iter_mut().take(index(to)).skip(index(from)).filter(|state| **state == LOST) {
                *state = DIRTY;
            }
        }
        let held = self.bytes.iter_mut().zip(self.state.iter_mut()).skip(index(offset));
        for ((held, state), byte) in held.zip(bytes) {
            // Storing an equal byte over a safe one creates no version.
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

    /// Begins a sync of a range, in whole pages, or of the whole file. It captures the dirty bytes: only these can
    /// become durable.
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

    /// Ends the sync in progress.
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

    /// Applies a crash of the process. The cache survives, and captured bytes become dirty again.
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

    /// Reports whether the bytes survive every crash. For an empty range, only the durable length is compared with
    /// `end`.
    pub(super) fn is_durable(&self, start: u64, end: u64, mutant: Option<MonitorMutant>) -> bool {
        let long = end <= self.durable_len || mutant == Some(MonitorMutant::ForgetsLengths);
        let state = self.state.get(index(start)..index(end));
        long && (start >= end || state.is_some_and(|state| state.iter().all(|state| *state == SAFE)))
    }
}
