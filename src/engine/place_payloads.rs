//! Payloads and cursor of a batch: stores their bytes in blocks, and moves what is left of sparse blocks.

use std::{borrow::Cow, collections::BTreeSet, sync::Arc};

use super::{
    apply::Apply,
    payload_changes::{PayloadChanges, StoredRun},
    plan::Plan,
};
use crate::{
    error::Result,
    failpoint::reached,
    format::{
        bucket::{INLINE_BYTES, PayloadOwner, PayloadRun},
        crc32c,
    },
    lease::{Allocation, PageRange},
    payload::StoredPayload,
    storage::StorageFile,
    tuning,
};

/// Bytes to store in one block.
struct BlockBytes {
    block: Arc<Allocation>,
    at: u32,
    bytes: Vec<u8>,
}

impl BlockBytes {
    /// Appends as much of `bytes` as fits, and returns its run; `None` if the block is full.
    fn append(&mut self, bytes: &[u8], page_size: usize) -> Option<PayloadRun> {
        let PageRange { page, pages } = self.block.run();
        let offset = self.at as usize + self.bytes.len();
        let part = &bytes[..(pages as usize * page_size - offset).min(bytes.len())];
        self.bytes.extend_from_slice(part);
        let run = PayloadRun { page, pages, offset: offset as u32, len: part.len() as u32 };
        (!part.is_empty()).then_some(run)
    }
}

/// Byte string and its owner.
type Given<'a> = (PayloadOwner, Cow<'a, [u8]>);

/// Bytes of an owner, and the indexes and ranges of the blocks that hold them.
struct Placed {
    owner: PayloadOwner,
    crc: u32,
    parts: Vec<(usize, PayloadRun)>,
}

