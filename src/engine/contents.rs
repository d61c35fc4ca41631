//! What searches read, checked byte by byte: the part of a full check that takes long.
//!
//! It needs the state as it was at some moment and nothing of the engine, so it may run beside the writer: the places of
//! its shards and cells are not used again as long as it holds them.

use std::{collections::BTreeSet, sync::Arc};

use super::{
    Engine, Lent,
    check::{At, Component, ConsistencyReport, SUM_TOLERANCE, check_all_but_contents, read},
    working::SharedShard,
};
use crate::{
    cells::{Aligned, CellIndex, GroupView},
    codes::encode,
    env::Cancel,
    error::Result,
    format::{cells::Covered, crc32c},
    index::Snapshot,
    lease::{Lease, Place},
    shard::{DataFile, Finder, Lookup, Prints, Shard, record, row},
    site::{self, Kind},
    storage::{Storage, StorageFile},
};

/// A full check of which the part that needs the engine is done.
pub struct CheckJob<S: Storage> {
    /// What that part found.
    report: ConsistencyReport,
    data: Arc<DataFile<S::File>>,
    shards: Vec<Option<SharedShard<S::File>>>,
    finder: Finder,
    cells: Option<Arc<CellIndex<Lease<Lent<S>>>>>,
    /// What searches see: codes of what is in no cell.
    published: Arc<Snapshot<Lent<S>>>,
}

impl<S: Storage> CheckJob<S> {
    /// Checks figures, files and metadata. `taken` are places that a flush uses which the engine is not told of yet.
    pub(super) fn new(engine: &Engine<S>, taken: Option<&[Arc<Place>]>) -> Result<Self> {
        Ok(Self {
            report: check_all_but_contents(engine, taken)?,
            data: Arc::clone(&engine.data),
            shards: engine.work.shards.clone(),
            finder: engine.work.finder.clone(),
            cells: engine.work.cells.as_ref().map(|(cells, _)| Arc::clone(cells)),
            published: engine.snapshot(),
        })
    }

    /// Checks every vector, posting and code.
    ///
    /// # Errors
    /// `Io` if the disk cannot be read, `Closed` if it is cancelled; damage is a finding.
    pub fn run_until(self, cancel: &dyn Cancel) -> Result<ConsistencyReport> {
        let mut report = self.report.clone();
        let mut keys = BTreeSet::new();
        self.check_cells(&mut report, cancel)?;
        for (number, shard) in (0u32..).zip(&self.shards) {
            if let Some(shard) = shard {
                check_bytes(&mut report, (number, shard), (&*self.data, &self.finder), &mut keys, cancel)?;
            }
        }
        Ok(report)
    }
}

impl<S: Storage> Engine<S> {
    /// Does what of a full check needs the engine: figures, files and metadata are checked here, whatever takes long is
    /// left to the job.
    ///
    /// # Errors
    /// `Io` if the disk cannot be read; damage is a finding.
    pub fn check_begin(&self) -> Result<CheckJob<S>> {
        CheckJob::new(self, None)
    }
}

impl<S: Storage> CheckJob<S> {
    /// Every code in the cells against the vector that it is of, and every covered posting against the codes that it has.
    fn check_cells(&self, report: &mut ConsistencyReport, cancel: &dyn Cancel) -> Result<()> {
        let Some(cells) = &self.cells else { return Ok(()) };
        let data = &self.data;
        let at = At::new(Component::Cells);
        let wanted = if cells.cells() > 1 { 2 } else { 1 };
        let mut codes = vec![0u8; cells.postings() as usize];
        for (g, group) in cells.table().groups.iter().chain(&cells.table().ahead).enumerate() {
            cancel.check()?;
            let offset = group.place.page * data.geometry().page_size as u64;
            let bytes = match read(report, data, offset, group.place.len as usize) {
                Ok(bytes) => Aligned::new(&bytes),
                Err(error) => {
                    report.add(at.clone().place(data.path(), offset), "a group of cells", "bytes", error.to_string());
                    continue;
                }
            };
            if let Err(what) = cells.check_bytes(g, &bytes) {
                report.add(at.clone().place(data.path(), offset), "a group of cells", "intact bytes", what.to_string());
                continue;
            }
            if g < cells.len() {
                self.check_codes(report, cells, (g, &cells.view(g, &bytes)), &mut codes);
            }
        }
        for number in self.published.wrong_codes(data.geometry(), cancel)? {
            let at = At::shard(number).of_cells();
            report.add(at, "the codes of what is in no cell", "those of the vectors", "others");
        }
        for (i, covered) in cells.table().shards.iter().enumerate() {
            let Some(shard) = self.shard(covered) else { continue };
            for slot in (0..covered.slots).filter(|&slot| shard.is_live(slot as usize)) {
                let found = codes[cells.reference(i, slot) as usize];
                // Cells of one centroid each hold a part; a posting may have both its codes in one group that is damaged.
                if found == 0 || found > wanted {
                    let at = At::shard(covered.number).slot(slot as usize).of_cells();
                    report.add(at, "codes of a posting that is covered", wanted.to_string(), found.to_string());
                }
            }
        }
        Ok(())
    }

