//! Queue of the cells of a search, in the order of their distances.

use std::ops::Deref;

use crate::{
    cells::{self, CellIndex, GroupView, RankedId},
    codes::QuantizedQuery,
    distance::{self, BLOCK, Prefetch},
    error::Result,
    shard::DataFile,
    storage::StorageFile,
};

/// Cell whose distance was computed.
#[derive(Clone, Copy)]
pub(super) struct RankedCell<'a> {
    /// Distance from the query to the cell's centroid.
    pub(super) base: f32,
    /// Standard deviation of `base`.
    pub(super) error: f32,
    /// Squared Euclidean distance from the query to the cell's centroid.
    pub(super) square: f32,
    /// Unit of margins at this cell.
    pub(super) unit: f32,
    /// Blocks of its group that contain its codes.
    pub(super) codes: &'a [u8],
    /// Index of its first code in `codes`.
    pub(super) first: usize,
    /// Number of its codes.
    pub(super) count: usize,
}

/// Number of cells whose distances are computed together.
const STRIDE: usize = 16;

/// Number of cells that are selected from the remaining ones together.
const NEAR: usize = 6 * STRIDE;

/// Queue of cells in the order of their computed distances.
///
/// Cells are measured in the order of their estimated distances, so a wrong estimate may return a cell too late. The
/// centroid bytes of the next cells are prefetched while other cells are scanned.
pub(super) struct CellQueue<'a, 'b> {
    /// Cells with their estimated distances, partially sorted by [`advance`](Self::advance).
    estimated: &'b mut [RankedId],
    /// Number of cells of `estimated` that are coming or measured.
    at: usize,
    /// Length of the prefix of `estimated` whose cells are nearer than all others. It limits each selection to this
    /// prefix.
    near: usize,
    /// Next cells to measure, and the least estimate among them.
    coming: [Option<QueuedCell<'a>>; STRIDE],
    least: f32,
    /// Cells whose distances were computed.
    measured: Vec<RankedCell<'a>>,
    /// Distances and positions of the cells of `measured` that were not returned yet, farthest first.
    order: Vec<(RankedId, u32)>,
}

/// Cell whose distance is computed next.
#[derive(Clone, Copy)]
struct QueuedCell<'a> {
    number: usize,
    group: GroupView<'a>,
    cell: usize,
}

impl<'a, 'b> CellQueue<'a, 'b> {
    /// Creates a queue of cells with estimated distances, and prefetches the centroids of the first ones.
    ///
    /// # Errors
    /// Returns `Corruption` if a cell group is damaged.
    pub(super) fn new<F: StorageFile, B: Deref<Target = [u8]>>(
        cells: &'a CellIndex<B>,
        data: &DataFile<F>,
        prefetch: &mut Prefetch<'a>,
        estimated: &'b mut [RankedId],
    ) -> Result<Self> {
        let (measured, order) = (Vec::with_capacity(4 * STRIDE), Vec::with_capacity(2 * STRIDE));
        let mut front = Self { estimated, at: 0, near: 0, coming: [None; STRIDE], least: 0.0, measured, order };
        front.advance(cells, data, prefetch)?;
        prefetch.finish();
        Ok(front)
    }

    /// Removes and returns the nearest cell, and the codes of the cell after it, empty if that cell is unknown. `None`
    /// if the queue is empty.
    ///
    /// # Errors
    /// Returns `Corruption` if a cell group is damaged.
    #[inline]
    pub(super) fn next<F: StorageFile, B: Deref<Target = [u8]>>(
        &mut self,
        cells: &'a CellIndex<B>,
        data: &DataFile<F>,
        prefetch: &mut Prefetch<'a>,
        query: &QuantizedQuery,
    ) -> Result<Option<(RankedCell<'a>, &'a [u8])>> {
        while self.order.last().is_none_or(|nearest| self.least < nearest.0.distance()) {
            if self.coming[0].is_none() {
                break;
            }
            self.measure(query);
            self.advance(cells, data, prefetch)?;
        }
        let Some((_, i)) = self.order.pop() else { return Ok(None) };
        let after = self.order.last().map_or(&[] as &[u8], |&(_, i)| self.measured[i as usize].codes);
        Ok(Some((self.measured[i as usize], after)))
    }

    /// Selects the next cells to measure, and queues their centroid bytes for prefetching.
    ///
    /// # Errors
    /// Returns `Corruption` if a cell group is damaged.
    fn advance<F: StorageFile, B: Deref<Target = [u8]>>(
        &mut self,
        cells: &'a CellIndex<B>,
        data: &DataFile<F>,
        prefetch: &mut Prefetch<'a>,
    ) -> Result<()> {
        if self.at == self.near {
            let rest = &mut self.estimated[self.at..];
            let n = NEAR.min(rest.len());
            if n < rest.len() {
                rest.select_nth_unstable(n);
            }
            self.near += n;
        }
        let rest = &mut self.estimated[self.at..self.near];
        let n = STRIDE.min(rest.len());
        if n < rest.len() {
            rest.select_nth_unstable(n);
        }
        self.at += n;
        self.least = rest[..n].iter().min().map_or(f32::INFINITY, |near| near.distance());
        self.coming = [None; STRIDE];
        for (near, coming) in rest[..n].iter().zip(&mut self.coming) {
            let number = near.number();
            let (group, cell) = cells.router().cell(number);
            let opened = cells.group(group).map_err(|what| {
                let offset = cells.table().groups[group].pointer.page * data.geometry().page_size as u64;
                cells::damaged(data.path(), offset, &what)
            })?;
            prefetch.push(opened.centroid(cell));
            *coming = Some(QueuedCell { number, group: opened, cell });
        }
        Ok(())
    }

    /// Computes the distances of the cells selected by [`advance`](Self::advance).
    fn measure(&mut self, query: &QuantizedQuery) {
        for &QueuedCell { number, group, cell } in self.coming.iter().flatten() {
            let entry = group.cell(cell);
            let product = distance::dot_byte_row(&query.bytes.bytes, group.centroid(cell));
            let (base, square) = query.bytes.base(entry.centroid, product);
            let (first, count) = (entry.first as usize, entry.count as usize);
            let bytes = distance::block_bytes(query.planes.len());
            let blocks = first / BLOCK * bytes..(first + count).div_ceil(BLOCK) * bytes;
            // The mapped bytes may rot after their checksum was verified, so the position may be invalid.
            let Some(codes) = group.blocks().get(blocks) else { continue };
            self.order.push((RankedId::new(base, number as u32), self.measured.len() as u32));
            let error = query.bytes.base_error(entry.centroid);
            let unit = query.bytes.unit(square, error);
            self.measured.push(RankedCell { base, error, square, unit, codes, first: first % BLOCK, count });
        }
        self.order.sort_unstable_by(|a, b| b.cmp(a));
    }
}
