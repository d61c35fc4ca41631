//! Visited set of a search: postings whose distance was computed. A posting has up to two codes, and its distance is
//! computed once.

/// Hash set of posting numbers with open addressing. `u32::MAX` marks a free slot of the table.
pub(super) struct VisitedSet {
    slots: Vec<u32>,
    count: usize,
}

/// Initial number of slots. A usual search visits a tenth as many postings.
const INITIAL_SLOTS: usize = 512;

/// Growth of the table when half of its slots are in use.
const GROWTH: usize = 4;

impl Default for VisitedSet {
    fn default() -> Self {
        Self { slots: vec![u32::MAX; INITIAL_SLOTS], count: 0 }
    }
}

impl VisitedSet {
    /// Removes all numbers and shrinks the table to its initial size.
    pub(super) fn clear(&mut self) {
        self.slots.truncate(INITIAL_SLOTS);
        self.slots.fill(u32::MAX);
        self.count = 0;
    }

    /// Reports whether the set contains `number`.
    pub(super) fn contains(&self, number: u32) -> bool {
        let mask = self.slots.len() - 1;
        let mut at = Self::home(number) & mask;
        loop {
            match self.slots[at] {
                visited if visited == number => return true,
                u32::MAX => return false,
                _ => at = (at + 1) & mask,
            }
        }
    }

    /// Computes the hash of a number. Masked to the table's size, it is the slot where probing starts.
    fn home(number: u32) -> usize {
        (number.wrapping_mul(0x9E37_79B1) >> 7) as usize
    }

    /// Inserts `number` and reports whether it is new. `number` must not be `u32::MAX`, which no posting has.
    pub(super) fn insert(&mut self, number: u32) -> bool {
        if self.count * 2 >= self.slots.len() {
            let wider = vec![u32::MAX; self.slots.len() * GROWTH];
            let old = std::mem::replace(&mut self.slots, wider);
            self.count = 0;
            for number in old.into_iter().filter(|&number| number != u32::MAX) {
                self.insert(number);
            }
        }
        let mask = self.slots.len() - 1;
        let mut at = Self::home(number) & mask;
        loop {
            if self.slots[at] == number {
                return false;
            }
            if self.slots[at] == u32::MAX {
                self.slots[at] = number;
                self.count += 1;
                return true;
            }
            at = (at + 1) & mask;
        }
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
