//! Exact distances between vectors, and products of bytes and codes, by the fastest kernels that this CPU supports.
//!
//! Invariants, by which all kernels of vectors give the same bits on every CPU (promise P7):
//! 1. Each product and each sum is rounded separately: there is no fused multiply-add.
//! 2. Component `i` is added to lane `i % 16` of group `(i / 16) % 4`, in the order of `i`. Lanes start at +0.0.
//! 3. A last piece of fewer than 16 components is padded with +0.0 in both vectors.
//! 4. The lanes are added by one tree: `(g0 + g1) + (g2 + g3)` lane by lane, then lane `j` with lane `j + 8`, then `j +
//!    4`, `j + 2`, `j + 1`.
//! 5. A component of type f16 is widened to f32, an i8 multiplied by the scale of its vector, and then used as above. A
//!    caller's scale has 17 significant bits at most, so both are exact.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod codes;
mod portable;

use half::f16;
use std::sync::LazyLock;

pub use codes::{BF16_SHIFT, BLOCK, ByteBlocks, CodeCandidate, Prefetch, ROWS, Scan, block_bytes, prefetch};

/// Implementation of all kernels for one instruction set.
#[derive(Clone, Copy, Debug)]
pub struct Kernels {
    /// Name of the implementation: `portable`, `avx2` or `avx512`.
    pub name: &'static str,
    /// Dot product of two vectors of equal length.
    pub dot: fn(&[f32], &[f32]) -> f32,
    /// Squared Euclidean distance of two vectors of equal length.
    pub squared_l2: fn(&[f32], &[f32]) -> f32,
    /// Kernel of [`dot_half`].
    pub dot_half: fn(&[f32], &[f16]) -> f32,
    /// Kernel of [`squared_l2_half`].
    pub squared_l2_half: fn(&[f32], &[f16]) -> f32,
    /// Kernel of [`dot_int8`].
    pub dot_int8: fn(&[f32], &[i8], f32) -> f32,
    /// Kernel of [`squared_l2_int8`].
    pub squared_l2_int8: fn(&[f32], &[i8], f32) -> f32,
    /// Kernel of [`dot_many`].
    pub dot_many: fn(&[f32], &[f32], &mut [f32]),
    /// Kernel of [`squared_l2_many`].
    pub squared_l2_many: fn(&[f32], &[f32], &mut [f32]),
    /// Kernel of [`rotate`].
    pub rotate: fn(&[u32], &mut [f32]),
    /// Kernel of [`dot_bytes`].
    pub dot_bytes: fn(&[i8], &[u8], &mut [i32]),
    /// Kernel of [`dot_byte_row`].
    pub dot_byte_row: fn(&[i8], &[u8]) -> i32,
    /// Kernel of [`scan`].
    pub scan: fn(&Scan<'_>, &mut Prefetch<'_>, &mut Vec<CodeCandidate>),
}

/// Lanes of a group, each of which sums one of 16 consecutive components.
pub const LANES: usize = 16;
/// Groups of lanes that are added to in turn, which hides the latency of additions.
const GROUPS: usize = 4;

static BEST: LazyLock<Kernels> = LazyLock::new(|| {
    let all = available();
    all[all.len() - 1]
});

/// Returns all implementations that this CPU supports, the portable one first and the fastest last.
#[must_use]
pub fn available() -> Vec<Kernels> {
    let all = [
        Some(portable::KERNELS),
        #[cfg(target_arch = "x86_64")]
        avx2::kernels(),
        #[cfg(target_arch = "x86_64")]
        avx512::kernels(),
    ];
    all.into_iter().flatten().collect()
}

/// Returns the name of the implementation in use.
#[must_use]
pub fn kernel_name() -> &'static str {
    BEST.name
}

/// Computes the dot product of two vectors.
///
/// # Panics
/// Panics if the lengths differ.
#[must_use]
pub fn dot(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len(), "vectors of two lengths");
    (BEST.dot)(a, b)
}

