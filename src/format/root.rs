//! A root: the one structure from which everything durable is reached.
//!
//! It lies in one of two slots, each on a page of its own, and holds its own checksum, having no parent.

use super::{
    FormatError,
    codec::{self, Put as _, Reader},
    frame::FRAME_ALIGN,
    geometry::Geometry,
    header::{CRC_AT, ROOT_MAGIC},
    node::Entry,
};
use crate::{
    config::Metric,
    id::{Generation, Lsn},
    limits::{FORMAT_VERSION, MAX_COUNT},
};

/// Bytes of an encoded root. It fits the smallest page.
pub const ROOT_BYTES: usize = 192;

const _: () = assert!(ROOT_BYTES <= 256);

/// A place in the WAL: where the next frame starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct WalPosition {
    /// The segment's number within the epoch. The segment need not exist yet.
    pub seq: u64,
    /// Byte within the segment.
    pub offset: u64,
}

/// A checked root.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Root {
    /// The index it belongs to.
    pub index_id: u128,
    /// Its number; of two valid roots the higher one counts.
    pub generation: Generation,
    /// What the index was made with.
    pub geometry: Geometry,
    /// The state below this root is exactly that after this write.
    pub checkpoint: Lsn,
    /// The epoch of the WAL after the checkpoint. Never used for other records before.
    pub epoch: u64,
    /// Where the WAL after the checkpoint starts.
    pub wal_start: WalPosition,
    /// The top node of the directory.
    pub directory: Entry,
    /// Shard numbers that the directory covers; some may be unused.
    pub shard_numbers: u32,
    /// Shards in use.
    pub shards: u32,
    /// Live postings in all shards.
    pub live: u64,
    /// Postings removed or replaced whose slots are still taken.
    pub removed: u64,
    /// Random draws made so far: the next one derives from this number.
    pub draws: u64,
    /// Splits so far.
    pub splits: u64,
    /// Pages of the data file.
    pub data_pages: u64,
    /// Segments that the WAL file holds at least: one that is shorter was cut.
    pub wal_segments: u32,
    /// The head of the cells; nothing if there are none.
    pub cells: Entry,
    /// Merges so far.
    pub merges: u32,
}

fn metric_code(metric: Metric) -> u32 {
    match metric {
        Metric::Cosine => 1,
        Metric::L2 => 2,
        Metric::Dot => 3,
    }
}

impl Root {
    /// The root's bytes, checksum included.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let g = &self.geometry;
        let mut out = Vec::with_capacity(ROOT_BYTES);
        out.put(&ROOT_MAGIC);
        out.put_u32(FORMAT_VERSION);
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
        assert_eq!(out.len(), ROOT_BYTES, "a root fills its slot");
        codec::seal(&mut out, CRC_AT, 0);
        out
    }

    /// Parses the first [`ROOT_BYTES`] of a slot.
    ///
    /// # Errors
    /// If magic, version or checksum are wrong, or a number in it cannot be.
    pub fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        let bytes = Reader::new(bytes).take(ROOT_BYTES)?;
        let mut r = Reader::new(bytes);
        r.expect(&ROOT_MAGIC)?;
        r.expect(&FORMAT_VERSION.to_le_bytes())?;
        codec::check_seal(bytes, CRC_AT, 0)?;
        r.u32()?;
        let index_id = r.u128()?;
        let generation = Generation(r.u64()?);
        let dimension = r.u32()? as usize;
        let metric = match (r.at(), r.u32()?) {
            (_, 1) => Metric::Cosine,
            (_, 2) => Metric::L2,
            (_, 3) => Metric::Dot,
            (at, other) => return Err(FormatError::new(at, format!("metric 1, 2 or 3 expected, {other} found"))),
        };
        let geometry = Geometry {
            dimension,
            metric,
            shard_size: r.u32()? as usize,
            bloom_bytes: r.u32()? as usize,
            page_size: r.u32()? as usize,
            sector_size: r.u32()? as usize,
            wal_segment_size: r.u64()?,
        }
        .validated()?;
        Self {
            index_id,
            generation,
            geometry,
            checkpoint: Lsn(r.u64()?),
            epoch: r.u64()?,
            wal_start: WalPosition { seq: r.u64()?, offset: r.u64()? },
            directory: Entry::decode(&mut r)?,
            shard_numbers: r.u32()?,
            shards: r.u32()?,
            live: r.u64()?,
            removed: r.u64()?,
            draws: r.u64()?,
            splits: r.u64()?,
            data_pages: r.u64()?,
            wal_segments: r.u32()?,
            cells: Entry::decode(&mut r)?,
            merges: r.u32()?,
        }
        .validated()
    }

    /// Checks numbers that came from a disk, so that no later arithmetic overflows and nothing is allocated that the data
    /// file does not bear out.
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
            // In bytes that too is no more than a file may have.
            (160, "count of pages", self.data_pages.saturating_mul(self.geometry.page_size as u64)),
        ];
        if let Some((at, what, n)) = counts.into_iter().find(|&(.., n)| n > MAX_COUNT) {
            return Err(FormatError::new(at, format!("{what} {n} is more than {MAX_COUNT}")));
        }
        let offset = self.wal_start.offset;
        let frames = self.geometry.sector_size as u64..self.geometry.wal_segment_size;
        if !frames.contains(&offset) || !offset.is_multiple_of(FRAME_ALIGN as u64) {
            return Err(FormatError::new(96, format!("no frame starts at byte {offset} of a segment")));
        }
        // Each number was given to a shard while all lower ones were in use, and each shard has an extent of its own.
        let extents = self.data_pages.saturating_sub(1) / u64::from(self.geometry.extent_pages());
        if u64::from(self.shard_numbers) > extents || self.shards > self.shard_numbers {
            let (shards, numbers) = (self.shards, self.shard_numbers);
            let what = format!("{shards} shards of {numbers} numbers in a file with room for {extents}");
            return Err(FormatError::new(120, what));
        }
        Ok(self)
    }
}
