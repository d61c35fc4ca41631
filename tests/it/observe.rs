//! Tests of what a program sees of an index: latencies, spans, metrics, and the stats file.

use std::{
    fs, io,
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use rand::{RngExt as _, SeedableRng as _, rngs::ChaCha8Rng};
use shardex::{
    CheckLevel, Durability, IndexStats, LatencyStats, Metric, OpenOptions, SearchOptions, ShardexConfig, ShardexError,
    blocking::Shardex,
    env::{Clock, Env},
    observe::StatsReport,
    storage::{MmapStorage, Storage as _},
};
use shardex_sim::{CrashKind, HookAction, HookStorage, OpInfo, SimStorage, storage::Op, workload};
use tempfile::TempDir;

use crate::support::{DIMENSION, block_on, documents, vector};

#[cfg(feature = "metrics")]
mod metrics;
#[cfg(feature = "tracing")]
mod spans;

/// The tables of names in the module's documentation.
#[cfg(any(feature = "metrics", feature = "tracing"))]
const DOCUMENTED: &str = include_str!("../../src/observe/mod.rs");

/// Returns the documented names that begin with `prefix` and are first in a row of a table.
#[cfg(any(feature = "metrics", feature = "tracing"))]
fn documented(prefix: &str) -> std::collections::BTreeSet<&'static str> {
    let rows = DOCUMENTED.lines().filter_map(|line| line.strip_prefix("//! | `")?.split('`').next());
    rows.filter(|name| name.starts_with(prefix)).collect()
}

/// Directory of an index, removed at the end.
struct Home(TempDir);

impl Home {
    fn new() -> Self {
        Self(TempDir::new().expect("a temporary directory"))
    }

    fn path(&self) -> std::path::PathBuf {
        self.0.path().join("index")
    }

    fn config(&self, options: OpenOptions) -> ShardexConfig {
        ShardexConfig::new(self.path()).vector_size(DIMENSION).shard_size(32).metric(Metric::L2).options(options)
    }

    fn create(&self, options: OpenOptions) -> Shardex {
        Shardex::create(self.config(options)).expect("it is made")
    }
}

/// Options under which nothing commits or flushes by itself.
fn manual() -> OpenOptions {
    OpenOptions::default().durability(Durability::Manual).flush_interval_ms(0)
}

/// Clock that advances by `step` nanoseconds at each reading.
#[derive(Default)]
struct SteppingClock {
    now: AtomicU64,
    step: AtomicU64,
}

impl Clock for SteppingClock {
    fn unix_ms(&self) -> u64 {
        1_700_000_000_000
    }

    fn elapsed(&self) -> Duration {
        Duration::from_nanos(self.now.fetch_add(self.step.load(Ordering::Relaxed), Ordering::Relaxed))
    }
}

/// Returns the value of the nearest rank.
fn exact(sorted: &[u64], percent: usize) -> u64 {
    sorted[(sorted.len() * percent).div_ceil(100).max(1) - 1]
}

#[track_caller]
fn near(found: Duration, exact: u64) {
    let found = found.as_nanos() as u64;
    // The documented error: 3.2 %.
    assert!(found.abs_diff(exact) as f64 <= exact as f64 * 0.032, "{found} ns instead of {exact}");
}

#[test]
fn quantiles_are_off_by_no_more_than_documented() {
    let home = Home::new();
    home.create(manual()).close().expect("closed");
    let mut rng = ChaCha8Rng::seed_from_u64(7);
    for n in [1, 2, 3, 20, 99, 100, 101, 5_000] {
        let clock = Arc::new(SteppingClock::default());
        let env = Env { clock: Arc::<SteppingClock>::clone(&clock), ..Env::system() };
        let index = Shardex::open_in(home.path(), manual(), env).expect("it opens");
        // From 1 ns to about 20 minutes, each magnitude as often.
        let mut latencies: Vec<u64> = (0..n).map(|_| 2f64.powf(rng.random_range(0.0..40.0)) as u64).collect();
        for &latency in &latencies {
            // A search reads the clock at its begin and its end.
            clock.step.store(latency, Ordering::Relaxed);
            index.search(&vector(1, DIMENSION), 3, None).expect("it succeeds");
        }
        clock.step.store(0, Ordering::Relaxed);
        let found = index.stats().expect("statistics").search_latency;
        latencies.sort_unstable();
        assert_eq!((found.count, found.max.as_nanos() as u64), (n, latencies[latencies.len() - 1]));
        near(found.p50, exact(&latencies, 50));
        near(found.p95, exact(&latencies, 95));
        near(found.p99, exact(&latencies, 99));
        index.close().expect("closed");
    }
}

