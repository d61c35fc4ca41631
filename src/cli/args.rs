//! Arguments of the command-line tool. The doc comments of arguments are their help texts.

use std::{ops::Range, path::PathBuf};

use clap::{Args, Parser, Subcommand, ValueEnum};
use shardex::{DocumentId, Filter, Metric, PostingKey, VectorEncoding};

use super::{
    backup_args::{BackupCommand, Restore, Verify},
    filter,
    ids::{id_range, posting_key, raw_id},
};

/// Default number of rows per batch of an ingest.
pub(crate) const BATCH: usize = 1_000;

/// Vector index that never loses an acknowledged write.
#[derive(Debug, Parser)]
#[command(name = "shardex", version)]
pub(crate) struct Cli {
    /// Print the result as one JSON object on one line, the last line on stdout.
    #[arg(long, global = true)]
    pub(crate) json: bool,
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Add the rows of an .npy, .fvecs or .bvecs file to an index. Create the index if it doesn't exist.
    Ingest(Ingest),
    /// Search an index for the nearest neighbours of the rows of an .npy, .fvecs or .bvecs file.
    Search(Search),
    /// Print the postings of a document. Exit with 1 if there is none.
    Get(Lookup),
    /// Count the postings of a document, or the postings and the documents of an index.
    Count(Count),
    /// Print the keys of all postings, one per line: ID:START:LENGTH.
    Scan(Scan),
    /// Write the vectors of all postings to an .npy or .fvecs file, and their keys to another.
    Export(FileOutput),
    /// Remove documents by id.
    Remove(Remove),
    /// Make all writes durable in the shards, and free the part of the WAL that no recovery needs any more.
    Flush(Dir),
    /// Rebuild the cells from all postings, so that a search scans few codes.
    Optimize(Dir),
    /// Give the space of removed postings and all free space back to the file system.
    Compact(Dir),
    /// Erase removed postings and payloads from all files of an index.
    Purge(Dir),
    /// Back up an index to a new directory.
    Backup(BackupCommand),
    /// Make an index from a backup, in a new directory.
    Restore(Restore),
    /// Read a whole backup and compare it with its hashes. Exit with 1 if it is damaged.
    Verify(Verify),
    /// Print statistics of an index.
    Stats(Dir),
    /// Show the figures of an index that another process has open, such as `ingest`.
    Top(Top),
    /// Check an index for damage and inconsistencies.
    Check(Check),
    /// Ingest, search, get killed, recover, and prove that no acknowledged write was lost.
    Demo,
    /// Measure searches, ingest, flush, open, recovery and latencies, on generated data or on given vectors.
    Bench(Bench),
    /// Process that `bench` starts and kills.
    #[command(hide = true)]
    BenchChild(BenchChild),
    /// Process that `demo` starts and kills.
    #[command(hide = true)]
    DemoChild(DemoChild),
}

#[derive(Debug, Args)]
pub(crate) struct Dir {
    /// Directory of the index.
    pub(crate) dir: PathBuf,
}

/// Form in which `ingest` reports progress.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Progress {
    /// Progress bar on stderr, if that is a terminal and without --json.
    Bar,
    /// Line `committed ROWS` on stdout after each batch acknowledged as durable.
    Plain,
}

