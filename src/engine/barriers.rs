//! The barriers: the syncs that the promises depend on.
//!
//! Invariant: each barrier is issued under a purpose of this table, and the mutation run omits each of them in turn. A
//! purpose is a label for traces, monitors and tests. The engine never branches on it.

use crate::storage::Purpose;

/// B1 in a commit: sync of the WAL.
pub const COMMIT: Purpose = Purpose("B1: commit");
/// B1 in a flush, unless a commit has synced the WAL meanwhile.
pub const B1: Purpose = Purpose("B1: sync the WAL");
/// B2: sync of the data file.
pub const B2: Purpose = Purpose("B2: sync the data");
/// B3: sync of the new root's slot.
pub const B3: Purpose = Purpose("B3: sync the root");
/// E2: sync of a replacement root file.
pub const E2: Purpose = Purpose("E2: sync the roots");
/// E1: sync of the directory entry of a replacement root file.
pub const E1: Purpose = Purpose("E1: sync the entry");
/// B4: syncs of the recovered root and of the root before it.
pub const B4: Purpose = Purpose("B4: sync the recovered root");
/// B5: sync of the root's twin.
pub const B5: Purpose = Purpose("B5: sync the root's twin");
/// Sync of the parent directory, for the entry of the index's directory.
pub const PARENT: Purpose = Purpose("create: sync the parent");
/// C1: syncs of a new data file and of a new WAL.
pub const C1: Purpose = Purpose("C1: sync data and WAL");
/// C2: sync of a new root file.
pub const C2: Purpose = Purpose("C2: sync the roots");
/// C3: sync of the directory entries of the new files.
pub const C3: Purpose = Purpose("C3: sync the entries");
/// C4: sync of the root file's rename.
pub const C4: Purpose = Purpose("C4: sync the rename");
/// W1: sync of the data file after a purge has wiped it.
pub const W1: Purpose = Purpose("W1: sync the wiped data");
/// W2: sync of the WAL after a purge has wiped it.
pub const W2: Purpose = Purpose("W2: sync the wiped WAL");
/// K1: sync of a pack of a backup, new or shared.
pub const K1: Purpose = Purpose("K1: sync the pack");
/// K2: sync of a new manifest.
pub const K2: Purpose = Purpose("K2: sync the manifest");
/// K3: sync of the directory entries of the files of a backup.
pub const K3: Purpose = Purpose("K3: sync the entries");
/// K4: sync of the manifest's rename.
pub const K4: Purpose = Purpose("K4: sync the rename");
/// Sync of the WAL with the closing mark.
pub const CLOSE: Purpose = Purpose("close: sync the closing mark");

/// Barrier, or a group of barriers that are issued together: a row of the table in `FORMAT.md`.
#[derive(Clone, Copy, Debug)]
pub struct Barrier {
    /// Number of the barrier, and the file or entry that is synced.
    pub name: &'static str,
    /// Time at which the barrier is issued.
    pub when: &'static str,
    /// Condition that holds once the barrier has succeeded.
    pub buys: &'static str,
    /// Effect that a crash may have without the barrier.
    pub without: &'static str,
    /// Purposes under which the barrier is issued.
    pub purposes: &'static [Purpose],
}

