//! Cell builds: when cells are built, how they are installed, and where they are stored. [Cells](crate::cells) are
//! derived from the postings.
//!
//! Invariants:
//! 1. A job builds cells from a snapshot, while writes continue. The writer installs them in one step.
//! 2. Cells are stored in free allocations and become durable with the next root, which names their head. The
//!    allocations of the previous cells are held as long as a root or a snapshot names them.
//! 3. An interrupted build leaves the centroids that it has reached. No search uses them. The next build starts from
//!    them, in this open of the index or a later one. They are stored beside the cells that searches use, and never
//!    replace these. A build interrupted during calibration leaves usable cells. A search whose effort is not measured
//!    yet is exhaustive. The next job calibrates the missing efforts.
//! 4. Cells that keep their groups keep the groups' allocations. Two tables may name one allocation, which is retired
//!    with the last of them.
//! 5. Damaged or unreadable cells cost no posting: searches work without them, and the next cells replace them.

use std::sync::Arc;

use super::{
    cell_store::store,
    core::{Engine, Lent},
    stats::{ReachedRecall, RecallMeasurement},
};
use crate::{
    cells::{AlignedBytes, BuiltCells, CellIndex, build},
    codes::Rotation,
    env::{Cancel, CellPolicy, Executor, Never, Workers},
    error::{Result, ShardexError},
    failpoint::{protects, reached},
    format::{
        calibration::{Calibration, RECALLS, RESULTS, SearchEffort},
        cells::encode_head,
        node::BlockPointer,
    },
    id::Lsn,
    index::{CellsUnderTest, Snapshot, calibrate},
    lease::Lease,
    shard::DataFile,
    storage::Storage,
    tuning,
};

/// First draw number of cell builds. The LSN of the build's snapshot is added to it.
const DRAWS: u64 = 1 << 62;

/// Cell build on a snapshot. It runs without the engine and changes nothing.
pub struct CellBuildJob<S: Storage> {
    snapshot: Arc<Snapshot<Lent<S>>>,
    data: Arc<DataFile<S::File>>,
    rotation: Arc<Rotation>,
    /// Cells to start from, with the centroids of an interrupted build.
    before: Option<Arc<CellIndex<Lease<Lent<S>>>>>,
    index_id: u128,
    executor: Arc<dyn Executor>,
    policy: CellPolicy,
    /// Whether existing cells may be kept if only their calibration is incomplete or out of date.
    resumes: bool,
}

impl<S: Storage> CellBuildJob<S> {
    /// Builds cells of every posting in the snapshot. Reads all vectors. Returns `None` if there is no posting, or if
    /// cells don't pay because exhaustive searches cost less. Also returns `None` if a group of one cell or the table's
    /// head exceeds the largest page range, or if posting references exceed 32 bits.
    ///
    /// # Errors
    /// Returns `Corruption` if a vector is damaged.
    pub fn run(&self) -> Result<Option<BuiltCells>> {
        self.run_until(&Never)
    }

    /// Makes the job one that takes nothing over from the cells before.
    pub(super) fn taking_nothing_over(self) -> Self {
        Self { before: None, resumes: false, ..self }
    }

