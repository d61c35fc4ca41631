//! Every single bit of an index, flipped in turn. The damage must be found, or everything must be as before: the answers, the
//! statistics, the next flush and what is there after it.
//!
//! What may be lost: a flipped bit in the last commit group of the WAL makes it a torn end, which nothing tells from a crash
//! before the sync (P4).

use std::{
    collections::BTreeMap,
    panic::{AssertUnwindSafe, catch_unwind},
};

use shardex::{
    CheckLevel, Engine, OpenOptions, ShardexError,
    env::Env,
    index::{self, SearchScope},
};

use crate::{
    brute_force::test_query,
    fsck::{Report, What},
    model::{self, Model, State, same},
    oracle,
    pool::{self, panic_text},
    storage::{CrashKind, Image, SimStorage},
    workload::{Runner, Step, Workload, env, flipped},
};

/// How a flipped bit was found, or that it changed nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum FlipOutcome {
    /// The open returned a typed error.
    Refused,
    /// The open repaired it: from the other root, or without the cells.
    Repaired,
    /// A search or a read returned a typed error.
    Read,
    /// A full check found it.
    Checked,
    /// The last commit group of the WAL was taken for a torn end.
    Torn,
    /// Nothing found it, and everything was as without it.
    Harmless,
}

impl FlipOutcome {
    /// All fates, in the order of the columns of a report.
    pub const ALL: [Self; 6] = [Self::Refused, Self::Repaired, Self::Read, Self::Checked, Self::Torn, Self::Harmless];

    /// Returns the heading of the column.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Refused => "refused",
            Self::Repaired => "repaired",
            Self::Read => "at a read",
            Self::Checked => "by check",
            Self::Torn => "torn end",
            Self::Harmless => "harmless",
        }
    }
}

/// Counts of the flipped bits by file and region, and what went wrong.
#[derive(Clone, Debug, Default)]
pub struct FlipReport {
    /// Bytes of all files.
    pub bytes: u64,
    /// Flipped bits by region and fate.
    pub regions: BTreeMap<String, BTreeMap<FlipOutcome, u64>>,
    /// Bits with a wrong answer, a panic or lost writes, each with a description.
    pub violations: Vec<String>,
}

impl FlipReport {
    /// Returns the number of flipped bits.
    #[must_use]
    pub fn flips(&self) -> u64 {
        self.regions.values().flat_map(BTreeMap::values).sum()
    }
}

/// Bit of a file.
#[derive(Clone, Copy, Debug)]
struct Bit {
    file: usize,
    byte: usize,
    bit: u8,
}

/// Index whose bits are flipped, with what an engine makes of it untouched.
struct Subject {
    image: Image,
    model: Model,
    /// Batches that must survive damage to the last commit group.
    certain: usize,
    options: OpenOptions,
    lens: Vec<usize>,
    regions: Report,
    answers: Vec<String>,
}

const NAMES: [&str; 3] = ["root", "data", "wal"];

/// Flips each `every`th bit of an index that has crashed with writes in the WAL, and of one that was closed.
///
/// # Errors
/// Returns an error of the engine without damage: the index could not be made.
pub fn flip(every: u64, threads: usize) -> Result<FlipReport, String> {
    let mut report = FlipReport::default();
    for workload in flipped() {
        let subject = Subject::of(&workload)?;
        let bits: Vec<Bit> =
            subject.bits().enumerate().filter(|(n, _)| (*n as u64).is_multiple_of(every)).map(|(_, bit)| bit).collect();
        let fates = pool::map(threads, &bits, |&bit| subject.fate_of(bit));
        report.bytes += subject.lens.iter().sum::<usize>() as u64;
        for (bit, fate) in bits.into_iter().zip(fates) {
            let region = format!("{}: {}", workload.name, subject.region(bit));
            match fate {
                Ok(fate) => *report.regions.entry(region).or_default().entry(fate).or_default() += 1,
                Err(what) => {
                    let file = NAMES[bit.file];
                    report
                        .violations
                        .push(format!("bit {} of byte {} of {file} ({region}): {what}", bit.bit, bit.byte));
                }
            }
        }
    }
    Ok(report)
}

