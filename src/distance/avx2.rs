//! Kernels for AVX2: a group of 16 lanes is two registers of 8.

#![expect(unsafe_code, reason = "a function compiled for a CPU feature is called where the feature was found")]

use std::arch::x86_64::{
    __m256, __m256i, _mm_add_ps, _mm_add_ss, _mm_cvtss_f32, _mm_loadl_epi64, _mm_loadu_si128, _mm_movehl_ps,
    _mm_shuffle_ps, _mm256_add_epi8, _mm256_add_epi32, _mm256_add_epi64, _mm256_add_ps, _mm256_and_si256,
    _mm256_castps256_ps128, _mm256_cvtepi8_epi32, _mm256_cvtepi32_ps, _mm256_cvtph_ps, _mm256_extractf128_ps,
    _mm256_hadd_epi32, _mm256_loadu_ps, _mm256_loadu_si256, _mm256_madd_epi16, _mm256_mul_ps, _mm256_sad_epu8,
    _mm256_set1_epi8, _mm256_set1_epi64x, _mm256_set1_ps, _mm256_setr_epi8, _mm256_setzero_ps, _mm256_setzero_si256,
    _mm256_shuffle_epi8, _mm256_slli_epi16, _mm256_srli_epi16, _mm256_storeu_si256, _mm256_sub_ps,
    _mm256_unpackhi_epi8, _mm256_unpacklo_epi8, _mm256_xor_si256,
};

use half::f16;

use super::{
    BLOCK, CodeCandidate, GROUPS, Kernels, LANES, Prefetch, ROWS, Scan, codes, filled, for_rows, pieces, portable,
};

/// Returns the kernels if this CPU supports AVX2. Every CPU with AVX2 has F16C, but a virtual machine may hide it.
pub(super) fn kernels() -> Option<Kernels> {
    let has_f16c = is_x86_feature_detected!("f16c");
    is_x86_feature_detected!("avx2").then_some(Kernels {
        name: "avx2",
        // SAFETY: AVX2 was detected above, and these function pointers are created only here.
        dot: |a, b| unsafe { dot(a, b) },
        // SAFETY: as above.
        squared_l2: |a, b| unsafe { squared_l2(a, b) },
        // SAFETY: as above, and F16C was detected.
        dot_half: if has_f16c { |a, b| unsafe { dot_half(a, b) } } else { portable::dot_half },
        // SAFETY: as above, and F16C was detected.
        squared_l2_half: if has_f16c { |a, b| unsafe { squared_l2_half(a, b) } } else { portable::squared_l2_half },
        // SAFETY: as above.
        dot_int8: |a, b, scale| unsafe { dot_int8(a, b, scale) },
        // SAFETY: as above.
        squared_l2_int8: |a, b, scale| unsafe { squared_l2_int8(a, b, scale) },
        // SAFETY: as above.
        dot_many: |query, rows, out| unsafe { dot_many(query, rows, out) },
        // SAFETY: as above.
        squared_l2_many: |query, rows, out| unsafe { squared_l2_many(query, rows, out) },
        // SAFETY: as above.
        rotate: |flips, values| unsafe { rotate(flips, values) },
        // SAFETY: as above.
        dot_bytes: |query, blocks, out| unsafe { dot_bytes(query, blocks, out) },
        // SAFETY: as above.
        dot_byte_row: |query, row| unsafe { dot_byte_row(query, row) },
        // SAFETY: as above.
        scan: |task, prefetch, found| unsafe { scan(task, prefetch, found) },
    })
}

/// Sixteen components in two registers.
type Piece = (__m256, __m256);

#[target_feature(enable = "avx2")]
#[inline]
fn load(piece: &[f32; LANES]) -> Piece {
    // SAFETY: both loads are within the 16 floats of `piece`, and need no alignment.
    unsafe { (_mm256_loadu_ps(piece.as_ptr()), _mm256_loadu_ps(piece.as_ptr().add(8))) }
}

/// Loads 16 halves, and widens them.
#[target_feature(enable = "avx2,f16c")]
#[inline]
fn load_half(piece: &[f16; LANES]) -> Piece {
    // SAFETY: both loads are within the 32 bytes of `piece`, and need no alignment.
    let [low, high] = [0, 8].map(|at| unsafe { _mm_loadu_si128(piece.as_ptr().add(at).cast()) });
    (_mm256_cvtph_ps(low), _mm256_cvtph_ps(high))
}

