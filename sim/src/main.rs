//! `shardex-sim`: command line tool that tests the engine with simulated crashes and faults.

mod output;

use std::{
    collections::hash_map::RandomState,
    hash::{BuildHasher as _, Hasher as _},
    path::PathBuf,
    process::ExitCode,
    time::Instant,
};

use clap::{Args, Parser, Subcommand};
use shardex::Durability;
use shardex_sim::{
    case::Case,
    exactly_once::{self, DURABILITIES, Mistake},
    explorer::{self, Limits, Report, Violation},
    mutation, pool,
    workload::{self, Workload},
};

/// Tests the engine with simulated crashes and faults. Exits with 1 if a promise was broken, a mutant survived, or a
/// class of faults or a coverage mark never fired. Exits with 2 if an argument is wrong.
#[derive(Debug, Parser)]
#[command(name = "shardex-sim", version)]
struct Cli {
    /// Print the result as one JSON object on one line.
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Visit every crash point of the reference workloads and of workloads generated from seeds, and inject every fault
    /// at every operation.
    Explore(Explore),
    /// Run cases generated from seeds, with faults of every class.
    Seeds(Seeds),
    /// Run one case again and print its trace.
    Replay(Replay),
    /// Run every mutant of the engine and of the simulator, and report whether a test kills it.
    Mutants(Mutants),
    /// Cut the power while an ingester on the async API reads a source that it trims to the durable cursor. No change
    /// may be missing, double or half there.
    ExactlyOnce(ExactlyOnce),
    /// Flip every single bit of two small indexes. The damage must be found, or everything must be as before.
    Flips(Flips),
    /// Crash backups and restores at each of their operations, and inject every fault there.
    Backups(BackupRuns),
    /// Crash an upgrade at every operation, and open each state by an earlier build, which must recover everything or
    /// refuse.
    Upgrade(Upgrade),
}

/// Arguments shared by several commands.
#[derive(Debug, Args)]
struct Common {
    /// First seed.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Number of threads. Results do not depend on it.
    #[arg(long, default_value_t = 2)]
    threads: usize,
    /// Directory to which shrunk failures are written.
    #[arg(long, default_value = "corpus/crash")]
    save: PathBuf,
}

#[derive(Debug, Args)]
struct Explore {
    #[command(flatten)]
    common: Common,
    /// Number of states visited per crash point. All states are visited if there are no more than this.
    #[arg(long, default_value_t = Limits::default().states_per_point)]
    states: usize,
    /// Number of consecutive crashes.
    #[arg(long, default_value_t = Limits::default().depth)]
    depth: u32,
    /// Inject each fault at every Nth operation of a workload; 0 for none.
    #[arg(long, default_value_t = Limits::default().sweep_stride)]
    sweep: u64,
    /// Number of generated workloads, in addition to the reference workloads.
    #[arg(long, default_value_t = 0)]
    generated: u64,
    /// Run only workloads whose name contains this text.
    #[arg(long)]
    only: Option<String>,
}

#[derive(Debug, Args)]
struct Seeds {
    #[command(flatten)]
    common: Common,
    /// Number of seeds.
    #[arg(long, default_value_t = 20_000)]
    count: u64,
    /// Start from a random seed and print it.
    #[arg(long, conflicts_with = "seed")]
    fresh: bool,
}

#[derive(Debug, Args)]
struct Flips {
    /// Flip every Nth bit only.
    #[arg(long, default_value_t = 1)]
    every: u64,
    /// Number of threads. Results do not depend on it.
    #[arg(long, default_value_t = 2)]
    threads: usize,
}

#[derive(Debug, Args)]
struct BackupRuns {
    /// Number of states visited per crash point. All states are visited if there are no more than this.
    #[arg(long, default_value_t = 64)]
    states: usize,
}

#[derive(Debug, Args)]
struct Replay {
    /// File that contains a case.
    #[arg(required_unless_present = "seed", conflicts_with = "seed")]
    file: Option<PathBuf>,
    /// Run the case generated from this seed.
    #[arg(long)]
    seed: Option<u64>,
}

#[derive(Debug, Args)]
struct Mutants {
    /// Number of threads. Results do not depend on it.
    #[arg(long, default_value_t = 2)]
    threads: usize,
    /// Number of seeds tried per mutant before the reference workloads are explored.
    #[arg(long, default_value_t = mutation::SEEDS)]
    seeds: u64,
    /// Run only mutants whose name contains this text.
    #[arg(long)]
    only: Option<String>,
}

