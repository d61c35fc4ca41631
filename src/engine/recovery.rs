//! Recovery: turns the files found by an open into an engine that may write.
//!
//! After a crash, data that can be read may exist only in the page cache (R10). So recovery stores again and syncs the
//! bytes that it relies on, before anything is accepted or freed. The steps, in this order:
//!
//! (a) The newest root and then the older one are stored again, with a sync after each: **B4**. If only one slot was
//!     readable, both get its root. If the newest root is of epoch 1, a new root file replaces the old one, and its
//!     content and its entry are synced (**E2**, **E1**, see invariant 1).
//! (b) The WAL is replayed from the checkpoint of the newest root. A flush then stores a root whose checkpoint is the
//!     last replayed record: the new bytes of its shards are synced (**B2**), then the root (**B3**). The root carries
//!     a new epoch of the WAL, so nothing behind a torn tail can ever continue a chain.
//! (c) The same state is stored as one more root in the other slot and synced: **B5**. Both roots now name the new
//!     epoch. If either rots later, the other does not need the WAL from before the crash.
//!
//! Nothing is appended or freed before that. A crash at any point leaves one of the old roots, or a newer root of the
//! same state. The next recovery then starts again and reaches the same result.
//!
//! After a clean close, no byte is stored until the first write or the first installation of cells. An open resumes an
//! unfinished cell build, so it may install cells before any write. A close was clean if a closing mark ends the WAL,
//! the two roots follow each other, no record needs a replay, and the WAL segments that the older root needs still
//! exist. The first write or installation replaces a root file of epoch 1 as in (a), and then runs the flush of (b)
//! and (c). It issues no B4.
//!
//! Invariant:
//! 1. The directory entry of a root file that holds a root of epoch 2 or later is durable. `create` makes files of
//!    epoch 1. It may end before its last sync of the directory, or that sync may fail. If it failed, later syncs may
//!    report success without effect (R8). An open can't tell that from the WAL, because the page cache may show another
//!    WAL than the device holds (R10). So an open replaces every root file of epoch 1, in a recovery or before its
//!    first write. The replacement gives the entry a change that a sync covers. It happens before a root of epoch 2 is
//!    stored in the file. It also happens before anything is stored into pages that the roots describe as free, because
//!    an older file that a power cut brings back might name them. The entries of `data` and `wal` are durable before a
//!    root file has its name (C3).

use super::{
    apply,
    assemble::wal_limits,
    barriers::{B4, B5, E1, E2},
    core::Engine,
    names,
    plan::Plan,
    purposes::NAME,
    roots,
};
use crate::{
    error::{Result, ShardexError},
    failpoint::{holds, protects, reached},
    format::{batch::BatchRecord, frame::FrameKind, maintenance, record, root::Root},
    lease::PlainFile,
    limits::FORMAT_VERSION,
    storage::Storage,
    wal::{self, Record, Tail, WalLayout, WalWriter},
};

impl<S: Storage> Engine<S> {
    /// Recovers the state after the last acknowledged call from the files that were found. The [module](self) describes
    /// the steps.
    pub(super) fn recover(&mut self) -> Result<()> {
        let &Root { wal_start: start, checkpoint, epoch, .. } = self.roots.newest();
        let layout = WalLayout::new(self.data.geometry());
        let source = self.wal_file.clone();
        let replay = |apply: &mut dyn FnMut(Record) -> Result<()>| {
            wal::replay(source.raw(), layout, self.index_id, epoch, start, checkpoint, apply)
        };
        // A first pass without applying: whether the index was closed cleanly decides whether (a) runs before the
        // replay.
        let tail = replay(&mut |_| Ok(()))?;
        let paired = holds!(ErrorCheck, self.is_paired()) && self.older_reaches(epoch)?;
        if tail.closed && tail.records == 0 && paired {
            self.start_after(tail)?;
            reached!(CleanOpen);
            return Ok(());
        }
        self.recovery.crashed = !tail.closed;
        self.recovery.torn_tail = tail.torn;
        // Position for the WAL writer if the replay stops early. `replay_all` advances it with each applied record.
        let replayed = Tail { last: checkpoint, newest_epoch: tail.newest_epoch, ..Tail::default() };
        if self.read_only.is_some() {
            // The root file has holes and the device no room for them, so nothing can be stored. The engine serves the state
            // of the newest root.
            reached!(ReadOnly);
            return self.start_after(replayed);
        }
        self.counters.barriers += roots::SLOTS as u64;
        let restored = self.roots.restore(B4);
        if !self.has_room(restored)? {
            return self.start_after(replayed);
        }
        if protects!(Ordering) {
            let replaced = self.replace_root_file();
            if !self.has_room(replaced)? {
                return self.start_after(replayed);
            }
        }
        self.replay_all(&source, tail, replayed)?;
        let numbers: Vec<u32> = (0..self.work.shards.len() as u32).collect();
        self.publish(&numbers);
        if self.read_only.is_some() {
            reached!(ReadOnly);
            return Ok(());
        }
        let opened = self.open_epoch();
        self.has_room(opened).map(drop)
    }

