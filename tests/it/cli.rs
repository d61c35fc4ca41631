//! Tests of the command-line tool, which runs as a separate process.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    thread,
    time::{Duration, Instant},
};

use serde_json::Value;
use tempfile::TempDir;

use crate::support::vector;

mod damage;
mod edges;
mod export;
mod filters;
mod reading;
mod stops;
mod top;
mod vecs;

const DIMENSION: usize = 8;

/// Dimension and row numbers of an index for which cells pay.
const WITH_CELLS: (usize, std::ops::Range<u64>) = (16, 0..5_000);

fn shardex() -> Command {
    Command::new(env!("CARGO_BIN_EXE_shardex"))
}

/// Builds the bytes of a `.npy` file that precede the data.
fn header(descr: &str, shape: &str) -> Vec<u8> {
    let header = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}\n");
    let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
    bytes.extend((header.len() as u16).to_le_bytes());
    bytes.extend(header.as_bytes());
    bytes
}

/// Starts a command with its standard streams piped to the test.
fn piped_child(command: &mut Command) -> Child {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it runs")
}

/// Waits until a process ends and returns its output. A process that runs longer than 120 s, far longer than any needs,
/// is killed and fails the test.
#[track_caller]
fn ended(mut child: Child) -> Output {
    let limit = Instant::now() + Duration::from_secs(120);
    while child.try_wait().expect("a state").is_none() {
        if Instant::now() > limit {
            child.kill().expect("killed");
            panic!("it hangs");
        }
        thread::sleep(Duration::from_millis(2));
    }
    child.wait_with_output().expect("its output")
}

/// Waits until something is so. Fails after 60 s, far longer than it takes.
#[track_caller]
fn until(mut is_so: impl FnMut() -> bool) {
    let limit = Instant::now() + Duration::from_secs(60);
    while !is_so() {
        assert!(Instant::now() < limit, "it never happens");
        thread::sleep(Duration::from_millis(20));
    }
}

/// Temporary directory with the files of a test.
struct Desk(TempDir);

