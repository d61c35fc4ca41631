//! State that the writer publishes for searches: the newest snapshot, and the reason why it is missing after the end of
//! the writer.

use std::{
    path::PathBuf,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak,
        atomic::{AtomicBool, Ordering},
    },
};

use arc_swap::ArcSwapOption;

use super::{snapshot::SearchContext, tasks::StopCause};
use crate::{
    engine::{Engine, Lent},
    error::{Result, ShardexError},
    id::Lsn,
    index::Snapshot,
    shard::DataFile,
    storage::Storage,
};

/// State shared between the handles and the writer.
pub(super) struct Shared<S: Storage> {
    /// Newest view. `None` once the index is closed, because a closed handle must not pin bytes of the index and
    /// thereby its lock.
    pub(super) view: ArcSwapOption<View<S>>,
    pub(super) path: PathBuf,
    pub(super) closed: AtomicBool,
    pub(super) stopped: StopCause,
    /// Snapshots that callers have taken.
    pub(super) snapshots: Snapshots<Lent<S>>,
    /// Executor and observer of searches.
    pub(super) context: Arc<SearchContext>,
}

impl<S: Storage> Shared<S> {
    /// Returns the error for calls after the end of the writer.
    pub(super) fn gone(&self) -> ShardexError {
        if self.closed.load(Ordering::Acquire) { ShardexError::Closed } else { stopped_by(&self.stopped) }
    }
}

/// Snapshots that callers have taken and may still hold, by their LSNs.
pub(super) struct Snapshots<L>(Mutex<Vec<(Lsn, Weak<Snapshot<L>>)>>);

impl<L> Default for Snapshots<L> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<L> Snapshots<L> {
    fn taken(&self) -> MutexGuard<'_, Vec<(Lsn, Weak<Snapshot<L>>)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes a snapshot. Forgets those that are gone whenever their number could have doubled, so that a call costs constant
    /// time on average.
    pub(super) fn note(&self, snapshot: &Arc<Snapshot<L>>) {
        let mut taken = self.taken();
        if taken.last().is_some_and(|(_, last)| std::ptr::eq(last.as_ptr(), Arc::as_ptr(snapshot))) {
            return;
        }
        if taken.len() == taken.capacity() {
            taken.retain(|(_, snapshot)| snapshot.strong_count() > 0);
            let alive = taken.len();
            taken.reserve(alive + 1);
        }
        taken.push((snapshot.lsn, Arc::downgrade(snapshot)));
    }

    /// Returns the LSNs of the snapshots that are still held and older than a write.
    pub(super) fn before(&self, lsn: Lsn) -> Vec<Lsn> {
        let taken = self.taken();
        taken.iter().filter(|(of, snapshot)| *of < lsn && snapshot.strong_count() > 0).map(|&(of, _)| of).collect()
    }
}

/// View of a search: a snapshot of the index and the data file with its bytes.
pub(super) struct View<S: Storage> {
    pub(super) snapshot: Arc<Snapshot<Lent<S>>>,
    pub(super) data: Arc<DataFile<S::File>>,
    /// Cursor that no crash can undo; empty if there is none.
    pub(super) durable_cursor: Result<Arc<[u8]>>,
}

impl<S: Storage> View<S> {
    /// Returns the view of the snapshot that the engine has published.
    pub(super) fn of(engine: &Engine<S>) -> Arc<Self> {
        let (snapshot, data) = (engine.snapshot(), Arc::clone(engine.data()));
        Arc::new(Self { snapshot, data, durable_cursor: engine.durable_cursor() })
    }
}

/// Returns the error for an unexpected end of the writer, without a close.
pub(super) fn stopped_by(stopped: &OnceLock<ShardexError>) -> ShardexError {
    let unexpected = || ShardexError::Poisoned { cause: "the writer stopped unexpectedly".into() };
    stopped.get().cloned().unwrap_or_else(unexpected)
}
