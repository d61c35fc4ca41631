//! Open: from whatever is in the directory to an engine that may write.
//!
//! After a crash, in this order (R10: what can be read may be in the page cache alone, so what recovery relies on is stored
//! anew and synced before anything is accepted or freed):
//!
//! (a) The newest root is stored again and synced: **B4**. If it is of epoch 1, the root file is made anew and its entry
//!     synced (**E2**, **E1**, see invariant 1).
//! (b) The WAL is replayed from its checkpoint. A flush stores a root at the tail's end: its shards' new bytes are synced
//!     (**B2**), then it (**B3**). It carries a new epoch of the WAL, so that nothing behind a torn tail can ever continue
//!     a chain.
//! (c) The same state is stored as one more root in the other slot and synced: **B5**. Now both roots know the new epoch,
//!     whichever of them rots later, and neither needs the WAL from before the crash.
//!
//! Only then is anything appended or freed. A crash anywhere in this leaves one of the roots that were there, or a newer
//! one of the same state: recovery begins again and comes to the same end.
//!
//! After a clean close (a closing mark ends the WAL, the roots follow one another, and nothing is to be replayed) no byte is
//! stored until the first write; then the rest of (a), (b) and (c) come first.
//!
//! Invariant:
//! 1. The entry of a root file that holds a root of epoch 2 or later is durable. `create` makes files of epoch 1, and may end
//!    before its last sync of the directory, or have it fail; then a later sync may do nothing (R8). An open can't tell: the
//!    page cache may have shown an earlier open an empty log, which replaced the file, and show this one a used log. So
//!    whatever an open believes, it replaces a file of epoch 1, which gives the entry a change that a sync covers, before
//!    it stores a root of epoch 2 there; and before it stores anything into places that the roots it found say are free, for an
//!    older file that a power cut brought back might name them. The entries of `data` and `wal` are durable before a root file has its name (C3).

use std::{collections::BTreeSet, ptr, sync::Arc};

use super::{
    barriers::{B4, B5, E1, E2},
    Counters, Engine, apply, batch,
    create::{self, COMMIT},
    directory::{self, Directory},
    lock::LockedDirectory,
    names, regroup,
    roots::{self, Roots, Slot},
    stats::RecoveryStats,
    working::Working,
};
use crate::{
    config::OpenOptions,
    env::Env,
    error::{Result, ShardexError},
    format::{
        frame::FrameKind,
        header::{self, DATA_MAGIC, FILE_HEADER_BYTES, Kind, WAL_MAGIC},
        node::Entry,
        record,
        root::{Root, WalPosition},
    },
    id::Lsn,
    index::Snapshot,
    lease::{IndexLock, PlainFile, Run},
    limits::{FORMAT_VERSION, WAL_SHARES},
    shard::{DataFile, Shard},
    site::{self, Mark},
    space::{Reclaimer, Use},
    storage::{Purpose, Storage, StorageFile},
    wal::{self, Record, Tail, WalLayout, WalWriter},
};

pub(super) const CLEAR: Purpose = Purpose("create: clear an interrupted one");
const REFILL: Purpose = Purpose("open: allocate holes");

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
        let lost = create::lost_root(&storage, &locked.found);
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
    let read = || {
        let mut recovery = RecoveryStats::default();
        if leftover {
            storage.remove(names::ROOT_NEW, CLEAR)?;
            recovery.leftovers_removed += 1;
        }
        Found::read(&storage, lock, recovery)
    };
    read().and_then(|found| found.engine(storage, options, env, false)).inspect_err(|_| kept.withdraw())
}

/// What the files of an index hold, before anything is decided.
pub(super) struct Found<F: StorageFile> {
    lock: IndexLock,
    root_file: PlainFile<F>,
    wal_file: PlainFile<F>,
    data: DataFile<F>,
    newest: Root,
    newest_slot: usize,
    older: Option<Root>,
    /// The newest epoch that any root names.
    epoch: u64,
    recovery: RecoveryStats,
}

