//! The part of a full check that needs the engine: headers, roots, directory, shard states, WAL and free space, read
//! from the disk.

use std::{collections::BTreeSet, sync::Arc};

use super::{
    cell_store,
    check_payloads::{check_buckets, check_payloads_of_roots},
    check_tools::{mark, note, read},
    core::Engine,
    directory::{self, Directory, DirectoryKind},
    findings::{At, Component, ConsistencyReport},
    pending_flush::PendingFlush,
    quick_check::check_figures,
    roots::{self, RootSlot},
};
use crate::{
    error::Result,
    failpoint::holds,
    format::{
        crc32c,
        header::{DATA_MAGIC, FILE_HEADER_BYTES, WAL_MAGIC, decode_file},
        root::Root,
    },
    lease::{Allocation, PageRange},
    space::{SpaceMap, Use},
    storage::{Storage, StorageFile},
    wal,
};

/// Checks the figures in memory, and everything on disk that a flush or a commit may change. This is the part of a full
/// check that needs the engine.
pub(super) fn check_all_but_contents<S: Storage>(
    engine: &Engine<S>,
    taken: Option<&[Arc<Allocation>]>,
) -> Result<ConsistencyReport> {
    let mut report = check_figures(engine);
    check_files(engine, taken, &mut report)?;
    Ok(report)
}

/// Checks headers, roots, directories, shard states, WAL and free space, as read from the disk.
fn check_files<S: Storage>(
    engine: &Engine<S>,
    taken: Option<&[Arc<Allocation>]>,
    report: &mut ConsistencyReport,
) -> Result<()> {
    for (file, magic, component) in
        [(engine.data.raw(), DATA_MAGIC, Component::Directory), (engine.wal_file.raw(), WAL_MAGIC, Component::Wal)]
    {
        let mut bytes = [0; FILE_HEADER_BYTES];
        file.read_at(0, &mut bytes)?;
        report.bytes_read += FILE_HEADER_BYTES as u64;
        let found = decode_file(&bytes, &magic).map_err(|e| e.to_string());
        report.expect(At::new(component).location(file.path(), 0), "the file's header", Ok(engine.index_id), found);
    }
    // A root whose sync failed may be in a slot. A poisoned handle has already reported the failure.
    if engine.poisoned.is_none() {
        check_roots(engine, report)?;
    }
    let mut space = SpaceMap::new(engine.data.geometry(), engine.work.space.map().chunks());
    let mut seen: BTreeSet<PageRange> = BTreeSet::new();
    let newest = engine.roots.newest();
    for root in [Some(newest), engine.roots.older()].into_iter().flatten() {
        check_tree(engine, report, root, &mut space, &mut seen)?;
    }
    mark_working(engine, taken, report, &mut space, &mut seen)?;
    // A flush that ended with a failed sync keeps its allocations, because a root on the device may name them.
    if engine.poisoned.is_none() {
        report.expect(
            At::new(Component::Space),
            "pages in use are the pages that something names",
            space.used_pages(),
            engine.work.space.map().used_pages(),
        );
    }
    check_log(engine, taken.is_some(), report)
}

/// Marks the page ranges that the working state, a flush under way and the reclaimer name, besides those of the
/// retained roots.
fn mark_working<S: Storage>(
    engine: &Engine<S>,
    taken: Option<&[Arc<Allocation>]>,
    report: &mut ConsistencyReport,
    space: &mut SpaceMap,
    seen: &mut BTreeSet<PageRange>,
) -> Result<()> {
    for allocation in engine.work.cells.iter().flat_map(|(cells, _)| cells.allocations()) {
        mark(report, space, seen, allocation.run(), Use::Meta);
    }
    for shard in engine.work.shards.iter().flatten() {
        for extent in shard.extents() {
            mark(report, space, seen, extent.allocation().run(), Use::Extent);
        }
    }
    for block in engine.work.payload_space.allocations() {
        mark(report, space, seen, block.run(), Use::Meta);
    }
    // The root of a flush under way is in memory only, but its shard states and nodes already have allocations.
    if taken.is_none() {
        check_extents_of_roots(engine, report)?;
        check_payloads_of_roots(engine, report)?;
    }
    for allocation in engine.flush.iter().flat_map(PendingFlush::taken).chain(taken.unwrap_or_default()) {
        mark(report, space, seen, allocation.run(), Use::Meta);
    }
    for (run, used_as) in engine.work.space.waiting() {
        mark(report, space, seen, run, used_as);
    }
    Ok(())
}

