//! Splits and merges: they keep shards between empty and full while a batch is applied.

use super::apply::Apply;
use crate::{
    distance,
    env::derived_rng,
    error::{Result, ShardexError},
    failpoint::reached,
    shard::{DataFile, Shard, StoreReason, StoredRow, StoredVector, split},
    storage::StorageFile,
    tuning,
};
use std::sync::Arc;

/// Copies the live postings of a shard with their vectors, before the shard is dissolved.
pub(super) fn owned_rows<F: StorageFile>(
    shard: &Shard<F::Lent>,
    data: &DataFile<F>,
) -> Result<Vec<StoredRow<Vec<f32>>>> {
    let owned = |StoredRow { posting, tags, vector }: StoredRow<StoredVector<'_>>| StoredRow {
        posting,
        tags,
        vector: vector.to_f32().into_owned(),
    };
    Ok(shard.live_rows(data)?.into_iter().map(owned).collect())
}

impl<'a, F: StorageFile> Apply<'a, F> {
    /// Splits a full shard in two.
    ///
    /// Postings that are nearer to another shard move there if it has room, so the moves of a split never split another
    /// shard. (The posting that caused the split may: see [`add_posting`](Self::add_posting).) In return, postings of
    /// the nearest shards that are nearer to one of the halves move to that half (LIRE; Xu et al., SOSP 2023). A shard
    /// with a single live posting, or with no more than half of its capacity live, is rewritten as one new shard
    /// instead. A shard without a live posting is dissolved.
    pub(super) fn split(&mut self, number: u32) -> Result<()> {
        self.store(number)?;
        let context = self.context;
        let geometry = context.data.geometry();
        let Some(shard) = self.shard(number) else { return Ok(()) };
        let parent = Arc::clone(&shard.centroid);
        let live = owned_rows(shard, &context.data)?;
        if live.len() < 2 || live.len() <= geometry.shard_size / 2 {
            self.replace(number, &live);
            return Ok(());
        }
        let rows: Vec<&[f32]> = live.iter().map(|row| row.vector.as_slice()).collect();
        self.dissolve(number);
        let mut rng = derived_rng(context.index_id, self.work.totals.draws);
        self.work.totals.draws += 1;
        self.work.totals.splits += 1;
        reached!(Split);
        let halves = split::two_means(&rows, &mut rng);
        let neighbours = self.work.routing.nearest_few(&parent, tuning::SPLIT_NEIGHBOURS, &[]);
        let [first, second] = halves.centroids.map(|centroid| self.create(centroid.into()));
        self.causes.extend([first, second].map(|half| (half, StoreReason::Split)));
        for (StoredRow { posting, tags, vector }, in_second) in live.iter().zip(halves.second) {
            let target = if in_second { second } else { first };
            let nearer = self.nearest_with_room(&neighbours, vector, self.distance(target, vector));
            if nearer.is_some() {
                reached!(Moved);
            }
            let number = nearer.unwrap_or(target);
            self.append(number, *posting, *tags, vector);
        }
        for &neighbour in neighbours.iter().take(tuning::ADOPTION_NEIGHBOURS) {
            self.adopt(neighbour, [first, second]);
        }
        Ok(())
    }

    /// Rewrites a shard without its removed postings, or merges it by the rule of [`merge_all`](Self::merge_all). Does nothing if the
    /// shard is damaged, or has no removed posting.
    pub(super) fn rewrite(&mut self, number: u32) -> Result<()> {
        self.store(number)?;
        let Some(shard) = self.shard(number).filter(|shard| shard.live() < shard.len()) else { return Ok(()) };
        if shard.live() > 0 && self.is_small(number) {
            self.merge(number)?;
        }
        self.purge(number)
    }

    /// Rewrites a shard with its live postings, whether or not it has others: its sum, centroid and filter then come from them
    /// alone. Does nothing if the shard is damaged.
    pub(super) fn purge(&mut self, number: u32) -> Result<()> {
        // A shard that was merged before may have left postings here.
        self.store(number)?;
        let data = &self.context.data;
        let live = match self.shard(number).map(|shard| owned_rows(shard, data)) {
            Some(Err(ShardexError::Corruption { .. })) | None => return Ok(()),
            Some(live) => live?,
        };
        self.replace(number, &live);
        // The shards that are merged next find room in its extents.
        self.store(number)
    }

    /// Replaces a shard by a new one under its number, with its live postings in their order. Cells still find them, by
    /// their former slots.
    fn replace(&mut self, number: u32, live: &[StoredRow<Vec<f32>>]) {
        let known =
            self.work.cells.as_ref().and_then(|(cells, _)| cells.covered(number)).map(|(_, covered)| covered.id);
        let former = self.shard(number).zip(known).and_then(|(shard, known)| shard.former_of_rewrite(known));
        self.dissolve(number);
        if live.is_empty() {
            return;
        }
        reached!(Rewritten);
        let centroid = split::mean(live.iter().map(|row| row.vector.as_slice()));
        self.create_as(number, centroid.into(), former);
        self.causes.insert(number, StoreReason::Split);
        live.iter().for_each(|row| self.append(number, row.posting, row.tags, &row.vector));
    }

