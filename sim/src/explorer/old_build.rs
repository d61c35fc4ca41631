//! Upgrades crashed at every operation, opened by a build of an earlier version.
//!
//! Each state that a crash may leave is written to a directory. The command-line tool of the earlier build searches it,
//! which recovers it. It must find exactly what an allowed prefix of the batches leaves, or refuse because of the version.
//! What it leaves is then opened by this build, which must find the same.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use shardex::{Engine, storage::MmapStorage};

use super::{
    options,
    record::{Point, hash_image, record},
    states::outcomes,
};
use crate::{
    brute_force,
    model::{self, Key, State},
    storage::{CrashKind, SimStorage},
    workload::{Workload, env, reference},
};

/// What the earlier build did with the states.
#[derive(Clone, Debug, Default)]
pub struct OldBuildReport {
    /// Crash points, two kinds of crash each.
    pub points: u64,
    /// Different states opened.
    pub states: u64,
    /// States that the earlier build recovered as it should.
    pub recovered: u64,
    /// States that it refused because of their version.
    pub refused: u64,
    /// States without an index, before the first batch.
    pub without_index: u64,
    /// Descriptions of states with any other outcome.
    pub violations: Vec<String>,
}

/// Outcome of the earlier build.
enum Answer {
    Postings(BTreeMap<Key, f64>),
    Refused,
    NoIndex,
}

/// Opens the states of all reference workloads that upgrade an index of `version` by the tool `old`, a build of that version,
/// up to `states` per crash point and kind of crash. `scratch` is a directory for one index at a time.
///
/// # Errors
/// Returns a message if the workload fails without a crash, or if a file or the tool can't be used.
pub fn with_old_build(old: &Path, version: u32, scratch: &Path, states: usize) -> Result<OldBuildReport, String> {
    let mut report = OldBuildReport::default();
    for mut workload in reference().into_iter().filter(|workload| workload.from_version == Some(version)) {
        // The tool runs on a real disk, with its pages.
        let blank = Workload::blank("", params(&workload), true);
        (workload.page_size, workload.sector_size) = (blank.page_size, blank.sector_size);
        workload.config = blank.config;
        let recorded = record(&workload)?;
        let mut seen = BTreeSet::new();
        for (index, point) in recorded.points.iter().enumerate() {
            for kind in [CrashKind::Process, CrashKind::Power] {
                report.points += 1;
                for picks in outcomes(&options(&point.image, kind), states, index as u64).1 {
                    let mut disk = SimStorage::from_image(&point.image);
                    disk.crash_with(kind, &picks);
                    if !seen.insert((hash_image(&disk), point.durable, point.accepted)) {
                        continue;
                    }
                    report.states += 1;
                    let opened = open(old, scratch, &disk, &workload, &recorded.states, point, &mut report)?;
                    if let Err(broken) = opened {
                        let name = &workload.name;
                        report.violations.push(format!("{name}, operation {index}, {kind:?} {picks:?}: {broken}"));
                    }
                }
            }
        }
    }
    Ok(report)
}

fn params(workload: &Workload) -> crate::workload::WorkloadParams {
    let config = &workload.config;
    crate::workload::WorkloadParams {
        dimension: config.vector_size,
        shard_size: config.shard_size,
        metric: config.metric,
    }
}

