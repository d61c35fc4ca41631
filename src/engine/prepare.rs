//! Step 1 of a flush: stores the shard states, tags, buckets and directory nodes that changed, all in free allocations.

use std::{collections::BTreeMap, sync::Arc};

use super::{
    core::Engine,
    directory::{self, Directory, DirectoryChanges, DirectoryKind},
    pending_flush::PendingFlush,
    state_blocks::{BlockChanges, StoredTags},
};
use crate::{
    error::Result,
    failpoint::reached,
    format::{
        block::{self, BlockKind, BlockNumbers, BlockOrigin},
        bucket::{encode_entries, encode_part, part_capacity},
        crc32c,
        geometry::IndexParams,
        node::{self, BlockPointer},
        root::PayloadRoot,
        state::CentroidState,
    },
    id::Generation,
    lease::Allocation,
    payload::{PayloadIndex, StoredPayload},
    shard::{SharedShard, tag_bytes},
    storage::Storage,
};

/// Blocks that a flush stores, with their allocations.
struct Blobs {
    index_id: u128,
    generation: Generation,
    geometry: IndexParams,
    blocks: Vec<(Arc<Allocation>, Vec<u8>)>,
}

impl Blobs {
    /// Adds a block without a header in an allocation of its size, and returns the pointer to it.
    fn add(&mut self, allocation: &Arc<Allocation>, bytes: Vec<u8>) -> BlockPointer {
        let (page, len, crc) = (allocation.run().page, bytes.len() as u32, crc32c(0, &bytes));
        self.blocks.push((Arc::clone(allocation), bytes));
        BlockPointer { page, len, crc }
    }

    /// Adds a block that was encoded in a format version. From version 3 on it begins with room for its header.
    fn add_named(
        &mut self,
        allocation: &Arc<Allocation>,
        mut bytes: Vec<u8>,
        name: BlockNumbers,
        version: u32,
    ) -> BlockPointer {
        if version < 3 {
            return self.add(allocation, bytes);
        }
        let page = allocation.run().page;
        let origin = BlockOrigin { index_id: self.index_id, generation: self.generation, page };
        let crc = block::complete(&mut bytes, name, origin, &self.geometry);
        let len = bytes.len() as u32;
        self.blocks.push((Arc::clone(allocation), bytes));
        BlockPointer { page, len, crc }
    }
}

impl<S: Storage> Engine<S> {
    /// Stores everything below the root of a flush into free pages, and completes the root.
    pub(super) fn prepare(&mut self, run: &mut PendingFlush<S>) -> Result<()> {
        let geometry = *self.data.geometry();
        let (index_id, generation) = (self.index_id, run.root.generation);
        let mut blobs = Blobs { index_id, generation, geometry, blocks: Vec::new() };
        self.prepare_shards(run, &mut blobs)?;
        self.prepare_buckets(run, &mut blobs)?;
        for (allocations, bytes) in neighbours_together(blobs.blocks, geometry.page_size) {
            let allocations: Vec<&Allocation> = allocations.iter().map(|allocation| &**allocation).collect();
            self.data.store_meta(&allocations, &bytes)?;
        }
        run.root.data_pages = self.work.space.map().pages_of(self.work.space.map().chunks());
        run.stats.shards_synced = run.dirty.len();
        Ok(())
    }

