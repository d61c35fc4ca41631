//! Batches of an ingester: the next changes with the cursor, or what a mistake makes of them.

use shardex::WriteBatch;

use super::{
    plan::Mistake,
    source::{Change, TOTAL, cursor_after},
};

/// Batch, and the last change that its cursor names.
pub(super) struct NumberedBatch {
    pub(super) operations: WriteBatch,
    /// `None` if the batch sets no cursor, which only a mistake does.
    pub(super) up_to: Option<u64>,
}

/// Returns the batches that write the changes after number `from`, before which the index counts `made` changes. Without a
/// mistake it is one.
pub(super) fn batches(changes: &[Change], from: u64, made: u64, mistake: Option<Mistake>) -> Vec<NumberedBatch> {
    let up_to = from + changes.len() as u64;
    let count = |batch: &mut WriteBatch| {
        batch.set_payload(TOTAL, (made + changes.len() as u64).to_string());
    };
    let (mut first, mut second) = (WriteBatch::new(), WriteBatch::new());
    let set_cursor = |batch: &mut WriteBatch| {
        if mistake == Some(Mistake::Unconditional) {
            batch.set_cursor(cursor_after(up_to));
        } else {
            batch.set_cursor_if(cursor_after(up_to), cursor_after(from));
        }
    };
    match mistake {
        None | Some(Mistake::TrimToCursor | Mistake::Unconditional) => {
            changes.iter().for_each(|change| change.write_to(&mut first));
            count(&mut first);
            set_cursor(&mut first);
            return vec![NumberedBatch { operations: first, up_to: Some(up_to) }];
        }
        Some(Mistake::CursorBefore) => {
            set_cursor(&mut first);
            changes.iter().for_each(|change| change.write_to(&mut second));
            count(&mut second);
            return vec![
                NumberedBatch { operations: first, up_to: Some(up_to) },
                NumberedBatch { operations: second, up_to: None },
            ];
        }
        Some(Mistake::CursorAfter) => {
            changes.iter().for_each(|change| change.write_to(&mut first));
            count(&mut first);
        }
        Some(Mistake::EditInTwo) => {
            let edit = changes.iter().position(|change| change.text().is_some()).unwrap_or(0);
            changes[..edit].iter().for_each(|change| change.write_to(&mut first));
            changes[edit].begin_in(&mut first);
            if let Some((document, text)) = changes[edit].text() {
                second.set_payload(document, text);
            }
            changes[edit + 1..].iter().for_each(|change| change.write_to(&mut second));
            count(&mut second);
        }
    }
    set_cursor(&mut second);
    vec![NumberedBatch { operations: first, up_to: None }, NumberedBatch { operations: second, up_to: Some(up_to) }]
}
