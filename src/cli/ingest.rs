//! `shardex ingest`.
//!
//! Invariants:
//! 1. An index is made only for rows that it takes: if the first batch is refused, nothing is left of it.
//! 2. Whatever stops an ingest, it says which rows are durable and how to go on from there.

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
    npy::Rows,
    output::{self, Output, command},
    target::outside_every_index,
};

/// Cells are made anew when one posting in so many, or more, is in none: so a posting is in at most so many makings while an
/// index grows to twice its size, and one row more costs one row.
const FRESH_SHARE: u64 = 4;

/// Files of an index, in the order in which one that was just made is taken away: without the first it is none.
const FILES: [&str; 4] = ["root", "data", "wal", "LOCK"];

pub(super) fn run(args: &Ingest, output: &Output) -> Outcome {
    let mut rows = Rows::open(&args.file)?;
    let left = rows.rows().checked_sub(args.from_row).ok_or_else(|| {
        Failure(format!("--from-row {}: {} has only {} rows", args.from_row, rows.name(), rows.rows()))
    })?;
    if args.first_id.checked_add(rows.rows() as u128).is_none() {
        return Err(Failure(format!("--first-id {}: the ids of {} rows do not fit", args.first_id, rows.rows())));
    }
    let interrupt = Interrupt::listen()?;
    rows.skip(args.from_row)?;
    // Before there is an index: what cannot be read needs none.
    let first = rows.vectors(args.batch.min(left))?;
    block_on(1, async {
        let (index, made) = open(args, &rows).await?;
        let mut load = Load::new(args, &index, rows, output, interrupt);
        let done = load.run(first).await;
        let stopped = load.stopped(&done).await;
        load.bar.finish_and_clear();
        // What fails after a signal fails because of it: a read that was waiting, or whoever was to write the rows.
        let done = if matches!(stopped, Answer::Stopped(_)) { Ok(()) } else { done };
        if load.done == args.from_row && stopped != Answer::Yes {
            match (discard(&index, args, made).await, &done) {
                (Ok(true), _) => return done.map(|()| stopped),
                (Ok(false), _) => {}
                (Err(Failure(left)), Err(Failure(line))) => return Err(Failure(format!("{line}; {left}"))),
                (Err(left), Ok(())) => return Err(left),
            }
        }
        // Closed whatever came of it: what was acknowledged is durable either way.
        let closed = index.close().await;
        match done {
            Ok(()) => closed?,
            Err(Failure(line)) => return Err(Failure(format!("{line}; {}", load.how_to_go_on()))),
        }
        Ok(stopped)
    })
}

/// What of an index that is being made was there before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Made {
    /// The index was there.
    Nothing,
    /// The directory was there.
    Files,
    /// Nothing was there.
    Directory,
}

/// Opens the index, if there is one and it is as the arguments say, or makes it.
async fn open(args: &Ingest, rows: &Rows) -> Result<(Shardex, Made), Failure> {
    let durability = if args.commit_each { Durability::Manual } else { Durability::Interval };
    let mut options = OpenOptions::default().durability(durability);
    if let Some(bytes) = args.flush_wal_bytes {
        options = options.flush_wal_bytes(bytes);
    }
    match Shardex::open_with(&args.dir, options.clone()).await {
        Ok(index) => {
            same(args, rows.columns(), &index.stats().await?)?;
            Ok((index, Made::Nothing))
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
            let made = if args.dir.exists() { Made::Files } else { Made::Directory };
            match Shardex::create(config(args, rows.columns(), options)).await {
                Ok(index) => Ok((index, made)),
                Err(error) => {
                    if made == Made::Directory {
                        clear(&args.dir);
                    }
                    Err(error.into())
                }
            }
        }
        Err(error) => Err(error.into()),
    }
}

/// Takes away what a `create` that failed has left in the directory that it made. What cannot be taken away is cleared by the
/// next `create`.
fn clear(dir: &Path) {
    // Without the lock, which a failed `create` leaves behind, nothing there is known to be ours.
    let Ok(lock) = std::fs::OpenOptions::new().write(true).open(dir.join("LOCK")) else {
        return drop(std::fs::remove_dir(dir));
    };
    if lock.try_lock().is_err() {
        return;
    }
    // Somebody else may have had more luck meanwhile.
    if dir.join(FILES[0]).exists() {
        return;
    }
    for name in FILES.iter().chain(&["root.new"]) {
        drop(std::fs::remove_file(dir.join(name)));
    }
    drop(std::fs::remove_dir(dir));
}

