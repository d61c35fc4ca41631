//! Replays every file in `corpus/fuzz` through its fuzz target, on any toolchain.

use std::{fs, path::Path};

use shardex::{ShardexError, format::cells::CellTable};
use shardex_sim::fuzz::{Hostile, TARGETS, VALUES, seal::SealedKind, serve};

#[test]
fn the_corpus_of_each_target_passes() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus/fuzz");
    for (name, run) in TARGETS {
        let mut replayed = 0;
        for file in fs::read_dir(root.join(name)).expect("each target has a corpus") {
            run(&fs::read(file.expect("an entry").path()).expect("readable"));
            replayed += 1;
        }
        assert!(replayed >= 6, "{name}: {replayed} files");
    }
    let folders = fs::read_dir(&root).expect("the corpus is there").count();
    assert_eq!(folders, TARGETS.len(), "a folder of no target");
}

/// Returns the index of a reference workload by name, and its number of steps.
fn workload(name: &str) -> (usize, usize) {
    let workloads = shardex_sim::workload::reference();
    let which = workloads.iter().position(|workload| workload.name == name).expect("there is such a workload");
    (which, workloads[which].steps.len())
}

/// Builds a hostile value for a field of the first structure of a kind.
fn value(kind: SealedKind, offset: usize, width: usize, value: u64) -> Hostile {
    Hostile { kind, which: 0, offset, width, value }
}

/// Builds hostile values for the same field of both roots, so that neither can serve as a fallback.
fn in_both_roots(offset: usize, width: usize, value: u64) -> Vec<Hostile> {
    [0, 1].map(|which| Hostile { kind: SealedKind::Root, which, offset, width, value }).to_vec()
}

/// Regression test: checksums were right and numbers impossible. The results were overflows, endless loops over a
/// number, and gigabytes allocated for an entry of 16 bytes.
#[test]
fn impossible_numbers_under_right_checksums_are_damage() {
    let (which, steps) = workload("cells");
    assert!(serve(which, steps, &[]).is_none(), "the index itself opens");
    let refused = |values: &[Hostile], file: &str| match serve(which, steps, values) {
        Some(ShardexError::Corruption { file: found, .. }) => assert!(found.ends_with(file), "{values:?}: {found:?}"),
        other => panic!("{values:?}: {other:?}"),
    };
    let most = u64::MAX;
    // Generation, checkpoint, epoch, WAL segment, offset in the segment, live postings, removed postings, draws,
    // splits.
    for offset in [32, 72, 80, 88, 96, 128, 136, 144, 152] {
        refused(&in_both_roots(offset, 8, most), "root");
        refused(&in_both_roots(offset, 8, most - 1), "root");
    }
    refused(&in_both_roots(96, 8, 3), "root");
    refused(&in_both_roots(120, 4, u32::MAX.into()), "root");
    refused(&in_both_roots(120, 4, 1 << 20), "root");
    refused(&in_both_roots(124, 4, u32::MAX.into()), "root");
    refused(&in_both_roots(160, 8, most), "root");
    refused(&in_both_roots(160, 8, 1 << 40), "data");
    refused(&in_both_roots(168, 4, u32::MAX.into()), "wal");
    // Counts that contradict the shards. A later removal would subtract more from a count than its value.
    refused(&in_both_roots(124, 4, 1), "data");
    refused(&in_both_roots(136, 4, 1_000), "data");
    // A directory node that is not one page long, and a centroid that is not the mean of any vectors.
    for root in [0, 1] {
        let len = |len| Hostile { kind: SealedKind::Root, which: root, offset: 112, width: 4, value: len };
        let other = Hostile { which: 1 - root, ..len(272) };
        refused(&[len(272), other], "data");
    }
    let state_end = |back: usize| Hostile { offset: usize::MAX - back, ..value(SealedKind::State, 0, 4, 0x7F7F_FFFF) };
    refused(&[state_end(3)], "data");
    // Flags and zeros of a state.
    refused(&[value(SealedKind::State, 88, 4, 1 << 31)], "data");
    refused(&[value(SealedKind::State, 92, 4, 1)], "data");
    // Headers of blocks: index id, generation, page, number, level, configuration.
    for kind in [SealedKind::Node, SealedKind::State] {
        for (offset, width) in [(8, 8), (16, 8), (24, 8), (32, 8), (40, 4), (44, 4), (48, 4), (52, 4), (56, 4), (60, 4)]
        {
            // Each root may have a node of its own.
            refused(&[0, 1].map(|which| Hostile { which, ..value(kind, offset, width, most) }), "data");
        }
    }
}

