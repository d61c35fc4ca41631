//! Files whose postings are known, and exports that give the same index again.

use std::{fs::File, sync::Arc};

use arrow_array::{
    Array as _, ArrayRef, BinaryArray, BinaryViewArray, FixedSizeBinaryArray, FixedSizeListArray, Float16Array,
    Float64Array, Int8Array, Int16Array, Int32Array, Int64Array, LargeBinaryArray, LargeListArray, LargeStringArray,
    StringArray, StringViewArray, UInt8Array, UInt16Array, UInt32Array, cast::AsArray as _,
};
use arrow_ipc::reader::FileReader;
use arrow_schema::{DataType, Field};
use half::f16;
use parquet::{arrow::arrow_reader::ParquetRecordBatchReaderBuilder, basic::Compression};
use shardex::{DocumentId, Metric, Posting, PostingKey, WriteBatch, blocking::Shardex};
use shardex_columns::{ColumnNames, ColumnsError, ExportOptions, Table, export};
use tempfile::TempDir;

use crate::support::{FORMATS, batch, bits, content, create, fixed, id, ids, l2, lists, load, write};

fn named(start: &str, length: &str, tags: &str, payload: &str) -> ColumnNames {
    let [start, length, tags, payload] = [start, length, tags, payload].map(|name| Some(name.to_owned()));
    ColumnNames { vector: "v".into(), id: "key".into(), start, length, tags, payload, ..ColumnNames::default() }
}

/// Each format gives the postings that its columns say. A null payload leaves what is there.
#[test]
fn a_file_gives_the_postings_that_it_says() {
    for (format, extension) in FORMATS {
        let dir = TempDir::new().expect("a directory");
        let path = dir.path().join("rows").with_extension(extension);
        let columns: [(&str, ArrayRef); 7] = [
            ("other", Arc::new(StringArray::from(vec!["a", "b", "c"]))),
            ("v", fixed(2, vec![0.5, -0.0, 1e-40, f32::MIN_POSITIVE, 3.0, -4.25])),
            ("tag", Arc::new(Int64Array::from(vec![1, -1, 1 << 40]))),
            ("key", Arc::new(Int32Array::from(vec![7, 7, 2_000_000_000]))),
            ("from", Arc::new(UInt16Array::from(vec![0, 10, 3]))),
            ("len", Arc::new(Int64Array::from(vec![10, 5, 4_000_000_000]))),
            ("text", Arc::new(StringArray::from(vec![Some("seven"), None, Some("")]))),
        ];
        write(&path, format, &[batch(&columns)]);
        let index = l2(dir.path(), "index", 2);
        let ingested = load(&index, &path, &named("from", "len", "tag", "text"), 1_000).expect("rows");
        assert_eq!((ingested.rows_in, ingested.rows_before, ingested.added, ingested.replaced), (3, 0, 3, 0));
        assert_eq!((ingested.unread, Table::open(&path).expect("a table").format()), (vec!["other".into()], format));
        let seven = Some(b"seven".to_vec());
        let expected = vec![
            (7, 0, 10, 1, bits(&[0.5, -0.0]), seven.clone()),
            (7, 10, 5, u64::MAX, bits(&[1e-40, f32::MIN_POSITIVE]), seven),
            (2_000_000_000, 3, 4_000_000_000, 1 << 40, bits(&[3.0, -4.25]), Some(Vec::new())),
        ];
        assert_eq!(content(&index), expected, "{format:?}");
    }
}

