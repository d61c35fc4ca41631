//! The demonstration: runs that are killed at random times, and the proof that the index is equal to the database.

use std::{
    collections::BTreeMap,
    error::Error,
    fmt, fs,
    io::{BufRead as _, BufReader, Read as _},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use rand::{RngExt as _, SeedableRng as _, rngs::ChaCha8Rng};
use shardex::{CheckLevel, Durability};

use crate::{
    check::{Compared, Difference, compare},
    ingest::{Ingester, decode, open_index, source_file},
    note::{Note, NoteId},
    source::Source,
};

/// A run is killed after a random number of milliseconds in this range.
const LIFE_MS: std::ops::Range<u64> = 2..150;
/// The index is compared after one in this many kills. The runs after the others recover it themselves, and may be killed
/// in the recovery.
const COMPARE_EACH: u32 = 4;
/// The durability settings with their names.
pub const DURABILITIES: [(&str, Durability); 3] =
    [("immediate", Durability::Immediate), ("interval", Durability::Interval), ("manual", Durability::Manual)];

/// What a demonstration does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DemoOptions {
    /// This program, which is started with `run`.
    pub program: PathBuf,
    /// Number of runs killed.
    pub kills: u64,
    /// Seed of the random times and changes.
    pub seed: u64,
}

/// What was broken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Broken {
    /// The index differs from the database.
    #[error("at change {seq} the index differs from the database: {difference}; {count} differences in all")]
    Difference {
        /// Cursor of the index.
        seq: i64,
        /// The first difference.
        difference: Difference,
        /// Number of differences.
        count: usize,
    },
    /// A durable batch is missing.
    #[error("change {durable} was durable, and the index is at change {cursor}")]
    Lost {
        /// Last change that a run called durable.
        durable: i64,
        /// Cursor of the index.
        cursor: i64,
    },
    /// The log of the database does not lead to its notes, so nothing is proved.
    #[error("the log up to change {seq} has {count} changes, or does not lead to the notes")]
    Log {
        /// Last change.
        seq: i64,
        /// Number of changes found.
        count: i64,
    },
    /// The full check of the index found something.
    #[error("the check of the index found: {0}")]
    Finding(String),
    /// No run got as far as a batch, so nothing is proved.
    #[error("no run accepted a batch before it was killed")]
    Idle,
}

/// Figures of a demonstration.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Number of kills for each of [`DURABILITIES`].
    pub kills: [u64; 3],
    /// Number of kills before the index was open.
    pub early: u64,
    /// Number of batches reported as accepted by the runs that were killed.
    pub batches: u64,
    /// Number of changes in the log.
    pub changes: i64,
    /// Number of changes that were accepted, undone by a kill because they were not durable, and ingested again.
    pub undone: i64,
    /// Number of changes left for the run that was not killed.
    pub left: i64,
    /// Number of states compared.
    pub states: u64,
    /// Sum of what was compared in all states.
    pub compared: Compared,
    /// What the last state, in which the index has caught up, consists of.
    pub last: Compared,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let by: Vec<String> = DURABILITIES.iter().zip(self.kills).map(|((name, _), n)| format!("{n} {name}")).collect();
        let kills = self.kills.iter().sum::<u64>();
        writeln!(f, "kills      {kills} ({}), {} of them before the index was open", by.join(", "), self.early)?;
        writeln!(f, "batches    {} accepted before kills", self.batches)?;
        writeln!(
            f,
            "changes    {}, of which {} were undone by kills and ingested again, and {} were left for the last run",
            self.changes, self.undone, self.left
        )?;
        let Compared { notes, postings, bytes } = self.compared;
        writeln!(f, "compared   {} states: {notes} notes, {postings} postings, {bytes} bytes of text", self.states)?;
        let Compared { notes, postings, bytes } = self.last;
        write!(f, "at the end {notes} notes, {postings} postings, {bytes} bytes of text")
    }
}

/// What the demonstration knows of the index.
#[derive(Debug, Default)]
struct Known {
    /// Last change reported as accepted, or found in the index since.
    accepted: i64,
    /// Last change reported as durable.
    durable: i64,
}

/// Kills runs in a directory, lets the index catch up, and compares it with the database. The inner result is an error if
/// a promise is broken.
///
/// # Errors
/// Returns the errors of the index, of the source and of the child processes.
pub fn demo(dir: &Path, options: &DemoOptions) -> Result<Result<Report, Broken>, Box<dyn Error + Send + Sync>> {
    fs::create_dir_all(dir)?;
    let source = Source::open(&source_file(dir))?;
    source.keep_history()?;
    let mut rng = ChaCha8Rng::seed_from_u64(options.seed);
    let (mut report, mut known) = (Report::default(), Known::default());
    for kill in 0..options.kills {
        let of = (kill % 3) as usize;
        let output = kill_one(dir, options, DURABILITIES[of].0, &mut rng)?;
        report.kills[of] += 1;
        if let Err(broken) = read_output(&output, &mut known, &mut report) {
            return Ok(Err(broken));
        }
        if rng.random_range(0..COMPARE_EACH) == 0
            && let Err(broken) = examine(dir, &source, &mut known, &mut report)?
        {
            return Ok(Err(broken));
        }
    }
    if report.batches == 0 && options.kills > 0 {
        return Ok(Err(Broken::Idle));
    }
    let left = catch_up(dir)?;
    let last = examine(dir, &source, &mut known, &mut report)?;
    Ok(last.map(|(changes, last)| Report { changes, left, last, ..report }))
}