#[derive(Debug, Args)]
#[command(allow_negative_numbers = true)]
pub(crate) struct Ingest {
    /// Directory of the index. Its parent must exist.
    pub(crate) dir: PathBuf,
    /// Vectors: a two-dimensional .npy file of floats or integers, converted to f32, or an .fvecs or .bvecs file. `-`
    /// is stdin, with an .npy array.
    pub(crate) file: PathBuf,
    /// Metric: cosine, l2 or dot. Default: cosine for a new index, otherwise the metric of the index.
    #[arg(long)]
    pub(crate) metric: Option<Metric>,
    /// Encoding of stored vectors: f32, f16 (half the bytes) or int8 (a quarter). Default: f32 for a new index, otherwise
    /// the encoding of the index.
    #[arg(long)]
    pub(crate) encoding: Option<VectorEncoding>,
    /// Maximum postings per shard. Default: 512 for a new index, otherwise the value of the index.
    #[arg(long, value_name = "N")]
    pub(crate) shard_size: Option<usize>,
    /// Rows per batch.
    #[arg(long, value_name = "N", default_value_t = BATCH, value_parser = up_to::<1_000_000>)]
    pub(crate) batch: usize,
    /// Make each batch durable before the next.
    #[arg(long)]
    pub(crate) commit_each: bool,
    /// Flush after every BATCHES batches.
    #[arg(long, value_name = "BATCHES", value_parser = positive)]
    pub(crate) flush_each: Option<usize>,
    /// Bytes of WAL above which a flush starts automatically. 0 turns it off.
    #[arg(long, value_name = "BYTES")]
    pub(crate) flush_wal_bytes: Option<u64>,
    /// Document id of row 0 of the file: decimal, 0x and hexadecimal, or a UUID. The other rows get the ids that
    /// follow.
    #[arg(long, value_name = "ID", default_value_t = 0, value_parser = raw_id)]
    pub(crate) first_id: u128,
    /// Tags of the postings: an .npy array of one non-negative integer per row of the vectors. Default: none.
    #[arg(long, value_name = "TAGS.npy")]
    pub(crate) tags: Option<PathBuf>,
    /// First row to add, as reported by an ingest that stopped. Ids still count from row 0.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) from_row: usize,
    /// Rebuild the cells at the end in any case. Default: rebuild if at least a quarter of the postings are unindexed.
    #[arg(long)]
    pub(crate) optimize: bool,
    /// Don't rebuild the cells at the end.
    #[arg(long, conflicts_with = "optimize")]
    pub(crate) no_optimize: bool,
    /// Form of the progress report.
    #[arg(long, value_enum, default_value_t = Progress::Bar)]
    pub(crate) progress: Progress,
}

