//! Common parts of the kernels of codes and bytes: the layout in memory, and the evaluation of sums.

use std::ops::Range;

/// Codes per block: a 512-bit register holds one word of each.
pub const BLOCK: usize = 8;
/// Rows per block of bytes: a 512-bit register holds four bytes of each.
pub const ROWS: usize = 16;
/// Shift between an f32 whose lower half is zero and its upper half, which is stored.
pub const BF16_SHIFT: u32 = 16;

/// Returns the bytes of a block of codes of `words` words. A block holds, for each word, the words of its eight codes
/// side by side. Then follow eight factors and eight additive terms, the upper halves of f32s, and eight references.
#[must_use]
pub const fn block_bytes(words: usize) -> usize {
    (words + 1) * BLOCK * 8
}

/// Code whose lower bound is within the bound of a scan.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CodeCandidate {
    /// Reference stored with the code: the number of a posting, or in a router the number of a cell.
    pub reference: u32,
    /// Estimated distance minus the allowed error.
    pub lower_bound: f32,
    /// Allowed error of the estimate.
    pub error: f32,
}

/// Range of codes to scan, with the query and the bounds.
#[derive(Clone, Debug)]
pub struct Scan<'a> {
    /// Four planes of the query for each word.
    pub planes: &'a [[u64; 4]],
    /// Blocks of codes. The kernels need an alignment of 8 bytes; cells align them to 64.
    pub blocks: &'a [u8],
    /// Codes to scan, counted from the first block.
    pub range: Range<usize>,
    /// Value of one step of the planes.
    pub step: f32,
    /// Allowed error, in units of a code's factor.
    pub error: f32,
    /// Query's distance to the centroid.
    pub base: f32,
    /// Largest lower bound of a code that is reported.
    pub bound: f32,
}

/// Last 64 bytes of a block: the factors, additive terms and references of its codes.
#[derive(Clone, Copy, Debug, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub(super) struct BlockTail {
    pub(super) factors: [u16; BLOCK],
    pub(super) adds: [u16; BLOCK],
    pub(super) references: [u32; BLOCK],
}

/// Splits the bytes of a block into its words and its tail.
#[inline(always)]
pub(super) fn parts(block: &[u8]) -> (&[u64], &BlockTail) {
    let (words, tail) = block.split_at(block.len() - 64);
    (bytemuck::cast_slice(words), bytemuck::from_bytes(tail))
}

impl Scan<'_> {
    /// Returns the blocks that hold codes of the range.
    pub(super) fn block_range(&self) -> Range<usize> {
        self.range.start / BLOCK..self.range.end.div_ceil(BLOCK)
    }

    /// Returns the words and the tail of a block.
    pub(super) fn block(&self, block: usize) -> (&[u64], &BlockTail) {
        let bytes = block_bytes(self.planes.len());
        parts(&self.blocks[block * bytes..(block + 1) * bytes])
    }

    /// Returns a bit mask of the codes of a block that are in the range.
    pub(super) fn lanes(&self, block: usize) -> u8 {
        let first = block * BLOCK;
        let below =
            |end: usize| if end >= first + BLOCK { 0xFF } else { (1u16 << end.saturating_sub(first)) as u8 - 1 };
        below(self.range.end.max(first)) & !below(self.range.start.max(first))
    }

    /// Returns the largest possible sum: that of a code whose signs all match a query of the largest level.
    pub(super) fn most(&self) -> i32 {
        15 * 64 * self.planes.len() as i32
    }

    /// Appends the codes of a block whose lower bound is within the bound. `different` holds for each code its number
    /// of differing bits, weighted by their planes.
    pub(super) fn keep(
        &self,
        block: usize,
        different: &[u32; BLOCK],
        tail: &BlockTail,
        found: &mut Vec<CodeCandidate>,
    ) {
        let lanes = self.lanes(block);
        for (lane, &different) in different.iter().enumerate() {
            let half = |bits: u16| f32::from_bits(u32::from(bits) << BF16_SHIFT);
            let product = self.step * (self.most() - 2 * different as i32) as f32;
            let factor = half(tail.factors[lane]);
            let lower_bound = (self.base + half(tail.adds[lane])) - factor * (product + self.error);
            if lanes >> lane & 1 == 1 && lower_bound <= self.bound {
                found.push(CodeCandidate { reference: tail.references[lane], lower_bound, error: factor * self.error });
            }
        }
    }
}

