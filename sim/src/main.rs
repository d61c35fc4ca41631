//! `shardex-sim`: explores crash states from the command line.

use std::{
    process::ExitCode,
    sync::{Mutex, PoisonError},
    time::Instant,
};

use clap::{Parser, Subcommand};
use serde_json::json;
use shardex_sim::{
    explorer::{self, Limits, Report},
    workload::{self, Workload},
};

/// Breaks the engine with simulated crashes.
#[derive(Debug, Parser)]
#[command(name = "shardex-sim", version)]
struct Cli {
    /// Print one JSON object on one line.
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Visit every crash point of the reference workloads, and of workloads generated from seeds.
    Explore(Explore),
}

#[derive(Debug, clap::Args)]
struct Explore {
    /// What chance starts from; generated workloads count from it.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// States per crash point up to which all are visited; beyond, so many are.
    #[arg(long, default_value_t = 4_096)]
    states: usize,
    /// Crashes in a row.
    #[arg(long, default_value_t = 2)]
    depth: u32,
    /// Threads.
    #[arg(long, default_value_t = 2)]
    threads: usize,
    /// Generated workloads, beside the reference ones.
    #[arg(long, default_value_t = 0)]
    generated: u64,
    /// Leave out the syncs of this purpose: what is found then is what they buy.
    #[arg(long)]
    without: Option<String>,
    /// Only workloads whose name contains this.
    #[arg(long)]
    only: Option<String>,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    match &cli.command {
        Command::Explore(args) => explore(args, cli.json),
    }
}

fn explore(args: &Explore, as_json: bool) -> ExitCode {
    let generated = (args.seed..args.seed + args.generated).map(Workload::generated);
    let workloads: Vec<Workload> = workload::reference()
        .into_iter()
        .chain(generated)
        .filter(|workload| args.only.as_ref().is_none_or(|only| workload.name.contains(only.as_str())))
        .collect();
    let limits = Limits {
        states_per_point: args.states.max(1),
        depth: args.depth,
        seed: args.seed,
        // Leaked once per process: purposes are static.
        without: args.without.clone().map(|purpose| &*purpose.leak()),
        ..Limits::default()
    };
    let began = Instant::now();
    let reports = run_all(&workloads, &limits, args.threads.max(1));
    let seconds = began.elapsed().as_secs_f64();
    let mut total = Report::default();
    for (workload, report) in workloads.iter().zip(reports) {
        if !as_json {
            println!(
                "{:<36} {:>6} points  {:>9} states  {:>8} distinct  {:>5} outcomes  {:>8} nested  {} violations",
                workload.name,
                report.crash_points,
                report.states,
                report.distinct_states,
                report.distinct_outcomes,
                report.nested_states,
                report.violations.len()
            );
        }
        total.add(report);
    }
    for violation in total.violations.iter().take(5) {
        eprintln!("{violation:?}");
    }
    let object = json!({
        "violations": total.violations.len(),
        "crash_points": total.crash_points,
        "states": total.states,
        "distinct_states": total.distinct_states,
        "distinct_outcomes": total.distinct_outcomes,
        "exhaustive": total.exhaustive,
        "sampled": total.sampled,
        "nested_states": total.nested_states,
        "max_depth": total.max_depth,
        "marks": total.marks,
        "states_per_s": (total.distinct_states as f64 / seconds).round(),
        "seconds": seconds,
    });
    println!("{object}");
    if total.violations.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(1) }
}

/// Explores workloads on several threads; the reports come in the order of the workloads.
fn run_all(workloads: &[Workload], limits: &Limits, threads: usize) -> Vec<Report> {
    let next = Mutex::new(0);
    let reports: Mutex<Vec<Option<Report>>> = Mutex::new(vec![None; workloads.len()]);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let mut taken = next.lock().unwrap_or_else(PoisonError::into_inner);
                    let i = *taken;
                    *taken += 1;
                    drop(taken);
                    let Some(workload) = workloads.get(i) else { return };
                    let report = explorer::explore(workload, limits);
                    reports.lock().unwrap_or_else(PoisonError::into_inner)[i] = Some(report);
                }
            });
        }
    });
    let reports = reports.into_inner().unwrap_or_else(PoisonError::into_inner);
    reports.into_iter().map(Option::unwrap_or_default).collect()
}
