//! Purge: no byte of a removed posting or payload stays in any file of the index.
//!
//! # Invariants
//! 1. A shard is made of its live postings alone if it has no other slot, and its sum, centroid and filter are those that its
//!    live postings give, in their order. A purge rewrites every other shard. Shards made later come from live postings.
//! 2. The rewriting is recorded in the WAL with the numbers of the shards, so a replay makes the same shards. A record without
//!    numbers ends a purge.
//! 3. Bytes are wiped only where no retained root, no reader and no shard of the working state reaches them: free pages,
//!    what follows the used bytes of an allocation, and the WAL before the position that both roots name and behind its end.
//!    Three roots are stored before: the two that both slots hold, and the one that a slot held last, name only what is new.
//! 4. The purge ends with the syncs W1 and W2. A crash before them may bring bytes back, and the purge has not returned then.

use std::collections::BTreeSet;

use super::{
    apply,
    barriers::{W1, W2},
    cell_build::CellBuildJob,
    core::Engine,
    directory,
    stats::PurgeStats,
};
use crate::{
    error::{Result, ShardexError},
    failpoint::{holds, protects, reached},
    format::{frame::FrameKind, maintenance, node::BlockPointer},
    lease::{PageRange, SyncJob},
    storage::Storage,
};

/// Part of a purge: the shards that a step has looked at.
#[derive(Clone, Copy, Debug)]
pub struct PurgeStep {
    /// Number of the shard to go on with; `None` after the last one.
    pub next: Option<u32>,
    /// Bytes of the slots that were rewritten, used and removed.
    pub rewritten: u64,
}

impl<S: Storage> Engine<S> {
    /// Rewrites the shards that are not made of their live postings alone, from number `from` on, until about `max_bytes` of
    /// slots are read.
    ///
    /// Cost: reads the postings of the shards that it looks at, and stores those of the shards that it rewrites.
    ///
    /// # Errors
    /// As [`write`](Self::write). Returns `Corruption` if a shard is damaged: nobody can say what its bytes are.
    pub fn purge_shards(&mut self, from: u32, max_bytes: u64) -> Result<PurgeStep> {
        self.check_writable()?;
        let slot = self.data.geometry().slot_bytes() as u64;
        let (mut numbers, mut read, mut rewritten) = (Vec::new(), 0, 0);
        let mut next = None;
        for (shard, number) in self.work.shards.iter().zip(0u32..).skip(from as usize) {
            if read >= max_bytes {
                next = Some(number);
                break;
            }
            let Some(shard) = shard else { continue };
            read += shard.len() as u64 * slot;
            if !holds!(Ordering, shard.is_of_live_alone(&self.data)?) {
                numbers.push(number);
                rewritten += shard.len() as u64 * slot;
            }
        }
        if !numbers.is_empty() {
            let record = maintenance::encode_rewrite(&numbers);
            self.reserve_wal(record.len() as u64)?;
            let context = self.context(0);
            let applied = apply::purge(&mut self.work, &context, &numbers)?;
            self.wal.append(FrameKind::Purge, &[&record]);
            self.accepted(&applied, 0);
            reached!(ShardsPurged);
        }
        Ok(PurgeStep { next, rewritten })
    }

    /// Moves payloads out of blocks that also hold bytes of removed or replaced ones, about `max_bytes` of them. Returns the
    /// number of payloads moved: 0 if no such block is left.
    ///
    /// Where payloads lie is no part of the state that a replay must repeat, so nothing is recorded. The next flush stores it.
    ///
    /// # Errors
    /// Returns `Poisoned`, `ReadOnly`, `OutOfSpace`, `Io`, or `Corruption` if a payload is damaged.
    pub fn purge_payloads(&mut self, max_bytes: u64) -> Result<usize> {
        self.check_writable()?;
        self.open_for_writes()?;
        let (mut owners, mut bytes) = (BTreeSet::new(), 0);
        for (page, block) in self.work.payload_space.blocks() {
            if bytes >= max_bytes {
                break;
            }
            if block.live == u64::from(block.used) {
                continue;
            }
            for &owner in &block.owners {
                let payload = self.work.payloads.find(owner);
                if let Some(payload) = payload.filter(|payload| payload.runs().any(|run| run.page == page)) {
                    bytes += u64::from(payload.len());
                    owners.insert(owner);
                }
            }
        }
        if owners.is_empty() {
            return Ok(0);
        }
        let context = self.context(0);
        let applied = apply::move_payloads(&mut self.work, &context, &owners)?;
        self.accepted(&applied, 0);
        reached!(PayloadsPurged);
        Ok(owners.len())
    }

