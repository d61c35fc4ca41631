//! Readers that are kept while the index is written to, and past the end of their engine.

use std::sync::Arc;

use shardex::{
    Engine, Hits, LockHolder, OpenOptions, Result, SearchResult, ShardexError,
    engine::Lent,
    env::Env,
    index::{self, Breadth, Snapshot},
    storage::Storage,
};

/// One reader: a snapshot, and what an exact search of it found, in place and copied.
struct Reader<S: Storage> {
    _snapshot: Arc<Snapshot<Lent<S>>>,
    hits: Hits<S::File>,
    seen: Vec<SearchResult>,
}

/// Readers kept by a workload.
///
/// The simulated disk lends copies, so bytes that change under a reader do not show in them. It panics at the store instead: it
/// knows what is lent.
pub struct Readers<S: Storage> {
    kept: Vec<Reader<S>>,
}

impl<S: Storage> Default for Readers<S> {
    fn default() -> Self {
        Self { kept: Vec::new() }
    }
}

impl<S: Storage> Readers<S> {
    /// Takes one more, of everything there is.
    ///
    /// # Errors
    /// What the search says.
    pub fn take(&mut self, engine: &Engine<S>) -> Result<()> {
        let snapshot = engine.snapshot();
        let query = vec![1.0; engine.geometry().dimension];
        let k = snapshot.live as usize + 1;
        let hits = index::search(&snapshot, engine.data(), &query, k, Breadth::exact())?;
        let seen = hits.to_response().results;
        self.kept.push(Reader { _snapshot: snapshot, hits, seen });
        Ok(())
    }

    /// Whether each still reads what it did.
    ///
    /// # Errors
    /// `Inconsistent` if one does not.
    pub fn check(&self) -> Result<()> {
        match self.kept.iter().all(|reader| reader.hits.to_response().results == reader.seen) {
            true => Ok(()),
            false => Err(wrong("a reader reads something else than it did")),
        }
    }

    /// Their engine is gone: as long as they live an open is refused, and says that it is for them. Lets them go.
    ///
    /// # Errors
    /// `Inconsistent` if it is not so.
    pub fn outlive_engine(&mut self, storage: &S, options: &OpenOptions, env: &Env) -> Result<()>
    where
        S: Clone,
    {
        // One without a posting reads nothing, and holds nothing.
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

    /// Lets them go: their process has died.
    pub fn forget(&mut self) {
        self.kept.clear();
    }
}

fn wrong(what: &str) -> ShardexError {
    ShardexError::Inconsistent { finding: what.to_owned() }
}
