//! Storage wrapper that calls a hook before each operation.
//!
//! An operation that the hook fails never reaches the inner storage. To simulate the effect of a failed sync on the
//! pages (R8), a hook calls [`SimStorage::fail_next_sync`](crate::SimStorage::fail_next_sync).

use std::{fmt, io, path::PathBuf, sync::Arc};

use shardex::{
    error::{Result, ShardexError},
    storage::{Purpose, Storage, StorageFile},
};

use crate::storage::{Op, OpInfo};

/// Decision of a hook about an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HookAction {
    /// The operation is done.
    Proceed,
    /// The operation fails with an error of this kind, and nothing is done.
    Fail(io::ErrorKind),
}

/// Hook called before each operation that changes or syncs something. It may block, to hold the engine at a step.
pub type Hook = dyn Fn(&OpInfo) -> HookAction + Send + Sync;

/// Hook called before each read by copying, with the file name, the offset and the length. It may block.
pub type ReadHook = dyn Fn(&str, u64, usize) + Send + Sync;

/// Storage with a hook.
pub struct HookStorage<S> {
    inner: S,
    hook: Arc<Hook>,
    reads: Arc<ReadHook>,
}

impl<S: Clone> Clone for HookStorage<S> {
    fn clone(&self) -> Self {
        Self { inner: self.inner.clone(), hook: Arc::clone(&self.hook), reads: Arc::clone(&self.reads) }
    }
}

impl<S: fmt::Debug> fmt::Debug for HookStorage<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HookStorage").field("inner", &self.inner).finish_non_exhaustive()
    }
}

impl<S: Storage> HookStorage<S> {
    /// Wraps a storage with a hook.
    #[must_use]
    pub fn new(inner: S, hook: impl Fn(&OpInfo) -> HookAction + Send + Sync + 'static) -> Self {
        Self { inner, hook: Arc::new(hook), reads: Arc::new(|_, _, _| ()) }
    }

    /// Adds a hook that is called before reads by copying.
    #[must_use]
    pub fn on_read(mut self, hook: impl Fn(&str, u64, usize) + Send + Sync + 'static) -> Self {
        self.reads = Arc::new(hook);
        self
    }

    /// Returns the inner storage.
    #[must_use]
    pub fn inner(&self) -> &S {
        &self.inner
    }

    fn ask(&self, info: &OpInfo) -> Result<()> {
        let path = if info.file.is_empty() { self.inner.path() } else { self.inner.path().join(&info.file) };
        ask(&self.hook, info, path)
    }

    fn wrap(&self, name: &str, inner: Arc<S::File>) -> Arc<HookFile<S::File>> {
        let (hook, reads) = (Arc::clone(&self.hook), Arc::clone(&self.reads));
        Arc::new(HookFile { inner, name: name.to_owned(), hook, reads })
    }
}

fn ask(hook: &Arc<Hook>, info: &OpInfo, path: PathBuf) -> Result<()> {
    match hook(info) {
        HookAction::Proceed => Ok(()),
        HookAction::Fail(kind) => Err(ShardexError::io(info.op.verb(), path, kind.into())),
    }
}

impl<S: Storage> Storage for HookStorage<S> {
    type File = HookFile<S::File>;
    type Lock = S::Lock;

    fn page_size(&self) -> usize {
        self.inner.page_size()
    }

    fn sector_size(&self) -> usize {
        self.inner.sector_size()
    }

    fn path(&self) -> PathBuf {
        self.inner.path()
    }

    fn exists(&self) -> Result<bool> {
        self.inner.exists()
    }

    fn make_dir(&self, purpose: Purpose) -> Result<()> {
        self.ask(&OpInfo::dir(Op::MakeDir, purpose))?;
        self.inner.make_dir(purpose)
    }

    fn sync_parent(&self, purpose: Purpose) -> Result<()> {
        self.ask(&OpInfo::dir(Op::SyncParent, purpose))?;
        self.inner.sync_parent(purpose)
    }

    fn lock(&self, name: &str) -> Result<S::Lock> {
        self.inner.lock(name)
    }

    fn list(&self) -> Result<Vec<String>> {
        self.inner.list()
    }