impl<F: StorageFile> Found<F> {
    /// Reads roots and headers.
    pub(super) fn read<S: Storage<File = F>>(
        storage: &S,
        lock: IndexLock,
        mut recovery: RecoveryStats,
    ) -> Result<Self> {
        let root_file = PlainFile::open(storage, names::ROOT, &lock)?;
        let page_size = storage.page_size();
        let slots = roots::read_slots(root_file.raw(), page_size)?;
        let mut valid: Vec<(usize, Root)> = Vec::new();
        for (i, slot) in slots.iter().enumerate() {
            match slot {
                Slot::Valid(root) => valid.push((i, (**root).clone())),
                Slot::Unreadable(_) => {
                    recovery.root_fallback = true;
                    site::reach(Mark::OlderRootUsed);
                }
            }
        }
        // By epoch first: a slot that holds something older than it should may be of a time that a crash cut off, and then
        // its generation was given out again, in a later epoch.
        valid.sort_by_key(|(_, root)| (root.epoch, root.generation));
        let epoch = valid.iter().map(|(_, root)| root.epoch).max().unwrap_or(0);
        let Some((newest_slot, newest)) = valid.pop() else { unreachable!("one slot is valid, or reading failed") };
        let mut older = valid.pop().map(|(_, root)| root);
        let geometry = newest.geometry;
        if geometry.page_size != page_size || !geometry.sector_size.is_multiple_of(storage.sector_size()) {
            return Err(ShardexError::Config {
                field: "directory_path",
                reason: format!(
                    "the index was made for pages of {} and sectors of {} bytes; this storage has {page_size} and {}",
                    geometry.page_size,
                    geometry.sector_size,
                    storage.sector_size()
                ),
            });
        }
        if let Some(older) = &older
            && (older.index_id != newest.index_id
                || older.geometry != geometry
                || (older.epoch, older.generation) == (newest.epoch, newest.generation))
            && older != &newest
        {
            return Err(ShardexError::Corruption {
                file: root_file.path(),
                offset: ((1 - newest_slot) * page_size) as u64,
                what: format!("its roots {} and {} contradict each other", older.generation, newest.generation),
            });
        }
        let data = DataFile::open(storage, &lock, geometry).map_err(missing_part)?;
        check_part(data.raw(), &DATA_MAGIC, newest.index_id)?;
        let wal_file = PlainFile::open(storage, names::WAL, &lock).map_err(missing_part)?;
        check_part(wal_file.raw(), &WAL_MAGIC, newest.index_id)?;
        let least = newest.data_pages.saturating_mul(page_size as u64);
        if !site::holds(site::Kind::ErrorCheck, data.raw().len()? >= least) {
            return Err(ShardexError::Corruption {
                file: data.path(),
                offset: data.raw().len()?,
                what: format!("the file ends here, {least} bytes expected"),
            });
        }
        // Of more pages than there are, it names what is not there.
        let len = data.raw().len()?;
        if older.as_ref().is_some_and(|older| older.data_pages.saturating_mul(page_size as u64) > len) {
            recovery.root_fallback = true;
            older = None;
        }
        let least = WalLayout::new(&geometry).file_len(newest.wal_segments as usize);
        if newest.wal_segments > 0 && !site::holds(site::Kind::ErrorCheck, wal_file.raw().len()? >= least) {
            return Err(ShardexError::Corruption {
                file: wal_file.path(),
                offset: wal_file.raw().len()?,
                what: format!("the file ends here, {least} bytes expected"),
            });
        }
        Ok(Self { lock, root_file, wal_file, data, newest, newest_slot, older, epoch, recovery })
    }

