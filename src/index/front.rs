//! The cells on the way of a search, in the order of their distances.

use std::ops::Deref;

use crate::{
    cells::{self, CellIndex, GroupView, Near},
    codes::Query,
    distance::{self, Ahead, BLOCK},
    error::Result,
    shard::DataFile,
    storage::StorageFile,
};

/// A cell whose distance was computed.
#[derive(Clone, Copy)]
pub(super) struct Measured<'a> {
    pub(super) base: f32,
    /// A standard deviation of it.
    pub(super) error: f32,
    pub(super) square: f32,
    /// What margins are in units of.
    pub(super) unit: f32,
    /// Blocks of its group from the one on that has its first code.
    pub(super) codes: &'a [u8],
    pub(super) first: usize,
    pub(super) count: usize,
}

/// Cells that are measured together.
const STRIDE: usize = 16;

/// Cells that are told from the rest together.
const NEAR: usize = 6 * STRIDE;

/// Cells on the way from an estimated to a computed distance: so far as the estimates tell, they come in order. The bytes
/// of those to be measured next are asked for while others are scanned.
pub(super) struct Front<'a, 'b> {
    estimated: &'b mut [Near],
    /// Of `estimated`, how many are on their way or measured.
    at: usize,
    /// Up to here `estimated` are nearer than the rest: so that it is not the whole rest that is looked through each time.
    near: usize,
    /// The next ones of `estimated`, and the least estimate among them.
    coming: [Option<Coming<'a>>; STRIDE],
    least: f32,
    measured: Vec<Measured<'a>>,
    /// The order of those of `measured` that were not taken yet, the nearest last.
    order: Vec<(Near, u32)>,
}

/// A cell that is to be measured.
#[derive(Clone, Copy)]
struct Coming<'a> {
    number: usize,
    group: GroupView<'a>,
    cell: usize,
}

impl<'a, 'b> Front<'a, 'b> {
    /// The way from one cell to the next, of estimated ones.
    pub(super) fn new<F: StorageFile, B: Deref<Target = [u8]>>(
        from: (&'a CellIndex<B>, &DataFile<F>),
        ahead: &mut Ahead<'a>,
        estimated: &'b mut [Near],
    ) -> Result<Self> {
        let (measured, order) = (Vec::with_capacity(4 * STRIDE), Vec::with_capacity(2 * STRIDE));
        let mut front = Self { estimated, at: 0, near: 0, coming: [None; STRIDE], least: 0.0, measured, order };
        front.advance(from, ahead)?;
        ahead.finish();
        Ok(front)
    }

    /// The nearest cell, and the codes of the one after it if it is known.
    pub(super) fn next<F: StorageFile, B: Deref<Target = [u8]>>(
        &mut self,
        from: (&'a CellIndex<B>, &DataFile<F>),
        ahead: &mut Ahead<'a>,
        query: &Query,
    ) -> Result<Option<(Measured<'a>, &'a [u8])>> {
        while self.order.last().is_none_or(|nearest| self.least < nearest.0.distance()) {
            if self.coming[0].is_none() {
                break;
            }
            self.measure(query);
            self.advance(from, ahead)?;
        }
        let Some((_, i)) = self.order.pop() else { return Ok(None) };
        let after = self.order.last().map_or(&[] as &[u8], |&(_, i)| self.measured[i as usize].codes);
        Ok(Some((self.measured[i as usize], after)))
    }

    /// Finds out which cells come next, and asks for what they are measured by.
    fn advance<F: StorageFile, B: Deref<Target = [u8]>>(
        &mut self,
        (cells, data): (&'a CellIndex<B>, &DataFile<F>),
        ahead: &mut Ahead<'a>,
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
                let offset = cells.table().groups[group].place.page * data.geometry().page_size as u64;
                cells::damaged(data.path(), offset, &what)
            })?;
            ahead.push(opened.centroid(cell));
            *coming = Some(Coming { number, group: opened, cell });
        }
        Ok(())
    }

    /// Measures the cells that were next.
    fn measure(&mut self, query: &Query) {
        for &Coming { number, group, cell } in self.coming.iter().flatten() {
            let entry = group.cell(cell);
            let product = distance::dot_byte_row(&query.bytes.bytes, group.centroid(cell));
            let (base, square) = query.bytes.base(entry.centroid, product);
            let (first, count) = (entry.first as usize, entry.count as usize);
            let bytes = distance::block_bytes(query.planes.len());
            let blocks = first / BLOCK * bytes..(first + count).div_ceil(BLOCK) * bytes;
            // Bytes that rot under the mapping after they were checked may name anything.
            let Some(codes) = group.blocks().get(blocks) else { continue };
            self.order.push((Near::new(base, number as u32), self.measured.len() as u32));
            let error = query.bytes.base_error(entry.centroid);
            let unit = query.bytes.unit(square, error);
            self.measured.push(Measured { base, error, square, unit, codes, first: first % BLOCK, count });
        }
        self.order.sort_unstable_by(|a, b| b.cmp(a));
    }
}
