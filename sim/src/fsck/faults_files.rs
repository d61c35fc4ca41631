//! Planted faults in roots, headers and whole files.

use super::build::*;
use super::faults::{at_page, found, head, named, names, only, set};
use super::*;

/// Offset in a root of the number of pages of `data`.
const PAGES: usize = 160;
const WAL_SEGMENTS: usize = 168;

#[test]
fn two_roots_of_one_generation() {
    let root = only(6, |root| set(root, 32, 5u64.to_le_bytes()));
    let image = planted(&Tweaks { root, ..Tweaks::default() });
    assert!(found(&image).contains(&(FindingKind::RootsContradict, None, "root", PAGE as u64)), "{:?}", found(&image));
}

#[test]
fn a_newer_root_of_an_earlier_checkpoint() {
    let root = only(6, |root| set(root, 72, 2u64.to_le_bytes()));
    let found = found(&planted(&Tweaks { root, ..Tweaks::default() }));
    assert!(found.contains(&(FindingKind::RootsContradict, None, "root", PAGE as u64)), "{found:?}");
}

#[test]
fn two_roots_of_two_indexes() {
    // The older root gets the foreign id, so that `data` and `wal` belong to the newer one.
    let mut image = image();
    let mut root = image.root[PAGE..PAGE + 192].to_vec();
    root[16] ^= 1;
    set(&mut root, 12, [0; 4]);
    image.put_root(1, &sealed(root, 12));
    named(&image, FindingKind::ForeignIndexId, None, "root", PAGE as u64);
}

#[test]
fn a_root_of_another_version_or_of_nonsense() {
    // A root of a later version is as long as one of version 3, which is more than one of these small pages.
    let mut image = image();
    image.root.resize(PAGE + 512, 0);
    let mut later = image.root[PAGE..].to_vec();
    later[8] = 4;
    set(&mut later, 12, [0; 4]);
    image.put_root(1, &sealed(later, 12));
    named(&image, FindingKind::BadVersion, None, "root", PAGE as u64);
    for (at, value) in [(40, 0u32), (44, 9), (48, 0), (56, 255), (60, 1 << 20)] {
        let root = only(6, move |root| set(root, at, value.to_le_bytes()));
        named(&planted(&Tweaks { root, ..Tweaks::default() }), FindingKind::BadConfiguration, None, "root", 0);
    }
}

#[test]
fn no_root_at_all() {
    let mut image = image();
    image.root.fill(0);
    named(&image, FindingKind::NoRoot, None, "root", 0);
    assert_eq!(image.check().contents(&image.files()).map_err(|finding| finding.kind), Err(FindingKind::NoRoot));
}

#[test]
fn the_second_slot_is_found_without_the_first() {
    let mut image = image();
    image.root[0] = 0;
    let report = image.check();
    assert_eq!((report.newest, report.findings.len()), (Some(1), 0));
    image.root.resize(5000, 0);
    assert_eq!(image.check().newest, Some(1));
}

#[test]
fn files_that_are_cut_or_gone() {
    let whole = image();
    let mut image = whole.clone();
    image.data.truncate(48 * PAGE);
    let found = found(&image);
    let cut = |slot| (FindingKind::TruncatedFile, Some(slot), "data", at_page(48));
    assert_eq!(found, [cut(0), cut(1)]);
    let mut image = whole.clone();
    image.wal.truncate(PAGE + 3 * SEGMENT + 7);
    named(&image, FindingKind::TruncatedFile, None, "wal", (PAGE + 3 * SEGMENT + 7) as u64);
    let mut image = whole.clone();
    image.root.truncate(PAGE + 192);
    named(&image, FindingKind::TruncatedFile, None, "root", (PAGE + 192) as u64);
    let report = fsck(&Files { data: None, ..whole.files() }, Level::Full);
    assert_eq!((report.findings[0].kind, report.findings[0].file), (FindingKind::MissingFile, "data"));
}

#[test]
fn a_root_that_counts_pages_wrong() {
    let root = only(6, |root| set(root, PAGES, 48u64.to_le_bytes()));
    names(Tweaks { root, ..Tweaks::default() }, FindingKind::CountMismatch, 0);
    let root = only(6, |root| set(root, WAL_SEGMENTS, 5u32.to_le_bytes()));
    let len = (PAGE + 4 * SEGMENT) as u64;
    named(&planted(&Tweaks { root, ..Tweaks::default() }), FindingKind::TruncatedFile, None, "wal", len);
}