impl Desk {
    fn new() -> Self {
        Self(TempDir::new().expect("a temporary directory"))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn npy(&self, name: &str, descr: &str, shape: (usize, usize), data: &[u8]) -> PathBuf {
        let mut bytes = header(descr, &format!("{shape:?}"));
        bytes.extend(data);
        let path = self.path(name);
        fs::write(&path, bytes).expect("written");
        path
    }

    fn vectors(&self, name: &str, rows: std::ops::Range<u64>) -> PathBuf {
        self.vectors_of(DIMENSION, name, rows)
    }

    fn vectors_of(&self, dimension: usize, name: &str, rows: std::ops::Range<u64>) -> PathBuf {
        let shape = (rows.clone().count(), dimension);
        let data: Vec<u8> = rows.flat_map(|n| vector(n, dimension)).flat_map(f32::to_le_bytes).collect();
        self.npy(name, "<f4", shape, &data)
    }

    fn run(&self, args: &[&dyn AsRef<std::ffi::OsStr>]) -> Output {
        shardex().args(args).stdin(Stdio::null()).output().expect("it runs")
    }

    /// Runs a command with `--json`. Returns its exit code and the object on the last line of its output.
    fn json(&self, args: &[&dyn AsRef<std::ffi::OsStr>]) -> (i32, Value) {
        let mut all = args.to_vec();
        all.push(&"--json");
        let output = self.run(&all);
        let text = String::from_utf8(output.stdout).expect("text");
        let line =
            text.lines().last().unwrap_or_else(|| panic!("nothing: {}", String::from_utf8_lossy(&output.stderr)));
        (output.status.code().expect("no signal"), serde_json::from_str(line).expect("an object"))
    }

    /// Runs a command that must fail with exit code 2 and a single line on standard error, which contains `says`.
    #[track_caller]
    fn fails(&self, args: &[&dyn AsRef<std::ffi::OsStr>], says: &str) {
        let output = self.run(args);
        let error = String::from_utf8(output.stderr).expect("text");
        assert_eq!(output.status.code(), Some(2), "{error}");
        assert!(error.contains(says), "`{says}` expected: {error}");
        assert!(!error.contains("panicked"), "{error}");
        assert!(error.starts_with("shardex: ") && error.lines().count() == 1, "{error}");
    }
}

fn ids(path: &Path) -> Vec<i64> {
    let bytes = fs::read(path).expect("readable");
    let data = 10 + usize::from(u16::from_le_bytes([bytes[8], bytes[9]]));
    bytes[data..].chunks_exact(8).map(|id| i64::from_le_bytes(id.try_into().expect("eight bytes"))).collect()
}

#[test]
fn an_index_of_another_encoding_is_made_told_and_kept() {
    let desk = Desk::new();
    let (dir, rows) = (desk.path("index"), desk.vectors("rows.npy", 0..300));
    let (code, object) = desk.json(&[&"ingest", &dir, &rows, &"--metric", &"l2", &"--encoding", &"int8"]);
    assert_eq!((code, &object["total_postings"]), (0, &300.into()));
    assert_eq!(desk.json(&[&"stats", &dir]).1["encoding"], "int8");
    let more: [&dyn AsRef<std::ffi::OsStr>; 5] = [&"ingest", &dir, &rows, &"--first-id", &"300"];
    assert_eq!(desk.json(&more).1["total_postings"], 600);
    let output = desk.run(&[&"ingest", &dir, &rows, &"--encoding", &"f16"]);
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && text.contains("the index has encoding int8, not f16"), "{text}");
    let output = desk.run(&[&"ingest", &dir, &rows, &"--encoding", &"f8"]);
    assert!(!output.status.success() && String::from_utf8_lossy(&output.stderr).contains("f8"));
    // Every row is found, at the distance of what rounding has left of it.
    let (code, object) = desk.json(&[&"search", &dir, &rows, &"-k", &"2", &"--exact", &"--quiet"]);
    assert_eq!((code, &object["queries"]), (0, &300.into()));
}

