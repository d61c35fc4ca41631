//! Open: what is in a directory, under its lock, or why that is no index.

use super::{
    Engine,
    assemble::Origin,
    found::Found,
    lock::LockedDirectory,
    names,
    purposes::CLEAR,
    stats::RecoveryStats,
};
use crate::{
    config::OpenOptions,
    env::Env,
    error::{Result, ShardexError},
    limits,
    storage::{Storage, StorageFile},
};

/// Opens what is there.
pub(super) fn open<S: Storage>(storage: S, options: OpenOptions, env: &Env) -> Result<Engine<S>> {
    options.validate()?;
    if !storage.exists()? {
        return Err(missing(&storage, "there is no such directory"));
    }
    // Where nothing of an index lies, no lock is needed, and none is left behind.
    if !storage.list()?.iter().any(|name| names::ALL.contains(&name.as_str())) {
        return Err(missing(&storage, NO_ROOT));
    }
    let locked = LockedDirectory::take(&storage)?;
    open_locked(storage, locked, options, env)
}

const NO_ROOT: &str = "it holds no file `root`";

fn missing<S: Storage>(storage: &S, reason: &str) -> ShardexError {
    ShardexError::NotFound { path: storage.path(), reason: reason.to_owned() }
}

/// Opens what is there, under the lock. If that fails, no file is left behind that taking the lock made.
pub(super) fn open_locked<S: Storage>(
    storage: S,
    locked: LockedDirectory<S>,
    options: OpenOptions,
    env: &Env,
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
        let mut recovery = RecoveryStats::default();
        if leftover {
            storage.remove(names::ROOT_NEW, CLEAR)?;
            recovery.leftovers_removed += 1;
        }
        let found = Found::read(&storage, lock, recovery)?;
        let began = env.clock.elapsed();
        let mut engine = found.engine(storage, options, env, Origin::Found)?;
        engine.recover()?;
        engine.recovery.duration = env.clock.elapsed().saturating_sub(began);
        Ok(engine)
    };
    open().inspect_err(|_| kept.withdraw())
}

/// Why a directory without a root file is not what an interrupted `create` left, if it is not: one that was interrupted has
/// stored headers alone. Where there is more, there was an index, whose root file is gone, and nothing of it may be cleared.
///
/// # Errors
/// `Io`.
pub(super) fn lost_root<S: Storage>(storage: &S, found: &[String]) -> Result<Option<ShardexError>> {
    for name in [names::DATA, names::WAL].into_iter().filter(|name| found.iter().any(|found| found == name)) {
        if holds_more_than_a_header(&*storage.open(name)?, storage.page_size())? {
            return Ok(Some(ShardexError::Corruption {
                file: storage.path().join(names::ROOT),
                offset: 0,
                what: format!("the file is missing, yet `{name}` has been written to: put it back"),
            }));
        }
    }
    Ok(None)
}

/// Whether a byte behind the file's first page is not zero.
fn holds_more_than_a_header<F: StorageFile>(file: &F, page_size: usize) -> Result<bool> {
    let len = file.len()?;
    let mut at = page_size as u64;
    let mut bytes = vec![0; limits::SCAN_BYTES];
    while at < len {
        let part = &mut bytes[..(len - at).min(limits::SCAN_BYTES as u64) as usize];
        file.read_at(at, part)?;
        if part.iter().any(|&byte| byte != 0) {
            return Ok(true);
        }
        at += part.len() as u64;
    }
    Ok(false)
}
