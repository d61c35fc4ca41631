//! The directory in memory: the location of every shard state and node, and the changes that a flush makes to it.

use std::collections::BTreeMap;

use crate::{
    error::{Result, ShardexError},
    failpoint::holds,
    format::{
        block::{self, BlockKind, BlockNumbers, BlockOrigin},
        crc32c,
        geometry::IndexParams,
        node::{self, BlockPointer},
        root::Root,
        state::{CentroidState, ShardState, unfit_centroid},
    },
    lease::PageRange,
    shard::{self, DataFile},
    storage::StorageFile,
};

/// Directory of the shards or of the buckets below a root.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DirectoryKind {
    /// Its entries point to shard states.
    Shards,
    /// Its entries point to the first parts of buckets.
    Buckets,
}

impl DirectoryKind {
    /// Returns the name of a node: the one with `index` in the level whose entries are at `level`.
    #[must_use]
    pub fn node(self, level: usize, index: usize) -> BlockNumbers {
        let kind = match self {
            Self::Shards => BlockKind::ShardNode,
            Self::Buckets => BlockKind::BucketNode,
        };
        BlockNumbers { kind, number: index as u32, part: level as u32 }
    }
}

/// Returns the name of a shard state.
#[must_use]
pub fn state_name(number: u32) -> BlockNumbers {
    BlockNumbers { kind: BlockKind::State, number, part: 0 }
}

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
    pub fn load<F: StorageFile>(root: &Root, tree: DirectoryKind, data: &DataFile<F>) -> Result<Self> {
        let (top, len) = match tree {
            DirectoryKind::Shards => (root.directory, root.shard_numbers),
            DirectoryKind::Buckets => (root.payload.directory, root.payload.entries),
        };
        if top.is_none() {
            return Ok(Self::default());
        }
        let (geometry, version) = (&root.geometry, root.version);
        let fanout = geometry.node_fanout(version);
        let depth = geometry.node_levels(len as usize, version) as usize;
        let mut levels = vec![vec![top]];
        for level in (0..depth as u32).rev() {
            let mut below = Vec::new();
            for (index, entry) in levels.last().into_iter().flatten().enumerate() {
                if entry.is_none() {
                    below.resize(below.len() + fanout, BlockPointer::default());
                    continue;
                }
                if entry.len as usize != geometry.page_size {
                    return Err(damaged(entry, data, &format!("a directory node of {} bytes", entry.len)));
                }
                let bytes = read_block(entry, tree.node(level as usize, index), root, data)?;
                below.extend(node::decode(&bytes, version).map_err(|e| damaged(entry, data, &e.to_string()))?);
            }
            // The last node of a level is seldom full, so the level is cut to the entries that are needed.
            let reach = fanout.saturating_pow(level);
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

    /// Returns the entries of the lowest level as changes, so that all nodes above them are stored anew. A root of another
    /// format version may have nodes of another size.
    #[must_use]
    pub fn all_entries(&self) -> DirectoryChanges {
        self.levels.first().into_iter().flatten().enumerate().map(|(i, &entry)| ((0, i), entry)).collect()
    }

    /// Adds the nodes above changed entries of the lowest level to `changes`. The tree gets `len` entries there. `store`
    /// allocates space for a node of a level and index, and returns its entry.
    ///
    /// Cost: per level, one node for each run of `fanout` entries in which an entry changed, whatever the number of
    /// entries.
    ///
    /// # Errors
    /// Returns the errors of `store`.
    pub fn nodes_above(
        &self,
        mut changes: DirectoryChanges,
        len: usize,
        fanout: usize,
        mut store: impl FnMut(usize, usize, &[BlockPointer]) -> Result<BlockPointer>,
    ) -> Result<DirectoryChanges> {
        let mut reach = 1;
        for level in 0.. {
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
                changes.insert((level + 1, parent), store(level, parent, &entries)?);
            }
            reach = fanout.saturating_mul(reach);
            if reach >= len {
                break;
            }
        }
        Ok(changes)
    }

    /// Returns the entry of the top node after `changes`.
    #[must_use]
    pub fn top_after(&self, changes: &DirectoryChanges) -> BlockPointer {
        changes.last_key_value().map_or_else(|| self.top(), |(_, &entry)| entry)
    }

    /// Returns the entries that `changes` replaces by others.
    pub fn superseded<'a>(&'a self, changes: &'a DirectoryChanges) -> impl Iterator<Item = BlockPointer> + 'a {
        let before = changes.iter().map(|(&(level, i), after)| (self.entry(level, i), after));
        before.filter(|(before, after)| !before.is_none() && before != *after).map(|(before, _)| before)
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
    let bytes = read_unchecked(entry, data, what)?;
    let found = crc32c(0, &bytes);
    if !holds!(Checksum, found == entry.crc) {
        return Err(damaged(entry, data, &format!("{what}: checksum {:08x} expected, {found:08x} found", entry.crc)));
    }
    Ok(bytes)
}

/// Reads a block that may have a header, and checks its length, checksum and header.
///
/// # Errors
/// Returns `Corruption` or `Io`.
#[cfg_attr(feature = "mutants", track_caller)]
pub fn read_block<F: StorageFile>(
    entry: &BlockPointer,
    name: BlockNumbers,
    root: &Root,
    data: &DataFile<F>,
) -> Result<Vec<u8>> {
    let what = match name.kind {
        BlockKind::ShardNode | BlockKind::BucketNode => "a directory node",
        BlockKind::State => "a shard's state",
        BlockKind::Bucket => "a bucket of payloads",
    };
    let bytes = read_unchecked(entry, data, what)?;
    // Nodes have no magic before version 3, and states and buckets may be older than their root.
    let is_node = matches!(name.kind, BlockKind::ShardNode | BlockKind::BucketNode);
    let has_header = root.version > 2 && (is_node || block::has_header(&bytes, name.kind));
    let found = if has_header { block::checksum(&bytes) } else { crc32c(0, &bytes) };
    if !holds!(Checksum, found == entry.crc) {
        return Err(damaged(entry, data, &format!("{what}: checksum {:08x} expected, {found:08x} found", entry.crc)));
    }
    if has_header {
        let latest = BlockOrigin { index_id: root.index_id, generation: root.generation, page: entry.page };
        let checked = block::check(&bytes, entry.crc, name, latest, &root.geometry);
        checked.map_err(|e| damaged(entry, data, &format!("{what}: {e}")))?;
    }
    Ok(bytes)
}

/// Reads the bytes that an entry points to, and checks their length alone.
fn read_unchecked<F: StorageFile>(entry: &BlockPointer, data: &DataFile<F>, what: &str) -> Result<Vec<u8>> {
    let offset = entry.page.saturating_mul(data.geometry().page_size as u64);
    let chunk_bytes = data.geometry().chunk_pages() as usize * data.geometry().page_size;
    if entry.len as usize > chunk_bytes || offset.saturating_add(u64::from(entry.len)) > data.raw().len()? {
        return Err(damaged(entry, data, &format!("{what} of {} bytes does not fit there", entry.len)));
    }
    let mut bytes = vec![0; entry.len as usize];
    data.raw().read_at(offset, &mut bytes)?;
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
pub fn read_state<F: StorageFile>(
    entry: &BlockPointer,
    number: u32,
    root: &Root,
    data: &DataFile<F>,
) -> Result<ShardState> {
    let bytes = read_block(entry, state_name(number), root, data)?;
    let unfit = |what: &str| damaged(entry, data, &format!("the state of shard {number}: {what}"));
    let state = ShardState::decode(&bytes, data.geometry(), number).map_err(|e| unfit(&e.to_string()))?;
    if let CentroidState::One(vector) = &state.means {
        if !shard::is_encoded(vector, data.geometry()) {
            return Err(unfit("its vector is none"));
        }
        if let Some(what) = unfit_centroid(&shard::decode(vector, data.geometry())) {
            return Err(unfit(&what));
        }
    }
    Ok(state)
}

fn damaged<F: StorageFile>(entry: &BlockPointer, data: &DataFile<F>, what: &str) -> ShardexError {
    ShardexError::Corruption {
        file: data.path(),
        offset: entry.page.saturating_mul(data.geometry().page_size as u64),
        what: what.to_owned(),
    }
}