#[test]
fn ingest_search_remove_flush_stats_check() {
    let desk = Desk::new();
    let (dir, rows) = (desk.path("index"), desk.vectors("rows.npy", 0..500));
    let (code, object) = desk.json(&[
        &"ingest",
        &dir,
        &rows,
        &"--metric",
        &"l2",
        &"--shard-size",
        &"32",
        &"--batch",
        &"64",
        &"--commit-each",
    ]);
    assert_eq!((code, &object["vectors"], &object["total_postings"]), (0, &500.into(), &500.into()));
    assert!(object["splits"].as_u64() > Some(10) && object["shards"].as_u64() > Some(10), "{object}");
    assert!(object["commits"].as_u64() >= Some(8) && object["bytes_synced"].as_u64() > Some(500 * 32), "{object}");

    // Each row is its own nearest neighbour. The ids of rows added later count from `--first-id`.
    let truth: Vec<u8> = (0..20i32).flat_map(|n| [n, -7]).flat_map(i32::to_le_bytes).collect();
    let (truth, out) = (desk.npy("truth.npy", "<i4", (20, 2), &truth), desk.path("out.npy"));
    let queries = desk.vectors("queries.npy", 0..20);
    let search: [&dyn AsRef<std::ffi::OsStr>; 9] =
        [&"search", &dir, &queries, &"-k", &"1", &"--truth", &truth, &"--out", &out];
    let (code, object) = desk.json(&search);
    assert_eq!((code, &object["queries"], &object["recall"]), (0, &20.into(), &1.0.into()));
    assert_eq!(ids(&out), (0..20).collect::<Vec<i64>>());
    let mut exact = search.to_vec();
    exact.extend([&"--exact" as &dyn AsRef<std::ffi::OsStr>, &"--threads", &"2", &"--force"]);
    let (_, object) = desk.json(&exact);
    assert_eq!((&object["scanned"], &object["recall"]), (&500.0.into(), &1.0.into()));
    for threads in ["1", "2"] {
        let mut batched = search.to_vec();
        batched.extend([&"--batched" as &dyn AsRef<std::ffi::OsStr>, &"--exact", &"--threads", &threads, &"--force"]);
        let (_, object) = desk.json(&batched);
        assert_eq!((&object["scanned"], &object["recall"]), (&500.0.into(), &1.0.into()));
        assert_eq!(ids(&out), (0..20).collect::<Vec<i64>>());
    }
    let (_, object) = desk.json(&[&"search", &dir, &queries, &"--slop", &"1"]);
    // One shard holds at most 32 postings. The bound also leaves room for a search by cells: two codes for each posting
    // of one shard, and the rest of the last cell.
    assert!(object["scanned"].as_f64() <= Some(128.0) && object["qps"].as_f64() > Some(0.0), "{object}");
    let more = desk.vectors("more.npy", 500..520);
    let (code, object) = desk.json(&[&"ingest", &dir, &more, &"--first-id", &"1000", &"--flush-each", &"1"]);
    assert_eq!((code, &object["total_postings"]), (0, &520.into()));

    let (code, object) = desk.json(&[&"remove", &dir, &"--ids", &"490..1010"]);
    assert_eq!((code, &object["removed_postings"]), (0, &20.into()));
    let (code, object) = desk.json(&[&"flush", &dir]);
    assert_eq!(code, 0, "{object}");
    let (code, object) = desk.json(&[&"stats", &dir]);
    assert_eq!((code, &object["total_postings"], &object["metric"]), (0, &500.into(), &"l2".into()));
    for key in [
        "removed_postings",
        "shards",
        "splits",
        "dimension",
        "wal_bytes",
        "checkpoint_lsn",
        "durable_lsn",
        "disk_bytes",
    ] {
        assert!(object[key].is_u64(), "{key}: {object}");
    }
    for full in [false, true] {
        let mut args: Vec<&dyn AsRef<std::ffi::OsStr>> = vec![&"check", &dir];
        if full {
            args.push(&"--full");
        }
        let (code, object) = desk.json(&args);
        assert_eq!((code, &object["clean"]), (0, &true.into()), "{object}");
    }
    // Without `--json`, a command prints text on standard output and nothing on standard error.
    for command in ["flush", "stats", "check"] {
        let output = desk.run(&[&command, &dir]);
        assert!(output.status.success() && !output.stdout.is_empty() && output.stderr.is_empty());
    }
}

#[test]
fn the_check_answers_no_when_bytes_are_damaged() {
    let desk = Desk::new();
    let (dir, rows) = (desk.path("index"), desk.vectors("rows.npy", 0..100));
    desk.json(&[&"ingest", &dir, &rows, &"--metric", &"dot"]);
    let needle: Vec<u8> = vector(77, DIMENSION).into_iter().flat_map(f32::to_le_bytes).collect();
    let mut bytes = fs::read(dir.join("data")).expect("readable");
    let at = bytes.windows(needle.len()).position(|window| window == needle).expect("the vector is there");
    bytes[at] ^= 1;
    fs::write(dir.join("data"), bytes).expect("written");
    let (code, object) = desk.json(&[&"check", &dir, &"--full"]);
    assert_eq!((code, &object["clean"]), (1, &false.into()));
    assert!(object["findings"][0].as_str().is_some_and(|finding| finding.contains("data")), "{object}");
    desk.fails(&[&"search", &dir, &rows, &"--exact"], "damaged");
    // Damage that stops the open is a finding too. The open repairs a single damaged root and reports it.
    let mut root = fs::read(dir.join("root")).expect("readable");
    root[50] ^= 1;
    fs::write(dir.join("root"), &root).expect("written");
    let (code, object) = desk.json(&[&"check", &dir]);
    assert!(code == 1 && object["findings"].to_string().contains("repaired"), "{object}");
    assert_eq!(desk.json(&[&"check", &dir]).0, 0);
    let mut root = fs::read(dir.join("root")).expect("readable");
    (root[50], root[4096 + 50]) = (!root[50], !root[4096 + 50]);
    fs::write(dir.join("root"), &root).expect("written");
    let (code, object) = desk.json(&[&"check", &dir]);
    assert!(code == 1 && object["findings"].to_string().contains("checksum"), "{object}");
    assert_eq!(desk.run(&[&"stats", &dir]).status.code(), Some(2));
}

