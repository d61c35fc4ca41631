//! Quantised vectors: one bit per component for postings, one byte per component for centroids.
//!
//! Postings follow RaBitQ (Gao & Long, SIGMOD 2024). A posting's code keeps the sign of each component of its rotated
//! residual to the cell's centroid. Two factors turn the dot product of a query with the signs into an estimate of the
//! distance. The estimate is unbiased before the factors are rounded; its error shrinks with the square root of the
//! dimension. All computations are in rotated coordinates, which preserve distances.
//!
//! Invariants:
//! 1. A centroid equals its bytes times its step. Codes are computed against this value, so its rounding adds no error.
//! 2. All results have the same bits on every CPU: sums are of integers, or in a fixed order.
//! 3. Codes are derived data: they can be recomputed from the vectors.

mod code;
mod frame;
mod query;
mod rotation;
mod rounded;
mod row_bounds;

pub use code::{Factors, encode};
pub use frame::{CoordinateFrame, medians};
pub use query::{CentroidBytes, QuantizedQuery, QueryBytes};
pub use rotation::{Rotation, sample};
pub use rounded::{RoundedQuery, RoundedRows, RoundedVector};
pub use row_bounds::{BlockBounds, RowBounds, RowScratch};

/// Returns the number of components of a rotated vector: the dimension, padded with zeros to whole 64-bit words of
/// signs.
#[must_use]
pub fn padded(dimension: usize) -> usize {
    dimension.next_multiple_of(64)
}

/// Gathers the low bits of eight bytes, each 0 or 1, into one byte; the first byte gives the lowest bit.
fn gather_bits(bytes: u64) -> u64 {
    // The product shifts the bit of each byte to its own place in the top byte. No two shifted bits overlap.
    bytes.wrapping_mul(0x0102_0408_1020_4080) >> 56
}

/// Packs 64 bytes, each 0 or 1, into the bits of one word.
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
