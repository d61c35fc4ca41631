//! Parses root slots and file headers, and derives sizes from them.

use super::bytes::{crc_without, f32_at, part, u16_at, u32_at, u64_at, u128_at, zeros};
use super::{
    Entry, FindingKind,
    encodings::{self, Encoding},
};
/// Size of a root of version 3 in bytes.
pub const ROOT_BYTES: u64 = 512;
/// Size of a root of version 2 in bytes.
const ROOT_BYTES_2: u64 = 256;
/// Size of a root of version 1 in bytes.
const ROOT_BYTES_1: u64 = 192;
/// Size of the header of `data` and of `wal` in bytes.
pub const HEADER_BYTES: u64 = 32;
/// Version in the headers of files and segments.
const VERSION: u32 = 1;
/// Versions of roots.
const VERSIONS: std::ops::RangeInclusive<u32> = 1..=3;
/// Size of the header of a metadata block of version 3 in bytes.
pub const BLOCK_BYTES: u64 = 64;
/// Smallest and largest valid page size in bytes.
const PAGES: std::ops::RangeInclusive<u64> = 256..=1 << 20;
/// Largest valid dimension.
const MAX_DIMENSION: u32 = 65_536;
/// Smallest and largest valid shard size in postings.
const SHARD_SIZES: std::ops::RangeInclusive<u32> = 2..=65_536;
/// Largest valid WAL segment in bytes.
const MAX_SEGMENT: u64 = 1 << 30;

/// Distance function of an index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Metric {
    /// Angle between vectors, which are stored normalised.
    Cosine,
    /// Euclidean distance.
    L2,
    /// Inner product.
    Dot,
}

/// Fields of a root, as stored in its slot.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the fields are those of FORMAT.md, by their names there")]
pub struct RootInfo {
    pub version: u32,
    pub index_id: u128,
    pub generation: u64,
    pub dimension: u32,
    pub metric: Metric,
    pub encoding: Encoding,
    pub shard_size: u32,
    pub bloom_bytes: u32,
    pub extent_slots: u64,
    pub page: u64,
    pub sector: u64,
    pub segment_bytes: u64,
    pub checkpoint: u64,
    pub epoch: u64,
    pub segment: u64,
    pub offset: u64,
    pub directory: Entry,
    pub shard_numbers: u32,
    pub shards: u32,
    pub live: u64,
    pub removed: u64,
    pub draws: u64,
    pub splits: u64,
    pub pages: u64,
    pub wal_segments: u32,
    pub cells: Entry,
    pub merges: u32,
    pub bucket_directory: Entry,
    pub buckets: u32,
    pub bucket_entries: u32,
    pub payloads: u64,
    pub payload_bytes: u64,
}

/// Reason why a slot holds no valid root, or a file no valid header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Invalid {
    /// Kind of the first check that failed.
    pub kind: FindingKind,
    /// Description of the failure.
    pub what: String,
}

fn invalid<T>(kind: FindingKind, what: impl Into<String>) -> Result<T, Invalid> {
    Err(Invalid { kind, what: what.into() })
}

/// Sizes derived from the configuration of a root.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parameters {
    /// Size of the slot of a posting in bytes.
    pub slot_bytes: u64,
    /// Number of slots of an extent.
    pub extent_slots: u64,
    /// Number of pages of an extent.
    pub extent_pages: u64,
    /// Number of pages of the largest shard state.
    pub state_pages: u64,
    /// Number of pages of a chunk.
    pub chunk_pages: u64,
    /// Number of entries of a node.
    pub fanout: u64,
    /// Number of levels of the directory; 0 without shards.
    pub levels: u32,
}

impl RootInfo {
    /// Returns epoch and generation. Of two roots the one with the higher pair is the newer.
    #[must_use]
    pub fn order(&self) -> (u64, u64) {
        (self.epoch, self.generation)
    }

