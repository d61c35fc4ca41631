//! Kernels in plain Rust: they run on every CPU, and are the reference for the others.

use half::f16;

use super::{BLOCK, CodeCandidate, GROUPS, Kernels, LANES, Prefetch, ROWS, Scan, codes, filled, for_rows, pieces};

pub(super) const KERNELS: Kernels = Kernels {
    name: "portable",
    dot,
    squared_l2,
    dot_half,
    squared_l2_half,
    dot_int8,
    squared_l2_int8,
    dot_many,
    squared_l2_many,
    rotate,
    dot_bytes,
    dot_byte_row,
    scan,
};

#[inline(always)]
fn sum<B: Copy + Default>(a: &[f32], b: &[B], term: impl Fn(f32, B) -> f32) -> f32 {
    let mut groups = [[0.0f32; LANES]; GROUPS];
    let (a, b, a_rest, b_rest) = pieces(a, b);
    let mut add = |group: usize, a: &[f32; LANES], b: &[B; LANES]| {
        for ((lane, &a), &b) in groups[group].iter_mut().zip(a).zip(b) {
            *lane += term(a, b);
        }
    };
    for (i, (a, b)) in a.iter().zip(b).enumerate() {
        add(i % GROUPS, a, b);
    }
    if !a_rest.is_empty() {
        add(a.len() % GROUPS, &filled(a_rest), &filled(b_rest));
    }
    let [g0, g1, g2, g3] = groups;
    let mut lanes = [0.0f32; LANES];
    for (j, lane) in lanes.iter_mut().enumerate() {
        *lane = (g0[j] + g1[j]) + (g2[j] + g3[j]);
    }
    for half in [8, 4, 2, 1] {
        for j in 0..half {
            lanes[j] += lanes[j + half];
        }
    }
    lanes[0]
}

fn dot(a: &[f32], b: &[f32]) -> f32 {
    sum(a, b, |a, b| a * b)
}

fn squared_l2(a: &[f32], b: &[f32]) -> f32 {
    sum(a, b, |a, b| (a - b) * (a - b))
}

/// Widens a finite half without a branch. An f32 with its exponent and digits is smaller by 2^112, the difference of the
/// biases, and so it is for numbers below the smallest normal one.
#[inline(always)]
fn widened(half: f16) -> f32 {
    let bits = u32::from(half.to_bits());
    let size = f32::from_bits((bits & 0x7FFF) << 13) * f32::from_bits((127 + 112) << 23);
    f32::from_bits(size.to_bits() | (bits & 0x8000) << 16)
}

pub(super) fn dot_half(a: &[f32], b: &[f16]) -> f32 {
    sum(a, b, |a, b| a * widened(b))
}

pub(super) fn squared_l2_half(a: &[f32], b: &[f16]) -> f32 {
    let square = |x: f32| x * x;
    sum(a, b, |a, b| square(a - widened(b)))
}

fn dot_int8(a: &[f32], b: &[i8], scale: f32) -> f32 {
    sum(a, b, |a, b| a * (f32::from(b) * scale))
}

fn squared_l2_int8(a: &[f32], b: &[i8], scale: f32) -> f32 {
    let square = |x: f32| x * x;
    sum(a, b, |a, b| square(a - f32::from(b) * scale))
}

fn dot_many(query: &[f32], rows: &[f32], out: &mut [f32]) {
    for_rows(query, rows, out, dot);
}

fn squared_l2_many(query: &[f32], rows: &[f32], out: &mut [f32]) {
    for_rows(query, rows, out, squared_l2);
}

fn rotate(flips: &[u32], values: &mut [f32]) {
    codes::rotate(flips, values, &codes::Plain);
}

fn dot_bytes(query: &[i8], blocks: &[u8], out: &mut [i32]) {
    for (block, out) in blocks.chunks_exact(query.len() * ROWS).zip(out.chunks_exact_mut(ROWS)) {
        out.fill(0);
        for (rows, query) in block.chunks_exact(4 * ROWS).zip(query.as_chunks::<4>().0) {
            for (row, out) in rows.as_chunks::<4>().0.iter().zip(&mut *out) {
                *out += row.iter().zip(query).map(|(&a, &b)| i32::from(a) * i32::from(b)).sum::<i32>();
            }
        }
    }
}

fn dot_byte_row(query: &[i8], row: &[u8]) -> i32 {
    row.iter().zip(query).map(|(&a, &b)| i32::from(a) * i32::from(b)).sum()
}

fn scan(scan: &Scan<'_>, prefetch: &mut Prefetch<'_>, found: &mut Vec<CodeCandidate>) {
    for block in scan.block_range() {
        if block % 2 == 0 {
            prefetch.step();
        }
        let (words, tail) = scan.block(block);
        let mut different = [0u32; BLOCK];
        for (words, planes) in words.as_chunks::<BLOCK>().0.iter().zip(scan.planes) {
            for (plane, bits) in planes.iter().enumerate() {
                for (different, word) in different.iter_mut().zip(words) {
                    *different += (word ^ bits).count_ones() << plane;
                }
            }
        }
        scan.keep(block, &different, tail, found);
    }
}
