//! Vector in the encoding of the index.

use std::borrow::Cow;

use half::{f16, slice::HalfFloatSliceExt as _};

use crate::{config::VectorEncoding, distance, format::geometry::IndexParams};

/// Vector in its stored form, read in place.
#[derive(Clone, Copy, Debug)]
pub enum StoredVector<'a> {
    /// 32-bit floats.
    F32(&'a [f32]),
    /// 16-bit floats.
    F16(&'a [f16]),
    /// 8-bit integers, and the factor by which they are multiplied.
    Int8(&'a [i8], f32),
}

impl<'a> StoredVector<'a> {
    /// Interprets the bytes of a vector.
    ///
    /// # Panics
    /// Panics if the bytes are not aligned to a component, or have another length than a vector.
    #[must_use]
    pub fn of(bytes: &'a [u8], geometry: &IndexParams) -> Self {
        match geometry.encoding {
            VectorEncoding::F32 => Self::F32(bytemuck::cast_slice(bytes)),
            VectorEncoding::F16 => Self::F16(bytemuck::cast_slice(bytes)),
            VectorEncoding::Int8 => Self::Int8(bytemuck::cast_slice(&bytes[..geometry.dimension]), scale_in(bytes)),
        }
    }

    /// Computes the dot product with a vector of the same length.
    #[must_use]
    pub fn dot(self, other: &[f32]) -> f32 {
        match self {
            Self::F32(vector) => distance::dot(other, vector),
            Self::F16(vector) => distance::dot_half(other, vector),
            Self::Int8(vector, scale) => distance::dot_int8(other, vector, scale),
        }
    }

    /// Computes the squared Euclidean distance to a vector of the same length.
    #[must_use]
    pub fn squared_l2(self, other: &[f32]) -> f32 {
        match self {
            Self::F32(vector) => distance::squared_l2(other, vector),
            Self::F16(vector) => distance::squared_l2_half(other, vector),
            Self::Int8(vector, scale) => distance::squared_l2_int8(other, vector, scale),
        }
    }

    /// Returns the components as f32: the stored ones, or copies in `scratch`.
    #[must_use]
    pub fn widened<'s>(self, scratch: &'s mut Vec<f32>) -> &'s [f32]
    where
        'a: 's,
    {
        match self {
            Self::F32(vector) => return vector,
            Self::F16(vector) => {
                scratch.resize(vector.len(), 0.0);
                vector.convert_to_f32_slice(scratch);
            }
            Self::Int8(vector, scale) => {
                scratch.clear();
                scratch.extend(vector.iter().map(|&code| f32::from(code) * scale));
            }
        }
        scratch
    }

    /// Returns the components as f32: the stored ones, or copies.
    #[must_use]
    pub fn to_f32(self) -> Cow<'a, [f32]> {
        match self {
            Self::F32(vector) => Cow::Borrowed(vector),
            Self::F16(vector) => Cow::Owned(vector.to_f32_vec()),
            Self::Int8(vector, scale) => vector.iter().map(|&code| f32::from(code) * scale).collect(),
        }
    }
}

