//! A shard's state: all of a shard but its vectors and postings.
//!
//! Written to a new place at each flush that changed the shard; its checksum is in the directory.

use bytemuck::allocation::pod_collect_to_vec;

use super::{
    FormatError,
    codec::{Put as _, Reader},
    geometry::Geometry,
};
use crate::{id::ShardId, limits::MAX_NORM};

/// First bytes of a state.
pub const STATE_MAGIC: [u8; 4] = *b"SHST";
const FIXED_BYTES: usize = 40;
const EXTENT_BYTES: usize = 16;

/// An extent as a state names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExtentState {
    /// First page in the data file.
    pub page: u64,
    /// CRC32C of the used slots.
    pub crc: u32,
}

/// A checked shard state.
#[derive(Clone, Debug, PartialEq)]
pub struct ShardState {
    /// The shard's number: its place in the directory.
    pub number: u32,
    /// The shard's name.
    pub id: ShardId,
    /// Slots used, removed ones too.
    pub len: u32,
    /// Slots used and not removed.
    pub live: u32,
    /// Extents, as many as `len` needs.
    pub extents: Vec<ExtentState>,
    /// One bit per slot, set when removed; whole 64-bit words.
    pub tombstones: Vec<u64>,
    /// Bloom filter over document ids.
    pub bloom: Vec<u64>,
    /// Sum of the live vectors.
    pub sum: Vec<f64>,
    /// The routing centroid.
    pub centroid: Vec<f32>,
}

/// Bytes of the state of a shard with `len` used slots.
#[must_use]
pub fn encoded_len(geometry: &Geometry, len: usize) -> usize {
    FIXED_BYTES
        + len.div_ceil(geometry.extent_slots()) * EXTENT_BYTES
        + len.div_ceil(64) * 8
        + geometry.bloom_bytes
        + geometry.dimension * 12
}

impl ShardState {
    /// The state's bytes.
    #[must_use]
    pub fn encode(&self, geometry: &Geometry) -> Vec<u8> {
        let mut out = Vec::with_capacity(encoded_len(geometry, self.len as usize));
        out.put(&STATE_MAGIC);
        out.put_u32(self.number);
        out.put_u128(self.id.0);
        out.put_u32(self.len);
        out.put_u32(self.live);
        out.put_u64(0);
        for extent in &self.extents {
            out.put_u64(extent.page);
            out.put_u32(extent.crc);
            out.put_u32(0);
        }
        // As they lie in memory, which is little-endian on every target this compiles for.
        out.put(bytemuck::cast_slice(&self.tombstones));
        out.put(bytemuck::cast_slice(&self.bloom));
        out.put(bytemuck::cast_slice(&self.sum));
        out.put(bytemuck::cast_slice(&self.centroid));
        assert_eq!(out.len(), encoded_len(geometry, self.len as usize), "a state of another size than it says");
        out
    }

    /// Parses the state of shard `number`.
    ///
    /// # Errors
    /// If it is not a state of that shard, or its numbers contradict each other.
    pub fn decode(bytes: &[u8], geometry: &Geometry, number: u32) -> Result<Self, FormatError> {
        let mut r = Reader::new(bytes);
        r.expect(&STATE_MAGIC)?;
        r.expect(&number.to_le_bytes())?;
        let id = ShardId(r.u128()?);
        let at = r.at();
        let (len, live) = (r.u32()?, r.u32()?);
        r.u64()?;
        let slots = len as usize;
        if slots > geometry.shard_size || live > len {
            return Err(FormatError::new(at, format!("{live} live of {slots} slots, {} at most", geometry.shard_size)));
        }
        if bytes.len() != encoded_len(geometry, slots) {
            let expected = encoded_len(geometry, slots);
            return Err(FormatError::new(at, format!("{expected} bytes expected, {} found", bytes.len())));
        }
        let extents = (0..slots.div_ceil(geometry.extent_slots()))
            .map(|_| {
                let extent = ExtentState { page: r.u64()?, crc: r.u32()? };
                r.u32()?;
                Ok(extent)
            })
            .collect::<Result<Vec<_>, FormatError>>()?;
        let at = r.at();
        let tombstones: Vec<u64> = pod_collect_to_vec(r.take(slots.div_ceil(64) * 8)?);
        let removed: u32 = tombstones.iter().map(|word| word.count_ones()).sum();
        if removed != len - live {
            return Err(FormatError::new(at, format!("{removed} tombstones, {live} live of {len} slots")));
        }
        if !slots.is_multiple_of(64) && tombstones.last().is_some_and(|word| word >> (slots % 64) != 0) {
            return Err(FormatError::new(at, "a tombstone lies past the last slot"));
        }
        let bloom: Vec<u64> = pod_collect_to_vec(r.take(geometry.bloom_bytes)?);
        let sum: Vec<f64> = pod_collect_to_vec(r.take(geometry.dimension * 8)?);
        let at = r.at();
        let centroid: Vec<f32> = pod_collect_to_vec(r.take(geometry.dimension * 4)?);
        if !centroid.iter().all(|n| n.is_finite()) || !sum.iter().all(|n| n.is_finite()) {
            return Err(FormatError::new(at, "a sum or a centroid is not finite"));
        }
        // A mean of vectors is no longer than the longest, but for what rounding adds.
        let norm = centroid.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>().sqrt();
        if norm > 1.001 * MAX_NORM {
            return Err(FormatError::new(at, format!("a centroid of norm {norm:e}")));
        }
        Ok(Self { number, id, len, live, extents, tombstones, bloom, sum, centroid })
    }
}
