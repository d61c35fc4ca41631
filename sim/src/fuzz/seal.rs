//! Locations of the structures of an index, and correction of their checksums after a change. A hostile value is then
//! parsed instead of being rejected by its checksum.
//!
//! The structures are located once, in the unchanged index. A checksum is recomputed wherever an entry points to
//! existing bytes, even if the change has altered the entry.

use shardex::{
    format::{
        bucket,
        cells::{CellTable, GROUP_ENTRY_BYTES, decode_head},
        codec, crc32c,
        frame::{self, Frame},
        geometry::StateLayout,
        header::{CRC_AT, SEGMENT_HEADER_BYTES, SegmentHeader},
        node::{self, BlockPointer, ENTRY_BYTES},
        root::{self, Root},
    },
    storage::Storage as _,
};

use crate::storage::SimStorage;

/// Offset of the checksum in a block header.
const BLOCK_CRC_AT: usize = 4;

/// Kind of a structure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum SealedKind {
    /// Root.
    Root,
    /// Directory node.
    Node,
    /// Shard state.
    State,
    /// Page of tags.
    Tags,
    /// Part of a bucket of payloads.
    Bucket,
    /// Head of the cells.
    Head,
    /// Part of the cell table.
    Table,
    /// Cell group.
    Group,
    /// Segment header of the WAL.
    Segment,
    /// Frame of the WAL.
    Frame,
}

impl SealedKind {
    /// All kinds.
    pub const ALL: [Self; 10] = [
        Self::Root,
        Self::Node,
        Self::State,
        Self::Tags,
        Self::Bucket,
        Self::Head,
        Self::Table,
        Self::Group,
        Self::Segment,
        Self::Frame,
    ];
}

/// Location of a structure and of its checksum.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct SealedBytes {
    /// Kind of the structure.
    pub kind: SealedKind,
    /// Offset in its file, in bytes.
    pub at: usize,
    /// Length in bytes.
    pub len: usize,
    /// Directory entry with its checksum: whether it is in `data` (otherwise in `root`), and its offset there.
    entry: Option<(bool, usize)>,
    /// Seed of the structure's own checksum.
    seed: u32,
    /// Whether the structure begins with a block header, which holds its checksum too.
    has_header: bool,
}

/// Bytes of the files of an index.
struct Files {
    root: Vec<u8>,
    data: Vec<u8>,
    wal: Vec<u8>,
}

impl Files {
    fn of(storage: &SimStorage) -> Self {
        let mut files = Self { root: Vec::new(), data: Vec::new(), wal: Vec::new() };
        storage.read_files(|name, bytes| match name {
            "root" => files.root = bytes.to_vec(),
            "data" => files.data = bytes.to_vec(),
            "wal" => files.wal = bytes.to_vec(),
            _ => {}
        });
        files
    }
}

/// Locates the structures of an unchanged index, in ascending order of kind and offset.
#[must_use]
pub fn sealed(storage: &SimStorage) -> Vec<SealedBytes> {
    let files = Files::of(storage);
    let page = storage.page_size();
    let mut sealed = Vec::new();
    for slot in 0..2 {
        let at = slot * page;
        let Some(root) = files.root.get(at..).and_then(|bytes| Root::decode(bytes).ok()) else {
            continue;
        };
        let len = root::bytes_of(root.version);
        sealed.push(SealedBytes { kind: SealedKind::Root, at, len, entry: None, seed: 0, has_header: false });
        let depth = root.geometry.node_levels(root.shard_numbers as usize, root.version);
        let shards = Leaves { root: &root, kind: SealedKind::State };
        walk_directory(&files, &shards, root.directory, (false, at + 104), depth, &mut sealed);
        let depth = root.geometry.node_levels(root.payload.entries as usize, root.version);
        let buckets = Leaves { root: &root, kind: SealedKind::Bucket };
        walk_directory(&files, &buckets, root.payload.directory, (false, at + 192), depth, &mut sealed);
        walk_cells(&files, &root, root.cells, (false, at + 172), &mut sealed);
        walk_log(&files, page, &root, &mut sealed);
    }
    sealed.sort_unstable();
    sealed.dedup();
    sealed
}

fn found<'a>(data: &'a [u8], page: usize, entry: &BlockPointer) -> Option<(usize, &'a [u8])> {
    let at = usize::try_from(entry.page).ok()?.checked_mul(page)?;
    let bytes = data.get(at..at.checked_add(entry.len as usize)?)?;
    (at > 0).then_some((at, bytes))
}

/// Structures that the lowest nodes of a tree point to.
struct Leaves<'a> {
    root: &'a Root,
    kind: SealedKind,
}

