//! Bloom filters (Bloom, CACM 1970), which show the shards that may hold a document or a key.
//!
//! Each shard has its own filter of document ids, stored with its state. A second copy of all filters is sliced by bit
//! instead of by shard. One lookup therefore reads [`PROBES`] rows of bits, independent of the number of shards.

use fixedbitset::FixedBitSet;

use super::fingerprints::mix;
use crate::id::DocumentId;

/// Number of bits set for each value. With 16 bits per posting, about 7 in 10,000 lookups of a full shard are false
/// positives.
pub const PROBES: usize = 7;

/// Returns the bit positions of a value, such as a document id, in a filter of `bits` bits.
fn positions(value: u128, bits: usize) -> impl Iterator<Item = usize> {
    // Double hashing (Kirsch and Mitzenmacher, ESA 2006). Start and step derive from one 64-bit hash of the value.
    let low = mix((value as u64).wrapping_add(0x9E37_79B9_7F4A_7C15));
    let high = mix(low ^ (value >> 64) as u64);
    let (start, step) = (high, mix(high) | 1);
    (0..PROBES as u64).map(move |i| (start.wrapping_add(i.wrapping_mul(step)) % bits as u64) as usize)
}

/// Bloom filter of one shard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bloom {
    words: Vec<u64>,
}

impl Bloom {
    /// Creates an empty filter of `bytes` bytes, a multiple of 8.
    #[must_use]
    pub fn new(bytes: usize) -> Self {
        Self { words: vec![0; bytes / 8] }
    }

    /// Creates a filter from its words.
    #[must_use]
    pub fn from_words(words: Vec<u64>) -> Self {
        Self { words }
    }

    /// Returns the words of the filter.
    #[must_use]
    pub fn words(&self) -> &[u64] {
        &self.words
    }

    /// Inserts a document id.
    pub fn insert(&mut self, id: DocumentId) {
        for bit in positions(id.0, self.words.len() * 64) {
            self.words[bit / 64] |= 1 << (bit % 64);
        }
    }

    /// Reports whether the document may have been inserted. `false` means that it was not.
    #[must_use]
    pub fn may_contain(&self, id: DocumentId) -> bool {
        positions(id.0, self.words.len() * 64).all(|bit| self.words[bit / 64] >> (bit % 64) & 1 == 1)
    }
}

/// Filters of all shards, sliced by bit. Row `b` has one bit per shard, which is set if bit `b` of that shard's filter
/// is set.
#[derive(Clone, Debug)]
pub struct SlicedBlooms {
    bits: usize,
    /// Number of words per row.
    width: usize,
    /// Maximum number of columns added at once when the filters grow.
    step: usize,
    rows: Vec<u64>,
    /// Columns with a bit set. Other columns need no clearing.
    used: FixedBitSet,
}

impl SlicedBlooms {
    /// Creates filters of `bytes` bytes each, for no shards. They grow by at most `step` columns at once.
    #[must_use]
    pub fn new(bytes: usize, step: usize) -> Self {
        Self { bits: bytes * 8, width: 0, step: step.max(1), rows: Vec::new(), used: FixedBitSet::new() }
    }

    /// Returns the heap memory of the rows in bytes.
    #[must_use]
    pub fn memory(&self) -> usize {
        self.rows.len() * 8
    }

    fn make_room(&mut self, column: usize) {
        if column < self.width * 64 {
            return;
        }
        // Grows by half, so that a small index stays small, and by at most `step` columns, to limit the growth of a
        // large one.
        let more = self.width * 64 + (self.width * 32).min(self.step);
        self.widen((column + 1).max(more).div_ceil(64));
    }

    /// Reserves space for `columns` shards.
    pub fn reserve(&mut self, columns: usize) {
        let width = columns.div_ceil(64);
        if width > self.width {
            self.widen(width);
        }
    }