/// Ids of all types. Bytes are read as a UUID is printed.
#[test]
fn ids_are_integers_bytes_texts_or_names() {
    let uuid = "67e55044-10b1-426f-9247-bb680e5fe0c8";
    let bytes = vec![id(uuid).0.to_be_bytes(), [0xFF; 16]];
    let bytes = FixedSizeBinaryArray::try_from_iter(bytes.into_iter()).expect("bytes");
    let max = u128::from(u64::MAX);
    let cases: Vec<(ArrayRef, [u128; 2])> = vec![
        (Arc::new(Int8Array::from(vec![1, 127])), [1, 127]),
        (Arc::new(Int16Array::from(vec![1, 3])), [1, 3]),
        (Arc::new(Int32Array::from(vec![1, 3])), [1, 3]),
        (Arc::new(Int64Array::from(vec![0, i64::MAX])), [0, max / 2]),
        (Arc::new(UInt8Array::from(vec![1, 255])), [1, 255]),
        (Arc::new(UInt16Array::from(vec![1, 3])), [1, 3]),
        (Arc::new(UInt32Array::from(vec![1, 3])), [1, 3]),
        (ids([1, u64::MAX]), [1, max]),
        (Arc::new(bytes), [id(uuid).0, u128::MAX]),
        (Arc::new(StringArray::from(vec!["12", uuid])), [12, id(uuid).0]),
        (Arc::new(LargeStringArray::from(vec!["0xff", "3"])), [255, 3]),
        (Arc::new(StringViewArray::from(vec!["4", "340282366920938463463374607431768211455"])), [4, u128::MAX]),
    ];
    for (format, extension) in FORMATS {
        for (array, expected) in &cases {
            let dir = TempDir::new().expect("a directory");
            let path = dir.path().join("rows").with_extension(extension);
            write(&path, format, &[batch(&[("id", array.clone()), ("vector", fixed(1, vec![1.0, 2.0]))])]);
            let index = l2(dir.path(), "index", 1);
            load(&index, &path, &ColumnNames::default(), 10).expect("rows");
            let vectors: Vec<f32> =
                expected.iter().map(|&id| index.get(DocumentId(id)).expect("readable")[0].vector[0]).collect();
            assert_eq!(vectors, [1.0, 2.0], "{format:?} {:?}", array.data_type());
        }
    }
    let dir = TempDir::new().expect("a directory");
    let path = dir.path().join("names.parquet");
    let names: ArrayRef = Arc::new(StringArray::from(vec!["a/path.txt", "12"]));
    write(&path, FORMATS[2].0, &[batch(&[("id", names), ("vector", fixed(1, vec![1.0, 2.0]))])]);
    let index = l2(dir.path(), "index", 1);
    load(&index, &path, &ColumnNames { id_from_name: true, ..ColumnNames::default() }, 10).expect("rows");
    for name in ["a/path.txt", "12"] {
        assert!(index.contains(DocumentId::of_name(name)).expect("readable"), "{name}");
    }
}

/// Vectors of all types, in slices of batches too: a file of several batches is read in batches of another size.
#[test]
fn vectors_are_lists_of_halves_floats_or_doubles() {
    let item = |data_type| Arc::new(Field::new("item", data_type, true));
    let fixed_of = |values: ArrayRef| -> ArrayRef {
        let field = item(values.data_type().clone());
        Arc::new(FixedSizeListArray::try_new(field, 2, values, None).expect("vectors"))
    };
    let halves = Float16Array::from_iter_values([0.5, -2.0, 65504.0, 1.0].map(f16::from_f32));
    let doubles = || Arc::new(Float64Array::from(vec![0.5, -2.0, 65504.0, 1.0]));
    let large =
        LargeListArray::try_new(item(DataType::Float64), arrow_offsets([0, 2, 4]), doubles(), None).expect("vectors");
    let cases: Vec<ArrayRef> = vec![
        fixed_of(Arc::new(halves)),
        fixed(2, vec![0.5, -2.0, 65504.0, 1.0]),
        fixed_of(doubles()),
        lists(&[&[0.5, -2.0], &[65504.0, 1.0]]),
        Arc::new(large),
    ];
    for (format, extension) in FORMATS {
        for vectors in &cases {
            let dir = TempDir::new().expect("a directory");
            let path = dir.path().join("rows").with_extension(extension);
            let rows = |first: u64| batch(&[("id", ids([first, first + 1])), ("vector", vectors.clone())]);
            write(&path, format, &[rows(0), rows(2)]);
            assert_eq!(Table::open(&path).expect("a table").dimension(&ColumnNames::default()).expect("known"), 2);
            let index = l2(dir.path(), "index", 2);
            load(&index, &path, &ColumnNames::default(), 3).expect("rows");
            let found: Vec<Vec<u32>> = content(&index).into_iter().map(|row| row.4).collect();
            let expected = [bits(&[0.5, -2.0]), bits(&[65504.0, 1.0])];
            assert_eq!(found, [expected.clone(), expected].concat(), "{format:?} {:?}", vectors.data_type());
        }
    }
}

fn arrow_offsets<const N: usize>(offsets: [i64; N]) -> arrow_buffer::OffsetBuffer<i64> {
    arrow_buffer::OffsetBuffer::new(offsets.to_vec().into())
}

