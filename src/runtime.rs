//! The runtime of the async API: it starts tasks and tells them the time.
//!
//! Invariant: the async API starts nothing and waits for no time but through [`Runtime`]. Searches, and the futures that the
//! API returns, need none: any executor may poll them.

use std::{fmt, io, pin::Pin, time::Duration};

/// A task, or a time to wait for.
pub type Pending = Pin<Box<dyn Future<Output = ()> + Send>>;

/// A call that blocks its thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Blocking {
    /// A sync of a file.
    Sync,
    /// A job that computes for long: codes, cells, a full check.
    Job,
}

/// Starts the tasks of an index, and tells them the time.
///
/// A program needs none of its own: [`Threads`](crate::env::Threads) is the default. A simulator implements it to choose who runs when.
pub trait Runtime: Send + Sync + 'static {
    /// Time since some fixed moment; never runs backwards.
    fn now(&self) -> Duration;

    /// Completes when [`now`](Self::now) has reached `at`. Only tasks of this runtime await it.
    fn sleep_until(&self, at: Duration) -> Pending;

    /// Completes when the effect of a blocking call may be seen. A task awaits it between the begin and the end of such a call:
    /// ready at once where the task has a thread of its own, and some virtual time in a simulation, so that other tasks run
    /// in between.
    fn block(&self, call: Blocking) -> Pending;

    /// Starts a task, which may block its thread.
    ///
    /// # Errors
    /// Those of the system, if it starts no thread.
    fn spawn(&self, name: &'static str, task: Pending) -> io::Result<Task>;
}

/// A task that was started. Dropping it lets the task go on by itself.
pub struct Task {
    join: Box<dyn FnOnce() + Send>,
}

impl Task {
    /// A task whose end `join` waits for.
    pub fn new(join: impl FnOnce() + Send + 'static) -> Self {
        Self { join: Box::new(join) }
    }

    /// Blocks until the task has ended, by a panic too.
    pub fn join(self) {
        (self.join)();
    }
}

impl fmt::Debug for Task {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Task").finish_non_exhaustive()
    }
}
