//! Findings of a consistency check, and the report that lists them.

use std::{fmt, path::PathBuf};

/// Part of an index that a finding concerns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Component {
    /// The root slots.
    Root,
    /// The directory, the shard states, the tags, and the buckets of payloads.
    Directory,
    /// A shard's vectors, postings, counts, sums or filters.
    Shard,
    /// The write-ahead log.
    Wal,
    /// The free-space map.
    Space,
    /// The bytes of payloads and of the cursor.
    Payload,
    /// The cells: codes that searches scan. Cells are derived, so damage to them loses nothing.
    Cells,
}

/// One contradiction between two parts of an index.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Finding {
    /// Part of the index that the finding concerns.
    pub component: Component,
    /// Number of the shard; `None` if the finding concerns no single shard.
    pub shard: Option<u32>,
    /// Slot in the shard; `None` if the finding concerns no single slot.
    pub slot: Option<usize>,
    /// File, and offset in it in bytes; `None` if the finding concerns values in memory.
    pub location: Option<(PathBuf, u64)>,
    /// Description of the compared property.
    pub what: String,
    /// Expected value.
    pub expected: String,
    /// Value found.
    pub found: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.component)?;
        if let Some(shard) = self.shard {
            write!(f, " {shard}")?;
        }
        if let Some(slot) = self.slot {
            write!(f, " slot {slot}")?;
        }
        if let Some((file, offset)) = &self.location {
            write!(f, " ({} byte {offset})", file.display())?;
        }
        write!(f, ": {}: {} expected, {} found", self.what, self.expected, self.found)
    }
}

/// Result of a consistency check. A consistent index has no findings.
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct ConsistencyReport {
    /// All contradictions found.
    pub findings: Vec<Finding>,
    /// Number of shards checked.
    pub shards_checked: usize,
    /// Number of postings checked, removed ones included.
    pub postings_checked: u64,
    /// Number of bytes read from disk.
    pub bytes_read: u64,
}

impl ConsistencyReport {
    /// Reports whether the check found no contradiction.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.findings.is_empty()
    }

    pub(super) fn expect<T: PartialEq + fmt::Debug>(&mut self, at: At, what: &str, expected: T, found: T) {
        if expected != found {
            self.add(at, what, format!("{expected:?}"), format!("{found:?}"));
        }
    }

    pub(super) fn add(&mut self, at: At, what: &str, expected: impl Into<String>, found: impl Into<String>) {
        self.findings.push(Finding {
            component: at.component,
            shard: at.shard,
            slot: at.slot,
            location: at.location,
            what: what.to_owned(),
            expected: expected.into(),
            found: found.into(),
        });
    }
}

impl fmt::Display for ConsistencyReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (shards, postings, bytes) = (self.shards_checked, self.postings_checked, self.bytes_read);
        write!(f, "{shards} shards, {postings} postings, {bytes} bytes read: ")?;
        match self.findings.len() {
            0 => write!(f, "consistent"),
            n => {
                write!(f, "{n} findings")?;
                self.findings.iter().try_for_each(|finding| write!(f, "\n  {finding}"))
            }
        }
    }
}

/// Location of a finding.
#[derive(Clone)]
pub(super) struct At {
    component: Component,
    shard: Option<u32>,
    slot: Option<usize>,
    location: Option<(PathBuf, u64)>,
}

impl At {
    pub(super) fn new(component: Component) -> Self {
        Self { component, shard: None, slot: None, location: None }
    }

    pub(super) fn shard(number: u32) -> Self {
        Self { shard: Some(number), ..Self::new(Component::Shard) }
    }

    /// Changes the component to the cells, and keeps the shard.
    pub(super) fn of_cells(self) -> Self {
        Self { component: Component::Cells, ..self }
    }

    pub(super) fn slot(mut self, slot: usize) -> Self {
        self.slot = Some(slot);
        self
    }

    pub(super) fn location(mut self, file: PathBuf, offset: u64) -> Self {
        self.location = Some((file, offset));
        self
    }
}
