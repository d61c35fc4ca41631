//! Ingest of a table.
//!
//! Invariants:
//! 1. Rows are accepted in their order, and the cursor says how many in the same batch. So after a crash or an error a
//!    second ingest continues exactly behind the last row that is in.
//! 2. A row that is refused changes nothing, nor do the rows of its batch before it.
//! 3. Memory is bounded by one batch of the file, one batch of the index, and the keys if they do not ascend.

use shardex::{Posting, PostingKey, ShardexError, WriteBatch, blocking::Shardex};

use crate::{
    columns::{ColumnNames, Layout, Part},
    cursor::Progress,
    error::{ColumnsError, IngestError, Result},
    keys::SeenKeys,
    observer::Observer,
    table::Table,
};

/// Bytes of vectors and payloads after which a batch of the index ends.
const BATCH_BYTES: usize = 8 << 20;

/// What an ingest does with the cursor of the index.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ResumePolicy {
    /// Continues behind the rows that are in, and keeps the progress in the cursor.
    #[default]
    Continue,
    /// Reads the file from its first row, and keeps the progress in the cursor.
    Restart,
    /// Reads the file from its first row. Neither reads nor sets the cursor.
    Ignore,
}

/// Options of [`ingest`].
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct IngestOptions {
    /// Columns to read.
    pub names: ColumnNames,
    /// Rows per batch of the index, at least 1. A batch also ends after 8 MiB. Default 1,000.
    pub batch_rows: usize,
    /// Whether a later row of a file may replace an earlier one with the same key. Default `false`: it is an error.
    ///
    /// Keys that ascend are compared without cost. Otherwise the keys of the file are kept in memory, 38 to 75 bytes per
    /// row, and the rows before the first key that does not ascend are read twice.
    pub allow_duplicates: bool,
    /// Use of the cursor. Default [`Continue`](ResumePolicy::Continue).
    pub resume: ResumePolicy,
}

impl IngestOptions {
    /// Returns the default options for these columns.
    #[must_use]
    pub fn new(names: ColumnNames) -> Self {
        Self { names, batch_rows: 1_000, allow_duplicates: false, resume: ResumePolicy::default() }
    }
}

/// Result of an ingest.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Ingested {
    /// Number of leading rows of the file that are in.
    pub rows_in: u64,
    /// How many of them were in before the call.
    pub rows_before: u64,
    /// Number of postings with a key that was not in the index before.
    pub added: u64,
    /// Number of postings that replaced one of the index.
    pub replaced: u64,
    /// Whether the observer stopped the ingest before the last row.
    pub is_stopped: bool,
    /// Whether rows of an earlier content of the file are in: it was read from its first row again, and rows that only
    /// the earlier content has stay in.
    pub has_changed: bool,
    /// Columns of the file that were not read.
    pub unread: Vec<String>,
}

impl Table {
    /// Returns the number of components of the vectors: that of the type of their column, otherwise that of the first
    /// row.
    ///
    /// # Errors
    /// Returns the errors of [`ingest`] up to the first row, and `NoDimension` if nothing says it.
    pub fn dimension(&self, names: &ColumnNames) -> Result<usize> {
        let layout = Layout::of(self, names, Part::Postings)?;
        if let Some(length) = layout.fixed_length()? {
            return Ok(length);
        }
        let Some(batch) = self.batches(&layout.projection, 0, 1, 1)?.next() else {
            return Err(ColumnsError::NoDimension { file: self.path().to_owned(), column: names.vector.clone() });
        };
        let (first, batch) = batch?;
        layout.columns(first, batch.columns())?.vector_length(0)
    }
}

/// Adds the rows of a table to an index. A row replaces the posting with its key, and sets the payload of its document.
///
/// When rows become durable depends on the durability mode of the index: commit after the call if it is not immediate. The
/// cursor of the index keeps the progress. A second call on the same file, with the same columns, continues where the
/// first one ended, also after a crash.
///
/// # Errors
/// Returns the first error, with the number of rows that are in. Nothing of the row at fault and of its batch is accepted.
pub fn ingest(
    index: &Shardex,
    table: &Table,
    options: &IngestOptions,
    observer: &mut dyn Observer,
) -> Result<Ingested, IngestError> {
    let mut load = match Load::begin(index, table, options) {
        Ok(load) => load,
        Err(cause) => return Err(IngestError { cause: cause.into(), rows_in: 0 }),
    };
    match load.run(observer) {
        Ok(()) => Ok(load.done),
        Err(cause) => Err(IngestError { cause: cause.into(), rows_in: load.done.rows_in }),
    }
}

/// Batch that is being filled.
#[derive(Default)]
struct Pending {
    batch: WriteBatch,
    /// Row of each operation of the batch.
    rows_of: Vec<u64>,
    rows: usize,
    bytes: usize,
}

impl Pending {
    fn add(&mut self, row: u64, posting: Posting, payload: Option<&[u8]>) {
        let document = posting.document_id;
        self.rows += 1;
        self.bytes += size_of_val(posting.vector.as_slice()) + payload.map_or(0, <[u8]>::len);
        self.batch.add(posting);
        self.rows_of.push(row);
        if let Some(payload) = payload {
            self.batch.set_payload(document, payload);
            self.rows_of.push(row);
        }
    }
}

