//! What the engine would otherwise take from the system: time, chance and threads, handed in.
//!
//! Invariants: nothing below the async API reads a clock or draws a random number by itself; the clock
//! decides nothing about correctness (R14); of the random numbers only the index id comes from the
//! system, every other draw derives from it and a persisted counter (P7).

use std::{
    sync::Arc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use rand::{
    SeedableRng, TryRng,
    rngs::{ChaCha8Rng, SysRng},
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

/// All cores, by the process's pool of rayon.
#[derive(Clone, Copy, Debug)]
pub struct AllCores;

impl Executor for AllCores {
    fn for_each(&self, tasks: usize, work: &(dyn Fn(usize) + Sync)) {
        use rayon::prelude::{IntoParallelIterator as _, ParallelIterator as _};
        (0..tasks).into_par_iter().for_each(work);
    }
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