    /// Builds cells like [`run`](Self::run) until cancelled. A cancelled build returns the part it has completed, if
    /// that is more than the existing cells have.
    ///
    /// # Errors
    /// Returns the errors of [`run`](Self::run), and `Closed` if the build is cancelled and leaves nothing.
    pub fn run_until(&self, cancel: &dyn Cancel) -> Result<Option<BuiltCells>> {
        if self.policy == CellPolicy::WherePays && !may_pay(self.data.geometry().dimension, self.snapshot.live) {
            return Ok(None);
        }
        if let Some(before) = self.before.as_deref().filter(|before| self.may_stay(before)) {
            let calibration = before.calibration();
            let efforts = if calibration.is_complete() {
                has_moved(&self.snapshot).then(Calibration::default)
            } else {
                Some(calibration.clone())
            };
            match efforts.map(|known| self.find_efforts(before, &known, cancel)) {
                // A part of a new calibration is worth less than the complete one that the cells have.
                Some(Ok(kept)) if kept.cut && calibration.is_complete() => return Err(ShardexError::Closed),
                Some(Ok(kept)) if kept.cut || !is_exhaustive(&kept) || self.policy == CellPolicy::Always => {
                    return Ok(Some(kept));
                }
                // Calibration has read a group that no search had read, and found it damaged. New cells replace these.
                Some(Err(ShardexError::Corruption { .. })) if before.is_damaged() => {}
                Some(Err(error)) => return Err(error),
                // The cells no longer pay, but new ones may.
                Some(Ok(_)) | None => {}
            }
        }
        let Self { snapshot, data, rotation, before, executor, .. } = self;
        let shards: Vec<_> = snapshot.iter().map(|(number, shard)| (number, Arc::clone(shard))).collect();
        let seed = self.seed();
        let workers = Workers { executor: &**executor, cancel };
        let geometry = data.geometry();
        let largest = geometry.chunk_pages() as usize * geometry.page_size;
        let before = before.as_deref();
        let built = build(&shards, data, rotation, before, seed, workers, largest)?;
        let Some(mut built) = built else { return Ok(None) };
        if encode_head(&vec![BlockPointer::default(); built.table.encode().len().div_ceil(largest)]).len() > largest {
            return Ok(None);
        }
        if built.groups.is_empty() {
            return Ok(Some(built));
        }
        let trial: CellIndex<AlignedBytes> =
            CellIndex::new(built.table.clone(), Arc::clone(&built.frame), built.groups.clone(), Vec::new());
        let under_test = CellsUnderTest { cells: &trial, own: false };
        built.table.calibration = calibrate(snapshot, data, under_test, Calibration::default(), workers, seed)?;
        built.cut = !built.table.calibration.is_complete() && cancel.is_cancelled();
        let pays = built.cut || !is_exhaustive(&built) || self.policy == CellPolicy::Always;
        Ok(pays.then_some(built))
    }

    /// Reports whether the existing cells may be kept, whatever their calibration.
    fn may_stay(&self, before: &CellIndex<Lease<Lent<S>>>) -> bool {
        let good = before.is_searchable() && !before.is_damaged() && !before.has_unfinished();
        let own = self.snapshot.cells.as_ref().is_some_and(|cells| std::ptr::eq(&**cells, before));
        // Cells with more unindexed slots would be replaced soon after a recalibration.
        let most = if before.calibration().is_complete() { 3 } else { 2 };
        self.resumes && good && own && self.snapshot.unindexed_slots() * most <= self.snapshot.live
    }

    /// Returns the existing cells with a calibration that adds the unknown efforts to `known`.
    fn find_efforts(
        &self,
        before: &CellIndex<Lease<Lent<S>>>,
        known: &Calibration,
        cancel: &dyn Cancel,
    ) -> Result<BuiltCells> {
        let workers = Workers { executor: &*self.executor, cancel };
        let mut built = BuiltCells::kept(before);
        let under_test = CellsUnderTest { cells: before, own: true };
        // Slots that an open found unindexed get codes soon, from another job or from this one. With the codes made
        // here, the calibration measures searches under the same conditions as later ones.
        let mut snapshot = Arc::clone(&self.snapshot);
        if snapshot.without_codes().next().is_some() {
            let coded = snapshot.encode_unindexed(&self.data, before.frame(), cancel)?;
            snapshot = Arc::new(snapshot.with_codes(&coded, self.data.geometry()));
        }
        built.table.calibration = calibrate(&snapshot, &self.data, under_test, known.clone(), workers, self.seed())?;
        built.cut = !built.table.calibration.is_complete() && cancel.is_cancelled();
        if built.cut && built.table.calibration == *known { Err(ShardexError::Closed) } else { Ok(built) }
    }

    /// Returns the seed of all random draws: the index id, and a draw number that depends on the snapshot's LSN.
    fn seed(&self) -> (u128, u64) {
        (self.index_id, DRAWS + self.snapshot.lsn.0)
    }
}

/// Reports whether more than one posting in `CALIBRATION_SHARE` has come or gone since the calibration, which makes a
/// recalibration due.
fn has_moved<L>(snapshot: &Snapshot<L>) -> bool {
    snapshot.moved * tuning::CALIBRATION_SHARE > snapshot.live
}