#[derive(Debug, Args)]
struct ExactlyOnce {
    /// Number of power cuts under each durability mode.
    #[arg(long, default_value_t = 10_000)]
    cuts: u64,
    /// Seed of the first index. The following indexes have the following seeds.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Run only this durability mode: immediate, interval or manual.
    #[arg(long)]
    only: Option<String>,
    /// Plant a mistake in the ingester, which the run must find.
    #[arg(long)]
    mistake: Option<Mistake>,
    /// Number of threads. Results do not depend on it.
    #[arg(long, default_value_t = 2)]
    threads: usize,
}

#[derive(Debug, Args)]
struct Upgrade {
    /// The command-line tool of the earlier build: see `tests/upgrade/earlier_build.sh`.
    #[arg(long)]
    old: PathBuf,
    /// The format version that the earlier build writes.
    #[arg(long, default_value_t = 2)]
    version: u32,
    /// Number of states opened per crash point and kind of crash.
    #[arg(long, default_value_t = 16)]
    states: usize,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    // Panics of the engine are findings: the code that catches them reports them. The default hook would print them
    // too.
    std::panic::set_hook(Box::new(|_| {}));
    let done = match &cli.command {
        Command::Explore(args) => Ok(explore(args, cli.json)),
        Command::Seeds(args) => Ok(seeds(args, cli.json)),
        Command::Replay(args) => replay(args, cli.json),
        Command::Mutants(args) => mutants(args, cli.json),
        Command::ExactlyOnce(args) => exactly_once(args, cli.json),
        Command::Upgrade(args) => upgrade(args, cli.json),
        Command::Flips(args) => flips(args, cli.json),
        Command::Backups(args) => back_up(args, cli.json),
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(what) => {
            eprintln!("error: {what}");
            ExitCode::from(2)
        }
    }
}

fn upgrade(args: &Upgrade, as_json: bool) -> Result<bool, String> {
    let scratch = std::env::temp_dir().join(format!("shardex-upgrade-{}", std::process::id()));
    std::fs::create_dir_all(&scratch).map_err(|error| format!("{}: {error}", scratch.display()))?;
    let report = explorer::with_old_build(&args.old, args.version, &scratch, args.states.max(1));
    let removed = std::fs::remove_dir_all(&scratch).map_err(|error| format!("{}: {error}", scratch.display()));
    let report = report?;
    removed?;
    output::upgrade(&report, as_json);
    if report.recovered == 0 || report.refused == 0 {
        return Err(format!(
            "{}: it recovered nothing, or refused nothing: is it of that version?",
            args.old.display()
        ));
    }
    Ok(report.violations.is_empty())
}

fn flips(args: &Flips, as_json: bool) -> Result<bool, String> {
    let began = Instant::now();
    let report = shardex_sim::flips::flip(args.every.max(1), args.threads.max(1))?;
    output::flips(&report, began.elapsed().as_secs_f64(), as_json);
    Ok(report.violations.is_empty())
}

fn back_up(args: &BackupRuns, as_json: bool) -> Result<bool, String> {
    let began = Instant::now();
    let explored = shardex_sim::backups::explore(args.states);
    output::backups(&explored, began.elapsed().as_secs_f64(), as_json);
    Ok(explored.is_ok())
}

fn explore(args: &Explore, as_json: bool) -> bool {
    let first = args.common.seed;
    let generated = (first..first.saturating_add(args.generated)).map(Workload::generated);
    let workloads: Vec<Workload> = workload::reference()
        .into_iter()
        .chain(generated)
        .filter(|workload| args.only.as_ref().is_none_or(|only| workload.name.contains(only.as_str())))
        .collect();
    let limits = Limits {
        states_per_point: args.states.max(1),
        depth: args.depth,
        sweep_stride: args.sweep,
        seed: first,
        ..Limits::default()
    };
    let began = Instant::now();
    let reports = explorer::explore(&workloads, &limits, args.common.threads.max(1));
    let seconds = began.elapsed().as_secs_f64();
    let mut total = Report::default();
    for (workload, report) in workloads.iter().zip(reports) {
        if !as_json {
            output::workload(workload, &report);
        }
        total.add(report);
    }
    // A partial run legitimately misses faults and marks, so only a whole run is checked for them.
    let whole = args.only.is_none() && args.sweep == 1;
    let silent = if whole { total.silent() } else { Vec::new() };
    output::explored(&total, &silent, args.common.threads.max(1), seconds, as_json);
    tell(&total.violations, &args.common.save, as_json);
    total.violations.is_empty() && silent.is_empty()
}

