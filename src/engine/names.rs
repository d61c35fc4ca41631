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
/// Names of the files of an index. A `create` that finds no index removes them, as leftovers of another.
pub const ALL: [&str; 5] = [DATA, WAL, ROOT, ROOT_NEW, LOCK];

/// Entries that a file system or a desktop creates in an empty volume. An index may share a directory with them, and
/// they are never removed.
pub const TOLERATED: [&str; 2] = ["lost+found", ".DS_Store"];
