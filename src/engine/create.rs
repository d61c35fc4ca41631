//! Create: an index in an empty directory, whole or not at all.

use super::{
    barriers::{C1, C2, C3, C4, PARENT},
    Engine,
    lock::LockedDirectory,
    names,
    assemble::Origin,
    found::Found,
    open::{lost_root, open_locked},
    purposes::{CLEAR, MAKE, NAME},
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
    lease::{IndexLock, LendingFile, PlainFile},
    site::{self, Kind, Mark},
    space::SpaceMap,
    storage::{Purpose, Storage, StorageFile},
    wal::WalLayout,
};

const HEADER: Purpose = Purpose("create: file header");

/// Segments that a new WAL has.
const FIRST_SEGMENTS: usize = 4;

/// Makes an index in an empty or new directory, or opens the one that is there.
///
/// The root file appears by a rename when all else is durable, so an index exists whole or not at all.
pub(super) fn create<S: Storage>(storage: S, config: &ShardexConfig, env: &Env) -> Result<Engine<S>> {
    config.validate(storage.page_size())?;
    let geometry = Geometry::of(config, storage.page_size(), storage.sector_size());
    if !storage.exists()? {
        match storage.make_dir(MAKE) {
            // Somebody else was faster. Who makes the index is decided by the lock.
            Err(_) if storage.exists()? => {}
            made => made?,
        }
    }
    // Again if it existed: a crash may have come between the two.
    storage.sync_parent(PARENT)?;
    let locked = LockedDirectory::take(&storage)?;
    if locked.has(names::ROOT) {
        let engine = open_locked(storage, locked, config.options.clone(), env)?;
        same_config(&engine, &geometry)?;
        return Ok(engine);
    }
    if let Err(error) = may_become_an_index(&storage, &locked) {
        locked.withdraw();
        return Err(error);
    }
    let mut recovery = RecoveryStats::default();
    // What is cleared and made again has new entries: those that a failed sync left, clean and perhaps not durable (R8), are
    // gone with the files.
    for name in locked.found.iter().filter(|name| site::applies(Kind::ErrorCheck, *name != names::LOCK)) {
        storage.remove(name, CLEAR)?;
        recovery.leftovers_removed += 1;
        site::reach(Mark::LeftoversCleared);
    }
    let lock = make_files(&storage, locked, geometry, env.new_index_id)?;
    let found = Found::read(&storage, lock, recovery)?;
    let began = env.clock.elapsed();
    let mut engine = found.engine(storage, config.options.clone(), env, Origin::Made)?;
    engine.recovery.duration = env.clock.elapsed().saturating_sub(began);
    Ok(engine)
}

/// Whether a directory without a root file holds nothing but what an interrupted `create` left.
fn may_become_an_index<S: Storage>(storage: &S, locked: &LockedDirectory<S>) -> Result<()> {
    if let Some(stranger) = locked.found.iter().find(|name| !names::ALL.contains(&name.as_str())) {
        return Err(ShardexError::AlreadyExists {
            path: storage.path(),
            reason: format!("it holds `{stranger}`, which is not Shardex's"),
        });
    }
    lost_root(storage, &locked.found)?.map_or(Ok(()), Err)
}

/// Makes all files, the root file last, and all of it durable. Returns the lock with that of the new data file.
fn make_files<S: Storage>(
    storage: &S,
    locked: LockedDirectory<S>,
    geometry: Geometry,
    index_id: u128,
) -> Result<IndexLock> {
    const ALLOCATE: Purpose = Purpose("create: allocate");
    let layout = WalLayout::new(&geometry);
    let data_pages = SpaceMap::new(&geometry, 1).pages_of(1);
    let header = header::encode_file(&DATA_MAGIC, index_id);
    let len = data_pages * geometry.page_size as u64;
    LendingFile::create(storage, (len, &header), [MAKE, ALLOCATE, HEADER, C1])?;
    let lock = locked.into_lock_of_new(storage)?;
    let file = PlainFile::create(storage, names::WAL, MAKE, &lock)?;
    file.raw().allocate(layout.file_len(FIRST_SEGMENTS), ALLOCATE)?;
    file.store(0, &header::encode_file(&WAL_MAGIC, index_id), HEADER)?;
    file.sync_all(C1).run()?;
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
    let file = PlainFile::create(storage, names::ROOT_NEW, MAKE, &lock)?;
    Roots::store_first(&file, &root)?;
    file.sync_all(C2).run()?;
    // Before the rename: a directory entry may survive without those made before it (R7).
    storage.sync_dir(C3)?;
    storage.rename(names::ROOT_NEW, names::ROOT, NAME)?;
    storage.sync_dir(C4)?;
    Ok(lock)
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
