//! Encodings of vectors by their definition, in f64: independent of the library's conversions.

/// Encoding of stored vectors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names are those of FORMAT.md")]
pub enum Encoding {
    F32,
    F16,
    Int8,
}

/// Returns the value of a 16-bit float (IEEE 754 binary16).
#[must_use]
pub fn widened(bits: u16) -> f32 {
    let (exponent, digits) = (i32::from(bits >> 10 & 31), f64::from(bits & 1_023));
    let size = match exponent {
        0 => digits * 2f64.powi(-24),
        31 => f64::from(if digits == 0.0 { f32::INFINITY } else { f32::NAN }),
        _ => (1_024.0 + digits) * 2f64.powi(exponent - 25),
    };
    (if bits >> 15 == 1 { -size } else { size }) as f32
}

/// Returns the half nearest to a number, as an f32; of two, the even one. From 65,520 on it is infinite.
#[must_use]
pub fn nearest(x: f32) -> f32 {
    let exact = f64::from(x);
    // The bits of an f64 hold its exponent plus 1,023. Halves below 2^-14 have the spacing of those above.
    let exponent = ((exact.to_bits() >> 52 & 2_047) as i32 - 1_023).max(-14);
    let spacing = 2f64.powi(exponent - 10);
    let near = (exact / spacing).round_ties_even() * spacing;
    (if near.abs() >= 65_536.0 { near.signum() * f64::INFINITY } else { near }) as f32
}

/// Returns the scale of a vector of 8-bit integers: the least number of 17 significant bits that is not below 1/127 of the
/// largest magnitude, and at least 2^-126.
#[must_use]
pub fn scale(vector: &[f32]) -> f32 {
    let largest = vector.iter().fold(0.0, |largest: f64, x| largest.max(f64::from(x.abs())));
    // The quotient rounds to an f32 first.
    let quotient = f64::from((largest / 127.0) as f32);
    let exponent = (quotient.to_bits() >> 52 & 2_047) as i32 - 1_023;
    let unit = 2f64.powi(exponent.max(-126) - 16);
    ((quotient / unit).ceil() * unit).max(2f64.powi(-126)) as f32
}

/// Returns a vector with its components rounded to those that an encoding can store.
#[must_use]
pub fn rounded(vector: &[f32], encoding: Encoding) -> Vec<f32> {
    match encoding {
        Encoding::F16 => vector.iter().map(|&x| nearest(x)).collect(),
        Encoding::Int8 => {
            let scale = f64::from(scale(vector));
            let code = |x: f32| f64::from((f64::from(x) / scale) as f32).round_ties_even();
            vector.iter().map(|&x| (code(x) * scale) as f32).collect()
        }
        Encoding::F32 => vector.to_vec(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_halves() {
        let known = [
            (0x0000, 0.0),
            (0x0001, 5.960_464_5e-8),
            (0x03FF, 6.097_555e-5),
            (0x0400, 6.103_515_6e-5),
            (0x3555, 0.333_251_95),
            (0x3C00, 1.0),
            (0x3C01, 1.000_976_6),
            (0x7BFF, 65_504.0),
            (0xC000, -2.0),
        ];
        for (bits, value) in known {
            assert_eq!(widened(bits), value, "{bits:04x}");
            assert_eq!(nearest(value), value, "{bits:04x}");
        }
        assert_eq!(widened(0x7C00), f32::INFINITY);
        assert!(widened(0x7E00).is_nan());
    }

    #[test]
    fn numbers_round_to_the_nearest_half_and_ties_to_even() {
        assert_eq!(nearest(1.0 / 3.0), 0.333_251_95);
        assert_eq!([nearest(2_049.0), nearest(2_051.0), nearest(-2_049.0)], [2_048.0, 2_052.0, -2_048.0]);
        assert_eq!([nearest(65_519.9), nearest(65_520.0)], [65_504.0, f32::INFINITY]);
        assert_eq!([nearest(2.9e-8), nearest(3.0e-8)], [0.0, 5.960_464_5e-8]);
    }

    #[test]
    fn known_scales_and_integers() {
        assert_eq!(scale(&[0.5, -127.0]), 1.0);
        assert_eq!(scale(&[0.0]), f32::MIN_POSITIVE);
        // 1/127 is 66,052.03 × 2^-23.
        let above = 66_053.0 / 8_388_608.0;
        assert_eq!(scale(&[0.0, 1.0]), above);
        assert_eq!(rounded(&[127.0, 0.5, 1.5, -2.4], Encoding::Int8), [127.0, 0.0, 2.0, -2.0]);
        assert_eq!(rounded(&[1.0, 0.0], Encoding::Int8), [127.0 * above, 0.0]);
        assert_eq!(rounded(&[0.1], Encoding::F32), [0.1]);
    }
}
