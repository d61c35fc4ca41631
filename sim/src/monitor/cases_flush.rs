//! Sequences of operations that end with the store of a root.

use super::scene::Case;
use super::scene::{ALL, Scene, next_head, next_shards, pages};
use super::{Breach, Event, Rule};
use crate::fsck::build::{Head, PAGE};

/// Grows `data` by a chunk and places the directory of the next root there.
fn grown(s: &mut Scene) -> Result<(Head, Vec<u8>), Breach> {
    s.allocate("data", 65 * PAGE)?;
    let head = Head { nodes: [49, 50, 51], ..next_head() };
    let root = s.tree(head, &next_shards())?;
    Ok((head, root))
}

pub(super) const FLUSH: &[Case] = &[
    (
        "a flush",
        true,
        |s| {
            s.flush(next_head(), &next_shards())?;
            s.ack(9)
        },
        None,
    ),
    (
        "B2 is left out",
        true,
        |s| {
            let root = s.tree(next_head(), &next_shards())?;
            s.root(1, &root)
        },
        Some(Rule::RootBeforeItsBytes),
    ),
    (
        "B2 leaves the extents out",
        true,
        |s| {
            let root = s.tree(next_head(), &next_shards())?;
            s.sync("data", pages(17, 16))?;
            s.root(1, &root)
        },
        Some(Rule::RootBeforeItsBytes),
    ),
    (
        "B2 by ranges",
        true,
        |s| {
            let root = s.tree(next_head(), &next_shards())?;
            s.sync("data", pages(17, 16))?;
            s.sync("data", pages(1, 1))?;
            s.root(1, &root)
        },
        None,
    ),
    (
        "a file has grown, and B2 is of a range",
        true,
        |s| {
            let (_, root) = grown(s)?;
            s.sync("data", pages(0, 65))?;
            s.root(1, &root)
        },
        Some(Rule::RootBeforeItsBytes),
    ),
    (
        "a file has grown, and B2 is of all",
        true,
        |s| {
            let (_, root) = grown(s)?;
            s.sync("data", ALL)?;
            s.root(1, &root)
        },
        None,
    ),
    (
        "a file has grown, its sync failed, and another one is believed",
        true,
        |s| {
            s.allocate("data", 65 * PAGE)?;
            s.sync_with("data", ALL, false)?;
            let (root, held) =
                (s.tree(Head { nodes: [49, 50, 51], ..next_head() }, &next_shards())?, s.sync("data", ALL));
            held?;
            s.root(1, &root)
        },
        Some(Rule::RootBeforeItsBytes),
    ),
    (
        "a state is stored while B2 runs",
        true,
        |s| {
            let id = s.begin("data", ALL)?;
            let root = s.tree(next_head(), &next_shards())?;
            s.see(&Event::SyncEnd { id, ok: true })?;
            s.root(1, &root)
        },
        Some(Rule::RootBeforeItsBytes),
    ),
    (
        "B2 fails, and a second one is believed",
        true,
        |s| {
            let root = s.tree(next_head(), &next_shards())?;
            s.sync_with("data", ALL, false)?;
            s.sync("data", ALL)?;
            s.root(1, &root)
        },
        Some(Rule::RootBeforeItsBytes),
    ),
    (
        "B2 fails, and all is stored and synced anew",
        true,
        |s| {
            let root = s.tree(next_head(), &next_shards())?;
            s.sync_with("data", ALL, false)?;
            s.see(&Event::Opened)?;
            for page in [1, 27, 28, 29] {
                let bytes = s.image.data[page * PAGE..(page + 1) * PAGE].to_vec();
                // Only the bytes of the first extent's page after the slots that a root reaches.
                let from = if page == 1 { 128 } else { 0 };
                s.store("data", page * PAGE + from, &bytes[from..])?;
            }
            s.sync("data", ALL)?;
            s.root(1, &root)
        },
        None,
    ),
    (
        "a root whose directory is something else",
        true,
        |s| {
            let root = s.tree(next_head(), &next_shards())?;
            s.store("data", 28 * PAGE, &[7; 16])?;
            s.sync("data", ALL)?;
            s.root(1, &root)
        },
        Some(Rule::RootBeforeItsBytes),
    ),
    (
        "B3 is left out, and the other slot is stored to",
        true,
        |s| {
            let root = s.tree(next_head(), &next_shards())?;
            s.sync("data", ALL)?;
            s.root(1, &root)?;
            s.root(0, &root)
        },
        Some(Rule::OnlyRootStoredOver),
    ),
    (
        "B4 is left out: the root that was stored last is in the cache alone",
        true,
        |s| {
            let root = s.tree(next_head(), &next_shards())?;
            s.sync("data", ALL)?;
            s.root(1, &root)?;
            s.process_crash()?;
            s.flush(Head { slot: 0, generation: 8, epoch: 3, segment: 1, offset: 64, ..next_head() }, &next_shards())
        },
        Some(Rule::OnlyRootStoredOver),
    ),
    (
        "B4 is done",
        true,
        |s| {
            let root = s.tree(next_head(), &next_shards())?;
            s.sync("data", ALL)?;
            s.root(1, &root)?;
            s.process_crash()?;
            s.root(1, &root)?;
            s.sync_root(1)?;
            s.flush(Head { slot: 0, generation: 8, epoch: 3, segment: 1, offset: 64, ..next_head() }, &next_shards())
        },
        None,
    ),
    (
        "B3 fails, and another sync is believed",
        true,
        |s| {
            let root = s.tree(next_head(), &next_shards())?;
            s.sync("data", ALL)?;
            s.root(1, &root)?;
            s.sync_with("root", pages(1, 1), false)?;
            s.sync_root(1)?;
            s.root(0, &root)
        },
        Some(Rule::OnlyRootStoredOver),
    ),
    (
        "a slot that holds no root is stored to",
        true,
        |s| {
            let (first, second) = (s.image.root[..192].to_vec(), s.image.root[PAGE..PAGE + 192].to_vec());
            s.image.root[PAGE] = 0;
            s.power_cut()?;
            s.root(1, &second)?;
            s.sync_root(1)?;
            s.root(0, &first)
        },
        None,
    ),
    (
        "the only root is stored to as it is",
        true,
        |s| {
            let first = s.image.root[..192].to_vec();
            s.image.root[PAGE] = 0;
            s.power_cut()?;
            s.root(0, &first)
        },
        None,
    ),
    (
        "the only root is stored to as it is, and a failed sync has left it in the cache alone",
        true,
        |s| {
            let root = s.tree(Head { slot: 0, generation: 7, ..next_head() }, &next_shards())?;
            s.sync("data", ALL)?;
            s.root(0, &root)?;
            s.sync_with("root", pages(0, 1), false)?;
            s.image.root[PAGE] = 0;
            let bytes = s.image.root.clone();
            s.see(&Event::Contents { file: "root", bytes: &bytes })?;
            s.root(0, &root)
        },
        Some(Rule::OnlyRootStoredOver),
    ),
    (
        "the only root is stored to",
        true,
        |s| {
            let first = changed_root(s);
            s.image.root[PAGE] = 0;
            s.power_cut()?;
            s.root(0, &first)
        },
        Some(Rule::OnlyRootStoredOver),
    ),
    (
        "a slot rots, and the other one is stored to",
        true,
        |s| {
            let first = changed_root(s);
            s.image.root[PAGE] = 0;
            let bytes = s.image.root.clone();
            s.see(&Event::Contents { file: "root", bytes: &bytes })?;
            s.root(0, &first)
        },
        Some(Rule::OnlyRootStoredOver),
    ),
];

/// Returns the root of slot 0 with one bit flipped.
fn changed_root(s: &Scene) -> Vec<u8> {
    let mut root = s.image.root[..192].to_vec();
    root[100] ^= 1;
    root
}