/// Child process that is killed when this value is dropped.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        // SIGKILL: no destructor runs. An error means that the child has already ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Starts a run, kills it after a random time, and returns what it printed.
fn kill_one(
    dir: &Path,
    options: &DemoOptions,
    durability: &str,
    rng: &mut ChaCha8Rng,
) -> Result<String, Box<dyn Error + Send + Sync>> {
    let batch = rng.random_range(1..40).to_string();
    let mut command = Command::new(&options.program);
    command.arg("run").arg(dir).args(["--durability", durability, "--batch", &batch]);
    command.args(["--seed", &rng.random::<u64>().to_string()]).stdin(Stdio::null()).stdout(Stdio::piped());
    let mut child = Killed(command.spawn()?);
    let mut output = BufReader::new(child.0.stdout.take().ok_or("the child has no output")?);
    let mut text = String::new();
    // Half of the lives begin when the index is open. The others may end in the recovery.
    if rng.random() {
        output.read_line(&mut text)?;
    }
    std::thread::sleep(Duration::from_millis(rng.random_range(LIFE_MS)));
    if let Some(status) = child.0.try_wait()? {
        return Err(format!("a run ended by itself: {status}").into());
    }
    drop(child);
    output.read_to_string(&mut text)?;
    Ok(text)
}

/// Reads the output of a killed run.
fn read_output(output: &str, known: &mut Known, report: &mut Report) -> Result<(), Broken> {
    let mut is_early = true;
    for line in output.lines() {
        let Some((word, Ok(seq))) = line.split_once(' ').map(|(word, seq)| (word, seq.parse())) else { continue };
        match word {
            "opened" => {
                is_early = false;
                recovered(seq, known, report)?;
            }
            "accepted" => {
                known.accepted = seq;
                report.batches += 1;
            }
            "durable" => known.durable = known.durable.max(seq),
            _ => {}
        }
    }
    report.early += u64::from(is_early);
    Ok(())
}

/// Takes note of the cursor of a recovered index.
fn recovered(cursor: i64, known: &mut Known, report: &mut Report) -> Result<(), Broken> {
    if cursor < known.durable {
        return Err(Broken::Lost { durable: known.durable, cursor });
    }
    report.undone += (known.accepted - cursor).max(0);
    // What an open has recovered is durable.
    *known = Known { accepted: cursor, durable: cursor };
    Ok(())
}

/// Opens the index as a kill has left it, and compares it with the database as it was at the index's cursor. Returns the
/// cursor, and what was compared.
fn examine(
    dir: &Path,
    source: &Source,
    known: &mut Known,
    report: &mut Report,
) -> Result<Result<(i64, Compared), Broken>, Box<dyn Error + Send + Sync>> {
    let index = open_index(dir, Durability::Manual)?;
    let snapshot = index.snapshot()?;
    let seq = decode(snapshot.cursor()?)?;
    if let Err(broken) = recovered(seq, known, report) {
        return Ok(Err(broken));
    }
    let notes = match notes_at(source, seq)? {
        Ok(notes) => notes,
        Err(broken) => return Ok(Err(broken)),
    };
    let (compared, differences) = compare(&snapshot, &notes)?;
    if let Some(first) = differences.first() {
        return Ok(Err(Broken::Difference { seq, difference: first.clone(), count: differences.len() }));
    }
    if let Some(finding) = index.check(CheckLevel::Full)?.findings.first() {
        return Ok(Err(Broken::Finding(finding.to_string())));
    }
    report.states += 1;
    report.compared += compared;
    drop(snapshot);
    index.close()?;
    Ok(Ok((seq, compared)))
}

/// Returns the notes as they were at a change. At the last one these are the rows of the table.
fn notes_at(source: &Source, seq: i64) -> rusqlite::Result<Result<BTreeMap<NoteId, Note>, Broken>> {
    let (notes, count) = source.notes_at(seq)?;
    if count != seq || (seq == source.last_seq()? && notes != source.notes()?) {
        return Ok(Err(Broken::Log { seq, count }));
    }
    Ok(Ok(notes))
}

/// Ingests what is left, and returns the number of changes.
fn catch_up(dir: &Path) -> Result<i64, Box<dyn Error + Send + Sync>> {
    let mut ingester = Ingester::open(dir, Durability::Manual, 100)?;
    let begin = ingester.position();
    while ingester.step()?.is_some() {}
    let left = ingester.position() - begin;
    ingester.close()?;
    Ok(left)
}
