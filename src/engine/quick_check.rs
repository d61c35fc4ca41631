//! The quick check: compares counts and LSNs in memory, and checks that sums are finite. It reads no vector and no file.

use super::{
    core::Engine,
    directory::DirectoryChanges,
    findings::{At, Component, ConsistencyReport},
};
use crate::{
    format::root::Root,
    shard::{Shard, SharedShard},
    storage::Storage,
};

/// Checks the changed shards and the root of a flush. Cost: O(changed shards).
pub(super) fn quick_check<S: Storage>(
    engine: &Engine<S>,
    root: &Root,
    dirty: &[(u32, Option<SharedShard<S::File>>)],
    changes: &DirectoryChanges,
) -> ConsistencyReport {
    let mut report = ConsistencyReport::default();
    let at = At::new(Component::Wal);
    if root.checkpoint > engine.wal.last_lsn() {
        report.add(
            at.clone(),
            "the checkpoint is in the WAL",
            format!("at most {}", engine.wal.last_lsn()),
            root.checkpoint.to_string(),
        );
    }
    if root.checkpoint < engine.roots.newest().checkpoint {
        report.add(
            at,
            "checkpoints grow",
            format!("at least {}", engine.roots.newest().checkpoint),
            root.checkpoint.to_string(),
        );
    }
    for (number, shard) in dirty {
        let entry = changes.get(&(0, *number as usize)).copied().unwrap_or_default();
        report.expect(At::shard(*number), "the directory has a state for it", shard.is_some(), !entry.is_none());
        if let Some(shard) = shard {
            check_counts(&mut report, *number, shard, engine.data.geometry().shard_size);
        }
    }
    report
}

/// Compares the counts and tombstones of one shard, and checks that its running sum is finite. Reads no vector.
fn check_counts<L: std::ops::Deref<Target = [u8]> + Clone>(
    report: &mut ConsistencyReport,
    number: u32,
    shard: &Shard<L>,
    shard_size: usize,
) {
    let at = At::shard(number);
    report.shards_checked += 1;
    report.postings_checked += shard.len() as u64;
    if shard.len() > shard_size {
        report.add(at.clone(), "slots used", format!("at most {shard_size}"), shard.len().to_string());
    }
    let in_extents: usize = shard.extents().iter().map(|extent| extent.used()).sum();
    report.expect(at.clone(), "slots used in its extents", shard.len(), in_extents);
    let removed: usize = (0..shard.len().div_ceil(64)).map(|i| shard.tombstone_word(i).count_ones() as usize).sum();
    report.expect(at.clone(), "live postings", shard.len() - removed, shard.live());
    if !shard.sum().iter().all(|x| x.is_finite()) {
        report.add(at, "the running sum", "finite numbers", "others");
    }
}

/// Checks all shards and LSNs that the engine holds in memory.
pub(super) fn check_figures<S: Storage>(engine: &Engine<S>) -> ConsistencyReport {
    let mut report = ConsistencyReport::default();
    let (mut live, mut removed) = (0, 0);
    for (number, shard) in (0u32..).zip(&engine.work.shards) {
        let Some(shard) = shard else { continue };
        check_counts(&mut report, number, shard, engine.data.geometry().shard_size);
        live += shard.live() as u64;
        removed += (shard.len() - shard.live()) as u64;
    }
    let at = At::new(Component::Shard);
    report.expect(at.clone(), "live postings in all shards", live, engine.work.totals.live);
    report.expect(at.clone(), "removed postings in all shards", removed, engine.work.totals.removed);
    // A poisoned engine publishes the state of its last complete flush, so the count would differ.
    if engine.poisoned.is_none() {
        report.expect(at, "live postings published", live, engine.published.live);
    }
    let at = At::new(Component::Wal);
    let (checkpoint, durable, last) =
        (engine.roots.newest().checkpoint, engine.wal.durable_lsn(), engine.wal.last_lsn());
    if checkpoint > durable || durable > last {
        report.add(at, "checkpoint ≤ durable ≤ last", "in order", format!("{checkpoint}, {durable}, {last}"));
    }
    report
}