/// Computes the squared Euclidean distance of two vectors.
///
/// # Panics
/// Panics if the lengths differ.
#[must_use]
pub fn squared_l2(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len(), "vectors of two lengths");
    (BEST.squared_l2)(a, b)
}

/// Computes the dot product of a vector and one of 16-bit floats. The result has the same bits as [`dot`] of the widened
/// vector.
///
/// # Panics
/// Panics if the lengths differ.
#[must_use]
pub fn dot_half(a: &[f32], b: &[f16]) -> f32 {
    assert_eq!(a.len(), b.len(), "vectors of two lengths");
    (BEST.dot_half)(a, b)
}

/// Computes the squared Euclidean distance of a vector and one of 16-bit floats. The result has the same bits as
/// [`squared_l2`] of the widened vector.
///
/// # Panics
/// Panics if the lengths differ.
#[must_use]
pub fn squared_l2_half(a: &[f32], b: &[f16]) -> f32 {
    assert_eq!(a.len(), b.len(), "vectors of two lengths");
    (BEST.squared_l2_half)(a, b)
}

/// Computes the dot product of a vector and one of 8-bit integers times a scale. The result has the same bits as [`dot`]
/// of the products.
///
/// # Panics
/// Panics if the lengths differ.
#[must_use]
pub fn dot_int8(a: &[f32], b: &[i8], scale: f32) -> f32 {
    assert_eq!(a.len(), b.len(), "vectors of two lengths");
    (BEST.dot_int8)(a, b, scale)
}

/// Computes the squared Euclidean distance of a vector and one of 8-bit integers times a scale. The result has the same
/// bits as [`squared_l2`] of the products.
///
/// # Panics
/// Panics if the lengths differ.
#[must_use]
pub fn squared_l2_int8(a: &[f32], b: &[i8], scale: f32) -> f32 {
    assert_eq!(a.len(), b.len(), "vectors of two lengths");
    (BEST.squared_l2_int8)(a, b, scale)
}

/// Computes the dot product of `query` with each row of a row-major matrix of `out.len()` rows. Each result has the
/// same bits as [`dot`].
///
/// # Panics
/// Panics if `rows` has another size.
pub fn dot_many(query: &[f32], rows: &[f32], out: &mut [f32]) {
    assert_eq!(rows.len(), query.len() * out.len(), "a matrix of another size");
    (BEST.dot_many)(query, rows, out);
}

/// Computes the squared Euclidean distance of `query` to each row of a row-major matrix of `out.len()` rows. Each
/// result has the same bits as [`squared_l2`].
///
/// # Panics
/// Panics if `rows` has another size.
pub fn squared_l2_many(query: &[f32], rows: &[f32], out: &mut [f32]) {
    assert_eq!(rows.len(), query.len() * out.len(), "a matrix of another size");
    (BEST.squared_l2_many)(query, rows, out);
}

/// Rotates a vector in place. For each row of `flips`, which is as long as the vector, flips signs and applies Hadamard
/// butterflies. Each component is computed by sums and products in a fixed order, so all CPUs give the same bits.
///
/// # Panics
/// Panics if the length of `values` is not a multiple of 64, or the length of `flips` not a multiple of that length.
pub fn rotate(flips: &[u32], values: &mut [f32]) {
    assert!(values.len().is_multiple_of(64), "a vector of whole words");
    assert!(flips.len().is_multiple_of(values.len().max(1)), "whole rounds");
    (BEST.rotate)(flips, values);
}

/// Computes the products of a query of bytes with the rows of [`ByteBlocks`]. The rows are stored plus 128, so the
/// caller must subtract 128 times the sum of the query from each product.
///
/// # Panics
/// Panics if the length of `query` is not a multiple of 64 or exceeds 65,536, if the length of `out` is not a multiple
/// of 16, or if `blocks` doesn't hold `out.len()` rows.
pub fn dot_bytes(query: &[i8], blocks: &[u8], out: &mut [i32]) {
    assert!(query.len().is_multiple_of(64) && query.len() <= 65_536, "a query of whole words");
    assert!(out.len().is_multiple_of(ROWS) && blocks.len() == query.len() * out.len(), "a matrix of another size");
    (BEST.dot_bytes)(query, blocks, out);
}

