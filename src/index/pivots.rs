//! Pivots: shards that represent the shards near them, so that routing compares a vector with a few hundred centroids,
//! independent of the number of shards.
//!
//! On each level, shards whose number is a multiple of the level's interval are pivots. Each shard of the level belongs
//! to the pivot nearest to its centroid. The pivots of a level are the shards of the next level.
//!
//! Invariants:
//! 1. The pivot of a shard depends only on the numbers and centroids of the existing shards. It does not depend on the
//!    order in which they were added and removed. So an index routes after it is opened as it did when it was written.
//! 2. Of equally near pivots, a shard belongs to the one with the lowest number.

use std::collections::{BTreeMap, BTreeSet};

use crate::distance;

/// Interval of pivots: each level has one pivot per 32 shard numbers of the level.
pub(super) const PIVOT_EVERY: u32 = 32;
/// Number of levels.
const LEVELS: usize = 2;
/// Maximum number of first-level pivots that are all compared with a vector. With more, the search for pivots starts at
/// the second level.
const COMPARED: usize = 256;
/// Number of nearest pivots per level whose shards are compared with a vector.
const OPENED: usize = 8;

/// Squared Euclidean distance and number of a shard or pivot, ordered by distance, then by number.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct ShardDistance(pub f32, pub u32);

impl ShardDistance {
    /// Reports whether this one comes before `other` in the order.
    fn is_before(self, other: Self) -> bool {
        self.0.total_cmp(&other.0).then(self.1.cmp(&other.1)).is_lt()
    }
}

/// Sorts by distance, then by number, nearest first.
pub(super) fn sort(near: &mut [ShardDistance]) {
    near.sort_unstable_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
}

/// Centroids in rows, by shard number.
#[derive(Clone, Copy)]
pub(super) struct CentroidRows<'a> {
    pub(super) dimension: usize,
    pub(super) rows: &'a [f32],
}

impl<'a> CentroidRows<'a> {
    /// Returns the centroid of a shard.
    fn row(&self, number: u32) -> &'a [f32] {
        let at = number as usize * self.dimension;
        &self.rows[at..at + self.dimension]
    }
}

/// Level of pivots.
#[derive(Clone, Debug, Default)]
struct Level {
    /// Interval of the pivots' numbers.
    every: u32,
    /// Numbers of the level's shards.
    shards: BTreeSet<u32>,
    /// Pivot of each shard and its distance. A shard has no entry while the level has no pivot.
    nearest_pivots: BTreeMap<u32, ShardDistance>,
    /// Shards of each pivot, in ascending order. They are contiguous because each routing reads some of these lists.
    members: BTreeMap<u32, Vec<u32>>,
}

impl Level {
    /// Returns the pivot nearest to a row, the lowest number among equals; `None` if there is no pivot.
    fn home(&self, rows: CentroidRows<'_>, row: &[f32]) -> Option<ShardDistance> {
        let mut best: Option<ShardDistance> = None;
        for &pivot in self.members.keys() {
            let near = ShardDistance(distance::squared_l2(row, rows.row(pivot)), pivot);
            if best.is_none_or(|best| near.is_before(best)) {
                best = Some(near);
            }
        }
        best
    }

    /// Assigns a shard to its nearest pivot, if there is a pivot.
    fn assign(&mut self, rows: CentroidRows<'_>, number: u32) {
        let Some(home) = self.home(rows, rows.row(number)) else { return };
        self.move_to(number, home);
    }

    /// Assigns a shard to a pivot, and removes it from its previous one.
    fn move_to(&mut self, number: u32, home: ShardDistance) {
        if let Some(before) = self.nearest_pivots.insert(number, home) {
            self.leave(before, number);
        }
        let members = self.members.entry(home.1).or_default();
        if let Err(at) = members.binary_search(&number) {
            members.insert(at, number);
        }
    }

    /// Removes a shard from the list of its pivot.
    fn leave(&mut self, home: ShardDistance, number: u32) {
        if let Some(members) = self.members.get_mut(&home.1)
            && let Ok(at) = members.binary_search(&number)
        {
            members.remove(at);
        }
    }

