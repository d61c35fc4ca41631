//! Faults planted in roots, headers and files as a whole.

use super::build::*;
use super::faults::{at_page, found, head, named, names, only, set};
use super::*;

/// Fields of a root that are changed.
const PAGES: usize = 160;
const WAL_SEGMENTS: usize = 168;

#[test]
fn two_roots_of_one_generation() {
    let root = only(6, |root| set(root, 32, 5u64.to_le_bytes()));
    let image = planted(&Tweaks { root, ..Tweaks::default() });
    assert!(found(&image).contains(&(Kind::RootsContradict, None, "root", PAGE as u64)), "{:?}", found(&image));
}

#[test]
fn a_newer_root_of_an_earlier_checkpoint() {
    let root = only(6, |root| set(root, 72, 2u64.to_le_bytes()));
    let found = found(&planted(&Tweaks { root, ..Tweaks::default() }));
    assert!(found.contains(&(Kind::RootsContradict, None, "root", PAGE as u64)), "{found:?}");
}

#[test]
fn two_roots_of_two_indexes() {
    // The older one is foreign, so that data and log are the newer one's.
    let mut image = image();
    let mut root = image.root[PAGE..PAGE + 192].to_vec();
    root[16] ^= 1;
    set(&mut root, 12, [0; 4]);
    image.put_root(1, &sealed(root, 12));
    named(&image, Kind::ForeignIndexId, None, "root", PAGE as u64);
}

#[test]
fn a_root_of_another_version_or_of_nonsense() {
    let root = only(6, |root| root[8] = 2);
    named(&planted(&Tweaks { root, ..Tweaks::default() }), Kind::BadVersion, None, "root", 0);
    for (at, value) in [(40, 0u32), (44, 9), (48, 0), (56, 255), (60, 1 << 20)] {
        let root = only(6, move |root| set(root, at, value.to_le_bytes()));
        named(&planted(&Tweaks { root, ..Tweaks::default() }), Kind::BadConfiguration, None, "root", 0);
    }
}

#[test]
fn no_root_at_all() {
    let mut image = image();
    image.root.fill(0);
    named(&image, Kind::NoRoot, None, "root", 0);
    assert_eq!(image.check().contents(&image.files()).map_err(|finding| finding.kind), Err(Kind::NoRoot));
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
    let cut = |slot| (Kind::TruncatedFile, Some(slot), "data", at_page(48));
    assert_eq!(found, [cut(0), cut(1)]);
    let mut image = whole.clone();
    image.wal.truncate(PAGE + 3 * SEGMENT + 7);
    named(&image, Kind::TruncatedFile, None, "wal", (PAGE + 3 * SEGMENT + 7) as u64);
    let mut image = whole.clone();
    image.root.truncate(PAGE + 192);
    named(&image, Kind::TruncatedFile, None, "root", (PAGE + 192) as u64);
    let report = fsck(&Files { data: None, ..whole.files() }, Level::Full);
    assert_eq!((report.findings[0].kind, report.findings[0].file), (Kind::MissingFile, "data"));
}

#[test]
fn a_root_that_counts_pages_wrong() {
    let root = only(6, |root| set(root, PAGES, 48u64.to_le_bytes()));
    names(Tweaks { root, ..Tweaks::default() }, Kind::CountMismatch, 0);
    let root = only(6, |root| set(root, WAL_SEGMENTS, 5u32.to_le_bytes()));
    let len = (PAGE + 4 * SEGMENT) as u64;
    named(&planted(&Tweaks { root, ..Tweaks::default() }), Kind::TruncatedFile, None, "wal", len);
}

#[test]
fn headers_of_another_index() {
    let mut image = image();
    image.data[..32].copy_from_slice(&header(b"SHXDATA\0", ID + 1));
    named(&image, Kind::ForeignIndexId, None, "data", 16);
    image.data[0] = 0;
    named(&image, Kind::BadMagic, None, "data", 0);
}

/// Why slot 0 holds no root.
fn reason(image: &Image) -> Option<Kind> {
    match &image.check().roots[0] {
        Slot::Valid(_) => None,
        Slot::Invalid(invalid) => Some(invalid.kind),
    }
}

#[test]
fn why_a_slot_holds_no_root() {
    let mut image = image();
    assert_eq!(reason(&image), None);
    image.root[100] ^= 1;
    assert_eq!(reason(&image), Some(Kind::ChecksumMismatch));
    image.root[0] ^= 1;
    assert_eq!(reason(&image), Some(Kind::BadMagic));
    image.root.truncate(100);
    assert_eq!(reason(&image), Some(Kind::TruncatedFile));
    let mut image = self::image();
    image.root.truncate(200);
    assert!(matches!(&image.check().roots[1], Slot::Invalid(Invalid { kind: Kind::TruncatedFile, .. })));
}

#[test]
fn headers_that_are_none() {
    let header_of = |change: fn(&mut Image)| {
        let mut image = image();
        change(&mut image);
        let found = image.check().findings.into_iter().find(|finding| finding.part == Part::Header);
        found.map(|finding| (finding.kind, finding.file))
    };
    assert_eq!(header_of(|image| image.wal[20] ^= 1), Some((Kind::ChecksumMismatch, "wal")));
    assert_eq!(header_of(|image| image.data.truncate(31)), Some((Kind::TruncatedFile, "data")));
    let newer = |image: &mut Image| {
        let mut bytes = header(b"SHXDATA\0", ID);
        bytes[8] = 2;
        set(&mut bytes, 12, [0; 4]);
        image.data[..32].copy_from_slice(&sealed(bytes, 12));
    };
    assert_eq!(header_of(newer), Some((Kind::BadVersion, "data")));
}

#[test]
fn a_file_that_ends_before_what_it_holds() {
    let mut image = image();
    image.data.truncate(24 * PAGE + 100);
    assert!(found(&image).contains(&(Kind::TruncatedFile, Some(0), "data", at_page(25))), "{:?}", found(&image));
    let kind = image.check().contents(&image.files()).map_err(|finding| finding.kind);
    assert_eq!(kind, Err(Kind::TruncatedFile));
    // Even where no run lies, it is not the file that the root names.
    let mut image = self::image();
    image.data.truncate(48 * PAGE);
    let kind = image.check().contents(&image.files()).map_err(|finding| finding.kind);
    assert_eq!(kind, Err(Kind::TruncatedFile));
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
        assert_eq!(found.contains(&(Kind::RootsContradict, None, "root", PAGE as u64)), contradicts, "{found:?}");
    }
}

#[test]
fn two_roots_that_have_different_postings_in_the_same_slots() {
    let mut image = image();
    let mut shards = shards()[1].clone();
    (shards[2].slots[0].0, shards[2].state) = (9, 30);
    put_tree(&mut image, head(), &shards, &Tweaks::default());
    let found = found(&image);
    assert!(found.contains(&(Kind::Overlap, None, "data", at_page(5))), "{found:?}");
    assert!(found.contains(&(Kind::ChecksumMismatch, Some(1), "data", at_page(5))), "{found:?}");
}
