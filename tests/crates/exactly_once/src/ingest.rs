//! The ingester: brings the changes of the source into the index, each exactly once.

use std::path::{Path, PathBuf};

use shardex::{
    Durability, Metric, OpenOptions, PostingKey, ShardexConfig, ShardexError, WriteBatch, blocking::Shardex,
};

use crate::{
    note::DIMENSION,
    source::{Action, Change, Source},
};

/// The log is trimmed when at least this many of its changes are durable in the index. Each trim costs a transaction.
const TRIM_CHANGES: i64 = 64;

/// Under [`Durability::Manual`] the ingester commits after this many batches.
const COMMIT_BATCHES: u64 = 6;

/// Error of the ingester.
#[derive(Debug, thiserror::Error)]
pub enum IngestError {
    /// The index refused a call.
    #[error(transparent)]
    Index(#[from] ShardexError),
    /// The source refused a call.
    #[error(transparent)]
    Source(#[from] rusqlite::Error),
    /// The cursor of the index was set by another program. To recover, use the right directory.
    #[error("the cursor \"{}\" is no sequence number: the index belongs to another source", .0.escape_ascii())]
    Cursor(Vec<u8>),
    /// The log no longer has the changes that the index needs next. To recover, build the index again from the notes.
    #[error("the index is at change {cursor}, and the log begins after change {trimmed}: build the index again")]
    Trimmed {
        /// Position of the index.
        cursor: i64,
        /// Last change that was removed from the log.
        trimmed: i64,
    },
    /// The index is ahead of the source, for example because the source was restored from an older copy. To recover, build
    /// the index again from the notes.
    #[error("the index is at change {cursor}, and the source ends at change {last}: build the index again")]
    Ahead {
        /// Position of the index.
        cursor: i64,
        /// Last change of the source.
        last: i64,
    },
}

/// Returns the file of the source in the directory of the application.
#[must_use]
pub fn source_file(dir: &Path) -> PathBuf {
    dir.join("notes.sqlite")
}

/// Opens the index in the directory of the application, and creates it if it is missing.
///
/// Shards, WAL and commit interval are small here, so that a short run splits and merges shards, flushes and commits often.
///
/// # Errors
/// Returns the errors of the index.
pub fn open_index(dir: &Path, durability: Durability) -> shardex::Result<Shardex> {
    let options = OpenOptions::default()
        .durability(durability)
        .batch_write_interval_ms(5)
        .flush_wal_bytes(256 << 10)
        .flush_on_close(false);
    Shardex::create(
        ShardexConfig::new(dir.join("index"))
            .vector_size(DIMENSION)
            .metric(Metric::L2)
            .shard_size(64)
            .wal_segment_size(64 << 10)
            .options(options),
    )
}

/// Writes a position as a cursor. The position before the first change is the empty cursor of a new index.
#[must_use]
pub fn encode(seq: i64) -> Vec<u8> {
    if seq == 0 { Vec::new() } else { seq.to_string().into_bytes() }
}

/// Reads the position in a cursor.
///
/// # Errors
/// Returns `Cursor` if it is none.
pub fn decode(cursor: Vec<u8>) -> Result<i64, IngestError> {
    if cursor.is_empty() {
        return Ok(0);
    }
    let seq = std::str::from_utf8(&cursor).ok().and_then(|text| text.parse().ok()).filter(|&seq| seq > 0);
    seq.ok_or(IngestError::Cursor(cursor))
}

/// Result of one batch of the ingester.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// Last change in the index.
    pub accepted: i64,
    /// Last change in the index that no crash can undo.
    pub durable: i64,
    /// Number of changes of the batch.
    pub changes: usize,
}

/// Ingester of one index. A second one on the same index would be refused by `set_cursor_if`.
#[derive(Debug)]
pub struct Ingester {
    source: Source,
    index: Shardex,
    durability: Durability,
    /// Maximum number of changes per batch.
    batch_changes: u32,
    /// Last change in the index.
    position: i64,
    /// Last change that was removed from the log.
    trimmed: i64,
    batches: u64,
}

impl Ingester {
    /// Opens source and index, and continues where the index is.
    ///
    /// # Errors
    /// Returns `Trimmed` or `Ahead` if the index and the source don't fit, and the errors of both.
    pub fn open(dir: &Path, durability: Durability, batch_changes: u32) -> Result<Self, IngestError> {
        let source = Source::open(&source_file(dir))?;
        let index = open_index(dir, durability)?;
        let cursor = decode(index.cursor()?)?;
        let (trimmed, last) = (source.trimmed_seq()?, source.last_seq()?);
        if cursor < trimmed {
            return Err(IngestError::Trimmed { cursor, trimmed });
        }
        if cursor > last {
            return Err(IngestError::Ahead { cursor, last });
        }
        Ok(Self { source, index, durability, batch_changes, position: cursor, trimmed, batches: 0 })
    }

    /// Returns the sequence number of the last change in the index.
    #[must_use]
    pub fn position(&self) -> i64 {
        self.position
    }

    /// Brings the next changes into the index, and trims the log if it pays. Returns `None` if there is no change.
    ///
    /// After an error of the index the batch may have been accepted. Drop the ingester and open it again: the cursor says
    /// whether it was.
    ///
    /// # Errors
    /// Returns the errors of the index and the source.
    pub fn step(&mut self) -> Result<Option<Step>, IngestError> {
        let changes = self.source.changes_after(self.position, self.batch_changes)?;
        let Some(last) = changes.last() else { return Ok(None) };
        let mut batch = WriteBatch::new();
        changes.iter().for_each(|change| add(&mut batch, change));
        // In the same batch: this is what makes it exactly once.
        batch.set_cursor_if(encode(last.seq), encode(self.position));
        self.index.write(batch)?;
        self.position = last.seq;
        self.batches += 1;
        if self.durability == Durability::Manual && self.batches.is_multiple_of(COMMIT_BATCHES) {
            self.index.commit()?;
        }
        let durable = self.trim(TRIM_CHANGES)?;
        Ok(Some(Step { accepted: self.position, durable, changes: changes.len() }))
    }

    /// Removes what is durable in the index from the log, if it is at least `least` changes. Returns the last durable
    /// change.
    fn trim(&mut self, least: i64) -> Result<i64, IngestError> {
        // Not `cursor`: a crash may undo it, and then the log must still have what it undid.
        let durable = decode(self.index.durable_cursor()?)?;
        if durable - self.trimmed >= least {
            self.source.trim(durable)?;
            self.trimmed = durable;
        }
        Ok(durable)
    }

    /// Ends in order: everything is durable, and the log is empty up to here.
    ///
    /// # Errors
    /// Returns the errors of the index and the source.
    pub fn close(mut self) -> Result<(), IngestError> {
        self.index.commit()?;
        self.trim(1)?;
        Ok(self.index.close()?)
    }
}

/// Adds the operations of a change to a batch.
fn add(batch: &mut WriteBatch, change: &Change) {
    match &change.action {
        Action::Upsert(note) => {
            batch
                .replace_document(change.note, note.postings(change.note))
                .set_payload(change.note, note.text.as_bytes());
        }
        // The text is the same, so the vectors and the payload stay.
        Action::Retag(note) => note.parts(change.note).for_each(|(key, _): (PostingKey, _)| {
            batch.set_tags(key, note.tags());
        }),
        Action::Remove => {
            batch.remove_document(change.note);
        }
    }
}
