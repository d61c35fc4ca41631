//! Shard state: all data of a shard except its vectors and postings.
//!
//! A flush writes the state of each changed shard into a new allocation. The checksum of the state is in the directory.

use bytemuck::allocation::pod_collect_to_vec;

use super::{
    FormatError,
    block::{BlockKind, has_header},
    codec::{Put as _, Reader},
    geometry::{BLOCK_HEADER_BYTES, IndexParams, STATE_SPARE_BYTES, StateLayout},
    node::BlockPointer,
};
use crate::{id::ShardId, limits::MAX_NORM};

/// First bytes of a shard state of version 1, which has no tags.
pub const STATE_MAGIC_1: [u8; 4] = *b"SHST";
/// First bytes of a shard state of version 2. Later ones begin with a block header.
pub const STATE_MAGIC_2: [u8; 4] = *b"SHS2";

/// Entry of an extent in a shard state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExtentState {
    /// First page in the data file.
    pub page: u64,
    /// CRC32C of the used slots.
    pub crc: u32,
}

/// Sum of the live vectors of a shard, and its routing centroid.
#[derive(Clone, Debug, PartialEq)]
pub enum CentroidState {
    /// Both.
    Separate {
        /// Sum of the live vectors.
        sum: Vec<f64>,
        /// Routing centroid.
        centroid: Vec<f32>,
    },
    /// The bytes of a stored vector that is both. Only in version 3.
    One(Vec<u8>),
}

/// Bit in the flags of a state: a stored vector takes the place of the sum and the centroid.
const ONE_VECTOR: u32 = 1;
/// Bit in the flags of a state: the bits of the former slots follow.
const FORMER: u32 = 2;

/// Describes why a vector is no routing centroid; `None` if it may be one.
#[must_use]
pub fn unfit_centroid(centroid: &[f32]) -> Option<String> {
    // The norm of a mean is at most the largest norm of the vectors. The tolerance of 0.1 % covers rounding errors.
    let norm = centroid.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>().sqrt();
    let fits = norm.is_finite() && norm <= 1.001 * MAX_NORM;
    (!fits).then(|| format!("a centroid of norm {norm:e}"))
}

/// Checked shard state.
#[derive(Clone, Debug, PartialEq)]
pub struct ShardState {
    /// Shard number: index of the shard in the directory.
    pub number: u32,
    /// Shard id.
    pub id: ShardId,
    /// Number of used slots, including slots with a tombstone.
    pub len: u32,
    /// Number of used slots without a tombstone.
    pub live: u32,
    /// Extents in slot order. Their number is that which `len` slots need.
    pub extents: Vec<ExtentState>,
    /// Tombstones: one bit per slot, set if the posting is removed, in whole 64-bit words.
    pub tombstones: Vec<u64>,
    /// Bloom filter of document ids.
    pub bloom: Vec<u64>,
    /// Sum of the live vectors, and routing centroid.
    pub means: CentroidState,
    /// Pages of tags in slot order, as many as `len` slots need. A page that is not stored holds zeros.
    pub tags: Vec<BlockPointer>,
    /// Slots before the last rewrite, by which cells may know the postings. Only in version 3.
    pub former: Option<FormerState>,
}

/// Slots that a shard had under another id, before it was rewritten.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FormerState {
    /// The id that it had.
    pub id: ShardId,
    /// Number of slots that it had.
    pub slots: u32,
    /// One bit per former slot, in whole 64-bit words: set if its posting was kept. The kept ones have the first present
    /// slots, in the same order.
    pub kept: Vec<u64>,
}

impl ShardState {
    fn layout(&self, version: u32) -> StateLayout {
        StateLayout {
            slots: self.len as usize,
            version,
            is_one: matches!(self.means, CentroidState::One(_)),
            former: self.former.as_ref().map(|former| former.slots as usize),
        }
    }