impl Subject {
    /// Carries out a workload. The index is then as it is on the disk after a crash of the process.
    fn of(workload: &Workload) -> Result<Self, String> {
        let mut sim = SimStorage::new(workload.page_size, workload.sector_size, 1);
        let mut runner = Runner::new(workload, env());
        let mut certain = 0;
        for step in &workload.steps {
            if *step == Step::Commit {
                certain = runner.model.durable();
            }
            runner.step(&sim, step).map_err(|error| format!("{step}: {error}"))?;
        }
        let model = runner.model.clone();
        drop(runner);
        sim.crash_with(CrashKind::Process, &vec![0; sim.choices(CrashKind::Process).len()]);
        let image = sim.image();
        let mut lens = vec![0; NAMES.len()];
        sim.read_files(|name, bytes| {
            if let Some(at) = NAMES.iter().position(|known| *known == name) {
                lens[at] = bytes.len();
            }
        });
        let regions = oracle::Image::of(&sim).check();
        let options = workload.config.options.clone();
        let mut subject = Self { image, model, certain, options, lens, regions, answers: Vec::new() };
        let engine = subject.open(&SimStorage::from_image(&subject.image)).map_err(|error| error.to_string())?;
        let state = subject.model.state(subject.model.accepted());
        subject.answers = answers(&engine, &state)?;
        Ok(subject)
    }

    fn bits(&self) -> impl Iterator<Item = Bit> {
        let bytes = self.lens.iter().enumerate().flat_map(|(file, &len)| (0..len).map(move |byte| (file, byte)));
        bytes.flat_map(|(file, byte)| (0..8).map(move |bit| Bit { file, byte, bit }))
    }

    fn open(&self, sim: &SimStorage) -> shardex::Result<Engine<SimStorage>> {
        Engine::open(sim.clone(), self.options.clone(), &Env { new_index_id: 3, ..env() })
    }

    /// Flips a bit and judges what follows.
    fn fate_of(&self, bit: Bit) -> Result<FlipOutcome, String> {
        let judged = catch_unwind(AssertUnwindSafe(|| self.judge(bit)));
        judged.unwrap_or_else(|panic| Err(format!("panic: {}", panic_text(&*panic))))
    }

    fn judge(&self, bit: Bit) -> Result<FlipOutcome, String> {
        let sim = SimStorage::from_image(&self.image);
        sim.tamper(NAMES[bit.file], |bytes| bytes[bit.byte] ^= 1 << bit.bit);
        let mut engine = match self.open(&sim) {
            Ok(engine) => engine,
            Err(error) => return typed(&error).map(|()| FlipOutcome::Refused),
        };
        let recovery = engine.stats().map_err(|error| error.to_string())?.recovery;
        let repaired = recovery.root_fallback || recovery.cells_lost;
        let held = match model::contents(&engine) {
            Ok(held) => held,
            // A typed error of a search or a read. Any other difference is a wrong answer.
            Err(what) if what.starts_with("P4: ") => return Ok(FlipOutcome::Read),
            Err(what) => return Err(what),
        };
        let (accepted, metric) = (self.model.accepted(), engine.geometry().metric);
        let least = if NAMES[bit.file] == "wal" { self.certain } else { accepted };
        let Some(batches) = (least..=accepted).rev().find(|&n| same(&held, &self.model.state(n), metric)) else {
            return Err(format!("{} postings are there, which no allowed prefix leaves", held.len()));
        };
        let state = self.model.state(batches);
        // All answers are true, whatever is found later.
        let answers = answers(&engine, &state)?;
        match engine.check(CheckLevel::Full) {
            Ok(report) if report.is_clean() => {}
            Ok(_) => return Ok(if repaired { FlipOutcome::Repaired } else { FlipOutcome::Checked }),
            Err(error) => return typed(&error).map(|()| FlipOutcome::Checked),
        }
        // Nothing has found it. So the next writes, a flush and an open must be as without it.
        let fate = match (batches < accepted, repaired) {
            (true, _) => FlipOutcome::Torn,
            (_, true) => FlipOutcome::Repaired,
            _ if answers != self.answers => {
                return Err("other answers than without the damage, and nothing finds it".into());
            }
            _ => FlipOutcome::Harmless,
        };
        let mut after = state;
        let more = crate::workload::postings(900..903, 0, 5, engine.geometry().dimension);
        engine.add(&more).map_err(|error| format!("a write: {error}"))?;
        more.iter().for_each(|posting| after.insert(posting));
        engine.flush().map_err(|error| format!("a flush: {error}"))?;
        drop(engine);
        let engine = self.open(&sim).map_err(|error| format!("the next open: {error}"))?;
        let held = model::contents(&engine).map_err(|what| format!("after the next open: {what}"))?;
        if !same(&held, &after, metric) {
            return Err(format!("after the next open {} postings instead of {}", held.len(), after.len()));
        }
        match engine.check(CheckLevel::Full) {
            Ok(report) if report.is_clean() => Ok(fate),
            Ok(report) => Err(format!("a check after the next open: {report}")),
            Err(error) => Err(format!("a check after the next open: {error}")),
        }
    }

