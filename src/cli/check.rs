//! Command `shardex check`.

use std::io::ErrorKind;

use serde_json::json;
use shardex::{CheckLevel, ConsistencyReport, IndexStats, Shardex, ShardexError};

use super::{Answer, Failure, Outcome, admin::read_only, args::Check, block_on, output::Output};

pub(super) fn run(args: &Check, output: &Output) -> Outcome {
    block_on(1, async {
        let (mut findings, report) = match Shardex::open(&args.dir).await {
            Ok(index) => {
                let stats = index.stats().await?;
                let level = if args.full { CheckLevel::Full } else { CheckLevel::Quick };
                let checked = index.check(level).await;
                let closed = index.close().await;
                let mut findings = of_the_open(&stats);
                let report = match checked {
                    Ok(report) => Some(report),
                    Err(error) => {
                        findings.push(damage(error)?);
                        None
                    }
                };
                closed?;
                (findings, report)
            }
            // Damage that makes the open fail is a finding too.
            Err(error) => (vec![damage(error)?], None),
        };
        let found = report.iter().flat_map(|report| &report.findings).map(ToString::to_string);
        findings.extend(found);
        let clean = findings.is_empty();
        let text = text(report.as_ref(), &findings, args.full);
        let report = report.unwrap_or_default();
        output.result(
            &json!({
                "clean": clean,
                "shards_checked": report.shards_checked,
                "postings_checked": report.postings_checked,
                "bytes_read": report.bytes_read,
                "findings": findings,
            }),
            &text,
        );
        Ok(if clean { Answer::Yes } else { Answer::No })
    })
}

/// Returns findings about problems that only the open could detect, because it repaired them or works around them.
fn of_the_open(stats: &IndexStats) -> Vec<String> {
    let recovery = &stats.recovery;
    let mut findings = Vec::new();
    if recovery.root_fallback {
        findings.push("a root was damaged, and the open repaired it".to_owned());
    }
    if recovery.cells_lost {
        findings.push("the cells of a root are damaged: searches don't use them, and they are rebuilt in the background or by `shardex optimize`".to_owned());
    }
    findings.extend(read_only(stats));
    findings
}

/// Converts an error caused by damaged, missing or misplaced bytes to a finding. Returns any other error as a
/// `Failure`.
fn damage(error: ShardexError) -> Result<String, Failure> {
    let damaged = match &error {
        ShardexError::Corruption { .. } | ShardexError::NotAnIndex { .. } => true,
        // EIO of a failing medium, a truncated file, or a directory in place of a file.
        ShardexError::Io { op: "read" | "open" | "map" | "lend", source, .. } => {
            let medium = source.raw_os_error() == Some(rustix::io::Errno::IO.raw_os_error());
            medium || matches!(source.kind(), ErrorKind::UnexpectedEof | ErrorKind::IsADirectory)
        }
        _ => false,
    };
    if damaged { Ok(error.to_string()) } else { Err(error.into()) }
}

fn text(report: Option<&ConsistencyReport>, findings: &[String], full: bool) -> String {
    let looked = match report {
        None => "the index could not be checked any further".to_owned(),
        Some(report) => {
            let (shards, postings) = (report.shards_checked, report.postings_checked);
            let read = if full { format!("{} bytes read", report.bytes_read) } else { "no vector read".to_owned() };
            format!("{shards} shards, {postings} postings, {read}")
        }
    };
    match findings {
        [] if full => format!("{looked}: consistent"),
        [] => format!("{looked}: the figures are consistent; --full reads every byte"),
        some => {
            let one = if some.len() == 1 { "finding" } else { "findings" };
            let lines: String = some.iter().map(|finding| format!("\n  {finding}")).collect();
            format!("{looked}: {} {one}{lines}", some.len())
        }
    }
}
