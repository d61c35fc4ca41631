//! The part of `shardex bench` that looks at one index from all sides: searches at several recalls, durable ingest, a flush,
//! an open, a recovery, bytes and memory. On made-up vectors, or on those of `.npy` files.

use std::{
    fs::OpenOptions as FileOptions,
    os::unix::fs::FileExt as _,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use shardex::{
    DocumentId, Durability, Metric, OpenOptions, Posting, SearchOptions, Shardex, ShardexConfig,
    env::{Env, Inline},
};

use super::{
    Failure,
    admin::{recall_object, recall_text},
    args::Bench,
    bench::{SEED, median},
    demo::{DIMENSION, vector},
    grown::changed,
    hits::Found,
    npy::Rows,
    output::{Output, ms},
    search::{ask_all, recall},
};

/// Results per query.
pub(super) const K: usize = 10;
/// Queries, where none are given.
const QUERIES: u64 = 500;
/// Recalls that are asked for.
pub(super) const RECALLS: [f32; 5] = [0.8, 0.9, 0.95, 0.98, 0.99];
/// Postings that a flush is measured with.
const FLUSHED: usize = 100;
/// Bytes per page, as far as the bare program goes.
const PAGE: usize = 4_096;

/// What is put in and asked for.
pub(super) struct Data {
    pub(super) metric: Metric,
    pub(super) rows: Vec<Vec<f32>>,
    /// Rows that are not in the index when it is measured.
    more: Vec<Vec<f32>>,
    pub(super) queries: Vec<Vec<f32>>,
    truth: Option<Vec<Vec<i64>>>,
}

impl Data {
    pub(super) fn new(args: &Bench) -> Result<Self, Failure> {
        // What is flushed later is new to the index.
        let spare = FLUSHED * (args.rounds + 1);
        let Some(file) = &args.data else {
            let made = |range: std::ops::Range<u64>| range.map(|n| vector(SEED, n)).collect::<Vec<_>>();
            let rows = args.rows() as u64;
            let more = made(2_000_000_000..2_000_000_000 + spare as u64);
            let queries = made(1_000_000_000..1_000_000_000 + QUERIES);
            return Ok(Self { metric: Metric::Cosine, rows: made(0..rows), more, queries, truth: None });
        };
        let metric = args.metric.unwrap_or(Metric::Dot);
        let mut all = Rows::open(file)?;
        let rows = args.rows().min(all.rows());
        let rows = vectors(&mut all, rows, metric)?;
        let queries = match &args.queries {
            Some(file) => {
                let mut all = Rows::open_or_one(file)?;
                if all.columns() != rows[0].len() {
                    let (name, columns, data) = (all.name(), all.columns(), rows[0].len());
                    return Err(Failure(format!("{name}: its rows have {columns} numbers, those of --data {data}")));
                }
                let count = all.rows();
                vectors(&mut all, count, metric)?
            }
            None => rows.iter().step_by(rows.len().div_ceil(QUERIES as usize)).cloned().collect(),
        };
        let truth = args.truth.as_ref().map(|file| truth_of(file, queries.len())).transpose()?;
        let more = rows.iter().step_by(rows.len().div_ceil(spare)).cloned().collect();
        Ok(Self { metric, rows, more, queries, truth })
    }

    pub(super) fn config(&self, dir: &Path, options: OpenOptions) -> ShardexConfig {
        let dimension = self.rows.first().map_or(DIMENSION, Vec::len);
        ShardexConfig::new(dir).vector_size(dimension).metric(self.metric).options(options)
    }

    fn bytes(&self) -> f64 {
        (self.rows.len() * self.rows.first().map_or(0, Vec::len) * 4) as f64
    }
}

/// The first rows of a file, at least one, each of which an index of that metric takes.
fn vectors(all: &mut Rows, count: usize, metric: Metric) -> Result<Vec<Vec<f32>>, Failure> {
    if count == 0 {
        return Err(Failure(format!("{}: it holds no rows to measure with", all.name())));
    }
    let rows = all.vectors(count)?;
    if let Some(row) = rows.iter().position(|row| metric == Metric::Cosine && row.iter().all(|&x| x == 0.0)) {
        return Err(Failure(format!("{}: row {row}: a zero vector has no direction, so no cosine", all.name())));
    }
    Ok(rows)
}

/// The nearest ids of a file, for so many queries.
fn truth_of(file: &Path, queries: usize) -> Result<Vec<Vec<i64>>, Failure> {
    let mut all = Rows::open_or_one(file)?;
    let (rows, columns) = (all.rows(), all.columns());
    if rows < queries || columns < K {
        let name = all.name();
        return Err(Failure(format!("{name}: {rows} rows of {columns} ids for {queries} queries of k = {K}")));
    }
    let mut ids = all.ids(queries)?;
    ids.iter_mut().for_each(|row| row.truncate(K));
    Ok(ids)
}

pub(super) fn batch(rows: &[Vec<f32>], first: u128) -> Vec<Posting> {
    rows.iter().zip(first..).map(|(vector, id)| posting(vector, id)).collect()
}

pub(super) fn posting(vector: &[f32], id: u128) -> Posting {
    Posting { document_id: DocumentId(id), start: 0, length: 1, vector: vector.to_vec() }
}

/// One thread: what a search could use besides is left out.
pub(super) async fn open(dir: &Path, options: OpenOptions) -> Result<Shardex, Failure> {
    let env = Env { executor: Arc::new(Inline), ..Env::system() };
    Ok(Shardex::open_in(dir, options, env).await?)
}

/// Measures all of it, in `dir`.
pub(super) async fn run(args: &Bench, dir: &Path, output: &Output) -> Result<Value, Failure> {
    let data = Data::new(args)?;
    let mut object = json!({ "rows": data.rows.len() });
    let mut section = |name: &str, (value, text): (Value, String)| {
        output.say(&text);
        object[name] = value;
    };
    section("ingest", ingest(&data, dir).await?);
    let index = dir.join("ingest-1000");
    section("search", search(&data, &index, args.rounds).await?);
    section("changed", changed(&data, dir, args.rounds).await?);
    section("flush", flushes(&data, &index, dir, args.rounds).await?);
    section("open", opens(&data, &index, args.rounds).await?);
    section("recovery", recovery(&data, &dir.join("recovered")).await?);
    Ok(object)
}

/// Durable ingest into an empty index, a commit for each batch, and what it writes.
async fn ingest(data: &Data, dir: &Path) -> Result<(Value, String), Failure> {
    let (mut values, mut text) =
        (Vec::new(), format!("durable ingest of {} rows into an empty index", data.rows.len()));
    for size in [100, 1_000] {
        let dir = dir.join(format!("ingest-{size}"));
        let options = OpenOptions::default().durability(Durability::Manual);
        let index = Shardex::create(data.config(&dir, options)).await?;
        // Made before: what is measured is the index.
        let batches: Vec<_> =
            data.rows.chunks(size).enumerate().map(|(i, rows)| batch(rows, (i * size) as u128)).collect();
        let began = Instant::now();
        for batch in batches {
            index.add_postings(batch).await?;
            index.commit().await?;
        }
        let seconds = began.elapsed().as_secs_f64();
        let began = Instant::now();
        index.optimize().await?;
        let optimize = began.elapsed();
        index.flush().await?;
        let stats = index.stats().await?;
        index.close().await?;
        let (rate, times) = (data.rows.len() as f64 / seconds, stats.bytes_stored as f64 / data.bytes());
        text.push_str(&format!(
            "\n  batches of {size:<5} {rate:>8.0} /s   {} barriers, {times:.2} times the vectors' bytes written; cells at the \
             end {}",
            stats.barriers,
            ms(optimize)
        ));
        values.push(json!({
            "batch": size, "per_s": rate, "barriers": stats.barriers, "bytes_written_of_vectors": times,
            "optimize_s": optimize.as_secs_f64(), "splits": stats.splits, "shards": stats.total_shards,
        }));
    }
    Ok((values.into(), text))
}

/// The true nearest of each query.
pub(super) async fn truth(data: &Data, index: &Shardex) -> Result<Vec<Vec<i64>>, Failure> {
    if let Some(truth) = &data.truth {
        return Ok(truth.clone());
    }
    let exact = ask_all(index, data.queries.clone(), &SearchOptions::new(K).exact(), 1).await?;
    Ok(exact.iter().map(|found| found.ids().filter_map(|id| i64::try_from(id).ok()).collect()).collect())
}

/// Searches one at a time on one thread, at several recalls, all of them in turn in each round; and in one call.
async fn search(data: &Data, dir: &Path, rounds: usize) -> Result<(Value, String), Failure> {
    let index = open(dir, OpenOptions::default()).await?;
    index.snapshot().await?.warm()?;
    let truth = truth(data, &index).await?;
    let named = RECALLS.iter().map(|&recall| (format!("recall {recall}"), SearchOptions::new(K).recall(recall)));
    let settings: Vec<(String, SearchOptions)> = named.chain([("default".to_owned(), SearchOptions::new(K))]).collect();
    let mut rates = vec![Vec::new(); settings.len() + 1];
    let mut answers: Vec<Vec<Found>> = Vec::new();
    for _ in 0..rounds {
        answers.clear();
        for (i, (_, options)) in settings.iter().enumerate() {
            let began = Instant::now();
            let found = ask_all(&index, data.queries.clone(), options, 1).await?;
            rates[i].push(found.len() as f64 / began.elapsed().as_secs_f64());
            answers.push(found);
        }
        let began = Instant::now();
        index.search_many(&data.queries, &settings[settings.len() - 1].1).await?;
        rates[settings.len()].push(data.queries.len() as f64 / began.elapsed().as_secs_f64());
    }
    let stats = index.stats().await?;
    index.close().await?;
    let proved = stats.recall.as_ref().map(recall_object);
    let memory = stats.memory_usage as f64 / stats.total_postings.max(1) as f64;
    let mut text = format!(
        "searches of {} rows for the {K} nearest, one thread; {} cells, {memory:.0} bytes of memory a vector\n  \
         {}",
        stats.total_postings,
        stats.cells,
        recall_text(&stats),
    );
    let mut values = Vec::new();
    for (i, (name, _)) in settings.iter().enumerate() {
        let (rate, found) = (median(rates[i].clone()), &answers[i]);
        let mean = |of: fn(&Found) -> usize| found.iter().map(of).sum::<usize>() as f64 / found.len().max(1) as f64;
        let (reached, scanned, computed) = (recall(found, &truth, K), mean(|f| f.scanned), mean(|f| f.computed));
        text.push_str(&format!(
            "\n  {name:<12} {rate:>8.0} /s   recall {reached:.4}, {scanned:.0} postings looked at, {computed:.0} distances"
        ));
        values.push(json!({
            "asked": name, "qps": rate, "recall": reached, "scanned": scanned, "computed": computed,
        }));
    }
    let batched = median(rates[settings.len()].clone());
    text.push_str(&format!("\n  default, all queries in one call {batched:.0} /s"));
    Ok((json!({ "settings": values, "batched_qps": batched, "bytes_a_vector": memory, "proved": proved }), text))
}

/// A flush after some new vectors, and what a byte of it costs beside one of an index of a tenth of the rows.
async fn flushes(data: &Data, dir: &Path, bare: &Path, rounds: usize) -> Result<(Value, String), Failure> {
    let (large, text) = flush(data, (data.rows.len(), dir), bare, rounds).await?;
    let few = data.rows.len().div_ceil(10);
    let tenth = bare.join("tenth");
    let index = Shardex::create(data.config(&tenth, OpenOptions::default().durability(Durability::Manual))).await?;
    for (i, rows) in data.rows[..few].chunks(1_000).enumerate() {
        index.add_postings(batch(rows, i as u128 * 1_000)).await?;
    }
    index.optimize().await?;
    index.close().await?;
    let (small, more) = flush(data, (few, &tenth), bare, rounds).await?;
    let [of_large, of_small] = [&large, &small].map(|flush| flush["ns_a_byte"].as_f64().unwrap_or(f64::NAN));
    let ratio = of_large / of_small;
    let text = format!(
        "{text}\n{more}\n  a byte of the larger one {of_large:.2} ns, of the smaller one {of_small:.2} ns: {ratio:.2} times"
    );
    Ok((json!({ "large": large, "small": small, "a_byte_ratio": ratio }), text))
}

/// A flush after some new vectors, beside a bare program that stores as many bytes in scattered pages and syncs as often.
async fn flush(
    data: &Data,
    (rows, dir): (usize, &Path),
    bare: &Path,
    rounds: usize,
) -> Result<(Value, String), Failure> {
    let options = OpenOptions::default().durability(Durability::Manual).flush_interval_ms(0);
    let index = open(dir, options).await?;
    let (mut ours, mut bares, mut ratios, mut a_byte) = (vec![], vec![], vec![], vec![]);
    let (mut bytes, mut barriers) = (0, 0);
    for (round, new) in data.more.chunks(FLUSHED).take(rounds).enumerate() {
        index.add_postings(batch(new, 5_000_000_000 + (round * FLUSHED) as u128)).await?;
        let began = Instant::now();
        let stats = index.flush().await?;
        let took = began.elapsed().as_secs_f64();
        (bytes, barriers) = (stats.bytes_synced, stats.barriers);
        let beside = scattered(bare, bytes as usize / PAGE, round)?.as_secs_f64();
        ours.push(took);
        bares.push(beside);
        ratios.push(took / beside);
        a_byte.push(took / bytes as f64 * 1e9);
    }
    index.close().await?;
    let (ours, bares, ratio) = (median(ours), median(bares), median(ratios));
    let pages = bytes as f64 / PAGE as f64 / FLUSHED as f64;
    let text = format!(
        "a flush after {FLUSHED} new vectors at {} rows: {bytes} bytes, {pages:.1} pages a posting, {barriers} barriers\n  \
         the flush                 {:>12}\n  \
         bare stores and syncs     {:>12}   {ratio:.2} times that",
        rows,
        ms(Duration::from_secs_f64(ours)),
        ms(Duration::from_secs_f64(bares)),
    );
    let object = json!({
        "flush_s": ours, "bare_s": bares, "ratio": ratio, "bytes": bytes, "pages_a_posting": pages, "barriers": barriers,
        "ns_a_byte": median(a_byte),
    });
    Ok((object, text))
}

/// Stores so many pages at scattered places of a large file and syncs it, then one page of each of two others.
fn scattered(dir: &Path, pages: usize, round: usize) -> Result<Duration, Failure> {
    const SPREAD: u64 = 32_768;
    let file = |name: &str| FileOptions::new().create(true).truncate(false).read(true).write(true).open(dir.join(name));
    let (large, root, log) = (file("bare-data")?, file("bare-root")?, file("bare-log")?);
    if large.metadata()?.len() == 0 {
        for page in 0..SPREAD {
            large.write_at(&[1; PAGE], page * PAGE as u64)?;
        }
        large.sync_all()?;
    }
    let block = [round as u8; PAGE];
    let began = Instant::now();
    for i in 0..pages as u64 {
        let page = (i * 7_919 + round as u64 * 104_729) % SPREAD;
        large.write_at(&block, page * PAGE as u64)?;
    }
    large.sync_data()?;
    for small in [root, log] {
        small.write_at(&block, 0)?;
        small.sync_data()?;
    }
    Ok(began.elapsed())
}

/// From a closed index to the first answer.
async fn opens(data: &Data, dir: &Path, rounds: usize) -> Result<(Value, String), Failure> {
    let (mut opened, mut answered, mut shards) = (Vec::new(), Vec::new(), 0);
    for _ in 0..rounds.max(3) {
        let began = Instant::now();
        let index = Shardex::open(dir).await?;
        opened.push(began.elapsed().as_secs_f64());
        let hits = index.search_in_place(&data.queries[0], &SearchOptions::new(K)).await?;
        answered.push(began.elapsed().as_secs_f64());
        drop(hits);
        shards = index.stats().await?.total_shards;
        index.close().await?;
    }
    let (opened, answered) = (median(opened), median(answered));
    let text = format!(
        "open of {shards} shards: {}, to the first answer {}",
        ms(Duration::from_secs_f64(opened)),
        ms(Duration::from_secs_f64(answered))
    );
    Ok((json!({ "open_s": opened, "first_answer_s": answered, "shards": shards }), text))
}

/// An open after a crash with a WAL that is as full as it gets before a flush begins by itself.
async fn recovery(data: &Data, dir: &Path) -> Result<(Value, String), Failure> {
    let limit = OpenOptions::default().flush_wal_bytes;
    let options = OpenOptions::default().durability(Durability::Manual).flush_interval_ms(0).flush_wal_bytes(0);
    let index = Shardex::create(data.config(dir, options)).await?;
    for (i, rows) in data.rows.chunks(1_000).enumerate() {
        if index.stats().await?.wal_bytes >= limit {
            break;
        }
        index.add_postings(batch(rows, i as u128 * 1_000)).await?;
    }
    index.commit().await?;
    // Without a close it is as after a crash.
    drop(index);
    let began = Instant::now();
    let index = Shardex::open(dir).await?;
    let took = began.elapsed();
    let stats = index.stats().await?;
    index.close().await?;
    let (records, operations) = (stats.recovery.records_replayed, stats.recovery.operations_replayed);
    let text = format!("recovery of {records} records, {operations} postings: {}", ms(took));
    Ok((json!({ "recovery_s": took.as_secs_f64(), "records": records, "postings": operations }), text))
}
