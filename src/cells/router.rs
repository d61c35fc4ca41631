//! Which cells are near: pivots first, then one-bit codes of centroids against their pivots.
//!
//! In many dimensions the nearest cells are spread over half the groups, so what is asked of each group must cost little:
//! a centroid's code is scanned in some three nanoseconds, its bytes are compared in nine. What it estimates puts the cells in order; whoever scans a cell
//! has its centroid at hand and computes the distance itself.

use crate::{
    codes::{CentroidBytes, Query, encode},
    config::Metric,
    distance::{self, Ahead, BLOCK, ByteBlocks, Found, ROWS, Scan},
};

use super::{Aligned, Near};

/// Groups whose cells are all taken before the rest is measured by them.
const FIRST: usize = 8;

/// Centroids by group. Cells are numbered group by group, each group from a multiple of 8 on.
#[derive(Clone, Debug)]
pub struct Router {
    /// The pivots, as blocks of bytes.
    pub(super) pivots: Vec<u8>,
    /// What belongs to the pivots' bytes.
    pub(super) stored: Vec<CentroidBytes>,
    /// Cells of each group.
    pub(super) counts: Vec<u32>,
    /// Codes of the centroids, group by group.
    pub(super) codes: Aligned,
    /// The first cell of each group.
    firsts: Vec<u32>,
    /// For each 8 cells, their group.
    by_block: Vec<u32>,
}

/// Room for a question to a [`Router`].
#[derive(Debug, Default)]
pub struct Asked {
    products: Vec<i32>,
    groups: Vec<Near>,
    found: Vec<Found>,
    /// The cells that are near by estimate, in no order.
    pub near: Vec<Near>,
}

impl Router {
    /// Puts one together from what is stored of it.
    ///
    /// # Panics
    /// If the sizes do not fit each other.
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
        Self { pivots, stored, counts, codes: Aligned::new(codes), firsts, by_block }
    }

    /// Makes one: for each group its pivot, whose numbers are what its bytes say, and the centroids of its cells, all of the
    /// frame whose rotated centre is `turned`.
    pub fn of<'a>(
        turned: &[f32],
        metric: Metric,
        groups: impl Iterator<Item = (&'a [f32], CentroidBytes, Vec<&'a [f32]>)>,
    ) -> Self {
        let words = turned.len() / 64;
        let mut pivots = ByteBlocks::new(words * 64);
        let (mut stored, mut counts, mut blocks) = (Vec::new(), Vec::new(), CodeBlocks::new(words));
        let mut bytes = Vec::new();
        let mut signs = Vec::new();
        for (pivot, centroid_bytes, cells) in groups {
            let mut row = pivot.to_vec();
            CentroidBytes::of(&mut row, turned, &mut bytes);
            pivots.push(&bytes);
            stored.push(centroid_bytes);
            counts.push(cells.len() as u32);
            blocks.align();
            for centroid in cells {
                signs.clear();
                let factors = encode(centroid, pivot, turned, metric, &mut signs);
                let number = blocks.len() as u32;
                blocks.push(&signs, factors, number);
            }
        }
        blocks.align();
        Self::new(words, pivots.bytes().to_vec(), stored, counts, blocks.bytes())
    }

    /// Groups.
    #[must_use]
    pub fn groups(&self) -> usize {
        self.counts.len()
    }

    /// Numbers of cells, those between groups too.
    #[must_use]
    pub fn numbers(&self) -> usize {
        self.by_block.len() * BLOCK
    }

    /// The group of a cell, and which of the group's it is.
    #[must_use]
    pub fn cell(&self, number: usize) -> (usize, usize) {
        let group = self.by_block[number / BLOCK] as usize;
        (group, number - self.firsts[group] as usize)
    }

    /// The number of a cell of a group.
    #[must_use]
    pub fn number(&self, group: usize, cell: usize) -> usize {
        self.firsts[group] as usize + cell
    }

    /// Heap bytes.
    #[must_use]
    pub fn memory(&self) -> usize {
        self.pivots.len() + self.codes.len() + self.by_block.len() * 4 + self.stored.len() * 16
    }

    /// The rank of each group, the nearest being 0.
    #[must_use]
    pub fn group_ranks(&self, query: &Query) -> Vec<u32> {
        let mut asked = Asked::default();
        self.measure_groups(query, &mut asked);
        asked.groups.sort_unstable();
        let mut ranks = vec![0; asked.groups.len()];
        asked.groups.iter().zip(0..).for_each(|(near, rank)| ranks[near.number()] = rank);
        ranks
    }

    /// The group whose pivot is nearest.
    pub fn nearest_group(&self, query: &Query, asked: &mut Asked) -> usize {
        self.measure_groups(query, asked);
        asked.groups.iter().min().map_or(0, |near| near.number())
    }

    fn measure_groups(&self, query: &Query, asked: &mut Asked) {
        asked.products.resize(self.counts.len().next_multiple_of(ROWS), 0);
        distance::dot_bytes(&query.bytes.bytes, &self.pivots, &mut asked.products);
        asked.groups.clear();
        for (i, (&pivot, &product)) in self.stored.iter().zip(&asked.products).enumerate() {
            asked.groups.push(Near::new(query.bytes.base(pivot, product).0, i as u32));
        }
    }

    /// Puts the groups in order, and estimates how near the cells of the first `groups` are: at least the `wanted` nearest of
    /// them, in no order.
    pub fn ask(&self, query: &Query, groups: usize, wanted: usize, asked: &mut Asked) {
        self.measure_groups(query, asked);
        let groups = groups.clamp(1, asked.groups.len());
        if groups < asked.groups.len() {
            asked.groups.select_nth_unstable(groups);
        }
        if groups > FIRST {
            asked.groups[..groups].select_nth_unstable(FIRST);
        }
        asked.near.clear();
        let mut bound = f32::INFINITY;
        let mut room = wanted * 2;
        // These codes are at hand: they are few, and every search scans many of them.
        let mut ahead = Ahead::default();
        for (i, near) in asked.groups[..groups].iter().enumerate() {
            let group = near.number();
            let first = self.firsts[group] as usize;
            asked.found.clear();
            let scan = Scan {
                planes: &query.planes,
                blocks: &self.codes,
                range: first..first + self.counts[group] as usize,
                step: query.plane_step,
                error: 0.0,
                base: near.distance(),
                bound,
            };
            distance::scan(&scan, &mut ahead, &mut asked.found);
            asked.near.extend(asked.found.iter().map(|found| Near::new(found.least, found.reference)));
            if i + 1 >= FIRST && asked.near.len() > room {
                asked.near.select_nth_unstable(wanted - 1);
                bound = asked.near[wanted - 1].distance();
                asked.near.truncate(wanted);
                room = wanted + wanted / 2;
            }
        }
        if asked.near.len() > wanted {
            asked.near.select_nth_unstable(wanted - 1);
            asked.near.truncate(wanted);
        }
    }
}

