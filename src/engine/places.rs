//! Places of the data file that a root names: page ranges with their used bytes.
//!
//! The walk reads by copying and needs no engine, so it may run beside the writer while a pin keeps the places.

use std::collections::{BTreeMap, btree_map::Entry};

use super::{
    cell_store,
    directory::{self, Directory, DirectoryKind, in_data},
    load_payloads::{bucket_directory, read_bucket},
};
use crate::{
    env::Cancel,
    error::{Result, ShardexError},
    failpoint::holds,
    format::{
        bucket::{PayloadBytes, PayloadEntry},
        crc32c,
        node::BlockPointer,
        root::Root,
    },
    payload,
    shard::DataFile,
    storage::StorageFile,
};

/// Place that a root names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    /// First page.
    pub(super) page: u64,
    /// Used bytes from there on.
    pub(super) len: u32,
    /// Checksum of these bytes; `None` if the walk has checked them itself.
    pub(super) crc: Option<u32>,
}

/// Places by page.
struct Places<'a, F> {
    data: &'a DataFile<F>,
    found: BTreeMap<u64, Place>,
}

impl<F: StorageFile> Places<'_, F> {
    fn add(&mut self, page: u64, len: u32, crc: Option<u32>) -> Result<()> {
        match self.found.entry(page) {
            Entry::Vacant(free) => {
                free.insert(Place { page, len, crc });
                Ok(())
            }
            Entry::Occupied(known) if known.get().len == len && known.get().crc == crc => Ok(()),
            Entry::Occupied(_) => Err(in_data(self.data, page, "the page is in use twice".into())),
        }
    }

    fn add_block(&mut self, entry: &BlockPointer) -> Result<()> {
        self.add(entry.page, entry.len, None)
    }
}

/// Returns the places that a root names, in ascending order of their pages, after checking the checksums of metadata and
/// payloads. If the cells are damaged, which are derived, they are taken out of `root`.
///
/// # Errors
/// Returns `Corruption` or `Io`, and `Closed` if the call is cancelled.
pub(super) fn places_of<F: StorageFile>(
    root: &mut Root,
    data: &DataFile<F>,
    cancel: &dyn Cancel,
) -> Result<Vec<Place>> {
    let mut places = Places { data, found: BTreeMap::new() };
    add_shards(&mut places, root, cancel)?;
    add_buckets(&mut places, root, cancel)?;
    match cell_places(root, data, cancel) {
        Ok(of_cells) => of_cells.iter().try_for_each(|place| places.add(place.page, place.len, place.crc))?,
        Err(ShardexError::Corruption { .. } | ShardexError::Io { .. }) => {
            root.cells = BlockPointer::default();
        }
        Err(error) => return Err(error),
    }
    let places: Vec<Place> = places.found.into_values().collect();
    let end = |place: &Place| place.page + u64::from(data.geometry().pages(place.len as usize));
    match places.windows(2).find(|pair| end(&pair[0]) > pair[1].page) {
        Some(pair) => Err(in_data(data, pair[1].page, "the page is in use twice".into())),
        None => Ok(places),
    }
}

/// Adds directory nodes, shard states, pages of tags and extents.
fn add_shards<F: StorageFile>(places: &mut Places<'_, F>, root: &Root, cancel: &dyn Cancel) -> Result<()> {
    let (data, geometry) = (places.data, *places.data.geometry());
    let directory = Directory::load(root, DirectoryKind::Shards, data)?;
    directory.entries().try_for_each(|entry| places.add_block(entry))?;
    for number in 0..directory.len() {
        cancel.check()?;
        let entry = directory.state(number);
        if entry.is_none() {
            continue;
        }
        let state = directory::read_state(&entry, number as u32, root, data)?;
        for (i, extent) in state.extents.iter().enumerate() {
            let used = (state.len as usize - i * geometry.extent_slots).min(geometry.extent_slots);
            places.add(extent.page, (used * geometry.slot_bytes()) as u32, Some(extent.crc))?;
        }
        for tags in state.tags.iter().filter(|tags| !tags.is_none()) {
            places.add(tags.page, tags.len, Some(tags.crc))?;
        }
    }
    Ok(())
}

/// Adds the directory of buckets, their parts, and the blocks of payloads.
fn add_buckets<F: StorageFile>(places: &mut Places<'_, F>, root: &Root, cancel: &dyn Cancel) -> Result<()> {
    let buckets = bucket_directory(root, places.data)?;
    buckets.entries().try_for_each(|entry| places.add_block(entry))?;
    // The used bytes of a block end with the last payload that a bucket names there.
    let mut blocks: BTreeMap<u64, u32> = BTreeMap::new();
    for number in 0..root.payload.buckets {
        let bucket = read_bucket(&buckets.state(number as usize), number, root, places.data)?;
        bucket.parts.iter().try_for_each(|part| places.add_block(part))?;
        for entry in &bucket.entries {
            cancel.check()?;
            check_payload(entry, places.data)?;
            let PayloadBytes::Runs(runs) = &entry.content else { continue };
            for run in runs {
                let end = blocks.entry(run.page).or_default();
                *end = (*end).max(run.offset + run.len);
            }
        }
    }
    blocks.into_iter().try_for_each(|(page, len)| places.add(page, len, None))
}

/// Checks the bytes of a payload that lies in blocks. Those of others are a part of their bucket.
fn check_payload<F: StorageFile>(entry: &PayloadEntry, data: &DataFile<F>) -> Result<()> {
    let PayloadBytes::Runs(runs) = &entry.content else { return Ok(()) };
    let (mut found, mut bytes) = (0, Vec::new());
    for run in runs {
        bytes.resize(run.len as usize, 0);
        let offset = run.page.saturating_mul(data.geometry().page_size as u64).saturating_add(run.offset.into());
        data.raw().read_at(offset, &mut bytes)?;
        found = crc32c(found, &bytes);
    }
    if !holds!(Checksum, found == entry.crc) {
        let (page, name) = (runs.first().map_or(0, |run| run.page), payload::name(entry.owner));
        let what = format!("{name}: checksum {:08x} expected, {found:08x} found", entry.crc);
        return Err(in_data(data, page, what));
    }
    Ok(())
}

/// Returns the places of the cells that a root names, after checking the checksums of all groups.
fn cell_places<F: StorageFile>(root: &Root, data: &DataFile<F>, cancel: &dyn Cancel) -> Result<Vec<Place>> {
    if root.cells.is_none() {
        return Ok(Vec::new());
    }
    let (_, blocks) = cell_store::read_table(&root.cells, data)?;
    let mut places = Vec::new();
    for pointer in blocks {
        cancel.check()?;
        directory::read(&pointer, data, "a part of the cells")?;
        places.push(Place { page: pointer.page, len: pointer.len, crc: Some(pointer.crc) });
    }
    Ok(places)
}
