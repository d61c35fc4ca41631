//! Segments of the WAL file: which hold records, and which have space on the disk.
//!
//! # Invariants
//! 1. A segment is taken for records only if it is free and this handle has reserved its beginning since the open. Records
//!    follow the reserved bytes.
//! 2. Space is given back only of free segments. A segment is free if no retained root needs a record in it and it is not
//!    the newest one: [`recycle`](Segments::recycle) alone frees segments. Of the newest one the space of records that no root
//!    needs is given back, and its place is reserved again before its next use.

#[derive(Clone, Copy, Debug)]
struct Segment {
    /// Number of the segment of the current epoch that is stored here; `None` if the place is free.
    used: Option<u64>,
    /// Bytes at its beginning that this handle has allocated. What follows may be a hole.
    reserved: u64,
    /// Whether all of it is known to be a hole.
    is_hole: bool,
    /// Whether some of the reserved bytes, before the next record, have been given back.
    is_holed: bool,
}

impl Segment {
    /// Place in a file that exists: it may be a hole or not.
    const UNKNOWN: Self = Self { used: None, reserved: 0, is_hole: false, is_holed: false };
}

/// Segments of a WAL file, by their place in it.
#[derive(Debug)]
pub(super) struct Segments(Vec<Segment>);

impl Segments {
    /// Creates the segments of a file that exists, all free.
    pub(super) fn of_file(segments: usize) -> Self {
        Self(vec![Segment::UNKNOWN; segments])
    }

    /// Returns the number of segments in the file.
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// Adds free segments, of which `bytes` were just reserved, up to a total number.
    pub(super) fn grow(&mut self, segments: usize, bytes: u64) {
        self.0.resize(segments, Segment { reserved: bytes, ..Segment::UNKNOWN });
    }

    fn free(&self) -> impl Iterator<Item = usize> {
        self.0.iter().enumerate().filter(|(_, segment)| segment.used.is_none()).map(|(at, _)| at)
    }

    /// Returns the free places in the order in which they are taken: those with space first, the lowest first.
    fn next(&self) -> impl Iterator<Item = usize> {
        let is_reserved = |at: &usize| self.0[*at].reserved > 0;
        self.free().filter(is_reserved).chain(self.free().filter(move |at| !is_reserved(at)))
    }

    /// Returns the number of free segments.
    pub(super) fn free_count(&self) -> usize {
        self.free().count()
    }

    /// Returns the next `count` places to be taken.
    pub(super) fn next_places(&self, count: usize) -> Vec<usize> {
        self.next().take(count).collect()
    }

    /// Returns the bytes at the beginning of a place that are reserved.
    pub(super) fn reserved_bytes(&self, at: usize) -> u64 {
        self.0[at].reserved
    }

    /// Records that `bytes` at the beginning of a place are reserved.
    pub(super) fn reserved(&mut self, at: usize, bytes: u64) {
        self.0[at].reserved = bytes;
    }

    /// Takes the lowest free place that has space at its beginning. Returns `None` if there is none.
    pub(super) fn take(&mut self, seq: u64) -> Option<usize> {
        let at = self.next().next().filter(|&at| self.0[at].reserved > 0)?;
        self.0[at].used = Some(seq);
        Some(at)
    }

    /// Frees the segments that `is_over` accepts, given place and number. Returns how many.
    pub(super) fn recycle(&mut self, is_over: impl Fn(usize, u64) -> bool) -> usize {
        let mut freed = 0;
        for (at, segment) in self.0.iter_mut().enumerate() {
            if segment.used.is_some_and(|seq| is_over(at, seq)) {
                segment.used = None;
                // Records of its next use would be stored into the holes.
                segment.reserved = if segment.is_holed { 0 } else { segment.reserved };
                segment.is_holed = false;
                freed += 1;
            }
        }
        freed
    }

    /// Returns the places in use with the numbers of their segments.
    pub(super) fn used(&self) -> impl Iterator<Item = (usize, u64)> {
        self.0.iter().enumerate().filter_map(|(at, segment)| segment.used.map(|seq| (at, seq)))
    }

    /// Returns the free places that may take space, except for the first `keep` to be taken, from the last one on.
    pub(super) fn spare(&self, keep: usize) -> Vec<usize> {
        let mut spare: Vec<usize> = self.next().filter(|&at| !self.0[at].is_hole).skip(keep).collect();
        spare.reverse();
        spare
    }

    /// Records that the allocation of a further part of a place has begun.
    pub(super) fn growing(&mut self, at: usize) {
        self.0[at].is_hole = false;
    }

    /// Records that a place in use keeps the space of its header, and of the page that ends at byte `end`, in which records go on.
    pub(super) fn holed(&mut self, at: usize, end: u64) {
        (self.0[at].reserved, self.0[at].is_holed) = (end, true);
    }

    /// Records that the deallocation of a place has begun, so that its space is in doubt.
    pub(super) fn in_doubt(&mut self, at: usize) {
        (self.0[at].reserved, self.0[at].is_hole) = (0, false);
    }

    /// Records that a free place takes no space.
    pub(super) fn released(&mut self, at: usize) {
        (self.0[at].reserved, self.0[at].is_hole) = (0, true);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_free_places_with_space_are_taken_and_only_free_ones_given_back() {
        let mut segments = Segments::of_file(2);
        assert_eq!((segments.len(), segments.free_count()), (2, 2));
        assert_eq!(segments.take(1), None, "its space is unknown");
        assert_eq!(segments.next_places(1), [0]);
        segments.reserved(0, 10);
        segments.grow(4, 20);
        assert_eq!(segments.next_places(4), [0, 2, 3, 1], "one without space comes last");
        assert_eq!([0, 1, 2].map(|at| segments.reserved_bytes(at)), [10, 0, 20]);
        assert_eq!(segments.take(1), Some(0));
        assert_eq!((segments.take(2), segments.take(3)), (Some(2), Some(3)), "those with space come first");
        assert_eq!(segments.take(4), None, "the last has no space");
        segments.growing(1);
        segments.reserved(1, 20);
        assert_eq!(segments.take(4), Some(1));
        assert_eq!(segments.used().collect::<Vec<_>>(), [(0, 1), (1, 4), (2, 2), (3, 3)]);
        assert_eq!(segments.recycle(|at, seq| seq < 4 && at != 2), 2);
        assert_eq!(segments.spare(0), [3, 0]);
        assert_eq!(segments.spare(1), [3], "what is taken first is kept");
        segments.in_doubt(0);
        assert_eq!(segments.spare(0), [0, 3]);
        segments.released(0);
        assert_eq!(segments.spare(0), [3]);
        assert_eq!(segments.take(5), Some(3), "it has space, and the lower one has none");
        segments.growing(0);
        assert_eq!((segments.next_places(1), segments.spare(0)), (vec![0], vec![0]), "it may take space again");
    }
}
