//! The demonstration as a program.

use std::process::{Command, Output};

use exactly_once::ingest::open_index;
use shardex::{Durability, PostingKey};

use super::{Outcome, write};

fn demo(dir: &std::path::Path, kills: &str) -> std::io::Result<Output> {
    Command::new(env!("CARGO_BIN_EXE_exactly-once")).args(["demo", "--kills", kills, "--dir"]).arg(dir).output()
}

/// Then the index is damaged behind the ingester's back, and the program says so.
#[test]
fn twenty_five_kills_leave_an_index_that_equals_the_database() -> Outcome {
    let dir = tempfile::tempdir()?;
    let output = demo(dir.path(), "25")?;
    let text = String::from_utf8(output.stdout)?;
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    println!("{text}");
    assert!(text.contains("kills      25 (9 immediate, 8 interval, 8 manual)"), "{text}");

    let index = open_index(dir.path(), Durability::Immediate)?;
    let key = index.snapshot()?.scan().next().ok_or("no posting")??.key();
    write(&index, &|batch| batch.remove_posting(key))?;
    index.close()?;
    let output = demo(dir.path(), "0")?;
    let text = String::from_utf8(output.stdout)?;
    let PostingKey { document_id, start, length } = key;
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains(&format!("posting {document_id}:{start}:{length} is missing; 1 differences")), "{text}");
    Ok(())
}

#[test]
fn wrong_arguments_are_an_error() -> Outcome {
    for args in
        [&["demo", "--kills"][..], &["demo", "--kills", "-1"], &["run"], &["run", ".", "--durability", "no"], &[]]
    {
        let output = Command::new(env!("CARGO_BIN_EXE_exactly-once")).args(args).output()?;
        assert_eq!(output.status.code(), Some(2), "{args:?}");
        assert!(String::from_utf8(output.stderr)?.contains("exactly-once demo [--kills 200]"), "{args:?}");
    }
    Ok(())
}
