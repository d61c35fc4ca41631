//! Free shard numbers: a new shard gets the lowest one.

use std::collections::BTreeSet;

/// Set of free shard numbers.
#[derive(Clone, Debug, Default)]
pub struct ShardNumbers {
    /// Free numbers below `end`.
    free: BTreeSet<u32>,
    /// First number of the unlimited range of free numbers.
    end: u32,
}

impl ShardNumbers {
    /// Returns the lowest free number.
    #[must_use]
    pub fn lowest(&self) -> u32 {
        self.free.first().copied().unwrap_or(self.end)
    }

    /// Marks a number as used or free.
    pub fn set(&mut self, number: u32, used: bool) {
        if number >= self.end {
            self.free.extend(self.end..=number);
            self.end = number + 1;
        }
        if used {
            self.free.remove(&number)
        } else {
            self.free.insert(number)
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lowest_is_what_a_search_from_0_on_finds() {
        let (mut numbers, mut used) = (ShardNumbers::default(), vec![false; 64]);
        let mut state = 1u32;
        for _ in 0..2_000 {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let at = (state >> 16) as usize % 40;
            used[at] = state >> 8 & 1 == 1;
            numbers.set(at as u32, used[at]);
            assert_eq!(Some(numbers.lowest() as usize), used.iter().position(|&used| !used));
        }
    }
}
