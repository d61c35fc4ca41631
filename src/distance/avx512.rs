//! The kernels for AVX-512: a group of 16 lanes is one register.

#![expect(unsafe_code, reason = "a function compiled for a CPU feature is called where the feature was found")]

use std::arch::x86_64::{
    __m512, _mm_add_ps, _mm_add_ss, _mm_cvtss_f32, _mm_movehl_ps, _mm_shuffle_ps, _mm256_add_ps,
    _mm256_castps256_ps128, _mm256_extractf128_ps, _mm512_add_ps, _mm512_castps512_ps256, _mm512_extractf32x8_ps,
    _mm512_loadu_ps, _mm512_maskz_loadu_ps, _mm512_mul_ps, _mm512_setzero_ps, _mm512_sub_ps,
};

use super::{GROUPS, Kernels, LANES, for_rows, pieces};

/// The kernels, if this CPU runs them.
pub(super) fn kernels() -> Option<Kernels> {
    let found = is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512dq");
    found.then_some(Kernels {
        name: "avx512",
        // SAFETY: AVX-512F and DQ were detected just now, and these pointers are made nowhere else.
        dot: |a, b| unsafe { dot(a, b) },
        // SAFETY: as above.
        squared_l2: |a, b| unsafe { squared_l2(a, b) },
        // SAFETY: as above.
        dot_many: |query, rows, out| unsafe { dot_many(query, rows, out) },
        // SAFETY: as above.
        squared_l2_many: |query, rows, out| unsafe { squared_l2_many(query, rows, out) },
    })
}

#[target_feature(enable = "avx512f,avx512dq")]
#[inline]
fn load(piece: &[f32; LANES]) -> __m512 {
    // SAFETY: the load is the 16 floats of `piece`; it needs no alignment.
    unsafe { _mm512_loadu_ps(piece.as_ptr()) }
}

/// Fewer than 16 components, the rest of the register zeros.
#[target_feature(enable = "avx512f,avx512dq")]
#[inline]
fn load_rest(rest: &[f32]) -> __m512 {
    debug_assert!(rest.len() < LANES);
    let mask = (1u16 << rest.len()) - 1;
    // SAFETY: the mask lets the load touch only the floats of `rest`.
    unsafe { _mm512_maskz_loadu_ps(mask, rest.as_ptr()) }
}

#[target_feature(enable = "avx512f,avx512dq")]
#[inline]
fn product(a: __m512, b: __m512) -> __m512 {
    _mm512_mul_ps(a, b)
}

#[target_feature(enable = "avx512f,avx512dq")]
#[inline]
fn square_of_difference(a: __m512, b: __m512) -> __m512 {
    let d = _mm512_sub_ps(a, b);
    _mm512_mul_ps(d, d)
}

/// The tree of invariant 4.
#[target_feature(enable = "avx512f,avx512dq")]
#[inline]
fn reduce([g0, g1, g2, g3]: [__m512; GROUPS]) -> f32 {
    let sixteen = _mm512_add_ps(_mm512_add_ps(g0, g1), _mm512_add_ps(g2, g3));
    let eight = _mm256_add_ps(_mm512_castps512_ps256(sixteen), _mm512_extractf32x8_ps::<1>(sixteen));
    let four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps::<1>(eight));
    let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps::<1>(two, two)))
}

/// Adds up `$term` over both vectors.
macro_rules! sum {
    ($a:expr, $b:expr, $term:ident) => {{
        let (a, b, a_rest, b_rest) = pieces($a, $b);
        let mut groups = [_mm512_setzero_ps(); GROUPS];
        let (a_rounds, a_last) = a.as_chunks::<GROUPS>();
        let (b_rounds, b_last) = b.as_chunks::<GROUPS>();
        for (a, b) in a_rounds.iter().zip(b_rounds) {
            for group in 0..GROUPS {
                groups[group] = _mm512_add_ps(groups[group], $term(load(&a[group]), load(&b[group])));
            }
        }
        for (group, (a, b)) in a_last.iter().zip(b_last).enumerate() {
            groups[group] = _mm512_add_ps(groups[group], $term(load(a), load(b)));
        }
        if !a_rest.is_empty() {
            let group = a.len() % GROUPS;
            groups[group] = _mm512_add_ps(groups[group], $term(load_rest(a_rest), load_rest(b_rest)));
        }
        reduce(groups)
    }};
}

#[target_feature(enable = "avx512f,avx512dq")]
fn dot(a: &[f32], b: &[f32]) -> f32 {
    sum!(a, b, product)
}

#[target_feature(enable = "avx512f,avx512dq")]
fn squared_l2(a: &[f32], b: &[f32]) -> f32 {
    sum!(a, b, square_of_difference)
}

#[target_feature(enable = "avx512f,avx512dq")]
fn dot_many(query: &[f32], rows: &[f32], out: &mut [f32]) {
    for_rows(query, rows, out, |a, b| dot(a, b));
}

#[target_feature(enable = "avx512f,avx512dq")]
fn squared_l2_many(query: &[f32], rows: &[f32], out: &mut [f32]) {
    for_rows(query, rows, out, |a, b| squared_l2(a, b));
}
