//! Builds small indexes byte by byte from FORMAT.md, intact or with a planted fault.

use super::bytes::{crc, crc_on, crc_without};
use super::{Entry, Files, Level, Report, fsck};

pub const PAGE: usize = 256;
pub const SECTOR: usize = 64;
pub const SEGMENT: usize = 1024;
pub const DIMENSION: usize = 5;
/// Size in bytes of the cell table before its groups, including the centre.
pub const TABLE_FIXED: usize = 28 + 4 * DIMENSION * (1 + DIMENSION / 4) + 6 * 8 * 28 + 36;
/// First page of the cell group.
pub const GROUP: usize = 46;
pub const SHARD_SIZE: usize = 8;
pub const BLOOM: usize = 16;
pub const ID: u128 = 0x1234_5678_9ABC_DEF0_0FED_CBA9_8765_4321;

/// Changes the bytes of a part. The number identifies the part.
pub type Change = Box<dyn Fn(u64, &mut Vec<u8>)>;

/// Optional change, applied before the checksum of the part is computed. The checksums above it are therefore right.
pub type Tweak = Option<Change>;

/// Changes by kind of part. The number is the shard for an extent, state or entry, the page for a node, the generation
/// for a root, and 0 for cells.
#[derive(Default)]
pub struct Tweaks {
    pub extent: Tweak,
    pub state: Tweak,
    pub node: Tweak,
    pub root: Tweak,
    pub head: Tweak,
    pub table: Tweak,
    pub group: Tweak,
    /// Directory entry of a shard state in its node.
    pub entry: Tweak,
}

fn tweak(tweak: &Tweak, number: u64, bytes: &mut Vec<u8>) {
    if let Some(change) = tweak {
        change(number, bytes);
    }
}

/// Bytes of the files of an index.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    pub root: Vec<u8>,
    pub data: Vec<u8>,
    pub wal: Vec<u8>,
}

impl Image {
    pub fn files(&self) -> Files<'_> {
        Files { root: Some(&self.root), data: Some(&self.data), wal: Some(&self.wal) }
    }

    pub fn check(&self) -> Report {
        fsck(&self.files(), Level::Full)
    }

    pub fn put(&mut self, page: u64, bytes: &[u8]) {
        let at = page as usize * PAGE;
        self.data[at..at + bytes.len()].copy_from_slice(bytes);
    }

    pub fn put_root(&mut self, slot: usize, bytes: &[u8]) {
        self.root[slot * PAGE..slot * PAGE + bytes.len()].copy_from_slice(bytes);
    }
}

/// Description of a shard to build.
#[derive(Clone)]
pub struct Shard {
    pub number: u32,
    pub id: u128,
    pub extent: u64,
    pub state: u64,
    /// Document id of each slot and whether the posting was removed.
    pub slots: Vec<(u128, bool)>,
}

/// Returns the vector of a document.
pub fn vector(document: u128) -> Vec<f32> {
    (0..DIMENSION).map(|i| (document as f32 + 1.0) * 0.5 - i as f32).collect()
}

fn slot_bytes(document: u128) -> Vec<u8> {
    let mut bytes: Vec<u8> = vector(document).iter().flat_map(|value| value.to_le_bytes()).collect();
    bytes.extend(document.to_le_bytes());
    bytes.extend(7u32.to_le_bytes());
    bytes.extend(9u32.to_le_bytes());
    bytes.extend(1.0f32.to_le_bytes());
    bytes.resize(64, 0);
    bytes
}

pub fn entry_bytes(entry: Entry) -> Vec<u8> {
    [&entry.page.to_le_bytes()[..], &entry.len.to_le_bytes(), &entry.crc.to_le_bytes()].concat()
}

pub fn sealed(mut bytes: Vec<u8>, at: usize) -> Vec<u8> {
    let sum = crc_without(0, &bytes, at);
    bytes[at..at + 4].copy_from_slice(&sum.to_le_bytes());
    bytes
}

