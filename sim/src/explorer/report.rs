//! Report of an exploration.

use std::{collections::BTreeMap, fmt, time::Duration};

use crate::case::{Case, FAULT_CLASSES};
use shardex::failpoint::Mark;

/// Figures and violations of an exploration.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Crash points, counted for both kinds of crash.
    pub crash_points: u64,
    /// States visited: images recovered and fully checked, or with a known outcome that was checked again.
    pub states: u64,
    /// Distinct images, without those with a damaged root; zeros at the end of a file do not count. Each was recovered
    /// and fully checked.
    pub distinct_states: u64,
    /// Distinct contents after recoveries.
    pub distinct_outcomes: u64,
    /// Points at which all states were visited.
    pub exhaustive: u64,
    /// Points at which a sample of the states was visited.
    pub sampled: u64,
    /// States with a rotten or stale root slot.
    pub rotten_states: u64,
    /// States after crashes of recoveries.
    pub nested_states: u64,
    /// Images of small workloads whose recovery was crashed at each of its operations in all states.
    pub exhaustive_recoveries: u64,
    /// Maximum number of consecutive crashes.
    pub max_depth: u32,
    /// Cases of the sweep: one fault or damage at one operation of one workload.
    pub sweep_cases: u64,
    /// Cases of the sweep that ended because the damage was detected and reported.
    pub detected: u64,
    /// Number of faults that fired, by class.
    pub faults: BTreeMap<&'static str, u64>,
    /// Number of times that each coverage mark was reached.
    pub marks: BTreeMap<&'static str, u64>,
    /// Broken promises.
    pub violations: Vec<Violation>,
    /// Total time of all threads to recover and check `distinct_states`.
    pub checking: Duration,
}

/// Broken promise.
#[derive(Clone, Debug)]
pub struct Violation {
    /// Promise that is broken, and how.
    pub broken: String,
    /// Case that leads to it.
    pub case: Case,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}\n{}", self.broken, self.case)
    }
}

impl Report {
    /// Adds the figures of another report.
    pub fn add(&mut self, other: Self) {
        self.crash_points += other.crash_points;
        self.states += other.states;
        self.distinct_states += other.distinct_states;
        self.distinct_outcomes += other.distinct_outcomes;
        self.exhaustive += other.exhaustive;
        self.sampled += other.sampled;
        self.rotten_states += other.rotten_states;
        self.nested_states += other.nested_states;
        self.exhaustive_recoveries += other.exhaustive_recoveries;
        self.max_depth = self.max_depth.max(other.max_depth);
        self.sweep_cases += other.sweep_cases;
        self.detected += other.detected;
        count(&mut self.faults, other.faults);
        count(&mut self.marks, other.marks);
        self.violations.extend(other.violations);
        self.checking += other.checking;
    }

    /// Runs one case and returns its report.
    #[must_use]
    pub fn of_case(case: Case) -> Self {
        let verdict = case.run();
        let mut report = Self {
            sweep_cases: 1,
            detected: u64::from(verdict.detected.is_some()),
            faults: verdict.faults,
            marks: verdict.marks,
            ..Self::default()
        };
        if let Some(broken) = verdict.broken {
            report.violations.push(Violation { broken, case });
        }
        report
    }

    /// Returns the fault classes and coverage marks that never fired, so that the run did not test them.
    #[must_use]
    pub fn silent(&self) -> Vec<&'static str> {
        let classes = FAULT_CLASSES.into_iter().filter(|class| !self.faults.contains_key(class));
        let marks = Mark::ALL.iter().map(|mark| mark.text()).filter(|mark| !self.marks.contains_key(mark));
        classes.chain(marks).collect()
    }
}

/// Adds counts by name.
fn count(sums: &mut BTreeMap<&'static str, u64>, more: BTreeMap<&'static str, u64>) {
    for (name, n) in more {
        *sums.entry(name).or_default() += n;
    }
}
