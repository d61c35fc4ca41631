//! Open: from whatever is in the directory to an engine that may write.
//!
//! After a crash, in this order (R10: what can be read may be in the page cache alone, so what recovery relies on is stored
//! anew and synced before anything is accepted or freed):
//!
//! (a) The newest root is stored again and synced: **B4**. If it is of epoch 1, the root file is made anew and its entry
//!     synced (**E2**, **E1**, see invariant 1).
//! (b) The WAL is replayed from its checkpoint. A flush stores a root at the tail's end: its shards' new bytes are synced
//!     (**B2**), then it (**B3**). It carries a new epoch of the WAL, so that nothing behind a torn tail can ever continue
//!     a chain.
//! (c) The same state is stored as one more root in the other slot and synced: **B5**. Now both roots know the new epoch,
//!     whichever of them rots later, and neither needs the WAL from before the crash.
//!
//! Only then is anything appended or freed. A crash anywhere in this leaves one of the roots that were there, or a newer
//! one of the same state: recovery begins again and comes to the same end.
//!
//! After a clean close (a closing mark ends the WAL, the roots follow one another, and nothing is to be replayed) no byte is
//! stored until the first write; then the rest of (a), (b) and (c) come first.
//!
//! Invariant:
//! 1. The entry of a root file that holds a root of epoch 2 or later is durable. `create` makes files of epoch 1, and may end
//!    before its last sync of the directory, or have it fail; then a later sync may do nothing (R8). An open can't tell: the
//!    page cache may have shown an earlier open an empty log, which replaced the file, and show this one a used log. So
//!    whatever an open believes, it replaces a file of epoch 1, which gives the entry a change that a sync covers, before
//!    it stores a root of epoch 2 there; and before it stores anything into places that the roots it found say are free, for an
//!    older file that a power cut brought back might name them. The entries of `data` and `wal` are durable before a root file has its name (C3).

use super::{
    Engine, apply,
    assemble::wal_limits,
    barriers::{B4, B5, E1, E2},
    batch, names,
    purposes::NAME,
};
use crate::{
    error::{Result, ShardexError},
    format::{frame::FrameKind, record, root::Root},
    lease::PlainFile,
    site::{self, Mark},
    storage::Storage,
    wal::{self, Record, Tail, WalLayout, WalWriter},
};

impl<S: Storage> Engine<S> {
    /// Goes on from what was found to where the last call ended that was acknowledged; see the [module](self).
    pub(super) fn recover(&mut self) -> Result<()> {
        let &Root { wal_start: start, checkpoint, epoch, .. } = self.roots.newest();
        let layout = WalLayout::new(self.data.geometry());
        let source = self.wal_file.clone();
        let replay = |apply: &mut dyn FnMut(Record) -> Result<()>| {
            wal::replay(source.raw(), layout, (self.index_id, epoch), start, checkpoint, apply)
        };
        // Once without applying: whether this was a clean close decides whether (a) comes first.
        let tail = replay(&mut |_| Ok(()))?;
        let paired = site::holds(site::Kind::ErrorCheck, self.is_paired()) && self.older_reaches(epoch)?;
        if tail.closed && tail.records == 0 && paired {
            self.start_after(tail)?;
            site::reach(Mark::CleanOpen);
            return Ok(());
        }
        self.recovery.crashed = !tail.closed;
        self.recovery.torn_tail = tail.torn;
        if self.read_only.is_some() {
            // A file has holes and no room for them, so nothing can be stored: serves the state of the root.
            site::reach(Mark::ReadOnly);
            return self.start_after(Tail { last: checkpoint, newest_epoch: tail.newest_epoch, ..Tail::default() });
        }
        self.counters.barriers += 1;
        match self.roots.restore(B4) {
            Err(error) if error.is_out_of_space() => {
                self.read_only = Some(error);
                site::reach(Mark::ReadOnly);
                return self.start_after(Tail { last: checkpoint, newest_epoch: tail.newest_epoch, ..Tail::default() });
            }
            done => done?,
        }
        if site::applies(site::Kind::Ordering, true) {
            match self.make_root_file_anew() {
                Err(error) if error.is_out_of_space() => {
                    self.read_only = Some(error);
                    site::reach(Mark::ReadOnly);
                    return self.start_after(Tail {
                        last: checkpoint,
                        newest_epoch: tail.newest_epoch,
                        ..Tail::default()
                    });
                }
                done => done?,
            }
        }
        let mut replayed = Tail { last: checkpoint, newest_epoch: tail.newest_epoch, ..Tail::default() };
        let applied = wal::replay(source.raw(), layout, (self.index_id, epoch), start, checkpoint, |record| {
            self.replay_record(&record)?;
            replayed.last = record.lsn;
            Ok(())
        });
        match applied {
            Ok(_) => self.start_after(tail)?,
            Err(error) if error.is_out_of_space() => {
                // Serves what it could replay; the WAL and the roots are as they were.
                self.start_after(replayed)?;
                self.read_only = Some(error);
            }
            Err(error) => return Err(error),
        }
        let numbers: Vec<u32> = (0..self.work.shards.len() as u32).collect();
        self.publish(&numbers);
        if self.read_only.is_some() {
            site::reach(Mark::ReadOnly);
            return Ok(());
        }
        match self.open_epoch() {
            Err(error) if error.is_out_of_space() => {
                self.read_only = Some(error);
                site::reach(Mark::ReadOnly);
                Ok(())
            }
            done => done,
        }
    }