    /// Moves postings of one shard to the nearer of two new halves, if that half is nearer than the shard itself.
    ///
    /// Each half keeps room for the posting that caused the split. Postings that this batch staged in the shard stay
    /// there, because they are not stored yet.
    pub(super) fn adopt(&mut self, from: u32, halves: [u32; 2]) {
        let data = &self.context.data;
        let Some(shard) = self.shard(from) else { return };
        let nearer = |vector: &[f32]| {
            let [first, second] = halves.map(|half| self.distance(half, vector));
            let (half, least) = if second < first { (halves[1], second) } else { (halves[0], first) };
            (least < self.distance(from, vector)).then(|| (half, vector.to_vec()))
        };
        if halves.iter().all(|&half| self.room(half) <= 1) {
            return;
        }
        for (slot, posting, (half, vector)) in shard.picked_rows(data, nearer) {
            if self.room(half) <= 1 {
                continue;
            }
            let from = self.touch(from);
            from.remove(slot, data.geometry());
            let tags = from.tags().get(slot);
            self.append(half, posting, tags, &vector);
            self.work.totals.removed += 1;
            reached!(Adopted);
        }
    }

    /// Dissolves the touched shards without a live posting.
    pub(super) fn free_empty(&mut self) {
        let numbers: Vec<u32> = self.touched.keys().copied().collect();
        for number in numbers {
            if self.shard(number).is_some_and(|shard| shard.live() == 0) {
                reached!(ShardFreed);
                self.dissolve(number);
            }
        }
    }

    /// Merges the shards that this batch shrank, if they are small enough: at most one part in [`tuning::MERGE_SHARE`]
    /// of the capacity live, and at most half of the used slots live.
    ///
    /// A merge moves at most as many postings as the shard has lost, so the removals have paid for it. It never leads
    /// to a split.
    pub(super) fn merge_all(&mut self) -> Result<()> {
        for number in std::mem::take(&mut self.shrunk) {
            if self.is_small(number) {
                self.merge(number)?;
            }
        }
        Ok(())
    }

    fn is_small(&self, number: u32) -> bool {
        let shard_size = self.context.data.geometry().shard_size;
        let is_small = |shard: &Shard<F::Lent>| {
            shard.live() * tuning::MERGE_SHARE <= shard_size && shard.live() * 2 <= shard.len()
        };
        self.shard(number).is_some_and(is_small)
    }

    /// Moves all postings of a shard to its nearest neighbours, if their extents have room for all of them.
    ///
    /// A merge allocates no extents and uses only undamaged ones. So a batch of removals fails neither for lack of
    /// space nor because of damage in another shard.
    pub(super) fn merge(&mut self, number: u32) -> Result<()> {
        self.store(number)?;
        let data = &self.context.data;
        let Some(shard) = self.shard(number) else { return Ok(()) };
        let (centroid, count) = (Arc::clone(&shard.centroid), shard.live());
        let neighbours = self.work.routing.nearest_few(&centroid, tuning::SPLIT_NEIGHBOURS, &[number]);
        let room = |&target: &u32| self.shard(target).map_or(0, |shard| shard.room_in_place(data));
        let mut targets: Vec<(u32, usize)> =
            neighbours.iter().map(|target| (*target, room(target))).filter(|&(_, room)| room > 0).collect();
        if targets.iter().map(|&(_, room)| room).sum::<usize>() < count {
            return Ok(());
        }
        let live = match self.shard(number).map(|shard| owned_rows(shard, data)) {
            // A damaged shard stays in place, so that a check or a search can report the damage.
            Some(Err(ShardexError::Corruption { .. })) | None => return Ok(()),
            Some(live) => live?,
        };
        reached!(Merged);
        self.work.totals.merges = self.work.totals.merges.saturating_add(1);
        self.dissolve(number);
        for StoredRow { posting, tags, vector } in &live {
            let distance = |&(target, _): &(u32, usize)| self.distance(target, vector);
            let nearest = (0..targets.len()).min_by(|&a, &b| distance(&targets[a]).total_cmp(&distance(&targets[b])));
            let Some(nearest) = nearest else { unreachable!("there is room for all") };
            let (target, room) = &mut targets[nearest];
            let target = *target;
            *room -= 1;
            if *room == 0 {
                targets.remove(nearest);
            }
            self.causes.entry(target).or_insert(StoreReason::Merge);
            self.append(target, *posting, *tags, vector);
        }
        Ok(())
    }

    pub(super) fn distance(&self, number: u32, vector: &[f32]) -> f32 {
        distance::squared_l2(vector, self.work.routing.centroid(number))
    }

    /// Returns the number of postings that a shard can take before it is full.
    pub(super) fn room(&self, number: u32) -> usize {
        self.shard(number).map_or(0, |shard| self.context.data.geometry().shard_size - shard.len())
    }

    /// Returns the nearest of the given shards that is nearer than `least` and has room.
    pub(super) fn nearest_with_room(&self, numbers: &[u32], vector: &[f32], mut least: f32) -> Option<u32> {
        let mut best = None;
        for &number in numbers {
            let candidate = self.distance(number, vector);
            if candidate < least && self.room(number) > 0 {
                (best, least) = (Some(number), candidate);
            }
        }
        best
    }
}
