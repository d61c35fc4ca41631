//! Text of the stats file: written by the owner of an index, read by other processes.
//!
//! Invariant: a text is as long as the file, and its last line is the checksum of everything before it. A reader that
//! overtakes a store sees a wrong checksum and reads again.

use std::{
    collections::BTreeMap,
    fmt::{Display, Write as _},
    fs::{self, File, TryLockError},
    io::{self, Read as _},
    path::Path,
    time::Duration,
};

use crate::{
    config::{Durability, OpenOptions},
    engine::stats::{FlushStats, IndexStats, LatencyStats},
    storage::open_regular,
};

/// Name of the file in the directory of an index.
const FILE: &str = "stats";
/// First line.
const TITLE: &str = "shardex stats 1\n";
/// Name of the last line, which is spaces and this name and eight hexadecimal digits.
const CHECKSUM: &str = "crc32c";
/// Length of the file in bytes: one page.
pub const STATS_FILE_BYTES: usize = 4096;
/// Longest value in bytes. Only texts of errors can be longer, and are cut.
const LONGEST: usize = 400;
/// Number of times that a damaged file is read, because the owner may be writing it.
const TRIES: usize = 32;

/// Figures of an index that its owner published in the stats file: see [`stats_file`](crate::OpenOptions::stats_file).
///
/// Reading it needs no lock of the index. If an owner opens the index at that moment, its first figures come a second
/// later. `FORMAT.md` lists the names.
///
/// ```
/// use shardex::{ShardexConfig, blocking::Shardex, observe::StatsReport};
///
/// # let dir = tempfile::tempdir().unwrap();
/// # let path = dir.path().join("index");
/// let index = Shardex::create(ShardexConfig::new(&path).vector_size(3).stats_file(true))?;
/// index.close()?;
/// let report = StatsReport::read(&path)?;
/// assert!(!report.is_live() && report.get("state") == Some("closed") && report.get("postings") == Some("0"));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StatsReport {
    live: bool,
    figures: BTreeMap<String, String>,
}

/// Time between two tries to read.
const PAUSE: Duration = Duration::from_millis(2);

/// Reports whether the owner of a stats file has its index open: it holds the lock of the file as long.
fn is_locked(file: &File) -> io::Result<bool> {
    match file.try_lock_shared() {
        Ok(()) => file.unlock().map(|()| false),
        Err(TryLockError::WouldBlock) => Ok(true),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

impl StatsReport {
    /// Reads the stats file of the index in a directory.
    ///
    /// # Errors
    /// Returns `NotFound` if there is none, `InvalidInput` if it is a link or no file, `InvalidData` if it is damaged or of
    /// an unknown version, and other errors of the system. A damaged file does no harm. The owner writes it again when a figure changes.
    pub fn read(directory: impl AsRef<Path>) -> io::Result<Self> {
        let path = directory.as_ref().join(FILE);
        let mut tries = 0;
        loop {
            tries += 1;
            let mut file = open_regular(fs::OpenOptions::new().read(true), &path)?;
            let before = is_locked(&file)?;
            let mut bytes = Vec::new();
            file.by_ref().take(STATS_FILE_BYTES as u64).read_to_end(&mut bytes)?;
            let after = is_locked(&file)?;
            match decode(&bytes) {
                // An owner that came or went meanwhile may have written something else.
                Ok(figures) if before == after || tries == TRIES => {
                    // A new owner takes the lock before it stores its first figures.
                    let live = after && figures.get("state").is_some_and(|state| state == "open");
                    return Ok(Self { live, figures });
                }
                Err(what) if tries == TRIES => return Err(io::Error::new(io::ErrorKind::InvalidData, what)),
                _ => std::thread::sleep(PAUSE),
            }
        }
    }

    /// Reports whether the process that wrote the figures still has the index open. Otherwise it has closed the index,
    /// if `state` is `closed`, or has ended without. For a moment after an open, figures of an owner that has ended
    /// without closing count as those of the new one.
    #[must_use]
    pub fn is_live(&self) -> bool {
        self.live
    }

    /// Returns the figure of a name, as text.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&str> {
        self.figures.get(name).map(String::as_str)
    }

    /// Returns the figure of a name, if it is a whole number.
    #[must_use]
    pub fn number(&self, name: &str) -> Option<u64> {
        self.get(name)?.parse().ok()
    }

    /// Returns all names with their figures, in the order of the names.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.figures.iter().map(|(name, figure)| (name.as_str(), figure.as_str()))
    }
}

