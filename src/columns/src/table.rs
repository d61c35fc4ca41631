//! Tables: Arrow and Parquet files as sequences of record batches.
//!
//! Invariants:
//! 1. The first bytes say which format a file has; its name says nothing.
//! 2. A file that ends early is an error, also if it ends between two batches.
//! 3. All passes over a table read the same file: one that was replaced or changed in between is an error.

use std::{
    fs::{self, File},
    io::{BufReader, Read},
    os::unix::fs::MetadataExt as _,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
};

use arrow_array::RecordBatch;
use arrow_ipc::reader::{FileReader, StreamReader};
use arrow_schema::SchemaRef;
use parquet::arrow::{
    ProjectionMask,
    arrow_reader::{ParquetRecordBatchReader, ParquetRecordBatchReaderBuilder},
};

use crate::error::{ColumnsError, Result};

/// Size of the read buffer in bytes.
const BUFFER: usize = 1 << 20;

/// Format of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TableFormat {
    /// Arrow IPC file (Feather version 2).
    ArrowFile,
    /// Arrow IPC stream.
    ArrowStream,
    /// Parquet.
    Parquet,
}

impl TableFormat {
    /// Returns the format with these first bytes, or a description of what they are instead.
    fn of(head: &[u8]) -> Result<Self, String> {
        match head {
            [b'P', b'A', b'R', b'1', ..] => Ok(Self::Parquet),
            [b'A', b'R', b'R', b'O', b'W', b'1', ..] => Ok(Self::ArrowFile),
            [0xFF, 0xFF, 0xFF, 0xFF, ..] => Ok(Self::ArrowStream),
            [b'P', b'A', b'R', b'E', ..] => Err("it is an encrypted Parquet file, which is not supported".into()),
            [b'F', b'E', b'A', b'1', ..] => Err("it is a Feather file of version 1, which is not supported".into()),
            [] => Err("it is empty".into()),
            _ => Err(format!("it begins with \"{}\"", head.escape_ascii())),
        }
    }
}

/// Identity of a file's content, as far as the file system tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FileState {
    inode: (u64, u64),
    /// Length in bytes.
    pub(crate) len: u64,
    /// Time of the last change, in nanoseconds.
    pub(crate) modified_ns: i128,
}

impl FileState {
    fn of(found: &fs::Metadata) -> Self {
        let modified_ns = i128::from(found.mtime()) * 1_000_000_000 + i128::from(found.mtime_nsec());
        Self { inode: (found.dev(), found.ino()), len: found.len(), modified_ns }
    }
}

/// Arrow or Parquet file.
#[derive(Debug)]
pub struct Table {
    path: PathBuf,
    format: TableFormat,
    schema: SchemaRef,
    rows: Option<u64>,
    state: FileState,
}

impl Table {
    /// Opens a file and reads its schema.
    ///
    /// # Errors
    /// Returns `Io` if the file can't be read, `UnknownFormat` if it has another format, and `Unreadable` if it is
    /// truncated or damaged.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref().to_owned();
        let io = |source| ColumnsError::Io { file: path.clone(), op: "read", source };
        let mut file = File::open(&path).map_err(io)?;
        let found = file.metadata().map_err(io)?;
        if !found.is_file() {
            let reason = "it is no regular file".into();
            return Err(ColumnsError::UnknownFormat { file: path, reason });
        }
        let mut head = Vec::new();
        file.by_ref().take(8).read_to_end(&mut head).map_err(io)?;
        let format =
            TableFormat::of(&head).map_err(|reason| ColumnsError::UnknownFormat { file: path.clone(), reason })?;
        let state = FileState::of(&found);
        let opened = reopen(&path, state).and_then(|file| guarded(|| schema(format, file)));
        match opened {
            Ok((schema, rows)) => Ok(Self { path, format, schema, rows, state }),
            Err(reason) => Err(ColumnsError::Unreadable { file: path, row: 0, reason }),
        }
    }

    /// Returns the path of the file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the format of the file.
    #[must_use]
    pub fn format(&self) -> TableFormat {
        self.format
    }

    /// Returns the number of rows, if the file says it at its end (Parquet).
    #[must_use]
    pub fn rows(&self) -> Option<u64> {
        self.rows
    }

    /// Returns the names of the columns.
    #[must_use]
    pub fn columns(&self) -> Vec<String> {
        self.schema.fields().iter().map(|field| field.name().clone()).collect()
    }

    pub(crate) fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    pub(crate) fn state(&self) -> FileState {
        self.state
    }

    /// Reads rows `from..to` of the columns at these positions, which ascend. A batch of a Parquet file has at most `most`
    /// rows. A batch of an Arrow file is as long as the file has it, and is in memory as a whole.
    pub(crate) fn batches(&self, columns: &[usize], from: u64, to: u64, most: usize) -> Result<Batches<'_>> {
        let to = to.min(self.rows.unwrap_or(u64::MAX));
        if from >= to {
            return Ok(Batches { table: self, reader: None, skip: 0, row: from, to });
        }
        // A Parquet reader begins at row `from`, the others at row 0.
        let skip = if self.format == TableFormat::Parquet { 0 } else { from };
        let reader = reopen(&self.path, self.state)
            .and_then(|file| guarded(|| Reader::begin(self.format, file, columns, from, to, most)));
        match reader {
            Ok(reader) => Ok(Batches { table: self, reader: Some(reader), skip, row: from, to }),
            Err(reason) => Err(self.unreadable(from, reason)),
        }
    }

    fn unreadable(&self, row: u64, reason: String) -> ColumnsError {
        ColumnsError::Unreadable { file: self.path.clone(), row, reason }
    }
}

