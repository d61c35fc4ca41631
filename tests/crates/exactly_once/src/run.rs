//! One run of the application: a thread that changes notes, and the ingester beside it.

use std::{
    error::Error,
    fs,
    io::{self, Write as _},
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use shardex::Durability;

use crate::{ingest::Ingester, writer::Writer};

/// Pause of the ingester when it has read all changes. An application would wait for a signal of its writers.
const INGESTER_PAUSE: Duration = Duration::from_millis(1);
/// Pause of the writer after a transaction. Without it the ingester would seldom get the lock of the database.
const WRITER_PAUSE: Duration = Duration::from_millis(2);

/// What a run does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RunOptions {
    /// When batches become durable.
    pub durability: Durability,
    /// Number of changes after which the run ends; `None` runs until it is killed.
    pub changes: Option<u64>,
    /// Maximum number of changes per batch.
    pub batch_changes: u32,
    /// Seed of the changes.
    pub seed: u64,
}

/// Changes notes and ingests the changes. It prints `opened SEQ`, and after each batch `accepted SEQ` and `durable SEQ`.
///
/// # Errors
/// Returns the errors of the index, of the source and of the output.
pub fn run(dir: &Path, options: &RunOptions) -> Result<(), Box<dyn Error + Send + Sync>> {
    fs::create_dir_all(dir)?;
    let mut writer = Writer::open(dir, options.seed)?;
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let writer = scope.spawn(|| write(&mut writer, options.changes, &stop));
        let ingested = ingest(dir, options, || writer.is_finished());
        stop.store(true, Ordering::Relaxed);
        let written = writer.join().map_err(|_| "the writer panicked")?;
        ingested?;
        Ok(written?)
    })
}

fn write(writer: &mut Writer, most: Option<u64>, stop: &AtomicBool) -> rusqlite::Result<()> {
    let mut changes = 0;
    while most.is_none_or(|most| changes < most) && !stop.load(Ordering::Relaxed) {
        changes += writer.transaction()?;
        thread::sleep(WRITER_PAUSE);
    }
    Ok(())
}

/// Ingests until there is no further change and there will be none.
fn ingest(dir: &Path, options: &RunOptions, is_last: impl Fn() -> bool) -> Result<(), Box<dyn Error + Send + Sync>> {
    let mut ingester = Ingester::open(dir, options.durability, options.batch_changes)?;
    let mut output = io::stdout().lock();
    writeln!(output, "opened {}", ingester.position())?;
    loop {
        // Asked before the log is read, so that nothing is written in between.
        let is_last = is_last();
        match ingester.step()? {
            Some(step) => writeln!(output, "accepted {}\ndurable {}", step.accepted, step.durable)?,
            None if is_last => break,
            None => thread::sleep(INGESTER_PAUSE),
        }
    }
    Ok(ingester.close()?)
}
