//! Indexes whose bits are flipped: one that has crashed with writes in the WAL, and one that was closed.

use super::{Step, Workload, WorkloadParams, reference::add};
use shardex::Metric;

/// Returns the workloads. Each leaves two roots that differ, cells, tags, payloads of all forms, the cursor, removed postings
/// and a rewritten shard.
#[must_use]
pub fn flipped() -> Vec<Workload> {
    let params = || WorkloadParams { dimension: 6, shard_size: 16, metric: Metric::L2 };
    let steps = |last: &[Step]| {
        let mut steps = vec![
            add(0, 70),
            Step::Payload { first: 3, count: 6, bytes: 20, salt: 1 },
            Step::Payload { first: 20, count: 2, bytes: 700, salt: 2 },
            Step::Tag { first: 5, count: 20, tags: 9 },
            Step::Cursor { bytes: 90, salt: 3 },
            Step::Optimize,
            Step::Flush,
            Step::Remove { first: 30, count: 9 },
            Step::Compact { bytes: 1 << 20 },
            add(80, 5),
            Step::Flush,
        ];
        steps.extend_from_slice(last);
        steps
    };
    vec![
        Workload::new(
            "crashed",
            params(),
            steps(&[add(90, 4), Step::Commit, Step::Remove { first: 2, count: 2 }, add(96, 2), Step::Commit]),
        ),
        Workload::new("closed", params(), steps(&[Step::Close])),
    ]
}
