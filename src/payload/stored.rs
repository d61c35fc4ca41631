//! Bytes of one payload, and its entry.

use std::{fmt, ops::Deref, sync::Arc};

use crate::{
    error::{Result, ShardexError},
    failpoint::holds,
    format::{
        bucket::{ENTRY_BYTES, PayloadBytes, PayloadEntry, PayloadOwner, PayloadRun, RUN_BYTES},
        crc32c,
    },
    lease::Lease,
    shard::DataFile,
    storage::StorageFile,
};

/// Run of bytes in a block of the data file.
#[derive(Clone)]
struct LeasedRun<L> {
    block: Lease<L>,
    offset: u32,
    len: u32,
}

impl<L: Deref<Target = [u8]>> LeasedRun<L> {
    fn bytes(&self) -> &[u8] {
        &self.block[self.offset as usize..(self.offset + self.len) as usize]
    }

    fn stored(&self) -> PayloadRun {
        let block = self.block.allocation().run();
        PayloadRun { page: block.page, pages: block.pages, offset: self.offset, len: self.len }
    }
}

/// Location of the bytes of an entry.
#[derive(Clone)]
enum Location<L> {
    Inline(Arc<[u8]>),
    /// The usual case, without an allocation of memory.
    One(LeasedRun<L>),
    Many(Arc<[LeasedRun<L>]>),
}

/// Entry of an owner: its bytes, or leases of them.
#[derive(Clone)]
pub struct StoredPayload<L> {
    owner: PayloadOwner,
    len: u32,
    crc: u32,
    location: Location<L>,
}

impl<L> fmt::Debug for StoredPayload<L> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StoredPayload").field("owner", &self.owner).field("len", &self.len).finish_non_exhaustive()
    }
}

impl<L: Deref<Target = [u8]> + Clone> StoredPayload<L> {
    /// Creates an entry that holds its bytes.
    #[must_use]
    pub fn inline(owner: PayloadOwner, bytes: &[u8]) -> Self {
        Self { owner, len: bytes.len() as u32, crc: crc32c(0, bytes), location: Location::Inline(bytes.into()) }
    }

    /// Creates an entry that was read from disk and holds its bytes.
    #[must_use]
    pub fn inline_with(owner: PayloadOwner, crc: u32, bytes: &[u8]) -> Self {
        Self { owner, len: bytes.len() as u32, crc, location: Location::Inline(bytes.into()) }
    }

    /// Creates an entry whose bytes are in runs. Each run is a lease of the start of a block, an offset and a length.
    #[must_use]
    pub fn in_runs(owner: PayloadOwner, crc: u32, runs: impl IntoIterator<Item = (Lease<L>, u32, u32)>) -> Self {
        let mut runs: Vec<LeasedRun<L>> =
            runs.into_iter().map(|(block, offset, len)| LeasedRun { block, offset, len }).collect();
        let len = runs.iter().map(|run| run.len).sum();
        let location = match runs.len() {
            1 => Location::One(runs.remove(0)),
            _ => Location::Many(runs.into()),
        };
        Self { owner, len, crc, location }
    }

    /// Returns the owner.
    #[must_use]
    pub fn owner(&self) -> PayloadOwner {
        self.owner
    }

    /// Returns the number of bytes.
    #[must_use]
    pub fn len(&self) -> u32 {
        self.len
    }