/// Loads 16 integers, and multiplies them by the scale.
#[target_feature(enable = "avx2")]
#[inline]
fn load_int8(piece: &[i8; LANES], scale: __m256) -> Piece {
    // SAFETY: both loads are within the 16 bytes of `piece`, and need no alignment.
    let [low, high] = [0, 8].map(|at| unsafe { _mm_loadl_epi64(piece.as_ptr().add(at).cast()) });
    let (low, high) = (_mm256_cvtepi8_epi32(low), _mm256_cvtepi8_epi32(high));
    product((_mm256_cvtepi32_ps(low), _mm256_cvtepi32_ps(high)), (scale, scale))
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

/// Reduces the groups by the tree of invariant 4.
#[target_feature(enable = "avx2")]
#[inline]
fn reduce([g0, g1, g2, g3]: [Piece; GROUPS]) -> f32 {
    let (low, high) = plus(plus(g0, g1), plus(g2, g3));
    let eight = _mm256_add_ps(low, high);
    let four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps::<1>(eight));
    let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps::<1>(two, two)))
}

/// Sums `$term` over two vectors. `$load` loads pieces of the second one.
macro_rules! sum {
    ($a:expr, $b:expr, $term:ident, $load:expr) => {{
        let (a, b, a_rest, b_rest) = pieces($a, $b);
        let mut groups = [(_mm256_setzero_ps(), _mm256_setzero_ps()); GROUPS];
        let (a_rounds, a_last) = a.as_chunks::<GROUPS>();
        let (b_rounds, b_last) = b.as_chunks::<GROUPS>();
        for (a, b) in a_rounds.iter().zip(b_rounds) {
            for group in 0..GROUPS {
                groups[group] = plus(groups[group], $term(load(&a[group]), ($load)(&b[group])));
            }
        }
        for (group, (a, b)) in a_last.iter().zip(b_last).enumerate() {
            groups[group] = plus(groups[group], $term(load(a), ($load)(b)));
        }
        if !a_rest.is_empty() {
            let group = a.len() % GROUPS;
            groups[group] = plus(groups[group], $term(load(&filled(a_rest)), ($load)(&filled(b_rest))));
        }
        reduce(groups)
    }};
}

#[target_feature(enable = "avx2")]
fn dot(a: &[f32], b: &[f32]) -> f32 {
    sum!(a, b, product, load)
}

#[target_feature(enable = "avx2")]
fn squared_l2(a: &[f32], b: &[f32]) -> f32 {
    sum!(a, b, square_of_difference, load)
}

#[target_feature(enable = "avx2,f16c")]
fn dot_half(a: &[f32], b: &[f16]) -> f32 {
    sum!(a, b, product, load_half)
}

#[target_feature(enable = "avx2,f16c")]
fn squared_l2_half(a: &[f32], b: &[f16]) -> f32 {
    sum!(a, b, square_of_difference, load_half)
}

#[target_feature(enable = "avx2")]
fn dot_int8(a: &[f32], b: &[i8], scale: f32) -> f32 {
    let scale = _mm256_set1_ps(scale);
    sum!(a, b, product, |piece| load_int8(piece, scale))
}

#[target_feature(enable = "avx2")]
fn squared_l2_int8(a: &[f32], b: &[i8], scale: f32) -> f32 {
    let scale = _mm256_set1_ps(scale);
    sum!(a, b, square_of_difference, |piece| load_int8(piece, scale))
}

#[target_feature(enable = "avx2")]
fn dot_many(query: &[f32], rows: &[f32], out: &mut [f32]) {
    for_rows(query, rows, out, |a, b| dot(a, b));
}

#[target_feature(enable = "avx2")]
fn squared_l2_many(query: &[f32], rows: &[f32], out: &mut [f32]) {
    for_rows(query, rows, out, |a, b| squared_l2(a, b));
}

#[target_feature(enable = "avx2")]
fn rotate(flips: &[u32], values: &mut [f32]) {
    codes::rotate(flips, values, &codes::Plain);
}

#[target_feature(enable = "avx2")]
#[inline]
fn load_bytes(bytes: &[u8; 32]) -> __m256i {
    // SAFETY: the load covers exactly the 32 bytes of `bytes`, and needs no alignment.
    unsafe { _mm256_loadu_si256(bytes.as_ptr().cast()) }
}