/// Rounds a vector to components that can be stored. A component beyond the range of f16 becomes infinite.
///
/// A rounded vector is not changed by a second rounding, and is stored exactly. So a posting that moves to
/// another shard keeps its vector.
#[must_use]
pub fn rounded(vector: Cow<'_, [f32]>, encoding: VectorEncoding) -> Cow<'_, [f32]> {
    match encoding {
        VectorEncoding::F32 => vector,
        VectorEncoding::F16 => halves(&vector).to_f32_vec().into(),
        VectorEncoding::Int8 => {
            let scale = scale_of(&vector);
            codes(&vector, scale).map(|code| f32::from(code) * scale).collect()
        }
    }
}

/// Decodes the bytes of a vector, which need not be aligned.
///
/// # Panics
/// Panics if the bytes have another length than a vector.
#[must_use]
pub fn decode(bytes: &[u8], geometry: &IndexParams) -> Vec<f32> {
    match geometry.encoding {
        VectorEncoding::F32 => bytemuck::allocation::pod_collect_to_vec(bytes),
        VectorEncoding::F16 => bytemuck::allocation::pod_collect_to_vec::<u8, f16>(bytes).to_f32_vec(),
        VectorEncoding::Int8 => StoredVector::of(bytes, geometry).to_f32().into_owned(),
    }
}

/// Reports whether bytes are those of a stored vector: finite, with the scale of its components and zeros
/// behind them. They need not be aligned.
///
/// # Panics
/// Panics if the bytes have another length than a vector.
#[must_use]
pub fn is_encoded(bytes: &[u8], geometry: &IndexParams) -> bool {
    let (vector, mut again) = (decode(bytes, geometry), Vec::with_capacity(bytes.len()));
    encode(&vector, geometry.encoding, &mut again);
    vector.iter().all(|x| x.is_finite()) && again == bytes
}

/// Appends the bytes of a [rounded] vector.
pub fn encode(vector: &[f32], encoding: VectorEncoding, out: &mut Vec<u8>) {
    match encoding {
        VectorEncoding::F32 => out.extend_from_slice(bytemuck::cast_slice(vector)),
        VectorEncoding::F16 => out.extend_from_slice(bytemuck::cast_slice(&halves(vector))),
        VectorEncoding::Int8 => {
            let (start, scale) = (out.len(), scale_of(vector));
            out.extend(codes(vector, scale).map(|code| code as u8));
            out.resize(start + encoding.vector_bytes(vector.len()) - 4, 0);
            out.extend(scale.to_le_bytes());
        }
    }
}

/// Rounds to the nearest halves, ties to even, by the instruction of the CPU or by the same arithmetic.
fn halves(vector: &[f32]) -> Vec<f16> {
    let mut halves = vec![f16::ZERO; vector.len()];
    halves.convert_from_f32_slice(vector);
    halves
}

/// Returns the scale of a vector of 8-bit integers: 1/127 of the largest magnitude, rounded up to 17 significant bits, and
/// at least the smallest normal number.
///
/// An integer of seven bits times the scale has 24 bits at most, so it is an f32. The largest magnitude rounds to 127 times
/// the scale, from which the same scale follows. Below the smallest normal number neither would hold.
fn scale_of(vector: &[f32]) -> f32 {
    const LOWER_BITS: u32 = 0x7F;
    let largest = vector.iter().fold(0.0f32, |largest, x| largest.max(x.abs()));
    f32::from_bits((largest / 127.0).to_bits().saturating_add(LOWER_BITS) & !LOWER_BITS).max(f32::MIN_POSITIVE)
}

fn codes(vector: &[f32], scale: f32) -> impl Iterator<Item = i8> {
    vector.iter().map(move |x| (x / scale).round_ties_even() as i8)
}

/// Returns the scale at the end of a vector's bytes.
fn scale_in(bytes: &[u8]) -> f32 {
    bytes.last_chunk().map_or(0.0, |&bytes| f32::from_le_bytes(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::ShardexConfig;

    fn half_of(x: f32) -> f32 {
        rounded(Cow::Owned(vec![x; 9]), VectorEncoding::F16)[0]
    }

    /// The nearest of all halves by a search, in f64. The even one is that with an even last bit.
    fn nearest(x: f32, halves: &[(f64, u16)]) -> f64 {
        let above = halves.partition_point(|&(value, _)| value < f64::from(x));
        let near = &halves[above.saturating_sub(1)..halves.len().min(above + 1)];
        let off = |value: f64| (value - f64::from(x)).abs();
        let best = near.iter().min_by(|a, b| off(a.0).total_cmp(&off(b.0)).then((a.1 & 1).cmp(&(b.1 & 1))));
        best.expect("a half").0
    }

    #[test]
    fn every_component_rounds_to_the_nearest_half_and_ties_to_even() {
        // Positive halves in ascending order, and 65,536 for those that round to infinity.
        let halves: Vec<(f64, u16)> = (0..0x7C00u16)
            .map(|bits| (f64::from(f16::from_bits(bits).to_f32()), bits))
            .chain([(65_536.0, 0x7C00)])
            .collect();
        let mut numbers: Vec<f32> = Vec::new();
        for pair in halves.windows(2) {
            let middle = ((pair[0].0 + pair[1].0) / 2.0) as f32;
            numbers.extend([pair[0].0 as f32, middle, middle.next_down(), middle.next_up()]);
        }
        let kept = |x: f64| if x == 65_536.0 { f64::INFINITY } else { x };
        for x in numbers {
            assert_eq!(f64::from(half_of(x)), kept(nearest(x, &halves)), "{x:e}");
            assert_eq!(f64::from(half_of(-x)), -kept(nearest(x, &halves)), "-{x:e}");
            assert_eq!(half_of(x).to_bits(), f16::from_f32_const(x).to_f32_const().to_bits(), "{x:e} in software");
        }
    }

    #[test]
    fn what_is_rounded_is_stored_and_read_unchanged() {
        let wave: Vec<f32> = (0..37).map(|i| (i as f32 * 0.731).sin() * 3.0).collect();
        let tiny: Vec<f32> = wave.iter().map(|x| x * f32::MIN_POSITIVE).collect();
        let steep: Vec<f32> = (0..37).map(|i| 1.7f32.powi(i) - 1.0).collect();
        for given in [wave, tiny, steep, vec![0.0; 37], vec![-1.0 / 3.0; 37]] {
            for encoding in [VectorEncoding::F32, VectorEncoding::F16, VectorEncoding::Int8] {
                let config = ShardexConfig::new("none").vector_size(given.len()).encoding(encoding);
                let geometry = IndexParams::of(&config, 4_096, 512);
                let kept = rounded(Cow::Borrowed(&given), encoding);
                if kept.iter().any(|x| !x.is_finite()) {
                    continue;
                }
                assert_eq!(rounded(Cow::Borrowed(&kept), encoding), kept, "{encoding}");
                let mut bytes = Vec::new();
                encode(&kept, encoding, &mut bytes);
                assert_eq!(bytes.len(), geometry.vector_bytes());
                assert!(is_encoded(&bytes, &geometry), "{encoding}");
                let aligned: Vec<u32> = bytemuck::allocation::pod_collect_to_vec(&[&*bytes, &[0; 3]].concat());
                let stored = StoredVector::of(&bytemuck::cast_slice(&aligned)[..bytes.len()], &geometry);
                assert_eq!(stored.to_f32(), kept, "{encoding}");
                assert_eq!(decode(&[&[7], &*bytes].concat()[1..], &geometry), *kept);
                let mut scratch = vec![9.0; 99];
                assert_eq!(stored.widened(&mut scratch), &*kept);
                assert_eq!(stored.dot(&given).to_bits(), distance::dot(&given, &kept).to_bits());
                assert_eq!(stored.squared_l2(&given).to_bits(), distance::squared_l2(&given, &kept).to_bits());
            }
        }
    }

    #[test]
    fn what_no_vector_encodes_to_is_told() {
        let of = |encoding| {
            let config = ShardexConfig::new("none").vector_size(5).encoding(encoding);
            let (geometry, mut bytes) = (IndexParams::of(&config, 4_096, 512), Vec::new());
            encode(&rounded(Cow::Owned(vec![1.0, -2.0, 0.3, 0.0, 7.7]), encoding), encoding, &mut bytes);
            (geometry, bytes)
        };
        let (geometry, bytes) = of(VectorEncoding::Int8);
        // The largest component, which the scale follows, the padding, the scale.
        for (at, byte) in [(4, 126u8), (4, 0x80), (6, 1), (8, 1), (11, 0x7F)] {
            let mut other = bytes.clone();
            other[at] = byte;
            assert!(!is_encoded(&other, &geometry), "byte {at}");
        }
        for (encoding, infinite) in [(VectorEncoding::F32, &[0, 0, 0x80, 0x7F][..]), (VectorEncoding::F16, &[0, 0x7C])]
        {
            let (geometry, mut bytes) = of(encoding);
            let at = bytes.len() - infinite.len();
            bytes[at..].copy_from_slice(infinite);
            assert!(!is_encoded(&bytes, &geometry), "{encoding}");
        }
    }

    #[test]
    fn integers_are_the_nearest_multiples_of_an_exact_scale() {
        for seed in 1..2_000u32 {
            let size = f32::from_bits(seed.wrapping_mul(2_654_435_761) >> 2 & 0x5DFF_FFFF);
            let given: Vec<f32> = (0..9).map(|i| ((seed * 9 + i) as f32).sin() * size).collect();
            let (scale, kept) = (scale_of(&given), rounded(Cow::Borrowed(&given), VectorEncoding::Int8));
            assert_eq!(scale.to_bits() & 0x7F, 0, "{scale:e}");
            let largest = given.iter().fold(0.0, |largest: f64, x| largest.max(f64::from(x.abs())));
            assert!(f64::from(scale) * 127.0 <= (largest * (1.0 + 1.0 / 32_768.0)).max(127.0 * 2f64.powi(-126)));
            for (x, kept) in given.iter().zip(&*kept) {
                // In f64 every product is exact.
                let code = (f64::from(*x) / f64::from(scale)).round();
                assert!(code.abs() <= 127.0);
                assert!((f64::from(*kept) - f64::from(*x)).abs() <= 0.500_001 * f64::from(scale), "{x:e} {kept:e}");
            }
        }
    }
}
