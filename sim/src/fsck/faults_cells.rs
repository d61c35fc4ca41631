//! Faults planted in the cells.

use super::build::*;
use super::faults::{at_page, found, named, names, set, with};
use super::*;

/// Where the table of one group has its shards.
const SHARDS: usize = TABLE_FIXED + 36;

#[test]
fn a_group_of_cells_that_rots() {
    let mut image = image();
    image.data[GROUP * PAGE + 70] ^= 1;
    named(&image, Kind::ChecksumMismatch, Some(0), "data", at_page(GROUP as u64));
    assert_eq!(image.check().findings[0].part, Part::Cells);
}

#[test]
fn cells_that_contradict_themselves() {
    let of_table =
        |change: fn(&mut Vec<u8>)| Tweaks { table: with(move |_, table| change(table)), ..Tweaks::default() };
    let of_group =
        |change: fn(&mut Vec<u8>)| Tweaks { group: with(move |_, group| change(group)), ..Tweaks::default() };
    let of_head = |change: fn(&mut Vec<u8>)| Tweaks { head: with(move |_, head| change(head)), ..Tweaks::default() };
    let faults: [(Kind, u64, Tweaks); 18] = [
        (Kind::BadMagic, 33, of_head(|head| head[3] = 0)),
        (Kind::WrongLength, 33, of_head(|head| head[4] = 2)),
        (Kind::NotAscending, 33, of_table(|table| table[SHARDS] = 1)),
        (Kind::OutOfBounds, 33, of_table(|table| table[SHARDS + 4] = 3)),
        (Kind::WrongLength, 33, of_table(|table| table[12] = 2)),
        (Kind::CountMismatch, 33, of_table(|table| table[4] = 2)),
        // No group for two shards; groups ahead that no round has made; rounds that made no group.
        (Kind::CountMismatch, 33, of_table(|table| table[8] = 0)),
        (Kind::CountMismatch, 33, of_table(|table| table[16] = 1)),
        (Kind::CountMismatch, 33, of_table(|table| table[20] = 1)),
        (Kind::CountMismatch, 33, of_table(|table| table[24] = 6)),
        (Kind::BadMagic, 33, of_table(|table| table[0] = 0)),
        (Kind::WrongLength, GROUP as u64, of_table(|table| table[SHARDS - 4] = 9)),
        (Kind::BadMagic, GROUP as u64, of_group(|group| group[0] = 0)),
        (Kind::WrongParent, GROUP as u64, of_group(|group| group[8] = 7)),
        // The first code of the second cell, and the number of its codes.
        (Kind::CountMismatch, GROUP as u64, of_group(|group| group[48] = 3)),
        (Kind::CountMismatch, GROUP as u64, of_group(|group| group[52] = 5)),
        (Kind::NonZeroReserved, GROUP as u64, of_group(|group| group[63] = 1)),
        (Kind::ChecksumMismatch, 34, Tweaks { head: with(|_, head| head[20] ^= 1), ..Tweaks::default() }),
    ];
    for (kind, page, tweaks) in faults {
        let found = found(&planted(&tweaks));
        let here = |f: &&(Kind, Option<usize>, &str, u64)| f.0 == kind && f.1 == Some(0) && f.3 / PAGE as u64 == page;
        assert!(found.iter().any(|f| here(&f)), "{kind:?}: {found:?}");
    }
}

/// The group without a shard, an effort or a pivot, as one ahead: its codes are too many there.
#[test]
fn a_group_ahead_that_holds_codes() {
    let ahead = |codes: bool| {
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
    let here = |f: &(Kind, Option<usize>, &str, u64)| f.3 / PAGE as u64 == GROUP as u64;
    assert!(ahead(true).iter().any(|f| f.0 == Kind::CountMismatch && here(f)), "{:?}", ahead(true));
    // Cut before its codes, it is whole but for its checksum and the number in its header.
    assert!(ahead(false).iter().all(|f| f.0 == Kind::ChecksumMismatch && here(f)), "{:?}", ahead(false));
}

#[test]
fn a_code_of_a_slot_that_is_not_covered() {
    // The reference of code 1, in the first block behind header and centroids.
    let reference = 64 + 128 + 96 + 4;
    let group = with(move |_, group| set(group, reference, 2u32.to_le_bytes()));
    names(Tweaks { group, ..Tweaks::default() }, Kind::OutOfBounds, at_page(GROUP as u64) + reference as u64);
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
    assert_eq!(kind, Err(Kind::ChecksumMismatch));
}
