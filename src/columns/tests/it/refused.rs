//! Files that are refused: each with the file, the column and the row, and what is in afterwards.

use std::sync::Arc;

use arrow_array::{
    Array as _, ArrayRef, BooleanArray, FixedSizeBinaryArray, FixedSizeListArray, Float32Array, Float64Array,
    Int32Array, Int64Array, StringArray, UInt32Array, UInt64Array, builder::FixedSizeListBuilder,
    builder::PrimitiveBuilder, types::Float32Type,
};
use arrow_buffer::NullBuffer;
use arrow_schema::{DataType, Field};
use shardex::{Metric, ShardexError, blocking::Shardex};
use shardex_columns::{ColumnNames, ColumnsError, IngestError, IngestOptions, Table, ingest};
use tempfile::TempDir;

use crate::support::{FORMATS, batch, content, create, fixed, ids, l2, lists, load, numbered, write};

fn all() -> ColumnNames {
    ColumnNames::exported(true)
}

/// Replaces one column of a file that is right, or adds one.
fn with(name: &str, array: ArrayRef) -> Vec<(&str, ArrayRef)> {
    let rows = array.len();
    let mut columns: Vec<(&str, ArrayRef)> = vec![
        ("id", ids(0..rows as u64)),
        ("start", Arc::new(UInt32Array::from(vec![0; rows]))),
        ("length", Arc::new(UInt32Array::from(vec![1; rows]))),
        ("tags", Arc::new(UInt64Array::from(vec![0; rows]))),
        ("vector", fixed(2, vec![1.0; 2 * rows])),
        ("payload", Arc::new(StringArray::from(vec!["x"; rows]))),
    ];
    match columns.iter_mut().find(|(column, _)| *column == name) {
        Some(column) => column.1 = array,
        None => columns.push((name, array)),
    }
    columns
}

/// Adds a file in every format to an empty index, checks that no row is in, and returns the last error.
#[track_caller]
fn refused(columns: &[(&str, ArrayRef)], names: &ColumnNames, metric: Metric) -> ColumnsError {
    let mut last = None;
    for (format, extension) in FORMATS {
        let dir = TempDir::new().expect("a directory");
        let path = dir.path().join("rows").with_extension(extension);
        write(&path, format, &[batch(columns)]);
        let (index, _) = create(dir.path(), "index", 2, metric);
        let IngestError { cause, rows_in } = load(&index, &path, names, 1_000).expect_err("it is refused");
        assert_eq!((rows_in, content(&index).len()), (0, 0), "{cause}");
        assert_eq!(index.cursor().expect("a cursor"), b"");
        // An error of the file names it, in one line.
        let text = cause.to_string();
        assert!(text.starts_with(&path.display().to_string()) && !text.contains('\n'), "{text}");
        last = Some(*cause);
    }
    last.expect("a format")
}

#[test]
fn a_column_that_is_missing_or_ambiguous() {
    let columns = with("id", ids(0..3));
    let names = ColumnNames { id: "Id".into(), ..all() };
    match refused(&columns, &names, Metric::L2) {
        ColumnsError::UnknownColumn { column, columns, .. } => {
            assert_eq!((column.as_str(), columns.join(" ").as_str()), ("Id", "id start length tags vector payload"));
        }
        other => panic!("{other}"),
    }
    let mut twice = columns;
    twice.push(("vector", fixed(2, vec![1.0; 6])));
    let error = refused(&twice, &all(), Metric::L2);
    assert!(matches!(&error, ColumnsError::AmbiguousColumn { column, .. } if column == "vector"), "{error}");
}