    /// Puts the engine together, recovers if it must, and hands it over.
    pub(super) fn engine<S: Storage<File = F>>(
        self,
        storage: S,
        options: OpenOptions,
        env: &Env,
        fresh: bool,
    ) -> Result<Engine<S>> {
        let Self { lock, root_file, wal_file, data, newest, newest_slot, mut older, epoch, mut recovery } = self;
        let clock = Arc::clone(&env.clock);
        let began = clock.elapsed();
        let geometry = *data.geometry();
        let layout = WalLayout::new(&geometry);
        let mut read_only = None;
        for file in [data.raw(), wal_file.raw(), root_file.raw()].into_iter().filter(|_| !fresh) {
            // A copied index may have holes, and a store into one must not fail later for want of space.
            // And a root file that was cut behind its roots gets its pages back.
            let least = if ptr::eq(file, root_file.raw()) { roots::SLOTS * geometry.page_size } else { 0 };
            let allocated = file.len().and_then(|len| file.allocate(len.max(least as u64), REFILL));
            if let Err(error) = allocated {
                if !error.is_out_of_space() {
                    return Err(error);
                }
                read_only = Some(error);
            }
        }
        let directory = Directory::load(&newest, &data)?;
        let mut work = load(&newest, &directory, &data, options.shardex_segment_size)?;
        match regroup::load(newest.cells, &data, &mut work, newest.index_id) {
            Ok(cells) => work.cells = cells,
            // Derived, so nothing is lost with them; the next root names none.
            Err(ShardexError::Corruption { .. } | ShardexError::Io { .. }) => {
                recovery.cells_lost = true;
                work.cells_changed = true;
                site::reach(Mark::CellsLost);
            }
            Err(error) => return Err(error),
        }
        if let Some(root) = &older
            && site::applies(site::Kind::Ordering, true)
        {
            match hold_older(&mut work, root, &directory, &data) {
                Ok(with_cells) => recovery.cells_lost |= !with_cells,
                // The newest root stands on its own: the older one counts as one that cannot be read.
                Err(ShardexError::Corruption { .. }) => {
                    recovery.root_fallback = true;
                    site::reach(Mark::OlderTreeDamaged);
                    older = None;
                }
                Err(error) => return Err(error),
            }
        }
        let newest_epoch = newest.epoch;
        let empty = Snapshot::empty(newest.checkpoint);
        let numbers = 0..work.shards.len() as u32;
        let cells = regroup::searched(&work.cells);
        let state = (newest.checkpoint, newest.live);
        let durable = Arc::new(empty.with_changes(&work.shards, numbers, cells, state, (false, &geometry)));
        let durable_segments = newest.wal_segments as usize;
        // Nothing behind a torn tail may ever continue a chain.
        let next_epoch = if site::applies(site::Kind::Ordering, !fresh) { epoch + 1 } else { newest_epoch };
        let wal = WalWriter::start_epoch(
            &wal_file,
            layout,
            newest.index_id,
            next_epoch,
            newest.checkpoint,
            durable_segments,
            wal_limits(&options),
        )?;
        let index_id = newest.index_id;
        let (start, checkpoint) = (newest.wal_start, newest.checkpoint);
        // An epoch is written to only when two roots of it follow one another: else a slot holds something older than it
        // should, and that is mended now, for the other one may rot later.
        let paired = older
            .as_ref()
            .is_some_and(|older| older.epoch == newest.epoch && older.generation.next() == newest.generation);
        let mut engine = Engine {
            storage,
            lock,
            clock,
            options,
            index_id,
            data: Arc::new(data),
            wal_file,
            wal,
            epoch_open: fresh,
            roots: Roots::new(root_file, newest, newest_slot, older),
            directory,
            work,
            flush: None,
            published: Arc::clone(&durable),
            durable,
            poisoned: None,
            read_only,
            counters: Counters::default(),
            recovery,
            executor: Arc::clone(&env.executor),
            cell_policy: env.cells,
            regroup_at: 0,
            regroup_refused: 0,
        };
        if !fresh {
            engine.recover(start, checkpoint, (newest_epoch, paired))?;
        }
        engine.recovery.duration = engine.clock.elapsed().saturating_sub(began);
        Ok(engine)
    }
}

/// Most bytes of the WAL file, and up to how many it grows by more than it needs: what two retained roots and the flush
/// under way may need, if the size of the WAL makes flushes begin.
fn wal_limits(options: &OpenOptions) -> (u64, u64) {
    let target = match options.flush_wal_bytes {
        0 => options.wal_max_bytes,
        bytes => bytes.saturating_mul(WAL_SHARES),
    };
    (options.wal_max_bytes, target)
}

/// A file that is not there, although there is a root, is damage.
fn missing_part(error: ShardexError) -> ShardexError {
    match error {
        ShardexError::Io { path, source, .. } if source.kind() == std::io::ErrorKind::NotFound => {
            let what = "the file is missing, yet the index has a root: put it back".to_owned();
            ShardexError::Corruption { file: path, offset: 0, what }
        }
        error => error,
    }
}

