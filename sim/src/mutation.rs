//! The tester tested: every mutant of the engine must be found by the cases of some seed, by one of the corpus, or by the
//! exploration of the reference workloads, every mutant of the simulator by the conformance suite.
//!
//! What is mutated is generated from the places that a run passes ([`crate::mutant`]), so a new call of the storage, or a
//! new checksum, brings its mutants with it.

use std::{
    fmt, fs,
    ops::RangeInclusive,
    panic::{AssertUnwindSafe, catch_unwind},
};

use shardex::site;

use crate::{
    SimStorage,
    case::Case,
    conformance::{conformance, conformance_crash},
    explorer::{self, Limits},
    mutant::{self, How, Mutant},
    pool, recall,
    storage::{Op, SimMutant},
    workload,
};

/// Seeds that a mutant is given to be found.
pub const SEEDS: u64 = 60_000;

/// Seeds that come before the corpus.
const FIRST: u64 = 1_000;

/// Seeds whose runs pass every place there is.
const PLACES: u64 = 2_000;

/// Rows of the data of which recalls are asked.
const RECALL_ROWS: usize = 5_000;

/// Cases of recalls, the first ones, that pass every place there is: by L2 or cosine and by dot products.
const RECALL_PLACES: usize = 2;

/// What found a mutant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Killer {
    /// So many seeds.
    Seeds(u64),
    /// This case of the corpus.
    Corpus(String),
    /// The exploration of this workload.
    Workload(String),
    /// The conformance suite.
    Conformance,
    /// What searches found of this kind of data.
    Recall(String),
}

impl fmt::Display for Killer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Seeds(n) => write!(f, "seed {n}"),
            Self::Corpus(name) => write!(f, "the case `{name}`"),
            Self::Workload(name) => write!(f, "exploring `{name}`"),
            Self::Conformance => f.write_str("the conformance suite"),
            Self::Recall(kind) => write!(f, "recalls of `{kind}`"),
        }
    }
}

/// What became of a mutant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fate {
    /// Found.
    Killed {
        /// By what.
        by: Killer,
        /// The promise broken, or the panic.
        how: String,
    },
    /// Not found, and cannot be: the rule that says so.
    Equivalent(&'static str),
    /// Not found.
    Survived,
}

/// One mutant and its fate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// The mutant.
    pub mutant: Mutant,
    /// Its fate.
    pub fate: Fate,
}

/// Mutants that change nothing that a crash or a fault could show, each with the rule that makes it so. Every one of them
/// goes through all that the others go through; one that is found after all is reported as killed.
const EQUIVALENT: &[(Op, &str, How, &str)] = &[];

/// All mutants: of everything that the cases of some seeds pass, and of the simulator. The commit without its sync comes
/// first: before anything else is believed, that one must die.
#[must_use]
pub fn all() -> Vec<Mutant> {
    let mut all = mutant::of(|| {
        for seed in 1..=PLACES {
            drop(Case::generated(seed).run());
        }
        for case in recalls().into_iter().take(RECALL_PLACES) {
            drop(case.run());
        }
    });
    let first = |mutant: &Mutant| !matches!(mutant, Mutant::Call(call, How::Dropped) if call.purpose == "B1: commit");
    all.sort_by_key(first);
    all.extend(SimMutant::ALL.into_iter().map(Mutant::Simulator));
    all
}

/// Runs mutants, each over seeds `1..=seeds` at most, on several threads; tells `done` of each as it
/// is finished. The rows come in the order of the mutants.
#[must_use]
pub fn run(mutants: &[Mutant], seeds: u64, threads: usize, done: impl Fn(&Row) + Sync) -> Vec<Row> {
    pool::map(threads, mutants, |&mutant| {
        let row = Row { mutant, fate: fate(mutant, seeds) };
        done(&row);
        row
    })
}

/// How many seeds it took to find half of those mutants that seeds have found.
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
        Mutant::Site(site) if site.kind == site::Kind::Recall => by_recalls(mutant),
        Mutant::Call(..) | Mutant::Site(_) => {
            let first = FIRST.min(seeds);
            mutant::with(Some(mutant), || {
                by_seeds(1..=first)
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

/// The cases that once found something, some of them once in a million seeds; none where the sources are not at hand.
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

/// One kind that is replaced as a whole, what once was missed, and all kinds, first those on which little hides a mistake.
fn recalls() -> Vec<recall::Case> {
    let each = recall::Case::each(RECALL_ROWS);
    let turned = each.iter().filter(|case| case.kind == "clusters").map(|case| recall::Case { turns: 2, ..*case });
    turned.chain(recall::Case::found()).chain(each.clone()).collect()
}

/// A case tells that does what is promised without the mistake.
fn by_recalls(mutant: Mutant) -> Option<(Killer, String)> {
    let told = |name: &str, wrong: &dyn Fn() -> Option<String>| {
        let first = mutant::with(Some(mutant), wrong)?;
        let tells = mutant::with(None, wrong).is_none();
        tells.then(|| (Killer::Recall(name.to_owned()), first))
    };
    let cases = || recalls().into_iter().find_map(|case| told(case.kind, &|| case.run().into_iter().next()));
    cases().or_else(|| told("what is proved", &recall::flattery_simulated))
}

/// One that may be called equivalent gets the whole exploration.
fn by_exploring(mutant: Mutant) -> Option<(Killer, String)> {
    let whole = equivalent(mutant).is_some();
    let limits = match whole {
        true => Limits::default(),
        false => Limits { states_per_point: 256, depth: 2, ..Limits::default() },
    };
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

/// The conformance suite on the simulator with a mistake in it.
fn conforms(mutant: Mutant) -> Result<(), String> {
    let suite = || {
        mutant::with(Some(mutant), || {
            conformance(&|| SimStorage::new(256, 64, 1));
            conformance_crash(&|seed| SimStorage::new(256, 64, seed));
        });
    };
    catch_unwind(AssertUnwindSafe(suite)).map_err(|panic| panic_text(&*panic))
}

/// What a panic said.
pub fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("a panic without words").to_owned()
}
