//! Single planted faults: the check must report each one with its kind and offset.

use std::collections::BTreeSet;

use super::build::*;
use super::*;

/// Offset in a root of the page of its directory entry.
const DIRECTORY_PAGE: usize = 104;
/// Offset in a shard state of the page of its first extent.
const EXTENT_PAGE: usize = 40;
const TOMBSTONES: usize = 56;

#[expect(clippy::unnecessary_wraps, reason = "a tweak is optional")]
pub(super) fn with(change: impl Fn(u64, &mut Vec<u8>) + 'static) -> Tweak {
    Some(Box::new(change))
}

/// Makes a tweak that changes only the part with this number.
pub(super) fn only(number: u64, change: impl Fn(&mut Vec<u8>) + 'static) -> Tweak {
    with(move |of, bytes| {
        if of == number {
            change(bytes);
        }
    })
}

pub(super) fn set<const N: usize>(bytes: &mut [u8], at: usize, value: [u8; N]) {
    bytes[at..at + N].copy_from_slice(&value);
}

/// Checks the image and returns kind, slot, file and offset of each finding.
pub(super) fn found(image: &Image) -> Vec<(FindingKind, Option<usize>, &'static str, u64)> {
    image.check().findings.iter().map(|f| (f.kind, f.slot, f.file, f.offset)).collect()
}

/// Asserts that the check has exactly one finding, with this kind, slot, file and offset.
#[track_caller]
pub(super) fn named(image: &Image, kind: FindingKind, slot: Option<usize>, file: &'static str, offset: u64) {
    assert_eq!(found(image), [(kind, slot, file, offset)], "{:#?}", image.check().findings);
}

/// Asserts that a fault in the newer root's tree gives exactly one finding, with this kind and offset in `data`.
#[track_caller]
pub(super) fn names(tweaks: Tweaks, kind: FindingKind, offset: u64) {
    named(&planted(&tweaks), kind, Some(0), "data", offset);
}

pub(super) fn at_page(page: u64) -> u64 {
    page * PAGE as u64
}

#[test]
fn a_whole_index_is_clean() {
    let image = image();
    let report = image.check();
    assert_eq!(report.findings, []);
    assert_eq!(report.newest, Some(0));
    let live: BTreeSet<u64> = [1..=6, 17..=26, 33..=44, 46..=47].into_iter().flatten().collect();
    let tree = report.trees[0].as_ref().expect("slot 0 holds a root");
    assert_eq!((tree.live, tree.removed, tree.shards.len()), (6, 2, 3));
    assert!(report.used_pages().is_subset(&live), "{:?}", report.used_pages());
    assert_eq!(report.log.end, End::Torn { at: LOG_END as u64, missing: 10 });
    assert_eq!(report.log.records.iter().map(|record| record.lsn).collect::<Vec<_>>(), [6, 7, 9]);
    assert_eq!(report.log.segments.into_iter().collect::<Vec<_>>(), [(1, 0), (2, 2)]);
}

#[test]
fn an_index_without_shards_is_clean() {
    let report = created().check();
    assert_eq!((report.findings, report.newest), (Vec::new(), Some(1)));
}

#[test]
fn metadata_alone_reads_no_vector_and_no_group() {
    let mut image = image();
    let whole = fsck(&image.files(), Level::Metadata);
    for page in [1, 3, 5, 46, 47] {
        image.put(page, &[0xEE; PAGE]);
    }
    assert_eq!(fsck(&image.files(), Level::Metadata), whole);
    assert_eq!(whole.findings, []);
    assert!(image.check().findings.len() >= 4);
}

#[test]
fn contents_are_the_shards_with_the_log_replayed() {
    let image = image();
    let held = image.check().contents(&image.files()).expect("nothing is wrong");
    let documents: Vec<u128> = held.vectors.keys().map(|(document, ..)| *document).collect();
    assert_eq!(documents, [1, 4, 5, 30, 31, 41, 50, 51, 52, 53, 54, 55, 56, 57, 58, 59]);
    assert_eq!(held.vectors[&(41, 7, 9)], vector(41));
    assert_eq!(held.vectors[&(4, 7, 9)], vector(4));
}