    /// Adds a shard. If it is a pivot, shards to which it is nearer than their pivot move to it.
    fn insert(&mut self, rows: CentroidRows<'_>, number: u32) {
        self.shards.insert(number);
        if number.is_multiple_of(self.every) {
            self.members.insert(number, Vec::new());
            let pivot = rows.row(number);
            let nearer: Vec<(u32, ShardDistance)> = self
                .shards
                .iter()
                .filter(|&&shard| shard != number)
                .map(|&shard| (shard, ShardDistance(distance::squared_l2(rows.row(shard), pivot), number)))
                .filter(|(shard, near)| self.nearest_pivots.get(shard).is_none_or(|home| near.is_before(*home)))
                .collect();
            nearer.into_iter().for_each(|(shard, near)| self.move_to(shard, near));
        }
        if !self.nearest_pivots.contains_key(&number) {
            self.assign(rows, number);
        }
    }

    /// Removes a shard, and assigns its own shards to other pivots if it is a pivot. The row of the shard is not read.
    fn remove(&mut self, rows: CentroidRows<'_>, number: u32) {
        self.shards.remove(&number);
        if let Some(home) = self.nearest_pivots.remove(&number) {
            self.leave(home, number);
        }
        for orphan in self.members.remove(&number).into_iter().flatten() {
            self.nearest_pivots.remove(&orphan);
            self.assign(rows, orphan);
        }
    }
}

/// Levels of pivots over the shards of a routing table. See the [module](self).
#[derive(Clone, Debug)]
pub(super) struct Pivots {
    levels: [Level; LEVELS],
}

impl Pivots {
    /// Builds the pivots of the shards with the given numbers.
    pub(super) fn new(rows: CentroidRows<'_>, numbers: impl Iterator<Item = u32>) -> Self {
        let level = |i: usize| Level { every: PIVOT_EVERY.pow(i as u32 + 1), ..Level::default() };
        let mut pivots = Self { levels: std::array::from_fn(level) };
        numbers.for_each(|number| pivots.insert(rows, number));
        pivots
    }

    /// Adds a shard, whose row must be set.
    pub(super) fn insert(&mut self, rows: CentroidRows<'_>, number: u32) {
        for level in &mut self.levels {
            level.insert(rows, number);
            if !number.is_multiple_of(level.every) {
                break;
            }
        }
    }

    /// Removes a shard. Its row is not read.
    pub(super) fn remove(&mut self, rows: CentroidRows<'_>, number: u32) {
        for level in &mut self.levels {
            level.remove(rows, number);
            if !number.is_multiple_of(level.every) {
                break;
            }
        }
    }

    /// Returns the shards of the pivots nearest to a vector, with their distances, in no order. Empty if there is no
    /// pivot. Adds the number of centroids compared to `compared`.
    pub(super) fn near(&self, rows: CentroidRows<'_>, vector: &[f32], compared: &mut u64) -> Vec<ShardDistance> {
        let mut measure = |numbers: &mut dyn Iterator<Item = u32>| -> Vec<ShardDistance> {
            let near: Vec<ShardDistance> =
                numbers.map(|number| ShardDistance(distance::squared_l2(vector, rows.row(number)), number)).collect();
            *compared += near.len() as u64;
            near
        };
        let [first, second] = &self.levels;
        let mut pivots = if first.members.len() <= COMPARED || second.members.is_empty() {
            measure(&mut first.members.keys().copied())
        } else {
            let mut tops = measure(&mut second.members.keys().copied());
            sort(&mut tops);
            tops.truncate(OPENED);
            measure(&mut tops.iter().flat_map(|top| second.members.get(&top.1).into_iter().flatten().copied()))
        };
        sort(&mut pivots);
        pivots.truncate(OPENED);
        measure(&mut pivots.iter().flat_map(|pivot| first.members.get(&pivot.1).into_iter().flatten().copied()))
    }

    /// Returns the approximate number of heap bytes.
    pub(super) fn memory(&self) -> usize {
        self.levels.iter().map(|level| level.shards.len() * 32).sum()
    }

    /// Returns each shard with its pivot, level by level.
    #[cfg(test)]
    pub(super) fn nearest_pivots(&self) -> Vec<(u32, u32)> {
        let nearest_pivots =
            |level: &Level| level.nearest_pivots.iter().map(|(&shard, home)| (shard, home.1)).collect::<Vec<_>>();
        self.levels.iter().flat_map(nearest_pivots).collect()
    }
}
