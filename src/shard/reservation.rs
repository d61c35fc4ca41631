//! Space of the pages of the data file: which have it, and which have been given back.
//!
//! Not stored. Nothing is known of a page at first: the file may be a copy with holes, or hold free pages that an
//! earlier handle gave back.
//!
//! # Invariants
//! 1. A page counts as reserved only if this handle has allocated its space and has not given it back since.
//! 2. A page counts as released only if it takes no space. So no page is both.

use fixedbitset::FixedBitSet;

use crate::lease::PageRange;

/// Known space of pages.
#[derive(Debug, Default)]
pub(super) struct PageSpace {
    reserved: FixedBitSet,
    released: FixedBitSet,
}

fn bits(run: PageRange) -> std::ops::Range<usize> {
    run.page as usize..run.end() as usize
}

impl PageSpace {
    /// Reports whether every page of a range is reserved.
    pub(super) fn is_reserved(&self, run: PageRange) -> bool {
        bits(run).end <= self.reserved.len() && self.reserved.contains_all_in_range(bits(run))
    }

    /// Records that every page of a range has space.
    pub(super) fn reserved(&mut self, run: PageRange) {
        self.in_doubt(run);
        self.reserved.grow(bits(run).end);
        self.reserved.insert_range(bits(run));
    }

    /// Records that nothing is known of a range: its allocation or deallocation has begun, and may be done in part.
    pub(super) fn in_doubt(&mut self, run: PageRange) {
        for known in [&mut self.reserved, &mut self.released] {
            let len = known.len();
            known.remove_range(bits(run).start.min(len)..bits(run).end.min(len));
        }
    }

    /// Records that no page of a range takes space.
    pub(super) fn released(&mut self, run: PageRange) {
        self.in_doubt(run);
        self.released.grow(bits(run).end);
        self.released.insert_range(bits(run));
    }

    /// Returns the parts of a range that may take space, in ascending order.
    pub(super) fn kept(&self, run: PageRange) -> Vec<PageRange> {
        run.parts(|page| !self.released.contains(page as usize))
    }

    /// Returns the number of pages that take no space.
    pub(super) fn released_pages(&self) -> u64 {
        self.released.count_ones(..) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(page: u64, pages: u32) -> PageRange {
        PageRange { page, pages }
    }

    #[test]
    fn a_page_is_reserved_released_or_unknown() {
        let mut space = PageSpace::default();
        assert!(!space.is_reserved(run(3, 1)) && space.kept(run(3, 2)) == [run(3, 2)], "nothing is known");
        space.reserved(run(2, 4));
        assert!(space.is_reserved(run(2, 4)) && !space.is_reserved(run(2, 5)) && !space.is_reserved(run(1, 2)));
        space.released(run(4, 3));
        assert!(space.is_reserved(run(2, 2)) && !space.is_reserved(run(3, 2)));
        assert_eq!((space.kept(run(0, 9)), space.released_pages()), (vec![run(0, 4), run(7, 2)], 3));
        space.reserved(run(5, 1));
        assert!(space.is_reserved(run(5, 1)));
        assert_eq!((space.kept(run(4, 3)), space.released_pages()), (vec![run(5, 1)], 2));
        space.in_doubt(run(0, 1_000));
        assert!(!space.is_reserved(run(2, 1)) && space.released_pages() == 0);
    }
}