/// Running ingest.
struct Load<'a> {
    index: &'a Shardex,
    table: &'a Table,
    options: &'a IngestOptions,
    dimension: usize,
    /// Value of the cursor, and the progress that it says; `None` if the cursor is ignored.
    cursor: Option<(Vec<u8>, Progress)>,
    seen: Option<SeenKeys>,
    pending: Pending,
    done: Ingested,
}

impl<'a> Load<'a> {
    fn begin(index: &'a Shardex, table: &'a Table, options: &'a IngestOptions) -> Result<Self> {
        let names = &options.names;
        let layout = Layout::of(table, names, Part::Postings)?;
        let dimension = index.stats()?.dimension;
        if let Some(found) = layout.fixed_length()?.filter(|&length| length != dimension) {
            let (file, column) = (table.path().to_owned(), names.vector.clone());
            return Err(ColumnsError::Dimension { file, column, row: None, found, expected: dimension });
        }
        let mut done = Ingested { unread: layout.unread(), ..Ingested::default() };
        let mut cursor = None;
        if options.resume != ResumePolicy::Ignore {
            let value = index.cursor()?;
            let mut progress = Progress::of(&value, table, names).ok_or(ColumnsError::ForeignCursor)?;
            if options.resume == ResumePolicy::Restart {
                progress.restart();
            }
            done.has_changed = progress.has_changed;
            done.rows_before = progress.rows();
            done.rows_in = progress.rows();
            cursor = Some((value, progress));
        }
        Ok(Self { index, table, options, dimension, cursor, seen: None, pending: Pending::default(), done })
    }

    fn run(&mut self, observer: &mut dyn Observer) -> Result<()> {
        if self.cursor.as_ref().is_some_and(|(_, progress)| progress.is_complete()) {
            return Ok(());
        }
        if !self.options.allow_duplicates {
            self.seen = Some(SeenKeys::of(self.table, &self.options.names, self.done.rows_in)?);
        }
        observer.begun(self.table.rows());
        let most = self.options.batch_rows.max(1);
        let layout = Layout::of(self.table, &self.options.names, Part::Postings)?;
        for batch in self.table.batches(&layout.projection, self.done.rows_in, u64::MAX, most)? {
            let (first, batch) = batch?;
            let columns = layout.columns(first, batch.columns())?;
            for i in 0..batch.num_rows() {
                let row = first + i as u64;
                let key = columns.key(i)?;
                let posting = columns.posting(i, key, self.dimension)?;
                self.refuse_duplicate(row, key)?;
                self.pending.add(row, posting, columns.payload(i));
                if self.pending.rows >= most || self.pending.bytes >= BATCH_BYTES {
                    self.write(false)?;
                    if observer.advanced(self.done.rows_in).is_break() {
                        self.done.is_stopped = true;
                        return Ok(());
                    }
                }
            }
        }
        self.write(true)?;
        // Nothing is left to stop.
        let _ = observer.advanced(self.done.rows_in);
        Ok(())
    }

    fn refuse_duplicate(&mut self, row: u64, key: PostingKey) -> Result<()> {
        let Some(seen) = &mut self.seen else { return Ok(()) };
        match seen.add(self.table, &self.options.names, row, key)? {
            None => Ok(()),
            Some(first) => Err(ColumnsError::Duplicate { file: self.table.path().to_owned(), first, second: row, key }),
        }
    }

    /// Writes the pending batch, with the cursor.
    fn write(&mut self, is_complete: bool) -> Result<()> {
        let Pending { mut batch, rows_of, rows, .. } = std::mem::take(&mut self.pending);
        let rows_in = self.done.rows_in + rows as u64;
        let mut advanced = None;
        if let Some((value, progress)) = &mut self.cursor {
            let next = progress.advanced(rows_in, is_complete);
            // Another ingester on the same handle would otherwise take back what this one has set.
            batch.set_cursor_if(next.clone(), value.clone());
            advanced = Some(next);
        }
        let written = self.index.write(batch).map_err(|error| self.by_row(error, &rows_of))?;
        if let (Some((value, _)), Some(next)) = (&mut self.cursor, advanced) {
            *value = next;
        }
        self.done.rows_in = rows_in;
        self.done.added += written.added;
        self.done.replaced += written.replaced;
        Ok(())
    }

    /// Names the row of the operation that the index refuses.
    fn by_row(&self, error: ShardexError, rows_of: &[u64]) -> ColumnsError {
        let index = match &error {
            ShardexError::InvalidDimension { index, .. }
            | ShardexError::InvalidVector { index, .. }
            | ShardexError::InvalidPosting { index, .. }
            | ShardexError::InvalidOperation { index, .. } => Some(*index),
            _ => None,
        };
        match index.and_then(|index| rows_of.get(index)) {
            Some(&row) => ColumnsError::Row { file: self.table.path().to_owned(), row, source: error.into() },
            None => ColumnsError::Index(error),
        }
    }
}
