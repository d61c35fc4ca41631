//! Centroids and their cell groups during a build.

use super::{RankedId, Router, RoutingScratch};
use crate::{
    codes::{CentroidBytes, QuantizedQuery, QueryBytes, sample},
    config::Metric,
    distance::{self, ByteBlocks, ROWS},
    env::Workers,
    error::Result,
    tuning,
};

/// Purpose bits of the random draw of pivots, distinct from the other purposes in `build`.
const PIVOTS: u64 = 2 << 58;

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

/// Centroids in cell groups.
pub(super) struct CentroidGroups {
    /// Cells of each group.
    pub(super) members: Vec<Vec<usize>>,
    /// Router by L2, which assigns postings to cells.
    router: Router,
    /// Cell of each number of the router.
    cells: Vec<usize>,
    /// Pivots, set to the values that their bytes decode to.
    pub(super) pivots: Centroids,
    pub(super) stored: Vec<CentroidBytes>,
    /// Bytes of the centroids, each plus 128.
    bytes: Vec<u8>,
    pub(super) centroid_bytes: Vec<CentroidBytes>,
}

/// Quantises rows and sets them to the values that their bytes decode to. Returns the quantised rows and their bytes.
fn quantise(rows: &mut Centroids, rotated_centre: &[f32]) -> (Vec<CentroidBytes>, Vec<i8>) {
    let (mut all, mut bytes) = (Vec::with_capacity(rows.rows.len()), Vec::new());
    let of = |row: &mut [f32]| {
        let stored = CentroidBytes::of(row, rotated_centre, &mut bytes);
        all.extend_from_slice(&bytes);
        stored
    };
    (rows.rows.chunks_exact_mut(rows.len).map(of).collect(), all)
}

impl CentroidGroups {
    /// Groups centroids by k-means over the centroids, and sets them to the values that their bytes decode to.
    ///
    /// # Errors
    /// Returns `Closed` if the build is cancelled.
    pub(super) fn new(
        centroids: &mut Centroids,
        rotated_centre: &[f32],
        seed: (u128, u64),
        workers: Workers<'_>,
    ) -> Result<Self> {
        let (centroid_bytes, bytes) = quantise(centroids, rotated_centre);
        let bytes = bytes.into_iter().map(|byte| (i16::from(byte) + 128) as u8).collect();
        let (cells, len) = (centroids.count(), centroids.len);
        let count = cells.div_ceil(tuning::GROUP_CELLS);
        let mut pivots = Centroids { len, rows: Vec::new() };
        sample(cells, count, seed.0, seed.1 | PIVOTS)
            .into_iter()
            .for_each(|i| pivots.rows.extend_from_slice(centroids.row(i)));
        let queries: Vec<QueryBytes> = (0..cells).map(|i| QueryBytes::new(centroids.row(i))).collect();
        let mut assignments = vec![0; cells];
        let mut stored = Vec::new();
        for round in 0..tuning::GROUP_ROUNDS {
            let pivot_bytes;
            (stored, pivot_bytes) = quantise(&mut pivots, rotated_centre);
            let mut blocks = ByteBlocks::new(len);
            pivot_bytes.chunks_exact(len).for_each(|row| blocks.push(row));
            const CHUNK: usize = 256;
            let found = workers.map(cells.div_ceil(CHUNK), &|i| {
                let mut products = vec![0; count.next_multiple_of(ROWS)];
                let queries = &queries[i * CHUNK..cells.min((i + 1) * CHUNK)];
                let assignments = queries.iter().map(|query| {
                    distance::dot_bytes(&query.bytes, blocks.bytes(), &mut products);
                    let near = stored.iter().zip(&products).zip(0u32..);
                    let near = near.map(|((stored, &product), i)| RankedId::new(query.base(*stored, product).1, i));
                    near.min().map_or(0, RankedId::number)
                });
                assignments.collect::<Vec<usize>>()
            })?;
            assignments = found.concat();
            if round + 1 < tuning::GROUP_ROUNDS {
                let mut sums = Sums::default();
                assignments.iter().enumerate().for_each(|(i, &group)| sums.add(group, centroids.row(i)));
                sums.write_means(&mut pivots);
            }
        }
        let mut members = vec![Vec::new(); count];
        assignments.iter().enumerate().for_each(|(i, &group)| members[group].push(i));
        // Postings are assigned to cells by L2 for every metric.
        let groups = members
            .iter()
            .enumerate()
            .map(|(g, members)| (pivots.row(g), stored[g], members.iter().map(|&cell| centroids.row(cell)).collect()));
        let router = Router::of(rotated_centre, Metric::L2, groups);
        let mut of_number = vec![usize::MAX; router.numbers()];
        for (g, members) in members.iter().enumerate() {
            members.iter().enumerate().for_each(|(i, &cell)| of_number[router.number(g, i)] = cell);
        }
        Ok(Self { members, router, cells: of_number, pivots, stored, bytes, centroid_bytes })
    }

