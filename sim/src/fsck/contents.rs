//! What an index holds: the postings of a root, and those of the newest root with the log replayed.

use std::collections::BTreeMap;

use super::bytes::{f32_at, u32_at, u128_at};
use super::root::{Metric, RootInfo};
use super::{End, Files, Finding, Kind, Part, RecordBody, Report, Tree};

/// Document, start and length.
pub type Key = (u128, u32, u32);

/// Vectors by key, under cosine normalised.
pub type Contents = BTreeMap<Key, Vec<f32>>;

/// A posting as its slot holds it.
#[derive(Clone, Debug, PartialEq)]
#[expect(missing_docs, reason = "the fields are those of FORMAT.md")]
pub struct Posting {
    pub document: u128,
    pub start: u32,
    pub length: u32,
    pub vector: Vec<f32>,
    pub norm: f32,
}

impl Posting {
    fn read(bytes: &[u8], dimension: u32) -> Option<Self> {
        let v = 4 * u64::from(dimension);
        Some(Self {
            vector: (0..v).step_by(4).map(|at| f32_at(bytes, at)).collect::<Option<_>>()?,
            document: u128_at(bytes, v)?,
            start: u32_at(bytes, v + 16)?,
            length: u32_at(bytes, v + 20)?,
            norm: f32_at(bytes, v + 24)?,
        })
    }

    /// What names it.
    #[must_use]
    pub fn key(&self) -> Key {
        (self.document, self.start, self.length)
    }
}

/// Live postings of a tree, and where each is, as far as they can be read.
fn placed(root: &RootInfo, tree: &Tree, data: &[u8]) -> Vec<(u64, Posting)> {
    let mut postings = Vec::new();
    for shard in &tree.shards {
        let live = (0..shard.slots).filter(|slot| !shard.is_removed(*slot));
        postings.extend(live.filter_map(|slot| {
            let (at, bytes) = shard.slot(root, data, slot)?;
            Some((at, Posting::read(bytes, root.dimension)?))
        }));
    }
    postings
}

/// Live postings of a tree, as far as they can be read.
pub(super) fn postings(root: &RootInfo, tree: &Tree, data: &[u8]) -> Vec<Posting> {
    placed(root, tree, data).into_iter().map(|(_, posting)| posting).collect()
}

/// Keys of a tree that more than one live posting has.
pub(super) fn duplicate_keys(root: &RootInfo, tree: &Tree, data: &[u8], slot: usize) -> Vec<Finding> {
    let mut keys = BTreeMap::new();
    let mut findings = Vec::new();
    for (offset, posting) in placed(root, tree, data) {
        if let Some(other) = keys.insert(posting.key(), offset) {
            let what = format!("{:?} is live here and at {other}", posting.key());
            let (kind, part, slot) = (Kind::DuplicateKey, Part::Extent, Some(slot));
            findings.push(Finding { kind, part, slot, file: "data", offset, what });
        }
    }
    findings
}

/// A vector divided by its norm, as nearly as `f64` has it; itself if it has none.
///
/// The engine may calculate in another precision and order: compare with what it stores by an absolute tolerance of
/// 1e-5 a component.
#[must_use]
pub fn normalised(vector: &[f32]) -> Vec<f32> {
    let norm = vector.iter().map(|value| f64::from(*value).powi(2)).sum::<f64>().sqrt();
    if norm == 0.0 {
        return vector.to_vec();
    }
    vector.iter().map(|value| (f64::from(*value) / norm) as f32).collect()
}

/// What the index holds: the newest root's postings, and then each record of the log in order.
///
/// An add replaces what has its key, the last of equal keys in a record too; a removal takes all postings of its documents.
/// Under cosine all vectors are normalised, those of the log by [`normalised`]: compare them with its tolerance.
///
/// # Errors
/// If no root is valid, the log has a hole, or a part of the tree can't be read: then this is not what the index holds.
pub fn contents(report: &Report, files: &Files<'_>) -> Result<Contents, Finding> {
    let missing = |what: &str| Finding {
        kind: Kind::NoRoot,
        part: Part::Root,
        slot: None,
        file: "root",
        offset: 0,
        what: what.into(),
    };
    let Some((root, newest)) = report.root().zip(report.newest) else { return Err(missing("no root is valid")) };
    let concerns = |finding: &&Finding| match finding.part {
        Part::Cells | Part::Space => finding.kind == Kind::TruncatedFile,
        _ => finding.slot.is_none_or(|slot| slot == newest),
    };
    if let Some(finding) = report.findings.iter().find(concerns) {
        return Err(finding.clone());
    }
    let (Some(wal), false) = (files.wal, report.log.end == End::Unread) else { return Err(missing("no log is there")) };
    let cosine = root.metric == Metric::Cosine;
    let mut contents: Contents = BTreeMap::new();
    for posting in report.postings(files, newest) {
        contents.insert(posting.key(), posting.vector);
    }
    for record in &report.log.records {
        let bad = |what: String| Finding {
            kind: Kind::BadRecord,
            part: Part::Log,
            offset: record.offset,
            file: "wal",
            ..missing(&what)
        };
        match record.body(wal, root.dimension).map_err(bad)? {
            RecordBody::Add(postings) => {
                contents.extend(postings.into_iter().map(|(document, start, length, vector)| {
                    ((document, start, length), if cosine { normalised(&vector) } else { vector })
                }))
            }
            RecordBody::Remove(documents) => {
                for document in documents {
                    let of_document = contents.range((document, 0, 0)..=(document, u32::MAX, u32::MAX));
                    for key in of_document.map(|(key, _)| *key).collect::<Vec<_>>() {
                        contents.remove(&key);
                    }
                }
            }
        }
    }
    Ok(contents)
}
