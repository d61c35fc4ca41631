//! Tests of `ingest --tags` and of the filters, documents and explanations of `search`.

use serde_json::Value;

use super::Desk;

/// Desk with an index of 300 vectors, of which the tags are the row number modulo 4.
fn desk() -> (Desk, std::path::PathBuf, std::path::PathBuf) {
    let desk = Desk::new();
    let (rows, dir) = (desk.vectors("rows.npy", 0..300), desk.path("index"));
    let tags: Vec<u8> = (0..300u64).flat_map(|row| (row % 4).to_le_bytes()).collect();
    let tags = desk.npy("tags.npy", "<u8", (300, 1), &tags);
    let (code, done) = desk.json(&[&"ingest", &dir, &rows, &"--metric", &"l2", &"--tags", &tags]);
    assert_eq!(code, 0, "{done}");
    let query = desk.vectors("query.npy", 40..41);
    (desk, dir, query)
}

/// Searches exactly, and returns the ids found and the last object.
fn found(desk: &Desk, dir: &std::path::Path, query: &std::path::Path, filter: &str, k: &str) -> (Vec<u64>, Value) {
    let output = desk.run(&[&"search", &dir, &query, &"--exact", &"--json", &"-k", &k, &"--filter", &filter]);
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8(output.stdout).expect("text");
    let objects: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    let hits = objects[0]["hits"].as_array().expect("hits").clone();
    let ids = hits.iter().map(|hit| hit["document_id"].as_u64().expect("an id")).collect();
    (ids, objects[1].clone())
}

#[test]
fn search_by_filters_finds_what_passes() {
    let (desk, dir, query) = desk();
    let all = |filter: &str| {
        let (mut ids, _) = found(&desk, &dir, &query, filter, "300");
        ids.sort_unstable();
        ids
    };
    let passing = |passes: &dyn Fn(u64) -> bool| (0..300).filter(|&id| passes(id)).collect::<Vec<u64>>();
    assert_eq!(all("any(2)"), passing(&|id| id % 4 >= 2));
    assert_eq!(all("all(0x3) or ids(8,20..23)"), passing(&|id| id % 4 == 3 || id == 8 || (20..23).contains(&id)));
    assert_eq!(all("not (none(1) or ids(0..150))"), passing(&|id| id % 2 == 1 && id >= 150));
    let list = desk.path("ids.txt");
    std::fs::write(&list, "5\n\n0x10\n40..42\n").expect("written");
    assert_eq!(all(&format!("ids(@{})", list.display())), [5, 16, 40, 41]);
    desk.fails(&[&"search", &dir, &query, &"--filter", &"any(1) plus any(2)"], "expected at `plus any(2)`");
    desk.fails(&[&"search", &dir, &query, &"--filter", &"ids(@/no/such/file)"], "/no/such/file");
}

#[test]
fn search_explains_itself_and_counts_documents() {
    let (desk, dir, query) = desk();
    let args =
        [&"search" as &dyn AsRef<std::ffi::OsStr>, &dir, &query, &"-k", &"3", &"--explain", &"--filter", &"any(1)"];
    let text = String::from_utf8(desk.run(&args).stdout).expect("text");
    for part in ["query 0: 300 postings", "filter tags(all 0x0, any 0x1, none 0x0): 150 pass", "stopped: "] {
        assert!(text.contains(part), "{text}");
    }
    let (code, object) = desk.json(&[&"search", &dir, &query, &"--explain", &"--quiet", &"--per-document", &"2"]);
    assert!(code == 0 && object["plan"].as_str().is_some_and(|plan| plan.contains("300 postings")), "{object}");
    let (code, none) = desk.json(&[&"search", &dir, &query, &"--quiet", &"--min-score", &"1"]);
    assert!(code == 0 && none["plan"].is_null(), "{none}");
    desk.fails(&[&"search", &dir, &query, &"--per-document", &"0"], "at least 1");
}

#[test]
fn tags_that_do_not_fit_the_rows_change_nothing() {
    let desk = Desk::new();
    let (rows, dir) = (desk.vectors("rows.npy", 0..10), desk.path("index"));
    let few = desk.npy("few.npy", "<u8", (9, 1), &[0; 72]);
    let floats = desk.npy("floats.npy", "<f8", (10, 1), &[0; 80]);
    let negative: Vec<u8> = (0..10i64).flat_map(|row| (3 - row).to_le_bytes()).collect();
    let negative = desk.npy("negative.npy", "<i8", (10, 1), &negative);
    for (tags, says) in [(&few, "for each of 10 rows"), (&floats, "integer type"), (&negative, "number 4 is -1")] {
        desk.fails(&[&"ingest", &dir, &rows, &"--tags", tags], says);
        assert!(!dir.exists());
    }
}