/// Checks that `data` or `wal` belongs to the index.
fn check_part<F: StorageFile>(file: &F, magic: &[u8; 8], index_id: u128) -> Result<()> {
    let mut bytes = [0; FILE_HEADER_BYTES];
    if file.len()? < FILE_HEADER_BYTES as u64 {
        return Err(ShardexError::Corruption {
            file: file.path(),
            offset: 0,
            what: "the file ends before its header does".into(),
        });
    }
    file.read_at(0, &mut bytes)?;
    match header::kind(&bytes, magic) {
        Kind::Ours => {}
        Kind::OtherVersion(found) => {
            return Err(ShardexError::UnsupportedVersion { file: file.path(), found, supported: FORMAT_VERSION });
        }
        Kind::Foreign => {
            let reason = format!("its first bytes are \"{}\"", bytes[..8].escape_ascii());
            return Err(ShardexError::NotAnIndex { file: file.path(), reason });
        }
    }
    let damaged = |what: String| ShardexError::Corruption { file: file.path(), offset: 0, what };
    let found = header::decode_file(&bytes, magic).map_err(|e| damaged(e.to_string()))?;
    if !site::holds(site::Kind::ErrorCheck, found == index_id) {
        return Err(damaged(format!("it belongs to index {found:032x}, not to {index_id:032x}")));
    }
    Ok(())
}

fn in_data<F: StorageFile>(data: &DataFile<F>, page: u64, what: String) -> ShardexError {
    let offset = page.saturating_mul(data.geometry().page_size as u64);
    ShardexError::Corruption { file: data.path(), offset, what }
}

/// The working state below a root. Reads states, no vector and no posting.
fn load<F: StorageFile>(root: &Root, directory: &Directory, data: &DataFile<F>, step: usize) -> Result<Working<F>> {
    let geometry = data.geometry();
    // As long as the root says, not as the file is: what lies beyond may be in the page cache alone (R10). It is grown into
    // again, and then a sync covers the length.
    let chunks = (root.data_pages.saturating_sub(1) / u64::from(geometry.chunk_pages())) as usize;
    let space = Reclaimer::new(geometry, chunks, root.generation, data.lock().clone());
    let mut work = Working::new(geometry, space, step);
    let meta: Vec<_> = directory.entries().map(|entry| (directory::run_of(entry, geometry), Use::Meta)).collect();
    // Named by the directory from here on.
    drop(work.space.adopt(&meta).map_err(|(run, why)| in_data(data, run.page, why))?);
    work.finder.reserve(directory.len());
    let (mut live, mut removed, mut shards) = (0, 0, 0);
    for number in 0..directory.len() as u32 {
        let entry = directory.state(number as usize);
        if entry.is_none() {
            work.put(number, None);
            continue;
        }
        let state = directory::read_state(&entry, number, data)?;
        live += u64::from(state.live);
        removed += u64::from(state.len - state.live);
        shards += 1;
        let pages = geometry.extent_pages();
        let runs: Vec<_> = state.extents.iter().map(|extent| (Run { page: extent.page, pages }, Use::Extent)).collect();
        let places = work.space.adopt(&runs).map_err(|(run, why)| in_data(data, run.page, why))?;
        let shard = Shard::load(state, data, &places)?;
        work.index(number, Some(&shard));
        work.put(number, Some(Arc::new(shard)));
    }
    let counts = [
        ("live postings", root.live, live),
        ("removed postings", root.removed, removed),
        ("shards", root.shards.into(), shards),
    ];
    if let Some((of, expected, found)) = counts.into_iter().find(|(_, expected, found)| expected != found) {
        let what = format!("root {} counts {expected} {of}, its directory {found}", root.generation);
        return Err(in_data(data, root.directory.page, what));
    }
    let &Root { live, removed, draws, splits, merges, .. } = root;
    work.totals = super::working::Totals { live, removed, draws, splits, merges };
    work.dirty.clear();
    Ok(work)
}

/// What tells an entry from every other.
fn identity(entry: &Entry) -> (u64, u32, u32) {
    (entry.page, entry.len, entry.crc)
}

