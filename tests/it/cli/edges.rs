//! Tests of edge cases in which the command-line tool could destroy data, hang or mislead its caller.

use std::{ffi::OsStr, fs, io::Write as _, os::unix::fs::symlink, process::Stdio};

use rustix::fs::{CWD, FileType, Mode, mknodat};
use serde_json::Value;

use super::{DIMENSION, Desk, WITH_CELLS, ended, header, ids, piped_child, shardex};
use crate::support::vector;

type Args<'a> = Vec<&'a dyn AsRef<OsStr>>;

/// Reads all files of a directory. Returns their names and bytes, sorted by name.
fn bytes(dir: &std::path::Path) -> Vec<(std::ffi::OsString, Vec<u8>)> {
    let entries = fs::read_dir(dir).expect("readable").map(|entry| entry.expect("an entry"));
    let mut files: Vec<_> = entries.map(|entry| (entry.file_name(), fs::read(entry.path()).expect("a file"))).collect();
    files.sort();
    files
}

#[test]
fn no_command_writes_into_an_index_or_over_a_file_unasked() {
    let desk = Desk::new();
    let (dir, rows) = (desk.path("index"), desk.vectors("rows.npy", 0..50));
    desk.json(&[&"ingest", &dir, &rows]);
    let before = bytes(&dir);
    symlink(dir.join("data"), desk.path("link")).expect("a link");
    symlink(dir.join("new"), desk.path("dangling")).expect("a link");
    symlink(&dir, desk.path("elsewhere")).expect("a link");
    let inside = [
        dir.join("data"),
        dir.join("new"),
        dir.join("..").join("index").join("wal"),
        desk.path("link"),
        desk.path("dangling"),
        desk.path("elsewhere").join("new"),
    ];
    for out in &inside {
        for force in [false, true] {
            let mut args: Args = vec![&"search", &dir, &rows, &"--out", out];
            if force {
                args.push(&"--force");
            }
            desk.fails(&args, "index");
        }
    }
    fs::hard_link(dir.join("data"), desk.path("hard")).expect("a link");
    desk.fails(&[&"search", &dir, &rows, &"--out", &desk.path("hard"), &"--force"], "index");
    fs::remove_file(desk.path("hard")).expect("removed");
    // Paths relative to the current directory are recognised too. The directory of another index is also protected.
    let other = desk.path("other");
    desk.json(&[&"ingest", &other, &rows]);
    let output = shardex().current_dir(&other).args(["search", "../index", "../rows.npy", "--out", "x"]).output();
    assert_eq!(output.expect("it runs").status.code(), Some(2));
    assert!(!other.join("x").exists());
    desk.fails(&[&"ingest", &dir.join("inner"), &rows], "directory of an index");
    desk.fails(&[&"bench", &dir], "directory of an index");
    let output = shardex().arg("demo").env("TMPDIR", &dir).output().expect("it runs");
    assert_eq!(output.status.code(), Some(2));
    assert_eq!(bytes(&dir), before);

    let text = desk.path("letter.txt");
    fs::write(&text, "dear").expect("written");
    desk.fails(&[&"search", &dir, &rows, &"--out", &text], "--force");
    desk.fails(&[&"search", &dir, &rows, &"--out", &rows, &"--force"], "this command reads it");
    desk.fails(&[&"search", &dir, &rows, &"--out", &desk.path("")], "no regular file");
    assert_eq!(fs::read(&text).expect("readable"), b"dear");
    let (code, _) = desk.json(&[&"search", &dir, &rows, &"-k", &"1", &"--out", &text, &"--force"]);
    assert_eq!((code, ids(&text)), (0, (0..50).collect::<Vec<i64>>()));
    // A search that fails leaves neither its output file nor a temporary one.
    let wide = desk.npy("wide.npy", "<f4", (1, 3), &[0; 12]);
    desk.fails(&[&"search", &dir, &wide, &"--out", &desk.path("none.npy")], "vectors of 8");
    let left = fs::read_dir(desk.path("")).expect("readable").map(|entry| entry.expect("an entry").file_name());
    assert!(left.into_iter().all(|name| name != "none.npy" && !name.to_string_lossy().starts_with(".shardex-")));
}

