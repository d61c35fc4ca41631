//! The source: a SQLite database with notes and a log of their changes.

use std::{collections::BTreeMap, path::Path, time::Duration};

use rusqlite::{Connection, Result, Row, Transaction, TransactionBehavior, params};

use crate::note::{Note, NoteId};

/// The tables and the triggers that log each change in its own transaction.
///
/// The sequence numbers have no gaps: a transaction that is rolled back takes its numbers back. `AUTOINCREMENT` never
/// gives a number twice, even if the log is empty.
const SCHEMA: &str = "
BEGIN IMMEDIATE;
CREATE TABLE IF NOT EXISTS notes (
    id INTEGER PRIMARY KEY CHECK (id BETWEEN 0 AND 4294967295),
    topic INTEGER NOT NULL CHECK (topic BETWEEN 0 AND 63),
    text TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS changes (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    note INTEGER NOT NULL,
    kind TEXT NOT NULL CHECK (kind IN ('upsert', 'retag', 'remove')),
    topic INTEGER,
    text TEXT
);
CREATE TRIGGER IF NOT EXISTS log_insert AFTER INSERT ON notes BEGIN
    INSERT INTO changes (note, kind, topic, text) VALUES (NEW.id, 'upsert', NEW.topic, NEW.text);
END;
CREATE TRIGGER IF NOT EXISTS log_edit AFTER UPDATE ON notes WHEN OLD.text <> NEW.text BEGIN
    INSERT INTO changes (note, kind, topic, text) VALUES (NEW.id, 'upsert', NEW.topic, NEW.text);
END;
CREATE TRIGGER IF NOT EXISTS log_retag AFTER UPDATE ON notes WHEN OLD.text = NEW.text AND OLD.topic <> NEW.topic BEGIN
    INSERT INTO changes (note, kind, topic, text) VALUES (NEW.id, 'retag', NEW.topic, NEW.text);
END;
CREATE TRIGGER IF NOT EXISTS log_remove AFTER DELETE ON notes BEGIN
    INSERT INTO changes (note, kind) VALUES (OLD.id, 'remove');
END;
COMMIT;
";

/// Keeps what is trimmed, so that [`Source::notes_at`] can return any earlier state. An application needs no such table.
const HISTORY: &str = "
BEGIN IMMEDIATE;
CREATE TABLE IF NOT EXISTS history (
    seq INTEGER PRIMARY KEY, note INTEGER NOT NULL, kind TEXT NOT NULL, topic INTEGER, text TEXT
);
CREATE TRIGGER IF NOT EXISTS keep BEFORE DELETE ON changes BEGIN
    INSERT INTO history (seq, note, kind, topic, text) VALUES (OLD.seq, OLD.note, OLD.kind, OLD.topic, OLD.text);
END;
COMMIT;
";

/// Row of the table `changes`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// Sequence number, from 1 on.
    pub seq: i64,
    /// Changed note.
    pub note: NoteId,
    /// What happened to it.
    pub action: Action,
}

/// What happened to a note.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// The note is new, or has a new text.
    Upsert(Note),
    /// The note has another topic and the same text.
    Retag(Note),
    /// The note was removed.
    Remove,
}

/// Connection to the source.
#[derive(Debug)]
pub struct Source {
    connection: Connection,
}

impl Source {
    /// Opens the database in a file, and creates it if it is missing.
    ///
    /// # Errors
    /// Returns the errors of SQLite.
    pub fn open(file: &Path) -> Result<Self> {
        let connection = Connection::open(file)?;
        // Long enough for a machine with much else to do.
        connection.busy_timeout(Duration::from_secs(60))?;
        // Readers don't wait for writers.
        connection.pragma_update(None, "journal_mode", "wal")?;
        // A power cut must not undo a transaction that the index has already: see the third rule in `lib.rs`.
        connection.pragma_update(None, "synchronous", "full")?;
        // Otherwise an open would wait for the writers.
        if !connection.table_exists(None, "changes")? {
            connection.execute_batch(SCHEMA)?;
        }
        Ok(Self { connection })
    }

