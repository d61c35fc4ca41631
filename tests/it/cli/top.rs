//! Tests of `shardex top`: of an open, a closed and a lost index, of a damaged file and none, and live.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    process::{Command, Stdio},
};

use shardex::{Durability, Metric, OpenOptions, ShardexConfig, blocking::Shardex};

use super::{Desk, ended, piped_child, shardex, until};
use crate::support::{documents, vector};

fn options() -> OpenOptions {
    OpenOptions::default().durability(Durability::Manual).flush_interval_ms(0).stats_file(true)
}

/// Creates an index with three searches, two writes, a commit and a flush, and waits until its figures are published.
fn open(desk: &Desk) -> Shardex {
    let dir = desk.path("index");
    let config = ShardexConfig::new(&dir).vector_size(crate::support::DIMENSION).metric(Metric::L2).options(options());
    let index = Shardex::create(config).expect("it is made");
    index.add_postings(documents(0..50)).expect("accepted");
    index.flush().expect("durable");
    index.add_postings(documents(50..60)).expect("accepted");
    (0..3).for_each(|n| drop(index.search(&vector(n, 24), 2, None).expect("found")));
    until(|| desk.json(&[&"top", &dir, &"--once"]).1["search_count"] == 3);
    index
}

fn once(desk: &Desk) -> String {
    let output = desk.run(&[&"top", &desk.path("index"), &"--once"]);
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).expect("text")
}

#[test]
fn top_shows_an_open_and_a_closed_index() {
    let desk = Desk::new();
    fs::create_dir(desk.path("index")).expect("made");
    desk.fails(&[&"top", &desk.path("index"), &"--once"], "holds no file `stats`");
    let index = open(&desk);
    let stats = index.stats().expect("statistics");
    let text = once(&desk);
    assert!(text.contains("index: open; figures last changed"), "{text}");
    assert!(text.contains(&format!("60 postings of 24 numbers, l2; {} shards", stats.total_shards)), "{text}");
    assert!(text.contains(&format!("{} bytes of WAL to replay", stats.wal_bytes)), "{text}");
    assert!(text.contains("durability manual: 10 operations"), "{text}");
    let flush = stats.last_flush.expect("a flush");
    let ms = |time: std::time::Duration| format!("{:.2} ms", time.as_secs_f64() * 1e3);
    assert!(text.contains("last flush ") && text.contains(&format!("shard sync {}", ms(flush.shard_sync_duration))));
    let row = |name: &str| {
        let row = text.lines().find(|line| line.starts_with(name)).unwrap_or_else(|| panic!("{name}: {text}"));
        row.split_whitespace().map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!((&row("search")[1][..], &row("write")[1][..], &row("commit")[1][..]), ("3", "2", "0"));
    assert_eq!(row("flush")[1], "1");
    let max = ms(stats.search_latency.max);
    assert!(row("search").ends_with(&max.split(' ').map(str::to_owned).collect::<Vec<_>>()), "{text}");
    assert!(text.contains("0 background errors") && !text.contains('\x1b'), "{text}");

    let (code, object) = desk.json(&[&"top", &desk.path("index"), &"--once"]);
    assert_eq!((code, &object["state"], &object["postings"]), (0, &"open".into(), &60.into()));
    assert_eq!(object["search_max_ns"], stats.search_latency.max.as_nanos() as u64);
    assert!(object["age_ms"].as_u64().is_some());

    index.close().expect("closed");
    let text = once(&desk);
    assert!(text.contains("index: closed ") && text.contains("60 postings"), "{text}");
    assert!(text.contains("durability manual: 0 operations (0 bytes) not durable"), "{text}");
}

#[test]
fn top_says_that_the_owner_is_gone_or_the_file_damaged() {
    let desk = Desk::new();
    let index = open(&desk);
    let file = desk.path("index").join("stats");
    // What a killed process leaves: the file of an open index, without a lock.
    let left = fs::read(&file).expect("readable");
    index.close().expect("closed");
    fs::write(&file, &left).expect("written");
    let text = once(&desk);
    assert!(text.contains("STALE: the process that had it open ended without closing it"), "{text}");
    assert_eq!(desk.json(&[&"top", &desk.path("index"), &"--once"]).1["state"], "stale");

    let mut damaged = left;
    damaged[100] ^= 4;
    fs::write(&file, damaged).expect("written");
    desk.fails(&[&"top", &desk.path("index"), &"--once"], "stats is damaged: its checksum is wrong; no harm is done");
    desk.fails(&[&"top", &desk.path("missing")], "there is no such directory");
}

#[test]
fn a_killed_process_leaves_a_stale_file() {
    let desk = Desk::new();
    let (dir, rows) = (desk.path("index"), desk.vectors("rows.npy", 0..10));
    // It waits for the rest of its rows on stdin.
    let mut child =
        piped_child(shardex().args(["ingest".as_ref(), dir.as_os_str(), "-".as_ref()]).args(["--batch", "1"]));
    let whole = fs::read(&rows).expect("readable");
    let mut stdin = child.stdin.take().expect("a pipe");
    std::io::Write::write_all(&mut stdin, &whole[..whole.len() - 32]).expect("written");
    let top = || desk.run(&[&"top", &dir, &"--once"]);
    until(|| String::from_utf8_lossy(&top().stdout).contains("index: open;"));
    child.kill().expect("killed");
    ended(child);
    assert!(String::from_utf8_lossy(&top().stdout).contains("STALE"), "{:?}", top());
}

#[test]
fn top_goes_on_until_a_signal() {
    let desk = Desk::new();
    let index = open(&desk);
    for json in [false, true] {
        let mut command = shardex();
        command.args(["top".as_ref(), desk.path("index").as_os_str()]);
        if json {
            command.arg("--json");
        }
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it runs");
        let mut lines = BufReader::new(child.stdout.take().expect("a pipe")).lines();
        let needle = if json { "\"state\":\"open\"" } else { "index: open;" };
        // Two readings of a running index.
        let found = lines.by_ref().map_while(Result::ok).filter(|line| line.contains(needle)).take(2).count();
        assert_eq!(found, 2);
        let killed = Command::new("kill").args(["-INT", &child.id().to_string()]).status().expect("it runs");
        assert!(killed.success());
        assert_eq!(ended(child).status.code(), Some(130));
    }
    index.close().expect("closed");
}
