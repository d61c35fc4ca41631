//! Command `shardex demo`: runs a typical workload, and tests the durability promises on this machine.

use std::{
    collections::BTreeMap,
    io::{BufRead as _, BufReader},
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use rand::{RngExt as _, SeedableRng as _, rngs::ChaCha8Rng};
use serde_json::json;
use shardex::{
    CheckLevel, DocumentId, Durability, FlushStats, Metric, OpenOptions, Posting, SearchOptions, Shardex, ShardexConfig,
};

use super::{
    Answer, Failure, Outcome,
    admin::flush_object,
    args::DemoChild,
    block_on,
    hits::QueryHits,
    interrupt::Interrupt,
    output::{self, Output, ms},
    search::{ask_all, percentile, recall},
    target::outside_every_index,
};

pub(super) const DIMENSION: usize = 384;
const VECTORS: u64 = 20_000;
const CLUSTERS: u64 = 200;
const BATCH: u64 = 1_000;
const FLUSH_EACH: u64 = 4;
const QUERIES: u64 = 200;
const K: usize = 10;
const SEED: u64 = 20_250_919;

/// Number of times the child process is started and killed.
const KILLS: u64 = 4;
const CHILD_BATCH: u64 = 100;
/// Maximum number of batches per child. It is larger than a child can add before it is killed.
const CHILD_BATCHES: u64 = 300;
/// Number of queries for which a recovered index must give the answer of a brute-force search.
const PROOF_QUERIES: u64 = 25;

/// Computes vector `n` of a seed: a point near one of the cluster centres. It depends only on `seed` and `n`.
pub(super) fn vector(seed: u64, n: u64) -> Vec<f32> {
    let point = |stream: u64, n: u64| {
        let mut key = [0; 32];
        for (part, value) in key.chunks_exact_mut(8).zip([seed, stream, n, 0]) {
            part.copy_from_slice(&value.to_le_bytes());
        }
        let mut rng = ChaCha8Rng::from_seed(key);
        // The sum of four uniform numbers approximates a normal distribution.
        let mut bell = move || (0..4).map(|_| rng.random::<f32>() - 0.5).sum::<f32>();
        (0..DIMENSION).map(|_| bell()).collect::<Vec<f32>>()
    };
    let (centre, noise) = (point(1, n.wrapping_mul(0x9E37_79B9_7F4A_7C15) % CLUSTERS), point(2, n));
    centre.iter().zip(&noise).map(|(c, x)| c + 0.6 * x).collect()
}

pub(super) fn postings(seed: u64, ids: std::ops::Range<u64>) -> Vec<Posting> {
    ids.map(|n| Posting { document_id: DocumentId(n.into()), start: 0, length: 1, vector: vector(seed, n), tags: 0 })
        .collect()
}

pub(super) fn run(output: &Output) -> Outcome {
    outside_every_index(&std::env::temp_dir())?;
    let interrupt = Interrupt::listen()?;
    let dir = tempfile::Builder::new().prefix("shardex-demo-").tempdir()?;
    interrupt.removes(&[dir.path()])?;
    let work = main_job(&dir.path().join("main"), output)?;
    let proof = proof(&dir.path().join("killed"), output)?;
    output.say(&format!("\n{}", table(&work, &proof)));
    if output.is_json() {
        output::line(&object(&work, &proof).to_string());
    }
    Ok(if proof.broken.is_none() && work.clean { Answer::Yes } else { Answer::No })
}

/// Measurements of the typical workload.
struct Work {
    seconds: f64,
    flushes: u64,
    flush: FlushStats,
    recall: f64,
    scanned: f64,
    p50: Duration,
    p99: Duration,
    exact_p50: Duration,
    clean: bool,
}

/// Ingests with commits and flushes, searches, and checks the index.
fn main_job(dir: &Path, output: &Output) -> Result<Work, Failure> {
    output.say(&format!("{VECTORS} vectors of {DIMENSION} numbers in {CLUSTERS} clusters, batches of {BATCH}"));
    let bar = output.bar(VECTORS, "ingesting");
    block_on(1, async {
        let options = OpenOptions::default().durability(Durability::Manual);
        let index = Shardex::create(ShardexConfig::new(dir).vector_size(DIMENSION).options(options)).await?;
        let mut busy = Duration::ZERO;
        let mut flush = FlushStats::default();
        for batch in 0..VECTORS / BATCH {
            let postings = postings(SEED, batch * BATCH..(batch + 1) * BATCH);
            let began = Instant::now();
            index.add_postings(postings).await?;
            if batch % FLUSH_EACH == FLUSH_EACH - 1 {
                flush = index.flush().await?;
            } else {
                index.commit().await?;
            }
            busy += began.elapsed();
            bar.inc(BATCH);
        }
        bar.finish_and_clear();
        output.say(&format!("\n{flush}\n"));
        let queries: Vec<Vec<f32>> = (0..QUERIES).map(|n| vector(SEED, VECTORS + n)).collect();
        let exact = ask_all(&index, queries.clone(), &SearchOptions::new(K).exact(), 1).await?;
        let found = ask_all(&index, queries, &SearchOptions::new(K).slop(8), 1).await?;
        let truth: Vec<Vec<i64>> = exact.iter().map(|found| found.ids().map(|id| id as i64).collect()).collect();
        let report = index.check(CheckLevel::Full).await?;
        let stats = index.stats().await?;
        index.close().await?;
        Ok(Work {
            seconds: busy.as_secs_f64(),
            flushes: stats.flushes,
            flush,
            recall: recall(&found, &truth, K),
            scanned: mean_scanned(&found),
            p50: percentile(found.iter().map(|found| found.time), 0.5),
            p99: percentile(found.iter().map(|found| found.time), 0.99),
            exact_p50: percentile(exact.iter().map(|found| found.time), 0.5),
            clean: report.is_clean(),
        })
    })
}

fn mean_scanned(found: &[QueryHits]) -> f64 {
    found.iter().map(|found| found.scanned).sum::<usize>() as f64 / found.len() as f64
}

/// Results of the kills.
#[derive(Default)]
struct Proof {
    rows: Vec<Kill>,
    findings: usize,
    /// The first broken promise, with its reason.
    broken: Option<String>,
}

/// Result of one kill.
struct Kill {
    acknowledged: u64,
    recovered: u64,
    replayed: u64,
    open: Duration,
}

/// Starts this program as a child, kills it during ingest and flush, opens the index it left, and compares. Repeats it
/// [`KILLS`] times, or until a promise is broken.
fn proof(dir: &Path, output: &Output) -> Result<Proof, Failure> {
    let bar = output.bar(KILLS, "killing");
    let mut proof = Proof::default();
    let mut rng = ChaCha8Rng::seed_from_u64(SEED);
    for _ in 0..KILLS {
        let before = proof.rows.last().map_or(0, |kill| kill.recovered);
        let acknowledged = kill_one(dir, before, &mut rng)?;
        block_on(1, examine(dir, acknowledged, &mut proof))?;
        bar.inc(1);
        if proof.broken.is_some() {
            break;
        }
    }
    bar.finish_and_clear();
    Ok(proof)
}

/// Child process that is killed when this value is dropped.
struct Killed(Child);

impl Killed {
    fn kill(&mut self) {
        // SIGKILL on Unix. An error means that the child has already exited.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Drop for Killed {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Lets a child work for a random time and kills it. Returns the number of rows acknowledged so far.
fn kill_one(dir: &Path, before: u64, rng: &mut ChaCha8Rng) -> Result<u64, Failure> {
    let mut child = Command::new(std::env::current_exe()?)
        .arg("demo-child")
        .args([dir.as_os_str(), SEED.to_string().as_ref()])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()?;
    let Some(out) = child.stdout.take() else { return Err(Failure("the child has no output".into())) };
    let mut child = Killed(child);
    let mut lines = BufReader::new(out).lines();
    let mut acknowledged = before;
    let mut hear = |acknowledged: &mut u64| match lines.next() {
        Some(Ok(line)) => {
            if let Some(rows) = line.strip_prefix("committed ").and_then(|rows| rows.parse().ok()) {
                *acknowledged = rows;
            }
            true
        }
        _ => false,
    };
    for _ in 0..rng.random_range(2..12) {
        if !hear(&mut acknowledged) {
            return Err(Failure(
                "the child ended by itself; run it as `shardex demo-child DIR SEED` to see why".into(),
            ));
        }
    }
    // A random delay after an acknowledgement, so that the kill hits an operation in progress.
    std::thread::sleep(Duration::from_micros(rng.random_range(0..15_000)));
    child.kill();
    while hear(&mut acknowledged) {}
    Ok(acknowledged)
}

/// Runs the child process: continues the ingest at the end of the index, and prints `committed ROWS` for each
/// acknowledgement. Of nine batches, it commits after the third and the sixth, and flushes after the ninth.
pub(super) fn child(args: &DemoChild) -> Outcome {
    block_on(1, async {
        let config = ShardexConfig::new(&args.dir).vector_size(DIMENSION).metric(Metric::Dot);
        let options = OpenOptions::default().durability(Durability::Manual);
        let index = Shardex::create(config.options(options)).await?;
        let first = index.stats().await?.total_postings / CHILD_BATCH;
        for batch in first..first + CHILD_BATCHES {
            let done = (batch + 1) * CHILD_BATCH;
            index.add_postings(postings(args.seed, batch * CHILD_BATCH..done)).await?;
            // Two of three batches are not acknowledged until the third, so that a kill also hits unacknowledged
            // batches.
            match batch % 9 {
                8 => {
                    index.flush().await?;
                }
                2 | 5 => index.commit().await?,
                _ => continue,
            }
            output::line(&format!("committed {done}"));
            if output::reader_is_gone() {
                break;
            }
        }
        index.close().await?;
        Ok(Answer::Yes)
    })
}

/// Opens the index left by a killed child, and tests promises P1 to P3 and the full check.
async fn examine(dir: &Path, acknowledged: u64, proof: &mut Proof) -> Result<(), Failure> {
    let began = Instant::now();
    let index = Shardex::open(dir).await?;
    let open = began.elapsed();
    let stats = index.stats().await?;
    let recovered = stats.total_postings;
    proof.rows.push(Kill { acknowledged, recovered, replayed: stats.recovery.operations_replayed, open });
    proof.broken = broken(&index, acknowledged, recovered).await?;
    let report = index.check(CheckLevel::Full).await?;
    proof.findings += report.findings.len();
    if let Some(finding) = report.findings.first() {
        proof.broken.get_or_insert_with(|| format!("the check found: {finding}"));
    }
    index.close().await?;
    Ok(())
}

/// Returns the first promise that a recovered index breaks, with the reason.
async fn broken(index: &Shardex, acknowledged: u64, recovered: u64) -> Result<Option<String>, Failure> {
    if recovered < acknowledged {
        return Ok(Some(format!("P1: {acknowledged} rows were acknowledged, {recovered} are there")));
    }
    if !recovered.is_multiple_of(CHILD_BATCH) {
        return Ok(Some(format!("P2: {recovered} rows are no whole number of batches")));
    }
    let expected: BTreeMap<u128, Vec<f32>> = (0..recovered).map(|n| (n.into(), vector(SEED, n))).collect();
    let all = index.search_with(&vector(SEED, 0), &SearchOptions::new(recovered as usize + 1).exact()).await?.results;
    let held: BTreeMap<u128, Vec<f32>> = all.into_iter().map(|hit| (hit.document_id.0, hit.vector)).collect();
    if held != expected {
        return Ok(Some(format!("P2: the rows that are there are not rows 0 to {recovered}")));
    }
    for n in 0..PROOF_QUERIES {
        let query = vector(SEED, u64::MAX / 2 + n);
        let found = index.search_with(&query, &SearchOptions::new(K).exact()).await?.results;
        let dot = |vector: &[f32]| query.iter().zip(vector).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum::<f64>();
        let mut scores: Vec<f64> = expected.values().map(|vector| dot(vector)).collect();
        scores.sort_by(|a, b| b.total_cmp(a));
        let equal = found.len() == K.min(scores.len())
            && found.iter().zip(&scores).all(|(hit, score)| {
                (f64::from(hit.similarity_score) - score).abs() < 1e-3 && (dot(&hit.vector) - score).abs() < 1e-3
            });
        if !equal {
            return Ok(Some(format!("P3: query {n} is not answered as brute force does")));
        }
    }
    Ok(None)
}

fn table(work: &Work, proof: &Proof) -> String {
    let mut rows = vec![
        (
            "ingest, durable".into(),
            format!("{:.0} vectors a second, {} flushes", VECTORS as f64 / work.seconds, work.flushes),
        ),
        (
            "one flush".into(),
            format!(
                "{}, {} barriers, {} bytes",
                ms(work.flush.total_duration),
                work.flush.barriers,
                work.flush.bytes_synced
            ),
        ),
        (
            format!("search, {K} nearest"),
            format!(
                "recall {:.3}, p50 {}, p99 {}, {:.0} vectors scanned",
                work.recall,
                ms(work.p50),
                ms(work.p99),
                work.scanned
            ),
        ),
        ("exact search".into(), format!("recall 1.000, p50 {}, {VECTORS} vectors scanned", ms(work.exact_p50))),
    ];
    for (n, kill) in proof.rows.iter().enumerate() {
        rows.push((
            format!("kill -9, {} of {KILLS}", n + 1),
            format!(
                "{} rows acknowledged, {} recovered ({} replayed) in {}",
                kill.acknowledged,
                kill.recovered,
                kill.replayed,
                ms(kill.open)
            ),
        ));
    }
    let verdict = |promise: &str| match &proof.broken {
        Some(how) if how.starts_with(promise) => how.clone(),
        _ => "kept".into(),
    };
    rows.push(("P1, nothing acknowledged is lost".into(), verdict("P1")));
    rows.push(("P2, whole batches in order".into(), verdict("P2")));
    rows.push(("P3, answers as brute force".into(), verdict("P3")));
    rows.push((
        "full check".into(),
        if work.clean && proof.findings == 0 { "clean".into() } else { format!("{} findings", proof.findings) },
    ));
    let width = rows.iter().map(|(name, _): &(String, String)| name.len()).max().unwrap_or(0);
    rows.iter().map(|(name, value)| format!("{name:<width$}  {value}")).collect::<Vec<_>>().join("\n")
}

fn object(work: &Work, proof: &Proof) -> serde_json::Value {
    let us = |time: Duration| time.as_secs_f64() * 1e6;
    let kills: Vec<_> = proof
        .rows
        .iter()
        .map(|kill| {
            json!({
                "acknowledged": kill.acknowledged,
                "recovered": kill.recovered,
                "replayed": kill.replayed,
                "open_ms": kill.open.as_secs_f64() * 1e3,
            })
        })
        .collect();
    json!({
        "vectors": VECTORS,
        "vectors_per_s": VECTORS as f64 / work.seconds,
        "flush": flush_object(&work.flush),
        "recall": work.recall,
        "scanned": work.scanned,
        "p50_us": us(work.p50),
        "p99_us": us(work.p99),
        "exact_p50_us": us(work.exact_p50),
        "kills": kills,
        "promises_kept": proof.broken.is_none(),
        "broken": proof.broken,
        "check_clean": work.clean && proof.findings == 0,
    })
}
