//! A crash and the recovery: a child process writes until it is killed, then the index is opened and checked.
//!
//! `cargo run --example crash`

use std::{
    io::{BufRead as _, BufReader},
    path::Path,
    process::{Command, Stdio},
};

use shardex::{CheckLevel, DocumentId, Durability, OpenOptions, Posting, ShardexConfig, blocking::Shardex};

fn posting(n: u64) -> Posting {
    let vector = vec![n as f32, 1.0, -1.0];
    Posting { document_id: DocumentId(n.into()), start: 0, length: 1, vector, tags: 0 }
}

/// Writes postings, and prints the number of each one that is durable.
fn write_until_killed(path: &Path) -> shardex::Result<()> {
    let options = OpenOptions::default().durability(Durability::Immediate);
    let index = Shardex::create(ShardexConfig::new(path).vector_size(3).options(options))?;
    for n in 0.. {
        index.add_postings(vec![posting(n)])?; // returns when the posting is durable
        println!("{n}");
        if n % 40 == 39 {
            index.flush()?;
        }
    }
    Ok(())
}

/// Runs the example.
fn main() -> Result<(), Box<dyn std::error::Error>> {
    if let Some(path) = std::env::args().nth(1) {
        return Ok(write_until_killed(Path::new(&path))?);
    }
    let temporary = tempfile::tempdir()?;
    let path = temporary.path().join("index");
    let mut child = Command::new(std::env::current_exe()?).arg(&path).stdout(Stdio::piped()).spawn()?;
    // The pipe stays open until the child is killed.
    let mut output = BufReader::new(child.stdout.take().ok_or("no output")?).lines();
    let mut acknowledged = 0;
    for line in output.by_ref().take(100) {
        acknowledged = line?.parse::<u64>()?;
    }
    child.kill()?; // SIGKILL: no destructor runs
    child.wait()?;

    let index = Shardex::open(&path)?;
    let stats = index.stats()?;
    println!("killed after {acknowledged} was acknowledged; {} postings recovered", stats.total_postings);
    println!("recovery: {:?}", stats.recovery);
    // Everything acknowledged is there. The next write may be there too: it was durable before its answer was printed.
    assert!(stats.total_postings > acknowledged);
    assert!(index.check(CheckLevel::Full)?.is_clean());
    index.close()?;
    Ok(())
}
