//! Deliberate mistakes in the monitor, each of which its tests must detect.

/// Mistake in the monitor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MonitorMutant {
    /// Bytes stored during a sync count as durable when the sync ends.
    CapturesAtTheEnd,
    /// The durable length of a file isn't compared.
    ForgetsLengths,
    /// A sync of a range makes the length durable.
    RangeSyncKeepsLength,
    /// Bytes of a failed sync stay dirty, so that the next successful sync makes them durable.
    FailedSyncStaysDirty,
    /// Only the newest root is retained.
    IgnoresSecondSlot,
    /// A stored root replaces the older versions of its slot at once.
    ForgetsDurableVersion,
    /// Extents need not be durable.
    IgnoresExtents,
    /// Directory entries need not be durable.
    IgnoresNames,
    /// Stores into leased bytes are allowed.
    IgnoresLoans,
    /// The bytes of a needed frame are kept, but not the rest of its sectors.
    KeepsBytesNotSectors,
    /// Segment headers need not be durable.
    IgnoresHeaders,
    /// Only roots of the newest epoch must lead to an acknowledged LSN.
    AsksNewestRootAlone,
    /// A successful sync after a failed one allows acknowledgements again.
    GoodSyncForgives,
    /// A crash of the process makes the cached bytes durable.
    ProcessCrashSyncs,
    /// A rename makes the directory entries durable at once.
    RenameIsDurable,
    /// The durable LSN in a frame isn't checked.
    BelievesFrames,
}

impl MonitorMutant {
    /// All mistakes.
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
