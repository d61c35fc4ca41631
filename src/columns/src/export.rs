//! Export of an index.
//!
//! Invariants:
//! 1. The file gets its name only once it holds every posting of one snapshot.
//! 2. Memory is bounded by one batch and one row group, and by the ids of the documents with a payload if payloads are
//!    written.

use std::{
    collections::HashSet,
    fs::File,
    io::{self, BufWriter, Write as _},
    path::Path,
    sync::Arc,
};

use arrow_array::{
    ArrayRef, FixedSizeListArray, Float32Array, RecordBatch, UInt32Array, UInt64Array,
    builder::{FixedSizeBinaryBuilder, LargeBinaryBuilder},
};
use arrow_ipc::writer::FileWriter;
use arrow_schema::{ArrowError, DataType, Field, Schema, SchemaRef};
use parquet::{
    arrow::ArrowWriter,
    basic::Compression,
    file::properties::{EnabledStatistics, WriterProperties},
    schema::types::ColumnPath,
};
use shardex::{DocumentId, IndexSnapshot, Posting, blocking::Shardex};

use crate::{
    error::{ColumnsError, Result},
    observer::Observer,
    target::Target,
};

/// Size of the write buffer in bytes.
const BUFFER: usize = 1 << 20;
/// Bytes of vectors and payloads after which a batch ends, also its limit in rows.
const BATCH_BYTES: usize = 4 << 20;
const BATCH_ROWS: usize = 65_536;
/// Bytes of a Parquet row group, which is in memory as a whole until it is written.
const ROW_GROUP_BYTES: usize = 64 << 20;
/// Ids of documents with a payload that are counted at once.
const PAGE: usize = 65_536;

/// Options of [`export`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ExportOptions {
    /// Whether to write the payloads: column `payload`. The payload of a document is in the first of its rows, and null in
    /// the others. Memory: the ids of the documents with a payload.
    pub payload: bool,
    /// Whether an existing file may be replaced.
    pub replace: bool,
}

/// Result of an export.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Exported {
    /// Number of postings: rows of the file.
    pub postings: u64,
    /// Number of payloads in the file.
    pub payloads: u64,
    /// Number of payloads that are not in the file, because their documents have no posting. 0 if no payloads are written.
    pub payloads_left: u64,
}

/// Writes all postings of an index to a file: an Arrow IPC file if its name ends in `.arrow`, Parquet if in `.parquet`.
///
/// The columns are `id` (FixedSizeBinary(16), big-endian as a UUID), `start` and `length` (UInt32), `tags` (UInt64) and
/// `vector` (FixedSizeList of Float32), and `payload` (LargeBinary) if asked for. The rows are in storage order. Vectors
/// are written as they were added. Under the cosine metric they are equal up to rounding.
///
/// # Errors
/// Returns `Output` for another name, `Exists` if the file exists, `Stopped` if the observer stopped the call, `Io`, and
/// `Index` if the index is damaged. In all these cases no file was written.
pub fn export(
    index: &Shardex,
    file: impl AsRef<Path>,
    options: &ExportOptions,
    observer: &mut dyn Observer,
) -> Result<Exported> {
    let path = file.as_ref();
    let extension = path.extension().and_then(|extension| extension.to_str()).unwrap_or_default();
    let is_parquet = match extension {
        "arrow" => false,
        "parquet" => true,
        _ => {
            let reason = "end the name in .arrow or .parquet, which says the format".into();
            return Err(ColumnsError::Output { file: path.to_owned(), reason });
        }
    };
    let target = Target::begin(path, options.replace)?;
    let dimension = index.stats()?.dimension;
    let snapshot = index.snapshot()?;
    let rows = Rows::new(dimension, options.payload);
    let writer = Writer::begin(target.file(), &rows.schema, is_parquet).map_err(|source| failed(path, source))?;
    observer.begun(Some(snapshot.len()));
    let exported = write_all(&snapshot, rows, writer, path, observer)?;
    target.publish()?;
    Ok(exported)
}

