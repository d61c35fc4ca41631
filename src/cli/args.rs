//! The arguments.

use std::{ops::Range, path::PathBuf};

use clap::{Args, Parser, Subcommand, ValueEnum};
use shardex::Metric;

/// Rows per batch of an ingest that names none.
pub(crate) const BATCH: usize = 1_000;

/// A vector index that never loses what it acknowledged.
#[derive(Debug, Parser)]
#[command(name = "shardex", version)]
pub(crate) struct Cli {
    /// Print one JSON object on one line, the last on stdout.
    #[arg(long, global = true)]
    pub(crate) json: bool,
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Add the rows of an .npy file; a new index is made if there is none.
    Ingest(Ingest),
    /// Search for the rows of an .npy file.
    Search(Search),
    /// Remove documents.
    Remove(Remove),
    /// Make everything durable in the shards and let the log go.
    Flush(Dir),
    /// Make the cells anew, of all postings: groups of codes that let a search look at few of them.
    Optimize(Dir),
    /// Print figures.
    Stats(Dir),
    /// Look for contradictions.
    Check(Check),
    /// Ingest, search, get killed, recover, and prove that nothing was lost.
    Demo,
    /// Measure durable writes, searches beside writes, and writes beside flushes, on data made from a seed.
    Bench(Bench),
    /// What `bench` starts and kills.
    #[command(hide = true)]
    BenchChild(BenchChild),
    /// What `demo` starts and kills.
    #[command(hide = true)]
    DemoChild(DemoChild),
}

#[derive(Debug, Args)]
pub(crate) struct Dir {
    /// The index's directory.
    pub(crate) dir: PathBuf,
}

/// How `ingest` says how far it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Progress {
    /// A bar, on a terminal.
    Bar,
    /// A line `committed ROWS` on stdout after each acknowledged durable batch.
    Plain,
}

#[derive(Debug, Args)]
#[command(allow_negative_numbers = true)]
pub(crate) struct Ingest {
    /// The index's directory; its parent must exist.
    pub(crate) dir: PathBuf,
    /// The vectors: a two-dimensional .npy file of floats or integers, which become f32; `-` is stdin.
    pub(crate) file: PathBuf,
    /// How near two vectors are: cosine, l2 or dot. Default: cosine for a new index, else the index's own.
    #[arg(long)]
    pub(crate) metric: Option<Metric>,
    /// Most postings per shard. Default: 512 for a new index, else the index's own.
    #[arg(long, value_name = "N")]
    pub(crate) shard_size: Option<usize>,
    /// Rows per batch.
    #[arg(long, value_name = "N", default_value_t = BATCH, value_parser = up_to::<1_000_000>)]
    pub(crate) batch: usize,
    /// Make each batch durable before the next.
    #[arg(long)]
    pub(crate) commit_each: bool,
    /// Flush after every so many batches.
    #[arg(long, value_name = "BATCHES", value_parser = positive)]
    pub(crate) flush_each: Option<usize>,
    /// Bytes of log above which a flush starts by itself; 0: never.
    #[arg(long, value_name = "BYTES")]
    pub(crate) flush_wal_bytes: Option<u64>,
    /// Document id of row 0 of the file; the others follow.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) first_id: u128,
    /// First row to add, as an ingest that stopped names it; ids still count from row 0.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) from_row: usize,
    /// Make the cells anew at the end, whatever there is. Default: where a quarter of the postings or more are in none.
    #[arg(long)]
    pub(crate) optimize: bool,
    /// Leave the cells as they are at the end.
    #[arg(long, conflicts_with = "optimize")]
    pub(crate) no_optimize: bool,
    /// How to say how far it is.
    #[arg(long, value_enum, default_value_t = Progress::Bar)]
    pub(crate) progress: Progress,
}

