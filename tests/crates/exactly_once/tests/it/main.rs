//! Tests of the example: the demonstration runs, and its comparison can fail.

mod checker;
mod demo;
mod ingester;

use std::{error::Error, path::Path};

use exactly_once::{Ingester, Note, NoteId, Source, ingest::source_file};
use rusqlite::params;
use shardex::{Durability, WriteBatch, blocking::Shardex};
use tempfile::TempDir;

type Outcome = Result<(), Box<dyn Error>>;

/// Text of three sentences, and so of three postings.
const TEXT: &str = "One word of a note. Another part of it. The énd";

fn note(topic: u32, text: &str) -> Note {
    Note { topic, text: text.into() }
}

/// A directory with a source of these notes, one change each.
fn source_of(notes: &[(NoteId, Note)]) -> Result<(TempDir, Source), Box<dyn Error>> {
    let dir = tempfile::tempdir()?;
    let mut source = Source::open(&source_file(dir.path()))?;
    source.keep_history()?;
    let transaction = source.transaction()?;
    for (id, note) in notes {
        let insert = "INSERT INTO notes (id, topic, text) VALUES (?1, ?2, ?3)";
        transaction.execute(insert, params![id, note.topic, note.text])?;
    }
    transaction.commit()?;
    Ok((dir, source))
}

/// Changes the source with one statement.
fn change(source: &mut Source, statement: &str) -> rusqlite::Result<()> {
    let transaction = source.transaction()?;
    transaction.execute(statement, [])?;
    transaction.commit()
}

/// Ingests all changes, and returns their number.
fn ingest(dir: &Path) -> Result<usize, Box<dyn Error>> {
    let mut ingester = Ingester::open(dir, Durability::Manual, 2)?;
    let mut changes = 0;
    while let Some(step) = ingester.step()? {
        changes += step.changes;
    }
    ingester.close()?;
    Ok(changes)
}

/// Operations added to a batch.
type Operations<'a> = &'a dyn Fn(&mut WriteBatch) -> &mut WriteBatch;

/// Writes a batch behind the ingester's back.
fn write(index: &Shardex, operations: Operations<'_>) -> shardex::Result<()> {
    let mut batch = WriteBatch::new();
    operations(&mut batch);
    index.write(batch).map(drop)
}
