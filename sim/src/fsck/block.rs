//! Headers of the metadata blocks of version 3.

use super::bytes::{u32_at, u64_at, u128_at};
use super::root::BLOCK_BYTES;
use super::tree::Walk;
use super::{Entry, FindingKind, What};

/// Returns the magic of a block that has a header in version 3, its number, and its level or part.
fn named(what: What) -> Option<(&'static [u8; 4], u32, u32)> {
    match what {
        What::Node { level, index } => Some((b"SHN3", index, level)),
        What::BucketNode { level, index } => Some((b"SHM3", index, level)),
        What::State { shard } => Some((b"SHS3", shard, 0)),
        What::Bucket { bucket, index } => Some((b"SHB3", bucket, index)),
        _ => None,
    }
}

impl Walk<'_> {
    /// Reports whether a block has a header: nodes below a root of version 3, and other blocks by their magic.
    pub(super) fn has_header(&self, bytes: &[u8], what: What) -> bool {
        let Some((magic, ..)) = named(what) else { return false };
        let is_node = matches!(what, What::Node { .. } | What::BucketNode { .. });
        self.root.version > 2 && (is_node || bytes.starts_with(magic))
    }

    /// Checks the header of a block field by field.
    pub(super) fn check_header(&mut self, bytes: &[u8], entry: Entry, what: What) -> bool {
        let Some((magic, number, part)) = named(what) else { return true };
        let root = self.root;
        let of_configuration = [
            root.metric as u8 + 1,
            root.encoding as u8 + 1,
            root.extent_slots.trailing_zeros() as u8,
            root.page.trailing_zeros() as u8,
        ];
        let is_early = u64_at(bytes, 24).is_some_and(|generation| (1..=root.generation).contains(&generation));
        let checks = [
            (0, FindingKind::BadMagic, bytes.starts_with(magic)),
            (4, FindingKind::ChecksumMismatch, u32_at(bytes, 4) == Some(entry.crc)),
            (8, FindingKind::ForeignIndexId, u128_at(bytes, 8) == Some(root.index_id)),
            (24, FindingKind::OutOfBounds, is_early),
            (32, FindingKind::WrongParent, u64_at(bytes, 32) == Some(entry.page)),
            (40, FindingKind::WrongParent, u32_at(bytes, 40) == Some(number)),
            (44, FindingKind::WrongParent, u32_at(bytes, 44) == Some(part)),
            (48, FindingKind::BadConfiguration, u32_at(bytes, 48) == Some(root.dimension)),
            (52, FindingKind::BadConfiguration, u32_at(bytes, 52) == Some(root.shard_size)),
            (56, FindingKind::BadConfiguration, u32_at(bytes, 56) == Some(root.bloom_bytes)),
            (60, FindingKind::BadConfiguration, bytes.get(60..BLOCK_BYTES as usize) == Some(&of_configuration)),
        ];
        let failed = checks.into_iter().find(|(.., holds)| !holds);
        if let Some((at, kind, _)) = failed {
            self.find_in(kind, what.part(), entry.page, at, format!("the header of {what:?}"));
        }
        failed.is_none()
    }
}
