//! Output files.
//!
//! Invariants:
//! 1. An existing file is replaced only if the caller allows it.
//! 2. Nothing is written into the directory of an index.
//! 3. A file appears complete, by a rename after a sync, or not at all.

use std::{
    fs::{self, File, Permissions},
    io,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use tempfile::NamedTempFile;

use crate::error::{ColumnsError, Result};

/// Output file under a temporary name until it is complete.
pub(crate) struct Target {
    path: PathBuf,
    replace: bool,
    file: NamedTempFile,
}

impl Target {
    /// Begins a file. `replace` allows it to replace an existing file.
    pub(crate) fn begin(path: &Path, replace: bool) -> Result<Self> {
        let file = || path.to_owned();
        let output = |reason: &str| ColumnsError::Output { file: file(), reason: reason.to_owned() };
        let io = |source| ColumnsError::Io { file: file(), op: "create", source };
        // Links are followed, so that the checks apply to the place where the bytes are written.
        let path = match fs::canonicalize(path) {
            Ok(existing) if !existing.is_file() => return Err(output("it is no regular file: name a new one")),
            Ok(_) if !replace => return Err(ColumnsError::Exists { file: file() }),
            Ok(existing) => existing,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                if fs::symlink_metadata(path).is_ok() {
                    return Err(output("it is a link to a missing file: name a new one"));
                }
                let name = path.file_name().ok_or_else(|| output("it is a directory, not a file"))?;
                let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
                fs::canonicalize(parent).map_err(io)?.join(name)
            }
            Err(error) => return Err(io(error)),
        };
        let parent = path.parent().ok_or_else(|| output("it is a directory, not a file"))?;
        if let Some(index) = parent.ancestors().find(|dir| is_index(dir)) {
            let index = index.display();
            return Err(output(&format!("{index} is the directory of an index, which holds nothing else")));
        }
        let temporary = tempfile::Builder::new()
            .prefix(".shardex-")
            // The process's umask applies, as for any new file.
            .permissions(Permissions::from_mode(0o666))
            .tempfile_in(parent)
            .map_err(io)?;
        Ok(Self { path, replace, file: temporary })
    }

    /// Returns the file to write.
    pub(crate) fn file(&self) -> &File {
        self.file.as_file()
    }

    /// Syncs the file and renames it to its final name.
    pub(crate) fn publish(self) -> Result<()> {
        let Self { path, replace, file } = self;
        let io = |op, source| ColumnsError::Io { file: path.clone(), op, source };
        file.as_file().sync_all().map_err(|source| io("sync", source))?;
        let named = if replace { file.persist(&path) } else { file.persist_noclobber(&path) };
        named.map(drop).map_err(|error| io("rename", error.error))
    }
}

/// Reports whether a directory holds an index, also a damaged one.
fn is_index(dir: &Path) -> bool {
    // Two of the three files are enough, because one may be missing.
    ["root", "data", "wal"].iter().filter(|name| dir.join(name).is_file()).count() >= 2
}
