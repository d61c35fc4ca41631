//! The directory in memory: the location of every shard state and node, and the changes that a flush makes to it.

use std::collections::BTreeMap;

use crate::{
    error::{Result, ShardexError},
    failpoint::holds,
    format::{
        crc32c,
        geometry::IndexParams,
        node::{self, BlockPointer},
        root::Root,
        state::ShardState,
    },
    lease::PageRange,
    shard::DataFile,
    storage::StorageFile,
};

/// Block pointers of a directory, by level. Level 0 points to shard states, or to buckets of payloads. Level `i` points to the nodes that hold
/// the entries of level `i - 1`. The last level has one entry, the one in the root.
#[derive(Clone, Debug, Default)]
pub struct Directory {
    levels: Vec<Vec<BlockPointer>>,
}

/// Entries that a flush changes: (level, index) → new entry.
pub type DirectoryChanges = BTreeMap<(usize, usize), BlockPointer>;

/// Returns the page range that an entry points to.
#[must_use]
pub fn run_of(entry: &BlockPointer, geometry: &IndexParams) -> PageRange {
    PageRange { page: entry.page, pages: geometry.pages(entry.len as usize) }
}

impl Directory {
    /// Reads all nodes below a root, by copying. The directory of an index without shards is empty.
    ///
    /// # Errors
    /// Returns `Corruption` that names the damaged node, or `Io`.
    pub fn load<F: StorageFile>(root: &Root, data: &DataFile<F>) -> Result<Self> {
        Self::load_tree(root.directory, root.shard_numbers, &root.geometry, data)
    }

    /// Reads all nodes of a tree with `len` entries at its lowest level.
    ///
    /// # Errors
    /// As [`load`](Self::load).
    pub fn load_tree<F: StorageFile>(
        top: BlockPointer,
        len: u32,
        geometry: &IndexParams,
        data: &DataFile<F>,
    ) -> Result<Self> {
        if top.is_none() {
            return Ok(Self::default());
        }
        let depth = geometry.node_levels(len as usize) as usize;
        let mut levels = vec![vec![top]];
        for level in (0..depth as u32).rev() {
            let mut below = Vec::new();
            for entry in levels.last().into_iter().flatten() {
                if entry.is_none() {
                    below.resize(below.len() + geometry.node_fanout(), BlockPointer::default());
                    continue;
                }
                if entry.len as usize != geometry.page_size {
                    return Err(damaged(entry, data, &format!("a directory node of {} bytes", entry.len)));
                }
                let bytes = read(entry, data, "a directory node")?;
                below.extend(node::decode(&bytes).map_err(|e| damaged(entry, data, &e.to_string()))?);
            }
            // The last node of a level is seldom full, so the level is cut to the entries that are needed.
            let reach = geometry.node_fanout().saturating_pow(level);
            below.truncate((len as usize).div_ceil(reach));
            levels.push(below);
        }
        levels.reverse();
        Ok(Self { levels })
    }

    /// Returns the entry of a shard's state. It points to nothing if the shard doesn't exist.
    #[must_use]
    pub fn state(&self, number: usize) -> BlockPointer {
        self.entry(0, number)
    }

    /// Returns the number of shard numbers that the directory covers.
    #[must_use]
    pub fn len(&self) -> usize {
        self.levels.first().map_or(0, Vec::len)
    }

    /// Returns all entries that point to something: nodes and shard states.
    pub fn entries(&self) -> impl Iterator<Item = &BlockPointer> {
        self.levels.iter().flatten().filter(|entry| !entry.is_none())
    }

    /// Returns the entry of the top node, which the root holds.
    #[must_use]
    pub fn top(&self) -> BlockPointer {
        self.levels.last().and_then(|level| level.first()).copied().unwrap_or_default()
    }

    fn entry(&self, level: usize, i: usize) -> BlockPointer {
        self.levels.get(level).and_then(|level| level.get(i)).copied().unwrap_or_default()
    }

