//! Manifest of a backup: the root, and for each place of the data file that the root names, where its bytes are.
//!
//! A place is a page range with its used bytes. Extents and blocks of payloads grow in place, so page and checksum don't
//! name a content: its SHA-256 does.

use super::{
    FormatError,
    codec::{Put as _, Reader},
    header::VERSION_AT,
    root::Root,
};
use crate::{failpoint::holds, id::Lsn, tuning::MAX_COUNT};

/// First bytes of a manifest.
pub const MANIFEST_MAGIC: [u8; 8] = *b"SHXBACK\0";
/// Version of manifests.
pub const MANIFEST_VERSION: u32 = 1;

/// Largest length of a manifest in bytes: that of a backup of several terabytes.
pub const MANIFEST_MOST_BYTES: u64 = 1 << 30;

/// Length of the part with fixed fields.
const FIXED_BYTES: usize = 96;
/// Offset of the hash.
const HASH_AT: usize = 16;
/// Length of the entry of a pack.
const PACK_BYTES: usize = 16;
/// Length of the entry of a place.
const PLACE_BYTES: usize = 56;

/// Hash of a content, SHA-256.
pub type ContentHash = [u8; 32];

/// Returns the hash of `bytes`.
#[must_use]
pub fn content_hash(bytes: &[u8]) -> ContentHash {
    hmac_sha256::Hash::hash(bytes)
}

/// File of a backup that holds places, one after another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PackEntry {
    /// Number of the pack, which its name contains. A pack that a backup shares with an earlier one has the same number.
    pub number: u32,
    /// Length of the file in bytes.
    pub len: u64,
}

/// Place of the data file, and where its bytes are in the backup.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PlaceEntry {
    /// First page in the data file.
    pub page: u64,
    /// Used bytes from there on.
    pub len: u32,
    /// Position of its pack in the list of packs.
    pub pack: u32,
    /// Offset in the pack in bytes.
    pub offset: u64,
    /// Hash of the bytes.
    pub hash: ContentHash,
}

/// Content of a backup.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manifest {
    /// Time of the backup in milliseconds since 1970, by the clock of the system.
    pub unix_ms: u64,
    /// Root whose state the backup holds. It may name no cells where that of the index does.
    pub root: Root,
    /// Packs in ascending order of their numbers.
    pub packs: Vec<PackEntry>,
    /// Places in ascending order of their pages. None overlap.
    pub places: Vec<PlaceEntry>,
}

impl Manifest {
    /// Returns the LSN of the last write that the backup holds.
    #[must_use]
    pub fn lsn(&self) -> Lsn {
        self.root.checkpoint
    }

    /// Encodes the manifest.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let root = self.root.encode();
        let mut out = Vec::new();
        out.put(&MANIFEST_MAGIC);
        out.put_u32(MANIFEST_VERSION);
        out.put_u32(root.len() as u32);
        out.put(&ContentHash::default());
        out.put_u128(self.root.index_id);
        out.put_u64(self.root.checkpoint.0);
        out.put_u64(self.unix_ms);
        out.put_u32(self.packs.len() as u32);
        out.put_u32(0);
        out.put_u64(self.places.len() as u64);
        out.put(&root);
        for pack in &self.packs {
            out.put_u32(pack.number);
            out.put_u32(0);
            out.put_u64(pack.len);
        }
        for place in &self.places {
            out.put_u64(place.page);
            out.put_u64(place.offset);
            out.put_u32(place.len);
            out.put_u32(place.pack);
            out.put(&place.hash);
        }
        let hash = content_hash(&out);
        out[HASH_AT..HASH_AT + hash.len()].copy_from_slice(&hash);
        out
    }

    /// Parses a manifest.
    ///
    /// # Errors
    /// Returns `FormatError` if the magic, the version or the hash is wrong, or if a number is out of range.
    pub fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        let mut r = Reader::new(bytes);
        r.expect(&MANIFEST_MAGIC)?;
        let version = r.u32()?;
        if version != MANIFEST_VERSION {
            return Err(FormatError::new(VERSION_AT, format!("version {version}, {MANIFEST_VERSION} expected")));
        }
        let root_bytes = r.u32()? as usize;
        let stored = r.take(size_of::<ContentHash>())?;
        let mut unsealed = bytes.to_vec();
        unsealed[HASH_AT..HASH_AT + stored.len()].fill(0);
        if !holds!(Checksum, content_hash(&unsealed) == stored) {
            return Err(FormatError::new(HASH_AT, "its hash is that of other bytes"));
        }
        let (index_id, lsn, unix_ms) = (r.u128()?, r.u64()?, r.u64()?);
        let packs = r.u32()? as usize;
        r.expect(&[0; 4])?;
        let (at, places) = (r.at(), r.u64()?);
        let expected = FIXED_BYTES as u128
            + root_bytes as u128
            + packs as u128 * PACK_BYTES as u128
            + u128::from(places) * PLACE_BYTES as u128;
        if expected != bytes.len() as u128 {
            let what = format!("{packs} packs and {places} places in {} bytes", bytes.len());
            return Err(FormatError::new(at, what));
        }
        let (at, root) = (r.at(), Root::decode(r.take(root_bytes)?)?);
        if (root.index_id, root.checkpoint.0, root.encode().len()) != (index_id, lsn, root_bytes) {
            return Err(FormatError::new(at, "the root is that of another backup"));
        }
        let packs = (0..packs).map(|_| pack(&mut r)).collect::<Result<Vec<_>, _>>()?;
        if !packs.is_sorted_by(|a, b| a.number < b.number) {
            return Err(FormatError::new(r.at(), "the packs are not in the order of their numbers"));
        }
        let mut manifest = Self { unix_ms, root, packs, places: Vec::new() };
        let geometry = manifest.root.geometry;
        // No page range crosses the end of a chunk.
        let most = u64::from(geometry.chunk_pages()) * geometry.page_size as u64;
        let mut end = 1;
        for _ in 0..places {
            let at = r.at();
            let place = place(&mut r)?;
            let pages = u64::from(geometry.pages(place.len as usize));
            let is_in_file = place.page >= end && place.page.saturating_add(pages) <= manifest.root.data_pages;
            if !is_in_file || place.len == 0 || u64::from(place.len) > most {
                return Err(FormatError::new(at, format!("a place of {} bytes at page {}", place.len, place.page)));
            }
            end = place.page + pages;
            let room = manifest.packs.get(place.pack as usize).map_or(0, |pack| pack.len);
            if place.offset.saturating_add(u64::from(place.len)) > room {
                return Err(FormatError::new(at, format!("{} bytes at {} of a pack", place.len, place.offset)));
            }
            manifest.places.push(place);
        }
        Ok(manifest)
    }
}

fn pack(r: &mut Reader<'_>) -> Result<PackEntry, FormatError> {
    let at = r.at();
    let number = r.u32()?;
    r.expect(&[0; 4])?;
    let len = r.u64()?;
    if len > MAX_COUNT {
        return Err(FormatError::new(at, format!("a pack of {len} bytes")));
    }
    Ok(PackEntry { number, len })
}

fn place(r: &mut Reader<'_>) -> Result<PlaceEntry, FormatError> {
    let (page, offset, len, pack) = (r.u64()?, r.u64()?, r.u32()?, r.u32()?);
    let mut hash = ContentHash::default();
    hash.copy_from_slice(r.take(size_of::<ContentHash>())?);
    Ok(PlaceEntry { page, len, pack, offset, hash })
}
