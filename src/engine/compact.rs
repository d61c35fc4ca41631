//! Compaction: shards are rewritten without their removed postings, so that the space of these comes back.
//!
//! # Invariants
//! 1. A rewrite is recorded in the WAL with the numbers of its shards, and applied at its LSN. So a replay makes the same
//!    shards, whenever and at whatever rate the writer has chosen them.
//! 2. It changes no posting, and it stores nothing into used pages. The extents before it are freed as those of any change
//!    are.
//! 3. A damaged shard is left as it is, so that no damage is copied under a new checksum.

use super::{apply, core::Engine};
use crate::{
    error::Result,
    failpoint::reached,
    format::{frame::FrameKind, maintenance},
    limits::FORMAT_VERSION,
    storage::Storage,
};

impl<S: Storage> Engine<S> {
    /// Rewrites shards without their removed postings, those with the largest shares of removed ones first, until it has
    /// read about `max_bytes` of slots, used and removed, and at least one shard. It passes over shards of which less than one
    /// posting in `share` is removed.
    /// Returns the bytes of the slots of these shards, used and removed: 0 if nothing is left to do.
    ///
    /// The result is accepted like a write: it is durable with the next commit, and space comes back after the flushes that
    /// follow.
    ///
    /// Cost: reads the used slots of these shards, and stores their live postings. It looks at the counts of all shards.
    ///
    /// # Errors
    /// As [`write`](Self::write). Nothing has changed then.
    pub fn compact_step(&mut self, share: u64, max_bytes: u64) -> Result<u64> {
        self.check_writable()?;
        let numbers = self.worst_shards(share, max_bytes);
        // Older versions have no such record.
        if numbers.is_empty() || self.stays_at_version.is_some() {
            return Ok(0);
        }
        let record = maintenance::encode_rewrite(&numbers);
        self.reserve_wal(record.len() as u64)?;
        let shards = numbers.iter().filter_map(|&number| self.work.shards[number as usize].as_ref());
        let slots: usize = shards.map(|shard| shard.len()).sum();
        let context = self.context(0);
        let applied = apply::rewrite(&mut self.work, &context, &numbers)?;
        self.wal.append(FrameKind::Maintenance, &[&record]);
        for number in numbers.iter().filter(|number| !applied.changed.contains(number)) {
            self.unfit.extend(self.work.shards[*number as usize].as_ref().map(|shard| shard.id));
        }
        self.accepted(&applied, 0);
        reached!(Compacted);
        Ok((slots * self.data.geometry().slot_bytes()) as u64)
    }

    /// Returns the numbers of the shards that a step rewrites, in ascending order.
    fn worst_shards(&self, share: u64, max_bytes: u64) -> Vec<u32> {
        let mut found: Vec<(u64, u32, usize)> = Vec::new();
        for (shard, number) in self.work.shards.iter().zip(0u32..) {
            let Some(shard) = shard else { continue };
            let removed = (shard.len() - shard.live()) as u64;
            // A damaged shard can't be rewritten, and would be chosen again and again.
            if removed.saturating_mul(share) >= shard.len() as u64 && removed > 0 && !self.unfit.contains(&shard.id) {
                found.push(((removed << 32) / shard.len() as u64, number, shard.len()));
            }
        }
        found.sort_unstable_by(|a, b| b.0.cmp(&a.0).then(a.1.cmp(&b.1)));
        let mut bytes = 0;
        let slot = self.data.geometry().slot_bytes() as u64;
        let taken = found.into_iter().take_while(|&(.., used)| {
            let fits = bytes < max_bytes;
            bytes += used as u64 * slot;
            fits
        });
        let mut numbers: Vec<u32> = taken.map(|(_, number, _)| number).collect();
        numbers.sort_unstable();
        numbers
    }

    /// Returns the bytes of the slots of removed postings.
    pub(super) fn removed_bytes(&self) -> u64 {
        self.work.totals.removed * self.data.geometry().slot_bytes() as u64
    }

    /// Reports whether removed postings take at least one slot in `share`, and more than `least` bytes. Not before the first
    /// write of an epoch, which alone may upgrade an index.
    #[must_use]
    pub fn wants_compaction(&self, share: u64, least: u64) -> bool {
        let totals = self.work.totals;
        let is_open = self.epoch_open && self.roots.version() == FORMAT_VERSION;
        is_open && totals.removed * share >= totals.live + totals.removed && self.removed_bytes() > least
    }
}
