//! Kernels for AVX-512: a group of 16 lanes is one register.

#![expect(unsafe_code, reason = "a function compiled for a CPU feature is called where the feature was found")]

use std::arch::x86_64::{
    __m256i, __m512, __m512i, _CMP_LE_OQ, _mm_add_ps, _mm_add_ss, _mm_cvtss_f32, _mm_loadu_si128, _mm_movehl_ps,
    _mm_shuffle_ps, _mm256_add_ps, _mm256_castps256_ps128, _mm256_castsi128_si256, _mm256_extractf128_ps,
    _mm256_inserti128_si256, _mm256_loadu_si256, _mm512_add_epi32, _mm512_add_epi64, _mm512_add_ps,
    _mm512_castps_si512, _mm512_castps512_ps256, _mm512_castsi256_si512, _mm512_castsi512_ps, _mm512_cmp_ps_mask,
    _mm512_cvtepi8_epi32, _mm512_cvtepi32_ps, _mm512_cvtepi64_epi32, _mm512_cvtepu16_epi32, _mm512_cvtph_ps,
    _mm512_dpbusd_epi32, _mm512_extractf32x8_ps, _mm512_inserti64x4, _mm512_loadu_ps, _mm512_loadu_si512,
    _mm512_mask_sub_ps, _mm512_maskz_loadu_ps, _mm512_mul_ps, _mm512_permute_ps, _mm512_popcnt_epi64,
    _mm512_reduce_add_epi32, _mm512_set1_epi32, _mm512_set1_epi64, _mm512_set1_ps, _mm512_setzero_ps,
    _mm512_setzero_si512, _mm512_shuffle_f32x4, _mm512_slli_epi32, _mm512_slli_epi64, _mm512_storeu_ps,
    _mm512_storeu_si512, _mm512_sub_epi32, _mm512_sub_ps, _mm512_xor_si512, _mm512_zextsi256_si512,
};

use half::f16;

use super::{BLOCK, CodeCandidate, GROUPS, Kernels, LANES, Prefetch, ROWS, Scan, codes, filled, for_rows, pieces};

/// Returns the kernels if this CPU supports the required AVX-512 extensions.
pub(super) fn kernels() -> Option<Kernels> {
    let found = is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512dq")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512vl")
        && is_x86_feature_detected!("avx512vnni")
        && is_x86_feature_detected!("avx512vpopcntdq");
    found.then_some(Kernels {
        name: "avx512",
        // SAFETY: all features that the functions here are compiled for were detected above, and these function
        // pointers are created only here.
        dot: |a, b| unsafe { dot(a, b) },
        // SAFETY: as above.
        squared_l2: |a, b| unsafe { squared_l2(a, b) },
        // SAFETY: as above.
        dot_half: |a, b| unsafe { dot_half(a, b) },
        // SAFETY: as above.
        squared_l2_half: |a, b| unsafe { squared_l2_half(a, b) },
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

#[target_feature(enable = "avx512f,avx512dq")]
#[inline]
fn load(piece: &[f32; LANES]) -> __m512 {
    // SAFETY: the load covers exactly the 16 floats of `piece`, and needs no alignment.
    unsafe { _mm512_loadu_ps(piece.as_ptr()) }
}

/// Loads fewer than 16 components; the rest of the register is zeros.
#[target_feature(enable = "avx512f,avx512dq")]
#[inline]
fn load_rest(rest: &[f32]) -> __m512 {
    debug_assert!(rest.len() < LANES);
    let mask = (1u16 << rest.len()) - 1;
    // SAFETY: the mask limits the load to the floats of `rest`.
    unsafe { _mm512_maskz_loadu_ps(mask, rest.as_ptr()) }
}

/// Loads 16 halves, and widens them.
#[target_feature(enable = "avx512f")]
#[inline]
fn load_half(piece: &[f16; LANES]) -> __m512 {
    // SAFETY: the load covers exactly the 32 bytes of `piece`, and needs no alignment.
    _mm512_cvtph_ps(unsafe { _mm256_loadu_si256(piece.as_ptr().cast()) })
}

/// Loads 16 integers, and multiplies them by the scale.
#[target_feature(enable = "avx512f")]
#[inline]
fn load_int8(piece: &[i8; LANES], scale: __m512) -> __m512 {
    // SAFETY: the load covers exactly the 16 bytes of `piece`, and needs no alignment.
    let piece = unsafe { _mm_loadu_si128(piece.as_ptr().cast()) };
    _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(piece)), scale)
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

/// Reduces the groups by the tree of invariant 4.
#[target_feature(enable = "avx512f,avx512dq")]
#[inline]
fn reduce([g0, g1, g2, g3]: [__m512; GROUPS]) -> f32 {
    let sixteen = _mm512_add_ps(_mm512_add_ps(g0, g1), _mm512_add_ps(g2, g3));
    let eight = _mm256_add_ps(_mm512_castps512_ps256(sixteen), _mm512_extractf32x8_ps::<1>(sixteen));
    let four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps::<1>(eight));
    let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps::<1>(two, two)))
}

