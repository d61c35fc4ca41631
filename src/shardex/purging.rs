//! Purge through the handle: the writer takes its steps between other calls, and blocks for the last one.

use std::time::Duration;

use super::{
    Shardex,
    queue::{Command, PendingPurge, Reply, SpaceRequest},
    writer::Writer,
};
use crate::{
    engine::{PurgeStep, stats::PurgeStats},
    error::{Result, ShardexError},
    storage::Storage,
    tuning::{COMPACTION_STEP, PURGE_RETRY},
};

impl<S: Storage> Writer<S> {
    /// Takes a part that a caller waits for.
    pub(super) fn take_part(&mut self, part: SpaceRequest) {
        match part {
            SpaceRequest::AwaitCells(reply) => self.await_cells(reply),
            SpaceRequest::Compact(reply) => reply.send(self.compact_now()),
            SpaceRequest::Trim(reply) => reply.send(self.engine.trim_all()),
            SpaceRequest::PurgeShards(from, reply) => {
                let done = self.engine.purge_shards(from, COMPACTION_STEP);
                if let Ok(PurgeStep { rewritten: bytes @ 1.., .. }) = done {
                    self.compacted(bytes);
                }
                reply.send(done);
            }
            SpaceRequest::PurgePayloads(reply) => {
                let done = self.engine.purge_payloads(COMPACTION_STEP);
                self.publish();
                reply.send(done);
            }
            SpaceRequest::BuildAnew(reply) => {
                self.commit_waiting();
                self.cells_anew = true;
                self.cell_build_waiters.push(reply);
                self.build_cells();
            }
            SpaceRequest::PurgeEnd(wait, reply) => self.await_purge(wait, reply),
        }
    }

    /// Queues the last step of a purge.
    pub(super) fn await_purge(&mut self, wait: Duration, reply: Reply<PurgeStats>) {
        let now = self.runtime.now();
        self.purges.push_back(PendingPurge { at: now, until: now.saturating_add(wait), reply });
    }

    /// Returns the time at which the first waiting purge is tried again. A flush under way is waited for.
    pub(super) fn purge_at(&self) -> Option<Duration> {
        self.purges.front().filter(|_| self.flushing.is_none()).map(|purge| purge.at)
    }

    /// Takes the last step of the first waiting purge, if it is due.
    pub(super) fn purge_if_due(&mut self, now: Duration) {
        if self.purge_at().is_none_or(|at| at > now) {
            return;
        }
        let Some(purge) = self.purges.pop_front() else { return };
        match self.end_purge() {
            Err(ShardexError::HeldByReaders { .. }) if now < purge.until => {
                let at = purge.until.min(now + PURGE_RETRY);
                self.purges.push_front(PendingPurge { at, ..purge });
            }
            done => purge.reply.send(done),
        }
    }

    /// Refuses the waiting purges, because the index is being closed.
    pub(super) fn refuse_purges(&mut self) {
        self.purges.drain(..).for_each(|purge| purge.reply.send(Err(ShardexError::Closed)));
    }

    /// Ends a purge. The readers that hold pages are named by the snapshots among them.
    fn end_purge(&mut self) -> Result<PurgeStats> {
        // The view that searches take must not be a reader of what was rewritten.
        self.publish();
        let done = self.engine.purge_end();
        self.publish();
        self.observe_flushes();
        self.note_durable();
        done.map_err(|error| match error {
            ShardexError::HeldByReaders { bytes, .. } => {
                ShardexError::HeldByReaders { bytes, snapshots: self.shared.snapshots.before(self.engine.last_lsn()) }
            }
            other => other,
        })
    }
}

impl<S: Storage> Shardex<S> {
    /// Erases: when it has returned, no byte of a posting or payload that was removed or replaced before the call is in any file
    /// of the index. Other calls go on meanwhile. Writes wait for its last step.
    ///
    /// Without it, removed bytes stay until their shards are rewritten and their pages are used again. It rewrites every shard
    /// whose slots, centroid, sum or filter a removed posting has met, moves the payloads that share blocks with removed ones,
    /// builds the cells from nothing, and makes the rest of the files zeros: free pages, the WAL, what follows the used
    /// bytes of a page. Its records in the WAL make replays do the same.
    ///
    /// It flushes, so everything accepted is durable then, whatever the durability mode is.
    ///
    /// It waits up to `wait` for searches, [`Hits`], snapshots and a backup that began before and still use removed bytes.
    ///
    /// **What it can't reach**: copies that file systems and devices make behind the program's back (snapshots of the file system,
    /// journals with data, spare blocks of flash memory, swap), backups, and other copies of the files. Encrypt the device if
    /// these matter.
    ///
    /// Cost: reads all postings. The first purge of an index rewrites most shards, a later one those that have changed since.
    /// Builds the cells as [`optimize`](Self::optimize) does. Five syncs or more at the end.
    ///
    /// # Errors
    /// Returns [`HeldByReaders`](ShardexError::HeldByReaders) if readers use removed bytes after `wait`; its `snapshots` name them.
    /// Returns `Corruption` if a shard or payload is damaged, because its bytes can't be told apart. Otherwise the errors of
    /// [`write`](Self::write), [`flush`](Self::flush) and [`optimize`](Self::optimize). Nothing is lost, what was rewritten stays
    /// so, and the call can be repeated. A crash during the call leaves a whole index, which may still hold removed bytes.
    ///
    /// [`Hits`]: crate::Hits
    pub async fn purge(&self, wait: Duration) -> Result<PurgeStats> {
        // A build under way has read what is to be purged.
        self.settle_cells().await?;
        let (mut from, mut rewritten_bytes, mut moved_payloads) = (Some(0), 0, 0);
        while let Some(first) = from {
            let step = self.ask_between_flushes(|reply| SpaceRequest::PurgeShards(first, reply)).await?;
            from = step.next;
            rewritten_bytes += step.rewritten;
        }
        while let moved @ 1.. = self.ask_between_flushes(SpaceRequest::PurgePayloads).await? {
            moved_payloads += moved as u64;
        }
        self.ask_part(SpaceRequest::BuildAnew).await?;
        let ended = self.ask_part(|reply| SpaceRequest::PurgeEnd(wait, reply)).await?;
        let snapshots = self.inner.shared.snapshots.before(ended.lsn);
        Ok(PurgeStats { rewritten_bytes, moved_payloads, snapshots, ..ended })
    }

    /// Waits for the end of a cell build under way.
    pub(super) async fn settle_cells(&self) -> Result<()> {
        match self.ask_part(SpaceRequest::AwaitCells).await {
            Err(error @ (ShardexError::Closed | ShardexError::Poisoned { .. })) => Err(error),
            // Another failure of a build is background work, which the statistics report.
            _ => Ok(()),
        }
    }

    /// Has the writer carry out a part, again after a flush that was in its way.
    pub(super) async fn ask_between_flushes<T>(&self, part: impl Fn(Reply<T>) -> SpaceRequest) -> Result<T> {
        loop {
            match self.ask_part(&part).await {
                Err(ShardexError::FlushInProgress) => self.flush().await.map(drop)?,
                done => return done,
            }
        }
    }

    /// Has the writer carry out a part of a compaction or a purge.
    pub(super) async fn ask_part<T>(&self, part: impl FnOnce(Reply<T>) -> SpaceRequest) -> Result<T> {
        self.ask(|reply| Command::Space(part(reply))).await
    }
}