#[test]
fn either_root_leads_to_the_same_contents() {
    let mut image = image();
    let held = image.check().contents(&image.files());
    image.root[12] ^= 1;
    let report = image.check();
    assert_eq!((report.findings.len(), report.newest), (0, Some(1)));
    // No WAL record removes document 3: only the newer root's state does. The older root therefore still has it.
    let mut wanted = held.expect("nothing is wrong");
    wanted.vectors.insert((3, 7, 9), vector(3));
    assert_eq!(report.contents(&image.files()).expect("nothing is wrong"), wanted);
}

#[test]
fn damage_of_the_older_root_alone_costs_no_contents() {
    let mut image = image();
    let held = image.check().contents(&image.files());
    image.data[18 * PAGE + 50] ^= 1;
    named(&image, FindingKind::ChecksumMismatch, Some(1), "data", at_page(18));
    assert_eq!(image.check().contents(&image.files()), held);
    image.data[23 * PAGE + 50] ^= 1;
    assert!(image.check().contents(&image.files()).is_err());
}

#[test]
fn vectors_are_normalised_unless_they_have_no_norm() {
    assert_eq!(normalised(&[3.0, -4.0]), [0.6, -0.8]);
    assert_eq!(normalised(&[0.0, 0.0]), [0.0, 0.0]);
    assert_eq!(normalised(&[f32::MAX, 0.0]), [1.0, 0.0]);
}

#[test]
fn an_extent_that_two_shards_name() {
    let twice = |state: &mut Vec<u8>| set(state, EXTENT_PAGE, 1u64.to_le_bytes());
    let image = planted(&Tweaks { state: only(1, twice), ..Tweaks::default() });
    let kinds: Vec<_> = found(&image).into_iter().filter(|f| f.1 == Some(0)).map(|f| (f.0, f.3)).collect();
    assert!(kinds.contains(&(FindingKind::DoubleReference, at_page(1))), "{kinds:?}");
}

#[test]
fn a_state_that_two_numbers_name() {
    let twice = |node: &mut Vec<u8>| node.copy_within(0..16, 32);
    let image = planted(&Tweaks { node: only(24, twice), ..Tweaks::default() });
    assert!(found(&image).contains(&(FindingKind::DoubleReference, Some(0), "data", at_page(17))));
}

#[test]
fn runs_that_overlap() {
    // The extent of shard 1 begins in the middle of the extent of shard 0.
    let into = |state: &mut Vec<u8>| set(state, EXTENT_PAGE, 2u64.to_le_bytes());
    let found = found(&planted(&Tweaks { state: only(1, into), ..Tweaks::default() }));
    assert!(found.contains(&(FindingKind::Overlap, Some(0), "data", at_page(2))), "{found:?}");
    assert!(found.contains(&(FindingKind::Misaligned, Some(0), "data", at_page(2))), "{found:?}");
}

#[test]
fn roots_that_overlap() {
    // A node of the newer root lies where the older root has the state of another shard.
    let mut image = image();
    let moved = Head { slot: 0, generation: 6, checkpoint: 5, nodes: [18, 26, 25], ..head() };
    put_tree(&mut image, moved, &shards()[1], &Tweaks::default());
    let found = found(&image);
    let overlap = (FindingKind::Overlap, None, "data", at_page(18));
    assert_eq!(found, [(FindingKind::ChecksumMismatch, Some(1), "data", at_page(18)), overlap]);
}

/// Returns the newer root of the image, without cells.
pub(super) fn head() -> Head {
    Head {
        slot: 0,
        generation: 6,
        epoch: 2,
        checkpoint: 5,
        segment: 1,
        offset: (SECTOR + 256) as u64,
        cells: Entry::default(),
        nodes: [24, 26, 25],
    }
}

