//! Tests of `.fvecs`, `.bvecs` and `.ivecs` files as input.

use std::{fs, io::Write as _, path::PathBuf};

use super::{DIMENSION, Desk, ended, piped_child, shardex};
use crate::support::vector;

/// Writes a file of rows, each with its dimension in front.
fn written<const N: usize>(desk: &Desk, name: &str, rows: &[Vec<[u8; N]>]) -> PathBuf {
    let mut bytes: Vec<u8> = Vec::new();
    for row in rows {
        bytes.extend((row.len() as i32).to_le_bytes());
        bytes.extend(row.iter().flatten());
    }
    let path = desk.path(name);
    fs::write(&path, bytes).expect("written");
    path
}

fn floats(rows: std::ops::Range<u64>) -> Vec<Vec<[u8; 4]>> {
    rows.map(|n| vector(n, DIMENSION).into_iter().map(f32::to_le_bytes).collect()).collect()
}

#[test]
fn rows_are_ingested_and_searched_for() {
    let desk = Desk::new();
    let (dir, rows) = (desk.path("index"), written(&desk, "rows.fvecs", &floats(0..300)));
    let (code, object) = desk.json(&[&"ingest", &dir, &rows, &"--metric", &"l2", &"--batch", &"64"]);
    assert_eq!((code, &object["vectors"]), (0, &300.into()));
    // The same rows, continued at row 200, as an array.
    let (other, array) = (desk.path("other"), desk.vectors("rows.npy", 0..300));
    desk.json(&[&"ingest", &other, &array, &"--metric", &"l2"]);
    let scan = |dir: &PathBuf| desk.run(&[&"scan", dir, &"--by-key", &"--vectors"]).stdout;
    assert_eq!(scan(&dir), scan(&other));
    desk.json(&[&"remove", &dir, &"--ids", &"200..300"]);
    let (code, object) = desk.json(&[&"ingest", &dir, &rows, &"--from-row", &"200"]);
    assert_eq!((code, &object["vectors"]), (0, &100.into()));
    assert_eq!(scan(&dir), scan(&other));

    let queries = written(&desk, "queries.FVECS", &floats(0..20));
    let truth: Vec<Vec<[u8; 4]>> = (0..20i32).map(|n| vec![n.to_le_bytes(), (-7i32).to_le_bytes()]).collect();
    let truth = written(&desk, "truth.ivecs", &truth);
    let (code, object) = desk.json(&[&"search", &dir, &queries, &"-k", &"1", &"--truth", &truth]);
    assert_eq!((code, &object["queries"], &object["recall"]), (0, &20.into(), &1.0.into()));
    desk.fails(&[&"search", &dir, &queries, &"-k", &"1", &"--truth", &queries], "ids of an integer type");

    let bytes: Vec<Vec<[u8; 1]>> = (0..50u8).map(|n| (0..3).map(|i| [n.wrapping_mul(61 + i)]).collect()).collect();
    let (dir, rows) = (desk.path("bytes"), written(&desk, "rows.bvecs", &bytes));
    assert_eq!(desk.json(&[&"ingest", &dir, &rows, &"--metric", &"l2"]).1["vectors"], 50);
    let (code, object) = desk.json(&[&"search", &dir, &rows, &"-k", &"1"]);
    assert_eq!((code, &object["queries"]), (0, &50.into()));
    let text = String::from_utf8(desk.run(&[&"get", &dir, &"1", &"--vectors"]).stdout).expect("text");
    assert_eq!(text, "1:0:1 61.0 62.0 63.0\n");
}

