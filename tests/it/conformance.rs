//! Conformance tests: real, simulated and hooked files keep the contract of `Storage`. Simulated files also keep its
//! crash rules.

use std::cell::RefCell;

use shardex::storage::MmapStorage;
use shardex_sim::{
    HookAction, HookStorage, SimStorage,
    conformance::{conformance, conformance_crash},
};
use tempfile::TempDir;

#[test]
fn real_files_conform() {
    let dirs = RefCell::new(Vec::new());
    conformance(&|| {
        let dir = TempDir::new().expect("a temporary directory");
        let storage = MmapStorage::new(dir.path().join("storage"));
        dirs.borrow_mut().push(dir);
        storage
    });
}

#[test]
fn simulated_files_conform() {
    for (page, sector) in [(512, 64), (4096, 512), (512, 512)] {
        conformance(&|| SimStorage::new(page, sector, 1));
        conformance_crash(&|seed| SimStorage::new(page, sector, seed));
    }
}

#[test]
fn a_hook_that_lets_everything_pass_conforms() {
    conformance(&|| HookStorage::new(SimStorage::new(512, 64, 1), |_| HookAction::Proceed));
}
