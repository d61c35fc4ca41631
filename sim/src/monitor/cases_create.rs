//! Sequences of operations on names.

use super::scene::Case;
use super::scene::{Outcome, Scene, pages};
use super::{Event, Rule};
use crate::fsck::build::LOG_END;

pub(super) const CREATE: &[Case] = &[
    (
        "a create and a commit",
        false,
        |s| {
            s.create(&[])?;
            first_commit(s)
        },
        None,
    ),
    ("C1 of data is left out", false, |s| s.create(&["C1 data"]), Some(Rule::RootBeforeItsBytes)),
    ("C1 of wal is left out", false, |s| s.create(&["C1 wal"]), Some(Rule::RootBeforeItsBytes)),
    ("C2 is left out", false, |s| s.create(&["C2"]), Some(Rule::NamedTooEarly)),
    ("C3 is left out", false, |s| s.create(&["C3"]), Some(Rule::NamedTooEarly)),
    (
        "C4 is left out",
        false,
        |s| {
            s.create(&["C4"])?;
            first_commit(s)
        },
        Some(Rule::AcknowledgedWithoutNames),
    ),
    (
        "the parent is not synced",
        false,
        |s| {
            s.create(&["parent"])?;
            first_commit(s)
        },
        Some(Rule::AcknowledgedWithoutNames),
    ),
    (
        "the process dies before C4, and the open after it relies on the name",
        false,
        |s| {
            s.create(&["C4"])?;
            s.process_crash()?;
            first_commit(s)
        },
        Some(Rule::AcknowledgedWithoutNames),
    ),
    (
        "the process dies before C4, and the open after it syncs the directory",
        false,
        |s| {
            s.create(&["C4"])?;
            s.process_crash()?;
            s.sync_dir(true)?;
            first_commit(s)
        },
        None,
    ),
    (
        "C4 fails, and a second one is believed",
        false,
        |s| {
            s.create(&["C4"])?;
            s.sync_dir(false)?;
            s.sync_dir(true)?;
            s.see(&Event::Opened)?;
            first_commit(s)
        },
        Some(Rule::AcknowledgedWithoutNames),
    ),
    (
        "C4 fails, and the root file is made anew",
        false,
        |s| {
            s.create(&["C4"])?;
            s.sync_dir(false)?;
            let roots = s.image.root.clone();
            s.root_file(&roots, true, false)?;
            s.sync_dir(true)?;
            s.see(&Event::Opened)?;
            first_commit(s)
        },
        None,
    ),
    (
        "E2 is left out",
        true,
        |s| {
            let roots = s.image.root.clone();
            s.root_file(&roots, false, false)
        },
        Some(Rule::NamedTooEarly),
    ),
    (
        "E1 is left out",
        true,
        |s| {
            let roots = s.image.root.clone();
            s.root_file(&roots, true, false)?;
            s.commit_ten()
        },
        Some(Rule::AcknowledgedWithoutNames),
    ),
    (
        "the names are changed while the directory is synced",
        true,
        |s| {
            s.see(&Event::SyncDirBegin)?;
            let roots = s.image.root.clone();
            s.root_file(&roots, true, false)?;
            s.see(&Event::SyncDirEnd { ok: true })?;
            s.commit_ten()
        },
        Some(Rule::AcknowledgedWithoutNames),
    ),
    (
        "E1 is left out, and what was promised before is said again",
        true,
        |s| {
            let roots = s.image.root.clone();
            s.root_file(&roots, true, false)?;
            s.ack(9)
        },
        None,
    ),
    (
        "E1 is left out, and the process dies: both files lead to what is promised now",
        true,
        |s| {
            s.append(LOG_END, 2, 10, 9, 70)?;
            s.sync("wal", Some((LOG_END as u64, 128)))?;
            let roots = s.image.root.clone();
            s.root_file(&roots, true, false)?;
            s.process_crash()?;
            s.ack(10)
        },
        None,
    ),
    ("the log is removed", true, |s| s.see(&Event::Remove { name: "wal" }), Some(Rule::NameRemoved)),
    ("a file of no meaning is removed", true, |s| s.see(&Event::Remove { name: "root.new" }), None),
    ("data becomes something else", true, |s| s.see(&Event::Rename { from: "data", to: "x" }), Some(Rule::NameRemoved)),
    (
        "two syncs of the directory",
        true,
        |s| {
            s.see(&Event::SyncDirBegin)?;
            s.sync_dir(true)
        },
        Some(Rule::SyncsAtOnce),
    ),
    (
        "the sync of the parent fails, and a second one is believed",
        false,
        |s| {
            s.create(&["parent"])?;
            sync_parent(s, false)?;
            sync_parent(s, true)?;
            s.see(&Event::Opened)?;
            first_commit(s)
        },
        Some(Rule::AcknowledgedWithoutNames),
    ),
    (
        "the sync of the parent fails, the process dies, and the open after it syncs the parent",
        false,
        |s| {
            s.create(&["parent"])?;
            sync_parent(s, false)?;
            s.process_crash()?;
            sync_parent(s, true)?;
            first_commit(s)
        },
        None,
    ),
];

/// Commits LSN 1 of epoch 1 in a created index.
fn first_commit(s: &mut Scene) -> Outcome {
    s.segment(0, 1, 1, 1)?;
    s.append(Scene::old_log(), 1, 1, 0, 1)?;
    s.sync("wal", pages(1, 2))?;
    s.ack(1)
}

fn sync_parent(s: &mut Scene, ok: bool) -> Outcome {
    s.see(&Event::SyncParentBegin)?;
    s.see(&Event::SyncParentEnd { ok })
}
