//! The consistency check: what WAL, shards, directory, free space and sums say of each other.
//!
//! *Quick* compares figures in memory, in every flush, for the shards that changed. *Full* reads every byte on disk by
//! copying and computes everything derived again. What is found is a value, not a log line.

use std::{collections::BTreeSet, fmt, path::PathBuf, sync::Arc};

use super::{
    Engine,
    contents::CheckJob,
    directory::{self, Changes, Directory},
    flush::FlushRun,
    regroup,
    roots::{self, Slot},
    working::SharedShard,
};
use crate::{
    config::CheckLevel,
    env::Never,
    error::{Result, ShardexError},
    format::{
        crc32c,
        header::{DATA_MAGIC, FILE_HEADER_BYTES, WAL_MAGIC, decode_file},
        root::Root,
    },
    lease::{Place, Run},
    shard::{DataFile, Shard},
    site::{self, Kind},
    space::{SpaceMap, Use},
    storage::{Storage, StorageFile},
    wal,
};

/// The part of an index that a finding is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Component {
    /// The root slots.
    Root,
    /// The directory and the shard states.
    Directory,
    /// A shard's vectors, postings, counts, sums or filter.
    Shard,
    /// The write-ahead log.
    Wal,
    /// Which places are free.
    Space,
    /// The cells: codes that searches scan. Derived, so nothing is lost with them.
    Cells,
}

/// One contradiction.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Finding {
    /// What it is about.
    pub component: Component,
    /// The shard's number.
    pub shard: Option<u32>,
    /// The slot in the shard.
    pub slot: Option<usize>,
    /// The file and the offset in it.
    pub place: Option<(PathBuf, u64)>,
    /// What was compared.
    pub what: String,
    /// The figure it should be.
    pub expected: String,
    /// The figure it is.
    pub found: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.component)?;
        if let Some(shard) = self.shard {
            write!(f, " {shard}")?;
        }
        if let Some(slot) = self.slot {
            write!(f, " slot {slot}")?;
        }
        if let Some((file, offset)) = &self.place {
            write!(f, " ({} byte {offset})", file.display())?;
        }
        write!(f, ": {}: {} expected, {} found", self.what, self.expected, self.found)
    }
}

/// What a check found. Empty is good.
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct ConsistencyReport {
    /// Every contradiction.
    pub findings: Vec<Finding>,
    /// Shards looked at.
    pub shards_checked: usize,
    /// Postings looked at, removed ones too.
    pub postings_checked: u64,
    /// Bytes read from disk.
    pub bytes_read: u64,
}

impl ConsistencyReport {
    /// Whether nothing was found.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.findings.is_empty()
    }

    fn expect<T: PartialEq + fmt::Debug>(&mut self, at: At, what: &str, expected: T, found: T) {
        if expected != found {
            self.add(at, what, format!("{expected:?}"), format!("{found:?}"));
        }
    }

    pub(super) fn add(&mut self, at: At, what: &str, expected: impl Into<String>, found: impl Into<String>) {
        self.findings.push(Finding {
            component: at.component,
            shard: at.shard,
            slot: at.slot,
            place: at.place,
            what: what.to_owned(),
            expected: expected.into(),
            found: found.into(),
        });
    }
}

impl fmt::Display for ConsistencyReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (shards, postings, bytes) = (self.shards_checked, self.postings_checked, self.bytes_read);
        write!(f, "{shards} shards, {postings} postings, {bytes} bytes read: ")?;
        match self.findings.len() {
            0 => write!(f, "consistent"),
            n => {
                write!(f, "{n} findings")?;
                self.findings.iter().try_for_each(|finding| write!(f, "\n  {finding}"))
            }
        }
    }
}

/// Where a finding is.
#[derive(Clone)]
pub(super) struct At {
    component: Component,
    shard: Option<u32>,
    slot: Option<usize>,
    place: Option<(PathBuf, u64)>,
}