    /// Encodes the state in a format version. Version 1 has no tags. Version 3 begins with room for the block header.
    ///
    /// # Panics
    /// Panics if the fields do not have the lengths that `len` and `geometry` imply.
    #[must_use]
    pub fn encode(&self, geometry: &IndexParams, version: u32) -> Vec<u8> {
        let layout = self.layout(version);
        assert!(version > 2 || !layout.is_one && layout.former.is_none(), "older versions have neither");
        let bytes = geometry.state_bytes(&layout);
        let mut out = Vec::with_capacity(bytes);
        if version < 3 {
            out.put(if version == 1 { &STATE_MAGIC_1 } else { &STATE_MAGIC_2 });
            out.put_u32(self.number);
        } else {
            out.resize(BLOCK_HEADER_BYTES, 0);
        }
        out.put_u128(self.id.0);
        out.put_u32(self.len);
        out.put_u32(self.live);
        let of_former = if layout.former.is_some() { FORMER } else { 0 };
        out.put_u32(of_former | if layout.is_one { ONE_VECTOR } else { 0 });
        out.put_u32(0);
        for extent in &self.extents {
            out.put_u64(extent.page);
            out.put_u32(extent.crc);
            out.put_u32(0);
        }
        // The words are copied in memory order. It equals the order on disk because only little-endian targets compile.
        out.put(bytemuck::cast_slice(&self.tombstones));
        out.put(bytemuck::cast_slice(&self.bloom));
        if version > 2 {
            self.tags.iter().for_each(|page| page.encode(&mut out));
        }
        match &self.means {
            CentroidState::Separate { sum, centroid } => {
                out.put(bytemuck::cast_slice(sum));
                out.put(bytemuck::cast_slice(centroid));
            }
            CentroidState::One(vector) => out.put(vector),
        }
        if version == 2 {
            self.tags.iter().for_each(|page| page.encode(&mut out));
        }
        if let Some(FormerState { id, slots, kept }) = &self.former {
            out.put_u128(id.0);
            out.put_u32(*slots);
            out.put_u32(0);
            out.put(bytemuck::cast_slice(kept));
        }
        if version == 2 {
            out.resize(out.len() + STATE_SPARE_BYTES, 0);
        }
        assert_eq!(out.len(), bytes, "a state of another size than it says");
        out
    }

    /// Returns the format version of an encoded state, by its first bytes.
    #[must_use]
    pub fn version(bytes: &[u8]) -> u32 {
        match bytes {
            _ if bytes.starts_with(&STATE_MAGIC_1) => 1,
            _ if has_header(bytes, BlockKind::State) => 3,
            _ => 2,
        }
    }

    /// Parses the state of shard `number`. The block header of version 3 is checked elsewhere.
    ///
    /// # Errors
    /// Returns `FormatError` if the bytes are not a state of that shard, or if its counts contradict each other. Also
    /// returns it if the sum or the centroid is not finite, or if the centroid's norm is too large.
    pub fn decode(bytes: &[u8], geometry: &IndexParams, number: u32) -> Result<Self, FormatError> {
        let mut r = Reader::new(bytes);
        let version = Self::version(bytes);
        if version < 3 {
            r.expect(if version == 1 { &STATE_MAGIC_1 } else { &STATE_MAGIC_2 })?;
            r.expect(&number.to_le_bytes())?;
        } else {
            r.take(BLOCK_HEADER_BYTES)?;
        }
        let id = ShardId(r.u128()?);
        let at = r.at();
        let (len, live) = (r.u32()?, r.u32()?);
        let (at_flags, flags) = (r.at(), r.u32()?);
        r.expect(&[0; 4])?;
        if flags & !if version < 3 { 0 } else { ONE_VECTOR | FORMER } != 0 {
            return Err(FormatError::new(at_flags, format!("flags {flags:#x} of a state of version {version}")));
        }
        let slots = len as usize;
        if slots > geometry.shard_size || live > len {
            return Err(FormatError::new(at, format!("{live} live of {slots} slots, {} at most", geometry.shard_size)));
        }
        let is_one = flags & ONE_VECTOR != 0;
        let former = (flags & FORMER != 0)
            .then(|| former_slots(bytes, geometry, StateLayout { is_one, ..StateLayout::of(slots, version) }));
        let former = former.transpose()?;
        let expected = geometry.state_bytes(&StateLayout { slots, version, is_one, former });
        if bytes.len() != expected {
            return Err(FormatError::new(at, format!("{expected} bytes expected, {} found", bytes.len())));
        }
        let extents = decode_extents(&mut r, slots.div_ceil(geometry.extent_slots))?;
        let tombstones = decode_tombstones(&mut r, len, live)?;
        let bloom: Vec<u64> = pod_collect_to_vec(r.take(geometry.bloom_bytes)?);
        let mut tags = Vec::new();
        if version > 2 {
            tags = decode_tags(&mut r, slots, geometry)?;
        }
        let means = match is_one {
            true => CentroidState::One(r.take(geometry.vector_bytes())?.to_vec()),
            false => decode_means(&mut r, geometry)?,
        };
        match version {
            1 => tags = vec![BlockPointer::default(); geometry.tag_pages(slots)],
            2 => {
                tags = decode_tags(&mut r, slots, geometry)?;
                r.expect(&[0; STATE_SPARE_BYTES])?;
            }
            _ => {}
        }
        let former = former.map(|_| decode_former(&mut r, slots)).transpose()?;
        Ok(Self { number, id, len, live, extents, tombstones, bloom, means, tags, former })
    }
}

