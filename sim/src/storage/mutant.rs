//! Mistakes of the simulator, which test the conformance suite.

use std::cell::Cell;

/// Mistake of the simulator: a broken rule of the crash model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SimMutant {
    /// R1: a store is visible only after a sync.
    StoreInvisible,
    /// R1: a store is durable at once.
    StoreDurable,
    /// R3: a power cut leaves the sectors of a page all old or all new.
    PagesWhole,
    /// R3: only the newest version of a sector may survive.
    NewestVersionOnly,
    /// R2: sectors reach the device in the order of their offsets.
    SectorsInOrder,
    /// R4: a range sync does nothing.
    RangeSyncNothing,
    /// R4: a range sync makes all bytes of the file durable.
    RangeSyncAll,
    /// R4: a range sync makes the length durable.
    RangeSyncLength,
    /// R4: a range sync covers only the sectors that it touches, not their pages.
    RangeSyncSectors,
    /// R4: a sync covers stores made while it runs.
    SyncCoversWhatComesMeanwhile,
    /// R5: `sync_all` does not make the length durable.
    SyncAllWithoutLength,
    /// R5: `sync_all` makes no bytes durable.
    SyncAllWithoutBytes,
    /// R6: a length is durable at once.
    LengthDurable,
    /// R6: bytes cut off by a power cut reappear when the file grows again.
    CutBytesComeBack,
    /// R7: changes of entries are durable at once.
    EntriesDurable,
    /// R7: a sync of the directory does nothing.
    DirSyncNothing,
    /// R7: either all pending changes survive, or none.
    EntriesTogether,
    /// R7: half of a rename may survive.
    RenameHalves,
    /// R7: the directory is durable without a sync of its parent.
    ParentNotNeeded,
    /// R8: after a failed sync the pages stay dirty, so the next sync makes them durable.
    FailedSyncKeepsDirty,
    /// R8: a failed sync stores nothing.
    FailedSyncStoresNothing,
    /// R8: after a failed sync of the directory all changes stay pending.
    FailedDirSyncKeepsPending,
    /// R9: a failed store stores nothing.
    FailedStoreStoresNothing,
    /// R9: an allocation beyond the capacity succeeds.
    SpaceWithoutEnd,
    /// R15: a deallocation leaves the bytes as they were.
    DeallocationKeepsBytes,
    /// R15: a deallocation gives no space back.
    DeallocationKeepsSpace,
    /// R15: a deallocation is durable at once.
    DeallocationDurable,
    /// R10: a process crash loses dirty pages.
    ProcessCrashTakesDirty,
    /// R10: after a process crash the cache always equals the device.
    ProcessCrashReadsBack,
    /// R12: the lock survives a crash.
    LockOutlivesCrash,
    /// R12: a second lock is granted.
    LockShared,
}

impl SimMutant {
    /// All mistakes.
    pub const ALL: [Self; 31] = [
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
        Self::DeallocationKeepsBytes,
        Self::DeallocationKeepsSpace,
        Self::DeallocationDurable,
        Self::ProcessCrashTakesDirty,
        Self::ProcessCrashReadsBack,
        Self::LockOutlivesCrash,
        Self::LockShared,
    ];
}

thread_local! {
    static ACTIVE: Cell<Option<SimMutant>> = const { Cell::new(None) };
}

/// Sets the mistake that the simulator makes on this thread.
pub fn set_sim_mutant(mutant: Option<SimMutant>) {
    ACTIVE.set(mutant);
}

/// Reports whether the simulator must make this mistake.
pub(super) fn wrong(mutant: SimMutant) -> bool {
    ACTIVE.get() == Some(mutant)
}
