//! Readers that stay open while the index is written to, and after their engine is dropped.

use std::sync::Arc;

use shardex::{
    Engine, Hits, LockHolder, OpenOptions, Result, SearchResult, ShardexError,
    engine::Lent,
    env::Env,
    index::{self, SearchScope, Snapshot},
    shard::DataFile,
    storage::Storage,
};

use crate::{backups::Backups, filters::Filters};

/// Reader: a snapshot and the hits of an exact search, both in place and copied.
struct Reader<S: Storage> {
    snapshot: Arc<Snapshot<Lent<S>>>,
    data: Arc<DataFile<S::File>>,
    hits: Hits<S::File>,
    seen: Vec<SearchResult>,
}

/// Readers kept by a workload.
///
/// The simulated disk leases copies, so a reader does not see a store to leased bytes. The simulator panics at such a
/// store instead.
pub struct Readers<S: Storage> {
    kept: Vec<Reader<S>>,
    backups: Backups<S>,
}

impl<S: Storage> Default for Readers<S> {
    fn default() -> Self {
        Self { kept: Vec::new(), backups: Backups::default() }
    }
}

impl<S: Storage> Readers<S> {
    /// Adds a reader of all live postings.
    ///
    /// # Errors
    /// Returns the errors of the search.
    pub fn take(&mut self, engine: &Engine<S>) -> Result<()> {
        let snapshot = engine.snapshot();
        let query = vec![1.0; engine.geometry().dimension];
        let k = snapshot.live as usize + 1;
        let hits = index::search(&snapshot, engine.data(), &query, k, SearchScope::exact())?;
        let seen = hits.to_response().results;
        self.kept.push(Reader { snapshot, data: Arc::clone(engine.data()), hits, seen });
        Ok(())
    }

    /// Begins a backup, or ends the one under way and checks what it restores.
    ///
    /// # Errors
    /// Returns the errors of the engine, and `Inconsistent` if the restored index differs.
    pub fn back_up(&mut self, engine: &mut Engine<S>) -> Result<()> {
        self.backups.step(engine)
    }

    /// Checks that every reader still reads the same results.
    ///
    /// # Errors
    /// Returns `Inconsistent` if a reader reads different results.
    pub fn check(&self) -> Result<()> {
        if self.kept.iter().all(|reader| reader.hits.to_response().results == reader.seen) {
            Ok(())
        } else {
            Err(wrong("a reader reads something else than it did"))
        }
    }

    /// Reports whether a backup is under way.
    #[must_use]
    pub fn is_backing_up(&self) -> bool {
        self.backups.is_under_way()
    }

    /// Reports whether there is no reader and no backup under way.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.kept.is_empty() && !self.backups.is_under_way()
    }

    /// Checks that searches by filters of the readers' snapshots find what passes.
    ///
    /// # Errors
    /// Returns the errors of [`Filters::check`].
    pub fn check_filters(&self, filters: &Filters) -> Result<()> {
        self.kept.iter().try_for_each(|reader| filters.check::<S>(&reader.snapshot, &reader.data))
    }

    /// Checks readers after their engine was dropped: while they live, an open must fail with [`LockHolder::Reader`].
    /// Drops the readers afterwards.
    ///
    /// # Errors
    /// Returns `Inconsistent` if the open returns anything else, or if a reader reads different results.
    pub fn outlive_engine(&mut self, storage: &S, options: &OpenOptions, env: &Env) -> Result<()>
    where
        S: Clone,
    {
        self.backups.cancel();
        // A reader without hits leases nothing, so it does not hold the lock.
        self.kept.retain(|reader| !reader.seen.is_empty());
        if self.kept.is_empty() {
            return Ok(());
        }
        match Engine::open(storage.clone(), options.clone(), env).map(drop) {
            Err(ShardexError::Locked { holder: LockHolder::Reader, .. }) => {}
            other => return Err(wrong(&format!("an open beside an old reader returned {other:?}"))),
        }
        self.check()?;
        self.forget();
        Ok(())
    }

    /// Drops all readers and the backup under way, as when their process dies.
    pub fn forget(&mut self) {
        self.kept.clear();
        self.backups.cancel();
    }
}

fn wrong(what: &str) -> ShardexError {
    ShardexError::Inconsistent { finding: what.to_owned() }
}
