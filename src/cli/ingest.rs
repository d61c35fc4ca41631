//! Command `shardex ingest`.
//!
//! Invariants:
//! 1. An index is created only for rows that it accepts. If the first batch is refused, the created index is removed.
//! 2. If an ingest stops early, it reports which rows are durable and which command continues from there.

use std::{path::Path, time::Instant};

use serde_json::json;
use shardex::{
    DocumentId, Durability, FlushStats, IndexStats, OpenOptions, Posting, Shardex, ShardexConfig, ShardexError,
};

use super::{
    Answer, Failure, Outcome,
    admin::flush_object,
    args::{BATCH, Ingest, Progress},
    block_on,
    interrupt::Interrupt,
    output::{self, Output, command},
    rows::Rows,
    target::outside_every_index,
};

/// Cells are rebuilt if at least one posting in `FRESH_SHARE` is unindexed. A posting is therefore in at most that many
/// cell builds while an index doubles in size, and a small ingest into a large index rarely causes a build.
const FRESH_SHARE: u64 = 4;

/// Files of an index, in the order in which a newly created index is removed. Without the first file the directory is
/// not an index. The stats file may be missing, and is removed last.
const FILES: [&str; 4] = ["root", "data", "wal", "LOCK"];

/// Stats file, which the index may write until it is closed.
const STATS: &str = "stats";

pub(super) fn run(args: &Ingest, output: &Output) -> Outcome {
    let mut rows = Rows::open(&args.file)?;
    let left = rows.rows().checked_sub(args.from_row).ok_or_else(|| {
        Failure(format!("--from-row {}: {} has only {} rows", args.from_row, rows.name(), rows.rows()))
    })?;
    if args.first_id.checked_add(rows.rows() as u128).is_none() {
        return Err(Failure(format!("--first-id {}: the ids of {} rows do not fit", args.first_id, rows.rows())));
    }
    let tags = args.tags.as_ref().map(|path| Rows::open_or_one(path)?.tags(rows.rows())).transpose()?;
    let interrupt = Interrupt::listen()?;
    rows.skip(args.from_row)?;
    // Read before the index is created, so that an unreadable file creates none.
    let first = rows.vectors(args.batch.min(left))?;
    block_on(1, async {
        let (index, made) = open(args, &rows).await?;
        let mut load = Load::new(args, &index, rows, tags, output, interrupt);
        let done = load.run(first).await;
        let stopped = load.stopped(&done).await;
        load.bar.finish_and_clear();
        // An error after a signal is a consequence of the signal: of a read that was aborted, or of a process that
        // stopped writing the rows.
        let done = if matches!(stopped, Answer::Stopped(_)) { Ok(()) } else { done };
        if load.done == args.from_row && stopped != Answer::Yes {
            match (discard(&index, args, made).await, &done) {
                (Ok(true), _) => return done.map(|()| stopped),
                (Ok(false), _) => {}
                (Err(Failure(left)), Err(Failure(line))) => return Err(Failure(format!("{line}; {left}"))),
                (Err(left), Ok(())) => return Err(left),
            }
        }
        // The index is closed after success and after an error. Acknowledged rows are durable in both cases.
        let closed = index.close().await;
        match done {
            Ok(()) => closed?,
            Err(Failure(line)) => return Err(Failure(format!("{line}; {}", load.how_to_go_on()))),
        }
        Ok(stopped)
    })
}

/// Part of an index that this ingest created.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Created {
    /// Nothing was created, because the index existed.
    Nothing,
    /// The files were created in an existing directory.
    Files,
    /// The directory and the files were created.
    Directory,
}

/// Opens the index and compares it with the arguments, or creates it if it doesn't exist.
async fn open(args: &Ingest, rows: &Rows) -> Result<(Shardex, Created), Failure> {
    let durability = if args.commit_each { Durability::Manual } else { Durability::Interval };
    let mut options = OpenOptions::default().durability(durability).stats_file(true);
    if let Some(bytes) = args.flush_wal_bytes {
        options = options.flush_wal_bytes(bytes);
    }
    match Shardex::open_with(&args.dir, options.clone()).await {
        Ok(index) => {
            same(args, rows.columns(), &index.stats().await?)?;
            Ok((index, Created::Nothing))
        }
        Err(ShardexError::NotFound { .. }) if args.from_row == rows.rows() => {
            let (dir, file) = (args.dir.display(), rows.name());
            Err(Failure(format!("{dir} holds no index yet, and {file} no row to add to one")))
        }
        Err(ShardexError::NotFound { .. }) => {
            if let Some(parent) = args.dir.parent().filter(|parent| !parent.as_os_str().is_empty()) {
                if !parent.exists() {
                    let (dir, parent) = (args.dir.display(), parent.display());
                    return Err(Failure(format!("{dir}: there is no directory {parent}: make that one first")));
                }
                outside_every_index(parent)?;
            }
            let made = if args.dir.exists() { Created::Files } else { Created::Directory };
            match Shardex::create(config(args, rows.columns(), options)).await {
                Ok(index) => Ok((index, made)),
                Err(error) => {
                    if made == Created::Directory {
                        clear(&args.dir);
                    }
                    Err(error.into())
                }
            }
        }
        Err(error) => Err(error.into()),
    }
}