    /// Returns up to `most` changes after a sequence number, in order.
    ///
    /// # Errors
    /// Returns the errors of SQLite.
    pub fn changes_after(&self, seq: i64, most: u32) -> Result<Vec<Change>> {
        let text = "SELECT seq, note, kind, topic, text FROM changes WHERE seq > ?1 ORDER BY seq LIMIT ?2";
        let mut statement = self.connection.prepare_cached(text)?;
        statement.query_map(params![seq, most], change)?.collect()
    }

    /// Returns the sequence number of the last change; 0 before the first one.
    ///
    /// # Errors
    /// Returns the errors of SQLite.
    pub fn last_seq(&self) -> Result<i64> {
        let text = "SELECT coalesce(max(seq), 0) FROM sqlite_sequence WHERE name = 'changes'";
        self.connection.query_row(text, [], |row| row.get(0))
    }

    /// Returns the sequence number up to which the log is trimmed; 0 if it is complete.
    ///
    /// # Errors
    /// Returns the errors of SQLite.
    pub fn trimmed_seq(&self) -> Result<i64> {
        let text = "SELECT coalesce((SELECT min(seq) - 1 FROM changes),
            (SELECT seq FROM sqlite_sequence WHERE name = 'changes'), 0)";
        self.connection.query_row(text, [], |row| row.get(0))
    }

    /// Removes the changes up to a sequence number from the log.
    ///
    /// # Errors
    /// Returns the errors of SQLite.
    pub fn trim(&self, seq: i64) -> Result<()> {
        self.connection.execute("DELETE FROM changes WHERE seq <= ?1", [seq]).map(drop)
    }

    /// Begins a transaction that writes.
    ///
    /// # Errors
    /// Returns the errors of SQLite.
    pub fn transaction(&mut self) -> Result<Transaction<'_>> {
        self.connection.transaction_with_behavior(TransactionBehavior::Immediate)
    }

    /// Returns all notes.
    ///
    /// # Errors
    /// Returns the errors of SQLite.
    pub fn notes(&self) -> Result<BTreeMap<NoteId, Note>> {
        let mut statement = self.connection.prepare("SELECT id, topic, text FROM notes")?;
        let note = |row: &Row<'_>| Ok((row.get(0)?, Note { topic: row.get(1)?, text: row.get(2)? }));
        statement.query_map([], note)?.collect()
    }

    /// Keeps the changes that are trimmed from now on, for [`notes_at`](Self::notes_at).
    ///
    /// # Errors
    /// Returns the errors of SQLite.
    pub fn keep_history(&self) -> Result<()> {
        self.connection.execute_batch(HISTORY)
    }

    /// Returns the notes as they were after the change with a sequence number, and the number of changes up to it, which
    /// equals `seq` if none is missing. It needs the history from the first change on.
    ///
    /// # Errors
    /// Returns the errors of SQLite.
    pub fn notes_at(&self, seq: i64) -> Result<(BTreeMap<NoteId, Note>, i64)> {
        let text = "SELECT seq, note, kind, topic, text FROM history WHERE seq <= ?1
            UNION ALL SELECT seq, note, kind, topic, text FROM changes WHERE seq <= ?1 ORDER BY seq";
        let mut statement = self.connection.prepare(text)?;
        let (mut notes, mut count) = (BTreeMap::new(), 0);
        for change in statement.query_map([seq], change)? {
            let Change { note: id, action, .. } = change?;
            match action {
                Action::Upsert(note) | Action::Retag(note) => notes.insert(id, note),
                Action::Remove => notes.remove(&id),
            };
            count += 1;
        }
        Ok((notes, count))
    }
}

/// Reads a row of `changes` or `history`.
fn change(row: &Row<'_>) -> Result<Change> {
    let note = || -> Result<Note> { Ok(Note { topic: row.get(3)?, text: row.get(4)? }) };
    let action = match row.get::<_, String>(2)?.as_str() {
        "upsert" => Action::Upsert(note()?),
        "retag" => Action::Retag(note()?),
        _ => Action::Remove,
    };
    Ok(Change { seq: row.get(0)?, note: row.get(1)?, action })
}