#[test]
fn an_extent_whose_page_the_other_root_has_for_metadata() {
    let mut image = image();
    let mut shards = shards()[1].clone();
    shards[1].extent = 17 + 14;
    put_tree(&mut image, head(), &shards, &Tweaks::default());
    let found = found(&image);
    let mixed: Vec<_> = found.into_iter().filter(|finding| finding.0 == FindingKind::ChunkMixed).collect();
    // The fault is reported once, although the metadata of both roots is in that chunk.
    assert_eq!(mixed, [(FindingKind::ChunkMixed, Some(0), "data", at_page(31))]);
}

#[test]
fn an_extent_off_its_place() {
    let mut image = image();
    let mut shards = shards()[1].clone();
    shards[1].extent = 8;
    put_tree(&mut image, head(), &shards, &Tweaks::default());
    named(&image, FindingKind::Misaligned, Some(0), "data", at_page(8));
}

#[test]
fn a_parent_with_another_checksum() {
    let entry = only(1, |entry| entry[12] ^= 1);
    names(Tweaks { entry, ..Tweaks::default() }, FindingKind::ChecksumMismatch, at_page(23));
}

#[test]
fn an_older_version_of_a_page_that_is_whole_in_itself() {
    let mut image = image();
    let older = image.data[18 * PAGE..19 * PAGE].to_vec();
    image.put(23, &older[..140]);
    named(&image, FindingKind::ChecksumMismatch, Some(0), "data", at_page(23));
}

#[test]
fn an_older_version_of_a_state_of_the_same_length() {
    // One posting fewer is live. The state is consistent by itself, but its checksum isn't the one in its parent.
    let mut image = image();
    let state = &mut image.data[23 * PAGE..];
    set(state, 28, 2u32.to_le_bytes());
    state[TOMBSTONES] |= 2;
    named(&image, FindingKind::ChecksumMismatch, Some(0), "data", at_page(23));
    assert!(image.check().findings[0].what.contains("older version"), "{:?}", image.check().findings);
}

#[test]
fn a_state_of_another_shard() {
    let state = only(1, |state| set(state, 4, 2u32.to_le_bytes()));
    names(Tweaks { state, ..Tweaks::default() }, FindingKind::WrongParent, at_page(23) + 4);
}

#[test]
fn a_live_count_that_is_wrong() {
    let state = only(1, |state| set(state, 28, 4u32.to_le_bytes()));
    names(Tweaks { state, ..Tweaks::default() }, FindingKind::CountMismatch, at_page(23) + 28);
}

#[test]
fn counts_of_a_root_that_are_wrong() {
    for (at, by) in [(124, 1u8), (128, 1), (136, 1)] {
        let root = only(6, move |root| root[at] += by);
        named(&planted(&Tweaks { root, ..Tweaks::default() }), FindingKind::CountMismatch, Some(0), "root", 0);
    }
}

#[test]
fn tombstones_of_slots_that_are_not_used() {
    let state = only(1, |state| state[TOMBSTONES] |= 0x10);
    names(Tweaks { state, ..Tweaks::default() }, FindingKind::OutOfBounds, at_page(23) + 40);
}

#[test]
fn more_slots_than_a_shard_may_have() {
    let state = only(1, |state| set(state, 24, 9u32.to_le_bytes()));
    names(Tweaks { state, ..Tweaks::default() }, FindingKind::OutOfBounds, at_page(23) + 24);
}

#[test]
fn a_state_that_is_too_short() {
    let state = only(1, |state| state.truncate(136));
    names(Tweaks { state, ..Tweaks::default() }, FindingKind::WrongLength, at_page(23));
}

#[test]
fn reserved_bytes_of_a_state() {
    let state = only(1, |state| state[39] = 1);
    names(Tweaks { state, ..Tweaks::default() }, FindingKind::NonZeroReserved, at_page(23) + 32);
    let state = only(1, |state| state[52] = 1);
    names(Tweaks { state, ..Tweaks::default() }, FindingKind::NonZeroReserved, at_page(23) + 52);
}

