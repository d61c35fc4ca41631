//! Every file in `corpus/fuzz` goes through its target, on any toolchain.

use std::{fs, path::Path};

use shardex_sim::fuzz::TARGETS;

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
