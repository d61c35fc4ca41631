//! Mutants of the engine: a storage call is left out, weakened, deferred or its error ignored, or a failpoint of
//! `shardex::failpoint` is disabled.
//!
//! The mutant is set per thread ([`with`]), so one build tests all mutants and threads test different ones. Running the
//! engine discovers the calls. Each combination of operation, purpose and file is a separate mutation target.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeSet,
    fmt,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
};

use shardex::{
    Result,
    failpoint::{self, mutants::Failpoint},
    storage::{Purpose, Storage, StorageFile},
};

use crate::storage::{Op, SimMutant, set_sim_mutant};

/// Storage call, identified by operation, purpose and file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Call {
    /// Operation.
    pub op: Op,
    /// Purpose of the operation.
    pub purpose: &'static str,
    /// File name; empty for the directory.
    pub file: &'static str,
}

/// Mutation of a storage call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum How {
    /// The call is skipped and returns `Ok`.
    Dropped,
    /// The call does less. A range sync leaves out the last page of its range, a full sync leaves out length and
    /// allocation, an allocation is one page short.
    Weakened,
    /// The call is deferred until after the next store to a root file or the next rename, but at most as long as
    /// [`BehindReturn`](Self::BehindReturn).
    BehindCommit,
    /// The call is deferred until the engine's next call has returned: it runs before the first storage operation after
    /// that.
    BehindReturn,
    /// The call is made and returns `Ok` even if it fails.
    ErrorIgnored,
}

/// Mutant of the engine or the simulator.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Mutant {
    /// Mutated storage call.
    Call(Call, How),
    /// Disabled failpoint of the engine.
    Failpoint(Failpoint),
    /// Mistake of the simulator.
    Simulator(SimMutant),
}

impl fmt::Display for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { op, purpose, file } = self;
        if file.is_empty() { write!(f, "{op:?} ({purpose})") } else { write!(f, "{op:?} {file} ({purpose})") }
    }
}

impl fmt::Display for Mutant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Call(call, how) => write!(f, "{call} {how:?}"),
            Self::Failpoint(point) => write!(f, "{point} disabled"),
            Self::Simulator(mutant) => write!(f, "simulator: {mutant:?}"),
        }
    }
}

impl Mutant {
    /// Returns the kind of code that is mutated, for reports.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Call(_, How::ErrorIgnored) => "error check",
            Self::Call(call, _) => match call.op {
                Op::SyncDir | Op::SyncParent => "directory sync",
                Op::Allocate | Op::Deallocate => "allocation",
                _ => "sync",
            },
            Self::Failpoint(point) => match point.kind {
                failpoint::FailpointKind::Checksum => "checksum",
                failpoint::FailpointKind::ErrorCheck => "error check",
                failpoint::FailpointKind::Ordering => "ordering",
                failpoint::FailpointKind::Recall => "recall",
            },
            Self::Simulator(_) => "simulator",
        }
    }
}

impl Call {
    /// Returns the mutants of this call.
    #[must_use]
    pub fn mutants(self) -> Vec<Mutant> {
        use How::{BehindCommit, BehindReturn, Dropped, ErrorIgnored, Weakened};
        let hows: &[How] = match self.op {
            Op::SyncRange | Op::SyncAll => &[Dropped, Weakened, BehindCommit, BehindReturn, ErrorIgnored],
            Op::SyncDir | Op::SyncParent => &[Dropped, BehindCommit, BehindReturn, ErrorIgnored],
            Op::Allocate => &[Dropped, Weakened, ErrorIgnored],
            Op::Deallocate => &[Dropped, BehindCommit, BehindReturn, ErrorIgnored],
            // `create` returns a file, so its error can't be ignored.
            Op::Create => &[],
            Op::Store | Op::Link | Op::Rename | Op::Remove | Op::MakeDir => &[ErrorIgnored],
        };
        hows.iter().map(|&how| Mutant::Call(self, how)).collect()
    }
}