#[test]
fn impossible_numbers_in_cells_cost_the_cells_and_nothing_else() {
    let (which, steps) = workload("cells");
    let opens = |values: &[Hostile]| {
        let refused = serve(which, steps, values);
        assert!(refused.is_none(), "{values:?}: {refused:?}");
    };
    // Number of groups, and number of covered shards.
    let groups = CellTable::groups_offset(5);
    for offset in [8, 12] {
        [0, 1, 1 << 31, u32::MAX.into()].iter().for_each(|&n| opens(&[value(SealedKind::Table, offset, 4, n)]));
    }
    // Dimension, centre, and calibration.
    for offset in (24..groups).step_by(4) {
        [0, u32::MAX.into(), 0x7F80_0000].iter().for_each(|&n| opens(&[value(SealedKind::Table, offset, 4, n)]));
    }
    // First group entry, and the bytes after it. With a single group these are the first
    // covered shard, whose slots then fit no shard.
    for offset in (groups..groups + 64).step_by(4) {
        [0, 1, 1 << 31, u32::MAX.into(), 0x7F80_0000]
            .iter()
            .for_each(|&n| opens(&[value(SealedKind::Table, offset, 4, n)]));
    }
    // Head: the number of parts, and the pointer to the first part.
    for offset in (4..24).step_by(4) {
        [0, 1, 1 << 20, u32::MAX.into()].iter().for_each(|&n| opens(&[value(SealedKind::Head, offset, 4, n)]));
    }
    // Group: its counts and the entry of its first cell.
    for offset in (4..36).step_by(4) {
        [0, 1, 1 << 20, u32::MAX.into(), 0x7F80_0000]
            .iter()
            .for_each(|&n| opens(&[value(SealedKind::Group, offset, 4, n)]));
    }
    // Last 96 bytes, which end with the references of the codes of centroids or postings.
    for kind in [SealedKind::Table, SealedKind::Group] {
        for back in (0..96).step_by(4) {
            [1, 7, u32::MAX.into()]
                .iter()
                .for_each(|&n| opens(&[Hostile { offset: usize::MAX - back - 3, ..value(kind, 0, 4, n) }]));
        }
    }
}

#[test]
fn impossible_numbers_in_the_log_end_it() {
    for (name, steps) in [("cells", usize::MAX), ("recycled", 3)] {
        let which = shardex_sim::workload::reference().iter().position(|w| w.name.starts_with(name));
        let which = which.expect("a workload of this name");
        let steps = steps.min(shardex_sim::workload::reference()[which].steps.len());
        for kind in [SealedKind::Segment, SealedKind::Frame] {
            for segment in 0..3 {
                for offset in [8, 16, 24, 32, 40, 48] {
                    for n in [0, 1 << 62, u64::MAX - 1, u64::MAX] {
                        let refused = serve(which, steps, &[Hostile { which: segment, ..value(kind, offset, 8, n) }]);
                        // Offset 24 holds the kind of a frame. An unknown kind is that of a later version.
                        let later = offset == 24 && matches!(refused, Some(ShardexError::UnsupportedVersion { .. }));
                        let damage = later || matches!(refused, None | Some(ShardexError::Corruption { .. }));
                        assert!(damage, "{kind:?} {segment} {offset} {n}: {refused:?}");
                    }
                }
            }
        }
    }
}

/// Runs changes drawn as the fuzzer draws them: one to three values in any fields of any structures. `SHARDEX_DRAWN`
/// sets the number of runs, 3,000 by default.
#[test]
fn drawn_values_do_no_harm() {
    let workloads = shardex_sim::workload::reference();
    let mut state = 0x9E37_79B9_7F4A_7C15u64;
    let mut draw = |n: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % n
    };
    let drawn = std::env::var("SHARDEX_DRAWN").ok().and_then(|n| n.parse().ok()).unwrap_or(3_000);
    for _ in 0..drawn {
        let which = draw(workloads.len());
        let steps = 1 + draw(workloads[which].steps.len());
        let values: Vec<Hostile> = (0..1 + draw(3))
            .map(|_| Hostile {
                kind: SealedKind::ALL[draw(SealedKind::ALL.len())],
                which: draw(256),
                offset: if draw(2) == 0 { draw(64) } else { draw(1 << 14) },
                width: [1, 2, 4, 8][draw(4)],
                value: VALUES[draw(VALUES.len())],
            })
            .collect();
        let found = std::panic::catch_unwind(|| serve(which, steps, &values));
        assert!(found.is_ok(), "{which} {steps} {values:?}");
    }
}
