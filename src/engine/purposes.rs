//! Purposes of operations that are shared by several steps and are not barriers.

use crate::storage::Purpose;

/// Creating files and directories.
pub(super) const MAKE: Purpose = Purpose("create");
/// Removing the files of an interrupted `create`, or a `root.new` that a crash or a failed attempt left.
pub(super) const CLEAR: Purpose = Purpose("create: clear an interrupted one");
/// Renaming `root.new` to `root`.
pub(super) const NAME: Purpose = Purpose("create: commit");