    /// Reports whether the payload has no bytes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    fn leased(&self) -> &[LeasedRun<L>] {
        match &self.location {
            Location::Inline(_) => &[],
            Location::One(run) => std::slice::from_ref(run),
            Location::Many(runs) => runs,
        }
    }

    /// Iterates the runs.
    pub fn runs(&self) -> impl Iterator<Item = PayloadRun> {
        self.leased().iter().map(LeasedRun::stored)
    }

    /// Returns the length of the encoded entry in bytes.
    #[must_use]
    pub fn entry_bytes(&self) -> usize {
        ENTRY_BYTES
            + match &self.location {
                Location::Inline(bytes) => bytes.len(),
                Location::One(_) | Location::Many(_) => self.leased().len() * RUN_BYTES,
            }
    }

    /// Returns the entry to encode.
    #[must_use]
    pub fn entry(&self) -> PayloadEntry {
        let content = match &self.location {
            Location::Inline(bytes) => PayloadBytes::Inline(bytes.to_vec()),
            Location::One(_) | Location::Many(_) => PayloadBytes::Runs(self.runs().collect()),
        };
        PayloadEntry { owner: self.owner, len: self.len, crc: self.crc, content }
    }

    /// Returns the bytes, after checking their checksum in this call.
    ///
    /// # Errors
    /// Returns `Corruption` that names the first run if the checksum differs.
    #[cfg_attr(feature = "mutants", track_caller)]
    pub fn read<F: StorageFile<Lent = L>>(&self, data: &DataFile<F>) -> Result<Payload<L>> {
        let payload = Payload { content: self.clone() };
        let found = payload.runs().fold(0, crc32c);
        if !holds!(Checksum, found == self.crc) {
            let at = self.runs().next();
            let offset = at.map_or(0, |run| run.page * data.geometry().page_size as u64 + u64::from(run.offset));
            let what = format!("{}: checksum {:08x} expected, {found:08x} found", name(self.owner), self.crc);
            return Err(ShardexError::Corruption { file: data.path(), offset, what });
        }
        Ok(payload)
    }
}

/// Describes an owner in a message.
#[must_use]
pub fn name(owner: PayloadOwner) -> String {
    match owner {
        PayloadOwner::Cursor => "the cursor".into(),
        PayloadOwner::Document(document) => format!("the payload of document {document}"),
    }
}

/// Bytes of a payload, read in place.
///
/// They pin their part of the data file: it is not reused while this value exists. A long payload lies in several runs.
#[derive(Clone)]
pub struct Payload<L> {
    content: StoredPayload<L>,
}

impl<L: Deref<Target = [u8]> + Clone> Payload<L> {
    /// Returns the number of bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.content.len as usize
    }

    /// Reports whether the payload has no bytes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.content.len == 0
    }

    /// Iterates the runs of the payload in order.
    pub fn runs(&self) -> impl Iterator<Item = &[u8]> {
        let inline = match &self.content.location {
            Location::Inline(bytes) => Some(&**bytes),
            Location::One(_) | Location::Many(_) => None,
        };
        inline.into_iter().chain(self.content.leased().iter().map(LeasedRun::bytes))
    }

    /// Returns `length` bytes from byte `start` on, as text. The ends are moved outwards to the boundaries of characters,
    /// and limited to the payload.
    ///
    /// # Errors
    /// Returns `InvalidArgument` if these bytes are not UTF-8.
    pub fn snippet(&self, start: u32, length: u32) -> Result<String> {
        let bytes = self.to_vec();
        let is_inside = |at: usize| bytes.get(at).is_some_and(|byte| byte & 0xC0 == 0x80);
        let mut from = (start as usize).min(bytes.len());
        let mut to = from.saturating_add(length as usize).min(bytes.len());
        while from > 0 && is_inside(from) {
            from -= 1;
        }
        while is_inside(to) {
            to += 1;
        }
        let text = std::str::from_utf8(&bytes[from..to]).map_err(|e| ShardexError::InvalidArgument {
            argument: "start",
            reason: format!("the payload is not UTF-8 at byte {}", from + e.valid_up_to()),
        })?;
        Ok(text.to_owned())
    }

    /// Returns a copy of the payload.
    #[must_use]
    pub fn to_vec(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(self.len());
        self.runs().for_each(|run| bytes.extend_from_slice(run));
        bytes
    }
}

impl<L: Deref<Target = [u8]> + Clone> fmt::Debug for Payload<L> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Payload").field("len", &self.len()).finish_non_exhaustive()
    }
}
