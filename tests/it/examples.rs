//! The examples run, and what they assert holds. `crash`, which starts itself as a child process, runs in `.ci/run`.

#[path = "../examples/documents.rs"]
mod documents;
#[path = "../examples/durability.rs"]
mod durability;
#[path = "../examples/simulated_disk.rs"]
mod simulated_disk;
#[path = "../examples/snapshots.rs"]
mod snapshots;

#[test]
fn the_examples_run() {
    documents::main().expect("documents");
    durability::main().expect("durability");
    simulated_disk::main().expect("simulated disk");
    snapshots::main().expect("snapshots");
}

/// The README links every example.
#[test]
fn the_readme_links_the_examples() {
    let readme = include_str!("../../README.md");
    for name in ["quickstart", "documents", "durability", "snapshots", "crash", "simulated_disk"] {
        assert!(readme.contains(&format!("tests/examples/{name}.rs")), "{name} is not linked");
    }
}