impl At {
    pub(super) fn new(component: Component) -> Self {
        Self { component, shard: None, slot: None, place: None }
    }

    pub(super) fn shard(number: u32) -> Self {
        Self { shard: Some(number), ..Self::new(Component::Shard) }
    }

    /// A finding about the cells, for the shard that this is of.
    pub(super) fn of_cells(self) -> Self {
        Self { component: Component::Cells, ..self }
    }

    pub(super) fn slot(mut self, slot: usize) -> Self {
        self.slot = Some(slot);
        self
    }

    pub(super) fn place(mut self, file: PathBuf, offset: u64) -> Self {
        self.place = Some((file, offset));
        self
    }
}

/// How far a sum may be from the one computed anew, as a share of the sum of all magnitudes: the rounding of some
/// thousand additions and subtractions in f64.
pub(super) const SUM_TOLERANCE: f64 = 1e-9;

/// The check inside a flush: O(changed shards).
pub(super) fn quick_check<S: Storage>(
    engine: &Engine<S>,
    root: &Root,
    dirty: &[(u32, Option<SharedShard<S::File>>)],
    changes: &Changes,
) -> ConsistencyReport {
    let mut report = ConsistencyReport::default();
    let at = At::new(Component::Wal);
    if root.checkpoint > engine.wal.last_lsn() {
        report.add(
            at.clone(),
            "the checkpoint is in the WAL",
            format!("at most {}", engine.wal.last_lsn()),
            root.checkpoint.to_string(),
        );
    }
    if root.checkpoint < engine.roots.newest().checkpoint {
        report.add(
            at,
            "checkpoints grow",
            format!("at least {}", engine.roots.newest().checkpoint),
            root.checkpoint.to_string(),
        );
    }
    for (number, shard) in dirty {
        let entry = changes.get(&(0, *number as usize)).copied().unwrap_or_default();
        report.expect(At::shard(*number), "the directory has a state for it", shard.is_some(), !entry.is_none());
        if let Some(shard) = shard {
            check_counts(&mut report, *number, shard, engine.data.geometry().shard_size);
        }
    }
    report
}

/// Counts, tombstones and sums of one shard against each other; reads no vector.
fn check_counts<L: std::ops::Deref<Target = [u8]> + Clone>(
    report: &mut ConsistencyReport,
    number: u32,
    shard: &Shard<L>,
    shard_size: usize,
) {
    let at = At::shard(number);
    report.shards_checked += 1;
    report.postings_checked += shard.len() as u64;
    if shard.len() > shard_size {
        report.add(at.clone(), "slots used", format!("at most {shard_size}"), shard.len().to_string());
    }
    let in_extents: usize = shard.extents().iter().map(|extent| extent.used()).sum();
    report.expect(at.clone(), "slots used in its extents", shard.len(), in_extents);
    let removed: usize = (0..shard.len().div_ceil(64)).map(|i| shard.tombstone_word(i).count_ones() as usize).sum();
    report.expect(at.clone(), "live postings", shard.len() - removed, shard.live());
    if !shard.sum().iter().all(|x| x.is_finite()) {
        report.add(at, "the running sum", "finite numbers", "others");
    }
}

/// The check of a whole index. Inside a flush `taken` are the places that it uses and the engine is not told of yet; extents
/// that only the roots before it name are then left out, for the flush is what does away with them.
pub(super) fn check<S: Storage>(
    engine: &Engine<S>,
    level: CheckLevel,
    taken: Option<&[Arc<Place>]>,
) -> Result<ConsistencyReport> {
    match level {
        CheckLevel::Quick => Ok(check_figures(engine)),
        CheckLevel::Full => CheckJob::new(engine, taken)?.run_until(&Never),
    }
}

