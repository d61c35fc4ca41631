//! Root: the structure from which all durable data is reachable.
//!
//! A root lies in one of two root slots, each on its own page. It holds its own checksum because no structure points to
//! it.

use std::ops::RangeInclusive;

use super::{
    FormatError,
    codec::{self, Put as _, Reader},
    frame::FRAME_ALIGN,
    geometry::IndexParams,
    header::{self, CRC_AT, FileKind, ROOT_MAGIC},
    node::BlockPointer,
};
use crate::{
    config::{Metric, VectorEncoding},
    id::{Generation, Lsn},
    limits::{self, FORMAT_VERSION, MIN_PAGE_BYTES},
    tuning::MAX_COUNT,
};

/// Length of an encoded root in bytes. Roots of older versions are shorter. It fits the smallest page of a new index.
pub const ROOT_BYTES: usize = 512;
/// Length of an encoded root of version 2 in bytes.
const ROOT_BYTES_2: usize = 256;
/// Length of an encoded root of version 1 in bytes.
const ROOT_BYTES_1: usize = 192;

/// Versions of roots that this build reads.
pub const VERSIONS: RangeInclusive<u32> = 1..=FORMAT_VERSION;

const _: () = assert!(ROOT_BYTES <= MIN_PAGE_BYTES);

/// Payloads and the cursor below a root: zeros in a root of version 1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PayloadRoot {
    /// Pointer to the top node of the directory of buckets. No pointer if no bucket has a number.
    pub directory: BlockPointer,
    /// Number of buckets.
    pub buckets: u32,
    /// Number of entries that the directory covers. Those after the buckets point to nothing.
    pub entries: u32,
    /// Number of documents with a payload.
    pub payloads: u64,
    /// Bytes of all payloads and of the cursor.
    pub bytes: u64,
}

/// Returns the length of a root of a version in bytes.
#[must_use]
pub fn bytes_of(version: u32) -> usize {
    match version {
        1 => ROOT_BYTES_1,
        2 => ROOT_BYTES_2,
        _ => ROOT_BYTES,
    }
}

/// Returns the version of an intact root that a later build has stored, if `bytes` hold one. Each later version keeps the
/// magic, the place of the version, the length of a root of version 3 and the checksum over it.
#[must_use]
pub fn later_version(bytes: &[u8]) -> Option<u32> {
    let bytes = bytes.get(..ROOT_BYTES)?;
    match header::kind(bytes, &ROOT_MAGIC) {
        FileKind::Version(version) if version > FORMAT_VERSION => {
            codec::check_seal(bytes, CRC_AT, 0).is_ok().then_some(version)
        }
        _ => None,
    }
}

/// Position in the WAL at which a frame starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct WalPosition {
    /// Segment number within the epoch. The segment need not exist yet.
    pub seq: u64,
    /// Offset within the segment, in bytes.
    pub offset: u64,
}

/// Bytes at the end of a root of version 2 that are zeros.
const SPARE_BYTES: usize = 20;
/// Bytes at the end of a root of version 3 that are zeros, for later use.
const SPARE_BYTES_3: usize = 272;

/// Checked root.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Root {
    /// Format version of the index: 1 to 3. Version 1 has no tags, payloads and cursor. In version 3, nodes, states and
    /// parts of buckets have headers.
    pub version: u32,
    /// Id of the index.
    pub index_id: u128,
    /// Generation of the root. Of two valid roots, the one with the higher (epoch, generation) is the newest.
    pub generation: Generation,
    /// Parameters that are fixed when the index is created.
    pub geometry: IndexParams,
    /// Checkpoint: the state below this root contains exactly the writes up to and including this LSN.
    pub checkpoint: Lsn,
    /// WAL epoch of the records after the checkpoint. No earlier records have this epoch.
    pub epoch: u64,
    /// Position at which the WAL after the checkpoint starts.
    pub wal_start: WalPosition,
    /// Pointer to the top node of the directory. No pointer if the directory covers no shard numbers.
    pub directory: BlockPointer,
    /// Number of shard numbers that the directory covers. Some may be unused.
    pub shard_numbers: u32,
    /// Number of shards in use.
    pub shards: u32,
    /// Number of live postings in all shards.
    pub live: u64,
    /// Number of removed or replaced postings whose slots are still used.
    pub removed: u64,
    /// Number of random draws made. The next draw derives from the index id and this number.
    pub draws: u64,
    /// Number of splits made.
    pub splits: u64,
    /// Length of the data file in pages.
    pub data_pages: u64,
    /// Minimum number of segments in the WAL file. A file with fewer segments was truncated. 0 if the number is
    /// unknown.
    pub wal_segments: u32,
    /// Pointer to the head of the cells, or to nothing if there are no cells.
    pub cells: BlockPointer,
    /// Number of merges made.
    pub merges: u32,
    /// Payloads and the cursor.
    pub payload: PayloadRoot,
}