/// Rows of bytes in the layout that the kernel reads: blocks of 16 rows, with four bytes of each row in turn, each plus
/// 128.
#[derive(Clone, Debug)]
pub struct ByteBlocks {
    len: usize,
    rows: usize,
    bytes: Vec<u8>,
}

impl ByteBlocks {
    /// Creates an empty set of rows of `len` bytes.
    ///
    /// # Panics
    /// Panics if `len` is not a multiple of 64.
    #[must_use]
    pub fn new(len: usize) -> Self {
        assert!(len.is_multiple_of(64), "rows of whole words");
        Self { len, rows: 0, bytes: Vec::new() }
    }

    /// Returns the number of rows, including the rows that [`set`](Self::set) skipped.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Returns the bytes of the blocks. The last block is padded with rows of zeros.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Makes room for as many rows more, and for no others.
    pub fn reserve(&mut self, rows: usize) {
        self.bytes.reserve_exact((self.rows + rows).next_multiple_of(ROWS) * self.len - self.bytes.len());
    }

    /// Removes all rows.
    pub fn clear(&mut self) {
        self.rows = 0;
        self.bytes.clear();
    }

    /// Appends a row.
    ///
    /// # Panics
    /// Panics if the row has another length.
    pub fn push(&mut self, row: &[i8]) {
        self.set(self.rows, row);
    }

    /// Writes row `i`. Rows skipped before it are zeros.
    ///
    /// # Panics
    /// Panics if the row has another length.
    pub fn set(&mut self, i: usize, row: &[i8]) {
        assert_eq!(row.len(), self.len, "a row of another length");
        let at = i / ROWS * ROWS * self.len + i % ROWS * 4;
        self.rows = self.rows.max(i + 1);
        let needed = self.rows.next_multiple_of(ROWS) * self.len;
        if self.bytes.len() < needed {
            self.bytes.resize(needed, 128);
        }
        for (i, four) in row.as_chunks::<4>().0.iter().enumerate() {
            let to = at + i * 4 * ROWS;
            self.bytes[to..to + 4].copy_from_slice(&four.map(|byte| (i16::from(byte) + 128) as u8));
        }
    }
}

/// Returns row `i` of blocks of bytes, without the offset of 128.
#[cfg(test)]
pub(super) fn byte_row(blocks: &[u8], len: usize, i: usize) -> Vec<i16> {
    let at = i / ROWS * ROWS * len + i % ROWS * 4;
    (0..len).map(|j| i16::from(blocks[at + j / 4 * 4 * ROWS + j % 4]) - 128).collect()
}

/// Row of 16 components.
pub(super) type Row = [f32; super::LANES];

/// Steps of a rotation on rows.
pub(super) trait Steps {
    /// Flips the signs of a row.
    fn flip(&self, row: &mut Row, flips: &[u32; super::LANES]);
    /// Replaces two rows by their sum and their difference, times `scale`.
    fn butterfly(&self, a: &mut Row, b: &mut Row, scale: f32);
    /// Applies butterflies between lanes 1, 2, 4 and 8 apart, then multiplies by `scale`. The lower lane gets the sum,
    /// the upper lane the lower one minus the upper one.
    fn mix(&self, row: &mut Row, scale: f32);
}

/// Steps in plain Rust.
pub(super) struct Plain;

impl Steps for Plain {
    #[inline(always)]
    fn flip(&self, row: &mut Row, flips: &[u32; super::LANES]) {
        row.iter_mut().zip(flips).for_each(|(x, flip)| *x = f32::from_bits(x.to_bits() ^ flip));
    }

    #[inline(always)]
    fn butterfly(&self, a: &mut Row, b: &mut Row, scale: f32) {
        for (a, b) in a.iter_mut().zip(b) {
            (*a, *b) = ((*a + *b) * scale, (*a - *b) * scale);
        }
    }

    #[inline(always)]
    fn mix(&self, row: &mut Row, scale: f32) {
        for half in [1, 2, 4, 8] {
            let from = *row;
            for j in 0..super::LANES {
                row[j] = if j & half == 0 { from[j] + from[j + half] } else { from[j - half] - from[j] };
            }
        }
        row.iter_mut().for_each(|x| *x *= scale);
    }
}