/// Returns the offsets of the entries within a shard state or a part of a bucket.
fn entries_of(leaves: &Leaves<'_>, kind: SealedKind, bytes: &[u8]) -> Vec<usize> {
    let number = |at: usize| codec::Reader::new(bytes.get(at..).unwrap_or_default()).u32().unwrap_or(0) as usize;
    match kind {
        SealedKind::Bucket => vec![bucket::next_at(bytes)],
        SealedKind::State => {
            let geometry = &leaves.root.geometry;
            let (version, at) = match bytes {
                _ if bytes.starts_with(b"SHS2") => (2, 24),
                _ if bytes.starts_with(b"SHS3") => (3, 80),
                _ => return Vec::new(),
            };
            let slots = number(at);
            if slots > geometry.shard_size {
                return Vec::new();
            }
            let pages = geometry.tag_pages(slots);
            let behind = if version == 2 { 16 } else { 12 * geometry.dimension };
            let first = geometry.state_bytes(&StateLayout::of(slots, version)) - behind - pages * ENTRY_BYTES;
            (0..pages).map(|i| first + i * ENTRY_BYTES).collect()
        }
        _ => Vec::new(),
    }
}

fn walk_directory(
    files: &Files,
    leaves: &Leaves<'_>,
    entry: BlockPointer,
    from: (bool, usize),
    level: u32,
    sealed: &mut Vec<SealedBytes>,
) {
    let page = leaves.root.geometry.page_size;
    let Some((at, bytes)) = found(&files.data, page, &entry) else { return };
    let kind = if level == 0 { leaves.kind } else { SealedKind::Node };
    let version = leaves.root.version;
    let begins = |magic: &[u8]| bytes.starts_with(magic);
    let has_header = version > 2 && (level > 0 || begins(b"SHS3") || begins(b"SHB3"));
    sealed.push(SealedBytes { kind, at, len: bytes.len(), entry: Some(from), seed: 0, has_header });
    if level > 0 {
        for (i, below) in node::decode(bytes, version).unwrap_or_default().into_iter().enumerate() {
            let entry = at + node::entries_at(version) + i * ENTRY_BYTES;
            walk_directory(files, leaves, below, (true, entry), level - 1, sealed);
        }
        return;
    }
    for offset in entries_of(leaves, kind, bytes) {
        let below = BlockPointer::decode(&mut codec::Reader::new(bytes.get(offset..).unwrap_or_default()));
        let Some((below_at, target)) = below.ok().and_then(|below| found(&files.data, page, &below)) else { continue };
        let kind = if kind == SealedKind::State { SealedKind::Tags } else { SealedKind::Bucket };
        let entry = Some((true, at + offset));
        let has_header = target.starts_with(b"SHB3");
        sealed.push(SealedBytes { kind, at: below_at, len: target.len(), entry, seed: 0, has_header });
    }
}

fn walk_cells(files: &Files, root: &Root, head: BlockPointer, from: (bool, usize), sealed: &mut Vec<SealedBytes>) {
    let page = root.geometry.page_size;
    let Some((at, bytes)) = found(&files.data, page, &head) else { return };
    sealed.push(SealedBytes {
        kind: SealedKind::Head,
        at,
        len: bytes.len(),
        entry: Some(from),
        seed: 0,
        has_header: false,
    });
    let (mut first, mut groups) = (0, 0);
    for (i, part) in decode_head(bytes).unwrap_or_default().into_iter().enumerate() {
        let Some((part_at, table)) = found(&files.data, page, &part) else { return };
        let entry = Some((true, at + 8 + i * ENTRY_BYTES));
        sealed.push(SealedBytes {
            kind: SealedKind::Table,
            at: part_at,
            len: table.len(),
            entry,
            seed: 0,
            has_header: false,
        });
        if i == 0 {
            let number =
                |at: usize| codec::Reader::new(table.get(at..).unwrap_or_default()).u32().unwrap_or(0) as usize;
            groups = number(8) + number(16);
        }
        for g in 0..groups {
            let at = CellTable::groups_offset(root.geometry.dimension) + g * GROUP_ENTRY_BYTES;
            // An entry split between two parts of the table is left out.
            if at < first || at + ENTRY_BYTES > first + table.len() {
                continue;
            }
            let mut r = codec::Reader::new(&table[at - first..]);
            let Some((group_at, group)) = BlockPointer::decode(&mut r).ok().and_then(|e| found(&files.data, page, &e))
            else {
                continue;
            };
            let entry = Some((true, part_at + at - first));
            sealed.push(SealedBytes {
                kind: SealedKind::Group,
                at: group_at,
                len: group.len(),
                entry,
                seed: 0,
                has_header: false,
            });
        }
        first += table.len();
    }
}

fn walk_log(files: &Files, page: usize, root: &Root, sealed: &mut Vec<SealedBytes>) {
    let size = root.geometry.wal_segment_size as usize;
    for at in (page..files.wal.len()).step_by(size) {
        let Some(segment) = files.wal.get(at..at + size) else { continue };
        let Ok(header) = SegmentHeader::decode(segment) else { continue };
        sealed.push(SealedBytes {
            kind: SealedKind::Segment,
            at,
            len: SEGMENT_HEADER_BYTES,
            entry: None,
            seed: 0,
            has_header: false,
        });
        let seed = frame::seed(root.index_id, header.epoch);
        let mut offset = root.geometry.sector_size;
        while let Ok((frame, _)) = Frame::decode(&segment[offset..], seed) {
            sealed.push(SealedBytes {
                kind: SealedKind::Frame,
                at: at + offset,
                len: frame.size(),
                entry: None,
                seed,
                has_header: false,
            });
            offset += frame.size();
            if offset >= segment.len() {
                break;
            }
        }
    }
}