    /// Returns the size of the root in bytes.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        bytes_of(self.version)
    }

    /// Computes the size in bytes of the state of a shard with `slots` used slots, in a version, up to its former slots. If
    /// `one` is true, a stored vector takes the place of the sum and the centroid.
    #[must_use]
    pub fn state_bytes(&self, slots: u64, version: u32, one: bool) -> u64 {
        let extents = slots.div_ceil(self.extent_slots);
        let of_tags = match version {
            1 => 0,
            2 => 16 * self.tag_pages(slots) + 16,
            _ => 16 * self.tag_pages(slots),
        };
        of_tags
            + state_fixed(version)
            + 16 * extents
            + 8 * slots.div_ceil(64)
            + u64::from(self.bloom_bytes)
            + if one { self.vector_bytes() } else { 12 * u64::from(self.dimension) }
    }

    /// Computes the number of pages that hold the tags of `slots` slots.
    #[must_use]
    pub fn tag_pages(&self, slots: u64) -> u64 {
        (8 * slots).div_ceil(self.page)
    }

    /// Computes the offset of the entries in a node.
    #[must_use]
    pub fn entries_at(&self) -> u64 {
        if self.version < 3 { 0 } else { BLOCK_BYTES }
    }

    /// Computes the number of entries of a node.
    #[must_use]
    pub fn fanout(&self) -> u64 {
        (self.page - self.entries_at()) / 16
    }

    /// Computes the number of levels of a tree of nodes with `entries` entries at its lowest level.
    #[must_use]
    pub fn levels(&self, entries: u32) -> u32 {
        let fanout = self.fanout();
        let mut levels = u32::from(entries > 0);
        let mut reach = fanout;
        while reach < u64::from(entries) {
            reach *= fanout;
            levels += 1;
        }
        levels
    }

    /// Computes the number of pages that `bytes` bytes occupy.
    #[must_use]
    pub fn pages_of(&self, bytes: u64) -> u64 {
        bytes.div_ceil(self.page)
    }

    /// Computes the length of a stored vector in bytes.
    #[must_use]
    pub fn vector_bytes(&self) -> u64 {
        let dimension = u64::from(self.dimension);
        match self.encoding {
            Encoding::F32 => 4 * dimension,
            Encoding::F16 => 2 * dimension,
            Encoding::Int8 => dimension.next_multiple_of(4) + 4,
        }
    }

    /// Returns component `index` of the vector at the start of a slot.
    #[must_use]
    pub fn component(&self, slot: &[u8], index: u64) -> Option<f32> {
        match self.encoding {
            Encoding::F32 => f32_at(slot, 4 * index),
            Encoding::F16 => u16_at(slot, 2 * index).map(encodings::widened),
            Encoding::Int8 => {
                let code = slot.get(usize::try_from(index).ok()?).map(|&byte| f32::from(byte as i8))?;
                Some(code * self.scale(slot)?)
            }
        }
    }

    /// Returns the scale of the vector at the start of a slot.
    #[must_use]
    pub fn scale(&self, slot: &[u8]) -> Option<f32> {
        match self.encoding {
            Encoding::Int8 => f32_at(slot, self.vector_bytes() - 4),
            _ => None,
        }
    }

    /// Computes the sizes that follow from the configuration.
    #[must_use]
    pub fn geometry(&self) -> Parameters {
        let slot_bytes = (self.vector_bytes() + 32).next_multiple_of(64);
        let extent_slots = self.extent_slots;
        let extent_pages = self.pages_of(slot_bytes * extent_slots);
        let state_pages = self.pages_of(self.state_bytes(u64::from(self.shard_size), 1, false));
        let (fanout, levels) = (self.fanout(), self.levels(self.shard_numbers));
        let chunk_pages = (8 * extent_pages).max(4 * state_pages);
        Parameters { slot_bytes, extent_slots, extent_pages, state_pages, chunk_pages, fanout, levels }
    }

    /// Reports whether both roots have the same configuration.
    #[must_use]
    pub fn same_configuration(&self, other: &Self) -> bool {
        let of = |root: &Self| {
            let sizes = (root.page, root.sector, root.segment_bytes);
            (root.dimension, root.metric, root.encoding, root.shard_size, root.bloom_bytes, root.extent_slots, sizes)
        };
        of(self) == of(other)
    }
}

/// Returns the size of the fixed fields of a shard state in bytes, in a version.
#[must_use]
pub fn state_fixed(version: u32) -> u64 {
    if version < 3 { 40 } else { BLOCK_BYTES + 32 }
}

/// Returns the size of a root of a version in bytes.
fn bytes_of(version: u32) -> u64 {
    match version {
        1 => ROOT_BYTES_1,
        2 => ROOT_BYTES_2,
        _ => ROOT_BYTES,
    }
}

/// Parses the root at the start of `slot`, which lies at byte `at` of the file.
///
/// # Errors
/// Returns [`Invalid`] if the bytes are too few, or if the magic, checksum, version or configuration is wrong.
pub fn parse_root(slot: &[u8], at: u64) -> Result<RootInfo, Invalid> {
    if slot.get(..8).is_some_and(|magic| magic != b"SHXROOT\0") {
        return invalid(FindingKind::BadMagic, "no root's magic");
    }
    let version = u32_at(slot, 8).unwrap_or_default();
    let Some(bytes) = part(slot, 0, bytes_of(version)) else {
        return invalid(FindingKind::TruncatedFile, format!("{} bytes are no root", slot.len()));
    };
    if u32_at(bytes, 12) != Some(crc_without(0, bytes, 12)) {
        return invalid(FindingKind::ChecksumMismatch, "the root's checksum does not hold");
    }
    if !VERSIONS.contains(&version) {
        return invalid(FindingKind::BadVersion, format!("format version {version}"));
    }
    let Some(root) = fields(bytes, version) else {
        return invalid(FindingKind::BadConfiguration, "no such metric, or no such encoding of vectors");
    };
    let zeros_from = if version == 3 { 240 } else { 236 };
    if version > 1 && !bytes.get(zeros_from..).is_some_and(zeros) {
        return invalid(FindingKind::NonZeroReserved, "the root's zeros");
    }
    match nonsense(&root, at) {
        Some(what) => invalid(FindingKind::BadConfiguration, what),
        None => Ok(root),
    }
}

