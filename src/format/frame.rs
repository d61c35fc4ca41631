//! WAL frames: a frame holds a record or a piece of one, and the fields that identify it as the next frame of its
//! epoch.
//!
//! Every frame has its own LSN, except padding, which repeats the LSN of the frame before it. The checksum starts from
//! the index id and the epoch, so a frame of another epoch never passes. Within an epoch an LSN is never assigned to
//! different bytes.

use super::{
    FormatError,
    codec::{self, Put as _, Reader},
};

/// Length of a frame header in bytes.
pub const FRAME_HEADER_BYTES: usize = 32;
/// Alignment of frames in bytes.
pub const FRAME_ALIGN: usize = 8;

/// Kind of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FrameKind {
    /// Postings to add.
    Add,
    /// Documents to remove.
    Remove,
    /// Padding: fills a commit up to the end of its sector, or a segment up to its end.
    Pad,
    /// Closing mark: the index was closed here. No frame follows in this epoch.
    Close,
    /// Batch of version 2.
    Batch,
    /// Maintenance of version 3: work that changes shards and no posting.
    Maintenance,
    /// Purge of version 3: shards that are rewritten as their live postings alone make them.
    Purge,
    /// Kind of a later version, which this build cannot read.
    Unknown(u8),
}

impl FrameKind {
    fn code(self) -> u8 {
        match self {
            Self::Add => 1,
            Self::Remove => 2,
            Self::Pad => 3,
            Self::Close => 4,
            Self::Batch => 5,
            Self::Maintenance => 6,
            Self::Purge => 7,
            Self::Unknown(code) => code,
        }
    }

    fn of(code: u8) -> Self {
        match code {
            1 => Self::Add,
            2 => Self::Remove,
            3 => Self::Pad,
            4 => Self::Close,
            5 => Self::Batch,
            6 => Self::Maintenance,
            7 => Self::Purge,
            other => Self::Unknown(other),
        }
    }
}

/// Frame header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame {
    /// Kind of the frame.
    pub kind: FrameKind,
    /// True if a record starts in this frame.
    pub first: bool,
    /// True if a record ends in this frame.
    pub last: bool,
    /// LSN of the frame.
    pub lsn: u64,
    /// Last LSN known to be durable when the frame was made.
    pub durable: u64,
    /// Length of the payload in bytes.
    pub len: u32,
    /// Number of bytes after the payload that belong to this frame.
    pub slack: u16,
}

/// Returns the initial value of the frame checksums of an epoch.
#[must_use]
pub fn seed(index_id: u128, epoch: u64) -> u32 {
    super::crc32c(super::crc32c(0, &index_id.to_le_bytes()), &epoch.to_le_bytes())
}

impl Frame {
    /// Returns the number of bytes from this frame to the next one.
    #[must_use]
    pub fn size(&self) -> usize {
        FRAME_HEADER_BYTES + self.len as usize + usize::from(self.slack)
    }

    /// Returns the frame size that a header claims. The header is not verified.
    #[must_use]
    pub fn claimed_size(header: &[u8]) -> usize {
        let mut r = Reader::new(header.get(4..).unwrap_or_default());
        let len = r.u32().unwrap_or(u32::MAX) as usize;
        let mut r = Reader::new(header.get(26..).unwrap_or_default());
        FRAME_HEADER_BYTES + len + usize::from(r.u16().unwrap_or(u16::MAX))
    }

    /// Appends the header, the payload and the slack to `out`.
    ///
    /// # Panics
    /// Panics if the total length of `parts` is not `len`, which is a mistake of the caller.
    pub fn encode<'a>(&self, seed: u32, parts: impl IntoIterator<Item = &'a [u8]>, out: &mut Vec<u8>) {
        let start = out.len();
        out.put_u32(0);
        out.put_u32(self.len);
        out.put_u64(self.lsn);
        out.put_u64(self.durable);
        out.put(&[self.kind.code(), u8::from(self.first) | u8::from(self.last) << 1]);
        out.put(&self.slack.to_le_bytes());
        out.put_u32(0);
        for part in parts {
            out.put(part);
        }
        assert_eq!(out.len() - start, FRAME_HEADER_BYTES + self.len as usize, "a frame of another length than it says");
        out.resize(start + self.size(), 0);
        codec::seal(&mut out[start..], 0, seed);
    }

    /// Parses the frame at the start of `bytes`. Returns the header and the payload.
    ///
    /// A frame of an unknown kind is a frame: its checksum says that a later build wrote it.
    ///
    /// # Errors
    /// Returns `FormatError` if the bytes are not a frame of the epoch that `seed` belongs to.
    pub fn decode(bytes: &[u8], seed: u32) -> Result<(Self, &[u8]), FormatError> {
        let mut r = Reader::new(bytes);
        r.u32()?;
        let len = r.u32()?;
        let (lsn, durable) = (r.u64()?, r.u64()?);
        let kind = FrameKind::of(r.u8()?);
        let part = r.u8()?;
        let frame = Self { kind, first: part & 1 != 0, last: part & 2 != 0, lsn, durable, len, slack: r.u16()? };
        r.u32()?;
        let payload = r.take(len as usize)?;
        r.take(usize::from(frame.slack))?;
        codec::check_seal(&bytes[..frame.size()], 0, seed)?;
        if part > 3 || !frame.size().is_multiple_of(FRAME_ALIGN) {
            return Err(FormatError::new(0, "a frame of impossible shape"));
        }
        Ok((frame, payload))
    }
}
