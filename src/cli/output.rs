//! What goes to stdout and stderr. A reader who has gone away is no reason to panic.

use std::{
    io::{self, IsTerminal as _, Write as _},
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
pub(crate) fn line(text: &str) {
    let mut out = io::stdout().lock();
    // An error here means that nobody reads.
    drop(writeln!(out, "{text}").and_then(|()| out.flush()));
}

/// The one line of an error.
pub(crate) fn complain(text: &str) {
    let text = text.replace('\n', " ");
    drop(writeln!(io::stderr().lock(), "shardex: {text}"));
}

/// Milliseconds, for people.
pub(crate) fn ms(time: Duration) -> String {
    format!("{:.2} ms", time.as_secs_f64() * 1e3)
}
