//! The root file: two slots, each on a page of its own, of which at least one always holds a durable root.
//!
//! Invariants:
//! 1. A store goes into the slot that does not hold the last durable root.
//! 2. `newest` and `older` are durable; nothing that either names is free.

use super::{
    names,
    purposes::{CLEAR, MAKE},
};
use crate::{
    error::{Result, ShardexError},
    format::{
        header::{self, Kind, ROOT_MAGIC},
        root::{ROOT_BYTES, Root},
    },
    lease::{IndexLock, PlainFile, SyncJob},
    limits::FORMAT_VERSION,
    site::{self, Mark},
    storage::{Purpose, Storage, StorageFile},
};

const STORE: Purpose = Purpose("root: store");

/// Slots of the file.
pub const SLOTS: usize = 2;

/// What one slot holds.
#[derive(Debug, Clone)]
pub enum Slot {
    /// A root.
    Valid(Box<Root>),
    /// Nothing that can be used, and why.
    Unreadable(String),
}

/// The root file.
#[derive(Debug)]
pub struct Roots<F> {
    file: PlainFile<F>,
    page_size: usize,
    newest: Root,
    newest_slot: usize,
    older: Option<Root>,
    /// The file was put in the place of one that was there.
    is_anew: bool,
    /// A store over the older root has begun: what its slot holds is not known.
    storing: bool,
    bytes_stored: u64,
}

/// Reads both slots.
///
/// # Errors
/// `Io` (a slot that cannot be read may hold the newest root, so there is no way on); `NotAnIndex`,
/// `UnsupportedVersion` or `Corruption` if neither holds a root.
pub fn read_slots<F: StorageFile>(file: &F, page_size: usize) -> Result<[Slot; SLOTS]> {
    let mut slots = [const { None }; SLOTS];
    let mut kinds = [Kind::Foreign; SLOTS];
    for (i, slot) in slots.iter_mut().enumerate() {
        let offset = i * page_size;
        let mut bytes = [0; ROOT_BYTES];
        if file.len()? < (offset + ROOT_BYTES) as u64 {
            *slot = Some(Slot::Unreadable(format!("slot {i}: the file ends before it")));
            continue;
        }
        file.read_at(offset as u64, &mut bytes)?;
        kinds[i] = header::kind(&bytes, &ROOT_MAGIC);
        *slot = Some(match Root::decode(&bytes) {
            Ok(root) => Slot::Valid(Box::new(root)),
            Err(error) => Slot::Unreadable(format!("slot {i}: {error}")),
        });
    }
    let slots = slots.map(|slot| slot.unwrap_or_else(|| Slot::Unreadable(String::new())));
    let reasons: Vec<&str> = slots
        .iter()
        .filter_map(|slot| match slot {
            Slot::Valid(_) => None,
            Slot::Unreadable(why) => Some(why.as_str()),
        })
        .collect();
    if reasons.len() < SLOTS {
        return Ok(slots);
    }
    let versions: Vec<u32> = kinds
        .iter()
        .filter_map(|kind| match kind {
            Kind::OtherVersion(version) => Some(*version),
            _ => None,
        })
        .collect();
    let path = file.path();
    Err(match versions.as_slice() {
        // Both slots agree: this is no damage.
        [a, b] if a == b => ShardexError::UnsupportedVersion { file: path, found: *a, supported: FORMAT_VERSION },
        _ if kinds.iter().all(|kind| *kind == Kind::Foreign) => {
            ShardexError::NotAnIndex { file: path, reason: reasons.join("; ") }
        }
        _ => ShardexError::Corruption { file: path, offset: 0, what: reasons.join("; ") },
    })
}

impl<F: StorageFile> Roots<F> {
    /// Roots as they were read: `newest` from slot `newest_slot`, `older` from the other one if it is valid.
    #[must_use]
    pub fn new(file: PlainFile<F>, newest: Root, newest_slot: usize, older: Option<Root>) -> Self {
        let page_size = newest.geometry.page_size;
        Self { file, page_size, newest, newest_slot, older, is_anew: false, storing: false, bytes_stored: 0 }
    }

    /// The file of a new index: both slots hold the root, under two generations.
    ///
    /// # Errors
    /// `OutOfSpace`, `Io`.
    pub fn store_first(file: &PlainFile<F>, root: &Root) -> Result<()> {
        file.raw().allocate((SLOTS * root.geometry.page_size) as u64, Purpose("root: allocate"))?;
        for i in 0..SLOTS {
            let root = Root { generation: crate::id::Generation(1 + i as u64), ..root.clone() };
            file.store((i * root.geometry.page_size) as u64, &root.encode(), STORE)?;
        }
        Ok(())
    }