    fn widen(&mut self, width: usize) {
        let mut rows = vec![0; self.bits * width];
        if self.width > 0 {
            for (new, old) in rows.chunks_exact_mut(width).zip(self.rows.chunks_exact(self.width)) {
                new[..self.width].copy_from_slice(old);
            }
        }
        (self.rows, self.width) = (rows, width);
        self.used.grow(width * 64);
    }

    /// Inserts a value into the filter of one shard.
    pub fn insert(&mut self, column: usize, value: u128) {
        self.make_room(column);
        self.used.insert(column);
        for bit in positions(value, self.bits) {
            self.rows[bit * self.width + column / 64] |= 1 << (column % 64);
        }
    }

    /// Sets the column of a shard to its filter. `None` clears the column.
    pub fn set_column(&mut self, column: usize, filter: Option<&Bloom>) {
        self.make_room(column);
        let (at, mask) = (column / 64, 1u64 << (column % 64));
        let was_used = self.used.contains(column);
        self.used.set(column, filter.is_some());
        if was_used {
            self.rows.iter_mut().skip(at).step_by(self.width).for_each(|cell| *cell &= !mask);
        }
        for (i, &word) in filter.iter().flat_map(|filter| filter.words.iter().enumerate()) {
            let mut word = word;
            while word != 0 {
                let bit = i * 64 + word.trailing_zeros() as usize;
                self.rows[bit * self.width + at] |= mask;
                word &= word - 1;
            }
        }
    }

    /// Returns the offsets of the rows that hold the bits of a value.
    pub(super) fn rows(&self, value: u128) -> [usize; PROBES] {
        let mut rows = [0; PROBES];
        rows.iter_mut().zip(positions(value, self.bits)).for_each(|(row, bit)| *row = bit * self.width);
        rows
    }

    /// Returns a mask of the shards in columns `64 × word` to `64 × word + 63` whose filters have a bit set in all of
    /// these rows.
    pub(super) fn word(&self, rows: &[usize; PROBES], word: usize) -> u64 {
        if word < self.width { rows.iter().fold(u64::MAX, |hits, row| hits & self.rows[row + word]) } else { 0 }
    }

    /// Writes to `found` the shards that may hold a value, in ascending order. Only shards in the masks that `also`
    /// returns, one per word, are included.
    pub fn candidates(&self, value: u128, also: impl Fn(usize) -> u64, found: &mut Vec<usize>) {
        found.clear();
        let rows = self.rows(value);
        for word in 0..self.width {
            let mut hits = self.word(&rows, word);
            if hits != 0 {
                hits &= also(word);
            }
            while hits != 0 {
                found.push(word * 64 + hits.trailing_zeros() as usize);
                hits &= hits - 1;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slices_and_filters_say_the_same() {
        let mut sliced = SlicedBlooms::new(64, 10);
        let mut filters = vec![Bloom::new(64); 130];
        for n in 0..2_000u128 {
            let (column, id) = ((n * 7 % 130) as usize, DocumentId(n << 60 | n));
            filters[column].insert(id);
            sliced.insert(column, id.0);
        }
        filters[3] = Bloom::new(64);
        sliced.set_column(3, None);
        filters[129] = filters[5].clone();
        sliced.set_column(129, Some(&filters[5]));
        let mut found = Vec::new();
        for n in 0..4_000u128 {
            let id = DocumentId(n << 60 | n);
            sliced.candidates(id.0, |_| u64::MAX, &mut found);
            let expected: Vec<_> = (0..130).filter(|&i| filters[i].may_contain(id)).collect();
            assert_eq!(found, expected);
        }
    }

    #[test]
    fn few_lookups_are_in_vain() {
        let mut filter = Bloom::new(1024);
        (0..512).for_each(|n| filter.insert(DocumentId(n)));
        assert!((0..512).all(|n| filter.may_contain(DocumentId(n))));
        let vain = (1_000..101_000).filter(|&n| filter.may_contain(DocumentId(n))).count();
        assert!(vain < 200, "{vain} of 100,000");
    }
}
