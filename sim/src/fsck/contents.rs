//! Contents of an index: the postings of a root, and those of the newest root with the WAL replayed.

use std::collections::BTreeMap;

use super::bytes::{f32_at, u32_at, u128_at};
use super::root::{Metric, RootInfo};
use super::{Added, Batch, End, Files, Finding, FindingKind, Part, RecordBody, Report, RootSlot, Tree, encodings};

/// Key of a posting: document id, start and length.
pub type Key = (u128, u32, u32);

/// Contents of an index.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Contents {
    /// Vectors by key. Under cosine they are normalised.
    pub vectors: BTreeMap<Key, Vec<f32>>,
    /// Tags by key, of the postings that have some.
    pub tags: BTreeMap<Key, u64>,
    /// Payloads by document.
    pub payloads: BTreeMap<u128, Vec<u8>>,
    /// Cursor of the application.
    pub cursor: Vec<u8>,
}

impl Contents {
    fn insert(&mut self, key: Key, tags: u64, vector: Vec<f32>) {
        self.vectors.insert(key, vector);
        self.set_tags(key, tags);
    }

    fn set_tags(&mut self, key: Key, tags: u64) {
        self.tags.remove(&key);
        if tags != 0 && self.vectors.contains_key(&key) {
            self.tags.insert(key, tags);
        }
    }

    fn remove(&mut self, key: &Key) {
        self.vectors.remove(key);
        self.tags.remove(key);
    }

    fn remove_document(&mut self, document: u128) {
        let of_document = self.vectors.range((document, 0, 0)..=(document, u32::MAX, u32::MAX));
        for key in of_document.map(|(key, _)| *key).collect::<Vec<_>>() {
            self.remove(&key);
        }
    }

    /// Applies the net effect of a batch.
    fn apply(&mut self, batch: Batch, root: &RootInfo) {
        batch.documents.into_iter().for_each(|document| self.remove_document(document));
        batch.keys.iter().for_each(|key| self.remove(key));
        for Added { key, tags, vector } in batch.added {
            self.insert(key, tags, stored(vector, root));
        }
        batch.tags.into_iter().for_each(|(key, tags)| self.set_tags(key, tags));
        for (document, payload) in batch.payloads {
            match payload {
                Some(payload) => drop(self.payloads.insert(document, payload)),
                None => drop(self.payloads.remove(&document)),
            }
        }
        self.cursor = batch.cursor.unwrap_or_else(|| std::mem::take(&mut self.cursor));
    }
}

/// Posting as stored in its slot.
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
    fn read(bytes: &[u8], root: &RootInfo) -> Option<Self> {
        let v = root.vector_bytes();
        Some(Self {
            vector: (0..u64::from(root.dimension)).map(|index| root.component(bytes, index)).collect::<Option<_>>()?,
            document: u128_at(bytes, v)?,
            start: u32_at(bytes, v + 16)?,
            length: u32_at(bytes, v + 20)?,
            norm: f32_at(bytes, v + 24)?,
        })
    }

    /// Returns the key of the posting.
    #[must_use]
    pub fn key(&self) -> Key {
        (self.document, self.start, self.length)
    }
}

/// Returns the readable live postings of a tree with their offsets in `data`.
fn placed(root: &RootInfo, tree: &Tree, data: &[u8]) -> Vec<(u64, Posting)> {
    let mut postings = Vec::new();
    for shard in &tree.shards {
        let live = (0..shard.slots).filter(|slot| !shard.is_removed(*slot));
        postings.extend(live.filter_map(|slot| {
            let (at, bytes) = shard.slot(root, data, slot)?;
            Some((at, Posting::read(bytes, root)?))
        }));
    }
    postings
}

/// Returns the readable live postings of a tree with their tags.
fn tagged(root: &RootInfo, tree: &Tree, data: &[u8]) -> Vec<(u64, Posting)> {
    let mut postings = Vec::new();
    for shard in &tree.shards {
        let live = (0..shard.slots).filter(|slot| !shard.is_removed(*slot));
        postings.extend(live.filter_map(|slot| {
            let (_, bytes) = shard.slot(root, data, slot)?;
            let tags = shard.tags.get(slot as usize).copied().unwrap_or_default();
            Some((tags, Posting::read(bytes, root)?))
        }));
    }
    postings
}

/// Returns the readable live postings of a tree.
pub(super) fn postings(root: &RootInfo, tree: &Tree, data: &[u8]) -> Vec<Posting> {
    placed(root, tree, data).into_iter().map(|(_, posting)| posting).collect()
}