/// Codes as the kernel reads them.
#[derive(Clone, Debug)]
pub struct CodeBlocks {
    words: usize,
    len: usize,
    bytes: Vec<u8>,
}

impl CodeBlocks {
    /// No code of `words` words.
    #[must_use]
    pub fn new(words: usize) -> Self {
        Self { words, len: 0, bytes: Vec::new() }
    }

    /// Blocks that hold `len` codes already.
    #[must_use]
    pub fn of(words: usize, len: usize, bytes: Vec<u8>) -> Self {
        Self { words, len, bytes }
    }

    /// Codes that were pushed, and places that were left out.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The blocks.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Leaves the rest of a block out.
    pub fn align(&mut self) {
        self.len = self.len.next_multiple_of(BLOCK);
    }

    /// Appends a code.
    ///
    /// # Panics
    /// If it has another length.
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

/// Whom a code is of that [`CodeBlocks::push`] wrote.
pub(super) fn reference(blocks: &[u8], words: usize, i: usize) -> u32 {
    let block = distance::block_bytes(words);
    let tail = i / BLOCK * block + words * BLOCK * 8;
    bytemuck::pod_read_unaligned(&blocks[tail + BLOCK * 4 + i % BLOCK * 4..][..4])
}

/// What [`CodeBlocks::push`] wrote.
pub(super) fn read_code(blocks: &[u8], words: usize, i: usize) -> (u32, Vec<u64>, crate::codes::Factors) {
    let block = &blocks[i / BLOCK * distance::block_bytes(words)..];
    let lane = i % BLOCK;
    let signs = (0..words).map(|w| bytemuck::pod_read_unaligned(&block[(w * BLOCK + lane) * 8..][..8])).collect();
    let tail = &block[words * BLOCK * 8..];
    let factor = bytemuck::pod_read_unaligned(&tail[lane * 2..][..2]);
    let add = bytemuck::pod_read_unaligned(&tail[BLOCK * 2 + lane * 2..][..2]);
    (reference(blocks, words, i), signs, crate::codes::Factors { factor, add })
}
