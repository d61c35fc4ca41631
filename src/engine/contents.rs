//! The long part of a full check: verifies every byte that searches read.
//!
//! It needs the state at one moment but not the engine, so it may run beside the writer. The allocations of its shards
//! and cells are not reused while it holds them.

use std::{collections::BTreeSet, ops::Deref, sync::Arc};

use super::{
    check_files::check_all_but_contents,
    check_payloads::check_contents,
    check_tools::read,
    core::{Engine, Lent},
    findings::{At, Component, ConsistencyReport},
};
use crate::{
    cells::{AlignedBytes, CellIndex, GroupView},
    codes::encode,
    env::Cancel,
    error::Result,
    failpoint::holds,
    format::{cells::CoveredShard, crc32c, geometry::IndexParams},
    index::Snapshot,
    lease::{Allocation, Lease},
    payload::PayloadIndex,
    shard::{
        DataFile, Finder, Fingerprints, Lookup, Shard, SharedShard, StoredPosting, decode, is_encoded, record, row,
        slot_bytes,
    },
    storage::{Storage, StorageFile},
};

/// Tolerance for the difference between a stored sum and the recomputed one, relative to the sum of all magnitudes. It
/// covers the rounding of some thousand additions and subtractions in f64.
const SUM_TOLERANCE: f64 = 1e-9;

/// Full check whose part that needs the engine is complete.
pub struct CheckJob<S: Storage> {
    /// Findings of the part that needs the engine.
    report: ConsistencyReport,
    data: Arc<DataFile<S::File>>,
    shards: Vec<Option<SharedShard<S::File>>>,
    finder: Finder,
    cells: Option<Arc<CellIndex<Lease<Lent<S>>>>>,
    payloads: PayloadIndex<Lent<S>>,
    /// Snapshot that searches use, with the codes of unindexed postings.
    published: Arc<Snapshot<Lent<S>>>,
}

impl<S: Storage> CheckJob<S> {
    /// Checks figures, files and metadata. `taken` holds allocations of a flush that the engine doesn't list yet.
    pub(super) fn new(engine: &Engine<S>, taken: Option<&[Arc<Allocation>]>) -> Result<Self> {
        Ok(Self {
            report: check_all_but_contents(engine, taken)?,
            data: Arc::clone(&engine.data),
            shards: engine.work.shards.clone(),
            finder: engine.work.finder.clone(),
            cells: engine.work.cells.as_ref().map(|(cells, _)| Arc::clone(cells)),
            payloads: engine.work.payloads.clone(),
            published: engine.snapshot(),
        })
    }

    /// Checks every vector, posting and code.
    ///
    /// # Errors
    /// Returns `Io` if the disk can't be read, and `Closed` if the check is cancelled. Damage is a finding.
    pub fn run_until(self, cancel: &dyn Cancel) -> Result<ConsistencyReport> {
        let mut report = self.report.clone();
        let mut keys = BTreeSet::new();
        // First, because it copies each extent before it reads the mapping. The cells are compared with vectors in the
        // mapping only, where a page that the device can't read ends the process.
        for (number, shard) in (0u32..).zip(&self.shards) {
            if let Some(shard) = shard {
                check_bytes(&mut report, number, shard, &*self.data, &self.finder, &mut keys, cancel)?;
            }
        }
        check_contents::<S>(&mut report, &self.payloads, &self.data, cancel)?;
        self.check_cells(&mut report, cancel)?;
        Ok(report)
    }
}

impl<S: Storage> Engine<S> {
    /// Runs the part of a full check that needs the engine: figures, files and metadata. Returns a job for the part
    /// that takes long.
    ///
    /// # Errors
    /// Returns `Io` if the disk can't be read. Damage is a finding.
    pub fn check_begin(&self) -> Result<CheckJob<S>> {
        CheckJob::new(self, None)
    }
}

