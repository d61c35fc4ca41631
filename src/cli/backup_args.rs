//! Arguments of the commands on backups.

use std::path::PathBuf;

use clap::Args;

#[derive(Debug, Args)]
pub(crate) struct BackupCommand {
    /// Directory of the index.
    pub(crate) dir: PathBuf,
    /// Directory of the backup, missing or empty. Its parent must exist.
    pub(crate) to: PathBuf,
    /// Earlier backup of this index. What both hold is stored once, under two names. Each can be removed without harm to the
    /// other.
    #[arg(long, value_name = "EARLIER")]
    pub(crate) base: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct Restore {
    /// Directory of the backup.
    pub(crate) from: PathBuf,
    /// Directory of the index, missing or empty. Its parent must exist.
    pub(crate) dir: PathBuf,
}

#[derive(Debug, Args)]
pub(crate) struct Verify {
    /// Directory of the backup.
    pub(crate) from: PathBuf,
}