thread_local! {
    static ACTIVE: Cell<Option<(Call, How)>> = const { Cell::new(None) };
    static SEEN: RefCell<Option<BTreeSet<Call>>> = const { RefCell::new(None) };
    /// Number of engine calls begun by this thread.
    static TURN: Cell<u64> = const { Cell::new(0) };
}

/// Runs `work` with a mutant active on this thread, and removes the mutant afterwards.
pub fn with<T>(mutant: Option<Mutant>, work: impl FnOnce() -> T) -> T {
    struct Undo;
    impl Drop for Undo {
        fn drop(&mut self) {
            ACTIVE.set(None);
            failpoint::mutants::disable(None);
            set_sim_mutant(None);
        }
    }
    let _undo = Undo;
    match mutant {
        None => {}
        Some(Mutant::Call(call, how)) => ACTIVE.set(Some((call, how))),
        Some(Mutant::Failpoint(point)) => failpoint::mutants::disable(Some(point)),
        Some(Mutant::Simulator(mutant)) => set_sim_mutant(Some(mutant)),
    }
    work()
}

/// Returns the mutants of all storage calls and failpoints that `work` reaches on this thread, in a fixed order.
pub fn of(work: impl FnOnce()) -> Vec<Mutant> {
    SEEN.set(Some(BTreeSet::new()));
    let failpoints = failpoint::mutants::evaluated_by(work);
    let calls = SEEN.take().unwrap_or_default();
    calls.into_iter().flat_map(Call::mutants).chain(failpoints.into_iter().map(Mutant::Failpoint)).collect()
}

/// Marks the start of an engine call. Calls deferred by [`How::BehindReturn`] are due one full engine call later.
pub fn next_turn() {
    TURN.set(TURN.get() + 1);
}

/// Deferred operation.
type Later = Box<dyn FnOnce() + Send>;

#[derive(Default)]
struct State {
    active: Option<(Call, How)>,
    later: Mutex<Vec<(u64, Later)>>,
}

impl State {
    /// Records a call and returns its mutation if it is the active mutant. Runs deferred calls that are due.
    fn ask(&self, op: Op, purpose: Purpose, file: &'static str) -> Option<How> {
        let call = Call { op, purpose: purpose.0, file };
        SEEN.with_borrow_mut(|seen| {
            if let Some(seen) = seen {
                seen.insert(call);
            }
        });
        self.run_later(|turn| turn + 1 < TURN.get());
        self.active.and_then(|(active, how)| (active == call).then_some(how))
    }

    /// Runs deferred calls after an operation that commits something.
    fn committed(&self) {
        if matches!(self.active, Some((_, How::BehindCommit))) {
            self.run_later(|_| true);
        }
    }

    fn run_later(&self, due: impl Fn(u64) -> bool) {
        let mut later = self.later.lock().unwrap_or_else(PoisonError::into_inner);
        if later.is_empty() {
            return;
        }
        let (now, rest): (Vec<_>, Vec<_>) = std::mem::take(&mut *later).into_iter().partition(|(turn, _)| due(*turn));
        *later = rest;
        drop(later);
        now.into_iter().for_each(|(_, run)| run());
    }

    /// Makes, skips, weakens or defers a call, or ignores its error.
    fn call(
        &self,
        how: Option<How>,
        run: impl Fn() -> Result<()> + Send + 'static,
        weak: impl FnOnce() -> Result<()>,
    ) -> Result<()> {
        match how {
            None => run(),
            Some(How::Dropped) => Ok(()),
            Some(How::Weakened) => weak(),
            Some(How::ErrorIgnored) => {
                let _ = run();
                Ok(())
            }
            Some(How::BehindCommit | How::BehindReturn) => {
                let mut later = self.later.lock().unwrap_or_else(PoisonError::into_inner);
                // The caller has already received `Ok`, so the error is dropped.
                later.push((
                    TURN.get(),
                    Box::new(move || {
                        let _ = run();
                    }),
                ));
                Ok(())
            }
        }
    }
}