fn failed(path: &Path, source: io::Error) -> ColumnsError {
    ColumnsError::Io { file: path.to_owned(), op: "write", source }
}

fn write_all(
    snapshot: &IndexSnapshot,
    mut rows: Rows,
    mut writer: Writer<'_>,
    path: &Path,
    observer: &mut dyn Observer,
) -> Result<Exported> {
    let mut exported = Exported::default();
    for posting in snapshot.scan() {
        rows.add(&posting?, snapshot)?;
        exported.postings += 1;
        if rows.is_full() {
            writer.write(&mut rows).map_err(|source| failed(path, source))?;
            if observer.advanced(exported.postings).is_break() {
                return Err(ColumnsError::Stopped);
            }
        }
    }
    if exported.postings != snapshot.len() {
        return Err(ColumnsError::Incomplete { expected: snapshot.len(), found: exported.postings });
    }
    writer.write(&mut rows).and_then(|()| writer.finish()).map_err(|source| failed(path, source))?;
    if observer.advanced(exported.postings).is_break() {
        return Err(ColumnsError::Stopped);
    }
    if let Some(payloads) = &rows.payloads {
        exported.payloads = payloads.written.len() as u64;
        exported.payloads_left = documents_with_payload(snapshot) - exported.payloads;
    }
    Ok(exported)
}

fn documents_with_payload(snapshot: &IndexSnapshot) -> u64 {
    let (mut count, mut after) = (0, None);
    loop {
        let page = snapshot.documents_with_payload(after, PAGE);
        count += page.len() as u64;
        match page.last() {
            Some(&last) if page.len() == PAGE => after = Some(last),
            _ => return count,
        }
    }
}

/// Column of payloads that is being filled.
struct PayloadColumn {
    column: LargeBinaryBuilder,
    /// Documents whose payload was written.
    written: HashSet<DocumentId>,
}

/// Rows that are being collected for a batch.
struct Rows {
    schema: SchemaRef,
    dimension: usize,
    ids: FixedSizeBinaryBuilder,
    starts: Vec<u32>,
    lengths: Vec<u32>,
    tags: Vec<u64>,
    vectors: Vec<f32>,
    payloads: Option<PayloadColumn>,
    /// Bytes of vectors and payloads.
    bytes: usize,
}

impl Rows {
    fn new(dimension: usize, with_payloads: bool) -> Self {
        let vector = DataType::FixedSizeList(component(), dimension as i32);
        let mut fields = vec![
            Field::new("id", DataType::FixedSizeBinary(16), false),
            Field::new("start", DataType::UInt32, false),
            Field::new("length", DataType::UInt32, false),
            Field::new("tags", DataType::UInt64, false),
            Field::new("vector", vector, false),
        ];
        if with_payloads {
            fields.push(Field::new("payload", DataType::LargeBinary, true));
        }
        let payloads = PayloadColumn { column: LargeBinaryBuilder::new(), written: HashSet::new() };
        Self {
            schema: Arc::new(Schema::new(fields)),
            dimension,
            ids: FixedSizeBinaryBuilder::new(16),
            starts: Vec::new(),
            lengths: Vec::new(),
            tags: Vec::new(),
            vectors: Vec::new(),
            payloads: with_payloads.then_some(payloads),
            bytes: 0,
        }
    }

    fn add(&mut self, posting: &Posting, snapshot: &IndexSnapshot) -> Result<()> {
        let document = posting.document_id;
        if let Some(payloads) = &mut self.payloads {
            let payload = if payloads.written.contains(&document) { None } else { snapshot.payload(document)? };
            let payload = payload.map(|payload| payload.to_vec());
            if let Some(payload) = &payload {
                payloads.written.insert(document);
                self.bytes += payload.len();
            }
            payloads.column.append_option(payload);
        }
        let added = self.ids.append_value(document.0.to_be_bytes());
        added.expect("16 bytes are appended to a column of 16 bytes");
        self.starts.push(posting.start);
        self.lengths.push(posting.length);
        self.tags.push(posting.tags);
        self.vectors.extend(&posting.vector);
        self.bytes += size_of_val(posting.vector.as_slice());
        Ok(())
    }

