//! The structures of an index, and their checksums made right again after they were changed: so that a hostile value is
//! read and not found by its checksum.
//!
//! Where the structures lie is found once, in the index as it was. A checksum is computed again wherever an entry points
//! to bytes that are there, whatever the change has made of the entry.

use shardex::{
    format::{
        cells::decode_head,
        codec, crc32c,
        frame::{self, Frame},
        header::{CRC_AT, SEGMENT_HEADER_BYTES, SegmentHeader},
        node::{self, ENTRY_BYTES, Entry},
        root::{ROOT_BYTES, Root},
    },
    storage::Storage as _,
};

use crate::storage::SimStorage;

/// What a structure is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// A root.
    Root,
    /// A directory node.
    Node,
    /// A shard's state.
    State,
    /// The head of the cells.
    Head,
    /// A part of the cells' table.
    Table,
    /// A group of cells.
    Group,
    /// The header of a segment of the log.
    Segment,
    /// A frame of the log.
    Frame,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 8] =
        [Self::Root, Self::Node, Self::State, Self::Head, Self::Table, Self::Group, Self::Segment, Self::Frame];
}

/// A structure and where it lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// What it is.
    pub kind: Kind,
    /// First byte in its file.
    pub at: usize,
    /// Bytes.
    pub len: usize,
    /// The entry that holds its checksum: whether in the data file or in that of the roots, and its first byte there.
    entry: Option<(bool, usize)>,
    /// What its own checksum starts from.
    seed: u32,
}

/// Bytes of a cells' table before its groups, and of a group's entry.
const TABLE_HEADER: usize = 176;
const GROUP_ENTRY: usize = 32;

/// The files of an index.
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

/// The structures of an index that nobody has changed, each kind in the order of places.
#[must_use]
pub fn places(storage: &SimStorage) -> Vec<Place> {
    let files = Files::of(storage);
    let page = storage.page_size();
    let mut places = Vec::new();
    for slot in 0..2 {
        let at = slot * page;
        let Some(root) = files.root.get(at..at + ROOT_BYTES).and_then(|bytes| Root::decode(bytes).ok()) else {
            continue;
        };
        places.push(Place { kind: Kind::Root, at, len: ROOT_BYTES, entry: None, seed: 0 });
        let depth = root.geometry.node_levels(root.shard_numbers as usize);
        walk_directory(&files, page, (root.directory, (false, at + 104)), depth, &mut places);
        walk_cells(&files, page, (root.cells, (false, at + 172)), &mut places);
        walk_log(&files, page, &root, &mut places);
    }
    places.sort_unstable();
    places.dedup();
    places
}

fn found<'a>(data: &'a [u8], page: usize, entry: &Entry) -> Option<(usize, &'a [u8])> {
    let at = usize::try_from(entry.page).ok()?.checked_mul(page)?;
    let bytes = data.get(at..at.checked_add(entry.len as usize)?)?;
    (at > 0).then_some((at, bytes))
}

fn walk_directory(
    files: &Files,
    page: usize,
    (entry, from): (Entry, (bool, usize)),
    level: u32,
    places: &mut Vec<Place>,
) {
    let Some((at, bytes)) = found(&files.data, page, &entry) else { return };
    let kind = if level == 0 { Kind::State } else { Kind::Node };
    places.push(Place { kind, at, len: bytes.len(), entry: Some(from), seed: 0 });
    if level > 0 {
        for (i, below) in node::decode(bytes).unwrap_or_default().into_iter().enumerate() {
            walk_directory(files, page, (below, (true, at + i * ENTRY_BYTES)), level - 1, places);
        }
    }
}

