//! Output of the commands. Only fields of time and speed differ from run to run.

use std::{collections::BTreeMap, path::Path};

use clap::ValueEnum;
use serde_json::{Value, json};
use shardex::Durability;
use shardex_sim::{
    backups::BackupReport,
    case::{Case, CaseVerdict},
    exactly_once::{self, Mistake},
    explorer::{OldBuildReport, Report, Violation},
    flips::{FlipOutcome, FlipReport},
    mutation::{self, Fate, Row},
    shrink::shrink,
    workload::Workload,
};

pub fn workload(workload: &Workload, report: &Report) {
    println!(
        "{:<36} {:>4} points ({:>4} exhaustive) {:>8} states {:>8} distinct {:>7} nested {:>5} swept  {} violations",
        workload.name,
        report.crash_points,
        report.exhaustive,
        report.states,
        report.distinct_states,
        report.nested_states,
        report.sweep_cases,
        report.violations.len()
    );
}

pub fn flips(report: &FlipReport, seconds: f64, as_json: bool) {
    if as_json {
        let regions: BTreeMap<&str, BTreeMap<&str, u64>> = report
            .regions
            .iter()
            .map(|(region, fates)| (region.as_str(), fates.iter().map(|(fate, n)| (fate.name(), *n)).collect()))
            .collect();
        let (bytes, flips, violations) = (report.bytes, report.flips(), &report.violations);
        let object = json!({
            "bytes": bytes, "flips": flips, "regions": regions, "violations": violations.len(), "seconds": seconds,
        });
        return println!("{object}");
    }
    print!("{:<48} {:>9}", "share of the flipped bits, in %", "bits");
    FlipOutcome::ALL.iter().for_each(|fate| print!(" {:>9}", fate.name()));
    println!();
    for (region, fates) in &report.regions {
        let bits: u64 = fates.values().sum();
        print!("{region:<48} {bits:>9}");
        for fate in FlipOutcome::ALL {
            print!(" {:>9.1}", 100.0 * fates.get(&fate).copied().unwrap_or(0) as f64 / bits as f64);
        }
        println!();
    }
    report.violations.iter().take(20).for_each(|violation| println!("VIOLATION: {violation}"));
    println!(
        "{} of {} bits flipped, {} violations, {seconds:.1} s",
        report.flips(),
        8 * report.bytes,
        report.violations.len()
    );
}

pub fn backups(explored: &Result<BackupReport, String>, seconds: f64, as_json: bool) {
    match explored {
        Ok(report) if as_json => {
            let BackupReport { points, states, whole, faults, survived } = report;
            println!(
                "{}",
                json!({
                    "points": points, "states": states, "whole": whole, "faults": faults, "harmless_faults": survived,
                    "violations": 0, "seconds": seconds,
                })
            );
        }
        Ok(report) => println!("{report}, 0 violations, {seconds:.1} s"),
        Err(how) if as_json => println!("{}", json!({ "violations": 1, "violation": how, "seconds": seconds })),
        Err(how) => println!("VIOLATION: {how}"),
    }
}

pub fn explored(total: &Report, silent: &[&str], threads: usize, seconds: f64, as_json: bool) {
    let checking = total.checking.as_secs_f64() / threads as f64;
    let states_per_s = (total.distinct_states as f64 / checking.max(1e-9)).round();
    if as_json {
        println!(
            "{}",
            json!({
                "violations": total.violations.len(),
                "crash_points": total.crash_points,
                "states": total.states,
                "distinct_states": total.distinct_states,
                "distinct_outcomes": total.distinct_outcomes,
                "exhaustive": total.exhaustive,
                "sampled": total.sampled,
                "rotten_states": total.rotten_states,
                "nested_states": total.nested_states,
                "exhaustive_recoveries": total.exhaustive_recoveries,
                "max_depth": total.max_depth,
                "sweep_cases": total.sweep_cases,
                "detected": total.detected,
                "faults": total.faults,
                "marks": total.marks,
                "silent": silent,
                "states_per_s": states_per_s,
                "seconds": seconds,
            })
        );
        return;
    }
    println!();
    println!(
        "crash points  {:>9}  of which {} exhaustive, {} sampled",
        total.crash_points, total.exhaustive, total.sampled
    );
    println!(
        "states        {:>9}  distinct images {}, distinct outcomes {}",
        total.states, total.distinct_states, total.distinct_outcomes
    );
    println!("with a bad root {:>7}", total.rotten_states);
    println!(
        "in recoveries {:>9}  up to {} crashes in a row; {} recoveries exhaustive",
        total.nested_states, total.max_depth, total.exhaustive_recoveries
    );
    println!("fault sweep   {:>9}  cases, {} detected damage", total.sweep_cases, total.detected);
    counts("faults", &total.faults);
    counts("marks", &total.marks);
    tell_silent(silent);
    println!("violations    {:>9}", total.violations.len());
    println!("{states_per_s} states/s recovered and checked; {seconds:.1} s in all");
}

