//! Planted faults in the cells.

use super::build::*;
use super::faults::{at_page, found, named, names, set, with};
use super::*;

/// Offset of the covered shards in a table of one group.
const SHARDS: usize = TABLE_FIXED + 36;

#[test]
fn a_group_of_cells_that_rots() {
    let mut image = image();
    image.data[GROUP * PAGE + 70] ^= 1;
    named(&image, FindingKind::ChecksumMismatch, Some(0), "data", at_page(GROUP as u64));
    assert_eq!(image.check().findings[0].part, Part::Cells);
}

#[test]
fn cells_that_contradict_themselves() {
    let of_table =
        |change: fn(&mut Vec<u8>)| Tweaks { table: with(move |_, table| change(table)), ..Tweaks::default() };
    let of_group =
        |change: fn(&mut Vec<u8>)| Tweaks { group: with(move |_, group| change(group)), ..Tweaks::default() };
    let of_head = |change: fn(&mut Vec<u8>)| Tweaks { head: with(move |_, head| change(head)), ..Tweaks::default() };
    let faults: [(FindingKind, u64, Tweaks); 19] = [
        (FindingKind::BadMagic, 33, of_head(|head| head[3] = 0)),
        (FindingKind::WrongLength, 33, of_head(|head| head[4] = 2)),
        (FindingKind::NotAscending, 33, of_table(|table| table[SHARDS] = 1)),
        (FindingKind::OutOfBounds, 33, of_table(|table| table[SHARDS + 4] = 3)),
        // A component of the last axis becomes 2.
        (FindingKind::OutOfBounds, 33, of_table(|table| table[TABLE_FIXED - 1] = 0x40)),
        (FindingKind::WrongLength, 33, of_table(|table| table[12] = 2)),
        (FindingKind::CountMismatch, 33, of_table(|table| table[4] = 2)),
        // No group although shards are covered; an unfinished group with no rounds; rounds with no unfinished group.
        (FindingKind::CountMismatch, 33, of_table(|table| table[8] = 0)),
        (FindingKind::CountMismatch, 33, of_table(|table| table[16] = 1)),
        (FindingKind::CountMismatch, 33, of_table(|table| table[20] = 1)),
        (FindingKind::CountMismatch, 33, of_table(|table| table[24] = 6)),
        (FindingKind::BadMagic, 33, of_table(|table| table[0] = 0)),
        (FindingKind::WrongLength, GROUP as u64, of_table(|table| table[SHARDS - 4] = 9)),
        (FindingKind::BadMagic, GROUP as u64, of_group(|group| group[0] = 0)),
        (FindingKind::WrongParent, GROUP as u64, of_group(|group| group[8] = 7)),
        // The first code of the second cell, and the number of its codes.
        (FindingKind::CountMismatch, GROUP as u64, of_group(|group| group[48] = 3)),
        (FindingKind::CountMismatch, GROUP as u64, of_group(|group| group[52] = 5)),
        (FindingKind::NonZeroReserved, GROUP as u64, of_group(|group| group[63] = 1)),
        (FindingKind::ChecksumMismatch, 34, Tweaks { head: with(|_, head| head[20] ^= 1), ..Tweaks::default() }),
    ];
    for (kind, page, tweaks) in faults {
        let found = found(&planted(&tweaks));
        let here =
            |f: &&(FindingKind, Option<usize>, &str, u64)| f.0 == kind && f.1 == Some(0) && f.3 / PAGE as u64 == page;
        assert!(found.iter().any(|f| here(&f)), "{kind:?}: {found:?}");
    }
}

/// Turns the group into an unfinished group, in a table without shards and pivots. Such a group must have no codes.
#[test]
fn an_unfinished_group_that_holds_codes() {
    let unfinished = |codes: bool| {
        let table = with(move |_, table| {
            table[8..24].copy_from_slice(&[[0; 8], [1, 0, 0, 0, 3, 0, 0, 0]].concat());
            table.truncate(SHARDS);
            if !codes {
                table[SHARDS - 4..].fill(0);
                let len = 64u32 + 128;
                table[TABLE_FIXED + 8..TABLE_FIXED + 12].copy_from_slice(&len.to_le_bytes());
            }
        });
        found(&planted(&Tweaks { table, ..Tweaks::default() }))
    };
    let here = |f: &(FindingKind, Option<usize>, &str, u64)| f.3 / PAGE as u64 == GROUP as u64;
    assert!(unfinished(true).iter().any(|f| f.0 == FindingKind::CountMismatch && here(f)), "{:?}", unfinished(true));
    // With its entry cut before the codes, only the checksum of the group is wrong.
    assert!(
        unfinished(false).iter().all(|f| f.0 == FindingKind::ChecksumMismatch && here(f)),
        "{:?}",
        unfinished(false)
    );
}

#[test]
fn a_code_of_a_slot_that_is_not_covered() {
    // The reference of code 1, in the first block after the header and the centroids.
    let reference = 64 + 128 + 96 + 4;
    let group = with(move |_, group| set(group, reference, 2u32.to_le_bytes()));
    names(Tweaks { group, ..Tweaks::default() }, FindingKind::OutOfBounds, at_page(GROUP as u64) + reference as u64);
}

#[test]
fn cells_of_a_shard_that_was_replaced_are_no_fault() {
    let table = with(|_, table| table[SHARDS + 8] ^= 1);
    assert_eq!(found(&planted(&Tweaks { table, ..Tweaks::default() })), []);
}

#[test]
fn damaged_cells_cost_no_contents() {
    let mut image = image();
    let held = image.check().contents(&image.files());
    image.data[GROUP * PAGE + 70] ^= 1;
    assert_eq!(image.check().contents(&image.files()), held);
    image.data[5 * PAGE] ^= 1;
    let kind = image.check().contents(&image.files()).map_err(|finding| finding.kind);
    assert_eq!(kind, Err(FindingKind::ChecksumMismatch));
}
