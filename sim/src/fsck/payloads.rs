//! Walks the payloads that a root reaches: the directory of buckets, the buckets, and the blocks of bytes.

use std::collections::BTreeMap;

use super::bytes::{crc, part, u16_at, u32_at, u64_at, u128_at};
use super::tree::Walk;
use super::{Entry, FindingKind, Level, Part, What};

/// Largest number of bytes that an entry holds itself.
const INLINE: u32 = 64;

/// Kind and document of an entry. The cursor comes before all documents.
type Owner = (bool, u128);

/// PayloadRun of bytes in a block.
#[derive(Clone, Copy)]
struct PayloadRun {
    page: u64,
    pages: u32,
    offset: u32,
    len: u32,
}

/// Blocks by first page: pages, and the byte ranges that runs take.
type Blocks = BTreeMap<u64, (u32, Vec<(u32, u32)>)>;

fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ (x >> 31)
}

/// Computes the bucket of a document: linear hashing of the bloom filters' hash.
fn bucket_of(document: u128, buckets: u32) -> u64 {
    let hash = mix(mix((document as u64).wrapping_add(0x9E37_79B9_7F4A_7C15)) ^ (document >> 64) as u64);
    let mut size = 1u64;
    while size * 2 <= u64::from(buckets) {
        size *= 2;
    }
    let wide = hash % (2 * size);
    if wide < u64::from(buckets) { wide } else { hash % size }
}