impl<S: Storage> CheckJob<S> {
    /// Compares every code in the cells with its vector, and counts the codes of every covered posting.
    fn check_cells(&self, report: &mut ConsistencyReport, cancel: &dyn Cancel) -> Result<()> {
        let Some(cells) = &self.cells else { return Ok(()) };
        let data = &self.data;
        let at = At::new(Component::Cells);
        let wanted = if cells.cells() > 1 { 2 } else { 1 };
        let mut codes = vec![0u8; cells.postings() as usize];
        for (g, group) in cells.table().groups.iter().chain(&cells.table().unfinished).enumerate() {
            cancel.check()?;
            let offset = group.pointer.page * data.geometry().page_size as u64;
            let bytes = match read(report, data, offset, group.pointer.len as usize) {
                Ok(bytes) => AlignedBytes::new(&bytes),
                Err(error) => {
                    report.add(
                        at.clone().location(data.path(), offset),
                        "a group of cells",
                        "bytes",
                        error.to_string(),
                    );
                    continue;
                }
            };
            if let Err(what) = cells.check_bytes(g, &bytes) {
                report.add(
                    at.clone().location(data.path(), offset),
                    "a group of cells",
                    "intact bytes",
                    what.to_string(),
                );
                continue;
            }
            if g < cells.len() {
                self.check_codes(report, cells, g, &cells.view(g, &bytes), &mut codes);
            }
        }
        for number in self.published.shards_with_wrong_codes(data.geometry(), cancel)? {
            let at = At::shard(number).of_cells();
            report.add(at, "the codes of what is in no cell", "those of the vectors", "others");
        }
        for (i, covered) in cells.table().shards.iter().enumerate() {
            let Some(shard) = self.shard(covered) else { continue };
            for former in 0..covered.slots {
                let present = shard.slot_since(covered.id, former).filter(|&slot| shard.is_live(slot as usize));
                let Some(slot) = present else { continue };
                let found = codes[cells.reference(i, former) as usize];
                // One code instead of two is no finding: cells with one centroid may be the parts of a single large
                // cell, and the other code may be in a damaged group.
                if found == 0 || found > wanted {
                    let at = At::shard(covered.number).slot(slot as usize).of_cells();
                    report.add(at, "codes of a posting that is covered", wanted.to_string(), found.to_string());
                }
            }
        }
        Ok(())
    }

    /// Returns the shard under the number of a covered shard.
    fn shard(&self, covered: &CoveredShard) -> Option<&SharedShard<S::File>> {
        self.shards.get(covered.number as usize)?.as_ref()
    }

    /// Compares the codes of one group with their vectors, and counts the codes of each posting in `codes`.
    fn check_codes(
        &self,
        report: &mut ConsistencyReport,
        cells: &CellIndex<Lease<Lent<S>>>,
        g: usize,
        group: &GroupView<'_>,
        codes: &mut [u8],
    ) {
        let geometry = self.data.geometry();
        let slots = geometry.extent_slots;
        let (mut widened, mut rotated, mut signs) = (Vec::new(), Vec::new(), Vec::new());
        for c in 0..group.cells() {
            let cell = group.cell(c);
            let centroid: Vec<f32> = group.centroid_values(c).collect();
            for i in cell.first..cell.first + cell.count {
                let (reference, stored, factors) = group.code(i as usize);
                let Some((covered, slot)) = cells.posting(reference) else { continue };
                let Some(shard) = self.shard(covered) else { continue };
                let present = shard.slot_since(covered.id, slot).filter(|_| slot < covered.slots);
                let Some(slot) = present.map(|slot| slot as usize).filter(|&slot| shard.is_live(slot)) else {
                    continue;
                };
                codes[reference as usize] = codes[reference as usize].saturating_add(1);
                let vector = row(shard.extents()[slot / slots].lent(), slot % slots, geometry);
                cells.frame().transform(vector.widened(&mut widened), &mut rotated);
                signs.clear();
                let expected = encode(&rotated, &centroid, cells.frame().rotated_centre(), geometry.metric, &mut signs);
                if (expected, &signs) != (factors, &stored) {
                    let at = At::shard(covered.number).slot(slot).of_cells();
                    report.add(at, &format!("the code in cell {c} of group {g}"), "that of its vector", "another");
                }
            }
        }
    }
}

/// Checks that a slot holds a vector of its encoding, and returns it.
fn check_vector(report: &mut ConsistencyReport, at: At, slot: &[u8], geometry: &IndexParams) -> Vec<f32> {
    let stored = &slot[..geometry.vector_bytes()];
    if !is_encoded(stored, geometry) {
        report.add(at, "the bytes of its vector", format!("one that {} encodes", geometry.encoding), "others");
    }
    decode(stored, geometry)
}

