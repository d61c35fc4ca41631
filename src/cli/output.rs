//! What goes to stdout and stderr. A reader who has gone away is no reason to panic.

use std::{
    ffi::OsStr,
    io::{self, IsTerminal as _, Write as _},
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use indicatif::{ProgressBar, ProgressStyle};
use serde_json::Value;

/// How a command speaks.
#[derive(Debug)]
pub(crate) struct Output {
    json: bool,
}

impl Output {
    pub(crate) fn new(json: bool) -> Self {
        Self { json }
    }

    /// Whether only a JSON object is wanted.
    pub(crate) fn is_json(&self) -> bool {
        self.json
    }

    /// The result: `object` on one line with `--json`, else `text`.
    pub(crate) fn result(&self, object: &Value, text: &str) {
        if self.json { line(&object.to_string()) } else { line(text) }
    }

    /// Something a person may want to know.
    pub(crate) fn say(&self, text: &str) {
        if !self.json {
            line(text);
        }
    }

    /// A progress bar on stderr, if that is a terminal and a person watches.
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

/// A line on stdout, handed over at once.
///
/// A reader who has gone away wants no more, and that is fine. A line that cannot be written for another reason, such as a
/// full disk, makes the command fail at its end.
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

/// Whether the reader of stdout has gone away.
pub(crate) fn reader_is_gone() -> bool {
    GONE.load(Ordering::Relaxed)
}

/// Whether something could not be written to stdout.
pub(crate) fn is_unwritten() -> bool {
    UNWRITTEN.load(Ordering::Relaxed)
}

/// The one line of an error.
pub(crate) fn complain(text: &str) {
    let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
    drop(writeln!(io::stderr().lock(), "shardex: {text}"));
}

/// A command of this tool as a shell takes it.
pub(crate) fn command(words: &[&OsStr]) -> String {
    let mut line = String::from("shardex");
    for word in words {
        let word = word.to_string_lossy();
        let plain = |c: char| c.is_alphanumeric() || "-_./:,+=@%".contains(c);
        match !word.is_empty() && word.chars().all(plain) {
            true => line.push_str(&format!(" {word}")),
            false => line.push_str(&format!(" '{}'", word.replace('\'', r"'\''"))),
        }
    }
    line
}

/// Milliseconds, for people.
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
