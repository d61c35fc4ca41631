//! Names of the files of an index.

/// Extents, shard states and the directory.
pub const DATA: &str = crate::lease::LENDING;
/// The write-ahead log.
pub const WAL: &str = "wal";
/// The two roots. That this file exists makes a directory an index.
pub const ROOT: &str = "root";
/// The root file before `create` is done.
pub const ROOT_NEW: &str = "root.new";
/// The lock.
pub const LOCK: &str = "LOCK";
/// All of them.
pub const ALL: [&str; 5] = [DATA, WAL, ROOT, ROOT_NEW, LOCK];

/// Entries that a file system or a desktop puts into a fresh volume. An index beside them is fine, and they stay.
pub const TOLERATED: [&str; 2] = ["lost+found", ".DS_Store"];