/// Computes the product of a query of bytes with one row of bytes, each plus 128. The caller must subtract 128 times
/// the sum of the query, as for [`dot_bytes`].
///
/// # Panics
/// Panics if the lengths differ, exceed 65,536 or are not a multiple of 64.
#[must_use]
pub fn dot_byte_row(query: &[i8], row: &[u8]) -> i32 {
    assert!(query.len().is_multiple_of(64) && query.len() <= 65_536, "a query of whole words");
    assert_eq!(query.len(), row.len(), "vectors of two lengths");
    (BEST.dot_byte_row)(query, row)
}

/// Estimates the distances of a range of codes, and appends those whose lower bound is within the bound. Calls
/// [`Prefetch::step`] on `prefetch` once per two blocks.
///
/// # Panics
/// Panics if `scan.blocks` is not a whole number of blocks, or the range ends beyond them.
pub fn scan(scan: &Scan<'_>, prefetch: &mut Prefetch<'_>, found: &mut Vec<CodeCandidate>) {
    assert!(scan.blocks.len().is_multiple_of(block_bytes(scan.planes.len())), "whole blocks");
    assert!(
        scan.range.end.div_ceil(BLOCK) * block_bytes(scan.planes.len()) <= scan.blocks.len(),
        "codes that are there"
    );
    (BEST.scan)(scan, prefetch, found);
}

/// Calls a kernel for each row.
#[inline(always)]
fn for_rows(query: &[f32], rows: &[f32], out: &mut [f32], kernel: impl Fn(&[f32], &[f32]) -> f32) {
    if query.is_empty() {
        out.fill(0.0);
        return;
    }
    for (row, out) in rows.chunks_exact(query.len()).zip(out) {
        *out = kernel(query, row);
    }
}

/// Whole pieces of 16 components of two vectors, and the remainder of each.
type Pieces<'a, B> = (&'a [[f32; LANES]], &'a [[B; LANES]], &'a [f32], &'a [B]);

fn pieces<'a, B>(a: &'a [f32], b: &'a [B]) -> Pieces<'a, B> {
    let (a, a_rest) = a.as_chunks();
    let (b, b_rest) = b.as_chunks();
    (a, b, a_rest, b_rest)
}