/// Sums `$term` over two vectors. `$load` and `$load_rest` load pieces of the second one.
macro_rules! sum {
    ($a:expr, $b:expr, $term:ident, $load:expr, $load_rest:expr) => {{
        let (a, b, a_rest, b_rest) = pieces($a, $b);
        let mut groups = [_mm512_setzero_ps(); GROUPS];
        let (a_rounds, a_last) = a.as_chunks::<GROUPS>();
        let (b_rounds, b_last) = b.as_chunks::<GROUPS>();
        for (a, b) in a_rounds.iter().zip(b_rounds) {
            for group in 0..GROUPS {
                groups[group] = _mm512_add_ps(groups[group], $term(load(&a[group]), ($load)(&b[group])));
            }
        }
        for (group, (a, b)) in a_last.iter().zip(b_last).enumerate() {
            groups[group] = _mm512_add_ps(groups[group], $term(load(a), ($load)(b)));
        }
        if !a_rest.is_empty() {
            let group = a.len() % GROUPS;
            groups[group] = _mm512_add_ps(groups[group], $term(load_rest(a_rest), ($load_rest)(b_rest)));
        }
        reduce(groups)
    }};
}

#[target_feature(enable = "avx512f,avx512dq")]
fn dot(a: &[f32], b: &[f32]) -> f32 {
    sum!(a, b, product, load, load_rest)
}

#[target_feature(enable = "avx512f,avx512dq")]
fn squared_l2(a: &[f32], b: &[f32]) -> f32 {
    sum!(a, b, square_of_difference, load, load_rest)
}

#[target_feature(enable = "avx512f,avx512dq")]
fn dot_half(a: &[f32], b: &[f16]) -> f32 {
    sum!(a, b, product, load_half, |rest| load_half(&filled(rest)))
}

#[target_feature(enable = "avx512f,avx512dq")]
fn squared_l2_half(a: &[f32], b: &[f16]) -> f32 {
    sum!(a, b, square_of_difference, load_half, |rest| load_half(&filled(rest)))
}

#[target_feature(enable = "avx512f,avx512dq")]
fn dot_int8(a: &[f32], b: &[i8], scale: f32) -> f32 {
    let scale = _mm512_set1_ps(scale);
    sum!(a, b, product, |piece| load_int8(piece, scale), |rest| load_int8(&filled(rest), scale))
}

#[target_feature(enable = "avx512f,avx512dq")]
fn squared_l2_int8(a: &[f32], b: &[i8], scale: f32) -> f32 {
    let scale = _mm512_set1_ps(scale);
    sum!(a, b, square_of_difference, |piece| load_int8(piece, scale), |rest| load_int8(&filled(rest), scale))
}

/// Rows that are compared with the query together, so that each piece of the query is loaded once for all of them.
const TOGETHER: usize = 4;