/// Removes the leftovers of a failed `create` from the directory that it made. Leftovers that can't be removed are
/// cleared by the next `create`.
fn clear(dir: &Path) {
    // A failed `create` leaves its lock file. Without it the files may belong to another program, so only an empty
    // directory is removed.
    let Ok(lock) = std::fs::OpenOptions::new().write(true).open(dir.join("LOCK")) else {
        let _ = std::fs::remove_dir(dir);
        return;
    };
    if lock.try_lock().is_err() {
        return;
    }
    // Another process may have created an index in the meantime.
    if dir.join(FILES[0]).exists() {
        return;
    }
    for name in FILES.iter().chain(&["root.new"]) {
        let _ = std::fs::remove_file(dir.join(name));
    }
    let _ = std::fs::remove_dir(dir);
}

/// Returns a `Failure` if the dimension, metric, encoding or shard size of the index differs from the file and the
/// arguments.
fn same(args: &Ingest, dimension: usize, stats: &IndexStats) -> Result<(), Failure> {
    let differs = |what: &str, stored: &str, given: &str| {
        let dir = args.dir.display();
        Err(Failure(format!("{dir}: the index has {what} {stored}, not {given}; leave it out or name another index")))
    };
    if stats.dimension != dimension {
        return differs("vectors of", &stats.dimension.to_string(), &dimension.to_string());
    }
    match (args.metric, args.encoding, args.shard_size) {
        (Some(metric), ..) if metric != stats.metric => {
            differs("metric", &stats.metric.to_string(), &metric.to_string())
        }
        (_, Some(encoding), _) if encoding != stats.encoding => {
            differs("encoding", &stats.encoding.to_string(), &encoding.to_string())
        }
        (.., Some(size)) if size != stats.shard_size => {
            differs("shard size", &stats.shard_size.to_string(), &size.to_string())
        }
        _ => Ok(()),
    }
}

fn config(args: &Ingest, dimension: usize, options: OpenOptions) -> ShardexConfig {
    let dir: &Path = &args.dir;
    let mut config = ShardexConfig::new(dir).vector_size(dimension).options(options);
    if let Some(metric) = args.metric {
        config = config.metric(metric);
    }
    if let Some(encoding) = args.encoding {
        config = config.encoding(encoding);
    }
    if let Some(size) = args.shard_size {
        config = config.shard_size(size);
    }
    config
}

/// Removes an index that this ingest created and that accepted no rows, so that it fixes neither metric nor dimension.
/// Returns whether an index was removed.
///
/// The files are removed under the lock, so no other process has the index open. The directory is removed only if it is
/// empty.
async fn discard(index: &Shardex, args: &Ingest, made: Created) -> Result<bool, Failure> {
    // Another process may have created the index before this one's `create`, and written to it.
    if made == Created::Nothing || index.stats().await?.last_lsn.0 > 0 {
        return Ok(false);
    }
    for name in FILES {
        std::fs::remove_file(args.dir.join(name))?;
    }
    // Removed before the close, after which another process may create an index. What the close writes, nobody sees.
    let _ = std::fs::remove_file(args.dir.join(STATS));
    match index.close().await {
        Ok(()) | Err(ShardexError::FileReplaced { .. }) => {}
        Err(error) => return Err(error.into()),
    }
    if made == Created::Directory {
        match std::fs::remove_dir(&args.dir) {
            // Another process is creating an index in the directory.
            Err(error) if error.kind() == std::io::ErrorKind::DirectoryNotEmpty => {}
            done => done?,
        }
    }
    Ok(true)
}

/// Running ingest.
struct Load<'a> {
    args: &'a Ingest,
    index: &'a Shardex,
    rows: Rows,
    /// Tags of all rows of the file, if they are given.
    tags: Option<Vec<u64>>,
    output: &'a Output,
    interrupt: Interrupt,
    bar: indicatif::ProgressBar,
    /// Numbers of leading rows of the file that are accepted (`done`) and durable (`durable`). Rows before `--from-row`
    /// count as both.
    done: usize,
    durable: usize,
    last_flush: FlushStats,
}

