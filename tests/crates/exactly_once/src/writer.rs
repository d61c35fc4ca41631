//! The writer: random changes of the notes, as the users of an application would make them.

use std::path::Path;

use rand::{RngExt as _, SeedableRng as _, rngs::ChaCha8Rng};
use rusqlite::{Result, Transaction, params};

use crate::{
    ingest::source_file,
    note::{Note, NoteId},
    source::Source,
};

/// Notes have ids below this number, so ids of removed notes are used again.
const NOTES: NoteId = 400;
/// Number of notes that a bulk removal removes at most. It makes shards shrink and merge.
const BULK: NoteId = 60;
const SYLLABLES: [&str; 12] = ["ka", "lo", "mi", "té", "ru", "sø", "ven", "dar", "pin", "qua", "zur", "漢"];

/// Writer with its own connection to the source.
#[derive(Debug)]
pub struct Writer {
    source: Source,
    rng: ChaCha8Rng,
}

impl Writer {
    /// Opens a writer in the directory of the application.
    ///
    /// # Errors
    /// Returns the errors of SQLite.
    pub fn open(dir: &Path, seed: u64) -> Result<Self> {
        Ok(Self { source: Source::open(&source_file(dir))?, rng: ChaCha8Rng::seed_from_u64(seed) })
    }

    /// Changes some notes in one transaction, and returns the number of changes. One in sixteen is rolled back, and must
    /// leave no trace in the index either.
    ///
    /// # Errors
    /// Returns the errors of SQLite.
    pub fn transaction(&mut self) -> Result<u64> {
        let transaction = self.source.transaction()?;
        let mut changes = 0;
        for _ in 0..self.rng.random_range(1..8) {
            changes += edit(&transaction, &mut self.rng)?;
        }
        if self.rng.random_range(0..16) == 0 {
            transaction.rollback()?;
            return Ok(0);
        }
        transaction.commit()?;
        Ok(changes)
    }
}

/// Makes one edit, and returns the number of notes changed.
fn edit(transaction: &Transaction<'_>, rng: &mut ChaCha8Rng) -> Result<u64> {
    let id = rng.random_range(0..NOTES);
    let changed = match rng.random_range(0..100) {
        0..65 => {
            let Note { topic, text } = note(rng);
            let upsert = "INSERT INTO notes (id, topic, text) VALUES (?1, ?2, ?3)
                ON CONFLICT (id) DO UPDATE SET topic = excluded.topic, text = excluded.text";
            transaction.prepare_cached(upsert)?.execute(params![id, topic, text])?
        }
        65..85 => {
            let retag = "UPDATE notes SET topic = (topic + ?2) % 64 WHERE id = ?1";
            transaction.prepare_cached(retag)?.execute(params![id, rng.random_range(1..64)])?
        }
        85..99 => transaction.prepare_cached("DELETE FROM notes WHERE id = ?1")?.execute([id])?,
        _ => {
            let remove = "DELETE FROM notes WHERE id BETWEEN ?1 AND ?2";
            transaction.prepare_cached(remove)?.execute([id, id + rng.random_range(0..BULK)])?
        }
    };
    Ok(changed as u64)
}

/// Draws a note: mostly a few sentences, sometimes none, sometimes a text of many pages.
fn note(rng: &mut ChaCha8Rng) -> Note {
    let sentences = match rng.random_range(0..40) {
        0 => 0,
        1 => rng.random_range(50..200),
        _ => rng.random_range(1..9),
    };
    let text = (0..sentences).map(|_| sentence(rng)).collect::<Vec<_>>().join(". ");
    Note { topic: rng.random_range(0..64), text }
}

fn sentence(rng: &mut ChaCha8Rng) -> String {
    let mut word = || {
        let syllables = rng.random_range(1..4);
        (0..syllables).map(|_| SYLLABLES[rng.random_range(0..SYLLABLES.len())]).collect::<String>()
    };
    let words = 3 + word().len();
    (0..words).map(|_| word()).collect::<Vec<_>>().join(" ")
}
