//! `shardex search`.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use serde_json::json;
use shardex::{
    OpenOptions, SearchOptions, Shardex,
    env::{AllCores, Env, Executor, Inline},
};

use super::{
    Answer, Failure, Outcome,
    args::Search,
    block_on,
    npy::{self, Rows},
    output::{Output, ms},
};

/// What came of one query.
pub(super) struct Found {
    query: usize,
    pub(super) ids: Vec<u128>,
    pub(super) scanned: usize,
    pub(super) computed: usize,
    pub(super) time: Duration,
}

pub(super) fn run(args: &Search, output: &Output) -> Outcome {
    let mut rows = Rows::open(&args.queries)?;
    let queries = rows.vectors(rows.rows())?;
    let truth = truth(args, queries.len())?;
    let mut options = SearchOptions::new(args.k);
    options.slop = args.slop;
    options.recall = args.recall;
    options.exact = args.exact;
    // As many threads as were asked for, and no more: what one query could use besides is left out.
    let executor: Arc<dyn Executor> = match args.batched && args.threads > 1 {
        true => Arc::new(AllCores),
        false => Arc::new(Inline),
    };
    block_on(args.threads, async {
        let env = Env { executor, ..Env::system() };
        let index = Shardex::open_in(&args.dir, OpenOptions::default(), env).await?;
        // As peers load an index before they are measured: what is read for the first time is checked first.
        let began = Instant::now();
        index.snapshot().await?.warm()?;
        let warm = began.elapsed();
        let began = Instant::now();
        let found = match args.batched {
            true => ask_at_once(&index, &queries, &options).await,
            false => ask_all(&index, queries, &options, args.threads).await,
        };
        let seconds = began.elapsed().as_secs_f64();
        index.close().await?;
        report(args, &found?, (seconds, warm), truth.as_deref(), output)
    })
}

fn truth(args: &Search, queries: usize) -> Result<Option<Vec<Vec<i64>>>, Failure> {
    let Some(path) = &args.truth else { return Ok(None) };
    let mut rows = Rows::open(path)?;
    if rows.rows() < queries || rows.columns() < args.k {
        let (rows, columns, k) = (rows.rows(), rows.columns(), args.k);
        let name = path.display();
        return Err(Failure(format!("{name}: {rows} rows of {columns} ids for {queries} queries of k = {k}")));
    }
    let mut ids = rows.ids(queries)?;
    ids.iter_mut().for_each(|row| row.truncate(args.k));
    Ok(Some(ids))
}

/// Asks every query once; several threads take them in turn. The answers come in the order of the queries.
pub(super) async fn ask_all(
    index: &Shardex,
    queries: Vec<Vec<f32>>,
    options: &SearchOptions,
    threads: usize,
) -> Result<Vec<Found>, Failure> {
    let (queries, next) = (Arc::new(queries), Arc::new(AtomicUsize::new(0)));
    let work = || {
        let (index, queries, next, options) = (index.clone(), Arc::clone(&queries), Arc::clone(&next), options.clone());
        async move {
            let mut found = Vec::new();
            loop {
                let query = next.fetch_add(1, Ordering::Relaxed);
                let Some(vector) = queries.get(query) else { return Ok::<_, Failure>(found) };
                let began = Instant::now();
                let hits = index
                    .search_in_place(vector, &options)
                    .await
                    .map_err(|error| Failure(format!("query {query}: {error}")))?;
                let ids = hits.iter().map(|hit| hit.document_id.0).collect();
                let time = began.elapsed();
                found.push(Found { query, ids, scanned: hits.scanned(), computed: hits.computed(), time });
            }
        }
    };
    let mut found = Vec::with_capacity(queries.len());
    if threads == 1 {
        found = work().await?;
    } else {
        let tasks: Vec<_> = (0..threads).map(|_| tokio::spawn(work())).collect();
        for task in tasks {
            found.extend(task.await.map_err(|error| Failure(format!("a search stopped: {error}")))??);
        }
    }
    found.sort_by_key(|found| found.query);
    Ok(found)
}

/// Asks all queries in one call. Each counts as taking its share of the time.
async fn ask_at_once(index: &Shardex, queries: &[Vec<f32>], options: &SearchOptions) -> Result<Vec<Found>, Failure> {
    let began = Instant::now();
    let answers = index.search_many_in_place(queries, options).await?;
    let time = began.elapsed() / queries.len().max(1) as u32;
    let found = answers.into_iter().enumerate().map(|(query, hits)| {
        let ids = hits.iter().map(|hit| hit.document_id.0).collect();
        Found { query, ids, scanned: hits.scanned(), computed: hits.computed(), time }
    });
    Ok(found.collect())
}

/// The share of the true ids that were found.
pub(super) fn recall(found: &[Found], truth: &[Vec<i64>], k: usize) -> f64 {
    let hits: usize = found
        .iter()
        .zip(truth)
        .map(|(found, truth)| {
            truth.iter().filter(|&&id| u128::try_from(id).is_ok_and(|id| found.ids.contains(&id))).count()
        })
        .sum();
    hits as f64 / (found.len() * k).max(1) as f64
}

/// The time that `share` of the queries did not exceed.
pub(super) fn percentile(times: impl IntoIterator<Item = Duration>, share: f64) -> Duration {
    let mut times: Vec<Duration> = times.into_iter().collect();
    times.sort_unstable();
    let at = (times.len() as f64 * share).ceil() as usize;
    times.get(at.saturating_sub(1)).copied().unwrap_or_default()
}

fn report(
    args: &Search,
    found: &[Found],
    (seconds, warm): (f64, Duration),
    truth: Option<&[Vec<i64>]>,
    output: &Output,
) -> Outcome {
    if let Some(path) = &args.out {
        let rows: Vec<Vec<i64>> = found
            .iter()
            .map(|found| {
                let id = |&id: &u128| i64::try_from(id).map_err(|_| Failure(format!("id {id} does not fit an i64")));
                let mut row = found.ids.iter().map(id).collect::<Result<Vec<_>, _>>()?;
                row.resize(args.k, -1);
                Ok::<_, Failure>(row)
            })
            .collect::<Result<_, _>>()?;
        npy::write_ids(path, &rows, args.k)?;
    }
    let queries = found.len();
    let qps = queries as f64 / seconds;
    let scanned = found.iter().map(|found| found.scanned).sum::<usize>() as f64 / queries.max(1) as f64;
    let computed = found.iter().map(|found| found.computed).sum::<usize>() as f64 / queries.max(1) as f64;
    let times = || found.iter().map(|found| found.time);
    let (p50, p99) = (percentile(times(), 0.5), percentile(times(), 0.99));
    let recall = truth.map(|truth| recall(found, truth, args.k));
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
    });
    let mut text = format!(
        "{queries} queries, {qps:.0} a second; p50 {}, p99 {}; {scanned:.0} postings looked at, {computed:.0} distances a query",
        ms(p50),
        ms(p99)
    );
    if let Some(recall) = recall {
        object["recall"] = recall.into();
        text.push_str(&format!("; recall@{} {recall:.4}", args.k));
    }
    output.result(&object, &text);
    Ok(Answer::Yes)
}