impl<'a> Load<'a> {
    fn new(
        args: &'a Ingest,
        index: &'a Shardex,
        rows: Rows,
        tags: Option<Vec<u64>>,
        output: &'a Output,
        interrupt: Interrupt,
    ) -> Self {
        let bar = match args.progress {
            Progress::Plain => indicatif::ProgressBar::hidden(),
            Progress::Bar => output.bar((rows.rows() - args.from_row) as u64, "ingesting"),
        };
        let (done, durable) = (args.from_row, args.from_row);
        Self { args, index, rows, tags, output, interrupt, bar, done, durable, last_flush: FlushStats::default() }
    }

    /// Adds all rows: `first`, and then the rows not read yet. Rebuilds the cells if wanted, flushes, and prints the
    /// report. Stops early after a signal, without a report.
    async fn run(&mut self, first: Vec<Vec<f32>>) -> Result<(), Failure> {
        let before = self.index.stats().await?;
        let began = Instant::now();
        self.add_all(first).await?;
        self.index.commit().await?;
        if self.durable < self.done {
            self.committed();
        }
        self.bar.finish_and_clear();
        let seconds = began.elapsed().as_secs_f64();
        if self.interrupt.code().is_some() {
            return Ok(());
        }
        let optimize_began = Instant::now();
        let optimized = self.wants_cells().await?;
        if optimized {
            // The build covers all postings accepted so far, and the flush below makes it durable.
            tokio::select! {
                made = self.index.optimize() => made?,
                () = self.interrupt.wait() => return Ok(()),
            }
        }
        let optimize_seconds = optimize_began.elapsed().as_secs_f64();
        let flush_began = Instant::now();
        let flushed = self.index.flush().await?;
        let flush_seconds = flush_began.elapsed().as_secs_f64();
        // A flush that found nothing to do has no figures to report, so the last flush with work is kept.
        if flushed.barriers > 0 || self.last_flush.barriers == 0 {
            self.last_flush = flushed;
        }
        self.report(&before, seconds, optimized, optimize_seconds, flush_seconds).await
    }

    async fn add_all(&mut self, first: Vec<Vec<f32>>) -> Result<(), Failure> {
        let mut vectors = first;
        for batch in 1.. {
            let count = vectors.len();
            if count == 0 || self.interrupt.code().is_some() {
                break;
            }
            let posting = |(vector, row): (Vec<f32>, usize)| {
                let document_id = DocumentId(self.args.first_id + row as u128);
                let tags = self.tags.as_ref().map_or(0, |tags| tags[row]);
                Posting { document_id, start: 0, length: 1, vector, tags }
            };
            let postings = vectors.into_iter().zip(self.done..).map(posting).collect();
            self.index.add_postings(postings).await.map_err(|error| self.by_row(error))?;
            self.done += count;
            if self.args.flush_each.is_some_and(|each| batch % each == 0) {
                self.last_flush = self.index.flush().await?;
                self.committed();
            } else if self.args.commit_each {
                self.index.commit().await?;
                self.committed();
            }
            self.bar.inc(count as u64);
            vectors = self.rows.vectors(self.args.batch.min(self.rows.rows() - self.done))?;
        }
        Ok(())
    }

    /// Records that all accepted rows are durable. With `--progress plain` it prints their number.
    fn committed(&mut self) {
        self.durable = self.done;
        if self.args.progress == Progress::Plain {
            output::line(&format!("committed {}", self.durable));
        }
    }

    async fn wants_cells(&self) -> Result<bool, Failure> {
        let IndexStats { unindexed_postings, total_postings, .. } = self.index.stats().await?;
        let pays = unindexed_postings > 0 && unindexed_postings >= total_postings / FRESH_SHARE;
        Ok(self.args.optimize || (pays && !self.args.no_optimize))
    }

    /// Converts an index within the batch to a row of the file, and names the file in the message.
    fn by_row(&self, error: ShardexError) -> Failure {
        let name = self.rows.name();
        match error {
            ShardexError::InvalidVector { index, reason } | ShardexError::InvalidPosting { index, reason } => {
                Failure(format!("{name}: row {}: {reason}", self.done + index))
            }
            ShardexError::BatchTooLarge { bytes, limit } => Failure(format!(
                "--batch {}: a batch takes {bytes} bytes of WAL, and {limit} is the most: give a smaller one",
                self.args.batch
            )),
            other => other.into(),
        }
    }

