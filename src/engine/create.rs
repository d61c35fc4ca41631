//! Creation of an index in an empty directory, whole or not at all.

use std::path::Path;

use super::{
    assemble::Origin,
    barriers::{C1, C2, C3, C4, PARENT},
    core::Engine,
    index_files::IndexFiles,
    lock::LockedDirectory,
    names,
    open::{lost_root, open_locked},
    purposes::{CLEAR, MAKE, NAME},
    roots::Roots,
    stats::RecoveryStats,
    stats_file::is_stats_file,
};
use crate::{
    config::ShardexConfig,
    env::Env,
    error::{Result, ShardexError},
    failpoint::{protects, reached},
    format::{
        geometry::IndexParams,
        header::{self, DATA_MAGIC, WAL_MAGIC},
        node::BlockPointer,
        root::{PayloadRoot, Root},
    },
    id::{Generation, Lsn},
    lease::{IndexLock, LendingFile, PlainFile},
    limits::FORMAT_VERSION,
    space::SpaceMap,
    storage::{Purpose, Storage, StorageFile},
    wal::WalLayout,
};

const HEADER: Purpose = Purpose("create: file header");

/// Number of segments of a new WAL.
const FIRST_SEGMENTS: usize = 4;

impl<S: Storage> Engine<S> {
    /// Creates an index, or opens the existing one if it was created with the same configuration.
    ///
    /// # Errors
    /// Returns `Config`, `ConfigMismatch` or `AlreadyExists`, and all errors of [`open`](Self::open).
    pub fn create(storage: S, config: &ShardexConfig, env: &Env) -> Result<Self> {
        create(storage, config, env, FORMAT_VERSION)
    }

    /// Creates an index of an older version, and writes to it as a build of that version did until it is dropped. For
    /// tests of the upgrade.
    ///
    /// # Errors
    /// As [`create`](Self::create).
    #[cfg(feature = "internals")]
    pub fn create_version(storage: S, config: &ShardexConfig, env: &Env, version: u32) -> Result<Self> {
        let mut engine = create(storage, config, env, version)?;
        engine.stays_at_version = Some(version).filter(|_| engine.roots.version() < FORMAT_VERSION);
        Ok(engine)
    }
}

/// Creates an index in an empty or new directory, or opens the existing one.
///
/// The root file appears by a rename once everything else is durable, so an index exists whole or not at all.
fn create<S: Storage>(storage: S, config: &ShardexConfig, env: &Env, version: u32) -> Result<Engine<S>> {
    config.validate(storage.page_size())?;
    let mut geometry = IndexParams::of(config, storage.page_size(), storage.sector_size());
    if version < 3 {
        geometry.extent_slots = IndexParams::first_extent_slots(geometry.shard_size);
    }
    if !storage.exists()? {
        match storage.make_dir(MAKE) {
            // Another caller created the directory first. The lock decides which of them creates the index.
            Err(_) if storage.exists()? => {}
            made => made?,
        }
    }
    // Also for an existing directory: a crash may have come between its creation and this sync.
    storage.sync_parent(PARENT)?;
    let locked = LockedDirectory::take(&storage)?;
    if locked.has(names::ROOT) {
        let path = storage.path();
        let accept = |stored: &IndexParams| same_config(&path, stored, &geometry);
        return open_locked(storage, locked, config.options.clone(), env, accept);
    }
    if let Err(error) = may_become_an_index(&storage, &locked) {
        locked.withdraw();
        return Err(error);
    }
    let mut recovery = RecoveryStats::default();
    // Removed and recreated files get new directory entries. A failed sync may have left the old entries clean but not
    // durable (R8).
    let leftovers = locked.found.iter().filter(|name| *name != names::STATS);
    for name in leftovers.filter(|name| protects!(ErrorCheck, *name != names::LOCK)) {
        storage.remove(name, CLEAR)?;
        recovery.leftovers_removed += 1;
        reached!(LeftoversCleared);
    }
    let root = first_root(geometry, env.new_index_id, version);
    let lock = make_files(&storage, locked, &root, |_| Ok(()), || Ok(()))?;
    let found = IndexFiles::read(&storage, lock, recovery)?;
    let began = env.clock.elapsed();
    let mut engine = found.engine(storage, config.options.clone(), env, Origin::Created)?;
    engine.recovery.duration = env.clock.elapsed().saturating_sub(began);
    Ok(engine)
}