/// All barriers, in the order of the table in `FORMAT.md`.
pub const BARRIERS: [Barrier; 10] = [
    Barrier {
        name: "**B1** sync of `wal`",
        when: "in a commit; last in a flush, unless a commit has synced the WAL meanwhile",
        buys: "accepted writes are durable; damage to the newest root loses nothing",
        without: "acknowledged batches are lost",
        purposes: &[COMMIT, B1],
    },
    Barrier {
        name: "**B2** sync of `data`",
        when: "in a flush, before the root is stored",
        buys: "everything that the new root names is durable before the root can be",
        without: "the root names bytes that are not on the device",
        purposes: &[B2],
    },
    Barrier {
        name: "**B3** sync of the root slot",
        when: "in a flush, after the root is stored",
        buys: "the WAL and the allocations that only roots older than both slots need can be reused",
        without: "an older root remains, and reads the new content of reused allocations as its own",
        purposes: &[B3],
    },
    Barrier {
        name: "**E2**, **E1** sync of a replacement root file, sync of its directory entry",
        when: "while the root has epoch 1: in a recovery before the replay, otherwise before the first root of epoch 2 \
               is stored",
        buys: "the directory entry of the root file is on the device; the last sync of `create` may have failed",
        without: "a power cut removes the root file or restores an older one, and everything acknowledged since is \
               lost",
        purposes: &[E2, E1],
    },
    Barrier {
        name: "**B4** two syncs, each with the file length: of the recovered root, then of the root before it",
        when: "first in a recovery",
        buys: "the root that recovery builds on, and the pages that a truncated root file got back, are not in the \
               page cache alone; the other slot holds no newer root that a failed sync left on the device",
        without: "a later store destroys the last durable root, or reuses allocations that a root on the device names",
        purposes: &[B4],
    },
    Barrier {
        name: "**B5** sync of the root's twin",
        when: "last in a recovery, last in an upgrade, and before the first write after a clean open",
        buys: "both roots name the new epoch",
        without: "if the newest root is damaged, a recovery from the older one ignores the records of the new epoch, \
                  without an error",
        purposes: &[B5],
    },
    Barrier {
        name: "sync of the parent, **C1–C4**",
        when: "in `create` and in a restore; the first also in a backup",
        buys: "durable in this order: the entry of the directory, `data` and `wal`, the root file, the entries of the \
               three, the rename",
        without: "a crash leaves no directory, or a root without its files",
        purposes: &[PARENT, C1, C2, C3, C4],
    },
    Barrier {
        name: "**W1**, **W2** syncs of `data` and `wal`",
        when: "last in a purge, after their free bytes have become zeros",
        buys: "no removed byte comes back",
        without: "a power cut brings back what a purge had wiped",
        purposes: &[W1, W2],
    },
    Barrier {
        name: "**K1–K4**",
        when: "in a backup",
        buys: "durable in this order: each pack, new or shared, the manifest, the entries of these files, the manifest's \
               rename",
        without: "a crash leaves a manifest without its files, or no backup after the call has returned",
        purposes: &[K1, K2, K3, K4],
    },
    Barrier {
        name: "sync of the closing mark",
        when: "in `close`",
        buys: "the next open stores nothing before its first write, unless records wait for a replay",
        without: "the next open recovers",
        purposes: &[CLOSE],
    },
];

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, fs, path::Path};

    use super::*;

    #[test]
    fn format_has_the_same_table() {
        let format = include_str!("../../FORMAT.md");
        let head = "| barrier | when | what it buys | without it |\n|---|---|---|---|\n";
        let (_, after) = format.split_once(head).expect("a table of barriers");
        let rows: Vec<&str> = after.lines().take_while(|line| line.starts_with('|')).collect();
        let row = |Barrier { name, when, buys, without, .. }| format!("| {name} | {when} | {buys} | {without} |");
        assert_eq!(rows, BARRIERS.map(row));
    }

    /// Checks that every sync of the engine is a barrier of the table.
    #[test]
    fn the_engine_syncs_for_these_purposes_alone() {
        fn sources(dir: &Path, found: &mut Vec<(String, String)>) {
            for entry in fs::read_dir(dir).expect("a folder").map(|entry| entry.expect("an entry").path()) {
                if entry.is_dir() {
                    sources(&entry, found);
                } else if entry.extension().is_some_and(|ext| ext == "rs") && !entry.ends_with("engine/barriers.rs") {
                    found.push((entry.display().to_string(), fs::read_to_string(&entry).expect("a source")));
                }
            }
        }
        let known: BTreeSet<&str> = BARRIERS.iter().flat_map(|barrier| barrier.purposes).map(|why| why.0).collect();
        assert_eq!(known.len(), 20, "each has a purpose of its own: {known:?}");
        let mut all = Vec::new();
        sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut all);
        assert!(all.len() > 50, "{} sources", all.len());
        for (name, source) in all {
            // A purpose for a sync that is declared outside this file would escape the table.
            for line in source.lines().filter(|line| line.contains("Purpose(\"")) {
                assert!(!line.contains("sync"), "{name}: {line}");
                assert!(!known.iter().any(|why| line.contains(why)), "{name}: {line}");
            }
        }
    }
}
