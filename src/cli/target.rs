//! Files that a command writes.
//!
//! Invariants:
//! 1. An existing file is replaced only if the caller allows it.
//! 2. Nothing is written into the directory of an index, also if the caller allows replacement and also through links.
//! 3. A file appears complete, by a rename after a sync, or not at all.

use std::{
    fs,
    io::{self, BufWriter, Write},
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use tempfile::NamedTempFile;

use super::{Failure, output::with_remedy};

/// Size of the write buffer in bytes.
const BUFFER: usize = 1 << 20;

/// Output file under a temporary name until it is finished.
pub(crate) struct Target {
    name: String,
    path: PathBuf,
    replace: bool,
    file: NamedTempFile,
}

impl Target {
    /// Begins a file.
    ///
    /// `replace` allows it to replace an existing file. It never replaces one of `inputs` or a file of the index in
    /// `index`.
    pub(crate) fn begin(path: &Path, replace: bool, index: &Path, inputs: &[&Path]) -> Result<Self, Failure> {
        let name = path.display().to_string();
        let wrong = |what: &str| Failure(format!("{name}: {what}"));
        // Links are followed, so that the checks apply to the place where the bytes are written.
        let path = match fs::canonicalize(path) {
            Ok(found) => found,
            Err(e) if e.kind() == io::ErrorKind::NotFound => real(path).map_err(|e| wrong(&e.to_string()))?,
            Err(e) => return Err(wrong(&e.to_string())),
        };
        let parent = path.parent().ok_or_else(|| wrong("it is a directory, not a file"))?;
        outside(parent, index).map_err(|what| wrong(&what))?;
        if let Ok(found) = fs::metadata(&path) {
            if !found.is_file() {
                return Err(wrong("it is no regular file: name a new one"));
            }
            let same = |other: &Path| fs::metadata(other).is_ok_and(|other| identity(&other) == identity(&found));
            if fs::read_dir(index).is_ok_and(|entries| entries.flatten().any(|entry| same(&entry.path()))) {
                return Err(wrong("it is a file of the index, under another name: name another file"));
            }
            if inputs.iter().any(|input| same(input)) {
                return Err(wrong("this command reads it: name another file"));
            }
            if !replace {
                return Err(wrong("the file exists: name another one, or add --force to replace it"));
            }
        }
        let file = tempfile::Builder::new()
            .prefix(".shardex-")
            // The process's umask applies, as for any new file.
            .permissions(fs::Permissions::from_mode(0o666))
            .tempfile_in(parent)
            .map_err(|e| wrong(&e.to_string()))?;
        Ok(Self { name, path, replace, file })
    }

    /// Returns the path of the temporary file.
    pub(crate) fn unfinished(&self) -> &Path {
        self.file.path()
    }

    /// Reports whether both targets have the same final name.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        self.path == other.path
    }

    /// Returns the message for an error of a write to the file.
    pub(crate) fn failed(&self, error: &io::Error) -> Failure {
        failed(&self.name, error)
    }

    /// Returns a writer of the file. Its buffer must be flushed before [`publish`](Self::publish).
    pub(crate) fn writer(&self) -> BufWriter<&fs::File> {
        BufWriter::with_capacity(BUFFER, self.file.as_file())
    }

    /// Writes the file and renames it to its final name.
    pub(crate) fn finish(self, write: impl FnOnce(&mut BufWriter<&fs::File>) -> io::Result<()>) -> Result<(), Failure> {
        let mut out = self.writer();
        let written = write(&mut out).and_then(|()| out.flush());
        drop(out);
        written.map_err(|e| self.failed(&e))?;
        self.publish()
    }

    /// Syncs the file and renames it to its final name.
    pub(crate) fn publish(self) -> Result<(), Failure> {
        let Self { name, path, replace, file } = self;
        file.as_file().sync_all().map_err(|e| failed(&name, &e))?;
        let named = if replace { file.persist(&path) } else { file.persist_noclobber(&path) };
        named.map(drop).map_err(|e| failed(&name, &e.error))
    }
}

fn failed(name: &str, error: &io::Error) -> Failure {
    Failure(format!("{name}: {}", with_remedy(error)))
}

/// Returns a `Failure` if the directory is in or below the directory of an index. Commands create nothing there.
pub(crate) fn outside_every_index(dir: &Path) -> Result<(), Failure> {
    // A missing directory is reported by the code that creates something in it.
    let Ok(real) = fs::canonicalize(dir) else { return Ok(()) };
    outside(&real, &real.join("-")).map_err(|what| Failure(format!("{}: {what}", dir.display())))
}

/// Returns the canonical path of a file that doesn't exist yet. Its parent directory must exist.
fn real(path: &Path) -> io::Result<PathBuf> {
    // A dangling link is resolved, because a write through it would create its target.
    let path = match fs::read_link(path) {
        Ok(target) => path.parent().unwrap_or(Path::new("")).join(target),
        Err(_) => path.to_path_buf(),
    };
    let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?;
    let parent = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    Ok(fs::canonicalize(parent)?.join(name))
}

fn identity(found: &fs::Metadata) -> (u64, u64) {
    (found.dev(), found.ino())
}

/// Returns an error if the directory is in or below the directory `index` or that of any other index.
fn outside(dir: &Path, index: &Path) -> Result<(), String> {
    let index = fs::metadata(index).ok().map(|found| identity(&found));
    for dir in dir.ancestors() {
        let it = fs::metadata(dir).ok().map(|found| identity(&found));
        if is_index(dir) || (it.is_some() && it == index) {
            return Err(format!("{} is the directory of an index, which holds nothing else", dir.display()));
        }
    }
    Ok(())
}

/// Reports whether a directory holds an index, also a damaged one.
fn is_index(dir: &Path) -> bool {
    // Two of the three files are enough, because one may be missing.
    ["root", "data", "wal"].iter().filter(|name| dir.join(name).is_file()).count() >= 2
}