#[derive(Debug, Args)]
#[command(allow_negative_numbers = true)]
pub(crate) struct Search {
    /// The index's directory.
    pub(crate) dir: PathBuf,
    /// The queries: an .npy file of floats or integers, a row per query, or a single vector; `-` is stdin.
    pub(crate) queries: PathBuf,
    /// Results per query.
    #[arg(short, default_value_t = 10, value_parser = positive)]
    pub(crate) k: usize,
    /// Shards to scan per query.
    #[arg(long, value_name = "N", value_parser = positive, conflicts_with = "exact")]
    pub(crate) slop: Option<usize>,
    /// Share of the true nearest to look for, above 0 and at most 1; with --slop at most as much as that is looked at.
    #[arg(long, value_name = "SHARE", value_parser = share, conflicts_with = "exact")]
    pub(crate) recall: Option<f32>,
    /// Scan every shard.
    #[arg(long)]
    pub(crate) exact: bool,
    /// Threads that search, at most 1024; with `--batched`, 1 or else all cores.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = up_to::<1_024>)]
    pub(crate) threads: usize,
    /// Ask all queries in one call.
    #[arg(long)]
    pub(crate) batched: bool,
    /// True nearest ids, an .npy file of integers, a row per query; its first k count.
    #[arg(long, value_name = "IDS.npy")]
    pub(crate) truth: Option<PathBuf>,
    /// Write the ids found to a new file, as i64, a row of k per query; -1 where there are fewer.
    #[arg(long, value_name = "IDS.npy")]
    pub(crate) out: Option<PathBuf>,
    /// Let --out replace a file that exists.
    #[arg(long, requires = "out")]
    pub(crate) force: bool,
    /// Queries whose hits are printed, the first ones. Default: 20, with --json all.
    #[arg(long, value_name = "N", conflicts_with = "quiet")]
    pub(crate) show: Option<usize>,
    /// Print figures only, no hits.
    #[arg(long, short)]
    pub(crate) quiet: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Remove {
    /// The index's directory.
    pub(crate) dir: PathBuf,
    /// Document ids A up to, not including, B.
    #[arg(long, value_name = "A..B", value_parser = id_range, allow_hyphen_values = true)]
    pub(crate) ids: Range<u128>,
}

#[derive(Debug, Args)]
pub(crate) struct Check {
    /// The index's directory.
    pub(crate) dir: PathBuf,
    /// Read every byte.
    #[arg(long)]
    pub(crate) full: bool,
}

#[derive(Debug, Args)]
#[command(allow_negative_numbers = true)]
pub(crate) struct Bench {
    /// Where the indexes are made, and removed again. Default: the system's directory for temporary files.
    pub(crate) dir: Option<PathBuf>,
    /// Rows of the large index. Default: 100,000; with `--hard`, a number of its own for each kind of data.
    #[arg(long, value_name = "N", value_parser = up_to::<10_000_000>)]
    pub(crate) rows: Option<usize>,
    /// Show only what recall is reached on data that is hard for codes: of all kinds, or of those named, separated by commas.
    #[arg(long, value_name = "KINDS", num_args = 0..=1, require_equals = true, default_missing_value = "")]
    #[arg(conflicts_with_all = ["data", "grow", "growing"])]
    pub(crate) hard: Option<String>,
    /// Show only what recall is reached, and how fast, while an index grows from nothing to so many rows in batches of 1,000.
    #[arg(long, value_name = "N", num_args = 0..=1, require_equals = true, default_missing_value = "200000")]
    #[arg(value_parser = up_to::<10_000_000>, conflicts_with_all = ["rows", "grow"])]
    pub(crate) growing: Option<usize>,
    /// With `--hard`: what the data are made from. Default: another one each time, which is printed.
    #[arg(long, value_name = "N", requires = "hard")]
    pub(crate) seed: Option<u64>,
    /// With `--hard`: how often each index is replaced as a whole.
    #[arg(long, value_name = "N", default_value_t = 10, requires = "hard", value_parser = up_to::<1_000>)]
    pub(crate) turns: usize,
    /// With `--hard`: indexes of each kind and metric, each with a rotation of its own.
    #[arg(long, value_name = "N", default_value_t = 3, requires = "hard", value_parser = up_to::<100>)]
    pub(crate) ids: usize,
    /// Show only how the cost of an add grows from 10,000 rows to so many; loading a million takes minutes.
    #[arg(long, value_name = "N", num_args = 0..=1, require_equals = true, default_missing_value = "100000")]
    #[arg(value_parser = positive, conflicts_with = "data")]
    pub(crate) grow: Option<usize>,
    /// Rounds; the medians are printed.
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = up_to::<1_000>)]
    pub(crate) rounds: usize,
    /// Vectors to measure with, a two-dimensional .npy file, its first `--rows`; default: made-up ones.
    #[arg(long, value_name = "FILE.npy")]
    pub(crate) data: Option<PathBuf>,
    /// Queries, another such file; default: some of the vectors.
    #[arg(long, value_name = "FILE.npy", requires = "data")]
    pub(crate) queries: Option<PathBuf>,
    /// True nearest ids of the queries, an .npy file of integers; default: found by an exact search.
    #[arg(long, value_name = "IDS.npy", requires = "queries")]
    pub(crate) truth: Option<PathBuf>,
    /// The metric for `--data`. Default: dot.
    #[arg(long, requires = "data")]
    pub(crate) metric: Option<shardex::Metric>,
}

