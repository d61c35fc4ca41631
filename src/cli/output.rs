//! Output to stdout and stderr. A closed stdout doesn't cause a panic.

use std::{
    ffi::OsStr,
    io::{self, BufWriter, IsTerminal as _, StdoutLock, Write as _},
    sync::{
        OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use indicatif::{ProgressBar, ProgressStyle};
use serde_json::Value;

/// Output format of a command: text or JSON.
#[derive(Debug)]
pub(crate) struct Output {
    json: bool,
}

impl Output {
    pub(crate) fn new(json: bool) -> Self {
        Self { json }
    }

    /// Reports whether the output is JSON only.
    pub(crate) fn is_json(&self) -> bool {
        self.json
    }

    /// Prints the result: `object` on one line with `--json`, else `text`.
    pub(crate) fn result(&self, object: &Value, text: &str) {
        if self.json { line(&object.to_string()) } else { line(text) }
    }

    /// Prints informative text. Prints nothing with `--json`.
    pub(crate) fn say(&self, text: &str) {
        if !self.json {
            line(text);
        }
    }

    /// Returns a progress bar on stderr. It is hidden with `--json` and if stderr is not a terminal.
    pub(crate) fn bar(&self, len: u64, what: &'static str) -> ProgressBar {
        if self.json || !io::stderr().is_terminal() {
            return ProgressBar::hidden();
        }
        let bar = ProgressBar::new(len).with_message(what);
        match ProgressStyle::with_template("{msg:>12} {wide_bar} {human_pos}/{human_len} {per_sec} {eta}") {
            Ok(style) => bar.with_style(style),
            Err(_) => bar,
        }
    }
}

/// Prints a line on stdout and flushes it.
///
/// If the reader has closed the pipe, the line is dropped without an error. If the write fails for another reason, such
/// as a full disk, the command fails at its end.
pub(crate) fn line(text: &str) {
    let mut out = io::stdout().lock();
    let written = writeln!(out, "{text}").and_then(|()| out.flush());
    let _ = is_written(written);
}

/// Lines on stdout that are written many at a time. They end as those of [`line`] do.
pub(crate) struct RowOutput(BufWriter<StdoutLock<'static>>);

impl RowOutput {
    /// Size of the write buffer in bytes.
    const BUFFER: usize = 1 << 16;

    pub(crate) fn new() -> Self {
        Self(BufWriter::with_capacity(Self::BUFFER, io::stdout().lock()))
    }

    /// Writes a line. Returns false if further lines would be dropped, because stdout is closed or a write failed.
    #[must_use]
    pub(crate) fn put(&mut self, text: &str) -> bool {
        let written = writeln!(self.0, "{text}");
        is_written(written)
    }

    /// Writes the lines that are still in the buffer.
    pub(crate) fn end(mut self) {
        let written = self.0.flush();
        let _ = is_written(written);
    }
}

/// Reports whether a write to stdout succeeded, and remembers why it did not.
fn is_written(written: io::Result<()>) -> bool {
    match written {
        Ok(()) => true,
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {
            GONE.store(true, Ordering::Relaxed);
            false
        }
        Err(error) => {
            // The first error is kept.
            let _ = UNWRITTEN.set(with_remedy(&error));
            false
        }
    }
}

static GONE: AtomicBool = AtomicBool::new(false);
static UNWRITTEN: OnceLock<String> = OnceLock::new();

/// Reports whether the reader of stdout has closed the pipe.
pub(crate) fn reader_is_gone() -> bool {
    GONE.load(Ordering::Relaxed)
}

/// Returns the text of the first failed write to stdout, if there was one.
pub(crate) fn unwritten() -> Option<&'static str> {
    UNWRITTEN.get().map(String::as_str)
}

/// Returns the text of an error of a write, with the way to recover from a lack of space.
pub(crate) fn with_remedy(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => format!("{error}: make room and try again"),
        io::ErrorKind::FileTooLarge => {
            format!("{error}: write to another file system, or raise the limit of this shell (ulimit -f)")
        }
        _ => error.to_string(),
    }
}

/// Prints an error as one line on stderr.
pub(crate) fn complain(text: &str) {
    let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
    let _ = writeln!(io::stderr().lock(), "shardex: {text}");
}

/// Returns a `shardex` command line, quoted for a shell.
pub(crate) fn command(words: &[&OsStr]) -> String {
    let mut line = String::from("shardex");
    for word in words {
        let word = word.to_string_lossy();
        let plain = |c: char| c.is_alphanumeric() || "-_./:,+=@%".contains(c);
        if !word.is_empty() && word.chars().all(plain) {
            line.push_str(&format!(" {word}"))
        } else {
            line.push_str(&format!(" '{}'", word.replace('\'', r"'\''")))
        }
    }
    line
}

/// Formats a duration in milliseconds.
pub(crate) fn ms(time: Duration) -> String {
    format!("{:.2} ms", time.as_secs_f64() * 1e3)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_is_quoted_where_a_shell_would_not_leave_it_alone() {
        let words = ["ingest", "a b", "it's", "", "x.npy", "3..7"].map(OsStr::new);
        assert_eq!(command(&words), r"shardex ingest 'a b' 'it'\''s' '' x.npy 3..7");
    }
}
