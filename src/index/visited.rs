//! Visited set of a search: postings whose distance was computed, and near ones that do not pass the filter. A posting has up
//! to two codes, and counts once.

use std::{
    collections::HashSet,
    hash::{BuildHasherDefault, Hasher},
};

/// Set of posting numbers, without iteration, so that the order of hashes affects no result.
#[derive(Default)]
pub(super) struct VisitedSet(HashSet<u32, BuildHasherDefault<Multiplicative>>);

/// Capacity that the set keeps between searches. A usual search visits a tenth as many postings.
const KEPT: usize = 512;

impl VisitedSet {
    /// Removes all numbers.
    pub(super) fn clear(&mut self) {
        self.0.clear();
        self.0.shrink_to(KEPT);
    }

    /// Reports whether the set contains `number`.
    pub(super) fn contains(&self, number: u32) -> bool {
        self.0.contains(&number)
    }

    /// Inserts `number` and reports whether it is new.
    pub(super) fn insert(&mut self, number: u32) -> bool {
        self.0.insert(number)
    }
}

/// Hasher of one number: its product with 2^64 divided by the golden ratio. The numbers are not chosen by an adversary.
#[derive(Default)]
struct Multiplicative(u64);

impl Hasher for Multiplicative {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|&byte| self.write_u32(byte.into()));
    }

    fn write_u32(&mut self, number: u32) {
        self.0 = (self.0 ^ u64::from(number)).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_number_is_met_once_however_many_there_are() {
        let mut visited = VisitedSet::default();
        let numbers = |n: u32| (0..n).map(|i| i.wrapping_mul(2_654_435_761) % 1_000_003);
        for round in 0..2 {
            assert!(!visited.contains(7), "round {round}");
            let mut known = std::collections::BTreeSet::new();
            for number in numbers(5_000) {
                assert_eq!(visited.contains(number), known.contains(&number));
                assert_eq!(visited.insert(number), known.insert(number));
            }
            assert!(numbers(5_000).all(|number| visited.contains(number)));
            visited.clear();
        }
    }
}
