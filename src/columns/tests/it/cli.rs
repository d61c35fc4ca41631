//! The program: its output, its exit codes, and that it survives being killed.

use std::{
    path::Path,
    process::{Command, Output},
    time::Duration,
};

use shardex::blocking::Shardex;
use tempfile::TempDir;

use crate::support::{FORMATS, batch, content, fixed, ids, l2, load, numbered, write};

fn program(words: &[&str], dir: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_shardex-columns"));
    command.args(words).current_dir(dir);
    command
}

fn run(words: &[&str], dir: &Path) -> (Option<i32>, String, String) {
    let Output { status, stdout, stderr } = program(words, dir).output().expect("it runs");
    (status.code(), String::from_utf8_lossy(&stdout).into_owned(), String::from_utf8_lossy(&stderr).into_owned())
}

#[test]
fn files_go_in_and_out() {
    let dir = TempDir::new().expect("a directory");
    let dir = dir.path();
    write(&dir.join("a"), FORMATS[0].0, &[numbered(0..50)]);
    write(&dir.join("b"), FORMATS[2].0, &[numbered(50..70)]);
    let (code, _, error) = run(&["ingest", "index", "a"], dir);
    assert!(code == Some(2) && error.contains("--create") && error.lines().count() == 1, "{error}");
    let (code, out, error) = run(&["ingest", "index", "a", "b", "--create", "--metric", "l2"], dir);
    assert_eq!((code, error.as_str()), (Some(0), ""));
    assert_eq!(out, "a: 50 rows are in: 50 added, 0 replaced\nb: 20 rows are in: 20 added, 0 replaced\n");
    let (_, out, _) = run(&["ingest", "index", "b"], dir);
    assert_eq!(out, "b: 20 rows are in: 0 added, 0 replaced, 20 were in before\n");
    let (code, _, error) = run(&["ingest", "index", "b", "--metric", "dot"], dir);
    assert!(code == Some(2) && error.contains("metric l2, not dot"), "{error}");

    assert_eq!(run(&["export", "index", "out.parquet"], dir).1, "70 postings in out.parquet\n");
    let (code, _, error) = run(&["export", "index", "out.parquet"], dir);
    assert!(code == Some(2) && error.contains("--force"), "{error}");
    let (code, out, _) = run(&["export", "index", "out.parquet", "--force", "--payload"], dir);
    assert_eq!((code, out.as_str()), (Some(0), "70 postings in out.parquet; 0 payloads\n"));
    let (_, out, _) = run(&["ingest", "copy", "out.parquet", "--exported", "--create", "--metric", "l2"], dir);
    assert_eq!(out, "out.parquet: 70 rows are in: 70 added, 0 replaced\n");
    let [index, copy] = ["index", "copy"].map(|name| Shardex::open(dir.join(name)).expect("an index"));
    assert_eq!(content(&index), content(&copy));
    assert_eq!(content(&index).len(), 70);
}

/// An index is created only for rows that it accepts.
#[test]
fn a_refused_file_creates_no_index() {
    let dir = TempDir::new().expect("a directory");
    let zeros = batch(&[("id", ids(0..3)), ("vector", fixed(2, vec![0.0; 6]))]);
    write(&dir.path().join("zeros"), FORMATS[2].0, &[zeros]);
    let words = ["ingest", "index", "zeros", "--create"];
    let (code, out, error) = run(&words, dir.path());
    assert_eq!((code, out.as_str(), error.lines().count()), (Some(2), "", 1), "{error}");
    assert!(error.contains("zeros: row 0: ") && error.contains("the first 0 rows"), "{error}");
    assert!(!dir.path().join("index").exists());
    for words in [["ingest", "index", "missing", "--create"], ["ingest", "index", "zeros", "--vector=no"]] {
        assert_eq!(run(&words, dir.path()).0, Some(2));
    }
    assert!(!dir.path().join("index").exists());
}

/// Killed again and again, the same command adds each row once.
#[test]
fn a_killed_ingest_continues() {
    let dir = TempDir::new().expect("a directory");
    let rows = 6_000u64;
    let batches: Vec<_> = (0..6).map(|i| numbered(i * 1_000..(i + 1) * 1_000)).collect();
    write(&dir.path().join("rows"), FORMATS[0].0, &batches);
    let words = ["ingest", "index", "rows", "--create", "--metric", "l2", "--batch", "20", "--durability", "immediate"];
    // Numbers of rows that kills left.
    let mut left = Vec::new();
    for wait in (1..).map(|n| 10 * n) {
        let mut child = program(&words, dir.path()).stdout(std::process::Stdio::null()).spawn().expect("it runs");
        std::thread::sleep(Duration::from_millis(wait));
        if let Some(status) = child.try_wait().expect("a status") {
            assert!(status.success(), "{status}");
            break;
        }
        child.kill().expect("killed");
        child.wait().expect("ended");
        // The index may not exist yet.
        if let Ok(index) = Shardex::open(dir.path().join("index")) {
            left.push(index.stats().expect("figures").total_postings);
            index.close().expect("closed");
        }
        assert!(wait < 5_000, "it never ends");
    }
    assert!(left.iter().any(|&left| left > 0 && left < rows), "no kill in the middle: {left:?}");
    assert!(left.is_sorted() && left.iter().all(|left| left % 20 == 0), "{left:?}");
    let index = Shardex::open(dir.path().join("index")).expect("an index");
    let whole = l2(dir.path(), "whole", 3);
    load(&whole, &dir.path().join("rows"), &shardex_columns::ColumnNames::default(), 1_000).expect("rows");
    assert_eq!(content(&index), content(&whole));
    assert_eq!(index.stats().expect("figures").total_postings, rows);
}
