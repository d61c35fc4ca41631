//! Tests with SIGKILL on real files. A child works until it is killed, at a named step or at a random moment.
//! Afterwards the index contains everything that the child had acknowledged, and its content is the result of a prefix
//! of the child's batches.

use std::{
    env, fs,
    io::{BufRead as _, BufReader, Write as _},
    path::Path,
    process::{Child, ChildStdout, Command, Stdio},
    sync::atomic::{AtomicUsize, Ordering},
};

use shardex::{DocumentId, Engine, Metric, OpenOptions, Posting, ShardexConfig, env::Env, storage::MmapStorage};
use shardex_sim::{
    hook::{HookAction, HookStorage},
    model::{Batch, Model},
};
use tempfile::TempDir;

use crate::support::{Limit, vector};

const DIMENSION: usize = 12;
const DIR: &str = "SHARDEX_TEST_KILL_DIR";
const STEP: &str = "SHARDEX_TEST_KILL_STEP";
const NTH: &str = "SHARDEX_TEST_KILL_NTH";

fn config(dir: &Path) -> ShardexConfig {
    ShardexConfig::new(dir.join("index"))
        .vector_size(DIMENSION)
        .metric(Metric::Dot)
        .shard_size(8)
        .wal_segment_size(16 << 10)
}

/// Returns the child's `n`-th batch: additions that fill and split shards, replacements, and removals that empty some
/// shards.
fn batch(n: u64) -> Batch {
    let posting = |id: u64, salt: u64| Posting {
        document_id: DocumentId(id.into()),
        start: 0,
        length: 1,
        vector: vector(id * 31 + salt, DIMENSION),
        tags: 0,
    };
    match n % 5 {
        3 => Batch::Remove((n.saturating_sub(3) * 11..n * 11 - 15).map(|id| DocumentId(id.into())).collect()),
        4 => Batch::Add((n * 11 - 15..n * 11 - 5).map(|id| posting(id, n)).collect()),
        _ => Batch::Add((n * 11..n * 11 + 11).map(|id| posting(id, n)).collect()),
    }
}

/// Work of the child processes of the other tests. It is a test only because the children run the test binary, and it
/// returns at once if `SHARDEX_TEST_KILL_DIR` is not set.
#[test]
fn child() {
    let Ok(dir) = env::var(DIR) else { return };
    let step = env::var(STEP).ok();
    let nth: usize = env::var(NTH).ok().and_then(|nth| nth.parse().ok()).unwrap_or(1);
    let seen = AtomicUsize::new(0);
    let config = config(Path::new(&dir));
    let storage = HookStorage::new(MmapStorage::new(&config.directory_path), move |info| {
        if step.as_deref() == Some(info.purpose.0) && seen.fetch_add(1, Ordering::Relaxed) + 1 == nth {
            say("paused");
            loop {
                std::thread::park();
            }
        }
        HookAction::Proceed
    });
    let mut engine = Engine::create(storage, &config, &Env::system()).expect("the index opens");
    say("open");
    // The parent knows the recovered prefix. It stores the number of batches in a file beside the index.
    let from: u64 = fs::read_to_string(Path::new(&dir).join("prefix")).map_or(0, |n| n.parse().expect("a number"));
    for n in from..from + 400 {
        match batch(n) {
            Batch::Add(postings) => drop(engine.add(&postings).expect("accepted")),
            Batch::Remove(documents) => drop(engine.remove(&documents).expect("accepted")),
            Batch::Write(batch) => drop(engine.write(&batch).expect("accepted")),
        }
        if n % 4 == 3 {
            engine.flush().expect("flushed");
            say(&format!("durable {}", n + 1));
        } else if n % 2 == 0 {
            engine.commit().expect("durable");
            say(&format!("durable {}", n + 1));
        }
    }
    engine.close().expect("closed");
    say("closed");
}

fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    // The parent may have exited, so an error of the write is ignored.
    drop(writeln!(out, "\nchild: {line}").and_then(|()| out.flush()));
}

