//! Report of a run: counts, marks, and broken promises.

use std::{collections::BTreeMap, fmt};

use shardex::Durability;

/// Events and marks of the engine that a long run under all durability modes must contain. Otherwise it tests less than
/// it claims.
pub const EXPECTED: &[&str] = &[
    "abandoned calls",
    "batches of another ingester refused",
    "batches refused because an abandoned call was carried out",
    "cell builds",
    "changes trimmed",
    "closes",
    "full checks",
    "handles dropped without a close",
    "intervals waited for",
    "opens that found a batch without an answer",
    "opens that found fewer batches than were accepted",
    "power cuts in an open",
    "writes beside a flush",
    "a record was replayed",
    "a torn tail was found",
    "the WAL grew",
    "a segment was recycled",
    "a shard was split",
    "a shard was merged into its neighbours",
    "payloads of a sparse block were moved",
    "the last payload of a block was removed",
    "a payload was stored in several runs",
    "a page of tags was stored",
    "an allocation was freed",
];

/// Broken promise.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// Durability mode.
    pub durability: Durability,
    /// Seed of the index.
    pub seed: u64,
    /// Number of power cuts before the violation was found.
    pub cut: u64,
    /// Promise that is broken, and how.
    pub broken: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { durability, seed, cut, broken } = self;
        write!(f, "{durability:?}, seed {seed}, after power cut {cut}: {broken}")
    }
}

/// Result of a run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Number of indexes.
    pub indexes: u64,
    /// Number of power cuts.
    pub cuts: u64,
    /// Number of events of each kind.
    pub counts: BTreeMap<&'static str, u64>,
    /// How often the marks of the engine were reached.
    pub marks: BTreeMap<&'static str, u64>,
    /// Broken promises.
    pub violations: Vec<Violation>,
    /// Hash of the disks after each power cut.
    pub trace: u64,
}

impl Report {
    /// Adds another report.
    pub fn add(&mut self, other: Self) {
        self.indexes += other.indexes;
        self.cuts += other.cuts;
        for (counts, others) in [(&mut self.counts, other.counts), (&mut self.marks, other.marks)] {
            others.into_iter().for_each(|(name, n)| *counts.entry(name).or_default() += n);
        }
        self.violations.extend(other.violations);
        self.trace = self.trace.rotate_left(1) ^ other.trace;
    }

    /// Returns how often an event happened.
    #[must_use]
    pub fn count(&self, event: &str) -> u64 {
        self.counts.get(event).copied().unwrap_or(0)
    }

    /// Returns the [`EXPECTED`] events and marks that never happened.
    #[must_use]
    pub fn silent(&self) -> Vec<&'static str> {
        let happened = |name: &str| [&self.counts, &self.marks].iter().any(|counts| counts.get(name) > Some(&0));
        EXPECTED.iter().copied().filter(|name| !happened(name)).collect()
    }
}
