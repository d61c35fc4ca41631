//! Sequences of operations on allocations in use.

use super::scene::Case;
use super::scene::{ALL, Outcome, Scene, next_head, next_shards, pages};
use super::{Event, Rule};
use crate::fsck::build::{Head, PAGE};

pub(super) const PLACES: &[Case] = &[
    ("a store into a used slot", true, |s| s.store("data", PAGE + 64, &[1]), Some(Rule::StoreIntoRetained)),
    ("a store behind the used slots", true, |s| s.store("data", PAGE + 128, &[1; 64]), None),
    (
        "a store into a place that the older root alone reaches",
        true,
        |s| s.store("data", 18 * PAGE, &[1]),
        Some(Rule::StoreIntoRetained),
    ),
    ("a store into cells", true, |s| s.store("data", 40 * PAGE + 70, &[1]), Some(Rule::StoreIntoRetained)),
    ("a store into the header", true, |s| s.store("data", 8, &[9]), Some(Rule::StoreIntoRetained)),
    (
        "a store into a place of two roots ago, before B3",
        true,
        |s| {
            let root = s.tree(next_head(), &next_shards())?;
            s.sync("data", ALL)?;
            s.root(1, &root)?;
            s.store("data", 18 * PAGE, &[1])
        },
        Some(Rule::StoreIntoRetained),
    ),
    (
        "a store into a place of two roots ago, after B3",
        true,
        |s| {
            s.flush(next_head(), &next_shards())?;
            s.store("data", 18 * PAGE, &[1])
        },
        None,
    ),
    (
        "B3 fails: either root may be there",
        true,
        |s| {
            let root = s.tree(next_head(), &next_shards())?;
            s.sync("data", ALL)?;
            s.root(1, &root)?;
            s.sync_with("root", pages(1, 1), false)?;
            s.see(&Event::Opened)?;
            s.store("data", 18 * PAGE, &[1])
        },
        Some(Rule::StoreIntoRetained),
    ),
    (
        "a root of before the process died is retained",
        true,
        |s| {
            let root = s.tree(next_head(), &next_shards())?;
            s.sync("data", ALL)?;
            s.root(1, &root)?;
            s.process_crash()?;
            s.store("data", 18 * PAGE, &[1])
        },
        Some(Rule::StoreIntoRetained),
    ),
    (
        "a store into lent bytes",
        true,
        |s| {
            lend(s)?;
            s.store("data", 10 * PAGE + 99, &[1])
        },
        Some(Rule::StoreIntoLent),
    ),
    (
        "a store beside lent bytes",
        true,
        |s| {
            lend(s)?;
            s.store("data", 10 * PAGE + 100, &[1])
        },
        None,
    ),
    (
        "a store into bytes that were returned",
        true,
        |s| {
            lend(s)?;
            s.see(&Event::Return { id: 4 })?;
            s.store("data", 10 * PAGE, &[1])
        },
        None,
    ),
    (
        "a loan ends with its process",
        true,
        |s| {
            lend(s)?;
            s.process_crash()?;
            s.store("data", 10 * PAGE, &[1])
        },
        None,
    ),
    ("a store that ends where a place begins", true, |s| s.store("data", 18 * PAGE - 1, &[1]), None),
    (
        "a store that ends where a loan begins",
        true,
        |s| {
            lend(s)?;
            s.store("data", 10 * PAGE - 1, &[1])
        },
        None,
    ),
    ("a store behind the header of the log", true, |s| s.store("wal", 32, &[1]), None),
    (
        "a root file made anew holds other roots, and the old one may come back",
        true,
        |s| {
            other_roots(s)?;
            s.store("data", 18 * PAGE, &[1])
        },
        Some(Rule::StoreIntoRetained),
    ),
    (
        "a root file made anew holds other roots, and its name is durable",
        true,
        |s| {
            other_roots(s)?;
            s.sync_dir(true)?;
            s.store("data", 18 * PAGE, &[1])
        },
        None,
    ),
    (
        "a store of what a place holds, and of more behind it",
        true,
        |s| {
            let bytes = [&s.image.data[PAGE..PAGE + 128], &[7; 64]].concat();
            s.store("data", PAGE, &bytes)
        },
        None,
    ),
    (
        "a store of what lent bytes hold",
        true,
        |s| {
            lend(s)?;
            s.store("data", 10 * PAGE, &[0])
        },
        Some(Rule::StoreIntoLent),
    ),
];

fn lend(s: &mut Scene) -> Outcome {
    s.see(&Event::Lend { file: "data", offset: 10 * PAGE as u64, len: 100, id: 4 })
}

/// Creates a new root file with two roots of the next epoch and renames it to `root`.
fn other_roots(s: &mut Scene) -> Outcome {
    let head = Head { epoch: 3, segment: 1, offset: 64, ..next_head() };
    let root = s.tree(head, &next_shards())?;
    let twin = s.tree(Head { slot: 0, generation: 8, ..head }, &next_shards())?;
    s.sync("data", ALL)?;
    let mut roots = vec![0; 2 * PAGE];
    roots[..192].copy_from_slice(&twin);
    roots[PAGE..PAGE + 192].copy_from_slice(&root);
    s.root_file(&roots, true, false)
}