/// Holds the places that only the older root names: they are free when it is gone. Returns whether its cells, if it has
/// any, could be read.
fn hold_older<F: StorageFile>(
    work: &mut Working<F>,
    older: &Root,
    newest: &Directory,
    data: &DataFile<F>,
) -> Result<bool> {
    let geometry = data.geometry();
    let mut with_cells = true;
    let directory = Directory::load(older, data)?;
    let known: BTreeSet<(u64, u32, u32)> = newest.entries().map(identity).collect();
    let extents: BTreeSet<u64> = work
        .shards
        .iter()
        .flatten()
        .flat_map(|shard| shard.extents().iter().map(|extent| extent.place().run().page))
        .collect();
    let mut only: Vec<(Run, Use)> = directory
        .entries()
        .filter(|entry| !known.contains(&identity(entry)))
        .map(|entry| (directory::run_of(entry, geometry), Use::Meta))
        .collect();
    for number in 0..directory.len() as u32 {
        let entry = directory.state(number as usize);
        // A state that the newest root names too holds nothing new; other bytes in the same place are those of a root that
        // is stale, and damaged ones to it.
        if entry.is_none() || known.contains(&identity(&entry)) {
            continue;
        }
        let state = directory::read_state(&entry, number, data)?;
        for extent in state.extents.iter().filter(|extent| !extents.contains(&extent.page)) {
            only.push((Run { page: extent.page, pages: geometry.extent_pages() }, Use::Extent));
        }
    }
    if !older.cells.is_none() && work.cells.as_ref().is_none_or(|&(_, head)| head != older.cells) {
        match regroup::read_table(&older.cells, data) {
            Ok((_, runs)) => {
                // Both tables may name the same groups: a place that the newest root names is not only the older one's.
                let newest = work.cells.iter().flat_map(|(cells, _)| cells.places());
                let newest: BTreeSet<Run> = newest.map(|place| place.run()).collect();
                let only_older = |run: &Run| !site::applies(site::Kind::Ordering, newest.contains(run));
                only.extend(runs.into_iter().filter(only_older).map(|run| (run, Use::Meta)));
            }
            // Without these the older root is as good as ever.
            Err(ShardexError::Corruption { .. } | ShardexError::Io { .. }) => {
                site::reach(Mark::CellsLost);
                with_cells = false;
            }
            Err(error) => return Err(error),
        }
    }
    only.sort_unstable();
    only.dedup();
    work.space.adopt_for(older.generation, &only).map_err(|(run, why)| in_data(data, run.page, why))?;
    Ok(with_cells)
}

impl<S: Storage> Engine<S> {
    /// See the [module](self).
    fn recover(&mut self, start: WalPosition, checkpoint: Lsn, (epoch, paired): (u64, bool)) -> Result<()> {
        let layout = WalLayout::new(self.data.geometry());
        let source = self.wal_file.clone();
        let replay = |apply: &mut dyn FnMut(Record) -> Result<()>| {
            wal::replay(source.raw(), layout, (self.index_id, epoch), start, checkpoint, apply)
        };
        // Once without applying: whether this was a clean close decides whether (a) comes first.
        let tail = replay(&mut |_| Ok(()))?;
        let paired = site::holds(site::Kind::ErrorCheck, paired) && self.older_reaches(epoch)?;
        if tail.closed && tail.records == 0 && paired {
            self.start_after(tail)?;
            site::reach(Mark::CleanOpen);
            return Ok(());
        }
        self.recovery.crashed = !tail.closed;
        self.recovery.torn_tail = tail.torn;
        if self.read_only.is_some() {
            // A file has holes and no room for them, so nothing can be stored: serves the state of the root.
            site::reach(Mark::ReadOnly);
            return self.start_after(Tail { last: checkpoint, newest_epoch: tail.newest_epoch, ..Tail::default() });
        }
        self.counters.barriers += 1;
        match self.roots.restore(B4) {
            Err(error) if error.is_out_of_space() => {
                self.read_only = Some(error);
                site::reach(Mark::ReadOnly);
                return self.start_after(Tail { last: checkpoint, newest_epoch: tail.newest_epoch, ..Tail::default() });
            }
            done => done?,
        }
        if site::applies(site::Kind::Ordering, true) {
            match self.make_root_file_anew() {
                Err(error) if error.is_out_of_space() => {
                    self.read_only = Some(error);
                    site::reach(Mark::ReadOnly);
                    return self.start_after(Tail {
                        last: checkpoint,
                        newest_epoch: tail.newest_epoch,
                        ..Tail::default()
                    });
                }
                done => done?,
            }
        }
        let mut replayed = Tail { last: checkpoint, newest_epoch: tail.newest_epoch, ..Tail::default() };
        let applied = wal::replay(source.raw(), layout, (self.index_id, epoch), start, checkpoint, |record| {
            self.replay_record(&record)?;
            replayed.last = record.lsn;
            Ok(())
        });
        match applied {
            Ok(_) => self.start_after(tail)?,
            Err(error) if error.is_out_of_space() => {
                // Serves what it could replay; the WAL and the roots are as they were.
                self.start_after(replayed)?;
                self.read_only = Some(error);
            }
            Err(error) => return Err(error),
        }
        let numbers: Vec<u32> = (0..self.work.shards.len() as u32).collect();
        self.publish(&numbers);
        if self.read_only.is_some() {
            site::reach(Mark::ReadOnly);
            return Ok(());
        }
        match self.open_epoch() {
            Err(error) if error.is_out_of_space() => {
                self.read_only = Some(error);
                site::reach(Mark::ReadOnly);
                Ok(())
            }
            done => done,
        }
    }

