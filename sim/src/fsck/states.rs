//! Fixed fields and tombstones of a shard state.

use super::bytes::{u32_at, u64_at};
use super::root::{RootInfo, state_fixed};

/// Returns the version of a shard state by its magic.
pub(super) fn state_version(state: &[u8]) -> Option<u32> {
    match state.get(..4) {
        Some(b"SHST") => Some(1),
        Some(b"SHS2") => Some(2),
        Some(b"SHS3") => Some(3),
        _ => None,
    }
}

/// Reports whether a tombstone is set for a slot at or beyond `slots`.
pub(super) fn any_beyond(tombstones: &[u64], slots: u32) -> bool {
    match (tombstones.last(), slots % 64) {
        (Some(last), used) if used > 0 => last >> used != 0,
        _ => false,
    }
}

/// Reports whether a stored vector takes the place of the sum and the centroid.
pub(super) fn has_one(state: &[u8], version: u32) -> bool {
    version == 3 && u32_at(state, state_fixed(3) - 8) == Some(1)
}

/// Returns the offset of the shard number in a state.
pub(super) fn number_at(version: u32) -> u64 {
    if version < 3 { 4 } else { 40 }
}

/// Reads the tombstone words of a shard state.
pub(super) fn tombstones(root: &RootInfo, state: &[u8], slots: u32, version: u32) -> Option<Vec<u64>> {
    let first = state_fixed(version) + 16 * u64::from(slots).div_ceil(root.extent_slots);
    (0..u64::from(slots).div_ceil(64)).map(|word| u64_at(state, first + 8 * word)).collect()
}

#[cfg(test)]
mod tests {
    use super::any_beyond;

    #[test]
    fn tombstones_end_with_the_slots() {
        assert!(!any_beyond(&[], 0));
        assert!(!any_beyond(&[u64::MAX], 64));
        assert!(!any_beyond(&[0, 1], 65));
        assert!(any_beyond(&[0, 2], 65));
        assert!(any_beyond(&[1 << 63], 63));
    }
}
