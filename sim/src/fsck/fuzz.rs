//! Fuzz tests: for any bytes the check ends without a panic and gives the same report twice.

use super::build::*;
use super::*;

/// SplitMix64 generator.
struct Rng(u64);

impl Rng {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, end: usize) -> usize {
        (self.next() % end.max(1) as u64) as usize
    }

    /// Returns a number, often one at a boundary of its range.
    fn number(&mut self) -> u64 {
        match self.below(6) {
            0 => u64::MAX - self.next() % 3,
            1 => u64::from(u32::MAX) - self.next() % 3,
            2 => self.next() % 70,
            3 => 1 << self.below(64),
            _ => self.next(),
        }
    }

    fn spoil(&mut self, bytes: &mut Vec<u8>) {
        if bytes.is_empty() {
            return;
        }
        let at = self.below(bytes.len());
        match self.below(12) {
            0 => bytes.truncate(at),
            1..=4 => bytes[at] ^= 1 << self.below(8),
            5 => {
                let end = bytes.len().min(at + 64);
                bytes.copy_within(at..end, 0);
            }
            6 => bytes.resize(bytes.len() + at, 0),
            _ => {
                let (at, value) = (at & !3, self.number().to_le_bytes());
                let len = if self.below(2) == 0 { 4 } else { 8 };
                for (byte, value) in bytes.iter_mut().skip(at).zip(value.into_iter().take(len)) {
                    *byte = value;
                }
            }
        }
    }
}

/// Calls every function of the checker on an image and asserts what holds for any bytes.
fn ask(image: &Image) {
    let files = image.files();
    for level in [Level::Metadata, Level::Full] {
        let report = fsck(&files, level);
        assert_eq!(report, fsck(&files, level), "not the same twice");
        let pages = report.used_pages();
        let spans: Vec<Span> = pages.iter().map(|page| Span { page: *page, pages: 1 }).collect();
        assert_eq!(used_map(&report, &spans, &[], &[]), []);
        let held = [report.postings(&files, 0), report.postings(&files, 1)].concat();
        if report.is_clean() {
            assert!(report.contents(&files).is_ok());
        }
        assert!(held.len() <= 2 * image.data.len() / 64);
    }
}

#[test]
fn random_bytes_in_the_files() {
    let mut rng = Rng(1);
    for _ in 0..2000 {
        let mut image = image();
        for _ in 0..1 + rng.below(3) {
            match rng.below(3) {
                0 => rng.spoil(&mut image.root),
                1 => rng.spoil(&mut image.data),
                _ => rng.spoil(&mut image.wal),
            }
        }
        ask(&image);
    }
}

/// Wraps a change so that the length of the bytes stays `len`.
fn fixed(tweak: Tweak, len: usize) -> Tweak {
    let change = tweak?;
    Some(Box::new(move |number, bytes| {
        change(number, bytes);
        bytes.resize(len, 0);
    }))
}

#[test]
fn random_bytes_under_right_sums() {
    for seed in 0..3000 {
        let tweak = |salt: u64| -> Tweak {
            (Rng(seed * 8 + salt).below(3) == 0).then(|| -> Change {
                Box::new(move |number, bytes| {
                    let (mut rng, len) = (Rng(seed * 8 + salt + number), bytes.len());
                    rng.spoil(bytes);
                    // The builder has no room for longer parts.
                    bytes.truncate(len);
                })
            })
        };
        ask(&planted(&Tweaks {
            root: fixed(tweak(0), 192),
            node: tweak(1),
            state: tweak(2),
            entry: fixed(tweak(3).filter(|_| seed % 4 == 0), 16),
            head: tweak(7),
            table: tweak(4),
            group: tweak(5),
            extent: tweak(6),
        }));
    }
}

#[test]
fn random_frames_under_right_sums() {
    let mut rng = Rng(3);
    for _ in 0..2000 {
        let mut image = image();
        let mut payload = if rng.below(2) == 0 { add_payload(&[70, 71]) } else { remove_payload(&[1, 2]) };
        if rng.below(2) == 0 {
            rng.spoil(&mut payload);
        }
        payload.truncate(256);
        let (kind, bits) = (1 + rng.below(4) as u8, rng.below(4) as u8);
        let lsn = if rng.below(3) == 0 { rng.number() } else { 6 };
        let bytes = frame(2, kind, bits, lsn, rng.next() % 12, &payload);
        let at = LOG_START + 256;
        image.wal[at..at + bytes.len()].copy_from_slice(&bytes);
        if rng.below(3) == 0 {
            let header = segment_header(ID, 2, rng.number(), rng.number());
            image.wal[PAGE + 3 * SEGMENT..][..64].copy_from_slice(&header);
        }
        ask(&image);
    }
}

#[test]
fn every_flipped_byte_of_the_newest_tree_is_found() {
    let whole = image();
    let tree = whole.check().trees[0].clone().expect("slot 0 holds a root");
    for run in &tree.runs {
        let start = run.page as usize * PAGE;
        for at in start..start + run.bytes as usize {
            let mut image = whole.clone();
            image.data[at] ^= 0x10;
            let found = image.check().findings;
            let page = run.page * PAGE as u64;
            assert!(
                found.iter().any(|f| f.kind == FindingKind::ChecksumMismatch && f.offset == page),
                "{at}: {found:?}"
            );
        }
    }
}

#[test]
fn every_flipped_byte_of_a_root_drops_the_root() {
    let whole = image();
    for slot in 0..2 {
        for at in 0..192 {
            let mut image = whole.clone();
            image.root[slot * PAGE + at] ^= 0x10;
            assert_eq!(image.check().newest, Some(1 - slot), "byte {at} of slot {slot}");
        }
    }
}

#[test]
fn every_flipped_byte_of_an_acknowledged_frame_is_a_hole_and_of_the_last_one_a_torn_end() {
    let whole = image();
    let frames = whole.check().log.frames;
    for frame in &frames {
        for at in frame.offset..frame.end() {
            let mut image = whole.clone();
            image.wal[at as usize] ^= 0x10;
            let end = image.check().log.end;
            let hole = matches!(end, End::Hole { at, .. } if at == frame.offset);
            // Padding has no LSN of its own, so the missing LSN is that of the next frame.
            let torn = matches!(end, End::Torn { at, .. } if at == frame.offset);
            assert!(hole || torn && frame.lsn >= 7, "byte {at} of {frame:?}: {end:?}");
        }
    }
}