#[test]
fn payloads_are_byte_strings_or_texts() {
    let cases: Vec<ArrayRef> = vec![
        Arc::new(StringArray::from(vec!["a", "é"])),
        Arc::new(LargeStringArray::from(vec!["a", "é"])),
        Arc::new(StringViewArray::from(vec!["a", "é"])),
        Arc::new(BinaryArray::from(vec![b"a".as_slice(), "é".as_bytes()])),
        Arc::new(LargeBinaryArray::from(vec![b"a".as_slice(), "é".as_bytes()])),
        Arc::new(BinaryViewArray::from(vec![b"a".as_slice(), "é".as_bytes()])),
    ];
    for (format, extension) in FORMATS {
        for payloads in &cases {
            let dir = TempDir::new().expect("a directory");
            let path = dir.path().join("rows").with_extension(extension);
            let vectors = fixed(1, vec![1.0, 2.0]);
            write(&path, format, &[batch(&[("id", ids([1, 2])), ("vector", vectors), ("p", payloads.clone())])]);
            let index = l2(dir.path(), "index", 1);
            load(&index, &path, &ColumnNames { payload: Some("p".into()), ..ColumnNames::default() }, 10)
                .expect("rows");
            let found: Vec<_> = content(&index).into_iter().map(|row| row.5.expect("a payload")).collect();
            assert_eq!(found, [b"a".to_vec(), "é".as_bytes().to_vec()], "{format:?} {:?}", payloads.data_type());
        }
    }
}

/// Fills an index with postings whose bits are easily lost: documents of several parts, ids of 128 bits, tags of 64 bits,
/// negative zeros, subnormal numbers, empty and large payloads.
fn varied(index: &Shardex, dimension: usize) {
    let mut state = 1u64;
    let mut random = move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as u32
    };
    for document in 0..150u128 {
        let id = DocumentId(if document % 3 == 0 { u128::MAX - document } else { document });
        let mut batch = WriteBatch::new();
        for part in 0..=random() % 3 {
            let length = 10 + random() % 5;
            let vector = (0..dimension).map(|i| match (document as usize + i) % 11 {
                0 => -0.0,
                1 => f32::from_bits(1 + random() % 1_000),
                _ => random() as f32 / 1e6 - 1e3,
            });
            let posting = Posting::new(PostingKey::new(id, part * 10, length), vector.collect());
            batch.add(posting.tagged(u64::from(random()) << 32 | 5));
        }
        match document % 4 {
            0 => batch.set_payload(id, vec![document as u8; random() as usize % 50_000]),
            1 => batch.set_payload(id, Vec::new()),
            _ => &mut batch,
        };
        index.write(batch).expect("written");
    }
}

/// What is exported and added to another index is equal bit for bit, and so is the second export.
#[test]
fn an_export_gives_the_same_index_again() {
    for (metric, dimension) in [(Metric::L2, 5), (Metric::Dot, 1), (Metric::L2, 384)] {
        for extension in ["arrow", "parquet"] {
            let dir = TempDir::new().expect("a directory");
            let (index, _) = create(dir.path(), "index", dimension, metric);
            varied(&index, dimension);
            index.write(WriteBatch::new().set_payload(5_000u32, "no posting").clone()).expect("written");
            let rows = content(&index);
            let file = dir.path().join("out").with_extension(extension);
            let options = ExportOptions { payload: true, replace: false };
            let exported = export(&index, &file, &options, &mut ()).expect("exported");
            assert_eq!((exported.postings, exported.payloads, exported.payloads_left), (rows.len() as u64, 76, 1));

            let (copy, _) = create(dir.path(), "copy", dimension, metric);
            let ingested = load(&copy, &file, &ColumnNames::exported(true), 7).expect("rows");
            assert_eq!((ingested.added, ingested.unread.len()), (rows.len() as u64, 0));
            assert_eq!(content(&copy), rows, "{metric} {dimension} {extension}");

            let again = dir.path().join("again").with_extension(extension);
            export(&copy, &again, &options, &mut ()).expect("exported");
            let (third, _) = create(dir.path(), "third", dimension, metric);
            load(&third, &again, &ColumnNames::exported(true), 1_000).expect("rows");
            assert_eq!(content(&third), rows);
        }
    }
}

/// Under cosine the vectors that come back have the direction and the norm that was added, up to rounding.
#[test]
fn an_export_of_a_cosine_index_is_equal_up_to_rounding() {
    let dir = TempDir::new().expect("a directory");
    let (index, _) = create(dir.path(), "index", 16, Metric::Cosine);
    varied(&index, 16);
    let file = dir.path().join("out.parquet");
    export(&index, &file, &ExportOptions::default(), &mut ()).expect("exported");
    let (copy, _) = create(dir.path(), "copy", 16, Metric::Cosine);
    load(&copy, &file, &ColumnNames::exported(false), 1_000).expect("rows");
    let (before, after) = (content(&index), content(&copy));
    assert_eq!(before.len(), after.len());
    for (before, after) in before.iter().zip(&after) {
        assert_eq!((before.0, before.1, before.2, before.3), (after.0, after.1, after.2, after.3));
        for (&x, &y) in before.4.iter().zip(&after.4) {
            let (x, y) = (f32::from_bits(x), f32::from_bits(y));
            assert!((x - y).abs() <= x.abs() * 1e-6 + 1e-30, "{x} {y}");
        }
    }
}