pub fn seeds(count: u64, total: &Report, silent: &[&str], seconds: f64, as_json: bool) {
    if as_json {
        println!(
            "{}",
            json!({
                "violations": total.violations.len(),
                "seeds": count,
                "detected": total.detected,
                "faults": total.faults,
                "marks": total.marks,
                "silent": silent,
                "seeds_per_s": (count as f64 / seconds).round(),
                "seconds": seconds,
            })
        );
        return;
    }
    counts("faults", &total.faults);
    counts("marks", &total.marks);
    tell_silent(silent);
    println!("seeds         {count:>9}  {} detected damage", total.detected);
    println!("violations    {:>9}", total.violations.len());
    println!("{seconds:.1} s");
}

fn counts(what: &str, counts: &BTreeMap<&'static str, u64>) {
    println!("{what}:");
    for (name, n) in counts {
        println!("  {n:>9}  {name}");
    }
}

fn tell_silent(silent: &[&str]) {
    for name in silent {
        println!("NEVER FIRED: {name}");
    }
}

/// Shrinks a violation, writes it to the directory `save`, and prints it with its trace and the command that replays
/// it.
pub fn violation(violation: &Violation, save: &Path, as_json: bool) {
    let (case, why) = shrink(&violation.case);
    let (case, why) = if why.is_empty() {
        // `Case::run` passes: only the explorer detects this violation.
        (violation.case.clone(), violation.broken.clone())
    } else {
        (case, why)
    };
    let text = format!("# {why}\n# first seen as: {}, in {}\n{case}", violation.broken, violation.case.workload.name);
    // The name is a hash of the case, so the same failure is written to one file.
    let name = format!("{:016x}.case", xxhash_rust::xxh3::xxh3_64(case.to_string().as_bytes()));
    let file = save.join(&name);
    let saved = std::fs::create_dir_all(save).and_then(|()| std::fs::write(&file, &text));
    if as_json {
        eprintln!("{}", json!({ "broken": why, "case": case.to_string(), "file": file.display().to_string() }));
        return;
    }
    println!("\nBROKEN: {why}");
    println!("first seen as: {}, in {}; shrunk:\n{case}", violation.broken, violation.case.workload.name);
    for (n, entry) in case.run().trace.iter().enumerate() {
        println!("{:>5} {entry}", n + 1);
    }
    match saved {
        Ok(()) => println!("replay with: cargo run --release -p shardex-sim -- replay {}", file.display()),
        Err(e) => println!("it could not be written to {}: {e}", file.display()),
    }
}

pub fn replayed(case: &Case, verdict: &CaseVerdict, as_json: bool) {
    if as_json {
        let trace: Vec<String> = verdict.trace.iter().map(ToString::to_string).collect();
        println!(
            "{}",
            json!({
                "case": case.to_string(),
                "broken": verdict.broken,
                "detected": verdict.detected,
                "faults": verdict.faults,
                "marks": verdict.marks,
                "trace": trace,
            })
        );
        return;
    }
    println!("{case}");
    for (n, entry) in verdict.trace.iter().enumerate() {
        println!("{:>5} {entry}", n + 1);
    }
    counts("faults", &verdict.faults);
    match (&verdict.broken, &verdict.detected) {
        (Some(broken), _) => println!("BROKEN: {broken}"),
        (None, Some(detected)) => println!("detected: {detected}"),
        (None, None) => println!("all promises kept"),
    }
}

pub fn mutants(rows: &[Row], seconds: f64, as_json: bool) {
    let count = |is: &dyn Fn(&Fate) -> bool| rows.iter().filter(|row| is(&row.fate)).count();
    let killed = count(&|fate| matches!(fate, Fate::Killed { .. }));
    let equivalent = count(&|fate| matches!(fate, Fate::Equivalent(_)));
    let survived = count(&|fate| matches!(fate, Fate::Survived));
    let median = mutation::median_seeds(rows);
    let mut kinds: BTreeMap<&str, usize> = BTreeMap::new();
    rows.iter().for_each(|row| *kinds.entry(row.mutant.kind()).or_default() += 1);
    if as_json {
        let rows: Vec<Value> = rows.iter().map(row_json).collect();
        println!(
            "{}",
            json!({
                "total": rows.len(),
                "killed": killed,
                "equivalent": equivalent,
                "survived": survived,
                "median_seeds": median,
                "kinds": kinds,
                "rows": rows,
                "seconds": seconds,
            })
        );
        return;
    }
    for row in rows {
        let (fate, why) = fate(&row.fate);
        println!("{:<15} {:<62} {fate:<24} {}", row.mutant.kind(), row.mutant.to_string(), first_line(why));
    }
    println!();
    for (kind, n) in kinds {
        println!("{n:>5}  {kind}");
    }
    println!("{} mutants: {killed} killed, {equivalent} equivalent, {survived} survived", rows.len());
    println!("median seeds to kill: {median}; {seconds:.1} s");
}

