//! Planted faults in the WAL.

use super::build::*;
use super::faults::{found, named};
use super::*;

const FIRST: usize = LOG_START + 256;

#[test]
fn a_torn_end_is_no_fault() {
    let mut image = image();
    // A byte in the last frame of the last record.
    image.wal[PAGE + 2 * SEGMENT + SECTOR + 40] ^= 1;
    let report = image.check();
    assert_eq!(report.findings, []);
    let at = (PAGE + 2 * SEGMENT + SECTOR) as u64;
    assert_eq!((report.log.end, report.log.unfinished), (End::Torn { at, missing: 9 }, Some(8)));
    assert_eq!(report.log.last_lsn, 7);
    let held = report.contents(&image.files()).expect("nothing is wrong");
    assert!(!held.vectors.contains_key(&(50, 7, 9)));
}

#[test]
fn a_hole_before_a_record_that_says_it_was_durable() {
    let mut image = image();
    image.wal[FIRST + 40] ^= 1;
    named(&image, FindingKind::LogHole, None, "wal", FIRST as u64);
    assert!(matches!(image.check().log.end, End::Hole { missing: 6, .. }));
    assert!(image.check().contents(&image.files()).is_err());
    // A damaged segment header breaks the chain in the same way, but without a later frame nothing proves
    // that its records were durable.
    let mut image = self::image();
    image.wal[PAGE + 2 * SEGMENT] ^= 1;
    assert_eq!(found(&image), [], "nothing says that its records were durable");
    let next = frame(2, 1, 3, 10, 9, &add_payload(&[60]));
    let at = LOG_END;
    image.wal[at..at + next.len()].copy_from_slice(&next);
    named(&image, FindingKind::LogHole, None, "wal", image.wal.len() as u64);
}

/// The hole lies between the checkpoints of the older and the newer root.
#[test]
fn a_hole_that_only_the_older_root_would_meet() {
    let mut image = image();
    image.wal[LOG_START + 40] ^= 1;
    named(&image, FindingKind::LogHole, Some(1), "wal", LOG_START as u64);
    assert!(image.check().contents(&image.files()).is_ok());
}

#[test]
fn a_segment_of_another_index() {
    let mut image = image();
    let at = PAGE + 3 * SEGMENT;
    image.wal[at..at + 64].copy_from_slice(&segment_header(ID + 1, 2, 3, 10));
    named(&image, FindingKind::ForeignIndexId, None, "wal", at as u64);
}

#[test]
fn segments_of_other_epochs_are_passed_over() {
    let mut image = image();
    let whole = image.check();
    let at = PAGE + 3 * SEGMENT;
    for epoch in [1, 3] {
        image.wal[at..at + 64].copy_from_slice(&segment_header(ID, epoch, 3, 10));
        let next = frame(epoch, 1, 3, 10, 9, &add_payload(&[60]));
        image.wal[at + SECTOR..at + SECTOR + next.len()].copy_from_slice(&next);
        assert_eq!(image.check(), whole);
    }
}

#[test]
fn two_segments_of_one_number() {
    let mut image = image();
    let at = PAGE + 3 * SEGMENT;
    image.wal[at..at + 64].copy_from_slice(&segment_header(ID, 2, 2, 9));
    named(&image, FindingKind::BadSegment, None, "wal", at as u64);
}

#[test]
fn a_segment_that_starts_with_another_lsn() {
    let mut image = image();
    let at = PAGE + 2 * SEGMENT;
    image.wal[at..at + 64].copy_from_slice(&segment_header(ID, 2, 2, 8));
    named(&image, FindingKind::BadSegment, None, "wal", at as u64);
}

#[test]
fn a_record_that_counts_wrong() {
    let mut image = image();
    let mut payload = add_payload(&[40, 41]);
    payload[0] = 3;
    let bytes = frame(2, 1, 3, 6, 5, &payload);
    image.wal[FIRST..FIRST + bytes.len()].copy_from_slice(&bytes);
    named(&image, FindingKind::BadRecord, None, "wal", FIRST as u64);
}

#[test]
fn a_record_that_begins_in_another_one() {
    let mut image = image();
    let bytes = frame(2, 1, 1, 6, 5, &add_payload(&[40, 41]));
    image.wal[FIRST..FIRST + bytes.len()].copy_from_slice(&bytes);
    let at = (FIRST + bytes.len()).next_multiple_of(SECTOR);
    assert!(found(&image).contains(&(FindingKind::BadRecord, None, "wal", at as u64)), "{:?}", found(&image));
}