#[derive(Debug, Args)]
#[command(allow_negative_numbers = true)]
pub(crate) struct Search {
    /// Directory of the index.
    pub(crate) dir: PathBuf,
    /// Queries: an .npy file of floats or integers with one query per row, or a single vector, or an .fvecs or .bvecs
    /// file. `-` is stdin, with an .npy array.
    pub(crate) queries: PathBuf,
    /// Results per query.
    #[arg(short, default_value_t = 10, value_parser = positive)]
    pub(crate) k: usize,
    /// Limit of the work per query: as many postings as N shards hold. Without cells, the N nearest shards.
    #[arg(long, value_name = "N", value_parser = positive, conflicts_with = "exact")]
    pub(crate) slop: Option<usize>,
    /// Target recall: share of the true nearest neighbours to find, above 0 and at most 1. Together with --slop, --slop
    /// bounds the work.
    #[arg(long, value_name = "SHARE", value_parser = share, conflicts_with = "exact")]
    pub(crate) recall: Option<f32>,
    /// Scan every shard.
    #[arg(long)]
    pub(crate) exact: bool,
    /// Search only what passes: all(TAGS), any(TAGS), none(TAGS), ids(A,B..C) or ids(@FILE), with `and`, `or`, `not` and
    /// parentheses. Such as "any(0x3) and not ids(5..9)".
    #[arg(long, value_name = "FILTER", value_parser = filter::parse)]
    pub(crate) filter: Option<Filter>,
    /// Find k documents instead of postings, each with its M nearest postings at most.
    #[arg(long, value_name = "M", value_parser = positive)]
    pub(crate) per_document: Option<usize>,
    /// Find only what has at least this score.
    #[arg(long, value_name = "SCORE")]
    pub(crate) min_score: Option<f32>,
    /// Explain how the search for the first query ran.
    #[arg(long)]
    pub(crate) explain: bool,
    /// Search threads, at most 1024. With `--batched`, 1 is one thread and more is all cores.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = up_to::<1_024>)]
    pub(crate) threads: usize,
    /// Search for all queries in one call.
    #[arg(long)]
    pub(crate) batched: bool,
    /// Ids of the true nearest neighbours, to compute the recall: an .npy file of integers, or an .ivecs file, with one
    /// row per query, of which the first k count.
    #[arg(long, value_name = "IDS.npy")]
    pub(crate) truth: Option<PathBuf>,
    /// Write the ids found to a new file, as i64, one row of k ids per query. Missing results are -1.
    #[arg(long, value_name = "IDS.npy")]
    pub(crate) out: Option<PathBuf>,
    /// Allow --out to replace an existing file.
    #[arg(long, requires = "out")]
    pub(crate) force: bool,
    /// Print the hits of the first N queries. Default: 20, with --json all.
    #[arg(long, value_name = "N", conflicts_with = "quiet")]
    pub(crate) show: Option<usize>,
    /// Print statistics only, no hits.
    #[arg(long, short)]
    pub(crate) quiet: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Remove {
    /// Directory of the index.
    pub(crate) dir: PathBuf,
    /// Range of document ids: A inclusive, B exclusive. Each is decimal, 0x and hexadecimal, or a UUID.
    #[arg(long, value_name = "A..B", value_parser = id_range, allow_hyphen_values = true)]
    pub(crate) ids: Range<u128>,
}

#[derive(Debug, Args)]
#[command(allow_negative_numbers = true)]
pub(crate) struct Lookup {
    /// Directory of the index.
    pub(crate) dir: PathBuf,
    /// Document id: decimal, 0x and hexadecimal, or a UUID.
    pub(crate) id: DocumentId,
    /// Print only postings with this start.
    #[arg(long, value_name = "N")]
    pub(crate) start: Option<u32>,
    /// Print only postings of this length.
    #[arg(long, value_name = "N")]
    pub(crate) length: Option<u32>,
    /// Print all components of each vector, not only the first. --json always does.
    #[arg(long)]
    pub(crate) vectors: bool,
}

#[derive(Debug, Args)]
#[command(allow_negative_numbers = true)]
pub(crate) struct Count {
    /// Directory of the index.
    pub(crate) dir: PathBuf,
    /// Document id: decimal, 0x and hexadecimal, or a UUID. Default: count all postings, and read the record of each to
    /// count the documents. `stats` tells the number of postings at once.
    pub(crate) id: Option<DocumentId>,
}

#[derive(Debug, Args)]
#[command(allow_negative_numbers = true)]
pub(crate) struct Scan {
    /// Directory of the index.
    pub(crate) dir: PathBuf,
    /// List in the order of keys: id, start, length. Every few ten thousand postings of the list cost a pass over the
    /// records of all. Default: in the order of the file, in one pass.
    #[arg(long)]
    pub(crate) by_key: bool,
    /// Begin with the first key after this one, such as the last key of an earlier scan.
    #[arg(long, value_name = "ID:START:LENGTH", value_parser = posting_key, requires = "by_key")]
    pub(crate) after: Option<PostingKey>,
    /// Stop after N postings.
    #[arg(long, value_name = "N")]
    pub(crate) limit: Option<u64>,
    /// Print the vectors too.
    #[arg(long)]
    pub(crate) vectors: bool,
    /// List nothing: measure the rate at which a scan reads every vector and compares every checksum, beside that of a plain
    /// read of the data file.
    #[arg(long, conflicts_with_all = ["by_key", "limit", "vectors"])]
    pub(crate) measure: bool,
}

/// Number type of exported vectors.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum OutputDtype {
    /// Numbers as they are stored.
    F32,
    /// Numbers rounded to the nearest f16. A number that is too large for one is an error.
    F16,
}

