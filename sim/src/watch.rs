//! Simulated disk that reports each operation to the [monitor](crate::monitor). The first breach of a rule panics.

use std::{
    collections::BTreeMap,
    ops::Deref,
    path::PathBuf,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use shardex::{
    error::Result,
    storage::{Purpose, Storage, StorageFile},
};

use crate::{
    monitor::{Event, Monitor},
    storage::{CrashKind, SimFile, SimLent, SimLock, SimStorage},
};

/// Monitor of one disk across all its crashes. Clones share it.
#[derive(Clone, Debug)]
pub struct Watch {
    /// `None` after [`Watch::stop`]: the disk has done something that the monitor can't follow.
    monitor: Arc<Mutex<Option<Monitor>>>,
    next: Arc<AtomicU64>,
}

impl Watch {
    /// Creates a monitor for a disk without a directory.
    #[must_use]
    pub fn new(sim: &SimStorage) -> Self {
        let monitor = Monitor::new(sim.page_size(), sim.sector_size());
        Self { monitor: Arc::new(Mutex::new(Some(monitor))), next: Arc::default() }
    }

    fn locked(&self) -> MutexGuard<'_, Option<Monitor>> {
        self.monitor.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn id(&self) -> u64 {
        self.next.fetch_add(1, Ordering::Relaxed)
    }

    /// Passes an event to the monitor.
    ///
    /// # Panics
    /// If the event breaches a rule.
    pub fn see(&self, event: &Event<'_>) {
        let breach = self.locked().as_mut().and_then(|monitor| monitor.see(event).err());
        if let Some(breach) = breach {
            panic!("protocol: {breach}");
        }
    }

    /// Stops monitoring: for a medium that lies or rots, and for operations that were not reported.
    pub fn stop(&self) {
        *self.locked() = None;
    }

    /// Reports a crash of the disk and the file contents after it.
    pub fn crashed(&self, sim: &SimStorage, kind: CrashKind) {
        self.see(&Event::Crash { power: kind == CrashKind::Power });
        self.look(sim);
    }

    /// Reports the contents of all files to the monitor, after changes that no store made.
    fn look(&self, sim: &SimStorage) {
        for (file, bytes) in sim.files() {
            self.see(&Event::Contents { file: &file, bytes: &bytes });
        }
    }
}

/// Simulated disk with a monitor.
#[derive(Clone, Debug)]
pub struct WatchedStorage {
    sim: SimStorage,
    watch: Watch,
}

impl WatchedStorage {
    /// Connects a disk to a monitor.
    #[must_use]
    pub fn new(sim: SimStorage, watch: Watch) -> Self {
        Self { sim, watch }
    }

    fn wrap(&self, name: &str, inner: Arc<SimFile>) -> Arc<WatchedFile> {
        let (name, begun) = (name.to_owned(), Mutex::default());
        Arc::new(WatchedFile { inner, name, sim: self.sim.clone(), watch: self.watch.clone(), begun })
    }

    /// Reports an operation that succeeded. An operation at which the machine stopped returns an error and is not
    /// reported.
    fn done<T>(&self, result: Result<T>, event: &Event<'_>) -> Result<T> {
        if result.is_ok() {
            self.watch.see(event);
        }
        result
    }

    fn synced(&self, result: Result<()>, event: &Event<'_>) -> Result<()> {
        if !self.sim.stopped() {
            self.watch.see(event);
        }
        result
    }
}

impl Storage for WatchedStorage {
    type File = WatchedFile;
    type Lock = SimLock;

    fn page_size(&self) -> usize {
        self.sim.page_size()
    }

    fn sector_size(&self) -> usize {
        self.sim.sector_size()
    }

    fn path(&self) -> PathBuf {
        self.sim.path()
    }

    fn exists(&self) -> Result<bool> {
        self.sim.exists()
    }

    fn make_dir(&self, purpose: Purpose) -> Result<()> {
        self.done(self.sim.make_dir(purpose), &Event::MakeDir)
    }

    fn sync_parent(&self, purpose: Purpose) -> Result<()> {
        self.watch.see(&Event::SyncParentBegin);
        let result = self.sim.sync_parent(purpose);
        let ok = result.is_ok();
        self.synced(result, &Event::SyncParentEnd { ok })
    }

    fn lock(&self, name: &str) -> Result<SimLock> {
        self.sim.lock(name)
    }

    fn list(&self) -> Result<Vec<String>> {
        self.sim.list()
    }

    fn create(&self, name: &str, purpose: Purpose) -> Result<Arc<WatchedFile>> {
        let made = self.done(self.sim.create(name, purpose), &Event::Create { name });
        made.map(|file| self.wrap(name, file))
    }

    fn open(&self, name: &str) -> Result<Arc<WatchedFile>> {
        self.sim.open(name).map(|file| self.wrap(name, file))
    }

    fn open_to_read(&self, name: &str) -> Result<Arc<WatchedFile>> {
        self.sim.open_to_read(name).map(|file| self.wrap(name, file))
    }

    /// No link is made: the monitor watches the files of an index, and they have one name each.
    fn link_from(&self, _from: &Self, _name: &str, _purpose: Purpose) -> Result<bool> {
        Ok(false)
    }

    fn rename(&self, from: &str, to: &str, purpose: Purpose) -> Result<()> {
        self.done(self.sim.rename(from, to, purpose), &Event::Rename { from, to })
    }

    fn remove(&self, name: &str, purpose: Purpose) -> Result<()> {
        self.done(self.sim.remove(name, purpose), &Event::Remove { name })
    }

    fn sync_dir(&self, purpose: Purpose) -> Result<()> {
        self.watch.see(&Event::SyncDirBegin);
        let result = self.sim.sync_dir(purpose);
        let ok = result.is_ok();
        self.synced(result, &Event::SyncDirEnd { ok })
    }
}

/// File of a [`WatchedStorage`].
#[derive(Debug)]
pub struct WatchedFile {
    inner: Arc<SimFile>,
    name: String,
    sim: SimStorage,
    watch: Watch,
    /// Event ids of the syncs under way, by the numbers that the disk returned for them.
    begun: Mutex<BTreeMap<u64, u64>>,
}

impl WatchedFile {
    fn sync(&self, range: Option<(u64, u64)>, sync: impl FnOnce() -> Result<()>) -> Result<()> {
        let id = self.watch.id();
        self.watch.see(&Event::SyncBegin { file: &self.name, id, range });
        let result = sync();
        if !self.sim.stopped() {
            self.ended(id, &result);
        }
        result
    }

    fn ended(&self, id: u64, result: &Result<()>) {
        self.watch.see(&Event::SyncEnd { id, ok: result.is_ok() });
        if result.is_err() {
            // The page cache may hold older bytes again (R8).
            self.watch.look(&self.sim);
        }
    }
}

impl WatchedFile {
    /// Reports a store of `bytes`, or what a failed one has left (R9).
    fn stored(&self, offset: u64, mut bytes: Vec<u8>, ok: bool) {
        if self.sim.stopped() {
            return;
        }
        if !ok {
            self.sim.read_files(|name, all| {
                if name == self.name
                    && let Some(there) = all.get(offset as usize..offset as usize + bytes.len())
                {
                    bytes.copy_from_slice(there);
                }
            });
        }
        self.watch.see(&Event::Store { file: &self.name, offset, bytes: &bytes, ok });
    }
}

#[expect(unsafe_code, reason = "the trait's unsafe functions")]
impl StorageFile for WatchedFile {
    type Lent = WatchedLent;

    fn path(&self) -> PathBuf {
        self.inner.path()
    }

    fn len(&self) -> Result<u64> {
        self.inner.len()
    }

    fn allocated(&self) -> Result<u64> {
        self.inner.allocated()
    }

    fn is_in_place(&self) -> bool {
        self.inner.is_in_place()
    }

    fn uncache(&self) {
        self.inner.uncache();
    }

    fn allocate(&self, offset: u64, len: u64, purpose: Purpose) -> Result<()> {
        let result = self.inner.allocate(offset, len, purpose);
        if !self.sim.stopped()
            && let Ok(len) = self.inner.len()
        {
            self.watch.see(&Event::Allocate { file: &self.name, len });
        }
        result
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        self.inner.read_at(offset, buffer)
    }

    unsafe fn write_at(&self, offset: u64, bytes: &[u8], purpose: Purpose) -> Result<()> {
        let result = self.inner.write_at(offset, bytes, purpose);
        self.stored(offset, bytes.to_vec(), result.is_ok());
        result
    }

    /// Reported as a store of zeros, which it is for every rule of the monitor (R15).
    unsafe fn deallocate(&self, offset: u64, len: u64, purpose: Purpose) -> Result<bool> {
        let result = self.inner.deallocate(offset, len, purpose);
        // A file system that can't do it has changed nothing.
        if !matches!(result, Ok(false)) {
            self.stored(offset, vec![0; len as usize], result.is_ok());
        }
        result
    }

    fn sync_range(&self, offset: u64, len: u64, purpose: Purpose) -> Result<()> {
        self.sync(Some((offset, len)), || self.inner.sync_range(offset, len, purpose))
    }

    fn sync_all(&self, purpose: Purpose) -> Result<()> {
        self.sync(None, || self.inner.sync_all(purpose))
    }

    fn sync_begin(&self, range: Option<(u64, u64)>, purpose: Purpose) -> Result<u64> {
        let id = self.watch.id();
        self.watch.see(&Event::SyncBegin { file: &self.name, id, range });
        match self.inner.sync_begin(range, purpose) {
            Ok(begun) => {
                self.begun.lock().unwrap_or_else(PoisonError::into_inner).insert(begun, id);
                Ok(begun)
            }
            Err(error) => {
                if !self.sim.stopped() {
                    self.watch.see(&Event::SyncEnd { id, ok: false });
                }
                Err(error)
            }
        }
    }

    fn sync_end(&self, begun: u64, range: Option<(u64, u64)>, purpose: Purpose) -> Result<()> {
        let result = self.inner.sync_end(begun, range, purpose);
        let id = self.begun.lock().unwrap_or_else(PoisonError::into_inner).remove(&begun);
        if let Some(id) = id.filter(|_| !self.sim.stopped()) {
            self.ended(id, &result);
        }
        result
    }

    unsafe fn lend(&self, offset: u64, len: usize) -> Result<WatchedLent> {
        let bytes = self.inner.lend(offset, len)?;
        let id = self.watch.id();
        self.watch.see(&Event::Lend { file: &self.name, offset, len: len as u64, id });
        Ok(WatchedLent { bytes, _loan: Arc::new(Loan { id, watch: self.watch.clone() }) })
    }
}

/// Bytes leased from a [`WatchedFile`].
#[derive(Clone, Debug)]
pub struct WatchedLent {
    bytes: SimLent,
    _loan: Arc<Loan>,
}

impl Deref for WatchedLent {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes
    }
}

#[derive(Debug)]
struct Loan {
    id: u64,
    watch: Watch,
}

impl Drop for Loan {
    fn drop(&mut self) {
        self.watch.see(&Event::Return { id: self.id });
    }
}