#[test]
fn each_mistake_in_a_file_is_one_line_and_makes_no_index() {
    let desk = Desk::new();
    let dir = desk.path("index");
    let good = fs::read(written(&desk, "rows.fvecs", &floats(0..9))).expect("readable");
    let width = 4 * (DIMENSION + 1);
    let changed = |at: usize, dimension: i32| {
        let mut bytes = good.clone();
        bytes[at..at + 4].copy_from_slice(&dimension.to_le_bytes());
        bytes
    };
    let shorter = [&good[..2 * width], &[1, 0, 0, 0, 0, 0, 0, 0], &good[3 * width..]].concat();
    let mut nan = good.clone();
    nan[width + 8..width + 12].copy_from_slice(&f32::NAN.to_le_bytes());
    let array = fs::read(desk.vectors("rows.npy", 0..9)).expect("readable");
    let cases: [(Vec<u8>, &str); 12] = [
        (Vec::new(), "bad.fvecs: it is empty"),
        (good[..3].to_vec(), "bad.fvecs: it ends in the dimension of row 0"),
        (good[..4].to_vec(), "bad.fvecs: it ends within row 0"),
        (good[..good.len() - 1].to_vec(), "bad.fvecs: it ends within row 8"),
        (good[..good.len() - width + 2].to_vec(), "bad.fvecs: it ends within row 8"),
        (changed(0, 0), "bad.fvecs: row 0 has dimension 0, and 1 to 65536 are possible"),
        (changed(0, -8), "bad.fvecs: row 0 has dimension -8"),
        (changed(0, 65_537), "bad.fvecs: row 0 has dimension 65537"),
        (changed(5 * width, 7), "bad.fvecs: row 5 has dimension 7, and row 0 has 8"),
        (shorter, "bad.fvecs: row 2 has dimension 1, and row 0 has 8"),
        (nan, "bad.fvecs: row 1: number 1 is NaN"),
        (array, "is it of this format?"),
    ];
    let file = desk.path("bad.fvecs");
    for (bytes, says) in cases {
        fs::write(&file, bytes).expect("written");
        desk.fails(&[&"ingest", &dir, &file, &"--metric", &"l2"], says);
        assert!(!dir.exists(), "{says}");
        desk.fails(&[&"search", &dir, &file], says);
    }
    // The name decides about the format, so these are no arrays.
    let good = desk.path("rows.fvecs");
    let copy = desk.path("copy.npy");
    fs::copy(&good, &copy).expect("copied");
    desk.fails(&[&"ingest", &dir, &copy], "no .npy file");
    assert_eq!(desk.json(&[&"ingest", &dir, &good, &"--metric", &"l2"]).1["vectors"], 9);
    let narrow = written(&desk, "narrow.fvecs", &[vec![1.0f32.to_le_bytes(); 3]]);
    desk.fails(&[&"ingest", &dir, &narrow], "vectors of 8, not 3");
    desk.fails(&[&"search", &dir, &narrow], "vectors of 8");
    desk.fails(&[&"ingest", &dir, &good, &"--from-row", &"10"], "has only 9 rows");
}

/// A change of the dimension in a later batch leaves the rows before it durable, and says so.
#[test]
fn a_dimension_that_changes_late_leaves_the_rows_before_it() {
    let desk = Desk::new();
    let dir = desk.path("index");
    // The length is that of whole rows, so that the change is found only when it is read.
    let mut rows = floats(0..40);
    rows[30].pop();
    let mut longer = rows[31].clone();
    longer.push(0f32.to_le_bytes());
    rows[31] = longer;
    let file = written(&desk, "rows.fvecs", &rows);
    let output = desk.run(&[&"ingest", &dir, &file, &"--batch", &"10"]);
    let error = String::from_utf8(output.stderr).expect("text");
    assert_eq!(output.status.code(), Some(2), "{error}");
    assert!(error.contains("row 30 has dimension 7, and row 0 has 8"), "{error}");
    assert!(error.contains("rows 0 to 29 are durable") && error.contains("--from-row 30"), "{error}");
    assert_eq!(desk.json(&[&"count", &dir]).1["postings"], 30);
}

#[test]
fn a_pipe_holds_an_array() {
    let desk = Desk::new();
    let rows = written(&desk, "rows.fvecs", &floats(0..9));
    let mut child = piped_child(shardex().arg("ingest").arg(desk.path("index")).arg("-"));
    // The command may end before it has read everything, so an error of the write is ignored.
    let _ = child.stdin.take().expect("its stdin").write_all(&fs::read(rows).expect("readable"));
    let output = ended(child);
    let error = String::from_utf8(output.stderr).expect("text");
    assert!(output.status.code() == Some(2) && error.contains("no .npy file"), "{error}");
}
