//! The barriers: the syncs that what is promised depends on.
//!
//! Invariant: each is issued under a purpose of this table, and the mutation run leaves each out in turn. A purpose is a label
//! for traces, monitors and tests; no step of the engine looks at one.

use crate::storage::Purpose;

/// B1 in a commit.
pub const COMMIT: Purpose = Purpose("B1: commit");
/// B1 in a flush, where no commit has done it meanwhile.
pub const B1: Purpose = Purpose("B1: sync the WAL");
/// B2.
pub const B2: Purpose = Purpose("B2: sync the data");
/// B3.
pub const B3: Purpose = Purpose("B3: sync the root");
/// E2.
pub const E2: Purpose = Purpose("E2: sync the roots");
/// E1.
pub const E1: Purpose = Purpose("E1: sync the entry");
/// B4.
pub const B4: Purpose = Purpose("B4: sync the recovered root");
/// B5.
pub const B5: Purpose = Purpose("B5: sync the root's twin");
/// The entry of the index's directory.
pub const PARENT: Purpose = Purpose("create: sync the parent");
/// C1.
pub const C1: Purpose = Purpose("C1: sync data and WAL");
/// C2.
pub const C2: Purpose = Purpose("C2: sync the roots");
/// C3.
pub const C3: Purpose = Purpose("C3: sync the entries");
/// C4.
pub const C4: Purpose = Purpose("C4: sync the rename");
/// Syncing the closing mark.
pub const CLOSE: Purpose = Purpose("close: sync the closing mark");

/// A barrier, or some that come together: a row of the table in `FORMAT.md`.
#[derive(Clone, Copy, Debug)]
pub struct Barrier {
    /// Its number, and what is synced.
    pub name: &'static str,
    /// When it is issued.
    pub when: &'static str,
    /// What holds once it has succeeded.
    pub buys: &'static str,
    /// What a crash may do without it.
    pub without: &'static str,
    /// The purposes that it is issued under.
    pub purposes: &'static [Purpose],
}

/// All of them.
pub const BARRIERS: [Barrier; 8] = [
    Barrier {
        name: "**B1** sync of `wal`",
        when: "`commit`, and last in a flush unless a commit has done it since",
        buys: "what was accepted is durable; a rotten newest root costs nothing",
        without: "acknowledged batches are lost",
        purposes: &[COMMIT, B1],
    },
    Barrier {
        name: "**B2** sync of `data`",
        when: "in a flush, before the root is stored",
        buys: "all that the new root names is durable before it can be",
        without: "the root names bytes that are not there",
        purposes: &[B2],
    },
    Barrier {
        name: "**B3** sync of the root's slot",
        when: "in a flush, next",
        buys: "the WAL and the places of older roots may be used again",
        without: "their new content is read as the old",
        purposes: &[B3],
    },
    Barrier {
        name: "**E2**, **E1** sync of a root file made anew, of its entry",
        when: "once in an index's life, before the first root of epoch 2 is stored, whatever the log seems to hold; in a recovery \
               before anything is replayed",
        buys: "the entry of a file that holds a root of epoch 2 is on the device: the `create` may have ended before it was, or \
               its sync have failed",
        without: "a power cut takes the root file, or brings an older one back, and with it goes all that was acknowledged since",
        purposes: &[E2, E1],
    },
    Barrier {
        name: "**B4** two syncs, of the recovered root and of the one before it, with the file's length",
        when: "first in a recovery",
        buys: "the root that recovery builds on is not in the page cache alone, nor the pages that a cut file has got back, and \
               the other slot holds no newer one that a failed sync left on the device",
        without: "the next store may destroy the last durable root; a newest root names places that are used again",
        purposes: &[B4],
    },
    Barrier {
        name: "**B5** sync of the root's twin",
        when: "last in a recovery, and before the first write after a clean open",
        buys: "both roots know the new epoch",
        without: "when the newest rots, the older one drops the new epoch in silence",
        purposes: &[B5],
    },
    Barrier {
        name: "sync of the parent, **C1–C4**",
        when: "`create`",
        buys: "the directory's own entry, files, roots, their entries, the rename: in this order",
        without: "no directory, or a root without its files",
        purposes: &[PARENT, C1, C2, C3, C4],
    },
    Barrier {
        name: "closing mark",
        when: "`close`",
        buys: "the next open need not replay or store anything",
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

    /// There is no sync that is no barrier.
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
        assert_eq!(known.len(), 14, "each has a purpose of its own: {known:?}");
        let mut all = Vec::new();
        sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut all);
        assert!(all.len() > 50, "{} sources", all.len());
        for (name, source) in all {
            // Else a sync could have a purpose that is written beside it.
            for line in source.lines().filter(|line| line.contains("Purpose(\"")) {
                assert!(!line.contains("sync"), "{name}: {line}");
                assert!(!known.iter().any(|why| line.contains(why)), "{name}: {line}");
            }
        }
    }
}
