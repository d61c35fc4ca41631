//! Every file in `corpus/fuzz` goes through its target, on any toolchain.

use std::{fs, path::Path};

#[test]
fn the_corpus_of_each_target_passes() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus/fuzz");
    let mut replayed = 0;
    for target in fs::read_dir(&root).expect("the corpus is there") {
        let target = target.expect("an entry").path();
        let run = match target.file_name().and_then(|name| name.to_str()) {
            Some("wal_record") => shardex_sim::fuzz::wal_record,
            other => panic!("no target is called {other:?}"),
        };
        for file in fs::read_dir(&target).expect("readable") {
            run(&fs::read(file.expect("an entry").path()).expect("readable"));
            replayed += 1;
        }
    }
    assert!(replayed >= 6, "{replayed} files");
}
