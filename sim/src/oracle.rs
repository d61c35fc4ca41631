//! Comparison of the files, as read by the independent checker (`fsck`), with the model and the engine.

use std::collections::BTreeMap;

use shardex::{Engine, Metric, ShardexConfig, VectorEncoding, lease::PageRange, storage::Storage};

use crate::{
    fsck::{self, Contents, Files, Finding, FindingKind, Level, Part, Report, Span, What},
    model::{State, same_but_vectors},
    storage::SimStorage,
};

/// Copy of the files of an index, as a reader sees them.
pub struct Image {
    files: BTreeMap<String, Vec<u8>>,
}

impl Image {
    /// Copies the files of a simulated disk.
    #[must_use]
    pub fn of(sim: &SimStorage) -> Self {
        let mut files = BTreeMap::new();
        sim.read_files(|name, bytes| {
            files.insert(name.to_owned(), bytes.to_vec());
        });
        Self { files }
    }

    fn files(&self) -> Files<'_> {
        let file = |name: &str| self.files.get(name).map(Vec::as_slice);
        Files { root: file("root"), data: file("data"), wal: file("wal") }
    }

    /// Checks every byte of the files with the independent checker.
    #[must_use]
    pub fn check(&self) -> Report {
        fsck::fsck(&self.files(), Level::Full)
    }

    /// Returns the content of the newest root and of the WAL after its checkpoint.
    ///
    /// # Errors
    /// Returns the finding that prevents it.
    pub fn contents(&self, report: &Report) -> Result<State, String> {
        let contents = report.contents(&self.files()).map_err(|finding| finding.to_string())?;
        let Contents { vectors, tags, payloads, cursor } = contents;
        Ok(State { vectors, tags, payloads, cursor })
    }
}

/// Checks that an engine agrees with its files just after an open or a flush. There must be no finding. No page may be
/// used that neither a root nor the working state needs, and no page may be free that one of them needs. With
/// `tolerant`, findings in data that an open does not read are accepted.
///
/// # Errors
/// Returns the first contradiction.
pub fn agrees<S: Storage>(image: &Image, report: &Report, engine: &Engine<S>, tolerant: bool) -> Result<(), String> {
    let page = engine.geometry().page_size;
    let spans = |runs: &mut dyn Iterator<Item = PageRange>| -> Vec<Span> {
        runs.map(|run| Span { page: run.page, pages: run.pages.into() }).collect()
    };
    let (used, working) = (spans(&mut engine.used_allocations()), spans(&mut engine.working_allocations()));
    let mut wrong = fsck::used_map(report, &used, &[], &working);
    wrong.retain(|finding| finding.kind == FindingKind::Leak);
    // The engine discards damaged cells and frees their allocations, although a root still refers to them.
    let freed = fsck::used_map(&without_damaged_cells(report), &used, &[], &working);
    wrong.extend(freed.into_iter().filter(|finding| finding.kind == FindingKind::FreeButLive));
    let serious = report.findings.iter().find(|finding| !tolerant || !is_lazily_read(finding));
    match serious.or(wrong.first()) {
        None => Ok(()),
        Some(finding) => {
            let len = image.files().data.map_or(0, <[u8]>::len);
            Err(format!("P6 by the files: {finding} ({len} bytes of data, pages of {page})"))
        }
    }
}

/// Checks that the files of a trimmed index take no more space than they need: the data file its header and its used
/// pages, the WAL its header, the segments that both roots need, the newest and a free one. A file that damage has cut
/// may end with a part of a page or segment.
///
/// # Errors
/// Returns both sizes.
pub fn is_no_larger<S: Storage>(sim: &SimStorage, engine: &Engine<S>) -> Result<(), String> {
    let used: u64 = engine.used_allocations().map(|run| u64::from(run.pages)).sum();
    let needed = (used + 1) * engine.geometry().page_size as u64;
    match sim.allocated("data") {
        takes if takes < needed + engine.geometry().page_size as u64 => {}
        takes => return Err(format!("P6: the data file takes {takes} bytes, and {needed} are used")),
    }
    let geometry = engine.geometry();
    let segments = engine.wal_retained().div_ceil(geometry.wal_segment_size) + 2;
    let needed = geometry.page_size as u64 + segments * geometry.wal_segment_size;
    match sim.allocated("wal") {
        takes if takes < needed + geometry.wal_segment_size => Ok(()),
        takes => Err(format!("P6: the WAL takes {takes} bytes, and {needed} are needed")),
    }
}

/// Returns the report without the allocations of cells, for each root whose cells have a finding.
fn without_damaged_cells(report: &Report) -> Report {
    let mut report = report.clone();
    for (slot, tree) in report.trees.iter_mut().enumerate() {
        let of_cells = |finding: &&Finding| finding.part == Part::Cells && finding.slot == Some(slot);
        if let Some(tree) = tree
            && report.findings.iter().any(|finding| of_cells(&finding))
        {
            let is_cells = |what: What| matches!(what, What::CellsHead | What::CellsPart | What::CellsGroup);
            tree.runs.retain(|run| !is_cells(run.what));
        }
    }
    report
}

/// Reports whether a finding concerns data that an open does not read: bytes of shards, cell groups, and the WAL before
/// the newest root's checkpoint.
#[must_use]
pub fn is_lazily_read(finding: &Finding) -> bool {
    // A damaged vector also makes the sum of its shard's vectors wrong.
    let of_older_log = finding.part == Part::Log && finding.slot.is_some();
    of_older_log
        || matches!(finding.part, Part::Extent | Part::Cells | Part::Payload)
        || finding.kind == FindingKind::SumMismatch
}

/// Reports whether the content read from the files equals that of the model. Under the cosine metric, components may
/// differ by 1e-5.
#[must_use]
pub fn same(held: &State, expected: &State, config: &ShardexConfig) -> bool {
    let near = |x: &[f32], y: &[f32]| match config.metric {
        Metric::Cosine => {
            let expected = fsck::normalised(y);
            // The norm of a rounded vector is only nearly 1. The checker has compared it.
            let x = if config.encoding == VectorEncoding::F32 { x.to_vec() } else { fsck::normalised(x) };
            x.iter().zip(&expected).all(|(x, y)| (x - y).abs() <= 1e-5)
        }
        _ => x == y,
    };
    same_but_vectors(held, expected)
        && held.len() == expected.len()
        && held.iter().zip(expected.iter()).all(|((a, x), (b, y))| a == b && near(x, y))
}