/// Refuses an index that is not as the arguments and the file say.
fn same(args: &Ingest, dimension: usize, stats: &IndexStats) -> Result<(), Failure> {
    let differs = |what: &str, stored: &str, given: &str| {
        let dir = args.dir.display();
        Err(Failure(format!("{dir}: the index has {what} {stored}, not {given}; leave it out or name another index")))
    };
    if stats.dimension != dimension {
        return differs("vectors of", &stats.dimension.to_string(), &dimension.to_string());
    }
    match (args.metric, args.shard_size) {
        (Some(metric), _) if metric != stats.metric => {
            differs("metric", &stats.metric.to_string(), &metric.to_string())
        }
        (_, Some(size)) if size != stats.shard_size => {
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
    if let Some(size) = args.shard_size {
        config = config.shard_size(size);
    }
    config
}

/// Takes away an index that was made for rows which it then refused, so that it fixes no metric and no dimension. Returns
/// whether there was one.
///
/// The files go while the lock is held, so nobody can have opened it; the directory goes only if it is empty then.
async fn discard(index: &Shardex, args: &Ingest, made: Made) -> Result<bool, Failure> {
    // Another process may have made it first, and written to it.
    if made == Made::Nothing || index.stats().await?.last_lsn.0 > 0 {
        return Ok(false);
    }
    for name in FILES {
        std::fs::remove_file(args.dir.join(name))?;
    }
    index.close().await?;
    if made == Made::Directory {
        match std::fs::remove_dir(&args.dir) {
            // Somebody else makes an index there.
            Err(error) if error.kind() == std::io::ErrorKind::DirectoryNotEmpty => {}
            done => done?,
        }
    }
    Ok(true)
}

/// An ingest under way.
struct Load<'a> {
    args: &'a Ingest,
    index: &'a Shardex,
    rows: Rows,
    output: &'a Output,
    interrupt: Interrupt,
    bar: indicatif::ProgressBar,
    /// Rows of the file up to which all are accepted, and durable.
    done: usize,
    durable: usize,
    last_flush: FlushStats,
}

impl<'a> Load<'a> {
    fn new(args: &'a Ingest, index: &'a Shardex, rows: Rows, output: &'a Output, interrupt: Interrupt) -> Self {
        let bar = match args.progress {
            Progress::Plain => indicatif::ProgressBar::hidden(),
            Progress::Bar => output.bar((rows.rows() - args.from_row) as u64, "ingesting"),
        };
        let (done, durable) = (args.from_row, args.from_row);
        Self { args, index, rows, output, interrupt, bar, done, durable, last_flush: FlushStats::default() }
    }

    /// Adds all rows, `first` and then those that are not read yet, and says what it came to; stops early if it is
    /// interrupted.
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
            // What searches scan is made of what is there now, and durable with the flush.
            tokio::select! {
                made = self.index.optimize() => made?,
                () = self.interrupt.wait() => return Ok(()),
            }
        }
        let optimize_seconds = optimize_began.elapsed().as_secs_f64();
        let flush_began = Instant::now();
        let flushed = self.index.flush().await?;
        let flush_seconds = flush_began.elapsed().as_secs_f64();
        // One that found nothing to do says only what is durable.
        if flushed.barriers > 0 || self.last_flush.barriers == 0 {
            self.last_flush = flushed;
        }
        self.report(&before, (seconds, optimized, optimize_seconds, flush_seconds)).await
    }

    async fn add_all(&mut self, first: Vec<Vec<f32>>) -> Result<(), Failure> {
        let mut vectors = first;
        for batch in 1.. {
            let count = vectors.len();
            if count == 0 || self.interrupt.code().is_some() {
                break;
            }
            let ids = self.args.first_id + self.done as u128..;
            let postings = vectors
                .into_iter()
                .zip(ids)
                .map(|(vector, id)| Posting { document_id: DocumentId(id), start: 0, length: 1, vector })
                .collect();
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

    /// Everything accepted is durable.
    fn committed(&mut self) {
        self.durable = self.done;
        if self.args.progress == Progress::Plain {
            output::line(&format!("committed {}", self.durable));
        }
    }

    async fn wants_cells(&self) -> Result<bool, Failure> {
        let IndexStats { fresh_postings, total_postings, .. } = self.index.stats().await?;
        let pays = fresh_postings > 0 && fresh_postings >= total_postings / FRESH_SHARE;
        Ok(self.args.optimize || (pays && !self.args.no_optimize))
    }

    /// The library names an index within the batch; a person wants the row of the file.
    fn by_row(&self, error: ShardexError) -> Failure {
        let name = self.rows.name();
        match error {
            ShardexError::InvalidVector { index, reason } | ShardexError::InvalidPosting { index, reason } => {
                Failure(format!("{name}: row {}: {reason}", self.done + index))
            }
            ShardexError::BatchTooLarge { bytes, limit } => Failure(format!(
                "--batch {}: a batch takes {bytes} bytes of log, and {limit} is the most: give a smaller one",
                self.args.batch
            )),
            other => other.into(),
        }
    }

    /// What an interrupted ingest comes to, and what it says; makes what was accepted before an error durable.
    async fn stopped(&mut self, done: &Result<(), Failure>) -> Answer {
        // A second error follows from the first one, and then less is durable.
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

    /// Which rows are durable, and the command that adds the others.
    fn how_to_go_on(&self) -> String {
        let (from, to, go_on) = (self.args.from_row, self.durable, self.go_on());
        match to.checked_sub(1) {
            Some(last) if to > from => format!("rows {from} to {last} are durable: to go on, run `{go_on}`"),
            _ => format!("no row was added: to go on, run `{go_on}`"),
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
        option("--shard-size", args.shard_size.map(|size| size.to_string()));
        option("--batch", (args.batch != BATCH).then(|| args.batch.to_string()));
        option("--flush-each", args.flush_each.map(|each| each.to_string()));
        option("--flush-wal-bytes", args.flush_wal_bytes.map(|bytes| bytes.to_string()));
        option("--first-id", (args.first_id != 0).then(|| args.first_id.to_string()));
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
        (seconds, optimized, optimize_seconds, flush_seconds): (f64, bool, f64, f64),
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
            "fresh_postings": stats.fresh_postings,
            "disk_bytes": stats.disk_bytes,
        });
        let cells = match (optimized, stats.fresh_postings) {
            (false, fresh) if fresh > 0 => format!("; {fresh} of them in no cell yet (`shardex optimize` makes cells)"),
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