#[test]
fn headers_of_another_index() {
    let mut image = image();
    image.data[..32].copy_from_slice(&header(b"SHXDATA\0", ID + 1));
    named(&image, FindingKind::ForeignIndexId, None, "data", 16);
    image.data[0] = 0;
    named(&image, FindingKind::BadMagic, None, "data", 0);
}

/// Returns the reason why slot 0 holds no root.
fn reason(image: &Image) -> Option<FindingKind> {
    match &image.check().roots[0] {
        RootSlot::Valid(_) => None,
        RootSlot::Invalid(invalid) => Some(invalid.kind),
    }
}

#[test]
fn why_a_slot_holds_no_root() {
    let mut image = image();
    assert_eq!(reason(&image), None);
    image.root[100] ^= 1;
    assert_eq!(reason(&image), Some(FindingKind::ChecksumMismatch));
    image.root[0] ^= 1;
    assert_eq!(reason(&image), Some(FindingKind::BadMagic));
    image.root[0] ^= 1;
    image.root.truncate(100);
    assert_eq!(reason(&image), Some(FindingKind::TruncatedFile));
    let mut image = self::image();
    image.root.truncate(PAGE + 100);
    assert!(matches!(&image.check().roots[1], RootSlot::Invalid(Invalid { kind: FindingKind::TruncatedFile, .. })));
}

#[test]
fn headers_that_are_none() {
    let header_of = |change: fn(&mut Image)| {
        let mut image = image();
        change(&mut image);
        let found = image.check().findings.into_iter().find(|finding| finding.part == Part::Header);
        found.map(|finding| (finding.kind, finding.file))
    };
    assert_eq!(header_of(|image| image.wal[20] ^= 1), Some((FindingKind::ChecksumMismatch, "wal")));
    assert_eq!(header_of(|image| image.data.truncate(31)), Some((FindingKind::TruncatedFile, "data")));
    let newer = |image: &mut Image| {
        let mut bytes = header(b"SHXDATA\0", ID);
        bytes[8] = 2;
        set(&mut bytes, 12, [0; 4]);
        image.data[..32].copy_from_slice(&sealed(bytes, 12));
    };
    assert_eq!(header_of(newer), Some((FindingKind::BadVersion, "data")));
}

#[test]
fn a_file_that_ends_before_what_it_holds() {
    let mut image = image();
    image.data.truncate(24 * PAGE + 100);
    assert!(found(&image).contains(&(FindingKind::TruncatedFile, Some(0), "data", at_page(25))), "{:?}", found(&image));
    let kind = image.check().contents(&image.files()).map_err(|finding| finding.kind);
    assert_eq!(kind, Err(FindingKind::TruncatedFile));
    // The file is shorter than the root requires, although no allocation lies in the missing part.
    let mut image = self::image();
    image.data.truncate(48 * PAGE);
    let kind = image.check().contents(&image.files()).map_err(|finding| finding.kind);
    assert_eq!(kind, Err(FindingKind::TruncatedFile));
}

#[test]
fn a_newer_root_whose_log_starts_earlier() {
    for (segment, contradicts) in [(1, true), (2, false)] {
        let mut image = image();
        let [old, new] = shards();
        let offset = (SECTOR + 512) as u64;
        let head = Head { offset, ..head() };
        put_tree(&mut image, Head { slot: 1, generation: 5, nodes: [20, 21, 22], ..head }, &old, &Tweaks::default());
        put_tree(&mut image, Head { segment, offset: SECTOR as u64, ..head }, &new, &Tweaks::default());
        let found = found(&image);
        assert_eq!(
            found.contains(&(FindingKind::RootsContradict, None, "root", PAGE as u64)),
            contradicts,
            "{found:?}"
        );
    }
}

#[test]
fn two_roots_that_have_different_postings_in_the_same_slots() {
    let mut image = image();
    let mut shards = shards()[1].clone();
    (shards[2].slots[0].0, shards[2].state) = (9, 30);
    put_tree(&mut image, head(), &shards, &Tweaks::default());
    let found = found(&image);
    assert!(found.contains(&(FindingKind::Overlap, None, "data", at_page(5))), "{found:?}");
    assert!(found.contains(&(FindingKind::ChecksumMismatch, Some(1), "data", at_page(5))), "{found:?}");
}
