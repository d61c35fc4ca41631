//! Files that are no tables, and tables that are cut or damaged.

use std::fs;

use shardex_columns::{ColumnNames, ColumnsError, Table, TableFormat};
use tempfile::TempDir;

use crate::support::{FORMATS, content, l2, load, numbered, write};

#[test]
fn a_file_of_another_format() {
    let dir = TempDir::new().expect("a directory");
    let path = dir.path().join("rows.parquet");
    let cases: [(&[u8], &str); 5] = [
        (b"\x93NUMPY\x01\x00\x76\x00", "it begins with \"\\x93NUMPY\\x01\\x00\""),
        (b"", "it is empty"),
        (b"PARE1234", "encrypted"),
        (b"FEA1....", "Feather file of version 1"),
        (b"PA", "it begins with \"PA\""),
    ];
    for (bytes, wanted) in cases {
        fs::write(&path, bytes).expect("written");
        let error = Table::open(&path).expect_err("another format");
        assert!(matches!(error, ColumnsError::UnknownFormat { .. }), "{error}");
        assert!(error.to_string().contains(wanted), "{error}");
    }
    let error = Table::open(dir.path()).expect_err("a directory");
    assert!(matches!(error, ColumnsError::UnknownFormat { .. }), "{error}");
    let error = Table::open(dir.path().join("missing")).expect_err("missing");
    assert!(matches!(error, ColumnsError::Io { .. }), "{error}");
}

/// The name of a file does not say its format.
#[test]
fn the_first_bytes_say_the_format() {
    let dir = TempDir::new().expect("a directory");
    for (format, _) in FORMATS {
        for name in ["rows.arrow", "rows.parquet", "rows"] {
            let path = dir.path().join(name);
            write(&path, format, &[numbered(0..5)]);
            assert_eq!(Table::open(&path).expect("a table").format(), format, "{name}");
        }
    }
}

/// A file that is cut anywhere is refused. What is in by then is a prefix of its rows.
#[test]
fn a_cut_file() {
    for (format, extension) in FORMATS {
        let dir = TempDir::new().expect("a directory");
        let path = dir.path().join("rows").with_extension(extension);
        write(&path, format, &[numbered(0..4), numbered(4..8), numbered(8..12)]);
        let whole = fs::read(&path).expect("bytes");
        let mut most = 0;
        // Every length near the ends, and some between.
        let lengths = (0..whole.len()).filter(|&len| len < 16 || whole.len() - len < 24 || len % 64 == 0);
        for (number, len) in lengths.enumerate() {
            fs::write(&path, &whole[..len]).expect("written");
            let index = l2(dir.path(), &number.to_string(), 3);
            let error = load(&index, &path, &ColumnNames::default(), 4).expect_err("it is cut");
            let is_named = matches!(*error.cause, ColumnsError::Unreadable { .. } | ColumnsError::UnknownFormat { .. });
            assert!(is_named, "{format:?} {len}: {error}");
            let rows: Vec<u128> = content(&index).iter().map(|row| row.0).collect();
            assert_eq!(rows, (0..u128::from(error.rows_in)).collect::<Vec<_>>(), "{format:?} {len}");
            most = most.max(error.rows_in);
        }
        // A stream has no end to read first. Cut before its end mark, all its rows are in, and it is still refused.
        assert_eq!(most, if format == TableFormat::ArrowStream { 12 } else { 0 }, "{format:?}");
        fs::write(&path, [whole.as_slice(), b"more"].concat()).expect("written");
        let index = l2(dir.path(), "more", 3);
        let error = load(&index, &path, &ColumnNames::default(), 4).expect_err("bytes follow");
        assert!(matches!(*error.cause, ColumnsError::Unreadable { .. }), "{error}");
        // The whole file.
        fs::write(&path, &whole).expect("written");
        assert_eq!(load(&l2(dir.path(), "whole", 3), &path, &ColumnNames::default(), 4).expect("rows").added, 12);
    }
}

/// A damaged byte gives an error, or other values. It never ends the process.
#[test]
fn a_damaged_byte() {
    let (mut refused, mut accepted) = (0, 0);
    for (format, extension) in FORMATS {
        let dir = TempDir::new().expect("a directory");
        let path = dir.path().join("rows").with_extension(extension);
        write(&path, format, &[numbered(0..4), numbered(4..8)]);
        let whole = fs::read(&path).expect("bytes");
        let index = l2(dir.path(), "index", 3);
        for at in (0..whole.len()).step_by(3) {
            let mut bytes = whole.clone();
            bytes[at] ^= if at % 2 == 0 { 0xFF } else { 0x10 };
            fs::write(&path, &bytes).expect("written");
            match load(&index, &path, &ColumnNames::default(), 4) {
                Ok(_) => accepted += 1,
                Err(_) => refused += 1,
            }
        }
    }
    assert!(refused > 200 && accepted > 50, "{refused} {accepted}");
}