#[test]
fn half_precision_rows_are_taken() {
    let desk = Desk::new();
    let data: Vec<u8> = (0..40u16).flat_map(|n| (0x3C00 + n * 7).to_le_bytes()).collect();
    let rows = desk.npy("half.npy", "<f2", (10, 4), &data);
    let (code, object) = desk.json(&[&"ingest", &desk.path("index"), &rows]);
    assert_eq!((code, &object["vectors"]), (0, &10.into()));
}

#[test]
fn plain_progress_says_what_is_durable_and_a_kill_loses_none_of_it() {
    let desk = Desk::new();
    let (dir, rows) = (desk.path("index"), desk.vectors("rows.npy", 0..20_000));
    let mut child = shardex()
        .args([&"ingest" as &dyn AsRef<std::ffi::OsStr>, &dir, &rows, &"--batch", &"100", &"--commit-each"])
        .args(["--flush-each", "3", "--progress", "plain"])
        .stdout(Stdio::piped())
        .spawn()
        .expect("it runs");
    let mut lines = BufReader::new(child.stdout.take().expect("its output")).lines();
    let mut committed = 0;
    for expected in (100..).step_by(100).take(30) {
        let line = lines.next().expect("a line").expect("text");
        assert_eq!(line, format!("committed {expected}"));
        committed = expected;
    }
    child.kill().expect("killed");
    child.wait().expect("reaped");
    for line in lines {
        if let Some(rows) = line.expect("text").strip_prefix("committed ").and_then(|rows| rows.parse().ok()) {
            committed = rows;
        }
    }
    let (code, object) = desk.json(&[&"stats", &dir]);
    let there = object["total_postings"].as_u64().expect("a number");
    assert!(code == 0 && there >= committed && there.is_multiple_of(100), "{committed} committed: {object}");
    assert_eq!(desk.json(&[&"check", &dir, &"--full"]).0, 0);
    // Without `--commit-each`, the line appears when all rows are durable.
    let more = desk.vectors("more.npy", 0..250);
    let output = desk.run(&[&"ingest", &desk.path("other"), &more, &"--progress", &"plain", &"--json"]);
    let text = String::from_utf8(output.stdout).expect("text");
    assert!(text.starts_with("committed 250\n{") && text.lines().count() == 2, "{text}");
}

