//! State that the writer publishes for searches: the newest snapshot, and the reason why it is missing after the end of
//! the writer.

use std::{
    path::PathBuf,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
};

use arc_swap::ArcSwapOption;

use super::{snapshot::SearchContext, tasks::StopCause};
use crate::{
    engine::{Engine, Lent},
    error::{Result, ShardexError},
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
    /// Executor and observer of searches.
    pub(super) context: Arc<SearchContext>,
}

impl<S: Storage> Shared<S> {
    /// Returns the error for calls after the end of the writer.
    pub(super) fn gone(&self) -> ShardexError {
        if self.closed.load(Ordering::Acquire) { ShardexError::Closed } else { stopped_by(&self.stopped) }
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