    /// Whether the two roots follow one another in one epoch. An epoch is written to only when two roots of it do: else a slot holds
    /// something older than it should, and that is mended now, for the other one may rot later.
    fn is_paired(&self) -> bool {
        let newest = self.roots.newest();
        let follows = |older: &Root| older.epoch == newest.epoch && older.generation.next() == newest.generation;
        self.roots.older().is_some_and(follows)
    }

    /// Whether the log behind the older root is still there, as far as nothing was stored over it. A slot that went back by one
    /// store holds the root before it, and follows the other as if it were its place; but for that root the log was let go.
    fn older_reaches(&self, epoch: u64) -> Result<bool> {
        let Some(older) = self.roots.older().filter(|older| older.checkpoint < self.roots.newest().checkpoint) else {
            return Ok(true);
        };
        let layout = WalLayout::new(self.data.geometry());
        let found = wal::has_segment(self.wal_file.raw(), layout, (self.index_id, epoch), older.wal_start.seq)?;
        Ok(site::holds(site::Kind::ErrorCheck, found))
    }

    /// LSNs go on after the tail, in an epoch that no segment is of.
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
        let operations = match record.kind {
            FrameKind::Add => {
                let postings = record::decode_add(&record.payload, self.data.geometry().dimension).map_err(damaged)?;
                // What was accepted once is so again, unless these are other bytes.
                let rows = batch::rows(&postings, self.data.geometry())
                    .map_err(|e| damaged(crate::format::FormatError::new(0, e.to_string())))?;
                let context = self.context();
                apply::add(&mut self.work, &context, &rows)?;
                postings.len()
            }
            FrameKind::Remove => {
                let documents = record::decode_remove(&record.payload).map_err(damaged)?;
                let context = self.context();
                apply::remove(&mut self.work, &context, &documents)?;
                documents.len()
            }
            FrameKind::Pad | FrameKind::Close => 0,
        };
        self.recovery.records_replayed += 1;
        site::reach(Mark::RecordReplayed);
        self.recovery.operations_replayed += operations as u64;
        Ok(())
    }

    /// Makes both roots know the epoch that is to be appended to: steps (b) and (c). Nothing to do if they do.
    ///
    /// # Errors
    /// As [`flush`](Self::flush).
    pub(super) fn open_epoch(&mut self) -> Result<()> {
        if site::holds(site::Kind::Ordering, self.epoch_open) {
            return Ok(());
        }
        self.flush_once(true)?;
        let twin = Root { generation: self.roots.newest().generation.next(), ..self.roots.newest().clone() };
        self.work.space.begin(twin.generation);
        let job = self.roots.store_next(&twin, B5)?;
        self.counters.barriers += 1;
        if let Err(error) = job.run() {
            return Err(self.poison(error));
        }
        self.roots.stored(twin);
        self.work.space.made_durable(self.roots.newest().generation);
        self.epoch_open = true;
        Ok(())
    }

    /// Replaces a root file of epoch 1, so that its entry is durable: invariant 1 of the [module](self). No flush is under way,
    /// whose root the new file would lack.
    pub(super) fn make_root_file_anew(&mut self) -> Result<()> {
        if self.roots.is_anew() || site::holds(site::Kind::Ordering, self.roots.newest().epoch > 1) {
            return Ok(());
        }
        let file = self.roots.copy_to_new_file(&self.storage, &self.lock)?;
        self.counters.barriers += 1;
        if let Err(error) = file.sync_all(E2).run() {
            return Err(self.poison(error));
        }
        self.storage.rename(names::ROOT_NEW, names::ROOT, NAME)?;
        // Opened anew, for it has another name now.
        self.roots.use_file(PlainFile::open(&self.storage, names::ROOT, &self.lock)?);
        site::reach(Mark::RootFileReplaced);
        self.counters.barriers += 1;
        self.storage.sync_dir(E1).map_err(|error| self.poison(error))
    }
}