    /// Reports whether a step of the recovery found room. Without room the index becomes read-only.
    fn has_room(&mut self, done: Result<()>) -> Result<bool> {
        match done {
            Err(error) if error.is_out_of_space() => {
                self.read_only = Some(error);
                reached!(ReadOnly);
                Ok(false)
            }
            done => done.map(|()| true),
        }
    }

    /// Replays the WAL from the newest root's checkpoint, and starts the WAL writer behind it.
    ///
    /// `tail` is the end that the first pass found. `replayed` is the position to continue from if no record can be
    /// applied. Without disk space the index serves the records that were replayed.
    fn replay_all(&mut self, source: &PlainFile<S::File>, tail: Tail, mut replayed: Tail) -> Result<()> {
        let &Root { wal_start: start, checkpoint, epoch, .. } = self.roots.newest();
        let layout = WalLayout::new(self.data.geometry());
        let applied = wal::replay(source.raw(), layout, self.index_id, epoch, start, checkpoint, |record| {
            self.replay_record(&record)?;
            replayed.last = record.lsn;
            Ok(())
        });
        match applied {
            Ok(_) => self.start_after(tail),
            Err(error) if error.is_out_of_space() => {
                // The WAL and the roots are unchanged.
                self.read_only = Some(error);
                self.start_after(replayed)
            }
            Err(error) => Err(error),
        }
    }

    /// Reports whether the two roots are consecutive generations of one epoch.
    ///
    /// Records are appended to an epoch only after two roots name it. Otherwise a slot holds an older root than it
    /// should. Recovery repairs that now, because the other slot may rot later.
    fn is_paired(&self) -> bool {
        let newest = self.roots.newest();
        let follows = |older: &Root| older.epoch == newest.epoch && older.generation.next() == newest.generation;
        self.roots.older().is_some_and(follows)
    }

    /// Reports whether no WAL segment that the older root needs was reused for later records.
    ///
    /// If the slot of the newest root G reverts by one store, it holds root G − 2. The two roots are then G − 1 and
    /// G − 2, which are consecutive. But segments that G − 2 needs may be reused, because root G freed them.
    fn older_reaches(&self, epoch: u64) -> Result<bool> {
        let Some(older) = self.roots.older().filter(|older| older.checkpoint < self.roots.newest().checkpoint) else {
            return Ok(true);
        };
        let layout = WalLayout::new(self.data.geometry());
        // The newest root's first segment may not exist yet. If the older root needs its beginning, the replay of the
        // newest root has read that segment.
        let first = older.wal_start.seq;
        let needed = first..self.roots.newest().wal_start.seq.max(first + 1);
        let found = wal::has_segments(self.wal_file.raw(), layout, self.index_id, epoch, needed)?;
        Ok(holds!(ErrorCheck, found))
    }

    /// Starts the WAL writer after the tail, in an epoch that no segment belongs to.
    fn start_after(&mut self, tail: Tail) -> Result<()> {
        let layout = WalLayout::new(self.data.geometry());
        self.wal = WalWriter::start_epoch(
            &self.wal_file,
            layout,
            self.index_id,
            self.wal.epoch().max(tail.newest_epoch + 1),
            tail.last,
            self.wal.durable_segments(),
            wal_limits(&self.options),
        )?;
        Ok(())
    }