impl<F: StorageFile> Apply<'_, F> {
    /// Sets and removes the payloads of a plan, and sets the cursor.
    pub(super) fn set_payloads(&mut self, plan: &Plan<'_>) -> Result<()> {
        if plan.payloads.is_empty() && plan.cursor.is_none() {
            return Ok(());
        }
        let mut changes = PayloadChanges::new(self.work, self.context.data.geometry().page_size);
        let payloads = plan.payloads.iter().map(|(&document, &bytes)| (PayloadOwner::Document(document), bytes));
        let cursor = plan.cursor.map(|cursor| (PayloadOwner::Cursor, Some(cursor)));
        let mut stored = Vec::new();
        for (owner, bytes) in payloads.chain(cursor) {
            match bytes {
                Some(bytes) => stored.push((owner, Cow::Borrowed(bytes))),
                None => changes.put(owner, None),
            }
        }
        let blocks = self.blocks_for(&stored, &changes)?;
        for payload in self.place(stored, blocks, &mut changes)? {
            changes.put(payload.owner(), Some(payload));
        }
        self.move_sparse(&mut changes)?;
        self.payloads = Some(changes);
        Ok(())
    }

    /// Moves the payloads of blocks that are mostly unused. A move stores at most as many bytes as were freed.
    ///
    /// A payload stays where it is if it is longer than a block, if it is damaged, so that the damage is not copied
    /// under a valid checksum, or if there is no space.
    fn move_sparse(&mut self, changes: &mut PayloadChanges<F>) -> Result<()> {
        let data = Arc::clone(&self.context.data);
        let block_bytes = tuning::BLOCK_PAGES as usize * data.geometry().page_size;
        let mut moved: Vec<Given<'_>> = Vec::new();
        let mut owners = BTreeSet::new();
        for page in changes.sparse_blocks(&self.work.payload_space) {
            let Some(block) = self.work.payload_space.block(page) else { continue };
            for &owner in &block.owners {
                let Some(payload) = changes.index.find(owner) else { continue };
                let lies_here = payload.runs().any(|run| run.page == page);
                if !lies_here || payload.len() as usize > block_bytes || !owners.insert(owner) {
                    continue;
                }
                if let Ok(payload) = payload.read(&data) {
                    moved.push((owner, Cow::Owned(payload.to_vec())));
                }
            }
        }
        if moved.is_empty() {
            return Ok(());
        }
        let blocks = match self.blocks_for(&moved, changes) {
            // Without space for new blocks nothing is moved. An error of a store, below, is never ignored.
            Err(error) if error.is_out_of_space() => return Ok(()),
            blocks => blocks?,
        };
        reached!(PayloadsMoved);
        for payload in self.place(moved, blocks, changes)? {
            changes.put(payload.owner(), Some(payload));
        }
        Ok(())
    }

    /// Moves the payloads of owners to new blocks, whatever their length.
    ///
    /// # Errors
    /// Returns `OutOfSpace`, `Io`, or `Corruption` if a payload is damaged.
    pub(super) fn move_payloads(&mut self, owners: &BTreeSet<PayloadOwner>) -> Result<()> {
        let data = Arc::clone(&self.context.data);
        let mut changes = PayloadChanges::new(self.work, data.geometry().page_size);
        changes.open = None;
        let mut moved: Vec<Given<'_>> = Vec::new();
        for payload in owners.iter().filter_map(|&owner| changes.index.find(owner)) {
            moved.push((payload.owner(), Cow::Owned(payload.read(&data)?.to_vec())));
        }
        let blocks = self.blocks_for(&moved, &changes)?;
        for payload in self.place(moved, blocks, &mut changes)? {
            changes.put(payload.owner(), Some(payload));
        }
        self.payloads = Some(changes);
        Ok(())
    }

    /// Returns the blocks that these byte strings fill, in order: the one to append to, then new ones.
    fn blocks_for(&mut self, payloads: &[Given<'_>], changes: &PayloadChanges<F>) -> Result<Vec<BlockBytes>> {
        let page_size = self.context.data.geometry().page_size;
        let most = tuning::BLOCK_PAGES.min(self.context.data.geometry().chunk_pages()) as usize;
        let long = payloads.iter().map(|(_, bytes)| bytes.len()).filter(|&len| len > INLINE_BYTES);
        let (mut left, first): (usize, usize) = (long.sum(), self.taken.len());
        let mut blocks: Vec<BlockBytes> = Vec::new();
        if let Some((block, at)) = &changes.open {
            left = left.saturating_sub(block.run().pages as usize * page_size - *at as usize);
            blocks.push(BlockBytes { block: Arc::clone(block), at: *at, bytes: Vec::new() });
        }
        while left > 0 {
            let pages = left.div_ceil(page_size).min(most);
            let block = match self.work.take_meta(&self.context.data, pages as u32) {
                Ok(block) => block,
                Err(error) => {
                    // The batch may go on without these blocks.
                    drop(blocks);
                    self.taken.split_off(first).into_iter().for_each(|block| self.work.space.undo(block));
                    return Err(error);
                }
            };
            self.taken.push(Arc::clone(&block));
            blocks.push(BlockBytes { block, at: 0, bytes: Vec::new() });
            left = left.saturating_sub(pages * page_size);
        }
        Ok(blocks)
    }

    /// Stores byte strings in the blocks made for them, and returns their entries. Short ones are in the entries
    /// themselves.
    fn place(
        &mut self,
        payloads: Vec<Given<'_>>,
        mut blocks: Vec<BlockBytes>,
        changes: &mut PayloadChanges<F>,
    ) -> Result<Vec<StoredPayload<F::Lent>>> {
        let data = Arc::clone(&self.context.data);
        let page_size = data.geometry().page_size;
        let (inline, long): (Vec<_>, Vec<_>) = payloads.into_iter().partition(|(_, bytes)| bytes.len() <= INLINE_BYTES);
        let mut entries: Vec<_> =
            inline.into_iter().map(|(owner, bytes)| StoredPayload::inline(owner, &bytes)).collect();
        let (mut placed, mut current) = (Vec::new(), 0);
        for (owner, bytes) in &long {
            let mut parts = Vec::new();
            let mut rest: &[u8] = bytes;
            while !rest.is_empty() {
                let Some(run) = blocks[current].append(rest, page_size) else {
                    current += 1;
                    continue;
                };
                rest = &rest[run.len as usize..];
                parts.push((current, run));
            }
            placed.push(Placed { owner: *owner, crc: crc32c(0, bytes), parts });
        }
        for block in blocks.iter().filter(|block| !block.bytes.is_empty()) {
            data.store_payloads(&block.block, block.at as usize, &block.bytes)?;
        }
        let leases = blocks
            .iter()
            .map(|block| data.lease(&block.block, block.at as usize + block.bytes.len()))
            .collect::<Result<Vec<_>>>()?;
        for Placed { owner, crc, parts } in placed {
            let part = |&(i, at): &(usize, PayloadRun)| StoredRun { block: Arc::clone(&blocks[i].block), at, owner };
            changes.stored.extend(parts.iter().map(part));
            if parts.len() > 1 {
                reached!(PayloadInRuns);
            }
            let runs = parts.iter().map(|(i, part)| (leases[*i].clone(), part.offset, part.len));
            entries.push(StoredPayload::in_runs(owner, crc, runs));
        }
        changes.open = blocks.pop().map(|last| (last.block, last.at + last.bytes.len() as u32));
        changes.open.take_if(|(block, at)| *at as usize == block.run().pages as usize * page_size);
        Ok(entries)
    }
}