/// Parses the contents of a stats file.
fn decode(bytes: &[u8]) -> Result<BTreeMap<String, String>, &'static str> {
    let text = std::str::from_utf8(bytes).map_err(|_| "it is no text")?;
    if !text.starts_with(TITLE) {
        return Err("it does not begin as a stats file of version 1");
    }
    let end = text.rfind(CHECKSUM).ok_or("it has no checksum")?;
    if text[end..] != last_line(&text[..end]) || text.len() != STATS_FILE_BYTES {
        return Err("its checksum is wrong");
    }
    let lines = text[TITLE.len()..end].lines().filter_map(|line| line.split_once(' '));
    Ok(lines.filter(|(name, _)| !name.is_empty()).map(|(name, figure)| (name.to_owned(), figure.to_owned())).collect())
}

fn last_line(before: &str) -> String {
    format!("{CHECKSUM} {:08x}\n", crc32c::crc32c(before.as_bytes()))
}

/// Returns the start of a text that is at most `len` bytes long.
fn cut(text: &str, len: usize) -> &str {
    let end = (0..=len.min(text.len())).rev().find(|&end| text.is_char_boundary(end));
    &text[..end.unwrap_or(0)]
}

/// What the statistics of an index don't contain.
pub struct StatsContext<'a> {
    pub(crate) options: &'a OpenOptions,
    pub(crate) is_closed: bool,
    pub(crate) last_flush_unix_ms: Option<u64>,
}

/// Returns the lines of the figures, but for the time.
pub fn figures(stats: &IndexStats, context: &StatsContext<'_>) -> String {
    let mut text = String::new();
    let mut put = |name: &str, figure: &dyn Display| {
        // One line per figure, also for an error of several lines.
        let figure = figure.to_string().split_whitespace().collect::<Vec<_>>().join(" ");
        let _ = writeln!(text, "{name} {}", cut(&figure, LONGEST));
    };
    put("state", &if context.is_closed { "closed" } else { "open" });
    put("durability", &durability(context.options));
    put("metric", &stats.metric);
    put("encoding", &stats.encoding);
    let numbers = [
        ("dimension", stats.dimension as u64),
        ("postings", stats.total_postings),
        ("removed_postings", stats.removed_postings),
        ("unindexed_postings", stats.unindexed_postings),
        ("shards", stats.total_shards as u64),
        ("cells", stats.cells),
        ("wal_bytes", stats.wal_bytes),
        ("disk_bytes", stats.disk_bytes),
        ("free_bytes", stats.free_bytes),
        ("reclaimable_bytes", stats.reclaimable_bytes),
        ("memory_bytes", stats.memory_usage),
        ("undurable_operations", stats.uncommitted_operations),
        ("undurable_bytes", stats.uncommitted_bytes),
        ("last_lsn", stats.last_lsn.0),
        ("durable_lsn", stats.durable_lsn.0),
        ("checkpoint_lsn", stats.checkpoint_lsn.0),
        ("background_errors", stats.errors),
    ];
    numbers.iter().for_each(|(name, number)| put(name, number));
    let latencies = [
        ("search", stats.search_latency),
        ("write", stats.write_latency),
        ("commit", stats.commit_latency),
        ("flush", stats.flush_latency),
    ];
    for (name, LatencyStats { count, p50, p95, p99, max }) in latencies {
        put(&format!("{name}_count"), &count);
        for (quantile, time) in [("p50", p50), ("p95", p95), ("p99", p99), ("max", max)] {
            put(&format!("{name}_{quantile}_ns"), &time.as_nanos());
        }
    }
    if let Some(flush) = &stats.last_flush {
        last_flush(&mut put, flush, context.last_flush_unix_ms);
    }
    if let Some(error) = &stats.background_error {
        put("background_error_work", &format!("{:?}", error.work).to_lowercase());
        put("background_error_failures", &error.failures);
        put("background_error_lasts", &error.lasts);
        put("background_error", &error.error);
    }
    stats.poisoned.iter().for_each(|cause| put("poisoned", cause));
    stats.read_only.iter().for_each(|cause| put("read_only", cause));
    text
}

