//! The kernels for AVX2: a group of 16 lanes is two registers of 8.

#![expect(unsafe_code, reason = "a function compiled for a CPU feature is called where the feature was found")]

use std::arch::x86_64::{
    __m256, _mm_add_ps, _mm_add_ss, _mm_cvtss_f32, _mm_movehl_ps, _mm_shuffle_ps, _mm256_add_ps,
    _mm256_castps256_ps128, _mm256_extractf128_ps, _mm256_loadu_ps, _mm256_mul_ps, _mm256_setzero_ps, _mm256_sub_ps,
};

use super::{GROUPS, Kernels, LANES, filled, for_rows, pieces};

/// The kernels, if this CPU runs them.
pub(super) fn kernels() -> Option<Kernels> {
    is_x86_feature_detected!("avx2").then_some(Kernels {
        name: "avx2",
        // SAFETY: AVX2 was detected just now, and these pointers are made nowhere else.
        dot: |a, b| unsafe { dot(a, b) },
        // SAFETY: as above.
        squared_l2: |a, b| unsafe { squared_l2(a, b) },
        // SAFETY: as above.
        dot_many: |query, rows, out| unsafe { dot_many(query, rows, out) },
        // SAFETY: as above.
        squared_l2_many: |query, rows, out| unsafe { squared_l2_many(query, rows, out) },
    })
}

/// Sixteen components in two registers.
type Piece = (__m256, __m256);

#[target_feature(enable = "avx2")]
#[inline]
fn load(piece: &[f32; LANES]) -> Piece {
    // SAFETY: both loads lie within the 16 floats of `piece`; they need no alignment.
    unsafe { (_mm256_loadu_ps(piece.as_ptr()), _mm256_loadu_ps(piece.as_ptr().add(8))) }
}

#[target_feature(enable = "avx2")]
#[inline]
fn product(a: Piece, b: Piece) -> Piece {
    (_mm256_mul_ps(a.0, b.0), _mm256_mul_ps(a.1, b.1))
}

#[target_feature(enable = "avx2")]
#[inline]
fn square_of_difference(a: Piece, b: Piece) -> Piece {
    let d = (_mm256_sub_ps(a.0, b.0), _mm256_sub_ps(a.1, b.1));
    product(d, d)
}

#[target_feature(enable = "avx2")]
#[inline]
fn plus(a: Piece, b: Piece) -> Piece {
    (_mm256_add_ps(a.0, b.0), _mm256_add_ps(a.1, b.1))
}

/// The tree of invariant 4.
#[target_feature(enable = "avx2")]
#[inline]
fn reduce([g0, g1, g2, g3]: [Piece; GROUPS]) -> f32 {
    let (low, high) = plus(plus(g0, g1), plus(g2, g3));
    let eight = _mm256_add_ps(low, high);
    let four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps::<1>(eight));
    let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps::<1>(two, two)))
}

/// Adds up `$term` over both vectors.
macro_rules! sum {
    ($a:expr, $b:expr, $term:ident) => {{
        let (a, b, a_rest, b_rest) = pieces($a, $b);
        let mut groups = [(_mm256_setzero_ps(), _mm256_setzero_ps()); GROUPS];
        let (a_rounds, a_last) = a.as_chunks::<GROUPS>();
        let (b_rounds, b_last) = b.as_chunks::<GROUPS>();
        for (a, b) in a_rounds.iter().zip(b_rounds) {
            for group in 0..GROUPS {
                groups[group] = plus(groups[group], $term(load(&a[group]), load(&b[group])));
            }
        }
        for (group, (a, b)) in a_last.iter().zip(b_last).enumerate() {
            groups[group] = plus(groups[group], $term(load(a), load(b)));
        }
        if !a_rest.is_empty() {
            let group = a.len() % GROUPS;
            groups[group] = plus(groups[group], $term(load(&filled(a_rest)), load(&filled(b_rest))));
        }
        reduce(groups)
    }};
}

#[target_feature(enable = "avx2")]
fn dot(a: &[f32], b: &[f32]) -> f32 {
    sum!(a, b, product)
}

#[target_feature(enable = "avx2")]
fn squared_l2(a: &[f32], b: &[f32]) -> f32 {
    sum!(a, b, square_of_difference)
}

#[target_feature(enable = "avx2")]
fn dot_many(query: &[f32], rows: &[f32], out: &mut [f32]) {
    for_rows(query, rows, out, |a, b| dot(a, b));
}

#[target_feature(enable = "avx2")]
fn squared_l2_many(query: &[f32], rows: &[f32], out: &mut [f32]) {
    for_rows(query, rows, out, |a, b| squared_l2(a, b));
}
