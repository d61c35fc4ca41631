//! What the kernels of codes and bytes have in common: how the numbers lie in memory, and what is done with a sum.

use std::ops::Range;

/// Codes per block: one 512-bit register holds one word of each.
pub const BLOCK: usize = 8;
/// Rows per block of bytes: one 512-bit register holds four bytes of each.
pub const ROWS: usize = 16;
/// An f32 whose lower half is zeros is stored as its upper half.
pub const BF16_SHIFT: u32 = 16;

/// Bytes of a block of codes of so many words: for each word the eight codes' words side by side; then eight factors and
/// eight additive terms, the upper halves of f32s; then eight references.
#[must_use]
pub const fn block_bytes(words: usize) -> usize {
    (words + 1) * BLOCK * 8
}

/// A posting whose least distance is within the bound.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Found {
    /// Whom the code is of.
    pub reference: u32,
    /// The estimated distance less the error that was allowed for.
    pub least: f32,
    /// That error.
    pub allowed: f32,
}

/// Codes to be scanned, and with what.
#[derive(Clone, Debug)]
pub struct Scan<'a> {
    /// The query's four planes for each word.
    pub planes: &'a [[u64; 4]],
    /// Blocks of codes, on 64 bytes.
    pub blocks: &'a [u8],
    /// Which of their codes.
    pub range: Range<usize>,
    /// What one step of the planes is worth.
    pub step: f32,
    /// The error allowed for, in units of a code's factor.
    pub error: f32,
    /// The query's distance to the centroid.
    pub base: f32,
    /// Codes whose least distance is more are left out.
    pub bound: f32,
}

/// The last 64 bytes of a block.
#[derive(Clone, Copy, Debug, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub(super) struct Tail {
    pub(super) factors: [u16; BLOCK],
    pub(super) adds: [u16; BLOCK],
    pub(super) references: [u32; BLOCK],
}

/// The words of a block's bytes, and its tail.
#[inline(always)]
pub(super) fn parts(block: &[u8]) -> (&[u64], &Tail) {
    let (words, tail) = block.split_at(block.len() - 64);
    (bytemuck::cast_slice(words), bytemuck::from_bytes(tail))
}

impl Scan<'_> {
    /// Blocks that hold codes of the range.
    pub(super) fn block_range(&self) -> Range<usize> {
        self.range.start / BLOCK..self.range.end.div_ceil(BLOCK)
    }

    /// The words of a block, and its tail.
    pub(super) fn block(&self, block: usize) -> (&[u64], &Tail) {
        let bytes = block_bytes(self.planes.len());
        parts(&self.blocks[block * bytes..(block + 1) * bytes])
    }

    /// Which codes of a block are of the range, as bits.
    pub(super) fn lanes(&self, block: usize) -> u8 {
        let first = block * BLOCK;
        let below =
            |end: usize| if end >= first + BLOCK { 0xFF } else { (1u16 << end.saturating_sub(first)) as u8 - 1 };
        below(self.range.end.max(first)) & !below(self.range.start.max(first))
    }

    /// The largest sum there can be: that of a code whose signs are all the query's.
    pub(super) fn most(&self) -> i32 {
        15 * 64 * self.planes.len() as i32
    }

    /// Keeps what is within the bound, of sums of differing bits weighted by their planes.
    pub(super) fn keep(&self, block: usize, different: &[u32; BLOCK], tail: &Tail, found: &mut Vec<Found>) {
        let lanes = self.lanes(block);
        for (lane, &different) in different.iter().enumerate() {
            let half = |bits: u16| f32::from_bits(u32::from(bits) << BF16_SHIFT);
            let product = self.step * (self.most() - 2 * different as i32) as f32;
            let factor = half(tail.factors[lane]);
            let least = (self.base + half(tail.adds[lane])) - factor * (product + self.error);
            if lanes >> lane & 1 == 1 && least <= self.bound {
                found.push(Found { reference: tail.references[lane], least, allowed: factor * self.error });
            }
        }
    }
}

/// Rows of bytes as the kernel reads them: 16 rows to a block, four bytes of each in turn, each plus 128.
#[derive(Clone, Debug)]
pub struct ByteBlocks {
    len: usize,
    rows: usize,
    bytes: Vec<u8>,
}