/// Sums `$term` over the query and each row, with the same bits as `sum!`.
macro_rules! sum_many {
    ($query:expr, $rows:expr, $out:expr, $term:ident, $one:ident) => {{
        let (query, len) = ($query, $query.len());
        let (pieces, rest) = query.as_chunks::<LANES>();
        let count = if len == 0 { 0 } else { $out.len() / TOGETHER * TOGETHER };
        let (some, out) = ($rows[..count * len].chunks_exact((TOGETHER * len).max(1)), &mut *$out);
        let (first, last) = out.split_at_mut(count);
        for (rows, out) in some.zip(first.as_chunks_mut::<TOGETHER>().0) {
            let rows: [&[f32]; TOGETHER] = std::array::from_fn(|i| &rows[i * len..(i + 1) * len]);
            let of_rows = rows.map(|row| row.as_chunks::<LANES>());
            let mut groups = [[_mm512_setzero_ps(); GROUPS]; TOGETHER];
            let (rounds, last) = pieces.as_chunks::<GROUPS>();
            // The iterators are zipped to avoid a bounds check in each round.
            let [a, b, c, d] = of_rows.map(|(row, _)| row.as_chunks::<GROUPS>());
            for ((((query, a), b), c), d) in rounds.iter().zip(a.0).zip(b.0).zip(c.0).zip(d.0) {
                for group in 0..GROUPS {
                    let piece = load(&query[group]);
                    for (groups, row) in groups.iter_mut().zip([a, b, c, d]) {
                        groups[group] = _mm512_add_ps(groups[group], $term(piece, load(&row[group])));
                    }
                }
            }
            for (group, query) in last.iter().enumerate() {
                let piece = load(query);
                for (groups, row) in groups.iter_mut().zip([a.1, b.1, c.1, d.1]) {
                    groups[group] = _mm512_add_ps(groups[group], $term(piece, load(&row[group])));
                }
            }
            if !rest.is_empty() {
                let (group, piece) = (pieces.len() % GROUPS, load_rest(rest));
                for i in 0..TOGETHER {
                    let term = $term(piece, load_rest(of_rows[i].1));
                    groups[i][group] = _mm512_add_ps(groups[i][group], term);
                }
            }
            for i in 0..TOGETHER {
                out[i] = reduce(groups[i]);
            }
        }
        for_rows(query, &$rows[count * len..], last, |a, b| $one(a, b));
    }};
}

#[target_feature(enable = "avx512f,avx512dq")]
fn dot_many(query: &[f32], rows: &[f32], out: &mut [f32]) {
    sum_many!(query, rows, out, product, dot);
}

#[target_feature(enable = "avx512f,avx512dq")]
fn squared_l2_many(query: &[f32], rows: &[f32], out: &mut [f32]) {
    sum_many!(query, rows, out, square_of_difference, squared_l2);
}

#[target_feature(enable = "avx512f,avx512dq")]
fn rotate(flips: &[u32], values: &mut [f32]) {
    codes::rotate(flips, values, &Registers(()));
}

/// Token for the AVX-512 steps of a rotation, created only where these kernels run.
struct Registers(());

impl codes::Steps for Registers {
    #[inline(always)]
    fn flip(&self, row: &mut [f32; LANES], flips: &[u32; LANES]) {
        // SAFETY: `Registers` is created only in a function compiled for AVX-512F and AVX-512DQ.
        unsafe { flip(row, flips) }
    }

    #[inline(always)]
    fn butterfly(&self, a: &mut [f32; LANES], b: &mut [f32; LANES], scale: f32) {
        // SAFETY: as above.
        unsafe { butterfly(a, b, scale) }
    }

    #[inline(always)]
    fn mix(&self, row: &mut [f32; LANES], scale: f32) {
        // SAFETY: as above.
        unsafe { mix(row, scale) }
    }
}

#[target_feature(enable = "avx512f")]
#[inline]
fn store(row: &mut [f32; LANES], x: __m512) {
    // SAFETY: the store covers exactly the 16 floats of `row`, and needs no alignment.
    unsafe { _mm512_storeu_ps(row.as_mut_ptr(), x) };
}

#[target_feature(enable = "avx512f,avx512dq")]
#[inline]
fn flip(row: &mut [f32; LANES], flips: &[u32; LANES]) {
    let flips = load_bytes(bytemuck::cast_ref(flips));
    let flipped = _mm512_xor_si512(_mm512_castps_si512(load(row)), flips);
    store(row, _mm512_castsi512_ps(flipped));
}

#[target_feature(enable = "avx512f,avx512dq")]
#[inline]
fn butterfly(a: &mut [f32; LANES], b: &mut [f32; LANES], scale: f32) {
    let (x, y) = (load(a), load(b));
    let (mut sum, mut difference) = (_mm512_add_ps(x, y), _mm512_sub_ps(x, y));
    if scale != 1.0 {
        (sum, difference) =
            (_mm512_mul_ps(sum, _mm512_set1_ps(scale)), _mm512_mul_ps(difference, _mm512_set1_ps(scale)));
    }
    store(a, sum);
    store(b, difference);
}

#[target_feature(enable = "avx512f,avx512dq")]
#[inline]
fn mix(row: &mut [f32; LANES], scale: f32) {
    let mut x = load(row);
    let other = _mm512_permute_ps::<0b10_11_00_01>(x);
    x = _mm512_mask_sub_ps(_mm512_add_ps(x, other), 0xAAAA, other, x);
    let other = _mm512_permute_ps::<0b01_00_11_10>(x);
    x = _mm512_mask_sub_ps(_mm512_add_ps(x, other), 0xCCCC, other, x);
    let other = _mm512_shuffle_f32x4::<0b10_11_00_01>(x, x);
    x = _mm512_mask_sub_ps(_mm512_add_ps(x, other), 0xF0F0, other, x);
    let other = _mm512_shuffle_f32x4::<0b01_00_11_10>(x, x);
    x = _mm512_mask_sub_ps(_mm512_add_ps(x, other), 0xFF00, other, x);
    store(row, _mm512_mul_ps(x, _mm512_set1_ps(scale)));
}

