//! The consistency check: compares WAL, shards, directory, free-space map and sums with each other.
//!
//! *Quick* compares counts and LSNs in memory, and checks that sums are finite. A flush that checks at this level covers
//! the changed shards only. *Full* reads every byte in use by copying, and recomputes everything derived. Findings are
//! returned as values.

use std::sync::Arc;

use super::{contents::CheckJob, core::Engine, findings::ConsistencyReport, quick_check::check_figures};
use crate::{config::CheckLevel, env::Never, error::Result, lease::Allocation, storage::Storage};

impl<S: Storage> Engine<S> {
    /// Checks the index for contradictions. `Quick` reads no vector. `Full` reads every byte that the index holds.
    ///
    /// # Errors
    /// Returns `Io` if the disk can't be read. Damage is a finding, not an error.
    pub fn check(&self, level: CheckLevel) -> Result<ConsistencyReport> {
        check(self, level, None)
    }
}

/// Checks a whole index. Inside a flush, `taken` holds the flush's allocations, which the engine doesn't list yet.
/// Extents that only the retained roots name are then skipped, because the flush supersedes these roots.
pub(super) fn check<S: Storage>(
    engine: &Engine<S>,
    level: CheckLevel,
    taken: Option<&[Arc<Allocation>]>,
) -> Result<ConsistencyReport> {
    match level {
        CheckLevel::Quick => Ok(check_figures(engine)),
        CheckLevel::Full => CheckJob::new(engine, taken)?.run_until(&Never),
    }
}