/// Pads a piece with zeros to 16 components (invariant 3).
fn filled<T: Copy + Default>(rest: &[T]) -> [T; LANES] {
    let mut piece = [T::default(); LANES];
    piece[..rest.len()].copy_from_slice(rest);
    piece
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reference implementation of the invariants, component by component.
    fn oracle(a: &[f32], b: &[f32], term: impl Fn(f32, f32) -> f32) -> f32 {
        let mut lanes = [0.0f32; 64];
        for i in 0..a.len().next_multiple_of(16) {
            let (x, y) = (a.get(i).copied().unwrap_or(0.0), b.get(i).copied().unwrap_or(0.0));
            lanes[i % 64] += term(x, y);
        }
        let mut tree: Vec<f32> =
            (0..16).map(|j| (lanes[j] + lanes[16 + j]) + (lanes[32 + j] + lanes[48 + j])).collect();
        while tree.len() > 1 {
            let half = tree.len() / 2;
            tree = (0..half).map(|j| tree[j] + tree[j + half]).collect();
        }
        tree[0]
    }

    /// Distribution of test numbers. Even numbers are all of similar size, so that a different order of additions
    /// changes the last bits. Wild numbers are of every kind, but a few huge ones would hide such a change.
    #[derive(Clone, Copy, Debug)]
    enum Sizes {
        Even,
        Wild,
    }

    fn numbers(n: usize, seed: u64, sizes: Sizes) -> Vec<f32> {
        let mut x = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
        (0..n)
            .map(|i| {
                x ^= x << 13;
                x ^= x >> 7;
                x ^= x << 17;
                let unit = (x >> 40) as f32 / (1 << 23) as f32 - 1.0;
                if matches!(sizes, Sizes::Even) {
                    return unit;
                }
                match i % 11 {
                    3 => unit * 1e15,
                    5 => unit * 1e-30,
                    7 => -0.0,
                    8 => f32::from_bits((x >> 45) as u32),
                    _ => unit,
                }
            })
            .collect()
    }

    #[test]
    fn all_kernels_give_the_bits_of_the_definition() {
        let lengths = (0..=200).chain([384, 385, 768, 1_000, 1_536]);
        for (len, sizes) in lengths.flat_map(|len| [(len, Sizes::Even), (len, Sizes::Wild)]) {
            // Odd offsets, so that no load is aligned by chance.
            let (a, b) = (numbers(len + 3, len as u64, sizes), numbers(len + 1, len as u64 + 999, sizes));
            let (a, b) = (&a[3..], &b[1..]);
            let dot = oracle(a, b, |x, y| x * y).to_bits();
            let l2 = oracle(a, b, |x, y| (x - y) * (x - y)).to_bits();
            for kernels in available() {
                assert_eq!((kernels.dot)(a, b).to_bits(), dot, "dot of {len} {sizes:?} by {}", kernels.name);
                assert_eq!((kernels.squared_l2)(a, b).to_bits(), l2, "L2 of {len} {sizes:?} by {}", kernels.name);
            }
        }
    }

    #[test]
    fn kernels_of_halves_give_the_bits_of_widened_vectors() {
        let lengths = (0..=200).chain([384, 385, 768, 1_000, 1_536]);
        for (len, sizes) in lengths.flat_map(|len| [(len, Sizes::Even), (len, Sizes::Wild)]) {
            let (a, b) = (numbers(len + 3, len as u64, sizes), numbers(len + 1, len as u64 + 999, sizes));
            let b: Vec<f16> = b.into_iter().map(|x| f16::from_f32(x.clamp(-65_504.0, 65_504.0))).collect();
            let (a, b) = (&a[3..], &b[1..]);
            let widened: Vec<f32> = b.iter().map(|x| x.to_f32()).collect();
            for kernels in available() {
                let (dot, l2) = ((kernels.dot_half)(a, b), (kernels.squared_l2_half)(a, b));
                assert_eq!(dot.to_bits(), oracle(a, &widened, |x, y| x * y).to_bits(), "{len} by {}", kernels.name);
                let expected = oracle(a, &widened, |x, y| (x - y) * (x - y)).to_bits();
                assert_eq!(l2.to_bits(), expected, "L2 of {len} {sizes:?} by {}", kernels.name);
            }
        }
    }

    #[test]
    fn kernels_of_integers_give_the_bits_of_their_products() {
        let lengths = (0..=200).chain([384, 385, 768, 1_000, 1_536]);
        for (len, sizes) in lengths.flat_map(|len| [(len, Sizes::Even), (len, Sizes::Wild)]) {
            let a = numbers(len + 3, len as u64, sizes);
            let b: Vec<i8> = bytes(len + 1, len as u64 + 7).iter().map(|&byte| (byte as i8).max(-127)).collect();
            for scale in [1.0, 0.5 + 1.0 / 256.0, f32::MIN_POSITIVE, 1e15f32.floor()] {
                let (a, b) = (&a[3..], &b[1..]);
                let products: Vec<f32> = b.iter().map(|&code| f32::from(code) * scale).collect();
                let dot = oracle(a, &products, |x, y| x * y).to_bits();
                let l2 = oracle(a, &products, |x, y| (x - y) * (x - y)).to_bits();
                for kernels in available() {
                    let name = kernels.name;
                    assert_eq!((kernels.dot_int8)(a, b, scale).to_bits(), dot, "{len} {sizes:?} by {name}");
                    assert_eq!((kernels.squared_l2_int8)(a, b, scale).to_bits(), l2, "L2 of {len} {sizes:?} by {name}");
                }
            }
        }
    }

    /// Every 16-bit float: the widening instructions of each CPU are exact.
    #[test]
    fn all_kernels_widen_every_half_exactly() {
        for kernels in available() {
            for bits in (0..=u16::MAX).filter(|bits| f16::from_bits(*bits).is_finite()) {
                let half = f16::from_bits(bits);
                let scale = 2f64.powi(i32::from(bits >> 10 & 31).max(1) - 25);
                let digits = i32::from(bits & 1_023) + if bits >> 10 & 31 == 0 { 0 } else { 1_024 };
                let value = f64::from(digits) * scale * if bits >> 15 == 1 { -1.0 } else { 1.0 };
                assert_eq!(f64::from((kernels.dot_half)(&[1.0], &[half])), value, "{bits:04x} by {}", kernels.name);
                let whole = (kernels.dot_half)(&[1.0; LANES], &[half; LANES]);
                assert_eq!(f64::from(whole), 16.0 * value, "16 of {bits:04x} by {}", kernels.name);
            }
        }
    }

    #[test]
    fn many_rows_are_as_one_by_one() {
        for (rows, len) in (0..=9).flat_map(|rows| [0, 1, 16, 17, 63, 100, 384].map(|len| (rows, len))) {
            let (query, matrix) = (numbers(len, 1, Sizes::Even), numbers(rows * len, 2, Sizes::Even));
            for kernels in available() {
                let (mut dots, mut squares) = (vec![9.0; rows], vec![9.0; rows]);
                (kernels.dot_many)(&query, &matrix, &mut dots);
                (kernels.squared_l2_many)(&query, &matrix, &mut squares);
                for i in 0..rows {
                    let row = &matrix[i * len..(i + 1) * len];
                    assert_eq!(dots[i].to_bits(), (kernels.dot)(&query, row).to_bits());
                    assert_eq!(squares[i].to_bits(), (kernels.squared_l2)(&query, row).to_bits());
                }
            }
        }
    }

    #[test]
    fn all_kernels_rotate_to_the_same_bits() {
        for len in [64, 128, 192, 384, 768, 1_024, 1_536] {
            let flips: Vec<u32> = (0..4 * len as u32).map(|i| i.wrapping_mul(2_654_435_761) & 1 << 31).collect();
            let given = numbers(len, 5, Sizes::Even);
            let rotated = |kernels: &Kernels| {
                let mut values = given.clone();
                (kernels.rotate)(&flips, &mut values);
                values.iter().map(|x| x.to_bits()).collect::<Vec<_>>()
            };
            let first = rotated(&portable::KERNELS);
            for kernels in available() {
                assert_eq!(rotated(&kernels), first, "{len} by {}", kernels.name);
            }
        }
    }

    fn bytes(n: usize, seed: u64) -> Vec<u8> {
        numbers(n, seed, Sizes::Even).iter().map(|x| ((x + 1.0) * 128.0) as u8).collect()
    }

    #[test]
    fn all_kernels_multiply_bytes_as_integers() {
        for (len, rows) in [(64, 1), (64, 16), (128, 17), (384, 40), (1_536, 33)] {
            let mut blocks = ByteBlocks::new(len);
            let signed = |seed| bytes(len, seed).into_iter().map(|byte| (byte as i8).max(-127)).collect::<Vec<i8>>();
            (0..rows).for_each(|i| blocks.push(&signed(i)));
            // The largest possible bytes: the sums of a kernel that saturates would differ.
            blocks.push(&vec![127; len]);
            for query in [signed(999), vec![127; len], vec![-127; len]] {
                let offset: i32 = query.iter().map(|&byte| 128 * i32::from(byte)).sum();
                for kernels in available() {
                    let mut out = vec![0; blocks.bytes().len() / len];
                    (kernels.dot_bytes)(&query, blocks.bytes(), &mut out);
                    for (i, found) in out.iter().enumerate() {
                        let row = codes::byte_row(blocks.bytes(), len, i);
                        let bytes: Vec<u8> = row.iter().map(|byte| (byte + 128) as u8).collect();
                        assert_eq!((kernels.dot_byte_row)(&query, &bytes), *found, "row {i} by {}", kernels.name);
                        let expected: i32 = row.iter().zip(&query).map(|(&a, &b)| i32::from(a) * i32::from(b)).sum();
                        assert_eq!(found - offset, expected, "row {i} of {len} by {}", kernels.name);
                    }
                }
            }
        }
    }

    #[test]
    fn all_kernels_find_the_same_codes() {
        for (words, blocks, range) in
            [(1, 1, 0..8), (1, 3, 3..19), (6, 5, 0..40), (6, 4, 9..10), (7, 2, 8..8), (24, 3, 1..24)]
        {
            let raw: Vec<u64> = bytemuck::allocation::pod_collect_to_vec(&bytes(blocks * block_bytes(words), 3));
            let mut raw: Vec<u8> = bytemuck::allocation::pod_collect_to_vec(&raw);
            for tail in raw.chunks_exact_mut(block_bytes(words)).map(|block| &mut block[words * 64..]) {
                // Factors and additive terms as in real codes: small, and factors not negative.
                tail[..32].as_chunks_mut::<2>().0.iter_mut().for_each(|half| half[1] = 0x3D);
            }
            let aligned: Vec<u64> = bytemuck::allocation::pod_collect_to_vec(&raw);
            let planes: Vec<[u64; 4]> = (0..words as u64).map(|i| [i, !i, i << 7, 0x5555_5555 ^ i]).collect();
            for bound in [f32::NEG_INFINITY, -1.0, 0.0, 1.0, f32::INFINITY] {
                let blocks = bytemuck::cast_slice(&aligned);
                let range = range.clone();
                let task = Scan { planes: &planes, blocks, range, step: 0.01, error: 0.2, base: 0.1, bound };
                let results = available().into_iter().map(|kernels| {
                    let mut found = Vec::new();
                    (kernels.scan)(&task, &mut Prefetch::default(), &mut found);
                    (
                        kernels.name,
                        found
                            .iter()
                            .map(|f| (f.reference, f.lower_bound.to_bits(), f.error.to_bits()))
                            .collect::<Vec<_>>(),
                    )
                });
                let results: Vec<_> = results.collect();
                for (name, found) in &results {
                    assert_eq!(found, &results[0].1, "{words} words by {name}");
                }
                if bound == f32::INFINITY {
                    assert_eq!(results[0].1.len(), task.range.len());
                }
            }
        }
    }

    #[test]
    fn the_result_is_near_the_one_in_f64() {
        let (a, b): (Vec<f32>, Vec<f32>) = (0..384).map(|i| ((i as f32).sin(), (i as f32).cos())).unzip();
        let exact: f64 = a.iter().zip(&b).map(|(&x, &y)| f64::from(x) * f64::from(y)).sum();
        assert!((f64::from(dot(&a, &b)) - exact).abs() < 1e-4);
        let exact: f64 = a.iter().zip(&b).map(|(&x, &y)| (f64::from(x) - f64::from(y)).powi(2)).sum();
        assert!((f64::from(squared_l2(&a, &b)) - exact).abs() < 1e-3);
    }

    #[test]
    fn two_lengths_are_a_mistake_of_the_caller() {
        let calls: [fn(); 8] = [
            || _ = dot_int8(&[1.0], &[1; 2], 1.0),
            || _ = squared_l2_int8(&[1.0], &[1; 2], 1.0),
            || _ = dot_half(&[1.0], &[f16::ONE; 2]),
            || _ = squared_l2_half(&[1.0], &[f16::ONE; 2]),
            || _ = dot(&[1.0], &[1.0, 2.0]),
            || _ = squared_l2(&[1.0], &[1.0, 2.0]),
            || dot_many(&[1.0], &[1.0; 3], &mut [0.0; 2]),
            || squared_l2_many(&[1.0], &[1.0; 3], &mut [0.0; 2]),
        ];
        for (i, call) in calls.into_iter().enumerate() {
            assert!(std::panic::catch_unwind(call).is_err(), "call {i} took them");
        }
    }
}
