//! Making cells anew, and taking them in: [`cells`](crate::cells) are derived, so all of this is about when they are made
//! and where they lie.
//!
//! Invariants:
//! 1. Cells are made from a snapshot, by whoever runs the job, while writes go on; taking them in is a step of the writer.
//! 2. They are stored in free places, and durable with the next root, which names their head. The cells before are held
//!    as long as a root or a snapshot names them.
//! 3. A build that is given up leaves the centroids that it had reached, which no search sees and from which the next
//!    build starts, in this open of the index or a later one. They lie beside the cells that searches use, never in the place
//!    of these. Given up while it looked for efforts, it leaves cells by which searches look at everything where the effort is
//!    not known; the next job looks for the other efforts.
//! 4. Cells that keep their groups keep the groups' places: two tables may name one place, which is given up with the last.
//! 5. Cells that are damaged or cannot be read cost no posting: searches do without, and the next ones replace them.

use std::{ops::Deref, sync::Arc};

use super::{
    Engine, Lent, directory,
    stats::{ReachedRecall, RecallProof},
    working::Working,
};
use crate::{
    cells::{Aligned, Built, CellIndex, build},
    codes::{Frame, Rotation},
    env::{Cancel, CellPolicy, Executor, Never, Workers},
    error::{Result, ShardexError},
    format::{
        cells::{Calibration, CellTable, Effort, RECALLS, RESULTS, decode_head, encode_head},
        crc32c,
        node::Entry,
    },
    id::Lsn,
    index::{Snapshot, Tried, calibrate},
    lease::{Lease, Place, Run},
    limits,
    shard::DataFile,
    site::{self, Kind, Mark},
    space::Use,
    storage::{Storage, StorageFile},
};

/// Draws for cells are counted from here, by the last write that they see.
const DRAWS: u64 = 1 << 62;

/// What is to be done to make cells: it needs nothing of the engine any more, and changes nothing.
pub struct RegroupJob<S: Storage> {
    snapshot: Arc<Snapshot<Lent<S>>>,
    data: Arc<DataFile<S::File>>,
    rotation: Arc<Rotation>,
    /// The cells to start from, and the centroids ahead.
    before: Option<Arc<CellIndex<Lease<Lent<S>>>>>,
    index_id: u128,
    executor: Arc<dyn Executor>,
    policy: CellPolicy,
    /// Cells that lack nothing but some efforts may stay.
    goes_on: bool,
}

impl<S: Storage> RegroupJob<S> {
    /// Makes cells of every posting in the snapshot; `None` if there is none, or if they would not pay: then searches cost
    /// less that look at every vector. Reads all vectors.
    ///
    /// # Errors
    /// `Corruption` if a vector is damaged.
    pub fn run(&self) -> Result<Option<Built>> {
        self.run_until(&Never)
    }