#[test]
fn a_column_of_a_wrong_type() {
    let booleans = || -> ArrayRef { Arc::new(BooleanArray::from(vec![true; 2])) };
    let short = FixedSizeBinaryArray::try_from_iter([[1u8; 15]; 2].into_iter()).expect("bytes");
    let item = Arc::new(Field::new("item", DataType::Int32, true));
    let integers = FixedSizeListArray::try_new(item, 2, Arc::new(Int32Array::from(vec![1; 4])), None).expect("lists");
    let cases: Vec<(&str, ArrayRef, &str)> = vec![
        ("id", Arc::new(Float64Array::from(vec![1.0; 2])), "Float64"),
        ("id", Arc::new(short), "FixedSizeBinary(15)"),
        ("vector", Arc::new(Float32Array::from(vec![1.0; 2])), "Float32"),
        ("vector", Arc::new(integers), "FixedSizeList"),
        ("start", booleans(), "Boolean"),
        ("length", Arc::new(StringArray::from(vec!["1"; 2])), "Utf8"),
        ("tags", Arc::new(Int32Array::from(vec![1; 2])), "Int32"),
        ("payload", booleans(), "Boolean"),
    ];
    for (name, array, wanted) in cases {
        match refused(&with(name, array), &all(), Metric::L2) {
            ColumnsError::ColumnType { column, found, expected, .. } => {
                assert!(column == name && found.starts_with(wanted) && !expected.is_empty(), "{column} {found}");
            }
            other => panic!("{name}: {other}"),
        }
    }
    let names = ColumnNames { id_from_name: true, ..all() };
    let error = refused(&with("id", ids(0..2)), &names, Metric::L2);
    assert!(matches!(&error, ColumnsError::ColumnType { column, .. } if column == "id"), "{error}");
}

#[test]
fn a_null() {
    let item = Arc::new(Field::new("item", DataType::Float32, true));
    let numbers = Arc::new(Float32Array::from(vec![1.0; 6]));
    let nulls = NullBuffer::from(vec![true, false, true]);
    let vectors = FixedSizeListArray::try_new(item, 2, numbers, Some(nulls)).expect("vectors");
    let cases: Vec<(&str, ArrayRef)> = vec![
        ("id", Arc::new(UInt64Array::from(vec![Some(1), None, Some(3)]))),
        ("vector", Arc::new(vectors)),
        ("start", Arc::new(UInt32Array::from(vec![Some(1), None, Some(3)]))),
        ("length", Arc::new(UInt32Array::from(vec![Some(1), None, Some(3)]))),
        ("tags", Arc::new(UInt64Array::from(vec![Some(1), None, Some(3)]))),
    ];
    for (name, array) in cases {
        match refused(&with(name, array), &all(), Metric::L2) {
            ColumnsError::Null { column, row, .. } => assert_eq!((column.as_str(), row), (name, 1)),
            other => panic!("{name}: {other}"),
        }
    }
    let mut builder = FixedSizeListBuilder::new(PrimitiveBuilder::<Float32Type>::new(), 2);
    for component in [Some(1.0), None] {
        builder.values().append_value(1.0);
        builder.values().append_option(component);
        builder.append(true);
    }
    let error = refused(&with("vector", Arc::new(builder.finish())), &all(), Metric::L2).to_string();
    assert!(error.contains("column `vector`, row 1: number 1 is null"), "{error}");
}

#[test]
fn a_vector_of_another_length() {
    match refused(&with("vector", fixed(3, vec![1.0; 6])), &all(), Metric::L2) {
        ColumnsError::Dimension { column, row, found, expected, .. } => {
            assert_eq!((column.as_str(), row, found, expected), ("vector", None, 3, 2));
        }
        other => panic!("{other}"),
    }
    let cases: [(&[&[f32]], u64, usize); 3] =
        [(&[&[1.0; 3], &[1.0; 2]], 0, 3), (&[&[1.0; 2], &[1.0; 2], &[1.0; 3]], 2, 3), (&[&[1.0; 2], &[]], 1, 0)];
    for (vectors, wrong, length) in cases {
        match refused(&with("vector", lists(vectors)), &all(), Metric::L2) {
            ColumnsError::Dimension { row, found, expected, .. } => {
                assert_eq!((row, found, expected), (Some(wrong), length, 2));
            }
            other => panic!("{other}"),
        }
    }
    // Without an index the first list says the dimension.
    let dir = TempDir::new().expect("a directory");
    let path = dir.path().join("rows.arrow");
    write(&path, FORMATS[0].0, &[batch(&with("vector", lists(&[&[1.0; 5], &[1.0; 2]])))]);
    assert_eq!(Table::open(&path).expect("a table").dimension(&all()).expect("known"), 5);
    write(&path, FORMATS[0].0, &[batch(&with("vector", lists(&[])))]);
    let error = Table::open(&path).expect("a table").dimension(&all()).expect_err("unknown");
    assert!(matches!(error, ColumnsError::NoDimension { .. }), "{error}");
}

