//! Sequences of operations on the WAL.

use super::scene::Case;
use super::scene::{ALL, Scene, next_head, next_shards, pages};
use super::{Breach, Event, Rule};
use crate::fsck::build::{Head, LOG_END, PAGE, SECTOR, SEGMENT, add_payload, frame};

/// Fills segment 2 with LSN 10 and ends the record with LSN 11 in segment 3. Stores the header of segment 3 last,
/// without a sync.
fn over_two_segments(s: &mut Scene) -> Result<(), Breach> {
    let long = add_payload(&(100..125).collect::<Vec<_>>());
    let room = PAGE + 3 * SEGMENT - LOG_END - 32;
    s.store("wal", LOG_END, &frame(2, 1, 1, 10, 9, &long[..room]))?;
    s.store("wal", PAGE + 3 * SEGMENT + SECTOR, &frame(2, 1, 2, 11, 9, &long[room..]))?;
    s.sync("wal", ALL)?;
    s.segment(3, 2, 3, 11)
}

/// Stores, syncs and acknowledges LSN 10 without padding. Returns the offset at which it ends.
fn without_padding(s: &mut Scene) -> Result<usize, Breach> {
    let bytes = frame(2, 1, 3, 10, 9, &add_payload(&[70]));
    s.store("wal", LOG_END, &bytes)?;
    s.sync("wal", ALL)?;
    s.ack(10)?;
    Ok(LOG_END + bytes.len())
}

