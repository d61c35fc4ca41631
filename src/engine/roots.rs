//! The root file: two slots, each on its own page. At least one slot always holds a durable root.
//!
//! Invariants:
//! 1. A new root goes into the slot that does not hold the newest durable root. Only [`restore`](Roots::restore) (B4)
//!    also stores into the newest root's slot: the root that was read from it.
//! 2. `newest` and `older` are durable. No page that either names is free.

use super::{
    names,
    purposes::{CLEAR, MAKE},
};
use crate::{
    error::{Result, ShardexError},
    failpoint::{holds, reached},
    format::{
        header::{self, FileKind, ROOT_MAGIC},
        root::{self, ROOT_BYTES, Root},
    },
    lease::{IndexLock, PlainFile, SyncJob},
    limits::FORMAT_VERSION,
    storage::{Purpose, Storage, StorageFile},
};

const STORE: Purpose = Purpose("root: store");

/// Number of slots in the root file.
pub const SLOTS: usize = 2;

/// Content of a root slot.
#[derive(Debug, Clone)]
pub enum RootSlot {
    /// Valid root.
    Valid(Box<Root>),
    /// Unreadable slot, with the reason.
    Unreadable(String),
}

/// The open root file and its two roots.
#[derive(Debug)]
pub struct Roots<F> {
    file: PlainFile<F>,
    page_size: usize,
    newest: Root,
    newest_slot: usize,
    older: Option<Root>,
    /// Whether this open replaced the root file by a new one.
    is_replaced: bool,
    /// Whether a store over the older root has begun, so that the content of its slot is unknown.
    storing: bool,
    bytes_stored: u64,
}

/// Reads both slots of the root file.
///
/// # Errors
/// Returns `Io` if a slot cannot be read: it may hold the newest root, so the older one must not be used. If neither
/// slot holds a valid root, returns `UnsupportedVersion` if both are of the same other version, `NotAnIndex` if neither
/// has the magic of a root, otherwise `Corruption`. Returns `UnsupportedVersion` also if one slot holds an intact root of a
/// later version: the other slot may be a stale one, and what came since would be lost in silence.
pub fn read_slots<F: StorageFile>(file: &F, page_size: usize) -> Result<[RootSlot; SLOTS]> {
    let mut slots = [const { None }; SLOTS];
    let mut kinds = [FileKind::Foreign; SLOTS];
    for (i, slot) in slots.iter_mut().enumerate() {
        let offset = i * page_size;
        // Pages of less than the length of a root hold older roots only.
        let mut bytes = vec![0; ROOT_BYTES.min(page_size)];
        if file.len()? < (offset + bytes.len()) as u64 {
            *slot = Some(RootSlot::Unreadable(format!("slot {i}: the file ends before it")));
            continue;
        }
        file.read_at(offset as u64, &mut bytes)?;
        if let Some(found) = root::later_version(&bytes) {
            return Err(ShardexError::UnsupportedVersion { file: file.path(), found, supported: FORMAT_VERSION });
        }
        kinds[i] = header::kind(&bytes, &ROOT_MAGIC);
        *slot = Some(match Root::decode(&bytes) {
            Ok(root) => RootSlot::Valid(Box::new(root)),
            Err(error) => RootSlot::Unreadable(format!("slot {i}: {error}")),
        });
    }
    let slots = slots.map(|slot| slot.unwrap_or_else(|| RootSlot::Unreadable(String::new())));
    let reasons: Vec<&str> = slots
        .iter()
        .filter_map(|slot| match slot {
            RootSlot::Valid(_) => None,
            RootSlot::Unreadable(why) => Some(why.as_str()),
        })
        .collect();
    if reasons.len() < SLOTS {
        return Ok(slots);
    }
    let versions: Vec<u32> = kinds
        .iter()
        .filter_map(|kind| match kind {
            FileKind::Version(version) if !root::VERSIONS.contains(version) => Some(*version),
            _ => None,
        })
        .collect();
    let path = file.path();
    Err(match versions.as_slice() {
        // Two slots of the same other version are not damage.
        [a, b] if a == b => ShardexError::UnsupportedVersion { file: path, found: *a, supported: FORMAT_VERSION },
        _ if kinds.iter().all(|kind| *kind == FileKind::Foreign) => {
            ShardexError::NotAnIndex { file: path, reason: reasons.join("; ") }
        }
        _ => ShardexError::Corruption { file: path, offset: 0, what: reasons.join("; ") },
    })
}

impl<F: StorageFile> Roots<F> {
    /// Creates the state of the root file from roots that were read: `newest` from slot `newest_slot`, and `older` from
    /// the other slot if that is valid.
    #[must_use]
    pub fn new(file: PlainFile<F>, newest: Root, newest_slot: usize, older: Option<Root>) -> Self {
        let page_size = newest.geometry.page_size;
        Self { file, page_size, newest, newest_slot, older, is_replaced: false, storing: false, bytes_stored: 0 }
    }

    /// Stores the first root of a new file in both slots, with its generation and with the next one.
    ///
    /// # Errors
    /// Returns `OutOfSpace` or `Io`.
    pub fn store_first(file: &PlainFile<F>, root: &Root) -> Result<()> {
        file.raw().allocate(0, (SLOTS * root.geometry.page_size) as u64, Purpose("root: allocate"))?;
        for i in 0..SLOTS {
            let generation = crate::id::Generation(root.generation.0 + i as u64);
            let root = Root { generation, ..root.clone() };
            file.store((i * root.geometry.page_size) as u64, &root.encode(), STORE)?;
        }
        Ok(())
    }

