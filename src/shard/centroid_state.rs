//! Sum and routing centroid of a shard, as a flush stores them: one vector where both are that of the only posting.

use super::{Shard, stored_vector};
use crate::format::{geometry::IndexParams, state::CentroidState};

/// Returns the sum and the centroid that a state holds.
pub(super) fn decoded(stored: CentroidState, geometry: &IndexParams) -> (Vec<f64>, Vec<f32>) {
    match stored {
        CentroidState::Separate { sum, centroid } => (sum, centroid),
        CentroidState::One(bytes) => {
            let centroid = stored_vector::decode(&bytes, geometry);
            (centroid.iter().map(|&x| f64::from(x)).collect(), centroid)
        }
    }
}

impl<L: std::ops::Deref<Target = [u8]> + Clone> Shard<L> {
    /// Returns the sum and the centroid in the form in which a flush stores them in a format version.
    #[must_use]
    pub fn means(&self, geometry: &IndexParams, version: u32) -> CentroidState {
        if let Some(vector) = self.one_vector(geometry).filter(|_| version > 2) {
            return CentroidState::One(vector);
        }
        CentroidState::Separate { sum: self.sum.clone(), centroid: self.centroid.to_vec() }
    }

    /// Returns the stored form of a vector that is both the sum and the centroid, bit for bit: usually that of the only
    /// posting of a new shard.
    fn one_vector(&self, geometry: &IndexParams) -> Option<Vec<u8>> {
        let equal = |(&sum, &c): (&f64, &f32)| sum.to_bits() == f64::from(c).to_bits();
        if self.live != 1 || !self.sum.iter().zip(&*self.centroid).all(equal) {
            return None;
        }
        let mut bytes = Vec::with_capacity(geometry.vector_bytes());
        stored_vector::encode(&self.centroid, geometry.encoding, &mut bytes);
        let decoded = stored_vector::decode(&bytes, geometry);
        let is_exact = decoded.iter().zip(&*self.centroid).all(|(a, b)| a.to_bits() == b.to_bits());
        is_exact.then_some(bytes)
    }
}
