//! Mutation testing of the engine and of the simulator. Every mutant of the engine must be killed: by a generated case, by a case of the
//! corpus, by the exploration of backups, or by that of the reference workloads. A mutant that affects recall must be killed by a recall
//! case. Every mutant of the simulator must be killed by the conformance suite.
//!
//! Mutants are generated from the storage calls and failpoints that a run reaches ([`crate::mutant`]). A new storage
//! call or checksum therefore gets its mutants without further work.

use std::{
    fmt, fs,
    ops::RangeInclusive,
    panic::{AssertUnwindSafe, catch_unwind},
};

use shardex::failpoint;

use crate::{
    SimStorage, backups,
    case::Case,
    conformance::{conformance, conformance_crash},
    explorer::{self, Limits},
    mutant::{self, How, Mutant},
    pool, recall,
    storage::{Op, SimMutant},
    workload,
};

/// Default number of seeds tried per mutant.
pub const SEEDS: u64 = 60_000;

/// Number of seeds tried before the corpus.
const FIRST: u64 = 1_000;

/// Number of seeds whose runs together reach every storage call and failpoint.
const PLACES: u64 = 2_000;

/// Number of rows of the recall cases.
const RECALL_ROWS: usize = 5_000;

/// Number of leading recall cases that together reach every recall failpoint: one by L2 or cosine, one by dot product.
const RECALL_PLACES: usize = 2;

/// Test that killed a mutant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Killer {
    /// Generated case: the number of seeds tried, which is also the seed that killed the mutant.
    Seeds(u64),
    /// Name of a case of the corpus.
    Corpus(String),
    /// Exploration of backups and restores.
    Backups,
    /// Name of an explored workload.
    Workload(String),
    /// Conformance suite.
    Conformance,
    /// Kind of data of a recall case.
    Recall(String),
}

impl fmt::Display for Killer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Seeds(n) => write!(f, "seed {n}"),
            Self::Corpus(name) => write!(f, "the case `{name}`"),
            Self::Backups => f.write_str("exploring backups"),
            Self::Workload(name) => write!(f, "exploring `{name}`"),
            Self::Conformance => f.write_str("the conformance suite"),
            Self::Recall(kind) => write!(f, "recalls of `{kind}`"),
        }
    }
}

/// Result of testing a mutant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fate {
    /// A test detected the mutant.
    Killed {
        /// Test that detected it.
        by: Killer,
        /// Broken promise, or message of the panic.
        how: String,
    },
    /// No test detected the mutant, and none can: the rule that makes it equivalent.
    Equivalent(&'static str),
    /// No test detected the mutant.
    Survived,
}

/// Mutant with its fate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// Mutant.
    pub mutant: Mutant,
    /// Fate of the mutant.
    pub fate: Fate,
}

/// Mutants whose change no crash or fault can reveal, each with the rule that makes it equivalent. They run through all
/// tests like the others. If a test detects one, it is reported as killed.
const EQUIVALENT: &[(Op, &str, How, &str)] = &[
    (Op::SyncAll, "W1: sync the wiped data", How::Weakened, WIPED_BYTES),
    (Op::SyncAll, "W2: sync the wiped WAL", How::Weakened, WIPED_BYTES),
    (Op::MakeDir, "backup: create", How::ErrorIgnored, "R7: no file of a directory that does not exist can be locked"),
    (Op::Link, "backup: share", How::ErrorIgnored, "the file is opened next, which fails if it has no name there"),
];

/// A purge changes no length. What it promises is about bytes, and space is given back again at the next opportunity.
const WIPED_BYTES: &str =
    "R15, R4: a sync of all pages makes the zeros of holes durable, without length and allocation";

/// States per crash point of backups and restores.
const BACKUP_STATES: usize = 24;

/// Returns all mutants: of every call and failpoint that the generated and recall cases reach, and of the simulator.
/// The mutant that drops the sync of a commit comes first, because a run that can't kill it proves nothing.
#[must_use]
pub fn all() -> Vec<Mutant> {
    let mut all = mutant::of(|| {
        for seed in 1..=PLACES {
            let _ = Case::generated(seed).run();
        }
        for case in recalls().into_iter().take(RECALL_PLACES) {
            let _ = case.run();
        }
        let _ = backups::explore(1);
    });
    let first = |mutant: &Mutant| !matches!(mutant, Mutant::Call(call, How::Dropped) if call.purpose == "B1: commit");
    all.sort_by_key(first);
    all.extend(SimMutant::ALL.into_iter().map(Mutant::Simulator));
    all
}

/// Tests mutants on several threads, each with seeds `1..=seeds` at most. Calls `done` for each mutant as soon as it is
/// finished. The rows are in the order of the mutants.
#[must_use]
pub fn run(mutants: &[Mutant], seeds: u64, threads: usize, done: impl Fn(&Row) + Sync) -> Vec<Row> {
    pool::map(threads, mutants, |&mutant| {
        let row = Row { mutant, fate: fate(mutant, seeds) };
        done(&row);
        row
    })
}

