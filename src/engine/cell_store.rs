//! Storage of the cells: written to free allocations, and read back through the root.

use std::sync::Arc;

use super::{
    directory,
    working::{RootedCells, Working},
};
use crate::{
    cells::{BuiltCells, CellIndex},
    codes::{CoordinateFrame, Rotation},
    error::{Result, ShardexError},
    failpoint::reached,
    format::{
        cells::{CellTable, decode_head, encode_head},
        crc32c,
        node::BlockPointer,
    },
    lease::{Allocation, Lease},
    shard::DataFile,
    space::Use,
    storage::StorageFile,
};

/// Stores cells in free allocations, each of which is appended to `taken` when it is made. Returns `None` if the cells
/// keep groups that are not those of the working state, because other cells were installed meanwhile.
pub(super) fn store<F: StorageFile>(
    work: &mut Working<F>,
    data: &DataFile<F>,
    built: BuiltCells,
    taken: &mut Vec<Arc<Allocation>>,
) -> Result<Option<RootedCells<F::Lent>>> {
    let page_size = data.geometry().page_size;
    let mut put = |work: &mut Working<F>, bytes: &[u8]| -> Result<BlockPointer> {
        let allocation = work.take_meta(data, data.geometry().pages(bytes.len()))?;
        taken.push(Arc::clone(&allocation));
        // Padded, so that nothing of an earlier use of the pages is left in them.
        let mut padded = bytes.to_vec();
        padded.resize(allocation.run().pages as usize * page_size, 0);
        data.store_cells(&allocation, &padded)?;
        Ok(BlockPointer { page: allocation.run().page, len: bytes.len() as u32, crc: crc32c(0, bytes) })
    };
    let BuiltCells { mut table, frame, groups, unfinished, cut: _ } = built;
    let mut allocations = Vec::new();
    if groups.is_empty() && !table.groups.is_empty() {
        let known = work.cells.as_ref().map(|(cells, _)| cells).filter(|cells| cells.table().groups == table.groups);
        let Some(known) = known else { return Ok(None) };
        allocations.extend_from_slice(&known.allocations()[..known.len()]);
        reached!(GroupsKept);
    }
    for (entry, bytes) in table.groups.iter_mut().zip(&groups).chain(table.unfinished.iter_mut().zip(&unfinished)) {
        entry.pointer = put(work, bytes)?;
    }
    let part_bytes = work.space.map().largest_run() as usize * page_size;
    let mut parts = Vec::new();
    for part in table.encode().chunks(part_bytes) {
        parts.push(put(work, part)?);
    }
    let head = put(work, &encode_head(&parts))?;
    if !table.unfinished.is_empty() {
        reached!(CentroidsLeft);
    }
    // The first elements of `taken` are the groups' allocations, in the order of the table.
    allocations.extend_from_slice(taken);
    let leases = lease(&table, data, &allocations)?;
    Ok(Some((Arc::new(CellIndex::new(table, frame, leases, allocations)), head)))
}

/// Leases the table's groups and the groups of centroids of an interrupted build. `allocations` begins with theirs, in
/// this order.
fn lease<F: StorageFile>(
    table: &CellTable,
    data: &DataFile<F>,
    allocations: &[Arc<Allocation>],
) -> Result<Vec<Lease<F::Lent>>> {
    let groups = table.groups.iter().chain(&table.unfinished).zip(allocations);
    groups.map(|(group, allocation)| data.lease(allocation, group.pointer.len as usize)).collect()
}

/// Reads the table that a head names. Returns it with the pointers to all blocks of the cells: groups, parts and head.
///
/// # Errors
/// Returns `Corruption` or `Io`.
pub(super) fn read_table<F: StorageFile>(
    head: &BlockPointer,
    data: &DataFile<F>,
) -> Result<(CellTable, Vec<BlockPointer>)> {
    let geometry = data.geometry();
    let damaged = |entry: &BlockPointer, what: String| ShardexError::Corruption {
        file: data.path(),
        offset: entry.page.saturating_mul(geometry.page_size as u64),
        what,
    };
    let read = |entry: &BlockPointer, what: &str| directory::read(entry, data, what);
    let bytes = read(head, "the head of the cells")?;
    let parts = decode_head(&bytes).map_err(|e| damaged(head, format!("the head of the cells: {e}")))?;
    let (in_parts, len) = (parts.iter().map(|part| u64::from(part.len)).sum::<u64>(), data.raw().len()?);
    if in_parts > len {
        return Err(damaged(head, format!("the cells' table has {in_parts} bytes, the file {len}")));
    }
    let mut bytes = Vec::new();
    for part in &parts {
        bytes.extend(read(part, "a part of the cells' table")?);
    }
    let table =
        CellTable::decode(&bytes, geometry.dimension).map_err(|e| damaged(head, format!("the cells' table: {e}")))?;
    // Each covered shard had extents of its own when the cells were built, and the file never shrinks. So the covered
    // extents can't exceed the file.
    let extents = len / (u64::from(geometry.extent_pages()) * geometry.page_size as u64);
    let covered = |slots: u32| (slots as usize).div_ceil(geometry.extent_slots) as u64;
    let large = table.shards.iter().find(|shard| shard.slots as usize > geometry.shard_size);
    if large.is_some() || table.shards.iter().map(|shard| covered(shard.slots)).sum::<u64>() > extents {
        return Err(damaged(head, "the cells' table covers more slots than there are".into()));
    }
    let groups = table.groups.iter().chain(&table.unfinished).map(|group| &group.pointer);
    let blocks = groups.chain(&parts).chain([head]).copied().collect();
    Ok((table, blocks))
}

/// Loads the cells that a root names, and marks their allocations as used. Reads no group.
///
/// # Errors
/// Returns `Corruption` or `Io`. No page range is marked as used then.
pub(super) fn load<F: StorageFile>(
    head: BlockPointer,
    data: &DataFile<F>,
    work: &mut Working<F>,
    index_id: u128,
) -> Result<Option<RootedCells<F::Lent>>> {
    if head.is_none() {
        return Ok(None);
    }
    let (table, blocks) = read_table(&head, data)?;
    let runs: Vec<_> = blocks.iter().map(|block| (directory::run_of(block, data.geometry()), Use::Meta)).collect();
    let allocations = work.space.adopt(&runs).map_err(|(run, what)| ShardexError::Corruption {
        file: data.path(),
        offset: run.page.saturating_mul(data.geometry().page_size as u64),
        what: format!("cells: {what}"),
    })?;
    let leases = match lease(&table, data, &allocations) {
        Ok(leases) => leases,
        Err(error) => {
            allocations.into_iter().for_each(|allocation| work.space.undo(allocation));
            return Err(error);
        }
    };
    let geometry = data.geometry();
    let rotation = Arc::new(Rotation::new(geometry.dimension, index_id));
    let frame = Arc::new(CoordinateFrame::new(rotation, table.centre.clone(), geometry.metric));
    Ok(Some((Arc::new(CellIndex::new(table, frame, leases, allocations)), head)))
}