#[test]
fn what_costs_threads_or_memory_is_bounded_and_what_contradicts_is_refused() {
    let desk = Desk::new();
    let (dir, rows) = (desk.path("index"), desk.vectors("rows.npy", 0..50));
    desk.json(&[&"ingest", &dir, &rows]);
    desk.fails(&[&"search", &dir, &rows, &"--threads", &"100000"], "--threads");
    desk.fails(&[&"search", &dir, &rows, &"--threads", &"18446744073709551615"], "--threads");
    desk.fails(&[&"ingest", &dir, &rows, &"--batch", &"18446744073709551615"], "--batch");
    desk.fails(&[&"bench", &"--rows", &"18446744073709551615"], "--rows");
    desk.fails(&[&"bench", &"--rounds", &"18446744073709551615"], "--rounds");
    assert_eq!(desk.json(&[&"search", &dir, &rows, &"--threads", &"64"]).0, 0);
    desk.fails(&[&"search", &dir, &rows, &"--exact", &"--recall", &"0.9"], "cannot be used with");
    desk.fails(&[&"search", &dir, &rows, &"--exact", &"--slop", &"2"], "cannot be used with");
    desk.fails(&[&"search", &dir, &rows, &"--quiet", &"--show", &"2"], "cannot be used with");
    desk.fails(&[&"search", &dir, &rows, &"--force"], "--out");
    desk.fails(&[&"ingest", &dir, &rows, &"--optimize", &"--no-optimize"], "cannot be used with");
    for recall in ["0", "-0.5", "1.5", "NaN", "most"] {
        desk.fails(&[&"search", &dir, &rows, &"--recall", &recall], "--recall");
    }
    desk.fails(&[&"remove", &dir, &"--ids", &"-1..4"], "A..B");
    desk.fails(&[&"ingest", &dir, &rows, &"--from-row", &"51"], "--from-row 51");
    desk.fails(&[&"ingest", &dir, &rows, &"--from-row", &"-1"], "--from-row");
    let empty = desk.npy("empty.npy", "<f4", (0, DIMENSION), &[]);
    desk.fails(&[&"bench", &"--data", &empty], "no rows");
    desk.fails(&[&"bench", &"--data", &rows, &"--queries", &empty], "no rows");
    desk.fails(&[&"bench", &"--data", &rows, &"--queries", &rows, &"--truth", &rows], "8 ids for 50 queries");
    desk.fails(&[&"bench", &desk.path("missing")], "missing");
}

#[test]
fn one_row_more_makes_no_cells_and_many_rows_do() {
    let desk = Desk::new();
    let (dimension, rows) = WITH_CELLS;
    let (dir, rows) = (desk.path("index"), desk.vectors_of(dimension, "rows.npy", rows));
    let (_, object) = desk.json(&[&"ingest", &dir, &rows]);
    assert_eq!((&object["optimized"], &object["unindexed_postings"]), (&true.into(), &0.into()));
    let one = desk.vectors_of(dimension, "one.npy", 7_000..7_001);
    let (_, object) = desk.json(&[&"ingest", &dir, &one, &"--first-id", &"7000"]);
    assert_eq!((&object["optimized"], &object["total_postings"]), (&false.into(), &5_001.into()));
    assert!((1..1_000).contains(&object["unindexed_postings"].as_u64().expect("a number")), "{object}");
    let (_, object) = desk.json(&[&"stats", &dir]);
    assert!(object["unindexed_postings"].as_u64() > Some(0) && object["cells"].as_u64() > Some(0), "{object}");
    // A search finds the unindexed row.
    let output = desk.run(&[&"search", &dir, &one, &"-k", &"1", &"--json"]);
    assert!(String::from_utf8_lossy(&output.stdout).contains("\"document_id\":7000,"), "{output:?}");
    let (_, object) = desk.json(&[&"ingest", &dir, &one, &"--first-id", &"7001", &"--optimize"]);
    assert_eq!((&object["optimized"], &object["unindexed_postings"]), (&true.into(), &0.into()));
    desk.json(&[&"ingest", &dir, &one, &"--first-id", &"7002"]);
    let (code, object) = desk.json(&[&"optimize", &dir]);
    assert_eq!((code, &object["total_postings"]), (0, &5_003.into()));
    assert_eq!(desk.json(&[&"stats", &dir]).1["unindexed_postings"], 0);

    // With few rows no cells are built, because an exhaustive search costs less.
    let (dir, rows) = (desk.path("other"), desk.vectors_of(dimension, "rows.npy", 0..400));
    let (_, object) = desk.json(&[&"ingest", &dir, &rows, &"--no-optimize"]);
    assert_eq!((&object["optimized"], &object["unindexed_postings"]), (&false.into(), &400.into()));
    let (_, object) = desk.json(&[&"ingest", &dir, &one, &"--first-id", &"7000"]);
    assert_eq!((&object["optimized"], &object["total_postings"]), (&true.into(), &401.into()), "most were in no cell");
    assert_eq!(desk.json(&[&"stats", &dir]).1["cells"], 0);
}