impl PayloadRoot {
    /// Decodes the fields of version 2, one of which is the encoding of the vectors.
    fn decode(r: &mut Reader<'_>) -> Result<(Self, VectorEncoding), FormatError> {
        let (directory, at) = (BlockPointer::decode(r)?, r.at());
        let buckets = r.u32()?;
        let encoding = match (r.at(), r.u32()?) {
            (_, 1) => VectorEncoding::F32,
            (_, 2) => VectorEncoding::F16,
            (_, 3) => VectorEncoding::Int8,
            (at, other) => return Err(FormatError::new(at, format!("encoding 1, 2 or 3 expected, {other} found"))),
        };
        let root = Self { directory, buckets, payloads: r.u64()?, bytes: r.u64()?, entries: r.u32()? };
        if directory.is_none() != (root.entries == 0) || buckets > root.entries {
            let what = format!("{buckets} buckets of {} entries below {directory:?}", root.entries);
            return Err(FormatError::new(at, what));
        }
        Ok((root, encoding))
    }
}

pub(super) fn encoding_code(encoding: VectorEncoding) -> u32 {
    match encoding {
        VectorEncoding::F32 => 1,
        VectorEncoding::F16 => 2,
        VectorEncoding::Int8 => 3,
    }
}

pub(super) fn metric_code(metric: Metric) -> u32 {
    match metric {
        Metric::Cosine => 1,
        Metric::L2 => 2,
        Metric::Dot => 3,
    }
}

/// Decodes the configuration, whose encoding and slots per extent are those of version 1.
fn configuration(r: &mut Reader<'_>) -> Result<IndexParams, FormatError> {
    let dimension = r.u32()? as usize;
    let metric = match (r.at(), r.u32()?) {
        (_, 1) => Metric::Cosine,
        (_, 2) => Metric::L2,
        (_, 3) => Metric::Dot,
        (at, other) => return Err(FormatError::new(at, format!("metric 1, 2 or 3 expected, {other} found"))),
    };
    let shard_size = r.u32()? as usize;
    IndexParams {
        dimension,
        metric,
        encoding: VectorEncoding::F32,
        shard_size,
        bloom_bytes: r.u32()? as usize,
        extent_slots: IndexParams::first_extent_slots(shard_size.min(limits::MAX_SHARD_SIZE)),
        page_size: r.u32()? as usize,
        sector_size: r.u32()? as usize,
        wal_segment_size: r.u64()?,
    }
    .validated()
}