    /// Prepares the tags and states of the changed shards, and the directory nodes above them.
    fn prepare_shards(&mut self, run: &mut PendingFlush<S>, blobs: &mut Blobs) -> Result<()> {
        let geometry = *self.data.geometry();
        // While a slot holds a root of an older version, states are of that version, unless one slot went back to such a
        // root later: then there may be tags, which version 1 can't hold.
        let stored = self.roots.version();
        let version = |shard: &SharedShard<S::File>| if shard.tags().is_empty() { stored } else { stored.max(2) };
        let changed = self.changed_tags(&run.dirty);
        let stored = changed.values().filter(|tags| tags.is_some()).count();
        let states = run.dirty.iter().filter_map(|(_, shard)| shard.as_ref());
        let means: Vec<CentroidState> = states.clone().map(|shard| shard.means(&geometry, version(shard))).collect();
        let size = |(shard, means): (&SharedShard<S::File>, &CentroidState)| {
            geometry.pages(geometry.state_bytes(&shard.state_layout(means, version(shard))))
        };
        let mut sizes: Vec<u32> = states.zip(&means).map(size).collect();
        sizes.resize(sizes.len() + stored, 1);
        let first = run.taken.len();
        self.work.take_meta_together(&self.data, &sizes, &mut run.taken)?;
        let mut allocations = run.taken[first..].iter();
        let mut next = || match allocations.next() {
            Some(allocation) => allocation,
            None => unreachable!("each block has an allocation"),
        };
        // The states first, in the order of their sizes. Their tags follow.
        let of_states: Vec<&Arc<Allocation>> = (0..sizes.len() - stored).map(|_| next()).collect();
        for (at, words) in changed {
            let tags = words.map(|words| {
                reached!(TagsStored);
                StoredTags { at: blobs.add(next(), tag_bytes(&words)), words }
            });
            run.blocks.tags.insert(at, tags);
        }
        // A freed shard gets an empty block pointer.
        let version_of_root = run.root.version;
        let mut changes = self.rewritten(&self.directory, version_of_root);
        let dirty = run.dirty.iter().map(|(number, _)| ((0, *number as usize), BlockPointer::default()));
        changes.extend(dirty);
        let states = run.dirty.iter().filter_map(|(number, shard)| Some((*number, shard.as_ref()?)));
        for (((number, shard), allocation), means) in states.zip(of_states).zip(means) {
            let state = shard.state(number, means, self.tag_pointers(number, shard, &run.blocks), version(shard));
            let (bytes, name) = (state.encode(&geometry, version(shard)), directory::state_name(number));
            changes.insert((0, number as usize), blobs.add_named(allocation, bytes, name, version(shard)));
        }
        run.changes = self.nodes_above(
            run.root.shard_numbers as usize,
            changes,
            &mut run.taken,
            blobs,
            DirectoryKind::Shards,
            version_of_root,
        )?;
        run.root.directory = self.directory.top_after(&run.changes);
        Ok(())
    }

    /// Returns the pages of tags of the given shards that differ from the stored ones, and `None` for each stored page
    /// that is not needed any more.
    fn changed_tags(
        &self,
        dirty: &[(u32, Option<SharedShard<S::File>>)],
    ) -> BTreeMap<(u32, u32), Option<crate::shard::TagPage>> {
        let geometry = self.data.geometry();
        let mut changed = BTreeMap::new();
        for (number, shard) in dirty {
            let stored = self.state_blocks.tags.range((*number, 0)..=(*number, u32::MAX));
            changed.extend(stored.map(|(&at, _)| (at, None)));
            let Some(shard) = shard else { continue };
            for i in 0..geometry.tag_pages(shard.len()) {
                let at = (*number, i as u32);
                let Some(words) = shard.tags().page(i) else { continue };
                match self.state_blocks.tags.get(&at) {
                    Some(stored) if stored.words == *words => {
                        reached!(TagsKept);
                        changed.remove(&at);
                    }
                    _ => {
                        changed.insert(at, Some(Arc::clone(words)));
                    }
                }
            }
        }
        changed
    }

    /// Returns the pointers to the pages of tags of a shard, as a flush leaves them.
    fn tag_pointers(&self, number: u32, shard: &SharedShard<S::File>, changes: &BlockChanges) -> Vec<BlockPointer> {
        let pages = self.data.geometry().tag_pages(shard.len()) as u32;
        let pointer = |page| {
            let at = (number, page);
            let stored = || self.state_blocks.tags.get(&at).map(|tags| tags.at);
            changes.tags.get(&at).map_or_else(stored, |tags| tags.as_ref().map(|tags| tags.at)).unwrap_or_default()
        };
        (0..pages).map(pointer).collect()
    }