pub fn header(magic: &[u8; 8], id: u128) -> Vec<u8> {
    let mut bytes = magic.to_vec();
    bytes.extend(1u64.to_le_bytes());
    bytes.extend(id.to_le_bytes());
    sealed(bytes, 12)
}

/// Stores the extent and the state of a shard. Returns the directory entry of the state.
fn put_shard(image: &mut Image, shard: &Shard, tweaks: &Tweaks) -> Entry {
    let mut extent: Vec<u8> = shard.slots.iter().flat_map(|(document, _)| slot_bytes(*document)).collect();
    tweak(&tweaks.extent, shard.number.into(), &mut extent);
    image.put(shard.extent, &extent);
    let live: Vec<u128> = shard.slots.iter().filter(|(_, removed)| !removed).map(|(document, _)| *document).collect();
    let mut state = b"SHST".to_vec();
    state.extend(shard.number.to_le_bytes());
    state.extend(shard.id.to_le_bytes());
    state.extend((shard.slots.len() as u32).to_le_bytes());
    state.extend((live.len() as u32).to_le_bytes());
    state.extend([0; 8]);
    state.extend(shard.extent.to_le_bytes());
    state.extend(crc(&extent).to_le_bytes());
    state.extend([0; 4]);
    let tombstones = shard.slots.iter().rev().fold(0u64, |bits, (_, removed)| bits << 1 | u64::from(*removed));
    state.extend(tombstones.to_le_bytes());
    state.extend([0xAA; BLOOM]);
    for i in 0..DIMENSION {
        let sum: f64 = live.iter().map(|document| f64::from(vector(*document)[i])).sum();
        state.extend(sum.to_le_bytes());
    }
    state.extend([0; 4 * DIMENSION]);
    tweak(&tweaks.state, shard.number.into(), &mut state);
    image.put(shard.state, &state);
    let mut entry = entry_bytes(Entry { page: shard.state, len: state.len() as u32, crc: crc(&state) });
    tweak(&tweaks.entry, shard.number.into(), &mut entry);
    Entry::read(&entry, 0).expect("an entry has sixteen bytes")
}

fn put_node(image: &mut Image, page: u64, entries: &[(usize, Entry)], tweaks: &Tweaks) -> Entry {
    let mut bytes = vec![0; PAGE];
    for (index, entry) in entries {
        bytes[16 * index..16 * (index + 1)].copy_from_slice(&entry_bytes(*entry));
    }
    tweak(&tweaks.node, page, &mut bytes);
    image.put(page, &bytes);
    Entry { page, len: PAGE as u32, crc: crc(&bytes) }
}

/// Position of a root and the fields that vary: its WAL position, cells and the pages of its nodes.
#[derive(Clone, Copy)]
pub struct Head {
    pub slot: usize,
    pub generation: u64,
    pub epoch: u64,
    pub checkpoint: u64,
    pub segment: u64,
    pub offset: u64,
    pub cells: Entry,
    pub nodes: [u64; 3],
}

/// Stores a root and everything it reaches except the cells. The directory has two levels and covers numbers 0 to 31.
pub fn put_tree(image: &mut Image, head: Head, shards: &[Shard], tweaks: &Tweaks) {
    let entries: Vec<(usize, Entry)> =
        shards.iter().map(|shard| (shard.number as usize, put_shard(image, shard, tweaks))).collect();
    let [low, high, top] = head.nodes;
    let fanout = PAGE / 16;
    let of = |node: usize| {
        let here = entries.iter().filter(move |(number, _)| number / fanout == node);
        here.map(|(number, entry)| (number % fanout, *entry)).collect::<Vec<_>>()
    };
    let low = put_node(image, low, &of(0), tweaks);
    let high = put_node(image, high, &of(1), tweaks);
    let top = put_node(image, top, &[(0, low), (1, high)], tweaks);
    let slots = shards.iter().flat_map(|shard| &shard.slots);
    let removed = slots.clone().filter(|(_, removed)| *removed).count();
    let counts = [slots.count() - removed, removed].map(|count| count as u64);
    let mut bytes = root_bytes(head, top, 18, shards.len() as u32, counts, (image.data.len() / PAGE) as u64);
    tweak(&tweaks.root, head.generation, &mut bytes);
    image.put_root(head.slot, &sealed(bytes, 12));
}