/// Reports whether searches with the usual recall and number of results are exhaustive.
fn is_exhaustive(built: &BuiltCells) -> bool {
    *built.table.calibration.usual() == SearchEffort::exhaustive()
}

/// Reports whether cells may pay. With few postings or few dimensions, an exhaustive search costs less.
fn may_pay(dimension: usize, live: u64) -> bool {
    dimension > tuning::LEAST_DIMENSION_FOR_CELLS && live >= tuning::LEAST_FOR_CELLS
}

impl<S: Storage> Engine<S> {
    /// Reports whether the next cell build continues an interrupted one: there are centroids of an interrupted build,
    /// or cells with an incomplete calibration.
    #[must_use]
    pub fn has_unfinished_cells(&self) -> bool {
        self.work.cells.as_ref().is_some_and(|(cells, _)| cells.has_unfinished() || !cells.calibration().is_complete())
    }

    /// Returns the number of slots in no cell, those of removed postings included. Without usable cells, returns the
    /// number of live postings.
    pub(super) fn unindexed_postings(&self) -> u64 {
        match &self.published.cells {
            Some(cells) if !cells.is_damaged() => self.published.unindexed_slots(),
            _ => self.published.live,
        }
    }

    /// Returns the recalls that the last calibration measured, or `None` without usable cells or a calibration.
    pub(super) fn recall_measurement(&self) -> Option<RecallMeasurement> {
        let Snapshot { cells, moved, .. } = &*self.published;
        let cells = cells.as_ref().filter(|cells| !cells.is_damaged() && cells.calibration().is_begun())?;
        let Calibration { efforts, reached, lsn, live: postings, .. } = cells.calibration();
        let of = |(&k, (efforts, reached)): (&u32, (&[SearchEffort; RECALLS.len()], &[f32; RECALLS.len()]))| {
            let known = RECALLS.iter().zip(efforts).zip(reached).filter(|&(_, &reached)| reached > 0.0);
            let line = |((&target, effort), &reached): ((&f32, &SearchEffort), &f32)| ReachedRecall {
                k: k as usize,
                target,
                reached,
                everything: *effort == SearchEffort::exhaustive(),
            };
            known.map(line).collect::<Vec<_>>()
        };
        let reached = RESULTS.iter().zip(efforts.iter().zip(reached)).flat_map(of).collect();
        Some(RecallMeasurement { lsn: Lsn(*lsn), postings: *postings, moved: *moved, reached })
    }

    /// Reports whether cells should be built or recalibrated. That is so if there are no cells, if they are damaged or
    /// unfinished, if more than half of the live postings are unindexed, or if many postings have come or gone since
    /// the calibration. Always false with too few postings, before the next attempt is due, and if writes are refused.
    #[must_use]
    pub fn wants_cell_build(&mut self) -> bool {
        let live = self.published.live;
        // Before the first write nothing is stored (see `recovery`), unless an earlier open began the build, or searches
        // are exhaustive only because the cells are damaged.
        let lost = self.recovery.cells_lost || self.work.cells.as_ref().is_some_and(|(cells, _)| cells.is_damaged());
        let begun = self.epoch_open || self.has_unfinished_cells() || lost;
        let writable = self.poisoned.is_none() && self.read_only.is_none();
        let many = match self.cell_policy {
            CellPolicy::WherePays => may_pay(self.geometry().dimension, live),
            CellPolicy::Always => live >= tuning::LEAST_FOR_CELLS,
        };
        let may = many && begun && writable;
        let many_more = self.cell_build_refused > 0 && live * 2 > self.cell_build_refused * 3;
        if !may || self.counters.operations < self.cell_build_at && !many_more {
            return false;
        }
        let moved = protects!(Recall, has_moved(&self.published));
        let wants = self.unindexed_postings() * 2 > live || self.has_unfinished_cells() || moved;
        if !wants {
            self.cell_build_at = self.counters.operations + self.before_next_look();
        }
        wants
    }

    /// Returns the number of operations before [`wants_cell_build`](Self::wants_cell_build) is evaluated again. The
    /// evaluation visits many shards, so it doesn't run after every write. It runs often enough to notice a change in a
    /// small part of the postings.
    fn before_next_look(&self) -> u64 {
        (self.published.live / 64).clamp(64, tuning::LEAST_FOR_CELLS / 4)
    }