fn last_flush(put: &mut impl FnMut(&str, &dyn Display), flush: &FlushStats, unix_ms: Option<u64>) {
    unix_ms.iter().for_each(|at| put("last_flush_unix_ms", at));
    put("last_flush_ns", &flush.total_duration.as_nanos());
    for (stage, time) in flush.stages() {
        put(&format!("last_flush_{}_ns", stage.replace(' ', "_")), &time.as_nanos());
    }
}

fn durability(options: &OpenOptions) -> String {
    match options.durability {
        Durability::Immediate => "immediate".to_owned(),
        Durability::Interval => format!("interval of {} ms", options.batch_write_interval_ms),
        Durability::Manual => "manual".to_owned(),
    }
}

/// Returns the contents of the file for these figures at a time. Figures without room, which their bounds exclude, are
/// cut off, because a panic would end the writer.
pub fn encode(figures: &str, unix_ms: u64) -> Vec<u8> {
    let mut text = format!("{TITLE}written_unix_ms {unix_ms}\n{figures}");
    let room = STATS_FILE_BYTES - last_line("").len();
    text.truncate(cut(&text, room).len());
    text.push_str(&" ".repeat(room - text.len()));
    text.push_str(&last_line(&text));
    text.into_bytes()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn the_longest_figures_fit() {
        let most = LatencyStats {
            count: u64::MAX,
            p50: Duration::from_nanos(u64::MAX),
            p95: Duration::from_nanos(u64::MAX),
            p99: Duration::from_nanos(u64::MAX),
            max: Duration::from_nanos(u64::MAX),
        };
        let text = "ä".repeat(10_000);
        let stats = IndexStats {
            total_postings: u64::MAX,
            dimension: usize::MAX,
            search_latency: most,
            write_latency: most,
            commit_latency: most,
            flush_latency: most,
            last_flush: Some(FlushStats { total_duration: Duration::MAX, ..FlushStats::default() }),
            poisoned: Some(text.clone()),
            read_only: Some(text),
            ..IndexStats::default()
        };
        let context =
            StatsContext { options: &OpenOptions::default(), is_closed: false, last_flush_unix_ms: Some(u64::MAX) };
        let lines = figures(&stats, &context);
        // Numbers that are zero here may have twenty digits, and a background error may be as long as the others.
        assert!(lines.len() + 30 * 20 + LONGEST + 200 < STATS_FILE_BYTES - 60, "{}", lines.len());
        let figures = decode(&encode(&lines, 1)).expect("it is whole");
        assert_eq!(figures["poisoned"].len(), LONGEST);
        assert_eq!(figures["search_max_ns"], u64::MAX.to_string());
    }

    #[test]
    fn any_damaged_byte_is_found() {
        let context = StatsContext { options: &OpenOptions::default(), is_closed: true, last_flush_unix_ms: None };
        let whole = encode(&figures(&IndexStats::default(), &context), 7);
        assert_eq!(whole.len(), STATS_FILE_BYTES);
        for at in 0..whole.len() {
            let mut bytes = whole.clone();
            bytes[at] ^= 1;
            assert!(decode(&bytes).is_err(), "byte {at}");
        }
        (0..whole.len()).for_each(|len| assert!(decode(&whole[..len]).is_err(), "{len} bytes"));
    }
}
