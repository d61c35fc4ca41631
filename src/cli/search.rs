//! Command `shardex search`.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use serde_json::json;
use shardex::{
    Filter, Hits, IndexSnapshot, OpenOptions, SearchOptions, Shardex, ShardexError,
    env::{AllCores, Env, Executor, Inline},
};

use super::{
    Answer, Failure, Outcome, admin,
    args::Search,
    block_on,
    hits::{QueryHits, print},
    interrupt::Interrupt,
    npy,
    output::{self, Output, ms},
    rows::Rows,
    target::Target,
};

/// Reads all bytes and evaluates the filter before the measurement. The first read of every byte checks it, and other
/// libraries load the index before they are measured. A filter is made once and used often.
fn warm(snapshot: &IndexSnapshot, filter: Option<&Filter>) -> shardex::Result<()> {
    snapshot.warm()?;
    filter.map_or(Ok(0), |filter| snapshot.len_of(filter)).map(|_| ())
}

pub(super) fn run(args: &Search, output: &Output) -> Outcome {
    let mut rows = Rows::open_or_one(&args.queries)?;
    // Signals are caught before the temporary file exists, so that it is removed in every case.
    let interrupt = args.out.as_ref().map(|_| Interrupt::listen()).transpose()?;
    let target = target(args)?;
    if let (Some(interrupt), Some(target)) = (interrupt, &target) {
        interrupt.removes(&[target.unfinished()])?;
    }
    let truth = truth(args, rows.rows())?;
    let queries = rows.vectors(rows.rows())?;
    let first = queries.first().cloned();
    let mut options = SearchOptions::new(args.k);
    options.slop = args.slop;
    options.recall = args.recall;
    options.exact = args.exact;
    options.filter = args.filter.clone();
    options.per_document = args.per_document;
    options.min_score = args.min_score;
    // Without `--batched`, a query runs only on the thread that searches. With `--batched` and more than one thread,
    // the one call uses all cores.
    let executor: Arc<dyn Executor> =
        if args.batched && args.threads > 1 { Arc::new(AllCores) } else { Arc::new(Inline) };
    block_on(1, async {
        let env = Env { executor, ..Env::system() };
        let index = Shardex::open_in(&args.dir, OpenOptions::default(), env).await?;
        let read_only = admin::read_only(&index.stats().await?);
        let began = Instant::now();
        warm(&index.snapshot().await?, options.filter.as_ref())?;
        let warm = began.elapsed();
        let began = Instant::now();
        let found = if args.batched {
            ask_at_once(&index, &queries, &options).await
        } else {
            ask_all(&index, queries, &options, args.threads).await
        };
        let seconds = began.elapsed().as_secs_f64();
        let plan = explain(args, &index, first.as_deref(), &options).await?;
        index.close().await?;
        let found = found.map_err(|Failure(what)| {
            if what.starts_with("query ") { Failure(format!("{}: {what}", rows.name())) } else { Failure(what) }
        })?;
        if let Some(target) = target {
            write(target, &found, args.k * args.per_document.unwrap_or(1))?;
        }
        if !args.quiet {
            print(&found, args.show, output);
        }
        report(args, &found, seconds, warm, truth.as_deref(), plan, output);
        if let Some(why) = read_only {
            output::complain(&format!("the index is {why}"));
        }
        Ok(Answer::Yes)
    })
}

/// Explains how the search for the first query runs, if it is asked for.
async fn explain(
    args: &Search,
    index: &Shardex,
    first: Option<&[f32]>,
    options: &SearchOptions,
) -> Result<Option<String>, Failure> {
    let Some(query) = first.filter(|_| args.explain) else { return Ok(None) };
    let answer = index.search_with(query, &options.clone().explain()).await.map_err(|error| of_query(0, error))?;
    Ok(answer.plan.map(|plan| plan.to_string()))
}

/// Begins the file for the ids. It begins before the search, so that an invalid path fails early.
fn target(args: &Search) -> Result<Option<Target>, Failure> {
    let Some(out) = &args.out else { return Ok(None) };
    let inputs: Vec<_> = [Some(&args.queries), args.truth.as_ref()].into_iter().flatten().map(AsRef::as_ref).collect();
    Target::begin(out, args.force, &args.dir, &inputs).map(Some)
}

/// Writes the ids found. Returns a `Failure` if an id doesn't fit an i64.
fn write(target: Target, found: &[QueryHits], k: usize) -> Result<(), Failure> {
    let id = |id: u128| i64::try_from(id).map_err(|_| Failure(format!("--out: id {id} does not fit an i64")));
    let row = |found: &QueryHits| found.ids().map(id).collect::<Result<Vec<_>, _>>();
    let rows = found.iter().map(row).collect::<Result<Vec<_>, _>>()?;
    target.finish(|out| npy::write_ids(out, &rows, k))
}

fn truth(args: &Search, queries: usize) -> Result<Option<Vec<Vec<i64>>>, Failure> {
    let Some(path) = &args.truth else { return Ok(None) };
    let mut rows = Rows::open_or_one(path)?;
    if rows.rows() < queries || rows.columns() < args.k {
        let (name, rows, columns, k) = (rows.name(), rows.rows(), rows.columns(), args.k);
        return Err(Failure(format!("{name}: {rows} rows of {columns} ids for {queries} queries of k = {k}")));
    }
    let mut ids = rows.ids(queries)?;
    ids.iter_mut().for_each(|row| row.truncate(args.k));
    Ok(Some(ids))
}