#[derive(Debug, Args)]
pub(crate) struct FileOutput {
    /// Directory of the index.
    pub(crate) dir: PathBuf,
    /// File to write the vectors to, one row per posting, in the order of `scan`. Its name ends in .npy, for a
    /// two-dimensional array, or in .fvecs.
    pub(crate) file: PathBuf,
    /// Write the keys of the postings too, in the same order: an array of u64 with four columns, which are the low and
    /// the high half of the id, the start and the length.
    #[arg(long, value_name = "IDS.npy")]
    pub(crate) ids: Option<PathBuf>,
    /// Number type of the vectors in an .npy file.
    #[arg(long, value_enum, default_value_t = OutputDtype::F32)]
    pub(crate) dtype: OutputDtype,
    /// Replace existing files.
    #[arg(long)]
    pub(crate) force: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Top {
    /// Directory of the index.
    pub(crate) dir: PathBuf,
    /// Print the figures once. Default: each second until a signal.
    #[arg(long)]
    pub(crate) once: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Check {
    /// Directory of the index.
    pub(crate) dir: PathBuf,
    /// Read every byte.
    #[arg(long)]
    pub(crate) full: bool,
}

#[derive(Debug, Args)]
#[command(allow_negative_numbers = true)]
pub(crate) struct Bench {
    /// Directory in which the indexes are created and removed again. Default: the system's directory for temporary
    /// files.
    pub(crate) dir: Option<PathBuf>,
    /// Rows of the large index. Default: 100,000; with `--hard`, a separate number for each kind of data.
    #[arg(long, value_name = "N", value_parser = up_to::<10_000_000>)]
    pub(crate) rows: Option<usize>,
    /// Measure only the recall on data that is hard for codes: all kinds, or the named kinds, separated by commas.
    #[arg(long, value_name = "KINDS", num_args = 0..=1, require_equals = true, default_missing_value = "")]
    #[arg(conflicts_with_all = ["data", "grow", "growing"])]
    pub(crate) hard: Option<String>,
    /// Measure only the recall and the search rate while an index grows from empty to N rows in batches of 1,000.
    #[arg(long, value_name = "N", num_args = 0..=1, require_equals = true, default_missing_value = "200000")]
    #[arg(value_parser = up_to::<10_000_000>, conflicts_with_all = ["rows", "grow"])]
    pub(crate) growing: Option<usize>,
    /// With `--hard`: seed of the data. Default: a different seed in each run, which is printed.
    #[arg(long, value_name = "N", requires = "hard")]
    pub(crate) seed: Option<u64>,
    /// With `--hard`: number of times that each index is replaced completely.
    #[arg(long, value_name = "N", default_value_t = 10, requires = "hard", value_parser = up_to::<1_000>)]
    pub(crate) turns: usize,
    /// With `--hard`: indexes per kind and metric, each with its own rotation.
    #[arg(long, value_name = "N", default_value_t = 3, requires = "hard", value_parser = up_to::<100>)]
    pub(crate) ids: usize,
    /// Measure only how the cost of an add grows from 10,000 rows to N rows. Loading a million takes minutes.
    #[arg(long, value_name = "N", num_args = 0..=1, require_equals = true, default_missing_value = "100000")]
    #[arg(value_parser = positive, conflicts_with = "data")]
    pub(crate) grow: Option<usize>,
    /// Rounds. The medians are printed.
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = up_to::<1_000>)]
    pub(crate) rounds: usize,
    /// Vectors to measure with: a two-dimensional .npy file, or an .fvecs or .bvecs file, of which the first `--rows`
    /// rows are used. Default: generated vectors.
    #[arg(long, value_name = "FILE.npy")]
    pub(crate) data: Option<PathBuf>,
    /// Queries: a file like that of `--data`. Default: some of the vectors.
    #[arg(long, value_name = "FILE.npy", requires = "data")]
    pub(crate) queries: Option<PathBuf>,
    /// Ids of the true nearest neighbours of the queries: an .npy file of integers, or an .ivecs file. Default: computed
    /// from the given vectors.
    #[arg(long, value_name = "IDS.npy", requires = "queries")]
    pub(crate) truth: Option<PathBuf>,
    /// Metric for `--data`. Default: dot.
    #[arg(long, requires = "data")]
    pub(crate) metric: Option<shardex::Metric>,
    /// Encoding of stored vectors: f32, f16 or int8. With the last two, the recall is that among the given vectors, and an
    /// exact search shows what rounding has lost.
    #[arg(long, default_value_t, conflicts_with_all = ["hard", "grow", "growing"])]
    pub(crate) encoding: VectorEncoding,
}

impl Bench {
    /// Returns the number of rows of the large index: `--rows`, or else `--growing`, or else 100,000.
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

/// Parses a whole number from 1 to `MOST`. The bound is for arguments that cost memory or threads before any input is
/// read.
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
        assert_eq!(id_range("0xf..00000000-0000-0000-0000-000000000020"), Ok(15..32));
        for bad in ["", "3", "7..3", "3..3", "a..b", "-1..4", "1...4", "0x..4"] {
            assert!(id_range(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn keys() {
        assert_eq!(posting_key("7:0:4294967295"), Ok(PostingKey::new(7u32, 0, u32::MAX)));
        assert_eq!(posting_key("0xff:1:2"), Ok(PostingKey::new(255u32, 1, 2)));
        for bad in ["", "7", "7:0", "7:0:1:2", "7:0:4294967296", "x:0:1", "7:-1:1", "7::1"] {
            assert!(posting_key(bad).is_err_and(|error| error.contains("ID:START:LENGTH")), "{bad}");
        }
    }
}