/// Builds an unsealed root. The tuple holds the top node, the shard numbers covered and the shards in use; `counts`
/// holds the live and the removed postings.
fn root_bytes(head: Head, top: Entry, numbers: u32, shards: u32, counts: [u64; 2], pages: u64) -> Vec<u8> {
    let mut bytes = b"SHXROOT\0".to_vec();
    bytes.extend(1u64.to_le_bytes());
    bytes.extend(ID.to_le_bytes());
    bytes.extend(head.generation.to_le_bytes());
    for number in [DIMENSION, 2, SHARD_SIZE, BLOOM, PAGE, SECTOR] {
        bytes.extend((number as u32).to_le_bytes());
    }
    for number in [SEGMENT as u64, head.checkpoint, head.epoch, head.segment, head.offset] {
        bytes.extend(number.to_le_bytes());
    }
    bytes.extend(entry_bytes(top));
    bytes.extend(numbers.to_le_bytes());
    bytes.extend(shards.to_le_bytes());
    for number in [counts[0], counts[1], 0, 0, pages] {
        bytes.extend(number.to_le_bytes());
    }
    bytes.extend(4u32.to_le_bytes());
    bytes.extend(entry_bytes(head.cells));
    bytes.extend(0u32.to_le_bytes());
    bytes
}

/// Builds an index as created: two roots of epoch 1 that reach nothing, and an empty WAL.
pub fn created() -> Image {
    let mut image = Image { root: vec![0; 2 * PAGE], data: vec![0; 17 * PAGE], wal: vec![0; PAGE + 4 * SEGMENT] };
    image.data[..32].copy_from_slice(&header(b"SHXDATA\0", ID));
    image.wal[..32].copy_from_slice(&header(b"SHXWAL\0\0", ID));
    for slot in 0..2 {
        let (generation, offset) = (slot as u64 + 1, SECTOR as u64);
        let nothing = (Entry::default(), [0; 3]);
        let head =
            Head { slot, generation, epoch: 1, checkpoint: 0, segment: 1, offset, cells: nothing.0, nodes: nothing.1 };
        image.put_root(slot, &sealed(root_bytes(head, nothing.0, 0, 0, [0; 2], 17), 12));
    }
    image
}

/// Stores cells of one group with two cells: the head at page 33, the table from page 34 on, the group from page 46 on.
/// Returns the entry of the head.
pub fn put_cells(image: &mut Image, shards: &[Shard], tweaks: &Tweaks) -> Entry {
    let codes: Vec<u32> =
        (0..shards.len()).flat_map(|i| (0..shards[i].slots.len()).map(move |s| (64 * i + s) as u32)).collect();
    let mut group = b"SHCG".to_vec();
    for number in [2, codes.len() as u32, 1] {
        group.extend(number.to_le_bytes());
    }
    for (first, count) in [(0, 2), (2, codes.len() as u32 - 2)] {
        group.extend([0; 12]);
        group.extend([u32::to_le_bytes(first), u32::to_le_bytes(count)].concat());
    }
    group.resize(64, 0);
    group.extend([128; 128]);
    for block in codes.chunks(8) {
        group.extend([0; 96]);
        block.iter().for_each(|code| group.extend(code.to_le_bytes()));
        group.resize(group.len().next_multiple_of(64), 0);
    }
    tweak(&tweaks.group, 0, &mut group);
    image.put(GROUP as u64, &group);
    let mut table = b"SHC7".to_vec();
    for number in [1, 1, shards.len() as u32] {
        table.extend(number.to_le_bytes());
    }
    table.resize(24, 0);
    table.extend((DIMENSION as u32).to_le_bytes());
    table.resize(TABLE_FIXED, 0);
    table.extend(entry_bytes(Entry { page: GROUP as u64, len: group.len() as u32, crc: crc(&group) }));
    table.extend([0; 12]);
    table.extend([2u32.to_le_bytes(), (codes.len() as u32).to_le_bytes()].concat());
    for shard in shards {
        table.extend([shard.number.to_le_bytes(), (shard.slots.len() as u32).to_le_bytes()].concat());
        table.extend(shard.id.to_le_bytes());
    }
    table.extend([128; 64 * 16]);
    table.extend([0; 128]);
    tweak(&tweaks.table, 0, &mut table);
    image.put(34, &table);
    let mut head = b"SHCH".to_vec();
    head.extend(1u32.to_le_bytes());
    head.extend(entry_bytes(Entry { page: 34, len: table.len() as u32, crc: crc(&table) }));
    tweak(&tweaks.head, 0, &mut head);
    image.put(33, &head);
    Entry { page: 33, len: head.len() as u32, crc: crc(&head) }
}

