//! Loading of the buckets of payloads and of the pages of tags that a root reaches.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use super::{
    directory::{self, Directory, DirectoryKind, identity, in_data},
    state_blocks::{StateBlocks, StoredTags},
    working::Working,
};
use crate::{
    error::Result,
    format::{
        block::{BlockKind, BlockNumbers},
        bucket::{self, PayloadBytes, PayloadEntry, PayloadOwner, PayloadRun},
        node::BlockPointer,
        root::Root,
        state::ShardState,
    },
    lease::{Allocation, Lease, PageRange},
    payload::{Bucket, PayloadIndex, StoredPayload, bucket_of},
    shard::{DataFile, Tags},
    space::Use,
    storage::StorageFile,
};

/// Bucket as read from disk.
pub(super) struct StoredBucket {
    /// Entries in ascending order of their owners.
    pub(super) entries: Vec<PayloadEntry>,
    /// Parts after the first.
    pub(super) parts: Vec<BlockPointer>,
}

/// Loads the directory of buckets below a root.
///
/// # Errors
/// Returns `Corruption` that names the damaged node, or `Io`.
pub(super) fn bucket_directory<F: StorageFile>(root: &Root, data: &DataFile<F>) -> Result<Directory> {
    Directory::load(root, DirectoryKind::Buckets, data)
}

/// Reads a bucket.
///
/// # Errors
/// Returns `Corruption` if a part or an entry is damaged, or `Io`.
pub(super) fn read_bucket<F: StorageFile>(
    first: &BlockPointer,
    number: u32,
    root: &Root,
    data: &DataFile<F>,
) -> Result<StoredBucket> {
    let damaged = |page, what: String| in_data(data, page, format!("bucket {number}: {what}"));
    let (mut bytes, mut parts, mut next) = (Vec::new(), Vec::new(), *first);
    while !next.is_none() {
        if parts.len() as u64 > root.data_pages {
            return Err(damaged(first.page, "its parts form a circle".into()));
        }
        let name = BlockNumbers { kind: BlockKind::Bucket, number, part: parts.len() as u32 };
        let part = directory::read_block(&next, name, root, data)?;
        let decoded = bucket::decode_part(&part, number, parts.len() as u32);
        let (entries, after) = decoded.map_err(|e| damaged(next.page, e.to_string()))?;
        bytes.extend_from_slice(entries);
        parts.push(std::mem::replace(&mut next, after));
    }
    let entries = bucket::decode_entries(&bytes, data.geometry()).map_err(|e| damaged(first.page, e.to_string()))?;
    if let Some(other) = entries.iter().find(|entry| bucket_of(entry.owner, root.payload.buckets) != number) {
        return Err(damaged(first.page, format!("{:?} belongs to another bucket", other.owner)));
    }
    if !parts.is_empty() {
        parts.remove(0);
    }
    Ok(StoredBucket { entries, parts })
}

/// Iterates the runs of entries, each with its owner.
fn runs(entries: &[PayloadEntry]) -> impl Iterator<Item = (PayloadOwner, PayloadRun)> {
    entries.iter().flat_map(|entry| {
        let runs: &[PayloadRun] = match &entry.content {
            PayloadBytes::Inline(_) => &[],
            PayloadBytes::Runs(runs) => runs,
        };
        runs.iter().map(|&run| (entry.owner, run))
    })
}

/// Returns the page ranges that a bucket names: its parts after the first, and the blocks of its payloads. A block may
/// be named several times.
pub(super) fn ranges_of<F: StorageFile>(stored: &StoredBucket, data: &DataFile<F>) -> Vec<PageRange> {
    let parts = stored.parts.iter().map(|part| directory::run_of(part, data.geometry()));
    let blocks = runs(&stored.entries).map(|(_, run)| PageRange { page: run.page, pages: run.pages });
    parts.chain(blocks).collect()
}

/// Returns the page ranges that buckets of the older root name and the newest root does not. `known` are the block
/// pointers of the newest root.
///
/// # Errors
/// Returns `Corruption` or `Io`.
pub(super) fn only_in_older<F: StorageFile>(
    older: &Root,
    buckets: &Directory,
    work: &Working<F>,
    newest: &StateBlocks,
    known: &BTreeSet<(u64, u32, u32)>,
    data: &DataFile<F>,
) -> Result<Vec<(PageRange, Use)>> {
    let of_newest = work.payload_space.allocations().map(|block| block.run());
    let parts = newest.parts.values().map(|part| directory::run_of(part, data.geometry()));
    let of_newest: BTreeSet<PageRange> = of_newest.chain(parts).collect();
    let mut only = Vec::new();
    for number in 0..older.payload.buckets {
        let entry = buckets.state(number as usize);
        // A bucket that the newest root names too adds nothing.
        if entry.is_none() || known.contains(&identity(&entry)) {
            continue;
        }
        let ranges = ranges_of(&read_bucket(&entry, number, older, data)?, data);
        only.extend(ranges.into_iter().filter(|run| !of_newest.contains(run)).map(|run| (run, Use::Meta)));
    }
    Ok(only)
}