#[target_feature(enable = "avx2")]
fn dot_bytes(query: &[i8], blocks: &[u8], out: &mut [i32]) {
    let zero = _mm256_setzero_si256();
    for (block, out) in blocks.chunks_exact(query.len() * ROWS).zip(out.as_chunks_mut::<ROWS>().0) {
        // Each half of the block holds 8 rows and has two accumulators.
        let mut sums = [[zero; 2]; 2];
        for (rows, query) in block.as_chunks::<64>().0.iter().zip(query.as_chunks::<4>().0) {
            let [q0, q1, q2, q3] = query.map(|byte| u64::from(i16::from(byte) as u16));
            let query = _mm256_set1_epi64x((q0 | q1 << 16 | q2 << 32 | q3 << 48) as i64);
            for (rows, sums) in rows.as_chunks::<32>().0.iter().zip(&mut sums) {
                let rows = load_bytes(rows);
                let low = _mm256_madd_epi16(_mm256_unpacklo_epi8(rows, zero), query);
                let high = _mm256_madd_epi16(_mm256_unpackhi_epi8(rows, zero), query);
                *sums = [_mm256_add_epi32(sums[0], low), _mm256_add_epi32(sums[1], high)];
            }
        }
        for (out, [low, high]) in out.as_chunks_mut::<8>().0.iter_mut().zip(sums) {
            // Unpacking and pairwise addition both work within halves of the register, so the sums are in the order of
            // the rows.
            let sum = _mm256_hadd_epi32(low, high);
            // SAFETY: the store covers exactly the eight numbers of `out`, and needs no alignment.
            unsafe { _mm256_storeu_si256(out.as_mut_ptr().cast(), sum) };
        }
    }
}

#[target_feature(enable = "avx2")]
fn dot_byte_row(query: &[i8], row: &[u8]) -> i32 {
    // Integer sums are the same in any order, so the compiler may vectorise this loop.
    row.iter().zip(query).map(|(&a, &b)| i32::from(a) * i32::from(b)).sum()
}

#[target_feature(enable = "avx2")]
#[inline]
fn ones(bytes: __m256i) -> __m256i {
    let counts = _mm256_setr_epi8(
        0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4, 0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4,
    );
    let nibble = _mm256_set1_epi8(15);
    let low = _mm256_shuffle_epi8(counts, _mm256_and_si256(bytes, nibble));
    let high = _mm256_shuffle_epi8(counts, _mm256_and_si256(_mm256_srli_epi16::<4>(bytes), nibble));
    _mm256_add_epi8(low, high)
}

#[target_feature(enable = "avx2")]
fn scan(scan: &Scan<'_>, prefetch: &mut Prefetch<'_>, found: &mut Vec<CodeCandidate>) {
    for block in scan.block_range() {
        if block % 2 == 0 {
            prefetch.step();
        }
        let (words, tail) = scan.block(block);
        let mut sums = [_mm256_setzero_si256(); 2];
        for (words, planes) in words.as_chunks::<BLOCK>().0.iter().zip(scan.planes) {
            let words: &[u8; 64] = bytemuck::cast_ref(words);
            for (words, sum) in words.as_chunks::<32>().0.iter().zip(&mut sums) {
                let words = load_bytes(words);
                // A byte is at most 8 × 15 = 120, and its partial sums leave the top bit free. So no shift carries a
                // bit into the next byte.
                let mut weighted = _mm256_setzero_si256();
                for &bits in planes.iter().rev() {
                    let different = ones(_mm256_xor_si256(words, _mm256_set1_epi64x(bits as i64)));
                    weighted = _mm256_add_epi8(_mm256_slli_epi16::<1>(weighted), different);
                }
                *sum = _mm256_add_epi64(*sum, _mm256_sad_epu8(weighted, _mm256_setzero_si256()));
            }
        }
        let mut wide = [0u64; BLOCK];
        for (wide, sum) in wide.as_chunks_mut::<4>().0.iter_mut().zip(sums) {
            // SAFETY: the store covers exactly the four numbers of `wide`, and needs no alignment.
            unsafe { _mm256_storeu_si256(wide.as_mut_ptr().cast(), sum) };
        }
        scan.keep(block, &wide.map(|sum| sum as u32), tail, found);
    }
}