/// Checks that a directory without a root file holds nothing but the remains of an interrupted `create`.
fn may_become_an_index<S: Storage>(storage: &S, locked: &LockedDirectory<S>) -> Result<()> {
    let is_ours = |name: &str| names::ALL.contains(&name) || name == names::STATS && is_stats_file(storage);
    if let Some(stranger) = locked.found.iter().find(|name| !is_ours(name)) {
        return Err(ShardexError::AlreadyExists {
            path: storage.path(),
            reason: format!("it holds `{stranger}`, which is not Shardex's"),
        });
    }
    lost_root(storage, &locked.found)?.map_or(Ok(()), Err)
}

/// Returns the first root of a new index.
fn first_root(geometry: IndexParams, index_id: u128, version: u32) -> Root {
    Root {
        version,
        index_id,
        generation: Generation(1),
        geometry,
        checkpoint: Lsn(0),
        epoch: 1,
        wal_start: WalLayout::new(&geometry).start_of(1),
        directory: BlockPointer::default(),
        shard_numbers: 0,
        shards: 0,
        live: 0,
        removed: 0,
        draws: 0,
        splits: 0,
        merges: 0,
        data_pages: SpaceMap::new(&geometry, 1).pages_of(1),
        wal_segments: 0,
        cells: BlockPointer::default(),
        payload: PayloadRoot::default(),
    }
}

/// Creates all files of an index with this state and an empty WAL, the root file last, and makes them durable. `fill` stores
/// what the root names, as [`LendingFile::create`] says. `look` may refuse the files before the root file gets its name. Returns
/// the lock joined with that of the new data file.
pub(super) fn make_files<S: Storage>(
    storage: &S,
    locked: LockedDirectory<S>,
    root: &Root,
    fill: impl FnOnce(&mut dyn FnMut(u64, &[u8]) -> Result<()>) -> Result<()>,
    look: impl FnOnce() -> Result<()>,
) -> Result<IndexLock> {
    const ALLOCATE: Purpose = Purpose("create: allocate");
    let (geometry, index_id) = (&root.geometry, root.index_id);
    let layout = WalLayout::new(geometry);
    let header = header::encode_file(&DATA_MAGIC, index_id);
    let len = root.data_pages * geometry.page_size as u64;
    LendingFile::create(storage, len, &header, [MAKE, ALLOCATE, HEADER, C1], fill)?;
    let lock = locked.into_lock_of_new(storage)?;
    let file = PlainFile::create(storage, names::WAL, MAKE, &lock)?;
    let (page, len) = (geometry.page_size as u64, layout.file_len(FIRST_SEGMENTS));
    file.raw().allocate(0, page, ALLOCATE)?;
    file.raw().allocate(len - page, page, ALLOCATE)?;
    file.store(0, &header::encode_file(&WAL_MAGIC, index_id), HEADER)?;
    file.sync_all(C1).run()?;
    let root = Root { wal_segments: FIRST_SEGMENTS as u32, ..root.clone() };
    let file = PlainFile::create(storage, names::ROOT_NEW, MAKE, &lock)?;
    Roots::store_first(&file, &root)?;
    file.sync_all(C2).run()?;
    look()?;
    // Before the rename, because a directory entry may survive a crash without entries made earlier (R7).
    storage.sync_dir(C3)?;
    storage.rename(names::ROOT_NEW, names::ROOT, NAME)?;
    storage.sync_dir(C4)?;
    Ok(lock)
}

/// Compares the parameters that the format fixes.
fn same_config(path: &Path, stored: &IndexParams, given: &IndexParams) -> Result<()> {
    let fields: [(&'static str, String, String); 6] = [
        ("vector_size", stored.dimension.to_string(), given.dimension.to_string()),
        ("metric", stored.metric.to_string(), given.metric.to_string()),
        ("encoding", stored.encoding.to_string(), given.encoding.to_string()),
        ("shard_size", stored.shard_size.to_string(), given.shard_size.to_string()),
        ("bloom_filter_size", stored.bloom_bytes.to_string(), given.bloom_bytes.to_string()),
        ("wal_segment_size", stored.wal_segment_size.to_string(), given.wal_segment_size.to_string()),
    ];
    match fields.into_iter().find(|(_, stored, given)| stored != given) {
        None => Ok(()),
        Some((field, stored, given)) => {
            Err(ShardexError::ConfigMismatch { path: path.to_owned(), field, stored, given })
        }
    }
}