    fn create(&self, name: &str, purpose: Purpose) -> Result<Arc<Self::File>> {
        self.ask(&OpInfo::file(Op::Create, name, 0, 0, purpose))?;
        Ok(self.wrap(name, self.inner.create(name, purpose)?))
    }

    fn open(&self, name: &str) -> Result<Arc<Self::File>> {
        Ok(self.wrap(name, self.inner.open(name)?))
    }

    fn open_to_read(&self, name: &str) -> Result<Arc<Self::File>> {
        Ok(self.wrap(name, self.inner.open_to_read(name)?))
    }

    fn link_from(&self, from: &Self, name: &str, purpose: Purpose) -> Result<bool> {
        self.ask(&OpInfo::file(Op::Link, name, 0, 0, purpose))?;
        self.inner.link_from(&from.inner, name, purpose)
    }

    fn rename(&self, from: &str, to: &str, purpose: Purpose) -> Result<()> {
        self.ask(&OpInfo::rename(from, to, purpose))?;
        self.inner.rename(from, to, purpose)
    }

    fn remove(&self, name: &str, purpose: Purpose) -> Result<()> {
        self.ask(&OpInfo::file(Op::Remove, name, 0, 0, purpose))?;
        self.inner.remove(name, purpose)
    }

    fn sync_dir(&self, purpose: Purpose) -> Result<()> {
        self.ask(&OpInfo::dir(Op::SyncDir, purpose))?;
        self.inner.sync_dir(purpose)
    }
}

/// File of a [`HookStorage`].
pub struct HookFile<F> {
    inner: Arc<F>,
    name: String,
    hook: Arc<Hook>,
    reads: Arc<ReadHook>,
}

impl<F: fmt::Debug> fmt::Debug for HookFile<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HookFile").field("inner", &self.inner).finish_non_exhaustive()
    }
}

impl<F: StorageFile> HookFile<F> {
    fn ask(&self, op: Op, offset: u64, len: u64, purpose: Purpose) -> Result<()> {
        ask(&self.hook, &OpInfo::file(op, &self.name, offset, len, purpose), self.inner.path())
    }
}

#[expect(unsafe_code, reason = "it hands the calls on")]
impl<F: StorageFile> StorageFile for HookFile<F> {
    type Lent = F::Lent;

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
        self.ask(Op::Allocate, offset, len, purpose)?;
        self.inner.allocate(offset, len, purpose)
    }

    unsafe fn deallocate(&self, offset: u64, len: u64, purpose: Purpose) -> Result<bool> {
        self.ask(Op::Deallocate, offset, len, purpose)?;
        // SAFETY: the caller keeps the contract of `deallocate`.
        unsafe { self.inner.deallocate(offset, len, purpose) }
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        (self.reads)(&self.name, offset, buffer.len());
        self.inner.read_at(offset, buffer)
    }

    unsafe fn write_at(&self, offset: u64, bytes: &[u8], purpose: Purpose) -> Result<()> {
        self.ask(Op::Store, offset, bytes.len() as u64, purpose)?;
        // SAFETY: the caller keeps the contract of `write_at`.
        unsafe { self.inner.write_at(offset, bytes, purpose) }
    }

    fn sync_range(&self, offset: u64, len: u64, purpose: Purpose) -> Result<()> {
        self.ask(Op::SyncRange, offset, len, purpose)?;
        self.inner.sync_range(offset, len, purpose)
    }

    fn sync_all(&self, purpose: Purpose) -> Result<()> {
        self.ask(Op::SyncAll, 0, 0, purpose)?;
        self.inner.sync_all(purpose)
    }

    fn sync_begin(&self, range: Option<(u64, u64)>, purpose: Purpose) -> Result<u64> {
        match range {
            Some((offset, len)) => self.ask(Op::SyncRange, offset, len, purpose)?,
            None => self.ask(Op::SyncAll, 0, 0, purpose)?,
        }
        self.inner.sync_begin(range, purpose)
    }

    fn sync_end(&self, begun: u64, range: Option<(u64, u64)>, purpose: Purpose) -> Result<()> {
        self.inner.sync_end(begun, range, purpose)
    }

    unsafe fn lend(&self, offset: u64, len: usize) -> Result<F::Lent> {
        // SAFETY: the caller keeps the contract of `lend`.
        unsafe { self.inner.lend(offset, len) }
    }
}
