//! Code of one posting in one cell.

use super::word_of;
use crate::{
    config::Metric,
    distance::{BF16_SHIFT, LANES},
};

/// Factors that turn a product with a residual's signs into a distance: `base + add − factor × (query · signs)`, where
/// `base` is the query's distance to the cell's centroid.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Factors {
    /// Factor of the product: never negative; the upper half of an f32.
    pub factor: u16,
    /// Additive term: the upper half of an f32.
    pub add: u16,
}

/// Returns the upper half of `x`, rounded down. An estimate of a distance that is too low is safe. Numbers below the
/// least finite upper half give that half.
fn to_bf16_below(x: f32) -> u16 {
    let bits = x.to_bits();
    let cut = bits >> BF16_SHIFT;
    let half = f32::from_bits(cut << BF16_SHIFT);
    // Truncation rounds a negative number up, so one unit is added to its magnitude. The largest finite magnitude
    // stays, because an estimate must not be infinite.
    if half > x && cut & 0x7FFF != 0x7F7F { cut as u16 + 1 } else { cut as u16 }
}

/// Returns the upper half of `x`, rounded to nearest.
fn to_bf16(x: f32) -> u16 {
    let bits = x.to_bits();
    // Ties round to even. A finite number that would round to infinity is truncated instead.
    let rounded = bits.saturating_add(0x7FFF + (bits >> BF16_SHIFT & 1)) >> BF16_SHIFT;
    if rounded & 0x7F80 == 0x7F80 { (bits >> BF16_SHIFT) as u16 } else { rounded as u16 }
}

/// Sums terms over three vectors, in fixed lanes.
fn sums<const N: usize>(x: &[f32], c: &[f32], m: &[f32], terms: impl Fn(f32, f32, f32) -> [f32; N]) -> [f32; N] {
    let mut lanes = [[0.0f32; LANES]; N];
    let rows = x.as_chunks::<LANES>().0.iter().zip(c.as_chunks::<LANES>().0);
    for ((x, c), m) in rows.zip(m.as_chunks::<LANES>().0) {
        for j in 0..LANES {
            let terms = terms(x[j], c[j], m[j]);
            for n in 0..N {
                lanes[n][j] += terms[n];
            }
        }
    }
    lanes.map(|lanes| lanes.iter().sum())
}

/// Encodes vector `x` against centroid `c`, both in the frame whose rotated centre is `m`. Appends the signs to
/// `signs`; a set bit stands for `+`.
///
/// `⟨q − c, x − c⟩` is estimated by `|r|² / Σ|rᵢ| × ⟨q − c, sign r⟩`, where `r = x − c`. The terms that don't depend on
/// the query are in `add`, including the product of the residual with the centre. If a factor overflows an f32, the
/// code becomes one that is always a candidate.
pub fn encode(x: &[f32], c: &[f32], m: &[f32], metric: Metric, signs: &mut Vec<u64>) -> Factors {
    let words = x.as_chunks::<64>().0.iter().zip(c.as_chunks::<64>().0);
    signs.extend(words.map(|(x, c)| word_of(&std::array::from_fn(|i| u8::from(x[i] - c[i] >= 0.0)))));
    let [magnitude, square, centroid_signs, centre_product] = sums(x, c, m, |x, c, m| {
        let r = x - c;
        [r.abs(), r * r, if r >= 0.0 { c } else { -c }, (c + m) * r]
    });
    let factor = if magnitude > 0.0 { square / magnitude } else { 0.0 };
    let (factor, add) = match metric {
        Metric::L2 => (2.0 * factor, square + 2.0 * factor * centroid_signs),
        Metric::Dot | Metric::Cosine => (factor, factor * centroid_signs - centre_product),
    };
    let (factor, add) = if factor.is_finite() && add.is_finite() { (factor, add) } else { (0.0, f32::MIN) };
    Factors { factor: to_bf16(factor), add: to_bf16_below(add) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn halves_are_the_nearest() {
        let back = |half: u16| f32::from_bits(u32::from(half) << BF16_SHIFT);
        for x in [0.0f32, 1.0, -1.0, 0.1, -3.3e-5, 1e30, 1e-40, f32::MIN] {
            assert!((back(to_bf16(x)) - x).abs() <= x.abs() / 256.0 + 1e-38, "{x}");
            assert!(back(to_bf16(x)).is_finite());
            let below = back(to_bf16_below(x));
            assert!(below.is_finite() && below >= x - x.abs() / 128.0 - 1e-38, "{x}");
            assert!(below <= x || x == f32::MIN, "{x}");
        }
    }

    #[test]
    fn huge_vectors_stay_candidates() {
        let x: Vec<f32> = (0..64).map(|i| if i == 0 { 4e18 } else { 0.0 }).collect();
        let c: Vec<f32> = (0..64).map(|i| if i == 1 { -4e18 } else { 0.0 }).collect();
        for metric in [Metric::L2, Metric::Dot] {
            let code = encode(&x, &c, &[0.0; 64], metric, &mut Vec::new());
            assert!(f32::from_bits(u32::from(code.add) << BF16_SHIFT).is_finite());
        }
    }
}
