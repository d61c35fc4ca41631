//! Command `shardex top`: the figures that the owner of an index publishes. It opens no index and takes no lock of one.

use std::{
    io::{self, IsTerminal as _},
    path::Path,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use serde_json::{Map, Value};
use shardex::observe::StatsReport;

use super::{
    Answer, Failure, Outcome,
    args::Top,
    block_on,
    interrupt::Interrupt,
    output::{self, Output, ms},
};

/// Time between two readings.
const REFRESH: Duration = Duration::from_secs(1);

/// Moves the cursor of a terminal to its first cell and clears it.
const CLEAR: &str = "\x1b[H\x1b[2J";

pub(super) fn run(args: &Top, output: &Output) -> Outcome {
    if args.once {
        let report = read(&args.dir)?;
        output.result(&object(&report), &text(&args.dir, &report));
        return Ok(Answer::Yes);
    }
    // A mistake in the path is an error at once. A missing file may appear.
    if !args.dir.is_dir() {
        return Err(Failure(format!("{}: there is no such directory", args.dir.display())));
    }
    let interrupt = Interrupt::listen()?;
    let clear = if io::stdout().is_terminal() && !output.is_json() { CLEAR } else { "" };
    block_on(1, async {
        while interrupt.code().is_none() && !output::reader_is_gone() && output::unwritten().is_none() {
            match read(&args.dir) {
                Ok(report) => {
                    output.result(&object(&report), &format!("{clear}{}\n", text(&args.dir, &report)));
                }
                Err(Failure(line)) => output.result(&serde_json::json!({ "error": line }), &format!("{clear}{line}\n")),
            }
            tokio::select! {
                () = interrupt.wait() => {}
                () = tokio::time::sleep(REFRESH) => {}
            }
        }
        Ok(interrupt.code().map_or(Answer::Yes, Answer::Stopped))
    })
}

fn read(dir: &Path) -> Result<StatsReport, Failure> {
    StatsReport::read(dir).map_err(|error| {
        let dir = dir.display();
        Failure(match error.kind() {
            io::ErrorKind::NotFound => {
                format!("{dir} holds no file `stats`: open the index with the option `stats_file`, as `ingest` does")
            }
            io::ErrorKind::InvalidData => format!(
                "{dir}/stats is damaged: {error}; no harm is done, and the index writes it again when a figure changes"
            ),
            _ => format!("{dir}/stats: {error}"),
        })
    })
}

/// State of the owner of the index.
fn state(report: &StatsReport) -> &'static str {
    match (report.is_live(), report.get("state")) {
        (true, _) => "open",
        (false, Some("closed")) => "closed",
        (false, _) => "stale",
    }
}

fn object(report: &StatsReport) -> Value {
    let value = |text: &str| text.parse::<u64>().map_or_else(|_| Value::from(text), Value::from);
    let mut object: Map<String, Value> = report.iter().map(|(name, figure)| (name.to_owned(), value(figure))).collect();
    object.insert("state".to_owned(), state(report).into());
    object.insert("age_ms".to_owned(), since(report, "written_unix_ms").map(|age| age.as_millis() as u64).into());
    Value::Object(object)
}

/// Returns the time since a figure that is a time.
fn since(report: &StatsReport, name: &str) -> Option<Duration> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Some(now.saturating_sub(Duration::from_millis(report.number(name)?)))
}

fn ago(report: &StatsReport, name: &str) -> String {
    since(report, name).map_or_else(|| "at an unknown time".to_owned(), |age| format!("{:.1} s ago", age.as_secs_f64()))
}

fn text(dir: &Path, report: &StatsReport) -> String {
    let number = |name: &str| report.get(name).unwrap_or("?");
    let written = ago(report, "written_unix_ms");
    let state = match state(report) {
        "open" => format!("open; figures last changed {written}"),
        "closed" => format!("closed {written}; a process that has it open now does not publish its figures"),
        _ => format!("STALE: the process that had it open ended without closing it; last figures {written}"),
    };
    let mut lines = vec![
        format!("{}: {state}", dir.display()),
        format!(
            "{} postings of {} numbers, {}; {} shards, {} cells, {} unindexed, {} removed",
            number("postings"),
            number("dimension"),
            number("metric"),
            number("shards"),
            number("cells"),
            number("unindexed_postings"),
            number("removed_postings"),
        ),
        format!(
            "{} bytes of WAL to replay; {} bytes on disk ({} free), {} in memory",
            number("wal_bytes"),
            number("disk_bytes"),
            number("free_bytes"),
            number("memory_bytes"),
        ),
        format!(
            "durability {}: {} operations ({} bytes) not durable; last LSN {}, durable {}, checkpoint {}",
            number("durability"),
            number("undurable_operations"),
            number("undurable_bytes"),
            number("last_lsn"),
            number("durable_lsn"),
            number("checkpoint_lsn"),
        ),
        last_flush(report),
        String::new(),
        format!("{:<8}{:>12}{:>14}{:>14}{:>14}{:>14}", "", "count", "p50", "p95", "p99", "max"),
    ];
    for operation in ["search", "write", "commit", "flush"] {
        let time = |quantile| format!("{:>14}", nanoseconds(report, &format!("{operation}_{quantile}_ns")));
        let times: String = ["p50", "p95", "p99", "max"].map(time).concat();
        lines.push(format!("{operation:<8}{:>12}{times}", number(&format!("{operation}_count"))));
    }
    lines.push(String::new());
    lines.extend(errors(report));
    lines.join("\n")
}

fn nanoseconds(report: &StatsReport, name: &str) -> String {
    report.number(name).map_or_else(|| "?".to_owned(), |time| ms(Duration::from_nanos(time)))
}

fn last_flush(report: &StatsReport) -> String {
    if report.get("last_flush_ns").is_none() {
        return "no flush since the open".to_owned();
    }
    let when = match report.get("last_flush_unix_ms") {
        Some(_) => ago(report, "last_flush_unix_ms"),
        None => "in the recovery".to_owned(),
    };
    let stage = |stage: &str| {
        let time = nanoseconds(report, &format!("last_flush_{}_ns", stage.replace(' ', "_")));
        format!("{stage} {time}")
    };
    let stages = ["wal sync", "shard apply", "validation", "shard sync", "index sync"].map(stage);
    format!("last flush {when}: {} ({})", nanoseconds(report, "last_flush_ns"), stages.join(", "))
}

/// Returns a line per kind of error.
fn errors(report: &StatsReport) -> Vec<String> {
    let mut lines = Vec::new();
    if let Some(cause) = report.get("poisoned") {
        lines.push(format!("POISONED: {cause}"));
    }
    if let Some(cause) = report.get("read_only") {
        lines.push(format!("READ-ONLY: {cause}"));
    }
    let count = report.get("background_errors").unwrap_or("?");
    match report.get("background_error") {
        None => lines.push(format!("{count} background errors")),
        Some(error) => {
            let work = report.get("background_error_work").unwrap_or("?");
            let lasts = if report.get("background_error_lasts") == Some("true") { "persists" } else { "is over" };
            lines.push(format!("{count} background errors; the last, of {work}, {lasts}: {error}"));
        }
    }
    lines
}
