//! Output to stdout and stderr. A closed stdout doesn't cause a panic.

use std::{
    ffi::OsStr,
    io::{self, IsTerminal as _, Write as _},
    sync::atomic::{AtomicBool, Ordering},
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
    if let Err(error) = writeln!(out, "{text}").and_then(|()| out.flush()) {
        if error.kind() == io::ErrorKind::BrokenPipe {
            GONE.store(true, Ordering::Relaxed);
        } else {
            UNWRITTEN.store(true, Ordering::Relaxed);
        }
    }
}

static GONE: AtomicBool = AtomicBool::new(false);
static UNWRITTEN: AtomicBool = AtomicBool::new(false);

/// Reports whether the reader of stdout has closed the pipe.
pub(crate) fn reader_is_gone() -> bool {
    GONE.load(Ordering::Relaxed)
}

/// Reports whether a write to stdout failed.
pub(crate) fn is_unwritten() -> bool {
    UNWRITTEN.load(Ordering::Relaxed)
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
