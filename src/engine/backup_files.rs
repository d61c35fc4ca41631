//! Files of a backup, read and verified. A backup is read without its lock, because nothing changes it once it has a
//! manifest.

use std::sync::Arc;

use super::names;
use crate::{
    env::Cancel,
    error::{Result, ShardexError},
    failpoint::holds,
    format::{
        header::{self, FileKind},
        manifest::{MANIFEST_MAGIC, MANIFEST_MOST_BYTES, MANIFEST_VERSION, Manifest, PlaceEntry, content_hash},
    },
    id::Lsn,
    storage::{Storage, StorageFile},
};

/// What [`verify_backup`](crate::Shardex::verify_backup) has read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct VerifyStats {
    /// Last write that the backup holds.
    pub lsn: Lsn,
    /// Time of the backup in milliseconds since 1970, by the clock of the system that made it.
    pub unix_ms: u64,
    /// Postings in the backup.
    pub postings: u64,
    /// Places of the data file in the backup: extents, blocks of metadata and payloads, groups of cells.
    pub places: u64,
    /// Bytes of these places, all of which were read.
    pub bytes: u64,
    /// Bytes of the files of the backup. What belongs to earlier backups alone makes the difference.
    pub file_bytes: u64,
}

/// Backup with its manifest read and its packs opened.
pub(super) struct BackupFiles<S: Storage> {
    pub(super) manifest: Manifest,
    packs: Vec<Arc<S::File>>,
}

impl<S: Storage> BackupFiles<S> {
    /// Reads the manifest and opens the packs.
    ///
    /// # Errors
    /// Returns `NotABackup` if there is no manifest, `UnsupportedVersion`, `Corruption` if the manifest is damaged or a pack is
    /// missing or cut, or `Io`.
    pub(super) fn open(storage: &S) -> Result<Self> {
        let none = |reason: &str| ShardexError::NotABackup { path: storage.path(), reason: reason.to_owned() };
        if !storage.exists()? {
            return Err(none("there is no such directory"));
        }
        let found = storage.list()?;
        let has = |name: &str| found.iter().any(|found| found == name);
        if !has(names::MANIFEST) {
            return Err(none(if has(names::ROOT) {
                "it holds an index"
            } else if has(names::MANIFEST_NEW) || found.iter().any(|name| name.starts_with(names::PACK)) {
                "it holds no file `manifest`, so the backup was interrupted"
            } else {
                "it holds no file `manifest`"
            }));
        }
        let manifest = read_manifest(storage)?;
        let open = |pack: &crate::format::manifest::PackEntry| {
            let name = names::pack(pack.number);
            let file = storage.open_to_read(&name).map_err(|error| missing(storage, &name, error))?;
            let len = file.len()?;
            if holds!(ErrorCheck, len == pack.len) {
                return Ok(file);
            }
            let what = format!("the file has {len} bytes, {} expected", pack.len);
            Err(ShardexError::Corruption { file: file.path(), offset: len.min(pack.len), what })
        };
        let packs = manifest.packs.iter().map(open).collect::<Result<_>>()?;
        Ok(Self { manifest, packs })
    }

    /// Has the system read the packs from the device again, as far as it follows the hint.
    pub(super) fn uncache(&self) {
        self.packs.iter().for_each(|pack| pack.uncache());
    }

    /// Reads the bytes of a place, without a check.
    ///
    /// # Errors
    /// Returns `Io`.
    pub(super) fn read(&self, place: &PlaceEntry, bytes: &mut Vec<u8>) -> Result<()> {
        bytes.resize(place.len as usize, 0);
        self.packs[place.pack as usize].read_at(place.offset, bytes)
    }

    /// Reads the bytes of a place, and checks their hash.
    ///
    /// # Errors
    /// Returns `Corruption` or `Io`.
    pub(super) fn read_checked(&self, place: &PlaceEntry, bytes: &mut Vec<u8>) -> Result<()> {
        self.read(place, bytes)?;
        check_hash(&*self.packs[place.pack as usize], place, bytes)
    }

    /// Reads and checks every byte that the backup holds.
    ///
    /// # Errors
    /// Returns `Corruption` that names file and offset of the first damaged place, `Io`, or `Closed` if it is cancelled.
    pub(super) fn verify(&self, cancel: &dyn Cancel) -> Result<VerifyStats> {
        self.uncache();
        let (mut read, mut bytes) = (0, Vec::new());
        for place in &self.manifest.places {
            cancel.check()?;
            self.read_checked(place, &mut bytes)?;
            read += u64::from(place.len);
        }
        Ok(VerifyStats {
            lsn: self.manifest.lsn(),
            unix_ms: self.manifest.unix_ms,
            postings: self.manifest.root.live,
            places: self.manifest.places.len() as u64,
            bytes: read,
            file_bytes: self.manifest.packs.iter().map(|pack| pack.len).sum(),
        })
    }
}

/// Verifies a backup: reads every byte, and compares it with its hash.
///
/// # Errors
/// Returns the errors of [`verify_backup`](crate::Shardex::verify_backup).
pub fn verify<S: Storage>(storage: &S, cancel: &dyn Cancel) -> Result<VerifyStats> {
    BackupFiles::open(storage)?.verify(cancel)
}

/// Checks the bytes of a place, as read from a pack.
pub(super) fn check_hash<F: StorageFile>(pack: &F, place: &PlaceEntry, bytes: &[u8]) -> Result<()> {
    if holds!(Checksum, content_hash(bytes) == place.hash) {
        return Ok(());
    }
    let what = format!("the {} bytes of page {} of the data file have another hash", place.len, place.page);
    Err(ShardexError::Corruption { file: pack.path(), offset: place.offset, what })
}

fn read_manifest<S: Storage>(storage: &S) -> Result<Manifest> {
    let file = storage.open_to_read(names::MANIFEST)?;
    file.uncache();
    let len = file.len()?;
    if len > MANIFEST_MOST_BYTES {
        let what = format!("a manifest of {len} bytes, {MANIFEST_MOST_BYTES} at most");
        return Err(ShardexError::Corruption { file: file.path(), offset: 0, what });
    }
    let mut bytes = vec![0; len as usize];
    file.read_at(0, &mut bytes)?;
    match header::kind(&bytes, &MANIFEST_MAGIC) {
        FileKind::Version(MANIFEST_VERSION) => {}
        FileKind::Version(found) => {
            return Err(ShardexError::UnsupportedVersion { file: file.path(), found, supported: MANIFEST_VERSION });
        }
        FileKind::Foreign => {
            let reason = format!("`manifest` begins with \"{}\"", bytes[..bytes.len().min(8)].escape_ascii());
            return Err(ShardexError::NotABackup { path: storage.path(), reason });
        }
    }
    let decoded = Manifest::decode(&bytes);
    decoded.map_err(|e| ShardexError::Corruption { file: file.path(), offset: 0, what: format!("the manifest: {e}") })
}

fn missing<S: Storage>(storage: &S, name: &str, error: ShardexError) -> ShardexError {
    match error {
        ShardexError::Io { source, .. } if source.kind() == std::io::ErrorKind::NotFound => {
            let what = "the file is missing, yet the manifest names it".to_owned();
            ShardexError::Corruption { file: storage.path().join(name), offset: 0, what }
        }
        error => error,
    }
}
