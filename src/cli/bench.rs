//! Command `shardex bench`: measures writes, searches and flushes, alone and at the same time, beside the same work
//! without an index on the same machine.
//!
//! A comparison is a median over rounds. In each round the compared measurements take turns, so variations of the
//! machine affect all of them. The ingest rate and the recovery are measured once.

use std::{
    fs::{File, OpenOptions as FileOptions},
    io::Write as _,
    path::Path,
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use shardex::{Durability, Metric, OpenOptions, SearchOptions, Shardex, ShardexConfig, VectorEncoding};

use super::{
    Answer, Failure, Outcome,
    args::{Bench, BenchChild},
    bench_data::{Data, SEED, median},
    block_on,
    demo::{DIMENSION, postings, vector},
    growing, growth, hard,
    interrupt::Interrupt,
    measure,
    output::{Output, ms},
    search::percentile,
    target::outside_every_index,
};

/// Number of rows of the index for durable writes of one posting.
const SMALL: u64 = 10_000;
/// Number of durable writes of one posting per task and round.
const WRITES: u64 = 400;
/// Number of tasks that write at the same time.
const TASKS: u64 = 16;
/// Number of postings per batch of a writer at full speed.
const BATCH: u64 = 100;
/// Number of postings per write whose latency is measured.
const SMALL_BATCH: u64 = 10;
/// Duration of each measurement per round.
const WINDOW: Duration = Duration::from_secs(3);

/// Runs the whole benchmark, or the part that `--grow`, `--growing` or `--hard` selects. With `--data` it runs only the
/// part that works on files.
pub(crate) fn run(args: &Bench, output: &Output) -> Outcome {
    let within = args.dir.clone().unwrap_or_else(std::env::temp_dir);
    outside_every_index(&within)?;
    let interrupt = Interrupt::listen()?;
    let temporary = tempfile::TempDir::with_prefix_in("shardex-bench-", &within)
        .map_err(|error| Failure(format!("{}: {}", within.display(), error.kind())))?;
    let dir = temporary.path();
    interrupt.removes(&[dir])?;
    if let Some(rows) = args.grow {
        return block_on(2, async {
            let sizes = growth::growth(rows as u64, dir, args.rounds, output).await?;
            if output.is_json() {
                output.result(&json!({ "growth": sizes }), "");
            }
            Ok(Answer::Yes)
        });
    }
    if args.growing.is_some() {
        return growing::run(&Data::new(args)?, dir, output);
    }
    if let Some(names) = &args.hard {
        return hard::run(args, names, dir, output);
    }
    block_on(2, async {
        let whole = measure::run(args, dir, output).await?;
        if args.data.is_some() {
            if output.is_json() {
                output.result(&whole, "");
            }
            return Ok(Answer::Yes);
        }
        let durable = durable(dir, args.encoding, args.rounds).await?;
        output.say(&durable.1);
        let index =
            filled(&dir.join("large"), args.rows() as u64, args.encoding, OpenOptions::default().flush_interval_ms(0))
                .await?;
        let stall = stall(&index, dir, args.rounds).await?;
        output.say(&stall.1);
        let tail = tail(&index, dir, args.rounds).await?;
        output.say(&tail.1);
        index.close().await?;
        if output.is_json() {
            output.result(&json!({ "whole": whole, "durable": durable.0, "tail": tail.0, "stall": stall.0 }), "");
        }
        Ok(Answer::Yes)
    })
}

/// Creates an index of `rows` generated vectors and flushes it.
async fn filled(dir: &Path, rows: u64, encoding: VectorEncoding, options: OpenOptions) -> Result<Shardex, Failure> {
    // For `shardex top`.
    let options = options.stats_file(true);
    let config =
        ShardexConfig::new(dir).vector_size(DIMENSION).metric(Metric::Cosine).encoding(encoding).options(options);
    let index = Shardex::create(config).await?;
    for first in (0..rows).step_by(1_000) {
        index.add_postings(postings(SEED, first..rows.min(first + 1_000))).await?;
    }
    index.flush().await?;
    Ok(index)
}

/// Appends `bytes` bytes to a file and syncs it, `times` times. Returns the duration of each append with its sync, in
/// seconds.
fn bare(file: &Path, bytes: usize, times: u64) -> Result<Vec<f64>, Failure> {
    let mut file: File = FileOptions::new().create(true).append(true).open(file)?;
    let block = vec![7; bytes];
    let mut took = Vec::new();
    for _ in 0..times {
        let began = Instant::now();
        file.write_all(&block)?;
        file.sync_data()?;
        took.push(began.elapsed().as_secs_f64());
    }
    Ok(took)
}

/// Measures durable writes of one posting, by one task and by many tasks, beside a bare append of the same number of
/// bytes.
async fn durable(dir: &Path, encoding: VectorEncoding, rounds: usize) -> Result<(Value, String), Failure> {
    let options = OpenOptions::default().durability(Durability::Immediate).flush_interval_ms(0).flush_wal_bytes(0);
    let index = filled(&dir.join("small"), SMALL, encoding, options).await?;
    let (mut next, mut bytes) = (SMALL, 4_096);
    let (mut bares, mut ones, mut shared) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..rounds {
        let before = index.stats().await?;
        // Generated before the clock starts, so that only the index is measured.
        let batches: Vec<_> = (next..next + WRITES).map(|n| postings(SEED, n..n + 1)).collect();
        let began = Instant::now();
        for batch in batches {
            index.add_postings(batch).await?;
        }
        ones.push(WRITES as f64 / began.elapsed().as_secs_f64());
        next += WRITES;
        let after = index.stats().await?;
        bytes = ((after.wal_bytes - before.wal_bytes) / WRITES) as usize;
        bares.push(WRITES as f64 / bare(&dir.join("bare"), bytes, WRITES)?.iter().sum::<f64>());

        let before = after.commits;
        let tasks: Vec<_> = (0..TASKS)
            .map(|task| {
                let index = index.clone();
                let from = next + task * WRITES;
                tokio::spawn(async move {
                    for n in from..from + WRITES {
                        index.add_postings(postings(SEED, n..n + 1)).await?;
                    }
                    Ok::<_, shardex::ShardexError>(())
                })
            })
            .collect();
        for task in tasks {
            task.await.map_err(|e| Failure(e.to_string()))??;
        }
        next += TASKS * WRITES;
        let syncs = index.stats().await?.commits - before;
        shared.push((TASKS * WRITES) as f64 / syncs as f64);
    }
    index.close().await?;
    let ratios: Vec<f64> = ones.iter().zip(&bares).map(|(one, bare)| one / bare).collect();
    let (bare, one, ratio, shared) = (median(bares), median(ones), median(ratios), median(shared));
    let text = format!(
        "durable writes of one posting at {SMALL} rows, {bytes} bytes of WAL each\n  \
         bare append + fdatasync   {bare:>8.0} /s\n  \
         one task                  {one:>8.0} /s   {:.0} % of bare\n  \
         {TASKS} tasks                  {shared:>8.1} writes per sync",
        ratio * 100.0
    );
    let object = json!({ "bare_per_s": bare, "one_task_per_s": one, "of_bare": ratio, "writes_per_sync": shared });
    Ok((object, text))
}

/// Searches on one thread without pause until `until`. Returns the 99th percentile of the latency in seconds, and the
/// number of searches.
fn searches(index: &Shardex, until: Instant) -> Result<(f64, usize), Failure> {
    let mut took = Vec::new();
    let options = SearchOptions::new(10);
    let runtime = tokio::runtime::Handle::current();
    while Instant::now() < until {
        let query = vector(SEED, 1_000_000_000 + took.len() as u64);
        let began = Instant::now();
        let hits = runtime.block_on(index.search_in_place(&query, &options))?;
        took.push(began.elapsed());
        std::hint::black_box(hits.len());
    }
    let count = took.len();
    Ok((percentile(took, 0.99).as_secs_f64(), count))
}

/// Measures the search latency while the same index takes writes and flushes at full speed. The baseline is the latency
/// beside another process that writes to an index of its own.
async fn tail(index: &Shardex, dir: &Path, rounds: usize) -> Result<(Value, String), Failure> {
    let (mut beside, mut during, mut ratios, mut count) = (Vec::new(), Vec::new(), Vec::new(), 0);
    let mut next = 10_000_000;
    for round in 0..rounds {
        let mut child = Busy::start(&dir.join(format!("other-{round}")))?;
        let (p99, n) = in_thread(index, WINDOW).await?;
        child.stop()?;
        beside.push(p99);
        let stop = Arc::new(AtomicBool::new(false));
        let writer = tokio::spawn(busy(index.clone(), Arc::clone(&stop), next));
        let (p99, m) = in_thread(index, WINDOW).await?;
        stop.store(true, Ordering::Relaxed);
        next = writer.await.map_err(|e| Failure(e.to_string()))??;
        during.push(p99);
        ratios.push(p99 / beside[beside.len() - 1]);
        count += n + m;
    }
    let (beside, during, ratio) = (median(beside), median(during), median(ratios));
    let rows = index.stats().await?.total_postings;
    let text = format!(
        "p99 of a search at {rows} rows, {count} searches\n  \
         beside a busy process     {:>12}\n  \
         while ingesting, flushing {:>12}   {ratio:.2} times that",
        ms(Duration::from_secs_f64(beside)),
        ms(Duration::from_secs_f64(during)),
    );
    Ok((json!({ "beside_s": beside, "during_s": during, "ratio": ratio, "searches": count }), text))
}

async fn in_thread(index: &Shardex, window: Duration) -> Result<(f64, usize), Failure> {
    let index = index.clone();
    let searching = tokio::task::spawn_blocking(move || searches(&index, Instant::now() + window));
    searching.await.map_err(|e| Failure(e.to_string()))?
}

/// Adds batches until `stop` is set, with a flush after every 20 batches. Returns the next free id.
async fn busy(index: Shardex, stop: Arc<AtomicBool>, first: u64) -> Result<u64, Failure> {
    let mut next = first;
    // Generated once, so that only the index is measured.
    let made = postings(SEED, first..first + 20 * BATCH);
    while !stop.load(Ordering::Relaxed) {
        for chunk in made.chunks(BATCH as usize) {
            let batch = chunk.iter().zip(next..).map(|(posting, id)| {
                let mut posting = posting.clone();
                posting.document_id = shardex::DocumentId(id.into());
                posting
            });
            index.add_postings(batch.collect()).await?;
            next += BATCH;
        }
        index.flush().await?;
    }
    Ok(next)
}

/// Process that ingests into an index of its own. It is killed when this value is dropped.
struct Busy(Child);

impl Busy {
    fn start(dir: &Path) -> Result<Self, Failure> {
        let mut command = Command::new(std::env::current_exe()?);
        let child = command.arg("bench-child").arg(dir).stdin(Stdio::piped()).stdout(Stdio::null()).spawn()?;
        Ok(Self(child))
    }

    fn stop(&mut self) -> Result<(), Failure> {
        self.0.kill()?;
        self.0.wait()?;
        Ok(())
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        // The process may have been killed already.
        let _ = self.stop();
    }
}

/// Runs the process that `bench` starts beside itself and kills.
pub(crate) fn child(args: &BenchChild) -> Outcome {
    // Ends this process if its parent was killed, because its stdin then reaches its end.
    std::thread::Builder::new().name("shardex-orphan".into()).spawn(|| {
        let ended = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
        std::process::exit(if ended.is_ok() { 0 } else { 2 });
    })?;
    block_on(2, async {
        let index = filled(&args.dir, 0, VectorEncoding::F32, OpenOptions::default().flush_interval_ms(0)).await?;
        busy(index, Arc::default(), 0).await?;
        Ok(Answer::Yes)
    })
}

/// Measures the longest latency of a small write, without a flush and while flushes run, beside the longest bare sync.
async fn stall(index: &Shardex, dir: &Path, rounds: usize) -> Result<(Value, String), Failure> {
    let (mut without, mut with, mut syncs) = (Vec::new(), Vec::new(), Vec::new());
    let mut next = 50_000_000;
    for _ in 0..rounds {
        index.flush().await?;
        for flushes in [false, true] {
            let stop = Arc::new(AtomicBool::new(false));
            let flusher = tokio::spawn(flush_often(index.clone(), Arc::clone(&stop), flushes));
            let (until, mut longest) = (Instant::now() + WINDOW, Duration::ZERO);
            while Instant::now() < until {
                let batch = postings(SEED, next..next + SMALL_BATCH);
                next += SMALL_BATCH;
                let began = Instant::now();
                index.add_postings(batch).await?;
                longest = longest.max(began.elapsed());
            }
            stop.store(true, Ordering::Relaxed);
            flusher.await.map_err(|e| Failure(e.to_string()))??;
            if flushes { &mut with } else { &mut without }.push(longest.as_secs_f64());
        }
        syncs.push(bare(&dir.join("bare"), 4_096, 200)?.into_iter().fold(0.0, f64::max));
    }
    let (without, with, sync) = (median(without), median(with), median(syncs));
    let allowed = 2.0 * without + sync;
    let text = format!(
        "longest wait of a write of {SMALL_BATCH} postings\n  \
         without a flush           {:>12}\n  \
         while flushes run         {:>12}\n  \
         longest bare sync         {:>12}   so {:.2} of twice the first plus that",
        ms(Duration::from_secs_f64(without)),
        ms(Duration::from_secs_f64(with)),
        ms(Duration::from_secs_f64(sync)),
        with / allowed,
    );
    Ok((json!({ "without_s": without, "with_s": with, "sync_s": sync, "of_allowed": with / allowed }), text))
}

async fn flush_often(index: Shardex, stop: Arc<AtomicBool>, really: bool) -> Result<(), Failure> {
    while !stop.load(Ordering::Relaxed) {
        if really {
            index.flush().await?;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Ok(())
}