/// What the engine has in memory, all of it.
fn check_figures<S: Storage>(engine: &Engine<S>) -> ConsistencyReport {
    let mut report = ConsistencyReport::default();
    let (mut live, mut removed) = (0, 0);
    for (number, shard) in (0u32..).zip(&engine.work.shards) {
        let Some(shard) = shard else { continue };
        check_counts(&mut report, number, shard, engine.data.geometry().shard_size);
        live += shard.live() as u64;
        removed += (shard.len() - shard.live()) as u64;
    }
    let at = At::new(Component::Shard);
    report.expect(at.clone(), "live postings in all shards", live, engine.work.totals.live);
    report.expect(at.clone(), "removed postings in all shards", removed, engine.work.totals.removed);
    // A poisoned engine shows searches the state of the last durable root.
    if engine.poisoned.is_none() {
        report.expect(at, "live postings published", live, engine.published_live());
    }
    let at = At::new(Component::Wal);
    let (checkpoint, durable, last) =
        (engine.roots.newest().checkpoint, engine.wal.durable_lsn(), engine.wal.last_lsn());
    if checkpoint > durable || durable > last {
        report.add(at, "checkpoint ≤ durable ≤ last", "in order", format!("{checkpoint}, {durable}, {last}"));
    }
    report
}

/// Figures, and everything on the disk that a flush or a commit may change: what of a full check needs the engine.
pub(super) fn check_all_but_contents<S: Storage>(
    engine: &Engine<S>,
    taken: Option<&[Arc<Place>]>,
) -> Result<ConsistencyReport> {
    let mut report = check_figures(engine);
    check_files(engine, taken, &mut report)?;
    Ok(report)
}

pub(super) fn read<F: StorageFile>(
    report: &mut ConsistencyReport,
    data: &DataFile<F>,
    offset: u64,
    len: usize,
) -> Result<Vec<u8>> {
    let mut bytes = vec![0; len];
    data.raw().read_at(offset, &mut bytes)?;
    report.bytes_read += len as u64;
    Ok(bytes)
}