    /// A file `root.new` that holds what the slots hold. It takes the place of the root file by a rename.
    ///
    /// # Errors
    /// `OutOfSpace`, `Io`: nothing has changed; to be called again.
    pub fn copy_to_new_file<S: Storage<File = F>>(&self, storage: &S, lock: &IndexLock) -> Result<PlainFile<F>> {
        if storage.list()?.iter().any(|name| name == names::ROOT_NEW) {
            // Left by a try that failed.
            storage.remove(names::ROOT_NEW, CLEAR)?;
        }
        let file = PlainFile::create(storage, names::ROOT_NEW, MAKE, lock)?;
        file.raw().allocate((SLOTS * self.page_size) as u64, Purpose("root: allocate"))?;
        for slot in 0..SLOTS {
            let older = self.older.as_ref().filter(|_| slot != self.newest_slot);
            file.store((slot * self.page_size) as u64, &older.unwrap_or(&self.newest).encode(), STORE)?;
        }
        Ok(file)
    }

    /// Goes on with the file of [`copy_to_new_file`](Self::copy_to_new_file), which has taken the place of the one before.
    pub fn use_file(&mut self, file: PlainFile<F>) {
        self.file = file;
        self.is_anew = true;
        if self.older.is_none() {
            self.older = Some(self.newest.clone());
        }
    }

    /// Whether this open has replaced the file.
    #[must_use]
    pub fn is_anew(&self) -> bool {
        self.is_anew
    }

    /// The newest durable root.
    #[must_use]
    pub fn newest(&self) -> &Root {
        &self.newest
    }

    /// The durable root before it, if its slot can be read.
    #[must_use]
    pub fn older(&self) -> Option<&Root> {
        self.older.as_ref()
    }

    /// Bytes stored so far.
    #[must_use]
    pub fn bytes_stored(&self) -> u64 {
        self.bytes_stored
    }

    /// The file.
    #[must_use]
    pub fn file(&self) -> &PlainFile<F> {
        &self.file
    }

    /// Stores a root, and returns where.
    fn store(&mut self, slot: usize, root: &Root) -> Result<u64> {
        let offset = (slot * self.page_size) as u64;
        let bytes = root.encode();
        self.file.store(offset, &bytes, STORE)?;
        self.bytes_stored += bytes.len() as u64;
        Ok(offset)
    }

    /// Stores a new root in the other slot, and returns the sync that makes it durable. From here on it may be on the
    /// device, so it is finished or stored again, never given up.
    ///
    /// # Errors
    /// `OutOfSpace`, `Io`: to be called again with the same root.
    pub fn store_next(&mut self, root: &Root, purpose: Purpose) -> Result<SyncJob<F>> {
        assert_eq!(root.generation, self.newest.generation.next(), "roots follow one another");
        self.storing = true;
        let offset = self.store(1 - self.newest_slot, root)?;
        Ok(self.file.sync_range(offset, offset + ROOT_BYTES as u64, purpose))
    }

    /// The roots that the slots must hold now.
    pub fn in_slots(&self) -> impl Iterator<Item = &Root> {
        let older = self.older.as_ref().filter(|_| !self.storing);
        std::iter::once(&self.newest).chain(older)
    }

    /// Notes that the root of [`store_next`](Self::store_next) is durable.
    pub fn stored(&mut self, root: Root) {
        let older = std::mem::replace(&mut self.newest, root);
        self.older = Some(older);
        self.newest_slot = 1 - self.newest_slot;
        self.storing = false;
    }

    /// After a crash: stores both roots again, for they may be in the page cache alone (R10), and the device may hold others: after
    /// a sync of this file has failed, also one that is newer than both and names places that are taken for free now. The newest
    /// first, in its own slot if the other holds a root too; else in the other, which cannot be read, so that the one that can is
    /// not endangered.
    ///
    /// The length is made durable with them (R6): a file that was cut has got its pages back from an open, this one or one that
    /// died since, and that is in the page cache alone.
    ///
    /// # Errors
    /// `OutOfSpace`, `Io`: the index cannot be opened.
    pub fn restore(&mut self, purpose: Purpose) -> Result<()> {
        let newest = self.newest.clone();
        let (first, second) = if site::holds(site::Kind::Ordering, self.older.is_some()) {
            (self.newest_slot, 1 - self.newest_slot)
        } else {
            site::reach(Mark::RestoredInOtherSlot);
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
