//! Shard numbers that are in no use: a new shard gets the lowest one.

use std::collections::BTreeSet;

/// See the [module](self).
#[derive(Clone, Debug, Default)]
pub struct Numbers {
    /// Numbers below `end` that are free.
    free: BTreeSet<u32>,
    /// From here on all are free.
    end: u32,
}

impl Numbers {
    /// The lowest free number.
    #[must_use]
    pub fn lowest(&self) -> u32 {
        self.free.first().copied().unwrap_or(self.end)
    }

    /// Notes whether a number is in use.
    pub fn set(&mut self, number: u32, used: bool) {
        if number >= self.end {
            self.free.extend(self.end..=number);
            self.end = number + 1;
        }
        match used {
            true => self.free.remove(&number),
            false => self.free.insert(number),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lowest_is_what_a_search_from_0_on_finds() {
        let (mut numbers, mut used) = (Numbers::default(), vec![false; 64]);
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