fn walk_cells(files: &Files, page: usize, (head, from): (Entry, (bool, usize)), places: &mut Vec<Place>) {
    let Some((at, bytes)) = found(&files.data, page, &head) else { return };
    places.push(Place { kind: Kind::Head, at, len: bytes.len(), entry: Some(from), seed: 0 });
    let (mut first, mut groups) = (0, 0);
    for (i, part) in decode_head(bytes).unwrap_or_default().into_iter().enumerate() {
        let Some((part_at, table)) = found(&files.data, page, &part) else { return };
        let entry = Some((true, at + 8 + i * ENTRY_BYTES));
        places.push(Place { kind: Kind::Table, at: part_at, len: table.len(), entry, seed: 0 });
        if i == 0 {
            groups = codec::Reader::new(&table[8..]).u32().unwrap_or(0) as usize;
        }
        for g in 0..groups {
            let at = TABLE_HEADER + g * GROUP_ENTRY;
            // An entry that lies in two parts is left out.
            if at < first || at + ENTRY_BYTES > first + table.len() {
                continue;
            }
            let mut r = codec::Reader::new(&table[at - first..]);
            let Some((group_at, group)) = Entry::decode(&mut r).ok().and_then(|e| found(&files.data, page, &e)) else {
                continue;
            };
            let entry = Some((true, part_at + at - first));
            places.push(Place { kind: Kind::Group, at: group_at, len: group.len(), entry, seed: 0 });
        }
        first += table.len();
    }
}

fn walk_log(files: &Files, page: usize, root: &Root, places: &mut Vec<Place>) {
    let size = root.geometry.wal_segment_size as usize;
    for at in (page..files.wal.len()).step_by(size) {
        let Some(segment) = files.wal.get(at..at + size) else { continue };
        let Ok(header) = SegmentHeader::decode(segment) else { continue };
        places.push(Place { kind: Kind::Segment, at, len: SEGMENT_HEADER_BYTES, entry: None, seed: 0 });
        let seed = frame::seed(root.index_id, header.epoch);
        let mut offset = root.geometry.sector_size;
        while let Ok((frame, _)) = Frame::decode(&segment[offset..], seed) {
            places.push(Place { kind: Kind::Frame, at: at + offset, len: frame.size(), entry: None, seed });
            offset += frame.size();
            if offset >= segment.len() {
                break;
            }
        }
    }
}

/// Changes bytes of a structure.
pub fn poke(storage: &SimStorage, place: &Place, offset: usize, bytes: &[u8]) {
    let name = match place.kind {
        Kind::Root => "root",
        Kind::Segment | Kind::Frame => "wal",
        _ => "data",
    };
    storage.tamper(name, |file| {
        let at = place.at + offset.min(place.len.saturating_sub(1));
        for (byte, new) in file.iter_mut().take(place.at + place.len).skip(at).zip(bytes) {
            *byte = *new;
        }
    });
}

/// Makes all checksums right.
pub fn seal(storage: &SimStorage, places: &[Place]) {
    // What is pointed to comes before what points to it.
    let order = [Kind::Group, Kind::Table, Kind::Head, Kind::State, Kind::Node, Kind::Node, Kind::Node];
    for kind in order {
        for place in places.iter().filter(|place| place.kind == kind) {
            let Some((in_data, at)) = place.entry else { continue };
            mend_entry(storage, in_data, at);
        }
    }
    for place in places {
        let (name, field) = match place.kind {
            Kind::Root => ("root", CRC_AT),
            Kind::Segment => ("wal", CRC_AT),
            Kind::Frame => ("wal", 0),
            _ => continue,
        };
        storage.tamper(name, |file| {
            if let Some(bytes) = file.get_mut(place.at..place.at + place.len) {
                codec::seal(bytes, field, place.seed);
            }
        });
    }
}

/// Makes the checksum in an entry that of the bytes it points to, if they are there.
fn mend_entry(storage: &SimStorage, in_data: bool, at: usize) {
    let files = Files::of(storage);
    let holder = if in_data { &files.data } else { &files.root };
    let Some(bytes) = holder.get(at..at + ENTRY_BYTES) else { return };
    let Ok(entry) = Entry::decode(&mut codec::Reader::new(bytes)) else { return };
    let Some((_, target)) = found(&files.data, storage.page_size(), &entry) else { return };
    let crc = crc32c(0, target);
    storage.tamper(if in_data { "data" } else { "root" }, |file| {
        file[at + 12..at + 16].copy_from_slice(&crc.to_le_bytes());
    });
}
