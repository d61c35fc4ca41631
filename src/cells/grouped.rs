//! Centroids and the groups that they are in, while cells are made.

use std::sync::OnceLock;

use super::{Asked, Near, Router, build::PIVOTS, layout::values};
use crate::{
    codes::{ByteQuery, CentroidBytes, Query, sample},
    config::Metric,
    distance::{self, ByteBlocks, ROWS},
    env::Workers,
    error::Result,
    limits,
};

/// Centroids in a frame, row by row.
pub(super) struct Centroids {
    pub(super) len: usize,
    pub(super) rows: Vec<f32>,
}

impl Centroids {
    pub(super) fn row(&self, i: usize) -> &[f32] {
        &self.rows[i * self.len..(i + 1) * self.len]
    }

    pub(super) fn count(&self) -> usize {
        self.rows.len() / self.len
    }
}

/// Centroids in groups.
pub(super) struct Grouped {
    /// The cells of each group.
    pub(super) members: Vec<Vec<usize>>,
    /// By L2, for postings to be assigned.
    router: Router,
    /// For each number of the router, the cell.
    cells: Vec<usize>,
    /// Pivots, set to what their bytes say.
    pub(super) pivots: Centroids,
    pub(super) stored: Vec<CentroidBytes>,
    /// The centroids' bytes, each plus 128.
    bytes: Vec<u8>,
    pub(super) centroid_bytes: Vec<CentroidBytes>,
}

/// Sets rows to what their bytes say.
fn quantise(rows: &mut Centroids, turned: &[f32]) -> (Vec<CentroidBytes>, Vec<i8>) {
    let (mut all, mut bytes) = (Vec::with_capacity(rows.rows.len()), Vec::new());
    let of = |row: &mut [f32]| {
        let stored = CentroidBytes::of(row, turned, &mut bytes);
        all.extend_from_slice(&bytes);
        stored
    };
    (rows.rows.chunks_exact_mut(rows.len).map(of).collect(), all)
}

impl Grouped {
    /// Groups centroids by k-means of their own, and sets them to what their bytes say.
    ///
    /// # Errors
    /// `Closed` if it is cancelled.
    pub(super) fn new(
        centroids: &mut Centroids,
        turned: &[f32],
        seed: (u128, u64),
        workers: Workers<'_>,
    ) -> Result<Self> {
        let (centroid_bytes, bytes) = quantise(centroids, turned);
        let bytes = bytes.into_iter().map(|byte| (i16::from(byte) + 128) as u8).collect();
        let (cells, len) = (centroids.count(), centroids.len);
        let count = cells.div_ceil(limits::GROUP_CELLS);
        let mut pivots = Centroids { len, rows: Vec::new() };
        sample(cells, count, seed.0, seed.1 | PIVOTS)
            .into_iter()
            .for_each(|i| pivots.rows.extend_from_slice(centroids.row(i)));
        let queries: Vec<ByteQuery> = (0..cells).map(|i| ByteQuery::new(centroids.row(i))).collect();
        let mut homes = vec![0; cells];
        let mut stored = Vec::new();
        for round in 0..limits::GROUP_ROUNDS {
            let pivot_bytes;
            (stored, pivot_bytes) = quantise(&mut pivots, turned);
            let mut blocks = ByteBlocks::new(len);
            pivot_bytes.chunks_exact(len).for_each(|row| blocks.push(row));
            const CHUNK: usize = 256;
            let found: Vec<OnceLock<Vec<usize>>> = queries.chunks(CHUNK).map(|_| OnceLock::new()).collect();
            workers.for_each(found.len(), &|i| {
                let mut products = vec![0; count.next_multiple_of(ROWS)];
                let queries = &queries[i * CHUNK..cells.min((i + 1) * CHUNK)];
                let homes = queries.iter().map(|query| {
                    distance::dot_bytes(&query.bytes, blocks.bytes(), &mut products);
                    let near = stored.iter().zip(&products).zip(0u32..);
                    let near = near.map(|((stored, &product), i)| Near::new(query.base(*stored, product).1, i));
                    near.min().map_or(0, Near::number)
                });
                drop(found[i].set(homes.collect()));
            })?;
            homes = found.into_iter().filter_map(OnceLock::into_inner).flatten().collect();
            if round + 1 < limits::GROUP_ROUNDS {
                let mut sums = Sums::default();
                homes.iter().enumerate().for_each(|(i, &home)| sums.add(home, centroids.row(i)));
                sums.write_means(&mut pivots);
            }
        }
        let mut members = vec![Vec::new(); count];
        homes.iter().enumerate().for_each(|(i, &home)| members[home].push(i));
        // Postings are given to cells by L2, whatever the metric.
        let groups = members.iter().enumerate().map(|(g, members)| {
            (pivots.row(g), stored[g], members.iter().map(|&cell| centroids.row(cell)).collect())
        });
        let router = Router::of(turned, Metric::L2, groups);
        let mut of_number = vec![usize::MAX; router.numbers()];
        for (g, members) in members.iter().enumerate() {
            members.iter().enumerate().for_each(|(i, &cell)| of_number[router.number(g, i)] = cell);
        }
        Ok(Self { members, router, cells: of_number, pivots, stored, bytes, centroid_bytes })
    }

