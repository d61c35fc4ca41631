//! Tests of the command-line tool on damaged indexes, and of a flush with nothing to do.

use std::fs;

use shardex::format::cells::HEAD_MAGIC;

use super::{DIMENSION, Desk, WITH_CELLS};
use crate::support::vector;

/// Creates an index of 100 rows in a temporary directory and closes it. Returns the directory and the index's path.
fn desk() -> (Desk, std::path::PathBuf) {
    let desk = Desk::new();
    let (dir, rows) = (desk.path("index"), desk.vectors("rows.npy", 0..100));
    desk.json(&[&"ingest", &dir, &rows, &"--metric", &"dot"]);
    (desk, dir)
}

/// Restores the index files from copies in memory, then applies a change.
fn changed(dir: &std::path::Path, files: &[(&str, Vec<u8>)], change: impl FnOnce()) {
    for (name, bytes) in files {
        fs::write(dir.join(name), bytes).expect("written");
    }
    change();
}

fn files(dir: &std::path::Path) -> Vec<(&'static str, Vec<u8>)> {
    ["root", "data", "wal"].map(|name| (name, fs::read(dir.join(name)).expect("readable"))).to_vec()
}

#[test]
fn a_check_says_consistent_of_nothing_that_is_not() {
    let (desk, dir) = desk();
    let check = |full: bool| {
        let output = if full { desk.run(&[&"check", &dir, &"--full"]) } else { desk.run(&[&"check", &dir]) };
        (output.status.code(), String::from_utf8(output.stdout).expect("text"))
    };
    let (code, text) = check(true);
    assert!(code == Some(0) && text.ends_with("bytes read: consistent\n"), "{text}");
    // A check without `--full` reads no vectors, and its output states that.
    let (code, text) = check(false);
    assert!(code == Some(0) && text.contains("no vector read") && text.contains("--full"), "{text}");
    let whole = files(&dir);
    let needle: Vec<u8> = vector(77, DIMENSION).into_iter().flat_map(f32::to_le_bytes).collect();
    let at = whole[1].1.windows(needle.len()).position(|window| window == needle).expect("the vector is there");
    let flip = |name: &str, at: usize| {
        let mut bytes = fs::read(dir.join(name)).expect("readable");
        bytes[at] ^= 1;
        fs::write(dir.join(name), bytes).expect("written");
    };
    changed(&dir, &whole, || flip("data", at));
    let (code, text) = check(true);
    assert!(code == Some(1) && !text.contains("consistent") && text.contains(": 1 finding\n  Shard 0"), "{text}");
    // The open finds this damage. It repairs one damaged root, but not two.
    changed(&dir, &whole, || flip("root", 50));
    let (code, text) = check(true);
    assert!(code == Some(1) && !text.contains("consistent") && text.contains("1 finding\n  a root"), "{text}");
    changed(&dir, &whole, || {
        flip("root", 50);
        flip("root", 4096 + 50);
    });
    let (code, text) = check(true);
    assert!(code == Some(1) && !text.contains("consistent") && text.contains("could not be checked"), "{text}");
}

#[test]
fn a_file_that_is_cut_or_gone_is_a_finding() {
    let (desk, dir) = desk();
    let whole = files(&dir);
    for len in [0, 1, 100, 511, 512, 600, 4095, 4096, 4196, 4607] {
        changed(&dir, &whole, || {
            let root = fs::OpenOptions::new().write(true).open(dir.join("root")).expect("opened");
            root.set_len(len).expect("cut");
        });
        let (code, object) = desk.json(&[&"check", &dir]);
        let finding = object["findings"][0].as_str().unwrap_or_default();
        assert!(code == 1 && object["clean"] == false && finding.contains("root"), "{len}: {object}");
        // If one root slot is left, nothing is lost, and the first check has restored the other slot.
        if len >= 512 {
            let (code, object) = desk.json(&[&"check", &dir, &"--full"]);
            assert_eq!((code, &object["postings_checked"]), (0, &100.into()), "{len}");
        }
    }
    for (name, len) in [("data", 0), ("data", 10), ("data", 5000), ("wal", 0), ("wal", 5000)] {
        changed(&dir, &whole, || {
            let file = fs::OpenOptions::new().write(true).open(dir.join(name)).expect("opened");
            file.set_len(len).expect("cut");
        });
        let (code, object) = desk.json(&[&"check", &dir]);
        assert!(code == 1 && object["findings"].to_string().contains(name), "{name} {len}: {object}");
    }
    for name in ["root", "data", "wal"] {
        changed(&dir, &whole, || fs::remove_file(dir.join(name)).expect("removed"));
        let (code, object) = desk.json(&[&"check", &dir]);
        let findings = object["findings"].to_string();
        assert!(code == 1 && findings.contains(name) && findings.contains("missing"), "{name}: {object}");
        // Every command gives the same advice, and none creates a new index from the remaining files.
        let rows = desk.path("rows.npy");
        desk.fails(&[&"stats", &dir], "put it back");
        desk.fails(&[&"ingest", &dir, &rows], "put it back");
        desk.fails(&[&"search", &dir, &rows], "put it back");
        fs::create_dir(dir.join(name)).expect("a directory");
        assert_eq!(desk.json(&[&"check", &dir]).0, 1, "a directory in the place of {name}");
        fs::remove_dir(dir.join(name)).expect("removed");
    }
    changed(&dir, &whole, || {});
    assert_eq!(desk.json(&[&"check", &dir, &"--full"]).0, 0);
}

#[test]
fn damaged_cells_are_a_finding_until_there_are_new_ones() {
    let desk = Desk::new();
    let (dimension, rows) = WITH_CELLS;
    let (dir, rows) = (desk.path("index"), desk.vectors_of(dimension, "rows.npy", rows));
    desk.json(&[&"ingest", &dir, &rows, &"--metric", &"dot"]);
    let object = desk.json(&[&"stats", &dir]).1;
    assert!(object["cells"].as_u64() > Some(0), "{object}");
    let mut data = fs::read(dir.join("data")).expect("readable");
    // Free pages may hold the heads of earlier cells.
    let heads: Vec<usize> = (0..data.len() - 4).filter(|&at| data[at..at + 4] == HEAD_MAGIC).collect();
    assert!(!heads.is_empty());
    heads.into_iter().for_each(|head| data[head] ^= 1);
    fs::write(dir.join("data"), data).expect("written");
    for _ in 0..2 {
        let (code, object) = desk.json(&[&"check", &dir]);
        assert!(code == 1 && object["findings"].to_string().contains("shardex optimize"), "{object}");
    }
    assert_eq!(desk.json(&[&"optimize", &dir]).0, 0);
    assert_eq!(desk.json(&[&"check", &dir, &"--full"]).0, 0);
}

#[test]
fn a_flush_with_nothing_to_do_names_what_is_durable() {
    let (desk, dir) = desk();
    let stats = desk.json(&[&"stats", &dir]).1;
    let (code, object) = desk.json(&[&"flush", &dir]);
    assert_eq!((code, &object["barriers"]), (0, &0.into()));
    assert!(stats["checkpoint_lsn"].as_u64() > Some(0), "{stats}");
    assert_eq!((&object["checkpoint_lsn"], &object["generation"]), (&stats["checkpoint_lsn"], &stats["generation"]));
    let output = desk.run(&[&"flush", &dir]);
    assert!(String::from_utf8_lossy(&output.stdout).starts_with("nothing to flush: root "));
}
