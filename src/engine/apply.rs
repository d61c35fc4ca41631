//! One batch on the working state: all of it, or nothing.
//!
//! Shards are changed as copies, and their bytes stored into free slots only. So a batch that fails half-way is undone by
//! forgetting the copies, and a batch that succeeds is switched in at the end. Deterministic: a replay of the same
//! batches on the same state gives the same state.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use rand::RngExt as _;

use super::{
    batch::Row,
    working::{SharedShard, Totals, Touched, Working},
};
use crate::{
    distance,
    env::{Clock, derived_rng},
    error::{Result, ShardexError},
    id::{DocumentId, ShardId},
    lease::Place,
    limits,
    shard::{Cause, DataFile, Lookup, Shard, StoredPosting, split},
    site::{self, Kind, Mark},
    storage::StorageFile,
};

/// What a batch did.
#[derive(Debug, Default)]
pub struct Applied {
    /// Numbers of the shards that changed, came or went.
    pub changed: Vec<u32>,
    /// Postings removed or replaced.
    pub removed: u64,
}

/// What a batch needs besides the working state.
pub struct Context<F> {
    /// Where the bytes go.
    pub data: Arc<DataFile<F>>,
    /// For the names of shards.
    pub clock: Arc<dyn Clock>,
    /// Seeds the generator.
    pub index_id: u128,
}

/// A batch being applied.
struct Apply<'a, F: StorageFile> {
    context: &'a Context<F>,
    work: &'a mut Working<F>,
    touched: Touched<F>,
    taken: Vec<Arc<Place>>,
    dropped: Vec<Arc<Place>>,
    /// Why what is staged in a shard is stored, where it is not only for being added.
    causes: BTreeMap<u32, Cause>,
    /// Shards from which this batch removed postings.
    shrunk: BTreeSet<u32>,
    before: Totals,
    candidates: Vec<usize>,
}