#[target_feature(enable = "avx512f")]
#[inline]
fn load_bytes(bytes: &[u8; 64]) -> __m512i {
    // SAFETY: the load covers exactly the 64 bytes of `bytes`, and needs no alignment.
    unsafe { _mm512_loadu_si512(bytes.as_ptr().cast()) }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn dot_bytes(query: &[i8], blocks: &[u8], out: &mut [i32]) {
    for (block, out) in blocks.chunks_exact(query.len() * ROWS).zip(out.as_chunks_mut::<ROWS>().0) {
        // Four alternating sums hide the latency. Integer sums are the same in any order.
        let mut sums = [_mm512_setzero_si512(); 4];
        for (rows, query) in block.as_chunks::<256>().0.iter().zip(query.as_chunks::<16>().0) {
            for (i, (rows, query)) in rows.as_chunks::<64>().0.iter().zip(query.as_chunks::<4>().0).enumerate() {
                let query = _mm512_set1_epi32(i32::from_le_bytes(query.map(|byte| byte as u8)));
                sums[i] = _mm512_dpbusd_epi32(sums[i], load_bytes(rows), query);
            }
        }
        let sum = _mm512_add_epi32(_mm512_add_epi32(sums[0], sums[1]), _mm512_add_epi32(sums[2], sums[3]));
        // SAFETY: the store covers exactly the 16 numbers of `out`, and needs no alignment.
        unsafe { _mm512_storeu_si512(out.as_mut_ptr().cast(), sum) };
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn dot_byte_row(query: &[i8], row: &[u8]) -> i32 {
    let mut sums = [_mm512_setzero_si512(); 2];
    for (i, (row, query)) in row.as_chunks::<64>().0.iter().zip(query.as_chunks::<64>().0).enumerate() {
        let query = load_bytes(bytemuck::cast_ref(query));
        sums[i % 2] = _mm512_dpbusd_epi32(sums[i % 2], load_bytes(row), query);
    }
    _mm512_reduce_add_epi32(_mm512_add_epi32(sums[0], sums[1]))
}

/// Computes the numbers of differing bits of sixteen codes, weighted by their planes. The bits of a plane are loaded
/// once for both blocks.
#[target_feature(enable = "avx512f,avx512vpopcntdq")]
#[inline]
fn differing(low: &[u64], high: &[u64], planes: &[[u64; 4]]) -> __m512i {
    let (mut lows, mut highs) = ([_mm512_setzero_si512(); 4], [_mm512_setzero_si512(); 4]);
    let words = low.as_chunks::<BLOCK>().0.iter().zip(high.as_chunks::<BLOCK>().0);
    for ((low, high), bits) in words.zip(planes) {
        let (low, high) = (load_bytes(bytemuck::cast_ref(low)), load_bytes(bytemuck::cast_ref(high)));
        for i in 0..4 {
            let bits = _mm512_set1_epi64(bits[i] as i64);
            lows[i] = _mm512_add_epi64(lows[i], _mm512_popcnt_epi64(_mm512_xor_si512(low, bits)));
            highs[i] = _mm512_add_epi64(highs[i], _mm512_popcnt_epi64(_mm512_xor_si512(high, bits)));
        }
    }
    let low = _mm512_castsi256_si512(weighted(lows));
    _mm512_inserti64x4::<1>(low, weighted(highs))
}

/// Computes the numbers of differing bits of eight codes, weighted by their planes. The upper eight lanes are zeros.
#[target_feature(enable = "avx512f,avx512vpopcntdq")]
#[inline]
fn differing_alone(words: &[u64], planes: &[[u64; 4]]) -> __m512i {
    let mut sums = [_mm512_setzero_si512(); 4];
    for (words, bits) in words.as_chunks::<BLOCK>().0.iter().zip(planes) {
        let words = load_bytes(bytemuck::cast_ref(words));
        for i in 0..4 {
            let different = _mm512_xor_si512(words, _mm512_set1_epi64(bits[i] as i64));
            sums[i] = _mm512_add_epi64(sums[i], _mm512_popcnt_epi64(different));
        }
    }
    _mm512_zextsi256_si512(weighted(sums))
}

#[target_feature(enable = "avx512f")]
#[inline]
fn weighted([p0, p1, p2, p3]: [__m512i; 4]) -> __m256i {
    let low = _mm512_add_epi64(p0, _mm512_slli_epi64::<1>(p1));
    let high = _mm512_add_epi64(p2, _mm512_slli_epi64::<1>(p3));
    _mm512_cvtepi64_epi32(_mm512_add_epi64(low, _mm512_slli_epi64::<2>(high)))
}

#[target_feature(enable = "avx512f,avx512dq,avx512bw,avx512vl,avx512vpopcntdq")]
fn scan(scan: &Scan<'_>, prefetch: &mut Prefetch<'_>, found: &mut Vec<CodeCandidate>) {
    // The compiler generates better code for loops of known length.
    match scan.planes.len() {
        6 => scan_words::<6>(scan, prefetch, found),
        12 => scan_words::<12>(scan, prefetch, found),
        _ => scan_words::<0>(scan, prefetch, found),
    }
}

/// Scans codes of `WORDS` words, or of any number of words if `WORDS` is 0.
#[target_feature(enable = "avx512f,avx512dq,avx512bw,avx512vl,avx512vpopcntdq")]
fn scan_words<const WORDS: usize>(scan: &Scan<'_>, prefetch: &mut Prefetch<'_>, found: &mut Vec<CodeCandidate>) {
    let planes = if WORDS == 0 { scan.planes } else { &scan.planes[..WORDS] };
    let (step, error) = (_mm512_set1_ps(scan.step), _mm512_set1_ps(scan.error));
    let (base, bound) = (_mm512_set1_ps(scan.base), _mm512_set1_ps(scan.bound));
    let most = _mm512_set1_epi32(scan.most());
    let blocks = scan.block_range();
    let bytes = codes::block_bytes(planes.len());
    let mut rest = &scan.blocks[blocks.start * bytes..blocks.end * bytes];
    let mut at = blocks.start;
    while !rest.is_empty() {
        prefetch.step();
        // Each round takes two blocks. If only one is left, its own tail also fills the upper half, which the mask
        // excludes.
        let (low, after) = rest.split_at(bytes);
        let (words, tail) = codes::parts(low);
        let (different, next_tail);
        if let Some((high, after)) = after.split_at_checked(bytes) {
            let (next_words, high_tail) = codes::parts(high);
            (different, next_tail) = (differing(words, next_words, planes), high_tail);
            rest = after;
        } else {
            (different, next_tail) = (differing_alone(words, planes), tail);
            rest = after;
        }
        let sum = _mm512_sub_epi32(most, _mm512_slli_epi32::<1>(different));
        let product = _mm512_mul_ps(step, _mm512_cvtepi32_ps(sum));
        let factors = halves(&tail.factors, &next_tail.factors);
        let adds = halves(&tail.adds, &next_tail.adds);
        let taken = _mm512_mul_ps(factors, _mm512_add_ps(product, error));
        let lower_bound = _mm512_sub_ps(_mm512_add_ps(base, adds), taken);
        let within = _mm512_cmp_ps_mask::<_CMP_LE_OQ>(lower_bound, bound);
        if within != 0 {
            let second = if at + 1 < blocks.end { scan.lanes(at + 1) } else { 0 };
            let mut within = within & (u16::from(scan.lanes(at)) | u16::from(second) << BLOCK);
            let (mut distances, mut errors) = ([0.0f32; LANES], [0.0f32; LANES]);
            store(&mut distances, lower_bound);
            store(&mut errors, _mm512_mul_ps(factors, error));
            while within != 0 {
                let lane = within.trailing_zeros() as usize;
                let references = if lane < BLOCK { &tail.references } else { &next_tail.references };
                let reference = references[lane % BLOCK];
                found.push(CodeCandidate { reference, lower_bound: distances[lane], error: errors[lane] });
                within &= within - 1;
            }
        }
        at += 2;
    }
}

#[target_feature(enable = "avx512f,avx512vl")]
#[inline]
fn halves(low: &[u16; BLOCK], high: &[u16; BLOCK]) -> __m512 {
    // SAFETY: each load covers exactly eight numbers, and needs no alignment.
    let (low, high) = unsafe { (_mm_loadu_si128(low.as_ptr().cast()), _mm_loadu_si128(high.as_ptr().cast())) };
    let bits = _mm256_inserti128_si256::<1>(_mm256_castsi128_si256(low), high);
    _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(bits)))
}