#[test]
fn a_sum_of_vectors_that_is_wrong() {
    let state = only(1, |state| set(state, 64 + BLOOM + 8, 1.0f64.to_le_bytes()));
    names(Tweaks { state, ..Tweaks::default() }, FindingKind::SumMismatch, at_page(23) + 64 + BLOOM as u64 + 8);
}

#[test]
fn an_entry_beyond_the_shard_numbers() {
    // The root has 18 shard numbers. The entry of number 18 names a page of its own.
    let node = only(26, |node| {
        node.copy_within(16..32, 32);
        set(node, 32, 27u64.to_le_bytes());
    });
    names(Tweaks { node, ..Tweaks::default() }, FindingKind::OutOfBounds, at_page(26) + 32);
}

#[test]
fn a_root_that_names_a_directory_outside_the_file() {
    let root = only(6, |root| set(root, DIRECTORY_PAGE, 49u64.to_le_bytes()));
    names(Tweaks { root, ..Tweaks::default() }, FindingKind::OutOfBounds, at_page(49));
    let root = only(6, |root| set(root, DIRECTORY_PAGE, u64::MAX.to_le_bytes()));
    names(Tweaks { root, ..Tweaks::default() }, FindingKind::OutOfBounds, u64::MAX);
}

#[test]
fn an_extent_that_rots() {
    let mut image = image();
    // The flipped bit is in slot 3, which only the newer root uses.
    image.data[3 * PAGE + 4 * 64 - 33] ^= 1;
    let of_extent = (FindingKind::ChecksumMismatch, Some(0), "data", at_page(3));
    assert!(found(&image).contains(&of_extent));
    assert!(found(&image).iter().all(|finding| finding.1 == Some(0)));
    // Bytes after the used slots are free space.
    let mut image = self::image();
    image.data[3 * PAGE + 4 * 64] ^= 1;
    assert_eq!(found(&image), []);
}

#[test]
fn zeros_and_norms_of_slots() {
    let extent = only(1, |extent| extent[64 - 1] = 1);
    let found = found(&planted(&Tweaks { extent, ..Tweaks::default() }));
    assert!(found.contains(&(FindingKind::NonZeroReserved, Some(0), "data", at_page(3) + 48)), "{found:?}");
    let extent = only(1, |extent| set(extent, 44, 2.0f32.to_le_bytes()));
    let found = self::found(&planted(&Tweaks { extent, ..Tweaks::default() }));
    assert!(found.contains(&(FindingKind::BadNorm, Some(0), "data", at_page(3) + 44)), "{found:?}");
}

#[test]
fn a_key_that_is_live_twice() {
    let mut image = image();
    let mut shards = shards()[1].clone();
    shards[1].slots[3].0 = 1;
    put_tree(&mut image, head(), &shards, &Tweaks::default());
    named(&image, FindingKind::DuplicateKey, Some(0), "data", at_page(3) + 3 * 64);
}

#[test]
fn two_shards_of_one_id() {
    let mut image = image();
    let mut shards = shards()[1].clone();
    shards[1].id = shards[0].id;
    put_tree(&mut image, head(), &shards, &Tweaks::default());
    named(&image, FindingKind::DuplicateId, Some(0), "data", at_page(23) + 8);
}

#[test]
fn a_run_that_reaches_into_another_chunk() {
    let over = |state: &mut Vec<u8>| set(state, EXTENT_PAGE, 16u64.to_le_bytes());
    let found = found(&planted(&Tweaks { state: only(1, over), ..Tweaks::default() }));
    assert!(found.contains(&(FindingKind::Misaligned, Some(0), "data", at_page(16))), "{found:?}");
}

#[test]
fn a_state_that_is_none() {
    let state = only(1, |state| state[0] = 0);
    names(Tweaks { state, ..Tweaks::default() }, FindingKind::BadMagic, at_page(23));
    let state = only(1, |state| state.truncate(20));
    names(Tweaks { state, ..Tweaks::default() }, FindingKind::WrongLength, at_page(23));
}

