//! Tests of `export`: the files it writes, and that it writes whole files or none.

use std::{ffi::OsStr, fs, path::Path, process::Stdio};

use shardex::{DocumentId, Metric, Posting};

use super::{
    DIMENSION, Desk, ended,
    reading::{large, made, postings},
};
use crate::support::vector;

type Args<'a> = Vec<&'a dyn AsRef<OsStr>>;

/// Splits an array into the text of its header and its data.
fn parts(path: &Path) -> (String, Vec<u8>) {
    let bytes = fs::read(path).expect("readable");
    assert_eq!(bytes[..8], *b"\x93NUMPY\x01\x00");
    let at = 10 + usize::from(u16::from_le_bytes([bytes[8], bytes[9]]));
    assert_eq!(at % 64, 0);
    (String::from_utf8(bytes[10..at].to_vec()).expect("text"), bytes[at..].to_vec())
}

fn floats(data: &[u8]) -> Vec<f32> {
    data.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
}

/// Reads exported keys.
fn keys(path: &Path) -> Vec<(DocumentId, u32, u32)> {
    let (header, data) = parts(path);
    assert!(header.contains("'descr': '<u8'") && header.contains(&format!("({}, 4)", data.len() / 32)), "{header}");
    let numbers: Vec<u64> = data.as_chunks::<8>().0.iter().map(|bytes| u64::from_le_bytes(*bytes)).collect();
    let key = |row: &[u64]| {
        let id = DocumentId((u128::from(row[1]) << 64) | u128::from(row[0]));
        (id, u32::try_from(row[2]).expect("a start"), u32::try_from(row[3]).expect("a length"))
    };
    numbers.chunks_exact(4).map(key).collect()
}

/// Checks that the rows of two files are the postings, in any order.
#[track_caller]
fn are(postings: Vec<Posting>, keys: &[(DocumentId, u32, u32)], rows: &[f32], is_near: impl Fn(f32, f32) -> bool) {
    assert_eq!((keys.len(), rows.len()), (postings.len(), postings.len() * DIMENSION));
    for posting in postings {
        let key = (posting.document_id, posting.start, posting.length);
        let at = keys.iter().position(|other| *other == key).unwrap_or_else(|| panic!("{key:?} is missing"));
        let row = &rows[at * DIMENSION..][..DIMENSION];
        assert!(row.iter().zip(&posting.vector).all(|(&x, &y)| is_near(x, y)), "{row:?} {posting:?}");
    }
}