    /// Returns a job that builds cells of everything accepted from nothing: no centroid, centre or code of cells before goes
    /// into them. They replace all of these.
    ///
    /// # Errors
    /// Returns `Poisoned` or `ReadOnly`.
    pub fn cell_build_anew(&mut self) -> Result<CellBuildJob<S>> {
        let job = self.cell_build_begin()?;
        Ok(job.taking_nothing_over())
    }

    /// Ends a purge: stores roots that name only what is new, makes all other bytes of the files zeros, and syncs them.
    ///
    /// Cost: three flushes, and a call of the file system or a store of less than a page for each range of free pages, each shard
    /// and each block of metadata.
    ///
    /// # Errors
    /// Returns the errors of [`flush`](Self::flush), and `FlushInProgress` if a flush waits for a sync. Returns
    /// `HeldByReaders` if readers use pages that are to be wiped. The call can be repeated. If a sync fails, the engine is
    /// poisoned.
    pub fn purge_end(&mut self) -> Result<PurgeStats> {
        self.check_writable()?;
        if self.flush.as_ref().is_some_and(|run| run.waits) {
            return Err(ShardexError::FlushInProgress);
        }
        self.none_held(self.work.space.pages_held_by_readers())?;
        let record = maintenance::encode_rewrite(&[]);
        self.reserve_wal(record.len() as u64)?;
        self.wal.append(FrameKind::Purge, &[&record]);
        self.publish(&[]);
        let lsn = self.wal.last_lsn();
        self.renew_roots()?;
        self.work.space.collect();
        self.none_held(self.work.space.waiting().map(|(run, _)| u64::from(run.pages)).sum())?;
        if self.wal_retained() > 0 {
            // The flushes above leave nothing to replay.
            return Err(ShardexError::Inconsistent { finding: "roots that need the WAL before its end".into() });
        }
        let mut wiped = 0;
        if protects!(Ordering) {
            wiped += self.wipe_free_pages()?;
        }
        if protects!(Ordering) {
            wiped += self.wipe_tails()?;
        }
        if protects!(Ordering) {
            wiped += self.wal.wipe()?;
        }
        let jobs: [SyncJob<S::File>; 2] = [self.data.sync_whole(W1), self.wal_file.sync_all(W2)];
        for job in jobs {
            self.counters.barriers += 1;
            if let Err(error) = job.run() {
                return Err(self.poison(error));
            }
        }
        self.check_in_place()?;
        reached!(Purged);
        Ok(PurgeStats { lsn, wiped_bytes: wiped, ..PurgeStats::default() })
    }

    /// Returns `HeldByReaders` if there are pages that are to be wiped and that others hold.
    fn none_held(&self, pages: u64) -> Result<()> {
        match pages * self.data.geometry().page_size as u64 {
            0 => Ok(()),
            bytes => Err(ShardexError::HeldByReaders { bytes, snapshots: Vec::new() }),
        }
    }

    /// Makes all free pages zeros, by giving them back where the file system can do that.
    fn wipe_free_pages(&mut self) -> Result<u64> {
        let free: Vec<PageRange> = self.pages_behind().into_iter().chain(self.work.space.map().free_ranges()).collect();
        let mut pages = 0;
        for part in free.into_iter().flat_map(|run| self.data.kept(run)).collect::<Vec<_>>() {
            let data = &self.data;
            self.work.space.with_free(part, |allocation| data.wipe(allocation, 0))?;
            pages += u64::from(part.pages);
        }
        Ok(pages * self.data.geometry().page_size as u64)
    }

    /// Makes the bytes zeros that follow the used ones of each allocation.
    fn wipe_tails(&mut self) -> Result<u64> {
        let (data, geometry) = (std::sync::Arc::clone(&self.data), *self.data.geometry());
        let mut wiped = 0;
        for extent in self.work.shards.iter().flatten().filter_map(|shard| shard.extents().last()) {
            wiped += data.wipe(extent.allocation(), extent.used() * geometry.slot_bytes())?;
        }
        for (_, block) in self.work.payload_space.blocks() {
            wiped += data.wipe(&block.allocation, block.used as usize)?;
        }
        let named = self.directory.entries().chain(self.bucket_directory.entries()).chain(self.state_blocks.iter());
        for entry in named.copied().collect::<Vec<BlockPointer>>() {
            let run = directory::run_of(&entry, &geometry);
            wiped += self.work.space.with_named(run, |allocation| data.wipe(allocation, entry.len as usize))?;
        }
        Ok(wiped)
    }
}