#[test]
fn a_value_that_cannot_be_stored() {
    let texts = |text: &str| -> ArrayRef { Arc::new(StringArray::from(vec!["1", text])) };
    let double = |x: f64| -> ArrayRef {
        let item = Arc::new(Field::new("item", DataType::Float64, true));
        let numbers = Arc::new(Float64Array::from(vec![1.0, 1.0, 1.0, x]));
        Arc::new(FixedSizeListArray::try_new(item, 2, numbers, None).expect("vectors"))
    };
    let cases: Vec<(&str, ArrayRef, &str)> = vec![
        ("id", Arc::new(Int64Array::from(vec![1, -5])), "the id -5 is negative"),
        ("id", texts("-5"), "\"-5\" is no id: byte 0"),
        ("id", texts("x\ny"), "\"x\\ny\" is no id: byte 0"),
        ("id", texts(""), "\"\" is no id"),
        ("start", Arc::new(Int32Array::from(vec![0, -1])), "-1 is not in 0..=4294967295"),
        ("length", Arc::new(Int64Array::from(vec![1, 1 << 32])), "4294967296 is not in 0..=4294967295"),
        ("vector", fixed(2, vec![1.0, 1.0, f32::NAN, 1.0]), "number 0 is NaN"),
        ("vector", fixed(2, vec![1.0, 1.0, 1.0, f32::NEG_INFINITY]), "number 1 is -inf"),
        ("vector", double(f64::NAN), "number 1 is NaN"),
        ("vector", double(-1e300), "number 1 is -1e300, which is too large for an f32"),
    ];
    for (name, array, reason) in cases {
        let error = refused(&with(name, array), &all(), Metric::L2);
        assert!(matches!(error, ColumnsError::Value { row: 1, .. }), "{name}: {error}");
        let text = error.to_string();
        assert!(text.contains(&format!("column `{name}`, row 1: {reason}")), "{text}");
    }
}

/// What only the index knows is refused by it, and the row is named.
#[test]
fn a_row_that_the_index_refuses() {
    let error = refused(&with("vector", fixed(2, vec![1.0, 1.0, 0.0, 0.0])), &all(), Metric::Cosine);
    let is_vector = |source: &ShardexError| matches!(source, ShardexError::InvalidVector { .. });
    assert!(matches!(&error, ColumnsError::Row { row: 1, source, .. } if is_vector(source)), "{error}");
    let error = refused(&with("vector", fixed(2, vec![1.0, 1.0, 1e30, 0.0])), &all(), Metric::Dot);
    assert!(matches!(&error, ColumnsError::Row { row: 1, source, .. } if is_vector(source)), "{error}");
    for (name, values) in [("length", vec![1, 1, 0]), ("start", vec![0, 0, u32::MAX])] {
        let error = refused(&with(name, Arc::new(UInt32Array::from(values))), &all(), Metric::L2);
        let is_posting = |source: &ShardexError| matches!(source, ShardexError::InvalidPosting { .. });
        assert!(matches!(&error, ColumnsError::Row { row: 2, source, .. } if is_posting(source)), "{error}");
    }
    let large = "x".repeat(shardex::limits::MAX_PAYLOAD_BYTES + 1);
    let payloads: ArrayRef = Arc::new(StringArray::from(vec!["a", &large]));
    let error = refused(&with("payload", payloads), &all(), Metric::L2);
    let is_operation = |source: &ShardexError| matches!(source, ShardexError::InvalidOperation { .. });
    assert!(matches!(&error, ColumnsError::Row { row: 1, source, .. } if is_operation(source)), "{error}");
}

