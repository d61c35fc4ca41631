//! The environment of an index: clock, random numbers and threads are handed in, never taken from the system.
//!
//! Invariants: nothing below the async API reads a clock or draws a random number by itself; the clock
//! decides nothing about correctness (R14); of the random numbers only the index id comes from the
//! system, every other draw derives from it and a persisted counter (P7).

use std::{
    error::Error as _,
    io,
    panic::catch_unwind,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use rand::{
    SeedableRng, TryRng,
    rngs::{ChaCha8Rng, SysRng},
};

use crate::{
    error::{Result, ShardexError},
    runtime::{Blocking, Pending, Runtime, Task},
};

/// A source of time.
pub trait Clock: Send + Sync + 'static {
    /// Milliseconds since 1970, for names. May jump in both directions.
    fn unix_ms(&self) -> u64;
    /// Time since some fixed moment, for measuring how long something took.
    fn elapsed(&self) -> Duration;
}

/// The system's clocks.
#[derive(Debug)]
pub struct SystemClock {
    start: Instant,
}

impl Default for SystemClock {
    fn default() -> Self {
        Self { start: Instant::now() }
    }
}

impl Clock for SystemClock {
    fn unix_ms(&self) -> u64 {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
    }

    fn elapsed(&self) -> Duration {
        self.start.elapsed()
    }
}

/// Does independent work, on as many threads as it likes.
pub trait Executor: Send + Sync + 'static {
    /// Calls `work` once with each number below `tasks`, in any order, and returns when all calls have.
    fn for_each(&self, tasks: usize, work: &(dyn Fn(usize) + Sync));
}

/// Everything on the calling thread, in order: what simulations use.
#[derive(Clone, Copy, Debug)]
pub struct Inline;

impl Executor for Inline {
    fn for_each(&self, tasks: usize, work: &(dyn Fn(usize) + Sync)) {
        (0..tasks).for_each(work);
    }
}

/// All cores, by the process's pool of rayon; the calling thread alone where that pool cannot be started.
#[derive(Clone, Copy, Debug)]
pub struct AllCores;

impl Executor for AllCores {
    fn for_each(&self, tasks: usize, work: &(dyn Fn(usize) + Sync)) {
        use rayon::prelude::{IntoParallelIterator as _, ParallelIterator as _};
        match has_pool() {
            true => (0..tasks).into_par_iter().for_each(work),
            false => Inline.for_each(tasks, work),
        }
    }
}

/// Whether the process has a pool of rayon; starts it if nobody has. A pool that could not be started is not tried again,
/// for rayon does not either, and panics.
fn has_pool() -> bool {
    static POOL: OnceLock<bool> = OnceLock::new();
    *POOL.get_or_init(|| match rayon::ThreadPoolBuilder::new().build_global() {
        Ok(()) => true,
        // A thread could not be started.
        Err(error) if error.source().is_some() => false,
        // Somebody has tried before: only a use of the pool tells how that ended.
        Err(_) => catch_unwind(rayon::current_num_threads).is_ok(),
    })
}

/// A thread for each task, with timers of its own: its blocking calls hold up nobody, and it needs neither the caller's
/// runtime nor its timers.
#[derive(Debug, Default)]
pub struct Threads {
    clock: SystemClock,
}

impl Runtime for Threads {
    fn now(&self) -> Duration {
        self.clock.elapsed()
    }

    fn sleep_until(&self, at: Duration) -> Pending {
        let at = self.clock.start + at;
        // The timer is made in the task, for it belongs to the runtime that polls it.
        Box::pin(async move { tokio::time::sleep_until(at.into()).await })
    }

    fn block(&self, _: Blocking) -> Pending {
        Box::pin(std::future::ready(()))
    }

    fn spawn(&self, name: &'static str, task: Pending) -> io::Result<Task> {
        let timers = Timers(Some(tokio::runtime::Builder::new_current_thread().enable_time().build()?));
        let thread = std::thread::Builder::new().name(name.into()).spawn(move || timers.block_on(task))?;
        // A panic ends the thread too; whoever waits for the task's answer is told by its channel.
        Ok(Task::new(move || thread.join().unwrap_or_default()))
    }
}

/// The timers of one thread. Tokio's runtime panics if it is dropped inside another one, which is where a thread that could
/// not be started leaves it; shut down in the background it does not, and it has nothing there.
struct Timers(Option<tokio::runtime::Runtime>);