    fn replay_record(&mut self, record: &Record) -> Result<()> {
        let damaged = |e: crate::format::FormatError| ShardexError::Corruption {
            file: self.wal_file.path(),
            offset: record.offset,
            what: format!("record {}: {e}", record.lsn),
        };
        // Records hold only valid batches, so an invalid one means that the bytes differ from those written.
        let invalid = |e: ShardexError| damaged(crate::format::FormatError::new(0, e.to_string()));
        let geometry = *self.data.geometry();
        // A record of version 1 has no time for the ids of new shards.
        let now = self.context(0);
        let operations = match record.kind {
            FrameKind::Batch => {
                let batch = BatchRecord::decode(&record.payload, geometry.dimension).map_err(damaged)?;
                let plan = Plan::of_record(&batch, &geometry).map_err(invalid)?;
                let context = self.context(batch.unix_ms);
                apply::apply(&mut self.work, &context, &plan)?;
                plan.len()
            }
            FrameKind::Add => {
                let postings = record::decode_add(&record.payload, geometry.dimension).map_err(damaged)?;
                apply::apply(&mut self.work, &now, &Plan::of_postings(&postings, &geometry).map_err(invalid)?)?;
                postings.len()
            }
            FrameKind::Remove => {
                let documents = record::decode_remove(&record.payload).map_err(damaged)?;
                apply::apply(&mut self.work, &now, &Plan::of_documents(documents.iter().copied()))?;
                documents.len()
            }
            FrameKind::Maintenance | FrameKind::Purge => {
                let numbers = maintenance::decode_rewrite(&record.payload).map_err(damaged)?;
                let rewrite = if record.kind == FrameKind::Purge { apply::purge } else { apply::rewrite };
                match rewrite(&mut self.work, &now, &numbers) {
                    // It changes no posting. Later records may still find space in the shards as they are, and a state that
                    // differs from the logged one is never flushed.
                    Err(error) if error.is_out_of_space() => self.read_only = Some(error),
                    rewritten => {
                        rewritten?;
                    }
                }
                0
            }
            FrameKind::Pad | FrameKind::Close | FrameKind::Unknown(_) => 0,
        };
        self.recovery.records_replayed += 1;
        reached!(RecordReplayed);
        self.recovery.operations_replayed += operations as u64;
        Ok(())
    }

    /// Makes both roots name the epoch to append to: steps (b) and (c). Does nothing if they already do.
    ///
    /// # Errors
    /// As [`flush`](Self::flush).
    pub(super) fn open_epoch(&mut self) -> Result<()> {
        if holds!(Ordering, self.epoch_open) {
            return Ok(());
        }
        self.flush_once(true)?;
        self.store_twin()?;
        self.epoch_open = true;
        Ok(())
    }

    /// Prepares the index for writes: makes both roots name the epoch to append to and the newest format version.
    ///
    /// Invariant: a record, a state or a payload of a version is stored only once both roots are of that version. An older
    /// build then refuses the index. Before that it recovers everything from a root of an older version and the WAL.
    ///
    /// # Errors
    /// As [`flush`](Self::flush).
    pub(super) fn open_for_writes(&mut self) -> Result<()> {
        if self.stays_at_version.is_some() || holds!(Ordering, self.roots.version() == FORMAT_VERSION) {
            return self.open_epoch();
        }
        self.upgrades = true;
        let flushed = self.flush_once(true);
        self.upgrades = false;
        flushed?;
        self.store_twin()?;
        reached!(Upgraded);
        self.epoch_open = true;
        Ok(())
    }

    /// Stores the newest root once more, as the next generation, in the other slot.
    fn store_twin(&mut self) -> Result<()> {
        let twin = Root { generation: self.roots.newest().generation.next(), ..self.roots.newest().clone() };
        self.work.space.begin(twin.generation);
        let job = self.roots.store_next(&twin, B5)?;
        self.counters.barriers += 1;
        if let Err(error) = job.run() {
            return Err(self.poison(error));
        }
        self.roots.stored(twin);
        self.work.space.made_durable(self.roots.newest().generation);
        Ok(())
    }

    /// Replaces a root file of epoch 1, so that its directory entry is durable: invariant 1 of the [module](self).
    ///
    /// No flush may be in progress, because the new file would lack its root.
    pub(super) fn replace_root_file(&mut self) -> Result<()> {
        if self.roots.is_replaced() || holds!(Ordering, self.roots.newest().epoch > 1) {
            return Ok(());
        }
        let file = self.roots.copy_to_new_file(&self.storage, &self.lock)?;
        self.counters.barriers += 1;
        if let Err(error) = file.sync_all(E2).run() {
            return Err(self.poison(error));
        }
        self.storage.rename(names::ROOT_NEW, names::ROOT, NAME)?;
        // The file is opened again under its new name.
        self.roots.use_file(PlainFile::open(&self.storage, names::ROOT, &self.lock)?);
        reached!(RootFileReplaced);
        self.counters.barriers += 1;
        self.storage.sync_dir(E1).map_err(|error| self.poison(error))
    }
}
