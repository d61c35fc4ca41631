//! `shardex`: commands, exit codes, output.
//!
//! Exit codes: 0 fine; 1 the check found something, or the answer is no; 2 an error, one line on stderr that says what
//! to do; 130 interrupted, 143 asked to terminate.

mod admin;
mod args;
mod bench;
mod check;
mod demo;
mod dtype;
mod growing;
mod grown;
mod growth;
mod hard;
mod hits;
mod ingest;
mod interrupt;
mod kinds;
mod measure;
mod npy;
mod output;
mod search;
mod source;
mod target;

use std::process::ExitCode;

use clap::Parser as _;
use shardex::ShardexError;

use args::{Cli, Command};
use output::Output;

/// What a command came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// Fine.
    Yes,
    /// The check found something, or a promise was broken.
    No,
    /// Somebody stopped it: the exit code that says so.
    Stopped(u8),
}

/// Why a command could not be carried out: one line.
#[derive(Debug)]
pub(crate) struct Failure(pub(crate) String);

impl From<ShardexError> for Failure {
    fn from(error: ShardexError) -> Self {
        Self(error.to_string())
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        Self(error.to_string())
    }
}

pub(crate) type Outcome = Result<Answer, Failure>;

/// Parses the arguments, runs the command, and turns what came of it into an exit code.
pub(crate) fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        // Help and version, asked for.
        Err(asked) if !asked.use_stderr() => {
            output::line(asked.to_string().trim_end());
            return ExitCode::SUCCESS;
        }
        Err(error) => {
            output::complain(&usage(&error));
            return ExitCode::from(2);
        }
    };
    let output = Output::new(cli.json);
    let outcome = match &cli.command {
        Command::Ingest(args) => ingest::run(args, &output),
        Command::Search(args) => search::run(args, &output),
        Command::Remove(args) => admin::remove(args, &output),
        Command::Flush(args) => admin::flush(args, &output),
        Command::Optimize(args) => admin::optimize(args, &output),
        Command::Stats(args) => admin::stats(args, &output),
        Command::Check(args) => check::run(args, &output),
        Command::Bench(args) => bench::run(args, &output),
        Command::BenchChild(args) => bench::child(args),
        Command::Demo => demo::run(&output),
        Command::DemoChild(args) => demo::child(args),
    };
    let outcome = match outcome {
        Ok(_) if output::is_unwritten() => Err(Failure("the result could not be written to stdout".into())),
        outcome => outcome,
    };
    match outcome {
        Ok(Answer::Yes) => ExitCode::SUCCESS,
        Ok(Answer::No) => ExitCode::from(1),
        Ok(Answer::Stopped(code)) => ExitCode::from(code),
        Err(Failure(line)) => {
            output::complain(&line);
            // What fails after a signal has failed because of it.
            ExitCode::from(interrupt::code().unwrap_or(2))
        }
    }
}

/// A usage error in one line: what is wrong, without clap's usage text, and where to read more.
fn usage(error: &clap::Error) -> String {
    use clap::error::ErrorKind;
    let text = error.to_string();
    let what = match error.kind() {
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => "no command given",
        _ => text.split("\n\n").next().unwrap_or_default().trim_start_matches("error: "),
    };
    format!("{what}; see `shardex --help`")
}

/// Runs a command's calls; with more threads than one, on as many.
pub(crate) fn block_on<T>(threads: usize, future: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    let mut builder = if threads > 1 {
        tokio::runtime::Builder::new_multi_thread()
    } else {
        tokio::runtime::Builder::new_current_thread()
    };
    if threads > 1 {
        builder.worker_threads(threads);
    }
    builder.enable_time().build()?.block_on(future)
}
