//! Router: finds the near cells, first by pivots, then by one-bit codes of centroids against their pivots.
//!
//! In many dimensions the nearest cells are spread over half of the groups, so the cost per group must be low. Scanning
//! the code of a centroid takes about three nanoseconds, comparing its bytes nine. The estimates only order the cells.
//! Before a cell is scanned, its distance is computed from the bytes of its centroid, which the group stores.

use crate::{
    codes::{CentroidBytes, QuantizedQuery, encode},
    config::Metric,
    distance::{self, BLOCK, ByteBlocks, CodeCandidate, Prefetch, ROWS, Scan},
};

use super::{AlignedBytes, RankedId};

/// Number of nearest groups whose cells are all kept before a bound applies.
const FIRST: usize = 8;

/// Centroids of all cells by group. Cells are numbered group by group; the first number of each group is a multiple of
/// 8.
#[derive(Clone, Debug)]
pub struct Router {
    /// Pivots, as blocks of bytes.
    pub(super) pivots: Vec<u8>,
    /// Values stored beside the bytes of each pivot.
    pub(super) stored: Vec<CentroidBytes>,
    /// Number of cells in each group.
    pub(super) counts: Vec<u32>,
    /// Codes of the centroids, group by group.
    pub(super) codes: AlignedBytes,
    /// Number of the first cell of each group.
    firsts: Vec<u32>,
    /// Group of each 8 cell numbers.
    by_block: Vec<u32>,
}

/// Reusable buffers for calls to a [`Router`].
#[derive(Debug, Default)]
pub struct RoutingScratch {
    products: Vec<i32>,
    groups: Vec<RankedId>,
    found: Vec<CodeCandidate>,
    /// Near cells with their estimated distances, unordered.
    pub near: Vec<RankedId>,
}

impl Router {
    /// Assembles a router from its stored parts.
    ///
    /// # Panics
    /// Panics if the sizes don't match each other.
    #[must_use]
    pub fn new(words: usize, pivots: Vec<u8>, stored: Vec<CentroidBytes>, counts: Vec<u32>, codes: &[u8]) -> Self {
        let (mut firsts, mut by_block) = (Vec::new(), Vec::new());
        for (group, &count) in counts.iter().enumerate() {
            firsts.push((by_block.len() * BLOCK) as u32);
            by_block.resize(by_block.len() + (count as usize).div_ceil(BLOCK), group as u32);
        }
        assert_eq!(codes.len(), by_block.len() * distance::block_bytes(words), "a code for each cell");
        assert_eq!(pivots.len(), stored.len().next_multiple_of(ROWS) * words * 64, "a pivot for each group");
        assert_eq!(stored.len(), counts.len(), "a pivot for each group");
        Self { pivots, stored, counts, codes: AlignedBytes::new(codes), firsts, by_block }
    }

