//! Create: an index in an empty directory, whole or not at all.

use super::{
    Engine, names,
    recovery::{self, CLEAR, E1, Found},
    roots::Roots,
    stats::RecoveryStats,
};
use crate::{
    config::ShardexConfig,
    env::Env,
    error::{Result, ShardexError},
    format::{
        geometry::Geometry,
        header::{self, DATA_MAGIC, WAL_MAGIC},
        node::Entry,
        root::Root,
    },
    id::{Generation, Lsn},
    site::{self, Kind, Mark},
    space::SpaceMap,
    storage::{Purpose, Storage, StorageFile},
    wal::{self, WalLayout},
};

const MAKE: Purpose = Purpose("create");
const HEADER: Purpose = Purpose("create: file header");

/// Segments that a new WAL has.
const FIRST_SEGMENTS: usize = 4;

const COMMIT: Purpose = Purpose("create: commit");

/// Makes an index in an empty or new directory, or opens the one that is there.
///
/// The root file appears by a rename when all else is durable, so an index exists whole or not at all.
pub(super) fn create<S: Storage>(storage: S, config: &ShardexConfig, env: &Env) -> Result<Engine<S>> {
    config.validate(storage.page_size())?;
    let geometry = Geometry::of(config, storage.page_size(), storage.sector_size());
    if !storage.exists()? {
        storage.make_dir(MAKE)?;
    }
    // Again if it existed: a crash may have come between the two.
    storage.sync_parent(Purpose("create: sync the parent"))?;
    let mut found = storage.list()?;
    found.retain(|name| !names::TOLERATED.contains(&name.as_str()));
    if found.iter().any(|name| name == names::ROOT) {
        let engine = recovery::open(storage, config.options.clone(), env)?;
        same_config(&engine, &geometry)?;
        return Ok(engine);
    }
    let ours = [names::DATA, names::WAL, names::ROOT_NEW, names::LOCK];
    if let Some(stranger) = found.iter().find(|name| !ours.contains(&name.as_str())) {
        return Err(ShardexError::AlreadyExists {
            path: storage.path(),
            reason: format!("it holds `{stranger}`, which is not Shardex's"),
        });
    }
    let lock = storage.lock()?;
    // What is cleared and made again has new entries: those that a failed sync left, clean and perhaps not durable (R8), are
    // gone with the files.
    refuse_a_lost_root(&storage, &found)?;
    let mut recovery = RecoveryStats::default();
    for name in found.iter().filter(|name| site::applies(Kind::ErrorCheck, *name != names::LOCK)) {
        storage.remove(name, CLEAR)?;
        recovery.leftovers_removed += 1;
        site::reach(Mark::LeftoversCleared);
    }
    make_files(&storage, geometry, env.new_index_id)?;
    let found = Found::read(&storage, recovery)?;
    found.engine(storage, lock, config.options.clone(), env, true)
}

/// Makes all files, the root file last, and all of it durable.
fn make_files<S: Storage>(storage: &S, geometry: Geometry, index_id: u128) -> Result<()> {
    let layout = WalLayout::new(&geometry);
    let data_pages = SpaceMap::new(&geometry, 1).pages_of(1);
    for (name, magic, len) in [
        (names::DATA, DATA_MAGIC, data_pages * geometry.page_size as u64),
        (names::WAL, WAL_MAGIC, layout.file_len(FIRST_SEGMENTS)),
    ] {
        let file = storage.create(name, MAKE)?;
        file.allocate(len, Purpose("create: allocate"))?;
        file.write_at(0, &header::encode_file(&magic, index_id), HEADER)?;
        file.sync_all(Purpose("C1: sync data and WAL"))?;
    }
    let root = Root {
        index_id,
        generation: Generation(1),
        geometry,
        checkpoint: Lsn(0),
        epoch: 1,
        wal_start: layout.start_of(1),
        directory: Entry::default(),
        shard_numbers: 0,
        shards: 0,
        live: 0,
        removed: 0,
        draws: 0,
        splits: 0,
        merges: 0,
        data_pages,
        wal_segments: FIRST_SEGMENTS as u32,
        cells: Entry::default(),
    };
    let file = storage.create(names::ROOT_NEW, MAKE)?;
    Roots::store_first(&*file, &root)?;
    file.sync_all(Purpose("C2: sync the roots"))?;
    // Before the rename: a directory entry may survive without those made before it (R7).
    storage.sync_dir(Purpose("C3: sync the entries"))?;
    storage.rename(names::ROOT_NEW, names::ROOT, COMMIT)?;
    storage.sync_dir(Purpose("C4: sync the rename"))
}

/// Makes the root file of an index anew that nobody has written to, and its entry durable: the `create` that made it may
/// have died, or failed, before its last sync, and then a sync now may do nothing (R8). What is written to exists only where
/// `create` or this was done with.
pub(super) fn commit_again<S: Storage>(storage: &S, root: &Root) -> Result<()> {
    let file = storage.create(names::ROOT_NEW, MAKE)?;
    Roots::store_first(&*file, root)?;
    file.sync_all(Purpose("E2: sync the roots"))?;
    storage.rename(names::ROOT_NEW, names::ROOT, COMMIT)?;
    storage.sync_dir(E1)
}

/// A `create` that was interrupted has not written to the WAL yet. If somebody has, then there was an index, whose root file
/// is gone: nothing of it may be cleared.
pub(super) fn refuse_a_lost_root<S: Storage>(storage: &S, found: &[String]) -> Result<()> {
    if found.iter().any(|name| name == names::WAL) && wal::was_used(&*storage.open(names::WAL)?, storage.page_size())? {
        return Err(ShardexError::Corruption {
            file: storage.path().join(names::ROOT),
            offset: 0,
            what: "the file is missing, yet the WAL has been written to: put it back".into(),
        });
    }
    Ok(())
}

/// Compares what the format fixes.
fn same_config<S: Storage>(engine: &Engine<S>, given: &Geometry) -> Result<()> {
    let stored = engine.geometry();
    let fields: [(&'static str, String, String); 5] = [
        ("vector_size", stored.dimension.to_string(), given.dimension.to_string()),
        ("metric", stored.metric.to_string(), given.metric.to_string()),
        ("shard_size", stored.shard_size.to_string(), given.shard_size.to_string()),
        ("bloom_filter_size", stored.bloom_bytes.to_string(), given.bloom_bytes.to_string()),
        ("wal_segment_size", stored.wal_segment_size.to_string(), given.wal_segment_size.to_string()),
    ];
    match fields.into_iter().find(|(_, stored, given)| stored != given) {
        None => Ok(()),
        Some((field, stored, given)) => {
            Err(ShardexError::ConfigMismatch { path: engine.storage().path(), field, stored, given })
        }
    }
}
