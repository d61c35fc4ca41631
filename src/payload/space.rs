//! Space of payloads: the blocks that hold their bytes, and how much of each block is live.
//!
//! A block is an allocation of the data file. Payloads are appended to the newest block, and long ones take further
//! blocks. A block whose payloads are all gone is retired. If more than half of it is gone, the writer moves the rest.

use std::{collections::BTreeMap, sync::Arc};

use crate::{
    format::bucket::{PayloadOwner, PayloadRun},
    lease::Allocation,
    tuning,
};

/// Use of one block.
#[derive(Clone, Debug)]
pub struct BlockUse {
    /// Allocation of the block.
    pub allocation: Arc<Allocation>,
    /// Bytes from the start of the block that are used, those of removed payloads included.
    pub used: u32,
    /// Bytes of live payloads.
    pub live: u64,
    /// Owners whose bytes were stored here. Some may have other bytes now.
    pub owners: Vec<PayloadOwner>,
}

/// Blocks of the working state, by their first page.
#[derive(Clone, Debug, Default)]
pub struct PayloadSpace {
    blocks: BTreeMap<u64, BlockUse>,
    /// Block to which the next payload is appended.
    open: Option<u64>,
}

impl PayloadSpace {
    /// Returns the block to append to, with the offset of its first free byte. `None` if there is none with room.
    #[must_use]
    pub fn open_block(&self, page_size: usize) -> Option<(&Arc<Allocation>, u32)> {
        let block = self.blocks.get(&self.open?)?;
        let room = block.allocation.run().pages as usize * page_size;
        ((block.used as usize) < room).then_some((&block.allocation, block.used))
    }

    /// Records that bytes of an owner lie in a block. The last block of which this is said is the one to append to.
    pub fn add(&mut self, allocation: &Arc<Allocation>, at: PayloadRun, owner: PayloadOwner) {
        let block = self.blocks.entry(at.page).or_insert_with(|| BlockUse {
            allocation: Arc::clone(allocation),
            used: 0,
            live: 0,
            owners: Vec::new(),
        });
        block.used = block.used.max(at.offset + at.len);
        block.live += u64::from(at.len);
        if block.owners.last() != Some(&owner) {
            block.owners.push(owner);
        }
        self.open = Some(at.page);
    }

    /// Ends appending: the next payload gets a new block. So an open stores nothing into a block that it has found.
    pub fn close(&mut self) {
        self.open = None;
    }

    /// Records that the bytes of a run are no longer needed. Returns the allocation to retire if that were the last
    /// ones of the block.
    ///
    /// # Panics
    /// Panics if the block is unknown, which is a mistake of the caller.
    pub fn remove(&mut self, run: PayloadRun) -> Option<Arc<Allocation>> {
        let Some(block) = self.blocks.get_mut(&run.page) else { unreachable!("a run lies in a block") };
        block.live -= u64::from(run.len);
        if block.live > 0 {
            return None;
        }
        if self.open == Some(run.page) {
            self.open = None;
        }
        self.blocks.remove(&run.page).map(|block| block.allocation)
    }

    /// Iterates all blocks with their first pages.
    pub fn blocks(&self) -> impl Iterator<Item = (u64, &BlockUse)> {
        self.blocks.iter().map(|(&page, block)| (page, block))
    }

    /// Returns a block.
    #[must_use]
    pub fn block(&self, page: u64) -> Option<&BlockUse> {
        self.blocks.get(&page)
    }

    /// Reports whether so little of a block is live, once `freed` bytes of it are gone, that the rest is moved.
    #[must_use]
    pub fn is_sparse_without(&self, page: u64, freed: u64) -> bool {
        let is_sparse =
            |block: &BlockUse| (1..u64::from(block.used / tuning::SPARSE_SHARE)).contains(&(block.live - freed));
        self.blocks.get(&page).is_some_and(is_sparse)
    }

    /// Iterates the allocations of all blocks.
    pub fn allocations(&self) -> impl Iterator<Item = &Arc<Allocation>> {
        self.blocks.values().map(|block| &block.allocation)
    }

    /// Returns the heap memory in bytes.
    #[must_use]
    pub fn memory(&self) -> usize {
        let owners = self.blocks.values().map(|block| block.owners.len() * size_of::<PayloadOwner>());
        self.blocks.len() * size_of::<(u64, BlockUse)>() + owners.sum::<usize>()
    }
}
