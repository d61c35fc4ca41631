//! Reference workloads of batches: tags, payloads, the cursor, and the upgrade of an index of version 1.

use super::{Step, Workload, WorkloadParams, reference::add};
use shardex::{Metric, VectorEncoding};

/// Returns the reference workloads of batches.
pub(super) fn batches() -> Vec<Workload> {
    use Step::{Commit, Flush, Remove, Reopen};
    let l2 = |dimension, shard_size| WorkloadParams { dimension, shard_size, metric: Metric::L2 };
    let tag = |first, count, tags| Step::Tag { first, count, tags };
    let payload = |first, count, bytes, salt| Step::Payload { first, count, bytes, salt };
    let edit = |first, count, bytes, salt| Step::Edit { first, count, bytes, salt };
    let batch = |count, seed| Step::Batch { count, seed };
    let matching = |seed| Step::RemoveMatching { seed };
    let slow = |first, count, salt| Step::SlowFlush { first, count, salt };
    vec![
        Workload::new(
            "tags",
            l2(3, 4),
            vec![
                add(0, 6),
                tag(0, 3, 5),
                Flush,
                tag(2, 3, 9),
                Commit,
                tag(0, 1, 0),
                add(6, 7),
                Flush,
                tag(0, 9, 0),
                Flush,
            ],
        ),
        Workload::new(
            "tags on several pages",
            l2(3, 60),
            vec![
                add(0, 75),
                tag(40, 30, 3),
                Flush,
                tag(0, 2, 1),
                Commit,
                Flush,
                tag(70, 1, 0),
                Reopen,
                tag(74, 1, 7),
                Flush,
            ],
        ),
        Workload {
            small: true,
            ..Workload::new(
                "one payload",
                l2(3, 4),
                vec![payload(1, 1, 512, 1), Commit, Flush, payload(1, 1, 512, 2), Flush],
            )
        },
        Workload::new(
            "growth by several chunks",
            l2(3, 4),
            vec![payload(0, 8, 4_000, 1), Flush, payload(8, 8, 4_000, 1), Flush, payload(16, 3, 4_000, 2), Flush],
        ),
        Workload::new(
            "payloads",
            l2(3, 4),
            vec![
                add(0, 2),
                payload(0, 3, 40, 1),
                payload(3, 3, 200, 2),
                Flush,
                payload(0, 2, 300, 3),
                Commit,
                Step::RemovePayloads { first: 1, count: 4 },
                Flush,
                Remove { first: 0, count: 6 },
                Flush,
                payload(7, 1, 0, 4),
                Flush,
            ],
        ),
        Workload::new(
            "payloads in runs",
            l2(3, 4),
            vec![
                payload(0, 1, 9_000, 1),
                Commit,
                Flush,
                payload(0, 1, 7_000, 2),
                payload(1, 1, 100, 3),
                Flush,
                Reopen,
                Remove { first: 0, count: 1 },
                Flush,
                Flush,
            ],
        ),
        Workload::new(
            "sparse blocks of payloads",
            l2(3, 4),
            vec![
                payload(0, 8, 150, 1),
                Flush,
                payload(8, 4, 150, 2),
                Remove { first: 0, count: 5 },
                Commit,
                payload(20, 3, 120, 3),
                Flush,
                Step::RemovePayloads { first: 6, count: 5 },
                Flush,
                payload(30, 2, 99, 4),
                Flush,
            ],
        ),
        Workload::new(
            "edits",
            l2(3, 4),
            vec![
                edit(0, 4, 80, 1),
                Commit,
                edit(0, 4, 90, 2),
                Commit,
                edit(2, 3, 30, 3),
                slow(40, 2, 1),
                edit(1, 2, 500, 4),
                Commit,
                Flush,
                edit(0, 1, 66, 5),
                Commit,
            ],
        ),
        Workload::new(
            "cursors",
            l2(3, 4),
            vec![
                Step::Cursor { bytes: 9, salt: 1 },
                Commit,
                Step::Cursor { bytes: 90, salt: 2 },
                Flush,
                add(0, 3),
                Step::Cursor { bytes: 64, salt: 3 },
                slow(10, 1, 2),
                Step::Cursor { bytes: 400, salt: 4 },
                Reopen,
                Step::Cursor { bytes: 0, salt: 5 },
                Commit,
            ],
        ),
        Workload::new(
            "buckets grow",
            l2(3, 4),
            vec![
                payload(0, 6, 20, 1),
                Flush,
                payload(6, 14, 50, 2),
                Commit,
                payload(20, 10, 70, 3),
                Flush,
                Remove { first: 3, count: 20 },
                Flush,
            ],
        ),
        Workload::new(
            "postings removed one by one",
            l2(3, 4),
            vec![
                add(0, 9),
                Step::Add { first: 0, count: 5, start: 1, salt: 8 },
                payload(0, 2, 10, 1),
                Flush,
                Step::RemovePostings { first: 0, count: 4, start: 0 },
                Commit,
                Step::RemovePostings { first: 2, count: 9, start: 1 },
                Flush,
            ],
        ),
        Workload::new(
            "removals by filter",
            l2(3, 4),
            vec![
                add(0, 12),
                tag(0, 5, 1),
                tag(4, 4, 2),
                payload(3, 3, 10, 1),
                Flush,
                matching(1),
                Commit,
                matching(2),
                batch(8, 21),
                matching(3),
                Flush,
                add(2, 9),
                matching(6),
                Reopen,
                matching(9),
                Flush,
            ],
        ),
        Workload::new(
            "batches of everything",
            WorkloadParams { dimension: 5, shard_size: 4, metric: Metric::Cosine },
            vec![
                batch(12, 1),
                Commit,
                batch(12, 2),
                Flush,
                batch(10, 3),
                batch(10, 4),
                Flush,
                Reopen,
                batch(12, 5),
                Commit,
                batch(6, 6),
                Flush,
            ],
        ),
        Workload {
            from_version: Some(1),
            ..Workload::new(
                "an upgrade",
                l2(3, 4),
                vec![
                    add(0, 6),
                    Flush,
                    Remove { first: 1, count: 2 },
                    add(6, 4),
                    Commit,
                    Reopen,
                    add(20, 3),
                    add(23, 3),
                    edit(0, 3, 70, 1),
                    Commit,
                    tag(6, 2, 3),
                    Flush,
                ],
            )
        },
        Workload::new(
            "shards are rewritten",
            WorkloadParams { dimension: 5, shard_size: 8, metric: Metric::L2 },
            vec![
                add(0, 40),
                Step::Flush,
                Step::Optimize,
                Remove { first: 3, count: 9 },
                tag(20, 6, 5),
                Step::Compact { bytes: 300 },
                Commit,
                add(2, 4),
                Step::Compact { bytes: 1 << 20 },
                Remove { first: 16, count: 3 },
                Flush,
                Step::Compact { bytes: 1 << 20 },
                Step::Trim { keep: 0 },
                Reopen,
                Remove { first: 30, count: 6 },
                Step::Compact { bytes: 1 << 20 },
                Flush,
            ],
        ),
        Workload::new(
            "what was removed is erased",
            WorkloadParams { dimension: 5, shard_size: 8, metric: Metric::Cosine },
            vec![
                add(0, 30),
                payload(2, 9, 70, 1),
                payload(12, 2, 600, 1),
                Step::Optimize,
                Flush,
                Remove { first: 3, count: 9 },
                payload(12, 1, 90, 2),
                add(14, 2),
                Step::Purge,
                add(40, 3),
                Remove { first: 20, count: 2 },
                Commit,
                Step::Purge,
                Reopen,
                Step::Purge,
            ],
        ),
        encoded("vectors of 16-bit floats", Metric::Cosine, VectorEncoding::F16),
        encoded("vectors of 8-bit integers", Metric::Dot, VectorEncoding::Int8),
        Workload {
            from_version: Some(1),
            ..Workload::new(
                "a clean index is upgraded",
                l2(3, 4),
                vec![add(0, 5), Reopen, payload(1, 2, 99, 1), Commit, Flush],
            )
        },
        Workload {
            from_version: Some(2),
            ..Workload::new(
                "an upgrade of version 2",
                l2(3, 4),
                vec![
                    add(0, 9),
                    payload(1, 2, 99, 1),
                    Flush,
                    tag(6, 2, 3),
                    edit(0, 3, 70, 1),
                    Commit,
                    Reopen,
                    Remove { first: 1, count: 2 },
                    add(20, 3),
                    add(23, 3),
                    payload(2, 2, 50, 2),
                    Commit,
                    Flush,
                ],
            )
        },
    ]
}

/// Returns a workload of additions, removals and edits in an encoding.
fn encoded(name: &str, metric: Metric, encoding: VectorEncoding) -> Workload {
    let steps = vec![
        add(0, 9),
        Step::Tag { first: 2, count: 3, tags: 5 },
        Step::Flush,
        Step::Optimize,
        add(4, 3),
        Step::Edit { first: 1, count: 2, bytes: 40, salt: 1 },
        Step::Commit,
        Step::Remove { first: 5, count: 3 },
        add(20, 6),
        Step::Flush,
        Step::Reopen,
        Step::Batch { count: 5, seed: 7 },
        Step::Commit,
    ];
    let mut workload = Workload::new(name, WorkloadParams { dimension: 5, shard_size: 4, metric }, steps);
    workload.config = workload.config.encoding(encoding);
    workload
}