/// Runs a reader of damaged bytes. The readers return errors for most damage, and panic for some.
fn guarded<T>(read: impl FnOnce() -> Result<T, String>) -> Result<T, String> {
    let hook = |_| Err("the reader gave up on a value that is out of range".into());
    catch_unwind(AssertUnwindSafe(read)).unwrap_or_else(hook)
}

/// Opens a file again. Returns an error if it is not the same any more.
fn reopen(path: &Path, state: FileState) -> Result<File, String> {
    let file = File::open(path).map_err(text)?;
    let found = file.metadata().map_err(text)?;
    if FileState::of(&found) == state { Ok(file) } else { Err("it was changed while it was read".into()) }
}

fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}

/// Reads the schema, and the number of rows if it is stored.
fn schema(format: TableFormat, file: File) -> Result<(SchemaRef, Option<u64>), String> {
    let buffered = BufReader::with_capacity(BUFFER, file);
    match format {
        TableFormat::ArrowFile => Ok((FileReader::try_new(buffered, None).map_err(text)?.schema(), None)),
        TableFormat::ArrowStream => Ok((StreamReader::try_new(buffered, None).map_err(text)?.schema(), None)),
        TableFormat::Parquet => {
            let builder = ParquetRecordBatchReaderBuilder::try_new(buffered.into_inner()).map_err(text)?;
            let rows = u64::try_from(builder.metadata().file_metadata().num_rows()).map_err(text)?;
            Ok((builder.schema().clone(), Some(rows)))
        }
    }
}

/// Input that remembers whether it was read beyond its last byte.
struct Counted {
    input: BufReader<File>,
    is_exhausted: bool,
}

impl Read for Counted {
    fn read(&mut self, bytes: &mut [u8]) -> std::io::Result<usize> {
        let count = self.input.read(bytes)?;
        self.is_exhausted |= count == 0 && !bytes.is_empty();
        Ok(count)
    }
}

enum Reader {
    ArrowFile(Box<FileReader<BufReader<File>>>),
    ArrowStream(Box<StreamReader<Counted>>),
    Parquet(Box<ParquetRecordBatchReader>),
}

impl Reader {
    fn begin(
        format: TableFormat,
        file: File,
        columns: &[usize],
        from: u64,
        to: u64,
        most: usize,
    ) -> Result<Self, String> {
        let columns = columns.to_vec();
        if format == TableFormat::Parquet {
            let builder = ParquetRecordBatchReaderBuilder::try_new(file).map_err(text)?;
            let mask = ProjectionMask::roots(builder.parquet_schema(), columns);
            let [offset, limit] = [from, to - from].map(|rows| usize::try_from(rows).unwrap_or(usize::MAX));
            let builder = builder.with_projection(mask).with_batch_size(most);
            let reader = builder.with_offset(offset).with_limit(limit).build().map_err(text)?;
            return Ok(Self::Parquet(Box::new(reader)));
        }
        let input = BufReader::with_capacity(BUFFER, file);
        if format == TableFormat::ArrowFile {
            return Ok(Self::ArrowFile(Box::new(FileReader::try_new(input, Some(columns)).map_err(text)?)));
        }
        let input = Counted { input, is_exhausted: false };
        Ok(Self::ArrowStream(Box::new(StreamReader::try_new(input, Some(columns)).map_err(text)?)))
    }

    fn next(&mut self) -> Result<Option<RecordBatch>, String> {
        match self {
            Self::ArrowFile(reader) => reader.next().transpose().map_err(text),
            Self::Parquet(reader) => reader.next().transpose().map_err(text),
            Self::ArrowStream(reader) => {
                let batch = reader.next().transpose().map_err(text)?;
                if batch.is_none() {
                    let input = reader.get_mut();
                    // A stream may also end without its mark. Then a truncated file looks like a complete one.
                    if input.is_exhausted {
                        return Err("the stream ends without its end mark".into());
                    }
                    if input.read(&mut [0]).map_err(text)? > 0 {
                        return Err("bytes follow the end mark of the stream".into());
                    }
                }
                Ok(batch)
            }
        }
    }
}

/// Iterator over the batches of a table, each with the number of its first row.
pub(crate) struct Batches<'a> {
    table: &'a Table,
    /// `None` after the end and after an error.
    reader: Option<Reader>,
    /// Number of rows to leave out.
    skip: u64,
    /// Number of the next row.
    row: u64,
    /// Row before which the iteration ends.
    to: u64,
}

impl Batches<'_> {
    /// Returns the part of a batch that is in the range.
    fn cut(&mut self, batch: RecordBatch) -> RecordBatch {
        let rows = batch.num_rows() as u64;
        let skipped = self.skip.min(rows);
        self.skip -= skipped;
        let taken = (rows - skipped).min(self.to - self.row);
        batch.slice(skipped as usize, taken as usize)
    }
}

impl Iterator for Batches<'_> {
    type Item = Result<(u64, RecordBatch)>;

    fn next(&mut self) -> Option<Self::Item> {
        while self.row < self.to {
            let reader = self.reader.as_mut()?;
            match guarded(|| reader.next()) {
                Ok(Some(batch)) => {
                    let batch = self.cut(batch);
                    if batch.num_rows() > 0 {
                        let row = self.row;
                        self.row += batch.num_rows() as u64;
                        return Some(Ok((row, batch)));
                    }
                }
                Ok(None) => {
                    self.reader = None;
                    let rows = self.table.rows?;
                    return Some(Err(self.table.unreadable(self.row, format!("it should have {rows} rows"))));
                }
                Err(reason) => {
                    self.reader = None;
                    return Some(Err(self.table.unreadable(self.row, reason)));
                }
            }
        }
        None
    }
}
