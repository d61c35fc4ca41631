//! Pivots: shards that stand for the shards near them, so that a vector is compared with some hundred centroids, whatever
//! the number of shards.
//!
//! On each level every so many numbers are pivots, and each shard of the level belongs to the pivot that is nearest to its
//! centroid. Invariants:
//! 1. Who belongs to whom follows from the numbers and centroids of the shards that there are, and from nothing else: not
//!    from the order in which they came and went. So an index that was opened anew routes as the one that wrote.
//! 2. Of equally near pivots a shard belongs to the one with the lowest number.

use std::collections::{BTreeMap, BTreeSet};

use crate::distance;

/// On each level one number in so many is a pivot.
pub(super) const PIVOT_EVERY: u32 = 32;
/// Levels of pivots: the pivots of each are the shards of the next.
const LEVELS: usize = 2;
/// Pivots that are all compared; of more those of the next level are.
const COMPARED: usize = 256;
/// Pivots whose shards are compared.
const OPENED: usize = 8;

/// How far a shard or pivot is, and its number: in this order one comes before the other.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Near(pub f32, pub u32);

impl Near {
    fn is_before(self, other: Self) -> bool {
        self.0.total_cmp(&other.0).then(self.1.cmp(&other.1)).is_lt()
    }
}

/// Puts the nearest first.
pub(super) fn sort(near: &mut [Near]) {
    near.sort_unstable_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
}

/// Centroids, row by row of their numbers.
#[derive(Clone, Copy)]
pub(super) struct Rows<'a> {
    pub(super) dimension: usize,
    pub(super) rows: &'a [f32],
}

impl<'a> Rows<'a> {
    fn row(&self, number: u32) -> &'a [f32] {
        let at = number as usize * self.dimension;
        &self.rows[at..at + self.dimension]
    }
}

/// One level.
#[derive(Clone, Debug, Default)]
struct Level {
    /// Numbers of its shards, and of them the pivots.
    every: u32,
    shards: BTreeSet<u32>,
    /// For each shard how near its pivot is, and which that is; none as long as there is no pivot.
    homes: BTreeMap<u32, Near>,
    /// The shards of each pivot, in ascending order: side by side, for every add goes through some of these lists.
    members: BTreeMap<u32, Vec<u32>>,
}

impl Level {
    /// The pivot that is nearest to a row.
    fn home(&self, rows: Rows<'_>, row: &[f32]) -> Option<Near> {
        let mut best: Option<Near> = None;
        for &pivot in self.members.keys() {
            let near = Near(distance::squared_l2(row, rows.row(pivot)), pivot);
            if best.is_none_or(|best| near.is_before(best)) {
                best = Some(near);
            }
        }
        best
    }

    fn settle(&mut self, rows: Rows<'_>, number: u32) {
        let Some(home) = self.home(rows, rows.row(number)) else { return };
        self.move_to(number, home);
    }

    fn move_to(&mut self, number: u32, home: Near) {
        if let Some(before) = self.homes.insert(number, home) {
            self.leave(before, number);
        }
        let members = self.members.entry(home.1).or_default();
        if let Err(at) = members.binary_search(&number) {
            members.insert(at, number);
        }
    }

    fn leave(&mut self, home: Near, number: u32) {
        if let Some(members) = self.members.get_mut(&home.1)
            && let Ok(at) = members.binary_search(&number)
        {
            members.remove(at);
        }
    }

    /// A shard has come.
    fn insert(&mut self, rows: Rows<'_>, number: u32) {
        self.shards.insert(number);
        if number.is_multiple_of(self.every) {
            self.members.insert(number, Vec::new());
            let pivot = rows.row(number);
            let nearer: Vec<(u32, Near)> = self
                .shards
                .iter()
                .filter(|&&shard| shard != number)
                .map(|&shard| (shard, Near(distance::squared_l2(rows.row(shard), pivot), number)))
                .filter(|(shard, near)| self.homes.get(shard).is_none_or(|home| near.is_before(*home)))
                .collect();
            nearer.into_iter().for_each(|(shard, near)| self.move_to(shard, near));
        }
        if !self.homes.contains_key(&number) {
            self.settle(rows, number);
        }
    }

    /// A shard has gone. Its row need not be there any more.
    fn remove(&mut self, rows: Rows<'_>, number: u32) {
        self.shards.remove(&number);
        if let Some(home) = self.homes.remove(&number) {
            self.leave(home, number);
        }
        for orphan in self.members.remove(&number).into_iter().flatten() {
            self.homes.remove(&orphan);
            self.settle(rows, orphan);
        }
    }
}

/// See the [module](self).
#[derive(Clone, Debug)]
pub(super) struct Pivots {
    levels: [Level; LEVELS],
}

impl Pivots {
    /// Those of some shards.
    pub(super) fn new(rows: Rows<'_>, numbers: impl Iterator<Item = u32>) -> Self {
        let level = |i: usize| Level { every: PIVOT_EVERY.pow(i as u32 + 1), ..Level::default() };
        let mut pivots = Self { levels: std::array::from_fn(level) };
        numbers.for_each(|number| pivots.insert(rows, number));
        pivots
    }

    /// A shard has come, whose row is there.
    pub(super) fn insert(&mut self, rows: Rows<'_>, number: u32) {
        for level in &mut self.levels {
            level.insert(rows, number);
            if !number.is_multiple_of(level.every) {
                break;
            }
        }
    }

    /// A shard has gone.
    pub(super) fn remove(&mut self, rows: Rows<'_>, number: u32) {
        for level in &mut self.levels {
            level.remove(rows, number);
            if !number.is_multiple_of(level.every) {
                break;
            }
        }
    }

    /// The shards of the pivots that are nearest to a vector, with their distances, in no order; none if there is no pivot.
    pub(super) fn near(&self, rows: Rows<'_>, vector: &[f32], compared: &mut u64) -> Vec<Near> {
        let mut measure = |numbers: &mut dyn Iterator<Item = u32>| -> Vec<Near> {
            let near: Vec<Near> =
                numbers.map(|number| Near(distance::squared_l2(vector, rows.row(number)), number)).collect();
            *compared += near.len() as u64;
            near
        };
        let [first, second] = &self.levels;
        let mut pivots = match first.members.len() <= COMPARED || second.members.is_empty() {
            true => measure(&mut first.members.keys().copied()),
            false => {
                let mut tops = measure(&mut second.members.keys().copied());
                sort(&mut tops);
                tops.truncate(OPENED);
                measure(&mut tops.iter().flat_map(|top| second.members.get(&top.1).into_iter().flatten().copied()))
            }
        };
        sort(&mut pivots);
        pivots.truncate(OPENED);
        measure(&mut pivots.iter().flat_map(|pivot| first.members.get(&pivot.1).into_iter().flatten().copied()))
    }

    /// Heap bytes, some more or less.
    pub(super) fn memory(&self) -> usize {
        self.levels.iter().map(|level| level.shards.len() * 32).sum()
    }

    /// Who belongs to whom, level by level.
    #[cfg(test)]
    pub(super) fn homes(&self) -> Vec<(u32, u32)> {
        let homes = |level: &Level| level.homes.iter().map(|(&shard, home)| (shard, home.1)).collect::<Vec<_>>();
        self.levels.iter().flat_map(homes).collect()
    }
}