/// Checks that the filters lead to a live posting: the shard's bloom filter, and the lookups of its document and of its
/// key.
fn check_lookups<L: Deref<Target = [u8]> + Clone>(
    report: &mut ConsistencyReport,
    number: u32,
    shard: &Shard<L>,
    slot: usize,
    posting: &StoredPosting,
    finder: &Finder,
) {
    let id = posting.document_id;
    if !shard.bloom().may_contain(id) {
        report.add(At::shard(number).slot(slot), "the bloom filter knows the document", id.to_string(), "no");
    }
    let mut candidates = Vec::new();
    for lookup in [Lookup::Document(id), Lookup::Key(posting.key())] {
        finder.candidates(lookup, &mut candidates);
        if !candidates.contains(&(number as usize)) {
            report.add(At::shard(number).slot(slot), "a lookup finds the shard of", id.to_string(), "not");
        }
    }
}

/// Checks every vector and posting of a shard, as read from the disk.
fn check_bytes<F: StorageFile>(
    report: &mut ConsistencyReport,
    number: u32,
    shard: &Shard<F::Lent>,
    data: &DataFile<F>,
    finder: &Finder,
    keys: &mut BTreeSet<(u128, u32, u32)>,
    cancel: &dyn Cancel,
) -> Result<()> {
    let geometry = data.geometry();
    let slots = geometry.extent_slots;
    let (mut sum, mut magnitude) = (vec![0.0f64; geometry.dimension], vec![0.0f64; geometry.dimension]);
    let mut intact = true;
    let mut fingerprints = Fingerprints::default();
    for (e, extent) in shard.extents().iter().enumerate() {
        cancel.check()?;
        let offset = data.offset(extent.allocation());
        let bytes = read(report, data, offset, extent.used() * geometry.slot_bytes())?;
        let (expected, found) = (extent.state().crc, crc32c(0, &bytes));
        if !holds!(Checksum, found == expected) {
            intact = false;
            let at = At::shard(number).slot(e * slots).location(data.path(), offset);
            report.add(at, "checksum of an extent", format!("{expected:08x}"), format!("{found:08x}"));
        }
        for i in 0..extent.used() {
            let slot = e * slots + i;
            let posting = record(&bytes, i, geometry);
            fingerprints.push(&posting);
            let stored = slot_bytes(&bytes, i, geometry);
            let vector = check_vector(report, At::shard(number).slot(slot), stored, geometry);
            // Removed vectors have contributed rounding errors to the running sum. They stay in their slots until the
            // shard is rewritten, which computes its sum afresh.
            magnitude.iter_mut().zip(&vector).for_each(|(magnitude, x)| *magnitude += f64::from(x.abs()));
            if !shard.is_live(slot) {
                continue;
            }
            check_lookups(report, number, shard, slot, &posting, finder);
            let id = posting.document_id;
            if !keys.insert((id.0, posting.start, posting.length)) {
                let what = format!("posting ({id}, {}, {}) is in one place", posting.start, posting.length);
                report.add(At::shard(number).slot(slot), &what, "once", "twice");
            }
            sum.iter_mut().zip(&vector).for_each(|(sum, x)| *sum += f64::from(*x));
            // The mapping that searches read must show the bytes on disk.
            if slot_bytes(extent.lent(), i, geometry) != stored {
                report.add(At::shard(number).slot(slot), "the mapping shows the bytes on disk", "equal", "other");
            }
        }
    }
    if intact && shard.known_fingerprints().is_some_and(|known| *known != fingerprints) {
        report.add(At::shard(number), "the fingerprints of its slots", "those of its postings", "others");
    }
    for (i, ((expected, found), magnitude)) in sum.iter().zip(shard.sum()).zip(&magnitude).enumerate() {
        if intact && (expected - found).abs() > SUM_TOLERANCE * (magnitude + 1.0) {
            let what = format!("component {i} of the running sum");
            report.add(At::shard(number), &what, format!("{expected:e}"), format!("{found:e}"));
        }
    }
    Ok(())
}