/// What is damaged becomes a finding; what cannot be read at all stays an error.
fn note<T>(report: &mut ConsistencyReport, component: Component, result: Result<T>) -> Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(ShardexError::Corruption { file, offset, what }) => {
            report.add(At::new(component).place(file, offset), &what, "intact bytes", "damaged ones");
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// Headers, roots, directories, states, WAL and free space, from the disk.
fn check_files<S: Storage>(
    engine: &Engine<S>,
    taken: Option<&[Arc<Place>]>,
    report: &mut ConsistencyReport,
) -> Result<()> {
    for (file, magic, component) in
        [(engine.data.raw(), DATA_MAGIC, Component::Directory), (engine.wal_file.raw(), WAL_MAGIC, Component::Wal)]
    {
        let mut bytes = [0; FILE_HEADER_BYTES];
        file.read_at(0, &mut bytes)?;
        report.bytes_read += FILE_HEADER_BYTES as u64;
        let found = decode_file(&bytes, &magic).map_err(|e| e.to_string());
        report.expect(At::new(component).place(file.path(), 0), "the file's header", Ok(engine.index_id), found);
    }
    // A root whose sync failed may lie in a slot by now; a poisoned handle has said so already.
    if engine.poisoned.is_none() {
        check_roots(engine, report)?;
    }
    let mut space = SpaceMap::new(engine.data.geometry(), engine.work.space.map().chunks());
    let mut seen: BTreeSet<Run> = BTreeSet::new();
    let newest = engine.roots.newest();
    for root in [Some(newest), engine.roots.older()].into_iter().flatten() {
        check_tree(engine, report, root, &mut space, &mut seen)?;
    }
    for place in engine.work.cells.iter().flat_map(|(cells, _)| cells.places()) {
        mark(report, &mut space, &mut seen, place.run(), Use::Meta);
    }
    for shard in engine.work.shards.iter().flatten() {
        for extent in shard.extents() {
            mark(report, &mut space, &mut seen, extent.place().run(), Use::Extent);
        }
    }
    let in_flush = taken.is_some();
    // The root of a flush under way is in memory alone, but its states and nodes have places.
    if taken.is_none() {
        check_extents_of_roots(engine, report)?;
    }
    for place in engine.flush.iter().flat_map(FlushRun::taken).chain(taken.unwrap_or_default()) {
        mark(report, &mut space, &mut seen, place.run(), Use::Meta);
    }
    for (run, used_as) in engine.work.space.waiting() {
        mark(report, &mut space, &mut seen, run, used_as);
    }
    // A flush that a failed sync has ended keeps its places, for a root on the device may name them.
    if engine.poisoned.is_none() {
        report.expect(
            At::new(Component::Space),
            "pages in use are the pages that something names",
            space.used_pages(),
            engine.work.space.map().used_pages(),
        );
    }
    // The WAL after the older root's checkpoint, which a rotten newest root would need. Before the first write after a clean
    // open that is the log of the epoch before; else recovery makes both roots do without that one, which may be torn.
    let root = engine.roots.older().filter(|older| older.epoch == newest.epoch).unwrap_or(newest);
    let was_closed = !engine.recovery.crashed && engine.recovery.records_replayed == 0;
    let is_whole = root.epoch == engine.wal.epoch() || (was_closed && !in_flush);
    if is_whole && engine.poisoned.is_none() {
        let layout = wal::WalLayout::new(engine.data.geometry());
        let epoch = (engine.index_id, root.epoch);
        let mut bytes = 0;
        let tail = wal::replay(engine.wal_file.raw(), layout, epoch, root.wal_start, root.checkpoint, |record| {
            bytes += record.payload.len() as u64;
            Ok(())
        });
        report.bytes_read += bytes;
        if let Some(tail) = note(report, Component::Wal, tail)?
            && tail.last < engine.wal.durable_lsn()
        {
            let at = At::new(Component::Wal);
            report.add(at, "the last durable record", engine.wal.durable_lsn().to_string(), tail.last.to_string());
        }
    }
    Ok(())
}

/// The groups of cells that a retained root names and the working state does not.
fn check_groups_of_root<S: Storage>(engine: &Engine<S>, root: &Root, report: &mut ConsistencyReport) -> Result<()> {
    let data = &engine.data;
    if root.cells.is_none() || engine.work.cells.as_ref().is_some_and(|&(_, head)| head == root.cells) {
        return Ok(());
    }
    // What of the table is damaged has been told.
    let Ok((table, _)) = regroup::read_table(&root.cells, data) else { return Ok(()) };
    for group in table.groups.iter().chain(&table.ahead) {
        let offset = group.place.page.saturating_mul(data.geometry().page_size as u64);
        let bytes = read(report, data, offset, group.place.len as usize)?;
        let (expected, found) = (group.place.crc, crc32c(0, &bytes));
        if !site::holds(Kind::Checksum, found == expected) {
            let what = format!("checksum of a group of cells that root {} names", root.generation);
            let at = At::new(Component::Cells).place(data.path(), offset);
            report.add(at, &what, format!("{expected:08x}"), format!("{found:08x}"));
        }
    }
    Ok(())
}

/// The extents that a retained root names and the working state does not: a crash may make them count again.
fn check_extents_of_roots<S: Storage>(engine: &Engine<S>, report: &mut ConsistencyReport) -> Result<()> {
    let data = &engine.data;
    let geometry = data.geometry();
    let extents = engine.work.shards.iter().flatten().flat_map(|shard| shard.extents());
    let mut checked: BTreeSet<(u64, u32)> = extents.map(|e| (e.place().run().page, e.state().crc)).collect();
    for root in [Some(engine.roots.newest()), engine.roots.older()].into_iter().flatten() {
        check_groups_of_root(engine, root, report)?;
        // What of the directory is damaged has been told.
        let Ok(directory) = Directory::load(root, data) else { continue };
        for number in 0..directory.len() {
            let entry = directory.state(number);
            if entry.is_none() {
                continue;
            }
            let Ok(state) = directory::read_state(&entry, number as u32, data) else { continue };
            for (i, extent) in state.extents.iter().enumerate() {
                let used = (state.len as usize - i * geometry.extent_slots()).min(geometry.extent_slots());
                if !checked.insert((extent.page, extent.crc)) {
                    continue;
                }
                let offset = extent.page.saturating_mul(geometry.page_size as u64);
                let bytes = read(report, data, offset, used * geometry.slot_bytes())?;
                let (expected, found) = (extent.crc, crc32c(0, &bytes));
                if !site::holds(Kind::Checksum, found == expected) {
                    let at = At::shard(number as u32).slot(i * geometry.extent_slots()).place(data.path(), offset);
                    let what = format!("checksum of an extent that root {} names", root.generation);
                    report.add(at, &what, format!("{expected:08x}"), format!("{found:08x}"));
                }
            }
        }
    }
    Ok(())
}

/// Both slots against the roots in memory.
fn check_roots<S: Storage>(engine: &Engine<S>, report: &mut ConsistencyReport) -> Result<()> {
    let file = engine.roots.file();
    let Some(slots) = note(report, Component::Root, roots::read_slots(file.raw(), engine.data.geometry().page_size))?
    else {
        return Ok(());
    };
    for root in engine.roots.in_slots() {
        let there = slots.iter().any(|slot| matches!(slot, Slot::Valid(found) if **found == *root));
        if !there {
            let what = format!("root {} lies in a slot", root.generation);
            let found: Vec<String> = slots
                .iter()
                .map(|slot| match slot {
                    Slot::Valid(root) => format!("root {}", root.generation),
                    Slot::Unreadable(why) => why.clone(),
                })
                .collect();
            report.add(At::new(Component::Root).place(file.path(), 0), &what, "there", found.join(", "));
        }
    }
    Ok(())
}

/// Everything a root names: read, checked, and marked as used.
fn check_tree<S: Storage>(
    engine: &Engine<S>,
    report: &mut ConsistencyReport,
    root: &Root,
    space: &mut SpaceMap,
    seen: &mut BTreeSet<Run>,
) -> Result<()> {
    let Some(directory) = note(report, Component::Directory, Directory::load(root, &engine.data))? else {
        return Ok(());
    };
    for entry in directory.entries() {
        let run = directory::run_of(entry, engine.data.geometry());
        report.bytes_read += u64::from(entry.len);
        mark(report, space, seen, run, Use::Meta);
    }
    if !root.cells.is_none() {
        let table = regroup::read_table(&root.cells, &engine.data);
        if let Some((_, runs)) = note(report, Component::Cells, table)? {
            runs.into_iter().for_each(|run| mark(report, space, seen, run, Use::Meta));
        }
    }
    let mut live = 0;
    for number in 0..directory.len() {
        let entry = directory.state(number);
        if entry.is_none() {
            continue;
        }
        let state = directory::read_state(&entry, number as u32, &engine.data);
        let Some(state) = note(report, Component::Directory, state)? else { continue };
        live += u64::from(state.live);
        for extent in &state.extents {
            let run = Run { page: extent.page, pages: engine.data.geometry().extent_pages() };
            mark(report, space, seen, run, Use::Extent);
        }
    }
    let what = format!("live postings below root {}", root.generation);
    report.expect(At::new(Component::Directory), &what, root.live, live);
    Ok(())
}

fn mark(report: &mut ConsistencyReport, space: &mut SpaceMap, seen: &mut BTreeSet<Run>, run: Run, used_as: Use) {
    if !seen.insert(run) {
        return;
    }
    let marked = match used_as {
        Use::Extent => space.mark_extent(run.page),
        Use::Meta => space.mark_meta(run),
    };
    if let Err(why) = marked {
        report.add(At::new(Component::Space), "a place belongs to one owner", "one", why);
    }
}
