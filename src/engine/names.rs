//! Names of the files of an index.

/// Data file: extents, shard states, directory nodes and cells.
pub const DATA: &str = crate::lease::LENDING;
/// Write-ahead log.
pub const WAL: &str = "wal";
/// Root file, with the two roots. A directory with this file is an index.
pub const ROOT: &str = "root";
/// New root file before its rename to [`ROOT`]: in `create`, and when a recovery or the first write replaces the root
/// file.
pub const ROOT_NEW: &str = "root.new";
/// Lock file.
pub const LOCK: &str = "LOCK";
/// Stats file, if the option `stats_file` was ever set. It is no part of the index.
pub const STATS: &str = "stats";
/// Manifest of a backup. A directory with this file is a backup.
pub const MANIFEST: &str = "manifest";
/// Manifest before its rename to [`MANIFEST`].
pub const MANIFEST_NEW: &str = "manifest.new";
/// Start of the names of a backup's packs.
pub const PACK: &str = crate::lease::PACK;

/// Returns the name of a pack.
#[must_use]
pub fn pack(number: u32) -> String {
    format!("{PACK}{number:08}")
}

/// Names of the files of an index. A `create` that finds no index removes them, as leftovers of another.
pub const ALL: [&str; 5] = [DATA, WAL, ROOT, ROOT_NEW, LOCK];

/// Entries that a file system or a desktop creates in an empty volume. An index may share a directory with them, and
/// they are never removed.
pub const TOLERATED: [&str; 2] = ["lost+found", ".DS_Store"];