#[test]
fn a_closing_mark_ends_it() {
    let mut image = image();
    let at = LOG_END;
    let bytes = [frame(2, 4, 3, 10, 9, &[]), padding(2, 10, 9, 32)].concat();
    image.wal[at..at + bytes.len()].copy_from_slice(&bytes);
    let report = image.check();
    assert_eq!(report.findings, []);
    assert_eq!((report.log.end, report.log.last_lsn), (End::Closed { at: at as u64 }, 10));
}

#[test]
fn headers_of_segments_that_are_whole_and_wrong() {
    let at = PAGE + 3 * SEGMENT;
    for (field, kind) in [(8, FindingKind::BadVersion), (56, FindingKind::NonZeroReserved)] {
        let mut image = image();
        let mut bytes = segment_header(ID, 2, 3, 10);
        bytes[field] = 2;
        bytes[12..16].fill(0);
        image.wal[at..at + 64].copy_from_slice(&sealed(bytes, 12));
        named(&image, kind, None, "wal", at as u64);
    }
}

#[test]
fn a_closing_mark_that_says_something() {
    let mut image = image();
    let bytes = frame(2, 4, 3, 10, 9, &[0; 8]);
    image.wal[LOG_END..LOG_END + bytes.len()].copy_from_slice(&bytes);
    named(&image, FindingKind::BadRecord, None, "wal", LOG_END as u64);
}

/// Builds the image with `bytes` stored at the end of the WAL.
fn with_more(bytes: &[u8]) -> Image {
    let mut image = image();
    image.wal[LOG_END..LOG_END + bytes.len()].copy_from_slice(bytes);
    image
}

#[test]
fn what_is_no_frame_ends_the_log() {
    let end = End::Torn { at: LOG_END as u64, missing: 10 };
    assert_ne!(with_more(&frame(2, 1, 3, 10, 9, &add_payload(&[70]))).check().log.end, end);
    // In order: another epoch, another LSN, unknown bits, a frame past the end of the segment, a
    // length that isn't a multiple of 8.
    let long = SEGMENT - 2 * SECTOR - 24;
    let mut odd = frame(2, 1, 3, 10, 9, &[0; 12]);
    odd.truncate(44);
    odd[26] = 0;
    odd[..4].fill(0);
    let sum = crc_on(crc_on(crc(&ID.to_le_bytes()), &2u64.to_le_bytes()), &odd);
    odd[..4].copy_from_slice(&sum.to_le_bytes());
    let frames = [
        frame(3, 1, 3, 10, 9, &add_payload(&[70])),
        frame(2, 1, 3, 11, 9, &add_payload(&[70])),
        frame(2, 1, 4, 10, 9, &add_payload(&[70])),
        frame(2, 1, 3, 10, 9, &vec![0; long]),
        odd,
    ];
    for bytes in frames {
        let report = with_more(&bytes).check();
        assert_eq!((report.log.end, report.findings), (end, Vec::new()), "{bytes:?}");
    }
}

#[test]
fn a_frame_of_a_later_version_is_no_torn_end() {
    let later = with_more(&frame(2, 8, 3, 10, 9, &add_payload(&[70])));
    named(&later, FindingKind::BadVersion, None, "wal", LOG_END as u64);
}

#[test]
fn a_header_whose_sum_does_not_hold_is_none() {
    let mut image = image();
    image.wal[PAGE + 2 * SEGMENT + 12] ^= 1;
    assert_eq!(image.check().log.end, End::Torn { at: image.wal.len() as u64, missing: 9 });
}

#[test]
fn a_record_of_two_kinds_or_of_another_dimension() {
    let halves = [frame(2, 1, 1, 10, 9, &[0; 8]), frame(2, 2, 2, 11, 9, &[0; 8])].concat();
    assert!(found(&with_more(&halves)).contains(&(FindingKind::BadRecord, None, "wal", LOG_END as u64 + 40)));
    let mut payload = add_payload(&[70]);
    payload[4] = 6;
    named(&with_more(&frame(2, 1, 3, 10, 9, &payload)), FindingKind::BadRecord, None, "wal", LOG_END as u64);
}