    /// Handles the end of the load. After an error it commits, so that accepted rows become durable. After a signal it
    /// prints the durable rows and the command that continues. Returns the answer of the command.
    async fn stopped(&mut self, done: &Result<(), Failure>) -> Answer {
        // If the commit fails too, `durable` stays as it was.
        if done.is_err() && self.index.commit().await.is_ok() {
            self.durable = self.done;
        }
        let Some(code) = self.interrupt.code() else {
            return if done.is_ok() { Answer::Yes } else { Answer::No };
        };
        let go_on = self.go_on();
        let object = json!({ "interrupted": true, "durable_rows": self.durable, "go_on": go_on });
        self.output.result(&object, &format!("interrupted: {}", self.how_to_go_on()));
        Answer::Stopped(code)
    }

    /// Returns a text with the durable rows, and the command that adds the others.
    fn how_to_go_on(&self) -> String {
        let (from, to, go_on) = (self.args.from_row, self.durable, self.go_on());
        match to.checked_sub(1) {
            Some(last) if to > from => format!("rows {from} to {last} are durable: to continue, run `{go_on}`"),
            _ => format!("no row was added: to continue, run `{go_on}`"),
        }
    }

    fn go_on(&self) -> String {
        let args = self.args;
        if self.durable == self.rows.rows() {
            return command(&["optimize".as_ref(), args.dir.as_ref()]);
        }
        let mut words = Vec::new();
        let mut option = |name: &str, value: Option<String>| {
            if let Some(value) = value {
                words.extend([name.to_owned(), value]);
            }
        };
        option("--metric", args.metric.map(|metric| metric.to_string()));
        option("--encoding", args.encoding.map(|encoding| encoding.to_string()));
        option("--shard-size", args.shard_size.map(|size| size.to_string()));
        option("--batch", (args.batch != BATCH).then(|| args.batch.to_string()));
        option("--flush-each", args.flush_each.map(|each| each.to_string()));
        option("--flush-wal-bytes", args.flush_wal_bytes.map(|bytes| bytes.to_string()));
        option("--first-id", (args.first_id != 0).then(|| args.first_id.to_string()));
        option("--tags", args.tags.as_ref().map(|path| path.display().to_string()));
        option("--progress", (args.progress == Progress::Plain).then(|| "plain".to_owned()));
        option("--from-row", Some(self.durable.to_string()));
        let flags = [
            ("--commit-each", args.commit_each),
            ("--optimize", args.optimize),
            ("--no-optimize", args.no_optimize),
            ("--json", self.output.is_json()),
        ];
        words.extend(flags.iter().filter(|(_, given)| *given).map(|(name, _)| (*name).to_owned()));
        let options = words.iter().map(AsRef::as_ref);
        let words: Vec<_> =
            ["ingest".as_ref(), args.dir.as_ref(), args.file.as_ref()].into_iter().chain(options).collect();
        command(&words)
    }

    async fn report(
        &self,
        before: &IndexStats,
        seconds: f64,
        optimized: bool,
        optimize_seconds: f64,
        flush_seconds: f64,
    ) -> Result<(), Failure> {
        let stats = self.index.stats().await?;
        let vectors = self.done - self.args.from_row;
        let rate = if seconds > 0.0 { vectors as f64 / seconds } else { 0.0 };
        let object = json!({
            "vectors": vectors,
            "seconds": seconds,
            "vectors_per_s": rate,
            "optimized": optimized,
            "optimize_seconds": optimize_seconds,
            "flush_seconds": flush_seconds,
            "last_flush": flush_object(&self.last_flush),
            "commits": stats.commits,
            "flushes": stats.flushes,
            "barriers": stats.barriers,
            "bytes_synced": stats.flush_totals.bytes_synced,
            "splits": stats.splits - before.splits,
            "shards": stats.total_shards,
            "total_postings": stats.total_postings,
            "unindexed_postings": stats.unindexed_postings,
            "disk_bytes": stats.disk_bytes,
        });
        let cells = match (optimized, stats.unindexed_postings) {
            (false, fresh) if fresh > 0 => format!("; {fresh} of them unindexed (`shardex optimize` builds cells)"),
            _ => String::new(),
        };
        let flush = match self.last_flush.barriers {
            0 => format!("nothing to flush: root {}", self.last_flush.generation),
            _ => self.last_flush.to_string(),
        };
        let text = format!(
            "{vectors} vectors in {seconds:.2} s ({rate:.0} a second), {} commits, {} flushes; {} shards, {} postings in \
             all{cells}\n{}",
            stats.commits, stats.flushes, stats.total_shards, stats.total_postings, flush
        );
        self.output.result(&object, &text);
        Ok(())
    }
}
