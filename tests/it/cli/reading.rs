//! Tests of `get`, `count` and `scan`: their text, their JSON and their errors.

use std::{
    collections::BTreeMap,
    ffi::OsStr,
    fs,
    io::{BufRead as _, BufReader},
    path::Path,
    process::Stdio,
};

use serde_json::Value;
use shardex::{DocumentId, Metric, Posting, ShardexConfig, blocking::Shardex};

use super::{DIMENSION, Desk, ended, shardex};
use crate::support::vector;

type Args<'a> = Vec<&'a dyn AsRef<OsStr>>;

/// Id of the document that [`postings`] numbers `n`. From the sixteenth on it exceeds 64 bits.
fn id(n: u32) -> DocumentId {
    DocumentId(u128::from(n) << 60)
}

/// Forty documents of one to three parts, 79 postings in all.
pub(super) fn postings() -> Vec<Posting> {
    let part = |n: u32, part: u32| Posting {
        document_id: id(n),
        start: part * 10,
        length: part + 1,
        vector: vector(u64::from(n * 3 + part), DIMENSION),
        tags: 0,
    };
    (0..40).flat_map(|n| (0..=n % 3).map(move |i| part(n, i))).collect()
}

/// Creates an index of some postings.
pub(super) fn made(dir: &Path, metric: Metric, postings: Vec<Posting>) {
    let config = ShardexConfig::new(dir).vector_size(DIMENSION).metric(metric).shard_size(16);
    let index = Shardex::create(config).expect("made");
    index.add_postings(postings).expect("accepted");
    index.close().expect("closed");
}

/// Desk with an index of [`postings`].
fn desk() -> (Desk, std::path::PathBuf) {
    let desk = Desk::new();
    let dir = desk.path("index");
    made(&dir, Metric::L2, postings());
    (desk, dir)
}

/// Runs a command that must succeed. Returns the lines of its standard output.
#[track_caller]
fn lines(desk: &Desk, args: &Args<'_>) -> Vec<String> {
    let output = desk.run(args);
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
    String::from_utf8(output.stdout).expect("text").lines().map(str::to_owned).collect()
}

fn object(line: &str) -> Value {
    serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"))
}

fn numbers(object: &Value) -> Vec<f32> {
    let numbers = object["vector"].as_array().expect("a vector");
    numbers.iter().map(|x| x.as_f64().expect("a number") as f32).collect()
}

fn key(posting: &Posting) -> String {
    format!("{}:{}:{}", posting.document_id, posting.start, posting.length)
}

/// Keys and vectors of [`postings`], in the order of keys.
fn expected() -> Vec<(String, Vec<f32>)> {
    let by_key: BTreeMap<_, _> =
        postings().into_iter().map(|p| ((p.document_id, p.start, p.length), (key(&p), p.vector))).collect();
    by_key.into_values().collect()
}

