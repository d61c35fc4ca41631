//! Open: turns a directory, under its lock, into an engine, or explains why it is no index.

use super::{
    assemble::Origin, core::Engine, index_files::IndexFiles, lock::LockedDirectory, names, purposes::CLEAR,
    stats::RecoveryStats,
};
use crate::{
    config::OpenOptions,
    env::Env,
    error::{Result, ShardexError},
    format::geometry::IndexParams,
    storage::{Storage, StorageFile},
    tuning,
};

impl<S: Storage> Engine<S> {
    /// Opens an index and recovers it after a crash.
    ///
    /// # Errors
    /// Returns `NotFound`, `Locked`, `NotAnIndex`, `UnsupportedVersion`, `Corruption`, `Io`, or `Config` (an invalid
    /// option, or a page size that this storage cannot serve).
    pub fn open(storage: S, options: OpenOptions, env: &Env) -> Result<Self> {
        open(storage, options, env)
    }
}

/// Opens an existing index.
fn open<S: Storage>(storage: S, options: OpenOptions, env: &Env) -> Result<Engine<S>> {
    options.validate()?;
    if !storage.exists()? {
        return Err(missing(&storage, "there is no such directory"));
    }
    // A directory without any file of an index needs no lock, so no lock file is created in it.
    if !storage.list()?.iter().any(|name| names::ALL.contains(&name.as_str())) {
        return Err(missing(&storage, NO_ROOT));
    }
    let locked = LockedDirectory::take(&storage)?;
    open_locked(storage, locked, options, env, |_| Ok(()))
}

const NO_ROOT: &str = "it holds no file `root`";

fn missing<S: Storage>(storage: &S, reason: &str) -> ShardexError {
    ShardexError::NotFound { path: storage.path(), reason: reason.to_owned() }
}

/// Opens an existing index under its lock. If that fails, the files that taking the lock created are removed.
///
/// `accept` gets the parameters of the index before anything is changed, and may refuse it.
pub(super) fn open_locked<S: Storage>(
    storage: S,
    locked: LockedDirectory<S>,
    options: OpenOptions,
    env: &Env,
    accept: impl Fn(&IndexParams) -> Result<()>,
) -> Result<Engine<S>> {
    if !locked.has(names::ROOT) {
        let lost = lost_root(&storage, &locked.found);
        locked.withdraw();
        if let Some(error) = lost? {
            return Err(error);
        }
        let interrupted = [names::DATA, names::WAL, names::ROOT_NEW].into_iter().any(|name| locked.has(name));
        let reason = if interrupted { "a `create` was interrupted here; call `create` again" } else { NO_ROOT };
        return Err(missing(&storage, reason));
    }
    let leftover = locked.has(names::ROOT_NEW);
    let lock = locked.into_lock();
    let kept = lock.clone();
    let open = || {
        let mut found = IndexFiles::read(&storage, lock, RecoveryStats::default())?;
        // Before the first change, so that a refused open changes nothing.
        accept(&found.newest.geometry)?;
        options.validate_for_segments(found.newest.geometry.wal_segment_size)?;
        if leftover {
            storage.remove(names::ROOT_NEW, CLEAR)?;
            found.recovery.leftovers_removed += 1;
        }
        let began = env.clock.elapsed();
        let mut engine = found.engine(storage, options, env, Origin::Existing)?;
        engine.recover()?;
        engine.cursor_recovered();
        engine.recovery.duration = env.clock.elapsed().saturating_sub(began);
        Ok(engine)
    };
    open().inspect_err(|_| kept.withdraw())
}

/// Returns an error if a directory without a root file is not the remains of an interrupted `create`.
///
/// An interrupted `create` has stored only file headers. A `data` or `wal` file with more content belongs to an index
/// whose root file is missing, and none of it may be removed.
///
/// # Errors
/// Returns `Io`.
pub(super) fn lost_root<S: Storage>(storage: &S, found: &[String]) -> Result<Option<ShardexError>> {
    for name in [names::DATA, names::WAL].into_iter().filter(|name| found.iter().any(|found| found == name)) {
        if holds_more_than_a_header(&*storage.open(name)?, storage.page_size())? {
            return Ok(Some(ShardexError::Corruption {
                file: storage.path().join(names::ROOT),
                offset: 0,
                what: format!(
                    "the file is missing, yet `{name}` has been written to: put it back, or if a restore was interrupted, \
                     remove the directory and restore again"
                ),
            }));
        }
    }
    Ok(None)
}

/// Reports whether any byte after the first page of the file is not zero.
fn holds_more_than_a_header<F: StorageFile>(file: &F, page_size: usize) -> Result<bool> {
    let len = file.len()?;
    let mut at = page_size as u64;
    let mut bytes = vec![0; tuning::SCAN_BYTES];
    while at < len {
        let part = &mut bytes[..(len - at).min(tuning::SCAN_BYTES as u64) as usize];
        file.read_at(at, part)?;
        if part.iter().any(|&byte| byte != 0) {
            return Ok(true);
        }
        at += part.len() as u64;
    }
    Ok(false)
}
