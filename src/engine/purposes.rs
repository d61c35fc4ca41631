//! Purposes of operations that several steps share and that are no barrier.

use crate::storage::Purpose;

/// Making files and directories.
pub(super) const MAKE: Purpose = Purpose("create");
/// Taking away what an interrupted `create` has left.
pub(super) const CLEAR: Purpose = Purpose("create: clear an interrupted one");
/// Giving the root file its name.
pub(super) const NAME: Purpose = Purpose("create: commit");