    /// Returns a job that builds cells of everything accepted.
    ///
    /// # Errors
    /// Returns `Poisoned` or `ReadOnly`.
    pub fn cell_build_begin(&mut self) -> Result<CellBuildJob<S>> {
        self.cell_build_job(false)
    }

    /// Returns a job for cells that are [wanted](Self::wants_cell_build). The job keeps the existing cells if only
    /// their calibration is incomplete or out of date, and builds cells otherwise.
    ///
    /// # Errors
    /// Returns the errors of [`cell_build_begin`](Self::cell_build_begin).
    pub fn cell_build_resume(&mut self) -> Result<CellBuildJob<S>> {
        self.cell_build_job(true)
    }

    fn cell_build_job(&mut self, resumes: bool) -> Result<CellBuildJob<S>> {
        self.check_writable()?;
        self.cell_build_at = self.counters.operations + self.before_next_look();
        self.cell_build_refused = 0;
        let before = self.work.cells.as_ref().map(|(cells, _)| Arc::clone(cells));
        let rotation = match &before {
            Some(cells) => Arc::clone(cells.frame().rotation()),
            None => Arc::new(Rotation::new(self.geometry().dimension, self.index_id)),
        };
        Ok(CellBuildJob {
            snapshot: self.snapshot(),
            data: Arc::clone(&self.data),
            rotation,
            before,
            index_id: self.index_id,
            executor: Arc::clone(&self.executor),
            policy: self.cell_policy,
            resumes,
        })
    }

    /// Postpones the next attempt after a cell build that failed, or held too much, by 16 × `LEAST_FOR_CELLS` operations.
    pub fn cell_build_failed(&mut self) {
        self.cell_build_at = self.counters.operations + 16 * tuning::LEAST_FOR_CELLS;
    }

    /// Installs the cells that a [`CellBuildJob`] built; `None` removes the existing ones. Searches use them from here
    /// on. The next flush makes them durable. Postings added while the first cells were built have no codes yet:
    /// [`encode_begin`](Self::encode_begin) returns the job that makes them.
    ///
    /// # Errors
    /// Returns `Poisoned`, `ReadOnly`, `OutOfSpace` or `Io`. Before the first write it
    /// also returns the errors of [`flush`](Self::flush). The installed cells are then unchanged.
    pub fn install_cells(&mut self, built: Option<BuiltCells>) -> Result<()> {
        self.check_writable()?;
        if built.is_none() {
            // Cells don't pay for this many postings. They may pay for many more.
            self.cell_build_failed();
            self.cell_build_refused = self.published.live;
            if self.work.cells.is_none() {
                return Ok(());
            }
        }
        if built.as_ref().is_some_and(|built| !built.cut && !built.table.calibration.is_complete()) {
            // The build was not cancelled, so another one would leave the same efforts unknown.
            self.cell_build_failed();
        }
        self.open_epoch()?;
        let named = match built {
            Some(built) => {
                let mut taken = Vec::new();
                match store(&mut self.work, &self.data, built, &mut taken) {
                    Ok(Some(named)) => Some(named),
                    // Other cells were installed meanwhile, and remain.
                    Ok(None) => return Ok(()),
                    Err(error) => {
                        if protects!(ErrorCheck) {
                            taken.into_iter().for_each(|allocation| self.work.space.undo(allocation));
                        }
                        return Err(error);
                    }
                }
            }
            None => None,
        };
        reached!(CellsBuilt);
        // With the first cells, all postings added during the build are unindexed. A job makes their codes beside the
        // writer, as after an open (`encode_begin`).
        let coded = self.published.cells.is_some();
        self.work.set_cells(named);
        self.publish_with(&[], coded);
        Ok(())
    }

    /// Builds cells of everything accepted and installs them, in this call.
    ///
    /// # Errors
    /// Returns the errors of [`CellBuildJob::run`] and [`install_cells`](Self::install_cells).
    pub fn optimize(&mut self) -> Result<()> {
        let built = self.cell_build_begin()?.run()?;
        self.install_cells(built)
    }
}