    /// Returns the part of a file in which a bit lies.
    fn region(&self, bit: Bit) -> String {
        let (file, at) = (NAMES[bit.file], bit.byte as u64);
        let Some(root) = self.regions.root() else { return file.to_owned() };
        let part = match file {
            "root" => {
                let slot = at / root.page;
                let is_newest = self.regions.newest == usize::try_from(slot).ok();
                match (at % root.page < root.bytes(), is_newest) {
                    (false, _) => "rest of the page",
                    (true, true) => "newest root",
                    (true, false) => "older root",
                }
            }
            "data" if at < 32 => "header",
            "data" => {
                let runs = self.regions.trees.iter().flatten().flat_map(|tree| &tree.runs);
                let mut of_run = runs.filter(|run| (run.page * root.page..run.end() * root.page).contains(&at));
                match of_run.next() {
                    None => "free",
                    Some(run) if at >= run.page * root.page + run.bytes => "rest of an allocation",
                    Some(run) => name_of(run.what),
                }
            }
            _ if at < 32 => "header",
            _ => {
                let log = &self.regions.log;
                let mut records = log.frames.iter().map(|frame| frame.offset..frame.offset + frame.bytes);
                let in_segment = (at - root.page.min(at)) % root.segment_bytes;
                match records.any(|range| range.contains(&at)) {
                    _ if at >= root.page && in_segment < 64 => "segment header",
                    true => "records after the checkpoint",
                    false => "other",
                }
            }
        };
        format!("{file}, {part}")
    }
}

fn name_of(what: What) -> &'static str {
    match what {
        What::Node { .. } | What::BucketNode { .. } => "nodes",
        What::State { .. } => "shard states",
        What::Extent { .. } => "postings",
        What::CellsHead | What::CellsPart => "table of the cells",
        What::CellsGroup => "codes",
        What::Tags { .. } => "tags",
        What::Bucket { .. } => "buckets of payloads",
        _ => "payloads",
    }
}

/// Checks that an error is one that damage may give.
fn typed(error: &ShardexError) -> Result<(), String> {
    match error {
        ShardexError::Corruption { .. }
        | ShardexError::UnsupportedVersion { .. }
        | ShardexError::NotAnIndex { .. }
        | ShardexError::Inconsistent { .. }
        | ShardexError::Config { .. } => Ok(()),
        other => Err(format!("the error is `{other}`")),
    }
}

/// Returns counts of the statistics, and the answers of searches by cells. Each result must be a posting with its vector.
fn answers(engine: &Engine<SimStorage>, state: &State) -> Result<Vec<String>, String> {
    let scopes =
        [SearchScope { slop: None, recall: Some(0.9), by_cells: true, ..SearchScope::slop(2) }, SearchScope::slop(2)];
    let stats = engine.stats().map_err(|error| error.to_string())?;
    // Not the last LSN: nothing is promised about the closing mark, which takes one.
    let counts = [stats.total_postings, stats.removed_postings, stats.total_shards as u64];
    let mut all = vec![format!("{counts:?}")];
    for (n, scope) in scopes.iter().cycle().take(6).enumerate() {
        let query = test_query(engine.geometry().dimension, n);
        let found = match index::search(&engine.snapshot(), engine.data(), &query, 5, *scope) {
            Ok(found) => found.to_response(),
            // A search may be the first to read damaged bytes.
            Err(error) => {
                typed(&error)?;
                all.push("damage".into());
                continue;
            }
        };
        for result in &found.results {
            let key = (result.document_id.0, result.start, result.length);
            let near = |vector: &Vec<f32>| vector.iter().zip(&result.vector).all(|(a, b)| (a - b).abs() <= 1e-5);
            if !state.vectors.get(&key).is_some_and(near) || state.tags.get(&key).copied().unwrap_or(0) != result.tags {
                return Err(format!("a search returned {key:?}, which is not so"));
            }
        }
        all.push(format!("{:?}", found.results));
    }
    Ok(all)
}