/// Both rows of a key are named: neighbours, in files whose keys ascend until then, and in files in any order. Rows of
/// batches before it are in.
#[test]
fn two_rows_with_one_key() {
    let cases: [(&[u64], u64, u64); 5] = [
        (&[1, 1], 0, 1),
        (&[1, 2, 3, 4, 2], 1, 4),
        (&[9, 8, 7, 6, 5, 8], 1, 5),
        (&[1, 2, 3, 3], 2, 3),
        (&[5, 1, 2, 3, 4, 5, 5], 0, 5),
    ];
    for (format, extension) in FORMATS {
        for (keys, one, other) in cases {
            let dir = TempDir::new().expect("a directory");
            let path = dir.path().join("rows").with_extension(extension);
            let columns = with("id", ids(keys.iter().copied()));
            // Two batches in the file.
            let whole = batch(&columns);
            write(&path, format, &[whole.slice(0, 2), whole.slice(2, keys.len() - 2)]);
            let index = l2(dir.path(), "index", 2);
            let error = load(&index, &path, &all(), 2).expect_err("a duplicate");
            match *error.cause {
                ColumnsError::Duplicate { first, second, key, .. } => {
                    assert_eq!((first, second, key.document_id.0), (one, other, u128::from(keys[other as usize])));
                }
                other => panic!("{other}"),
            }
            let before = other / 2 * 2;
            assert_eq!((error.rows_in, content(&index).len() as u64), (before, before), "{keys:?} {format:?}");
            let mut options = IngestOptions::new(all());
            options.allow_duplicates = true;
            let table = Table::open(&path).expect("a table");
            let ingested = ingest(&index, &table, &options, &mut ()).expect("allowed");
            let distinct = keys.iter().collect::<std::collections::BTreeSet<_>>().len();
            assert_eq!((ingested.rows_in, content(&index).len()), (keys.len() as u64, distinct));
        }
    }
    // The same document in several parts is no duplicate.
    let dir = TempDir::new().expect("a directory");
    let path = dir.path().join("parts.parquet");
    let mut columns = with("id", ids([7, 7, 6, 7]));
    columns[1].1 = Arc::new(UInt32Array::from(vec![0, 1, 0, 2]));
    write(&path, FORMATS[2].0, &[batch(&columns)]);
    assert_eq!(load(&l2(dir.path(), "index", 2), &path, &all(), 2).expect("rows").added, 4);
}

/// The batches before the one of the bad row are in, and no row of its batch.
#[test]
fn a_bad_row_keeps_the_batches_before_it() {
    for (format, extension) in FORMATS {
        let dir = TempDir::new().expect("a directory");
        let path = dir.path().join("rows").with_extension(extension);
        let bad =
            batch(&[("id", ids(40..43)), ("vector", fixed(3, vec![1.0, 1.0, 1.0, f32::NAN, 1.0, 1.0, 1.0, 1.0, 1.0]))]);
        write(&path, format, &[numbered(0..40), bad]);
        let index = l2(dir.path(), "index", 3);
        let error = load(&index, &path, &ColumnNames::default(), 9).expect_err("NaN");
        assert!(matches!(*error.cause, ColumnsError::Value { row: 41, .. }), "{error}");
        assert_eq!(error.rows_in, 36);
        assert!(error.to_string().ends_with("; the first 36 rows of the file are in"), "{error}");
        assert_eq!(content(&index).iter().map(|row| row.0).collect::<Vec<_>>(), (0..36).collect::<Vec<u128>>());
        // The same error again, from the row after the last one that is in.
        let again = load(&index, &path, &ColumnNames::default(), 9).expect_err("NaN");
        assert!(matches!(*again.cause, ColumnsError::Value { row: 41, .. }), "{again}");
        assert_eq!((again.rows_in, content(&index).len()), (36, 36));
        // The corrected file is another content, which is read from its first row.
        write(&path, format, &[numbered(0..50)]);
        let ingested = load(&index, &path, &ColumnNames::default(), 9).expect("rows");
        assert!(ingested.has_changed, "{ingested:?}");
        assert_eq!((ingested.rows_before, ingested.replaced, ingested.added), (0, 36, 14));
    }
}

/// The cursor of another program is not replaced.
#[test]
fn a_foreign_cursor() {
    let dir = TempDir::new().expect("a directory");
    let path = dir.path().join("rows.parquet");
    write(&path, FORMATS[2].0, &[numbered(0..5)]);
    let index: Shardex = l2(dir.path(), "index", 3);
    index.write(shardex::WriteBatch::new().set_cursor("offset 12").clone()).expect("written");
    let error = load(&index, &path, &ColumnNames::default(), 2).expect_err("foreign");
    assert!(matches!(*error.cause, ColumnsError::ForeignCursor), "{error}");
    assert_eq!(content(&index).len(), 0);
    let mut options = IngestOptions::new(ColumnNames::default());
    options.resume = shardex_columns::ResumePolicy::Ignore;
    ingest(&index, &Table::open(&path).expect("a table"), &options, &mut ()).expect("rows");
    assert_eq!((content(&index).len(), index.cursor().expect("a cursor").as_slice()), (5, b"offset 12".as_slice()));
}
