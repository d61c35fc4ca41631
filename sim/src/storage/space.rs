//! Reserved bytes of a simulated file.

use std::ops::Range;

/// Set of bytes, as ascending ranges with gaps between them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Space(Vec<(u64, u64)>);

impl Space {
    /// Returns the bytes from 0 to `len`.
    pub(super) fn prefix(len: u64) -> Self {
        let mut space = Self::default();
        space.add(0..len);
        space
    }

    /// Returns the number of bytes.
    pub(super) fn bytes(&self) -> u64 {
        self.0.iter().map(|(from, to)| to - from).sum()
    }

    /// Returns the number of bytes of a range that are in the set.
    pub(super) fn within(&self, range: &Range<u64>) -> u64 {
        let part = |&(from, to): &(u64, u64)| to.min(range.end).saturating_sub(from.max(range.start));
        self.0.iter().map(part).sum()
    }

    /// Reports whether all bytes of a range are in the set.
    pub(super) fn contains(&self, range: &Range<u64>) -> bool {
        self.within(range) == range.end.saturating_sub(range.start)
    }

    /// Returns the first byte of a range that is not reserved once the range has got `free` more bytes, from its start
    /// on.
    pub(super) fn reach(&self, range: &Range<u64>, mut free: u64) -> u64 {
        let mut at = range.start;
        for &(from, to) in self.0.iter().filter(|(_, to)| *to > range.start) {
            let gap = from.min(range.end).saturating_sub(at);
            if gap > free {
                return at + free;
            }
            free -= gap;
            at = at.max(to.min(range.end));
        }
        at + free.min(range.end - at)
    }

    /// Adds a range.
    pub(super) fn add(&mut self, range: Range<u64>) {
        self.remove(range.clone());
        if range.is_empty() {
            return;
        }
        let at = self.0.partition_point(|&(from, _)| from < range.start);
        self.0.insert(at, (range.start, range.end));
        self.0.dedup_by(|next, before| {
            let touches = before.1 == next.0;
            if touches {
                before.1 = next.1;
            }
            touches
        });
    }

    /// Removes a range.
    pub(super) fn remove(&mut self, range: Range<u64>) {
        if range.is_empty() {
            return;
        }
        let parts = self.0.iter().flat_map(|&(from, to)| [(from, to.min(range.start)), (from.max(range.end), to)]);
        self.0 = parts.filter(|(from, to)| from < to).collect();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{RngExt as _, SeedableRng as _, rngs::ChaCha8Rng};

    #[test]
    fn it_is_the_set_of_its_bytes() {
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let (mut space, mut bytes) = (Space::prefix(20), [true; 60]);
        bytes[20..].fill(false);
        for _ in 0..2_000 {
            let from = rng.random_range(0..60);
            let range = from..rng.random_range(from..=60);
            let adds = rng.random();
            bytes[range.start as usize..range.end as usize].fill(adds);
            if adds {
                space.add(range)
            } else {
                space.remove(range)
            }
            let from = rng.random_range(0..60);
            let range = from..rng.random_range(from..=60);
            let there = bytes[range.start as usize..range.end as usize].iter().filter(|&&byte| byte).count() as u64;
            assert_eq!(space.within(&range), there);
            assert_eq!(space.contains(&range), there == range.end - range.start);
            let free = rng.random_range(0..20);
            let mut gaps = range.clone().filter(|&at| !bytes[at as usize]).skip(free as usize);
            assert_eq!(space.reach(&range, free), gaps.next().unwrap_or(range.end));
            assert_eq!(space.bytes(), bytes.iter().filter(|&&byte| byte).count() as u64);
            assert!(space.0.windows(2).all(|pair| pair[0].1 < pair[1].0), "{space:?}");
        }
    }
}