fn names(desk: &Desk) -> Vec<String> {
    let entries = fs::read_dir(desk.path("")).expect("readable").map(|entry| entry.expect("an entry").file_name());
    let mut names: Vec<String> = entries.map(|name| name.to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

#[test]
fn all_vectors_and_keys_are_written() {
    let desk = Desk::new();
    for (metric, near) in [(Metric::L2, 0.0), (Metric::Dot, 0.0), (Metric::Cosine, 1e-6)] {
        let dir = desk.path(&metric.to_string());
        made(&dir, metric, postings());
        let (out, ids) = (desk.path("out.npy"), desk.path("ids.npy"));
        let (code, object) = desk.json(&[&"export", &dir, &out, &"--ids", &ids, &"--force"]);
        let expected = serde_json::json!({ "postings": 79, "dimension": DIMENSION, "dtype": "f32" });
        assert_eq!((code, object), (0, expected));
        let (header, data) = parts(&out);
        assert!(header.contains("'descr': '<f4'") && header.contains("'shape': (79, 8)"), "{header}");
        are(postings(), &keys(&ids), &floats(&data), |x, y| (x - y).abs() <= near);
        // The order is that of a scan.
        let text = String::from_utf8(desk.run(&[&"scan", &dir]).stdout).expect("text");
        let listed = keys(&ids).into_iter().map(|(id, start, length)| format!("{id}:{start}:{length}"));
        assert_eq!(text.lines().collect::<Vec<_>>(), listed.collect::<Vec<_>>());
        // The halves of f16 have eleven significant bits.
        desk.json(&[&"export", &dir, &out, &"--dtype", &"f16", &"--force"]);
        let (header, data) = parts(&out);
        assert!(header.contains("'descr': '<f2'") && data.len() == 79 * DIMENSION * 2, "{header}");
        let copy = desk.path("copy");
        assert_eq!(desk.json(&[&"ingest", &copy, &out, &"--metric", &"l2"]).1["total_postings"], 79);
        let text = String::from_utf8(desk.run(&[&"scan", &copy, &"--by-key", &"--vectors"]).stdout).expect("text");
        let rows: Vec<f32> =
            text.lines().flat_map(|line| line.split(' ').skip(1)).map(|x| x.parse().expect("a number")).collect();
        are(postings(), &keys(&ids), &rows, |x, y| (x - y).abs() <= near + y.abs() / 2048.0 + 1e-7);
        fs::remove_dir_all(&copy).expect("removed");
    }
    let output = desk.run(&[&"export", &desk.path("l2"), &desk.path("OUT.NPY")]);
    let text = String::from_utf8(output.stdout).expect("text");
    assert!(text.starts_with("79 vectors of 8 numbers (f32) in ") && output.stderr.is_empty(), "{text}");
}

#[test]
fn exported_fvecs_are_rows_with_their_dimension() {
    let desk = Desk::new();
    let (dir, out, ids) = (desk.path("index"), desk.path("out.fvecs"), desk.path("ids.npy"));
    made(&dir, Metric::L2, postings());
    assert_eq!(desk.json(&[&"export", &dir, &out, &"--ids", &ids]).1["postings"], 79);
    let bytes = fs::read(&out).expect("readable");
    assert_eq!(bytes.len(), 79 * 4 * (DIMENSION + 1));
    let rows: Vec<f32> = bytes
        .chunks_exact(4 * (DIMENSION + 1))
        .flat_map(|row| {
            assert_eq!(row[..4], [8, 0, 0, 0]);
            floats(&row[4..])
        })
        .collect();
    are(postings(), &keys(&ids), &rows, |x, y| x == y);
    assert_eq!(desk.json(&[&"ingest", &desk.path("copy"), &out]).1["total_postings"], 79);
}

#[test]
fn an_empty_index_is_an_empty_array() {
    let desk = Desk::new();
    let (dir, out, ids) = (desk.path("index"), desk.path("out.npy"), desk.path("ids.npy"));
    made(&dir, Metric::L2, postings());
    assert_eq!(desk.json(&[&"remove", &dir, &"--ids", &format!("0..{}", u128::MAX)]).1["total_postings"], 0);
    assert_eq!(desk.json(&[&"export", &dir, &out, &"--ids", &ids]).1["postings"], 0);
    let (header, data) = parts(&out);
    assert!(header.contains("'shape': (0, 8)") && data.is_empty(), "{header}");
    assert!(keys(&ids).is_empty());
    desk.fails(&[&"export", &dir, &desk.path("out.fvecs")], "name an .npy file");
    assert_eq!(desk.json(&[&"count", &dir]).1, serde_json::json!({ "postings": 0, "documents": 0 }));
    assert_eq!(names(&desk), ["ids.npy", "index", "out.npy"]);
}

#[test]
fn no_file_is_replaced_unasked_and_none_is_left_after_an_error() {
    let desk = Desk::new();
    let (dir, out, ids) = (desk.path("index"), desk.path("out.npy"), desk.path("ids.npy"));
    let mut all = postings();
    all[7].vector[3] = 65_520.0;
    made(&dir, Metric::L2, all);
    let [missing, text, fvecs, same] = ["missing", "out.npz", "out.fvecs", "./out.npy"].map(|name| desk.path(name));
    let (below, inside, beside) = (missing.join("out.npy"), dir.join("out.npy"), dir.join("ids.npy"));
    let refused: [(Args, &str); 12] = [
        (vec![&"export", &missing, &out], "no index"),
        (vec![&"export", &dir, &missing], "end the name in .npy or .fvecs"),
        (vec![&"export", &dir, &text], "end the name in .npy or .fvecs"),
        (vec![&"export", &dir, &"-"], "end the name in .npy or .fvecs"),
        (vec![&"export", &dir, &below], "missing"),
        (vec![&"export", &dir, &inside], "directory of an index"),
        (vec![&"export", &dir, &out, &"--ids", &beside], "directory of an index"),
        (vec![&"export", &dir, &out, &"--ids", &same], "name another one"),
        (vec![&"export", &dir, &fvecs, &"--dtype", &"f16"], "name an .npy file"),
        (vec![&"export", &dir, &out, &"--dtype", &"f8"], "f16"),
        (vec![&"export", &dir, &out, &"--ids", &ids, &"--dtype", &"f16"], "number 3 is 65520.0, which is too large"),
        (vec![&"export", &dir], "<FILE>"),
    ];
    for (args, says) in refused {
        desk.fails(&args, says);
        assert_eq!(names(&desk), ["index"], "{says}");
    }
    // One existing file is enough to refuse, and it stays as it is.
    for existing in [&out, &ids] {
        fs::write(existing, "dear").expect("written");
        desk.fails(&[&"export", &dir, &out, &"--ids", &ids], "--force");
        assert_eq!(fs::read(existing).expect("readable"), b"dear");
        assert_eq!(names(&desk).len(), 2);
        fs::remove_file(existing).expect("removed");
    }
    fs::write(&out, "dear").expect("written");
    assert_eq!(desk.json(&[&"export", &dir, &out, &"--ids", &ids, &"--force"]).0, 0);
    assert_eq!(parts(&out).1.len(), 79 * DIMENSION * 4);
    assert_eq!(desk.json(&[&"check", &dir, &"--full"]).0, 0);
}

/// Each file may have at most 32 KiB, as if the disk were full.
#[test]
fn an_export_without_room_is_an_error_and_leaves_no_file() {
    let desk = Desk::new();
    let (dir, out, ids) = (large(&desk), desk.path("out.npy"), desk.path("ids.npy"));
    let before = names(&desk);
    for files in [vec![&out], vec![&out, &ids]] {
        // Without the trap, a signal kills the process at the first store beyond the limit.
        let script = "trap '' XFSZ; ulimit -f 64; exec \"$@\"";
        let mut command = std::process::Command::new("sh");
        command.args(["-c", script, "sh", env!("CARGO_BIN_EXE_shardex"), "export"]).arg(&dir).arg(files[0]);
        if let Some(ids) = files.get(1) {
            command.arg("--ids").arg(ids);
        }
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let output = ended(command.spawn().expect("it runs"));
        let error = String::from_utf8(output.stderr).expect("text");
        assert_eq!(output.status.code(), Some(2), "{error}");
        assert!(error.contains(".npy: File too large") && error.contains("ulimit -f"), "{error}");
        assert_eq!((error.lines().count(), names(&desk)), (1, before.clone()), "{error}");
    }
    assert_eq!(desk.json(&[&"export", &dir, &out, &"--ids", &ids]).1["postings"], 5_000);
    let expected = (0..5_000u64).map(|n| Posting {
        document_id: DocumentId(n.into()),
        start: 0,
        length: 1,
        vector: vector(n, DIMENSION),
        tags: 0,
    });
    are(expected.collect(), &keys(&ids), &floats(&parts(&out).1), |x, y| x == y);
}
