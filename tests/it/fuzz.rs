//! Every file in `corpus/fuzz` goes through its target, on any toolchain.

use std::{fs, path::Path};

use shardex::ShardexError;
use shardex_sim::fuzz::{Hostile, TARGETS, VALUES, seal::Kind, serve};

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

/// The reference workload of a name, and its steps.
fn workload(name: &str) -> (usize, usize) {
    let workloads = shardex_sim::workload::reference();
    let which = workloads.iter().position(|workload| workload.name == name).expect("there is such a workload");
    (which, workloads[which].steps.len())
}

/// A value in a field.
fn value(kind: Kind, offset: usize, width: usize, value: u64) -> Hostile {
    Hostile { kind, which: 0, offset, width, value }
}

/// A value in that field of both roots, so that none can be fallen back to.
fn in_both_roots(offset: usize, width: usize, value: u64) -> Vec<Hostile> {
    [0, 1].map(|which| Hostile { kind: Kind::Root, which, offset, width, value }).to_vec()
}

/// Checksums were right and numbers impossible: overflows, endless loops over a number, gigabytes for an entry of 16 bytes.
#[test]
fn impossible_numbers_under_right_checksums_are_damage() {
    let (which, steps) = workload("cells");
    assert!(serve(which, steps, &[]).is_none(), "the index itself opens");
    let refused = |values: &[Hostile], file: &str| match serve(which, steps, values) {
        Some(ShardexError::Corruption { file: found, .. }) => assert!(found.ends_with(file), "{values:?}: {found:?}"),
        other => panic!("{values:?}: {other:?}"),
    };
    let most = u64::MAX;
    // Generation, checkpoint, epoch, segment and offset in it, live, removed, draws, splits.
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
    // Counts that the shards do not bear out: a later removal would take more from them than they are.
    refused(&in_both_roots(124, 4, 1), "data");
    refused(&in_both_roots(136, 4, 1_000), "data");
    // A node of another size than a page; a centroid that no vectors have as their mean.
    for root in [0, 1] {
        let len = |len| Hostile { kind: Kind::Root, which: root, offset: 112, width: 4, value: len };
        let other = Hostile { which: 1 - root, ..len(272) };
        refused(&[len(272), other], "data");
    }
    let state_end = |back: usize| Hostile { offset: usize::MAX - back, ..value(Kind::State, 0, 4, 0x7F7F_FFFF) };
    refused(&[state_end(3)], "data");
}

/// Where a table of cells of vectors of five numbers has its groups.
const CELL_GROUPS: usize = 28 + 4 * 5 + 6 * 8 * 28 + 20;

#[test]
fn impossible_numbers_in_cells_cost_the_cells_and_nothing_else() {
    let (which, steps) = workload("cells");
    let opens = |values: &[Hostile]| {
        let refused = serve(which, steps, values);
        assert!(refused.is_none(), "{values:?}: {refused:?}");
    };
    // No group, and a count of groups and shards that the bytes do not bear out.
    for offset in [8, 12] {
        [0, 1, 1 << 31, u32::MAX.into()].iter().for_each(|&n| opens(&[value(Kind::Table, offset, 4, n)]));
    }
    // The centre, and what recalls take.
    for offset in (24..CELL_GROUPS).step_by(4) {
        [0, u32::MAX.into(), 0x7F80_0000].iter().for_each(|&n| opens(&[value(Kind::Table, offset, 4, n)]));
    }
    // A group's entry, and the first shard covered, whose slots fit no shard.
    for offset in (CELL_GROUPS..CELL_GROUPS + 64).step_by(4) {
        [0, 1, 1 << 31, u32::MAX.into(), 0x7F80_0000].iter().for_each(|&n| opens(&[value(Kind::Table, offset, 4, n)]));
    }
    // The head: as many parts as it has, and where they are.
    for offset in (4..24).step_by(4) {
        [0, 1, 1 << 20, u32::MAX.into()].iter().for_each(|&n| opens(&[value(Kind::Head, offset, 4, n)]));
    }
    // A group: its counts, and its first cell.
    for offset in (4..36).step_by(4) {
        [0, 1, 1 << 20, u32::MAX.into(), 0x7F80_0000].iter().for_each(|&n| opens(&[value(Kind::Group, offset, 4, n)]));
    }
    // What the codes of the centroids and of the postings refer to.
    for kind in [Kind::Table, Kind::Group] {
        for back in (0..96).step_by(4) {
            [1, 7, u32::MAX.into()]
                .iter()
                .for_each(|&n| opens(&[Hostile { offset: usize::MAX - back - 3, ..value(kind, 0, 4, n) }]));
        }
    }
}

#[test]
fn impossible_numbers_in_the_log_end_it() {
    for (name, steps) in [("cells", usize::MAX), ("wal", 3)] {
        let Some(which) = shardex_sim::workload::reference().iter().position(|w| w.name.starts_with(name)) else {
            continue;
        };
        let steps = steps.min(shardex_sim::workload::reference()[which].steps.len());
        for kind in [Kind::Segment, Kind::Frame] {
            for segment in 0..3 {
                for offset in [8, 16, 24, 32, 40, 48] {
                    for n in [0, 1 << 62, u64::MAX - 1, u64::MAX] {
                        let refused = serve(which, steps, &[Hostile { which: segment, ..value(kind, offset, 8, n) }]);
                        let damage = matches!(refused, None | Some(ShardexError::Corruption { .. }));
                        assert!(damage, "{kind:?} {segment} {offset} {n}: {refused:?}");
                    }
                }
            }
        }
    }
}

/// The fuzzer's own changes, drawn here: any value in any field of any structure.
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
                kind: Kind::ALL[draw(8)],
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