/// Storage that applies the thread's mutant of a call.
#[derive(Clone)]
pub struct MutantStorage<S> {
    inner: S,
    state: Arc<State>,
}

impl<S> MutantStorage<S> {
    /// Wraps a storage. The thread's mutant at this time is used.
    pub fn new(inner: S) -> Self {
        let state = State { active: ACTIVE.get(), ..State::default() };
        Self { inner, state: Arc::new(state) }
    }

    /// Returns the inner storage.
    pub fn inner(&self) -> &S {
        &self.inner
    }
}

/// Returns the static name of a file of an index; `"other"` for all other names.
fn known(name: &str) -> &'static str {
    let names = ["root", "root.new", "data", "wal", "manifest", "manifest.new"];
    names.into_iter().find(|known| *known == name).unwrap_or(if name.starts_with("pack-") { "pack" } else { "other" })
}

impl<S: Storage> MutantStorage<S> {
    fn wrap(&self, name: &str, inner: Arc<S::File>) -> Arc<MutantFile<S::File>> {
        Arc::new(MutantFile {
            inner,
            name: known(name),
            state: Arc::clone(&self.state),
            page: self.inner.page_size() as u64,
        })
    }
}

impl<S: Storage + Clone> Storage for MutantStorage<S> {
    type File = MutantFile<S::File>;
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
        let how = self.state.ask(Op::MakeDir, purpose, "");
        let inner = self.inner.clone();
        self.state.call(how, move || inner.make_dir(purpose), || Ok(()))
    }

    fn sync_parent(&self, purpose: Purpose) -> Result<()> {
        let how = self.state.ask(Op::SyncParent, purpose, "");
        let inner = self.inner.clone();
        self.state.call(how, move || inner.sync_parent(purpose), || Ok(()))
    }

    fn lock(&self, name: &str) -> Result<S::Lock> {
        self.inner.lock(name)
    }

    fn list(&self) -> Result<Vec<String>> {
        self.inner.list()
    }

    fn create(&self, name: &str, purpose: Purpose) -> Result<Arc<Self::File>> {
        self.state.ask(Op::Create, purpose, known(name));
        Ok(self.wrap(name, self.inner.create(name, purpose)?))
    }

    fn open(&self, name: &str) -> Result<Arc<Self::File>> {
        Ok(self.wrap(name, self.inner.open(name)?))
    }

    fn open_to_read(&self, name: &str) -> Result<Arc<Self::File>> {
        Ok(self.wrap(name, self.inner.open_to_read(name)?))
    }

    fn link_from(&self, from: &Self, name: &str, purpose: Purpose) -> Result<bool> {
        let how = self.state.ask(Op::Link, purpose, known(name));
        let done = self.inner.link_from(&from.inner, name, purpose);
        if how == Some(How::ErrorIgnored) { Ok(done.unwrap_or(true)) } else { done }
    }

    fn rename(&self, from: &str, to: &str, purpose: Purpose) -> Result<()> {
        let how = self.state.ask(Op::Rename, purpose, known(from));
        let (inner, from, to) = (self.inner.clone(), from.to_owned(), to.to_owned());
        let done = self.state.call(how, move || inner.rename(&from, &to, purpose), || Ok(()));
        self.state.committed();
        done
    }

    fn remove(&self, name: &str, purpose: Purpose) -> Result<()> {
        let how = self.state.ask(Op::Remove, purpose, known(name));
        let (inner, name) = (self.inner.clone(), name.to_owned());
        self.state.call(how, move || inner.remove(&name, purpose), || Ok(()))
    }

    fn sync_dir(&self, purpose: Purpose) -> Result<()> {
        let how = self.state.ask(Op::SyncDir, purpose, "");
        let inner = self.inner.clone();
        self.state.call(how, move || inner.sync_dir(purpose), || Ok(()))
    }
}

