//! Opening of the files of an index directory, which a stranger may have made.
//!
//! Only regular files with one name are opened. A symbolic link would lead out of the directory, a hard link gives a file
//! a second name there, and a pipe or device does other things than a file when it is read.

use std::{
    fs::{self, File, OpenOptions, Permissions},
    io,
    os::unix::fs::{DirBuilderExt as _, FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _},
    path::Path,
};

use rustix::fs::OFlags;

use crate::{
    access::FileAccess,
    error::{Result, ShardexError},
};

/// Opens an existing file. Returns an error of kind `InvalidInput` with the reason if it is not a regular file with one
/// name.
///
/// # Errors
/// Returns that error, and those of the system.
pub fn open(options: &OpenOptions, path: &Path) -> io::Result<File> {
    let file = open_linked(options, path)?;
    match file.metadata()?.nlink() {
        0 | 1 => Ok(file),
        names => Err(io::Error::new(io::ErrorKind::InvalidInput, format!("it has {names} names, by hard links"))),
    }
}

/// Opens an existing file that may have several names, as files that backups share have.
///
/// # Errors
/// As [`open`].
pub(super) fn open_linked(options: &OpenOptions, path: &Path) -> io::Result<File> {
    // Before the open, because opening a device may have an effect.
    if let Ok(found) = fs::symlink_metadata(path) {
        check(&found)?;
    }
    // The checked file may be replaced until it is opened: a link is not followed, and a pipe does not block.
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let file = options.clone().custom_flags(flags.bits().cast_signed()).open(path)?;
    check(&file.metadata()?)?;
    Ok(file)
}

fn check(found: &fs::Metadata) -> io::Result<()> {
    let kind = found.file_type();
    let reason = if kind.is_symlink() {
        "it is a symbolic link".to_owned()
    } else if kind.is_dir() {
        "it is a directory".to_owned()
    } else if kind.is_fifo() {
        "it is a named pipe".to_owned()
    } else if kind.is_socket() {
        "it is a socket".to_owned()
    } else if !kind.is_file() {
        "it is a device".to_owned()
    } else {
        return Ok(());
    };
    Err(io::Error::new(io::ErrorKind::InvalidInput, reason))
}

/// Returns the error of a failed [`open`] for users of the index.
pub(super) fn error(op: &'static str, path: &Path, error: io::Error) -> ShardexError {
    match error.kind() {
        io::ErrorKind::InvalidInput => ShardexError::NotAnIndex { file: path.to_path_buf(), reason: error.to_string() },
        _ => ShardexError::io(op, path, error),
    }
}

/// Creates a file, which must not exist. Files of one directory have the same permissions: those of its root file, or if
/// there is none yet, what `access` says.
pub(super) fn create(options: &mut OpenOptions, directory: &Path, name: &str, access: FileAccess) -> io::Result<File> {
    let of_root = fs::symlink_metadata(directory.join("root")).ok().map(|root| root.mode() & 0o666);
    let mode = of_root.unwrap_or(match access {
        FileAccess::Owner => 0o600,
        FileAccess::Umask => 0o666,
    });
    let file = options.create_new(true).mode(mode).open(directory.join(name))?;
    if of_root.is_some_and(|mode| file.metadata().is_ok_and(|made| made.mode() & 0o777 != mode)) {
        // The mask of this process differs from that of the process that made the index.
        file.set_permissions(Permissions::from_mode(mode))?;
    }
    Ok(file)
}

/// Creates the directory of an index.
///
/// # Errors
/// Returns `OutOfSpace` or `Io`.
pub(super) fn make_dir(path: &Path, access: FileAccess) -> Result<()> {
    let mode = match access {
        FileAccess::Owner => 0o700,
        FileAccess::Umask => 0o777,
    };
    fs::DirBuilder::new().mode(mode).create(path).map_err(|e| ShardexError::io("create", path, e))
}