pub(super) const LOG: &[Case] = &[
    ("a commit", true, |s| s.commit_ten(), None),
    (
        "B1 is left out",
        true,
        |s| {
            s.append(LOG_END, 2, 10, 9, 70)?;
            s.ack(10)
        },
        Some(Rule::AcknowledgedNotDurable),
    ),
    (
        "B1 is of another range",
        true,
        |s| {
            s.append(LOG_END, 2, 10, 9, 70)?;
            s.sync("wal", pages(1, 8))?;
            s.ack(10)
        },
        Some(Rule::AcknowledgedNotDurable),
    ),
    (
        "the frame is stored while B1 runs",
        true,
        |s| {
            let id = s.begin("wal", ALL)?;
            s.append(LOG_END, 2, 10, 9, 70)?;
            s.see(&Event::SyncEnd { id, ok: true })?;
            s.ack(10)
        },
        Some(Rule::AcknowledgedNotDurable),
    ),
    (
        "the process dies before B1, and the open after it takes the cache for durable",
        true,
        |s| {
            s.append(LOG_END, 2, 10, 9, 70)?;
            s.process_crash()?;
            s.ack(10)
        },
        Some(Rule::AcknowledgedNotDurable),
    ),
    ("an LSN that nobody has stored", true, |s| s.ack(10), Some(Rule::AcknowledgedNotDurable)),
    (
        "the header of a segment is not synced",
        true,
        |s| {
            over_two_segments(s)?;
            s.ack(11)
        },
        Some(Rule::AcknowledgedNotDurable),
    ),
    (
        "the header of a segment is synced",
        true,
        |s| {
            over_two_segments(s)?;
            s.sync("wal", pages(13, 1))?;
            s.ack(11)
        },
        None,
    ),
    (
        "a flush is answered, and the log up to its checkpoint is not durable",
        true,
        |s| {
            let end = s.append(LOG_END, 2, 10, 9, 70)? - PAGE - 2 * SEGMENT;
            s.flush(Head { checkpoint: 10, offset: end as u64, ..next_head() }, &next_shards())?;
            s.ack(10)
        },
        Some(Rule::AcknowledgedNotDurable),
    ),
    (
        "a flush is answered after B1",
        true,
        |s| {
            let end = s.append(LOG_END, 2, 10, 9, 70)? - PAGE - 2 * SEGMENT;
            s.flush(Head { checkpoint: 10, offset: end as u64, ..next_head() }, &next_shards())?;
            s.sync("wal", ALL)?;
            s.ack(10)
        },
        None,
    ),
    (
        "a store into a frame that is needed",
        true,
        |s| s.store("wal", LOG_END - 1, &[0]),
        Some(Rule::StoreIntoNeededLog),
    ),
    (
        "a store into the log that the older root needs",
        true,
        |s| s.store("wal", Scene::old_log(), &[0]),
        Some(Rule::StoreIntoNeededLog),
    ),
    (
        "a store into the log that no root needs any more",
        true,
        |s| {
            s.flush(next_head(), &next_shards())?;
            s.store("wal", Scene::old_log(), &[0; 8])
        },
        None,
    ),
    (
        "a store into the log that the root needs that is being replaced",
        true,
        |s| {
            let root = s.tree(next_head(), &next_shards())?;
            s.sync("data", ALL)?;
            s.root(1, &root)?;
            s.store("wal", Scene::old_log(), &[0])
        },
        Some(Rule::StoreIntoNeededLog),
    ),
    (
        "a store into the header of a needed segment",
        true,
        |s| s.store("wal", PAGE, &[0]),
        Some(Rule::StoreIntoNeededLog),
    ),
    ("a store into a segment of another epoch", true, |s| s.store("wal", PAGE + SEGMENT, &[0; 64]), None),
    ("a store into the header of the log", true, |s| s.store("wal", 0, &[0]), Some(Rule::StoreIntoNeededLog)),
    (
        "a store into the needed log after the process died",
        true,
        |s| {
            s.process_crash()?;
            s.store("wal", LOG_END - 1, &[0])
        },
        Some(Rule::StoreIntoNeededLog),
    ),
    (
        "a store into the sector of a frame that is needed",
        true,
        |s| {
            let at = without_padding(s)?;
            s.append(at, 2, 11, 10, 71)?;
            Ok(())
        },
        Some(Rule::StoreIntoNeededLog),
    ),
    (
        "two syncs of a file",
        true,
        |s| {
            s.begin("wal", ALL)?;
            s.sync("wal", pages(1, 1))
        },
        Some(Rule::SyncsAtOnce),
    ),
    (
        "two syncs of two files",
        true,
        |s| {
            s.begin("wal", ALL)?;
            s.sync("data", ALL)
        },
        None,
    ),
    (
        "an acknowledgement after a failed sync",
        true,
        |s| {
            s.sync_with("data", ALL, false)?;
            s.ack(9)
        },
        Some(Rule::AcknowledgedAfterFailedSync),
    ),
    (
        "an acknowledgement after a failed sync and a good one",
        true,
        |s| {
            s.sync_with("data", ALL, false)?;
            s.sync("data", ALL)?;
            s.ack(9)
        },
        Some(Rule::AcknowledgedAfterFailedSync),
    ),
    (
        "an acknowledgement after a failed sync and an open",
        true,
        |s| {
            s.sync_with("data", ALL, false)?;
            s.see(&Event::Opened)?;
            s.ack(9)
        },
        None,
    ),
    (
        "B1 fails, and a second one is believed after an open",
        true,
        |s| {
            s.append(LOG_END, 2, 10, 9, 70)?;
            s.sync_with("wal", ALL, false)?;
            s.see(&Event::Opened)?;
            s.sync("wal", ALL)?;
            s.ack(10)
        },
        Some(Rule::AcknowledgedNotDurable),
    ),
    (
        "an LSN is given to another record of its epoch",
        true,
        |s| {
            s.append(LOG_END, 2, 10, 9, 70)?;
            s.process_crash()?;
            s.append(LOG_END, 2, 10, 9, 71)?;
            Ok(())
        },
        Some(Rule::FrameChanged),
    ),
    (
        "a record is stored again",
        true,
        |s| {
            s.append(LOG_END, 2, 10, 9, 70)?;
            s.commit_ten()
        },
        None,
    ),
    (
        "a store of a frame fails, and the LSN is given to another",
        true,
        |s| {
            let bytes = frame(2, 1, 3, 10, 9, &add_payload(&[70]));
            s.see(&Event::Store { file: "wal", offset: LOG_END as u64, bytes: &bytes, ok: false })?;
            s.append(LOG_END, 2, 10, 9, 71)?;
            Ok(())
        },
        None,
    ),
    (
        "an LSN is given to another record of the next epoch",
        true,
        |s| {
            s.append(LOG_END, 2, 10, 9, 71)?;
            s.process_crash()?;
            s.recover(9, true)?;
            s.commit_in_epoch_three()
        },
        None,
    ),
    (
        "B5 is left out",
        true,
        |s| {
            s.recover(9, false)?;
            s.commit_in_epoch_three()
        },
        Some(Rule::EpochUnknown),
    ),
    (
        "B5 is done",
        true,
        |s| {
            s.recover(9, true)?;
            s.commit_in_epoch_three()
        },
        None,
    ),
    ("a recovery that drops what was acknowledged", true, |s| s.recover(8, false), Some(Rule::RootForgets)),
    (
        "a frame says that what is not durable is",
        true,
        |s| {
            let at = s.append(LOG_END, 2, 10, 9, 70)?;
            s.append(at, 2, 11, 10, 71)?;
            Ok(())
        },
        Some(Rule::FrameClaimsTooMuch),
    ),
    (
        "a frame says that what is durable is",
        true,
        |s| {
            let at = s.append(LOG_END, 2, 10, 9, 70)?;
            s.sync("wal", ALL)?;
            s.append(at, 2, 11, 10, 71)?;
            Ok(())
        },
        None,
    ),
    (
        "an index is closed, and its root is in the cache alone",
        true,
        |s| {
            let root = s.tree(next_head(), &next_shards())?;
            s.sync("data", ALL)?;
            s.root(1, &root)?;
            s.store("wal", LOG_END, &frame(2, 4, 3, 10, 9, &[]))
        },
        Some(Rule::ClosedTooEarly),
    ),
    (
        "an index is closed",
        true,
        |s| {
            s.flush(next_head(), &next_shards())?;
            s.store("wal", LOG_END, &frame(2, 4, 3, 10, 9, &[]))
        },
        None,
    ),
    (
        "a power cut after a commit, and another commit",
        true,
        |s| {
            s.commit_ten()?;
            s.power_cut()?;
            s.ack(10)?;
            let at = LOG_END + 128;
            s.append(at, 2, 11, 10, 71)?;
            s.sync("wal", ALL)?;
            s.ack(11)
        },
        None,
    ),
    ("a store that ends where a needed segment begins", true, |s| s.store("wal", PAGE + 2 * SEGMENT - 1, &[0]), None),
    (
        "B1 fails, and after an open every sector of the frame is stored to and synced",
        true,
        |s| {
            s.append(LOG_END, 2, 10, 9, 70)?;
            s.sync_with("wal", ALL, false)?;
            s.see(&Event::Opened)?;
            for last in [LOG_END + SECTOR - 1, LOG_END + 2 * SECTOR - 1] {
                let byte = s.image.wal[last];
                s.store("wal", last, &[byte])?;
            }
            s.sync("wal", ALL)?;
            s.ack(10)
        },
        None,
    ),
    (
        "a frame says that an LSN is durable that was dropped and given anew",
        true,
        |s| {
            let half = frame(2, 1, 1, 10, 9, &[0; 32]);
            s.store("wal", LOG_END, &half)?;
            s.sync("wal", ALL)?;
            s.store("wal", LOG_END + half.len(), &frame(2, 1, 0, 11, 10, &[0; 32]))?;
            s.process_crash()?;
            s.recover(9, true)?;
            s.segment(3, 3, 1, 10)?;
            let at = s.append(PAGE + 3 * SEGMENT + SECTOR, 3, 10, 9, 70)?;
            s.append(at, 3, 11, 10, 71)?;
            Ok(())
        },
        Some(Rule::FrameClaimsTooMuch),
    ),
    (
        "a store of what the needed log holds",
        true,
        |s| {
            let bytes = s.image.wal[PAGE..PAGE + SEGMENT].to_vec();
            s.store("wal", PAGE, &bytes)
        },
        None,
    ),
];