    /// Builds a router from each group's pivot, quantised pivot and centroids. The components of a pivot must be those
    /// that its bytes decode to. All vectors are in the frame whose rotated centre is `rotated_centre`.
    pub fn of<'a>(
        rotated_centre: &[f32],
        metric: Metric,
        groups: impl Iterator<Item = (&'a [f32], CentroidBytes, Vec<&'a [f32]>)>,
    ) -> Self {
        let words = rotated_centre.len() / 64;
        let mut pivots = ByteBlocks::new(words * 64);
        let (mut stored, mut counts, mut blocks) = (Vec::new(), Vec::new(), CodeBlocks::new(words));
        let mut bytes = Vec::new();
        let mut signs = Vec::new();
        for (pivot, centroid_bytes, cells) in groups {
            let mut row = pivot.to_vec();
            CentroidBytes::of(&mut row, rotated_centre, &mut bytes);
            pivots.push(&bytes);
            stored.push(centroid_bytes);
            counts.push(cells.len() as u32);
            blocks.align();
            for centroid in cells {
                signs.clear();
                let factors = encode(centroid, pivot, rotated_centre, metric, &mut signs);
                let number = blocks.len() as u32;
                blocks.push(&signs, factors, number);
            }
        }
        blocks.align();
        Self::new(words, pivots.bytes().to_vec(), stored, counts, blocks.bytes())
    }

    /// Returns the number of groups.
    #[must_use]
    pub fn groups(&self) -> usize {
        self.counts.len()
    }

    /// Returns the number of cell numbers, including the unused ones between groups.
    #[must_use]
    pub fn numbers(&self) -> usize {
        self.by_block.len() * BLOCK
    }

    /// Returns the group of a cell number and the cell's position in the group.
    #[must_use]
    pub fn cell(&self, number: usize) -> (usize, usize) {
        let group = self.by_block[number / BLOCK] as usize;
        (group, number - self.firsts[group] as usize)
    }

    /// Returns the number of a cell, given its group and its position in the group.
    #[must_use]
    pub fn number(&self, group: usize, cell: usize) -> usize {
        self.firsts[group] as usize + cell
    }

    /// Returns the heap bytes of the router.
    #[must_use]
    pub fn memory(&self) -> usize {
        self.pivots.len() + self.codes.len() + self.by_block.len() * 4 + self.stored.len() * 16
    }

    /// Returns the rank of each group by the distance of its pivot; the nearest group has rank 0.
    #[must_use]
    pub fn group_ranks(&self, query: &QuantizedQuery) -> Vec<u32> {
        let mut routing = RoutingScratch::default();
        self.measure_groups(query, &mut routing);
        routing.groups.sort_unstable();
        let mut ranks = vec![0; routing.groups.len()];
        routing.groups.iter().zip(0..).for_each(|(near, rank)| ranks[near.number()] = rank);
        ranks
    }

    /// Returns the group whose pivot is nearest to the query.
    pub fn nearest_group(&self, query: &QuantizedQuery, routing: &mut RoutingScratch) -> usize {
        self.measure_groups(query, routing);
        routing.groups.iter().min().map_or(0, |near| near.number())
    }

    fn measure_groups(&self, query: &QuantizedQuery, routing: &mut RoutingScratch) {
        routing.products.resize(self.counts.len().next_multiple_of(ROWS), 0);
        distance::dot_bytes(&query.bytes.bytes, &self.pivots, &mut routing.products);
        routing.groups.clear();
        for (i, (&pivot, &product)) in self.stored.iter().zip(&routing.products).enumerate() {
            routing.groups.push(RankedId::new(query.bytes.base(pivot, product).0, i as u32));
        }
    }

    /// Estimates the distances of the cells in the `groups` nearest groups and writes the `wanted` nearest cells to
    /// `routing.near`, unordered. All of these cells are written if there are fewer. `wanted` must not be 0.
    pub fn ask(&self, query: &QuantizedQuery, groups: usize, wanted: usize, routing: &mut RoutingScratch) {
        self.measure_groups(query, routing);
        let groups = groups.clamp(1, routing.groups.len());
        if groups < routing.groups.len() {
            routing.groups.select_nth_unstable(groups);
        }
        if groups > FIRST {
            routing.groups[..groups].select_nth_unstable(FIRST);
        }
        routing.near.clear();
        let mut bound = f32::INFINITY;
        let mut room = wanted * 2;
        // No prefetch: the codes of centroids are few and every search scans many of them, so they are usually cached.
        let mut prefetch = Prefetch::default();
        for (i, near) in routing.groups[..groups].iter().enumerate() {
            let group = near.number();
            let first = self.firsts[group] as usize;
            routing.found.clear();
            let scan = Scan {
                planes: &query.planes,
                blocks: &self.codes,
                range: first..first + self.counts[group] as usize,
                step: query.plane_step,
                error: 0.0,
                base: near.distance(),
                bound,
            };
            distance::scan(&scan, &mut prefetch, &mut routing.found);
            routing.near.extend(routing.found.iter().map(|found| RankedId::new(found.lower_bound, found.reference)));
            if i + 1 >= FIRST && routing.near.len() > room {
                routing.near.select_nth_unstable(wanted - 1);
                bound = routing.near[wanted - 1].distance();
                routing.near.truncate(wanted);
                room = wanted + wanted / 2;
            }
        }
        if routing.near.len() > wanted {
            routing.near.select_nth_unstable(wanted - 1);
            routing.near.truncate(wanted);
        }
    }
}