/// Replays the retained WAL without applying it.
fn check_log<S: Storage>(engine: &Engine<S>, in_flush: bool, report: &mut ConsistencyReport) -> Result<()> {
    let newest = engine.roots.newest();
    // Checks the WAL after the older root's checkpoint, which a damaged newest root would need. Before the first write
    // after a clean open, that is the WAL of the previous epoch. After a recovery neither root needs the previous
    // epoch's WAL, which may be torn, so it is not checked.
    let root = engine.roots.older().filter(|older| older.epoch == newest.epoch).unwrap_or(newest);
    let was_closed = !engine.recovery.crashed && engine.recovery.records_replayed == 0;
    let is_whole = root.epoch == engine.wal.epoch() || (was_closed && !in_flush);
    if is_whole && engine.poisoned.is_none() {
        let layout = wal::WalLayout::new(engine.data.geometry());
        let mut bytes = 0;
        let tail = wal::replay(
            engine.wal_file.raw(),
            layout,
            engine.index_id,
            root.epoch,
            root.wal_start,
            root.checkpoint,
            |record| {
                bytes += record.payload.len() as u64;
                Ok(())
            },
        );
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

/// Checks the groups of cells that a retained root names and the working state doesn't.
fn check_groups_of_root<S: Storage>(engine: &Engine<S>, root: &Root, report: &mut ConsistencyReport) -> Result<()> {
    let data = &engine.data;
    if root.cells.is_none() || engine.work.cells.as_ref().is_some_and(|&(_, head)| head == root.cells) {
        return Ok(());
    }
    // `check_tree` has already reported a damaged table.
    let Ok((table, _)) = cell_store::read_table(&root.cells, data) else { return Ok(()) };
    for group in table.groups.iter().chain(&table.unfinished) {
        let offset = group.pointer.page.saturating_mul(data.geometry().page_size as u64);
        let bytes = read(report, data, offset, group.pointer.len as usize)?;
        let (expected, found) = (group.pointer.crc, crc32c(0, &bytes));
        if !holds!(Checksum, found == expected) {
            let what = format!("checksum of a group of cells that root {} names", root.generation);
            let at = At::new(Component::Cells).location(data.path(), offset);
            report.add(at, &what, format!("{expected:08x}"), format!("{found:08x}"));
        }
    }
    Ok(())
}

/// Checks the extents that a retained root names and the working state doesn't. A crash may bring them back into use.
fn check_extents_of_roots<S: Storage>(engine: &Engine<S>, report: &mut ConsistencyReport) -> Result<()> {
    let data = &engine.data;
    let geometry = data.geometry();
    let extents = engine.work.shards.iter().flatten().flat_map(|shard| shard.extents());
    let mut checked: BTreeSet<(u64, u32)> = extents.map(|e| (e.allocation().run().page, e.state().crc)).collect();
    for root in [Some(engine.roots.newest()), engine.roots.older()].into_iter().flatten() {
        check_groups_of_root(engine, root, report)?;
        // `check_tree` has already reported damage in the directory.
        let Ok(directory) = Directory::load(root, DirectoryKind::Shards, data) else { continue };
        for number in 0..directory.len() {
            let entry = directory.state(number);
            if entry.is_none() {
                continue;
            }
            let Ok(state) = directory::read_state(&entry, number as u32, root, data) else { continue };
            for (i, extent) in state.extents.iter().enumerate() {
                let used = (state.len as usize - i * geometry.extent_slots).min(geometry.extent_slots);
                if !checked.insert((extent.page, extent.crc)) {
                    continue;
                }
                let offset = extent.page.saturating_mul(geometry.page_size as u64);
                let bytes = read(report, data, offset, used * geometry.slot_bytes())?;
                let (expected, found) = (extent.crc, crc32c(0, &bytes));
                if !holds!(Checksum, found == expected) {
                    let at = At::shard(number as u32).slot(i * geometry.extent_slots).location(data.path(), offset);
                    let what = format!("checksum of an extent that root {} names", root.generation);
                    report.add(at, &what, format!("{expected:08x}"), format!("{found:08x}"));
                }
            }
        }
    }
    Ok(())
}

/// Compares both root slots with the roots in memory.
fn check_roots<S: Storage>(engine: &Engine<S>, report: &mut ConsistencyReport) -> Result<()> {
    let file = engine.roots.file();
    let Some(slots) = note(report, Component::Root, roots::read_slots(file.raw(), engine.data.geometry().page_size))?
    else {
        return Ok(());
    };
    for root in engine.roots.in_slots() {
        let there = slots.iter().any(|slot| matches!(slot, RootSlot::Valid(found) if **found == *root));
        if !there {
            let what = format!("root {} lies in a slot", root.generation);
            let found: Vec<String> = slots
                .iter()
                .map(|slot| match slot {
                    RootSlot::Valid(root) => format!("root {}", root.generation),
                    RootSlot::Unreadable(why) => why.clone(),
                })
                .collect();
            report.add(At::new(Component::Root).location(file.path(), 0), &what, "there", found.join(", "));
        }
    }
    Ok(())
}

/// Reads and checks everything that a root names, and marks its page ranges as used.
fn check_tree<S: Storage>(
    engine: &Engine<S>,
    report: &mut ConsistencyReport,
    root: &Root,
    space: &mut SpaceMap,
    seen: &mut BTreeSet<PageRange>,
) -> Result<()> {
    let Some(directory) =
        note(report, Component::Directory, Directory::load(root, DirectoryKind::Shards, &engine.data))?
    else {
        return Ok(());
    };
    for entry in directory.entries() {
        let run = directory::run_of(entry, engine.data.geometry());
        report.bytes_read += u64::from(entry.len);
        mark(report, space, seen, run, Use::Meta);
    }
    if !root.cells.is_none() {
        let table = cell_store::read_table(&root.cells, &engine.data);
        if let Some((_, blocks)) = note(report, Component::Cells, table)? {
            let runs = blocks.iter().map(|block| directory::run_of(block, engine.data.geometry()));
            runs.for_each(|run| mark(report, space, seen, run, Use::Meta));
        }
    }
    let mut live = 0;
    for number in 0..directory.len() {
        let entry = directory.state(number);
        if entry.is_none() {
            continue;
        }
        let state = directory::read_state(&entry, number as u32, root, &engine.data);
        let Some(state) = note(report, Component::Directory, state)? else { continue };
        live += u64::from(state.live);
        for extent in &state.extents {
            let run = PageRange { page: extent.page, pages: engine.data.geometry().extent_pages() };
            mark(report, space, seen, run, Use::Extent);
        }
        for tags in state.tags.iter().filter(|tags| !tags.is_none()) {
            note(report, Component::Directory, directory::read_tags(tags, &engine.data))?;
            mark(report, space, seen, directory::run_of(tags, engine.data.geometry()), Use::Meta);
        }
    }
    check_buckets(engine, report, root, space, seen)?;
    let what = format!("live postings below root {}", root.generation);
    report.expect(At::new(Component::Directory), &what, root.live, live);
    Ok(())
}