/// Adds postings whose keys differ; a stored posting of the same key is replaced.
///
/// # Errors
/// `OutOfSpace`, `Io`, `Corruption`; the working state is as before.
pub fn add<F: StorageFile>(work: &mut Working<F>, context: &Context<F>, rows: &[Row<'_>]) -> Result<Applied> {
    Apply::run(work, context, |apply| {
        let mut removed = 0;
        // All removals come before all appends, so that lookups meet only stored postings.
        for row in rows {
            let StoredPosting { document_id, start, length, .. } = row.posting;
            removed += apply.remove(Lookup::Key(document_id, start, length))?;
        }
        if apply.is_bulk(rows.len()) {
            apply.load(rows);
        } else {
            for row in rows {
                apply.place(row.posting, &row.vector)?;
            }
        }
        Ok(removed)
    })
}

/// Removes all postings of some documents; unknown ones are none.
///
/// # Errors
/// `Io`, `Corruption`; the working state is as before.
pub fn remove<F: StorageFile>(
    work: &mut Working<F>,
    context: &Context<F>,
    documents: &[DocumentId],
) -> Result<Applied> {
    Apply::run(work, context, |apply| {
        let mut removed = 0;
        for &document in documents {
            removed += apply.remove(Lookup::Document(document))?;
        }
        Ok(removed)
    })
}

impl<'a, F: StorageFile> Apply<'a, F> {
    fn run(
        work: &'a mut Working<F>,
        context: &'a Context<F>,
        steps: impl FnOnce(&mut Self) -> Result<u64>,
    ) -> Result<Applied> {
        let before = work.totals;
        let mut apply = Self {
            context,
            work,
            touched: BTreeMap::new(),
            taken: Vec::new(),
            dropped: Vec::new(),
            causes: BTreeMap::new(),
            shrunk: BTreeSet::new(),
            before,
            candidates: Vec::new(),
        };
        let done = steps(&mut apply).and_then(|removed| {
            apply.free_empty();
            apply.merge_all()?;
            apply.store_all()?;
            Ok(removed)
        });
        match done {
            Ok(removed) => Ok(apply.switch_in(removed)),
            Err(error) => {
                if site::applies(Kind::ErrorCheck, true) {
                    site::reach(Mark::BatchUndone);
                    apply.undo();
                }
                Err(error)
            }
        }
    }

    fn shard(&self, number: u32) -> Option<&Shard<F::Lent>> {
        current::<F>(&self.touched, &self.work.shards, number)
    }

    /// The batch's own copy of a shard.
    fn touch(&mut self, number: u32) -> &mut Shard<F::Lent> {
        let shards = &self.work.shards;
        let copy = || shards.get(number as usize).and_then(|shard| shard.as_deref().cloned());
        match self.touched.entry(number).or_insert_with(copy) {
            Some(shard) => shard,
            None => unreachable!("shard {number} is routed to, so it exists"),
        }
    }

    /// Removes the postings that a lookup finds.
    fn remove(&mut self, lookup: Lookup) -> Result<u64> {
        let mut candidates = std::mem::take(&mut self.candidates);
        self.work.finder.candidates(lookup, &mut candidates);
        self.work.finder.counts.lookups += 1;
        let mut found = Vec::new();
        let mut removed = 0;
        for &number in &candidates {
            let data = &self.context.data;
            let Working { finder, shards, figures, .. } = &mut *self.work;
            let Some(shard) = current::<F>(&self.touched, shards, number as u32) else { continue };
            found.clear();
            if finder.find(data, (number, shard), lookup, &mut found)? {
                figures.note(number as u32);
            }
            if found.is_empty() {
                continue;
            }
            let shard = self.touch(number as u32);
            for &(slot, _) in &found {
                shard.remove(slot, data.geometry());
            }
            self.shrunk.insert(number as u32);
            removed += found.len() as u64;
        }
        self.candidates = candidates;
        self.work.totals.live -= removed;
        self.work.totals.removed += removed;
        Ok(removed)
    }

    /// Whether so many postings are better given to shards of their own than to those there are: nearly all of these would
    /// be split, some of them several times, and be written anew each time.
    fn is_bulk(&self, rows: usize) -> bool {
        let shard_size = self.context.data.geometry().shard_size;
        rows >= limits::BULK_SHARDS * shard_size && rows as u64 >= self.work.totals.live
    }

    /// Makes shards for all postings of a batch: halves it until each part leaves a shard room to grow.
    fn load(&mut self, rows: &[Row<'_>]) {
        let shard_size = self.context.data.geometry().shard_size;
        let full = (shard_size * limits::BULK_FILL / 8).max(1);
        let mut rng = derived_rng(self.context.index_id, self.work.totals.draws);
        self.work.totals.draws += 1;
        let mut parts: Vec<Vec<usize>> = vec![(0..rows.len()).collect()];
        while let Some(part) = parts.pop() {
            let vectors: Vec<&[f32]> = part.iter().map(|&i| &*rows[i].vector).collect();
            if part.len() > full && part.len() > 1 {
                let halves = split::two_means(&vectors, &mut rng);
                let (second, first): (Vec<_>, Vec<_>) =
                    part.into_iter().zip(halves.second).partition(|&(_, in_second)| in_second);
                parts.extend([second, first].map(|half| half.into_iter().map(|(i, _)| i).collect()));
                continue;
            }
            site::reach(Mark::Loaded);
            let number = self.create(split::mean(vectors.into_iter()).into());
            for &i in &part {
                self.append(number, rows[i].posting, &rows[i].vector);
            }
        }
        self.work.totals.live += rows.len() as u64;
    }

    /// Appends a posting to the shard with the nearest centroid.
    fn place(&mut self, posting: StoredPosting, vector: &[f32]) -> Result<()> {
        let shard_size = self.context.data.geometry().shard_size;
        let number = match self.work.routing.nearest(vector) {
            Some(number) => number,
            None => self.create(vector.into()),
        };
        if self.shard(number).is_some_and(|shard| shard.len() == shard_size) {
            self.split(number)?;
            // Each half has room (`split`). Now and then another shard is nearer than both, and full.
            let number = match self.work.routing.nearest(vector) {
                Some(number) => number,
                None => self.create(vector.into()),
            };
            if self.shard(number).is_none_or(|shard| shard.len() == shard_size) {
                return self.place(posting, vector);
            }
            self.append(number, posting, vector);
        } else {
            self.append(number, posting, vector);
        }
        self.work.totals.live += 1;
        Ok(())
    }

    fn append(&mut self, number: u32, posting: StoredPosting, vector: &[f32]) {
        let geometry = self.context.data.geometry();
        self.touch(number).stage(posting, vector, geometry);
        self.work.finder.insert(number as usize, &posting);
    }

    /// A new shard under the lowest free number.
    fn create(&mut self, centroid: Arc<[f32]>) -> u32 {
        let number = self.work.numbers.lowest();
        self.work.numbers.set(number, true);
        let draw: u128 = derived_rng(self.context.index_id, self.work.totals.draws).random();
        self.work.totals.draws += 1;
        let id = ShardId::from_parts(self.context.clock.unix_ms(), draw);
        let shard = Shard::new(id, centroid, self.context.data.geometry());
        self.work.index(number, Some(&shard));
        self.touched.insert(number, Some(shard));
        number
    }

    /// Takes a shard out of the index.
    fn dissolve(&mut self, number: u32) {
        if let Some(shard) = self.shard(number) {
            let places: Vec<_> = shard.extents().iter().map(|extent| Arc::clone(extent.place())).collect();
            self.work.totals.removed -= (shard.len() - shard.live()) as u64;
            self.dropped.extend(places);
        }
        self.touched.insert(number, None);
        self.work.numbers.set(number, false);
        self.work.index(number, None);
    }

    /// Splits a full shard in two, and gives postings that are nearer to another shard to that one, if it has room: so one
    /// split never leads to the next. Of the nearest shards those postings come over that are nearer to one of the halves
    /// (LIRE; Xu et al., SOSP 2023). A shard of which half is removed is written anew instead.
    fn split(&mut self, number: u32) -> Result<()> {
        self.store(number)?;
        let context = self.context;
        let geometry = context.data.geometry();
        let Some(shard) = self.shard(number) else { return Ok(()) };
        let parent = Arc::clone(&shard.centroid);
        let live = owned_rows(shard, &context.data)?;
        let rows: Vec<&[f32]> = live.iter().map(|(_, vector)| vector.as_slice()).collect();
        self.dissolve(number);
        if rows.is_empty() {
            return Ok(());
        }
        if rows.len() < 2 || rows.len() <= geometry.shard_size / 2 {
            let number = self.create(split::mean(rows.iter().copied()).into());
            self.causes.insert(number, Cause::Split);
            site::reach(Mark::Rewritten);
            live.iter().for_each(|(posting, vector)| self.append(number, *posting, vector));
            return Ok(());
        }
        let mut rng = derived_rng(context.index_id, self.work.totals.draws);
        self.work.totals.draws += 1;
        self.work.totals.splits += 1;
        site::reach(Mark::Split);
        let halves = split::two_means(&rows, &mut rng);
        let neighbours = self.work.routing.nearest_few(&parent, limits::SPLIT_NEIGHBOURS, &[]);
        let [first, second] = halves.centroids.map(|centroid| self.create(centroid.into()));
        self.causes.extend([first, second].map(|half| (half, Cause::Split)));
        for ((posting, vector), in_second) in live.iter().zip(halves.second) {
            let home = if in_second { second } else { first };
            let nearer = self.nearest_with_room(&neighbours, vector, self.distance(home, vector));
            if nearer.is_some() {
                site::reach(Mark::Moved);
            }
            let number = nearer.unwrap_or(home);
            self.append(number, *posting, vector);
        }
        for &neighbour in neighbours.iter().take(limits::ADOPTION_NEIGHBOURS) {
            self.adopt(neighbour, [first, second]);
        }
        Ok(())
    }

    /// Lets postings of one shard come over to one of two new ones that is nearer, as long as that has room for them and for
    /// the posting that had the other split. What this batch has given the shard stays: it is not stored yet.
    fn adopt(&mut self, from: u32, halves: [u32; 2]) {
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
            self.touch(from).remove(slot, data.geometry());
            self.append(half, posting, &vector);
            self.work.totals.removed += 1;
            site::reach(Mark::Adopted);
        }
    }

    /// Frees the shards that are left without a posting.
    fn free_empty(&mut self) {
        let numbers: Vec<u32> = self.touched.keys().copied().collect();
        for number in numbers {
            if self.shard(number).is_some_and(|shard| shard.live() == 0) {
                site::reach(Mark::ShardFreed);
                self.dissolve(number);
            }
        }
    }

    /// Takes apart the shards from which this batch removed so much that their postings are better off in others. A merge
    /// moves at most as many postings as the shard has lost, so these have paid for it, and it never leads to a split.
    fn merge_all(&mut self) -> Result<()> {
        for number in std::mem::take(&mut self.shrunk) {
            let shard_size = self.context.data.geometry().shard_size;
            let is_small = |shard: &Shard<F::Lent>| {
                shard.live() * limits::MERGE_SHARE <= shard_size && shard.live() * 2 <= shard.len()
            };
            if self.shard(number).is_some_and(is_small) {
                self.merge(number)?;
            }
        }
        Ok(())
    }

    /// Gives all postings of a shard to its nearest neighbours, if these have room for all in what they take up already: a
    /// batch that removes does not fail for want of space, nor because of what is damaged elsewhere.
    fn merge(&mut self, number: u32) -> Result<()> {
        self.store(number)?;
        let data = &self.context.data;
        let Some(shard) = self.shard(number) else { return Ok(()) };
        let (centroid, count) = (Arc::clone(&shard.centroid), shard.live());
        let neighbours = self.work.routing.nearest_few(&centroid, limits::SPLIT_NEIGHBOURS, &[number]);
        let room = |&home: &u32| self.shard(home).map_or(0, |shard| shard.room_in_place(data));
        let mut homes: Vec<(u32, usize)> =
            neighbours.iter().map(|home| (*home, room(home))).filter(|&(_, room)| room > 0).collect();
        if homes.iter().map(|&(_, room)| room).sum::<usize>() < count {
            return Ok(());
        }
        let live = match self.shard(number).map(|shard| owned_rows(shard, data)) {
            // What cannot be read stays where it is, for those to find who look for it.
            Some(Err(ShardexError::Corruption { .. })) | None => return Ok(()),
            Some(live) => live?,
        };
        site::reach(Mark::Merged);
        self.work.totals.merges = self.work.totals.merges.saturating_add(1);
        self.dissolve(number);
        for (posting, vector) in &live {
            let distance = |&(home, _): &(u32, usize)| self.distance(home, vector);
            let nearest = (0..homes.len()).min_by(|&a, &b| distance(&homes[a]).total_cmp(&distance(&homes[b])));
            let Some(nearest) = nearest else { unreachable!("there is room for all") };
            let (home, room) = &mut homes[nearest];
            let home = *home;
            *room -= 1;
            if *room == 0 {
                homes.remove(nearest);
            }
            self.causes.entry(home).or_insert(Cause::Merge);
            self.append(home, *posting, vector);
        }
        Ok(())
    }

    fn distance(&self, number: u32, vector: &[f32]) -> f32 {
        distance::squared_l2(vector, self.work.routing.centroid(number))
    }

    /// Postings that a shard can take before it is full.
    fn room(&self, number: u32) -> usize {
        self.shard(number).map_or(0, |shard| self.context.data.geometry().shard_size - shard.len())
    }

    /// The nearest of some shards, if it is nearer than `least` and has room.
    fn nearest_with_room(&self, numbers: &[u32], vector: &[f32], mut least: f32) -> Option<u32> {
        let mut best = None;
        for &number in numbers {
            let candidate = self.distance(number, vector);
            if candidate < least && self.room(number) > 0 {
                (best, least) = (Some(number), candidate);
            }
        }
        best
    }

    /// Stores what was staged in one shard.
    fn store(&mut self, number: u32) -> Result<()> {
        let Some(Some(shard)) = self.touched.get_mut(&number) else { return Ok(()) };
        let (work, taken, context) = (&mut *self.work, &mut self.taken, self.context);
        let mut take = || {
            let place = work.take_extent(&context.data)?;
            taken.push(Arc::clone(&place));
            Ok(place)
        };
        let cause = self.causes.get(&number).copied().unwrap_or(Cause::Add);
        shard.store(&context.data, &mut take, cause)
    }

    /// Stores what was staged anywhere.
    fn store_all(&mut self) -> Result<()> {
        let numbers: Vec<u32> = self.touched.keys().copied().collect();
        numbers.into_iter().try_for_each(|number| self.store(number))
    }

    /// Makes the copies the working state.
    fn switch_in(self, removed: u64) -> Applied {
        let Self { work, touched, dropped, .. } = self;
        let changed = touched.keys().copied().collect();
        for (number, shard) in touched {
            work.put(number, shard.map(Arc::new));
        }
        dropped.into_iter().for_each(|place| work.retire_extent(place));
        Applied { changed, removed }
    }

    /// Forgets the copies.
    fn undo(self) {
        let Self { work, touched, taken, before, dropped, .. } = self;
        drop(dropped);
        for (number, copy) in touched {
            drop(copy);
            let original = work.shards.get(number as usize).cloned().flatten();
            work.numbers.set(number, original.is_some());
            work.index(number, original.as_deref());
        }
        taken.into_iter().for_each(|place| work.space.undo(place));
        work.totals = before;
    }
}

/// A shard as a batch has it: its copy, or the one that all share.
fn current<'a, F: StorageFile>(
    touched: &'a Touched<F>,
    shards: &'a [Option<SharedShard<F>>],
    number: u32,
) -> Option<&'a Shard<F::Lent>> {
    match touched.get(&number) {
        Some(touched) => touched.as_ref(),
        None => shards.get(number as usize)?.as_deref(),
    }
}

/// The live postings of a shard that is about to go, copied, with their vectors.
fn owned_rows<F: StorageFile>(shard: &Shard<F::Lent>, data: &DataFile<F>) -> Result<Vec<(StoredPosting, Vec<f32>)>> {
    Ok(shard.live_rows(data)?.into_iter().map(|(posting, vector)| (posting, vector.to_vec())).collect())
}