impl Timers {
    fn block_on(&self, task: Pending) {
        if let Some(runtime) = &self.0 {
            runtime.block_on(task);
        }
    }
}

impl Drop for Timers {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

/// Tells work that takes long whether anybody still wants it.
pub trait Cancel: Send + Sync {
    /// Whether nobody does. Once true it stays so.
    fn is_cancelled(&self) -> bool;

    /// Goes on, or gives up.
    ///
    /// # Errors
    /// `Closed` if nobody wants the work any more.
    fn check(&self) -> Result<()> {
        if self.is_cancelled() { Err(ShardexError::Closed) } else { Ok(()) }
    }
}

impl Cancel for AtomicBool {
    fn is_cancelled(&self) -> bool {
        // Relaxed: it hands over nothing.
        self.load(Ordering::Relaxed)
    }
}

/// Work that is never given up.
#[derive(Clone, Copy, Debug)]
pub struct Never;

impl Cancel for Never {
    fn is_cancelled(&self) -> bool {
        false
    }
}

/// Work that is shared out, and may be given up.
#[derive(Clone, Copy)]
pub struct Workers<'a> {
    /// Shares it out.
    pub executor: &'a dyn Executor,
    /// Tells whether to give it up.
    pub cancel: &'a dyn Cancel,
}

impl Workers<'_> {
    /// Calls `work` with each number below `tasks`, in any order.
    ///
    /// # Errors
    /// `Closed` if it was cancelled: some calls were left out.
    pub fn for_each(&self, tasks: usize, work: &(dyn Fn(usize) + Sync)) -> Result<()> {
        self.executor.for_each(tasks, &|i| {
            if !self.cancel.is_cancelled() {
                work(i);
            }
        });
        self.cancel.check()
    }

    /// What `work` makes of each number below `tasks`, in their order.
    ///
    /// # Errors
    /// As [`for_each`](Self::for_each).
    pub fn map<T: Send + Sync>(&self, tasks: usize, work: &(impl Fn(usize) -> T + Sync)) -> Result<Vec<T>> {
        let results: Vec<OnceLock<T>> = (0..tasks).map(|_| OnceLock::new()).collect();
        // Each number is given out once, so each place is set once.
        self.for_each(tasks, &|i| drop(results[i].set(work(i))))?;
        Ok(results.into_iter().filter_map(OnceLock::into_inner).collect())
    }
}

/// When an index has cells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CellPolicy {
    /// Where searches by them cost less than to look at every vector: not for few postings, not in few dimensions, and not
    /// where no estimate tells near ones from others.
    WherePays,
    /// Always, also of a handful of postings: for simulations and tests of cells.
    Always,
}

/// What an engine is given besides its storage.
#[derive(Clone)]
pub struct Env {
    /// The clock.
    pub clock: Arc<dyn Clock>,
    /// The id a new index gets: 128 random bits.
    pub new_index_id: u128,
    /// Does what can be done in parallel.
    pub executor: Arc<dyn Executor>,
    /// Runs what the async API does beside its callers. The engine uses none.
    pub runtime: Arc<dyn Runtime>,
    /// When cells are made.
    pub cells: CellPolicy,
}

impl Env {
    /// The system's clock, an index id from the system's generator, and all cores.
    ///
    /// # Panics
    /// If the system has no source of random numbers.
    #[must_use]
    pub fn system() -> Self {
        let mut id = [0u8; 16];
        #[expect(clippy::expect_used, reason = "an id that is not random would collide; there is no way on")]
        SysRng.try_fill_bytes(&mut id).expect("the system gives random numbers");
        Self {
            clock: Arc::new(SystemClock::default()),
            new_index_id: u128::from_le_bytes(id),
            executor: Arc::new(AllCores),
            runtime: Arc::new(Threads::default()),
            cells: CellPolicy::WherePays,
        }
    }
}

impl std::fmt::Debug for Env {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Env").field("new_index_id", &self.new_index_id).finish_non_exhaustive()
    }
}

/// The generator for draw number `counter` of an index: ChaCha8, seeded by both.
#[must_use]
pub fn derived_rng(index_id: u128, counter: u64) -> ChaCha8Rng {
    let mut seed = [0u8; 32];
    seed[..16].copy_from_slice(&index_id.to_le_bytes());
    seed[16..24].copy_from_slice(&counter.to_le_bytes());
    ChaCha8Rng::from_seed(seed)
}
