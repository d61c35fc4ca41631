//! Tests of stopped commands. A stopped ingest reports which rows are durable and how to continue. A stopped benchmark
//! or search leaves no files behind.

use std::{
    fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    path::Path,
    process::{Command, Output, Stdio},
};

use serde_json::Value;

use super::{DIMENSION, Desk, ended, header, ids, piped_child, shardex};
use crate::support::vector;

fn rows(range: std::ops::Range<u64>) -> Vec<u8> {
    range.flat_map(|n| vector(n, DIMENSION)).flat_map(f32::to_le_bytes).collect()
}

/// Runs a command line that the tool printed, in a shell.
fn run(line: &str) -> Output {
    let script = format!("shardex() {{ \"$TOOL\" \"$@\"; }}\n{line}");
    let tool = env!("CARGO_BIN_EXE_shardex");
    Command::new("sh").args(["-c", &script]).env("TOOL", tool).stdin(Stdio::null()).output().expect("it runs")
}

/// Returns the text between the first two backticks.
fn quoted(text: &str) -> &str {
    text.split('`').nth(1).unwrap_or_else(|| panic!("no command: {text}"))
}

#[test]
fn an_ingest_that_meets_a_bad_row_says_how_to_go_on_and_that_works() {
    let desk = Desk::new();
    let dir = desk.path("it's an index");
    let mut data = rows(0..500);
    let at = (250 * DIMENSION + 3) * 4;
    let good = data[at..at + 4].to_vec();
    data[at..at + 4].copy_from_slice(&f32::INFINITY.to_le_bytes());
    let file = desk.npy("the rows.npy", "<f4", (500, DIMENSION), &data);
    for (n, options) in [vec!["--commit-each"], vec![]].into_iter().enumerate() {
        let first = (n * 1000).to_string();
        let output = shardex()
            .args([AsRef::<std::ffi::OsStr>::as_ref("ingest"), dir.as_ref(), file.as_ref()])
            .args(["--batch", "100", "--first-id", &first])
            .args(options)
            .output()
            .expect("it runs");
        let error = String::from_utf8(output.stderr).expect("text");
        assert_eq!(output.status.code(), Some(2), "{error}");
        assert!(error.contains("row 250: number 3 is inf") && error.contains("rows 0 to 199 are durable"), "{error}");
        assert_eq!(desk.json(&[&"stats", &dir]).1["total_postings"], n * 500 + 200);
        let mended = [header("<f4", &format!("(500, {DIMENSION})")), {
            let mut data = data.clone();
            data[at..at + 4].copy_from_slice(&good);
            data
        }];
        let bad = fs::read(&file).expect("readable");
        fs::write(&file, mended.concat()).expect("written");
        let output = run(quoted(&error));
        assert!(output.status.success(), "{output:?}");
        let object = desk.json(&[&"stats", &dir]).1;
        assert_eq!(object["total_postings"], (n + 1) * 500);
        fs::write(&file, bad).expect("written");
    }
    // Every row has the id that an uninterrupted ingest would have given it.
    let (queries, out) = (desk.vectors("queries.npy", 0..500), desk.path("out.npy"));
    desk.json(&[&"search", &dir, &queries, &"-k", &"2", &"--exact", &"--out", &out]);
    let expected: Vec<i64> = (0..500).flat_map(|n| [n, n + 1000]).collect();
    assert_eq!(ids(&out), expected);
}

/// Runs an ingest in which each file may have at most `blocks` blocks of 512 bytes, as if the disk were full. Returns
/// the exit code and the text on standard error.
fn limited(blocks: usize, dir: &Path, file: &Path, options: &[&str]) -> (Option<i32>, String) {
    // Without the trap, a signal kills the process at the first store beyond the limit.
    let script = format!("trap '' XFSZ; ulimit -f {blocks}; exec \"$@\"");
    let output = Command::new("sh")
        .args(["-c", &script, "sh", env!("CARGO_BIN_EXE_shardex"), "ingest"])
        .args([dir, file])
        .args(options)
        .stdin(Stdio::null())
        .output()
        .expect("it runs");
    (output.status.code(), String::from_utf8(output.stderr).expect("text"))
}