impl Root {
    /// Encodes the root, including its checksum.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let g = &self.geometry;
        let mut out = Vec::with_capacity(ROOT_BYTES);
        out.put(&ROOT_MAGIC);
        out.put_u32(self.version);
        out.put_u32(0);
        out.put_u128(self.index_id);
        out.put_u64(self.generation.0);
        out.put_u32(g.dimension as u32);
        out.put_u32(metric_code(g.metric));
        out.put_u32(g.shard_size as u32);
        out.put_u32(g.bloom_bytes as u32);
        out.put_u32(g.page_size as u32);
        out.put_u32(g.sector_size as u32);
        out.put_u64(g.wal_segment_size);
        out.put_u64(self.checkpoint.0);
        out.put_u64(self.epoch);
        out.put_u64(self.wal_start.seq);
        out.put_u64(self.wal_start.offset);
        self.directory.encode(&mut out);
        out.put_u32(self.shard_numbers);
        out.put_u32(self.shards);
        out.put_u64(self.live);
        out.put_u64(self.removed);
        out.put_u64(self.draws);
        out.put_u64(self.splits);
        out.put_u64(self.data_pages);
        out.put_u32(self.wal_segments);
        self.cells.encode(&mut out);
        out.put_u32(self.merges);
        assert_eq!(out.len(), ROOT_BYTES_1, "a root of version 1 has its length");
        assert!(self.version > 1 || g.encoding == VectorEncoding::F32, "version 1 stores f32");
        if self.version > 1 {
            self.payload.directory.encode(&mut out);
            out.put_u32(self.payload.buckets);
            out.put_u32(encoding_code(g.encoding));
            out.put_u64(self.payload.payloads);
            out.put_u64(self.payload.bytes);
            out.put_u32(self.payload.entries);
        }
        if self.version > 2 {
            out.put_u32(g.extent_slots as u32);
        }
        out.resize(bytes_of(self.version), 0);
        codec::seal(&mut out, CRC_AT, 0);
        out
    }

    /// Parses the root at the start of a root slot.
    ///
    /// # Errors
    /// Returns `FormatError` if the magic, the version or the checksum is wrong, or if a number is out of range.
    pub fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        let mut r = Reader::new(bytes);
        r.expect(&ROOT_MAGIC)?;
        let (at, version) = (r.at(), r.u32()?);
        if !VERSIONS.contains(&version) {
            return Err(FormatError::new(at, format!("version {version}, 1 to {FORMAT_VERSION} expected")));
        }
        let bytes = Reader::new(bytes).take(bytes_of(version))?;
        codec::check_seal(bytes, CRC_AT, 0)?;
        r.u32()?;
        let index_id = r.u128()?;
        let generation = Generation(r.u64()?);
        let geometry = configuration(&mut r)?;
        let mut root = Self {
            version,
            index_id,
            generation,
            geometry,
            checkpoint: Lsn(r.u64()?),
            epoch: r.u64()?,
            wal_start: WalPosition { seq: r.u64()?, offset: r.u64()? },
            directory: BlockPointer::decode(&mut r)?,
            shard_numbers: r.u32()?,
            shards: r.u32()?,
            live: r.u64()?,
            removed: r.u64()?,
            draws: r.u64()?,
            splits: r.u64()?,
            data_pages: r.u64()?,
            wal_segments: r.u32()?,
            cells: BlockPointer::decode(&mut r)?,
            merges: r.u32()?,
            payload: PayloadRoot::default(),
        };
        if version > 1 {
            (root.payload, root.geometry.encoding) = PayloadRoot::decode(&mut r)?;
        }
        match version {
            1 => {}
            2 => r.expect(&[0; SPARE_BYTES])?,
            _ => {
                if root.geometry.page_size < ROOT_BYTES {
                    let what = format!("a root of {ROOT_BYTES} bytes on pages of {}", root.geometry.page_size);
                    return Err(FormatError::new(56, what));
                }
                root.geometry.extent_slots = r.u32()? as usize;
                root.geometry = root.geometry.validated()?;
                r.expect(&[0; SPARE_BYTES_3])?;
            }
        }
        root.validated()
    }

    /// Checks the ranges of numbers that were read from disk. After it no arithmetic on them overflows, and no
    /// allocation exceeds what the data file can justify.
    fn validated(self) -> Result<Self, FormatError> {
        let counts = [
            (32, "generation", self.generation.0),
            (72, "checkpoint", self.checkpoint.0),
            (80, "epoch", self.epoch),
            (88, "segment number", self.wal_start.seq),
            (128, "count of live postings", self.live),
            (136, "count of removed postings", self.removed),
            (144, "count of draws", self.draws),
            (152, "count of splits", self.splits),
            // The length of the data file in bytes must also be in range.
            (160, "count of pages", self.data_pages.saturating_mul(self.geometry.page_size as u64)),
            (216, "count of payloads", self.payload.payloads),
            (224, "count of bytes in payloads", self.payload.bytes),
        ];
        if let Some((at, what, n)) = counts.into_iter().find(|&(.., n)| n > MAX_COUNT) {
            return Err(FormatError::new(at, format!("{what} {n} is more than {MAX_COUNT}")));
        }
        let offset = self.wal_start.offset;
        let frames = self.geometry.sector_size as u64..self.geometry.wal_segment_size;
        if !frames.contains(&offset) || !offset.is_multiple_of(FRAME_ALIGN as u64) {
            return Err(FormatError::new(96, format!("no frame starts at byte {offset} of a segment")));
        }
        // A shard gets a number only if all lower numbers are in use, and each shard has at least one extent. So the
        // shard numbers cannot exceed the extents that fit the file.
        let extents = self.data_pages.saturating_sub(1) / u64::from(self.geometry.extent_pages());
        if u64::from(self.shard_numbers) > extents || self.shards > self.shard_numbers {
            let (shards, numbers) = (self.shards, self.shard_numbers);
            let what = format!("{shards} shards of {numbers} numbers in a file with room for {extents}");
            return Err(FormatError::new(120, what));
        }
        Ok(self)
    }
}
