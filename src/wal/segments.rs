//! Segments of the WAL file: which hold records, and which have space on the disk.
//!
//! # Invariants
//! 1. A segment is taken for records only if it is free and this handle has reserved its space since the open.
//! 2. Space is given back only of free segments. A segment is free if no retained root needs a record in it and it is not
//!    the newest one: [`recycle`](Segments::recycle) alone frees segments.

/// Known space of a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Space {
    /// The file existed before the open, so it may be a hole.
    Unknown,
    /// Allocated by this handle.
    Reserved,
    /// Given back: a hole.
    Released,
}

#[derive(Clone, Copy, Debug)]
struct Segment {
    /// Number of the segment of the current epoch that is stored here; `None` if the place is free.
    used: Option<u64>,
    space: Space,
}

/// Segments of a WAL file, by their place in it.
#[derive(Debug)]
pub(super) struct Segments(Vec<Segment>);

impl Segments {
    /// Creates the segments of a file that exists, all free.
    pub(super) fn of_file(segments: usize) -> Self {
        Self(vec![Segment { used: None, space: Space::Unknown }; segments])
    }

    /// Returns the number of segments in the file.
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// Adds free segments, whose space was just reserved, up to a total number.
    pub(super) fn grow(&mut self, segments: usize) {
        self.0.resize(segments, Segment { used: None, space: Space::Reserved });
    }

    fn free(&self) -> impl Iterator<Item = usize> {
        self.0.iter().enumerate().filter(|(_, segment)| segment.used.is_none()).map(|(at, _)| at)
    }

    /// Returns the free places in the order in which they are taken: the reserved ones first, the lowest first.
    fn next(&self) -> impl Iterator<Item = usize> {
        let is_reserved = |at: &usize| self.0[*at].space == Space::Reserved;
        self.free().filter(is_reserved).chain(self.free().filter(move |at| !is_reserved(at)))
    }

    /// Returns the number of free segments.
    pub(super) fn free_count(&self) -> usize {
        self.free().count()
    }

    /// Returns the places among the next `count` to be taken whose space must be reserved first.
    pub(super) fn without_space(&self, count: usize) -> Vec<usize> {
        self.next().take(count).filter(|&at| self.0[at].space != Space::Reserved).collect()
    }

    /// Records that the space of a place is reserved.
    pub(super) fn reserved(&mut self, at: usize) {
        self.0[at].space = Space::Reserved;
    }

    /// Takes the lowest free place that has space for a segment. Returns `None` if there is none.
    pub(super) fn take(&mut self, seq: u64) -> Option<usize> {
        let at = self.next().next().filter(|&at| self.0[at].space == Space::Reserved)?;
        self.0[at].used = Some(seq);
        Some(at)
    }

    /// Frees the segments that `is_over` accepts, given place and number. Returns how many.
    pub(super) fn recycle(&mut self, is_over: impl Fn(usize, u64) -> bool) -> usize {
        let mut freed = 0;
        for (at, segment) in self.0.iter_mut().enumerate() {
            if segment.used.is_some_and(|seq| is_over(at, seq)) {
                segment.used = None;
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
        let mut spare: Vec<usize> = self.next().filter(|&at| self.0[at].space != Space::Released).skip(keep).collect();
        spare.reverse();
        spare
    }

    /// Records that the allocation or deallocation of a place has begun, so that its space is in doubt.
    pub(super) fn in_doubt(&mut self, at: usize) {
        self.0[at].space = Space::Unknown;
    }

    /// Records that a place takes no space.
    pub(super) fn released(&mut self, at: usize) {
        self.0[at].space = Space::Released;
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
        assert_eq!(segments.without_space(1), [0]);
        segments.reserved(0);
        segments.grow(4);
        assert_eq!(segments.without_space(4), [1], "the others have space");
        assert_eq!(segments.take(1), Some(0));
        assert_eq!((segments.take(2), segments.take(3)), (Some(2), Some(3)), "the reserved ones come first");
        assert_eq!(segments.take(4), None, "the last has no space");
        assert_eq!(segments.without_space(1), [1]);
        segments.reserved(1);
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
        assert_eq!(segments.without_space(1), [0]);
    }
}