/// Overwrites bytes of a structure from `offset` on, up to its end.
pub fn poke(storage: &SimStorage, structure: &SealedBytes, offset: usize, bytes: &[u8]) {
    let name = match structure.kind {
        SealedKind::Root => "root",
        SealedKind::Segment | SealedKind::Frame => "wal",
        _ => "data",
    };
    storage.tamper(name, |file| {
        let at = structure.at + offset.min(structure.len.saturating_sub(1));
        for (byte, new) in file.iter_mut().take(structure.at + structure.len).skip(at).zip(bytes) {
            *byte = *new;
        }
    });
}

/// Recomputes all checksums.
pub fn seal(storage: &SimStorage, sealed: &[SealedBytes]) {
    // A structure comes before those that hold its checksum. Nodes repeat, once per level of the directory.
    let order = [
        SealedKind::Group,
        SealedKind::Table,
        SealedKind::Head,
        SealedKind::Tags,
        SealedKind::Bucket,
        SealedKind::State,
        SealedKind::Node,
        SealedKind::Node,
        SealedKind::Node,
    ];
    for kind in order {
        for structure in sealed.iter().filter(|structure| structure.kind == kind) {
            let Some((in_data, at)) = structure.entry else { continue };
            if structure.has_header {
                storage.tamper("data", |file| {
                    if let Some(bytes) = file.get_mut(structure.at..structure.at + structure.len) {
                        codec::seal(bytes, BLOCK_CRC_AT, 0);
                    }
                });
            }
            mend_entry(storage, in_data, at, structure.has_header);
        }
    }
    for structure in sealed {
        let (name, field) = match structure.kind {
            SealedKind::Root => ("root", CRC_AT),
            SealedKind::Segment => ("wal", CRC_AT),
            SealedKind::Frame => ("wal", 0),
            _ => continue,
        };
        storage.tamper(name, |file| {
            if let Some(bytes) = file.get_mut(structure.at..structure.at + structure.len) {
                codec::seal(bytes, field, structure.seed);
            }
        });
    }
}

/// Recomputes the checksum in an entry from the bytes that it points to, if they exist.
fn mend_entry(storage: &SimStorage, in_data: bool, at: usize, has_header: bool) {
    let files = Files::of(storage);
    let holder = if in_data { &files.data } else { &files.root };
    let Some(bytes) = holder.get(at..at + ENTRY_BYTES) else { return };
    let Ok(entry) = BlockPointer::decode(&mut codec::Reader::new(bytes)) else { return };
    let Some((_, target)) = found(&files.data, storage.page_size(), &entry) else { return };
    let crc = if has_header { codec::crc_without(target, BLOCK_CRC_AT, 0) } else { crc32c(0, target) };
    storage.tamper(if in_data { "data" } else { "root" }, |file| {
        file[at + 12..at + 16].copy_from_slice(&crc.to_le_bytes());
    });
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use shardex::{Engine, Metric};

    use super::*;
    use crate::workload::{Workload, WorkloadParams, env, postings};

    /// The entries of the cell table had grown, and these sizes had not: groups were looked for at wrong offsets, and no hostile value
    /// ever reached one.
    #[test]
    fn every_kind_of_structure_is_located() {
        let storage = SimStorage::new(512, 64, 1);
        let config =
            Workload::blank("seal", WorkloadParams { dimension: 8, shard_size: 8, metric: Metric::L2 }, false).config;
        let mut engine = Engine::create(storage.clone(), &config, &env()).expect("created");
        let tagged: Vec<_> = postings(0..40, 0, 0, 8).into_iter().map(|posting| posting.tagged(5)).collect();
        engine.add(&tagged).expect("added");
        let mut batch = shardex::WriteBatch::new();
        batch.set_payload(1u128, vec![7; 300]).set_cursor("here");
        engine.write(&batch).expect("accepted");
        engine.optimize().expect("cells are built");
        engine.flush().expect("flushed");
        engine.add(&postings(40..44, 0, 0, 8)).expect("added");
        engine.commit().expect("committed");
        let found: BTreeSet<SealedKind> = sealed(&storage).iter().map(|structure| structure.kind).collect();
        assert_eq!(found, BTreeSet::from(SealedKind::ALL));
        let groups = sealed(&storage).into_iter().filter(|structure| structure.kind == SealedKind::Group).count();
        let named = engine.snapshot().cells.as_ref().map(|cells| cells.len()).expect("there are cells");
        assert_eq!(groups, named, "each group of the newest root");
    }
}