#[test]
fn a_directory_that_contradicts_its_root() {
    let root = only(6, |root| set(root, 120, 0u32.to_le_bytes()));
    let planted_root = planted(&Tweaks { root, ..Tweaks::default() });
    assert!(
        found(&planted_root).contains(&(FindingKind::CountMismatch, Some(0), "root", 0)),
        "{:?}",
        found(&planted_root)
    );
    let root = only(6, |root| set(root, 112, 128u32.to_le_bytes()));
    names(Tweaks { root, ..Tweaks::default() }, FindingKind::WrongLength, at_page(25));
}

#[test]
fn norms_under_cosine() {
    let at = at_page(1) + 44;
    for (norm, bad) in
        [(1.0f32, false), (0.0, false), (3.5, false), (-1.0, true), (f32::INFINITY, true), (f32::NAN, true)]
    {
        let root = only(6, |root| set(root, 44, 1u32.to_le_bytes()));
        let extent = only(0, move |extent| set(extent, 44, norm.to_le_bytes()));
        let found = found(&planted(&Tweaks { root, extent, ..Tweaks::default() }));
        assert_eq!(found.contains(&(FindingKind::BadNorm, Some(0), "data", at)), bad, "{norm}: {found:?}");
    }
}

#[test]
fn a_shard_that_is_full_and_one_on_the_last_page() {
    let mut image = image();
    let mut shards = shards()[1].clone();
    shards[0].slots.extend((70..76).map(|document| (document, false)));
    shards[0].state = 48;
    put_tree(&mut image, head(), &shards, &Tweaks::default());
    assert_eq!(found(&image), []);
}

#[test]
fn an_entry_of_the_header_or_of_no_bytes() {
    let entry = only(1, |entry| set(entry, 0, 0u64.to_le_bytes()));
    names(Tweaks { entry, ..Tweaks::default() }, FindingKind::OutOfBounds, 0);
    let entry = only(1, |entry| set(entry, 8, 0u32.to_le_bytes()));
    names(Tweaks { entry, ..Tweaks::default() }, FindingKind::OutOfBounds, at_page(23));
}

#[test]
fn shard_numbers_without_a_directory() {
    let root = only(6, |root| root[104..120].fill(0));
    let found = found(&planted(&Tweaks { root, ..Tweaks::default() }));
    assert!(found.contains(&(FindingKind::CountMismatch, Some(0), "root", 0)), "{found:?}");
}

/// Makes a root one of version 2 with an encoding of vectors.
fn encoded(root: &mut Vec<u8>, encoding: u32) {
    root.resize(256, 0);
    set(root, 8, 2u32.to_le_bytes());
    set(root, 212, encoding.to_le_bytes());
}

#[test]
fn vectors_whose_scale_is_not_that_of_their_components() {
    let root = only(6, |root| encoded(root, 3));
    let found = found(&planted(&Tweaks { root, ..Tweaks::default() }));
    let scale = at_page(1) + DIMENSION.next_multiple_of(4) as u64;
    assert!(found.contains(&(FindingKind::BadScale, Some(0), "data", scale)), "{found:?}");
    assert!(found.contains(&(FindingKind::RootsContradict, None, "root", PAGE as u64)), "{found:?}");
}

#[test]
fn an_unknown_encoding() {
    let root = only(6, |root| encoded(root, 4));
    let found = found(&planted(&Tweaks { root, ..Tweaks::default() }));
    assert!(found.contains(&(FindingKind::BadConfiguration, None, "root", 0)), "{found:?}");
}

#[test]
fn vectors_under_cosine_that_are_not_normalised() {
    let root = only(6, |root| set(root, 44, 1u32.to_le_bytes()));
    let found = found(&planted(&Tweaks { root, ..Tweaks::default() }));
    assert!(found.contains(&(FindingKind::BadNorm, Some(0), "data", at_page(1))), "{found:?}");
    assert!(found.contains(&(FindingKind::RootsContradict, None, "root", PAGE as u64)), "{found:?}");
}
