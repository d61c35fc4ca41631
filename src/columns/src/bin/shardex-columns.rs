//! Command-line tool `shardex-columns`: Arrow and Parquet files into an index, and an index into such a file.
//!
//! Exit codes: 0 for success, 2 for an error, with one line on stderr, 130 after SIGINT and 143 after SIGTERM. If a reader
//! panics on damaged bytes, its message precedes that line.

use std::{
    io::{self, IsTerminal as _, Write as _},
    ops::ControlFlow,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use clap::{Parser, Subcommand, ValueEnum};
use indicatif::{ProgressBar, ProgressStyle};
use shardex::{Durability, Metric, OpenOptions, ShardexConfig, ShardexError, VectorEncoding, blocking::Shardex};
use shardex_columns::{
    ColumnNames, ColumnsError, ExportOptions, IngestOptions, Ingested, Observer, ResumePolicy, Table, export, ingest,
};
use signal_hook::consts::{SIGINT, SIGTERM};

/// Loads Arrow and Parquet files into a Shardex index, and writes an index as such a file.
#[derive(Parser)]
#[command(name = "shardex-columns", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Add the rows of Arrow IPC files or streams and of Parquet files.
    ///
    /// The progress is kept in the cursor of the index: the same command continues after an interruption, and adds nothing
    /// of files that are in.
    Ingest(Box<Ingest>),
    /// Write all postings to an Arrow or Parquet file.
    Export(Export),
}

#[derive(clap::Args)]
struct Ingest {
    /// Directory of the index.
    index: PathBuf,
    /// Files. Their first bytes say the format.
    #[arg(required = true)]
    files: Vec<PathBuf>,
    /// Create the index if there is none, with the dimension of the first file.
    #[arg(long)]
    create: bool,
    /// Metric: cosine, l2 or dot. Default: cosine for a new index, otherwise the metric of the index.
    #[arg(long)]
    metric: Option<Metric>,
    /// Encoding of stored vectors: f32, f16 (half the bytes) or int8 (a quarter). Default: f32 for a new index, otherwise
    /// the encoding of the index.
    #[arg(long)]
    encoding: Option<VectorEncoding>,
    /// Column of the vectors: lists of f16, f32 or f64.
    #[arg(long, value_name = "COLUMN", default_value = "vector")]
    vector: String,
    /// Column of the document ids: non-negative integers, 16 bytes, or texts as `shardex get` takes them.
    #[arg(long, value_name = "COLUMN", default_value = "id")]
    id: String,
    /// The texts in the column of the ids are names, as for `DocumentId::of_name`.
    #[arg(long)]
    id_from_name: bool,
    /// Column of the starts of the parts. Without it they are 0.
    #[arg(long, value_name = "COLUMN")]
    start: Option<String>,
    /// Column of the lengths of the parts. Without it they are 1.
    #[arg(long, value_name = "COLUMN")]
    length: Option<String>,
    /// Column of the tags: 64-bit integers. Without it they are 0.
    #[arg(long, value_name = "COLUMN")]
    tags: Option<String>,
    /// Column of the payloads of the documents: byte strings or texts. A null leaves a payload as it is.
    #[arg(long, value_name = "COLUMN")]
    payload: Option<String>,
    /// Read the columns that `export` writes.
    #[arg(long, conflicts_with_all = ["vector", "id", "id_from_name", "start", "length", "tags", "payload"])]
    exported: bool,
    /// When rows become durable: at each batch, at intervals, or at the end.
    #[arg(long, value_enum, default_value_t = DurabilityName::Interval)]
    durability: DurabilityName,
    /// Rows per batch.
    #[arg(long, value_name = "N", default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    batch: u32,
    /// Let a later row replace an earlier one of the same file with the same key, instead of stopping there.
    #[arg(long)]
    allow_duplicates: bool,
    /// Read the files from their first rows, also if rows of them are in.
    #[arg(long)]
    restart: bool,
    /// Neither read nor set the cursor of the index: it belongs to another program.
    #[arg(long, conflicts_with = "restart")]
    no_cursor: bool,
}