fn seeds(args: &Seeds, as_json: bool) -> bool {
    let began = Instant::now();
    let first = if args.fresh { fresh_seed() } else { args.common.seed };
    if args.fresh {
        eprintln!("seeds from {first} on: again with --seed {first} --count {}", args.count);
    }
    let end = first.saturating_add(args.count);
    let mut total = Report::default();
    // In parts, to bound the number of reports in memory.
    for part in (first..end).step_by(PART as usize) {
        let seeds: Vec<u64> = (part..end.min(part.saturating_add(PART))).collect();
        let reports = pool::map(args.common.threads.max(1), &seeds, |&seed| Report::of_case(Case::generated(seed)));
        reports.into_iter().for_each(|report| total.add(report));
    }
    // A few thousand seeds reach every fault class and mark, so at 20,000 a silent one is a failure.
    let silent = if args.count >= 20_000 { total.silent() } else { Vec::new() };
    output::seeds(args.count, &total, &silent, began.elapsed().as_secs_f64(), as_json);
    tell(&total.violations, &args.common.save, as_json);
    total.violations.is_empty() && silent.is_empty()
}

/// Number of seeds whose reports are collected before they are summed up.
const PART: u64 = 20_000;

/// Returns a random seed below 2^56, so that `seed + count` doesn't overflow.
fn fresh_seed() -> u64 {
    RandomState::new().build_hasher().finish() >> 8
}

/// Shrinks, prints and saves the first three violations.
fn tell(violations: &[Violation], save: &std::path::Path, as_json: bool) {
    for violation in violations.iter().take(3) {
        output::violation(violation, save, as_json);
    }
}

fn replay(args: &Replay, as_json: bool) -> Result<bool, String> {
    let case = match (&args.file, args.seed) {
        (Some(file), _) => {
            let text = std::fs::read_to_string(file).map_err(|e| format!("{}: {e}", file.display()))?;
            text.parse().map_err(|e| format!("{}: {e}", file.display()))?
        }
        (None, Some(seed)) => Case::generated(seed),
        (None, None) => return Err("name a file, or give --seed".into()),
    };
    let verdict = case.run();
    output::replayed(&case, &verdict, as_json);
    Ok(verdict.broken.is_none())
}

fn mutants(args: &Mutants, as_json: bool) -> Result<bool, String> {
    if !cfg!(feature = "mutants") {
        return Err("this build cannot weaken the engine: build it with `--features mutants`".into());
    }
    let began = Instant::now();
    let mut all = mutation::all();
    all.retain(|mutant| args.only.as_ref().is_none_or(|only| mutant.to_string().contains(only.as_str())));
    let rows = mutation::run(&all, args.seeds, args.threads.max(1), |row| output::progress(row, as_json));
    output::mutants(&rows, began.elapsed().as_secs_f64(), as_json);
    Ok(rows.iter().all(|row| row.fate != mutation::Fate::Survived))
}

fn exactly_once(args: &ExactlyOnce, as_json: bool) -> Result<bool, String> {
    let named =
        |mode: &Durability| args.only.as_ref().is_none_or(|only| format!("{mode:?}").eq_ignore_ascii_case(only));
    let modes: Vec<Durability> = DURABILITIES.into_iter().filter(named).collect();
    if modes.is_empty() {
        return Err("`--only` takes immediate, interval or manual".into());
    }
    let mut total = exactly_once::Report::default();
    for &mode in &modes {
        let began = Instant::now();
        let report = exactly_once::run(mode, args.cuts, args.seed, args.mistake, args.threads.max(1));
        output::exactly_once(mode, &report, began.elapsed().as_secs_f64(), as_json);
        total.add(report);
    }
    // A thousand cuts reach every expected event, so later a missing one is a failure.
    let whole = modes.len() == DURABILITIES.len() && args.cuts >= 1_000 && args.mistake.is_none();
    let silent = if whole { total.silent() } else { Vec::new() };
    output::exactly_once_total(&total, &silent, args.mistake, as_json);
    // A planted mistake must be found.
    Ok(total.violations.is_empty() != args.mistake.is_some() && silent.is_empty())
}
