//! The comparison finds every kind of difference.

use std::collections::BTreeMap;

use exactly_once::{
    Ingester, Note, NoteId,
    check::{Compared, Difference, compare},
    ingest::{decode, open_index},
};
use shardex::{DocumentId, Durability, Posting, PostingKey};

use super::{Operations, Outcome, TEXT, change, ingest, note, source_of, write};

fn notes() -> Vec<(NoteId, Note)> {
    vec![(1, note(0, TEXT)), (2, note(63, "")), (3, note(7, TEXT))]
}

/// Ingests the notes, changes the index, and returns the differences.
fn differences(operations: Operations<'_>) -> Result<Vec<Difference>, Box<dyn std::error::Error>> {
    let (dir, _source) = source_of(&notes())?;
    ingest(dir.path())?;
    let index = open_index(dir.path(), Durability::Manual)?;
    write(&index, operations)?;
    Ok(compare(&index.snapshot()?, &BTreeMap::from_iter(notes()))?.1)
}

/// Key of a sentence of note 1.
fn key(sentence: usize) -> Result<PostingKey, &'static str> {
    note(0, TEXT).parts(1).nth(sentence).map(|(key, _)| key).ok_or("no such sentence")
}

#[test]
fn an_untouched_index_has_no_difference() -> Outcome {
    assert_eq!(differences(&|batch| batch)?, []);
    let (dir, _source) = source_of(&notes())?;
    ingest(dir.path())?;
    let index = open_index(dir.path(), Durability::Manual)?;
    let compared = Compared { notes: 3, postings: 6, bytes: 2 * TEXT.len() as u64 };
    assert_eq!(compare(&index.snapshot()?, &BTreeMap::from_iter(notes()))?, (compared, vec![]));
    Ok(())
}

#[test]
fn differences_of_postings_are_found() -> Outcome {
    let key = key(1)?;
    let removed = differences(&|batch| batch.remove_posting(key))?;
    assert_eq!(removed, [Difference::MissingPosting(key)]);

    let tags = differences(&|batch| batch.set_tags(key, 3))?;
    assert_eq!(tags, [Difference::Tags { key, expected: 1, found: 3 }]);

    // One bit of one component.
    let mut posting = note(0, TEXT).postings(1).swap_remove(1);
    posting.vector[5] = f32::from_bits(posting.vector[5].to_bits() ^ 1);
    assert_eq!(differences(&|batch| batch.add(posting.clone()))?, [Difference::Vector(key)]);

    let moved = PostingKey { start: key.start + 1, ..key };
    let extra = differences(&|batch| batch.add(Posting::new(moved, vec![0.0; 24])))?;
    assert_eq!(extra, [Difference::ExtraPosting(moved)]);
    Ok(())
}

#[test]
fn differences_of_documents_and_payloads_are_found() -> Outcome {
    let (one, none) = (DocumentId(1), DocumentId(4));
    let extra = differences(&|batch| batch.replace_document(none, note(1, "x").postings(4)).set_payload(none, "x"))?;
    assert_eq!(extra, [Difference::ExtraPosting(PostingKey::new(none, 0, 1)), Difference::ExtraPayload(none)]);

    let changed = differences(&|batch| batch.set_payload(one, TEXT.to_uppercase()))?;
    assert_eq!(changed, [Difference::Payload(one)]);

    let removed = differences(&|batch| batch.remove_payload(one))?;
    assert_eq!(removed, [Difference::MissingPayload(one)]);

    // The payload of note 2 is empty, and it must be there all the same.
    let empty = differences(&|batch| batch.remove_document(2u32))?;
    assert_eq!(empty, [Difference::MissingPayload(DocumentId(2))]);
    Ok(())
}

/// The mistake that makes an ingester at best "at least once": the cursor in a batch of its own. A kill between the two
/// leaves an index that is ahead of its cursor.
#[test]
fn a_batch_without_its_cursor_is_found() -> Outcome {
    let (dir, mut source) = source_of(&notes())?;
    ingest(dir.path())?;
    change(&mut source, "DELETE FROM notes WHERE id = 1")?;
    let index = open_index(dir.path(), Durability::Manual)?;
    write(&index, &|batch| batch.remove_document(1u32))?;
    let snapshot = index.snapshot()?;
    let cursor = decode(snapshot.cursor()?)?;
    let (expected, count) = source.notes_at(cursor)?;
    assert_eq!((cursor, count), (3, 3));
    let (_, differences) = compare(&snapshot, &expected)?;
    let missing = (0..3).map(|sentence| Ok(Difference::MissingPosting(key(sentence)?)));
    let mut missing = missing.collect::<Result<Vec<_>, &str>>()?;
    missing.push(Difference::MissingPayload(DocumentId(1)));
    assert_eq!(differences, missing);

    // The comparison at the end would not have found it.
    drop(snapshot);
    index.close()?;
    let mut ingester = Ingester::open(dir.path(), Durability::Manual, 9)?;
    ingester.step()?;
    ingester.close()?;
    let index = open_index(dir.path(), Durability::Manual)?;
    assert_eq!(compare(&index.snapshot()?, &source.notes()?)?.1, []);
    Ok(())
}