    /// The centroids, as their bytes say.
    pub(super) fn centroids(&self) -> Centroids {
        let len = self.pivots.len;
        let rows = self.bytes.chunks_exact(len).zip(&self.centroid_bytes);
        Centroids { len, rows: rows.flat_map(|(row, stored)| values(row, *stored)).collect() }
    }

    /// The bytes of a cell's centroid.
    pub(super) fn row(&self, cell: usize) -> &[u8] {
        let len = self.pivots.len;
        &self.bytes[cell * len..(cell + 1) * len]
    }

    /// For each cell the ones nearest to it, itself first.
    pub(super) fn neighbours(&self, centroids: &Centroids, workers: Workers<'_>) -> Result<Vec<Vec<u32>>> {
        const CHUNK: usize = 64;
        let count = centroids.count();
        let found: Vec<OnceLock<Vec<Vec<u32>>>> = (0..count.div_ceil(CHUNK)).map(|_| OnceLock::new()).collect();
        workers.for_each(found.len(), &|i| {
            let mut asking = Asking::default();
            let lists = (i * CHUNK..count.min((i + 1) * CHUNK)).map(|cell| {
                self.nearest(centroids.row(cell), limits::CELL_NEIGHBOURS, &mut asking);
                let mut near: Vec<u32> = asking.asked.near.iter().map(|near| near.number() as u32).collect();
                // Of equal centroids any may come first.
                near.retain(|&other| other as usize != cell);
                near.insert(0, cell as u32);
                near
            });
            drop(found[i].set(lists.collect()));
        })?;
        Ok(found.into_iter().filter_map(OnceLock::into_inner).flatten().collect())
    }

    /// The nearest by L2 of some cells.
    pub(super) fn nearest_of(&self, rotated: &[f32], cells: &[u32]) -> u32 {
        let query = ByteQuery::new(rotated);
        let near = cells.iter().map(|&cell| {
            let product = distance::dot_byte_row(&query.bytes, self.row(cell as usize));
            Near::new(query.base(self.centroid_bytes[cell as usize], product).1, cell)
        });
        near.min().map_or(0, |near| near.number() as u32)
    }

    /// The `n` cells nearest by L2, the nearest first, as likely as one-bit codes can tell.
    pub(super) fn nearest(&self, rotated: &[f32], n: usize, asking: &mut Asking) {
        let Asking { query, asked } = asking;
        query.set_placed(rotated);
        let wanted = limits::BUILD_CELLS.max(n);
        self.router.ask(query, self.router.groups().div_ceil(2).max(limits::BUILD_GROUPS), wanted, asked);
        for near in &mut asked.near {
            let cell = self.cells[near.number()];
            let product = distance::dot_byte_row(&query.bytes.bytes, self.row(cell));
            *near = Near::new(query.bytes.base(self.centroid_bytes[cell], product).1, cell as u32);
        }
        asked.near.sort_unstable();
        asked.near.truncate(n);
    }
}

/// Sums of vectors by cell, in the order they come.
#[derive(Default)]
pub(super) struct Sums {
    cells: std::collections::BTreeMap<usize, (Vec<f64>, u32)>,
}

impl Sums {
    pub(super) fn add(&mut self, cell: usize, row: &[f32]) {
        let (sum, count) = self.cells.entry(cell).or_insert_with(|| (vec![0.0; row.len()], 0));
        sum.iter_mut().zip(row).for_each(|(sum, &x)| *sum += f64::from(x));
        *count += 1;
    }

    pub(super) fn merge(&mut self, other: Self) {
        for (cell, (more, n)) in other.cells {
            match self.cells.entry(cell) {
                std::collections::btree_map::Entry::Vacant(entry) => drop(entry.insert((more, n))),
                std::collections::btree_map::Entry::Occupied(mut entry) => {
                    let (sum, count) = entry.get_mut();
                    sum.iter_mut().zip(more).for_each(|(sum, x)| *sum += x);
                    *count += n;
                }
            }
        }
    }

    /// Centroids without a member stay.
    pub(super) fn write_means(self, centroids: &mut Centroids) {
        for (cell, (sum, count)) in self.cells {
            let row = &mut centroids.rows[cell * centroids.len..(cell + 1) * centroids.len];
            row.iter_mut().zip(sum).for_each(|(x, sum)| *x = (sum / f64::from(count)) as f32);
        }
    }
}

/// Room for one question after another.
#[derive(Default)]
pub(super) struct Asking {
    query: Query,
    pub(super) asked: Asked,
}