#[derive(clap::Args)]
struct Export {
    /// Directory of the index.
    index: PathBuf,
    /// File to write: Arrow IPC if it ends in .arrow, Parquet if in .parquet.
    file: PathBuf,
    /// Write the payloads, too: each in the first row of its document.
    #[arg(long)]
    payload: bool,
    /// Replace an existing file.
    #[arg(long)]
    force: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum DurabilityName {
    Immediate,
    Interval,
    Manual,
}

impl From<DurabilityName> for Durability {
    fn from(name: DurabilityName) -> Self {
        match name {
            DurabilityName::Immediate => Self::Immediate,
            DurabilityName::Interval => Self::Interval,
            DurabilityName::Manual => Self::Manual,
        }
    }
}

/// Error of a command, as one line.
struct Failure(String);

impl<E: std::error::Error> From<E> for Failure {
    fn from(error: E) -> Self {
        Self(error.to_string())
    }
}

/// Progress bar, and the signals that stop a command.
struct Terminal {
    bar: ProgressBar,
    signal: Arc<AtomicUsize>,
}

impl Terminal {
    /// Listens for SIGINT and SIGTERM. The second one ends the process at once.
    fn listen() -> Result<Self, Failure> {
        let (signal, again) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
        for (number, code) in [(SIGINT, 130), (SIGTERM, 143)] {
            signal_hook::flag::register_conditional_shutdown(number, code, Arc::clone(&again))?;
            signal_hook::flag::register_usize(number, Arc::clone(&signal), code as usize)?;
            signal_hook::flag::register(number, Arc::clone(&again))?;
        }
        Ok(Self { bar: ProgressBar::hidden(), signal })
    }

    /// Returns the exit code of the first signal; 0 if there was none.
    fn code(&self) -> u8 {
        self.signal.load(Ordering::Acquire) as u8
    }
}

impl Observer for Terminal {
    fn begun(&mut self, rows: Option<u64>) {
        if !io::stderr().is_terminal() {
            return;
        }
        let (bar, template) = match rows {
            Some(rows) => (ProgressBar::new(rows), "{wide_bar} {human_pos}/{human_len} {per_sec} {eta}"),
            None => (ProgressBar::new_spinner(), "{spinner} {human_pos} rows {per_sec}"),
        };
        self.bar = match ProgressStyle::with_template(template) {
            Ok(style) => bar.with_style(style),
            Err(_) => bar,
        };
    }

