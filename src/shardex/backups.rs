//! Backups through the handle, and what needs no handle: restoring and verifying them.

use std::path::{Path, PathBuf};

use super::{
    Shardex,
    queue::{BackupRequest, Command, Reply},
    running::RunningJob,
    tasks::Background,
    writer::Writer,
};
use crate::{
    access::FileAccess,
    engine::{self, BackupStats, VerifyStats},
    env::{Cancel, Env},
    error::Result,
    storage::{MmapStorage, Storage},
};

/// Options of [`backup_with`](Shardex::backup_with).
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct BackupOptions {
    /// Directory of an earlier backup of this index. What both hold is stored once: the new backup has the files of the earlier
    /// one under second names (hard links), or copies of them where the file system can't do that. Either directory can be
    /// removed without harm to the other. Damage to a file with two names is damage to both: make a backup without a base, on
    /// another device, now and then.
    pub base: Option<PathBuf>,
    /// Who may read the backup.
    pub file_access: FileAccess,
}

impl BackupOptions {
    /// Sets the earlier backup.
    #[must_use]
    pub fn base(mut self, directory: impl Into<PathBuf>) -> Self {
        self.base = Some(directory.into());
        self
    }

    /// Sets who may read the backup.
    #[must_use]
    pub fn file_access(mut self, access: FileAccess) -> Self {
        self.file_access = access;
        self
    }
}

impl<S: Storage> Writer<S> {
    /// Starts a backup. If that fails, its caller is answered.
    pub(super) fn begin_backup(&mut self, backup: BackupRequest, reply: Reply<BackupStats>) -> Option<RunningJob> {
        let BackupRequest { to, base } = backup;
        match self.engine.backup_begin() {
            Ok(job) => {
                let run = move |cancel: &dyn Cancel| job.run_until(&to, base.as_ref(), cancel);
                RunningJob::start(&*self.runtime, "a backup", reply, run)
            }
            Err(error) => {
                reply.send(Err(error));
                None
            }
        }
    }
}

impl<S: Storage> Shardex<S> {
    /// Makes a backup in a directory, which must be missing or empty. Its parent must exist.
    ///
    /// See [`backup_with`](Self::backup_with).
    ///
    /// # Errors
    /// Returns the errors of [`backup_with`](Self::backup_with).
    pub async fn backup_to(&self, directory: impl AsRef<Path>) -> Result<BackupStats> {
        self.backup_with(directory, &BackupOptions::default()).await
    }

    /// Makes a backup in a directory, which must be missing or empty. Its parent must exist.
    ///
    /// The backup holds the state of one flush, with everything accepted before the call. It is whole by itself. The call
    /// flushes first. Then other calls go on: the backup pins what it reads, so replaced postings keep their space until it
    /// ends, and a [`purge`](Self::purge) waits or is refused. One backup or full check runs at a time.
    ///
    /// All bytes are checked on the way, synced, and read back, for which the system is asked to drop its cached copies.
    /// A crash leaves a whole backup, or a directory that [`restore`](Shardex::restore) and
    /// [`verify_backup`](Shardex::verify_backup) refuse with [`NotABackup`](crate::ShardexError::NotABackup).
    ///
    /// Damaged cells are left out, because a restored index builds them again. Any other damage is an error.
    ///
    /// Cost: reads the index once, or twice what is stored, and hashes it (SHA-256). Stores what the earlier backup doesn't hold.
    /// Four syncs and one for each file. A chain of backups takes at most twice the bytes that its last one holds, and what
    /// earlier ones hold alone.
    ///
    /// # Errors
    /// Returns the errors of [`flush`](Self::flush). Returns `AlreadyExists` if the directory is not empty, `Locked` if another
    /// backup is made there, `Corruption` if the index is damaged or the device of the backup returns other bytes than were
    /// stored, `OutOfSpace` or `Io`, and `Closed` if the index is closed meanwhile. With an earlier backup also `NotABackup`, or
    /// `InvalidArgument` if it is of another index. The files stored so far are then removed.
    pub async fn backup_with(&self, directory: impl AsRef<Path>, options: &BackupOptions) -> Result<BackupStats> {
        let to = MmapStorage::new(directory.as_ref()).file_access(options.file_access);
        let base = options.base.as_ref().map(MmapStorage::new);
        self.flush().await?;
        self.ask(|reply| Command::Backup(BackupRequest { to, base }, reply)).await
    }
}

impl Shardex {
    /// Restores an index from a backup, into a directory that is missing or empty. Its parent must exist.
    ///
    /// The restored index has the id and the state of the index that was backed up, and goes on with a new epoch of its WAL. The
    /// whole backup is verified before anything is stored, and the restored index is checked in full. Then it is closed. Its
    /// files are private to the user.
    ///
    /// If the future is dropped, the call ends early as by an error.
    ///
    /// Cost: reads the backup twice and the index twice.
    ///
    /// # Errors
    /// Returns the errors of [`verify_backup`](Self::verify_backup), `AlreadyExists` if the directory is not empty, `OutOfSpace`
    /// or `Io`. The files stored so far are then removed. After a crash the directory holds the whole index, or no index: then
    /// remove it and restore again. Returns `Inconsistent` if the check of the restored index finds a contradiction. Its files stay then.
    pub async fn restore(from: impl AsRef<Path>, to: impl AsRef<Path>) -> Result<VerifyStats> {
        let (from, to) = (MmapStorage::new(from.as_ref()), MmapStorage::new(to.as_ref()));
        let env = Env::system();
        let of_job = env.clone();
        let run = move |cancel: &dyn Cancel| engine::restore(&from, to, &of_job, cancel);
        Background::run(&*env.runtime, "a restore", run)?.ended().await
    }

    /// Verifies a backup: reads every byte that it holds, and compares it with its hash (SHA-256).
    ///
    /// The system is asked to drop its cached copies first, so that the bytes come from the device.
    ///
    /// # Errors
    /// Returns `NotABackup` if the directory holds no backup or an interrupted one, `UnsupportedVersion` if it is of a later
    /// build, `Corruption` that names the first damaged file and offset, and `Io` if a file can't be read.
    pub async fn verify_backup(directory: impl AsRef<Path>) -> Result<VerifyStats> {
        let storage = MmapStorage::new(directory.as_ref());
        let run = move |cancel: &dyn Cancel| engine::verify_backup(&storage, cancel);
        Background::run(&*Env::system().runtime, "a verification", run)?.ended().await
    }
}