/// Finds the keys of a tree that more than one live posting has.
pub(super) fn duplicate_keys(root: &RootInfo, tree: &Tree, data: &[u8], slot: usize) -> Vec<Finding> {
    let mut keys = BTreeMap::new();
    let mut findings = Vec::new();
    for (offset, posting) in placed(root, tree, data) {
        if let Some(other) = keys.insert(posting.key(), offset) {
            let what = format!("{:?} is live here and at {other}", posting.key());
            let (kind, part, slot) = (FindingKind::DuplicateKey, Part::Extent, Some(slot));
            findings.push(Finding { kind, part, slot, file: "data", offset, what });
        }
    }
    findings
}

/// Divides a vector by its norm, computed in `f64`. Returns a vector of norm zero unchanged.
///
/// The engine may compute in another precision and order. Compare with its stored vectors by an absolute tolerance of
/// 1e-5 per component.
#[must_use]
pub fn normalised(vector: &[f32]) -> Vec<f32> {
    let norm = vector.iter().map(|value| f64::from(*value).powi(2)).sum::<f64>().sqrt();
    if norm == 0.0 {
        return vector.to_vec();
    }
    vector.iter().map(|value| (f64::from(*value) / norm) as f32).collect()
}

/// Returns a vector of the WAL as a slot stores it.
fn stored(vector: Vec<f32>, root: &RootInfo) -> Vec<f32> {
    let vector = if root.metric == Metric::Cosine { normalised(&vector) } else { vector };
    encodings::rounded(&vector, root.encoding)
}

/// Computes the contents of the index: the postings of the newest root, with the records of the WAL applied in order.
///
/// An add replaces the posting with the same key. Of equal keys in one record, the last one stays. A removal removes
/// all postings of its documents. All vectors are as slots store them, those of the WAL normalised under cosine by
/// [`normalised`], and rounded to the encoding: compare them with its tolerance.
///
/// # Errors
/// Returns a [`Finding`] if no root is valid, if the WAL is missing, or if a record is malformed. Returns the first
/// finding that concerns the newest root or no root in particular, such as a hole in the WAL. Findings in cells or in
/// the allocation of pages count only if they are [`FindingKind::TruncatedFile`].
pub fn contents(report: &Report, files: &Files<'_>) -> Result<Contents, Finding> {
    let missing = |what: &str| Finding {
        kind: FindingKind::NoRoot,
        part: Part::Root,
        slot: None,
        file: "root",
        offset: 0,
        what: what.into(),
    };
    let Some((root, newest)) = report.root().zip(report.newest) else { return Err(missing("no root is valid")) };
    let concerns = |finding: &&Finding| match finding.part {
        Part::Cells | Part::Space => finding.kind == FindingKind::TruncatedFile,
        _ => finding.slot.is_none_or(|slot| slot == newest),
    };
    if let Some(finding) = report.findings.iter().find(concerns) {
        return Err(finding.clone());
    }
    let (Some(wal), false) = (files.wal, report.log.end == End::Unread) else { return Err(missing("no log is there")) };
    let mut contents = Contents::default();
    if let (Some(tree), Some(data)) = (&report.trees[newest], files.data) {
        contents.payloads.clone_from(&tree.payloads);
        contents.cursor.clone_from(&tree.cursor);
        for (tags, posting) in tagged(root, tree, data) {
            contents.insert(posting.key(), tags, posting.vector);
        }
    }
    for record in &report.log.records {
        let bad = |what: String| Finding {
            kind: FindingKind::BadRecord,
            part: Part::Log,
            offset: record.offset,
            file: "wal",
            ..missing(&what)
        };
        match record.body(wal, root.dimension).map_err(bad)? {
            RecordBody::Add(postings) => {
                for (document, start, length, vector) in postings {
                    contents.insert((document, start, length), 0, stored(vector, root));
                }
            }
            RecordBody::Remove(documents) => {
                documents.into_iter().for_each(|document| contents.remove_document(document));
            }
            RecordBody::Batch(batch) => contents.apply(batch, root),
            // It changes no posting.
            RecordBody::Rewrite(_) => {}
        }
    }
    Ok(contents)
}

impl Report {
    /// Returns the readable live postings of the shards that the root in `slot` reaches.
    #[must_use]
    pub fn postings(&self, files: &Files<'_>, slot: usize) -> Vec<Posting> {
        let root = self.roots.get(slot).and_then(RootSlot::root);
        let tree = self.trees.get(slot).and_then(Option::as_ref);
        match (root, tree, files.data) {
            (Some(root), Some(tree), Some(data)) => postings(root, tree, data),
            _ => Vec::new(),
        }
    }

    /// Computes the contents of the index with the WAL replayed, like the function [`contents`].
    ///
    /// # Errors
    /// Returns a [`Finding`] if the durable contents can't be determined.
    pub fn contents(&self, files: &Files<'_>) -> Result<Contents, Finding> {
        contents(self, files)
    }
}
