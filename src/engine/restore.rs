//! Restore: an index from a backup, whole or not at all.
//!
//! The files are stored as they would be after a crash behind the flush of the backup's root, with an empty WAL. The first
//! open then recovers: it opens a new epoch, so no record of the index that was backed up ever continues this one.

use super::{
    backup_files::{BackupFiles, VerifyStats, check_hash},
    core::Engine,
    create::make_files,
    index_files::check_part,
    lock::LockedDirectory,
    names,
    purposes::{CLEAR, MAKE},
    roots::{self, RootSlot},
};
use crate::{
    config::{CheckLevel, OpenOptions},
    env::{Cancel, Env},
    error::{Result, ShardexError},
    format::{
        header::{DATA_MAGIC, WAL_MAGIC},
        manifest::{Manifest, PlaceEntry},
        node::ENTRY_BYTES,
        root::Root,
    },
    space::SpaceMap,
    storage::{Storage, StorageFile as _},
};

/// Restores an index into the directory of `to`, which must be missing or empty, and checks it in full.
///
/// # Errors
/// Returns the errors of [`restore`](crate::Shardex::restore).
pub fn restore<D: Storage, S: Storage + Clone>(from: &D, to: S, env: &Env, cancel: &dyn Cancel) -> Result<VerifyStats> {
    let backup = BackupFiles::open(from)?;
    let stats = backup.verify(cancel)?;
    let locked = LockedDirectory::take_empty(&to, MAKE)?;
    store(from, &backup, &to, locked, cancel).inspect_err(|_| clear(&to))?;
    let mut engine = Engine::open(to, OpenOptions::default(), env)?;
    let report = engine.check(CheckLevel::Full)?;
    if let Some(finding) = report.findings.first() {
        return Err(ShardexError::Inconsistent { finding: finding.to_string() });
    }
    engine.close()?;
    Ok(stats)
}

/// Stores the files of the index.
fn store<D: Storage, S: Storage>(
    from: &D,
    backup: &BackupFiles<D>,
    to: &S,
    locked: LockedDirectory<S>,
    cancel: &dyn Cancel,
) -> Result<()> {
    let root = fitted(&backup.manifest).map_err(|what| {
        let file = from.path().join(names::MANIFEST);
        ShardexError::Corruption { file, offset: 0, what }
    })?;
    let page_size = root.geometry.page_size as u64;
    let fill = |store: &mut dyn FnMut(u64, &[u8]) -> Result<()>| {
        let mut bytes = Vec::new();
        for place in &backup.manifest.places {
            cancel.check()?;
            backup.read_checked(place, &mut bytes)?;
            store(place.page * page_size, &bytes)?;
        }
        Ok(())
    };
    make_files(to, locked, &root, fill, || read_back(backup, to, cancel)).map(drop)
}

/// Returns the root with a data file that ends with the chunk of the last place. That of the index may be longer by any number of
/// free pages.
fn fitted(manifest: &Manifest) -> Result<Root, String> {
    let (root, geometry) = (&manifest.root, &manifest.root.geometry);
    let bytes: u64 = manifest.places.iter().map(|place| u64::from(place.len)).sum();
    if u64::from(root.shard_numbers) * ENTRY_BYTES as u64 > bytes {
        return Err(format!("{} shard numbers in {bytes} bytes of places", root.shard_numbers));
    }
    let of_places = manifest.places.last().map_or(0, |place| {
        // Page 0 is the header.
        place.page - 1 + u64::from(geometry.pages(place.len as usize))
    });
    // A root is refused whose file has no room for an extent per shard number.
    let of_shards = u64::from(root.shard_numbers) * u64::from(geometry.extent_pages());
    let chunks = of_places.max(of_shards).div_ceil(geometry.chunk_pages().into()).max(1);
    let data_pages = root.data_pages.min(SpaceMap::new(geometry, 0).pages_of(chunks as usize));
    Ok(Root { data_pages, ..root.clone() })
}

/// Compares the stored files with the backup, as the device returns them if the system follows the hint.
fn read_back<D: Storage, S: Storage>(backup: &BackupFiles<D>, to: &S, cancel: &dyn Cancel) -> Result<()> {
    let root = &backup.manifest.root;
    let data = to.open_to_read(names::DATA)?;
    data.uncache();
    let mut bytes = Vec::new();
    for place in &backup.manifest.places {
        cancel.check()?;
        bytes.resize(place.len as usize, 0);
        let stored = PlaceEntry { offset: place.page * root.geometry.page_size as u64, ..*place };
        data.read_at(stored.offset, &mut bytes)?;
        check_hash(&*data, &stored, &bytes)?;
    }
    for (name, magic) in [(names::DATA, DATA_MAGIC), (names::WAL, WAL_MAGIC)] {
        let file = to.open_to_read(name)?;
        file.uncache();
        check_part(&*file, &magic, root.index_id)?;
    }
    let roots = to.open_to_read(names::ROOT_NEW)?;
    roots.uncache();
    match roots::read_slots(&*roots, root.geometry.page_size)? {
        [RootSlot::Valid(_), RootSlot::Valid(_)] => Ok(()),
        _ => {
            let what = "other bytes than those stored".to_owned();
            Err(ShardexError::Corruption { file: roots.path(), offset: 0, what })
        }
    }
}

/// Removes the files of a restore that has failed before there was an index. What can't be removed stays.
fn clear<S: Storage>(to: &S) {
    // Under the lock, so that nothing of another process is removed.
    let Ok(locked) = LockedDirectory::take(to) else { return };
    if !locked.has(names::ROOT) {
        for name in [names::ROOT_NEW, names::WAL, names::DATA, names::LOCK].into_iter().filter(|name| locked.has(name))
        {
            let _ = to.remove(name, CLEAR);
        }
    }
}