#[test]
fn get_prints_the_postings_of_a_document() {
    let (desk, dir) = desk();
    let expected: Vec<Posting> = postings().into_iter().filter(|posting| posting.document_id == id(17)).collect();
    assert_eq!(expected.len(), 3);
    let decimal = id(17).to_string();
    let first = lines(&desk, &vec![&"get", &dir, &decimal]);
    let all = lines(&desk, &vec![&"get", &dir, &decimal, &"--vectors"]);
    let json = lines(&desk, &vec![&"get", &dir, &decimal, &"--json"]);
    assert_eq!((first.len(), all.len(), json.len()), (3, 3, 4));
    for (i, posting) in expected.iter().enumerate() {
        let words: Vec<&str> = first[i].split(' ').collect();
        assert_eq!((words[0], &words[5..]), (key(posting).as_str(), &["…", "(8", "numbers)"][..]), "{words:?}");
        let mut words = all[i].split(' ');
        assert_eq!(words.next(), Some(key(posting).as_str()));
        assert_eq!(words.map(|x| x.parse().expect("a number")).collect::<Vec<f32>>(), posting.vector);
        let object = object(&json[i]);
        assert_eq!((&object["start"], &object["length"]), (&posting.start.into(), &posting.length.into()));
        assert_eq!(numbers(&object), posting.vector);
        assert!(json[i].starts_with(&format!(r#"{{"document_id":{decimal},"start":"#)), "{}", json[i]);
    }
    assert_eq!(object(&json[3]), serde_json::json!({ "postings": 3 }));
    // Every form of an id is taken.
    let hex = format!("{:032x}", id(17).0);
    let uuid = [&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]].join("-");
    for form in [format!("0x{:X}", id(17).0), uuid] {
        assert_eq!(lines(&desk, &vec![&"get", &dir, &form]), first, "{form}");
    }
    let cases: [(&[&str], std::ops::Range<usize>); 4] = [
        (&["--start", "10"], 1..2),
        (&["--length", "3"], 2..3),
        (&["--start", "20", "--length", "3"], 2..3),
        (&["--start", "0", "--length", "1"], 0..1),
    ];
    for (options, rows) in cases {
        let mut args: Args = vec![&"get", &dir, &decimal];
        args.extend(options.iter().map(|option| option as &dyn AsRef<OsStr>));
        assert_eq!(lines(&desk, &args), first[rows], "{options:?}");
    }
}

#[test]
fn get_answers_no_if_there_is_no_such_posting() {
    let (desk, dir) = desk();
    let none: [(Args, &str); 5] = [
        (vec![&"get", &dir, &"1"], "no posting of document 1\n"),
        (vec![&"get", &dir, &"0xffffffffffffffffffffffffffffffff"], "no posting of document 34028236692093846"),
        (vec![&"get", &dir, &"0", &"--start", &"1"], "no posting of document 0, start 1\n"),
        (vec![&"get", &dir, &"0", &"--length", &"2"], "no posting of document 0, length 2\n"),
        (
            vec![&"get", &dir, &"0", &"--start", &"0", &"--length", &"2"],
            "no posting of document 0, start 0, length 2\n",
        ),
    ];
    for (args, says) in none {
        let output = desk.run(&args);
        let text = String::from_utf8(output.stdout).expect("text");
        assert!(output.status.code() == Some(1) && text.starts_with(says) && output.stderr.is_empty(), "{text}");
        assert_eq!(desk.json(&args), (1, serde_json::json!({ "postings": 0 })));
    }
}

#[test]
fn count_counts_postings_and_documents() {
    let (desk, dir) = desk();
    assert_eq!(desk.json(&[&"count", &dir]), (0, serde_json::json!({ "postings": 79, "documents": 40 })));
    assert_eq!(lines(&desk, &vec![&"count", &dir]), ["79 postings of 40 documents"]);
    for (document, count) in [(id(0), 1), (id(17), 3), (DocumentId(1), 0)] {
        let document = document.to_string();
        assert_eq!(desk.json(&[&"count", &dir, &document]), (0, serde_json::json!({ "postings": count })));
        assert_eq!(lines(&desk, &vec![&"count", &dir, &document]), [format!("{count} postings")]);
    }
    // A removal is counted at once.
    let (from, to) = (format!("0x{:x}", id(17).0), (id(17).0 + 1).to_string());
    assert_eq!(desk.json(&[&"remove", &dir, &"--ids", &format!("{from}..{to}")]).1["removed_postings"], 3);
    assert_eq!(desk.json(&[&"count", &dir]), (0, serde_json::json!({ "postings": 76, "documents": 39 })));
    assert_eq!(desk.json(&[&"count", &dir, &from]).1["postings"], 0);
}

#[test]
fn scan_lists_every_posting_once() {
    let (desk, dir) = desk();
    let expected = expected();
    let keys: Vec<&String> = expected.iter().map(|(key, _)| key).collect();
    let mut listed = lines(&desk, &vec![&"scan", &dir]);
    listed.sort();
    let mut sorted = keys.clone();
    sorted.sort();
    assert_eq!(listed.iter().collect::<Vec<_>>(), sorted);
    assert_eq!(lines(&desk, &vec![&"scan", &dir, &"--by-key"]).iter().collect::<Vec<_>>(), keys);
    for options in [&["--by-key"][..], &[]] {
        let mut args: Args = vec![&"scan", &dir, &"--vectors", &"--json"];
        args.extend(options.iter().map(|option| option as &dyn AsRef<OsStr>));
        let json = lines(&desk, &args);
        assert_eq!(json.len(), 80);
        let mut seen: Vec<(String, Vec<f32>)> = Vec::new();
        for line in &json[..79] {
            // The id is read from the text, because it may exceed 64 bits.
            let id = line.split([':', ',']).nth(1).expect("an id");
            let object = object(line);
            seen.push((format!("{id}:{}:{}", object["start"], object["length"]), numbers(&object)));
        }
        let last = seen[78].0.clone();
        if options.is_empty() {
            seen.sort_by_key(|(key, _)| keys.iter().position(|other| *other == key));
        }
        assert_eq!(seen, expected);
        assert_eq!(object(&json[79]), serde_json::json!({ "postings": 79, "last": last }));
    }
    let json = lines(&desk, &vec![&"scan", &dir, &"--json", &"--limit", &"1"]);
    assert!(json.len() == 2 && object(&json[0])["vector"].is_null(), "{json:?}");
    assert_eq!(lines(&desk, &vec![&"scan", &dir, &"--limit", &"0"]), Vec::<String>::new());
    let none = serde_json::json!({ "postings": 0, "last": null });
    assert_eq!(desk.json(&[&"scan", &dir, &"--by-key", &"--limit", &"0"]), (0, none));
    assert_eq!(lines(&desk, &vec![&"scan", &dir, &"--limit", &"80"]).len(), 79);
    let line = &lines(&desk, &vec![&"scan", &dir, &"--by-key", &"--vectors", &"--limit", &"1"])[0];
    let components: Vec<f32> = line.split(' ').skip(1).map(|x| x.parse().expect("a number")).collect();
    assert_eq!(components, expected[0].1);
}

#[test]
fn a_scan_by_key_continues_after_the_last_key_of_another() {
    let (desk, dir) = desk();
    let mut listed = lines(&desk, &vec![&"scan", &dir, &"--by-key", &"--limit", &"7"]);
    while listed.len() < 79 {
        let last = listed.last().expect("a key").clone();
        let page = lines(&desk, &vec![&"scan", &dir, &"--by-key", &"--limit", &"24", &"--after", &last]);
        assert!(!page.is_empty() && page.len() <= 24, "{last}");
        listed.extend(page);
    }
    assert_eq!(listed, expected().into_iter().map(|(key, _)| key).collect::<Vec<_>>());
    let last = format!("{}:4294967295:4294967295", u128::MAX);
    assert_eq!(lines(&desk, &vec![&"scan", &dir, &"--by-key", &"--after", &last]), Vec::<String>::new());
    let after = lines(&desk, &vec![&"scan", &dir, &"--by-key", &"--after", &"0x0:0:0", &"--limit", &"1"]);
    assert_eq!(after, [format!("{}:0:1", id(0))]);
}

#[test]
fn mistakes_in_arguments_say_what_to_do() {
    let (desk, dir) = desk();
    let missing = desk.path("missing");
    for command in ["get", "count"] {
        desk.fails(&[&command, &missing, &"7"], "no index");
        for bad in ["seven", "-1", "0x", "1.5", "7 ", "340282366920938463463374607431768211456", "67e55044-10b1-426f"] {
            desk.fails(&[&command, &dir, &bad], "byte ");
        }
        desk.fails(&[&command, &dir, &"0xg"], "byte 2: expected a hexadecimal digit");
        desk.fails(&[&command, &dir, &"7", &"8"], "unexpected argument '8'");
    }
    desk.fails(&[&"get", &dir], "<ID>");
    desk.fails(&[&"get", &dir, &"7", &"--start", &"-1"], "--start");
    desk.fails(&[&"get", &dir, &"7", &"--length", &"4294967296"], "--length");
    desk.fails(&[&"count", &missing], "no index");
    desk.fails(&[&"count", &desk.path("")], "no index");
    desk.fails(&[&"scan", &missing], "no index");
    desk.fails(&[&"scan", &missing, &"--by-key"], "no index");
    desk.fails(&[&"scan"], "<DIR>");
    desk.fails(&[&"scan", &dir, &"--after", &"0:0:1"], "--by-key");
    desk.fails(&[&"scan", &dir, &"--limit", &"-1"], "--limit");
    for bad in ["7", "7:0", "7:0:1:2", "x:0:1", "7:0:x", "7:-1:1", "7:0:4294967296", ""] {
        desk.fails(&[&"scan", &dir, &"--by-key", &"--after", &bad], "ID:START:LENGTH");
    }
    desk.fails(&[&"ingest", &dir, &desk.vectors("rows.npy", 0..2), &"--first-id", &"0xy"], "byte 2");
    desk.fails(&[&"remove", &dir, &"--ids", &"0x1..0xx"], "A..B");
    assert_eq!(desk.json(&[&"count", &dir]).1["postings"], 79);
}

#[test]
fn an_ingest_counts_from_an_id_of_any_form() {
    let desk = Desk::new();
    let (dir, rows) = (desk.path("index"), desk.vectors("rows.npy", 0..2));
    for first in ["0xff", "00000000-0000-0001-0000-000000000000"] {
        assert_eq!(desk.json(&[&"ingest", &dir, &rows, &"--first-id", &first]).0, 0);
    }
    let expected = ["255:0:1", "256:0:1", "18446744073709551616:0:1", "18446744073709551617:0:1"];
    assert_eq!(lines(&desk, &vec![&"scan", &dir, &"--by-key"]), expected);
}

/// Index of many postings, whose list exceeds every buffer.
pub(super) fn large(desk: &Desk) -> std::path::PathBuf {
    let (dir, rows) = (desk.path("large"), desk.vectors("large.npy", 0..5_000));
    desk.json(&[&"ingest", &dir, &rows, &"--metric", &"l2", &"--no-optimize"]);
    dir
}

#[test]
fn a_list_that_nobody_reads_to_its_end_is_no_error() {
    let desk = Desk::new();
    let dir = large(&desk);
    for options in [&["--vectors"][..], &["--vectors", "--by-key"], &["--vectors", "--json"]] {
        let mut command = shardex();
        command.arg("scan").arg(&dir).args(options).stdin(Stdio::null());
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it runs");
        let mut out = BufReader::new(child.stdout.take().expect("its stdout"));
        let mut line = String::new();
        assert!(out.read_line(&mut line).expect("text") > 0);
        drop(out);
        let output = ended(child);
        assert_eq!((output.status.code(), output.stderr), (Some(0), Vec::new()), "{options:?}");
    }
    assert_eq!(desk.json(&[&"check", &dir, &"--full"]).0, 0);
}

#[test]
fn a_list_that_finds_no_room_is_an_error() {
    let desk = Desk::new();
    let dir = large(&desk);
    for args in [&["scan"][..], &["scan", "--by-key", "--json"], &["count"]] {
        let full = fs::File::options().write(true).open("/dev/full").expect("a full device");
        let mut command = shardex();
        command.arg(args[0]).arg(&dir).args(&args[1..]).stdin(Stdio::null()).stdout(full).stderr(Stdio::piped());
        let output = ended(command.spawn().expect("it runs"));
        let error = String::from_utf8(output.stderr).expect("text");
        assert_eq!(output.status.code(), Some(2), "{error}");
        assert!(
            error.contains("could not be written to stdout: No space left") && error.contains("make room"),
            "{error}"
        );
        assert_eq!(error.lines().count(), 1, "{error}");
    }
}

#[test]
fn damage_is_an_error_and_no_posting() {
    let (desk, dir) = desk();
    let victim = postings().remove(40);
    let needle: Vec<u8> = victim.vector.iter().flat_map(|x| x.to_le_bytes()).collect();
    let mut bytes = fs::read(dir.join("data")).expect("readable");
    // A split may have left a copy in a place that is free again.
    let copies: Vec<usize> = (0..=bytes.len() - needle.len()).filter(|&at| bytes[at..].starts_with(&needle)).collect();
    assert!(!copies.is_empty());
    copies.into_iter().for_each(|at| bytes[at] ^= 1);
    fs::write(dir.join("data"), bytes).expect("written");
    desk.fails(&[&"get", &dir, &victim.document_id.to_string()], "restore the index from a copy");
    desk.fails(&[&"count", &dir], "damaged");
    desk.fails(&[&"scan", &dir, &"--by-key"], "damaged");
    // The postings in front of the damage are listed.
    let output = desk.run(&[&"scan", &dir, &"--json"]);
    let text = String::from_utf8(output.stdout).expect("text");
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("damaged"));
    let keys: Vec<String> = expected().into_iter().map(|(key, _)| key).collect();
    for line in text.lines() {
        let id = line.split([':', ',']).nth(1).expect("an id");
        let object = object(line);
        let key = format!("{id}:{}:{}", object["start"], object["length"]);
        assert!(keys.contains(&key), "{line}");
    }
    assert!(text.lines().count() < 79);
    let (out, ids) = (desk.path("out.npy"), desk.path("ids.npy"));
    desk.fails(&[&"export", &dir, &out, &"--ids", &ids], "damaged");
    let left = fs::read_dir(desk.path("")).expect("readable").map(|entry| entry.expect("an entry").file_name());
    assert_eq!(left.collect::<Vec<_>>(), ["index"]);
}

#[test]
fn scan_measures_its_rate_over_every_vector() {
    let (desk, dir) = desk();
    let (code, measured) = desk.json(&[&"scan", &dir, &"--measure"]);
    let numbers: usize = expected().iter().map(|(_, vector)| vector.len()).sum();
    assert_eq!((code, &measured["postings"], &measured["bytes"]), (0, &79.into(), &(4 * numbers).into()));
    assert!(measured["ratio"].as_f64().is_some_and(|ratio| ratio > 0.0), "{measured}");
    assert!(measured["memory_bytes"].as_u64().is_some_and(|bytes| bytes > 0), "{measured}");
    let text = String::from_utf8(desk.run(&[&"scan", &dir, &"--measure"]).stdout).expect("text");
    assert!(text.starts_with("79 postings, ") && text.contains("\nplain read "), "{text}");
    assert_ne!(desk.run(&[&"scan", &dir, &"--measure", &"--by-key"]).status.code(), Some(0));
}