fn fields(bytes: &[u8], version: u32) -> Option<RootInfo> {
    let (u32_of, u64_of) = (|at| u32_at(bytes, at), |at| u64_at(bytes, at));
    let encoding = if version > 1 { u32_of(212)? } else { 1 };
    let later = |at| if version > 1 { u64_of(at) } else { Some(0) };
    Some(RootInfo {
        version,
        index_id: u128_at(bytes, 16)?,
        generation: u64_of(32)?,
        dimension: u32_of(40)?,
        metric: match u32_of(44)? {
            1 => Metric::Cosine,
            2 => Metric::L2,
            3 => Metric::Dot,
            _ => return None,
        },
        encoding: match encoding {
            1 => Encoding::F32,
            2 => Encoding::F16,
            3 => Encoding::Int8,
            _ => return None,
        },
        shard_size: u32_of(48)?,
        bloom_bytes: u32_of(52)?,
        extent_slots: match version {
            3 => u64::from(u32_of(236)?),
            _ => u64::from(u32_of(48)?.min(64)).next_power_of_two(),
        },
        page: u64::from(u32_of(56)?),
        sector: u64::from(u32_of(60)?),
        segment_bytes: u64_of(64)?,
        checkpoint: u64_of(72)?,
        epoch: u64_of(80)?,
        segment: u64_of(88)?,
        offset: u64_of(96)?,
        directory: Entry::read(bytes, 104)?,
        shard_numbers: u32_of(120)?,
        shards: u32_of(124)?,
        live: u64_of(128)?,
        removed: u64_of(136)?,
        draws: u64_of(144)?,
        splits: u64_of(152)?,
        pages: u64_of(160)?,
        wal_segments: u32_of(168)?,
        cells: Entry::read(bytes, 172)?,
        merges: u32_of(188)?,
        bucket_directory: if version > 1 { Entry::read(bytes, 192)? } else { Entry::default() },
        buckets: if version > 1 { u32_of(208)? } else { 0 },
        bucket_entries: if version > 1 { u32_of(232)? } else { 0 },
        payloads: later(216)?,
        payload_bytes: later(224)?,
    })
}

/// Describes the first field of a root that is invalid regardless of the other files; `None` if there is none.
fn nonsense(root: &RootInfo, at: u64) -> Option<String> {
    let RootInfo { page, sector, segment_bytes, offset, .. } = *root;
    let sizes = page.is_power_of_two() && sector.is_power_of_two() && PAGES.contains(&page);
    if !sizes || sector > page || sector < 64 {
        return Some(format!("pages of {page} and sectors of {sector} bytes"));
    }
    if page < root.bytes() {
        return Some(format!("pages of {page} bytes, shorter than a root of version {}", root.version));
    }
    if at != 0 && at != page {
        return Some(format!("pages of {page} bytes, but the second slot is at {at}"));
    }
    if !(1..=MAX_DIMENSION).contains(&root.dimension) || !SHARD_SIZES.contains(&root.shard_size) {
        return Some(format!("{} numbers a vector, {} postings a shard", root.dimension, root.shard_size));
    }
    let most = u64::from(root.shard_size.min(64)).next_power_of_two();
    if !root.extent_slots.is_power_of_two() || root.extent_slots > most {
        return Some(format!("{} slots per extent", root.extent_slots));
    }
    if !segment_bytes.is_multiple_of(page) || segment_bytes < 4 * page || segment_bytes > MAX_SEGMENT {
        return Some(format!("segments of {segment_bytes} bytes"));
    }
    if root.epoch == 0 || root.segment == 0 || root.generation == 0 {
        return Some(format!("epoch {}, segment {}, generation {}", root.epoch, root.segment, root.generation));
    }
    if offset < sector || offset > segment_bytes || !offset.is_multiple_of(8) {
        return Some(format!("the log starts at {offset} of a segment"));
    }
    None
}

/// Parses the header of `data` or `wal` and returns the index id.
///
/// # Errors
/// Returns [`Invalid`] if the bytes are too few, or if the magic, checksum or version is wrong.
pub fn parse_header(file: &[u8], magic: &[u8; 8]) -> Result<u128, Invalid> {
    let Some(bytes) = part(file, 0, HEADER_BYTES) else {
        return invalid(FindingKind::TruncatedFile, format!("{} bytes hold no header", file.len()));
    };
    if bytes.get(..8) != Some(magic) {
        return invalid(FindingKind::BadMagic, "not the file's magic");
    }
    if u32_at(bytes, 12) != Some(crc_without(0, bytes, 12)) {
        return invalid(FindingKind::ChecksumMismatch, "the header's checksum does not hold");
    }
    if u32_at(bytes, 8) != Some(VERSION) {
        return invalid(FindingKind::BadVersion, format!("format version {:?}", u32_at(bytes, 8)));
    }
    Ok(u128_at(bytes, 16).unwrap_or_default())
}
