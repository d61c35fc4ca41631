//! Quantised vectors: one bit a component for postings, one byte a component for centroids.
//!
//! Postings follow RaBitQ (Gao & Long, SIGMOD 2024): the residual of a vector to its cell's centroid is rotated at random
//! and each component kept as its sign; two factors make the dot product of a query with the signs an unbiased estimate
//! of the distance, with an error that shrinks with the square root of the dimension. Everything here lives in rotated
//! space, where distances are what they were.
//!
//! Invariants:
//! 1. A centroid *is* its bytes times its scale: codes are made against that, so its rounding costs nothing.
//! 2. All results are the same bits on every CPU: sums are of integers, or in a fixed order.
//! 3. Codes are derived: whoever has the vectors can make them anew.

mod code;
mod frame;
mod query;
mod rotation;
mod rounded;

pub use code::{Factors, encode};
pub use frame::{Frame, medians};
pub use query::{ByteQuery, CentroidBytes, Query};
pub use rotation::{Rotation, sample};
pub use rounded::{Rounded, RoundedQuery, RoundedRows};

/// Numbers of a rotated vector: the dimension, filled up with zeros to whole 64-bit words of signs.
#[must_use]
pub fn padded(dimension: usize) -> usize {
    dimension.next_multiple_of(64)
}

/// The low bits of eight bytes that hold 0 or 1, the first byte's lowest.
fn gather_bits(bytes: u64) -> u64 {
    // Each byte's bit is shifted to its own place in the top byte; no two meet on the way.
    bytes.wrapping_mul(0x0102_0408_1020_4080) >> 56
}

/// The bits of 64 bytes that hold 0 or 1 as one word.
fn word_of(bits: &[u8; 64]) -> u64 {
    let eights = bits.as_chunks::<8>().0.iter().enumerate();
    eights.fold(0, |word, (i, eight)| word | gather_bits(u64::from_le_bytes(*eight)) << (8 * i))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_are_gathered_in_order() {
        for pattern in [0u64, 1, 0x8000_0000_0000_0000, 0x0123_4567_89AB_CDEF, u64::MAX] {
            assert_eq!(word_of(&std::array::from_fn(|i| (pattern >> i & 1) as u8)), pattern);
        }
    }
}
