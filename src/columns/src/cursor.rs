//! Progress of ingests, as the cursor of the index: how many rows of which files are in.
//!
//! The cursor is text. The first line is `shardex-columns 1`. Each further line describes a file, the one that was read
//! last at the end: rows that are in, `end` if these are all or `open`, length in bytes, time of the last change in
//! nanoseconds, fingerprint of the columns, path.
//!
//! Invariants:
//! 1. A file continues only if its path, length and time of change are those of the line, and its columns have the same
//!    uses. Otherwise it is read from its first row.
//! 2. A cursor that another program has set is never replaced.
//! 3. If the lines exceed the limit of a cursor, those of the files that were read first are forgotten.

use std::os::unix::ffi::OsStrExt as _;

use shardex::{DocumentId, limits::MAX_CURSOR_BYTES};

use crate::{columns::ColumnNames, table::Table};

const HEADER: &str = "shardex-columns 1";

/// Line of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
struct FileProgress {
    rows: u64,
    is_complete: bool,
    len: u64,
    modified_ns: i128,
    columns: String,
    path: String,
}

impl FileProgress {
    fn parse(line: &str) -> Option<Self> {
        let mut words = line.splitn(6, ' ');
        let mut next = || words.next();
        Some(Self {
            rows: next()?.parse().ok()?,
            is_complete: match next()? {
                "end" => true,
                "open" => false,
                _ => return None,
            },
            len: next()?.parse().ok()?,
            modified_ns: next()?.parse().ok()?,
            columns: next()?.to_owned(),
            path: next()?.to_owned(),
        })
    }

    fn text(&self) -> String {
        let Self { rows, is_complete, len, modified_ns, columns, path } = self;
        let end = if *is_complete { "end" } else { "open" };
        format!("\n{rows} {end} {len} {modified_ns} {columns} {path}")
    }

    /// Reports whether both lines describe the same content, read in the same way.
    fn is_same(&self, other: &Self) -> bool {
        self.is_same_file(other) && (self.len, self.modified_ns) == (other.len, other.modified_ns)
    }

    fn is_same_file(&self, other: &Self) -> bool {
        (&self.path, &self.columns) == (&other.path, &other.columns)
    }
}

/// Progress on the files of an index. The last entry is the file that is being read.
#[derive(Clone, Debug)]
pub(crate) struct Progress {
    others: Vec<FileProgress>,
    file: FileProgress,
    /// Whether rows of an earlier content of the file are in.
    pub(crate) has_changed: bool,
}

impl Progress {
    /// Returns the progress on a table, from the cursor of the index; `None` if the cursor is another program's.
    pub(crate) fn of(cursor: &[u8], table: &Table, names: &ColumnNames) -> Option<Self> {
        let mut others = parse(cursor)?;
        let path = std::path::absolute(table.path()).unwrap_or_else(|_| table.path().to_owned());
        let columns = format!("{:x}", DocumentId::of_name(&names.fingerprint()).0 as u64);
        let state = table.state();
        let mut file = FileProgress {
            rows: 0,
            is_complete: false,
            len: state.len,
            modified_ns: state.modified_ns,
            columns,
            path: path.as_os_str().as_bytes().escape_ascii().to_string(),
        };
        let known = others.iter().position(|other| other.is_same_file(&file)).map(|at| others.remove(at));
        let has_changed = known.as_ref().is_some_and(|known| !known.is_same(&file));
        if let Some(known) = known.filter(|_| !has_changed) {
            file = known;
        }
        Some(Self { others, file, has_changed })
    }

    /// Returns the number of leading rows that are in.
    pub(crate) fn rows(&self) -> u64 {
        self.file.rows
    }

    /// Reports whether all rows are in.
    pub(crate) fn is_complete(&self) -> bool {
        self.file.is_complete
    }

    /// Forgets the rows that are in.
    pub(crate) fn restart(&mut self) {
        (self.file.rows, self.file.is_complete) = (0, false);
    }

    /// Returns the cursor that says that the first `rows` rows are in, and whether these are all.
    pub(crate) fn advanced(&mut self, rows: u64, is_complete: bool) -> Vec<u8> {
        (self.file.rows, self.file.is_complete) = (rows, is_complete);
        let last = self.file.text();
        let mut lines: Vec<String> = self.others.iter().map(FileProgress::text).collect();
        let mut bytes = HEADER.len() + last.len() + lines.iter().map(String::len).sum::<usize>();
        let mut forgotten = 0;
        while bytes > MAX_CURSOR_BYTES && forgotten < lines.len() {
            bytes -= lines[forgotten].len();
            forgotten += 1;
        }
        self.others.drain(..forgotten);
        lines.drain(..forgotten);
        format!("{HEADER}{}{last}", lines.concat()).into_bytes()
    }
}

/// Returns the lines of a cursor; `None` if it is another program's.
fn parse(cursor: &[u8]) -> Option<Vec<FileProgress>> {
    if cursor.is_empty() {
        return Some(Vec::new());
    }
    let mut lines = std::str::from_utf8(cursor).ok()?.split('\n');
    (lines.next()? == HEADER).then_some(())?;
    lines.map(FileProgress::parse).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(rows: u64, path: &str) -> FileProgress {
        FileProgress { rows, is_complete: rows > 5, len: 9, modified_ns: -3, columns: "a1".into(), path: path.into() }
    }

    #[test]
    fn a_cursor_is_read_as_it_was_written() {
        let others = vec![file(1, "/a b"), file(7, "/c")];
        let mut progress = Progress { others: others.clone(), file: file(0, "/d"), has_changed: false };
        let cursor = progress.advanced(8, true);
        let lines = "shardex-columns 1\n1 open 9 -3 a1 /a b\n7 end 9 -3 a1 /c\n8 end 9 -3 a1 /d";
        assert_eq!(String::from_utf8_lossy(&cursor), lines);
        assert_eq!(parse(&cursor), Some([others, vec![file(8, "/d")]].concat()));
        for foreign in ["x", "shardex-columns 2", "shardex-columns 1\n", "shardex-columns 1\n1 done 9 -3 a1 /c"] {
            assert_eq!(parse(foreign.as_bytes()), None, "{foreign}");
        }
    }

    #[test]
    fn a_long_cursor_forgets_the_files_that_were_read_first() {
        let others: Vec<FileProgress> = (0..3_000).map(|i| file(i, &format!("/a/long/path/to/a/file/{i}"))).collect();
        let mut progress = Progress { others, file: file(0, "/last"), has_changed: false };
        let cursor = progress.advanced(4, false);
        assert!(cursor.len() <= MAX_CURSOR_BYTES && cursor.len() > MAX_CURSOR_BYTES - 100, "{}", cursor.len());
        let kept = parse(&cursor).expect("a cursor of this crate");
        assert_eq!((kept.last(), kept[kept.len() - 2].rows), (Some(&file(4, "/last")), 2_999));
    }
}