/// Prints a mutant to stderr if seeds did not kill it: such mutants take long, so the line shows progress.
pub fn progress(row: &Row, as_json: bool) {
    if !as_json && !matches!(row.fate, Fate::Killed { by: mutation::Killer::Seeds(_), .. }) {
        eprintln!("{}: {}", row.mutant, fate(&row.fate).0);
    }
}

/// Returns the text of a fate and its reason.
fn fate(fate: &Fate) -> (String, &str) {
    match fate {
        Fate::Killed { by, how } => (format!("killed by {by}"), how.as_str()),
        Fate::Equivalent(rule) => ("equivalent".to_owned(), *rule),
        Fate::Survived => ("SURVIVED".to_owned(), ""),
    }
}

fn row_json(row: &Row) -> Value {
    let (fate, by, how) = match &row.fate {
        Fate::Killed { by, how } => ("killed", Some(by.to_string()), Some(how.as_str())),
        Fate::Equivalent(rule) => ("equivalent", None, Some(*rule)),
        Fate::Survived => ("survived", None, None),
    };
    json!({ "kind": row.mutant.kind(), "failpoint": row.mutant.to_string(), "fate": fate, "by": by, "how": how })
}

fn first_line(text: &str) -> &str {
    text.lines().next().unwrap_or_default()
}

/// Prints what an earlier build did with the states of upgrades.
pub fn upgrade(report: &OldBuildReport, as_json: bool) {
    let OldBuildReport { points, states, recovered, refused, without_index, violations } = report;
    if as_json {
        println!(
            "{}",
            json!({
                "points": points,
                "states": states,
                "recovered": recovered,
                "refused": refused,
                "without_index": without_index,
                "violations": violations,
            })
        );
        return;
    }
    println!(
        "{points} crash points, {states} states: {recovered} recovered by the earlier build and opened again by this one, \
         {refused} refused, {without_index} without an index, {} violations",
        violations.len()
    );
    violations.iter().take(20).for_each(|violation| println!("  {violation}"));
}

/// Prints the result under one durability mode.
pub fn exactly_once(mode: Durability, report: &exactly_once::Report, seconds: f64, as_json: bool) {
    let [batches, changes, trimmed] = ["batches", "changes", "changes trimmed"].map(|event| report.count(event));
    if as_json {
        let violations: Vec<String> = report.violations.iter().map(ToString::to_string).collect();
        println!(
            "{}",
            json!({
                "durability": format!("{mode:?}"),
                "cuts": report.cuts,
                "indexes": report.indexes,
                "batches": batches,
                "changes": changes,
                "trimmed": trimmed,
                "violations": violations,
                "seconds": seconds,
            })
        );
        return;
    }
    println!(
        "{:<10} {:>6} power cuts  {:>4} indexes {:>8} batches {:>8} changes {:>8} trimmed  {} violations  {seconds:.1} s",
        format!("{mode:?}"),
        report.cuts,
        report.indexes,
        batches,
        changes,
        trimmed,
        report.violations.len()
    );
}

/// Prints the events of all durability modes, and the first violations with the command that repeats them.
pub fn exactly_once_total(report: &exactly_once::Report, silent: &[&str], mistake: Option<Mistake>, as_json: bool) {
    if as_json {
        println!(
            "{}",
            json!({
                "cuts": report.cuts,
                "violations": report.violations.len(),
                "counts": report.counts,
                "marks": report.marks,
                "silent": silent,
            })
        );
        return;
    }
    counts("events", &report.counts);
    counts("marks", &report.marks);
    tell_silent(silent);
    println!("power cuts    {:>9}", report.cuts);
    println!("violations    {:>9}", report.violations.len());
    for violation in report.violations.iter().take(3) {
        println!("\nBROKEN: {violation}");
        let (mode, seed) = (format!("{:?}", violation.durability).to_lowercase(), violation.seed);
        let name = mistake.as_ref().and_then(ValueEnum::to_possible_value);
        let mistake = name.map(|name| format!(" --mistake {}", name.get_name())).unwrap_or_default();
        // The process in which the violation was found ends with the next cut.
        let cuts = violation.cut + 1;
        let command = "cargo run --release -p shardex-sim -- exactly-once";
        println!("again with: {command} --only {mode} --seed {seed} --cuts {cuts}{mistake}");
    }
}