/// Builds a frame with its checksum.
pub fn frame(epoch: u64, kind: u8, bits: u8, lsn: u64, durable: u64, payload: &[u8]) -> Vec<u8> {
    let tail = payload.len().next_multiple_of(8) - payload.len();
    let mut bytes = vec![0; 4];
    bytes.extend((payload.len() as u32).to_le_bytes());
    bytes.extend(lsn.to_le_bytes());
    bytes.extend(durable.to_le_bytes());
    bytes.extend([kind, bits, tail as u8, 0, 0, 0, 0, 0]);
    bytes.extend(payload);
    bytes.resize(bytes.len() + tail, 0);
    let sum = crc_on(crc_on(crc(&ID.to_le_bytes()), &epoch.to_le_bytes()), &bytes);
    bytes[..4].copy_from_slice(&sum.to_le_bytes());
    bytes
}

/// Builds the padding up to the end of the sector after `len` bytes of the WAL; empty if none is needed.
pub fn padding(epoch: u64, lsn: u64, durable: u64, len: usize) -> Vec<u8> {
    match len.next_multiple_of(SECTOR) - len {
        0 => Vec::new(),
        room => frame(epoch, 3, 3, lsn, durable, &vec![0; room - 32]),
    }
}

pub fn segment_header(id: u128, epoch: u64, number: u64, first: u64) -> Vec<u8> {
    let mut bytes = b"SHXSEGM\0".to_vec();
    bytes.extend(1u64.to_le_bytes());
    bytes.extend(id.to_le_bytes());
    for value in [epoch, number, first, 0] {
        bytes.extend(value.to_le_bytes());
    }
    sealed(bytes, 12)
}

/// Builds the payload of an add.
pub fn add_payload(documents: &[u128]) -> Vec<u8> {
    let mut bytes = [(documents.len() as u32).to_le_bytes(), (DIMENSION as u32).to_le_bytes()].concat();
    for document in documents {
        bytes.extend(document.to_le_bytes());
        bytes.extend([7u32.to_le_bytes(), 9u32.to_le_bytes()].concat());
    }
    bytes.extend(documents.iter().flat_map(|document| vector(*document)).flat_map(f32::to_le_bytes));
    bytes
}

/// Builds the payload of a remove.
pub fn remove_payload(documents: &[u128]) -> Vec<u8> {
    let mut bytes = (documents.len() as u64).to_le_bytes().to_vec();
    bytes.extend(documents.iter().flat_map(|document| document.to_le_bytes()));
    bytes
}

/// Offset in `wal` at which the WAL of [`image`] starts.
pub const LOG_START: usize = PAGE + SECTOR;
/// Offset in `wal` at which the WAL of [`image`] ends.
pub const LOG_END: usize = PAGE + 2 * SEGMENT + 2 * SECTOR;