    /// Adds the nodes above changed state entries to `changes`. `store` allocates space for a node's bytes and returns
    /// its entry.
    ///
    /// Cost: per level, one node for each run of `node_fanout` entries in which an entry changed, whatever the number
    /// of shards.
    ///
    /// # Errors
    /// Returns the errors of `store`.
    pub fn nodes_above(
        &self,
        mut changes: DirectoryChanges,
        shard_numbers: usize,
        geometry: &IndexParams,
        mut store: impl FnMut(Vec<u8>) -> Result<BlockPointer>,
    ) -> Result<DirectoryChanges> {
        let fanout = geometry.node_fanout();
        for level in 0..geometry.node_levels(shard_numbers) as usize {
            let mut parents: Vec<usize> =
                changes.range((level, 0)..=(level, usize::MAX)).map(|(&(_, i), _)| i / fanout).collect();
            if self.levels.len() == level + 1 && level > 0 {
                // The tree grows by a level, and the old top node needs a parent.
                parents.push(0);
            }
            parents.sort_unstable();
            parents.dedup();
            for parent in parents {
                let entries: Vec<BlockPointer> = (parent * fanout..(parent + 1) * fanout)
                    .map(|i| changes.get(&(level, i)).copied().unwrap_or_else(|| self.entry(level, i)))
                    .collect();
                let entry = store(node::encode(&entries, geometry.page_size))?;
                changes.insert((level + 1, parent), entry);
            }
        }
        Ok(changes)
    }

    /// Returns the entry of the top node after `changes`.
    #[must_use]
    pub fn top_after(&self, changes: &DirectoryChanges) -> BlockPointer {
        changes.last_key_value().map_or_else(|| self.top(), |(_, &entry)| entry)
    }

    /// Returns the entries that `changes` replaces.
    pub fn superseded<'a>(&'a self, changes: &'a DirectoryChanges) -> impl Iterator<Item = BlockPointer> + 'a {
        changes.keys().map(|&(level, i)| self.entry(level, i)).filter(|entry| !entry.is_none())
    }

    /// Applies the changes of a flush.
    pub fn apply(&mut self, changes: DirectoryChanges) {
        for ((level, i), entry) in changes {
            if self.levels.len() <= level {
                self.levels.resize(level + 1, Vec::new());
            }
            let entries = &mut self.levels[level];
            if entries.len() <= i {
                entries.resize(i + 1, BlockPointer::default());
            }
            entries[i] = entry;
        }
    }
}

/// Returns the error for a page of the data file.
pub fn in_data<F: StorageFile>(data: &DataFile<F>, page: u64, what: String) -> ShardexError {
    let offset = page.saturating_mul(data.geometry().page_size as u64);
    ShardexError::Corruption { file: data.path(), offset, what }
}

/// Returns the identity of a block pointer: page, length and checksum.
pub fn identity(entry: &BlockPointer) -> (u64, u32, u32) {
    (entry.page, entry.len, entry.crc)
}

/// Reads the bytes that an entry points to, and checks their length and checksum.
///
/// # Errors
/// Returns `Corruption` or `Io`.
#[cfg_attr(feature = "mutants", track_caller)]
pub fn read<F: StorageFile>(entry: &BlockPointer, data: &DataFile<F>, what: &str) -> Result<Vec<u8>> {
    let offset = entry.page.saturating_mul(data.geometry().page_size as u64);
    let chunk_bytes = data.geometry().chunk_pages() as usize * data.geometry().page_size;
    if entry.len as usize > chunk_bytes || offset.saturating_add(u64::from(entry.len)) > data.raw().len()? {
        return Err(damaged(entry, data, &format!("{what} of {} bytes does not fit there", entry.len)));
    }
    let mut bytes = vec![0; entry.len as usize];
    data.raw().read_at(offset, &mut bytes)?;
    let found = crc32c(0, &bytes);
    if !holds!(Checksum, found == entry.crc) {
        return Err(damaged(entry, data, &format!("{what}: checksum {:08x} expected, {found:08x} found", entry.crc)));
    }
    Ok(bytes)
}

/// Reads a page of tags.
///
/// # Errors
/// Returns `Corruption` or `Io`.
pub fn read_tags<F: StorageFile>(entry: &BlockPointer, data: &DataFile<F>) -> Result<Vec<u8>> {
    read(entry, data, "a page of tags")
}

/// Reads the state of shard `number`.
///
/// # Errors
/// Returns `Corruption` or `Io`.
pub fn read_state<F: StorageFile>(entry: &BlockPointer, number: u32, data: &DataFile<F>) -> Result<ShardState> {
    let bytes = read(entry, data, "a shard's state")?;
    ShardState::decode(&bytes, data.geometry(), number)
        .map_err(|e| damaged(entry, data, &format!("the state of shard {number}: {e}")))
}

fn damaged<F: StorageFile>(entry: &BlockPointer, data: &DataFile<F>, what: &str) -> ShardexError {
    ShardexError::Corruption {
        file: data.path(),
        offset: entry.page.saturating_mul(data.geometry().page_size as u64),
        what: what.to_owned(),
    }
}