/// Number returned by `sync_begin` for a mutated sync: the whole sync is done at its end.
const AT_ITS_END: u64 = u64::MAX;

/// File of a [`MutantStorage`].
pub struct MutantFile<F> {
    inner: Arc<F>,
    name: &'static str,
    state: Arc<State>,
    page: u64,
}

#[expect(unsafe_code, reason = "it hands the calls on")]
impl<F: StorageFile> StorageFile for MutantFile<F> {
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
        let how = self.state.ask(Op::Allocate, purpose, self.name);
        let (inner, weak) = (Arc::clone(&self.inner), Arc::clone(&self.inner));
        let less = len.saturating_sub(self.page);
        self.state.call(how, move || inner.allocate(offset, len, purpose), || weak.allocate(offset, less, purpose))
    }

    unsafe fn deallocate(&self, offset: u64, len: u64, purpose: Purpose) -> Result<bool> {
        let how = self.state.ask(Op::Deallocate, purpose, self.name);
        let inner = Arc::clone(&self.inner);
        // SAFETY: the caller keeps the contract of `deallocate`. A mutant that defers the call breaks it, and the
        // simulated storage, which lends copies, panics at that.
        let run = move || unsafe { inner.deallocate(offset, len, purpose) };
        match how {
            None => run(),
            _ => self.state.call(how, move || run().map(drop), || Ok(())).map(|()| true),
        }
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        self.inner.read_at(offset, buffer)
    }

    unsafe fn write_at(&self, offset: u64, bytes: &[u8], purpose: Purpose) -> Result<()> {
        let how = self.state.ask(Op::Store, purpose, self.name);
        // SAFETY: the caller keeps the contract of `write_at`.
        let done = unsafe { self.inner.write_at(offset, bytes, purpose) };
        if self.name == "root" || self.name == "root.new" {
            self.state.committed();
        }
        if how == Some(How::ErrorIgnored) { Ok(()) } else { done }
    }

    fn sync_range(&self, offset: u64, len: u64, purpose: Purpose) -> Result<()> {
        let how = self.state.ask(Op::SyncRange, purpose, self.name);
        let (inner, weak) = (Arc::clone(&self.inner), Arc::clone(&self.inner));
        let last_page = (offset + len).saturating_sub(1) / self.page * self.page;
        let less = last_page.saturating_sub(offset);
        self.state.call(how, move || inner.sync_range(offset, len, purpose), || weak.sync_range(offset, less, purpose))
    }

    fn sync_all(&self, purpose: Purpose) -> Result<()> {
        let how = self.state.ask(Op::SyncAll, purpose, self.name);
        let (inner, weak) = (Arc::clone(&self.inner), Arc::clone(&self.inner));
        self.state.call(how, move || inner.sync_all(purpose), || weak.sync_range(0, weak.len()?, purpose))
    }

    /// Begins a sync. A mutated sync is done as a whole, at its end.
    fn sync_begin(&self, range: Option<(u64, u64)>, purpose: Purpose) -> Result<u64> {
        let op = if range.is_some() { Op::SyncRange } else { Op::SyncAll };
        match self.state.ask(op, purpose, self.name) {
            None => self.inner.sync_begin(range, purpose),
            Some(_) => Ok(AT_ITS_END),
        }
    }

    fn sync_end(&self, begun: u64, range: Option<(u64, u64)>, purpose: Purpose) -> Result<()> {
        match (begun, range) {
            (AT_ITS_END, Some((offset, len))) => self.sync_range(offset, len, purpose),
            (AT_ITS_END, None) => self.sync_all(purpose),
            _ => self.inner.sync_end(begun, range, purpose),
        }
    }

    unsafe fn lend(&self, offset: u64, len: usize) -> Result<F::Lent> {
        // SAFETY: the caller keeps the contract of `lend`.
        unsafe { self.inner.lend(offset, len) }
    }
}