    /// Returns the centroids, decoded from their bytes.
    pub(super) fn centroids(&self) -> Centroids {
        let len = self.pivots.len;
        let rows = self.bytes.chunks_exact(len).zip(&self.centroid_bytes);
        Centroids { len, rows: rows.flat_map(|(row, stored)| stored.values(row)).collect() }
    }

    /// Returns the bytes of a cell's centroid, each plus 128.
    pub(super) fn row(&self, cell: usize) -> &[u8] {
        let len = self.pivots.len;
        &self.bytes[cell * len..(cell + 1) * len]
    }

    /// Returns for each cell a list of the cell itself, followed by at most `tuning::CELL_NEIGHBOURS` near cells.
    pub(super) fn neighbours(&self, centroids: &Centroids, workers: Workers<'_>) -> Result<Vec<Vec<u32>>> {
        const CHUNK: usize = 64;
        let count = centroids.count();
        let found = workers.map(count.div_ceil(CHUNK), &|i| {
            let mut scratch = NearestScratch::default();
            let lists = (i * CHUNK..count.min((i + 1) * CHUNK)).map(|cell| {
                self.nearest(centroids.row(cell), tuning::CELL_NEIGHBOURS, &mut scratch);
                let mut near: Vec<u32> = scratch.routing.near.iter().map(|near| near.number() as u32).collect();
                // Of equal centroids any may be first.
                near.retain(|&other| other as usize != cell);
                near.insert(0, cell as u32);
                near
            });
            lists.collect::<Vec<_>>()
        })?;
        Ok(found.into_iter().flatten().collect())
    }

    /// Returns the cell of `cells` whose centroid is nearest to `rotated` by L2, or 0 if `cells` is empty.
    pub(super) fn nearest_of(&self, rotated: &[f32], cells: &[u32]) -> u32 {
        let query = QueryBytes::new(rotated);
        let near = cells.iter().map(|&cell| {
            let product = distance::dot_byte_row(&query.bytes, self.row(cell as usize));
            RankedId::new(query.base(self.centroid_bytes[cell as usize], product).1, cell)
        });
        near.min().map_or(0, |near| near.number() as u32)
    }

    /// Writes the `n` cells nearest to `rotated` by L2 to `scratch.routing.near`, the nearest first. One-bit codes
    /// select the candidates, so a nearer cell may be missing.
    pub(super) fn nearest(&self, rotated: &[f32], n: usize, scratch: &mut NearestScratch) {
        let NearestScratch { query, routing } = scratch;
        query.set_transformed(rotated);
        let wanted = tuning::BUILD_CELLS.max(n);
        self.router.ask(query, self.router.groups().div_ceil(2).max(tuning::BUILD_GROUPS), wanted, routing);
        for near in &mut routing.near {
            let cell = self.cells[near.number()];
            let product = distance::dot_byte_row(&query.bytes.bytes, self.row(cell));
            *near = RankedId::new(query.bytes.base(self.centroid_bytes[cell], product).1, cell as u32);
        }
        routing.near.sort_unstable();
        routing.near.truncate(n);
    }
}

/// Sums of vectors by cell, added in the order of the calls.
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
                std::collections::btree_map::Entry::Vacant(entry) => {
                    entry.insert((more, n));
                }
                std::collections::btree_map::Entry::Occupied(mut entry) => {
                    let (sum, count) = entry.get_mut();
                    sum.iter_mut().zip(more).for_each(|(sum, x)| *sum += x);
                    *count += n;
                }
            }
        }
    }

    /// Sets each centroid to the mean of its vectors. Centroids without vectors keep their values.
    pub(super) fn write_means(self, centroids: &mut Centroids) {
        for (cell, (sum, count)) in self.cells {
            let row = &mut centroids.rows[cell * centroids.len..(cell + 1) * centroids.len];
            row.iter_mut().zip(sum).for_each(|(x, sum)| *x = (sum / f64::from(count)) as f32);
        }
    }
}

/// Reusable buffers for searches for the nearest cells.
#[derive(Default)]
pub(super) struct NearestScratch {
    query: QuantizedQuery,
    pub(super) routing: RoutingScratch,
}
