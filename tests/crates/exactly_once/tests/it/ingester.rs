//! The ingester continues where the index is, and refuses a source that does not fit.

use std::{collections::BTreeMap, fs};

use exactly_once::{
    IngestError, Ingester, Source,
    check::compare,
    ingest::{open_index, source_file},
};
use shardex::Durability;

use super::{Outcome, TEXT, change, ingest, note, source_of, write};

#[test]
fn every_kind_of_change_arrives_once() -> Outcome {
    let (dir, mut source) = source_of(&[(1, note(0, TEXT)), (2, note(1, TEXT)), (3, note(2, TEXT))])?;
    assert_eq!(ingest(dir.path())?, 3);
    assert_eq!(ingest(dir.path())?, 0, "all of it is in the index");
    change(&mut source, "UPDATE notes SET topic = 9 WHERE id = 1")?;
    change(&mut source, "UPDATE notes SET text = 'Short' WHERE id = 2")?;
    change(&mut source, "DELETE FROM notes WHERE id = 3")?;
    change(&mut source, "UPDATE notes SET topic = 9, text = '' WHERE id = 1")?;
    assert_eq!(ingest(dir.path())?, 4);
    let expected = BTreeMap::from([(1, note(9, "")), (2, note(1, "Short"))]);
    assert_eq!(source.notes()?, expected);
    assert_eq!(source.notes_at(7)?, (expected.clone(), 7));
    assert_eq!((source.trimmed_seq()?, source.last_seq()?), (7, 7));
    let index = open_index(dir.path(), Durability::Manual)?;
    assert_eq!(compare(&index.snapshot()?, &expected)?.1, []);
    Ok(())
}

/// What is accepted and not durable stays in the log.
#[test]
fn the_log_is_trimmed_up_to_the_durable_cursor_only() -> Outcome {
    let notes: Vec<_> = (0..200).map(|id| (id, note(0, "Short"))).collect();
    let (dir, source) = source_of(&notes)?;
    let mut ingester = Ingester::open(dir.path(), Durability::Manual, 30)?;
    for _ in 0..5 {
        let step = ingester.step()?.ok_or("no change")?;
        assert_eq!((step.durable, source.trimmed_seq()?), (0, 0));
    }
    // The sixth batch commits.
    let step = ingester.step()?.ok_or("no change")?;
    assert_eq!((step.accepted, step.durable, source.trimmed_seq()?), (180, 180, 180));
    let step = ingester.step()?.ok_or("no change")?;
    assert_eq!((step.accepted, step.durable, source.trimmed_seq()?), (200, 180, 180));
    Ok(())
}

#[test]
fn a_source_that_does_not_fit_is_refused() -> Outcome {
    let notes = [(1, note(0, TEXT)), (2, note(1, TEXT))];
    let (dir, source) = source_of(&notes)?;
    source.trim(1)?;
    let trimmed = Ingester::open(dir.path(), Durability::Manual, 9);
    assert!(matches!(trimmed, Err(IngestError::Trimmed { cursor: 0, trimmed: 1 })), "{trimmed:?}");

    let (dir, source) = source_of(&notes)?;
    ingest(dir.path())?;
    drop(source);
    fs::remove_file(source_file(dir.path()))?;
    drop(Source::open(&source_file(dir.path()))?);
    let ahead = Ingester::open(dir.path(), Durability::Manual, 9);
    assert!(matches!(ahead, Err(IngestError::Ahead { cursor: 2, last: 0 })), "{ahead:?}");

    let index = open_index(dir.path(), Durability::Manual)?;
    write(&index, &|batch| batch.set_cursor("page 4"))?;
    index.close()?;
    let foreign = Ingester::open(dir.path(), Durability::Manual, 9);
    assert!(matches!(foreign, Err(IngestError::Cursor(ref cursor)) if cursor == b"page 4"), "{foreign:?}");
    Ok(())
}