/// Loads all buckets of a root into the working state. Reads no payload that is longer than its entry.
///
/// # Errors
/// Returns `Corruption` or `Io`.
pub(super) fn load_buckets<F: StorageFile>(
    root: &Root,
    directory: &Directory,
    data: &DataFile<F>,
    work: &mut Working<F>,
    named: &mut StateBlocks,
) -> Result<()> {
    let geometry = data.geometry();
    let meta: Vec<_> = directory.entries().map(|entry| (directory::run_of(entry, geometry), Use::Meta)).collect();
    work.space.adopt(&meta).map_err(|(run, why)| in_data(data, run.page, why))?;
    let mut stored = Vec::with_capacity(directory.len());
    for number in 0..root.payload.buckets {
        let bucket = read_bucket(&directory.state(number as usize), number, root, data)?;
        let parts: Vec<_> = bucket.parts.iter().map(|part| (directory::run_of(part, geometry), Use::Meta)).collect();
        work.space.adopt(&parts).map_err(|(run, why)| in_data(data, run.page, why))?;
        named.parts.extend(bucket.parts.iter().zip(1..).map(|(&part, i)| ((number, i), part)));
        stored.push(bucket.entries);
    }
    let leases = lease_blocks(&stored, data, work)?;
    for (owner, run) in stored.iter().flat_map(|entries| runs(entries)) {
        work.payload_space.add(leases[&run.page].allocation(), run, owner);
    }
    work.payload_space.close();
    let buckets = stored
        .into_iter()
        .map(|entries| entries.into_iter().map(|entry| content(entry, &leases)).collect::<Bucket<F::Lent>>());
    work.payloads = PayloadIndex::from_buckets(buckets.collect(), geometry);
    let counts = [
        ("payloads", root.payload.payloads, work.payloads.payloads()),
        ("bytes of payloads", root.payload.bytes, work.payloads.bytes()),
    ];
    if let Some((of, expected, found)) = counts.into_iter().find(|(_, expected, found)| expected != found) {
        let what = format!("root {} counts {expected} {of}, its buckets {found}", root.generation);
        return Err(in_data(data, root.payload.directory.page, what));
    }
    Ok(())
}

fn content<L: std::ops::Deref<Target = [u8]> + Clone>(
    entry: PayloadEntry,
    leases: &BTreeMap<u64, Lease<L>>,
) -> StoredPayload<L> {
    match entry.content {
        PayloadBytes::Inline(bytes) => StoredPayload::inline_with(entry.owner, entry.crc, &bytes),
        PayloadBytes::Runs(runs) => {
            let runs = runs.iter().map(|run| (leases[&run.page].clone(), run.offset, run.len));
            StoredPayload::in_runs(entry.owner, entry.crc, runs)
        }
    }
}

/// Adopts and leases the blocks of all payloads, each up to the end of its last run.
fn lease_blocks<F: StorageFile>(
    stored: &[Vec<PayloadEntry>],
    data: &DataFile<F>,
    work: &mut Working<F>,
) -> Result<BTreeMap<u64, Lease<F::Lent>>> {
    let mut blocks: BTreeMap<u64, (u32, u32)> = BTreeMap::new();
    for (_, run) in stored.iter().flat_map(|entries| runs(entries)) {
        let (pages, used) = blocks.entry(run.page).or_insert((run.pages, 0));
        if *pages != run.pages {
            let what = format!("a block of {} pages has {pages} elsewhere", run.pages);
            return Err(in_data(data, run.page, what));
        }
        *used = (*used).max(run.offset + run.len);
    }
    let ranges: Vec<_> = blocks.iter().map(|(&page, &(pages, _))| (PageRange { page, pages }, Use::Meta)).collect();
    let allocations: Vec<Arc<Allocation>> =
        work.space.adopt(&ranges).map_err(|(run, why)| in_data(data, run.page, why))?;
    let lease = |((page, (_, used)), allocation): ((u64, (u32, u32)), Arc<Allocation>)| {
        Ok((page, data.lease(&allocation, used as usize)?))
    };
    blocks.into_iter().zip(allocations).map(lease).collect()
}

/// Reads the pages of tags that a shard state names.
///
/// # Errors
/// Returns `Corruption` or `Io`.
pub(super) fn load_tags<F: StorageFile>(
    state: &ShardState,
    data: &DataFile<F>,
    work: &mut Working<F>,
    named: &mut StateBlocks,
) -> Result<Tags> {
    let mut pages = Vec::with_capacity(state.tags.len());
    for (at, i) in state.tags.iter().zip(0u32..) {
        if at.is_none() {
            pages.push(None);
            continue;
        }
        let run = directory::run_of(at, data.geometry());
        work.space.adopt(&[(run, Use::Meta)]).map_err(|(run, why)| in_data(data, run.page, why))?;
        let bytes = directory::read_tags(at, data)?;
        let words: Arc<[u64]> = bytemuck::allocation::pod_collect_to_vec::<u8, u64>(&bytes).into();
        named.tags.insert((state.number, i), StoredTags { words: Arc::clone(&words), at: *at });
        pages.push(words.iter().any(|&word| word != 0).then_some(words));
    }
    Ok(Tags::from_pages(pages))
}
