//! Runtime of the async API: starts its tasks and measures its time.
//!
//! Invariant: the async API starts tasks and waits for times only through [`Runtime`]. Searches, and the futures that
//! the API returns, need no runtime: any executor may poll them.

use std::{fmt, io, pin::Pin, time::Duration};

/// Boxed future of a task or a timer.
pub type Pending = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Kind of a call that blocks its thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Blocking {
    /// Sync of a file.
    Sync,
    /// Long computation: codes, cells, or a full check.
    Job,
}

/// Runtime of the tasks of an index, with its clock and timers.
///
/// The default is [`Threads`](crate::env::Threads), so a program needs no implementation of its own. A simulator
/// implements it to schedule the tasks.
pub trait Runtime: Send + Sync + 'static {
    /// Returns the time since a fixed moment. It never decreases.
    fn now(&self) -> Duration;

    /// Completes when [`now`](Self::now) has reached `at`. Only tasks of this runtime await it.
    fn sleep_until(&self, at: Duration) -> Pending;

    /// Lets other tasks run at a point where a real thread would be busy.
    ///
    /// A task awaits it during a sync, after its begin and before its end, and before it runs a long job. It is ready at
    /// once if the task has a thread of
    /// its own. A simulation lets some virtual time pass, so that other tasks run in between.
    fn block(&self, call: Blocking) -> Pending;

    /// Starts a task, which may block its thread.
    ///
    /// # Errors
    /// Returns the error of the system if no thread can be started.
    fn spawn(&self, name: &'static str, task: Pending) -> io::Result<Task>;
}

/// Handle of a started task. Dropping it leaves the task running.
pub struct Task {
    join: Box<dyn FnOnce() + Send>,
}

impl Task {
    /// Creates a handle. `join` must block until the task has ended.
    pub fn new(join: impl FnOnce() + Send + 'static) -> Self {
        Self { join: Box::new(join) }
    }

    /// Blocks until the task has ended, even by a panic.
    pub fn join(self) {
        (self.join)();
    }
}

impl fmt::Debug for Task {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Task").finish_non_exhaustive()
    }
}