/// Child process, killed when this value is dropped.
struct Running(Child, BufReader<ChildStdout>, #[expect(dead_code, reason = "it ends with the child")] Limit);

impl Running {
    fn start(dir: &Path, step: Option<(&str, usize)>) -> Self {
        let mut command = Command::new(env::current_exe().expect("the test binary"));
        command.args(["--exact", "kill::child", "--nocapture", "--test-threads=1"]).env(DIR, dir);
        if let Some((step, nth)) = step {
            command.env(STEP, step).env(NTH, nth.to_string());
        }
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("the child starts");
        let out = BufReader::new(child.stdout.take().expect("its output"));
        Self(child, out, Limit::start())
    }

    /// Returns the text of the child's next line with the prefix `child: `, or `None` at the end of its output.
    fn hear(&mut self) -> Option<String> {
        let mut line = String::new();
        loop {
            line.clear();
            if self.1.read_line(&mut line).expect("readable") == 0 {
                return None;
            }
            if let Some(said) = line.trim_end().strip_prefix("child: ") {
                return Some(said.to_owned());
            }
        }
    }

    /// Kills the child with SIGKILL. Returns the lines that it had printed before and that were not read yet.
    fn kill(mut self) -> Vec<String> {
        self.0.kill().expect("killed");
        self.0.wait().expect("reaped");
        std::iter::from_fn(|| self.hear()).collect()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// Opens the index that a killed child left, compares it with all states that the child's batches allow, and runs a
/// full check. Returns the prefix found, as a number of batches.
fn examine(dir: &Path, durable: u64, what: &str) -> u64 {
    let config = config(dir);
    let mut model = Model::default();
    for n in 0..durable + 20 {
        if n == durable {
            model.acknowledge();
        }
        model.accept(batch(n));
    }
    let storage = MmapStorage::new(&config.directory_path);
    let mut engine = Engine::open(storage, OpenOptions::default(), &Env::system()).expect(what);
    let found = model.recovered(&engine).unwrap_or_else(|broken| panic!("{what}: {broken}"));
    let report = engine.check(shardex::CheckLevel::Full).expect("readable");
    assert!(report.is_clean(), "{what}: {report}");
    assert!(found >= durable as usize, "{what}");
    engine.close().expect("closed");
    fs::write(dir.join("prefix"), found.to_string()).expect("written");
    found as u64
}

fn durable_in(said: &[String], before: u64) -> u64 {
    said.iter().filter_map(|line| line.strip_prefix("durable ")?.parse().ok()).fold(before, u64::max)
}

/// Kills a child just before its `nth` operation of a step, and examines the index. Reports whether the child reached
/// that operation.
fn kill_at(step: &str, nth: usize) -> bool {
    let dir = TempDir::new().expect("a temporary directory");
    let mut child = Running::start(dir.path(), Some((step, nth)));
    let mut said = Vec::new();
    while let Some(line) = child.hear() {
        let paused = line == "paused";
        said.push(line);
        if paused {
            break;
        }
    }
    let paused = said.last().is_some_and(|line| line == "paused");
    said.extend(child.kill());
    let durable = durable_in(&said, 0);
    if said.iter().any(|line| line == "open") {
        examine(dir.path(), durable, &format!("{step} {nth}"));
    }
    paused
}

/// Kills three children at a step, before early and late operations of it.
fn kills_at(step: &str, nths: [usize; 3]) {
    for nth in nths {
        assert!(kill_at(step, nth), "the child never came to `{step}` for the {nth}th time");
    }
}

macro_rules! steps {
    ($($name:ident: $step:literal $nths:expr;)*) => {$(
        #[test]
        fn $name() {
            kills_at($step, $nths);
        }
    )*};
}

steps! {
    killed_before_a_wal_append: "wal: append" [2, 30, 77];
    killed_before_b1_of_a_commit: "B1: commit" [1, 20, 45];
    killed_before_b1_of_a_flush: "B1: sync the WAL" [1, 10, 31];
    killed_before_postings_are_stored: "add: postings" [1, 40, 200];
    killed_before_a_split_stores_postings: "split: postings" [1, 30, 90];
    killed_before_the_data_file_grows: "data: grow" [1, 2, 3];
    killed_before_states_are_stored: "data: states and directory" [1, 9, 40];
    killed_before_b2: "B2: sync the data" [1, 10, 31];
    killed_before_a_root_is_stored: "root: store" [3, 10, 31];
    killed_before_b3: "B3: sync the root" [1, 10, 31];
}

#[test]
fn killed_in_every_step_of_create_a_second_create_succeeds() {
    for step in [
        "create",
        "create: sync the parent",
        "create: allocate",
        "create: file header",
        "C1: sync data and WAL",
        "root: allocate",
        "root: store",
        "C2: sync the roots",
        "C3: sync the entries",
        "create: commit",
        "C4: sync the rename",
    ] {
        for nth in 1..=4 {
            let dir = TempDir::new().expect("a temporary directory");
            let mut child = Running::start(dir.path(), Some((step, nth)));
            let first = child.hear();
            child.kill();
            if first.as_deref() != Some("paused") {
                assert!(nth > 1, "the child never came to `{step}`");
                break;
            }
            let config = config(dir.path());
            let storage = MmapStorage::new(&config.directory_path);
            let mut engine = Engine::create(storage, &config, &Env::system()).expect(step);
            engine
                .add(&[Posting {
                    document_id: DocumentId(1),
                    start: 0,
                    length: 1,
                    vector: vector(1, DIMENSION),
                    tags: 0,
                }])
                .expect(step);
            engine.flush().expect(step);
            drop(engine);
            let storage = MmapStorage::new(&config.directory_path);
            let engine = Engine::open(storage, OpenOptions::default(), &Env::system()).expect(step);
            assert_eq!(engine.stats().expect(step).total_postings, 1);
            assert!(engine.check(shardex::CheckLevel::Full).expect(step).is_clean());
        }
    }
}

#[test]
fn killed_in_every_step_of_a_recovery() {
    for step in [
        "B4: sync the recovered root",
        "B2: sync the data",
        "root: store",
        "B3: sync the root",
        "B5: sync the root's twin",
    ] {
        let dir = TempDir::new().expect("a temporary directory");
        // The first child ends before a flush is complete, so that there are records to replay.
        let mut child = Running::start(dir.path(), Some(("B2: sync the data", 4)));
        let said: Vec<String> = std::iter::from_fn(|| child.hear()).take_while(|line| line != "paused").collect();
        child.kill();
        let durable = durable_in(&said, 0);
        assert!(durable > 10 && !durable.is_multiple_of(4), "{said:?}");
        // Each of these children ends during the recovery from the one before.
        for _ in 0..3 {
            let mut child = Running::start(dir.path(), Some((step, 1)));
            assert_eq!(child.hear().as_deref(), Some("paused"), "{step}");
            child.kill();
        }
        examine(dir.path(), durable, step);
    }
}

#[test]
fn thirty_kills_at_random_on_one_index_lose_nothing() {
    let dir = TempDir::new().expect("a temporary directory");
    let mut durable = 0;
    let mut x = 0x2545_F491_4F6C_DD1Du64;
    for round in 0..30 {
        let mut child = Running::start(dir.path(), None);
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        let mut said: Vec<String> = std::iter::from_fn(|| child.hear()).take((x % 60) as usize + 1).collect();
        // A short random delay, so that the kill may fall between two lines.
        for _ in 0..x >> 40 & 0xFFFF {
            std::hint::spin_loop();
        }
        said.extend(child.kill());
        durable = durable_in(&said, durable);
        durable = examine(dir.path(), durable, &format!("round {round}"));
    }
    assert!(durable > 100, "{durable} batches in 30 lives");
}

#[test]
fn a_second_process_is_locked_out() {
    let dir = TempDir::new().expect("a temporary directory");
    let mut child = Running::start(dir.path(), Some(("B3: sync the root", 1)));
    while child.hear().is_some_and(|line| line != "paused") {}
    let open = || {
        let storage = MmapStorage::new(config(dir.path()).directory_path);
        Engine::open(storage, OpenOptions::default(), &Env::system())
    };
    assert!(matches!(open(), Err(shardex::ShardexError::Locked { .. })));
    child.kill();
    assert!(open().is_ok(), "the lock dies with the process");
}
