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
    version == 3 && u32_at(state, state_fixed(3) - 8).is_some_and(|flags| flags & 1 == 1)
}

/// Returns the offset of the former slots, if the state has them.
fn former_at(root: &RootInfo, state: &[u8], slots: u64, version: u32) -> Option<u64> {
    let has = version == 3 && u32_at(state, state_fixed(3) - 8).is_some_and(|flags| flags & 2 == 2);
    has.then(|| root.state_bytes(slots, version, has_one(state, version)))
}

/// Computes the length of a state with `slots` used slots. Returns `None` if the bytes end before they tell it.
pub(super) fn length(root: &RootInfo, state: &[u8], slots: u64, version: u32) -> Option<u64> {
    match former_at(root, state, slots, version) {
        None => Some(root.state_bytes(slots, version, has_one(state, version))),
        Some(at) => Some(at + 24 + 8 * u64::from(u32_at(state, at + 16)?).div_ceil(64)),
    }
}

/// Checks the former slots of a state, if it has them: their number, the zeros, and the bits.
pub(super) fn check_former(root: &RootInfo, state: &[u8], slots: u32, version: u32) -> Result<(), String> {
    let Some(at) = former_at(root, state, slots.into(), version) else { return Ok(()) };
    let former = u32_at(state, at + 16).unwrap_or_default();
    let words: Vec<u64> =
        (0..u64::from(former).div_ceil(64)).filter_map(|word| u64_at(state, at + 24 + 8 * word)).collect();
    let kept: u32 = words.iter().map(|word| word.count_ones()).sum();
    if former == 0 || former > root.shard_size || u32_at(state, at + 20) != Some(0) {
        return Err(format!("{former} former slots of {} at most, or their zeros", root.shard_size));
    }
    if any_beyond(&words, former) || kept > slots {
        return Err(format!("{kept} of {former} former slots are in {slots} slots"));
    }
    Ok(())
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