/// Stores the WAL of epoch 2. LSNs 4 and 5 are adds before the newer checkpoint. LSN 6 adds two postings, LSN 7 removes
/// documents, and LSNs 8 and 9 are one add in two segments.
fn put_log(image: &mut Image) {
    let mut first = segment_header(ID, 2, 1, 4);
    let append = |bytes: &mut Vec<u8>, kind, bits, lsn, payload: &[u8]| {
        bytes.extend(frame(2, kind, bits, lsn, lsn - 1, payload));
        bytes.extend(padding(2, lsn, lsn - 1, bytes.len()));
    };
    append(&mut first, 1, 3, 4, &add_payload(&[30]));
    append(&mut first, 1, 3, 5, &add_payload(&[31]));
    append(&mut first, 1, 3, 6, &add_payload(&[40, 41]));
    append(&mut first, 2, 3, 7, &remove_payload(&[40, 2]));
    let long = add_payload(&[50, 51, 52, 53, 54, 55, 56, 57, 58, 59]);
    let room = SEGMENT - first.len() - 32;
    first.extend(frame(2, 1, 1, 8, 7, &long[..room]));
    let mut second = segment_header(ID, 2, 2, 9);
    append(&mut second, 1, 2, 9, &long[room..]);
    image.wal[PAGE..PAGE + first.len()].copy_from_slice(&first);
    let at = PAGE + 2 * SEGMENT;
    image.wal[at..at + second.len()].copy_from_slice(&second);
    // A segment of the previous epoch that isn't recycled yet.
    let old = [segment_header(ID, 1, 1, 1), frame(1, 1, 3, 1, 0, &add_payload(&[1]))].concat();
    image.wal[PAGE + SEGMENT..PAGE + SEGMENT + old.len()].copy_from_slice(&old);
}

/// Returns the shards of the older root and those of the newer. In the newer, shard 1 has two more slots in the same
/// extent and one removed posting.
pub fn shards() -> [Vec<Shard>; 2] {
    let shard = |number: u32, extent, state, slots: &[(u128, bool)]| Shard {
        number,
        id: 0x0123_0000 + u128::from(number),
        extent,
        state,
        slots: slots.to_vec(),
    };
    let (zero, last) = (shard(0, 1, 17, &[(1, false), (2, false)]), shard(17, 5, 19, &[(5, false), (6, true)]));
    let one = shard(1, 3, 18, &[(3, false), (4, false)]);
    let grown = shard(1, 3, 23, &[(3, true), (4, false), (30, false), (31, false)]);
    [vec![zero.clone(), one, last.clone()], vec![zero, grown, last]]
}

/// Builds an intact index: two roots over three shards, cells and a WAL.
pub fn image() -> Image {
    planted(&Tweaks::default())
}

/// Builds the index of [`image`] with faults in the newer root and in what it alone reaches.
pub fn planted(tweaks: &Tweaks) -> Image {
    let mut image = Image { root: vec![0; 2 * PAGE], data: vec![0; 49 * PAGE], wal: vec![0; PAGE + 4 * SEGMENT] };
    image.data[..32].copy_from_slice(&header(b"SHXDATA\0", ID));
    image.wal[..32].copy_from_slice(&header(b"SHXWAL\0\0", ID));
    put_log(&mut image);
    let [old, new] = shards();
    let head = Head {
        slot: 1,
        generation: 5,
        epoch: 2,
        checkpoint: 3,
        segment: 1,
        offset: SECTOR as u64,
        cells: Entry::default(),
        nodes: [20, 21, 22],
    };
    put_tree(&mut image, head, &old, &Tweaks::default());
    let cells = put_cells(&mut image, &new, tweaks);
    // The WAL of the newer root starts after two adds of 84 bytes, each padded to two sectors.
    let offset = (SECTOR + 2 * 128) as u64;
    let head = Head { slot: 0, generation: 6, checkpoint: 5, offset, cells, nodes: [24, 26, 25], ..head };
    put_tree(&mut image, head, &new, tweaks);
    image
}
