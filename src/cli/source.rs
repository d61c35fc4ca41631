//! Input of a command: a regular file or a pipe.
//!
//! A named pipe is refused, because opening it blocks until another process opens its other end.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, BufReader, IsTerminal as _, Read},
    os::{
        fd::AsFd,
        unix::fs::{FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _},
    },
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fs::{OFlags, fcntl_getfl, fcntl_setfl},
    io::Errno,
};

use super::{Failure, interrupt};

/// Path that stands for stdin.
const STDIN: &str = "-";

/// Size of the read buffer in bytes.
const BUFFER: usize = 1 << 20;

/// Open input.
pub(crate) struct Source {
    /// Name of the source for messages.
    pub(crate) name: String,
    reader: Box<dyn Read>,
    /// Length in bytes, if known before the read.
    pub(crate) len: Option<u64>,
}

/// Interval at which a read from a pipe checks for a signal.
const PATIENCE: Duration = Duration::from_millis(50);

/// Reader that may block. If an [`Interrupt`](interrupt::Interrupt) listens, a read returns an error after the first
/// signal.
struct Patient<F>(F);

impl<F: Read + AsFd> Read for Patient<F> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let patience = Timespec::try_from(PATIENCE).map_err(io::Error::other)?;
        loop {
            if interrupt::code().is_some() {
                return Err(io::Error::other("no more is read after a signal"));
            }
            match poll(&mut [PollFd::new(&self.0, PollFlags::IN)], Some(&patience)) {
                // No data yet.
                Ok(0) | Err(Errno::INTR) => {}
                Ok(_) => return self.0.read(out),
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// Whether stdin is in use. It can be read only once.
static STDIN_TAKEN: AtomicBool = AtomicBool::new(false);

impl Source {
    /// Opens the file at `path`, where `-` is stdin. Never waits for another process.
    pub(crate) fn open(path: &Path) -> Result<Self, Failure> {
        let name = path.display().to_string();
        let failed = |e: io::Error| Failure(format!("{name}: {e}"));
        if path.as_os_str() == STDIN {
            return Self::stdin("stdin".to_owned());
        }
        let found = fs::metadata(path).map_err(failed)?;
        let kind = found.file_type();
        if found.is_dir() {
            return Err(Failure(format!("{name} is a directory: name an .npy file, or `{STDIN}` for stdin")));
        }
        if found.is_file() {
            let reader = BufReader::with_capacity(BUFFER, File::open(path).map_err(failed)?);
            return Ok(Self { name, reader: Box::new(reader), len: Some(found.len()) });
        }
        if is_stdin(&found) {
            return Self::stdin(name);
        }
        // A shell's `<(…)` is such a path. The pipe is open already, so opening it again doesn't wait.
        let inherited = ["/dev/fd", "/proc"].iter().any(|place| path.starts_with(place));
        if kind.is_fifo() && inherited {
            Self::inherited(path, name)
        } else {
            Err(Failure(format!("{name} is no regular file: read it as `{STDIN}`, with `< {name}`")))
        }
    }

    /// Reads exactly `bytes.len()` bytes.
    pub(crate) fn fill(&mut self, bytes: &mut [u8]) -> io::Result<()> {
        self.reader.read_exact(bytes)
    }

    fn stdin(name: String) -> Result<Self, Failure> {
        if io::stdin().is_terminal() {
            return Err(Failure(format!("{name} is a terminal: pipe an .npy file into this command, or name one")));
        }
        if STDIN_TAKEN.swap(true, Ordering::Relaxed) {
            return Err(Failure(format!("{name} can be read only once: name a file for the other argument")));
        }
        Ok(Self { name, reader: Box::new(BufReader::with_capacity(BUFFER, Patient(io::stdin()))), len: None })
    }

    /// Opens a pipe that this process inherited, by the path of its descriptor.
    fn inherited(path: &Path, name: String) -> Result<Self, Failure> {
        let failed = |e: io::Error| Failure(format!("{name}: {e}"));
        // Opened without blocking, because the descriptor may be a named pipe without writers. The flag is cleared
        // afterwards, so that reads block.
        let flags = OFlags::NONBLOCK.bits() as i32;
        let file = OpenOptions::new().read(true).custom_flags(flags).open(path).map_err(failed)?;
        let flags = fcntl_getfl(&file).map_err(|e| failed(e.into()))?;
        fcntl_setfl(&file, flags - OFlags::NONBLOCK).map_err(|e| failed(e.into()))?;
        Ok(Self { name, reader: Box::new(BufReader::with_capacity(BUFFER, Patient(file))), len: None })
    }
}

/// Returns the message of a failed read: `what` at an unexpected end, else the text of the error.
pub(crate) fn ended(error: &io::Error, what: &str) -> String {
    if error.kind() == io::ErrorKind::UnexpectedEof { what.to_owned() } else { error.to_string() }
}

/// Reports whether this file is the one that stdin is connected to.
fn is_stdin(found: &fs::Metadata) -> bool {
    rustix::fs::fstat(io::stdin()).is_ok_and(|stdin| (stdin.st_dev, stdin.st_ino) == (found.dev(), found.ino()))
}
