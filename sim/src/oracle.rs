//! The judge that does not ask the accused: what the files say, by `fsck`, against the model and the engine.

use std::collections::BTreeMap;

use shardex::{Engine, Metric, lease::Run, storage::Storage};

use crate::{
    fsck::{self, Files, Finding, Kind, Level, Part, Report, Span, What},
    model::State,
    storage::SimStorage,
};

/// The files of an index, as a reader sees them now.
pub struct Image {
    files: BTreeMap<String, Vec<u8>>,
}

impl Image {
    /// Copies them.
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

    /// Checks every byte.
    #[must_use]
    pub fn check(&self) -> Report {
        fsck::fsck(&self.files(), Level::Full)
    }

    /// What the newest root and the log after it hold.
    ///
    /// # Errors
    /// If that can't be told.
    pub fn contents(&self, report: &Report) -> Result<State, String> {
        let contents = report.contents(&self.files()).map_err(|finding| finding.to_string())?;
        Ok(contents.into_iter().collect())
    }
}

/// Whether an engine that has just opened or flushed agrees with its files: no finding, no page used for nobody, none free that
/// is needed. What an open does not read may be damaged if that is tolerable.
///
/// # Errors
/// The first contradiction.
pub fn agrees<S: Storage>(image: &Image, report: &Report, engine: &Engine<S>, tolerant: bool) -> Result<(), String> {
    let page = engine.geometry().page_size;
    let spans = |runs: &mut dyn Iterator<Item = Run>| -> Vec<Span> {
        runs.map(|run| Span { page: run.page, pages: run.pages.into() }).collect()
    };
    let (used, working) = (spans(&mut engine.used_places()), spans(&mut engine.working_places()));
    let mut wrong = fsck::used_map(report, &used, &[], &working);
    wrong.retain(|finding| finding.kind == Kind::Leak);
    // Cells that are damaged are lost to the engine, and so are their places, though a root names them still.
    let freed = fsck::used_map(&without_damaged_cells(report), &used, &[], &working);
    wrong.extend(freed.into_iter().filter(|finding| finding.kind == Kind::FreeButLive));
    let serious = report.findings.iter().find(|finding| !tolerant || !is_lazily_read(finding));
    match serious.or(wrong.first()) {
        None => Ok(()),
        Some(finding) => {
            let len = image.files().data.map_or(0, <[u8]>::len);
            Err(format!("P6 by the files: {finding} ({len} bytes of data, pages of {page})"))
        }
    }
}

/// The same report without the runs of cells of which something is damaged.
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

/// Whether a finding is about what an open does not read: the bytes of shards, groups of cells, and the log before the newest
/// root's checkpoint.
#[must_use]
pub fn is_lazily_read(finding: &Finding) -> bool {
    // A sum of vectors is wrong when a vector is.
    let of_older_log = finding.part == Part::Log && finding.slot.is_some();
    of_older_log || matches!(finding.part, Part::Extent | Part::Cells) || finding.kind == Kind::SumMismatch
}

/// Whether contents told by the files are those of the model, to within the rounding of a norm.
#[must_use]
pub fn same(held: &State, expected: &State, metric: Metric) -> bool {
    let near = |x: &[f32], y: &[f32]| match metric {
        Metric::Cosine => {
            let expected = fsck::normalised(y);
            x.iter().zip(&expected).all(|(x, y)| (x - y).abs() <= 1e-5)
        }
        _ => x == y,
    };
    held.len() == expected.len() && held.iter().zip(expected).all(|((a, x), (b, y))| a == b && near(x, y))
}