#[test]
fn purge_erases_what_remove_left() {
    let desk = Desk::new();
    let (dir, rows) = (desk.path("index"), desk.vectors_of(24, "rows.npy", 0..300));
    desk.json(&[&"ingest", &dir, &rows]);
    desk.json(&[&"remove", &dir, &"--ids", &"10..20"]);
    let (code, object) = desk.json(&[&"purge", &dir]);
    assert_eq!((code, &object["total_postings"]), (0, &290.into()));
    assert!(object["rewritten_bytes"].as_u64() > Some(0) && object["wiped_bytes"].as_u64() > Some(0), "{object}");
    let vector = crate::support::vector(15, 24);
    let bytes: Vec<u8> = vector.iter().take(6).flat_map(|x| x.to_le_bytes()).collect();
    for name in ["data", "wal", "root"] {
        let file = std::fs::read(dir.join(name)).expect("read");
        assert!(!file.windows(bytes.len()).any(|window| window == bytes), "{name} still holds it");
    }
    let text = desk.run(&[&"purge", &dir]);
    assert!(String::from_utf8_lossy(&text.stdout).contains("are erased"), "{text:?}");
    assert_eq!(desk.json(&[&"check", &dir, &"--full"]).0, 0);
}

#[test]
fn a_first_ingest_that_is_refused_leaves_no_index() {
    let desk = Desk::new();
    let dir = desk.path("index");
    let floats = |values: &[f32]| values.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>();
    let rows = desk.vectors("rows.npy", 0..5);
    let zero = desk.npy("zero.npy", "<f4", (2, 2), &floats(&[1.0, 0.0, 0.0, 0.0]));
    let nan = desk.npy("nan.npy", "<f4", (2, 2), &floats(&[1.0, 0.0, 0.0, f32::NAN]));
    let long = desk.npy("long.npy", "<f4", (1, 2), &floats(&[f32::MAX, f32::MAX]));
    let none = desk.npy("none.npy", "<f4", (0, 2), &[]);
    let narrow = desk.npy("narrow.npy", "<f4", (2, 0), &[]);
    let complex = desk.npy("complex.npy", "<c8", (1, 2), &[0; 16]);
    let cases: [(&dyn AsRef<OsStr>, &[&str], &str); 10] = [
        (&zero, &[], "zero.npy: row 1: a zero vector"),
        (&nan, &[], "nan.npy: row 1: number 1 is NaN"),
        (&long, &[], "long.npy: row 0: its norm"),
        (&none, &[], "no row"),
        (&narrow, &[], "0 numbers"),
        (&complex, &[], "complex.npy"),
        (&rows, &["--shard-size", "1"], "shard_size"),
        (&rows, &["--from-row", "5"], "no row"),
        (&rows, &["--flush-wal-bytes", "1", "--first-id", "340282366920938463463374607431768211455"], "--first-id"),
        (&"missing.npy", &[], "missing.npy"),
    ];
    for made in [false, true] {
        if made {
            fs::create_dir(&dir).expect("a directory");
        }
        for (file, options, says) in cases {
            let mut args: Args = vec![&"ingest", &dir, file];
            args.extend(options.iter().map(|option| option as &dyn AsRef<OsStr>));
            desk.fails(&args, says);
            assert_eq!(dir.exists(), made, "{says}");
            assert!(!made || fs::read_dir(&dir).expect("readable").next().is_none(), "{says}");
        }
    }
    // The refused attempts fixed neither dimension nor metric, so the next ingest may choose them.
    assert_eq!(desk.json(&[&"ingest", &dir, &rows, &"--metric", &"l2"]).0, 0);
    desk.fails(&[&"ingest", &dir, &nan], "row 1");
    assert_eq!(desk.json(&[&"stats", &dir]).1["total_postings"], 5);
}

