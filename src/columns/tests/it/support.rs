//! Files, indexes and their contents.

use std::{
    fs::File,
    path::{Path, PathBuf},
    sync::Arc,
};

use arrow_array::{
    ArrayRef, FixedSizeListArray, Float32Array, ListArray, RecordBatch, UInt64Array, builder::ListBuilder,
    builder::PrimitiveBuilder, types::Float32Type,
};
use arrow_ipc::writer::{FileWriter, StreamWriter};
use arrow_schema::{DataType, Field, Schema};
use parquet::arrow::ArrowWriter;
use shardex::{DocumentId, Durability, Metric, ShardexConfig, blocking::Shardex};
use shardex_columns::{ColumnNames, IngestError, IngestOptions, Ingested, Table, TableFormat, ingest};

/// All formats, each with the extension of its files.
pub(crate) const FORMATS: [(TableFormat, &str); 3] =
    [(TableFormat::ArrowFile, "arrow"), (TableFormat::ArrowStream, "arrows"), (TableFormat::Parquet, "parquet")];

/// Writes batches to a file.
pub(crate) fn write(path: &Path, format: TableFormat, batches: &[RecordBatch]) {
    let (file, schema) = (File::create(path).expect("a file"), batches[0].schema());
    match format {
        TableFormat::ArrowFile => {
            let mut writer = FileWriter::try_new(file, &schema).expect("a writer");
            batches.iter().for_each(|batch| writer.write(batch).expect("written"));
            writer.finish().expect("written");
        }
        TableFormat::ArrowStream => {
            let mut writer = StreamWriter::try_new(file, &schema).expect("a writer");
            batches.iter().for_each(|batch| writer.write(batch).expect("written"));
            writer.finish().expect("written");
        }
        TableFormat::Parquet => {
            let mut writer = ArrowWriter::try_new(file, schema, None).expect("a writer");
            for batch in batches {
                writer.write(batch).expect("written");
                // One row group per batch.
                writer.flush().expect("written");
            }
            writer.close().expect("written");
        }
    }
}

/// Returns a batch of these columns. A column is nullable if it has a null.
pub(crate) fn batch(columns: &[(&str, ArrayRef)]) -> RecordBatch {
    let fields: Vec<Field> = columns
        .iter()
        .map(|(name, array)| Field::new(*name, array.data_type().clone(), array.logical_null_count() > 0))
        .collect();
    let arrays = columns.iter().map(|(_, array)| Arc::clone(array)).collect();
    RecordBatch::try_new(Arc::new(Schema::new(fields)), arrays).expect("a batch")
}

/// Returns vectors as a FixedSizeList of f32.
pub(crate) fn fixed(dimension: i32, numbers: Vec<f32>) -> ArrayRef {
    let field = Arc::new(Field::new("item", DataType::Float32, true));
    let numbers = Arc::new(Float32Array::from(numbers));
    Arc::new(FixedSizeListArray::try_new(field, dimension, numbers, None).expect("vectors"))
}

/// Returns vectors as a List of f32.
pub(crate) fn lists(vectors: &[&[f32]]) -> ArrayRef {
    let mut builder = ListBuilder::new(PrimitiveBuilder::<Float32Type>::new());
    for vector in vectors {
        builder.values().append_slice(vector);
        builder.append(true);
    }
    let lists: ListArray = builder.finish();
    Arc::new(lists)
}

pub(crate) fn ids(ids: impl IntoIterator<Item = u64>) -> ArrayRef {
    Arc::new(UInt64Array::from_iter_values(ids))
}

/// Returns rows `rows` of a file of vectors of three numbers: the id is the row number.
pub(crate) fn numbered(rows: std::ops::Range<u64>) -> RecordBatch {
    let numbers = rows.clone().flat_map(|row| [row as f32 + 0.5, -1.0, (row % 7) as f32]).collect();
    batch(&[("id", ids(rows)), ("vector", fixed(3, numbers))])
}

pub(crate) fn create(dir: &Path, name: &str, dimension: usize, metric: Metric) -> (Shardex, PathBuf) {
    let path = dir.join(name);
    let config = ShardexConfig::new(&path).vector_size(dimension).metric(metric).shard_size(16);
    // No timer syncs beside the tests.
    let config = config.durability(Durability::Manual).flush_interval_ms(0).flush_on_close(false);
    (Shardex::create(config).expect("an index"), path)
}

pub(crate) fn l2(dir: &Path, name: &str, dimension: usize) -> Shardex {
    create(dir, name, dimension, Metric::L2).0
}

/// Opens a file and adds its rows, `batch_rows` at a time.
pub(crate) fn load(
    index: &Shardex,
    path: &Path,
    names: &ColumnNames,
    batch_rows: usize,
) -> Result<Ingested, IngestError> {
    let table = Table::open(path).map_err(|cause| IngestError { cause: cause.into(), rows_in: 0 })?;
    let mut options = IngestOptions::new(names.clone());
    options.batch_rows = batch_rows;
    ingest(index, &table, &options, &mut ())
}

/// Posting with the bits of its vector, and the payload of its document.
pub(crate) type Row = (u128, u32, u32, u64, Vec<u32>, Option<Vec<u8>>);

/// Returns everything in an index, in the order of keys.
pub(crate) fn content(index: &Shardex) -> Vec<Row> {
    let snapshot = index.snapshot().expect("a snapshot");
    let row = |posting: shardex::Posting| {
        let payload = snapshot.payload(posting.document_id).expect("readable").map(|payload| payload.to_vec());
        let bits = posting.vector.iter().map(|x| x.to_bits()).collect();
        (posting.document_id.0, posting.start, posting.length, posting.tags, bits, payload)
    };
    snapshot.scan_by_key(None, usize::MAX).expect("readable").into_iter().map(row).collect()
}

pub(crate) fn bits(vector: &[f32]) -> Vec<u32> {
    vector.iter().map(|x| x.to_bits()).collect()
}

pub(crate) fn id(text: &str) -> DocumentId {
    text.parse().expect("an id")
}