impl Walk<'_> {
    /// Walks all buckets, and checks the counts of the root.
    pub(super) fn payloads(&mut self) {
        let (top, entries) = (self.root.bucket_directory, self.root.bucket_entries);
        if top.is_empty() != (entries == 0) || self.root.buckets > entries {
            let what = format!("{} buckets of {entries} entries, and the top node is {top:?}", self.root.buckets);
            return self.find(FindingKind::CountMismatch, Part::Root, 208, what);
        }
        let before = self.found();
        let mut blocks = Blocks::new();
        if entries > 0 {
            self.bucket_node(top, self.root.levels(entries) - 1, 0, &mut blocks);
        }
        self.blocks(&blocks);
        if self.found() > before || self.level < Level::Full {
            return;
        }
        let payloads = self.tree.payloads.len() as u64;
        let bytes = self.tree.payloads.values().map(|payload| payload.len() as u64).sum::<u64>();
        let bytes = bytes + self.tree.cursor.len() as u64;
        if (payloads, bytes) != (self.root.payloads, self.root.payload_bytes) {
            let said = (self.root.payloads, self.root.payload_bytes);
            let what = format!("the root says {said:?} payloads and bytes, there are {:?}", (payloads, bytes));
            self.find(FindingKind::CountMismatch, Part::Root, 216, what);
        }
    }

    fn bucket_node(&mut self, entry: Entry, level: u32, index: u64, blocks: &mut Blocks) {
        if u64::from(entry.len) != self.root.page {
            let what = format!("a node of {} bytes", entry.len);
            return self.find_in(FindingKind::WrongLength, Part::Bucket, entry.page, 0, what);
        }
        let Some(bytes) = self.follow(entry, What::BucketNode { level, index: index as u32 }) else { return };
        let fanout = self.geometry.fanout;
        let below = (0..level).fold(1u64, |all, _| all.saturating_mul(fanout));
        for child in 0..fanout {
            let at = self.root.entries_at() + 16 * child;
            let Some(to) = Entry::read(bytes, at) else { return };
            if to.is_empty() {
                continue;
            }
            let number = index.saturating_mul(fanout).saturating_add(child);
            if number.saturating_mul(below) >= u64::from(self.root.buckets) {
                let what = format!("entry {child} covers buckets beyond the {} there are", self.root.buckets);
                self.find_in(FindingKind::OutOfBounds, Part::Bucket, entry.page, at, what);
            } else if level > 0 {
                self.bucket_node(to, level - 1, number, blocks);
            } else {
                self.bucket(to, number as u32, blocks);
            }
        }
    }

    /// Reads all parts of a bucket, and then its entries.
    fn bucket(&mut self, first: Entry, bucket: u32, blocks: &mut Blocks) {
        let (mut entries, mut next, mut index) = (Vec::new(), first, 0);
        while !next.is_empty() {
            // A part that is named twice ends the loop.
            let Some(bytes) = self.follow(next, What::Bucket { bucket, index }) else { return };
            let page = next.page;
            if bytes.starts_with(b"SHB3") {
                let Some(to) = Entry::read(bytes, 64) else { return };
                entries.extend_from_slice(bytes.get(80..).unwrap_or_default());
                (next, index) = (to, index + 1);
                continue;
            }
            let of_this = (Some(bucket), Some(index), Some(bytes.len() as u32 - 32.min(bytes.len() as u32)));
            if !bytes.starts_with(b"SHPB") {
                return self.find_in(FindingKind::BadMagic, Part::Bucket, page, 0, "no bucket's magic");
            }
            if (u32_at(bytes, 4), u32_at(bytes, 8), u32_at(bytes, 12)) != of_this {
                let what = format!("not part {index} of bucket {bucket} by its header");
                return self.find_in(FindingKind::WrongParent, Part::Bucket, page, 4, what);
            }
            let Some(to) = Entry::read(bytes, 16) else { return };
            entries.extend_from_slice(bytes.get(32..).unwrap_or_default());
            (next, index) = (to, index + 1);
        }
        if let Err(what) = self.entries(&entries, bucket, blocks) {
            self.find_in(FindingKind::BadRecord, Part::Bucket, first.page, 0, what);
        }
    }

    fn entries(&mut self, bytes: &[u8], bucket: u32, blocks: &mut Blocks) -> Result<(), String> {
        let (mut at, mut last): (u64, Option<Owner>) = (0, None);
        while at < bytes.len() as u64 {
            let fixed = (u128_at(bytes, at), u32_at(bytes, at + 16), u32_at(bytes, at + 20));
            let (Some(document), Some(len), Some(sum)) = fixed else { return Err(format!("an entry is cut at {at}")) };
            let numbers = (u16_at(bytes, at + 24), u16_at(bytes, at + 26));
            let (Some(runs), Some(kind)) = numbers else { return Err(format!("an entry is cut at {at}")) };
            let owner = (kind == 1, document);
            let right_place = if kind == 1 { bucket_of(document, self.root.buckets) } else { 0 };
            if !(kind == 1 || kind == 2 && document == 0) || right_place != u64::from(bucket) || last >= Some(owner) {
                return Err(format!("an entry of kind {kind} for document {document} in bucket {bucket}"));
            }
            last = Some(owner);
            at += 28;
            let mut payload = Vec::new();
            let mut list = Vec::new();
            if runs == 0 {
                if len > INLINE {
                    return Err(format!("{len} bytes in an entry"));
                }
                payload.extend_from_slice(part(bytes, at, len.into()).ok_or("an entry is cut")?);
                at += u64::from(len);
            }
            for _ in 0..runs {
                let run = run_at(bytes, at).ok_or("a run is cut")?;
                let end = u64::from(run.offset) + u64::from(run.len);
                if run.len == 0 || end > u64::from(run.pages) * self.root.page {
                    return Err(format!("a run of {} bytes at {} of {} pages", run.len, run.offset, run.pages));
                }
                list.push(run);
                at += 20;
            }
            if runs > 0 && list.iter().map(|run| u64::from(run.len)).sum::<u64>() != u64::from(len) {
                return Err(format!("the runs of document {document} are not {len} bytes"));
            }
            for run in &list {
                let block = blocks.entry(run.page).or_insert((run.pages, Vec::new()));
                if block.0 != run.pages {
                    return Err(format!("the block at page {} has {} and {} pages", run.page, block.0, run.pages));
                }
                block.1.push((run.offset, run.offset + run.len));
                let from = run.page.saturating_mul(self.root.page).saturating_add(run.offset.into());
                payload.extend_from_slice(part(self.data, from, run.len.into()).unwrap_or_default());
            }
            if self.level == Level::Full {
                self.payload(owner, payload, sum, list.first());
            }
        }
        Ok(())
    }

    /// Checks and keeps the bytes of an entry.
    fn payload(&mut self, (is_document, document): Owner, payload: Vec<u8>, sum: u32, first: Option<&PayloadRun>) {
        if crc(&payload) != sum {
            let (page, at) = first.map_or((0, 0), |run| (run.page, run.offset.into()));
            let what = format!("the payload of document {document} has the sum {:08x}, not {sum:08x}", crc(&payload));
            self.find_in(FindingKind::ChecksumMismatch, Part::Payload, page, at, what);
        }
        match is_document {
            true => drop(self.tree.payloads.insert(document, payload)),
            false => self.tree.cursor = payload,
        }
    }

    /// Takes the blocks, and checks that no two runs share a byte.
    fn blocks(&mut self, blocks: &Blocks) {
        for (&page, (pages, ranges)) in blocks {
            let mut ranges = ranges.clone();
            ranges.sort_unstable();
            if let Some(pair) = ranges.windows(2).find(|pair| pair[0].1 > pair[1].0) {
                let what = format!("two payloads share bytes {:?} of the block", pair[1]);
                self.find_in(FindingKind::Overlap, Part::Bucket, page, pair[1].0.into(), what);
            }
            // Behind the last run a batch may append.
            let used = ranges.iter().map(|range| range.1).max().unwrap_or_default();
            let _ = self.take(page, (*pages).into(), used.into(), What::Block);
        }
    }
}

fn run_at(bytes: &[u8], at: u64) -> Option<PayloadRun> {
    Some(PayloadRun {
        page: u64_at(bytes, at)?,
        pages: u32_at(bytes, at + 8)?,
        offset: u32_at(bytes, at + 12)?,
        len: u32_at(bytes, at + 16)?,
    })
}
