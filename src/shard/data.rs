//! The data file: extents and metadata, stored only into free places.

use std::{
    path::PathBuf,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use crate::{
    error::Result,
    format::{
        codec::Put as _,
        geometry::{Geometry, POSTING_BYTES},
    },
    id::DocumentId,
    site::{self, Kind},
    space::Run,
    storage::{Purpose, StorageFile, SyncJob},
};

const GROW: Purpose = Purpose("data: grow");
const META: Purpose = Purpose("data: states and directory");
const CELLS: Purpose = Purpose("data: cells");

/// Why postings are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// They were added.
    Add,
    /// Their shard was split, or written anew without what was removed.
    Split,
    /// Their shard had shrunk and was taken apart.
    Merge,
}

impl Cause {
    fn purpose(self) -> Purpose {
        match self {
            Self::Add => Purpose("add: postings"),
            Self::Split => Purpose("split: postings"),
            Self::Merge => Purpose("merge: postings"),
        }
    }
}

/// A posting as a shard keeps it, its vector aside.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StoredPosting {
    /// The document.
    pub document_id: DocumentId,
    /// Where the part starts.
    pub start: u32,
    /// How long it is.
    pub length: u32,
    /// Under cosine the norm that the vector had; 1 otherwise.
    pub norm: f32,
}

impl StoredPosting {
    /// Appends the record's bytes.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.put_u128(self.document_id.0);
        out.put_u32(self.start);
        out.put_u32(self.length);
        out.put_u32(self.norm.to_bits());
        out.put_u32(0);
    }

    /// Reads a record whose bytes were checked.
    ///
    /// # Panics
    /// If `record` is not [`POSTING_BYTES`] long.
    #[must_use]
    pub fn decode(record: &[u8]) -> Self {
        assert_eq!(record.len(), POSTING_BYTES);
        let word = |at: usize| {
            let mut raw = [0; 4];
            raw.copy_from_slice(&record[at..at + 4]);
            u32::from_le_bytes(raw)
        };
        let mut id = [0; 16];
        id.copy_from_slice(&record[..16]);
        Self {
            document_id: DocumentId(u128::from_le_bytes(id)),
            start: word(16),
            length: word(20),
            norm: f32::from_bits(word(24)),
        }
    }
}

/// What the next sync must cover.
#[derive(Debug, Default)]
struct Unsynced {
    range: Option<(u64, u64)>,
    grown: bool,
}

/// The data file and what was stored in it since its last sync.
#[derive(Debug)]
pub struct DataFile<F> {
    file: Arc<F>,
    geometry: Geometry,
    unsynced: Mutex<Unsynced>,
    bytes_stored: AtomicU64,
}

impl<F: StorageFile> DataFile<F> {
    /// Wraps an open file.
    #[must_use]
    pub fn new(file: Arc<F>, geometry: Geometry) -> Self {
        Self { file, geometry, unsynced: Mutex::default(), bytes_stored: AtomicU64::new(0) }
    }

    /// The file itself.
    #[must_use]
    pub fn file(&self) -> &Arc<F> {
        &self.file
    }

    /// The index's geometry.
    #[must_use]
    pub fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    /// The file's path.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        self.file.path()
    }

    /// Bytes stored so far.
    #[must_use]
    pub fn bytes_stored(&self) -> u64 {
        self.bytes_stored.load(Ordering::Relaxed)
    }

    /// The first byte of a run.
    #[must_use]
    pub fn offset(&self, run: Run) -> u64 {
        // A run that a disk names may lie anywhere.
        run.page.saturating_mul(self.geometry.page_size as u64)
    }

    /// Makes the file `pages` pages long.
    ///
    /// # Errors
    /// `OutOfSpace`, `Io`.
    pub fn grow(&self, pages: u64) -> Result<()> {
        self.file.allocate(pages * self.geometry.page_size as u64, GROW)?;
        self.unsynced.lock().unwrap_or_else(PoisonError::into_inner).grown |= site::applies(Kind::Ordering, true);
        Ok(())
    }

    /// Lends the used slots of an extent.
    ///
    /// # Errors
    /// `Io`.
    pub fn lend(&self, run: Run, used: u32) -> Result<F::Lent> {
        self.file.lend(self.offset(run), used as usize * self.geometry.slot_bytes())
    }

    /// Stores whole slots into an extent from slot `slot` on.
    ///
    /// # Errors
    /// `OutOfSpace`, `Io`.
    pub fn store(&self, run: Run, slot: u32, slots: &[u8], cause: Cause) -> Result<()> {
        let at = slot as usize * self.geometry.slot_bytes();
        self.write(self.offset(run) + at as u64, slots, cause.purpose())
    }

    /// Stores metadata into a run.
    ///
    /// # Errors
    /// `OutOfSpace`, `Io`.
    pub fn store_meta(&self, run: Run, bytes: &[u8]) -> Result<()> {
        self.write(self.offset(run), bytes, META)
    }

    /// Stores cells into a run.
    ///
    /// # Errors
    /// `OutOfSpace`, `Io`.
    pub fn store_cells(&self, run: Run, bytes: &[u8]) -> Result<()> {
        self.write(self.offset(run), bytes, CELLS)
    }

    fn write(&self, offset: u64, bytes: &[u8], purpose: Purpose) -> Result<()> {
        // Noted before the store: one that fails may have stored a part.
        {
            let mut unsynced = self.unsynced.lock().unwrap_or_else(PoisonError::into_inner);
            let end = offset + bytes.len() as u64;
            unsynced.range = Some(match unsynced.range {
                Some((from, to)) => (from.min(offset), to.max(end)),
                None => (offset, end),
            });
        }
        self.file.write_at(offset, bytes, purpose)?;
        self.bytes_stored.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        Ok(())
    }

    /// The sync that makes all of it durable; `None` if nothing was stored since the last one.
    pub fn sync_job(&self, purpose: Purpose) -> Option<SyncJob<F>> {
        let mut unsynced = self.unsynced.lock().unwrap_or_else(PoisonError::into_inner);
        let Unsynced { range, grown } = std::mem::take(&mut *unsynced);
        match (range, grown) {
            // R4: a sync of a range makes no length durable, and what lies past the durable length is lost.
            (_, true) => Some(SyncJob::all(&self.file, purpose)),
            (Some((from, to)), false) => Some(SyncJob::range(&self.file, from, to, purpose)),
            (None, false) => None,
        }
    }
}
