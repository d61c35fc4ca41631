//! What the tests share: an index in a temporary directory of its own, and postings that are easy to tell apart.

use std::{fs, path::PathBuf, sync::mpsc, thread, time::Duration};

use shardex::{
    DocumentId, Engine, Metric, Posting, SearchResult, ShardexConfig, ShardexError,
    env::{CellPolicy, Env},
    index,
    storage::MmapStorage,
};
use tempfile::TempDir;

/// An index on real files; the directory goes when this does.
pub(crate) struct TestIndex {
    dir: TempDir,
    pub(crate) config: ShardexConfig,
    /// What splits and names of shards derive from: fixed, so that a test does the same each time.
    pub(crate) index_id: u128,
}

pub(crate) const DIMENSION: usize = 24;

impl TestIndex {
    /// Small shards, small segments: everything happens early.
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

    /// A copy of all files, elsewhere; holes stay what `cp` makes of them: bytes.
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

    /// Changes bytes of a file.
    pub(crate) fn patch(&self, name: &str, change: impl FnOnce(&mut Vec<u8>)) {
        let path = self.path().join(name);
        let mut bytes = fs::read(&path).expect("the file can be read");
        change(&mut bytes);
        fs::write(&path, bytes).expect("the file can be written");
    }

    pub(crate) fn bytes(&self) -> Vec<Vec<u8>> {
        ["data", "wal", "root"].iter().map(|name| fs::read(self.path().join(name)).expect("a file")).collect()
    }

    /// The directory that holds the index's directory.
    pub(crate) fn parent(&self) -> &std::path::Path {
        self.dir.path()
    }
}

/// A vector that follows from a number; its components are spread over -1..1.
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
    Posting { document_id: DocumentId(id), start, length: 1, vector }
}

/// Document `n` with one posting, for each `n`.
pub(crate) fn documents(range: std::ops::Range<u64>) -> Vec<Posting> {
    range.map(|n| posting(u128::from(n), 0, vector(n, DIMENSION))).collect()
}

/// Every posting that is there, nearest to the origin's neighbour first.
pub(crate) fn everything(engine: &Engine<MmapStorage>) -> Vec<SearchResult> {
    search(engine, &vector(1_000_003, engine.geometry().dimension), usize::MAX >> 8)
}

pub(crate) fn search(engine: &Engine<MmapStorage>, query: &[f32], k: usize) -> Vec<SearchResult> {
    index::search(&engine.snapshot(), engine.data(), query, k, index::Breadth::exact())
        .expect("the search succeeds")
        .to_response()
        .results
}

/// The ids that are there, sorted.
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

/// Ends the process if a test takes far longer than it needs: one that fails only by hanging says so, and which it is.
pub(crate) struct Limit {
    /// Whoever waits at the other end hears of the drop.
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

/// A runtime for the async API.
pub(crate) fn block_on<T>(future: impl Future<Output = T>) -> T {
    let _limit = Limit::start();
    tokio::runtime::Builder::new_current_thread().build().expect("a runtime").block_on(future)
}
