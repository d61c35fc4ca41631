//! Bloom filters of document ids (Bloom, CACM 1970): which shards may hold a document, without looking.
//!
//! A shard keeps its own filter, which is stored with its state. All of them together are kept a second time, sliced by
//! bit instead of by shard, so that one lookup reads [`PROBES`] rows of bits whatever the number of shards.

use super::prints::mix;
use crate::id::DocumentId;

/// Bits that stand for one document. At 16 bits a posting some 7 in 10,000 lookups of a full shard are in vain.
pub const PROBES: usize = 7;

/// The bits of a value, such as a document's id, in a filter of `bits` bits.
fn positions(value: u128, bits: usize) -> impl Iterator<Item = usize> {
    // Double hashing (Kirsch and Mitzenmacher, ESA 2006) from one 64-bit mix.
    let low = mix((value as u64).wrapping_add(0x9E37_79B9_7F4A_7C15));
    let high = mix(low ^ (value >> 64) as u64);
    let (start, step) = (high, mix(high) | 1);
    (0..PROBES as u64).map(move |i| (start.wrapping_add(i.wrapping_mul(step)) % bits as u64) as usize)
}

/// The filter of one shard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bloom {
    words: Vec<u64>,
}

impl Bloom {
    /// A filter of this many bytes, a multiple of 8, that knows no document.
    #[must_use]
    pub fn new(bytes: usize) -> Self {
        Self { words: vec![0; bytes / 8] }
    }

    /// A filter from its bits.
    #[must_use]
    pub fn from_words(words: Vec<u64>) -> Self {
        Self { words }
    }

    /// Its bits.
    #[must_use]
    pub fn words(&self) -> &[u64] {
        &self.words
    }

    /// Adds a document.
    pub fn insert(&mut self, id: DocumentId) {
        for bit in positions(id.0, self.words.len() * 64) {
            self.words[bit / 64] |= 1 << (bit % 64);
        }
    }

    /// False only if the document was never added.
    #[must_use]
    pub fn may_contain(&self, id: DocumentId) -> bool {
        positions(id.0, self.words.len() * 64).all(|bit| self.words[bit / 64] >> (bit % 64) & 1 == 1)
    }
}

/// The filters of all shards, sliced by bit: row `b` has one bit per shard, set where bit `b` of that shard's filter is.
#[derive(Clone, Debug)]
pub struct SlicedBlooms {
    bits: usize,
    /// Words per row.
    width: usize,
    /// Columns by which it grows at once.
    step: usize,
    rows: Vec<u64>,
    /// Columns that have a bit set, so that clean ones need no clearing.
    used: Vec<bool>,
}

impl SlicedBlooms {
    /// No shards, filters of `bytes` bytes; columns come `step` at a time at most.
    #[must_use]
    pub fn new(bytes: usize, step: usize) -> Self {
        Self { bits: bytes * 8, width: 0, step: step.max(1), rows: Vec::new(), used: Vec::new() }
    }

    /// Heap bytes.
    #[must_use]
    pub fn memory(&self) -> usize {
        self.rows.len() * 8
    }

    fn make_room(&mut self, column: usize) {
        if column < self.width * 64 {
            return;
        }
        // By half as much again, so that a small index stays small, and by `step` at most, so that a large one does not jump.
        let more = self.width * 64 + (self.width * 32).min(self.step);
        self.widen((column + 1).max(more).div_ceil(64));
    }

    /// Makes room for so many shards at once.
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
        self.used.resize(width * 64, false);
    }

    /// Adds a value to one shard's filter.
    pub fn insert(&mut self, column: usize, value: u128) {
        self.make_room(column);
        self.used[column] = true;
        for bit in positions(value, self.bits) {
            self.rows[bit * self.width + column / 64] |= 1 << (column % 64);
        }
    }

    /// Makes a shard's column equal to its filter; `None` clears it.
    pub fn set_column(&mut self, column: usize, filter: Option<&Bloom>) {
        self.make_room(column);
        let (at, mask) = (column / 64, 1u64 << (column % 64));
        if std::mem::replace(&mut self.used[column], filter.is_some()) {
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

    /// The rows of a value's bits.
    pub(super) fn rows(&self, value: u128) -> [usize; PROBES] {
        let mut rows = [0; PROBES];
        rows.iter_mut().zip(positions(value, self.bits)).for_each(|(row, bit)| *row = bit * self.width);
        rows
    }

    /// The shards of columns `64 × word` and on whose filters have a bit set in each of these rows.
    pub(super) fn word(&self, rows: &[usize; PROBES], word: usize) -> u64 {
        match word < self.width {
            true => rows.iter().fold(u64::MAX, |hits, row| hits & self.rows[row + word]),
            false => 0,
        }
    }

    /// The shards that may hold a value, of those that `also` says, word by word; lowest first.
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
