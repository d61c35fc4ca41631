//! The error type of the crate. A variant names the file, and where they apply the column and the row. Rows count from 0.

use std::{io, path::PathBuf};

use shardex::{PostingKey, ShardexError};

/// Result of the calls of this crate.
pub type Result<T, E = ColumnsError> = std::result::Result<T, E>;

/// Error of a call, with its cause and the way to recover.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ColumnsError {
    /// The operating system refused an operation on a file. To recover, fix the cause that the source error names.
    #[error("{}: {op} failed: {source}", file.display())]
    Io {
        /// File.
        file: PathBuf,
        /// Operation, as a verb.
        op: &'static str,
        /// Error of the operating system.
        source: io::Error,
    },

    /// The first bytes are those of no known format. To recover, convert the file to Arrow IPC or Parquet.
    #[error("{}: this is neither an Arrow nor a Parquet file: {reason}", file.display())]
    UnknownFormat {
        /// File.
        file: PathBuf,
        /// Description of the first bytes.
        reason: String,
    },

    /// The file is truncated or damaged, changes while it is read, or uses a feature that this build does not read. To
    /// recover, get a whole copy, or write the file in another way.
    #[error(
        "{}: it can't be read from row {row} on: {reason}: it is truncated, damaged, or written in a way that this build \
         does not read",
        file.display()
    )]
    Unreadable {
        /// File.
        file: PathBuf,
        /// First row that was not read.
        row: u64,
        /// Text of the reader.
        reason: String,
    },

    /// The file has no column of this name. To recover, name one of those that it has.
    #[error("{}: there is no column `{column}`; its columns: {}", file.display(), columns.join(", "))]
    UnknownColumn {
        /// File.
        file: PathBuf,
        /// Name that was given.
        column: String,
        /// Names of the columns of the file.
        columns: Vec<String>,
    },

    /// The file has several columns of this name. To recover, rename them.
    #[error("{}: there are several columns `{column}`: rename them", file.display())]
    AmbiguousColumn {
        /// File.
        file: PathBuf,
        /// Name of the columns.
        column: String,
    },

    /// A column has a type that its use does not allow. To recover, name another column, or cast it.
    #[error("{}: column `{column}` has type {found}, and {expected} is expected", file.display())]
    ColumnType {
        /// File.
        file: PathBuf,
        /// Column.
        column: String,
        /// Type of the column.
        found: String,
        /// Types that are allowed.
        expected: &'static str,
    },

    /// A value is missing. To recover, fill it in, or leave out the row.
    #[error("{}: column `{column}`, row {row}: the value is null: fill it in or leave out the row", file.display())]
    Null {
        /// File.
        file: PathBuf,
        /// Column.
        column: String,
        /// Row.
        row: u64,
    },

    /// A vector has another length than the vectors of the index, or than the first one of the file if the index is to be
    /// created. To recover, name another column or another index.
    #[error(
        "{}: column `{column}`{}: vectors of {found} numbers, and {expected} are expected",
        file.display(),
        row.map(|row| format!(", row {row}")).unwrap_or_default()
    )]
    Dimension {
        /// File.
        file: PathBuf,
        /// Column.
        column: String,
        /// Row; `None` if the type of the column fixes the length.
        row: Option<u64>,
        /// Length of the vector.
        found: usize,
        /// Dimension of the index, or length of the first vector.
        expected: usize,
    },

    /// The file has no row, and the type of its vector column fixes no length, so no dimension is known. To recover,
    /// create the index from another file.
    #[error("{}: it has no row, and the type of column `{column}` has no length: no dimension is known", file.display())]
    NoDimension {
        /// File.
        file: PathBuf,
        /// Column.
        column: String,
    },

    /// A value can't be stored: a negative id, a text that is no id, a start beyond 32 bits, a component that is not
    /// finite. To recover, correct it, or leave out the row.
    #[error("{}: column `{column}`, row {row}: {reason}: correct it or leave out the row", file.display())]
    Value {
        /// File.
        file: PathBuf,
        /// Column.
        column: String,
        /// Row.
        row: u64,
        /// Description of the value.
        reason: String,
    },

    /// The index refuses what a row holds: a zero vector under cosine, a norm that is too large, a length of 0, a payload
    /// that is too large. To recover, correct it, or leave out the row.
    #[error("{}: row {row}: {source}", file.display())]
    Row {
        /// File.
        file: PathBuf,
        /// Row.
        row: u64,
        /// Error of the index. The index in it is the position in the batch.
        source: Box<ShardexError>,
    },

    /// Two rows have the same id, start and length. To recover, leave one out, or allow duplicates: then the later row
    /// replaces the earlier one.
    #[error("{}: rows {first} and {second} both have the key {key}: leave one out, or allow duplicates", file.display())]
    Duplicate {
        /// File.
        file: PathBuf,
        /// Earlier row.
        first: u64,
        /// Later row.
        second: u64,
        /// Key of both: document id, start, length.
        key: PostingKey,
    },

    /// The index has a cursor that another program has set. To recover, ingest without the cursor.
    #[error("the cursor of the index belongs to another program: ingest without it (--no-cursor)")]
    ForeignCursor,

    /// The output exists, and the call does not allow to replace it. To recover, name another one, or allow it.
    #[error("{}: the file exists: name another one, or add --force to replace it", file.display())]
    Exists {
        /// Output.
        file: PathBuf,
    },

    /// The output can't be written under this name. To recover, name another one.
    #[error("{}: {reason}", file.display())]
    Output {
        /// Output.
        file: PathBuf,
        /// Description.
        reason: String,
    },

    /// The index has another number of postings than a scan returns. To recover, check the index.
    #[error("the index has {expected} postings, and {found} were found in its shards: run `shardex check --full`")]
    Incomplete {
        /// Number of postings of the snapshot.
        expected: u64,
        /// Number of postings that the scan returned.
        found: u64,
    },

    /// The observer stopped the export. No file was written.
    #[error("stopped: no file was written")]
    Stopped,

    /// Error of the index.
    #[error(transparent)]
    Index(#[from] ShardexError),
}

/// Error of an ingest, with the number of rows of the file that are in the index.
#[derive(Debug, thiserror::Error)]
#[error("{cause}; the first {rows_in} rows of the file are in")]
pub struct IngestError {
    /// Cause.
    #[source]
    pub cause: Box<ColumnsError>,
    /// Number of leading rows of the file that were accepted, by this call and by earlier ones.
    pub rows_in: u64,
}