fn counts(stats: &IndexStats) -> [u64; 4] {
    [stats.search_latency, stats.write_latency, stats.commit_latency, stats.flush_latency].map(|latency| latency.count)
}

#[test]
fn each_operation_counts_once_and_a_failed_one_never() {
    let home = Home::new();
    let index = home.create(manual());
    assert_eq!(counts(&index.stats().expect("statistics")), [0; 4]);
    for n in 0..5 {
        index.add_postings(documents(n * 10..n * 10 + 10)).expect("accepted");
    }
    index.remove_documents(vec![3u32.into()]).expect("accepted");
    index.remove_document_range(0u32.into()..=1u32.into()).expect("accepted");
    let query = vector(1, DIMENSION);
    index.search(&query, 3, None).expect("found");
    index.search_many(&vec![query.clone(); 7], &SearchOptions::new(2)).expect("found");
    index.snapshot().expect("a snapshot").search(&query, 1, None).expect("found");
    // The second commit and the second flush have nothing to do.
    (0..2).for_each(|_| index.commit().expect("durable"));
    index.add_postings(documents(100..101)).expect("accepted");
    for _ in 0..2 {
        index.flush().expect("durable");
    }
    index.search(&[1.0], 3, None).expect_err("another dimension");
    index.add_postings(vec![crate::support::posting(1, 0, vec![1.0])]).expect_err("another dimension");
    let stats = index.stats().expect("statistics");
    assert_eq!(counts(&stats), [9, 8, 1, 1]);
    assert_eq!([stats.commits, stats.flushes], [1, 1]);
    let last = stats.last_flush.expect("a flush").total_duration;
    assert_eq!(stats.flush_latency.max, last);
    near(stats.flush_latency.p50, last.as_nanos() as u64);
    for latency in [stats.search_latency, stats.write_latency, stats.commit_latency, stats.flush_latency] {
        let LatencyStats { p50, p95, p99, max, .. } = latency;
        assert!(Duration::ZERO < p50 && p50 <= p95 && p95 <= p99 && p99 <= max, "{latency:?}");
    }
    index.close().expect("closed");

    // The first write after a clean open flushes by itself. That counts, too.
    let index = Shardex::open_with(home.path(), manual()).expect("it opens");
    index.add_postings(documents(200..210)).expect("accepted");
    let stats = index.stats().expect("statistics");
    assert!(stats.flushes > 0);
    assert_eq!(counts(&stats), [0, 1, 0, stats.flushes]);
}

#[test]
fn no_latency_is_lost_between_threads() {
    let home = Home::new();
    let index = home.create(manual());
    index.add_postings(documents(0..20)).expect("accepted");
    thread::scope(|scope| {
        for n in 0..4 {
            let index = index.clone();
            scope.spawn(move || {
                (0..500).for_each(|_| drop(index.search(&vector(n, DIMENSION), 1, None).expect("found")));
            });
        }
    });
    assert_eq!(index.stats().expect("statistics").search_latency.count, 2_000);
}

/// The clock that is handed in is the only source of latencies.
#[test]
fn a_clock_that_stands_still_gives_zero() {
    let home = Home::new();
    home.create(manual()).close().expect("closed");
    let index = Shardex::open_in(home.path(), manual(), workload::env()).expect("it opens");
    index.add_postings(documents(0..20)).expect("accepted");
    index.search(&vector(1, DIMENSION), 3, None).expect("found");
    index.commit().expect("durable");
    index.flush().expect("durable");
    let stats = index.stats().expect("statistics");
    for latency in [stats.search_latency, stats.write_latency, stats.commit_latency, stats.flush_latency] {
        assert_eq!((latency.p50, latency.p99, latency.max), Default::default());
        assert!(latency.count > 0);
    }
}