#[test]
fn a_query_that_is_refused_is_named_once_by_its_row() {
    let desk = Desk::new();
    let (dir, rows) = (desk.path("index"), desk.vectors("rows.npy", 0..50));
    desk.json(&[&"ingest", &dir, &rows]);
    let mut data: Vec<u8> = (0..6).flat_map(|n| vector(n, DIMENSION)).flat_map(f32::to_le_bytes).collect();
    data[5 * DIMENSION * 4..].fill(0);
    let queries = desk.npy("queries.npy", "<f4", (6, DIMENSION), &data);
    for more in [&["--batched"][..], &["--threads", "2"], &[]] {
        let mut args: Args = vec![&"search", &dir, &queries];
        args.extend(more.iter().map(|option| option as &dyn AsRef<OsStr>));
        desk.fails(&args, "queries.npy: query 5: a zero vector");
        let output = desk.run(&args);
        assert!(!String::from_utf8_lossy(&output.stderr).contains("vector 0"), "{output:?}");
    }
}

#[test]
fn hits_are_printed_for_people_and_for_programs() {
    let desk = Desk::new();
    let (dir, rows) = (desk.path("index"), desk.vectors("rows.npy", 0..50));
    desk.json(&[&"ingest", &dir, &rows, &"--first-id", &"18446744073709551600"]);
    let text = |args: &Args<'_>| String::from_utf8(desk.run(args).stdout).expect("text");
    let people = text(&vec![&"search", &dir, &rows, &"-k", &"3"]);
    let table: Vec<Vec<&str>> = people.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(table[0], ["query", "rank", "document", "start", "length", "score"]);
    assert_eq!(table[1], ["0", "1", "18446744073709551600", "0", "1", "1.000000"]);
    assert_eq!(table[60][..2], ["19", "3"], "{people}");
    assert!(people.contains("30 more queries: --show 50"), "{people}");
    assert!(people.lines().last().is_some_and(|line| line.starts_with("50 queries")), "{people}");
    let all = text(&vec![&"search", &dir, &rows, &"-k", &"3", &"--show", &"50"]);
    assert!(all.lines().count() > 150 && !all.contains("more queries"), "{all}");
    let quiet = text(&vec![&"search", &dir, &rows, &"--quiet"]);
    assert_eq!(quiet.lines().count(), 1, "{quiet}");

    let programs = text(&vec![&"search", &dir, &rows, &"-k", &"3", &"--json"]);
    let objects: Vec<Value> = programs.lines().map(|line| serde_json::from_str(line).expect("an object")).collect();
    assert_eq!(objects.len(), 51);
    for (query, object) in objects[..50].iter().enumerate() {
        let hits = object["hits"].as_array().expect("hits");
        assert_eq!((&object["query"], hits.len()), (&query.into(), 3), "{object}");
        let scores: Vec<f64> = hits.iter().filter_map(|hit| hit["score"].as_f64()).collect();
        assert!(scores.len() == 3 && scores.is_sorted_by(|a, b| a >= b) && scores[0] > 0.999, "{object}");
    }
    assert!(programs.lines().nth(16).is_some_and(|line| line.contains("\"document_id\":18446744073709551616,")));
    assert_eq!(objects[50]["queries"], 50);
    assert_eq!(text(&vec![&"search", &dir, &rows, &"-q", &"--json"]).lines().count(), 1);
    assert_eq!(text(&vec![&"search", &dir, &rows, &"--show", &"2", &"--json"]).lines().count(), 3);
}

#[test]
fn every_plain_type_of_number_is_taken() {
    let desk = Desk::new();
    macro_rules! rows {
        ($descr:literal, $number:ty, $bytes:ident) => {{
            // Every row points in a different direction.
            let data: Vec<u8> =
                (0..16).flat_map(|i| (if i % 5 == 0 { 9 as $number } else { i as $number }).$bytes()).collect();
            (desk.npy(&$descr.replace(['<', '>', '|'], "_"), $descr, (4, 4), &data), $descr)
        }};
    }
    let types = [
        rows!("<f8", f64, to_le_bytes),
        rows!(">f8", f64, to_be_bytes),
        rows!("<f4", f32, to_le_bytes),
        rows!(">f4", f32, to_be_bytes),
        rows!("|i1", i8, to_le_bytes),
        rows!("<i2", i16, to_le_bytes),
        rows!("<i4", i32, to_le_bytes),
        rows!(">i4", i32, to_be_bytes),
        rows!("<i8", i64, to_le_bytes),
        rows!("|u1", u8, to_le_bytes),
        rows!("<u2", u16, to_le_bytes),
        rows!("<u4", u32, to_le_bytes),
        rows!(">u8", u64, to_be_bytes),
    ];
    let queries = &types[2].0;
    for (file, descr) in &types {
        let dir = desk.path(&format!("index{}", file.file_name().expect("a name").to_string_lossy()));
        let (code, object) = desk.json(&[&"ingest", &dir, file, &"--metric", &"l2"]);
        assert_eq!((code, &object["vectors"]), (0, &4.into()), "{descr}");
        let out = desk.path("out.npy");
        desk.json(&[&"search", &dir, queries, &"-k", &"1", &"--exact", &"--out", &out, &"--force"]);
        assert_eq!(ids(&out), [0, 1, 2, 3], "{descr}");
    }
    let dir = desk.path("index_f4");
    let mut one = header("<f4", "(4,)");
    one.extend([1.0f32, 9.0, 3.0, 4.0].iter().flat_map(|x| x.to_le_bytes()));
    let query = desk.path("one.npy");
    fs::write(&query, one).expect("written");
    assert_eq!(desk.json(&[&"search", &dir, &query]).1["queries"], 1);
    desk.fails(&[&"ingest", &dir, &query], "reshape(1, -1)");
    let huge = desk.npy("huge.npy", "<f8", (1, 4), &[1.0, 1.0, 1e300, 1.0].map(f64::to_le_bytes).concat());
    desk.fails(&[&"ingest", &dir, &huge], "row 0: number 2 is 1e300");
}