    fn is_full(&self) -> bool {
        self.bytes >= BATCH_BYTES || self.starts.len() >= BATCH_ROWS
    }

    /// Takes the rows as a batch.
    fn take(&mut self) -> Result<RecordBatch, ArrowError> {
        let numbers = Arc::new(Float32Array::from(std::mem::take(&mut self.vectors)));
        let vectors = FixedSizeListArray::try_new(component(), self.dimension as i32, numbers, None)?;
        let mut columns: Vec<ArrayRef> = vec![
            Arc::new(self.ids.finish()),
            Arc::new(UInt32Array::from(std::mem::take(&mut self.starts))),
            Arc::new(UInt32Array::from(std::mem::take(&mut self.lengths))),
            Arc::new(UInt64Array::from(std::mem::take(&mut self.tags))),
            Arc::new(vectors),
        ];
        if let Some(payloads) = &mut self.payloads {
            columns.push(Arc::new(payloads.column.finish()));
        }
        self.bytes = 0;
        RecordBatch::try_new(Arc::clone(&self.schema), columns)
    }
}

/// Returns the field of a vector's components.
fn component() -> Arc<Field> {
    Arc::new(Field::new("item", DataType::Float32, false))
}

/// Writer of one format.
enum Writer<'a> {
    Arrow(Box<FileWriter<BufWriter<&'a File>>>),
    Parquet(Box<ArrowWriter<BufWriter<&'a File>>>),
}

impl<'a> Writer<'a> {
    fn begin(file: &'a File, schema: &SchemaRef, is_parquet: bool) -> io::Result<Self> {
        let out = BufWriter::with_capacity(BUFFER, file);
        if !is_parquet {
            return Ok(Self::Arrow(Box::new(FileWriter::try_new(out, schema).map_err(arrow)?)));
        }
        // Components rarely repeat, so neither a dictionary nor compression nor statistics pay for them.
        let vector = || ColumnPath::from(["vector", "list", "item"].map(str::to_owned).to_vec());
        let properties = WriterProperties::builder()
            .set_compression(Compression::SNAPPY)
            .set_max_row_group_bytes(Some(ROW_GROUP_BYTES))
            .set_column_compression(vector(), Compression::UNCOMPRESSED)
            .set_column_dictionary_enabled(vector(), false)
            .set_column_statistics_enabled(vector(), EnabledStatistics::None)
            .build();
        let writer = ArrowWriter::try_new(out, Arc::clone(schema), Some(properties)).map_err(parquet)?;
        Ok(Self::Parquet(Box::new(writer)))
    }

    /// Writes a batch of the rows, if there are any.
    fn write(&mut self, rows: &mut Rows) -> io::Result<()> {
        if rows.starts.is_empty() {
            return Ok(());
        }
        let batch = rows.take().map_err(arrow)?;
        match self {
            Self::Arrow(writer) => writer.write(&batch).map_err(arrow),
            Self::Parquet(writer) => writer.write(&batch).map_err(parquet),
        }
    }

    fn finish(&mut self) -> io::Result<()> {
        match self {
            Self::Arrow(writer) => {
                writer.finish().map_err(arrow)?;
                writer.get_mut().flush()
            }
            Self::Parquet(writer) => {
                writer.finish().map_err(parquet)?;
                writer.inner_mut().flush()
            }
        }
    }
}

fn arrow(error: ArrowError) -> io::Error {
    match error {
        ArrowError::IoError(_, source) => source,
        other => io::Error::other(other),
    }
}

fn parquet(error: parquet::errors::ParquetError) -> io::Error {
    use parquet::errors::ParquetError;
    match error {
        ParquetError::External(source) => match source.downcast::<io::Error>() {
            Ok(source) => *source,
            Err(other) => io::Error::other(other),
        },
        other => io::Error::other(other),
    }
}