impl Bench {
    /// Rows of the large index.
    pub(crate) fn rows(&self) -> usize {
        self.rows.or(self.growing).unwrap_or(100_000)
    }
}

#[derive(Debug, Args)]
pub(crate) struct BenchChild {
    pub(crate) dir: PathBuf,
}

#[derive(Debug, Args)]
pub(crate) struct DemoChild {
    pub(crate) dir: PathBuf,
    pub(crate) seed: u64,
}

fn positive(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(0) => Err("0 is not enough; give at least 1".into()),
        Ok(n) => Ok(n),
        Err(error) => Err(format!("{error}; give a whole number of at least 1")),
    }
}

/// What costs memory or threads before anything is known of it has a bound.
fn up_to<const MOST: usize>(text: &str) -> Result<usize, String> {
    match positive(text)? {
        n if n > MOST => Err(format!("{n} is too many; give at most {MOST}")),
        n => Ok(n),
    }
}

fn share(text: &str) -> Result<f32, String> {
    match text.parse() {
        Ok(share) if share > 0.0 && share <= 1.0 => Ok(share),
        _ => Err("give a number above 0 and at most 1".into()),
    }
}

fn id_range(text: &str) -> Result<Range<u128>, String> {
    let (from, to) = text.split_once("..").ok_or("give two ids as A..B")?;
    let id = |text: &str| text.parse::<u128>().map_err(|error| format!("`{text}`: {error}; give two ids as A..B"));
    let range = id(from)?..id(to)?;
    match range.is_empty() {
        true => Err(format!("{text} holds no id: A must be less than B")),
        false => Ok(range),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_definition_is_sound() {
        use clap::CommandFactory as _;
        Cli::command().debug_assert();
    }

    #[test]
    fn bounds() {
        assert_eq!((up_to::<7>("7"), share("1")), (Ok(7), Ok(1.0)));
        for bad in ["0", "8", "-1", "1.5", "", "99999999999999999999"] {
            assert!(up_to::<7>(bad).is_err(), "{bad}");
        }
        for bad in ["0", "-0.5", "1.01", "NaN", "inf", "all"] {
            assert!(share(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn id_ranges() {
        assert_eq!(id_range("3..7"), Ok(3..7));
        for bad in ["", "3", "7..3", "3..3", "a..b", "-1..4", "1...4"] {
            assert!(id_range(bad).is_err(), "{bad}");
        }
    }
}