    /// Prepares the changed buckets of payloads, and the directory nodes above them.
    fn prepare_buckets(&mut self, run: &mut PendingFlush<S>, blobs: &mut Blobs) -> Result<()> {
        let geometry = *self.data.geometry();
        let stored = self.roots.version();
        let mut changes = self.rewritten(&self.bucket_directory, run.root.version);
        for &number in &run.dirty_buckets {
            let parts = parts_of(&run.payloads, number, &geometry, stored);
            let mut next = BlockPointer::default();
            // From the last part to the first, because each part has the pointer to the next one.
            for (part, entries) in parts.iter().enumerate().rev() {
                let bytes = encode_part(number, part as u32, entries, next, stored);
                let allocation = self.work.take_meta(&self.data, geometry.pages(bytes.len()))?;
                run.taken.push(Arc::clone(&allocation));
                let name = BlockNumbers { kind: BlockKind::Bucket, number, part: part as u32 };
                next = blobs.add_named(&allocation, bytes, name, stored);
                if part > 0 {
                    run.blocks.parts.insert((number, part as u32), Some(next));
                }
            }
            let stored = self.state_blocks.parts.range((number, 0)..=(number, u32::MAX)).map(|(&at, _)| at);
            stored.filter(|&(_, part)| part as usize >= parts.len()).for_each(|at| {
                run.blocks.parts.insert(at, None);
            });
            changes.insert((0, number as usize), next);
        }
        let buckets = run.payloads.buckets();
        // The directory never shrinks, so that the number of its levels never does.
        let entries = buckets.max(self.bucket_directory.len() as u32);
        if !changes.is_empty() {
            let taken = &mut run.taken;
            let version = run.root.version;
            run.bucket_changes =
                self.nodes_above(entries as usize, changes, taken, blobs, DirectoryKind::Buckets, version)?;
        }
        if run.root.version > 1 {
            run.root.payload = PayloadRoot {
                directory: self.bucket_directory.top_after(&run.bucket_changes),
                buckets,
                entries,
                payloads: run.payloads.payloads(),
                bytes: run.payloads.bytes(),
            };
        }
        Ok(())
    }

    /// Returns all entries of a directory if a root of `version` needs other nodes than the newest root has.
    fn rewritten(&self, directory: &Directory, version: u32) -> DirectoryChanges {
        let fanout = |version| self.data.geometry().node_fanout(version);
        if fanout(version) == fanout(self.roots.newest().version) {
            return DirectoryChanges::new();
        }
        directory.all_entries()
    }

    /// Prepares the directory nodes above changed entries, for a root of `version`.
    fn nodes_above(
        &mut self,
        entries: usize,
        changes: DirectoryChanges,
        taken: &mut Vec<Arc<Allocation>>,
        blobs: &mut Blobs,
        tree: DirectoryKind,
        version: u32,
    ) -> Result<DirectoryChanges> {
        let geometry = *self.data.geometry();
        let (work, data) = (&mut self.work, &*self.data);
        let store_node = |level, index, entries: &[BlockPointer]| -> Result<BlockPointer> {
            let bytes = node::encode(entries, geometry.page_size, version);
            let allocation = work.take_meta(data, geometry.pages(bytes.len()))?;
            taken.push(Arc::clone(&allocation));
            Ok(blobs.add_named(&allocation, bytes, tree.node(level, index), version))
        };
        let directory = match tree {
            DirectoryKind::Shards => &self.directory,
            DirectoryKind::Buckets => &self.bucket_directory,
        };
        directory.nodes_above(changes, entries, geometry.node_fanout(version), store_node)
    }
}

/// Returns the encoded entries of a bucket, divided into parts that fit a chunk. A bucket without entries has no part.
fn parts_of<L: std::ops::Deref<Target = [u8]> + Clone>(
    payloads: &PayloadIndex<L>,
    number: u32,
    geometry: &IndexParams,
    version: u32,
) -> Vec<Vec<u8>> {
    let entries: Vec<_> = payloads.bucket(number).iter().map(StoredPayload::entry).collect();
    encode_entries(&entries).chunks(part_capacity(geometry, version)).map(<[u8]>::to_vec).collect()
}

/// Joins the bytes of adjacent allocations, so that one call stores each adjacent group.
fn neighbours_together(
    mut blobs: Vec<(Arc<Allocation>, Vec<u8>)>,
    page_size: usize,
) -> Vec<(Vec<Arc<Allocation>>, Vec<u8>)> {
    blobs.sort_by_key(|(allocation, _)| allocation.run());
    let mut together: Vec<(Vec<Arc<Allocation>>, Vec<u8>)> = Vec::new();
    for (allocation, bytes) in blobs {
        match together.last_mut() {
            Some((allocations, buffer))
                if allocations.last().is_some_and(|last| last.run().end() == allocation.run().page) =>
            {
                let pages: u32 = allocations.iter().map(|allocation| allocation.run().pages).sum();
                buffer.resize(pages as usize * page_size, 0);
                reached!(StatesTogether);
                buffer.extend_from_slice(&bytes);
                allocations.push(allocation);
            }
            _ => together.push((vec![allocation], bytes)),
        }
    }
    together
}