#[test]
fn a_pipe_is_read_and_a_named_one_is_refused_and_nothing_hangs() {
    let desk = Desk::new();
    let (dir, rows) = (desk.path("index"), desk.vectors("rows.npy", 0..300));
    let piped = |args: &Args<'_>, bytes: Vec<u8>| {
        let mut child = piped_child(shardex().args(args));
        let mut stdin = child.stdin.take().expect("its stdin");
        // The child may exit before it has read everything, so an error of the write is ignored. The caller checks the
        // exit code.
        let writer = std::thread::spawn(move || drop(stdin.write_all(&bytes)));
        let output = ended(child);
        writer.join().expect("no panic");
        output
    };
    let whole = fs::read(&rows).expect("readable");
    for (n, name) in ["-", "/dev/stdin", "/dev/fd/0", "/proc/self/fd/0"].iter().enumerate() {
        let id = (n * 1000).to_string();
        let output = piped(&vec![&"ingest", &dir, name, &"--first-id", &id, &"--batch", &"64"], whole.clone());
        assert!(output.status.success(), "{name}: {output:?}");
        let output = piped(&vec![&"search", &dir, name, &"-k", &"1", &"--quiet", &"--json"], whole.clone());
        assert!(String::from_utf8_lossy(&output.stdout).contains("\"queries\":300"), "{name}: {output:?}");
    }
    assert_eq!(desk.json(&[&"stats", &dir]).1["total_postings"], 1_200);
    for (bytes, says) in [
        (Vec::new(), "no .npy file"),
        (whole[..9].to_vec(), "ends in its header"),
        (whole[..whole.len() - 1].to_vec(), "before row 299 of 300"),
        (header("<f4", "(9999999999, 8)"), "before row"),
    ] {
        let output = piped(&vec![&"search", &dir, &"-"], bytes);
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.code() == Some(2) && error.contains(says), "{says}: {error}");
    }
    let output = piped(&vec![&"search", &dir, &"-", &"--truth", &"-", &"-k", &"1"], whole.clone());
    assert!(String::from_utf8_lossy(&output.stderr).contains("only once"), "{output:?}");

    // No process writes to the named pipe, so opening it would block.
    let fifo = desk.path("fifo");
    mknodat(CWD, &fifo, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).expect("a named pipe");
    let refused: [Args; 5] = [
        vec![&"ingest", &dir, &fifo],
        vec![&"search", &dir, &fifo],
        vec![&"search", &dir, &rows, &"--truth", &fifo],
        vec![&"search", &dir, &rows, &"--out", &fifo, &"--force"],
        vec![&"bench", &"--data", &fifo],
    ];
    for args in refused {
        let output = piped(&args, Vec::new());
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.code() == Some(2) && error.contains("no regular file"), "{error}");
    }
    // As standard input, a named pipe is read like any other pipe.
    let writer = {
        let fifo = fifo.clone();
        std::thread::spawn(move || drop(fs::write(fifo, whole)))
    };
    let stdin = fs::File::open(&fifo).expect("opened by both");
    let child = shardex().arg("search").arg(&dir).arg("-").stdin(stdin).stdout(Stdio::piped()).spawn();
    assert!(ended(child.expect("it runs")).status.success());
    writer.join().expect("no panic");
}