/// Returns the median number of seeds that killed a mutant, among the mutants killed by seeds; 0 if there are none.
#[must_use]
pub fn median_seeds(rows: &[Row]) -> u64 {
    let mut seeds: Vec<u64> = rows
        .iter()
        .filter_map(|row| match row.fate {
            Fate::Killed { by: Killer::Seeds(n), .. } => Some(n),
            _ => None,
        })
        .collect();
    seeds.sort_unstable();
    seeds.get(seeds.len() / 2).copied().unwrap_or(0)
}

fn fate(mutant: Mutant, seeds: u64) -> Fate {
    let found = match mutant {
        Mutant::Simulator(_) => conforms(mutant).err().map(|how| (Killer::Conformance, how)),
        Mutant::Failpoint(failpoint) if failpoint.kind == failpoint::FailpointKind::Recall => by_recalls(mutant),
        Mutant::Call(..) | Mutant::Failpoint(_) => {
            let first = FIRST.min(seeds);
            mutant::with(Some(mutant), || {
                by_seeds(1..=first)
                    .or_else(by_backups)
                    .or_else(by_corpus)
                    .or_else(|| by_seeds(first + 1..=seeds))
                    .or_else(|| by_exploring(mutant))
            })
        }
    };
    match (found, equivalent(mutant)) {
        (Some((by, how)), _) => Fate::Killed { by, how },
        (None, Some(rule)) => Fate::Equivalent(rule),
        (None, None) => Fate::Survived,
    }
}

fn by_seeds(mut seeds: RangeInclusive<u64>) -> Option<(Killer, String)> {
    seeds.find_map(|seed| Case::generated(seed).run().broken.map(|how| (Killer::Seeds(seed), how)))
}

/// Explores backups and restores.
fn by_backups() -> Option<(Killer, String)> {
    let explored = catch_unwind(AssertUnwindSafe(|| backups::explore(BACKUP_STATES)));
    let how = explored.unwrap_or_else(|panic| Err(pool::panic_text(&*panic))).err()?;
    Some((Killer::Backups, how))
}

/// Tests the cases of the corpus, some of which only one seed in a million generates. Returns `None` if the source tree
/// is missing.
fn by_corpus() -> Option<(Killer, String)> {
    let files = fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/../corpus/crash")).into_iter().flatten().flatten();
    let mut paths: Vec<_> = files.map(|file| file.path()).collect();
    paths.sort();
    paths.iter().find_map(|path| {
        let case: Case = fs::read_to_string(path).ok()?.parse().ok()?;
        let name = path.file_stem()?.to_string_lossy().into_owned();
        case.run().broken.map(|how| (Killer::Corpus(name), how))
    })
}

/// Returns the recall cases: data that is replaced completely, cases that failed before, and all kinds of data. They
/// are ordered so that cases in which little hides a mistake come first.
fn recalls() -> Vec<recall::Case> {
    let each = recall::Case::each(RECALL_ROWS);
    let turned = each.iter().filter(|case| case.kind == "clusters").map(|case| recall::Case { turns: 2, ..*case });
    turned.chain(recall::Case::found()).chain(each.clone()).collect()
}

/// Tests the recall cases. A case counts only if it passes without the mutant.
fn by_recalls(mutant: Mutant) -> Option<(Killer, String)> {
    let told = |name: &str, wrong: &dyn Fn() -> Option<String>| {
        let first = mutant::with(Some(mutant), wrong)?;
        let tells = mutant::with(None, wrong).is_none();
        tells.then(|| (Killer::Recall(name.to_owned()), first))
    };
    let cases = || recalls().into_iter().find_map(|case| told(case.kind, &|| case.run().into_iter().next()));
    cases().or_else(|| told("what is proved", &recall::flattery_simulated))
}

/// Explores the reference workloads. Mutants listed as equivalent get the full exploration, others a reduced one.
fn by_exploring(mutant: Mutant) -> Option<(Killer, String)> {
    let whole = equivalent(mutant).is_some();
    let limits =
        if whole { Limits::default() } else { Limits { states_per_point: 256, depth: 2, ..Limits::default() } };
    workload::reference().into_iter().find_map(|mut workload| {
        workload.small &= whole;
        let report = explorer::explore_one(&workload, &limits);
        let first = report.violations.into_iter().next()?;
        Some((Killer::Workload(workload.name.clone()), first.broken))
    })
}

fn equivalent(mutant: Mutant) -> Option<&'static str> {
    let Mutant::Call(call, how) = mutant else { return None };
    let known = EQUIVALENT.iter().find(|(op, purpose, of, _)| (*op, *purpose, *of) == (call.op, call.purpose, how));
    known.map(|(.., rule)| *rule)
}

/// Runs the conformance suite on the simulator with a mutant active.
fn conforms(mutant: Mutant) -> Result<(), String> {
    let suite = || {
        mutant::with(Some(mutant), || {
            conformance(&|| SimStorage::new(512, 64, 1));
            conformance_crash(&|seed| SimStorage::new(512, 64, seed));
        });
    };
    catch_unwind(AssertUnwindSafe(suite)).map_err(|panic| pool::panic_text(&*panic))
}
