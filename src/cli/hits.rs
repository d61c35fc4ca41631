//! Hits of searches, and their output.

use std::time::Duration;

use shardex::{Hits, StopReason};

use super::output::{self, Output};

/// Default number of queries whose hits are printed without `--json`.
const SHOWN: usize = 20;

/// Posting found by a search.
#[derive(Clone, Copy, Debug)]
pub(super) struct HitRow {
    document_id: u128,
    start: u32,
    length: u32,
    score: f32,
}

/// Result of one query.
pub(super) struct QueryHits {
    pub(super) query: usize,
    hits: Vec<HitRow>,
    pub(super) scanned: usize,
    pub(super) computed: usize,
    pub(super) stopped: StopReason,
    pub(super) calibrated: bool,
    pub(super) time: Duration,
}

impl QueryHits {
    /// Copies the hits. Calls `time` after the copy, so that a duration includes it.
    pub(super) fn new(query: usize, hits: &Hits, time: impl FnOnce() -> Duration) -> Self {
        let row = |hit: shardex::Hit<'_>| HitRow {
            document_id: hit.document_id.0,
            start: hit.start,
            length: hit.length,
            score: hit.similarity_score,
        };
        Self {
            query,
            hits: hits.iter().map(row).collect(),
            scanned: hits.scanned(),
            computed: hits.computed(),
            stopped: hits.stopped(),
            calibrated: hits.calibrated(),
            time: time(),
        }
    }

    /// Returns the ids of the documents found, the nearest first.
    pub(super) fn ids(&self) -> impl Iterator<Item = u128> {
        self.hits.iter().map(|hit| hit.document_id)
    }
}

/// Prints the hits of the first `show` queries: as a table, or with `--json` as one object per query and line. Defaults
/// to [`SHOWN`] queries for the table and to all queries for JSON.
pub(super) fn print(found: &[QueryHits], show: Option<usize>, output: &Output) {
    if output.is_json() {
        found.iter().take(show.unwrap_or(usize::MAX)).for_each(|found| output::line(&object(found)));
        return;
    }
    let shown = &found[..found.len().min(show.unwrap_or(SHOWN))];
    if !shown.is_empty() {
        output.say(&table(shown));
    }
    let left = found.len() - shown.len();
    if left > 0 {
        let all = found.len();
        output.say(&format!("{left} more queries: --show {all} prints their hits, --quiet prints none\n"));
    }
}

/// Formats the hits of a query as JSON. It is written by hand, because ids of 128 bits must be JSON numbers.
fn object(found: &QueryHits) -> String {
    let hit = |hit: &HitRow| {
        let HitRow { document_id, start, length, score } = hit;
        format!(r#"{{"document_id":{document_id},"start":{start},"length":{length},"score":{score:?}}}"#)
    };
    let hits: Vec<String> = found.hits.iter().map(hit).collect();
    let stopped = match found.stopped {
        StopReason::Everything => "everything",
        StopReason::Slop => "slop",
        _ => "reached",
    };
    let QueryHits { query, calibrated, .. } = found;
    format!(r#"{{"query":{query},"stopped":"{stopped}","calibrated":{calibrated},"hits":[{}]}}"#, hits.join(","))
}

fn table(found: &[QueryHits]) -> String {
    let titles = ["query", "rank", "document", "start", "length", "score"].map(str::to_owned);
    let mut rows = vec![titles];
    for found in found {
        for (rank, hit) in (1..).zip(&found.hits) {
            let numbers = [found.query.to_string(), rank.to_string(), hit.document_id.to_string()];
            let [query, rank, document] = numbers;
            let score = format!("{:.6}", hit.score);
            rows.push([query, rank, document, hit.start.to_string(), hit.length.to_string(), score]);
        }
        if found.hits.is_empty() {
            rows.push([
                found.query.to_string(),
                "no hit".into(),
                String::new(),
                String::new(),
                String::new(),
                String::new(),
            ]);
        }
    }
    let widths: Vec<usize> = (0..6).map(|i| rows.iter().map(|row| row[i].len()).max().unwrap_or(0)).collect();
    let line = |row: &[String; 6]| {
        let cells: Vec<String> = row.iter().zip(&widths).map(|(cell, &width)| format!("{cell:>width$}")).collect();
        cells.join("  ").trim_end().to_owned() + "\n"
    };
    rows.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(query: usize, hits: &[(u128, f32)]) -> QueryHits {
        let hits =
            hits.iter().map(|&(document_id, score)| HitRow { document_id, start: 0, length: 1, score }).collect();
        let (scanned, computed, time) = (0, 0, Duration::ZERO);
        QueryHits { query, hits, scanned, computed, stopped: StopReason::Reached, calibrated: true, time }
    }

    #[test]
    fn hits_are_a_table_for_a_person() {
        let table = table(&[found(0, &[(7, 0.5), (12345, -2.0)]), found(1, &[])]);
        let expected = "query    rank  document  start  length      score\n    0       1         7      0       1   0.500000\n    \
                        0       2     12345      0       1  -2.000000\n    1  no hit\n";
        assert_eq!(table, expected);
    }

    #[test]
    fn hits_are_an_object_for_a_program() {
        let line = object(&found(3, &[(u128::from(u64::MAX) + 1, -1e-30), (1, 2.0)]));
        let object: serde_json::Value = serde_json::from_str(&line).expect("JSON");
        assert_eq!((&object["query"], &object["hits"][1]["score"]), (&3.into(), &2.0.into()));
        assert!(line.contains(r#""document_id":18446744073709551616,"#), "{line}");
    }
}