    /// The shard that cells cover, if it is still there.
    fn shard(&self, covered: &Covered) -> Option<&SharedShard<S::File>> {
        let shard = self.shards.get(covered.number as usize)?.as_ref();
        shard.filter(|shard| shard.id == covered.id)
    }

    /// The codes of one group; counts how many each posting has.
    fn check_codes(
        &self,
        report: &mut ConsistencyReport,
        cells: &CellIndex<Lease<Lent<S>>>,
        (g, group): (usize, &GroupView<'_>),
        codes: &mut [u8],
    ) {
        let geometry = self.data.geometry();
        let slots = geometry.extent_slots();
        let (mut rotated, mut signs) = (Vec::new(), Vec::new());
        for c in 0..group.cells() {
            let cell = group.cell(c);
            let centroid: Vec<f32> = group.centroid_values(c).collect();
            for i in cell.first..cell.first + cell.count {
                let (reference, stored, factors) = group.code(i as usize);
                let Some((covered, slot)) = cells.posting(reference) else { continue };
                let Some(shard) = self.shard(covered) else { continue };
                let slot = slot as usize;
                if slot >= covered.slots as usize || !shard.is_live(slot) {
                    continue;
                }
                codes[reference as usize] = codes[reference as usize].saturating_add(1);
                let vector = row(shard.extents()[slot / slots].lent(), slot % slots, geometry);
                cells.frame().place(vector, &mut rotated);
                signs.clear();
                let expected = encode(&rotated, &centroid, cells.frame().turned(), geometry.metric, &mut signs);
                if (expected, &signs) != (factors, &stored) {
                    let at = At::shard(covered.number).slot(slot).of_cells();
                    report.add(at, &format!("the code in cell {c} of group {g}"), "that of its vector", "another");
                }
            }
        }
    }
}

/// Every vector and posting of a shard, from the disk.
fn check_bytes<F: StorageFile>(
    report: &mut ConsistencyReport,
    (number, shard): (u32, &Shard<F::Lent>),
    (data, finder): (&DataFile<F>, &Finder),
    keys: &mut BTreeSet<(u128, u32, u32)>,
    cancel: &dyn Cancel,
) -> Result<()> {
    let geometry = data.geometry();
    let slots = geometry.extent_slots();
    let mut sum = vec![0.0f64; geometry.dimension];
    let mut magnitude = vec![0.0f64; geometry.dimension];
    let mut intact = true;
    let mut prints = Prints::default();
    for (e, extent) in shard.extents().iter().enumerate() {
        cancel.check()?;
        let offset = data.offset(extent.place());
        let bytes = read(report, data, offset, extent.used() * geometry.slot_bytes())?;
        let (expected, found) = (extent.state().crc, crc32c(0, &bytes));
        if !site::holds(Kind::Checksum, found == expected) {
            intact = false;
            let at = At::shard(number).slot(e * slots).place(data.path(), offset);
            report.add(at, "checksum of an extent", format!("{expected:08x}"), format!("{found:08x}"));
        }
        for i in 0..extent.used() {
            let slot = e * slots + i;
            let posting = record(&bytes, i, geometry);
            prints.push(&posting);
            if !shard.is_live(slot) {
                continue;
            }
            let id = posting.document_id;
            if !shard.bloom().may_contain(id) {
                report.add(At::shard(number).slot(slot), "the bloom filter knows the document", id.to_string(), "no");
            }
            let mut candidates = Vec::new();
            for lookup in [Lookup::Document(id), Lookup::Key(id, posting.start, posting.length)] {
                finder.candidates(lookup, &mut candidates);
                if !candidates.contains(&(number as usize)) {
                    report.add(At::shard(number).slot(slot), "a lookup finds the shard of", id.to_string(), "not");
                }
            }
            if !keys.insert((id.0, posting.start, posting.length)) {
                let what = format!("posting ({id}, {}, {}) is in one place", posting.start, posting.length);
                report.add(At::shard(number).slot(slot), &what, "once", "twice");
            }
            let at = i * geometry.slot_bytes();
            let vector: Vec<f32> = bytemuck::allocation::pod_collect_to_vec(&bytes[at..at + geometry.vector_bytes()]);
            for ((sum, magnitude), x) in sum.iter_mut().zip(&mut magnitude).zip(&vector) {
                *sum += f64::from(*x);
                *magnitude += f64::from(x.abs());
            }
            // What searches read is what the disk holds.
            if row(extent.lent(), i, geometry) != vector.as_slice() {
                report.add(At::shard(number).slot(slot), "the mapping shows the bytes on disk", "equal", "other");
            }
        }
    }
    if intact && shard.known_prints().is_some_and(|known| *known != prints) {
        report.add(At::shard(number), "the fingerprints of its slots", "those of its postings", "others");
    }
    for (i, ((expected, found), magnitude)) in sum.iter().zip(shard.sum()).zip(&magnitude).enumerate() {
        // What was removed since the sum began counts too, and is unknown here: the stored sum bounds it.
        if intact && (expected - found).abs() > SUM_TOLERANCE * (magnitude + found.abs() + 1.0) {
            let what = format!("component {i} of the running sum");
            report.add(At::shard(number), &what, format!("{expected:e}"), format!("{found:e}"));
        }
    }
    Ok(())
}