/// Blocks of codes in the layout that the kernel reads.
#[derive(Clone, Debug)]
pub struct CodeBlocks {
    words: usize,
    len: usize,
    bytes: Vec<u8>,
}

impl CodeBlocks {
    /// Creates empty blocks for codes of `words` words of signs.
    #[must_use]
    pub fn new(words: usize) -> Self {
        Self { words, len: 0, bytes: Vec::new() }
    }

    /// Creates blocks from bytes that already hold `len` codes.
    #[must_use]
    pub fn of(words: usize, len: usize, bytes: Vec<u8>) -> Self {
        Self { words, len, bytes }
    }

    /// Returns the number of codes, including the places that [`align`](Self::align) skipped.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Reports whether there are no codes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Returns the bytes of the blocks.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Skips the rest of the current block.
    pub fn align(&mut self) {
        self.len = self.len.next_multiple_of(BLOCK);
    }

    /// Appends a code.
    ///
    /// # Panics
    /// Panics if `signs` has another number of words.
    pub fn push(&mut self, signs: &[u64], factors: crate::codes::Factors, reference: u32) {
        assert_eq!(signs.len(), self.words, "a code of another length");
        let block_bytes = distance::block_bytes(self.words);
        let (block, lane) = (self.len / BLOCK * block_bytes, self.len % BLOCK);
        self.bytes.resize(block + block_bytes, 0);
        for (w, word) in signs.iter().enumerate() {
            let to = block + (w * BLOCK + lane) * 8;
            self.bytes[to..to + 8].copy_from_slice(&word.to_le_bytes());
        }
        let tail = block + self.words * BLOCK * 8;
        self.bytes[tail + lane * 2..][..2].copy_from_slice(&factors.factor.to_le_bytes());
        self.bytes[tail + BLOCK * 2 + lane * 2..][..2].copy_from_slice(&factors.add.to_le_bytes());
        self.bytes[tail + BLOCK * 4 + lane * 4..][..4].copy_from_slice(&reference.to_le_bytes());
        self.len += 1;
    }
}

/// Reads the reference of a code that [`CodeBlocks::push`] wrote.
pub(super) fn reference(blocks: &[u8], words: usize, i: usize) -> u32 {
    let block = distance::block_bytes(words);
    let tail = i / BLOCK * block + words * BLOCK * 8;
    bytemuck::pod_read_unaligned(&blocks[tail + BLOCK * 4 + i % BLOCK * 4..][..4])
}

/// Reads the reference, the signs and the factors of a code that [`CodeBlocks::push`] wrote.
pub(super) fn read_code(blocks: &[u8], words: usize, i: usize) -> (u32, Vec<u64>, crate::codes::Factors) {
    let block = &blocks[i / BLOCK * distance::block_bytes(words)..];
    let lane = i % BLOCK;
    let signs = (0..words).map(|w| bytemuck::pod_read_unaligned(&block[(w * BLOCK + lane) * 8..][..8])).collect();
    let tail = &block[words * BLOCK * 8..];
    let factor = bytemuck::pod_read_unaligned(&tail[lane * 2..][..2]);
    let add = bytemuck::pod_read_unaligned(&tail[BLOCK * 2 + lane * 2..][..2]);
    (reference(blocks, words, i), signs, crate::codes::Factors { factor, add })
}
