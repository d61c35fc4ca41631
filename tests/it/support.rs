//! Helpers that the tests share: an index in its own temporary directory, and postings that are easy to distinguish.

use std::{fs, path::PathBuf, sync::mpsc, thread, time::Duration};

use shardex::{
    DocumentId, Engine, Metric, Posting, SearchResult, ShardexConfig, ShardexError,
    env::{CellPolicy, Env},
    index,
    storage::MmapStorage,
};
use tempfile::TempDir;

/// Index on real files. Its directory is removed when this value is dropped.
pub(crate) struct TestIndex {
    dir: TempDir,
    pub(crate) config: ShardexConfig,
    /// Index id, from which splits and the random part of shard ids derive. It is fixed, so that every run of a test
    /// does the same.
    pub(crate) index_id: u128,
}

pub(crate) const DIMENSION: usize = 24;

impl TestIndex {
    /// Configures small shards and small segments, so that splits and new segments occur early.
    pub(crate) fn small() -> Self {
        Self::with(|config| config)
    }

    pub(crate) fn with(change: impl FnOnce(ShardexConfig) -> ShardexConfig) -> Self {
        let dir = TempDir::new().expect("a temporary directory");
        let config = ShardexConfig::new(dir.path().join("index"))
            .vector_size(DIMENSION)
            .metric(Metric::L2)
            .shard_size(16)
            .wal_segment_size(16 << 10);
        Self { dir, config: change(config), index_id: 1 }
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.config.directory_path.clone()
    }

    pub(crate) fn storage(&self) -> MmapStorage {
        MmapStorage::new(self.path())
    }

    fn env(&self) -> Env {
        Env { new_index_id: self.index_id, cells: CellPolicy::Always, ..Env::system() }
    }

    pub(crate) fn create(&self) -> Engine<MmapStorage> {
        Engine::create(self.storage(), &self.config, &self.env()).expect("the index can be made")
    }

    pub(crate) fn try_open(&self) -> Result<Engine<MmapStorage>, ShardexError> {
        Engine::open(self.storage(), self.config.options.clone(), &self.env())
    }

    pub(crate) fn open(&self) -> Engine<MmapStorage> {
        self.try_open().expect("the index opens")
    }

    /// Copies all files to another directory. As with `cp`, holes may become bytes.
    pub(crate) fn copy(&self) -> TestIndex {
        let dir = TempDir::new().expect("a temporary directory");
        let to = dir.path().join("copy");
        fs::create_dir(&to).expect("a directory");
        for name in ["data", "wal", "root"] {
            fs::copy(self.path().join(name), to.join(name)).expect("a copy");
        }
        let mut config = self.config.clone();
        config.directory_path = to;
        TestIndex { dir, config, index_id: self.index_id }
    }

    /// Applies a change to the bytes of a file.
    pub(crate) fn patch(&self, name: &str, change: impl FnOnce(&mut Vec<u8>)) {
        let path = self.path().join(name);
        let mut bytes = fs::read(&path).expect("the file can be read");
        change(&mut bytes);
        fs::write(&path, bytes).expect("the file can be written");
    }

    pub(crate) fn bytes(&self) -> Vec<Vec<u8>> {
        ["data", "wal", "root"].iter().map(|name| fs::read(self.path().join(name)).expect("a file")).collect()
    }

    /// Returns the directory that contains the index's directory.
    pub(crate) fn parent(&self) -> &std::path::Path {
        self.dir.path()
    }
}

/// Returns the vector that derives from a number. Its components are spread over -1 to 1.
pub(crate) fn vector(n: u64, dimension: usize) -> Vec<f32> {
    let mut x = n.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    (0..dimension)
        .map(|_| {
            x ^= x << 13;
            x ^= x >> 7;
            x ^= x << 17;
            (x >> 40) as f32 / (1 << 23) as f32 - 1.0
        })
        .collect()
}

pub(crate) fn posting(id: u128, start: u32, vector: Vec<f32>) -> Posting {
    Posting { document_id: DocumentId(id), start, length: 1, vector, tags: 0 }
}

/// Builds one posting of document `n` for each `n` in the range.
pub(crate) fn documents(range: std::ops::Range<u64>) -> Vec<Posting> {
    range.map(|n| posting(u128::from(n), 0, vector(n, DIMENSION))).collect()
}

/// Returns all live postings, ascending by distance from a fixed vector.
pub(crate) fn everything(engine: &Engine<MmapStorage>) -> Vec<SearchResult> {
    search(engine, &vector(1_000_003, engine.geometry().dimension), usize::MAX >> 8)
}

pub(crate) fn search(engine: &Engine<MmapStorage>, query: &[f32], k: usize) -> Vec<SearchResult> {
    index::search(&engine.snapshot(), engine.data(), query, k, index::SearchScope::exact())
        .expect("the search succeeds")
        .to_response()
        .results
}

/// Returns the document ids of all live postings, sorted.
pub(crate) fn ids(engine: &Engine<MmapStorage>) -> Vec<u128> {
    let mut ids: Vec<u128> = everything(engine).iter().map(|result| result.document_id.0).collect();
    ids.sort_unstable();
    ids
}

#[track_caller]
pub(crate) fn check_clean(engine: &Engine<MmapStorage>) {
    let report = engine.check(shardex::CheckLevel::Full).expect("the check can read the disk");
    assert!(report.is_clean(), "{report}");
}

/// Watchdog that aborts the process if a test runs for more than 400 s, far longer than it needs. It prints the name of
/// the test, so that a test that hangs is identified.
pub(crate) struct Limit {
    /// Sender whose drop ends the watchdog thread.
    _ended: mpsc::Sender<()>,
}

impl Limit {
    const SECONDS: u64 = 400;

    pub(crate) fn start() -> Self {
        let (ended, end) = mpsc::channel();
        let test = thread::current().name().unwrap_or("a test").to_owned();
        thread::spawn(move || {
            if end.recv_timeout(Duration::from_secs(Self::SECONDS)) == Err(mpsc::RecvTimeoutError::Timeout) {
                eprintln!("{test} hangs");
                std::process::abort();
            }
        });
        Self { _ended: ended }
    }
}

/// Runs a future of the async API to its end, under a [`Limit`].
pub(crate) fn block_on<T>(future: impl Future<Output = T>) -> T {
    let _limit = Limit::start();
    tokio::runtime::Builder::new_current_thread().build().expect("a runtime").block_on(future)
}