impl ByteBlocks {
    /// No row of `len` bytes, a multiple of 64.
    ///
    /// # Panics
    /// If it is none.
    #[must_use]
    pub fn new(len: usize) -> Self {
        assert!(len.is_multiple_of(64), "rows of whole words");
        Self { len, rows: 0, bytes: Vec::new() }
    }

    /// Rows that were pushed.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// The blocks; the last one is filled up with rows of zeros.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Forgets all rows.
    pub fn clear(&mut self) {
        self.rows = 0;
        self.bytes.clear();
    }

    /// Appends a row.
    ///
    /// # Panics
    /// If it has another length.
    pub fn push(&mut self, row: &[i8]) {
        self.set(self.rows, row);
    }

    /// Puts a row in place `i`; those that are left out before it are zeros.
    ///
    /// # Panics
    /// If it has another length.
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

/// Row `i` of blocks of bytes.
#[cfg(test)]
pub(super) fn byte_row(blocks: &[u8], len: usize, i: usize) -> Vec<i16> {
    let at = i / ROWS * ROWS * len + i % ROWS * 4;
    (0..len).map(|j| i16::from(blocks[at + j / 4 * 4 * ROWS + j % 4]) - 128).collect()
}

/// A row of 16 components.
pub(super) type Row = [f32; super::LANES];

/// The steps of a rotation, row by row.
pub(super) trait Steps {
    /// Flips signs.
    fn flip(&self, row: &mut Row, flips: &[u32; super::LANES]);
    /// The sums and the differences of two rows, times `scale`.
    fn butterfly(&self, a: &mut Row, b: &mut Row, scale: f32);
    /// Butterflies between lanes 1, 2, 4 and 8 apart: the lower lane gets the sum, the upper one lower less upper. Then
    /// times `scale`.
    fn mix(&self, row: &mut Row, scale: f32);
}

/// In plain Rust.
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

/// Rounds of sign flips and Hadamard butterflies over a power of two of components, the first ones and the last ones in
/// turn, with a step of Kac's walk between the halves where that is not all of them.
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

/// Bytes that will be read soon: a kernel asks for some lines of them between what it computes, so that neither waits
/// for the other. Asked for all at once they would fill the few places for lines that are on their way, and the core
/// would stand still.
#[derive(Clone, Debug, Default)]
pub struct Ahead<'a> {
    now: &'a [u8],
    later: [&'a [u8]; 32],
    /// Of `later`, how many.
    count: usize,
    /// Lines a step.
    lines: usize,
}

impl<'a> Ahead<'a> {
    /// Appends some.
    pub fn push(&mut self, bytes: &'a [u8]) {
        if self.count == self.later.len() {
            return prefetch(bytes);
        }
        self.later[self.count] = bytes;
        self.count += 1;
    }

    /// Shares what is waiting out to so many codes that are scanned, `first` before all else.
    pub fn plan(&mut self, first: &'a [u8], codes: usize) {
        self.now = first;
        let waiting: usize = self.later[..self.count].iter().map(|bytes| bytes.len()).sum();
        self.lines = (first.len() + waiting).div_ceil(LINE).div_ceil(codes.div_ceil(2 * BLOCK).max(1));
    }

    /// Asks for what one step's share is.
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

    /// Asks for the rest.
    pub fn finish(&mut self) {
        self.lines = usize::MAX;
        self.step();
    }
}

/// Bytes that come from memory together.
pub(super) const LINE: usize = 64;

#[cfg(target_arch = "x86_64")]
#[expect(unsafe_code, reason = "the intrinsic takes a pointer")]
#[inline(always)]
fn prefetch_line(bytes: &[u8]) {
    use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
    // SAFETY: a prefetch reads nothing.
    unsafe { _mm_prefetch::<_MM_HINT_T0>(bytes.as_ptr().cast()) };
}

#[cfg(not(target_arch = "x86_64"))]
fn prefetch_line(_: &[u8]) {}

/// Asks for bytes that are to be read at once.
#[inline(always)]
pub fn prefetch(bytes: &[u8]) {
    let (lines, rest) = bytes.as_chunks::<LINE>();
    lines.iter().for_each(|line| prefetch_line(line));
    if !rest.is_empty() {
        prefetch_line(rest);
    }
}
