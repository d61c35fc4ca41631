//! The directory in memory: where each shard's state and each node lies, and what a flush changes about that.

use std::collections::BTreeMap;

use crate::{
    error::{Result, ShardexError},
    format::{
        crc32c,
        geometry::Geometry,
        node::{self, Entry},
        root::Root,
        state::ShardState,
    },
    lease::Run,
    shard::DataFile,
    site::{self, Kind},
    storage::StorageFile,
};

/// All entries: level 0 points to shard states, level `i` to the nodes of level `i - 1` entries, the last has one entry, the
/// one in the root.
#[derive(Clone, Debug, Default)]
pub struct Directory {
    levels: Vec<Vec<Entry>>,
}

/// Entries that a flush will change: (level, index) → entry.
pub type Changes = BTreeMap<(usize, usize), Entry>;

/// A run that an entry points to.
#[must_use]
pub fn run_of(entry: &Entry, geometry: &Geometry) -> Run {
    Run { page: entry.page, pages: geometry.pages(entry.len as usize) }
}

impl Directory {
    /// Reads all nodes below a root, by copying. An index without shards has none.
    ///
    /// # Errors
    /// `Corruption` naming the node; `Io`.
    pub fn load<F: StorageFile>(root: &Root, data: &DataFile<F>) -> Result<Self> {
        if root.directory.is_none() {
            return Ok(Self::default());
        }
        let depth = root.geometry.node_levels(root.shard_numbers as usize) as usize;
        let mut levels = vec![vec![root.directory]];
        for level in (0..depth as u32).rev() {
            let mut below = Vec::new();
            for entry in levels.last().into_iter().flatten() {
                if entry.is_none() {
                    below.resize(below.len() + root.geometry.node_fanout(), Entry::default());
                    continue;
                }
                if entry.len as usize != root.geometry.page_size {
                    return Err(damaged(entry, data, &format!("a directory node of {} bytes", entry.len)));
                }
                let bytes = read(entry, data, "a directory node")?;
                below.extend(node::decode(&bytes).map_err(|e| damaged(entry, data, &e.to_string()))?);
            }
            // No more than the shards below need: the last node of a level is seldom full.
            let reach = root.geometry.node_fanout().saturating_pow(level);
            below.truncate((root.shard_numbers as usize).div_ceil(reach));
            levels.push(below);
        }
        levels.reverse();
        Ok(Self { levels })
    }

    /// The entry of a shard's state; one that points to nothing if there is no shard.
    #[must_use]
    pub fn state(&self, number: usize) -> Entry {
        self.entry(0, number)
    }

    /// Shard numbers covered.
    #[must_use]
    pub fn len(&self) -> usize {
        self.levels.first().map_or(0, Vec::len)
    }

    /// All entries that point to something, nodes and states.
    pub fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.levels.iter().flatten().filter(|entry| !entry.is_none())
    }

    /// The top node.
    #[must_use]
    pub fn top(&self) -> Entry {
        self.levels.last().and_then(|level| level.first()).copied().unwrap_or_default()
    }

    fn entry(&self, level: usize, i: usize) -> Entry {
        self.levels.get(level).and_then(|level| level.get(i)).copied().unwrap_or_default()
    }

    /// Completes changed state entries with the nodes above them. `store` finds a place for a node's bytes.
    ///
    /// Cost: a node per level and changed neighbourhood, whatever the number of shards.
    ///
    /// # Errors
    /// What `store` returns.
    pub fn nodes_above(
        &self,
        mut changes: Changes,
        shard_numbers: usize,
        geometry: &Geometry,
        mut store: impl FnMut(Vec<u8>) -> Result<Entry>,
    ) -> Result<Changes> {
        let fanout = geometry.node_fanout();
        for level in 0..geometry.node_levels(shard_numbers) as usize {
            let mut parents: Vec<usize> =
                changes.range((level, 0)..=(level, usize::MAX)).map(|(&(_, i), _)| i / fanout).collect();
            if self.levels.len() == level + 1 && level > 0 {
                // The tree gets a level more, and its old top node a parent.
                parents.push(0);
            }
            parents.sort_unstable();
            parents.dedup();
            for parent in parents {
                let entries: Vec<Entry> = (parent * fanout..(parent + 1) * fanout)
                    .map(|i| changes.get(&(level, i)).copied().unwrap_or_else(|| self.entry(level, i)))
                    .collect();
                let entry = store(node::encode(&entries, geometry.page_size))?;
                changes.insert((level + 1, parent), entry);
            }
        }
        Ok(changes)
    }

    /// The top node after `changes`.
    #[must_use]
    pub fn top_after(&self, changes: &Changes) -> Entry {
        changes.last_key_value().map_or_else(|| self.top(), |(_, &entry)| entry)
    }

    /// The entries that `changes` replace.
    pub fn superseded<'a>(&'a self, changes: &'a Changes) -> impl Iterator<Item = Entry> + 'a {
        changes.keys().map(|&(level, i)| self.entry(level, i)).filter(|entry| !entry.is_none())
    }

    /// Makes the changes.
    pub fn apply(&mut self, changes: Changes) {
        for ((level, i), entry) in changes {
            if self.levels.len() <= level {
                self.levels.resize(level + 1, Vec::new());
            }
            let entries = &mut self.levels[level];
            if entries.len() <= i {
                entries.resize(i + 1, Entry::default());
            }
            entries[i] = entry;
        }
    }
}

/// Reads what an entry points to and checks it against the entry.
///
/// # Errors
/// `Corruption`, `Io`.
#[cfg_attr(feature = "mutants", track_caller)]
pub fn read<F: StorageFile>(entry: &Entry, data: &DataFile<F>, what: &str) -> Result<Vec<u8>> {
    let offset = entry.page.saturating_mul(data.geometry().page_size as u64);
    let chunk_bytes = data.geometry().chunk_pages() as usize * data.geometry().page_size;
    if entry.len as usize > chunk_bytes || offset.saturating_add(u64::from(entry.len)) > data.raw().len()? {
        return Err(damaged(entry, data, &format!("{what} of {} bytes does not fit there", entry.len)));
    }
    let mut bytes = vec![0; entry.len as usize];
    data.raw().read_at(offset, &mut bytes)?;
    let found = crc32c(0, &bytes);
    if !site::holds(Kind::Checksum, found == entry.crc) {
        return Err(damaged(entry, data, &format!("{what}: checksum {:08x} expected, {found:08x} found", entry.crc)));
    }
    Ok(bytes)
}

/// Reads a shard's state.
///
/// # Errors
/// `Corruption`, `Io`.
pub fn read_state<F: StorageFile>(entry: &Entry, number: u32, data: &DataFile<F>) -> Result<ShardState> {
    let bytes = read(entry, data, "a shard's state")?;
    ShardState::decode(&bytes, data.geometry(), number)
        .map_err(|e| damaged(entry, data, &format!("the state of shard {number}: {e}")))
}

fn damaged<F: StorageFile>(entry: &Entry, data: &DataFile<F>, what: &str) -> ShardexError {
    ShardexError::Corruption {
        file: data.path(),
        offset: entry.page.saturating_mul(data.geometry().page_size as u64),
        what: what.to_owned(),
    }
}
