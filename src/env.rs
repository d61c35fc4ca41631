//! Environment of an index: clock, random numbers, executor and runtime, all passed in by the caller.
//!
//! Invariants: nothing below the async API reads a system clock or draws a random number of the system. The clock
//! decides nothing about correctness (R14). The index id is the only number drawn from the system. Every other draw
//! derives from it and a persisted counter (P7).

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

/// Source of time.
pub trait Clock: Send + Sync + 'static {
    /// Returns the milliseconds since 1970, which become part of shard ids. May jump in both directions.
    fn unix_ms(&self) -> u64;
    /// Returns the time since a fixed moment, for measuring durations.
    fn elapsed(&self) -> Duration;
}

/// Clock of the operating system.
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

/// Executor of independent tasks on any number of threads.
pub trait Executor: Send + Sync + 'static {
    /// Calls `work` once with each number below `tasks`, in any order. Returns when all calls have returned.
    fn for_each(&self, tasks: usize, work: &(dyn Fn(usize) + Sync));
}

impl dyn Executor {
    /// Returns the results of `work` for each number below `tasks`, in the order of the numbers.
    pub fn map<T: Send + Sync>(&self, tasks: usize, work: impl Fn(usize) -> T + Sync) -> Vec<T> {
        let results: Vec<OnceLock<T>> = (0..tasks).map(|_| OnceLock::new()).collect();
        self.for_each(tasks, &|i| {
            // Each number is passed once, so each result is set once.
            let _ = results[i].set(work(i));
        });
        let results: Vec<T> = results.into_iter().filter_map(OnceLock::into_inner).collect();
        assert_eq!(results.len(), tasks, "an executor calls its work once with each number");
        results
    }
}

/// Executor that runs all tasks on the calling thread, in order. Simulations use it.
#[derive(Clone, Copy, Debug)]
pub struct Inline;

impl Executor for Inline {
    fn for_each(&self, tasks: usize, work: &(dyn Fn(usize) + Sync)) {
        (0..tasks).for_each(work);
    }
}

/// Executor that uses all cores through the process's global rayon pool, or only the calling thread if that pool can't
/// be started.
#[derive(Clone, Copy, Debug)]
pub struct AllCores;

impl Executor for AllCores {
    fn for_each(&self, tasks: usize, work: &(dyn Fn(usize) + Sync)) {
        use rayon::prelude::{IntoParallelIterator as _, ParallelIterator as _};
        if has_pool() { (0..tasks).into_par_iter().for_each(work) } else { Inline.for_each(tasks, work) }
    }
}

/// Reports whether the process has a global rayon pool. Starts the pool if it was never started.
///
/// A failed start is not retried, because rayon doesn't retry either and panics.
fn has_pool() -> bool {
    static POOL: OnceLock<bool> = OnceLock::new();
    *POOL.get_or_init(|| match rayon::ThreadPoolBuilder::new().build_global() {
        Ok(()) => true,
        // A thread of the pool could not be started.
        Err(error) if error.source().is_some() => false,
        // The pool was started before. Only a use of it shows whether that start succeeded.
        Err(_) => catch_unwind(rayon::current_num_threads).is_ok(),
    })
}

/// Runtime that gives each task a thread with timers of its own. It is the default. A blocking call delays no other
/// task, and the caller's runtime and timers are not needed.
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
        // The timer is created inside the task, because it belongs to the runtime that polls it.
        Box::pin(async move { tokio::time::sleep_until(at.into()).await })
    }

    fn block(&self, _: Blocking) -> Pending {
        Box::pin(std::future::ready(()))
    }

    fn spawn(&self, name: &'static str, task: Pending) -> io::Result<Task> {
        let timers = Timers(Some(tokio::runtime::Builder::new_current_thread().enable_time().build()?));
        let thread = std::thread::Builder::new().name(name.into()).spawn(move || timers.block_on(task))?;
        // A panic ends the thread too. The task's channel then reports it to the waiting caller.
        Ok(Task::new(move || thread.join().unwrap_or_default()))
    }
}

/// Timers of one thread.
///
/// Tokio's runtime panics if it is dropped inside another runtime, which happens if the thread could not be started. A
/// shutdown in the background doesn't panic. This runtime has no background work to lose.
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