fn decode_extents(r: &mut Reader<'_>, count: usize) -> Result<Vec<ExtentState>, FormatError> {
    let extent = |_| {
        let extent = ExtentState { page: r.u64()?, crc: r.u32()? };
        r.expect(&[0; 4])?;
        Ok(extent)
    };
    (0..count).map(extent).collect()
}

fn decode_tombstones(r: &mut Reader<'_>, len: u32, live: u32) -> Result<Vec<u64>, FormatError> {
    let (at, slots) = (r.at(), len as usize);
    let tombstones: Vec<u64> = pod_collect_to_vec(r.take(slots.div_ceil(64) * 8)?);
    let removed: u32 = tombstones.iter().map(|word| word.count_ones()).sum();
    if removed != len - live {
        return Err(FormatError::new(at, format!("{removed} tombstones, {live} live of {len} slots")));
    }
    if !slots.is_multiple_of(64) && tombstones.last().is_some_and(|word| word >> (slots % 64) != 0) {
        return Err(FormatError::new(at, "a tombstone lies past the last slot"));
    }
    Ok(tombstones)
}

/// Reads the number of former slots of a state, of which `layout` describes the rest.
fn former_slots(bytes: &[u8], geometry: &IndexParams, layout: StateLayout) -> Result<usize, FormatError> {
    let mut r = Reader::new(bytes);
    r.take(geometry.state_bytes(&layout))?;
    r.u128()?;
    let (at, slots) = (r.at(), r.u32()? as usize);
    if slots == 0 || slots > geometry.shard_size {
        return Err(FormatError::new(at, format!("{slots} former slots, {} at most", geometry.shard_size)));
    }
    Ok(slots)
}

fn decode_former(r: &mut Reader<'_>, slots: usize) -> Result<FormerState, FormatError> {
    let (id, former) = (ShardId(r.u128()?), r.u32()?);
    r.expect(&[0; 4])?;
    let at = r.at();
    let kept: Vec<u64> = pod_collect_to_vec(r.take((former as usize).div_ceil(64) * 8)?);
    let beyond = !former.is_multiple_of(64) && kept.last().is_some_and(|word| word >> (former % 64) != 0);
    let count: u32 = kept.iter().map(|word| word.count_ones()).sum();
    if beyond || count as usize > slots {
        return Err(FormatError::new(at, format!("{count} of {former} former slots in {slots} slots")));
    }
    Ok(FormerState { id, slots: former, kept })
}

fn decode_means(r: &mut Reader<'_>, geometry: &IndexParams) -> Result<CentroidState, FormatError> {
    let sum: Vec<f64> = pod_collect_to_vec(r.take(geometry.dimension * 8)?);
    let at = r.at();
    let centroid: Vec<f32> = pod_collect_to_vec(r.take(geometry.dimension * 4)?);
    if !centroid.iter().all(|n| n.is_finite()) || !sum.iter().all(|n| n.is_finite()) {
        return Err(FormatError::new(at, "a sum or a centroid is not finite"));
    }
    match unfit_centroid(&centroid) {
        Some(what) => Err(FormatError::new(at, what)),
        None => Ok(CentroidState::Separate { sum, centroid }),
    }
}

fn decode_tags(r: &mut Reader<'_>, slots: usize, geometry: &IndexParams) -> Result<Vec<BlockPointer>, FormatError> {
    let page = |r: &mut Reader<'_>| {
        let (at, page) = (r.at(), BlockPointer::decode(r)?);
        if !page.is_none() && page.len as usize != geometry.page_size {
            return Err(FormatError::new(at, format!("a page of tags of {} bytes", page.len)));
        }
        Ok(page)
    };
    (0..geometry.tag_pages(slots)).map(|_| page(r)).collect()
}