/// Opens one state. The inner error describes a violation.
fn open(
    old: &Path,
    scratch: &Path,
    disk: &SimStorage,
    workload: &Workload,
    states: &[State],
    point: &Point,
    report: &mut OldBuildReport,
) -> Result<Result<(), String>, String> {
    let dir = scratch.join("index");
    let _ = fs::remove_dir_all(&dir);
    fs::create_dir_all(&dir).map_err(|e| e.to_string())?;
    for (name, bytes) in disk.files().into_iter().filter(|(name, _)| name != "LOCK") {
        fs::write(dir.join(name), bytes).map_err(|e| e.to_string())?;
    }
    let dimension = workload.config.vector_size;
    let query = brute_force::test_query(dimension, 0);
    let answer = ask(old, &dir, &row_file(scratch, &query)?)?;
    let allowed = point.durable..=point.accepted;
    Ok(match answer {
        Err(text) => Err(format!("the earlier build fails: {text}")),
        Ok(Answer::NoIndex) if point.durable == 0 => {
            report.without_index += 1;
            Ok(())
        }
        Ok(Answer::NoIndex) => Err("the earlier build finds no index".into()),
        Ok(Answer::Refused) => {
            report.refused += 1;
            opened_again(&dir, workload, &states[allowed])
        }
        Ok(Answer::Postings(found)) => {
            let holds = |state: &State| {
                let of_version_1 = state.tags.is_empty() && state.payloads.is_empty() && state.cursor.is_empty();
                (workload.from_version > Some(1) || of_version_1)
                    && found.len() == state.len()
                    && found.iter().zip(state.iter()).all(|((a, score), (b, vector))| {
                        let expected = -brute_force::distance(workload.config.metric, &query, vector);
                        a == b && (score - expected).abs() <= 1e-4 * expected.abs().max(1.0)
                    })
            };
            // Several prefixes may leave the same postings, with other tags or payloads.
            let equal: Vec<State> = states[allowed.clone()].iter().filter(|state| holds(state)).cloned().collect();
            if equal.is_empty() {
                return Ok(Err(format!("it finds {} postings, which no prefix in {allowed:?} leaves", found.len())));
            }
            report.recovered += 1;
            opened_again(&dir, workload, &equal)
        }
    })
}

/// Opens by this build what the earlier build has left: one of the allowed contents.
fn opened_again(dir: &Path, workload: &Workload, allowed: &[State]) -> Result<(), String> {
    let engine = Engine::open(MmapStorage::new(dir), workload.config.options.clone(), &env())
        .map_err(|e| format!("this build opens not what the earlier one left: {e}"))?;
    let held = model::contents(&engine)?;
    if allowed.iter().any(|state| model::same(&held, state, workload.config.metric)) {
        Ok(())
    } else {
        Err("this build finds other postings than the earlier one".into())
    }
}

/// Searches for everything with the earlier build. The inner error is its message.
fn ask(old: &Path, dir: &Path, query: &Path) -> Result<Result<Answer, String>, String> {
    let output = Command::new(old)
        .arg("--json")
        .arg("search")
        .args([dir, query])
        .args(["-k", "1000", "--exact"])
        .output()
        .map_err(|e| format!("{}: {e}", old.display()))?;
    if !output.status.success() {
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        let refused = text.contains("format version 3") && text.contains("use a build that reads 3");
        return Ok(match text {
            _ if refused => Ok(Answer::Refused),
            text if text.contains("no index in") => Ok(Answer::NoIndex),
            text => Err(text),
        });
    }
    let text = String::from_utf8_lossy(&output.stdout);
    let line = text.lines().next().unwrap_or_default();
    let answer: serde_json::Value = serde_json::from_str(line).map_err(|e| format!("{line}: {e}"))?;
    let hit = |hit: &serde_json::Value| {
        let number = |name: &str| hit[name].as_u64();
        let key = (number("document_id")?.into(), number("start")? as u32, number("length")? as u32);
        Some((key, hit["score"].as_f64()?))
    };
    let hits = answer["hits"].as_array().and_then(|hits| hits.iter().map(hit).collect::<Option<_>>());
    hits.map(|hits| Ok(Answer::Postings(hits))).ok_or_else(|| format!("no hits: {line}"))
}

/// Writes a vector as the only row of an .npy file.
fn row_file(scratch: &Path, row: &[f32]) -> Result<PathBuf, String> {
    let path = scratch.join("query.npy");
    let mut header = format!("{{'descr': '<f4', 'fortran_order': False, 'shape': (1, {}), }}", row.len());
    while (header.len() + 11) % 64 != 0 {
        header.push(' ');
    }
    header.push('\n');
    let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
    bytes.extend((header.len() as u16).to_le_bytes());
    bytes.extend(header.as_bytes());
    row.iter().for_each(|x| bytes.extend(x.to_le_bytes()));
    fs::write(&path, bytes).map_err(|e| e.to_string())?;
    Ok(path)
}