#[test]
fn an_ingest_without_room_leaves_no_index_or_says_what_is_durable() {
    let desk = Desk::new();
    let (dir, dimension) = (desk.path("index"), 64);
    let data: Vec<u8> = (0..20_000).flat_map(|n| vector(n, dimension)).flat_map(f32::to_le_bytes).collect();
    let file = desk.npy("rows.npy", "<f4", (20_000, dimension), &data);
    // The first limit is too small for an empty index. The second is large enough for an empty index, but too small for
    // the first batch.
    for (blocks, batch) in [(64, "100"), (10_240, "20000")] {
        let (code, error) = limited(blocks, &dir, &file, &["--batch", batch]);
        assert_eq!(code, Some(2), "{error}");
        assert!(!dir.exists(), "{blocks} blocks: {error}");
    }
    let (code, error) = limited(10_240, &dir, &file, &["--batch", "500", "--metric", "l2"]);
    assert!(code == Some(2) && error.lines().count() == 1, "{error}");
    let there = desk.json(&[&"stats", &dir]).1["total_postings"].as_u64().expect("a number");
    assert!(there > 0 && error.contains(&format!("rows 0 to {} are durable", there - 1)), "{there}: {error}");
    let output = run(quoted(&error));
    assert!(output.status.success(), "{output:?}");
    assert_eq!(desk.json(&[&"stats", &dir]).1["total_postings"], 20_000);
}

/// Feeds an endless pipe to an ingest, and sends it a signal once it has committed 300 rows. Returns its output and the
/// text on its standard output.
fn interrupted(dir: &Path, signal: &str, options: &[&str]) -> (Output, String) {
    let mut command = shardex();
    command
        .args([AsRef::<std::ffi::OsStr>::as_ref("ingest"), dir.as_ref(), "-".as_ref()])
        .args(["--batch", "100", "--commit-each", "--progress", "plain"])
        .args(options);
    let mut child = piped_child(&mut command);
    let mut stdin = child.stdin.take().expect("its stdin");
    let mut out = BufReader::new(child.stdout.take().expect("its stdout"));
    let feeder = std::thread::spawn(move || {
        stdin.write_all(&header("<f4", &format!("(100000000, {DIMENSION})"))).expect("read");
        let batch = rows(0..100);
        // The write fails once the child has exited.
        while stdin.write_all(&batch).is_ok() {}
    });
    let mut text = String::new();
    while !text.ends_with("committed 300\n") {
        assert!(out.read_line(&mut text).expect("text") > 0, "it ended: {text}");
    }
    let pid = child.id().to_string();
    assert!(Command::new("kill").args(["-s", signal, &pid]).status().expect("it runs").success());
    out.read_to_string(&mut text).expect("text");
    let output = ended(child);
    feeder.join().expect("no panic");
    (output, text)
}

#[test]
fn an_ingest_that_is_interrupted_says_what_is_durable_and_how_to_go_on() {
    for (signal, code) in [("INT", 130), ("TERM", 143)] {
        let desk = Desk::new();
        let dir = desk.path("index");
        let (output, text) = interrupted(&dir, signal, &[]);
        assert_eq!(output.status.code(), Some(code), "{text}");
        let last = text.lines().last().expect("a line");
        let there = desk.json(&[&"stats", &dir]).1["total_postings"].as_u64().expect("a number");
        // The feeder repeats the same 100 rows, and every copy gets other ids.
        assert!(there >= 300 && there.is_multiple_of(100), "{there}");
        let says = format!("interrupted: rows 0 to {} are durable", there - 1);
        assert!(last.starts_with(&says), "{there}: {last}");
        let go_on = format!("--progress plain --from-row {there} --commit-each");
        assert!(quoted(last).starts_with("shardex ingest ") && quoted(last).ends_with(&go_on), "{last}");
        assert_eq!(desk.json(&[&"check", &dir, &"--full"]).0, 0);
    }
    let desk = Desk::new();
    let dir = desk.path("index");
    let (output, text) = interrupted(&dir, "INT", &["--json"]);
    let object: Value = serde_json::from_str(text.lines().last().expect("a line")).expect("an object");
    let there = &desk.json(&[&"stats", &dir]).1["total_postings"];
    assert_eq!((output.status.code(), &object["durable_rows"]), (Some(130), there));
    assert!(object["go_on"].as_str().is_some_and(|line| line.contains(" --from-row ")), "{object}");
}

