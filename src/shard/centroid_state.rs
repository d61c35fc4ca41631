//! State of a shard as a flush stores it. Sum and routing centroid are one vector where both are that of the only posting.

use super::{Extent, Shard, stored_vector};
use crate::format::{
    geometry::{IndexParams, StateLayout},
    node::BlockPointer,
    state::{CentroidState, ShardState},
};

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

    /// Returns the state that a flush stores for shard number `number`, with its `means` and its pages of tags in `tags`. Versions
    /// before 3 leave out the former slots.
    ///
    /// # Panics
    /// Panics if staged slots are not stored.
    #[must_use]
    pub fn state(&self, number: u32, means: CentroidState, tags: Vec<BlockPointer>, version: u32) -> ShardState {
        assert!(self.staged.is_empty(), "a shard is stored before its state");
        ShardState {
            number,
            id: self.id,
            len: self.len,
            live: self.live,
            extents: self.extents.iter().map(Extent::state).collect(),
            tombstones: self.tombstones.clone(),
            bloom: self.bloom.words().to_vec(),
            means,
            tags,
            former: self.former.as_ref().filter(|_| version > 2).map(|former| former.state().clone()),
        }
    }

    /// Returns the layout of the state that a flush stores in a format version.
    #[must_use]
    pub fn state_layout(&self, means: &CentroidState, version: u32) -> StateLayout {
        StateLayout {
            slots: self.len(),
            version,
            is_one: matches!(means, CentroidState::One(_)),
            former: self.former.as_ref().filter(|_| version > 2).map(|former| former.state().slots as usize),
        }
    }
}