/// The schema that other programs read.
#[test]
fn the_columns_of_an_export() {
    let dir = TempDir::new().expect("a directory");
    let index = l2(dir.path(), "index", 2);
    let key = PostingKey::new(id("67e55044-10b1-426f-9247-bb680e5fe0c8"), 3, 4);
    index.add_postings(vec![Posting::new(key, vec![1.5, -2.0]).tagged(9)]).expect("added");
    let [arrow, parquet] = ["out.arrow", "out.parquet"].map(|name| dir.path().join(name));
    let options = ExportOptions { payload: true, replace: false };
    export(&index, &arrow, &options, &mut ()).expect("exported");
    export(&index, &parquet, &options, &mut ()).expect("exported");
    let mut reader = FileReader::try_new(File::open(&arrow).expect("a file"), None).expect("a reader");
    let builder = ParquetRecordBatchReaderBuilder::try_new(File::open(&parquet).expect("a file")).expect("a reader");
    let group = builder.metadata().row_group(0);
    let compressions: Vec<Compression> = group.columns().iter().map(|column| column.compression()).collect();
    let snappy = Compression::SNAPPY;
    assert_eq!(compressions, [snappy, snappy, snappy, snappy, Compression::UNCOMPRESSED, snappy]);
    for schema in [reader.schema(), builder.schema().clone()] {
        let fields: Vec<String> =
            schema.fields().iter().map(|f| format!("{} {} {}", f.name(), f.data_type(), f.is_nullable())).collect();
        let vector = "vector FixedSizeList(2 x non-null Float32) false";
        let others = ["id FixedSizeBinary(16) false", "start UInt32 false", "length UInt32 false", "tags UInt64 false"];
        assert_eq!(fields[..4], others);
        assert_eq!(fields[4..], [vector, "payload LargeBinary true"]);
    }
    let batches = [
        reader.next().expect("a batch").expect("readable"),
        builder.build().expect("a reader").next().expect("a batch").expect("readable"),
    ];
    for batch in batches {
        let bytes = batch.column(0).as_fixed_size_binary().value(0);
        assert_eq!(bytes, key.document_id.0.to_be_bytes());
        assert!(batch.column(5).is_null(0));
    }
}

/// An existing file is replaced only if that is allowed. A call that fails leaves nothing behind.
#[test]
fn an_export_replaces_nothing_unasked() {
    let dir = TempDir::new().expect("a directory");
    let (index, path) = create(dir.path(), "index", 2, Metric::L2);
    varied(&index, 2);
    let out = TempDir::new().expect("a directory");
    let file = out.path().join("out.parquet");
    std::fs::write(&file, "mine").expect("written");
    let options = ExportOptions::default();
    let error = export(&index, &file, &options, &mut ()).expect_err("it exists");
    assert!(matches!(error, ColumnsError::Exists { .. }), "{error}");
    for name in ["out.csv", "out", "missing/out.arrow", ".."] {
        let error = export(&index, out.path().join(name), &options, &mut ()).expect_err(name);
        assert!(matches!(error, ColumnsError::Output { .. } | ColumnsError::Io { .. }), "{error}");
    }
    let error = export(&index, path.join("out.arrow"), &options, &mut ()).expect_err("an index");
    assert!(error.to_string().contains("holds nothing else"), "{error}");
    let mut stop = crate::resume::StopAfter(1);
    let replace = ExportOptions { replace: true, ..options };
    let error = export(&index, &file, &replace, &mut stop).expect_err("stopped");
    assert!(matches!(error, ColumnsError::Stopped), "{error}");
    assert_eq!(std::fs::read(&file).expect("there"), b"mine");
    assert_eq!(std::fs::read_dir(out.path()).expect("a directory").count(), 1, "temporary files stay");
    export(&index, &file, &replace, &mut ()).expect("replaced");
    assert_eq!(Table::open(&file).expect("a table").rows(), Some(index.stats().expect("figures").total_postings));
}

/// An empty index gives a file without rows, which adds nothing.
#[test]
fn an_empty_index_is_a_file_without_rows() {
    let dir = TempDir::new().expect("a directory");
    let index = l2(dir.path(), "index", 4);
    for name in ["out.arrow", "out.parquet"] {
        let file = dir.path().join(name);
        let exported = export(&index, &file, &ExportOptions::default(), &mut ()).expect("exported");
        assert_eq!(exported.postings, 0);
        assert_eq!(Table::open(&file).expect("a table").dimension(&ColumnNames::default()).expect("known"), 4);
        let ingested = load(&index, &file, &ColumnNames::exported(false), 10).expect("no rows");
        assert_eq!((ingested.rows_in, ingested.added), (0, 0));
    }
}