/// Waits until the report of a directory passes a test. The owner writes it within about a second.
#[track_caller]
fn report_that(dir: &Path, passes: impl Fn(&StatsReport) -> bool) -> StatsReport {
    let limit = Instant::now() + Duration::from_secs(60);
    loop {
        match StatsReport::read(dir) {
            Ok(report) if passes(&report) => return report,
            other => assert!(Instant::now() < limit, "{other:?}"),
        }
        thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn the_stats_file_says_what_stats_says() {
    let home = Home::new();
    let index = home.create(manual().stats_file(true));
    index.add_postings(documents(0..70)).expect("accepted");
    index.flush().expect("durable");
    index.add_postings(documents(100..105)).expect("accepted");
    index.search(&vector(1, DIMENSION), 3, None).expect("found");
    let report = report_that(&home.path(), |report| report.number("search_count") == Some(1));
    let stats = index.stats().expect("statistics");
    assert!(report.is_live() && report.get("state") == Some("open"));
    for (name, number) in [
        ("postings", 75),
        ("shards", stats.total_shards as u64),
        ("wal_bytes", stats.wal_bytes),
        ("undurable_bytes", stats.uncommitted_bytes),
        ("durable_lsn", stats.durable_lsn.0),
        ("last_lsn", stats.last_lsn.0),
        ("write_count", 2),
        ("flush_count", 1),
        ("search_max_ns", stats.search_latency.max.as_nanos() as u64),
        ("last_flush_ns", stats.last_flush.as_ref().expect("a flush").total_duration.as_nanos() as u64),
        ("background_errors", 0),
    ] {
        assert_eq!(report.number(name), Some(number), "{name}");
    }
    assert_eq!(report.get("durability"), Some("manual"));
    let stage = stats.last_flush.expect("a flush").shard_sync_duration.as_nanos() as u64;
    assert_eq!(report.number("last_flush_shard_sync_ns"), Some(stage));

    index.close().expect("closed");
    let report = StatsReport::read(home.path()).expect("whole");
    assert!(!report.is_live() && report.get("state") == Some("closed"));
    assert_eq!((report.number("undurable_bytes"), report.number("undurable_operations")), (Some(0), Some(0)));

    // A handle without the option leaves the file as it is. A dropped handle closes it.
    let before = fs::read(home.path().join("stats")).expect("readable");
    drop(Shardex::open(home.path()).expect("it opens"));
    assert_eq!(fs::read(home.path().join("stats")).expect("readable"), before);
    let index = Shardex::open_with(home.path(), manual().stats_file(true)).expect("it opens");
    report_that(&home.path(), StatsReport::is_live);
    drop(index);
    assert_eq!(StatsReport::read(home.path()).expect("whole").get("state"), Some("closed"));
}

#[test]
fn without_the_option_there_is_no_stats_file() {
    let home = Home::new();
    let index = home.create(manual());
    index.add_postings(documents(0..5)).expect("accepted");
    index.close().expect("closed");
    assert_eq!(StatsReport::read(home.path()).expect_err("missing").kind(), io::ErrorKind::NotFound);
}

#[test]
fn a_damaged_stats_file_disturbs_nobody() {
    let home = Home::new();
    let options = || manual().stats_file(true);
    home.create(options()).close().expect("closed");
    let file = home.path().join("stats");
    let whole = fs::read(&file).expect("readable");
    let mut damaged = whole.clone();
    damaged[300] ^= 1;
    for contents in [Vec::new(), damaged, vec![0; 9_000], whole[..900].to_vec()] {
        fs::write(&file, &contents).expect("written");
        assert_eq!(StatsReport::read(home.path()).expect_err("damaged").kind(), io::ErrorKind::InvalidData);
        let index = Shardex::open(home.path()).expect("it opens");
        index.add_postings(documents(0..5)).expect("accepted");
        assert!(index.check(CheckLevel::Full).expect("checked").is_clean());
        index.close().expect("closed");
        assert_eq!(fs::read(&file).expect("readable"), contents);
        // The next owner with the option mends it.
        Shardex::open_with(home.path(), options()).expect("it opens").close().expect("closed");
        assert_eq!(StatsReport::read(home.path()).expect("whole").number("postings"), Some(5));
    }
    fs::remove_file(&file).expect("removed");
    // Something else in its place.
    fs::create_dir(&file).expect("made");
    let index = Shardex::open_with(home.path(), options()).expect("it opens");
    index.add_postings(documents(5..9)).expect("accepted");
    assert!(index.check(CheckLevel::Full).expect("checked").is_clean());
    index.close().expect("closed");
    assert!(file.is_dir());
}

/// A reader holds a shared lock for a moment. An open at that moment succeeds, and the file is written later.
#[test]
fn a_reader_of_the_stats_file_delays_only_the_file() {
    let home = Home::new();
    home.create(manual().stats_file(true)).close().expect("closed");
    let reader = fs::File::open(home.path().join("stats")).expect("readable");
    reader.lock_shared().expect("locked");
    let index = Shardex::open_with(home.path(), manual().stats_file(true)).expect("it opens");
    index.add_postings(documents(0..5)).expect("accepted");
    assert_eq!(StatsReport::read(home.path()).expect("whole").get("state"), Some("closed"));
    drop(reader);
    let report = report_that(&home.path(), StatsReport::is_live);
    assert_eq!((report.get("state"), report.number("postings")), (Some("open"), Some(5)));
    index.close().expect("closed");
}

#[test]
fn the_stats_file_is_never_synced_and_its_errors_reach_nobody() {
    let ops = Arc::new(Mutex::new(Vec::new()));
    for fails in [false, true] {
        let (home, seen) = (Home::new(), Arc::clone(&ops));
        let hook = HookStorage::new(MmapStorage::new(home.path()), move |info: &OpInfo| {
            if info.file == "stats" {
                seen.lock().expect("no panic").push(info.op);
            }
            if fails && info.file == "stats" {
                HookAction::Fail(io::ErrorKind::StorageFull)
            } else {
                HookAction::Proceed
            }
        });
        let config = home.config(manual().stats_file(true));
        block_on(async {
            let index = shardex::Shardex::create_on(hook, config, Env::system()).await?;
            index.add_postings(documents(0..50)).await?;
            index.commit().await?;
            index.flush().await?;
            let stats = index.stats().await?;
            assert_eq!((stats.errors, &stats.background_error, &stats.poisoned), (0, &None, &None));
            index.close().await
        })
        .expect("no call fails");
        assert_eq!(StatsReport::read(home.path()).is_ok(), !fails);
    }
    let ops = ops.lock().expect("no panic");
    assert!(ops.contains(&Op::Store) && ops.contains(&Op::Allocate));
    assert!(ops.iter().all(|op| [Op::Create, Op::Store, Op::Allocate].contains(op)), "{ops:?}");
}

/// After a power cut the file holds anything. The recovery does not look at it.
#[test]
fn a_recovery_ignores_the_stats_file() {
    let mut tampered = 0;
    for seed in 1..9 {
        let sim = SimStorage::new(4096, 512, seed);
        let mut after = sim.clone();
        let config = || ShardexConfig::new("unused").vector_size(DIMENSION).options(manual().stats_file(true));
        block_on(async {
            let index = shardex::Shardex::create_on(sim.clone(), config(), workload::env()).await?;
            index.add_postings(documents(0..50)).await?;
            index.commit().await?;
            after.crash(CrashKind::Power, &mut ChaCha8Rng::seed_from_u64(seed));
            drop(index);
            if after.list()?.iter().any(|name| name == "stats") {
                after.tamper("stats", |bytes| bytes.iter_mut().for_each(|byte| *byte ^= seed as u8));
                tampered += 1;
            }
            let index = shardex::Shardex::open_on(after, config().options, workload::env()).await?;
            assert_eq!(index.stats().await?.total_postings, 50);
            assert!(index.check(CheckLevel::Full).await?.is_clean());
            index.close().await
        })
        .expect("it recovers");
    }
    assert!(tampered > 0, "the file never survived");
}

/// A file of somebody else with the name of the stats file is never touched.
#[test]
fn a_create_refuses_a_directory_with_a_strangers_file_of_that_name() {
    let home = Home::new();
    fs::create_dir(home.path()).expect("made");
    let file = home.path().join("stats");
    for (kind, contents) in [("text", &b"my statistics"[..]), ("short", b"s"), ("directory", b"")] {
        if kind == "directory" {
            fs::remove_file(&file).expect("removed");
            fs::create_dir(&file).expect("made");
        } else {
            fs::write(&file, contents).expect("written");
        }
        let refused = Shardex::create(home.config(manual())).map(drop);
        match refused {
            Err(ShardexError::AlreadyExists { reason, .. }) => assert!(reason.contains("`stats`"), "{reason}"),
            other => panic!("{kind}: {other:?}"),
        }
        assert!(matches!(Shardex::open(home.path()), Err(ShardexError::NotFound { .. })), "{kind}");
        let left: Vec<_> =
            fs::read_dir(home.path()).expect("readable").map(|entry| entry.expect("one").file_name()).collect();
        assert_eq!(left, ["stats"], "{kind}");
        assert!(file.is_dir() || fs::read(&file).expect("readable") == contents, "{kind}");
    }
}

/// A stats file alone makes no index, and a `create` uses it.
#[test]
fn a_left_stats_file_does_not_stop_a_create() {
    let home = Home::new();
    let options = || manual().stats_file(true);
    home.create(options()).close().expect("closed");
    for name in ["root", "data", "wal", "LOCK"] {
        fs::remove_file(home.path().join(name)).expect("removed");
    }
    assert!(matches!(Shardex::open(home.path()), Err(ShardexError::NotFound { .. })));
    assert!(!home.path().join("LOCK").exists());
    let index = home.create(options());
    assert_eq!(index.stats().expect("statistics").total_postings, 0);
    index.close().expect("closed");
}
