//! Part of `shardex bench` that measures one index in all respects: searches at several target recalls, durable ingest,
//! a flush, an open, a recovery, bytes and memory. The vectors are generated or come from `.npy` files.

use std::{
    fs::OpenOptions as FileOptions,
    os::unix::fs::FileExt as _,
    path::Path,
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use shardex::{Durability, OpenOptions, SearchOptions, Shardex, VectorEncoding};

use super::{
    Failure,
    admin::{recall_object, recall_text},
    args::Bench,
    bench_data::{Data, FLUSHED, K, RECALLS, batch, median, open, truth},
    grown::changed,
    hits::QueryHits,
    output::{Output, ms},
    search::{ask_all, recall},
};

/// Number of bytes per page of the bare program, and unit of the figure `pages_a_posting`.
const PAGE: usize = 4_096;

/// Runs all measurements of this part, with indexes in `dir`.
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

/// Measures durable ingest into an empty index, with a commit per batch, and the number of bytes written.
async fn ingest(data: &Data, dir: &Path) -> Result<(Value, String), Failure> {
    let (mut values, mut text) =
        (Vec::new(), format!("durable ingest of {} rows into an empty index", data.rows.len()));
    for size in [100, 1_000] {
        let dir = dir.join(format!("ingest-{size}"));
        let options = OpenOptions::default().durability(Durability::Manual).stats_file(true);
        let index = Shardex::create(data.config(&dir, options)).await?;
        // Generated before the clock starts, so that only the index is measured.
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

/// Measures searches on one thread: one query per call at several target recalls, and all queries in one call. The
/// settings take turns in each round.
async fn search(data: &Data, dir: &Path, rounds: usize) -> Result<(Value, String), Failure> {
    let index = open(dir, OpenOptions::default().stats_file(true)).await?;
    index.snapshot().await?.warm()?;
    let truth = truth(data, &index).await?;
    let named = RECALLS.iter().map(|&recall| (format!("recall {recall}"), SearchOptions::new(K).recall(recall)));
    // The recall of an exact search shows what rounding has lost.
    let exact = (data.encoding != VectorEncoding::F32).then(|| ("exact".to_owned(), SearchOptions::new(K).exact()));
    let settings: Vec<(String, SearchOptions)> =
        exact.into_iter().chain(named).chain([("default".to_owned(), SearchOptions::new(K))]).collect();
    let mut rates = vec![Vec::new(); settings.len() + 1];
    let mut answers: Vec<Vec<QueryHits>> = Vec::new();
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
        let mean = |of: fn(&QueryHits) -> usize| found.iter().map(of).sum::<usize>() as f64 / found.len().max(1) as f64;
        let (reached, scanned, computed) = (recall(found, &truth, K), mean(|f| f.scanned), mean(|f| f.computed));
        text.push_str(&format!(
            "\n  {name:<12} {rate:>8.0} /s   recall {reached:.4}, {scanned:.0} postings scanned, {computed:.0} distances"
        ));
        values.push(json!({
            "asked": name, "qps": rate, "recall": reached, "scanned": scanned, "computed": computed,
        }));
    }
    let batched = median(rates[settings.len()].clone());
    text.push_str(&format!("\n  default, all queries in one call {batched:.0} /s"));
    Ok((json!({ "settings": values, "batched_qps": batched, "bytes_a_vector": memory, "proved": proved }), text))
}

/// Measures a flush after some new vectors at full size and at a tenth of the rows, and compares the cost per byte.
async fn flushes(data: &Data, dir: &Path, bare: &Path, rounds: usize) -> Result<(Value, String), Failure> {
    let (large, text) = flush(data, data.rows.len(), dir, bare, rounds).await?;
    let few = data.rows.len().div_ceil(10);
    let tenth = bare.join("tenth");
    let index = Shardex::create(data.config(&tenth, OpenOptions::default().durability(Durability::Manual))).await?;
    for (i, rows) in data.rows[..few].chunks(1_000).enumerate() {
        index.add_postings(batch(rows, i as u128 * 1_000)).await?;
    }
    index.optimize().await?;
    index.close().await?;
    let (small, more) = flush(data, few, &tenth, bare, rounds).await?;
    let [of_large, of_small] = [&large, &small].map(|flush| flush["ns_a_byte"].as_f64().unwrap_or(f64::NAN));
    let ratio = of_large / of_small;
    let text = format!(
        "{text}\n{more}\n  a byte of the larger one {of_large:.2} ns, of the smaller one {of_small:.2} ns: {ratio:.2} times"
    );
    Ok((json!({ "large": large, "small": small, "a_byte_ratio": ratio }), text))
}

/// Measures a flush after some new vectors, beside a bare program that writes the same number of bytes to scattered
/// pages and makes three syncs.
async fn flush(data: &Data, rows: usize, dir: &Path, bare: &Path, rounds: usize) -> Result<(Value, String), Failure> {
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

/// Writes `pages` pages at scattered positions of a large file and syncs it. Then writes one page to each of two other
/// files and syncs each. Returns the time of these writes and syncs.
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

/// Measures the time from a closed index to the first answer.
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

/// Measures an open after a crash. The WAL is filled to the default flush threshold, or with all rows if these are
/// fewer bytes.
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
    // A drop without a close leaves the files as a process crash does.
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
