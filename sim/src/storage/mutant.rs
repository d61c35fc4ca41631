//! Mistakes that the simulator could make, to test those who would have to notice: the conformance suite.

use std::cell::Cell;

/// A rule of the crash model, broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SimMutant {
    /// R1: a store is visible only once it was synced.
    StoreInvisible,
    /// R1: a store is durable at once.
    StoreDurable,
    /// R3: a power cut leaves a page's sectors all old or all new.
    PagesWhole,
    /// R3: of a sector's versions only the newest may survive.
    NewestVersionOnly,
    /// R2: sectors reach the device in the order of their places.
    SectorsInOrder,
    /// R4: a sync of a range does nothing.
    RangeSyncNothing,
    /// R4: a sync of a range makes the whole file's bytes durable.
    RangeSyncAll,
    /// R4: a sync of a range makes the length durable.
    RangeSyncLength,
    /// R4: a sync of a range covers the sectors it touches, not their pages.
    RangeSyncSectors,
    /// R4: a sync covers what is stored while it runs.
    SyncCoversWhatComesMeanwhile,
    /// R5: a sync of all does not make the length durable.
    SyncAllWithoutLength,
    /// R5: a sync of all makes no byte durable.
    SyncAllWithoutBytes,
    /// R6: a length is durable at once.
    LengthDurable,
    /// R6: bytes that a power cut took come back when the file grows again.
    CutBytesComeBack,
    /// R7: changes of entries are durable at once.
    EntriesDurable,
    /// R7: a sync of the directory does nothing.
    DirSyncNothing,
    /// R7: all pending changes survive, or none.
    EntriesTogether,
    /// R7: a rename may survive by halves.
    RenameHalves,
    /// R7: the directory is durable without a sync of its parent.
    ParentNotNeeded,
    /// R8: after a failed sync the pages are still dirty, so that the next one makes them durable.
    FailedSyncKeepsDirty,
    /// R8: a failed sync stores nothing at all.
    FailedSyncStoresNothing,
    /// R8: a failed sync of the directory forgets nothing.
    FailedDirSyncKeepsPending,
    /// R9: a store that fails stores nothing.
    FailedStoreStoresNothing,
    /// R9: an allocation beyond the capacity succeeds.
    SpaceWithoutEnd,
    /// R10: a crash of the process takes what was dirty.
    ProcessCrashTakesDirty,
    /// R10: after a crash of the process the cache is always what the device holds.
    ProcessCrashReadsBack,
    /// R12: the lock outlives a crash.
    LockOutlivesCrash,
    /// R12: a second lock is granted.
    LockShared,
}

impl SimMutant {
    /// All of them.
    pub const ALL: [Self; 28] = [
        Self::StoreInvisible,
        Self::StoreDurable,
        Self::PagesWhole,
        Self::NewestVersionOnly,
        Self::SectorsInOrder,
        Self::RangeSyncNothing,
        Self::RangeSyncAll,
        Self::RangeSyncLength,
        Self::RangeSyncSectors,
        Self::SyncCoversWhatComesMeanwhile,
        Self::SyncAllWithoutLength,
        Self::SyncAllWithoutBytes,
        Self::LengthDurable,
        Self::CutBytesComeBack,
        Self::EntriesDurable,
        Self::DirSyncNothing,
        Self::EntriesTogether,
        Self::RenameHalves,
        Self::ParentNotNeeded,
        Self::FailedSyncKeepsDirty,
        Self::FailedSyncStoresNothing,
        Self::FailedDirSyncKeepsPending,
        Self::FailedStoreStoresNothing,
        Self::SpaceWithoutEnd,
        Self::ProcessCrashTakesDirty,
        Self::ProcessCrashReadsBack,
        Self::LockOutlivesCrash,
        Self::LockShared,
    ];
}

thread_local! {
    static ACTIVE: Cell<Option<SimMutant>> = const { Cell::new(None) };
}

/// Lets the simulator make a mistake on this thread, or none.
pub fn set_sim_mutant(mutant: Option<SimMutant>) {
    ACTIVE.set(mutant);
}

/// Whether it is to make this one.
pub(super) fn wrong(mutant: SimMutant) -> bool {
    ACTIVE.get() == Some(mutant)
}