    /// Creates a file `root.new` with the content of the slots, to replace the root file by a rename. A slot without a
    /// valid root gets the newest root.
    ///
    /// # Errors
    /// Returns `OutOfSpace` or `Io`: nothing has changed, and the call can be repeated.
    pub fn copy_to_new_file<S: Storage<File = F>>(&mut self, storage: &S, lock: &IndexLock) -> Result<PlainFile<F>> {
        if storage.list()?.iter().any(|name| name == names::ROOT_NEW) {
            // A failed attempt left this file.
            storage.remove(names::ROOT_NEW, CLEAR)?;
        }
        let file = PlainFile::create(storage, names::ROOT_NEW, MAKE, lock)?;
        file.raw().allocate(0, (SLOTS * self.page_size) as u64, Purpose("root: allocate"))?;
        for slot in 0..SLOTS {
            let older = self.older.as_ref().filter(|_| slot != self.newest_slot);
            let bytes = older.unwrap_or(&self.newest).encode();
            file.store((slot * self.page_size) as u64, &bytes, STORE)?;
            self.bytes_stored += bytes.len() as u64;
        }
        Ok(file)
    }

    /// Switches to the file of [`copy_to_new_file`](Self::copy_to_new_file), after the rename that made it the root
    /// file.
    pub fn use_file(&mut self, file: PlainFile<F>) {
        self.file = file;
        self.is_replaced = true;
        if self.older.is_none() {
            self.older = Some(self.newest.clone());
        }
    }

    /// Reports whether this open has replaced the root file.
    #[must_use]
    pub fn is_replaced(&self) -> bool {
        self.is_replaced
    }

    /// Returns the newest durable root.
    #[must_use]
    pub fn newest(&self) -> &Root {
        &self.newest
    }

    /// Returns the lowest format version of the durable roots in the two slots. A slot without a root counts as version 1.
    #[must_use]
    pub fn version(&self) -> u32 {
        self.newest.version.min(self.older.as_ref().map_or(1, |older| older.version))
    }

    /// Returns the durable root before the newest, if its slot is readable.
    #[must_use]
    pub fn older(&self) -> Option<&Root> {
        self.older.as_ref()
    }

    /// Returns the number of bytes stored in the slots since the open, including a copy into a new root file.
    #[must_use]
    pub fn bytes_stored(&self) -> u64 {
        self.bytes_stored
    }

    /// Returns the root file.
    #[must_use]
    pub fn file(&self) -> &PlainFile<F> {
        &self.file
    }

    /// Stores a root in a slot and returns its offset in the file.
    fn store(&mut self, slot: usize, root: &Root) -> Result<u64> {
        let offset = (slot * self.page_size) as u64;
        let bytes = root.encode();
        self.file.store(offset, &bytes, STORE)?;
        self.bytes_stored += bytes.len() as u64;
        Ok(offset)
    }

    /// Stores the next root in the slot of the older root and returns the sync that makes it durable.
    ///
    /// From here on the root may be on the device. So it must be completed or stored again, and never abandoned.
    ///
    /// # Errors
    /// Returns `OutOfSpace` or `Io`: the call must be repeated with the same root.
    ///
    /// # Panics
    /// Panics if the generation of `root` does not follow that of the newest root.
    pub fn store_next(&mut self, root: &Root, purpose: Purpose) -> Result<SyncJob<F>> {
        assert_eq!(root.generation, self.newest.generation.next(), "roots follow one another");
        self.storing = true;
        let offset = self.store(1 - self.newest_slot, root)?;
        Ok(self.file.sync_range(offset, offset + root::bytes_of(root.version) as u64, purpose))
    }

    /// Returns the roots that the slots must hold now. The older root is left out while a store over it is in progress.
    pub fn in_slots(&self) -> impl Iterator<Item = &Root> {
        let older = self.older.as_ref().filter(|_| !self.storing);
        std::iter::once(&self.newest).chain(older)
    }

    /// Records that the root of [`store_next`](Self::store_next) is durable.
    pub fn stored(&mut self, root: Root) {
        let older = std::mem::replace(&mut self.newest, root);
        self.older = Some(older);
        self.newest_slot = 1 - self.newest_slot;
        self.storing = false;
    }

    /// Stores both roots again after a crash, with a sync after each.
    ///
    /// The roots that were read may exist only in the page cache (R10), and the device may hold others. After a failed
    /// sync of this file, the device may even hold a root that is newer than both and names pages that now count as
    /// free.
    ///
    /// The newest root is stored first. It goes into its own slot if the other slot holds a root too. Otherwise it goes
    /// into the other, unreadable slot, so that the only readable root is not endangered.
    ///
    /// The syncs also make the length of the file durable (R6). If the file was cut, this open or an earlier one that
    /// crashed has allocated its pages again, and that may exist only in the page cache.
    ///
    /// # Errors
    /// Returns `OutOfSpace`: the index opens read-only. Returns `Io`: the open fails.
    pub fn restore(&mut self, purpose: Purpose) -> Result<()> {
        let newest = self.newest.clone();
        let (first, second) = if holds!(Ordering, self.older.is_some()) {
            (self.newest_slot, 1 - self.newest_slot)
        } else {
            reached!(RestoredInOtherSlot);
            (1 - self.newest_slot, self.newest_slot)
        };
        self.store(first, &newest)?;
        self.file.sync_all(purpose).run()?;
        let older = self.older.get_or_insert(newest).clone();
        self.newest_slot = first;
        self.store(second, &older)?;
        self.file.sync_all(purpose).run()
    }
}
