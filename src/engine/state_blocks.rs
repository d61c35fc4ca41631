//! Blocks that shard states and buckets name: pages of tags, and the parts of a bucket after its first.
//!
//! They live as the states do: a flush stores the changed ones in new allocations, and the ones before them are free once
//! no retained root reaches them.

use std::collections::BTreeMap;

use crate::{format::node::BlockPointer, shard::TagPage};

/// Stored page of tags. The words show whether a later state may name the same page.
#[derive(Clone, Debug)]
pub(super) struct StoredTags {
    pub(super) words: TagPage,
    pub(super) at: BlockPointer,
}

/// Blocks that the newest root reaches.
#[derive(Clone, Debug, Default)]
pub(super) struct StateBlocks {
    /// Pages of tags by shard number and page in the shard.
    pub(super) tags: BTreeMap<(u32, u32), StoredTags>,
    /// Parts by bucket number and part. Part 0 is named by the directory.
    pub(super) parts: BTreeMap<(u32, u32), BlockPointer>,
}

/// Blocks that a flush stores or no longer needs. `None` means that there is none any more.
#[derive(Clone, Debug, Default)]
pub(super) struct BlockChanges {
    pub(super) tags: BTreeMap<(u32, u32), Option<StoredTags>>,
    pub(super) parts: BTreeMap<(u32, u32), Option<BlockPointer>>,
}

impl StateBlocks {
    /// Applies the changes of a flush, and returns the blocks that they supersede.
    pub(super) fn apply(&mut self, changes: BlockChanges) -> Vec<BlockPointer> {
        let mut superseded = Vec::new();
        for (at, tags) in changes.tags {
            let before = match tags {
                Some(tags) => self.tags.insert(at, tags),
                None => self.tags.remove(&at),
            };
            superseded.extend(before.map(|before| before.at));
        }
        for (at, part) in changes.parts {
            superseded.extend(match part {
                Some(part) => self.parts.insert(at, part),
                None => self.parts.remove(&at),
            });
        }
        superseded
    }

    /// Iterates all blocks.
    pub(super) fn iter(&self) -> impl Iterator<Item = &BlockPointer> {
        self.tags.values().map(|tags| &tags.at).chain(self.parts.values())
    }
}