#[test]
fn a_benchmark_that_is_interrupted_leaves_nothing_behind() {
    let desk = Desk::new();
    let child = shardex()
        .arg("bench")
        .arg(desk.path(""))
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("it runs");
    let made = || fs::read_dir(desk.path("")).expect("readable").next().is_some();
    while !made() {
        std::thread::yield_now();
    }
    let pid = child.id().to_string();
    assert!(Command::new("kill").args(["-s", "INT", &pid]).status().expect("it runs").success());
    assert_eq!(ended(child).status.code(), Some(130));
    assert!(!made(), "its directory is removed");
}

/// Starts a command that reads rows from a pipe, and sends it only `rows`, which are fewer than the header declares.
/// Sends SIGTERM once `is_ready` returns true.
fn waiting(args: &[&std::ffi::OsStr], rows: &[u8], is_ready: impl Fn() -> bool) -> Output {
    let mut child = piped_child(shardex().args(args));
    let mut stdin = child.stdin.take().expect("its stdin");
    stdin.write_all(&header("<f4", &format!("(10000, {DIMENSION})"))).expect("read");
    stdin.write_all(rows).expect("read");
    while !is_ready() {
        std::thread::yield_now();
    }
    let pid = child.id().to_string();
    assert!(Command::new("kill").args(["-s", "TERM", &pid]).status().expect("it runs").success());
    let output = ended(child);
    drop(stdin);
    output
}

/// Regression test: the first signal took effect only after the next rows, which never came.
#[test]
fn an_ingest_that_waits_for_rows_is_interrupted_at_once() {
    let desk = Desk::new();
    let dir = desk.path("index");
    let args = ["ingest".as_ref(), dir.as_ref(), "-".as_ref(), "--batch".as_ref(), "100".as_ref()];
    // Three complete batches were sent. All, some or none of them may be accepted when the signal comes.
    let output = waiting(&args, &rows(0..350), || dir.join("root").exists());
    let text = String::from_utf8(output.stdout).expect("text");
    assert_eq!((output.status.code(), output.stderr), (Some(143), Vec::new()), "{text}");
    let says = |what| text.starts_with(&format!("interrupted: {what}"));
    assert!(says("no row was added: to continue") || says("rows 0 to "), "{text}");
    assert_eq!(dir.join("root").exists(), says("rows 0 to "), "{text}");
    if dir.join("root").exists() {
        assert_eq!(desk.json(&[&"check", &dir, &"--full"]).0, 0);
    }
}

/// Regression test: an interrupted search left behind the temporary file of its answers.
#[test]
fn a_search_that_is_interrupted_leaves_no_file_behind() {
    let desk = Desk::new();
    let (dir, outs) = (desk.path("index"), desk.path("outs"));
    desk.json(&[&"ingest", &dir, &desk.vectors("rows.npy", 0..200)]);
    fs::create_dir(&outs).expect("made");
    let out = outs.join("out.npy");
    let args = ["search".as_ref(), dir.as_ref(), "-".as_ref(), "--out".as_ref(), out.as_ref()];
    let made = || fs::read_dir(&outs).expect("readable").next().is_some();
    let output = waiting(&args, &rows(0..10), made);
    assert_eq!(output.status.code(), Some(143), "{output:?}");
    assert!(!made(), "its file is removed");
}
