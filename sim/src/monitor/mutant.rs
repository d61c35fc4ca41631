//! Small mistakes of the monitor itself, each of which its tests find.

/// A mistake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MonitorMutant {
    /// What was stored while a sync ran is durable when it ends.
    CapturesAtTheEnd,
    /// A file is as long as it was last made.
    ForgetsLengths,
    /// A sync of a range makes the length durable.
    RangeSyncKeepsLength,
    /// What a failed sync left is durable after the next good one.
    FailedSyncStaysDirty,
    /// Only the newest root's bytes are kept.
    IgnoresSecondSlot,
    /// A root that is stored counts as the only one of its slot.
    ForgetsDurableVersion,
    /// Extents need not be durable.
    IgnoresExtents,
    /// Names need not be durable.
    IgnoresNames,
    /// Lent bytes are not kept.
    IgnoresLoans,
    /// A frame's bytes are kept, the rest of its sector is not.
    KeepsBytesNotSectors,
    /// Segments' headers need not be durable.
    IgnoresHeaders,
    /// An acknowledged LSN must be in the newest root's log alone.
    AsksNewestRootAlone,
    /// A good sync after a failed one allows acknowledgements again.
    GoodSyncForgives,
    /// A crash of the process makes what the cache holds durable.
    ProcessCrashSyncs,
    /// What a rename did is durable at once.
    RenameIsDurable,
    /// Whatever a frame says of durability is believed.
    BelievesFrames,
}

impl MonitorMutant {
    /// All of them.
    pub const ALL: [Self; 16] = [
        Self::CapturesAtTheEnd,
        Self::ForgetsLengths,
        Self::RangeSyncKeepsLength,
        Self::FailedSyncStaysDirty,
        Self::IgnoresSecondSlot,
        Self::ForgetsDurableVersion,
        Self::IgnoresExtents,
        Self::IgnoresNames,
        Self::IgnoresLoans,
        Self::KeepsBytesNotSectors,
        Self::IgnoresHeaders,
        Self::AsksNewestRootAlone,
        Self::GoodSyncForgives,
        Self::ProcessCrashSyncs,
        Self::RenameIsDurable,
        Self::BelievesFrames,
    ];
}
