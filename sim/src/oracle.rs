//! The judge that does not ask the accused: what the files say, by [`fsck`](crate::fsck), against the model and the engine.

use std::collections::BTreeMap;

use shardex::{Engine, Metric, lease::Run, storage::Storage};

use crate::{
    fsck::{self, Files, Finding, Kind, Level, Part, Report, Span},
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
/// is needed.
///
/// # Errors
/// The first contradiction.
pub fn agrees<S: Storage>(image: &Image, report: &Report, engine: &Engine<S>) -> Result<(), String> {
    let page = engine.geometry().page_size;
    let spans = |runs: &mut dyn Iterator<Item = Run>| -> Vec<Span> {
        runs.map(|run| Span { page: run.page, pages: run.pages.into() }).collect()
    };
    let (used, working) = (spans(&mut engine.used_places()), spans(&mut engine.working_places()));
    let wrong = fsck::used_map(report, &used, &[], &working);
    match report.findings.first().or(wrong.first()) {
        None => Ok(()),
        Some(finding) => {
            let len = image.files().data.map_or(0, <[u8]>::len);
            Err(format!("P6 by the files: {finding} ({len} bytes of data, pages of {page})"))
        }
    }
}

/// Damage that the files show of shards' bytes or of cells, which an open does not look for.
#[must_use]
pub fn rot(report: &Report) -> Option<&Finding> {
    let rotten = |finding: &&Finding| {
        matches!(finding.part, Part::Extent | Part::Cells)
            || matches!(finding.kind, Kind::ChecksumMismatch | Kind::BadMagic)
    };
    report.findings.iter().find(rotten)
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
