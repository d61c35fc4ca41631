//! Queue of calls to the writer.

use std::{ops::RangeInclusive, sync::Arc, time::Duration};

use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};

use crate::{
    batch::{WriteBatch, Written},
    config::CheckLevel,
    engine::{
        BackupStats, ConsistencyReport, PurgeStep,
        stats::{FlushStats, IndexStats, PurgeStats},
    },
    error::{Result, ShardexError},
    id::DocumentId,
    storage::MmapStorage,
};

pub(super) struct Reply<T>(oneshot::Sender<Result<T>>);

impl<T> Reply<T> {
    pub(super) fn new() -> (Self, oneshot::Receiver<Result<T>>) {
        let (reply, answer) = oneshot::channel();
        (Self(reply), answer)
    }

    /// Reports whether the caller has dropped its future.
    pub(super) fn is_abandoned(&self) -> bool {
        self.0.is_closed()
    }

    /// Answers the call. The caller may have dropped its future. The answer then reaches nobody, which is no error.
    pub(super) fn send(self, answer: Result<T>) {
        let _ = self.0.send(answer);
    }
}

pub(super) enum Command {
    Write(WriteBatch, Reply<Written>),
    RemoveRange(RangeInclusive<DocumentId>, Reply<u64>),
    Commit(Reply<()>),
    Flush(Reply<FlushStats>),
    Stats(Reply<IndexStats>),
    Check(CheckLevel, Reply<ConsistencyReport>),
    Backup(BackupRequest, Reply<BackupStats>),
    Optimize(Reply<()>),
    /// Part of a compaction or a purge.
    Space(SpaceRequest),
    Close(Reply<()>),
}

/// Call that reads beside the writer. They run one at a time.
pub(super) enum JobRequest {
    /// A full check.
    Check(Reply<ConsistencyReport>),
    Backup(BackupRequest, Reply<BackupStats>),
}

impl JobRequest {
    /// Answers the call with an error.
    pub(super) fn refuse(self, error: ShardexError) {
        match self {
            Self::Check(reply) => reply.send(Err(error)),
            Self::Backup(_, reply) => reply.send(Err(error)),
        }
    }
}

/// Directories of a backup.
pub(super) struct BackupRequest {
    pub(super) to: MmapStorage,
    /// Earlier backup with which it shares what both hold.
    pub(super) base: Option<MmapStorage>,
}

/// Part of a compaction or a purge.
pub(super) enum SpaceRequest {
    /// The end of a cell build under way.
    AwaitCells(Reply<()>),
    /// A step of a compaction.
    Compact(Reply<u64>),
    /// All free space, given back.
    Trim(Reply<u64>),
    /// Shards from a number on, rewritten as their live postings alone make them.
    PurgeShards(u32, Reply<PurgeStep>),
    /// Payloads, moved out of blocks with bytes of removed ones.
    PurgePayloads(Reply<usize>),
    /// Cells, built from nothing.
    BuildAnew(Reply<()>),
    /// The end of a purge, which waits for readers up to a time.
    PurgeEnd(Duration, Reply<PurgeStats>),
}

/// Purge whose last step waits for a flush or for readers.
pub(super) struct PendingPurge {
    /// Time of the next try.
    pub(super) at: Duration,
    /// Time up to which it waits for readers.
    pub(super) until: Duration,
    pub(super) reply: Reply<PurgeStats>,
}

impl Command {
    /// Reports whether the command is a write, which may wait for a flush.
    pub(super) fn is_write(&self) -> bool {
        matches!(self, Self::Write(..) | Self::RemoveRange(..))
    }
}

/// Queued call with its permit, the place that it occupies in the queue.
pub(super) struct Request {
    pub(super) command: Command,
    pub(super) slot: OwnedSemaphorePermit,
}

/// Sender side of the queue. Writes have permits of their own, because they may wait in the queue for a flush and must
/// not block other calls.
pub(super) struct Queue {
    pub(super) requests: mpsc::UnboundedSender<Request>,
    pub(super) writes: Arc<Semaphore>,
    pub(super) others: Arc<Semaphore>,
}

impl Queue {
    pub(super) fn new(size: usize) -> (Self, mpsc::UnboundedReceiver<Request>) {
        let (requests, receiver) = mpsc::unbounded_channel();
        let slots = || Arc::new(Semaphore::new(size.min(Semaphore::MAX_PERMITS)));
        (Self { requests, writes: slots(), others: slots() }, receiver)
    }

    /// Sends a command to the writer, after waiting for a free permit. Returns `None` if the writer has ended.
    pub(super) async fn send(&self, command: Command) -> Option<()> {
        let slots = if command.is_write() { &self.writes } else { &self.others };
        let slot = Arc::clone(slots).acquire_owned().await.ok()?;
        self.requests.send(Request { command, slot }).ok()
    }
}