    fn advanced(&mut self, rows: u64) -> ControlFlow<()> {
        self.bar.set_position(rows);
        if self.code() == 0 { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    }
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let mut terminal = match Terminal::listen() {
        Ok(terminal) => terminal,
        Err(failure) => return complain(&failure),
    };
    let outcome = match &cli.command {
        Command::Ingest(args) => run_ingest(args, &mut terminal),
        Command::Export(args) => run_export(args, &mut terminal),
    };
    terminal.bar.finish_and_clear();
    match outcome {
        Ok(()) if terminal.code() == 0 => ExitCode::SUCCESS,
        Ok(()) => ExitCode::from(terminal.code()),
        Err(failure) => {
            let code = complain(&failure);
            if terminal.code() == 0 { code } else { ExitCode::from(terminal.code()) }
        }
    }
}

fn complain(Failure(text): &Failure) -> ExitCode {
    let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
    // There is nowhere left to report a failure to.
    let _ = writeln!(io::stderr().lock(), "shardex-columns: {text}");
    ExitCode::from(2)
}

/// Prints a line. A reader that has closed the pipe is no error.
fn say(text: &str) -> Result<(), Failure> {
    match writeln!(io::stdout().lock(), "{text}") {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(()),
    }
}

fn run_ingest(args: &Ingest, terminal: &mut Terminal) -> Result<(), Failure> {
    // All files are opened before the first row is added, so that a wrong name stops the command before it begins.
    let tables: Vec<(Table, ColumnNames)> = args
        .files
        .iter()
        .map(|file| Table::open(file).map(|table| (names(args, &table), table)))
        .map(|opened| opened.map(|(names, table)| (table, names)))
        .collect::<Result<_, ColumnsError>>()?;
    let (index, is_new) = open(args, &tables)?;
    let mut outcome = Ok(());
    for (table, names) in &tables {
        outcome = ingest_file(args, &index, table, names, terminal);
        terminal.bar.finish_and_clear();
        if outcome.is_err() || terminal.code() != 0 {
            break;
        }
    }
    let is_empty = index.stats()?.last_lsn.0 == 0;
    // Rows that were accepted become durable, also after an error.
    let closed = if is_new && is_empty { discard(&index, &args.index) } else { Ok(index.close()?) };
    outcome.and(closed)
}

/// Returns the names of the columns that are read.
fn names(args: &Ingest, table: &Table) -> ColumnNames {
    if args.exported {
        return ColumnNames::exported(table.columns().iter().any(|column| column == "payload"));
    }
    let Ingest { vector, id, id_from_name, start, length, tags, payload, .. } = args;
    ColumnNames {
        vector: vector.clone(),
        id: id.clone(),
        id_from_name: *id_from_name,
        start: start.clone(),
        length: length.clone(),
        tags: tags.clone(),
        payload: payload.clone(),
    }
}

/// Opens the index, or creates it. Returns whether it was created.
fn open(args: &Ingest, tables: &[(Table, ColumnNames)]) -> Result<(Shardex, bool), Failure> {
    let options = OpenOptions::default().durability(args.durability.into());
    let opened = match Shardex::open_with(&args.index, options.clone()) {
        Err(ShardexError::NotFound { .. }) if args.create => None,
        Err(error @ ShardexError::NotFound { .. }) => return Err(Failure(format!("{error} (--create)"))),
        opened => Some(opened?),
    };
    if let Some(index) = opened {
        let stats = index.stats()?;
        let differs = |what: &str, stored: &str, given: &str| {
            let dir = args.index.display();
            Err(Failure(format!("{dir}: the index has {what} {stored}, not {given}: leave it out")))
        };
        return match (args.metric, args.encoding) {
            (Some(given), _) if given != stats.metric => {
                differs("metric", &stats.metric.to_string(), &given.to_string())
            }
            (_, Some(given)) if given != stats.encoding => {
                differs("encoding", &stats.encoding.to_string(), &given.to_string())
            }
            _ => Ok((index, false)),
        };
    }
    let Some((table, names)) = tables.first() else { return Err(Failure("no file".into())) };
    let mut config = ShardexConfig::new(&args.index).vector_size(table.dimension(names)?).options(options);
    if let Some(metric) = args.metric {
        config = config.metric(metric);
    }
    if let Some(encoding) = args.encoding {
        config = config.encoding(encoding);
    }
    Ok((Shardex::create(config)?, true))
}

/// Removes an index that was created for files of which no row was accepted, so that it fixes neither metric,
/// encoding nor dimension. Its files are removed under its lock.
fn discard(index: &Shardex, dir: &Path) -> Result<(), Failure> {
    for name in ["root", "data", "wal", "LOCK"] {
        std::fs::remove_file(dir.join(name))?;
    }
    // What the close writes, nobody sees.
    match index.close() {
        Ok(()) | Err(ShardexError::FileReplaced { .. }) => {}
        Err(error) => return Err(error.into()),
    }
    // A directory that holds something else stays.
    let _ = std::fs::remove_dir(dir);
    Ok(())
}

fn ingest_file(
    args: &Ingest,
    index: &Shardex,
    table: &Table,
    names: &ColumnNames,
    terminal: &mut Terminal,
) -> Result<(), Failure> {
    let mut options = IngestOptions::new(names.clone());
    options.batch_rows = args.batch as usize;
    options.allow_duplicates = args.allow_duplicates;
    options.resume = match (args.restart, args.no_cursor) {
        (_, true) => ResumePolicy::Ignore,
        (true, false) => ResumePolicy::Restart,
        (false, false) => ResumePolicy::Continue,
    };
    let Ingested { rows_in, rows_before, added, replaced, is_stopped, has_changed, unread, .. } =
        ingest(index, table, &options, terminal)?;
    terminal.bar.finish_and_clear();
    let mut line = format!("{}: {rows_in} rows are in: {added} added, {replaced} replaced", table.path().display());
    if rows_before > 0 {
        line.push_str(&format!(", {rows_before} were in before"));
    }
    if has_changed {
        line.push_str("; the file has changed since rows of it were added, so it was read from its first row");
    }
    if !unread.is_empty() {
        line.push_str(&format!("; columns not read: {}", unread.join(", ")));
    }
    if is_stopped && !args.no_cursor {
        line.push_str("; interrupted: the same command continues");
    }
    say(&line)
}

fn run_export(args: &Export, terminal: &mut Terminal) -> Result<(), Failure> {
    let index = Shardex::open(&args.index)?;
    let options = ExportOptions { payload: args.payload, replace: args.force };
    let exported = export(&index, &args.file, &options, terminal);
    terminal.bar.finish_and_clear();
    index.close()?;
    let exported = exported?;
    let mut line = format!("{} postings in {}", exported.postings, args.file.display());
    if args.payload {
        line.push_str(&format!("; {} payloads", exported.payloads));
    }
    if exported.payloads_left > 0 {
        let left = exported.payloads_left;
        line.push_str(&format!("; {left} payloads of documents without a posting are not in it"));
    }
    say(&line)
}