/// Converts an error of one query to a `Failure` with the number of the query.
fn of_query(query: usize, error: ShardexError) -> Failure {
    match error {
        ShardexError::InvalidVector { reason, .. } => Failure(format!("query {query}: {reason}")),
        ShardexError::InvalidDimension { expected, actual, .. } => {
            Failure(format!("query {query}: it has {actual} numbers, and the index holds vectors of {expected}"))
        }
        other => other.into(),
    }
}

/// Searches once for each query, with the given number of threads. Returns the results in the order of the queries.
pub(super) async fn ask_all(
    index: &Shardex,
    queries: Vec<Vec<f32>>,
    options: &SearchOptions,
    threads: usize,
) -> Result<Vec<QueryHits>, Failure> {
    let next = AtomicUsize::new(0);
    let runtime = tokio::runtime::Handle::current();
    let work = async || {
        let mut found = Vec::new();
        loop {
            let query = next.fetch_add(1, Ordering::Relaxed);
            let Some(vector) = queries.get(query) else { return Ok::<_, Failure>(found) };
            let began = Instant::now();
            let hits = index.search_in_place(vector, options).await.map_err(|error| of_query(query, error))?;
            found.push(QueryHits::new(query, &hits, || began.elapsed()));
        }
    };
    if threads == 1 {
        return work().await;
    }
    // The scope blocks this task. A search never waits for another task, so there is no deadlock.
    let answers = thread::scope(|scope| {
        let mut searching = Vec::new();
        for started in 0..threads.min(queries.len()) {
            let start = thread::Builder::new().spawn_scoped(scope, || runtime.block_on(work()));
            searching.push(start.map_err(|error| {
                // Ends the threads that have started.
                next.store(queries.len(), Ordering::Relaxed);
                Failure(format!("--threads {threads}: only {started} could be started ({error}): ask for fewer"))
            })?);
        }
        let joined = searching.into_iter().map(|thread| match thread.join() {
            Ok(found) => found,
            Err(_) => Err(Failure("a thread that searched has panicked".to_owned())),
        });
        joined.collect::<Result<Vec<_>, _>>()
    })?;
    let mut found: Vec<QueryHits> = answers.into_iter().flatten().collect();
    found.sort_by_key(|found| found.query);
    Ok(found)
}

/// Searches for all queries in one call. The time of each query is the total time divided by the number of queries.
async fn ask_at_once(
    index: &Shardex,
    queries: &[Vec<f32>],
    options: &SearchOptions,
) -> Result<Vec<QueryHits>, Failure> {
    let began = Instant::now();
    let answers: Vec<Hits> = index.search_many_in_place(queries, options).await.map_err(|error| match error {
        ShardexError::InvalidVector { index, .. } | ShardexError::InvalidDimension { index, .. } => {
            of_query(index, error)
        }
        other => other.into(),
    })?;
    let time = began.elapsed() / queries.len().max(1) as u32;
    Ok(answers.iter().enumerate().map(|(query, hits)| QueryHits::new(query, hits, || time)).collect())
}

/// Returns the recall: the share of the true ids that were found.
pub(super) fn recall(found: &[QueryHits], truth: &[Vec<i64>], k: usize) -> f64 {
    let hits: usize = found
        .iter()
        .zip(truth)
        .map(|(found, truth)| {
            truth.iter().filter(|&&id| u128::try_from(id).is_ok_and(|id| found.ids().any(|found| found == id))).count()
        })
        .sum();
    hits as f64 / (found.len() * k).max(1) as f64
}

/// Returns the percentile `share` of the times: the smallest time that at least this share of the queries did not
/// exceed. Returns zero for no times.
pub(super) fn percentile(times: impl IntoIterator<Item = Duration>, share: f64) -> Duration {
    let mut times: Vec<Duration> = times.into_iter().collect();
    times.sort_unstable();
    let at = (times.len() as f64 * share).ceil() as usize;
    times.get(at.saturating_sub(1)).copied().unwrap_or_default()
}

fn report(
    args: &Search,
    found: &[QueryHits],
    seconds: f64,
    warm: Duration,
    truth: Option<&[Vec<i64>]>,
    plan: Option<String>,
    output: &Output,
) {
    let queries = found.len();
    let qps = if seconds > 0.0 { queries as f64 / seconds } else { 0.0 };
    let scanned = found.iter().map(|found| found.scanned).sum::<usize>() as f64 / queries.max(1) as f64;
    let computed = found.iter().map(|found| found.computed).sum::<usize>() as f64 / queries.max(1) as f64;
    let times = || found.iter().map(|found| found.time);
    let (p50, p99) = (percentile(times(), 0.5), percentile(times(), 0.99));
    let recall = truth.map(|truth| recall(found, truth, args.k));
    let unlike = found.iter().filter(|found| !found.calibrated).count();
    let mut object = json!({
        "queries": queries,
        "k": args.k,
        "threads": args.threads,
        "warm_ms": warm.as_secs_f64() * 1e3,
        "qps": qps,
        "p50_us": p50.as_secs_f64() * 1e6,
        "p99_us": p99.as_secs_f64() * 1e6,
        "scanned": scanned,
        "computed": computed,
        "uncalibrated": unlike,
    });
    let mut text = format!(
        "{queries} queries, {qps:.0} a second; p50 {}, p99 {}; {scanned:.0} postings scanned, {computed:.0} distances a query",
        ms(p50),
        ms(p99)
    );
    if let Some(recall) = recall {
        object["recall"] = recall.into();
        text.push_str(&format!("; recall@{} {recall:.4}", args.k));
    }
    if let Some(plan) = plan {
        text = format!("query 0: {plan}\n{text}");
        object["plan"] = plan.into();
    }
    if unlike > 0 {
        text.push_str(&format!(
            "\n{unlike} of the queries are out of distribution, so their recall is unknown: --exact finds the true nearest"
        ));
    }
    output.result(&object, &text);
}