    /// Whether the log behind the older root is still there, as far as nothing was stored over it. A slot that went back by one
    /// store holds the root before it, and follows the other as if it were its place; but for that root the log was let go.
    fn older_reaches(&self, epoch: u64) -> Result<bool> {
        let Some(older) = self.roots.older().filter(|older| older.checkpoint < self.roots.newest().checkpoint) else {
            return Ok(true);
        };
        let layout = WalLayout::new(self.data.geometry());
        let found = wal::has_segment(self.wal_file.raw(), layout, (self.index_id, epoch), older.wal_start.seq)?;
        Ok(site::holds(site::Kind::ErrorCheck, found))
    }

    /// LSNs go on after the tail, in an epoch that no segment is of.
    fn start_after(&mut self, tail: Tail) -> Result<()> {
        let layout = WalLayout::new(self.data.geometry());
        self.wal = WalWriter::start_epoch(
            &self.wal_file,
            layout,
            self.index_id,
            self.wal.epoch().max(tail.newest_epoch + 1),
            tail.last,
            self.wal.durable_segments(),
            wal_limits(&self.options),
        )?;
        Ok(())
    }

    fn replay_record(&mut self, record: &Record) -> Result<()> {
        let damaged = |e: crate::format::FormatError| ShardexError::Corruption {
            file: self.wal_file.path(),
            offset: record.offset,
            what: format!("record {}: {e}", record.lsn),
        };
        let operations = match record.kind {
            FrameKind::Add => {
                let postings = record::decode_add(&record.payload, self.data.geometry().dimension).map_err(damaged)?;
                // What was accepted once is so again, unless these are other bytes.
                let rows = batch::rows(&postings, self.data.geometry())
                    .map_err(|e| damaged(crate::format::FormatError::new(0, e.to_string())))?;
                let context = self.context();
                apply::add(&mut self.work, &context, &rows)?;
                postings.len()
            }
            FrameKind::Remove => {
                let documents = record::decode_remove(&record.payload).map_err(damaged)?;
                let context = self.context();
                apply::remove(&mut self.work, &context, &documents)?;
                documents.len()
            }
            FrameKind::Pad | FrameKind::Close => 0,
        };
        self.recovery.records_replayed += 1;
        site::reach(Mark::RecordReplayed);
        self.recovery.operations_replayed += operations as u64;
        Ok(())
    }

    /// Makes both roots know the epoch that is to be appended to: steps (b) and (c). Nothing to do if they do.
    ///
    /// # Errors
    /// As [`flush`](Self::flush).
    pub(super) fn open_epoch(&mut self) -> Result<()> {
        if site::holds(site::Kind::Ordering, self.epoch_open) {
            return Ok(());
        }
        self.flush_once(true)?;
        let twin = Root { generation: self.roots.newest().generation.next(), ..self.roots.newest().clone() };
        self.work.space.begin(twin.generation);
        let job = self.roots.store_next(&twin, B5)?;
        self.counters.barriers += 1;
        if let Err(error) = job.run() {
            return Err(self.poison(error));
        }
        self.roots.stored(twin);
        self.work.space.made_durable(self.roots.newest().generation);
        self.epoch_open = true;
        Ok(())
    }

    /// Replaces a root file of epoch 1, so that its entry is durable: invariant 1 of the [module](self). No flush is under way,
    /// whose root the new file would lack.
    pub(super) fn make_root_file_anew(&mut self) -> Result<()> {
        if self.roots.is_anew() || site::holds(site::Kind::Ordering, self.roots.newest().epoch > 1) {
            return Ok(());
        }
        let file = self.roots.copy_to_new_file(&self.storage, &self.lock)?;
        self.counters.barriers += 1;
        if let Err(error) = file.sync_all(E2).run() {
            return Err(self.poison(error));
        }
        self.storage.rename(names::ROOT_NEW, names::ROOT, COMMIT)?;
        // Opened anew, for it has another name now.
        self.roots.use_file(PlainFile::open(&self.storage, names::ROOT, &self.lock)?);
        site::reach(Mark::RootFileReplaced);
        self.counters.barriers += 1;
        self.storage.sync_dir(E1).map_err(|error| self.poison(error))
    }
}
