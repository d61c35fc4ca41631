//! Ingests that stop and continue.

use std::ops::ControlFlow;

use shardex::{Metric, blocking::Shardex};
use shardex_columns::{ColumnNames, ColumnsError, IngestOptions, Observer, ResumePolicy, Table, ingest};
use tempfile::TempDir;

use crate::support::{FORMATS, batch, content, create, fixed, ids, l2, load, numbered, write};

/// Observer that stops a call once this many rows are done.
pub(crate) struct StopAfter(pub(crate) u64);

impl Observer for StopAfter {
    fn advanced(&mut self, rows: u64) -> ControlFlow<()> {
        if rows >= self.0 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }
}

fn options(batch_rows: usize) -> IngestOptions {
    let mut options = IngestOptions::new(ColumnNames::default());
    options.batch_rows = batch_rows;
    options
}

/// An ingest that is stopped at any batch, closed and opened again, adds each row once. A complete file adds nothing.
#[test]
fn a_stopped_ingest_continues() {
    for (format, extension) in FORMATS {
        for stop in [1, 30, 31, 59, 60] {
            let dir = TempDir::new().expect("a directory");
            let path = dir.path().join("rows").with_extension(extension);
            write(&path, format, &[numbered(0..25), numbered(25..26), numbered(26..60)]);
            let table = Table::open(&path).expect("a table");
            let (index, index_path) = create(dir.path(), "index", 3, Metric::L2);
            let stopped = ingest(&index, &table, &options(10), &mut StopAfter(stop)).expect("rows");
            assert_eq!(stopped.rows_in, stop.next_multiple_of(10), "{format:?}");
            index.close().expect("closed");

            let index = Shardex::open(&index_path).expect("an index");
            let rest = ingest(&index, &table, &options(7), &mut ()).expect("rows");
            assert_eq!((rest.rows_before, rest.rows_in, rest.is_stopped), (stopped.rows_in, 60, false));
            assert_eq!((rest.added, rest.replaced), (60 - stopped.rows_in, 0));
            let whole = l2(dir.path(), "whole", 3);
            ingest(&whole, &table, &options(1_000), &mut ()).expect("rows");
            assert_eq!(content(&index), content(&whole));

            let lsn = index.stats().expect("figures").last_lsn;
            let nothing = ingest(&index, &table, &options(7), &mut ()).expect("no rows");
            assert_eq!((nothing.rows_before, nothing.rows_in, nothing.added, nothing.replaced), (60, 60, 0, 0));
            assert_eq!(index.stats().expect("figures").last_lsn, lsn, "nothing is written");
            let mut restart = options(7);
            restart.resume = ResumePolicy::Restart;
            let again = ingest(&index, &table, &restart, &mut ()).expect("rows");
            assert_eq!((again.rows_before, again.added, again.replaced), (0, 0, 60));
        }
    }
}

/// Each file has its own progress, and so has each use of its columns.
#[test]
fn progress_is_kept_per_file_and_columns() {
    let dir = TempDir::new().expect("a directory");
    let [a, b] = ["a.parquet", "b.arrow"].map(|name| dir.path().join(name));
    write(&a, FORMATS[2].0, &[numbered(0..20)]);
    let other = fixed(3, vec![2.0; 60]);
    let columns = [("id", ids(100..120)), ("vector", fixed(3, vec![1.0; 60])), ("other", other)];
    write(&b, FORMATS[0].0, &[batch(&columns)]);
    let index = l2(dir.path(), "index", 3);
    let [table_a, table_b] = [&a, &b].map(|path| Table::open(path).expect("a table"));
    let added = |table: &Table, stop: u64| {
        let done = ingest(&index, table, &options(5), &mut StopAfter(stop)).expect("rows");
        (done.rows_before, done.added, done.replaced)
    };
    assert_eq!([added(&table_a, 10), added(&table_b, 15)], [(0, 10, 0), (0, 15, 0)]);
    assert_eq!([added(&table_a, 99), added(&table_b, 99)], [(10, 10, 0), (15, 5, 0)]);
    assert_eq!([added(&table_a, 99), added(&table_b, 99)], [(20, 0, 0), (20, 0, 0)]);
    let names = ColumnNames { vector: "other".into(), ..ColumnNames::default() };
    let done = load(&index, &b, &names, 5).expect("rows");
    assert_eq!((done.rows_before, done.added, done.replaced), (0, 0, 20));
    let text = String::from_utf8(index.cursor().expect("a cursor")).expect("text");
    assert_eq!(text.lines().filter(|line| line.contains("b.arrow")).count(), 2, "{text}");
}

/// A key that is in from before the interruption is a duplicate after it.
#[test]
fn duplicates_are_found_across_an_interruption() {
    for (format, extension) in FORMATS {
        // In the last case the keys after the interruption ascend.
        for keys in [[1, 2, 3, 4, 5, 6, 7, 2], [9, 2, 3, 4, 5, 6, 7, 2], [5, 6, 7, 8, 1, 2, 3, 6]] {
            let dir = TempDir::new().expect("a directory");
            let path = dir.path().join("rows").with_extension(extension);
            write(&path, format, &[batch(&[("id", ids(keys)), ("vector", fixed(1, vec![1.0; 8]))])]);
            let table = Table::open(&path).expect("a table");
            let index = l2(dir.path(), "index", 1);
            ingest(&index, &table, &options(2), &mut StopAfter(4)).expect("rows");
            let error = ingest(&index, &table, &options(2), &mut ()).expect_err("a duplicate");
            assert!(matches!(*error.cause, ColumnsError::Duplicate { first: 1, second: 7, .. }), "{error}");
            assert_eq!(error.rows_in, 6);
        }
    }
}

/// A file that is replaced between its opening and its reading is refused.
#[test]
fn a_file_that_changes_while_it_is_read() {
    let dir = TempDir::new().expect("a directory");
    let path = dir.path().join("rows.parquet");
    write(&path, FORMATS[2].0, &[numbered(0..20)]);
    let table = Table::open(&path).expect("a table");
    write(&path, FORMATS[2].0, &[numbered(0..30)]);
    let error = ingest(&l2(dir.path(), "index", 3), &table, &options(5), &mut ()).expect_err("changed");
    assert!(error.to_string().contains("changed while it was read"), "{error}");
}
