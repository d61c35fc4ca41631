//! Reference workloads.

use super::{Step, Workload, WorkloadParams};
use shardex::Metric;

/// Returns the reference workloads of postings and cells.
pub(super) fn postings() -> Vec<Workload> {
    use Step::{Commit, Flush, Remove, Reopen, SlowFlush};
    let l2 = |dimension, shard_size| WorkloadParams { dimension, shard_size, metric: Metric::L2 };
    vec![
        Workload {
            small: true,
            ..Workload::new("one posting", l2(3, 4), vec![add(0, 1), Commit, Flush, add(1, 1), Flush])
        },
        Workload::new("split", l2(3, 4), vec![add(0, 4), Flush, add(4, 3), Commit, add(7, 4), Flush]),
        Workload::new(
            "split and move",
            l2(3, 8),
            vec![add(0, 16), Flush, add(16, 9), Commit, add(30, 9), Flush, add(40, 2), Flush],
        ),
        Workload::new(
            "freed shards",
            l2(3, 4),
            vec![add(0, 9), Flush, Remove { first: 0, count: 9 }, Flush, add(20, 5), Flush, add(30, 5), Flush],
        ),
        Workload::new(
            "replacements",
            l2(17, 4),
            vec![
                add(0, 6),
                Flush,
                Step::Add { first: 0, count: 6, start: 0, salt: 99 },
                Commit,
                Step::Add { first: 2, count: 3, start: 1, salt: 5 },
                Flush,
            ],
        ),
        Workload::new(
            "recycled segments",
            l2(3, 8),
            vec![add(0, 12), Commit, add(12, 12), Flush, add(24, 12), Flush, add(36, 12), Flush, add(48, 12), Flush],
        ),
        Workload::new(
            "a batch over segments",
            l2(5, 8),
            vec![add(0, 2), Commit, add(10, 40), Commit, Flush, add(60, 30), Flush],
        ),
        Workload::new(
            "reopened",
            l2(3, 4),
            vec![add(0, 5), Reopen, add(5, 3), Flush, Reopen, Reopen, Remove { first: 0, count: 2 }, Flush, add(9, 2)],
        ),
        Workload::new(
            "writes inside a flush",
            l2(3, 4),
            vec![
                add(0, 4),
                SlowFlush { first: 10, count: 3, salt: 1 },
                Commit,
                SlowFlush { first: 20, count: 2, salt: 2 },
                Flush,
            ],
        ),
        Workload::new(
            "commits without flushes",
            WorkloadParams { dimension: 5, shard_size: 4, metric: Metric::Dot },
            vec![
                add(0, 3),
                Commit,
                add(3, 3),
                Commit,
                Remove { first: 1, count: 2 },
                Commit,
                add(1, 4),
                Flush,
                add(9, 9),
                Flush,
            ],
        ),
        Workload::new(
            "cosine over sectors",
            WorkloadParams { dimension: 20, shard_size: 5, metric: Metric::Cosine },
            vec![add(0, 6), Flush, Remove { first: 2, count: 3 }, add(6, 4), Commit, Flush],
        ),
        Workload::new(
            "many chunks",
            WorkloadParams { dimension: 20, shard_size: 2, metric: Metric::Cosine },
            vec![add(15, 26), Flush, Step::Add { first: 12, count: 13, start: 0, salt: 3 }, Flush, add(0, 25), Flush],
        ),
        Workload {
            steps: vec![add(0, 9), Commit, Flush, add(9, 6), Flush, add(3, 4), Flush],
            ..Workload::blank("real pages", l2(17, 4), true)
        },
        Workload::new(
            "swinging size",
            WorkloadParams { dimension: 5, shard_size: 4, metric: Metric::Dot },
            vec![
                add(0, 14),
                Commit,
                Remove { first: 2, count: 9 },
                Flush,
                add(20, 12),
                Remove { first: 0, count: 30 },
                Commit,
                add(40, 9),
                Flush,
                add(50, 3),
                Step::Close,
                add(60, 5),
                Flush,
            ],
        ),
        Workload::new(
            "shrinking shards",
            l2(3, 8),
            vec![
                add(0, 28),
                Flush,
                Remove { first: 0, count: 12 },
                Commit,
                Remove { first: 12, count: 10 },
                add(30, 3),
                Flush,
                Step::Add { first: 22, count: 4, start: 0, salt: 7 },
                SlowFlush { first: 40, count: 2, salt: 3 },
                Remove { first: 24, count: 8 },
                Step::Close,
                Remove { first: 40, count: 3 },
                Flush,
            ],
        ),
        // Document 161 goes to a shard stored earlier, so that shard's bytes are leased again. With document 162
        // another shard splits, and one posting of the first shard moves to one of the halves. Then the first shard is
        // removed. Rot that is present when 161 is added must not be hidden by the later steps.
        Workload::new(
            "a posting outlives its shard",
            l2(3, 4),
            vec![
                add_unsalted(60, 5),
                Flush,
                Remove { first: 900, count: 1 },
                Commit,
                Remove { first: 901, count: 1 },
                Commit,
                Remove { first: 902, count: 1 },
                Commit,
                add_unsalted(160, 1),
                Commit,
                add_unsalted(161, 1),
                Commit,
                add_unsalted(162, 1),
                Remove { first: 61, count: 1 },
                Remove { first: 161, count: 1 },
                Flush,
                add_unsalted(110, 3),
                Flush,
            ],
        ),
        Workload::new(
            "readers outlive their engine",
            l2(3, 4),
            vec![
                add(0, 9),
                Step::Read,
                Step::Optimize,
                Step::Read,
                Remove { first: 0, count: 6 },
                Flush,
                add(10, 7),
                Flush,
                Step::Optimize,
                add(20, 7),
                Flush,
                Step::Read,
                Reopen,
                Step::Read,
                Remove { first: 10, count: 9 },
                SlowFlush { first: 30, count: 3, salt: 2 },
                Step::Close,
                add(40, 3),
                Flush,
            ],
        ),
        Workload::new(
            "flushes in a row",
            l2(17, 4),
            vec![
                add(0, 5),
                Flush,
                add(5, 1),
                Flush,
                add(6, 1),
                Flush,
                add(7, 1),
                Flush,
                add(8, 5),
                Flush,
                add(13, 2),
                Flush,
            ],
        ),
        Workload::new(
            "cells",
            l2(5, 4),
            vec![
                add(0, 7),
                Step::Optimize,
                Flush,
                add(7, 5),
                Remove { first: 2, count: 3 },
                Commit,
                Step::Optimize,
                add(12, 2),
                Flush,
                Step::Close,
                add(14, 2),
                Flush,
                add(16, 1),
                Flush,
            ],
        ),
        Workload::new(
            "writes while syncs run",
            l2(3, 4),
            vec![
                add(0, 6),
                Step::OverlappedFlush { first: 10, count: 3, salt: 1 },
                Commit,
                Step::OverlappedFlush { first: 20, count: 2, salt: 2 },
                Reopen,
                add(30, 3),
                Step::OverlappedFlush { first: 10, count: 4, salt: 3 },
                Flush,
            ],
        ),
        Workload::new(
            "cells given up",
            l2(5, 4),
            vec![
                add(0, 9),
                Step::OptimizeUntil { questions: 20 },
                Flush,
                Step::OptimizeUntil { questions: 40 },
                Step::Reopen,
                Step::Optimize,
                add(20, 12),
                Step::OptimizeUntil { questions: 30 },
                Flush,
                Step::OptimizeUntil { questions: 30 },
                Step::Reopen,
                Step::OptimizeUntil { questions: 100 },
                Flush,
                add(40, 1),
                Flush,
                Step::Optimize,
                Flush,
            ],
        ),
        Workload::new(
            "cells made last",
            l2(17, 4),
            vec![add(0, 20), Flush, Step::Optimize, Step::Reopen, add(20, 12), Flush],
        ),
        Workload::new(
            "cells of many groups",
            WorkloadParams { dimension: 70, shard_size: 8, metric: Metric::Cosine },
            vec![
                add(0, 30),
                Step::Optimize,
                Step::Optimize,
                Flush,
                Step::SlowFlush { first: 40, count: 2, salt: 5 },
                Step::Optimize,
                Remove { first: 0, count: 60 },
                Step::Optimize,
                Flush,
                add(0, 2),
                Flush,
            ],
        ),
        Workload::new(
            "everything removed and added again",
            l2(3, 4),
            vec![
                add(0, 7),
                Commit,
                Remove { first: 0, count: 7 },
                add(0, 7),
                Flush,
                Remove { first: 0, count: 7 },
                Flush,
                add(0, 3),
                Flush,
            ],
        ),
    ]
}

pub(super) fn add(first: u64, count: u64) -> Step {
    Step::Add { first, count, start: 0, salt: first }
}

/// Adds documents with the vectors of salt 0.
pub(super) fn add_unsalted(first: u64, count: u64) -> Step {
    Step::Add { first, count, start: 0, salt: 0 }
}