    /// The same, unless it is cancelled: then what it has reached, if that is more than there was.
    ///
    /// # Errors
    /// As [`run`](Self::run); `Closed` if it is cancelled and leaves nothing.
    pub fn run_until(&self, cancel: &dyn Cancel) -> Result<Option<Built>> {
        if self.policy == CellPolicy::WherePays && !may_pay(self.data.geometry().dimension, self.snapshot.live) {
            return Ok(None);
        }
        if let Some(before) = self.before.as_deref().filter(|before| self.may_stay(before)) {
            let calibration = before.calibration();
            let asked = match calibration.is_complete() {
                false => Some(calibration.clone()),
                true => has_moved(&self.snapshot).then(Calibration::default),
            };
            match asked.map(|known| self.find_efforts(before, &known, cancel)) {
                // Half of them anew are worth less than all of before.
                Some(Ok(kept)) if kept.cut && calibration.is_complete() => return Err(ShardexError::Closed),
                Some(Ok(kept)) if kept.cut || !looks_at_everything(&kept) || self.policy == CellPolicy::Always => {
                    return Ok(Some(kept));
                }
                // A group that nobody had read is damaged.
                Some(Err(ShardexError::Corruption { .. })) if before.is_damaged() => {}
                Some(Err(error)) => return Err(error),
                // They do not serve any more: others may.
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
        let built = build(&shards, data, (rotation, before), (seed, workers), largest)?;
        let Some(mut built) = built else { return Ok(None) };
        if encode_head(&vec![Entry::default(); built.table.encode().len().div_ceil(largest)]).len() > largest {
            return Ok(None);
        }
        if built.groups.is_empty() {
            return Ok(Some(built));
        }
        let trial: CellIndex<Aligned> =
            CellIndex::new(built.table.clone(), Arc::clone(&built.frame), built.groups.clone(), Vec::new());
        let tried = Tried { cells: &trial, own: false };
        built.table.calibration = calibrate(snapshot, data, (tried, Calibration::default()), workers, seed)?;
        built.cut = !built.table.calibration.is_complete() && cancel.is_cancelled();
        let pays = built.cut || !looks_at_everything(&built) || self.policy == CellPolicy::Always;
        Ok(pays.then_some(built))
    }

    /// Whether the cells of before are good for searches, whatever their efforts are.
    fn may_stay(&self, before: &CellIndex<Lease<Lent<S>>>) -> bool {
        let good = before.is_searchable() && !before.is_damaged() && !before.has_ahead();
        let own = self.snapshot.cells.as_ref().is_some_and(|cells| std::ptr::eq(&**cells, before));
        // By the time that they are asked anew they would soon be replaced.
        let most = if before.calibration().is_complete() { 3 } else { 2 };
        self.goes_on && good && own && self.snapshot.fresh_slots() * most <= self.snapshot.live
    }

    /// The cells of before with the efforts that are not known.
    fn find_efforts(
        &self,
        before: &CellIndex<Lease<Lent<S>>>,
        known: &Calibration,
        cancel: &dyn Cancel,
    ) -> Result<Built> {
        let workers = Workers { executor: &*self.executor, cancel };
        let mut built = Built::kept(before);
        let tried = Tried { cells: before, own: true };
        // What an open found in no cell has codes soon, made by another job or here: then searches will be as they are asked now.
        let mut snapshot = Arc::clone(&self.snapshot);
        if snapshot.uncoded().next().is_some() {
            let coded = snapshot.code_fresh(&self.data, before.frame(), cancel)?;
            snapshot = Arc::new(snapshot.with_codes(&coded, self.data.geometry()));
        }
        built.table.calibration = calibrate(&snapshot, &self.data, (tried, known.clone()), workers, self.seed())?;
        built.cut = !built.table.calibration.is_complete() && cancel.is_cancelled();
        match built.cut && built.table.calibration == *known {
            true => Err(ShardexError::Closed),
            false => Ok(built),
        }
    }

    /// What draws depend on.
    fn seed(&self) -> (u128, u64) {
        (self.index_id, DRAWS + self.snapshot.lsn.0)
    }
}

/// Whether so much has come and gone since the efforts were found that they are to be found anew.
fn has_moved<L>(snapshot: &Snapshot<L>) -> bool {
    snapshot.moved * limits::CALIBRATION_SHARE > snapshot.live
}

/// Whether the usual search looks at everything.
fn looks_at_everything(built: &Built) -> bool {
    *built.table.calibration.usual() == Effort::everything()
}

/// Whether cells may pay: of few postings, or of few numbers each, it costs less to look at the vectors.
fn may_pay(dimension: usize, live: u64) -> bool {
    dimension > limits::LEAST_DIMENSION_FOR_CELLS && live >= limits::LEAST_FOR_CELLS
}

/// Cells of which a root names the head, and that head.
pub(super) type Named<L> = (Arc<CellIndex<Lease<L>>>, Entry);

/// The cells that searches use: finished ones.
pub(super) fn searched<L: Deref<Target = [u8]>>(named: &Option<Named<L>>) -> Option<&Arc<CellIndex<Lease<L>>>> {
    named.as_ref().map(|(cells, _)| cells).filter(|cells| cells.is_searchable())
}

impl<S: Storage> Engine<S> {
    /// Whether a build of cells was given up, so that the next one goes on from there: there are its centroids alone, or
    /// cells that look at everything for some recalls.
    #[must_use]
    pub fn has_unfinished_cells(&self) -> bool {
        self.work.cells.as_ref().is_some_and(|(cells, _)| cells.has_ahead() || !cells.calibration().is_complete())
    }

    /// Postings that are in no cell, and removed ones that are, as far as the figures tell.
    pub(super) fn unsettled(&self) -> u64 {
        match &self.published.cells {
            Some(cells) if !cells.is_damaged() => self.published.fresh_slots(),
            _ => self.published.live,
        }
    }

    /// What searches by cells reached when it was last tried.
    pub(super) fn recall_proof(&self) -> Option<RecallProof> {
        let Snapshot { cells, moved, .. } = &*self.published;
        let cells = cells.as_ref().filter(|cells| !cells.is_damaged() && cells.calibration().is_begun())?;
        let Calibration { efforts, reached, lsn, live: postings, .. } = cells.calibration();
        let of = |(&k, (efforts, reached)): (&u32, (&[Effort; RECALLS.len()], &[f32; RECALLS.len()]))| {
            let known = RECALLS.iter().zip(efforts).zip(reached).filter(|&(_, &reached)| reached > 0.0);
            let line = |((&asked, effort), &reached): ((&f32, &Effort), &f32)| ReachedRecall {
                k: k as usize,
                asked,
                reached,
                everything: *effort == Effort::everything(),
            };
            known.map(line).collect::<Vec<_>>()
        };
        let reached = RESULTS.iter().zip(efforts.iter().zip(reached)).flat_map(of).collect();
        Some(RecallProof { lsn: Lsn(*lsn), postings: *postings, moved: *moved, reached })
    }

    /// Whether cells should be made, or asked anew what recalls take: there are none, unfinished or damaged ones, more postings
    /// are in none than in some, or many have come and gone since they were asked.
    #[must_use]
    pub fn wants_regroup(&mut self) -> bool {
        let live = self.published.live;
        // Before the first write nothing is stored (see `recovery`), unless an earlier open has begun with it.
        let begun = self.epoch_open || self.has_unfinished_cells();
        let writable = self.poisoned.is_none() && self.read_only.is_none();
        let many = match self.cell_policy {
            CellPolicy::WherePays => may_pay(self.geometry().dimension, live),
            CellPolicy::Always => live >= limits::LEAST_FOR_CELLS,
        };
        let may = many && begun && writable;
        let many_more = self.regroup_refused > 0 && live * 2 > self.regroup_refused * 3;
        if !may || self.counters.operations < self.regroup_at && !many_more {
            return false;
        }
        let moved = site::applies(Kind::Recall, has_moved(&self.published));
        let wants = self.unsettled() * 2 > live || self.has_unfinished_cells() || moved;
        if !wants {
            self.regroup_at = self.counters.operations + self.before_next_look();
        }
        wants
    }

    /// Operations before it is worth looking again whether cells are wanted: it costs a look at many shards, so not after every
    /// write, and soon enough to see a small part of the postings come or go.
    fn before_next_look(&self) -> u64 {
        (self.published.live / 64).clamp(64, limits::LEAST_FOR_CELLS / 4)
    }

    /// What is to be done to make cells of everything accepted so far.
    ///
    /// # Errors
    /// `Poisoned`, or why writes are refused.
    pub fn regroup_begin(&mut self) -> Result<RegroupJob<S>> {
        self.regroup_job(false)
    }

    /// What is to be done where cells are [wanted](Self::wants_regroup): the same, or less where a job was given up.
    ///
    /// # Errors
    /// As [`regroup_begin`](Self::regroup_begin).
    pub fn regroup_go_on(&mut self) -> Result<RegroupJob<S>> {
        self.regroup_job(true)
    }

    fn regroup_job(&mut self, goes_on: bool) -> Result<RegroupJob<S>> {
        self.check_writable()?;
        self.regroup_at = self.counters.operations + self.before_next_look();
        self.regroup_refused = 0;
        let before = self.work.cells.as_ref().map(|(cells, _)| Arc::clone(cells));
        let rotation = match &before {
            Some(cells) => Arc::clone(cells.frame().rotation()),
            None => Arc::new(Rotation::new(self.geometry().dimension, self.index_id)),
        };
        Ok(RegroupJob {
            snapshot: self.snapshot(),
            data: Arc::clone(&self.data),
            rotation,
            before,
            index_id: self.index_id,
            executor: Arc::clone(&self.executor),
            policy: self.cell_policy,
            goes_on,
        })
    }

    /// Notes that cells could not be made, so that the next try is not soon.
    pub fn regroup_failed(&mut self) {
        self.regroup_at = self.counters.operations + 16 * limits::LEAST_FOR_CELLS;
    }

    /// Takes in what a [`RegroupJob`] made. Searches use it from here on; the next flush makes it durable. What came while the
    /// first cells were made has no codes yet: [`fresh_begin`](Self::fresh_begin) says how to make them.
    ///
    /// # Errors
    /// `OutOfSpace`, `Io`: the cells are as they were. `Poisoned`.
    pub fn regrouped(&mut self, built: Option<Built>) -> Result<()> {
        self.check_writable()?;
        if built.is_none() {
            // They do not pay; of many more postings they may.
            self.regroup_failed();
            self.regroup_refused = self.published.live;
            if self.work.cells.is_none() {
                return Ok(());
            }
        }
        if built.as_ref().is_some_and(|built| !built.cut && !built.table.calibration.is_complete()) {
            // Nobody cut it short, so the next one would find no more.
            self.regroup_failed();
        }
        self.open_epoch()?;
        let named = match built {
            Some(built) => {
                let mut taken = Vec::new();
                match store(&mut self.work, &self.data, built, &mut taken) {
                    Ok(Some(named)) => Some(named),
                    // Other cells have come meanwhile, and stay.
                    Ok(None) => return Ok(()),
                    Err(error) => {
                        if site::applies(Kind::ErrorCheck, true) {
                            taken.into_iter().for_each(|place| self.work.space.undo(place));
                        }
                        return Err(error);
                    }
                }
            }
            None => None,
        };
        site::reach(Mark::Regrouped);
        // With the first cells all that came while they were made is in none: its codes are made beside the writer, as after
        // an open (`fresh_begin`).
        let coded = self.published.cells.is_some();
        self.work.set_cells(named);
        self.publish_with(&[], coded);
        Ok(())
    }

    /// Makes cells of everything accepted so far, here and now.
    ///
    /// # Errors
    /// As [`RegroupJob::run`] and [`regrouped`](Self::regrouped).
    pub fn optimize(&mut self) -> Result<()> {
        let built = self.regroup_begin()?.run()?;
        self.regrouped(built)
    }
}

/// Stores cells in free places, which are noted in `taken` one by one. `None` if they keep groups that are not those of the
/// working state: other cells have come meanwhile.
fn store<F: StorageFile>(
    work: &mut Working<F>,
    data: &DataFile<F>,
    built: Built,
    taken: &mut Vec<Arc<Place>>,
) -> Result<Option<Named<F::Lent>>> {
    let page_size = data.geometry().page_size;
    let mut put = |work: &mut Working<F>, bytes: &[u8]| -> Result<Entry> {
        let place = work.take_meta(data, data.geometry().pages(bytes.len()))?;
        taken.push(Arc::clone(&place));
        data.store_cells(&place, bytes)?;
        Ok(Entry { page: place.run().page, len: bytes.len() as u32, crc: crc32c(0, bytes) })
    };
    let Built { mut table, frame, groups, ahead, cut: _ } = built;
    let mut places = Vec::new();
    if groups.is_empty() && !table.groups.is_empty() {
        let known = work.cells.as_ref().map(|(cells, _)| cells).filter(|cells| cells.table().groups == table.groups);
        let Some(known) = known else { return Ok(None) };
        places.extend_from_slice(&known.places()[..known.len()]);
        site::reach(Mark::GroupsKept);
    }
    for (entry, bytes) in table.groups.iter_mut().zip(&groups).chain(table.ahead.iter_mut().zip(&ahead)) {
        entry.place = put(work, bytes)?;
    }
    let part_bytes = work.space.map().largest_run() as usize * page_size;
    let mut parts = Vec::new();
    for part in table.encode().chunks(part_bytes) {
        parts.push(put(work, part)?);
    }
    let head = put(work, &encode_head(&parts))?;
    if !table.ahead.is_empty() {
        site::reach(Mark::CentroidsLeft);
    }
    // The groups' places were taken first, in the table's order.
    places.extend_from_slice(taken);
    let leases = lease(&table, data, &places)?;
    Ok(Some((Arc::new(CellIndex::new(table, frame, leases, places)), head)))
}

/// Leases of the table's groups, and of those ahead; `places` begins with theirs.
fn lease<F: StorageFile>(table: &CellTable, data: &DataFile<F>, places: &[Arc<Place>]) -> Result<Vec<Lease<F::Lent>>> {
    let groups = table.groups.iter().chain(&table.ahead).zip(places);
    groups.map(|(group, place)| data.lease(place, group.place.len as usize)).collect()
}

/// Reads what a head names: the table, and all runs, the head's and the parts' too.
///
/// # Errors
/// `Corruption`, `Io`.
pub(super) fn read_table<F: StorageFile>(head: &Entry, data: &DataFile<F>) -> Result<(CellTable, Vec<Run>)> {
    let geometry = data.geometry();
    let damaged = |entry: &Entry, what: String| ShardexError::Corruption {
        file: data.path(),
        offset: entry.page.saturating_mul(geometry.page_size as u64),
        what,
    };
    let read = |entry: &Entry, what: &str| directory::read(entry, data, what);
    let bytes = read(head, "the head of the cells")?;
    let parts = decode_head(&bytes).map_err(|e| damaged(head, format!("the head of the cells: {e}")))?;
    let (in_parts, len) = (parts.iter().map(|part| u64::from(part.len)).sum::<u64>(), data.raw().len()?);
    if in_parts > len {
        return Err(damaged(head, format!("the cells' table has {in_parts} bytes, the file {len}")));
    }
    let mut bytes = Vec::new();
    for part in &parts {
        bytes.extend(read(part, "a part of the cells' table")?);
    }
    let table = CellTable::decode(&bytes, geometry.dimension).map_err(|e| damaged(head, format!("the cells' table: {e}")))?;
    // When they were covered each shard lay in extents of its own, and the file never gets shorter.
    let extents = len / (u64::from(geometry.extent_pages()) * geometry.page_size as u64);
    let covered = |slots: u32| (slots as usize).div_ceil(geometry.extent_slots()) as u64;
    let large = table.shards.iter().find(|shard| shard.slots as usize > geometry.shard_size);
    if large.is_some() || table.shards.iter().map(|shard| covered(shard.slots)).sum::<u64>() > extents {
        return Err(damaged(head, "the cells' table covers more slots than there are".into()));
    }
    let groups = table.groups.iter().chain(&table.ahead).map(|group| &group.place);
    let runs = groups.chain(&parts).chain([head]).map(|entry| directory::run_of(entry, geometry)).collect();
    Ok((table, runs))
}

/// The cells that a root names, their places marked as used. No group is read.
///
/// # Errors
/// `Corruption`: nothing is marked. `Io`.
pub(super) fn load<F: StorageFile>(
    head: Entry,
    data: &DataFile<F>,
    work: &mut Working<F>,
    index_id: u128,
) -> Result<Option<Named<F::Lent>>> {
    if head.is_none() {
        return Ok(None);
    }
    let (table, runs) = read_table(&head, data)?;
    let runs: Vec<_> = runs.into_iter().map(|run| (run, Use::Meta)).collect();
    let places = work.space.adopt(&runs).map_err(|(run, what)| ShardexError::Corruption {
        file: data.path(),
        offset: run.page.saturating_mul(data.geometry().page_size as u64),
        what: format!("cells: {what}"),
    })?;
    let leases = match lease(&table, data, &places) {
        Ok(leases) => leases,
        Err(error) => {
            places.into_iter().for_each(|place| work.space.undo(place));
            return Err(error);
        }
    };
    let geometry = data.geometry();
    let rotation = Arc::new(Rotation::new(geometry.dimension, index_id));
    let frame = Arc::new(Frame::new(rotation, table.centre.clone(), geometry.metric));
    Ok(Some((Arc::new(CellIndex::new(table, frame, leases, places)), head)))
}