#[test]
fn mistakes_in_any_argument_are_one_line_that_says_what_to_do() {
    let desk = Desk::new();
    let (dir, rows) = (desk.path("index"), desk.vectors("rows.npy", 0..50));
    desk.json(&[&"ingest", &dir, &rows, &"--metric", &"l2"]);
    let missing = desk.path("missing");
    let text = desk.path("text.npy");
    fs::write(&text, "not an array").expect("written");
    let empty = desk.npy("empty.npy", "<f4", (0, DIMENSION), &[]);
    let other = desk.npy("other.npy", "<f4", (1, 3), &[0; 12]);
    let mut bad: Vec<u8> = (0..3).flat_map(|n| vector(n, DIMENSION)).flat_map(f32::to_le_bytes).collect();
    bad[DIMENSION * 4 + 4..DIMENSION * 4 + 8].copy_from_slice(&f32::NAN.to_le_bytes());
    let nan = desk.npy("nan.npy", "<f4", (3, DIMENSION), &bad);

    desk.fails(&[&"ingest", &dir, &missing], "missing");
    desk.fails(&[&"ingest", &dir, &text], "no .npy file");
    desk.fails(&[&"ingest", &dir, &other], "vectors of 8, not 3");
    desk.fails(&[&"ingest", &dir, &rows, &"--metric", &"dot"], "metric l2, not dot");
    desk.fails(&[&"ingest", &dir, &rows, &"--metric", &"manhattan"], "manhattan");
    desk.fails(&[&"ingest", &dir, &rows, &"--shard-size", &"9"], "shard size 512, not 9");
    desk.fails(&[&"ingest", &desk.path("new"), &rows, &"--shard-size", &"0"], "shard_size");
    desk.fails(&[&"ingest", &dir, &rows, &"--batch", &"0"], "at least 1");
    desk.fails(&[&"ingest", &dir, &rows, &"--first-id", &"-4"], "-4");
    desk.fails(&[&"ingest", &dir, &rows, &"--first-id", &u128::MAX.to_string()], "--first-id");
    desk.fails(&[&"ingest", &dir, &nan, &"--batch", &"2"], "row 1: number 1 is NaN");
    desk.fails(&[&"ingest", &rows, &rows], "rows.npy");
    desk.fails(&[&"search", &missing, &rows], "no index");
    desk.fails(&[&"search", &dir, &missing], "missing");
    desk.fails(&[&"search", &dir, &other], "vectors of 8");
    desk.fails(&[&"search", &dir, &rows, &"-k", &"0"], "at least 1");
    desk.fails(&[&"search", &dir, &rows, &"-k", &"99999999"], "`k`");
    desk.fails(&[&"search", &dir, &rows, &"--slop", &"0"], "at least 1");
    desk.fails(&[&"search", &dir, &rows, &"--threads", &"0"], "at least 1");
    desk.fails(&[&"search", &dir, &rows, &"--truth", &rows], "8 ids for 50 queries of k = 10");
    desk.fails(&[&"search", &dir, &rows, &"-k", &"2", &"--truth", &rows], "ids of an integer type");
    desk.fails(&[&"search", &dir, &rows, &"--out", &missing.join("x").join("y")], "missing");
    desk.fails(&[&"remove", &dir, &"--ids", &"5..5"], "holds no id");
    desk.fails(&[&"remove", &dir, &"--ids", &"five"], "A..B");
    desk.fails(&[&"flush", &missing], "no index");
    desk.fails(&[&"stats", &desk.path("rows.npy")], "rows.npy");
    desk.fails(&[&"check", &missing, &"--full"], "no index");
    desk.fails(&[&"frobnicate"], "frobnicate");
    desk.fails(&[], "no command given");
    // None of these mistakes changed the index. A file without rows is accepted, however many components its header
    // declares per row.
    let wide = desk.npy("wide.npy", "<f4", (0, 1 << 62), &[]);
    let (code, object) = desk.json(&[&"search", &dir, &wide]);
    assert_eq!((code, &object["queries"]), (0, &0.into()));
    let (code, object) = desk.json(&[&"ingest", &dir, &empty]);
    assert_eq!((code, &object["vectors"], &object["total_postings"]), (0, &0.into(), &50.into()));
}

#[test]
fn the_demo_proves_the_promise_in_a_table() {
    let desk = Desk::new();
    let output = desk.run(&[&"demo"]);
    let text = String::from_utf8(output.stdout).expect("text");
    assert_eq!(output.status.code(), Some(0), "{text}");
    for line in ["shard sync", "kill -9, 4 of 4", "P1", "P2", "P3", "clean", "recall 1.000"] {
        assert!(text.contains(line), "`{line}` is missing: {text}");
    }
    assert_eq!(text.matches("  kept").count(), 3, "{text}");
    let (code, object) = desk.json(&[&"demo"]);
    assert_eq!((code, &object["promises_kept"], &object["check_clean"]), (0, &true.into(), &true.into()));
    assert!(object["recall"].as_f64() > Some(0.9), "{object}");
}
