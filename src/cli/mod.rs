//! Command-line tool `shardex`: commands, exit codes, output.
//!
//! Exit codes: 0 for success. 1 if a check found damage, a promise was broken, a recall was missed or `get` found no
//! posting. 2 for an error, with one line on stderr that names the remedy. 130 after SIGINT, 143 after SIGTERM.

mod admin;
mod args;
mod backup;
mod backup_args;
mod bench;
mod bench_data;
mod check;
mod demo;
mod dtype;
mod export;
mod filter;
mod growing;
mod grown;
mod growth;
mod hard;
mod hits;
mod ids;
mod ingest;
mod interrupt;
mod kinds;
mod measure;
mod npy;
mod output;
mod reading;
mod rows;
mod scan_rate;
mod search;
mod source;
mod tally;
mod target;
mod top;
mod vecs;

use std::process::ExitCode;

use clap::Parser as _;
use shardex::ShardexError;

use args::{Cli, Command};
use output::Output;

/// Answer of a command that ran without an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// Success.
    Yes,
    /// The check has findings, a promise was broken, a target recall was missed, or there is no such posting.
    No,
    /// A signal stopped the command. The value is the exit code.
    Stopped(u8),
}

/// Error of a command, as one line of text.
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

/// Parses the arguments, runs the command, and returns the exit code.
pub(crate) fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        // Output of `--help` and `--version`.
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
        Command::Get(args) => reading::get(args, &output),
        Command::Count(args) => reading::count(args, &output),
        Command::Scan(args) if args.measure => scan_rate::measure(&args.dir, &output),
        Command::Scan(args) => reading::scan(args, &output),
        Command::Export(args) => export::run(args, &output),
        Command::Remove(args) => admin::remove(args, &output),
        Command::Flush(args) => admin::flush(args, &output),
        Command::Optimize(args) => admin::optimize(args, &output),
        Command::Compact(args) => admin::compact(args, &output),
        Command::Purge(args) => admin::purge(args, &output),
        Command::Backup(args) => backup::backup(args, &output),
        Command::Restore(args) => backup::restore(args, &output),
        Command::Verify(args) => backup::verify(args, &output),
        Command::Stats(args) => admin::stats(args, &output),
        Command::Top(args) => top::run(args, &output),
        Command::Check(args) => check::run(args, &output),
        Command::Bench(args) => bench::run(args, &output),
        Command::BenchChild(args) => bench::child(args),
        Command::Demo => demo::run(&output),
        Command::DemoChild(args) => demo::child(args),
    };
    let outcome = match (outcome, output::unwritten()) {
        (Ok(_), Some(why)) => Err(Failure(format!("the result could not be written to stdout: {why}"))),
        (outcome, _) => outcome,
    };
    match outcome {
        Ok(Answer::Yes) => ExitCode::SUCCESS,
        Ok(Answer::No) => ExitCode::from(1),
        Ok(Answer::Stopped(code)) => ExitCode::from(code),
        Err(Failure(line)) => {
            output::complain(&line);
            // An error after a signal is a consequence of the signal.
            ExitCode::from(interrupt::code().unwrap_or(2))
        }
    }
}

/// Returns a usage error as one line: the error without clap's usage text, and a pointer to the help.
fn usage(error: &clap::Error) -> String {
    use clap::error::ErrorKind;
    let text = error.to_string();
    let what = match error.kind() {
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => "no command given",
        _ => text.split("\n\n").next().unwrap_or_default().trim_start_matches("error: "),
    };
    format!("{what}; see `shardex --help`")
}

/// Runs a future to its end, on the current thread if `threads` is 1, else on a runtime with `threads` worker threads.
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