/// Rotates `values` by rounds of sign flips and Hadamard butterflies. The butterflies cover a power of two of
/// components: alternately the first and the last ones. If that is not all components, a step of Kac's walk between the
/// two halves follows.
#[inline(always)]
pub(super) fn rotate(flips: &[u32], values: &mut [f32], steps: &impl Steps) {
    let (values, flips) = (values.as_chunks_mut::<{ super::LANES }>().0, flips.as_chunks::<{ super::LANES }>().0);
    let rows = values.len();
    if rows == 0 {
        return;
    }
    let mixed = if rows.is_power_of_two() { rows } else { rows.next_power_of_two() / 2 };
    let scale = 1.0 / ((mixed * super::LANES) as f32).sqrt();
    for (round, flips) in flips.chunks_exact(rows).enumerate() {
        values.iter_mut().zip(flips).for_each(|(row, flips)| steps.flip(row, flips));
        let first = if round % 2 == 0 { 0 } else { rows - mixed };
        let part = &mut values[first..first + mixed];
        let mut half = 1;
        while half < mixed {
            for pair in part.chunks_exact_mut(2 * half) {
                let (a, b) = pair.split_at_mut(half);
                a.iter_mut().zip(b).for_each(|(a, b)| steps.butterfly(a, b, 1.0));
            }
            half *= 2;
        }
        part.iter_mut().for_each(|row| steps.mix(row, scale));
        if mixed != rows {
            let (a, b) = values.split_at_mut(rows / 2);
            a.iter_mut().zip(b).for_each(|(a, b)| steps.butterfly(a, b, std::f32::consts::FRAC_1_SQRT_2));
        }
    }
}

/// Queue of bytes that will be read soon. A kernel prefetches a few cache lines of them between its computations, so
/// that neither waits for the other. If all lines were prefetched at once, they would occupy the few line fill buffers
/// of the core, and the core would stall.
#[derive(Clone, Debug)]
pub struct Prefetch<'a> {
    now: &'a [u8],
    later: [&'a [u8]; 32],
    /// Number of entries in `later`.
    count: usize,
    /// Cache lines per step.
    lines: usize,
}

#[expect(clippy::derivable_impls, reason = "the derived code stores the entries one by one, 22 cache lines of it")]
impl Default for Prefetch<'_> {
    fn default() -> Self {
        Self { now: &[], later: [&[]; 32], count: 0, lines: 0 }
    }
}

impl<'a> Prefetch<'a> {
    /// Queues bytes. If the queue is full, prefetches them immediately.
    pub fn push(&mut self, bytes: &'a [u8]) {
        if self.count == self.later.len() {
            return prefetch(bytes);
        }
        self.later[self.count] = bytes;
        self.count += 1;
    }

    /// Spreads `first` and the queued bytes evenly over the scan of `codes` codes. `first` is prefetched before all
    /// else.
    pub fn plan(&mut self, first: &'a [u8], codes: usize) {
        self.now = first;
        let waiting: usize = self.later[..self.count].iter().map(|bytes| bytes.len()).sum();
        self.lines = (first.len() + waiting).div_ceil(LINE).div_ceil(codes.div_ceil(2 * BLOCK).max(1));
    }

    /// Prefetches the lines of one step.
    #[inline(always)]
    pub fn step(&mut self) {
        let mut lines = self.lines;
        while lines > 0 {
            if self.now.is_empty() {
                let Some(next) = self.count.checked_sub(1) else { return };
                self.count = next;
                self.now = self.later[next];
            }
            let (some, rest) = self.now.split_at(self.now.len().min(lines.saturating_mul(LINE)));
            prefetch(some);
            lines -= some.len().div_ceil(LINE);
            self.now = rest;
        }
    }

    /// Prefetches all remaining bytes.
    pub fn finish(&mut self) {
        self.lines = usize::MAX;
        self.step();
    }
}

/// Bytes of a cache line.
pub(super) const LINE: usize = 64;

#[cfg(target_arch = "x86_64")]
#[expect(unsafe_code, reason = "the intrinsic takes a pointer")]
#[inline(always)]
fn prefetch_line(bytes: &[u8]) {
    use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
    // SAFETY: a prefetch accesses no memory that the program could observe, and never faults.
    unsafe { _mm_prefetch::<_MM_HINT_T0>(bytes.as_ptr().cast()) };
}

#[cfg(not(target_arch = "x86_64"))]
fn prefetch_line(_: &[u8]) {}

/// Prefetches all cache lines of `bytes`, which will be read soon.
#[inline(always)]
pub fn prefetch(bytes: &[u8]) {
    let (lines, rest) = bytes.as_chunks::<LINE>();
    lines.iter().for_each(|line| prefetch_line(line));
    if !rest.is_empty() {
        prefetch_line(rest);
    }
}