/// Cancellation flag of a long job.
pub trait Cancel: Send + Sync {
    /// Reports whether the job is cancelled. Once true, it stays true.
    fn is_cancelled(&self) -> bool;

    /// Checks that the job is not cancelled.
    ///
    /// # Errors
    /// Returns `Closed` if the job is cancelled.
    fn check(&self) -> Result<()> {
        if self.is_cancelled() { Err(ShardexError::Closed) } else { Ok(()) }
    }
}

impl Cancel for AtomicBool {
    fn is_cancelled(&self) -> bool {
        // Relaxed suffices: the flag publishes no other data.
        self.load(Ordering::Relaxed)
    }
}

/// Flag of a job that is never cancelled.
#[derive(Clone, Copy, Debug)]
pub struct Never;

impl Cancel for Never {
    fn is_cancelled(&self) -> bool {
        false
    }
}

/// Executor of a job that may be cancelled.
#[derive(Clone, Copy)]
pub struct Workers<'a> {
    /// Executor that runs the tasks.
    pub executor: &'a dyn Executor,
    /// Cancellation flag of the job.
    pub cancel: &'a dyn Cancel,
}

impl Workers<'_> {
    /// Calls `work` with each number below `tasks`, in any order, and skips the remaining calls once the job is
    /// cancelled.
    ///
    /// # Errors
    /// Returns `Closed` if the job was cancelled. Some calls were skipped then.
    pub fn for_each(&self, tasks: usize, work: &(dyn Fn(usize) + Sync)) -> Result<()> {
        self.executor.for_each(tasks, &|i| {
            if !self.cancel.is_cancelled() {
                work(i);
            }
        });
        self.cancel.check()
    }

    /// Returns the results of `work` for each number below `tasks`, in the order of the numbers.
    ///
    /// # Errors
    /// Returns `Closed` if the job was cancelled. Some calls were skipped then.
    pub fn map<T: Send + Sync>(&self, tasks: usize, work: &(impl Fn(usize) -> T + Sync)) -> Result<Vec<T>> {
        let results = self.executor.map(tasks, |i| (!self.cancel.is_cancelled()).then(|| work(i)));
        self.cancel.check()?;
        Ok(results.into_iter().flatten().collect())
    }
}

/// Policy that decides when an index has cells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CellPolicy {
    /// Cells are built where they make searches cheaper than exhaustive ones. That excludes few postings, few
    /// dimensions, and data for which estimates don't separate near postings from others.
    WherePays,
    /// `optimize` builds cells also where they don't pay, even for a handful of postings. Automatic builds require
    /// 4,096 live postings. For simulations and tests of cells.
    Always,
}

/// Environment of an engine: everything besides its storage.
///
/// [`Shardex::create`](crate::Shardex::create) uses [`system`](Self::system). To use another one, create the index, close
/// it, and open it with [`open_in`](crate::Shardex::open_in).
#[derive(Clone)]
pub struct Env {
    /// Clock.
    pub clock: Arc<dyn Clock>,
    /// Id of a new index: 128 random bits. An open ignores it.
    pub new_index_id: u128,
    /// Executor of parallel work.
    pub executor: Arc<dyn Executor>,
    /// Runtime for the tasks of the async API. The engine itself doesn't use it.
    pub runtime: Arc<dyn Runtime>,
    /// Policy that decides when cells are built.
    pub cells: CellPolicy,
}

impl Env {
    /// Returns the default environment: the system's clock, an index id from the system's random generator, all cores,
    /// and a thread per task.
    ///
    /// # Panics
    /// Panics if the system has no source of random numbers.
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

/// Returns the random generator of draw `counter` of an index: ChaCha8, seeded by the index id and the counter.
#[must_use]
pub fn derived_rng(index_id: u128, counter: u64) -> ChaCha8Rng {
    let mut seed = [0u8; 32];
    seed[..16].copy_from_slice(&index_id.to_le_bytes());
    seed[16..24].copy_from_slice(&counter.to_le_bytes());
    ChaCha8Rng::from_seed(seed)
}
