//! Recall tests. Searches reach their target recall on data that is hard for codes, whatever has changed the index, and
//! at a bounded cost. `shardex bench --hard` measures the same on more data.

use shardex::{
    DocumentId, Engine, Metric, Posting,
    env::Env,
    index::{self, SearchScope},
    storage::MmapStorage,
};
use shardex_sim::recall::{
    Case, Kept, flattery,
    kinds::{KINDS, World, bounds, near},
};
use tempfile::TempDir;

use crate::{cells::groups, support::TestIndex};

/// Runs cases on real files. Panics with the messages of all cases that failed.
fn run(cases: impl IntoIterator<Item = Case>) {
    let run = |case: Case| {
        let dir = TempDir::new().expect("a temporary directory");
        case.run_on(MmapStorage::new(dir.path().join("index")), &Env::system())
    };
    let fails: Vec<String> = cases.into_iter().flat_map(run).collect();
    assert!(fails.is_empty(), "{}", fails.join("\n"));
}

/// Runs every fourth case, starting at case `of`. The four parts let test threads share the work.
fn part(of: usize) {
    run(Case::each(5_000).into_iter().skip(of).step_by(4));
}

#[test]
fn the_first_kinds_of_hard_data() {
    part(0);
}

#[test]
fn the_second_kinds_of_hard_data() {
    part(1);
}

#[test]
fn the_third_kinds_of_hard_data() {
    part(2);
}

#[test]
fn the_fourth_kinds_of_hard_data() {
    part(3);
}

#[test]
fn what_was_missed_once() {
    run(Case::found());
}

/// Replaces each posting ten times, in a different order each time. Neither the codes of dead postings in cells nor the
/// unindexed postings lower the recall below the target.
#[test]
fn ten_turnovers_wear_nothing_down() {
    let cases = [("normal", Metric::L2), ("clusters", Metric::Cosine), ("falling", Metric::Dot)];
    run(cases.into_iter().zip(0..).map(|((kind, metric), i)| Case {
        kind,
        metric,
        rows: 4_500,
        turns: 10,
        seed: 91 + i,
        index_id: 17 + u128::from(i),
    }));
}

#[test]
fn what_was_proved_is_what_others_reach() {
    let dir = TempDir::new().expect("a temporary directory");
    let storage = |id| MmapStorage::new(dir.path().join(format!("index {id}")));
    assert_eq!(flattery(&Env::system(), storage), None);
}

/// A distance of the data from the origin raises the cost of a search by at most 25 %.
#[test]
fn an_offset_costs_nothing() {
    let costs = |name: &str| -> Vec<(f64, f64)> {
        let kind = *KINDS.iter().find(|kind| kind.name == name).expect("a kind");
        let mut world = World::new(kind, 6_000, 31);
        let dir = TempDir::new().expect("a temporary directory");
        let storage = MmapStorage::new(dir.path().join("index"));
        let env = Env { new_index_id: 5, ..Env::system() };
        let mut index = Kept::new(storage, kind, Metric::L2, &env).expect("an index");
        index.put((0..6_000).map(|n| (n, world.row())).collect()).expect("added");
        index.optimize().expect("cells are made");
        let reached = index.ask(&mut world).expect("answers");
        assert!(reached.iter().all(|of| of.does(true)), "{name}: {reached:?}");
        // At a target recall of 0.99 some searches become exhaustive, and chance decides which. Their cost depends on
        // other things than the offset, so it is not compared.
        let told = reached.iter().filter(|of| of.k == 10 && of.target < 0.99);
        told.map(|of| (of.scanned(), of.computed())).collect()
    };
    let at_origin = costs("normal");
    for name in ["offset 10", "offset 30", "offset 1000"] {
        let there = costs(name);
        assert_eq!(there.len(), 2, "{there:?}");
        for (there, here) in there.into_iter().zip(&at_origin) {
            assert!(there.0 <= 1.25 * here.0 && there.1 <= 1.25 * here.1, "{name}: {there:?}, {here:?} at the origin");
        }
    }
}

/// Searches reach the target recall, less 0.01, without cells and with a damaged cell group.
#[test]
fn a_recall_holds_without_cells_and_with_damaged_ones() {
    const ROWS: usize = 60_000;
    let mut kind = *KINDS.iter().find(|kind| kind.name == "clusters").expect("a kind");
    kind.dimension = 16;
    let test = TestIndex::with(|config| config.vector_size(16).shard_size(512).wal_segment_size(1 << 20));
    let mut world = World::new(kind, ROWS, 77);
    let rows: Vec<Vec<f32>> = (0..ROWS).map(|_| world.row()).collect();
    let mut engine = test.create();
    for (first, some) in rows.chunks(20_000).enumerate().map(|(i, some)| (i * 20_000, some)) {
        let posting = |(n, row): (usize, &Vec<f32>)| Posting {
            document_id: DocumentId(n as u128),
            start: 0,
            length: 1,
            vector: row.clone(),
            tags: 0,
        };
        engine.add(&(first..).zip(some).map(posting).collect::<Vec<_>>()).expect("added");
    }
    let queries: Vec<Vec<f32>> = (0..60).map(|_| world.query()).collect();
    let truth: Vec<Vec<f64>> = queries.iter().map(|query| bounds(Metric::L2, query, &rows, &[10])).collect();
    let ask = |engine: &Engine<MmapStorage>, state: &str| {
        for target in [0.9, 0.99] {
            let scope = SearchScope { recall: Some(target), slop: None, ..SearchScope::slop(1) };
            let snapshot = engine.snapshot();
            let found = queries.iter().zip(&truth).map(|(query, truth)| {
                let hits = index::search(&snapshot, engine.data(), query, 10, scope).expect("an answer");
                let vectors: Vec<_> = hits.iter().map(|hit| hit.vector).collect();
                near(Metric::L2, query, vectors.iter().map(|vector| &**vector), truth[0])
            });
            let reached = found.sum::<usize>() as f64 / 600.0;
            assert!(reached >= f64::from(target) - 0.01, "{state}: {reached} where {target} was asked");
        }
    };
    ask(&engine, "without cells");
    engine.optimize().expect("cells are made");
    ask(&engine, "with cells");
    let damaged: Vec<(usize, usize)> = groups(&engine).into_iter().step_by(7).collect();
    engine.close().expect("closed");
    drop(engine);
    test.patch("data", |bytes| damaged.iter().for_each(|(at, len)| bytes[at + len / 2] ^= 0x10));
    let engine = test.open();
    ask(&engine, "with damaged groups");
    assert!(
        engine.snapshot().cells.as_ref().is_some_and(|cells| cells.is_damaged()),
        "none of the searches met the damage"
    );
}
